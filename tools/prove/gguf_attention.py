"""The metadata of a GGUF file about attention: windows, rotary embeddings, latents."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from tools.prove.gguf_keys import full_rope, head_width, windowed_layers

# Architectures whose windows are written, and with them which layers have one
LISTED = (
    *("exaone-moe", "mimo2", "mellum", "granite_swa", "laguna"),
    *("gemma3", "gemma3n", "gemma4"),
)
WINDOWED = (*LISTED, "gpt-oss", "afmoe", "gemma2", "phi3", "cohere2", "starcoder2")


def add_attention(w: Any, arch: str, h: dict[str, Any]) -> None:
    """All of it but latents."""
    add_windows(w, arch, h)
    add_rope(w, arch, h)
    add_rope_scaling(w, h)
    if arch == "mimo2":
        w.add_float32("mimo2.attention.value_scale", h["attention_value_scale"])


def add_windows(w: Any, arch: str, h: dict[str, Any]) -> None:
    """The window's size, and which layers have it."""
    windows = windowed_layers(h)
    # Of Laguna llama.cpp knows this one
    known = [i % 4 != 0 for i in range(len(windows))] if arch == "laguna" else []
    # Some of EXAONE 4 have a window, and OLMo 3 of what is called OLMo 2
    windowed = h.get("sliding_window") and (arch == "exaone4" or "Olmo3ForCausalLM" in h["architectures"])
    if arch in WINDOWED or windowed:
        w.add_sliding_window(h.get("sliding_window") or 0)
    if arch == "afmoe":
        w.add_sliding_window_pattern(h["global_attn_every_n_layers"])
    elif (arch in LISTED or windowed) and windows != known:
        w.add_sliding_window_pattern(windows)


def add_rope(w: Any, arch: str, h: dict[str, Any]) -> None:
    """Which layers and dimensions turn, by which base; queries that grow."""
    rope = h["rope_parameters"]
    if "sliding_attention" in rope:
        w.add_rope_freq_base_swa(rope["sliding_attention"]["rope_theta"])
    if arch == "laguna":
        partial = rope["sliding_attention"]["partial_rotary_factor"]
        w.add_rope_dimension_count_swa(int(h["head_dim"] * partial))
    if arch == "granite_swa":
        w.add_array("granite_swa.attention.rope_pattern", [base != 0 for base in h["layer_rope_theta"]])
    if arch.startswith("qwen35"):
        w.add_rope_dimension_sections([11, 11, 10, 0])
    if arch == "mistral3" and "llama_4_scaling_beta" in rope:
        w.add_rope_scaling_yarn_log_mul(rope["mscale_all_dim"])
        w.add_attn_temperature_scale(rope["llama_4_scaling_beta"])


def add_rope_scaling(w: Any, h: dict[str, Any]) -> None:
    """What rotary embeddings of long texts have, as numbers or as tensors of factors."""
    import gguf

    rope, kind = full_rope(h), full_rope(h)["rope_type"]
    if rope.get("alpha"):  # it is in the base
        w.add_rope_scaling_type(gguf.RopeScalingType.NONE)
        w.add_rope_scaling_factor(1.0)
    if kind in ("linear", "yarn"):
        w.add_rope_scaling_type(gguf.RopeScalingType(kind))
        w.add_rope_scaling_factor(rope["factor"])
    if kind == "yarn":
        w.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    if kind == "llama3":
        w.add_tensor("rope_freqs.weight", np.array([*llama3_factors(rope, head_width(h))], np.float32))
    if kind == "longrope":
        old = rope["original_max_position_embeddings"]
        scale = h["max_position_embeddings"] / old
        w.add_rope_scaling_orig_ctx_len(old)
        w.add_rope_scaling_attn_factors(math.sqrt(1 + math.log(scale) / math.log(old)))
        for key in ("long", "short"):
            w.add_tensor(f"rope_factors_{key}.weight", np.array(rope[f"{key}_factor"], np.float32))


def llama3_factors(rope: dict[str, Any], dim: int) -> Iterator[float]:
    """LlamaModel.generate_extra_tensors."""
    old, low, high = (
        rope[k] for k in ("original_max_position_embeddings", "low_freq_factor", "high_freq_factor")
    )
    for i in range(0, dim, 2):
        wavelen = 2 * math.pi * rope["rope_theta"] ** (i / dim)
        smooth = (old / wavelen - low) / (high - low)
        if wavelen < old / high:
            yield 1.0
        elif wavelen > old / low:
            yield rope["factor"]
        else:
            yield 1 / ((1 - smooth) / rope["factor"] + smooth)


def add_latent(w: Any, h: dict[str, Any], arch: str) -> None:
    """DeepseekV2Model.set_gguf_parameters, and MiniCPM3Model's, but for experts."""
    w.add_kv_lora_rank(h["kv_lora_rank"])
    if h.get("q_lora_rank"):
        w.add_q_lora_rank(h["q_lora_rank"])
    key = h["qk_nope_head_dim"] + h["qk_rope_head_dim"]
    w.add_rope_dimension_count(h["qk_rope_head_dim"])
    if arch == "minicpm3":
        w.add_key_length(key)
        return
    w.add_head_count_kv(1)
    w.add_key_length(h["kv_lora_rank"] + h["qk_rope_head_dim"])
    w.add_value_length(h["kv_lora_rank"])
    w.add_key_length_mla(key)
    w.add_value_length_mla(h["v_head_dim"])
    if h["rope_parameters"].get("mscale_all_dim"):
        w.add_rope_scaling_yarn_log_mul(0.1 * h["rope_parameters"]["mscale_all_dim"])
