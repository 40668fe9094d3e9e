"""The file of sampled answers, which survives a kill; and a bar that shows how many there are."""
import os
import sys
import time
from dataclasses import asdict

from tqdm import tqdm

from engine.files import (as_line, check_output, lock, read_json, read_jsonl, sync, write_json,
                          write_jsonl)
from engine.inputs import check_same, digests


class RolloutFile:
    """OUT: n sampled answers to every problem, in order. While they are sampled they are in
    OUT.partial, in the order in which they end.

    A sample depends on nothing but the settings, the data and the model. So the same command, given
    again, samples what is missing, and the file comes out the same. OUT.config.json tells whether
    it is the same command, on the same data and model.

        rollouts = RolloutFile(settings, problems)
        with rollouts:
            ...             # for each problem of rollouts.missing(): rollouts.add(problem, ...)
        rollouts.finish()
    """

    def __init__(self, settings, problems: list[dict]):
        path = settings.out
        self.path, self.partial, self.config = path, path + ".partial", path + ".config.json"
        self.problems, self.n = problems, settings.n
        self.made_with = {
            "command": sys.argv, "inputs": digests([settings.data, settings.model]),
            "settings": {name: value for name, value in asdict(settings).items()
                         if name not in ("out", "slots")}}
        self.order = {problem["id"]: i for i, problem in enumerate(problems)}
        self.rows = {}                                      # (id, sample) -> row
        if len(self.order) < len(problems):
            raise ValueError(f"{settings.data}: problem ids are not unique")
        self.complete = os.path.exists(path)
        begun = os.path.exists(self.partial) and os.path.getsize(self.partial) > 0
        self.is_new = not self.complete and not begun
        if self.is_new:
            check_output(path, [settings.data])
        else:
            self._check_settings()
        if self.complete:
            print(f"{path} is complete: nothing to do")
        elif not self.is_new:
            self._read_partial()

    def _check_settings(self) -> None:
        try:
            before = read_json(self.config)
            settings, inputs = dict(before["settings"]), dict(before["inputs"])
        except (OSError, ValueError, KeyError, TypeError):
            raise ValueError(f"{self.path} exists, but {self.config} does not say what made it") \
                from None
        if other := [f"{name} was {settings.get(name)!r}"
                     for name, value in self.made_with["settings"].items()
                     if value != settings.get(name)]:
            raise ValueError(f"{self.path} was made with other settings ({', '.join(other)})")
        check_same(self.made_with["inputs"], inputs, self.path)

    def _open(self) -> None:
        """Open OUT.partial to add to it, and lock it; ValueError where another process has."""
        self.file = open(self.partial, "a", encoding="utf-8")
        lock(self.file.fileno(), f"another process is writing {self.path}")

    def _read_partial(self) -> None:
        self._open()
        with open(self.partial, "rb+") as file:             # A kill may have cut the last line.
            file.truncate(file.read().rfind(b"\n") + 1)
        self.rows = {(row["id"], row["sample"]): row
                     for row in read_jsonl(self.partial, "id", "sample")}
        if self.rows:
            print(f"{self.partial}: {len(self.rows)} rollouts are there,"
                  f" {len(self.missing()[1])} problems remain")

    def missing(self) -> tuple[list[int], list[dict]]:
        """The problems that lack one of their n samples: their indices in the data, and they."""
        indices = [i for i, problem in enumerate(self.problems)
                   if any((problem["id"], j) not in self.rows for j in range(self.n))]
        return indices, [self.problems[i] for i in indices]

    def __enter__(self):
        if self.is_new:
            self._open()
            write_json(self.config, self.made_with)
        self.start, self.tokens = time.perf_counter(), 0
        return self

    def __exit__(self, error, *_):
        sync(self.partial)
        if self.is_new and not self.rows:       # Nothing came of it: leave nothing behind.
            os.remove(self.partial)
            os.remove(self.config)
        if error:
            self.file.close()

    def add(self, problem: dict, number: int, sample, text: str, reward: float) -> None:
        """Write one answer down at once, unless it was there before."""
        self.tokens += len(sample.tokens)
        row = {**problem, "sample": number, "response": text, "tokens": sample.tokens,
               "logprobs": [round(x, 5) for x in sample.logprobs], "finished": sample.finished,
               "reward": reward, "step": 0}
        if (row["id"], number) not in self.rows:
            self.rows[row["id"], number] = row
            self.file.write(as_line(row))
            self.file.flush()

    def finish(self) -> None:
        """Put all rows in order, by problem and then by sample, and say what they are like."""
        seconds, count = time.perf_counter() - self.start, len(self.rows)
        rows = sorted(self.rows.values(), key=lambda row: (self.order[row["id"]], row["sample"]))
        write_jsonl(self.path, rows)
        os.remove(self.partial)
        self.file.close()
        print(f"{self.path}: {count} rollouts of {len(self.problems)} problems,"
              f" reward {sum(row['reward'] for row in rows) / count:.3f},"
              f" cut off {sum(not row['finished'] for row in rows) / count:.1%},"
              f" mean length {sum(len(row['tokens']) for row in rows) / count:.1f} tokens,"
              f" {self.tokens / seconds:,.0f} tokens/s")


def with_bar(ends, total: int, shown: bool):
    """Pass on (prompt, sample, Sample), and show how many there are and how fast they come."""
    tokens, start = 0, time.perf_counter()
    with tqdm(total=total, disable=not shown, unit="seq", desc="sample") as bar:
        for i, j, sample in ends:
            tokens += len(sample.tokens)
            rate = tokens / (time.perf_counter() - start)
            bar.set_postfix_str(f"{rate:,.0f} tokens/s", refresh=False)
            bar.update()
            yield i, j, sample
