"""What several test files need: small models, toy problems, gradients to compare, commands to run."""
import json
import os
import random
import subprocess
import sys
import tempfile
import time

import numpy
import torch
from safetensors.torch import load_file

import grpo
import model as M
import warm
from engine.batches import Sequence
from engine.flags import parse
from engine.processes import Ranks

ROOT = os.path.dirname(os.path.abspath(M.__file__))
GOLDEN = os.path.join(ROOT, "tests", "golden")
ALONE = Ranks("cpu")
ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1"}
TINY = M.Config(vocab_size=50, hidden_size=24, intermediate_size=40, num_hidden_layers=2,
                num_attention_heads=4, num_key_value_heads=2)
QWEN_1_5B = M.Config(vocab_size=151936, hidden_size=1536, intermediate_size=8960,
                     num_hidden_layers=28, num_attention_heads=12, num_key_value_heads=2,
                     tie_word_embeddings=True)


# ---- models and gradients --------------------------------------------------------------------
def tiny(seed=0, dtype=torch.float32, **changes):
    """A small model whose every parameter is random: a forgotten bias or norm shows."""
    torch.manual_seed(seed)
    model = M.Transformer(M.Config(**{**TINY.__dict__, **changes})).to(dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if "norm" in name else 0.0, 0.3)
    return model


def naive_logprobs(model, tokens, temperature=1.0):
    """log p of every token after the first, [B, T-1], from all logits at once."""
    logits = model(tokens)[:, :-1, :model.vocab] / temperature
    return logits.log_softmax(-1).gather(-1, tokens[:, 1:, None]).squeeze(-1)


def sft_loss_one_by_one(model, sequences, norm):
    """The loss of SFT as its definition says, a sequence at a time, from all logits."""
    rows = [naive_logprobs(model, torch.from_numpy(one.tokens).long()[None])[0, one.start - 1:]
            for one in sequences]
    if norm == "sequence":
        return -torch.stack([row.mean() for row in rows]).mean()
    return -torch.cat(rows).mean()


def gradients(model):
    """The gradients of all parameters, which are then forgotten."""
    copies = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    return copies


def assert_same(a, b, tolerance=1e-12):
    assert a.keys() == b.keys()
    for name in a:
        assert (a[name] - b[name]).abs().max() <= tolerance, name


def assert_equal_weights(a, b):
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# ---- answers with advantages -----------------------------------------------------------------
def grpo_settings(**changes):
    return grpo.Settings(**{"model": "", "data": [], "out": "", "lr": 1e-3, "temperature": 1.0,
                            **changes})


def random_groups(model, prompts=4, n=3, temperature=1.0, seed=0):
    """Answers with made-up advantages, and the log-probs that the model gives them."""
    rng, groups = random.Random(seed), []
    for _ in range(prompts):
        groups.append([])
        for _ in range(n):
            prompt, length = rng.randint(1, 9), rng.randint(1, 12)
            tokens = torch.tensor([[rng.randrange(50) for _ in range(prompt + length)]])
            logp = naive_logprobs(model, tokens, temperature)[0, prompt - 1:].detach()
            sequence = Sequence(tokens[0].numpy().astype(numpy.int32), prompt)
            groups[-1].append(grpo.Answer(sequence, torch.full((length,), rng.uniform(-1, 1)), logp))
    return groups


class Frozen:
    """An optimizer that keeps the gradient it is given and moves nothing."""

    def __init__(self, model):
        self.model, self.seen, self.skipped = model, [], 0

    def update(self, lr, loss):
        self.seen.append(gradients(self.model))
        for p in self.model.parameters():
            p.grad = None
        return 1.0


def gradients_of(model, groups, reference=None, **changes):
    """The gradient of each update of a GRPO step, and what the step says of itself."""
    frozen = Frozen(model)
    method = grpo.GRPO(grpo_settings(**changes), ALONE, model, frozen, reference)
    trained = method.update(groups, 1e-3)
    return frozen.seen, trained


# ---- toy problems ----------------------------------------------------------------------------
CONFIG = TINY.__dict__ | {"vocab_size": 264, "hidden_size": 48, "intermediate_size": 128,
                          "tie_word_embeddings": True, "max_position_embeddings": 128,
                          "head_dim": 12}


def repeats(n, seed=0):
    """Toy problems: repeat the second digit."""
    rng, rows = random.Random(seed), []
    for i in range(n):
        a, b = rng.randint(0, 9), rng.randint(0, 9)
        rows.append({"id": i, "task": "gsm8k", "level": a % 2, "prompt": f"{a},{b}=",
                     "response": f"\\boxed{{{b}}}", "gold": str(b)})
    return rows


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def read(path):
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


POLICY_FLAGS = ("--model", "base/model", "--data", "train.jsonl", "--prompts", "16", "--group", "8",
                "--max-prompt-tokens", "16", "--max-new-tokens", "12", "--temperature", "1", "--lr",
                "2e-3")                             # in the folder of the fixture `toy`


# ---- commands --------------------------------------------------------------------------------
def command(*flags, script="sft.py", ranks=0):
    launch = ["-m", "torch.distributed.run", f"--nproc-per-node={ranks}", "--standalone"] \
        if ranks else []
    return [sys.executable, *launch, os.path.join(ROOT, script), *map(str, flags)]


def run(folder, *flags, ranks=0, fork=True, **kwargs):
    if ranks or not fork:
        return subprocess.run(command(*flags, ranks=ranks, **kwargs), cwd=folder, text=True,
                              capture_output=True, timeout=300, env=ONE_THREAD)
    with tempfile.TemporaryDirectory() as said:
        files = [os.path.join(said, name) for name in ("out", "error")]
        process = warm.start(command(*flags, **kwargs)[1:], folder, ONE_THREAD, *files)
        process.join(300)
        code = process.exitcode
        process.kill()
        return subprocess.CompletedProcess(flags, code, *(open(path).read() for path in files))


def run_here(module, *flags):
    """A trainer's command in this process, so that parts of it can be replaced."""
    from engine.training import train_command
    train_command(parse(module.Settings, "", argv=[*map(str, flags)]), module.train,
                  getattr(module, "check", None))


def one_line(capsys):
    """What a command that was refused has said: exactly one line."""
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    return error


def metrics(out):
    """The lines of metrics.jsonl without times."""
    return [{key: value for key, value in row.items()
             if key not in ("seconds", "tokens_per_second")}
            for row in read(os.path.join(out, "metrics.jsonl"))]


def weights(out, name="model"):
    return load_file(os.path.join(out, name, "model.safetensors"))


def size_of_metrics(out):
    path = os.path.join(out, "metrics.jsonl")
    return os.path.getsize(path) if os.path.exists(path) else 0


def finish(folder, out, *flags, script="sft.py", kills=0, seed=0):
    """Run to the end, killed at random moments of its work on the way."""
    rng, flags = random.Random(seed), (*flags, "--out", out, "--resume")
    for _ in range(kills):
        process = warm.start(command(*flags, script=script)[1:], folder, ONE_THREAD,
                             os.devnull, os.devnull)
        before, deadline = size_of_metrics(out), time.time() + 60
        while (size_of_metrics(out) == before and process.is_alive()
               and time.time() < deadline):
            time.sleep(0.01)
        time.sleep(rng.random() * 0.5)
        process.kill()
        process.join()
    done = run(folder, *flags, script=script, fork=kills > 0)      # see warm.py
    assert done.returncode == 0, done.stderr
    return done
