"""sft.py: one gradient however the batch is cut, and runs that survive what happens to them."""
import copy
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy
import pytest
import torch

import model as M
import sft
from engine.batches import Sequence, accumulate, response_logprobs
from engine.examples import as_sequences, read_examples
from engine.tokenizer import load_tokenizer
from helpers import (ALONE, CONFIG, GOLDEN, ROOT, assert_equal_weights, assert_same, command, finish,
                     gradients, metrics, naive_logprobs, one_line, repeats, run, run_here,
                     sft_loss_one_by_one, size_of_metrics, tiny, weights, write)


def settings(**changes):
    return sft.Settings(**{"data": [], "out": "", "lr": 1e-3, **changes})


def gradient(model, sequences, settings):
    """Accumulate the gradient of a batch, as a run does; its loss."""
    return accumulate(model, sft.Minibatch(sequences, settings), ALONE, settings)


def random_sequences(n=9, seed=0, longest=40):
    """Prompt lengths from 1, answers from one token; token 0 is the end and would be the pad."""
    rng, sequences = random.Random(seed), []
    for _ in range(n):
        prompt, answer = rng.randint(1, longest // 2), rng.randint(1, longest // 2)
        tokens = [rng.choice([0, rng.randrange(50)]) for _ in range(prompt + answer - 1)] + [0]
        sequences.append(Sequence(numpy.array(tokens, dtype=numpy.int32), prompt))
    return sequences


# ---- the gradient ----------------------------------------------------------------------------
@pytest.mark.parametrize("norm", ["sequence", "token"])
def test_gradient_is_the_definition_however_the_batch_is_cut(norm):
    model, sequences = tiny(dtype=torch.float64), random_sequences()
    loss = sft_loss_one_by_one(model, sequences, norm)
    loss.backward()
    expected = gradients(model)
    for pack, budget, model.checkpointing in itertools.product([True, False], [1, 50, 120, 10**6],
                                                               [True, False]):
        s = settings(norm=norm, pack=pack, micro_tokens=budget)
        assert abs(gradient(model, sequences, s) - loss.item()) < 1e-12
        assert_same(gradients(model), expected)


@pytest.mark.parametrize("norm", ["sequence", "token"])
def test_dft_weighs_each_token_by_its_own_probability(norm):
    """The gradient of sum w p log p, p held constant, is that of sum w p. --val is plain."""
    model, sequences = tiny(dtype=torch.float64), random_sequences()
    rows = [naive_logprobs(model, torch.from_numpy(one.tokens).long()[None])[
        0, one.start - 1:].exp() for one in sequences]
    (-(torch.stack([row.mean() for row in rows]).mean() if norm == "sequence" else
       torch.cat(rows).mean())).backward()
    expected = gradients(model)
    for pack, budget in ((True, 10**6), (False, 50)):
        s = settings(norm=norm, dft=True, pack=pack, micro_tokens=budget)
        gradient(model, sequences, s)
        assert_same(gradients(model), expected)
    with torch.no_grad():
        assert gradient(model, sequences, s) == gradient(model, sequences, settings(
            norm=norm, pack=False, micro_tokens=50))


def test_validation_loss_needs_no_gradient():
    model, sequences = tiny(dtype=torch.float64), random_sequences()
    with torch.no_grad():
        loss = gradient(model, sequences, settings())
    assert abs(loss - sft_loss_one_by_one(model, sequences, "sequence").item()) < 1e-12
    assert all(p.grad is None for p in model.parameters())


def test_the_end_token_is_trained_on_though_it_is_the_pad():
    """Qwen2.5 base pads with its end token: a mask made from token values forgets the end."""
    model, s = tiny(), Sequence(numpy.array([5, 6, 7, 0], dtype=numpy.int32), 2)
    longer = Sequence(numpy.array([5, 6, 7, 8, 9, 0], dtype=numpy.int32), 2)
    for pack in (True, False):
        logp, mask = response_logprobs(model, [s, longer], pack)
        assert mask.tolist() == [[True, True, False, False], [True] * 4]
        exact = naive_logprobs(model, torch.tensor([[5, 6, 7, 0]]))[0, 1:]
        assert (logp[0, :2] - exact).abs().max() < 1e-5 and logp[0, 2:].eq(0).all()


def test_sequences_are_left_as_they_were():
    """A peer masked its labels through a view of the tokens: the second epoch saw other data."""
    sequences = random_sequences()
    before = copy.deepcopy(sequences)
    for pack in (True, False):
        gradient(tiny(), sequences, settings(pack=pack))
    assert all((a.tokens == b.tokens).all() and a.start == b.start
               for a, b in zip(sequences, before))


# ---- data ------------------------------------------------------------------------------------
def tokenizer():
    return load_tokenizer(GOLDEN)


def read(path, **changes):
    s = settings(**{"max_length": 512, **changes})
    return as_sequences(read_examples([path]), tokenizer(), 0, s.max_length, s.loss_on)


def test_an_example_is_prompt_response_and_end(tmp_path):
    path = write(tmp_path / "a", [{"prompt": "who is ", "response": "a knave"}])
    [s] = read(path)
    encode = lambda text: tokenizer().encode(text).ids                          # noqa: E731
    assert s.tokens.tolist() == encode("who is ") + encode("a knave") + [0]
    assert s.start == len(encode("who is "))
    [s] = read(path, loss_on="all")
    assert s.start == 1
    [s] = read(write(tmp_path / "b", [{"text": "a knave"}]))
    assert s.tokens.tolist() == encode("a knave") + [0] and s.start == 1


def test_rollouts_train_on_the_sampled_tokens(tmp_path):
    """Text can be tokenised in several ways; what was sampled is what trains."""
    spelled = [tokenizer().token_to_id(c) for c in "knave"]
    row = {"prompt": "a", "response": "knave", "tokens": spelled + [2], "finished": True}
    cut = {"prompt": "a", "response": "knave", "tokens": spelled, "finished": False}
    assert tokenizer().encode("knave").ids != spelled
    a, b = read(write(tmp_path / "a", [row, cut]))
    assert a.tokens[a.start:].tolist() == spelled + [2] and b.tokens[b.start:].tolist() == spelled
    for wrong in ({"response": "knight"}, {"tokens": spelled + [10**6]}, {"tokens": [None]}):
        with pytest.raises(ValueError, match="b:1: its tokens do not spell"):
            read(write(tmp_path / "b", [row | wrong]))
    [counted] = read(write(tmp_path / "c", [row | {"tokens": 6}]))       # somebody's statistics
    assert counted.tokens[counted.start:].tolist() == tokenizer().encode("knave").ids + [0]


def test_long_examples_are_left_out_and_counted(tmp_path, capsys):
    rows = [{"prompt": "a", "response": "b" * n} for n in (5, 50)]
    assert len(read(write(tmp_path / "a", rows), max_length=20)) == 1
    assert "1 of 2 examples are left out" in capsys.readouterr().err
    with pytest.raises(ValueError, match="none of 1 examples"):
        read(write(tmp_path / "b", rows[1:]), max_length=20)


# ---- the command -----------------------------------------------------------------------------
@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """A folder with a config, documents, and a model directory with random weights."""
    folder = tmp_path_factory.mktemp("toy")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    write(folder / "docs.jsonl", repeats(60))
    write(folder / "held_out.jsonl", repeats(10, seed=1))
    made = run(folder, "--init", "config.json", "--data", "docs.jsonl", "--out", "base", "--epochs",
               "0.5", "--max-length", "128")
    assert made.returncode == 0, made.stderr
    return folder


BASIC = ("--init", "config.json", "--data", "docs.jsonl", "--max-length", "128", "--lr", "3e-3",
         "--batch", "8", "--loss-on", "all")


def test_it_learns_from_scratch_and_what_it_says_is_so(toy, tmp_path):
    done = run(toy, *BASIC, "--out", tmp_path / "r", "--epochs", "60", "--val", "held_out.jsonl",
                   "--eval", "held_out.jsonl", "--eval-every", "90", "--eval-max-new-tokens", "16",
               "--loss-on", "response", "--lr", "5e-3", "--beta2", "0.95")
    assert done.returncode == 0, done.stderr
    rows = metrics(tmp_path / "r")
    assert [row["step"] for row in rows] == list(range(451))          # 60 * 60 / 8, and step 0
    assert rows[-1]["val_loss"] < 0.5 * rows[0]["val_loss"]
    assert rows[0]["eval"]["accuracy"] == 0 and rows[-1]["eval"]["accuracy"] >= 0.9
    assert set(rows[-1]["eval"]["by_level"]) == {str(row["level"]) for row in repeats(10, seed=1)}
    assert rows[-1]["epoch"] == 60 and rows[1]["loss"] > rows[-1]["loss"]

    model = M.load(str(tmp_path / "r" / "model"))                     # the number, made again
    end = model.eos_ids[0]
    held_out = as_sequences(read_examples([str(toy / "held_out.jsonl")]),
                                load_tokenizer(str(tmp_path / "r" / "model")), end, 512)
    assert abs(sft_loss_one_by_one(model, held_out, "sequence").item() - rows[-1]["val_loss"]) < 1e-4
    kept = sorted(os.listdir(tmp_path / "r"))
    assert kept == ["best", "checkpoint-000400", "checkpoint-000450", "metrics.jsonl", "model",
                    "settings.json"]
    about = json.loads((tmp_path / "r" / "settings.json").read_text())
    assert about["settings"]["seed"] == 0 and "--lr" in about["command"]


def test_nothing_is_waited_for_that_is_not_used(toy, tmp_path):
    """Weights on `meta`, PyTorch's optimizer classes and more import its compiler and sympy: two
    seconds of every command, in a lab of fifty of them. Here: load, train, sample."""
    probe = ("import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], None,"
             " '__main__'); sys.exit(str({'torch._dynamo', 'sympy'} & {*sys.modules}))")
    done = subprocess.run([sys.executable, "-c", probe, os.path.join(ROOT, "sft.py"), "--model",
                           "base/model", "--data", "docs.jsonl", "--out", tmp_path / "r",
                           "--max-length", "128", "--epochs", "0.5", "--eval", "held_out.jsonl",
                           "--eval-max-new-tokens", "4"],
                          cwd=toy, capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": ROOT})
    assert done.stderr.splitlines()[-1] == "set()"
    assert metrics(tmp_path / "r")[-1]["eval"]


@pytest.mark.extras
def test_transformers_loads_what_was_made_from_scratch(toy):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(toy / "base" / "model")
    words = transformers.AutoTokenizer.from_pretrained(toy / "base" / "model")
    ids = words("3+4=", return_tensors="pt")["input_ids"]
    ours = M.load(str(toy / "base" / "model"))
    assert (theirs(ids).logits - ours(ids)).abs().max() < 1e-4
    assert words.eos_token == "<|endoftext|>" and theirs.config.eos_token_id == [0, 2]


def test_killed_and_resumed_is_the_same_run_bit_by_bit(toy, tmp_path):
    flags = (*BASIC, "--epochs", "40", "--save-every", "3", "--val", "held_out.jsonl",
             "--eval-every", "7")
    finish(toy, tmp_path / "whole", *flags)
    finish(toy, tmp_path / "killed", *flags, kills=3)
    a, b = metrics(tmp_path / "whole"), metrics(tmp_path / "killed")
    assert a == b and a[-1]["step"] == 300
    for name in ("model", "best"):
        assert_equal_weights(weights(tmp_path / "whole", name), weights(tmp_path / "killed", name))
    assert not [name for name in os.listdir(tmp_path / "killed") if "partial" in name]


def test_ctrl_c_saves_and_says_how_to_go_on(toy, tmp_path):
    flags = (*BASIC, "--epochs", "200", "--save-every", "100000")
    process = subprocess.Popen(command(*flags, "--out", tmp_path / "r"), cwd=toy, text=True,
                               stderr=subprocess.PIPE)
    while size_of_metrics(tmp_path / "r") == 0 and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130 and "--resume" in error.splitlines()[-1]
    last = metrics(tmp_path / "r")[-1]["step"]
    assert (tmp_path / "r" / f"checkpoint-{last:06d}" / "state.json").exists()


def test_a_run_that_blows_up_stops_with_its_checkpoints_intact(toy, tmp_path):
    done = run(toy, *BASIC, "--out", tmp_path / "r", "--lr", "1e30", "--clip-norm", "1e38",
               "--save-every", "1", "--schedule", "constant", "--epochs", "20")
    assert done.returncode == 1 and "not finite" in done.stderr.splitlines()[-1]
    rows = metrics(tmp_path / "r")
    assert [row["skipped"] for row in rows[-6:]] == [0, 1, 1, 1, 1, 1], done.stderr
    good = rows[-6]["step"]
    assert (tmp_path / "r" / f"checkpoint-{good:06d}").exists()
    assert not (tmp_path / "r" / f"checkpoint-{good + 1:06d}").exists()


def test_a_full_disk_is_one_line_and_loses_nothing(toy, tmp_path):
    """The largest file a process may write stands in for the disk."""
    script = ("import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000));"
              "import runpy; sys.argv[0] = 'sft.py'; runpy.run_path('%s/sft.py', None, '__main__')"
              % ROOT)
    done = subprocess.run([sys.executable, "-c", script, *BASIC, "--out", str(tmp_path / "r")],
                          cwd=toy, capture_output=True, text=True,
                          env=os.environ | {"PYTHONPATH": ROOT})
    assert done.returncode == 2, done.stderr
    last = done.stderr.splitlines()[-1]
    assert "cannot write" in last and "checkpoint" in last and "Traceback" not in done.stderr
    assert not list((tmp_path / "r").glob("checkpoint-*"))
    finish(toy, tmp_path / "r", *BASIC)                     # with room again it goes on


def test_a_damaged_checkpoint_is_not_used(toy, tmp_path):
    """The newest was cut short by the disk. The run goes on from the one before, and ends the same."""
    flags = (*BASIC, "--save-every", "2", "--epochs", "1", "--keep", "5")
    assert run(toy, *flags, "--out", tmp_path / "whole").returncode == 0
    shutil.copytree(tmp_path / "whole", tmp_path / "r")
    shutil.rmtree(tmp_path / "r" / "model")
    newest = sorted((tmp_path / "r").glob("checkpoint-*"))[-1]
    file = newest / "optimizer.safetensors"
    file.write_bytes(file.read_bytes()[:-5])
    done = run(toy, *flags, "--out", tmp_path / "r", "--resume")
    assert done.returncode == 0 and f"{newest} is damaged" in done.stderr, done.stderr
    for name, weight in weights(tmp_path / "whole").items():
        assert torch.equal(weight, weights(tmp_path / "r")[name])
    assert (newest / "optimizer.safetensors").stat().st_size > 10**3        # It was made again.
    aside = tmp_path / "r" / f"damaged-{newest.name}"           # What was there is not lost.
    assert len((aside / "optimizer.safetensors").read_bytes()) == len(
        (newest / "optimizer.safetensors").read_bytes()) - 5


def test_a_finished_run_is_left_as_it_is(toy, tmp_path):
    flags = (*BASIC, "--epochs", "0.2", "--out", tmp_path / "r")
    assert run(toy, *flags).returncode == 0
    last = metrics(tmp_path / "r")[-1]
    assert last["examples"] == round(last["epoch"] * len(read(toy / "docs.jsonl")))
    (tmp_path / "r" / "model" / "README.md").write_text("what I found")
    done = run(toy, *flags, "--resume")
    assert done.returncode == 0 and "complete: nothing to do" in done.stdout
    assert (tmp_path / "r" / "model" / "README.md").exists()
    metrics_before = (tmp_path / "r" / "metrics.jsonl").read_bytes()
    for path in (tmp_path / "r").glob("checkpoint-*"):      # as an experiment does
        shutil.rmtree(path)
    done = run(toy, *flags, "--resume")
    assert done.returncode == 2 and "finished and its checkpoints are gone" in done.stderr
    assert (tmp_path / "r" / "metrics.jsonl").read_bytes() == metrics_before


def test_another_models_weights_are_not_resumed(toy, tmp_path):
    shutil.copytree(toy / "base" / "model", tmp_path / "m")
    flags = ("--model", tmp_path / "m", "--data", "docs.jsonl", "--max-length", "128", "--epochs",
             "0.2", "--out", tmp_path / "r")
    assert run(toy, *flags).returncode == 0
    model = M.load(str(tmp_path / "m"))
    model.model.norm.weight.data += 0.01
    M.save(model, str(tmp_path / "m"))
    done = run(toy, *flags, "--resume")
    assert done.returncode == 2 and f"{tmp_path / 'm'} has changed since" in done.stderr


def test_what_must_not_change_under_a_resume(toy, tmp_path):
    write(tmp_path / "docs.jsonl", repeats(20))
    flags = ("--model", toy / "base" / "model", "--data", tmp_path / "docs.jsonl", "--out",
             tmp_path / "r", "--max-length", "128", "--epochs", "1")
    assert run(toy, *flags).returncode == 0
    again = run(toy, *flags)
    assert again.returncode == 2 and "--resume" in again.stderr
    other = run(toy, *flags, "--resume", "--lr", "1")
    assert other.returncode == 2 and "lr was 1e-05" in other.stderr
    before = (tmp_path / "r" / "metrics.jsonl").read_bytes()
    assert run(toy, *flags, "--resume", "--micro-tokens", "99").returncode == 0     # less memory
    assert (tmp_path / "r" / "metrics.jsonl").read_bytes() == before    # complete: nothing is redone
    write(tmp_path / "docs.jsonl", repeats(21))
    changed = run(toy, *flags, "--resume")
    assert changed.returncode == 2 and "docs.jsonl has changed" in changed.stderr
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("do not touch")
    taken = run(toy, *flags[:4], "--max-length", "128", "--out", tmp_path / "other")
    assert taken.returncode == 2 and "not a run directory" in taken.stderr


def test_a_run_that_did_not_begin_leaves_the_place_free(toy, tmp_path):
    """What stops before the first step (no memory, broken weights) may be tried again otherwise."""
    shutil.copytree(toy / "base" / "model", tmp_path / "broken")
    (tmp_path / "broken" / "model.safetensors").write_text("version https://git-lfs.github.com/")
    flags = ("--data", "docs.jsonl", "--max-length", "128", "--out", tmp_path / "r")
    failed = run(toy, "--model", tmp_path / "broken", *flags)
    assert failed.returncode == 2 and "not a safetensors file" in failed.stderr
    (tmp_path / "r" / "settings.json").rename(tmp_path / "r" / "settings.json.partial")  # a kill
    done = run(toy, "--model", "base/model", *flags, "--epochs", "1")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("flags, words", [
    (["--model", "base/model", "--init", "config.json"], "either --model or --init"),
    ([], "give either --model or --init"), (["--model", "nowhere"], "nowhere"),
    (["--model", "base/model"], "max_length = 5000: the model's context is 128"),
    (["--model", "base/model", "--max-length", "128", "--data", "empty.jsonl"], "no examples"),
    (["--model", "base/model", "--max-length", "128", "--data", "bad.jsonl"], "bad.jsonl:2"),
    (["--model", "base/model", "--max-length", "128", "--lr", "0"], "lr = 0"),
    (["--model", "base/model", "--max-length", "128", "--batch", "0"], "batch = 0"),
    (["--model", "base/model", "--max-length", "128", "--schedule", "sin"], "schedule = sin"),
    (["--model", "base/model", "--max-length", "128", "--norm", "constant"], "norm = constant"),
    (["--model", "base/model", "--max-length", "128", "--offload", "--device", "cpu"], "offload"),
    (["--model", "base/model", "--max-length", "128", "--epochs", "0.001"], "epochs = 0.001"),
    (["--model", "base/model", "--max-length", "128", "--epochs", "inf"], "epochs = inf"),
    (["--model", "base/model", "--max-length", "128", "--tokenizer", "base"], "--tokenizer is for"),
    (["--model", "base/model", "--max-length", "128", "--device", "gpu"], "device = gpu"),
    (["--model", "base/model", "--max-length", "128", "--eval", "empty.jsonl"], "no problems"),
    (["--model", "base/model", "--max-length", "128", "--learning-rate", "1"], "--learning-rate"),
    (["--model", "base/model", "--max-length", "128", "--out", "docs.jsonl"], "docs.jsonl"),
])
def test_mistakes_are_one_line_before_any_work(toy, monkeypatch, capsys, flags, words):
    monkeypatch.chdir(toy)
    (toy / "empty.jsonl").write_text("")
    (toy / "bad.jsonl").write_text('{"prompt": "a", "response": "b"}\n{"prompt": "a"}\n')
    monkeypatch.setattr("engine.training.load", lambda *a, **k: pytest.fail("a model was loaded"))
    if "--data" not in flags:
        flags = flags + ["--data", "docs.jsonl"]
    if "--out" not in flags:
        flags = flags + ["--out", "never"]
    with pytest.raises(SystemExit) as end:
        run_here(sft, *flags)
    assert end.value.code == 2 and words in one_line(capsys)
    assert not (toy / "never").exists()


# ---- several processes -----------------------------------------------------------------------
def test_two_ranks_train_the_same_model_as_one(toy, tmp_path):
    for ranks in (1, 2):
        done = run(toy, *BASIC, "--out", tmp_path / str(ranks), "--epochs", "0.7", "--val",
                   "held_out.jsonl", "--eval", "held_out.jsonl", "--eval-max-new-tokens", "4",
                   ranks=ranks)
        assert done.returncode == 0, done.stderr
    a, b = (metrics(tmp_path / name) for name in "12")
    assert len(a) == len(b) == 7 and a[-1]["tokens"] == b[-1]["tokens"]
    assert abs(a[-1]["loss"] - b[-1]["loss"]) < 1e-4 and a[-1]["eval"] == b[-1]["eval"]
    # AdamW does not see the scale of a gradient, so a mean for a sum shows only here.
    assert abs(a[-1]["grad_norm"] / b[-1]["grad_norm"] - 1) < 1e-3
    one, two = weights(tmp_path / "1"), weights(tmp_path / "2")
    start = weights(toy / "base")
    assert max((one[key] - two[key]).abs().max() for key in one) < 1e-4
    assert min((one[key] - start[key]).abs().max() for key in one) > 1e-3
