"""A transformer: Config, Transformer, load, save, logprobs.

Qwen2.5, Qwen3 (the dense ones), Llama 2 and 3, and SmolLM2 of every size are this one file;
config.json says how wide and how deep. The families differ in three places: Qwen2 has biases in
`Attention`, Qwen3 norms there, and Llama 3.1 stretches `rotary`. How a model directory is read and
written stands in engine/huggingface.py.

    model = load("Qwen2.5-1.5B", device="cuda", compute_dtype=torch.bfloat16)  # weights stay fp32
    logits = model(tokens)                                                     # [B, T, V]
    logp = logprobs(model, tokens)                                             # [B, T-1]

Sequences of different lengths can share a batch in two exact ways. Padded: put anything to the
right of a sequence. Attention is causal, so no real token sees it. Packed: lay the sequences end to
end in one row and pass their `lengths`. Each attends only to itself and counts positions from 0.

Shapes: B sequences, T tokens, C hidden size, H query heads, KV key and value heads, D numbers in a
head, V rows of the output matrix (the tokenizer may have fewer ids: `vocab`), N tokens to predict.
"""
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from engine import huggingface
from engine.logits import TokenLogprobs, head_logits


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
    model_type: str = "qwen2"           # the family: qwen2, qwen3 or llama
    # Llama 3.1 was trained on short texts, then on long ones with slower rotations: see `rotary`.
    factor: float = 1.0                 # slower by this; 1: all rotations as they are
    low_freq_factor: float = 1.0        # those with fewer turns than this in a short text, and
    high_freq_factor: float = 4.0       # not those with more turns than this
    original_max_position_embeddings: int = 8192            # tokens of a short text

    def __post_init__(self):
        if self.head_dim is None:
            object.__setattr__(self, "head_dim", self.hidden_size // self.num_attention_heads)

    @staticmethod
    def load(path: str) -> "Config":
        """From a config.json, or from the one in a directory. Refuses by name what cannot run."""
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
    period = config.rope_theta ** exponent                  # tokens for an angle of 1
    if config.factor != 1:
        turns = config.original_max_position_embeddings / (2 * math.pi * period)
        low, high = config.low_freq_factor, config.high_freq_factor
        kept = ((turns - low) / (high - low)).clamp(0, 1)   # 1: as it is; 0: slower by the factor
        period = period / ((1 - kept) / config.factor + kept)
    angle = positions[..., None, :, None].float() / period
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
        bias = config.model_type == "qwen2"
        self.q_proj = Linear(C, H * self.head_dim, bias)
        self.k_proj = Linear(C, KV * self.head_dim, bias)
        self.v_proj = Linear(C, KV * self.head_dim, bias)
        self.o_proj = Linear(H * self.head_dim, C, bias=False)
        self.q_norm = self.k_norm = None
        if config.model_type == "qwen3":                    # of each head by itself
            self.q_norm = RMSNorm(self.head_dim, config.rms_norm_eps)
            self.k_norm = RMSNorm(self.head_dim, config.rms_norm_eps)

    def forward(self, x, attend):
        B, T, _ = x.shape
        q, k, v = (proj(x).view(B, T, -1, self.head_dim)
                   for proj in (self.q_proj, self.k_proj, self.v_proj))
        if self.q_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        y = attend(self.layer, *(x.transpose(1, 2) for x in (q, k, v)))         # [B, H, T, D]
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
    """Parameters are named as in Hugging Face's models, so weights go in and out unrenamed."""

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
    logp = TokenLogprobs.apply(hidden, model.head_weight, model.vocab, targets, temperature)  # [N]
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
