"""The values of a config.json: numbers and switches, each checked before anything is sized by it, with an
error that names the key."""

from __future__ import annotations

from typing import Any

from . import flatfile
from .sources import ConvertError, shown

Config = dict[str, Any]
LARGEST = 1e30  # of a number in a configuration: far from the end of float32


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
    return flatfile.check_layer_count(integer(config, "num_hidden_layers"))


def expert_count(config: Config) -> int:
    """The number of experts, checked like layer_count."""
    n_experts = integer(config, "num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
    flatfile.make_layout(flatfile.Shape(layers=(flatfile.Layer(n_experts=n_experts, n_active=1),)))
    return n_experts
