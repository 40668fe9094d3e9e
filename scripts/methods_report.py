"""The report of methods.py: its tables and its figure, from one run or from several.

Writes models.csv (every model), curves.csv (RL on chosen problems), figure.png where matplotlib is
installed, and report.md. Several runs are shown with their mean and range. Of an unfinished run it
shows what is there, and names what is not.
"""
import os

from engine.files import read_jsonl
from report import COLOURS, band, canvas, markdown, mean, spearman, spread, write

# name -> words; N stands for the steps done where a model was kept on the way.
ONE_BASE = {"base": "the base", "rl": "GRPO from the base",
            "sft_a": "re-distilled A: greedy answers",
            "sft_b": "re-distilled B: answers of the last steps", "dft_b": "B with DFT",
            "few": "on-policy distillation, few samples", "od": "on-policy distillation",
            "sft_table": "SFT on *table* answers", "dft_table": "*table* with DFT",
            "sft_search": "SFT on *search* answers", "dft_search": "*search* with DFT"}
GOALS = {"base2": "the base of both", "rl2": "GRPO on 2 people", "rl3": "GRPO on 3 people",
         "mixture": "GRPO on the mixture", "sft_both": "re-distilled on both",
         "od_both": "on-policy distilled from both"}
CHOICES = ("highest", "random", "lowest")


# ---- what a run left behind ------------------------------------------------------------------
def lines_of(path: str) -> list[dict]:
    """The lines of a file, none where it is not there yet."""
    return read_jsonl(path) if os.path.exists(path) else []


def steps_of(run: str, name: str) -> dict[int, dict]:
    """The lines of metrics of a trainer's run, by step."""
    return {row["step"]: row for row in lines_of(f"{run}/{name}/metrics.jsonl")}


def tokens_sampled(run: str, name: str, step: int) -> int | None:
    """Tokens that were sampled to make a model."""
    if name in ("sft_a", "sft_b", "dft_b"):
        answers = "answers" if name == "sft_a" else "b"
        return sum(len(row["tokens"]) for row in read_jsonl(f"{run}/data/{answers}.jsonl"))
    lines = steps_of(run, name)
    return lines[step]["tokens"] if name in ("rl", "od", "few") else 0


def models(run: str) -> list[dict]:
    """Every model of the first question: its name, the step it is from, and its numbers."""
    rows = []
    for part in ("rl", "tuned", "od"):
        for line in lines_of(f"{run}/drift/{part}.jsonl"):
            folder, which = place_of(line)
            name = folder if folder in ONE_BASE else "base"
            last = max(steps_of(run, name), default=0)
            step = int(which.removeprefix("step-")) if which.startswith("step-") else last
            rows.append({"run": run, "name": name, "step": step, "last": which == "model",
                         "tokens": tokens_sampled(run, name, step), **numbers(line)})
    return rows


def place_of(line: dict) -> tuple[str, str]:
    """The name of a model in its run, and `model` or `step-N`. The run may have been renamed."""
    folder, which = os.path.split(line["model"])
    return os.path.basename(folder), which


def numbers(line: dict) -> dict:
    """The numbers of a line of drift.py that the tables need."""
    [world], [of_base] = line["text"].values(), line["text_base"].values()
    return {"right": line["reward"], "k3": line["kl_per_answer"], "k1": line["k1_per_answer"],
            "lost": of_base - world}


def goals(run: str) -> list[dict]:
    """Every model of the second question, on the puzzles of each goal."""
    rows = []
    for people, part in ((2, "test2"), (3, "threes")):
        for line in lines_of(f"{run}/drift/goals_{part}.jsonl"):
            name, _ = place_of(line)
            rows.append({"run": run, "name": name, "people": people, **numbers(line)})
    return rows


def curves(run: str) -> list[dict]:
    """RL on chosen problems: accuracy on held-out puzzles, by step."""
    rows = []
    for choice in CHOICES:
        problems = lines_of(f"{run}/data/{choice}.jsonl")
        solved = {row["id"]: row["solved"] for row in lines_of(f"{run}/data/ranked.jsonl")}
        for step, line in steps_of(run, f"rl_{choice}").items():
            if "eval" in line:
                rows.append({"run": run, "choice": choice, "step": step,
                             "right": line["eval"]["accuracy"],
                             "solved": mean([solved[row["id"]] for row in problems])})
    return rows


def reliability(run: str) -> float | None:
    """The rank correlation of the problems' effects from two samples of answers."""
    one, again = ({row["id"]: row["effect"]
                   for row in lines_of(f"{run}/{name}/pool.effects.jsonl")}
                  for name in ("value", "value_again"))
    return spearman(list(one.values()), [again[name] for name in one]) if again else None


def follows_kl(rows: list[dict]) -> float:
    """The rank correlation of k1 and what is lost, over the models at the end of their training."""
    ends = [row for row in rows if row["last"]]
    return spearman([row["k1"] for row in ends], [row["lost"] for row in ends])


def not_there(run: str, rows: list[dict], goal_rows: list[dict], curve_rows: list[dict]) -> list:
    """What a run has not measured yet, in words."""
    mine = [row for row in rows if row["run"] == run]
    ends = {row["name"] for row in mine if row["last"] or row["name"] == "base"}
    both = [row["name"] for row in goal_rows if row["run"] == run]
    end = max((row["step"] for row in curve_rows), default=0)
    chosen = {row["choice"] for row in curve_rows if (row["run"], row["step"]) == (run, end)}
    return ([words for name, words in ONE_BASE.items() if name not in ends]
            + [words for name, words in GOALS.items() if both.count(name) < 2]
            + [f"RL on the {choice} quarter" for choice in CHOICES if choice not in chosen])


# ---- tables ----------------------------------------------------------------------------------
def of(rows: list[dict], column: str, form: str) -> str:
    return spread([row[column] for row in rows], form)


def model_table(rows: list[dict]) -> list[str]:
    lines = []
    for name, words in ONE_BASE.items():
        for step in sorted({row["step"] for row in rows if row["name"] == name}):
            some = [row for row in rows if row["name"] == name and row["step"] == step]
            on_the_way = "" if some[0]["last"] or name == "base" else f", step {step}"
            lines.append([words + on_the_way, of(some, "tokens", ",.0f"), of(some, "right", ".1%"),
                          of(some, "k3", ".2f"), of(some, "k1", ".2f"), of(some, "lost", ".4f")])
    return markdown("model | tokens sampled | right | KL to the base per answer, k3 | k1 |"
                    " log-prob lost on the base's world, per token", lines)


def goal_table(rows: list[dict]) -> list[str]:
    lines = []
    for name, words in GOALS.items():
        some = {people: [row for row in rows if row["name"] == name and row["people"] == people]
                for people in (2, 3)}
        lines.append([words, *(of(some[people], column, form) for column, form in (
            ("right", ".1%"), ("k1", ".2f")) for people in (2, 3))])
    return markdown("model | 2 people | 3 people | KL (k1), 2 people | 3 people", lines)


def curve_table(rows: list[dict]) -> list[str]:
    steps, lines = sorted({row["step"] for row in rows}), []
    for choice in CHOICES:
        some = [row for row in rows if row["choice"] == choice]
        by_step = [of([row for row in some if row["step"] == step], "right", ".1%")
                   for step in steps]
        lines.append([f"{choice} quarter", of(some, "solved", ".0%"), *by_step])
    return markdown("RL on the | of it the base solves | " + " | ".join(f"step {step}" for step in
                                                                      steps), lines)


def draw(rows: list[dict], goal_rows: list[dict], curve_rows: list[dict]):
    figure, axes = canvas(2, 2, (12, 9))
    if figure is None:
        return None
    for name, colour in zip(ONE_BASE, COLOURS):
        some = [row for row in rows if row["name"] == name]
        for axis, x in ((axes[0], "tokens"), (axes[1], "k1")):
            axis.plot([row[x] for row in some], [row["right"] for row in some], "o", color=colour,
                      alpha=0.7, label=ONE_BASE[name].replace("*", ""))
    axes[0].set_xscale("symlog", linthresh=1000)
    axes[0].set(xlabel="tokens sampled", ylabel="right", xlim=(-300, None))
    axes[1].set(xscale="symlog", xlabel="KL to the base per answer (k1)", ylabel="right")
    if goal_rows:
        draw_goals(axes[2], goal_rows)
    for choice, colour in zip(CHOICES, COLOURS[1:]):
        some = [row for row in curve_rows if row["choice"] == choice]
        steps = sorted({row["step"] for row in some})
        runs = [[row["right"] for row in some if row["run"] == run]
                for run in dict.fromkeys(row["run"] for row in some)]
        band(axes[3], steps, runs, colour, f"{choice} quarter", 0.15)
    axes[3].set(xlabel="steps of GRPO", ylabel="right", title="problems chosen by effect")
    return figure


def draw_goals(axis, rows: list[dict]) -> None:
    for place, name in enumerate(GOALS):
        for people, marker in ((2, "s"), (3, "o")):
            right = [row["right"] for row in rows if (row["name"], row["people"]) == (name, people)]
            axis.plot([place] * len(right), right, marker, color=COLOURS[people],
                      label=f"{people} people" if not place else None)
    axis.set_xticks(range(len(GOALS)), [words.replace(" ", "\n", 1) for words in GOALS.values()],
                    fontsize=8)
    axis.set(ylabel="right", title="two goals")


def report(runs: list[str], out: str) -> None:
    rows, goal_rows, curve_rows = (sum(map(read, runs), []) for read in (models, goals, curves))
    if not rows:
        raise ValueError(f"{' '.join(runs)}: no model of methods.py is measured there")
    by_run = [[row for row in rows if row["run"] == run] for run in runs]
    lines = ["# Beside re-distillation", "", f"From {', '.join(runs)}; mean and range.", ""]
    for run in runs:
        if missing := not_there(run, rows, goal_rows, curve_rows):
            lines += [f"{run} is not finished. Not measured yet: {', '.join(missing)}.", ""]
    lines += [*model_table(rows), "", "Rank correlation of k1 and what is lost, over the models at"
             f" the end of their training: {spread(list(map(follows_kl, by_run)), '.2f')}."]
    if goal_rows:
        lines += ["", "Two goals:", "", *goal_table(goal_rows)]
    if curve_rows:
        lines += ["", "Problems chosen by effect:", "", *curve_table(curve_rows)]
    if known := [r for r in map(reliability, runs) if r is not None]:
        lines += ["", "Rank correlation of a problem's effect with its effect from other answers:"
                  f" {spread(known, '.2f')}."]
    tables = {"models": rows, "goals": goal_rows, "curves": curve_rows}
    write(out, lines, draw(rows, goal_rows, curve_rows),
          **{name: table for name, table in tables.items() if table})
