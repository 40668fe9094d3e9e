"""One HTML page of any run: curves, answers with every token coloured, sample effects, and what the
models of an experiment answer to the same problems.

    python scripts/page.py runs/tiny-0                      # an experiment: runs/tiny-0.html
    python scripts/page.py runs/a runs/b --out both.html    # runs side by side
    python scripts/page.py runs/rl --watch                  # written anew while the run goes on

It is one file to open from the disk, without network or library, made of what is at these paths
and below: runs, directories of effect.py, rollouts of sample.py. Of many answers it has a part,
and says so. Two colours of tokens need the base: the change of log p from it, and the slope of
log p along G, which is the effect of a token: effect.py sums it over an answer.
"""
import contextlib
import glob
import json
import os
import random
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

from conductor import ROOT
from engine.flags import command, limits, parse


@dataclass(kw_only=True)
class Settings:
    runs: list[str]             # run, effect and experiment directories, and rollout files
    out: str = ""               # the page; else the name of the first of them with .html
    base: str = ""              # model directory to compare answers with; else where the runs began
    test: str = ""              # problems for G, at most 32; else those that effect.py had
    tokens: int = limits(150_000, at_least=1)       # of answers on the page, 30 bytes each
    largest: float = limits(20.0, at_least=0)       # millions of parameters of a base to load
    watch: bool = False         # write the page again whenever there is more, until Ctrl-C
    every: float = limits(5.0, at_least=0.1)        # seconds between two looks
    tensorboard: str = ""       # directory: also write the curves there, as TensorBoard events


if __name__ == "__main__":      # before torch is imported: --help and a wrong flag answer at once
    settings = parse(Settings, __doc__, positional="runs")

import torch
from tqdm import tqdm

import effect
import kk_gen
from engine.batches import of_each, response_logprobs
from engine.directions import changed_weights, inner
from engine.evaluate import as_sequence
from engine.examples import read_datasets
from engine.files import check_output, read_json, read_jsonl, whole_file
from engine.memory import parameters_in
from engine.problems import read_problems
from engine.processes import Ranks
from engine.tokenizer import encode_prompts, load_tokenizer
from grpo import advantages
from model import Config, load
from report import WORDS
from verify import style

# Kind of a source -> the note of its command, its files, and its share of the tokens on the page.
KINDS = {"run": ("/settings.json", "/rollouts/step-*.jsonl", 8), "sample": (".config.json", "", 1),
         "effect": ("/summary.json", "/*.effects.jsonl", 4)}
POINTS = 400        # of a curve, and bars of a dataset: more are thinned


def find(tops: list[str]) -> list:
    """All sources at these paths and below them, with what their commands have noted."""
    found, root = [], os.path.commonpath([os.path.dirname(os.path.abspath(top)) for top in tops])
    for top in tops:
        before, notes = len(found), glob.glob(f"{glob.escape(top)}/**/*.json", recursive=True)
        for note in [top + ".config.json"] if os.path.isfile(top) else sorted(notes):
            for kind, (end, pattern, _) in KINDS.items():
                path = note.removesuffix(end)
                files = sorted(glob.glob(glob.escape(path) + pattern))
                if note.endswith(end) and (files or kind == "run"):
                    made = read_json(note) or {}
                    found.append(SimpleNamespace(
                        kind=kind, path=path, name=os.path.relpath(os.path.abspath(path), root),
                        method=os.path.basename(made.get("command", [kind])[0]).removesuffix(".py"),
                        settings=made.get("settings", {}), files=files))
        if len(found) == before:
            raise ValueError(f"{top}: no run, no effects and no rollouts of sample.py are there")
    return found


def parsed(place: str, line: bytes, **kinds) -> dict:
    try:
        row = json.loads(line)
        wrong = [name for name in kinds if not isinstance(row.get(name), kinds[name])]
    except (ValueError, RecursionError, AttributeError):
        wrong = ["all of it is no JSON object"]
    if wrong:
        raise ValueError(f"{place}: {', '.join(wrong)}: missing, or of another kind")
    return row


def thinned(items: list) -> list:
    """At most POINTS of them, evenly, with the last."""
    return items[::-(len(items) // POINTS + 1)][::-1]


def flat(value, name: str = "") -> dict[str, float]:
    """The numbers in a row of metrics: {"by_level": {"3": 1}} is {"by_level.3": 1}."""
    if isinstance(value, dict):
        return {key: number for part in value
                for key, number in flat(value[part], f"{name}.{part}".lstrip(".")).items()}
    return {name: value} if isinstance(value, int | float) else {}


def curves(source) -> dict:
    """Every number of metrics.jsonl as a column. A kill may have cut the last line."""
    path = Path(source.path, "metrics.jsonl")
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    rows = [parsed(f"{path}:{i}", line, step=int) for i, line in enumerate(lines, 1)]
    kept = [flat({**row, "seconds": None}) for row in thinned(rows)]
    return {"name": source.name, "method": source.method, "of": len(rows), "columns": {
        name: [row.get(name) for row in kept] for name in dict.fromkeys(sum(map(list, kept), []))}}


def write_events(runs: list[dict], folder: str) -> None:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return print("page.py: no TensorBoard events: pip install tensorboard", file=sys.stderr)
    for run in runs:
        with SummaryWriter(os.path.join(folder, run["name"])) as writer:
            for name, column in run["columns"].items():
                for step, value in zip(run["columns"]["step"], column):
                    if value is not None:
                        writer.add_scalar(name.replace(".", "/"), value, step)


def read_puzzle(row: dict) -> tuple[list, list]:
    """Of a Knights & Knaves row: its claims, each with a number whose bit r says if it is true in
    row r of the truth table. Of each step of the response: its end in the text, and why it is
    wrong, or "". Rows of a table are judged one by one; behind a fault of a search is None."""
    try:
        of = kk_gen.statements_of(row), row["names"], row["knight_knave"]
        of = *of, row["prompt"] == kk_gen.compact_prompt(*of)
    except (ValueError, KeyError, TypeError):
        return [], []
    statements, names, words, _ = of
    claims = [[kk_gen.claim_text(said, names, words), hex(kk_gen.true_rows(said, len(names)))]
              for said in statements]
    steps, ends, at = [], [], 0
    for line in kk_gen.lines_of(row["response"]):
        if step := kk_gen.read_steps(line, *of):
            at = max(at, row["response"].find(line, at) + len(line))
            steps, ends = steps + step, ends + [at]
    kind = steps[0][0] if steps else "answer"
    kind = kind if kind in ("table", "worked") else "guess" if kind == "answer" else "search"
    right = kk_gen.chain_of_thought(statements, kind, like=steps) + [None] * len(steps)
    fault = (kk_gen.check_chain_of_thought(statements, steps) or (len(steps),))[0]
    judged = len(steps) if kind in ("table", "worked") else fault + 1
    marks = [(end, "" if i < fault else None) for i, end in enumerate(ends)]
    for i in range(fault, min(judged, len(steps))):
        ours = kk_gen.step_text(right[i], *of) if right[i] else "nothing more"
        marks[i] = (ends[i], "" if steps[i] == right[i] else f"right here: {ours}")
    return claims, [(len(row["response"][:end].encode("utf-16-le", "surrogatepass")) // 2, why)
                    for end, why in marks]          # as a browser counts: an emoji is two


def groups_in(path: str, room: float) -> tuple[list[list[dict]], int]:
    """Groups of answers to a prompt, as many as find room, and how many there are. They are drawn,
    from files with as many groups the same ones. Other lines are not parsed: `"sample": 0,` is no
    part of a text, where a quote is written \\"."""
    groups, taken = [], []
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if not groups or b'"sample": 0,' in line or b'"sample": ' not in line:
                groups.append([])
            groups[-1].append((f"{path}:{number}", line))
    for group in random.Random(0).sample(groups, len(groups)):
        rows = [parsed(*one, id=int | str, prompt=str, response=str, tokens=list,
                       reward=int | float, finished=bool) for one in group]
        room -= sum(len(row["tokens"]) for row in rows)
        if taken and room < 0:
            break
        taken.append(rows)
    return taken, len(groups)


class Page:
    """What goes onto the page. What cannot be had is `missing`, with the reason."""
    micro_tokens, pack = 0, True            # of a pass through the base: see engine/batches.py

    def __init__(self, sources: list, settings):
        self.sources, self.groups, self.sets, self.missing = [], [], [], {}
        self.pieces, self.problems = {}, {}     # Each is on the page once, and has a number.
        self.tokenizer = self.model = self.G = None
        self.find_base(sources, settings)
        shares = [KINDS[one.kind][2] * len(one.files[:1]) for one in sources]
        for source, share in zip(tqdm(sources, desc="page", disable=None), shares):
            add = self.add_effects if source.kind == "effect" else self.add_answers
            counts = add(source, settings.tokens * share / max(1, sum(shares)))
            self.sources.append({"name": source.name, "kind": source.kind, "counts": counts})

    def find_base(self, sources: list, settings) -> None:
        """Load the model that answers are compared with, and compute G, as effect.py did."""
        given = [one.settings for kind in ("effect", "run") for one in sources if one.kind == kind]
        self.base = next(filter(None, [settings.base, *(one.get("model") for one in given)]), "")
        try:
            if not self.base:
                raise ValueError("no base is known: --base DIR")
            self.tokenizer = load_tokenizer(self.base)
            if settings.watch:
                raise ValueError("this comes after Ctrl-C: it would slow the run down")
            if (size := parameters_in(Config.load(self.base)) / 1e6) > settings.largest:
                raise ValueError(f"{self.base} has {size:,.1f} million parameters: see --largest")
            self.model = load(self.base)
            if not (settings.test or given and "test" in given[0]):
                raise ValueError("no problems for G are known: --test FILE")
            about = effect.Settings(model="", test=settings.test, data=[], limit=32)
            about = SimpleNamespace(**vars(about) | (given[0] if not settings.test else {}))
            problems = read_problems(about.test, about.template)[:about.limit or None]
            (a, b), _ = effect.reward_gradient(self.model, problems, self.tokenizer, about)
            self.G = {name: (a[name] + b[name]) / 2 for name in a}
        except (ValueError, OSError) as error:
            names = ["effect", *["change"] * (not self.model), *["tokens"] * (not self.tokenizer)]
            self.missing = dict.fromkeys(names, f"{error}")

    def numbers(self, sequences: list, temperature: float):
        """log p of each token of the answers under the base, and its slope along G (effect.py)."""
        def logprobs(temperature=1.0):
            rows = of_each(lambda some: response_logprobs(self.model, some, True, temperature),
                           sequences, Ranks("cpu"), self)
            return [rows[i].double().numpy() for i in range(len(sequences))]
        slopes, ends, G, weights = [[]] * len(sequences), [], self.G, self.model.state_dict()
        if G:
            step = effect.STEP * (inner(weights, weights) / inner(G, G)) ** 0.5
            for way in (step, -step):
                with changed_weights(self.model, lambda name, p: p.detach() + way * G[name]):
                    ends.append(logprobs())
            slopes = [(after - before) / (2 * step) for after, before in zip(*ends)]
        return zip(logprobs(temperature), slopes)

    def problem(self, row: dict, claims: list) -> int:
        key = f"{row.get('id')} {row.get('prompt')}"
        if key not in self.problems:
            self.problems[key] = {"number": len(self.problems), "claims": claims, **{
                name: row.get(name) for name in ("id", "prompt", "gold", "level", "names")}}
        return self.problems[key]["number"]

    def texts(self, row: dict) -> list[str]:
        """The text of each token; none if prompt or tokens are not such as the base has."""
        prompt, tokens = row["prompt"].encode(errors="ignore").decode(), row["tokens"]
        size = self.tokenizer.get_vocab_size(with_added_tokens=True) if self.tokenizer else 0
        if size == 0 or row["prompt"] != prompt or not all(
                type(token) is int and 0 <= token < size for token in tokens) or not \
                self.tokenizer.decode(tokens, False).startswith(row["response"]):
            return []
        return self.tokenizer.decode_batch([[token] for token in tokens], False)

    def answers(self, source, rows: list[dict], sequences=None) -> list[dict]:
        """The rows as the page has them: tokens, marks of K&K steps, and numbers of each token."""
        answers, texts = [], [*map(self.texts, rows)]
        for row, pieces in zip(rows, texts):
            claims, steps = read_puzzle(row)
            answers.append({
                "p": self.problem(row, claims), "n": row.get("sample", 0), "r": row.get("reward"),
                "end": row.get("finished", True), "style": style(row) if row.get("task") else "",
                "t": [self.pieces.setdefault(piece, len(self.pieces))
                      for piece in pieces or [row["response"]]],
                "lp": pieces and row.get("logprobs") or [], "steps": steps})
        if not all(texts):
            self.missing.setdefault("tokens", f"{source.name} has others than the base")
        elif self.model and rows:
            prompts = encode_prompts(self.tokenizer, [row["prompt"] for row in rows])
            sequences = sequences or [as_sequence({**row, "prompt_tokens": prompt})
                                      for prompt, row in zip(prompts, rows)]
            heat = source.kind != "effect" and source.settings.get("temperature") or 1.0  # greedy
            for answer, (logp, slopes) in zip(answers, self.numbers(sequences, heat)):
                answer |= {"base": [*map(float, logp)], "effect": [*map(float, slopes)]}
        return answers

    def add_answers(self, source, room: float) -> list[int]:
        """The answers of a run or of a file. Returns how many groups of how many, and files."""
        groups, counts, files = [], [], random.Random(0).sample(source.files, len(source.files))
        for path in files:                  # Each has at least one group here, while there is room.
            if (left := room - sum(len(row["tokens"]) for group in groups for row in group)) > 0:
                taken, count = groups_in(path, left / (len(files) - len(counts)))
                groups, counts = groups + taken, counts + [count]
        answers = iter(self.answers(source, [row for group in groups for row in group]))
        for group in groups:
            rewards = torch.tensor([[float(row["reward"]) for row in group]])
            trained = source.method == "grpo" and len(group) > 1
            A = advantages(rewards, source.settings["std_norm"]) if trained else [[]]
            self.groups.append({"s": len(self.sources), "step": group[0].get("step", 0),
                                "A": [*map(float, A[0])], "a": [next(answers) for _ in group]})
        return [len(groups), sum(counts), len(counts), len(files)]

    def add_effects(self, source, room: float) -> None:
        """The datasets of effect.py, with the texts of some examples."""
        rows, datasets = read_json(f"{source.path}/summary.json")["data"], {}
        try:
            datasets = {one.name: one for one in read_datasets(SimpleNamespace(
                **source.settings), self.tokenizer, Config.load(self.base), set())}
        except (ValueError, OSError) as error:
            self.missing["examples"] = f"{error}"
        for row in rows:
            examples = read_jsonl(f"{source.path}/{row['data']}.effects.jsonl", "id", "effect")
            bars = thinned(sorted(range(len(examples)), key=lambda i: examples[i]["effect"]))
            data, shown = datasets.get(row["data"]), []
            if data and data.ids() == [one["id"] for one in examples]:
                shown = bars[::int(len(bars) * row["length"] * len(rows) / max(1, room)) + 1]
            some = [data.sequences[i] for i in shown]
            answers = dict(zip(shown, self.answers(source, [
                {**data.rows[i], "tokens": one.tokens[one.start:].tolist()}
                for i, one in zip(shown, some)], some)))
            self.sets.append({**row, "bars": [
                [examples[i]["id"], examples[i]["effect"], answers.get(i)] for i in bars]})


def write(out: str, sources: list, settings) -> None:
    page, runs = Page(sources, settings), [curves(one) for one in sources if one.kind == "run"]
    if settings.tensorboard:
        write_events(runs, settings.tensorboard)
    data = {"title": settings.runs, "words": WORDS, "runs": runs, "sources": page.sources,
            "groups": page.groups, "sets": page.sets, "pieces": [*page.pieces], "problems":
            [*page.problems.values()], "base": page.base, "missing": page.missing,
            "reload": settings.every if settings.watch else 0}
    data = json.loads(json.dumps(data), parse_float=lambda x: float(f"{float(x):.4g}"),
                      parse_constant=lambda _: None)        # NaN is no number to show.
    nonce, template = random.SystemRandom().getrandbits(64), Path(ROOT, "scripts", "page.html")
    before, after = template.read_text("utf-8").replace("{{nonce}}", str(nonce)).split("{{data}}")
    with whole_file(out) as file:       # Without "<", no text can end the element that it is in.
        text = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
        file.write(before + text + after)


def main(settings: Settings) -> None:
    sources, seen = find(settings.runs), None
    out = settings.out or f"{os.path.normpath(settings.runs[0])}.html"
    check_output(out)
    with contextlib.suppress(KeyboardInterrupt):
        while settings.watch:
            if seen != (seen := [(one, curves(one)["of"]) for one in sources]):
                write(out, sources, settings)
            time.sleep(settings.every)
            sources = find(settings.runs)
    settings.watch = False
    write(out, sources, settings)
    print(f"{out}: {os.path.getsize(out) / 1e6:.1f} MB")


if __name__ == "__main__":
    command(main, settings)
