"""Gemma: scaled embeddings, norms behind blocks too, a rotary embedding for layers with a window and another
for the rest; and what 3n and 4 add: embeddings for each layer, keys and values of another layer."""

from __future__ import annotations

from typing import Any

from tools.prove.case import ODD, VISION, VOCAB, Case


def two_ropes(rope_type: str = "default", **scaling: float) -> dict[str, Any]:
    """rope_parameters where layers with a window turn faster than the others, whose scaling is given."""
    return {
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
            "full_attention": {"rope_type": rope_type, "rope_theta": 20000.0, **scaling},
        }
    }


GEMMA = {"query_pre_attn_scalar": 96, "sliding_window": 21, "tie_word_embeddings": True}
GEMMA4 = {
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 48,
    "global_head_dim": 80,
    "num_hidden_layers": 7,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"] * 2 + ["full_attention"],
    "sliding_window": 21,
    "final_logit_softcapping": 30.0,
    "tie_word_embeddings": True,
    **two_ropes("proportional", partial_rotary_factor=0.5),
}
VALUES_ARE_KEYS = {"attention_k_eq_v": True, "num_key_value_heads": 2, "num_global_key_value_heads": 1}
GEMMAS: dict[str, Case] = {
    "Gemma": Case(
        "Gemma",
        "Gemma 1, CodeGemma",
        {**ODD, "head_dim": 256, "tie_word_embeddings": True},
        embed=0.35,
        gguf="gemma",
    ),
    "Gemma 2": Case(
        "Gemma2",
        "Gemma 2",
        {**ODD, **GEMMA, "head_dim": 96, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 8.0},
        embed=0.35,
        gguf="gemma2",
    ),
    "Gemma 3": Case(
        "Gemma3",
        "Gemma 3 1B, 270M",
        {
            **ODD,
            **GEMMA,
            "head_dim": 96,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
            **two_ropes("linear", factor=8.0),
        },
        embed=0.35,
        gguf="gemma3",
    ),
    "Gemma 3 of texts and pictures": Case(
        "Gemma3",
        "Gemma 3 4B, 12B, 27B (text)",
        text={
            **ODD,
            **GEMMA,
            "model_type": "gemma3_text",
            "head_dim": 64,
            "num_hidden_layers": 7,
            "query_pre_attn_scalar": 150,
        },
        embed=0.35,
    ),
    "Gemma 3n": Case(
        "Gemma3n",
        "Gemma 3n E2B, E4B (text)",
        {
            **ODD,
            "num_attention_heads": 4,
            "head_dim": 48,
            "num_hidden_layers": 6,
            "intermediate_size": [212, 212, 140, 212, 212, 140],
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"] * 2,
            "sliding_window": 21,
            "tie_word_embeddings": True,
            **two_ropes(),
            "hidden_size_per_layer_input": 40,
            "vocab_size_per_layer_input": VOCAB - 1,
            "num_kv_shared_layers": 2,
            "altup_num_inputs": 3,
            "laurel_rank": 12,
            "activation_sparsity_pattern": [0.8, 0.8, 0.3, 0.0, 0.0, 0.0],
        },
        embed=0.5,
        gguf="gemma3n",
    ),
    "Gemma 4": Case(
        "Gemma4",
        "Gemma 4 31B (text)",
        GEMMA4 | VALUES_ARE_KEYS | {"hidden_size_per_layer_input": 0},
        embed=0.7,
        gguf="gemma4",
    ),
    "Gemma 4 with embeddings by layer": Case(
        "Gemma4",
        "Gemma 4 E2B, E4B (text)",
        GEMMA4
        | {
            "hidden_size_per_layer_input": 40,
            "num_kv_shared_layers": 3,
            "use_double_wide_mlp": True,
            "vocab_size_per_layer_input": VOCAB,
        },
        embed=0.7,
        gguf="gemma4",
    ),
    "Gemma 4 of texts and pictures": Case(
        "Gemma4",
        "the same as they are published (text)",
        {"vision_config": VISION | {"num_key_value_heads": 2, "head_dim": 16}},
        text=GEMMA4
        | {
            "hidden_size_per_layer_input": 72,
            "num_kv_shared_layers": 1,
            "vocab_size_per_layer_input": VOCAB,
            "use_bidirectional_attention": "vision",
        },
        embed=0.7,
    ),
    "Gemma 4, a mixture": Case(
        "Gemma4",
        "Gemma 4 26B-A4B (text)",
        GEMMA4
        | VALUES_ARE_KEYS
        | {
            "hidden_size_per_layer_input": 0,
            "enable_moe_block": True,
            "num_experts": 6,
            "top_k_experts": 2,
            "moe_intermediate_size": 72,
        },
        embed=0.7,
        gguf="gemma4",
    ),
    "Gemma 4 without an encoder": Case(
        "Gemma4Unified",
        "Gemma 4 12B (text)",
        GEMMA4 | VALUES_ARE_KEYS,
        embed=0.7,
    ),
}
