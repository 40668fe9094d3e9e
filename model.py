"""A Qwen2.5 transformer: Config, Transformer, load, save, logprobs.

Every Qwen2.5 from 0.5B to 72B is this one file; config.json says how wide and how deep. How a model
directory is read and written stands in engine/huggingface.py.

    model = load("Qwen2.5-1.5B", device="cuda", compute_dtype=torch.bfloat16)  # weights stay fp32
    logits = model(tokens)                                                     # [B, T, V]
    logp = logprobs(model, tokens)                                             # [B, T-1]

Sequences of different lengths can share a batch in two exact ways. Padded: put anything to the
right of a sequence. Attention is causal, so no real token sees it. Packed: lay the sequences end to
end in one row and pass their `lengths`. Each attends only to itself and counts positions from 0.

Shapes: B sequences, T tokens, C hidden size, H query heads, KV key and value heads, D numbers in a
head, V rows of the output matrix (the tokenizer may have fewer ids: `vocab`), N tokens to predict.
"""
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from engine import huggingface


# ---- configuration ---------------------------------------------------------------------------
@dataclass(frozen=True)
class Config:
    """What config.json decides, under Hugging Face's names and with transformers' defaults."""
    vocab_size: int                     # rows of the embedding; the tokenizer may have fewer ids
    hidden_size: int                    # numbers that stand for a token between two layers
    intermediate_size: int              # width of the MLP
    num_hidden_layers: int
    num_attention_heads: int            # heads that ask (queries)
    num_key_value_heads: int            # heads that answer; several query heads share one of them
    max_position_embeddings: int = 32768        # the context: longest prompt and answer together
    rms_norm_eps: float = 1e-6
    rope_theta: float = 1e4             # the slowest rotation takes about 2 pi * rope_theta tokens
    tie_word_embeddings: bool = False   # the output matrix is the embedding's
    initializer_range: float = 0.02     # standard deviation of fresh weights
    head_dim: int | None = None         # None: hidden_size / num_attention_heads

    def __post_init__(self):
        if self.head_dim is None:
            object.__setattr__(self, "head_dim", self.hidden_size // self.num_attention_heads)

    @staticmethod
    def load(path: str) -> "Config":
        """From a config.json, or from the one in a directory. Refuses by name what is not Qwen2."""
        return huggingface.read_config(path, Config)


# ---- the layers ------------------------------------------------------------------------------
class Embedding(nn.Embedding):
    def reset_parameters(self):
        # On `meta` there is nothing to fill, and PyTorch would import its compiler for it: seconds.
        return None if self.weight.is_meta else super().reset_parameters()


class Linear(nn.Linear):
    """Computes in the dtype of its input, whatever the dtype its weight is kept in."""
    def reset_parameters(self):
        return None if self.weight.is_meta else super().reset_parameters()      # see Embedding

    def forward(self, x):
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self.weight.to(x.dtype), bias)


class RMSNorm(nn.Module):
    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(size)), eps

    def forward(self, x):
        return F.rms_norm(x, x.shape[-1:], self.weight.to(x.dtype), self.eps)


def rotary(positions: Tensor, config: Config) -> tuple[Tensor, Tensor]:
    """What `rotate` needs: cos and (-sin, sin) in fp32, [..., T] -> [..., 1, T, D] each."""
    exponent = torch.arange(0, config.head_dim, 2, device=positions.device) / config.head_dim
    angle = positions[..., None, :, None].float() / config.rope_theta ** exponent
    cos, sin = angle.cos(), angle.sin()                                         # [..., 1, T, D/2]
    return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)


def rotate(x: Tensor, cos: Tensor, signed_sin: Tensor) -> Tensor:
    """Turn each pair (a, b) = (x[i], x[i + D/2]) by an angle that grows with the position.

    It becomes (a cos - b sin, b cos + a sin): `roll` swaps the a's and the b's, and `signed_sin` is
    (-sin, sin). The product of a query and a key then depends only on their distance.
    """
    return (x * cos + x.roll(x.shape[-1] // 2, dims=-1) * signed_sin).to(x.dtype)


# cuDNN's attention, PyTorch's choice on a Hopper GPU, plans for tens of milliseconds whenever a new
# length comes, and sequences here have all lengths.
torch.backends.cuda.enable_cudnn_sdp(False)


def causal_attention(q: Tensor, k: Tensor, v: Tensor, lengths: list[int] | None) -> Tensor:
    """Each token attends to itself and those before it. q [B, H, T, D], k and v [B, KV, T, D]."""
    if lengths is None:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    pieces = zip(*(x.split(lengths, dim=2) for x in (q, k, v)))     # one packed sequence at a time
    return torch.cat([causal_attention(*piece, None) for piece in pieces], dim=2)


class Attention(nn.Module):
    def __init__(self, config: Config, layer: int):
        super().__init__()
        self.layer, self.head_dim = layer, config.head_dim
        C, H, KV = config.hidden_size, config.num_attention_heads, config.num_key_value_heads
        self.q_proj = Linear(C, H * self.head_dim, bias=True)
        self.k_proj = Linear(C, KV * self.head_dim, bias=True)
        self.v_proj = Linear(C, KV * self.head_dim, bias=True)
        self.o_proj = Linear(H * self.head_dim, C, bias=False)

    def forward(self, x, attend):
        B, T, _ = x.shape
        q, k, v = (proj(x).view(B, T, -1, self.head_dim).transpose(1, 2)        # [B, heads, T, D]
                   for proj in (self.q_proj, self.k_proj, self.v_proj))
        y = attend(self.layer, q, k, v)                                         # [B, H, T, D]
        return self.o_proj(y.transpose(1, 2).reshape(B, T, -1))


class MLP(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.gate_proj = Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    def __init__(self, config: Config, layer: int):
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(self, x, attend):
        x = x + self.self_attn(self.input_layernorm(x), attend)
        return x + self.mlp(self.post_attention_layernorm(x))


# ---- the transformer -------------------------------------------------------------------------
class Transformer(nn.Module):
    """Parameters are named as in Hugging Face's Qwen2, so weights go in and out unrenamed."""

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.model = nn.ModuleDict({
            "embed_tokens": Embedding(config.vocab_size, config.hidden_size),
            "layers": nn.ModuleList(Block(config, i) for i in range(config.num_hidden_layers)),
            "norm": RMSNorm(config.hidden_size, config.rms_norm_eps)})
        if not config.tie_word_embeddings:
            self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=False)
        self.compute_dtype: torch.dtype | None = None   # None: the dtype of the weights
        self.checkpointing = False          # True: keep one activation a layer, recompute the rest
        self.vocab = config.vocab_size      # ids of the tokenizer; Qwen's matrix has more rows
        self.eos_ids: tuple[int, ...] = ()  # tokens that end a text
        self.files: dict[str, bytes] = {}   # config and tokenizer files, which `save` writes again
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.dim() == 2 and not parameter.is_meta:
                nn.init.normal_(parameter, std=config.initializer_range)

    @property
    def head_weight(self) -> Tensor:                                            # [V, C]
        tied = self.config.tie_word_embeddings
        return self.model["embed_tokens"].weight if tied else self.lm_head.weight

    def hidden(self, tokens, lengths=None, attend=None):
        """The last layer's output for each token, normalised: [B, T] -> [B, T, C].

        lengths: the row ([1, T]) holds sequences of these lengths, end to end.
        attend(layer, q, k, v): the attention to use. The sampler passes its own, which has a cache.
        """
        if lengths is not None and (len(tokens) != 1 or sum(lengths) != tokens.shape[1]):
            raise ValueError(f"lengths that sum to {sum(lengths)} do not describe one packed row;"
                             f" tokens are {list(tokens.shape)}")
        attend = attend or self.attend_to_itself(tokens, lengths)
        x = F.embedding(tokens, self.model["embed_tokens"].weight)              # [B, T, C]
        x = x.to(self.compute_dtype or x.dtype)
        for block in self.model["layers"]:
            if self.checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, attend, use_reentrant=False)
            else:
                x = block(x, attend)
        return self.model["norm"](x)

    def attend_to_itself(self, tokens, lengths):
        """attend(layer, q, k, v) for whole sequences: every key that is needed is among k."""
        positions = torch.cat([torch.arange(n, device=tokens.device)
                               for n in lengths or [tokens.shape[1]]])          # [T]
        cos, sin = rotary(positions, self.config)

        def attend(layer, q, k, v):
            return causal_attention(rotate(q, cos, sin), rotate(k, cos, sin), v, lengths)
        return attend

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, T] int64 -> logits [B, T, V] in fp32. Training uses `logprobs`: V is large."""
        return head_logits(self.hidden(tokens), self.head_weight)


# ---- log-probabilities -----------------------------------------------------------------------
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


def _slices(length: int, width: int) -> list[slice]:
    """Cut range(length) so that a piece has about LOGITS_AT_ONCE elements when `width` wide."""
    step = max(1, LOGITS_AT_ONCE // width)
    step -= step % 64 if step > 64 else 0                   # a GPU is fast there, see used_rows
    return [slice(start, min(start + step, length)) for start in range(0, length, step)]


class _TokenLogprobs(torch.autograd.Function):
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
        for rows in _slices(len(hidden), vocab):            # some tokens at a time
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
        for ids in _slices(len(cast), max(1, len(hidden))):
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
        for rows in _slices(len(hidden), ctx.vocab):
            change_z = head_logits(d_hidden[rows], cast)                        # [n, V]
            change_z = change_z + head_logits(hidden[rows], used_rows(d_weight, ctx.vocab))
            z = head_logits(hidden[rows], cast, ctx.vocab)
            z.div_(ctx.temperature).sub_(lse[rows, None])
            # change of log p = change_z[target] - sum of p * change_z, all / temperature
            expected = (z.exp_() * change_z).sum(-1)
            at_target = change_z.gather(-1, targets[rows, None]).squeeze(-1)
            change[rows] = (at_target - expected) / ctx.temperature
        return change


def logprobs(model, tokens: Tensor, temperature: float = 1.0, lengths: list[int] | None = None,
             where: Tensor | None = None) -> Tensor:
    """fp32 log p(tokens[:, t+1] | tokens[:, :t+1]), [B, T] -> [B, T-1]; never holds B x T x V.

    The distribution is the sampler's: logits / temperature, over the ids that the tokenizer has.
    lengths: one packed row; the predictions across a border between two sequences are 0.
    where [B, T-1] bool: compute only these (the responses, say); the others are 0.
    """
    hidden = model.hidden(tokens, lengths)[:, :-1]                              # [B, T-1, C]
    if where is None:
        where = torch.ones_like(tokens[:, 1:], dtype=torch.bool)
    if lengths is not None:
        ends = torch.tensor(lengths, device=tokens.device).cumsum(0)[:-1] - 1
        where = where.clone()
        where[:, ends] = False
    hidden, targets = hidden[where], tokens[:, 1:][where]                       # [N, C], [N]
    if (targets >= model.vocab).any():
        raise ValueError(f"a token to predict is beyond the {model.vocab} ids of the tokenizer")
    logp = _TokenLogprobs.apply(hidden, model.head_weight, model.vocab, targets, temperature)  # [N]
    return torch.zeros_like(where, dtype=logp.dtype).masked_scatter(where, logp)


# ---- model directories -----------------------------------------------------------------------
def load(path: str, device="cpu", dtype=torch.float32, compute_dtype=None) -> Transformer:
    """A model from a Hugging Face directory. Its weights are kept in `dtype`, whatever the files
    hold; the forward pass computes in `compute_dtype` (to train: bfloat16 over fp32 weights)."""
    with torch.device("meta"):                              # shapes, no memory yet
        model = Transformer(Config.load(path))
    huggingface.read_model(model, path, device, dtype)
    model.compute_dtype = compute_dtype
    return model


def save(model: Transformer, path: str, dtype: torch.dtype | None = None,
         shard_bytes: int = 5 * 10**9) -> None:
    """Write a directory that transformers and vLLM load. dtype: None stores what memory holds."""
    huggingface.write_model(model, path, dtype, shard_bytes)
