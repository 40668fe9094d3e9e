"""The experiment of arXiv 2505.17988: SFT, GRPO, re-distillation, and what to compare these with.

    python scripts/redistill.py tiny                    # runs/tiny-0: five minutes on a laptop
    python scripts/redistill.py tiny --quick            # runs/tiny-quick-0: three minutes
    python scripts/redistill.py tiny --seed 1           # runs/tiny-1
    python scripts/redistill.py sums --base SmolLM2-135M-Instruct   # runs/sums-0: see smollm2.py
    python scripts/redistill.py kk --base Qwen2.5-1.5B --dry-run    # commands, memory, time, disk
    python scripts/redistill.py kk --base Qwen2.5-1.5B              # runs/kk-0, on one GPU
    python scripts/redistill.py math --base Qwen2.5-1.5B --train train.jsonl --test test.jsonl
    python scripts/redistill.py kk --smoke              # every stage at toy size; also math

tiny starts from assets/tiny_base (see pretrain.py) and trains on puzzles of 3 people that it never
saw. sums does the same with a real language model, small enough for a CPU: sums and word problems
of two steps, in English. It hardly ever writes a box, so GRPO starts from SFT, on answers of which
one in four goes step by step. kk is the paper's with Knights & Knaves: 3 to 7 people to train on,
4 to 8 to test, 2 and 3 for SFT. math is the paper's with MATH, in PRM800K's split (GSM8K's files
will do as well): SFT is on 900 of the training problems with their own solutions, GRPO on the
others.
"""
import os
import subprocess
import sys
from dataclasses import dataclass, field
from shlex import join, quote

from conductor import ALWAYS, Experiment, Plan
from engine.flags import command, limits, parse
from pretrain import add_puzzles, add_world


QUICK = "--trace 0 --steps 12 --test-puzzles 120".split()    # what --quick means; later flags win


@dataclass(kw_only=True)
class Settings(Experiment):
    task: str = limits("tiny", one_of=("tiny", "sums", "kk", "math"))       # which experiment
    seed: int = limits(0, at_least=0)  # of fine-tuning and of GRPO
    base: str = ""              # directory of the base model; tiny: assets/tiny_base; sums:
    #                             SmolLM2-135M-Instruct, which scripts/smollm2.py makes
    trace: list[int] = limits([0, 50], at_least=0, at_most=100)     # at what percent of GRPO, beside
    #                             its end, answers are taken to fine-tune on
    quick: bool = False         # tiny: fewer steps and puzzles
    # ---- tiny and sums
    steps: int = limits(30, at_least=1)             # of GRPO; sums: two thirds as many
    prompts: int = limits(16, at_least=1)           # problems in each
    examples: int = limits(256, at_least=1, at_most=1000)       # in each SFT set; sums: half as many
    keep: int = limits(150, at_least=1)             # at most, in a set of the policy's own answers
    # ---- tiny
    test_puzzles: int = limits(300, at_least=1, at_most=300)    # of 3 people, half as many of 4
    # ---- kk and math
    train: list[str] = field(default_factory=list)  # official files of problems to train on
    test: list[str] = field(default_factory=list)   # and to test on
    long: str = ""              # a file of long chains: problems, each with a response; the policy
    #                             that started from these is then the one that is re-distilled
    foreign: str = ""           # a file of another model's correct answers to the problems of B
    instruct: str = ""          # directory of the instruct model: measured, and GRPO from it, too
    smoke: bool = False         # every stage at toy size, on a small random model


class Lab(Plan):
    """The stages. `tiny` and `official` say what the experiments differ in, and make the data."""

    def __init__(self, settings: Settings):
        random_base = settings.smoke        # which a stage makes
        super().__init__(settings, "" if random_base else settings.base)
        self.base, self.data = quote(settings.base), f"{self.out}/data"
        self.steps, self.keep, self.trace = settings.steps, settings.keep, settings.trace
        self.sampled, self.keep_flags = "", ""
        self.own = {}               # set -> flags of its fine-tuning
        self.again = {}             # set -> flags of GRPO from the model fine-tuned on it
        self.measured_at = self.base        # the model that effects are measured at
        self.text = "assets/plain_english.jsonl"    # what the base could say well, and may forget
        self.judge = "test"         # the problems whose rewards the effects are about
        self.aside = ()             # sets that are only to compare with
        self.other = ""             # the command that answers the problems of B, if any
        self.given = {"long": quote(settings.long) if settings.long else "",
                      "foreign": quote(settings.foreign) if settings.foreign else ""}
        self.tuned = []             # the files of all sets that were fine-tuned on

    def evaluate(self, name: str, model: str, problems: str, once: bool = False) -> None:
        """As the model samples, and greedy; or once, the first way of these."""
        ways = [("sampled", self.sampled), ("greedy", self.greedy)]
        for way, flags in [way for way in ways if way[1]][:1 if once else 2]:
            self.add(5, f"evaluate {name}, {way}", f"""
                python sample.py --model {model} --data {self.data}/{problems}.jsonl
                    --out {self.out}/eval/{name}.{way}.jsonl {flags}""")

    def fine_tune(self, name: str, once: bool = False) -> None:
        """Fine-tune the base, always, on a set."""
        examples = self.given.get(name) or f"{self.data}/{name}.jsonl"
        self.tuned.append(examples)
        self.add(12, f"fine-tune the base on {name}", f"""
            python sft.py --model {self.base} --data {examples} --out {self.out}/sft_{name}
                --seed {self.settings.seed} {self.sft} {self.own.get(name, "")}""")
        self.evaluate(f"sft_{name}", f"{self.out}/sft_{name}/model", "test", once)

    def reinforce(self, name: str, flags: str) -> None:
        """GRPO from the base or from a fine-tuned model."""
        model = {"base": self.base, "instruct": quote(self.settings.instruct)}.get(
            name, f"{self.out}/sft_{name}/model")
        raw = self.raw if name == "base" else ""
        self.add(90, f"GRPO from {name}", f"""
            python grpo.py --model {model} --data {self.data}/{raw}rl.jsonl
                --out {self.out}/rl_{name} --seed {self.settings.seed} {flags}""")
        self.evaluate(f"rl_{name}", f"{self.out}/rl_{name}/model", f"{raw}test")

    def replay(self, name: str, percent: int, flags: str) -> None:
        """A set of answers: of the last 11 steps, as in the paper, up to this part of GRPO."""
        taken = min(11, self.steps)
        last = taken + (self.steps - taken) * percent // 100
        files = " ".join(f"{self.out}/rl_{self.policy}/rollouts/step-{step:06d}.jsonl"
                         for step in range(last - taken + 1, last + 1))
        self.add(2, f"answers of GRPO up to step {last}: {name}", f"""
            python scripts/keep_correct.py --data {files} --num {self.keep}
                --seed {self.settings.seed} --out {self.data}/{name}.jsonl {flags}""")

    def experiment(self) -> None:
        out, data = self.out, self.data
        self.evaluate("base", self.base, f"{self.raw}test")
        for name in self.sets:
            self.fine_tune(name)
        for name in self.learners:
            self.reinforce(name, self.grpo)
        # Re-distillation A: the policy's greedy answers to the problems of SFT, where correct.
        self.add(6, "the policy answers the problems of SFT", f"""
            python sample.py --model {out}/rl_{self.policy}/model
                --data {self.given.get(self.asked) or f"{data}/{self.asked}.jsonl"}
                --out {data}/answers.jsonl {self.greedy}""")
        self.add(2, "re-distillation A: the correct ones", f"""
            python scripts/keep_correct.py --data {data}/answers.jsonl --out {data}/a.jsonl
                --num {self.keep} {self.keep_flags}""")
        self.fine_tune("a")
        # B: what was correct in the last steps of GRPO, one answer to each problem.
        self.replay("b", 100, self.keep_flags)
        self.fine_tune("b")
        if self.other:          # The same problems, answered by another.
            self.add(2, "another's answers to the problems of B", f"""
                python {self.other} --source {data}/b.jsonl --out {data}/foreign.jsonl""")
        if self.other or self.given["foreign"]:
            self.fine_tune("foreign")
        # To compare with: the same from earlier in the run, and what was wrong.
        for percent in self.trace:
            self.replay(f"at_{percent}", percent, self.keep_flags)
            self.fine_tune(f"at_{percent}", once=True)
        self.replay("wrong", 0, "--wrong")
        for name in ("wrong", *self.aside):
            self.fine_tune(name, once=True)
        if self.effect:         # What would be gained from each set, seen from this model alone.
            self.add(45, "sample effect of every dataset", f"""
                python effect.py --model {self.measured_at} --test {data}/{self.judge}.jsonl
                    --data {" ".join(self.tuned)} --out {out}/effect --seed {self.settings.seed}
                    {self.effect}""", made=f"{out}/effect/summary.json")
        for name, flags in self.again.items():      # GRPO from where re-distillation ended
            self.reinforce(name, flags)
        if self.settings.instruct:
            self.evaluate("instruct", quote(self.settings.instruct), "test")
            self.reinforce("instruct", self.grpo)
        self.drift()
        self.add(5, "the report", f"""
            python scripts/report.py --runs {out} --out {out} --policy rl_{self.policy}""",
                 made=ALWAYS)           # of what is there; with figures, once there is matplotlib

    def drift(self) -> None:
        """How far from the base every model is that was sampled from, and what it has forgotten."""
        names = [*(f"sft_{name}" for name in (*self.sets, "a", "b", *["foreign"] * bool(self.other))),
                 *(f"rl_{name}" for name in (*self.learners, *self.again))]
        if self.sampled:
            self.add(30, "distance to the base, and what is forgotten", f"""
                python scripts/drift.py --base {self.base}
                    --model {" ".join(f"{self.out}/{name}/model" for name in names)}
                    --rollouts {" ".join(f"{self.out}/eval/{name}.sampled.jsonl" for name in names)}
                    --limit 100 --text {self.text} --out {self.out}/drift.jsonl""")

    def tiny(self) -> None:
        settings = self.settings
        self.sets, self.aside, self.asked = ("short", "long"), ("guess",), "sft"
        self.policy, self.raw = "base", ""      # The base is the policy, and is asked like others.
        self.learners = ("base", *self.sets)
        self.text = f"{self.data}/world.jsonl"
        self.sft = "--lr 5e-4 --batch 16 --epochs 4 --max-length 512"
        self.grpo = (f"--steps {self.steps} --prompts {settings.prompts} --group 8 --temperature 1"
                     " --lr 3e-4 --warmup 4 --norm token --max-prompt-tokens 200"
                     " --max-new-tokens 300 --kl-every 5")
        # Half the rate, as in the paper, and half the steps.
        self.again = {"b": f"{self.grpo} --steps {(self.steps + 1) // 2} --lr 1.5e-4"}
        self.sampled = "--temperature 1 --max-new-tokens 400"
        self.greedy = "--temperature 0 --max-new-tokens 400"
        self.effect = "--limit 200 --max-new-tokens 300 --max-length 512 --no-halves --cosines 8"
        self.other = "kk_gen.py --people 3 --template compact --cot search"
        add_puzzles(self, settings.test_puzzles, (settings.test_puzzles + 1) // 2,
                    settings.examples)
        add_world(self)
        for name, style in (("short", "table"), ("long", "search"), ("guess", "guess")):
            self.add(1, f"{name} chains: {style}", f"""
                python kk_gen.py --people 3 --source {self.data}/sft.jsonl --template compact
                    --cot {style} --out {self.data}/{name}.jsonl""")

    def sums(self) -> None:
        """A real model, which hardly ever writes a box: so GRPO, and effects, start from there.

        SFT is on two styles of answers, mostly on the one that the model is worse at.
        """
        settings, data = self.settings, self.data
        self.sets, self.aside, self.learners = ("both",), ("long",), ("both",)
        self.asked = self.policy = "both"
        self.raw, self.measured_at = "", f"{self.out}/sft_both/model"
        self.trace, self.steps = [], max(1, self.steps * 2 // 3)    # It takes an hour as it is.
        self.keep = min(self.keep, settings.examples // 2)      # no set is larger than SFT's
        self.sft = "--lr 2e-5 --batch 8 --epochs 3 --max-length 256 --keep 1"
        self.grpo = (f"--steps {self.steps} --prompts {settings.prompts} --group 8 --temperature 1"
                     " --lr 2e-5 --warmup 4 --norm token --max-prompt-tokens 160"
                     " --max-new-tokens 48 --kl-every 10 --keep 1")
        self.again = {"b": f"{self.grpo} --steps {(self.steps + 1) // 2} --lr 1e-5"}
        self.sampled = "--temperature 1 --max-new-tokens 64"
        self.greedy = "--temperature 0 --max-new-tokens 64"
        self.effect = ("--limit 32 --group 8 --max-new-tokens 48 --max-length 256 --no-halves"
                       " --cosines 8")
        self.other = "scripts/sums.py --cot equation"
        made = []
        for name, flags in (("test", "--num 200 --seed 1"), ("rl", "--num 640 --seed 0"),
                            ("both", f"--num {settings.examples // 2} --seed 2 --cot mixed")):
            self.add(1, f"questions: {name}", f"""
                python scripts/sums.py {flags} {"--exclude" * bool(made)} {" ".join(made)}
                    --out {data}/{name}.jsonl""")
            made.append(f"{data}/{name}.jsonl")
        self.add(1, "long chains: steps", f"""
            python scripts/sums.py --source {data}/both.jsonl --cot steps --out {data}/long.jsonl""")

    def official(self) -> None:
        """kk and math: the paper's settings, most of them the trainers' defaults, or toy ones."""
        settings, data = self.settings, self.data
        # The policy that started from the long chains, where there are some, answers their problems.
        self.asked = self.policy = "long" if settings.long else "short"
        self.raw, self.sft = "base_", "--keep 1"
        self.own = {"short": f"--val {data}/val.jsonl", "long": "--batch 64"}
        self.greedy = "--temperature 0 --max-new-tokens 4096"
        self.effect = "--limit 200 --group 8 --temperature 0.7"
        (self.kk if settings.task == "kk" else self.math)()
        for name in ("rl", "test"):
            self.add(2, f"{name} with prompts for a base model", f"""
                python scripts/problems.py --source {data}/{name}.jsonl --template base --no-shuffle
                    --parts base_{name}=0 --out {data}""", made=f"{data}/base_{name}.jsonl")
        # The test stands in the order of its levels, and effects take the first 200 of it.
        self.judge = "judge"
        self.split("the test in another order, for the effects",
                   [f"{settings.out}/data/base_test.jsonl"], "judge=0", flags="")
        if settings.smoke:
            self.at_toy_size()

    def at_toy_size(self) -> None:
        """Every stage, with a random model. It is never right, so it learns from what is wrong."""
        self.steps, self.keep_flags, self.effect, self.trace = 2, "--wrong", "", []
        self.greedy = "--temperature 0 --max-new-tokens 16"
        self.grpo = ("--steps 2 --prompts 2 --group 2 --max-prompt-tokens 700"
                     " --max-new-tokens 16 --keep 1")
        self.again = dict.fromkeys(self.again, self.grpo)
        self.add(5, "a small model with nearly random weights", f"""
            python sft.py --init assets/smoke.json --data {self.data}/short.jsonl
                --out {self.out}/random --epochs 0.1""")

    def split(self, what: str, source: list[str], *parts: str, flags: str = "--no-shuffle") -> None:
        last, _ = parts[-1].split("=")
        self.add(5, what, f"""
            python scripts/problems.py --source {join(source)} --parts {" ".join(parts)} {flags}
                --out {self.data}""", made=f"{self.data}/{last}.jsonl")

    def kk(self) -> None:
        settings, data = self.settings, self.data
        self.sets, self.steps, self.keep, self.own["a"] = ("short", "long"), 125, 1000, "--batch 64"
        self.learners = ("base", *self.sets)
        self.grpo = "--steps 125 --keep 1"
        self.again = {"a": self.grpo, "b": f"{self.grpo} --lr 2.5e-6"}
        rl, test, two, three = (4, 2, 9, 18) if settings.smoke else (2000, 100, 180, 720)
        tested = f"--exclude {data}/test.jsonl" if settings.test else ""    # It is made first then.
        draws = [(settings.train, "rl", f"--people 3-7 --num {rl} --seed 0 {tested}"),
                 (settings.test, "test", f"--people 4-8 --num {test} --seed 1 --exclude"
                  f" {data}/rl.jsonl"),
                 ([], "two", f"--people 2 --num {two * 10 // 9} --seed 2 --cot search {tested}"),
                 ([], "three", f"--people 3 --num {three * 10 // 9} --seed 2 --cot search --exclude"
                  f" {data}/rl.jsonl {data}/test.jsonl")]
        if settings.test:
            draws.insert(0, draws.pop(1))
        for official, name, flags in draws:
            if official:
                self.split(f"official puzzles: {name}", official, f"{name}=0")
            else:
                self.add(4, f"puzzles: {name}", f"""
                    python kk_gen.py {flags} --out {data}/{name}.jsonl""")
        # A tenth of the puzzles of each size is for validation.
        self.split("short chains", [f"{settings.out}/data/two.jsonl",
                                    f"{settings.out}/data/three.jsonl"],
                   f"short=2:{two},3:{three}", "val=0")
        if not settings.long:
            self.add(2, "long chains: truth tables", f"""
                python kk_gen.py --people 2-3 --source {data}/short.jsonl --cot table
                    --out {data}/long.jsonl""")
        if not settings.foreign:
            self.other = "kk_gen.py --people 3-7 --template chat --cot table"

    def math(self) -> None:
        settings = self.settings
        self.sets, self.steps, self.keep = ("short", "long")[:1 + bool(settings.long)], 50, 500
        self.learners = ("base", *self.sets)
        self.grpo = "--steps 50 --lr 2.5e-6 --warmup 4 --keep 1"
        self.again = {"a": self.grpo, "b": f"{self.grpo} --warmup 8"}
        sizes = ("short=12", "val=2") if settings.smoke else ("short=900", "val=100")
        self.split("problems for SFT, to validate, for GRPO", settings.train, *sizes, "rl=0",
                   flags="")
        self.split("problems to test on", settings.test, "test=0")


def main(settings: Settings) -> None:
    task, smoke = settings.task, settings.smoke
    kind = task + "-quick" * settings.quick
    of_labs = "steps", "prompts", "examples", "keep"
    of_papers = "train", "test", "long", "foreign", "instruct"
    for name in {"tiny": (*of_papers, "smoke"),
                 "sums": (*of_papers, "smoke", "quick", "test_puzzles", "trace")}.get(
                     task, (*of_labs, "quick", "test_puzzles")):
        if getattr(settings, name) != getattr(Settings(), name):
            raise ValueError(f"{name} is not a setting of {task}")
    settings.out = settings.out or f"runs/{kind}-{settings.seed}{'-smoke' * smoke}"
    settings.base = settings.base or (
        f"{settings.out}/random/model" if smoke else
        {"tiny": "assets/tiny_base", "sums": "SmolLM2-135M-Instruct"}.get(task, "(not given)"))
    if task == "math" and not (settings.train and settings.test):
        raise ValueError("give --train and --test, files of problems")
    if settings.base == "SmolLM2-135M-Instruct" and not os.path.isdir(settings.base):
        raise ValueError("no base: python scripts/smollm2.py --out SmolLM2-135M-Instruct makes it;"
                         " or give --base")
    lab = Lab(settings)
    {"tiny": lab.tiny, "sums": lab.sums}.get(task, lab.official)()
    lab.experiment()
    lab.conduct(f"{settings.out}/report.md\nto look at it: python scripts/page.py {lab.out}")
    if settings.dry_run and task in ("kk", "math") and not smoke:
        words = {"kk": "--prompt-tokens 300 --answer-tokens 700",
                 "math": "--prompt-tokens 200 --answer-tokens 600 --examples 500"}[task]
        subprocess.run([sys.executable, "scripts/estimate.py", "--base", settings.base,
                        *words.split()], input=lab.script(), text=True)


if __name__ == "__main__":
    meant = QUICK if "--quick" in sys.argv else []
    command(main, parse(Settings, __doc__, "task", argv=meant + sys.argv[1:]))
