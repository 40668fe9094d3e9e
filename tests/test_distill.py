"""distill.py: the gradient of the KL by enumeration, teachers of several tasks, whole runs.
scripts/drift.py: the distance to the base, against a slow computation."""
import importlib
import itertools
import json
import shlex
import subprocess
import sys

import numpy
import pytest
import torch

import distill
import model as M
from engine.examples import as_sequences, read_examples
from engine.flags import parse
from engine.tokenizer import encode_prompts, load_tokenizer
from engine.training import teacher_directories
from helpers import (ALONE, POLICY_FLAGS, ROOT, Frozen, assert_equal_weights, assert_same, finish,
                     gradients, metrics, naive_logprobs, one_line, read, repeats, run, run_here,
                     tiny, weights, write)

WORDS = {"vocab_size": 3, "hidden_size": 16, "num_hidden_layers": 1}
PROMPT, LONGEST = [1, 2], 3         # token 0 ends an answer
ANSWERS = [[*body, 0] for n in range(LONGEST) for body in itertools.product([1, 2], repeat=n)] \
    + [list(body) for body in itertools.product([1, 2], repeat=LONGEST)]


def method(monkeypatch, student, teachers, **changes):
    """Distillation as a run makes it, with these teachers in the place of directories."""
    monkeypatch.setattr(distill, "load", lambda path, *_: teachers[path])
    names = list(teachers) if len(teachers) == 1 else [f"{name}={name}" for name in teachers]
    settings = distill.Settings(**{"model": "", "data": [], "out": "", "teacher": names,
                                   "norm": "constant", "max_new_tokens": 1, **changes})
    return distill.Distillation(settings, ALONE, student, Frozen(student))


def rollout(tokens, logprobs=(), **fields):
    return {"prompt_tokens": PROMPT, "tokens": tokens, "logprobs": logprobs or [0.0] * len(tokens),
            "reward": 0.0, "task": "kk", "level": 3, **fields}


def gradient(one, groups):
    one.update(groups, 1e-3)
    return one.optimizer.seen[-1]


def of_each_token(model, temperature):
    """log p of every token of every answer, with a gradient."""
    return [naive_logprobs(model, torch.tensor([PROMPT + a]), temperature)[0, 1:] for a in ANSWERS]


# ---- the gradient ----------------------------------------------------------------------------
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("discount", [1.0, 0.0])
def test_the_expected_gradient_is_that_of_the_kl(monkeypatch, temperature, discount):
    """Every answer of a vocabulary of 3, each as often as the student samples it."""
    student, teacher = tiny(1, torch.float64, **WORDS), tiny(2, torch.float64, **WORDS)
    own = of_each_token(student, temperature)
    theirs = [logp.detach() for logp in of_each_token(teacher, temperature)]
    chances = torch.stack([logp.sum() for logp in own]).exp()
    assert abs(chances.sum().item() - 1) < 1e-12            # every answer there is
    if discount:
        kl = sum(p * (s.sum() - t.sum()) for p, s, t in zip(chances, own, theirs))
    else:       # the KL of each next token, at the places that the student reaches now
        kl = sum(s[:i].sum().exp().detach() * s[i].exp() * (s[i] - t[i])
                 for i in range(LONGEST) for s, t in one_for_each_start(own, theirs, i))
    kl.backward()
    expected = gradients(student)
    assert max(g.abs().max() for g in expected.values()) > 1e-3

    one = method(monkeypatch, student, {"t": teacher}, discount=discount, temperature=temperature)
    [answers] = one.credit([[rollout(a) for a in ANSWERS]])
    for answer, p in zip(answers, chances.detach()):
        answer.advantage = answer.advantage * p
    found = gradient(one, [answers])
    assert_same({name: g * len(ANSWERS) for name, g in found.items()}, expected, 1e-12)


def one_for_each_start(own, theirs, i):
    """(student's, teacher's) log-probs of one answer for each way to begin with i + 1 tokens."""
    found = {tuple(a[:i + 1]): (s, t) for a, s, t in zip(ANSWERS, own, theirs) if len(a) > i}
    return found.values()


def test_advantages_by_hand(monkeypatch):
    student, teacher = tiny(1, **WORDS), tiny(2, **WORDS)
    tokens = [1, 2, 0]
    text = torch.tensor([PROMPT + tokens])
    d = (naive_logprobs(teacher, text) - naive_logprobs(student, text))[0, 1:].detach()
    for discount, expected in ((0.0, d), (0.5, [d[0] + d[1] / 2 + d[2] / 4, d[1] + d[2] / 2, d[2]]),
                               (1.0, [d.sum(), d[1] + d[2], d[2]])):
        one = method(monkeypatch, student, {"t": teacher}, discount=discount)
        [[answer]] = one.credit([[rollout(tokens, [-1.0, -2.0, -3.0])]])
        assert torch.allclose(answer.advantage, torch.as_tensor(expected), atol=1e-5)
        assert answer.logprobs.tolist() == [-1.0, -2.0, -3.0]
        assert abs(one.update([[answer]], 1e-3)["teacher_kl"] + float(d.mean())) < 1e-5


@pytest.mark.parametrize("pack", [True, False])
def test_a_teacher_that_is_the_student_teaches_exactly_nothing(monkeypatch, pack):
    student, same = tiny(1), tiny(1)
    one = method(monkeypatch, student, {"t": same}, pack=pack, micro_tokens=25)
    [answers] = one.credit([[rollout(list(range(3, 3 + n))) for n in range(1, 12)]])
    assert all(answer.advantage.eq(0).all() for answer in answers)
    assert all(g.eq(0).all() for g in gradient(one, [answers]).values()) and one.teacher_kl == 0


def test_every_problem_has_the_teacher_of_its_task_or_level(monkeypatch):
    student, a, b, c = (tiny(seed, **WORDS) for seed in range(4))
    rollouts = [rollout([1, 0]), rollout([1, 0], task="math"), rollout([1, 0], level=4)]
    for names, teachers in ((("kk", "math"), (a, b, a)), (("3", "math", "4"), (a, b, c))):
        one = method(monkeypatch, student, dict(zip(names, (a, b, c))))
        found = one.judge(rollouts, [distill.as_sequence(row) for row in rollouts])
        for row, teacher in zip(found, teachers):
            expected = naive_logprobs(teacher, torch.tensor([PROMPT + [1, 0]]))[0, 1:]
            assert torch.allclose(row, expected, atol=1e-5)


def test_teachers_by_name(tmp_path, monkeypatch):
    assert teacher_directories(["a/b"]) == {"": "a/b"}
    assert teacher_directories(["kk=a", "math=b"]) == {"kk": "a", "math": "b"}
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lr=3").mkdir()
    assert teacher_directories(["lr=3"]) == {"": "lr=3"}
    for wrong in (["a", "b"], ["kk=a", "kk=b"], ["kk="]):
        with pytest.raises(ValueError, match="one directory, or several"):
            teacher_directories(wrong)


# ---- the command -----------------------------------------------------------------------------
@pytest.fixture(scope="module")
def teacher(toy):
    """A model that repeats the right digit."""
    write(toy / "right.jsonl", repeats(400, seed=5))
    made = run(toy, "--model", "base/model", "--data", "right.jsonl", "--out", "teacher", "--lr",
               "2e-3", "--batch", "16", "--epochs", "4", "--max-length", "128")
    assert made.returncode == 0, made.stderr
    return "teacher/model"


def test_a_student_becomes_as_good_as_its_teacher(toy, teacher, tmp_path):
    done = run(toy, *POLICY_FLAGS, "--teacher", teacher, "--out", tmp_path / "r", "--steps", "40",
               "--eval", "held_out.jsonl", "--eval-n", "4", "--eval-temperature", "1",
               "--eval-max-new-tokens", "12", script="distill.py")
    assert done.returncode == 0, done.stderr
    found = metrics(tmp_path / "r")
    assert found[0]["eval"]["accuracy"] < 0.5 and found[-1]["eval"]["accuracy"] > 0.7
    assert found[-1]["teacher_kl"] < 0.5 * found[1]["teacher_kl"]
    assert found[-1]["reward"] > 0.7                        # logged, though it teaches nothing


def test_killed_and_resumed_is_the_same_run_bit_by_bit(toy, teacher, tmp_path):
    flags = (*POLICY_FLAGS, "--teacher", teacher, "--steps", "12", "--save-every", "2",
             "--discount", "0.5", "--passes", "2", "--minibatches", "2")
    finish(toy, tmp_path / "whole", *flags, script="distill.py")
    finish(toy, tmp_path / "killed", *flags, script="distill.py", kills=1, seed=1)
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "killed")
    assert_equal_weights(weights(tmp_path / "whole"), weights(tmp_path / "killed"))


def test_two_ranks_train_the_same_student_as_one(toy, teacher, tmp_path):
    """With a teacher for each level of the problems."""
    for ranks in (1, 2):
        done = run(toy, *POLICY_FLAGS, "--teacher", f"0={teacher}", "1=base/model", "--out",
                   tmp_path / str(ranks), "--steps", "3", script="distill.py", ranks=ranks)
        assert done.returncode == 0, done.stderr
    for one, two in zip(metrics(tmp_path / "1"), metrics(tmp_path / "2")):
        assert one["reward"] == two["reward"] and one["tokens"] == two["tokens"]
        for name in ("grad_norm", "teacher_kl"):
            assert abs(one[name] / two[name] - 1) < 1e-3, name
    one, two = weights(tmp_path / "1"), weights(tmp_path / "2")
    for key in one:     # A key's bias adds nearly the same to all scores: its steps are rounding.
        assert (one[key] - two[key]).abs().max() < (1e-3 if "k_proj.bias" in key else 1e-5), key


def test_a_run_goes_on_with_the_same_teacher_only(toy, teacher, tmp_path):
    flags = (*POLICY_FLAGS, "--prompts", "4", "--out", tmp_path / "r", "--resume", "--steps")
    assert run(toy, *flags, "1", "--teacher", teacher, script="distill.py").returncode == 0
    again = run(toy, *flags, "2", "--teacher", "base/model", script="distill.py")
    assert again.returncode == 2 and "other settings: teacher was" in again.stderr


@pytest.mark.parametrize("flags, words", [
    (["--teacher", "nowhere"], "nowhere: no such directory"),
    (["--teacher", "other"], "teacher = other: its vocabulary is not that of base/model"),
    (["--teacher", "short"], "teacher = short: its context is 20"),
    (["--teacher", "math=base/model"], "none for problem 0, task gsm8k"),
    (["--teacher", "gsm8k=base/model", "1=base/model"], "no problem is for 1"),
    (["--teacher", "base/model", "--model", ""], "model is empty"),
    (["--teacher", "base/model", "base/model"], "one directory, or several as NAME=DIR"),
    (["--teacher", "base/model", "--discount", "2"], "discount = 2"),
    ([], "--teacher")])
def test_mistakes_are_one_line_before_any_model_is_loaded(toy, tmp_path, monkeypatch, capsys, flags,
                                                          words):
    for name in ("other", "short"):
        folder = toy / name
        folder.mkdir(exist_ok=True)
        for file in ("config.json", "tokenizer.json"):
            text = json.loads((toy / "base" / "model" / file).read_text())
            if name == "short" and file == "config.json":
                text["max_position_embeddings"] = 20
            if name == "other" and file == "tokenizer.json":
                text["model"]["vocab"] = {
                    {"a": "b", "b": "a"}.get(word, word): i
                    for word, i in text["model"]["vocab"].items()}
            (folder / file).write_text(json.dumps(text))
    monkeypatch.setattr("engine.training.load", lambda *a, **k: pytest.fail("a model was loaded"))
    monkeypatch.setattr(distill, "load", lambda *a, **k: pytest.fail("a model was loaded"))
    monkeypatch.chdir(toy)
    with pytest.raises(SystemExit) as end:
        run_here(distill, *POLICY_FLAGS, "--out", tmp_path / "never", *flags)
    assert end.value.code == 2 and words in one_line(capsys)
    assert not (tmp_path / "never").exists()


# ---- how far from the base -------------------------------------------------------------------
def slow_drift(model, base, rows, temperature):
    """Sums of k3 and of log p_model - log p_base of each answer, from all its logits."""
    found = []
    for row in rows:
        prompt = row["prompt_tokens"]
        text = torch.tensor([prompt + row["tokens"]])
        new, old = (naive_logprobs(one, text, temperature)[0, len(prompt) - 1:].double().detach()
                    for one in (model, base))
        r = (old - new).exp()
        found.append([float((r - 1 - r.log()).sum()), float((new - old).sum())])
    return numpy.array(found)


def test_drift_is_what_a_slow_computation_says(toy, teacher, tmp_path, monkeypatch):
    """From answers that drift.py samples itself, and from the same ones in a file."""
    monkeypatch.chdir(toy)
    given = ("--base", "base/model", "--model", "base/model", teacher, "--temperature", "0.8",
             "--micro-tokens", "300")
    made = run(toy, "--model", teacher, "--data", "held_out.jsonl", "--n", "2",
               "--temperature", "0.8", "--max-new-tokens", "12", "--out",
               tmp_path / "answers.jsonl", script="sample.py")
    assert made.returncode == 0, made.stderr
    done = run(toy, *given, "--data", "held_out.jsonl", "--group", "2", "--max-new-tokens", "12",
               "--text", "lessons.jsonl", "--out", tmp_path / "a.jsonl", script="scripts/drift.py")
    assert done.returncode == 0, done.stderr
    again = run(toy, *given, "--rollouts", tmp_path / "answers.jsonl", tmp_path / "answers.jsonl",
                "--no-pack", "--out", tmp_path / "b.jsonl", script="scripts/drift.py")
    assert again.returncode == 0, again.stderr
    [zero, far], [_, far_again] = read(tmp_path / "a.jsonl"), read(tmp_path / "b.jsonl")
    assert zero["kl_per_token"] == zero["k1_per_answer"] == 0 and zero["reward"] < 0.5

    rows, tokenizer = read(tmp_path / "answers.jsonl"), load_tokenizer("base/model")
    for row, ids in zip(rows, encode_prompts(tokenizer, [row["prompt"] for row in rows])):
        row["prompt_tokens"] = ids
    model, base = M.load(teacher), M.load("base/model")
    k3, k1 = slow_drift(model, base, rows, 0.8).T
    for found in (far, far_again):
        assert found["answers"] == 120
        assert found["tokens"] == sum(len(row["tokens"]) for row in rows)
        assert abs(found["kl_per_answer"] / k3.mean() - 1) < 1e-4
        assert abs(found["kl_per_token"] / (k3.sum() / found["tokens"]) - 1) < 1e-4
        assert abs(found["k1_per_answer"] / k1.mean() - 1) < 1e-4
        for error, x in zip(found["standard_errors"], (k3, k1)):     # over problems, of 2 answers each
            assert error == pytest.approx(x.reshape(60, 2).mean(1).std() / 60**0.5, rel=0.15)
        assert abs(found["reward"] - sum(row["reward"] for row in rows) / 120) < 1e-9
    text = as_sequences(read_examples(["lessons.jsonl"]), tokenizer, 0, 128)
    for name, one in (("text_base", base), ("text", model)):
        slow = torch.cat([naive_logprobs(one, torch.from_numpy(s.tokens).long()[None])[
            0, s.start - 1:] for s in text]).mean().item()
        assert abs(far[name]["lessons.jsonl"] / slow - 1) < 1e-4
    assert zero["text"] == zero["text_base"] == far["text_base"] != far["text"]
    assert "text" not in far_again and "lessons.jsonl" in done.stdout


@pytest.mark.parametrize("flags, words", [
    ((), "give --data or --rollouts"),
    (("--data", "held_out.jsonl", "--rollouts", "held_out.jsonl"), "give --data or --rollouts"),
    (("--rollouts", "a", "b"), "2 files of --rollouts for 1 models"),
    (("--rollouts", "held_out.jsonl"), "no field"), (("--text", "none.jsonl"), "cannot read"),
    (("--data", "held_out.jsonl", "--model", "nowhere"), "nowhere")])
def test_drift_refuses_in_one_line(toy, tmp_path, flags, words):
    done = run(toy, "--base", "base/model", "--model", "base/model", "--out", tmp_path / "d.jsonl",
               *flags, script="scripts/drift.py")
    assert done.returncode == 2 and words in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "d.jsonl").exists()


# ---- the experiment --------------------------------------------------------------------------
def test_every_command_of_the_experiment_is_understood():
    """Flags, values and steps of methods.py fit the programs that it calls."""
    done = subprocess.run([sys.executable, "scripts/methods.py", "--dry-run"], cwd=ROOT,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    commands = [shlex.split(line) for line in done.stdout.splitlines() if line.startswith("python")]
    rooms = {name: importlib.import_module(name) for name in ("sft", "grpo", "distill", "effect")}
    seen = set()
    for _, file, *flags in commands:
        if room := rooms.get(file.removesuffix(".py")):
            settings = parse(room.Settings, "", argv=flags)
            seen.add(file)
            for step in getattr(settings, "keep_at", ()):
                assert step < settings.steps
            if hasattr(room, "train"):      # Both kinds of data must leave room for an answer.
                assert getattr(settings, "max_new_tokens", 0) + 112 <= 512
    assert seen == {"sft.py", "grpo.py", "distill.py", "effect.py"}
    made = {flags[flags.index("--out") + 1] for _, _, *flags in commands}
    assert len(made) > 25 and "runs/methods-0/od_both" in made
