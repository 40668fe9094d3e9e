"""Sequences, and the passes over them that give log-probs and gradients.

However a batch is cut into micro-batches, packed, padded or dealt to processes, its gradient is the
same: every token's weight is divided by a count over the whole batch, and the pieces are added up.
"""
from dataclasses import dataclass

import numpy
import torch
from torch import Tensor

from model import logprobs


@dataclass
class Sequence:
    tokens: numpy.ndarray           # int32: a prompt and what follows it
    start: int                      # the first token to train on, at least 1
    index: int = -1                 # which of the examples it was

    @property
    def trained(self) -> int:
        """How many tokens are trained on."""
        return len(self.tokens) - self.start


def pass_tokens(settings, on_gpu: bool) -> int:
    """Tokens in one forward and backward pass. On a CPU few of them are as fast as many."""
    return settings.micro_tokens or (16384 if on_gpu else 2048)


def micro_batches(lengths: list[int], budget: int, pack: bool) -> list[list[int]]:
    """Indices in groups of at most `budget` tokens, padding included; one too long is alone."""
    groups, room = [], []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):            # the longest first
        if pack:                                                # the first group with enough room
            at = next((g for g, left in enumerate(room) if left >= lengths[i]), None)
        else:                                                   # each row is as long as the first
            fits = groups and (len(groups[-1]) + 1) * lengths[groups[-1][0]] <= budget
            at = len(groups) - 1 if fits else None
        if at is None:
            at = len(groups)
            groups, room = groups + [[]], room + [budget]
        groups[at].append(i)
        room[at] -= lengths[i]
    return groups


def layout(sequences: list[Sequence], pack: bool, device):
    """The sequences as one batch:

    tokens   [1, T] if packed, else [B, T]
    where    [., T-1], True at the positions that predict a token to train on
    mask     [B, R], the same tokens by sequence: True up to the end of its response
    lengths  of the sequences if packed, else None

    A token's place follows from lengths, never from its value.
    """
    lengths = [len(one.tokens) for one in sequences]
    count = torch.tensor([one.trained for one in sequences])
    mask = torch.arange(int(count.max())) < count[:, None]                      # [B, R]
    if pack:
        tokens = torch.from_numpy(numpy.concatenate([s.tokens for s in sequences])).long()[None]
        ends = zip([0] * len(lengths), numpy.cumsum(lengths).tolist())
    else:
        tokens = torch.zeros(len(lengths), max(lengths), dtype=torch.int64)
        for row, one in enumerate(sequences):
            tokens[row, :len(one.tokens)] = torch.from_numpy(one.tokens)
        ends = enumerate(lengths)
    where = torch.zeros_like(tokens[:, 1:], dtype=torch.bool)                   # [1 or B, T-1]
    for (row, end), n in zip(ends, count.tolist()):
        where[row, end - n - 1:end - 1] = True              # token t is predicted at t-1
    return tokens.to(device), where.to(device), mask.to(device), lengths if pack else None


def by_response(values: Tensor, mask: Tensor) -> Tensor:
    """Numbers of the tokens to train on, in order, as rows [B, R] with 0 beyond each end."""
    return values.new_zeros(mask.shape).masked_scatter(mask, values)


def response_logprobs(model, sequences: list[Sequence], pack: bool, temperature: float = 1.0):
    """log p of each token to train on, [B, R], 0 beyond the end; and the mask of real ones."""
    tokens, where, mask, lengths = layout(sequences, pack, model.head_weight.device)
    logp = logprobs(model, tokens, temperature, where=where, lengths=lengths)
    return by_response(logp[where], mask), mask


def padded(rows: list[Tensor], like: Tensor) -> Tensor:
    """Rows of unequal length as one tensor of the shape of `like`, 0 beyond their ends."""
    out = torch.zeros_like(like)
    for row, values in zip(out, rows):
        row[:len(values)] = values
    return out


# ---- passes over many sequences --------------------------------------------------------------
def my_share(sequences: list[Sequence], ranks, settings) -> list[list[int]]:
    """This process's part of the sequences, as micro-batches of indices."""
    by_length = sorted(range(len(sequences)), key=lambda i: -len(sequences[i].tokens))
    mine = by_length[ranks.rank::ranks.size]
    groups = micro_batches([len(sequences[i].tokens) for i in mine],
                           pass_tokens(settings, ranks.device.type == "cuda"), settings.pack)
    return [[mine[i] for i in group] for group in groups]


def accumulate(model, minibatch, ranks, settings) -> float:
    """Add up the gradient of a minibatch over micro-batches and processes; return its loss.

    minibatch.sequences: all of them, the same on every process.
    minibatch.loss(model, indices): the part that these sequences have in the loss.
    Under torch.no_grad() only the loss is computed.
    """
    total = torch.zeros((), dtype=torch.float64, device=ranks.device)
    for indices in my_share(minibatch.sequences, ranks, settings):
        loss = minibatch.loss(model, indices)
        if loss.requires_grad:
            loss.backward()
        total += loss.detach()
    if torch.is_grad_enabled():
        for parameter in model.parameters():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        ranks.sum_gradients(model)
    return ranks.sum([float(total)])[0]


@torch.no_grad()
def of_each(forward, sequences: list[Sequence], ranks, settings) -> dict[int, Tensor]:
    """What forward(sequences) -> (numbers [B, R], mask [B, R]) says of each response in this
    process's share, by the index of the sequence."""
    rows = {}
    for indices in my_share(sequences, ranks, settings):
        numbers, mask = forward([sequences[i] for i in indices])
        rows.update((i, row[real]) for i, row, real in zip(indices, numbers, mask))
    return rows


class Order:
    """Which item comes when: one shuffle of all items after another, each from (seed, epoch).

    So a resumed run knows the order from the number of its step alone.
    """

    def __init__(self, items: int, seed: int):
        self.items, self.seed, self.shuffles = items, seed, {}

    def __getitem__(self, position: int) -> int:
        epoch, place = divmod(position, self.items)
        if epoch not in self.shuffles:
            rng = numpy.random.default_rng([self.seed, epoch])
            self.shuffles = {epoch: rng.permutation(self.items)}
        return int(self.shuffles[epoch][place])
