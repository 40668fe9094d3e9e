"""Do two answers say the same?

In this file p is always the prediction and g the gold answer, or parts of them at the same place.
In doubt they are different: reinforcement learning finds and uses every wrong yes.
"""
import re
from decimal import Context, Decimal, localcontext
from fractions import Fraction
from operator import ge, gt, le, lt, ne

from answers.latex import Unreadable, is_prose, require, tidy
from answers.numbers import CONTEXT, Complex, inexact, is_real, same_number, values
from answers.tree import INFINITY, MINUS_ONE, has, parts_of, read, times

COMPARE = {"<": lt, ">": gt, "≤": le, "≥": ge, "≠": ne}


def same_scalar(p: tuple, g: tuple) -> bool:
    """Are they equal at every point where both are real? Other points count only if there are none.

    So ln x² is 2 ln x, though not for the complex logarithms of a negative x. But |x| is not x.
    """
    a, b = values(p), values(g)
    points = max(len(a), len(b))
    exact = [number for number in a + b if isinstance(number, Fraction)]
    if points == 1 == len(exact) and exact[0].denominator > 10**25:
        return False                                         # √2 cut after 25 digits is not √2.
    pairs = [pair for pair in zip(a * (points // len(a)), b * (points // len(b)))
             if None not in pair]
    imaginary = has((p, g), ("constant", "i"))
    real = [pair for pair in pairs if imaginary or all(map(is_real, pair))]
    return bool(pairs) and all(same_number(*pair) for pair in real or pairs)


def is_name(tree: tuple) -> bool:
    """x, x_1, f(x), ABC, A:B, (x, y), a text: something to which a value can be given."""
    if tree[0] == "^":
        return tree[2] == MINUS_ONE and is_name(tree[1])
    if tree[0] in ("*", "group"):
        return all(is_name(part) for part in tree[1:] if isinstance(part, tuple))
    return tree[0] in ("variable", "text", "index")


def named(tree: tuple) -> tuple[tuple | None, tuple]:
    """`x = 5`, 5 = x, x = 2 + 3 = 5 or x ∈ A as (x, 5 or A); (None, tree) if nothing is named."""
    if tree[0] != "relation":
        return None, tree
    ops, parts = tree[1], tree[2:]
    if "≈" in ops:                                           # x = 1/3 ≈ 0.33 is 1/3, x ≈ 3 is 3
        end = ops.index("≈") + (ops[0] == "≈" and is_name(parts[0]))
        ops, parts = ops[:end].replace("≈", "="), parts[:end + 1]
    if set(ops) <= {"="} or ops == "∈":
        if is_name(parts[0]) and len(parts) > 1:
            return parts[0], parts[-1]
        if parts[-1][0] == "variable" and not has(parts[0], "variable"):
            return parts[-1], parts[0]
        if not has(tree, "variable") and all(same(parts[0], part) for part in parts[1:]):
            return None, parts[-1]                           # 2 + 1 = 3
    return None, tree


def same_relation(p: tuple, g: tuple) -> bool:
    """Is one equation the other times a constant, one inequality the other times a positive one?"""
    kinds, sides = [], []
    for tree in (p, g):
        if tree[0] != "relation" or tree[1] not in ("=", "<", ">", "≤", "≥"):
            return False
        left, right = tree[2:] if tree[1] in "=<≤" else (tree[3], tree[2])
        kinds.append({">": "<", "≥": "≤"}.get(tree[1], tree[1]))
        sides.append(values(("+", left, times(MINUS_ONE, right))))
    pairs = [pair for pair in zip(*sides) if None not in pair]
    if kinds[0] != kinds[1] or len(pairs) < 2 or any(
            same_number(number, Fraction(0)) for pair in pairs for number in pair):
        return False
    ratios = [a / b for a, b in pairs]
    return all(same_number(ratios[0], ratio) for ratio in ratios) and (
        kinds[0] == "=" or is_real(ratios[0]) and ratios[0].real > 0)


def endpoint(tree: tuple) -> Decimal:
    """A point on the real line, rounded to 35 digits so that equal points coincide."""
    if tree in (INFINITY, times(MINUS_ONE, INFINITY)):
        return Decimal("Infinity" if tree == INFINITY else "-Infinity")
    numbers = values(tree)
    require(len(numbers) == 1 and numbers[0] is not None and is_real(numbers[0]))
    return Context(prec=35).plus(inexact(numbers[0]).real)


def region(tree: tuple) -> tuple:
    """(endpoints, test of membership, variable) of a set of reals, however it is written."""
    kind = tree[0]
    if kind == "reals":
        return [], lambda x: True, None
    if kind == "set":
        points = [endpoint(part) for part in tree[1:]]
        return points, lambda x: x in points, None
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
    if kind in ("∪", "∩", "∖") or kind == "list" and tree[1] in "∧∨" and tree[2][0] == "relation":
        op, parts = (tree[1], tree[2:]) if kind == "list" else (kind, tree[1:])
        cuts, tests, names = zip(*map(region, parts))
        require(len(set(names) - {None}) < 2)
        member = any if op in "∪∨" else all
        return sum(cuts, []), lambda x: (
            tests[0](x) and not any(test(x) for test in tests[1:]) if op == "∖"
            else member(test(x) for test in tests)), names[0]
    raise Unreadable


def same_region(p: tuple, g: tuple) -> bool | None:
    """Do two sets of reals agree at every endpoint, between and outside? None: not such sets."""
    try:
        (cuts, in_p, name_p), (more, in_g, name_g) = region(p), region(g)
    except Unreadable:
        return None
    cuts = sorted({cut for cut in cuts + more if cut.is_finite()})
    between = [(a + b) / 2 for a, b in zip(cuts, cuts[1:])]
    outside = [cuts[0] - 1, cuts[-1] + 1] if cuts else [Decimal(0)]
    return len({name_p, name_g} - {None}) < 2 and all(
        in_p(x) == in_g(x) for x in cuts + between + outside)


def same_parts(p: tuple, g: tuple) -> bool:
    """In any order, unless only one side says which value has which name (x = 1, y = 2)."""
    if len(p) != len(g):
        return False
    names = [len({named(part)[0] for part in side} - {None}) for side in (p, g)]
    if max(names) > 1 and min(names) == 0:
        return all(map(same, p, g))
    left, rest = list(g), []
    for part in p:                                           # First, those that are written alike.
        left.remove(part) if part in left else rest.append(part)
    for part in rest:
        match = next((other for other in left if same(part, other)), None)
        if match is None or len(rest) > 30:
            return False
        left.remove(match)
    return True


def same(p: tuple, g: tuple) -> bool:
    """Do two trees, a prediction's and a gold answer's, say the same?"""
    if p == g:
        return True
    (name_p, value_p), (name_g, value_g) = named(p), named(g)
    if (value_p, value_g) != (p, g):                         # x = 5 is 5, but it is not y = 5
        return len({name_p, name_g} - {None}) < 2 and same(value_p, value_g) or same_relation(p, g)
    if (regions := same_region(p, g)) is not None:
        return regions
    kinds, p_parts, g_parts = {p[0], g[0]}, parts_of(p), parts_of(g)
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
    if g[0] == "base":                                       # A base may be left out, not changed.
        return p == ("number", Fraction(g[1]))
    return same_relation(p, g) or not kinds & {
        "group", "relation", "text", "reals", "∪", "∩", "∖"} and same_scalar(p, g)


def plain(tidied: str) -> str:
    """The answer without fonts and spaces. Equal ones are equal, even where nothing can be read."""
    text = re.sub(r"\\(?:text\w*|mbox|mathrm)\s*\{([^{}]*)\}", r"\1", tidied)
    text = re.sub(r"\\(?:left|right|displaystyle)(?![A-Za-z])|\\[ ,;!]", " ", text)
    return re.sub(r"(?<!\d)\s+|\s+(?!\d)", "", text)         # But "1 0" is not 10.


def is_printed_float(prediction: tuple, gold: str) -> bool:
    """A gold of 4.123105625617661 is a program's √17: the one rounding that is accepted."""
    if not re.fullmatch(r"-?\d+\.\d{14,17}", gold):
        return False
    z, last_digit = values(prediction)[0], Decimal(10) ** -len(gold.partition(".")[2])
    return isinstance(z, Complex) and is_real(z) and abs(z.real - Decimal(gold)) < last_digit


def math_equal(prediction: str, gold: str) -> bool:
    """Is this answer mathematically the gold one? Both are LaTeX, or what models write for it."""
    prediction, gold = " ".join(prediction.split()), " ".join(gold.split())
    if prediction == gold or not prediction or not gold:
        return prediction == gold != ""
    try:
        p, g = tidy(prediction), tidy(gold)
    except Unreadable:                                       # too long
        return False
    letter = re.fullmatch(r"\(?[A-J]\)?", g)                 # A or (a): one of several choices
    if plain(p) == plain(g) or (letter or is_prose(p) and is_prose(g)) and (
            plain(p).casefold() == plain(g).casefold()):
        return True
    # 58,500 is a number. Where a comma has a space or brackets, it may also be a list.
    lists = "," in p + g and re.search(r"\d, \d{3}|[({\[]", p + " " + g)
    for thousands in (True, False) if lists else (True,):
        try:
            (p_tree, units), (g_tree, wanted) = read(p, thousands), read(g, thousands)
            if units == wanted or not units or not wanted:   # A unit may be left out, not changed.
                with localcontext(CONTEXT):
                    if same(p_tree, g_tree) or is_printed_float(p_tree, g):
                        return True
        except (Unreadable, ArithmeticError):                # Huge numbers can overflow even here.
            continue
    return False
