"""Puzzles per second of kk_gen.py beside a plain generator that tries each assignment recursively.

    python bench/kk_gen.py [--people 8] [--num 150] [--rounds 7] [--seed 0]

Both sides take turns in one process and draw from the same distribution, which is checked before:
the share of draws accepted, the share of knights, and the mix of operators. Three stages are timed:
drawing puzzles with one solution; the same without duplicates (canonical form); and whole lines of
a file, with their search narrative (ours only). Ends in one JSON line.
"""
import itertools
import json
import os
import random
import statistics
import sys
import time
from dataclasses import dataclass

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)                    # this file has the name of the module that it measures
import kk_gen
from engine.flags import command, limits, parse

OPERATORS = ("and", "or", "->", "<=>")


@dataclass(kw_only=True)
class Settings:
    people: int = limits(8, at_least=2, at_most=12)     # in each puzzle
    num: int = limits(150, at_least=1)      # puzzles of the plain generator in a round; ours: 20 x
    rounds: int = limits(7, at_least=1)     # the two sides take turns
    seed: int = 0


# ---- the plain generator: it draws as the public one does ----------------------------------------
def plain_leaf(rng, people, speaker):
    while True:
        leaf = rng.choice(("telling-truth", "lying")), rng.randrange(people)
        if leaf != ("lying", speaker):
            return leaf


def plain_statement(rng, people, speaker):
    kind = rng.randrange(6)
    first = plain_leaf(rng, people, speaker)
    if kind < 2:
        return first if kind == 0 else ("not", first)
    while (second := plain_leaf(rng, people, speaker)) == first:
        pass
    return OPERATORS[kind - 2], first, second


def is_true(statement, roles):
    op = statement[0]
    if op == "telling-truth":
        return roles[statement[1]]
    if op == "lying":
        return not roles[statement[1]]
    if op == "not":
        return not is_true(statement[1], roles)
    if op == "and":
        return is_true(statement[1], roles) and is_true(statement[2], roles)
    if op == "or":
        return is_true(statement[1], roles) or is_true(statement[2], roles)
    if op == "->":
        return not is_true(statement[1], roles) or is_true(statement[2], roles)
    return is_true(statement[1], roles) == is_true(statement[2], roles)


def plain_solve(statements):
    return [roles for roles in itertools.product((True, False), repeat=len(statements))
            if all(is_true(said, roles) == role for said, role in zip(statements, roles))]


def plain_puzzle(rng, people):
    """A puzzle, and how many draws it took."""
    for draws in itertools.count(1):
        statements = tuple(plain_statement(rng, people, speaker) for speaker in range(people))
        if len(plain_solve(statements)) == 1:
            return statements, draws


# ---- what is compared ---------------------------------------------------------------------------
def describe(puzzles):
    said = [statement[0] for puzzle in puzzles for statement in puzzle]
    knights = [role for puzzle in puzzles for role in kk_gen.solve(puzzle)[0]]
    return {"knights": statistics.mean(knights),
            **{op: said.count(op) / len(said)
               for op in ("telling-truth", "lying", "not", *OPERATORS)}}


def seconds(work, size):
    start = time.perf_counter()
    work(size)
    return time.perf_counter() - start


def without_duplicates(draw, number):
    known = set()
    while len(known) < number:
        known.add(kk_gen.canonical_form(draw()))


def compare(people, rng):
    """Print the mix of both sides' puzzles, and check that both solvers agree."""
    plain, draws = zip(*(plain_puzzle(rng, people) for _ in range(1000)))
    assert all(plain_solve(puzzle) == kk_gen.solve(puzzle) for puzzle in plain[:200])
    ours = [kk_gen.sample_puzzle(rng, people) for _ in range(20000)]
    print("of 1,000 plain and 20,000 of our puzzles:")
    for (what, a), b in zip(describe(plain).items(), describe(ours).values()):
        print(f"  {what:14} {a:6.3f} {b:6.3f}")
    print(f"  the plain generator accepts {len(draws) / sum(draws):.3f} of its draws")


def write_lines(people, number, rng):
    settings = kk_gen.Settings(people=str(people), cot="search")
    for _ in range(number):
        puzzle = kk_gen.sample_puzzle(rng, people)
        kk_gen.puzzle_line(settings, random.Random(0), "id", 0, puzzle, None)


def measure(people, number, rounds, rng):
    """Puzzles per second of each stage, one number for each round."""
    stages = {                              # name: (how many puzzles, work)
        "plain": (number, lambda n: [plain_puzzle(rng, people) for _ in range(n)]),
        "ours": (number * 20, lambda n: [kk_gen.sample_puzzle(rng, people) for _ in range(n)]),
        "plain_distinct": (number, lambda n: without_duplicates(
            lambda: plain_puzzle(rng, people)[0], n)),
        "ours_distinct": (number * 20, lambda n: without_duplicates(
            lambda: kk_gen.sample_puzzle(rng, people), n)),
        "ours_lines": (number * 5, lambda n: write_lines(people, n, rng))}
    rates = {name: [] for name in stages}
    for _ in range(rounds):
        for name, (size, work) in stages.items():
            rates[name].append(size / seconds(work, size))
    return rates


def main(settings):
    people, rng = settings.people, random.Random(settings.seed)
    start = time.perf_counter()
    kk_gen.sample_puzzle(rng, people)
    milliseconds = (time.perf_counter() - start) * 1e3
    print(f"tables of all claims of {people} people: {milliseconds:.0f} ms, once")

    compare(people, rng)
    rates = measure(people, settings.num, settings.rounds, rng)
    for name, values in rates.items():
        print(f"{name:15} {statistics.median(values):10,.0f} puzzles/s"
              f"   ({min(values):,.0f} to {max(values):,.0f})")
    ratio = [b / a for a, b in zip(rates["plain"], rates["ours"])]
    distinct = [b / a for a, b in zip(rates["plain_distinct"], rates["ours_distinct"])]
    for name, values in (("drawing", ratio), ("distinct", distinct)):
        print(f"{name}: {statistics.median(values):.0f} times as many"
              f" ({min(values):.0f} to {max(values):.0f} over {settings.rounds} rounds)")
    print(json.dumps({"bench": "kk_gen", "people": people, "seed": settings.seed,
                      "rounds": settings.rounds,
                      **{name: round(statistics.median(values)) for name, values in rates.items()},
                      "ratio": round(statistics.median(ratio), 1),
                      "ratio_distinct": round(statistics.median(distinct), 1)}))


if __name__ == "__main__":
    command(main, parse(Settings, __doc__))
