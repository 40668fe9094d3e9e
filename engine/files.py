"""Files: JSON and JSONL in, and out whole or not at all.

A file or directory is first written beside its place and under another name. It takes its own name
in one step, when all of it is on the disk. So a kill at any moment leaves the old one or the new
one, never half of one.
"""
import contextlib
import ctypes
import glob
import hashlib
import json
import os
import re
import shutil


# ---- in --------------------------------------------------------------------------------------
def read_json(path: str):
    """The content of a JSON file, or None where there is no such file."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            return json.load(file)
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}") from None


def numbered_jsonl(path: str, *required: str) -> list[tuple[int, dict]]:
    """(line number, object) for each line of a JSONL file. An error names file and line."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            return [(number, _object(f"{path}:{number}", line, required))
                    for number, line in enumerate(file, 1) if line.strip()]
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not UTF-8 text") from None
    except OSError as error:
        raise OSError(f"cannot read {path}: {error.strerror}") from None


def _object(place: str, line: str, required) -> dict:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place}: not JSON: {error}") from None
    if not isinstance(row, dict):
        raise ValueError(f"{place}: not a JSON object")
    if missing := [name for name in required if name not in row]:
        raise ValueError(f"{place}: no field {', '.join(map(repr, missing))}")
    return row


def read_jsonl(path: str, *required: str) -> list[dict]:
    """The objects of a JSONL file, each of which has the required fields."""
    return [row for _, row in numbered_jsonl(path, *required)]


def refuse_run_directory(path: str) -> None:
    """A person may give the directory of a run where that of a model is wanted."""
    if os.path.exists(f"{path}/model/config.json") and not os.path.exists(f"{path}/config.json"):
        raise ValueError(f"{path} is a run directory: its model is {path}/model")


def sha256(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


# ---- out -------------------------------------------------------------------------------------
def as_line(row: dict) -> str:
    """One line of JSONL. A sampled text may hold half a character: only that is escaped."""
    line = json.dumps(row, ensure_ascii=False)
    return re.sub("[\ud800-\udfff]", lambda half: f"\\u{ord(half[0]):04x}", line) + "\n"


def check_output(path: str) -> None:
    """OSError now, not after hours of work, where a file cannot be written."""
    folder = os.path.dirname(path) or "."
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise OSError(f"cannot write {path}: {error.strerror}") from None
    if os.path.isdir(path):
        raise OSError(f"cannot write {path}: is a directory")
    if not os.access(path if os.path.exists(path) else folder, os.W_OK):
        raise OSError(f"cannot write {path}: no permission")


@contextlib.contextmanager
def whole_file(path: str, mode: str = "w"):
    """An open file that takes the name `path` when the block ends without an error."""
    partial = f"{path}.{os.getpid()}.partial"
    text = {} if "b" in mode else {"encoding": "utf-8", "errors": "backslashreplace", "newline": ""}
    try:
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        with open(partial, mode, **text) as file:
            yield file
        sync(partial)
        os.replace(partial, path)
    except OSError as error:
        raise OSError(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        if os.path.exists(partial):
            os.remove(partial)


def write_jsonl(path: str, rows) -> None:
    with whole_file(path) as file:
        file.writelines(map(as_line, rows))


def write_json(path: str, value) -> None:
    with whole_file(path) as file:
        json.dump(value, file, indent=2)


@contextlib.contextmanager
def whole_directory(path: str):
    """A new, empty directory that takes the place of `path` when the block ends without an error."""
    path = os.path.abspath(path)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    partial = f"{path}.partial-{os.getpid()}"
    os.makedirs(partial)
    try:
        yield partial
        for folder, _, names in os.walk(partial):
            for name in (*names, "."):
                sync(os.path.join(folder, name))
        _replace(partial, path)
        sync(os.path.dirname(path))
    finally:
        for stale in glob.glob(glob.escape(path) + ".partial-*"):   # of this call and of killed ones
            shutil.rmtree(stale, ignore_errors=True)


def sync(path: str) -> None:
    """Wait until a file or directory is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def _replace(new: str, path: str) -> None:
    """Put directory `new` in the place of `path`, in one step where the system can swap names."""
    if not os.path.exists(path):
        os.rename(new, path)
        return
    swap = getattr(ctypes.CDLL(None), "renameat2", None)            # Linux; 2: RENAME_EXCHANGE
    if swap is None or swap(-100, os.fsencode(new), -100, os.fsencode(path), 2) != 0:
        os.rename(path, f"{path}.partial-old")      # A kill here leaves the old one, whole, under
        os.rename(new, path)                        # that other name.
