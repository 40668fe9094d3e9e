"""Rewards by rule: is this response right? Plain Python, no sympy, nothing is ever executed.

    python verify.py rollouts.jsonl [--out table.json]

prints, per task and level: accuracy with a 95 % interval, the share of responses cut off, their
mean length in tokens and, where problems have several samples, pass@k and majority@k. Rewards are
computed anew by the rules below; if the file stores others, that is said.

The rule (PAPER: A, reward): the response ended by itself, its *last* `\\boxed{}` counts: 1.0 if it
is right, else 0.0, nothing for format. Departure from the paper: there a K&K answer must match
the gold piece by piece and MATH goes to sympy; here harmless variation is read on purpose, and this
file alone decides what is equal:

    text --tidy, tokens--> LaTeX tokens --Parser--> a tree --value--> numbers --same--> equal?

Any string may come: none raises, hangs or is executed. What cannot be read, or is too long, deep or
large, equals nothing but itself. In doubt the answer is no: a wrong yes is what RL will find.
"""
import dataclasses
import decimal
import math
import re
import unicodedata
import zlib
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache, reduce


class Unreadable(Exception):
    """Nothing that the rules below can put a value on."""


# ---- which box counts ------------------------------------------------------------------------
def last_boxed(text: str) -> str | None:
    """The content of the last closed `\\boxed{}` (or `\\fbox{}`); of nested boxes the innermost.

    One pass with a stack of open braces: any depth in linear time. A box cut off before its brace
    closes does not count; an escaped brace is text.
    """
    opened, start, end = [], -1, -1
    for match in re.finditer(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", text, re.DOTALL):
        token = match[0]
        if token == "}":
            if opened and (begin := opened.pop()) > start:
                start, end = begin, match.start()
        elif token == "{" or len(token) > 2:
            opened.append(match.end() if len(token) > 1 else -1)
    return None if start < 0 else text[start:end]


# ---- Knights & Knaves ------------------------------------------------------------------------
CLAIM = re.compile(r"(?:\(?\d+[.)] )?(\w[\w' -]*?)(?: is | ?[:=] ?)(?:an? )?(\w+) ?\.?")


def roles(box: str) -> dict[str, str] | None:
    """{"zoey": "knight", ...} if every part of the box gives one new person one role, else None."""
    text = box.casefold().replace(r"\\", "\n")
    text = re.sub(r"\\(?:text|mbox|mathrm|mathbf)[a-z]*|\*\*|[{}$]|\\[,;! ]", " ", text)
    found = {}
    for part in re.split(r"[,;\n]|\band\b", text):
        if not part.strip():
            continue                                         # between the comma and the "and"
        claim = CLAIM.fullmatch(" ".join(part.split()))
        if claim is None or claim[1] in found:               # other words, or somebody twice
            return None
        found[claim[1]] = claim[2]
    return found or None


def kk_correct(response: str, gold: str) -> bool:
    """Does the last box name exactly the gold's people, each once, each with the gold's role?"""
    box = last_boxed(response)
    return box is not None and (claimed := roles(box)) is not None and claimed == roles(gold)


# ---- LaTeX to tokens -------------------------------------------------------------------------
# A token is (kind, value): number, variable, constant, function, word, frac, begin, end or op. Ops
# are one character, however the source spelled them.
LONGEST = 500           # characters that are read as mathematics; a longer answer is only text
NUMERALS = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen
    fifteen sixteen seventeen eighteen nineteen twenty""".split()
TRIGONOMETRIC = "sin cos tan sec csc cot cis".split()
FUNCTIONS = TRIGONOMETRIC + "arcsin arccos arctan ln log exp sqrt binom".split()
OPAQUE = "sum prod int lim max min gcd lcm det overline bar hat".split()    # compared, not computed
CONSTANTS = "pi e i infty".split()
IGNORED = set("""left right big Big bigg Bigg bigl bigr Bigl Bigr displaystyle textstyle limits quad
    qquad bf rm it large Large LARGE huge Huge small mathbf boldsymbol bm mathit mathcal mathbb vec
    overrightarrow angle triangle boxed fbox text mbox mathrm textbf textit operatorname""".split()
              ) | set(",;:! ./()[]")
COMMANDS = {name: ("op", op) for op, names in {
    "*": "cdot times ast", "/": "div", "±": "pm", "∓": "mp", "∪": "cup bigcup", "∩": "cap bigcap",
    "∖": "setminus backslash", "∈": "in", "<": "lt", ">": "gt", "≤": "le leq leqslant",
    "≥": "ge geq geqslant", "≠": "ne neq", "≈": "approx", "⦃": "{ lbrace", "⦄": "} rbrace",
    "|": "vert lvert rvert mid |", "⌊": "lfloor", "⌋": "rfloor", "⌈": "lceil", "⌉": "rceil",
    "(": "langle", ")": "rangle", "$": "$", "%": "%", "⏎": "\\", "°": "degree", "⁄": "over",
    "∅": "emptyset varnothing", "∧": "land wedge", "∨": "lor vee",
    }.items() for name in names.split()}
COMMANDS |= {name: ("function", name) for name in FUNCTIONS + OPAQUE}
ASCII = FUNCTIONS + ["pi", "infty"]          # what needs no backslash
COMMANDS |= {name: ("frac", "") for name in ("frac", "dfrac", "tfrac", "cfrac")}
COMMANDS |= {name: ("constant", name) for name in ("pi", "infty")}
COMMANDS |= {name: ("function", "binom") for name in ("dbinom", "tbinom")}
CHARACTERS = str.maketrans({
    "−": "-", "–": "-", "·": "*", "×": "*", "⋅": "*", "÷": "/", ";": ",", "∞": r"\infty ",
    "√": r"\sqrt ", "π": r"\pi ", "²": "^{2}", "³": "^{3}", "½": r"\frac{1}{2}", "\xa0": " ",
    "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}", "~": " ", '"': " ", "“": " ", "”": " "})
TIDY = [(re.compile(pattern), replacement) for pattern, replacement in (
    (r"\\[()\[\]]|(?<!\\)\$|\\(?:text)?color\s*\{\w*\}", " "),           # math mode, colour
    (r"(?<!\\)\\(?=\\(?:[dt]?frac|sqrt|pi|text|left|right|begin|end|infty|cup)\b)", ""),   # \\frac
    (r"(?<=\d)(?:,\\[!,]\s?|\{,\}|\\,|\s)(?=\d{3}(?!\d))", ","),         # 1{,}234, 1\,234, 1 234
    (r"(\d)\s+(\d+)\s*/\s*(\d+)", r"\1\\frac{\2}{\3}"),                  # 1 4/5
    (r"\\([dtc]?)frac\s*(\d)", r"\\\1frac{\2}"),                         # \frac12
    (r"(\\[dtc]?frac\s*\{[^{}]*\})\s*(\d)", r"\1{\2}"),
    (r"\^\s*\{?\s*(?:\\circ|\\degree|°)(?![a-z])\s*\}?", "°"),
    (r"\\mathbb\s*\{?\s*R\s*\}?", "ℝ"),
    (r"^\*\*(.*)\*\*$", r"\1"), (r"\*\*", "^"),                         # **5**, 2**10
    (r"(?<=[a-zA-Z])\.", ""),                                            # sq. ft., p.m.
    (r"\s+", " "))]
UNITS = {word: name for name, words in {
    "percent": "% percentage", "degree": "° deg", "radian": "rad", "dollar": "$ usd",
    "cent": "cents", "euro": "€", "pound sterling": "£", "inch": "in inches", "foot": "ft feet",
    "yard": "yd", "mile": "mi", "millimeter": "mm", "centimeter": "cm", "meter": "m metre",
    "kilometer": "km", "gram": "g", "kilogram": "kg", "milligram": "mg", "pound": "lb lbs",
    "ounce": "oz", "second": "s sec", "minute": "min", "hour": "h hr", "liter": "l litre",
    "milliliter": "ml", "mile/hour": "mph", "^2": "square squared sq",
    "^3": "cubic cubed cu", "/": "per", "": "unit st nd rd th",
    }.items() for word in words.split()}
SCALES = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "dozen": 12}
NOT_UNITS = set("""not no non never is are isn't was if then else unless but than because since
    wrong false incorrect except maybe possibly either neither nor answer about half halve third
    quarter factorial negative minus plus times over root ^2 ^3""".split())
TOKEN = re.compile(r"""
    \\(?P<font>text\w*|mbox|mathrm|operatorname)\*?\s*\{(?P<content>[^{}]*)\}
  | \\(?P<edge>begin|end)\s*\{(?P<environment>\w+)\*?\}(?:\s*\{[lcr|\s]*\})?
  | (?P<whole>\d*)\.(?P<start>\d*)\s*\\(?:overline|bar)\s*\{?\s*(?P<cycle>\d+)\s*\}?
  | (?P<thousands>\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d*)?)
  | (?P<number>\d+\.?\d*|\.\d+)
  | \\(?P<command>[A-Za-z]+|.)
  | (?P<letters>[A-Za-z]+)
  | (?P<symbol><=|>=|!=|\S)
  | \s""", re.VERBOSE)


def tidy(text: str) -> str:
    """One spelling for what LaTeX, Unicode and keyboards spell in many ways."""
    text = text.translate(CHARACTERS)
    if len(text) > LONGEST:
        raise Unreadable
    for pattern, replacement in TIDY:
        text = pattern.sub(replacement, text)
    return text.rstrip(" .").strip()


def is_prose(tidied: str) -> bool:
    """A text answer such as `all real numbers`: letters and punctuation, a run of 3 or more."""
    bare = re.sub(r"\\(?:text\w*|mbox|mathrm)\s*\{([^{}]*)\}|\\[ ,;]", r" \1", tidied)
    return re.fullmatch(r"(?:[^\W\d_]|[\s'.,:!-])*", bare) is not None and any(
        len(run) > 2 and run not in ASCII and run != "and" for run in re.findall(r"\w+", bare))


def letters(run: str, words: bool, after_number: bool):
    """A run of letters: a word, a function or a constant; otherwise one variable per letter."""
    if run.lower() in ("and", "or"):
        yield ("op", "∧" if run.lower() == "and" else "∨")
    elif words or (after_number and len(run) > 1 and run.lower() in UNITS) or (
            len(run) > 3 and run not in ASCII):
        yield ("word", run)
    else:
        for piece in [run] if run in ASCII else re.findall("pi|sqrt|.", run):
            kind = "constant" if piece in CONSTANTS else "variable"
            yield COMMANDS[piece] if piece in ASCII else (kind, piece)


def tokens(text: str, words: bool, thousands: bool):
    """The tokens of a tidy answer; `words`: letters are words, `thousands`: 1,234 is one number."""
    after_number = False
    for match in TOKEN.finditer(text):
        kind, piece = match.lastgroup, match[0]
        if kind == "content":                                # \text{...}, \mathrm{i}
            inside = match["content"].strip()
            if inside in FUNCTIONS:
                yield COMMANDS[inside]
            else:
                math_font = match["font"] in ("mathrm", "operatorname") and len(inside) == 1
                yield from tokens(inside, not math_font, thousands)
        elif kind == "environment":
            yield (match["edge"], match["environment"])
        elif kind == "cycle":                                # 0.1666... = 0.1 + (6/9) / 10
            shift, cycle = 10 ** len(match["start"]), match["cycle"]
            yield ("number", Fraction(int("0" + match["whole"] + match["start"]), shift)
                   + Fraction(int(cycle), shift * (10 ** len(cycle) - 1)))
        elif kind == "thousands" and not thousands:
            for n, number in enumerate(piece.split(",")):
                yield from [("op", ",")] * (n > 0) + [("number", Fraction(number.rstrip(".")))]
        elif kind in ("number", "thousands"):
            yield ("number", Fraction(piece.replace(",", "").rstrip(".")))
        elif kind == "command" and match["command"] not in IGNORED:
            yield COMMANDS.get(match["command"], ("variable", match["command"]))
        elif kind == "letters":
            yield from letters(piece, words, after_number)
        elif kind == "symbol" and piece.isalpha() and piece != "ℝ":         # θ is \theta
            yield ("variable", unicodedata.name(piece, piece).split()[-1].lower())
        elif kind == "symbol":
            yield ("op", {"<=": "≤", ">=": "≥", "!=": "≠"}.get(piece, piece))
        if kind:
            after_number = kind == "number"


# ---- tokens to a tree ------------------------------------------------------------------------
# Trees are nested tuples: ("number", 3/2), ("variable", "x"), ("constant", "pi"), ("text", "even"),
# ("+", a, b, ...), ("*", a, b, ...), ("^", a, b), ("±", which, a), ("function", name, a, ...),
# ("index", a, i), ("base", 1101, 2), ("group", "(", "]", a, b, ...), ("set", a, ...), ("reals",),
# ("list", ",", a, ...), ("∪", a, b, ...), ("relation", "<≤", a, b, c).
DEEPEST = 40            # nested constructions
LIST, RELATION, SETS, SUM, PRODUCT, POWER, POSTFIX = range(7)
INFIX = {op: level for level, ops in enumerate(
    (",∧∨", "=<>≤≥≠≈∈", "∪∩∖⁄", "+-±∓", "*/:", "^", "_!%°$€£")) for op in ops}
CLOSING = {"(": ")]", "[": ")]", "⌊": "⌋", "⌈": "⌉", "|": "|", "{": "}", "⦃": "⦄"}
MINUS_ONE, INFINITY, END = ("number", Fraction(-1)), ("constant", "infty"), ("end of text", "")
REALS, NOTHING = ("reals",), ("set",)
SYNONYMS = {"dne": ("text", "does not exist"), "all real numbers": REALS, "all reals": REALS}
SYNONYMS |= {word: ("number", Fraction(n)) for n, word in enumerate(NUMERALS)}
SYNONYMS |= {text: NOTHING for text in ("no solution", "no solutions", "no real solution",
                                        "no real solutions", "none", "empty set")}


def flat(kind: str, left: tuple, right: tuple) -> tuple:
    """`left kind right` as one node with many parts: a long sum is not a deep tree."""
    return left + (right,) if left[0] == kind else (kind, left, right)


def times(left: tuple, right: tuple) -> tuple:
    """left · right; a sign goes into its number, a factor into its vector or matrix."""
    if left == MINUS_ONE and right[0] == "number":
        return ("number", -right[1])
    for factor, group in ((left, right), (right, left)):
        if group[0] == "group" and factor[0] not in ("group", "set", "list", "relation"):
            return group[:3] + tuple(times(factor, part) for part in group[3:])
    return flat("*", left, right)


def negative(tree: tuple) -> tuple:
    return times(MINUS_ONE, tree)


class Parser:
    """Precedence climbing: `expression(level)` reads all that binds at least that tightly."""

    def __init__(self, tokens: list):
        self.tokens, self.at, self.depth, self.bars = tokens + [END, END], 0, 0, False
        self.units, self.angles, self.signs = set(), 0, 0
        self.one_sign = ("op", "∓") in tokens                # beside a ∓ all ± switch together

    def accept(self, *ops: str) -> str:
        kind, op = self.tokens[self.at]
        if kind != "op" or op not in ops:
            return ""
        self.at += 1
        return op

    def starts_value(self) -> bool:
        kind, op = self.tokens[self.at]
        if kind == "op":
            return op in "([{⦃⌊⌈∅ℝ" or op == "|" and not self.bars
        return kind not in ("end of text", "word", "end")

    def deeper(self, nested: bool = True):
        self.depth += nested
        if self.depth > DEEPEST:
            raise Unreadable

    def expression(self, level: int) -> tuple:
        self.deeper()
        left = self.prefix(level)
        while True:
            kind, op = self.tokens[self.at]
            if kind == "op" and INFIX.get(op, -1) >= level:
                self.at += 1
                left = self.infix(left, op)
            elif kind == "word" and level <= PRODUCT:
                left = self.unit(left)
            elif level <= PRODUCT and self.starts_value():
                if left[0] == "text" or kind == "number":    # "Answer 5", "3 3", "2^{1}0"
                    raise Unreadable
                left = self.product(left, "*")
            else:
                self.depth -= 1
                return left

    def infix(self, left: tuple, op: str) -> tuple:
        if INFIX[op] == LIST:
            while more := self.accept(",", "∧", "∨"):        # "1, 2, and 3"
                op = more
            right, before = self.expression(RELATION), left[1] if left[0] == "list" else ""
            return ("list", max(op, before), *(left[2:] if before else (left,)), right)
        if INFIX[op] == RELATION:
            ops, parts = (left[1], left[2:]) if left[0] == "relation" else ("", (left,))
            return ("relation", ops + op, *parts, self.expression(SETS))
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
        if op == "°" and self.angles:                        # inside a sine it is a number
            return times(left, times(("constant", "pi"), ("number", Fraction(1, 180))))
        self.units.add(UNITS[op])
        return left

    def signed(self, sign: str, tree: tuple) -> tuple:
        if sign in "±∓":
            self.signs += 1
            tree = ("±", 0 if self.one_sign else self.signs - 1, tree)
        return negative(tree) if sign in "-∓" else tree

    def product(self, left: tuple, op: str) -> tuple:
        whole = left[0] == self.tokens[self.at - 1][0] == "number" and left[1].denominator == 1
        mixed = whole and self.tokens[self.at][0] == "frac"  # 1\frac{4}{5} is 9/5
        right = self.expression(POWER)
        if mixed and right[0] == "*" and right[1][0] == right[2][1][0] == "number":
            return flat("+", left, right)
        return times(left, ("^", right, MINUS_ONE) if op in "/:" else right)

    def subscript(self, left: tuple) -> tuple:
        script = self.prefix(POSTFIX)
        if left[0] == "variable":
            return ("index", left, script)
        if left[0] == script[0] == "number" and left[1].denominator == script[1].denominator == 1:
            return ("base", int(left[1]), int(script[1]))
        raise Unreadable

    def prefix(self, level: int) -> tuple:
        kind, name = self.tokens[self.at]
        self.at += 1
        if kind in ("number", "variable", "constant"):
            return (kind, name)
        if kind == "function":
            return self.function(name)
        if kind == "frac":
            top, bottom = self.prefix(POSTFIX), self.prefix(POSTFIX)
            return ("*", top, ("^", bottom, MINUS_ONE))
        if kind == "begin":
            return self.matrix(name)
        if kind == "word":
            return self.text(name)
        if kind == "op" and name in CLOSING:
            return self.bracketed(name)
        if kind == "op" and name in "∅ℝ":
            return REALS if name == "ℝ" else NOTHING
        if kind == "op" and name in "+-±∓$€£":
            if name in UNITS:
                self.units.add(UNITS[name])
            return self.signed(name, self.expression(max(level, PRODUCT)))
        raise Unreadable

    def bracketed(self, opening: str) -> tuple:
        if opening == "⦃" and self.accept("⦄"):
            return NOTHING
        if opening == "⦃" and self.tokens[self.at + 1] in (("op", "|"), ("op", ":")):
            self.at += 2                                     # {x : x > 3} is what x > 3 says
        bars, self.bars = self.bars, opening == "|"
        inner = self.expression(LIST)
        closing, self.bars = self.accept(*CLOSING[opening]), bars
        if not closing:
            raise Unreadable
        if opening in "⌊⌈|":
            return ("function", opening, inner)
        parts = inner[2:] if inner[0] == "list" else (inner,)
        if opening == "{" and inner[0] == "list" or opening == "⦃" and inner[0] != "relation":
            return ("set", *parts)
        return ("group", opening, closing, *parts) if inner[0] == "list" else inner

    def matrix(self, environment: str) -> tuple:
        """A group of rows; a column is the group of its numbers, the same as a tuple."""
        rows = [[]]
        while True:
            rows[-1].append(self.expression(RELATION))
            if self.accept("⏎"):
                if self.tokens[self.at][0] == "end":
                    break
                rows.append([])
            elif not self.accept("&"):
                break
        if self.tokens[self.at] != ("end", environment):
            raise Unreadable
        self.at += 1
        rows = [("group", "(", ")", *row) if len(row) > 1 else row[0] for row in rows]
        tree = ("group", "(", ")", *rows) if len(rows) > 1 or rows[0][0] == "group" else rows[0]
        return ("function", "det", tree) if environment == "vmatrix" else tree

    def function(self, name: str) -> tuple:
        scripts = {}
        if name == "sqrt" and self.accept("["):
            scripts["_"] = self.expression(SUM)
            if not self.accept("]"):
                raise Unreadable
        while name != "sqrt" and (which := self.accept("_", "^")):
            scripts[which] = self.prefix(POSTFIX)
        lower, power = scripts.get("_"), scripts.get("^")
        if name in OPAQUE:
            return ("function", name, *scripts.values(), self.expression(PRODUCT))
        if name == "binom":
            return ("function", name, self.prefix(POSTFIX), self.prefix(POSTFIX))
        self.angles += name in TRIGONOMETRIC
        if name == "sqrt" or self.tokens[self.at] in (("op", "("), ("op", "{")):
            argument = self.prefix(POWER)                    # \sin(x) y is y sin x
        else:                                                # \sin 2x is sin(2x)
            argument = self.expression(POWER)
            while self.starts_value() and self.tokens[self.at][0] != "function" and (
                    self.tokens[self.at] != ("op", "(")):
                argument = times(argument, self.expression(POWER))
        self.angles -= name in TRIGONOMETRIC
        if power == MINUS_ONE and name in ("sin", "cos", "tan"):
            return ("function", "arc" + name, argument)
        tree = ("function", name, argument, lower) if lower else ("function", name, argument)
        return ("^", tree, power) if power else tree

    def text(self, word: str) -> tuple:
        words = [word]
        while self.tokens[self.at][0] == "word":
            words.append(self.tokens[self.at][1])
            self.at += 1
        phrase = " ".join(words).casefold()
        return SYNONYMS.get(phrase, ("text", phrase)) if len(phrase) > 1 else ("variable", word)

    def unit(self, left: tuple) -> tuple:
        """The words behind a value: `square inches`, `m/s`, `inches^2`, or anybody's own."""
        name = power = ""
        while self.tokens[self.at][0] == "word" or name and self.tokens[self.at] in (
                ("op", "/"), ("op", "^")):
            word = self.tokens[self.at][1].casefold()
            self.at += 1
            singular = word[:-1] if re.fullmatch(r"\w+[^s]s", word) else word
            word = UNITS.get(word, UNITS.get(singular, singular))
            if word == "^":
                power = f"^{self.prefix(POSTFIX)[-1]}"
            elif word in ("^2", "^3") and (name or singular[-2:] != "ed"):
                power = word                                 # but "5 squared" is 25
            elif word in SCALES and not name:
                left = times(left, ("number", Fraction(SCALES[word])))
            elif word == "base" and not name:
                return self.subscript(left)                  # 1101 base 2
            elif word in NOT_UNITS or re.search("ths?$|ed$", word):
                raise Unreadable                             # "3 is wrong", "3 fourths"
            else:
                name += word
        if self.starts_value() or left[0] == "text":
            raise Unreadable                                 # "6 feet 2"
        self.units |= {name + power} if name else set()
        return left


@lru_cache(4096)
def read(tidied: str, thousands: bool = True) -> tuple[tuple, frozenset]:
    """(tree, units) of a tidy answer; one with ± becomes the list of what it stands for."""
    parser = Parser(list(tokens(tidied, is_prose(tidied), thousands)))
    tree, units = parser.expression(LIST), frozenset(parser.units)
    if parser.tokens[parser.at] != END or parser.signs > 4:
        raise Unreadable
    if not parser.signs:
        return tree, units
    every = [choose(tree, code) for code in range(2 if parser.one_sign else 2 ** parser.signs)]
    parts = dict.fromkeys(part for one in every for part in parts_of(one) or (one,))
    return ("list", ",", *parts), units


def choose(tree, code: int):
    """The tree with + or - for each ±, as the bits of the code say."""
    if not isinstance(tree, tuple):
        return tree
    if tree[0] == "±":
        operand = choose(tree[2], code)
        return negative(operand) if code >> tree[1] & 1 else operand
    return tuple(choose(part, code) for part in tree)


# ---- a tree to a number ----------------------------------------------------------------------
# A number is an exact Fraction as long as that is possible and small; otherwise a complex number of
# two Decimals with 50 digits. The 16 digits of a float would take 1.4142135623730951 for √2.
CONTEXT = decimal.Context(prec=50, Emax=10**6, Emin=-10**6)
PI = Decimal("3.14159265358979323846264338327950288419716939937510582097494459230781640629")
LARGEST = 2048          # bits of an exact number


class Complex:
    """x + iy with 50 digits; mixes with Fraction."""
    def __init__(self, x: Decimal, y: Decimal = Decimal(0)):
        self.x, self.y = x, y

    def __add__(a, b):
        return Complex(a.x + inexact(b).x, a.y + inexact(b).y)

    def __neg__(a):
        return Complex(-a.x, -a.y)

    def __sub__(a, b):
        return a + -b

    def __rsub__(a, b):
        return -a + b

    def __mul__(a, b):
        b = inexact(b)
        return Complex(a.x * b.x - a.y * b.y, a.x * b.y + a.y * b.x)

    def __rtruediv__(a, b):
        square = a.x * a.x + a.y * a.y
        return Complex(a.x / square, -a.y / square) * b

    def __truediv__(a, b):
        return 1 / inexact(b) * a

    def __abs__(a):
        return Complex((a.x * a.x + a.y * a.y).sqrt())

    __radd__, __rmul__ = __add__, __mul__


def inexact(number) -> Complex:
    if isinstance(number, Complex):
        return number
    return Complex(Decimal(number.numerator) / number.denominator)


def bits(number: Fraction) -> int:
    return number.numerator.bit_length() + number.denominator.bit_length()


def bounded(number):
    return inexact(number) if isinstance(number, Fraction) and bits(number) > LARGEST else number


def is_real(z) -> bool:
    return isinstance(z, Fraction) or abs(z.y) <= Decimal("1e-35") * max(abs(z.x), 1)


def same_number(a, b) -> bool:
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return a == b
    a, b = inexact(a), inexact(b)
    size = max(abs(a.x), abs(a.y), abs(b.x), abs(b.y))
    return max(abs(a.x - b.x), abs(a.y - b.y)) <= size * Decimal("1e-32") + Decimal("1e-40")


def cos_sin(x: Decimal) -> tuple[Decimal, Decimal]:
    """Both Taylor series at once, after whole turns are taken off."""
    if abs(x) > 10**9:
        raise Unreadable
    x, total, term, n = x % (2 * PI), [Decimal(1), Decimal(0)], Decimal(1), 0
    while abs(term) > Decimal("1e-52"):
        n += 1
        term = term * x / n
        total[n % 2] += term if n % 4 < 2 else -term
    return total[0], total[1]


def exp(z) -> Complex:
    z = inexact(z)
    if abs(z.x) > 10**6:
        raise Unreadable
    size = z.x.exp()
    cos, sin = cos_sin(z.y) if z.y else (Decimal(1), Decimal(0))
    return Complex(size * cos, size * sin)


def log(z) -> Complex:
    """ln|z| + i·angle; the angle is a double's, then one Newton step trebles its 16 digits."""
    z = inexact(z)
    size = abs(z).x
    if not size:
        raise ZeroDivisionError
    x, y = z.x / size, z.y / size
    angle = Decimal(math.atan2(y, x)) if y else PI * (x < 0)
    if y:
        cos, sin = cos_sin(angle)
        angle += y * cos - x * sin
    return Complex(size.ln(), angle)


def whole_root(n: int, degree: int) -> int | None:
    """The exact root of a whole number, or None."""
    root = math.isqrt(n) if degree == 2 else round(n ** (1 / degree)) if n < 2**53 else 0
    return root if root**degree == n else None


def power(a, b):
    if isinstance(b, Fraction) and b.denominator == 1 and 0 < b < 20:
        return reduce(lambda x, y: bounded(x * y), [a] * int(b))
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        if a == 0:
            return Fraction(0) ** min(1, max(-1, b.numerator))        # 0^(-1) raises, 0^0 is 1
        degree = b.denominator
        roots = [whole_root(n, degree) if a > 0 and 1 < degree < 64 else None
                 for n in (a.numerator, a.denominator)]
        if None not in roots:
            a, degree = Fraction(*roots), 1
        if degree == 1 and abs(b.numerator) * bits(a) <= LARGEST:
            return a ** b.numerator
    return exp(b * log(a))


def root(a, degree=Fraction(2)):
    """The odd root of a negative number is negative here, as schools have it."""
    odd = isinstance(degree, Fraction) and degree.denominator == 1 and degree.numerator % 2
    if odd and is_real(a) and inexact(a).x < 0:
        return -power(-a, 1 / degree)
    return power(a, 1 / degree)


def sin(z):
    """Like every function here: by way of exp and log."""
    return (exp(I * z) - exp(-(I * z))) / Fraction(2) * -I


def cos(z):
    return (exp(I * z) + exp(-(I * z))) / Fraction(2)


def arcsin(z):
    return -I * log(I * z + power(1 - z * z, Fraction(1, 2)))


def whole(z, top: int) -> int:
    if not (isinstance(z, Fraction) and z.denominator == 1 and 0 <= z <= top):
        raise Unreadable
    return int(z)


def binom(n, k):
    factors = ((n - i) / Fraction(i + 1) for i in range(whole(k, 60)))
    return reduce(lambda a, b: bounded(a * b), factors, Fraction(1))


def rounded(z, how) -> Fraction:
    if not is_real(z):
        raise Unreadable
    return Fraction(how(z if isinstance(z, Fraction) else z.x))


I, TEN = Complex(Decimal(0), Decimal(1)), Fraction(10)
CALLS = {
    "sqrt": root, "exp": exp, "ln": log, "log": lambda z, base=TEN: log(z) / log(base),
    "sin": sin, "cos": cos, "tan": lambda z: sin(z) / cos(z), "cot": lambda z: cos(z) / sin(z),
    "sec": lambda z: 1 / cos(z), "csc": lambda z: 1 / sin(z), "cis": lambda z: exp(I * z),
    "arcsin": arcsin, "arccos": lambda z: Complex(PI / 2) - arcsin(z), "arctan":
    lambda z: (log(1 + I * z) - log(1 - I * z)) / Fraction(2) * -I, "|": abs, "binom": binom,
    "!": lambda n: Fraction(math.factorial(whole(n, 200))),
    "⌊": lambda z: rounded(z, math.floor), "⌈": lambda z: rounded(z, math.ceil)}


def noise(*parts: str) -> int:
    """32 random bits, always the same for the same parts."""
    return zlib.crc32(" ".join(parts).encode("utf-8", "replace"))


def coordinate(name: str, point: int) -> Fraction:
    """A variable's value: all in (0, 1), all in (1, 9), all negative, or of both signs."""
    part = Fraction(noise(name, str(point)) % 997 + 1, 999)
    return (part, 1 + 8 * part, -3 * part, 10 * part - 5)[point]


def value(tree: tuple, point: int):
    """The number a tree stands for where its variables are at one of the four points."""
    kind, *parts = tree
    if kind == "number":
        return parts[0]
    if kind == "variable":
        return coordinate(parts[0], point)
    if tree == INFINITY or kind == "text":
        raise Unreadable
    if kind == "constant":
        return {"pi": Complex(PI), "i": I, "e": exp(Fraction(1))}[parts[0]]
    if kind == "base":
        return Fraction(int(str(parts[0]), parts[1]))
    numbers = [value(part, point) for part in parts if isinstance(part, tuple)]
    if kind == "+":
        return reduce(lambda a, b: bounded(a + b), numbers)
    if kind == "*":
        return reduce(lambda a, b: bounded(a * b), numbers)
    if kind == "^":
        return power(*numbers)
    if kind == "function" and parts[0] in CALLS:
        try:
            return CALLS[parts[0]](*numbers)
        except Unreadable:
            if not has(tree, "variable"):
                raise
    names = [part for part in (kind, *parts) if isinstance(part, str)]
    digits = [f"{part:.30e}" for z in map(inexact, numbers) for part in (z.x, z.y)]
    return Fraction(noise(*names, *digits), 2**32)           # f(a) is f(b) exactly if a is b


@lru_cache(4096)
def values(tree: tuple) -> tuple:
    """The tree's number at each point, None where it has none."""
    numbers = []
    with decimal.localcontext(CONTEXT):
        for point in range(4 if has(tree, "variable") else 1):
            try:
                numbers.append(value(tree, point))
            except (Unreadable, ArithmeticError, ValueError, TypeError):
                numbers.append(None)
    return tuple(numbers)


def has(tree, *kinds) -> bool:
    """Is there a node of this kind (or just this node) anywhere in the tree?"""
    return isinstance(tree, tuple) and (tree[0] in kinds or tree in kinds or any(
        has(part, *kinds) for part in tree))


# ---- equality --------------------------------------------------------------------------------
def same_scalar(p: tuple, g: tuple) -> bool:
    """Equal at every point where both have a value; where one is not real only if nothing else is.

    (ln x² = 2 ln x shall hold though complex logarithms deny it for negative x, and |x| = x shall
    not though it holds for positive x.)
    """
    a, b = values(p), values(g)
    points = max(len(a), len(b))
    exact = [z for z in a + b if isinstance(z, Fraction)]
    if points == 1 == len(exact) and exact[0].denominator > 10**25:
        return False                                         # √2 cut after 25 digits is not √2
    imaginary = has((p, g), ("constant", "i"))
    decisive, others = [], []
    for x, y in zip(a * (points // len(a)), b * (points // len(b))):
        if x is not None and y is not None:
            real = is_real(x) and is_real(y) or imaginary
            (decisive if real else others).append(same_number(x, y))
    verdicts = decisive or others
    return bool(verdicts) and all(verdicts)


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
        sides.append(values(("+", left, negative(right))))
    pairs = [pair for pair in zip(*sides) if None not in pair]
    if kinds[0] != kinds[1] or len(pairs) < 2 or any(
            same_number(number, Fraction(0)) for pair in pairs for number in pair):
        return False
    ratios = [a / b for a, b in pairs]
    return all(same_number(ratios[0], ratio) for ratio in ratios) and (
        kinds[0] == "=" or is_real(ratios[0]) and inexact(ratios[0]).x > 0)


COMPARE = {"<": Decimal.__lt__, ">": Decimal.__gt__, "≤": Decimal.__le__, "≥": Decimal.__ge__,
           "≠": Decimal.__ne__}


def endpoint(tree: tuple) -> Decimal:
    """A point on the real line, to 35 digits so that equal points coincide."""
    if tree in (INFINITY, negative(INFINITY)):
        return Decimal("Infinity" if tree == INFINITY else "-Infinity")
    numbers = values(tree)
    if len(numbers) > 1 or numbers[0] is None or not is_real(numbers[0]):
        raise Unreadable
    return decimal.Context(prec=35).plus(inexact(numbers[0]).x)


def region(tree: tuple) -> tuple:
    """(endpoints, test of membership, variable) of a set of reals, written in whatever way."""
    kind = tree[0]
    if kind == "reals":
        return [], lambda x: True, None
    if kind == "set":
        points = [endpoint(part) for part in tree[1:]]
        return points, lambda x: x in points, None
    if kind == "group" and len(tree) == 5:
        low, high = endpoint(tree[3]), endpoint(tree[4])
        if low < high:
            return [low, high], lambda x: low < x < high or (
                x == low and tree[1] == "[" or x == high and tree[2] == "]"), None
    if kind == "relation" and set(tree[1]) <= COMPARE.keys():
        line = [None if part[0] in ("variable", "index") else endpoint(part) for part in tree[2:]]
        if line.count(None) == 1:
            return [point for point in line if point is not None], lambda x: all(
                COMPARE[op](x if a is None else a, x if b is None else b)
                for op, a, b in zip(tree[1], line, line[1:])), tree[2 + line.index(None)]
    if kind in ("∪", "∩", "∖") or kind == "list" and tree[1] in "∧∨" and tree[2][0] == "relation":
        op, parts = (tree[1], tree[2:]) if kind == "list" else (kind, tree[1:])
        cuts, tests, names = zip(*map(region, parts))
        if len(set(names) - {None}) < 2:
            member = any if op in "∪∨" else all
            return sum(cuts, []), lambda x: (
                tests[0](x) and not any(test(x) for test in tests[1:]) if op == "∖"
                else member(test(x) for test in tests)), names[0]
    raise Unreadable


def same_region(p: tuple, g: tuple) -> bool | None:
    """Sets of reals are equal if they agree at every endpoint and between; None: not such sets."""
    try:
        (cuts, in_p, name_p), (more, in_g, name_g) = region(p), region(g)
    except Unreadable:
        return None
    cuts = sorted({cut for cut in cuts + more if cut.is_finite()})
    if name_p and name_g and name_p != name_g:
        return False
    between = [(a + b) / 2 for a, b in zip(cuts, cuts[1:])]
    outside = [cuts[0] - 1, cuts[-1] + 1] if cuts else [Decimal(0)]
    return all(in_p(x) == in_g(x) for x in cuts + between + outside)


def parts_of(tree: tuple) -> tuple | None:
    return {"list": tree[2:], "set": tree[1:]}.get(tree[0])


def same_parts(p: tuple, g: tuple) -> bool:
    """In any order, unless only one side says which value has which name (x = 1, y = 2)."""
    if len(p) != len(g):
        return False
    names = [len({named(part)[0] for part in side} - {None}) for side in (p, g)]
    if max(names) > 1 and min(names) == 0:
        return all(map(same, p, g))
    left, rest = list(g), []
    for part in p:                                           # what is written alike goes first
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
        other_name = name_p and name_g and name_p != name_g
        return not other_name and same(value_p, value_g) or same_relation(p, g)
    regions = same_region(p, g)
    if regions is not None:
        return regions
    kinds, (p_parts, g_parts) = {p[0], g[0]}, map(parts_of, (p, g))
    if p_parts is not None and g_parts is not None:
        return same_parts(p_parts, g_parts)
    if kinds == {"list", "group"} and ("(", ")") in (p[1:3], g[1:3]):       # 15, -29 for (15, -29)
        p_parts, g_parts = p_parts or p[3:], g_parts or g[3:]
        return len(p_parts) == len(g_parts) and all(map(same, p_parts, g_parts))
    if p_parts is not None or g_parts is not None:           # {5} for 5
        parts = ((p,) if p_parts is None else p_parts, (g,) if g_parts is None else g_parts)
        return all(len(side) == 1 for side in parts) and same(parts[0][0], parts[1][0])
    if kinds == {"group"}:
        if len(p) != len(g) or len(p) == 5 and has((p, g), "variable") and p[1:3] != g[1:3]:
            return False                                     # [a, b) is not (a, b]
        return all(map(same, p[3:], g[3:]))
    if kinds == {"relation"}:
        return same_relation(p, g)
    if g[0] == "base":                                       # the base may be left out, not changed
        return p == ("number", Fraction(g[1]))
    return not kinds & {"group", "relation", "text", "reals", "∪", "∩", "∖"} and same_scalar(p, g)


def plain(tidied: str) -> str:
    """The answer without fonts and spaces: what must agree when nothing can be parsed."""
    text = re.sub(r"\\(?:text\w*|mbox|mathrm)\s*\{([^{}]*)\}", r"\1", tidied)
    text = re.sub(r"\\(?:left|right|displaystyle)(?![A-Za-z])|\\[ ,;!]", " ", text)
    return re.sub(r"(?<!\d)\s+|\s+(?!\d)", "", text)         # but "1 0" is not 10


def is_printed_float(prediction: tuple, gold: str) -> bool:
    """A gold of 4.123105625617661 is a program's √17: the one rounding that is accepted."""
    number = values(prediction)[0]
    if not re.fullmatch(r"-?\d+\.\d{14,17}", gold) or not isinstance(number, Complex):
        return False
    last_digit = Decimal(10) ** -len(gold.partition(".")[2])
    return is_real(number) and abs(number.x - Decimal(gold)) < last_digit


def math_equal(prediction: str, gold: str) -> bool:
    """Is this answer mathematically the gold one? Both are LaTeX, or what models write for it."""
    prediction, gold = " ".join(prediction.split()), " ".join(gold.split())
    if prediction == gold or not prediction or not gold:
        return prediction == gold != ""
    try:
        p, g = tidy(prediction), tidy(gold)
    except Unreadable:                                       # too long
        return False
    letter = re.fullmatch(r"\(?[A-J]\)?", g)                 # a choice, in either case
    if plain(p) == plain(g) or (letter or is_prose(p) and is_prose(g)) and (
            plain(p).casefold() == plain(g).casefold()):
        return True
    # 58,500 is a number; where commas are spaced or bracketed it may also be a list.
    lists = "," in p + g and re.search(r"\d, \d{3}|[({\[]", p + " " + g)
    for thousands in (True, False) if lists else (True,):
        try:
            (p_tree, units), (g_tree, wanted) = read(p, thousands), read(g, thousands)
            if units and wanted and units != wanted:         # a unit may be left out, not changed
                continue
            with decimal.localcontext(CONTEXT):
                if same(p_tree, g_tree) or is_printed_float(p_tree, g):
                    return True
        except Unreadable:
            continue
    return False


# ---- rewards ---------------------------------------------------------------------------------
TASKS = ("kk", "math", "gsm8k")


def reward(problem: dict, response: str, finished: bool) -> float:
    """1.0 if the response ended by itself and its last box is right by its task's rule, else 0.0.

    `finished` is the sampler's word that an end token was sampled: one written out as text, or
    added by an evaluation to a truncated answer, is none. The same rule trains and evaluates.
    """
    if problem["task"] not in TASKS:
        raise ValueError(f"unknown task {problem['task']!r}: one of {', '.join(TASKS)}")
    if not finished:
        return 0.0
    if problem["task"] == "kk":
        return float(kk_correct(response, problem["gold"]))
    box = last_boxed(response)
    return float(box is not None and math_equal(box, problem["gold"]))


# ---- tables ----------------------------------------------------------------------------------
def pass_at_k(n: int, c: int, k: int) -> float:
    """The chance that k of n samples, drawn without replacement, hold one of the c right ones.

    1 - C(n-c, k) / C(n, k): unbiased for "k tries, one right", unlike 1 - (1 - c/n)^k.
    """
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f"pass@{k} of {n} samples, {c} right: needs 0 <= c <= n and 1 <= k <= n")
    return float(1 - Fraction(math.comb(n - c, k), math.comb(n, k)))


def majority(answers: list, rights: list, same_answer=math_equal) -> float:
    """Is the most frequent answer right? Answers vote in classes of equals; None does not vote.

    Tied classes share: with two classes tied and one of them right the value is 0.5, what breaking
    ties at random gives on average. Without any vote it is 0.0.
    """
    classes = []                                         # [an answer, votes, right votes]
    for answer, right in zip(answers, rights, strict=True):
        if answer is None:
            continue
        known = next((c for c in classes if c[0] == answer or same_answer(answer, c[0])), None)
        if known is None:
            classes.append(known := [answer, 0, 0.0])
        known[1] += 1
        known[2] += right
    most = max((votes for _, votes, _ in classes), default=0)
    tied = [right / votes for _, votes, right in classes if votes == most]
    return sum(tied) / len(tied) if tied else 0.0


def wilson(share: float, n: float, z: float = 1.959964) -> tuple[float, float]:
    """95 % interval of a share seen in n trials; unlike share ± 2σ it stays honest near 0 and 1."""
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def trials(groups: list[list[float]]) -> float:
    """How many independent trials the rewards are worth, one list per problem.

    Samples of one problem resemble each other. Solving p (1 - p) / trials = the variance seen
    between problems gives a number between that of problems and that of samples.
    """
    n, m = sum(map(len, groups)), len(groups)
    share = sum(map(sum, groups)) / n
    variance = sum((sum(group) - share * len(group)) ** 2 for group in groups) / n**2
    variance *= m / max(m - 1, 1)
    return min(n, max(m, share * (1 - share) / variance)) if variance else m


def summary(rollouts: list[dict]) -> dict:
    """One row of the table: what scored rollouts, all of one task, come to."""
    problems = {}
    for rollout in rollouts:
        problems.setdefault(str([rollout.get("step"), rollout["id"]]), []).append(rollout)
    groups = [[rollout["reward"] for rollout in group] for group in problems.values()]
    n, fewest = len(rollouts), min(map(len, groups))
    share = sum(map(sum, groups)) / n
    low, high = wilson(share, trials(groups))
    row = {"problems": len(groups), "n": n, "accuracy": share, "low": low, "high": high,
           "cut_off": sum(not rollout["finished"] for rollout in rollouts) / n,
           "length": sum(len(rollout["tokens"]) for rollout in rollouts) / n}
    equal = math_equal if rollouts[0]["task"] != "kk" else lambda a, b: roles(a) == roles(b)
    for k in [2**i for i in range(fewest.bit_length()) if fewest > 1]:
        chances = [pass_at_k(len(group), int(sum(group)), k) for group in groups]
        votes = []
        for group in problems.values():                      # every run of k samples, side by side
            runs = [group[i:i + k] for i in range(0, len(group) - k + 1, k)]
            votes.append(sum(majority(
                [last_boxed(one["response"]) if one["finished"] else None for one in run],
                [one["reward"] for one in run], equal) for run in runs) / len(runs))
        row |= {f"pass@{k}": sum(chances) / len(groups), f"majority@{k}": sum(votes) / len(groups)}
    return row


def style(rollout: dict) -> str:
    """The format of an answer, right or wrong. K&K: one of kk_gen.STYLES, mixed or other."""
    if rollout["task"] == "kk":
        from kk_gen import style_of         # here, because it imports cli, and cli this file
        return style_of(rollout["response"])
    if re.search(r"^[ \t]*(?:```|def \w+\()|<llm-code>", rollout["response"], re.MULTILINE):
        return "code"
    before, box, _ = rollout["response"].rpartition("\\boxed")
    return "prose" if before.strip(" $\n") or not box else "bare"


def styles(rollouts: list[dict]) -> dict[str, dict[str, float]]:
    """Each style's share of scored rollouts, and what share of its answers is right."""
    rewards = {}
    for rollout in rollouts:
        rewards.setdefault(style(rollout), []).append(rollout["reward"])
    return {name: {"share": len(of) / len(rollouts), "right": sum(of) / len(of)}
            for name, of in sorted(rewards.items())}


def table(rows: list[dict]) -> str:
    """The rows as aligned text; pass@k and majority@k where there are any."""
    ks = sorted({name for row in rows for name in row if "@" in name},
                key=lambda name: (name[0] == "m", int(name.split("@")[1])))
    lines = [["task", "level", "n", "accuracy", "95 % interval", "cut off", "length", *ks]]
    for row in rows:
        level = "-" if row["level"] is None else str(row["level"])
        lines.append([row["task"], level, str(row["n"]), f"{row['accuracy']:.1%}",
                      f"{row['low']:.1%} - {row['high']:.1%}", f"{row['cut_off']:.1%}",
                      f"{row['length']:.0f}", *(f"{row[k]:.1%}" if k in row else "" for k in ks)])
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join("  ".join(cell.ljust(width) if i < 2 else cell.rjust(width)
                               for i, (cell, width) in enumerate(zip(line, widths))).rstrip()
                     for line in lines)


# ---- command ---------------------------------------------------------------------------------
@dataclasses.dataclass
class Settings:
    rollouts: str                   # JSONL: problems with response, tokens, finished (sample.py)
    out: str | None = None          # also write the table here, as one JSON object


FIELDS = {"task": str, "gold": str, "response": str, "finished": bool, "tokens": list}


def read_rollouts(path: str) -> list[dict]:
    """The rollouts of a file of sample.py or grpo.py; anything else stops with file and line."""
    import cli                          # here, because cli imports last_boxed from this file
    rollouts = []
    for number, rollout in cli.numbered_jsonl(path, "id", *FIELDS):
        rollouts.append(rollout)
        for field, kind in FIELDS.items():
            if not isinstance(rollout[field], kind):
                cli.stop(f"{path}:{number}: {field!r} is not a {kind.__name__}")
        if rollout["task"] not in TASKS:
            cli.stop(f"{path}:{number}: task {rollout['task']!r} is none of {', '.join(TASKS)}")
        if not isinstance(rollout.get("level"), int | float | str | None):
            cli.stop(f"{path}:{number}: 'level' is neither a number nor a string")
    if not rollouts:
        cli.stop(f"{path}: holds no rollouts")
    return rollouts


def main():
    import cli
    from tqdm import tqdm
    settings = cli.parse(Settings, __doc__, positional="rollouts")
    if settings.out:
        cli.check_output(settings.out)
    path, rollouts = settings.rollouts, read_rollouts(settings.rollouts)
    differ, cells = 0, {}
    for rollout in tqdm(rollouts, desc="rewards", unit=" responses", leave=False, delay=1):
        stored = rollout.get("reward")
        rollout["reward"] = reward(rollout, rollout["response"], rollout["finished"])
        differ += stored is not None and stored != rollout["reward"]
        cells.setdefault(rollout["task"], {}).setdefault(rollout.get("level"), []).append(rollout)
    rows = []
    for task, levels in cells.items():
        if len(levels) > 1:
            levels["all"] = sum(levels.values(), [])
        for level, group in sorted(levels.items(), key=lambda item: (
                item[0] is None, isinstance(item[0], str), item[0] or 0)):
            rows.append({"task": task, "level": level, **summary(group),
                         "styles": styles(group)})
    print(table(rows))
    for row in rows:
        level = "" if row["level"] is None else f", level {row['level']}"
        print(f"{row['task']}{level}: " + ", ".join(
            f"{name} {of['share']:.1%} (right {of['right']:.1%})" for name, of in sorted(
                row["styles"].items(), key=lambda item: -item[1]["share"])))
    if differ:
        print(f"{differ} of {len(rollouts)} stored rewards differ from these rules")
    if settings.out:
        cli.write_jsonl(settings.out, [{"rollouts": path, "rows": rows, "stored_differ": differ}])


if __name__ == "__main__":
    main()
