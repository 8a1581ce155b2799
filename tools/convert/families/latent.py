"""Multi-head latent attention: keys and values are made of a latent (DeepSeek V2 and those after it)."""

from __future__ import annotations

from dataclasses import replace

from pyllm._llm import lib

from ..configuration import Config
from ..flatfile import Layer
from .attention import GROWING_QUERIES
from .common import BIASES, NORMALIZE, SHARED_NAMES, SIGMOID_ROUTER, sparse_after_first, sparse_but_first
from .family import Family
from .plain import MINICPM

LATENT = {
    "kv_lora_rank": 512,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "rope_interleave": True,
}
NO_BIAS = {".q_proj.bias": 0.0}  # without q_lora_rank queries have none where keys and the output have one
LATENT_ONLY = {"moe_layer_freq": (None, 1)}


def ungrouped_if_greedy(config: Config) -> Config:
    """DeepseekV2TopkRouter: groups matter only where the method is of groups."""
    return config | ({"n_group": None} if config["topk_method"] == "greedy" else {})


def best_of_group(config: Config, i: int, kind: str, layer: Layer) -> Layer:
    """DeepseekV2TopkRouter: a group is as good as its best expert."""
    return replace(layer, flags=layer.flags | (lib.LLM_ROUTER_BEST if layer.n_groups else 0))


DEEPSEEK_V3 = Family(
    "DeepSeek V3",
    defaults={
        **LATENT,
        "num_experts_per_tok": 8,
        "n_shared_experts": 1,
        "moe_intermediate_size": 2048,
        "routed_scaling_factor": 2.5,
        "first_k_dense_replace": 3,
        "n_group": 8,
        "topk_group": 4,
        "norm_topk_prob": True,
    },
    rename=SHARED_NAMES,
    flags=SIGMOID_ROUTER,
    switches=BIASES | NORMALIZE,
    absent=NO_BIAS,
    ffn="moe_intermediate_size",
    experts=True,
    sparse=sparse_after_first,
    shared="moe_intermediate_size",
    n_shared="n_shared_experts",
    interleaved=True,
    latent=True,
    only=LATENT_ONLY | {"scoring_func": (None, "sigmoid"), "topk_method": (None, "noaux_tc")},
)
ROWS: dict[str, Family] = {
    "DeepseekV3ForCausalLM": DEEPSEEK_V3,
    "DeepseekV2ForCausalLM": replace(
        DEEPSEEK_V3,
        name="DeepSeek V2",
        defaults={
            **LATENT,
            "n_shared_experts": 2,
            "moe_intermediate_size": 1407,
            "first_k_dense_replace": 0,
            "n_group": None,
            "topk_group": None,
            "topk_method": "greedy",
        },
        flags=0,
        switches=BIASES,
        prepare=ungrouped_if_greedy,
        vary=best_of_group,
        only=LATENT_ONLY
        | {
            "scoring_func": (None, "softmax"),
            "topk_method": ("greedy", "group_limited_greedy"),
            "norm_topk_prob": (None, False),
            "rope_interleave": (None, True),
        },
    ),
    "Glm4MoeLiteForCausalLM": replace(
        DEEPSEEK_V3,
        name="GLM-4.7 Flash",
        defaults={
            **LATENT,
            "rms_norm_eps": 1e-5,
            "num_experts_per_tok": 4,
            "n_shared_experts": 1,
            "moe_intermediate_size": 1536,
            "routed_scaling_factor": 1.8,
            "n_group": 1,
            "topk_group": 1,
            "norm_topk_prob": True,
            "q_lora_rank": 768,
            "qk_nope_head_dim": 192,
            "v_head_dim": 256,
        },
        sparse=sparse_but_first,
        only={**DEEPSEEK_V3.only, "first_k_dense_replace": (None, 1)},
    ),
    "Mistral4ForCausalLM": replace(
        DEEPSEEK_V3,
        name="Mistral 4",
        defaults={
            **LATENT,
            "kv_lora_rank": 256,
            "q_lora_rank": 1024,
            "qk_nope_head_dim": 64,
            "num_experts_per_tok": 4,
            "n_shared_experts": 1,
            "moe_intermediate_size": 2048,
            "routed_scaling_factor": 1.0,
            "first_k_dense_replace": 0,
            "n_group": 1,
            "topk_group": 1,
            "norm_topk_prob": True,
        },
        flags=0,
        numbers=GROWING_QUERIES,
        only=LATENT_ONLY,
    ),
    "YoutuForCausalLM": Family(
        "Youtu",
        defaults={**LATENT, "tie_word_embeddings": True},
        switches=BIASES,
        absent=NO_BIAS,
        interleaved=True,
        latent=True,
    ),
    "MiniCPM3ForCausalLM": replace(
        MINICPM,
        name="MiniCPM3",
        defaults={
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": True,
            "kv_lora_rank": 256,
            "q_lora_rank": 768,
            "qk_nope_head_dim": 64,
            "qk_rope_head_dim": 32,
            "v_head_dim": None,
            "scale_emb": 12,
            "scale_depth": 1.4,
            "dim_model_base": 256,
        },
        switches=BIASES,
        absent=NO_BIAS,
        latent=True,
    ),
}
