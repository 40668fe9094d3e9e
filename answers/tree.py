"""Tokens to a tree, by precedence climbing.

Trees are nested tuples: ("number", 3/2), ("variable", "x"), ("constant", "pi"), ("text", "even"),
("+", a, b, ...), ("*", a, b, ...), ("^", a, b), ("function", name, a, ...), ("index", a, i),
("base", 1101, 2), ("group", "(", "]", a, b, ...), ("set", a, ...), ("reals",),
("list", ",", a, ...), ("∪", a, b, ...), ("relation", "<≤", a, b, c), ("mod", 3, 7),
("ratio", "", 2, 3), and ("ratio", "time", 7, 30) for what may be half past seven.
"""
from fractions import Fraction
from functools import lru_cache
from itertools import product

from answers.latex import OPAQUE, TRIGONOMETRIC, is_prose, tokenize
from answers.words import LEAD, NOTHING, REALS, SYNONYMS, UNITS, require, units_of

DEEPEST = 40            # how many expressions may be one inside the other
MOST_TOKENS = 800       # how many may be read for one answer with all the choices of its signs
LIST, RELATION, SETS, SUM, PRODUCT, POWER, POSTFIX = range(7)       # The last binds most tightly.
INFIX = {op: level for level, ops in enumerate(
    (",∧∨⏎", "=<>≤≥≠≈∈→", [*"∪∩∖⁄:", "pmod", "choose"], "+-", ["*", "/", "bmod"], "^",
     "_!%°$€£")) for op in ops}
CHAINS = dict.fromkeys(",∧∨⏎", "list") | dict.fromkeys("=<>≤≥≠≈∈→", "relation") | {":": "ratio"}
CLOSING = {"(": ")]", "[": ")]", "⌊": "⌋", "⌈": "⌉", "|": "|", "{": "}", "⦃": "⦄|:∣"}
SIGNS = {"±": "+-", "∓": "-+"}
MINUS_ONE, INFINITY, END = ("number", Fraction(-1)), ("constant", "infty"), ("end of text", "")


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
        self.units = set()
        self.depth, self.angles = 0, 0              # inside how many expressions, and sines etc.
        self.closing = ""                           # what closes the bracket: inside |...|, a bar
        self.units_here = True                      # Are words after a value units or nouns?

    def take(self) -> tuple:
        """Return the token and go to the next one."""
        token, self.at = self.token, self.at + 1
        self.token = self.tokens[self.at]
        return token

    def accept(self, *ops: str) -> str:
        return self.take()[1] if self.token[0] == "op" and self.token[1] in ops else ""

    def starts_value(self) -> bool:
        kind, op = self.token
        if kind == "op":
            return op in "([{⦃⌊⌈∅ℝ|" and op not in self.closing
        return kind not in ("end of text", "word", "end")

    def deeper(self, nested: bool = True):
        self.depth += nested
        require(self.depth <= DEEPEST)

    def expression(self, level: int) -> tuple:
        self.deeper()
        left = self.prefix(level)
        while True:
            kind, op = self.token
            if kind == "op" and INFIX.get(op, -1) >= level and op not in self.closing:
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
        if op in CHAINS:
            return self.chain(left, op, CHAINS[op])
        if op in "*/":
            return self.product(left, op)
        if op in "+-":
            right = self.expression(PRODUCT)
            return flat("+", left, times(MINUS_ONE, right) if op == "-" else right)
        if op == "^":
            before, self.units_here = self.units_here, False           # 2^{3rd} is not 8.
            exponent, self.units_here = self.expression(POWER), before
            return ("^", left, exponent)
        if op in "∪∩∖":
            self.deeper(left[0] in "∪∩∖" and left[0] != op)
            return flat(op, left, self.expression(SUM))
        if op == "_":
            return self.subscript(left)
        if op == "!":
            self.deeper(left[:2] == ("function", "!"))
            return ("function", "!", left)
        if op == "°" and self.angles:                        # Inside a sine, 1° is π/180.
            return times(left, times(("constant", "pi"), ("number", Fraction(1, 180))))
        if op in UNITS:
            self.units.add(UNITS[op])
            return left
        if op == "⁄":                                        # {a + b \over c}
            return times(left, ("^", self.expression(SUM), MINUS_ONE))
        if op == "pmod":
            return ("mod", left, self.prefix(POSTFIX))
        name, level = {"bmod": ("mod", POWER), "choose": ("binom", SUM)}[op]
        return ("function", name, left, self.expression(level))

    def chain(self, left: tuple, op: str, kind: str) -> tuple:
        """A list, a relation or a ratio: any number of parts, and the signs between them."""
        while kind == "list" and (more := self.accept(",", "∧", "∨")):       # "1, 2, and 3"
            op = more
        op = {"⏎": ",", ":": ""}.get(op, op)
        signs, parts = (left[1], left[2:]) if left[:1] == (kind,) else ("", (left,))
        signs = max(signs, op) if kind == "list" else signs + op
        return (kind, signs, *parts, self.expression(INFIX[op or ":"] + 1))

    def product(self, left: tuple, op: str) -> tuple:
        whole = left[0] == self.tokens[self.at - 1][0] == "number" and left[1].denominator == 1
        mixed = whole and self.token[0] == "frac"            # 1\frac{4}{5} is 9/5
        right = self.expression(POWER)
        if mixed and right[0] == "*" and right[1][0] == right[2][1][0] == "number":
            return flat("+", left, right)
        return times(left, ("^", right, MINUS_ONE) if op == "/" else right)

    def exponent(self) -> tuple:
        before, self.units_here = self.units_here, False     # 2^{3rd} is not 8.
        exponent, self.units_here = self.expression(POWER), before
        return exponent

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
        if kind == "frac":
            return ("*", self.prefix(POSTFIX), ("^", self.prefix(POSTFIX), MINUS_ONE))
        if kind in ("function", "begin", "word"):
            return {"function": self.function, "begin": self.matrix, "word": self.text}[kind](name)
        require(kind == "op")
        if name in CLOSING:
            return self.bracketed(name)
        if name in "∅ℝ":
            return REALS if name == "ℝ" else NOTHING
        require(name in "+-$€£")
        self.units |= {UNITS[name]} if name in UNITS else set()
        tree = self.expression(max(level, PRODUCT))
        return times(MINUS_ONE, tree) if name == "-" else tree

    def bracketed(self, opening: str) -> tuple:
        if opening == "⦃" and self.accept("⦄"):
            return NOTHING
        before, self.closing = self.closing, CLOSING[opening]
        inner = self.expression(LIST)
        closing, self.closing = self.accept(*CLOSING[opening]), before
        require(closing)
        if opening == "⦃" and closing != "⦄":
            return self.set_builder(inner)
        if opening in "⌊⌈|":
            return ("function", opening, inner)
        parts = inner[2:] if inner[0] == "list" else (inner,)
        if opening == "{" and inner[0] == "list" or opening == "⦃" and inner[0] != "relation":
            return ("set", *parts)
        return ("group", opening, closing, *parts) if inner[0] == "list" else inner

    def set_builder(self, element: tuple) -> tuple:
        """{x : x > 3} and {x ∈ ℝ : x > 3} are what x > 3 says. But {y : x > 3} is not."""
        condition = self.expression(LIST)
        require(self.accept("⦄") and has(element, "variable"))
        if condition[0] == "list":
            condition = ("∪" if condition[1] == "∨" else "∩", *condition[2:])
        if element[:2] == ("relation", "∈") and element[3] == REALS:
            element = element[2]
        alone = element[0] == "variable" and has(condition, element)
        return condition if alone else ("group", "⦃", "⦄", element, condition)

    def matrix(self, environment: str) -> tuple:
        """A group of rows. A column is the group of its numbers, as a tuple is."""
        before, self.units_here = self.units_here, environment != "cases"
        rows = [[self.expression(RELATION)]]
        while op := self.accept("&", "⏎"):
            if op == "&":
                rows[-1].append(self.expression(RELATION))
            elif self.token[0] != "end":
                rows.append([self.expression(RELATION)])
        self.units_here = before
        require(self.take() == ("end", environment))
        rows = [("group", "(", ")", *row) if len(row) > 1 else row[0] for row in rows]
        if environment == "cases":
            return ("list", ",", *rows)
        tree = ("group", "(", ")", *rows) if len(rows) > 1 or rows[0][0] == "group" else rows[0]
        return ("function", "det", tree) if environment == "vmatrix" else tree

    def function(self, name: str) -> tuple:
        if name == "binom":
            return ("function", name, self.prefix(POSTFIX), self.prefix(POSTFIX))
        scripts = {}
        if name == "sqrt" and self.accept("["):
            scripts["_"] = self.expression(SUM)
            require(self.accept("]"))
        while name != "sqrt" and (script := self.accept("_", "^")):
            scripts[script] = self.prefix(POSTFIX)
        if name in OPAQUE:
            return ("function", name, *scripts.values(), self.expression(PRODUCT))
        argument, power = self.argument(name), scripts.pop("^", None)
        if power == MINUS_ONE and name in ("sin", "cos", "tan"):
            return ("function", "arc" + name, argument)
        tree = ("function", name, argument, *scripts.values())
        return ("^", tree, power) if power else tree

    def argument(self, name: str) -> tuple:
        """\\sin 2x is sin(2x), but \\sin(x) y is y sin x."""
        self.angles += name in TRIGONOMETRIC
        if name == "sqrt" or self.token in (("op", "("), ("op", "{")):
            argument = self.prefix(POWER)
        else:
            argument = self.expression(POWER)
            while self.starts_value() and self.token[0] != "function" and self.token[1] != "(":
                argument = times(argument, self.expression(POWER))
        self.angles -= name in TRIGONOMETRIC
        return argument

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
        """A value and the words after it: `square inches`, `m/s`, `million`, or any noun."""
        words = [self.take()[1]]
        if not self.units_here:
            return ("function", "is", left, self.text(words[0]))        # n is even
        if words == ["base"]:
            return self.subscript(left)                      # 1101 base 2
        while self.token[0] == "word" or self.token in (("op", "/"), ("op", "^")):
            words.append(self.take()[1])
            if words[-1] == "^":
                words[-1] += str(self.prefix(POSTFIX)[-1])
        require(left[0] != "text" and not self.starts_value())       # "6 feet 2"
        factor, units = units_of(words)
        self.units |= units
        return left if factor == 1 else times(left, ("number", Fraction(factor)))


def parts_of(tree: tuple) -> tuple:
    """The parts of a list or set. Any other tree is its own only part."""
    return {"list": tree[2:], "set": tree[1:]}.get(tree[0], (tree,))


def has(tree, *kinds) -> bool:
    """Is a node of one of these kinds, or exactly one of these nodes, anywhere in the tree?"""
    return isinstance(tree, tuple) and (tree[0] in kinds or tree in kinds or any(
        has(part, *kinds) for part in tree))


def with_signs(tokens: list):
    """The tokens with + or - in the place of each ±. Beside a ∓, all signs switch together."""
    signs = [op for kind, op in tokens if kind == "op" and op in SIGNS]
    require(len(tokens) << len(signs) <= MOST_TOKENS)
    flips = product((0, 1), repeat=len(signs))
    for flip in [(0,) * len(signs), (1,) * len(signs)] if "∓" in signs else flips:
        flipped = iter(flip)
        yield [("op", SIGNS[op][next(flipped)]) if kind == "op" and op in SIGNS else (kind, op)
               for kind, op in tokens]


@lru_cache(4096)
def read(tidied: str, thousands: bool = True) -> tuple[tuple, frozenset]:
    """(tree, units) of a tidy answer. One with ± becomes the list of all it stands for."""
    trees, units = [], set()
    for tokens in with_signs(list(tokenize(tidied, is_prose(tidied), thousands))):
        parser = Parser(tokens)
        trees.append(parser.expression(LIST))
        require(parser.token == END)
        units |= parser.units
    if len(trees) == 1:
        return trees[0], frozenset(units)
    parts = dict.fromkeys(part for tree in trees for part in parts_of(tree) or (tree,))
    return ("list", ",", *parts), frozenset(units)
