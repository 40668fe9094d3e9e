"""Sample effect: how much would an example help, if the model were trained on it?

    python effect.py --model runs/base/model --test data/held_out.jsonl --data a.jsonl b.jsonl
    python effect.py --model Qwen2.5-1.5B --test test.jsonl --data pool.jsonl --select best.jsonl \
        --quantile 0.25 --per-problem 1

J is the mean reward of the model's own answers to the test problems, G its gradient:

    G = mean over problems, mean over their K answers o_k of  A_k * grad log p(o_k)
    A_k = r_k - mean of the other answers' r            (leave one out: G is unbiased)

One small step along the gradient of log p(o) raises J in proportion to the effect of o:

    V(o) = < grad log p(o), G >  =  d/de log p(o) with weights w + e G, at e = 0

So no gradient of an example is ever made: V is what log p(o) gains when the weights lean towards G,
for a whole batch at once. `jvp` carries that slope through the forward pass; `difference` takes
(log p at w + e G  -  log p at w - e G) / 2e, in fp32. SFT on a dataset raises J by its mean effect
per example, GRPO by the mean of A * V over its samples: --rl puts both on one scale.

From the paper: the idea, and that it is a gradient inner product; its code holds none of it, so all
that is said here is our reading. An answer that built G has itself as a part of G, and so an effect
that is too large: problems of --test are refused as data.
"""
import contextlib
import os
import sys
from dataclasses import dataclass

import numpy
import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

import cli
import model as transformer
from sample import generate, load_tokenizer, release, response_text, stop_ids
from sft import (Sequence, as_sequences, end_token, micro_batches, read_texts, response_logprobs,
                 write_json)
from verify import reward


@dataclass
class Settings:
    model: str                      # model directory: effects are at these weights
    test: str                       # problems whose reward is to grow
    data: list[str]                 # JSONL: prompt and response; rollouts: their tokens
    out: str = ""                   # directory for summary.json and NAME.effects.jsonl
    limit: int = 0                  # use the first so many problems of --test; 0: all
    group: int = 16                 # answers to each of them, at least 2
    temperature: float = 1.0        # of these answers
    max_new_tokens: int = 4096      # longest answer
    max_length: int = 5000          # longer examples are left out
    method: str = "auto"            # jvp or difference; auto: jvp on cuda, difference on a CPU
    halves: bool = True             # against two halves of G apart: twice the work, shows its noise
    norms: int = 32                 # examples of each file whose gradients are made, for the cosine
    exact: bool = False             # make them all: a cosine for each example, and slow
    adam: int = 0                   # effect of Adam's step, its second moments from so many batches
    rl: str = ""                    # problems to sample too: the effect of a step of GRPO
    select: str = ""                # write the examples with the highest effect here
    by: str = "effect"              # effect, per_token or (with --exact) cosine: what is highest
    top: int = 0                    # so many of them,
    quantile: float = 0.0           # or this share of all,
    lowest: bool = False            # the lowest instead, to compare with
    per_problem: int = 0            # and at most so many with the same id; 0: as many as there are
    template: str = "chat"          # prompts of official files: chat, base or plain
    seed: int = 0
    micro_tokens: int = 16384       # tokens in one pass
    device: str = "auto"            # cpu, cuda; auto: cuda where there is one
    dtype: str = "auto"             # to compute in (weights: fp32); auto: bfloat16 on cuda


# ---- the gradient of the reward --------------------------------------------------------------
def leave_one_out(rewards: Tensor) -> Tensor:
    """Each reward less the mean of the others' in its group, [P, K] -> [P, K]."""
    K = rewards.shape[-1]
    if K < 2:
        raise ValueError("group = 1 has no others to compare with: at least 2")
    return (rewards - rewards.mean(-1, keepdim=True)) * K / (K - 1)


def answers(model, tokenizer, problems: list[dict], s, seed: int):
    """K answers to each problem: (sequences, rewards), [problem][K] both."""
    prompts = [tokenizer.encode(problem["prompt"], add_special_tokens=False).ids
               for problem in problems]
    sampled = generate(model, prompts, n=s.group, max_new_tokens=s.max_new_tokens, seed=seed,
                       temperature=s.temperature, stop=stop_ids(model, tokenizer), progress=True)
    release(model)
    sequences = [[Sequence(numpy.array(prompt + one.tokens, dtype=numpy.int32), len(prompt))
                  for one in group] for prompt, group in zip(prompts, sampled)]
    rewards = [[reward(problem, response_text(tokenizer, one), one.finished) for one in group]
               for problem, group in zip(problems, sampled)]
    return sequences, torch.tensor(rewards, dtype=torch.float64)


def weighted_gradient(model, sequences, weights, s, temperature=1.0) -> dict[str, Tensor]:
    """The gradient of the sum of weight * log p(sequence), fp32, by parameter."""
    model.zero_grad()
    used = [i for i, weight in enumerate(weights) if weight]
    for group in batches([sequences[i] for i in used], s, "gradient"):
        rows = [used[i] for i in group]
        logp, _, _ = response_logprobs(model, [sequences[i] for i in rows], False, temperature)
        weight = torch.tensor([weights[i] for i in rows], device=logp.device)
        (logp.sum(-1).double() * weight).sum().backward()
    found = {name: torch.zeros_like(p) if p.grad is None else p.grad
             for name, p in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    return found


def batches(sequences, s, what: str):
    """Groups of indices of at most micro_tokens tokens, similar lengths together, with a bar."""
    groups = micro_batches([len(one.tokens) for one in sequences], s.micro_tokens, pack=False)
    with tqdm(total=len(sequences), desc=what, unit=" examples", leave=False, delay=1) as bar:
        for group in groups:
            yield group
            bar.update(len(group))


def reward_gradient(model, problems: list[dict], tokenizer, s) -> tuple[list[dict], dict]:
    """G as two halves from different problems, G = their mean; and how well they agree."""
    if len(problems) < 2:
        raise ValueError("one test problem has no two halves: at least 2")
    sequences, rewards = answers(model, tokenizer, problems, s, s.seed)
    worth = leave_one_out(rewards)
    if not worth.any():
        how = ("all answers to the test problems are right" if rewards.all() else
               "no answer to the test problems is right" if not rewards.any() else
               "to each test problem all answers are right or all are wrong")
        raise ValueError(f"{how}: the reward has no gradient here (other problems, or a larger"
                         " --group, may have one)")
    halves = []
    for first in (0, 1):
        flat = [one for group in sequences[first::2] for one in group]
        weights = worth[first::2] / worth[first::2].numel()
        halves.append(weighted_gradient(model, flat, weights.flatten().tolist(), s, s.temperature))
    a, b, ab = (inner(halves[i], halves[j]) for i, j in ((0, 0), (1, 1), (0, 1)))
    cosine = ab / (a * b) ** 0.5 if a and b else 0.0
    return halves, {"problems": len(problems), "answers": rewards.numel(),
                    "reward": float(rewards.mean()), "norm": (a + b + 2 * ab) ** 0.5 / 2,
                    "used": int((worth != 0).any(-1).sum()), "split_half_cosine": cosine}


def inner(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    return float(sum((a[name].double() * b[name].double()).sum() for name in a))


def mean_of(halves: list[dict]) -> dict[str, Tensor]:
    return {name: (halves[0][name] + halves[1][name]) / 2 for name in halves[0]}


def answers_needed(cosine: float, wanted: float = 0.9) -> float:
    """How many times the answers, for G to have this cosine with the true gradient.

    With signal to noise S a half's cosine with another half is S / (S + 1), and the cosine of
    n times as many answers as in both with the truth is sqrt(2nS / (2nS + 1)).
    """
    if cosine <= 0:
        return float("inf")
    return wanted**2 / (1 - wanted**2) * (1 - cosine) / (2 * min(cosine, 1 - 1e-9))


# ---- effects ---------------------------------------------------------------------------------
@contextlib.contextmanager
def leaning(model, make):
    """The model with make(name, parameter) in the place of every parameter."""
    kept = [(*name.rpartition("."), parameter) for name, parameter in model.named_parameters()]
    try:
        for owner, dot, leaf, parameter in kept:
            model.get_submodule(owner)._parameters[leaf] = make(owner + dot + leaf, parameter)
        yield
    finally:
        for owner, _, leaf, parameter in kept:
            model.get_submodule(owner)._parameters[leaf] = parameter


def by_jvp(model, sequences, G, s, found):
    """Each weight carries G as its tangent; so log p comes out with its own."""
    with forward_ad.dual_level(), sdpa_kernel(SDPBackend.MATH), leaning(
            model, lambda name, p: forward_ad.make_dual(p.detach(), G[name].to(p.dtype))):
        for group in batches(sequences, s, "effects"):
            logp, _, _ = response_logprobs(model, [sequences[i] for i in group], False)
            found[group] = forward_ad.unpack_dual(logp).tangent.double().sum(-1).cpu().numpy()


STEP = 4e-5     # of the difference, as a share of the length of the weights: results/effect.md


def by_difference(model, sequences, G, s, found):
    """A step along G and a step back; the middle of both has no error of first order."""
    size = sum(p.detach().double().square().sum() for p in model.parameters()) ** 0.5
    step = STEP * float(size) / inner(G, G) ** 0.5
    compute_dtype, model.compute_dtype = model.compute_dtype, None
    try:
        for sign in (1, -1):
            with leaning(model, lambda name, p: p.detach() + sign * step * G[name]):
                for group in batches(sequences, s, "effects"):
                    logp, _, _ = response_logprobs(model, [sequences[i] for i in group], False)
                    found[group] += sign / (2 * step) * logp.double().sum(-1).cpu().numpy()
    finally:
        model.compute_dtype = compute_dtype


@torch.no_grad()
def effects(model, sequences: list[Sequence], G: dict[str, Tensor], s) -> numpy.ndarray:
    """V of each example, [n] float64: the change of log p(response) along G."""
    found = numpy.zeros(len(sequences))
    on_cuda = model.head_weight.is_cuda
    jvp = s.method == "jvp" or s.method == "auto" and on_cuda
    if inner(G, G):
        (by_jvp if jvp else by_difference)(model, sequences, G, s, found)
    return found


def norms(model, sequences, s) -> numpy.ndarray:
    """The length of grad log p of each example, one backward pass each."""
    found = []
    for one in tqdm(sequences, desc="norms", unit=" examples", leave=False, delay=1):
        g = weighted_gradient(model, [one], [1.0], s)
        found.append(inner(g, g) ** 0.5)
    return numpy.array(found)


def adam_scale(model, sequences, s) -> dict[str, Tensor]:
    """1 / sqrt(second moment) of gradients of batches of 32 examples, at these weights.

    Adam's step along a gradient g is g * scale; that it raises J by < g * scale, G > is the same
    as < g, G * scale >: the effect against another G.
    """
    rng = numpy.random.default_rng(s.seed)
    moment = None
    for _ in range(s.adam):
        chosen = rng.choice(len(sequences), min(32, len(sequences)), replace=False)
        g = weighted_gradient(model, [sequences[i] for i in chosen],
                              [1 / len(chosen)] * len(chosen), s)
        moment = {name: g[name].square() / s.adam + (moment[name] if moment else 0)
                  for name in g}
    return {name: torch.where(m > 0, 1 / (m.sqrt() + 1e-8), 0.0) for name, m in moment.items()}


# ---- tables ----------------------------------------------------------------------------------
def standard_error(values: numpy.ndarray, ids: list, seed: int, draws: int = 1000) -> float:
    """Of the mean, by bootstrap over problems: examples of one problem are drawn together."""
    number = {one: i for i, one in enumerate(dict.fromkeys(ids))}
    which = numpy.array([number[one] for one in ids])
    sums, counts = numpy.bincount(which, values), numpy.bincount(which)
    picks = numpy.random.default_rng(seed).integers(0, len(number), (draws, len(number)))
    means = sums[picks].sum(1) / counts[picks].sum(1)
    return float(means.std(ddof=1)) if len(number) > 1 else 0.0


def histogram(columns: list[tuple[str, numpy.ndarray]], bins: int = 24) -> str:
    """A line for each dataset, all on one axis; the outer 1 % are in the first and last bin."""
    low, high = numpy.quantile(numpy.concatenate([values for _, values in columns]), (0.01, 0.99))
    edges = numpy.linspace(low, high if high > low else low + 1, bins + 1)
    width = max(len(name) for name, _ in columns)
    lines = []
    for name, values in columns:
        counts, _ = numpy.histogram(values.clip(edges[0], edges[-1]), edges)
        marks = numpy.ceil(counts / counts.max() * 8).astype(int)
        lines.append(f"{name:{width}}  |{''.join(' ▁▂▃▄▅▆▇█'[mark] for mark in marks)}|")
    return "\n".join([*lines, f"{'':{width}}  {edges[0]:<+12.3g}{edges[-1]:>+14.3g}"])


def row_of(name, values, lengths, ids, s) -> dict:
    return {"data": name, "n": len(values), "effect": float(values.mean()),
            "standard_error": standard_error(values, ids, s.seed),
            "per_token": float(values.sum() / lengths.sum()),
            "positive": float((values > 0).mean()), "length": float(lengths.mean())}


def table(rows: list[dict]) -> str:
    lines = [["data", "n", "effect", "± s.e.", "per token", "cosine", "positive", "halves agree"]]
    for row in rows:
        lines.append([row["data"], f"{row['n']:,}", f"{row['effect']:+.4g}",
                      f"{row['standard_error']:.2g}", f"{row['per_token']:+.3g}",
                      f"{row['cosine']:+.4f}" if "cosine" in row else "-",
                      f"{row['positive']:.0%}",
                      f"{row['agreement']:.2f}" if "agreement" in row else "-"])
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join("  ".join(cell.rjust(width) if i else cell.ljust(width) for i, (cell, width)
                               in enumerate(zip(line, widths))) for line in lines)


def best(rows: list[dict], s) -> list[dict]:
    """The rows that --top or --quantile asks for, highest first (or lowest)."""
    kept, count = [], {}
    for row in sorted(rows, key=lambda row: row[s.by], reverse=not s.lowest):
        count[row["id"]] = count.get(row["id"], 0) + 1
        if not s.per_problem or count[row["id"]] <= s.per_problem:
            kept.append(row)
    return kept[:s.top or round(s.quantile * len(rows)) or None]


# ---- the command -----------------------------------------------------------------------------
def check(s) -> None:
    for name, fine in (("group", s.group >= 2), ("limit", s.limit >= 0), ("norms", s.norms >= 0),
                       ("temperature", s.temperature > 0), ("adam", s.adam >= 0),
                       ("method", s.method in ("auto", "jvp", "difference")),
                       ("by", s.by in ("effect", "per_token", "cosine")),
                       ("quantile", 0 <= s.quantile <= 1), ("top", s.top >= 0),
                       ("per_problem", s.per_problem >= 0), ("micro_tokens", s.micro_tokens > 0)):
        if not fine:
            raise ValueError(f"{name} = {getattr(s, name)} cannot be used")
    if s.by == "cosine" and not s.exact:
        raise ValueError("--by cosine needs the norm of every example: --exact")
    if bool(s.select) != bool(s.top or s.quantile or s.per_problem) or (s.top and s.quantile):
        raise ValueError("--select FILE goes with --top or --quantile, and --per-problem")
    stems = [os.path.splitext(os.path.basename(path))[0] for path in s.data]
    if s.out and len(set(stems)) < len(stems):
        raise ValueError(f"files of the same name cannot share --out: {' '.join(s.data)}")


def read_data(s, tokenizer, end: int, context: int, tested: set) -> list[tuple[str, list, list]]:
    """(name, rows, sequences) of each file, without the examples that are too long."""
    files = []
    for path in s.data:
        texts = read_texts([path])
        for place, row in texts:
            if str(row.get("id")) in tested:
                raise ValueError(f"{place}: {row['id']} is a problem of {s.test}: an answer to it"
                                 " may be part of G, and its effect would be too large")
        sequences = as_sequences(texts, tokenizer, end, min(s.max_length, context))
        files.append((os.path.splitext(os.path.basename(path))[0],
                      [texts[one.index][1] for one in sequences], sequences))
    return files


def measure(model, tokenizer, problems, fresh, files, s) -> tuple[dict, list[dict], list[tuple]]:
    """What G is like; a row for each file; and the values, (name, rows, values) of each."""
    halves, about = reward_gradient(model, problems, tokenizer, s)
    more = answers_needed(about["split_half_cosine"])
    print(f"G from {about['answers']:,} answers to {about['problems']} problems ({about['used']} of"
          f" them neither all right nor all wrong), reward {about['reward']:.3f}; its halves have"
          f" cosine {about['split_half_cosine']:.3f}: for a cosine of 0.9 with the truth it takes"
          f" about {more:.2g} times the answers")
    if s.adam:
        scale = adam_scale(model, [one for _, _, sequences in files for one in sequences], s)
        halves = [{name: half[name] * scale[name] for name in half} for half in halves]
    G = mean_of(halves)
    length_of_G = inner(G, G) ** 0.5

    def valued(sequences):
        if not s.halves:
            return effects(model, sequences, G, s), {}
        a, b = (effects(model, sequences, half, s) for half in halves)
        spread = a.std() * b.std()
        agree = float(((a - a.mean()) * (b - b.mean())).mean() / spread) if spread else 0.0
        return (a + b) / 2, {"agreement": agree, "by_halves": [float(a.mean()), float(b.mean())]}

    rows, values = [], []
    for name, lines, sequences in files:
        V, halved = valued(sequences)
        lengths = numpy.array([len(one.tokens) - one.start for one in sequences])
        ids = [str(line.get("id", i)) for i, line in enumerate(lines)]
        row = row_of(name, V, lengths, ids, s) | halved
        chosen = numpy.arange(len(V)) if s.exact else numpy.random.default_rng(s.seed).permutation(
            len(V))[:s.norms]
        found = [{"id": one, "effect": float(v), "per_token": float(v / n), "length": int(n)}
                 for one, v, n in zip(ids, V, lengths)]
        if len(chosen):
            sizes = norms(model, [sequences[i] for i in chosen], s)
            for i, size in zip(chosen, sizes):
                found[i]["cosine"] = float(V[i] / (size * length_of_G)) if size else 0.0
            row["cosine"] = float(numpy.mean([found[i]["cosine"] for i in chosen]))
        rows.append(row)
        values.append((name, lines, found))
    if fresh:
        sequences, rewards = answers(model, tokenizer, fresh, s, s.seed + 1)
        A = leave_one_out(rewards) * (s.group - 1) / s.group        # reward less the group's mean
        A = A / (rewards.std(-1, keepdim=True) + 1e-6)
        V, halved = valued([one for group in sequences for one in group])
        lengths = numpy.array([len(one.tokens) - one.start for group in sequences for one in group])
        ids = [problem["id"] for problem in fresh for _ in range(s.group)]
        rows.append(row_of("rl: A * V", V * A.flatten().numpy(), lengths, ids, s) | {
            "by_halves": halved.get("by_halves")})
    return about, rows, values


def run(s) -> None:
    check(s)
    device, dtype = cli.device_and_dtype(s.device, s.dtype)
    config, tokenizer = transformer.Config.load(s.model), load_tokenizer(s.model)
    problems = cli.read_problems(s.test, s.template)[:s.limit or None]
    fresh = cli.read_problems(s.rl, s.template) if s.rl else []
    tested = {str(problem["id"]) for problem in problems}
    if shared := tested & {str(problem["id"]) for problem in fresh}:
        raise ValueError(f"{s.rl}: {sorted(shared)[0]} is a problem of {s.test}: an answer to it"
                         " may be part of G, and its effect would be too large")
    end = end_token(tokenizer, transformer.read_files(s.model))
    files = read_data(s, tokenizer, end, config.max_position_embeddings, tested)
    for path in filter(None, (s.select, s.out and os.path.join(s.out, "summary.json"))):
        cli.check_output(path)
    model = transformer.load(s.model, device)
    model.compute_dtype = None if dtype == torch.float32 else dtype
    model.checkpointing = device != "cpu"       # the backward passes of G; effects have none
    about, rows, values = measure(model, tokenizer, problems, fresh, files, s)
    print(table(rows))
    print(histogram([(name, numpy.array([one["effect"] for one in found]))
                     for name, _, found in values]))
    if s.out:
        for name, _, found in values:
            cli.write_jsonl(os.path.join(s.out, name + ".effects.jsonl"), found)
        write_json(os.path.join(s.out, "summary.json"),
                   {"settings": vars(s), "command": sys.argv, "gradient": about, "data": rows})
    if s.select:
        pool = [{**line, **one} for _, lines, found in values for line, one in zip(lines, found)]
        chosen = best(pool, s)
        cli.write_jsonl(s.select, chosen)
        print(f"{s.select}: {len(chosen):,} of {len(pool):,} examples, mean effect"
              f" {numpy.mean([row['effect'] for row in chosen]):+.4g}")


def main():
    settings = cli.parse(Settings, __doc__)
    try:
        run(settings)
    except (ValueError, OSError, torch.OutOfMemoryError) as error:
        cli.stop(" ".join(str(error).split()))
    except KeyboardInterrupt:
        cli.stop("stopped: nothing was written")


if __name__ == "__main__":
    main()
