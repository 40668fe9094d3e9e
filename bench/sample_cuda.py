"""Sampling on a GPU, as shares of what the same run measures the card can do.

    python bench/sample_cuda.py [batch_1] [batch_512] [batch_1024] [reference]

The shape of Qwen2.5-1.5B in bf16, random weights. The limit of a run is the sum over its steps of
weight bytes and live key/value bytes over the copy bandwidth, plus the matrix products over the
matrix rate; the share is limit / measured. Prompts of 200 tokens, 200 to 1024 new (each sequence
has its own length); batch_1: 128 and 512. Prefill is in the measured time, not in the limit. Each
run is warmed up (graphs captured), then repeated three times; medians. In the same run: greedy
tokens equal those of full passes in fp32, log-probs agree with `logprobs` within bf16 error. reference: transformers' `generate` on the same weights.
SMOKE=1 runs it all at toy size on any device. Ends in one JSON line.
"""
import json
import os
import random
import statistics
import sys
import tempfile
import time

import torch

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import model as M  # noqa: E402
import sample  # noqa: E402

SMOKE = os.environ.get("SMOKE") == "1"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SHAPE = M.Config(512, 64, 128, 2, 4, 2) if SMOKE else \
    M.Config(151936, 1536, 8960, 28, 12, 2, tie_word_embeddings=True)


def seconds(function, repeats=3):
    times = []
    for _ in range(repeats):
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        function()
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return times


def card():
    """Copy bandwidth (bytes read and written per second) and bf16 matrix rate."""
    size = 2**20 if SMOKE else 2**32
    source = torch.randint(0, 256, (size,), dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    copies = min(seconds(lambda: [target.copy_(source) for _ in range(10)])) / 10
    n = 256 if SMOKE else 8192
    a, b = (torch.randn(n, n, dtype=torch.bfloat16, device=DEVICE) for _ in range(2))
    a @ b
    products = min(seconds(lambda: [a @ b for _ in range(10)])) / 10
    return {"bandwidth": 2 * size / copies, "matrix_rate": 2 * n**3 / products}


def limit(model, prompt, lengths, rates):
    """Seconds for the decode steps at full speed, all sequences side by side."""
    c = model.config
    matrix = sum(p.numel() for p in model.parameters() if p.dim() == 2)    # a tied head is one of them
    if not c.tie_word_embeddings:
        matrix -= c.vocab_size * c.hidden_size                             # looked up, not multiplied
    kv_token = 2 * c.num_hidden_layers * c.num_key_value_heads * c.head_dim * 2
    total = 0.0
    for step in range(max(lengths)):
        live = sum(n > step for n in lengths)
        total += (2 * matrix + kv_token * live * (prompt + step)) / rates["bandwidth"]
        total += 2 * matrix * live / rates["matrix_rate"]
    return total


def row(model, batch, prompt, shortest, longest, rates):
    rng = random.Random(batch)
    prompts = [[rng.randrange(model.config.vocab_size) for _ in range(prompt)]
               for _ in range(batch)]
    lengths = [rng.randint(shortest, longest) for _ in range(batch)]

    def run():
        found = sample.generate(model, prompts, max_new_tokens=lengths, stop=set(), seed=1)
        assert [len(group[0].tokens) for group in found] == lengths
    run()                                                   # captures every graph
    times = seconds(run)
    floor, middle = limit(model, prompt, lengths, rates), statistics.median(times)
    return {"batch": batch, "tokens": sum(lengths), "tokens_per_s": sum(lengths) / middle,
            "seconds": times, "limit_s": floor, "share": floor / middle}


def reference(model, batch, prompt, new):
    """transformers' generate on the same weights, every sequence to the full length."""
    import transformers
    with tempfile.TemporaryDirectory() as path:
        M.save(model, path + "/m")
        theirs = transformers.AutoModelForCausalLM.from_pretrained(
            path + "/m", dtype=torch.bfloat16).to(DEVICE).eval()
    ids = torch.randint(0, model.config.vocab_size, (batch, prompt), device=DEVICE)

    def run():
        with torch.inference_mode():
            theirs.generate(ids, attention_mask=torch.ones_like(ids), do_sample=True, top_k=0,
                            max_new_tokens=new, min_new_tokens=new, pad_token_id=0)
    times = seconds(run)
    return {"batch": batch, "tokens_per_s": batch * new / statistics.median(times), "seconds": times}


def checks(model):
    """Greedy tokens against full forward passes in fp32, and log-probs against `logprobs`."""
    torch.manual_seed(1)
    tiny = M.Transformer(M.Config(512, 64, 128, 2, 4, 2)).to(DEVICE)
    prompts = [[5] * 3, [7, 8] * 40, [9]]
    out = sample.generate(tiny, prompts, max_new_tokens=100, temperature=0, stop=set())
    for prompt, [found] in zip(prompts, out):
        tokens = list(prompt)
        with torch.inference_mode():
            for _ in range(100):
                tokens.append(int(tiny(torch.tensor([tokens], device=DEVICE))[0, -1].argmax()))
        assert found.tokens == tokens[len(prompt):], "the sampler and full passes disagree"
    worst = 0.0
    for prompt, [found] in zip(prompts, sample.generate(model, prompts, max_new_tokens=50,
                                                        stop=set())):
        with torch.inference_mode():
            logp = M.logprobs(model, torch.tensor([prompt + found.tokens], device=DEVICE))
        gap = logp[0, len(prompt) - 1:].cpu() - torch.tensor(found.logprobs)
        worst = max(worst, float(gap.abs().max()))
    assert worst < 0.2, f"log-probs differ by {worst}"
    return {"greedy": "equal", "worst_logprob_gap": worst}


def main():
    names = sys.argv[1:] or ["batch_1", "batch_512", "batch_1024", "reference"]
    scale = 64 if SMOKE else 1
    torch.manual_seed(0)
    model = M.Transformer(SHAPE).to(DEVICE, torch.bfloat16).eval()
    rates = card()
    results = {"device": torch.cuda.get_device_name() if DEVICE == "cuda" else "cpu",
               "torch": torch.__version__, **rates, "checks": checks(model)}
    sample.release(model)
    print(f"{results['device']}: copy {rates['bandwidth'] / 1e12:.2f} TB/s,"
          f" matrix products {rates['matrix_rate'] / 1e12:.0f} TFLOP/s, checks {results['checks']}")
    shapes = {"batch_1": (1, 128, 512, 512), "batch_512": (512, 200, 200, 1024),
              "batch_1024": (1024, 200, 200, 1024)}
    for name in names:
        if name == "reference":
            results[name] = reference(model, 512 // scale, 200 // scale, 256 // scale)
            print(f"transformers, batch {results[name]['batch']}:"
                  f" {results[name]['tokens_per_s']:,.0f} tokens/s")
            continue
        batch, prompt, shortest, longest = (-(-x // scale) for x in shapes[name])
        result = results[name] = row(model, batch, prompt, shortest, longest, rates)
        sample.release(model)
        print(f"{name}: {result['tokens_per_s']:,.0f} tokens/s, {result['share']:.1%} of the limit"
              f" ({min(result['seconds']):.2f} to {max(result['seconds']):.2f} s)")
    print(json.dumps(results))


if __name__ == "__main__":
    main()
