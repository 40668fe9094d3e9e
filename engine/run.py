"""A run directory: what a training run leaves behind, and how it goes on after any kind of stop.

    settings.json       the settings, the command, and digests of the data and of the models
    metrics.jsonl       a line per step
    checkpoint-N/       the last few: model/, optimizer.safetensors, state.json
    best/  step-N/      the best model by --eval; the models that --keep-at asks for
    rollouts/  texts/   what was sampled in each step (GRPO, PPO)
    model/              the model at the end

Only the first process writes, and everything is written whole or not at all. A run that goes on
first forgets what was written after its last checkpoint, and then writes it again, the same.
"""
import contextlib
import glob
import json
import math
import os
import re
import shlex
import shutil
import signal
import sys
import time
from dataclasses import asdict

import torch
from safetensors import SafetensorError, safe_open
from tqdm import tqdm

from engine.files import (as_line, check_output, lock_directory, read_json, run_is_begun,
                          whole_directory, whole_file, write_json, write_jsonl)
from engine.flags import Stopped
from engine.huggingface import save_tensors
from engine.inputs import check_same, digests, model_digest
from model import save

MAY_CHANGE = ("out", "resume", "save_every", "keep", "keep_at", "device", "offload", "micro_tokens",
              "pack", "checkpointing", "rollouts", "texts")         # when a run goes on
GIVE_UP_AFTER = 5                                           # updates in a row that were not finite


class Run:
    def __init__(self, settings, ranks, files: list[str], may_change=()):
        self.settings, self.ranks, self.out = settings, ranks, settings.out
        self.may_change = (*MAY_CHANGE, *may_change)
        self.state = {"step": 0, "best": None}              # of a checkpoint, besides its tensors
        self.parts = {}             # further files of a checkpoint: name -> function of its tensors
        self.asked_to_stop, self.bar, self.shown = None, None, ""
        self.metrics = os.path.join(self.out, "metrics.jsonl")
        self.settings_file = os.path.join(self.out, "settings.json")
        # Locked before anybody looks: another process may just now write a checkpoint there.
        self.lock = lock_directory(self.out) if ranks.first and os.path.isdir(self.out) else None
        ranks.wait()
        self.checkpoint = self._newest_checkpoint()
        self._check(files)
        ranks.wait()                                        # all have looked before one writes
        if ranks.first:
            self.lock = self.lock or lock_directory(self.out)
            self._open()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._ask_to_stop)

    # ---- beginning and going on ----
    def _check(self, files: list[str]) -> None:
        """May this run begin or go on here? ValueError, and nothing is touched, where it may not."""
        self.begun_with = {"command": sys.argv, "settings": asdict(self.settings),
                           "sha256": digests(files)}
        self.begun = bool(self.checkpoint) or run_is_begun(self.out)
        if self.begun and not self.settings.resume:
            raise ValueError(f"{self.out} holds a run: --resume goes on with it")
        if self.begun and not self.checkpoint and os.path.exists(f"{self.out}/model/config.json"):
            raise ValueError(f"{self.out} is finished and its checkpoints are gone: the model is"
                             f" {self.out}/model")
        if self.begun:
            self._check_same()
        elif os.path.isdir(self.out) and any(name != "settings.json" and ".partial" not in name
                                             for name in os.listdir(self.out)):
            raise ValueError(f"{self.out} exists and is not a run directory")
        check_output(self.settings_file)
        if self.checkpoint:
            self.state = read_json(os.path.join(self.checkpoint, "state.json"))
            if gone := [step for step in self.settings.keep_at if step <= self.state["step"]
                        and not os.path.isdir(self._kept(step))]:
                raise ValueError(f"keep_at = {gone}: the run is past that")

    def _check_same(self) -> None:
        """ValueError where settings or files are not those that the run was begun with."""
        before = read_json(self.settings_file) or {}
        settings = before.get("settings", {})
        if other := [f"{name} was {settings.get(name)!r}"
                     for name, value in self.begun_with["settings"].items()
                     if name not in self.may_change and value != settings.get(name)]:
            raise ValueError(f"this run was begun with other settings: {', '.join(other)}")
        check_same(self.begun_with["sha256"], before.get("sha256", {}), self.out)

    def _open(self) -> None:
        """Note how the run was begun; drop what a killed run wrote after its last checkpoint."""
        if not self.begun:
            write_json(self.settings_file, self.begun_with)
        last = self.state["step"] if self.checkpoint else -1
        if os.path.exists(self.metrics):
            with open(self.metrics, "rb") as file:          # a kill may have cut the last line
                rows = [json.loads(line) for line in file if line.endswith(b"\n")]
            write_jsonl(self.metrics, [row for row in rows if row["step"] <= last])
        for path in self._numbered("rollouts/step") + self._numbered("texts/step"):
            if _number(path) > last:
                os.remove(path)
        for path in self._numbered("checkpoint"):
            if _number(path) > last:                        # It cannot be read: put it aside.
                aside = os.path.join(self.out, "damaged-" + os.path.basename(path))
                shutil.rmtree(aside, ignore_errors=True)
                os.rename(path, aside)
        for half in glob.glob(glob.escape(self.out) + "/*.partial-*"):
            shutil.rmtree(half, ignore_errors=True)
        for half in glob.glob(glob.escape(self.out) + "/**/*.partial", recursive=True):
            os.remove(half)                                 # a file in the making at a kill

    def _numbered(self, name: str) -> list[str]:
        """The files or directories called NAME-000012 (and an ending), in order."""
        paths = glob.glob(f"{glob.escape(self.out)}/{name}-*")
        return sorted((path for path in paths if ".partial" not in path), key=_number)

    def _newest_checkpoint(self) -> str | None:
        """The last checkpoint that can be read. ValueError where there are some and none can."""
        checkpoints = self._numbered("checkpoint")
        for path in reversed(checkpoints):
            try:
                read_json(os.path.join(path, "state.json"))["step"]
                for file in glob.glob(glob.escape(path) + "/**/*.safetensors", recursive=True):
                    with safe_open(file, "pt"):
                        pass                    # Opened: its header says how long it must be.
                return path
            except (ValueError, TypeError, KeyError, OSError, SafetensorError) as error:
                print(f"{path} is damaged ({error}) and not used", file=sys.stderr)
        if checkpoints:
            raise ValueError(f"{self.out}: no checkpoint can be read")
        return None

    def _kept(self, step: int) -> str:
        return os.path.join(self.out, f"step-{step:06d}")

    def add_part(self, name: str, tensors) -> None:
        """A file of every checkpoint: tensors() gives its tensors by name. They are filled here
        from the checkpoint that the run goes on from."""
        self.parts[name] = tensors
        if self.checkpoint:
            with safe_open(os.path.join(self.checkpoint, name), "pt") as saved, torch.no_grad():
                for key, tensor in tensors().items():
                    tensor.copy_(saved.get_tensor(key))

    # ---- the steps ----
    def steps(self, last: int, name: str):
        """The numbers of the steps that are still to be done, with a bar."""
        self.last, done = last, self.state["step"]
        if done > last:
            raise ValueError(f"steps = {last}: the run is at step {done} already")
        with tqdm(total=last, initial=done, disable=not self.ranks.first, desc=name) as self.bar:
            yield from range(done + 1, last + 1)

    def show_sampling(self, done: int, total: int) -> None:
        """Say in the bar how far the sampling of this step is, now and then."""
        if done % 64 == 0:
            self.bar.set_postfix_str(f"{self.shown} sampling {done}/{total}")

    def _ask_to_stop(self, number, frame) -> None:
        # torchrun passes on the first Ctrl-C at once, so a second signal counts after a second.
        if self.asked_to_stop and time.monotonic() - self.asked_to_stop > 1:
            raise KeyboardInterrupt
        if self.ranks.first and not self.asked_to_stop:
            tqdm.write("stopping after this step; Ctrl-C again to stop at once", file=sys.stderr)
        self.asked_to_stop = time.monotonic()

    def log(self, row: dict) -> None:
        if not self.ranks.first:
            return
        row = {name: None if isinstance(value, float) and not math.isfinite(value) else value
               for name, value in row.items()}
        try:
            with open(self.metrics, "a", encoding="utf-8") as file:
                file.write(as_line(row))
        except OSError as error:
            raise OSError(f"cannot write {self.metrics}: {error.strerror}") from None

    def end_step(self, row: dict, shown: str, model, optimizers: list) -> None:
        """Log a step; save when it is time to; leave if asked to or if nothing is finite."""
        skipped = max(one.skipped for one in optimizers)    # updates in a row, of policy or critic
        self.shown = shown                                  # stays in the bar during the next step
        self.bar.set_postfix_str(shown, refresh=False)
        self.bar.update()
        step = self.state["step"] = row["step"]
        self.log(row)
        if row["skipped"] and self.ranks.first:
            tqdm.write(f"step {step}: the loss or the gradient is not finite; its update is"
                       " left out", file=sys.stderr)
        if skipped >= min(GIVE_UP_AFTER, self.last):
            raise FloatingPointError(f"the last {skipped} losses or gradients were not"
                                     f" finite; what {self.out} holds is from before")
        if step in self.settings.keep_at and self.ranks.first:
            save(model, self._kept(step))                   # before the checkpoint: none is lost
        # All processes must leave at the same step, whichever of them was asked to.
        stopping = self.ranks.sum([float(self.asked_to_stop is not None)])[0] > 0
        last = step == self.last
        if (step % self.settings.save_every == 0 or last or stopping) and not skipped:
            self.save_checkpoint(model)
        if stopping and not last:
            raise Stopped(f"stopped after step {step}; --resume goes on from the last checkpoint")

    # ---- models and checkpoints ----
    def save_checkpoint(self, model) -> None:
        """A checkpoint of the step in `state`; then those before the last `keep` go."""
        path = os.path.join(self.out, f"checkpoint-{self.state['step']:06d}")
        if self.ranks.first and not os.path.exists(path):
            with whole_directory(path) as folder:
                save(model, os.path.join(folder, "model"))
                for name, tensors in self.parts.items():
                    save_tensors(tensors(), os.path.join(folder, name))
                write_json(os.path.join(folder, "state.json"), self.state)
            for old in self._numbered("checkpoint")[:-self.settings.keep]:
                os.rename(old, old + ".partial-old")        # Half a checkpoint must not look whole.
                shutil.rmtree(old + ".partial-old")
        self.ranks.wait()                                   # nobody leaves before it is written

    def keep_best(self, model, score: float) -> None:
        """Save the model as OUT/best if no score before was as high."""
        best = self.state["best"]
        if math.isfinite(score) and (best is None or score > best):
            self.state["best"] = score
            if self.ranks.first:
                save(model, os.path.join(self.out, "best"))

    def finish(self, model) -> None:
        """Save the model. If this run was at its end before, nothing is touched."""
        path = os.path.join(self.out, "model")
        if self.ranks.first and self.bar.n == self.bar.initial and self._is_saved(path):
            print(f"{path} is complete: nothing to do")
        elif self.ranks.first:
            save(model, path)
            if sys.stdout.isatty():             # A person has typed this, not an experiment.
                print(f"to look at it: python scripts/page.py {shlex.quote(self.out)}")
        self.ranks.wait()

    def _is_saved(self, path: str) -> bool:
        """Is the model there that the last checkpoint has? A kill may have left that of fewer steps."""
        try:
            return model_digest(path) == model_digest(os.path.join(self.checkpoint, "model"))
        except (OSError, ValueError):
            return False

    def write_rollouts(self, step: int, groups: list[list[dict]]) -> None:
        """The answers of a step as JSONL, and a few of them to read."""
        name, settings = os.path.join(self.out, "{}", "step-{:06d}.{}"), self.settings
        if settings.rollouts:
            write_jsonl(name.format("rollouts", step, "jsonl"), [
                {key: [round(x, 5) for x in value] if key == "logprobs" else value
                 for key, value in row.items() if key != "prompt_tokens"}
                for group in groups for row in group])
            old = name.format("rollouts", step - settings.rollouts, "jsonl")
            if settings.rollouts > 0 and os.path.exists(old):
                os.remove(old)
        if settings.texts:
            with whole_file(name.format("texts", step, "txt")) as file:
                for row in [group[0] for group in groups[:settings.texts]]:
                    ended = "" if row["finished"] else ", cut off"
                    file.write(f"==== {row['id']}: reward {row['reward']:g}, {len(row['tokens'])}"
                               f" tokens{ended}; gold: {row['gold']}\n{row['prompt']}\n"
                               f"---- answer\n{row['response']}\n\n")


def _number(path: str) -> int:
    return int(re.search(r"-(\d+)[^/]*$", path)[1])


class Clock:
    """Adds up the seconds of `with clock("sample"):` blocks by their names."""

    def __init__(self):
        self.seconds = {}

    @contextlib.contextmanager
    def __call__(self, name: str):
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0) + time.perf_counter() - start
