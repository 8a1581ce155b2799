"""Models of which most layers have a state in place of attention: the last inputs of a convolution (LFM2), or
a matrix that the delta rule writes (Qwen3-Next, Qwen 3.5)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pyllm._llm import lib

from ..configuration import Config, integer, number, switch
from ..sources import ConvertError, shown
from .common import NORMALIZE, QK_NAMES, W_NAMES, but_every, sparse_after, sparse_by_step
from .family import Family, always, either

LFM2 = {
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "rope_theta": 1e6,
    "norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "conv_L_cache": 3,
}
LFM2_NAMES = (
    ("model.embedding_norm.", "model.norm."),
    (".operator_norm.", ".input_layernorm."),
    (".ffn_norm.", ".post_attention_layernorm."),
    (".self_attn.out_proj.", ".self_attn.o_proj."),
    *QK_NAMES,
    (".feed_forward.expert_bias", ".mlp.e_score_correction_bias"),
    (".feed_forward.", ".mlp."),
    *W_NAMES,
)
LFM2_ONLY = {
    "conv_bias": (None, False),
    "use_pos_enc": (None, True),
    "block_use_swiglu": (None, True),
}
DELTA = {
    "head_dim": 256,
    "partial_rotary_factor": 0.25,
    "full_attention_interval": 4,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
}
DELTA_NAMES = (
    (".linear_attn.norm.", ".linear_attn.gain."),  # a norm to which no 1 is added
    (".self_attn.q_proj.", ".self_attn.qg_proj."),
)
DELTA_FLAGS = lib.LLM_QK_NORM | lib.LLM_OUT_GATE
DELTA_ONLY = {"attention_bias": (None, False), "attn_output_gate": (None, True)}
DELTA_KINDS = either("linear_attention", but_every("full_attention_interval"))


def convolves(config: Config, i: int) -> bool:
    """Lfm2Config: layers that are not in full_attn_idxs are convolutions."""
    attending = config.get("full_attn_idxs")
    if attending is None:
        return False
    if not isinstance(attending, list):
        raise ConvertError(f"configuration: full_attn_idxs is {shown(attending)}, not a list of layers")
    return i not in attending


LFM2_KINDS = either("conv", convolves)


def short_conv(config: Config) -> dict[str, Any]:
    """Lfm2ShortConv."""
    return {"mixer": lib.LLM_SHORT_CONV, "conv_kernel": integer(config, "conv_L_cache")}


def delta_rule(config: Config) -> dict[str, Any]:
    """Qwen3NextGatedDeltaNet."""
    width = integer(config, "linear_key_head_dim")
    return {
        "mixer": lib.LLM_DELTA_RULE,
        "conv_kernel": integer(config, "linear_conv_kernel_dim"),
        "delta_key_heads": integer(config, "linear_num_key_heads"),
        "delta_heads": integer(config, "linear_num_value_heads"),
        "delta_key_dim": width,
        "delta_value_dim": integer(config, "linear_value_head_dim"),
        "attn_scale": width**-0.5,
    }


def lfm2_widths(config: Config) -> Config:
    """Lfm2Config and Lfm2MLP: older names, and a width that is made smaller."""
    own = {
        "tie_word_embeddings": config.get("tie_embedding", config["tie_word_embeddings"]),
        "intermediate_size": config.get("block_ff_dim", config.get("intermediate_size")),
    }
    config = config | own
    if "block_multiple_of" in config and switch(config, "block_auto_adjust_ff_dim"):
        width = int(2 * integer(config, "intermediate_size") / 3)
        if config["block_ffn_dim_multiplier"] is not None:
            step = integer(config, "block_multiple_of")
            width = int(number(config, "block_ffn_dim_multiplier") * width)
            width = -(-width // step) * step
        config["intermediate_size"] = width
    return config


QWEN3_NEXT = Family(
    "Qwen3-Next",
    defaults={
        **DELTA,
        "num_key_value_heads": 2,
        "num_experts": 512,
        "num_experts_per_tok": 10,
        "moe_intermediate_size": 512,
        "shared_expert_intermediate_size": 512,
        "norm_topk_prob": True,
    },
    rename=DELTA_NAMES,
    flags=DELTA_FLAGS | lib.LLM_SHARED_GATE,
    switches=NORMALIZE,
    norm_offset=1.0,
    ffn="moe_intermediate_size",
    experts=True,
    sparse=sparse_by_step,
    shared="shared_expert_intermediate_size",
    kinds=DELTA_KINDS,
    mixers={"linear_attention": delta_rule},
    partial=True,
    only=DELTA_ONLY,
)
ROWS: dict[str, Family] = {
    "Lfm2ForCausalLM": Family(
        "LFM2",
        defaults={
            **LFM2,
            "block_multiple_of": 256,
            "block_ffn_dim_multiplier": 1.0,
            "block_auto_adjust_ff_dim": True,
        },
        rename=LFM2_NAMES,
        flags=lib.LLM_QK_NORM,
        switches={},
        kinds=LFM2_KINDS,
        mixers={"conv": short_conv},
        norm_eps="norm_eps",
        prepare=lfm2_widths,
        only=LFM2_ONLY,
    ),
    "Lfm2MoeForCausalLM": Family(
        "LFM2 MoE",
        defaults={
            **LFM2,
            "moe_intermediate_size": 1792,
            "num_dense_layers": 2,
            "num_experts_per_tok": 4,
            "norm_topk_prob": True,
            "use_expert_bias": True,
        },
        rename=LFM2_NAMES,
        flags=lib.LLM_QK_NORM | lib.LLM_ROUTER_SIGMOID,
        switches=NORMALIZE | {"use_expert_bias": lib.LLM_ROUTER_BIAS},
        ffn="moe_intermediate_size",
        experts=True,
        sparse=sparse_after("num_dense_layers"),
        kinds=LFM2_KINDS,
        mixers={"conv": short_conv},
        norm_eps="norm_eps",
        prepare=lfm2_widths,
        only=LFM2_ONLY,
    ),
    "Qwen3NextForCausalLM": QWEN3_NEXT,
    "Qwen3_5MoeForCausalLM": replace(
        QWEN3_NEXT,
        name="Qwen 3.5 MoE",
        rename=(("model.language_model.", "model."), *DELTA_NAMES),
        defaults={
            **DELTA,
            "num_key_value_heads": 2,
            "num_experts": 256,
            "num_experts_per_tok": 8,
            "moe_intermediate_size": 512,
            "shared_expert_intermediate_size": 512,
        },
        flags=DELTA_FLAGS | lib.LLM_SHARED_GATE | lib.LLM_ROUTER_NORMALIZE,
        switches={},
        sparse=always,
        only=DELTA_ONLY | {"norm_topk_prob": (None, True)},
    ),
    "Qwen3_5ForCausalLM": Family(
        "Qwen 3.5",
        defaults={**DELTA, "num_key_value_heads": 4},
        rename=(("model.language_model.", "model."), *DELTA_NAMES),
        flags=DELTA_FLAGS,
        switches={},
        norm_offset=1.0,
        kinds=DELTA_KINDS,
        mixers={"linear_attention": delta_rule},
        partial=True,
        only=DELTA_ONLY,
    ),
}
