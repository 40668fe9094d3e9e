"""Documents of the tiny world: K&K puzzles answered in several styles, in stated shares.

    python scripts/tiny_world.py --num 100000 --shares guess=60 table=40 --right 30 \\
        --exclude data/test.jsonl --out data/world.jsonl

guess is a bare answer, and a careless one: right in --right of 100, else random roles (which may be
right by chance). table and search reason as kk_gen.py does and are always right. Puzzles may come
again, in another style or not, as in any corpus; those of --exclude never do. Shares are exact.
"""
import os
import random
import sys
from dataclasses import dataclass, field

from tqdm import tqdm

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import cli  # noqa: E402
import kk_gen  # noqa: E402


@dataclass
class Settings:
    num: int                        # documents
    shares: list[str]               # of the styles, as guess=60 table=40
    out: str                        # the JSONL file to write
    people: str = "3"               # how many people a puzzle has, as in kk_gen.py
    right: float = 30.0             # of 100 guesses, so many are right and the rest random
    seed: int = 0
    exclude: list[str] = field(default_factory=list)    # K&K files whose puzzles must not come


def styles_of(settings) -> list[str]:
    """One style for each document, in exact shares, in order."""
    try:
        shares = {style: float(share) for style, share in (s.split("=") for s in settings.shares)}
    except ValueError:
        cli.stop(f"--shares {' '.join(settings.shares)}: write them as guess=60 table=40")
    if set(shares) - set(kk_gen.STYLES) or min(shares.values()) < 0 or sum(shares.values()) <= 0:
        cli.stop(f"--shares: not negative, of {', '.join(kk_gen.STYLES)}")
    ends, styles = 0.0, []
    for style, share in shares.items():
        ends += share / sum(shares.values())
        styles += [style] * (round(ends * settings.num) - len(styles))
    return styles


def main():
    settings = cli.parse(Settings, __doc__)
    counts = kk_gen.people_counts(settings.people)
    if settings.num < 1 or not 0 <= settings.right <= 100:
        cli.stop("--num is at least 1, --right from 0 to 100")
    cli.check_output(settings.out)
    excluded = {kk_gen.canonical_form(statements, commute=True)
                for path in settings.exclude for _, statements in kk_gen.read_puzzles(path)}
    rng = random.Random(f"tiny world, seed {settings.seed}")
    words = kk_gen.role_words(kk_gen.ROLES[0], False)
    styles, lines = styles_of(settings), []
    rng.shuffle(styles)
    for i, style in enumerate(tqdm(styles, unit=" documents", disable=None)):
        people = rng.choice(counts)
        statements = kk_gen.sample_puzzle(rng, people)
        while excluded and kk_gen.canonical_form(statements, commute=True) in excluded:
            statements = kk_gen.sample_puzzle(rng, people)
        steps, names = kk_gen.chain_of_thought(statements, style), "ABCDEFGHIJKL"[:people]
        gold = kk_gen.answer_text(steps[-1][1], names, words)
        if style == "guess" and rng.random() >= settings.right / 100:
            steps = [("answer", tuple(rng.random() < 0.5 for _ in range(people)))]
        prompt = "".join(f"{name}: {kk_gen.claim_text(statement, names, words, True)}\n"
                         for name, statement in zip(names, statements)) + "?\n"
        lines.append({"id": f"world-{settings.seed}-{i}", "prompt": prompt, "style": style,
                      "response": "\n".join(kk_gen.step_text(step, statements, names, words, True)
                                            for step in steps), "gold": gold, "level": people})
    cli.write_jsonl(settings.out, lines)
    print(f"{settings.out}: {len(lines):,} documents, "
          + ", ".join(f"{style} {styles.count(style):,}" for style in sorted(set(styles))))


if __name__ == "__main__":
    main()
