"""Mixtures of experts whose attention is that of plain.py's models: rows differ in how a router chooses, in
which layers have experts, and in experts that all tokens share."""

from __future__ import annotations

from collections.abc import Callable

from pyllm._llm import lib

from ..configuration import Config, integer, layer_count
from ..sources import ConvertError
from .common import (
    BIASES,
    EVERY,
    LISTED,
    NORMALIZE,
    POST_NORM_NAMES,
    ROUTER_NAMES,
    SHARED_NAMES,
    SIGMOID_ROUTER,
    W_NAMES,
    WINDOW,
    listed_sparse,
    sparse_after_first,
    sparse_but_first,
    sparse_by_step,
    value_of,
)
from .family import BIAS, Family, always, sliding
from .plain import HUNYUAN_NAMES, HUNYUAN_ONLY, OLMO2_FLAGS, OLMO_FLAGS, QWEN

MIXTRAL_NAMES = ((".block_sparse_moe.", ".mlp."), *W_NAMES)


def sparse_between(config: Config, i: int) -> bool:
    """Ernie4_5_MoeDecoderLayer: every so many-th layer from a first to a last has experts; -1 is the last of
    all."""
    last = config["moe_layer_end_index"]
    last = layer_count(config) - 1 if last == -1 else integer(config, "moe_layer_end_index", zero=True)
    first = integer(config, "moe_layer_start_index", zero=True)
    return first <= i <= last and (i + 1) % integer(config, "moe_layer_interval") == 0


def alike(*keys: str) -> Callable[[Config], Config]:
    """Keys that may have a list with an entry for each layer, of which all are the same."""

    def prepare(config: Config) -> Config:
        own = {}
        for key in keys:
            found = config.get(key)
            if isinstance(found, list):
                if not found or any(value != found[0] for value in found):
                    raise ConvertError(f"configuration: {key} differs between layers, which is not supported")
                own[key] = found[0]
        return config | own

    return prepare


ROWS: dict[str, Family] = {
    "MixtralForCausalLM": Family(
        "Mixtral",
        defaults={
            "num_key_value_heads": 8,
            "rms_norm_eps": 1e-5,
            "rope_theta": 1e6,
            "num_experts_per_tok": 2,
            **WINDOW,
        },
        rename=MIXTRAL_NAMES,
        flags=lib.LLM_ROUTER_NORMALIZE,
        switches={},
        experts=True,
        kinds=EVERY,
    ),
    "Qwen2MoeForCausalLM": Family(
        "Qwen2-MoE",
        defaults={
            "num_key_value_heads": 16,
            "num_experts_per_tok": 4,
            "moe_intermediate_size": 1408,
            "shared_expert_intermediate_size": 5632,
            "qkv_bias": True,
            **QWEN,
        },
        flags=lib.LLM_SHARED_GATE,
        switches={"qkv_bias": lib.LLM_QKV_BIAS, **NORMALIZE},
        ffn="moe_intermediate_size",
        experts=True,
        shared="shared_expert_intermediate_size",
        kinds=sliding(lambda config, i: i % 2 == 0 and i < integer(config, "max_window_layers", zero=True)),
        sparse=sparse_by_step,
    ),
    "Qwen3MoeForCausalLM": Family(
        "Qwen3-MoE",
        defaults={"num_key_value_heads": 4, "num_experts_per_tok": 8, **QWEN},
        flags=lib.LLM_QK_NORM,
        switches=BIAS | NORMALIZE,
        ffn="moe_intermediate_size",
        experts=True,
        kinds=EVERY,
        sparse=sparse_by_step,
    ),
    "OlmoeForCausalLM": Family(
        "OLMoE",
        defaults={"rms_norm_eps": 1e-5, "num_experts_per_tok": 8},
        flags=OLMO_FLAGS,
        switches=BIAS | NORMALIZE,
        experts=True,
        only={"clip_qkv": (None,)},
    ),
    "FlexOlmoForCausalLM": Family(
        "FlexOlmo",
        defaults={"rope_theta": 500000.0, "num_experts_per_tok": 5},
        rename=POST_NORM_NAMES,
        flags=OLMO2_FLAGS,
        switches=BIAS | NORMALIZE,
        experts=True,
    ),
    "Glm4MoeForCausalLM": Family(
        "GLM-4.5",
        defaults={
            "num_key_value_heads": 8,
            "rms_norm_eps": 1e-5,
            "partial_rotary_factor": 0.5,
            "moe_intermediate_size": 1408,
            "num_experts_per_tok": 8,
            "n_shared_experts": 1,
            "first_k_dense_replace": 1,
            "norm_topk_prob": True,
        },
        rename=SHARED_NAMES,
        flags=SIGMOID_ROUTER,
        switches={"use_qk_norm": lib.LLM_QK_NORM, **BIAS, **NORMALIZE},
        ffn="moe_intermediate_size",
        experts=True,
        sparse=sparse_after_first,
        shared="moe_intermediate_size",
        n_shared="n_shared_experts",
        partial=True,
    ),
    "Dots1ForCausalLM": Family(
        "dots.llm1",
        defaults={
            "moe_intermediate_size": 1408,
            "first_k_dense_replace": 0,
            **WINDOW,
            "sliding_window": 4096,
            "max_window_layers": 62,
        },
        rename=SHARED_NAMES,
        flags=lib.LLM_QK_NORM | SIGMOID_ROUTER,
        switches=BIAS | NORMALIZE,
        ffn="moe_intermediate_size",
        experts=True,
        sparse=sparse_after_first,
        shared="moe_intermediate_size",
        n_shared="n_shared_experts",
        kinds=sliding(
            lambda config, i: (
                config["sliding_window"] is not None and i >= integer(config, "max_window_layers", zero=True)
            )
        ),
    ),
    "DeepseekForCausalLM": Family(
        "DeepSeek V1",
        defaults={"num_experts_per_tok": 6, "first_k_dense_replace": 0, "norm_topk_prob": False},
        rename=SHARED_NAMES,
        switches=BIAS | NORMALIZE,
        ffn="moe_intermediate_size",
        experts=True,
        sparse=sparse_after_first,
        shared="moe_intermediate_size",
        n_shared="n_shared_experts",
        only={"scoring_func": (None, "softmax"), "moe_layer_freq": (None, 1)},
    ),
    "Ernie4_5_MoeForCausalLM": Family(
        "ERNIE 4.5 MoE",
        defaults={
            "num_key_value_heads": 4,
            "rms_norm_eps": 1e-5,
            "rope_theta": 500000.0,
            "tie_word_embeddings": True,
            "moe_intermediate_size": 1536,
            "moe_k": 6,
            "moe_num_shared_experts": 2,
            "moe_layer_start_index": 1,
            "moe_layer_end_index": -1,
            "moe_layer_interval": 1,
        },
        rename=(*SHARED_NAMES, (".mlp.moe_statics.", ".mlp.")),
        flags=lib.LLM_ROUTER_NORMALIZE | lib.LLM_ROUTER_BIAS,
        switches={"use_bias": lib.LLM_QKV_BIAS},
        ffn="moe_intermediate_size",
        experts=True,
        sparse=sparse_between,
        shared="moe_intermediate_size",
        n_shared="moe_num_shared_experts",
        interleaved=True,
    ),
    "SolarOpenForCausalLM": Family(
        "Solar Open",
        defaults={
            "num_key_value_heads": 8,
            "head_dim": 128,
            "rms_norm_eps": 1e-5,
            "rope_theta": 1e6,
            "moe_intermediate_size": 1280,
            "num_experts_per_tok": 8,
            "n_shared_experts": 1,
            "norm_topk_prob": True,
        },
        rename=SHARED_NAMES,
        flags=SIGMOID_ROUTER,
        switches=BIAS | NORMALIZE,
        ffn="moe_intermediate_size",
        experts=True,
        shared="moe_intermediate_size",
        n_shared="n_shared_experts",
        partial=True,
    ),
    "HYV3ForCausalLM": Family(
        "HY 3",
        defaults={
            "num_key_value_heads": 8,
            "head_dim": 128,
            "rms_norm_eps": 1e-5,
            "rope_theta": 11158840.0,
            "moe_intermediate_size": 1536,
            "num_experts_per_tok": 8,
            "num_shared_experts": 1,
            "router_scaling_factor": 2.826,
        },
        rename=(
            *ROUTER_NAMES,
            (".mlp.shared_mlp.", ".mlp.shared_expert."),
            *SHARED_NAMES,
        ),
        flags=lib.LLM_QK_NORM | SIGMOID_ROUTER | lib.LLM_ROUTER_NORMALIZE,
        switches=BIASES,
        numbers={"expert_scale": value_of("router_scaling_factor")},
        ffn="moe_intermediate_size",
        experts=True,
        sparse=sparse_but_first,
        shared="moe_intermediate_size",
        n_shared="num_shared_experts",
        only={"mlp_bias": (None, False), "enable_moe_fp32_combine": (None, True, False)},
    ),
    "HunYuanMoEV1ForCausalLM": Family(
        "HunYuan MoE",
        defaults={"rms_norm_eps": 1e-5, "moe_topk": 1},
        rename=HUNYUAN_NAMES,
        flags=lib.LLM_QK_NORM | lib.LLM_QK_NORM_LATE | lib.LLM_ROUTER_NORMALIZE,
        switches=BIASES,
        experts=True,
        shared="intermediate_size",
        prepare=alike("num_experts", "moe_topk", "num_shared_expert", "moe_intermediate_size"),
        only=HUNYUAN_ONLY | {"num_shared_expert": (None, 1), "moe_layer_num_skipped": (None, 0)},
    ),
    "MellumForCausalLM": Family(
        "Mellum 2",
        defaults={
            "num_key_value_heads": 4,
            "head_dim": 128,
            **WINDOW,
            "sliding_window": 1024,
            "num_experts_per_tok": 8,
            "moe_intermediate_size": 896,
            "norm_topk_prob": True,
            "rope_parameters": {
                "full_attention": {"rope_theta": 500000.0},
                "sliding_attention": {"rope_theta": 10000.0},
            },
        },
        flags=lib.LLM_QK_NORM,
        switches=BIASES | NORMALIZE,
        ffn="moe_intermediate_size",
        experts=True,
        sparse=listed_sparse(always),
        kinds=LISTED,
    ),
    "MiniMaxM2ForCausalLM": Family(
        "MiniMax-M2",
        defaults={
            "num_key_value_heads": 8,
            "head_dim": 128,
            "rope_theta": 5e6,
            "num_experts_per_tok": 8,
            "scoring_func": "sigmoid",
        },
        rename=MIXTRAL_NAMES,
        flags=OLMO_FLAGS | lib.LLM_ROUTER_NORMALIZE | SIGMOID_ROUTER,
        switches={},
        experts=True,
        partial=True,
        only={
            "scoring_func": ("sigmoid",),
            "shared_intermediate_size": (None, 0),
            "use_qk_norm": (None, True),
            "qk_norm_type": (None, "per_layer"),
        },
    ),
}
