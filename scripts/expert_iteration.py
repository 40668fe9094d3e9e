"""Expert Iteration: sample, keep the correct, fine-tune on them, again. From the last model or,
with --tune base, each time from the base: then the last round is re-distillation of a policy that
never saw a policy gradient.

    python scripts/expert_iteration.py --base assets/tiny_base --data data/tiny/rl.jsonl --rounds 5

Each round has problems of its own, as many as --data holds for one. OUT/round-N/sft/model is the
model after N rounds. The same command goes on where it stopped.
"""
from dataclasses import dataclass
from shlex import quote

from conductor import Experiment, Plan
from engine.flags import command, limits, parse

# A mean over tokens: in one over sequences the first token of a short answer, which says what kind
# of answer it will be, counts more than that of a long one, and short wrong habits never go.
SFT = "--lr 5e-4 --batch 16 --epochs 2 --norm token --max-length 512"


@dataclass(kw_only=True)
class Settings(Experiment):
    base: str                               # directory of the base model
    data: str                               # problems
    tune: str = limits("last", one_of=("last", "base"))     # the model that a round fine-tunes
    seed: int = limits(0, at_least=0)
    rounds: int = limits(4, at_least=1)     # of sampling and fine-tuning
    problems: int = limits(64, at_least=1)  # in a round
    samples: int = limits(8, at_least=1)    # of each (Echo Chamber: 64)
    per_problem: int = limits(4, at_least=1)    # correct ones kept of each, all different
    longest: int = limits(300, at_least=1)  # answer, in tokens


def add_rounds(plan: Plan, run: str, base: str, data: str, seed: int, rounds: int, problems: int,
               samples: int = 8, per_problem: int = 4, longest: int = 300, sft: str = SFT,
               tune: str = "last") -> None:
    """The rounds in directory `run`."""
    parts = [f"round-{number}/problems={problems}" for number in range(1, rounds + 1)]
    plan.add(1, f"{run}: problems for every round", f"""
        python scripts/problems.py --source {data} --seed {seed} --parts {" ".join(parts)}
            --out {run}""", made=f"{run}/round-{rounds}/problems.jsonl")
    model = base
    for number in range(1, rounds + 1):
        folder = f"{run}/round-{number}"
        plan.add(10, f"{folder}: sample", f"""
            python sample.py --model {model} --data {folder}/problems.jsonl --n {samples}
                --temperature 1 --max-new-tokens {longest} --seed {seed * 1000 + number}
                --out {folder}/rollouts.jsonl""")
        plan.add(1, f"{folder}: keep the correct", f"""
            python scripts/keep_correct.py --data {folder}/rollouts.jsonl
                --per-problem {per_problem} --seed {seed} --out {folder}/correct.jsonl""")
        plan.add(10, f"{folder}: fine-tune", f"""
            python sft.py --model {base if tune == "base" else model} --data {folder}/correct.jsonl
                --out {folder}/sft --seed {seed} {sft}""")
        model = f"{folder}/sft/model"


def main(settings: Settings) -> None:
    settings.out = settings.out or f"runs/expert-{settings.seed}"
    plan = Plan(settings, settings.base)
    add_rounds(plan, plan.out, plan.base, quote(settings.data), settings.seed, settings.rounds,
               settings.problems, settings.samples, settings.per_problem, settings.longest,
               tune=settings.tune)
    plan.conduct(f"{settings.out}/round-{settings.rounds}/sft/model")


if __name__ == "__main__":
    command(main, parse(Settings, __doc__))
