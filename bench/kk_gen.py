"""Puzzles per second of kk_gen.py beside a plain generator that tries each assignment recursively.

    python bench/kk_gen.py [--people 8] [--num 150] [--rounds 7] [--seed 0]

Both sides take turns in one process and draw from the same distribution, which is checked before:
the share of draws accepted, the share of knights, and the mix of operators. Three stages are timed:
drawing puzzles with one solution; the same without duplicates (canonical form); and whole lines of
a file, with their search narrative (ours only). Ends in one JSON line.
"""
import argparse
import itertools
import json
import os
import random
import statistics
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(__file__), ".."))
import kk_gen                                                               # noqa: E402

OPERATORS = ("and", "or", "->", "<=>")


# ---- the plain generator, after PAPER: A, data ------------------------------------------------
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


def seconds(work):
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def without_duplicates(draw, number):
    known = set()
    while len(known) < number:
        known.add(kk_gen.canonical_form(draw()))


def main():
    flags = argparse.ArgumentParser(description=__doc__)
    for name, default in (("people", 8), ("num", 150), ("rounds", 7), ("seed", 0)):
        flags.add_argument(f"--{name}", type=int, default=default)
    args = flags.parse_args()
    people, number, rng = args.people, args.num, random.Random(args.seed)
    start = time.perf_counter()
    kk_gen.sample_puzzle(rng, people)
    milliseconds = (time.perf_counter() - start) * 1e3
    print(f"tables of all claims of {people} people: {milliseconds:.0f} ms, once")

    plain, draws = zip(*(plain_puzzle(rng, people) for _ in range(1000)))
    assert all(plain_solve(puzzle) == kk_gen.solve(puzzle) for puzzle in plain[:200])
    ours = [kk_gen.sample_puzzle(rng, people) for _ in range(20000)]
    print("of 1,000 plain and 20,000 of our puzzles:")
    for (what, a), b in zip(describe(plain).items(), describe(ours).values()):
        print(f"  {what:14} {a:6.3f} {b:6.3f}")
    print(f"  the plain generator accepts {len(draws) / sum(draws):.3f} of its draws")

    settings = kk_gen.Settings(people=str(people), cot="search")

    def line():
        words = random.Random(0)
        kk_gen.puzzle_line(settings, words, "id", 0, kk_gen.sample_puzzle(rng, people), None)

    stages = {
        "plain": lambda: [plain_puzzle(rng, people) for _ in range(number)],
        "ours": lambda: [kk_gen.sample_puzzle(rng, people) for _ in range(number * 20)],
        "plain_distinct": lambda: without_duplicates(lambda: plain_puzzle(rng, people)[0], number),
        "ours_distinct": lambda: without_duplicates(lambda: kk_gen.sample_puzzle(rng, people),
                                                    number * 20),
        "ours_lines": lambda: [line() for _ in range(number * 5)]}
    sizes = {"plain": number, "ours": number * 20, "plain_distinct": number,
             "ours_distinct": number * 20, "ours_lines": number * 5}
    rates = {name: [] for name in stages}
    for _ in range(args.rounds):
        for name, work in stages.items():
            rates[name].append(sizes[name] / seconds(work))
    for name, values in rates.items():
        print(f"{name:15} {statistics.median(values):10,.0f} puzzles/s"
              f"   ({min(values):,.0f} to {max(values):,.0f})")
    ratio = [b / a for a, b in zip(rates["plain"], rates["ours"])]
    distinct = [b / a for a, b in zip(rates["plain_distinct"], rates["ours_distinct"])]
    for name, values in (("drawing", ratio), ("distinct", distinct)):
        print(f"{name}: {statistics.median(values):.0f} times as many"
              f" ({min(values):.0f} to {max(values):.0f} over {args.rounds} rounds)")
    print(json.dumps({"bench": "kk_gen", "people": people, "seed": args.seed, "rounds": args.rounds,
                      **{name: round(statistics.median(values)) for name, values in rates.items()},
                      "ratio": round(statistics.median(ratio), 1),
                      "ratio_distinct": round(statistics.median(distinct), 1)}))


if __name__ == "__main__":
    main()
