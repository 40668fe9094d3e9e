"""Problem files: this project's own, and the official ones of K&K, MATH and GSM8K as they are.

A problem is a dictionary with `id`, `task` (kk, math or gsm8k), `prompt`, `gold` and `level`.
"""
import json
import os
import re

from engine.files import numbered_jsonl
from engine.prompts import kk_suffix, prompt_text
from verify import TASKS, last_boxed


def as_problem(row: dict, template: str, name: str) -> dict | None:
    """A line of any known source as a problem, or None where the source is not known."""
    if {"task", "prompt", "gold"} <= row.keys():                                # our own
        return {"id": name, "level": None, **row}
    if {"quiz", "names", "solution"} <= row.keys():                             # K&K
        roles = {"a_knight": "a knight", "a_knave": "a knave", **row.get("knight_knave", {})}
        gold = ", ".join(f"{person} is {roles['a_knight' if is_knight else 'a_knave']}"
                         for person, is_knight in zip(row["names"], row["solution"]))
        return {**row, "id": name, "task": "kk", "gold": gold, "level": len(row["names"]),
                "prompt": prompt_text(row["quiz"] + kk_suffix(roles), template)}
    if {"problem", "solution"} <= row.keys():                                   # MATH, MATH-500
        gold = row["answer"] if "answer" in row else last_boxed(row["solution"])
        level = re.sub(r"Level ", "", str(row.get("level", ""))) or None
        return None if gold is None else {
            **row, "id": row.get("unique_id", name), "task": "math", "gold": gold,
            "level": int(level) if level and level.isdigit() else level,
            "prompt": prompt_text(row["problem"], template)}
    if {"question", "answer"} <= row.keys() and "####" in row["answer"]:        # GSM8K
        return {**row, "id": name, "task": "gsm8k", "level": None,
                "gold": row["answer"].rsplit("####", 1)[1].strip().replace(",", ""),
                "prompt": prompt_text(row["question"], template)}
    return None


def read_problems(path: str, template: str = "chat") -> list[dict]:
    """The problems of a file. `template` makes the prompts of official files; ours have their own."""
    problems = []
    for number, row in numbered_jsonl(path):
        try:
            problem = as_problem(row, template, f"{os.path.basename(path)}:{number}")
        except (TypeError, AttributeError):                 # a number where text should be
            problem = None
        if problem is None:
            raise ValueError(f"{path}:{number}: not a problem: needs task, prompt and gold, or the"
                             " fields of an official K&K, MATH or GSM8K file")
        if problem["task"] not in TASKS:
            raise ValueError(f"{path}:{number}: unknown task {problem['task']!r}: one of"
                             f" {', '.join(TASKS)}")
        for name in ("prompt", "gold"):
            if not isinstance(problem[name], str) or not problem[name].strip():
                raise ValueError(f"{path}:{number}: its {name} is {json.dumps(problem[name])},"
                                 " not a text")
        problems.append(problem)
    if not problems:
        raise ValueError(f"{path}: no problems")
    return problems
