"""What an experiment takes on one GPU, stage by stage: by arithmetic, not measured.

    python scripts/redistill.py kk --base Qwen2.5-1.5B --dry-run
    python scripts/echo_chamber.py --base Qwen2.5-0.5B ... --dry-run > commands
    python scripts/estimate.py --base Qwen2.5-0.5B --memory 24 --bandwidth 1.0 --rate 165 < commands

Reads the commands that --dry-run prints; the first example above ends with this by itself. Of the
model only config.json is needed. Memory is the trainers' own plan. Time is what the work must move
or multiply, over the share of the card's limits that --share and --mfu grant (P: parameters):

    sampling    (tokens of the longest answer * bytes of weights + all keys and values read) / bandwidth
    training    8 P * tokens / rate     (a forward pass takes 2 of these, and is computed twice)
    effects     6 P * tokens / rate     (a forward pass with its tangent)
"""
import importlib
import os
import shlex
import sys
from dataclasses import dataclass

import conductor  # so that Python finds the files above scripts/
from engine.flags import command, limits, parse


@dataclass(kw_only=True)
class Settings:
    base: str                       # model directory, or its config.json alone
    # ---- the card
    memory: float = 80.0            # GB that are free
    bandwidth: float = 3.35         # TB/s (an H100; an A100 has 2.0)
    rate: float = 990.0             # 10^12 bf16 operations a second (an A100: 312)
    share: float = limits(0.5, above=0)         # of the bandwidth that sampling reaches
    mfu: float = limits(0.4, above=0)           # of the rate that training reaches
    # ---- the work
    prompt_tokens: int = 250        # mean length of a prompt
    answer_tokens: int = 700        # and of an answer
    examples: int = 1000            # in an SFT set
    problems: int = 500             # to test on


if __name__ == "__main__":      # before torch is imported: --help and a wrong flag answer at once
    settings = parse(Settings, __doc__)

import torch

from engine.cache import slot_bytes
from engine.memory import parameters_in, rollout_plan
from model import Config

COMMANDS = ("sft.py", "grpo.py", "ppo.py", "sample.py", "effect.py")    # that take long
ROLLOUT_BYTES = 20      # that a token of an answer takes in JSONL: its text, id and log-prob


class Card:
    """How many seconds the kinds of work take for a model."""

    def __init__(self, settings: Settings, config: Config):
        self.settings, self.config, self.weights = settings, config, parameters_in(config)

    def sampling(self, answers: int, longest: int) -> float:
        settings, length = self.settings, min(longest, self.settings.answer_tokens)
        per_token = slot_bytes(self.config, 1024, torch.bfloat16) / 1024
        read = answers * length * (settings.prompt_tokens + length / 2) * per_token
        return (longest * 2 * self.weights + read) / (settings.bandwidth * 1e12 * settings.share)

    def computing(self, sequences: int, products: int) -> float:
        """`products` multiplications and additions per parameter and token: see above."""
        tokens = sequences * (self.settings.prompt_tokens + self.settings.answer_tokens)
        return products * self.weights * tokens / (self.settings.rate * 1e12 * self.settings.mfu)


def cost(card: Card, script: str, of) -> tuple[float, float]:
    """(seconds, bytes that stay on the disk) of a command with the settings `of`."""
    settings, text = card.settings, ROLLOUT_BYTES * card.settings.answer_tokens
    if script in ("grpo", "ppo"):
        answers = of.prompts * of.group
        models = 2 if script == "ppo" else 1                            # The critic is one, too.
        seconds = card.sampling(answers, of.max_new_tokens) + models * card.computing(answers, 8)
        kept = of.steps if of.rollouts < 0 else of.rollouts
        return of.steps * seconds, 4 * card.weights * (1 + len(of.keep_at)) + kept * answers * text
    if script == "sft":
        return of.epochs * card.computing(settings.examples * len(of.data), 8), 4 * card.weights
    if script == "sample":
        answers = (of.limit or settings.problems) * of.n
        return card.sampling(answers, of.max_new_tokens), answers * text
    if script == "effect":
        answers, examples = (of.limit or settings.problems) * of.group, settings.examples
        seconds = card.sampling(answers, of.max_new_tokens) + card.computing(answers, 8)
        return seconds + (1 + of.halves) * card.computing(examples * len(of.data), 6), 0
    return 0, 0


def read_script(lines) -> list[tuple[str, str, object]]:
    """(what it does, name of the command, its settings) for each command that takes long."""
    stages, what = [], ""
    for line in lines:
        if line.startswith("#"):
            what = line[1:].strip()
        elif (words := shlex.split(line))[:1] == ["python"] and words[1] in COMMANDS:
            name = words[1].removesuffix(".py")
            stages.append((what, name, parse(importlib.import_module(name).Settings, "",
                                             argv=words[2:])))
    return stages


def main(settings: Settings) -> None:
    config, stages = Config.load(settings.base), read_script(sys.stdin)
    if not stages:
        raise ValueError("no commands on the standard input: see --help")
    hours = disk = trainer = 0
    for what, name, of in stages:
        here = of.model if of.model and os.path.exists(of.model) else settings.base
        card = Card(settings, Config.load(here))
        seconds, kept = cost(card, name, of)
        if name in ("grpo", "ppo", "sft"):      # A checkpoint is written before an older one goes.
            trainer = max(trainer, (of.keep + 1) * 12 * card.weights * (2 if name == "ppo" else 1))
        hours, disk = hours + seconds / 3600, disk + kept
        print(f"{what}: {seconds / 60:,.1f} min, {kept / 1e9:,.1f} GB")
    policy = next((of for _, name, of in stages if name == "grpo"), None)
    if policy:
        print("\n".join(rollout_plan(policy, config, torch.bfloat16, settings.prompt_tokens,
                                     settings.memory * 0.95e9).lines))
    print(f"all: {hours:.1f} h and {disk / 1e9:,.0f} GB on the disk, up to"
          f" {(disk + trainer) / 1e9:,.0f} GB while it trains (by arithmetic, for answers of"
          f" {settings.answer_tokens} tokens: scripts/estimate.py)")


if __name__ == "__main__":
    command(main, settings)
