"""Knights & Knaves: puzzles with one solution, a solver, and chains of thought that can be checked.

    python kk_gen.py --people 3-7 --num 2000 --seed 0 --out data/kk_train.jsonl
    python kk_gen.py --people 4-8 --num 100 --exclude data/kk_train.jsonl --out data/kk_test.jsonl
    python kk_gen.py --people 2-3 --num 100 --template compact --cot search --out data/tiny.jsonl
    python kk_gen.py --people 3-7 --source data/kk_train.jsonl --perturb leaf --out data/leaf.jsonl

Each of n people is a knight, who tells the truth, or a knave, who lies, and makes one statement: a
nested tuple such as ('->', ('lying', 0), ('telling-truth', 2)), "if 0 is a knave then 2 is a
knight". A set of assignments is one Python integer: bit r stands for row r of the truth table, row
0 being all knights, the last person changing fastest. So a statement is an integer, a puzzle is n
of them, and solving it is n bitwise ands.

The distribution is that of the public generator (PAPER: A, data). What differs: the wording is our
own. A puzzle never comes twice in a file, whatever the names and the order of the people.
`--exclude` also takes "A and B" and "B and A" for one puzzle; within a file they are two, for of
2 people there are 205 puzzles so counted but only 95 the other way, and the paper trains on 200.
Randomness is `random.Random(...).random()`, the same on every machine.
"""
import ast
import collections
import dataclasses
import functools
import itertools
import os
import random
import re
import time

from tqdm import tqdm

import cli


@dataclasses.dataclass
class Settings:
    people: str                 # how many people a puzzle has: 3, 3-7 or 2,3,5; from 2 to 12
    num: int = 2000             # puzzles for each number of people (paper: 2000 train, 100 test);
                                # with --source: at most
    seed: int = 0               # the same seed writes the same file, byte for byte
    out: str = ""               # the JSONL file to write
    show: int = 0               # print this many examples; without --out that is all
    template: str = "chat"      # prompts: chat or base (the paper's), or compact, for tiny models
    cot: str = ""               # add `response` in this style: search, table, worked, guess
    names: str = ""             # random, fixed (a list, in order) or letters (A, B, ...); default:
                                # the source's, else letters if compact, else random
    roles: str = ""             # two role words such as saint/sinner, or random; default: the
                                # source's, else knight/knave
    flip: bool = False          # exchange the role words: the knaves tell the truth
    exclude: list[str] = dataclasses.field(default_factory=list)
    #                             K&K files, official or ours, whose puzzles must not come again
    source: str = ""            # vary the puzzles of this K&K file instead of drawing new ones
    reorder: bool = False       # with --source: shuffle the people and their statements
    perturb: str = ""           # with --source: change one statement or one leaf, and the solution


LEAVES = ("telling-truth", "lying")
PARTS = {"not": 1, "and": 2, "or": 2, "->": 2, "<=>": 2}
STYLES = ("search", "table", "worked", "guess")
ROLES = ("knight/knave", "saint/sinner", "hero/villain", "angel/devil", "altruist/egoist",
         "sage/fool", "pioneer/laggard")
NAMES = """Ada Boris Clara Dmitri Elena Felix Gina Hugo Ines Jonas Kira Leo Mona Nils Olga Pavel
Quinn Rosa Simon Tara Umar Vera Walter Xenia Yusuf Zelda Arlo Bianca Cyril Dora Edgar Una""".split()
GIVE_UP_AFTER = 20_000      # draws in a row without a new puzzle: less than 0.05 % of draws are new


# ---- statements as sets of truth-table rows --------------------------------------------------
@functools.cache
def knight_rows(people: int) -> list[int]:
    """Per person, the rows that make a knight of that person: regular blocks, as in 0b00110011."""
    rows = 1 << people
    return [((1 << rows) - 1) // ((1 << (rows >> person + 1)) + 1) for person in range(people)]


def true_rows(statement, people: int) -> int:
    """The rows in which a statement is true."""
    every_row = (1 << (1 << people)) - 1
    op, *parts = statement
    if op == "telling-truth":
        return knight_rows(people)[parts[0]]
    if op == "lying":
        return every_row ^ knight_rows(people)[parts[0]]
    a, b = true_rows(parts[0], people), true_rows(parts[-1], people)
    if op == "not":
        return every_row ^ a
    if op == "and":
        return a & b
    if op == "or":
        return a | b
    if op == "->":
        return (every_row ^ a) | b
    if op == "<=>":
        return every_row ^ a ^ b
    raise ValueError(f"unknown statement {statement!r}")


def rows_fitting(statement, speaker: int, people: int) -> int:
    """The rows in which a claim fits: it is true and a knight's, or false and a knave's."""
    return true_rows(("<=>", ("telling-truth", speaker), statement), people)


def fitting_rows(statements) -> list[int]:
    return [rows_fitting(statement, speaker, len(statements))
            for speaker, statement in enumerate(statements)]


def roles_in_row(row: int, people: int) -> tuple[bool, ...]:
    return tuple(not row >> (people - 1 - person) & 1 for person in range(people))


def solve(statements) -> list[tuple[bool, ...]]:
    """All solutions, knights first; True is a knight."""
    left, solutions = functools.reduce(int.__and__, fitting_rows(statements)), []
    while left:
        lowest = left & -left
        solutions.append(roles_in_row(lowest.bit_length() - 1, len(statements)))
        left ^= lowest
    return solutions


# ---- drawing puzzles -------------------------------------------------------------------------
@functools.cache
def claims(people: int, speaker: int):
    """All that `speaker` can say, as (statement, fitting rows), in six equally likely lists."""
    leaves = [(op, person) for person in range(people) for op in LEAVES
              if (op, person) != ("lying", speaker)]            # nobody can say "I am a liar"
    pairs = list(itertools.permutations(leaves, 2))             # the two parts are distinct
    kinds = [leaves, [("not", leaf) for leaf in leaves],
             *([(op, *pair) for pair in pairs] for op in ("and", "or", "->", "<=>"))]
    return [[(statement, rows_fitting(statement, speaker, people)) for statement in kind]
            for kind in kinds]


def pick(rng, options):
    return options[int(rng.random() * len(options))]


def sample_puzzle(rng, people: int):
    """Statements with exactly one solution; `rng` is a random.Random (only .random() is called)."""
    claims_by_speaker = [claims(people, speaker) for speaker in range(people)]
    while True:
        left, statements = -1, []                               # -1: all bits set, every row fits
        for kinds in claims_by_speaker:
            kind = kinds[int(rng.random() * 6)]
            statement, rows = kind[int(rng.random() * len(kind))]
            statements.append(statement)
            left &= rows
            if not left:                                        # no solution: redraw the puzzle
                break
        if left and not left & (left - 1):                      # one bit
            return tuple(statements)


def perturb(rng, statements, what: str):
    """A try at a puzzle one `statement` or one `leaf` away with another solution; None: missed."""
    people, speaker = len(statements), pick(rng, range(len(statements)))
    old, kinds = statements[speaker], claims(people, speaker)
    if what == "statement":
        new, _ = pick(rng, pick(rng, kinds))
    elif old[0] in LEAVES:
        new, _ = pick(rng, kinds[0])
    else:
        alike = kinds[1 + list(PARTS).index(old[0])]
        new = pick(rng, [new for new, _ in alike if sum(a != b for a, b in zip(new, old)) == 1])
    changed = (*statements[:speaker], new, *statements[speaker + 1:])
    solutions = solve(changed)
    return changed if len(solutions) == 1 and solutions != solve(statements) else None


# ---- the same puzzle under other names and orders --------------------------------------------
def mentions(statement) -> list[int]:
    """The people a statement speaks of, as they come."""
    if statement[0] in LEAVES:
        return [statement[1]]
    return [person for part in statement[1:] for person in mentions(part)]


def renamed(statement, new_name):
    op, *parts = statement
    if op in LEAVES:
        return op, new_name[parts[0]]
    return op, *(renamed(part, new_name) for part in parts)


def canonical_form(statements, commute=False):
    """The same for all puzzles that differ only in the names or the order of the people; with
    `commute`, also in the order of two parts around and, or, <=>.

    Colour refinement: people get different colours once their statements, or the people who speak
    of them, differ in anything but the names. People still tied are singled out one after the other
    and the smallest resulting form wins. That would be factorial for symmetric ties (five people
    who all say the same); but if two choices can lead to one form, then exchanging them leaves the
    puzzle as it is, so one of the two is enough.
    """
    people = range(len(statements))
    said = [(op, [(op, *parts)] if op in LEAVES else parts) for op, *parts in statements]
    sort = [commute and op in ("and", "or", "<=>") for op, _ in said]
    spoken_of_by = [[] for _ in people]
    for speaker, (_, leaves) in enumerate(said):
        for _, person in leaves:
            spoken_of_by[person].append(speaker)

    def refine(colours):
        while True:
            views = []          # the own colour comes first in a view: new colours keep their order;
                                # -1 is "I" in a statement
            for person, (op, leaves) in enumerate(said):
                seen = [(role, -1 if of == person else colours[of]) for role, of in leaves]
                views.append((colours[person], op, sorted(seen) if sort[person] else seen,
                              sorted([colours[speaker] for speaker in spoken_of_by[person]])))
            distinct = [view for view, _ in itertools.groupby(sorted(views))]
            before, colours = len(set(colours)), [distinct.index(view) for view in views]
            if len(distinct) in (before, len(statements)):
                return colours

    def tied(colours):
        shared = [colour for colour, count in collections.Counter(colours).items() if count > 1]
        return [person for person in people if shared and colours[person] == min(shared)]

    def single_out(person, colours):
        return refine([*colours[:person], len(statements), *colours[person + 1:]])

    def form(colours):
        written = [None] * len(statements)
        for person, (op, leaves) in enumerate(said):
            parts = [(role, colours[of]) for role, of in leaves]
            written[colours[person]] = op, *(sorted(parts) if sort[person] else parts)
        return tuple(written)

    def any_form(colours):
        while ties := tied(colours):
            colours = single_out(ties[0], colours)
        return form(colours)

    def smallest_form(colours):
        if len(set(colours)) == len(statements):
            return form(colours)
        choices = [single_out(person, colours) for person in tied(colours)]
        return min(map(smallest_form, {any_form(choice): choice for choice in choices}.values()))

    return smallest_form(refine([0] * len(statements)))


# ---- chains of thought -----------------------------------------------------------------------
def chain_of_thought(statements, style="search") -> list[tuple]:
    """The steps to the solution, people as numbers and roles as True for a knight:

    ("assume", person, role)                  no claim of those who have a role is contradicted
    ("cannot", person, role, who, who's role) because then the claim of `who` does not fit
    ("back", (people, ...), person)           no role is left for these: go back to `person`
    ("row", roles, who)                       whose claim is the first not to fit; None: all fit
    ("worked", roles, who)                    the same, and what the parts of each claim are worth
    ("answer", roles)
    """
    if not (solutions := solve(statements)):
        raise ValueError("the puzzle has no solution")
    if style == "search":
        return search_steps(statements)
    if style in ("table", "worked"):
        return table_steps(statements, "row" if style == "table" else "worked")
    if style == "guess":
        return [("answer", solutions[0])]
    raise ValueError(f"unknown style {style!r}: {', '.join(STYLES)}")


def contradicted(trail: dict[int, bool], fits: list[int]) -> list[int]:
    """People of the trail (person -> role) whose claims cannot fit, whatever the rest are."""
    rows, knights = -1, knight_rows(len(fits))
    for person, role in trail.items():
        rows &= knights[person] if role else ~knights[person]
    return [person for person in trail if not rows & fits[person]]


def go_back(trail: dict[int, bool], person: int):
    """Undo the trail to its last knight: the knaves after it have no role left, like `person`."""
    failed = [person]
    while trail:
        person, role = trail.popitem()
        if role:
            return "back", tuple(failed), person
        failed.append(person)
    return None


def search_steps(statements):
    """Depth first, a knight before a knave; next comes whoever the latest claim speaks of."""
    fits, people = fitting_rows(statements), range(len(statements))
    steps, trail, person, role = [], {}, 0, True
    while True:
        now = {**trail, person: role}
        if against := contradicted(now, fits):
            steps.append(("cannot", person, role, against[0], now[against[0]]))
            if not role:
                steps.append(go_back(trail, person))
                _, _, person = steps[-1]
            role = False
            continue
        steps.append(("assume", person, role))
        trail = now
        if len(trail) == len(people):
            return [*steps, ("answer", tuple(trail[person] for person in people))]
        spoken_of = (p for speaker in reversed(trail) for p in mentions(statements[speaker]))
        person, role = next(p for p in (*spoken_of, *people) if p not in trail), True


def table_row(kind: str, row: int, fits: list[int]):
    misfit = next((person for person, rows in enumerate(fits) if not rows >> row & 1), None)
    return kind, roles_in_row(row, len(fits)), misfit


def table_steps(statements, kind: str):
    """Row by row from all knights to the first row that fits everybody."""
    fits, steps = fitting_rows(statements), []
    while not steps or steps[-1][2] is not None:
        steps.append(table_row(kind, len(steps), fits))
    return [*steps, ("answer", steps[-1][1])]


def search_fault(step, trail, failed, fits) -> str | None:
    """Why a step of a search is wrong, if it is. Right ones are followed: `trail` is who has which
    role, `failed` the person in doubt, once for each role ruled out."""
    kind, person, *said = step
    if kind == "back":
        right = len(failed) == 2 and step == go_back(trail, failed[0])
        failed[:] = said
        return None if right else "no reason to go back, or not there"
    role, *reason = said
    if person in trail or failed and person != failed[0]:
        return "not a person whose role is open"
    if len(failed) == 2 or role == bool(failed):
        return "not the role to try now: a knight first, then a knave, then back"
    now = {**trail, person: role}
    against = contradicted(now, fits)
    if kind == "cannot":
        failed.append(person)
        return None if reason in [[who, now[who]] for who in against] else "that is no reason"
    trail[person] = role
    failed.clear()
    return "a claim is contradicted" if against else None


def check_chain_of_thought(statements, steps) -> tuple[int, str] | None:
    """None if every step is true and the last one answers; else the first fault, (index, why).

    Truth counts, not taste: people may come in any order, and any true reason will do. But a knight
    is tried before a knave, a person in doubt is settled before others, and rows come in order: no
    step can be left out. Takes what `chain_of_thought` or `read_steps` returns.
    """
    fits = fitting_rows(statements)
    trail, failed, rows, before = {}, [], 0, (None,)
    for index, step in enumerate(steps):
        kind, why = step[0], None
        if before[0] == "answer":
            why = "a step after the answer"
        elif kind in ("assume", "cannot", "back"):
            why = search_fault(step, trail, failed, fits)
        elif kind in ("row", "worked"):
            if rows >> len(fits) or step != table_row(kind, rows, fits):
                why = "not the next row, or not its first misfit"
            rows += 1
        elif kind == "answer":
            if before[0] is None:
                right = step[1] in solve(statements)
            elif before[0] in ("row", "worked"):
                right = before[1:] == (step[1], None)
            else:
                right = trail == dict(enumerate(step[1]))
            why = None if right else "the answer does not follow"
        else:
            why = "not a step"
        if why:
            return index, why
        before = step
    return None if before[0] == "answer" else (len(steps), "no answer")


# ---- words -----------------------------------------------------------------------------------
HEADS = {"search": "Let me settle one person at a time, trying {a_knight} before {a_knave}.",
         "table": "Let me go through the cases. True claims fit {a_knight}, false ones {a_knave}.",
         "worked": "Let me go through the cases and work out what each claim says in them.",
         "guess": ""}
FOOT = "Now every claim fits."


def role_words(pair: str, flip=False) -> dict[str, str]:
    """The official field `knight_knave` for a pair such as saint/sinner."""
    words = {}
    for key, word in zip(("knave", "knight") if flip else ("knight", "knave"), pair.split("/")):
        article = "an" if word[0] in "aeiou" else "a"
        words |= {key: word, f"a_{key}": f"{article} {word}", key.capitalize(): word.capitalize()}
    return words


def listed(items) -> str:
    *most, last = items
    return f"{', '.join(most)}{',' if len(most) > 1 else ''} and {last}" if most else last


def claim_text(statement, names, words, compact=False, roles=None) -> str:
    """A claim in words; with `roles`, its parts as true or false where people have those."""
    op, *parts = statement
    if roles and (op in LEAVES or op == "not"):
        row = int("".join("01"[not role] for role in roles), 2)
        return (("F", "T") if compact else ("false", "true"))[
            true_rows(statement, len(roles)) >> row & 1]
    if op in LEAVES:
        return f"{names[parts[0]]} is {words['a_knight' if op == 'telling-truth' else 'a_knave']}"
    a, b = (claim_text(part, names, words, compact, roles) for part in (parts[0], parts[-1]))
    if op == "not":
        return a.replace(" is ", " is not ", 1)
    if op == "->":
        return f"if {a} then {b}"
    if op == "<=>":
        return f"{a} {'iff' if compact else 'if and only if'} {b}"
    return f"{a} {op} {b}"


def answer_text(roles, names, words) -> str:
    return ", ".join(f"{name} is {words['a_knight' if role else 'a_knave']}"
                     for name, role in zip(names, roles))


def quiz_text(rng, statements, names, words) -> str:
    """The puzzle in words; `rng` chooses how each claim is introduced."""
    said = []
    for name, statement in zip(names, statements):
        claim = claim_text(statement, names, words)
        quote = claim[0].upper() + claim[1:]
        ways = (f'{name} says: "{quote}."', f'"{quote}," says {name}.',
                f"{name} tells you that {claim}.", f'From {name} you hear: "{quote}."')
        said.append(pick(rng, ways))
    return ("On a far island everyone is either {a_knight} or {a_knave}: {a_knight} always tells"
            " the truth, {a_knave} always lies. You meet {count} of them, {people}. {said} Who is"
            " {a_knight} and who is {a_knave}?").format(
                count=len(names), people=listed(names), said=" ".join(said), **words)


def compact_prompt(statements, names, words) -> str:
    """The puzzle for tiny models: a line for each claim, and a question mark."""
    return "".join(f"{name}: {claim_text(statement, names, words, True)}\n"
                   for name, statement in zip(names, statements)) + "?\n"


def step_text(step, statements, names, words, compact=False) -> str:
    """A step as a line of text, short and regular if compact."""
    kind, *said = step
    called = ("F", "T") if compact else (words["a_knave"], words["a_knight"])       # by role
    if kind == "answer":
        return f"\\boxed{{{answer_text(said[0], names, words)}}}"
    if kind == "back":
        failed, person = [names[person] for person in said[0]], names[said[1]]
        return (f"{' '.join(failed)} out, back to {person}" if compact else
                f"No role is left for {listed(failed)}, so reconsider {person}.")
    if kind in ("row", "worked"):
        roles, misfit = said
        verdicts = []
        for person, name in enumerate(names[:None if misfit is None else misfit + 1]):
            fits = ("fits", "ok") if person != misfit else ("does not", "no")
            worth = claim_text(statements[person], names, words, compact, roles)
            shown = [worth if compact else f"({worth})"] if kind == "worked" else []
            verdicts.append(" ".join([name, *shown, fits[compact]]))
        case = " ".join(f"{name}={called[role]}" for name, role in zip(names, roles))
        return (f"{case}: {', '.join(verdicts)}" if compact else
                f"If {answer_text(roles, names, words)}: {', '.join(verdicts)}.")
    person, role, *reason = said
    who, who_role = reason or (person, role)
    name, truth = names[person], "true" if who_role else "false"
    claim = claim_text(statements[who], names, words)
    if kind == "assume":
        return f"{name}={called[role]} ok" if compact else (
            f"Assume {name} is {called[role]}. Then it is {truth} that {claim}; that is possible.")
    return f"{name}={called[role]} no: {names[who]}={called[who_role]}" if compact else (
        f"{name} cannot be {called[role]}, because if {names[who]} is {called[who_role]},"
        f" it is {truth} that {claim}.")


def read_steps(text, statements, names, words, compact=False) -> list[tuple]:
    """The steps of a response, whoever wrote it; a line that is none becomes ("?", line).

    A loose reading, from the names and the roles in a line, then a strict test: the step counts if,
    written out, it gives the line again. So a wrong word in a reason is found as well.
    """
    role_of = {words["a_knight"]: True, words["a_knave"]: False, "T": True, "F": False}
    some_role = re.compile(rf"(?<==)[TF]\b|\b(?:{words['a_knight']}|{words['a_knave']})\b")
    some_name = re.compile(rf"(?<![\w=])(?:{'|'.join(map(re.escape, names))})(?!\w)")
    frame = {"", FOOT, *(head.format(**words) for head in HEADS.values())}
    steps = []
    for line in filter(lambda line: line not in frame, map(str.strip, text.splitlines())):
        people = [names.index(name) for name in some_name.findall(line)]
        roles = [role_of[role] for role in some_role.findall(line)]
        readings = []
        if people and roles:
            readings += [("assume", people[0], roles[0]), ("answer", tuple(roles))]
        if people and len(roles) == len(names):
            readings += [("row", tuple(roles), None), ("row", tuple(roles), people[-1])]
            readings += [("worked", tuple(roles), misfit) for misfit in (None, *set(people))]
        if len(people) > 1:
            readings += [("back", tuple(people[:-1]), people[-1])]
        if len(people) > 1 and len(roles) > 1:
            readings += [("cannot", people[0], roles[0], people[1], roles[1])]
        written = (step for step in readings
                   if step_text(step, statements, names, words, compact) == line)
        steps.append(next(written, ("?", line)))
    return steps


@functools.cache
def frames() -> frozenset[str]:
    """Lines around the reasoning that are in no style, whatever the roles are called."""
    return frozenset({"", FOOT, *(head.format(**role_words(pair))
                                  for head in HEADS.values() for pair in ROLES)})


def line_style(line: str) -> str:
    """The style of one line of reasoning, right or wrong; "other" for what no style writes."""
    if re.fullmatch(r"\S+=[TF] (ok|no: \S+=[TF])|.+ out, back to \S+|Assume .+; that is possible\.|"
                    r".+ cannot be .+, because .+\.|No role is left for .+, so reconsider .+\.", line):
        return "search"
    case, colon, verdicts = line.partition(": ")
    if colon and re.fullmatch(r"(\S+=[TF] )*\S+=[TF]|If .+", case):
        said = [re.fullmatch(r"(.+) (?:ok|no|fits|does not)\.?", part)
                for part in verdicts.split(", ")]
        if all(said):
            return "table" if all(" " not in verdict[1] for verdict in said) else "worked"
    return "other"


def style_of(response: str) -> str:
    """The one of STYLES that all lines before the last box are in; else "mixed" or "other".

    What counts is how it is written, not whether it is right. Of an answer that was cut off the
    last line, which may be half of one, does not count.
    """
    lines = [line.strip() for line in response.splitlines()]
    if boxes := [i for i, line in enumerate(lines) if "\\boxed{" in line]:
        lines = lines[:boxes[-1]]
    elif len(lines) > 1:
        lines = lines[:-1]
    styles = {line_style(line) for line in lines if line not in frames()}
    if not styles:
        return "guess" if boxes else "other"
    return styles.pop() if len(styles) == 1 else "other" if "other" in styles else "mixed"


# ---- files -----------------------------------------------------------------------------------
def is_statement(statement, people: int, depth=2) -> bool:
    if not isinstance(statement, tuple) or not statement or not isinstance(statement[0], str):
        return False
    op, *parts = statement
    if op in LEAVES:
        return len(parts) == 1 and type(parts[0]) is int and 0 <= parts[0] < people
    return depth > 1 and len(parts) == PARTS.get(op) and all(
        is_statement(part, people, depth - 1) for part in parts)


def read_statements(text: str):
    """The statements as official files hold them: a tuple, written as a string. Or a ValueError."""
    try:
        statements = ast.literal_eval(text)                     # reads literals, runs nothing
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise ValueError("`statements` is not a tuple written as a string") from None
    if not isinstance(statements, tuple) or not 2 <= len(statements) <= 12:
        raise ValueError("`statements` is not a tuple of 2 to 12 statements")
    for number, statement in enumerate(statements):
        if not is_statement(statement, len(statements)):
            raise ValueError(f"statement {number} is none of depth 2 over {', '.join(PARTS)}")
    if (count := len(solve(statements))) != 1:
        raise ValueError(f"the puzzle has {count} solutions instead of one")
    return statements


def read_puzzles(path: str) -> list[tuple]:
    """(line, statements) of a K&K file, official or ours."""
    puzzles = []
    for number, line in cli.numbered_jsonl(path, "statements", "names"):
        try:
            statements, names = read_statements(line["statements"]), line["names"]
            if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or (
                    len(set(names)) != len(names)) or len(names) != len(statements):
                raise ValueError(f"`names` does not name the {len(statements)} people")
        except ValueError as error:
            cli.stop(f"{path}:{number}: {error}")
        puzzles.append((line, statements))
    return puzzles


def puzzle_line(settings, rng, name, index, statements, source) -> dict:
    """A puzzle as a line of the file: our fields, then the official ones."""
    compact, style = settings.template == "compact", settings.cot or "search"
    names, words = choose_words(settings, rng, len(statements), source)
    quiz = quiz_text(rng, statements, names, words)
    solution = solve(statements)[0]
    gold = answer_text(solution, names, words)
    if compact:
        prompt = compact_prompt(statements, names, words)
    else:
        prompt = cli.prompt_text(quiz + cli.kk_suffix(words), settings.template)
    *steps, box = [step_text(step, statements, names, words, compact)
                   for step in chain_of_thought(statements, style)]
    head, foot = ("", "") if compact or style == "guess" else (HEADS[style].format(**words), FOOT)
    line = {"id": name, "task": "kk", "prompt": prompt, "gold": gold, "level": len(names)}
    if settings.cot:        # begins as the paper's do; no end token here: sft.py appends its id
        start = "" if compact else "\n"
        line["response"] = start + "\n".join(filter(None, (head, *steps, foot, box)))
    said = gold.split(", ")
    return {**line, "quiz": quiz, "names": names, "knight_knave": words, "solution": solution,
            "solution_text": f"{listed(said)}.",
            "solution_text_format": "\n".join(f"({i}) {text}" for i, text in enumerate(said, 1)),
            "cot_head": head, "cot_repeat_steps": steps, "cot_foot": foot,
            "statements": repr(statements), "index": index}


def choose_words(settings, rng, people, source):
    """The names and the role words of a puzzle: as asked for, else those of its source."""
    random_names = sorted(NAMES, key=lambda _: rng.random())
    naming = settings.names or ("letters" if settings.template == "compact" else "random")
    names = source["names"] if source and not settings.names else {
        "random": random_names, "fixed": NAMES, "letters": "ABCDEFGHIJKL"}[naming]
    words = source and source.get("knight_knave")
    if settings.roles == "random":
        pair = pick(rng, ROLES)
    elif not settings.roles and isinstance(words, dict) and {"knight", "knave"} <= words.keys():
        pair = f"{words['knight']}/{words['knave']}"
    else:
        pair = settings.roles or ROLES[0]
    return list(names[:people]), role_words(pair, settings.flip)


# ---- the command -----------------------------------------------------------------------------
def people_counts(text: str) -> list[int]:
    """From "3-5,8" to [3, 4, 5, 8]."""
    counts = set()
    for part in text.split(","):
        if not (span := re.fullmatch(r" *(\d{1,9})(?:-(\d{1,9}))? *", part)):
            cli.stop(f"--people {text}: write it as 3, 3-7 or 2,3,5")
        first, last = int(span[1]), int(span[2] or span[1])
        if not 2 <= first <= last <= 12:
            cli.stop(f"--people {text}: a puzzle has 2 to 12 people")
        counts.update(range(first, last + 1))
    return sorted(counts)


def check_settings(settings: Settings):
    """Stop at what cannot be meant, before any work."""
    choices = {"template": ("chat", "base", "compact"), "cot": ("", *STYLES),
               "names": ("", "random", "fixed", "letters"), "perturb": ("", "statement", "leaf")}
    for field, allowed in choices.items():
        if (value := getattr(settings, field)) not in allowed:
            cli.stop(f"--{field} {value}: it can be {', '.join(filter(None, allowed))}")
    if not re.fullmatch(r"random|([a-z]+)/(?!\1$)[a-z]+|", settings.roles):
        cli.stop(f"--roles {settings.roles}: two different words such as saint/sinner, or random")
    if (settings.reorder or settings.perturb) and not settings.source:
        cli.stop("--reorder and --perturb vary the puzzles of a file: name it with --source")
    if settings.num < 1 or settings.show < 0 or not (settings.out or settings.show):
        cli.stop("give --out FILE, or --show N to print N examples; --num is at least 1")
    if settings.out:
        cli.check_output(settings.out)


def new_puzzles(settings, people, is_new):
    rng = random.Random(f"puzzles of {people}, seed {settings.seed}")
    for index in range(settings.num):
        draws = (sample_puzzle(rng, people) for _ in range(GIVE_UP_AFTER))
        if (statements := next(filter(is_new, draws), None)) is None:
            cli.stop(f"found only {index} new puzzles of {people} people, not {settings.num}: the"
                     f" last {GIVE_UP_AFTER:,} draws had come before or are excluded")
        yield f"kk{people}-{settings.seed}-{index}", index, statements, None


def variants(settings, people, is_new, puzzles):
    """Variants of the source's puzzles, but for those that cannot be made into a new one."""
    rng = random.Random(f"variants of {people}, seed {settings.seed}")
    changes = [settings.perturb, "reorder" * settings.reorder, "flip" * settings.flip]
    puzzles = [(line, statements) for line, statements in puzzles if len(statements) == people]
    if settings.perturb:                    # no variant is another puzzle of the source
        for _, statements in puzzles:
            is_new(statements)
    for index, (line, statements) in enumerate(puzzles[:settings.num]):
        if settings.reorder:
            order = sorted(range(people), key=lambda _: rng.random())
            place = [order.index(person) for person in range(people)]
            statements = tuple(renamed(statements[person], place) for person in order)
            line = {**line, "names": [line["names"][person] for person in order]}
        tries = (perturb(rng, statements, settings.perturb) for _ in range(200))
        tries = filter(None, tries) if settings.perturb else [statements]
        if statements := next(filter(is_new, tries), None):
            name = line.get("id", f"kk{people}-{os.path.basename(settings.source)}-{index}")
            yield "+".join(filter(None, (name, *changes))), index, statements, line


def main():
    settings = cli.parse(Settings, __doc__)
    counts = people_counts(settings.people)
    check_settings(settings)
    if not settings.out:
        settings.num = min(settings.num, settings.show)
    source = read_puzzles(settings.source) if settings.source else []
    excluded = {canonical_form(statements, commute=True)
                for path in settings.exclude for _, statements in read_puzzles(path)}
    known = set()

    def is_new(statements):
        form = canonical_form(statements)
        if form in known or excluded and canonical_form(statements, commute=True) in excluded:
            return False
        known.add(form)
        return True

    lines, start = [], time.perf_counter()
    try:
        with tqdm(total=len(counts) * settings.num, unit=" puzzles", disable=None) as bar:
            for people in counts:
                rng = random.Random(f"words for {people}, seed {settings.seed}")
                for puzzle in (variants(settings, people, is_new, source) if settings.source else
                               new_puzzles(settings, people, is_new)):
                    lines.append(puzzle_line(settings, rng, *puzzle))
                    bar.update()
        if not lines:
            cli.stop(f"{settings.source}: no puzzle of {settings.people} people can be varied so")
        if settings.out:
            cli.write_jsonl(settings.out, lines)
    except KeyboardInterrupt:
        cli.stop("interrupted: nothing was written")
    for line in lines[::-(-len(lines) // max(1, settings.show))][:settings.show]:
        print(f"--- {line['id']}\n{line['prompt']}{line.get('response', '')}\n")
        print(f"--- gold: {line['gold']}\n")
    left_out = sum(min(settings.num, sum(len(statements) == people for _, statements in source))
                   for people in counts) - len(lines)
    seconds = time.perf_counter() - start
    print(f"{len(lines):,} puzzles of {settings.people} people in {seconds:.1f} s"
          + f"; {left_out} of the source not (no new variant found)" * (left_out > 0)
          + f": {settings.out}" * bool(settings.out))


if __name__ == "__main__":
    main()
