"""Reads a GGUF file, dequantized by the `gguf` library: metadata becomes config.json's keys, tensors get the
names of tensors.TENSORS and Hugging Face's row order and values.

What llama.cpp's converter changes is undone here: it permutes the rows of q and k of architectures whose
rotation it computes over interleaved pairs, and adds 1 to Gemma's norms. What it leaves out of the metadata
because llama.cpp has it in its code is filled in, see gguf_architectures.py."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from . import gguf_header, gguf_tokenizer, known_keys, sources
from .configuration import Config, expert_count, integer, layer_count
from .families import FAMILIES, Family
from .gguf_architectures import ARCHITECTURES, OTHERS, Architecture, why_not
from .gguf_configuration import configuration, recipe, sparse_layers
from .gguf_names import name_of, native_name
from .gguf_rope import FACTORS, MAX_FACTORS, rope_parameters, with_local_rope
from .gguf_tensors import add_xielu, logarithms_of_rates, read_tensor, swap_norms, untiled
from .sources import ConvertError, File, Source, Tensor, shown

# Metadata that is not always asked for and changes nothing then; the embedding says how many tokens there are
UNASKED = (
    "tensor_data_layout",
    "vocab_size",
    "rope.scale_linear",
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
    "full_attention_interval",
)
TOKENS = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}


def open_file(path: Path) -> Source:
    """The model in a GGUF file."""
    try:
        import gguf  # noqa: F401  (said before anything is read)
    except ImportError:
        raise sources.need("gguf", f"reading {path.name}") from None
    file = File(path)
    try:
        return parse(*gguf_header.read(file), path, file)
    except ConvertError as error:
        file.close()
        raise ConvertError(f"{path.name}: {error}") from None
    except sources.MALFORMED as error:  # of a value of another type than it should be
        file.close()
        raise ConvertError(f"{path}: truncated or damaged ({error})") from None
    except BaseException:
        file.close()
        raise


def architecture_of(metadata: Config) -> str:
    """The architecture that the metadata names, one of ARCHITECTURES, and of a file that is whole."""
    architecture, parts = metadata.get("general.architecture"), metadata.get("split.count") or 1
    if not isinstance(architecture, str):
        raise ConvertError(f"general.architecture is {shown(architecture)}, not a name")
    if architecture in OTHERS:
        raise ConvertError(f"{architecture} cannot be converted: {why_not(OTHERS[architecture])}")
    if architecture not in ARCHITECTURES:
        names = ", ".join(sorted(ARCHITECTURES))
        raise ConvertError(
            f"unknown architecture {shown(architecture)}; GGUF files of these can be converted: {names}"
        )
    if parts > 1:
        raise ConvertError(f"one of {parts} parts; merge them first (llama-gguf-split --merge)")
    return architecture


def parse(metadata: Config, infos: list[gguf_header.Info], path: Path, file: File) -> Source:
    """open_file, with the file open and its header read."""
    architecture = architecture_of(metadata)
    asked = {f"{architecture}.{key}" for key in UNASKED}

    def get(key: str) -> Any:
        asked.add(f"{architecture}.{key}")
        return metadata.get(f"{architecture}.{key}")

    row, config = ARCHITECTURES[architecture], configuration(get, architecture)
    name = metadata.get("general.name")
    name = name if isinstance(name, str) and name.strip() else path.stem
    if get("expert_count"):
        row = replace(row, names={**row.names, **row.with_experts})
    source = Source(path, name, config, {}, native=partial(native_name, row=row), files=[file])
    source.canonical = True
    family = FAMILIES[config["architectures"][0]]
    if family.experts:
        config |= sparse_layers(infos, config, get("leading_dense_block_count"))
    factors: dict[str, np.ndarray] = {}
    for item in infos:
        tensor, name = read_tensor(item, file), name_of(item.name, row)
        if name in FACTORS:
            factors[name] = read_factors(name, tensor)
        else:
            source.tensors.update(taken_apart(name, undone(item.name, name, tensor, row, config), config))
    rope = dict(row.rope) | rope_parameters(get, factors, family.latent)
    if row.growing:
        rope["llama_4_scaling_beta"] = get("attention.temperature_scale") or 0.0
        rope["original_max_position_embeddings"] = config.get("original_max_position_embeddings")
    config["rope_parameters"] = with_local_rope(rope, get) if row.local else rope
    source.embedding = recipe(get("pooling_type"))
    rest = [key for key in metadata if key.startswith(f"{architecture}.") and key not in asked]
    source.notes += known_keys.told("the metadata", rest)
    config |= told_by_tensors(source.tensors, family, config["num_attention_heads"])
    config |= row.facts({item.name for item in infos})
    swap_norms(source.tensors)
    add_xielu(source.tensors, metadata.get, layer_count(config))
    add_texts(source, metadata)
    return source


def read_factors(name: str, tensor: Tensor) -> np.ndarray:
    """The numbers of one of FACTORS."""
    if math.prod(tensor.shape) > MAX_FACTORS:
        raise ConvertError(f"{name} has the shape {shown(tensor.shape)}, far too large")
    return tensor.read(0, tensor.rows).reshape(-1)


def undone(native: str, name: str, tensor: Tensor, row: Architecture, config: Config) -> Tensor:
    """A tensor without what llama.cpp's converter does to its values and their order."""
    projection = re.fullmatch(r"blk\.\d+\.attn_([qk])\.(?:weight|bias)", native)
    if projection and row.permuted:
        n_heads = config[{"q": "num_attention_heads", "k": "num_key_value_heads"}[projection[1]]]
        tensor = sources.half_split(tensor, n_heads)
    if row.shifted and name.endswith("norm.weight"):
        tensor = sources.Linear(tensor, offset=-1.0)
    if "{e}" in name and name.endswith(".bias"):
        tensor = sources.Stack(tensor)
    if name.endswith(".A_log"):
        tensor = logarithms_of_rates(tensor)
    if row.tiled and ".linear_attn." in name:
        tensor = untiled(name, tensor, config)
    return tensor


def taken_apart(name: str, tensor: Tensor, config: Config) -> dict[str, Tensor]:
    """A stack, of experts, streams or heads, as one tensor for each; another tensor as it is."""
    if "{e}" in name:
        streams = name.startswith("model.altup_")
        count = integer(config, "altup_num_inputs") - 1 if streams else expert_count(config)
        return sources.unstack(tensor, (name,), count)
    if "{h}" in name:
        return sources.unstack(tensor, (name.replace("{h}", "{e}"),), integer(config, "num_attention_heads"))
    return {name: tensor}


def told_by_tensors(tensors: dict[str, Tensor], family: Family, n_heads: int) -> Config:
    """The keys that the metadata lacks because the tensors tell: which there are, and how wide they are."""
    config: Config = {}
    for ours, name in (
        ("laurel_rank", "model.layers.0.laurel.linear_left.weight"),
        ("vocab_size_per_layer_input", "model.embed_tokens_per_layer.weight"),
    ):
        if name in tensors:
            config[ours] = tensors[name].rows
    keys = [name for name in tensors if name.endswith(".self_attn.k_proj.weight")]
    config["attention_k_eq_v"] = any(name.replace(".k_", ".v_") not in tensors for name in keys)
    config["tie_word_embeddings"] = "lm_head.weight" not in tensors
    biased = any(f"model.layers.0.self_attn.{x}_proj.bias" in tensors for x in ("q", "qkv"))
    # whatever the family calls it
    config |= dict.fromkeys(("attention_bias", "qkv_bias", "bias", "use_bias"), biased)
    if "use_qk_norm" in family.switches:
        config["use_qk_norm"] = "model.layers.0.self_attn.q_norm.weight" in tensors
    gate = tensors.get("model.layers.0.self_attn.gate_proj.weight")
    if "gating" in family.defaults and gate is not None:
        config["gating"] = "per-head" if gate.rows == n_heads else "per-element"
    embed = tensors.get("model.embed_tokens.weight")
    if embed is not None:
        config["vocab_size"] = embed.shape[0]
    return config


def add_texts(source: Source, metadata: Config) -> None:
    """The tokenizer and its special tokens, chat templates, the licence and the description."""
    tokens = metadata.get("tokenizer.ggml.tokens") or []
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise ConvertError("tokenizer.ggml.tokens is not a list of texts")
    for key, ours in TOKENS.items():
        index = metadata.get(f"tokenizer.ggml.{key}_token_id")
        if isinstance(index, int) and 0 <= index < len(tokens):
            source.special_tokens[ours] = tokens[index]
    for key in ("license", "description"):
        if metadata.get(f"general.{key}"):
            source.about[key] = str(metadata[f"general.{key}"])
    texts = {key: found for key, found in metadata.items() if key.startswith("tokenizer.")}
    source.templates = gguf_tokenizer.gguf_templates(texts)
    if tokens:
        source.tokenizer = lambda template: gguf_tokenizer.from_gguf(texts, template)
