"""What a row of the table of families has: Family, and what its fields are when a row does not name them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pyllm._llm import lib

from ..configuration import Config, layer_count
from ..flatfile import Layer

Kinds = Callable[[Config], list[str]]  # the kind of each layer
Rule = Callable[[Config, int], bool]  # something that is said of each layer

BIAS = {"attention_bias": lib.LLM_QKV_BIAS}
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


def always(config: Config, *layer: int) -> bool:
    return True


def either(kind: str, rule: Rule, listed: bool = True) -> Kinds:
    """The kinds of all layers as transformers' layer_types has them: those that the configuration lists (if
    the family reads that), else `kind` by the rule (config, layer) and "full_attention"."""

    def kinds(config: Config) -> list[str]:
        found = config.get("layer_types") if listed else None
        if found is None:
            found = [kind if rule(config, i) else "full_attention" for i in range(layer_count(config))]
        return found

    return kinds


def sliding(rule: Rule, listed: bool = True) -> Kinds:
    """either, of layers with a window."""
    return either("sliding_attention", rule, listed)


def ropes_of_kinds(config: Config, kinds: list[str]) -> list[str | None]:
    """Which rotary configuration each layer has: that of its kind."""
    return list(kinds)


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
    sparse: Rule = always  # whether layer i has experts, if any has
    dense: str = "intermediate_size"  # the key of the inner width of layers without experts
    shared: str | None = None  # the key of the shared expert's inner width
    n_shared: str | None = None  # the key of the number of shared experts, which are one of all their widths
    kinds: Kinds = sliding(lambda config, i: False, listed=False)
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
