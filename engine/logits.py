"""Logits and log-probs of a large vocabulary, a piece at a time, so that B x T x V is never held.

model.py calls these. What they compute is log softmax(h W^T / temperature) at the tokens that came;
tests compare it with just that.
"""
import torch
import torch.nn.functional as F
from torch import Tensor


def used_rows(weight: Tensor, vocab: int) -> Tensor:
    """The first rows of the output matrix, one for each of the `vocab` ids, and up to 63 more: a
    GPU is fast if their number is a multiple of 64. (Qwen's tokenizer has 151,665 ids.)"""
    return weight[:-(-vocab // 64) * 64]                    # -(-a // b) is a / b rounded up


def head_logits(hidden: Tensor, weight: Tensor, vocab: int | None = None) -> Tensor:
    """[..., C] and [V, C] -> logits [..., V], in fp32 or better whatever dtype goes in.

    vocab: ids from here on get -1e30, which is probability 0. With -inf, 0 * inf would be NaN.
    """
    weight = weight.to(hidden.dtype)
    if hidden.is_cuda and hidden.dtype == torch.bfloat16 and not torch.is_grad_enabled():
        # The GPU adds in fp32. Keep that: rounded to bf16, a logit near 20 is off by up to 0.06.
        logits = torch.mm(hidden.flatten(0, -2), weight.t(), out_dtype=torch.float32)
        logits = logits.unflatten(0, hidden.shape[:-1])
    else:
        logits = F.linear(hidden, weight)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if vocab is not None:
        logits[..., vocab:] = -1e30
    return logits


LOGITS_AT_ONCE = 2**26      # elements of the largest logits tensor: 256 MB in fp32


def slices(length: int, width: int) -> list[slice]:
    """Cut range(length) so that a piece has about LOGITS_AT_ONCE elements when `width` wide."""
    step = max(1, LOGITS_AT_ONCE // width)
    step -= step % 64 if step > 64 else 0                   # a GPU is fast there, see used_rows
    return [slice(start, min(start + step, length)) for start in range(0, length, step)]


class TokenLogprobs(torch.autograd.Function):
    """log softmax(h W^T / temperature) at the target ids, a piece of the logits at a time.

    Autograd would keep all N x V logits for the backward pass. This function keeps one number per
    token, lse = logsumexp(z), and computes the scaled logits z again:
        log p = z[target] - lse        d log p / dz = onehot(target) - softmax(z)
    """

    @staticmethod
    def forward(ctx, hidden, weight, vocab, targets, temperature):
        lse = hidden.new_zeros(len(hidden), dtype=torch.promote_types(hidden.dtype, torch.float32))
        logp = torch.zeros_like(lse)
        cast = used_rows(weight, vocab).to(hidden.dtype)
        for rows in slices(len(hidden), vocab):            # some tokens at a time
            z = head_logits(hidden[rows], cast, vocab)                          # [n, V]
            if temperature != 1:                            # dividing by 1 would only cost time
                z.div_(temperature)
            lse[rows] = z.logsumexp(-1)
            logp[rows] = z.gather(-1, targets[rows, None]).squeeze(-1) - lse[rows]
        ctx.save_for_backward(hidden, weight, targets, lse)
        ctx.save_for_forward(hidden, weight, targets, lse)
        ctx.vocab, ctx.temperature = vocab, temperature
        return logp

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_logp):
        hidden, weight, targets, lse = ctx.saved_tensors
        cast = used_rows(weight, ctx.vocab).to(hidden.dtype)
        grad_hidden = torch.zeros_like(hidden, dtype=lse.dtype)
        grad_weight = torch.zeros_like(weight)
        grad = grad_logp[:, None] / ctx.temperature                             # [N, 1]
        # d loss / d logits = grad * (onehot(target) - p). Some ids at a time, for all tokens: so
        # each row of grad_weight is made in one go.
        for ids in slices(len(cast), max(1, len(hidden))):
            real = max(0, ctx.vocab - ids.start)    # ids from here on are not the tokenizer's
            z = head_logits(hidden, cast[ids], real)                            # [N, v]
            torch.add(-lse[:, None], z, alpha=1 / ctx.temperature, out=z)       # log p of these ids
            grad_z = z.exp_().mul_(-grad)                                       # -grad * p
            here = (ids.start <= targets) & (targets < ids.stop)    # the target is one of these ids
            place = torch.where(here, targets - ids.start, 0)[:, None]
            grad_z.scatter_add_(-1, place, grad * here[:, None])            # + grad at the target
            grad_z = grad_z.to(hidden.dtype)
            grad_hidden += grad_z @ cast[ids]
            grad_weight[ids] = grad_z.t() @ hidden
        return grad_hidden.to(hidden.dtype), grad_weight, None, None, None

    @staticmethod
    def jvp(ctx, d_hidden, d_weight, *_):
        """Forward mode, for sample effects: how log p changes when hidden and weight do."""
        hidden, weight, targets, lse = ctx.saved_tensors
        cast, change = used_rows(weight, ctx.vocab).to(hidden.dtype), torch.empty_like(lse)
        for rows in slices(len(hidden), ctx.vocab):
            change_z = head_logits(d_hidden[rows], cast)                        # [n, V]
            change_z = change_z + head_logits(hidden[rows], used_rows(d_weight, ctx.vocab))
            z = head_logits(hidden[rows], cast, ctx.vocab)
            z.div_(ctx.temperature).sub_(lse[rows, None])
            # change of log p = change_z[target] - sum of p * change_z, all / temperature
            expected = (z.exp_() * change_z).sum(-1)
            at_target = change_z.gather(-1, targets[rows, None]).squeeze(-1)
            change[rows] = (at_target - expected) / ctx.temperature
        return change
