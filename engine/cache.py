"""Memory for sampling: how many sequences fit, and what a call of `generate` keeps for the next."""
import math
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy
import torch

PAGE = 64                   # tokens of a sequence whose keys and values lie together
CPU_SLOTS = 1024            # sequences at once on a CPU; more of them gain little
PREFILL_TOKENS = 8192       # prompt tokens, padding included, that are computed at once
PREFILL_LOGITS = 2**26      # ... and elements of the logits that follow them: 256 MB in fp32
BLOCK = 256                 # slots of a CPU that are kept in order of length, see `close_gaps`


def free_memory(device: torch.device) -> int:
    """Bytes that this process could still take."""
    if device.type == "cuda":
        return int(0.95 * torch.cuda.mem_get_info(device)[0])   # kernels and gaps take some
    try:
        with open("/proc/meminfo") as file:
            free = int(re.search(r"MemAvailable:\s+(\d+)", file.read())[1]) * 1024
    except OSError:         # macOS says how much memory there is, not how much is free: take half
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    return min(free, container_memory("/sys/fs/cgroup"))


def container_memory(folder: str) -> float:
    """Bytes that a container leaves its processes, by version 2 or 1 of Linux's control groups;
    infinity where there is no limit. Pages of files do not count: the system can drop them."""
    for limit, used, statistics, cached in (
            ("memory.max", "memory.current", "memory.stat", "inactive_file"),
            ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat",
             "total_inactive_file")):
        try:
            most, taken, lines = (Path(folder, name).read_text()
                                  for name in (limit, used, statistics))
        except OSError:
            continue
        droppable = re.search(rf"^{cached} (\d+)", lines, re.MULTILINE)
        most = math.inf if most.strip() == "max" else int(most)
        return most - int(taken) + (int(droppable[1]) if droppable else 0)
    return math.inf


def slot_bytes(config, length: int, dtype, truncated: bool = False) -> int:
    """Memory to sample one sequence of up to this length; truncated: with top_p or top_k."""
    per_token = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    return (per_token * dtype.itemsize * -(-length // PAGE) * PAGE      # keys and values
            + 40 * length                           # tokens, log-probs, noise; a copy of each
            # Logits and probabilities; with top_p or top_k sorted too. In and out of graphs.
            + (72 if truncated else 24) * config.vocab_size)


def prefill_bytes(config, dtype, tokens: int = PREFILL_TOKENS) -> int:
    """Memory to compute the first prompts, of so many tokens, and the logits that follow them."""
    tokens = min(tokens, PREFILL_TOKENS)
    layer = (dtype.itemsize * 3 * (config.hidden_size + config.intermediate_size)
             + 16 * config.hidden_size)             # in fp32 while heads are turned
    return (slot_bytes(config, tokens, dtype) + tokens * layer
            + 4 * min(PREFILL_LOGITS, tokens * config.vocab_size))


def slots_that_fit(model, length: int, wanted: int, truncated: bool) -> int:
    """How many sequences of this length the free memory holds, and at most `wanted`."""
    config, weight = model.config, model.head_weight
    dtype = model.compute_dtype or weight.dtype
    per_slot = slot_bytes(config, length, dtype, truncated)
    if weight.is_cuda:
        torch.cuda.empty_cache()                            # what training has left is free too
        free = 0.9 * torch.cuda.mem_get_info(weight.device)[0]
        if dtype != weight.dtype:                           # for `model_to_read`
            free -= sum(p.numel() for p in model.parameters()) * dtype.itemsize
    else:
        free = 0.7 * free_memory(weight.device)
        wanted = min(wanted, CPU_SLOTS)
    free -= prefill_bytes(config, dtype, wanted * length)
    if free < per_slot:
        raise ValueError(f"the cache of one sequence of {length} tokens needs"
                         f" {per_slot / 2**30:.2f} GB; {max(0, free) / 2**30:.2f} GB are free")
    return min(wanted, int(free // per_slot))


def zeros(shape: tuple, dtype, device):
    """On a CPU, memory that the system provides where it is first used: long answers are rare."""
    if device.type == "cpu":
        numbers = numpy.zeros((*shape, dtype.itemsize), numpy.uint8)
        return torch.from_numpy(numbers).view(dtype).squeeze(-1)
    return torch.zeros(shape, dtype=dtype, device=device)


# ---- weights to sample with ------------------------------------------------------------------
def model_to_read(model):
    """The model. Where it computes in another dtype than its weights have: a copy in that dtype."""
    weight, dtype = model.head_weight, model.compute_dtype or model.head_weight.dtype
    if dtype == weight.dtype:
        return model
    with torch.device("meta"):
        copy = type(model)(model.config)
    copy._apply(lambda p: torch.empty(p.shape, dtype=dtype, device=weight.device))
    copy.vocab = model.vocab
    return copy


def refresh(copy, model) -> None:
    """Training has moved the weights. Copy them again, in place: graphs read from that place."""
    if copy is not model:
        with torch.no_grad():
            torch._foreach_copy_(list(copy.parameters()), list(model.parameters()))


# ---- slots -----------------------------------------------------------------------------------
def slots_for(model, make, size: int | None, wanted: int, length: int, new: int, *drawing):
    """Slots for `wanted` sequences of at most `length` tokens, `new` of them drawn.

    Where they serve, those that an earlier call left on the model: their memory is warm, and on
    CUDA their graphs are worth seconds. They are taken off the model, so that a call within a call
    makes its own. Otherwise new ones: make(model, size, length, new, *drawing).
    """
    slots, weight = model.__dict__.pop("slots", None), model.head_weight
    # A model that was moved or cast has its weights elsewhere than the graphs would look.
    made_for = drawing, size, model.vocab, model.compute_dtype, weight.dtype, weight.data_ptr()
    if slots is None or slots.made_for != made_for or any(
            needed > there for needed, there in zip((wanted, length, new), slots.made_up_to)):
        slots = None                            # its memory, before new is taken
        temperature, top_p, top_k, _ = drawing
        truncated = temperature > 0 and (top_p < 1 or top_k > 0)
        size = min(wanted, size or slots_that_fit(model, length, wanted, truncated))
        with torch.inference_mode(False):       # Weights that the kernels join can then be trained.
            slots = make(model, size, length, new, *drawing)
        slots.made_for, slots.made_up_to = made_for, (wanted, slots.length, new)
        slots.halved = False
    refresh(slots.model, model)
    slots.done.fill_(True)
    return slots


def halve(slots, model, reason: str) -> None:
    """CUDA ran out of memory: go on with half as many slots, once. The object stays the same."""
    if slots.halved or slots.size == 1:
        raise torch.OutOfMemoryError(reason)
    made_for, made_up_to, size = slots.made_for, slots.made_up_to, slots.size // 2
    (drawing, *_), (_, length, new) = made_for, made_up_to
    print(f"CUDA out of memory while sampling: {size} sequences at once from here on, not"
          f" {slots.size}", file=sys.stderr)
    vars(slots).clear()                         # its memory, before new is taken
    slots.made_for = None                       # If even that fails, no later call takes them.
    torch.cuda.empty_cache()
    with torch.inference_mode(False):
        slots.__init__(model, size, length, new, *drawing)
    slots.made_for, slots.made_up_to, slots.halved = made_for, made_up_to, True
    refresh(slots.model, model)


def new_tokens(prompts: list[list[int]], wanted: list[int], indices, config) -> list[int]:
    """How many tokens each prompt may get: those wanted, and no more than the context has room for.
    ValueError for a prompt that cannot be continued; indices are their names."""
    context = config.max_position_embeddings
    for i, prompt in zip(indices, prompts):
        if not 0 < len(prompt) < context:
            raise ValueError(f"prompt {i} has {len(prompt)} tokens; the model's context is"
                             f" {context}")
        if min(prompt) < 0 or max(prompt) >= config.vocab_size:
            raise ValueError(f"prompt {i} has a token that the model does not have")
    return [min(new, context - len(prompt)) for new, prompt in zip(wanted, prompts, strict=True)]


def release(model) -> None:
    """Give back the cache and the CUDA graphs that `generate` keeps for its next call."""
    if model.__dict__.pop("slots", None) is not None and model.head_weight.is_cuda:
        torch.cuda.empty_cache()


def pages_in_use(lengths: list[int]) -> list[int]:
    """For each page, one more than the last slot that has it: `Cache` in sample.py."""
    reach = []
    for slot in reversed(range(len(lengths))):
        while len(reach) * PAGE < lengths[slot]:
            reach.append(slot + 1)
    return reach


@dataclass
class Running:
    prompt: int             # its index
    sample: int             # its number among this prompt's samples
    offset: int             # prompt and drawn tokens together are offset + Schedule.steps


def close_gaps(running: list, ended: list[int], block: int) -> dict[int, int]:
    """Take the ended sequences out of `running`, and say which others move: to slot -> from slot.

    The longer sequences (those with the larger `offset`) stay in front, by blocks of slots, and few
    are moved. A gap is filled with the longest sequence of the next block, and the gap that this
    leaves likewise. The last gap is filled with the last sequence.
    """
    moves = {}
    for gap in reversed(ended):
        while gap < len(running) - 1:
            first = min((gap // block + 1) * block, len(running) - 1)
            source = max(range(first, min(first + block, len(running))),
                         key=lambda slot: (running[slot].offset, slot))
            running[gap], moves[gap] = running[source], moves.pop(source, source)
            gap = source
        running.pop()
    return moves
