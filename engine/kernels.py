"""A decode step on CUDA in few launches: the model's layers for one new token of every sequence.

`Decoder.hidden` computes what `Transformer.hidden` does, with the same weights. But q, k and v are
one product, gate and up are another, and the sums with the residual are part of the products before
them. The rest of a layer is two norms and two Triton kernels: `_attend` and `_gate`.

`_attend` is `Cache.attend_tokens` of sample.py. Each program serves one sequence and one key head,
with all query heads that share it. It turns the new queries and the new key by the angle of their
position, writes key and value into the cache, and reads each page of its sequence once: it keeps
the largest score so far, and scales its sums down when a larger one comes. Where sequences are few,
several programs share the pages of one, and `_merge` adds up the parts. A finished one reads none.

For a single sequence, a product takes as long as reading its matrix. `_product` reads it once.
`draw` is `draw` of engine/noise.py, with the logits read once.

A head is handled as two halves, `low` and `high`: rotation turns each pair (low[i], high[i]). There
are 2^n lanes, and masks (`inside`) leave out those beyond the end. Without a GPU all this runs in
Triton's interpreter (TRITON_INTERPRET=1): tests/test_kernel.py.
"""
import torch
import torch.nn.functional as F
import triton
import triton.language as tl


# ---- attention to the cache ------------------------------------------------------------------
@triton.jit
def _turned(head, real, cosine, sine, norm, lane, eps, HALF: tl.constexpr, NORM: tl.constexpr,
            dtype: tl.constexpr):
    """The two halves of a query or key, turned by the angle of its position. Qwen3 has a norm of
    each head before that."""
    low = tl.load(head, real, 0.0).to(tl.float32)
    high = tl.load(head + HALF, real, 0.0).to(tl.float32)
    if NORM:
        squares = tl.sum(low * low + high * high, axis=len(low.shape) - 1, keep_dims=True)
        scale = tl.rsqrt(squares / (2 * HALF) + eps)
        low *= scale * tl.load(norm + lane, lane < HALF, 0.0).to(tl.float32)
        high *= scale * tl.load(norm + HALF + lane, lane < HALF, 0.0).to(tl.float32)
    return (low * cosine - high * sine).to(dtype), (high * cosine + low * sine).to(dtype)


@triton.jit
def _page(q_low, q_high, keys, values, inside, real, scale, largest, total, y_low, y_high,
          HALF: tl.constexpr):
    """Add a page to the sums of a softmax: `keys`, `values` [PAGE, WIDTH] say where it lies."""
    score = tl.dot(q_low, tl.trans(tl.load(keys, inside, 0.0)), input_precision="ieee")
    score += tl.dot(q_high, tl.trans(tl.load(keys + HALF, inside, 0.0)), input_precision="ieee")
    score = tl.where(real, score * scale, float("-inf"))
    larger = tl.maximum(largest, tl.max(score, 1))
    shrink, weight = tl.exp(largest - larger), tl.exp(score - larger[:, None])      # [ROWS, PAGE]
    total = total * shrink + tl.sum(weight, 1)
    weight = weight.to(values.dtype.element_ty)
    y_low = y_low * shrink[:, None] + tl.dot(weight, tl.load(values, inside, 0.0),
                                             input_precision="ieee")
    y_high = y_high * shrink[:, None] + tl.dot(weight, tl.load(values + HALF, inside, 0.0),
                                               input_precision="ieee")
    return larger, total, y_low, y_high


@triton.jit
def _attend(qkv, cos, sin, position, done, keys, values, parts, masses, slots, scale,
            q_norm, k_norm, eps, NORM: tl.constexpr,
            GROUP: tl.constexpr, HALF: tl.constexpr, PAGE: tl.constexpr, SPLITS: tl.constexpr,
            ROWS: tl.constexpr, WIDTH: tl.constexpr):
    slot, head, split = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    heads = tl.num_programs(1)
    lane = tl.arange(0, WIDTH)                  # WIDTH and ROWS are HALF and GROUP, rounded up
    inside = lane < HALF
    now = tl.load(position + slot)              # where the new token belongs
    cosine = tl.load(cos + now * 2 * HALF + lane, inside, 0.0)
    sine = tl.load(sin + now * 2 * HALF + HALF + lane, inside, 0.0)

    # The new key, turned, and the new value. The first split writes them into the cache.
    qkv += slot * (GROUP + 2) * heads * 2 * HALF                    # [H + KV + KV, D]
    k = qkv + (GROUP * heads + head) * 2 * HALF + lane
    v = k + heads * 2 * HALF
    k_low, k_high = _turned(k, inside, cosine, sine, k_norm, lane, eps, HALF, NORM,
                            keys.dtype.element_ty)                                  # [WIDTH]
    v_low, v_high = tl.load(v, inside, 0.0), tl.load(v + HALF, inside, 0.0)
    if split == 0:
        cell = (now // PAGE * slots + slot) * heads + head
        cell = (cell * PAGE + now % PAGE) * 2 * HALF + lane
        tl.store(keys + cell, k_low, inside)
        tl.store(keys + cell + HALF, k_high, inside)
        tl.store(values + cell, v_low, inside)
        tl.store(values + cell + HALF, v_high, inside)

    # The new queries, turned: a row for each query head that shares this key head.
    member = tl.arange(0, ROWS)
    real = (member < GROUP)[:, None] & inside[None, :]
    q = qkv + (head * GROUP + member)[:, None] * 2 * HALF + lane[None, :]
    q_low, q_high = _turned(q, real, cosine[None, :], sine[None, :], q_norm, lane[None, :], eps,
                            HALF, NORM, keys.dtype.element_ty)                      # [ROWS, WIDTH]

    # The sums of the first split start with the new token, which is not read from the cache.
    first = (split == 0).to(tl.float32)
    own = tl.sum(q_low.to(tl.float32) * k_low.to(tl.float32)[None, :]
                 + q_high.to(tl.float32) * k_high.to(tl.float32)[None, :], 1) * scale
    largest = tl.where(split == 0, own, float("-inf"))                              # [ROWS]
    total = tl.zeros([ROWS], tl.float32) + first
    y_low = tl.zeros([ROWS, WIDTH], tl.float32) + first * v_low.to(tl.float32)[None, :]
    y_high = tl.zeros([ROWS, WIDTH], tl.float32) + first * v_high.to(tl.float32)[None, :]

    pages = (now + PAGE - 1) // PAGE * (1 - tl.load(done + slot).to(tl.int32))
    share = (pages + SPLITS - 1) // SPLITS
    place = tl.arange(0, PAGE)
    for page in range(split * share, tl.minimum(split * share + share, pages)):
        cell = ((page * slots + slot) * heads + head) * PAGE
        cell = (cell + place)[:, None] * 2 * HALF + lane[None, :]                   # [PAGE, WIDTH]
        largest, total, y_low, y_high = _page(
            q_low, q_high, keys + cell, values + cell, inside[None, :],
            (page * PAGE + place < now)[None, :], scale, largest, total, y_low, y_high, HALF)

    query = (slot * heads + head) * GROUP + member                          # of all query heads
    out = (query * SPLITS + split)[:, None] * 2 * HALF + lane[None, :]      # [B, H, SPLITS, D]
    norm = tl.where(total > 0, total, 1.0)                          # 0: a split without pages
    tl.store(parts + out, (y_low / norm[:, None]).to(parts.dtype.element_ty), real)
    tl.store(parts + out + HALF, (y_high / norm[:, None]).to(parts.dtype.element_ty), real)
    if SPLITS > 1:                                                  # log of the split's sum of exp
        tl.store(masses + query * SPLITS + split, largest + tl.log(norm), member < GROUP)


@triton.jit
def _merge(parts, masses, out, SIZE: tl.constexpr, SPLITS: tl.constexpr, WIDTH: tl.constexpr):
    head = tl.program_id(0)
    split, lane = tl.arange(0, SPLITS), tl.arange(0, WIDTH)
    mass = tl.load(masses + head * SPLITS + split)
    mass = tl.exp(mass - tl.max(mass, 0))
    part = tl.load(parts + (head * SPLITS + split)[:, None] * SIZE + lane[None, :],
                   (lane < SIZE)[None, :], 0.0)                             # [SPLITS, WIDTH]
    whole = tl.sum(part * mass[:, None], 0) / tl.sum(mass, 0)
    tl.store(out + head * SIZE + lane, whole.to(out.dtype.element_ty), lane < SIZE)


def attend(qkv, cos, sin, position, done, keys, values, norms=None, splits=None):
    """qkv [B, (H + KV + KV) * D], q and k not yet turned -> [B, H * D].

    cos, sin: of `model.rotary`, by position. keys, values: of one layer, [P, slots, KV, PAGE, D].
    norms: those of q and of k, where the model has some.
    splits: programs that share the pages of a sequence. None: enough to fill the GPU twice.
    """
    B, (_, slots, KV, page, D) = len(qkv), keys.shape
    H = qkv.shape[1] // D - 2 * KV
    if splits is None:
        processors = (torch.cuda.get_device_properties(qkv.device).multi_processor_count
                      if qkv.is_cuda else 2)                # in the interpreter
        splits = 1 << min(4, max(0, (2 * processors // (B * KV)).bit_length() - 1))
    out = qkv.new_empty(B, H * D)
    parts = out if splits == 1 else out.new_empty(B, H, splits, D, dtype=torch.float32)
    masses = out.new_empty(B, H, splits, dtype=torch.float32)
    _attend[B, KV, splits](
        qkv, cos, sin, position, done, keys, values, parts, masses, slots, D**-0.5,
        norms and norms[0].weight, norms and norms[1].weight, norms and norms[0].eps,
        NORM=norms is not None, GROUP=H // KV, HALF=D // 2, PAGE=page, SPLITS=splits,
        ROWS=max(16, triton.next_power_of_2(H // KV)),      # a matrix product has 16 rows at least
        WIDTH=max(16, triton.next_power_of_2(D // 2)),
        num_stages=3 if qkv.dtype.itemsize == 2 else 1)     # pages that are on their way at once
    if splits > 1:
        _merge[B * H,](parts, masses, out, SIZE=D, SPLITS=splits, WIDTH=triton.next_power_of_2(D))
    return out


# ---- the rest of a layer ---------------------------------------------------------------------
@triton.jit
def _gate(both, out, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    row, lane = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    gate = tl.load(both + row * 2 * SIZE + lane, lane < SIZE, 0.0).to(tl.float32)
    up = tl.load(both + row * 2 * SIZE + SIZE + lane, lane < SIZE, 0.0).to(tl.float32)
    y = gate * tl.sigmoid(gate) * up
    tl.store(out + row * SIZE + lane, y.to(out.dtype.element_ty), lane < SIZE)


def gated(both):
    """silu(gate) * up, where gate and up are side by side: [B, 2 * I] -> [B, I]."""
    out = both.new_empty(len(both), both.shape[1] // 2)
    _gate[len(both), triton.cdiv(out.shape[1], 1024)](both, out, SIZE=out.shape[1], BLOCK=1024)
    return out


@triton.jit
def _product(x, weight, bias, norm, out, eps, IN: tl.constexpr, OUT: tl.constexpr,
             BIAS: tl.constexpr, NORM: tl.constexpr, GATE: tl.constexpr, ADD: tl.constexpr,
             ROWS: tl.constexpr, BLOCK: tl.constexpr):
    row, lane = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, BLOCK)
    total, gate = tl.zeros([ROWS, BLOCK], tl.float32), tl.zeros([ROWS, BLOCK], tl.float32)
    squares = tl.zeros([BLOCK], tl.float32)
    for start in tl.static_range(0, IN, BLOCK):
        i = start + lane
        cells, inside = row[:, None] * IN + i[None, :], (row < OUT)[:, None] & (i < IN)[None, :]
        value = tl.load(x + i, i < IN, 0.0).to(tl.float32)
        if NORM:                            # All numbers have the same divisor: divide at the end.
            squares += value * value
            value *= tl.load(norm + i, i < IN, 0.0).to(tl.float32)
        if GATE:                            # The matrix holds gate and, below it, up.
            gate += tl.load(weight + cells, inside, 0.0).to(tl.float32) * value[None, :]
            cells += OUT * IN
        total += tl.load(weight + cells, inside, 0.0).to(tl.float32) * value[None, :]
    scale = tl.rsqrt(tl.sum(squares, 0) / IN + eps) if NORM else 1.0
    y, opening = tl.sum(total, 1) * scale, tl.sum(gate, 1) * scale
    if GATE:
        y *= opening * tl.sigmoid(opening)
    if BIAS:
        y += tl.load(bias + row, row < OUT, 0.0).to(tl.float32)
    if ADD:
        y += tl.load(out + row, row < OUT, 0.0).to(tl.float32)
    tl.store(out + row, y.to(out.dtype.element_ty), row < OUT)


def product(x, weight, bias=None, norm=None, gate=False, add_to=None):
    """x [1, I], weight [O, I] -> [1, O]. The matrix is read once, from its start to its end.

    norm: an RMSNorm of x before. gate: silu(gate) * up after. add_to: the residual, added in place.
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
    block, lane = tl.arange(0, 64), tl.arange(0, 64)
    token = (tl.program_id(1) * 64 + block)[:, None] * 64 + lane[None, :]
    z = tl.load(logits + tl.program_id(0).to(tl.int64) * SIZE + token, token < SIZE, float("-inf"))
    highest = tl.maximum(tl.max(tl.max(z, 1), 0), -1e30)
    tl.store(top + chunk, highest)
    tl.store(mass + chunk * 64 + block, tl.sum(tl.exp((z - highest) / temperature), 1))


@triton.jit
def _pick(logits, top, mass, noise, token, logprob, temperature,
          SIZE: tl.constexpr, CHUNKS: tl.constexpr, WIDTH: tl.constexpr):
    row, lane = tl.program_id(0).to(tl.int64), tl.arange(0, 64)
    chunk, blocks = tl.arange(0, WIDTH), tl.arange(0, WIDTH * 64)
    inside = chunk < CHUNKS
    tops = tl.load(top + row * CHUNKS + chunk, inside, -1e30)
    highest = tl.max(tops, 0)
    p = tl.load(mass + (row * CHUNKS + chunk)[:, None] * 64 + lane[None, :], inside[:, None], 0.0)
    p *= tl.exp((tops - highest) / temperature)[:, None]
    p = tl.reshape(p.to(tl.float64), [WIDTH * 64])
    cdf = tl.cumsum(p, 0)
    total = tl.max(cdf, 0)
    target = tl.load(noise + row) * total                   # The first block with a larger cdf.
    last = tl.max(tl.where(p > 0, blocks, 0), 0)            # Rounding may put the target beyond it.
    block = tl.minimum(tl.sum((cdf <= target).to(tl.int32), 0), last)
    target -= tl.sum(tl.where(blocks == block, cdf - p, 0.0), 0)
    target /= tl.sum(tl.where(blocks == block, p, 0.0), 0)  # In it the same again, scaled.

    here = block * 64 + lane
    z = (tl.load(logits + row * SIZE + here, here < SIZE, float("-inf")) - highest) / temperature
    p = tl.exp(z).to(tl.float64)
    cdf = tl.cumsum(p, 0)
    last = tl.max(tl.where(p > 0, lane, 0), 0)
    drawn = tl.minimum(tl.sum((cdf <= target * tl.max(cdf, 0)).to(tl.int32), 0), last)
    tl.store(token + row, (block * 64 + drawn).to(tl.int64))
    log_p = tl.sum(tl.where(lane == drawn, z, 0.0), 0) - tl.log(total).to(tl.float32)
    tl.store(logprob + row, log_p)


def draw(logits, temperature: float, noise):
    """`noise.draw` from softmax(logits / temperature): [B, V] -> token and log-prob, [B] each.

    The logits are read once, for the mass of each block of 64 tokens. A chunk is 64 blocks, and its
    masses are relative to its largest logit. Then the logits of the drawn block are read again.
    """
    (B, size), new = logits.shape, logits.new_empty
    chunks = triton.cdiv(size, 64 * 64)
    top, mass = new(B, chunks), new(B, chunks, 64)
    token, logprob = new(B, dtype=torch.int64), new(B, dtype=torch.float32)
    _masses[B, chunks](logits, top, mass, temperature, SIZE=size, CHUNKS=chunks)
    _pick[B,](logits, top, mass, noise, token, logprob, temperature, SIZE=size, CHUNKS=chunks,
              WIDTH=triton.next_power_of_2(chunks))
    return token, logprob


# ---- the step --------------------------------------------------------------------------------
def side_by_side(name, *layers):
    """The weights (or biases, if any) of layers with one input as one tensor; they become views of
    it."""
    parts = [getattr(layer, name) for layer in layers]
    if parts[0] is None:
        return None
    rows = [len(part) for part in parts]
    if len({part.untyped_storage().data_ptr() for part in parts}) > 1:      # not yet joined
        for part, view in zip(parts, torch.cat([part.detach() for part in parts]).split(rows)):
            part.data = view
    return parts[0].detach().as_strided((sum(rows), *parts[0].shape[1:]), parts[0].stride(), 0)


class Decoder:
    """`Transformer.hidden` where every sequence has one new token. cos, sin: of all positions."""
    draw = staticmethod(draw)

    def __init__(self, model, cos, sin):
        self.model, self.cos, self.sin, self.joined = model, cos, sin, []
        for block in model.model["layers"]:
            qkv = block.self_attn.q_proj, block.self_attn.k_proj, block.self_attn.v_proj
            gate_up = block.mlp.gate_proj, block.mlp.up_proj
            self.joined.append((side_by_side("weight", *qkv), side_by_side("bias", *qkv),
                                side_by_side("weight", *gate_up)))
        if cos.is_cuda:
            torch.cuda.empty_cache()                        # where the single weights were

    def hidden(self, token, position, done, pages):
        """token [B] at position [B] -> [B, C]. done [B]; pages: those of the cache."""
        x = F.embedding(token, self.model.model["embed_tokens"].weight)         # [B, C]
        for block, (qkv, bias, gate_up), kept in zip(self.model.model["layers"], self.joined,
                                                     pages):
            norms = block.input_layernorm, block.post_attention_layernorm
            o, down = block.self_attn.o_proj.weight, block.mlp.down_proj.weight
            of_heads = (block.self_attn.q_norm, block.self_attn.k_norm)
            place = self.cos, self.sin, position, done, *kept, of_heads if of_heads[0] else None
            if len(x) == 1:
                x = product(attend(product(x, qkv, bias, norms[0]), *place), o, add_to=x)
                x = product(product(x, gate_up, norm=norms[1], gate=True), down, add_to=x)
            else:
                x.addmm_(attend(F.linear(norms[0](x), qkv, bias), *place), o.t())
                x.addmm_(gated(F.linear(norms[1](x), gate_up)), down.t())
        return self.model.model["norm"](x)
