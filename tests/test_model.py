"""model.py against transformers (recorded, and live where it is installed) and against itself."""
import dataclasses
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

import model as M
from engine import huggingface, logits
from helpers import GOLDEN, ROOT, naive_logprobs, tiny

@pytest.fixture(scope="module")
def expected():
    return load_file(os.path.join(GOLDEN, "expected.safetensors"))


def copy_golden(path, **config):
    """The golden directory again, with some keys of config.json changed (None: removed)."""
    shutil.copytree(GOLDEN, path)
    with open(path / "config.json") as file:
        raw = json.load(file) | config
    with open(path / "config.json", "w") as file:
        json.dump({key: value for key, value in raw.items() if value is not None}, file)
    return str(path)


# ---- the same numbers as transformers --------------------------------------------------------
def test_golden_logits_and_greedy_tokens(expected):
    model = M.load(GOLDEN)
    with torch.inference_mode():
        assert (model(expected["tokens"]) - expected["logits"]).abs().max() < 1e-4
        tokens = expected["tokens"][:, :16]
        for _ in range(64):
            tokens = torch.cat([tokens, model(tokens)[:, -1:, :model.vocab].argmax(-1)], 1)
    assert torch.equal(tokens[:, 16:], expected["greedy"])


@pytest.mark.extras
@pytest.mark.parametrize("family, heads, kv_heads, tied, shard, dtype, extra", [
    ("Qwen2", 4, 4, False, "1GB", "float32", {}),
    ("Qwen2", 4, 2, True, "40KB", "float32", {}),
    ("Qwen2", 7, 1, True, "1GB", "bfloat16", {"hidden_size": 70, "intermediate_size": 99}),
    ("Qwen2", 14, 2, False, "60KB", "bfloat16", {"hidden_size": 84, "rope_theta": 1e4}),
    ("Qwen2", 6, 3, False, "1GB", "float16", {"vocab_size": 131, "rms_norm_eps": 1e-5}),
    ("Qwen3", 4, 2, True, "1GB", "float32", {"head_dim": 16}),
    ("Qwen3", 6, 1, False, "40KB", "bfloat16", {"head_dim": 32, "rms_norm_eps": 1e-5}),
    ("Qwen3", 2, 2, True, "1GB", "float32", {"hidden_size": 30}),           # heads of 128
    ("Llama", 4, 4, False, "1GB", "float32", {"rope_theta": 1e4}),          # as Llama 2
    ("Llama", 9, 3, True, "40KB", "bfloat16", {"rope_theta": 1e5}),         # as SmolLM2
    ("Llama", 4, 2, True, "1GB", "float32", {"head_dim": 16, "rope_parameters": {
        "rope_type": "llama3", "rope_theta": 5e5, "factor": 32.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 64}}),    # as Llama 3.2
    ("Llama", 8, 1, False, "1GB", "float16", {"rope_parameters": {
        "rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 2.0,
        "high_freq_factor": 5.0, "original_max_position_embeddings": 100}}),
])
def test_random_models_both_ways(tmp_path, family, heads, kv_heads, tied, shard, dtype, extra):
    transformers = pytest.importorskip("transformers")
    settings = {"vocab_size": 97, "hidden_size": heads * 12, "intermediate_size": 80,
                "num_hidden_layers": 3, "rope_theta": 1e6, **extra}
    torch.manual_seed(heads)
    theirs = getattr(transformers, f"{family}ForCausalLM")(getattr(
        transformers, f"{family}Config")(
        num_attention_heads=heads, num_key_value_heads=kv_heads, tie_word_embeddings=tied,
        max_position_embeddings=256, **settings)).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            parameter.normal_(1.0 if "norm" in name else 0.0, 0.15)
    theirs.to(getattr(torch, dtype)).save_pretrained(tmp_path / "theirs", max_shard_size=shard)

    def read(name):     # not .float(): a cast to bf16 has rounded their rotary frequencies too
        return transformers.AutoModelForCausalLM.from_pretrained(tmp_path / name,
                                                                 dtype=torch.float32).eval()
    theirs = read("theirs")
    ours = M.load(str(tmp_path / "theirs"))
    assert (len(os.listdir(tmp_path / "theirs")) > 4) == (shard != "1GB")   # sharded where asked

    M.save(ours, str(tmp_path / "ours"), shard_bytes=10**9 if shard == "1GB" else 40_000)
    back = read("ours")
    tokens = torch.randint(0, settings["vocab_size"], (2, 20))
    with torch.inference_mode():
        for _ in range(64):
            logits = theirs(tokens).logits
            assert (ours(tokens) - logits).abs().max() < 1e-4
            assert (back(tokens).logits - logits).abs().max() < 1e-4
            tokens = torch.cat([tokens, logits[:, -1:].argmax(-1)], 1)
    first, second = (json.loads((tmp_path / name / "config.json").read_text())
                     for name in ("theirs", "ours"))
    assert second == first | {"dtype": "float32"}


@pytest.mark.extras
@pytest.mark.parametrize("family", ["Qwen2", "Qwen3", "Llama"])
def test_what_a_config_leaves_out_is_as_in_transformers(tmp_path, family):
    """With another default the same file is another model: rope_theta was 1e6 here, 1e4 there."""
    transformers = pytest.importorskip("transformers")
    given = dict(vocab_size=100, hidden_size=48, intermediate_size=80, num_hidden_layers=2,
                 num_attention_heads=4) | ({} if family == "Llama" else {"num_key_value_heads": 4})
    theirs = getattr(transformers, f"{family}Config")(**given).to_dict()
    theirs |= theirs["rope_parameters"]
    if family == "Qwen2":
        theirs["head_dim"] = 48 // 4
    (tmp_path / "config.json").write_text(json.dumps(given | {"model_type": family.lower()}))
    ours = dataclasses.asdict(M.Config.load(str(tmp_path)))
    ours = {name: value for name, value in ours.items() if name not in huggingface.STRETCH}
    assert len(ours) == 13 and ours == {name: theirs[name] for name in ours}


def test_a_fresh_model_of_each_family_is_saved_and_read(tmp_path):
    stretch = dict(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                   original_max_position_embeddings=32)
    tokens = torch.randint(0, 50, (2, 30))
    for family, changes in [("qwen2", {}), ("qwen3", {"head_dim": 8}), ("llama", {}),
                            ("llama", stretch)]:
        model = tiny(model_type=family, **changes)
        M.save(model, str(tmp_path / "m"))
        again = M.load(str(tmp_path / "m"))
        assert again.config == model.config and torch.equal(again(tokens), model(tokens))
        names = dict(model.named_parameters())
        assert any("bias" in name for name in names) == (family == "qwen2")
        assert any("q_norm" in name for name in names) == (family == "qwen3")


@pytest.mark.extras
def test_transformers_reads_the_tiny_base_as_it_is():
    transformers = pytest.importorskip("transformers")
    path = os.path.join(ROOT, "assets", "tiny_base")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    tokens = torch.randint(0, 320, (2, 200))
    with torch.inference_mode():
        assert (M.load(path)(tokens) - theirs(tokens).logits).abs().max() < 1e-3


def test_a_saved_config_leaves_nothing_to_defaults(tmp_path):
    path = copy_golden(tmp_path / "m", rope_parameters=None, rms_norm_eps=None,
                       initializer_range=None, tie_word_embeddings=True)
    M.save(M.load(path), path)
    names = {field.name for field in dataclasses.fields(M.Config)} - {
        "head_dim", *huggingface.STRETCH}
    for folder in (path, os.path.join(ROOT, "assets", "tiny_base")):
        with open(os.path.join(folder, "config.json")) as file:
            assert names <= json.load(file).keys()


def test_every_qwen25_size_by_its_config_alone():
    """Parameter counts from the model cards, in millions (72B's as 72706)."""
    sizes = {  # hidden, intermediate, layers, heads, kv heads, vocabulary, tied -> parameters
        (896, 4864, 24, 14, 2, 151936, True): 494, (1536, 8960, 28, 12, 2, 151936, True): 1544,
        (2048, 11008, 36, 16, 2, 151936, True): 3086, (3584, 18944, 28, 28, 4, 152064, False): 7616,
        (5120, 13824, 48, 40, 8, 152064, False): 14770,
        (5120, 27648, 64, 40, 8, 152064, False): 32764,
        (8192, 29568, 80, 64, 8, 152064, False): 72706}
    for (hidden, inter, layers, heads, kv, vocab, tied), millions in sizes.items():
        with torch.device("meta"):
            model = M.Transformer(M.Config(vocab, hidden, inter, layers, heads, kv,
                                           tie_word_embeddings=tied))
        assert round(sum(p.numel() for p in model.parameters()) / 1e6) == millions


# ---- padded and packed -----------------------------------------------------------------------
def test_padded_and_packed_give_the_loss_and_gradient_of_one_by_one():
    """Positions counted from the pad, and attention across packed neighbours, are common faults."""
    lengths = [5, 1, 9, 3]
    rows = [torch.randint(0, 50, (1, n)) for n in lengths]

    def gradient(way):
        model = tiny(dtype=torch.float64)
        if way == "one":
            parts = [M.logprobs(model, row) for row in rows]
        elif way == "packed":
            whole = M.logprobs(model, torch.cat(rows, 1), lengths=lengths)
            starts = [0, 5, 6, 15]
            assert all(whole[0, start - 1] == 0 for start in starts[1:])    # borders are no data
            parts = [whole[:, s:s + n - 1] for s, n in zip(starts, lengths)]
        else:
            batch = torch.full((4, 9), 7)
            for i, row in enumerate(rows):
                batch[i, :row.shape[1]] = row
            mask = torch.arange(8)[None] < torch.tensor(lengths)[:, None] - 1
            whole = M.logprobs(model, batch, where=mask)
            assert (whole[~mask] == 0).all()
            parts = [whole[i:i + 1, :n - 1] for i, n in enumerate(lengths)]
        sum((part * torch.arange(1, part.shape[1] + 1)).sum() for part in parts).backward()
        return parts, [p.grad for p in model.parameters()]

    parts, grads = gradient("one")
    for way in ("packed", "padded"):
        other_parts, other_grads = gradient(way)
        for a, b in zip(parts + grads, other_parts + other_grads):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_packed_lengths_must_describe_the_row():
    for tokens, lengths in [(torch.zeros(1, 6, dtype=int), [3, 4]),
                            (torch.zeros(2, 3, dtype=int), [3, 3])]:
        with pytest.raises(ValueError, match="packed row"):
            M.logprobs(tiny(), tokens, lengths=lengths)


# ---- logprobs --------------------------------------------------------------------------------
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("at_once", [2**26, 100])       # one piece; two tokens and few ids a piece
@pytest.mark.parametrize("vocab, rows", [(45, 50), (70, 200)])    # all rows in use; 128 of them
def test_logprobs_and_their_gradient(monkeypatch, tied, at_once, vocab, rows):
    monkeypatch.setattr(logits, "LOGITS_AT_ONCE", at_once)
    tokens = torch.randint(0, vocab, (3, 8))
    weight = torch.randn(3, 7, dtype=torch.float64)
    grads = []
    for naive in (True, False):
        model = tiny(dtype=torch.float64, tie_word_embeddings=tied, vocab_size=rows)
        model.vocab = vocab                                     # the padded ids have no probability
        logp = (naive_logprobs if naive else M.logprobs)(model, tokens, 0.7)
        (logp * weight).sum().backward()
        grads.append([logp] + [p.grad for p in model.parameters()])
    for a, b in zip(*grads):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_logprobs_never_hold_all_logits(monkeypatch):
    """B x T x V logits are the most reported out-of-memory of this kind of code."""
    monkeypatch.setattr(logits, "LOGITS_AT_ONCE", 5000)
    shapes, head_logits = [], logits.head_logits
    monkeypatch.setattr(logits, "head_logits",
                        lambda h, w, v: shapes.append(len(h) * len(w)) or head_logits(h, w, v))
    model = tiny(vocab_size=500)
    M.logprobs(model, torch.randint(0, 500, (4, 64))).sum().backward()
    assert sum(shapes) == 2 * 4 * 63 * 500 and max(shapes) <= 5000


def test_logprobs_refuse_a_token_without_probability():
    model = tiny()
    model.vocab = 45
    with pytest.raises(ValueError, match="beyond the 45 ids"):
        M.logprobs(model, torch.tensor([[1, 47, 2]]))
    M.logprobs(model, torch.tensor([[47, 2, 1]]))       # only as context, it is harmless


# ---- precision and checkpointing -------------------------------------------------------------
def test_fp32_masters_under_bf16_compute():
    """bf16 masters do not train: a step of 1e-5 vanishes in most weights. Masters stay fp32."""
    model = tiny(tie_word_embeddings=True)
    model.compute_dtype = torch.bfloat16
    tokens = torch.randint(0, 50, (2, 10))
    seen = []
    hook = model.model["layers"][1].mlp.register_forward_hook(lambda *a: seen.append(a[2].dtype))
    logp = M.logprobs(model, tokens)
    hook.remove()
    assert seen == [torch.bfloat16] and logp.dtype == torch.float32
    logp.sum().backward()
    assert {p.grad.dtype for p in model.parameters()} == {torch.float32}
    model.compute_dtype = None
    assert 0 < (M.logprobs(model, tokens) - logp).abs().max() < 0.2


def test_checkpointing_changes_memory_only():
    grads = []
    for checkpointing in (False, True):
        model, calls = tiny(), []
        model.checkpointing = checkpointing
        model.model["layers"][0].register_forward_pre_hook(lambda *_: calls.append(1))
        M.logprobs(model, torch.arange(20).view(2, 10)).sum().backward()
        assert len(calls) == 1 + checkpointing                  # recomputed in the backward pass
        grads.append([p.grad for p in model.parameters()])
    for a, b in zip(*grads):
        assert torch.equal(a, b)


# ---- directories -----------------------------------------------------------------------------
def test_save_and_load_carry_everything(tmp_path):
    path = copy_golden(tmp_path / "a", my_note={"kept": 1}, eos_token_id=5)
    model = M.load(path)
    assert (model.vocab, model.eos_ids) == (294, (0, 2))        # generation_config.json wins
    M.save(model, str(tmp_path / "b"), dtype=torch.bfloat16)
    for name in ("tokenizer.json", "generation_config.json"):
        assert (tmp_path / "b" / name).read_bytes() == (tmp_path / "a" / name).read_bytes()
    config = json.loads((tmp_path / "b" / "config.json").read_text())
    assert config["my_note"] == {"kept": 1} and config["dtype"] == "bfloat16"
    stored = load_file(tmp_path / "b" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    assert "lm_head.weight" not in stored                       # tied
    again = M.load(str(tmp_path / "b"))
    assert next(again.parameters()).dtype == torch.float32
    for a, b in zip(model.parameters(), again.parameters()):
        assert torch.equal(a.bfloat16().float(), b)


def test_a_saved_model_names_every_token_that_ends_an_answer(tmp_path):
    """SFT teaches <|endoftext|>, the sampler stops at <|im_end|> too, and others must do the same."""
    path = copy_golden(tmp_path / "a", eos_token_id=2)
    for content in (None, {"eos_token_id": 2, "top_k": 5}, {}):
        (tmp_path / "a" / "generation_config.json").unlink(missing_ok=True)
        if content is not None:
            (tmp_path / "a" / "generation_config.json").write_text(json.dumps(content))
        M.save(M.load(path), str(tmp_path / "b"))
        config = json.loads((tmp_path / "b" / "config.json").read_text())
        assert config["eos_token_id"] == [2, 0] and M.load(str(tmp_path / "b")).eos_ids == (2, 0)
        assert (tmp_path / "b" / "generation_config.json").exists() == (content is not None)
        if content is not None:
            assert json.loads((tmp_path / "b" / "generation_config.json").read_text()) == {
                **content, "eos_token_id": [2, 0]}


def test_a_head_that_is_stored_though_it_is_tied(tmp_path):
    path = copy_golden(tmp_path / "a")
    file = tmp_path / "a" / "model.safetensors"
    stored = load_file(file)
    for more, fits in ((0, True), (1, False)):
        head = stored["model.embed_tokens.weight"] + more
        save_file({**stored, "lm_head.weight": head}, file, metadata={"format": "pt"})
        if fits:
            M.load(path)
        else:
            with pytest.raises(ValueError, match="lm_head.weight is not the embedding"):
                M.load(path)


def test_a_whole_file_counts_before_an_index(tmp_path):
    """As for transformers."""
    one, two = tiny(1), tiny(2)
    M.save(one, str(tmp_path / "m"), shard_bytes=5000)
    M.save(two, str(tmp_path / "n"))
    shutil.copy(tmp_path / "n" / "model.safetensors", tmp_path / "m")
    assert torch.equal(M.load(str(tmp_path / "m")).head_weight, two.head_weight)


def test_a_model_from_scratch_saves_a_config_that_loads(tmp_path):
    model = tiny(head_dim=10)
    model.eos_ids = (3,)
    M.save(model, str(tmp_path / "m"), shard_bytes=5000)
    assert (tmp_path / "m" / "model.safetensors.index.json").exists()
    again = M.load(str(tmp_path / "m"))
    assert again.config == model.config and again.eos_ids == (3,)
    tokens = torch.arange(9)[None]
    assert torch.equal(again(tokens), model(tokens))


@pytest.mark.parametrize("key, value, name", [
    ("model_type", "mistral", "model_type"), ("hidden_act", "gelu", "hidden_act"),
    ("model_type", ["llama"], "model_type"), ("mlp_bias", True, "mlp_bias"),
    ("partial_rotary_factor", 0.5, "partial_rotary_factor"),
    ("rope_scaling", {"rope_type": "yarn", "factor": 4.0}, "rope_scaling"),
    ("rope_scaling", {"type": "linear", "factor": 2.0}, "rope_scaling"),
    ("rope_parameters", {"rope_type": "yarn", "rope_theta": 1e6}, "rope_scaling"),
    ("layer_types", ["full_attention", "sliding_attention"], "sliding_window"),
    ("quantization_config", {"bits": 4}, "quantization_config")])
def test_what_it_cannot_run_is_refused_by_name_before_weights(tmp_path, key, value, name):
    path = copy_golden(tmp_path / "m", **{key: value})
    os.remove(os.path.join(path, "model.safetensors"))          # The config is looked at first.
    with pytest.raises(ValueError, match=f"cannot run.* {name}"):
        M.load(path)


def test_what_it_cannot_run_of_a_family_is_refused_by_name(tmp_path):
    stretch = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0}
    for name, changes, words in [
            ("a", {"model_type": "qwen3", "attention_bias": True}, "cannot run attention_bias"),
            ("b", {"model_type": "llama", "attention_bias": True}, "cannot run attention_bias"),
            ("c", {"rope_scaling": stretch}, "no high_freq_factor"),
            ("d", {"rope_scaling": dict.fromkeys(huggingface.STRETCH, 0) | {"type": "llama3"}},
             "factor = 0: not a number above 0")]:
        with pytest.raises(ValueError, match=words):
            M.load(copy_golden(tmp_path / name, **changes))


@pytest.mark.parametrize("change, words", [
    ({"head_dim": 15}, "head_dim must be even"), ({"num_key_value_heads": 3}, "a multiple of"),
    ({"hidden_size": None}, "config.json: missing .* 'hidden_size'"),
    ({"num_key_value_heads": None}, "config.json: missing .* 'num_key_value_heads'"),
    ({"hidden_size": "64"}, 'hidden_size = "64": not a whole number above 0'),
    ({"num_hidden_layers": -1}, "num_hidden_layers = -1: not a whole"),
    ({"num_hidden_layers": True}, "num_hidden_layers = true: not a whole"),
    ({"num_hidden_layers": 10**6}, "num_hidden_layers = 1000000: more than 1000"),
    ({"num_attention_heads": 0}, "num_attention_heads = 0: not a whole"),
    ({"rms_norm_eps": math.nan}, "rms_norm_eps = NaN: not a number above 0"),
    ({"rms_norm_eps": "1e-6"}, 'rms_norm_eps = "1e-6": not a number above 0'),
    ({"tie_word_embeddings": "yes"}, 'tie_word_embeddings = "yes": not true or false'),
    ({"rope_parameters": {"rope_theta": -1}}, "rope_theta = -1: not a number above 0"),
    ({"rope_parameters": [1]}, r"rope_parameters = \[1\]: not an object"),
    ({"rope_scaling": "yarn"}, 'rope_scaling = "yarn": not an object')])
def test_impossible_configs_are_refused(tmp_path, change, words):
    with pytest.raises(ValueError, match=words):
        M.Config.load(copy_golden(tmp_path / "m", **change))


@pytest.mark.parametrize("name, text, words", [
    ("generation_config.json", "[1]", "generation_config.json: not a JSON object"),
    ("generation_config.json", "{", "generation_config.json: not a JSON object"),
    ("generation_config.json", '{"eos_token_id": "</s>"}', 'eos_token_id = "</s>": neither'),
    ("model.safetensors.index.json", "{}", "no weight_map"),
    ("model.safetensors.index.json", "[]", "no weight_map"),
    ("model.safetensors.index.json", '{"weight_map": {"a": "../x"}}', '"../x" is not the name'),
    ("model.safetensors.index.json", '{"weight_map": {"a": "x"}}', "no weights: x missing")])
def test_broken_files_beside_the_weights_are_named(tmp_path, name, text, words):
    path = copy_golden(tmp_path / "m")
    (tmp_path / "m" / name).write_text(text)
    if "index" in name:
        (tmp_path / "m" / "model.safetensors").unlink()     # or it would count
    with pytest.raises(ValueError, match=words):
        M.load(path)


def test_generation_config_may_say_nothing(tmp_path):
    path = copy_golden(tmp_path / "m")
    (tmp_path / "m" / "generation_config.json").write_text("null")
    assert M.load(path).eos_ids == (0,)


@pytest.mark.parametrize("change, words", [
    (lambda w: w.to(torch.int8), "is of type I8"), (lambda w: w > 0, "is of type BOOL"),
    (lambda w: w * math.nan, "model.norm.weight holds numbers that are not finite"),
    (lambda w: w / 0, "model.norm.weight holds numbers that are not finite")])
def test_weights_that_compute_nothing_are_refused(tmp_path, change, words):
    path = copy_golden(tmp_path / "m")
    weights = load_file(os.path.join(path, "model.safetensors"))
    weights["model.norm.weight"] = change(weights["model.norm.weight"])
    save_file(weights, os.path.join(path, "model.safetensors"))
    with pytest.raises(ValueError, match=words):
        M.load(path)


def test_a_model_that_broke_replaces_no_good_one(tmp_path):
    model, path = tiny(), str(tmp_path / "m")
    M.save(model, path)
    before = (tmp_path / "m" / "model.safetensors").read_bytes()
    model.model.norm.weight.data[3] = math.nan
    with pytest.raises(FloatingPointError, match="model.norm.weight is not finite any more"):
        M.save(model, path)
    assert (tmp_path / "m" / "model.safetensors").read_bytes() == before


def test_an_active_sliding_window_is_refused_an_inactive_one_is_not(tmp_path):
    window = {"layer_types": None, "sliding_window": 128, "max_window_layers": 1}
    with pytest.raises(ValueError, match="cannot run sliding_window"):      # from layer 28 on
        M.Config.load(copy_golden(tmp_path / "late", **{
            **window, "max_window_layers": None, "use_sliding_window": True, "num_hidden_layers": 30}))
    with pytest.raises(ValueError, match="sliding_window"):
        M.load(copy_golden(tmp_path / "a", use_sliding_window=True, **window))
    M.load(copy_golden(tmp_path / "b", use_sliding_window=False, **window))     # Qwen2.5's own


def test_weights_that_do_not_fit_are_listed_in_one_error(tmp_path):
    path = copy_golden(tmp_path / "m")
    weights = load_file(os.path.join(path, "model.safetensors"))
    del weights["model.layers.1.mlp.up_proj.weight"]
    weights["extra"] = torch.zeros(3)
    weights["model.norm.weight"] = torch.zeros(65)
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(8)    # old files: ignored
    save_file(weights, os.path.join(path, "model.safetensors"))
    with pytest.raises(ValueError) as error:
        M.load(path)
    for text in ("missing model.layers.1.mlp.up_proj.weight", "surplus extra",
                 "model.norm.weight is [65], not [64]"):
        assert text in str(error.value)
    assert "inv_freq" not in str(error.value)


def test_a_directory_without_weights_is_an_error(tmp_path):
    path = copy_golden(tmp_path / "m")
    os.rename(os.path.join(path, "model.safetensors"), os.path.join(path, "pytorch_model.bin"))
    with pytest.raises(ValueError, match="no weights"):
        M.load(path)
    with open(os.path.join(path, "model.safetensors.index.json"), "w") as file:
        json.dump({"weight_map": {"model.norm.weight": "model-00002.safetensors"}}, file)
    with pytest.raises(ValueError, match="model-00002.safetensors missing"):
        M.load(path)
    with pytest.raises(ValueError, match="nowhere: no such file"):
        M.load(str(tmp_path / "nowhere"))
    os.remove(os.path.join(path, "config.json"))
    with pytest.raises(ValueError, match="config.json: no such file"):
        M.load(path)


def test_a_tokenizer_larger_than_the_model_is_refused(tmp_path):
    path = copy_golden(tmp_path / "m")
    tokenizer = os.path.join(path, "tokenizer.json")
    with open(tokenizer) as file:
        raw = json.load(file)
    raw["added_tokens"].append({**raw["added_tokens"][0], "id": 320, "content": "<|new|>"})
    with open(tokenizer, "w") as file:
        json.dump(raw, file)
    with pytest.raises(ValueError, match="ids up to 320, the model's vocabulary ends at 319"):
        M.load(path)


def test_nothing_is_unpickled(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "load", lambda *a, **k: pytest.fail("torch.load was called"))
    path = copy_golden(tmp_path / "m")
    (tmp_path / "m" / "pytorch_model.bin").write_bytes(b"\x80\x04")
    M.load(path)


def test_save_does_not_replace_what_is_not_a_model(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="not a model directory"):
        M.save(tiny(), str(tmp_path))
    assert (tmp_path / "thesis.txt").exists()


def test_a_failed_save_leaves_the_old_model(tmp_path, monkeypatch):
    M.save(tiny(0), str(tmp_path / "m"))
    def fail(*_, **__):
        raise OSError("disk full")
    monkeypatch.setattr(huggingface, "save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        M.save(tiny(1), str(tmp_path / "m"))
    assert os.listdir(tmp_path) == ["m"]
    assert torch.equal(M.load(str(tmp_path / "m")).head_weight, tiny(0).head_weight)


def test_a_kill_at_any_moment_leaves_the_old_or_the_new(tmp_path):
    program = (f"import sys, torch; sys.path.insert(0, {ROOT!r})\n"
               "import model as M\n"
               "torch.manual_seed(0)\n"
               "m = M.Transformer(M.Config(2000, 64, 128, 2, 4, 2))\n"
               "i = 0\n"
               "while True:\n"
               "    i += 1\n"
               "    for p in m.parameters(): p.data.fill_(i)\n"
               "    M.save(m, sys.argv[1], shard_bytes=100_000)\n"
               "    print(i, flush=True)\n")
    path, rng = str(tmp_path / "m"), random.Random(0)
    for _ in range(4):
        process = subprocess.Popen([sys.executable, "-c", program, path], stdout=subprocess.PIPE,
                                   text=True)
        process.stdout.readline()                               # one whole save
        time.sleep(rng.uniform(0, 0.3))
        process.send_signal(signal.SIGKILL)
        done = ["1"] + process.stdout.read().split()
        process.wait()
        values = {float(p.unique().item()) for p in M.load(path).parameters()}
        assert values in ({float(done[-1])}, {float(done[-1]) + 1}), (values, done)
    M.save(tiny(), path)
    assert os.listdir(tmp_path) == ["m"]                        # what the kills left is swept


@pytest.mark.skipif(sys.platform != "linux", reason="reads VmHWM of /proc")
def test_load_never_needs_twice_the_memory(tmp_path):
    config = M.Config(20_000, 512, 2048, 24, 8, 2)
    model = M.Transformer(config)
    size = sum(p.numel() for p in model.parameters()) * 4
    M.save(model, str(tmp_path / "m"))
    del model
    program = ("import sys, re; import torch, model as M\n"
               "def peak():\n"
               "    status = open('/proc/self/status').read()\n"
               "    return int(re.search(r'VmHWM:\\s+(\\d+)', status)[1])\n"
               "before = peak(); m = M.load(sys.argv[1]); print((peak() - before) * 1024)")
    peak = int(subprocess.run([sys.executable, "-c", program, str(tmp_path / "m")], text=True,
                              capture_output=True, check=True,
                              cwd=ROOT).stdout)
    assert peak < 1.4 * size, f"peak {peak / size:.2f} x the weights"
