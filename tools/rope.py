"""Rotary frequencies as tables of head_dim / 2 float32 values, radians a position, with every scaling
applied.

The formulas are those of transformers (modeling_rope_utils.py and each model's
compute_default_rope_parameters), in float32 as there. Powers are computed in float64 and rounded, which is
closer to torch's than numpy's float32 power."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from .sources import ConvertError

F32 = np.float32


@dataclass
class Rotation:
    """What the rotary configuration comes to."""

    frequencies: np.ndarray  # (head_dim / 2,) float32
    attention_factor: float = 1.0  # multiplies cosines and sines, so its square multiplies q . k
    max_context: int | None = None  # beyond it the table would not be the model's any more
    note: str | None = None


def powers(base: float, dim: int) -> np.ndarray:
    """base ** (2i / dim), (dim / 2,) float32."""
    exponents = np.arange(0, dim, 2, dtype=F32) / F32(dim)
    return np.power(np.float64(F32(base)), exponents.astype(np.float64)).astype(F32)


def default(rope: dict, dim: int, context: int) -> Rotation:
    """LlamaRotaryEmbedding.compute_default_rope_parameters."""
    return Rotation(F32(1) / powers(rope["rope_theta"], dim))


def linear(rope: dict, dim: int, context: int) -> Rotation:
    """_compute_linear_scaling_rope_parameters."""
    return Rotation(default(rope, dim, context).frequencies / F32(number(rope, "factor")))


def dynamic(rope: dict, dim: int, context: int) -> Rotation:
    """_compute_dynamic_ntk_parameters: nothing is scaled up to max_position_embeddings, so within it the
    plain table is exact."""
    return Rotation(
        default(rope, dim, context).frequencies,
        max_context=context,
        note=f"dynamic rotary scaling begins after {context} positions: "
        "inside this context it changes nothing",
    )


def llama3(rope: dict, dim: int, context: int) -> Rotation:
    """_compute_llama3_parameters."""
    inv_freq = default(rope, dim, context).frequencies
    factor, low, high = (number(rope, key) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    old = number(rope, "original_max_position_embeddings")
    if high == low:
        raise ConvertError("the rotary scaling's low_freq_factor and high_freq_factor are equal")
    wavelen = F32(2 * math.pi) / inv_freq
    scaled = np.where(wavelen > F32(old / low), inv_freq / F32(factor), inv_freq)
    smooth = (F32(old) / wavelen - F32(low)) / F32(high - low)
    smoothed = (F32(1) - smooth) * scaled / F32(factor) + smooth * scaled
    medium = ~(wavelen < F32(old / high)) & ~(wavelen > F32(old / low))
    return Rotation(np.where(medium, smoothed, scaled))


def yarn(rope: dict, dim: int, context: int) -> Rotation:
    """_compute_yarn_parameters."""
    base, old = rope["rope_theta"], number(rope, "original_max_position_embeddings")
    factor = number(rope, "factor") if rope.get("factor") is not None else context / old
    beta_fast, beta_slow = rope.get("beta_fast") or 32, rope.get("beta_slow") or 1
    mscale, mscale_all_dim = rope.get("mscale"), rope.get("mscale_all_dim")

    def magnitude(scale: float, m: float = 1) -> float:
        return 1.0 if scale <= 1 else 0.1 * m * math.log(scale) + 1.0

    attention_factor = rope.get("attention_factor")
    if attention_factor is None:
        if mscale and mscale_all_dim:
            attention_factor = magnitude(factor, mscale) / magnitude(factor, mscale_all_dim)
        else:
            attention_factor = magnitude(factor)

    def correction(rotations: float) -> float:
        return dim * math.log(old / (rotations * 2 * math.pi)) / (2 * math.log(base))

    low, high = correction(beta_fast), correction(beta_slow)
    if rope.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    if low == high:
        high += 0.001
    ramp = np.clip((np.arange(dim // 2, dtype=F32) - F32(low)) / F32(high - low), F32(0), F32(1))
    extrapolation = F32(1) - ramp
    plain = powers(base, dim)
    frequencies = F32(1) / (F32(factor) * plain) * (F32(1) - extrapolation) + F32(1) / plain * extrapolation
    return Rotation(frequencies, attention_factor=float(attention_factor))


KINDS = {"default": default, "linear": linear, "dynamic": dynamic, "llama3": llama3, "yarn": yarn}


def number(rope: dict, key: str) -> float:
    """A positive number of the rotary configuration."""
    value = rope.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise ConvertError(f"the rotary configuration's {key} is {value!r}, not a positive number")
    return value


def parameters(config: dict[str, Any], theta: float) -> dict[str, Any]:
    """The rotary configuration of a config.json, old style (rope_theta, rope_scaling) or new
    (rope_parameters), completed as RotaryEmbeddingConfigMixin of transformers does it. `theta` is the
    family's default base."""
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if not isinstance(rope, dict) or any(isinstance(value, dict) for value in rope.values()):
        raise ConvertError(
            "rotary parameters that differ between layers are not supported for this architecture"
        )
    rope = dict(rope)
    rope["rope_type"] = rope.get("rope_type") or rope.get("type") or "default"
    if rope.get("rope_theta") is None:
        rope["rope_theta"] = config["rope_theta"] if config.get("rope_theta") is not None else theta
    if config.get("original_max_position_embeddings") is not None:
        rope["original_max_position_embeddings"] = config["original_max_position_embeddings"]
    elif rope.get("original_max_position_embeddings") is None:
        rope["original_max_position_embeddings"] = config["max_position_embeddings"]
    partial = rope.get("partial_rotary_factor", config.get("partial_rotary_factor"))
    if partial not in (None, 1.0):
        raise ConvertError(f"partial_rotary_factor = {partial} is not supported, only 1")
    return rope


def rotation(config: dict[str, Any], theta: float, head_dim: int) -> Rotation:
    """The rotary table of a model whose layers all have the same one."""
    rope = parameters(config, theta)
    kind = rope["rope_type"]
    if kind not in KINDS:
        raise ConvertError(f"the rotary scaling {kind!r} is not supported; {', '.join(KINDS)} are")
    if number(rope, "rope_theta") <= 1:
        raise ConvertError(f"the rotary base rope_theta is {rope['rope_theta']}, not above 1")
    result = KINDS[kind](rope, head_dim, config["max_position_embeddings"])
    factors = rope.get("frequency_factors")
    if factors is not None:  # GGUF's rope_freqs.weight
        if factors.shape != (head_dim // 2,) or not (np.isfinite(factors).all() and (factors > 0).all()):
            raise ConvertError(
                f"rope_freqs.weight has the shape {factors.shape}, "
                f"expected ({head_dim // 2},) positive numbers"
            )
        result.frequencies = result.frequencies / factors.astype(F32)
    result.frequencies = result.frequencies.astype(F32)
    if not np.isfinite(result.frequencies).all() or not math.isfinite(result.attention_factor):
        raise ConvertError("the rotary parameters give frequencies that are not finite")
    return result
