"""Official or our own problem files as the files of an experiment: split, and with prompts.

    python scripts/problems.py --source MATH/train.jsonl --parts sft=900 val=100 rl=0 --out data
    python scripts/problems.py --source kk.jsonl --parts test=3:300,4:150 --no-shuffle --out data
    python scripts/problems.py --source data/rl.jsonl --template base --parts rl_base=0 --out data

Each part is a file in --out, of so many problems, or of so many of each level; 0 takes all that are
left. MATH and GSM8K lines come with their own solution as `response`, so a part is also a file of
SFT examples. GSM8K's final answer is put in the box that the rules look for.
"""
import os
import random
import re
from dataclasses import dataclass

import conductor  # so that Python finds the files above scripts/
from engine.files import numbered_jsonl, read_jsonl, write_jsonl
from engine.flags import command, limits, parse
from engine.problems import as_problem, read_problems
from engine.prompts import TEMPLATES


@dataclass(kw_only=True)
class Settings:
    source: list[str]           # MATH, GSM8K or K&K files, or ours
    parts: list[str]            # such as sft=900 val=100 rl=0, or test=3:300,4:150
    out: str                    # directory
    template: str = limits("", one_of=("", *TEMPLATES))     # make the prompts anew; without it our
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
        return [with_response({**row, **problem})
                for row, problem in zip(read_jsonl(path), read_problems(path))]
    problems = []
    for number, row in numbered_jsonl(path):
        bare = {name: value for name, value in row.items() if name not in ("prompt", "response")}
        try:
            problem = as_problem(bare, template, f"{os.path.basename(path)}:{number}")
            problems.append(with_response({**problem, "id": row.get("id", problem["id"])}))
        except (TypeError, AttributeError):             # no problem, or a number instead of a text
            raise ValueError(f"{path}:{number}: no prompt can be made of it: needs the fields of an"
                             " official K&K, MATH or GSM8K file") from None
    return problems


def take(problems: list[dict], part: str) -> tuple[str, list[dict]]:
    """The name and the problems of a part, as sft=900 or test=3:300,4:150 describes it."""
    name, _, counts = part.partition("=")
    chosen = []
    for level, _, count in (one.rpartition(":") for one in counts.split(",")):
        if not count.isdecimal():
            raise ValueError(f"parts = {part}: write it as sft=900, test=3:300,4:150 or rl=0")
        fitting = [problem for problem in problems if level in ("", str(problem["level"]))]
        if len(fitting) < max(1, int(count)):
            raise ValueError(f"{len(fitting)} problems are too few for {part}")
        chosen += fitting[:int(count) or None]
    return name, chosen


def main(settings: Settings) -> None:
    problems = [problem for path in settings.source for problem in read(path, settings.template)]
    if len({problem["id"] for problem in problems}) < len(problems):
        raise ValueError(f"{' '.join(settings.source)}: problem ids are not unique")
    if settings.shuffle:
        random.Random(f"problems, seed {settings.seed}").shuffle(problems)
    parts = {}
    for part in sorted(settings.parts, key=lambda part: part.endswith("=0")):   # the rest is last
        name, parts[name] = take(problems, part)
        ids = {problem["id"] for problem in parts[name]}
        problems = [problem for problem in problems if problem["id"] not in ids]
    for name, chosen in parts.items():
        write_jsonl(f"{settings.out}/{name}.jsonl", chosen)
        print(f"{settings.out}/{name}.jsonl: {len(chosen):,} problems")


if __name__ == "__main__":
    command(main, parse(Settings, __doc__))
