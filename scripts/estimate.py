"""What an experiment at the paper's size will take on one GPU: by arithmetic, not measured.

    python scripts/estimate.py --model Qwen2.5-1.5B --out - --data - --memory 80

Takes grpo.py's flags. Memory is grpo.py's own plan, for a card of --memory GB. Time is what the
work must move or multiply, over the share of the card's limits that --share and --mfu grant:

    a step of sampling   (longest answer * weight bytes + all keys and values read) / bandwidth
    a step of training   8 * parameters * tokens / matrix rate    (6 of these, 2 for recomputing)
"""
from dataclasses import dataclass

import conductor  # so that Python finds the files above scripts/
from engine.flags import command, parse
from engine.settings import RolloutTraining


@dataclass(kw_only=True)
class Settings(RolloutTraining):
    prompts: int = 128              # problems in a step
    group: int = 8                  # answers to each
    lr: float = 0.0                 # for grpo.py's flags to be taken as they are
    kl: float = 0.0                 # weight of the KL: it needs a reference model in memory
    # ---- the card and the work
    memory: float = 80.0            # GB of the card that are free
    bandwidth: float = 3.35         # TB/s (an H100; an A100 has 2.0)
    rate: float = 990.0             # 10^12 bf16 operations a second (an A100: 312)
    share: float = 0.5              # of the bandwidth that sampling reaches
    mfu: float = 0.4                # of the rate that training reaches
    prompt_tokens: int = 250        # mean length of a prompt
    answer_tokens: int = 700        # and of an answer
    examples: int = 1000            # in an SFT set, seen twice


if __name__ == "__main__":      # before torch is imported: --help and a wrong flag answer at once
    settings = parse(Settings, __doc__)

import torch

from engine.cache import slot_bytes
from engine.memory import parameters_in, rollout_plan
from model import Config


def main(settings: Settings) -> None:
    config, dtype = Config.load(settings.model), torch.bfloat16
    room, prompt, answer = settings.memory * 0.95e9, settings.prompt_tokens, settings.answer_tokens
    print("\n".join(rollout_plan(settings, config, dtype, prompt, room).lines))
    weights, answers = parameters_in(config), settings.prompts * settings.group
    read = answers * answer * (prompt + answer / 2) * slot_bytes(config, 1024, dtype) / 1024
    sampling = (settings.max_new_tokens * 2 * weights + read) / (
        settings.bandwidth * 1e12 * settings.share)
    training = 8 * weights * answers * (prompt + answer) / (settings.rate * 1e12 * settings.mfu)
    tuning = training / answers * settings.examples * 2
    print(f"time: {sampling:.0f} s to sample and {training:.0f} s to train for each step of GRPO:"
          f" {settings.steps * (sampling + training) / 3600:.1f} h for {settings.steps} steps;"
          f" {tuning / 60:.1f} min to fine-tune on {settings.examples} examples (arithmetic: see"
          " scripts/estimate.py)")


if __name__ == "__main__":
    command(main, settings)
