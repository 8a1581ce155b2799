"""Llama, and what is made of its parts: other biases, norms of heads, windows, rotary embeddings and plain
mixtures. Mistral, Qwen, SmolLM3, Phi-3."""

from __future__ import annotations

from typing import Any

from tools.prove.case import (
    GQA,
    LLAMA3,
    MHA,
    MOE,
    ODD,
    ONE_SHARED,
    YARN,
    Case,
    factors,
    theta,
)


def longrope(pairs: int, partial: float = 1.0) -> dict[str, Any]:
    """Phi-3.5's rotary embedding: 64 positions made 256."""
    return {
        "max_position_embeddings": 256,
        "original_max_position_embeddings": 64,
        **theta(
            rope_type="longrope",
            short_factor=factors(pairs, 1.5),
            long_factor=factors(pairs, 9),
            partial_rotary_factor=partial,
        ),
    }


LLAMA: dict[str, Case] = {
    "Llama": Case(
        "Llama",
        "Llama 1 and 2, TinyLlama, Yi, SmolLM2",
        {**ODD, "head_dim": 64, "tie_word_embeddings": True},
        gguf="llama",
    ),
    "Llama 3": Case(
        "Llama",
        "Llama 3, 3.1, 3.2, 3.3, DeepSeek-R1-Distill-Llama",
        {**GQA, "head_dim": 64, **theta(500000.0, **LLAMA3)},
        gguf="llama",
    ),
    "Llama with biases": Case(
        "Llama", "variants with attention_bias", {**ODD, "head_dim": 96, "attention_bias": True}, gguf="llama"
    ),
    "Llama with yarn": Case("Llama", "long-context variants", {**ODD, "head_dim": 80, **theta(**YARN)}),
    "Mistral": Case("Mistral", "Mistral 7B, Nemo, Small", {**ODD, "head_dim": 128, "sliding_window": 29}),
    "Mistral 3": Case(
        "Mistral3",
        "Mistral Small 3.1, 3.2 (text)",
        text={
            "model_type": "mistral",
            "head_dim": 80,
            "num_attention_heads": 5,
            "num_key_value_heads": 5,
            "sliding_window": None,
        },
    ),
    "Mixtral": Case(
        "Mixtral",
        "Mixtral 8x7B, 8x22B",
        {**ODD, "head_dim": 64, "num_local_experts": 5, "num_experts_per_tok": 2, "sliding_window": None},
        gguf="llama",
    ),
    "Qwen2": Case(
        "Qwen2",
        "Qwen1.5, Qwen2, Qwen2.5, DeepSeek-R1-Distill-Qwen",
        {
            "hidden_size": 3 * 64,
            **ODD,
            "use_sliding_window": True,
            "sliding_window": 30,
            "max_window_layers": 1,
        },
    ),
    "Qwen2 without a window": Case("Qwen2", "the same", {"hidden_size": 3 * 80, **ODD}, gguf="qwen2"),
    "Qwen2-MoE": Case(
        "Qwen2Moe",
        "Qwen1.5-MoE, Qwen2-57B-A14B",
        {**MHA, **ONE_SHARED, "hidden_size": 3 * 64},
        gguf="qwen2moe",
    ),
    "Qwen3": Case("Qwen3", "Qwen3, dense", {**ODD, "head_dim": 128}, gguf="qwen3"),
    "Qwen3-MoE": Case(
        "Qwen3Moe",
        "Qwen3-30B-A3B, Qwen3-235B-A22B, Qwen3-Coder",
        {**ODD, **MOE, "head_dim": 96, "num_experts": 6, "num_experts_per_tok": 3, "norm_topk_prob": True},
        gguf="qwen3moe",
    ),
    "Qwen3-MoE with dense layers": Case(
        "Qwen3Moe",
        "variants with mlp_only_layers or decoder_sparse_step",
        {
            **ODD,
            **MOE,
            "head_dim": 96,
            "num_experts": 6,
            "norm_topk_prob": True,
            "num_hidden_layers": 5,
            "decoder_sparse_step": 2,
            "mlp_only_layers": [3],
        },
    ),
    "Qwen3-MoE, not normalised": Case(
        "Qwen3Moe",
        "variants without norm_topk_prob",
        {**ODD, **MOE, "head_dim": 64, "num_experts": 6, "norm_topk_prob": False},
    ),
    "SmolLM3": Case(
        "SmolLM3",
        "SmolLM3-3B",
        {
            "hidden_size": 3 * 80,
            **ODD,
            "num_hidden_layers": 4,
            "tie_word_embeddings": True,
            **theta(50000.0),
        },
        gguf="smollm3",
    ),
    "Phi-3": Case(
        "Phi3",
        "Phi-3-mini, Phi-3-medium, Phi-4",
        {"hidden_size": 5 * 96, "num_attention_heads": 5, "num_key_value_heads": 5, "sliding_window": 33},
        gguf="phi3",
    ),
    "Phi-3.5, short text": Case(
        "Phi3",
        "Phi-3.5-mini, up to 4,096 positions",
        {"hidden_size": 3 * 96, **ODD, **longrope(48)},
        gguf="phi3",
    ),
    "Phi-3.5, long text": Case(
        "Phi3",
        "Phi-3.5-mini, up to 131,072 positions",
        {"hidden_size": 3 * 96, **ODD, **longrope(48)},
        context=200,
        gguf="phi3",
    ),
    "Phi-4-mini": Case(
        "Phi3",
        "Phi-4-mini",
        {"hidden_size": 3 * 128, **ODD, **longrope(48, 0.75), "tie_word_embeddings": True},
        context=256,
        gguf="phi3",
    ),
}
