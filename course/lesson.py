"""What the lessons share: puzzles, answers, training, checks of exercises, and pictures as text.

The methods are in the files above this folder (model.py, grpo.py, ...). Nothing here is needed to
understand them. COURSE_QUICK=1 makes the lessons train for a few steps only, to test that they run.
"""
import glob
import os
import random
import runpy
import sys
import traceback

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)        # so that Python finds the files above this folder

import torch

import kk_gen
from engine.tokenizer import encode_prompts, load_tokenizer, response_text, stop_ids
from grpo import advantages, grpo_loss
from model import load, logprobs, save
from sample import generate, release
from sft import sft_loss
from verify import reward, styles

torch.set_num_threads(1)        # The model is so small that a second thread would only wait.
SOLUTIONS = os.path.join(ROOT, "course", "solutions", "*.py")
BASE = os.path.join(ROOT, "assets", "tiny_base")
POLICY = os.path.join(ROOT, "runs", "course", "policy")
QUICK = os.environ.get("COURSE_QUICK") == "1"
tokenizer = load_tokenizer(BASE)


def steps(full: int, quick: int) -> int:
    """How many steps, puzzles or answers to use: `quick` if COURSE_QUICK=1."""
    return quick if QUICK else full


# ---- puzzles and answers ---------------------------------------------------------------------
def puzzles(count: int, seed: int, people: int = 3) -> list[dict]:
    """Knights & Knaves puzzles. The fields are those of kk_gen.py's files."""
    rng, names = random.Random(f"course {seed}"), "ABCDEFGH"[:people]
    problems = []
    for number in range(count):
        statements = kk_gen.sample_puzzle(rng, people)
        [solution] = kk_gen.solve(statements)
        problems.append({
            "id": f"{seed}-{number}", "task": "kk", "level": people, "statements": statements,
            "prompt": kk_gen.compact_prompt(statements, names, kk_gen.KNIGHT_KNAVE),
            "gold": kk_gen.answer_text(solution, names, kk_gen.KNIGHT_KNAVE)})
    return problems


def written(problem: dict, style: str) -> dict:
    """A right answer to a puzzle in a style of kk_gen.STYLES, as a rollout to train on."""
    names = "ABCDEFGH"[:problem["level"]]
    chain = kk_gen.chain_of_thought(problem["statements"], style)
    text = "\n".join(kk_gen.step_text(step, problem["statements"], names, kk_gen.KNIGHT_KNAVE, True)
                     for step in chain)
    [prompt, answer] = encode_prompts(tokenizer, [problem["prompt"], text])
    return {**problem, "prompt_tokens": prompt, "response": text, "finished": True, "reward": 1.0,
            "tokens": [*answer, END]}


def answers(model, problems: list[dict], n: int = 1, seed: int = 0, temperature: float = 1.0,
            rule=reward) -> list[dict]:
    """n answers to each problem, as rollouts: the n answers to the first problem come first.

    A rollout is the problem with prompt_tokens, tokens, response, finished and reward.
    """
    prompts = encode_prompts(tokenizer, [problem["prompt"] for problem in problems])
    groups = generate(model, prompts, n=n, max_new_tokens=300, temperature=temperature,
                      stop={END}, seed=seed)
    release(model)                          # the memory of the key/value cache
    rollouts = []
    for problem, prompt, group in zip(problems, prompts, groups):
        for one in group:
            text = response_text(tokenizer, one)
            rollouts.append({**problem, "prompt_tokens": prompt, "tokens": one.tokens,
                             "response": text, "finished": one.finished,
                             "reward": float(rule(problem, text, one.finished))})
    return rollouts


def right(rollouts: list[dict]) -> float:
    """The share of answers that verify.py calls right, whatever rule gave them their reward."""
    return sum(reward(one, one["response"], one["finished"]) for one in rollouts) / len(rollouts)


# ---- training --------------------------------------------------------------------------------
def batches(rollouts: list[dict], size: int = 16):
    """Yield (which, tokens, mask): prompts with their answers, padded, a few of like length.

    which: their numbers in the list. mask [B, T-1]: True where a token of an answer is predicted.
    """
    def length(i):
        return len(rollouts[i]["prompt_tokens"]) + len(rollouts[i]["tokens"])
    order = sorted(range(len(rollouts)), key=length)
    for first in range(0, len(order), size):
        which = order[first:first + size]
        tokens = torch.zeros(len(which), length(which[-1]), dtype=torch.int64)
        mask = torch.zeros(len(which), length(which[-1]) - 1, dtype=torch.bool)
        for row, i in enumerate(which):
            prompt, answer = rollouts[i]["prompt_tokens"], rollouts[i]["tokens"]
            tokens[row, :length(i)] = torch.tensor(prompt + answer)
            mask[row, len(prompt) - 1:length(i) - 1] = True
        yield which, tokens, mask


def optimizer_for(model, lr: float):
    return torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.5, 0.999), weight_decay=0.01)


def move(model, optimizer) -> None:
    """One step of the optimizer along the gradients, which must not be longer than 1."""
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()


def grpo_step(policy, optimizer, rollouts: list[dict], group: int) -> None:
    """One update of GRPO. Lesson 4 explains it line by line."""
    A = advantages(torch.tensor([one["reward"] for one in rollouts]).view(-1, group)).flatten()
    total = sum(len(one["tokens"]) for one in rollouts)
    for which, tokens, mask in batches(rollouts):
        if A[which].any():                  # An advantage of 0 has no gradient.
            new = logprobs(policy, tokens, where=mask)
            grpo_loss(new, new.detach(), A[which], mask, denominator=total).backward()
    move(policy, optimizer)


def reinforce(policy, count: int, rule=reward, seed: int = 0, lr: float = 3e-4, show=None) -> None:
    """Train a policy by GRPO: `count` steps of 16 puzzles with 8 answers each."""
    optimizer, prompts, group = optimizer_for(policy, lr), steps(16, 4), steps(8, 4)
    for step in range(count):
        optimizer.param_groups[0]["lr"] = lr * min(1, (step + 1) / 4)       # begin with small steps
        problems = puzzles(prompts, seed=1000 * (seed + 1) + step)
        rollouts = answers(policy, problems, group, seed=step, rule=rule)
        if show:
            show(step, rollouts)
        grpo_step(policy, optimizer, rollouts, group)


def fine_tune(model, examples: list[dict], epochs: int = 4, lr: float = 5e-4, size: int = 16):
    """Train a model by SFT on the answers of these rollouts. Returns the model."""
    optimizer, rng = optimizer_for(model, lr), random.Random(0)
    count = max(1, len(examples) * epochs // size)
    order = [one for _ in range(epochs) for one in rng.sample(examples, len(examples))]
    for step in range(count):
        optimizer.param_groups[0]["lr"] = lr * (1 - step / count)           # down to zero
        for _, tokens, mask in batches(order[step * size:(step + 1) * size]):
            sft_loss(logprobs(model, tokens, where=mask), mask).backward()
        move(model, optimizer)
    return model


def base():
    """The tiny base model, untrained by the lessons."""
    return load(BASE)


def policy():
    """The policy that GRPO made of the base. The first lesson that needs it trains it."""
    if os.path.exists(POLICY) and not QUICK:
        return load(POLICY)
    print("Training the policy by GRPO: about 40 seconds, only this once.", flush=True)
    model = base()
    reinforce(model, steps(12, 1))
    save_policy(model)
    return model


def save_policy(model) -> None:
    """Keep the policy for the lessons that begin with it."""
    if not QUICK:
        save(model, POLICY)


END = min(stop_ids(base(), tokenizer))      # the token that ends an answer


# ---- exercises -------------------------------------------------------------------------------
verdicts = {}               # name of the exercise -> what its check said


def check(function, *cases):
    """Try an exercise, and say what is right or wrong, and why.

    A case is (arguments, expected result, what to think about if the result is another one). In the
    place of the expected result may be a function: it says what is wrong with a result, or "".
    Returns the function if every case is right, else the solution: then the lesson can go on.
    """
    name = function.__name__
    faults = [fault_of(function, *case) for case in cases]
    said = next(filter(None, faults), f"right, in all {len(cases)} cases.")
    if all("returns nothing" in (fault or "") for fault in faults):
        said = "not done yet. The lesson goes on with the solution."
    elif any(faults):
        said += " Until then the lesson uses the solution."
    verdicts[name] = said
    print(f"    [{' ' if any(faults) else 'x'}] {name}: {said}")
    return solution(name) if any(faults) else function


def solution(name: str):
    """The function of this name in one of the files of solutions."""
    found = [runpy.run_path(path).get(name) for path in sorted(glob.glob(SOLUTIONS))]
    return next(filter(None, found))


def fault_of(function, arguments: tuple, expected, why: str) -> str | None:
    call = f"{function.__name__}({', '.join(shown(one) for one in arguments)})"
    try:
        got = function(*arguments)
    except Exception as error:          # whatever the student's code raises is shown, and no more
        line = traceback.extract_tb(error.__traceback__)[-1].lineno
        return f"{call} stops with {type(error).__name__}: {error} (line {line}). {why}"
    if got is None:
        return f"not right yet. {call} returns nothing. {why}"
    if isinstance(got, list | tuple) and any(map(torch.is_tensor, arguments)):
        return f"not right yet. {call} is a list, and the lesson needs a tensor: torch.tensor(...)."
    if callable(expected):
        wrong = expected(got)
        return f"not right yet. {call} is {shown(got)}. {wrong} {why}" if wrong else None
    if not same(got, expected):
        return f"not right yet. {call} is {shown(got)}, and should be {shown(expected)}. {why}"
    return None


def same(got, expected) -> bool:
    """Equal, numbers up to rounding. Lists, tuples and tensors of numbers are compared as such."""
    try:
        a, b = (torch.as_tensor(one, dtype=torch.float64) for one in (got, expected))
    except (TypeError, ValueError, RuntimeError):
        return got == expected
    return a.shape == b.shape and torch.allclose(a, b, atol=1e-4, rtol=1e-4)


def differentiable(result) -> str:
    """For `check`: what is wrong with a result that PyTorch cannot differentiate."""
    tracked = torch.is_tensor(result) and result.requires_grad
    return "" if tracked else "PyTorch cannot differentiate this."


def shown(value) -> str:
    """A value as short text."""
    if isinstance(value, torch.Tensor):
        value = value.tolist()
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(shown, value)) + "]"
    text = repr(value)
    return text if len(text) <= 120 else text[:117] + "..."


# ---- pictures --------------------------------------------------------------------------------
def bar(value: float, most: float = 1.0, width: int = 40) -> str:
    """A bar of # for a value between 0 and `most`."""
    return "#" * round(width * max(0.0, min(1.0, value / most)))


def bars(values: dict, form: str = "{:6.1%}", width: int = 40) -> None:
    """A line for each value: its name, the value, a bar."""
    longest, most = max(map(len, map(str, values))), max(*values.values(), 1e-9)
    for name, value in values.items():
        print(f"    {name!s:{longest}} {form.format(value)} {bar(value, most, width)}")


def show_styles(rollouts: list[dict]) -> None:
    """The share of each style of answers, and how much of it is right."""
    for name, of in sorted(styles(rollouts).items(), key=lambda item: -item[1]["share"]):
        print(f"    {name:7} {of['share']:4.0%} of the answers, {of['right']:4.0%} of them right"
              f"  {bar(of['share'])}")
