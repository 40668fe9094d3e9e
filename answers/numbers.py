"""A tree to a number.

A number is an exact Fraction while that is possible. Otherwise it is a complex number of two
Decimals with 110 digits. With the 16 digits of a float, 1.4142135623730951 would equal √2.

Inexact numbers are equal if their difference is less than 10^-65 of them. So nothing may come near
to that by itself: a sum whose parts differ by 30 digits has no value, and a fraction of 45 digits is
not made inexact. Otherwise some n + 1 would equal n.
"""
import math
import zlib
from decimal import Context, Decimal, localcontext
from fractions import Fraction
from functools import lru_cache, reduce
from typing import NamedTuple

from answers.tree import INFINITY, has
from answers.words import Unreadable, require

CONTEXT = Context(prec=110, Emax=10**6, Emin=-10**6)
PI = Decimal("3.141592653589793238462643383279502884197169399375105820974944592307816406286208998"
             "628034825342117067982148086513282306647093844609550582231725359408")
EQUAL, TINY = Decimal("1e-65"), Decimal("1e-30")        # as shares of the larger number
LARGEST = 2**15         # bits of an exact number
MOST_BITS = 150         # of an exact number that becomes inexact: 45 digits. A factor 2^n is free.
POINTS = 22             # at how many points formulas are compared
MOST_WORK = 400         # for two formulas: see `work`


class Complex(NamedTuple):
    """A complex number. Fractions can be added to it, or multiplied by it."""
    real: Decimal
    imag: Decimal = Decimal(0)

    @property
    def size(self) -> Decimal: return max(abs(self.real), abs(self.imag))

    def __add__(self, other):
        other = inexact(other)
        small, large = sorted((self.size, other.size))
        require(small == 0 or small > large * TINY)          # The sum would lose the small one.
        total = Complex(self.real + other.real, self.imag + other.imag)
        return total if total.size > large * EQUAL else Complex(Decimal(0))

    def __mul__(self, other):
        other = inexact(other)
        return Complex(self.real * other.real - self.imag * other.imag,
                       self.real * other.imag + self.imag * other.real)

    def __truediv__(self, other):
        other = inexact(other)
        square = other.real**2 + other.imag**2
        return self * Complex(other.real / square, -other.imag / square)

    def __abs__(self): return Complex((self.real**2 + self.imag**2).sqrt())
    def __str__(self): return f"{self.real:.30e} {self.imag:.30e}"
    def __neg__(self): return Complex(-self.real, -self.imag)
    def __sub__(self, other): return self + -other
    def __rsub__(self, other): return -self + other
    def __rtruediv__(self, other): return inexact(other) / self
    __radd__, __rmul__ = __add__, __mul__


def bits(number: Fraction) -> int:
    return number.numerator.bit_length() + number.denominator.bit_length()


def bounded(number):
    require(isinstance(number, Complex) or bits(number) <= LARGEST)
    return number


def inexact(number) -> Complex:
    if isinstance(number, Complex):
        return number
    n = abs(number.numerator * number.denominator)
    require(n.bit_length() - (n & -n).bit_length() <= MOST_BITS)
    return Complex(Decimal(number.numerator) / number.denominator)


def product(*numbers):
    return reduce(lambda a, b: bounded(a * b), numbers, Fraction(1))


def is_real(z) -> bool:
    return isinstance(z, Fraction) or abs(z.imag) <= z.size * EQUAL


def same_number(a, b) -> bool:
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return a == b
    try:
        return (inexact(a) - b).size == 0
    except (Unreadable, ArithmeticError):                    # Their sizes are too far apart.
        return False


def cos_sin(x: Decimal) -> tuple[Decimal, Decimal]:
    """Both Taylor series at once, of the angle without whole turns over 32. Then double it."""
    require(abs(x) <= 10**9)
    x, total, term, n = x % (2 * PI) / 32, [Decimal(1), Decimal(0)], Decimal(1), 0
    while abs(term) > Decimal("1e-112"):
        n += 1
        term = term * x / n
        total[n % 2] += term if n % 4 < 2 else -term
    cos, sin = total
    for _ in range(5):
        cos, sin = cos * cos - sin * sin, 2 * cos * sin
    return cos, sin


@lru_cache(1024)
def exp(z) -> Complex:
    z = inexact(z)
    require(abs(z.real) <= 10**6 and (z.size == 0 or z.size > TINY))
    size, (cos, sin) = z.real.exp(), cos_sin(z.imag) if z.imag else (Decimal(1), Decimal(0))
    return Complex(size * cos, size * sin)


@lru_cache(1024)
def log(z) -> Complex:
    """ln|z| + i·angle. The angle is a float's, then two Newton steps each treble its 16 digits."""
    size = abs(inexact(z)).real
    x, y = inexact(z).real / size, inexact(z).imag / size
    angle = Decimal(math.atan2(y, x)) if y else PI * (x < 0)
    for _ in range(2 if y else 0):
        cos, sin = cos_sin(angle)
        angle += y * cos - x * sin
    return Complex(size.ln(), angle)


def power(a, b):
    if a == 0 and b.real > 0:
        return Fraction(0)
    if isinstance(b, Fraction) and b.denominator == 1:
        if isinstance(a, Fraction):                          # 0^(-1) raises, 0^0 is 1.
            require(abs(b.numerator) * (bits(a) - 2) <= LARGEST)
            return a ** b.numerator
        if abs(b) < 20:
            whole_power = product(*[a] * abs(int(b)))
            return whole_power if b > 0 else 1 / whole_power
    if isinstance(a, Fraction) and isinstance(b, Fraction) and b.denominator == 2 and a >= 0:
        exact = Fraction(math.isqrt(a.numerator), math.isqrt(a.denominator))
        if exact**2 == a:
            return power(exact, 2 * b)                       # √4 is a whole number.
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
    require(is_real(z) and abs(z.real) < 10**30 or isinstance(z, Fraction))
    nearest = Fraction(round(z.real))                        # (√2)² is 2
    return nearest if same_number(z, nearest) else Fraction(how(z.real))


I = Complex(Decimal(0), Decimal(1))
CALLS = {                       # most of them by way of exp and log
    "sqrt": root, "exp": exp, "ln": log, "log": lambda z, base=Fraction(10): log(z) / log(base),
    "sin": lambda z: (exp(I * z) - 1 / exp(I * z)) / Fraction(2) * -I,
    "cos": lambda z: (exp(I * z) + 1 / exp(I * z)) / Fraction(2), "cis": lambda z: exp(I * z),
    "tan": lambda z: CALLS["sin"](z) / CALLS["cos"](z), "sec": lambda z: 1 / CALLS["cos"](z),
    "cot": lambda z: CALLS["cos"](z) / CALLS["sin"](z), "csc": lambda z: 1 / CALLS["sin"](z),
    "arcsin": lambda z: -I * log(I * z + power(1 - z * z, Fraction(1, 2))),
    "arccos": lambda z: Complex(PI / 2) - CALLS["arcsin"](z),
    "arctan": lambda z: (log(1 + I * z) - log(1 - I * z)) / Fraction(2) * -I,
    "binom": lambda n, k: product(*((n - i) / Fraction(i + 1) for i in range(whole(k, 60)))),
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
    if point < 4:
        return Fraction(5 + random % 8)                      # n! and C(n, k) need these
    if point < 8:                                            # 2520 is a multiple of 1 to 10
        return 2520 * (1 + random % 400) * Fraction((-1) ** point) + (0, 1, -1, 0)[point - 4]
    if point < 10:
        return (part, 1 + 8 * part)[point - 8]
    code = ord(name) if len(name) == 1 else noise(name)      # Six bits tell all letters apart.
    sign = 1 - 2 * (code >> point % 6 & 1)
    if point < 16:
        return sign * (point - 10 + part)                    # between small whole numbers
    return -sign * part * 10 ** (point - 16)


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
    numbers = [value(part, point) for part in parts if isinstance(part, tuple)]
    if kind == "index":
        return place(f"{parts[0][1]} {numbers[1]}", point)
    if kind == "+":
        return reduce(lambda a, b: bounded(a + b), numbers)
    if kind in ("*", "^"):
        return product(*numbers) if kind == "*" else power(*numbers)
    if kind == "ratio" and len(numbers) == 2:
        return numbers[0] / numbers[1]
    name = parts[0] if kind == "function" else kind
    if name in CALLS:
        return CALLS[name](*numbers)
    names = [part for part in tree if isinstance(part, str)]
    return Fraction(noise(*names, *map(str, numbers)), 2**32)         # f(a) is f(b) if a is b


def in_base(number: Fraction, base: int) -> Fraction:
    """1101 and 0.011 are not written in base ten, but were read as if they were."""
    places = next(n for n in range(99) if (number * 10**n).denominator == 1)
    return Fraction(int(str(number * 10**places), base), base**places)


@lru_cache(2**14)
def value_at(tree: tuple, point: int):
    """The tree's number at a point, or None."""
    with localcontext(CONTEXT):
        try:
            return value(tree, point)
        except (Unreadable, ArithmeticError, ValueError, TypeError, StopIteration):
            return None


def work(tree) -> int:
    """How long a formula takes, in nodes. A root, a sine and the like take as long as 25 others."""
    if not isinstance(tree, tuple):
        return 0
    call = tree[0] == "function" or tree[0] == "^" and tree[2][0] != "number"
    return 1 + 25 * call + sum(map(work, tree))


def points(*trees: tuple) -> range:
    """Where to compare formulas: nowhere if they would take too long."""
    if not has(trees, "variable"):
        return range(1)
    return range(POINTS if work(trees) <= MOST_WORK else 0)
