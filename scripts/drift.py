"""How far is a model from its base, and what has it forgotten?

    python scripts/drift.py --base assets/tiny_base --model runs/rl/model runs/redistilled/model \\
        --data data/held_out.jsonl --text data/documents.jsonl --out drift.jsonl
    python scripts/drift.py --base assets/tiny_base --model runs/rl/model \\
        --rollouts runs/rl/rollouts/step-000030.jsonl --out drift.jsonl

A model answers the problems of --data, and the base reads these answers. The mean over their tokens
of k3 (grpo.py) estimates KL(model, base), the distance that "RL's Razor" (2509.04259) finds to say
how much is forgotten. `kl_per_answer` is the mean of the answers' sums. `k1_per_answer`, the mean
of log p_model - log p_base, estimates the same, and is less noisy where the model has made what the
base prefers very unlikely. With --rollouts the answers
are read, one file for each model, and must be drawn at --temperature without top-p or top-k.

--text measures what is kept: the mean log-prob, per token, of texts or of responses to prompts
under each model and under the base. --out gets a line of JSON for each model.
"""
from dataclasses import dataclass, field

import conductor  # so that Python finds the files above scripts/
from engine.flags import command, limits, parse
from engine.prompts import TEMPLATES
from engine.settings import Machine


@dataclass(kw_only=True)
class Settings(Machine):
    base: str                       # model directory: the distance is to this one
    model: list[str]                # model directories
    out: str                        # the JSONL file to write
    data: str = ""                  # problems, which each model answers
    rollouts: list[str] = field(default_factory=list)   # or files of answers, one for each model
    text: list[str] = field(default_factory=list)       # JSONL: text, or prompt and response
    limit: int = limits(0, at_least=0)      # use the first so many problems or rollouts; 0: all
    group: int = limits(1, at_least=1)      # answers to each
    temperature: float = limits(1.0, above=0)       # of the answers, and of the log-probs in the KL
    max_new_tokens: int = limits(4096, at_least=1)  # longest answer
    max_length: int = limits(5000, at_least=2)      # longer texts are left out
    pack: bool = True               # sequences end to end in one row, not padded to the longest
    template: str = limits("chat", one_of=TEMPLATES)    # prompts of official problem files
    seed: int = limits(0, at_least=0)       # of the answers


if __name__ == "__main__":      # before torch is imported: --help and a wrong flag answer at once
    settings = parse(Settings, __doc__)

import os

import numpy
import torch

from effect import sample_answers
from engine.batches import Sequence, of_each, response_logprobs
from engine.evaluate import as_sequence, by_level
from engine.examples import as_sequences, end_token, read_examples
from engine.files import check_output, write_jsonl
from engine.huggingface import read_files
from engine.problems import read_problems
from engine.processes import Ranks, fit_machine
from engine.tables import standard_error
from engine.tokenizer import encode_prompts, load_tokenizer
from grpo import k3
from model import Config, load
from verify import aligned, read_rollouts, reward


def with_prompts(path: str) -> list[dict]:
    """The rollouts of a file, each of which has its prompt."""
    rows = read_rollouts(path)
    if missing := [row["id"] for row in rows if not isinstance(row.get("prompt"), str)]:
        raise ValueError(f"{path}: rollout {missing[0]} has no prompt")
    return rows


class Ruler:
    """The base, the problems and the texts that all models are measured with."""

    def __init__(self, settings):
        self.settings, self.tokenizer = settings, load_tokenizer(settings.base)
        words = self.tokenizer.get_vocab()
        for path in settings.model:
            if load_tokenizer(path).get_vocab() != words:
                raise ValueError(f"{path}: its vocabulary is not that of {settings.base}")
        config = Config.load(settings.base)
        device, self.dtype = fit_machine(settings, config)
        longest = min(settings.max_length, config.max_position_embeddings)
        self.problems = read_problems(settings.data, settings.template)[:settings.limit or None] \
            if settings.data else []
        self.rollouts = [with_prompts(path)[:settings.limit or None] for path in settings.rollouts]
        end = end_token(self.tokenizer, read_files(settings.base))
        self.texts = {path: as_sequences(read_examples([path]), self.tokenizer, end, longest)
                      for path in settings.text}
        self.ranks = Ranks(device)
        self.base = self.load(settings.base)
        self.kept = self.text_logprobs(self.base)           # by the base itself

    def load(self, path: str):
        return load(path, self.ranks.device, self.dtype).requires_grad_(False)

    def logprobs(self, model, sequences: list[Sequence], temperature: float = 1.0) -> list:
        """log p of each token of each response."""
        settings = self.settings
        found = of_each(lambda some: response_logprobs(model, some, settings.pack, temperature),
                        sequences, self.ranks, settings)
        return [found[i].cpu() for i in range(len(sequences))]

    def text_logprobs(self, model) -> dict[str, float]:
        """The mean log-prob of a token of each text file."""
        return {path: float(torch.cat(self.logprobs(model, texts)).double().mean())
                for path, texts in self.texts.items()}

    def answers(self, model, number: int) -> tuple[list[Sequence], list[str], dict]:
        """The answers of a model, the problem of each, and how good they are."""
        if not self.rollouts:
            groups, rewards = sample_answers(model, self.tokenizer, self.problems, self.settings)
            rows = [{"id": problem["id"], "level": problem["level"], "reward": r}
                    for problem, some in zip(self.problems, rewards.tolist()) for r in some]
            sequences = [one for group in groups for one in group]
        else:
            rows = self.rollouts[number]
            prompts = encode_prompts(self.tokenizer, [row["prompt"] for row in rows])
            sequences = [as_sequence({**row, "prompt_tokens": prompt})
                         for row, prompt in zip(rows, prompts)]
            rows = [{"id": row["id"], "level": row.get("level"),
                     "reward": reward(row, row["response"], row["finished"])} for row in rows]
        ids = [str(row["id"]) for row in rows]
        return sequences, ids, {"reward": float(numpy.mean([row["reward"] for row in rows])),
                                "by_level": by_level(rows)}

    def measure(self, path: str, number: int) -> dict:
        """The line of a model."""
        model = self.load(path)
        row = {"model": path, "base": self.settings.base}
        if self.rollouts or self.problems:
            sequences, ids, judged = self.answers(model, number)
            row |= judged | self.distance(model, sequences, ids)
        if self.texts:
            row |= {"text": self.text_logprobs(model), "text_base": self.kept}
        return row

    def distance(self, model, sequences: list[Sequence], ids: list[str]) -> dict:
        """The KL to the base, estimated on the model's own answers, with standard errors over the
        problems: several answers to one problem are alike."""
        temperature = self.settings.temperature
        own = self.logprobs(model, sequences, temperature)
        of_base = self.logprobs(self.base, sequences, temperature)
        sums = numpy.array([float(k3(new, old, torch.ones_like(new, dtype=torch.bool)).sum())
                            for new, old in zip(own, of_base)])
        k1 = numpy.array([float((new - old).sum()) for new, old in zip(own, of_base)])
        tokens = sum(one.trained for one in sequences)
        return {"answers": len(sums), "tokens": tokens, "kl_per_token": float(sums.sum() / tokens),
                "kl_per_answer": float(sums.mean()), "k1_per_answer": float(k1.mean()),
                "standard_errors": [standard_error(x, ids, self.settings.seed) for x in (sums, k1)]}


def table(rows: list[dict], texts: list[str]) -> str:
    """KL by k3, per token and per answer, and by k1; then the log-prob per token of each text."""
    lines = [["model", "reward", "KL/token", "KL/answer", "± s.e.", "by k1", "± s.e.",
              *map(os.path.basename, texts)]]
    for row in rows:
        line = ["-"] * 6
        if "reward" in row:
            errors = [f"{error:.2g}" for error in row["standard_errors"]]
            line = [f"{row['reward']:.3f}", f"{row['kl_per_token']:.4f}",
                    f"{row['kl_per_answer']:.2f}", errors[0],
                    f"{row['k1_per_answer']:.2f}", errors[1]]
        lines.append([row["model"], *line, *(f"{row['text'][path]:.3f}" for path in texts)])
    return aligned(lines, left=1)


def check(settings) -> None:
    if bool(settings.data) + bool(settings.rollouts) > 1 or \
            not (settings.data or settings.rollouts or settings.text):
        raise ValueError("give --data or --rollouts, or --text, or one of the first and --text")
    if settings.rollouts and len(settings.rollouts) != len(settings.model):
        raise ValueError(f"{len(settings.rollouts)} files of --rollouts for {len(settings.model)}"
                         " models: one for each")


def main(settings) -> None:
    check(settings)
    check_output(settings.out, [settings.data, *settings.rollouts, *settings.text])
    ruler = Ruler(settings)
    rows = [ruler.measure(path, number) for number, path in enumerate(settings.model)]
    write_jsonl(settings.out, rows)         # All at once: what is there is whole.
    print(table(rows, settings.text))


if __name__ == "__main__":
    command(main, settings)
