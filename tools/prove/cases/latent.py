"""Latent attention: keys and values of all heads are made of one latent, which is what is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tools.prove.case import GROWING, MHA, MOE, SHARED, YARN, Case, factors, theta
from tools.prove.folder import load, store


def latent_yarn(mscale: float) -> dict[str, Any]:
    """DeepSeek's rotary embedding, whose magnitude is that of all of a head."""
    return theta(**YARN, mscale=mscale, mscale_all_dim=mscale, beta_fast=32.0, beta_slow=1.0)


def as_kimi(folder: Path) -> None:
    """Layers get the names that they have on the hub; transformers saves them under those of pictures."""
    config, tensors = load(folder)
    blocks = "language_model.model.blocks."
    renamed = {name.replace(blocks, "language_model.model.layers."): t for name, t in tensors.items()}
    store(folder, config, renamed)


LATENT = {
    **MHA,
    "kv_lora_rank": 72,
    "q_lora_rank": 52,
    "qk_nope_head_dim": 40,
    "qk_rope_head_dim": 24,
    "v_head_dim": 20,
}
MIXTURE = {**LATENT, **MOE, **SHARED}
GROUPED = {**LATENT, **MOE, "n_group": 4, "topk_group": 2, "n_routed_experts": 12, "n_shared_experts": 1}
LATENTS: dict[str, Case] = {
    "DeepSeek V2": Case(
        "DeepseekV2",
        "DeepSeek-V2, V2.5, Coder-V2",
        {
            **GROUPED,
            "num_experts_per_tok": 3,
            "first_k_dense_replace": 1,
            "topk_method": "group_limited_greedy",
            "routed_scaling_factor": 2.0,
            **latent_yarn(1.0),
        },
        embed=6.0,
        gguf="deepseek2",
    ),
    "DeepSeek V2 Lite": Case(
        "DeepseekV2",
        "DeepSeek-V2-Lite, Coder-V2-Lite",
        {
            **MIXTURE,
            "q_lora_rank": None,
            "first_k_dense_replace": 1,
            "topk_method": "greedy",
            **latent_yarn(0.707),
        },
        gguf="deepseek2",
    ),
    "DeepSeek V3": Case(
        "DeepseekV3",
        "DeepSeek-V3, V3.1, R1",
        {
            **GROUPED,
            "num_experts_per_tok": 3,
            "first_k_dense_replace": 1,
            "scoring_func": "sigmoid",
            **latent_yarn(1.0),
        },
        gguf="deepseek2",
    ),
    "DeepSeek V3 in halves": Case(
        "DeepseekV3",
        "variants without rope_interleave, q_lora_rank, with attention_bias",
        {
            **GROUPED,
            "q_lora_rank": None,
            "first_k_dense_replace": 2,
            "rope_interleave": False,
            "attention_bias": True,
        },
    ),
    "Kimi K2": Case(
        "DeepseekV3",
        "Kimi K2, Moonlight",
        {
            **MIXTURE,
            "n_group": 1,
            "topk_group": 1,
            "first_k_dense_replace": 1,
            "routed_scaling_factor": 2.827,
            "scoring_func": "sigmoid",
            "rms_norm_eps": 1e-5,
        },
        gguf="deepseek2",
    ),
    "GLM-4.7 Flash": Case(
        "Glm4MoeLite",
        "GLM-4.7-Flash",
        {**MIXTURE, "mlp_layer_types": ["dense", "sparse", "sparse"], "scoring_func": "sigmoid"},
        gguf="deepseek2",
    ),
    "Mistral 4": Case(
        "Mistral4",
        "Mistral Small 4",
        {**MIXTURE, "first_k_dense_replace": 1, **GROWING},
    ),
    "Mistral 4 of texts and pictures": Case(
        "Mistral3",
        "the same as it is published (text)",
        text={**MIXTURE, "model_type": "mistral4", **GROWING},
    ),
    "Kimi K2.5": Case(
        "Kimi_K25",
        "Kimi K2.5, K2.6 (text)",
        text={
            **MIXTURE,
            "model_type": "deepseek_v3",
            "n_group": 1,
            "topk_group": 1,
            "first_k_dense_replace": 1,
        },
        rewrite=as_kimi,
    ),
    "Youtu": Case(
        "Youtu", "Youtu-LLM-2B", {**LATENT, "tie_word_embeddings": True, **theta(1.6e6)}, gguf="deepseek2"
    ),
    "MiniCPM3": Case(
        "MiniCPM3",
        "MiniCPM3-4B",
        {
            **LATENT,
            "v_head_dim": 44,
            "tie_word_embeddings": True,
            "scale_emb": 12,
            "scale_depth": 1.4,
            "dim_model_base": 256,
            "max_position_embeddings": 256,
            "original_max_position_embeddings": 256,
            **theta(rope_type="longrope", short_factor=factors(12, 1.5), long_factor=factors(12, 9)),
        },
        embed=1 / 3,
        gguf="minicpm3",
    ),
}
