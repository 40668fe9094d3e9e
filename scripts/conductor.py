"""Runs an experiment: a list of stages, each of which is a command that a person could type.

A stage is skipped when what it makes is there, so the same command goes on where it stopped. With
--jobs 2, two stages run side by side where neither needs the other. A stage needs an earlier one if
a path in its command is one that the earlier stage makes, or lies below or above that.
"""
import glob
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)        # Every script imports this file first, so that it finds the rooms.

from engine.files import whole_file
from engine.flags import Stopped, limits

TRAINERS = ("sft.py", "grpo.py", "ppo.py")


@dataclass(kw_only=True)
class Experiment:
    out: str = ""                           # the run directory
    dry_run: bool = False                   # only print the commands
    jobs: int = limits(1, at_least=1)       # stages that run side by side

    def __post_init__(self):
        os.chdir(ROOT)      # All paths of an experiment are relative to the project.


@dataclass(frozen=True)
class Stage:
    seconds: int                # roughly: only to say how much time is left
    what: str                   # it does, in words
    command: tuple[str, ...]
    made: tuple[str, str]       # The stage is done when the first is there. --out names the second.
    drop: str                   # Files whose names begin so are not needed after it.

    def needs(self, earlier) -> bool:
        made, words = ([os.path.normpath(path) + "/" for path in paths]
                       for paths in (earlier.made, self.command))
        return any(a.startswith(b) or b.startswith(a) for a in made for b in words)


class Plan:
    """The stages of an experiment, and those of them that run."""

    def __init__(self, settings: Experiment, base: str = ""):
        if base and not os.path.exists(f"{base}/config.json"):
            raise ValueError(f"base = {base}: no such model directory")
        vars(self).update(vars(settings), settings=settings, stages=[], running={}, done=0)

    def add(self, text: str, names: dict = {}, drop: str = "") -> None:
        """Stages: a line of seconds and words, then the command, in one line or more.

        {x} is a setting, an attribute of the plan or in `names`; [x] becomes several words. A stage
        makes what --out names, a trainer a model in it, unless its first line ends in -> PATH.
        """
        names = {**vars(type(self)), **vars(self), **names}
        for part in re.split(r"^\s*(?=\d+ )", text, flags=re.MULTILINE)[1:]:
            (head, command), words = part.split("\n", 1), []
            for word in command.split():
                value = names[word[1:-1]] if word[0] == "[" else [word.format_map(names)]
                words += value.split() if isinstance(value, str) else map(str, value)
            out = words[words.index("--out") + 1] if "--out" in words else ""
            head, _, made = head.format_map(names).partition(" -> ")
            seconds, what = head.split(" ", 1)
            made = made or out + "/model" * (words[1] in TRAINERS), out
            drop = drop.format_map(names)
            self.stages.append(Stage(int(seconds), what, tuple(words), made, drop))

    def conduct(self, end: str, free=()) -> None:
        """Run what is not there, or print all. OUT is bound to all settings but the `free` ones."""
        self.stages = list(dict.fromkeys(self.stages))      # Two parts may ask for the same stage.
        if self.dry_run:
            for number, one in enumerate(self.stages, 1):
                print(f"\n# {number}. {one.what}\n{shlex.join(one.command)}")
            return
        path, free = f"{self.out}/settings.txt", {"out", "dry_run", "jobs", *free}
        text = "".join(f"{name}: {value}\n" for name, value in vars(self.settings).items()
                       if name not in free)
        if os.path.exists(path) and open(path).read() != text:
            raise ValueError(f"{self.out} was made with other settings ({path}): another --out?")
        with whole_file(path) as file:
            file.write(text)
        self.waiting = [one for one in self.stages if not os.path.exists(one.made[0])]
        self.begun = time.monotonic()
        signal.signal(signal.SIGTERM, self.stop)            # Ctrl-C reaches the stages by itself.
        try:
            while self.waiting or self.running:
                while one := self.ready():
                    self.start(one)
                time.sleep(0.02)
                for process in [each for each in self.running if each.poll() is not None]:
                    self.end(process)
        except KeyboardInterrupt:
            for process in self.running:
                process.wait()                              # A trainer saves first.
            raise Stopped("stopped; the same command goes on from here") from None
        gone = int(time.monotonic() - self.begun)
        print(f"\n{gone // 60}:{gone % 60:02} min: {end}")

    def ready(self) -> Stage | None:
        """The first stage that waits and needs no unfinished one, if one more may run."""
        unfinished = [one for one, _ in self.running.values()]
        for one in self.waiting if len(unfinished) < self.jobs else ():
            if not any(map(one.needs, unfinished)):
                return one
            unfinished.append(one)

    def start(self, one: Stage) -> None:
        left = sum(each.seconds for each in self.waiting + [of for of, _ in self.running.values()])
        gone = int(time.monotonic() - self.begun)
        rest = f", about {-(-left * gone // self.done // 60)} min left" if self.done else ""
        print(f"\n[{self.stages.index(one) + 1}/{len(self.stages)}] {one.what} ({gone // 60}:"
              f"{gone % 60:02} gone{rest})", flush=True)
        self.waiting.remove(one)
        command = [sys.executable if word == "python" else word for word in one.command]
        if command[1] in TRAINERS and os.path.exists(one.made[1] + "/metrics.jsonl"):
            command.append("--resume")
        output = tempfile.TemporaryFile() if self.jobs > 1 else None    # shown when it has ended
        more = {"OMP_NUM_THREADS": str(max(1, os.cpu_count() // self.jobs))} if output else {}
        process = subprocess.Popen(command, stdout=output, stderr=output, env=more | os.environ)
        self.running[process] = one, output

    def end(self, process) -> None:
        one, output = self.running.pop(process)
        if output:
            output.seek(0)
            print(f"\n--- {one.what}\n{output.read().decode(errors='replace')}", flush=True)
        if process.returncode:
            self.stop()
            raise SystemExit(max(1, process.returncode))
        self.done += one.seconds                # the stated seconds of what has ended
        for path in glob.glob(glob.escape(one.drop) + "*") if one.drop else ():
            os.remove(path)

    def stop(self, *received) -> None:
        for process in self.running:
            process.terminate()
        for process in self.running:
            process.wait()
        if received:            # a signal
            raise KeyboardInterrupt
