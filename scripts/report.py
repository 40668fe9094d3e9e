"""The report of redistill.py: tables, findings and figures from what its stages left behind.

    python scripts/report.py --runs runs/tiny-0 --out runs/tiny-0
    python scripts/report.py --runs runs/tiny-{0,1,2,3,4,5} --out results/redistill

Writes models.csv (every model, measured in every way), curves.csv (every step of GRPO), figure.png
where matplotlib is installed, and then report.md. One run is shown with the 95 % intervals of its
test problems, several with their mean and range. Of an unfinished run it shows what is there.
"""
import csv
import glob
import os
from dataclasses import dataclass
from statistics import StatisticsError, correlation

import conductor  # so that Python finds the files above scripts/
from engine.files import data_files, numbered_rows, read_json, read_jsonl, whole_file
from engine.flags import command, parse
from verify import read_rollouts, rows_of, score

WORDS = {       # for a model, in the order of the report
    "base": "the base", "sft_both": "SFT on both styles", "sft_short": "SFT on short chains",
    "sft_long": "SFT on long chains", "rl_base": "GRPO from the base",
    "rl_both": "GRPO from SFT on both styles", "rl_short": "GRPO from SFT on short chains",
    "rl_long": "GRPO from SFT on long chains", "sft_a": "re-distilled (greedy answers)",
    "sft_b": "re-distilled (answers of the last steps)",
    "sft_foreign": "SFT on the same problems, other answers", "sft_at": "SFT on answers of {steps}",
    "sft_wrong": "SFT on wrong answers of {steps}", "sft_guess": "SFT on bare answers",
    "rl_a": "GRPO from re-distilled (greedy answers)", "rl_b": "GRPO from re-distilled (last steps)",
    "instruct": "the instruct model", "rl_instruct": "GRPO from the instruct model"}
SMOOTH = 5      # steps in the running mean that says when GRPO has converged
EFFECTS = ("effect", "effect_error", "effect_per_token", "effect_cosine")
FAR = ("kl_per_token", "k1_per_answer", "other_texts")      # from the base: scripts/drift.py
ABOUT = ("words", "from", "made_with", "examples", "tokens", "answer_tokens",
         *EFFECTS, *FAR)        # a model, in this order in models.csv
STEP = ("step", "samples", "tokens", "reward", "length", "kl", "cut_off", "entropy", "equal_groups")
COLOURS = ("#4c566a", "#2a78c2", "#c2572a", "#3a9a5b", "#8a5bb0", "#b09a2a", "#b04a7a", "#2a9ab0",
           "#7a4a2a", "#111111", "#9ac23a", "#e08ab0")
STYLE_COLOURS = {"search": "#2a78c2", "table": "#c2572a", "worked": "#3a9a5b", "guess": "#8a5bb0",
                 "mixed": "#b09a2a", "other": "#9a9a9a", "code": "#c2572a", "prose": "#9a9a9a",
                 "bare": "#2a78c2", "equation": "#8a5bb0", "steps": "#3a9a5b"}  # in report's order


@dataclass(kw_only=True)
class Settings:
    runs: list[str]             # directories that redistill.py made, with the same settings
    out: str                    # directory for the report
    policy: str = "rl_base"     # whose answers were re-distilled


# ---- what both reports need: rows are those of the CSV files ---------------------------------
def pick(rows: list[dict], **wanted) -> list[dict]:
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def spread(values: list, form: str, always: bool = False) -> str:
    """The mean of some numbers, and their range where they differ. None is what never came."""
    here = [value for value in values if value is not None]
    if not here:
        return "never" if values else ""
    text = format(mean(here), form)
    if min(here) < max(here) or always and len(values) > 1:
        text += f" ({min(here):{form}} to {max(here):{form}})"
    return text + f"; never in {len(values) - len(here)}" * (len(here) < len(values))


def flat(row: dict, *names: str) -> dict:
    """The numbers of a row, or those that are named, then two columns for each style of answers."""
    columns = {name: row[name] for name in names or row if name in row and name != "styles"}
    for style, of in sorted(row.get("styles", {}).items()):
        columns |= {f"share_{style}": of["share"], f"right_in_{style}": of["right"]}
    return columns


def markdown(head: str, rows: list[list[str]]) -> list[str]:
    return [f"| {head} |", "|" + " --- |" * (head.count("|") + 1)] + [
        f"| {' | '.join(row)} |" for row in rows]


def canvas(rows: int, columns: int, size: tuple[float, float]):
    """A figure and its axes, row by row; None, [] where matplotlib is not installed."""
    try:
        import matplotlib
        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        return print("(pip install matplotlib, and the report has figures)"), []
    figure, axes = pyplot.subplots(rows, columns, layout="constrained", figsize=size)
    return figure, axes.flatten()


def band(axis, x, curves: list[list[float]], colour: str, label: str, alpha: float) -> None:
    """The mean of some curves, as far as the shortest goes, over their range."""
    columns = list(zip(*curves))
    low, middle, high = (list(map(of, columns)) for of in (min, mean, max))
    axis.plot(x[:len(columns)], middle, label=label, color=colour)
    axis.fill_between(x[:len(columns)], low, high, alpha=alpha, color=colour, linewidth=0)


def write(out: str, lines: list[str], figure, **tables) -> None:
    """The files of a report. report.md comes last: where it is, all are."""
    for name, rows in tables.items():
        with whole_file(f"{out}/{name}.csv") as file:
            writer = csv.DictWriter(file, dict.fromkeys(name for row in rows for name in row),
                                    lineterminator="\n")
            writer.writeheader()
            writer.writerows({name: round(value, 5) if isinstance(value, float) else value
                              for name, value in row.items()} for row in rows)
    for axis in figure.axes if figure else ():
        axis.set_visible(axis.has_data())
        axis.spines[["top", "right"]].set_visible(False)
        if labels := axis.get_legend_handles_labels()[1]:
            axis.legend(frameon=False, fontsize=8 if len(labels) < 9 else 7)
    if figure:
        with whole_file(f"{out}/figure.png", "wb") as file:
            figure.savefig(file, dpi=130, format="png")
    with whole_file(f"{out}/report.md") as file:
        file.write("\n".join(lines) + "\n")
    print("\n".join(lines) + "\n")


# ---- what a run left behind ------------------------------------------------------------------
def read_run(run: str, policy: str) -> tuple[list[dict], list[dict], set[str]]:
    """Every model in every way it was measured, every step of GRPO, the levels GRPO trained on."""
    if not os.path.isdir(run):
        raise ValueError(f"{run}: no such directory")
    effects = {row["data"]: dict(zip(EFFECTS, (row["effect"], row["standard_error"],
                                               row["per_token"], row.get("cosine", ""))))
               for row in (read_json(f"{run}/effect/summary.json") or {"data": []})["data"]}
    far = distances(run)
    label, curves, levels = {"run": os.path.basename(os.path.normpath(run))}, [], set()
    models = {name: dict.fromkeys(ABOUT, "") | {"words": WORDS[name], "examples": 0, "tokens": 0}
              for name in ("base", "instruct")}
    folders = [os.path.dirname(path) for kind in ("sft", "rl")
               for path in glob.glob(f"{glob.escape(run)}/{kind}_*/model/config.json")]
    for folder in sorted(map(os.path.dirname, folders), key=place):
        name, settings = os.path.basename(folder), read_json(folder + "/settings.json")["settings"]
        steps = [row for row in read_jsonl(folder + "/metrics.jsonl") if row["step"]]
        kind, _, start = name.partition("_")
        start = "base" if kind == "sft" else start if start in models else f"sft_{start}"
        models[name] = model = dict.fromkeys(ABOUT, "") | {
            "from": start, "tokens": steps[-1]["tokens"]}
        examples = []
        if "epochs" in settings:
            examples = [row for path in data_files(settings["data"])
                        for _, row in numbered_rows(path)]
            count = len(examples)
            if "examples" in steps[-1]:         # sft.py leaves out those that are too long.
                count = min(count, round(steps[-1]["examples"] / settings["epochs"]))
            model |= {"made_with": "SFT", "examples": count}
            if all("tokens" in row for row in examples):
                model["answer_tokens"] = sum(len(row["tokens"]) for row in examples)
            for path in settings["data"]:
                model |= effects.get(os.path.splitext(os.path.basename(path))[0], {})
        else:
            model |= {"made_with": "GRPO", "examples": steps[-1]["samples"]}
            curves += [{**label, "start": model["from"], **flat(row, *STEP)} for row in steps]
            levels |= set(steps[-1]["by_level"] if name == policy else ())
        model["words"] = in_words(name, examples)
        model |= far.get(name, {})
    rows = [{**label, "model": name, **models[name], **row} for name in models
            for row in measured(run, name)]
    if missing := {"base", policy} - {row["model"] for row in rows}:
        raise ValueError(f"{run}: {' and '.join(sorted(missing))} must be made and evaluated before"
                         f" there is something to report; of any run: python scripts/page.py {run}")
    return rows, curves, levels


def distances(run: str) -> dict[str, dict]:
    """What scripts/drift.py measured of each model of a run, by name."""
    path, found = f"{run}/drift.jsonl", {}
    for row in read_jsonl(path) if os.path.exists(path) else ():
        kept = [row["text"][text] - row["text_base"][text] for text in row["text"]]
        found[os.path.basename(os.path.dirname(row["model"]))] = dict(zip(FAR, (
            row["kl_per_token"], row["k1_per_answer"], mean(kept))))
    return found


def place(folder: str) -> tuple[int, int]:
    """Where a model stands in the report, in whatever order the stages ended."""
    name, _, percent = os.path.basename(folder).partition("_at_")
    name += "_at" * bool(percent)
    return [*WORDS, name].index(name), int(percent or 0)


def in_words(name: str, examples: list[dict]) -> str:
    """What a model is, for somebody who does not know the names of the stages."""
    words = WORDS.get("sft_at" if name.startswith("sft_at_") else name, name)
    steps = [row["step"] for row in examples if "step" in row]
    return words.format(steps=f"steps {min(steps)} to {max(steps)}") if "{" in words else words


def measured(run: str, name: str) -> list[dict]:
    """What a model's answers to the test are like: a row for each way and level, and for all."""
    cells = []
    for how in ("sampled", "greedy"):
        if os.path.exists(path := f"{run}/eval/{name}.{how}.jsonl"):
            score(rollouts := read_rollouts(path))
            rows = rows_of(rollouts)
            for row in rows if len(rows) > 1 else rows + [rows[0] | {"level": "all"}]:
                by_chance = row["task"] == "kk" and isinstance(row["level"], int)
                cells.append({
                    "decoding": how, **flat({**row, "level": str(row["level"])}),
                    "chance": 0.5 ** row["level"] if by_chance else ""})
    return cells


# ---- what it says ----------------------------------------------------------------------------
def accuracies(rows: list[dict], how: str, levels: set[str]) -> dict[str, float]:
    """Of the models of a run, on the levels that the policy was trained on."""
    cells = {}
    for row in rows:
        if row["decoding"] == how and row["level"] in levels:
            cells.setdefault(row["model"], []).append(row)
    return {name: sum(row["accuracy"] * row["n"] for row in of) / sum(row["n"] for row in of)
            for name, of in cells.items()}


def first_step(rewards: list[float], target: float) -> int | None:
    """The step whose reward, as a mean over the last SMOOTH steps, first reaches the target."""
    return next((i for i in range(SMOOTH, len(rewards) + 1)
                 if mean(rewards[i - SMOOTH:i]) >= target), None)


def spearman(*sides: list[float]) -> float:
    """The correlation of ranks, where equal ones share theirs; 0 where one side is all equal."""
    try:
        return correlation(*([sum(one < value for one in side) + side.count(value) / 2
                              for value in side] for side in sides))
    except StatisticsError:
        return 0.0


def findings(rows: list[dict], curves: list[dict], levels, how: str, policy: str) -> dict:
    """The numbers that the paper's claims are about, of one run."""
    accuracy, models = accuracies(rows, how, levels), {row["model"]: row for row in rows}
    if "base" not in accuracy or not accuracy.get(policy):
        return {}
    rl, numbers, told = models[policy], {}, {name: models[name]["words"] for name in models}
    for name in (policy, *(name for name in accuracy if models[name]["made_with"] == "SFT")):
        model, word = models[name], "samples" if name == policy else "examples"
        if not name.startswith("sft_at_"):
            numbers[f"gain per 1,000 {word}: {told[name]}"] = (
                accuracy[name] - accuracy[model["from"]]) / (model["examples"] / 1000)
    for name in filter(accuracy.__contains__, ("sft_a", "sft_b", "sft_foreign")):
        numbers[f"accuracy / the policy's: {told[name]}"] = accuracy[name] / accuracy[policy]
    for name in filter(accuracy.__contains__, ("sft_a", "sft_b")):
        for words, of, all_of in (("examples / samples of GRPO", "examples", "examples"),
                                  ("their tokens / tokens of GRPO", "answer_tokens", "tokens")):
            numbers[f"{words}: {told[name]}"] = models[name][of] / rl[all_of]
    rewards = {name: [row["reward"] for row in pick(curves, start=models[name]["from"])]
               for name in accuracy if models[name]["made_with"] == "GRPO"}
    for name in rewards:
        numbers[f"steps to 95 % of the policy's last reward: {told[name]}"] = first_step(
            rewards[name], 0.95 * mean(rewards[policy][-SMOOTH:]))
    weighed = [name for name in accuracy if models[name]["effect_cosine"] != ""]
    for what in ("effect", "effect_per_token", "effect_cosine") if len(weighed) > 2 else ():
        words = what.replace("_cosine", "_as_cosine").replace("_", " ")
        numbers[f"rank correlation of gain and {words}, {len(weighed)} datasets"] = spearman(
            [models[name][what] for name in weighed], [accuracy[name] for name in weighed])
    return numbers


def interval(rows: list[dict]) -> tuple[float, float]:
    """Of accuracy: the interval over the problems of one run, or the range of several runs."""
    accuracy = [row["accuracy"] for row in rows]
    return (rows[0]["low"], rows[0]["high"]) if len(rows) == 1 else (min(accuracy), max(accuracy))


def model_line(rows: list[dict], ways: list[tuple[str, str]]) -> list[str]:
    """A line of the table of accuracies: a model, as a mean over runs."""
    line = [rows[0]["words"], *(f"{mean([row[what] for row in rows]):,.0f}" if rows[0][what] else ""
                                for what in ("examples", "tokens"))]
    for how, level in ways:
        cell = pick(rows, decoding=how, level=level)
        line.append("{:.1%} ({:.1%} to {:.1%})".format(
            mean([row["accuracy"] for row in cell]), *interval(cell)) if cell else "")
    return line


def style_line(rows: list[dict], written: list[str]) -> list[str]:
    """A line of the table of styles: a model on one level, as a mean over runs."""
    line = [rows[0]["words"], rows[0]["level"], f"{mean([row['length'] for row in rows]):.0f}"]
    for style in written:
        share = sum(row.get(f"share_{style}", 0) for row in rows)
        right = sum(row.get(f"share_{style}", 0) * row.get(f"right_in_{style}", 0) for row in rows)
        line.append(f"{share / len(rows):.0%}, {right / share:.0%}" if share else "0")
    return line


def distance_table(rows: list[dict]) -> list[str]:
    """How far each model is from the base, and what it forgot. Each row is a model of a run."""
    table = []
    for name in dict.fromkeys(row["model"] for row in rows):
        of = pick(rows, model=name)
        table.append([of[0]["words"], *(spread([row[what] for row in of], form)
                                        for what, form in zip(FAR, (".3f", ".2f", "+.3f")))])
    return ["", "Distance to the base, on each model's own sampled answers: KL(model, base) by k3 for a"
            " token, and by k1 for an answer. What is forgotten: how the mean log-prob of a token of"
            " other texts has changed.", "", *markdown(
                "model | KL, token | KL, answer | other texts", table)] if table else []


def report(runs: list[tuple], policy: str, missing: list[str], drawn: bool) -> list[str]:
    """The lines of report.md."""
    rows = [row for run in runs for row in run[0]]
    names = list(dict.fromkeys(row["model"] for row in rows))
    ways = list(dict.fromkeys((row["decoding"], row["level"]) for row in pick(rows, model="base")
                              if row["level"] != "all" or row["task"] != "kk"))
    first, hows = ways[0][0], list(dict.fromkeys(how for how, _ in ways))
    written = [style for style in STYLE_COLOURS if any(f"share_{style}" in row for row in rows)]
    table = [model_line(pick(rows, model=name), ways) for name in names]
    chance = {row["level"]: row["chance"] for row in rows if row["chance"]}
    if chance:
        table.insert(0, ["chance", "", "", *(f"{chance[level]:.1%}" for _, level in ways)])
    styles = [style_line(cell, written) for name in names for level in sorted(
        {level for how, level in ways if how == first})
        if (cell := pick(rows, model=name, decoding=first, level=level))]
    numbers, lines = {how: [findings(*run, how, policy) for run in runs] for how in hows}, []
    for what, value in numbers[first][0].items():
        form = ".0f" if isinstance(value, int) else ".3f"
        lines.append([what, *(spread([one[what] for one in numbers[how] if what in one], form, True)
                              or "-" for how in hows)])
    far = [row for row in pick(rows, decoding=first) if row["kl_per_token"] != ""]
    ranges = "95 % intervals" if len(runs) == 1 else f"means of {len(runs)} runs and their range"
    size = "people" if chance else "level"
    head = ["model", "examples or samples", "tokens", *(f"{size}: {level}, {how}"
                                                         for how, level in ways)]
    return ["# Re-distillation", "", f"Accuracy on test problems, with {ranges}; `sampled`: at the"
            " temperature of training, `greedy`: at 0. Tokens: trained on for SFT (all epochs,"
            " prompts too), sampled for GRPO. Every SFT starts from the base.", "",
            *(f"Not finished, so not here: {', '.join(missing)}.\n" for _ in missing[:1]),
            *markdown(" | ".join(head), table), "", f"Styles of the {first} answers: the share of"
            " each, and how much of it is right.", "", *markdown(" | ".join(
                ["model", size, "tokens of an answer", *written]), styles),
            "", "On the sizes that GRPO trained on:", "", *markdown("| " + " | ".join(hows), lines),
            *distance_table(far),
            *(("", "![learning curves, accuracy, styles, effect, KL](figure.png)") if drawn else ())]


# ---- how it looks ----------------------------------------------------------------------------
def draw(runs: list[tuple], policy: str):
    """Learning curves; accuracy of every model; styles while the policy learns; what SFT gains
    beside its sample effect; and what every model gains beside its distance to the base."""
    models = {row["model"]: row for row in runs[0][0]}
    how = runs[0][0][0]["decoding"]
    curve = [pick(curves, start=models[policy]["from"]) for _, curves, _ in runs]
    styles = [style for style in STYLE_COLOURS if any(f"share_{style}" in row for row in curve[0])]
    gains = [(what, xlabel, title) for what, xlabel, title in (
        ("effect_cosine", "mean sample effect, as cosine", "What effect foretells"),
        ("k1_per_answer", "KL(model, base), nats for an answer", "Accuracy gained against KL"))
        if any(model[what] != "" for model in models.values())]
    panels = 2 + (len(styles) > 1) + len(gains)
    figure, axes = canvas((panels + 1) // 2, 2, (11, 4.4 * ((panels + 1) // 2)))
    if not figure:
        return None
    axes = iter(axes)
    draw_curves(next(axes), [curves for _, curves, _ in runs], list(models.values()))
    draw_accuracy(next(axes), [row for rows, _, _ in runs for row in pick(rows, decoding=how)])
    if len(styles) > 1:
        axis = next(axes)
        for style in styles:
            shares = [[row.get(f"share_{style}", 0.0) for row in one] for one in curve]
            band(axis, range(1, 1 + max(map(len, shares))), shares, STYLE_COLOURS[style], style, 0.2)
        axis.set(xlabel="GRPO step", ylabel="share of answers", ylim=(0, 1),
                 title=f"Styles, {models[policy]['words']}")
    for what, xlabel, title in gains:
        axis = next(axes)
        draw_gain(axis, runs, how, what)
        points = [model[what] for model in models.values() if model[what] != ""]
        if min(points) > 0 and max(points) > 8 * min(points):
            axis.set_xscale("log", base=2)
            axis.xaxis.set_major_formatter("{x:g}")
        axis.set(xlabel=xlabel, ylabel="gain in accuracy over the base", title=title)
    return figure


def draw_curves(axis, runs: list[list[dict]], models: list[dict]) -> None:
    """The reward of every run of GRPO, as a running mean."""
    steps = range(1, 1 + max(row["step"] for curves in runs for row in curves))
    starts = [model["from"] for model in models if model["made_with"] == "GRPO"]
    for start, colour in zip(starts, COLOURS[1:]):
        rewards = [[row["reward"] for row in pick(curves, start=start)] for curves in runs]
        smooth = [[mean(one[max(0, i - SMOOTH):i]) for i in range(1, 1 + len(one))]
                  for one in rewards]
        band(axis, steps, smooth, colour, f"from {WORDS.get(start, start)}", 0.2)
    axis.set(xlabel="GRPO step", ylabel="reward on new problems", ylim=(0, 1), title="Learning"
             " curves" + f" (mean and range of {len(runs)} runs)" * (len(runs) > 1))


def draw_gain(axis, runs: list[tuple], how: str, what: str) -> None:
    """A point for each model and run: a number of the model, and what it gained in accuracy."""
    gained = [accuracies(rows, how, levels) for rows, _, levels in runs]
    for i, name in enumerate(gained[0]):        # A model has the same colour in every panel.
        of = [pick(rows, model=name)[0] for rows, _, _ in runs]
        if of[0][what] == "":
            continue
        axis.scatter([row[what] for row in of], [one[name] - one["base"] for one in gained], s=22,
                     label=of[0]["words"], color=COLOURS[i % len(COLOURS)],
                     marker="os^v"[i // len(COLOURS)])
    axis.axhline(0, color="#cccccc", linewidth=0.8, zorder=0)


def draw_accuracy(axis, rows: list[dict]) -> None:
    """A bar for each model and level, and a line for chance."""
    words = {row["model"]: row["words"] for row in rows}
    levels = sorted({row["level"] for row in rows} - {"all"})
    height = 0.8 / len(levels)
    for i, level in enumerate(levels):
        cells = [pick(rows, model=name, level=level) for name in words]
        size = f"{level} people" if cells[0][0]["chance"] else f"level {level}"
        middle = [mean([row["accuracy"] for row in cell]) for cell in cells]
        high = [interval(cell)[1] for cell in cells]
        low = [interval(cell)[0] for cell in cells]
        axis.barh([y + i * height for y in range(len(words))], middle, height, color=COLOURS[1 + i],
                  ecolor="#777777", label=size,                 # equal ones may round below 0
                  xerr=[[max(0, one - end) for one, end in zip(middle, low)],
                        [max(0, end - one) for one, end in zip(middle, high)]])
        for y, (one, end) in enumerate(zip(middle, high)):
            axis.text(end + 0.01, y + i * height, f"{one:.0%}", va="center", fontsize=7)
        if chance := cells[0][0]["chance"]:
            axis.axvline(chance, color=COLOURS[1 + i], linestyle=":", label=f"chance, {size}")
    axis.set(yticks=[y + 0.4 - height / 2 for y in range(len(words))], xlim=(0, 1.05),
             yticklabels=words.values(), xlabel=f"accuracy, {rows[0]['decoding']}",
             title="Every model on test problems")
    axis.invert_yaxis()


def main(settings: Settings) -> None:
    runs = [read_run(run, settings.policy) for run in settings.runs]
    names = [{row["model"] for row in rows} for rows, _, _ in runs]
    if any(one != names[0] for one in names):
        raise ValueError(f"{' '.join(settings.runs)} do not hold the same models")
    begun = {os.path.basename(path) for run in settings.runs for kind in ("sft", "rl")
             for path in glob.glob(f"{glob.escape(run)}/{kind}_*")}
    missing = sorted(begun - names[0], key=place)
    figure = draw(runs, settings.policy)
    lines = report(runs, settings.policy, missing, bool(figure))
    write(settings.out, lines, figure,
          models=sum((run[0] for run in runs), []), curves=sum((run[1] for run in runs), []))


if __name__ == "__main__":
    command(main, parse(Settings, __doc__))
