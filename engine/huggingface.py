"""A Hugging Face model directory in and out: config.json, tokenizer files, safetensors."""
import json
import os
from dataclasses import asdict, fields
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from engine.files import read_json, refuse_run_directory, whole_directory

# The files besides the weights. A model keeps their content, and is saved with it.
CARRIED = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
           "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt",
           "chat_template.jinja")


# ---- configuration and tokenizer -------------------------------------------------------------
def read_config(path: str, config_class):
    """A Config from a config.json or the one in a directory; ValueError for what is not Qwen2."""
    refuse_run_directory(path)
    path = os.path.join(path, "config.json") if os.path.isdir(path) else path
    raw = read_json(path)
    if not isinstance(raw, dict):
        raise ValueError(f"{path}: " + ("no such file or directory" if raw is None else
                                        "not a JSON object"))
    layers, rope = raw.get("num_hidden_layers", 0), raw.get("rope_parameters") or {}
    scaling = raw.get("rope_scaling") or rope                   # transformers 5 writes `rope`
    sliding = (raw.get("use_sliding_window") and raw.get("sliding_window")
               and raw.get("max_window_layers", layers) < layers)
    for name, is_refused in (
            ("model_type", raw.get("model_type") not in (None, "qwen2")),
            ("hidden_act", raw.get("hidden_act", "silu") != "silu"),
            ("rope_scaling", scaling.get("rope_type", scaling.get("type", "default")) != "default"),
            ("sliding_window", sliding or "sliding_attention" in (raw.get("layer_types") or [])),
            ("attention_dropout", raw.get("attention_dropout", 0) != 0),
            ("quantization_config", raw.get("quantization_config") is not None)):
        if is_refused:
            what = f"{name} = {json.dumps(raw[name])}" if name in raw else f"its {name}"
            raise ValueError(f"{path}: cannot run {what}")
    raw = {**raw, **rope}
    if "num_key_value_heads" in raw and raw["num_key_value_heads"] is None:     # as many as heads
        raw["num_key_value_heads"] = raw.get("num_attention_heads")
    names = [field.name for field in fields(config_class) if field.name in raw]
    try:
        config = config_class(**{name: raw[name] for name in names})
    except TypeError as error:                                  # a field is missing
        raise ValueError(f"{path}: {str(error).replace('Config.__init__() ', '')}") from None
    if config.head_dim % 2 or config.num_attention_heads % config.num_key_value_heads:
        raise ValueError(f"{path}: head_dim must be even, and num_attention_heads a multiple of"
                         " num_key_value_heads")
    return config


def read_files(path: str) -> dict[str, bytes]:
    """The config and tokenizer files of a model directory."""
    return {name: Path(path, name).read_bytes() for name in CARRIED if Path(path, name).exists()}


def tokenizer_size(files: dict[str, bytes]) -> int | None:
    """One more than the highest id in tokenizer.json. None where there is no such file."""
    if "tokenizer.json" not in files:
        return None
    try:
        tokenizer = json.loads(files["tokenizer.json"])
        ids = [token["id"] for token in tokenizer.get("added_tokens", [])]
        ids += tokenizer["model"]["vocab"].values()
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError("tokenizer.json: not a tokenizer of the tokenizers package") from None
    return max(ids, default=-1) + 1


def eos_of(files: dict[str, bytes]) -> tuple[int, ...]:
    """The tokens that end a text. Where both files name some, generation_config.json decides."""
    config, generation = (json.loads(files.get(name, b"{}"))
                          for name in ("config.json", "generation_config.json"))
    eos = {**config, **generation}.get("eos_token_id")
    return tuple(eos if isinstance(eos, list) else [] if eos is None else [eos])


def set_files(model, files: dict[str, bytes], where: str) -> None:
    """Give a model its config and tokenizer files, and what they say about its tokens."""
    size = tokenizer_size(files)
    if size is not None and size > model.config.vocab_size:
        raise ValueError(f"{where}: the tokenizer has ids up to {size - 1}, the model's vocabulary"
                         f" ends at {model.config.vocab_size - 1}")
    model.files, model.vocab, model.eos_ids = files, size or model.config.vocab_size, eos_of(files)


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


def _places(path: str) -> dict[str, tuple[str, list[int]]]:
    """Where the weights of a directory lie: name -> (file, shape)."""
    index = read_json(os.path.join(path, "model.safetensors.index.json"))
    shards = sorted(set(index["weight_map"].values())) if index else ["model.safetensors"]
    if absent := [name for name in shards if not os.path.exists(os.path.join(path, name))]:
        raise ValueError(f"{path}: no weights: {', '.join(absent)} missing")
    places = {}
    for shard in (os.path.join(path, name) for name in shards):
        try:
            with safe_open(shard, framework="pt") as tensors:
                places |= {name: (shard, tensors.get_slice(name).get_shape())
                           for name in tensors.keys()}
        except SafetensorError as error:                        # cut short, say
            raise ValueError(f"{shard}: not a safetensors file: {error}") from None
    return places


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
    config = json.loads(model.files.get("config.json", b"null")) or {
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_act": "silu",
        "eos_token_id": list(model.eos_ids) or None, "use_sliding_window": False}
    written = asdict(model.config)
    if written["head_dim"] == model.config.hidden_size // model.config.num_attention_heads:
        del written["head_dim"]                             # Nobody else writes that one.
    inside = config.get("rope_parameters") or {}            # where transformers 5 has rope_theta
    config |= {name: value for name, value in written.items() if name not in {**config, **inside}}
    config["dtype" if "dtype" in config else "torch_dtype"] = str(dtype).removeprefix("torch.")
    return json.dumps(config, indent=2).encode()
