"""The report of echo_chamber.py: which style won, how soon, and what it was worth.

    python scripts/echo_report.py --run runs/echo --out results/echo

Writes evals.csv (every model that was tested), curves.csv (every step, every round), figure.png
where matplotlib is installed, and then report.md. What the words mean is in echo_chamber.py.
"""
import glob
import os
import re
import sys
from dataclasses import dataclass

from report import COLOURS, STYLE_COLOURS, band, canvas, flat, markdown, mean, pick, spread, write
from engine.files import read_jsonl
from engine.flags import command, parse
from verify import read_rollouts, score, styles

COLLAPSED = 0.8     # share of one style
SEEN = 0.02         # share of a style that counts as one of a model's
CELL = ("mixture", "width", "algorithm", "kl_weight")


@dataclass(kw_only=True)
class Settings:
    run: str                # a directory that echo_chamber.py made
    out: str                # directory for the report


# ---- what the runs left behind ---------------------------------------------------------------
def joined(rows: list[dict]) -> dict:
    """Rows of verify.py's table as one: its numbers are means over problems or answers."""
    n, shares = sum(row["n"] for row in rows), {}
    one = {name: sum(row[name] * row["n"] for row in rows) / n for name in rows[0]
           if name in ("accuracy", "cut_off", "length") or "@" in name}
    for name in {name for row in rows for name in row["styles"]}:
        of = [(row["styles"][name]["share"] * row["n"], row["styles"][name]["right"])
              for row in rows if name in row["styles"]]
        answers = sum(count for count, _ in of)
        shares[name] = {"share": answers / n,
                        "right": sum(count * right for count, right in of) / answers}
    return flat({"n": n, **one, "styles": shares})


def tested(path: str, trained_on: set) -> dict[str, dict]:
    """What a model's answers to the test are like: {"easy": levels it was trained on, "hard"}."""
    parts = {"easy": [], "hard": []}
    for row in read_jsonl(path, "rows")[0]["rows"]:
        if row["level"] != "all":
            parts["easy" if (row["task"], row["level"]) in trained_on else "hard"].append(row)
    return {test: joined(rows) for test, rows in parts.items() if rows}


def rounds(run: str) -> list[dict]:
    """The curve of Expert Iteration: a row for what was sampled in each round."""
    curve, samples = [], 0
    while os.path.exists(path := f"{run}/round-{len(curve) + 1}/rollouts.jsonl"):
        score(rows := read_rollouts(path))
        samples += len(rows)
        curve.append({"step": len(curve) + 1, "samples": samples, "styles": styles(rows),
                      "reward": mean([row["reward"] for row in rows]),
                      "length": mean([len(row["tokens"]) for row in rows])})
    return curve


def read_runs(folder: str) -> tuple[list[dict], list[dict]]:
    """The rows of evals.csv and curves.csv, of every run that was tested after its last step."""
    trained_on = {(row["task"], row["level"])
                  for row in read_jsonl(f"{folder}/data/rl.jsonl", "task", "level")}
    evals, curves = [], []
    for run in sorted(glob.glob(glob.escape(folder) + "/*-*/*-kl*-*")):
        mixture, width, algorithm, kl, seed = re.fullmatch(
            r".*/(.+)-(\d+)/(\w+)-kl(.+)-(\d+)", run).groups()
        tests = glob.glob(glob.escape(run) + "/eval/*[0-9].json")       # No test's .config.json.
        points = {int(os.path.basename(path)[:-5]): path
                  for path in (os.path.dirname(run) + "/eval/0.json", *tests)}
        curve = rounds(run) if algorithm == "expert" else []
        if os.path.isdir(f"{run}/model"):
            curve = [row for row in read_jsonl(f"{run}/metrics.jsonl") if row["step"]]
        planned = len(glob.glob(glob.escape(run) + "/round-*"))     # of Expert Iteration
        if not curve or curve[-1]["step"] not in points or len(curve) < planned:
            print(f"{run}: not finished, left out", file=sys.stderr)
            continue
        label = {"mixture": mixture, "width": int(width), "algorithm": algorithm, "kl_weight": kl,
                 "seed": int(seed)}
        after = {0: 0} | {row["step"]: row["samples"] for row in curve}
        far = {}
        if os.path.exists(f"{run}/drift.jsonl"):            # of the model after the last step
            measured = read_jsonl(f"{run}/drift.jsonl", "k1_per_answer")[0]
            far = {curve[-1]["step"]: {"kl_per_answer": measured["k1_per_answer"]}}
        for step, path in sorted(points.items()):
            evals += [{**label, "step": step, "samples": after[step], "test": test, **row,
                       **far.get(step, {})} for test, row in tested(path, trained_on).items()]
        if not pick(evals, **label, test="easy"):
            raise ValueError(f"{folder}: no problem of the test is of a task and level of rl.jsonl")
        curves += [{**label, **flat(row, "step", "samples", "reward", "length", "kl", "entropy",
                                    "equal_groups", "value_explains")} for row in curve]
    if not evals:
        raise ValueError(f"{folder}: no tested run of echo_chamber.py")
    return evals, curves


# ---- what it says ----------------------------------------------------------------------------
def share(row: dict, style: str) -> float:
    return row.get(f"share_{style}", 0.0)


def styles_of(row: dict) -> list[str]:
    return [name[6:] for name in row if name.startswith("share_")]


def groups(rows: list[dict], *names: str) -> dict[tuple, list[dict]]:
    """The rows that are equal in these, together, in order; KL weights are ordered as numbers."""
    def place(key):
        return [float(value) if name == "kl_weight" else value for name, value in zip(names, key)]

    keys = sorted({tuple(row[name] for name in names) for row in rows}, key=place)
    return {key: pick(rows, **dict(zip(names, key))) for key in keys}


def endpoints(evals: list[dict], curve: list[dict]) -> dict:
    """Of one run, from its tests and its steps."""
    easy = pick(evals, test="easy")
    first, last = easy[0], easy[-1]
    winner = max(styles_of(last), key=lambda name: share(last, name))
    best = max(styles_of(first), key=lambda name: first[f"right_in_{name}"] * (
        share(first, name) >= SEEN))
    # Answers drawn before the winner first has COLLAPSED of those to train on, or of the test's.
    drawn = [*zip([0, *(row["samples"] for row in curve)], curve)]
    drawn += [(row["samples"], row) for row in easy]
    collapse = min((n for n, row in drawn if share(row, winner) >= COLLAPSED), default=None)
    ends = {"winner": winner, "its share": share(last, winner),
            "its share before": share(first, winner),
            "the most accurate before": best, "samples to collapse": collapse,
            "KL": last.get("kl_per_answer")}
    most = max(int(name[5:]) for name in first if name.startswith("pass@"))
    for test in dict.fromkeys(row["test"] for row in evals):
        ends |= {f"{name}, {test}": tuple(pick(evals, test=test)[i][name] for i in (0, -1))
                 for name in ("accuracy", f"pass@{most}", f"majority@{most}")}
    return ends


def start(mixture: str, width: int) -> str:
    return f"{mixture}, {width}" if width else mixture          # a --base of unknown width


def report(evals: list[dict], curves: list[dict], drawn: bool) -> list[str]:
    names = sorted({name for row in evals for name in styles_of(row)})
    before = []
    for key, rows in groups(pick(evals, step=0), "mixture", "width").items():
        tests = {row["test"]: row for row in reversed(rows)}
        easy = tests["easy"]
        before.append([start(*key), *(f"{tests[test]['accuracy']:.1%}" if test in tests else ""
                                      for test in ("easy", "hard")),
                       *(f"{share(easy, name):.0%}, {easy[f'right_in_{name}']:.0%}"
                         if f"share_{name}" in easy else "0" for name in names)])
    after, ends = [], []
    for (mixture, width, algorithm, kl), rows in groups(evals, *CELL).items():
        of = [endpoints(pick(rows, seed=seed), pick(curves, mixture=mixture, width=width,
                                                    algorithm=algorithm, kl_weight=kl, seed=seed))
              for seed in dict.fromkeys(row["seed"] for row in rows)]
        winners, ends = [end["winner"] for end in of], ends + of
        kinds = [name for name in of[0] if ", " in name]
        line = [start(mixture, width), algorithm, kl if algorithm != "expert" else "",
                ", ".join(f"{name} {winners.count(name)}/{len(of)}" for name in sorted({*winners})),
                spread([end["its share"] for end in of], ".0%"),
                spread([end["samples to collapse"] for end in of], ",.0f"),
                spread([end["KL"] for end in of if end["KL"] is not None], ".2f")]
        for kind in kinds:
            gains = [100 * (end[kind][1] - end[kind][0]) for end in of]
            line.append(f"{of[0][kind][0]:.1%}, {spread(gains, '+.1f')}")
        after.append(line)
    agree = sum(end["winner"] == end["the most accurate before"] for end in ends)
    seeds = sorted({row["seed"] for row in evals})
    return ["# Echo chamber", "", f"{len(ends)} runs, seeds {', '.join(map(str, seeds))} (of what"
            " follows pretraining): means and ranges. Shares are of answers to the easy test;"
            f" {COLLAPSED:.0%} may come in these or, before, in answers drawn to train on."
            " PPO updates several times a step, Expert Iteration can be seen only once a round. KL is"
            " that to the model before, as a sum over an answer (scripts/drift.py).",
            "", "The models before:", "", *markdown("mixture, width | easy | hard | " + " | ".join(
                f"{name}: share, right" for name in names), before),
            "", "After the last step (gains in points, over the model before):", "",
            *markdown("mixture, width | algorithm | KL weight | winner | its share | drawn until it"
                      f" has {COLLAPSED:.0%} | KL of an answer | " + " | ".join(kinds), after), "",
            "The winner was the style that the model before was most often right in (of those with"
            f" a share of {SEEN:.0%}) in {agree} of {len(ends)} runs, from {len(before)} models.",
            *(("", "![styles, gains, pass@k](figure.png)") if drawn else ())]


# ---- how it looks ----------------------------------------------------------------------------
def draw(evals: list[dict], curves: list[dict]):
    """Shares over training, by algorithm; by KL; over mixtures and sizes; pass@k."""
    figure, axes = canvas(2, 3, (14, 8))
    if not figure:
        return None
    names = sorted({name for row in curves for name in styles_of(row) if share(row, name) >= SEEN})
    cells = groups(evals, *CELL)
    main = max(cells, key=lambda key: (sum(key[:2] == other[:2] for other in cells),
                                       key[0] == "some", key[1]))[:2]
    kls = [key[3] for key in cells if key[2] == "grpo"]
    middle = max(sorted(set(kls), key=float), key=kls.count, default="0")   # the one of all studies
    three = [(*main, "grpo", middle), (*main, "ppo", middle), (*main, "expert", "0")]
    for axis, key, word in zip(axes, three, ("GRPO", "PPO", "Expert Iteration")):
        seeds = list(groups(pick(curves, **dict(zip(CELL, key))), "seed").values())
        for name in names if seeds else ():
            band(axis, [row["samples"] for row in seeds[0]], [[share(row, name) for row in one]
                 for one in seeds], STYLE_COLOURS[name], name, 0.15)
        if seeds:
            weight = f", KL weight {key[3]}" if key[3] != "0" else ""
            axis.set(xlabel="answers drawn", ylabel="share of answers", ylim=(0, 1),
                     title=f"{word} from {start(*main)}{weight}")
    keys = [key for key in cells if key[:2] == main]
    draw_ends(axes[3], {key: cells[key] for key in keys}, names,
              [f"{key[2]}\n{key[3]}" if key[2] != "expert" else "expert" for key in keys],
              f"From {start(*main)}, by KL weight (o, _: right before, after)")
    others = [key for key in cells if key[2:] == ("grpo", middle)]
    if len(others) > 1:
        draw_ends(axes[5], {key: cells[key] for key in others}, names,
                  [start(*key[:2]).replace(", ", "\n") for key in others],
                  "GRPO, by model (o, _: right before, after)")
    for key, colour in zip(three, COLOURS[1:]):
        for i, tests in enumerate(groups(pick(cells.get(key, []), test="easy"), "seed").values()):
            for row, style, tint in (tests[0], "--", "#888888"), (tests[-1], "-", colour):
                ks = [int(name[5:]) for name in row if name.startswith("pass@")]
                label = key[2] if row["step"] else "before"
                axes[4].plot(ks, [row[f"pass@{k}"] for k in ks], style, color=tint, label=label if (
                    i == 0 and (row["step"] or key[2] == "grpo")) else None)
    axes[4].set_xscale("log", base=2)
    axes[4].set(xlabel="k", ylabel="pass@k, easy test", ylim=(0, 1.02),
                title=f"pass@k, from {start(*main)}")
    return figure


def draw_ends(axis, cells: dict, names: list[str], labels: list[str], title: str) -> None:
    """Stacked shares of the styles after the last step; accuracy before and after beside."""
    for i, rows in enumerate(cells.values()):
        easy, bottom = pick(rows, test="easy"), 0.0
        ends = [row for row in easy if row["step"] == max(one["step"] for one in easy)]
        for name in names:
            height = mean([share(end, name) for end in ends])
            axis.bar(i, height, bottom=bottom, color=STYLE_COLOURS[name], width=0.7, alpha=0.8)
            bottom += height
        for end in ends:
            axis.plot(i, end["accuracy"], "k_", markersize=16)
        axis.plot(i, easy[0]["accuracy"], "o", color="white", markeredgecolor="black", markersize=5)
    axis.set(xticks=range(len(labels)), ylim=(0, 1), title=title)
    axis.set_xticklabels(labels, fontsize=8)


def main(settings: Settings) -> None:
    evals, curves = read_runs(settings.run)
    figure = draw(evals, curves)
    write(settings.out, report(evals, curves, bool(figure)), figure, evals=evals, curves=curves)


if __name__ == "__main__":
    command(main, parse(Settings, __doc__))
