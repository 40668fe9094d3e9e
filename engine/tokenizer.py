"""The tokenizer of a model directory: prompts as tokens, and answers as text."""
import os
import re
import sys
import time

from engine.files import refuse_run_directory
from engine.prompts import END_TOKENS, pieces


def load_tokenizer(path: str):
    """The tokenizer of a model directory; ValueError where there is none.

    It reads special tokens as plain text: nobody's data can write one. `encode_prompts` lets the
    template's through. A file that was saved while transformers padded or cut texts says so; it is
    not obeyed, as transformers does not obey it either unless it is asked again.
    """
    from tokenizers import Tokenizer
    refuse_run_directory(path)
    file = os.path.join(path, "tokenizer.json")
    if not os.path.exists(file):
        missing = "tokenizer.json" if os.path.isdir(path) else "such directory"
        raise ValueError(f"{path}: no {missing}")
    try:
        tokenizer = Tokenizer.from_file(file)
    except Exception as error:      # tokenizers raises plain Exceptions
        raise ValueError(f"{file}: {error}") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    family = chat_family(tokenizer)
    if not family:
        print(f"{path}: its tokenizer knows no tags of a chat: those of chat prompts are plain text",
              file=sys.stderr)
    if family == "llama3":
        print(f"{path}: chat prompts are written with Llama 3's tags", file=sys.stderr)
    return tokenizer


def chat_family(tokenizer) -> str:
    """Which tags of a chat this tokenizer knows, "" for none. Where it knows both, those of ChatML
    were added to a Llama on purpose."""
    tags = {"chatml": "<|im_start|>", "llama3": "<|start_header_id|>"}
    return next((name for name in tags if tokenizer.token_to_id(tags[name]) is not None), "")


def opening(tokenizer) -> list[int]:
    """The tokens that this tokenizer puts before every text, such as Llama's <|begin_of_text|>."""
    bare, whole = (tokenizer.encode("a", add_special_tokens=added).ids for added in (False, True))
    if whole[len(whole) - len(bare):] != bare:
        raise ValueError("tokenizer.json: its post_processor puts tokens behind a text, which would"
                         " end every prompt")
    return whole[:len(whole) - len(bare)]


def encode_prompts(tokenizer, prompts: list[str]) -> list[list[int]]:
    """The tokens of prompts. In one that a template made, the question is plain text throughout."""
    for prompt in prompts:
        if re.search("[\ud800-\udfff]", prompt):
            raise ValueError(f"a prompt holds half a character: {prompt!r:.60}")
    family, first = chat_family(tokenizer), opening(tokenizer)
    ids, parts = [[] for _ in prompts], [pieces(prompt, family) for prompt in prompts]
    encoded = {}
    for special in (False, True):       # all texts of a kind together, which is faster
        texts = list(dict.fromkeys(text for some in parts for text, own in some if own == special))
        tokenizer.encode_special_tokens = not special
        encoded |= {(text, special): one.ids for text, one in zip(
            texts, tokenizer.encode_batch(texts, add_special_tokens=False))}
    tokenizer.encode_special_tokens = True
    for mine, some in zip(ids, parts):
        for piece in some:
            mine += encoded[piece]
        if mine[:len(first)] != first:
            mine[:0] = first
    return ids


def stop_ids(model, tokenizer) -> set[int]:
    """The end tokens that the model names, and those of chats: a base model names only one."""
    named = map(tokenizer.token_to_id, END_TOKENS)
    return {*model.eos_ids, *(token for token in named if token is not None)}


def response_text(tokenizer, sample) -> str:
    """What was answered, without the end token."""
    tokens = sample.tokens[:-1] if sample.finished else sample.tokens
    return tokenizer.decode(tokens, skip_special_tokens=False)


class Printer:
    """Prints an answer while it grows."""

    def __init__(self, tokenizer):
        self.tokenizer, self.shown, self.begun = tokenizer, "", time.perf_counter()

    def show(self, sample, is_last=False) -> None:
        text = response_text(self.tokenizer, sample)
        if is_last or not text.endswith("\ufffd"):          # half a character: wait for the rest
            print(text[len(self.shown):], end="", flush=True)
            self.shown = text

    def end(self, sample) -> None:
        seconds = time.perf_counter() - self.begun
        self.show(sample, is_last=True)
        print(f"\n[{len(sample.tokens)} tokens, {'ended' if sample.finished else 'cut off'},"
              f" {len(sample.tokens) / seconds:.1f} tokens/s]", file=sys.stderr)
