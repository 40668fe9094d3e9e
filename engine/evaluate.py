"""Rollouts and how they are judged: the model's answers to held-out problems, and their numbers."""
import numpy

from engine.batches import Sequence
from engine.tokenizer import encode_prompts, response_text, stop_ids
from sample import generate, release
from verify import reward, styles, summary


def as_rollout(problem: dict, number: int, sample, text: str, r: float, step: int) -> dict:
    """A sampled answer with its problem and its reward r: a line of a rollouts file."""
    return {**problem, "sample": number, "response": text, "tokens": sample.tokens,
            "logprobs": sample.logprobs, "finished": sample.finished, "reward": r, "step": step}


def as_sequence(rollout: dict) -> Sequence:
    """The sampled token ids themselves. Text that is tokenised again may be other tokens."""
    prompt = rollout["prompt_tokens"]
    return Sequence(numpy.array(prompt + rollout["tokens"], dtype=numpy.int32), len(prompt))


def evaluate(model, tokenizer, problems: list[dict], ranks, settings) -> dict:
    """How many problems the model answers right: over all, by level, by style."""
    mine = range(len(problems))[ranks.rank::ranks.size]
    prompts = encode_prompts(tokenizer, [problems[i]["prompt"] for i in mine])
    groups = generate(model, prompts, n=settings.eval_n, temperature=settings.eval_temperature,
                      max_new_tokens=settings.eval_max_new_tokens, stop=stop_ids(model, tokenizer),
                      seed=settings.seed, indices=list(mine))
    release(model)                                          # training needs the memory
    answered = [[] for _ in mine]
    for i, group, rollouts in zip(mine, groups, answered):
        for number, sample in enumerate(group):
            text = response_text(tokenizer, sample)
            r = reward(problems[i], text, sample.finished)
            rollouts.append(as_rollout(problems[i], number, sample, text, r, 0))
    rows = [row for group in ranks.gather(answered) for row in group]
    return {**summary(rows), "by_level": by_level(rows), "styles": styles(rows)}


def by_level(rows: list[dict]) -> dict[str, float]:
    """Mean reward of the rollouts of each level."""
    levels = {}
    for row in rows:
        levels.setdefault(str(row["level"]), []).append(row["reward"])
    return {level: sum(rewards) / len(rewards) for level, rewards in sorted(levels.items())}


def mean(values) -> float:
    values = list(values)
    return sum(values) / len(values) if values else 0.0


def describe(groups: list[list[dict]]) -> dict:
    """What the sampled answers of a step are like."""
    rows = [row for group in groups for row in group]
    lengths = [len(row["tokens"]) for row in rows]
    return {"reward": mean(row["reward"] for row in rows),
            "by_level": by_level(rows), "styles": styles(rows),
            "equal_groups": mean(len({row["reward"] for row in group}) == 1 for group in groups),
            "length": mean(lengths), "longest": max(lengths),
            "cut_off": mean(not row["finished"] for row in rows),
            # The mean of -log p of what was drawn is unbiased for the entropy.
            "entropy": -sum(sum(row["logprobs"]) for row in rows) / sum(lengths)}
