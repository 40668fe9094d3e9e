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

import kk_gen
from engine import problems
from kk_gen import (KNIGHT_KNAVE, canonical_form, chain_of_thought, check_chain_of_thought, claims,
                    read_puzzles, read_statements, read_steps, role_words, sample_puzzle, solve,
                    step_text, style_of)

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
# 0 says: 1 is not a knave. 1 says: 0 is a knave and 1 is a knight.
LILY = read_statements(OFFICIAL[2]["statements"])
LILY_SEARCH = [("assume", 0, True), ("cannot", 1, True, 1, True), ("cannot", 1, False, 0, True),
               ("back", (1,), 0), ("assume", 0, False), ("cannot", 1, True, 0, False),
               ("assume", 1, False), ("answer", (False, False))]


# ---- helpers -----------------------------------------------------------------------------------
def puzzles(people, number, seed=0):
    rng = random.Random(seed)
    return [sample_puzzle(rng, people) for _ in range(number)]


def any_claims(rng, people, kinds=6):
    """A claim for each person; whether there is a solution is left to chance."""
    return tuple(rng.choice(rng.choice(claims(people, speaker)[:kinds]))[0]
                 for speaker in range(people))


def every_role(people):
    return itertools.product((True, False), repeat=people)


def is_true(statement, roles):
    """The meaning of a statement, written without rows or masks."""
    op, *parts = statement
    if op in ("telling-truth", "lying"):
        return roles[parts[0]] == (op == "telling-truth")
    values = [is_true(part, roles) for part in parts]
    return {"not": lambda a: not a, "and": lambda *all_of: all(all_of),
            "or": lambda *any_of: any(any_of), "->": lambda a, b: b or not a,
            "<=>": lambda a, b: a == b}[op](*values)


def can_fit(said, who, trail):
    """Whether the claim of `who` fits in some assignment that agrees with `trail`."""
    return any(is_true(said[who], roles) == roles[who] for roles in every_role(len(said))
               if all(roles[person] == role for person, role in trail.items()))


def random_search(said, rng):
    """A right search that takes people in any order and gives any true reason."""
    steps, trail, person, role = [], {}, None, True
    while len(trail) < len(said):
        if person is None:
            person, role = rng.choice([p for p in range(len(said)) if p not in trail]), True
        now = {**trail, person: role}
        if against := [who for who in now if not can_fit(said, who, now)]:
            who = rng.choice(against)
            steps.append(("cannot", person, role, who, now[who]))
            failed = []
            while not role:
                failed.append(person)
                person, role = trail.popitem()
            steps += [("back", tuple(failed), person)] if failed else []
            role = False
        else:
            steps.append(("assume", person, role))
            trail, person = now, None
    return [*steps, ("answer", tuple(trail[person] for person in range(len(said))))]


def renamed(statement, new_name):
    op, *parts = statement
    if op in kk_gen.LEAVES:
        return op, new_name[parts[0]]
    return op, *(renamed(part, new_name) for part in parts)


def shuffled(said, rng):
    """The same puzzle with the people in another order."""
    order = rng.sample(range(len(said)), len(said))
    return tuple(renamed(said[i], [order.index(p) for p in range(len(said))]) for i in order)


def by_all_permutations(said, commute):
    """A canonical form that takes no short cut."""
    def text(statement):
        op, *parts = statement
        if op in kk_gen.LEAVES:
            return repr(statement)
        parts = list(map(text, parts))
        return f"{op}{sorted(parts) if commute and op in ('and', 'or', '<=>') else parts}"
    people = len(said)
    return min([text(renamed(said[order.index(i)], order)) for i in range(people)]
               for order in map(list, itertools.permutations(range(people))))


def command(*arguments, hash_seed="0"):
    return subprocess.run([sys.executable, kk_gen.__file__, *map(str, arguments)],
                          capture_output=True, text=True,
                          env={**os.environ, "PYTHONHASHSEED": hash_seed})


def made(tmp_path, *arguments):
    """The lines that a command writes."""
    out = tmp_path / "out.jsonl"
    done = command(*arguments, "--out", out)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in out.read_text().splitlines()]


def written(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def forms(lines, commute=False):
    return [canonical_form(read_statements(line["statements"]), commute) for line in lines]


# ---- solver and distribution -------------------------------------------------------------------
def test_rows_by_hand():
    # rows of the table from bit 0 on: TT, TF, FT, FF
    assert kk_gen.knight_rows(2) == [0b0011, 0b0101]
    assert kk_gen.knight_rows(3) == [0b00001111, 0b00110011, 0b01010101]
    assert kk_gen.true_rows(("->", (*T, 0), (*T, 1)), 2) == 0b1101
    assert kk_gen.true_rows(("not", ("or", (*T, 0), (*F, 1))), 2) == 0b0100
    assert kk_gen.true_rows(("or", (*F, 0), (*T, 1), (*T, 2)), 3) == 0b11110111
    assert kk_gen.fitting_rows((*F, 1), 0, 2) == 0b0110        # "1 is a knave" by 0: they differ
    with pytest.raises(ValueError, match="xor"):
        kk_gen.true_rows(("xor", (*T, 0), (*T, 1)), 2)


def test_solve_by_hand():
    assert solve(((*F, 1), (*F, 0))) == [(True, False), (False, True)]
    assert solve(((*F, 0), (*T, 0))) == []
    assert solve((("and", (*F, 0), (*F, 1)), (*T, 1))) == [(False, True)]
    assert solve((("and", (*F, 0), (*F, 1), (*T, 2)), (*T, 2), (*T, 1))) == [
        (False, True, True), (False, False, False)]


@pytest.mark.parametrize("people", range(2, 8))
def test_solve_agrees_with_trying_every_assignment(people):
    rng = random.Random(people)
    for _ in range(60):
        said = any_claims(rng, people)
        assert solve(said) == [roles for roles in every_role(people) if
                               all(is_true(s, roles) == role for s, role in zip(said, roles))]


def test_official_puzzles_are_read_and_solved():
    for line in OFFICIAL:
        assert solve(read_statements(line["statements"])) == [tuple(line["solution"])]


@pytest.mark.parametrize("said, roles, text, listed", [
    ((("or", (*T, 1), (*F, 0)), (*T, 0)), [True, True], "Ada is a knight, and Bo is a knight.",
     "(1) Ada is a knight\n(2) Bo is a knight"),
    (((*F, 1), ("or", (*F, 0), (*F, 1)), (*T, 0)), [False, True, False],
     "Ada is a knave, Bo is a knight, and Cy is a knave.",
     "(1) Ada is a knave\n(2) Bo is a knight\n(3) Cy is a knave")])
def test_a_solution_is_told_as_the_public_files_tell_it(said, roles, text, listed):
    """With a comma before the "and", of two people too."""
    names = ["Ada", "Bo", "Cy"][:len(roles)]
    assert solve(said) == [tuple(roles)]
    row = kk_gen.puzzle_line(kk_gen.Settings(people=str(len(names)), out=""), random.Random(0), "x",
                             0, said, {"names": names, "knight_knave": KNIGHT_KNAVE})
    assert (row["solution_text"], row["solution_text_format"]) == (text, listed)


@pytest.mark.parametrize("statement", [
    ("and",), ("or",), ("and", (*T, 0)), ("or", (*F, 1)), ("not",), ("not", (*T, 0), (*T, 1)),
    ("->", (*T, 0)), ("->", (*T, 0), (*T, 1), (*F, 1)), ("<=>", (*T, 0), (*T, 1), (*F, 1)),
    ("lying", 0, 1), ("lying",), ("xor", (*T, 0), (*T, 1))])
def test_a_statement_with_a_wrong_number_of_parts_is_refused(statement):
    """No part may be left out of the solution or of the text."""
    said = (statement, (*T, 0), (*F, 0))
    for use in (lambda: solve(said), lambda: chain_of_thought(said),
                lambda: check_chain_of_thought(said, LILY_SEARCH),
                lambda: kk_gen.claim_text(statement, "ABC", KNIGHT_KNAVE)):
        with pytest.raises(ValueError, match="not a statement, or not with this number of parts"):
            use()
    with pytest.raises(ValueError, match="is not a string of 2 to 12 statements"):
        read_statements(repr(said))


def test_what_a_person_can_say():
    leaves, nots, *pairs = [[said for said, _ in kind] for kind in claims(2, 0)]
    assert leaves == [(*T, 0), (*T, 1), (*F, 1)]                # never "I am a knave"
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


# ---- the same puzzle -----------------------------------------------------------------------------
@pytest.mark.parametrize("commute", (False, True))
@pytest.mark.parametrize("people", (2, 3, 4, 5))
def test_canonical_form_agrees_with_all_permutations(people, commute):
    """A bijection between the two: neither joins two puzzles nor parts one. Half of the statements
    are leaves about few people, so that symmetric ties, where refinement fails, are common."""
    rng, pairs = random.Random(people), set()
    for _ in range(300 if people < 5 else 60):
        said = any_claims(rng, people, kinds=rng.choice((1, 3)))
        for same in (said, shuffled(said, rng)):
            pairs.add((canonical_form(same, commute), tuple(by_all_permutations(same, commute))))
    assert len({a for a, _ in pairs}) == len({b for _, b in pairs}) == len(pairs) > 4


def test_canonical_form_where_colours_cannot_tell_people_apart():
    one_ring = tuple((*T, (i + 1) % 6) for i in range(6))
    two_rings = tuple((*T, i // 3 * 3 + (i + 1) % 3) for i in range(6))
    assert canonical_form(one_ring) != canonical_form(two_rings)


def test_canonical_form_of_commuted_parts():
    a, b = ("and", (*T, 0), (*T, 1), (*F, 0)), ("and", (*T, 1), (*F, 0), (*T, 0))
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
def test_chains_by_hand():
    assert chain_of_thought(LILY, "search") == LILY_SEARCH
    assert chain_of_thought(LILY, "table") == [
        ("table", (True, True), 1), ("table", (True, False), 0), ("table", (False, True), 0),
        ("table", (False, False), None), ("answer", (False, False))]
    assert chain_of_thought(LILY, "guess") == [("answer", (False, False))]
    with pytest.raises(ValueError, match="no solution"):
        chain_of_thought(((*F, 0), (*T, 0)))
    with pytest.raises(ValueError, match="style = row: one of search, table, worked, guess"):
        chain_of_thought(LILY, "row")


def test_words_of_a_chain():
    names = ["Logan", "Lily"]
    text = [step_text(step, LILY, names, KNIGHT_KNAVE) for step in LILY_SEARCH]
    assert text[:4] == [
        "Assume Logan is a knight: then it is true that Lily is not a knave; that is possible.",
        "Lily cannot be a knight, because if Lily is a knight, it is true that Logan is a knave and"
        " Lily is a knight.",
        "Lily cannot be a knave, because if Logan is a knight, it is true that Lily is not a"
        " knave.",
        "No role is left for Lily, so reconsider Logan."]
    assert [step_text(step, LILY, "AB", KNIGHT_KNAVE, compact=True) for step in LILY_SEARCH] == [
        "A=T ok", "B=T no: B=T", "B=F no: A=T", "B out, back to A", "A=F ok", "B=T no: A=F",
        "B=F ok", r"\boxed{A is a knave, B is a knave}"]
    row = ("table", (True, False), 1)
    assert step_text(row, LILY, "AB", KNIGHT_KNAVE, True) == "A=T B=F: A ok, B no"
    worked = ("worked", (False, False), None)
    assert step_text(worked, LILY, "AB", KNIGHT_KNAVE, True) == "A=F B=F: A F ok, B T and F ok"
    assert step_text(worked, LILY, names, KNIGHT_KNAVE) == (
        "If Logan is a knave, Lily is a knave: Logan (false) fits, Lily (true and false) fits.")


def test_search_goes_next_to_people_just_mentioned():
    said = ((*T, 2), (*T, 0), (*T, 1))          # 0 speaks of 2, 2 of 1
    assert [step[1] for step in chain_of_thought(said)[:-1]] == [0, 2, 1]
    said = (("and", (*T, 1), (*T, 2)), (*T, 3), (*T, 0), (*T, 0))       # 1's claim is the latest
    assert [step[1] for step in chain_of_thought(said)[:-1]] == [0, 1, 3, 2]


@pytest.mark.parametrize("people", (2, 3, 5, 7))
def test_every_reason_of_a_search_is_true_and_no_false_one_will_do(people):
    false = other = 0
    for said in puzzles(people, 25, seed=1):
        steps, trail = chain_of_thought(said), {}
        for i, (kind, person, *rest) in enumerate(steps[:-1]):
            if kind == "back":
                undone = [trail.popitem() for _ in person]      # the knaves, and then the knight
                assert undone == [*((who, False) for who in person[1:]), (rest[0], True)]
                continue
            role, *reason = rest
            now = {**trail, person: role}
            fitting = {who: can_fit(said, who, now) for who in now}
            if kind == "assume":
                assert all(fitting.values())
                trail = now
                continue
            assert not fitting[reason[0]] and now[reason[0]] == reason[1]
            for who, fits in fitting.items():
                chain = [*steps[:i], (kind, person, role, who, now[who]), *steps[i + 1:]]
                assert (check_chain_of_thought(said, chain) is None) == (not fits)
                false, other = false + fits, other + (who != reason[0] and not fits)
        assert solve(said) == [tuple(trail[i] for i in range(people))]
    assert people == 2 or (false > 10 and other > 5)


@pytest.mark.parametrize("people", (2, 3, 5))
def test_every_row_of_a_table_is_true(people):
    for said in puzzles(people, 25, seed=1):
        misfits = {roles: [who for who in range(people) if is_true(said[who], roles) != roles[who]]
                   for roles in every_role(people)}
        solution = next(roles for roles, who in misfits.items() if not who)
        rows = [("worked", roles, who[0] if who else None) for roles, who in misfits.items()]
        end = rows.index(("worked", solution, None)) + 1
        assert chain_of_thought(said, "worked") == [*rows[:end], ("answer", solution)]


STYLES_AND_PEOPLE = list(itertools.product(kk_gen.STYLES, (2, 3, 4, 6)))


@pytest.mark.parametrize("style,people", STYLES_AND_PEOPLE)
def test_chains_are_read_again_as_they_were_written(style, people):
    for said in puzzles(people, 20):
        steps = chain_of_thought(said, style)
        assert check_chain_of_thought(said, steps) is None
        for names, words, compact in (
                ("ABCDEF"[:people], KNIGHT_KNAVE, True),
                (kk_gen.NAMES[:people], role_words("devil", "angel"), False)):
            text = "\n".join(step_text(step, said, names, words, compact) for step in steps)
            assert read_steps(text, said, names, words, compact) == steps


@pytest.mark.parametrize("people", (2, 3, 5))
def test_a_search_in_any_order_with_any_true_reason_is_right(people):
    rng, others = random.Random(people), 0
    for said in puzzles(people, 40, seed=6):
        steps = random_search(said, rng)
        assert check_chain_of_thought(said, steps) is None
        others += steps != chain_of_thought(said)
    assert others > 10


def broken(steps, people):
    """(index, what, chain) for chains with one fault."""
    end = len(steps) - 1
    for i, step in enumerate(steps):
        kind, *rest = step

        def instead(*new):
            return [*steps[:i], tuple(new), *steps[i + 1:]]
        if len(steps) > 2 or kind == "answer":      # a table of one row without it: a right guess
            yield i, "deleted", steps[:i] + steps[i + 1:]
        yield i, "repeated", [*steps[:i], step, *steps[i:]]
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
        if kind in ("table", "worked"):
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
            yield i, "short", instead(kind, rest[0][:-1])
            yield i, "more", [*steps, steps[0]]


@pytest.mark.parametrize("style,people", STYLES_AND_PEOPLE)
def test_every_broken_chain_is_caught(style, people):
    faults = collections.Counter()
    at_the_step = ("role", "verdict", "reason's role", "target", "too few", "too many", "answer")
    for said in puzzles(people, 12, seed=2):
        for index, what, chain in broken(chain_of_thought(said, style), people):
            fault = check_chain_of_thought(said, chain)
            assert fault is not None and fault[0] >= index, (said, what, index, chain)
            if what in at_the_step:
                assert fault[0] == index
            elif what in ("repeated", "more"):
                assert fault[0] == index + 1
            faults[what] += 1
    assert faults["deleted"] and faults["answer"] and (style == "guess" or faults["verdict"])


@pytest.mark.parametrize("compact", (False, True))
@pytest.mark.parametrize("style", ("search", "table", "worked"))
def test_a_changed_word_is_caught(style, compact):
    swaps = ([("=T", "=F"), ("=F", "=T"), (" ok", " no"), (" no", " ok"), ("A", "B"), ("B", "C")]
             if compact else
             [("knight", "knave"), ("true", "false"), ("false", "true"), ("fits", "does not"),
              ("Ada", "Boris"), (" and ", " or "), ("cannot", "can"), (" not ", " ")])
    names, tried = ["A", "B", "C"] if compact else kk_gen.NAMES[:3], collections.Counter()
    for said in puzzles(3, 15, seed=4):
        steps = chain_of_thought(said, style)
        lines = [step_text(step, said, names, KNIGHT_KNAVE, compact) for step in steps]
        for (i, line), (old, new) in itertools.product(enumerate(lines), swaps):
            changed = line.replace(old, new, 1)
            if changed == line:
                continue
            text = "\n".join([*lines[:i], changed, *lines[i + 1:]])
            read = read_steps(text, said, names, KNIGHT_KNAVE, compact)
            if check_chain_of_thought(said, read):
                tried[old] += 1
            else:                       # then it is another true reason, told to the letter
                assert read[i][:3] == steps[i][:3] and steps[i][0] == "cannot"
    assert len(tried) >= 3


def test_strange_responses_do_not_pass():
    names, solution = ["A", "B"], r"\boxed{A is a knave, B is a knave}"
    for text in ("", "I think so.", r"\boxed{A is a knave}", r"\boxed{}", f"{solution}\n{solution}",
                 solution.replace("B", "A"), "A=T ok\n" + solution, "=" * 100000, "A B " * 20000):
        steps = read_steps(text, LILY, names, KNIGHT_KNAVE, compact=True)
        assert check_chain_of_thought(LILY, steps) is not None
    steps = read_steps(f"\n{solution}\n", LILY, names, KNIGHT_KNAVE, compact=True)
    assert check_chain_of_thought(LILY, steps) is None


# ---- which style is it -----------------------------------------------------------------------
@pytest.mark.parametrize("compact", (True, False))
@pytest.mark.parametrize("style", kk_gen.STYLES)
def test_a_style_is_told_from_what_it_writes(style, compact):
    pairs = (("knight", "knave"), ("saint", "sinner"), ("altruist", "egoist"))
    for people in (2, 3, 4, 6):
        names, words = kk_gen.NAMES[:people], role_words(*pairs[people % 3])
        head = "" if compact else kk_gen.HEADS.get(style, "").format(**words)
        for said in puzzles(people, 30, seed=5):
            lines = [step_text(step, said, names, words, compact)
                     for step in chain_of_thought(said, style)]
            text = "\n".join([head, *lines[:-1], "" if compact else kk_gen.FOOT, lines[-1]])
            assert style_of(text) == style
            if style != "guess" and len(lines) > 3:         # cut off within a line
                assert style_of("\n".join(lines[:2]) + "\n" + lines[2][:4]) == style


@pytest.mark.parametrize("text, style", (
    ("\\boxed{A is a knight}", "guess"),
    ("A=T B=T: A ok, B no\n\\boxed{A is a knave, B is a knave}", "table"),  # wrong is a style too
    ("A=T B=T: A T or F ok, B F no\n\\boxed{}", "worked"),
    ("A=T B=T: A T or F ok, B no\n\\boxed{}", "worked"),
    ("A=T B=T: A ok\nA=T B=F: A F no\n\\boxed{}", "mixed"),
    ("A=T ok\nA=T B=T: A ok, B no\n\\boxed{}", "mixed"),
    ("A=T B=T: A ok, B\n\\boxed{}", "other"), ("Well...\n\\boxed{A is a knight}", "other"),
    ("", "other"), ("A=T B=T", "other"), ("A=T B=T: A ok\nA=T B=", "table"),
    ("A cannot be a knave, because.\n\\boxed{}", "other"),
    ("x cannot be a, because b.\n\\boxed{}", "search"),
    ("x cannot be a cannot be b, because c, because d.\n\\boxed{}", "search"),
    (" cannot be a, because b.\n\\boxed{}", "other"),
    ("x cannot be , because b.\n\\boxed{}", "other"),
    ("A=X ok\n\\boxed{}", "other"), ("\\boxed{A}\nA=T ok\n\\boxed{A is a knave}", "other")))
def test_the_style_of_unusual_answers(text, style):
    assert style_of(text) == style


def test_the_style_of_megabytes():
    """In a process of its own: a quadratic search would take it longer than a minute."""
    program = """if True:
        from kk_gen import style_of
        for text in ("x cannot be y.", "x cannot be y ", "a, because b.", "A=T ", "If x is y ",
                     "A=T: a ok b ", "Assume x; that is possible.", "out, back to x ", "A=T ok "):
            print(style_of(text * (3_600_000 // len(text)) + ".\\n\\\\boxed{}"))
    """
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True,
                          timeout=60, cwd=os.path.dirname(kk_gen.__file__))
    assert done.stdout.split() == ["other"] * 9, done.stderr


def test_the_style_of_a_long_line_takes_no_time():
    start = time.perf_counter()
    for text in ("x cannot be y, because z ", "A=T ", "A=T: A ok, ", "If x: y ok, ",
                 "out, back to ", "No role is left for a, so reconsider b "):
        assert style_of(text * 4000 + "\n\\boxed{}") == "other"
    assert time.perf_counter() - start < 2


# ---- words and files -----------------------------------------------------------------------------
@pytest.mark.parametrize("said,text", (
    ((*T, 0), "Al is a knight"), (("not", (*F, 1)), "Bo is not a knave"),
    (("and", (*T, 0), (*F, 1)), "Al is a knight and Bo is a knave"),
    (("or", (*T, 0), (*F, 1), (*T, 1)), "Al is a knight or Bo is a knave or Bo is a knight"),
    (("->", (*F, 0), (*F, 1)), "if Al is a knave then Bo is a knave"),
    (("<=>", (*T, 0), (*T, 1)), "Al is a knight if and only if Bo is a knight")))
def test_claims_in_words(said, text):
    assert kk_gen.claim_text(said, ["Al", "Bo"], KNIGHT_KNAVE) == text
    short = text.replace("if and only if", "iff")
    assert kk_gen.claim_text(said, ["Al", "Bo"], KNIGHT_KNAVE, compact=True) == short


def test_role_words():
    assert role_words("angel", "devil") == {
        "knight": "angel", "a_knight": "an angel", "Knight": "Angel",
        "knave": "devil", "a_knave": "a devil", "Knave": "Devil"}


@pytest.mark.parametrize("text", (
    "", "()", None, "(" * 5000, "(('lying', 1),)", "[('lying', 1), ('lying', 0)]",
    "(('lying', 1), ('lying', 2))", "(('lying', 1), ('lying', -1))", "(('lying', 1), ())",
    "(('lying', 1), ('xor', ('lying', 0), ('lying', 1)))", "(('lying', 1), ('lying', True))",
    "(('lying', 1), ('and', ('lying', 0)))", "__import__('os')", "(([],), ([],))",
    "(('lying', 1), ('-> ', ('lying', 0), ('lying', 1)))", "(('lying', 1), ('lying', 00))",
    "(('lying', 1), ('->', ('lying', 0), ('lying', 1), ('lying', 1)))",
    "(('lying', 1), ('not', ('not', ('lying', 0))))",
    "(('lying', 1), ('lying', 0))"))
def test_bad_statements_are_refused(text):
    with pytest.raises(ValueError) as error:
        read_statements(text)
    assert ("solutions" in str(error.value)) == (text == "(('lying', 1), ('lying', 0))")


@pytest.mark.parametrize("op, truth", [("and", all), ("or", any)])
def test_no_part_of_a_long_statement_is_left_out(op, truth):
    """Each part decides on its own: the truth, the text, the canonical form and the chains."""
    parts = [(*T, 0), (*F, 1), (*T, 2), (*F, 3), (*T, 4)]
    for count in (2, 3, 4, 5):
        statement = (op, *parts[:count])
        rows = kk_gen.true_rows(statement, 5)
        for row, roles in enumerate(kk_gen.truth_table(5)):
            assert rows >> row & 1 == truth(roles[who] == (role == "telling-truth")
                                            for role, who in parts[:count])
        words = [kk_gen.claim_text(part, "ABCDE", KNIGHT_KNAVE) for part in parts[:count]]
        text = f" {op} ".join(words)
        assert kk_gen.claim_text(statement, "ABCDE", KNIGHT_KNAVE) == text
        said = (statement, (*T, 1), (*T, 2), (*T, 3), (*F, 4))
        assert f"A: {text}\n" in kk_gen.compact_prompt(said, "ABCDE", KNIGHT_KNAVE)
        for place in range(count):                          # without one part: another puzzle
            fewer = (op, *parts[:place], *parts[place + 1:count])
            assert count == 2 or canonical_form((fewer, *said[1:])) != canonical_form(said)


def test_statements_with_more_than_two_parts():
    said = (("and", (*F, 0), (*F, 1), (*T, 2)), ("or", (*T, 0), (*F, 0), (*T, 2)), (*F, 1))
    assert read_statements(repr(said)) == said
    steps = chain_of_thought(said, "worked")
    text = "\n".join(step_text(step, said, "ABC", KNIGHT_KNAVE, True) for step in steps)
    assert text.startswith("A=T B=T C=T: A F and F and T no\n")
    assert read_steps(text, said, "ABC", KNIGHT_KNAVE, compact=True) == steps


@pytest.mark.parametrize("change", (
    {"statements": "(1, 2)"}, {"names": ["A", "A"]}, {"names": "AB"}, {"names": ["A", 2]},
    {"names": ["A", "B", "C"]}, {"knight_knave": ["saint", "sinner"]},
    {"knight_knave": {"knight": "saint"}}, {"knight_knave": {"knight": "x", "knave": "x"}}))
def test_a_malformed_line_is_named(tmp_path, change):
    path = written(tmp_path / "bad.jsonl", [OFFICIAL[0], {**OFFICIAL[0], **change}])
    with pytest.raises(ValueError, match=f"^{path}:2: .*{next(iter(change))}"):
        read_puzzles(str(path))


# ---- the command ---------------------------------------------------------------------------------
def test_same_seed_same_bytes(tmp_path):
    for hash_seed in ("0", "1234"):
        done = command("--people", "2,4-5", "--num", 30, "--cot", "search",
                       "--out", tmp_path / hash_seed, hash_seed=hash_seed)
        assert done.returncode == 0 and "90 puzzles" in done.stdout
    assert (tmp_path / "0").read_bytes() == (tmp_path / "1234").read_bytes()
    zero, one = (made(tmp_path, "--people", 4, "--num", 30, "--seed", seed) for seed in (0, 1))
    assert [line["statements"] for line in zero] != [line["statements"] for line in one]


def test_lines_are_problems_and_sft_examples(tmp_path):
    lines = made(tmp_path, "--people", "2-4", "--num", 20, "--cot", "search")
    assert [line["level"] for line in lines] == [2] * 20 + [3] * 20 + [4] * 20
    assert len({line["id"] for line in lines}) == len(set(forms(lines))) == 60
    for line in lines:
        said = read_statements(line["statements"])
        assert line["task"] == "kk" and [line["index"]] == [int(line["id"].split("-")[-1])]
        assert solve(said) == [tuple(line["solution"])]
        assert line["response"].startswith("\nLet me") and "<|" not in line["response"]
        assert line["prompt"].endswith("<|im_end|>\n<|im_start|>assistant")
        assert line["response"] == "\n" + " ".join(
            [line["cot_head"], *line["cot_repeat_steps"], line["cot_foot"]]) + (
            f"\nThe final answer is: \\boxed{{{line['gold']}}}.")
        steps = read_steps(line["response"], said, line["names"], line["knight_knave"])
        assert check_chain_of_thought(said, steps) is None
        # an official file with these fields would give the same problem
        official = {key: line[key] for key in line.keys() - {"task", "prompt", "gold"}}
        problem = problems.as_problem(official, "chat", "x")
        assert (problem["prompt"], problem["gold"]) == (line["prompt"] + "\n", line["gold"])
    assert [p["gold"] for p in problems.read_problems(str(tmp_path / "out.jsonl"))] == [
        line["gold"] for line in lines]


def test_compact_and_base_templates(tmp_path):
    line, = made(tmp_path, "--people", 2, "--num", 1, "--template", "compact", "--cot", "table")
    a, b = line["prompt"].splitlines()[:2]
    assert line["names"] == ["A", "B"] and a.startswith("A: ") and b.startswith("B: ")
    assert line["prompt"].endswith("\n?\n") and line["response"].startswith("A=T B=T: A ")
    base, = made(tmp_path, "--people", 2, "--num", 1, "--template", "base")
    assert base["prompt"].startswith("Question:\n") and base["prompt"].endswith("step by step.")
    assert base["statements"] == line["statements"] and "response" not in base


def test_exclude_keeps_renamed_and_commuted_puzzles_out(tmp_path):
    first = made(tmp_path, "--people", 2, "--num", 60)
    rest = made(tmp_path, "--people", 2, "--num", 40, "--seed", 1, "--exclude",
                written(tmp_path / "first", first), written(tmp_path / "official", OFFICIAL))
    for commute in (False, True):
        assert not set(forms(rest, commute)) & set(forms([*first, *OFFICIAL], commute))
    assert len(set(forms(rest))) == 40


def test_source_keeps_puzzles_names_and_role_words(tmp_path):
    saints = {**OFFICIAL[1], "id": "mine", "knight_knave": {"knight": "saint", "knave": "sinner"}}
    source = written(tmp_path / "official", [OFFICIAL[0], saints, *OFFICIAL[2:], OFFICIAL[0]])
    lines = made(tmp_path, "--people", "2-5", "--source", source, "--cot", "worked")
    assert len(lines) == 5                          # the last of the source had come before
    for old, new in zip(OFFICIAL, lines):
        assert all(new[key] == old[key] for key in ("names", "solution", "statements"))
    assert [line["id"] for line in lines[:3]] == ["kk2-official-0", "mine", "kk2-official-2"]
    assert lines[1]["gold"] == "Michael is a saint, Jacob is a sinner"
    assert "a saint always tells the truth" in lines[1]["quiz"]
    assert r"\boxed{XX is a sinner, YY is a saint, ...}" in lines[1]["prompt"]
    assert "knight" not in lines[1]["response"] and style_of(lines[1]["response"]) == "worked"
    few = made(tmp_path, "--people", "2,5", "--source", source, "--num", 2, "--exclude",
               written(tmp_path / "excluded", OFFICIAL[:1]), "--template", "compact")
    assert [line["names"] for line in few] == [OFFICIAL[1]["names"], OFFICIAL[4]["names"]]


def test_a_source_may_be_a_folder_or_an_array(tmp_path):
    os.makedirs(tmp_path / "kk")
    (tmp_path / "kk" / "a.json").write_text(json.dumps(OFFICIAL[:2], indent=1))
    written(tmp_path / "kk" / "b.jsonl", OFFICIAL[2:])
    for source in (tmp_path / "kk", f"{tmp_path}/kk/"):
        lines = made(tmp_path, "--people", "2-5", "--source", source)
        assert [line["names"] for line in lines] == [row["names"] for row in OFFICIAL]
        assert lines[0]["id"] == "kk2-kk-0"
    (tmp_path / "kk" / "b.jsonl").write_text(json.dumps({**OFFICIAL[0], "names": []}))
    done = command("--people", 2, "--source", tmp_path / "kk", "--out", tmp_path / "none")
    assert done.returncode == 2 and f"{tmp_path}/kk/b.jsonl:1: `names`" in done.stderr


def test_all_205_puzzles_of_two_people_and_not_one_more(tmp_path):
    assert len(set(forms(made(tmp_path, "--people", 2, "--num", 205)))) == 205
    done = command("--people", 2, "--num", 206, "--out", tmp_path / "none")
    assert (done.returncode, done.stdout) == (2, "")
    assert "found only 205 new puzzles of 2 people" in done.stderr
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("people", ("1", "40", "7-3", "2,7-3", "two", "", "3-", "9" * 5000))
def test_people_that_cannot_be(people):
    with pytest.raises(ValueError, match="write it as 3, 3-7 or 2,3,5, from 2 to 12|digits"):
        kk_gen.people_counts(people)


@pytest.mark.parametrize("arguments,said", [
    (["--people", "1"], "2 to 12"), ([], "--people"), (["--people", "3", "--num", "0"], "num"),
    (["--people", "3", "--show", "-1"], "show"), (["--people", "3", "--cot", "long"], "long"),
    (["--people", "3", "--template", ""], "template"),
    (["--people", "3", "--exclude", "nowhere.jsonl"], "nowhere.jsonl"),
    (["--people", "3", "--source", os.devnull], "no new puzzle of 3 people"),
])
def test_wrong_requests_end_in_one_line(tmp_path, arguments, said):
    done = command(*arguments, "--out", tmp_path / "out")
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert said in done.stderr and done.stderr.startswith("kk_gen.py: ")
    assert not os.listdir(tmp_path)


def test_show_prints_examples_without_a_file():
    done = command("--people", "3,5", "--num", 50, "--show", 2, "--cot", "guess")
    assert done.returncode == 0 and done.stdout.count("--- kk") == 2
    assert "meet 3 of them" in done.stdout and "meet 5 of them" in done.stdout
    assert "--out" in command("--people", "3").stderr
