"""The metadata of a GGUF file about experts."""

from __future__ import annotations

from typing import Any

from tools.prove.gguf_keys import first

EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
USED = ("num_experts_per_tok", "moe_k", "moe_topk", "top_k_experts")
SHARED_EXPERTS = ("n_shared_experts", "num_shared_experts", "moe_num_shared_experts")
SCALES = ("routed_scaling_factor", "moe_routed_scaling_factor", "router_scaling_factor", "route_scale")
DENSE = ("first_k_dense_replace", "num_dense_layers", "moe_layer_start_index")
# Architectures that have leading dense layers or shared experts
MIXTURES = (
    *("glm4moe", "dots1", "deepseek", "ernie4_5-moe", "exaone-moe", "afmoe", "gpt-oss", "llama4"),
    *("hunyuan-moe", "mimo2", "laguna", "mellum", "hy_v3"),
)
SIGMOID = ("glm4moe", "exaone-moe", "afmoe", "dots1", "laguna", "hy_v3")


def add_experts(w: Any, arch: str, h: dict[str, Any]) -> None:
    """All of it; nothing of a model without experts, but that DeepSeek's converter writes some of it."""
    import gguf

    if first(h, *EXPERTS):
        w.add_expert_count(first(h, *EXPERTS))
        w.add_expert_used_count(first(h, *USED))
    if arch in MIXTURES:
        add_mixture(w, arch, h)
    if h.get("moe_intermediate_size"):
        w.add_expert_feed_forward_length(h["moe_intermediate_size"])
    shared = first(h, "shared_expert_intermediate_size", "shared_intermediate_size")
    if shared:
        w.add_expert_shared_feed_forward_length(shared)
    if arch == "lfm2moe":
        w.add_leading_dense_block_count(h["num_dense_layers"])
        w.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
        w.add_expert_weights_scale(h["routed_scaling_factor"])
    if arch == "minimax-m2":
        w.add_expert_feed_forward_length(h["intermediate_size"])
        w.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    if arch == "deepseek2":
        add_deepseek_mixture(w, h)


def add_mixture(w: Any, arch: str, h: dict[str, Any]) -> None:
    """What those of MIXTURES have."""
    import gguf

    if arch == "llama4":
        w.add_interleave_moe_layer_step(h["interleave_moe_layer_step"])
    if arch == "ernie4_5-moe":
        w.add_interleave_moe_layer_step(h["moe_layer_interval"])
    if "moe_intermediate_size" not in h:
        w.add_expert_feed_forward_length(h["intermediate_size"])
    add_shared_experts(w, arch, h)
    add_groups(w, h)
    if first(h, *SCALES):
        w.add_expert_weights_scale(first(h, *SCALES))
    if arch in SIGMOID:
        w.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
        w.add_expert_weights_norm(h.get("norm_topk_prob", True))
    if h.get("num_nextn_predict_layers"):
        w.add_nextn_predict_layers(h["num_nextn_predict_layers"])
    dense = h["mlp_layer_types"].count("dense") if arch == "laguna" else first(h, *DENSE)
    if dense is not None:
        w.add_leading_dense_block_count(dense)


def add_shared_experts(w: Any, arch: str, h: dict[str, Any]) -> None:
    """How many there are, or how wide all are together, or both."""
    width, shared = h.get("moe_intermediate_size", h["intermediate_size"]), first(h, *SHARED_EXPERTS)
    if shared and arch not in ("hy_v3", "laguna"):
        w.add_expert_shared_count(shared)
    if arch in ("exaone-moe", "hy_v3", "ernie4_5-moe"):
        w.add_expert_shared_feed_forward_length(width * shared)
    if arch == "hunyuan-moe":
        w.add_expert_shared_feed_forward_length(width)
        w.add_expert_shared_count(1)


def add_groups(w: Any, h: dict[str, Any]) -> None:
    """Groups of experts, of which the best are looked into."""
    if h.get("n_group"):
        w.add_expert_group_count(h["n_group"])
    if h.get("topk_group"):
        w.add_expert_group_used_count(h["topk_group"])


def add_deepseek_mixture(w: Any, h: dict[str, Any]) -> None:
    """DeepseekV2Model.set_gguf_parameters: also of a model without experts, all of whose layers are dense."""
    import gguf

    listed = h.get("mlp_layer_types", []).count("dense")
    w.add_leading_dense_block_count(listed or h.get("first_k_dense_replace", h["num_hidden_layers"]))
    w.add_expert_feed_forward_length(h.get("moe_intermediate_size", h["intermediate_size"]))
    w.add_expert_shared_count(h.get("n_shared_experts", 0))
    add_groups(w, h)
    if h.get("routed_scaling_factor"):
        w.add_expert_weights_scale(h["routed_scaling_factor"])
    if h.get("norm_topk_prob"):
        w.add_expert_weights_norm(h["norm_topk_prob"])
    if h.get("scoring_func"):
        w.add_expert_gating_func(gguf.ExpertGatingFuncType[h["scoring_func"].upper()])
