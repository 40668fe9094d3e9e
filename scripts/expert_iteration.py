"""Expert Iteration: sample, keep the correct, fine-tune on them, again. From the last model or,
with --tune base, each time from the base: then the last round is re-distillation of a policy that
never saw a policy gradient.

    python scripts/expert_iteration.py --base assets/tiny_base --data data/tiny/rl.jsonl --rounds 5

Each round has problems of its own, as many as --data holds for one. OUT/round-N/sft/model is the
model after N rounds. The same command goes on where it stopped.
"""
from dataclasses import dataclass

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
    seed: int = 0
    rounds: int = limits(4, at_least=1)     # of sampling and fine-tuning
    problems: int = limits(64, at_least=1)  # in a round
    samples: int = limits(8, at_least=1)    # of each (Echo Chamber: 64)
    per_problem: int = limits(4, at_least=1)    # correct ones kept of each, all different
    longest: int = limits(300, at_least=1)  # answer, in tokens


def add_rounds(plan: Plan, run: str, tune: str = "last", **names) -> None:
    """The rounds in directory `run`. The names given go before the settings of the plan."""
    names = vars(plan) | {"sft": SFT} | names | {"run": run}
    names["parts"] = [f"round-{number}/problems={names['problems']}"
                      for number in range(1, names["rounds"] + 1)]
    plan.add("""1 {run}: problems for every round -> {run}/round-{rounds}/problems.jsonl
        python scripts/problems.py --source {data} --seed {seed} --parts [parts] --out {run}""",
             names)
    model = names["base"]
    for number in range(1, names["rounds"] + 1):
        names |= {"model": model, "tuned": names["base"] if tune == "base" else model,
                  "round": f"{run}/round-{number}", "noise": names["seed"] * 1000 + number}
        plan.add("""10 {round}: sample
            python sample.py --model {model} --data {round}/problems.jsonl --n {samples}
                --temperature 1 --max-new-tokens {longest} --seed {noise}
                --out {round}/rollouts.jsonl
            1 {round}: keep the correct
            python scripts/keep_correct.py --data {round}/rollouts.jsonl --per-problem {per_problem}
                --seed {seed} --out {round}/correct.jsonl
            10 {round}: fine-tune
            python sft.py --model {tuned} --data {round}/correct.jsonl --out {round}/sft
                --seed {seed} [sft]""", names)
        model = f"{run}/round-{number}/sft/model"


def main(settings: Settings) -> None:
    settings.out = settings.out or f"runs/expert-{settings.seed}"
    plan = Plan(settings, settings.base)
    add_rounds(plan, settings.out, settings.tune)
    plan.conduct(f"{settings.out}/round-{settings.rounds}/sft/model")


if __name__ == "__main__":
    command(main, parse(Settings, __doc__))
