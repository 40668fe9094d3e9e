"""Sums and word problems of two steps, in English: questions for a small real language model.

    python scripts/sums.py --num 400 --seed 0 --out data/rl.jsonl
    python scripts/sums.py --num 64 --seed 1 --exclude data/rl.jsonl --out data/test.jsonl
    python scripts/sums.py --source data/rl.jsonl --cot steps --out data/long.jsonl

Half of the questions are plain (level 1), half are told as a story (level 2):

    What is 17 plus 8 minus 5?      Mia has 17 stamps, gets 8 more and gives 5 away. How many ...?

An answer can be written in two ways, or none (`--cot`), and always ends with the box:

    equation    17 + 8 - 5 = 20.
    steps       17 + 8 = 25. 25 - 5 = 20.
    mixed       every fourth answer in steps, the others as an equation

Rows are problems of task `math`. No two have the same text.
"""
import random
from dataclasses import dataclass, field

import conductor  # so that Python finds the files above scripts/
from engine.files import check_output, write_jsonl
from engine.flags import command, limits, parse
from engine.problems import read_problems
from engine.prompts import TEMPLATES, prompt_text

PLAIN = ("What is {sum}?", "Calculate {sum}.", "What does {sum} make?")
WORDS = {"+": "plus", "-": "minus", "*": "times"}
STORIES = {
    "++": ("{name} has {a} {things}, finds {b} on Monday and {c} on Tuesday. How many {things} does"
           " {name} have now?",
           "There are {a} {things} in one box, {b} in another and {c} on the table. How many"
           " {things} are there?"),
    "+-": ("{name} has {a} {things}, gets {b} more and gives {c} away. How many {things} does"
           " {name} have now?",
           "There were {a} {things} in a shop. {b} more came, and {c} were sold. How many {things}"
           " are left?"),
    "*+": ("There are {a} boxes with {b} {things} in each, and {c} more on the table. How many"
           " {things} are there?",
           "{name} buys {a} bags of {b} {things} and finds {c} more. How many {things} does {name}"
           " have?"),
    "*-": ("There are {a} boxes with {b} {things} in each. {c} of the {things} are sold. How many"
           " are left?",
           "{name} buys {a} bags of {b} {things} and gives {c} of the {things} away. How many does"
           " {name} keep?")}
NAMES = ("Mia", "Noah", "Ava", "Liam", "Zoe", "Omar", "Lena", "Ravi", "Ines", "Yuki")
THINGS = ("stamps", "apples", "books", "shells", "coins", "pencils", "cards", "marbles", "eggs")
COTS = ("none", "equation", "steps", "mixed")


@dataclass(kw_only=True)
class Settings:
    out: str                                    # the JSONL file to write
    num: int = limits(0, at_least=0, at_most=100_000)       # make so many new questions
    source: str = ""                            # or take those of this file, which we made
    cot: str = limits("none", one_of=COTS)      # how `response` is written
    template: str = limits("chat", one_of=TEMPLATES)        # of the prompts
    exclude: list[str] = field(default_factory=list)        # files whose questions must not come
    seed: int = limits(0, at_least=0)


def halfway(a: int, operation: str, b: int) -> int:
    """What the first two numbers make."""
    return a * b if operation == "*" else a + b


def draw(rng) -> dict:
    """One question."""
    operations, story = rng.choice(list(STORIES)), rng.random() < 0.5
    if operations[0] == "*":
        a, b = rng.randint(2, 9), rng.randint(2, 12)
    else:
        a, b = rng.randint(5, 40), rng.randint(5, 40)
    half = halfway(a, operations[0], b)
    c = rng.randint(2, min(20, half - 1))
    gold = half + c if operations[1] == "+" else half - c
    first, second = map(WORDS.get, operations) if rng.random() < 0.5 else operations
    text = rng.choice(STORIES[operations] if story else PLAIN)
    return {"task": "math", "level": 1 + story, "numbers": [a, b, c], "operations": operations,
            "gold": str(gold), "question": text.format(
                a=a, b=b, c=c, name=rng.choice(NAMES), things=rng.choice(THINGS),
                sum=f"{a} {first} {b} {second} {c}")}


def answer(row: dict, cot: str) -> str:
    """The reasoning, and the box."""
    (a, b, c), (first, second), gold = row["numbers"], row["operations"], row["gold"]
    text = f"{a} {first} {b} {second} {c} = {gold}."
    if cot == "steps":
        half = halfway(a, first, b)
        text = f"{a} {first} {b} = {half}. {half} {second} {c} = {gold}."
    return f"{text} The final answer is: \\boxed{{{gold}}}."


def main(settings: Settings) -> None:
    if bool(settings.num) == bool(settings.source):
        raise ValueError("give either --num or --source")
    check_output(settings.out, [settings.source, *settings.exclude])
    if settings.source:
        rows = read_problems(settings.source)
        if not all({"numbers", "operations", "question"} <= row.keys() for row in rows):
            raise ValueError(f"{settings.source}: not a file that this script made")
    else:
        known = {row["question"] for path in settings.exclude for row in read_problems(path)}
        rng, rows = random.Random(f"sums, seed {settings.seed}"), []
        while len(rows) < settings.num:
            row = draw(rng)
            if row["question"] not in known:
                known.add(row["question"])
                rows.append({"id": f"sums-{settings.seed}-{len(rows)}", **row})
    names = ("id", "task", "level", "numbers", "operations", "gold", "question")
    rows = [{name: row[name] for name in names} for row in rows]    # not a policy's own tokens
    for i, row in enumerate(rows):
        row["prompt"] = prompt_text(row["question"], settings.template)
        style = settings.cot
        if style == "mixed":
            style = "steps" if i % 4 == 0 else "equation"
        if style != "none":
            row["response"] = answer(row, style)
    write_jsonl(settings.out, rows)
    print(f"{settings.out}: {len(rows):,} questions")


if __name__ == "__main__":
    command(main, parse(Settings, __doc__))
