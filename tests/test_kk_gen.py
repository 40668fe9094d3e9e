"""kk_gen.py: distribution, solver, which puzzles are the same, chains of thought, the command."""
import collections
import itertools
import json
import os
import random
import subprocess
import sys
import time

import pytest

ROOT = os.path.join(os.path.dirname(__file__), "..")
sys.path.insert(0, ROOT)
import cli                                                                  # noqa: E402
import kk_gen                                                               # noqa: E402
from kk_gen import (canonical_form, chain_of_thought, check_chain_of_thought, claims,   # noqa: E402
                    perturb, read_statements, read_steps, renamed, role_words, sample_puzzle, solve,
                    step_text)

T, F = ("telling-truth",), ("lying",)
# Lines of the public K&K data, cut down to the fields that are facts.
OFFICIAL = [
    {"names": ["Oliver", "Ethan"], "solution": [True, True],
     "statements": "(('or', ('telling-truth', 0), ('lying', 1)), ('telling-truth', 0))"},
    {"names": ["Michael", "Jacob"], "solution": [True, False],
     "statements": "(('lying', 1), ('<=>', ('lying', 0), ('telling-truth', 0)))"},
    {"names": ["Logan", "Lily"], "solution": [False, False],
     "statements": "(('not', ('lying', 1)), ('and', ('lying', 0), ('telling-truth', 1)))"},
    {"names": ["Owen", "Joseph", "Sofia"], "solution": [False, False, False],
     "statements": "(('or', ('telling-truth', 1), ('telling-truth', 2)), ('<=>', ('lying', 0), "
                   "('telling-truth', 2)), ('->', ('lying', 1), ('telling-truth', 1)))"},
    {"names": ["William", "Jacob", "Aiden", "Aria", "Logan"],
     "solution": [True, False, True, False, False],
     "statements": "(('->', ('telling-truth', 2), ('lying', 3)), ('and', ('lying', 4), "
                   "('telling-truth', 1)), ('or', ('lying', 3), ('telling-truth', 0)), "
                   "('lying', 0), ('telling-truth', 1))"},
]
KNIGHTS = role_words("knight/knave")


def puzzles(people, number, seed=0):
    rng = random.Random(seed)
    return [sample_puzzle(rng, people) for _ in range(number)]


def is_true(statement, roles):
    """The meaning of a statement, written without rows or masks."""
    op, *parts = statement
    if op in ("telling-truth", "lying"):
        return roles[parts[0]] == (op == "telling-truth")
    values = [is_true(part, roles) for part in parts]
    return {"not": lambda a: not a, "and": lambda a, b: a and b, "or": lambda a, b: a or b,
            "->": lambda a, b: b or not a, "<=>": lambda a, b: a == b}[op](*values)


def every_role(people):
    return itertools.product((True, False), repeat=people)


# ---- solver and distribution -------------------------------------------------------------------
def test_rows_by_hand():
    # rows of the table from bit 0 on: TT, TF, FT, FF
    assert kk_gen.knight_rows(2) == [0b0011, 0b0101]
    assert kk_gen.knight_rows(3) == [0b00001111, 0b00110011, 0b01010101]
    assert kk_gen.true_rows(("->", (*T, 0), (*T, 1)), 2) == 0b1101
    assert kk_gen.true_rows(("not", ("or", (*T, 0), (*F, 1))), 2) == 0b0100
    assert kk_gen.rows_fitting((*F, 1), 0, 2) == 0b0110        # "1 is a knave" by 0: they differ


def test_solve_by_hand():
    assert solve(((*F, 1), (*F, 0))) == [(True, False), (False, True)]
    assert solve(((*F, 0), (*T, 0))) == []
    assert solve((("and", (*F, 0), (*F, 1)), (*T, 1))) == [(False, True)]


@pytest.mark.parametrize("people", range(2, 8))
def test_solve_agrees_with_trying_every_assignment(people):
    rng = random.Random(people)
    for _ in range(60):
        said = tuple(kk_gen.pick(rng, kk_gen.pick(rng, claims(people, i)))[0] for i in range(people))
        assert solve(said) == [roles for roles in every_role(people) if
                               all(is_true(s, roles) == role for s, role in zip(said, roles))]


@pytest.mark.parametrize("line", OFFICIAL, ids=lambda line: line["names"][0])
def test_official_puzzles_are_read_and_solved(line):
    assert solve(read_statements(line["statements"])) == [tuple(line["solution"])]


def test_what_a_person_can_say():
    leaves, nots, *pairs = [[said for said, _ in kind] for kind in claims(2, 0)]
    assert leaves == [(*T, 0), (*T, 1), (*F, 1)]                # never "I am a liar"
    assert nots == [("not", leaf) for leaf in leaves]           # not even inside
    assert [kind[0][0] for kind in pairs] == ["and", "or", "->", "<=>"]
    for kind in pairs:
        assert [(a, b) for _, a, b in kind] == list(itertools.permutations(leaves, 2))
    assert [len(kind) for kind in claims(8, 3)] == [15, 15, 210, 210, 210, 210]


def test_two_people_facts_of_the_public_generator():
    every = [(a, b) for (a, one), (b, two) in itertools.product(*(
        itertools.chain(*claims(2, i)) for i in (0, 1))) if (one & two).bit_count() == 1]
    assert len(every) == 399
    assert len(set(map(canonical_form, every))) == 205
    assert len({canonical_form(said, commute=True) for said in every}) == 95
    drawn = puzzles(2, 20000)
    assert set(drawn) <= set(every) and len(set(drawn)) > 390
    # "a quarter all knights": exactly, each puzzle weighs the product of its statements' chances
    chance = {said: 1 / 6 / len(kind) for i in (0, 1) for kind in claims(2, i) for said, _ in kind}
    weight = {said: chance[said[0]] * chance[said[1]] for said in every}
    total = sum(weight.values())
    exact = sum(w for said, w in weight.items() if solve(said) == [(True, True)]) / total
    assert exact == pytest.approx(0.2580, abs=1e-4)
    share = sum(solve(said) == [(True, True)] for said in drawn) / 20000
    assert share == pytest.approx(exact, abs=.015)
    # a leaf weighs as much as all of "and" together; equal weights would put 1 draw in 10 on leaves
    leaf_first = sum(w for said, w in weight.items() if len(said[0]) == 2) / total
    share = sum(len(said[0]) == 2 for said in drawn) / 20000
    assert share == pytest.approx(leaf_first, abs=.015) and share > .25


def test_every_draw_has_one_solution():
    for people in (2, 3, 6, 12):
        assert all(len(solve(said)) == 1 for said in puzzles(people, 100))


def test_perturbed_puzzles():
    rng = random.Random(0)
    for people in (2, 3, 5, 8):
        for said in puzzles(people, 30):
            for what in ("statement", "leaf"):
                for new in filter(None, (perturb(rng, said, what) for _ in range(10))):
                    changed = [(a, b) for a, b in zip(said, new) if a != b]
                    assert len(changed) == 1 and len(solve(new)) == 1 and solve(new) != solve(said)
                    if what == "leaf":
                        (a, b), = changed
                        if len(a) == 2 and a[0] != "not":
                            assert b[0] in kk_gen.LEAVES
                        else:
                            assert a[0] == b[0] and sum(x != y for x, y in zip(a, b)) == 1


# ---- the same puzzle -----------------------------------------------------------------------------
def shuffled(said, rng):
    order = sorted(range(len(said)), key=lambda _: rng.random())
    return tuple(renamed(said[i], [order.index(p) for p in range(len(said))]) for i in order)


def by_all_permutations(said, commute):
    def text(statement):
        op, *parts = statement
        if op in kk_gen.LEAVES:
            return repr(statement)
        parts = list(map(text, parts))
        return f"{op}{sorted(parts) if commute and op in ('and', 'or', '<=>') else parts}"
    people = len(said)
    return min([text(renamed(said[order.index(i)], order)) for i in range(people)]
               for order in map(list, itertools.permutations(range(people))))


@pytest.mark.parametrize("commute", (False, True))
@pytest.mark.parametrize("people", (2, 3, 4, 5))
def test_canonical_form_agrees_with_all_permutations(people, commute):
    """A bijection between the two: neither joins two puzzles nor parts one. Half of the statements
    are leaves about few people, so that symmetric ties, where refinement fails, are common."""
    rng, pairs = random.Random(people), set()
    for _ in range(300 if people < 5 else 60):
        kinds = 1 if rng.random() < .5 else 3
        said = tuple(kk_gen.pick(rng, kk_gen.pick(rng, claims(people, i)[:kinds]))[0]
                     for i in range(people))
        for same in (said, shuffled(said, rng)):
            pairs.add((canonical_form(same, commute), tuple(by_all_permutations(same, commute))))
    assert len({a for a, _ in pairs}) == len({b for _, b in pairs}) == len(pairs)


def test_canonical_form_where_colours_cannot_tell_people_apart():
    one_ring = tuple((*T, (i + 1) % 6) for i in range(6))
    two_rings = tuple((*T, i // 3 * 3 + (i + 1) % 3) for i in range(6))
    assert canonical_form(one_ring) != canonical_form(two_rings)


def test_canonical_form_of_commuted_parts():
    a, b = ("and", (*T, 0), (*T, 1)), ("and", (*T, 1), (*T, 0))
    said = (*T, 1)
    assert canonical_form((a, said)) != canonical_form((b, said))
    assert canonical_form((a, said), commute=True) == canonical_form((b, said), commute=True)
    a, b = ("->", (*T, 0), (*T, 1)), ("->", (*T, 1), (*T, 0))   # not the same in any sense
    assert canonical_form((a, said), commute=True) != canonical_form((b, said), commute=True)


def test_canonical_form_is_fast_on_symmetric_puzzles():
    """Twelve people without a difference: trying every order of ties would take 12! steps."""
    rng, start = random.Random(0), time.perf_counter()
    for said in (tuple((*T, 0) for _ in range(12)), tuple((*T, i ^ 1) for i in range(12)),
                 tuple((*T, (i + 1) % 12) for i in range(12)), tuple((*T, i) for i in range(12)),
                 tuple(("and", (*T, i // 3 * 3 + (i + 1) % 3), (*T, i // 3 * 3 + (i + 2) % 3))
                       for i in range(12))):
        assert canonical_form(said) == canonical_form(shuffled(said, rng))
    assert time.perf_counter() - start < 3


# ---- chains of thought ---------------------------------------------------------------------------
# 0 says: 1 is not a knave. 1 says: 0 is a knave and 1 is a knight.
LILY = read_statements(OFFICIAL[2]["statements"])
LILY_SEARCH = [("assume", 0, True), ("cannot", 1, True, 1, True), ("cannot", 1, False, 0, True),
               ("back", (1,), 0), ("assume", 0, False), ("cannot", 1, True, 0, False),
               ("assume", 1, False), ("answer", (False, False))]


def test_chains_by_hand():
    assert chain_of_thought(LILY, "search") == LILY_SEARCH
    assert chain_of_thought(LILY, "table") == [
        ("row", (True, True), 1), ("row", (True, False), 0), ("row", (False, True), 0),
        ("row", (False, False), None), ("answer", (False, False))]
    assert chain_of_thought(LILY, "guess") == [("answer", (False, False))]
    with pytest.raises(ValueError, match="no solution"):
        chain_of_thought(((*F, 0), (*T, 0)))


def test_words_of_a_chain():
    names = ["Logan", "Lily"]
    text = [step_text(step, LILY, names, KNIGHTS) for step in LILY_SEARCH]
    assert text[:4] == [
        "Assume Logan is a knight. Then it is true that Lily is not a knave; that is possible.",
        "Lily cannot be a knight, because if Lily is a knight, it is true that Logan is a knave and"
        " Lily is a knight.",
        "Lily cannot be a knave, because if Logan is a knight, it is true that Lily is not a knave.",
        "No role is left for Lily, so reconsider Logan."]
    assert [step_text(step, LILY, "AB", KNIGHTS, compact=True) for step in LILY_SEARCH] == [
        "A=T ok", "B=T no: B=T", "B=F no: A=T", "B out, back to A", "A=F ok", "B=T no: A=F", "B=F ok",
        r"\boxed{A is a knave, B is a knave}"]
    assert step_text(("row", (True, False), 1), LILY, "AB", KNIGHTS, True) == "A=T B=F: A ok, B no"
    worked = ("worked", (False, False), None)
    assert step_text(worked, LILY, "AB", KNIGHTS, True) == "A=F B=F: A F ok, B T and F ok"
    assert step_text(worked, LILY, names, KNIGHTS) == (
        "If Logan is a knave, Lily is a knave: Logan (false) fits, Lily (true and false) fits.")


def test_search_goes_next_to_people_just_mentioned():
    said = ((*T, 2), (*T, 0), (*T, 1))          # 0 speaks of 2, 2 of 1
    assert [step[1] for step in chain_of_thought(said)[:-1]] == [0, 2, 1]
    said = (("and", (*T, 1), (*T, 2)), (*T, 3), (*T, 0), (*T, 0))       # 1's claim is the latest
    assert [step[1] for step in chain_of_thought(said)[:-1]] == [0, 1, 3, 2]


@pytest.mark.parametrize("people", (2, 3, 5, 7))
def test_every_reason_of_a_search_is_true(people):
    """Against the meaning of the statements, not against the checker's own masks."""
    for said in puzzles(people, 25, seed=1):
        trail = {}
        for kind, person, *rest in chain_of_thought(said)[:-1]:
            if kind == "back":
                while person and trail.popitem()[0] != rest[0]:
                    pass
                continue
            now = {**trail, person: rest[0]}
            possible = {who: any(is_true(said[who], roles) == roles[who] for roles in every_role(people)
                                 if all(roles[p] == role for p, role in now.items())) for who in now}
            if kind == "assume":
                assert all(possible.values())
                trail = now
            else:
                assert not possible[rest[1]] and now[rest[1]] == rest[2]
        assert solve(said) == [tuple(trail[i] for i in range(people))]


STYLES_AND_PEOPLE = list(itertools.product(("search", "table", "worked", "guess"), (2, 3, 4, 6)))


@pytest.mark.parametrize("style,people", STYLES_AND_PEOPLE)
def test_chains_pass_as_steps_and_as_text(style, people):
    for said in puzzles(people, 20):
        steps = chain_of_thought(said, style)
        assert check_chain_of_thought(said, steps) is None
        for names, words, compact in (("ABCDEF"[:people], KNIGHTS, True),
                                      (kk_gen.NAMES[:people], role_words("angel/devil", True), False)):
            text = "\n".join(step_text(step, said, names, words, compact) for step in steps)
            assert read_steps(text, said, names, words, compact) == steps


def broken(steps, people):
    """(index, what, chain) for chains with one fault."""
    end = len(steps) - 1
    for i, step in enumerate(steps):
        kind, *rest = step
        if len(steps) > 2 or kind == "answer":      # a table of one row without it: a right guess
            yield i, "deleted", steps[:i] + steps[i + 1:]

        yield i, "repeated", [*steps[:i], step, *steps[i:]]

        def instead(*new):
            return [*steps[:i], tuple(new), *steps[i + 1:]]
        if i < end and {step[0], steps[i + 1][0]} != {"assume"}:
            yield i, "swapped", [*steps[:i], steps[i + 1], step, *steps[i + 2:]]
        if kind == "assume":
            person, role = rest
            yield i, "role", instead(kind, person, not role)
            for who in range(people):
                yield i, "verdict", instead("cannot", person, role, who, True)
                yield i, "verdict", instead("cannot", person, role, who, False)
        if kind == "cannot":
            person, role, who, who_role = rest
            yield i, "role", instead(kind, person, not role, who, who_role)
            yield i, "verdict", instead("assume", person, role)
            yield i, "reason's role", instead(kind, person, role, who, not who_role)
            for other in set(range(people)) - {person}:
                yield i, "person", instead(kind, other, role, who, who_role)
        if kind == "back":
            failed, person = rest
            yield i, "too few", instead(kind, failed[1:], person)
            for other in set(range(people)) - {person}:
                yield i, "too many", instead(kind, (*failed, other), person)
                yield i, "target", instead(kind, failed, other)
        if kind in ("row", "worked"):
            roles, misfit = rest
            for other in {None, *range(people)} - {misfit}:
                yield i, "verdict", instead(kind, roles, other)
            for p in range(people):
                yield i, "role", instead(kind, (*roles[:p], not roles[p], *roles[p + 1:]), misfit)
            if misfit is not None:
                yield i, "rash", [*steps[:i + 1], ("answer", roles)]
        if kind == "answer":
            for other in set(every_role(people)) - {rest[0]}:
                yield i, "answer", instead(kind, other)
            yield i, "more", [*steps, steps[0]]


@pytest.mark.parametrize("style,people", STYLES_AND_PEOPLE)
def test_every_broken_chain_is_caught(style, people):
    faults = collections.Counter()
    for said in puzzles(people, 12, seed=2):
        steps = chain_of_thought(said, style)
        for index, what, chain in broken(steps, people):
            found = check_chain_of_thought(said, chain)
            assert found is not None and found[0] >= index, (said, what, index, chain)
            if what in ("role", "verdict", "reason's role", "target", "too few", "too many", "answer"):
                assert found[0] == index            # and named at the very step
            elif what == "repeated":
                assert found[0] == index + 1
            faults[what] += 1
    assert faults["deleted"] and faults["answer"] and (style == "guess" or faults["verdict"])


@pytest.mark.parametrize("people", (3, 5))
def test_a_false_reason_is_caught_and_another_true_one_is_not(people):
    false = true = 0
    for said in puzzles(people, 40, seed=3):
        steps, trail = chain_of_thought(said), {}
        for i, (kind, person, *rest) in enumerate(steps[:-1]):
            if kind == "back":
                while trail.popitem()[0] != rest[0]:
                    pass
            elif kind == "assume":
                trail[person] = rest[0]
            else:
                now = {**trail, person: rest[0]}
                for who, role in now.items():
                    possible = any(is_true(said[who], roles) == role for roles in every_role(people)
                                   if all(roles[p] == r for p, r in now.items()))
                    chain = [*steps[:i], (kind, person, rest[0], who, role), *steps[i + 1:]]
                    assert (check_chain_of_thought(said, chain) is None) == (not possible)
                    false, true = false + possible, true + (not possible)
    assert false > 20 and true > 20


@pytest.mark.parametrize("compact", (False, True))
@pytest.mark.parametrize("style", ("search", "table", "worked"))
def test_a_changed_word_is_caught(style, compact):
    swaps = ([("=T", "=F"), ("=F", "=T"), (" ok", " no"), (" no", " ok"), ("A", "B"), ("B", "C")]
             if compact else
             [("knight", "knave"), ("true", "false"), ("false", "true"), ("fits", "does not"),
              ("Ada", "Boris"), (" and ", " or "), ("cannot", "can"), (" not ", " ")])
    names, tried = ["A", "B", "C"] if compact else kk_gen.NAMES[:3], collections.Counter()
    for said in puzzles(3, 15, seed=4):
        lines = [step_text(step, said, names, KNIGHTS, compact) for step in chain_of_thought(said, style)]
        for i, line in enumerate(lines):
            for old, new in swaps:
                changed = line.replace(old, new, 1)
                text = "\n".join([*lines[:i], changed, *lines[i + 1:]])
                if changed != line:
                    steps = read_steps(text, said, names, KNIGHTS, compact)
                    found = check_chain_of_thought(said, steps)
                    if found is None:           # then it is another true reason, told to the letter
                        true = chain_of_thought(said, style)[i]
                        assert steps[i][:3] == true[:3] and true[0] == "cannot"
                    else:
                        tried[old] += 1
    assert len(tried) >= 3


def test_strange_responses_do_not_pass():
    names, solution = ["A", "B"], r"\boxed{A is a knave, B is a knave}"
    for text in ("", "I think so.", r"\boxed{A is a knave}", r"\boxed{}", solution + "\n" + solution,
                 solution.replace("B", "A"), "A=T ok\n" + solution, "=" * 100000, "A B " * 20000):
        steps = read_steps(text, LILY, names, KNIGHTS, compact=True)
        assert check_chain_of_thought(LILY, steps) is not None
    assert check_chain_of_thought(LILY, read_steps(f"\n{solution}\n", LILY, names, KNIGHTS, True)) is None


def test_a_table_does_not_start_again():
    said = ((*F, 1), (*T, 1))                   # all knights: the first claim is false
    rows = [kk_gen.table_row("row", row, kk_gen.fitting_rows(said)) for row in range(4)]
    assert rows[0] == ("row", (True, True), 0)
    assert check_chain_of_thought(said, [*rows, rows[0]])[0] == 4


# ---- words and files -----------------------------------------------------------------------------
def test_claims_in_words():
    say = [kk_gen.claim_text(said, ["Al", "Bo"], KNIGHTS, compact) for said, compact in (
        ((*T, 0), False), (("not", (*F, 1)), False), (("and", (*T, 0), (*F, 1)), False),
        (("->", (*F, 0), (*F, 1)), False), (("<=>", (*T, 0), (*T, 1)), False),
        (("<=>", (*T, 0), (*T, 1)), True))]
    assert say == ["Al is a knight", "Bo is not a knave", "Al is a knight and Bo is a knave",
                   "if Al is a knave then Bo is a knave", "Al is a knight if and only if Bo is a knight",
                   "Al is a knight iff Bo is a knight"]


def test_role_words_and_flip():
    assert role_words("angel/devil") == {"knight": "angel", "a_knight": "an angel", "Knight": "Angel",
                                         "knave": "devil", "a_knave": "a devil", "Knave": "Devil"}
    assert role_words("angel/devil", flip=True)["a_knight"] == "a devil"


@pytest.mark.parametrize("text", (
    "", "()", "(('lying', 1),)", "[('lying', 1), ('lying', 0)]", "(('lying', 1), ('lying', 2))",
    "(('lying', 1), ('lying', -1))", "(('lying', 1), ('xor', ('lying', 0), ('lying', 1)))",
    "(('lying', 1), ('and', ('lying', 0)))", "(('lying', 1), ('lying', True))", "(('lying', 1), ())",
    "(('lying', 1), ('not', ('not', ('lying', 0))))", "(" * 5000, "__import__('os')", "(([],), ([],))",
    "(('lying', 1), ('lying', 0))"))
def test_bad_statements_are_refused(text):
    with pytest.raises(ValueError) as error:
        read_statements(text)
    assert ("solutions" in str(error.value)) == (text == "(('lying', 1), ('lying', 0))")


# ---- the command ---------------------------------------------------------------------------------
def command(*arguments, hash_seed="0"):
    return subprocess.run([sys.executable, os.path.join(ROOT, "kk_gen.py"), *map(str, arguments)],
                          capture_output=True, text=True,
                          env={**os.environ, "PYTHONHASHSEED": hash_seed})


def made(tmp_path, *arguments):
    out = tmp_path / "out.jsonl"
    done = command(*arguments, "--out", out)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in out.read_text().splitlines()]


def forms(lines, commute=False):
    return [canonical_form(read_statements(line["statements"]), commute) for line in lines]


def test_same_seed_same_bytes(tmp_path):
    written = []
    for hash_seed in ("0", "1234"):
        done = command("--people", "2,4-5", "--num", 30, "--cot", "search", "--roles", "random",
                       "--out", tmp_path / hash_seed, hash_seed=hash_seed)
        assert done.returncode == 0 and "90 puzzles" in done.stdout
        written.append((tmp_path / hash_seed).read_bytes())
    assert written[0] == written[1]
    zero, one = (made(tmp_path, "--people", 4, "--num", 30, "--seed", seed) for seed in (0, 1))
    assert [line["statements"] for line in zero] != [line["statements"] for line in one]


def test_lines_are_problems_and_sft_examples(tmp_path):
    lines = made(tmp_path, "--people", "2-4", "--num", 20, "--cot", "search")
    assert [line["level"] for line in lines] == [2] * 20 + [3] * 20 + [4] * 20
    assert len({line["id"] for line in lines}) == 60
    for line in lines:
        assert line["task"] == "kk" and [line["index"]] == [int(line["id"].split("-")[-1])]
        assert solve(read_statements(line["statements"])) == [tuple(line["solution"])]
        assert line["response"].startswith("\nLet me") and "<|" not in line["response"]
        assert line["response"].splitlines()[-1] == f"\\boxed{{{line['gold']}}}"
        assert line["response"].split("\n")[1:-1] == [line["cot_head"], *line["cot_repeat_steps"],
                                                      line["cot_foot"]]
        # an official file with these fields would give the same problem
        official = {key: value for key, value in line.items() if key not in ("task", "prompt", "gold")}
        problem = cli.as_problem(official, "chat", "x")
        assert (problem["prompt"], problem["gold"]) == (line["prompt"], line["gold"])
        steps = read_steps(line["response"], read_statements(line["statements"]), line["names"],
                           line["knight_knave"])
        assert check_chain_of_thought(read_statements(line["statements"]), steps) is None
    assert len(set(forms(lines))) == 60
    assert [p["gold"] for p in cli.read_problems(str(tmp_path / "out.jsonl"))] == [
        line["gold"] for line in lines]


def test_compact_and_base_templates(tmp_path):
    line, = made(tmp_path, "--people", 2, "--num", 1, "--template", "compact", "--cot", "table")
    a, b = line["prompt"].splitlines()[:2]
    assert line["names"] == ["A", "B"] and a.startswith("A: ") and b.startswith("B: ")
    assert line["prompt"].endswith("\n?\n") and line["response"].startswith("A=T B=T: A ")
    base, = made(tmp_path, "--people", 2, "--num", 1, "--template", "base")
    assert base["prompt"].startswith("Question:\n") and base["prompt"].endswith("step by step.")
    assert base["statements"] == line["statements"] and "response" not in base


def test_flipped_roles(tmp_path):
    line, = made(tmp_path, "--people", 3, "--num", 1, "--roles", "saint/sinner", "--flip",
                 "--names", "fixed")
    roles = ["a sinner" if true else "a saint" for true in line["solution"]]
    assert line["gold"] == ", ".join(f"{n} is {r}" for n, r in zip(("Ada", "Boris", "Clara"), roles))
    assert "a sinner always tells the truth" in line["quiz"]
    assert r"\boxed{XX is a saint, YY is a sinner, ...}" in line["prompt"]


def test_exclude_keeps_renamed_and_commuted_puzzles_out(tmp_path):
    first = made(tmp_path, "--people", 2, "--num", 60)
    (tmp_path / "first.jsonl").write_text("".join(json.dumps(line) + "\n" for line in first))
    with open(tmp_path / "official.jsonl", "w") as file:
        file.writelines(json.dumps(line) + "\n" for line in OFFICIAL)
    rest = made(tmp_path, "--people", 2, "--num", 40, "--seed", 1, "--exclude",
                tmp_path / "first.jsonl", tmp_path / "official.jsonl")
    for commute in (False, True):
        assert not set(forms(rest, commute)) & set(forms([*first, *OFFICIAL], commute))
    assert len(set(forms(rest))) == 40


def test_variants_of_an_official_file(tmp_path):
    with open(tmp_path / "official.jsonl", "w") as file:
        file.writelines(json.dumps(line) + "\n" for line in OFFICIAL)
    source = "--source", tmp_path / "official.jsonl", "--people", "2-5"
    reordered = made(tmp_path, *source, "--reorder")
    assert sorted(forms(reordered)) == sorted(forms(OFFICIAL))
    for old, new in zip(OFFICIAL, reordered):
        assert dict(zip(old["names"], old["solution"])) == dict(zip(new["names"], new["solution"]))
    assert any(old["names"] != new["names"] for old, new in zip(OFFICIAL, reordered))
    for what in ("leaf", "statement"):
        lines = made(tmp_path, *source, "--perturb", what)
        assert lines and not set(forms(lines)) & set(forms(OFFICIAL))
        by_names = {tuple(line["names"]): line for line in OFFICIAL}
        for line in lines:
            old = by_names[tuple(line["names"])]
            assert line["solution"] != old["solution"]
            assert sum(a != b for a, b in zip(read_statements(line["statements"]),
                                              read_statements(old["statements"]))) == 1


def test_a_perturbed_puzzle_is_no_other_puzzle_of_the_source(tmp_path):
    source = made(tmp_path, "--people", 2, "--num", 100)
    (tmp_path / "out.jsonl").rename(tmp_path / "source.jsonl")
    lines = made(tmp_path, "--people", 2, "--source", tmp_path / "source.jsonl", "--perturb", "leaf")
    assert len(lines) > 20 and not set(forms(lines)) & set(forms(source))


def test_all_205_puzzles_of_two_people_and_not_one_more(tmp_path):
    assert len(set(forms(made(tmp_path, "--people", 2, "--num", 205)))) == 205
    done = command("--people", 2, "--num", 206, "--out", tmp_path / "none")
    assert (done.returncode, done.stdout) == (2, "")
    assert "found only 205 new puzzles of 2 people" in done.stderr
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("arguments,said", [
    (["--people", "1"], "2 to 12"), (["--people", "40"], "2 to 12"), (["--people", "7-3"], "2 to 12"),
    (["--people", "two"], "write it as"), (["--people", ""], "write it as"), ([], "--people"),
    (["--people", "3", "--num", "0"], "--num"), (["--people", "3", "--num", "many"], "--num"),
    (["--people", "3", "--colour", "red"], "--colour"), (["--people", "3", "--cot", "long"], "--cot long"),
    (["--people", "3", "--template", ""], "chat, base, compact"),
    (["--people", "3", "--roles", "knight"], "saint/sinner"),
    (["--people", "3", "--roles", "elf/elf"], "saint/sinner"),
    (["--people", "3", "--perturb", "leaf"], "--source"),
    (["--people", "3", "--exclude", "nowhere.jsonl"], "nowhere.jsonl"),
    (["--people", "3", "--source", os.devnull], "no puzzle of 3 people"),
])
def test_wrong_requests_end_in_one_line(tmp_path, arguments, said):
    done = command(*arguments, "--out", tmp_path / "out")
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert said in done.stderr and done.stderr.startswith("kk_gen.py: ")
    assert not os.listdir(tmp_path)


def test_neither_out_nor_show():
    assert "--out" in command("--people", "3").stderr


def test_malformed_file_is_named_with_its_line(tmp_path):
    bad = tmp_path / "bad.jsonl"
    for text in ({"names": ["A", "B"]}, {**OFFICIAL[0], "statements": "(1, 2)"},
                 {**OFFICIAL[0], "names": ["A", "A"]}, {**OFFICIAL[0], "names": "AB"}):
        bad.write_text(json.dumps(OFFICIAL[0]) + "\n" + json.dumps(text) + "\n")
        done = command("--people", 3, "--exclude", bad, "--show", 1)
        assert done.returncode == 2 and f"{bad}:2:" in done.stderr, done.stderr


def test_gives_up_after_draws_without_news(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(kk_gen, "GIVE_UP_AFTER", 50)
    monkeypatch.setattr(kk_gen, "sample_puzzle", lambda rng, people: LILY + ((*T, 2),))
    monkeypatch.setattr(sys, "argv", ["kk_gen.py", "--people", "3", "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as end:
        kk_gen.main()
    assert end.value.code == 2 and "found only 1 new puzzles of 3 people" in capsys.readouterr().err
    assert not os.listdir(tmp_path)


def test_show_prints_examples_without_a_file():
    done = command("--people", "3,5", "--num", 50, "--show", 2, "--cot", "guess")
    assert done.returncode == 0 and done.stdout.count("--- gold: ") == 2
    assert "meet 3 of them" in done.stdout and "meet 5 of them" in done.stdout


def test_interrupted_leaves_nothing_behind(monkeypatch, capsys, tmp_path):
    drawn = iter(puzzles(5, 20))

    def draw(rng, people):
        for said in drawn:
            return said
        raise KeyboardInterrupt
    monkeypatch.setattr(kk_gen, "sample_puzzle", draw)
    monkeypatch.setattr(sys, "argv", ["kk_gen.py", "--people", "5", "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as end:
        kk_gen.main()
    assert end.value.code == 2
    assert capsys.readouterr().err.endswith("kk_gen.py: interrupted: nothing was written\n")
    assert not os.listdir(tmp_path)


# ---- which style is it -----------------------------------------------------------------------
@pytest.mark.parametrize("compact", (True, False))
@pytest.mark.parametrize("style", kk_gen.STYLES)
def test_a_style_is_told_from_what_it_writes(style, compact):
    rng = random.Random(5)
    for people in (2, 3, 4, 6):
        for _ in range(30):
            statements = kk_gen.sample_puzzle(rng, people)
            names, words = kk_gen.NAMES[:people], kk_gen.role_words(kk_gen.ROLES[people % 3])
            lines = [kk_gen.step_text(step, statements, names, words, compact)
                     for step in kk_gen.chain_of_thought(statements, style)]
            head = "" if compact else kk_gen.HEADS[style].format(**words)
            text = "\n".join([head, *lines[:-1], "" if compact else kk_gen.FOOT, lines[-1]])
            assert kk_gen.style_of(text) == style
            if style != "guess" and len(lines) > 3:         # cut off within a line
                assert kk_gen.style_of("\n".join(lines[:2]) + "\n" + lines[2][:4]) == style


@pytest.mark.parametrize("text, style", (
    ("\\boxed{A is a knight}", "guess"),
    ("A=T B=T: A ok, B no\n\\boxed{A is a knave, B is a knave}", "table"),      # wrong is a style too
    ("A=T B=T: A T or F ok, B F no\n\\boxed{}", "worked"),
    ("A=T B=T: A T or F ok, B no\n\\boxed{}", "worked"),
    ("A=T B=T: A ok\nA=T B=F: A F no\n\\boxed{}", "mixed"),
    ("A=T ok\nA=T B=T: A ok, B no\n\\boxed{}", "mixed"),
    ("A=T B=T: A ok, B\n\\boxed{}", "other"), ("Well...\n\\boxed{A is a knight}", "other"),
    ("", "other"), ("A=T B=T", "other"), ("A=T B=T: A ok\nA=T B=", "table"),
    ("A=X ok\n\\boxed{}", "other"), ("\\boxed{A}\nA=T ok\n\\boxed{A is a knave}", "other")))
def test_the_style_of_unusual_answers(text, style):
    assert kk_gen.style_of(text) == style
