"""Sampling on a CPU beside transformers' `generate`, with the same random weights, in one run.

    pip install transformers && python bench/sample_cpu.py [tiny] [half_b]

tiny: about 1M parameters, 256 prompts x 4 samples, temperature 1, prompts of 20 to 120 tokens.
    Four of the 512 ids end a text, so lengths are mixed: the mean is about 110, and a seventh is
    cut off at 256. transformers runs with several batch sizes, and its best one counts. Useful
    tokens are those up to the end token.
half_b: the shape of Qwen2.5-0.5B in bf16, greedy, prompts of 64 tokens, 32 new ones, batch 1 and 8.

The two sides alternate. The figures are medians of the rounds, with the range of their ratios. The
last line is JSON.
"""
import json
import os
import random
import statistics
import sys
import tempfile
import time

import torch
import transformers

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import model as M  # noqa: E402
import sample  # noqa: E402

TINY = M.Config(512, 128, 384, 4, 4, 2, max_position_embeddings=1024, tie_word_embeddings=True)
HALF_B = M.Config(151936, 896, 4864, 24, 14, 2, tie_word_embeddings=True)
STOP = [1, 2, 3, 4]


def pair(config, dtype):
    torch.manual_seed(0)
    ours = M.Transformer(config).to(dtype)
    with tempfile.TemporaryDirectory() as path:
        M.save(ours, path + "/m")
        theirs = transformers.AutoModelForCausalLM.from_pretrained(path + "/m", dtype=dtype).eval()
    return ours, theirs


def theirs_tokens(model, prompts, n, batch, new, stop, greedy=False):
    """Useful tokens of transformers' generate over all prompts, `batch` sequences at a time."""
    useful = 0
    for start in range(0, len(prompts), batch // n):
        part = prompts[start:start + batch // n]
        width = max(map(len, part))
        ids = torch.tensor([[0] * (width - len(p)) + p for p in part])
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in part])
        sampling = {"do_sample": False} if greedy else {
            "do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0,
            "num_return_sequences": n}
        with torch.inference_mode():
            out = model.generate(ids, attention_mask=mask, max_new_tokens=new, pad_token_id=0,
                                 eos_token_id=stop, **sampling)[:, width:]
        for row in out.tolist():
            ends = [i for i, token in enumerate(row) if token in (stop or [])]
            useful += ends[0] + 1 if ends else new
    return useful


def ours_tokens(model, prompts, n, new, stop, temperature=1.0):
    samples = sample.generate(model, prompts, n=n, max_new_tokens=new, stop=set(stop or []),
                              temperature=temperature)
    return sum(len(s.tokens) for group in samples for s in group)


def rate(function, *args):
    start = time.perf_counter()
    return function(*args) / (time.perf_counter() - start)


def compare(sides, rounds):
    """Median tokens/s of each side, and the per-round ratios of the first to the second."""
    runs = [[rate(*side) for side in sides] for _ in range(rounds)]
    ratios = [a / b for a, b in runs]
    return {"ours": statistics.median(a for a, _ in runs),
            "transformers": statistics.median(b for _, b in runs),
            "ratio": statistics.median(ratios), "ratio_range": [min(ratios), max(ratios)]}


def tiny():
    ours, theirs = pair(TINY, torch.float32)
    rng = random.Random(0)
    prompts = [[rng.randrange(5, 512) for _ in range(rng.randint(20, 120))] for _ in range(256)]
    rates = {batch: rate(theirs_tokens, theirs, prompts, 4, batch, 256, STOP)
             for batch in (64, 128, 256, 512, 1024)}
    for batch, speed in rates.items():
        print(f"tiny: transformers, batch {batch:5d}: {speed:9,.0f} useful tokens/s")
    best = max(rates, key=rates.get)
    ours_tokens(ours, prompts[:16], 4, 16, STOP)                # warm up
    result = compare([(ours_tokens, ours, prompts, 4, 256, STOP),
                      (theirs_tokens, theirs, prompts, 4, best, 256, STOP)], rounds=3)
    return {"params": sum(p.numel() for p in ours.parameters()), "their_batch": best, **result}


def half_b():
    ours, theirs = pair(HALF_B, torch.bfloat16)
    rng, results = random.Random(0), {}
    for batch in (1, 8):
        prompts = [[rng.randrange(151936) for _ in range(64)] for _ in range(batch)]
        ours_tokens(ours, prompts, 1, 2, None, 0.0)
        theirs_tokens(theirs, prompts, 1, batch, 2, None, True)
        results[f"batch_{batch}"] = compare([(ours_tokens, ours, prompts, 1, 32, None, 0.0),
                                             (theirs_tokens, theirs, prompts, 1, batch, 32, None,
                                              True)], rounds=5)
    return results


def main():
    transformers.logging.set_verbosity_error()
    results = {"threads": torch.get_num_threads(), "torch": torch.__version__,
               "transformers": transformers.__version__}
    for name in sys.argv[1:] or ["tiny", "half_b"]:
        results[name] = {"tiny": tiny, "half_b": half_b}[name]()
        rows = results[name] if name == "half_b" else {"": results[name]}
        for part, row in rows.items():
            print(f"{name} {part}: ours {row['ours']:,.1f}, transformers {row['transformers']:,.1f}"
                  f" tokens/s, ratio {row['ratio']:.2f} ({row['ratio_range'][0]:.2f} to"
                  f" {row['ratio_range'][1]:.2f})")
    print(json.dumps(results))


if __name__ == "__main__":
    main()
