"""Supervised fine-tuning, pretraining by the same loop, and what any training loop needs.

    python sft.py --model Qwen2.5-1.5B --data sft.jsonl --out runs/sft --eval data/kk_test.jsonl
    python sft.py --init config.json --data documents.jsonl --loss-on all --out runs/base
    torchrun --nproc-per-node 2 sft.py --model ...

An update is the gradient of   - sum over tokens of  weight * log p(token | the ones before):
the weight is 1 / (length * sequences) for a mean over sequences of their token means (the
paper's), 1 / tokens for a mean over tokens, and 0 for the prompt. grpo.py is the same update with
the advantage as a further factor, and imports everything here but `main`.

However a batch is cut into micro-batches, packed, padded or dealt to processes, its gradient is the
same: every weight is divided by a count over the whole batch, and the pieces are added up.
What is random (the order of the data, the first weights) is a function of the seed and the step,
so the step is all that a checkpoint has to know of it: a resumed run is the run.

From the paper: the defaults below. Not from it: examples longer than max_length are left out, and
said so, where a cut would teach the model not to end.
"""
import fcntl
import functools
import glob
import hashlib
import json
import math
import os
import re
import shutil
import signal
import sys
import time
from dataclasses import asdict, dataclass, field
from datetime import timedelta

import numpy
import torch
import torch.distributed as dist
from safetensors import safe_open
from torch import Tensor
from torch.optim.adamw import adamw
from tqdm import tqdm

import cli
import model as transformer
from sample import generate, load_tokenizer, release, response_text, stop_ids
from verify import reward, styles, summary


@dataclass
class Settings:
    data: list[str]                 # JSONL: prompt and response, or text; rollouts: their tokens
    out: str                        # run directory; the trained model will be in OUT/model
    model: str | None = None        # model directory to start from
    init: str | None = None         # or the config.json of a model to make from scratch
    tokenizer: str | None = None    # with --init: directory of its tokenizer; none: trained on data
    loss_on: str = "response"       # response; all: prompts and documents too (pretraining)
    norm: str = "sequence"          # mean over sequences of token means (paper); token: over tokens
    epochs: float = 2.0             # passes over the data (paper: 2)
    batch: int = 32                 # sequences in an update (paper: 32; 64 for K&K long and A)
    max_length: int = 5000          # longer examples are left out (paper: 5000)
    lr: float = 1e-5                # (paper: 1e-5)
    schedule: str = "cosine"        # cosine or linear to zero, or constant (paper: cosine)
    warmup: int = 0                 # updates before the full rate (paper: 0)
    beta1: float = 0.9              # AdamW (paper: 0.9, 0.999, no decay)
    beta2: float = 0.999
    weight_decay: float = 0.0
    clip_norm: float = 1.0          # longest gradient (paper: 1)
    seed: int = 0
    val: str | None = None          # like --data, held out: its loss is measured
    eval: str | None = None         # problems: the share that is answered right is measured
    eval_every: int = 100           # updates between two measurements; the last is always measured
    eval_n: int = 1                 # samples per problem
    eval_temperature: float = 0.0   # 0: greedy (paper)
    eval_max_new_tokens: int = 4096     # (paper: 4096)
    template: str = "chat"          # prompts of official --eval files: chat, base or plain
    save_every: int = 100           # updates between two checkpoints
    keep: int = 2                   # checkpoints to keep; OUT/best is kept besides
    keep_at: list[int] = field(default_factory=list)    # steps whose model stays, as OUT/step-N
    resume: bool = False            # go on from the last checkpoint in OUT
    micro_tokens: int = 16384       # tokens in one forward and backward pass; bounds the memory
    pack: bool = True               # sequences end to end in one row, not padded to the longest
    checkpointing: str = "auto"     # recompute activations: yes, no; auto: where memory is short
    offload: bool = False           # AdamW and its state in main memory, not on the GPU
    device: str = "auto"            # cpu, cuda; auto: cuda where there is one
    dtype: str = "auto"             # to compute in (weights: fp32); auto: bfloat16 on cuda


# ---- sequences, and batches of them ----------------------------------------------------------
@dataclass
class Sequence:
    tokens: numpy.ndarray           # int32: a prompt and what follows it
    start: int                      # the first token to train on, at least 1
    index: int = -1                 # which of the texts it was


def micro_batches(lengths: list[int], budget: int, pack: bool) -> list[list[int]]:
    """Indices in groups of at most `budget` tokens, padding included; one too long is alone."""
    groups, room = [], []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):            # the longest first
        if pack:                                                                # first fit
            at = next((g for g, left in enumerate(room) if left >= lengths[i]), None)
        else:
            fits = groups and (len(groups[-1]) + 1) * lengths[groups[-1][0]] <= budget
            at = len(groups) - 1 if fits else None
        if at is None:
            at = len(groups)
            groups, room = groups + [[]], room + [budget]
        groups[at].append(i)
        room[at] -= lengths[i]
    return groups


def laid_out(sequences: list[Sequence], pack: bool, device):
    """tokens, [1, T] if packed else [B, T]; where [., T-1] predicts a token to train on; the mask
    [B, R] of these by sequence; the lengths, if packed. A token's place is known from lengths,
    never from its value.
    """
    lengths = [len(s.tokens) for s in sequences]
    count = torch.tensor([len(s.tokens) - s.start for s in sequences])
    mask = torch.arange(int(count.max())) < count[:, None]                      # [B, R]
    if pack:
        tokens = torch.from_numpy(numpy.concatenate([s.tokens for s in sequences])).long()[None]
        ends = zip([0] * len(lengths), numpy.cumsum(lengths).tolist())
    else:
        tokens = torch.zeros(len(lengths), max(lengths), dtype=torch.int64)
        for row, s in enumerate(sequences):
            tokens[row, :len(s.tokens)] = torch.from_numpy(s.tokens)
        ends = enumerate(lengths)
    where = torch.zeros_like(tokens[:, 1:], dtype=torch.bool)                   # [1 or B, T-1]
    for (row, end), n in zip(ends, count.tolist()):
        where[row, end - n - 1:end - 1] = True              # token t is predicted at t-1
    return tokens.to(device), where.to(device), mask.to(device), lengths if pack else None


def response_logprobs(model, sequences: list[Sequence], pack: bool, temperature: float = 1.0,
                      entropy: bool = False):
    """log p of each token to train on, [B, R], 0 beyond the end; the mask of real ones; entropy.
    The same numbers packed and padded."""
    tokens, where, mask, lengths = laid_out(sequences, pack, model.head_weight.device)
    found = transformer.logprobs(model, tokens, temperature, where=where, lengths=lengths,
                                 entropy=entropy)
    # Both masks run through the sequences in order, and through each in time.
    logp, ent = (None if x is None else
                 x.new_zeros(mask.shape).masked_scatter(mask, x[where])
                 for x in (found if entropy else (found, None)))
    return logp, mask, ent


def token_weights(mask: Tensor, norm: str, total: float | None = None) -> Tensor:
    """What each token counts in the loss, [B, T]; `total` is the count over the whole batch.

    token: 1 / tokens. sequence: 1 / (length * sequences). constant: 1 / total, whatever it is.
    In float64, so that a loss is summed in it.
    """
    mask = mask.double()
    if norm == "sequence":
        lengths = mask.sum(-1, keepdim=True)
        return mask / lengths.clamp(min=1) / (total or (lengths > 0).sum().clamp(min=1))
    if norm == "constant" and total is None:
        raise ValueError("norm = constant needs the constant, as total")
    return mask / (total or mask.sum().clamp(min=1))


def sft_loss(logp: Tensor, mask: Tensor, norm: str = "sequence", total: float | None = None):
    """- sum of weight * log p: the loss of grpo.py when every advantage is 1."""
    return -(token_weights(mask, norm, total) * logp).sum()


def count_for(norm: str, sequences: list[Sequence]) -> int:
    """The `total` of a whole batch."""
    return len(sequences) if norm == "sequence" else sum(len(s.tokens) - s.start for s in sequences)


def accumulate(model, ranks, sequences: list[Sequence], settings, loss_of, temperature=1.0,
               entropy=False, forward=None) -> float:
    """Add up the gradient of a loss over micro-batches and processes; return the loss.

    loss_of(indices, logp [B, R], mask [B, R], entropy) is the share of these sequences in the loss;
    forward(model, sequences, pack, temperature, entropy) may compute another thing than logp.
    Every process is given all sequences and takes its part. Under no_grad: the loss alone.
    """
    by_length = sorted(range(len(sequences)), key=lambda i: -len(sequences[i].tokens))
    mine = by_length[ranks.rank::ranks.size]
    total = torch.zeros((), dtype=torch.float64, device=ranks.device)
    for group in micro_batches([len(sequences[i].tokens) for i in mine], settings.micro_tokens,
                               settings.pack):
        indices = [mine[i] for i in group]
        loss = loss_of(indices, *(forward or response_logprobs)(
            model, [sequences[i] for i in indices], settings.pack, temperature, entropy))
        if loss.requires_grad:
            loss.backward()
        total += loss.detach()
    if torch.is_grad_enabled():
        for parameter in model.parameters():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        ranks.sum_gradients(model)
    return ranks.sum([float(total)])[0]


class Order:
    """Which item comes when: one shuffle of all items after another, each from (seed, epoch)."""

    def __init__(self, items: int, seed: int):
        self.items, self.seed, self.shuffles = items, seed, {}

    def __getitem__(self, position: int) -> int:
        epoch, place = divmod(position, self.items)
        if epoch not in self.shuffles:
            rng = numpy.random.default_rng([self.seed, epoch])
            self.shuffles = {epoch: rng.permutation(self.items)}
        return int(self.shuffles[epoch][place])


# ---- optimizer -------------------------------------------------------------------------------
def learning_rate(step: int, steps: int, peak: float, schedule: str, warmup: int) -> float:
    """The rate of update `step` of `steps` (the first is 0): a linear start, then the schedule."""
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    done = (step - warmup) / max(1, steps - warmup)
    return peak * {"constant": 1.0, "linear": 1 - done,
                   "cosine": (1 + math.cos(math.pi * done)) / 2}[schedule]


class AdamW:
    """torch's AdamW on fp32 weights; with `offload`, on copies of them in main memory.

    Decay on every parameter, as in the paper's trainer. A gradient that is not finite changes
    nothing (nor does a loss that is not); `skipped` counts such updates in a row.
    """

    def __init__(self, model, settings):
        self.names, self.parameters = zip(*model.named_parameters())
        self.settings, self.skipped, self.held = settings, 0, list(self.parameters)
        if settings.offload:                                # pinned, so that copies are fast
            self.held = [torch.empty(p.shape, dtype=p.dtype, pin_memory=p.is_cuda).copy_(p.detach())
                         for p in self.parameters]
            self.grads = [torch.empty_like(held, pin_memory=held.is_pinned()) for held in self.held]
        self.state = {"step": [torch.zeros((), device=p.device) for p in self.held],
                      "exp_avg": [torch.zeros_like(p) for p in self.held],
                      "exp_avg_sq": [torch.zeros_like(p) for p in self.held]}

    @torch.no_grad()
    def update(self, lr: float, loss: float) -> float:
        """One step along the gradient, shortened to clip_norm; the norm it had."""
        s = self.settings
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, s.clip_norm).item()
        finite = math.isfinite(norm) and math.isfinite(loss)
        self.skipped = 0 if finite else self.skipped + 1
        if finite:
            grads = [p.grad for p in self.parameters]
            if s.offload:
                for mine, grad in zip(self.grads, grads):
                    mine.copy_(grad, non_blocking=True)
                if grads[0].is_cuda:
                    torch.cuda.synchronize()                # the CPU reads them now
                grads = self.grads
            # The function, not the class: that one imports PyTorch's compiler, a second or two.
            adamw(self.held, grads, self.state["exp_avg"], self.state["exp_avg_sq"], [],
                  self.state["step"], fused=True, amsgrad=False, maximize=False, lr=lr, eps=1e-8,
                  beta1=s.beta1, beta2=s.beta2, weight_decay=s.weight_decay)
            if s.offload:
                for p, held in zip(self.parameters, self.held):
                    p.copy_(held, non_blocking=True)
        for p in self.parameters:
            p.grad = None
        return norm

    def tensors(self) -> dict[str, Tensor]:
        """The whole state, by name."""
        return {f"{key}.{name}": value for key, values in self.state.items()
                for name, value in zip(self.names, values)}

    def restore(self, path: str) -> None:
        with safe_open(path, framework="pt") as saved:
            for name, tensor in self.tensors().items():
                tensor.copy_(saved.get_tensor(name))


# ---- processes -------------------------------------------------------------------------------
class Ranks:
    """The processes of a torchrun, one per GPU; without torchrun, this one."""

    def __init__(self, device: str):
        self.size, self.rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
        self.device = torch.device(device)
        if self.device.type == "cuda":
            if self.size > 1 or self.device.index is None:
                self.device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
            torch.cuda.set_device(self.device)
        if self.size > 1 and not dist.is_initialized():     # waiting for one that saves is no fault
            dist.init_process_group("nccl" if self.device.type == "cuda" else "gloo",
                                    timeout=timedelta(hours=2))

    def sum(self, values: list[float]) -> list[float]:
        if self.size == 1:
            return values
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return total.tolist()

    def sum_gradients(self, model) -> None:
        if self.size > 1:
            for parameter in model.parameters():
                dist.all_reduce(parameter.grad)

    def gather(self, mine: list) -> list:
        """Everybody's items in the order of the whole, where process r had items r, r + size ..."""
        if self.size == 1:
            return mine
        parts = [None] * self.size
        dist.all_gather_object(parts, mine)
        return [parts[i % self.size][i // self.size] for i in range(sum(map(len, parts)))]


# ---- the run directory -----------------------------------------------------------------------
MAY_CHANGE = ("out", "resume", "save_every", "keep", "keep_at", "device", "offload", "micro_tokens",
              "pack", "checkpointing")                              # when a run goes on
GIVE_UP_AFTER = 5                                           # updates in a row that were not finite


class Stopped(Exception):
    """Somebody asked the run to stop, and it has saved what it was."""


class Run:
    """OUT: settings.json, metrics.jsonl, checkpoint-N (model, optimizer, state), best, model.

    Only the first process writes. Everything is written whole or not at all.
    """

    def __init__(self, settings, ranks, files: list[str], may_change=MAY_CHANGE):
        self.out, self.keep, self.save_every = settings.out, settings.keep, settings.save_every
        self.keep_at = settings.keep_at
        self.ranks, self.first, self.asked_to_stop = ranks, ranks.rank == 0, None
        self.state = {"step": 0, "best": None}              # of a checkpoint, besides its tensors
        self.also = {}              # further tensors of a checkpoint: by file, what returns them
        self.metrics = os.path.join(self.out, "metrics.jsonl")
        self.checkpoint = max(self._checkpoints(), key=_number, default=None)
        settings_file = os.path.join(self.out, "settings.json")
        now = {"command": sys.argv, "settings": asdict(settings),
               "sha256": {file: _sha256(file) for file in files}}
        if self.checkpoint or os.path.exists(self.metrics):
            if not settings.resume:
                raise ValueError(f"{self.out} holds a run: --resume goes on with it")
            self._must_match(transformer.read_json(settings_file) or {}, now, may_change)
        elif os.path.isdir(self.out) and any(
                name != "settings.json" and not name.endswith(".partial")
                for name in os.listdir(self.out)):
            raise ValueError(f"{self.out} exists and is not a run directory")
        cli.check_output(settings_file)
        if self.checkpoint:
            self.state = transformer.read_json(os.path.join(self.checkpoint, "state.json"))
            if gone := [step for step in self.keep_at if step <= self.state["step"]
                        and not os.path.isdir(self._kept(step))]:
                raise ValueError(f"keep_at = {gone}: the run is past that")
        ranks.sum([0.0])                                    # all have looked before one writes
        if self.first:
            self.lock = os.open(self.out, os.O_RDONLY)      # for as long as this process lives
            try:
                fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(f"another process is running in {self.out}") from None
            if not (self.checkpoint or os.path.exists(self.metrics)):
                write_json(settings_file, now)
            self._forget_after(self.state["step"] if self.checkpoint else -1)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._ask_to_stop)

    def _checkpoints(self) -> list[str]:
        return sorted(glob.glob(glob.escape(self.out) + "/checkpoint-*[0-9]"), key=_number)

    def _kept(self, step: int) -> str:
        return os.path.join(self.out, f"step-{step:06d}")

    @staticmethod
    def _must_match(before, now, may_change):
        settings, digests = before.get("settings", {}), before.get("sha256", {})
        if other := [f"{name} was {settings.get(name)!r}" for name, value in now["settings"].items()
                     if name not in may_change and value != settings.get(name)]:
            raise ValueError(f"this run was begun with other settings: {', '.join(other)}")
        for file, digest in now["sha256"].items():
            if digest != digests.get(file):
                raise ValueError(f"{file} has changed since this run was begun")

    def _forget_after(self, step: int):
        """Drop what a killed run wrote after its last checkpoint: it will be written again."""
        if os.path.exists(self.metrics):
            with open(self.metrics, "rb") as file:
                rows = [json.loads(line) for line in file if line.endswith(b"\n")]
            cli.write_jsonl(self.metrics, [row for row in rows if row["step"] <= step])
        for folder in ("rollouts", "texts"):
            for path in glob.glob(os.path.join(glob.escape(self.out), folder, "step-*")):
                if _number(path) > step:
                    os.remove(path)

    def _ask_to_stop(self, number, frame):
        # A second Ctrl-C does not wait; torchrun passes on the first one at once.
        if self.asked_to_stop and time.monotonic() - self.asked_to_stop > 1:
            raise KeyboardInterrupt
        if self.first and not self.asked_to_stop:
            tqdm.write("stopping after this step; Ctrl-C again to stop at once", file=sys.stderr)
        self.asked_to_stop = time.monotonic()

    def log(self, row: dict) -> None:
        if not self.first:
            return
        row = {name: None if isinstance(value, float) and not math.isfinite(value) else value
               for name, value in row.items()}
        try:
            with open(self.metrics, "a", encoding="utf-8") as file:
                file.write(cli.as_line(row))
        except OSError as error:
            raise OSError(f"cannot write {self.metrics}: {error.strerror}") from None

    def end_step(self, row: dict, model, optimizer, last: bool) -> None:
        """Log a step; save when it is time to; leave if asked to or if nothing is finite."""
        self.state["step"] = row["step"]
        self.log(row)
        if row["skipped"] and self.first:
            tqdm.write(f"step {row['step']}: the loss or the gradient is not finite; its update is"
                       " left out", file=sys.stderr)
        if optimizer.skipped >= GIVE_UP_AFTER:
            raise FloatingPointError(f"the last {GIVE_UP_AFTER} losses or gradients were not"
                                     f" finite; the checkpoints in {self.out} are from before")
        if row["step"] in self.keep_at and self.first:      # before the checkpoint: no step is lost
            transformer.save(model, self._kept(row["step"]))
        # All processes must leave at the same step, whichever was asked to.
        stopping = self.ranks.sum([float(self.asked_to_stop is not None)])[0] > 0
        if (row["step"] % self.save_every == 0 or last or stopping) and not optimizer.skipped:
            self.save(model, optimizer)
        if stopping and not last:
            raise Stopped(f"stopped after step {row['step']}; --resume goes on from the last"
                          " checkpoint")

    def save(self, model, optimizer) -> None:
        """A checkpoint of the step in `state`; then those before the last `keep` go."""
        path = os.path.join(self.out, f"checkpoint-{self.state['step']:06d}")
        if self.first and not os.path.exists(path):
            self._write(path, model, optimizer)
        self.ranks.sum([0.0])                               # nobody leaves before it is written

    def _write(self, path: str, model, optimizer) -> None:
        for stale in glob.glob(glob.escape(self.out) + "/checkpoint-*.partial"):
            shutil.rmtree(stale)
        partial = path + ".partial"
        try:
            transformer.save(model, os.path.join(partial, "model"))
            tensors = os.path.join(partial, "optimizer.safetensors")
            transformer.save_tensors(optimizer.tensors(), tensors)
            _sync(tensors)
            for name, more in self.also.items():
                transformer.save_tensors(more(), os.path.join(partial, name))
            write_json(os.path.join(partial, "state.json"), self.state)
            os.rename(partial, path)
            _sync(self.out)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        for old in self._checkpoints()[:-self.keep]:
            os.rename(old, old + ".partial")                # a half one must not look whole
            shutil.rmtree(old + ".partial")

    def restore(self, optimizer) -> None:
        if self.checkpoint:
            optimizer.restore(os.path.join(self.checkpoint, "optimizer.safetensors"))

    def keep_best(self, model, score: float) -> None:
        """Save the model as OUT/best if no score before was as high."""
        best = self.state["best"]
        if math.isfinite(score) and (best is None or score > best):
            self.state["best"] = score
            if self.first:
                transformer.save(model, os.path.join(self.out, "best"))

    def finish(self, model) -> None:
        if self.first:
            transformer.save(model, os.path.join(self.out, "model"))
        self.ranks.sum([0.0])                               # nobody leaves before it is written


def _number(path: str) -> int:
    return int(re.search(r"-(\d+)[^/]*$", path)[1])


def _sha256(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def write_json(path: str, value) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path + ".partial", "w", encoding="utf-8") as file:
        json.dump(value, file, indent=2)
    _sync(path + ".partial")
    os.replace(path + ".partial", path)


# ---- measuring -------------------------------------------------------------------------------
def evaluate(model, tokenizer, problems: list[dict], ranks, settings) -> dict:
    """How many problems the model answers right: over all, and by level."""
    which = range(len(problems))[ranks.rank::ranks.size]
    prompts = [tokenizer.encode(problems[i]["prompt"], add_special_tokens=False).ids for i in which]
    groups = generate(model, prompts, n=settings.eval_n, temperature=settings.eval_temperature,
                      max_new_tokens=settings.eval_max_new_tokens, stop=stop_ids(model, tokenizer),
                      seed=settings.seed, indices=list(which))
    release(model)                                          # training needs the memory
    answered = []
    for i, group in zip(which, groups):
        texts = [response_text(tokenizer, sample) for sample in group]
        answered.append([{**problems[i], "response": text, "tokens": sample.tokens,
                          "finished": sample.finished,
                          "reward": reward(problems[i], text, sample.finished)}
                         for text, sample in zip(texts, group)])
    rows = [row for group in ranks.gather(answered) for row in group]
    return {**summary(rows), "by_level": by_level(rows), "styles": styles(rows)}


def by_level(rows: list[dict]) -> dict[str, float]:
    """Mean reward of the rollouts of each level."""
    levels = {}
    for row in rows:
        levels.setdefault(str(row["level"]), []).append(row["reward"])
    return {level: sum(rewards) / len(rewards) for level, rewards in sorted(levels.items())}


@functools.cache
def parameters_in(config) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in transformer.Transformer(config).parameters())


def memory_plan(config, settings, dtype, longest: int, batch: int, recompute: bool) -> dict:
    """Bytes on the device while training, by what they are for (counted, not measured).

    longest: tokens of the longest sequence; batch: sequences in an update.
    """
    P, b = parameters_in(config), dtype.itemsize
    C, V, L = config.hidden_size, config.vocab_size, config.num_hidden_layers
    Q, KV = (n * config.head_dim for n in (config.num_attention_heads, config.num_key_value_heads))
    tokens = max(longest, min(settings.micro_tokens, batch * longest))
    # What autograd keeps of a layer: what goes into its products, and two norms in fp32.
    layer = tokens * (b * (2 * C + 2 * Q + 2 * KV + 4 * config.intermediate_size) + 16 * C)
    kept = L * tokens * b * C + layer if recompute else L * layer
    kept += tokens * 8 * (C + config.head_dim)
    casts = 0 if dtype == torch.float32 else b * (P // L if recompute else P)
    chunk = min(transformer.LOGITS_AT_ONCE, tokens * V)
    return {"weights": 4 * P, "AdamW": 0 if settings.offload else 8 * P, "gradients": 4 * P,
            "activations": kept + layer + casts, "logits": 12 * chunk + (4 + b) * V * C}


def free_memory(device: torch.device) -> int:
    """Bytes that this process could still take."""
    if device.type == "cuda":
        return int(0.95 * torch.cuda.mem_get_info(device)[0])   # kernels and gaps take some
    with open("/proc/meminfo") as file:
        return int(re.search(r"MemAvailable:\s+(\d+)", file.read())[1]) * 1024


def choose_plan(config, settings, dtype, longest, batch, room, more=0) -> tuple[dict, bool]:
    """The plan, and whether to recompute activations; `more` bytes are wanted beside it."""
    plans = {recompute: memory_plan(config, settings, dtype, longest, batch, recompute)
             for recompute in (False, True)}
    recompute = settings.checkpointing == "yes" or (
        settings.checkpointing == "auto" and sum(plans[False].values()) + more > room)
    return plans[recompute], recompute


def show_plan(what: str, parts: dict, room: float, first: bool) -> None:
    """Print the plan in a line; ValueError where there is not that much room."""
    total = sum(parts.values())
    unit, scale = (1e9, "GB") if total > 1e9 else (1e6, "MB")
    line = f"memory to {what}: " + " + ".join(
        f"{name} {size / unit:.2f}" for name, size in parts.items() if size)
    line += f" = {total / unit:.2f} of {room / unit:,.0f} {scale}"
    if total > room:
        raise ValueError(f"{line}: does not fit (smaller --micro-tokens, --checkpointing yes and"
                         " --offload need less)")
    if first:
        print(line, file=sys.stderr)


# ---- what both loops begin with --------------------------------------------------------------
CHOICES = {"loss_on": ("response", "all"), "schedule": ("cosine", "linear", "constant"),
           "checkpointing": ("auto", "yes", "no"), "template": ("chat", "base", "plain")}
AT_LEAST = {"batch": 1, "save_every": 1, "eval_every": 1, "keep": 1, "micro_tokens": 1,
            "eval_n": 1, "eval_max_new_tokens": 1, "max_length": 2, "warmup": 0,
            "weight_decay": 0, "eval_temperature": 0}


def check_settings(settings, choices=CHOICES, at_least=AT_LEAST) -> None:
    """ValueError for what cannot be trained with, before anything is loaded."""
    given = asdict(settings)
    for name, least in at_least.items():
        if not given.get(name, least) >= least:             # NaN is not
            raise ValueError(f"{name} = {given[name]}: at least {least}")
    for name, values in choices.items():
        if given.get(name, values[0]) not in values:
            raise ValueError(f"{name} = {given[name]}: one of {', '.join(values)}")
    for name, fine in (("lr", 0 < settings.lr < math.inf), ("clip_norm", settings.clip_norm > 0),
                       ("beta1", 0 <= settings.beta1 < 1), ("beta2", 0 <= settings.beta2 < 1)):
        if not fine:
            raise ValueError(f"{name} = {given[name]} cannot be trained with")


def check_keep_at(settings, steps: int) -> None:
    if never := [step for step in settings.keep_at if not 1 <= step <= steps]:
        raise ValueError(f"keep_at = {never}: there are steps 1 to {steps}")


def files_of(settings) -> list[str]:
    """What must not change while a run is stopped: data, and what the models are like."""
    given = asdict(settings)
    files = [*settings.data, *filter(None, map(given.get, ("val", "eval", "init")))]
    for folder in filter(None, map(given.get, ("model", "init", "tokenizer"))):
        files += [os.path.join(folder, name) for name in ("config.json", "tokenizer.json")]
    return list(filter(os.path.isfile, files))


def read_eval(settings, tokenizer, config) -> list[dict]:
    """The problems of --eval, whose prompts leave room for an answer."""
    problems = cli.read_problems(settings.eval, settings.template) if settings.eval else []
    if settings.eval and not problems:
        raise ValueError(f"{settings.eval}: no problems")
    for problem in problems:
        n = len(tokenizer.encode(problem["prompt"], add_special_tokens=False).ids)
        if not 0 < n < config.max_position_embeddings:
            raise ValueError(f"{settings.eval}: the prompt of {problem['id']} has {n} tokens; the"
                             f" model's context is {config.max_position_embeddings}")
    return problems


def begin(settings, ranks, run, config, files, dtype, recompute: bool):
    """The model and its optimizer: from the last checkpoint, from --model, or made from --init."""
    path = os.path.join(run.checkpoint, "model") if run.checkpoint else settings.model
    if path:
        model = transformer.load(path, ranks.device)
    else:
        torch.manual_seed(settings.seed)
        model = transformer.Transformer(config).to(ranks.device)
        transformer.set_files(model, files, settings.init)
    model.compute_dtype = None if dtype == torch.float32 else dtype
    model.checkpointing = recompute
    if settings.offload:
        P, processes = parameters_in(config), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        show_plan("offload", {"weights": 4 * P, "AdamW": 8 * P, "gradients": 4 * P},
                  free_memory(torch.device("cpu")) / processes, run.first)
    optimizer = AdamW(model, settings)
    run.restore(optimizer)
    return model, optimizer


def command(settings, train) -> None:
    """Run `train(settings, ranks, dtype)`; whatever ends it ends in one line."""
    code, words = 0, None
    try:
        device, dtype = cli.device_and_dtype(settings.device, settings.dtype)
        if settings.offload and not device.startswith("cuda"):
            raise ValueError("offload is for a GPU: on a CPU everything is in main memory")
        train(settings, Ranks(device), dtype)
    except (ValueError, OSError) as error:
        code, words = 2, error
    except torch.OutOfMemoryError as error:
        code, words = 2, (f"{str(error).split('. ')[0]}: smaller --micro-tokens or --checkpointing"
                          " yes need less; --resume goes on from the last checkpoint")
    except FloatingPointError as error:
        code, words = 1, error
    except (Stopped, KeyboardInterrupt) as error:
        code, words = 130, str(error) or "stopped; --resume goes on from the last checkpoint"
    except SystemExit as error:
        code = error.code
    if words:
        print(f"{os.path.basename(sys.argv[0])}: {' '.join(str(words).split())}", file=sys.stderr)
    if dist.is_initialized():       # where Python tidies up, gloo's threads abort some exits
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    if code:
        raise SystemExit(code)


# ---- SFT: data -------------------------------------------------------------------------------
def end_token(tokenizer, files: dict[str, bytes]) -> int:
    """What ends an answer: <|endoftext|> where there is one (paper), else the model's own."""
    end, own = tokenizer.token_to_id("<|endoftext|>"), transformer.eos_of(files)
    if end is None and not own:
        raise ValueError("neither the tokenizer nor config.json names a token that ends a text")
    return own[0] if end is None else end


def train_tokenizer(texts, size: int):
    """A byte-level BPE of at most `size` ids, among them Qwen's special tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=size, special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    return tokenizer


def read_texts(paths: list[str]) -> list[tuple[str, dict]]:
    """(file:line, row with prompt and response) of each line; a `text` is all response."""
    texts = []
    for path in paths:
        for number, row in cli.numbered_jsonl(path):
            if "text" in row and "response" not in row:
                row = {"prompt": "", "response": row["text"]}
            if not all(isinstance(row.get(name), str) for name in ("prompt", "response")):
                cli.stop(f"{path}:{number}: needs prompt and response, or text")
            if not row["prompt"] + row["response"]:
                cli.stop(f"{path}:{number}: is empty")
            if re.search("[\ud800-\udfff]", row["prompt"] + row["response"]):
                cli.stop(f"{path}:{number}: holds half a character")
            texts.append((f"{path}:{number}", row))
    if not texts:
        cli.stop(f"{' '.join(paths)}: no examples")
    return texts


def as_sequences(texts, tokenizer, end: int, max_length: int, loss_on="response"):
    """The texts as tokens; prompt and response are tokenised apart, as the sampler sees them."""
    sequences, size = [], tokenizer.get_vocab_size(with_added_tokens=True)
    for at in tqdm(range(0, len(texts), 1000), desc="tokenise", disable=len(texts) < 20_000):
        rows = [row for _, row in texts[at:at + 1000]]
        prompts, responses = ([encoded.ids for encoded in tokenizer.encode_batch(
            [row[part] for row in rows], add_special_tokens=False)]
            for part in ("prompt", "response"))
        for (name, row), prompt, response in zip(texts[at:at + 1000], prompts, responses):
            ends, ids = bool(row.get("finished", True)), response
            if "tokens" in row and isinstance(row["tokens"], list):
                ids = row["tokens"]                         # a rollout's: what was really sampled
                body = ids[:len(ids) - 1] if ends else ids
                if not all(type(i) is int and 0 <= i < size for i in ids) or \
                        tokenizer.decode(body, skip_special_tokens=False) != row["response"]:
                    cli.stop(f"{name}: its tokens do not spell its response: another tokenizer's?")
            elif ends:
                ids = ids + [end]
            start = 1 if loss_on == "all" else max(1, len(prompt))
            sequences.append(Sequence(numpy.array(prompt + ids, dtype=numpy.int32), start,
                                      len(sequences)))
    fitting = [s for s in sequences if s.start < len(s.tokens) <= max_length]
    if not fitting:
        raise ValueError(f"none of {len(sequences)} examples has at most {max_length} tokens")
    if len(fitting) < len(sequences):
        print(f"{len(sequences) - len(fitting)} of {len(sequences)} examples are left out: longer"
              f" than {max_length} tokens, or with nothing to train on", file=sys.stderr)
    return fitting


# ---- SFT: the command ------------------------------------------------------------------------
def from_scratch(settings, texts):
    """The tokenizer and the files (config, tokenizer) of a model that --init describes."""
    if settings.tokenizer:
        tokenizer = load_tokenizer(settings.tokenizer)
        files = transformer.read_files(settings.tokenizer)
        files = {name: files[name] for name in files.keys() - {"config.json",
                                                               "generation_config.json"}}
    else:
        words = (row[part] for _, row in texts for part in ("prompt", "response"))
        tokenizer = train_tokenizer(words, transformer.Config.load(settings.init).vocab_size)
        files = {"tokenizer.json": tokenizer.to_str().encode(),
                 "tokenizer_config.json": json.dumps({
                     "tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>",
                     "pad_token": "<|endoftext|>"}).encode()}
    inside = os.path.join(settings.init, "config.json")
    raw = transformer.read_json(inside if os.path.isdir(settings.init) else settings.init)
    raw = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", **raw,
           "eos_token_id": end_token(tokenizer, files)}
    return tokenizer, files | {"config.json": json.dumps(raw, indent=2).encode()}


def train(settings, ranks, dtype) -> None:
    check_settings(settings, {**CHOICES, "norm": ("sequence", "token")})
    if (settings.model is None) == (settings.init is None):
        raise ValueError("give either --model or --init")
    if settings.tokenizer and not settings.init:
        raise ValueError("--tokenizer is for --init: a model directory has its own")
    config = transformer.Config.load(settings.model or settings.init)
    if settings.max_length > config.max_position_embeddings:
        raise ValueError(f"max_length = {settings.max_length}: the model's context is"
                         f" {config.max_position_embeddings}")
    texts = read_texts(settings.data)
    if settings.model:
        tokenizer = load_tokenizer(settings.model)
        files = transformer.read_files(settings.model)
    else:
        tokenizer, files = from_scratch(settings, texts)
    end = end_token(tokenizer, files)
    limits = settings.max_length, settings.loss_on
    sequences = as_sequences(texts, tokenizer, end, *limits)
    held_out = settings.val and as_sequences(read_texts([settings.val]), tokenizer, end, *limits)
    problems = read_eval(settings, tokenizer, config)
    if not 0 < settings.epochs < math.inf or not round(settings.epochs * len(sequences)):
        raise ValueError(f"epochs = {settings.epochs} of {len(sequences)} examples is no training")
    items = round(settings.epochs * len(sequences))
    steps = -(-items // settings.batch)
    check_keep_at(settings, steps)

    run = Run(settings, ranks, files_of(settings))
    room = free_memory(ranks.device)
    parts, recompute = choose_plan(config, settings, dtype, max(len(s.tokens) for s in sequences),
                                   settings.batch, room)
    show_plan("train", parts, room, run.first)
    model, optimizer = begin(settings, ranks, run, config, files, dtype, recompute)

    def measured(step) -> dict:
        """What --val and --eval ask for, when it is time."""
        found = {}
        if (held_out or problems) and (step % settings.eval_every == 0 or step == steps):
            if held_out:
                with torch.no_grad():
                    found["val_loss"] = gradient(model, ranks, held_out, settings)
            if problems:
                found["eval"] = evaluate(model, tokenizer, problems, ranks, settings)
            if step:
                run.keep_best(model, found["eval"]["accuracy"] if problems else -found["val_loss"])
        return found

    if run.state["step"] == 0 and (first := measured(0)):
        run.log({"step": 0, **first})
    order = Order(len(sequences), settings.seed)
    with tqdm(total=steps, initial=run.state["step"], disable=not run.first, desc="sft") as bar:
        for step in range(run.state["step"], steps):
            start = time.perf_counter()
            positions = range(step * settings.batch, min((step + 1) * settings.batch, items))
            batch = [sequences[order[position]] for position in positions]
            loss = gradient(model, ranks, batch, settings)
            lr = learning_rate(step, steps, settings.lr, settings.schedule, settings.warmup)
            norm = optimizer.update(lr, loss)
            seconds, tokens = time.perf_counter() - start, sum(len(s.tokens) for s in batch)
            run.state["tokens"] = run.state.get("tokens", 0) + tokens
            row = {"step": step + 1, "epoch": round((positions[-1] + 1) / len(sequences), 4),
                   "loss": loss, "lr": lr, "grad_norm": norm, "skipped": optimizer.skipped,
                   "tokens": run.state["tokens"], **measured(step + 1),
                   "seconds": round(seconds, 3), "tokens_per_second": round(tokens / seconds)}
            bar.set_postfix_str(shown(row), refresh=False)
            bar.update()
            run.end_step(row, model, optimizer, last=step + 1 == steps)
    run.finish(model)


def gradient(model, ranks, sequences, settings) -> float:
    """Accumulate the gradient of the SFT loss of a batch; return the loss."""
    total = count_for(settings.norm, sequences)
    return accumulate(model, ranks, sequences, settings, lambda indices, logp, mask, entropy:
                      sft_loss(logp, mask, settings.norm, total))


def shown(row: dict) -> str:
    """The numbers that matter, for the bar."""
    text = f"loss {row['loss']:.4f}, {row['tokens_per_second']:,} tokens/s"
    text += f", val {row['val_loss']:.4f}" if "val_loss" in row else ""
    return text + (f", right {row['eval']['accuracy']:.1%}" if "eval" in row else "")


def main():
    command(cli.parse(Settings, __doc__), train)


if __name__ == "__main__":
    main()
