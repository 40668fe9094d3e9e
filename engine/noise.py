"""The random numbers behind sampled tokens, and how a token is drawn with one.

The noise of a token is a function of (seed, prompt, sample, position) and of nothing else. So a
sample does not depend on what is sampled beside it, and a run can go on where it stopped. Integers
only: every device computes the same numbers.
"""
import math

import torch
import torch.nn.functional as F
from torch import Tensor

STEP = 0x9E3779B97F4A7C15       # splitmix64's step from one state to the next


def _signed(value: int) -> int:
    """A 64-bit pattern as the int64 that holds it."""
    value &= 2**64 - 1
    return value - 2**64 if value >= 2**63 else value


def _mix(z):
    """Scramble 64 bits, as the generator splitmix64 does at its end. Products wrap around."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        z = (z ^ (z >> shift & (1 << 64 - shift) - 1)) * _signed(factor)
    return z ^ (z >> 31 & (1 << 33) - 1)


def noise_keys(seed: int, prompts: list[int], samples: list[int]) -> Tensor:
    """One int64 for each (seed, prompt index, sample index)."""
    key = torch.zeros(len(prompts), dtype=torch.int64)
    for part in (torch.full_like(key, _signed(seed)), torch.tensor(prompts), torch.tensor(samples)):
        key = _mix(key + part + _signed(STEP))
    return key


def uniform(key: Tensor, position: Tensor) -> Tensor:
    """A number in [0, 1) for this key and position: float64 with 53 random bits."""
    z = _mix(key + (position + 1) * _signed(STEP))
    return (z >> 11 & (1 << 53) - 1).double() * 2.0**-53


def truncate(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """-inf for all but the top_k tokens, and then for all but the smallest set of mass top_p."""
    if 0 < top_k < logits.shape[-1]:
        kth = logits.topk(top_k).values[:, -1:]
        logits = logits.masked_fill(logits < kth, -math.inf)
    if top_p < 1:
        ranked, order = logits.sort(descending=True)
        p = ranked.softmax(-1)
        before = p.cumsum(-1) - p                           # mass of the more probable tokens
        ranked[:, 1:].masked_fill_(before[:, 1:] >= top_p, -math.inf)
        logits = ranked.scatter(-1, order, ranked)
    return logits


def draw(p: Tensor, noise: Tensor) -> Tensor:
    """Index i with probability p[i] / sum(p): p [B, V], noise [B] in [0, 1) -> [B].

    It is the first index where the cumulative sum of p exceeds noise * sum(p). To read p only once,
    first find the block of 64 tokens in which that happens, then the token within the block.
    """
    if p.shape[-1] % 64:
        p = F.pad(p, (0, -p.shape[-1] % 64))
    blocks = p.unflatten(-1, (-1, 64))                                          # [B, V / 64, 64]
    mass = blocks.sum(-1).double()                                              # [B, V / 64]
    cdf = mass.cumsum(-1)
    target = noise[:, None] * cdf[:, -1:]                                       # [B, 1]
    block = first_above(cdf, target, mass)
    inside = blocks.gather(1, block[..., None].expand(-1, -1, 64)).squeeze(1)   # [B, 64]
    target, cdf = target - (cdf - mass).gather(-1, block), inside.double().cumsum(-1)
    target = target / mass.gather(-1, block) * cdf[:, -1:]      # The two sums differ by rounding.
    return (block * 64 + first_above(cdf, target, inside)).squeeze(-1)


def first_above(cdf: Tensor, target: Tensor, p: Tensor) -> Tensor:
    """Per row the first index with cdf > target. Never one with p = 0, whatever the rounding."""
    numbers = torch.arange(p.shape[-1], device=p.device)
    last = torch.where(p > 0, numbers, 0).amax(-1, keepdim=True)
    return torch.searchsorted(cdf, target, right=True).minimum(last)
