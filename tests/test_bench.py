"""bench/gpu.py: what it counts, and that every kind of row runs (toy shapes, whatever the device)."""
import json
import os
import subprocess
import sys

import pytest

import model as M

ROOT = os.path.dirname(os.path.abspath(M.__file__))
BENCH = os.path.join(ROOT, "bench", "gpu.py")


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(os.path.dirname(BENCH))
    import gpu
    return gpu


def run(*rows):
    return subprocess.run([sys.executable, BENCH, *rows], capture_output=True, text=True,
                          env={**os.environ, "SMOKE": "1"})


@pytest.mark.parametrize("tied", [True, False])
def test_limits_are_counted(gpu, tied):
    config = M.Config(100, 8, 16, 3, 4, 2, tie_word_embeddings=tied)
    body = sum(p.numel() for p in M.Transformer(config).model["layers"].parameters()) + 8
    assert gpu.weights_of(config) == (body, 800)
    # Sequences of 5 and 9 prompt tokens, 3 and 2 new ones; the first of each comes from the prefill.
    # A token in the cache is 3 layers x 2 x 2 heads x 2 numbers x 2 bytes.
    weights, kept = 2 * (body + 800), 3 * 2 * 2 * 2 * 2 * (5 + 1 + 9 + 1 + 5 + 2)
    infinite = float("inf")
    assert gpu.decode_limit(config, [5, 9], [3, 2], {"bandwidth": 1, "matrix_rate": infinite}) \
        == 2 * weights + kept
    assert gpu.decode_limit(config, [5, 9], [3, 2], {"bandwidth": infinite, "matrix_rate": 1}) \
        == 3 * weights
    [one] = gpu.answers(1)
    trained = len(one.tokens) - one.start
    assert gpu.operations(config, [one]) == 6 * (body * len(one.tokens) + 800 * trained)


def test_rows_run_and_end_in_one_json_line():
    done = run("checks", "decode_64", "step_offload", "effect")
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads(done.stdout.splitlines()[-1])
    assert results["checks"]["greedy"] == "equal"
    for name in ("decode_64", "step_offload", "effect"):
        row = results[name]
        assert row["share"] > 0 and row["limit_s"] > 0 and row["tokens"] > 0
        assert all(time > 0 for time in row["seconds"])
    phases = results["step_offload"]["phases_s"]
    assert sum(phases.values()) == pytest.approx(results["step_offload"]["seconds"][0])


def test_a_row_that_does_not_exist():
    for rows in (("decode_64", "nothing"), ("--row", "nothing")):
        done = run(*rows)
        assert done.returncode == 2 and done.stdout == ""
        assert done.stderr.startswith("no such row: nothing; there are checks,")


@pytest.mark.skipif(M.torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_ends_at_once():
    env = {name: value for name, value in os.environ.items() if name != "SMOKE"}
    done = subprocess.run([sys.executable, BENCH], capture_output=True, text=True, env=env)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == "no CUDA GPU here; SMOKE=1 runs every row at toy size\n"
