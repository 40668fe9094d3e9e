"""Keep the correct answers of rollouts: fine-tuning examples in the policy's own words.

    python scripts/keep_correct.py --data runs/rl/rollouts/step-0001{15..25}.jsonl --num 1000 \\
        --out data/redistill.jsonl

Rewards are computed again by verify.py's rules. Answers come in random order, at most --per-problem
to a problem and none twice: the paper's re-distillation B keeps one for each puzzle, 1000 in all.
The tokens that were sampled are kept, so sft.py trains on just these.
"""
import random
from dataclasses import dataclass

import conductor  # so that Python finds the files above scripts/
from engine.files import check_output, read_jsonl, write_jsonl
from engine.flags import command, limits, parse
from verify import read_rollouts, reward


@dataclass(kw_only=True)
class Settings:
    data: list[str]                         # rollouts, of sample.py or grpo.py
    out: str                                # the JSONL file to write
    num: int = limits(0, at_least=0)        # keep at most so many; 0: all
    as_many_as: str = ""                    # keep at most as many as this file has lines
    per_problem: int = limits(1, at_least=0)    # and of each problem so many (paper: 1); 0: all
    wrong: bool = False                     # keep the wrong ones instead, to compare with
    seed: int = limits(0, at_least=0)     # of the order, and so of the choice


def main(settings: Settings) -> None:
    check_output(settings.out, [*settings.data, settings.as_many_as])
    word, number, rows = "wrong" if settings.wrong else "correct", 0, []
    for row in (row for path in settings.data for row in read_rollouts(path)):
        number += 1
        row["reward"] = reward(row, row["response"], row["finished"])
        if bool(row["reward"]) != settings.wrong:
            rows.append({name: value for name, value in row.items() if name != "logprobs"})
    random.Random(f"keep, seed {settings.seed}").shuffle(rows)
    chosen, texts = [], {}
    for row in rows:
        known = texts.setdefault(row["id"], set())
        if row["response"] not in known and not 0 < settings.per_problem <= len(known):
            known.add(row["response"])
            chosen.append(row)
    most = len(read_jsonl(settings.as_many_as)) if settings.as_many_as else settings.num or None
    if most == 0:
        raise ValueError(f"{settings.as_many_as}: no lines")
    chosen = chosen[:most]
    if not chosen:
        raise ValueError(f"none of {number} answers is {word}")
    write_jsonl(settings.out, chosen)
    print(f"{settings.out}: {len(chosen):,} of {len(rows):,} {word} among {number:,} answers,"
          f" {sum(len(row['tokens']) for row in chosen):,} tokens")


if __name__ == "__main__":
    command(main, parse(Settings, __doc__))
