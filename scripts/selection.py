"""Does it help to choose by sample effect? From a finished run of the lab: of the correct
answers of the first and of the last steps of GRPO (at most 4 to a problem), the quarter with the
highest effect, a random one and the lowest. The base is fine-tuned on each and tested on puzzles
of 3 people.

    python scripts/selection.py runs/tiny-0     # runs/tiny-0/selection/report.txt
"""
import glob
import os
import subprocess
import sys
from dataclasses import dataclass
from shlex import join, quote

from conductor import Experiment, Plan
from engine.files import whole_file
from engine.flags import command, limits, parse


@dataclass(kw_only=True)
class Settings(Experiment):
    run: str                    # directory of a finished `redistill.py tiny`
    base: str = "assets/tiny_base"      # directory of its base model
    when: list[str] = limits(["first", "last"], one_of=("first", "last"))       # steps of GRPO
    by: list[str] = limits(["effect", "per_token", "cosine"],
                           one_of=("effect", "per_token", "cosine"))
    problems: int = limits(300, at_least=3)     # to test on; a third as many, of those of SFT, for
    #                                             the effects


def add_sets(plan: Plan, when: str, steps: list[str], run: str, seed: str) -> list[str]:
    """Make the sets of answers of these steps, and return their names."""
    out, judged = plan.out, plan.settings.problems // 3
    plan.add(2, f"answers of the {when} steps", f"""
        python scripts/keep_correct.py --data {join(steps)} --per-problem 4 --seed {seed}
            --out {out}/{when}.jsonl""")
    names = []
    for by in plan.settings.by:
        for end in ("highest", "lowest"):
            names.append(name := f"{when}_{by}_{end}")
            more = "--all-cosines " * (by == "cosine") + "--lowest" * (end == "lowest")
            plan.add(20, name, f"""
                python effect.py --model {plan.base} --seed {seed} --test {run}/data/sft.jsonl
                    --data {out}/{when}.jsonl --limit {judged} --max-new-tokens 300
                    --max-length 512 --no-halves --cosines 0 --share 0.25 --by {by} {more}
                    --select {out}/{name}.jsonl""", made=f"{out}/{name}.jsonl")
    plan.add(1, "as many at random", f"""
        python scripts/keep_correct.py --data {out}/{when}.jsonl --per-problem 0 --seed {seed}
            --as-many-as {out}/{names[-1]}.jsonl --out {out}/{when}_random.jsonl""")
    return [*sorted(names), f"{when}_random"]


def main(settings: Settings) -> None:
    settings.out = settings.out or f"{settings.run}/selection"
    if not os.path.exists(f"{settings.run}/report.md"):
        raise ValueError(f"{settings.run}: no finished run of redistill.py tiny")
    plan, run = Plan(settings, settings.base), quote(settings.run)
    with open(f"{settings.run}/settings.txt") as file:
        seed = dict(line.rstrip("\n").partition(": ")[::2] for line in file)["seed"]
    steps = sorted(glob.glob(glob.escape(settings.run) + "/rl_base/rollouts/step-*.jsonl"))
    names = [name for when in settings.when
             for name in add_sets(plan, when, steps[:11] if when == "first" else steps[-11:],
                                  run, seed)]
    for name in names:
        plan.add(10, f"fine-tune the base on {name}", f"""
            python sft.py --model {plan.base} --data {plan.out}/{name}.jsonl --seed {seed}
                --out {plan.out}/sft_{name} --lr 5e-4 --batch 16 --epochs 4 --max-length 512""")
        plan.add(5, f"evaluate sft_{name}", f"""
            python sample.py --model {plan.out}/sft_{name}/model --data {run}/data/test.jsonl
                --limit {settings.problems} --out {plan.out}/eval_{name}.jsonl --n 2
                --temperature 1 --max-new-tokens 300""")
    plan.conduct(f"{settings.out}/report.txt")
    if not settings.dry_run:
        with whole_file(f"{settings.out}/report.txt") as file:
            for name in names:
                check = [sys.executable, "verify.py", f"{settings.out}/eval_{name}.jsonl"]
                table = subprocess.run(check, check=True, capture_output=True, text=True).stdout
                print(line := f"{name:32}{table.splitlines()[1]}")
                file.write(line + "\n")


if __name__ == "__main__":
    command(main, parse(Settings, __doc__, positional="run"))
