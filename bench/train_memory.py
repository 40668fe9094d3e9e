"""Peak memory of training updates beside the plan that every run prints before it starts.

    python bench/train_memory.py [layers ...]       (default: 4; 24 is the whole 0.5B model)

The width and vocabulary of Qwen2.5-0.5B, packed micro-batches of 4,096 tokens, two updates; with and
without recomputing activations, each in a process of its own. On a CPU (fp32) the peak is what
the process grew by since before the model was made, on CUDA (bf16 over fp32) what was allocated.
"""
import json
import os
import random
import re
import subprocess
import sys

import numpy
import torch

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import model as M
import sft
from engine.batches import Sequence, accumulate
from engine.memory import training_bytes
from engine.optimizer import AdamW
from engine.processes import Ranks

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPE = torch.bfloat16 if DEVICE == "cuda" else torch.float32


def peak():
    if DEVICE == "cuda":
        return torch.cuda.max_memory_allocated()
    with open("/proc/self/status") as file:
        return int(re.search(r"VmHWM:\s+(\d+)", file.read())[1]) * 1024


def measure(layers: int, recompute: bool):
    config = M.Config(151936, 896, 4864, layers, 14, 2, tie_word_embeddings=True)
    settings = sft.Settings(data=[], out="", micro_tokens=4096)
    rng = random.Random(0)
    batch = [Sequence(numpy.array([rng.randrange(151936) for _ in range(512)],
                                  dtype=numpy.int32), 100) for _ in range(8)]
    plan = training_bytes(config, settings, DTYPE, 512, 8, recompute)
    torch.ones(8, 8, device=DEVICE) @ torch.ones(8, 8, device=DEVICE)       # libraries, loaded
    before = peak()
    with torch.device(DEVICE):
        model = M.Transformer(config)
    model.compute_dtype, model.checkpointing = DTYPE, recompute
    optimizer = AdamW(model, settings)
    for _ in range(2):
        optimizer.update(1e-6, accumulate(model, sft.Minibatch(batch, settings), Ranks(DEVICE),
                                          settings))
    measured = peak() - before
    print(json.dumps({"layers": layers, "recompute": recompute, "planned_gb": sum(plan.values()) / 1e9,
                      "measured_gb": measured / 1e9, "ratio": measured / sum(plan.values()),
                      "plan": plan, "device": DEVICE}))


def main():
    if sys.argv[1:2] == ["--measure"]:
        return measure(int(sys.argv[2]), sys.argv[3] == "True")
    for layers in sys.argv[1:] or ["4"]:
        for recompute in (False, True):
            subprocess.run([sys.executable, __file__, "--measure", layers, str(recompute)], check=True)


if __name__ == "__main__":
    main()
