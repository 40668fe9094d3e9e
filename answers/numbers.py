"""A tree to a number.

A number is an exact Fraction while that is possible. Otherwise it is a complex number of two
Decimals with 60 digits, which knows how far off it can be. With the 16 digits of a float,
1.4142135623730951 would equal √2. What can be neither exact nor close enough has no value:
otherwise some n + 1 would equal n.
"""
import math
import re
import zlib
from decimal import Context, Decimal, localcontext
from fractions import Fraction
from functools import lru_cache, reduce

from answers.latex import Unreadable, require
from answers.tree import INFINITY, has

CONTEXT = Context(prec=60, Emax=10**6, Emin=-10**6)
PI = Decimal("3.14159265358979323846264338327950288419716939937510582097494459230781640629")
ROUNDING = Decimal("1e-57")     # how far off one operation can be, as a share of its result
LARGEST = 2**15         # bits of an exact number
CLEAREST = 150          # bits of an exact number that 60 digits tell from all its neighbours


class Complex:
    """A complex number: both parts are at most `error` off. Fractions can be added to it etc."""

    def __init__(self, real: Decimal, imag: Decimal = Decimal(0), error: Decimal = Decimal(0)):
        self.real, self.imag, self.size = real, imag, max(abs(real), abs(imag))
        self.error = error + self.size * ROUNDING

    def __add__(self, other):
        other = inexact(other)
        small, large = sorted((self, other), key=lambda z: z.size)
        require(not small.error < small.size < large.error)  # The sum would lose the small one.
        return Complex(self.real + other.real, self.imag + other.imag, self.error + other.error)

    def __mul__(self, other):
        other = inexact(other)
        error = self.size * other.error + self.error * (other.size + other.error)
        return Complex(self.real * other.real - self.imag * other.imag,
                       self.real * other.imag + self.imag * other.real, 2 * error)

    def __rtruediv__(self, other):
        require(not self.may_be_zero())
        square = self.real * self.real + self.imag * self.imag
        return Complex(self.real / square, -self.imag / square, 2 * self.error / square) * other

    def __abs__(self):
        return Complex((self.real * self.real + self.imag * self.imag).sqrt(), error=self.error * 2)

    def may_be_zero(self) -> bool: return self.size <= self.error
    def __neg__(self): return Complex(-self.real, -self.imag, self.error)
    def __sub__(self, other): return self + -other
    def __rsub__(self, other): return -self + other
    def __truediv__(self, other): return 1 / inexact(other) * self
    __radd__, __rmul__ = __add__, __mul__


def inexact(number) -> Complex:
    if isinstance(number, Complex):
        return number
    return Complex(Decimal(number.numerator) / number.denominator)


def bits(number: Fraction) -> int:
    return number.numerator.bit_length() + number.denominator.bit_length()


def bounded(number):
    require(isinstance(number, Complex) or bits(number) <= LARGEST)
    return number


def is_clear(number, *others) -> bool:
    """Are 60 digits enough to tell it from all numbers like it? A factor 2^n needs no digits."""
    if isinstance(number, Complex) or all(isinstance(other, Fraction) for other in others):
        return True
    n = abs(number.numerator * number.denominator)
    return n.bit_length() - (n & -n).bit_length() <= CLEAREST


def product(*numbers):
    return reduce(lambda a, b: bounded(a * b), numbers)


def is_real(z) -> bool:
    return isinstance(z, Fraction) or abs(z.imag) <= z.error


def same_number(a, b) -> bool:
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return a == b
    a, b = inexact(a), inexact(b)
    error = a.error + b.error
    if a.may_be_zero() and b.may_be_zero():
        return error < Decimal("1e-30")
    off = max(abs(a.real - b.real), abs(a.imag - b.imag))
    return off <= error < max(a.size, b.size) * Decimal("1e-20")


def cos_sin(x: Decimal) -> tuple[Decimal, Decimal]:
    """Both Taylor series at once, after whole turns are taken off."""
    require(abs(x) <= 10**9)
    x, total, term, n = x % (2 * PI), [Decimal(1), Decimal(0)], Decimal(1), 0
    while abs(term) > Decimal("1e-62"):
        n += 1
        term = term * x / n
        total[n % 2] += term if n % 4 < 2 else -term
    return total[0], total[1]


def exp(z) -> Complex:
    z = inexact(z)
    require(abs(z.real) <= 10**6 and not z.error < z.size < Decimal("1e-25"))
    size, (cos, sin) = z.real.exp(), cos_sin(z.imag) if z.imag else (Decimal(1), Decimal(0))
    return Complex(size * cos, size * sin, size * (2 * z.error + ROUNDING))


def log(z) -> Complex:
    """ln|z| + i·angle. The angle is a float's, then two Newton steps each treble its 16 digits."""
    z = inexact(z)
    require(not z.may_be_zero())
    size = abs(z).real
    x, y = z.real / size, z.imag / size
    angle = Decimal(math.atan2(y, x)) if y else PI * (x < 0)
    for _ in range(2 if y else 0):
        cos, sin = cos_sin(angle)
        angle += y * cos - x * sin
    return Complex(size.ln(), angle, 2 * z.error / size)


def whole_root(n: int, degree: int) -> int | None:
    """The exact root of a whole number, or None."""
    root = math.isqrt(n) if degree == 2 else round(n ** (1 / degree)) if n < 2**53 else 0
    return root if root**degree == n else None


def power(a, b):
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        if a == 0:
            return Fraction(0) ** min(1, max(-1, b.numerator))        # 0^(-1) raises, 0^0 is 1
        degree = b.denominator
        roots = [whole_root(n, degree) if a > 0 and 1 < degree < 64 else None
                 for n in (a.numerator, a.denominator)]
        if None not in roots:
            a, degree = Fraction(*roots), 1
        if degree == 1:
            if abs(a) == 1:
                return a ** (b.numerator % 2)
            require(abs(b.numerator) * bits(a) <= LARGEST)
            return a ** b.numerator
    elif isinstance(b, Fraction) and b.denominator == 1 and 0 < b < 20:
        return product(*[a] * int(b))
    return exp(b * log(a))


def root(a, degree=Fraction(2)):
    """Here the odd root of a negative number is negative, as at school."""
    odd = isinstance(degree, Fraction) and degree.denominator == 1 and degree.numerator % 2
    if odd and is_real(a) and a.real < 0:
        return -power(-a, 1 / degree)
    return power(a, 1 / degree)


def whole(z, top: int) -> int:
    require(isinstance(z, Fraction) and z.denominator == 1 and 0 <= z <= top)
    return int(z)


def rounded(z, how) -> Fraction:
    require(is_real(z))
    nearest = round(z.real)
    if isinstance(z, Complex) and abs(z.real - nearest) <= z.error:   # (√2)² is 2
        require(z.error < Decimal("1e-20"))
        return Fraction(nearest)
    return Fraction(how(z.real))


I = Complex(Decimal(0), Decimal(1))
CALLS = {                       # most of them by way of exp and log
    "sqrt": root, "exp": exp, "ln": log, "log": lambda z, base=Fraction(10): log(z) / log(base),
    "sin": lambda z: (exp(I * z) - exp(-(I * z))) / Fraction(2) * -I,
    "cos": lambda z: (exp(I * z) + exp(-(I * z))) / Fraction(2), "cis": lambda z: exp(I * z),
    "tan": lambda z: CALLS["sin"](z) / CALLS["cos"](z), "sec": lambda z: 1 / CALLS["cos"](z),
    "cot": lambda z: CALLS["cos"](z) / CALLS["sin"](z), "csc": lambda z: 1 / CALLS["sin"](z),
    "arcsin": lambda z: -I * log(I * z + power(1 - z * z, Fraction(1, 2))),
    "arccos": lambda z: Complex(PI / 2) - CALLS["arcsin"](z),
    "arctan": lambda z: (log(1 + I * z) - log(1 - I * z)) / Fraction(2) * -I,
    "binom": lambda n, k: product(Fraction(1), *(
        (n - i) / Fraction(i + 1) for i in range(whole(k, 60)))),
    "!": lambda n: Fraction(math.factorial(whole(n, 200))), "|": abs,
    "mod": lambda a, n: Fraction(a % n),
    "⌊": lambda z: rounded(z, math.floor), "⌈": lambda z: rounded(z, math.ceil)}


def noise(*parts: str) -> int:
    """32 random bits, always the same for the same parts."""
    return zlib.crc32(" ".join(parts).encode("utf-8", "replace"))


def place(name: str, point: int) -> Fraction:
    """The value of a variable at one of the points.

    Two formulas that are equal at all of them are taken for the same. So there are fractions and
    whole numbers, small and large ones, both signs for each variable and every two signs for each
    two variables: |x - 10| must not pass for 10 - x, nor |xy| for xy, nor ⌈n/2⌉ for ⌊n/2⌋ + 1.
    """
    random = noise(name, str(point))
    part = Fraction(random % 997 + 1, 999)
    if point < 4:               # all in (0, 1), all in (1, 9), all negative, or of both signs
        return (part, 1 + 8 * part, -3 * part, 10 * part - 5)[point]
    if point < 8:
        return Fraction(5 + random % 8)                      # n! and C(n, k) need these
    if point < 12:                                           # 2520 is a multiple of 1 to 10
        return 2520 * (1 + random % 400) * Fraction((-1) ** point) + (0, 1, -1, 0)[point - 8]
    code = ord(name) if len(name) == 1 else noise(name)      # Six bits tell all letters apart.
    sign = 1 - 2 * (code >> point % 6 & 1)
    if point < 18:
        return sign * (point - 12 + part)                    # between small whole numbers
    return -sign * part * 10 ** (2 * (point - 18))


def value(tree: tuple, point: int):
    """The number a tree stands for where its variables are at one of the points."""
    kind, *parts = tree
    if kind == "number":
        return parts[0]
    if kind == "variable":
        return place(parts[0], point)
    require(tree != INFINITY and kind != "text")
    if kind == "constant":
        return {"pi": Complex(PI), "i": I, "e": exp(Fraction(1))}[parts[0]]
    if kind == "base":
        return in_base(*parts)
    subtrees = [part for part in parts if isinstance(part, tuple)]
    numbers = [value(part, point) for part in subtrees]
    if kind == "index":
        return place(f"{parts[0][1]} {spelled(numbers[1])}", point)
    result = operation(kind, parts, numbers)                 # But 10^60 + 1 + π is not 10^60 + π.
    require(all(is_clear(number, result) or has(part, "variable")
                for part, number in zip(subtrees, numbers)))
    return result


def in_base(number: Fraction, base: int) -> Fraction:
    """1101 and 0.011 are not written in base ten, but were read as if they were."""
    places = next(n for n in range(99) if (number * 10**n).denominator == 1)
    return Fraction(int(str(number * 10**places), base), base**places)


def operation(kind: str, parts: list, numbers: list):
    """A node's number from those of its parts."""
    if kind == "+":
        return reduce(lambda a, b: bounded(a + b), numbers)
    if kind in ("*", "^"):
        return product(*numbers) if kind == "*" else power(*numbers)
    if kind == "ratio" and len(numbers) == 2:
        return numbers[0] / numbers[1]
    if kind == "function" and parts[0] in CALLS:
        return CALLS[parts[0]](*numbers)
    names = [part for part in (kind, *parts) if isinstance(part, str)]
    return Fraction(noise(*names, *map(spelled, numbers)), 2**32)     # f(a) is f(b) if a is b


def spelled(number) -> str:
    if isinstance(number, Fraction) and bits(number) > 64:
        return str(hash(number))
    return f"{inexact(number).real:.30e} {inexact(number).imag:.30e}"


def points(*trees: tuple) -> range:
    """Where to compare formulas: at more points if they have bends or steps, as |x| has."""
    if not has(trees, "variable"):
        return range(1)
    return range(24 if re.search(r"[|⌊⌈]|sqrt|mod|, [2-9]\)", str(trees)) else 12)


@lru_cache(2**14)
def value_at(tree: tuple, point: int):
    """The tree's number at a point, or None."""
    with localcontext(CONTEXT):
        try:
            return value(tree, point)
        except (Unreadable, ArithmeticError, ValueError, TypeError, StopIteration):
            return None


@lru_cache(4096)
def values(tree: tuple) -> tuple:
    return tuple(value_at(tree, point) for point in points(tree))
