"""Knights & Knaves: puzzles with one solution, a solver, and chains of thought that can be checked.

    python kk_gen.py --people 3-7 --num 2000 --seed 0 --out data/kk_train.jsonl
    python kk_gen.py --people 4-8 --num 100 --exclude data/kk_train.jsonl --out data/kk_test.jsonl
    python kk_gen.py --people 3-7 --source data/kk_train.jsonl --cot table --out data/tables.jsonl

Each person is a knight, who tells the truth, or a knave, who lies, and each makes one statement. A
statement is a nested tuple, as in the public data: ('->', ('lying', 0), ('telling-truth', 2)) is
"if person 0 is a knave then person 2 is a knight". In code, True is a knight and False a knave.

Puzzles are drawn like those of the paper (arXiv 2505.17988), which uses the public generator. Only
the wording is our own. No puzzle comes twice in a file, not even under other names or in another
order of the people. --exclude is stricter: it also takes "A and B" and "B and A" for one puzzle.
Within a file these are two, or there would be only 95 puzzles of 2 people; the paper uses 200.
"""
import ast
import functools
import itertools
import os
import random
import re
from dataclasses import dataclass, field

from tqdm import tqdm

from engine.files import check_output, data_files, numbered_rows, write_jsonl
from engine.flags import command, limits, parse
from engine.prompts import kk_suffix, prompt_text

STYLES = ("search", "table", "worked", "guess")


@dataclass(kw_only=True)
class Settings:
    people: str                         # people in a puzzle: 3, 3-7 or 2,3,5; from 2 to 12
    num: int = limits(2000, at_least=1)         # puzzles for each number of people (paper: 2000)
    seed: int = 0                       # the same seed writes the same file, byte for byte
    out: str = ""                       # the JSONL file to write
    show: int = limits(0, at_least=0)   # print so many examples; without --out write no file
    template: str = limits("chat", one_of=("chat", "base", "compact"))  # compact: for tiny models
    cot: str = limits("", one_of=("", *STYLES))         # add a `response` in this style
    source: str = ""                    # K&K file to take puzzles (--num of a size) and words from
    exclude: list[str] = field(default_factory=list)    # K&K files with puzzles to leave out


LEAVES = ("telling-truth", "lying")
NAMES = """Ada Boris Clara Dmitri Elena Felix Gina Hugo Ines Jonas Kira Leo Mona Nils Olga Pavel
Quinn Rosa Simon Tara Umar Vera Walter Xenia Yusuf Zelda Arlo Bianca Cyril Dora Edgar Una""".split()
GIVE_UP_AFTER = 20_000      # failed draws in a row: then almost surely under 0.05 % are new


# ---- statements as sets of truth-table rows --------------------------------------------------
# A row of the truth table gives everybody a role. A set of rows is one Python integer: bit r stands
# for row r. So a statement is one number, and solving a puzzle is a bitwise "and" of n of them:
#
#     row                     3 2 1 0     row 0 is all knights; the last person changes fastest
#     person 0                F F T T     knight_rows(2)[0] = 0b0011
#     person 1                F T F T     knight_rows(2)[1] = 0b0101
#     "1 is a knave"          T F T F     true_rows(('lying', 1), 2) = 0b1010
#     ... fits if 0 says so   F T T F     0b0110: it is true and a knight's, or false and a knave's

@functools.cache
def truth_table(people: int) -> list[tuple[bool, ...]]:
    return list(itertools.product((True, False), repeat=people))


@functools.cache
def knight_rows(people: int) -> list[int]:
    """For each person the rows that make a knight of that person."""
    return [sum(1 << row for row, roles in enumerate(truth_table(people)) if roles[person])
            for person in range(people)]


def parts_of(statement) -> tuple:
    """What an operator joins. A wrong number is an error: no part is left out in silence."""
    op, *parts = statement
    needed = {"telling-truth": 1, "lying": 1, "not": 1, "->": 2, "<=>": 2}.get(op)
    right = len(parts) >= 2 if op in ("and", "or") else len(parts) == needed
    if not right:
        raise ValueError(f"not a statement, or not with this number of parts: {statement!r:.100}")
    return tuple(parts)


def true_rows(statement, people: int) -> int:
    """The rows in which a statement is true."""
    op, parts = statement[0], parts_of(statement)
    every_row = (1 << (1 << people)) - 1
    if op in LEAVES:
        knights = knight_rows(people)[parts[0]]
        return knights if op == "telling-truth" else every_row ^ knights
    rows = [true_rows(part, people) for part in parts]
    if op == "not":
        return every_row ^ rows[0]
    if op in ("and", "or"):
        return functools.reduce(int.__and__ if op == "and" else int.__or__, rows)
    if op == "->":
        return (every_row ^ rows[0]) | rows[1]
    return every_row ^ rows[0] ^ rows[1]                        # <=>


def fitting_rows(statement, speaker: int, people: int) -> int:
    """The rows in which a claim fits: "I am a knight" <=> what the speaker says."""
    return true_rows(("<=>", ("telling-truth", speaker), statement), people)


def solve(statements) -> list[tuple[bool, ...]]:
    """All solutions: the rows in which every claim fits."""
    rows = functools.reduce(int.__and__, (fitting_rows(statement, speaker, len(statements))
                                          for speaker, statement in enumerate(statements)))
    table, bits = truth_table(len(statements)), f"{rows:b}"[::-1]       # bit 0 first
    return [table[one.start()] for one in re.finditer("1", bits)]


# ---- drawing puzzles -------------------------------------------------------------------------
@functools.cache
def claims(people: int, speaker: int):
    """All that `speaker` can say, as (statement, fitting rows), in six equally likely lists."""
    leaves = [(op, person) for person in range(people) for op in LEAVES
              if (op, person) != ("lying", speaker)]            # nobody can say "I am a knave"
    pairs = list(itertools.permutations(leaves, 2))             # the two parts are different
    kinds = [leaves, [("not", leaf) for leaf in leaves],
             *([(op, *pair) for pair in pairs] for op in ("and", "or", "->", "<=>"))]
    return [[(statement, fitting_rows(statement, speaker, people)) for statement in kind]
            for kind in kinds]


def sample_puzzle(rng, people: int):
    """Statements with exactly one solution; `rng` is a random.Random."""
    claims_by_speaker = [claims(people, speaker) for speaker in range(people)]
    while True:
        left, statements = -1, []                               # -1: all bits are 1, every row fits
        for kinds in claims_by_speaker:
            kind = kinds[int(rng.random() * 6)]                 # the same draws on every machine
            statement, rows = kind[int(rng.random() * len(kind))]
            statements.append(statement)
            left &= rows
            if not left:                                        # no solution: draw all of it again
                break
        if left and not left & (left - 1):                      # one bit is 1: one solution
            return tuple(statements)


# ---- the same puzzle under other names and orders --------------------------------------------
def leaves_of(statement):
    return (statement,) if statement[0] in LEAVES else parts_of(statement)


def canonical_form(statements, commute=False):
    """The same for all puzzles that differ only in the names or the order of the people; with
    `commute`, also in the order of the parts of and, or, <=>."""
    puzzle = [(said[0], [], []) for said in statements]     # operator, leaves, who speaks of them
    for speaker, said in enumerate(statements):
        in_order = not (commute and said[0] in ("and", "or", "<=>"))
        for place, (role, person) in enumerate(leaves_of(said)):
            puzzle[speaker][1].append((place if in_order else 0, role, person))
            puzzle[person][2].append(speaker)
    return min(relabelled(puzzle, refine(puzzle, [0] * len(puzzle))))


def refine(puzzle, colours):
    """Give people different colours if what they say, or who speaks of them, looks different.

    Example: A says "B is a knave", B "C is a knave", C "D is a knave" and D "D is a knight".

        A B C D
        0 0 0 0     the colours at first
        0 1 1 2     nobody speaks of A; D does not say "is a knave"
        0 1 2 3     B speaks of somebody with colour 1, C of somebody with colour 2
    """
    while True:
        views = []                          # what each person looks like; -1 is "I"
        for person, (op, leaves, speakers) in enumerate(puzzle):
            speaks_of = [(i, role, -1 if of == person else colours[of]) for i, role, of in leaves]
            spoken_of_by = [colours[speaker] for speaker in speakers]
            views.append((colours[person], op, sorted(speaks_of), sorted(spoken_of_by)))
        distinct = [view for view, _ in itertools.groupby(sorted(views))]
        before, colours = len(set(colours)), [distinct.index(view) for view in views]
        if len(distinct) in (before, len(puzzle)):
            return colours


def relabelled(puzzle, colours):
    """Yield the puzzle with colours for names, once everybody has a colour of their own.

    While several people share a colour, each of them in turn gets a new one, and `refine` spreads
    the difference. If two of them lead to the same result they are interchangeable, and one is
    enough: otherwise 12 people who all say the same would give 12! results.
    """
    shared = min((colour for colour in colours if colours.count(colour) > 1), default=None)
    if shared is None:                      # each colour is one person
        yield tuple(sorted(
            (colours[person], op, *sorted([(i, role, colours[of]) for i, role, of in leaves]))
            for person, (op, leaves, _) in enumerate(puzzle)))
        return
    seen = set()
    for person in (person for person, colour in enumerate(colours) if colour == shared):
        singled_out = [*colours[:person], len(colours), *colours[person + 1:]]
        rest = relabelled(puzzle, refine(puzzle, singled_out))
        if (first := next(rest)) not in seen:
            seen.add(first)
            yield first
            yield from rest


# ---- chains of thought -----------------------------------------------------------------------
def chain_of_thought(statements, style="search", like=()) -> list[tuple]:
    """The steps to the solution, with people as numbers and True for a knight. Compact, in words:

    ("assume", person, role)                 A=T ok                     no claim is contradicted
    ("cannot", person, role, who, who_role)  B=T no: A=F                A's claim does not fit then
    ("back", (people, ...), person)          B out, back to A           B has no role left: not A=T
    ("table", roles, who)                    A=T B=T: A ok, B no        a row, and who does not fit
    ("worked", roles, who)                   A=T B=T: A T ok, B F no    whose claims are true, too
    ("answer", roles)                        \\boxed{A is a knave, B is a knave}

    A search may choose the next person and the reason. `like` is a chain whose choices are repeated
    where they are valid.
    """
    people = len(statements)
    fits = [fitting_rows(said, speaker, people) for speaker, said in enumerate(statements)]
    if not functools.reduce(int.__and__, fits):
        raise ValueError("the puzzle has no solution")
    if style == "search":
        return search_steps(statements, fits, like)
    if style == "guess":
        return [("answer", solve(statements)[0])]
    if style not in STYLES:
        raise ValueError(f"style = {style}: one of {', '.join(STYLES)}")
    steps = []
    for row, roles in enumerate(truth_table(people)):           # to the first row that fits all
        misfit = next((person for person in range(people) if not fits[person] >> row & 1), None)
        steps.append((style, roles, misfit))
        if misfit is None:
            return [*steps, ("answer", roles)]


def search_steps(statements, fits, like) -> list[tuple]:
    """Depth first, a knight before a knave. Whoever the latest claim speaks of comes next."""
    everybody, knights = range(len(fits)), knight_rows(len(fits))
    steps, trail, person = [], {}, None                         # trail: person -> role, in order
    while len(trail) < len(everybody):
        # wish: the same step of `like`; wish[1] is its person
        wish = like[len(steps)] if len(steps) < len(like) else ("no wish", None)
        if person is None:
            spoken_of = [leaf[1] for who in reversed(trail) for leaf in leaves_of(statements[who])]
            left = [who for who in (*spoken_of, *everybody) if who not in trail]
            person, role = wish[1] if wish[1] in left else left[0], True
        now = {**trail, person: role}
        rows = functools.reduce(int.__and__, [knights[who] if is_knight else ~knights[who]
                                              for who, is_knight in now.items()])
        reasons = [("cannot", person, role, who, now[who]) for who in now if not rows & fits[who]]
        if not reasons:
            steps.append(("assume", person, role))
            trail, person = now, None
            continue
        steps.append(wish if wish in reasons else reasons[0])
        failed = []
        while not role:                     # Both roles failed: undo all up to the last knight.
            failed.append(person)
            person, role = trail.popitem()
        if failed:
            steps.append(("back", tuple(failed), person))
        role = False                        # person failed as a knight: next, as a knave
    return [*steps, ("answer", tuple(trail[person] for person in everybody))]


def check_chain_of_thought(statements, steps) -> tuple[int, str] | None:
    """None if every step is true and the last one answers; else the first fault, (index, why).

    A chain is right if each step is true: a search may take people in any order, and give any true
    reason. So we let our own search make the same choices. Then the two chains must be the same.
    """
    kind = steps[0][0] if steps else "answer"
    style = {"table": "table", "worked": "worked", "answer": "guess"}.get(kind, "search")
    right = chain_of_thought(statements, style, like=steps)
    for index, (step, ours) in enumerate(itertools.zip_longest(steps, right)):
        if step != ours:
            return index, f"right here: {ours or 'nothing'}"
    return None


# ---- words -----------------------------------------------------------------------------------
def role_words(knight: str, knave: str, **_) -> dict[str, str]:
    """The official field `knight_knave`, for words such as saint and sinner."""
    a_knight, a_knave = [("an " if word[0] in "aeiou" else "a ") + word for word in (knight, knave)]
    return {"knight": knight, "a_knight": a_knight, "Knight": knight.capitalize(),
            "knave": knave, "a_knave": a_knave, "Knave": knave.capitalize()}


KNIGHT_KNAVE = role_words("knight", "knave")
QUIZ = ("On a far island everyone is either {a_knight} or {a_knave}: {a_knight} always tells the"
        " truth, {a_knave} always lies. You meet {count} of them, {people}. {said} Who is"
        " {a_knight} and who is {a_knave}?")
SAYS = ('{name} says: "{quote}."', '"{quote}," says {name}.', "{name} tells you that {claim}.",
        'From {name} you hear: "{quote}."')
HEADS = {"search": "Let me settle one person at a time, trying {a_knight} before {a_knave}.",
         "table": "Let me go through the cases: true claims fit {a_knight}, false ones {a_knave}.",
         "worked": "Let me go through the cases and work out what each claim says in them."}
FOOT = "Now every claim fits."
SENTENCES = {
    "assume": "Assume {name} is {role}: then it is {truth} that {claim}; that is possible.",
    "cannot": "{name} cannot be {role}, because if {who} is {who_is}, it is {truth} that {claim}.",
    "back": "No role is left for {failed}, so reconsider {name}."}
COMPACT = {"assume": "{name}={role} ok", "cannot": "{name}={role} no: {who}={who_is}",
           "back": "{failed} out, back to {name}"}


def listed(items) -> str:
    *most, last = items
    return f"{', '.join(most)}{',' if len(most) > 1 else ''} and {last}" if most else last


def answer_text(roles, names, words) -> str:
    return ", ".join(f"{name} is {words['a_knight' if role else 'a_knave']}"
                     for name, role in zip(names, roles))


def claim_text(statement, names, words, compact=False, roles=None) -> str:
    """A claim in words; with `roles`, its parts as true or false where people have those."""
    op, parts = statement[0], parts_of(statement)
    if len(parts) > 1:
        texts = [claim_text(part, names, words, compact, roles) for part in parts]
        word = op if op != "<=>" else "iff" if compact else "if and only if"
        return f"if {texts[0]} then {texts[1]}" if op == "->" else f" {word} ".join(texts)
    leaf, person = parts[0] if op == "not" else statement
    if roles:
        says_knight = (leaf == "telling-truth") != (op == "not")
        true = roles[person] == says_knight
        return "FT"[true] if compact else ("false", "true")[true]
    role = words["a_knight" if leaf == "telling-truth" else "a_knave"]
    return f"{names[person]} is {'not ' if op == 'not' else ''}{role}"


def quiz_text(rng, statements, names, words) -> str:
    """The puzzle in words; `rng` chooses how each claim is introduced."""
    sentences = []
    for name, statement in zip(names, statements):
        claim = claim_text(statement, names, words)
        quote = claim[0].upper() + claim[1:]
        sentences.append(SAYS[int(rng.random() * 4)].format(name=name, claim=claim, quote=quote))
    return QUIZ.format(count=len(names), people=listed(names), said=" ".join(sentences), **words)


def compact_prompt(statements, names, words) -> str:
    """The puzzle for tiny models: a line for each claim, and a question mark."""
    return "".join(f"{name}: {claim_text(statement, names, words, True)}\n"
                   for name, statement in zip(names, statements)) + "?\n"


def step_text(step, statements, names, words, compact=False) -> str:
    """A step as a line of text, short and regular if compact."""
    kind, *rest = step
    if kind == "answer":
        return f"\\boxed{{{answer_text(rest[0], names, words)}}}"
    if kind in ("table", "worked"):
        return row_text(step, statements, names, words, compact)
    text = (COMPACT if compact else SENTENCES)[kind]
    if kind == "back":
        failed = (" ".join if compact else listed)([names[who] for who in rest[0]])
        return text.format(failed=failed, name=names[rest[1]])
    called = ("F", "T") if compact else (words["a_knave"], words["a_knight"])       # by role
    # "assume": the claim is the person's own
    person, role, who, who_role = rest if kind == "cannot" else rest * 2
    return text.format(name=names[person], role=called[role], who=names[who],
                       who_is=called[who_role], truth="true" if who_role else "false",
                       claim=claim_text(statements[who], names, words))


def row_text(step, statements, names, words, compact: bool) -> str:
    """The roles in a row, then whose claims fit there, up to the first that does not."""
    kind, roles, misfit = step
    yes, no, shown = ("ok", "no", " {}") if compact else ("fits", "does not", " ({})")
    verdicts = []
    for person, name in enumerate(names[:None if misfit is None else misfit + 1]):
        if kind == "worked":
            name += shown.format(claim_text(statements[person], names, words, compact, roles))
        verdicts.append(f"{name} {no if person == misfit else yes}")
    if compact:
        case = " ".join(f"{name}={'FT'[role]}" for name, role in zip(names, roles))
        return f"{case}: {', '.join(verdicts)}"
    return f"If {answer_text(roles, names, words)}: {', '.join(verdicts)}."


# ---- reading a response ----------------------------------------------------------------------
def lines_of(text: str) -> list[str]:
    """The lines of a response, and the sentences of a paragraph. Of the final answer, its box."""
    text = re.sub(r"^The final answer is: (.*\})\.$", r"\1", text, flags=re.MULTILINE)
    return [part.strip() for line in text.splitlines() for part in re.split(r"(?<=\.) ", line)]


def read_steps(text, statements, names, words, compact=False) -> list[tuple]:
    """The steps of a response, whoever wrote it; a line that is none becomes ("?", line).

    The names and roles in a line tell which steps it can be. A step counts only if it gives exactly
    this line when it is written out. So a wrong word in a reason is noticed as well.
    """
    some_role = re.compile(r"(?<==)[TF]\b|\b(?:{a_knight}|{a_knave})\b".format(**words))
    some_name = re.compile(rf"(?<![\w=])(?:{'|'.join(map(re.escape, names))})(?!\w)")
    frame = {"", FOOT, *(head.format(**words) for head in HEADS.values())}
    steps = []
    for line in filter(lambda line: line not in frame, lines_of(text)):
        mentioned = [names.index(name) for name in some_name.findall(line)]
        roles = [role in ("T", words["a_knight"]) for role in some_role.findall(line)]
        possible = []
        if mentioned and roles:
            possible += [("assume", mentioned[0], roles[0]), ("answer", tuple(roles))]
        if mentioned and len(roles) == len(names):
            possible += [(style, tuple(roles), misfit) for style in ("table", "worked")
                         for misfit in (None, *set(mentioned))]
        if len(mentioned) > 1:
            possible += [("back", tuple(mentioned[:-1]), mentioned[-1])]
        if len(mentioned) > 1 and len(roles) > 1:
            possible += [("cannot", mentioned[0], roles[0], mentioned[1], roles[1])]
        steps.append(next((step for step in possible if line == step_text(
            step, statements, names, words, compact)), ("?", line)))
    return steps


# The lines around the reasoning, whatever the roles are called; then the lines of each style.
FRAME = re.compile("|".join(re.sub(r"\\{\w+\\}", r"an? \\w+", re.escape(line))
                            for line in ("", *HEADS.values(), FOOT)))
ROW = (r"(?:(?:\S+=[TF] )*\S+=[TF]|If (?:(?!: ).)+): {0} (?:ok|no|fits|does not)\.?"
       r"(?:, {0} (?:ok|no|fits|does not)\.?)*")
LINES = {"search": re.compile(          # (?=.*\.$): without a full stop at the end, give up at once
    r"\S+=[TF] (ok|no: \S+=[TF])|.+ out, back to \S+|(?=.*\.$)(Assume .+; that is possible\.|"
    # (?=(?P<who>...))(?P=who): only the first "cannot be" counts, or it would take quadratic time
    r"(?=(?P<who>.+? cannot be ))(?P=who).+, because .+\.|"
    r"No role is left for .+?, so reconsider .+\.)"),
         "table": re.compile(ROW.format(r"\S+")),
         "worked": re.compile(ROW.format(r"(?:(?!, ).)+"))}


def style_of(response: str) -> str:
    """The style of all lines before the last box, one of STYLES; else "mixed" or "other".

    What counts is how it is written, not whether it is right. Of an answer that was cut off, the
    last line does not count: it may be half a line.
    """
    lines = lines_of(response)
    boxes = [number for number, line in enumerate(lines) if "\\boxed{" in line]
    lines = lines[:boxes[-1]] if boxes else lines[:-1] or lines
    styles = {next((style for style, form in LINES.items() if form.fullmatch(line)), "other")
              for line in lines if not FRAME.fullmatch(line)} or {"guess" if boxes else "other"}
    if len(styles) > 1:
        return "other" if "other" in styles else "mixed"
    return styles.pop()


# ---- files -----------------------------------------------------------------------------------
# How official files write a statement: a leaf, or an operator over leaves.
LEAF = r"\('(?:telling-truth|lying)', (?:\d|10|11)\)"
STATEMENT = (rf"(?:{LEAF}|\('not', {LEAF}\)|\('(?:->|<=>)', {LEAF}, {LEAF}\)"
             rf"|\('(?:and|or)', {LEAF}(?:, {LEAF})+\))")


def read_statements(text: str):
    """The statements as official files hold them: a tuple, written as a string."""
    if not re.fullmatch(rf"\({STATEMENT}(?:, {STATEMENT}){{1,11}}\)", str(text)):
        raise ValueError(f"`statements` is not a string of 2 to 12 statements: {text!r:.100}")
    statements = ast.literal_eval(text)                         # reads literals, runs nothing
    if max(map(int, re.findall(r"\d+", text))) >= len(statements):
        raise ValueError(f"a statement is about somebody who is not among the {len(statements)}")
    if (count := len(solve(statements))) != 1:
        raise ValueError(f"the puzzle has {count} solutions instead of one")
    return statements


def different_texts(names, count: int) -> bool:
    return isinstance(names, list) and len(names) == count == len(
        {name for name in names if isinstance(name, str) and name})


def read_puzzles(path: str) -> list[tuple]:
    """(row, statements) for each row of a K&K file or a folder of such files, public or ours."""
    puzzles = []
    for file in data_files([path]):
        for number, row in numbered_rows(file, "statements", "names"):
            try:
                puzzles.append((row, statements_of(row)))
            except ValueError as error:
                raise ValueError(f"{file}:{number}: {error}") from None
    return puzzles


def statements_of(row: dict):
    """The statements of a row, once its names and role words are found to be right."""
    words = row["knight_knave"] = row.get("knight_knave") or KNIGHT_KNAVE
    roles = [words.get("knight"), words.get("knave")] if isinstance(words, dict) else []
    statements = read_statements(row["statements"])
    if not different_texts(row["names"], len(statements)):
        raise ValueError(f"`names` does not name the {len(statements)} people")
    if not different_texts(roles, 2):
        raise ValueError("`knight_knave` does not name the two roles")
    return statements


def puzzle_line(settings, rng, puzzle_id, index, statements, source) -> dict:
    """A puzzle as a line of the file: our fields, then the official ones."""
    compact, style = settings.template == "compact", settings.cot or "search"
    # Always shuffled: `rng` then gives the same later draws with every template.
    shuffled = sorted(NAMES, key=lambda _: rng.random())
    names, words = list("ABCDEFGHIJKL" if compact else shuffled)[:len(statements)], KNIGHT_KNAVE
    if source:
        names, words = source["names"], role_words(**source["knight_knave"])
    quiz = quiz_text(rng, statements, names, words)
    prompt = (compact_prompt(statements, names, words) if compact else
              prompt_text(quiz + kk_suffix(words), settings.template))
    steps = chain_of_thought(statements, style)
    _, solution = steps[-1]
    gold = answer_text(solution, names, words)
    *steps, box = [step_text(step, statements, names, words, compact) for step in steps]
    head, foot = ("", "") if compact or style == "guess" else (HEADS[style].format(**words), FOOT)
    line = {"id": puzzle_id, "task": "kk", "prompt": prompt, "gold": gold, "level": len(names)}
    if settings.cot:
        line |= as_example(prompt, style, compact, [*filter(None, (head, *steps, foot))], box)
    parts = gold.split(", ")
    return {**line, "quiz": quiz, "names": names, "knight_knave": words, "solution": solution,
            "solution_text": f"{', '.join(parts[:-1])}, and {parts[-1]}.",
            "solution_text_format": "\n".join(f"({i}) {text}" for i, text in enumerate(parts, 1)),
            "cot_head": head, "cot_repeat_steps": steps, "cot_foot": foot,
            "statements": repr(statements), "index": index}


def as_example(prompt: str, style: str, compact: bool, lines: list[str], box: str) -> dict:
    """For SFT, as in the paper: the newline is the response's, and a short chain is a paragraph."""
    if style == "search" and not compact:
        lines, box = [" ".join(lines)], f"The final answer is: {box}."
    if compact or prompt.endswith("\n\n"):      # `direct` has a line of its own before the answer.
        return {"response": "\n".join([*lines, box])}
    return {"prompt": prompt.removesuffix("\n"), "response": "\n".join(["", *lines, box])}


# ---- the command -----------------------------------------------------------------------------
def people_counts(text: str) -> list[int]:
    """From "3-5,8" to [3, 4, 5, 8]."""
    spans = [re.fullmatch(r" *(\d{1,9})(?:-(\d{1,9}))? *", part) for part in text.split(",")]
    ends = [(int(span[1]), int(span[2] or span[1])) for span in spans if span]
    if len(ends) < len(spans) or not all(2 <= first <= last <= 12 for first, last in ends):
        raise ValueError(f"people = {text}: write it as 3, 3-7 or 2,3,5, from 2 to 12")
    return sorted({count for first, last in ends for count in range(first, last + 1)})


def take(statements, ours: set, excluded: set) -> bool:
    """Whether a puzzle is neither ours nor excluded. From now on it is ours."""
    form = canonical_form(statements)
    if form in ours or excluded and canonical_form(statements, commute=True) in excluded:
        return False
    ours.add(form)
    return True


def new_puzzles(settings, people: int, source: list[tuple], excluded: set):
    """(id, index, statements, line of the source or None) for each puzzle of so many people."""
    ours, rng = set(), random.Random(f"puzzles of {people}, seed {settings.seed}")
    if settings.source:
        source = [puzzle for puzzle in source if len(puzzle[1]) == people][:settings.num]
        name = os.path.basename(os.path.normpath(settings.source))
        for index, (line, statements) in enumerate(source):
            if take(statements, ours, excluded):
                yield line.get("id", f"kk{people}-{name}-{index}"), index, statements, line
        return
    for index in range(settings.num):
        draws = (sample_puzzle(rng, people) for _ in range(GIVE_UP_AFTER))
        new = next((statements for statements in draws if take(statements, ours, excluded)), None)
        if new is None:
            raise ValueError(f"found only {index} new puzzles of {people} people: the last"
                             f" {GIVE_UP_AFTER:,} draws had come before or are excluded")
        yield f"kk{people}-{settings.seed}-{index}", index, new, None


def main(settings: Settings) -> None:
    counts, lines = people_counts(settings.people), []
    if settings.out:
        check_output(settings.out, filter(None, [settings.source, *settings.exclude]))
    elif settings.show:
        settings.num = min(settings.num, settings.show)
    else:
        raise ValueError("give --out FILE, or --show N to print N examples")
    source = read_puzzles(settings.source) if settings.source else []
    excluded = {canonical_form(statements, commute=True)
                for path in settings.exclude for _, statements in read_puzzles(path)}
    total = None if settings.source else settings.num * len(counts)
    with tqdm(total=total, unit=" puzzles", disable=None) as bar:
        for people in counts:
            rng = random.Random(f"words for {people}, seed {settings.seed}")
            for puzzle in new_puzzles(settings, people, source, excluded):
                lines.append(puzzle_line(settings, rng, *puzzle))
                bar.update()
    if not lines:
        raise ValueError(f"{settings.source}: no new puzzle of {settings.people} people")
    if settings.out:
        write_jsonl(settings.out, lines)
    every = -(-len(lines) // max(1, settings.show))             # examples from all over the file
    for line in lines[::every][:settings.show]:
        print(f"--- {line['id']}: {line['gold']}\n{line['prompt']}{line.get('response', '')}\n")
    print(f"{len(lines):,} puzzles of {settings.people} people: {settings.out or 'not written'}")


if __name__ == "__main__":
    command(main, parse(Settings, __doc__))
