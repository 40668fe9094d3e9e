"""The experiment of arXiv 2505.17988: SFT, GRPO, re-distillation, and what to compare these with.

    python scripts/redistill.py tiny                    # runs/tiny-0: ten minutes on a laptop
    python scripts/redistill.py tiny --seed 1           # runs/tiny-1
    python scripts/redistill.py kk --base Qwen2.5-1.5B --dry-run    # commands, memory, time
    python scripts/redistill.py kk --base Qwen2.5-1.5B              # runs/kk-0, on one GPU
    python scripts/redistill.py math --base Qwen2.5-1.5B --train train.jsonl --test test.jsonl
    python scripts/redistill.py kk --smoke              # every stage at toy size; also math

tiny starts from assets/tiny_base (see pretrain.py) and trains on puzzles of 3 people that it never
saw. kk is the paper's with Knights & Knaves: 3 to 7 people to train on, 4 to 8 to test, 2 and 3 for
SFT. math is the paper's with MATH, in PRM800K's split (GSM8K's files will do as well): SFT is on
900 of the training problems with their own solutions, GRPO on the others.
"""
import subprocess
import sys
from dataclasses import dataclass, field

from conductor import Experiment, Plan
from engine.flags import command, limits, parse
from pretrain import add_puzzles


@dataclass(kw_only=True)
class Settings(Experiment):
    task: str = limits("tiny", one_of=("tiny", "kk", "math"))       # which experiment
    seed: int = 0               # of fine-tuning and of GRPO
    base: str = ""              # directory of the base model; tiny: assets/tiny_base
    trace: list[int] = field(default_factory=lambda: [0, 50])   # at what percent of GRPO, beside
    #                             its end, answers are taken to fine-tune on
    # ---- tiny
    steps: int = limits(30, at_least=1)             # of GRPO
    prompts: int = limits(16, at_least=1)           # problems in each
    examples: int = limits(256, at_least=1, at_most=1000)       # in each SFT set
    keep: int = limits(150, at_least=1)             # at most, in a set of the policy's own answers
    test_puzzles: int = limits(300, at_least=1, at_most=300)    # of 3 people, half as many of 4
    # ---- kk and math
    train: list[str] = field(default_factory=list)  # official files of problems to train on
    test: list[str] = field(default_factory=list)   # and to test on
    long: str = ""              # a file of long chains (prompt, response) for the problems of SFT
    foreign: str = ""           # a file of another model's correct answers to the problems of B
    smoke: bool = False         # every stage at toy size, on a small random model


class Lab(Plan):
    """The stages. `tiny` and `official` say what the experiments differ in, and make the data."""
    aside, other, sampled, keep_flags = (), "", "", ""

    def evaluate(self, name: str, model: str, problems: str, once: bool = False) -> None:
        """As the model samples, and greedy; or once, the first way of these."""
        ways = [("sampled", self.sampled), ("greedy", self.greedy)]
        for way, flags in [way for way in ways if way[1]][:1 if once else 2]:
            self.add("""5 evaluate {name}, {way}
                python sample.py --model {model} --data {data}/{problems}.jsonl
                    --out {out}/eval/{name}.{way}.jsonl [flags]""", vars())

    def fine_tune(self, name: str, once: bool = False) -> None:
        """Fine-tune the base, always, on a set."""
        given, own = {"long": self.long, "foreign": self.foreign}, self.own.get(name, "")
        examples = given.get(name) or f"{self.data}/{name}.jsonl"
        self.tuned.append(examples)
        self.add("""15 fine-tune the base on {name}
            python sft.py --model {base} --data {examples} --out {out}/sft_{name} --seed {seed}
                [sft] [own]""", vars())
        self.evaluate(f"sft_{name}", f"{self.out}/sft_{name}/model", "test", once)

    def reinforce(self, name: str, flags: str) -> None:
        """GRPO from the base or from a fine-tuned model."""
        model, raw = (self.base, self.raw) if name == "base" else (
            f"{self.out}/sft_{name}/model", "")
        self.add("""75 GRPO from {name}
            python grpo.py --model {model} --data {data}/{raw}rl.jsonl --out {out}/rl_{name}
                --seed {seed} [flags]""", vars())
        self.evaluate(f"rl_{name}", f"{self.out}/rl_{name}/model", f"{raw}test")

    def replay(self, name: str, percent: int, flags: str) -> None:
        """A set of answers: of the last 11 steps, as in the paper, up to this part of GRPO."""
        taken = min(11, self.steps)
        last = taken + (self.steps - taken) * percent // 100
        files = [f"{self.out}/rl_{self.policy}/rollouts/step-{step:06d}.jsonl"
                 for step in range(last - taken + 1, last + 1)]
        self.add("""2 answers of GRPO up to step {last}: {name}
            python scripts/keep_correct.py --data [files] --num {keep} --seed {seed}
                --out {data}/{name}.jsonl [flags]""", vars())

    def experiment(self) -> None:
        self.tuned = []
        self.evaluate("base", self.base, f"{self.raw}test")
        for name in self.sets:
            self.fine_tune(name)
        for name in ("base", *self.sets):
            self.reinforce(name, self.grpo)
        # Re-distillation A: the policy's greedy answers to the problems of SFT, where correct.
        self.add("""4 the policy answers the problems of SFT
            python sample.py --model {out}/rl_{policy}/model --data {data}/{asked}.jsonl
                --out {data}/answers.jsonl [greedy]
            2 re-distillation A: the correct ones
            python scripts/keep_correct.py --data {data}/answers.jsonl --out {data}/a.jsonl
                --num {keep} [keep_flags]""")
        self.fine_tune("a")
        # B: what was correct in the last steps of GRPO, one answer to each problem.
        self.replay("b", 100, self.keep_flags)
        self.fine_tune("b")
        if self.other:          # The same problems, answered by another.
            self.add("""2 another's answers to the problems of B
                python kk_gen.py --source {data}/b.jsonl [other] --out {data}/foreign.jsonl""")
        if self.other or self.foreign:
            self.fine_tune("foreign")
        # To compare with: the same from earlier in the run, and what was wrong.
        for percent in self.trace:
            self.replay(f"at_{percent}", percent, self.keep_flags)
            self.fine_tune(f"at_{percent}", once=True)
        self.replay("wrong", 0, "--wrong")
        for name in ("wrong", *self.aside):
            self.fine_tune(name, once=True)
        if self.effect:         # What the base would gain from each set, seen from the base alone.
            self.add("""45 sample effect of every dataset, at the base -> {out}/effect/summary.json
                python effect.py --model {base} --test {data}/{raw}test.jsonl --data [tuned]
                    --out {out}/effect --seed {seed} [effect]""")
        self.reinforce("b", self.regrpo)
        self.add("""5 the report -> {out}/report.md
            python scripts/report.py --runs {out} --out {out} --policy rl_{policy}""")

    def tiny(self) -> None:
        self.sets, self.aside, self.asked, self.own = ("short", "long"), ("guess",), "sft", {}
        self.policy, self.raw = "base", ""      # The base is the policy, and is asked like others.
        self.sft = "--lr 5e-4 --batch 16 --epochs 4 --max-length 512"
        self.grpo = (f"--steps {self.steps} --prompts {self.prompts} --group 8 --temperature 1"
                     " --lr 3e-4 --warmup 4 --norm token --max-prompt-tokens 200"
                     " --max-new-tokens 300 --kl-every 5")
        self.regrpo = f"{self.grpo} --steps {(self.steps + 1) // 2} --lr 1.5e-4"    # as the paper
        self.sampled = "--temperature 1 --max-new-tokens 400"
        self.greedy = "--temperature 0 --max-new-tokens 400"
        self.effect = "--limit 200 --max-new-tokens 300 --max-length 512 --no-halves --norms 8"
        self.other = "--people 3 --template compact --cot search"
        add_puzzles(self, self.test_puzzles, (self.test_puzzles + 1) // 2, self.examples)
        for name, style in (("short", "table"), ("long", "search"), ("guess", "guess")):
            self.add("""2 {name} chains: {style}
                python kk_gen.py --people 3 --source {data}/sft.jsonl --template compact
                    --cot {style} --out {data}/{name}.jsonl""", vars())

    def official(self) -> None:
        """kk and math: the paper's settings, most of them the trainers' defaults, or toy ones."""
        self.asked, self.policy, self.raw, self.sft = "short", "short", "base_", ""
        self.own = {"short": f"--val {self.data}/val.jsonl", "long": "--batch 64"}
        self.greedy = "--temperature 0 --max-new-tokens 4096"
        self.effect = "--limit 200 --group 8 --temperature 0.7"
        (self.kk if self.task == "kk" else self.math)()
        for name in ("rl", "test"):
            self.add("""2 {name} with prompts for a base model -> {data}/base_{name}.jsonl
                python scripts/problems.py --source {data}/{name}.jsonl --template base --no-shuffle
                    --parts base_{name}=0 --out {data}""", vars())
        if self.smoke:              # The random model is never right: it learns from what is wrong.
            self.steps, self.keep_flags, self.effect, self.trace = 2, "--wrong", "", []
            self.greedy = "--temperature 0 --max-new-tokens 16"
            self.grpo = self.regrpo = ("--steps 2 --prompts 2 --group 2 --max-prompt-tokens 700"
                                       " --max-new-tokens 16")
            self.add("""5 a small model with nearly random weights
                python sft.py --init assets/smoke.json --data {data}/short.jsonl --out {out}/random
                    --epochs 0.1""")

    def split(self, what: str, source: list[str], *parts: str, flags: str = "--no-shuffle") -> None:
        last, _ = parts[-1].split("=")
        self.add("""5 {what} -> {data}/{last}.jsonl
            python scripts/problems.py --source [source] --parts [parts] [flags]
                --out {data}""", vars())

    def kk(self) -> None:
        self.sets, self.steps, self.keep, self.own["a"] = ("short", "long"), 125, 1000, "--batch 64"
        self.grpo, self.regrpo = "--steps 125", "--steps 125 --lr 2.5e-6"
        rl, test, two, three = (4, 2, 9, 18) if self.smoke else (2000, 100, 180, 720)
        draws = [(self.train, "rl", f"--people 3-7 --num {rl} --seed 0"),
                 (self.test, "test", f"--people 4-8 --num {test} --seed 1 --exclude"
                  f" {self.data}/rl.jsonl"),
                 ([], "two", f"--people 2 --num {two * 10 // 9} --seed 2 --cot search"),
                 ([], "three", f"--people 3 --num {three * 10 // 9} --seed 2 --cot search --exclude"
                  f" {self.data}/rl.jsonl {self.data}/test.jsonl")]
        for official, name, flags in draws:
            if official:
                self.split(f"official puzzles: {name}", official, f"{name}=0")
            else:
                self.add("""4 puzzles: {name}
                    python kk_gen.py [flags] --out {data}/{name}.jsonl""", vars())
        # A tenth of the puzzles of each size is for validation.
        self.split("short chains", [f"{self.data}/two.jsonl", f"{self.data}/three.jsonl"],
                   f"short=2:{two},3:{three}", "val=0")
        if not self.long:
            self.add("""2 long chains: truth tables
                python kk_gen.py --people 2-3 --source {data}/short.jsonl --cot table
                    --out {data}/long.jsonl""")
        if not self.foreign:
            self.other = "--people 3-7 --template chat --cot table"

    def math(self) -> None:
        self.sets, self.steps, self.keep = ("short", "long")[:1 + bool(self.long)], 50, 500
        self.grpo = "--steps 50 --lr 2.5e-6 --warmup 4"
        self.regrpo = "--steps 50 --lr 2.5e-6 --warmup 8"
        sizes = ("short=12", "val=2") if self.smoke else ("short=900", "val=100")
        self.split("problems for SFT, to validate, for GRPO", self.train, *sizes, "rl=0", flags="")
        self.split("problems to test on", self.test, "test=0")


def main(settings: Settings) -> None:
    tiny, smoke = settings.task == "tiny", settings.smoke
    for name in ("train", "test", "long", "foreign", "smoke") if tiny else (
            "steps", "prompts", "examples", "keep", "test_puzzles"):
        if getattr(settings, name) != getattr(Settings(), name):
            raise ValueError(f"{name} is not a setting of {settings.task}")
    settings.out = settings.out or f"runs/{settings.task}-{settings.seed}{'-smoke' * smoke}"
    settings.base = settings.base or ("assets/tiny_base" if tiny else
                                      f"{settings.out}/random/model" if smoke else "(not given)")
    if settings.task == "math" and not (settings.train and settings.test):
        raise ValueError("give --train and --test, files of problems")
    lab = Lab(settings, settings.base if not smoke else "")
    lab.data = f"{settings.out}/data"
    (lab.tiny if tiny else lab.official)()
    lab.experiment()
    lab.conduct(f"{settings.out}/report.md")
    if settings.dry_run and not tiny and not smoke:
        prompt, answer = {"kk": (300, 700), "math": (200, 600)}[settings.task]
        flags = f"--data - --out - {lab.grpo} --prompt-tokens {prompt} --answer-tokens {answer}"
        subprocess.run([sys.executable, "scripts/estimate.py", "--model", settings.base,
                        *flags.split()])


if __name__ == "__main__":
    command(main, parse(Settings, __doc__, positional="task"))
