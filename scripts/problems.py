"""Public problem files, or our own, as the files of an experiment: split, and with prompts.

    python scripts/problems.py --source MATH/train.jsonl --parts sft=900 val=100 rl=0 --out data
    python scripts/problems.py --source MATH/train --parts sft=900 rl=0 --out data
    python scripts/problems.py --source kk.jsonl --parts test=3:300,4:150 --no-shuffle --out data
    python scripts/problems.py --source data/rl.jsonl --template base --parts rl_base=0 --out data

A source is JSONL, a JSON array, parquet, or a folder of such files or of one JSON file for each
problem. Each part is a file in --out, of so many problems, or of so many of each level; 0 takes all
that are left. MATH and GSM8K rows come with their own solution as `response`, so a part is also a
file of SFT examples. GSM8K's final answer is put in the box that the rules look for.
"""
import random
import re
from dataclasses import dataclass

import conductor  # so that Python finds the files above scripts/
from engine.files import check_output, data_files, numbered_rows, write_jsonl
from engine.flags import command, limits, parse
from engine.problems import first_of, read_problems
from engine.prompts import TEMPLATES
from verify import last_boxed


@dataclass(kw_only=True)
class Settings:
    source: list[str]           # files or folders of MATH, GSM8K, AIME, DeepMath or K&K, or ours
    parts: list[str]            # such as sft=900 val=100 rl=0, or test=3:300,4:150
    out: str                    # directory
    template: str = limits("", one_of=("", *TEMPLATES))     # make the prompts anew; without it our
    #                             own keep theirs, and public files get chat
    shuffle: bool = True        # else in the order of the source
    seed: int = 0


def with_response(problem: dict) -> dict:
    """The problem with its own solution as the response of an SFT example, where it has one."""
    solution = first_of(problem, "solution" if problem["task"] == "math" else "answer", kind=str)
    if problem["task"] == "kk" or solution is None:
        return problem
    if problem["task"] == "gsm8k":                          # <<3*4=12>> is for a calculator
        solution = re.sub(r"<<[^<>]*>>", "", solution).rsplit("####", 1)[0].rstrip()
        solution += f"\n\\boxed{{{problem['gold']}}}"
    if last_boxed(solution) is None:                        # AIME's may have none: never rewarded
        return problem
    # Exactly one newline comes before an answer. The chat template ends with it.
    return {**problem, "response": "\n" * (not problem["prompt"].endswith("\n")) + solution}


def read(source: list[str], template: str) -> list[dict]:
    """The problems of all files, with their fields in the order of the source. With a template,
    whatever prompts they had are made anew."""
    if template:
        return read_problems(source, template, anew=True)
    rows = [row for file in data_files(source) for _, row in numbered_rows(file)]
    return [{**row, **problem} for row, problem in zip(rows, read_problems(source))]


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
    if not name or len({problem["id"] for problem in chosen}) < len(chosen):
        raise ValueError(f"parts = {part}: needs a name, and no problem twice")
    return name, chosen


def main(settings: Settings) -> None:
    problems = [with_response(one) for one in read(settings.source, settings.template)]
    if settings.shuffle:
        random.Random(f"problems, seed {settings.seed}").shuffle(problems)
    parts = {}
    for part in sorted(settings.parts, key=lambda part: part.endswith("=0")):   # the rest is last
        name, chosen = take(problems, part)
        if name in parts:
            raise ValueError(f"parts = {' '.join(settings.parts)}: {name} is there twice")
        parts[name] = chosen
        ids = {problem["id"] for problem in parts[name]}
        problems = [problem for problem in problems if problem["id"] not in ids]
    for name in parts:
        check_output(f"{settings.out}/{name}.jsonl", settings.source)
    for name, chosen in parts.items():
        write_jsonl(f"{settings.out}/{name}.jsonl", chosen)
        print(f"{settings.out}/{name}.jsonl: {len(chosen):,} problems")


if __name__ == "__main__":
    command(main, parse(Settings, __doc__))
