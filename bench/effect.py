"""How fast sample effects are, beside one backward pass for each example.

    python bench/effect.py          # the tiny base on a CPU, 512 worked examples

Sides alternate; medians of --rounds. The one-by-one side is timed on --few examples. The limit is
counted in forward passes that are timed in the same run: a difference of log-probs takes two (at
the weights plus and minus a step), a jvp three (values, and two products for the slopes).
Ends in one JSON line. On a GPU: bench/gpu.py, row effect.
"""
import json
import os
import random
import statistics
import sys
import time
from dataclasses import dataclass

import numpy
import torch

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)
import effect
import kk_gen
from engine.batches import Sequence, response_logprobs
from engine.flags import parse
from engine.tokenizer import load_tokenizer
from model import load


@dataclass(kw_only=True)
class Settings:
    examples: int = 512
    few: int = 64           # of them one by one
    rounds: int = 5
    micro_tokens: int = 2048


def tiny(examples):
    """The lab's base, and worked answers to new puzzles."""
    path = os.path.join(ROOT, "assets", "tiny_base")
    tokenizer, rng, sequences = load_tokenizer(path), random.Random(0), []
    words = kk_gen.KNIGHT_KNAVE
    for _ in range(examples):
        puzzle = kk_gen.sample_puzzle(rng, 3)
        prompt = kk_gen.compact_prompt(puzzle, "ABC", words)
        response = "\n".join(kk_gen.step_text(step, puzzle, "ABC", words, True)
                             for step in kk_gen.chain_of_thought(puzzle, "worked"))
        prompt, response = (tokenizer.encode(text).ids for text in (prompt, response))
        sequences.append(Sequence(numpy.array(prompt + response, dtype=numpy.int32), len(prompt)))
    return load(path), sequences


def main():
    settings = parse(Settings, __doc__)
    model, sequences = tiny(settings.examples)
    s = effect.Settings(model="", test="", data=[], micro_tokens=settings.micro_tokens)
    G = {name: torch.randn_like(p) / p.numel() ** 0.5 for name, p in model.named_parameters()}
    few = sequences[:settings.few]

    def one_by_one():
        for one in few:
            effect.inner(effect.weighted_gradient(model, [one], [1.0], s), G)

    @torch.no_grad()
    def forward():
        for group in effect.batches(model, sequences, s, "forward"):
            response_logprobs(model, [sequences[i] for i in group], pack=False)

    def by(method):
        return lambda: effect.effects(model, sequences, G, effect.Settings(
            **{**vars(s), "method": method}))

    sides = {"one by one": (one_by_one, len(few)), "jvp": (by("jvp"), len(sequences)),
             "difference": (by("difference"), len(sequences)), "forward": (forward, len(sequences))}
    rates = {name: [] for name in sides}
    for turn in range(settings.rounds + 1):
        for name, (run, count) in sides.items():
            start = time.perf_counter()
            run()
            if turn:        # the first is to warm up
                rates[name].append(count / (time.perf_counter() - start))
    middle = {name: statistics.median(found) for name, found in rates.items()}
    for name, found in rates.items():
        print(f"{name:12} {middle[name]:8.1f} examples/s ({min(found):.1f} to {max(found):.1f}),"
              f" {middle[name] / middle['one by one']:.2f} x one by one")
    shares = {name: middle[name] / (middle["forward"] / passes)
              for name, passes in (("difference", 2), ("jvp", 3))}
    print(", ".join(f"{name}: {share:.0%} of its limit" for name, share in shares.items())
          + f"; {len(sequences) / middle['difference']:.1f} s for {len(sequences)} examples of"
          f" {sum(len(one.tokens) for one in sequences)} tokens")
    print(json.dumps({"threads": torch.get_num_threads(), "examples_per_second": middle,
                      "share_of_limit": shares}))


if __name__ == "__main__":
    main()
