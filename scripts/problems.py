"""Official or our own problem files as the files of an experiment: split, and with prompts.

    python scripts/problems.py --source MATH/train.jsonl --parts sft=900 val=100 rl=0 --out data
    python scripts/problems.py --source data/rl.jsonl --template base --parts rl_base=0 --out data

Each part is a file in --out, of so many problems; 0 takes all that are left. MATH and GSM8K lines
come with their own solution as `response`, so a part is also a file of SFT examples. GSM8K's final
answer is put in the box that the rules look for.
"""
import os
import random
import re
import sys
from dataclasses import dataclass

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import cli  # noqa: E402


@dataclass
class Settings:
    source: list[str]           # MATH, GSM8K or K&K files, or ours
    parts: list[str]            # such as sft=900 val=100 rl=0
    out: str                    # directory
    template: str = ""          # make the prompts anew: chat, base or plain; without it our
    #                             own keep theirs, and official files get chat
    shuffle: bool = True        # else in the order of the source
    seed: int = 0


def with_response(problem: dict) -> dict:
    """The problem with its own solution as the response of an SFT example, where it has one."""
    solution = problem.get("solution" if problem["task"] == "math" else "answer")
    if problem["task"] == "kk" or not isinstance(solution, str):
        return problem
    if problem["task"] == "gsm8k":                          # <<3*4=12>> is for a calculator
        solution = re.sub(r"<<[^<>]*>>", "", solution).rsplit("####", 1)[0].rstrip()
        solution += f"\n\\boxed{{{problem['gold']}}}"
    return {**problem, "response": "\n" + solution}         # begins as the paper's do


def read(path: str, template: str) -> list[dict]:
    """The problems of a file; with a template, whatever prompts they had are made anew."""
    if not template:
        return [with_response(problem) for problem in cli.read_problems(path)]
    problems = []
    for number, row in cli.numbered_jsonl(path):
        bare = {key: value for key, value in row.items() if key not in ("prompt", "response")}
        try:
            problem = cli.as_problem(bare, template, f"{os.path.basename(path)}:{number}")
        except (TypeError, AttributeError):
            problem = None
        if problem is None:
            cli.stop(f"{path}:{number}: no prompt can be made of it: needs the fields of an official"
                     " K&K, MATH or GSM8K file")
        problems.append(with_response({**problem, "id": row.get("id", problem["id"])}))
    return problems


def main():
    settings = cli.parse(Settings, __doc__)
    if settings.template not in ("", "chat", "base", "plain"):
        cli.stop(f"--template {settings.template}: chat, base or plain")
    try:
        parts = {name: int(count) for name, count in (p.split("=") for p in settings.parts)}
    except ValueError:
        cli.stop(f"--parts {' '.join(settings.parts)}: write them as sft=900 rl=0")
    if min(parts.values()) < 0 or sorted(parts.values()).count(0) > 1:
        cli.stop("--parts: not negative, and one of them at most is 0, for all that are left")
    problems = [problem for path in settings.source for problem in read(path, settings.template)]
    if len({problem["id"] for problem in problems}) < len(problems):
        cli.stop(f"{' '.join(settings.source)}: problem ids are not unique")
    if (wanted := sum(parts.values()) + (0 in parts.values())) > len(problems):
        cli.stop(f"{len(problems)} problems are too few for {wanted}")
    if settings.shuffle:
        random.Random(f"problems, seed {settings.seed}").shuffle(problems)
    for name, count in sorted(parts.items(), key=lambda part: not part[1]):     # the rest is last
        chosen, problems = problems[:count or None], problems[count or len(problems):]
        path = os.path.join(settings.out, name + ".jsonl")
        cli.write_jsonl(path, chosen)
        print(f"{path}: {len(chosen):,} problems")


if __name__ == "__main__":
    main()
