"""The tokenizer of a model directory, and answers as text."""
import os
import sys
import time

from engine.files import refuse_run_directory


def load_tokenizer(path: str):
    """The tokenizer of a model directory; ValueError where there is none."""
    from tokenizers import Tokenizer
    refuse_run_directory(path)
    file = os.path.join(path, "tokenizer.json")
    if not os.path.exists(file):
        missing = "tokenizer.json" if os.path.isdir(path) else "such directory"
        raise ValueError(f"{path}: no {missing}")
    try:
        return Tokenizer.from_file(file)
    except Exception as error:      # tokenizers raises plain Exceptions
        raise ValueError(f"{file}: {error}") from None


def stop_ids(model, tokenizer) -> set[int]:
    """The end tokens that the model names, and Qwen's two: a base model names only one of them."""
    named = (tokenizer.token_to_id(text) for text in ("<|endoftext|>", "<|im_end|>"))
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
