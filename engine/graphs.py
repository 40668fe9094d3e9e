"""CUDA graphs of a decode step.

A decode step is hundreds of small operations. To start them one by one takes the host longer than
the GPU needs to run them. A CUDA graph is a recording of the whole step, started as one operation.

A recording always works on the same memory and with the same sizes. So there is one for each number
of live slots and pages, both rounded up to few sizes. Slots beyond the live ones take part in it,
but they are done, and what is drawn for them is not counted.
"""
import functools
import sys

import torch

from engine.cache import PAGE


def round_up(value: int, bits: int, least: int = 1) -> int:
    """To a multiple of `least` with at most `bits` significant bits: few sizes, little wasted."""
    unit = max(least, 1 << max(0, value.bit_length() - bits))
    return -(-value // unit) * unit


def fast_decoder(model, cos, sin):
    """The layers in Triton kernels (Triton comes with PyTorch for CUDA), or None without them."""
    if no_kernels(cos.device):
        return None
    from engine.kernels import Decoder
    return Decoder(model, cos, sin)


@functools.cache
def no_kernels(device: torch.device) -> str:
    """Why this GPU cannot run the Triton kernels, or "". It is said once."""
    reason = ""
    if torch.cuda.get_device_capability(device) < (8, 0):
        reason = "they need compute capability 8.0"
    else:
        try:        # To start a kernel Triton needs a C compiler and Python's headers.
            from engine.kernels import gated
            gated(torch.zeros(1, 16, device=device))
        except Exception as error:
            reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    if reason:
        print(f"sampling without Triton kernels, which is slower ({reason})", file=sys.stderr)
    return reason


class Graphs:
    """The recordings for one `Slots` object.

    That object is an argument of `step` and not kept here: two objects that keep each other would
    hold their memory after `release`.
    """
    look_every = 16         # steps; a look at what has ended makes the GPU wait for the host

    def __init__(self):
        self.recorded, self.pool = {}, None

    def step(self, slots, lengths: list[int]) -> None:
        """What slots.step does, for sequences of these lengths in the first slots."""
        live, pages = len(lengths), 0
        if live > 1:                                    # 8, 16 ... 64, 80, 96, 112, 128, 160 ...
            live = min(round_up(live, 3, least=8), slots.size)
        if slots.decoder is None:                       # 1, 2, 3, 4, 6, 8, 12 ...
            pages = min(round_up(-(-max(lengths) // PAGE), 2), slots.length // PAGE)
        if (live, pages) not in self.recorded:
            self.recorded[live, pages] = self.record(slots, live, [live] * pages)
        self.recorded[live, pages].replay()

    def record(self, slots, live: int, reach: list[int]):
        # The first run sets things up in PyTorch. It really draws tokens, so what it noted is put
        # back. What it wrote into the cache is right and stays.
        before = [tensor.clone() for tensor in slots.state]
        slots.decode(live, reach)
        for tensor, old in zip(slots.state, before):
            tensor.copy_(old)
        # One memory pool serves all: one graph runs at a time, and its results are in slots.state.
        self.pool = self.pool or torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool):
            slots.decode(live, reach)
        return graph
