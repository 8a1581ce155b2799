"""The table of model families: what a config.json of each means in the terms of the flat file's header, and
which tensors it has.

Adding a family is adding a row to FAMILIES. A quirk that is not in a row is refused by name, never passed on
to the engine."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pyllm._llm import lib

from . import flatfile, rope, sources
from .sources import ConvertError, Tensor


@dataclass(frozen=True)
class Family:
    """One row of the table. `defaults` are transformers' own, for keys that config.json may leave out."""

    name: str
    defaults: Mapping[str, Any] = field(default_factory=dict)
    rename: tuple[tuple[str, str], ...] = ()  # substitutions that turn its tensor names into those of TENSORS
    qkv_bias: bool | None = False  # None: as config.json's attention_bias says
    qk_norm: bool = False
    experts: bool = False
    ffn: str = "intermediate_size"  # the key of the feed-forward block's (or one expert's) inner width
    normalize: bool | None = True  # expert weights divided by their sum; None: as norm_topk_prob says
    window: Callable[[dict], int | None] = lambda config: None  # the smallest sliding window of a layer
    only: Mapping[str, tuple] = field(default_factory=dict)  # key -> the values of it that are supported


def mistral_window(config: dict) -> int | None:
    return config["sliding_window"]


def qwen_window(config: dict) -> int | None:
    """Qwen2Config: layers from max_window_layers on have the window, if it is switched on at all."""
    if not config["use_sliding_window"] or config["sliding_window"] is None:
        return None
    kinds = config.get("layer_types")
    if kinds is None:
        return config["sliding_window"] if config["max_window_layers"] < config["num_hidden_layers"] else None
    return config["sliding_window"] if "sliding_attention" in kinds else None


def qwen_moe_window(config: dict) -> int | None:
    return config["sliding_window"] if config["use_sliding_window"] else None


QWEN = {"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28}
MIXTRAL_NAMES = (
    (".block_sparse_moe.", ".mlp."),
    (".w1.", ".gate_proj."),
    (".w3.", ".up_proj."),
    (".w2.", ".down_proj."),
)

FAMILIES: dict[str, Family] = {
    "LlamaForCausalLM": Family("Llama", qkv_bias=None),
    "MistralForCausalLM": Family(
        "Mistral", defaults={"num_key_value_heads": 8, "sliding_window": 4096}, window=mistral_window
    ),
    "MixtralForCausalLM": Family(
        "Mixtral",
        defaults={
            "num_key_value_heads": 8,
            "sliding_window": None,
            "rms_norm_eps": 1e-5,
            "rope_theta": 1e6,
            "num_experts_per_tok": 2,
        },
        rename=MIXTRAL_NAMES,
        experts=True,
        window=mistral_window,
    ),
    "Qwen2ForCausalLM": Family("Qwen2", defaults=QWEN, qkv_bias=True, window=qwen_window),
    "Qwen3ForCausalLM": Family(
        "Qwen3", defaults={"head_dim": 128, **QWEN}, qkv_bias=None, qk_norm=True, window=qwen_window
    ),
    "Qwen3MoeForCausalLM": Family(
        "Qwen3-MoE",
        defaults={"num_key_value_heads": 4, "num_experts_per_tok": 8, **QWEN},
        qkv_bias=None,
        qk_norm=True,
        experts=True,
        ffn="moe_intermediate_size",
        normalize=None,
        window=qwen_moe_window,
        only={"decoder_sparse_step": (None, 1), "mlp_only_layers": (None, [])},
    ),
}

DEFAULTS = {
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "num_key_value_heads": None,
    "head_dim": None,
    "attention_bias": False,
    "tie_word_embeddings": False,
    "norm_topk_prob": False,
    "hidden_act": "silu",
}
ONLY = {"hidden_act": ("silu", "swish"), "quantization_config": (None,)}

# Each tensor of the flat file, its parts from top to bottom (Hugging Face's name, dimensions). Names that do
# not begin with "model." or "lm_head." follow "model.layers.N."; {e} is "" in a dense block and "experts.E."
# with experts.
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
    "LLM_Q_NORM": (("self_attn.q_norm.weight", "head"),),
    "LLM_K_NORM": (("self_attn.k_norm.weight", "head"),),
    "LLM_ATTN_OUT": (("self_attn.o_proj.weight", "dim q"),),
    "LLM_FFN_NORM": (("post_attention_layernorm.weight", "dim"),),
    "LLM_ROUTER": (("mlp.gate.weight", "experts dim"),),
    "LLM_GATE_UP": (("mlp.{e}gate_proj.weight", "ffn dim"), ("mlp.{e}up_proj.weight", "ffn dim")),
    "LLM_DOWN": (("mlp.{e}down_proj.weight", "dim ffn"),),
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
    """A family's reading of a configuration: all that the header and the rotary tables need."""

    architecture: str
    family: Family
    fields: dict[str, int | float] = field(default_factory=dict)  # of llm_header
    tables: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.float32))  # (n_rope, head_dim / 2)
    layer_tables: list[int] = field(default_factory=list)  # (n_layers,) the table of each layer
    notes: list[str] = field(default_factory=list)

    @property
    def sizes(self) -> dict[str, int]:
        """The dimensions that TENSORS names."""
        f = {key: int(value) for key, value in self.fields.items() if isinstance(value, int)}
        return {
            "dim": f["dim"],
            "vocab": f["vocab_size"],
            "head": f["head_dim"],
            "ffn": f["ffn_dim"],
            "q": f["n_heads"] * f["head_dim"],
            "kv": f["n_kv_heads"] * f["head_dim"],
            "experts": f["n_experts"],
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
            found.append((full, tuple(self.sizes[key] for key in dimensions.split())))
        return found


def find(config: dict) -> tuple[str, Family]:
    """The architecture's name and its row of the table."""
    names = config.get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    if not isinstance(name, str) or name not in FAMILIES:
        shown = repr(name) if name else "(the configuration names none)"
        raise ConvertError(
            f"unknown architecture {shown}; these can be converted: {', '.join(sorted(FAMILIES))}"
        )
    return name, FAMILIES[name]


def integer(config: dict, *keys: str) -> int:
    """The first of these keys that the config has, a positive integer."""
    key = next((k for k in keys if config.get(k) is not None), keys[0])
    value = config.get(key)
    if value is None:
        raise ConvertError(f"configuration: {key} is missing")
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 1 << 32:
        raise ConvertError(f"configuration: {key} is {value!r}, not a positive integer")
    return value


def describe(source_config: dict, context: int | None = None) -> Model:
    """Reads a configuration. `context` shortens the model's own."""
    architecture, family = find(source_config)
    config = DEFAULTS | dict(family.defaults) | source_config
    for key, allowed in (ONLY | dict(family.only)).items():
        if key in config and config[key] not in allowed:
            names = " or ".join(map(repr, allowed))
            raise ConvertError(
                f"configuration: {key} is {str(config[key])[:80]}; of {family.name} only {names} is supported"
            )

    dim, n_heads = integer(config, "hidden_size"), integer(config, "num_attention_heads")
    head_dim = integer(config, "head_dim") if config["head_dim"] is not None else dim // n_heads
    n_experts = integer(config, "num_local_experts", "num_experts") if family.experts else 0
    eps = config["rms_norm_eps"]
    if isinstance(eps, bool) or not isinstance(eps, (int, float)) or not 0 <= eps < math.inf:
        raise ConvertError(f"configuration: rms_norm_eps is {eps!r}, not a number")
    bias = config["attention_bias"] if family.qkv_bias is None else family.qkv_bias
    normalize = config["norm_topk_prob"] if family.normalize is None else family.normalize
    model = Model(architecture, family)

    longest = integer(config, "max_position_embeddings")
    window = family.window(config)
    if window is not None:
        if isinstance(window, bool) or not isinstance(window, int) or window < 1:
            raise ConvertError(f"configuration: sliding_window is {window!r}, not a positive integer")
        if window < longest:
            model.notes.append(
                f"context cut from {longest} to {window}, the sliding window: "
                "up to there attention is the same"
            )
            longest = window
    if context is not None:
        if not 0 < context <= longest:
            raise ConvertError(f"context {context} is not between 1 and the model's {longest}")
        longest = context

    flags = (
        (lib.LLM_TIED if config["tie_word_embeddings"] else 0)
        | (lib.LLM_QKV_BIAS if bias else 0)
        | (lib.LLM_QK_NORM if family.qk_norm else 0)
        | (lib.LLM_ROUTER_NORMALIZE if family.experts and normalize else 0)
    )
    n_layers = integer(config, "num_hidden_layers")
    model.fields = {
        "flags": flags,
        "dim": dim,
        "ffn_dim": integer(config, family.ffn),
        "n_layers": n_layers,
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
        "norm_eps": float(eps),
        "attn_scale": head_dim**-0.5,
    }
    # The format's limits, before anything is sized by these numbers
    flatfile.make_header("fp16", model.fields)
    rotation = rope.rotation(config, config["rope_theta"], head_dim)
    if rotation.note:
        model.notes.append(rotation.note)
    model.fields["attn_scale"] *= rotation.attention_factor**2
    model.tables = rotation.frequencies[None, :]
    model.layer_tables = [0] * n_layers
    return model


def canonical_name(family: Family, name: str) -> str:
    """A tensor's name as TENSORS has it."""
    for theirs, ours in family.rename:
        name = name.replace(theirs, ours)
    return name


def canonical(family: Family, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under the names of TENSORS, stacks of experts taken apart, computed ones left out."""
    result: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        name = canonical_name(family, name)
        if name.endswith(IGNORED):
            continue
        stack = next((key for key in STACKS if family.experts and name.endswith("." + key)), None)
        prefix = name[: -len(stack)] if stack else ""
        parts = (
            sources.unstack(tensor, tuple(prefix + part for part in STACKS[stack]))
            if stack
            else {name: tensor}
        )
        twice = result.keys() & parts.keys()
        if twice:
            raise ConvertError(f"{sources.listing(sorted(twice))} occurs twice, under different spellings")
        result.update(parts)
    return result
