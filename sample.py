"""Sample from a Qwen2.5 model with a key/value cache: `generate`, and a command around it.

    python sample.py --model Qwen2.5-1.5B --prompt "Why is the sky blue?" --chat
    python sample.py --model Qwen2.5-1.5B --data data/kk_test.jsonl --out rollouts.jsonl --n 8

A new token attends to all tokens before it, and their keys and values never change. So these are
computed once and kept: that is the key/value cache, the class `Cache` below. A step then runs the
layers for one token of each sequence only: `Slots.decode`.

A fixed number of slots hold the sequences in the making. A prompt is computed once, however many
samples are wanted of it (`prefill`), and its keys and values are copied to the slots of its samples
(`admit`). Then every `step` adds a token to every sequence. When a sequence ends, another one moves
into its slot, and prompts that wait are let in (`Schedule`):

    while sequences wait or run:    let_in (prefill, admit)  ->  step  ->  take_out (yield, move)

On CUDA a step is recorded once and replayed (engine/graphs.py), in kernels of engine/kernels.py.
"""
import math
from dataclasses import dataclass

from engine.flags import Stopped, check, command, limits, parse
from engine.prompts import TEMPLATES, prompt_text


@dataclass(kw_only=True)
class Settings:
    model: str                      # directory of a Hugging Face model
    prompt: str | None = None       # text to continue, printed as it is drawn
    data: str | None = None         # problems (JSONL; ours, or official K&K, MATH or GSM8K files)
    out: str | None = None          # rollouts (JSONL); an unfinished file is continued
    n: int = limits(1, at_least=1)  # samples per prompt (paper: 8 for RL, 1 greedy to evaluate)
    max_new_tokens: int = limits(4096, at_least=1)  # longest answer (paper: 4096)
    temperature: float = limits(0.7, at_least=0)    # 0 is greedy (paper: 0.7 for RL, 0 to evaluate)
    top_p: float = limits(1.0, above=0, at_most=1)  # draw from the smallest set with this mass
    top_k: int = limits(0, at_least=0)              # draw from the k most probable; 0: from all
    seed: int = limits(0, at_least=0)  # same seed, same machine: same samples
    chat: bool = False              # wrap --prompt in the chat template
    template: str = limits("chat", one_of=TEMPLATES)    # prompts of official files
    limit: int | None = limits(None, at_least=1)    # use only the first problems of --data
    # ---- the machine
    slots: int | None = limits(None, at_least=1)    # sequences sampled together; none: all that fit
    device: str = "auto"            # cpu, cuda; auto: cuda where there is one
    dtype: str = limits("auto", one_of=("auto", "float32", "bfloat16"))  # auto: the faster one


if __name__ == "__main__":          # before torch is imported, so that --help answers at once
    settings = parse(Settings, __doc__)

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.cache import (BLOCK, PAGE, PREFILL_LOGITS, PREFILL_TOKENS, Running, close_gaps, halve,
                          model_to_read, new_tokens, pages_in_use, release, slots_for, zeros)
from engine.graphs import Graphs, fast_decoder
from engine.logits import head_logits, used_rows
from engine.noise import draw, noise_keys, truncate, uniform
from engine.problems import read_problems
from engine.processes import fit_machine
from engine.rollouts import RolloutFile, with_bar
from engine.tokenizer import Printer, encode_prompts, load_tokenizer, response_text, stop_ids
from model import Config, causal_attention, load, rotary, rotate
from verify import reward


@dataclass
class Sample:
    tokens: list[int]               # what was drawn, the stop token included
    logprobs: list[float]           # of each token, under the distribution it was drawn from
    finished: bool                  # ended by a stop token, not by the length limit


# ---- the key/value cache ---------------------------------------------------------------------
class Cache:
    """Keys and values of all slots, in pages of PAGE = 64 tokens: the tensor

        pages [layer, keys or values, P, slot, KV, PAGE, D]

    All of its memory is taken at the start. The key of token t of the sequence in slot s is
    pages[layer, 0, t // PAGE, s, :, t % PAGE]. Thanks to pages attention reads only what is filled:

                 slot 0   slot 1   slot 2   slot 3               slot 0   slot 1   slot 2
        page 0   [####]   [####]   [####]   [##  ]    slot 1     [####]   [##  ]   [####]
        page 1   [####]   [####]   [#   ]             ends       [####]            [#   ]
        page 2   [##  ]                               ----->     [##  ]

        reach = [4, 3, 1]                                        reach = [3, 3, 1]

    Longer sequences are in front, as far as possible. reach[p] says how many slots, from slot 0 on,
    may have something in page p; attention reads the block keys[p, :reach[p]]. When a sequence
    ends, another one moves into its slot, with its pages.
    """

    def __init__(self, config, slots: int, length: int, dtype, device):
        self.config = config
        self.pages = zeros((config.num_hidden_layers, 2, -(-length // PAGE), slots,
                            config.num_key_value_heads, PAGE, config.head_dim), dtype, device)

    def attend_prompts(self, T: int):
        """attend(layer, q, k, v) for a whole prompt in each slot, T tokens with padding."""
        cos, sin = rotary(torch.arange(T, device=self.pages.device), self.config)

        def attend(layer, q, k, v):                                             # k, v [B, KV, T, D]
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
            for kept, x in zip(self.pages[layer], (k, v)):              # kept [P, B, KV, PAGE, D]
                x = F.pad(x, (0, 0, 0, -T % PAGE)).unflatten(2, (-1, PAGE))
                kept.copy_(x.permute(2, 0, 1, 3, 4))
            return causal_attention(q, k, v, None)
        return attend

    def attend_tokens(self, position: Tensor, reach: list[int]):
        """attend(layer, q, k, v) for one new token in each of the first slots, at position [B].

        For one sequence, one head and no pages it would be:
            keys[position], values[position] = k, v
            y = softmax(q @ keys[:position + 1].T / sqrt(D)) @ values[:position + 1]
        """
        B, KV, D = len(position), self.config.num_key_value_heads, self.config.head_dim
        cos, sin = rotary(position[:, None], self.config)                       # [B, 1, 1, D]
        slot, head, key_positions = (torch.arange(n, device=position.device)
                                     for n in (B, KV, len(reach) * PAGE))
        # As a matrix [P * slots * KV * PAGE, D], a layer's pages of keys hold the new key in row
        # ((page * slots + slot) * KV + head) * PAGE + place.
        page, place, slots = position // PAGE, position % PAGE, self.pages.shape[3]
        row = (page * slots + slot)[:, None] * KV + head                        # [B, KV]
        row = (row * PAGE + place[:, None]).flatten()                           # [B * KV]
        # Places after this token are empty or hold an earlier sequence's keys. Mask them.
        later = key_positions > position[:, None, None, None]                   # [B, 1, 1, T]
        mask = torch.zeros(later.shape, device=later.device).masked_fill_(later, -math.inf)

        def attend(layer, q, k, v):                             # q [B, H, 1, D], k, v [B, KV, 1, D]
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
            keys, values = self.pages[layer]                            # [P, slots, KV, PAGE, D]
            keys.view(-1, D).index_copy_(0, row, k.reshape(-1, D))
            values.view(-1, D).index_copy_(0, row, v.reshape(-1, D))
            q = q.view(B, KV, -1, D) * D**-0.5              # H / KV query heads share a key head
            # The scores start from the mask, 0 or -inf. To these q k is added, page by page.
            scores = mask.expand(*q.shape[:3], -1).clone()                      # [B, KV, H/KV, T]
            for p, n in enumerate(reach):
                scores[:n, ..., p * PAGE:(p + 1) * PAGE] += q[:n] @ keys[p, :n].transpose(-1, -2)
            weights = scores.softmax(-1).to(q.dtype).split(PAGE, dim=-1)
            y = weights[0] @ values[0, :B]      # [B, KV, H/KV, D]; every slot has page 0
            for p, n in enumerate(reach[1:], 1):
                y[:n] += weights[p][:n] @ values[p, :n]
            return y.view(B, -1, 1, D)
        return attend

    def copy(self, other: "Cache", source: Tensor, to: slice | Tensor, count: int):
        """Copy `count` pages of some slots of another cache (or this one) to slots of ours."""
        for mine, theirs in zip(self.pages, other.pages):       # by layer, to need little memory
            mine[:, :count, to] = theirs[:, :count, source]


# ---- the slots -------------------------------------------------------------------------------
class Slots:
    """The sequences in the making. Every tensor is allocated once and changed in place."""

    def __init__(self, model, size: int, length: int, max_new: int, temperature: float,
                 top_p: float, top_k: int, stop: frozenset[int]):
        self.temperature, self.top_p, self.top_k = temperature, top_p, top_k
        self.size, self.length, self.max_new = size, -(-length // PAGE) * PAGE, max_new
        self.model, self.vocab = model_to_read(model), model.vocab
        weight = self.model.head_weight
        self.device = weight.device
        self.cache = Cache(model.config, size, self.length, weight.dtype, self.device)

        def per_slot(*shape, dtype=torch.int64, fill=0):
            return torch.full((size, *shape), fill, dtype=dtype, device=self.device)
        self.token, self.position = per_slot(), per_slot()  # drawn last; its key is not kept yet
        self.count, self.limit = per_slot(), per_slot()         # tokens drawn so far, and at most
        self.done = per_slot(dtype=torch.bool, fill=True)       # ended, in either way
        self.finished = per_slot(dtype=torch.bool)              # ended by a stop token
        self.drawn = per_slot(max_new + 1)          # one place more than needed: see add_tokens
        self.logprob = per_slot(max_new + 1, dtype=torch.float32)
        self.noise = per_slot(max_new + 1, dtype=torch.float64)     # for all tokens to come
        self.state = (self.token, self.position, self.count, self.limit, self.done, self.finished,
                      self.drawn, self.logprob, self.noise)
        self.stop = torch.tensor(sorted(stop), dtype=torch.int64, device=self.device)
        self.decoder = self.graphs = None
        if weight.is_cuda:
            tables = rotary(torch.arange(self.length, device=self.device), model.config)
            self.decoder, self.graphs = fast_decoder(self.model, *tables), Graphs()

    def __deepcopy__(self, memo):
        return None     # They hang on the model. A copy of it (ppo.py's critic) makes its own.

    def logits(self, hidden: Tensor) -> Tensor:
        """[B, C] -> [B, V]. Ids that the tokenizer does not have cannot be drawn."""
        return head_logits(hidden, used_rows(self.model.head_weight, self.vocab), self.vocab)

    def prefill(self, prompts: list[list[int]]) -> tuple[Cache, Tensor]:
        """The keys and values of whole prompts, a slot each, and the logits that follow, [B, V]."""
        last = torch.tensor([len(prompt) - 1 for prompt in prompts], device=self.device)
        T = max(map(len, prompts))
        tokens = torch.tensor([prompt + [0] * (T - len(prompt)) for prompt in prompts])
        cache = Cache(self.model.config, len(prompts), T, self.cache.pages.dtype, self.device)
        hidden = self.model.hidden(tokens.to(self.device), attend=cache.attend_prompts(T))
        return cache, self.logits(hidden[torch.arange(len(prompts), device=self.device), last])

    def admit(self, first: int, prefilled: tuple[Cache, Tensor], rows: list[int],
              lengths: list[int], max_new: list[int], seeds: Tensor):
        """Start a sequence in each slot from `first` on. For each one: its row in what was
        prefilled, the length of its prompt, how many tokens it may draw, the seed of its noise."""
        cache, logits = prefilled
        which, rows = slice(first, first + len(rows)), torch.tensor(rows, device=self.device)
        self.cache.copy(cache, rows, which, cache.pages.shape[2])
        self.position[which] = torch.tensor(lengths, device=self.device) - 1    # add_tokens adds 1
        self.limit[which] = torch.tensor(max_new, device=self.device)
        if self.temperature > 0:
            self.noise[which] = uniform(seeds.to(self.device)[:, None],
                                        torch.arange(self.max_new + 1, device=self.device))
        for tensor in (self.count, self.done, self.finished):
            tensor[which] = 0
        self.add_tokens(which, logits[rows])

    def choose(self, logits: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """A token for each row of logits [B, V], with noise [B] in [0, 1), and its log-prob."""
        if self.decoder and self.temperature > 0 and self.top_k == 0 and self.top_p == 1:
            return self.decoder.draw(logits, self.temperature, noise)   # all in two kernels
        if self.temperature > 0:
            logits = truncate(logits.div_(self.temperature), self.top_k, self.top_p)
        p = logits.softmax(-1)
        token = draw(p, noise) if self.temperature > 0 else logits.argmax(-1)
        return token, p.gather(-1, token[:, None]).log().squeeze(-1).float()

    def add_tokens(self, which: slice, logits: Tensor):
        """Draw the next token of these slots from logits [B, V], and note it down.
        Finished slots write one place past their end. Nobody reads it."""
        column, running = self.count[which, None], ~self.done[which]
        token, logprob = self.choose(logits, self.noise[which].gather(1, column).squeeze(1))
        self.drawn[which].scatter_(1, column, token[:, None])
        self.logprob[which].scatter_(1, column, logprob[:, None])
        self.token[which] = token
        self.position[which] += running
        self.count[which] += running
        stopped = (token[:, None] == self.stop).any(-1)
        self.finished[which] |= stopped & running
        self.done[which] |= stopped | (self.count[which] >= self.limit[which])

    def decode(self, live: int, reach: list[int]):
        """The decode step: one token more in each of the first `live` slots."""
        token, position = self.token[:live], self.position[:live]               # [B]
        if self.decoder:
            hidden = self.decoder.hidden(token, position, self.done[:live], self.cache.pages)
        else:
            attend = self.cache.attend_tokens(position, reach)
            hidden = self.model.hidden(token[:, None], attend=attend)[:, 0]     # [B, C]
        self.add_tokens(slice(live), self.logits(hidden))

    def step(self, lengths: list[int]):
        """A decode step for the first slots, of at most these lengths (on CUDA by a graph)."""
        if self.graphs:
            self.graphs.step(self, lengths)
        else:
            self.decode(len(lengths), pages_in_use(lengths))

    def move(self, moves: dict[int, int], length: int):
        """Put sequences of at most this length into other slots, all at once: moves[to] = from."""
        to, source = torch.tensor([[*moves], [*moves.values()]], device=self.device)
        for tensor in self.state:
            tensor[to] = tensor[source]
        self.cache.copy(self.cache, source, to, -(-length // PAGE))

    def collect(self, which: list[int]) -> list[Sample]:
        columns = (tensor[which].tolist() for tensor in
                   (self.drawn, self.logprob, self.count, self.finished))
        return [Sample(tokens[:count], logprobs[:count], finished)
                for tokens, logprobs, count, finished in zip(*columns)]


# ---- who is in which slot --------------------------------------------------------------------
class Schedule:
    """Lets in what waits, and hands out what has ended."""

    def __init__(self, slots: Slots, prompts, max_new: list[int], n: int, seed: int, indices):
        self.slots, self.prompts, self.max_new = slots, prompts, max_new
        self.seed, self.indices, self.steps = seed, indices, 0
        # Long prompts first: those prefilled together have similar lengths, and memory is highest
        # at the beginning. The list is taken from its end.
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        self.waiting = [(i, j) for i in order for j in reversed(range(n))]
        self.running: list[Running] = []        # by slot
        self.rows, self.prefilled = {}, None    # prompt -> its row in what was prefilled last

    def advance(self) -> str:
        """Let in, and step. Returns what CUDA says where its memory is too small: all that ran then
        wait again. Their noise is the same whenever they start, and so are their tokens."""
        try:
            self.let_in()
            self.step()
            return ""
        except torch.OutOfMemoryError as error:
            reason = str(error)                     # The error itself would hold memory.
        self.waiting += [(one.prompt, one.sample) for one in reversed(self.running)]
        self.running, self.rows, self.prefilled = [], {}, None
        return reason

    def let_in(self):
        """Start waiting sequences once an eighth of the slots is free: many together cost less."""
        while self.waiting and (free := self.slots.size - len(self.running)) and (
                8 * free >= self.slots.size or not self.running):
            if self.waiting[-1][0] not in self.rows:
                self.prefill()
            group = []
            while self.waiting and len(group) < free and self.waiting[-1][0] in self.rows:
                group.append(self.waiting.pop())
            lengths = [len(self.prompts[i]) for i, _ in group]
            seeds = noise_keys(self.seed, [self.indices[i] for i, _ in group],
                               [j for _, j in group])
            self.running += [Running(i, j, length + 1 - self.steps)
                             for (i, j), length in zip(group, lengths)]
            self.slots.admit(len(self.running) - len(group), self.prefilled,
                             [self.rows[i] for i, _ in group], lengths,
                             [self.max_new[i] for i, _ in group], seeds)

    def prefill(self):
        """Compute the next prompts together, as many as PREFILL_TOKENS and _LOGITS allow."""
        ahead = list(dict.fromkeys(i for i, _ in reversed(self.waiting)))
        fit = max(1, min(PREFILL_TOKENS // len(self.prompts[ahead[0]]),
                         PREFILL_LOGITS // self.slots.vocab))
        self.rows = {i: row for row, i in enumerate(ahead[:fit])}
        self.prefilled = None                   # Give back its memory before new is taken.
        self.prefilled = self.slots.prefill([self.prompts[i] for i in self.rows])

    def step(self):
        """A step for all that run. With graphs 16: to look at what has ended makes a GPU wait."""
        for _ in range(self.slots.graphs.look_every if self.slots.graphs else 1):
            self.slots.step([min(one.offset + self.steps, self.slots.length)
                             for one in self.running])
            self.steps += 1

    def take_out(self):
        """Yield (index of prompt, number of sample, Sample) of all that ended; close the gaps."""
        slots, running = self.slots, self.running
        ended = [slot for slot, done in enumerate(slots.done[:len(running)].tolist()) if done]
        for slot, sample in zip(ended, slots.collect(ended) if ended else ()):
            if not math.isfinite(sum(sample.logprobs)):
                raise FloatingPointError("the model's log-probs are not finite: it is broken")
            yield running[slot].prompt, running[slot].sample, sample
        # close_gaps also takes what has ended out of `running`.
        if moves := close_gaps(running, ended, slots.size if slots.graphs else BLOCK):
            longest = max(running[to].offset for to in moves) + self.steps
            slots.move(moves, min(longest, slots.length))
            # A graph rounds its number of slots up, so it may run these: they must be done.
            slots.done[len(running):] = True


# ---- generate --------------------------------------------------------------------------------
@torch.inference_mode()
def as_they_end(model, prompts: list[list[int]], *, n=1, max_new_tokens, temperature=1.0, top_p=1.0,
                top_k=0, stop: set[int], seed=0, slots=None, indices=None, watch=None):
    """Yield (index of the prompt, number of the sample, Sample) as sequences end; see `generate`.
    watch(Sample) is called after each step for each sequence, with what is drawn so far."""
    wanted = max_new_tokens if isinstance(max_new_tokens, list) else [max_new_tokens] * len(prompts)
    check(Settings(model="", n=n, max_new_tokens=min(wanted, default=1), temperature=temperature,
                   top_p=top_p, top_k=top_k, slots=slots))  # The limits stand beside its fields.
    indices = indices or range(len(prompts))
    max_new = new_tokens(prompts, wanted, indices, model.config)
    if not prompts:
        return
    longest = max(len(prompt) + new for prompt, new in zip(prompts, max_new))
    taken = slots_for(model, Slots, slots, n * len(prompts), longest, max(max_new),
                      temperature, top_p, top_k, frozenset(stop))
    schedule = Schedule(taken, prompts, max_new, n, seed, indices)
    try:
        while schedule.waiting or schedule.running:
            if reason := schedule.advance():
                halve(taken, model, reason)
                continue
            if watch:
                for sample in taken.collect(list(range(len(schedule.running)))):
                    watch(sample)
            yield from schedule.take_out()
    finally:
        model.slots = taken                     # for the next call


def generate(model, prompts: list[list[int]], *, n=1, max_new_tokens, temperature=1.0, top_p=1.0,
             top_k=0, stop: set[int], seed=0, slots=None, indices=None,
             progress=False) -> list[list[Sample]]:
    """n samples of every prompt, as [prompt][sample].

    max_new_tokens: one number, or a list with one for each prompt.
    temperature: 0 is greedy; log-probs are then those of temperature 1.
    top_k, top_p: applied in this order; log-probs are those of what remains.
    seed: the noise of a token depends on (seed, prompt index, sample index, position) alone, so a
        sample does not depend on what else is sampled beside it. (Matrix products may round
        differently in another batch.) `indices` replace the prompts' 0, 1, 2 ...
    slots: sequences sampled at the same time; None: as many as free memory holds.
    """
    samples = [[None] * n for _ in prompts]
    ends = as_they_end(model, prompts, n=n, max_new_tokens=max_new_tokens, temperature=temperature,
                       top_p=top_p, top_k=top_k, stop=stop, seed=seed, slots=slots, indices=indices)
    for i, j, sample in with_bar(ends, len(prompts) * n, progress):
        samples[i][j] = sample
    return samples


# ---- the command -----------------------------------------------------------------------------
def print_as_drawn(model, tokenizer, settings, sampling: dict):
    text = prompt_text(settings.prompt, "chat") if settings.chat else settings.prompt
    [prompt] = encode_prompts(tokenizer, [text])
    for j in range(settings.n):                 # one after the other, so that one can read them
        printer = Printer(tokenizer)
        [(_, _, sample)] = as_they_end(model, [prompt], watch=printer.show,
                                       **{**sampling, "n": 1, "seed": settings.seed + j})
        printer.end(sample)


def write_rollouts(model, tokenizer, sampling: dict, rollouts: RolloutFile):
    """Sample what the file lacks. Each answer is judged and written as soon as it ends."""
    indices, problems = rollouts.missing()
    prompts = encode_prompts(tokenizer, [one["prompt"] for one in problems])
    ends = as_they_end(model, prompts, indices=indices, **sampling)
    with rollouts:
        for i, j, sample in with_bar(ends, len(prompts) * sampling["n"], True):
            text = response_text(tokenizer, sample)
            rollouts.add(problems[i], j, sample, text, reward(problems[i], text, sample.finished))
    rollouts.finish()


def main(settings):
    if (settings.prompt is None) == (settings.data is None):
        raise ValueError("give either --prompt or --data")
    if bool(settings.data) != bool(settings.out):
        raise ValueError("--data and --out go together")
    if settings.data and settings.chat:
        raise ValueError("--chat is for --prompt; the problems of --data have --template")
    tokenizer = load_tokenizer(settings.model)
    device, dtype = fit_machine(settings, Config.load(settings.model))
    if settings.data:
        problems = read_problems(settings.data, settings.template)[:settings.limit]
        rollouts = RolloutFile(settings, problems)
        if rollouts.complete:
            return
    model = load(settings.model, device, dtype).eval()
    sampling = {name: getattr(settings, name) for name in (
        "n", "max_new_tokens", "temperature", "top_p", "top_k", "slots", "seed")}
    sampling["stop"] = stop_ids(model, tokenizer)
    if settings.prompt:
        return print_as_drawn(model, tokenizer, settings, sampling)
    try:
        write_rollouts(model, tokenizer, sampling, rollouts)
    except KeyboardInterrupt:
        raise Stopped("stopped; the same command goes on from here") from None


if __name__ == "__main__":
    command(main, settings)
