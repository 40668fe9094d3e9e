"""Directions in the space of all weights, such as a gradient: tensors by name of parameter."""
import contextlib

from torch import Tensor


def inner(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """The inner product of two directions."""
    return float(sum((a[name].double() * b[name].double()).sum() for name in a))


@contextlib.contextmanager
def changed_weights(model, make):
    """The model with make(name, parameter) in the place of every parameter."""
    kept = list(model.named_parameters())

    def put(name, parameter):
        owner, _, leaf = name.rpartition(".")
        model.get_submodule(owner)._parameters[leaf] = parameter
    try:
        for name, parameter in kept:
            put(name, make(name, parameter))
        yield
    finally:
        for name, parameter in kept:
            put(name, parameter)
