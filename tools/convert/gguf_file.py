"""Reads a GGUF file, dequantized by the `gguf` library: metadata becomes config.json's keys, tensors get the
names of tensors.TENSORS and Hugging Face's row order and values.

What llama.cpp's converter changes is undone here: it permutes the rows of q and k of architectures whose
rotation it computes over interleaved pairs, and adds 1 to Gemma's norms. What it leaves out of the metadata
because llama.cpp has it in its code (src/models/*.cpp) is filled in."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
from pyllm._llm import lib

from . import embedding, gguf_header, gguf_tokenizer, int4, known_keys, sources
from .configuration import expert_count, integer, layer_count
from .families import FAMILIES, REASONS, Family
from .packed import SLICE
from .sources import ConvertError, File, FileTensor, Grid, Source, shown

Config = dict[str, Any]


def gemma_scale(layers: int) -> Callable[[Config], Config]:
    """llama_model_gemma2, llama_model_gemma3: the 27B model, told by its layers, divides q . k by the root of
    dim / heads, the others by that of head_dim."""

    def fill(config: Config) -> Config:
        if "attention_multiplier" in config:
            return {"query_pre_attn_scalar": config["attention_multiplier"] ** -2}
        wide = config["num_hidden_layers"] == layers
        heads = integer(config, "num_attention_heads")
        return {"query_pre_attn_scalar": config["hidden_size"] // heads if wide else config["head_dim"]}

    return fill


def qwen_widths(config: Config) -> Config:
    """llama_model_qwen2moe: the experts' widths of files from before they were written."""
    width, used = (integer(config, key) for key in ("intermediate_size", "num_experts_per_tok"))
    return {"moe_intermediate_size": width // used, "shared_expert_intermediate_size": width}


def granite_scale(config: Config) -> Config:
    """Without attention.scale it is the usual one."""
    return {"attention_multiplier": config["head_dim"] ** -0.5}


def minicpm_scales(config: Config) -> Config:
    """llama_model_minicpm: the scales of files from before they were written, in MiniCPMConfig's terms."""
    dim, root = config["hidden_size"], integer(config, "num_hidden_layers") ** 0.5
    return {
        "scale_emb": config.get("embedding_multiplier", 12.0),
        "scale_depth": config["residual_multiplier"] * root if "residual_multiplier" in config else 1.4,
        "dim_model_base": dim / config["logits_scaling"] if "logits_scaling" in config else 256,
    }


def minicpm3_scales(config: Config) -> Config:
    """llama_model_minicpm3 has them in its code."""
    return {"scale_emb": 12.0, "scale_depth": 1.4, "dim_model_base": 256}


def llama4_norms(config: Config) -> Config:
    """llama_model_llama4: the model with 128 experts, Maverick, does not normalise queries and keys."""
    return {"use_qk_norm": config["num_local_experts"] != 128}


Get = Callable[[str], Any]  # the value of "architecture.key" in the metadata, None when it is missing


def gemma4(get: Get) -> Config:
    """Gemma4Model.set_gguf_parameters: key_length is that of layers without a window; what differs between
    layers is in lists."""
    windowed, width = get("attention.sliding_window_pattern"), get("feed_forward_length")
    heads, global_heads = get("attention.head_count_kv"), None
    if isinstance(heads, list):
        if not isinstance(windowed, list) or len(windowed) != len(heads):
            raise ConvertError(
                "gemma4.attention.sliding_window_pattern is not for as many layers as head_count_kv"
            )
        pairs = list(zip(heads, windowed, strict=True))
        global_heads = only_value([n for n, local in pairs if not local], "gemma4.attention.head_count_kv")
        local_heads = [n for n, local in pairs if local] or [global_heads]
        heads = only_value(local_heads, "gemma4.attention.head_count_kv")
    shared = get("attention.shared_kv_layers") or 0
    wide = isinstance(width, list) and width[-1] != width[0]
    if isinstance(width, list):
        own = [n // (2 if wide and i >= len(width) - shared else 1) for i, n in enumerate(width)]
        width = only_value(own, "gemma4.feed_forward_length")
    size, local_size = get("attention.key_length"), get("attention.key_length_swa")
    for key, length in (("", size), ("_swa", local_size)):
        for other in (f"attention.value_length{key}", f"rope.dimension_count{key}"):
            if get(other) not in (None, length):
                raise ConvertError(
                    f"gemma4.{other} is not attention.key_length{key}, {length}: not supported"
                )
    return {
        "num_key_value_heads": heads,
        "num_global_key_value_heads": global_heads,
        "intermediate_size": width,
        "use_double_wide_mlp": wide,
        "num_kv_shared_layers": shared,
        "head_dim": local_size if local_size is not None else size,
        "global_head_dim": size,
        "hidden_size_per_layer_input": get("embedding_length_per_layer_input"),
        "enable_moe_block": bool(get("expert_count")),
    }


def gemma3n(get: Get) -> Config:
    """Gemma3NModel.set_gguf_parameters; llama.cpp itself has some of these numbers in its code."""
    size, scales = get("attention.key_length"), get("activation_sparsity_scale")
    for key in ("attention.value_length", "rope.dimension_count"):
        if get(key) not in (None, size):
            raise ConvertError(f"gemma3n.{key} is not attention.key_length, {size}: not supported")
    return {
        "head_dim": size,
        "intermediate_size": get("feed_forward_length"),
        "hidden_size_per_layer_input": get("embedding_length_per_layer_input"),
        "num_kv_shared_layers": get("attention.shared_kv_layers") or 0,
        "altup_num_inputs": get("altup.num_inputs"),
        "altup_active_idx": get("altup.active_idx"),
        "activation_sparsity_pattern": [NormalDist().cdf(by) for by in scales] if scales else None,
    }


DELTA_KEYS = {
    "ssm.conv_kernel": "linear_conv_kernel_dim",
    "ssm.state_size": "linear_key_head_dim",
    "ssm.group_count": "linear_num_key_heads",
    "ssm.time_step_rank": "linear_num_value_heads",
    "rope.dimension_sections": "mrope_section",
}
DELTA_NAMES = {
    "post_attention_norm.weight": "post_attention_layernorm.weight",
    "attn_q.weight": "self_attn.qg_proj.weight",
    "attn_qkv.weight": "linear_attn.in_proj_qkv.weight",
    "attn_gate.weight": "linear_attn.in_proj_z.weight",
}


def delta_widths(config: Config) -> Config:
    """llama_model_qwen3next: values are as wide as keys."""
    return {"linear_value_head_dim": integer(config, "linear_key_head_dim")}


def lfm2_width(config: Config) -> Config:
    """LFM2Model._add_feed_forward_length: the width is the one that Lfm2MLP makes of the configuration's."""
    return {"block_auto_adjust_ff_dim": False}


@dataclass(frozen=True)
class Architecture:
    """What a GGUF architecture is: Hugging Face's when it is dense, with experts, with a sliding window, with
    queries that grow."""

    dense: str | None
    experts: str | None = None
    windowed: str | None = None
    growing: str | None = None
    softmax: str | None = None  # with experts that are chosen by softmax, if others are not
    permuted: bool = False  # q and k have the rows of interleaved pairs
    shifted: bool = False  # norms have 1 added
    fused: bool = False  # ffn_up is gate and up
    normalize: bool = True  # the weights of the chosen experts add up to 1, if the metadata does not say
    state: str | None = None  # the kind of the layers without attention
    tiled: bool = False  # their value heads: the first one of each key head, then the second, ...
    fill: Callable[[Config], Config] = lambda config: {}  # keys that the metadata may lack
    names: Mapping[str, str] = field(default_factory=dict)  # of tensors, where they differ from LAYER
    rope: Mapping[str, Any] = field(default_factory=dict)  # of rope_parameters, what the metadata lacks
    # whether layer i has the window, if the metadata does not say; None: as the Hugging Face family has it
    windows: Callable[[int], bool] | None = None
    local: bool = False  # layers with a window have a rotary base of their own, and are not scaled
    own: Callable[[Get], Config] | None = None  # keys that it has in its own way
    with_experts: Mapping[str, str] = field(default_factory=dict)  # names other than LAYER's, with experts
    keys: Mapping[str, str] = field(default_factory=dict)  # of its metadata -> config.json
    facts: Callable[[set[str]], Config] = lambda names: {}  # what the names of its tensors tell


def second_norm(names: set[str]) -> Config:
    """llama_model_stablelm: blocks are side by side where there is no norm between them."""
    own = {"use_qkv_bias": "blk.0.attn_q.bias" in names, "qk_layernorm": "blk.0.attn_q_norm.weight" in names}
    return own | {"use_parallel_residual": "blk.0.ffn_norm.weight" not in names}


def falcon_norms(names: set[str]) -> Config:
    """llama_model_falcon: two norms side by side are those of 40B. The rows of q, k and v lie as in the new
    architecture's groups taken apart, whichever they were."""
    two = "blk.0.attn_norm_2.weight" in names
    bias = "blk.0.attn_qkv.bias" in names
    return {"new_decoder_architecture": True, "num_ln_in_parallel_attn": 2 if two else 1, "bias": bias}


def all_biases(names: set[str]) -> Config:
    return {"mlp_bias": "blk.0.ffn_up.bias" in names, "use_bias": "blk.0.attn_output.bias" in names}


SIDE_BY_SIDE = {"use_parallel_residual": "use_parallel_residual"}

# What llama.cpp calls the norm before the feed-forward block in some architectures
BEFORE_FFN = {"post_attention_norm.weight": "post_attention_layernorm.weight"}


GEMMA4_EXPERTS = {  # the dense block is the shared expert
    "ffn_norm.weight": "mlp.shared_layernorm.weight",
    "ffn_gate.weight": "mlp.shared_expert.gate_proj.weight",
    "ffn_up.weight": "mlp.shared_expert.up_proj.weight",
    "ffn_down.weight": "mlp.shared_expert.down_proj.weight",
    "post_ffw_norm_1.weight": "mlp.shared_post_layernorm.weight",
    "pre_ffw_norm_2.weight": "post_attention_layernorm.weight",
    "post_ffw_norm_2.weight": "mlp.experts_post_layernorm.weight",
    "ffn_gate_inp.scale": "mlp.router_norm.weight",
    "ffn_down_exps.scale": "mlp.router_scale",
}
ARCHITECTURES: dict[str, Architecture] = {
    "llama": Architecture("LlamaForCausalLM", "MixtralForCausalLM", "MistralForCausalLM", permuted=True),
    "mistral3": Architecture(
        "LlamaForCausalLM",
        windowed="MistralForCausalLM",
        growing="Ministral3ForCausalLM",
        permuted=True,
    ),
    "qwen2": Architecture("Qwen2ForCausalLM"),
    "qwen2moe": Architecture(None, "Qwen2MoeForCausalLM", normalize=False, fill=qwen_widths),
    "qwen3": Architecture("Qwen3ForCausalLM"),
    "qwen3moe": Architecture(None, "Qwen3MoeForCausalLM", fill=qwen_widths),
    "gemma": Architecture("GemmaForCausalLM", shifted=True),
    "gemma2": Architecture("Gemma2ForCausalLM", shifted=True, fill=gemma_scale(46)),
    "gemma3": Architecture("Gemma3ForCausalLM", shifted=True, fill=gemma_scale(62)),
    "gemma3n": Architecture("Gemma3nForCausalLM", own=gemma3n),
    "gemma4": Architecture("Gemma4ForCausalLM", "Gemma4ForCausalLM", own=gemma4, with_experts=GEMMA4_EXPERTS),
    "phi3": Architecture("Phi3ForCausalLM", fused=True),
    "olmo2": Architecture("Olmo2ForCausalLM", windowed="Olmo3ForCausalLM"),
    "olmoe": Architecture(None, "OlmoeForCausalLM", normalize=False),
    "granite": Architecture("GraniteForCausalLM", "GraniteMoeForCausalLM", permuted=True, fill=granite_scale),
    "granitemoe": Architecture(None, "GraniteMoeForCausalLM", permuted=True, fill=granite_scale),
    "smollm3": Architecture("SmolLM3ForCausalLM", permuted=True),
    "internlm2": Architecture("InternLM2ForCausalLM", permuted=True),
    "minicpm": Architecture("MiniCPMForCausalLM", permuted=True, fill=minicpm_scales),
    "chatglm": Architecture("GlmForCausalLM", fused=True),
    "glm4": Architecture("Glm4ForCausalLM", fused=True),
    "ernie4_5": Architecture("Ernie4_5ForCausalLM"),
    "exaone4": Architecture("Exaone4ForCausalLM"),
    "minimax-m2": Architecture(None, "MiniMaxM2ForCausalLM"),
    "glm4moe": Architecture(None, "Glm4MoeForCausalLM", normalize=False, names=BEFORE_FFN),
    "dots1": Architecture(None, "Dots1ForCausalLM", normalize=False),
    "deepseek": Architecture(None, "DeepseekForCausalLM", permuted=True, normalize=False),
    "ernie4_5-moe": Architecture(None, "Ernie4_5_MoeForCausalLM"),
    "exaone-moe": Architecture(None, "ExaoneMoeForCausalLM", normalize=False),
    "afmoe": Architecture(None, "AfmoeForCausalLM", fill=lambda config: {"mup_enabled": True}),
    "gpt-oss": Architecture(None, "GptOssForCausalLM", names=BEFORE_FFN, rope={"truncate": False}),
    "llama4": Architecture(None, "Llama4ForCausalLM", fill=llama4_norms),
    "hunyuan-dense": Architecture("HunYuanDenseV1ForCausalLM"),
    "hunyuan-moe": Architecture(None, "HunYuanMoEV1ForCausalLM"),
    "hy_v3": Architecture(None, "HYV3ForCausalLM"),
    "mimo2": Architecture(None, "MiMoV2FlashForCausalLM", local=True),
    "laguna": Architecture(None, "LagunaForCausalLM", windows=lambda i: i % 4 != 0, local=True),
    "mellum": Architecture(None, "MellumForCausalLM", windows=lambda i: (i + 1) % 4 != 0, local=True),
    "granite_swa": Architecture(
        "GraniteSWAForCausalLM",
        "GraniteMoeSWAForCausalLM",
        permuted=True,
        fill=granite_scale,
        names={"ffn_up_shexp.weight": "mlp.shared_expert.gate_up_proj.weight"},
    ),
    "gpt2": Architecture("GPT2LMHeadModel"),
    "starcoder": Architecture("GPTBigCodeForCausalLM"),
    "gptneox": Architecture("GPTNeoXForCausalLM", keys=SIDE_BY_SIDE),
    "phi2": Architecture("PhiForCausalLM"),
    "starcoder2": Architecture("Starcoder2ForCausalLM", facts=all_biases),
    "stablelm": Architecture("StableLmForCausalLM", keys=SIDE_BY_SIDE, facts=second_norm),
    "olmo": Architecture("OlmoForCausalLM", permuted=True, keys={"attention.clamp_kqv": "clip_qkv"}),
    "command-r": Architecture("CohereForCausalLM", keys={"logit_scale": "logit_scale"}),
    "cohere2": Architecture("Cohere2ForCausalLM", keys={"logit_scale": "logit_scale"}),
    "nemotron": Architecture("NemotronForCausalLM", shifted=True, facts=all_biases),
    "arcee": Architecture("ArceeForCausalLM", permuted=True, facts=all_biases),
    "apertus": Architecture("ApertusForCausalLM"),
    "falcon": Architecture("FalconForCausalLM", facts=falcon_norms),
    "jais2": Architecture("Jais2ForCausalLM", facts=all_biases),
    "deepseek2": Architecture(
        "YoutuForCausalLM", "DeepseekV3ForCausalLM", softmax="DeepseekV2ForCausalLM", normalize=False
    ),
    "minicpm3": Architecture("MiniCPM3ForCausalLM", fill=minicpm3_scales),
    "lfm2": Architecture("Lfm2ForCausalLM", state="conv", fill=lfm2_width),
    "qwen3next": Architecture(
        None,
        "Qwen3NextForCausalLM",
        shifted=True,
        state="linear_attention",
        keys=DELTA_KEYS,
        names=DELTA_NAMES,
        fill=delta_widths,
    ),
    "qwen35": Architecture(
        "Qwen3_5ForCausalLM",
        shifted=True,
        state="linear_attention",
        tiled=True,
        keys=DELTA_KEYS,
        names=DELTA_NAMES,
        fill=delta_widths,
    ),
    "qwen35moe": Architecture(
        None,
        "Qwen3_5MoeForCausalLM",
        shifted=True,
        state="linear_attention",
        tiled=True,
        keys=DELTA_KEYS,
        names=DELTA_NAMES,
        fill=delta_widths,
    ),
    "lfm2moe": Architecture(None, "Lfm2MoeForCausalLM", state="conv"),
}

# Why others are not: as the Hugging Face architecture that they are
OTHERS = {
    "mistral4": "Mistral4ForCausalLM",
    "mamba": "MambaForCausalLM",
    "mamba2": "Mamba2ForCausalLM",
    "jamba": "JambaForCausalLM",
    "falcon-h1": "FalconH1ForCausalLM",
    "nemotron_h": "NemotronHForCausalLM",
    "granitehybrid": "GraniteMoeHybridForCausalLM",
    "rwkv6": "RwkvForCausalLM",
    "rwkv7": "RwkvForCausalLM",
    "qwen": "QWenLMHeadModel",
    "phimoe": "PhimoeForCausalLM",
    "mpt": "MptForCausalLM",
    "bloom": "BloomForCausalLM",
    "dbrx": "DbrxForCausalLM",
    "bitnet": "BitNetForCausalLM",
    "baichuan": "BaichuanForCausalLM",
    "bert": "BertModel",
    "modern-bert": "ModernBertModel",
    "nomic-bert": "NomicBertModel",
    "gemma-embedding": "EmbeddingGemma",
}

# Metadata -> config.json, without the architecture's prefix.
KEYS = {
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "expert_feed_forward_length": "moe_intermediate_size",
    "block_count": "num_hidden_layers",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.q_lora_rank": "q_lora_rank",
    "attention.kv_lora_rank": "kv_lora_rank",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.layer_norm_epsilon": "rms_norm_eps",
    "attention.sliding_window": "sliding_window",
    "attention.scale": "attention_multiplier",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "embedding_scale": "embedding_multiplier",
    "residual_scale": "residual_multiplier",
    "logit_scale": "logits_scaling",
    "context_length": "max_position_embeddings",
    "shortconv.l_cache": "conv_L_cache",
    "expert_count": "num_local_experts",
    "expert_used_count": "num_experts_per_tok",
    "interleave_moe_layer_step": "moe_layer_interval",
    "expert_group_count": "n_group",
    "expert_group_used_count": "topk_group",
    "rope.dimension_count": "rotary_dim",
    "rope.freq_base_swa": "rope_local_base_freq",
    "rope.scaling.original_context_length": "original_max_position_embeddings",
}
ZERO_IS_NONE = ("sliding_window", "attention_multiplier", "n_group", "topk_group")
# Metadata whose other values change the mathematics
ONLY: Mapping[str, tuple[Any, ...]] = {
    "attention.causal": (None, True),
    "attention.clamp_kqv": (None, 0.0),
    "deepstack_mapping": (None,),
    "rope.dimension_sections": (None,),
    "rope.scaling.finetuned": (None, True),  # False: Granite without rotation
}
# enum llama_pooling_type; -1 says nothing
POOLINGS = {0: "none", 1: "mean", 2: "cls", 3: "last", 4: "rank"}
# Metadata that is not always asked for and changes nothing then; the embedding says how many tokens there are
UNASKED = (
    "tensor_data_layout",
    "vocab_size",
    "rope.scale_linear",
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
    "full_attention_interval",
)

# Tensors, after "blk.N.", and what tensors.TENSORS and FUSED call them after "model.layers.N.".
ONCE = {
    "token_embd.weight": "model.embed_tokens.weight",
    "token_embd_norm.weight": "model.norm.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
    "per_layer_token_embd.weight": "model.embed_tokens_per_layer.weight",
    "per_layer_model_proj.weight": "model.per_layer_model_projection.weight",
    "per_layer_proj_norm.weight": "model.per_layer_projection_norm.weight",
    "altup_proj.weight": "model.altup_projections.{e}.weight",
    "altup_unembd_proj.weight": "model.altup_unembed_projections.{e}.weight",
    "position_embd.weight": "model.positions.weight",
    "output_norm.bias": "model.norm.bias",
    "output.bias": "lm_head.bias",
}
LAYER = {
    "attn_norm.weight": "input_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_qkv.weight": "self_attn.qkv_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "attn_q.bias": "self_attn.q_proj.bias",
    "attn_k.bias": "self_attn.k_proj.bias",
    "attn_v.bias": "self_attn.v_proj.bias",
    "attn_qkv.bias": "self_attn.qkv_proj.bias",
    "attn_output.bias": "self_attn.o_proj.bias",
    "attn_q_norm.weight": "self_attn.q_norm.weight",
    "attn_k_norm.weight": "self_attn.k_norm.weight",
    "post_attention_norm.weight": "post_self_attn_layernorm.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
    "attn_gate.weight": "self_attn.gate_proj.weight",
    "attn_sinks.weight": "self_attn.sinks",
    "ffn_gate_inp.weight": "mlp.gate.weight",
    "ffn_gate_inp.bias": "mlp.gate.bias",
    "ffn_gate_inp_shexp.weight": "mlp.shared_expert_gate.weight",
    "ffn_gate_shexp.weight": "mlp.shared_expert.gate_proj.weight",
    "ffn_up_shexp.weight": "mlp.shared_expert.up_proj.weight",
    "ffn_down_shexp.weight": "mlp.shared_expert.down_proj.weight",
    "exp_probs_b": "mlp.e_score_correction_bias",  # of HY 3
    "exp_probs_b.bias": "mlp.e_score_correction_bias",
    "attn_q_a.weight": "self_attn.q_a_proj.weight",
    "attn_q_a_norm.weight": "self_attn.q_a_layernorm.weight",
    "attn_q_b.weight": "self_attn.q_b_proj.weight",
    "attn_kv_a_mqa.weight": "self_attn.kv_a_proj_with_mqa.weight",
    "attn_kv_a_norm.weight": "self_attn.kv_a_layernorm.weight",
    "attn_kv_b.weight": "self_attn.kv_b_proj.weight",
    "attn_k_b.weight": "self_attn.k_b_proj.{h}.weight",
    "attn_v_b.weight": "self_attn.v_b_proj.{h}.weight",
    "post_ffw_norm.weight": "post_mlp_layernorm.weight",
    "layer_output_scale.weight": "layer_scalar",
    "inp_gate.weight": "per_layer_input_gate.weight",
    "proj.weight": "per_layer_projection.weight",
    "post_norm.weight": "post_per_layer_input_norm.weight",
    "laurel_l.weight": "laurel.linear_left.weight",
    "laurel_r.weight": "laurel.linear_right.weight",
    "laurel_post_norm.weight": "laurel.post_laurel_norm.weight",
    "altup_router_norm.weight": "altup.router_norm.weight",
    "altup_router.weight": "altup.modality_router.weight",
    "altup_predict_coef.weight": "altup.prediction_coefs.weight",
    "altup_correct_coef.weight": "altup.correction_coefs.weight",
    "altup_correct_scale.weight": "altup.correct_output_scale",
    "attn_norm.bias": "input_layernorm.bias",
    "ffn_norm.bias": "post_attention_layernorm.bias",
    "ffn_up.bias": "mlp.up_proj.bias",
    "ffn_down.bias": "mlp.down_proj.bias",
    "shortconv.conv.weight": "conv.conv.weight",
    "shortconv.in_proj.weight": "conv.in_proj.weight",
    "shortconv.out_proj.weight": "conv.out_proj.weight",
    "ssm_conv1d.weight": "linear_attn.conv1d.weight",
    "ssm_dt.bias": "linear_attn.dt_bias",
    "ssm_a": "linear_attn.A_log",
    "ssm_ba.weight": "linear_attn.in_proj_ba.weight",
    "ssm_beta.weight": "linear_attn.in_proj_b.weight",
    "ssm_alpha.weight": "linear_attn.in_proj_a.weight",
    "ssm_norm.weight": "linear_attn.gain.weight",
    "ssm_out.weight": "linear_attn.out_proj.weight",
}
# Tensors of factors of the rotary frequencies, all (turning elements of a head / 2,)
FACTORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
MAX_FACTORS = 1 << 16  # of one of them; a head has fewer elements
AHEAD = ("nextn.", "layer_output_norm.")  # of layers behind the last one, which predict further tokens
TOKENS = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
# stacked, or one by one in older files
EXPERTS = re.compile(r"ffn_(gate|up|down|gate_up)(?:_exps|\.(\d+))\.(weight|bias)")


def name_of(name: str, row: Architecture) -> str:
    """The name that tensors.TENSORS has for a tensor; the name itself for one that has none. {e} stands for
    all experts of a stack, {h} for all heads."""
    if name in ONCE:
        return ONCE[name]
    layer = re.fullmatch(r"blk\.(\d+)\.(.+)", name)
    if not layer:
        return name
    if row.fused and layer[2] == "ffn_up.weight":
        return f"model.layers.{layer[1]}.mlp.gate_up_proj.weight"
    names = LAYER | dict(row.names)
    if layer[2] in names:
        return f"model.layers.{layer[1]}.{names[layer[2]]}"
    expert = EXPERTS.fullmatch(layer[2])
    if expert:
        return f"model.layers.{layer[1]}.mlp.experts.{expert[2] or '{e}'}.{expert[1]}_proj.{expert[3]}"
    if layer[2].startswith(AHEAD):
        return f"model.layers.{layer[1]}.{layer[2]}"
    return name


def native_name(name: str, row: Architecture) -> str:
    """The opposite of name_of."""
    back = {value: key for key, value in (ONCE | LAYER | dict(row.names)).items()}
    if name in back:
        return back[name]
    layer = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", name)
    if not layer:
        return name
    expert = re.fullmatch(r"mlp\.experts\.\d+\.(gate|up|down)_proj\.(weight|bias)", layer[2])
    whole = re.sub(r"(?<=_b_proj\.)\d+(?=\.)", "{h}", layer[2])
    tail = f"ffn_{expert[1]}_exps.{expert[2]}" if expert else back.get(whole, layer[2])
    return f"blk.{layer[1]}.{tail}"


def chosen_by_softmax(get: Callable[[str], Any]) -> bool:
    """llama_model_deepseek2: what files from before it was written say of how experts are chosen."""
    lite = get("block_count") in (47, 48) and get("vocab_size") == 154880  # GLM-4.7 Flash
    return (get("expert_gating_func") or (2 if lite else 1)) == 1


def latent_widths(config: Config, get: Callable[[str], Any], family: Family) -> Config:
    """Where llama.cpp attends to latents, the widths of heads have keys of their own; in older files, and of
    MiniCPM3, they are those of keys and values."""
    turning, groups = integer(config, "rotary_dim"), config.get("n_group", 1)
    head = get("attention.key_length_mla") or config["head_dim"]
    values = get("attention.value_length"), get("attention.value_length_mla")
    method = {"topk_method": "group_limited_greedy" if groups > 1 else "greedy"}
    return {
        "num_key_value_heads": config["num_attention_heads"],  # as many as latents are made into
        "qk_rope_head_dim": turning,
        "qk_nope_head_dim": head - turning,
        "v_head_dim": values[1] or values[0],
        "q_lora_rank": config.get("q_lora_rank"),
        **(method if "topk_method" in family.defaults else {}),
    }


def rope_parameters(
    get: Callable[[str], Any], factors: Mapping[str, np.ndarray], latent: bool = False
) -> dict[str, Any]:
    """config.json's rope_parameters from the metadata under `rope.` and the tensors of FACTORS."""
    rope: dict[str, Any] = {"rope_theta": get("rope.freq_base") or 10000.0}
    kind = get("rope.scaling.type")
    factor = get("rope.scaling.factor") or get("rope.scale_linear") or 1.0
    attn_factor = get("rope.scaling.attn_factor") or 1.0
    if "rope_factors_long.weight" in factors or "rope_factors_short.weight" in factors:
        kind = "longrope"
    elif kind is None:
        kind = "linear" if factor != 1.0 else "none"
    if kind not in ("none", "linear", "yarn", "longrope"):
        raise ConvertError(
            f"the rotary scaling rope.scaling.type = {shown(kind)} is not supported; none, linear, yarn and "
            "longrope are"
        )
    if attn_factor != 1.0 and kind != "longrope":
        raise ConvertError(f"rope.scaling.attn_factor = {attn_factor} is not supported, only 1")
    for key in ("yarn_ext_factor", "yarn_attn_factor"):
        if get(f"rope.scaling.{key}") not in (None, 1.0):
            raise ConvertError(f"rope.scaling.{key} = {get(f'rope.scaling.{key}')} is not supported, only 1")
    scale = get("rope.scaling.yarn_log_multiplier") or 0.0
    if scale and kind != "yarn":
        raise ConvertError(f"rope.scaling.yarn_log_multiplier = {shown(scale)} is not supported without yarn")
    if kind == "longrope":
        found = {key: factors.get(f"rope_factors_{key}.weight") for key in ("long", "short")}
        return rope | {
            "rope_type": "longrope",
            "attention_factor": attn_factor,
            **{f"{key}_factor": [] if f is None else f.tolist() for key, f in found.items()},
        }
    rope["rope_type"] = "default" if kind == "none" or factor == 1.0 else kind
    if rope["rope_type"] != "default":
        rope["factor"] = factor
    if rope["rope_type"] == "yarn":
        rope["beta_fast"] = get("rope.scaling.yarn_beta_fast")
        rope["beta_slow"] = get("rope.scaling.yarn_beta_slow")
    if scale and latent:  # a tenth of it, see llama_model_deepseek2
        rope |= dict.fromkeys(("mscale", "mscale_all_dim"), scale / 0.1)
    elif scale:  # llama_context: the magnitude of 1 over that of this
        rope |= {"mscale": 1.0, "mscale_all_dim": scale}
    if "rope_freqs.weight" in factors:
        if rope["rope_type"] == "yarn":
            raise ConvertError("rope_freqs.weight together with yarn scaling is not supported")
        rope["frequency_factors"] = factors["rope_freqs.weight"]
    return rope


def with_local_rope(rope: Config, get: Callable[[str], Any]) -> Config:
    """rope_parameters by kinds of layers: those with a window have their own base and turning elements."""
    local = {"rope_type": "default", "rope_theta": get("rope.freq_base_swa") or rope["rope_theta"]}
    turning = get("rope.dimension_count"), get("rope.dimension_count_swa")
    if turning[1] is not None:
        rope, local = rope | {"rotary_dim": turning[0]}, local | {"rotary_dim": turning[1]}
    return {"full_attention": rope, "sliding_attention": local}


def only_value(found: list[Any], key: str) -> Any:
    """What a list with an entry for each layer has in all of them."""
    if not found or any(value != found[0] for value in found):
        raise ConvertError(f"{key} differs between layers, which is not supported")
    return found[0]


def layer_types(pattern: object, n_layers: int) -> list[str] | None:
    """attention.sliding_window_pattern: whether each layer has the window (there may be more layers, that
    predict further tokens), or N: all but every N-th."""
    if pattern is None:
        return None
    if isinstance(pattern, int) and not isinstance(pattern, bool) and pattern > 0:
        pattern = [(i + 1) % pattern != 0 for i in range(n_layers)]
    if not isinstance(pattern, list) or len(pattern) < n_layers:
        raise ConvertError(f"attention.sliding_window_pattern is not for {n_layers} layers")
    return ["sliding_attention" if windowed else "full_attention" for windowed in pattern[:n_layers]]


def chosen_of(get: Callable[[str], Any], architecture: str) -> str:
    """The Hugging Face architecture."""
    row, growth = ARCHITECTURES[architecture], get("attention.temperature_scale")
    if growth and row.growing is None:
        raise ConvertError(f"{architecture}.attention.temperature_scale = {shown(growth)} is not supported")
    window = get("attention.sliding_window")
    dense = row.growing if growth else window and row.windowed or row.dense
    mixture = row.softmax if row.softmax and chosen_by_softmax(get) else row.experts
    chosen = mixture if get("expert_count") else dense
    if chosen is None:
        raise ConvertError(f"{architecture}.expert_count is {get('expert_count')}, which does not fit it")
    return chosen


def heads(get: Callable[[str], Any], architecture: str, types: list[str] | None, n_layers: int) -> Config:
    """The keys for heads of layers that differ: those of Laguna, and of MiMo V2, whose layers with a window
    have twice the key heads."""
    config: Config = {}
    q, k = get("attention.head_count"), get("attention.head_count_kv")
    if isinstance(q, list) and architecture == "laguna" and len(q) >= n_layers:
        config |= {"num_attention_heads": q[0], "num_attention_heads_per_layer": q[:n_layers]}
    if isinstance(k, list) and architecture == "mimo2" and len(k) >= n_layers:
        few = [n for n, kind in zip(k, types or (), strict=False) if kind == "full_attention"] or [k[0] // 2]
        wanted = [few[0] * (1 if kind == "full_attention" else 2) for kind in types or ()]
        if k[:n_layers] != wanted:
            raise ConvertError(f"{architecture}.attention.head_count_kv is not doubled where a window is")
        config["num_key_value_heads"] = few[0]
    return config


def check_mixture(get: Callable[[str], Any], architecture: str, family: Family, config: Config) -> None:
    """Refuses routers that the family has not."""
    sigmoid, always = (
        bool(family.flags & flag) for flag in (lib.LLM_ROUTER_SIGMOID, lib.LLM_ROUTER_NORMALIZE)
    )
    gating = (2,) if sigmoid else (1, 3) if always else (1,)  # 3: softmax over the chosen, which is the same
    if (get("expert_gating_func") or gating[0]) not in gating:
        raise ConvertError(
            f"expert_gating_func = {get('expert_gating_func')} is not {architecture}'s {gating[0]}"
        )
    if config.get("n_group", 1) != 1 and not sigmoid and "n_group" not in family.defaults:
        raise ConvertError(f"{architecture}.expert_group_count = {shown(config['n_group'])} is not supported")
    norm = get("expert_weights_norm")
    if norm is not None and "norm_topk_prob" not in family.switches and bool(norm) != always:
        raise ConvertError(f"{architecture}.expert_weights_norm = {shown(norm)} is not supported")


def mixture(get: Callable[[str], Any], architecture: str, family: Family, config: Config) -> Config:
    """The keys for experts, whatever the family calls them."""
    scale, norm = get("expert_weights_scale") or 1.0, get("expert_weights_norm")
    scales = ("routed_scaling_factor", "moe_routed_scaling_factor", "router_scaling_factor", "route_scale")
    found = dict.fromkeys(scales, scale)
    if norm is not None:
        found["norm_topk_prob"] = bool(norm)
    found[family.dense] = config["intermediate_size"]
    if get("expert_feed_forward_length") is not None:
        found[family.ffn] = config["moe_intermediate_size"]
    return found | shared_experts(get, architecture, family, found.get(family.ffn))


def shared_experts(get: Callable[[str], Any], architecture: str, family: Family, width: Any) -> Config:
    """The keys for experts of all tokens: their width, or how many of the others' width they are."""
    count, dim = get("expert_shared_count"), get("expert_shared_feed_forward_length")
    if family.n_shared is None:
        if count not in (None, 0, 1):
            raise ConvertError(f"{architecture}.expert_shared_count = {shown(count)} is not supported")
        return {family.shared: dim} if family.shared and dim else {}
    if count is None and dim:
        if dim % width:
            key = f"{architecture}.expert_shared_feed_forward_length"
            raise ConvertError(f"{key} = {shown(dim)}: not a multiple of {width}")
        count = dim // width
    return {family.n_shared: count or 0}


def kinds_of(get: Callable[[str], Any], row: Architecture, n_layers: int) -> list[str] | None:
    """The kinds of layers of an architecture with a state: those that a list names have it, or those without
    key heads, or all but every so many-th."""
    if row.state is None:
        return None
    heads, listed, step = get("attention.head_count_kv"), get("attention.recurrent_layers"), None
    if row.state == "conv":
        listed = [not n for n in heads] if isinstance(heads, list) else None
    elif listed is None:
        step = get("full_attention_interval") or 4
        listed = [(i + 1) % integer({"step": step}, "step") != 0 for i in range(n_layers)]
    if not isinstance(listed, list) or len(listed) != n_layers:
        raise ConvertError(f"the metadata does not say which of {n_layers} layers have attention")
    return [row.state if has_state else "full_attention" for has_state in listed]


def check_state(get: Callable[[str], Any]) -> None:
    """The widths of value heads and of key heads, which are one number."""
    size, heads, inner = (get(f"ssm.{key}") for key in ("state_size", "time_step_rank", "inner_size"))
    if inner is not None and inner != size * heads:
        raise ConvertError(f"ssm.inner_size is {inner}, not {heads} heads of ssm.state_size {size}")


class Columns(sources.Tensor):
    """The columns of another tensor in this order."""

    def __init__(self, base: sources.Tensor, order: np.ndarray) -> None:
        super().__init__(base.name, base.shape)
        self.base, self.order = base, order

    def read(self, start: int, stop: int) -> np.ndarray:
        return np.take(self.base.read(start, stop), self.order, axis=1)


def untiled(name: str, tensor: sources.Tensor, config: Config) -> sources.Tensor:
    """A tensor of a state whose value heads are in Hugging Face's order: all of the first key head, then of
    the second, ... Undoes _LinearAttentionVReorderBase of llama.cpp's converter."""
    keys, heads = (integer(config, f"linear_num_{kind}_heads") for kind in ("key", "value"))
    width, part = integer(config, "linear_key_head_dim"), name.rpartition("linear_attn.")[2]
    if heads % keys:  # the format refuses it
        return tensor
    each = 1 if part.startswith(("in_proj_a", "in_proj_b", "dt_bias", "A_log")) else width
    order = np.arange(heads).reshape(-1, keys).T.reshape(-1, 1) * each + np.arange(each)
    before = 2 * keys * width if part.startswith(("in_proj_qkv", "conv1d")) else 0
    order = np.concatenate([np.arange(before), before + order.reshape(-1)])
    if part.startswith("out_proj"):
        return Columns(tensor, order) if tensor.cols == len(order) else tensor
    known = part.startswith(("in_proj", "conv1d", "dt_bias", "A_log"))
    if not known or tensor.rows != len(order):  # as above
        return tensor
    return sources.Rows(tensor, tensor.shape, order=order)


def logarithms_of_rates(tensor: sources.Tensor) -> sources.Tensor:
    """A_log of what llama.cpp's converter makes of it, -exp(A_log)."""

    def undo(x: np.ndarray) -> np.ndarray:
        with np.errstate(all="ignore"):  # what is not finite is refused when it is written
            return np.log(-x.astype(np.float64))

    return sources.Mapped(tensor, undo)


def configuration(get: Callable[[str], Any], architecture: str) -> Config:
    """config.json's keys from the metadata; get(key) is the value of "architecture.key", None when it is
    missing."""
    row, chosen = ARCHITECTURES[architecture], chosen_of(get, architecture)
    for key, allowed in ONLY.items():
        if key not in row.keys and get(key) not in allowed:
            raise ConvertError(f"{architecture}.{key} = {shown(get(key))} is not supported")
    family = FAMILIES[chosen]
    config: Config = {"architectures": [chosen], "sliding_window": None, "norm_topk_prob": row.normalize}
    ahead = get("nextn_predict_layers") or 0
    n_layers = layer_count({"num_hidden_layers": get("block_count")}) - ahead
    types = layer_types(get("attention.sliding_window_pattern"), n_layers)
    by_layer = heads(get, architecture, types, n_layers)
    own = row.own(get) if row.own else {}
    for key, ours in (KEYS | dict(row.keys)).items():
        if ours in own or (row.own and ours == "rotary_dim"):
            continue
        found = by_layer.get(ours, get(key))
        if isinstance(found, list) and row.state and key == "attention.head_count_kv":
            found = [n for n in found if n]
        if isinstance(found, list) and ours != "mrope_section":  # that one is not of layers
            found = only_value(found, f"{architecture}.{key}")
        if found is not None and not (ours in ZERO_IS_NONE and not found):
            config[ours] = found
    config |= by_layer | own
    if ahead:
        config |= {"num_hidden_layers": n_layers, "num_nextn_predict_layers": ahead}
    check_mixture(get, architecture, family, config)
    if family.experts:
        config |= mixture(get, architecture, family, config)
    elif row.softmax:  # what is written of models without any, too
        leading, shared = get("leading_dense_block_count"), get("expert_shared_count")
        if leading not in (None, n_layers) or shared not in (None, 0):
            raise ConvertError(f"{architecture} has layers with experts, and no expert_count")
    dim, n_heads = (integer(config, key) for key in ("hidden_size", "num_attention_heads"))
    layer_count(config)
    head_dim = config.setdefault("head_dim", dim // n_heads)
    config.setdefault("num_key_value_heads", n_heads)
    integer(config, "num_key_value_heads")
    value_dim = get("attention.value_length")
    if family.latent:
        config |= latent_widths(config, get, family)
    elif "value_dim" in family.numbers:
        config["v_head_dim"] = head_dim if value_dim is None else value_dim
        config["attention_value_scale"] = get("attention.value_scale") or 1.0
    elif not row.own and value_dim not in (None, head_dim):
        raise ConvertError(
            f"{architecture}.attention.value_length is not the key's {head_dim}: not supported"
        )
    if config["sliding_window"] is None and "attention_chunk_size" not in family.defaults:
        types = ["full_attention"] * n_layers
    elif types is None and row.windows is not None:
        types = layer_types([row.windows(i) for i in range(n_layers)], n_layers)
    types = kinds_of(get, row, n_layers) or types
    if row.state == "linear_attention":
        check_state(get)
    if types is not None:
        config["layer_types"] = types
    if "rms_norm_eps" in config:
        config[family.norm_eps] = config["rms_norm_eps"]
    base = get("rope.freq_base") or 10000.0
    if config.get("rope_local_base_freq", base) != base and not (family.local_rope or row.local):
        raise ConvertError(f"{architecture}.rope.freq_base_swa is not supported")
    turning = get("attention.rope_pattern")
    if turning is not None:
        if architecture != "granite_swa" or not isinstance(turning, list) or len(turning) != n_layers:
            raise ConvertError(
                f"{architecture}.attention.rope_pattern is not supported, or not for {n_layers}"
            )
        config["layer_rope_theta"] = [base if turns else 0 for turns in turning]
    return row.fill(config) | config


def sparse_layers(infos: list[gguf_header.Info], config: Config, leading: object) -> Config:
    """Which layers have experts, as the families say it: those that have a router. Metadata says how many
    dense layers are before them, if at all."""
    found = {
        int(m[1]) for m in (re.fullmatch(r"blk\.(\d{1,9})\.ffn_gate_inp\.weight", i.name) for i in infos) if m
    }
    sparse = [i in found for i in range(config["num_hidden_layers"])]
    first = sparse.index(True) if any(sparse) else len(sparse)
    if leading not in (None, first):
        raise ConvertError(
            f"leading_dense_block_count is {shown(leading)}, and {first} layers have no experts"
        )
    return {
        "mlp_layer_types": ["sparse" if one else "dense" for one in sparse],
        "moe_layers": [i for i, one in enumerate(sparse) if one],
        **dict.fromkeys(("first_k_dense_replace", "num_dense_layers", "moe_layer_start_index"), first),
    }


def recipe(pooling: object) -> Config | None:
    """LLM_EMBEDDING from the metadata; llama.cpp makes embeddings 1 long."""
    if pooling in (None, -1, 0):
        return None
    name = POOLINGS.get(pooling, "unknown") if isinstance(pooling, int) else "unknown"
    if name not in embedding.POOLINGS.values():
        kind = f"{shown(pooling)} ({name})"
        return embedding.refused(f"pooling_type is {kind}, which is not supported; mean and last are")
    return embedding.told(name)


CODEBOOKS = {"Q4_0": int4.UNIFORM, "IQ4_NL": int4.NONLINEAR}


class FourBits(FileTensor):
    """A tensor of one of CODEBOOKS' types: of each 32 columns an fp16 scale, then 16 bytes, whose low bits
    are the first 16 columns and whose high ones the others."""

    codebook: np.ndarray
    SCALE = 2  # bytes

    def grid(self) -> Grid | None:
        return Grid(self.codebook, self.codes, self.scales)

    def blocks(self, start: int, stop: int) -> np.ndarray:
        return self.raw(start, stop).reshape(stop - start, self.cols // Grid.COLUMNS, 16 + self.SCALE)

    def codes(self, start: int, stop: int) -> np.ndarray:
        packed = self.blocks(start, stop)[..., self.SCALE :]
        return np.concatenate([packed & 15, packed >> 4], axis=2).reshape(stop - start, self.cols)

    def scales(self, start: int, stop: int) -> np.ndarray:
        return np.ascontiguousarray(self.blocks(start, stop)[..., :2]).view("<f2")[..., 0]


class MXFP4(FourBits):
    """The same of E2M1 and a power of two, by its exponent: twice the numbers and half the scale, where fp16
    holds it."""

    codebook = (2 * sources.E2M1).astype(np.int8)
    SCALE = 1

    def grid(self) -> Grid | None:
        return super().grid() if self.fits else None

    @cached_property
    def fits(self) -> bool:
        slices = range(0, self.rows, SLICE)
        powers = (self.powers(start, min(start + SLICE, self.rows)) for start in slices)
        with np.errstate(over="ignore"):
            return all(np.array_equal(power.astype(np.float16), power) for power in powers)

    def powers(self, start: int, stop: int) -> np.ndarray:
        """Half the scales, float32 (n, cols / 32)."""
        halves: np.ndarray = sources.E8M0[self.blocks(start, stop)[..., 0]] / np.float32(2)
        return halves

    def scales(self, start: int, stop: int) -> np.ndarray:
        return self.powers(start, stop).astype(np.float16)


def read_tensor(info: gguf_header.Info, file: File) -> sources.Tensor:
    """A tensor, read by rows and dequantized by the gguf library."""
    import gguf

    name, shape = info.name, info.shape
    if name.endswith("ffn_gate_inp_shexp.weight") and len(shape) == 1:  # a matrix of one row
        shape = (1, *shape)
    cols = shape[-1] if len(shape) > 1 else 1
    try:
        kind = gguf.GGMLQuantizationType(info.kind)
    except ValueError:
        raise ConvertError(f"{name} is of the type {info.kind}, unknown to the gguf library") from None
    if kind.name in sources.PLAIN:
        block, (width, decode) = 1, sources.PLAIN[kind.name]
    else:
        block, width = gguf.GGML_QUANT_SIZES[kind]

        def decode(raw: np.ndarray) -> np.ndarray:
            return np.asarray(gguf.quants.dequantize(raw, kind))

        try:
            decode(np.zeros((1, width), np.uint8))
        except (NotImplementedError, KeyError):
            raise ConvertError(f"{name} is {kind.name}, which the gguf library cannot dequantize") from None
    if cols % block:
        raise ConvertError(f"{name} has {cols} columns, not a multiple of {kind.name}'s {block}")
    arguments = (name, shape or (1,), file, info.offset, cols // block * width, decode)
    result = FileTensor(*arguments)
    if kind.name in CODEBOOKS:
        result = FourBits(*arguments)
        result.codebook = CODEBOOKS[kind.name]
    if kind.name == "MXFP4":
        result = MXFP4(*arguments)
    if info.offset + result.rows * result.row_bytes > file.size:
        raise ConvertError(f"truncated, {name} ends after the file's {file.size} bytes")
    return result


def open_file(path: Path) -> Source:
    """The model in a GGUF file."""
    try:
        import gguf  # noqa: F401  (said before anything is read)
    except ImportError:
        raise sources.need("gguf", f"reading {path.name}") from None
    file = File(path)
    try:
        return parse(*gguf_header.read(file), path, file)
    except ConvertError as error:
        file.close()
        raise ConvertError(f"{path.name}: {error}") from None
    except sources.MALFORMED as error:  # of a value of another type than it should be
        file.close()
        raise ConvertError(f"{path}: truncated or damaged ({error})") from None
    except BaseException:
        file.close()
        raise


def why_not(architecture: str) -> str:
    """Why a GGUF file of this Hugging Face architecture cannot be converted."""
    if architecture in FAMILIES:
        return f"its GGUF files are not read, only a Hugging Face directory ({architecture})"
    return REASONS[architecture]


def swap_norms(tensors: dict[str, sources.Tensor]) -> None:
    """Of Falcon 40B attn_norm_2 is attention's norm, and attn_norm that of the feed-forward block."""
    for name in [name for name in tensors if ".attn_norm_2." in name]:
        layer, kind = name.split(".")[1::2]
        first = f"model.layers.{layer}.input_layernorm.{kind}"
        if first in tensors:
            tensors[f"model.layers.{layer}.post_attention_layernorm.{kind}"] = tensors[first]
            tensors[first] = tensors.pop(name)


def add_xielu(tensors: dict[str, sources.Tensor], value: Callable[[str], Any], n_layers: int) -> None:
    """The numbers of xIELU, which are metadata, as the tensors that they were."""
    for key in ("alpha_p", "alpha_n", "beta", "eps"):
        numbers = value(f"xielu.{key}")
        if numbers is None:
            continue
        real = isinstance(numbers, list) and all(isinstance(x, float) and math.isfinite(x) for x in numbers)
        if not real or len(numbers) != n_layers:
            raise ConvertError(f"xielu.{key} is not {n_layers} numbers")
        for layer, number in enumerate(numbers):
            name = f"model.layers.{layer}.mlp.act_fn.{key}"
            tensors[name] = sources.Constant(f"xielu.{key}", (1,), number)


def parse(metadata: Config, infos: list[gguf_header.Info], path: Path, file: File) -> Source:
    """open_file, with the file open and its header read."""
    value = metadata.get
    architecture = value("general.architecture")
    if not isinstance(architecture, str):
        raise ConvertError(f"general.architecture is {shown(architecture)}, not a name")
    if architecture in OTHERS:
        raise ConvertError(f"{architecture} cannot be converted: {why_not(OTHERS[architecture])}")
    if architecture not in ARCHITECTURES:
        names = ", ".join(sorted(ARCHITECTURES))
        raise ConvertError(
            f"unknown architecture {shown(architecture)}; GGUF files of these can be converted: {names}"
        )
    if (value("split.count") or 1) > 1:
        raise ConvertError(
            f"one of {value('split.count')} parts; merge them first (llama-gguf-split --merge)"
        )

    asked = {f"{architecture}.{key}" for key in UNASKED}

    def get(key: str) -> Any:
        asked.add(f"{architecture}.{key}")
        return value(f"{architecture}.{key}")

    row, config = ARCHITECTURES[architecture], configuration(get, architecture)
    name = value("general.name")
    name = name if isinstance(name, str) and name.strip() else path.stem
    if value(f"{architecture}.expert_count"):
        row = replace(row, names={**row.names, **row.with_experts})
    source = Source(path, name, config, {}, native=partial(native_name, row=row), files=[file])
    source.canonical = True
    family = FAMILIES[config["architectures"][0]]
    if family.experts:
        config |= sparse_layers(infos, config, get("leading_dense_block_count"))
    n_heads = {"q": config["num_attention_heads"], "k": config["num_key_value_heads"]}
    factors: dict[str, np.ndarray] = {}
    for item in infos:
        tensor, name = read_tensor(item, file), name_of(item.name, row)
        if name in FACTORS:
            if math.prod(tensor.shape) > MAX_FACTORS:
                raise ConvertError(f"{name} has the shape {shown(tensor.shape)}, far too large")
            factors[name] = tensor.read(0, tensor.rows).reshape(-1)
            continue
        projection = re.fullmatch(r"blk\.\d+\.attn_([qk])\.(?:weight|bias)", item.name)
        if projection and row.permuted:
            tensor = sources.half_split(tensor, n_heads[projection[1]])
        if row.shifted and name.endswith("norm.weight"):
            tensor = sources.Linear(tensor, offset=-1.0)
        if "{e}" in name and name.endswith(".bias"):
            tensor = sources.Stack(tensor)
        if name.endswith(".A_log"):
            tensor = logarithms_of_rates(tensor)
        if row.tiled and ".linear_attn." in name:
            tensor = untiled(name, tensor, config)
        if "{e}" in name:
            streams = name.startswith("model.altup_")
            count = integer(config, "altup_num_inputs") - 1 if streams else expert_count(config)
            source.tensors.update(sources.unstack(tensor, (name,), count))
        elif "{h}" in name:
            each = name.replace("{h}", "{e}")
            source.tensors.update(sources.unstack(tensor, (each,), integer(config, "num_attention_heads")))
        else:
            source.tensors[name] = tensor
    latent = FAMILIES[config["architectures"][0]].latent
    rope = dict(row.rope) | rope_parameters(get, factors, latent)
    if row.growing:
        rope["llama_4_scaling_beta"] = get("attention.temperature_scale") or 0.0
        rope["original_max_position_embeddings"] = config.get("original_max_position_embeddings")
    config["rope_parameters"] = with_local_rope(rope, get) if row.local else rope
    source.embedding = recipe(get("pooling_type"))
    rest = [key for key in metadata if key.startswith(f"{architecture}.") and key not in asked]
    source.notes += known_keys.told("the metadata", rest)
    for ours, tensor_name in (
        ("laurel_rank", "model.layers.0.laurel.linear_left.weight"),
        ("vocab_size_per_layer_input", "model.embed_tokens_per_layer.weight"),
    ):
        if tensor_name in source.tensors:
            config[ours] = source.tensors[tensor_name].rows
    keys = [name for name in source.tensors if name.endswith(".self_attn.k_proj.weight")]
    config["attention_k_eq_v"] = any(name.replace(".k_", ".v_") not in source.tensors for name in keys)
    config["tie_word_embeddings"] = "lm_head.weight" not in source.tensors
    biased = any(f"model.layers.0.self_attn.{x}_proj.bias" in source.tensors for x in ("q", "qkv"))
    config |= dict.fromkeys(
        ("attention_bias", "qkv_bias", "bias", "use_bias"), biased
    )  # whatever the family calls it
    if "use_qk_norm" in family.switches:
        config["use_qk_norm"] = "model.layers.0.self_attn.q_norm.weight" in source.tensors
    gate = source.tensors.get("model.layers.0.self_attn.gate_proj.weight")
    if "gating" in family.defaults and gate is not None:
        config["gating"] = "per-head" if gate.rows == n_heads["q"] else "per-element"
    config |= row.facts({item.name for item in infos})
    swap_norms(source.tensors)
    add_xielu(source.tensors, value, layer_count(config))
    embed = source.tensors.get("model.embed_tokens.weight")
    if embed is not None:
        config["vocab_size"] = embed.shape[0]

    tokens = value("tokenizer.ggml.tokens") or []
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise ConvertError("tokenizer.ggml.tokens is not a list of texts")
    for key, ours in TOKENS.items():
        index = value(f"tokenizer.ggml.{key}_token_id")
        if isinstance(index, int) and 0 <= index < len(tokens):
            source.special_tokens[ours] = tokens[index]
    for key in ("license", "description"):
        if value(f"general.{key}"):
            source.about[key] = str(value(f"general.{key}"))
    texts = {key: found for key, found in metadata.items() if key.startswith("tokenizer.")}
    source.templates = gguf_tokenizer.gguf_templates(texts)
    if tokens:
        source.tokenizer = lambda template: gguf_tokenizer.from_gguf(texts, template)
    return source
