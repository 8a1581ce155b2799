"""Relatives of Llama: norms behind blocks, or of all of q and k (OLMo, GLM-4), scales (Granite, MiniCPM),
other names (InternLM2) and other rotary embeddings."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tools.prove.case import GQA, MHA, ODD, YARN, Case, theta
from tools.prove.folder import load, store


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


def as_internlm3(folder: Path) -> None:
    """A Llama that says it is an InternLM3."""
    config, tensors = load(folder)
    store(folder, config | {"architectures": ["InternLM3ForCausalLM"]}, tensors)


GRANITE = {
    **ODD,
    "embedding_multiplier": 12.0,
    "residual_multiplier": 0.22,
    "attention_multiplier": 0.3,
    "logits_scaling": 8.0,
    "hidden_size": 3 * 64,
}
GRANITE_MOE = {**GRANITE, "num_local_experts": 5, "num_experts_per_tok": 2}
RELATIVES: dict[str, Case] = {
    "OLMo 2": Case("Olmo2", "OLMo 2", {**MHA, "hidden_size": 3 * 64}, gguf="olmo2"),
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
        {**MHA, "hidden_size": 3 * 64, "num_experts": 6, "num_experts_per_tok": 3},
        gguf="olmoe",
    ),
    "Granite": Case("Granite", "Granite 3", GRANITE, embed=1 / 3, gguf="granite"),
    "Granite MoE": Case(
        "GraniteMoe",
        "Granite 3 1B-A400M, 3B-A800M",
        GRANITE_MOE,
        embed=1 / 3,
        gguf="granitemoe",
    ),
    "Granite MoE with a shared expert": Case(
        "GraniteMoeShared",
        "Granite MoE, shared expert",
        {**GRANITE_MOE, "shared_intermediate_size": 100},
        embed=1 / 3,
        gguf="granitemoe",
    ),
    "InternLM2": Case(
        "Llama",
        "InternLM2, InternLM2.5 (reference: a Llama with its weights)",
        {**GQA, "hidden_size": 6 * 64},
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
        rewrite=as_internlm3,
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
}
