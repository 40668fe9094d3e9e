"""GRPO with rule-based rewards. A step samples groups of answers, verifies them and updates.

    python grpo.py --model runs/sft/model --data data/kk_train.jsonl --out runs/rl

For every prompt the policy draws a group of K answers. A rule gives each a reward r: 1 if it is
right, else 0. An answer above the mean of its group becomes more likely, one below it less likely:

    A_i   = (r_i - mean r) / (std r + 1e-6)                                       `advantages`
    ratio = p_new(token) / p_old(token)
    loss  = - mean over tokens of  min(ratio * A, clamp(ratio, 1 - clip, 1 + clip) * A)  `grpo_loss`

With one update per batch of answers (the default) the new weights are the old ones when the loss
is computed, so the ratio is exactly 1. The loss is then - mean of A, near 0: watch the reward. Its
gradient, - mean of A * grad log p, is that of SFT on the answers, each weighted by A.

What an answer is called on its way (`response` in a name is the answer without the prompt):

    Sample      what the sampler returns: token ids, their log-probs, whether it ended by itself
    rollout     a dictionary: the problem, the sample, its text and its reward (a line of a file)
    Sequence    the ids of prompt and answer, and where the answer begins
    Answer      a Sequence with an advantage and the sampler's log-prob of each token
    groups      lists of these: [prompt][answer]

Tensors of answers have shape [B, R]: B answers, R tokens of the longest one. Column 0 is the first
token of an answer, not of its prompt; a mask is True up to the end of each answer.

"The paper" is arXiv 2505.17988 with its published code. The defaults are its settings. An option
that is not from it names its source, by its number on arXiv.
"""
from dataclasses import dataclass

from engine.flags import limits, parse
from engine.settings import RolloutTraining


# Each field is a flag; the comment behind it is its --help text. More fields: engine/settings.py.
@dataclass(kw_only=True)
class Settings(RolloutTraining):
    prompts: int = limits(128, at_least=1)      # problems in a step (paper: 128)
    group: int = limits(8, at_least=2)          # answers to each (paper: 8)
    passes: int = limits(1, at_least=1)         # over a step's answers (paper: 1)
    minibatches: int = limits(1, at_least=1)    # updates in a pass, each on a share of the prompts
    std_norm: bool = True           # divide by the group's std (paper); no: Dr. GRPO, 2503.20783
    kl: float = limits(0.0, at_least=0)     # beta, the weight of k3, the KL to the start (paper: 0)
    lr: float = limits(5e-6, above=0)     # (paper: K&K 5e-6; MATH and after re-distillation 2.5e-6)


if __name__ == "__main__":      # before torch is imported: --help and a wrong flag answer at once
    settings = parse(Settings, __doc__)

import torch
from torch import Tensor

from engine.batches import Sequence, accumulate, of_each, padded, response_logprobs
from engine.evaluate import as_rollout, as_sequence, describe, mean
from engine.optimizer import learning_rate
from engine.run import Clock
from engine.tokenizer import response_text
from engine.training import prepare_rollouts, train_command
from sample import as_they_end, release
from verify import reward


# ---- the method ------------------------------------------------------------------------------
def advantages(rewards: Tensor, std_norm: bool = True) -> Tensor:
    """How much better each answer is than its group, [prompts, K] -> [prompts, K]."""
    if rewards.shape[-1] < 2:
        raise ValueError("a group of one has nothing to be compared with: at least 2")
    centred = rewards - rewards.mean(-1, keepdim=True)
    if std_norm:
        centred = centred / (rewards.std(-1, keepdim=True) + 1e-6)      # the unbiased std (paper)
    # A mean may be off by rounding, but a group of equal rewards must give exactly 0.
    all_equal = (rewards == rewards[:, :1]).all(-1, keepdim=True)
    return centred.masked_fill(all_equal, 0.0)


def token_weights(mask: Tensor, norm: str, denominator: float | None = None) -> Tensor:
    """What each token counts in the loss, [B, R]: float64, so that the loss is summed in float64.

    token: 1 / all tokens. sequence: 1 / (answers * its answer's tokens). constant: 1 / denominator.
    If the mask is a part of a minibatch, `denominator` is that of the whole minibatch (from
    `loss_denominator`). Then the losses of the parts add up.
    """
    mask = mask.double()
    if norm == "sequence":
        lengths = mask.sum(-1, keepdim=True)
        return mask / lengths.clamp(min=1) / (denominator or (lengths > 0).sum().clamp(min=1))
    if norm == "constant" and denominator is None:
        raise ValueError("norm = constant needs the constant, as denominator")
    return mask / (denominator or mask.sum().clamp(min=1))


def loss_denominator(norm: str, sequences: list[Sequence], max_new_tokens: int = 0) -> int:
    """What the loss of a whole minibatch is divided by: tokens, answers, or a constant."""
    return {"token": sum(one.trained for one in sequences), "sequence": len(sequences),
            "constant": len(sequences) * max_new_tokens}[norm]


def k3(new: Tensor, reference: Tensor, mask: Tensor) -> Tensor:
    """With r = p_reference / p_new: r - 1 - log r. It is Schulman's estimate of KL(new, reference)
    from tokens drawn from new, and never below 0 (but for rounding)."""
    log_r = (reference - new).masked_fill(~mask, 0.0)
    return log_r.exp() - 1 - log_r


def grpo_loss(new: Tensor, old: Tensor, advantages: Tensor, mask: Tensor, clip: float = 0.2,
              norm: str = "token", denominator: float | None = None,
              reference: Tensor | None = None, beta: float = 0.0) -> Tensor:
    """The loss of these answers.

    new, old: log-probs [B, R] of the answers' tokens, under the policy now and before the step.
    advantages: of answers, [B], or of tokens, [B, R]. beta: weight of the KL to a reference model.
    """
    A = advantages if advantages.dim() == 2 else advantages[:, None]
    ratio = (new - old).masked_fill(~mask, 0.0).exp()                           # [B, R]
    gain = torch.min(ratio * A, ratio.clamp(1 - clip, 1 + clip) * A)
    if beta:
        gain = gain - beta * k3(new, reference, mask)
    return -(token_weights(mask, norm, denominator) * gain).sum()


# ---- what an update sees ---------------------------------------------------------------------
@dataclass
class Answer:
    """A sampled answer that is to be trained on."""
    sequence: Sequence
    advantage: Tensor               # of each of its tokens, [length]
    logprobs: Tensor                # of each of its tokens, as the sampler computed them, [length]


class Minibatch:
    """Answers that are trained on together.

    `old` and `reference` are log-probs of each answer, under the policy before the step and under
    the model at the start of the run. The trainer computes both: the sampler's differ by rounding,
    and serve `sampler_gap` and `correct`. With one update in a step `old` is None: it is `new`.
    """

    def __init__(self, answers: list[Answer], settings, statistics: Tensor):
        everything = [answer.sequence for answer in answers]
        self.denominator = loss_denominator(settings.norm, everything, settings.max_new_tokens)
        if not settings.kl:    # An advantage of 0 gives no gradient: skip the answer, but count it.
            answers = [answer for answer in answers if answer.advantage.any()]
        self.answers, self.settings, self.statistics = answers, settings, statistics
        self.sequences = [answer.sequence for answer in answers]
        self.old = self.reference = None

    def loss(self, policy, indices: list[int]) -> Tensor:
        """The part that the answers with these indices have in the loss."""
        settings, answers = self.settings, [self.answers[i] for i in indices]
        new, mask = response_logprobs(policy, [answer.sequence for answer in answers],
                                      settings.pack, settings.temperature)      # [B, R]
        A = padded([answer.advantage for answer in answers], new)
        sampled = padded([answer.logprobs for answer in answers], new)
        old, reference = new.detach(), None                 # policy not moved: the ratio is 1
        if self.old:
            old = padded([self.old[i] for i in indices], new)
        if self.reference:
            reference = padded([self.reference[i] for i in indices], new)
        if settings.correct:    # The sampler drew from probabilities not quite the trainer's.
            A = A * (old - sampled).exp().clamp(max=settings.correct)
        self.observe(new.detach(), old, reference, A, sampled, mask)
        return grpo_loss(new, old, A, mask, settings.clip, settings.norm, self.denominator,
                         reference, settings.kl)

    def observe(self, new, old, reference, A, sampled, mask) -> None:
        """Count the tokens and the clipped ones; sum the gap to the sampler and the KL."""
        ratio, clip = (new - old).exp(), self.settings.clip
        clipped = torch.where(A > 0, ratio > 1 + clip, (A < 0) & (ratio < 1 - clip))
        kl = mask.new_zeros(()) if reference is None else k3(new, reference, mask)
        self.statistics += torch.stack([x.double().sum() for x in (
            mask, clipped & mask, (old - sampled).abs(), kl)])


class GRPO:
    """The method: `credit` gives the answers their advantages, `update` trains the policy on them.
    ppo.py overrides `credit`, and in `update` also trains its critic."""
    name, has_critic = "grpo", False

    def __init__(self, settings, ranks, policy, optimizer, reference=None):
        self.settings, self.ranks = settings, ranks
        self.policy, self.optimizer, self.optimizers = policy, optimizer, [optimizer]
        self.reference = reference              # the policy at the start, where --kl needs it

    def parts(self) -> dict:
        """What a checkpoint holds beside the policy: file -> function that returns its tensors."""
        return {"optimizer.safetensors": self.optimizer.tensors}

    def credit(self, groups: list[list[dict]]) -> list[list[Answer]]:
        """The rollouts with their advantages: each token of an answer gets the answer's."""
        rewards = torch.tensor([[rollout["reward"] for rollout in group] for group in groups])
        credited = []
        for group, row in zip(groups, advantages(rewards, self.settings.std_norm)):
            credited.append([Answer(as_sequence(rollout), A.expand(len(rollout["tokens"])),
                                    torch.tensor(rollout["logprobs"]))
                             for rollout, A in zip(group, row)])
        return credited

    def split(self, groups: list[list[Answer]]) -> list[list[Answer]]:
        """The answers of each minibatch: an equal share of the groups."""
        share = len(groups) // self.settings.minibatches
        return [[answer for group in groups[first:first + share] for answer in group]
                for first in range(0, len(groups), share)]

    def update(self, groups: list[list[Answer]], lr: float) -> dict:
        """Do all updates of a step. Returns metrics: counts, and means over tokens or updates."""
        settings = self.settings
        statistics = torch.zeros(4, dtype=torch.float64, device=self.ranks.device)
        minibatches = [Minibatch(answers, settings, statistics) for answers in self.split(groups)]
        for minibatch in minibatches:
            if settings.passes * settings.minibatches > 1:     # The policy will move on the way.
                minibatch.old = self.logprobs(self.policy, minibatch.sequences)
            if settings.kl:
                minibatch.reference = self.logprobs(self.reference, minibatch.sequences)
        losses, grad_norms, skipped = [], [], 0
        for _ in range(settings.passes):
            for minibatch in minibatches:
                # Forward and backward: this calls minibatch.loss for a few answers at a time.
                losses.append(accumulate(self.policy, minibatch, self.ranks, settings))
                grad_norms.append(self.optimizer.update(lr, losses[-1]))
                skipped += self.optimizer.skipped > 0       # 1 if this update was skipped
        tokens, clipped, gap, kl = self.ranks.sum(statistics.tolist())
        trained = {"loss": mean(losses), "grad_norm": mean(grad_norms), "skipped": skipped,
                   "trained_tokens": int(tokens), "clip_fraction": clipped / max(1, tokens),
                   "sampler_gap": gap / max(1, tokens)}
        return trained | ({"kl": kl / max(1, tokens)} if settings.kl else {}) | {"lr": lr}

    def logprobs(self, model, sequences: list[Sequence]) -> dict[int, Tensor]:
        """log p of each answer in this process's share, by its index in the list."""
        return of_each(lambda some: response_logprobs(model, some, self.settings.pack,
                                                      self.settings.temperature),
                       sequences, self.ranks, self.settings)

    def gather(self, mine: dict[int, Tensor]) -> list[Tensor]:
        """What all processes have computed of the answers, in the order of the answers."""
        rows = dict(self.ranks.gather([(i, row.cpu()) for i, row in mine.items()]))
        return [rows[i] for i in range(len(rows))]


# ---- the loop --------------------------------------------------------------------------------
class Trainer:
    """A run: what is around the method. job: data, policy, run directory (engine/training.py)."""

    def __init__(self, settings, ranks, dtype, method=GRPO):
        if settings.prompts % settings.minibatches:
            raise ValueError(f"prompts = {settings.prompts} cannot be cut into"
                             f" {settings.minibatches} minibatches")
        self.settings, self.ranks = settings, ranks
        self.job = job = prepare_rollouts(settings, ranks, dtype, method.has_critic)
        self.run, self.policy = job.run, job.model
        reference = job.start_model() if settings.kl else None
        self.method = method(settings, ranks, self.policy, job.optimizer, reference)
        for name, tensors in self.method.parts().items():
            self.run.add_part(name, tensors)

    def train(self) -> None:
        self.begin()
        for step in self.run.steps(self.settings.steps, self.method.name):     # those not yet done
            clock = Clock()
            with clock("sample"):
                groups = self.collect(step)
            with clock("train"):
                answers = self.method.credit(groups)
                lr = learning_rate(self.settings, step, self.settings.steps)
                trained = self.method.update(answers, lr)
            with clock("measure"):
                measured = self.measure(groups, step)
            self.log(step, groups, trained | measured, clock.seconds)
        self.run.finish(self.policy)

    def begin(self) -> None:
        """Unless the run goes on from a checkpoint: set its counters, and measure the start."""
        if self.run.state["step"] == 0:
            # A resumed run must sample with the same number of slots, so the state keeps it.
            self.run.state |= {"position": 0, "samples": 0, "tokens": 0,
                               "slots": self.job.plan.slots}
            if self.job.held_out:
                self.run.log({"step": 0, "eval": self.job.evaluate()})

    def collect(self, step: int) -> list[list[dict]]:
        """Sample a group of answers to each of the next problems and verify them: the rollouts.

        Problems come from an endless shuffled list. The noise of an answer follows from the seed,
        the problem's place in that list and the answer's number in its group.
        """
        settings, job, state = self.settings, self.job, self.run.state
        places = range(state["position"], state["position"] + settings.prompts)
        state["position"] = places.stop
        mine = places[self.ranks.rank::self.ranks.size]     # the places of this process
        problems = [job.items[job.order[place]] for place in mine]
        groups = [[None] * settings.group for _ in problems]
        samples = as_they_end(
            self.policy, [problem["prompt_tokens"] for problem in problems], n=settings.group,
            indices=mine, seed=settings.seed, max_new_tokens=settings.max_new_tokens,
            temperature=settings.temperature, stop=job.stop, slots=job.plan.slots)
        for count, (i, j, sample) in enumerate(samples, 1):
            text = response_text(job.tokenizer, sample)
            r = reward(problems[i], text, sample.finished)
            groups[i][j] = as_rollout(problems[i], j, sample, text, r, step)
            self.run.show_sampling(count, len(mine) * settings.group)
        if not job.plan.keep_cache:
            release(self.policy)
        return self.ranks.gather(groups)

    def measure(self, groups: list[list[dict]], step: int) -> dict:
        """The KL to the start and the accuracy on --eval, when it is time."""
        settings, measured = self.settings, {}
        if settings.kl_every and step % settings.kl_every == 0 and not settings.kl:
            measured["kl"] = self.kl_to_start([one for group in groups for one in group])
        if self.job.held_out and (step % settings.eval_every == 0 or step == settings.steps):
            measured["eval"] = self.job.evaluate()
            self.run.keep_best(self.policy, measured["eval"]["accuracy"])
        return measured

    def kl_to_start(self, rollouts: list[dict]) -> float:
        """Mean over sampled tokens of k3: how far the policy that sampled is from the start."""
        start = self.job.start_model()
        total = tokens = 0.0
        for i, logp in self.method.logprobs(start, [*map(as_sequence, rollouts)]).items():
            new = torch.tensor(rollouts[i]["logprobs"])
            total += float(k3(new, logp.cpu(), torch.ones_like(new, dtype=torch.bool)).sum())
            tokens += len(new)
        total, tokens = self.ranks.sum([total, tokens])
        return total / max(1.0, tokens)

    def log(self, step: int, groups: list[list[dict]], numbers: dict, seconds: dict) -> None:
        """A line of metrics, the rollouts, and a checkpoint when it is time."""
        state = self.run.state
        if self.ranks.first:
            self.run.write_rollouts(step, groups)
        tokens = sum(len(rollout["tokens"]) for group in groups for rollout in group)
        state["samples"] += sum(map(len, groups))
        state["tokens"] += tokens
        rates = {"sample": round(tokens / seconds["sample"]),
                 "train": round(numbers["trained_tokens"] / seconds["train"])}
        row = {"step": step, "epoch": round(state["position"] / len(self.job.items), 4),
               "samples": state["samples"], "tokens": state["tokens"], **describe(groups),
               **numbers, "tokens_per_second": rates,
               "seconds": {name: round(value, 3) for name, value in seconds.items()}}
        right = f"right {row['eval']['accuracy']:.1%}, " if "eval" in row else ""
        self.run.end_step(row, f"reward {row['reward']:.3f}, {right}{row['length']:.0f} tokens,"
                          f" {rates['sample']:,} tokens/s", self.policy, self.method.optimizers)


def train(settings, ranks, dtype) -> None:
    Trainer(settings, ranks, dtype).train()


if __name__ == "__main__":
    train_command(settings, train)
