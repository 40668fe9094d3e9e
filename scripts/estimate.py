"""What an experiment at the paper's size will take on one GPU: by arithmetic, not measured.

    python scripts/estimate.py --model Qwen2.5-1.5B --out - --data - --memory 80

Takes grpo.py's flags. Memory is grpo.py's own plan, for a card of --memory GB. Time is what the
work must move or multiply, over the share of the card's limits that --share and --mfu grant:

    a step of sampling   (longest answer * weight bytes + all keys and values read) / bandwidth
    a step of training   8 * parameters * tokens / matrix rate    (6 of these, 2 for recomputing)
"""
import os
import sys
from dataclasses import dataclass
from types import SimpleNamespace

import torch

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import cli  # noqa: E402
import grpo  # noqa: E402
from model import Config  # noqa: E402
from sample import slot_bytes  # noqa: E402
from sft import parameters_in  # noqa: E402


@dataclass
class Settings(grpo.Settings):
    memory: float = 80.0            # GB of the card that are free
    bandwidth: float = 3.35         # TB/s (an H100; an A100 has 2.0)
    rate: float = 990.0             # 10^12 bf16 operations a second (an A100: 312)
    share: float = 0.5              # of the bandwidth that sampling reaches
    mfu: float = 0.4                # of the rate that training reaches
    prompt_tokens: int = 250        # mean length of a prompt
    answer_tokens: int = 700        # and of an answer
    examples: int = 1000            # in an SFT set, seen twice


def main():
    s = cli.parse(Settings, __doc__)
    try:
        config = Config.load(s.model)
        ranks = SimpleNamespace(device=torch.device("cuda"), size=1, first=True)
        grpo.plan(s, config, torch.bfloat16, ranks, s.prompt_tokens, SimpleNamespace(
            state={}, first=True), 0.95 * s.memory * 1e9)
    except (ValueError, OSError) as error:
        cli.stop(error)
    P, answers = parameters_in(config), s.prompts * s.group
    read = answers * s.answer_tokens * (s.prompt_tokens + s.answer_tokens / 2) * slot_bytes(
        config, 1024, torch.bfloat16) / 1024
    sampling = (s.max_new_tokens * 2 * P + read) / (s.bandwidth * 1e12 * s.share)
    training = 8 * P * answers * (s.prompt_tokens + s.answer_tokens) / (s.rate * 1e12 * s.mfu)
    tuning = training / answers * s.examples * 2
    print(f"time: {sampling:.0f} s to sample and {training:.0f} s to train for each step of GRPO:"
          f" {s.steps * (sampling + training) / 3600:.1f} h for {s.steps} steps; {tuning / 60:.1f}"
          f" min to fine-tune on {s.examples} examples (arithmetic: see scripts/estimate.py)")


if __name__ == "__main__":
    main()
