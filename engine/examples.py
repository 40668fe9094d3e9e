"""Data to train on: examples for SFT, problems for GRPO and PPO, and a tokenizer trained on texts."""
import json
import os
import re
import sys
from dataclasses import dataclass

import numpy
from tqdm import tqdm

from engine.batches import Sequence
from engine.files import data_files, numbered_rows, read_json
from engine.huggingface import CLASSES, eos_of, read_files
from engine.problems import read_problems
from engine.prompts import CHAT, END_TOKENS
from engine.tokenizer import chat_family, encode_prompts, load_tokenizer
from model import Config


def end_token(tokenizer, files: dict[str, bytes]) -> int:
    """What ends an answer: <|endoftext|> where there is one (paper), else the model's own."""
    end, own = tokenizer.token_to_id("<|endoftext|>"), eos_of(files)
    if end is None and not own:
        raise ValueError("neither the tokenizer nor config.json names a token that ends a text")
    return own[0] if end is None else end


# ---- examples --------------------------------------------------------------------------------
def read_examples(paths: list[str]) -> list[tuple[str, dict]]:
    """(file:line, row with prompt and response) of each line; a `text` is all response."""
    examples = []
    for path in data_files(paths):
        for number, row in numbered_rows(path):
            if "text" in row and "response" not in row:
                row = {"prompt": "", "response": row["text"]}
            if not all(isinstance(row.get(name), str) for name in ("prompt", "response")):
                raise ValueError(f"{path}:{number}: needs prompt and response, or text")
            row = without_end(row)
            if not row["prompt"] + row["response"]:
                raise ValueError(f"{path}:{number}: is empty")
            if re.search("[\ud800-\udfff]", row["prompt"] + row["response"]):
                raise ValueError(f"{path}:{number}: holds half a character")
            examples.append((f"{path}:{number}", row))
    if not examples:
        raise ValueError(f"{' '.join(paths)}: no examples")
    return examples


def without_end(row: dict, ends=END_TOKENS) -> dict:
    """Many public responses spell their end token. It is taken off here, with the whitespace behind
    it, because `response_ids` adds it. The tokens of a rollout tell how it ended."""
    text = row["response"].rstrip()
    end = next((end for end in ends if text.endswith(end)), None)
    if isinstance(row.get("tokens"), list) or end is None:
        return row
    return {**row, "response": text.removesuffix(end), "finished": True}


def without_newline(row: dict) -> dict:
    """For Qwen the newline between prompt and answer is a token of its own, in whichever of them it
    is. For Llama it is a part of the last token of the prompt, so the answer must not repeat it."""
    if row["prompt"].endswith(CHAT[1].rstrip("\n")):
        return {**row, "response": row["response"].removeprefix("\n")}
    return row


def response_ids(place: str, row: dict, ids: list[int], tokenizer, size: int, end: int):
    """The tokens of a response. A rollout's own, where the row has them: what was really sampled."""
    finished = bool(row.get("finished", True))
    if not isinstance(row.get("tokens"), list):
        return ids + [end] if finished else ids
    ids = row["tokens"]
    text = ids[:len(ids) - 1] if finished else ids
    if not all(type(i) is int and 0 <= i < size for i in ids) or \
            tokenizer.decode(text, skip_special_tokens=False) != row["response"]:
        raise ValueError(f"{place}: its tokens do not spell its response: another tokenizer's?")
    return ids


def as_sequences(examples, tokenizer, end: int, max_length: int, loss_on="response"):
    """The examples as tokens. Prompt and response are tokenised apart, as the sampler sees them.

    An example longer than max_length is left out, and this is said. (The paper cuts it off; that
    would teach the model not to end.)
    """
    sequences, size = [], tokenizer.get_vocab_size(with_added_tokens=True)
    for at in tqdm(range(0, len(examples), 1000), desc="tokenise", disable=len(examples) < 20_000):
        some = examples[at:at + 1000]
        if (own := tokenizer.id_to_token(end)) not in END_TOKENS:       # those are off already
            some = [(place, without_end(row, [own])) for place, row in some]
        if chat_family(tokenizer) == "llama3":
            some = [(place, without_newline(row)) for place, row in some]
        prompts = encode_prompts(tokenizer, [row["prompt"] for _, row in some])
        responses = [encoded.ids for encoded in tokenizer.encode_batch(
            [row["response"] for _, row in some], add_special_tokens=False)]
        for (place, row), prompt, ids in zip(some, prompts, responses):
            ids = response_ids(place, row, ids, tokenizer, size, end)
            start = 1 if loss_on == "all" else max(1, len(prompt))
            sequences.append(Sequence(numpy.array(prompt + ids, dtype=numpy.int32), start,
                                      len(sequences)))
    fitting = [one for one in sequences if one.start < len(one.tokens) <= max_length]
    if not fitting:
        raise ValueError(f"none of {len(sequences)} examples has at most {max_length} tokens")
    if len(fitting) < len(sequences):
        print(f"{len(sequences) - len(fitting)} of {len(sequences)} examples are left out: longer"
              f" than {max_length} tokens, or with nothing to train on", file=sys.stderr)
    return fitting


# ---- datasets whose effects are measured -----------------------------------------------------
@dataclass
class Dataset:
    """The examples of a file that are not too long."""
    name: str
    rows: list[dict]                # as the file has them
    sequences: list[Sequence]

    def ids(self) -> list[str]:
        """The name of each row's problem. Without an id it is the prompt, where there is one."""
        return [str(row.get("id", row["prompt"] or f"{self.name}:{i}"))
                for i, row in enumerate(self.rows)]


def read_datasets(settings, tokenizer, config, tested: set) -> list[Dataset]:
    """The files of --data. An answer to a problem of --test is refused."""
    datasets, end = [], end_token(tokenizer, read_files(settings.model))
    longest = min(settings.max_length, config.max_position_embeddings)
    for path in settings.data:
        examples = read_examples([path])
        for place, row in examples:
            if str(row.get("id")) in tested:
                raise ValueError(f"{place}: {row['id']} is a problem of {settings.test}: an answer"
                                 " to it may be part of G, and its effect would be too large")
        sequences = as_sequences(examples, tokenizer, end, longest)
        datasets.append(Dataset(os.path.splitext(os.path.basename(path))[0],
                                [examples[one.index][1] for one in sequences], sequences))
    return datasets


# ---- problems --------------------------------------------------------------------------------
def read_training(settings, tokenizer) -> list[dict]:
    """The problems of --data with their prompt_tokens; those with long prompts are left out."""
    problems = read_problems(settings.data, settings.template)
    prompts = encode_prompts(tokenizer, [problem["prompt"] for problem in problems])
    problems = [{**problem, "prompt_tokens": ids} for problem, ids in zip(problems, prompts)]
    fitting = [p for p in problems if 0 < len(p["prompt_tokens"]) <= settings.max_prompt_tokens]
    if not fitting:
        raise ValueError(f"none of {len(problems)} prompts has 1 to {settings.max_prompt_tokens}"
                         " tokens")
    if len(fitting) < len(problems):
        print(f"{len(problems) - len(fitting)} of {len(problems)} problems are left out: prompts of"
              f" more than {settings.max_prompt_tokens} tokens", file=sys.stderr)
    return fitting


def read_held_out(settings, tokenizer, config) -> list[dict]:
    """The problems of --eval, whose prompts must leave room for an answer."""
    problems = read_problems(settings.eval, settings.template) if settings.eval else []
    prompts = encode_prompts(tokenizer, [problem["prompt"] for problem in problems])
    for problem, ids in zip(problems, prompts):
        if not 0 < len(ids) < config.max_position_embeddings:
            raise ValueError(f"{settings.eval}: the prompt of {problem['id']} has {len(ids)} tokens;"
                             f" the model's context is {config.max_position_embeddings}")
    return problems


# ---- a model from nothing --------------------------------------------------------------------
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


def from_scratch(settings, examples):
    """The tokenizer and the files (config, tokenizer) of a model that --init describes."""
    if settings.tokenizer:
        tokenizer, files = load_tokenizer(settings.tokenizer), read_files(settings.tokenizer)
        files = {name: content for name, content in files.items()
                 if name not in ("config.json", "generation_config.json")}
    else:
        texts = (row[part] for _, row in examples for part in ("prompt", "response"))
        tokenizer = train_tokenizer(texts, Config.load(settings.init).vocab_size)
        files = {"tokenizer.json": tokenizer.to_str().encode(),
                 "tokenizer_config.json": json.dumps({
                     "tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>",
                     "pad_token": "<|endoftext|>"}).encode()}
    inside = os.path.join(settings.init, "config.json")
    config = read_json(inside if os.path.isdir(settings.init) else settings.init)
    family = config.get("model_type", "qwen2")
    config = {"architectures": [CLASSES.get(family)], "model_type": family, **config,
              "eos_token_id": end_token(tokenizer, files)}
    return tokenizer, files | {"config.json": json.dumps(config, indent=2).encode()}
