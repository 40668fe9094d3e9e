"""What a result was made from: a digest of every file and model, to notice when one has changed."""
import hashlib
import os

from engine.files import sha256
from engine.huggingface import read_files, shards

WHOLE = 2**24           # Of larger files of weights only pieces are read.
PIECE, PIECES = 2**14, 1000


def digests(paths: list[str]) -> dict[str, str]:
    """A digest of each file, of each model directory, and of every file in any other directory."""
    found = {}
    for path in filter(os.path.exists, paths):
        if os.path.isfile(path):
            found[path] = sha256(path)
        elif os.path.exists(f"{path}/config.json"):
            found[path] = model_digest(path)
        else:
            for folder, _, names in os.walk(path):
                files = (os.path.join(folder, name) for name in names)
                found |= {file: sha256(file) for file in files if os.path.isfile(file)}
    return found


def check_same(now: dict[str, str], before: dict[str, str], result: str) -> None:
    """ValueError if an input is not what it was when the result was begun."""
    for path in {**now, **before}:
        if path not in now:
            raise ValueError(f"{path} is gone since {result} was begun")
        if now[path] != before.get(path):
            raise ValueError(f"{path} has changed since {result} was begun")


def model_digest(path: str) -> str:
    """Of a model directory: its config, its tokenizer and its weights, or of large weights a
    thousand pieces, as every step of training changes every weight."""
    digest = hashlib.sha256()
    for name, content in sorted(read_files(path).items()):
        digest.update(f"{name} {len(content)};".encode() + content)
    for shard in shards(path):
        size = os.path.getsize(shard)
        digest.update(f"{os.path.basename(shard)} {size};".encode())
        with open(shard, "rb") as file:
            for place in range(0, size, size // PIECES) if size > WHOLE else (0,):
                file.seek(place)
                digest.update(file.read(PIECE if size > WHOLE else WHOLE))
    return digest.hexdigest()
