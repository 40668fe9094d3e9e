"""scripts/: what the experiments are made of."""
import collections
import json
import os
import subprocess
import sys

import kk_gen
from verify import kk_correct, reward

ROOT = os.path.dirname(os.path.abspath(kk_gen.__file__))


def world(tmp_path, *flags):
    done = subprocess.run([sys.executable, os.path.join(ROOT, "scripts", "tiny_world.py"),
                           "--out", tmp_path / "world.jsonl", *map(str, flags)],
                          capture_output=True, text=True)
    if done.returncode:
        return done
    return [json.loads(line) for line in open(tmp_path / "world.jsonl")]


def test_the_tiny_world_keeps_its_shares(tmp_path):
    flags = ("--num", 2000, "--shares", "guess=65", "worked=20", "search=15", "--right", 30)
    rows = world(tmp_path, *flags)
    styles = collections.Counter(row["style"] for row in rows)
    assert styles == {"guess": 1300, "worked": 400, "search": 300}
    assert len({row["style"] for row in rows[:20]}) > 1                 # shuffled
    right = collections.Counter(row["style"] for row in rows
                                if kk_correct(row["response"], row["gold"]))
    assert right["worked"] == 400 and right["search"] == 300
    assert 0.33 < right["guess"] / 1300 < 0.45                          # 0.3 + 0.7 / 8, five sigmas
    assert world(tmp_path, *flags) == rows != world(tmp_path, *flags, "--seed", 1)


def test_excluded_puzzles_never_come(tmp_path):
    subprocess.run([sys.executable, os.path.join(ROOT, "kk_gen.py"), "--people", "2", "--num",
                    "150", "--template", "compact", "--out", tmp_path / "test.jsonl"],
                   check=True, capture_output=True)
    held_out = {json.loads(line)["prompt"] for line in open(tmp_path / "test.jsonl")}
    flags = ("--num", 500, "--people", 2, "--shares", "table=1")
    assert held_out & {row["prompt"] for row in world(tmp_path, *flags)}
    rows = world(tmp_path, *flags, "--exclude", tmp_path / "test.jsonl")
    assert not held_out & {row["prompt"] for row in rows}
    problem = {**rows[0], "task": "kk"}
    assert reward(problem, rows[0]["response"], True) == 1


def test_mistakes_are_one_line(tmp_path):
    for flags, words in ((("--num", 5, "--shares", "table"), "guess=60 table=40"),
                         (("--num", 5, "--shares", "prose=1"), "of search, table"),
                         (("--num", 0, "--shares", "table=1"), "--num is at least 1")):
        done = world(tmp_path, *flags)
        assert done.returncode == 2 and words in done.stderr and done.stderr.count("\n") == 1
