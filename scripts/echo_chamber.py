"""Echo Chamber (arXiv 2504.07912) at tiny scale: models pretrained on mixtures of answer styles,
then GRPO, PPO and Expert Iteration. Which style wins, how soon, and what is it worth?

    python scripts/echo_chamber.py --quick      # from assets/tiny_base: 4 minutes on 2 cores
    python scripts/echo_chamber.py              # all of it: hours on a CPU
    python scripts/echo_chamber.py --studies algorithms sizes --seeds 1 2
    python scripts/echo_chamber.py --base Qwen2.5-0.5B --train gsm8k/train.jsonl \\
        --test gsm8k/test.jsonl MATH/test.jsonl --problems 500 --out runs/echo-gsm

Trained on puzzles of 3 people, tested on others of 3 (easy) and of 4 (hard). Endpoints, stated
before the runs that count (seeds 1 to 3; settings were chosen on seed 0):
  winner      the style most answers to the easy test have after the last step
  collapse    how many answers are drawn before the winner has 80 % of them
  gain        accuracy (pass@1) after the last step less the base's, on the easy and the hard test
  diversity   pass@64 and majority@64, likewise
With --base nothing is pretrained. With --train and --test, any K&K, MATH or GSM8K files, the
settings are the study's, and easy is what has a task and level of --train.
"""
import os
import re
import sys
from dataclasses import dataclass, field
from shlex import join

from conductor import ALWAYS, Experiment, Plan
from engine.flags import command, limits, parse
from expert_iteration import SFT, add_rounds
from pretrain import add_puzzles

SHARES = {"some": "guess=60 table=10 worked=30", "none": "guess=90 table=10 worked=0",
          "few": "guess=80 table=10 worked=10", "most": "guess=30 table=10 worked=60"}
MEANING = {"--quick": "--base assets/tiny_base --out runs/echo-quick --seeds 0 --kls 0 1e-2"
                      " --steps 16 --at 4 --samples 16",    # what these stand for; later flags win
           "--train": "--prompts 64 --longest-prompt 1024 --longest 1024"}


@dataclass(kw_only=True)
class Settings(Experiment):
    out: str = "runs/echo"      # the run directory
    quick: bool = False         # a short run from assets/tiny_base
    base: str = ""              # a model directory to start from, instead of pretrained mixtures
    train: list[str] = field(default_factory=list)      # official files of problems to train on
    test: list[str] = field(default_factory=list)       # and to test on
    studies: list[str] = limits(["algorithms", "shares", "sizes"],
                                one_of=("algorithms", "shares", "sizes"))
    algorithms: list[str] = limits(["grpo", "ppo", "expert"], one_of=("grpo", "ppo", "expert"))
    seeds: list[int] = limits([1, 2, 3], at_least=0)
    steps: int = limits(32, at_least=1)         # of RL
    prompts: int = limits(16, at_least=1)       # in a step, 8 answers to each
    at: list[int] = limits([2, 8], at_least=1)  # test after these steps and the last
    kls: list[str] = field(default_factory="0 1e-3 1e-2".split)     # KL weights
    problems: int = limits(32, at_least=1)      # easy ones to test on, half as many hard ones
    samples: int = limits(64, at_least=2)       # of each, so pass@k and majority@k up to it
    rounds: int = limits(4, at_least=1)         # of Expert Iteration, with as many answers in all
    longest: int = limits(300, at_least=1)      # answer to train on, in tokens
    longest_prompt: int = limits(200, at_least=1)


class Study(Plan):
    """The stages of all runs. Two studies may share a run, which then is made once."""

    def __init__(self, settings: Settings):
        super().__init__(settings, settings.base)
        self.data, self.at = f"{self.out}/data", sorted({*settings.at, settings.steps})
        rl, ppo = "--temperature 1 --lr 3e-4 --warmup 4", "--lr 1e-4 --critic-lr 1e-3 --passes 1"
        self.sft, self.tested = SFT, 440        # tokens: puzzles of 4 people take more than of 3
        if settings.train:                      # as the study has them, where that is known
            rl, ppo = "--temperature 0.7 --lr 1e-6", "--lr 1e-6 --critic-lr 7e-6"
            self.sft = "--lr 1e-6 --batch 32 --epochs 2 --norm token"
            self.tested = settings.longest
        self.flags = {"grpo": rl, "ppo": f"{rl} {ppo}"}

    def make_data(self) -> None:
        settings, data = self.settings, self.data
        if settings.train:
            self.add(1, "problems to test on", f"""
                python scripts/problems.py --source {join(settings.test)}
                    --parts test={settings.problems} --template base --out {data}""",
                     made=f"{data}/test.jsonl")
            self.add(1, "problems to train on", f"""
                python scripts/problems.py --source {join(settings.train)} --parts rl=0
                    --template base --out {data}""", made=f"{data}/rl.jsonl")
        else:
            add_puzzles(self, settings.problems, (settings.problems + 1) // 2)

    def evaluate(self, run: str, after: int, model: str) -> None:
        """What a model writes, as verify.py's table in eval/N.json. The answers take 10 MB."""
        to = f"{self.out}/{run}/eval/{after}"
        self.add(20, f"test {run} after {after}", f"""
            python sample.py --model {model} --data {self.data}/test.jsonl
                --n {self.settings.samples} --temperature 1 --max-new-tokens {self.tested}
                --out {to}.jsonl""", made=f"{to}.json")
        self.add(5, f"what {run} wrote after {after}", f"""
            python verify.py {to}.jsonl --out {to}.json""", drop=f"{to}.jsonl")

    def begin(self, mixture: str, width: int) -> str:
        """The model as it is before."""
        model = self.base
        if not self.settings.base:
            folder = f"{self.out}/mixtures/{mixture}"
            model = f"{folder}/w{width}/mixture/model"
            self.add(1500, f"pretrain width {width}: {mixture}", f"""
                python scripts/pretrain.py mixture --shares {SHARES[mixture]} --widths {width}
                    --out {folder}""", made=model)
        self.evaluate(f"{mixture}-{width}", 0, model)
        return model

    def learn(self, algorithm: str, kl: str, start: str, model: str, seed: int) -> None:
        """A run of an algorithm, and its tests after as many answers as the others'."""
        settings = self.settings
        run = f"{start}/{algorithm}-kl{'0' if algorithm == 'expert' else kl}-{seed}"
        tests = [(step, f"step-{step:06d}") for step in self.at]
        if algorithm == "expert":
            numbers = [step * settings.rounds // settings.steps for step in self.at]
            tests = [(number, f"round-{number}/sft/model") for number in numbers if number]
            add_rounds(self, f"{self.out}/{run}", model, f"{self.data}/rl.jsonl", seed,
                       settings.rounds, settings.steps * settings.prompts // settings.rounds,
                       per_problem=8, longest=settings.longest, sft=self.sft)
        else:
            self.add(75, run, f"""
                python {algorithm}.py --model {model} --data {self.data}/rl.jsonl
                    --out {self.out}/{run} --seed {seed} --steps {settings.steps}
                    --prompts {settings.prompts} --group 8
                    --max-prompt-tokens {settings.longest_prompt}
                    --max-new-tokens {settings.longest} --kl-every 4 --rollouts 0
                    {self.flags[algorithm]} --kl {kl} --keep-at {" ".join(map(str, self.at))}""")
        for after, name in tests:
            self.evaluate(run, after, f"{self.out}/{run}/{name}")
        self.add(10, f"how far {run} is from where it began", f"""
            python scripts/drift.py --base {model} --model {self.out}/{run}/{tests[-1][1]}
                --data {self.data}/test.jsonl --group {min(8, settings.samples)} --temperature 1
                --max-new-tokens {self.tested} --out {self.out}/{run}/drift.jsonl""")

    def experiment(self) -> None:
        settings, runs = self.settings, []
        main = ("base", 0) if settings.base else ("some", 96)
        for seed in settings.seeds:             # what differs: mixture, width, KL weight, seed
            if settings.base or "algorithms" in settings.studies:
                runs += [(*main, kl, seed) for kl in settings.kls]
            if not settings.base and "shares" in settings.studies:
                runs += [(mixture, 96, "1e-3", seed) for mixture in SHARES]
            if not settings.base and "sizes" in settings.studies:
                runs += [("some", width, "1e-3", seed) for width in (96, 48, 128)]
        starts = dict.fromkeys([main, *(run[:2] for run in runs)])
        models = {start: self.begin(*start) for start in starts}
        for mixture, width, kl, seed in runs:
            for algorithm in settings.algorithms:
                self.learn(algorithm, kl, f"{mixture}-{width}", models[mixture, width], seed)
        self.add(10, "the report", f"""
            python scripts/echo_report.py --run {self.out} --out {self.out}""",
                 made=ALWAYS)           # of all that is there by now


def main(settings: Settings) -> None:
    if max(settings.at) > settings.steps:
        raise ValueError(f"at = {max(settings.at)}: there are {settings.steps} steps")
    if settings.steps * settings.prompts % settings.rounds:
        raise ValueError(f"rounds = {settings.rounds}: must share out {settings.steps} x"
                         f" {settings.prompts} problems")
    if odd := [kl for kl in settings.kls if not re.fullmatch(r"\d+(\.\d+)?(e-?\d+)?", kl)]:
        raise ValueError(f"kls = {odd[0]}: write it as 0 or 1e-3")
    if settings.test and not settings.train or settings.train and not (
            settings.base and settings.test):
        raise ValueError("--train, --test and --base belong together")
    if missing := [path for path in settings.train + settings.test if not os.path.exists(path)]:
        raise ValueError(f"{missing[0]}: no such file")
    study = Study(settings)
    study.make_data()
    study.experiment()
    end = f"{settings.out}/report.md\nto look at it: python scripts/page.py {study.out}"
    study.conduct(end, ("quick", "studies", "algorithms", "seeds", "kls"))


if __name__ == "__main__":
    meant = " ".join(flags for flag, flags in MEANING.items() if flag in sys.argv).split()
    command(main, parse(Settings, __doc__, argv=meant + sys.argv[1:]))
