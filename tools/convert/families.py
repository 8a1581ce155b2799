"""The table of model families: what a config.json of each means in the terms of the flat file's header, and
which tensors it has.

Adding a family is adding a row to FAMILIES. What can be computed before the first token is folded into the
tensors here (1 + w of norms, scales of the logits, the order of a head's elements); a quirk that is not in a
row is refused by name, never passed on to the engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from pyllm._llm import lib

from . import flatfile, rope, sources
from .sources import ConvertError, Tensor, shown

Config = dict[str, Any]
BIAS = {"attention_bias": lib.LLM_QKV_BIAS}


def sliding(rule: Callable[[Config, int], bool], listed: bool = True) -> Callable[[Config], list[str]]:
    """The kinds of all layers as transformers' layer_types has them: those that the configuration lists (if
    the family reads that), else "sliding_attention" by the rule (config, layer) and "full_attention"."""

    def kinds(config: Config) -> list[str]:
        found = config.get("layer_types") if listed else None
        if found is None:
            layers = range(layer_count(config))
            found = ["sliding_attention" if rule(config, i) else "full_attention" for i in layers]
        return found

    return kinds


def ropes_of_kinds(config: Config, kinds: list[str]) -> list[str | None]:
    """Which rotary configuration each layer has: that of its kind."""
    return list(kinds)


def turning_layers(config: Config) -> list[bool]:
    """SmolLM3Config: layers whose entry in no_rope_layers is 0 do not turn."""
    n_layers, turns = layer_count(config), config.get("no_rope_layers")
    if turns is None:
        step = integer(config, "no_rope_layer_interval")
        turns = [(i + 1) % step for i in range(n_layers)]
    if not isinstance(turns, list) or len(turns) != n_layers:
        raise ConvertError("configuration: no_rope_layers has not one entry for each layer")
    return [bool(turn) for turn in turns]


def ropes_of_turning_layers(config: Config, kinds: list[str]) -> list[str | None]:
    return [kind if turns else None for kind, turns in zip(kinds, turning_layers(config), strict=True)]


def ropes_with_window(config: Config, kinds: list[str]) -> list[str | None]:
    """Exaone4Attention: if some layers have a window, the others do not turn."""
    some = config["sliding_window"] is not None
    return [None if some and kind == "full_attention" else kind for kind in kinds]


def value_of(name: str, absent: float = 1.0) -> Callable[[Config], float]:
    """A number of the configuration; `absent` when it has none."""
    return lambda config: absent if config.get(name) is None else number(config, name)


@dataclass(frozen=True)
class Family:
    """One row of the table. `defaults` are transformers' own, for keys that config.json may leave out."""

    name: str
    defaults: Mapping[str, Any] = field(default_factory=dict)
    rename: tuple[tuple[str, str], ...] = ()  # substitutions that turn its tensor names into those of TENSORS
    flags: int = 0  # of llm_header
    switches: Mapping[str, int] = field(default_factory=lambda: BIAS)  # a key of the configuration -> a flag
    numbers: Mapping[str, Callable[[Config], float]] = field(default_factory=dict)  # fields of llm_header
    logit_scale: Callable[[Config], float] = lambda config: 1.0  # multiplies the logits
    norm_offset: float = 0.0  # what is added to the vector of every norm
    ffn: str = "intermediate_size"  # the key of the feed-forward block's (or one expert's) inner width
    experts: bool = False
    shared: str | None = None  # the key of the shared expert's inner width
    kinds: Callable[[Config], list[str]] = sliding(lambda config, i: False, listed=False)
    ropes: Callable[[Config, list[str]], list[str | None]] = ropes_of_kinds
    local_rope: bool = False  # layers with a window have a rotary table of their own
    partial: bool = False  # only the first elements of a head may turn
    interleaved: bool = False  # elements 2i and 2i + 1 turn together
    only: Mapping[str, tuple] = field(default_factory=dict)  # key -> the values of it that are supported


WINDOW = {"use_sliding_window": True, "sliding_window": None}
QWEN = {"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28}
QWEN_KINDS = sliding(lambda config, i: i >= integer(config, "max_window_layers", zero=True))
EVERY = sliding(lambda config, i: True, listed=False)
ALL_SPARSE = {"decoder_sparse_step": (None, 1), "mlp_only_layers": (None, [])}
NORMALIZE = {"norm_topk_prob": lib.LLM_ROUTER_NORMALIZE}
MIXTRAL_NAMES = (
    (".block_sparse_moe.", ".mlp."),
    (".w1.", ".gate_proj."),
    (".w3.", ".up_proj."),
    (".w2.", ".down_proj."),
)
GEMMA = {
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh",
    "tie_word_embeddings": True,
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
}
GEMMA_NAMES = (  # in this order: the second name of the first is the first of the second
    (".post_attention_layernorm.", ".post_self_attn_layernorm."),
    (".pre_feedforward_layernorm.", ".post_attention_layernorm."),
    (".post_feedforward_layernorm.", ".post_mlp_layernorm."),
)
GEMMA_NUMBERS = {
    "embed_scale": lambda config: number(config, "hidden_size") ** 0.5,
    "attn_scale": lambda config: number(config, "query_pre_attn_scalar") ** -0.5,
    "logit_cap": value_of("final_logit_softcapping", 0.0),
}
GEMMA_ONLY = {
    "hidden_act": ("gelu_pytorch_tanh", "gelu"),  # transformers reads gelu as the tanh form
    "hidden_activation": (None, "gelu_pytorch_tanh"),
    "use_bidirectional_attention": (None, False),
}
OLMO_FLAGS = lib.LLM_QK_NORM | lib.LLM_QK_NORM_WHOLE
OLMO2_FLAGS = OLMO_FLAGS | lib.LLM_NO_PRE_NORM | lib.LLM_POST_NORM
OLMO2_NAMES = (GEMMA_NAMES[0], GEMMA_NAMES[2])
GRANITE_NUMBERS = {
    "embed_scale": value_of("embedding_multiplier"),
    "residual_scale": value_of("residual_multiplier"),
    "attn_scale": value_of("attention_multiplier"),
}
GRANITE_MOE_NAMES = (
    (".block_sparse_moe.input_linear.weight", ".mlp.experts.gate_up_proj"),
    (".block_sparse_moe.output_linear.weight", ".mlp.experts.down_proj"),
    (".block_sparse_moe.router.layer.", ".mlp.gate."),
    (".block_sparse_moe.", ".mlp."),
    (".mlp.router.", ".mlp.gate."),
    (".shared_mlp.input_linear.", ".mlp.shared_expert.gate_up_proj."),
    (".shared_mlp.output_linear.", ".mlp.shared_expert.down_proj."),
)
INTERNLM2_NAMES = (
    ("model.tok_embeddings.", "model.embed_tokens."),
    (".attention.wqkv.", ".self_attn.grouped_qkv_proj."),
    (".attention.wo.", ".self_attn.o_proj."),
    (".attention_norm.", ".input_layernorm."),
    (".feed_forward.", ".mlp."),
    (".ffn_norm.", ".post_attention_layernorm."),
    *MIXTRAL_NAMES[1:],
    ("output.weight", "lm_head.weight"),
)

FAMILIES: dict[str, Family] = {
    "LlamaForCausalLM": Family("Llama"),
    "MistralForCausalLM": Family(
        "Mistral",
        defaults={"num_key_value_heads": 8, **WINDOW, "sliding_window": 4096},
        switches={},
        kinds=EVERY,
    ),
    "MinistralForCausalLM": Family(
        "Ministral",
        defaults={"num_key_value_heads": 8, **WINDOW, "sliding_window": 4096},
        switches={},
        kinds=sliding(lambda config, i: config["sliding_window"] is not None),
    ),
    "MixtralForCausalLM": Family(
        "Mixtral",
        defaults={
            "num_key_value_heads": 8,
            "rms_norm_eps": 1e-5,
            "rope_theta": 1e6,
            "num_experts_per_tok": 2,
            **WINDOW,
        },
        rename=MIXTRAL_NAMES,
        flags=lib.LLM_ROUTER_NORMALIZE,
        switches={},
        experts=True,
        kinds=EVERY,
    ),
    "Qwen2ForCausalLM": Family("Qwen2", defaults=QWEN, flags=lib.LLM_QKV_BIAS, kinds=QWEN_KINDS),
    "Qwen2MoeForCausalLM": Family(
        "Qwen2-MoE",
        defaults={
            "num_key_value_heads": 16,
            "num_experts_per_tok": 4,
            "moe_intermediate_size": 1408,
            "shared_expert_intermediate_size": 5632,
            "qkv_bias": True,
            **QWEN,
        },
        flags=lib.LLM_SHARED_GATE,
        switches={"qkv_bias": lib.LLM_QKV_BIAS, **NORMALIZE},
        ffn="moe_intermediate_size",
        experts=True,
        shared="shared_expert_intermediate_size",
        kinds=sliding(lambda config, i: i % 2 == 0 and i < integer(config, "max_window_layers", zero=True)),
        only=ALL_SPARSE,
    ),
    "Qwen3ForCausalLM": Family(
        "Qwen3", defaults={"head_dim": 128, **QWEN}, flags=lib.LLM_QK_NORM, kinds=QWEN_KINDS
    ),
    "Qwen3MoeForCausalLM": Family(
        "Qwen3-MoE",
        defaults={"num_key_value_heads": 4, "num_experts_per_tok": 8, **QWEN},
        flags=lib.LLM_QK_NORM,
        switches=BIAS | NORMALIZE,
        ffn="moe_intermediate_size",
        experts=True,
        kinds=EVERY,
        only=ALL_SPARSE,
    ),
    "SmolLM3ForCausalLM": Family(
        "SmolLM3",
        defaults={
            "num_key_value_heads": 4,
            "rope_theta": 2e6,
            "no_rope_layer_interval": 4,
            "tie_word_embeddings": True,
            **QWEN,
        },
        kinds=sliding(lambda config, i: not turning_layers(config)[i]),
        ropes=ropes_of_turning_layers,
    ),
    "Phi3ForCausalLM": Family(
        "Phi-3",
        defaults={"rms_norm_eps": 1e-5, "original_max_position_embeddings": 4096, **WINDOW},
        switches={},
        kinds=EVERY,
        partial=True,
    ),
    "GemmaForCausalLM": Family(
        "Gemma",
        defaults={**GEMMA, "num_key_value_heads": 16},
        flags=lib.LLM_GELU,
        numbers={"embed_scale": GEMMA_NUMBERS["embed_scale"]},
        norm_offset=1.0,
        only=GEMMA_ONLY,
    ),
    "Gemma2ForCausalLM": Family(
        "Gemma 2",
        defaults={
            **GEMMA,
            **WINDOW,
            "num_key_value_heads": 4,
            "sliding_window": 4096,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
        },
        rename=GEMMA_NAMES,
        flags=lib.LLM_GELU | lib.LLM_POST_NORM,
        numbers={**GEMMA_NUMBERS, "attn_cap": value_of("attn_logit_softcapping", 0.0)},
        norm_offset=1.0,
        kinds=sliding(lambda config, i: i % 2 == 0),
        only=GEMMA_ONLY,
    ),
    "Gemma3ForCausalLM": Family(
        "Gemma 3",
        defaults={
            **GEMMA,
            **WINDOW,
            "vocab_size": 262208,
            "hidden_size": 2304,
            "intermediate_size": 9216,
            "num_hidden_layers": 26,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "max_position_embeddings": 131072,
            "sliding_window": 4096,
            "sliding_window_pattern": 6,
            "rope_theta": 1e6,
            "rope_local_base_freq": 10000.0,
        },
        rename=GEMMA_NAMES,
        flags=lib.LLM_GELU | lib.LLM_POST_NORM | lib.LLM_QK_NORM,
        numbers=GEMMA_NUMBERS,
        norm_offset=1.0,
        kinds=sliding(lambda config, i: (i + 1) % integer(config, "sliding_window_pattern") != 0),
        local_rope=True,
        only=GEMMA_ONLY | {"attn_logit_softcapping": (None,)},
    ),
    "Olmo2ForCausalLM": Family(
        "OLMo 2", defaults={"rms_norm_eps": 1e-5}, rename=OLMO2_NAMES, flags=OLMO2_FLAGS
    ),
    "Olmo3ForCausalLM": Family(
        "OLMo 3",
        defaults={"rms_norm_eps": 1e-5, "rope_theta": 500000.0, **WINDOW, "sliding_window": 4096},
        rename=OLMO2_NAMES,
        flags=OLMO2_FLAGS,
        kinds=sliding(lambda config, i: (i + 1) % 4 != 0),
        local_rope=True,
    ),
    "OlmoeForCausalLM": Family(
        "OLMoE",
        defaults={"rms_norm_eps": 1e-5, "num_experts_per_tok": 8},
        flags=OLMO_FLAGS,
        switches=BIAS | NORMALIZE,
        experts=True,
        only={"clip_qkv": (None,)},
    ),
    "GraniteForCausalLM": Family(
        "Granite", numbers=GRANITE_NUMBERS, logit_scale=lambda config: 1 / value_of("logits_scaling")(config)
    ),
    "GraniteMoeForCausalLM": Family(
        "Granite MoE",
        defaults={"num_local_experts": 8, "num_experts_per_tok": 2},
        rename=GRANITE_MOE_NAMES,
        flags=lib.LLM_ROUTER_NORMALIZE,
        numbers=GRANITE_NUMBERS,
        logit_scale=lambda config: 1 / value_of("logits_scaling")(config),
        experts=True,
        shared="shared_intermediate_size",
    ),
    "InternLM2ForCausalLM": Family("InternLM2", rename=INTERNLM2_NAMES, switches={"bias": lib.LLM_QKV_BIAS}),
    "InternLM3ForCausalLM": Family(
        "InternLM3",
        defaults={"num_key_value_heads": 2, "head_dim": 128, "rms_norm_eps": 1e-5},
        switches={"qkv_bias": lib.LLM_QKV_BIAS, **BIAS},
    ),
    "MiniCPMForCausalLM": Family(
        "MiniCPM",
        defaults={"tie_word_embeddings": True, "scale_emb": 1, "scale_depth": 1, "dim_model_base": 1},
        numbers={
            "embed_scale": value_of("scale_emb"),
            "residual_scale": lambda config: (
                number(config, "scale_depth") / number(config, "num_hidden_layers") ** 0.5
            ),
        },
        logit_scale=lambda config: number(config, "dim_model_base") / number(config, "hidden_size"),
        only={"num_experts": (None, 0), "sparse_config": (None,)},
    ),
    "GlmForCausalLM": Family(
        "GLM-4",
        defaults={
            "num_key_value_heads": 2,
            "head_dim": 128,
            "rms_norm_eps": 1.5625e-7,
            "partial_rotary_factor": 0.5,
            "attention_bias": True,
        },
        partial=True,
        interleaved=True,
    ),
    "SeedOssForCausalLM": Family(
        "Seed-OSS", defaults={"num_key_value_heads": 8, "head_dim": 128, "attention_bias": True}
    ),
    "Ernie4_5ForCausalLM": Family(
        "ERNIE 4.5",
        defaults={
            "num_key_value_heads": 2,
            "head_dim": 128,
            "rms_norm_eps": 1e-5,
            "rope_theta": 500000.0,
            "tie_word_embeddings": True,
        },
        switches={"use_bias": lib.LLM_QKV_BIAS},
        interleaved=True,
    ),
    "Exaone4ForCausalLM": Family(
        "EXAONE 4",
        defaults={
            "num_key_value_heads": 32,
            "rms_norm_eps": 1e-5,
            **WINDOW,
            "sliding_window": 4096,
            "sliding_window_pattern": 4,
        },
        rename=OLMO2_NAMES,
        flags=lib.LLM_QK_NORM | lib.LLM_NO_PRE_NORM | lib.LLM_POST_NORM,
        switches={},
        kinds=sliding(
            lambda config, i: (
                config["sliding_window"] is not None
                and (i + 1) % integer(config, "sliding_window_pattern") != 0
            )
        ),
        ropes=ropes_with_window,
    ),
    "MiniMaxM2ForCausalLM": Family(
        "MiniMax-M2",
        defaults={
            "num_key_value_heads": 8,
            "head_dim": 128,
            "rope_theta": 5e6,
            "num_experts_per_tok": 8,
            "scoring_func": "sigmoid",
        },
        rename=MIXTRAL_NAMES,
        flags=OLMO_FLAGS | lib.LLM_ROUTER_NORMALIZE | lib.LLM_ROUTER_SIGMOID | lib.LLM_ROUTER_BIAS,
        switches={},
        experts=True,
        partial=True,
        only={
            "scoring_func": ("sigmoid",),
            "shared_intermediate_size": (None, 0),
            "use_qk_norm": (None, True),
            "qk_norm_type": (None, "per_layer"),
        },
    ),
}
FAMILIES["GraniteMoeSharedForCausalLM"] = replace(
    FAMILIES["GraniteMoeForCausalLM"], name="Granite MoE with a shared expert"
)
FAMILIES["Ernie4_5_ForCausalLM"] = FAMILIES["Ernie4_5ForCausalLM"]  # as the hub has it
FAMILIES["Glm4ForCausalLM"] = replace(FAMILIES["GlmForCausalLM"], name="GLM-4-0414", flags=lib.LLM_POST_NORM)

# The architecture of a configuration that names only its model_type, as AutoModelForCausalLM takes it
MODEL_TYPES = {
    "ernie4_5": "Ernie4_5ForCausalLM",
    "exaone4": "Exaone4ForCausalLM",
    "gemma": "GemmaForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3": "Gemma3ForConditionalGeneration",
    "gemma3_text": "Gemma3ForCausalLM",
    "glm": "GlmForCausalLM",
    "glm4": "Glm4ForCausalLM",
    "granite": "GraniteForCausalLM",
    "granitemoe": "GraniteMoeForCausalLM",
    "granitemoeshared": "GraniteMoeSharedForCausalLM",
    "internlm2": "InternLM2ForCausalLM",
    "internlm3": "InternLM3ForCausalLM",
    "llama": "LlamaForCausalLM",
    "minicpm": "MiniCPMForCausalLM",
    "minimax_m2": "MiniMaxM2ForCausalLM",
    "ministral": "MinistralForCausalLM",
    "mistral": "MistralForCausalLM",
    "mistral3": "Mistral3ForConditionalGeneration",
    "mixtral": "MixtralForCausalLM",
    "olmo2": "Olmo2ForCausalLM",
    "olmo3": "Olmo3ForCausalLM",
    "olmoe": "OlmoeForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen2_moe": "Qwen2MoeForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "seed_oss": "SeedOssForCausalLM",
    "smollm3": "SmolLM3ForCausalLM",
}

# Models of texts and pictures, whose text part is converted: the architecture of the text part by its
# model_type, the usual one first
WRAPPED: dict[str, dict[str, str]] = {
    "Gemma3ForConditionalGeneration": {"gemma3_text": "Gemma3ForCausalLM"},
    "Mistral3ForConditionalGeneration": {"mistral": "MistralForCausalLM"},
}
WRAPPED_NAMES = (
    ("language_model.model.", "model."),
    ("model.language_model.", "model."),
    ("language_model.lm_head.", "lm_head."),
)
PICTURES = ("vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector.")

# Why an architecture that people ask for is not in the table
LAYER_NORM = "it normalises with LayerNorm (a mean, a bias), and this format has RMSNorm only"
LATENT = "its attention is over compressed keys and values (MLA)"
RECURRENT = "some of its layers are recurrent (a state-space model), not attention"
DENSE_FIRST = "some of its layers are dense and the others mixtures of experts"
REASONS: dict[str, str] = {
    "GptOssForCausalLM": "its attention has sinks and its experts have biases and a clamped gate",
    "DeepseekV2ForCausalLM": LATENT,
    "DeepseekV3ForCausalLM": LATENT,
    "DeepseekV32ForCausalLM": LATENT,
    "DeepseekForCausalLM": DENSE_FIRST,
    "KimiK25ForConditionalGeneration": LATENT,
    "MiniCPM3ForCausalLM": LATENT,
    "Glm4MoeForCausalLM": DENSE_FIRST,
    "Glm4MoeLiteForCausalLM": LATENT,
    "Dots1ForCausalLM": DENSE_FIRST,
    "Ernie4_5_MoeForCausalLM": DENSE_FIRST,
    "ChatGLMModel": "it is the remote-code form of GLM-4; convert the repository whose name ends in -hf",
    "MambaForCausalLM": RECURRENT,
    "Mamba2ForCausalLM": RECURRENT,
    "FalconMambaForCausalLM": RECURRENT,
    "JambaForCausalLM": RECURRENT,
    "BambaForCausalLM": RECURRENT,
    "FalconH1ForCausalLM": RECURRENT,
    "Zamba2ForCausalLM": RECURRENT,
    "NemotronHForCausalLM": RECURRENT,
    "GraniteMoeHybridForCausalLM": RECURRENT,
    "Lfm2ForCausalLM": "some of its layers are convolutions, not attention",
    "Lfm2MoeForCausalLM": "some of its layers are convolutions, not attention",
    "RwkvForCausalLM": RECURRENT,
    "RecurrentGemmaForCausalLM": RECURRENT,
    "Qwen3NextForCausalLM": "some of its layers are linear attention (gated delta rule)",
    "Qwen3_5ForCausalLM": "some of its layers are linear attention (gated delta rule)",
    "Qwen3_5MoeForCausalLM": "some of its layers are linear attention (gated delta rule)",
    "Qwen3_5ForConditionalGeneration": "some of its layers are linear attention (gated delta rule)",
    "GPT2LMHeadModel": LAYER_NORM + ", and learned positions",
    "GPTNeoXForCausalLM": LAYER_NORM,
    "GPTJForCausalLM": LAYER_NORM,
    "GPTBigCodeForCausalLM": LAYER_NORM,
    "PhiForCausalLM": LAYER_NORM,
    "Phi3SmallForCausalLM": LAYER_NORM + ", and its attention is block-sparse",
    "PhiMoEForCausalLM": LAYER_NORM,
    "PhimoeForCausalLM": LAYER_NORM,
    "Phi4MMForCausalLM": "its text part needs adapters that pictures and sound switch on",
    "FalconForCausalLM": LAYER_NORM,
    "MptForCausalLM": LAYER_NORM,
    "MPTForCausalLM": LAYER_NORM,
    "BloomForCausalLM": LAYER_NORM,
    "OPTForCausalLM": LAYER_NORM,
    "StableLmForCausalLM": LAYER_NORM,
    "Starcoder2ForCausalLM": LAYER_NORM,
    "NemotronForCausalLM": LAYER_NORM,
    "OlmoForCausalLM": LAYER_NORM,
    "CohereForCausalLM": LAYER_NORM + ", and attention and feed-forward run side by side",
    "Cohere2ForCausalLM": LAYER_NORM + ", and attention and feed-forward run side by side",
    "DbrxForCausalLM": LAYER_NORM,
    "Llama4ForCausalLM": "its attention is chunked and its queries are scaled by position",
    "Llama4ForConditionalGeneration": "its attention is chunked and its queries are scaled by position",
    "Ministral3ForCausalLM": "its queries are scaled by position",
    "Gemma3nForCausalLM": "it has several residual streams and embeddings for each layer",
    "Gemma3nForConditionalGeneration": "it has several residual streams and embeddings for each layer",
    "Gemma4ForCausalLM": "its layers differ in their head sizes and share keys and values",
    "Gemma4ForConditionalGeneration": "its layers differ in their head sizes and share keys and values",
    "ApertusForCausalLM": "its feed-forward block has no gate",
    "ArceeForCausalLM": "its feed-forward block has no gate",
    "MllamaForConditionalGeneration": "some of its layers attend to pictures",
    "HunYuanDenseV1ForCausalLM": "it normalises queries and keys after the rotation",
    "BitNetForCausalLM": "its weights are ternary and its blocks have norms of their own",
    "QWenLMHeadModel": "it is the first Qwen, in a layout of its own; Qwen1.5 and later can be converted",
    "BaichuanForCausalLM": "its matrices are in a layout of its own, and the 13B model has ALiBi",
}

DEFAULTS = {
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "num_key_value_heads": None,
    "head_dim": None,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    "use_sliding_window": False,
    "sliding_window": None,
}
ONLY = {"hidden_act": ("silu", "swish"), "quantization_config": (None,)}
KINDS = ("full_attention", "sliding_attention")
LARGEST = 1e30  # of a number in a configuration: far from the end of float32
# The smallest model that the format has; other fields are checked against the format's limits with these
LEAST = {
    "dim": 1,
    "ffn_dim": 1,
    "n_layers": 1,
    "n_heads": 1,
    "n_kv_heads": 1,
    "head_dim": 2,
    "vocab_size": 1,
    "context": 1,
    "n_rope": 1,
}

# Each tensor of the flat file, its parts from top to bottom (name, dimensions): Llama's names, GLM-4's for
# the norms after a block, Qwen2-MoE's for experts. Names that do not begin with "model." or "lm_head." follow
# "model.layers.N."; {e} is "" in a dense block and "experts.E." with experts. A part of 0 rows is none.
TENSORS: dict[str, tuple[tuple[str, str], ...]] = {
    "LLM_EMBED": (("model.embed_tokens.weight", "vocab dim"),),
    "LLM_OUT_NORM": (("model.norm.weight", "dim"),),
    "LLM_OUTPUT": (("lm_head.weight", "vocab dim"),),
    "LLM_ATTN_NORM": (("input_layernorm.weight", "dim"),),
    "LLM_QKV": (
        ("self_attn.q_proj.weight", "q dim"),
        ("self_attn.k_proj.weight", "kv dim"),
        ("self_attn.v_proj.weight", "kv dim"),
    ),
    "LLM_BIAS": (
        ("self_attn.q_proj.bias", "q"),
        ("self_attn.k_proj.bias", "kv"),
        ("self_attn.v_proj.bias", "kv"),
    ),
    "LLM_Q_NORM": (("self_attn.q_norm.weight", "qnorm"),),
    "LLM_K_NORM": (("self_attn.k_norm.weight", "knorm"),),
    "LLM_ATTN_OUT": (("self_attn.o_proj.weight", "dim q"),),
    "LLM_ATTN_POST_NORM": (("post_self_attn_layernorm.weight", "dim"),),
    "LLM_FFN_NORM": (("post_attention_layernorm.weight", "dim"),),
    "LLM_ROUTER": (("mlp.gate.weight", "experts dim"), ("mlp.shared_expert_gate.weight", "gate dim")),
    "LLM_ROUTER_ADD": (("mlp.e_score_correction_bias", "experts"),),
    "LLM_GATE_UP": (("mlp.{e}gate_proj.weight", "ffn dim"), ("mlp.{e}up_proj.weight", "ffn dim")),
    "LLM_DOWN": (("mlp.{e}down_proj.weight", "dim ffn"),),
    "LLM_SHARED_GATE_UP": (
        ("mlp.shared_expert.gate_proj.weight", "shared dim"),
        ("mlp.shared_expert.up_proj.weight", "shared dim"),
    ),
    "LLM_SHARED_DOWN": (("mlp.shared_expert.down_proj.weight", "dim shared"),),
    "LLM_FFN_POST_NORM": (("post_mlp_layernorm.weight", "dim"),),
}

# Matrices that some files have in one: the end of the name, the ends of its parts' names, and their rows. In
# a grouped one (InternLM2) each key head follows its query heads and is followed by its value head.
QKV = (("q_proj", "q"), ("k_proj", "kv"), ("v_proj", "kv"))
FUSED: dict[str, tuple[tuple[str, str], ...]] = {
    ".grouped_qkv_proj": QKV,
    ".qkv_proj": QKV,
    ".shared_expert.gate_up_proj": (
        ("shared_expert.gate_proj", "shared"),
        ("shared_expert.up_proj", "shared"),
    ),
    ".gate_up_proj": (("gate_proj", "ffn"), ("up_proj", "ffn")),
}

# Stacks of experts, as transformers 5 keeps them in memory (shape (experts, rows, cols)), and what is in one.
STACKS = {
    "mlp.experts.gate_up_proj": ("mlp.experts.{e}.gate_proj.weight", "mlp.experts.{e}.up_proj.weight"),
    "mlp.experts.down_proj": ("mlp.experts.{e}.down_proj.weight",),
}

IGNORED = (
    "rotary_emb.inv_freq",
    "self_attn.masked_bias",
    "self_attn.bias",
    "attn_rot_embd.weight",
)  # computed, or a mask
BIASES = (
    ".q_proj.bias",
    ".k_proj.bias",
    ".v_proj.bias",
    ".o_proj.bias",
    ".gate_proj.bias",
    ".up_proj.bias",
    ".down_proj.bias",
)


@dataclass
class Model:
    """A family's reading of a configuration: all that the header, the rotary tables and the folding of the
    tensors need."""

    architecture: str
    family: Family
    fields: dict[str, int | float] = field(default_factory=dict)  # of llm_header
    angles: np.ndarray = field(default_factory=lambda: np.zeros((0, 0, 2), np.float32))  # see rope.Tables
    layers: list[tuple[int, int]] = field(default_factory=list)  # (n_layers,) rotary table and window
    wrapped: bool = False  # the text part of a model of texts and pictures
    logit_scale: float = 1.0
    head_order: np.ndarray | None = None  # (head_dim,) see rope.head_order; None: as it is
    notes: list[str] = field(default_factory=list)

    @property
    def sizes(self) -> dict[str, int]:
        """The dimensions that TENSORS and FUSED name."""
        f = {key: int(value) for key, value in self.fields.items() if isinstance(value, int)}
        q, kv, whole = f["n_heads"] * f["head_dim"], f["n_kv_heads"] * f["head_dim"], lib.LLM_QK_NORM_WHOLE
        return {
            "dim": f["dim"],
            "vocab": f["vocab_size"],
            "ffn": f["ffn_dim"],
            "shared": f["shared_dim"],
            "q": q,
            "kv": kv,
            "qnorm": q if f["flags"] & whole else f["head_dim"],
            "knorm": kv if f["flags"] & whole else f["head_dim"],
            "experts": f["n_experts"],
            "gate": 1 if f["flags"] & lib.LLM_SHARED_GATE else 0,
        }

    def parts(self, tensor: str, layer: int, expert: int) -> list[tuple[str, tuple[int, ...]]]:
        """The names and shapes that make up a tensor of the flat file, from top to bottom."""
        which = f"experts.{expert}." if self.fields["n_experts"] else ""
        found = []
        for name, dimensions in TENSORS[tensor]:
            full = (
                name
                if name.startswith(("model.", "lm_head."))
                else f"model.layers.{layer}.{name.format(e=which)}"
            )
            shape = tuple(self.sizes[key] for key in dimensions.split())
            found += [(full, shape)] if shape[0] else []
        return found


def architecture_of(config: Config) -> Any:
    """The architecture that the configuration names, or else that of its model_type."""
    names = config.get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    kind = config.get("model_type")
    if not name and isinstance(kind, str):
        return MODEL_TYPES.get(kind, kind)
    return name


def unwrap(config: Config) -> tuple[Config, bool]:
    """The configuration of the text part of a model of texts and pictures, and whether it is one."""
    name = architecture_of(config)
    texts = WRAPPED.get(name) if isinstance(name, str) else None
    if texts is None:
        return config, False
    text = config.get("text_config") or {}
    kind = text.get("model_type", next(iter(texts))) if isinstance(text, dict) else None
    if not isinstance(kind, str) or kind not in texts:
        known = " or ".join(texts)
        raise ConvertError(f"the text part of {name} is {shown(kind)}; {known} can be converted")
    above = {key: config[key] for key in ("tie_word_embeddings", "quantization_config") if key in config}
    return {"tie_word_embeddings": True} | text | above | {"architectures": [texts[kind]]}, True


def find(config: Config) -> tuple[str, Family]:
    """The architecture's name and its row of the table."""
    name = architecture_of(config)
    if not isinstance(name, str) or name not in FAMILIES:
        if isinstance(name, str) and name in REASONS:
            raise ConvertError(f"{name} cannot be converted: {REASONS[name]}")
        what = shown(name) if name else "(the configuration names none)"
        known = ", ".join(sorted([*FAMILIES, *WRAPPED]))
        raise ConvertError(f"unknown architecture {what}; these can be converted: {known}")
    return name, FAMILIES[name]


def integer(config: Config, *keys: str, zero: bool = False) -> int:
    """The first of these keys that the config has, a positive integer, or with `zero` also 0."""
    key = next((k for k in keys if config.get(k) is not None), keys[0])
    value = config.get(key)
    if value is None:
        raise ConvertError(f"configuration: {key} is missing")
    if isinstance(value, bool) or not isinstance(value, int) or not (0 if zero else 1) <= value < 1 << 32:
        raise ConvertError(f"configuration: {key} is {shown(value)}, not a positive integer")
    return value


def number(config: Config, key: str, zero: bool = False) -> float:
    """A positive number of the configuration, or with `zero` one that is not negative."""
    value = config.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= LARGEST:
        raise ConvertError(f"configuration: {key} is {shown(value)}, not a number between 0 and {LARGEST:g}")
    if not value and not zero:
        raise ConvertError(f"configuration: {key} is 0")
    return float(value)


def switch(config: Config, key: str) -> bool:
    """Whether the configuration says true for a key; no when it lacks it."""
    value = config.get(key)
    if not isinstance(value, (bool, type(None))) and value not in (0, 1):
        raise ConvertError(f"configuration: {key} is {shown(value)}, not true or false")
    return bool(value)


def layer_count(config: Config) -> int:
    """num_hidden_layers, checked against the format's limit before anything is sized by it."""
    n_layers = integer(config, "num_hidden_layers")
    flatfile.make_header("fp16", LEAST | {"n_layers": n_layers})
    return n_layers


def expert_count(config: Config) -> int:
    """The number of experts, checked like layer_count."""
    n_experts = integer(config, "num_local_experts", "num_experts")
    flatfile.make_header("fp16", LEAST | {"n_experts": n_experts, "n_active": 1})
    return n_experts


def layers_of(config: Config, family: Family) -> tuple[list[str | None], list[int]]:
    """The rotary kind (None: it does not turn) and the window of each layer."""
    n_layers = layer_count(config)
    kinds = family.kinds(config)
    if not isinstance(kinds, list) or len(kinds) != n_layers:
        raise ConvertError(f"configuration: layer_types has not {n_layers} entries")
    strange = [kind for kind in kinds if kind not in KINDS]
    if strange:
        raise ConvertError(f"configuration: layer_types has {shown(strange[0])}, which is not supported")
    window = 0
    if switch(config, "use_sliding_window") and config["sliding_window"] is not None:
        window = integer(config, "sliding_window")
    return family.ropes(config, kinds), [window if kind == "sliding_attention" else 0 for kind in kinds]


def describe(source_config: Config, context: int | None = None) -> Model:
    """Reads a configuration. `context` shortens the model's own, or chooses among its rotary factors."""
    source_config, wrapped = unwrap(source_config)
    architecture, family = find(source_config)
    if wrapped:
        family = replace(family, rename=WRAPPED_NAMES + family.rename)
    config = DEFAULTS | dict(family.defaults) | source_config
    for key, allowed in (ONLY | dict(family.only)).items():
        if key in config and config[key] not in allowed:
            names = " or ".join(map(repr, allowed))
            found = config[key]
            found = found[:80] if isinstance(found, str) else shown(found)
            raise ConvertError(f"configuration: {key} is {found}; of {family.name} only {names} is supported")

    dim, n_heads = integer(config, "hidden_size"), integer(config, "num_attention_heads")
    head_dim = integer(config, "head_dim") if config["head_dim"] is not None else dim // n_heads
    n_experts = expert_count(config) if family.experts else 0
    shared = config.get(family.shared) if family.shared else 0
    flags = family.flags | (lib.LLM_TIED if switch(config, "tie_word_embeddings") else 0)
    for key, flag in family.switches.items():
        flags |= flag if switch(config, key) else 0
    longest = integer(config, "max_position_embeddings")
    if context is not None and not 0 < context <= longest:
        raise ConvertError(f"context {context} is not between 1 and the model's {longest}")
    kinds, windows = layers_of(config, family)
    numbers = {
        "attn_scale": lambda config: head_dim**-0.5,
        "attn_cap": lambda config: 0.0,
        "logit_cap": lambda config: 0.0,
        "embed_scale": lambda config: 1.0,
        "residual_scale": lambda config: 1.0,
        "expert_scale": value_of("routed_scaling_factor"),
        **family.numbers,
    }
    model = Model(architecture, family, wrapped=wrapped, logit_scale=family.logit_scale(config))
    if not 0 < model.logit_scale <= LARGEST:
        raise ConvertError(f"configuration: the logits would be scaled by {model.logit_scale}")
    model.fields = {
        "flags": flags,
        "dim": dim,
        "ffn_dim": integer(config, family.ffn),
        "n_layers": len(kinds),
        "n_heads": n_heads,
        "n_kv_heads": integer(config, "num_key_value_heads")
        if config["num_key_value_heads"] is not None
        else n_heads,
        "head_dim": head_dim,
        "vocab_size": integer(config, "vocab_size"),
        "context": longest,
        "n_rope": 1,
        "n_experts": n_experts,
        "n_active": integer(config, "num_experts_per_tok") if n_experts else 0,
        "shared_dim": integer(config, family.shared) if shared else 0,
        "norm_eps": number(config, "rms_norm_eps", zero=True),
        **{field: formula(config) for field, formula in numbers.items()},
    }
    # The format's limits, before anything is sized by these numbers
    flatfile.make_header("fp16", model.fields)
    turning = rope.rotary_dim(config, head_dim)
    if turning != head_dim and not family.partial:
        raise ConvertError(
            f"partial_rotary_factor: {turning} of a head's {head_dim} elements turn; of {family.name} all do"
        )
    tables = rope.tables(config, kinds, head_dim, turning, family.local_rope, context)
    model.notes += tables.notes
    model.fields["context"] = context or tables.context
    model.fields["n_rope"] = len(tables.angles)
    flatfile.make_header("fp16", model.fields)
    model.angles, model.layers = tables.angles, list(zip(tables.layers, windows, strict=True))
    if family.interleaved or turning != head_dim:
        model.head_order = rope.head_order(head_dim, turning, family.interleaved)
    return model


def renamed(family: Family, name: str) -> str:
    """A tensor's name as TENSORS, FUSED and STACKS have it."""
    for theirs, ours in family.rename:
        name = name.replace(theirs, ours)
    return name


def named(model: Model, tensors: Mapping[str, Tensor], rename: bool = True) -> dict[str, Tensor]:
    """The tensors under the names of TENSORS and FUSED, stacks of experts taken apart, computed ones left
    out, and those of a model's pictures too."""
    family, pictures = model.family, 0
    result: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        name = renamed(family, name) if rename else name
        if name.endswith(IGNORED):
            continue
        if model.wrapped and name.startswith(PICTURES):
            pictures += 1
            continue
        stack = next((key for key in STACKS if family.experts and name.endswith("." + key)), None)
        prefix = name[: -len(stack)] if stack else ""
        parts = (
            sources.unstack(
                tensor, tuple(prefix + part for part in STACKS[stack]), int(model.fields["n_experts"])
            )
            if stack
            else {name: tensor}
        )
        twice = result.keys() & parts.keys()
        if twice:
            raise ConvertError(f"{sources.listing(sorted(twice))} occurs twice, under different spellings")
        result.update(parts)
    if pictures:
        model.notes.append(f"only the text part is converted: {pictures} tensors for pictures are left out")
    return result


def canonical(model: Model, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The named() tensors as the flat file has them: fused matrices taken apart, heads in the order in which
    element i turns with i + head_dim / 2, and what is added to or multiplied into a norm's vector."""
    result: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        stem, _, kind = name.rpartition(".")
        fused = next((end for end in FUSED if stem.endswith(end)), None)
        if fused is None:
            parts = {name: tensor}
        else:
            rows = tuple(model.sizes[size] for _, size in FUSED[fused])
            groups = int(model.fields["n_kv_heads"]) if "grouped" in fused else 1
            prefix = stem[: -len(fused)]
            names = [f"{prefix}.{part}.{kind}" for part, _ in FUSED[fused]]
            parts = dict(zip(names, sources.split(tensor, rows, groups), strict=True))
        twice = result.keys() & parts.keys()
        if twice:
            raise ConvertError(f"{sources.listing(sorted(twice))} occurs twice, fused and alone")
        for part, found in parts.items():
            result[part] = folded(model, part, found)
    return result


def folded(model: Model, name: str, tensor: Tensor) -> Tensor:
    """A tensor with what the converter computes in advance."""
    stem = name.rpartition(".")[0]
    if model.head_order is not None and stem.endswith((".q_proj", ".k_proj", ".q_norm", ".k_norm")):
        tensor = sources.in_heads(tensor, model.head_order)
    scale = model.logit_scale if stem == "model.norm" else 1.0
    offset = model.family.norm_offset if stem.endswith(("norm", "layernorm")) else 0.0
    if scale != 1 or offset:
        tensor = sources.Linear(tensor, scale, offset * scale)
    return tensor
