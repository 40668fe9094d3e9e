"""Words: those that are answers, and those behind a value, which are units, nouns, or doubts."""
import re
from fractions import Fraction


class Unreadable(Exception):
    """The rules cannot read this text, or cannot give it a value."""


def require(condition) -> None:
    if not condition:
        raise Unreadable


REALS, NOTHING = ("reals",), ("set",)
NUMBERS = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen
    fifteen sixteen seventeen eighteen nineteen twenty""".split()
SYNONYMS = {word: ("number", Fraction(n)) for n, word in enumerate(NUMBERS)}
SYNONYMS |= dict.fromkeys(("no solution", "no solutions", "no real solution", "no real solutions",
                           "none", "empty set"), NOTHING)
SYNONYMS |= {"dne": ("text", "does not exist"), "all real numbers": REALS, "all reals": REALS}
LEAD = re.compile(r"(?:(?:so|thus|hence|therefore) )?(?:there (?:are|is)(?: exactly| a total of)?"
                  r"|(?:the )?(?:final |correct )?answer(?: is)?|we (?:get|have))")
SCALES = {"dozen": 12, "hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9,
          "trillion": 10**12}
UNITS = {word: name for name, words in {                     # each unit's other names
    "percent": "% percentage", "degree": "° deg", "radian": "rad", "dollar": "$ usd",
    "cent": "cents", "euro": "€", "pound sterling": "£", "inch": "in inches", "foot": "ft feet",
    "yard": "yd", "mile": "mi", "millimeter": "mm", "centimeter": "cm", "meter": "m metre",
    "kilometer": "km", "gram": "g", "kilogram": "kg", "milligram": "mg", "pound": "lb lbs",
    "ounce": "oz", "second": "s sec secs", "minute": "min", "hour": "h hr", "liter": "l litre",
    "milliliter": "ml", "mile/hour": "mph", "^2": "square squared sq", "^3": "cubic cubed cu",
    "/": "per", "am": "am", "pm": "pm",
    "": "unit st nd rd th of the a an total each old"}.items() for word in words.split()}
WHOLE_UNITS = set(UNITS.values())
DOUBTS = set("""K M B not no non never is are isn't was if then else unless but than because since
    too as wrong false incorrect except maybe possibly probably either neither nor answer about
    factorial negative minus plus over root to out point more less fewer least most under above
    below up around between nearly almost roughly approximately impossible score gross lakh crore
    thirty forty fifty sixty seventy eighty ninety inverse repeating pi nope none doubled tripled
    halved added subtracted multiplied divided""".split())
PART = re.compile(r"(?:four|fif|six|seven|eigh|nin|ten|eleven|twelf|\w*teen|\w*tie|hundred|thousand"
                  r"|\w*illion)ths?|\w*illions?|half|halve|third|quarter")          # 3 fourths
# What must be among words after a value, unless they are in \text{...}: 4 abcd is a product.
NOUNS = re.compile(
    r"(?:[A-Za-z']+[ -]+)*?(?:[A-Za-z][A-Za-z']*[aeiouy][A-Za-z']*s|people|men|women|children"
    r"|hundred|thousand|dozen|[a-z]+illion|%s)(?![A-Za-z])" % "|".join(
        name for name in [*UNITS, *UNITS.values()] if len(name) > 1 and name.isalpha()))


def singular(word: str) -> str:
    return word[:-1] if re.fullmatch(r"[\w-]+[^s]s", word) else word


def is_part(word: str, written: str, following: str) -> bool:
    """Is it 3 of something smaller, or larger? As in 3 fourths. But 9 ninth graders are 9."""
    last = word.rpartition("-")[2]
    if PART.fullmatch(last):
        return not (written.endswith(("th", "third")) and following.endswith("s"))
    return word in SCALES or last in NUMBERS


def units_of(words: list[str]) -> tuple[int, set[str]]:
    """The factor, and the units and nouns, that words after a value stand for.

    `foot^2`, or `mile` and `/hour`, are units. Nouns begin with an a, as `a apple` does.
    """
    factor, unit, power, nouns = 1, "", "", set()
    for place, written in enumerate(words):
        word = written.casefold()
        word = UNITS.get(word, UNITS.get(singular(word), singular(word)))
        require({word, written}.isdisjoint(DOUBTS) or written.casefold() == "points")
        first = place == 0 or words[place - 1].casefold() in SCALES
        if first and word in SCALES:
            factor *= SCALES[word]
        elif word.startswith("^"):
            require(not first or not written.endswith("ed"))            # "5 squared" is 25.
            power = word
        elif word in WHOLE_UNITS:
            unit += word
        elif is_part(word, written, (*words, "")[place + 1]) or len(word) == 1 or (
                len(words) == 1 and re.search("...ed$", word)):         # "5 doubled"
            raise Unreadable
        elif unit.endswith("/"):
            unit = unit[:-1]                                 # $5 per month is $5
        else:
            nouns.add("a " + word)
    return factor, nouns | set(re.split("(?=/)", unit + power)) - {""}
