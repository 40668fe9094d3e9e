"""Solutions of lesson 6."""


def inner(g, h):
    return sum(float((g[name] * h[name]).sum()) for name in g)


def slope(f, s):
    return (f(s) - f(-s)) / (2 * s)
