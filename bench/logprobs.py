"""Peak memory of `logprobs`, forward and backward, beside the naive way (all logits at once).

    python bench/logprobs.py [tokens ...]         (default: 16384; the naive way at an eighth)

Only the head, V = 151,936 by C = 896 as in Qwen2.5-0.5B; fp32 on a CPU, bf16 over fp32 weights on
CUDA. Each measurement is a process of its own. It counts what is needed beyond the weights, the
hidden states and their gradients, which any way needs. The last line is JSON.
"""
import json
import os
import re
import subprocess
import sys
import time
from types import SimpleNamespace

import torch

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import model as M  # noqa: E402

V, C = 151936, 896


def peak_bytes(device):
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    with open("/proc/self/status") as file:
        return int(re.search(r"VmHWM:\s+(\d+)", file.read())[1]) * 1024


def measure(way: str, tokens: int):
    """Run one forward and backward; print peak bytes and seconds."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    weight = torch.randn(V, C, device=device).mul_(0.02).requires_grad_()
    hidden = torch.randn(1, tokens, C, device=device,
                         dtype=torch.bfloat16 if device == "cuda" else torch.float32)
    hidden.requires_grad_()
    ids = torch.randint(0, V, (1, tokens), device=device)
    # Any way needs the gradients of both. Written here, they are not counted below.
    weight.grad, hidden.grad = torch.ones_like(weight), torch.ones_like(hidden)
    model = SimpleNamespace(hidden=lambda *_: hidden, head_weight=weight, vocab=V)
    before, start = peak_bytes(device), time.perf_counter()
    if way == "ours":
        logp = M.logprobs(model, ids)
    else:
        logits = torch.nn.functional.linear(hidden, weight.to(hidden.dtype))[:, :-1].float()
        logp = logits.log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)
    logp.sum().backward()
    if device == "cuda":
        torch.cuda.synchronize()
    print(json.dumps({"way": way, "device": device, "tokens": tokens,
                      "extra_gb": (peak_bytes(device) - before) / 1e9,
                      "seconds": time.perf_counter() - start}))


def main():
    if sys.argv[1:2] == ["--measure"]:
        return measure(sys.argv[2], int(sys.argv[3]))
    rows = []
    for tokens in [int(arg) for arg in sys.argv[1:]] or [16384]:
        for way, n in (("ours", tokens), ("naive", tokens // 8)):
            run = subprocess.run([sys.executable, __file__, "--measure", way, str(n)],
                                 capture_output=True, text=True)
            row = json.loads(run.stdout) if run.returncode == 0 else {
                "way": way, "tokens": n, "failed": run.stderr.strip().splitlines()[-1:]}
            rows.append(row)
            print(", ".join(f"{key} {value:.2f}" if isinstance(value, float) else f"{key} {value}"
                            for key, value in row.items()))
    print(json.dumps({"vocabulary": V, "width": C, "rows": rows}))


if __name__ == "__main__":
    main()
