"""Broken model directories, configs, tokenizers and data files, at random, for as long as you like.

    pip install hypothesis && FUZZ_SECONDS=3600 python -m pytest tests/fuzz.py

Each must be read, or refused by a ValueError or an OSError of one line: this is what a command shows
in one line with exit code 2. Anything else is a fault, and hypothesis shows the smallest file that
has it. It is not a part of the other tests: they know what is to come out, this does not.
"""
import functools
import json
import os
import shutil
import time

import pytest

hypothesis = pytest.importorskip("hypothesis", reason="hypothesis is not installed: no fuzzing")

import torch
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

import model as M
import verify
from engine.examples import read_examples
from engine.inputs import digests
from engine.problems import read_problems
from engine.tokenizer import encode_prompts, load_tokenizer
from helpers import GOLDEN

SECONDS = float(os.environ.get("FUZZ_SECONDS", 20)) / 5         # for each of the tests below
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(
        [0, -1, 2**31, 2**63, 10**400, "Level 5", "²", "\\boxed{1}", "<|im_end|>", "A is a knight"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8)
ROWS = [
    {"id": "a", "task": "kk", "prompt": "p", "gold": "A is a knight", "level": 1},
    {"quiz": "q", "names": ["A", "B"], "solution": [True, False], "level": 2,
     "knight_knave": {"a_knight": "a saint", "a_knave": "a sinner"}},
    {"problem": "1+1", "solution": "\\boxed{2}", "level": "Level 1", "type": "Algebra"},
    {"question": "1+1", "answer": "so #### 2"}, {"prompt": "p", "response": "r"}, {"text": "t"},
    {"id": 1, "task": "math", "prompt": "p", "gold": "2", "level": None, "response": "\\boxed{2}",
     "finished": True, "tokens": [1, 2], "logprobs": [-0.5, -0.5], "sample": 0, "reward": 1.0}]


def for_a_while(*strategies):
    """Run the test on examples of these strategies, with another seed every 100 of them."""
    def decorate(test):
        @functools.wraps(test)
        def repeated(tmp_path):
            end, number = time.time() + SECONDS, 0
            while time.time() < end:
                number += 1
                examples = settings(max_examples=100, deadline=30_000, database=None,
                                    suppress_health_check=list(HealthCheck))
                seed(number)(examples(given(st.just(tmp_path), *strategies)(test)))()
        del repeated.__wrapped__            # Otherwise pytest looks for fixtures of other names.
        return repeated
    return decorate


def read_or_refused(read, *arguments):
    """What was read, or None where it was refused in one line."""
    try:
        return read(*arguments)
    except (ValueError, OSError) as error:
        assert str(error).strip() and not isinstance(error, UnicodeError), repr(error)
        return None


def changed(value, changes):
    """A JSON value with some fields replaced, or taken away where the replacement is None."""
    fields = list(value)
    for place, new in changes:
        field = fields[place % len(fields)]
        value = {**value, field: new} if new is not None else {
            name: kept for name, kept in value.items() if name != field}
    return value


CHANGES = st.lists(st.tuples(st.integers(0, 99), VALUES), max_size=3)


@for_a_while(CHANGES, st.dictionaries(st.sampled_from(
    ["rope_scaling", "rope_parameters", "layer_types", "sliding_window", "use_sliding_window",
     "head_dim", "eos_token_id", "max_window_layers"]), VALUES), VALUES)
def test_configs(tmp_path, changes, more, generation):
    folder = str(tmp_path / "m")
    shutil.copytree(GOLDEN, folder, dirs_exist_ok=True)
    with open(os.path.join(GOLDEN, "config.json")) as file:
        config = changed(json.load(file), changes) | more
    for name, value in (("config.json", config), ("generation_config.json", generation)):
        with open(os.path.join(folder, name), "w") as file:
            json.dump(value, file)
    if model := read_or_refused(M.load, folder):
        with torch.no_grad():
            assert model(torch.arange(5)[None]).shape == (1, 5, model.config.vocab_size)


@for_a_while(st.sampled_from(["model.safetensors", "tokenizer.json", "config.json",
                              "model.safetensors.index.json"]),
             st.integers(0, 10**6), st.binary(max_size=8), st.booleans())
def test_bytes_of_a_model(tmp_path, name, place, new, cut):
    folder = str(tmp_path / "m")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(GOLDEN, folder)
    path, content = os.path.join(folder, name), b'{"weight_map": {"lm_head.weight": "x"}}'
    if os.path.exists(path):
        with open(path, "rb") as file:
            content = file.read()
    place = place % (len(content) + 1)
    with open(path, "wb") as file:
        file.write(content[:place] + new + (b"" if cut else content[place + len(new):]))
    read_or_refused(M.load, folder)
    read_or_refused(digests, [folder])
    if tokenizer := read_or_refused(load_tokenizer, folder):
        read_or_refused(encode_prompts, tokenizer, ["A is a knight", ""])


def all_read(path: str) -> None:
    read_or_refused(read_problems, path)
    read_or_refused(read_problems, [path], "base")
    read_or_refused(read_examples, [path])
    if rollouts := read_or_refused(verify.read_rollouts, path):
        verify.score(rollouts)
        json.dumps(verify.rows_of(rollouts))


@for_a_while(st.lists(st.tuples(st.sampled_from(ROWS), CHANGES), min_size=1, max_size=4),
             st.sampled_from(["x.jsonl", "x.json"]))
def test_rows(tmp_path, rows, name):
    rows, path = [changed(row, changes) for row, changes in rows], str(tmp_path / name)
    with open(path, "w") as file:
        json.dump(rows, file) if name == "x.json" else file.writelines(
            json.dumps(row) + "\n" for row in rows)
    all_read(path)


@for_a_while(st.binary(max_size=60) | st.text(max_size=60).map(
    lambda text: text.encode("utf-8", "surrogatepass")) | VALUES.map(
    lambda value: json.dumps(value).encode()), st.sampled_from(["x.jsonl", "x.json", "x.parquet"]))
def test_bytes_of_data(tmp_path, content, name):
    path = str(tmp_path / name)
    with open(path, "wb") as file:
        file.write(content)
    all_read(path)


TEX = st.lists(st.sampled_from(
    list("0123456789+-*/^_{}()[]|,.:;!=<>&%$ xyzπ°\\") + [
        "\\frac", "\\sqrt", "\\text{", "\\boxed{", "\\left(", "\\infty", "\\pm", "\\cup", "10^", "e^",
        "\\begin{pmatrix}", "\\end{pmatrix}", "\\lfloor", " is a knight", " and ", "units", "\\cdot",
        "\\binom", "\\log", "\\sin", "!", "\\pi", "99999"]) | st.characters(), max_size=25).map("".join)


@for_a_while(TEX, TEX)
def test_answers(tmp_path, prediction, gold):
    assert verify.math_equal(prediction, gold) in (True, False)
    assert verify.math_equal(gold, gold) is True or not gold.strip()
    for task in verify.TASKS:
        assert verify.reward({"task": task, "gold": gold}, prediction, True) in (0.0, 1.0)
