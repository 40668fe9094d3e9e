"""Attention of the sampler's newest tokens to its cache, on CUDA: one Triton kernel per layer.

What `_paged_attention` in sample.py says in PyTorch, for a CPU. A program serves one sequence and
one key/value head, with all query heads that share it. It turns the new queries and the new key by
their position's angle, notes key and value down in the cache, and goes through the pages of that
one sequence, however long the others are: a softmax that corrects its maximum as it goes needs each
page once. Where sequences are few, several programs share the pages of one, and what they found is
weighed together afterwards. A sequence that is done reads nothing.

Without a GPU it runs in Triton's interpreter (TRITON_INTERPRET=1): tests/test_kernel.py.
"""
import torch
import triton
import triton.language as tl


@triton.jit
def _attend(q, k, v, cos, sin, position, done, keys, values, parts, masses, slots, scale,
            GROUP: tl.constexpr, HALF: tl.constexpr, PAGE: tl.constexpr, SPLITS: tl.constexpr,
            ROWS: tl.constexpr, WIDTH: tl.constexpr):
    row, head, split = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    heads = tl.num_programs(1)
    i = tl.arange(0, WIDTH)                     # WIDTH and ROWS are HALF and GROUP, rounded up
    inside = i < HALF
    c = tl.load(cos + row * 2 * HALF + i, inside, 0.0)
    s = tl.load(sin + row * 2 * HALF + HALF + i, inside, 0.0)
    at = tl.load(position + row)

    new = (row * heads + head) * 2 * HALF + i                       # of k and v, [b, KV, D]
    a = tl.load(k + new, inside, 0.0).to(tl.float32)
    b = tl.load(k + new + HALF, inside, 0.0).to(tl.float32)
    k_low = (a * c - b * s).to(keys.dtype.element_ty)               # [WIDTH]
    k_high = (b * c + a * s).to(keys.dtype.element_ty)
    v_low, v_high = tl.load(v + new, inside, 0.0), tl.load(v + new + HALF, inside, 0.0)
    if split == 0:
        cell = (at // PAGE * slots + row) * heads + head
        cell = (cell * PAGE + at % PAGE) * 2 * HALF + i
        tl.store(keys + cell, k_low, inside)
        tl.store(keys + cell + HALF, k_high, inside)
        tl.store(values + cell, v_low, inside)
        tl.store(values + cell + HALF, v_high, inside)

    g = tl.arange(0, ROWS)
    mine = (g < GROUP)[:, None] & inside[None, :]
    number = (row * heads + head) * GROUP + g                       # of the query head, [ROWS]
    queries = number[:, None] * 2 * HALF + i[None, :]                               # [b, H, D]
    a = tl.load(q + queries, mine, 0.0).to(tl.float32)
    b = tl.load(q + queries + HALF, mine, 0.0).to(tl.float32)
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

    out = (number * SPLITS + split)[:, None] * 2 * HALF + i[None, :]        # [b, H, SPLITS, D]
    norm = tl.where(total > 0, total, 1.0)                          # 0: a split without pages
    tl.store(parts + out, (low / norm[:, None]).to(parts.dtype.element_ty), mine)
    tl.store(parts + out + HALF, (high / norm[:, None]).to(parts.dtype.element_ty), mine)
    if SPLITS > 1:
        tl.store(masses + number * SPLITS + split, top + tl.log(norm), g < GROUP)   # in logs


def attend(q, k, v, cos, sin, position, done, keys, values, splits=None):
    """q [b, H, 1, D] and k, v [b, KV, 1, D], not yet turned -> [b, H, 1, D].

    cos, sin: of `model.rotary`, for position [b]. keys, values: a layer's, [P, S, KV, PAGE, D].
    splits: programs that share the pages of a sequence; None: enough to fill the GPU twice.
    """
    (b, H, _, D), (_, slots, KV, page, _) = q.shape, keys.shape
    if splits is None:
        idle = 2 * torch.cuda.get_device_properties(q.device).multi_processor_count // (b * KV)
        splits = 1 << min(4, max(0, idle.bit_length() - 1))
    parts = q.new_empty(b, H, splits, D, dtype=q.dtype if splits == 1 else torch.float32)
    masses = q.new_empty(b, H, splits, dtype=torch.float32)
    _attend[b, KV, splits](
        q.contiguous(), k.contiguous(), v.contiguous(), cos, sin, position, done, keys, values,
        parts, masses, slots, D**-0.5, GROUP=H // KV, HALF=D // 2, PAGE=page, SPLITS=splits,
        ROWS=max(16, triton.next_power_of_2(H // KV)),      # 16: the least of a matrix product
        WIDTH=max(16, triton.next_power_of_2(D // 2)),
        num_stages=3 if q.dtype.itemsize == 2 else 1)       # pages on their way in shared memory
    if splits == 1:
        return parts
    return (masses.softmax(-1)[:, :, None] @ parts).to(q.dtype)
