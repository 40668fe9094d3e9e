"""How many threads, which number format and which way of waiting suit a model on a CPU? Tokens a second
of sampling and of training, for random weights of several sizes.

    python bench/threads.py [--shapes 0.9M 5M 135M 0.5B] [--busy 0 1] [--rounds 3]

Each figure comes from a process of its own; the ways alternate, and the medians of the rounds are
shown with their range. --busy 1 repeats it beside a process that does nothing but count. Ends in one
JSON line.
"""
import argparse
import json
import os
import subprocess
import sys
import time
from statistics import median

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

SHAPES = {      # vocabulary, width, MLP, layers, heads, key heads; samples, new tokens; sequences
    "0.9M": (512, 128, 384, 4, 4, 2, 128, 100, 32),
    "5M": (2048, 256, 704, 6, 4, 2, 64, 60, 16),
    "20M": (4096, 512, 1408, 6, 8, 4, 32, 40, 8),
    "135M": (49152, 576, 1536, 30, 9, 3, 16, 24, 4),
    "0.5B": (151936, 896, 4864, 24, 14, 2, 8, 12, 2)}


SPINS = {"torch's own": {"GOMP_SPINCOUNT": "300000"}, "some": {"GOMP_SPINCOUNT": "10000"},
         "few": {"GOMP_SPINCOUNT": "1000"}, "none": {"GOMP_SPINCOUNT": "0"}}


def measure(shape: str, what: str, dtype: str) -> float:
    """Tokens a second, after a warm-up."""
    import torch

    import model as M
    import sample
    *config, samples, new, sequences = SHAPES[shape]
    torch.manual_seed(0)
    model = M.Transformer(M.Config(*config, max_position_embeddings=1024, tie_word_embeddings=True))
    model.compute_dtype = None if dtype == "float32" else getattr(torch, dtype)
    tokens = torch.randint(0, config[0], (sequences, 200))

    def work() -> int:
        if what == "sample":
            prompt = tokens[0, :40].tolist()
            groups = sample.generate(model, [prompt], n=samples, max_new_tokens=new, stop=set())
            return sum(len(one.tokens) for one in groups[0])
        M.logprobs(model, tokens.reshape(1, -1), lengths=[200] * sequences).sum().backward()
        return tokens.numel()

    work()                                  # to warm up
    count, seconds = 0, 0.0
    while seconds < 3:
        begun = time.perf_counter()
        count += work()
        seconds += time.perf_counter() - begun
    return count / seconds


def rate(shape: str, what: str, dtype: str, threads: int, waits: str) -> float:
    env = os.environ | {"OMP_NUM_THREADS": str(threads)} | SPINS[waits]
    done = subprocess.run([sys.executable, __file__, "--one", shape, what, dtype], env=env,
                          check=True, capture_output=True, text=True)
    return float(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES))
    parser.add_argument("--busy", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--one", nargs=3, help="used by this program itself")
    args = parser.parse_args()
    if args.one:
        return print(measure(*args.one))
    cores, results = os.cpu_count(), []
    ways = [(1, "none"), *((cores, waits) for waits in SPINS)]
    for busy in args.busy:
        others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy)]
        try:
            for shape in args.shapes:
                for what in ("sample", "train"):
                    for dtype in args.dtypes if SHAPES[shape][3] > 6 else ["float32"]:
                        rows = [[rate(shape, what, dtype, *way) for way in ways]
                                for _ in range(args.rounds)]
                        for way, rates in zip(ways, zip(*rows)):
                            row = {"shape": shape, "what": what, "dtype": dtype, "busy": busy,
                                   "threads": way[0], "spins": way[1], "rates": rates}
                            results.append(row)
                            print(f"{shape:5} {what:6} {dtype:8} beside {busy} busy, {way[0]}"
                                  f" thread(s), spins: {way[1]:11}: {median(rates):9,.0f} tokens/s"
                                  f" ({min(rates):,.0f} to {max(rates):,.0f})", flush=True)
        finally:
            for other in others:
                other.kill()
    print(json.dumps(results))


if __name__ == "__main__":
    main()
