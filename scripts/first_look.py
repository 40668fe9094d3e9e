"""A minute with GRPO: a puzzle, four styles of answers, what the tiny base answers, and what it
answers after a few steps of GRPO.

    python scripts/first_look.py

Everything it runs is a command that it prints. The base is assets/tiny_base, the run is runs/first.
"""
import os
import shlex
import subprocess
import sys
from dataclasses import dataclass

from conductor import ROOT
import kk_gen
from engine.files import read_jsonl, run_is_begun
from engine.flags import command, limits, parse
from verify import styles


@dataclass(kw_only=True)
class Settings:
    out: str = "runs/first"                 # where the puzzles and the run go
    steps: int = limits(12, at_least=1)     # of GRPO, 128 answers each
    seed: int = limits(0, at_least=0)     # of GRPO


def call(text: str) -> None:
    """Run a command that a person could type. If it fails it has said why: leave with its code."""
    print(f"\n$ python {text}", flush=True)
    if code := subprocess.run([sys.executable, *shlex.split(text)]).returncode:
        raise SystemExit(max(1, code))


def show_styles() -> None:
    """The puzzle of the README in four styles."""
    statements = (("telling-truth", 2), ("and", ("telling-truth", 0), ("lying", 2)),
                  ("->", ("telling-truth", 2), ("telling-truth", 0)))
    names, words = "ABC", kk_gen.KNIGHT_KNAVE
    print(f"A puzzle of 3 people:\n\n{kk_gen.compact_prompt(statements, names, words)}")
    for style in kk_gen.STYLES:
        steps = kk_gen.chain_of_thought(statements, style)
        print(f"A right answer in the style `{style}`:\n")
        print("\n".join("    " + kk_gen.step_text(step, statements, names, words, True)
                        for step in steps) + "\n")


def show_answers(path: str, who: str) -> None:
    """How a model answers: the shares of its styles, and its first answers."""
    rows = read_jsonl(path)
    right = sum(row["reward"] for row in rows) / len(rows)
    print(f"\n{who}: {right:.0%} of {len(rows)} answers are right.")
    for style, of in styles(rows).items():
        print(f"    {style:7} {of['share']:4.0%} of the answers, of which {of['right']:.0%} are right")
    print("Its first answers:\n")
    for row in rows[:4:2]:
        lines = row["response"].splitlines()
        print("\n".join("    " + line for line in lines)
              + f"    <- {'right' if row['reward'] else 'wrong: ' + row['gold']}\n")


def main(settings: Settings) -> None:
    os.chdir(ROOT)
    folder, base = settings.out, "assets/tiny_base"
    out, name = shlex.quote(folder), f"grpo-{settings.steps}-{settings.seed}"
    show_styles()
    if not os.path.exists(f"{folder}/train.jsonl"):
        call(f"kk_gen.py --template compact --people 3 --num 100 --seed 1 --out {out}/test.jsonl")
        call(f"kk_gen.py --template compact --people 3 --num 1000 --seed 2 --exclude"
             f" {out}/test.jsonl --out {out}/train.jsonl")
    ask = f"--data {out}/test.jsonl --n 2 --temperature 1 --max-new-tokens 300"
    call(f"sample.py --model {base} {ask} --out {out}/before.jsonl")
    show_answers(f"{folder}/before.jsonl", "The base")
    if not os.path.exists(f"{folder}/{name}/model"):
        resume = " --resume" if run_is_begun(f"{folder}/{name}") else ""
        call(f"grpo.py --model {base} --data {out}/train.jsonl --out {out}/{name}"
             f" --steps {settings.steps} --seed {settings.seed} --prompts 16 --group 8"
             " --temperature 1 --lr 3e-4 --warmup 4 --max-prompt-tokens 200 --max-new-tokens 300"
             f" --kl-every 0{resume}")
    call(f"sample.py --model {out}/{name}/model {ask} --out {out}/{name}/after.jsonl")
    show_answers(f"{folder}/{name}/after.jsonl", f"After {settings.steps} steps of GRPO")
    print("Compare the shares of the styles. GRPO teaches no new one: it makes the one that is mostly"
          f"\nright the usual one. Every answer of every step is in {folder}/{name}/rollouts.")


if __name__ == "__main__":
    command(main, parse(Settings, __doc__))
