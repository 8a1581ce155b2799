"""Proof that every family is computed as transformers computes it: tiny random checkpoints, converted and
run, against transformers in float32.

    python -m tools.prove

prints a Markdown table. The sizes are awkward on purpose (odd numbers of heads, head_dim not dim / heads,
little that is a multiple of 64), windows are shorter than the text, scalings are active, and weights are
large, so that attention is sharp and every feature of a family moves the logits. Weights are rounded to fp16
before both see them, so that only arithmetic differs. Needs torch and transformers, and the gguf library for
GGUF files, which are written here as llama.cpp's converter writes them."""

from __future__ import annotations

import json
import math
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np

from tools.checkpoints import finish, gguf_writer, interleaved

VOCAB, TEXT = 203, 90  # the vocabulary, and the tokens of a text: no multiple of 16
LLAMA3: dict[str, Any] = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
}
YARN: dict[str, Any] = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
MOE = {"num_experts_per_tok": 2, "moe_intermediate_size": 72}
SHARED = {"n_routed_experts": 6, "n_shared_experts": 2}


def theta(base: float = 10000.0, **scaling: Any) -> dict[str, Any]:
    """The new style's rope_parameters."""
    return {"rope_parameters": {"rope_type": "default", "rope_theta": base} | scaling}


@dataclass(frozen=True)
class Case:
    """A family, or a variant of one: the model that transformers makes of it, and how the checkpoint differs
    from what transformers saves."""

    kind: str  # of <kind>Config and <kind>ForCausalLM
    models: str  # for people: what is published with this architecture
    config: dict[str, Any] = field(default_factory=dict)
    text: dict[str, Any] | None = None  # of text_config, in a model of texts and pictures
    context: int | None = None  # what the conversion is asked for
    embed: float = 4.0  # the size of the embedding's numbers, see checkpoint()
    out_bias: bool = False  # whether what is multiplied with o_proj has a bias
    rewrite: Callable[[Path], None] | None = None  # turns the saved folder into one that transformers lacks
    gguf: str | None = None  # llama.cpp's name, if it has the architecture
    drop: tuple[str, ...] = ()  # of the sizes below, keys that the configuration calls otherwise


SMALL = {"hidden_size": 132, "intermediate_size": 212, "num_hidden_layers": 3}
ODD = {"num_attention_heads": 3, "num_key_value_heads": 1}  # 132 / 3 = 44, and no head_dim below is that


def as_internlm2(folder: Path) -> None:
    """A Llama as InternLM2 stores it: q, k and v in one, by groups of a key head; other names."""
    names = {
        "model.embed_tokens": "model.tok_embeddings",
        "self_attn.o_proj": "attention.wo",
        "mlp.gate_proj": "feed_forward.w1",
        "mlp.up_proj": "feed_forward.w3",
        "mlp.down_proj": "feed_forward.w2",
        "input_layernorm": "attention_norm",
        "post_attention_layernorm": "ffn_norm",
        "lm_head": "output",
    }
    config, tensors = load(folder)
    kv, hd = config["num_key_value_heads"], config["head_dim"]
    for i in range(config["num_hidden_layers"]):
        q, k, v = (tensors.pop(f"model.layers.{i}.self_attn.{x}_proj.weight") for x in "qkv")
        groups = [x.reshape(kv, -1, hd, q.shape[1]) for x in (q, k, v)]
        tensors[f"model.layers.{i}.attention.wqkv.weight"] = np.concatenate(groups, 1).reshape(-1, q.shape[1])
    renamed = {}
    for name, tensor in tensors.items():
        for theirs, ours in names.items():
            name = name.replace(theirs, ours)
        renamed[name] = tensor
    store(folder, config | {"architectures": ["InternLM2ForCausalLM"], "bias": False}, renamed)


def as_minicpm(folder: Path) -> None:
    """A Granite with MiniCPM's names for its scales."""
    config, tensors = load(folder)
    layers, dim = config["num_hidden_layers"], config["hidden_size"]
    config |= {
        "architectures": ["MiniCPMForCausalLM"],
        "scale_emb": config.pop("embedding_multiplier"),
        "scale_depth": config.pop("residual_multiplier") * layers**0.5,
        "dim_model_base": dim / config.pop("logits_scaling"),
    }
    del config["attention_multiplier"]
    store(folder, config, tensors)


def as_deepseek(folder: Path) -> None:
    """A Qwen2-MoE as DeepSeek V1 stores it. The gate of the shared expert must be open: a row of zeros makes
    it 1/2, which goes into its last matrix."""
    config, tensors = load(folder)
    renamed = {}
    for name, tensor in tensors.items():
        if name.endswith("shared_expert_gate.weight"):
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


E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)


def on_grid(weight: Any) -> Any:
    """Numbers (experts, inputs, outputs) that MXFP4 holds: of each 32 inputs one power of two and E2M1."""
    import torch

    e, rows, cols = weight.shape
    codes = torch.randint(0, 16, weight.shape)
    powers = torch.randint(-7, -4, (e, rows // 32, 1, cols)).expand(e, rows // 32, 32, cols)
    return torch.tensor(E2M1)[codes] * torch.exp2(powers.reshape(weight.shape).float())


def as_mxfp4(folder: Path) -> None:
    """gpt-oss as it was published: experts in blocks of 32 inputs, two codes a byte and a biased exponent."""
    config, tensors = load(folder)
    for name in [name for name in tensors if name.endswith(("experts.gate_up_proj", "experts.down_proj"))]:
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


def factors(n: int, most: float) -> list[float]:
    """Rotary factors of long texts, growing like Phi-3.5's."""
    return [float(x) for x in np.linspace(1, most, n).round(3)]


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


GEMMA = {"query_pre_attn_scalar": 96, "sliding_window": 21, "tie_word_embeddings": True}
LOCAL_ROPE = {
    "rope_parameters": {
        "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
        "full_attention": {"rope_type": "default", "rope_theta": 20000.0},
    }
}
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
    "rope_parameters": {
        "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
        "full_attention": {
            "rope_type": "proportional",
            "partial_rotary_factor": 0.5,
            "rope_theta": 20000.0,
        },
    },
}
GRANITE = {
    "embedding_multiplier": 12.0,
    "residual_multiplier": 0.22,
    "attention_multiplier": 0.3,
    "logits_scaling": 8.0,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "hidden_size": 3 * 64,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 16,
}
GPT_OSS = {
    **ODD,
    "head_dim": 64,
    "num_local_experts": 6,
    "num_experts_per_tok": 3,
    "num_hidden_layers": 4,
    "sliding_window": 21,
    **theta(150000.0, **YARN, truncate=False),
}
LAGUNA = {
    **ODD,
    **MOE,
    "head_dim": 64,
    "num_experts": 6,
    "shared_expert_intermediate_size": 100,
    "num_hidden_layers": 4,
    "num_attention_heads_per_layer": [3, 5, 2, 3],
    "sliding_window": 21,
    "layer_types": ["full_attention", "sliding_attention", "sliding_attention", "full_attention"],
    "moe_routed_scaling_factor": 1.5,
}
HEADS = {"num_attention_heads": 3}  # and as many for keys and values
GPT2 = {**HEADS, "n_inner": 212, "tie_word_embeddings": True}
GPT2_DROP = ("intermediate_size",)
DELTA = {
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "head_dim": 48,
    "num_hidden_layers": 4,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 6,
    "linear_key_head_dim": 20,
    "linear_value_head_dim": 20,
}
QWEN_TEXT = {**DELTA, "model_type": "qwen3_5_text", "layer_types": ["linear_attention", "full_attention"] * 2}
CASES: dict[str, Case] = {
    "Llama": Case(
        "Llama",
        "Llama 1 and 2, TinyLlama, Yi, SmolLM2",
        {**ODD, "head_dim": 64, "tie_word_embeddings": True},
        gguf="llama",
    ),
    "Llama 3": Case(
        "Llama",
        "Llama 3, 3.1, 3.2, 3.3, DeepSeek-R1-Distill-Llama",
        {
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "head_dim": 64,
            **theta(500000.0, **LLAMA3, original_max_position_embeddings=64),
        },
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
        {
            **MOE,
            "hidden_size": 3 * 64,
            "num_attention_heads": 3,
            "num_key_value_heads": 3,
            "num_experts": 6,
            "shared_expert_intermediate_size": 100,
        },
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
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 20000.0},
            },
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
            **LOCAL_ROPE,
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
        GEMMA4
        | {
            "attention_k_eq_v": True,
            "num_key_value_heads": 2,
            "num_global_key_value_heads": 1,
            "hidden_size_per_layer_input": 0,
        },
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
        | {
            "enable_moe_block": True,
            "num_experts": 6,
            "top_k_experts": 2,
            "moe_intermediate_size": 72,
            "attention_k_eq_v": True,
            "num_key_value_heads": 2,
            "num_global_key_value_heads": 1,
            "hidden_size_per_layer_input": 0,
        },
        embed=0.7,
        gguf="gemma4",
    ),
    "Gemma 4 without an encoder": Case(
        "Gemma4Unified",
        "Gemma 4 12B (text)",
        GEMMA4 | {"attention_k_eq_v": True, "num_key_value_heads": 2, "num_global_key_value_heads": 1},
        embed=0.7,
    ),
    "OLMo 2": Case(
        "Olmo2",
        "OLMo 2",
        {"hidden_size": 3 * 64, "num_attention_heads": 3, "num_key_value_heads": 3},
        gguf="olmo2",
    ),
    "OLMo 3": Case(
        "Olmo3",
        "OLMo 3",
        {
            "hidden_size": 3 * 64,
            **ODD,
            "num_hidden_layers": 4,
            "sliding_window": 23,
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
                "full_attention": {**YARN, "rope_theta": 10000.0},
            },
        },
        gguf="olmo2",
    ),
    "OLMoE": Case(
        "Olmoe",
        "OLMoE",
        {
            "hidden_size": 3 * 64,
            "num_attention_heads": 3,
            "num_key_value_heads": 3,
            "num_experts": 6,
            "num_experts_per_tok": 3,
        },
        gguf="olmoe",
    ),
    "Granite": Case("Granite", "Granite 3", GRANITE, embed=1 / 3, gguf="granite"),
    "Granite MoE": Case(
        "GraniteMoe",
        "Granite 3 1B-A400M, 3B-A800M",
        {**GRANITE, "num_local_experts": 5, "num_experts_per_tok": 2},
        embed=1 / 3,
        gguf="granitemoe",
    ),
    "Granite MoE with a shared expert": Case(
        "GraniteMoeShared",
        "Granite MoE, shared expert",
        {**GRANITE, "num_local_experts": 5, "num_experts_per_tok": 2, "shared_intermediate_size": 100},
        embed=1 / 3,
        gguf="granitemoe",
    ),
    "InternLM2": Case(
        "Llama",
        "InternLM2, InternLM2.5 (reference: a Llama with its weights)",
        {"hidden_size": 6 * 64, "num_attention_heads": 6, "num_key_value_heads": 2},
        rewrite=as_internlm2,
        gguf="internlm2",
    ),
    "MiniCPM": Case(
        "Granite",
        "MiniCPM 1B, 2B, MiniCPM 2 (reference: a Granite with its scales)",
        {**GRANITE, "attention_multiplier": 64**-0.5, "tie_word_embeddings": True},
        embed=1 / 3,
        rewrite=as_minicpm,
        gguf="minicpm",
    ),
    "GLM-4": Case(
        "Glm",
        "glm-4-9b-hf",
        {**ODD, "head_dim": 128, "attention_bias": True, "pad_token_id": 0},
    ),
    "GLM-4-0414": Case(
        "Glm4",
        "GLM-4-9B-0414, GLM-4-32B-0414",
        {**ODD, "head_dim": 80, "attention_bias": False, "pad_token_id": 0},
        gguf="glm4",
    ),
    "InternLM3": Case(
        "Llama",
        "InternLM3 (reference: Llama)",
        {**ODD, "head_dim": 96, **theta(rope_type="dynamic", factor=6.0)},
        rewrite=lambda folder: store(
            folder, load(folder)[0] | {"architectures": ["InternLM3ForCausalLM"]}, load(folder)[1]
        ),
    ),
    "Ministral": Case(
        "Ministral",
        "Ministral with windows in some layers",
        {
            **ODD,
            "head_dim": 64,
            "sliding_window": 17,
            "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
        },
    ),
    "Seed-OSS": Case("SeedOss", "Seed-OSS 36B", {**ODD, "head_dim": 64}),
    "ERNIE 4.5": Case(
        "Ernie4_5", "ERNIE 4.5 0.3B", {**ODD, "head_dim": 80, "tie_word_embeddings": True}, gguf="ernie4_5"
    ),
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
            "num_attention_heads": 3,
            "num_key_value_heads": 3,
            "num_experts": 6,
            "shared_expert_intermediate_size": 144,
            "mlp_only_layers": [0],
            "qkv_bias": False,
        },
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
            **theta(**LLAMA3, original_max_position_embeddings=64),
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
        {
            "hidden_size": 3 * 64,
            "num_attention_heads": 3,
            "num_key_value_heads": 3,
            "num_experts": 6,
            "num_experts_per_tok": 3,
        },
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
        rewrite=as_mxfp4,
        gguf="gpt-oss",
    ),
    "gpt-oss of other gates": Case(
        "GptOss",
        "variants with another swiglu_limit, swiglu_alpha",
        {**GPT_OSS, "intermediate_size": 92, "swiglu_limit": 1.5, "swiglu_alpha": 1.2},
        out_bias=True,
    ),
    "Granite SWA": Case(
        "GraniteSWA",
        "Granite Swash 2B",
        {
            **GRANITE,
            "num_hidden_layers": 4,
            "sliding_window": 21,
            "layer_rope_theta": [10000.0, 500.0, 0, 10000.0],
        },
        embed=1 / 3,
    ),
    "Granite SWA of one base": Case(
        "GraniteSWA",
        "variants without rotation in some layers",
        {
            **GRANITE,
            "num_hidden_layers": 4,
            "sliding_window": 21,
            "layer_rope_theta": [500.0, 500.0, 0, 500.0],
        }
        | theta(500.0),
        embed=1 / 3,
        gguf="granite_swa",
    ),
    "Granite MoE SWA": Case(
        "GraniteMoeSWA",
        "Granite Swash 3B-A600M",
        {
            **GRANITE,
            "num_local_experts": 5,
            "num_experts_per_tok": 2,
            "shared_intermediate_size": 100,
            "num_hidden_layers": 4,
            "sliding_window": 21,
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
            "num_hidden_layers": 4,
            "sliding_window": 21,
            "layer_types": ["full_attention", "sliding_attention", "sliding_attention", "full_attention"],
            "n_group": 3,
            "topk_group": 2,
            "attention_bias": False,
        },
        gguf="mimo2",
    ),
    "Laguna": Case(
        "Laguna",
        "Laguna XS.2",
        LAGUNA,
        gguf="laguna",
    ),
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
        {
            **ODD,
            "head_dim": 64,
            **theta(**YARN, llama_4_scaling_beta=0.4, mscale=1.0, mscale_all_dim=1.0),
        },
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
        {
            **ODD,
            "head_dim": 64,
            "num_hidden_layers": 5,
            "sliding_window": 23,
            **theta(500000.0, **LLAMA3, original_max_position_embeddings=64),
        },
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
            "layer_types": ["full_attention", "sliding_attention", "sliding_attention", "full_attention"],
        },
        gguf="mellum",
    ),
    "LFM2": Case(
        "Lfm2",
        "LFM2 350M, 700M, 1.2B, 2.6B",
        {
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
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
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
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
        {
            **DELTA,
            **MOE,
            "num_experts": 6,
            "shared_expert_intermediate_size": 100,
            "norm_topk_prob": True,
        },
        gguf="qwen3next",
    ),
    "Qwen3-Next with dense layers": Case(
        "Qwen3Next",
        "variants with mlp_only_layers and heads of other widths",
        {
            **DELTA,
            **MOE,
            "num_experts": 6,
            "shared_expert_intermediate_size": 100,
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
        {**DELTA, **MOE, "num_experts": 6, "shared_expert_intermediate_size": 100},
        embed=12.0,
        gguf="qwen35moe",
    ),
    "Qwen 3.5 MoE of texts and pictures": Case(
        "Qwen3_5Moe",
        "Qwen 3.5 35B-A3B, 122B-A10B, 397B-A17B (text)",
        text={
            **QWEN_TEXT,
            **MOE,
            "model_type": "qwen3_5_moe_text",
            "num_experts": 6,
            "shared_expert_intermediate_size": 100,
        },
    ),
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
    "GPT-2": Case(
        "GPT2", "GPT-2, DistilGPT2", {**GPT2, "activation_function": "gelu_new"}, drop=GPT2_DROP, gguf="gpt2"
    ),
    "GPT-J": Case(
        "GPTJ",
        "GPT-J 6B",
        {
            **GPT2,
            "hidden_size": 3 * 56,
            "rotary_dim": 20,
            "tie_word_embeddings": False,
            "activation_function": "gelu_new",
        },
        drop=GPT2_DROP,
    ),
    "StarCoder": Case("GPTBigCode", "StarCoder, SantaCoder", GPT2, drop=GPT2_DROP, gguf="starcoder"),
    "GPT-NeoX": Case(
        "GPTNeoX", "Pythia, GPT-NeoX-20B, Dolly", {**HEADS, "hidden_size": 3 * 56}, gguf="gptneox"
    ),
    "GPT-NeoX, block after block": Case(
        "GPTNeoX",
        "RedPajama-INCITE",
        {**HEADS, "hidden_size": 3 * 56, "rotary_pct": 1.0, "use_parallel_residual": False},
        gguf="gptneox",
    ),
    "Phi-2": Case(
        "Phi",
        "Phi-1, Phi-1.5, Phi-2",
        {**HEADS, "hidden_size": 3 * 80, "partial_rotary_factor": 0.4},
        gguf="phi2",
    ),
    "Phi with norms of q and k": Case(
        "Phi", "variants with qk_layernorm", {**ODD, "hidden_size": 3 * 72, "qk_layernorm": True}
    ),
    "StarCoder2": Case(
        "Starcoder2", "StarCoder2", {**ODD, "sliding_window": 29}, out_bias=True, gguf="starcoder2"
    ),
    "StableLM": Case(
        "StableLm",
        "StableLM 3B, StableLM 2 1.6B",
        {**ODD, "hidden_size": 3 * 40, "use_qkv_bias": True},
        gguf="stablelm",
    ),
    "StableLM 2 12B": Case(
        "StableLm",
        "StableLM 2 12B",
        {
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "hidden_size": 6 * 40,
            "qk_layernorm": True,
            "use_parallel_residual": True,
        },
        gguf="stablelm",
    ),
    "OLMo": Case("Olmo", "OLMo 1B, 7B", {**HEADS, "clip_qkv": 1.5}, gguf="olmo"),
    "Cohere": Case(
        "Cohere",
        "Command R, Aya 23",
        {**ODD, "tie_word_embeddings": True, "hidden_size": 3 * 72},
        gguf="command-r",
    ),
    "Cohere with norms of q and k": Case(
        "Cohere",
        "Command R+",
        {
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "hidden_size": 6 * 40,
            "use_qk_norm": True,
            "tie_word_embeddings": True,
            "logit_scale": 0.8333,
        },
        gguf="command-r",
    ),
    "Cohere 2": Case(
        "Cohere2",
        "Command R7B, Command A",
        {
            **ODD,
            "tie_word_embeddings": True,
            "hidden_size": 3 * 72,
            "num_hidden_layers": 5,
            "sliding_window": 21,
            "logit_scale": 0.25,
        },
        gguf="cohere2",
    ),
    "Nemotron": Case(
        "Nemotron",
        "Nemotron-3 8B, Nemotron-4, Minitron",
        {**ODD, "head_dim": 80, "partial_rotary_factor": 0.5},
        gguf="nemotron",
    ),
    "Arcee": Case("Arcee", "AFM 4.5B", {**ODD, "head_dim": 64}, gguf="arcee"),
    "Apertus": Case(
        "Apertus",
        "Apertus 8B, 70B",
        {**ODD, "head_dim": 80, **theta(12e6, **LLAMA3, original_max_position_embeddings=64)},
        gguf="apertus",
    ),
    "Falcon": Case(
        "Falcon",
        "Falcon 7B",
        {**HEADS, "hidden_size": 3 * 56, "ffn_hidden_size": 212},
        drop=("intermediate_size",),
        gguf="falcon",
    ),
    "Falcon 40B": Case(
        "Falcon",
        "Falcon 40B, 180B",
        {
            "num_attention_heads": 6,
            "num_kv_heads": 2,
            "hidden_size": 6 * 40,
            "ffn_hidden_size": 212,
            "new_decoder_architecture": True,
            "bias": True,
        },
        drop=("intermediate_size",),
        gguf="falcon",
    ),
    "Falcon 2": Case(
        "Falcon",
        "Falcon 2 11B",
        {
            "num_attention_heads": 6,
            "num_kv_heads": 2,
            "hidden_size": 6 * 40,
            "ffn_hidden_size": 212,
            "new_decoder_architecture": True,
            "num_ln_in_parallel_attn": 1,
            "tie_word_embeddings": False,
        },
        drop=("intermediate_size",),
        gguf="falcon",
    ),
    "nanochat": Case(
        "NanoChat",
        "nanochat",
        {
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "hidden_size": 6 * 40,
            "num_hidden_layers": 2,
        },
    ),
    "Jais 2": Case("Jais2", "Jais 2 8B, 70B", {**ODD, "head_dim": 64}, out_bias=True, gguf="jais2"),
}


def latent_yarn(mscale: float) -> dict[str, Any]:
    """DeepSeek's rotary embedding, whose magnitude is that of all of a head."""
    return theta(**YARN, mscale=mscale, mscale_all_dim=mscale, beta_fast=32.0, beta_slow=1.0)


def as_kimi(folder: Path) -> None:
    """Layers get the names that they have on the hub; transformers saves them under those of pictures."""
    config, tensors = load(folder)
    blocks = "language_model.model.blocks."
    store(
        folder,
        config,
        {name.replace(blocks, "language_model.model.layers."): t for name, t in tensors.items()},
    )


LATENT = {
    "num_attention_heads": 3,
    "num_key_value_heads": 3,
    "kv_lora_rank": 72,
    "q_lora_rank": 52,
    "qk_nope_head_dim": 40,
    "qk_rope_head_dim": 24,
    "v_head_dim": 20,
}
GROUPED = {"n_group": 4, "topk_group": 2, "n_routed_experts": 12, "n_shared_experts": 1}
CASES |= {
    "DeepSeek V2": Case(
        "DeepseekV2",
        "DeepSeek-V2, V2.5, Coder-V2",
        {
            **LATENT,
            **MOE,
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
            **LATENT,
            **MOE,
            **SHARED,
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
            **LATENT,
            **MOE,
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
            **LATENT,
            **MOE,
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
            **LATENT,
            **MOE,
            **SHARED,
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
        {
            **LATENT,
            **MOE,
            **SHARED,
            "mlp_layer_types": ["dense", "sparse", "sparse"],
            "scoring_func": "sigmoid",
        },
        gguf="deepseek2",
    ),
    "Mistral 4": Case(
        "Mistral4",
        "Mistral Small 4",
        {
            **LATENT,
            **MOE,
            **SHARED,
            "first_k_dense_replace": 1,
            **theta(**YARN, mscale=1.0, mscale_all_dim=1.0, llama_4_scaling_beta=0.4),
        },
    ),
    "Mistral 4 of texts and pictures": Case(
        "Mistral3",
        "the same as it is published (text)",
        text={
            **LATENT,
            **MOE,
            **SHARED,
            "model_type": "mistral4",
            **theta(**YARN, mscale=1.0, mscale_all_dim=1.0, llama_4_scaling_beta=0.4),
        },
    ),
    "Kimi K2.5": Case(
        "Kimi_K25",
        "Kimi K2.5, K2.6 (text)",
        text={
            **LATENT,
            **MOE,
            **SHARED,
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


# ---------------------------------------------------------------------------------------------------------
# Checkpoints


def load(folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """config.json and the tensors of a folder that transformers saved in one file."""
    from safetensors.numpy import load_file

    return json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")


def store(folder: Path, config: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
    """The opposite of load."""
    from safetensors.numpy import save_file

    (folder / "config.json").write_text(json.dumps(config))
    save_file({name: np.ascontiguousarray(t) for name, t in tensors.items()}, folder / "model.safetensors")


EMBEDDINGS = ("embed_tokens", "embed_in", "word_embeddings", "wte", "wpe")


def checkpoint(folder: Path, case: Case, shard: str = "1GB") -> Any:
    """A random model of the case, saved to folder in files of at most `shard`; the model.

    Matrices make attention sharper than any trained model's. The embedding is large beside what a block adds,
    so that the rounding of keys and values to fp16 in the engine's cache, the largest error by far, stays
    below a thousandth of the logits' spread."""
    import torch
    import transformers

    transformers.logging.disable_progress_bar()
    torch.manual_seed(7)
    sizes = {
        "vocab_size": VOCAB,
        "max_position_embeddings": 256,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        **SMALL,
    }
    sizes = {key: value for key, value in sizes.items() if key not in case.drop}
    if case.text is not None:
        whole = {"vision_config": VISION, "image_token_index": VOCAB - 1} | case.config
        config = getattr(transformers, f"{case.kind}Config")(
            text_config=sizes | case.text,
            tie_word_embeddings=bool(case.text.get("tie_word_embeddings")),
            **whole,
        )
        kind = getattr(transformers, f"{case.kind}ForConditionalGeneration")
    else:
        texts = ("Gemma3", "Gemma3n", "Gemma4", "Gemma4Unified", "Llama4", "Qwen3_5", "Qwen3_5Moe")
        name = f"{case.kind}TextConfig" if case.kind in texts else f"{case.kind}Config"
        config = getattr(transformers, name)(**sizes | case.config)
        kind = getattr(transformers, "GPT2LMHeadModel" if case.kind == "GPT2" else f"{case.kind}ForCausalLM")
    model = kind._from_config(config, attn_implementation="eager").to(torch.float32).eval()
    # 1 is added to a norm's weights
    offset = case.kind in (*("Gemma", "Gemma2", "Gemma3", "Nemotron", "Qwen3Next", "Qwen3_5", "Qwen3_5Moe"),)
    unscaled = case.kind.startswith(("Gemma3n", "Gemma4"))  # q . k is not divided by the root of head_dim
    with torch.no_grad():
        for name, weight in model.named_buffers():
            if name.endswith(("e_score_correction_bias", "expert_bias")):
                weight.copy_(0.3 * torch.randn_like(weight))
            if name.endswith("layer_scalar"):
                weight.copy_((1 + 0.3 * torch.randn_like(weight)).half().float())
        for name, weight in model.named_parameters():
            random = torch.randn_like(weight)
            if name.endswith("bias"):
                weight.copy_(0.5 * random * (case.out_bias or "o_proj" not in name))
            elif "norm" in name or ".ln_" in name:
                weight.copy_(0.3 * random + (not offset or "linear_attn" in name))
                if unscaled and name.endswith(("q_norm.weight", "k_norm.weight")):
                    weight.mul_(weight.shape[0] ** -0.25)
            elif name.endswith("sinks"):
                weight.copy_(2 * random)
            elif case.rewrite is as_mxfp4 and name.endswith(("experts.gate_up_proj", "experts.down_proj")):
                weight.copy_(on_grid(weight))
            elif "embed_tokens_per_layer" in name:
                weight.copy_(0.2 * random)
            elif name.endswith("modality_router.weight"):  # of what is divided by the width
                weight.copy_(random * weight.shape[-1] ** 0.5)
            elif name.endswith("coefs.weight"):
                weight.copy_(0.1 * random)
            elif name.endswith("scale"):
                weight.copy_(1 + 0.3 * random)
            elif name.endswith("router.proj.weight"):  # of what is divided by the root of the width
                weight.copy_(2.0 * random)
            elif any(part in name for part in EMBEDDINGS):
                weight.copy_(case.embed * random)
            elif type(model.get_submodule(name.rpartition(".")[0])).__name__ == "Conv1D":
                weight.copy_(1.2 * random / weight.shape[0] ** 0.5)
            else:
                router = name.endswith((".gate.weight", "router.weight", ".wg.weight"))
                weight.copy_((2.0 if router else 1.2) * random / weight.shape[-1] ** 0.5)
                if name.endswith((".conv.conv.weight", ".conv1d.weight")):
                    weight.copy_(random / 2)
                if name.endswith(".A_log"):
                    weight.copy_(random - 1)
            if name.endswith("shared_expert_gate.weight") and case.rewrite is as_deepseek:
                weight.zero_()
            weight.copy_(weight.half().float())  # what fp16 can hold: no rounding at conversion
    model.save_pretrained(folder, max_shard_size=shard)
    if case.rewrite:
        case.rewrite(folder)
    return model


# ---------------------------------------------------------------------------------------------------------
# GGUF, as llama.cpp's converter writes it (conversion/*.py), not as gguf_*.py read it


def llama3_factors(rope: dict[str, Any], dim: int) -> Iterator[float]:
    """LlamaModel.generate_extra_tensors."""
    old, low, high = (
        rope[k] for k in ("original_max_position_embeddings", "low_freq_factor", "high_freq_factor")
    )
    for i in range(0, dim, 2):
        wavelen = 2 * math.pi * rope["rope_theta"] ** (i / dim)
        smooth = (old / wavelen - low) / (high - low)
        if wavelen < old / high:
            yield 1.0
        elif wavelen > old / low:
            yield rope["factor"]
        else:
            yield 1 / ((1 - smooth) / rope["factor"] + smooth)


def first(h: dict[str, Any], *keys: str) -> Any:
    """What a configuration has for the first of these keys that it has; of a list, which is of one value for
    all layers, that."""
    found = next((h[key] for key in keys if h.get(key) is not None), None)
    return found[0] if isinstance(found, list) else found


EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
USED = ("num_experts_per_tok", "moe_k", "moe_topk", "top_k_experts")
SHARED_EXPERTS = ("n_shared_experts", "num_shared_experts", "moe_num_shared_experts")
SCALES = ("routed_scaling_factor", "moe_routed_scaling_factor", "router_scaling_factor", "route_scale")
DENSE = ("first_k_dense_replace", "num_dense_layers", "moe_layer_start_index")
MIXTURES = (
    *("glm4moe", "dots1", "deepseek", "ernie4_5-moe", "exaone-moe", "afmoe", "gpt-oss", "llama4"),
    *("hunyuan-moe", "mimo2", "laguna", "mellum", "hy_v3"),
)
SIGMOID = ("glm4moe", "exaone-moe", "afmoe", "dots1", "laguna", "hy_v3")
# Architectures that llama.cpp has and the gguf library of PyPI does not yet: one with the same names
STAND_INS = {"laguna": "exaone-moe", "hy_v3": "exaone-moe", "mellum": "qwen3moe", "granite_swa": "llama"}


def of_layers(arch: str, h: dict[str, Any], tensors: dict[str, np.ndarray]) -> dict[str, Any]:
    """What the converter writes for all architectures, of those that have another number there."""
    rope, ahead = h["rope_parameters"], h.get("num_nextn_predict_layers") or 0
    if "kv_lora_rank" in h:
        return {"head_dim": None}  # and without layers that predict further tokens
    if ahead:
        return {"num_hidden_layers": h["num_hidden_layers"] + ahead}
    if rope.get("alpha"):
        power = h["head_dim"] / (h["head_dim"] - 2)
        return {"rope_parameters": rope | {"rope_theta": rope["rope_theta"] * rope["alpha"] ** power}}
    if arch.startswith("lfm2"):
        return {
            "num_key_value_heads": [h["num_key_value_heads"] * (kind != "conv") for kind in h["layer_types"]],
            "intermediate_size": len(tensors["model.layers.0.feed_forward.w1.weight"]),
        }
    if arch == "llama4":
        return {"intermediate_size": h["intermediate_size_mlp"]}
    if arch == "laguna":
        return {"num_attention_heads": h["num_attention_heads_per_layer"]}
    if arch == "mimo2":
        few = h["num_key_value_heads"]
        return {
            "num_key_value_heads": [few if kind == "full_attention" else 2 * few for kind in h["layer_types"]]
        }
    return {}


def add_mixture(w: Any, arch: str, h: dict[str, Any]) -> None:
    """The metadata of experts of the architectures that have leading dense layers or shared experts."""
    import gguf

    width, shared = h.get("moe_intermediate_size", h["intermediate_size"]), first(h, *SHARED_EXPERTS)
    if arch == "llama4":
        w.add_interleave_moe_layer_step(h["interleave_moe_layer_step"])
    if arch == "ernie4_5-moe":
        w.add_interleave_moe_layer_step(h["moe_layer_interval"])
        w.add_expert_shared_feed_forward_length(width * shared)
    if "moe_intermediate_size" not in h:
        w.add_expert_feed_forward_length(width)
    if shared and arch not in ("hy_v3", "laguna"):
        w.add_expert_shared_count(shared)
    if arch in ("exaone-moe", "hy_v3"):
        w.add_expert_shared_feed_forward_length(width * shared)
    if arch == "hunyuan-moe":
        w.add_expert_shared_feed_forward_length(width)
        w.add_expert_shared_count(1)
    for keys, add in (
        (("n_group",), w.add_expert_group_count),
        (("topk_group",), w.add_expert_group_used_count),
        (SCALES, w.add_expert_weights_scale),
    ):
        if first(h, *keys):
            add(first(h, *keys))
    if arch in SIGMOID:
        w.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
        w.add_expert_weights_norm(h.get("norm_topk_prob", True))
    if h.get("num_nextn_predict_layers"):
        w.add_nextn_predict_layers(h["num_nextn_predict_layers"])
    dense = h["mlp_layer_types"].count("dense") if arch == "laguna" else first(h, *DENSE)
    if dense is not None:
        w.add_leading_dense_block_count(dense)


def add_attention(w: Any, arch: str, h: dict[str, Any]) -> None:
    """The metadata of what differs between layers, of the architectures of add_mixture and Granite SWA."""
    import gguf

    rope = h["rope_parameters"]
    windows = [kind == "sliding_attention" for kind in h.get("layer_types") or ()]
    if arch in ("gpt-oss", "exaone-moe", "afmoe", "mimo2", "laguna", "mellum", "granite_swa"):
        w.add_sliding_window(h["sliding_window"])
    usual = [i % 4 != 0 for i in range(len(windows))] if arch == "laguna" else []
    if arch == "afmoe":
        w.add_sliding_window_pattern(h["global_attn_every_n_layers"])
    elif arch in ("exaone-moe", "mimo2", "mellum", "granite_swa", "laguna") and windows != usual:
        w.add_sliding_window_pattern(windows)
    if arch == "mimo2":
        w.add_float32("mimo2.attention.value_scale", h["attention_value_scale"])
    if arch == "laguna":
        partial = rope["sliding_attention"]["partial_rotary_factor"]
        w.add_rope_dimension_count_swa(int(h["head_dim"] * partial))
    if arch == "granite_swa":
        w.add_array("granite_swa.attention.rope_pattern", [base != 0 for base in h["layer_rope_theta"]])
    if arch == "mistral3" and "llama_4_scaling_beta" in rope:
        w.add_rope_scaling_yarn_log_mul(rope["mscale_all_dim"])
        w.add_attn_temperature_scale(rope["llama_4_scaling_beta"])
    if rope.get("alpha"):
        w.add_rope_scaling_type(gguf.RopeScalingType.NONE)
        w.add_rope_scaling_factor(1.0)


XIELU = (".act_fn.alpha_p", ".act_fn.alpha_n", ".act_fn.beta", ".act_fn.eps")


def save_gguf(path: Path, folder: Path, arch: str) -> Path:
    """The model in folder as a GGUF file of float32, with experts in MXFP4 as they are there."""
    import gguf

    h, tensors = load(folder)
    h = usual_keys(h)
    dim, rope = h["hidden_size"], h["rope_parameters"]
    layers = h["num_hidden_layers"] + (h.get("num_nextn_predict_layers") or 0)
    head = h.get("head_dim") or dim // h["num_attention_heads"]
    full = rope.get("full_attention", rope)
    known = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(known[STAND_INS.get(arch, arch)], layers)
    w = gguf_writer(path, arch, "tiny", h | of_layers(arch, h, tensors))
    if first(h, *EXPERTS):
        w.add_expert_count(first(h, *EXPERTS))
        w.add_expert_used_count(first(h, *USED))
        if arch in MIXTURES:
            add_mixture(w, arch, h)
    add_attention(w, arch, h)
    for key, add in (
        ("moe_intermediate_size", w.add_expert_feed_forward_length),
        ("shared_expert_intermediate_size", w.add_expert_shared_feed_forward_length),
        ("shared_intermediate_size", w.add_expert_shared_feed_forward_length),
        ("attn_logit_softcapping", w.add_attn_logit_softcapping),
        ("final_logit_softcapping", w.add_final_logit_softcapping),
        ("num_kv_shared_layers", w.add_shared_kv_layers),
        ("hidden_size_per_layer_input", w.add_embedding_length_per_layer_input),
        ("altup_num_inputs", w.add_altup_num_inputs),
        ("attention_multiplier", w.add_attention_scale),
        ("embedding_multiplier", w.add_embedding_scale),
        ("residual_multiplier", w.add_residual_scale),
        ("logits_scaling", w.add_logit_scale),
        ("logit_scale", w.add_logit_scale),
        ("clip_qkv", w.add_clamp_kqv),
    ):
        if h.get(key):
            add(h[key])
    if "use_parallel_residual" in h:
        w.add_parallel_residual(h["use_parallel_residual"])
    if arch == "minicpm":
        w.add_embedding_scale(float(h["scale_emb"]))
        w.add_residual_scale(h["scale_depth"] / layers**0.5)
        w.add_logit_scale(dim / h["dim_model_base"])
    if arch.startswith("lfm2"):
        w.add_shortconv_l_cache(h["conv_L_cache"])
    if arch == "lfm2moe":
        w.add_leading_dense_block_count(h["num_dense_layers"])
        w.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
        w.add_expert_weights_scale(h["routed_scaling_factor"])
    if arch.startswith("qwen3next") or arch.startswith("qwen35"):
        w.add_ssm_conv_kernel(h["linear_conv_kernel_dim"])
        w.add_ssm_state_size(h["linear_key_head_dim"])
        w.add_ssm_group_count(h["linear_num_key_heads"])
        w.add_ssm_time_step_rank(h["linear_num_value_heads"])
        w.add_ssm_inner_size(h["linear_value_head_dim"] * h["linear_num_value_heads"])
        linear = [kind == "linear_attention" for kind in h["layer_types"]]
        w.add_array(f"{arch}.attention.recurrent_layers", linear)
        w.add_uint32(f"{arch}.full_attention_interval", 4)
    if arch.startswith("qwen35"):
        w.add_rope_dimension_sections([11, 11, 10, 0])
    if arch == "minimax-m2":
        w.add_expert_feed_forward_length(h["intermediate_size"])
        w.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    if "kv_lora_rank" in h:
        add_latent(w, h, arch)
    windowed = h.get("sliding_window") and (arch == "exaone4" or "Olmo3ForCausalLM" in h["architectures"])
    if arch in ("gemma2", "gemma3", "gemma3n", "gemma4", "phi3", "cohere2", "starcoder2") or windowed:
        w.add_sliding_window(h.get("sliding_window") or 0)
    if windowed or arch in ("gemma3", "gemma3n", "gemma4"):
        w.add_sliding_window_pattern([kind == "sliding_attention" for kind in h["layer_types"]])
    if "sliding_attention" in rope:
        w.add_rope_freq_base_swa(rope["sliding_attention"]["rope_theta"])
    if full["rope_type"] in ("linear", "yarn"):
        w.add_rope_scaling_type(gguf.RopeScalingType(full["rope_type"]))
        w.add_rope_scaling_factor(full["factor"])
    if full["rope_type"] == "yarn":
        w.add_rope_scaling_orig_ctx_len(full["original_max_position_embeddings"])
    if full["rope_type"] == "llama3":
        w.add_tensor("rope_freqs.weight", np.array([*llama3_factors(full, head)], np.float32))
    if full["rope_type"] == "longrope":
        old = full["original_max_position_embeddings"]
        scale = h["max_position_embeddings"] / old
        w.add_rope_scaling_orig_ctx_len(old)
        w.add_rope_scaling_attn_factors(math.sqrt(1 + math.log(scale) / math.log(old)))
        for key in ("long", "short"):
            w.add_tensor(f"rope_factors_{key}.weight", np.array(full[f"{key}_factor"], np.float32))
    if arch == "gemma3n":
        w.add_altup_active_idx(h["altup_active_idx"])
        w.add_activation_sparsity_scale(
            [
                NormalDist().inv_cdf(share) if share else -math.inf
                for share in h["activation_sparsity_pattern"]
            ]
        )
    if arch == "gemma4":
        add_gemma4(w, h)
    stacks: dict[str, list[np.ndarray]] = {}
    for name, tensor in gguf_tensors(arch, h, head, tensors).items():
        stem, _, end = name.rpartition(".")
        if name.startswith("blk."):
            mxfp4 = gguf.GGMLQuantizationType.MXFP4 if tensor.dtype == np.uint8 else None
            w.add_tensor(name, tensor, raw_dtype=mxfp4)
            continue
        expert = stem.split(".experts.")
        if len(expert) == 2 and expert[1][0].isdigit():  # one by one: in the order of the checkpoint
            stacks.setdefault(f"{expert[0]}.experts.{expert[1].partition('.')[2]}", []).append(tensor)
        elif name.startswith(("model.altup_projections.", "model.altup_unembed_projections.")):
            stacks.setdefault(stem.rpartition(".")[0], []).append(tensor)
        else:
            w.add_tensor(gguf_name(names, stem, end), tensor)
    for stem, found in stacks.items():
        mixtral = stem.replace("model.layers", "layers").replace("block_sparse_moe", "feed_forward")
        plain = "moe" in stem or ".feed_forward.experts." in stem
        w.add_tensor(gguf_name(names, mixtral if plain else stem, "weight"), np.stack(found))
    for name in XIELU:
        numbers = [float(tensors[key].reshape(-1)[0]) for key in sorted(tensors) if key.endswith(name)]
        if numbers:
            getattr(w, f"add_xielu_{name.rpartition('.')[2]}")(numbers)
    finish(w)
    return path


def add_gemma4(w: Any, h: dict[str, Any]) -> None:
    """Gemma4Model.set_gguf_parameters and generate_extra_tensors."""
    first, n_layers, shared = h["intermediate_size"], h["num_hidden_layers"], h["num_kv_shared_layers"]
    own = next(iter(h["per_layer_config"].values()))
    size, local = own["head_dim"], [kind == "sliding_attention" for kind in h["layer_types"]]
    w.add_shared_kv_layers(shared)
    w.add_embedding_length_per_layer_input(h["hidden_size_per_layer_input"] or 0)
    w.add_key_length(size)
    w.add_value_length(size)
    w.add_key_length_swa(h["head_dim"])
    w.add_value_length_swa(h["head_dim"])
    if h["use_double_wide_mlp"]:
        w.add_feed_forward_length([first if i < n_layers - shared else 2 * first for i in range(n_layers)])
    if "num_key_value_heads" in own:
        kv = (own["num_key_value_heads"], h["num_key_value_heads"])
        w.add_head_count_kv([kv[windowed] for windowed in local])
    w.add_rope_dimension_count(size)
    w.add_rope_dimension_count_swa(h["head_dim"])
    turning = int(size * h["rope_parameters"]["full_attention"]["partial_rotary_factor"] / 2)
    w.add_tensor("rope_freqs.weight", np.array([1.0] * turning + [1e30] * (size // 2 - turning), np.float32))


# Keys that configurations of the time of GPT-2, and others, have for the usual ones
USUAL_KEYS = {
    "n_embd": "hidden_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_positions": "max_position_embeddings",
    "n_inner": "intermediate_size",
    "ffn_hidden_size": "intermediate_size",
    "num_kv_heads": "num_key_value_heads",
    "layer_norm_epsilon": "layer_norm_eps",
    "norm_epsilon": "layer_norm_eps",
    "norm_eps": "layer_norm_eps",
}


def usual_keys(config: dict[str, Any]) -> dict[str, Any]:
    """A config.json by these keys, with what each architecture of llama.cpp's has in its converter's code."""
    h = {USUAL_KEYS.get(key, key): value for key, value in config.items()}
    if config["model_type"] == "falcon" and not h["new_decoder_architecture"]:
        h["num_key_value_heads"] = 1
    if config["model_type"] == "gpt_bigcode":
        h["num_key_value_heads"] = 1
    if config["model_type"] == "olmo":
        h["layer_norm_eps"] = 1e-5
    if config["model_type"].startswith("lfm2"):
        h["rms_norm_eps"] = h.pop("layer_norm_eps")
    h.setdefault("num_key_value_heads", h["num_attention_heads"])
    h.setdefault("rope_parameters", {"rope_type": "default"})
    return h


def add_latent(w: Any, h: dict[str, Any], arch: str) -> None:
    """DeepseekV2Model.set_gguf_parameters, and MiniCPM3Model's."""
    import gguf

    w.add_kv_lora_rank(h["kv_lora_rank"])
    if h.get("q_lora_rank"):
        w.add_q_lora_rank(h["q_lora_rank"])
    key = h["qk_nope_head_dim"] + h["qk_rope_head_dim"]
    w.add_rope_dimension_count(h["qk_rope_head_dim"])
    if arch == "minicpm3":
        w.add_key_length(key)
        return
    w.add_head_count_kv(1)
    w.add_key_length(h["kv_lora_rank"] + h["qk_rope_head_dim"])
    w.add_value_length(h["kv_lora_rank"])
    w.add_key_length_mla(key)
    w.add_value_length_mla(h["v_head_dim"])
    listed = h.get("mlp_layer_types", []).count("dense")
    w.add_leading_dense_block_count(listed or h.get("first_k_dense_replace", h["num_hidden_layers"]))
    w.add_expert_feed_forward_length(h.get("moe_intermediate_size", h["intermediate_size"]))
    w.add_expert_shared_count(h.get("n_shared_experts", 0))
    for name, add in (
        ("n_routed_experts", w.add_expert_count),
        ("num_experts_per_tok", w.add_expert_used_count),
        ("routed_scaling_factor", w.add_expert_weights_scale),
        ("norm_topk_prob", w.add_expert_weights_norm),
        ("n_group", w.add_expert_group_count),
        ("topk_group", w.add_expert_group_used_count),
    ):
        if h.get(name):
            add(h[name])
    if h.get("scoring_func"):
        w.add_expert_gating_func(gguf.ExpertGatingFuncType[h["scoring_func"].upper()])
    if h["rope_parameters"].get("mscale_all_dim"):
        w.add_rope_scaling_yarn_log_mul(0.1 * h["rope_parameters"]["mscale_all_dim"])


def gguf_name(names: Any, stem: str, end: str) -> str:
    """llama.cpp's own table of names."""
    ours = {"scale": "ffn_gate_inp", "per_expert_scale": "ffn_down_exps"}
    if stem.endswith(".router") and end in ours:
        return f"blk.{stem.split('.')[2]}.{ours[end]}.scale"
    found = names.get_name(stem) or names.get_name(f"{stem}.{end}")
    assert found is not None, f"{stem}.{end} has no name in GGUF"
    return f"{found}.{end}"


def own_tensors(arch: str, name: str, tensors: dict[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    """What becomes of a tensor that the converter's code of the architecture renames or takes apart, under
    the names that GGUF has; nothing of others."""
    found = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", name)
    if not found:
        return
    blk, tail, tensor = f"blk.{found[1]}", found[2], tensors[name]
    if tail.endswith(("sinks", "attention_sink_bias")):
        yield f"{blk}.attn_sinks.weight", tensor.astype(np.float32)
    elif tail.endswith(("e_score_correction_bias", "expert_bias")):
        end = "" if arch == "hy_v3" else ".bias"  # no name of theirs ends in .bias
        yield f"{blk}.exp_probs_b{end}", tensor.astype(np.float32).reshape(-1)
    elif tail.endswith("g_proj.weight"):
        yield f"{blk}.attn_gate.weight", tensor.astype(np.float32)
    elif tail == "mlp.gate.wg.weight" or tail.endswith(("router.gate.weight", "router.layer.weight")):
        yield f"{blk}.ffn_gate_inp.weight", tensor.astype(np.float32)
    elif arch == "hy_v3" and ".shared_mlp." in tail:
        yield f"{blk}.ffn_{tail.split('.')[2].removesuffix('_proj')}_shexp.weight", tensor.astype(np.float32)
    elif arch == "granite_swa" and tail.startswith(("block_sparse_moe.experts.", "shared_mlp.")):
        fused = tail.endswith(("gate_up_proj", "input_linear.weight"))
        stack = "gate_up_exps" if fused else "down_exps"
        shared = "up_shexp" if fused else "down_shexp"  # gate and up in one
        yield f"{blk}.ffn_{shared if 'shared' in tail else stack}.weight", tensor.astype(np.float32)
    elif arch == "granite_swa" and tail == "block_sparse_moe.router.weight":
        yield f"{blk}.ffn_gate_inp.weight", tensor.astype(np.float32)
    elif arch in ("gpt-oss", "llama4") and ".experts." in tail:
        yield from stacked_tensors(arch, blk, tail.rpartition(".")[2], name, tensors)


def stacked_tensors(
    arch: str, blk: str, kind: str, name: str, tensors: dict[str, np.ndarray]
) -> Iterator[tuple[str, np.ndarray]]:
    """GptOssModel and Llama4Model: gate and up apart, a row for each output."""
    tensor = tensors[name]
    if kind.endswith(
        "_blocks"
    ):  # (experts, rows, groups, 16): of 32 codes, i and i + 16 share a byte in GGUF
        codes = np.stack([tensor & 15, tensor >> 4], axis=-1).reshape(*tensor.shape[:3], 32)
        scales = tensors[name.replace("_blocks", "_scales")][..., None]
        packed = np.concatenate([scales, codes[..., :16] | codes[..., 16:] << 4], axis=-1)
        tensor = packed.reshape(*tensor.shape[:2], -1)
    elif not kind.endswith("_bias"):
        tensor = tensor.swapaxes(1, 2)
    end = "bias" if kind.endswith("_bias") else "weight"
    tensor = np.ascontiguousarray(tensor if tensor.dtype == np.uint8 else tensor.astype(np.float32))
    if kind.startswith("down"):
        yield f"{blk}.ffn_down_exps.{end}", tensor
    elif arch == "gpt-oss":
        yield f"{blk}.ffn_gate_exps.{end}", np.ascontiguousarray(tensor[:, 0::2])
        yield f"{blk}.ffn_up_exps.{end}", np.ascontiguousarray(tensor[:, 1::2])
    else:
        gate, up = np.split(tensor, 2, axis=1)
        yield f"{blk}.ffn_gate_exps.{end}", np.ascontiguousarray(gate)
        yield f"{blk}.ffn_up_exps.{end}", np.ascontiguousarray(up)


def gguf_tensors(arch: str, h: dict[str, Any], head: int, tensors: dict[str, Any]) -> dict[str, np.ndarray]:
    """What modify_tensors of the architecture makes of the tensors."""
    heads, kv = h["num_attention_heads"], h["num_key_value_heads"]
    result: dict[str, np.ndarray] = {}
    order = sorted(tensors, key=lambda name: [int(x) if x.isdigit() else -1 for x in name.split(".")])
    for name in order:
        if name.endswith("_scales"):  # they go with their blocks
            continue
        own = dict(own_tensors(arch, name, tensors))
        if own:
            result |= own
            continue
        tensor = tensors[name].astype(np.float32)
        if name.endswith(XIELU):
            continue
        if arch == "gpt2" and name.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight")):
            tensor = tensor.T
        if "query_key_value" in name:
            groups = tensor.reshape(kv, heads // kv + 2, head, -1)
            parts = groups[:, :-2], groups[:, -2], groups[:, -1]
            tensor = np.concatenate([x.reshape(-1, *tensor.shape[1:]) for x in parts])
        if ".norms." in name:
            stem, _, rest = name.partition(".norms.")
            count = sum(other.startswith(f"{stem}.norms.") for other in tensors)
            each = [tensors[f"{stem}.norms.{i}.weight"] for i in range(count)]
            name, tensor = f"{stem}.weight", np.stack(each).astype(np.float32)
        if arch in (
            "llama",
            "granite",
            "granitemoe",
            "smollm3",
            "minicpm",
            "deepseek",
            "mistral3",
            "granite_swa",
            "olmo",
            "arcee",
        ):
            if ".q_proj." in name:
                tensor = interleaved(tensor, heads)
            if ".k_proj." in name:
                tensor = interleaved(tensor, kv)
        if arch.startswith("qwen35"):
            name = name.replace("model.language_model.", "model.")
        shifted = arch in ("gemma", "gemma2", "gemma3", "nemotron", "qwen3next", "qwen35", "qwen35moe")
        if shifted and name.endswith("norm.weight") and "linear_attn" not in name:
            tensor = tensor + 1
        if name.endswith("correct_output_scale"):
            name += ".weight"
        if "embed_tokens_per_layer" in name:
            tensor = np.pad(tensor, ((0, h["vocab_size"] - len(tensor)), (0, 0)))
        if arch == "gemma4":
            if name.endswith("layer_scalar") or (".experts." in name and not name.endswith(".weight")):
                name += ".weight"
        prefix = name.rpartition(".self_attn")[0] or name.rpartition(".block_sparse_moe")[0]
        if ".wqkv." in name:
            groups = tensor.reshape(kv, heads // kv + 2, head, -1)
            parts = groups[:, :-2], groups[:, -2], groups[:, -1]
            q, k, v = (part.reshape(-1, tensor.shape[1]) for part in parts)
            layer = name.partition(".attention")[0]
            result[f"{layer}.self_attn.q_proj.weight"] = interleaved(q, heads)
            result[f"{layer}.self_attn.k_proj.weight"] = interleaved(k, kv)
            result[f"{layer}.self_attn.v_proj.weight"] = v
        elif arch == "deepseek2" and name.endswith("kv_b_proj.weight"):
            keys = h["qk_nope_head_dim"]
            k, v = np.split(tensor.reshape(heads, -1, tensor.shape[1]), [keys], axis=1)
            result[name.replace("kv_b", "k_b")] = np.ascontiguousarray(k.swapaxes(1, 2))
            result[name.replace("kv_b", "v_b")] = np.ascontiguousarray(v)
        elif "input_linear" in name and "shared" in name:
            gate, up = np.split(tensor, 2)
            layer = name.partition(".shared_mlp")[0]
            result[f"{layer}.mlp.shared_expert.gate_proj.weight"] = gate
            result[f"{layer}.mlp.shared_expert.up_proj.weight"] = up
        elif "output_linear" in name and "shared" in name:
            result[f"{name.partition('.shared_mlp')[0]}.mlp.shared_expert.down_proj.weight"] = tensor
        elif "input_linear" in name:
            gate, up = np.split(tensor, 2, axis=1)
            result[f"{prefix}.mlp.experts.gate_proj.weight"] = gate
            result[f"{prefix}.mlp.experts.up_proj.weight"] = up
        elif name.endswith("shared_expert_gate.weight"):
            result[name] = tensor.reshape(-1)
        elif ".linear_attn." in name:
            result |= delta_tensors(arch, h, name, tensor)
        elif name.endswith(".conv.conv.weight"):
            result[name] = tensor[:, 0]
        else:
            result[name.replace("correction_bias", "correction.bias")] = tensor
    return result


def delta_tensors(arch: str, h: dict[str, Any], name: str, tensor: np.ndarray) -> dict[str, np.ndarray]:
    """Qwen3NextModel.modify_tensors and _LinearAttentionVReorderBase of a tensor of the gated delta rule."""
    keys, heads, width = (
        h[f"linear_{kind}"] for kind in ("num_key_heads", "num_value_heads", "key_head_dim")
    )
    layer, _, part = name.partition(".linear_attn.")

    def tiled(x: np.ndarray, each: int) -> np.ndarray:
        """The rows of value heads: of each key head the first one, then the second, ..."""
        return np.reshape(x.reshape(keys, -1, each, *x.shape[1:]).swapaxes(0, 1), x.shape)

    if part == "in_proj_qkvz.weight":
        groups = tensor.reshape(keys, -1, tensor.shape[1])
        cuts = np.cumsum([width, width, heads // keys * width])
        q, k, v, z = (some.reshape(-1, tensor.shape[1]) for some in np.split(groups, cuts, axis=1))
        inner = f"{layer}.linear_attn.in_proj"
        return {f"{inner}_qkv.weight": np.concatenate([q, k, v]), f"{inner}_z.weight": z}
    if part == "conv1d.weight":
        tensor = tensor[:, 0]
    if arch != "qwen3next":
        before = 2 * keys * width if part.startswith(("in_proj_qkv", "conv1d")) else 0
        each = 1 if part.startswith(("in_proj_a", "in_proj_b", "A_log", "dt_bias")) else width
        if part == "out_proj.weight":
            tensor = tiled(tensor.T, width).T
        elif part != "norm.weight":
            tensor = np.concatenate([tensor[:before], tiled(tensor[before:], each)])
    if part == "A_log":
        return {f"blk.{layer.rpartition('.')[2]}.ssm_a": -np.exp(tensor)}
    return {name.replace(".dt_bias", ".dt_proj.bias"): np.ascontiguousarray(tensor)}


# ---------------------------------------------------------------------------------------------------------
# The comparison


def text_for(case: Case) -> np.ndarray:
    """Tokens (n,); fewer where the case is about short ones."""
    short = "original_max_position_embeddings" in case.config and case.context is None
    return np.random.default_rng(3).integers(3, VOCAB - 1, 60 if short else TEXT)


def expected(model: Any, ids: np.ndarray) -> np.ndarray:
    """(n, vocab_size) logits of transformers."""
    import torch

    with torch.no_grad():
        return np.asarray(model(torch.tensor(ids[None])).logits[0])


def differences(file: Path, ids: np.ndarray, want: np.ndarray) -> list[float]:
    """The largest difference of a logit in units of the logits' standard deviation, for the text in one
    call, in pieces, and token by token, in float32 throughout."""
    import pyllm

    found = []
    with pyllm.LLM(file, exact=True) as llm:
        for cuts in ([], [1, 20, 29, 64], range(1, len(ids))):
            with llm.session() as session:
                pieces = [session.eval(piece, all=True) for piece in np.split(ids, cuts) if len(piece)]
            found.append(float(abs(np.concatenate(pieces) - want).max() / want.std()))
    return found


def main() -> int:
    """Prints the table."""
    from pyllm.tools.convert import convert

    print("| family | models | largest difference | from GGUF |")
    print("|---|---|---|---|")
    with tempfile.TemporaryDirectory() as temporary:
        for name, case in CASES.items():
            folder, ids = Path(temporary) / name, text_for(case)
            want = expected(checkpoint(folder, case), ids)
            sources = [folder]
            if case.gguf:
                sources.append(save_gguf(folder / "tiny.gguf", folder, case.gguf))
            cells = []
            for source in sources:
                out = folder / "out.llm"
                convert(source, out, tokenizer=False, context=case.context)
                cells.append(f"{max(differences(out, ids, want)):.1e}")
            print(f"| {name} | {case.models} | {' | '.join([*cells, ''][:2])} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
