"""Layers with a state in place of keys and values: short convolutions, and the gated delta rule."""

from __future__ import annotations

from tools.prove.case import GQA, MOE, ODD, ONE_SHARED, Case

DELTA = {
    **ODD,
    "head_dim": 48,
    "num_hidden_layers": 4,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 6,
    "linear_key_head_dim": 20,
    "linear_value_head_dim": 20,
}
QWEN_TEXT = {**DELTA, "model_type": "qwen3_5_text", "layer_types": ["linear_attention", "full_attention"] * 2}
STATES: dict[str, Case] = {
    "LFM2": Case(
        "Lfm2",
        "LFM2 350M, 700M, 1.2B, 2.6B",
        {
            **GQA,
            "num_hidden_layers": 4,
            "full_attn_idxs": [1, 3],
            "intermediate_size": 300,
            "block_multiple_of": 24,
            "block_ffn_dim_multiplier": 1.1,
            "conv_L_cache": 4,
            "tie_word_embeddings": True,
        },
        gguf="lfm2",
    ),
    "LFM2 MoE": Case(
        "Lfm2Moe",
        "LFM2 8B-A1B",
        {
            **MOE,
            **GQA,
            "num_hidden_layers": 5,
            "layer_types": ["conv", "conv", "full_attention", "conv", "full_attention"],
            "num_dense_layers": 1,
            "num_experts": 6,
            "routed_scaling_factor": 1.5,
            "tie_word_embeddings": True,
        },
        gguf="lfm2moe",
    ),
    "Qwen3-Next": Case(
        "Qwen3Next",
        "Qwen3-Next 80B-A3B",
        {**DELTA, **ONE_SHARED, "norm_topk_prob": True},
        gguf="qwen3next",
    ),
    "Qwen3-Next with dense layers": Case(
        "Qwen3Next",
        "variants with mlp_only_layers and heads of other widths",
        {
            **DELTA,
            **ONE_SHARED,
            "mlp_only_layers": [1],
            "linear_value_head_dim": 44,
            "linear_num_value_heads": 2,
            "linear_conv_kernel_dim": 3,
            "layer_types": ["full_attention", *["linear_attention"] * 3],
        },
    ),
    "Qwen 3.5": Case(
        "Qwen3_5",
        "Qwen 3.5 0.8B to 27B, its text part alone",
        DELTA,
        embed=8.0,
        gguf="qwen35",
    ),
    "Qwen 3.5 of texts and pictures": Case("Qwen3_5", "Qwen 3.5 0.8B to 27B (text)", text=QWEN_TEXT),
    "Qwen 3.5 MoE": Case(
        "Qwen3_5Moe",
        "Qwen 3.5 35B-A3B, 122B-A10B, 397B-A17B, their text parts alone",
        {**DELTA, **ONE_SHARED},
        embed=12.0,
        gguf="qwen35moe",
    ),
    "Qwen 3.5 MoE of texts and pictures": Case(
        "Qwen3_5Moe",
        "Qwen 3.5 35B-A3B, 122B-A10B, 397B-A17B (text)",
        text={**QWEN_TEXT, **ONE_SHARED, "model_type": "qwen3_5_moe_text"},
    ),
}
