"""Gemma: norms to which 1 is added, a norm behind each block; from 3n on layers that differ in their widths,
share keys and values, and have embeddings of their own."""

from __future__ import annotations

from dataclasses import replace
from statistics import NormalDist

from pyllm._llm import lib

from ..configuration import Config, integer, layer_count, number, switch
from ..flatfile import Layer
from ..sources import ConvertError, shown
from .common import WINDOW, but_every, in_layer, value_of
from .family import Family, sliding

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
NUMBERS_BY_LAYER = {  # of models with embeddings by layer
    **GEMMA_NUMBERS,
    "attn_scale": lambda config: 1.0,
    "ple_scale": lambda config: (number(config, "hidden_size_per_layer_input") / 2) ** 0.5,
}
FOLDED_BY_LAYER = {"model.per_layer_projection_norm": lambda config: 0.5**0.5}
GEMMA_ONLY = {
    "hidden_act": ("gelu_pytorch_tanh", "gelu"),  # transformers reads gelu as the tanh form
    "hidden_activation": (None, "gelu_pytorch_tanh"),
}
GEMMA4_EXPERTS = (  # the dense block is the shared expert, with norms of its own
    (".pre_feedforward_layernorm.", ".mlp.shared_layernorm."),
    (".pre_feedforward_layernorm_2.", ".pre_feedforward_layernorm."),
    (".post_feedforward_layernorm_1.", ".mlp.shared_post_layernorm."),
    (".post_feedforward_layernorm_2.", ".mlp.experts_post_layernorm."),
    (".mlp.gate_proj.", ".mlp.shared_expert.gate_proj."),
    (".mlp.up_proj.", ".mlp.shared_expert.up_proj."),
    (".mlp.down_proj.", ".mlp.shared_expert.down_proj."),
    (".experts.", ".mlp.experts."),
    (".router.proj.", ".mlp.gate."),
    (".router.scale", ".mlp.router_norm.weight"),
    (".router.per_expert_scale", ".mlp.router_scale"),
)
GEMMA3N_KINDS = sliding(but_every(5))


def with_full_last(config: Config) -> list[str]:
    """Gemma4TextConfig: but for every sixth layer all have a window; the last one never has."""
    kinds = sliding(but_every(6))(config)
    return [*kinds[:-1], "full_attention"] if isinstance(kinds, list) else kinds


def kv_layer(config: Config, kinds: list[str], i: int) -> int | None:
    """The layer whose keys and values layer i uses: the last num_kv_shared_layers use those of the last layer
    of their kind before them; the others make their own."""
    first = layer_count(config) - integer(config, "num_kv_shared_layers", zero=True)
    if i < first:
        return None
    makers = [k for k in range(max(0, first)) if kinds[k] == kinds[i]]
    if not makers:
        shared = config["num_kv_shared_layers"]
        raise ConvertError(
            f"configuration: num_kv_shared_layers is {shared}, which leaves layer {i} no layer of its kind, "
            f"{shown(kinds[i])}, to have keys and values from"
        )
    return makers[-1]


def sizes_of_layer(config: Config, kinds: list[str], i: int) -> Config:
    """The configuration with what is another in layer i: by per_layer_config, or the keys it was made of."""
    listed = config.get("per_layer_config")
    found: object = {}
    if listed is not None:
        found = listed.get(str(i), {}) if isinstance(listed, dict) else listed
    elif kinds[i] == "full_attention":
        found = {"head_dim": config["global_head_dim"]}
        if switch(config, "attention_k_eq_v") and config.get("num_global_key_value_heads") is not None:
            found |= {"num_key_value_heads": config["num_global_key_value_heads"]}
    if not isinstance(found, dict) or not found.keys() <= {"head_dim", "num_key_value_heads"}:
        raise ConvertError(f"configuration: per_layer_config has {shown(found)}, which is not supported")
    return config | found


def gemma3n_config(config: Config) -> Config:
    """Gemma3nTextConfig: layers may differ in their inner widths."""
    widths = config["intermediate_size"]
    if not isinstance(widths, list):
        return config
    in_layer(config, "intermediate_size", 0)
    return config | {"intermediate_size": widths[0], "intermediate_sizes": widths}


def gate_cut(config: Config, i: int) -> float:
    """Gemma3nTextMLP._gaussian_topk: so many standard deviations above the mean is the share of gates that
    layer i leaves out, if they are spread like Gaussian numbers."""
    shares = config.get("activation_sparsity_pattern")
    if shares is None:
        shares = [0.95 if k < 10 < layer_count(config) else 0.0 for k in range(layer_count(config))]
    if not isinstance(shares, list) or len(shares) != layer_count(config):
        raise ConvertError("configuration: activation_sparsity_pattern has not one entry for each layer")
    key = "activation_sparsity_pattern"
    share = number({key: shares[i]}, key, zero=True)
    if share == 0:
        return 0.0
    if share >= 1 or share == 0.5:  # half: what a file says of layers that leave out none
        raise ConvertError(f"configuration: {key} has {shown(shares[i])}, which is not supported")
    return NormalDist().inv_cdf(share)


def gemma3n_layer(config: Config, i: int, kind: str, layer: Layer) -> Layer:
    """Gemma3nTextDecoderLayer."""
    maker = kv_layer(config, GEMMA3N_KINDS(config), i)
    some = config.get("intermediate_sizes") is not None
    return replace(
        layer,
        flags=layer.flags | (lib.LLM_V_NORM if maker is None else 0),
        kv_layer=maker,
        ffn_dim=in_layer(config, "intermediate_sizes", i) if some else layer.ffn_dim,
        low_rank=integer(config, "laurel_rank"),
        gate_cut=gate_cut(config, i),
    )


def gemma4_layer(config: Config, i: int, kind: str, layer: Layer) -> Layer:
    """Gemma4TextDecoderLayer: heads of two sizes, keys that are values, keys and values of another layer."""
    kinds = with_full_last(config)
    sizes, maker = sizes_of_layer(config, kinds, i), kv_layer(config, kinds, i)
    layer = replace(
        layer,
        head_dim=integer(sizes, "head_dim"),
        n_kv_heads=integer(sizes, "num_key_value_heads"),
        kv_layer=maker,
    )
    if maker is None:
        same = switch(config, "attention_k_eq_v") and kind == "full_attention"
        return replace(layer, flags=layer.flags | lib.LLM_V_NORM | (lib.LLM_V_IS_K if same else 0))
    if not switch(config, "use_double_wide_mlp"):
        return layer
    dense = "shared_dim" if layer.n_experts else "ffn_dim"
    return replace(layer, **{dense: 2 * integer(config, "intermediate_size")})


GEMMA4 = Family(
    "Gemma 4",
    defaults={
        **GEMMA,
        **WINDOW,
        "vocab_size": 262144,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 30,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "max_position_embeddings": 131072,
        "sliding_window": 512,
        "global_head_dim": 512,
        "num_kv_shared_layers": 0,
        "hidden_size_per_layer_input": 256,
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            "full_attention": {
                "rope_type": "proportional",
                "partial_rotary_factor": 0.25,
                "rope_theta": 1e6,
            },
        },
    },
    rename=GEMMA_NAMES,
    with_experts=GEMMA4_EXPERTS,
    flags=lib.LLM_POST_NORM
    | lib.LLM_QK_NORM
    | lib.LLM_LAYER_SCALED
    | lib.LLM_ROUTER_NORMALIZE
    | lib.LLM_ROUTER_SCALED
    | lib.LLM_SHARED_NORMS,
    activation=lib.LLM_GELU,
    numbers=NUMBERS_BY_LAYER,
    folded={
        **FOLDED_BY_LAYER,
        ".mlp.router_norm": lambda config: number(config, "hidden_size") ** -0.5,
    },
    ffn="moe_intermediate_size",
    experts=True,
    sparse=lambda config, i: switch(config, "enable_moe_block"),
    shared="intermediate_size",
    kinds=with_full_last,
    vary=gemma4_layer,
    ple="hidden_size_per_layer_input",
    local_rope=True,
    only=GEMMA_ONLY | {"use_bidirectional_attention": (None, False, "vision")},  # of pictures only
)
ROWS: dict[str, Family] = {
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
        kinds=sliding(but_every(2)),
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
        kinds=sliding(but_every("sliding_window_pattern")),
        local_rope=True,
        only=GEMMA_ONLY | {"attn_logit_softcapping": (None,)},
    ),
    "Gemma3nForCausalLM": Family(
        "Gemma 3n",
        defaults={
            **GEMMA,
            **WINDOW,
            "vocab_size": 262400,
            "hidden_size": 2048,
            "intermediate_size": 16384,
            "num_hidden_layers": 35,
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
            "max_position_embeddings": 32768,
            "sliding_window": 512,
            "rope_theta": 1e6,
            "rope_local_base_freq": 10000.0,
            "final_logit_softcapping": 30.0,
            "num_kv_shared_layers": 15,
            "hidden_size_per_layer_input": 256,
            "vocab_size_per_layer_input": 262144,
            "altup_num_inputs": 4,
            "altup_active_idx": 0,
            "altup_correct_scale": True,
            "laurel_rank": 64,
        },
        rename=GEMMA_NAMES,
        flags=lib.LLM_POST_NORM | lib.LLM_QK_NORM,
        activation=lib.LLM_GELU,
        numbers=NUMBERS_BY_LAYER,
        folded={
            **FOLDED_BY_LAYER,
            ".altup.router_norm": lambda config: 1 / number(config, "hidden_size"),
        },
        kinds=GEMMA3N_KINDS,
        prepare=gemma3n_config,
        vary=gemma3n_layer,
        ple="hidden_size_per_layer_input",
        ple_vocab="vocab_size_per_layer_input",
        streams="altup_num_inputs",
        local_rope=True,
        only=GEMMA_ONLY | {"altup_active_idx": (0,), "altup_correct_scale": (True,)},
    ),
    "Gemma4ForCausalLM": GEMMA4,
    "Gemma4UnifiedForCausalLM": replace(
        GEMMA4,
        name="Gemma 4 without an encoder of pictures",
        defaults=dict(GEMMA4.defaults) | {"hidden_size_per_layer_input": None},
    ),
}
