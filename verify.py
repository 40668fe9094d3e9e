"""Rewards by rule: is this response right? Plain Python. Nothing that a model writes is executed.

    python verify.py rollouts.jsonl [--out table.json]

prints, for each task and level: accuracy with its 95 % interval, the share of responses that were
cut off, their mean length in tokens and, of several samples to a problem, pass@k and majority@k.
Rewards are computed anew by the rules below. If the file holds others, that is said.

The rule is that of the paper (arXiv 2505.17988, its code): a response gets 1.0 if it ended by
itself and its *last* `\\boxed{}` is right, else 0.0. The format alone gets nothing. In the paper, a
K&K answer must match the gold one piece by piece, and MATH goes to sympy. Here other ways to write
the same answer also count, by `roles` below and by `math_equal`:

    text -> LaTeX tokens -> a tree -> numbers -> equal?      (answers/: latex, tree, numbers, equal)

No text raises an error or hangs. What cannot be read, or is too long, deep or large, equals only
itself. If the rules cannot decide, the answer is wrong: what is rewarded is what a policy learns.
"""
import math
import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction

from tqdm import tqdm

from answers.equal import math_equal
from engine.files import check_output, numbered_jsonl, write_jsonl
from engine.flags import command, parse
from kk_gen import style_of


@dataclass(kw_only=True)
class Settings:
    rollouts: str                   # JSONL: problems with response, tokens, finished (sample.py)
    out: str | None = None          # also write the table here, as one JSON object


# ---- which box counts ------------------------------------------------------------------------
def last_boxed(text: str) -> str | None:
    """What is in the last closed `\\boxed{}` or `\\fbox{}` (MATH also has `\\boxed 2`), the innermost.

    One pass with a stack of the open braces is linear in any depth. A box that is cut off before
    its brace closes does not count. An escaped brace is text.
    """
    opened, start, end = [], -1, -1         # opened: where each open box began; -1: a plain brace
    marks = r"\\(?:boxed|fbox)(?:\s*\{|\s+(-?\d+)(?=\.?\s*(?:\$|\\[\])]|\Z)))|\\.|[{}]"
    for match in re.finditer(marks, text, re.DOTALL):
        token = match[0]
        if match[1]:
            start, end = match.span(1)
        elif token == "}":                  # Keep the box that begins last.
            if opened and (begin := opened.pop()) > start:
                start, end = begin, match.start()
        elif token == "{" or len(token) > 2:    # { or \boxed{; an escaped character has length 2
            opened.append(match.end() if len(token) > 1 else -1)
    return None if start < 0 else text[start:end]


# ---- Knights & Knaves ------------------------------------------------------------------------
CLAIM = re.compile(r"(?P<name>[^()]+?)(?:(?: is | ?[:=] ?| ?\()(?:(?:an?|the) )?(?P<role>[\w-]+)\)?"
                   r"| are (?:both |all )?(?P<plural>[\w-]+)s)")


def roles(box: str) -> dict[str, str] | None:
    """{"zoey": "knight", ...} if every part of the box gives a new person a role, else None."""
    text = unicodedata.normalize("NFC", unicodedata.normalize("NFC", box).casefold())
    text = re.sub(r"\\(?:begin|end)\s*\{[a-z]+\*?\}(?:\{[lcr|]*\})?|\\item\b|\\\\", "\n", text)
    text = re.sub(r"\\(?:text|mbox|mathrm|mathbf)[a-z]*|\\q?quad|\*\*|[{}$&~]|\\[,;! ]", " ", text)
    role_of, waiting = {}, []               # waiting: the names before "are", as in "A and B are"
    parts = re.split(r"[,;\n]|\band\b|(?<![\d.])\.(?!\S)|\s(?=\(?\d+[.)]\s)", text)
    for part in filter(str.strip, parts):
        part = re.sub(r"^(?:[-*•]|\(?\d+[.)])(?: |$)", "", " ".join(part.split()))      # bullets
        if claim := CLAIM.fullmatch(part):
            new, waiting = [*waiting, claim["name"]], []
            everybody = [*role_of, *new]
            if len(new) > 1 and not claim["plural"] or len({*everybody}) < len(everybody):
                return None                                  # other words, or somebody twice
            role_of |= dict.fromkeys(new, claim["role"] or claim["plural"])
        elif part:                                           # nothing is between a comma and "and"
            waiting.append(part)
    return None if waiting else role_of or None


def kk_correct(response: str, gold: str) -> bool:
    """Does the last box name exactly the gold's people, each once, each with the gold's role?"""
    box = last_boxed(response)
    return box is not None and (claimed := roles(box)) is not None and claimed == roles(gold)


def readable_gold(problem: dict) -> bool:
    """Can an answer be right? Not if a K&K gold is unreadable: a name may hold a comma or "and"."""
    gold = problem["gold"]
    return bool(roles(gold) if problem["task"] == "kk" else gold.strip())


# ---- rewards ---------------------------------------------------------------------------------
TASKS = ("kk", "math", "gsm8k")


def reward(problem: dict, response: str, finished: bool) -> float:
    """1.0 if the response ended by itself and its last box is right by its task's rule, else 0.0.

    `finished`: the sampler drew an end token. One that is spelled out as text, or added to a
    truncated answer, does not count. The same rule trains and evaluates.
    """
    if problem["task"] not in TASKS:
        raise ValueError(f"unknown task {problem['task']!r}: one of {', '.join(TASKS)}")
    if problem["task"] == "kk":
        return float(finished and kk_correct(response, problem["gold"]))
    box = last_boxed(response) if finished else None
    return float(box is not None and math_equal(box, problem["gold"]))


# ---- from rewards to numbers -----------------------------------------------------------------
def pass_at_k(n: int, c: int, k: int) -> float:
    """The chance that k of n samples, drawn without replacement, hold one of the c right ones:
    1 - C(n-c, k) / C(n, k) is unbiased, unlike 1 - (1 - c/n)^k."""
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f"pass@{k} of {n} samples, {c} right: needs 0 <= c <= n and 1 <= k <= n")
    return float(1 - Fraction(math.comb(n - c, k), math.comb(n, k)))


def majority(answers: list, rights: list, same_answer=math_equal) -> float:
    """Is the most frequent answer right? Equal answers vote together. None does not vote. If several
    answers have the most votes, the result is their mean. Without any vote it is 0.0."""
    classes = []                                             # [an answer, votes, right votes]
    for answer, right in [v for v in zip(answers, rights, strict=True) if v[0] is not None]:
        known = next((c for c in classes if c[0] == answer or same_answer(answer, c[0])), None)
        if known is None:
            classes.append(known := [answer, 0, 0.0])
        known[1] += 1
        known[2] += right
    most = max((votes for _, votes, _ in classes), default=0)
    tied = [right / votes for _, votes, right in classes if votes == most]
    return sum(tied) / len(tied) if tied else 0.0


def wilson(share: float, n: float, z: float = 1.959964) -> tuple[float, float]:
    """95 % interval of a share seen in n trials. Unlike share ± 2σ, it also holds near 0 and 1."""
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def effective_samples(groups: list[list[float]]) -> float:
    """How many independent samples would say as much as these rewards, one list per problem.

    Samples of one problem resemble each other. So estimate the variance of the mean p from the
    problems, and solve p (1 - p) / size = variance, between the numbers of problems and samples.
    """
    samples, problems = sum(map(len, groups)), len(groups)
    p = sum(map(sum, groups)) / samples
    variance = sum((sum(group) - p * len(group)) ** 2 for group in groups) / samples**2
    variance *= problems / max(problems - 1, 1)
    return min(samples, max(problems, p * (1 - p) / variance)) if variance else problems


def vote(rollout: dict) -> str | None:
    """The answer that a rollout votes for: its box, or what a K&K box says, in one order."""
    box = last_boxed(rollout["response"]) if rollout["finished"] else None
    return str(sorted((roles(box) or {}).items())) if box and rollout["task"] == "kk" else box


def summary(rollouts: list[dict]) -> dict:
    """One row of the table, from scored rollouts."""
    problems = {}
    for rollout in rollouts:
        problems.setdefault(str([rollout.get("step"), rollout["id"]]), []).append(rollout)
    groups = [[rollout["reward"] for rollout in group] for group in problems.values()]
    n, fewest = len(rollouts), min(map(len, groups))
    share = sum(map(sum, groups)) / n
    low, high = wilson(share, effective_samples(groups))
    row = {"problems": len(groups), "n": n, "accuracy": share, "low": low, "high": high,
           "cut_off": sum(not rollout["finished"] for rollout in rollouts) / n,
           "length": sum(len(rollout["tokens"]) for rollout in rollouts) / n}
    votes = [(list(map(vote, group)), str.__eq__ if group[0]["task"] == "kk" else math_equal)
             for group in problems.values()]
    for k in [2**i for i in range(fewest.bit_length()) if fewest > 1]:  # 1, 2, 4 ... up to fewest
        chances = [pass_at_k(len(group), int(sum(group)), k) for group in groups]
        shares = []
        for (answers, same_answer), rights in zip(votes, groups):   # k samples at a time
            runs = [slice(i, i + k) for i in range(0, len(rights) - k + 1, k)]
            won = [majority(answers[run], rights[run], same_answer) for run in runs]
            shares.append(sum(won) / len(won))
        row |= {f"pass@{k}": sum(chances) / len(groups), f"majority@{k}": sum(shares) / len(groups)}
    return row


def style(rollout: dict) -> str:
    """How an answer is written. K&K: one of kk_gen.STYLES, mixed or other."""
    if rollout["task"] == "kk":
        return style_of(rollout["response"])
    if "operations" in rollout:                 # a question of scripts/sums.py
        return {0: "prose", 1: "equation"}.get(rollout["response"].count("="), "steps")
    if re.search(r"^[ \t]*(?:```|def \w+\()|<llm-code>", rollout["response"], re.MULTILINE):
        return "code"
    before, box, _ = rollout["response"].rpartition("\\boxed")
    return "prose" if before.strip(" $\n") or not box else "bare"


def styles(rollouts: list[dict]) -> dict[str, dict[str, float]]:
    """Each style's share of scored rollouts, and what share of its answers is right."""
    rewards = {}
    for rollout in rollouts:
        rewards.setdefault(style(rollout), []).append(rollout["reward"])
    return {name: {"share": len(group) / len(rollouts), "right": sum(group) / len(group)}
            for name, group in sorted(rewards.items())}


# ---- tables ----------------------------------------------------------------------------------
def aligned(lines: list[list[str]], left: int) -> str:
    """Rows of cells in columns of equal width; the first `left` columns begin at the left."""
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join("  ".join(cell.ljust(width) if i < left else cell.rjust(width)
                               for i, (cell, width) in enumerate(zip(line, widths))).rstrip()
                     for line in lines)


def table(rows: list[dict]) -> str:
    """The rows as aligned text, with pass@k and majority@k where there are any."""
    ks = sorted({name for row in rows for name in row if "@" in name},
                key=lambda name: (name[0] == "m", int(name.split("@")[1])))
    lines = [["task", "level", "n", "accuracy", "95 % interval", "cut off", "length", *ks]]
    for row in rows:
        level = "-" if row["level"] is None else str(row["level"])
        lines.append([row["task"], level, str(row["n"]), f"{row['accuracy']:.1%}",
                      f"{row['low']:.1%} - {row['high']:.1%}", f"{row['cut_off']:.1%}",
                      f"{row['length']:.0f}", *(f"{row[k]:.1%}" if k in row else "" for k in ks)])
    return aligned(lines, left=2)


def rows_of(rollouts: list[dict]) -> list[dict]:
    """A row for each task and level, and one for all levels where a task has several."""
    tasks, rows = {}, []
    for rollout in rollouts:
        tasks.setdefault(rollout["task"], {}).setdefault(rollout.get("level"), []).append(rollout)
    for task, levels in tasks.items():
        if len(levels) > 1:
            levels["all"] = sum(levels.values(), [])
        for level in sorted(levels, key=lambda x: (x in (None, ""), isinstance(x, str), x or 0)):
            group = levels[level]
            rows.append({"task": task, "level": level, **summary(group), "styles": styles(group)})
    return rows


# ---- command ---------------------------------------------------------------------------------
FIELDS = {"task": str, "gold": str, "response": str, "finished": bool, "tokens": list}


def read_rollouts(path: str) -> list[dict]:
    """The rollouts in a file of sample.py or grpo.py. ValueError names the line that is none."""
    rollouts = []
    for number, rollout in numbered_jsonl(path, "id", *FIELDS):
        for field, kind in FIELDS.items():
            if not isinstance(rollout[field], kind):
                raise ValueError(f"{path}:{number}: {field!r} is not a {kind.__name__}")
        if rollout["task"] not in TASKS:
            raise ValueError(f"{path}:{number}: task {rollout['task']!r} is none of {TASKS}")
        if not isinstance(rollout.get("level"), int | float | str | None):
            raise ValueError(f"{path}:{number}: 'level' is neither a number nor a string")
        if not readable_gold(rollout):
            raise ValueError(f"{path}:{number}: 'gold' is empty or, for kk, not like A is a knight")
        rollouts.append(rollout)
    if not rollouts:
        raise ValueError(f"{path}: holds no rollouts")
    return rollouts


def score(rollouts: list[dict]) -> int:
    """Give every rollout its reward. Returns how many had another one stored."""
    differ = 0
    for rollout in tqdm(rollouts, desc="rewards", unit=" responses", leave=False, delay=1):
        stored = rollout.get("reward")
        rollout["reward"] = reward(rollout, rollout["response"], rollout["finished"])
        differ += stored is not None and stored != rollout["reward"]
    return differ


def main(settings: Settings):
    if settings.out:
        check_output(settings.out, [settings.rollouts])
    rollouts = read_rollouts(settings.rollouts)
    differ, rows = score(rollouts), rows_of(rollouts)
    print(table(rows))
    for row in rows:
        level = "" if row["level"] is None else f", level {row['level']}"
        print(f"{row['task']}{level}: " + ", ".join(
            f"{name} {group['share']:.1%} (right {group['right']:.1%})" for name, group in sorted(
                row["styles"].items(), key=lambda item: -item[1]["share"])))
    if differ:
        print(f"{differ} of {len(rollouts)} stored rewards differ from these rules")
    if settings.out:
        write_jsonl(settings.out, [{"rollouts": settings.rollouts, "rows": rows,
                                    "stored_differ": differ}])


if __name__ == "__main__":
    settings = parse(Settings, __doc__, positional="rollouts")
    command(main, settings)
