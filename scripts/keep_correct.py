"""Keep the correct answers of rollouts: fine-tuning examples in the policy's own words.

    python scripts/keep_correct.py --data runs/rl/rollouts/step-0001{15..25}.jsonl --num 1000 \
        --out data/redistill.jsonl

Rewards are computed again by verify.py's rules. Answers come in random order, at most --per-problem
to a problem and none twice: the paper's re-distillation B keeps one for each puzzle, 1000 in all.
The tokens that were sampled are kept, so sft.py trains on just these.
"""
import os
import random
import sys
from dataclasses import dataclass

from tqdm import tqdm

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import cli  # noqa: E402
from verify import read_rollouts, reward  # noqa: E402


@dataclass
class Settings:
    data: list[str]         # rollouts, of sample.py or grpo.py
    out: str                # the JSONL file to write
    num: int = 0            # keep at most so many; 0: all
    per_problem: int = 1    # and of each problem so many (paper: 1); 0: all that differ
    wrong: bool = False     # keep the wrong ones instead, to compare with
    seed: int = 0           # of the order, and so of the choice


def main():
    settings = cli.parse(Settings, __doc__)
    if settings.num < 0 or settings.per_problem < 0:
        cli.stop("--num and --per-problem are at least 0")
    cli.check_output(settings.out)
    read, kept = 0, []
    for path in tqdm(settings.data, unit=" files", leave=False, delay=1):
        for row in read_rollouts(path):
            read += 1
            row["reward"] = reward(row, row["response"], row["finished"])
            if bool(row["reward"]) != settings.wrong:
                row.pop("logprobs", None)
                kept.append(row)
    random.Random(f"keep, seed {settings.seed}").shuffle(kept)
    right, chosen, texts = len(kept), [], {}
    for row in kept:
        known = texts.setdefault(row["id"], set())
        if row["response"] in known or 0 < settings.per_problem <= len(known):
            continue
        known.add(row["response"])
        chosen.append(row)
    chosen = chosen[:settings.num or None]
    if not chosen:
        cli.stop(f"none of {read} answers is {'wrong' if settings.wrong else 'correct'}")
    cli.write_jsonl(settings.out, chosen)
    print(f"{settings.out}: {len(chosen):,} of {right:,} {'wrong' if settings.wrong else 'correct'}"
          f" among {read:,} answers, {sum(len(row['tokens']) for row in chosen):,} tokens")


if __name__ == "__main__":
    main()
