"""sft.py: one gradient however the batch is cut, and runs that survive what happens to them."""
import copy
import itertools
import json
import math
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
from safetensors.torch import load_file

import model as M
import sft
from test_model import GOLDEN, TINY, naive_logprobs, tiny

ROOT = os.path.dirname(os.path.abspath(M.__file__))
ALONE = sft.Ranks("cpu")


def settings(**changes):
    return sft.Settings(**{"data": [], "out": "", "lr": 1e-3, **changes})


def random_sequences(n=9, seed=0, longest=40):
    """Prompt lengths from 1, answers from one token; token 0 is the end and would be the pad."""
    rng = random.Random(seed)
    found = []
    for _ in range(n):
        prompt, answer = rng.randint(1, longest // 2), rng.randint(1, longest // 2)
        tokens = [rng.choice([0, rng.randrange(50)]) for _ in range(prompt + answer - 1)] + [0]
        found.append(sft.Sequence(numpy.array(tokens, dtype=numpy.int32), prompt))
    return found


def one_by_one(model, sequences, norm):
    """The loss as its definition says, a sequence at a time, from all logits."""
    rows = [naive_logprobs(model, torch.from_numpy(s.tokens).long()[None])[0, s.start - 1:]
            for s in sequences]
    if norm == "sequence":
        return -torch.stack([row.mean() for row in rows]).mean()
    return -torch.cat(rows).mean()


def gradients(model):
    found = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    return found


def assert_same(a, b, tolerance=1e-12):
    for name in a:
        assert (a[name] - b[name]).abs().max() <= tolerance, name


# ---- the gradient ----------------------------------------------------------------------------
@pytest.mark.parametrize("norm", ["sequence", "token"])
def test_gradient_is_the_definition_however_the_batch_is_cut(norm):
    model, sequences = tiny(dtype=torch.float64), random_sequences()
    loss = one_by_one(model, sequences, norm)
    loss.backward()
    expected = gradients(model)
    for pack, budget, model.checkpointing in itertools.product([True, False], [1, 50, 120, 10**6],
                                                               [True, False]):
        s = settings(norm=norm, pack=pack, micro_tokens=budget)
        assert abs(sft.gradient(model, ALONE, sequences, s) - loss.item()) < 1e-12
        assert_same(gradients(model), expected)


def test_validation_loss_needs_no_gradient():
    model, sequences = tiny(dtype=torch.float64), random_sequences()
    with torch.no_grad():
        loss = sft.gradient(model, ALONE, sequences, settings())
    assert abs(loss - one_by_one(model, sequences, "sequence").item()) < 1e-12
    assert all(p.grad is None for p in model.parameters())


def test_the_end_token_is_trained_on_though_it_is_the_pad():
    """Qwen2.5 base pads with its end token: a mask made from token values forgets the end."""
    model, s = tiny(), sft.Sequence(numpy.array([5, 6, 7, 0], dtype=numpy.int32), 2)
    longer = sft.Sequence(numpy.array([5, 6, 7, 8, 9, 0], dtype=numpy.int32), 2)
    for pack in (True, False):
        logp, mask, _ = sft.response_logprobs(model, [s, longer], pack)
        assert mask.tolist() == [[True, True, False, False], [True] * 4]
        exact = naive_logprobs(model, torch.tensor([[5, 6, 7, 0]]))[0, 1:]
        assert (logp[0, :2] - exact).abs().max() < 1e-5 and logp[0, 2:].eq(0).all()


def test_sequences_are_left_as_they_were():
    """A peer masked its labels through a view of the tokens: the second epoch saw other data."""
    sequences = random_sequences()
    before = copy.deepcopy(sequences)
    for pack in (True, False):
        sft.gradient(tiny(), ALONE, sequences, settings(pack=pack))
    assert all((a.tokens == b.tokens).all() and a.start == b.start
               for a, b in zip(sequences, before))


def test_token_weights_by_hand():
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]]).bool()
    mask_64 = mask.double()
    assert torch.equal(sft.token_weights(mask, "token"), mask_64 / 3)
    assert torch.equal(sft.token_weights(mask, "token", total=6), mask_64 / 6)
    assert sft.token_weights(mask, "sequence").tolist() == [[0.25, 0.25, 0], [0.5, 0, 0]]
    assert sft.token_weights(mask, "sequence", 4).tolist() == [[1 / 8, 1 / 8, 0], [1 / 4, 0, 0]]
    assert torch.equal(sft.token_weights(mask, "constant", 10), mask_64 / 10)
    with pytest.raises(ValueError, match="constant"):
        sft.token_weights(mask, "constant")
    empty = torch.zeros(2, 3, dtype=torch.bool)             # nothing to train on is not 0 / 0
    assert sft.token_weights(empty, "token").eq(0).all()
    assert sft.token_weights(empty, "sequence").eq(0).all()


@pytest.mark.parametrize("pack", [True, False])
def test_micro_batches_hold_every_sequence_once_within_the_budget(pack):
    rng = random.Random(1)
    for _ in range(200):
        lengths = [rng.randint(1, 60) for _ in range(rng.randint(1, 30))]
        budget = rng.randint(1, 200)
        groups = sft.micro_batches(lengths, budget, pack)
        assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
        for group in groups:
            size = sum(lengths[i] for i in group) if pack else \
                len(group) * max(lengths[i] for i in group)
            assert size <= budget or len(group) == 1
        if pack:        # first fit: no two groups could be one
            room = sorted(sum(lengths[i] for i in group) for group in groups)
            assert len(room) < 2 or room[0] + room[1] > budget


def test_order_shows_every_item_once_an_epoch_and_differs_between_them():
    order = sft.Order(10, seed=3)
    epochs = [[order[e * 10 + i] for i in range(10)] for e in range(3)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    again = sft.Order(10, seed=3)
    assert [again[i] for i in (25, 3, 17)] == [epochs[2][5], epochs[0][3], epochs[1][7]]
    assert [sft.Order(10, seed=4)[i] for i in range(10)] != epochs[0]


# ---- optimizer -------------------------------------------------------------------------------
def test_learning_rate_by_hand():
    def rates(schedule, warmup, steps=4):
        return [round(sft.learning_rate(i, steps, 1.0, schedule, warmup), 4) for i in range(steps)]
    assert rates("constant", 0) == [1, 1, 1, 1]
    assert rates("constant", 3) == [0.25, 0.5, 0.75, 1]
    assert rates("linear", 0) == [1, 0.75, 0.5, 0.25]
    assert rates("cosine", 0) == [1, round((1 + math.sqrt(0.5)) / 2, 4), 0.5, 0.1464]
    assert rates("cosine", 2) == [0.3333, 0.6667, 1, 0.5]


@pytest.mark.parametrize("offload", [False, True])
def test_adamw_by_hand(offload):
    """Epsilon outside the root, bias corrected, decay apart from the gradient, clipped before."""
    model = tiny(dtype=torch.float64)
    s = settings(beta1=0.5, beta2=0.9, weight_decay=0.1, clip_norm=2.0, offload=offload)
    optimizer = sft.AdamW(model, s)
    expected = {name: (p.detach().clone(), 0.0, 0.0) for name, p in model.named_parameters()}
    for step in range(1, 4):
        for p in model.parameters():
            p.grad = torch.randn_like(p)
        grads = {name: p.grad.clone() for name, p in model.named_parameters()}
        length = math.sqrt(sum(float(g.square().sum()) for g in grads.values()))
        assert abs(optimizer.update(0.01 * step, loss=0.0) - length) < 1e-9
        for name, (w, m, v) in expected.items():
            g = grads[name] * min(1, 2.0 / (length + 1e-6))
            m, v = 0.5 * m + 0.5 * g, 0.9 * v + 0.1 * g * g
            w = w * (1 - 0.01 * step * 0.1)
            w = w - 0.01 * step * (m / (1 - 0.5**step)) / ((v / (1 - 0.9**step)).sqrt() + 1e-8)
            expected[name] = w, m, v
    for name, p in model.named_parameters():
        assert (p - expected[name][0]).abs().max() < 1e-9
        assert p.grad is None


def test_small_steps_change_fp32_masters_under_bf16_compute():
    """At lr 1e-6 an AdamW step is below half a bf16 ulp of most weights: bf16 masters stay."""
    model = tiny()
    model.compute_dtype = torch.bfloat16
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = sft.AdamW(model, settings())
    loss = sft.gradient(model, ALONE, random_sequences(), settings())
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in model.parameters())
    had_gradient = {name: p.grad != 0 for name, p in model.named_parameters()}
    optimizer.update(1e-6, loss)
    moved = [(p.detach() != before[name])[had_gradient[name] & (before[name].abs() < 1)]
             for name, p in model.named_parameters()]
    assert torch.cat(moved).float().mean() > 0.99


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_changes_nothing(bad):
    model = tiny()
    optimizer = sft.AdamW(model, settings())
    before = copy.deepcopy(model.state_dict())
    for gradient, loss, skipped in ((bad, 0.0, 1), (1.0, bad, 2), (1.0, 0.0, 0)):
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        model.model["norm"].weight.grad[0] = gradient
        optimizer.update(1e-3, loss)
        assert optimizer.skipped == skipped
        same = all(torch.equal(p, before[name]) for name, p in model.state_dict().items())
        assert same == (skipped > 0)
    assert all(t.isfinite().all() for t in optimizer.tensors().values())


# ---- memory ----------------------------------------------------------------------------------
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_planned_activations_are_those_that_autograd_keeps(recompute, dtype):
    config = M.Config(vocab_size=100, hidden_size=64, intermediate_size=160, num_hidden_layers=6,
                      num_attention_heads=4, num_key_value_heads=2)
    model, kept = M.Transformer(config), {}
    model.compute_dtype, model.checkpointing = dtype, recompute
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = tensor, storage.nbytes()     # kept alive: no address twice
        return tensor
    tokens = torch.randint(0, 100, (1, 512))
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        model.hidden(tokens)
    measured = sum(size for _, size in kept.values())
    plan = sft.memory_plan(config, settings(micro_tokens=512), dtype, 512, 1, recompute)
    layer = 512 * (dtype.itemsize * (4 * 64 + 2 * 32 + 4 * 160) + 16 * 64)
    # The plan adds one layer for the backward pass and, recomputing, one made again.
    planned = plan["activations"] - layer * (1 + recompute)
    if recompute and dtype == torch.bfloat16:
        planned -= 2 * sum(p.numel() for p in model.parameters()) // 6      # casts of that layer
    assert 0.9 < measured / planned < 1.1, (measured, planned)


QWEN_1_5B = M.Config(vocab_size=151936, hidden_size=1536, intermediate_size=8960,
                     num_hidden_layers=28, num_attention_heads=12, num_key_value_heads=2,
                     tie_word_embeddings=True)


def test_plan_of_the_real_size(capsys):
    parts, recompute = sft.choose_plan(QWEN_1_5B, settings(), torch.bfloat16, 5000, 32, room=40e9)
    assert recompute and 25e9 < sum(parts.values()) < 40e9
    assert parts["weights"] == 4 * 1543714304 and parts["AdamW"] == 2 * parts["weights"]
    offloaded, _ = sft.choose_plan(QWEN_1_5B, settings(offload=True), torch.bfloat16, 5000, 32,
                                   room=24e9)
    assert sum(offloaded.values()) < 24e9
    _, recompute = sft.choose_plan(QWEN_1_5B, settings(), torch.bfloat16, 5000, 32, room=140e9)
    assert not recompute
    with pytest.raises(ValueError, match=r"does not fit .*--offload"):
        sft.show_plan("train", parts, 24e9, first=True)
    sft.show_plan("train", parts, 40e9, first=True)
    assert "AdamW 12.35" in capsys.readouterr().err


# ---- data ------------------------------------------------------------------------------------
def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def tokenizer():
    from sample import load_tokenizer
    return load_tokenizer(GOLDEN)


def read(path, **changes):
    s = settings(**{"max_length": 512, **changes})
    return sft.as_sequences(sft.read_texts([path]), tokenizer(), 0, s.max_length, s.loss_on)


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
        with pytest.raises(SystemExit):
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
CONFIG = TINY.__dict__ | {"vocab_size": 264, "hidden_size": 48, "intermediate_size": 128,
                          "tie_word_embeddings": True, "max_position_embeddings": 128,
                          "head_dim": 12}


def repeats(n, seed=0):
    """Toy problems: repeat the second digit."""
    rng = random.Random(seed)
    rows = []
    for i in range(n):
        a, b = rng.randint(0, 9), rng.randint(0, 9)
        rows.append({"id": i, "task": "gsm8k", "level": a % 2, "prompt": f"{a},{b}=",
                     "response": f"\\boxed{{{b}}}", "gold": str(b)})
    return rows


def command(folder, *flags, script="sft.py", ranks=0):
    launch = ["-m", "torch.distributed.run", f"--nproc-per-node={ranks}", "--standalone"] \
        if ranks else []
    return [sys.executable, *launch, os.path.join(ROOT, script), *map(str, flags)]


def run(folder, *flags, **kwargs):
    return subprocess.run(command(folder, *flags, **kwargs), cwd=folder, capture_output=True,
                          text=True, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"})


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


def metrics(out):
    rows = [json.loads(line) for line in open(os.path.join(out, "metrics.jsonl"))]
    return [{key: value for key, value in row.items()
             if key not in ("seconds", "tokens_per_second")} for row in rows]


def weights(out, name="model"):
    return load_file(os.path.join(out, name, "model.safetensors"))


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
    from sample import load_tokenizer
    held_out = sft.as_sequences(sft.read_texts([str(toy / "held_out.jsonl")]),
                                load_tokenizer(str(tmp_path / "r" / "model")), end, 512)
    assert abs(one_by_one(model, held_out, "sequence").item() - rows[-1]["val_loss"]) < 1e-4
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


def test_transformers_loads_what_was_made_from_scratch(toy):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(toy / "base" / "model")
    words = transformers.AutoTokenizer.from_pretrained(toy / "base" / "model")
    ids = words("3+4=", return_tensors="pt")["input_ids"]
    ours = M.load(str(toy / "base" / "model"))
    assert (theirs(ids).logits - ours(ids)).abs().max() < 1e-4
    assert words.eos_token == "<|endoftext|>" and theirs.config.eos_token_id == ours.eos_ids[0]


def finish(folder, out, *flags, script="sft.py", kills=0, seed=0):
    """Run to the end, killed at random moments of its work on the way."""
    rng = random.Random(seed)
    for _ in range(kills):
        process = subprocess.Popen(command(folder, *flags, "--out", out, "--resume", script=script),
                                   cwd=folder, stderr=subprocess.DEVNULL,
                                   env=os.environ | {"OMP_NUM_THREADS": "1"})
        before, deadline = size_of(out), time.time() + 60
        while size_of(out) == before and process.poll() is None and time.time() < deadline:
            time.sleep(0.01)
        time.sleep(rng.random() * 0.5)
        process.kill()
        process.wait()
    done = run(folder, *flags, "--out", out, "--resume", script=script)
    assert done.returncode == 0, done.stderr
    return done


def size_of(out):
    path = os.path.join(out, "metrics.jsonl")
    return os.path.getsize(path) if os.path.exists(path) else 0


def test_killed_and_resumed_is_the_same_run_bit_by_bit(toy, tmp_path):
    flags = (*BASIC, "--epochs", "40", "--save-every", "3", "--val", "held_out.jsonl",
             "--eval-every", "7")
    finish(toy, tmp_path / "whole", *flags)
    finish(toy, tmp_path / "killed", *flags, kills=3)
    a, b = metrics(tmp_path / "whole"), metrics(tmp_path / "killed")
    assert a == b and a[-1]["step"] == 300
    for name in ("model", "best"):
        a, b = weights(tmp_path / "whole", name), weights(tmp_path / "killed", name)
        assert all(torch.equal(a[key], b[key]) for key in a)
    assert not [name for name in os.listdir(tmp_path / "killed") if "partial" in name]


def test_ctrl_c_saves_and_says_how_to_go_on(toy, tmp_path):
    flags = (*BASIC, "--epochs", "200", "--save-every", "100000")
    process = subprocess.Popen(command(toy, *flags, "--out", tmp_path / "r"), cwd=toy, text=True,
                               stderr=subprocess.PIPE)
    while size_of(tmp_path / "r") == 0 and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130 and "--resume" in error.splitlines()[-1]
    last = metrics(tmp_path / "r")[-1]["step"]
    assert (tmp_path / "r" / f"checkpoint-{last:06d}" / "state.json").exists()


def test_a_run_that_blows_up_stops_with_its_checkpoints_intact(toy, tmp_path):
    done = run(toy, *BASIC, "--out", tmp_path / "r", "--lr", "1e38", "--clip-norm", "1e38",
               "--save-every", "1", "--schedule", "constant", "--epochs", "20")
    assert done.returncode == 1 and "not finite" in done.stderr.splitlines()[-1]
    rows = metrics(tmp_path / "r")
    assert [row["skipped"] for row in rows[-5:]] == [1, 2, 3, 4, 5]
    good = rows[-6]["step"]
    assert (tmp_path / "r" / f"checkpoint-{good:06d}").exists()
    assert not (tmp_path / "r" / f"checkpoint-{good + 1:06d}").exists()


def test_a_full_disk_is_one_line_and_loses_nothing(toy, tmp_path):
    """The largest file a process may write stands in for the disk."""
    script = ("import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000));"
              "sys.argv[0] = 'sft.py'; import sft; sft.main()")
    done = subprocess.run([sys.executable, "-c", script, *BASIC, "--out", str(tmp_path / "r")],
                          cwd=toy, capture_output=True, text=True,
                          env=os.environ | {"PYTHONPATH": ROOT})
    assert done.returncode == 2, done.stderr
    last = done.stderr.splitlines()[-1]
    assert "cannot write" in last and "checkpoint" in last and "Traceback" not in done.stderr
    assert not list((tmp_path / "r").glob("checkpoint-*"))
    finish(toy, tmp_path / "r", *BASIC)                     # with room again it goes on


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


def test_two_runs_do_not_share_a_directory(tmp_path, monkeypatch):
    monkeypatch.setattr(signal, "signal", lambda *a: None)
    s = settings(out=str(tmp_path / "r"))
    first = sft.Run(s, ALONE, [])
    with pytest.raises(ValueError, match="another process"):
        sft.Run(s, ALONE, [])
    os.close(first.lock)
    os.close(sft.Run(s, ALONE, []).lock)


def test_only_a_better_model_becomes_the_best(tmp_path, monkeypatch):
    monkeypatch.setattr(signal, "signal", lambda *a: None)
    run = sft.Run(settings(out=str(tmp_path / "r")), ALONE, [])
    for score, seed in ((0.2, 0), (math.nan, 1), (0.5, 2), (0.5, 3), (0.4, 4)):
        run.keep_best(tiny(seed), score)
    assert run.state["best"] == 0.5
    assert torch.equal(weights(tmp_path / "r", "best")["model.norm.weight"],
                       tiny(2).model["norm"].weight)
    os.close(run.lock)


@pytest.mark.parametrize("flags, words", [
    (["--model", "base/model", "--init", "config.json"], "either --model or --init"),
    (["--model", "nowhere"], "nowhere"),
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
    monkeypatch.setattr(M, "load", lambda *a, **k: pytest.fail("a model was loaded"))
    if "--data" not in flags:
        flags = flags + ["--data", "docs.jsonl"]
    if "--out" not in flags:
        flags = flags + ["--out", "never"]
    monkeypatch.setattr(sys, "argv", ["sft.py", *flags])
    with pytest.raises(SystemExit) as end:
        sft.main()
    error = capsys.readouterr().err
    assert end.value.code == 2 and words in error and error.count("\n") == 1
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
