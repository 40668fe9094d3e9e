"""What every command shares: flags from a dataclass, JSONL files, and the prompts of the tasks.

A command's settings are one flat dataclass; `parse` turns each field into a flag and the comment
behind the field into its help text. Whatever a person gets wrong ends in `stop`: one line, exit
code 2, before any work. `read_problems` reads this project's problem files and, as they are, the
official files of Knights & Knaves, MATH (and MATH-500) and GSM8K.
"""
import argparse
import dataclasses
import inspect
import json
import os
import re
import sys
import types
import typing

from verify import TASKS, last_boxed


def stop(message: str):
    """Say what is wrong in one line and leave with exit code 2."""
    print(f"{os.path.basename(sys.argv[0])}: {' '.join(str(message).split())}", file=sys.stderr)
    raise SystemExit(2)


# ---- flags -----------------------------------------------------------------------------------
class _Parser(argparse.ArgumentParser):
    def error(self, message):
        stop(f"{message} (--help lists the flags)")


def _comments(settings_class) -> dict[str, str]:
    """Field name -> the comment behind it (lines holding only a comment continue it)."""
    comments, last = {}, None
    sources = [inspect.getsource(kind) for kind in reversed(settings_class.__mro__)
               if dataclasses.is_dataclass(kind)]
    for line in "\n".join(sources).splitlines():
        if field := re.match(r"    (\w+): [^#]*(?:#\s*(.*))?$", line):
            last, comments[field[1]] = field[1], field[2] or ""
        elif last and (more := re.match(r"\s+#\s*(.*)", line)):
            comments[last] += " " + more[1]
    return comments


def parse(settings_class, description: str, positional: str = "", argv=None):
    """The settings a command line asks for: `max_new_tokens: int = 64` becomes --max-new-tokens.

    A field without default is required, a list takes one or more values, a bool also makes
    --no-NAME; the field named by `positional` is given without a flag.
    """
    parser = _Parser(description=description, allow_abbrev=False,
                     formatter_class=argparse.RawDescriptionHelpFormatter)
    hints, comments = typing.get_type_hints(settings_class), _comments(settings_class)
    for field in dataclasses.fields(settings_class):
        kind = hints[field.name]
        if isinstance(kind, types.UnionType):                       # `str | None`: a str if given
            kind = next(k for k in typing.get_args(kind) if k is not types.NoneType)
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        required = default is dataclasses.MISSING
        shown = "required" if required else f"default {default}"
        about = comments.get(field.name, "") + (f" [{shown}]" if default not in (None, "") else "")
        about = {"help": about.replace("%", "%%")}
        if typing.get_origin(kind) is list:
            about.update(type=typing.get_args(kind)[0], nargs="+")
        elif kind is bool:
            about.update(action=argparse.BooleanOptionalAction)
        else:
            about.update(type=kind)
        if field.name == positional:
            parser.add_argument(field.name, **about)
        else:
            parser.add_argument("--" + field.name.replace("_", "-"), dest=field.name,
                                required=required, default=None if required else default, **about)
    return settings_class(**vars(parser.parse_args(argv)))


def device_and_dtype(device: str, dtype: str):
    """What --device and --dtype mean here: (device, torch dtype); ValueError for what is not."""
    import torch
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise ValueError(f"device = {device}: cpu, cuda, cuda:0 ... or auto")
    if device != "cpu" and int(device.partition(":")[2] or 0) >= torch.cuda.device_count():
        raise ValueError(f"no such CUDA device here: {device}; --device cpu")
    if ":" in device:
        torch.cuda.set_device(device)       # graphs and Triton work on the current one
    if dtype == "auto":
        dtype = "bfloat16" if device.startswith("cuda") else "float32"
    if dtype not in ("float32", "bfloat16"):
        raise ValueError(f"dtype = {dtype}: float32, bfloat16 or auto")
    return device, getattr(torch, dtype)


# ---- files -----------------------------------------------------------------------------------
def numbered_jsonl(path: str, *required: str) -> list[tuple[int, dict]]:
    """(line number, object) of a JSONL file; errors name file and line."""
    rows = []
    try:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError) as error:
                    stop(f"{path}:{number}: not JSON: {error}")
                if not isinstance(row, dict):
                    stop(f"{path}:{number}: not a JSON object")
                if missing := [name for name in required if name not in row]:
                    stop(f"{path}:{number}: no field {', '.join(map(repr, missing))}")
                rows.append((number, row))
    except OSError as error:
        stop(f"cannot read {path}: {error.strerror}")
    except UnicodeDecodeError:
        stop(f"{path}: not UTF-8 text")
    return rows


def read_jsonl(path: str, *required: str) -> list[dict]:
    """The objects of a JSONL file, each with the required fields."""
    return [row for _, row in numbered_jsonl(path, *required)]


def as_line(row: dict) -> str:
    """One line of JSONL. A sampled text may hold half a character: that alone is escaped."""
    line = json.dumps(row, ensure_ascii=False)
    return re.sub("[\ud800-\udfff]", lambda half: f"\\u{ord(half[0]):04x}", line) + "\n"


def check_output(path: str) -> None:
    """Stop now, not after hours of work, where a file cannot be written."""
    folder = os.path.dirname(path) or "."
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        stop(f"cannot write {path}: {error.strerror}")
    if os.path.isdir(path) or not os.access(path if os.path.exists(path) else folder, os.W_OK):
        stop(f"cannot write {path}: {'is a directory' if os.path.isdir(path) else 'no permission'}")


def write_jsonl(path: str, rows) -> None:
    """Write a JSONL file whole or not at all: a temporary file beside it, then a rename."""
    partial = f"{path}.{os.getpid()}.partial"
    try:
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        with open(partial, "w", encoding="utf-8") as file:
            file.writelines(map(as_line, rows))
        os.replace(partial, path)
    except OSError as error:
        stop(f"cannot write {path}: {error.strerror}")
    finally:
        if os.path.exists(partial):
            os.remove(partial)


# ---- problems --------------------------------------------------------------------------------
SYSTEM = "Please reason step by step, and put your final answer within \\boxed{}."


def kk_suffix(words: dict) -> str:
    """What the paper adds to a K&K puzzle, in the puzzle's own words for the two roles."""
    return (" Your final answer should be in this format:"
            f" \\boxed{{XX is {words['a_knave']}, YY is {words['a_knight']}, ...}}")


def prompt_text(question: str, template: str) -> str:
    """The full text given to the model. `chat` and `base` are the paper's (PAPER: A, prompts)."""
    if template == "chat":
        return (f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n{question}<|im_end|>\n"
                "<|im_start|>assistant\n")
    if template == "base":
        return f"Question:\n{question}\nAnswer:\nLet's think step by step."
    if template == "plain":
        return question + "\n"
    raise ValueError(f"unknown template {template!r}: chat, base or plain")


def as_problem(row: dict, template: str, name: str) -> dict | None:
    """One line of any known source as a problem (id, task, prompt, gold, level); None: unknown."""
    if {"task", "prompt", "gold"} <= row.keys():                                # our own
        return {"id": name, "level": None, **row}
    if {"quiz", "names", "solution"} <= row.keys():                             # K&K
        roles = {"a_knight": "a knight", "a_knave": "a knave", **row.get("knight_knave", {})}
        gold = ", ".join(f"{person} is {roles['a_knight' if true else 'a_knave']}"
                         for person, true in zip(row["names"], row["solution"]))
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
    """The problems of a file; `template` makes the prompts of official files, ours carry theirs."""
    problems = []
    for number, row in numbered_jsonl(path):
        try:
            problem = as_problem(row, template, f"{os.path.basename(path)}:{number}")
        except (TypeError, AttributeError):                 # a number where text should be
            problem = None
        if problem is None:
            stop(f"{path}:{number}: not a problem: needs task, prompt and gold, or the fields of an"
                 " official K&K, MATH or GSM8K file")
        if problem["task"] not in TASKS:
            stop(f"{path}:{number}: unknown task {problem['task']!r}: one of {', '.join(TASKS)}")
        for name in ("prompt", "gold"):
            if not isinstance(problem[name], str) or not problem[name].strip():
                stop(f"{path}:{number}: its {name} is {json.dumps(problem[name])}, not a text")
        problems.append(problem)
    return problems
