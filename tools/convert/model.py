"""Reads a config.json by the table of families: the family, the fields of the flat file's header, the
rotary tables, and what is folded into the tensors."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from pyllm._llm import lib

from . import flatfile, known_keys, quantized, rope
from .configuration import LARGEST, Config, expert_count, integer, layer_count, number, switch
from .families import (
    ACTIVATIONS,
    DEFAULTS,
    FAMILIES,
    MODEL_TYPES,
    ONLY,
    REASONS,
    UNTIED,
    WRAPPED,
    WRAPPED_NAMES,
    Family,
    value_of,
)
from .sources import ConvertError, shown

KINDS = {
    "full_attention": None,
    "sliding_attention": "sliding_window",
    "chunked_attention": "attention_chunk_size",
}
OF_HEADER = ("embed_scale", "residual_scale", "logit_cap", "ple_scale")  # numbers that all layers share


@dataclass
class Model:
    """A family's reading of a configuration: all that the header, the rotary tables and the folding of the
    tensors need."""

    architecture: str
    family: Family
    shape: flatfile.Shape = field(default_factory=flatfile.Shape)
    angles: np.ndarray = field(default_factory=lambda: np.zeros((0, 0, 2), np.float32))  # see rope.Tables
    wrapped: bool = False  # the text part of a model of texts and pictures
    logit_scale: float = 1.0
    value_scale: float = 1.0  # multiplies the values of attention
    # of each layer (head_dim,), see rope.head_order; None: as it is
    head_orders: list[np.ndarray | None] = field(default_factory=list)
    latent_order: np.ndarray | None = None  # (latent_dim + turn_dim,) the same of what keys are made of
    transposed: bool = False  # stacks of experts have a column where others have a row
    folded: dict[str, float] = field(default_factory=dict)  # as the family's, of this configuration
    ple_rows: int = 0  # tokens that have embeddings by layer of their own; others have those of token 0
    headless: bool = False  # there is no output matrix: it is for embeddings only
    ahead: int = 0  # layers behind the last one that predict further tokens, which are left out
    notes: list[str] = field(default_factory=list)

    @property
    def n_experts(self) -> int:
        """Of each layer that has any."""
        return max(layer.n_experts for layer in self.shape.layers)

    def sizes(self, number: int) -> dict[str, int]:
        """The dimensions that tensors.TENSORS and tensors.FUSED name, in this layer."""
        layer = self.shape.layers[number]
        latent, kv_heads = layer.latent_dim > 0, layer.n_kv_heads if layer.kv_layer is None else 0
        q, k = layer.n_heads * layer.head_dim, kv_heads * layer.head_dim
        value_dim = layer.value_dim or layer.head_dim
        many = bool(layer.flags & (lib.LLM_QK_NORM_WHOLE | lib.LLM_QK_NORM_EACH))
        qnorm, knorm = (q, k) if many else (layer.head_dim, layer.head_dim)
        if latent:
            qnorm = knorm = 0
        biased = bool(layer.flags & lib.LLM_NORM_BIAS)
        return {
            "one": 1,
            "context": self.shape.context,
            "dim": self.shape.dim,
            "vocab": self.shape.vocab_size,
            "ffn": layer.ffn_dim,
            "shared": layer.shared_dim,
            "q": q,
            "direct": 0 if layer.q_rank else q,
            "k": 0 if latent else k,
            "v": 0 if latent or layer.flags & lib.LLM_V_IS_K else kv_heads * value_dim,
            "att": layer.n_heads * value_dim,
            "attgate": gate_dim(layer),
            "heads": layer.n_heads,
            "qnorm": qnorm,
            "knorm": knorm,
            "nbias": self.shape.dim if biased else 0,
            "qnbias": qnorm if biased else 0,
            "knbias": knorm if biased else 0,
            "gated": 0 if layer.flags & lib.LLM_NO_GATE else layer.ffn_dim,
            "qrank": layer.q_rank,
            "latent": layer.latent_dim,
            "compressed": layer.latent_dim + layer.turn_dim,
            "plain": layer.head_dim - layer.turn_dim,
            "value": value_dim,
            "experts": layer.n_experts,
            "gate": 1 if layer.flags & lib.LLM_SHARED_GATE else 0,
            "ple": self.shape.ple_dim,
            "ples": self.shape.ple_dim * len(self.shape.layers),
            "rank": layer.low_rank,
            "streams": self.shape.n_streams,
            "predict": self.shape.n_streams**3,
            "correct": self.shape.n_streams**2,
            **self.sizes_of_state(layer),
        }

    def sizes_of_state(self, layer: flatfile.Layer) -> dict[str, int]:
        """The same of what stands for attention in a layer; 0 in others."""
        conv = self.shape.dim if layer.mixer == lib.LLM_SHORT_CONV else 0
        key, value = layer.delta_key_heads * layer.delta_key_dim, layer.delta_heads * layer.delta_value_dim
        return {
            "conv": conv,
            "bcx": 3 * conv,
            "taps": layer.conv_kernel * conv,
            "skey": key,
            "svalue": value,
            "sheads": layer.delta_heads,
            "svwidth": layer.delta_value_dim,
            "staps": layer.conv_kernel * (2 * key + value),
        }


def gate_dim(layer: flatfile.Layer) -> int:
    """Rows of the matrix that makes the gates of attention's output."""
    if not layer.flags & lib.LLM_OUT_GATE:
        return 0
    each = layer.value_dim or layer.head_dim
    return layer.n_heads * (1 if layer.flags & lib.LLM_OUT_GATE_HEAD else each)


def architecture_of(config: Config) -> Any:
    """The architecture that the configuration names, or else that of its model_type; of a model saved without
    its output matrix, such as Qwen3Model, the one with it."""
    names = config.get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    kind = config.get("model_type")
    if isinstance(name, str) and name.endswith("Model") and isinstance(kind, str):
        return MODEL_TYPES.get(kind, name)
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
    above = {key: config[key] for key in ("tie_word_embeddings",) if key in config}
    usual = {"tie_word_embeddings": name not in UNTIED}
    return usual | text | above | {"architectures": [texts[kind]]}, True


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


def layers_of(config: Config, family: Family) -> tuple[list[str], list[str | None], list[int]]:
    """The kind, the rotary kind (None: it does not turn) and the window of each layer."""
    n_layers = layer_count(config)
    kinds = family.kinds(config)
    if not isinstance(kinds, list) or len(kinds) != n_layers:
        raise ConvertError(f"configuration: layer_types has not {n_layers} entries")
    strange = [kind for kind in kinds if kind not in KINDS and kind not in family.mixers]
    if strange:
        raise ConvertError(f"configuration: layer_types has {shown(strange[0])}, which is not supported")
    windows = dict.fromkeys(KINDS, 0)
    if switch(config, "use_sliding_window") and config["sliding_window"] is not None:
        windows["sliding_attention"] = integer(config, "sliding_window")
    if "chunked_attention" in kinds:
        windows["chunked_attention"] = integer(config, "attention_chunk_size")
    return kinds, family.ropes(config, kinds), [windows.get(kind, 0) for kind in kinds]


def with_state(common: flatfile.Layer, fields: dict[str, Any]) -> flatfile.Layer:
    """A layer that has a state in place of attention, with these fields."""
    flags = common.flags & ~flatfile.OF_ATTENTION
    none = dict.fromkeys(("n_heads", "n_kv_heads", "head_dim", "value_dim", "attn_cap"), 0)
    none |= dict.fromkeys(("query_growth", "query_span", "query_shift", "low_rank", "qkv_clip"), 0)
    none |= dict.fromkeys(("latent_dim", "turn_dim", "q_rank", "latent_eps"), 0)
    return replace(common, **none, flags=flags, **fields)


def flags_of(config: Config, family: Family) -> int:
    """The flags of the family's row and of the configuration's switches."""
    flags = family.flags
    for key, flag in family.switches.items():
        flags |= flag if switch(config, key) else 0
    return flags | (lib.LLM_ONE_NORM if family.one_norm(config) else 0)


def heads_of(config: Config) -> dict[str, Any]:
    """The fields of llm_layer for query heads, and keys and values of their own."""
    dim, n_heads = integer(config, "hidden_size"), integer(config, "num_attention_heads")
    head_dim = integer(config, "head_dim") if config["head_dim"] is not None else dim // n_heads
    given = config["num_key_value_heads"] is not None
    return {
        "n_heads": n_heads,
        "n_kv_heads": integer(config, "num_key_value_heads") if given else n_heads,
        "head_dim": head_dim,
        "attn_scale": max(1, head_dim) ** -0.5,
    }


def latent_heads_of(config: Config) -> dict[str, Any]:
    """The same of DeepseekV2Attention. The norms of what has a low rank have an epsilon of its own."""
    dim, n_heads = integer(config, "hidden_size"), integer(config, "num_attention_heads")
    plain, turning = integer(config, "qk_nope_head_dim"), integer(config, "qk_rope_head_dim")
    if integer(config, "num_key_value_heads", "num_attention_heads") != n_heads:
        raise ConvertError("configuration: num_key_value_heads is not num_attention_heads")
    return {
        "n_heads": n_heads,
        "head_dim": plain + turning,
        "attn_scale": (plain + turning) ** -0.5 * rope.score_scale(config),
        "value_dim": integer(config, "v_head_dim") if config["v_head_dim"] is not None else dim // n_heads,
        "latent_dim": integer(config, "kv_lora_rank"),
        "turn_dim": turning,
        "q_rank": integer(config, "q_lora_rank") if config["q_lora_rank"] is not None else 0,
        "latent_eps": 1e-6,
    }


def attention(config: Config, family: Family) -> flatfile.Layer:
    """What all layers have in common: all but the feed-forward block, the window and the rotary table."""
    elsewhere = (*OF_HEADER, "expert_scale")
    own = {key: formula(config) for key, formula in family.numbers.items() if key not in elsewhere}
    return flatfile.Layer(
        flags=flags_of(config, family) & ~flatfile.ROUTED,
        activation=ACTIVATIONS[config["hidden_act"]] if family.activation is None else family.activation,
        **(latent_heads_of(config) if family.latent else heads_of(config)) | own,
    )


def groups_of(config: Config) -> dict[str, int]:
    """The fields of llm_layer for groups of experts; all are chosen from together when there is one."""
    if config.get("n_group") in (None, 1):
        return {}
    return {"n_groups": integer(config, "n_group"), "n_active_groups": integer(config, "topk_group")}


def feed_forwards(config: Config, family: Family) -> tuple[dict[str, Any], dict[str, Any]]:
    """The fields of llm_layer for the feed-forward block of a dense layer and of one with experts, each empty
    when the model has none such."""
    layers = range(layer_count(config)) if family.experts else ()
    if not any(family.sparse(config, i) for i in layers):
        return {"ffn_dim": integer(config, family.dense if family.experts else family.ffn)}, {}
    shared = integer(config, family.shared) if family.shared and config.get(family.shared) else 0
    if family.n_shared:
        given = config.get(family.n_shared) is not None
        shared *= integer(config, family.n_shared, zero=True) if given else 0
    sparse = {
        "flags": flags_of(config, family) & flatfile.ROUTED,
        "ffn_dim": integer(config, family.ffn),
        "n_experts": expert_count(config),
        "n_active": integer(config, "num_experts_per_tok", "moe_k", "moe_topk", "top_k_experts"),
        "shared_dim": shared,
        **groups_of(config),
        "expert_scale": family.numbers.get("expert_scale", value_of("routed_scaling_factor"))(config),
    }
    if all(family.sparse(config, i) for i in layers):
        return {}, sparse
    return {"ffn_dim": integer(config, family.dense)}, sparse


def translated(config: Config, family: Family) -> Config:
    """A configuration with the usual names of its keys."""
    return {family.keys.get(key, key): value for key, value in config.items()}


def describe(source_config: Config, context: int | None = None) -> Model:
    """Reads a configuration. `context` shortens the model's own, or chooses among its rotary factors."""
    whole_config = source_config
    source_config, wrapped = unwrap(whole_config)
    architecture, family = find(source_config)
    quantization = quantized.notes(whole_config)
    config = family.prepare(DEFAULTS | dict(family.defaults) | translated(source_config, family))
    own_names = {ours: theirs for theirs, ours in family.keys.items() if theirs in source_config}
    for key, allowed in (ONLY | dict(family.only)).items():
        if key in config and config[key] not in allowed:
            names = " or ".join(map(repr, allowed))
            found = config[key]
            found = found[:80] if isinstance(found, str) else shown(found)
            key = own_names.get(key, key)
            raise ConvertError(f"configuration: {key} is {found}; of {family.name} only {names} is supported")

    longest = integer(config, "max_position_embeddings")
    if context is not None and not 0 < context <= longest:
        raise ConvertError(f"context {context} is not between 1 and the model's {longest}")
    kinds, ropes, windows = layers_of(config, family)
    dense, sparse = feed_forwards(config, family)
    rename = (WRAPPED_NAMES if wrapped else ()) + (family.with_experts if sparse else ()) + family.rename
    family = replace(family, rename=rename)
    model = Model(architecture, family, wrapped=wrapped, logit_scale=family.logit_scale(config))
    if family.ple_vocab:
        model.ple_rows = integer(config, family.ple_vocab)
    model.folded = {name: scale(config) for name, scale in family.folded.items()}
    model.value_scale = family.value_scale(config)
    if not 0 < model.value_scale <= LARGEST:
        raise ConvertError(f"configuration: values would be scaled by {model.value_scale}")
    model.transposed = family.transposed and not quantized.by_rows(whole_config)
    if not 0 < model.logit_scale <= LARGEST:
        raise ConvertError(f"configuration: the logits would be scaled by {model.logit_scale}")
    if config.get("num_nextn_predict_layers") is not None:
        model.ahead = integer(config, "num_nextn_predict_layers", zero=True)
    common = attention(config, family)
    layers = []
    for i, window in enumerate(windows):
        ffn = sparse if sparse and family.sparse(config, i) else dense
        make = family.mixers.get(kinds[i])
        mixer = with_state(common, make(config)) if make else common
        flags = mixer.flags | ffn.get("flags", 0)
        flags |= lib.LLM_CHUNKED if kinds[i] == "chunked_attention" else 0
        layer = replace(mixer, **ffn | {"flags": flags, "window": window})
        layers.append(family.vary(config, i, kinds[i], layer))
    numbers = family.numbers
    ple_dim = integer(config, family.ple) if family.ple and config.get(family.ple) else 0
    wanted = [key for key in OF_HEADER if key in numbers and (ple_dim or key != "ple_scale")]
    scales: dict[str, Any] = {key: numbers[key](config) for key in wanted}
    model.shape = flatfile.Shape(
        tied=switch(config, "tie_word_embeddings"),
        flags=family.header,
        dim=integer(config, "hidden_size"),
        vocab_size=integer(config, "vocab_size"),
        context=longest,
        rope_dim=max(layer.turn_dim or layer.head_dim for layer in layers),
        ple_dim=ple_dim,
        n_streams=integer(config, family.streams) if family.streams else 0,
        norm_eps=number(config, family.norm_eps, zero=True),
        layers=tuple(layers),
        **scales,
    )
    # The format's limits, before anything is sized by these numbers
    for layer in dict.fromkeys(layers):
        flatfile.check_layer(layer)
    flatfile.make_layout(model.shape)
    attending = [i for i, layer in enumerate(layers) if layer.mixer == lib.LLM_ATTENTION]
    turning = {
        i: layers[i].turn_dim or rope.rotary_dim(config, layers[i].head_dim, ropes[i]) for i in attending
    }
    for i, dim in turning.items():
        if dim != (layers[i].turn_dim or layers[i].head_dim) and not family.partial:
            raise ConvertError(
                f"partial_rotary_factor: {dim} of a head's {layers[i].head_dim} elements turn; of "
                f"{family.name} all do"
            )
    kinds_that_turn = [ropes[i] for i in attending]
    tables = rope.tables(
        config, kinds_that_turn, model.shape.rope_dim, [*turning.values()], family.local_rope, context
    )
    for i, number_of_table in zip(attending, tables.layers, strict=True):
        layers[i] = replace(layers[i], rope=number_of_table)
    model.notes += quantization + tables.notes + known_keys.note(source_config)
    model.angles = tables.angles * np.array([-1 if family.backwards else 1, 1], np.float32)
    model.shape = replace(
        model.shape,
        context=context or tables.context,
        n_rope=len(tables.angles),
        layers=tuple(layers),
    )
    flatfile.make_layout(model.shape)
    if family.latent:
        neighbours = family.interleaved and switch(config, "rope_interleave")
        order = rope.head_order(common.turn_dim, common.turn_dim, neighbours)
        model.head_orders = [rope.behind(common.head_dim - common.turn_dim, order)] * len(layers)
        model.latent_order = rope.behind(common.latent_dim, order)
        return model
    for i, layer in enumerate(layers):
        dim = turning.get(i, layer.head_dim)
        moved = i in turning and (family.interleaved or dim != layer.head_dim)
        model.head_orders.append(rope.head_order(layer.head_dim, dim, family.interleaved) if moved else None)
    return model
