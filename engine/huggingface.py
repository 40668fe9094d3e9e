"""A Hugging Face model directory in and out: config.json, tokenizer files, safetensors."""
import json
import os
from dataclasses import asdict, fields
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from engine.files import read_json, refuse_run_directory, whole_directory
from engine.prompts import END_TOKENS

# The files besides the weights. A model keeps their content, and is saved with it.
CARRIED = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
           "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt",
           "chat_template.jinja")
MOST_LAYERS = 1000      # the largest known models have a tenth of it,
MOST = 2**24            # and this is far above every other size
KNOWN_DTYPES = ("F64", "F32", "F16", "BF16")
# The families, and what a config.json that leaves it out means, where it differs between them.
FAMILIES = {"qwen2": {}, "qwen3": {"head_dim": 128},
            "llama": {"max_position_embeddings": 2048, "num_key_value_heads": None}}
CLASSES = {"qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM", "llama": "LlamaForCausalLM"}
# How Llama 3.1 stretches its rotations: fields of a part of config.json.
STRETCH = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")


# ---- configuration and tokenizer -------------------------------------------------------------
def read_config(path: str, config_class):
    """A Config from a config.json or the one in a directory; ValueError for what cannot run."""
    refuse_run_directory(path)
    path = os.path.join(path, "config.json") if os.path.isdir(path) else path
    raw = read_json(path)
    if not isinstance(raw, dict):
        raise ValueError(f"{path}: " + ("no such file or directory" if raw is None else
                                        "not a JSON object"))
    _refuse_unknown(path, raw)
    if raw.get("model_type") is None:
        raw["model_type"] = "qwen2"
    about = raw.get("rope_parameters") or {}                    # where transformers 5 has rope_theta
    scaling = raw.get("rope_scaling") or about
    stretched = _rope_type(scaling) == "llama3"
    if missing := [name for name in STRETCH if stretched and name not in scaling]:
        raise ValueError(f"{path}: its rope_scaling has no {missing[0]}")
    raw = {**FAMILIES[raw["model_type"]], **raw, **about, **scaling}
    raw = {name: value for name, value in raw.items() if stretched or name not in STRETCH}
    if raw.get("num_key_value_heads", "") is None:              # as many as heads
        raw["num_key_value_heads"] = raw.get("num_attention_heads")
    given = {field.name: raw[field.name] for field in fields(config_class) if field.name in raw}
    _check_types(path, given, config_class)
    try:
        config = config_class(**given)
    except TypeError as error:                                  # a field is missing
        raise ValueError(f"{path}: {str(error).replace('Config.__init__() ', '')}") from None
    if config.head_dim % 2 or config.num_attention_heads % config.num_key_value_heads:
        raise ValueError(f"{path}: head_dim must be even, and num_attention_heads a multiple of"
                         " num_key_value_heads")
    if config.num_attention_heads * config.head_dim > MOST:
        raise ValueError(f"{path}: num_attention_heads * head_dim is more than {MOST}")
    return config


def _refuse_unknown(path: str, raw: dict) -> None:
    """ValueError for what this project cannot compute, or would compute wrongly."""
    for name in ("rope_parameters", "rope_scaling"):
        if not isinstance(raw.get(name) or {}, dict):
            raise ValueError(f"{path}: {name} = {json.dumps(raw[name])}: not an object")
    scaling = raw.get("rope_scaling") or raw.get("rope_parameters") or {}
    layers = raw.get("num_hidden_layers")
    full = raw.get("max_window_layers", 28)                     # what transformers takes without it
    sliding = (raw.get("use_sliding_window") and raw.get("sliding_window") and full is not None
               and not (isinstance(full, int) and isinstance(layers, int) and full >= layers))
    for name, is_refused in (
            ("model_type", raw.get("model_type") not in (None, *FAMILIES)),
            ("hidden_act", raw.get("hidden_act", "silu") != "silu"),
            ("attention_bias", raw.get("attention_bias") and raw.get("model_type") != "qwen2"),
            ("mlp_bias", raw.get("mlp_bias")),
            ("rope_scaling", _rope_type(scaling) not in ("default", "llama3")),
            ("partial_rotary_factor", {**raw, **scaling}.get("partial_rotary_factor", 1) != 1),
            ("sliding_window", sliding or "sliding_attention" in str(raw.get("layer_types"))),
            ("attention_dropout", raw.get("attention_dropout", 0) != 0),
            ("quantization_config", raw.get("quantization_config") is not None)):
        if is_refused:
            what = f"{name} = {json.dumps(raw[name])}" if name in raw else f"its {name}"
            raise ValueError(f"{path}: cannot run {what}")


def _rope_type(scaling: dict) -> str:
    return scaling.get("rope_type", scaling.get("type", "default"))


def _check_types(path: str, given: dict, config_class) -> None:
    """ValueError for a field whose value is not of its kind, is not above 0, or is absurd."""
    for field in fields(config_class):
        value = given.get(field.name)
        if field.name not in given or field.type is str or (
                value is None and field.name == "head_dim"):
            continue
        kind = {bool: "true or false", float: "a number above 0"}.get(
            field.type, "a whole number above 0")
        fits = isinstance(value, bool) if field.type is bool else (
            isinstance(value, (int, float) if field.type is float else int)
            and not isinstance(value, bool) and 0 < value < 1e30)       # NaN is no such number.
        if not fits:
            raise ValueError(f"{path}: {field.name} = {json.dumps(value):.60}: not {kind}")
        most = MOST_LAYERS if field.name == "num_hidden_layers" else MOST
        if field.type is not float and value > most:
            raise ValueError(f"{path}: {field.name} = {str(value):.30}: more than {most}")


def read_files(path: str) -> dict[str, bytes]:
    """The config and tokenizer files of a model directory."""
    return {name: Path(path, name).read_bytes() for name in CARRIED if Path(path, name).exists()}


def vocabulary(files: dict[str, bytes]) -> tuple[dict[str, int], int]:
    """The tokens of tokenizer.json with their ids, and one more than the highest id. Where there is
    no such file: nothing, and 0."""
    if "tokenizer.json" not in files:
        return {}, 0
    try:
        tokenizer = json.loads(files["tokenizer.json"])
        added = {token["content"]: token["id"] for token in tokenizer.get("added_tokens", [])}
        ids = {**tokenizer["model"]["vocab"], **added}
        return ids, max(ids.values(), default=-1) + 1
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError("tokenizer.json: not a tokenizer of the tokenizers package") from None


def eos_of(files: dict[str, bytes]) -> tuple[int, ...]:
    """The tokens that end a text. Where both files name some, generation_config.json decides."""
    eos = None
    for name in ("config.json", "generation_config.json"):
        try:
            eos = (json.loads(files.get(name, b"null")) or {}).get("eos_token_id", eos)
        except (ValueError, AttributeError):
            raise ValueError(f"{name}: not a JSON object") from None
    ids = eos if isinstance(eos, list) else [] if eos is None else [eos]
    if not all(type(token) is int and token >= 0 for token in ids):
        raise ValueError(f"eos_token_id = {json.dumps(eos)}: neither a token's id nor a list of ids")
    return tuple(ids)


def name_all_ends(files: dict[str, bytes], ids: dict[str, int]) -> dict[str, bytes]:
    """The files, which name every token that ends an answer. The sampler also stops at the end tokens
    of chats, and training teaches some: whoever loads a model that we save must do the same."""
    own = eos_of(files)
    more = [ids[name] for name in END_TOKENS if name in ids and ids[name] not in own]
    for name in ("config.json", "generation_config.json") if more else ():
        content = json.loads(files.get(name, b"null"))
        if content is not None:
            named = {**content, "eos_token_id": [*own, *more]}
            files = {**files, name: json.dumps(named, indent=2).encode()}
    return files


def set_files(model, files: dict[str, bytes], where: str) -> None:
    """Give a model its config and tokenizer files, and what they say about its tokens."""
    ids, size = vocabulary(files)
    if size > model.config.vocab_size:
        raise ValueError(f"{where}: the tokenizer has ids up to {size - 1}, the model's vocabulary"
                         f" ends at {model.config.vocab_size - 1}")
    model.files = name_all_ends(files, ids)
    model.vocab, model.eos_ids = size or model.config.vocab_size, eos_of(files)


# ---- weights in ------------------------------------------------------------------------------
def read_model(model, path: str, device, dtype) -> None:
    """Fill a model that is on `meta` with the weights and files of a directory."""
    places, shapes = _places(path), {name: list(w.shape) for name, w in model.named_parameters()}
    set_files(model, read_files(path), path)
    known = {"lm_head.weight"} if model.config.tie_word_embeddings else set()   # stored twice
    faults = [f"missing {name}" for name in sorted(shapes.keys() - places.keys())]
    faults += [f"surplus {name}" for name in sorted(places.keys() - shapes.keys() - known)
               if not name.endswith("rotary_emb.inv_freq")]     # which old files hold
    faults += [f"{name} is {shape}, not {shapes[name]}" for name, (_, shape) in places.items()
               if name in shapes and shape != shapes[name]]
    if faults:
        raise ValueError(f"{path}: weights do not fit config.json: {'; '.join(faults)}")
    # Memory for the weights, not yet set. PyTorch's to_empty would import sympy for it.
    model._apply(lambda weight: torch.empty(weight.shape, dtype=dtype, device=device))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            with safe_open(places[name][0], framework="pt") as tensors:  # An open file keeps
                weight.copy_(tensors.get_tensor(name))                   # in memory what was read.
        if known & places.keys():               # transformers would not tie these two
            with safe_open(places["lm_head.weight"][0], framework="pt") as tensors:
                stored = tensors.get_tensor("lm_head.weight").to(dtype)
            if not torch.equal(stored, model.head_weight.cpu()):
                raise ValueError(f"{path}: tie_word_embeddings is true, but lm_head.weight is not the"
                                 " embedding")
    if broken := _not_finite(model):
        raise ValueError(f"{path}: {broken} holds numbers that are not finite")


def _not_finite(model) -> str:
    """The name of a weight with NaN or infinity in it, or nothing."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            least, most = weight.aminmax()                  # NaN, if there is one
            if not (least.isfinite() and most.isfinite()):
                return name
    return ""


def _places(path: str) -> dict[str, tuple[str, list[int]]]:
    """Where the weights of a directory lie: name -> (file, shape)."""
    places = {}
    for shard in shards(path):
        try:
            with safe_open(shard, framework="pt") as tensors:
                for name in tensors.keys():
                    weight = tensors.get_slice(name)
                    if weight.get_dtype() not in KNOWN_DTYPES:
                        raise ValueError(f"{shard}: {name} is of type {weight.get_dtype()}, not one"
                                         f" of {', '.join(KNOWN_DTYPES)}")
                    places[name] = (shard, weight.get_shape())
        except SafetensorError as error:                        # cut short, say
            raise ValueError(f"{shard}: not a safetensors file: {error}") from None
        except OSError as error:
            raise OSError(f"cannot read {shard}: {error.strerror or error}") from None
    return places


def shards(path: str) -> list[str]:
    """The files that hold the weights of a model directory."""
    index, names = read_json(f"{path}/model.safetensors.index.json"), ["model.safetensors"]
    if index is not None and not os.path.exists(f"{path}/model.safetensors"):   # as transformers
        try:
            names = sorted(set(index["weight_map"].values()))
        except (TypeError, KeyError, AttributeError):
            raise ValueError(f"{path}/model.safetensors.index.json: no weight_map, from names of"
                             " weights to names of files") from None
        if outside := [name for name in names if os.path.basename(str(name)) != name]:
            raise ValueError(f"{path}/model.safetensors.index.json: {json.dumps(outside[0])} is not"
                             " the name of a file in this directory")
    files = [os.path.join(path, name) for name in names]
    if absent := [file for file in files if not os.path.isfile(file)]:
        there = "is no regular file" if os.path.exists(absent[0]) else "missing"
        raise ValueError(f"{path}: no weights: {os.path.basename(absent[0])} {there}")
    return files


# ---- weights out -----------------------------------------------------------------------------
def save_tensors(tensors: dict[str, torch.Tensor], path: str) -> None:
    try:
        save_file(tensors, path, metadata={"format": "pt"})
    except SafetensorError as error:                            # a full disk, say
        raise OSError(f"cannot write {path}: {error}") from None


def write_model(model, path: str, dtype: torch.dtype | None, shard_bytes: int) -> None:
    """Put a model directory in the place of `path`, where a model or nothing must be."""
    if os.path.exists(path) and not os.path.exists(os.path.join(path, "config.json")):
        if not os.path.isdir(path) or os.listdir(path):         # What is there would be lost.
            raise ValueError(f"{path}: exists and is not a model directory; not replaced")
    if broken := _not_finite(model):        # Whoever loads it would get nothing but NaN.
        raise FloatingPointError(f"{broken} is not finite any more; the model is not saved")
    dtype = dtype or model.head_weight.dtype
    with whole_directory(path) as folder:
        index = _write_weights(dict(model.named_parameters()), folder, dtype, shard_bytes)
        for name, content in {**model.files, "config.json": _config(model, dtype), **index}.items():
            Path(folder, name).write_bytes(content)


def _write_weights(weights, folder: str, dtype, shard_bytes: int) -> dict[str, bytes]:
    """Deal the weights into files of at most so many bytes; returns the index of several files."""
    shards, used, total = [{}], 0, 0
    for name, weight in weights.items():
        size = weight.numel() * dtype.itemsize
        if shards[-1] and used + size > shard_bytes:
            shards, used = shards + [{}], 0
        shards[-1][name], used, total = weight.detach(), used + size, total + size
    index = {"metadata": {"total_size": total}, "weight_map": {}}
    for i, shard in enumerate(shards, 1):
        number = f"-{i:05d}-of-{len(shards):05d}" if len(shards) > 1 else ""
        index["weight_map"] |= dict.fromkeys(shard, f"model{number}.safetensors")
        save_tensors({name: weight.to("cpu", dtype).contiguous() for name, weight in shard.items()},
                     os.path.join(folder, f"model{number}.safetensors"))
    file = {"model.safetensors.index.json": json.dumps(index, indent=2).encode()}
    return file if len(shards) > 1 else {}


def _config(model, dtype) -> bytes:
    """The config.json that came with the model, or a new one. Keys that are unknown here stay, and
    a field that was left out is written: others may read another default into it."""
    written = asdict(model.config)
    config = json.loads(model.files.get("config.json", b"null")) or {
        "architectures": [CLASSES[model.config.model_type]], "hidden_act": "silu",
        "eos_token_id": list(model.eos_ids) or None}
    if written["head_dim"] == written["hidden_size"] // written["num_attention_heads"] and (
            "head_dim" not in FAMILIES[model.config.model_type]):
        del written["head_dim"]                             # Nobody else writes that one.
    stretch = {name: written.pop(name) for name in STRETCH}
    if stretch["factor"] != 1 and not (config.get("rope_scaling") or config.get("rope_parameters")):
        config["rope_scaling"] = {"rope_type": "llama3", **stretch}
    inside = config.get("rope_parameters") or {}            # where transformers 5 has rope_theta
    config |= {name: value for name, value in written.items() if name not in {**config, **inside}}
    config["dtype" if "dtype" in config else "torch_dtype"] = str(dtype).removeprefix("torch.")
    return json.dumps(config, indent=2).encode()
