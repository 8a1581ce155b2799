"""Writes the files that other programs read, for the benchmark, the proof and the tests: the header of a
safetensors file, and the metadata of a GGUF file as llama.cpp's converter writes it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np


def safetensors_head(tensors: Iterable[tuple[str, str, tuple[int, ...], int]]) -> bytes:
    """What a safetensors file begins with: the header's length and the header. The data of the tensors (name,
    dtype, shape, bytes) follows it in this order."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, dtype, shape, size in tensors:
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of q or k in the order in which neighbours turn together, from that in which the first half of a
    head turns with the second: LlamaModel.permute of llama.cpp's converter."""
    pairs = weight.reshape(heads, 2, -1, *weight.shape[1:]).swapaxes(1, 2)
    return np.reshape(pairs, weight.shape)


def gguf_writer(path: Path, architecture: str, name: str, config: Mapping[str, Any]) -> Any:
    """A gguf.GGUFWriter with the metadata that every architecture has, from a config.json."""
    import gguf

    dim, heads = config["hidden_size"], config["num_attention_heads"]
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name(name)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(dim)
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    if "rms_norm_eps" in config:
        writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    else:
        writer.add_layer_norm_eps(config["layer_norm_eps"])
    if config.get("head_dim"):
        writer.add_key_length(config["head_dim"])
        writer.add_value_length(config.get("v_head_dim") or config["head_dim"])
    rope = config.get("rope_parameters") or config
    full = rope.get("full_attention", rope)
    turning = (config.get("head_dim") or dim // heads) * full.get("partial_rotary_factor", 1)
    if "rope_theta" in full:
        writer.add_rope_freq_base(full["rope_theta"])
        writer.add_rope_dimension_count(int(turning))
    return writer


def finish(writer: Any) -> None:
    """Writes all that a gguf.GGUFWriter was given, and closes it."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
