"""Sums and one-step word problems in English: questions for a small real language model.

    python scripts/sums.py --num 400 --seed 0 --out data/rl.jsonl
    python scripts/sums.py --num 64 --seed 1 --exclude data/rl.jsonl --out data/test.jsonl
    python scripts/sums.py --source data/rl.jsonl --cot steps --out data/long.jsonl

Half of the questions are plain (level 1), half are told as a story (level 2):

    What is 47 plus 38?                     Mia has 47 stamps and gets 38 more. How many ...?

An answer can be written in two ways, or none (`--cot`), and always ends with the box:

    equation    47 + 38 = 85.
    steps       47 + 38: 47 + 30 = 77. 77 + 8 = 85.

Rows are problems of task `math`. No two have the same text.
"""
import random
from dataclasses import dataclass, field

import conductor  # so that Python finds the files above scripts/
from engine.files import check_output, write_jsonl
from engine.flags import command, limits, parse
from engine.problems import read_problems
from engine.prompts import TEMPLATES, prompt_text

PLAIN = {"+": ("What is {a} plus {b}?", "Add {a} and {b}.", "Calculate {a} + {b}."),
         "-": ("What is {a} minus {b}?", "Subtract {b} from {a}.", "Calculate {a} - {b}."),
         "*": ("What is {a} times {b}?", "Multiply {a} by {b}.", "Calculate {a} * {b}.")}
STORIES = {
    "+": ("{name} has {a} {things} and gets {b} more. How many {things} does {name} have now?",
          "There are {a} {things} in one box and {b} in another. How many {things} are there in"
          " both boxes?",
          "{name} found {a} {things} on Monday and {b} on Tuesday. How many {things} did {name}"
          " find in both days?"),
    "-": ("{name} has {a} {things} and gives {b} of them away. How many {things} are left?",
          "There were {a} {things} in a shop, and {b} were sold. How many {things} remain?",
          "{name} wants {a} {things} and has {b} so far. How many {things} are still missing?"),
    "*": ("There are {a} {things} in each box. How many {things} are there in {b} boxes?",
          "{name} buys {b} bags with {a} {things} in each. How many {things} does {name} buy?",
          "{name} collects {a} {things} every day. How many {things} is that in {b} days?")}
NAMES = ("Mia", "Noah", "Ava", "Liam", "Zoe", "Omar", "Lena", "Ravi", "Ines", "Yuki")
THINGS = ("stamps", "apples", "books", "shells", "coins", "pencils", "cards", "marbles", "eggs")
COTS = ("none", "equation", "steps")


@dataclass(kw_only=True)
class Settings:
    out: str                                    # the JSONL file to write
    num: int = limits(0, at_least=0)            # make so many new questions
    source: str = ""                            # or take those of this file, which we made
    cot: str = limits("none", one_of=COTS)      # how `response` is written
    template: str = limits("chat", one_of=TEMPLATES)        # of the prompts
    exclude: list[str] = field(default_factory=list)        # files whose questions must not come
    seed: int = limits(0, at_least=0)


def draw(rng) -> dict:
    """One question."""
    operation, story = rng.choice("+-*"), rng.random() < 0.5
    if operation == "*":
        a, b = rng.randint(3, 20), rng.randint(2, 9)
    else:
        a, b = rng.randint(11, 99), rng.randint(11, 99)
    if operation == "-":
        a, b = max(a, b), min(a, b)
    text = rng.choice((STORIES if story else PLAIN)[operation])
    gold = {"+": a + b, "-": a - b, "*": a * b}[operation]
    return {"task": "math", "level": 1 + story, "numbers": [a, operation, b], "gold": str(gold),
            "question": text.format(a=a, b=b, name=rng.choice(NAMES), things=rng.choice(THINGS))}


def answer(row: dict, cot: str) -> str:
    """The reasoning, and the box."""
    (a, operation, b), gold = row["numbers"], row["gold"]
    tens, ones = b // 10 * 10, b % 10
    text = f"{a} {operation} {b} = {gold}."
    if cot == "steps" and operation == "*":
        tens, ones = a // 10 * 10, a % 10
        text = (f"{a} * {b}: {tens} * {b} = {tens * b}. {ones} * {b} = {ones * b}."
                f" {tens * b} + {ones * b} = {gold}.")
    elif cot == "steps":
        half = a + tens if operation == "+" else a - tens
        text = (f"{a} {operation} {b}: {a} {operation} {tens} = {half}."
                f" {half} {operation} {ones} = {gold}.")
    return f"{text} The final answer is: \\boxed{{{gold}}}."


def main(settings: Settings) -> None:
    if bool(settings.num) == bool(settings.source):
        raise ValueError("give either --num or --source")
    check_output(settings.out, [settings.source, *settings.exclude])
    if settings.source:
        rows = read_problems(settings.source)
        if not all({"numbers", "question"} <= row.keys() for row in rows):
            raise ValueError(f"{settings.source}: not a file that this script made")
    else:
        known = {row["question"] for path in settings.exclude for row in read_problems(path)}
        rng, rows = random.Random(f"sums, seed {settings.seed}"), []
        while len(rows) < settings.num:
            row = draw(rng)
            if row["question"] not in known:
                known.add(row["question"])
                rows.append({"id": f"sums-{settings.seed}-{len(rows)}", **row})
    rows = [{name: row[name] for name in ("id", "task", "level", "numbers", "gold", "question")}
            for row in rows]        # A row of a policy's answers also has that policy's tokens.
    for row in rows:
        row["prompt"] = prompt_text(row["question"], settings.template)
        if settings.cot != "none":
            row["response"] = answer(row, settings.cot)
    write_jsonl(settings.out, rows)
    print(f"{settings.out}: {len(rows):,} questions")


if __name__ == "__main__":
    command(main, parse(Settings, __doc__))
