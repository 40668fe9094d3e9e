"""Supervised fine-tuning, and pretraining by the same loop.

    python sft.py --model Qwen2.5-1.5B --data sft.jsonl --out runs/sft --eval data/kk_test.jsonl
    python sft.py --init config.json --data documents.jsonl --loss-on all --out runs/base
    torchrun --nproc-per-node 2 sft.py --model ...

    loss = - sum over tokens of  weight * log p(token | the tokens before it)         `sft_loss`

Its gradient is GRPO's with every advantage and every ratio 1. Only the tokens of the response are
trained on. With --norm sequence (the paper's) their weight is 1 / (sequences * tokens of the
response): the mean over sequences of their means. With --norm token it is 1 / all tokens. With
--dft a token's weight is multiplied by its p, held constant: what the model finds unlikely then
changes it less. It is a control for re-distillation: is that just a better loss of SFT?

Re-distillation is this program, run on the *base* model with an RL policy's own correct answers as
the data: scripts/keep_correct.py chooses them.

The defaults are the paper's settings (arXiv 2505.17988 and its code).
"""
from dataclasses import dataclass

from engine.flags import limits, parse
from engine.settings import SCHEDULES, Training


@dataclass(kw_only=True)
class Settings(Training):
    data: list[str]                 # JSONL: prompt and response, or text (for a rollouts file, its
    #                                 own token ids are used)
    model: str | None = None        # model directory to start from
    init: str | None = None         # or the config.json of a model to make from scratch
    tokenizer: str | None = None    # with --init: directory of its tokenizer; none: trained on data
    loss_on: str = limits("response", one_of=("response", "all"))   # all: the prompt's tokens too
    norm: str = limits("sequence", one_of=("sequence", "token"))    # mean over sequences of token
    #                                 means (paper), or over tokens
    dft: bool = False               # weigh each token by its own p (DFT, 2508.05629)
    epochs: float = limits(2.0, above=0)    # passes over the data (paper: 2)
    batch: int = limits(32, at_least=1)     # sequences in an update (paper: 32; long K&K: 64)
    max_length: int = limits(5000, at_least=2)      # longer examples are left out (paper: 5000)
    lr: float = limits(1e-5, above=0)       # (paper: 1e-5)
    schedule: str = limits("cosine", one_of=SCHEDULES)      # down to nearly 0 (paper: cosine)
    warmup: int = limits(0, at_least=0)     # updates before the full rate (paper: 0)
    beta1: float = limits(0.9, at_least=0, below=1)         # AdamW's momentum (paper: 0.9)
    weight_decay: float = limits(0.0, at_least=0)           # (paper: 0)
    # ---- the run
    val: str | None = None          # like --data, held out: its loss is measured


if __name__ == "__main__":      # before torch is imported: --help and a wrong flag answer at once
    settings = parse(Settings, __doc__)

import torch
from torch import Tensor

from engine.batches import Sequence, accumulate, response_logprobs
from engine.optimizer import learning_rate
from engine.run import Clock
from engine.training import prepare_examples, train_command
from grpo import loss_denominator, token_weights


# ---- the method ------------------------------------------------------------------------------
def sft_loss(logp: Tensor, mask: Tensor, norm: str = "sequence", denominator: float | None = None):
    """Minus the weighted sum of log p [B, R] over the tokens where the mask [B, R] is True."""
    return -(token_weights(mask, norm, denominator) * logp).sum()


class Minibatch:
    """Examples that are trained on together."""

    def __init__(self, sequences: list[Sequence], settings):
        self.sequences, self.settings = sequences, settings
        self.denominator = loss_denominator(settings.norm, sequences)

    def loss(self, model, indices: list[int]) -> Tensor:
        """The part that the sequences with these indices have in the loss."""
        logp, mask = response_logprobs(model, [self.sequences[i] for i in indices],
                                       self.settings.pack)
        if self.settings.dft and logp.requires_grad:        # --val is always measured without it
            logp = logp * logp.detach().exp()
        return sft_loss(logp, mask, self.settings.norm, self.denominator)


# ---- the loop --------------------------------------------------------------------------------
class Trainer:
    """A run of fine-tuning. `job` holds what it works with: the data, the model, the run directory
    (engine/training.py)."""

    def __init__(self, settings, ranks, dtype):
        self.settings, self.ranks = settings, ranks
        self.job = job = prepare_examples(settings, ranks, dtype)
        self.run, self.model, self.optimizer = job.run, job.model, job.optimizer
        self.run.add_part("optimizer.safetensors", self.optimizer.tensors)

    def train(self) -> None:
        if self.run.state["step"] == 0 and self.time_to_measure(0):
            self.run.log({"step": 0, **self.measure(0)})    # the model before training
        for step in self.run.steps(self.job.steps, "sft"):
            clock = Clock()
            with clock("train"):
                batch = self.next_batch(step)
                trained = self.update(batch, step)
            measured = self.measure(step)
            self.log(step, batch, trained | measured, clock.seconds["train"])
        self.run.finish(self.model)

    def next_batch(self, step: int) -> list[Sequence]:
        """The examples of this step, from an endless shuffled list of all."""
        job, size = self.job, self.settings.batch
        places = range((step - 1) * size, min(step * size, job.places))
        return [job.items[job.order[place]] for place in places]

    def update(self, batch: list[Sequence], step: int) -> dict:
        """Do one update. Returns its metrics."""
        settings, lr = self.settings, learning_rate(self.settings, step, self.job.steps)
        # Forward and backward: this calls Minibatch.loss for a few sequences at a time.
        loss = accumulate(self.model, Minibatch(batch, settings), self.ranks, settings)
        grad_norm = self.optimizer.update(lr, loss)
        return {"loss": loss, "lr": lr, "grad_norm": grad_norm,
                "skipped": int(self.optimizer.skipped > 0)}     # 1 if this update was skipped

    def time_to_measure(self, step: int) -> bool:
        """Is it time to measure, and is there something to measure with?"""
        due = step % self.settings.eval_every == 0 or step == self.job.steps
        return due and bool(self.job.validation or self.job.held_out)

    def measure(self, step: int) -> dict:
        """The loss of --val and the accuracy on --eval, when it is time."""
        settings, job, measured = self.settings, self.job, {}
        if not self.time_to_measure(step):
            return measured
        if job.validation:
            with torch.no_grad():
                measured["val_loss"] = accumulate(self.model, Minibatch(job.validation, settings),
                                                  self.ranks, settings)
        if job.held_out:
            measured["eval"] = job.evaluate()
        if step:
            self.run.keep_best(self.model, measured["eval"]["accuracy"] if job.held_out else
                               -measured["val_loss"])
        return measured

    def log(self, step: int, batch: list[Sequence], numbers: dict, seconds: float) -> None:
        """A line of metrics, and a checkpoint when it is time."""
        state, tokens = self.run.state, sum(len(one.tokens) for one in batch)
        state["tokens"] = state.get("tokens", 0) + tokens
        rate, seen = round(tokens / seconds), min(step * self.settings.batch, self.job.places)
        row = {"step": step, "epoch": round(seen / len(self.job.items), 4), **numbers,
               "examples": seen, "tokens": state["tokens"], "seconds": round(seconds, 3),
               "tokens_per_second": rate}
        shown = f"loss {row['loss']:.4f}, {rate:,} tokens/s"
        shown += f", val {row['val_loss']:.4f}" if "val_loss" in row else ""
        shown += f", right {row['eval']['accuracy']:.1%}" if "eval" in row else ""
        self.run.end_step(row, shown, self.model, [self.optimizer])


def check(settings) -> None:
    if (settings.model is None) == (settings.init is None):
        raise ValueError("give either --model or --init")
    if settings.tokenizer and not settings.init:
        raise ValueError("--tokenizer is for --init: a model directory has its own")


def train(settings, ranks, dtype) -> None:
    Trainer(settings, ranks, dtype).train()


if __name__ == "__main__":
    train_command(settings, train, check)
