"""The experiments of test_scripts.py take minutes, mostly of one core: they run beside the other tests,
from the first test on, and what looks at them comes last."""
import os
import pathlib
import shutil
import tempfile

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")       # before torch is imported: two lanes, two cores

import torch  # noqa: E402

if not torch.cuda.is_available():                   # before kernel.py is imported
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
        found.thread.join(10)
        shutil.rmtree(found.runs, ignore_errors=True)
