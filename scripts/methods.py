"""Beside re-distillation: what else one could do with an RL policy, on the tiny world.

    python scripts/methods.py --seed 0          # runs/methods-0: ten minutes on two cores
    python scripts/methods.py --report runs/methods-0 runs/methods-1 --out results/methods

Three questions. (1) One base: GRPO; the base fine-tuned on the policy's answers (re-distillation A:
greedy, B: those of its last steps); the base distilled on policy, to the end or with as few sampled
tokens as B has; the base fine-tuned on another's answers, with the plain loss and with DFT. How
right, how far from the base, and how well is the base's own world still known? (2) Two goals: a
base that also knows puzzles of 2 people, best answered by a *table*, where 3 people want *worked*
answers; a policy for each; then one model of both. (3) RL on the quarter of the problems with the
highest sample effect, on a random one and on the lowest.

results/methods.md says what was expected and what came out.
"""
from dataclasses import dataclass, field

from conductor import ALWAYS, Experiment, Plan
from engine.flags import command, limits, parse
from methods_report import report
from pretrain import add_puzzles, add_world

SFT = "--lr 5e-4 --batch 16 --epochs 4 --max-length 512"
LOOP = ("--temperature 1 --lr 3e-4 --warmup 4 --max-prompt-tokens 112 --max-new-tokens 300"
        " --kl-every 0 --save-every 1000 --texts 1")
KEPT = {"rl": (5, 10, 20), "od": (5, 10, 20), "few": (12,)}     # models on the way


@dataclass(kw_only=True)
class Settings(Experiment):
    seed: int = limits(0, at_least=0)   # of everything that is trained or sampled
    report: list[str] = field(default_factory=list)     # only report on these run directories


class Methods(Plan):
    """The stages. `base`, `data` and `seed` are words for commands."""

    def __init__(self, settings: Settings):
        super().__init__(settings, "assets/tiny_base")
        self.data, self.seed = f"{self.out}/data", f"--seed {settings.seed}"

    def make(self, seconds: int, what: str, words: str, out: str) -> None:
        self.add(seconds, what, f"python {words} --out {self.data}/{out}.jsonl")

    def split(self, what: str, source: str, parts: str, flags: str = "--no-shuffle") -> None:
        """Parts of a problem file as files. The last part is there when all are."""
        self.add(1, what, f"""python scripts/problems.py --source {self.data}/{source}.jsonl
            --parts {parts} {flags} --out {self.data}""",
                 made=f"{self.data}/{parts.split()[-1].split('=')[0]}.jsonl")

    def keep(self, seconds: int, name: str, trainer: str, words: str) -> None:
        """A trainer's run, and the models on its way that KEPT names."""
        steps = " ".join(map(str, KEPT.get(name, ())))
        self.add(seconds, f"{trainer}: {name}", f"""
            python {trainer}.py --out {self.out}/{name} {self.seed} {words}
                {"--keep-at " + steps if steps else ""}""")

    def measure(self, name: str, base: str, models: list[str], problems: str, flags: str) -> None:
        """How right the models are, and how far from their base."""
        self.add(8 * len(models), f"drift: {name}", f"""
            python scripts/drift.py --base {base} --model {" ".join(models)} {flags} {self.seed}
                --data {self.data}/{problems}.jsonl --text {self.data}/world.jsonl --max-length 512
                --max-new-tokens 400 --out {self.out}/drift/{name}.jsonl""")

    # ---- one base ----
    def puzzles(self) -> None:
        add_puzzles(self, 300, 1, 256)
        self.split("tests and pools", "test", "threes=3:300 held=0")
        self.split("problems to judge by", "sft", "judge=100")
        self.split("problems to choose from", "rl", "pool=200 rest=0", flags=self.seed)
        add_world(self)

    def one_base(self) -> None:
        out, data = self.out, self.data
        self.keep(100, "rl", "grpo", f"--model {self.base} --data {data}/rl.jsonl --prompts 16"
                  f" --group 8 --steps 30 {LOOP}")
        last = " ".join(f"{out}/rl/rollouts/step-{step:06d}.jsonl" for step in range(20, 31))
        self.make(6, "the policy answers the problems of SFT", f"sample.py --model {out}/rl/model"
                  f" --data {data}/sft.jsonl --temperature 0 --max-new-tokens 400", "answers")
        self.make(1, "A", f"scripts/keep_correct.py --num 150 --data {data}/answers.jsonl", "a")
        self.make(1, "B", f"scripts/keep_correct.py --num 150 {self.seed} --data {last}", "b")
        for style in ("search", "table"):
            self.make(1, f"another's answers: {style}", f"kk_gen.py --source {data}/b.jsonl"
                      f" --people 3 --template compact --cot {style}", style)
        for name in ("a", "b", "search", "table"):
            self.keep(12, f"sft_{name}", "sft",
                      f"--model {self.base} --data {data}/{name}.jsonl {SFT}")
        for name in ("b", "search", "table"):
            self.keep(12, f"dft_{name}", "sft",
                      f"--model {self.base} --data {data}/{name}.jsonl --dft {SFT}")
        teach = f"--model {self.base} --teacher {out}/rl/model --data {data}/rl.jsonl {LOOP}"
        self.keep(110, "od", "distill", f"{teach} --prompts 16 --group 4 --steps 30")
        self.keep(20, "few", "distill", f"{teach} --prompts 8 --group 2 --steps 24")
        sets = {"rl": ["rl"], "tuned": ["sft_a", "sft_b", "dft_b", "sft_search", "dft_search",
                                        "sft_table", "dft_table"], "od": ["od", "few"]}
        for part, names in sets.items():
            models = [self.base] * (part == "rl")
            models += [f"{out}/{name}/step-{step:06d}" for name in names
                       for step in KEPT.get(name, ())]
            models += [f"{out}/{name}/model" for name in names]
            self.measure(part, self.base, models, "threes", "--group 2")

    # ---- two goals ----
    def two_goals(self) -> None:
        out, data = self.out, self.data
        self.make(1, "puzzles of 2 people to test on", "kk_gen.py --template compact --people 2"
                  " --num 50 --seed 21", "test2")
        self.make(1, "puzzles of 2 people for RL", "kk_gen.py --template compact --people 2"
                  f" --num 100 --seed 22 --exclude {data}/test2.jsonl", "rl2")
        worlds = (("2", "3500", "guess=70 table=30", "2=100"),
                  ("3", "2500", "guess=73 worked=20 table=4 search=3", "3=85 4=15"))
        for number, count, shares, people in worlds:
            self.make(3, f"documents of {number} people", f"scripts/tiny_world.py --num {count}"
                      f" --shares {shares} --right 0 --people {people} --seed 3{number} --exclude"
                      f" {data}/test2.jsonl {data}/threes.jsonl {data}/sft.jsonl {data}/rl.jsonl",
                      f"world{number}")
        self.keep(80, "base2", "sft", f"--model {self.base} --data {data}/world2.jsonl"
                  f" {data}/world3.jsonl --epochs 1 --norm token --max-length 512 --batch 40"
                  " --lr 1e-3 --warmup 20 --beta2 0.95")
        base2 = f"{out}/base2/model"
        self.split("as many puzzles of 3 people as of 2", "rl", "rl3=100", flags=self.seed)
        goals = f"--model {base2} --prompts 16 --group 8 {LOOP}"
        self.keep(30, "rl2", "grpo", f"{goals} --data {data}/rl2.jsonl --steps 20")
        self.keep(100, "rl3", "grpo", f"{goals} --data {data}/rl.jsonl --steps 30")
        self.keep(100, "mixture", "grpo",
                  f"{goals} --data {data}/rl2.jsonl {data}/rl3.jsonl --steps 40")
        for goal, steps in (("2", range(10, 21)), ("3", range(20, 31))):
            files = " ".join(f"{out}/rl{goal}/rollouts/step-{step:06d}.jsonl" for step in steps)
            self.make(1, f"B of rl{goal}", "scripts/keep_correct.py"
                      f" --num 75 {self.seed} --data {files}", f"b{goal}")
        both = f"{data}/b2.jsonl {data}/b3.jsonl"
        self.keep(12, "sft_both", "sft", f"--model {base2} --data {both} {SFT}")
        self.keep(80, "od_both", "distill", f"--model {base2} --data {both} --teacher"
                  f" 2={out}/rl2/model 3={out}/rl3/model --prompts 16 --group 4 --steps 30 {LOOP}")
        models = [base2, *(f"{out}/{name}/model" for name in ("rl2", "rl3", "mixture", "sft_both",
                                                             "od_both"))]
        for goal, flags in (("test2", "--group 8"), ("threes", "--group 2")):
            self.measure(f"goals_{goal}", base2, models, goal, flags)

    # ---- problems by effect ----
    def problems_by_effect(self) -> None:
        out, data = self.out, self.data
        effect = (f"python effect.py --model {self.base} --test {data}/judge.jsonl --problems"
                  f" {data}/pool.jsonl --max-new-tokens 300 --no-halves --cosines 0")
        seed = self.settings.seed
        self.add(60, "the effect of each problem", f"""{effect} --seed {seed} --out {out}/value
            --select {data}/ranked.jsonl --share 1""", made=f"{data}/ranked.jsonl")
        self.add(60, "the same with other answers", f"""{effect} --seed {seed + 1000}
            --out {out}/value_again""", made=f"{out}/value_again/summary.json")
        self.add(1, "the highest and the lowest quarter", f"""
            python scripts/problems.py --no-shuffle --source {data}/ranked.jsonl
                --parts highest=50 middle=100 lowest=0 --out {data}""", made=f"{data}/lowest.jsonl")
        self.split("a random quarter", "pool", "random=50", flags=self.seed)
        self.split("held out for the curves", "threes", "curve=150")
        for name in ("highest", "random", "lowest"):
            self.keep(60, f"rl_{name}", "grpo", f"--model {self.base} --data {data}/{name}.jsonl"
                      f" --prompts 16 --group 8 --steps 12 {LOOP} --eval {data}/curve.jsonl"
                      " --eval-n 2 --eval-temperature 1 --eval-max-new-tokens 300 --eval-every 2")


def main(settings: Settings) -> None:
    if settings.report and not settings.out:
        raise ValueError("--report needs --out, a directory")
    if settings.report:
        return report(settings.report, settings.out)
    settings.out = settings.out or f"runs/methods-{settings.seed}"
    plan = Methods(settings)
    plan.puzzles()
    plan.one_base()
    plan.two_goals()
    plan.problems_by_effect()
    plan.add(2, "the report", f"python scripts/methods.py --report {plan.out} --out {plan.out}",
             made=ALWAYS)
    plan.conduct(f"{settings.out}/report.md", free=("report",))


if __name__ == "__main__":
    command(main, parse(Settings, __doc__))
