"""Problem files: this project's own, and the public ones as people have them.

A problem is a dictionary with `id`, `task`, `prompt`, `gold` and `level`. The fields of a row tell
what it is. The first of these that fits counts:

    task, prompt, gold              our own
    quiz, names, solution           kk: K&K. The gold says who is what; the level is how many.
    question, answer with ####      gsm8k: GSM8K. The gold is the number behind ####.
    problem or question             math: MATH, AIME, DeepMath. The gold is `answer`, `final_answer`
                                    or the last box of `solution`; the level may be a `difficulty`.

A path is a file of JSONL, one JSON array, parquet, or a folder with such files or with one JSON
file for each problem. What cannot be read is refused, with its file and line (or row).
"""
import json
import math
import os
import re

from engine.files import data_files, numbered_rows
from engine.prompts import kk_suffix, prompt_text
from verify import TASKS, last_boxed, readable_gold, roles


# ---- a row -----------------------------------------------------------------------------------
def as_problem(row: dict, template: str, name: str) -> dict:
    """A row of any known source as a problem. If it has no id, `name` is its id."""
    if {"task", "prompt", "gold"} <= row.keys():
        problem = {"id": name, "level": None, **row}
    else:
        fields = kk_fields(row) if {"quiz", "names", "solution"} <= row.keys() else math_fields(row)
        own_id = next((row[field] for field in ("id", "ID", "unique_id") if field in row), name)
        problem = {**row, "id": own_id, **fields}
        problem["prompt"] = prompt_text(problem["prompt"], template)
    problem["level"] = as_level(problem["level"])
    check(problem)
    return problem


def kk_fields(row: dict) -> dict:
    quiz, names, solution, words = map(row.get, ("quiz", "names", "solution", "knight_knave"))
    if not isinstance(quiz, str):
        raise wrong("quiz", quiz, "a text")
    if not different_texts(names):
        raise wrong("names", names, "a list of different texts")
    if not isinstance(solution, list) or list(map(type, solution)) != [bool] * len(names):
        raise wrong("solution", solution, f"true or false for each of the {len(names)} names")
    if not isinstance(words, dict | None):
        raise wrong("knight_knave", words, "an object")
    words = {"a_knight": "a knight", "a_knave": "a knave", **(words or {})}
    if not different_texts([words["a_knight"], words["a_knave"]]):
        raise wrong("knight_knave", words, "two different roles")
    gold = ", ".join(f"{person} is {words['a_knight' if is_knight else 'a_knave']}"
                     for person, is_knight in zip(names, solution))
    if len(roles(gold) or ()) != len(names):
        raise wrong("gold", gold, "one role for each name: has a name or role a comma, \"and\" or"
                                  " another sign in it?")
    return {"task": "kk", "gold": gold, "level": len(names), "prompt": quiz + kk_suffix(words)}


def math_fields(row: dict) -> dict:
    question = first_of(row, "problem", "question", kind=str)
    answer, solution = first_of(row, "answer", "final_answer"), first_of(row, "solution", kind=str)
    if answer is None and solution is not None:
        answer = last_boxed(solution)
    if question is None or answer is None:
        raise ValueError("not a problem: needs task, prompt and gold; or quiz, names and solution"
                         " (K&K); or problem or question, with an answer, a final_answer or a"
                         " solution with a box")
    if isinstance(answer, str) and "####" in answer and solution is None:
        return {"task": "gsm8k", "level": None,
                "gold": answer.rsplit("####", 1)[1].strip().replace(",", ""), "prompt": question}
    if not isinstance(answer, str):
        if type(answer) is not int and not (type(answer) is float and math.isfinite(answer)):
            raise wrong("answer", answer, "a text or a number")
        answer = str(int(answer) if answer == int(answer) else answer)
    return {"task": "math", "gold": answer, "level": first_of(row, "level", "difficulty"),
            "prompt": question}


# ---- its fields ------------------------------------------------------------------------------
def first_of(row: dict, *fields: str, kind=object):
    """The first of these fields that the row has, in capitals or not, or None. null is no value."""
    values = {name.lower(): value for name, value in row.items()}
    return next((values[field] for field in fields
                 if values.get(field) is not None and isinstance(values[field], kind)), None)


def as_level(level):
    """A whole number where it is one: "Level 5" and 5.0 are 5. A difficulty of 5.5 is a text."""
    if isinstance(level, float) and math.isfinite(level):
        level = f"{level:.9g}"
    if not isinstance(level, str):
        return level
    text = level.removeprefix("Level ").strip()
    return int(text) if re.fullmatch("-?[0-9]{1,9}", text) else text or None


def different_texts(values) -> bool:
    return isinstance(values, list) and 0 < len(values) == len(
        {value for value in values if isinstance(value, str) and value.strip()})


def wrong(field: str, value, expected: str) -> ValueError:
    return ValueError(f"its {field} is {json.dumps(value):.100}, not {expected}")


def check(problem: dict) -> None:
    """ValueError where a field of a problem is not what it must be."""
    if problem["task"] not in TASKS:
        raise ValueError(f"unknown task {problem['task']!r}: one of {', '.join(TASKS)}")
    for field in ("prompt", "gold"):
        text = problem[field]
        if not isinstance(text, str) or not text.strip() or re.search("[\ud800-\udfff]", text):
            raise wrong(field, text, "a text")
    if type(problem["id"]) not in (int, str):
        raise wrong("id", problem["id"], "a text or a whole number")
    if type(problem["level"]) not in (int, str, type(None)):
        raise wrong("level", problem["level"], "a whole number, a text or null")
    if not readable_gold(problem):
        raise wrong("gold", problem["gold"], "like Zoey is a knight, Liam is a knave")


# ---- files -----------------------------------------------------------------------------------
def short_names(files: list[str], folders: list[str]) -> list[str]:
    """What the ids call each file: its name, with as many folders as tell all the files apart, and
    below a folder of data at least with those down from that one. (MATH/train and MATH/test have
    files of the same names.)"""
    real = list(map(os.path.realpath, files))
    if len(set(real)) < len(files):
        raise ValueError(f"{max(real, key=real.count)}: is given twice")
    paths = [os.path.abspath(file).split(os.sep) for file in files]
    tops = [os.path.abspath(folder).split(os.sep) for folder in folders]
    least = [max([1, *(len(path) - len(top) + 1 for top in tops if path[:len(top)] == top)])
             for path in paths]
    for depth in range(1, max(map(len, paths)) + 1):
        names = ["/".join(path[-max(depth, at_least):]) for path, at_least in zip(paths, least)]
        if len(set(names)) == len(files):
            break
    return names


def read_problems(paths: str | list[str], template: str = "chat", anew=False) -> list[dict]:
    """The problems of one path or of several; no two have the same id. `template` makes the prompts
    of public files. Our own files have prompts; `anew` replaces these, too."""
    paths = paths if isinstance(paths, list) else [paths]
    files = data_files(paths)
    problems, places = [], {}
    for file, name in zip(files, short_names(files, [*filter(os.path.isdir, paths)])):
        for number, row in numbered_rows(file):
            if anew:
                row = {key: row[key] for key in row if key not in ("prompt", "response")}
            place = f"{file}:{number}"
            try:
                problem = as_problem(row, template, f"{name}:{number}")
            except ValueError as error:
                raise ValueError(f"{place}: {error}") from None
            if other := places.get(str(problem["id"])):
                raise ValueError(f"{place}: its id {problem['id']!r} is that of {other}, too")
            places[str(problem["id"])] = place
            problems.append(problem)
    if not problems:
        raise ValueError(f"{' '.join(map(str, paths))}: no problems")
    return problems
