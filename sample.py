"""Sample from a Qwen2.5 model with a key/value cache: `generate`, and a command around it.

    python sample.py --model Qwen2.5-1.5B --prompt "Why is the sky blue?" --chat
    python sample.py --model Qwen2.5-1.5B --data data/kk_test.jsonl --out rollouts.jsonl --n 8

How it works. A fixed number of slots each hold one sequence in the making: its keys and values,
its position, what it has drawn. Prompts are prefilled together, each once however many samples
are asked of it, and the keys copied into the slots of its samples. Then one `_step` after the
other: embed the last token, run the layers against the cache, draw the next token, note it down.
The running sequences are always the first slots: when one ends, the last one moves into its
place, and when enough slots are free, waiting prompts are let in.

On a CPU `_step` runs as it is written, over just the live slots and the live pages. On CUDA the
same `_step` is captured in one graph per rounded-up number of live slots, drawing and note-taking
included, with the layers as kernel.py runs them; the host looks only every 16 steps whether
anything has ended.
"""
import json
import math
import os
import sys
import time
from dataclasses import asdict, dataclass

import numpy
import torch
from torch import Tensor
from tqdm import tqdm

import model as transformer
from model import causal_attention, head_logits, rotary, rotate, whole_rows

try:
    import kernel
except ImportError:         # no Triton, which comes with PyTorch for CUDA on Linux
    kernel = None


@dataclass
class Settings:
    model: str                      # directory of a Hugging Face Qwen2-architecture model
    prompt: str | None = None       # text to continue, printed as it is drawn
    data: str | None = None         # problems (JSONL; ours, or official K&K, MATH or GSM8K files)
    out: str | None = None          # rollouts (JSONL); an unfinished file is continued
    n: int = 1                      # samples per prompt (paper: 8 for RL, 1 greedy to evaluate)
    max_new_tokens: int = 4096      # longest answer (paper: 4096)
    temperature: float = 0.7        # 0 is greedy (paper: 0.7 for RL, 0 to evaluate)
    top_p: float = 1.0              # draw from the smallest set of tokens with this probability
    top_k: int = 0                  # draw from the k most probable tokens; 0: from all
    seed: int = 0                   # same seed, same machine: same samples
    chat: bool = False              # wrap --prompt in the chat template
    template: str = "chat"          # prompts of official files: chat, base or plain
    limit: int | None = None        # use only the first problems of --data
    slots: int | None = None        # sequences in the making at once; none: from free memory
    device: str = "auto"            # cpu, cuda; auto: cuda where there is one
    dtype: str = "auto"             # float32, bfloat16; auto: bfloat16 on cuda


@dataclass
class Sample:
    tokens: list[int]               # what was drawn, the stop token included
    logprobs: list[float]           # of each token, under the distribution it was drawn from
    finished: bool                  # ended by a stop token, not by the length limit


# ---- drawing a token -------------------------------------------------------------------------
def _signed(value: int) -> int:
    """A 64-bit pattern as the int64 that holds it."""
    value &= 2**64 - 1
    return value - 2**64 if value >= 2**63 else value


def _mix(z):
    """The splitmix64 finaliser on int64 (tensors, whose products wrap around)."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        z = (z ^ (z >> shift & (1 << 64 - shift) - 1)) * _signed(factor)
    return z ^ (z >> 31 & (1 << 33) - 1)


def noise_keys(seed: int, prompts: list[int], samples: list[int]) -> Tensor:
    """One int64 for each (seed, prompt index, sample index)."""
    key = torch.zeros(len(prompts), dtype=torch.int64)
    for part in (torch.full_like(key, _signed(seed)), torch.tensor(prompts), torch.tensor(samples)):
        key = _mix(key + part + _signed(0x9E3779B97F4A7C15))
    return key


def uniform(key: Tensor, position: Tensor) -> Tensor:
    """A number in [0, 1) that depends on nothing but key and position: float64, 53 random bits."""
    z = _mix(key + (position + 1) * _signed(0x9E3779B97F4A7C15))
    return (z >> 11 & (1 << 53) - 1).double() * 2.0**-53


def truncate(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """-inf for all but the top_k tokens, and then for all but the smallest set of mass top_p."""
    if 0 < top_k < logits.shape[-1]:
        kth = logits.topk(top_k).values[:, -1:]
        logits = logits.masked_fill(logits < kth, -math.inf)
    if top_p < 1:
        ranked, order = logits.sort(descending=True)
        p = ranked.softmax(-1)
        before = p.cumsum(-1) - p                           # mass of the better ones
        ranked[:, 1:].masked_fill_(before[:, 1:] >= top_p, -math.inf)
        logits = ranked.scatter(-1, order, ranked)
    return logits


def _first_above(cdf: Tensor, target: Tensor, p: Tensor) -> Tensor:
    """Per row, where the cumulative sum of p first exceeds target; never at an entry of no weight."""
    numbers = torch.arange(p.shape[-1], device=p.device)
    last = torch.where(p > 0, numbers, 0).amax(-1, keepdim=True)    # rounding may put target beyond
    return torch.searchsorted(cdf, target, right=True).minimum(last)


def draw(p: Tensor, u: Tensor) -> Tensor:
    """Index by inverse transform: p [B, V] (any positive scale), u [B] in [0, 1) -> [B].

    Two levels, first the block of 64 and then the token in it: p is read once.
    """
    if p.shape[-1] % 64:
        p = torch.nn.functional.pad(p, (0, -p.shape[-1] % 64))
    blocks = p.unflatten(-1, (-1, 64))
    mass = blocks.sum(-1).double()                                              # [B, V / 64]
    cdf = mass.cumsum(-1)
    target = u[:, None] * cdf[:, -1:]                                           # [B, 1]
    block = _first_above(cdf, target, mass)
    inside = blocks.gather(1, block[..., None].expand(-1, -1, 64)).squeeze(1)
    target, cdf = target - (cdf - mass).gather(-1, block), inside.double().cumsum(-1)
    target = target / mass.gather(-1, block) * cdf[:, -1:]      # the two sums differ by rounding
    return (block * 64 + _first_above(cdf, target, inside)).squeeze(-1)


# ---- the slots -------------------------------------------------------------------------------
PAGE = 64       # tokens of a sequence whose keys lie together


def _zeros(shape, dtype, device):
    """On a CPU, memory that is not touched before it is used: long answers are rare."""
    if device.type == "cpu":
        return torch.from_numpy(numpy.zeros((*shape, dtype.itemsize), numpy.uint8)) \
            .view(dtype).squeeze(-1)
    return torch.zeros(shape, dtype=dtype, device=device)


class _Slots:
    """The sequences in the making. Every tensor is allocated once and updated in place."""

    def __init__(self, model, slots: int, length: int, new: int, temperature: float, top_p: float,
                 top_k: int, stop: set[int]):
        self.temperature, self.top_p, self.top_k = temperature, top_p, top_k
        length = -(-length // PAGE) * PAGE
        self.master, self.slots, self.length, self.new = model, slots, length, new
        weight, c = model.head_weight, model.config
        self.dtype = model.compute_dtype or weight.dtype
        self.model = model
        if self.dtype != weight.dtype:          # fp32 weights under training: a copy to read from
            with torch.device("meta"):
                self.model = transformer.Transformer(c)
            self.model.allocate(weight.device, self.dtype)
            self.model.vocab = model.vocab
        self.decoder = kernel.Decoder(self.model, length) if weight.is_cuda and kernel else None
        # Keys and values, [layers, 2, P, S, KV, PAGE, D]: all slots' first page, then their second
        # ones. Slots that reach a page lie side by side in it, so reading them is one long run.
        self.cache = _zeros((c.num_hidden_layers, 2, length // PAGE, slots,
                             c.num_key_value_heads, PAGE, c.head_dim), self.dtype, weight.device)

        def per_slot(*shape, dtype=torch.int64, fill=0):
            return torch.full(shape, fill, dtype=dtype, device=weight.device)
        self.numbers = per_slot(4, slots)
        (self.token,                                        # drawn last, not yet in the cache
         self.position,                                     # where it belongs
         self.count,                                        # tokens drawn so far
         self.limit) = self.numbers                         # ... and at most
        self.flags = per_slot(2, slots, dtype=torch.bool, fill=True)
        self.done, self.finished = self.flags
        self.drawn = per_slot(slots, new + 1)
        self.logprob = per_slot(slots, new + 1, dtype=torch.float32)
        # For every position ahead: to work it out in `_step` would be twenty launches of a graph.
        self.noise = per_slot(slots, new + 1, dtype=torch.float64)
        self.state = (self.numbers, self.flags, self.drawn, self.logprob)
        self.stop = torch.tensor(sorted(stop), dtype=torch.int64, device=weight.device)
        self.graphs = {} if weight.is_cuda else None        # (live slots, pages) -> CUDA graph
        # All of them use the same memory: one runs at a time, and leaves what it made in `state`.
        self.pool = torch.cuda.graph_pool_handle() if weight.is_cuda else None

    def __deepcopy__(self, memo):
        return None                                         # a copied model makes its own

    def refresh(self):
        """Training has moved the weights: copy them again, in place, where the graphs look."""
        if self.model is not self.master:
            with torch.no_grad():
                torch._foreach_copy_(list(self.model.parameters()), list(self.master.parameters()))

    def logits(self, hidden: Tensor) -> Tensor:
        """[B, C] -> [B, V]; ids that the tokenizer does not have cannot be drawn."""
        vocab = self.model.vocab
        return head_logits(hidden, whole_rows(self.model.head_weight, vocab), vocab)

    def prefill(self, prompts: list[list[int]]) -> tuple[Tensor, Tensor]:
        """Keys and values of the prompts, [layers, 2, P, B, KV, PAGE, D]; next logits [B, V]."""
        c, device = self.model.config, self.cache.device
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        T = int(lengths.max())
        tokens = torch.tensor([prompt + [0] * (T - len(prompt)) for prompt in prompts])
        kept = self.cache.new_empty(c.num_hidden_layers, 2, -(-T // PAGE), len(prompts),
                                    c.num_key_value_heads, PAGE, c.head_dim)

        cos, sin = rotary(torch.arange(T, device=device), c)

        def attend(layer, q, k, v):                                             # k [B, KV, T, D]
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
            for i, x in enumerate((k, v)):
                x = torch.nn.functional.pad(x, (0, 0, 0, -T % PAGE))
                kept[layer, i] = x.unflatten(2, (-1, PAGE)).permute(2, 0, 1, 3, 4)
            return causal_attention(q, k, v, None)
        hidden = self.model.hidden(tokens.to(device), attend=attend)            # [B, T, C]
        last = hidden[torch.arange(len(prompts), device=device), (lengths - 1).to(device)]
        return kept, self.logits(last)

    def admit(self, first: int, kept: Tensor, logits: Tensor, which: list[int],
              lengths: list[int], limits: list[int], keys: Tensor):
        """Start a sequence from prompt which[i] of `prefill` in slot first + i, for every i."""
        device = self.cache.device
        rows = slice(first, first + len(which))
        which = torch.tensor(which, device=device)
        for layer, kv in enumerate(kept):                   # by layer: the copy stays small
            self.cache[layer, :, :kept.shape[2], rows] = kv[:, :, which]
        self.position[rows] = torch.tensor(lengths, device=device) - 1
        self.limit[rows] = torch.tensor(limits, device=device)
        if self.temperature > 0:
            self.noise[rows] = uniform(keys.to(device)[:, None],
                                       torch.arange(self.new + 1, device=device))
        for flag in (self.count, self.done, self.finished):
            flag[rows] = 0
        self._record(rows, logits[which])

    def _draw(self, logits: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """A token of each row of logits [b, V], by noise [b] in [0, 1), and its log-prob."""
        if self.decoder and self.temperature > 0 and self.top_k == 0 and self.top_p == 1:
            return kernel.draw(logits, self.temperature, noise)
        if self.temperature > 0:
            logits = truncate(logits.div_(self.temperature), self.top_k, self.top_p)
        p = logits.softmax(-1)
        token = draw(p, noise) if self.temperature > 0 else logits.argmax(-1)
        return token, p.gather(-1, token[:, None]).log().squeeze(-1).float()

    def _record(self, rows: slice, logits: Tensor):
        """Draw the next token of these slots, logits [b, V], and note it down."""
        column = self.count[rows, None]         # one too many for a slot that is done: never read
        token, logprob = self._draw(logits, self.noise[rows].gather(1, column).squeeze(1))
        running = ~self.done[rows]
        self.drawn[rows].scatter_(1, column, token[:, None])
        self.logprob[rows].scatter_(1, column, logprob[:, None])
        self.token[rows] = token
        self.position[rows] += running
        self.count[rows] += running
        stopped = (token[:, None] == self.stop).any(-1)
        self.finished[rows] |= stopped & running
        self.done[rows] |= stopped | (self.count[rows] >= self.limit[rows])

    def _step(self, live: int, reach: list[int] | None):
        """One token more for the first `live` slots; `_paged_attention` to `reach`, or kernel.py's."""
        token, position = self.token[:live], self.position[:live]               # [b]
        if reach:
            attend = self._paged_attention(position, reach)
            hidden = self.model.hidden(token[:, None], attend=attend)[:, 0]     # [b, C]
        else:
            hidden = self.decoder.hidden(token, position, self.done[:live], self.cache)
        self._record(slice(live), self.logits(hidden))

    def _paged_attention(self, position, reach: list[int]):
        """attend(layer, q, k, v) for a token each; only the first reach[p] slots have a page p."""
        c, live, length = self.model.config, reach[0], len(reach) * PAGE
        cos, sin = rotary(position[:, None], c)                                 # [b, 1, 1, D]
        row = torch.arange(live, device=position.device)
        heads = torch.arange(c.num_key_value_heads, device=position.device)
        cell = ((position // PAGE * self.slots + row)[:, None] * len(heads) + heads) * PAGE
        cell = (cell + position[:, None] % PAGE).flatten()      # [b * KV], of the cache's vectors
        bias = torch.zeros(live, 1, 1, length, device=position.device).masked_fill_(
            torch.arange(length, device=position.device) > position[:, None, None, None], -math.inf)

        def attend(layer, q, k, v):                                             # q [b, H, 1, D]
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
            keys, values = self.cache[layer]                                    # [P, S, KV, PAGE, D]
            keys.view(-1, c.head_dim).index_copy_(0, cell, k.reshape(-1, c.head_dim))
            values.view(-1, c.head_dim).index_copy_(0, cell, v.reshape(-1, c.head_dim))
            q = q.view(live, c.num_key_value_heads, -1, c.head_dim) * c.head_dim**-0.5
            scores = bias.expand(*q.shape[:3], -1).clone()                      # [b, KV, H/KV, L]
            for p, n in enumerate(reach):
                scores[:n, ..., p * PAGE:(p + 1) * PAGE] += q[:n] @ keys[p, :n].transpose(-1, -2)
            weights = scores.softmax(-1).to(q.dtype).split(PAGE, dim=-1)
            y = weights[0] @ values[0, :live]                                   # [b, KV, H/KV, D]
            for p, n in enumerate(reach[1:], 1):
                y[:n] += weights[p][:n] @ values[p, :n]
            return y.view(live, -1, 1, c.head_dim)
        return attend

    def step(self, lengths: list[int]):
        """A step for live slots of at most these lengths."""
        if self.graphs is None:
            reach = []
            for slot in reversed(range(len(lengths))):
                while len(reach) * PAGE < lengths[slot]:
                    reach.append(slot + 1)
            return self._step(len(lengths), reach)
        live, pages = len(lengths), 0
        if live > 1:                                        # 8, 16 ... 64, 80, 96, 112, 128, 160 ...
            live = min(_round_up(live, 3, least=8), self.slots)
        if self.decoder is None:                            # 1, 2, 3, 4, 6, 8, 12 ...
            pages = min(_round_up(-(-max(lengths) // PAGE), 2), self.cache.shape[2])
        if (live, pages) not in self.graphs:
            self.graphs[live, pages] = self._capture(live, [live] * pages or None)
        self.graphs[live, pages].replay()

    def _capture(self, live: int, reach: list[int] | None):
        before = [tensor.clone() for tensor in self.state]      # the warm-up really draws a token
        self._step(live, reach)
        for tensor, old in zip(self.state, before):
            tensor.copy_(old)                                   # what it put in the cache is right
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool):
            self._step(live, reach)
        return graph

    def move(self, to: list[int], source: list[int], length: int):
        """Put sequences of at most this length into other slots, all at once."""
        pages = -(-length // PAGE)
        to, source = torch.tensor([to, source], device=self.cache.device)
        self.numbers[:, to], self.flags[:, to] = self.numbers[:, source], self.flags[:, source]
        for tensor in (self.drawn, self.logprob, self.noise):
            tensor[to] = tensor[source]
        for layer in self.cache:                            # the copy in between stays small
            layer[:, :pages, to] = layer[:, :pages, source]

    def collect(self, slots: list[int]) -> list[Sample]:
        columns = (tensor[slots].tolist() for tensor in
                   (self.drawn, self.logprob, self.count, self.finished))
        return [Sample(tokens[:count], logprobs[:count], finished)
                for tokens, logprobs, count, finished in zip(*columns)]


def _round_up(value: int, bits: int, least: int = 1) -> int:
    """To a multiple of `least` with at most so many significant bits: few sizes, little wasted."""
    unit = max(least, 1 << max(0, value.bit_length() - bits))
    return -(-value // unit) * unit


# ---- generate --------------------------------------------------------------------------------
CPU_SLOTS = 1024            # more at once gains little
BLOCK = 256                 # slots kept together by length on a CPU, see _close_gaps
PREFILL_TOKENS = 8192       # prompt tokens, padding included, that are prefilled at once


def check(n, max_new_tokens, temperature, top_p, top_k, slots=None):
    """ValueError for settings that cannot be sampled with."""
    for name, value, fine in (
            ("n", n, n >= 1), ("max_new_tokens", max_new_tokens,
                               min([max_new_tokens] if isinstance(max_new_tokens, int)
                                   else max_new_tokens, default=1) >= 1),
            ("temperature", temperature, 0 <= temperature < math.inf),
            ("top_p", top_p, 0 < top_p <= 1), ("top_k", top_k, top_k >= 0),
            ("slots", slots, slots is None or slots >= 1)):
        if not fine:
            raise ValueError(f"{name} = {value} cannot be sampled with")


def slot_bytes(config, length: int, dtype) -> int:
    """Memory of one sequence of this length in the making."""
    per_token = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    return (per_token * dtype.itemsize * -(-length // PAGE) * PAGE      # keys and values
            + 24 * config.vocab_size)               # logits, probabilities; in and out of graphs


def _slots_that_fit(model, length: int, wanted: int) -> int:
    """How many sequences of this length the free memory holds, at most `wanted`."""
    c, weight = model.config, model.head_weight
    dtype = model.compute_dtype or weight.dtype
    per_slot = slot_bytes(c, length, dtype)
    if weight.is_cuda:
        torch.cuda.empty_cache()                            # what training has left is free too
        free = 0.9 * torch.cuda.mem_get_info(weight.device)[0]
        if dtype != weight.dtype:                           # the copy to read from
            free -= sum(p.numel() for p in model.parameters()) * dtype.itemsize
    else:
        free = 0.7 * os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        wanted = min(wanted, CPU_SLOTS)
    free -= slot_bytes(c, PREFILL_TOKENS, dtype)
    if free < per_slot:
        raise ValueError(f"the cache of one sequence of {length} tokens needs"
                         f" {per_slot / 2**30:.2f} GB; {max(0, free) / 2**30:.2f} GB are free")
    return min(wanted, int(free // per_slot))


def _slots_for(model, slots, wanted, length, new, *drawing) -> _Slots:
    """Those of the last call where they serve (their memory is warm, and on CUDA their graphs are
    worth seconds), or new ones. They are taken from the model: a call within a call makes its own.
    """
    kept, weight = model.__dict__.pop("slots", None), model.head_weight
    # A model moved or cast since has its weights elsewhere than the graphs would look.
    key = (drawing, slots, model.vocab, model.compute_dtype, weight.dtype, weight.data_ptr())
    if kept is not None and (key == kept.made_for and wanted <= kept.wanted
                             and length <= kept.length and new <= kept.new):
        kept.refresh()
        kept.done.fill_(True)
        return kept
    del kept                                                # its memory, before new is taken
    with torch.inference_mode(False):       # in it, nobody else could use what kernel.py has joined
        made = _Slots(model, min(wanted, slots or _slots_that_fit(model, length, wanted)), length,
                      new, *drawing)
    made.wanted, made.made_for = wanted, key
    made.refresh()
    return made


def release(model):
    """Give back the cache and the CUDA graphs that `generate` keeps for its next call."""
    if model.__dict__.pop("slots", None) is not None and model.head_weight.is_cuda:
        torch.cuda.empty_cache()


@dataclass
class _Running:
    prompt: int
    sample: int
    start: int          # start + step is its length, the token being drawn included


@torch.inference_mode()
def as_they_end(model, prompts: list[list[int]], *, n=1, max_new_tokens, temperature=1.0, top_p=1.0,
                top_k=0, stop: set[int], seed=0, slots=None, indices=None, watch=None):
    """Yield (prompt, sample, Sample) in the order in which the sequences end; see `generate`."""
    check(n, max_new_tokens, temperature, top_p, top_k, slots)
    context, indices = model.config.max_position_embeddings, indices or range(len(prompts))
    for i, prompt in zip(indices, prompts):
        if not prompt:
            raise ValueError(f"prompt {i} is empty")
        if len(prompt) >= context:
            raise ValueError(f"prompt {i} has {len(prompt)} tokens; the model's context is {context}")
        if min(prompt) < 0 or max(prompt) >= model.config.vocab_size:
            raise ValueError(f"prompt {i} has a token that the model does not have")
    if not prompts:
        return
    # Long prompts first: those prefilled together are of similar length, and memory peaks early.
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    waiting = [(i, j) for i in order for j in reversed(range(n))]               # the next one last
    wanted = max_new_tokens if isinstance(max_new_tokens, list) else [max_new_tokens] * len(prompts)
    limits = [min(new, context - len(prompt)) for new, prompt in zip(wanted, prompts, strict=True)]
    longest = max(len(prompt) + limit for prompt, limit in zip(prompts, limits))
    s = _slots_for(model, slots, len(waiting), longest, max(limits),
                   temperature, top_p, top_k, frozenset(stop))
    try:
        yield from _run(s, prompts, waiting, limits, seed, indices, watch)
    finally:
        model.slots = s                                     # for the next call


def _run(s, prompts, waiting, limits, seed, indices, watch):
    """Let in what waits, step, hand out what has ended, close the gaps; until nothing is left."""
    every = 1 if s.graphs is None else 16       # steps between two looks at what has ended
    running: list[_Running] = []                # by slot
    place, prefilled, step = {}, None, 0        # prompt -> its row in what was prefilled last

    while waiting or running:
        free = s.slots - len(running)
        while waiting and free and (8 * free >= s.slots or not running):
            if waiting[-1][0] not in place:
                ahead = list(dict.fromkeys(i for i, _ in reversed(waiting)))
                fit = max(1, PREFILL_TOKENS // len(prompts[ahead[0]]))
                place, prefilled = {i: row for row, i in enumerate(ahead[:fit])}, None
                prefilled = s.prefill([prompts[i] for i in place])
            first, group = len(running), []
            while waiting and len(group) < free and waiting[-1][0] in place:
                group.append(waiting.pop())
            free -= len(group)
            which = [i for i, _ in group]
            s.admit(first, *prefilled, [place[i] for i in which], [len(prompts[i]) for i in which],
                    [limits[i] for i in which],
                    noise_keys(seed, [indices[i] for i in which], [j for _, j in group]))
            running += [_Running(i, j, len(prompts[i]) + 1 - step) for i, j in group]

        for _ in range(every):
            s.step([min(at.start + step, s.length) for at in running])
            step += 1
        if watch:
            for slot, at in enumerate(running):
                watch(at.prompt, at.sample, s.drawn[slot, :s.count[slot]].tolist())
        ended = [slot for slot, done in enumerate(s.done[:len(running)].tolist()) if done]
        for slot, sample in zip(ended, s.collect(ended) if ended else ()):
            yield running[slot].prompt, running[slot].sample, sample
        if moves := _close_gaps(running, ended, BLOCK if s.graphs is None else s.slots):
            longest = max(running[to].start for to in moves) + step
            s.move(list(moves), list(moves.values()), min(longest, s.length))
            s.done[len(running):] = True                    # a graph may have rows for them, too


def _close_gaps(running: list[_Running], ended: list[int], block: int) -> dict[int, int]:
    """Take out the ended, and keep the longer sequences first while moving few. The slots that hold
    another sequence now -> those where it was.

    New ones come last. A gap is filled with the longest of the next block, whose gap is filled
    likewise, and the last gap with the last sequence.
    """
    moves = {}
    for gap in reversed(ended):
        while gap < len(running) - 1:
            first = min((gap // block + 1) * block, len(running) - 1)
            source = max(range(first, min(first + block, len(running))),
                         key=lambda slot: (running[slot].start, slot))
            running[gap], moves[gap] = running[source], moves.pop(source, source)
            gap = source
        running.pop()
    return moves


def generate(model, prompts: list[list[int]], *, n=1, max_new_tokens, temperature=1.0, top_p=1.0,
             top_k=0, stop: set[int], seed=0, slots=None, indices=None,
             progress=False) -> list[list[Sample]]:
    """n samples of every prompt, as [prompt][sample].

    max_new_tokens: one number, or a list with one for each prompt.
    temperature: 0 is greedy; log-probs are then those of temperature 1.
    top_k, top_p: applied in this order; log-probs are those of what remains.
    seed: the noise of a token depends on (seed, prompt index, sample index, position) alone, so a
        sample does not depend on what else is sampled beside it (up to rounding in the matrix
        products, which may differ with the batch). `indices` replace the prompts' 0, 1, 2 ...
    slots: sequences in the making at once; None: as many as free memory holds.
    """
    samples = [[None] * n for _ in prompts]
    ends = as_they_end(model, prompts, n=n, max_new_tokens=max_new_tokens, temperature=temperature,
                       top_p=top_p, top_k=top_k, stop=stop, seed=seed, slots=slots, indices=indices)
    for i, j, sample in _with_bar(ends, len(prompts) * n, progress):
        samples[i][j] = sample
    return samples


def _with_bar(ends, total, shown):
    tokens, start = 0, time.perf_counter()
    with tqdm(total=total, disable=not shown, unit="seq", desc="sample") as bar:
        for i, j, sample in ends:
            tokens += len(sample.tokens)
            rate = tokens / (time.perf_counter() - start)
            bar.set_postfix_str(f"{rate:,.0f} tokens/s", refresh=False)
            bar.update()
            yield i, j, sample


# ---- the command -----------------------------------------------------------------------------
def load_tokenizer(path: str):
    """The tokenizer of a model directory (ValueError where there is none)."""
    from tokenizers import Tokenizer
    file = os.path.join(path, "tokenizer.json")
    if not os.path.exists(file):
        raise ValueError(f"{path}: no " + ("tokenizer.json" if os.path.isdir(path)
                                           else "such directory"))
    try:
        return Tokenizer.from_file(file)
    except Exception as error:                              # what tokenizers raises is no subclass
        raise ValueError(f"{file}: {error}") from None


def stop_ids(model, tokenizer) -> set[int]:
    """The model's own end tokens, and Qwen's two: a base model names only one of them."""
    named = (tokenizer.token_to_id(text) for text in ("<|endoftext|>", "<|im_end|>"))
    return {*model.eos_ids, *(token for token in named if token is not None)}


def response_text(tokenizer, sample: Sample) -> str:
    """What was answered, without the end token."""
    tokens = sample.tokens[:-1] if sample.finished else sample.tokens
    return tokenizer.decode(tokens, skip_special_tokens=False)


def _print_as_drawn(model, tokenizer, settings, sampling):
    from cli import prompt_text
    text = prompt_text(settings.prompt, "chat") if settings.chat else settings.prompt
    prompt, shown = tokenizer.encode(text, add_special_tokens=False).ids, ""

    def show(text):
        nonlocal shown
        print(text[len(shown):], end="", flush=True)
        shown = text

    def watch(i, j, tokens):
        text = response_text(tokenizer, Sample(tokens, [], tokens[-1] in sampling["stop"]))
        if not text.endswith("\ufffd"):                     # half a character: wait for the rest
            show(text)
    for j in range(settings.n):                             # one after the other: they are read
        shown, start = "", time.perf_counter()
        [(_, _, sample)] = as_they_end(model, [prompt], watch=watch,
                                       **{**sampling, "n": 1, "seed": settings.seed + j})
        seconds = time.perf_counter() - start
        show(response_text(tokenizer, sample))
        print(f"\n[{len(sample.tokens)} tokens, {'ended' if sample.finished else 'cut off'},"
              f" {len(sample.tokens) / seconds:.1f} tokens/s]", file=sys.stderr)


def _rollouts(model, tokenizer, settings, sampling, problems):
    """Sample every problem that --out does not hold yet; each line is written as it ends."""
    import cli
    from verify import reward
    made, partial = {}, settings.out + ".partial"
    config = {key: value for key, value in asdict(settings).items() if key not in ("out", "slots")}
    config_file = settings.out + ".config.json"
    if os.path.exists(settings.out) or os.path.exists(partial):
        try:
            with open(config_file) as file:
                before = json.load(file)["settings"]
        except (OSError, ValueError, KeyError):
            cli.stop(f"{settings.out} exists, but {config_file} does not say what made it")
        if other := [f"{key} was {before.get(key)!r}" for key in config
                     if config[key] != before.get(key)]:
            cli.stop(f"{settings.out} was made with other settings ({', '.join(other)})")
    else:
        cli.check_output(settings.out)
        with open(config_file, "w") as file:
            json.dump({"command": sys.argv, "settings": config}, file, indent=2)
    if os.path.exists(settings.out):
        print(f"{settings.out} is complete: nothing to do")
        return
    order = {problem["id"]: i for i, problem in enumerate(problems)}
    if len(order) < len(problems):
        cli.stop(f"{settings.data}: problem ids are not unique")
    if os.path.exists(partial):
        with open(partial, "rb+") as file:                  # a kill may have cut the last line
            file.truncate(file.read().rfind(b"\n") + 1)
        made = {(row["id"], row["sample"]): row for row in cli.read_jsonl(partial, "id", "sample")}
        if any(key not in order for key, _ in made):
            cli.stop(f"{settings.data} has changed since {partial} was begun")
    todo = [problem for problem in problems
            if any((problem["id"], j) not in made for j in range(settings.n))]
    if made:
        print(f"{partial}: {len(made)} rollouts are there, {len(todo)} problems remain")

    prompts = [tokenizer.encode(problem["prompt"], add_special_tokens=False).ids
               for problem in todo]
    ends = as_they_end(model, prompts, indices=[order[problem["id"]] for problem in todo],
                       **sampling)
    start, tokens = time.perf_counter(), 0
    with open(partial, "a", encoding="utf-8") as file:
        for i, j, sample in _with_bar(ends, len(todo) * settings.n, True):
            tokens += len(sample.tokens)
            text = response_text(tokenizer, sample)
            row = {**todo[i], "sample": j, "response": text, "tokens": sample.tokens,
                   "logprobs": [round(x, 5) for x in sample.logprobs], "finished": sample.finished,
                   "reward": reward(todo[i], text, sample.finished), "step": 0}
            if (row["id"], j) not in made:
                made[row["id"], j] = row
                file.write(cli.as_line(row))
                file.flush()
    seconds = time.perf_counter() - start
    rows = sorted(made.values(), key=lambda row: (order[row["id"]], row["sample"]))
    cli.write_jsonl(settings.out, rows)
    os.remove(partial)
    print(f"{settings.out}: {len(rows)} rollouts of {len(problems)} problems,"
          f" reward {sum(row['reward'] for row in rows) / len(rows):.3f},"
          f" cut off {sum(not row['finished'] for row in rows) / len(rows):.1%},"
          f" mean length {sum(len(row['tokens']) for row in rows) / len(rows):.1f} tokens,"
          f" {tokens / seconds:,.0f} tokens/s")


def main():
    import cli
    settings = cli.parse(Settings, __doc__)
    if (settings.prompt is None) == (settings.data is None):
        cli.stop("give either --prompt or --data")
    if settings.data and not settings.out:
        cli.stop("--data needs --out")
    if settings.limit is not None and settings.limit < 1:
        cli.stop(f"limit = {settings.limit} leaves no problems")
    if settings.template not in ("chat", "base", "plain"):
        cli.stop(f"template = {settings.template}: chat, base or plain")
    sampling = {key: getattr(settings, key) for key in
                ("n", "max_new_tokens", "temperature", "top_p", "top_k", "slots")}
    problems = []
    try:
        device, dtype = cli.device_and_dtype(settings.device, settings.dtype)
        check(**sampling)
        if settings.prompt == "":
            raise ValueError("the prompt is empty")
        if settings.data:
            problems = cli.read_problems(settings.data, settings.template)[:settings.limit]
            if not problems:
                raise ValueError(f"{settings.data}: no problems")
        tokenizer = load_tokenizer(settings.model)
        model = transformer.load(settings.model, device, dtype).eval()
        sampling |= {"seed": settings.seed, "stop": stop_ids(model, tokenizer)}
        if settings.data:
            _rollouts(model, tokenizer, settings, sampling, problems)
        else:
            _print_as_drawn(model, tokenizer, settings, sampling)
    except (ValueError, OSError) as error:
        cli.stop(error)
    except KeyboardInterrupt:
        print("\nstopped" + ("; the same command goes on from here" if settings.data else ""),
              file=sys.stderr)
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
