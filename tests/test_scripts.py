"""scripts/: what the experiments are made of."""
import collections
import csv
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

import kk_gen
from sample import load_tokenizer
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
    subprocess.run([sys.executable, os.path.join(ROOT, "kk_gen.py"), "--people", "2", "--num",
                    "150", "--template", "compact", "--out", tmp_path / "test.jsonl"],
                   check=True, capture_output=True)
    held_out = {json.loads(line)["prompt"] for line in open(tmp_path / "test.jsonl")}
    flags = ("--num", 500, "--people", "2=1", "--shares", "table=1")
    assert held_out & {row["prompt"] for row in world(tmp_path, *flags)}
    rows = world(tmp_path, *flags, "--exclude", tmp_path / "test.jsonl")
    assert not held_out & {row["prompt"] for row in rows}
    problem = {**rows[0], "task": "kk"}
    assert reward(problem, rows[0]["response"], True) == 1


def test_mistakes_are_one_line(tmp_path):
    for flags, words in ((("--num", 5, "--shares", "table"), "search=60 table=40"),
                         (("--num", 5, "--shares", "prose=1"), "of search, table"),
                         (("--num", 5, "--shares", "table=1", "--people", "3"), "2=60 3=40"),
                         (("--tokens", 5, "--shares", "table=1", "--tokenizer", "nowhere"), "nowhere"),
                         (("--num", 5, "--shares", "table=1", "guess=0.01"), "less than one guess"),
                         (("--num", 0, "--shares", "table=1"), "either --num or --tokens"),
                         (("--num", 5, "--tokens", 9, "--shares", "table=1"), "either --num or")):
        done = world(tmp_path, *flags)
        assert done.returncode == 2 and words in done.stderr and done.stderr.count("\n") == 1


# ---- keep the correct, split the official ----------------------------------------------------
def script(name, *flags):
    done = subprocess.run([sys.executable, os.path.join(ROOT, "scripts", name), *map(str, flags)],
                          capture_output=True, text=True)
    return done


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path):
    return [json.loads(line) for line in open(path)]


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
        done = script("keep_correct.py", "--data", first, second, "--out", out, *flags)
        assert done.returncode == 0, done.stderr
        return read(out)

    rows = kept()
    assert sorted(row["id"] for row in rows) == ["a", *(f"d{i}" for i in range(6))]
    assert all(row["reward"] == 1 and row["tokens"] and "logprobs" not in row for row in rows)
    assert [row["id"] for row in kept("--seed", 1)] != [row["id"] for row in rows]
    assert kept() == rows and kept("--num", 3) == rows[:3]
    assert len(kept("--per-problem", 0)) == 7           # the same answer twice is one
    assert sorted(row["id"] for row in kept("--wrong", "--per-problem", 0)) == ["a", "b", "c"]
    done = script("keep_correct.py", "--data", write(tmp_path / "3.jsonl", [rollout("b", "knave")]),
                  "--out", tmp_path / "none.jsonl")
    assert done.returncode == 2 and "none of 1 answers is correct" in done.stderr
    done = script("keep_correct.py", "--data", write(tmp_path / "4.jsonl", [{"id": "b"}]), "--out", out)
    assert done.returncode == 2 and "4.jsonl:1" in done.stderr and done.stderr.count("\n") == 1


def test_official_files_are_split_and_boxed(tmp_path):
    math = [{"problem": f"{i} + 1?", "level": "Level 2", "unique_id": f"m{i}",
             "solution": f"It is $\\boxed{{{i + 1}}}$."} for i in range(10)]
    source = write(tmp_path / "math.jsonl", math)
    done = script("problems.py", "--source", source, "--parts", "sft=3", "val=2", "rl=0", "--out",
                  tmp_path)
    assert done.returncode == 0, done.stderr
    parts = [read(tmp_path / f"{name}.jsonl") for name in ("sft", "val", "rl")]
    assert [len(part) for part in parts] == [3, 2, 5]
    assert sorted(row["id"] for part in parts for row in part) == sorted(f"m{i}" for i in range(10))
    for row in sum(parts, []):
        assert row["response"].startswith("\nIt is") and reward(row, row["response"], True) == 1
        assert row["prompt"].startswith("<|im_start|>system") and row["level"] == 2
    script("problems.py", "--source", tmp_path / "rl.jsonl", "--template", "base", "--no-shuffle",
           "--parts", "base=0", "--out", tmp_path)      # what is ours by now, with other prompts
    for chat, base in zip(parts[2], read(tmp_path / "base.jsonl"), strict=True):
        assert base == {**chat, "prompt": f"Question:\n{chat['problem']}\nAnswer:\n"
                                          "Let's think step by step."}
    gsm = write(tmp_path / "gsm.jsonl", [{"question": "6 * 200?", "answer": "<<6*200=1200>>It is "
                                          "1200.\n#### 1,200"}])
    script("problems.py", "--source", gsm, "--template", "base", "--parts", "all=0", "--out", tmp_path)
    row = read(tmp_path / "all.jsonl")[0]
    assert row["response"] == "\nIt is 1200.\n\\boxed{1200}" and row["prompt"].startswith("Question:")
    assert reward(row, row["response"], True) == 1
    for flags, words in ((("--parts", "a=11"), "too few"), (("--parts", "a=0", "b=0"), "at most is 0"),
                         (("--parts", "a"), "sft=900"), (("--parts", "a=1", "--template", "x"), "chat")):
        done = script("problems.py", "--source", source, "--out", tmp_path, *flags)
        assert done.returncode == 2 and words in done.stderr and done.stderr.count("\n") == 1


def test_our_puzzles_get_another_prompt(tmp_path):
    subprocess.run([sys.executable, os.path.join(ROOT, "kk_gen.py"), "--people", "3", "--num", "4",
                    "--out", tmp_path / "chat.jsonl"], check=True, capture_output=True)
    script("problems.py", "--source", tmp_path / "chat.jsonl", "--template", "base", "--no-shuffle",
           "--parts", "base=0", "--out", tmp_path)
    for chat, base in zip(read(tmp_path / "chat.jsonl"), read(tmp_path / "base.jsonl"), strict=True):
        assert (chat["id"], chat["gold"]) == (base["id"], base["gold"])
        assert base["prompt"].startswith("Question:") and chat["quiz"] in base["prompt"]
    script("problems.py", "--source", tmp_path / "chat.jsonl", "--no-shuffle", "--parts", "same=0",
           "--out", tmp_path)
    assert read(tmp_path / "same.jsonl") == read(tmp_path / "chat.jsonl")


# ---- the experiments -------------------------------------------------------------------------
SMALL = {"tiny": ("redistill_tiny.sh", {"STEPS": "2", "PROMPTS": "8", "EXAMPLES": "24", "TEST": "8",
                                        "TRACE": ""}),
         "selection": ("selection.sh {}/tiny", {"WHEN": "last", "BY": "effect", "PROBLEMS": "8"}),
         "kk": ("redistill_kk.sh", {"SMOKE": "1"}), "math": ("redistill_math.sh", {"SMOKE": "1"}),
         "mixture": ("pretrain_mixture.sh", {"LESSONS": "20000", "TOKENS": "10000", "WIDTHS": "32 48",
                                             "SHARES": "guess=50 worked=40 table=10 search=0",
                                             "DATA": "{}/puzzles"}),
         "echo": ("echo_chamber.sh", {"BASE": "assets/tiny_base", "STEPS": "2", "PROMPTS": "4",
                                      "AT": "1 2", "PROBLEMS": "4", "SAMPLES": "4", "ROUNDS": "1",
                                      "SEEDS": "1", "KLS": "1e-2"}),
         "real": ("echo_chamber.sh", {"BASE": "tests/golden", "TRAIN": "{}/gsm.jsonl", "TEST":
                                      "{0}/gsm.jsonl {0}/math.jsonl", "STEPS": "1", "PROMPTS": "4",
                                      "AT": "1", "PROBLEMS": "8", "SAMPLES": "2", "ROUNDS": "1",
                                      "SEEDS": "1", "KLS": "0", "LONGEST": "8", "TEMPLATE": "plain", "PROMPT": "99",
                                      "ALGORITHMS": "grpo expert"})}


class Experiments:
    """All of them at toy size, one after another beside the other tests. The lab is stopped once."""

    def __init__(self, runs):
        self.runs, self.running, self.given_up = runs, None, False
        write(runs / "gsm.jsonl", [{"question": f"{i} + 2?", "answer": f"#### {i + 2}"}
                                   for i in range(6)])
        write(runs / "math.jsonl", [{"problem": f"{i}*2", "solution": f"\\boxed{{{2 * i}}}",
                                     "level": "Level 2", "type": "Algebra"} for i in range(6)])
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def start(self, name):
        command, settings = SMALL[name]
        script, *arguments = command.format(self.runs).split()
        settings = {key: value.format(self.runs) for key, value in settings.items()}
        with open(self.runs / f"{name}.out", "w") as out, open(self.runs / f"{name}.err", "w") as error:
            self.running = subprocess.Popen(
                ["bash", os.path.join(ROOT, "scripts", script), *arguments], stdout=out, stderr=error,
                start_new_session=True,     # and Ctrl-C is heard even where the tests are told not to
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
                env={**os.environ, **settings, "OUT": str(self.runs / name), "OMP_NUM_THREADS": "1"})

    def end(self, name):
        code = self.running.wait()
        return (*((self.runs / f"{name}.{what}").read_text() for what in ("out", "err")), code)

    def run(self):
        self.start("tiny")
        while self.running.poll() is None and "[8/" not in (self.runs / "tiny.out").read_text():
            time.sleep(0.05)
        self.signal(signal.SIGINT)
        self.stopped, self.ended = self.end("tiny"), {}
        for name in SMALL:
            if not self.given_up:
                self.start(name)
                self.ended[name] = self.end(name)

    def signal(self, number):
        try:
            os.killpg(self.running.pid, number)
        except ProcessLookupError:
            pass

    def give_up(self):
        self.given_up = True
        if self.thread.is_alive():
            self.signal(signal.SIGKILL)


@pytest.fixture(scope="session")
def experiments(pytestconfig):
    found = pytestconfig.experiments
    found.thread.join()
    return found.runs, found.stopped, found.ended


def test_the_lab_stops_and_goes_on(experiments):
    runs, (_, error, code), ended = experiments
    assert code == 130 and "the same command goes on" in error
    out, error, code = ended["tiny"]
    assert code == 0, error[-2000:]
    assert "[1/" not in out and "[8/" in out        # what was there was not made again


def test_the_lab_reports_what_it_did(experiments):
    runs, _, ended = experiments
    report = (runs / "tiny" / "report.md").read_text()
    assert report in ended["tiny"][0]
    with open(runs / "tiny" / "models.csv") as file:
        rows = list(csv.DictReader(file))
    models = {row["model"] for row in rows}
    assert models == {"base", "sft_short", "sft_long", "rl_base", "rl_short", "rl_long", "sft_a",
                      "sft_b", "sft_foreign", "sft_wrong", "sft_guess", "rl_b"}
    for row in rows:                                # each number is that of the answers on disk
        answers = [one for one in read(runs / "tiny" / "eval" / f"{row['model']}.{row['decoding']}.jsonl")
                   if row["level"] in ("all", str(one["level"]))]
        assert len(answers) == int(row["n"])
        right = sum(reward(one, one["response"], one["finished"]) for one in answers) / len(answers)
        assert abs(right - float(row["accuracy"])) < 1e-4
        styles = collections.Counter(kk_gen.style_of(one["response"]) for one in answers)
        for style, count in styles.items():
            assert abs(count / len(answers) - float(row[f"share_{style}"])) < 1e-4
    effects = {row["model"] for row in rows if row["effect"]}
    assert effects == {model for model in models if model.startswith("sft")}
    with open(runs / "tiny" / "curves.csv") as file:
        assert len(list(csv.DictReader(file))) == 3 * 2 + 1    # half as many from re-distilled B
    assert "rank correlation of gain and effect, 7 datasets" in report
    assert "re-distilled, B" in report and "| level 4, sampled |" in report


def test_examples_of_the_lab_are_what_they_are_called(experiments):
    data = experiments[0] / "tiny" / "data"
    for name, style in (("short", "table"), ("long", "search"), ("guess", "guess"),
                        ("foreign", "search")):
        rows = read(data / f"{name}.jsonl")
        assert {kk_gen.style_of(row["response"]) for row in rows} == {style}
        assert all(kk_correct(row["response"], row["gold"]) for row in rows)
    b, foreign, wrong, test = ([row["id"] for row in read(data / f"{name}.jsonl")]
                               for name in ("b", "foreign", "wrong", "test"))
    assert sorted(b) == sorted(foreign) and len(set(b)) == len(b)      # the very problems of B
    assert not set(test) & set(b + wrong)
    assert all(kk_correct(row["response"], row["gold"]) for row in read(data / "b.jsonl"))
    assert not any(kk_correct(row["response"], row["gold"]) and row["finished"]
                   for row in read(data / "wrong.jsonl"))


def test_quarters_chosen_by_effect_are_compared_with_as_many(experiments):
    runs, _, ended = experiments
    _, error, code = ended["selection"]
    assert code == 0, error[-2000:]
    folder = runs / "tiny" / "selection"
    pool, highest, lowest, drawn = (read(folder / f"{name}.jsonl") for name in (
        "last", "last_effect_highest", "last_effect_lowest", "last_random"))
    assert len(highest) == len(lowest) == len(drawn) == round(len(pool) / 4) > 2
    assert min(row["effect"] for row in highest) > max(row["effect"] for row in lowest)
    texts = {(row["id"], row["response"]) for row in pool}
    assert {(row["id"], row["response"]) for row in highest + lowest + drawn} <= texts
    for name, rows in (("effect_highest", highest), ("effect_lowest", lowest), ("random", drawn)):
        made = json.loads((folder / f"sft_last_{name}" / "settings.json").read_text())["settings"]
        assert made["data"] == [str(folder / f"last_{name}.jsonl")]
        assert f"last_{name} " in (folder / "report.txt").read_text()


@pytest.mark.parametrize("name", ("kk", "math"))
def test_the_papers_experiments_run_at_toy_size(experiments, name):
    runs, _, ended = experiments
    out, error, code = ended[name]
    assert code == 0, error[-2000:]
    assert "re-distilled, B" in (runs / name / "report.md").read_text()
    log = (runs / name / "sft_short" / "settings.json").read_text()
    assert json.loads(log)["settings"]["lr"] == 1e-5                   # the paper's, not the toy's
    if name == "kk":
        assert json.loads((runs / name / "sft_a" / "settings.json").read_text())["settings"]["batch"] == 64
        assert len(read(runs / name / "data" / "short.jsonl")) == 27


def test_mixtures_are_pretrained_at_every_width(experiments):
    runs, _, ended = experiments
    out, error, code = ended["mixture"]
    assert code == 0, error[-2000:]
    for name, shares in (("lessons", {"worked": 80, "table": 20}),
                         ("mixture", {"guess": 50, "worked": 40, "table": 10})):
        rows = read(runs / "mixture" / f"{name}.jsonl")
        styles = collections.Counter(row["style"] for row in rows)
        assert styles == {style: share * len(rows) // 100 for style, share in shares.items()}
        held_out = {row["prompt"] for part in ("rl", "test") for row in read(
            runs / "puzzles" / f"{part}.jsonl")}
        assert not held_out & {row["prompt"] for row in rows}
    steps = []
    for width in (32, 48):
        folder = runs / "mixture" / f"w{width}" / "mixture"
        about = json.loads((folder / "model" / "config.json").read_text())
        assert (about["hidden_size"], about["rope_theta"]) == (width, 500.0)
        made = json.loads((folder / "settings.json").read_text())["settings"]
        assert made["model"].endswith(f"w{width}/lessons/model")
        steps.append(len(read(folder / "metrics.jsonl")))
    assert steps[0] == steps[1]                                     # the same documents


def test_echo_chamber_reports_what_was_answered(experiments):
    runs, _, ended = experiments
    out, error, code = ended["echo"]
    assert code == 0, error[-2000:]
    with open(runs / "echo" / "evals.csv") as file:
        rows = list(csv.DictReader(file))
    assert {(row["algorithm"], row["kl_weight"], row["step"]) for row in rows} == {
        (*kind, step) for kind in (("grpo", "1e-2"), ("ppo", "1e-2")) for step in "012"} | {
        ("expert", "0", step) for step in "01"}
    for row in rows:
        assert int(row["n"]) == {"easy": 16, "hard": 8}[row["test"]]
        share = {name[6:]: float(value) for name, value in row.items()
                 if name.startswith("share_") and value}
        assert abs(sum(share.values()) - 1) < 1e-3 and "guess" in share
        right = sum(share[name] * float(row[f"right_in_{name}"]) for name in share)
        assert abs(right - float(row["accuracy"])) < 1e-3 and row["accuracy"] == row["pass@1"]
        assert float(row["pass@4"]) >= float(row["pass@2"]) >= float(row["pass@1"])
    with open(runs / "echo" / "curves.csv") as file:
        curves = list(csv.DictReader(file))
    for row in curves:      # Expert Iteration's are counted anew from what was sampled
        assert int(row["samples"]) == (64 if row["algorithm"] == "expert" else 32 * int(row["step"]))
    sampled = read(runs / "echo" / "base-0" / "expert-kl0-1" / "round-1" / "rollouts.jsonl")
    styles = collections.Counter(kk_gen.style_of(row["response"]) for row in sampled)
    expert = next(row for row in curves if row["algorithm"] == "expert")
    assert abs(styles["guess"] / len(sampled) - float(expert["share_guess"])) < 1e-4
    assert (runs / "echo" / "report.md").read_text() in out


def test_echo_chamber_runs_on_official_files(experiments):
    """GSM8K to train on, GSM8K (easy) and MATH (hard) to test on; no answer is right, and it ends."""
    runs, _, ended = experiments
    out, error, code = ended["real"]
    assert code == 0, error[-2000:]
    assert "no answer is right; the model stays as it is" in error
    with open(runs / "real" / "evals.csv") as file:
        rows = list(csv.DictReader(file))
    assert {row["test"] for row in rows} == {"easy", "hard"}
    assert {row["task"] for row in read(runs / "real" / "data" / "test.jsonl")} == {"gsm8k", "math"}
    about = json.loads((runs / "real" / "base-0" / "grpo-kl0-1" / "settings.json").read_text())
    assert about["settings"]["lr"] == 1e-6 and about["settings"]["temperature"] == 0.7


def test_puzzles_are_there_whole_or_not_at_all(tmp_path):
    """Regression: rl.jsonl, by which the lab knows its data, came before the test was cut."""
    fake = tmp_path / "python"              # dies where the last file would be made
    fake.write_text(f'#!/bin/sh\ncase "$*" in *"--seed 3"*) exit 9;; esac\n'
                    f'exec {sys.executable} "$@"\n')
    fake.chmod(0o755)

    def run(path):
        return subprocess.run(["bash", os.path.join(ROOT, "scripts", "tiny_data.sh"), tmp_path / "d",
                               "8", "5"], env={**os.environ, "PATH": path}, capture_output=True)

    assert run(f"{tmp_path}:{os.environ['PATH']}").returncode == 9
    assert not (tmp_path / "d" / "rl.jsonl").exists()
    assert run(f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}").returncode == 0
    assert [len(read(tmp_path / "d" / f"{name}.jsonl")) for name in ("test", "sft", "rl")] == [
        12, 5, 3000]


def test_stages_go_on_where_they_stopped(tmp_path):
    """Regression: --resume is for our commands; a script in between would stop at it."""
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "metrics.jsonl").touch()
    (tmp_path / "done").touch()
    script = tmp_path / "experiment.sh"
    script.write_text("""set -euo pipefail
OUT=$1 REPORT=$1/report LEVEL=${LEVEL:-1} settings=(LEVEL)
. "$2"
python() { echo "python got $*"; }
experiment() {
    stage 5 "$OUT/done" "what is there" false
    stage 5 "$OUT/half/model" "ours" python sft.py --lr 1
    stage 5 "$OUT/half/model" "a script" env echo got
    stage 5 "$OUT/half/model" "ours" python again
}
conduct "${@:3}"
""")

    def run(*flags, **env):
        return subprocess.run(["bash", script, tmp_path, os.path.join(ROOT, "scripts", "stages.sh"),
                               *flags], env={**os.environ, **env}, capture_output=True, text=True)

    done = run()
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if "got" in line]
    assert lines == ["python got sft.py --lr 1 --resume", "got"]
    assert "[2/3] ours" in done.stdout and "[3/3] a script" in done.stdout
    assert [line for line in run("--dry-run").stdout.splitlines() if line[:1] == "#"] == [
        "# 1. what is there", "# 2. ours", "# 3. a script"]
    other = run(LEVEL="2")
    assert other.returncode == 2 and "made with other settings" in other.stderr
    assert (tmp_path / "settings.txt").read_text() == "LEVEL: 1\n"
    assert run("--fast").returncode == 2


def test_echo_chamber_refuses_what_cannot_be(tmp_path):
    for wrong, words in (({"AT": "9", "STEPS": "4"}, "AT=9: there are STEPS=4"),
                         ({"SAMPLES": "1"}, "SAMPLES=1: at least 2"), ({"ROUNDS": "7"}, "ROUNDS=7"),
                         ({"TEST": "x"}, "TEST=x is for TRAIN"), ({"TRAIN": "x"}, "TRAIN needs a BASE"),
                         ({"BASE": "nowhere"}, "BASE=nowhere: no such model"),
                         ({"BASE": "tests/golden", "TRAIN": "README.md", "TEST": "nowhere"},
                          "nowhere: no such file")):
        done = subprocess.run(["bash", os.path.join(ROOT, "scripts", "echo_chamber.sh")],
                              env={**os.environ, **wrong, "OUT": str(tmp_path / "out")},
                              capture_output=True, text=True)
        assert done.returncode == 2 and words in done.stderr and done.stderr.count("\n") == 1
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("script, given, absent", [
    ("expert_iteration", {"BASE": "x"}, "DATA"), ("redistill_kk", {}, "BASE"),
    ("redistill_math", {"BASE": "x", "TEST": "x"}, "TRAIN")])
def test_a_variable_that_must_be_given(script, given, absent, tmp_path):
    bare = {name: value for name, value in os.environ.items()
            if name not in ("BASE", "DATA", "TRAIN", "TEST", "SMOKE")}
    done = subprocess.run(["bash", os.path.join(ROOT, "scripts", f"{script}.sh")],
                          env={**bare, **given, "OUT": str(tmp_path / "out")},
                          capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith(f"{absent} is not set")
    assert done.stderr.count("\n") == 1 and not (tmp_path / "out").exists()


def test_experiments_say_what_they_would_do(tmp_path):
    env = {**os.environ, "BASE": os.path.join(ROOT, "tests/golden"), "OUT": str(tmp_path / "out")}

    def run(name, *flags, **more):
        return subprocess.run(["bash", os.path.join(ROOT, "scripts", f"redistill_{name}.sh"), *flags],
                              env={**env, **more}, capture_output=True, text=True)

    done = run("kk", "--dry-run")
    assert done.returncode == 0 and "python grpo.py --model" in done.stdout, done.stderr
    assert "memory to train" in done.stderr and "h for 125 steps" in done.stdout
    assert not (tmp_path / "out").exists()
    assert run("tiny", "--steps", "3").returncode == 2
    done = run("tiny", BASE="nowhere")                  # and OUT is free for the right one
    assert done.returncode == 2 and "nowhere: no such model" in done.stderr
    assert not (tmp_path / "out").exists()
    os.makedirs(tmp_path / "out")
    (tmp_path / "out" / "settings.txt").write_text("BASE: another\n")
    done = run("tiny")
    assert done.returncode == 2 and "made with other settings" in done.stderr


# ---- numbers of the reports ------------------------------------------------------------------
def test_endpoints_by_hand():
    sys.path.insert(0, os.path.join(ROOT, "scripts"))
    import echo_report as E

    def level(n, accuracy, **styles):
        return {"n": n, "accuracy": accuracy, "pass@1": accuracy, "pass@4": 0.9, "majority@4": 0.3,
                "styles": {name: {"share": share, "right": right}
                           for name, (share, right) in styles.items()}}
    # 20 answers, 12 in a (4 of them and 3 of them right), 8 in b
    both = E.joined([level(10, 0.5, a=(0.4, 1.0), b=(0.6, 1 / 6)), level(10, 0.3, a=(0.8, 0.375),
                                                                          b=(0.2, 0.0))])
    assert both["n"] == 20 and both["accuracy"] == 0.4
    assert both["styles"]["a"]["share"] == 0.6
    assert abs(both["styles"]["a"]["right"] - 7 / 12) < 1e-12
    before, after = both, level(20, 0.7, a=(0.1, 0.5), b=(0.9, 0.7))
    curve = [{"samples": 128 * i, "styles": {"b": {"share": share, "right": 0.5}}}
             for i, share in enumerate((0.5, 0.79, 0.8, 0.7), 1)]
    for row in curve:
        row["step"] = row["samples"] // 128
    run = {"tests": {0: {"easy": before}, 4: {"easy": after}}, "curve": curve,
           "after": {i: 128 * i for i in range(5)}}
    found = E.endpoints(run)
    assert (found["winner"], found["its share"], found["its share before"]) == ("b", 0.9, 0.4)
    assert found["the most accurate before"] == "a" and found["samples to collapse"] == 256
    for row in curve:                                   # then it is seen in the test alone
        row["styles"]["b"]["share"] = 0.7
    assert E.collapse(run, "b") == 512
    assert E.collapse({**run, "tests": {0: {"easy": before}}}, "b") is None
    assert E.collapse(run, "c") is None
    assert found["accuracy, easy"] == (0.4, 0.7) and found["pass@4, easy"] == (0.9, 0.9)
    assert E.spread([1.0, None, 3.0], ".0f") == "2 (1 to 3); never in 1"
    assert E.spread([None], ".0f") == "never"


def test_rank_correlation_by_hand():
    sys.path.insert(0, os.path.join(ROOT, "scripts"))
    import report
    assert report.ranks([3.0, 1.0, 3.0, 7.0]) == [2.5, 1, 2.5, 4]
    assert report.spearman([(1, 10), (2, 20), (3, 15)]) == 0.5
    assert report.spearman([(1, 5), (2, 5)]) == 0.0
    assert abs(report.spearman([(1, 4), (2, 3), (3, 1)]) + 1) < 1e-12
    curve = [{"step": i + 1, "reward": reward} for i, reward in enumerate((0, 0, 1, 1, 1, 1, 1, 1))]
    assert report.first_step(curve, 0.6) == 5 and report.first_step(curve, 1.0) == 7
    assert report.first_step(curve, 1.1) is None


def test_expert_iteration_goes_round(tmp_path):
    env = {**os.environ, "OUT": str(tmp_path / "out"), "ROUNDS": "2", "PROBLEMS": "8", "SAMPLES": "4",
           "FROM": "base", "BASE": "assets/tiny_base", "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, os.path.join(ROOT, "kk_gen.py"), "--people", "3", "--num", "20",
                    "--template", "compact", "--seed", "9", "--out", tmp_path / "p.jsonl"],
                   check=True, capture_output=True)

    def run(**more):
        return subprocess.run(["bash", os.path.join(ROOT, "scripts", "expert_iteration.sh")], cwd=ROOT,
                              env={**env, "DATA": str(tmp_path / "p.jsonl"), **more},
                              capture_output=True, text=True)

    done = run()
    assert done.returncode == 0, done.stderr
    first, second = tmp_path / "out" / "round-1", tmp_path / "out" / "round-2"
    asked = [{row["id"] for row in read(folder / "problems.jsonl")} for folder in (first, second)]
    assert len(asked[0]) == len(asked[1]) == 8 and not asked[0] & asked[1]
    for folder, ids in zip((first, second), asked):
        kept = read(folder / "correct.jsonl")
        assert {row["id"] for row in kept} <= ids and all(row["reward"] == 1 for row in kept)
        assert len({(row["id"], row["response"]) for row in kept}) == len(kept)

    def made_from(file, name):
        return json.loads(file.read_text())["settings"][name]
    assert made_from(second / "rollouts.jsonl.config.json", "model").endswith("round-1/sft/model")
    assert made_from(second / "sft" / "settings.json", "model") == "assets/tiny_base"
    again = run()                                       # all is there
    assert again.returncode == 0 and again.stdout.count("\n") == 1
    assert run(FROM="start").returncode == 2
