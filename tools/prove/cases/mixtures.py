"""Mixtures of experts: behind leading dense layers, beside shared experts, chosen by sigmoids or in groups,
with biases or in MXFP4; and EXAONE 4, of which one is made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tools.prove.case import LLAMA3, MHA, MOE, ODD, SHARED, YARN, Case, theta
from tools.prove.folder import load, store

SHARED_GATE = "shared_expert_gate.weight"


def shut(name: str, weight: Any) -> Any:
    """The gate of the shared expert as as_deepseek needs it: a row of zeros."""
    return weight.new_zeros(weight.shape) if name.endswith(SHARED_GATE) else weight


def as_deepseek(folder: Path) -> None:
    """A Qwen2-MoE as DeepSeek V1 stores it. The gate of the shared expert must be open: a row of zeros makes
    it 1/2, which goes into the expert's last matrix."""
    config, tensors = load(folder)
    renamed = {}
    for name, tensor in tensors.items():
        if name.endswith(SHARED_GATE):
            assert not tensor.any()
            continue
        scale = 0.5 if name.endswith("shared_expert.down_proj.weight") else 1
        renamed[name.replace(".shared_expert.", ".shared_experts.")] = tensor * np.float32(scale)
    config |= {
        "architectures": ["DeepseekForCausalLM"],
        "first_k_dense_replace": len(config.pop("mlp_only_layers")),
        "n_routed_experts": config.pop("num_experts"),
        "n_shared_experts": config.pop("shared_expert_intermediate_size") // config["moe_intermediate_size"],
        "moe_layer_freq": config.pop("decoder_sparse_step"),
        "scoring_func": "softmax",
    }
    store(folder, config, renamed)


EXPERTS = ("experts.gate_up_proj", "experts.down_proj")
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)


def on_grid(name: str, weight: Any) -> Any:
    """Experts' numbers (experts, inputs, outputs) that MXFP4 holds: of each 32 inputs one power of two and
    E2M1."""
    import torch

    if not name.endswith(EXPERTS):
        return weight
    e, rows, cols = weight.shape
    codes = torch.randint(0, 16, weight.shape)
    powers = torch.randint(-7, -4, (e, rows // 32, 1, cols)).expand(e, rows // 32, 32, cols)
    return torch.tensor(E2M1)[codes] * torch.exp2(powers.reshape(weight.shape).float())


def as_mxfp4(folder: Path) -> None:
    """gpt-oss as it was published: experts in blocks of 32 inputs, two codes a byte and a biased exponent."""
    config, tensors = load(folder)
    for name in [name for name in tensors if name.endswith(EXPERTS)]:
        w = tensors.pop(name).swapaxes(1, 2)
        groups = w.reshape(*w.shape[:2], -1, 32)
        largest = np.frexp(np.abs(groups).max(-1))[1]  # 6 has the exponent 3
        power = largest - 3
        for more in (1, 2):  # the largest code of a group may be smaller
            bad = abs(np.ldexp(groups, -power[..., None])[..., None] - E2M1).min(-1).max(-1) > 0
            power = np.where(bad, power - more, power)
        codes = abs(np.ldexp(groups, -power[..., None])[..., None] - E2M1).argmin(-1).astype(np.uint8)
        assert (E2M1[codes] * np.ldexp(1.0, power)[..., None] == groups).all()
        tensors[f"{name}_blocks"] = codes[..., 0::2] | codes[..., 1::2] << 4
        tensors[f"{name}_scales"] = (power + 127).astype(np.uint8)
    store(folder, config | {"quantization_config": {"quant_method": "mxfp4"}}, tensors)


GPT_OSS = {
    **ODD,
    "head_dim": 64,
    "num_local_experts": 6,
    "num_experts_per_tok": 3,
    "num_hidden_layers": 4,
    "sliding_window": 21,
    **theta(150000.0, **YARN, truncate=False),
}
MIXTURES: dict[str, Case] = {
    "GLM-4.5": Case(
        "Glm4Moe",
        "GLM-4.5, GLM-4.5-Air, GLM-4.6",
        {
            **ODD,
            **MOE,
            **SHARED,
            "head_dim": 80,
            "num_hidden_layers": 4,
            "first_k_dense_replace": 2,
            "use_qk_norm": True,
            "attention_bias": True,
            "routed_scaling_factor": 2.5,
            **theta(partial_rotary_factor=0.5),
        },
        embed=6.0,
        gguf="glm4moe",
    ),
    "GLM-4.5 of one dense layer": Case(
        "Glm4Moe",
        "the same without norms of q and k",
        {**ODD, **MOE, **SHARED, "head_dim": 64, "first_k_dense_replace": 1, "norm_topk_prob": False},
        gguf="glm4moe",
    ),
    "dots.llm1": Case(
        "Dots1",
        "dots.llm1",
        {
            **ODD,
            **MOE,
            **SHARED,
            "head_dim": 96,
            "num_hidden_layers": 4,
            "first_k_dense_replace": 1,
            "norm_topk_prob": True,
            "routed_scaling_factor": 2.5,
            "sliding_window": 27,
            "max_window_layers": 2,
        },
    ),
    "dots.llm1 without a window": Case(
        "Dots1",
        "the same",
        {**ODD, **MOE, **SHARED, "head_dim": 64, "first_k_dense_replace": 1, "sliding_window": None},
        gguf="dots1",
    ),
    "DeepSeek V1": Case(
        "Qwen2Moe",
        "DeepSeek-MoE 16B",
        {
            **MOE,
            "hidden_size": 3 * 64,
            **MHA,
            "num_experts": 6,
            "shared_expert_intermediate_size": 144,
            "mlp_only_layers": [0],
            "qkv_bias": False,
        },
        adjust=shut,
        rewrite=as_deepseek,
        gguf="deepseek",
    ),
    "ERNIE 4.5 MoE": Case(
        "Ernie4_5_Moe",
        "ERNIE 4.5 21B-A3B, 300B-A47B",
        {
            **ODD,
            "moe_intermediate_size": 72,
            "moe_k": 2,
            "moe_num_experts": 6,
            "moe_num_shared_experts": 2,
            "num_hidden_layers": 5,
            "moe_layer_start_index": 1,
            "moe_layer_end_index": 3,
            "moe_layer_interval": 2,
            "head_dim": 80,
            "tie_word_embeddings": True,
        },
        gguf="ernie4_5-moe",
    ),
    "EXAONE 4": Case(
        "Exaone4",
        "EXAONE 4.0 32B",
        {"hidden_size": 3 * 64, **ODD, "num_hidden_layers": 4, "sliding_window": 23},
        gguf="exaone4",
    ),
    "EXAONE 4 without a window": Case(
        "Exaone4",
        "EXAONE 4.0 1.2B",
        {
            "hidden_size": 3 * 64,
            **ODD,
            "sliding_window": None,
            "layer_types": ["full_attention"] * 3,
            **theta(**LLAMA3),
        },
        gguf="exaone4",
    ),
    "EXAONE MoE": Case(
        "ExaoneMoe",
        "K-EXAONE 236B-A23B",
        {
            **ODD,
            **MOE,
            "hidden_size": 3 * 64,
            "num_experts": 8,
            "num_shared_experts": 2,
            "num_hidden_layers": 4,
            "first_k_dense_replace": 1,
            "sliding_window": 23,
            "n_group": 4,
            "topk_group": 2,
        },
        gguf="exaone-moe",
    ),
    "Solar Open": Case(
        "SolarOpen",
        "Solar Open 100B",
        {**ODD, **MOE, **SHARED, "head_dim": 80, "n_group": 3, "topk_group": 2, "routed_scaling_factor": 1.5},
        gguf="glm4moe",
    ),
    "HY 3": Case(
        "HYV3",
        "Hy3-preview",
        {
            **ODD,
            **MOE,
            "num_experts": 6,
            "num_shared_experts": 2,
            "head_dim": 96,
            "num_hidden_layers": 4,
            "attention_bias": True,
        },
        out_bias=True,
        gguf="hy_v3",
    ),
    "AFMoE": Case(
        "Afmoe",
        "Trinity Nano, Mini",
        {
            **ODD,
            **MOE,
            "num_experts": 6,
            "num_shared_experts": 2,
            "head_dim": 80,
            "num_hidden_layers": 5,
            "num_dense_layers": 1,
            "global_attn_every_n_layers": 3,
            "sliding_window": 19,
            "route_scale": 1.7,
            "mup_enabled": True,
        },
        embed=0.35,
        gguf="afmoe",
    ),
    "FlexOlmo": Case(
        "FlexOlmo",
        "FlexOlmo 7x7B",
        {**MHA, "hidden_size": 3 * 64, "num_experts": 6, "num_experts_per_tok": 3},
        embed=8.0,
    ),
    "gpt-oss": Case(
        "GptOss",
        "gpt-oss in bf16",
        {**GPT_OSS, "intermediate_size": 92},
        embed=6.0,
        out_bias=True,
        gguf="gpt-oss",
    ),
    "gpt-oss in MXFP4": Case(
        "GptOss",
        "gpt-oss 20B, 120B",
        {**GPT_OSS, "hidden_size": 3 * 64, "intermediate_size": 96},
        out_bias=True,
        adjust=on_grid,
        rewrite=as_mxfp4,
        gguf="gpt-oss",
    ),
    "gpt-oss of other gates": Case(
        "GptOss",
        "variants with another swiglu_limit, swiglu_alpha",
        {**GPT_OSS, "intermediate_size": 92, "swiglu_limit": 1.5, "swiglu_alpha": 1.2},
        out_bias=True,
    ),
}

# Behind layers with a state in the table
MINIMAX: dict[str, Case] = {
    "MiniMax-M2": Case(
        "MiniMaxM2",
        "MiniMax-M2 in bf16",
        {
            **ODD,
            "head_dim": 80,
            "num_local_experts": 6,
            "num_experts_per_tok": 2,
            **theta(partial_rotary_factor=0.5),
        },
        gguf="minimax-m2",
    ),
}
