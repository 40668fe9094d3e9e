"""GRPO with rule-based rewards: sample groups of answers, verify them, update; and again.

    python grpo.py --model runs/sft/model --data data/kk_train.jsonl --out runs/rl
    torchrun --nproc-per-node 2 grpo.py --model ...

For every prompt the policy draws a group of answers o_1 ... o_G, and the task's rule gives each a
reward r. An answer is worth what it is better than its group, and its tokens are made likelier by
that much:

    A_i = (r_i - mean r) / (std r + 1e-6)
    loss = - mean over tokens of  min(ratio * A, clip(ratio, 1 - c, 1 + c) * A)
    ratio = p_new(token) / p_old(token)

`advantages` and `grpo_loss` are these lines. With one update per batch of answers (the default, and
the paper's) the ratio is exactly 1: the loss is about 0 and says nothing, but its gradient is
- mean A * grad log p, that of sft.py with A as a further weight. An answer with A = 0 has no
gradient; it is counted, not computed.

From the paper: the defaults below, read from its code where the comment says so. Not from it: the
options, each with its own source; prompts are shuffled by (seed, epoch).
"""
import os
import sys
import time
from dataclasses import dataclass, field

import numpy
import torch
from torch import Tensor
from tqdm import tqdm

import cli
import model as transformer
from sample import (CPU_SLOTS, PREFILL_TOKENS, as_they_end, load_tokenizer, release, response_text,
                    slot_bytes, stop_ids)
from sft import (AT_LEAST, CHOICES, MAY_CHANGE, Order, Run, Sequence, accumulate, begin, by_level,
                 check_keep_at, check_settings, choose_plan, command, count_for, evaluate, files_of,
                 free_memory, learning_rate, parameters_in, read_eval, show_plan, token_weights)
from verify import reward, styles

ENOUGH = 256    # answers in the making that use a GPU well
ROUNDS = 10     # batches of prompts drawn at most for one step that resamples equal groups


@dataclass
class Settings:
    model: str                      # model directory to start from
    data: list[str]                 # problems (JSONL; ours, or official K&K, MATH or GSM8K files)
    out: str                        # run directory; the trained model will be in OUT/model
    steps: int = 100                # batches of answers (paper: 100 to 150)
    prompts: int = 128              # problems in a step (paper: 128)
    group: int = 8                  # answers to each (paper: 8)
    temperature: float = 0.7        # of sampling, and of the log-probs that train (paper: 0.7)
    max_prompt_tokens: int = 1024   # problems with longer prompts are left out (paper: 1024)
    max_new_tokens: int = 4096      # longest answer (paper: 4096)
    template: str = "chat"          # prompts of official files: chat, base or plain
    lr: float = 5e-6                # (paper: K&K 5e-6; MATH and after re-distillation B 2.5e-6)
    schedule: str = "constant"      # after the warm-up (paper: constant); cosine or linear to zero
    warmup: int = 8                 # steps before the full rate (paper: K&K 8, MATH 4)
    beta1: float = 0.5              # AdamW (paper: 0.5, 0.999, decay 0.01)
    beta2: float = 0.999
    weight_decay: float = 0.01
    clip_norm: float = 1.0          # longest gradient (paper: 1)
    updates: int = 1                # passes over a step's answers (paper: 1)
    minibatches: int = 1            # updates in a pass, each on its share of the prompts (paper: 1)
    clip: float = 0.2               # how far below 1 the ratio counts (paper: 0.2; idle here)
    clip_high: float | None = None  # how far above 1; none: as --clip (DAPO, 2503.14476: 0.28)
    std_norm: bool = True           # divide by the group's std (paper); no: Dr.GRPO, 2503.20783
    norm: str = "token"             # mean over all tokens (DAPO; what the paper did is not known);
    #                                 sequence: mean of answers' means (2402.03300); constant: sum
    #                                 over tokens / max_new_tokens (Dr.GRPO)
    kl: float = 0.0                 # weight of the k3 KL to the start (paper: 0; 2402.03300: 0.04)
    entropy_bonus: float = 0.0      # weight of the entropy (paper: 0; A3C, 1602.01783)
    cut_off: str = "zero"           # an answer cut off is worth 0 (paper); mask: and not trained on
    #                                 (DAPO); penalty: worth - cut_off_penalty
    cut_off_penalty: float = 0.5
    equal_groups: str = "keep"      # whose rewards are all equal: count (paper); drop: do not;
    #                                 resample: draw other prompts in their place (DAPO)
    seed: int = 0
    eval: str | None = None         # held-out problems: the share that is answered right
    eval_every: int = 10            # steps between two measurements; first and last are always
    eval_n: int = 1                 # samples per problem
    eval_temperature: float = 0.0   # 0: greedy (paper)
    eval_max_new_tokens: int = 4096     # (paper: 4096)
    kl_every: int = 10              # steps between two measurements of the KL to the start; or 0
    rollouts: int = -1              # write the answers of the last so many steps; -1: of all
    texts: int = 3                  # answers of each step to write out for reading
    save_every: int = 10            # steps between two checkpoints
    keep: int = 2                   # checkpoints to keep; OUT/best is kept besides
    keep_at: list[int] = field(default_factory=list)    # steps whose model stays, as OUT/step-N
    resume: bool = False            # go on from the last checkpoint in OUT
    micro_tokens: int = 16384       # tokens in one forward and backward pass; bounds the memory
    pack: bool = True               # sequences end to end in one row, not padded to the longest
    checkpointing: str = "auto"     # recompute activations: yes, no; auto: where memory is short
    offload: bool = False           # AdamW and its state in main memory, not on the GPU
    device: str = "auto"            # cpu, cuda; auto: cuda where there is one
    dtype: str = "auto"             # to compute in (weights: fp32); auto: bfloat16 on cuda


# ---- the method ------------------------------------------------------------------------------
def advantages(rewards: Tensor, std_norm: bool = True) -> Tensor:
    """What each answer is worth beside the others to its prompt, [P, G] -> [P, G]."""
    if rewards.shape[-1] < 2:
        raise ValueError("a group of one has nothing to be compared with: it takes at least 2")
    centred = rewards - rewards.mean(-1, keepdim=True)
    if std_norm:
        centred = centred / (rewards.std(-1, keepdim=True) + 1e-6)              # unbiased (paper)
    all_equal = (rewards == rewards[:, :1]).all(-1, keepdim=True)
    return centred.masked_fill(all_equal, 0.0)      # exactly, where the mean may be off by rounding


def grpo_loss(new: Tensor, old: Tensor, advantages: Tensor, mask: Tensor, clip: float = 0.2,
              norm: str = "token", total: float | None = None, clip_high: float | None = None,
              reference: Tensor | None = None, kl: float = 0.0, entropy: Tensor | None = None,
              entropy_bonus: float = 0.0) -> Tensor:
    """The loss of answers with token log-probs new and old [B, T], advantages [B], mask [B, T].
    Advantages may be those of tokens, [B, T], as ppo.py has them.

    total: the count that `norm` divides by, over the whole batch where this is a part of it.
    """
    A = advantages if advantages.dim() == 2 else advantages[:, None]
    clip_high = clip if clip_high is None else clip_high
    ratio = (new - old).masked_fill(~mask, 0.0).exp()                           # [B, T]
    gain = torch.min(ratio * A, ratio.clamp(1 - clip, 1 + clip_high) * A)
    if kl:
        gain = gain - kl * k3(new, reference, mask)
    if entropy_bonus:
        gain = gain + entropy_bonus * entropy
    return -(token_weights(mask, norm, total) * gain).sum()


def k3(new: Tensor, reference: Tensor, mask: Tensor) -> Tensor:
    """Schulman's estimate of KL(new, reference) from tokens drawn from new: never negative."""
    log_ratio = (reference - new).masked_fill(~mask, 0.0)
    return log_ratio.exp() - 1 - log_ratio


# ---- answers ---------------------------------------------------------------------------------
def answer(model, tokenizer, problems: dict[int, dict], step, slots, ranks, settings, show):
    """A group of rollouts for each of the problems, [problem][group]. These are keyed by their
    position in the endless shuffled list: the noise of an answer comes from it, seed and number.
    """
    mine = list(problems)[ranks.rank::ranks.size]
    groups = [[None] * settings.group for _ in mine]
    ends = as_they_end(model, [problems[at]["prompt_tokens"] for at in mine], n=settings.group,
                       indices=mine, seed=settings.seed, max_new_tokens=settings.max_new_tokens,
                       temperature=settings.temperature, stop=stop_ids(model, tokenizer),
                       slots=slots)
    for done, (i, j, sample) in enumerate(ends, 1):
        text, problem = response_text(tokenizer, sample), problems[mine[i]]
        groups[i][j] = {**problem, "sample": j, "response": text, "tokens": sample.tokens,
                        "logprobs": sample.logprobs, "finished": sample.finished,
                        "reward": reward(problem, text, sample.finished), "step": step}
        show(done, len(mine) * settings.group)
    return ranks.gather(groups)


def worth(row: dict, settings) -> float:
    """What an answer counts beside its group: its reward, less the penalty if it was cut off."""
    penalised = settings.cut_off == "penalty" and not row["finished"]
    return row["reward"] - settings.cut_off_penalty * penalised


def is_equal(group: list[dict], settings) -> bool:
    return len({worth(row, settings) for row in group}) == 1


def sequence_of(row: dict) -> Sequence:
    prompt = row["prompt_tokens"]
    return Sequence(numpy.array(prompt + row["tokens"], dtype=numpy.int32), len(prompt))


@dataclass
class Answer:
    """One answer as the update sees it."""
    sequence: Sequence
    advantage: float | Tensor       # of the answer, or of each token (ppo.py)
    logprobs: Tensor                # of its tokens when sampled, by the sampler


def to_train_on(groups: list[list[dict]], settings) -> list[list[Answer]]:
    """The groups' answers with their advantages; without those that are not to be trained on."""
    if not groups:
        return []
    values = torch.tensor([[worth(row, settings) for row in group] for group in groups])
    return [[Answer(sequence_of(row), value, torch.tensor(row["logprobs"]))
             for row, value in zip(group, found)
             if row["finished"] or settings.cut_off != "mask"]
            for group, found in zip(groups, advantages(values, settings.std_norm).tolist())]


# ---- the update ------------------------------------------------------------------------------
def padded(rows: list[Tensor], like: Tensor) -> Tensor:
    """Rows of unequal length as [B, T], 0 beyond their ends."""
    out = torch.zeros_like(like)
    for row, values in zip(out, rows):
        row[:len(values)] = values
    return out


def logprobs_of(model, ranks, sequences: list[Sequence], settings, forward=None) -> dict:
    """log p (or what `forward` computes) of the responses that this process trains on, by index."""
    found = {}

    def keep(indices, logp, mask, entropy):
        found.update((i, row[m]) for i, row, m in zip(indices, logp, mask))
        return logp.new_zeros(())
    with torch.no_grad():
        accumulate(model, ranks, sequences, settings, keep, settings.temperature, forward=forward)
    return found


def update(model, optimizer, ranks, groups: list[list[Answer]], lr: float, settings, reference):
    """All updates of a step; what they were like, averaged over tokens or updates."""
    s, batches = settings, []
    share = -(-len(groups) // s.minibatches)
    for first in range(0, len(groups), max(1, share)):
        answers = [answer for group in groups[first:first + share] for answer in group]
        total = len(answers) * s.max_new_tokens if s.norm == "constant" else \
            count_for(s.norm, [a.sequence for a in answers])
        if not (s.kl or s.entropy_bonus):                       # the others have no gradient
            answers = [a for a in answers if torch.as_tensor(a.advantage).any()]
        # One update: old and new are the same weights' log-probs, computed once.
        trained = [a.sequence for a in answers]
        old = logprobs_of(model, ranks, trained, s) if s.updates * s.minibatches > 1 else None
        ref = logprobs_of(reference, ranks, trained, s) if s.kl else None
        batches.append((answers, total, old, ref))

    sums = torch.zeros(4, dtype=torch.float64, device=ranks.device)     # tokens, clipped, gap, KL
    losses, norms, skipped = [], [], 0
    for answers, total, old, ref in batches * s.updates:
        def loss_of(indices, new, mask, entropy):
            before = new.detach() if old is None else padded([old[i] for i in indices], new)
            start = None if ref is None else padded([ref[i] for i in indices], new)
            A = padded([torch.as_tensor(answers[i].advantage).expand(len(answers[i].logprobs))
                        for i in indices], new)                                 # [B, T]
            with torch.no_grad():
                sampled = padded([answers[i].logprobs for i in indices], new)
                ratio = (new - before).exp()
                high = s.clip if s.clip_high is None else s.clip_high
                clipped = torch.where(A > 0, ratio > 1 + high, ratio < 1 - s.clip)
                sums.add_(torch.stack([x.double().sum() for x in (
                    mask, clipped & mask, (before - sampled).abs(),
                    k3(new, start, mask) if s.kl else mask.new_zeros(()))]))
            return grpo_loss(new, before, A, mask, s.clip, s.norm, total, s.clip_high, start, s.kl,
                             entropy, s.entropy_bonus)
        losses.append(accumulate(model, ranks, [a.sequence for a in answers], s, loss_of,
                                 s.temperature, bool(s.entropy_bonus)))
        norms.append(optimizer.update(lr, losses[-1]))
        skipped += optimizer.skipped > 0
    tokens, clipped, gap, kl = ranks.sum(sums.tolist())
    found = {"loss": mean(losses), "grad_norm": mean(norms), "skipped": skipped,
             "trained_tokens": int(tokens),
             "clip_fraction": clipped / max(1, tokens), "sampler_gap": gap / max(1, tokens)}
    return found | ({"kl": kl / max(1, tokens)} if s.kl else {})


def mean(values) -> float:
    values = list(values)
    return sum(values) / len(values) if values else 0.0


def kl_to_start(reference, ranks, rows: list[dict], settings) -> float:
    """Mean over sampled tokens of k3: how far the policy that sampled has moved from the start."""
    total = tokens = 0.0
    for i, start in logprobs_of(reference, ranks, [*map(sequence_of, rows)], settings).items():
        new = torch.tensor(rows[i]["logprobs"])
        total += float(k3(new, start.cpu(), torch.ones_like(new, dtype=torch.bool)).sum())
        tokens += len(new)
    total, tokens = ranks.sum([total, tokens])
    return total / max(1.0, tokens)


# ---- the command -----------------------------------------------------------------------------
def check_grpo(s, smallest_group: int = 2) -> None:
    """ValueError for settings that cannot be, before anything is loaded."""
    check_settings(s, {**CHOICES, "norm": ("token", "sequence", "constant"),
                       "cut_off": ("zero", "mask", "penalty"),
                       "equal_groups": ("keep", "drop", "resample")},
                   {**AT_LEAST, "steps": 1, "prompts": 1, "updates": 1, "minibatches": 1,
                    "max_prompt_tokens": 1, "max_new_tokens": 1, "kl": 0, "kl_every": 0,
                    "cut_off_penalty": 0, "rollouts": -1, "texts": 0})
    if s.group < smallest_group:
        raise ValueError(f"group = {s.group}: answers to a prompt are compared; at least 2")
    if not 0 < s.temperature < float("inf"):
        raise ValueError(f"temperature = {s.temperature}: must draw different answers")
    check_keep_at(s, s.steps)
    if s.prompts % s.minibatches:
        raise ValueError(f"prompts = {s.prompts} cannot be cut into {s.minibatches} minibatches")
    if not 0 < s.clip < 1 or not (s.clip_high is None or s.clip_high > 0):
        raise ValueError(f"clip = {s.clip}, clip_high = {s.clip_high}: between 0 and 1, above 0")


def read_training(settings, tokenizer) -> list[dict]:
    """The problems of --data with their prompt_tokens; those with long prompts are left out."""
    problems = []
    for path in settings.data:
        problems += cli.read_problems(path, settings.template)
    if not problems:
        raise ValueError(f"{' '.join(settings.data)}: no problems")
    for problem in problems:
        problem["prompt_tokens"] = tokenizer.encode(problem["prompt"], add_special_tokens=False).ids
    fitting = [p for p in problems if 0 < len(p["prompt_tokens"]) <= settings.max_prompt_tokens]
    if not fitting:
        raise ValueError(f"none of {len(problems)} prompts has 1 to {settings.max_prompt_tokens}"
                         " tokens")
    if len(fitting) < len(problems):
        print(f"{len(problems) - len(fitting)} of {len(problems)} problems are left out: prompts of"
              f" more than {settings.max_prompt_tokens} tokens", file=sys.stderr)
    return fitting


def plan(settings, config, dtype, ranks, prompt_tokens: int, run, room: float, critic=False):
    """Decide what `room` bytes are for: (slots to sample with, whether the sampler's cache may stay
    while training, whether to recompute activations)."""
    longest, each = prompt_tokens + settings.max_new_tokens, settings.prompts * settings.group
    P = parameters_in(config)
    slot = slot_bytes(config, longest, dtype)
    wanted = -(-settings.prompts // ranks.size) * settings.group
    if ranks.device.type == "cpu":
        wanted = min(wanted, CPU_SLOTS)
    beside = {"sampler's weights": 0 if dtype == torch.float32 else P * dtype.itemsize,
              "reference": P * dtype.itemsize if settings.kl else 0,
              "critic": 16 * P if critic else 0}
    train, recompute = choose_plan(config, settings, dtype, longest, each, room,
                                   sum(beside.values()) + min(wanted, ENOUGH) * slot)
    sample = {"weights": train["weights"], "AdamW": train["AdamW"], **beside,
              "prefill": slot_bytes(config, PREFILL_TOKENS, dtype)}
    slots = min(wanted, (room - sum(train.values()) - sum(beside.values())) // slot)
    stays = slots >= min(wanted, ENOUGH)
    if not stays:                                           # give it back before each update
        slots = max(1, min(wanted, (room - sum(sample.values())) // slot))
        beside["sampler's weights"] = 0
    slots = int(min(slots, run.state.get("slots", slots)))  # as many when it is resumed
    run.state["slots"] = slots
    cache = {f"cache of {slots} answers": slots * slot}
    show_plan("sample", sample | cache, room, run.first)
    show_plan("train", train | beside | (cache if stays else {}), room, run.first)
    return slots, stays, recompute


def start_model(settings, ranks, dtype):
    """The policy as it was before the first step, to compare with."""
    return transformer.load(settings.model, ranks.device, dtype).requires_grad_(False)


def describe(groups: list[list[dict]], settings) -> dict:
    """What the sampled answers of a step are like."""
    rows = [row for group in groups for row in group]
    lengths = [len(row["tokens"]) for row in rows]
    return {"reward": mean(row["reward"] for row in rows),
            "by_level": by_level(rows), "styles": styles(rows),
            "equal_groups": mean(is_equal(group, settings) for group in groups),
            "length": mean(lengths), "longest": max(lengths),
            "cut_off": mean(not row["finished"] for row in rows),
            # - log p of what was drawn: unbiased for the entropy of what it was drawn from
            "entropy": -sum(sum(row["logprobs"]) for row in rows) / sum(lengths)}


def write_answers(settings, step: int, groups: list[list[dict]]) -> None:
    """The rollouts of a step as JSONL, and a few of them to read."""
    name = os.path.join(settings.out, "{}", "step-{:06d}.{}")
    if settings.rollouts:
        rows = [{**row, "logprobs": [round(x, 5) for x in row["logprobs"]]}
                for group in groups for row in group]
        for row in rows:
            del row["prompt_tokens"]
        cli.write_jsonl(name.format("rollouts", step, "jsonl"), rows)
        old = name.format("rollouts", step - settings.rollouts, "jsonl")
        if settings.rollouts > 0 and os.path.exists(old):
            os.remove(old)
    if settings.texts:
        path = name.format("texts", step, "txt")
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w", encoding="utf-8", errors="replace") as file:
            for row in [group[0] for group in groups[:settings.texts]]:
                file.write(f"==== {row['id']}: reward {row['reward']:g}, {len(row['tokens'])}"
                           f" tokens{'' if row['finished'] else ', cut off'}; gold: {row['gold']}\n"
                           f"{row['prompt']}\n---- answer\n{row['response']}\n\n")


def train(settings, ranks, dtype, critic_of=None) -> None:
    """The loop. critic_of: makes the critic of ppo.py, whose `credit` then takes the place of
    `to_train_on`, and which learns after the policy."""
    check_grpo(settings, 1 if critic_of else 2)
    config, tokenizer = transformer.Config.load(settings.model), load_tokenizer(settings.model)
    if settings.max_prompt_tokens + settings.max_new_tokens > config.max_position_embeddings:
        raise ValueError(f"max_prompt_tokens + max_new_tokens = {settings.max_prompt_tokens} +"
                         f" {settings.max_new_tokens}: the model's context is"
                         f" {config.max_position_embeddings}")
    problems = read_training(settings, tokenizer)
    held_out = read_eval(settings, tokenizer, config)
    run = Run(settings, ranks, files_of(settings), MAY_CHANGE + ("rollouts", "texts") + (
        ("steps",) if settings.schedule == "constant" else ()))
    longest = max(len(problem["prompt_tokens"]) for problem in problems)
    slots, cache_stays, recompute = plan(settings, config, dtype, ranks, longest, run,
                                        free_memory(ranks.device), bool(critic_of))
    model, optimizer = begin(settings, ranks, run, config, None, dtype, recompute)
    reference = start_model(settings, ranks, dtype) if settings.kl else None
    critic = critic_of(model, ranks, settings, run) if critic_of else None
    order = Order(len(problems), settings.seed)
    if run.state["step"] == 0:
        run.state |= {"position": 0, "samples": 0, "tokens": 0}
        if held_out:
            run.log({"step": 0, "eval": evaluate(model, tokenizer, held_out, ranks, settings)})

    with tqdm(total=settings.steps, initial=run.state["step"], disable=not run.first,
              desc="grpo") as bar:
        shown = ""

        def show(done, total):
            if done % 64 == 0:
                bar.set_postfix_str(f"{shown}sampling {done}/{total}")

        for step in range(run.state["step"] + 1, settings.steps + 1):
            clock = [time.perf_counter()]
            chosen, sampled = [], []
            for _ in range(ROUNDS if settings.equal_groups == "resample" else 1):
                at = run.state["position"]
                run.state["position"] += settings.prompts
                sampled += answer(model, tokenizer, {at + i: problems[order[at + i]]
                                                     for i in range(settings.prompts)},
                                  step, slots, ranks, settings, show)
                chosen = [group for group in sampled
                          if settings.equal_groups == "keep" or not is_equal(group, settings)]
                if len(chosen) >= settings.prompts:
                    break
            if not cache_stays:
                release(model)
            clock.append(time.perf_counter())

            lr = learning_rate(step - 1, settings.steps, settings.lr, settings.schedule,
                               settings.warmup)
            answers = (critic.credit if critic else to_train_on)(chosen[:settings.prompts], settings)
            trained = update(model, optimizer, ranks, answers, lr, settings, reference)
            if critic:
                trained |= critic.learn(answers, settings)
            clock.append(time.perf_counter())

            rows = [row for group in sampled for row in group]
            tokens = sum(len(row["tokens"]) for row in rows)
            run.state["samples"] += len(rows)
            run.state["tokens"] += tokens
            row = {"step": step, "epoch": round(run.state["position"] / len(problems), 4),
                   "samples": run.state["samples"], "tokens": run.state["tokens"],
                   **describe(sampled, settings), **trained, "lr": lr}
            if settings.kl_every and step % settings.kl_every == 0 and not settings.kl:
                row["kl"] = kl_to_start(start_model(settings, ranks, dtype), ranks, rows, settings)
            if held_out and (step % settings.eval_every == 0 or step == settings.steps):
                row["eval"] = evaluate(model, tokenizer, held_out, ranks, settings)
                run.keep_best(model, row["eval"]["accuracy"])
            if run.first:
                write_answers(settings, step, sampled)
            clock.append(time.perf_counter())
            seconds = {name: after - before for name, before, after
                       in zip(("sample", "train", "measure"), clock, clock[1:])}
            row["seconds"] = {name: round(value, 3) for name, value in seconds.items()}
            row["tokens_per_second"] = {"sample": round(tokens / seconds["sample"]), "train": round(
                trained["trained_tokens"] / max(seconds["train"], 1e-9))}
            right = f"right {row['eval']['accuracy']:.1%}, " if "eval" in row else ""
            shown = (f"reward {row['reward']:.3f}, {right}{row['length']:.0f} tokens,"
                     f" {row['tokens_per_second']['sample']:,} tokens/s ")
            bar.set_postfix_str(shown, refresh=False)
            bar.update()
            run.end_step(row, model, optimizer, last=step == settings.steps)
    run.finish(model)


def main():
    command(cli.parse(Settings, __doc__), train)


if __name__ == "__main__":
    main()
