"""The report of echo_chamber.sh: which style won, how soon, and what it was worth.

    python scripts/echo_report.py --run runs/echo --out results/echo

Writes report.md, evals.csv (every model that was tested), curves.csv (every step, every round) and,
where matplotlib is installed, figure.png. What the words mean stands at the top of echo_chamber.sh.
"""
import glob
import os
import re
import sys
from dataclasses import dataclass

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import cli  # noqa: E402
from report import COLOURS, as_columns, write_csv, write_report  # noqa: E402
from verify import read_rollouts, reward, styles  # noqa: E402

COLLAPSED = 0.8     # share of one style
SEEN = 0.02         # share of a style that counts as one of a model's


@dataclass
class Settings:
    run: str                # a directory that echo_chamber.sh made
    out: str                # directory for the report


# ---- what the runs left behind ---------------------------------------------------------------
def joined(rows: list[dict]) -> dict:
    """Rows of verify.py's table as one: its numbers are means over problems or answers."""
    total = sum(row["n"] for row in rows)
    found = {"n": total}
    for name in rows[0]:
        if name in ("accuracy", "cut_off", "length") or "@" in name:
            found[name] = sum(row[name] * row["n"] for row in rows) / total
    found["styles"] = {}
    for name in sorted({name for row in rows for name in row["styles"]}):
        of = [(row["styles"][name]["share"] * row["n"], row["styles"][name]["right"])
              for row in rows if name in row["styles"]]
        answers = sum(n for n, _ in of)
        found["styles"][name] = {"share": answers / total,
                                 "right": sum(n * right for n, right in of) / answers}
    return found


def tested(path: str, trained_on: set) -> dict[str, dict]:
    """What a model's answers to the test are like: {"easy": levels it was trained on, "hard"}."""
    rows = {"easy": [], "hard": []}
    for row in cli.read_jsonl(path, "rows")[0]["rows"]:
        if row["level"] != "all":
            rows["easy" if (row["task"], row["level"]) in trained_on else "hard"].append(row)
    return {test: joined(of) for test, of in rows.items() if of}


def rounds(run: str) -> list[dict]:
    """The curve of Expert Iteration: a row for what was sampled in each round."""
    curve, samples = [], 0
    for path in sorted(glob.glob(glob.escape(run) + "/round-*/rollouts.jsonl"),
                       key=lambda path: int(re.search(r"round-(\d+)", path)[1])):
        rows = read_rollouts(path)
        for row in rows:
            row["reward"] = reward(row, row["response"], row["finished"])
        samples += len(rows)
        curve.append({"step": len(curve) + 1, "samples": samples, "styles": styles(rows),
                      "reward": sum(row["reward"] for row in rows) / len(rows),
                      "length": sum(len(row["tokens"]) for row in rows) / len(rows)})
    return curve


def read_runs(folder: str) -> list[dict]:
    """Every run that was tested after its last step: what it is, its curve, its tests by step."""
    trained_on = {(row["task"], row["level"]) for row in cli.read_jsonl(
        os.path.join(folder, "data", "rl.jsonl"), "task", "level")}
    runs = []
    for path in sorted(glob.glob(glob.escape(folder) + "/*-*/*-kl*-*")):
        mixture, _, width = os.path.basename(os.path.dirname(path)).rpartition("-")
        algorithm, kl, seed = re.fullmatch(r"(\w+)-kl(.+)-(\d+)", os.path.basename(path)).groups()
        points = {0: os.path.join(os.path.dirname(path), "eval", "0.json")} | {
            int(name[1]): name[0] for name in (re.fullmatch(r".*/(\d+)\.json", file) for file in
                                               glob.glob(glob.escape(path) + "/eval/*.json")) if name}
        if algorithm == "expert":
            curve = rounds(path)
        elif os.path.isdir(path + "/model"):
            curve = [row for row in cli.read_jsonl(path + "/metrics.jsonl") if row["step"]]
        else:
            curve = []
        if not curve or curve[-1]["step"] not in points:
            print(f"{path}: not finished, left out", file=sys.stderr)
            continue
        after = {0: 0} | {row["step"]: row["samples"] for row in curve}
        runs.append({"mixture": mixture, "width": int(width), "algorithm": algorithm, "kl": kl,
                     "seed": int(seed), "curve": curve, "after": after, "tests": {
                         step: tested(file, trained_on) for step, file in sorted(points.items())}})
    if not runs:
        cli.stop(f"{folder}: no tested run of echo_chamber.sh")
    if not all("easy" in of for run in runs for of in run["tests"].values()):
        cli.stop(f"{folder}: no problem of the test is of a task and level that was trained on")
    return runs


# ---- what it says ----------------------------------------------------------------------------
def collapse(run: dict, winner: str) -> int | None:
    """Answers drawn before the winner first has COLLAPSED of those to train on, or of the easy test's."""
    seen = [(run["after"][row["step"] - 1], row["styles"]) for row in run["curve"]] + [
        (run["after"][step], of["easy"]["styles"]) for step, of in run["tests"].items()]
    return min((drawn for drawn, of in seen if winner in of and of[winner]["share"] >= COLLAPSED),
               default=None)


def endpoints(run: dict) -> dict:
    first, last = run["tests"][0], run["tests"][max(run["tests"])]
    shares = {name: of["share"] for name, of in last["easy"]["styles"].items()}
    winner = max(shares, key=shares.get)
    before = first["easy"]["styles"]
    best = max(before, key=lambda name: before[name]["right"] * (before[name]["share"] >= SEEN))
    found = {"winner": winner, "its share": shares[winner],
             "its share before": before.get(winner, {"share": 0.0})["share"],
             "the most accurate before": best,
             "samples to collapse": collapse(run, winner),
             "KL": next((row["kl"] for row in reversed(run["curve"]) if "kl" in row), None)}
    for test in first:
        most = max(int(name[5:]) for name in first[test] if name.startswith("pass@"))
        for name in ("accuracy", f"pass@{most}", f"majority@{most}"):
            found[f"{name}, {test}"] = (first[test][name], last[test][name])
    return found


def spread(values: list, form: str) -> str:
    """The mean of some numbers and their range; None is what never came."""
    here = [value for value in values if value is not None]
    if not here:
        return "never" if values else ""
    text = format(sum(here) / len(here), form)
    if len(here) > 1 and min(here) < max(here):
        text += f" ({min(here):{form}} to {max(here):{form}})"
    return text + (f"; never in {len(values) - len(here)}" if len(here) < len(values) else "")


def cells_of(runs: list[dict]) -> dict[tuple, list[dict]]:
    """The runs that differ only in their seeds, together."""
    cells = {}
    for run in runs:
        key = (run["mixture"], run["width"], run["algorithm"], run["kl"])
        cells.setdefault(key, []).append(run)
    return dict(sorted(cells.items(), key=lambda cell: (
        cell[0][0], cell[0][1], cell[0][2], float(cell[0][3]))))


def start(mixture: str, width: int) -> str:
    return f"{mixture}, {width}" if width else mixture          # a --model of unknown width


def report(runs: list[dict], drawn: bool) -> str:
    seeds = sorted({run["seed"] for run in runs})
    lines = ["# Echo chamber", "", f"{len(runs)} runs, seeds {', '.join(map(str, seeds))} (of what"
             " follows pretraining): means and ranges. Shares are of answers to the easy test;"
             f" {COLLAPSED:.0%} may come in these or, before, in answers drawn to train on."
             " PPO updates several times a step, Expert Iteration can be seen only once a round.",
             "", "The models before:", ""]
    names = sorted({name for run in runs for of in run["tests"].values() for test in of.values()
                    for name in test["styles"]})
    lines += ["| mixture, width | easy | hard | " + " | ".join(
        f"{name}: share, right" for name in names) + " |", "|" + " --- |" * (3 + len(names))]
    for mixture, width in dict.fromkeys((run["mixture"], run["width"]) for run in runs):
        tests = next(run["tests"][0] for run in runs if (run["mixture"], run["width"]) == (
            mixture, width))
        of = tests["easy"]["styles"]
        lines.append(f"| {start(mixture, width)} | " + " | ".join(
            [f"{tests[test]['accuracy']:.1%}" if test in tests else "" for test in ("easy", "hard")]
            + [f"{of[name]['share']:.0%}, {of[name]['right']:.0%}" if name in of else "0"
               for name in names]) + " |")
    found = {key: [endpoints(run) for run in of] for key, of in cells_of(runs).items()}
    kinds = [name for name in next(iter(found.values()))[0] if ", " in name]
    lines += ["", "After the last step (gains in points, over the model before):", "",
              "| mixture, width | algorithm | KL weight | winner | its share | drawn until it has"
              f" {COLLAPSED:.0%} | KL | " + " | ".join(kinds) + " |", "|" + " --- |" * (7 + len(kinds))]
    for (mixture, width, algorithm, kl), ends in found.items():
        winners = [end["winner"] for end in ends]
        row = [start(mixture, width), algorithm, kl if algorithm != "expert" else "",
               ", ".join(f"{name} {winners.count(name)}/{len(ends)}" for name in sorted(set(winners))),
               spread([end["its share"] for end in ends], ".0%"),
               spread([end["samples to collapse"] for end in ends], ",.0f"),
               spread([end["KL"] for end in ends if end["KL"] is not None], ".2f")]
        for kind in kinds:
            gains = [100 * (end[kind][1] - end[kind][0]) for end in ends]
            row.append(f"{ends[0][kind][0]:.1%}, {spread(gains, '+.1f')}")
        lines.append("| " + " | ".join(row) + " |")
    ends = sum(found.values(), [])
    agree = sum(end["winner"] == end["the most accurate before"] for end in ends)
    lines += ["", "The winner was the style that the model before was most often right in (of those"
              f" with a share of {SEEN:.0%}) in {agree} of {len(ends)} runs, from"
              f" {len({key[:2] for key in found})} models."]
    if drawn:
        lines += ["", "![styles, gains, pass@k](figure.png)"]
    return "\n".join(lines) + "\n"


def flat(row: dict) -> dict:
    """A row for a CSV file."""
    return {key: value for key, value in row.items()
            if not isinstance(value, dict | list)} | as_columns(row)


# ---- how it looks ----------------------------------------------------------------------------
def figure(runs: list[dict], path: str) -> bool:
    """Shares over training, by algorithm; by KL; over mixtures and sizes; pass@k. False: cannot."""
    try:
        import matplotlib
        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        return False
    names = sorted({name for run in runs for row in run["curve"] for name, of in row["styles"].items()
                    if of["share"] >= SEEN})
    colours = dict(zip(names, COLOURS[1:]))
    cells = cells_of(runs)
    main = max(cells, key=lambda key: (sum(key[:2] == other[:2] for other in cells),
                                       key[0] == "some", key[1]))[:2]
    plot, axes = pyplot.subplots(2, 3, layout="constrained", figsize=(14, 8))

    def mean(values):
        return sum(values) / len(values)

    def shares(axis, key, title):
        of = cells[key]
        for name in names:
            curves = [[row["styles"].get(name, {"share": 0.0})["share"] for row in run["curve"]]
                      for run in of]
            x = [row["samples"] for row in of[0]["curve"]][:min(map(len, curves))]
            columns = list(zip(*curves))
            axis.plot(x, list(map(mean, columns)), color=colours[name], label=name)
            axis.fill_between(x, list(map(min, columns)), list(map(max, columns)),
                              color=colours[name], alpha=0.15, linewidth=0)
        axis.set(xlabel="answers drawn", ylabel="share of answers", ylim=(0, 1), title=title)
        axis.legend(frameon=False, fontsize=8)

    def at_end(axis, keys, labels, title):
        """Stacked shares of the styles after the last step; accuracy before and after beside."""
        for i, key in enumerate(keys):
            ends = [run["tests"][max(run["tests"])]["easy"] for run in cells[key]]
            bottom = 0.0
            for name in names:
                share = mean([end["styles"].get(name, {"share": 0.0})["share"] for end in ends])
                axis.bar(i, share, bottom=bottom, color=colours[name], width=0.7, alpha=0.8)
                bottom += share
            for end in ends:
                axis.plot(i, end["accuracy"], "k_", markersize=16)
            axis.plot(i, cells[key][0]["tests"][0]["easy"]["accuracy"], "o", color="white",
                      markeredgecolor="black", markersize=5)
        axis.set(xticks=range(len(keys)), ylim=(0, 1), title=title)
        axis.set_xticklabels(labels, fontsize=8)

    kls = [key[3] for key in cells if key[2] == "grpo"]
    middle = max(sorted(set(kls), key=float), key=kls.count, default="0")   # the one of all studies
    for axis, algorithm, kl, word in zip(axes[0], ("grpo", "ppo", "expert"), (middle, middle, "0"),
                                         ("GRPO", "PPO", "Expert Iteration")):
        if (*main, algorithm, kl) in cells:
            shares(axis, (*main, algorithm, kl), f"{word} from {start(*main)}"
                   + (f", KL weight {kl}" if kl != "0" else ""))
    keys = [key for key in cells if key[:2] == main]
    at_end(axes[1][0], keys, [f"{key[2]}\n{key[3]}" if key[2] != "expert" else "expert"
                              for key in keys],
           f"From {start(*main)}, by KL weight (o, _: right before, after)")
    others = [key for key in cells if key[2:] == ("grpo", middle)]
    if len(others) > 1:
        at_end(axes[1][2], others, [start(*key[:2]).replace(", ", "\n") for key in others],
               "GRPO, by model (o, _: right before, after)")
    axis = axes[1][1]
    for key, colour in zip([(*main, algorithm, kl) for algorithm, kl in (
            ("grpo", middle), ("ppo", middle), ("expert", "0"))], COLOURS[1:]):
        for run in cells.get(key, ()):
            tests = run["tests"]
            for step, style, tint in ((0, "--", "#888888"), (max(tests), "-", colour)):
                ks = [int(name[5:]) for name in tests[step]["easy"] if name.startswith("pass@")]
                axis.plot(ks, [tests[step]["easy"][f"pass@{k}"] for k in ks], style, color=tint,
                          label=(key[2] if step else "before") if run is cells[key][0] and (
                              step or key[2] == "grpo") else None)
    axis.set_xscale("log", base=2)
    axis.set(xlabel="k", ylabel="pass@k, easy test", ylim=(0, 1.02),
             title=f"pass@k, from {start(*main)}")
    axis.legend(frameon=False, fontsize=8)
    for axis in axes.flatten():
        axis.set_visible(axis.has_data())
        axis.spines[["top", "right"]].set_visible(False)
    plot.savefig(path + ".partial", dpi=130, format="png")
    os.replace(path + ".partial", path)
    return True


def main():
    settings = cli.parse(Settings, __doc__)
    if not os.path.isdir(settings.run):
        cli.stop(f"{settings.run}: no such directory")
    runs = read_runs(settings.run)
    os.makedirs(settings.out, exist_ok=True)
    about = ("mixture", "width", "algorithm", "kl", "seed")
    evals, curves = [], []
    for run in runs:
        label = {name if name != "kl" else "kl_weight": run[name] for name in about}
        evals += [{**label, "step": step, "samples": run["after"][step], "test": test, **flat(of)}
                  for step, tests in run["tests"].items() for test, of in tests.items()]
        curves += [{**label, **flat({key: row[key] for key in (
            "step", "samples", "reward", "length", "kl", "entropy", "equal_groups", "value_explains",
            "styles") if key in row})} for row in run["curve"]]
    write_csv(os.path.join(settings.out, "evals.csv"), evals)
    write_csv(os.path.join(settings.out, "curves.csv"), curves)
    drawn = figure(runs, os.path.join(settings.out, "figure.png"))
    write_report(settings.out, report(runs, drawn), drawn)


if __name__ == "__main__":
    main()
