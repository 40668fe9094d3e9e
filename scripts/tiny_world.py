"""Documents of the tiny world: K&K puzzles answered in several styles, in stated shares.

    python scripts/tiny_world.py --num 100000 --shares guess=60 table=40 --right 30 \\
        --people 3=80 4=20 --exclude data/test.jsonl --out data/world.jsonl

guess is a bare answer, and a careless one: right in --right of 100, else random roles (which may
be right by chance). The other styles reason as kk_gen.py does and are always right. Puzzles may
come again, in another style or not, as in any corpus; those of --exclude never do. Shares are
exact: of --num documents, or of every 100 until these hold --tokens tokens (as --tokenizer counts,
with an end token for each), so that corpora of different styles can be of one length.
"""
import random
from dataclasses import dataclass, field

from tqdm import tqdm

import conductor  # so that Python finds the files above scripts/
import kk_gen
from engine.files import check_output, write_jsonl
from engine.flags import command, limits, parse

BLOCK = 100     # documents in which the shares are exact, where tokens are counted


@dataclass(kw_only=True)
class Settings:
    shares: list[str]                           # of the styles, as guess=60 table=40
    out: str                                    # the JSONL file to write
    num: int = limits(0, at_least=0)            # so many documents
    tokens: int = limits(0, at_least=0)         # or hundreds of them until they hold so many tokens
    tokenizer: str = "assets/tiny_base"         # directory of the tokenizer that counts these
    people: list[str] = field(default_factory=lambda: ["3=100"])    # shares of the sizes
    right: float = limits(30.0, at_least=0, at_most=100)    # guesses of 100; the rest is random
    seed: int = limits(0, at_least=0)
    exclude: list[str] = field(default_factory=list)    # K&K files whose puzzles must not come


def exactly(flag: str, shares: list[str], known, total: int) -> list[str]:
    """From shares such as ["guess=60", "table=40"] so many names in just these shares."""
    given, ends, names = f"{flag} {' '.join(shares)}", 0.0, []
    try:
        share_of = {name: float(share) for name, share in (one.split("=") for one in shares)}
    except ValueError:
        raise ValueError(f"{given}: write it as {known[0]}=60 {known[1]}=40") from None
    if set(share_of) - set(known) or min(share_of.values()) < 0 or sum(share_of.values()) <= 0:
        raise ValueError(f"{given}: not negative, and of {', '.join(known)}")
    for name, share in share_of.items():
        ends += share / sum(share_of.values())
        names += [name] * (round(ends * total) - len(names))
        if share and name not in names:
            raise ValueError(f"{given}: less than one {name} in {total} documents")
    return names


def documents(settings: Settings, rng, count: int, excluded: set):
    """`count` documents in exactly the shares asked for, in random order."""
    words = kk_gen.KNIGHT_KNAVE
    styles = exactly("--shares", settings.shares, kk_gen.STYLES, count)
    sizes = exactly("--people", settings.people, [str(n) for n in range(2, 13)], count)
    rng.shuffle(styles)
    rng.shuffle(sizes)
    for style, people in zip(styles, map(int, sizes)):
        draws = (kk_gen.sample_puzzle(rng, people) for _ in range(kk_gen.GIVE_UP_AFTER))
        statements = next((one for one in draws if not excluded or kk_gen.canonical_form(
            one, commute=True) not in excluded), None)
        if statements is None:
            raise ValueError(f"{kk_gen.GIVE_UP_AFTER:,} puzzles of {people} people in a row are"
                             " excluded")
        steps, names = kk_gen.chain_of_thought(statements, style), "ABCDEFGHIJKL"[:people]
        gold = kk_gen.answer_text(steps[-1][1], names, words)
        if style == "guess" and rng.random() >= settings.right / 100:
            steps = [("answer", tuple(rng.random() < 0.5 for _ in range(people)))]
        yield {"prompt": kk_gen.compact_prompt(statements, names, words), "style": style,
               "response": "\n".join(kk_gen.step_text(step, statements, names, words, True)
                                     for step in steps), "gold": gold, "level": people}


def main(settings: Settings) -> None:
    if bool(settings.num) == bool(settings.tokens):
        raise ValueError("give either --num or --tokens")
    check_output(settings.out)
    excluded = {kk_gen.canonical_form(statements, commute=True)
                for path in settings.exclude for _, statements in kk_gen.read_puzzles(path)}
    if settings.tokens:
        from engine.tokenizer import load_tokenizer     # It imports torch, which takes seconds.
        encode = load_tokenizer(settings.tokenizer).encode
    rng, lines, tokens = random.Random(f"tiny world, seed {settings.seed}"), [], 0
    with tqdm(total=settings.num or settings.tokens, disable=None, unit_scale=True,
              unit=" documents" if settings.num else " tokens") as bar:
        while tokens < settings.tokens or not lines:
            for row in documents(settings, rng, settings.num or BLOCK, excluded):
                lines.append({"id": f"world-{settings.seed}-{len(lines)}", **row})
                if settings.tokens:
                    tokens += sum(len(encode(row[part]).ids) for part in ("prompt", "response")) + 1
                bar.update(1 if settings.num else tokens - bar.n)
    write_jsonl(settings.out, lines)
    styles = [row["style"] for row in lines]
    print(f"{settings.out}: {len(lines):,} documents, " + f"{tokens:,} tokens, " * (tokens > 0)
          + ", ".join(f"{style} {styles.count(style):,}" for style in sorted(set(styles))))


if __name__ == "__main__":
    command(main, parse(Settings, __doc__))
