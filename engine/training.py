"""How every trainer begins: it reads its data, opens its run directory, plans its memory, and loads
its model. What it then works with is a `Job`."""
import os
import sys
from dataclasses import dataclass

import torch

from engine.batches import Order, Sequence
from engine.cache import free_memory
from engine.evaluate import evaluate
from engine.examples import (as_sequences, end_token, from_scratch, read_examples, read_held_out,
                             read_training)
from engine.flags import command
from engine.huggingface import read_files, set_files
from engine.memory import RolloutPlan, choose_recompute, parameters_in, plan_line, rollout_plan
from engine.optimizer import AdamW
from engine.processes import Ranks, fit_machine
from engine.run import Run
from engine.tokenizer import load_tokenizer, stop_ids
from model import Config, Transformer, load


@dataclass
class Job:
    """What a trainer works with."""
    settings: object
    ranks: Ranks
    dtype: torch.dtype              # to compute in
    tokenizer: object
    items: list                     # to train on: sequences (SFT) or problems (GRPO, PPO)
    order: Order                    # of the items
    held_out: list[dict]            # problems of --eval
    run: Run
    model: Transformer
    optimizer: AdamW
    stop: set[int]                  # tokens that end an answer
    steps: int
    places: int = 0                 # SFT: how many items of the endless order are trained on
    validation: list[Sequence] | None = None    # SFT: examples of --val
    plan: RolloutPlan | None = None             # GRPO, PPO: how to sample within memory

    def evaluate(self) -> dict:
        """How much of --eval the model answers right."""
        return evaluate(self.model, self.tokenizer, self.held_out, self.ranks, self.settings)

    def start_model(self) -> Transformer:
        """The model as it was before the first step, to compare with."""
        return load(self.settings.model, self.ranks.device, self.dtype).requires_grad_(False)


def prepare_examples(settings, ranks, dtype) -> Job:
    """For SFT."""
    config = Config.load(settings.model or settings.init)
    if settings.max_length > config.max_position_embeddings:
        raise ValueError(f"max_length = {settings.max_length}: the model's context is"
                         f" {config.max_position_embeddings}")
    examples = read_examples(settings.data)
    if settings.model:
        tokenizer, files = load_tokenizer(settings.model), read_files(settings.model)
    else:
        tokenizer, files = from_scratch(settings, examples)
    more = tokenizer, end_token(tokenizer, files), settings.max_length, settings.loss_on
    sequences = as_sequences(examples, *more)
    validation = as_sequences(read_examples([settings.val]), *more) if settings.val else None
    held_out = read_held_out(settings, tokenizer, config)
    places = round(settings.epochs * len(sequences))
    if not places:
        raise ValueError(f"epochs = {settings.epochs} of {len(sequences)} examples is no training")
    steps = -(-places // settings.batch)
    check_keep_at(settings, steps)
    run = Run(settings, ranks, files_of(settings))
    room, longest = free_memory(ranks.device), max(len(one.tokens) for one in sequences)
    parts, recompute = choose_recompute(config, settings, dtype, longest, settings.batch, room,
                                        on_gpu=ranks.device.type == "cuda")
    tell([plan_line("train", parts, room)], ranks)
    model, optimizer = begin(settings, ranks, run, config, dtype, recompute, files)
    return Job(settings, ranks, dtype, tokenizer, sequences,
               Order(len(sequences), settings.seed), held_out, run, model, optimizer,
               stop_ids(model, tokenizer), steps, places, validation)


def prepare_rollouts(settings, ranks, dtype, has_critic: bool) -> Job:
    """For GRPO, PPO and distillation."""
    config, tokenizer = Config.load(settings.model), load_tokenizer(settings.model)
    check_keep_at(settings, settings.steps)
    if settings.max_prompt_tokens + settings.max_new_tokens > config.max_position_embeddings:
        raise ValueError(f"max_prompt_tokens + max_new_tokens = {settings.max_prompt_tokens} +"
                         f" {settings.max_new_tokens}: the model's context is"
                         f" {config.max_position_embeddings}")
    problems = read_training(settings, tokenizer)
    held_out = read_held_out(settings, tokenizer, config)
    run = Run(settings, ranks, files_of(settings),
              ("steps",) if settings.schedule == "constant" else ())
    longest = max(len(problem["prompt_tokens"]) for problem in problems)
    room = free_memory(ranks.device) - teacher_bytes(settings, dtype)
    plan = rollout_plan(settings, config, dtype, longest, room, ranks.size,
                        ranks.device.type == "cuda", has_critic, run.state.get("slots"))
    tell(plan.lines, ranks)
    model, optimizer = begin(settings, ranks, run, config, dtype, plan.recompute,
                             models=1 + has_critic)
    return Job(settings, ranks, dtype, tokenizer, problems,
               Order(len(problems), settings.seed), held_out, run, model, optimizer,
               stop_ids(model, tokenizer), settings.steps, plan=plan)


def begin(settings, ranks, run, config, dtype, recompute: bool, new_files=None, models=1):
    """The model (from the last checkpoint, from --model, or made from --init, whose config and
    tokenizer files are `new_files`) and a new optimizer for it. models: to train, 2 with a critic."""
    path = os.path.join(run.checkpoint, "model") if run.checkpoint else settings.model
    if path:
        model = load(path, ranks.device)
    else:
        torch.manual_seed(settings.seed)
        model = Transformer(config).to(ranks.device)
        set_files(model, new_files, settings.init)
    model.compute_dtype = None if dtype == torch.float32 else dtype
    model.checkpointing = recompute
    if settings.offload:
        P, processes = models * parameters_in(config), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        tell([plan_line("offload", {"weights": 4 * P, "AdamW": 8 * P, "gradients": 4 * P},
                        free_memory(torch.device("cpu")) / processes)], ranks)
    return model, AdamW(model, settings)


def teacher_directories(given: list[str]) -> dict[str, str]:
    """The model directories of --teacher by the names before them; "" is the name of one alone."""
    named = {}
    for text in given:
        name, equals, path = text.partition("=")
        if not equals or os.path.isdir(text):               # A directory may have = in its name.
            name, path = "", text
        if name in named or not path:
            raise ValueError(f"teacher = {' '.join(given)}: one directory, or several as NAME=DIR"
                             " with different names")
        named[name] = path
    return named


def teacher_bytes(settings, dtype) -> int:
    """What the weights of all teachers take in memory."""
    paths = teacher_directories(vars(settings).get("teacher", [])).values()
    return sum(parameters_in(Config.load(path)) * dtype.itemsize for path in paths)


def check_keep_at(settings, steps: int) -> None:
    if never := [step for step in settings.keep_at if not 1 <= step <= steps]:
        raise ValueError(f"keep_at = {never}: there are steps 1 to {steps}")


def files_of(settings) -> list[str]:
    """What must not change while a run is stopped: data and models."""
    given = vars(settings)
    files = [*settings.data, *filter(None, map(given.get, ("val", "eval", "model"))),
             *teacher_directories(given.get("teacher", [])).values()]
    for path in filter(None, map(given.get, ("init", "tokenizer"))):    # no weights are read there
        inside = [os.path.join(path, name) for name in ("config.json", "tokenizer.json")]
        files += filter(os.path.isfile, inside) if os.path.isdir(path) else [path]
    return files


def tell(lines: list[str], ranks) -> None:
    """Print the plan of memory once."""
    if ranks.first:
        print("\n".join(lines), file=sys.stderr)


def train_command(settings, train, check=None) -> None:
    """Run train(settings, ranks, dtype) on the device that the settings name, after check(settings)."""
    def work():
        if check:
            check(settings)
        config = Config.load(settings.model or settings.init)
        device, dtype = fit_machine(settings, config)
        if settings.offload and not device.startswith("cuda"):
            raise ValueError("offload is for a GPU: on a CPU everything is in main memory")
        train(settings, Ranks(device), dtype)
    command(work)
