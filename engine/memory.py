"""What training will need in memory, by what for: counted beforehand, not measured.

Every trainer prints its plan before it loads a model, and stops where the plan does not fit.
"""
import functools
from dataclasses import dataclass

import torch

from engine.batches import pass_tokens
from engine.cache import CPU_SLOTS, prefill_bytes, slot_bytes
from engine.logits import LOGITS_AT_ONCE
from model import Transformer

ENOUGH = 256    # answers in the making that keep a GPU busy


@functools.cache
def parameters_in(config) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in Transformer(config).parameters())


def training_bytes(config, settings, dtype, longest: int, batch: int, recompute: bool,
                   on_gpu: bool = True) -> dict:
    """Bytes on the device while training, by what they are for.

    longest: tokens of the longest sequence. batch: sequences in an update.
    """
    P, b = parameters_in(config), dtype.itemsize
    C, V, L = config.hidden_size, config.vocab_size, config.num_hidden_layers
    Q, KV = (n * config.head_dim for n in (config.num_attention_heads, config.num_key_value_heads))
    tokens = max(longest, min(pass_tokens(settings, on_gpu), batch * longest))
    # What autograd keeps of a layer: what goes into its products, and two norms in fp32.
    layer = tokens * (b * (2 * C + 2 * Q + 2 * KV + 4 * config.intermediate_size) + 16 * C)
    kept = L * tokens * b * C + layer if recompute else L * layer
    kept += tokens * 8 * (C + config.head_dim)
    casts = 0 if dtype == torch.float32 else b * (P // L if recompute else P)
    chunk = min(LOGITS_AT_ONCE, tokens * V)
    return {"weights": 4 * P, "AdamW": 0 if settings.offload else 8 * P, "gradients": 4 * P,
            "activations": kept + layer + casts, "logits": 12 * chunk + (4 + b) * V * C}


def choose_recompute(config, settings, dtype, longest, batch, room, beside=0,
                     on_gpu=True) -> tuple[dict, bool]:
    """The bytes of training, and whether to recompute activations: where it would not fit into
    `room` otherwise, with `beside` further bytes."""
    plans = {recompute: training_bytes(config, settings, dtype, longest, batch, recompute, on_gpu)
             for recompute in (False, True)}
    recompute = settings.checkpointing == "yes" or (
        settings.checkpointing == "auto" and sum(plans[False].values()) + beside > room)
    return plans[recompute], recompute


def plan_line(purpose: str, parts: dict, room: float) -> str:
    """The parts of a plan and their sum in a line; ValueError where there is not that much room."""
    def amount(size):
        return f"{size / 1e9:.1f} GB" if size > 1e9 else f"{size / 1e6:.0f} MB"
    total = sum(parts.values())
    line = f"memory to {purpose}: " + " + ".join(
        f"{name} {amount(size)}" for name, size in parts.items() if size > 5e5)
    line += f" = {amount(total)} of {amount(room)}"
    if total > room:
        raise ValueError(f"{line}: does not fit (smaller --micro-tokens, --checkpointing yes and"
                         " --offload need less)")
    return line


@dataclass
class RolloutPlan:
    slots: int              # answers to sample at once
    keep_cache: bool        # the sampler's cache may stay in memory during an update
    recompute: bool         # activations
    lines: list[str]        # what to tell the user


def rollout_plan(settings, config, dtype, prompt_tokens: int, room: float, processes: int = 1,
                 on_gpu: bool = True, critic: bool = False, slots: int | None = None):
    """How GRPO or PPO will use `room` bytes, for prompts of at most `prompt_tokens`.

    slots: as many as this at most; a run that goes on samples with as many as before.
    """
    longest, batch = prompt_tokens + settings.max_new_tokens, settings.prompts * settings.group
    P, slot = parameters_in(config), slot_bytes(config, longest, dtype)
    wanted = -(-settings.prompts // processes) * settings.group
    wanted = wanted if on_gpu else min(wanted, CPU_SLOTS)
    beside = {"sampler's weights": 0 if dtype == torch.float32 else P * dtype.itemsize,
              "reference": P * dtype.itemsize if settings.kl else 0,
              "critic": (8 if settings.offload else 16) * P if critic else 0}
    train, recompute = choose_recompute(config, settings, dtype, longest, batch, room,
                                        sum(beside.values()) + min(wanted, ENOUGH) * slot, on_gpu)
    sample = {"weights": train["weights"], "AdamW": train["AdamW"], **beside,
              "prefill": prefill_bytes(config, dtype)}
    fit = min(wanted, (room - sum(train.values()) - sum(beside.values())) // slot)
    keep_cache = fit >= min(wanted, ENOUGH)
    if not keep_cache:                                      # It is given back before each update.
        fit = max(1, min(wanted, (room - sum(sample.values())) // slot))
        beside["sampler's weights"] = 0
    fit = int(min(fit, slots or fit))
    cache = {f"cache of {fit} answers": fit * slot}
    lines = [plan_line("sample", sample | cache, room),
             plan_line("train", train | beside | (cache if keep_cache else {}), room)]
    return RolloutPlan(fit, keep_cache, recompute, lines)
