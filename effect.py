"""Sample effect: how much would an example help, if the model were trained on it?

    python effect.py --model runs/base/model --test data/held_out.jsonl --data a.jsonl b.jsonl
    python effect.py --model Qwen2.5-1.5B --test test.jsonl --data pool.jsonl --select best.jsonl \
        --share 0.25 --per-problem 1

J is the mean reward of the model's own answers to the test problems. G is its gradient, estimated
from K answers o_1 ... o_K to each problem, with rewards r_1 ... r_K:

    G = mean over problems, mean over k of  A_k * grad log p(o_k)               `reward_gradient`
    A_k = r_k - mean of the other answers' r                                    `leave_one_out`

One small step along the gradient of log p(o) raises J in proportion to the effect of o:

    effect(o) = < grad log p(o), G >  =  d/ds log p(o) at weights theta + s G, at s = 0    `effects`

The second form is why an effect is cheap. It needs no gradient of the example: it is how fast
log p(o) grows when the weights move along G, and one pass gives that for a whole batch. `jvp`
(Jacobian-vector product) carries this slope through the forward pass (forward-mode
differentiation). `difference` takes (log p at theta + s G  -  log p at theta - s G) / 2s, in fp32.
SFT on a dataset raises J in proportion to its mean effect, for a small step. RL on a problem goes
along the mean over k of A_k * grad log p(o_k), with answers o_k to it. So a problem has an effect,
too: the mean over k of A_k * effect(o_k) (`problem_pool`, --problems). Only the cosine with G needs
an example's own gradient; so it is computed for a few of each file (--cosines).

From the paper (arXiv 2505.17988, first version): the idea, and that it is an inner product of
gradients. Its code holds none of it, so all that is said here is our reading. To choose RL problems
by such a product: GradAlign (2602.21492), CROPI (2510.26491). An answer from which G was computed
would have an effect that is too large, since G contains its own gradient. So --data and --problems
may not hold problems of --test.
"""
from dataclasses import dataclass, field, replace

from engine.flags import command, limits, parse
from engine.prompts import TEMPLATES
from engine.settings import Machine


@dataclass(kw_only=True)
class Settings(Machine):
    model: str                      # model directory: effects are at these weights
    test: str                       # problems whose reward is to grow
    data: list[str] = field(default_factory=list)   # JSONL: prompt and response, or rollouts
    problems: str = ""              # problems for RL, each of which gets an effect
    limit: int = limits(0, at_least=0)      # use the first so many problems of --test; 0: all
    group: int = limits(16, at_least=2)     # answers to each of them
    temperature: float = limits(1.0, above=0)       # of these answers
    max_new_tokens: int = limits(4096, at_least=1)  # longest answer
    max_length: int = limits(5000, at_least=2)      # longer examples are left out
    method: str = limits("auto", one_of=("auto", "jvp", "difference"))  # auto: jvp on cuda,
    #                                 difference on a CPU
    halves: bool = True             # effects with each half of G apart: twice the work, and shows
    #                                 how noisy G is
    cosines: int = limits(32, at_least=0)   # examples of each file whose own gradient is computed,
    #                                 for its cosine with G
    all_cosines: bool = False       # compute the cosine of every example: slow
    # ---- the choice
    select: str = ""                # write the examples with the highest effect here
    by: str = limits("effect", one_of=("effect", "per_token", "cosine"))    # what is to be high
    share: float = limits(0.0, at_least=0, at_most=1)   # keep this share of all examples; 0: all
    lowest: bool = False            # the lowest instead, to compare with
    per_problem: int = limits(0, at_least=0)    # at most so many with the same id; 0: all
    # ---- the run
    out: str = ""                   # directory for summary.json and NAME.effects.jsonl
    template: str = limits("chat", one_of=TEMPLATES)    # prompts of official problem files
    seed: int = limits(0, at_least=0)  # of the answers, and of which examples --cosines takes


if __name__ == "__main__":      # before torch is imported: --help and a wrong flag answer at once
    settings = parse(Settings, __doc__)

import os
import sys

import numpy
import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

from engine.batches import Sequence, micro_batches, pass_tokens, response_logprobs
from engine.directions import changed_weights, inner
from engine.examples import Dataset, read_datasets
from engine.files import check_output, write_json, write_jsonl
from engine.problems import read_problems
from engine.processes import fit_machine
from engine.tables import agreement, effects_table, gradient_line, histogram, standard_error
from engine.tokenizer import encode_prompts, load_tokenizer, response_text, stop_ids
from model import Config, load
from sample import generate, release
from verify import reward


# ---- the gradient of the reward --------------------------------------------------------------
def leave_one_out(rewards: Tensor) -> Tensor:
    """Each reward less the mean of the others' in its group, [P, K] -> [P, K]."""
    K = rewards.shape[-1]
    if K < 2:
        raise ValueError("group = 1 has no others to compare with: at least 2")
    # r_k - mean of the others  =  (r_k - mean of all) * K / (K - 1)
    return (rewards - rewards.mean(-1, keepdim=True)) * K / (K - 1)


def sample_answers(model, tokenizer, problems: list[dict], settings):
    """K answers to each problem: their sequences [problem][K], and their rewards [problems, K]."""
    prompts = encode_prompts(tokenizer, [problem["prompt"] for problem in problems])
    groups = generate(model, prompts, n=settings.group, max_new_tokens=settings.max_new_tokens,
                      seed=settings.seed, temperature=settings.temperature,
                      stop=stop_ids(model, tokenizer), progress=True)
    release(model)
    sequences = [[Sequence(numpy.array(prompt + one.tokens, dtype=numpy.int32), len(prompt))
                  for one in group] for prompt, group in zip(prompts, groups)]
    rewards = [[reward(problem, response_text(tokenizer, one), one.finished) for one in group]
               for problem, group in zip(problems, groups)]
    return sequences, torch.tensor(rewards, dtype=torch.float64)


def weighted_gradient(model, sequences, weights, settings, temperature=1.0) -> dict[str, Tensor]:
    """The gradient of the sum of weight * log p(response), fp32, by parameter."""
    model.zero_grad()
    used = [i for i, weight in enumerate(weights) if weight]
    for some in batches(model, [sequences[i] for i in used], settings, "gradient"):
        indices = [used[i] for i in some]
        logp, _ = response_logprobs(model, [sequences[i] for i in indices], pack=False,
                                    temperature=temperature)
        weight = torch.tensor([weights[i] for i in indices], device=logp.device)
        (logp.sum(-1).double() * weight).sum().backward()
    gradient = {name: torch.zeros_like(p) if p.grad is None else p.grad
                for name, p in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    return gradient


def batches(model, sequences, settings, name: str):
    """Groups of indices for one pass each, similar lengths together, with a bar."""
    lengths = [len(one.tokens) for one in sequences]
    groups = micro_batches(lengths, pass_tokens(settings, model.head_weight.is_cuda),
                           pack=False)
    with tqdm(total=len(sequences), desc=name, unit=" examples", leave=False, delay=1) as bar:
        for group in groups:
            yield group
            bar.update(len(group))


def reward_gradient(model, problems: list[dict], tokenizer, settings) -> tuple[list[dict], dict]:
    """G as two halves from different problems (G is their mean), and how well these agree."""
    if len(problems) < 2:
        raise ValueError("one test problem has no two halves: at least 2")
    sequences, rewards = sample_answers(model, tokenizer, problems, settings)
    A = leave_one_out(rewards)
    if not A.any():
        how = ("all answers to the test problems are right" if rewards.all() else
               "no answer to the test problems is right" if not rewards.any() else
               "to each test problem all answers are right or all are wrong")
        raise ValueError(f"{how}: the reward has no gradient here (other problems, or a larger"
                         " --group, may have one)")
    halves = []
    for first in (0, 1):
        answers = [one for group in sequences[first::2] for one in group]
        weights = A[first::2] / (A.numel() / 2)     # so G is the mean over an odd number, too
        halves.append(weighted_gradient(model, answers, weights.flatten().tolist(), settings,
                                        settings.temperature))
    # With G = (a + b) / 2: <a, a>, <b, b> and <a, b> give its length and the cosine of its halves.
    aa, bb, ab = (inner(halves[i], halves[j]) for i, j in ((0, 0), (1, 1), (0, 1)))
    cosine = ab / (aa * bb) ** 0.5 if aa and bb else 0.0
    return halves, {"problems": len(problems), "answers": rewards.numel(),
                    "reward": float(rewards.mean()), "norm": (aa + bb + 2 * ab) ** 0.5 / 2,
                    "used": int((A != 0).any(-1).sum()), "split_half_cosine": cosine}


# ---- effects ---------------------------------------------------------------------------------
def by_jvp(model, sequences, G, settings, values, temperature) -> None:
    """Give every weight the rate of change G (its tangent). PyTorch then returns the rate of change
    of log p: the effect."""
    with forward_ad.dual_level(), sdpa_kernel(SDPBackend.MATH), changed_weights(
            model, lambda name, p: forward_ad.make_dual(p.detach(), G[name].to(p.dtype))):
        for indices in batches(model, sequences, settings, "effects"):
            logp, _ = response_logprobs(model, [sequences[i] for i in indices], False, temperature)
            values[indices] = forward_ad.unpack_dual(logp).tangent.double().sum(-1).cpu().numpy()


STEP = 4e-5     # s times the norm of G, as a share of the norm of all weights (results/effect.md)


def by_difference(model, sequences, G, settings, values, temperature) -> None:
    """A step along G and a step back. A central difference: its error is O(step squared)."""
    size = sum(p.detach().double().square().sum() for p in model.parameters()) ** 0.5
    step = STEP * float(size) / inner(G, G) ** 0.5
    compute_dtype, model.compute_dtype = model.compute_dtype, None      # in fp32
    try:
        for sign in (1, -1):
            with changed_weights(model, lambda name, p: p.detach() + sign * step * G[name]):
                for indices in batches(model, sequences, settings, "effects"):
                    logp, _ = response_logprobs(model, [sequences[i] for i in indices], False,
                                                temperature)
                    values[indices] += sign / (2 * step) * logp.double().sum(-1).cpu().numpy()
    finally:
        model.compute_dtype = compute_dtype


@torch.no_grad()
def effects(model, sequences: list[Sequence], G: dict[str, Tensor], settings,
            temperature=1.0) -> numpy.ndarray:
    """The effect of each example, [n] float64: how fast log p(response) grows along G."""
    values = numpy.zeros(len(sequences))
    on_cuda = model.head_weight.is_cuda
    jvp = settings.method == "jvp" or settings.method == "auto" and on_cuda
    if inner(G, G):
        (by_jvp if jvp else by_difference)(model, sequences, G, settings, values, temperature)
    return values


# ---- datasets --------------------------------------------------------------------------------
@dataclass
class Pool(Dataset):
    """What may be trained on. Training on row i moves the weights along the gradient of the sum of
    weights[i, k] * log p(sequences[i, k]): one sequence of weight 1 for an example of SFT."""
    weights: numpy.ndarray          # [rows, K]; the sequences are in one list, row by row
    temperature: float = 1.0        # of the log-probs

    def effects(self, model, G, settings) -> numpy.ndarray:
        """The effect of each row."""
        values, used = numpy.zeros(self.weights.size), numpy.flatnonzero(self.weights)
        values[used] = effects(model, [self.sequences[i] for i in used], G, settings,
                               self.temperature)
        return (self.weights * values.reshape(self.weights.shape)).sum(1)

    def norm(self, model, i: int, settings) -> float:
        """The length of the gradient of row i: a backward pass."""
        K = self.weights.shape[1]
        gradient = weighted_gradient(model, self.sequences[i * K:(i + 1) * K],
                                     self.weights[i].tolist(), settings, self.temperature)
        return inner(gradient, gradient) ** 0.5


def problem_pool(model, problems: list[dict], tokenizer, settings) -> Pool:
    """Problems for RL, with K answers to each and their advantages. Where all are right, or all are
    wrong, there is nothing to learn: the effect is 0."""
    other_noise = replace(settings, seed=settings.seed + 1)     # than that of the answers in G
    sequences, rewards = sample_answers(model, tokenizer, problems, other_noise)
    rows = [{**problem, "solved": float(r.mean())} for problem, r in zip(problems, rewards)]
    name, _ = os.path.splitext(os.path.basename(settings.problems))
    return Pool(name, rows, [one for group in sequences for one in group],
                leave_one_out(rewards).numpy() / settings.group, settings.temperature)


def measure(model, dataset: Pool, G, halves, settings) -> tuple[dict, list[dict]]:
    """A dataset's row of the table, and the effect of each of its examples or problems."""
    by_halves = {}
    if settings.halves:
        a, b = (dataset.effects(model, half, settings) for half in halves)
        values, by_halves = (a + b) / 2, {"agreement": agreement(a, b),
                                          "by_halves": [float(a.mean()), float(b.mean())]}
    else:
        values = dataset.effects(model, G, settings)
    lengths = numpy.array([one.trained for one in dataset.sequences])
    lengths = lengths.reshape(dataset.weights.shape).mean(1)
    examples = [{"id": name, "effect": float(value), "per_token": float(value / n),
                 "length": round(n)} for name, value, n in zip(dataset.ids(), values, lengths)]
    row = {"data": dataset.name, "n": len(values), "effect": float(values.mean()),
           "standard_error": standard_error(values, dataset.ids(), settings.seed),
           "per_token": float(values.sum() / lengths.sum()),
           "positive": float((values > 0).mean()), "length": float(lengths.mean()), **by_halves}
    chosen = numpy.arange(len(values)) if settings.all_cosines else numpy.random.default_rng(
        settings.seed).permutation(len(values))[:settings.cosines]
    if len(chosen):
        norm_of_G = inner(G, G) ** 0.5
        for i in tqdm(chosen, desc="cosines", leave=False, delay=1):
            size = dataset.norm(model, i, settings)
            examples[i]["cosine"] = float(values[i] / (size * norm_of_G)) if size else 0.0
        row["cosine"] = float(numpy.mean([examples[i]["cosine"] for i in chosen]))
    return row, examples


def best(examples: list[dict], settings) -> list[dict]:
    """The examples that --select asks for, the highest first (or the lowest)."""
    kept, count = [], {}
    for row in sorted(examples, key=lambda row: row[settings.by], reverse=not settings.lowest):
        count[row["id"]] = count.get(row["id"], 0) + 1
        if not settings.per_problem or count[row["id"]] <= settings.per_problem:
            kept.append(row)
    if settings.share:
        kept = kept[:max(1, round(settings.share * len(examples)))]
    return kept


# ---- the command -----------------------------------------------------------------------------
def check(settings) -> None:
    """ValueError for settings that do not fit together."""
    if not (settings.data or settings.problems):
        raise ValueError("give --data, or --problems, or both")
    if settings.by == "cosine" and not settings.all_cosines:
        raise ValueError("--by cosine needs the cosine of every example: --all-cosines")
    if bool(settings.select) != bool(settings.share or settings.per_problem):
        raise ValueError("--select FILE goes with --share or --per-problem")
    paths = [*settings.data, settings.problems]
    stems = [os.path.splitext(os.path.basename(path))[0] for path in paths]
    if settings.out and len(set(stems)) < len(stems):
        raise ValueError(f"files of the same name cannot share --out: {' '.join(paths)}")


def main(settings) -> None:
    check(settings)
    config, tokenizer = Config.load(settings.model), load_tokenizer(settings.model)
    device, dtype = fit_machine(settings, config)
    problems = read_problems(settings.test, settings.template)[:settings.limit or None]
    tested = {str(one["id"]) for one in problems}
    datasets = [Pool(**vars(one), weights=numpy.ones((len(one.rows), 1)))
                for one in read_datasets(settings, tokenizer, config, tested)]
    for_rl = read_problems(settings.problems, settings.template) if settings.problems else []
    if both := [one["id"] for one in for_rl if str(one["id"]) in tested]:
        raise ValueError(f"{settings.problems}: {both[0]} is a problem of {settings.test}, too")
    for path in filter(None, (settings.select, settings.out and settings.out + "/summary.json")):
        check_output(path, [settings.test, settings.problems, *settings.data])
    model = load(settings.model, device)
    model.compute_dtype = None if dtype == torch.float32 else dtype
    model.checkpointing = device != "cpu"       # The backward passes of G need it for memory.
    halves, about_G = reward_gradient(model, problems, tokenizer, settings)
    print(gradient_line(about_G), file=sys.stderr)
    G = {name: (halves[0][name] + halves[1][name]) / 2 for name in halves[0]}
    if for_rl:
        datasets.append(problem_pool(model, for_rl, tokenizer, settings))
    rows, examples = zip(*[measure(model, dataset, G, halves, settings) for dataset in datasets])
    written = write(datasets, rows, examples, about_G, settings)
    print(effects_table(rows))
    print(histogram([(dataset.name, [one["effect"] for one in some])
                     for dataset, some in zip(datasets, examples)]) + written)


def write(datasets, rows, examples, about_G: dict, settings) -> str:
    """The files of --out and --select. Returns what to say about them."""
    if settings.out:
        for dataset, some in zip(datasets, examples):
            write_jsonl(os.path.join(settings.out, dataset.name + ".effects.jsonl"), some)
        write_json(os.path.join(settings.out, "summary.json"),
                   {"settings": vars(settings), "command": sys.argv, "gradient": about_G,
                    "data": rows})
    if settings.select:
        pool = [{**row, **one} for dataset, some in zip(datasets, examples)
                for row, one in zip(dataset.rows, some)]
        chosen = best(pool, settings)
        write_jsonl(settings.select, chosen)
        return (f"\n{settings.select}: {len(chosen):,} of {len(pool):,} examples, mean effect"
                f" {numpy.mean([row['effect'] for row in chosen]):+.4g}")
    return ""


if __name__ == "__main__":
    command(main, settings)
