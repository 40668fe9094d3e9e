"""A tree to a number.

A number is an exact Fraction while that is possible and small. Otherwise it is a complex number of
two Decimals with 50 digits: with the 16 digits of a float, 1.4142135623730951 would equal √2.
"""
import math
import zlib
from decimal import Context, Decimal, localcontext
from fractions import Fraction
from functools import lru_cache, reduce

from answers.latex import Unreadable, require
from answers.tree import INFINITY, has

CONTEXT = Context(prec=50, Emax=10**6, Emin=-10**6)
PI = Decimal("3.14159265358979323846264338327950288419716939937510582097494459230781640629")
LARGEST = 2048          # bits of an exact number


class Complex:
    """A complex number. Fractions can be added to it, multiplied with it and so on."""

    def __init__(self, real: Decimal, imag: Decimal = Decimal(0)):
        self.real, self.imag = real, imag

    def __add__(self, other):
        other = inexact(other)
        return Complex(self.real + other.real, self.imag + other.imag)

    def __mul__(self, other):
        other = inexact(other)
        return Complex(self.real * other.real - self.imag * other.imag,
                       self.real * other.imag + self.imag * other.real)

    def __rtruediv__(self, other):
        square = self.real * self.real + self.imag * self.imag
        return Complex(self.real / square, -self.imag / square) * other

    def __neg__(self): return Complex(-self.real, -self.imag)
    def __sub__(self, other): return self + -other
    def __rsub__(self, other): return -self + other
    def __truediv__(self, other): return 1 / inexact(other) * self
    def __abs__(self): return Complex((self.real * self.real + self.imag * self.imag).sqrt())
    __radd__, __rmul__ = __add__, __mul__


def inexact(number) -> Complex:
    if isinstance(number, Complex):
        return number
    return Complex(Decimal(number.numerator) / number.denominator)


def bits(number: Fraction) -> int:
    return number.numerator.bit_length() + number.denominator.bit_length()


def bounded(number):
    return inexact(number) if isinstance(number, Fraction) and bits(number) > LARGEST else number


def product(*numbers):
    return reduce(lambda a, b: bounded(a * b), numbers)


def is_real(z) -> bool:
    return isinstance(z, Fraction) or abs(z.imag) <= Decimal("1e-35") * max(abs(z.real), 1)


def same_number(a, b) -> bool:
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return a == b
    a, b = inexact(a), inexact(b)
    size = max(abs(a.real), abs(a.imag), abs(b.real), abs(b.imag))
    off = max(abs(a.real - b.real), abs(a.imag - b.imag))
    return off <= size * Decimal("1e-32") + Decimal("1e-40")


def cos_sin(x: Decimal) -> tuple[Decimal, Decimal]:
    """Both Taylor series at once, after whole turns are taken off."""
    require(abs(x) <= 10**9)
    x, total, term, n = x % (2 * PI), [Decimal(1), Decimal(0)], Decimal(1), 0
    while abs(term) > Decimal("1e-52"):
        n += 1
        term = term * x / n
        total[n % 2] += term if n % 4 < 2 else -term
    return total[0], total[1]


def exp(z) -> Complex:
    z = inexact(z)
    require(abs(z.real) <= 10**6)
    size, (cos, sin) = z.real.exp(), cos_sin(z.imag) if z.imag else (Decimal(1), Decimal(0))
    return Complex(size * cos, size * sin)


def log(z) -> Complex:
    """ln|z| + i·angle. The angle is a float's, then one Newton step trebles its 16 digits."""
    z = inexact(z)
    size = abs(z).real
    x, y = z.real / size, z.imag / size
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
        return product(*[a] * int(b))
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
    "⌊": lambda z: rounded(z, math.floor), "⌈": lambda z: rounded(z, math.ceil)}


def noise(*parts: str) -> int:
    """32 random bits, always the same for the same parts."""
    return zlib.crc32(" ".join(parts).encode("utf-8", "replace"))


def value(tree: tuple, point: int):
    """The number a tree stands for where its variables are at one of the four points."""
    kind, *parts = tree
    if kind == "number":
        return parts[0]
    if kind == "variable":      # all in (0, 1), all in (1, 9), all negative, or of both signs
        part = Fraction(noise(parts[0], str(point)) % 997 + 1, 999)
        return (part, 1 + 8 * part, -3 * part, 10 * part - 5)[point]
    require(tree != INFINITY and kind != "text")
    if kind == "constant":
        return {"pi": Complex(PI), "i": I, "e": exp(Fraction(1))}[parts[0]]
    if kind == "base":
        return Fraction(int(str(parts[0]), parts[1]))
    numbers = [value(part, point) for part in parts if isinstance(part, tuple)]
    if kind == "+":
        return reduce(lambda a, b: bounded(a + b), numbers)
    if kind in ("*", "^"):
        return product(*numbers) if kind == "*" else power(*numbers)
    if kind == "function" and parts[0] in CALLS:
        try:
            return CALLS[parts[0]](*numbers)
        except Unreadable:
            if not has(tree, "variable"):
                raise
    names = [part for part in (kind, *parts) if isinstance(part, str)]
    digits = [f"{part:.30e}" for z in map(inexact, numbers) for part in (z.real, z.imag)]
    return Fraction(noise(*names, *digits), 2**32)           # f(a) is f(b) exactly if a is b


@lru_cache(4096)
def values(tree: tuple) -> tuple:
    """The tree's number at each point, None where it has none."""
    numbers = []
    with localcontext(CONTEXT):
        for point in range(4 if has(tree, "variable") else 1):
            try:
                numbers.append(value(tree, point))
            except (Unreadable, ArithmeticError, ValueError, TypeError):
                numbers.append(None)
    return tuple(numbers)
