"""Tokens to a tree, by precedence climbing.

Trees are nested tuples: ("number", 3/2), ("variable", "x"), ("constant", "pi"), ("text", "even"),
("+", a, b, ...), ("*", a, b, ...), ("^", a, b), ("±", number of the sign, a),
("function", name, a, ...), ("index", a, i), ("base", 1101, 2), ("group", "(", "]", a, b, ...),
("set", a, ...), ("reals",), ("list", ",", a, ...), ("∪", a, b, ...), ("relation", "<≤", a, b, c),
("mod", 3, 7), ("ratio", "", 2, 3), and ("ratio", "time", 7, 30) for what may be half past seven.
"""
import re
from fractions import Fraction
from functools import lru_cache

from answers.latex import OPAQUE, TRIGONOMETRIC, UNITS, Unreadable, is_prose, require, tokenize

DEEPEST = 40            # how many expressions may be one inside the other
LIST, RELATION, SETS, SUM, PRODUCT, POWER, POSTFIX = range(7)       # The last binds most tightly.
INFIX = {op: level for level, ops in enumerate(
    (",∧∨⏎", "=<>≤≥≠≈∈→", [*"∪∩∖⁄:", "pmod", "choose"], "+-±∓", ["*", "/", "bmod"], "^",
     "_!%°$€£")) for op in ops}
CLOSING = {"(": ")]", "[": ")]", "⌊": "⌋", "⌈": "⌉", "|": "|", "{": "}", "⦃": "⦄"}
MINUS_ONE, INFINITY, END = ("number", Fraction(-1)), ("constant", "infty"), ("end of text", "")
REALS, NOTHING = ("reals",), ("set",)
SYNONYMS = {"dne": ("text", "does not exist"), "all real numbers": REALS, "all reals": REALS}
SYNONYMS |= {word: ("number", Fraction(n)) for n, word in enumerate("""zero one two three four five
    six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen
    nineteen twenty""".split())}
SYNONYMS |= dict.fromkeys(("no solution", "no solutions", "no real solution", "no real solutions",
                           "none", "empty set"), NOTHING)
SCALES = {"dozen": 12, "hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9,
          "trillion": 10**12}
WHOLE_UNITS = set(UNITS.values())
# After a value these words change or doubt it.
NOT_UNITS = set("""K M B not no non never is are isn't was if then else unless but than because
    since too as wrong false incorrect except maybe possibly probably either neither nor answer
    about factorial negative minus plus over root to out point more less fewer least most under
    above below up around between nearly almost roughly approximately impossible score gross lakh
    crore thirty forty fifty sixty seventy eighty ninety inverse repeating pi nope doubled tripled
    halved added subtracted multiplied divided cubed squared ^2 ^3""".split()) | {
        word for word, tree in SYNONYMS.items() if tree[0] == "number"}
PART = re.compile(r"(?:four|fif|six|seven|eigh|nin|ten|eleven|twelf|\w*teen|\w*tie|hundred|thousand"
                  r"|\w*illion)ths?|\w*illions?|half|halve|third|quarter")          # 3 fourths
LEAD = re.compile(r"(?:(?:so|thus|hence|therefore) )?(?:there (?:are|is)(?: exactly| a total of)?"
                  r"|(?:the )?(?:final |correct )?answer(?: is)?|we (?:get|have))")


def flat(kind: str, left: tuple, right: tuple) -> tuple:
    """`left kind right` as one node with many parts, so that a long sum is not a deep tree."""
    return left + (right,) if left[0] == kind else (kind, left, right)


def times(left: tuple, right: tuple) -> tuple:
    """left · right. A sign goes into its number, a factor into its vector or matrix."""
    if left == MINUS_ONE and right[0] == "number":
        return ("number", -right[1])
    for factor, group in ((left, right), (right, left)):
        if group[0] == "group" and factor[0] not in ("group", "set", "list", "relation"):
            return group[:3] + tuple(times(factor, part) for part in group[3:])
    return flat("*", left, right)


class Parser:
    """`expression(level)` reads everything that binds at least as tightly as `level`."""

    def __init__(self, tokens: list):
        self.tokens, self.at, self.token = tokens + [END, END], 0, (tokens + [END])[0]
        self.units, self.signs = set(), 0           # units, and how many ± and ∓, so far
        self.one_sign = ("op", "∓") in tokens       # Beside a ∓, all signs switch together.
        self.depth, self.angles = 0, 0              # inside how many expressions, and sines etc.
        self.bars = self.cases = False              # Inside |...|, the next bar closes it.

    def take(self) -> tuple:
        """Return the token and go to the next one."""
        token, self.at = self.token, self.at + 1
        self.token = self.tokens[self.at]
        return token

    def accept(self, *ops: str) -> str:
        return self.take()[1] if self.token[0] == "op" and self.token[1] in ops else ""

    def starts_value(self) -> bool:
        if self.token[0] == "op":
            return self.token[1] in ("([{⦃⌊⌈∅ℝ" if self.bars else "([{⦃⌊⌈∅ℝ|")
        return self.token[0] not in ("end of text", "word", "end")

    def deeper(self, nested: bool = True):
        self.depth += nested
        require(self.depth <= DEEPEST)

    def expression(self, level: int) -> tuple:
        self.deeper()
        left = self.prefix(level)
        while True:
            kind, op = self.token
            if kind == "op" and INFIX.get(op, -1) >= level:
                left = self.infix(left, self.take()[1])
            elif kind == "word" and level <= PRODUCT:
                left = self.unit(left)
            elif level <= PRODUCT and self.starts_value():
                require(left[0] != "text" and (kind != "number" or self.may_multiply(left)))
                left = self.product(left, "*")
            else:
                self.depth -= 1
                return left

    def may_multiply(self, left: tuple) -> bool:
        """May a number follow a value? (n - 2)3, 5!3! and n2^n are products. 3 3, 2^{1}0 aren't."""
        (kind, before), (_, behind) = self.tokens[self.at - 1], self.tokens[self.at + 1]
        return before in (")", "]") and left[0] != "number" or (
            kind in ("variable", "op") and behind in ("!", "^"))

    def infix(self, left: tuple, op: str) -> tuple:
        if INFIX[op] == LIST:
            while more := self.accept(",", "∧", "∨"):        # "1, 2, and 3"
                op = more
            op = "," if op == "⏎" else op
            before, parts = (left[1], left[2:]) if left[0] == "list" else ("", (left,))
            return ("list", max(op, before), *parts, self.expression(RELATION))
        if INFIX[op] == RELATION:
            before, parts = (left[1], left[2:]) if left[0] == "relation" else ("", (left,))
            return ("relation", before + op, *parts, self.expression(SETS))
        if op == "pmod":
            return ("mod", left, self.prefix(POSTFIX))
        if op == "bmod":
            return ("function", "mod", left, self.expression(POWER))
        if op == "choose":
            return ("function", "binom", left, self.expression(SUM))
        if op == ":":
            parts = left if left[:2] == ("ratio", "") else ("ratio", "", left)
            return (*parts, self.expression(SUM))
        if op == "⁄":                                        # {a + b \over c}
            return times(left, ("^", self.expression(SUM), MINUS_ONE))
        if INFIX[op] == SETS:
            self.deeper(left[0] in "∪∩∖" and left[0] != op)
            return flat(op, left, self.expression(SUM))
        if INFIX[op] == SUM:
            return flat("+", left, self.signed(op, self.expression(PRODUCT)))
        if INFIX[op] == PRODUCT:
            return self.product(left, op)
        if op == "^":
            return ("^", left, self.expression(POWER))
        if op == "_":
            return self.subscript(left)
        if op == "!":
            self.deeper(left[:2] == ("function", "!"))
            return ("function", "!", left)
        if op == "°" and self.angles:                        # Inside a sine, 1° is π/180.
            return times(left, times(("constant", "pi"), ("number", Fraction(1, 180))))
        self.units.add(UNITS[op])
        return left

    def signed(self, sign: str, tree: tuple) -> tuple:
        if sign in "±∓":
            self.signs += 1
            tree = ("±", 0 if self.one_sign else self.signs - 1, tree)
        return times(MINUS_ONE, tree) if sign in "-∓" else tree

    def product(self, left: tuple, op: str) -> tuple:
        whole = left[0] == self.tokens[self.at - 1][0] == "number" and left[1].denominator == 1
        mixed = whole and self.token[0] == "frac"            # 1\frac{4}{5} is 9/5
        right = self.expression(POWER)
        if mixed and right[0] == "*" and right[1][0] == right[2][1][0] == "number":
            return flat("+", left, right)
        return times(left, ("^", right, MINUS_ONE) if op == "/" else right)

    def subscript(self, left: tuple) -> tuple:
        low = self.prefix(POSTFIX)
        if left[0] == "variable":
            return ("index", left, low)
        require(left[0] == low[0] == "number" and low[1].denominator == 1)
        return ("base", left[1], int(low[1]))

    def prefix(self, level: int) -> tuple:
        """What an expression begins with."""
        kind, name = self.take()
        if kind in ("number", "variable", "constant"):
            return (kind, name)
        if kind == "time":
            return ("ratio", "time", *(("number", part) for part in name))
        method = {"function": self.function, "begin": self.matrix, "word": self.text}.get(kind)
        if method:
            return method(name)
        if kind == "frac":
            return ("*", self.prefix(POSTFIX), ("^", self.prefix(POSTFIX), MINUS_ONE))
        if kind == "op" and name in CLOSING:
            return self.bracketed(name)
        if kind == "op" and name in "∅ℝ":
            return REALS if name == "ℝ" else NOTHING
        if kind == "op" and name in "+-±∓$€£":
            self.units |= {UNITS[name]} if name in UNITS else set()
            return self.signed(name, self.expression(max(level, PRODUCT)))
        raise Unreadable

    def bracketed(self, opening: str) -> tuple:
        if opening == "⦃" and self.accept("⦄"):
            return NOTHING
        bars, self.bars = self.bars, opening == "|"
        inner = self.expression(LIST)
        closing, self.bars = self.accept(*CLOSING[opening], "∣"), bars
        if opening == "⦃" and closing == "∣":
            return self.set_builder(inner)
        require(closing in [*CLOSING[opening]])
        if opening in "⌊⌈|":
            return ("function", opening, inner)
        parts = inner[2:] if inner[0] == "list" else (inner,)
        if opening == "{" and inner[0] == "list" or opening == "⦃" and inner[0] != "relation":
            return ("set", *parts)
        return ("group", opening, closing, *parts) if inner[0] == "list" else inner

    def set_builder(self, element: tuple) -> tuple:
        """{x : x > 3} and {x ∈ ℝ : x > 3} are what x > 3 says."""
        condition = self.expression(LIST)
        require(self.accept("⦄"))
        if condition[:2] == ("list", ","):
            condition = ("list", "∧", *condition[2:])
        if element[0] == "variable" or element[:2] == ("relation", "∈") and element[3] == REALS:
            return condition
        return ("group", "⦃", "⦄", element, condition)

    def cell(self) -> tuple:
        """A cell of a matrix, or of cases: `x, & \text{if } x > 0`."""
        while self.token[0] == "word" and self.token[1].casefold() in ("if", "for", "when"):
            self.take()
        cell = self.expression(RELATION)
        self.accept(",")
        return cell

    def matrix(self, environment: str) -> tuple:
        """A group of rows. A column is the group of its numbers, as a tuple is."""
        self.cases = environment == "cases"
        rows = [[self.cell()]]
        while op := self.accept("&", "⏎"):
            if op == "&":
                rows[-1].append(self.cell())
            elif self.token[0] != "end":
                rows.append([self.cell()])
        self.cases = False
        require(self.take() == ("end", environment))
        rows = [("group", "(", ")", *row) if len(row) > 1 else row[0] for row in rows]
        if environment == "cases":
            return ("list", ",", *rows)
        tree = ("group", "(", ")", *rows) if len(rows) > 1 or rows[0][0] == "group" else rows[0]
        return ("function", "det", tree) if environment == "vmatrix" else tree

    def function(self, name: str) -> tuple:
        scripts = {}
        if name == "sqrt" and self.accept("["):
            scripts["_"] = self.expression(SUM)
            require(self.accept("]"))
        while name != "sqrt" and (script := self.accept("_", "^")):
            scripts[script] = self.prefix(POSTFIX)
        lower, power = scripts.get("_"), scripts.get("^")
        if name in OPAQUE:
            return ("function", name, *scripts.values(), self.expression(PRODUCT))
        if name == "binom":
            return ("function", name, self.prefix(POSTFIX), self.prefix(POSTFIX))
        self.angles += name in TRIGONOMETRIC
        if name == "sqrt" or self.token in (("op", "("), ("op", "{")):
            argument = self.prefix(POWER)                    # \sin(x) y is y sin x
        else:                                                # \sin 2x is sin(2x)
            argument = self.expression(POWER)
            while self.starts_value() and self.token[0] != "function" and self.token[1] != "(":
                argument = times(argument, self.expression(POWER))
        self.angles -= name in TRIGONOMETRIC
        if power == MINUS_ONE and name in ("sin", "cos", "tan"):
            return ("function", "arc" + name, argument)
        tree = ("function", name, argument, lower) if lower else ("function", name, argument)
        return ("^", tree, power) if power else tree

    def text(self, word: str) -> tuple:
        words = [word]
        while self.token[0] == "word":
            words.append(self.take()[1])
        phrase = " ".join(words).casefold()
        if self.at == len(words) and LEAD.fullmatch(phrase):
            self.accept(":")
            return self.expression(LIST)                     # "There are 6 ways"
        return SYNONYMS.get(phrase, ("text", phrase)) if len(phrase) > 1 else ("variable", word)

    def unit(self, left: tuple) -> tuple:
        """The words after a value: `square inches`, `m/s`, `inches^2`, or any other noun."""
        if self.cases:
            return ("function", "is", left, self.text(self.take()[1]))      # n is even
        name, power, first = "", "", True
        while self.token[0] == "word" or not first and self.token in (("op", "/"), ("op", "^")):
            written = self.take()[1]
            word = written.casefold()
            singular = word[:-1] if re.fullmatch(r"[\w-]+[^s]s", word) else word
            last, word = singular.rpartition("-")[2], UNITS.get(word, UNITS.get(singular, singular))
            if first and word in SCALES:
                left = times(left, ("number", Fraction(SCALES[word])))
                continue
            if first and word == "base":
                return self.subscript(left)                  # 1101 base 2
            if word == "^":
                power = f"^{self.prefix(POSTFIX)[-1]}"
            elif word in ("^2", "^3") and (not first or singular[-2:] != "ed"):
                power = word                                 # But "5 squared" is 25.
            elif {word, written} & NOT_UNITS or word in SCALES or last in SYNONYMS or (
                    PART.fullmatch(last)) or len(word) == 1 and word not in WHOLE_UNITS or (
                    first and self.token[0] != "word" and re.search("...ed$", word)):
                raise Unreadable                             # "3 is wrong", "3 fourths"
            elif word in WHOLE_UNITS:
                name += word
            elif name.endswith("/"):
                name = name[:-1]                             # $5 per month is $5
            else:
                self.units.add("a " + word)
            first = False
        require(left[0] != "text" and not self.starts_value())       # "6 feet 2"
        if name.startswith("/") and len(self.units) == 1:
            name = self.units.pop() + name
        self.units |= {name + power} if name + power else set()
        return left


def parts_of(tree: tuple) -> tuple:
    """The parts of a list or set. Any other tree is its own only part."""
    return {"list": tree[2:], "set": tree[1:]}.get(tree[0], (tree,))


def has(tree, *kinds) -> bool:
    """Is a node of one of these kinds, or exactly one of these nodes, anywhere in the tree?"""
    return isinstance(tree, tuple) and (tree[0] in kinds or tree in kinds or any(
        has(part, *kinds) for part in tree))


def choose(tree, code: int):
    """The tree with + or - in the place of each ±. Bit n of `code` is 1 if sign n is a minus."""
    if not isinstance(tree, tuple):
        return tree
    if tree[0] == "±":
        operand = choose(tree[2], code)
        return times(MINUS_ONE, operand) if code >> tree[1] & 1 else operand
    return tuple(choose(part, code) for part in tree)


@lru_cache(4096)
def read(tidied: str, thousands: bool = True) -> tuple[tuple, frozenset]:
    """(tree, units) of a tidy answer. One with ± becomes the list of all it stands for."""
    parser = Parser(list(tokenize(tidied, is_prose(tidied), thousands)))
    tree, units = parser.expression(LIST), frozenset(parser.units)
    require(parser.token == END and parser.signs <= 4)
    if not parser.signs:
        return tree, units
    chosen = [choose(tree, code) for code in range(2 if parser.one_sign else 2 ** parser.signs)]
    parts = dict.fromkeys(part for one in chosen for part in parts_of(one) or (one,))
    return ("list", ",", *parts), units
