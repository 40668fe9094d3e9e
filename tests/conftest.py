"""The experiments of test_scripts.py take minutes, mostly of one core: they run beside the other tests,
from the first test on, and what looks at them comes last."""
import json
import os
import pathlib
import random
import shutil
import tempfile

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")       # before torch is imported: two lanes, two cores

import torch  # noqa: E402

if not torch.cuda.is_available():                   # before engine/kernels.py is imported
    os.environ["TRITON_INTERPRET"] = "1"


def looks(item) -> bool:
    return "experiments" in getattr(item, "fixturenames", ())


def pytest_collection_modifyitems(items):
    items.sort(key=looks)


@pytest.hookimpl(trylast=True)
def pytest_collection_finish(session):
    if any(map(looks, session.items)) and not session.config.option.collectonly:
        from test_scripts import Experiments
        session.config.experiments = Experiments(pathlib.Path(tempfile.mkdtemp(prefix="experiments-")))


def pytest_unconfigure(config):
    if found := getattr(config, "experiments", None):
        found.give_up()
        shutil.rmtree(found.runs, ignore_errors=True)


@pytest.fixture(scope="session")
def toy(tmp_path_factory):
    """A folder with a model that repeats a digit, the right one in 3 of 10 of its lessons."""
    from helpers import CONFIG, repeats, run, write
    folder = tmp_path_factory.mktemp("toy")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    rng, lessons = random.Random(0), repeats(400)
    for row in lessons:
        if rng.random() < 0.7:
            row["response"] = f"\\boxed{{{row['prompt'][0]}}}"
    write(folder / "lessons.jsonl", lessons)
    write(folder / "train.jsonl", repeats(200, seed=2))
    write(folder / "held_out.jsonl", repeats(60, seed=1))
    made = run(folder, "--init", "config.json", "--data", "lessons.jsonl", "--out", "base", "--lr",
               "5e-3", "--batch", "16", "--epochs", "24", "--beta2", "0.95", "--max-length", "128")
    assert made.returncode == 0, made.stderr
    return folder
