"""Files: JSON and JSONL in, and out whole or not at all.

A file or directory is first written beside its place and under another name. It takes its own name
in one step, when all of it is on the disk. So a kill at any moment leaves the old one or the new
one, never half of one.
"""
import contextlib
import ctypes
import fcntl
import glob
import hashlib
import json
import os
import re
import shutil


# ---- in --------------------------------------------------------------------------------------
@contextlib.contextmanager
def text_file(path: str):
    """A text file, open to read. One that cannot be read is refused in one line."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            yield file
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not UTF-8 text: save it as UTF-8") from None
    except OSError as error:
        raise OSError(f"cannot read {path}: {error.strerror}") from None


def read_json(path: str):
    """The content of a JSON file, or None where there is no such file."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            return json.load(file)
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON: {error}") from None


def numbered_jsonl(path: str, *required: str) -> list[tuple[int, dict]]:
    """(line number, object) for each line of a JSONL file. An error names file and line."""
    with text_file(path) as file:
        return [(number, _object(f"{path}:{number}", line, required))
                for number, line in enumerate(file, 1) if line.strip()]


def _object(place: str, line: str, required) -> dict:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place}: not JSON: {error}") from None
    return _with_fields(place, row, required)


def _with_fields(place: str, row, required) -> dict:
    if not isinstance(row, dict):
        raise ValueError(f"{place}: not a JSON object")
    if missing := [name for name in required if name not in row]:
        raise ValueError(f"{place}: no field {', '.join(map(repr, missing))}")
    return row


def read_jsonl(path: str, *required: str) -> list[dict]:
    """The objects of a JSONL file, each of which has the required fields."""
    return [row for _, row in numbered_jsonl(path, *required)]


# ---- in: data as people have them ------------------------------------------------------------
def data_files(paths: list[str]) -> list[str]:
    """The files; in the place of a folder all data files below it, 2.json before 10.json."""
    files = []
    for path in map(str, paths):
        if not os.path.isdir(path):
            files.append(path)
            continue
        below = [name for name in glob.glob("**", root_dir=path, recursive=True)    # none hidden
                 if name.endswith((".jsonl", ".json", ".parquet"))]
        if not below:
            raise ValueError(f"{path}: this folder holds no .jsonl, .json or .parquet file")
        files += [os.path.join(path, name) for name in sorted(below, key=_natural_order)]
    return files


def _natural_order(name: str):
    """Numbers count as numbers, and folders one by one. The name itself tells 1 from 01."""
    return [[int(piece) if i % 2 else piece for i, piece in enumerate(re.split("([0-9]+)", part))]
            for part in name.split(os.sep)], name


def numbered_rows(path: str, *required: str) -> list[tuple[int, dict]]:
    """(number, row) for each row of a data file, from 1 on: JSONL, where this is the line; one JSON
    array; one JSON object, which is one row; or parquet."""
    path = str(path)
    if path.endswith(".parquet"):
        rows = _read_parquet(path)
    elif _is_one_value(path):
        value = read_json(path)
        rows = value if isinstance(value, list) else [value]
    else:
        return numbered_jsonl(path, *required)
    return [(number, _with_fields(f"{path}:{number}", row, required))
            for number, row in enumerate(rows, 1)]


def _is_one_value(path: str) -> bool:
    """Is a file one JSON array or object over many lines, and not an object in each line?"""
    with text_file(path) as file:
        first = next(filter(str.strip, file), "")
    if first.lstrip().startswith("["):
        return True
    try:
        json.loads(first)
        return False
    except (ValueError, RecursionError):
        return path.endswith(".json")


def _read_parquet(path: str) -> list[dict]:
    """The rows of a parquet file. What JSON cannot hold, such as a date, becomes a text."""
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise ValueError(
            f"{path}: to read parquet: pip install pyarrow. Or make JSONL of it where pandas is:"
            f" python -c \"import pandas; pandas.read_parquet('{path}').to_json('{path}.jsonl',"
            " orient='records', lines=True)\"") from None
    try:
        with open(path, "rb") as file:
            rows = parquet.ParquetFile(file).read().to_pylist()
    except (ArrowException, OSError) as error:
        raise ValueError(f"cannot read {path}: {' '.join(str(error).split())}") from None
    return [json.loads(json.dumps(row, default=str)) for row in rows]


def refuse_run_directory(path: str) -> None:
    """A person may give the directory of a run where that of a model is wanted."""
    if os.path.exists(f"{path}/model/config.json") and not os.path.exists(f"{path}/config.json"):
        raise ValueError(f"{path} is a run directory: its model is {path}/model")


def run_is_begun(path: str) -> bool:
    """Has a trainer done some of its work there? (A kill in its first step leaves no metrics yet.)"""
    return any(os.path.exists(f"{path}/{name}") for name in ("metrics.jsonl", "rollouts", "texts"))


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


def check_output(path: str, inputs=()) -> None:
    """OSError now, not after hours of work, where a file cannot be written, or is an input."""
    if any(os.path.realpath(path) == os.path.realpath(source) for source in inputs):
        raise ValueError(f"cannot write {path}: it is an input of this command")
    folder = os.path.dirname(os.path.realpath(path))        # of a symbolic link: where it leads
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise OSError(f"cannot write {path}: {error.strerror}") from None
    if os.path.exists(path) and not os.path.isfile(path):
        kind = "a directory" if os.path.isdir(path) else "no regular file"
        raise OSError(f"cannot write {path}: is {kind}")
    if not os.access(path if os.path.exists(path) else folder, os.W_OK):
        raise OSError(f"cannot write {path}: no permission")


@contextlib.contextmanager
def whole_file(path: str, mode: str = "w"):
    """An open file that takes the name `path` when the block ends without an error."""
    path = os.path.realpath(path)                           # A symbolic link stays one.
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
    path = os.path.realpath(path)                           # A symbolic link stays one.
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


def lock_directory(path: str) -> int:
    """Keep other processes out of a directory until this process ends. Returns what holds it."""
    os.makedirs(path, exist_ok=True)
    descriptor = os.open(path, os.O_RDONLY)
    lock(descriptor, f"another process is running in {path}")
    return descriptor


def lock(descriptor: int, otherwise: str) -> None:
    """Lock an open file or directory until it is closed; ValueError where another process has."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ValueError(otherwise) from None


def _replace(new: str, path: str) -> None:
    """Put directory `new` in the place of `path`, in one step where the system can swap names."""
    if not os.path.exists(path):
        os.rename(new, path)
        return
    swap = getattr(ctypes.CDLL(None), "renameat2", None)            # Linux; 2: RENAME_EXCHANGE
    if swap is None or swap(-100, os.fsencode(new), -100, os.fsencode(path), 2) != 0:
        os.rename(path, f"{path}.partial-old")      # Between these two there is none: only where the
        os.rename(new, path)                        # system, unlike Linux, cannot swap.
