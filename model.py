"""A Qwen2.5-compatible transformer: Config, Transformer, load, save, logprobs.

Every Qwen2.5 from 0.5B to 72B is this one file; config.json says how wide and how deep. Read it
top to bottom: the configuration, the layers, log-probabilities without a [B, T, V] tensor, and
the Hugging Face directory in and out.

    model = load("Qwen2.5-1.5B", device="cuda", compute_dtype=torch.bfloat16)  # fp32 master weights
    logits = model(tokens)                                                     # [B, T, V]
    logp = logprobs(model, tokens)                                             # [B, T-1]

Sequences of unequal length share a batch in two ways, both exact. Padded: put anything to the
right; attention is causal, so no real token sees it. Packed: lay the sequences end to end in one
row and pass their `lengths`; each attends only to itself and counts its positions from 0.
"""
import ctypes
import glob
import json
import os
import re
import shutil
from dataclasses import asdict, dataclass, fields

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


# ---- configuration ---------------------------------------------------------------------------
@dataclass(frozen=True)
class Config:
    """The fields of config.json that decide what is computed, under Hugging Face's names."""
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    max_position_embeddings: int = 32768
    rms_norm_eps: float = 1e-6
    rope_theta: float = 1e6
    tie_word_embeddings: bool = False
    initializer_range: float = 0.02
    head_dim: int | None = None         # None: hidden_size / num_attention_heads

    def __post_init__(self):
        if self.head_dim is None and self.hidden_size % self.num_attention_heads:
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of"
                             f" num_attention_heads {self.num_attention_heads}")
        if self.head_dim is None:
            object.__setattr__(self, "head_dim", self.hidden_size // self.num_attention_heads)
        if self.head_dim % 2:
            raise ValueError(f"rotary embedding needs an even head size, not {self.head_dim}")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(f"num_attention_heads {self.num_attention_heads} is not a multiple of"
                             f" num_key_value_heads {self.num_key_value_heads}")

    @staticmethod
    def load(path: str) -> "Config":
        """Read a config.json (or the one in a directory); refuse by name what is not Qwen2."""
        path = os.path.join(path, "config.json") if os.path.isdir(path) else path
        raw = read_json(path)
        if not isinstance(raw, dict):
            raise ValueError(f"{path}: " + ("no such file or directory" if raw is None else
                                            "not a JSON object"))
        rope = raw.get("rope_parameters") or {}     # transformers 5 keeps theta and scaling here
        scaling = raw.get("rope_scaling") or rope
        layers = raw.get("num_hidden_layers", 0)
        sliding = (raw.get("use_sliding_window") and raw.get("sliding_window")
                   and raw.get("max_window_layers", layers) < layers)
        refused = {
            "model_type": raw.get("model_type") not in (None, "qwen2"),
            "hidden_act": raw.get("hidden_act", "silu") != "silu",
            "rope_scaling": scaling.get("rope_type", scaling.get("type", "default")) != "default",
            "sliding_window": sliding or "sliding_attention" in (raw.get("layer_types") or []),
            "attention_dropout": raw.get("attention_dropout", 0) != 0,
            "quantization_config": raw.get("quantization_config") is not None,
        }
        for name, is_refused in refused.items():
            if is_refused:
                raise ValueError(f"{path}: cannot run {name} = {json.dumps(raw.get(name))}"
                                 if name in raw else f"{path}: cannot run its {name}")
        if "rope_theta" in rope:
            raw["rope_theta"] = rope["rope_theta"]
        raw.setdefault("num_key_value_heads", raw.get("num_attention_heads"))
        known = {field.name: raw[field.name] for field in fields(Config) if field.name in raw}
        try:
            return Config(**known)
        except (TypeError, ValueError) as error:        # a field missing, or impossible sizes
            raise ValueError(f"{path}: {str(error).replace('Config.__init__() ', '')}") from None


# ---- the transformer -------------------------------------------------------------------------
class Embedding(nn.Embedding):
    def reset_parameters(self):
        if not self.weight.is_meta:     # there PyTorch would import its compiler for it: seconds
            super().reset_parameters()


class Linear(nn.Linear):
    """Computes in the dtype of its input, whatever the dtype its weight is kept in."""

    def reset_parameters(self):
        if not self.weight.is_meta:
            super().reset_parameters()

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
    """cos and (-sin, sin) by position and frequency, [..., T] -> [..., 1, T, D] each, in fp32."""
    exponent = torch.arange(0, config.head_dim, 2, device=positions.device) / config.head_dim
    angle = positions[..., None, :, None].float() / config.rope_theta ** exponent
    cos, sin = angle.cos(), angle.sin()                                         # [..., 1, T, D/2]
    return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (x[i], x[i + D/2]) by its position's angle; rolling swaps the halves."""
    return (x * cos + x.roll(x.shape[-1] // 2, dims=-1) * sin).to(x.dtype)


# cuDNN's attention, which PyTorch would take on a Hopper GPU, plans each new length anew: tens of
# milliseconds. Sequences have all lengths here; the others need no plan.
torch.backends.cuda.enable_cudnn_sdp(False)


def causal_attention(q: Tensor, k: Tensor, v: Tensor, lengths: list[int] | None) -> Tensor:
    """Softmax attention to the tokens before; q [B, H, T, D], k and v [B, KV, T, D]."""
    if lengths is None:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    pieces = zip(*(x.split(lengths, dim=2) for x in (q, k, v)))     # one sequence at a time
    return torch.cat([causal_attention(*piece, None) for piece in pieces], dim=2)


def check_packed(tokens: Tensor, lengths: list[int] | None) -> None:
    if lengths is not None and (len(tokens) != 1 or sum(lengths) != tokens.shape[1]):
        raise ValueError(f"lengths that sum to {sum(lengths)} do not describe one packed row;"
                         f" tokens are {list(tokens.shape)}")


class Attention(nn.Module):
    def __init__(self, config: Config, layer: int):
        super().__init__()
        self.layer, self.head_dim = layer, config.head_dim
        q_size = config.num_attention_heads * config.head_dim
        kv_size = config.num_key_value_heads * config.head_dim
        self.q_proj = Linear(config.hidden_size, q_size, bias=True)
        self.k_proj = Linear(config.hidden_size, kv_size, bias=True)
        self.v_proj = Linear(config.hidden_size, kv_size, bias=True)
        self.o_proj = Linear(q_size, config.hidden_size, bias=False)

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
        self.checkpointing = False          # True: keep one activation per layer, recompute the rest
        self.vocab = config.vocab_size      # ids the tokenizer has; Qwen pads its matrix beyond
        self.eos_ids: tuple[int, ...] = ()  # tokens that end a text
        self.files: dict[str, bytes] = {}   # config and tokenizer files that `save` carries along
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.dim() == 2 and not parameter.is_meta:
                nn.init.normal_(parameter, std=config.initializer_range)

    def allocate(self, device, dtype):
        """Memory for weights on `meta`, unset. (PyTorch's to_empty imports sympy: half a second.)"""
        return self._apply(lambda p: torch.empty(p.shape, dtype=dtype, device=device))

    @property
    def head_weight(self) -> Tensor:                                            # [V, C]
        tied = self.config.tie_word_embeddings
        return self.model["embed_tokens"].weight if tied else self.lm_head.weight

    def hidden(self, tokens, lengths=None, attend=None):
        """The normalised last hidden state, [B, T] -> [B, T, C].

        lengths: the row ([1, T]) holds sequences of these lengths end to end.
        attend(layer, q, k, v): the sampler's own, which knows their positions and its cache.
        """
        check_packed(tokens, lengths)
        if attend is None:
            positions = torch.cat([torch.arange(n, device=tokens.device)
                                   for n in lengths or [tokens.shape[1]]])      # [T]
            cos, sin = rotary(positions, self.config)

            def attend(layer, q, k, v):
                return causal_attention(rotate(q, cos, sin), rotate(k, cos, sin), v, lengths)
        x = F.embedding(tokens, self.model["embed_tokens"].weight)              # [B, T, C]
        x = x.to(self.compute_dtype or x.dtype)
        for block in self.model["layers"]:
            if self.checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, attend, use_reentrant=False)
            else:
                x = block(x, attend)
        return self.model["norm"](x)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, T] int64 -> logits [B, T, V] in fp32. Training uses `logprobs`: V is large."""
        return head_logits(self.hidden(tokens), self.head_weight)


# ---- log-probabilities -----------------------------------------------------------------------
def whole_rows(weight: Tensor, vocab: int) -> Tensor:
    """The rows of a head to multiply with: `vocab` of them, up to a multiple of 64 if there are as
    many. Qwen's tokenizer has 151,665 ids: rows of an odd length take a GPU's slow path."""
    return weight[:-(-vocab // 64) * 64]


def head_logits(hidden: Tensor, weight: Tensor, vocab: int | None = None) -> Tensor:
    """[..., C] and [V, C] -> logits [..., V], fp32 or better from whatever dtype goes in.

    vocab: those of other ids are so low that exp gives 0 (-inf would not do: times 0 it is NaN).
    """
    weight = weight.to(hidden.dtype)
    if hidden.is_cuda and hidden.dtype == torch.bfloat16 and not torch.is_grad_enabled():
        # The sums leave the matrix unit unrounded; a bf16 logit near 20 is up to 0.06 off.
        logits = torch.mm(hidden.flatten(0, -2), weight.t(), out_dtype=torch.float32)
        logits = logits.unflatten(0, hidden.shape[:-1])
    else:
        logits = F.linear(hidden, weight)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if vocab is not None:
        logits[..., vocab:] = -1e30
    return logits


LOGITS_AT_ONCE = 2**26      # elements of the largest logits tensor: 256 MB in fp32


class _TokenLogprobs(torch.autograd.Function):
    """log p and entropy of softmax(h W^T / temperature): some tokens at a time, and back, some ids.

    Autograd would keep all N x V logits for the backward pass; this one makes them again.
    With z the scaled logits, p = softmax(z), H the entropy and a, b the incoming gradients:
        d log p[target] / dz = onehot(target) - p           d H / dz = -p (log p + H)
    """

    @staticmethod
    def forward(ctx, hidden, weight, vocab, targets, temperature, want_entropy):
        logp, lse, entropy = (torch.zeros(len(hidden), device=hidden.device,
                                          dtype=torch.promote_types(hidden.dtype, torch.float32))
                              for _ in range(3))
        cast = whole_rows(weight, vocab).to(hidden.dtype)
        for rows in _slices(len(hidden), vocab):
            z = head_logits(hidden[rows], cast, vocab)                          # [n, V]
            if temperature != 1:                            # a pass over much memory
                z.div_(temperature)
            lse[rows] = z.logsumexp(-1)
            logp[rows] = z.gather(-1, targets[rows, None]).squeeze(-1) - lse[rows]
            if want_entropy:
                z.sub_(lse[rows, None])
                entropy[rows] = -(z.exp() * z).sum(-1)
        ctx.save_for_backward(hidden, weight, targets, lse, entropy)
        ctx.save_for_forward(hidden, weight, targets, lse)
        ctx.vocab, ctx.temperature, ctx.want_entropy = vocab, temperature, want_entropy
        return logp, entropy

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_logp, grad_entropy):
        hidden, weight, targets, lse, entropy = ctx.saved_tensors
        cast = whole_rows(weight, ctx.vocab).to(hidden.dtype)
        grad_hidden = torch.zeros_like(hidden, dtype=lse.dtype) if ctx.needs_input_grad[0] else None
        grad_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        a, b = (grad[:, None] / ctx.temperature for grad in (grad_logp, grad_entropy))
        # lse is known, so ids can be taken apart: each row of grad_weight is made in one go.
        for ids in _slices(len(cast), max(1, len(hidden))):
            z = head_logits(hidden, cast[ids], max(0, ctx.vocab - ids.start))   # [N, v]
            torch.add(-lse[:, None], z, alpha=1 / ctx.temperature, out=z)       # log p, in one pass
            if ctx.want_entropy:
                dz = z.exp().mul_(z.add_(entropy[:, None]).mul_(b).add_(a)).neg_()
            else:
                dz = z.exp_().mul_(-a)
            here = (ids.start <= targets) & (targets < ids.stop)
            target = torch.where(here, targets - ids.start, 0)[:, None]
            dz = dz.scatter_add_(-1, target, a * here[:, None]).to(hidden.dtype)
            if grad_hidden is not None:
                grad_hidden += dz @ cast[ids]
            if grad_weight is not None:
                grad_weight[ids] = dz.t() @ hidden
        if grad_hidden is not None:
            grad_hidden = grad_hidden.to(hidden.dtype)
        return grad_hidden, grad_weight, None, None, None, None

    @staticmethod
    def jvp(ctx, d_hidden, d_weight, *_):
        """How log p changes as hidden and weight do; the entropy's change is not worked out."""
        hidden, weight, targets, lse = ctx.saved_tensors
        cast, change = whole_rows(weight, ctx.vocab).to(hidden.dtype), torch.empty_like(lse)
        for rows in _slices(len(hidden), ctx.vocab):
            dz = 0.0                                                            # [n, V]
            if d_hidden is not None:
                dz = head_logits(d_hidden[rows], cast)
            if d_weight is not None:
                dz = dz + head_logits(hidden[rows], whole_rows(d_weight, ctx.vocab))
            z = head_logits(hidden[rows], cast, ctx.vocab)
            z.div_(ctx.temperature).sub_(lse[rows, None])
            mean = (z.exp_() * dz).sum(-1)
            change[rows] = (dz.gather(-1, targets[rows, None]).squeeze(-1) - mean) / ctx.temperature
        return change, torch.zeros_like(change)


def _slices(length: int, width: int) -> list[slice]:
    """Cut range(length) so that a piece has about LOGITS_AT_ONCE elements when `width` wide."""
    step = max(1, LOGITS_AT_ONCE // width)
    step -= step % 64 if step > 64 else 0                   # where a GPU reads fast, see whole_rows
    return [slice(start, min(start + step, length)) for start in range(0, length, step)]


def logprobs(model, tokens: Tensor, temperature: float = 1.0, lengths: list[int] | None = None,
             where: Tensor | None = None, entropy: bool = False):
    """fp32 log p(tokens[:, t+1] | tokens[:, :t+1]), [B, T] -> [B, T-1]; never holds B x T x V.

    The distribution is the sampler's: logits / temperature over the ids the tokenizer has.
    lengths: one packed row; the predictions across a border between two sequences are 0.
    where [B, T-1] bool: compute only these (responses, say), the others are 0.
    entropy: also return the entropy of each predicted distribution, [B, T-1]; it has a gradient.
    """
    check_packed(tokens, lengths)
    if where is None:
        where = torch.ones_like(tokens[:, 1:], dtype=torch.bool)
    if lengths is not None:
        ends = torch.tensor(lengths, device=tokens.device).cumsum(0)[:-1] - 1
        where = where.clone()
        where[:, ends] = False
    h = model.hidden(tokens, lengths)[:, :-1][where]                            # [N, C]
    if (tokens[:, 1:][where] >= model.vocab).any():
        raise ValueError(f"a token to predict is beyond the {model.vocab} ids of the tokenizer")
    logp, ent = _TokenLogprobs.apply(h, model.head_weight, model.vocab, tokens[:, 1:][where],
                                    temperature, entropy)
    logp, ent = (torch.zeros_like(where, dtype=x.dtype).masked_scatter(where, x)
                 for x in (logp, ent))
    return (logp, ent) if entropy else logp


# ---- Hugging Face directories ----------------------------------------------------------------
CARRIED = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
           "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt",
           "chat_template.jinja")


def read_json(path: str):
    """The content of a JSON file, or None where there is none."""
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}") from None


def read_files(path: str) -> dict[str, bytes]:
    """The config and tokenizer files of a model directory."""
    files = {}
    for name in CARRIED:
        if os.path.exists(file := os.path.join(path, name)):
            with open(file, "rb") as opened:
                files[name] = opened.read()
    return files


def tokenizer_size(files: dict[str, bytes]) -> int | None:
    """One more than the highest id of tokenizer.json, or None where there is no such file."""
    if "tokenizer.json" not in files:
        return None
    try:
        tokenizer = json.loads(files["tokenizer.json"])
        ids = [token["id"] for token in tokenizer.get("added_tokens", [])]
        vocab = tokenizer["model"]["vocab"]         # a dict, or a list in order for Unigram
        ids += vocab.values() if isinstance(vocab, dict) else range(len(vocab))
    except (ValueError, KeyError, TypeError):
        raise ValueError("tokenizer.json: not a tokenizer of the tokenizers package") from None
    return max(ids, default=-1) + 1


def eos_of(files: dict[str, bytes]) -> tuple[int, ...]:
    """The tokens that end a text, by config.json and generation_config.json."""
    eos = None
    for name in ("config.json", "generation_config.json"):          # the later one wins
        eos = json.loads(files.get(name, b"{}")).get("eos_token_id", eos)
    return tuple(eos if isinstance(eos, list) else [] if eos is None else [eos])


def set_files(model: Transformer, files: dict[str, bytes], where: str) -> None:
    """Give a model its config and tokenizer files, and what they say of its tokens."""
    size = tokenizer_size(files)
    if size is not None and size > model.config.vocab_size:
        raise ValueError(f"{where}: the tokenizer has ids up to {size - 1}, the model's vocabulary"
                         f" ends at {model.config.vocab_size - 1}")
    model.files, model.vocab, model.eos_ids = files, size or model.config.vocab_size, eos_of(files)


def load(path: str, device="cpu", dtype=torch.float32, compute_dtype=None) -> Transformer:
    """A model from a Hugging Face directory, its weights kept in `dtype` whatever the files hold.

    compute_dtype: what the forward pass computes in (torch.bfloat16 over fp32 weights to train).
    """
    if not os.path.isdir(path):
        raise ValueError(f"{path}: no such directory")
    config = Config.load(path)
    index = read_json(os.path.join(path, "model.safetensors.index.json"))
    shards = sorted(set(index["weight_map"].values())) if index else ["model.safetensors"]
    shards = [os.path.join(path, shard) for shard in shards]
    if absent := [shard for shard in shards if not os.path.exists(shard)]:
        raise ValueError(f"{path}: no weights: {', '.join(map(os.path.basename, absent))} missing")
    with torch.device("meta"):
        model = Transformer(config)
    set_files(model, read_files(path), path)
    expected = {name: list(p.shape) for name, p in model.named_parameters()}
    found = {}                                      # name -> (file, shape)
    for shard in shards:
        try:
            with safe_open(shard, framework="pt") as tensors:
                found |= {name: (shard, tensors.get_slice(name).get_shape())
                          for name in tensors.keys()}
        except SafetensorError as error:            # cut short, or a pointer in its place
            raise ValueError(f"{shard}: not a safetensors file: {error}") from None
    ignored = re.compile(r"rotary_emb\.inv_freq$" + ("|^lm_head.weight$"
                                                     if config.tie_word_embeddings else ""))
    found = {name: at for name, at in found.items() if not ignored.search(name)}
    faults = [f"missing {name}" for name in sorted(expected.keys() - found.keys())]
    faults += [f"surplus {name}" for name in sorted(found.keys() - expected.keys())]
    faults += [f"{name} is {shape}, not {expected[name]}" for name, (_, shape) in found.items()
               if name in expected and shape != expected[name]]
    if faults:
        raise ValueError(f"{path}: weights do not fit config.json: {'; '.join(faults)}")

    model.allocate(device, dtype)
    model.compute_dtype = compute_dtype
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, (shard, _) in found.items():      # opened one by one: a mapping keeps its pages
            with safe_open(shard, framework="pt") as tensors:
                parameters[name].copy_(tensors.get_tensor(name))
    return model


def save(model: Transformer, path: str, dtype: torch.dtype | None = None,
         shard_bytes: int = 5 * 10**9) -> None:
    """Write a directory that transformers and vLLM load: whole, or not at all.

    dtype: what to store (None: as kept in memory). Everything goes to a new directory that then
    takes the place of the old one, so a kill leaves the one or the other.
    """
    path = os.path.abspath(path)
    if os.path.exists(path) and not os.path.exists(os.path.join(path, "config.json")):
        if not os.path.isdir(path) or os.listdir(path):     # what is there would be lost
            raise ValueError(f"{path}: exists and is not a model directory; not replaced")
    os.makedirs(os.path.dirname(path), exist_ok=True)
    partial = f"{path}.partial-{os.getpid()}"
    os.makedirs(partial)
    try:
        _write(model, partial, dtype, shard_bytes)
        _replace(partial, path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    for stale in glob.glob(glob.escape(path) + ".partial-*"):       # this one's, and of killed runs
        shutil.rmtree(stale, ignore_errors=True)


def save_tensors(tensors: dict[str, Tensor], path: str) -> None:
    try:
        save_file(tensors, path, metadata={"format": "pt"})
    except SafetensorError as error:                # a full disk, say
        raise OSError(f"cannot write {path}: {error}") from None


def _write(model, path, dtype, shard_bytes):
    weights = {name: p.detach() for name, p in model.named_parameters()}
    dtype = dtype or next(iter(weights.values())).dtype
    shards, used = [{}], 0
    for name, weight in weights.items():
        size = weight.numel() * dtype.itemsize
        if shards[-1] and used + size > shard_bytes:
            shards, used = shards + [{}], 0
        shards[-1][name], used = weight, used + size
    names = ["model.safetensors"] if len(shards) == 1 else [
        f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    for name, shard in zip(names, shards):
        shard = {key: weight.to("cpu", dtype).contiguous() for key, weight in shard.items()}
        save_tensors(shard, os.path.join(path, name))

    files = dict(model.files)
    if "config.json" in files:                      # as it came, keys we do not know included
        config = json.loads(files["config.json"])
    else:
        config = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2",
                  "hidden_act": "silu", "eos_token_id": list(model.eos_ids) or None,
                  "use_sliding_window": False, **asdict(model.config)}
    config["dtype" if "dtype" in config else "torch_dtype"] = str(dtype).removeprefix("torch.")
    files["config.json"] = json.dumps(config, indent=2).encode()
    if len(shards) > 1:
        files["model.safetensors.index.json"] = json.dumps({
            "metadata": {"total_size": sum(w.numel() for w in weights.values()) * dtype.itemsize},
            "weight_map": {key: name for name, shard in zip(names, shards) for key in shard},
        }, indent=2).encode()
    for name, content in files.items():
        with open(os.path.join(path, name), "wb") as file:
            file.write(content)
    for entry in os.listdir(path) + ["."]:          # on the disk before the name points to it
        descriptor = os.open(os.path.join(path, entry), os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def _replace(new: str, path: str) -> None:
    """Put directory `new` in the place of `path`, in one step where the system can swap names."""
    if not os.path.exists(path):
        os.rename(new, path)
        return
    swap = getattr(ctypes.CDLL(None), "renameat2", None)            # Linux; 2: RENAME_EXCHANGE
    if swap is None or swap(-100, os.fsencode(new), -100, os.fsencode(path), 2) != 0:
        os.rename(path, f"{path}.partial-old")      # a kill just here leaves the old directory
        os.rename(new, path)                        # whole, under that other name
