"""The report of redistill_*.sh: tables, findings and figures from what its stages left behind.

    python scripts/report.py --runs runs/tiny-0 --out runs/tiny-0
    python scripts/report.py --runs runs/tiny-{0,1,2,3,4} --out results/redistill_tiny

Writes report.md, models.csv (every model, measured in every way), curves.csv (every step of GRPO)
and, where matplotlib is installed, figure.png. One run is shown with the 95 % intervals of its test
problems; several with their mean and range.
"""
import csv
import glob
import json
import os
import sys
from dataclasses import dataclass

from tqdm import tqdm

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import cli  # noqa: E402
from kk_gen import STYLES  # noqa: E402
from verify import read_rollouts, reward, styles, summary  # noqa: E402

SMOOTH = 5      # steps in the running mean that says when GRPO has converged
TOLD = {"base": "the base", "sft_a": "re-distilled, A", "sft_b": "re-distilled, B",
        "sft_foreign": "B's problems, another's answers", "sft_wrong": "GRPO's wrong answers",
        "sft_guess": "SFT on bare answers"}


@dataclass
class Settings:
    runs: list[str]             # directories that redistill_*.sh made, with the same settings
    out: str                    # directory for the report
    policy: str = "rl_base"     # whose answers were re-distilled


# ---- what a run left behind ------------------------------------------------------------------
def models_of(run: str) -> dict[str, dict]:
    """What each model was made from and of how much, by name, in the order they were made."""
    effects, path = {}, f"{run}/effect/summary.json"
    if os.path.exists(path):
        with open(path) as file:
            effects = {row["data"]: {"effect": row["effect"], "effect_error": row["standard_error"],
                                     "effect_per_token": row["per_token"],
                                     "effect_cosine": row.get("cosine", "")}
                       for row in json.load(file)["data"]}
    models, folders = {"base": {"from": "", "made_with": "", "examples": 0, "tokens": 0}}, []
    for path in glob.glob(f"{glob.escape(run)}/sft_*/settings.json") + glob.glob(
            f"{glob.escape(run)}/rl_*/settings.json"):
        with open(path) as file:
            folders.append((os.path.dirname(path), json.load(file)["settings"]))
    for folder, settings in sorted(folders, key=lambda pair: os.path.getmtime(pair[0] + "/model")):
        curve = [row for row in cli.read_jsonl(folder + "/metrics.jsonl") if row["step"]]
        start = os.path.basename(os.path.dirname(os.path.normpath(settings["model"])))
        models[os.path.basename(folder)] = model = {
            "from": start if start in models else "base", "tokens": curve[-1]["tokens"]}
        if "epochs" in settings:
            examples = [row for path in settings["data"] for row in cli.read_jsonl(path)]
            model |= {"made_with": "SFT", "examples": len(examples)}
            for path in settings["data"]:
                model |= effects.get(os.path.splitext(os.path.basename(path))[0], {})
            if all("tokens" in row for row in examples):
                model["answer_tokens"] = sum(len(row["tokens"]) for row in examples)
        else:
            model |= {"made_with": "GRPO", "examples": curve[-1]["samples"], "curve": curve}
    return models


def measured(run: str, name: str) -> dict[tuple[str, str], dict]:
    """{(how it was decoded, level): what its answers to the test are like}; level "all" too."""
    cells = {}
    for how in ("sampled", "greedy"):
        path = f"{run}/eval/{name}.{how}.jsonl"
        rollouts = read_rollouts(path) if os.path.exists(path) else []
        groups = {"all": rollouts} if rollouts else {}
        for rollout in rollouts:
            rollout["reward"] = reward(rollout, rollout["response"], rollout["finished"])
            groups.setdefault(str(rollout["level"]), []).append(rollout)
        for level, group in sorted(groups.items()):
            cells[how, level] = {**summary(group), "styles": styles(group)}
    return cells


def first_step(curve: list[dict], target: float) -> int | None:
    """The step whose reward, as a mean over the last SMOOTH steps, first reaches the target."""
    for i in range(SMOOTH, len(curve) + 1):
        if sum(row["reward"] for row in curve[i - SMOOTH:i]) / SMOOTH >= target:
            return curve[i - 1]["step"]
    return None


# ---- what it says ----------------------------------------------------------------------------
def on_trained(models: dict, name: str, how: str, policy: str) -> float | None:
    """Accuracy of a model on the levels that the policy was trained on."""
    levels = models[policy]["curve"][-1]["by_level"]
    cells = [cell for (decoded, level), cell in models[name]["cells"].items()
             if decoded == how and level in levels]
    return sum(cell["accuracy"] * cell["n"] for cell in cells) / sum(
        cell["n"] for cell in cells) if cells else None


def findings(models: dict, how: str, policy: str) -> dict[str, float | None]:
    """The numbers that the paper's claims are about. Accuracy is on the sizes GRPO trained on."""
    def accuracy(name):
        return on_trained(models, name, how, policy)

    if (base := accuracy("base")) is None or not accuracy(policy):
        return {}
    rl, found = models[policy], {"accuracy: the base": base}
    models = {name: model for name, model in models.items() if accuracy(name) is not None}
    for name, model in models.items():
        if model["made_with"]:
            found[f"accuracy: {told(name)}"] = accuracy(name)
    for name in (policy, *(name for name in models if models[name]["made_with"] == "SFT")):
        if name == policy or not name.startswith("sft_at_"):
            found[f"gain per 1,000 {'samples' if name == policy else 'examples'}: {told(name)}"] = (
                accuracy(name) - accuracy(models[name]["from"])) / (models[name]["examples"] / 1000)
    for name in filter(models.__contains__, ("sft_a", "sft_b", "sft_foreign")):
        found[f"accuracy / the policy's: {told(name)}"] = accuracy(name) / accuracy(policy)
    for name in filter(models.__contains__, ("sft_a", "sft_b")):
        found[f"examples / samples of GRPO: {told(name)}"] = (
            models[name]["examples"] / rl["examples"])
        found[f"their tokens / tokens of GRPO: {told(name)}"] = (
            models[name]["answer_tokens"] / rl["tokens"])
    end = sum(row["reward"] for row in rl["curve"][-SMOOTH:]) / len(rl["curve"][-SMOOTH:])
    for name, model in models.items():
        if "curve" in model:
            found[f"steps to 95 % of the policy's last reward: {told(name)}"] = (
                first_step(model["curve"], 0.95 * end))
    weighed = [name for name in models if models[name].get("effect_cosine", "") != ""]
    for what, words in (("effect", "effect"), ("effect_per_token", "effect per token"),
                        ("effect_cosine", "effect as cosine")) if len(weighed) > 2 else ():
        found[f"rank correlation of gain and {words}, {len(weighed)} datasets"] = spearman(
            [(models[name][what], accuracy(name)) for name in weighed])
    return found


def ranks(values: list[float]) -> list[float]:
    """1 for the least; equal ones share the mean of their ranks."""
    return [sum(one < value for one in values) + (values.count(value) + 1) / 2 for value in values]


def spearman(pairs: list[tuple[float, float]]) -> float:
    """The correlation of the ranks; 0 where one side is all equal."""
    a, b = (ranks(list(side)) for side in zip(*pairs))
    middle = (len(pairs) + 1) / 2
    ab, aa, bb = (sum((x - middle) * (y - middle) for x, y in zip(u, v))
                  for u, v in ((a, b), (a, a), (b, b)))
    return ab / (aa * bb) ** 0.5 if aa and bb else 0.0


def told(name: str) -> str:
    kind, _, of = name.partition("_")
    if kind == "rl":
        return f"GRPO from {told('sft_' + of if of != 'base' else 'base')}"
    return TOLD.get(name) or (f"GRPO's answers at {of[3:]} %" if of.startswith("at_") else
                              f"SFT on {of} chains")


def spread(found: list[dict], what: str) -> str:
    """A number of one run, or the mean of several with their range; None is what never came."""
    asked = [one[what] for one in found if what in one]
    values = [value for value in asked if value is not None]
    if not values:
        return "never" if asked else "-"
    digits = 0 if isinstance(values[0], int) else 3
    mean, low, high = (f"{value:.{digits}f}" for value in (
        sum(values) / len(values), min(values), max(values)))
    text = mean if len(asked) == 1 else f"{mean} ({low} to {high})"
    return text + (f"; never in {len(asked) - len(values)}" if len(values) < len(asked) else "")


def percent(cells: list[dict]) -> str:
    """Accuracy with its interval over problems, or with its range over runs."""
    if not cells:
        return ""
    accuracies = [cell["accuracy"] for cell in cells]
    low, high = (cells[0]["low"], cells[0]["high"]) if len(cells) == 1 else (
        min(accuracies), max(accuracies))
    return f"{sum(accuracies) / len(cells):.1%} ({low:.1%} to {high:.1%})"


def report(runs: list[dict], settings) -> str:
    """runs: the models of each. As markdown."""
    first = runs[0]
    hows = [how for how in ("sampled", "greedy")
            if any(how == key[0] for key in first["base"]["cells"])]
    levels = sorted({level for how, level in first["base"]["cells"]} - {"all"})
    ranges = "95 % intervals" if len(runs) == 1 else f"means of {len(runs)} runs and their range"
    lines = ["# Re-distillation", "", f"Accuracy on test problems, with {ranges}; `sampled`: at the"
             " temperature of training, `greedy`: at 0. Tokens: trained on for SFT (all epochs,"
             " prompts too), sampled for GRPO.", ""]
    written = [style for style in (*STYLES, "mixed", "other") if any(
        style in cell["styles"] for models in runs for model in models.values()
        for cell in model["cells"].values())]
    head = ["model", "made from", "examples or samples", "tokens",
            *(f"level {level}, {how}" for how in hows for level in levels), "length",
            *(f"{style}: share, right" for style in written)]
    lines += ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for name in first:
        models = [models[name] for models in runs if name in models]
        cells = [model["cells"].get((hows[0], "all")) for model in models]
        row = [told(name), told(models[0]["from"]) if models[0]["from"] else "",
               *(f"{sum(model[what] for model in models) / len(models):,.0f}" if any(
                   model[what] for model in models) else "" for what in ("examples", "tokens")),
               *(percent([model["cells"][how, level] for model in models
                          if (how, level) in model["cells"]]) for how in hows for level in levels),
               f"{sum(cell['length'] for cell in cells) / len(cells):.0f}"]
        for style in written:
            shares = [cell["styles"][style] for cell in cells if style in cell["styles"]]
            share = sum(of["share"] for of in shares)
            right = sum(of["share"] * of["right"] for of in shares)
            row.append(f"{share / len(cells):.0%}, {right / share:.0%}" if share else "0")
        lines.append("| " + " | ".join(row) + " |")
    found = {how: [findings(models, how, settings.policy) for models in runs] for how in hows}
    lines += ["", "On the sizes that GRPO trained on:", "", "| | " + " | ".join(hows) + " |",
              "|" + " --- |" * (1 + len(hows))]
    lines += [f"| {what} | " + " | ".join(spread(found[how], what) for how in hows) + " |"
              for what in found[hows[0]][0]]
    if os.path.exists(os.path.join(settings.out, "figure.png")):
        lines += ["", "![learning curves, accuracy, styles](figure.png)"]
    return "\n".join(lines) + "\n"


def write_csv(path: str, rows: list[dict]) -> None:
    fields = list(dict.fromkeys(field for row in rows for field in row))
    with open(path + ".partial", "w", newline="") as file:
        writer = csv.DictWriter(file, fields, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows({field: round(value, 5) if isinstance(value, float) else value
                          for field, value in row.items()} for row in rows)
    os.replace(path + ".partial", path)


def tables(names: list[str], runs: list[dict]) -> tuple[list[dict], list[dict]]:
    """The rows of models.csv and of curves.csv."""
    flat, curves = [], []
    for run, models in zip(names, runs):
        for name, model in models.items():
            about = {"run": os.path.basename(os.path.normpath(run)), "model": name,
                     **{key: model.get(key, "") for key in (
                         "from", "made_with", "examples", "tokens", "answer_tokens", "effect",
                         "effect_error", "effect_per_token", "effect_cosine")}}
            for (how, level), cell in model["cells"].items():
                flat.append({**about, "decoding": how, "level": level, **{
                    key: value for key, value in cell.items() if key != "styles"},
                    **as_columns(cell)})
            for row in model.get("curve", ()):
                curves.append({"run": about["run"], "start": model["from"], **{
                    key: row[key] for key in ("step", "samples", "tokens", "reward", "length", "kl",
                                              "cut_off", "entropy", "equal_groups") if key in row},
                    **as_columns(row)})
    return flat, curves


def as_columns(row: dict) -> dict[str, float]:
    """Columns for each style of a row: its share, and how often it is right."""
    return {f"{what}_{style}": of[key] for style, of in sorted(row.get("styles", {}).items())
            for what, key in (("share", "share"), ("right_in", "right"))}


def write_report(out: str, text: str, drawn: bool) -> None:
    """report.md, the last of a report's files: where it is, all are."""
    path = os.path.join(out, "report.md")
    with open(path + ".partial", "w") as file:
        file.write(text)
    os.replace(path + ".partial", path)
    print(text)
    if not drawn:
        print("(pip install matplotlib, and the report has figures)")


# ---- how it looks ----------------------------------------------------------------------------
COLOURS = ("#4c566a", "#2a78c2", "#c2572a", "#3a9a5b", "#8a5bb0", "#b09a2a", "#b04a7a", "#2a9ab0",
           "#7a4a2a", "#111111", "#9ac23a", "#e08ab0")


def figure(runs: list[dict], policy: str, path: str) -> bool:
    """Learning curves; accuracy of every model; styles while the policy learns. False: cannot."""
    try:
        import matplotlib
        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        return False
    first = runs[0]
    how = next(iter(first["base"]["cells"]))[0]
    styled = any(set(STYLES) & set(row["styles"]) for row in first[policy]["curve"])
    weighed = [name for name in first if first[name].get("effect_cosine", "") != ""]
    rows = 2 if styled or weighed else 1
    plot, axes = pyplot.subplots(rows, 2, layout="constrained", figsize=(11, 4.4 * rows))
    axes = axes.flatten()
    band = "" if len(runs) == 1 else f" (mean and range of {len(runs)} runs)"

    def over_runs(axis, series, label, colour):
        shortest = min(map(len, series))
        columns = list(zip(*(one[:shortest] for one in series)))
        steps = range(1, shortest + 1)
        middle = [sum(column) / len(column) for column in columns]
        axis.plot(steps, middle, label=label, color=colour)
        if len(runs) > 1:
            axis.fill_between(steps, list(map(min, columns)), list(map(max, columns)), alpha=0.2,
                              color=colour, linewidth=0)

    def smooth(values):
        windows = (values[max(0, i - SMOOTH + 1):i + 1] for i in range(len(values)))
        return [sum(window) / len(window) for window in windows]

    grpo = [name for name in first if first[name]["made_with"] == "GRPO"]
    for name, colour in zip(grpo, COLOURS[1:]):
        over_runs(axes[0], [smooth([row["reward"] for row in models[name]["curve"]])
                            for models in runs], f"from {told(first[name]['from'])}", colour)
    axes[0].set(xlabel="GRPO step", ylabel="reward on new problems", ylim=(0, 1),
                title="Learning curves" + band)
    axes[0].legend(frameon=False, fontsize=8)

    levels = sorted({level for decoded, level in first["base"]["cells"]} - {"all"})
    height = 0.8 / len(levels)
    for i, level in enumerate(levels):
        for y, name in enumerate(first):
            values = [models[name]["cells"][how, level] for models in runs]
            mean = sum(cell["accuracy"] for cell in values) / len(values)
            ends = ([values[0]["low"], values[0]["high"]] if len(runs) == 1 else
                    [f(cell["accuracy"] for cell in values) for f in (min, max)])
            axes[1].barh(y + i * height, mean, height, color=COLOURS[1 + i], label=None if y else (
                f"level {level}"), ecolor="#777777",
                xerr=[[max(0, mean - ends[0])], [max(0, ends[1] - mean)]])  # equal ones round
    axes[1].set(yticks=[y + 0.4 - height / 2 for y in range(len(first))], xlim=(0, 1),
                yticklabels=[told(name) for name in first], xlabel=f"accuracy, {how}",
                title="Every model on test problems")
    axes[1].invert_yaxis()
    axes[1].legend(frameon=False, fontsize=8)
    if styled:
        for style, colour in zip(STYLES, COLOURS[1:]):
            over_runs(axes[2], [[row["styles"].get(style, {"share": 0.0})["share"] for row in
                                 models[policy]["curve"]] for models in runs], style, colour)
        axes[2].set(xlabel="GRPO step", ylabel="share of answers", ylim=(0, 1),
                    title=f"Styles, {told(policy)}")
        axes[2].legend(frameon=False, fontsize=8)
    if weighed:
        for i, name in enumerate(weighed):
            pairs = [(models[name]["effect_cosine"], on_trained(models, name, how, policy) -
                      on_trained(models, "base", how, policy)) for models in runs]
            axes[-1].scatter(*zip(*pairs), color=COLOURS[i % len(COLOURS)], s=22, label=told(name),
                             marker="os^v"[i // len(COLOURS)])
        axes[-1].axhline(0, color="#cccccc", linewidth=0.8, zorder=0)
        axes[-1].set(xlabel="mean sample effect at the base, as cosine",
                     ylabel="gain in accuracy by SFT", title="What effect foretells")
        axes[-1].legend(frameon=False, fontsize=7)
    for axis in axes:
        axis.set_visible(axis.has_data())
        axis.spines[["top", "right"]].set_visible(False)
    plot.savefig(path + ".partial", dpi=130, format="png")
    os.replace(path + ".partial", path)
    return True


def main():
    settings = cli.parse(Settings, __doc__)
    runs = []
    for run in tqdm(settings.runs, desc="read", leave=False, delay=1):
        if not os.path.isdir(run):
            cli.stop(f"{run}: no such directory")
        runs.append(models_of(run))
        for name, model in runs[-1].items():
            if not (cells := measured(run, name)):
                cli.stop(f"{run}: {name} was not evaluated: no eval/{name}.*.jsonl")
            model["cells"] = cells
        if "curve" not in runs[-1].get(settings.policy, {}):
            cli.stop(f"{run}: no GRPO run {settings.policy} (--policy) in it")
        if set(runs[-1]) != set(runs[0]):
            cli.stop(f"{run} and {settings.runs[0]} hold different models")
    os.makedirs(settings.out, exist_ok=True)
    drawn = figure(runs, settings.policy, os.path.join(settings.out, "figure.png"))
    for name, rows in zip(("models", "curves"), tables(settings.runs, runs)):
        write_csv(os.path.join(settings.out, name + ".csv"), rows)
    text = report(runs, settings)
    write_report(settings.out, text, drawn)


if __name__ == "__main__":
    main()
