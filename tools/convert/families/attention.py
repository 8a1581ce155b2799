"""Families with something of their own in attention: layers that do not turn, that differ in their heads or
attend within chunks; sinks, gates, queries that grow with their position."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from pyllm._llm import lib

from ..configuration import Config, integer, layer_count, number
from ..flatfile import Layer
from ..sources import ConvertError, shown
from .common import (
    BIASES,
    EVERY,
    LISTED,
    NORMALIZE,
    POST_NORM_NAMES,
    ROUTER_NAMES,
    SHARED_NAMES,
    SIGMOID_ROUTER,
    WINDOW,
    but_every,
    in_layer,
    listed_sparse,
    sparse_after,
    sparse_after_first,
    sparse_but_first,
    value_of,
)
from .family import BIAS, Family, sliding
from .plain import QWEN


def turning_layers(config: Config) -> list[bool]:
    """SmolLM3Config, Llama4TextConfig: layers whose entry in no_rope_layers is 0 do not turn; [] is none."""
    n_layers, turns = layer_count(config), config.get("no_rope_layers")
    if turns is None or turns == []:
        step = integer(config, "no_rope_layer_interval")
        turns = [(i + 1) % step for i in range(n_layers)]
    if not isinstance(turns, list) or len(turns) != n_layers:
        raise ConvertError("configuration: no_rope_layers has not one entry for each layer")
    return [bool(turn) for turn in turns]


def ropes_of_turning_layers(config: Config, kinds: list[str]) -> list[str | None]:
    return [kind if turns else None for kind, turns in zip(kinds, turning_layers(config), strict=True)]


def ropes_with_window(config: Config, kinds: list[str]) -> list[str | None]:
    """Exaone4Attention: if some layers have a window, the others do not turn."""
    some = config["sliding_window"] is not None
    return [None if some and kind == "full_attention" else kind for kind in kinds]


EXAONE_KINDS = sliding(
    lambda config, i: (
        config["sliding_window"] is not None and (i + 1) % integer(config, "sliding_window_pattern") != 0
    )
)


def of_rope(key: str) -> Callable[[Config], Any]:
    """A value of the rotary configuration."""

    def find(config: Config) -> Any:
        rope = config.get("rope_parameters") or config.get("rope_scaling")
        return rope.get(key) if isinstance(rope, dict) else None

    return find


def llama4_beta(config: Config) -> float:
    """Ministral3Attention: how fast queries grow; 0: they do not."""
    return of_rope("llama_4_scaling_beta")(config) or 0.0


def llama4_span(config: Config) -> int:
    span = of_rope("original_max_position_embeddings")(config)
    return integer({"original_max_position_embeddings": span}, "original_max_position_embeddings")


GROWING_QUERIES = {"query_growth": llama4_beta, "query_span": llama4_span}


def mimo_config(config: Config) -> Config:
    """MiMoV2FlashConfig: a window's size without the token itself."""
    if config.get("sliding_window_size") is None:
        return config
    return config | {"sliding_window": integer(config, "sliding_window_size") + 1}


def mimo_layer(config: Config, i: int, kind: str, layer: Layer) -> Layer:
    """MiMoV2FlashAttention: layers with a window have twice the key heads, and sinks."""
    if kind == "full_attention":
        return layer
    flags = layer.flags | lib.LLM_SINK
    return replace(layer, flags=flags, n_kv_heads=2 * layer.n_kv_heads)


def laguna_layer(config: Config, i: int, kind: str, layer: Layer) -> Layer:
    """LagunaAttention: layers differ in their heads; gates are of heads or of their elements."""
    gating = config["gating"]
    flags = layer.flags | (lib.LLM_OUT_GATE_HEAD if gating in (True, "per-head") else 0)
    given = config.get("num_attention_heads_per_layer") is not None
    n_heads = in_layer(config, "num_attention_heads_per_layer", i) if given else layer.n_heads
    return replace(layer, flags=flags, n_heads=n_heads)


def llama4_layer(config: Config, i: int, kind: str, layer: Layer) -> Layer:
    """Llama4TextAttention: layers that turn normalise queries and keys then, the queries of others grow."""
    if turning_layers(config)[i]:
        norms = lib.LLM_QK_NORM | lib.LLM_QK_NORM_LATE
        return replace(layer, flags=layer.flags | (norms if config["use_qk_norm"] else 0))
    if not config["attn_temperature_tuning"]:
        return layer
    growth, span = number(config, "attn_scale"), integer(config, "floor_scale")
    return replace(layer, query_growth=growth, query_span=span, query_shift=1)


def llama4_sparse(config: Config, i: int) -> bool:
    """Llama4TextDecoderLayer: the layers of a list, or every so many-th."""
    if config.get("moe_layers") is None:
        return (i + 1) % integer(config, "interleave_moe_layer_step") == 0
    if not isinstance(config["moe_layers"], list):
        raise ConvertError(
            f"configuration: moe_layers is {shown(config['moe_layers'])}, not a list of layers"
        )
    return i in config["moe_layers"]


def chunked(config: Config) -> list[str]:
    """Llama4TextConfig: layers that turn attend within chunks."""
    listed: list[str] | None = config.get("layer_types")
    if listed is not None:
        return listed
    some = config.get("attention_chunk_size") is not None
    return ["chunked_attention" if some and turns else "full_attention" for turns in turning_layers(config)]


ROWS: dict[str, Family] = {
    "SmolLM3ForCausalLM": Family(
        "SmolLM3",
        defaults={
            "num_key_value_heads": 4,
            "rope_theta": 2e6,
            "no_rope_layer_interval": 4,
            "tie_word_embeddings": True,
            **QWEN,
        },
        kinds=sliding(lambda config, i: not turning_layers(config)[i]),
        ropes=ropes_of_turning_layers,
    ),
    "Exaone4ForCausalLM": Family(
        "EXAONE 4",
        defaults={
            "num_key_value_heads": 32,
            "rms_norm_eps": 1e-5,
            **WINDOW,
            "sliding_window": 4096,
            "sliding_window_pattern": 4,
        },
        rename=POST_NORM_NAMES,
        flags=lib.LLM_QK_NORM | lib.LLM_NO_PRE_NORM | lib.LLM_POST_NORM,
        switches={},
        kinds=EXAONE_KINDS,
        ropes=ropes_with_window,
    ),
    "ExaoneMoeForCausalLM": Family(
        "EXAONE MoE",
        defaults={
            "num_key_value_heads": 32,
            "rms_norm_eps": 1e-5,
            **WINDOW,
            "sliding_window": 4096,
            "sliding_window_pattern": 4,
            "moe_intermediate_size": 1024,
            "num_experts_per_tok": 8,
            "num_shared_experts": 1,
            "first_k_dense_replace": 1,
            "norm_topk_prob": True,
            "routed_scaling_factor": 2.5,
        },
        rename=SHARED_NAMES,
        flags=lib.LLM_QK_NORM | SIGMOID_ROUTER,
        switches=NORMALIZE,
        ffn="moe_intermediate_size",
        experts=True,
        sparse=listed_sparse(sparse_after_first),
        shared="moe_intermediate_size",
        n_shared="num_shared_experts",
        kinds=EXAONE_KINDS,
        ropes=ropes_with_window,
    ),
    "AfmoeForCausalLM": Family(
        "AFMoE",
        defaults={
            "head_dim": 128,
            "rms_norm_eps": 1e-5,
            **WINDOW,
            "sliding_window": 1024,
            "global_attn_every_n_layers": 4,
            "moe_intermediate_size": 1408,
            "num_experts_per_tok": 6,
            "num_shared_experts": 2,
            "num_dense_layers": 1,
            "route_scale": 1.0,
            "mup_enabled": False,
        },
        rename=(
            (".post_attention_layernorm.", ".post_self_attn_layernorm."),
            (".pre_mlp_layernorm.", ".post_attention_layernorm."),
            *ROUTER_NAMES,
            *SHARED_NAMES,
        ),
        flags=lib.LLM_QK_NORM
        | lib.LLM_POST_NORM
        | lib.LLM_OUT_GATE
        | SIGMOID_ROUTER
        | lib.LLM_ROUTER_NORMALIZE,
        switches={},
        numbers={
            "embed_scale": lambda config: (
                number(config, "hidden_size") ** 0.5 if config["mup_enabled"] else 1.0
            ),
            "expert_scale": value_of("route_scale"),
        },
        ffn="moe_intermediate_size",
        experts=True,
        sparse=sparse_after("num_dense_layers"),
        shared="moe_intermediate_size",
        n_shared="num_shared_experts",
        kinds=sliding(but_every("global_attn_every_n_layers")),
        ropes=ropes_with_window,
        only={
            "attention_bias": (None, False),
            "score_func": (None, "sigmoid"),
            "route_norm": (None, True),
            "num_expert_groups": (None, 1),
            "num_limited_groups": (None, 1),
            "n_group": (None, 1),
            "topk_group": (None, 1),
        },
    ),
    "GptOssForCausalLM": Family(
        "gpt-oss",
        defaults={
            "num_key_value_heads": 8,
            "head_dim": 64,
            "rms_norm_eps": 1e-5,
            "rope_theta": 150000.0,
            **WINDOW,
            "sliding_window": 128,
            "num_experts_per_tok": 4,
            "attention_bias": True,
            "swiglu_alpha": 1.702,
            "swiglu_limit": 7.0,
        },
        rename=((".mlp.router.", ".mlp.gate."),),
        flags=lib.LLM_SINK | lib.LLM_FFN_BIAS | lib.LLM_ROUTER_LOGIT_BIAS | lib.LLM_ROUTER_NORMALIZE,
        switches=BIASES,
        numbers={
            "gate_slope": value_of("swiglu_alpha"),
            "gate_limit": value_of("swiglu_limit"),
            "up_shift": lambda config: 1.0,
        },
        experts=True,
        transposed=True,
        alternating=True,
        kinds=sliding(but_every(2)),
    ),
    "MiMoV2FlashForCausalLM": Family(
        "MiMo V2 Flash",
        defaults={
            "num_key_value_heads": 4,
            "head_dim": 192,
            "v_head_dim": 128,
            "rms_norm_eps": 1e-5,
            **WINDOW,
            "sliding_window": 129,
            "moe_intermediate_size": 2048,
            "num_experts_per_tok": 8,
            "norm_topk_prob": True,
            "attention_value_scale": 0.707,
            "rope_parameters": {
                "full_attention": {"rope_theta": 5e6, "partial_rotary_factor": 0.334},
                "sliding_attention": {"rope_theta": 10000.0, "partial_rotary_factor": 0.334},
            },
        },
        rename=((".self_attn.attention_sink_bias", ".self_attn.sinks"), *SHARED_NAMES),
        flags=SIGMOID_ROUTER,
        switches=BIAS | NORMALIZE,
        numbers={"value_dim": lambda config: integer(config, "v_head_dim")},
        value_scale=value_of("attention_value_scale"),
        ffn="moe_intermediate_size",
        experts=True,
        sparse=sparse_but_first,
        kinds=sliding(lambda config, i: i > 0 and (i + 1) % 6 != 0),
        vary=mimo_layer,
        prepare=mimo_config,
        partial=True,
    ),
    "LagunaForCausalLM": Family(
        "Laguna",
        defaults={
            "num_key_value_heads": 8,
            "head_dim": 128,
            **WINDOW,
            "sliding_window": 512,
            "moe_intermediate_size": 512,
            "shared_expert_intermediate_size": 512,
            "num_experts_per_tok": 8,
            "gating": True,
            "moe_routed_scaling_factor": 1.0,
            "rope_parameters": {
                "full_attention": {"rope_theta": 500000.0, "partial_rotary_factor": 0.5},
                "sliding_attention": {"rope_theta": 10000.0, "partial_rotary_factor": 1.0},
            },
        },
        rename=(
            (".self_attn.g_proj.", ".self_attn.gate_proj."),
            (".mlp.experts.e_score_correction_bias", ".mlp.e_score_correction_bias"),
            *SHARED_NAMES,
        ),
        flags=lib.LLM_QK_NORM
        | lib.LLM_OUT_GATE
        | lib.LLM_OUT_GATE_SOFTPLUS
        | SIGMOID_ROUTER
        | lib.LLM_ROUTER_NORMALIZE,
        switches={},
        numbers={"expert_scale": value_of("moe_routed_scaling_factor")},
        ffn="moe_intermediate_size",
        experts=True,
        sparse=sparse_but_first,
        shared="shared_expert_intermediate_size",
        kinds=LISTED,
        vary=laguna_layer,
        partial=True,
        only={
            "attention_bias": (None, False),
            "gating": (True, "per-head", "per-element", False),
            "moe_apply_router_weight_on_input": (None, False),
            "moe_router_logit_softcapping": (None, 0, 0.0),
        },
    ),
    "Ministral3ForCausalLM": Family(
        "Ministral 3",
        defaults={
            "num_key_value_heads": 8,
            "head_dim": 128,
            "rms_norm_eps": 1e-5,
            **WINDOW,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 1e6,
                "factor": 16.0,
                "original_max_position_embeddings": 16384,
                "mscale_all_dim": 1.0,
                "mscale": 1.0,
                "llama_4_scaling_beta": 0.1,
            },
        },
        switches={},
        numbers=GROWING_QUERIES,
        kinds=EVERY,
    ),
    "Llama4ForCausalLM": Family(
        "Llama 4",
        defaults={
            "num_key_value_heads": 8,
            "head_dim": 128,
            "rms_norm_eps": 1e-5,
            "rope_theta": 500000.0,
            "num_experts_per_tok": 1,
            "intermediate_size_mlp": 16384,
            "interleave_moe_layer_step": 1,
            "no_rope_layer_interval": 4,
            "attention_chunk_size": 8192,
            "use_qk_norm": True,
            "attn_temperature_tuning": True,
            "floor_scale": 8192,
            "attn_scale": 0.1,
        },
        rename=((".feed_forward.router.", ".mlp.gate."), (".feed_forward.", ".mlp.")),
        flags=lib.LLM_ROUTER_SIGMOID | lib.LLM_EXPERT_INPUT,
        switches=BIASES,
        ffn="intermediate_size",
        dense="intermediate_size_mlp",
        experts=True,
        sparse=llama4_sparse,
        shared="intermediate_size",
        kinds=chunked,
        ropes=ropes_of_turning_layers,
        vary=llama4_layer,
        absent={".q_norm.weight": 1.0, ".k_norm.weight": 1.0},
        interleaved=True,
        transposed=True,
    ),
}
