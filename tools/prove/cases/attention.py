"""Attention's small print: layers that do not turn, or by another base; values of another width, sinks and
gates; layers of more or fewer heads; queries that grow; chunks. Some of these families are mixtures too."""

from __future__ import annotations

from tools.prove.case import FULL_AT_ENDS, GROWING, LLAMA3, MOE, ODD, ONE_SHARED, YARN, Case, theta
from tools.prove.cases.relatives import GRANITE, GRANITE_MOE

WINDOWED = {"num_hidden_layers": 4, "sliding_window": 21}
LAGUNA = {
    **ODD,
    **ONE_SHARED,
    "head_dim": 64,
    **WINDOWED,
    "num_attention_heads_per_layer": [3, 5, 2, 3],
    "layer_types": FULL_AT_ENDS,
    "moe_routed_scaling_factor": 1.5,
}
ATTENTION: dict[str, Case] = {
    "Granite SWA": Case(
        "GraniteSWA",
        "Granite Swash 2B",
        {**GRANITE, **WINDOWED, "layer_rope_theta": [10000.0, 500.0, 0, 10000.0]},
        embed=1 / 3,
    ),
    "Granite SWA of one base": Case(
        "GraniteSWA",
        "variants without rotation in some layers",
        {**GRANITE, **WINDOWED, "layer_rope_theta": [500.0, 500.0, 0, 500.0], **theta(500.0)},
        embed=1 / 3,
        gguf="granite_swa",
    ),
    "Granite MoE SWA": Case(
        "GraniteMoeSWA",
        "Granite Swash 3B-A600M",
        {
            **GRANITE_MOE,
            **WINDOWED,
            "shared_intermediate_size": 100,
            "layer_rope_theta": [10000.0, 0, 10000.0, 10000.0],
        },
        embed=1 / 3,
        gguf="granite_swa",
    ),
    "MiMo V2 Flash": Case(
        "MiMoV2Flash",
        "MiMo V2 Flash 309B-A15B",
        {
            **MOE,
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
            "head_dim": 96,
            "v_head_dim": 64,
            "attention_value_scale": 0.5,  # into the weights of values: fp16 holds them still
            "n_routed_experts": 6,
            **WINDOWED,
            "layer_types": FULL_AT_ENDS,
            "n_group": 3,
            "topk_group": 2,
            "attention_bias": False,
        },
        gguf="mimo2",
    ),
    "Laguna": Case("Laguna", "Laguna XS.2", LAGUNA, gguf="laguna"),
    "Laguna with a gate for each number": Case(
        "Laguna",
        "variants with gating per element",
        {
            **LAGUNA,
            "gating": "per-element",
            "num_hidden_layers": 5,
            "num_attention_heads_per_layer": [3, 5, 2, 3, 1],
            "layer_types": ["full_attention", *["sliding_attention"] * 3, "full_attention"],
        },
        gguf="laguna",
    ),
    "Ministral 3": Case(
        "Ministral3",
        "Ministral 3 (its text part alone)",
        {**ODD, "head_dim": 64, **GROWING},
        gguf="mistral3",
    ),
    "Ministral 3 of texts and pictures": Case(
        "Mistral3",
        "Ministral 3 3B, 8B, 14B (text)",
        text={
            "model_type": "ministral3",
            "head_dim": 80,
            "num_attention_heads": 5,
            "num_key_value_heads": 5,
            **theta(**(YARN | {"original_max_position_embeddings": 16}), llama_4_scaling_beta=0.4),
        },
        embed=6.0,
    ),
    "Llama 4": Case(
        "Llama4",
        "Llama 4 Scout, Maverick (text)",
        {
            **ODD,
            "head_dim": 64,
            "num_hidden_layers": 5,
            "no_rope_layer_interval": 3,
            "attention_chunk_size": 16,
            "floor_scale": 4,
            "attn_scale": 0.6,
            "num_local_experts": 5,
            "interleave_moe_layer_step": 2,
            "intermediate_size": 72,
            "intermediate_size_mlp": 212,
        },
    ),
    "Llama 4 with Maverick's numbers": Case(
        "Llama4",
        "the same, without norms of queries and keys",
        {
            **ODD,
            "head_dim": 64,
            "num_hidden_layers": 5,
            "num_local_experts": 128,
            "interleave_moe_layer_step": 2,
            "intermediate_size": 24,
            "intermediate_size_mlp": 212,
            "use_qk_norm": False,
        },
        gguf="llama4",
    ),
    "HunYuan": Case(
        "HunYuanDenseV1",
        "HunYuan 0.5B to 7B",
        {**ODD, "head_dim": 96, **theta(rope_type="dynamic", alpha=50.0, factor=1.0)},
        gguf="hunyuan-dense",
    ),
    "HunYuan MoE": Case(
        "HunYuanMoEV1",
        "HunYuan A13B",
        {**ODD, "head_dim": 64, "num_experts": 5, "moe_topk": [2, 2, 2], "intermediate_size": 92},
        gguf="hunyuan-moe",
    ),
    "CWM": Case(
        "Cwm",
        "CWM 32B",
        {**ODD, "head_dim": 64, "num_hidden_layers": 5, "sliding_window": 23, **theta(500000.0, **LLAMA3)},
    ),
    "Mellum 2": Case(
        "Mellum",
        "Mellum 2 12B-A2.5B",
        {
            **ODD,
            **MOE,
            "head_dim": 96,
            "num_local_experts": 6,
            "num_hidden_layers": 4,
            "sliding_window": 19,
            "layer_types": FULL_AT_ENDS,
        },
        gguf="mellum",
    ),
}
