"""LaTeX to tokens: pairs of kind and value.

The kinds are number, time, variable, constant, function, word, frac, begin, end and op (an operator
or a bracket, mostly one character, however the text spells it).
"""
import re
import unicodedata
from fractions import Fraction

from answers.words import NOUNS, UNITS, Unreadable, require

LONGEST = 500           # A longer answer is not read as mathematics. It is only compared as text.
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
    (r"(?<=\d)\^\s*\{?\s*(?:\\(?:text|mathrm)\s*)?\{?\s*(?:st|nd|rd|th)\b[\s}]*", ""),   # 5^{th}
    (r"\\(?:begin|end)\s*\{(?:aligned|align\*?|gathered|split|equation\*?)\}\s*&?", " "),
    (r"(?:\\\\)?\s*&\s*(?==)|\\\\\s*(?==|$)", ""),                      # x &= 1 + 2 \\ &= 3
    (r",\s*(?=&|\\\\)", ""),                                             # x, & \text{if } x > 0
    (r"(?<=&)\s*\\text\s*\{\s*(?:if|for|when)\b", r"\\text{"),
    (r"\\prime\b|\^\s*\{?\s*\\prime\s*\}?", "'"),                        # f^{\prime}
    (r"(?i)\b(\d\d?):00(?=\W*(?:text|mathrm)?\W*[ap]\.?m\b)", r"\1"),    # 7:00 p.m.
    (r"\(\s*(?:\\(?:text|mathrm)\s*\{\s*)?mod\s*\}?\s*(\w+)\s*\)", r"\\pmod{\1}"),
    (r"(?:[(\[]|\\\{)(?![^][(){}]*,0\d\d)[^][(){}\s]*,[^][(){}\s]*(?=[])]|\\\})",
     lambda match: match[0].replace(",", ", ")),                         # (1,100), not (1,000)
    (r"\^\s*\{?\s*(?:\\circ|\\degree|°)(?![a-z])\s*\}?", "°"),
    (r"\\mathbb\s*\{?\s*R\s*\}?", "ℝ"),
    (r"^\*\*(.*)\*\*$", r"\1"), (r"\*\*", "^"),                          # **5**, 2**10
    (r"(?<=[a-zA-Z])\.", ""))]                                           # sq. ft., p.m.
TRIGONOMETRIC = "sin cos tan sec csc cot cis".split()
FUNCTIONS = TRIGONOMETRIC + "arcsin arccos arctan ln log exp sqrt binom".split()
OPAQUE = "sum prod int lim max min gcd lcm det overline bar hat".split()    # compared, not computed
IGNORED = set(",;:! ./()[]") | set("""left right big Big bigg Bigg bigl bigr Bigl Bigr displaystyle
    textstyle limits quad qquad bf rm it large Large LARGE huge Huge small mathbf boldsymbol bm
    mathit mathcal mathbb vec overrightarrow angle triangle boxed fbox text mbox mathrm textbf
    textit operatorname""".split())                                     # only the look of an answer
COMMANDS = {name: ("op", op) for op, names in {             # what follows a backslash
    "*": "cdot times ast", "/": "div", "±": "pm", "∓": "mp", "∪": "cup bigcup", "∩": "cap bigcap",
    "∖": "setminus backslash", "∈": "in", "<": "lt", ">": "gt", "≤": "le leq leqslant",
    "≥": "ge geq geqslant", "≠": "ne neq", "≈": "approx", "⦃": "{ lbrace", "⦄": "} rbrace",
    "|": "vert lvert rvert |", "=": "equiv", "⌊": "lfloor", "⌋": "rfloor", "⌈": "lceil", "⌉":
    "rceil", "(": "langle", ")": "rangle", "$": "$", "%": "%", "⏎": "\\", "°": "degree",
    "⁄": "over", "∅": "emptyset varnothing", "∧": "land wedge", "∨": "lor vee", "∣": "mid",
    "→": "to rightarrow", "pmod": "pmod mod", "bmod": "bmod", "choose": "choose",
    }.items() for name in names.split()}
COMMANDS |= {name: ("function", name) for name in FUNCTIONS + OPAQUE}
COMMANDS |= dict.fromkeys(("dbinom", "tbinom"), ("function", "binom"))
COMMANDS |= dict.fromkeys(("frac", "dfrac", "tfrac", "cfrac"), ("frac", ""))
COMMANDS |= {name: ("constant", name) for name in ("pi", "infty")}
LETTERS = {name: COMMANDS[name] for name in FUNCTIONS + ["pi", "infty"]}    # needs no backslash
LETTERS |= {name: ("constant", name) for name in "ei"}
PIECES = re.compile("|".join([*FUNCTIONS, "pi", "."]))        # 2sinx is 2 sin x
TOKEN = re.compile(r"""
    \\(?P<font>text\w*|mbox|mathrm|operatorname)\*?\s*\{(?P<content>[^{}]*)\}
  | \\(?P<edge>begin|end)\s*\{(?P<environment>\w+)\*?\}(?:\s*\{[lcr|\s]*\})?
  | (?P<whole>\d*)\.(?P<start>\d*)\s*\\(?:overline|bar)\s*\{?\s*(?P<cycle>\d+)\s*\}?
  | (?<![\d:])(?P<time>\d?\d:[0-5]\d(?::[0-5]\d)?)(?![\d:.])
  | (?P<science>(?:\d+(?:\.\d+)?(?:E[+-]?|e)|\d+\.\d+e[+-])\d{1,3}(?![\d.]))
  | (?P<thousands>[1-9]\d{0,2}(?:,\d{3})+(?!\d)(?:\.\d*)?)
  | (?P<number>\d+\.?\d*|\.\d+)
  | \\(?P<command>[A-Za-z]+|.)
  | (?P<primed>[A-Za-z]'+)(?![A-Za-z])
  | (?P<letters>[A-Za-z]+(?:[-'][A-Za-z]+)*)
  | (?P<symbol><=|>=|!=|\S)
  | \s""", re.VERBOSE)


def tidy(text: str) -> str:
    """One spelling for what LaTeX, Unicode and keyboards spell in many ways."""
    text = text.translate(CHARACTERS)
    require(len(text) <= LONGEST)
    for pattern, replacement in TIDY:
        text = pattern.sub(replacement, text)
    return text.rstrip(" .").strip()


def is_prose(tidied: str) -> bool:
    """Is it words, as `all real numbers` is? Only letters and punctuation, 3 letters in a row."""
    bare = re.sub(r"\\(?:text\w*|mbox|mathrm)\s*\{([^{}]*)\}|\\[ ,;]", r" \1", tidied)
    return re.fullmatch(r"(?:[^\W\d_]|[\s'.,:!-])*", bare) is not None and any(
        len(run) > 2 and run not in LETTERS and run != "and" for run in re.findall(r"\w+", bare))


def is_word(match, before: str) -> bool:
    """Are letters outside of \\text{...} a word? `before` is the kind of the token before them."""
    run, at, text = match[0], match.start(), match.string
    if before == "word" and text[:at].rstrip()[-1:].isalpha() or (
            before == "number" and len(run) > 1 and run.lower() in UNITS):
        return True
    if len(run) < 4 and run not in ("red", "men") or run in LETTERS or run[:-1] in LETTERS:
        return False                                         # 2 logs is a product of log s
    return at == 0 or not re.match(r"[\w})\]!]", text[at - 1]) and NOUNS.match(text, at) is not None


def letters(run: str, word: bool):
    """Tokens of a run of letters: a word, a function, a constant, or one variable per letter."""
    if run.lower() in ("and", "or"):
        yield ("op", "∧" if run.lower() == "and" else "∨")
    elif word:
        yield ("word", run)
    else:
        for piece in [run] if run in LETTERS else PIECES.findall(run):
            yield LETTERS.get(piece, ("op" if piece in "-'" else "variable", piece))


def tokenize(text: str, words: bool, thousands: bool):
    """The tokens of a tidy text. `words`: letters are words. `thousands`: 1,234 is one number."""
    before = ""
    for match in TOKEN.finditer(text):
        kind, piece, tokens = match.lastgroup, match[0], []
        if kind == "content":                                # \text{...}, \mathrm{i}
            inside, font = match["content"].strip(), match["font"]
            words_inside = len(inside) != 1 or font not in ("mathrm", "operatorname")
            tokens = ([COMMANDS[inside]] if inside in FUNCTIONS
                      else tokenize(inside, words_inside, thousands))
        elif kind == "environment":
            tokens = [(match["edge"], match["environment"])]
        elif kind == "cycle":                                # 0.1666... = 0.1 + (6/9) / 10
            shift, cycle = 10 ** len(match["start"]), match["cycle"]
            tokens = [("number", Fraction(int("0" + match["whole"] + match["start"]), shift)
                       + Fraction(int(cycle), shift * (10 ** len(cycle) - 1)))]
        elif kind == "time":
            tokens = [("time", tuple(map(Fraction, piece.split(":"))))]
        elif kind in ("number", "thousands", "science"):
            numbers = [piece.replace(",", "")] if thousands else piece.split(",")
            tokens = [token for number in numbers
                      for token in (("op", ","), ("number", Fraction(number.rstrip("."))))][1:]
        elif kind == "command" and match["command"] not in IGNORED:
            tokens = [COMMANDS.get(match["command"], ("variable", match["command"]))]
        elif kind == "letters":
            tokens = letters(piece, words or is_word(match, before))
        elif kind == "primed" or kind == "symbol" and piece.isalpha() and piece != "ℝ":
            tokens = [("variable", unicodedata.name(piece, piece).split()[-1].lower()
                       if kind == "symbol" else piece.replace("'", "′"))]      # θ is \theta
        elif kind == "symbol" and not (words and piece == "'"):
            tokens = [("op", {"<=": "≤", ">=": "≥", "!=": "≠"}.get(piece, piece))]
        for token in tokens:
            before = token[0]
            yield token
