"""bench/gpu.py: what it counts, and that each kind of row runs (toy shapes, any device)."""
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
    results = json.loads(done.stdout.splitlines()[-1])["rows"]
    assert results["checks"]["greedy"] == "equal"
    for name in ("decode_64", "step_offload", "effect"):
        row = results[name]
        assert row["share"] > 0 and row["limit_s"] > 0 and row["tokens"] > 0
        assert all(time > 0 for time in row["seconds"])
    phases = results["step_offload"]["phases_s"]
    assert sum(phases.values()) == pytest.approx(results["step_offload"]["seconds"][0])


def test_a_quick_look_writes_two_files_and_says_what_to_look_at(tmp_path):
    done = run("--quick", "tests", "prefill", "--out", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((tmp_path / "gpu-quick-cpu.json").read_text())["rows"]
    assert [*rows] == ["tests", "prefill"] and len(rows["prefill"]["seconds"]) == 1
    table = (tmp_path / "gpu-quick-cpu.md").read_text()
    assert table.startswith("# cpu, a quick look\n") and "| prefill | " in table
    assert str(tmp_path) not in table and "Look at:" in table


def test_what_to_look_at(gpu):
    rows = {"tests": {"error": "FAILED tests/test_kernel.py"}, "prefill": {"share": 0.2},
            "checks": {"kernel": False, "worst_logprob_gap": 0.1}, "decode_64": {"share": 0.9},
            "step": {"peak_gb": 41.0, "room_gb": 40}}
    found = gpu.remarks({"rows": rows})
    assert [line.partition(":")[0] for line in found] == [
        "tests did not run to its end", "prefill", "checks", "checks", "step"]
    assert "20% of the card's limit; the aim is 50%" in found[1] and "41.0 GB" in found[-1]
    assert gpu.remarks({"rows": {}})[0].startswith("nothing")


def test_a_row_that_does_not_exist():
    for rows in (("decode_64", "nothing"), ("--row", "nothing")):
        done = run(*rows)
        assert done.returncode == 2 and done.stdout == ""
        assert done.stderr.startswith("no such row: nothing; there are tests, checks,")


def test_a_wrong_flag_is_one_line(gpu, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--rows"])
    with pytest.raises(SystemExit, match="2"):
        gpu.arguments()
    assert capsys.readouterr() == ("", "gpu.py: unrecognized arguments: --rows\n")


@pytest.mark.skipif(M.torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_ends_at_once():
    env = {name: value for name, value in os.environ.items() if name != "SMOKE"}
    done = subprocess.run([sys.executable, BENCH], capture_output=True, text=True, env=env)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == "no CUDA GPU here; SMOKE=1 runs every row at toy size\n"
