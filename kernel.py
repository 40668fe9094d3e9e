"""A decode step on CUDA in few launches: the model's layers for one new token of every sequence.

`Decoder.hidden` is `Transformer.hidden` with the same weights, but q, k and v are one product, gate
and up another, sums with the residual are part of the products before them, and the rest of a layer
is two norms and two Triton kernels, `_attend` and `_gate`.

`_attend` is what `_paged_attention` in sample.py says in PyTorch, for a CPU. A program serves one
sequence and one key/value head, with all query heads that share it. It turns the new queries and the
new key by their position's angle, notes key and value down in the cache, and goes through the pages
of that one sequence, however long the others are: a softmax that corrects its maximum as it goes
needs each page once. Where sequences are few, several programs share the pages of one, and `_merge`
weighs what they found. A sequence that is done reads nothing.

For one sequence alone a product is reading its matrix once; `_product` does just that. `draw` is
`sample.draw`, the logits read once.

Without a GPU it runs in Triton's interpreter (TRITON_INTERPRET=1): tests/test_kernel.py.
"""
import torch
import torch.nn.functional as F
import triton
import triton.language as tl

from model import rotary


# ---- attention to the cache ------------------------------------------------------------------
@triton.jit
def _attend(qkv, cos, sin, position, done, keys, values, parts, masses, slots, scale,
            GROUP: tl.constexpr, HALF: tl.constexpr, PAGE: tl.constexpr, SPLITS: tl.constexpr,
            ROWS: tl.constexpr, WIDTH: tl.constexpr):
    row, head, split = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    heads = tl.num_programs(1)
    i = tl.arange(0, WIDTH)                     # WIDTH and ROWS are HALF and GROUP, rounded up
    inside = i < HALF
    at = tl.load(position + row)
    c = tl.load(cos + at * 2 * HALF + i, inside, 0.0)
    s = tl.load(sin + at * 2 * HALF + HALF + i, inside, 0.0)

    qkv += row * (GROUP + 2) * heads * 2 * HALF                     # [H + KV + KV, D]
    k = qkv + (GROUP * heads + head) * 2 * HALF + i
    v = k + heads * 2 * HALF
    a = tl.load(k, inside, 0.0).to(tl.float32)
    b = tl.load(k + HALF, inside, 0.0).to(tl.float32)
    k_low = (a * c - b * s).to(keys.dtype.element_ty)               # [WIDTH]
    k_high = (b * c + a * s).to(keys.dtype.element_ty)
    v_low, v_high = tl.load(v, inside, 0.0), tl.load(v + HALF, inside, 0.0)
    if split == 0:
        cell = (at // PAGE * slots + row) * heads + head
        cell = (cell * PAGE + at % PAGE) * 2 * HALF + i
        tl.store(keys + cell, k_low, inside)
        tl.store(keys + cell + HALF, k_high, inside)
        tl.store(values + cell, v_low, inside)
        tl.store(values + cell + HALF, v_high, inside)

    g = tl.arange(0, ROWS)
    mine = (g < GROUP)[:, None] & inside[None, :]
    q = qkv + (head * GROUP + g)[:, None] * 2 * HALF + i[None, :]
    a = tl.load(q, mine, 0.0).to(tl.float32)
    b = tl.load(q + HALF, mine, 0.0).to(tl.float32)
    q_low = (a * c[None, :] - b * s[None, :]).to(keys.dtype.element_ty)             # [ROWS, WIDTH]
    q_high = (b * c[None, :] + a * s[None, :]).to(keys.dtype.element_ty)

    # The new token is in the first split's sums from the start.
    first = (split == 0).to(tl.float32)
    own = tl.sum(q_low.to(tl.float32) * k_low.to(tl.float32)[None, :]
                 + q_high.to(tl.float32) * k_high.to(tl.float32)[None, :], 1) * scale
    top = tl.where(split == 0, own, float("-inf"))                                  # [ROWS]
    total = tl.zeros([ROWS], tl.float32) + first
    low = tl.zeros([ROWS, WIDTH], tl.float32) + first * v_low.to(tl.float32)[None, :]
    high = tl.zeros([ROWS, WIDTH], tl.float32) + first * v_high.to(tl.float32)[None, :]

    pages = (at + PAGE - 1) // PAGE * (1 - tl.load(done + row).to(tl.int32))
    each = (pages + SPLITS - 1) // SPLITS
    t = tl.arange(0, PAGE)
    for page in range(split * each, tl.minimum(split * each + each, pages)):
        cell = ((page * slots + row) * heads + head) * PAGE
        cell = (cell + t)[:, None] * 2 * HALF + i[None, :]                          # [PAGE, WIDTH]
        score = tl.dot(q_low, tl.trans(tl.load(keys + cell, inside[None, :], 0.0)),
                       input_precision="ieee")
        score += tl.dot(q_high, tl.trans(tl.load(keys + cell + HALF, inside[None, :], 0.0)),
                        input_precision="ieee")
        score = tl.where((page * PAGE + t < at)[None, :], score * scale, float("-inf"))
        higher = tl.maximum(top, tl.max(score, 1))
        shrink, weight = tl.exp(top - higher), tl.exp(score - higher[:, None])      # [ROWS, PAGE]
        top, total = higher, total * shrink + tl.sum(weight, 1)
        weight = weight.to(values.dtype.element_ty)
        low = low * shrink[:, None] + tl.dot(
            weight, tl.load(values + cell, inside[None, :], 0.0), input_precision="ieee")
        high = high * shrink[:, None] + tl.dot(
            weight, tl.load(values + cell + HALF, inside[None, :], 0.0), input_precision="ieee")

    number = (row * heads + head) * GROUP + g                               # of the query head
    out = (number * SPLITS + split)[:, None] * 2 * HALF + i[None, :]        # [b, H, SPLITS, D]
    norm = tl.where(total > 0, total, 1.0)                          # 0: a split without pages
    tl.store(parts + out, (low / norm[:, None]).to(parts.dtype.element_ty), mine)
    tl.store(parts + out + HALF, (high / norm[:, None]).to(parts.dtype.element_ty), mine)
    if SPLITS > 1:
        tl.store(masses + number * SPLITS + split, top + tl.log(norm), g < GROUP)   # in logs


@triton.jit
def _merge(parts, masses, out, SIZE: tl.constexpr, SPLITS: tl.constexpr, WIDTH: tl.constexpr):
    head = tl.program_id(0)
    split, i = tl.arange(0, SPLITS), tl.arange(0, WIDTH)
    mass = tl.load(masses + head * SPLITS + split)
    mass = tl.exp(mass - tl.max(mass, 0))
    part = tl.load(parts + (head * SPLITS + split)[:, None] * SIZE + i[None, :],
                   (i < SIZE)[None, :], 0.0)                                # [SPLITS, WIDTH]
    whole = tl.sum(part * mass[:, None], 0) / tl.sum(mass, 0)
    tl.store(out + head * SIZE + i, whole.to(out.dtype.element_ty), i < SIZE)


def attend(qkv, cos, sin, position, done, keys, values, splits=None):
    """qkv [b, (H + KV + KV) * D], q and k not yet turned -> [b, H * D].

    cos, sin: of `model.rotary`, by position. keys, values: a layer's, [P, S, KV, PAGE, D].
    splits: programs that share the pages of a sequence; None: enough to fill the GPU twice.
    """
    b, (_, slots, KV, page, D) = len(qkv), keys.shape
    H = qkv.shape[1] // D - 2 * KV
    if splits is None:
        processors = (torch.cuda.get_device_properties(qkv.device).multi_processor_count
                      if qkv.is_cuda else 2)                # in the interpreter
        splits = 1 << min(4, max(0, (2 * processors // (b * KV)).bit_length() - 1))
    out = qkv.new_empty(b, H * D)
    parts = out if splits == 1 else out.new_empty(b, H, splits, D, dtype=torch.float32)
    masses = out.new_empty(b, H, splits, dtype=torch.float32)
    _attend[b, KV, splits](
        qkv, cos, sin, position, done, keys, values, parts, masses, slots, D**-0.5,
        GROUP=H // KV, HALF=D // 2, PAGE=page, SPLITS=splits,
        ROWS=max(16, triton.next_power_of_2(H // KV)),      # 16: the least of a matrix product
        WIDTH=max(16, triton.next_power_of_2(D // 2)),
        num_stages=3 if qkv.dtype.itemsize == 2 else 1)     # pages on their way in shared memory
    if splits > 1:
        _merge[b * H,](parts, masses, out, SIZE=D, SPLITS=splits, WIDTH=triton.next_power_of_2(D))
    return out


# ---- the rest of a layer ---------------------------------------------------------------------
@triton.jit
def _gate(both, out, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    row, i = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    gate = tl.load(both + row * 2 * SIZE + i, i < SIZE, 0.0).to(tl.float32)
    up = tl.load(both + row * 2 * SIZE + SIZE + i, i < SIZE, 0.0).to(tl.float32)
    y = gate * tl.sigmoid(gate) * up
    tl.store(out + row * SIZE + i, y.to(out.dtype.element_ty), i < SIZE)


def gated(both):
    """silu(gate) * up of gate and up side by side, [b, 2 * I] -> [b, I]."""
    out = both.new_empty(len(both), both.shape[1] // 2)
    _gate[len(both), triton.cdiv(out.shape[1], 1024)](both, out, SIZE=out.shape[1], BLOCK=1024)
    return out


@triton.jit
def _product(x, weight, bias, norm, out, eps, IN: tl.constexpr, OUT: tl.constexpr,
             BIAS: tl.constexpr, NORM: tl.constexpr, GATE: tl.constexpr, ADD: tl.constexpr,
             ROWS: tl.constexpr, BLOCK: tl.constexpr):
    row, k = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, BLOCK)
    total, gate = tl.zeros([ROWS, BLOCK], tl.float32), tl.zeros([ROWS, BLOCK], tl.float32)
    squares = tl.zeros([BLOCK], tl.float32)
    for start in tl.static_range(0, IN, BLOCK):
        i = start + k
        cells, inside = row[:, None] * IN + i[None, :], (row < OUT)[:, None] & (i < IN)[None, :]
        a = tl.load(x + i, i < IN, 0.0).to(tl.float32)
        if NORM:                            # its divisor is the same for all: at the end
            squares += a * a
            a *= tl.load(norm + i, i < IN, 0.0).to(tl.float32)
        if GATE:                            # the matrix holds gate and, below it, up
            gate += tl.load(weight + cells, inside, 0.0).to(tl.float32) * a[None, :]
            cells += OUT * IN
        total += tl.load(weight + cells, inside, 0.0).to(tl.float32) * a[None, :]
    scale = tl.rsqrt(tl.sum(squares, 0) / IN + eps) if NORM else 1.0
    y, g = tl.sum(total, 1) * scale, tl.sum(gate, 1) * scale
    if GATE:
        y *= g * tl.sigmoid(g)
    if BIAS:
        y += tl.load(bias + row, row < OUT, 0.0).to(tl.float32)
    if ADD:
        y += tl.load(out + row, row < OUT, 0.0).to(tl.float32)
    tl.store(out + row, y.to(out.dtype.element_ty), row < OUT)


def product(x, weight, bias=None, norm=None, gate=False, add_to=None):
    """x [1, I], weight [O, I] -> [1, O], the matrix read once and straight through.

    norm: an RMSNorm of x before. gate: silu(gate) * up after. add_to: x of the residual, in place.
    """
    size = len(weight) // 2 if gate else len(weight)
    out = x.new_empty(1, size) if add_to is None else add_to
    rows = 2 if gate else 4
    _product[triton.cdiv(size, rows),](
        x, weight, bias, norm and norm.weight, out, norm and norm.eps, IN=x.shape[1], OUT=size,
        BIAS=bias is not None, NORM=norm is not None, GATE=gate, ADD=add_to is not None,
        ROWS=rows, BLOCK=1024)
    return out


# ---- drawing a token -------------------------------------------------------------------------
@triton.jit
def _masses(logits, top, mass, temperature, SIZE: tl.constexpr, CHUNKS: tl.constexpr):
    chunk = tl.program_id(0).to(tl.int64) * CHUNKS + tl.program_id(1)
    block, i = tl.arange(0, 64), tl.arange(0, 64)
    at = (tl.program_id(1) * 64 + block)[:, None] * 64 + i[None, :]
    z = tl.load(logits + tl.program_id(0).to(tl.int64) * SIZE + at, at < SIZE, float("-inf"))
    high = tl.maximum(tl.max(tl.max(z, 1), 0), -1e30)
    tl.store(top + chunk, high)
    tl.store(mass + chunk * 64 + block, tl.sum(tl.exp((z - high) / temperature), 1))


@triton.jit
def _pick(logits, top, mass, u, token, logprob, temperature,
          SIZE: tl.constexpr, CHUNKS: tl.constexpr, WIDTH: tl.constexpr):
    row, i = tl.program_id(0).to(tl.int64), tl.arange(0, 64)
    chunk, blocks = tl.arange(0, WIDTH), tl.arange(0, WIDTH * 64)
    inside = chunk < CHUNKS
    high = tl.load(top + row * CHUNKS + chunk, inside, -1e30)
    highest = tl.max(high, 0)
    p = tl.load(mass + (row * CHUNKS + chunk)[:, None] * 64 + i[None, :], inside[:, None], 0.0)
    p *= tl.exp((high - highest) / temperature)[:, None]
    p = tl.reshape(p.to(tl.float64), [WIDTH * 64])
    cdf = tl.cumsum(p, 0)
    total = tl.max(cdf, 0)
    target = tl.load(u + row) * total
    last = tl.max(tl.where(p > 0, blocks, 0), 0)            # rounding may put target beyond
    block = tl.minimum(tl.sum((cdf <= target).to(tl.int32), 0), last)
    target -= tl.sum(tl.where(blocks == block, cdf - p, 0.0), 0)
    target /= tl.sum(tl.where(blocks == block, p, 0.0), 0)          # the share of the block's mass

    at = block * 64 + i
    z = (tl.load(logits + row * SIZE + at, at < SIZE, float("-inf")) - highest) / temperature
    p = tl.exp(z).to(tl.float64)
    cdf = tl.cumsum(p, 0)
    last = tl.max(tl.where(p > 0, i, 0), 0)
    found = tl.minimum(tl.sum((cdf <= target * tl.max(cdf, 0)).to(tl.int32), 0), last)
    tl.store(token + row, (block * 64 + found).to(tl.int64))
    log_p = tl.sum(tl.where(i == found, z, 0.0), 0) - tl.log(total).to(tl.float32)
    tl.store(logprob + row, log_p)


def draw(logits, temperature: float, u):
    """`sample.draw` from softmax(logits / temperature), [b, V] -> token and log-prob, [b] each.

    The logits are read once, for the mass of each block of 64 (beside the maximum of its chunk, 64
    blocks); then those of the block that is drawn.
    """
    (b, size), new = logits.shape, logits.new_empty
    chunks = triton.cdiv(size, 64 * 64)
    top, mass = new(b, chunks), new(b, chunks, 64)
    token, logprob = new(b, dtype=torch.int64), new(b, dtype=torch.float32)
    _masses[b, chunks](logits, top, mass, temperature, SIZE=size, CHUNKS=chunks)
    _pick[b,](logits, top, mass, u, token, logprob, temperature, SIZE=size, CHUNKS=chunks,
              WIDTH=triton.next_power_of_2(chunks))
    return token, logprob


# ---- the step --------------------------------------------------------------------------------
def side_by_side(name, *layers):
    """The weights (or biases) of layers with the same input as one; the layers keep views of it."""
    parts = [getattr(layer, name) for layer in layers]
    rows = [len(part) for part in parts]
    if len({part.untyped_storage().data_ptr() for part in parts}) > 1:
        for part, view in zip(parts, torch.cat([part.detach() for part in parts]).split(rows)):
            part.data = view
    return parts[0].detach().as_strided((sum(rows), *parts[0].shape[1:]), parts[0].stride(), 0)


class Decoder:
    """`Transformer.hidden` where every sequence has one new token; sequences of up to `length`."""

    def __init__(self, model, length: int):
        self.model = model
        self.cos, self.sin = rotary(torch.arange(length, device=model.head_weight.device),
                                    model.config)
        self.joined = []
        for block in model.model["layers"]:
            qkv = block.self_attn.q_proj, block.self_attn.k_proj, block.self_attn.v_proj
            gate_up = block.mlp.gate_proj, block.mlp.up_proj
            self.joined.append((side_by_side("weight", *qkv), side_by_side("bias", *qkv),
                                side_by_side("weight", *gate_up)))
        if self.cos.is_cuda:
            torch.cuda.empty_cache()                            # where the parts were

    def hidden(self, token, position, done, cache):
        """token [b] at position [b] -> [b, C]. done [b] and cache: see `attend`."""
        x = F.embedding(token, self.model.model["embed_tokens"].weight)         # [b, C]
        for block, (qkv, bias, gate_up), kv in zip(self.model.model["layers"], self.joined, cache):
            norms = block.input_layernorm, block.post_attention_layernorm
            o, down = block.self_attn.o_proj.weight, block.mlp.down_proj.weight
            about = self.cos, self.sin, position, done, *kv
            if len(x) == 1:
                x = product(attend(product(x, qkv, bias, norms[0]), *about), o, add_to=x)
                x = product(product(x, gate_up, norm=norms[1], gate=True), down, add_to=x)
            else:
                x.addmm_(attend(F.linear(norms[0](x), qkv, bias), *about), o.t())
                x.addmm_(gated(F.linear(norms[1](x), gate_up)), down.t())
        return self.model.model["norm"](x)
