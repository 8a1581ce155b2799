"""The table of model families: what a config.json of each means in the terms of the flat file's header, and
how the names of its tensors differ from those of tensors.py.

Adding a family is adding a row to FAMILIES. What can be computed before the first token is folded into the
tensors (1 + w of norms, scales of the logits, the order of a head's elements); a quirk that is not in a row
is refused by name, never passed on to the engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from statistics import NormalDist
from typing import Any

from pyllm._llm import lib

from .configuration import Config, integer, layer_count, number, switch
from .flatfile import Layer
from .sources import ConvertError, shown

BIAS = {"attention_bias": lib.LLM_QKV_BIAS}
BIASES = {"attention_bias": lib.LLM_QKV_BIAS | lib.LLM_ATTN_OUT_BIAS}


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
    """SmolLM3Config, Llama4TextConfig: layers whose entry in no_rope_layers is 0 do not turn; [] is none."""
    n_layers, turns = layer_count(config), config.get("no_rope_layers")
    if turns is None or turns == []:
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


def with_full_last(config: Config) -> list[str]:
    """Gemma4TextConfig: but for every sixth layer all have a window; the last one never has."""
    kinds = sliding(lambda config, i: (i + 1) % 6 != 0)(config)
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


GEMMA3N_KINDS = sliding(lambda config, i: (i + 1) % 5 != 0)


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


def ropes_of_none(config: Config, kinds: list[str]) -> list[str | None]:
    """GPT2Model: positions are learned."""
    return [None] * len(kinds)


def ropes_of_windows(config: Config, kinds: list[str]) -> list[str | None]:
    """Cohere2Attention: only layers with a window turn."""
    some = config["sliding_window"] is not None
    return [kind if some and kind == "sliding_attention" else None for kind in kinds]


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


def listed_sparse(otherwise: Callable[[Config, int], bool]) -> Callable[[Config, int], bool]:
    """mlp_layer_types says which layers are "sparse" and which "dense"; without it, a rule."""

    def sparse(config: Config, i: int) -> bool:
        kinds = config.get("mlp_layer_types")
        if kinds is None:
            return otherwise(config, i)
        if not isinstance(kinds, list) or len(kinds) != layer_count(config):
            raise ConvertError("configuration: mlp_layer_types has not one entry for each layer")
        if kinds[i] not in ("dense", "sparse"):
            raise ConvertError(
                f"configuration: mlp_layer_types has {shown(kinds[i])}, which is not supported"
            )
        return bool(kinds[i] == "sparse")

    return sparse


def in_layer(config: Config, key: str, i: int) -> int:
    """Layer i's entry of a list with one for each."""
    found = config[key]
    if not isinstance(found, list) or len(found) != layer_count(config):
        raise ConvertError(f"configuration: {key} has not one entry for each layer")
    return integer({key: found[i]}, key)


def alike(*keys: str) -> Callable[[Config], Config]:
    """Keys that may have a list with an entry for each layer, of which all are the same."""

    def prepare(config: Config) -> Config:
        own = {}
        for key in keys:
            found = config.get(key)
            if isinstance(found, list):
                if not found or any(value != found[0] for value in found):
                    raise ConvertError(f"configuration: {key} differs between layers, which is not supported")
                own[key] = found[0]
        return config | own

    return prepare


def of_rope(key: str) -> Callable[[Config], Any]:
    """A value of the rotary configuration."""

    def find(config: Config) -> Any:
        rope = config.get("rope_parameters") or config.get("rope_scaling")
        return rope.get(key) if isinstance(rope, dict) else None

    return find


def llama4_beta(config: Config) -> float:
    """Ministral3Attention: how fast queries grow; 0: they do not."""
    return of_rope("llama_4_scaling_beta")(config) or 0.0


def llama4_span(config: Config) -> int:
    span = of_rope("original_max_position_embeddings")(config)
    return integer({"original_max_position_embeddings": span}, "original_max_position_embeddings")


def mimo_config(config: Config) -> Config:
    """MiMoV2FlashConfig: a window's size without the token itself."""
    if config.get("sliding_window_size") is None:
        return config
    return config | {"sliding_window": integer(config, "sliding_window_size") + 1}


def mimo_layer(config: Config, i: int, kind: str, layer: Layer) -> Layer:
    """MiMoV2FlashAttention: layers with a window have twice the key heads, and sinks."""
    if kind == "full_attention":
        return layer
    flags = layer.flags | lib.LLM_SINK
    return replace(layer, flags=flags, n_kv_heads=2 * layer.n_kv_heads)


def ungrouped_if_greedy(config: Config) -> Config:
    """DeepseekV2TopkRouter: groups matter only where the method is of groups."""
    return config | ({"n_group": None} if config["topk_method"] == "greedy" else {})


def best_of_group(config: Config, i: int, kind: str, layer: Layer) -> Layer:
    """DeepseekV2TopkRouter: a group is as good as its best expert."""
    return replace(layer, flags=layer.flags | (lib.LLM_ROUTER_BEST if layer.n_groups else 0))


def laguna_layer(config: Config, i: int, kind: str, layer: Layer) -> Layer:
    """LagunaAttention: layers differ in their heads; gates are of heads or of their elements."""
    gating = config["gating"]
    flags = layer.flags | (lib.LLM_OUT_GATE_HEAD if gating in (True, "per-head") else 0)
    given = config.get("num_attention_heads_per_layer") is not None
    n_heads = in_layer(config, "num_attention_heads_per_layer", i) if given else layer.n_heads
    return replace(layer, flags=flags, n_heads=n_heads)


def llama4_layer(config: Config, i: int, kind: str, layer: Layer) -> Layer:
    """Llama4TextAttention: layers that turn normalise queries and keys then, the queries of others grow."""
    if turning_layers(config)[i]:
        norms = lib.LLM_QK_NORM | lib.LLM_QK_NORM_LATE
        return replace(layer, flags=layer.flags | (norms if config["use_qk_norm"] else 0))
    if not config["attn_temperature_tuning"]:
        return layer
    growth, span = number(config, "attn_scale"), integer(config, "floor_scale")
    return replace(layer, query_growth=growth, query_span=span, query_shift=1)


def llama4_sparse(config: Config, i: int) -> bool:
    """Llama4TextDecoderLayer: the layers of a list, or every so many-th."""
    if config.get("moe_layers") is None:
        return (i + 1) % integer(config, "interleave_moe_layer_step") == 0
    if not isinstance(config["moe_layers"], list):
        raise ConvertError(
            f"configuration: moe_layers is {shown(config['moe_layers'])}, not a list of layers"
        )
    return i in config["moe_layers"]


def chunked(config: Config) -> list[str]:
    """Llama4TextConfig: layers that turn attend within chunks."""
    listed: list[str] | None = config.get("layer_types")
    if listed is not None:
        return listed
    some = config.get("attention_chunk_size") is not None
    return ["chunked_attention" if some and turns else "full_attention" for turns in turning_layers(config)]


def own_ropes(config: Config, kinds: list[str]) -> list[str | None]:
    """GraniteSWAModel: each layer has a rotary base, 0 or null where it does not turn. What each comes to is
    put into rope_parameters, under the base's number."""
    bases = config.get("layer_rope_theta")
    if bases is None:
        return list(kinds)
    if not isinstance(bases, list) or len(bases) != len(kinds):
        raise ConvertError("configuration: layer_rope_theta has not one entry for each layer")
    return [f"base {base}" if base else None for base in bases]


def with_own_ropes(config: Config) -> Config:
    """The configuration with what own_ropes names."""
    bases, rope = config.get("layer_rope_theta"), config.get("rope_scaling") or config.get("rope_parameters")
    if not isinstance(bases, list) or not isinstance(rope, (dict, type(None))):
        return config
    own = {f"base {base}": (rope or {}) | {"rope_theta": base} for base in bases if base}
    return config | {"rope_scaling": None, "rope_parameters": own or rope}


def convolving(config: Config) -> list[str]:
    """Lfm2Config: layers that are not in full_attn_idxs are convolutions."""
    kinds, attending = config.get("layer_types"), config.get("full_attn_idxs")
    if kinds is not None:
        found: list[str] = kinds
        return found
    if not isinstance(attending, (list, type(None))):
        raise ConvertError(f"configuration: full_attn_idxs is {shown(attending)}, not a list of layers")
    layers = range(layer_count(config))
    attends = set(layers if attending is None else attending)
    return ["full_attention" if i in attends else "conv" for i in layers]


def every_other(config: Config) -> list[str]:
    """Qwen3NextConfig: every so many-th layer has attention."""
    kinds = config.get("layer_types")
    if kinds is not None:
        found: list[str] = kinds
        return found
    step = integer(config, "full_attention_interval")
    linear = [
        "full_attention" if (i + 1) % step == 0 else "linear_attention" for i in range(layer_count(config))
    ]
    return linear


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
    norm_offset: float = 0.0  # what is added to the weights of every norm
    activation: int | None = lib.LLM_SILU  # None: what ACTIVATIONS has for hidden_act
    ffn: str = "intermediate_size"  # the key of the feed-forward block's (or one expert's) inner width
    experts: bool = False
    sparse: Callable[[Config, int], bool] = lambda config, i: True  # whether layer i has experts, if any has
    dense: str = "intermediate_size"  # the key of the inner width of layers without experts
    shared: str | None = None  # the key of the shared expert's inner width
    n_shared: str | None = None  # the key of the number of shared experts, which are one of all their widths
    kinds: Callable[[Config], list[str]] = sliding(lambda config, i: False, listed=False)
    ropes: Callable[[Config, list[str]], list[str | None]] = ropes_of_kinds
    # what is different in layer i of a kind
    vary: Callable[[Config, int, str, Layer], Layer] = lambda config, i, kind, layer: layer
    prepare: Callable[[Config], Config] = lambda config: config  # the configuration as the others read it
    value_scale: Callable[[Config], float] = lambda config: 1.0  # multiplies the values of attention
    # ends of the names of tensors that its checkpoints do not have -> what all of their numbers are
    absent: Mapping[str, float] = field(default_factory=dict)
    transposed: bool = False  # stacks of experts have a column for each output
    alternating: bool = False  # and rows of gate and up take turns in them
    local_rope: bool = False  # layers with a window have a rotary table of their own
    partial: bool = False  # only the first elements of a head may turn
    interleaved: bool = False  # elements 2i and 2i + 1 turn together
    ple: str | None = None  # the key of the width of embeddings by layer
    ple_vocab: str | None = None  # the key of how many tokens have them; the others have those of token 0
    streams: str | None = None  # the key of the number of residual streams
    with_experts: tuple[tuple[str, str], ...] = ()  # substitutions before `rename`, where there are experts
    # the end of a tensor's name, without the last part -> what it is multiplied with
    folded: Mapping[str, Callable[[Config], float]] = field(default_factory=dict)
    backwards: bool = False  # positions turn the other way
    header: int = 0  # flags of llm_header
    keys: Mapping[str, str] = field(default_factory=dict)  # its names of keys -> the usual ones
    base: str = ""  # with what all names of tensors but the output matrix's begin, unless it is left out
    by_input: tuple[str, ...] = ("(none)",)  # ends of names of matrices with a row for each input
    one_norm: Callable[[Config], bool] = lambda config: False  # whether blocks side by side read the same
    latent: bool = False  # keys and values are made of a latent (DeepSeek V2)
    # of kinds of layers that have a state in place of attention: their fields of llm_layer
    mixers: Mapping[str, Callable[[Config], dict[str, Any]]] = field(default_factory=dict)
    norm_eps: str = "rms_norm_eps"  # the key of it
    # key -> the values of it that are supported
    only: Mapping[str, tuple[object, ...]] = field(default_factory=dict)


WINDOW = {"use_sliding_window": True, "sliding_window": None}
QWEN = {"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28}
QWEN_KINDS = sliding(lambda config, i: i >= integer(config, "max_window_layers", zero=True))
EVERY = sliding(lambda config, i: True, listed=False)
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
LATENT = {
    "kv_lora_rank": 512,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "rope_interleave": True,
}
NO_BIAS = {".q_proj.bias": 0.0}  # without q_lora_rank queries have none where keys and the output have one
LATENT_ONLY = {"moe_layer_freq": (None, 1)}
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
    (".q_layernorm.", ".q_norm."),
    (".k_layernorm.", ".k_norm."),
    (".feed_forward.expert_bias", ".mlp.e_score_correction_bias"),
    (".feed_forward.", ".mlp."),
    *MIXTRAL_NAMES[1:],
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

EXAONE_KINDS = sliding(
    lambda config, i: (
        config["sliding_window"] is not None and (i + 1) % integer(config, "sliding_window_pattern") != 0
    )
)
HUNYUAN_NAMES = (
    (".query_layernorm.", ".q_norm."),
    (".key_layernorm.", ".k_norm."),
    (".mlp.gate.wg.", ".mlp.gate."),
    (".mlp.shared_mlp.", ".mlp.shared_expert."),
)
HUNYUAN_ONLY = {"use_qk_norm": (None, True), "use_cla": (None, False), "norm_type": (None, "rms", "hf_rms")}
ACTIVATIONS = {
    "silu": lib.LLM_SILU,
    "swish": lib.LLM_SILU,
    "gelu": lib.LLM_GELU_ERF,
    "gelu_new": lib.LLM_GELU,
    "gelu_fast": lib.LLM_GELU,
    "gelu_pytorch_tanh": lib.LLM_GELU,
    "relu2": lib.LLM_RELU2,
    "xielu": lib.LLM_XIELU,
}
GELUS: dict[str, tuple[object, ...]] = {"hidden_act": ("gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh")}
RELU2: dict[str, tuple[object, ...]] = {"hidden_act": ("relu2",)}
LAYER_NORM_EPS = {
    "layer_norm_eps": "rms_norm_eps",
    "norm_eps": "rms_norm_eps",
    "layer_norm_epsilon": "rms_norm_eps",
}
BIASED_NORM = lib.LLM_LAYER_NORM | lib.LLM_NORM_BIAS
ATTENTION_BIAS = lib.LLM_QKV_BIAS | lib.LLM_ATTN_OUT_BIAS
EVERY_BIAS = ATTENTION_BIAS | lib.LLM_FFN_BIAS
ALL_BIASES = {"attention_bias": ATTENTION_BIAS, "mlp_bias": lib.LLM_FFN_BIAS}


def parallel(config: Config) -> bool:
    """StableLmDecoderLayer: the second norm is missing where blocks are side by side."""
    return switch(config, "use_parallel_residual")


def falcon_heads(config: Config) -> Config:
    """FalconAttention and FalconDecoderLayer: which of its three kinds a model is."""
    new = switch(config, "new_decoder_architecture")
    if new and not switch(config, "parallel_attn"):
        raise ConvertError("configuration: new_decoder_architecture without parallel_attn is not supported")
    own: Config = {}
    if not new:
        own = {"num_key_value_heads": 1 if switch(config, "multi_query") else None}
    return four_times(config) | own


def falcon_shares(config: Config) -> bool:
    """FalconDecoderLayer: of blocks side by side only those of the new architecture may have two norms."""
    if not switch(config, "new_decoder_architecture"):
        return switch(config, "parallel_attn")
    return config.get("num_ln_in_parallel_attn") == 1


def trained_length(config: Config) -> Config:
    """Command R was made for longer texts than its max_position_embeddings, as another key says."""
    longest = config.get("model_max_length")
    return config if longest is None else config | {"max_position_embeddings": longest}


def apertus_rope(config: Config) -> Config:
    """ApertusConfig: Llama 3's scaling, unless the configuration says another."""
    if config.get("rope_parameters") or config.get("rope_scaling"):
        return config
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    return config | {"rope_parameters": scaling | {"original_max_position_embeddings": 8192}}


def four_times(config: Config) -> Config:
    """GPT2Config: the usual width of a feed-forward block."""
    width = config.get("intermediate_size") or 4 * integer(config, "hidden_size")
    return config | {"intermediate_size": width}


GPT2_KEYS = {
    "n_positions": "max_position_embeddings",
    "n_embd": "hidden_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_inner": "intermediate_size",
    "activation_function": "hidden_act",
    **LAYER_NORM_EPS,
}
GPT2_ONLY: dict[str, tuple[object, ...]] = {
    "scale_attn_weights": (None, True),
    "scale_attn_by_inverse_layer_idx": (None, False),
    "add_cross_attention": (None, False),
}
GPT2_NAMES = (
    ("transformer.h.", "model.layers."),
    ("transformer.wte.", "model.embed_tokens."),
    ("transformer.wpe.", "model.positions."),
    ("transformer.ln_f.", "model.norm."),
    (".ln_1.", ".input_layernorm."),
    (".ln_2.", ".post_attention_layernorm."),
    (".attn.c_attn.", ".self_attn.qkv_proj."),
    (".attn.c_proj.", ".self_attn.o_proj."),
    (".mlp.c_fc.", ".mlp.up_proj."),
    (".mlp.c_proj.", ".mlp.down_proj."),
)
GPTJ_NAMES = (
    *GPT2_NAMES[:2],
    ("transformer.ln_f.", "model.norm."),
    (".ln_1.", ".input_layernorm."),
    (".attn.out_proj.", ".self_attn.o_proj."),
    (".attn.", ".self_attn."),
    (".mlp.fc_in.", ".mlp.up_proj."),
    (".mlp.fc_out.", ".mlp.down_proj."),
)
NEOX_NAMES = (
    ("gpt_neox.layers.", "model.layers."),
    ("gpt_neox.embed_in.", "model.embed_tokens."),
    ("gpt_neox.final_layer_norm.", "model.norm."),
    ("embed_out.", "lm_head."),
    (".attention.query_key_value.", ".self_attn.grouped_qkv_proj."),
    (".attention.dense.", ".self_attn.o_proj."),
    (".mlp.dense_h_to_4h.", ".mlp.up_proj."),
    (".mlp.dense_4h_to_h.", ".mlp.down_proj."),
)
FALCON_NAMES = (
    ("transformer.h.", "model.layers."),
    ("transformer.word_embeddings.", "model.embed_tokens."),
    ("transformer.ln_f.", "model.norm."),
    (".ln_attn.", ".input_layernorm."),
    (".ln_mlp.", ".post_attention_layernorm."),
    (".self_attention.query_key_value.", ".self_attn.grouped_qkv_proj."),
    (".self_attention.dense.", ".self_attn.o_proj."),
    *NEOX_NAMES[6:],
)
PHI_NAMES = (
    ("model.final_layernorm.", "model.norm."),
    (".self_attn.dense.", ".self_attn.o_proj."),
    (".q_layernorm.", ".q_norm."),
    (".k_layernorm.", ".k_norm."),
    (".mlp.fc1.", ".mlp.up_proj."),
    (".mlp.fc2.", ".mlp.down_proj."),
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
        numbers={
            **GEMMA_NUMBERS,
            "attn_scale": lambda config: 1.0,
            "ple_scale": lambda config: (number(config, "hidden_size_per_layer_input") / 2) ** 0.5,
        },
        folded={
            "model.per_layer_projection_norm": lambda config: 0.5**0.5,
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
    "Gemma4ForCausalLM": Family(
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
        numbers={
            **GEMMA_NUMBERS,
            "attn_scale": lambda config: 1.0,
            "ple_scale": lambda config: (number(config, "hidden_size_per_layer_input") / 2) ** 0.5,
        },
        folded={
            "model.per_layer_projection_norm": lambda config: 0.5**0.5,
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
        kinds=EXAONE_KINDS,
        ropes=ropes_with_window,
    ),
    "ExaoneMoeForCausalLM": Family(
        "EXAONE MoE",
        defaults={
            "num_key_value_heads": 32,
            "rms_norm_eps": 1e-5,
            **WINDOW,
            "sliding_window": 4096,
            "sliding_window_pattern": 4,
            "moe_intermediate_size": 1024,
            "num_experts_per_tok": 8,
            "num_shared_experts": 1,
            "first_k_dense_replace": 1,
            "norm_topk_prob": True,
            "routed_scaling_factor": 2.5,
        },
        rename=SHARED_NAMES,
        flags=lib.LLM_QK_NORM | lib.LLM_ROUTER_SIGMOID | lib.LLM_ROUTER_BIAS,
        switches=NORMALIZE,
        ffn="moe_intermediate_size",
        experts=True,
        sparse=listed_sparse(sparse_after_first),
        shared="moe_intermediate_size",
        n_shared="num_shared_experts",
        kinds=EXAONE_KINDS,
        ropes=ropes_with_window,
    ),
    "SolarOpenForCausalLM": Family(
        "Solar Open",
        defaults={
            "num_key_value_heads": 8,
            "head_dim": 128,
            "rms_norm_eps": 1e-5,
            "rope_theta": 1e6,
            "moe_intermediate_size": 1280,
            "num_experts_per_tok": 8,
            "n_shared_experts": 1,
            "norm_topk_prob": True,
        },
        rename=SHARED_NAMES,
        flags=lib.LLM_ROUTER_SIGMOID | lib.LLM_ROUTER_BIAS,
        switches=BIAS | NORMALIZE,
        ffn="moe_intermediate_size",
        experts=True,
        shared="moe_intermediate_size",
        n_shared="n_shared_experts",
        partial=True,
    ),
    "HYV3ForCausalLM": Family(
        "HY 3",
        defaults={
            "num_key_value_heads": 8,
            "head_dim": 128,
            "rms_norm_eps": 1e-5,
            "rope_theta": 11158840.0,
            "moe_intermediate_size": 1536,
            "num_experts_per_tok": 8,
            "num_shared_experts": 1,
            "router_scaling_factor": 2.826,
        },
        rename=(
            (".mlp.router.gate.", ".mlp.gate."),
            (".mlp.expert_bias", ".mlp.e_score_correction_bias"),
            (".mlp.shared_mlp.", ".mlp.shared_expert."),
            *SHARED_NAMES,
        ),
        flags=lib.LLM_QK_NORM | lib.LLM_ROUTER_SIGMOID | lib.LLM_ROUTER_BIAS | lib.LLM_ROUTER_NORMALIZE,
        switches=BIASES,
        numbers={"expert_scale": value_of("router_scaling_factor")},
        ffn="moe_intermediate_size",
        experts=True,
        sparse=listed_sparse(lambda config, i: i > 0),
        shared="moe_intermediate_size",
        n_shared="num_shared_experts",
        only={"mlp_bias": (None, False), "enable_moe_fp32_combine": (None, True, False)},
    ),
    "AfmoeForCausalLM": Family(
        "AFMoE",
        defaults={
            "head_dim": 128,
            "rms_norm_eps": 1e-5,
            **WINDOW,
            "sliding_window": 1024,
            "global_attn_every_n_layers": 4,
            "moe_intermediate_size": 1408,
            "num_experts_per_tok": 6,
            "num_shared_experts": 2,
            "num_dense_layers": 1,
            "route_scale": 1.0,
            "mup_enabled": False,
        },
        rename=(
            (".post_attention_layernorm.", ".post_self_attn_layernorm."),
            (".pre_mlp_layernorm.", ".post_attention_layernorm."),
            (".mlp.router.gate.", ".mlp.gate."),
            (".mlp.expert_bias", ".mlp.e_score_correction_bias"),
            *SHARED_NAMES,
        ),
        flags=lib.LLM_QK_NORM
        | lib.LLM_POST_NORM
        | lib.LLM_OUT_GATE
        | lib.LLM_ROUTER_SIGMOID
        | lib.LLM_ROUTER_BIAS
        | lib.LLM_ROUTER_NORMALIZE,
        switches={},
        numbers={
            "embed_scale": lambda config: (
                number(config, "hidden_size") ** 0.5 if config["mup_enabled"] else 1.0
            ),
            "expert_scale": value_of("route_scale"),
        },
        ffn="moe_intermediate_size",
        experts=True,
        sparse=lambda config, i: i >= integer(config, "num_dense_layers", zero=True),
        shared="moe_intermediate_size",
        n_shared="num_shared_experts",
        kinds=sliding(lambda config, i: (i + 1) % integer(config, "global_attn_every_n_layers") != 0),
        ropes=ropes_with_window,
        only={
            "attention_bias": (None, False),
            "score_func": (None, "sigmoid"),
            "route_norm": (None, True),
            "num_expert_groups": (None, 1),
            "num_limited_groups": (None, 1),
            "n_group": (None, 1),
            "topk_group": (None, 1),
        },
    ),
    "FlexOlmoForCausalLM": Family(
        "FlexOlmo",
        defaults={"rope_theta": 500000.0, "num_experts_per_tok": 5},
        rename=OLMO2_NAMES,
        flags=OLMO2_FLAGS,
        switches=BIAS | NORMALIZE,
        experts=True,
    ),
    "GptOssForCausalLM": Family(
        "gpt-oss",
        defaults={
            "num_key_value_heads": 8,
            "head_dim": 64,
            "rms_norm_eps": 1e-5,
            "rope_theta": 150000.0,
            **WINDOW,
            "sliding_window": 128,
            "num_experts_per_tok": 4,
            "attention_bias": True,
            "swiglu_alpha": 1.702,
            "swiglu_limit": 7.0,
        },
        rename=((".mlp.router.", ".mlp.gate."),),
        flags=lib.LLM_SINK | lib.LLM_FFN_BIAS | lib.LLM_ROUTER_LOGIT_BIAS | lib.LLM_ROUTER_NORMALIZE,
        switches=BIASES,
        numbers={
            "gate_slope": value_of("swiglu_alpha"),
            "gate_limit": value_of("swiglu_limit"),
            "up_shift": lambda config: 1.0,
        },
        experts=True,
        transposed=True,
        alternating=True,
        kinds=sliding(lambda config, i: i % 2 == 0),
    ),
    "GraniteSWAForCausalLM": Family(
        "Granite SWA",
        defaults={
            "num_key_value_heads": 4,
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": True,
            **WINDOW,
            "sliding_window": 128,
        },
        flags=lib.LLM_SINK,
        switches=BIASES,
        numbers=GRANITE_NUMBERS,
        logit_scale=lambda config: 1 / value_of("logits_scaling")(config),
        kinds=sliding(lambda config, i: i % 4 != 0),
        ropes=own_ropes,
        prepare=with_own_ropes,
    ),
    "MiMoV2FlashForCausalLM": Family(
        "MiMo V2 Flash",
        defaults={
            "num_key_value_heads": 4,
            "head_dim": 192,
            "v_head_dim": 128,
            "rms_norm_eps": 1e-5,
            **WINDOW,
            "sliding_window": 129,
            "moe_intermediate_size": 2048,
            "num_experts_per_tok": 8,
            "norm_topk_prob": True,
            "attention_value_scale": 0.707,
            "rope_parameters": {
                "full_attention": {"rope_theta": 5e6, "partial_rotary_factor": 0.334},
                "sliding_attention": {"rope_theta": 10000.0, "partial_rotary_factor": 0.334},
            },
        },
        rename=((".self_attn.attention_sink_bias", ".self_attn.sinks"), *SHARED_NAMES),
        flags=lib.LLM_ROUTER_SIGMOID | lib.LLM_ROUTER_BIAS,
        switches=BIAS | NORMALIZE,
        numbers={"value_dim": lambda config: integer(config, "v_head_dim")},
        value_scale=value_of("attention_value_scale"),
        ffn="moe_intermediate_size",
        experts=True,
        sparse=listed_sparse(lambda config, i: i > 0),
        kinds=sliding(lambda config, i: i > 0 and (i + 1) % 6 != 0),
        vary=mimo_layer,
        prepare=mimo_config,
        partial=True,
    ),
    "LagunaForCausalLM": Family(
        "Laguna",
        defaults={
            "num_key_value_heads": 8,
            "head_dim": 128,
            **WINDOW,
            "sliding_window": 512,
            "moe_intermediate_size": 512,
            "shared_expert_intermediate_size": 512,
            "num_experts_per_tok": 8,
            "gating": True,
            "moe_routed_scaling_factor": 1.0,
            "rope_parameters": {
                "full_attention": {"rope_theta": 500000.0, "partial_rotary_factor": 0.5},
                "sliding_attention": {"rope_theta": 10000.0, "partial_rotary_factor": 1.0},
            },
        },
        rename=(
            (".self_attn.g_proj.", ".self_attn.gate_proj."),
            (".mlp.experts.e_score_correction_bias", ".mlp.e_score_correction_bias"),
            *SHARED_NAMES,
        ),
        flags=lib.LLM_QK_NORM
        | lib.LLM_OUT_GATE
        | lib.LLM_OUT_GATE_SOFTPLUS
        | lib.LLM_ROUTER_SIGMOID
        | lib.LLM_ROUTER_BIAS
        | lib.LLM_ROUTER_NORMALIZE,
        switches={},
        numbers={"expert_scale": value_of("moe_routed_scaling_factor")},
        ffn="moe_intermediate_size",
        experts=True,
        sparse=listed_sparse(lambda config, i: i > 0),
        shared="shared_expert_intermediate_size",
        kinds=sliding(lambda config, i: False),
        vary=laguna_layer,
        partial=True,
        only={
            "attention_bias": (None, False),
            "gating": (True, "per-head", "per-element", False),
            "moe_apply_router_weight_on_input": (None, False),
            "moe_router_logit_softcapping": (None, 0, 0.0),
        },
    ),
    "Ministral3ForCausalLM": Family(
        "Ministral 3",
        defaults={
            "num_key_value_heads": 8,
            "head_dim": 128,
            "rms_norm_eps": 1e-5,
            **WINDOW,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 1e6,
                "factor": 16.0,
                "original_max_position_embeddings": 16384,
                "mscale_all_dim": 1.0,
                "mscale": 1.0,
                "llama_4_scaling_beta": 0.1,
            },
        },
        switches={},
        numbers={"query_growth": llama4_beta, "query_span": llama4_span},
        kinds=EVERY,
    ),
    "Llama4ForCausalLM": Family(
        "Llama 4",
        defaults={
            "num_key_value_heads": 8,
            "head_dim": 128,
            "rms_norm_eps": 1e-5,
            "rope_theta": 500000.0,
            "num_experts_per_tok": 1,
            "intermediate_size_mlp": 16384,
            "interleave_moe_layer_step": 1,
            "no_rope_layer_interval": 4,
            "attention_chunk_size": 8192,
            "use_qk_norm": True,
            "attn_temperature_tuning": True,
            "floor_scale": 8192,
            "attn_scale": 0.1,
        },
        rename=((".feed_forward.router.", ".mlp.gate."), (".feed_forward.", ".mlp.")),
        flags=lib.LLM_ROUTER_SIGMOID | lib.LLM_EXPERT_INPUT,
        switches=BIASES,
        ffn="intermediate_size",
        dense="intermediate_size_mlp",
        experts=True,
        sparse=llama4_sparse,
        shared="intermediate_size",
        kinds=chunked,
        ropes=ropes_of_turning_layers,
        vary=llama4_layer,
        absent={".q_norm.weight": 1.0, ".k_norm.weight": 1.0},
        interleaved=True,
        transposed=True,
    ),
    "HunYuanDenseV1ForCausalLM": Family(
        "HunYuan",
        defaults={"rms_norm_eps": 1e-5},
        rename=HUNYUAN_NAMES,
        flags=lib.LLM_QK_NORM | lib.LLM_QK_NORM_LATE,
        switches=BIASES,
        only=HUNYUAN_ONLY,
    ),
    "HunYuanMoEV1ForCausalLM": Family(
        "HunYuan MoE",
        defaults={"rms_norm_eps": 1e-5, "moe_topk": 1},
        rename=HUNYUAN_NAMES,
        flags=lib.LLM_QK_NORM | lib.LLM_QK_NORM_LATE | lib.LLM_ROUTER_NORMALIZE,
        switches=BIASES,
        experts=True,
        shared="intermediate_size",
        prepare=alike("num_experts", "moe_topk", "num_shared_expert", "moe_intermediate_size"),
        only=HUNYUAN_ONLY | {"num_shared_expert": (None, 1), "moe_layer_num_skipped": (None, 0)},
    ),
    "CwmForCausalLM": Family(
        "CWM",
        defaults={
            "num_key_value_heads": 8,
            "head_dim": 128,
            "rms_norm_eps": 1e-5,
            "rope_theta": 1e6,
            **WINDOW,
            "sliding_window": 8192,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 1e6,
                "factor": 16.0,
                "high_freq_factor": 4.0,
                "low_freq_factor": 1.0,
                "original_max_position_embeddings": 8192,
            },
        },
        switches={},
        kinds=sliding(lambda config, i: i % 4 != 0),
    ),
    "MellumForCausalLM": Family(
        "Mellum 2",
        defaults={
            "num_key_value_heads": 4,
            "head_dim": 128,
            **WINDOW,
            "sliding_window": 1024,
            "num_experts_per_tok": 8,
            "moe_intermediate_size": 896,
            "norm_topk_prob": True,
            "rope_parameters": {
                "full_attention": {"rope_theta": 500000.0},
                "sliding_attention": {"rope_theta": 10000.0},
            },
        },
        flags=lib.LLM_QK_NORM,
        switches=BIASES | NORMALIZE,
        ffn="moe_intermediate_size",
        experts=True,
        sparse=listed_sparse(lambda config, i: True),
        kinds=sliding(lambda config, i: False),
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
FAMILIES |= {
    "GPT2LMHeadModel": Family(
        "GPT-2",
        defaults={
            "vocab_size": 50257,
            "max_position_embeddings": 1024,
            "hidden_size": 768,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "hidden_act": "gelu_new",
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": True,
        },
        rename=GPT2_NAMES,
        base="transformer.",
        by_input=("qkv_proj.weight", "o_proj.weight", "up_proj.weight", "down_proj.weight"),
        flags=BIASED_NORM | EVERY_BIAS | lib.LLM_NO_GATE,
        header=lib.LLM_POSITION_TABLE,
        switches={},
        activation=None,
        keys=GPT2_KEYS,
        prepare=four_times,
        ropes=ropes_of_none,
        only=GELUS | GPT2_ONLY,
    ),
    "GPTNeoXForCausalLM": Family(
        "GPT-NeoX",
        defaults={
            "hidden_act": "gelu",
            "rms_norm_eps": 1e-5,
            "partial_rotary_factor": 0.25,
            "use_parallel_residual": True,
            "attention_bias": True,
        },
        rename=NEOX_NAMES,
        flags=BIASED_NORM | lib.LLM_FFN_BIAS | lib.LLM_NO_GATE,
        switches={"attention_bias": ATTENTION_BIAS, "use_parallel_residual": lib.LLM_PARALLEL},
        activation=None,
        keys={"rotary_pct": "partial_rotary_factor", "rotary_emb_base": "rope_theta", **LAYER_NORM_EPS},
        partial=True,
        only=GELUS,
    ),
    "PhiForCausalLM": Family(
        "Phi-2",
        defaults={"hidden_act": "gelu_new", "rms_norm_eps": 1e-5, "partial_rotary_factor": 0.5},
        rename=PHI_NAMES,
        flags=BIASED_NORM | EVERY_BIAS | lib.LLM_NO_GATE | lib.LLM_PARALLEL,
        header=lib.LLM_OUTPUT_BIAS,
        switches={"qk_layernorm": lib.LLM_QK_NORM},
        activation=None,
        keys=LAYER_NORM_EPS,
        partial=True,
        one_norm=lambda config: True,
        only=GELUS,
    ),
    "Starcoder2ForCausalLM": Family(
        "StarCoder2",
        defaults={
            "num_key_value_heads": 2,
            "hidden_act": "gelu_pytorch_tanh",
            "rms_norm_eps": 1e-5,
            "use_bias": True,
            "tie_word_embeddings": True,
            **WINDOW,
        },
        rename=GPT2_NAMES[8:],
        flags=BIASED_NORM | lib.LLM_NO_GATE,
        switches={"use_bias": EVERY_BIAS},
        activation=None,
        keys={"norm_epsilon": "rms_norm_eps"},
        kinds=EVERY,
        only=GELUS | {"norm_type": (None, "layer_norm"), "mlp_type": (None, "default")},
    ),
    "StableLmForCausalLM": Family(
        "StableLM",
        defaults={"num_key_value_heads": 32, "rms_norm_eps": 1e-5, "partial_rotary_factor": 0.25},
        rename=PHI_NAMES[2:4],
        flags=BIASED_NORM,
        switches={
            "use_qkv_bias": lib.LLM_QKV_BIAS,
            "qk_layernorm": lib.LLM_QK_NORM | lib.LLM_QK_NORM_EACH,
            "use_parallel_residual": lib.LLM_PARALLEL,
        },
        keys={"rope_pct": "partial_rotary_factor", **LAYER_NORM_EPS},
        partial=True,
        one_norm=parallel,
        absent={".q_norm.bias": 0.0, ".k_norm.bias": 0.0},
    ),
    "OlmoForCausalLM": Family(
        "OLMo",
        defaults={"rms_norm_eps": 1e-5},
        flags=lib.LLM_LAYER_NORM,
        switches={"attention_bias": ATTENTION_BIAS},
        numbers={"qkv_clip": value_of("clip_qkv", 0.0)},
        absent={"norm.weight": 1.0},
    ),
    "GPTJForCausalLM": Family(
        "GPT-J",
        defaults={
            "vocab_size": 50400,
            "max_position_embeddings": 2048,
            "hidden_size": 4096,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
            "rotary_dim": 64,
            "hidden_act": "gelu_new",
            "rms_norm_eps": 1e-5,
        },
        rename=GPTJ_NAMES,
        base="transformer.",
        flags=BIASED_NORM | lib.LLM_FFN_BIAS | lib.LLM_NO_GATE | lib.LLM_PARALLEL,
        header=lib.LLM_OUTPUT_BIAS,
        switches={},
        activation=None,
        keys=GPT2_KEYS,
        prepare=four_times,
        partial=True,
        interleaved=True,
        one_norm=lambda config: True,
        only=GELUS,
    ),
    "GPTBigCodeForCausalLM": Family(
        "StarCoder",
        defaults={
            "vocab_size": 50257,
            "max_position_embeddings": 1024,
            "hidden_size": 768,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "hidden_act": "gelu_pytorch_tanh",
            "rms_norm_eps": 1e-5,
            "multi_query": True,
            "tie_word_embeddings": True,
        },
        rename=GPT2_NAMES,
        base="transformer.",
        flags=BIASED_NORM | EVERY_BIAS | lib.LLM_NO_GATE,
        header=lib.LLM_POSITION_TABLE,
        switches={},
        activation=None,
        keys=GPT2_KEYS,
        prepare=lambda config: four_times(config) | {"num_key_value_heads": 1},
        ropes=ropes_of_none,
        only=GELUS | {"multi_query": (True,), **GPT2_ONLY},
    ),
    "CohereForCausalLM": Family(
        "Cohere",
        defaults={
            "rms_norm_eps": 1e-5,
            "rope_theta": 500000.0,
            "logit_scale": 0.0625,
            "tie_word_embeddings": True,
        },
        flags=lib.LLM_LAYER_NORM | lib.LLM_PARALLEL,
        switches={
            "attention_bias": ATTENTION_BIAS,
            "use_qk_norm": lib.LLM_QK_NORM | lib.LLM_QK_NORM_EACH,
        },
        logit_scale=value_of("logit_scale"),
        keys=LAYER_NORM_EPS,
        prepare=trained_length,
        one_norm=lambda config: True,
        interleaved=True,
    ),
    "NemotronForCausalLM": Family(
        "Nemotron",
        defaults={"hidden_act": "relu2", "rms_norm_eps": 1e-5, "partial_rotary_factor": 0.5},
        flags=BIASED_NORM | lib.LLM_NO_GATE,
        switches=ALL_BIASES,
        activation=None,
        norm_offset=1.0,
        keys=LAYER_NORM_EPS,
        partial=True,
        only=RELU2,
    ),
    "ArceeForCausalLM": Family(
        "Arcee",
        defaults={"hidden_act": "relu2", "rms_norm_eps": 1e-5},
        flags=lib.LLM_NO_GATE,
        switches=ALL_BIASES,
        activation=None,
        only=RELU2,
    ),
    "ApertusForCausalLM": Family(
        "Apertus",
        defaults={"hidden_act": "xielu", "rms_norm_eps": 1e-5, "rope_theta": 12e6},
        rename=(
            (".attention_layernorm.", ".input_layernorm."),
            (".feedforward_layernorm.", ".post_attention_layernorm."),
        ),
        flags=lib.LLM_NO_GATE | lib.LLM_QK_NORM,
        switches={"attention_bias": ATTENTION_BIAS},
        activation=None,
        prepare=apertus_rope,
        only={"hidden_act": ("xielu",), "post_norm": (None, False), "qk_norm": (None, True)},
    ),
    "FalconForCausalLM": Family(
        "Falcon",
        defaults={
            "hidden_act": "gelu",
            "rms_norm_eps": 1e-5,
            "max_position_embeddings": 2048,
            "multi_query": True,
            "parallel_attn": True,
            "tie_word_embeddings": True,
        },
        rename=FALCON_NAMES,
        base="transformer.",
        flags=BIASED_NORM | lib.LLM_NO_GATE,
        switches={"bias": EVERY_BIAS, "parallel_attn": lib.LLM_PARALLEL},
        activation=None,
        keys={
            "num_kv_heads": "num_key_value_heads",
            "ffn_hidden_size": "intermediate_size",
            "activation": "hidden_act",
            **LAYER_NORM_EPS,
        },
        prepare=falcon_heads,
        one_norm=falcon_shares,
        only=GELUS | {"alibi": (None, False), "num_ln_in_parallel_attn": (None, 1, 2)},
    ),
    "NanoChatForCausalLM": Family(
        "nanochat",
        defaults={"hidden_act": "relu2", "final_logit_softcapping": 15.0},
        rename=PHI_NAMES[4:],
        # RMSNorm without weights is the same before the rotation and after it
        flags=lib.LLM_NO_GATE | lib.LLM_QK_NORM,
        header=lib.LLM_INPUT_NORM,
        activation=None,
        numbers={"logit_cap": value_of("final_logit_softcapping", 0.0)},
        backwards=True,
        absent={"norm.weight": 1.0},
        only=RELU2,
    ),
    "Jais2ForCausalLM": Family(
        "Jais 2",
        defaults={
            "hidden_act": "relu2",
            "rms_norm_eps": 1e-5,
            "attention_bias": True,
            "mlp_bias": True,
        },
        flags=BIASED_NORM | lib.LLM_NO_GATE,
        switches=ALL_BIASES,
        activation=None,
        keys=LAYER_NORM_EPS,
        only=RELU2,
    ),
}
FAMILIES["Cohere2ForCausalLM"] = replace(
    FAMILIES["CohereForCausalLM"],
    name="Cohere 2",
    defaults={
        "rms_norm_eps": 1e-5,
        "logit_scale": 0.0625,
        "tie_word_embeddings": True,
        **WINDOW,
        "sliding_window": 4096,
        "sliding_window_pattern": 4,
    },
    switches={"attention_bias": ATTENTION_BIAS},
    kinds=sliding(lambda config, i: (i + 1) % integer(config, "sliding_window_pattern") != 0),
    ropes=ropes_of_windows,
    only={
        "use_qk_norm": (None, False),
        "use_parallel_block": (None, True),
        "use_gated_activation": (None, True),
        "use_embedding_sharing": (None, True),
        "position_embedding_type": (None, "rope_gptj"),
        "order_of_interleaved_layers": (None, "local_attn_first"),
        "rotary_pct": (None, 1.0, 1),
        "layer_switch": (None, 4),
    },
)
DEEPSEEK_V3 = Family(
    "DeepSeek V3",
    defaults={
        **LATENT,
        "num_experts_per_tok": 8,
        "n_shared_experts": 1,
        "moe_intermediate_size": 2048,
        "routed_scaling_factor": 2.5,
        "first_k_dense_replace": 3,
        "n_group": 8,
        "topk_group": 4,
        "norm_topk_prob": True,
    },
    rename=SHARED_NAMES,
    flags=lib.LLM_ROUTER_SIGMOID | lib.LLM_ROUTER_BIAS,
    switches=BIASES | NORMALIZE,
    absent=NO_BIAS,
    ffn="moe_intermediate_size",
    experts=True,
    sparse=sparse_after_first,
    shared="moe_intermediate_size",
    n_shared="n_shared_experts",
    interleaved=True,
    latent=True,
    only=LATENT_ONLY | {"scoring_func": (None, "sigmoid"), "topk_method": (None, "noaux_tc")},
)
FAMILIES["DeepseekV3ForCausalLM"] = DEEPSEEK_V3
FAMILIES["DeepseekV2ForCausalLM"] = replace(
    DEEPSEEK_V3,
    name="DeepSeek V2",
    defaults={
        **LATENT,
        "n_shared_experts": 2,
        "moe_intermediate_size": 1407,
        "first_k_dense_replace": 0,
        "n_group": None,
        "topk_group": None,
        "topk_method": "greedy",
    },
    flags=0,
    switches=BIASES,
    prepare=ungrouped_if_greedy,
    vary=best_of_group,
    only=LATENT_ONLY
    | {
        "scoring_func": (None, "softmax"),
        "topk_method": ("greedy", "group_limited_greedy"),
        "norm_topk_prob": (None, False),
        "rope_interleave": (None, True),
    },
)
FAMILIES["Glm4MoeLiteForCausalLM"] = replace(
    DEEPSEEK_V3,
    name="GLM-4.7 Flash",
    defaults={
        **LATENT,
        "rms_norm_eps": 1e-5,
        "num_experts_per_tok": 4,
        "n_shared_experts": 1,
        "moe_intermediate_size": 1536,
        "routed_scaling_factor": 1.8,
        "n_group": 1,
        "topk_group": 1,
        "norm_topk_prob": True,
        "q_lora_rank": 768,
        "qk_nope_head_dim": 192,
        "v_head_dim": 256,
    },
    sparse=listed_sparse(lambda config, i: i > 0),
    only={**DEEPSEEK_V3.only, "first_k_dense_replace": (None, 1)},
)
FAMILIES["YoutuForCausalLM"] = Family(
    "Youtu",
    defaults={**LATENT, "tie_word_embeddings": True},
    switches=BIASES,
    absent=NO_BIAS,
    interleaved=True,
    latent=True,
)
FAMILIES["Mistral4ForCausalLM"] = replace(
    DEEPSEEK_V3,
    name="Mistral 4",
    defaults={
        **LATENT,
        "kv_lora_rank": 256,
        "q_lora_rank": 1024,
        "qk_nope_head_dim": 64,
        "num_experts_per_tok": 4,
        "n_shared_experts": 1,
        "moe_intermediate_size": 2048,
        "routed_scaling_factor": 1.0,
        "first_k_dense_replace": 0,
        "n_group": 1,
        "topk_group": 1,
        "norm_topk_prob": True,
    },
    flags=0,
    numbers={"query_growth": llama4_beta, "query_span": llama4_span},
    only=LATENT_ONLY,
)
FAMILIES["MiniCPM3ForCausalLM"] = replace(
    FAMILIES["MiniCPMForCausalLM"],
    name="MiniCPM3",
    defaults={
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
        "kv_lora_rank": 256,
        "q_lora_rank": 768,
        "qk_nope_head_dim": 64,
        "qk_rope_head_dim": 32,
        "v_head_dim": None,
        "scale_emb": 12,
        "scale_depth": 1.4,
        "dim_model_base": 256,
    },
    switches=BIASES,
    absent=NO_BIAS,
    latent=True,
)
FAMILIES["Lfm2ForCausalLM"] = Family(
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
    kinds=convolving,
    mixers={"conv": short_conv},
    norm_eps="norm_eps",
    prepare=lfm2_widths,
    only=LFM2_ONLY,
)
FAMILIES["Qwen3NextForCausalLM"] = Family(
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
    kinds=every_other,
    mixers={"linear_attention": delta_rule},
    partial=True,
    only=DELTA_ONLY,
)
FAMILIES["Qwen3_5MoeForCausalLM"] = replace(
    FAMILIES["Qwen3NextForCausalLM"],
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
    sparse=lambda config, i: True,
    only=DELTA_ONLY | {"norm_topk_prob": (None, True)},
)
FAMILIES["Qwen3_5ForCausalLM"] = Family(
    "Qwen 3.5",
    defaults={**DELTA, "num_key_value_heads": 4},
    rename=(("model.language_model.", "model."), *DELTA_NAMES),
    flags=DELTA_FLAGS,
    switches={},
    norm_offset=1.0,
    kinds=every_other,
    mixers={"linear_attention": delta_rule},
    partial=True,
    only=DELTA_ONLY,
)
FAMILIES["Lfm2MoeForCausalLM"] = Family(
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
    sparse=lambda config, i: i >= integer(config, "num_dense_layers", zero=True),
    kinds=convolving,
    mixers={"conv": short_conv},
    norm_eps="norm_eps",
    prepare=lfm2_widths,
    only=LFM2_ONLY,
)
FAMILIES["GraniteMoeSharedForCausalLM"] = replace(
    FAMILIES["GraniteMoeForCausalLM"], name="Granite MoE with a shared expert"
)
FAMILIES["GraniteMoeSWAForCausalLM"] = replace(
    FAMILIES["GraniteMoeSharedForCausalLM"],
    name="Granite MoE SWA",
    defaults={**FAMILIES["GraniteMoeForCausalLM"].defaults, **WINDOW, "sliding_window": 128},
    flags=FAMILIES["GraniteMoeForCausalLM"].flags | lib.LLM_SINK,
    switches=BIASES,
    kinds=sliding(lambda config, i: i % 4 != 0),
    ropes=own_ropes,
    prepare=with_own_ropes,
)
FAMILIES["Gemma4UnifiedForCausalLM"] = replace(
    FAMILIES["Gemma4ForCausalLM"],
    name="Gemma 4 without an encoder of pictures",
    defaults=dict(FAMILIES["Gemma4ForCausalLM"].defaults) | {"hidden_size_per_layer_input": None},
)
FAMILIES["Ernie4_5_ForCausalLM"] = FAMILIES["Ernie4_5ForCausalLM"]  # as the hub has it
FAMILIES["Glm4ForCausalLM"] = replace(FAMILIES["GlmForCausalLM"], name="GLM-4-0414", flags=lib.LLM_POST_NORM)

# The architecture of a configuration that names only its model_type, as AutoModelForCausalLM takes it
MODEL_TYPES = {
    "afmoe": "AfmoeForCausalLM",
    "cwm": "CwmForCausalLM",
    "apertus": "ApertusForCausalLM",
    "arcee": "ArceeForCausalLM",
    "cohere": "CohereForCausalLM",
    "cohere2": "Cohere2ForCausalLM",
    "deepseek": "DeepseekForCausalLM",
    "deepseek_v2": "DeepseekV2ForCausalLM",
    "deepseek_v3": "DeepseekV3ForCausalLM",
    "dots1": "Dots1ForCausalLM",
    "ernie4_5": "Ernie4_5ForCausalLM",
    "ernie4_5_moe": "Ernie4_5_MoeForCausalLM",
    "exaone4": "Exaone4ForCausalLM",
    "exaone_moe": "ExaoneMoeForCausalLM",
    "flex_olmo": "FlexOlmoForCausalLM",
    "falcon": "FalconForCausalLM",
    "gemma": "GemmaForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3": "Gemma3ForConditionalGeneration",
    "gemma3_text": "Gemma3ForCausalLM",
    "gemma3n": "Gemma3nForConditionalGeneration",
    "gemma3n_text": "Gemma3nForCausalLM",
    "gemma4": "Gemma4ForConditionalGeneration",
    "gemma4_text": "Gemma4ForCausalLM",
    "gemma4_unified": "Gemma4UnifiedForConditionalGeneration",
    "gemma4_unified_text": "Gemma4UnifiedForCausalLM",
    "glm": "GlmForCausalLM",
    "glm4": "Glm4ForCausalLM",
    "glm4_moe": "Glm4MoeForCausalLM",
    "glm4_moe_lite": "Glm4MoeLiteForCausalLM",
    "gpt_oss": "GptOssForCausalLM",
    "gpt2": "GPT2LMHeadModel",
    "gpt_bigcode": "GPTBigCodeForCausalLM",
    "gpt_neox": "GPTNeoXForCausalLM",
    "gptj": "GPTJForCausalLM",
    "granite": "GraniteForCausalLM",
    "granite_swa": "GraniteSWAForCausalLM",
    "granitemoe": "GraniteMoeForCausalLM",
    "granitemoe_swa": "GraniteMoeSWAForCausalLM",
    "granitemoeshared": "GraniteMoeSharedForCausalLM",
    "hunyuan_v1_dense": "HunYuanDenseV1ForCausalLM",
    "hunyuan_v1_moe": "HunYuanMoEV1ForCausalLM",
    "hy_v3": "HYV3ForCausalLM",
    "internlm2": "InternLM2ForCausalLM",
    "lfm2": "Lfm2ForCausalLM",
    "lfm2_moe": "Lfm2MoeForCausalLM",
    "internlm3": "InternLM3ForCausalLM",
    "kimi_k2": "DeepseekV3ForCausalLM",
    "kimi_k25": "KimiK25ForConditionalGeneration",
    "laguna": "LagunaForCausalLM",
    "jais2": "Jais2ForCausalLM",
    "llama": "LlamaForCausalLM",
    "llama4": "Llama4ForConditionalGeneration",
    "llama4_text": "Llama4ForCausalLM",
    "mellum": "MellumForCausalLM",
    "mimo_v2_flash": "MiMoV2FlashForCausalLM",
    "minicpm": "MiniCPMForCausalLM",
    "minicpm3": "MiniCPM3ForCausalLM",
    "minimax_m2": "MiniMaxM2ForCausalLM",
    "ministral": "MinistralForCausalLM",
    "ministral3": "Ministral3ForCausalLM",
    "mistral": "MistralForCausalLM",
    "mistral3": "Mistral3ForConditionalGeneration",
    "mistral4": "Mistral4ForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "nanochat": "NanoChatForCausalLM",
    "nemotron": "NemotronForCausalLM",
    "olmo": "OlmoForCausalLM",
    "olmo2": "Olmo2ForCausalLM",
    "olmo3": "Olmo3ForCausalLM",
    "olmoe": "OlmoeForCausalLM",
    "phi": "PhiForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen2_moe": "Qwen2MoeForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_5_moe_text": "Qwen3_5MoeForCausalLM",
    "qwen3_5_text": "Qwen3_5ForCausalLM",
    "qwen3_next": "Qwen3NextForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "seed_oss": "SeedOssForCausalLM",
    "smollm3": "SmolLM3ForCausalLM",
    "solar_open": "SolarOpenForCausalLM",
    "stablelm": "StableLmForCausalLM",
    "starcoder2": "Starcoder2ForCausalLM",
    "youtu": "YoutuForCausalLM",
}

# Models of texts and pictures, whose text part is converted: the architecture of the text part by its
# model_type, the usual one first
KIMI = {"deepseek_v3": "DeepseekV3ForCausalLM", "kimi_k2": "DeepseekV3ForCausalLM"}
WRAPPED: dict[str, dict[str, str]] = {
    "Gemma3ForConditionalGeneration": {"gemma3_text": "Gemma3ForCausalLM"},
    "Gemma3nForConditionalGeneration": {"gemma3n_text": "Gemma3nForCausalLM"},
    "Gemma4ForConditionalGeneration": {"gemma4_text": "Gemma4ForCausalLM"},
    "Gemma4UnifiedForConditionalGeneration": {"gemma4_unified_text": "Gemma4UnifiedForCausalLM"},
    "KimiK25ForConditionalGeneration": KIMI,
    "Kimi_K25ForConditionalGeneration": KIMI,  # as transformers has it
    "Llama4ForConditionalGeneration": {"llama4_text": "Llama4ForCausalLM"},
    "Mistral3ForConditionalGeneration": {
        "mistral": "MistralForCausalLM",
        "ministral3": "Ministral3ForCausalLM",
        "mistral4": "Mistral4ForCausalLM",
    },
    "Qwen3_5ForConditionalGeneration": {"qwen3_5_text": "Qwen3_5ForCausalLM"},
    "Qwen3_5MoeForConditionalGeneration": {"qwen3_5_moe_text": "Qwen3_5MoeForCausalLM"},
}
# Those whose output is not the embedding when nothing says so
UNTIED = ("Qwen3_5ForConditionalGeneration", "Qwen3_5MoeForConditionalGeneration")
WRAPPED_NAMES = (
    ("language_model.model.", "model."),
    ("model.language_model.", "model."),
    ("language_model.lm_head.", "lm_head."),
)
PICTURES = (
    *("vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector."),
    *("mm_projector.", "model.mm_projector."),
    *("model.audio_tower.", "model.vision_embedder.", "model.embed_vision.", "model.embed_audio."),
    "model.visual.",
)

# Why an architecture that people ask for is not in the table
ENCODER = "its attention looks ahead (an encoder)"
ALIBI = "its positions are slopes on the scores of attention (ALiBi)"
RECURRENT = "some of its layers are recurrent (a state-space model), not attention"
REASONS: dict[str, str] = {
    "DeepseekV32ForCausalLM": "its attention is over positions that an indexer chooses",
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
    "RwkvForCausalLM": RECURRENT,
    "RecurrentGemmaForCausalLM": RECURRENT,
    "Phi3SmallForCausalLM": "its attention is block-sparse",
    "PhiMoEForCausalLM": "its experts are chosen one after the other, each by a softmax of its own",
    "PhimoeForCausalLM": "its experts are chosen one after the other, each by a softmax of its own",
    "Phi4MMForCausalLM": "its text part needs adapters that pictures and sound switch on",
    "MptForCausalLM": ALIBI,
    "MPTForCausalLM": ALIBI,
    "BloomForCausalLM": ALIBI,
    "OPTForCausalLM": "its feed-forward block is of ReLU",
    "DbrxForCausalLM": "its experts are in a layout of its own",
    "MllamaForConditionalGeneration": "some of its layers attend to pictures",
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
