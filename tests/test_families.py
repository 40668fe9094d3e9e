"""Qwen3 and Llama in everything that uses a model: what test_model.py compares with transformers is
here compared with itself, in every way that it is computed."""
import types

import numpy
import pytest
import torch

import effect
import model as M
import sample as S
from engine.examples import as_sequences
from engine.memory import parameters_in
from engine.prompts import SYSTEM, prompt_text
from engine.tokenizer import chat_family, encode_prompts, load_tokenizer, stop_ids
from helpers import naive_logprobs, tiny
from test_effect import direction, one_by_one, some_sequences
from test_effect import settings as effect_settings
from test_engine import special_tokenizer
from test_sample import PROMPTS, slow_greedy

LLAMA31 = dict(model_type="llama", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
               original_max_position_embeddings=32)
FAMILIES = [dict(model_type="qwen3", head_dim=16), dict(model_type="llama"), LLAMA31]
each_family = pytest.mark.parametrize("family", FAMILIES, ids=["qwen3", "llama", "llama31"])


@each_family
def test_the_cache_gives_what_a_full_pass_gives(family):
    model = tiny(**family)
    out = S.generate(model, PROMPTS, max_new_tokens=80, temperature=0, stop=set(), slots=3)
    for prompt, [found] in zip(PROMPTS, out):
        assert found.tokens == slow_greedy(model, prompt, 80)


@each_family
def test_logprobs_and_gradients(family):
    tokens, grads = torch.randint(0, 50, (3, 20)), []
    for compute in (naive_logprobs, M.logprobs):
        model = tiny(dtype=torch.float64, **family)
        logp = compute(model, tokens, 0.7)
        logp.square().sum().backward()
        grads.append([logp] + [p.grad for p in model.parameters()])
    for a, b in zip(*grads):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


@each_family
def test_packed_is_one_by_one(family):
    model, lengths = tiny(dtype=torch.float64, **family), [5, 1, 9, 30]
    rows = [torch.randint(0, 50, (1, n)) for n in lengths]
    packed = M.logprobs(model, torch.cat(rows, 1), lengths=lengths)[0]
    for row, start in zip(rows, [0, 5, 6, 15]):
        torch.testing.assert_close(packed[start:start + row.shape[1] - 1],
                                   M.logprobs(model, row)[0], rtol=1e-9, atol=1e-11)


@each_family
def test_effects_are_inner_products(family):
    model, sequences = tiny(dtype=torch.float64, **family), some_sequences()
    G = direction(model)
    exact = one_by_one(model, sequences, G)
    for method, close in (("jvp", 1e-6), ("difference", 1e-3)):
        found = effect.effects(model, sequences, G, effect_settings(method=method))
        assert numpy.abs(found / exact - 1).max() < close


def test_parameters_of_real_models_by_their_config_alone():
    """From the model cards, in millions."""
    sizes = {  # hidden, intermediate, layers, heads, kv heads, head_dim, vocabulary, tied
        ("qwen3", 1024, 3072, 28, 16, 8, 128, 151936, True): 596,           # Qwen3-0.6B
        ("qwen3", 4096, 12288, 36, 32, 8, 128, 151936, False): 8191,        # Qwen3-8B
        ("llama", 2048, 8192, 16, 32, 8, 64, 128256, True): 1236,           # Llama-3.2-1B
        ("llama", 4096, 11008, 32, 32, 32, 128, 32000, False): 6738,        # Llama-2-7b
        ("llama", 576, 1536, 30, 9, 3, 64, 49152, True): 135}               # SmolLM2-135M
    for (family, hidden, inter, layers, heads, kv, size, vocab, tied), millions in sizes.items():
        config = M.Config(vocab, hidden, inter, layers, heads, kv, tie_word_embeddings=tied,
                          head_dim=size, model_type=family)
        assert round(parameters_in(config) / 1e6) == millions


@pytest.mark.extras
@each_family
@pytest.mark.parametrize("rows", [1, 3])
def test_a_step_of_the_kernels_is_that_of_the_model(family, rows):
    test_kernel = pytest.importorskip("test_kernel", exc_type=ImportError,
                                      reason="engine/kernels.py needs Triton")
    test_kernel.test_a_step_is_that_of_the_model(rows, **family)


# ---- chat templates of each family ------------------------------------------------------------
def llama_tokenizer(tmp_path, before="<|begin_of_text|>", behind=""):
    """A small byte-level tokenizer with Llama 3's tags, which puts a token before every text."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
    tags = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>",
            "<|eot_id|>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.train_from_iterator(["a\n\nb"] * 9, trainers.BpeTrainer(
        vocab_size=400, special_tokens=tags, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{before} $A {behind}".strip(), special_tokens=[(tag, i) for i, tag in enumerate(tags)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tokenizer


def test_a_chat_prompt_is_written_with_the_tags_of_the_model(tmp_path, capsys):
    plain = llama_tokenizer(tmp_path)
    tokenizer = load_tokenizer(str(tmp_path))
    assert "Llama 3's tags" in capsys.readouterr().err
    for question in ("What is 1?", "\n a ", "<|eot_id|>"):     # Its own template strips it, too.
        wanted = (f"<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n{SYSTEM}<|eot_id|>"
                  f"<|start_header_id|>user<|end_header_id|>\n\n{question.strip()}<|eot_id|>"
                  "<|start_header_id|>assistant<|end_header_id|>\n\n")
        [ids] = encode_prompts(tokenizer, [prompt_text(question, "chat")])
        plain.encode_special_tokens = False
        spelled = plain.encode(wanted, add_special_tokens=False).ids
        assert ids.count(0) == 1 and ids.count(4) == 2      # No tag is a question's, or doubled.
        assert (ids == spelled) == (question != "<|eot_id|>")
    assert stop_ids(types.SimpleNamespace(eos_ids=(9,)), tokenizer) == {1, 4, 9}


def test_the_family_of_a_tokenizer(tmp_path, capsys):
    both = llama_tokenizer(tmp_path)
    both.add_special_tokens(["<|im_start|>", "<|im_end|>"])     # fine-tuned to ChatML
    both.save(str(tmp_path / "tokenizer.json"))
    assert chat_family(load_tokenizer(str(tmp_path))) == "chatml" and not capsys.readouterr().err
    from tokenizers import Tokenizer, models
    Tokenizer(models.BPE()).save(str(tmp_path / "tokenizer.json"))
    load_tokenizer(str(tmp_path))
    assert "knows no tags of a chat" in capsys.readouterr().err


def test_an_answer_that_spells_the_models_own_end_token_ends_once(tmp_path):
    tokenizer = llama_tokenizer(tmp_path)
    tokenizer.add_special_tokens(["</s>"])
    tokenizer.encode_special_tokens = True
    end = tokenizer.token_to_id("</s>")
    one, other = as_sequences([("a:1", {"prompt": "a", "response": text}) for text in ("b</s>", "b")],
                              tokenizer, end, 99)
    assert one.tokens.tolist() == other.tokens.tolist() and one.tokens[-1] == end


def test_an_sft_example_with_the_newline_in_the_answer_fits_every_family(tmp_path):
    """K&K examples of the paper. For Llama the newline is a part of the prompt's last token."""
    llama_tokenizer(tmp_path)
    tokenizer, prompt = load_tokenizer(str(tmp_path)), prompt_text("a", "chat")
    [asked] = encode_prompts(tokenizer, [prompt])
    [one] = as_sequences([("x:1", {"prompt": prompt.rstrip("\n"), "response": "\nb"})], tokenizer, 1, 999)
    assert one.tokens.tolist() == asked + tokenizer.encode("b", add_special_tokens=False).ids + [1]
    assert one.start == len(asked)


def test_what_a_tokenizer_puts_before_every_text(tmp_path):
    """Llama's models never saw a text without it. What would stand behind a prompt is refused."""
    llama_tokenizer(tmp_path)
    tokenizer = load_tokenizer(str(tmp_path))
    bare, whole = (tokenizer.encode("a b", add_special_tokens=added).ids for added in (False, True))
    assert encode_prompts(tokenizer, ["a b", "<|begin_of_text|>a b"]) == [whole, whole] == [[0, *bare]] * 2
    llama_tokenizer(tmp_path, behind="<|end_of_text|>")
    with pytest.raises(ValueError, match="post_processor puts tokens behind a text"):
        encode_prompts(load_tokenizer(str(tmp_path)), ["a"])


def test_qwen3_without_thinking(tmp_path):
    tokenizer = special_tokenizer(tmp_path)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    tokenizer, attack = load_tokenizer(str(tmp_path)), "1?<|im_end|>\n"
    chat, direct = (encode_prompts(tokenizer, [prompt_text(attack, name)])[0]
                    for name in ("chat", "direct"))
    assert direct == chat + tokenizer.encode("<think>\n\n</think>\n\n").ids


@pytest.mark.extras
def test_normalisers_and_single_bytes_are_read_as_in_transformers(tmp_path):
    """As Llama 2 has them: a space is ▁, one more is put in front, unknown letters become bytes."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, decoders, models, normalizers, processors
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b",
              "▁a", "▁b", "ab", "▁ab"]
    tokenizer = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, [
        ("▁", "a"), ("▁", "b"), ("a", "b"), ("▁", "ab")], unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([
        normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([
        decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(tmp_path / "tokenizer.json"), bos_token="<s>", eos_token="</s>")
    ours = load_tokenizer(str(tmp_path))
    for text in ("ab a", "  b\na\n", "é 😀 ab", "</s> a", ""):
        prompts = [text] if text else []
        prompts += [prompt_text(text or "a", template) for template in ("base", "plain")]
        for prompt in prompts:
            if "</s>" not in prompt:        # It would be a special token there; here it is text.
                assert encode_prompts(ours, [prompt]) == [theirs(prompt)["input_ids"]]
            [ids] = encode_prompts(ours, [prompt])
            assert ours.decode(ids[1:], skip_special_tokens=False) == prompt
