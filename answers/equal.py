"""Do two answers say the same?

In this file p is always the prediction and g the gold answer, or parts of them at the same place.
In doubt they are different: reinforcement learning finds and uses every wrong yes.
"""
import math
import re
from decimal import Context, Decimal, localcontext
from fractions import Fraction
from functools import lru_cache
from operator import eq, ge, gt, le, lt, ne

from answers.latex import OPAQUE, is_prose, tidy
from answers.numbers import CONTEXT, Complex, is_real, points, same_number, value_at
from answers.tree import INFINITY, MINUS_ONE, has, parts_of, read, times
from answers.words import Unreadable, require

STRUCTURES = {*"∪∩∖", "list", "set", "group", "relation", "text", "reals", "ratio", "mod"}
LISTS = re.compile(r"\d, \d{3}|[({\[]")     # With these, a comma may be that of a list.
COMPARE = {"<": lt, ">": gt, "≤": le, "≥": ge, "≠": ne, "=": eq}


def values(p: tuple, g: tuple):
    """The numbers of two formulas at every point where both have one."""
    for point in points(p, g):
        a, b = value_at(p, point), value_at(g, point)
        if a is not None and b is not None:
            yield a, b


def same_scalar(p: tuple, g: tuple) -> bool:
    """Are they equal at every point where both are real? Other points count only if there are none.

    So ln x² is 2 ln x, though not for the complex logarithms of a negative x. But |x| is not x.
    """
    imaginary = has((p, g), ("constant", "i"))
    some_real, others = False, []
    for a, b in values(p, g):
        if not imaginary and not (is_real(a) and is_real(b)):
            others.append(same_number(a, b))
        elif same_number(a, b):
            some_real = True
        else:
            return False
    return some_real or others != [] and all(others)


def difference(relation: tuple) -> tuple:
    """What must be 0, or not above 0."""
    left, right = relation[2:] if relation[1] in "=<≤" else (relation[3], relation[2])
    return ("+", left, times(MINUS_ONE, right))


def same_relation(p: tuple, g: tuple) -> bool:
    """Is one equation the other times a constant, one inequality the other times a positive one?"""
    if p[0] != "relation" or g[0] != "relation" or not {p[1], g[1]} <= {*"=<>≤≥"}:
        return False
    ratios = []
    for a, b in values(difference(p), difference(g)):
        zeros = same_number(a, Fraction(0)), same_number(b, Fraction(0))
        if not any(zeros):
            ratios.append(a / b)
        if zeros[0] != zeros[1] or ratios and not same_number(ratios[0], ratios[-1]):
            return False
    positive = len(ratios) > 1 and is_real(ratios[0]) and ratios[0].real > 0
    alike = g[1], {"<": ">", ">": "<", "≤": "≥", "≥": "≤"}.get(g[1])     # 1 < x is x > 1
    return len(ratios) > 1 and p[1] in alike and (p[1] == "=" or positive)


def is_name(tree: tuple) -> bool:
    """x, x_1, f(2), ABC, A:B, (x, y), det A, |z|, a text: something that can be given a value."""
    kind, *parts = tree
    if kind == "^":
        return parts[1] == MINUS_ONE and is_name(parts[0])
    if kind == "function":                                # |z| = 5 is a size, |x| = 5 an equation
        known = re.findall(r"'variable', '(.*?)'", str(tree))
        return parts[0] in OPAQUE or parts[0] in ("|", "sin", "cos", "tan") and is_name(
            parts[1]) and all(re.fullmatch("[A-Zzw]|..+", name) for name in known)
    if kind == "*" and re.fullmatch(r"\('variable', '([fghpqFGHPQ]|.′+)'\)", str(parts[0])):
        return True
    if kind in ("*", "+", "group", "ratio"):
        return all(is_name(part) for part in parts if isinstance(part, tuple))
    return kind in ("variable", "text", "index")


def named(tree: tuple) -> tuple[tuple | None, tuple]:
    """`x = 5`, 5 = x, x = 2 + 3 = 5 or x ∈ A as (x, 5 or A); (None, tree) if nothing is named."""
    if tree[0] != "relation":
        return None, tree
    ops, parts = tree[1], tree[2:]
    if "≈" in ops:                                           # x = 1/3 ≈ 0.33 is 1/3, x ≈ 3 is 3
        end = ops.index("≈") + (ops[0] == "≈" and is_name(parts[0]))
        ops, parts = ops[:end].replace("≈", "="), parts[:end + 1]
    if set(ops) <= {"="} or ops == "∈":
        if is_name(parts[0]) and len(parts) > 1 and all(     # But x = 3 = 4 tells nothing.
                part[0] != "number" or same(part, parts[-1]) for part in parts):
            return parts[0], parts[-1]
        if parts[-1][0] == "variable" and not has(parts[0], "variable"):
            return parts[-1], parts[0]
        if not has(tree, "variable") and all(same(parts[0], part) for part in parts[1:]):
            return None, parts[-1]                           # 2 + 1 = 3
    return None, tree


def endpoint(tree: tuple) -> Fraction | float:
    """A point on the real line. Inexact ones are rounded, so that equal points coincide."""
    if tree in (INFINITY, times(MINUS_ONE, INFINITY)):
        return math.inf if tree == INFINITY else -math.inf
    number = value_at(tree, 0)
    require(not has(tree, "variable") and number is not None and is_real(number))
    if isinstance(number, Fraction):
        return number
    require(not number.size or abs(number.size.adjusted()) < 999)
    return Fraction(Context(prec=50).plus(number.real))


@lru_cache(4096)
def region(tree: tuple) -> tuple:
    """(endpoints, test of membership, variable) of a set of reals, however it is written."""
    kind = tree[0]
    if kind == "reals":
        return [], lambda x: True, None
    if kind == "set":
        elements = [endpoint(part) for part in tree[1:]]
        return elements, lambda x: x in elements, None
    if kind == "group" and len(tree) == 5:                   # (1, 2] is 1 < x ≤ 2
        require(endpoint(tree[3]) < endpoint(tree[4]))
        ops = ("≤" if tree[1] == "[" else "<") + ("≤" if tree[2] == "]" else "<")
        return *region(("relation", ops, tree[3], ("variable", ""), tree[4]))[:2], None
    if kind == "relation" and set(tree[1]) <= COMPARE.keys():
        line = [None if part[0] in ("variable", "index") else endpoint(part) for part in tree[2:]]
        require(line.count(None) == 1)
        return [point for point in line if point is not None], lambda x: all(
            COMPARE[op](x if a is None else a, x if b is None else b)
            for op, a, b in zip(tree[1], line, line[1:])), tree[2 + line.index(None)]
    if kind == "list" and tree[1] in "∧∨":                   # But x = 1 and x = 2 are two values.
        require(all(part[0] == "relation" and "=" not in part[1] for part in tree[2:]))
        return region(("∩" if tree[1] == "∧" else "∪", *tree[2:]))
    require(kind in "∪∩∖")
    cuts, tests, names = zip(*map(region, tree[1:]))
    require(len(set(names) - {None}) < 2)
    member = {"∪": any, "∩": all, "∖": lambda found: next(found) and not any(found)}[kind]
    return sum(cuts, []), lambda x: member(test(x) for test in tests), max(names, key=bool)


def same_region(p: tuple, g: tuple) -> bool | None:
    """Do two sets of reals agree at every endpoint, between and outside? None: not such sets."""
    try:
        (cuts, in_p, name_p), (more, in_g, name_g) = region(p), region(g)
    except Unreadable:
        return None
    cuts = sorted({cut for cut in cuts + more if abs(cut) < math.inf})
    between = [(a + b) / 2 for a, b in zip(cuts, cuts[1:])]
    outside = [cuts[0] - 1, cuts[-1] + 1] if cuts else [Fraction(0)]
    return len({name_p, name_g} - {None}) < 2 and all(
        in_p(x) == in_g(x) for x in cuts + between + outside)


def same_parts(p: tuple, g: tuple) -> bool:
    """In any order, unless only one side says which value has which name (x = 1, y = 2)."""
    if len(p) != len(g):
        return False
    names = [len({named(part)[0] for part in side} - {None}) for side in (p, g)]
    if max(names) > 1 and min(names) == 0:
        return all(map(same, p, g))
    left = list(g)
    for part in sorted(p, key=g.count, reverse=True):        # First, those that are written alike.
        alike = part in left or len(left) > 30
        match = part if alike else next((other for other in left if same(part, other)), part)
        if match not in left:
            return False
        left.remove(match)
    return True


def same_ratio(p: tuple, g: tuple) -> bool:
    """1:2 is 2:4 and 1/2. But a gold 4:30 may be a time, which is not 2:15."""
    if g[:2] == ("ratio", "time"):
        hours, minutes = g[2][1], g[3][1]
        return p[0] != "ratio" and minutes > 9 and math.gcd(int(hours), int(minutes)) == 1 and (
            len(g) == 4 and same_scalar(p, g))
    if p[0] == g[0]:
        return len(p) == len(g) and value_at(p[2], 0) != 0 != value_at(g[2], 0) and all(
            same_scalar(times(a, g[2]), times(b, p[2])) for a, b in zip(p[3:], g[3:]))
    return same_scalar(p, g)


def same_residue(p: tuple, g: tuple) -> bool:
    """10 (mod 7) is 3 (mod 7). One may leave its (mod 7) out, but 3 is not 3 (mod 2)."""
    (a, *m), (b, *n) = (tree[1:] if tree[0] == "mod" else (tree,) for tree in (p, g))
    return same_scalar(p, g) and (m == n or not (m and n) and same_scalar(a, b))


def same_units(p: frozenset, g: frozenset) -> bool:
    """Units may be left out, not changed. Of nouns, one side may say more: red apples."""
    nouns_p, nouns_g = ({word for word in side if word.startswith("a ")} for side in (p, g))
    return not p or not g or p - nouns_p == g - nouns_g and (
        nouns_p <= nouns_g or nouns_g <= nouns_p)


def same(p: tuple, g: tuple) -> bool:
    """Do two trees, a prediction's and a gold answer's, say the same?"""
    if p == g or p[0] == g[0] == "number":
        return p == g
    (name_p, value_p), (name_g, value_g) = named(p), named(g)
    if (value_p, value_g) != (p, g):                         # x = 5 is 5, but it is not y = 5
        # m + n = 7 tells a value. But 7 does not tell the line x + y = 7.
        line = name_p is None and name_g is not None and name_g[0] == "+"
        return not line and len({name_p, name_g} - {None}) < 2 and same(
            value_p, value_g) or same_relation(p, g)
    if g[0] == "base":                                       # A base may be left out, not changed.
        return p == ("number", Fraction(g[1]))
    kinds, p_parts, g_parts = {p[0], g[0]}, parts_of(p), parts_of(g)
    if not kinds & STRUCTURES:
        return same_scalar(p, g)
    if (regions := same_region(p, g)) is not None:
        return regions
    if kinds & {"ratio", "mod"}:
        return same_ratio(p, g) if "ratio" in kinds else same_residue(p, g)
    if kinds <= {"list", "set"}:
        return same_parts(p_parts, g_parts)
    if kinds == {"list", "group"} and ("(", ")") in (p[1:3], g[1:3]):       # 15, -29 for (15, -29)
        p_parts, g_parts = [tree[2 if tree[0] == "list" else 3:] for tree in (p, g)]
        return len(p_parts) == len(g_parts) and all(map(same, p_parts, g_parts))
    if kinds & {"list", "set"}:                              # {5} for 5
        return len(p_parts) == len(g_parts) == 1 and same(p_parts[0], g_parts[0])
    if kinds == {"group"}:                                   # But [a, b) is not (a, b].
        other_ends = len(p) == 5 and has((p, g), "variable") and p[1:3] != g[1:3]
        return len(p) == len(g) and not other_ends and all(map(same, p[3:], g[3:]))
    return same_relation(p, g)


def plain(tidied: str) -> str:
    """The answer without fonts and spaces. Equal ones are equal, even where nothing can be read."""
    text = re.sub(r"\\(?:text\w*|mbox|mathrm)\s*\{([^{}]*)\}", r"\1", tidied)
    text = re.sub(r"\\(?:left|right|displaystyle)(?![A-Za-z])|\\[ ,;!]", " ", text)
    return re.sub(r"(?<!\d)\s+|\s+(?!\d)", "", text)         # But "1 0" is not 10.


def is_printed_float(prediction: tuple, gold: str) -> bool:
    """A gold of 4.123105625617661 is a program's √17: the one rounding that is accepted."""
    if not re.fullmatch(r"-?\d+\.\d{14,17}", gold):
        return False
    z, last_digit = value_at(prediction, 0), Decimal(10) ** -len(gold.partition(".")[2])
    return isinstance(z, Complex) and is_real(z) and abs(z.real - Decimal(gold)) < last_digit


def choice(tidied: str) -> tuple[str, str]:
    """\\textbf{(A)}\\ 6 as ("A", "6"), any other answer as ("", answer)."""
    match = re.match(r"\\(?:text\w*|mbox|math\w*)\s*\{\s*\(([A-J])\)[ :]*\}|\(([A-J])\)(?=[ \\])",
                     tidied)
    rest = re.sub(r"^(?:\\[ ,;:!]|\\q?quad\b|[ :])+", "", tidied[match.end():]) if match else ""
    if not rest or not match[1] and rest[0] in "+-*/^_=<>!,|)" or re.search(
            r"\b(?:[A-J]|or|and|not)\b", rest):
        return "", tidied
    return match[1] or match[2], rest


def same_reading(p: tuple, units_p: frozenset, g: tuple, units_g: frozenset, gold: str) -> bool:
    try:
        with localcontext(CONTEXT):
            return same_units(units_p, units_g) and (same(p, g) or is_printed_float(p, gold))
    except (Unreadable, ArithmeticError):                    # Huge numbers can overflow even here.
        return False


def reading(text: str, thousands: bool) -> tuple | None:
    try:
        return read(text, thousands)
    except (Unreadable, ArithmeticError):
        return None


@lru_cache(4096)
def understood(answer: str) -> tuple[str, str, str, list]:
    """What one answer says: (letter of a choice or "", tidy text, its spelling, its readings).

    The first reading takes 58,500 for a number, the second for a list.
    """
    letter, text = choice(tidy(answer))
    spelled = plain(text).casefold() if is_prose(text) else plain(text)
    first = reading(text, True)
    return letter, text, spelled, [first, reading(text, False) if "," in text else first]


def math_equal(prediction: str, gold: str) -> bool:
    """Is this answer mathematically the gold one? Both are LaTeX, or what models write for it."""
    prediction, gold = " ".join(prediction.split()), " ".join(gold.split())
    if prediction == gold or not prediction or not gold:
        return prediction == gold != ""
    try:
        letter_p, text_p, p, readings_p = understood(prediction)
        letter_g, text_g, g, readings_g = understood(gold)
    except Unreadable:                                       # too long
        return False
    if letter_p and letter_g and letter_p != letter_g:
        return False
    if p == g or letter_p and g.strip("()") == letter_p or letter_g and p.strip("()") == letter_g:
        return True
    if re.fullmatch(r"\(?[A-J]\)?", g) and p.casefold() == g.casefold():   # one of several choices
        return True
    first, second = zip(readings_p, readings_g)
    lists = first != second and LISTS.search(text_p + " " + text_g)
    for read_p, read_g in (first, second) if lists else (first,):
        if read_p and read_g and same_reading(*read_p, *read_g, text_g):
            return True
    return False
