"""scripts/: what the experiments are made of."""
import collections
import csv
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import numpy
import pytest
from helpers import QWEN_1_5B, ROOT, read, write

import kk_gen
import verify
from engine.tokenizer import load_tokenizer
from verify import kk_correct, pass_at_k, reward

SCRIPTS = os.path.join(ROOT, "scripts")
sys.path.insert(0, SCRIPTS)
import sums  # noqa: E402


def script(name, *flags, code=0):
    """A script's output, or the one line in which it refuses."""
    done = subprocess.run([sys.executable, os.path.join(SCRIPTS, name), *map(str, flags)], cwd=ROOT,
                          capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    if code == 2:
        assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr if code else done.stdout


def puzzles(path, *flags):
    command = [sys.executable, os.path.join(ROOT, "kk_gen.py"), *map(str, flags), "--out", path]
    subprocess.run(command, check=True, capture_output=True)
    return path


def table(path):
    with open(path) as file:
        return list(csv.DictReader(file))


def settings_of(folder):
    return json.loads((folder / "settings.json").read_text())["settings"]


def style_shares(rows):
    counts = collections.Counter(kk_gen.style_of(row["response"]) for row in rows)
    return {style: count / len(rows) for style, count in counts.items()}


# ---- documents, examples, problems -----------------------------------------------------------
def world(tmp_path, *flags):
    script("tiny_world.py", "--out", tmp_path / "world.jsonl", *flags)
    return read(tmp_path / "world.jsonl")


def test_the_tiny_world_keeps_its_shares(tmp_path):
    flags = ("--num", 2000, "--shares", "guess=65", "worked=20", "search=15", "--right", 30,
             "--people", "3=90", "2=10")
    rows = world(tmp_path, *flags)
    styles = collections.Counter(row["style"] for row in rows)
    assert styles == {"guess": 1300, "worked": 400, "search": 300}
    assert len({row["style"] for row in rows[:20]}) > 1                 # shuffled
    assert collections.Counter(row["level"] for row in rows) == {3: 1800, 2: 200}
    right = collections.Counter(row["style"] for row in rows
                                if kk_correct(row["response"], row["gold"]))
    assert right["worked"] == 400 and right["search"] == 300
    assert 0.33 < right["guess"] / 1300 < 0.45                          # 0.3 + 0.7 / 8, five sigmas
    assert world(tmp_path, *flags) == rows != world(tmp_path, *flags, "--seed", 1)


def test_mixtures_are_of_one_length_and_keep_their_shares(tmp_path):
    """Whatever the shares: so many tokens, and the shares exact in every hundred documents."""
    encode = load_tokenizer(os.path.join(ROOT, "assets", "tiny_base")).encode
    for shares in ({"guess": 34, "worked": 66, "table": 0}, {"table": 50, "worked": 50}):
        rows = world(tmp_path, "--tokens", 30000, "--shares",
                     *(f"{name}={share}" for name, share in shares.items()))
        tokens = [len(encode(row["prompt"]).ids) + len(encode(row["response"]).ids) + 1
                  for row in rows]
        assert len(rows) % 100 == 0 and sum(tokens[:-100]) < 30000 <= sum(tokens)
        for first in range(0, len(rows), 100):
            found = collections.Counter(row["style"] for row in rows[first:first + 100])
            assert found == {name: share for name, share in shares.items() if share}


def test_excluded_puzzles_never_come(tmp_path):
    test = puzzles(tmp_path / "test.jsonl", "--people", 2, "--num", 150, "--template", "compact")
    held_out = {row["prompt"] for row in read(test)}
    flags = ("--num", 500, "--people", "2=1", "--shares", "table=1")
    assert held_out & {row["prompt"] for row in world(tmp_path, *flags)}
    rows = world(tmp_path, *flags, "--exclude", test)
    assert not held_out & {row["prompt"] for row in rows}
    assert reward({**rows[0], "task": "kk"}, rows[0]["response"], True) == 1


@pytest.mark.parametrize("flags, words", [
    (("--num", 5, "--shares", "table"), "search=60 table=40"),
    (("--num", 5, "--shares", "prose=1"), "of search, table"),
    (("--num", 5, "--shares", "table=1", "--people", "3"), "2=60 3=40"),
    (("--tokens", 5, "--shares", "table=1", "--tokenizer", "nowhere"), "nowhere"),
    (("--num", 5, "--shares", "table=1", "guess=0.01"), "less than one guess"),
    (("--num", 0, "--shares", "table=1"), "either --num or --tokens"),
    (("--num", 5, "--tokens", 9, "--shares", "table=1"), "either --num or"),
    (("--num", 5, "--shares", "table=1", "--right", 101), "right = 101")])
def test_a_world_that_cannot_be(tmp_path, flags, words):
    assert words in script("tiny_world.py", "--out", tmp_path / "world.jsonl", *flags, code=2)
    assert not (tmp_path / "world.jsonl").exists()


def rollout(name, answer, **changes):
    return {"id": name, "task": "kk", "prompt": "?\n", "gold": "A is a knight", "level": 1,
            "response": f"\\boxed{{A is a {answer}}}", "tokens": [1, 2, 0], "logprobs": [0.0] * 3,
            "finished": True, "reward": 0.0, "step": 1, **changes}


def test_the_correct_are_kept(tmp_path):
    """By the rule, not by what the file says; one a problem; with the tokens that were sampled."""
    first = write(tmp_path / "1.jsonl", [rollout("a", "knight"), rollout("a", "knight"),
                                         rollout("a", "knave", reward=1.0), rollout("b", "knave")])
    second = write(tmp_path / "2.jsonl", [rollout("a", "knight", step=2, tokens=[3, 0]),
                                          rollout("c", "knight", finished=False),
                                          *(rollout(f"d{i}", "knight") for i in range(6))])
    out = tmp_path / "kept.jsonl"

    def kept(*flags):
        script("keep_correct.py", "--data", first, second, "--out", out, *flags)
        return read(out)

    rows = kept()
    assert sorted(row["id"] for row in rows) == ["a", *(f"d{i}" for i in range(6))]
    assert all(row["reward"] == 1 and row["tokens"] and "logprobs" not in row for row in rows)
    assert [row["id"] for row in kept("--seed", 1)] != [row["id"] for row in rows]
    assert kept() == rows and kept("--num", 3) == rows[:3] == kept(
        "--as-many-as", write(tmp_path / "three.jsonl", [{}] * 3))
    assert len(kept("--per-problem", 0)) == 7           # the same answer twice is one
    assert sorted(row["id"] for row in kept("--wrong", "--per-problem", 0)) == ["a", "b", "c"]
    assert "0.jsonl: no lines" in script("keep_correct.py", "--data", first, "--as-many-as", write(
        tmp_path / "0.jsonl", []), "--out", tmp_path / "none.jsonl", code=2)
    wrong = write(tmp_path / "3.jsonl", [rollout("b", "knave")])
    assert "none of 1 answers is correct" in script("keep_correct.py", "--data", wrong, "--out",
                                                    tmp_path / "none.jsonl", code=2)
    broken = write(tmp_path / "4.jsonl", [{"id": "b"}])
    assert "4.jsonl:1" in script("keep_correct.py", "--data", broken, "--out", out, code=2)


def test_official_files_are_split_and_boxed(tmp_path):
    source = write(tmp_path / "math.jsonl", [
        {"problem": f"{i} + 1?", "level": "Level 2", "unique_id": f"m{i}",
         "solution": f"It is $\\boxed{{{i + 1}}}$."} for i in range(10)])
    script("problems.py", "--source", source, "--parts", "sft=3", "rl=0", "val=2", "--out",
           tmp_path)
    parts = [read(tmp_path / f"{name}.jsonl") for name in ("sft", "val", "rl")]
    assert [len(part) for part in parts] == [3, 2, 5]
    assert sorted(row["id"] for part in parts for row in part) == sorted(f"m{i}" for i in range(10))
    for row in sum(parts, []):
        assert row["response"].startswith("It is") and reward(row, row["response"], True) == 1
        assert row["prompt"].startswith("<|im_start|>system") and row["level"] == 2
    script("problems.py", "--source", tmp_path / "rl.jsonl", "--template", "base", "--no-shuffle",
           "--parts", "base=0", "--out", tmp_path)      # what is ours by now, with other prompts
    for chat, base in zip(parts[2], read(tmp_path / "base.jsonl"), strict=True):
        assert base == {**chat, "prompt": f"Question:\n{chat['problem']}\nAnswer:\n"
                                          "Let's think step by step.",
                        "response": "\n" + chat["response"]}
    gsm = write(tmp_path / "gsm.jsonl", [{"question": "6 * 200?", "answer": "<<6*200=1200>>It is "
                                          "1200.\n#### 1,200"}])
    script("problems.py", "--source", gsm, "--template", "base", "--parts", "all=0", "--out",
           tmp_path)
    row = read(tmp_path / "all.jsonl")[0]
    assert row["response"] == "\nIt is 1200.\n\\boxed{1200}"
    assert row["prompt"].startswith("Question:")
    assert reward(row, row["response"], True) == 1
    for flags, words in ((("a=11",), "too few"), (("a=0", "b=0"), "too few"), (("a",), "sft=900"),
                         (("a=-1",), "sft=900"), (("a=1", "--template", "x"), "one of base"),
                         (("a=9:1",), "0 problems are too few"), (("=1",), "needs a name"),
                         (("a=1", "a=2"), "a is there twice"),
                         (("a=1,1",), "no problem twice")):
        assert words in script("problems.py", "--source", source, "--out", tmp_path / "none",
                               "--parts", *flags, code=2).replace("chat, direct, base", "base")
    assert not (tmp_path / "none").exists()


def test_our_puzzles_are_cut_by_level_and_get_another_prompt(tmp_path):
    source = puzzles(tmp_path / "chat.jsonl", "--people", "2-4", "--num", 4)
    rows = read(source)
    script("problems.py", "--source", source, "--no-shuffle", "--parts", "some=4:2,2:3", "rest=0",
           "--out", tmp_path)
    some, rest = (read(tmp_path / f"{name}.jsonl") for name in ("some", "rest"))
    assert some == rows[8:10] + rows[:3] and rest == rows[3:8] + rows[10:]
    assert list(some[0]) == list(rows[8])                   # a line stays as it is
    script("problems.py", "--source", source, "--template", "base", "--no-shuffle", "--parts",
           "base=0", "--out", tmp_path)
    for chat, base in zip(rows, read(tmp_path / "base.jsonl"), strict=True):
        assert (chat["id"], chat["gold"]) == (base["id"], base["gold"])
        assert base["prompt"].startswith("Question:") and chat["quiz"] in base["prompt"]


# ---- the conductor ---------------------------------------------------------------------------
TOY = """import sys
sys.path.insert(0, {scripts!r})
from dataclasses import dataclass
from conductor import Experiment, Plan
from engine.flags import command, limits, parse

@dataclass(kw_only=True)
class Settings(Experiment):
    level: int = 1          # bound to OUT
    words: str = "a b"      # free

def main(settings):
    plan = Plan(settings)
    out = plan.out
    {stages}
    plan.conduct("the end", ("words",))

command(main, parse(Settings, ""))
"""
TOOL = """import os, signal, sys, time
flags = dict(zip(sys.argv[1::2], sys.argv[2::2]))
def save(number, frame):
    time.sleep(0.3)
    open(flags["--out"] + ".saved", "w").close()
    raise SystemExit(130)
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, save)
open(flags["--out"] + ".begun", "w").close()
end = time.time() + 20
while "--wait" in flags and not os.path.exists(flags["--wait"]):
    if time.time() > end:
        raise SystemExit(3)
    time.sleep(0.01)
if "--fail" in flags or not os.path.exists(flags.get("--data", "/")):
    raise SystemExit(4)
os.makedirs(flags["--out"] + "/part")
"""


class Toy:
    """An experiment of a few stages, in a process of its own. TOOL is the program above. The run
    directory has a name that a shell, or a format of numbers, would take apart."""

    def __init__(self, tmp_path, *stages):
        """stages: the arguments of plan.add, as a text of Python. `out` is the run directory."""
        self.out, self.script, tool = tmp_path / "50% of it", tmp_path / "toy.py", tmp_path / "tool.py"
        tool.write_text(TOOL)
        lines = (f"plan.add({stage.replace('TOOL', f'python {tool}')})" for stage in stages)
        self.script.write_text(TOY.format(scripts=SCRIPTS, stages="\n    ".join(lines)))

    def begin(self, *flags):
        return subprocess.Popen(
            [sys.executable, self.script, "--out", self.out, *map(str, flags)], text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))

    def run(self, *flags, code=0):
        process = self.begin(*flags)
        out, error = process.communicate()
        assert process.returncode == code, error
        return error if code else out


def test_what_is_there_is_skipped_and_what_was_begun_goes_on(tmp_path):
    """--resume is for our trainers; a script in between would stop at it."""
    ours = '5, "ours", f"echo sft.py --lr {settings.level} {settings.words}\\n --out {out}/half"'
    toy = Toy(tmp_path, '5, "what is there", "false x", made=f"{out}/done"', ours,
              '9, "another", f"echo grpo.py --out {out}/new"',
              '5, "a script", f"echo scripts/sft.py.py --out {out}/half"', ours)
    printed = toy.run("--dry-run")
    assert not toy.out.exists()
    (toy.out / "half").mkdir(parents=True)
    (toy.out / "half" / "metrics.jsonl").touch()
    (toy.out / "done").touch()
    half = toy.out / "half"
    assert [line for line in printed.splitlines() if line] == [
        "# 1. what is there", "false x", "# 2. ours", f"echo sft.py --lr 1 a b --out '{half}'",
        "# 3. another", f"echo grpo.py --out '{toy.out}/new'", "# 4. a script",
        f"echo scripts/sft.py.py --out '{half}'"]       # the stage that comes twice is made once
    assert toy.run("--jobs", 1).splitlines() == [       # the longest first; `half` is there
        "[3/4] another", "[3/4] another: 0:00 min", f"grpo.py --out {toy.out}/new",
        "[2/4] ours", "[2/4] ours: 0:00 min", f"sft.py --lr 1 a b --out {half} --resume",
        "0:00 min: the end"]


def test_a_run_directory_belongs_to_its_settings(tmp_path):
    toy = Toy(tmp_path, '1, "one", f"TOOL --out {out}/a"')
    toy.run()
    assert (toy.out / "settings.txt").read_text() == "level: 1\n"
    assert "made with other settings" in toy.run("--level", 2, code=2)
    assert (toy.out / "settings.txt").read_text() == "level: 1\n"
    assert "[1/1]" not in toy.run("--words", "c", "--jobs", 2)


def test_a_run_directory_belongs_to_its_inputs_too(tmp_path):
    toy = Toy(tmp_path, f'1, "one", f"TOOL --data {tmp_path}/in.jsonl --out {{out}}/a"')
    (tmp_path / "in.jsonl").write_text("1")
    toy.run()
    toy.run()
    (tmp_path / "in.jsonl").write_text("2")
    assert "other settings or inputs" in toy.run(code=2)


def test_an_experiment_runs_once_in_a_directory(tmp_path):
    """Twice within a second, each took the other's half-made files for its own."""
    toy = Toy(tmp_path, '1, "a", f"TOOL --out {out}/a --wait {out}/go"')
    first = toy.begin()
    while not (toy.out / "a.begun").exists():
        time.sleep(0.01)
    assert toy.run(code=2) == f"toy.py: another process is running in {toy.out}\n"
    (toy.out / "go").touch()
    assert first.wait() == 0


def test_two_jobs_run_side_by_side_and_wait_for_what_they_need(tmp_path):
    """a and b wait for each other: one by one they never end. c needs a part of a, d needs c."""
    toy = Toy(tmp_path, '1, "a", f"TOOL --out {out}/a --wait {out}/b.begun"',
              '1, "c", f"TOOL --out {out}/c --data {out}/a/part"',
              '1, "d", f"TOOL --out {out}/d --data {out}/c"',
              '1, "b", f"TOOL --out {out}/b --wait {out}/a.begun"')
    out = toy.run("--jobs", 2)
    assert re.findall(r"\] (.)\n", out) == list("abcd")         # in the order in which they began
    assert all((toy.out / name / "part").exists() for name in "abcd")


def test_who_needs_whom():
    """By paths: what a stage makes, what lies below it (a model in a run), what lies above it."""
    from conductor import Stage, needs
    data = Stage(1, "", ("kk_gen.py", "--out", "x/data/a.jsonl"), "x/data/a.jsonl",
                 "x/data/a.jsonl", "")
    cut = Stage(1, "", ("problems.py", "--out", "x/data"), "x/data/last.jsonl", "x/data", "")
    run = Stage(1, "", ("sft.py", "--data", "x/./data/a.jsonl", "--out", "x/run"), "x/run/model",
                "x/run", "")
    other = Stage(1, "", ("sft.py", "--data", "x/data.jsonl", "--out", "x/run2"), "x/run2/model",
                  "x/run2", "")
    first = Stage(1, "", ("grpo.py", "--data", "x/data/first.jsonl", "--model", "x/run/step-1"),
                  "x/rl/model", "x/rl", "")
    report = Stage(1, "", ("report.py", "--runs", "x", "--out", "x"), "x/report.md", "x", "")
    assert needs([data, cut, run, other, first, report]) == {
        data: set(), cut: {data}, run: {data, cut}, other: set(), first: {cut, run},
        report: {data, cut, run, other, first}}


def test_a_stage_that_fails_ends_all_and_the_others_may_save(tmp_path):
    toy = Toy(tmp_path, '2, "a", f"TOOL --out {out}/a --wait nowhere"',
              '2, "b", f"TOOL --out {out}/b --wait {out}/a.begun --fail now"',
              '1, "c", f"TOOL --out {out}/c"')
    toy.run("--jobs", 2, code=4)
    assert (toy.out / "a.saved").exists() and not (toy.out / "c.begun").exists()


def test_no_stage_goes_on_alone(tmp_path):
    """Nobody reads what the conductor prints any more (`| head`): it ends, and its stages with it."""
    toy = Toy(tmp_path, '2, "a", f"TOOL --out {out}/a --wait nowhere"',
              '1, "b", f"TOOL --out {out}/b --wait {out}/go"')
    process = toy.begin("--jobs", 2)
    while not (toy.out / "a.begun").exists():
        time.sleep(0.01)
    process.stdout.close()
    (toy.out / "go").touch()                            # b ends, and that is to be printed
    assert process.wait() != 0 and (toy.out / "a.saved").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_it_says_so_in_one_line(tmp_path, number):
    """Ctrl-C reaches all processes, `kill` only the first. It leaves when the stages have saved."""
    toy = Toy(tmp_path, '1, "a", f"TOOL --out {out}/a --wait nowhere"',
              '1, "b", f"TOOL --out {out}/b --wait nowhere"')
    process = toy.begin("--jobs", 2)
    while not ((toy.out / "a.begun").exists() and (toy.out / "b.begun").exists()):
        time.sleep(0.01)
    (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
    _, error = process.communicate()
    assert process.returncode == 130
    assert (toy.out / "a.saved").exists() and (toy.out / "b.saved").exists()
    assert error == "toy.py: stopped; the same command goes on from here\n"


def test_what_nobody_needs_goes(tmp_path):
    toy = Toy(tmp_path, '1, "answers", f"TOOL --out {out}/1.jsonl", made=f"{out}/1.json"',
              '1, "table", f"TOOL --data {out}/1.jsonl --out {out}/1.json", drop=f"{out}/1.json."')
    toy.run("--jobs", 2)
    assert sorted(os.listdir(toy.out)) == ["1.json", "1.jsonl", "1.jsonl.begun", "settings.txt"]
    assert "[" not in toy.run()                         # the answers are not sampled again


SHOWS = """import sys, time
print("a result")
print("a warning", file=sys.stderr)
sys.stderr.write("sample:   0%|          | 0/2 [00:00<?]")
for i in (1, 2):
    sys.stderr.write(f"\\rsample: {50 * i}%|#####| {i}/2 [00:0{i}<00:01, 7 tokens/s]")
    sys.stderr.flush()
    time.sleep(0.3)
sys.stderr.write("\\n")
"""


def test_a_person_sees_a_line_for_each_stage_and_then_what_it_said(tmp_path):
    """On a terminal: the stage's own bar while it runs. After it: its results and warnings."""
    toy = Toy(tmp_path, f'1, "one", "python {tmp_path}/shows.py"')
    (tmp_path / "shows.py").write_text(SHOWS)
    inner, outer = os.openpty()
    process = subprocess.Popen([sys.executable, toy.script, "--out", toy.out], stdout=outer,
                               env={**os.environ, "COLUMNS": "100"})
    os.close(outer)
    seen = b""
    try:
        while some := os.read(inner, 4096):
            seen += some
    except OSError:                                     # Linux says so that the other end closed
        pass
    assert process.wait() == 0
    seen = seen.decode().replace("\r\n", "\n")
    assert re.search(r"\[1/1\] one: sample: 50% 1/2 \[00:01<00:01, 7 tokens/s\]\n"
                     r"0:\d\d min gone, about 0:\d\d left\n", seen)
    end = re.sub(r".*\033\[J", "", seen, flags=re.DOTALL)   # after what was last taken away
    assert re.fullmatch(r"\[1/1\] one: 0:\d\d min\na result\na warning\n0:\d\d min: the end\n", end)


# ---- the report of methods.py -----------------------------------------------------------------
def measured(run, part, rewards):
    """What drift.py writes: for every model, its reward and a KL of ten times that."""
    (run / "drift").mkdir(parents=True, exist_ok=True)
    write(run / "drift" / f"{part}.jsonl", [
        {"model": str(run / name), "reward": reward, "kl_per_answer": 10 * reward,
         "k1_per_answer": 10 * reward, "standard_errors": [0, 0], "text": {"world": -reward},
         "text_base": {"world": -0.5}} for name, reward in rewards.items()])


def test_the_report_of_the_experiment(tmp_path):
    """Means and ranges over runs made by hand; what a run has not measured is named."""
    from methods_report import CHOICES, GOALS, report
    trained = {"dft_b": 0.7, "sft_search": 0.1, "dft_search": 0.2, "sft_table": 0.4,
               "dft_table": 0.4}
    for run, more in ((tmp_path / "one", 0), (tmp_path / "two", 0.1)):
        for name, answers in (("answers", 4), ("b", 2)):
            (run / "data").mkdir(parents=True, exist_ok=True)
            write(run / "data" / f"{name}.jsonl", [{"tokens": [1, 2, 3]}] * answers)
        for name in ("rl", "od", "few"):
            (run / name).mkdir()
            write(run / name / "metrics.jsonl",
                  [{"step": step, "tokens": 100 * step} for step in range(1, 31)])
        measured(run, "rl", {"nowhere/base": 0.3, "rl/step-000005": 0.5, "rl/model": 0.8 + more})
        measured(run, "tuned", {f"{name}/model": right for name, right in
                                {"sft_a": 0.8, "sft_b": 0.7 + more, **trained}.items()})
        measured(run, "od", {"od/model": 0.6, "few/model": 0.6})
        for part in ("goals_test2", "goals_threes"):
            measured(run, part, {f"{name}/model": 0.5 for name in GOALS})
        for choice in CHOICES:
            write(run / "data" / f"{choice}.jsonl", [{"id": 1}, {"id": 2}])
            (run / f"rl_{choice}").mkdir()
            write(run / f"rl_{choice}" / "metrics.jsonl",
                  [{"step": 2, "eval": {"accuracy": 0.6 + more}}, {"step": 3}])
        write(run / "data" / "ranked.jsonl", [{"id": 1, "solved": 0}, {"id": 2, "solved": 0.5}])
        for name in ("value", "value_again"):
            (run / name).mkdir()
            write(run / name / "pool.effects.jsonl",
                  [{"id": 1, "effect": 1}, {"id": 2, "effect": 2}])
    runs = [str(tmp_path / name) for name in ("one", "two")]

    def written():
        report(runs, str(tmp_path / "out"))
        return (tmp_path / "out" / "report.md").read_text()

    text = written()
    assert "not finished" not in text
    assert "| GRPO from the base, step 5 | 500 | 50.0% | 5.00 | 5.00 | 0.0000 |" in text
    assert "| GRPO from the base | 3,000 | 85.0% (80.0% to 90.0%) |" in text
    assert "| re-distilled B: answers of the last steps | 6 | 75.0% (70.0% to 80.0%) |" in text
    assert "| re-distilled A: greedy answers | 12 | 80.0% |" in text
    assert "| highest quarter | 25% | 65.0% (60.0% to 70.0%) |" in text
    assert "with its effect from other answers: 1.00." in text

    measured(tmp_path / "two", "rl", {"nowhere/base": 0.3, "rl/step-000005": 0.5})
    shutil.rmtree(tmp_path / "two" / "rl_lowest")
    os.remove(tmp_path / "two" / "drift" / "goals_threes.jsonl")
    text = written()
    assert (f"{runs[1]} is not finished. Not measured yet: GRPO from the base, the base of both,"
            in text and f"{runs[0]} is not" not in text)
    assert "distilled from both, RL on the lowest quarter.\n" in text
    assert "| GRPO from the base | 3,000 | 80.0% |" in text


# ---- the experiments -------------------------------------------------------------------------
SMALL = {
    "first": "first_look.py --steps 2",
    "tiny": "redistill.py tiny --steps 2 --prompts 8 --examples 24 --test-puzzles 8 --trace 0",
    "selection": "selection.py {}/tiny --when last --by effect --problems 8",
    "kk": "redistill.py kk --smoke --jobs 2",
    "math": "redistill.py math --smoke --train {0}/sums.jsonl --test {0}/sums.jsonl"
            " --long {0}/long.json --instruct {0}/kk/random/model",
    "mixture": "pretrain.py mixture --lessons 20000 --tokens 10000 --widths 32 48 --shares guess=50"
               " worked=40 table=10 search=0 --data {}/puzzles",
    "echo": "echo_chamber.py --base assets/tiny_base --steps 2 --prompts 4 --at 1 --problems 4"
            " --samples 4 --rounds 1 --seeds 1 --kls 1e-2",
    "real": "echo_chamber.py --base tests/golden --train {0}/gsm.jsonl --test {0}/gsm.jsonl"
            " {0}/math.jsonl --steps 1 --prompts 4 --at 1 --problems 8 --samples 2 --rounds 1"
            " --seeds 1 --kls 0 --longest 8 --longest-prompt 99 --algorithms grpo",
    "expert": "expert_iteration.py --base assets/tiny_base --data {}/tiny/data/rl.jsonl --tune base"
              " --rounds 2 --problems 8 --samples 4"}


NEEDS = {"selection": "tiny", "expert": "tiny", "math": "kk"}       # what another has made


class Experiments:
    """All of them at toy size, one by one beside the other tests; then, when these have ended, two
    at a time. The lab is stopped once."""

    def __init__(self, runs):
        self.runs, self.running, self.ended, self.given_up = runs, {}, {}, False
        write(runs / "gsm.jsonl", [{"question": f"{i} + 2?", "answer": f"#### {i + 2}"}
                                   for i in range(6)])
        write(runs / "math.jsonl", [{"problem": f"{i}*2", "solution": f"\\boxed{{{2 * i}}}",
                                     "level": "Level 2", "type": "Algebra"} for i in range(6)])
        write(runs / "sums.jsonl", [{"problem": f"What is {i} + {i}?", "level": "Level 1",
                                     "solution": f"Twice {i} is $\\boxed{{{2 * i}}}$."}
                                    for i in range(20)])
        (runs / "long.json").write_text(json.dumps([        # an array: people have such files, too
            {"id": f"long-{i}", "task": "math", "prompt": f"What is {i} + {i}?\n", "level": 1,
             "gold": str(2 * i), "response": f"So: \\boxed{{{2 * i}}}."} for i in range(12)]))
        self.names, self.threads = iter([*SMALL]), []       # Each thread takes the next name.
        self.work()

    def start(self, name):
        script, *flags = SMALL[name].format(self.runs).split()
        if name != "selection":
            flags += ["--out", str(self.runs / name)]
        with (open(self.runs / f"{name}.out", "w") as out,
              open(self.runs / f"{name}.err", "w") as error):
            self.running[name] = subprocess.Popen(
                [sys.executable, os.path.join(SCRIPTS, script), *flags], stdout=out, stderr=error,
                start_new_session=True,     # Ctrl-C is heard even where the tests are told not to
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
                env={**os.environ, "OMP_NUM_THREADS": "1"})

    def end(self, name):
        code = self.running[name].wait()
        return (*((self.runs / f"{name}.{what}").read_text() for what in ("out", "err")), code)

    def stop_the_lab(self):
        self.start("tiny")
        said = self.runs / "tiny.out"
        while self.running["tiny"].poll() is None and "] GRPO from base\n" not in said.read_text():
            time.sleep(0.05)
        self.signal("tiny", signal.SIGINT)
        self.stopped = self.end("tiny")

    def work(self):
        self.threads.append(threading.Thread(target=self.run, daemon=True))
        self.threads[-1].start()

    def run(self):
        for name in self.names:
            while NEEDS.get(name, name) not in {name, *self.ended} and not self.given_up:
                time.sleep(0.1)
            if name == "tiny":
                self.stop_the_lab()
            if not self.given_up:
                self.start(name)
                self.ended[name] = self.end(name)

    def signal(self, name, number):
        try:
            os.killpg(self.running[name].pid, number)
        except ProcessLookupError:
            pass

    def wait(self):
        self.work()
        for thread in self.threads:
            thread.join()

    def give_up(self):
        self.given_up = True
        for name in self.running:
            if self.running[name].poll() is None:
                self.signal(name, signal.SIGKILL)
        for thread in self.threads:
            thread.join(10)


@pytest.fixture(scope="session")
def experiments(pytestconfig):
    pytestconfig.experiments.wait()
    return pytestconfig.experiments


def ended(experiments, name):
    """The directory of an experiment that ended well, and what it printed."""
    out, error, code = experiments.ended[name]
    assert code == 0, error[-2000:]
    return experiments.runs / name, out


def test_the_lab_stops_and_goes_on(experiments):
    before, error, code = experiments.stopped
    assert code == 130 and "the same command goes on" in error
    _, out = ended(experiments, "tiny")
    made = re.findall(r"^(\[\d+/.*): \d+:\d\d min$", before, re.M)
    assert len(made) > 3 and "] GRPO from base\n" in before
    assert not [stage for stage in made if stage in out]    # What was there is not made again.
    assert "] GRPO from base: " in out                      # What was stopped is.


def test_the_lab_reports_what_it_did(experiments):
    lab, out = ended(experiments, "tiny")
    report = (lab / "report.md").read_text()
    assert report in out
    far = {os.path.basename(os.path.dirname(row["model"])): row for row in read(lab / "drift.jsonl")}
    for name, words in (("sft_b", "re-distilled (answers of the last steps)"),
                        ("rl_base", "GRPO from the base")):
        assert f"| {words} | {far[name]['kl_per_token']:.3f} |" in report
    rows = table(lab / "models.csv")
    assert {row["model"] for row in rows if row["k1_per_answer"]} == {*far}
    for row in rows:
        if row["model"] in far:
            assert abs(float(row["k1_per_answer"]) - far[row["model"]]["k1_per_answer"]) < 1e-4
    models = {row["model"] for row in rows}
    assert models == {"base", "sft_short", "sft_long", "rl_base", "rl_short", "rl_long", "sft_a",
                      "sft_b", "sft_foreign", "sft_at_0", "sft_wrong", "sft_guess", "rl_b"}
    for row in rows:                                # each number is that of the answers on disk
        answers = [one for one in read(lab / "eval" / f"{row['model']}.{row['decoding']}.jsonl")
                   if row["level"] in ("all", str(one["level"]))]
        assert len(answers) == int(row["n"])
        right = sum(reward(one, one["response"], one["finished"]) for one in answers) / len(answers)
        assert abs(right - float(row["accuracy"])) < 1e-4
        for style, share in style_shares(answers).items():
            assert abs(share - float(row[f"share_{style}"])) < 1e-4
    effects = {row["model"] for row in rows if row["effect"]}
    assert effects == {model for model in models if model.startswith("sft")}
    assert len(table(lab / "curves.csv")) == 3 * 2 + 1          # half as many from re-distilled B
    assert "rank correlation of gain and effect, 8 datasets" in report
    assert "| re-distilled (answers of the last steps) |" in report
    assert "| people: 4, sampled |" in report and "\n| chance |  |  | 12.5% | 6.2% |" in report
    assert "SFT on wrong answers of steps 1 to 2" in report


def test_an_unfinished_lab_is_reported_as_far_as_it_is(experiments, tmp_path):
    lab = shutil.copytree(ended(experiments, "tiny")[0], tmp_path / "lab")
    shutil.rmtree(lab / "rl_b" / "model")
    (lab / "rl_long" / "metrics.jsonl").write_text("")      # hardly begun
    shutil.rmtree(lab / "rl_long" / "model")
    os.remove(lab / "eval" / "sft_b.sampled.jsonl")
    os.remove(lab / "eval" / "sft_b.greedy.jsonl")
    os.remove(lab / "drift.jsonl")
    script("report.py", "--runs", lab, "--out", lab)
    report = (lab / "report.md").read_text()
    assert "Not finished, so not here: rl_long, sft_b, rl_b." in report
    assert "| GRPO from the base |" in report and "| re-distilled (answers" not in report
    shutil.rmtree(lab / "rl_base" / "model")
    assert "rl_base must be made and evaluated" in script("report.py", "--runs", lab, "--out", lab,
                                                          code=2)


@pytest.mark.extras
def test_the_figure_shows_the_numbers():
    """Two runs of three models, by hand: a point for each run, in the right place."""
    pytest.importorskip("matplotlib")
    import report
    about = {"base": ("", ""), "sft_b": ("SFT", "base"), "rl_base": ("GRPO", "base")}
    numbers = {"base": (0.1, "", ""), "sft_b": (0.6, 0.5, 2.0), "rl_base": (0.7, "", 4.0)}
    runs = []
    for i, run in enumerate(("one", "two")):
        rows = [{"run": run, "model": name, "words": name, "made_with": about[name][0],
                 "from": about[name][1], "decoding": "sampled", "level": "3", "n": 10, "chance": "",
                 "accuracy": right + 0.1 * i, "low": right, "high": right, "effect_cosine": cosine,
                 "k1_per_answer": kl} for name, (right, cosine, kl) in numbers.items()]
        curves = [{"run": run, "start": "base", "step": step, "reward": 0.2 * step + 0.1 * i,
                   "share_worked": 0.1 * step, "share_guess": 1 - 0.1 * step} for step in (1, 2, 3)]
        runs.append((rows, curves, {"3"}))
    figure = report.draw(runs, "rl_base")
    curve, bars, styles, effect, kl = figure.axes[:5]
    assert list(curve.lines[0].get_ydata()) == pytest.approx([0.25, 0.35, 0.45])    # running means
    assert [bar.get_width() for bar in bars.patches] == pytest.approx([0.15, 0.65, 0.75])
    worked = next(line for line in styles.lines if line.get_label() == "worked")
    assert list(worked.get_ydata()) == pytest.approx([0.1, 0.2, 0.3])
    [points] = effect.collections
    assert numpy.allclose(points.get_offsets(), [[0.5, 0.5]] * 2)
    assert [one.get_label() for one in kl.collections] == ["sft_b", "rl_base"]
    for one, (x, y) in zip(kl.collections, ((2.0, 0.5), (4.0, 0.6))):
        assert numpy.allclose(one.get_offsets(), [[x, y]] * 2)


def test_a_first_look_shows_what_the_files_hold(experiments):
    folder, out = ended(experiments, "first")
    for path, who in (("before.jsonl", "The base"),
                      ("grpo-2-0/after.jsonl", "After 2 steps of GRPO")):
        rows = read(folder / path)
        right = [reward(row, row["response"], row["finished"]) for row in rows]
        assert len(rows) == 200 and f"{who}: {sum(right) / 200:.0%} of 200 answers are right" in out
        for style, share in style_shares(rows).items():
            assert f"    {style:7} {share:4.0%} of the answers" in out
    assert out.count("A right answer in the style") == 4
    assert f"\n$ python grpo.py --model assets/tiny_base --data {folder}/train.jsonl" in out


def test_examples_of_the_lab_are_what_they_are_called(experiments):
    data = ended(experiments, "tiny")[0] / "data"
    for name, style in (("short", "table"), ("long", "search"), ("guess", "guess"),
                        ("foreign", "search")):
        rows = read(data / f"{name}.jsonl")
        assert {kk_gen.style_of(row["response"]) for row in rows} == {style}
        assert all(kk_correct(row["response"], row["gold"]) for row in rows)
    sizes = collections.Counter(row["level"] for row in read(data / "test.jsonl"))
    assert sizes == {3: 8, 4: 4} and len(read(data / "sft.jsonl")) == 24
    b, foreign, wrong, test = ([row["id"] for row in read(data / f"{name}.jsonl")]
                               for name in ("b", "foreign", "wrong", "test"))
    assert sorted(b) == sorted(foreign) and len(set(b)) == len(b)      # the very problems of B
    assert not set(test) & set(b + wrong)
    prompts = [{row["prompt"] for row in read(data / f"{name}.jsonl")}
               for name in ("test", "sft", "rl")]
    assert sum(map(len, prompts)) == len(set.union(*prompts))          # none is in two files
    assert all(kk_correct(row["response"], row["gold"]) for row in read(data / "b.jsonl"))
    assert not any(kk_correct(row["response"], row["gold"]) and row["finished"]
                   for row in read(data / "wrong.jsonl"))


def test_quarters_chosen_by_effect_are_compared_with_as_many(experiments):
    ended(experiments, "selection")
    folder = experiments.runs / "tiny" / "selection"
    pool, highest, lowest, drawn = (read(folder / f"{name}.jsonl") for name in (
        "last", "last_effect_highest", "last_effect_lowest", "last_random"))
    assert len(highest) == len(lowest) == len(drawn) == round(len(pool) / 4) > 2
    assert min(row["effect"] for row in highest) > max(row["effect"] for row in lowest)
    texts = {(row["id"], row["response"]) for row in pool}
    assert {(row["id"], row["response"]) for row in highest + lowest + drawn} <= texts
    report = (folder / "report.txt").read_text()
    for name in ("effect_highest", "effect_lowest", "random"):
        data = settings_of(folder / f"sft_last_{name}")["data"]
        assert data == [str(folder / f"last_{name}.jsonl")]
        answers = read(folder / f"eval_last_{name}.jsonl")
        right = sum(reward(one, one["response"], one["finished"]) for one in answers) / len(answers)
        line = next(line for line in report.splitlines() if line.startswith(f"last_{name} "))
        assert line.split()[3:5] == [str(len(answers)), f"{right:.1%}"]


@pytest.mark.parametrize("name", ("kk", "math"))
def test_the_papers_experiments_run_at_toy_size(experiments, name):
    folder, _ = ended(experiments, name)
    report = (folder / "report.md").read_text()
    assert "re-distilled (answers of the last steps)" in report
    assert ("level: all, greedy" in report, "people: all" in report) == (name == "math", False)
    assert settings_of(folder / "sft_short")["lr"] == 1e-5             # the paper's, not the toy's
    short, val = (read(folder / "data" / f"{part}.jsonl") for part in ("short", "val"))
    assert (len(short), len(val)) == {"kk": (27, 3), "math": (12, 2)}[name]
    assert not {row["id"] for row in short} & {row["id"] for row in val}
    for part in ("rl", "test"):
        chat, base = (read(folder / "data" / f"{prefix}{part}.jsonl") for prefix in ("", "base_"))
        assert [row["gold"] for row in chat] == [row["gold"] for row in base]
        assert all(row["prompt"].startswith("Question:") for row in base)
    assert not list(folder.glob("*/checkpoint-*"))                     # They take most of the disk.
    if name == "kk":
        assert settings_of(folder / "sft_a")["batch"] == 64
    else:       # There are long chains: who started from them is the teacher, and gets their problems.
        answers = read(folder / "data" / "answers.jsonl")
        assert [row["id"] for row in answers] == [f"long-{i}" for i in range(12)]
        assert {row["step"] for row in read(folder / "data" / "b.jsonl")} == {1, 2}
        assert "/rl_long/" in settings_of(folder / "rl_long")["out"] + "/"
        for model in ("the instruct model", "GRPO from the instruct model",
                      "GRPO from re-distilled (greedy answers)"):
            assert f"| {model} |" in report


def test_the_questions_of_the_experiment_on_a_real_model(tmp_path):
    """The stages that make its data. (Its other stages are those of the lab.)"""
    plan = script("redistill.py", "sums", "--base", "tests/golden", "--examples", 16, "--dry-run",
                  "--out", tmp_path)
    b = tmp_path / "data" / "b.jsonl"
    for line in plan.splitlines():
        if line.startswith("python scripts/sums.py"):
            if str(b) in line:          # The policy's answers, with their tokens.
                write(b, [{**row, "tokens": [1], "response": "x", "finished": True}
                          for row in read(tmp_path / "data" / "rl.jsonl")[:5]])
            script("sums.py", *line.split()[2:])
    both, long, b, foreign = (read(tmp_path / "data" / f"{name}.jsonl")
                              for name in ("both", "long", "b", "foreign"))
    for rows, others in ((both, long), (b, foreign)):
        assert [row["id"] for row in rows] == [row["id"] for row in others]
        assert all("tokens" not in row and reward(row, row["response"], True) for row in others)
    for rows, styles in ((both, {"equation": 6, "steps": 2}), (long, {"steps": 8}),
                         (foreign, {"equation": 5})):
        assert collections.Counter(map(verify.style, rows)) == styles
    questions = [row["question"] for name in ("test", "rl", "both")
                 for row in read(tmp_path / "data" / f"{name}.jsonl")]
    assert len(set(questions)) == len(questions) == 200 + 640 + 8


def test_sums_are_right_in_every_style():
    """Each line of an answer, taken by itself; and a question tells all the numbers."""
    makes = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}
    rng = random.Random(1)
    for row in (sums.draw(rng) for _ in range(400)):
        assert re.findall(r"\d+", row["question"]) == list(map(str, row["numbers"]))
        for cot, count in (("equation", 1), ("steps", 2)):
            text = sums.answer(row, cot)
            assert reward(row, text, True) == 1 and "\n" not in text
            lines = re.findall(r"(\d+)((?: [-+*] \d+)+) = (\d+)", text)
            assert len(lines) == count and int(lines[-1][2]) > 0
            for left, others, right in lines:
                value = int(left)
                for sign, number in re.findall(r"([-+*]) (\d+)", others):  # "*" only comes first
                    value = makes[sign](value, int(number))
                assert value == int(right)


def test_mixtures_are_pretrained_at_every_width(experiments):
    mixture, _ = ended(experiments, "mixture")
    held_out = {row["prompt"] for part in ("rl", "test", "sft")
                for row in read(experiments.runs / "puzzles" / f"{part}.jsonl")}
    for name, shares in (("lessons", {"worked": 80, "table": 20}),
                         ("mixture", {"guess": 50, "worked": 40, "table": 10})):
        rows = read(mixture / f"{name}.jsonl")
        styles = collections.Counter(row["style"] for row in rows)
        assert styles == {style: share * len(rows) // 100 for style, share in shares.items()}
        assert not held_out & {row["prompt"] for row in rows}
    steps = []
    for width in (32, 48):
        folder = mixture / f"w{width}" / "mixture"
        about = json.loads((folder / "model" / "config.json").read_text())
        assert (about["hidden_size"], about["rope_theta"]) == (width, 500.0)
        assert settings_of(folder)["model"].endswith(f"w{width}/lessons/model")
        steps.append(len(read(folder / "metrics.jsonl")))
    assert steps[0] == steps[1]                                     # the same documents
    assert "w32.json" not in (mixture / "settings.txt").read_text()     # Other widths may join later.


def test_echo_chamber_reports_what_was_answered(experiments, tmp_path):
    """The answers to the test are gone; those to a test with the same command come out the same."""
    echo, out = ended(experiments, "echo")
    rows = table(echo / "evals.csv")
    assert {(row["algorithm"], row["kl_weight"], row["step"]) for row in rows} == {
        (*kind, step) for kind in (("grpo", "1e-2"), ("ppo", "1e-2")) for step in "012"} | {
        ("expert", "0", step) for step in "01"}
    again = echo / "again.jsonl"
    model = echo / "base-0" / "grpo-kl1e-2-1" / "model"
    subprocess.run([sys.executable, "sample.py", "--model", model, "--data",
                    echo / "data" / "test.jsonl", "--n", "4", "--temperature", "1",
                    "--max-new-tokens", "440", "--out", again], cwd=ROOT, check=True,
                   capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    for test, level in (("easy", 3), ("hard", 4)):
        row = next(row for row in rows if (row["algorithm"], row["step"], row["test"]) == (
            "grpo", "2", test))
        answers = [one for one in read(again) if one["level"] == level]
        assert len(answers) == int(row["n"]) == {"easy": 16, "hard": 8}[test]
        right = collections.Counter()
        for one in answers:
            right[one["id"]] += reward(one, one["response"], one["finished"])
        for k in (1, 2, 4):
            chances = [pass_at_k(4, int(count), k) for count in right.values()]
            assert abs(sum(chances) / len(chances) - float(row[f"pass@{k}"])) < 1e-4
        for style, share in style_shares(answers).items():
            assert abs(share - float(row[f"share_{style}"])) < 1e-4
    for algorithm, run in ("ppo", "ppo-kl1e-2-1"), ("expert", "expert-kl0-1"):
        [far] = read(echo / "base-0" / run / "drift.jsonl")
        *_, last = (row for row in rows if row["algorithm"] == algorithm)
        assert abs(float(last["kl_per_answer"]) - far["k1_per_answer"]) < 1e-4
    assert not list(echo.glob("base-0/**/eval/*.jsonl"))
    curves = table(echo / "curves.csv")
    for row in curves:      # Expert Iteration's are counted anew from what was sampled
        samples = 64 if row["algorithm"] == "expert" else 32 * int(row["step"])
        assert int(row["samples"]) == samples
    sampled = read(echo / "base-0" / "expert-kl0-1" / "round-1" / "rollouts.jsonl")
    expert = next(row for row in curves if row["algorithm"] == "expert")
    assert abs(style_shares(sampled)["guess"] - float(expert["share_guess"])) < 1e-4
    assert (echo / "report.md").read_text() in out
    again.unlink()
    copy = shutil.copytree(echo, tmp_path / "copy")         # and a test that was stopped half-way
    (copy / "base-0" / "grpo-kl1e-2-1" / "eval" / "1.jsonl.config.json").write_text("{}")
    script("echo_report.py", "--run", copy, "--out", copy)
    assert (copy / "evals.csv").read_text() == (echo / "evals.csv").read_text()
    (copy / "base-0" / "expert-kl0-1" / "round-2").mkdir()  # One more round is still to come.
    script("echo_report.py", "--run", copy, "--out", copy)
    assert {row["algorithm"] for row in table(copy / "evals.csv")} == {"grpo", "ppo"}


def test_echo_chamber_runs_on_official_files(experiments):
    """GSM8K to train on, GSM8K (easy) and MATH (hard) to test on."""
    real, _ = ended(experiments, "real")
    assert {row["test"] for row in table(real / "evals.csv")} == {"easy", "hard"}
    assert {row["task"] for row in read(real / "data" / "test.jsonl")} == {"gsm8k", "math"}
    settings = settings_of(real / "base-0" / "grpo-kl0-1")
    assert settings["lr"] == 1e-6 and settings["temperature"] == 0.7


def test_expert_iteration_goes_round(experiments):
    expert, out = ended(experiments, "expert")
    first, second = expert / "round-1", expert / "round-2"
    asked = [{row["id"] for row in read(folder / "problems.jsonl")} for folder in (first, second)]
    assert len(asked[0]) == len(asked[1]) == 8 and not asked[0] & asked[1]
    for folder, ids in zip((first, second), asked):
        kept = read(folder / "correct.jsonl")
        assert {row["id"] for row in kept} <= ids and all(row["reward"] == 1 for row in kept)
        assert len({(row["id"], row["response"]) for row in kept}) == len(kept)
    config = json.loads((second / "rollouts.jsonl.config.json").read_text())["settings"]
    assert config["model"].endswith("round-1/sft/model")
    assert settings_of(second / "sft")["model"] == "assets/tiny_base"


# ---- what cannot be, and what would be done --------------------------------------------------
@pytest.mark.parametrize("flags, words", [
    ("redistill.py kk", "no such model directory"),
    ("redistill.py tiny --base nowhere", "base = nowhere: no such model"),
    ("redistill.py kk --base tests/golden --steps 3", "steps is not a setting of kk"),
    ("redistill.py tiny --long README.md", "long is not a setting of tiny"),
    ("redistill.py tiny --steps 0", "steps = 0: at least 1"),
    ("redistill.py huge", "task = huge: one of tiny, sums, kk, math"),
    ("redistill.py sums --base tests/golden --quick", "quick is not a setting of sums"),
    ("redistill.py math --base tests/golden --test README.md", "give --train and --test"),
    ("expert_iteration.py --base nowhere --data x", "base = nowhere: no such model"),
    ("expert_iteration.py --base assets/tiny_base", "--data"),
    ("expert_iteration.py --base assets/tiny_base --data x --tune first", "one of last, base"),
    ("selection.py nowhere", "nowhere: no finished run"),
    ("report.py --runs nowhere --out x", "nowhere: no such directory"),
    ("echo_chamber.py --at 9 --steps 8", "at = 9: there are 8 steps"),
    ("echo_chamber.py --samples 1", "samples = 1: at least 2"),
    ("echo_chamber.py --seeds 1 -1", "seeds = [1, -1]: at least 0"),
    ("echo_chamber.py --kls abc", "kls = abc: write it as"),
    ("echo_chamber.py --algorithms dpo", "algorithms = ['dpo']: one of grpo, ppo, expert"),
    ("redistill.py tiny --trace 200", "trace = [200]: at most 100"),
    ("selection.py nowhere --by foo", "by = ['foo']: one of effect, per_token, cosine"),
    ("echo_chamber.py --rounds 7", "rounds = 7: must share out"),
    ("echo_chamber.py --test x", "belong together"),
    ("echo_chamber.py --train x", "belong together"),
    ("echo_chamber.py --base nowhere", "base = nowhere: no such model"),
    ("echo_chamber.py --base tests/golden --train README.md --test nowhere", "no such file")])
def test_what_cannot_be_is_refused_before_anything_is_written(tmp_path, flags, words):
    name, *flags = flags.split()
    assert words in script(name, *flags, "--out", tmp_path / "out", code=2)
    assert not (tmp_path / "out").exists()


def test_experiments_say_what_they_would_do(tmp_path):
    out = tmp_path / "out"
    kk = script("redistill.py", "kk", "--base", "tests/golden", "--dry-run", "--out", out)
    assert "python grpo.py --model" in kk and "memory to train" in kk and "h and" in kk
    quick = script("echo_chamber.py", "--quick", "--seeds", 5, "--dry-run", "--out", out)
    assert f"{out}/base-0/ppo-kl1e-2-5" in quick and "--steps 16 " in quick and "--n 16 " in quick
    assert "pretrain" not in quick                          # --quick names a base
    full = script("echo_chamber.py", "--studies", "sizes", "--dry-run", "--out", out)
    assert "--widths 128" in full and "grpo-kl1e-3-3" in full and "grpo-kl0-" not in full
    mixture = script("pretrain.py", "mixture", "--dry-run", "--out", out)
    assert f"--init {out}/w48.json" in mixture              # which nobody has written yet
    (tmp_path / "test.jsonl").write_text("{}")
    flags = "kk", "--base", "tests/golden", "--dry-run", "--out", out
    test = f"{out}/data/test.jsonl"
    for more, keep_out in (((), ("three",)), (("--test", tmp_path / "test.jsonl"), ("rl", "two", "three"))):
        lines = script("redistill.py", *flags, *more).splitlines()
        made = {line.rpartition("/")[2]: line for line in lines if "kk_gen.py --people" in line}
        for name in ("rl", "two", "three"):                 # No puzzle of an official test is met.
            assert (test in made[f"{name}.jsonl"].partition("--exclude")[2]) == (name in keep_out)
        [effects] = [line for line in lines if line.startswith("python effect.py")]
        [order] = [line for line in lines if "--parts judge=0" in line]
        assert f"--test {out}/data/judge.jsonl" in effects and "--no-shuffle" not in order
    base = script("pretrain.py", "base", "--dry-run", "--out", out)
    assert f"--model {out}/careful/model" in base and "--num 84000" in base
    assert not out.exists()


def test_an_input_that_nobody_makes_is_missed_before_any_work(tmp_path):
    toy = Toy(tmp_path, '1, "a", f"TOOL --out {out}/a"',
              '1, "b", f"TOOL --model {out}/a/model --data {out}/a {out}/c.jsonl --out {out}/b"')
    for flags in ((), ("--dry-run",)):
        assert toy.run(*flags, code=2) == (
            f"toy.py: {toy.out}/c.jsonl: no such file or directory (b)\n")
    assert not toy.out.exists()


def test_a_trainer_that_was_killed_in_its_first_step_goes_on(tmp_path, monkeypatch):
    import conductor
    started = []
    monkeypatch.setattr(conductor.subprocess, "Popen", lambda command, **_: started.append(command))
    stage = conductor.Stage(1, "a", ("python", "grpo.py", "--out", str(tmp_path)), "", str(tmp_path), "")
    conductor.Running(stage)
    (tmp_path / "rollouts").mkdir()                         # and no line of metrics yet
    conductor.Running(stage)
    assert ["--resume" in command for command in started] == [False, True]


def test_a_distance_table_is_whole_or_not_there(tmp_path, monkeypatch):
    """A stage that was stopped half-way must not look done."""
    import drift

    class Ruler:
        def __init__(self, settings):
            pass

        def measure(self, path, number):
            if number:
                raise KeyboardInterrupt
            return {"model": path}
    monkeypatch.setattr(drift, "Ruler", Ruler)
    settings = drift.Settings(base="", model=["a", "b"], out=str(tmp_path / "d.jsonl"), data="x")
    with pytest.raises(KeyboardInterrupt):
        drift.main(settings)
    assert not (tmp_path / "d.jsonl").exists()


def test_costs_by_hand():
    """A card of 1 byte and 10 operations a second, and a model of P parameters, nothing cached."""
    import estimate
    import grpo
    import sft
    settings = estimate.Settings(base="", bandwidth=1e-12, rate=1e-11, share=1, mfu=0.5,
                                 prompt_tokens=10, answer_tokens=20, examples=3)
    card = estimate.Card(settings, QWEN_1_5B)
    P, per_token = 1543714304, 28 * 1024
    assert card.weights == P
    run = grpo.Settings(model="", data=[], out="", prompts=2, group=2, steps=5, max_new_tokens=50)
    sampling = 50 * 2 * P + 4 * 20 * (10 + 20 / 2) * per_token      # to the longest answer
    training = 8 * P * 4 * (10 + 20) / (10 * 0.5)
    assert estimate.cost(card, "grpo", run) == pytest.approx(
        (5 * (sampling + training), 4 * P + 5 * 4 * 20 * estimate.ROLLOUT_BYTES), rel=1e-4)
    tune = sft.Settings(model="", data=["a", "b"], out="", epochs=2)
    assert estimate.cost(card, "sft", tune) == pytest.approx((2 * 8 * P * 6 * 30 / 5, 4 * P))


# ---- numbers of the reports ------------------------------------------------------------------
def test_endpoints_by_hand():
    import echo_report as E

    def level(n, accuracy, **styles):
        return {"n": n, "accuracy": accuracy, "pass@1": accuracy, "pass@4": 0.9, "majority@4": 0.3,
                "styles": {name: {"share": share, "right": right}
                           for name, (share, right) in styles.items()}}
    # 20 answers, 12 in a (4 of them and 3 of them right), 8 in b
    before = E.joined([level(10, 0.5, a=(0.4, 1.0), b=(0.6, 1 / 6)),
                       level(10, 0.3, a=(0.8, 0.375), b=(0.2, 0.0))])
    assert before["n"] == 20 and before["accuracy"] == 0.4 and before["share_a"] == 0.6
    assert abs(before["right_in_a"] - 7 / 12) < 1e-12
    after = E.joined([level(20, 0.7, a=(0.1, 0.5), b=(0.9, 0.7))])
    evals = [{"step": step, "samples": 128 * step, "test": "easy", **row}
             for step, row in ((0, before), (4, after))]
    curve = [{"step": i, "samples": 128 * i, "share_b": share}
             for i, share in enumerate((0.5, 0.79, 0.8, 0.7), 1)]
    found = E.endpoints(evals, curve)
    assert (found["winner"], found["its share"], found["its share before"]) == ("b", 0.9, 0.4)
    assert found["the most accurate before"] == "a" and found["samples to collapse"] == 256
    assert found["accuracy, easy"] == (0.4, 0.7) and found["pass@4, easy"] == (0.9, 0.9)
    curve[2]["share_b"] = 0.7                           # then it is seen in the test alone
    assert E.endpoints(evals, curve)["samples to collapse"] == 512
    evals[1]["share_b"] = 0.79
    assert E.endpoints(evals, curve)["samples to collapse"] is None


def test_spreads_by_hand():
    from report import spread
    assert spread([1.0, None, 3.0], ".0f") == "2 (1 to 3); never in 1"
    assert spread([None], ".0f") == "never" and spread([], ".0f") == ""
    assert spread([0.5, 0.5], ".1f") == "0.5" and spread([0.5], ".1f", True) == "0.5"
    assert spread([0.5, 0.5], ".1f", True) == "0.5 (0.5 to 0.5)"


def test_rank_correlation_by_hand():
    import report
    assert report.spearman([1, 2, 3], [10, 20, 15]) == 0.5
    assert report.spearman([1, 2], [5, 5]) == 0.0
    assert abs(report.spearman([1, 2, 3], [4, 3, 1]) + 1) < 1e-12
    # ranks 1, 2.5, 2.5, 4 and 1, 2, 3, 4: 4.5 / sqrt(4.5 * 5)
    assert abs(report.spearman([1, 3, 3, 7], [1, 2, 3, 4]) - 0.9 ** 0.5) < 1e-12
    rewards = [0, 0, 1, 1, 1, 1, 1, 1]
    assert report.first_step(rewards, 0.6) == 5 and report.first_step(rewards, 1.0) == 7
    assert report.first_step(rewards, 1.1) is None
