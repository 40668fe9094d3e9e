"""Runs an experiment: a list of stages, each of which is a command that a person could type.

A stage is skipped when what it makes is there, so the same command goes on where it stopped. A stage
needs another one if a path in its command is one that the other makes, or lies below or above that.
Stages that do not need each other run side by side, and the seeds stand in the commands: so what
comes out does not depend on how many run at a time.
"""
import glob
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)        # Every script imports this file first, so that it finds the rooms.

from engine.files import lock_directory, run_is_begun, whole_file
from engine.flags import Stopped, limits

TRAINERS = ("sft.py", "grpo.py", "ppo.py", "distill.py")
INPUTS = ("--model", "--init", "--tokenizer", "--data", "--source", "--exclude", "--test", "--val",
          "--eval", "--teacher", "--text")      # flags whose values are files or directories that a stage reads
ALWAYS = "(always)"     # what a stage makes that is never skipped
SMALL = 12e6    # bytes of weights: 3 million parameters; fewer use one thread (engine/processes.py)


@dataclass(kw_only=True)
class Experiment:
    out: str = ""                           # the run directory
    dry_run: bool = False                   # only print the commands
    jobs: int = limits(0, at_least=0)       # stages that run side by side; 0: two on two cores, if
    #                                         the model is so small that each uses one

    def __post_init__(self):
        os.chdir(ROOT)      # All paths of an experiment are relative to the project.


@dataclass(frozen=True)
class Stage:
    seconds: int                # it takes on one core, roughly: to say how much time is left
    what: str                   # it does, in words
    command: tuple[str, ...]
    made: str                   # It is done when this is there.
    out: str                    # what its --out names
    drop: str                   # What has a name that begins so is not needed after it.


class Plan:
    """The stages of an experiment, in an order in which they can run one by one.

    Its attributes are words for commands: paths are quoted as in a shell.
    """

    def __init__(self, settings: Experiment, base: str = ""):
        if base and not os.path.exists(f"{base}/config.json"):
            raise ValueError(f"base = {base}: no such model directory")
        weights = sum(map(os.path.getsize, glob.glob(f"{glob.escape(base)}/*.safetensors")))
        self.jobs = settings.jobs or (2 if weights <= SMALL and (os.cpu_count() or 1) > 1 else 1)
        self.settings, self.stages = settings, []
        self.written: list[str] = []        # files in OUT that the script writes and no stage
        self.out, self.base = shlex.quote(settings.out), shlex.quote(base)

    def add(self, seconds: int, what: str, command: str, made: str = "", drop: str = "") -> None:
        """A stage. What it makes is what its --out names; of a trainer, the model in there."""
        words = shlex.split(command)
        out = words[words.index("--out") + 1] if "--out" in words else ""
        trainer = words[1] in TRAINERS
        made = shlex.split(made)[0] if made else out + "/model" * trainer
        drop = drop or shlex.quote(out + "/checkpoint-") * trainer      # The model stays.
        stage = Stage(seconds, what, tuple(words), made, out, "".join(shlex.split(drop)))
        if stage not in self.stages:                        # Two parts may ask for the same stage.
            self.stages.append(stage)

    def conduct(self, end: str, free=()) -> None:
        """Run what is not there, or print all. OUT is bound to its inputs, and to all settings but
        the `free` ones."""
        settings, inputs = self.settings, self.inputs()
        if settings.dry_run:
            print(self.script())
            return
        if inputs:
            from engine.inputs import digests       # It imports torch, which takes a second.
        path, free = f"{settings.out}/settings.txt", {"out", "dry_run", "jobs", *free}
        record = {name: value for name, value in vars(settings).items() if name not in free}
        text = "".join(f"{name}: {value}\n" for name, value in
                       {**record, **(digests(inputs) if inputs else {})}.items())
        lock = lock_directory(settings.out)
        if os.path.exists(path) and open(path).read() != text:
            raise ValueError(f"{settings.out} was made with other settings or inputs ({path}):"
                             " another --out?")
        with whole_file(path) as file:
            file.write(text)
        Conductor(self.stages, self.jobs).run(end)
        os.close(lock)

    def inputs(self) -> list[str]:
        """What the stages read and none of them makes. ValueError where it is not there."""
        made = {os.path.normpath(path) for stage in self.stages for path in (stage.made, stage.out)}
        made |= set(map(os.path.normpath, self.written))
        given = {}
        for stage in self.stages:
            flag = ""
            for word in stage.command[2:]:
                flag = word if word.startswith("--") else flag
                path = path_in(word)
                if flag in INPUTS and word != flag and made.isdisjoint(upwards(path)):
                    if not os.path.exists(path):
                        raise ValueError(f"{path}: no such file or directory ({stage.what})")
                    given[path] = None
        return list(given)

    def script(self) -> str:
        """The commands, each behind a line that says what it does."""
        return "".join(f"\n# {number}. {stage.what}\n{shlex.join(stage.command)}\n"
                       for number, stage in enumerate(self.stages, 1))


class Running:
    """A stage that runs. What it prints goes to files, so that two do not print into one another."""

    def __init__(self, stage: Stage):
        command = [sys.executable if word == "python" else word for word in stage.command]
        if command[1] in TRAINERS and run_is_begun(stage.out):
            command.append("--resume")
        self.stage, self.begun = stage, time.monotonic()
        self.results, self.messages = tempfile.TemporaryFile(), tempfile.TemporaryFile()
        self.process = subprocess.Popen(command, stdout=self.results, stderr=self.messages)

    def seconds(self) -> float:
        return time.monotonic() - self.begun

    def progress(self) -> str:
        """The bar that the stage shows now, without its picture."""
        line = re.split(r"[\r\n]+", self.read(self.messages, last=1000).rstrip())[-1]
        return re.sub(r"\|.*\|", "", line)

    def said(self) -> str:
        """What it printed: results, then messages without the bars."""
        messages = [re.sub(".*\r", "", line) for line in self.read(self.messages).splitlines(True)]
        kept = [line for line in messages if not re.search(r"\d+%\|.*\[", line)]
        return self.read(self.results) + "".join(kept)

    @staticmethod
    def read(file, last: int = 0) -> str:
        """The text of the file, or its last bytes. The stage writes elsewhere in the same file."""
        size = os.fstat(file.fileno()).st_size
        begin = max(0, size - last) if last else 0
        return os.pread(file.fileno(), size - begin, begin).decode(errors="replace")


class Conductor:
    """Runs stages: each when those that it needs are done, at most `jobs` at a time."""

    def __init__(self, stages: list[Stage], jobs: int):
        self.stages, self.jobs, self.begun = stages, jobs, time.monotonic()
        self.waiting = [stage for stage in stages if not os.path.exists(stage.made)]
        self.running: list[Running] = []
        self.needs = needs(self.waiting)
        # Seconds of the longest chain of stages that begins with this one.
        self.chain = {stage: stage.seconds for stage in self.waiting}
        for stage in reversed(self.waiting):
            for earlier in self.needs[stage]:
                self.chain[earlier] = max(self.chain[earlier], earlier.seconds + self.chain[stage])
        self.stated = self.taken = 60.0     # seconds of what has ended: as stated, and as they were
        self.shown = 0                      # lines at the bottom of the screen that change

    def run(self, end: str) -> None:
        signal.signal(signal.SIGTERM, self.interrupt)       # Ctrl-C reaches the stages by itself.
        try:
            while self.waiting or self.running:
                while stage := self.ready():
                    self.start(stage)
                self.show()
                time.sleep(0.1)
                for one in [one for one in self.running if one.process.poll() is not None]:
                    self.end(one)
        except KeyboardInterrupt:
            self.say("stopping; trainers save first")
            for one in self.running:
                one.process.wait()
            raise Stopped("stopped; the same command goes on from here") from None
        finally:
            self.stop()         # None goes on alone, whatever ends this program.
        print(f"{minutes(time.monotonic() - self.begun)} min: {end}")

    def ready(self) -> Stage | None:
        """A stage that can start now: the one with the longest chain of others behind it."""
        if len(self.running) >= self.jobs:
            return None
        unfinished = {*self.waiting, *(one.stage for one in self.running)}
        able = [stage for stage in self.waiting if not self.needs[stage] & unfinished]
        return max(able, key=self.chain.get, default=None)

    def start(self, stage: Stage) -> None:
        self.waiting.remove(stage)
        self.running.append(Running(stage))
        if not sys.stdout.isatty():
            print(self.name(stage), flush=True)

    def end(self, one: Running) -> None:
        """Show what a stage printed. If it failed, leave with its code."""
        self.running.remove(one)
        result = f"{minutes(one.seconds())} min" if one.process.returncode == 0 else "failed"
        self.say(f"{self.name(one.stage)}: {result}\n{one.said()}")
        if one.process.returncode:
            raise SystemExit(max(1, one.process.returncode))
        self.stated, self.taken = self.stated + one.stage.seconds, self.taken + one.seconds()
        for path in glob.glob(glob.escape(one.stage.drop) + "*") if one.stage.drop else ():
            shutil.rmtree(path) if os.path.isdir(path) else os.remove(path)

    def stop(self) -> None:
        for one in self.running:
            one.process.terminate()
        for one in self.running:
            one.process.wait()

    def interrupt(self, *_) -> None:
        self.stop()
        raise KeyboardInterrupt

    # ---- what a person sees ----
    def name(self, stage: Stage) -> str:
        return f"[{self.stages.index(stage) + 1}/{len(self.stages)}] {stage.what}"

    def left(self) -> float:
        """Seconds until the end, from the stated ones and how well these have held so far."""
        slower = self.taken / self.stated
        rests = {one.stage: max(0, one.stage.seconds * slower - one.seconds())
                 for one in self.running}
        work = sum(stage.seconds * slower for stage in self.waiting) + sum(rests.values())
        chains = [self.chain[stage] * slower for stage in self.waiting]
        return max(work / self.jobs, *chains, *rests.values(), 0)

    def show(self) -> None:
        """A line for each running stage and one for the time left, in place of those before."""
        if not sys.stdout.isatty():
            return
        lines = [f"{self.name(one.stage)}: {one.progress()}" for one in self.running]
        lines.append(f"{minutes(time.monotonic() - self.begun)} min gone, about"
                     f" {minutes(self.left())} left")
        width = shutil.get_terminal_size().columns - 1
        self.say("\n".join(line[:width] for line in lines))
        self.shown = len(lines)

    def say(self, text: str) -> None:
        """Print in place of the lines that change."""
        up = f"\033[{self.shown}A\r\033[J" if self.shown else ""
        print(up + text.rstrip("\n"), flush=True)
        self.shown = 0


def needs(stages: list[Stage]) -> dict[Stage, set[Stage]]:
    """For each stage those before it that make a path in its command, or one below or above it."""
    needed, makers, inside = {}, {}, {}
    for stage in stages:
        needed[stage] = set()
        for word in map(path_in, stage.command):
            needed[stage] |= inside.get(os.path.normpath(word), set())
            needed[stage].update(*(makers.get(path, ()) for path in upwards(word)))
        for path in filter(None, (stage.made, stage.out)):
            makers.setdefault(os.path.normpath(path), set()).add(stage)
            for above in upwards(path):
                inside.setdefault(above, set()).add(stage)
    return needed


def path_in(word: str) -> str:
    """The word, or what stands behind a name in it, as in --teacher kk=DIR."""
    name, equals, path = word.partition("=")
    return path if equals and name.isalnum() else word


def upwards(path: str) -> list[str]:
    """The path and every directory above it: a/b/c, a/b, a."""
    parts = os.path.normpath(path).split("/")
    return ["/".join(parts[:count]) for count in range(len(parts), 0, -1)]


def minutes(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"
