"""The metadata of a GGUF file: all but what every architecture has, which is in tools/checkpoints.py."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any

import numpy as np

from tools.prove.gguf_attention import add_attention, add_latent
from tools.prove.gguf_experts import add_experts
from tools.prove.gguf_keys import windowed_layers

# Keys whose numbers are written as they are, by the writer's method
NUMBERS = {
    "attn_logit_softcapping": "add_attn_logit_softcapping",
    "final_logit_softcapping": "add_final_logit_softcapping",
    "num_kv_shared_layers": "add_shared_kv_layers",
    "hidden_size_per_layer_input": "add_embedding_length_per_layer_input",
    "altup_num_inputs": "add_altup_num_inputs",
    "attention_multiplier": "add_attention_scale",
    "embedding_multiplier": "add_embedding_scale",
    "residual_multiplier": "add_residual_scale",
    "logits_scaling": "add_logit_scale",
    "logit_scale": "add_logit_scale",
    "clip_qkv": "add_clamp_kqv",
}
# Tensors of one number, which are metadata: a list with one for each layer
XIELU = (".act_fn.alpha_p", ".act_fn.alpha_n", ".act_fn.beta", ".act_fn.eps")


def add_metadata(w: Any, arch: str, h: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
    """All of it, and the tensors that only GGUF files have."""
    add_experts(w, arch, h)
    add_attention(w, arch, h)
    for key, method in NUMBERS.items():
        if h.get(key):
            getattr(w, method)(h[key])
    if "use_parallel_residual" in h:
        w.add_parallel_residual(h["use_parallel_residual"])
    if "kv_lora_rank" in h:
        add_latent(w, h, arch)
    if arch == "minicpm":
        add_minicpm(w, h)
    if arch.startswith("lfm2"):
        w.add_shortconv_l_cache(h["conv_L_cache"])
    if arch.startswith(("qwen3next", "qwen35")):
        add_delta_rule(w, arch, h)
    if arch == "gemma3n":
        add_gemma3n(w, h)
    if arch == "gemma4":
        add_gemma4(w, h)
    if arch == "apertus":
        add_xielu(w, tensors)


def add_minicpm(w: Any, h: dict[str, Any]) -> None:
    """MiniCPMModel.set_gguf_parameters."""
    w.add_embedding_scale(float(h["scale_emb"]))
    w.add_residual_scale(h["scale_depth"] / h["num_hidden_layers"] ** 0.5)
    w.add_logit_scale(h["hidden_size"] / h["dim_model_base"])


def add_delta_rule(w: Any, arch: str, h: dict[str, Any]) -> None:
    """Qwen3NextModel.set_gguf_parameters."""
    w.add_ssm_conv_kernel(h["linear_conv_kernel_dim"])
    w.add_ssm_state_size(h["linear_key_head_dim"])
    w.add_ssm_group_count(h["linear_num_key_heads"])
    w.add_ssm_time_step_rank(h["linear_num_value_heads"])
    w.add_ssm_inner_size(h["linear_value_head_dim"] * h["linear_num_value_heads"])
    linear = [kind == "linear_attention" for kind in h["layer_types"]]
    w.add_array(f"{arch}.attention.recurrent_layers", linear)
    w.add_uint32(f"{arch}.full_attention_interval", 4)


def add_gemma3n(w: Any, h: dict[str, Any]) -> None:
    """Gemma3NModel.set_gguf_parameters."""
    shares = h["activation_sparsity_pattern"]
    w.add_altup_active_idx(h["altup_active_idx"])
    w.add_activation_sparsity_scale([NormalDist().inv_cdf(share) if share else -math.inf for share in shares])


def add_gemma4(w: Any, h: dict[str, Any]) -> None:
    """Gemma4Model.set_gguf_parameters and generate_extra_tensors."""
    width, n_layers, shared = h["intermediate_size"], h["num_hidden_layers"], h["num_kv_shared_layers"]
    own = next(iter(h["per_layer_config"].values()))
    size = own["head_dim"]
    w.add_shared_kv_layers(shared)
    w.add_embedding_length_per_layer_input(h["hidden_size_per_layer_input"] or 0)
    w.add_key_length(size)
    w.add_value_length(size)
    w.add_key_length_swa(h["head_dim"])
    w.add_value_length_swa(h["head_dim"])
    if h["use_double_wide_mlp"]:
        w.add_feed_forward_length([width if i < n_layers - shared else 2 * width for i in range(n_layers)])
    if "num_key_value_heads" in own:
        kv = (own["num_key_value_heads"], h["num_key_value_heads"])
        w.add_head_count_kv([kv[windowed] for windowed in windowed_layers(h)])
    w.add_rope_dimension_count(size)
    w.add_rope_dimension_count_swa(h["head_dim"])
    turning = int(size * h["rope_parameters"]["full_attention"]["partial_rotary_factor"] / 2)
    w.add_tensor("rope_freqs.weight", np.array([1.0] * turning + [1e30] * (size // 2 - turning), np.float32))


def add_xielu(w: Any, tensors: dict[str, np.ndarray]) -> None:
    """ApertusModel.modify_tensors."""
    for name in XIELU:
        numbers = [float(tensors[key].reshape(-1)[0]) for key in sorted(tensors) if key.endswith(name)]
        getattr(w, f"add_xielu_{name.rpartition('.')[2]}")(numbers)
