"""The table of model families: what a config.json of each means in the terms of the flat file's header, and
how the names of its tensors differ from those of tensors.py.

Adding a family is adding a row to FAMILIES. What can be computed before the first token is folded into the
tensors (1 + w of norms, scales of the logits, the order of a head's elements); a quirk that is not in a row
is refused by name, never passed on to the engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pyllm._llm import lib

from .configuration import Config, integer, layer_count, number
from .sources import ConvertError, shown

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


def sparse_by_step(config: Config, i: int) -> bool:
    """Qwen2MoeDecoderLayer: every so many-th layer has experts, but for those that are listed."""
    dense, step = config.get("mlp_only_layers"), config.get("decoder_sparse_step")
    if not isinstance(dense, (list, type(None))):
        raise ConvertError(f"configuration: mlp_only_layers is {shown(dense)}, not a list of layers")
    step = 1 if step is None else integer(config, "decoder_sparse_step")
    return i not in (dense or ()) and (i + 1) % step == 0


def sparse_after_first(config: Config, i: int) -> bool:
    """Glm4MoeDecoderLayer: the first layers are dense."""
    return i >= integer(config, "first_k_dense_replace", zero=True)


def sparse_between(config: Config, i: int) -> bool:
    """Ernie4_5_MoeDecoderLayer: every so many-th layer from a first to a last has experts; -1 is the last of
    all."""
    last = config["moe_layer_end_index"]
    last = layer_count(config) - 1 if last == -1 else integer(config, "moe_layer_end_index", zero=True)
    first = integer(config, "moe_layer_start_index", zero=True)
    return first <= i <= last and (i + 1) % integer(config, "moe_layer_interval") == 0


@dataclass(frozen=True)
class Family:
    """One row of the table. `defaults` are transformers' own, for keys that config.json may leave out."""

    name: str
    defaults: Mapping[str, Any] = field(default_factory=dict)
    rename: tuple[tuple[str, str], ...] = ()  # substitutions that turn its tensor names into those of TENSORS
    flags: int = 0  # of llm_layer
    switches: Mapping[str, int] = field(default_factory=lambda: BIAS)  # a key of the configuration -> a flag
    # fields of llm_header and llm_layer
    numbers: Mapping[str, Callable[[Config], float]] = field(default_factory=dict)
    logit_scale: Callable[[Config], float] = lambda config: 1.0  # multiplies the logits
    norm_offset: float = 0.0  # what is added to the vector of every norm
    activation: int = lib.LLM_SILU
    ffn: str = "intermediate_size"  # the key of the feed-forward block's (or one expert's) inner width
    experts: bool = False
    sparse: Callable[[Config, int], bool] = lambda config, i: True  # whether layer i has experts, if any has
    dense: str = "intermediate_size"  # the key of the inner width of layers without experts
    shared: str | None = None  # the key of the shared expert's inner width
    n_shared: str | None = None  # the key of the number of shared experts, which are one of all their widths
    kinds: Callable[[Config], list[str]] = sliding(lambda config, i: False, listed=False)
    ropes: Callable[[Config, list[str]], list[str | None]] = ropes_of_kinds
    local_rope: bool = False  # layers with a window have a rotary table of their own
    partial: bool = False  # only the first elements of a head may turn
    interleaved: bool = False  # elements 2i and 2i + 1 turn together
    # key -> the values of it that are supported
    only: Mapping[str, tuple[object, ...]] = field(default_factory=dict)


WINDOW = {"use_sliding_window": True, "sliding_window": None}
QWEN = {"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28}
QWEN_KINDS = sliding(lambda config, i: i >= integer(config, "max_window_layers", zero=True))
EVERY = sliding(lambda config, i: True, listed=False)
UNGROUPED = {"n_group": (None, 1), "topk_group": (None, 1)}  # all experts are chosen from together
SHARED_NAMES = (
    (".mlp.shared_experts.", ".mlp.shared_expert."),
    (".mlp.gate.e_score_correction_bias", ".mlp.e_score_correction_bias"),
)
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
        sparse=sparse_by_step,
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
        sparse=sparse_by_step,
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
        activation=lib.LLM_GELU,
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
        flags=lib.LLM_POST_NORM,
        activation=lib.LLM_GELU,
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
        flags=lib.LLM_POST_NORM | lib.LLM_QK_NORM,
        activation=lib.LLM_GELU,
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
    "Glm4MoeForCausalLM": Family(
        "GLM-4.5",
        defaults={
            "num_key_value_heads": 8,
            "rms_norm_eps": 1e-5,
            "partial_rotary_factor": 0.5,
            "moe_intermediate_size": 1408,
            "num_experts_per_tok": 8,
            "n_shared_experts": 1,
            "first_k_dense_replace": 1,
            "norm_topk_prob": True,
        },
        rename=SHARED_NAMES,
        flags=lib.LLM_ROUTER_SIGMOID | lib.LLM_ROUTER_BIAS,
        switches={"use_qk_norm": lib.LLM_QK_NORM, **BIAS, **NORMALIZE},
        ffn="moe_intermediate_size",
        experts=True,
        sparse=sparse_after_first,
        shared="moe_intermediate_size",
        n_shared="n_shared_experts",
        partial=True,
        only=UNGROUPED,
    ),
    "Dots1ForCausalLM": Family(
        "dots.llm1",
        defaults={
            "moe_intermediate_size": 1408,
            "first_k_dense_replace": 0,
            **WINDOW,
            "sliding_window": 4096,
            "max_window_layers": 62,
        },
        rename=SHARED_NAMES,
        flags=lib.LLM_QK_NORM | lib.LLM_ROUTER_SIGMOID | lib.LLM_ROUTER_BIAS,
        switches=BIAS | NORMALIZE,
        ffn="moe_intermediate_size",
        experts=True,
        sparse=sparse_after_first,
        shared="moe_intermediate_size",
        n_shared="n_shared_experts",
        kinds=sliding(
            lambda config, i: (
                config["sliding_window"] is not None and i >= integer(config, "max_window_layers", zero=True)
            )
        ),
        only=UNGROUPED,
    ),
    "DeepseekForCausalLM": Family(
        "DeepSeek V1",
        defaults={"num_experts_per_tok": 6, "first_k_dense_replace": 0, "norm_topk_prob": False},
        rename=SHARED_NAMES,
        switches=BIAS | NORMALIZE,
        ffn="moe_intermediate_size",
        experts=True,
        sparse=sparse_after_first,
        shared="moe_intermediate_size",
        n_shared="n_shared_experts",
        only={"scoring_func": (None, "softmax"), "moe_layer_freq": (None, 1)},
    ),
    "Ernie4_5_MoeForCausalLM": Family(
        "ERNIE 4.5 MoE",
        defaults={
            "num_key_value_heads": 4,
            "rms_norm_eps": 1e-5,
            "rope_theta": 500000.0,
            "tie_word_embeddings": True,
            "moe_intermediate_size": 1536,
            "moe_k": 6,
            "moe_num_shared_experts": 2,
            "moe_layer_start_index": 1,
            "moe_layer_end_index": -1,
            "moe_layer_interval": 1,
        },
        rename=(*SHARED_NAMES, (".mlp.moe_statics.", ".mlp.")),
        flags=lib.LLM_ROUTER_NORMALIZE | lib.LLM_ROUTER_BIAS,
        switches={"use_bias": lib.LLM_QKV_BIAS},
        ffn="moe_intermediate_size",
        experts=True,
        sparse=sparse_between,
        shared="moe_intermediate_size",
        n_shared="moe_num_shared_experts",
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
    "deepseek": "DeepseekForCausalLM",
    "dots1": "Dots1ForCausalLM",
    "ernie4_5": "Ernie4_5ForCausalLM",
    "ernie4_5_moe": "Ernie4_5_MoeForCausalLM",
    "exaone4": "Exaone4ForCausalLM",
    "gemma": "GemmaForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3": "Gemma3ForConditionalGeneration",
    "gemma3_text": "Gemma3ForCausalLM",
    "glm": "GlmForCausalLM",
    "glm4": "Glm4ForCausalLM",
    "glm4_moe": "Glm4MoeForCausalLM",
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
ENCODER = "its attention looks ahead (an encoder)"
LAYER_NORM = "it normalises with LayerNorm (a mean, a bias), and this format has RMSNorm only"
LATENT = "its attention is over compressed keys and values (MLA)"
RECURRENT = "some of its layers are recurrent (a state-space model), not attention"
REASONS: dict[str, str] = {
    "GptOssForCausalLM": "its attention has sinks and its experts have biases and a clamped gate",
    "DeepseekV2ForCausalLM": LATENT,
    "DeepseekV3ForCausalLM": LATENT,
    "DeepseekV32ForCausalLM": LATENT,
    "KimiK25ForConditionalGeneration": LATENT,
    "MiniCPM3ForCausalLM": LATENT,
    "Glm4MoeLiteForCausalLM": LATENT,
    "BertModel": ENCODER,
    "RobertaModel": ENCODER,
    "XLMRobertaModel": ENCODER,
    "ModernBertModel": ENCODER,
    "NomicBertModel": ENCODER,
    "EmbeddingGemma": ENCODER,  # its own architecture in GGUF only
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
    "Gemma4ForCausalLM": "it normalises values, and has embeddings and a scale for each layer",
    "Gemma4ForConditionalGeneration": "it normalises values, and has embeddings and a scale for each layer",
    "ApertusForCausalLM": "its feed-forward block has no gate",
    "ArceeForCausalLM": "its feed-forward block has no gate",
    "MllamaForConditionalGeneration": "some of its layers attend to pictures",
    "HunYuanDenseV1ForCausalLM": "it normalises queries and keys after the rotation",
    "BitNetForCausalLM": "its weights are ternary and its blocks have norms of their own",
    "QWenLMHeadModel": "it is the first Qwen, in a layout of its own; Qwen1.5 and later can be converted",
    "BaichuanForCausalLM": "its matrices are in a layout of its own, and the 13B model has ALiBi",
}

# What a configuration has that leaves a key out, and the values that are supported, of every family
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
ONLY = {
    "hidden_act": ("silu", "swish"),
    "is_causal": (None, True),  # others look ahead, as encoders do
    "use_bidirectional_attention": (None, False),
}
