"""config.json's keys from a GGUF file's metadata: the shape, attention, and experts; see gguf_rope.py for the
rotary ones."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pyllm._llm import lib

from . import embedding, gguf_header
from .configuration import Config, integer, layer_count
from .families import FAMILIES, Family
from .gguf_architectures import ARCHITECTURES, Architecture, Get, only_value
from .sources import ConvertError, shown

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


def chosen_by_softmax(get: Get) -> bool:
    """llama_model_deepseek2: what files from before it was written say of how experts are chosen."""
    lite = get("block_count") in (47, 48) and get("vocab_size") == 154880  # GLM-4.7 Flash
    return (get("expert_gating_func") or (2 if lite else 1)) == 1


def chosen_of(get: Get, architecture: str) -> str:
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


def kinds_of(get: Get, row: Architecture, n_layers: int) -> list[str] | None:
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


def check_state(get: Get) -> None:
    """The widths of value heads and of key heads, which are one number."""
    size, heads, inner = (get(f"ssm.{key}") for key in ("state_size", "time_step_rank", "inner_size"))
    if inner is not None and inner != size * heads:
        raise ConvertError(f"ssm.inner_size is {inner}, not {heads} heads of ssm.state_size {size}")


def heads(get: Get, architecture: str, types: list[str] | None, n_layers: int) -> Config:
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


def latent_widths(config: Config, get: Get, family: Family) -> Config:
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


def check_mixture(get: Get, architecture: str, family: Family, config: Config) -> None:
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


def mixture(get: Get, architecture: str, family: Family, config: Config) -> Config:
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


def shared_experts(get: Get, architecture: str, family: Family, width: Any) -> Config:
    """The keys for experts of all tokens: their width, or how many of the others' width they are."""
    count, dim = get("expert_shared_count"), get("expert_shared_feed_forward_length")
    if family.n_shared is None:
        if count not in (None, 0, 1):
            raise ConvertError(f"{architecture}.expert_shared_count = {shown(count)} is not supported")
        return {family.shared: dim} if family.shared and dim else {}
    if count is None and dim:
        if not width or dim % width:
            key = f"{architecture}.expert_shared_feed_forward_length"
            raise ConvertError(f"{key} = {shown(dim)}: not a multiple of {width}")
        count = dim // width
    return {family.n_shared: count or 0}


def named_keys(get: Get, architecture: str, types: list[str] | None, n_layers: int) -> Config:
    """The keys of KEYS and of the architecture's own that the metadata has."""
    row = ARCHITECTURES[architecture]
    config: Config = {}
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
    return config | by_layer | own


def check_no_experts(get: Get, architecture: str, n_layers: int) -> None:
    """Refuses layers with experts of a model that should have none: what is written of those, too."""
    leading, shared = get("leading_dense_block_count"), get("expert_shared_count")
    if leading not in (None, n_layers) or shared not in (None, 0):
        raise ConvertError(f"{architecture} has layers with experts, and no expert_count")


def widths_of_heads(get: Get, architecture: str, family: Family, config: Config) -> Config:
    """The keys for the widths of heads, of keys and of values."""
    dim, n_heads = (integer(config, key) for key in ("hidden_size", "num_attention_heads"))
    layer_count(config)
    head_dim = config.get("head_dim", dim // n_heads)
    usual = {"head_dim": head_dim, "num_key_value_heads": config.get("num_key_value_heads", n_heads)}
    integer(usual, "num_key_value_heads")
    if family.latent:
        return usual | latent_widths(config | usual, get, family)
    value_dim = get("attention.value_length")
    if "value_dim" in family.numbers:
        scale = get("attention.value_scale") or 1.0
        width = head_dim if value_dim is None else value_dim
        return usual | {"v_head_dim": width, "attention_value_scale": scale}
    if not ARCHITECTURES[architecture].own and value_dim not in (None, head_dim):
        raise ConvertError(
            f"{architecture}.attention.value_length is not the key's {head_dim}: not supported"
        )
    return usual


def all_kinds(
    get: Get, row: Architecture, family: Family, window: object, types: list[str] | None, n_layers: int
) -> list[str] | None:
    """layer_types: `types` is what the metadata says of windows; None leaves it to the family."""
    if window is None and "attention_chunk_size" not in family.defaults:
        types = ["full_attention"] * n_layers
    elif types is None and row.windows is not None:
        types = layer_types([row.windows(i) for i in range(n_layers)], n_layers)
    types = kinds_of(get, row, n_layers) or types
    if row.state == "linear_attention":
        check_state(get)
    return types


def rotary_bases(get: Get, architecture: str, family: Family, config: Config, n_layers: int) -> Config:
    """The bases of Granite SWA's layers, some of which do not turn; refuses those of others that the family
    has not."""
    base, local = get("rope.freq_base") or 10000.0, family.local_rope or ARCHITECTURES[architecture].local
    if config.get("rope_local_base_freq", base) != base and not local:
        raise ConvertError(f"{architecture}.rope.freq_base_swa is not supported")
    turning = get("attention.rope_pattern")
    if turning is None:
        return {}
    if architecture != "granite_swa" or not isinstance(turning, list) or len(turning) != n_layers:
        raise ConvertError(f"{architecture}.attention.rope_pattern is not supported, or not for {n_layers}")
    return {"layer_rope_theta": [base if turns else 0 for turns in turning]}


def configuration(get: Get, architecture: str) -> Config:
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
    config |= named_keys(get, architecture, types, n_layers)
    if ahead:
        config |= {"num_hidden_layers": n_layers, "num_nextn_predict_layers": ahead}
    check_mixture(get, architecture, family, config)
    if family.experts:
        config |= mixture(get, architecture, family, config)
    elif row.softmax:
        check_no_experts(get, architecture, n_layers)
    config |= widths_of_heads(get, architecture, family, config)
    types = all_kinds(get, row, family, config["sliding_window"], types, n_layers)
    if types is not None:
        config["layer_types"] = types
    if "rms_norm_eps" in config:
        config[family.norm_eps] = config["rms_norm_eps"]
    config |= rotary_bases(get, architecture, family, config, n_layers)
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
