"""Rotary tables: for each of head_dim / 2 pairs a frequency in radians a position and a magnitude, float32,
with every scaling applied.

The formulas are those of transformers (modeling_rope_utils.py and each model's
compute_default_rope_parameters), in float32 as there. Powers are computed in float64 and rounded, which is
closer to torch's than numpy's float32 power."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from .sources import ConvertError, shown

F32 = np.float32


@dataclass
class Rotation:
    """What one rotary configuration comes to."""

    frequencies: np.ndarray  # (rotary_dim / 2,) float32
    attention_factor: float = 1.0  # multiplies cosines and sines
    context: int | None = None  # positions that it is for, where those are not the model's own
    note: str | None = None


@dataclass
class Tables:
    """The rotary tables of a model."""

    angles: np.ndarray  # (n_rope, rope_dim / 2, 2) float32: frequency and magnitude
    layers: list[int]  # (n_layers,) the table of each layer
    context: int  # positions that they are for
    notes: list[str]


def powers(base: float, dim: int) -> np.ndarray:
    """base ** (2i / dim), (dim / 2,) float32."""
    exponents = np.arange(0, dim, 2, dtype=F32) / F32(dim)
    exact: np.ndarray = np.power(np.float64(F32(base)), exponents.astype(np.float64))
    return exact.astype(F32)


def default(rope: dict[str, Any], dim: int, context: int) -> Rotation:
    """LlamaRotaryEmbedding.compute_default_rope_parameters."""
    return Rotation(F32(1) / powers(rope["rope_theta"], dim))


def linear(rope: dict[str, Any], dim: int, context: int) -> Rotation:
    """_compute_linear_scaling_rope_parameters."""
    return Rotation(default(rope, dim, context).frequencies / F32(number(rope, "factor")))


def dynamic(rope: dict[str, Any], dim: int, context: int) -> Rotation:
    """_compute_dynamic_ntk_parameters: nothing is scaled up to max_position_embeddings, so within it the
    plain table is exact. With alpha it is another one (HunYuanDenseV1RotaryEmbedding)."""
    if rope.get("alpha") is not None:
        base = rope["rope_theta"] * number(rope, "alpha") ** (dim / (dim - 2))
        return default(rope | {"rope_theta": base}, dim, context)
    return Rotation(
        default(rope, dim, context).frequencies,
        note=f"dynamic rotary scaling begins after {context} positions: "
        "inside this context it changes nothing",
    )


def llama3(rope: dict[str, Any], dim: int, context: int) -> Rotation:
    """_compute_llama3_parameters. Llama 4 Scout's low and high are equal: nothing is between them."""
    inv_freq = default(rope, dim, context).frequencies
    factor, low, high = (number(rope, key) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    old = number(rope, "original_max_position_embeddings")
    wavelen = F32(2 * math.pi) / inv_freq
    scaled = np.where(wavelen > F32(old / low), inv_freq / F32(factor), inv_freq)
    smooth = (F32(old) / wavelen - F32(low)) / F32(high - low)
    smoothed = (F32(1) - smooth) * scaled / F32(factor) + smooth * scaled
    medium = ~(wavelen < F32(old / high)) & ~(wavelen > F32(old / low))
    return Rotation(np.where(medium, smoothed, scaled))


def magnitude(scale: float, m: float = 1) -> float:
    """get_mscale of _compute_yarn_parameters, and DeepSeek's yarn_get_mscale."""
    return 1.0 if scale <= 1 else 0.1 * m * math.log(scale) + 1.0


def score_scale(config: dict[str, Any]) -> float:
    """yarn_apply_mscale of DeepseekV2Attention: what scores are multiplied by beside
    1 / sqrt(head_dim), where all of a head has the rotation's magnitude and not only what turns."""
    rope = parameters(config, config["rope_theta"], "full_attention", local=False)
    if rope["rope_type"] == "default" or not rope.get("mscale_all_dim"):
        return 1.0
    return magnitude(number(rope, "factor"), number(rope, "mscale_all_dim")) ** 2


def yarn(rope: dict[str, Any], dim: int, context: int) -> Rotation:
    """_compute_yarn_parameters."""
    base, old = rope["rope_theta"], number(rope, "original_max_position_embeddings")
    factor = number(rope, "factor") if rope.get("factor") is not None else context / old
    beta_fast, beta_slow = rope.get("beta_fast") or 32, rope.get("beta_slow") or 1
    mscale, mscale_all_dim = rope.get("mscale"), rope.get("mscale_all_dim")

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


def longrope(rope: dict[str, Any], dim: int, context: int) -> Rotation:
    """_compute_longrope_parameters, and dynamic_rope_update: a sequence longer than the original context has
    the long factors at all its positions, a shorter one the short factors."""
    old, wanted = number(rope, "original_max_position_embeddings"), rope["wanted"] or 0
    factor = number(rope, "factor") if rope.get("factor") is not None else context / old
    attention_factor = rope.get("attention_factor")
    if attention_factor is None:
        attention_factor = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(old))
    chosen, both = "long_factor" if wanted > old else "short_factor", []
    for key in ("short_factor", "long_factor"):
        factors = np.array(rope.get(key) or (), F32)
        if factors.shape != (dim // 2,) or not (np.isfinite(factors).all() and (factors > 0).all()):
            raise ConvertError(f"the rotary configuration's {key} is not {dim // 2} positive numbers")
        both.append(factors)
    frequencies = F32(1) / (both[chosen == "long_factor"] * powers(rope["rope_theta"], dim))
    note = None
    if context > old and not wanted > old:
        note = (
            f"made for {old} positions; --context with a number from {old + 1} to {context} gives a file for "
            "longer texts, with the model's rotary factors for these"
        )
    return Rotation(frequencies, float(attention_factor), context=min(int(old), context), note=note)


def proportional(rope: dict[str, Any], dim: int, context: int) -> Rotation:
    """_compute_proportional_rope_parameters: the last pairs of a head do not turn."""
    share = number(rope, "partial_rotary_factor") if rope.get("partial_rotary_factor") is not None else 1.0
    frequencies = default(rope, dim, context).frequencies
    frequencies[int(share * dim // 2) :] = 0
    return Rotation(frequencies / F32(number(rope, "factor") if rope.get("factor") is not None else 1))


KINDS = {
    "default": default,
    "linear": linear,
    "dynamic": dynamic,
    "llama3": llama3,
    "yarn": yarn,
    "longrope": longrope,
    "proportional": proportional,
}


def number(rope: dict[str, Any], key: str) -> float:
    """A positive number of the rotary configuration."""
    value = rope.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise ConvertError(f"the rotary configuration's {key} is {shown(value)}, not a positive number")
    return value


def parameters(config: dict[str, Any], theta: float, kind: str, local: bool) -> dict[str, Any]:
    """The rotary configuration of the layers of this kind ("full_attention", "sliding_attention"), old style
    (rope_theta, rope_scaling) or new (rope_parameters, which may have one for each kind of layer), completed
    as RotaryEmbeddingConfigMixin of transformers does it. `theta` is the family's default base. With `local`
    layers with a window are not scaled, and have the base rope_local_base_freq."""
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    top = {key: config.get(key) for key in ("rope_theta", "original_max_position_embeddings")}
    if isinstance(rope, dict) and isinstance(rope.get(kind), dict):
        rope, top = rope[kind], {}
    elif local and kind == "sliding_attention":
        base = rope.get("rope_theta") if isinstance(rope, dict) else None
        rope, top = {}, {"rope_theta": config.get("rope_local_base_freq") or base or top["rope_theta"]}
    if not isinstance(rope, dict) or any(isinstance(value, dict) for value in rope.values()):
        raise ConvertError("the rotary parameters are not understood")
    rope = dict(rope)
    rope["rope_type"] = rope.get("rope_type") or rope.get("type") or "default"
    if rope.get("long_factor") is not None:  # also called "su" and "yarn" in early Phi-3 configurations
        rope["rope_type"] = "longrope"
    if rope.get("rope_theta") is None:
        rope["rope_theta"] = top.get("rope_theta") or theta
    if top.get("original_max_position_embeddings") is not None:
        rope["original_max_position_embeddings"] = top["original_max_position_embeddings"]
    elif rope.get("original_max_position_embeddings") is None:
        rope["original_max_position_embeddings"] = config["max_position_embeddings"]
    return rope


def rotary_dim(config: dict[str, Any], head_dim: int, kind: str | None) -> int:
    """How many elements of a head turn, in layers of this kind; None: all could."""
    if kind is None:
        return head_dim
    flat = config.get("rope_scaling") or config.get("rope_parameters") or {}
    flat = flat[kind] if isinstance(flat, dict) and isinstance(flat.get(kind), dict) else flat
    dim = flat.get("rotary_dim") if isinstance(flat, dict) else None
    dim = config.get("rotary_dim") if dim is None else dim
    if dim is None:
        if isinstance(flat, dict) and flat.get("rope_type") == "proportional":
            return head_dim  # of which the last pairs have the frequency 0
        partial = flat.get("partial_rotary_factor") if isinstance(flat, dict) else None
        partial = config.get("partial_rotary_factor") if partial is None else partial
        partial = 1 if partial is None else partial
        if isinstance(partial, bool) or not isinstance(partial, (int, float)) or not 0 < partial <= 1:
            raise ConvertError(f"partial_rotary_factor is {shown(partial)}, not a number from 0 to 1")
        dim = int(head_dim * partial)
    if isinstance(dim, bool) or not isinstance(dim, int) or dim % 2 or not 0 < dim <= head_dim:
        raise ConvertError(f"{shown(dim)} of a head's {head_dim} elements would turn, which is not supported")
    return dim


def head_order(head_dim: int, turning: int, interleaved: bool) -> np.ndarray:
    """(head_dim,): which of its elements a head has at each place so that i pairs with i + head_dim / 2 and
    the pairs that turn come first. Of the first `turning` elements as they were, i pairs with
    i + turning / 2, or if interleaved 2i with 2i + 1; the others do not turn."""
    pairs = np.arange(turning).reshape(-1, 2).T if interleaved else np.arange(turning).reshape(2, -1)
    return np.concatenate([pairs, np.arange(turning, head_dim).reshape(2, -1)], axis=1).reshape(-1)


def behind(n: int, order: np.ndarray) -> np.ndarray:
    """An order of elements behind n others that stay."""
    return np.concatenate([np.arange(n), n + order])


def rotation(rope: dict[str, Any], dim: int, context: int) -> Rotation:
    """The frequencies and the magnitude of a rotary configuration, for `dim` elements that turn."""
    kind = rope["rope_type"]
    if not isinstance(kind, str) or kind not in KINDS:
        raise ConvertError(f"the rotary scaling {shown(kind)} is not supported; {', '.join(KINDS)} are")
    if number(rope, "rope_theta") <= 1:
        raise ConvertError(f"the rotary base rope_theta is {shown(rope['rope_theta'])}, not above 1")
    try:
        with np.errstate(all="ignore"):  # what is not finite is refused below
            result = KINDS[kind](rope, dim, context)
    except ConvertError:
        raise
    except (TypeError, ValueError, ArithmeticError) as error:  # of a value that is no number, or far off
        raise ConvertError(f"the rotary configuration of the kind {kind} is wrong ({error})") from None
    factors = rope.get("frequency_factors")
    if factors is not None:  # GGUF's rope_freqs.weight
        if factors.shape != (dim // 2,) or not (np.isfinite(factors).all() and (factors > 0).all()):
            raise ConvertError(
                f"rope_freqs.weight has the shape {factors.shape}, expected ({dim // 2},) positive numbers"
            )
        result.frequencies = result.frequencies / factors.astype(F32)
    if not np.isfinite(result.frequencies).all() or not math.isfinite(result.attention_factor):
        raise ConvertError("the rotary parameters give frequencies that are not finite")
    return result


def tables(
    config: dict[str, Any],
    kinds: list[str | None],
    rope_dim: int,
    turning: list[int],
    local: bool,
    wanted: int | None,
) -> Tables:
    """The tables, for heads of up to rope_dim elements, of a model whose layers are of these kinds, None
    being one that does not turn, and of whose heads so many elements turn. `wanted` is the context that the
    user asks for, None for the model's."""
    longest = config["max_position_embeddings"]
    found: list[bytes] = []
    layers = list(zip(kinds, turning, strict=True))
    which: dict[tuple[str | None, int], int] = {}
    result = Tables(np.zeros((0, rope_dim // 2, 2), F32), [], longest, [])
    for kind, dim in dict.fromkeys(layers):
        angles = np.zeros((rope_dim // 2, 2), F32)
        angles[:, 1] = 1
        if kind is not None:
            rope = parameters(config, config["rope_theta"], kind, local) | {"wanted": wanted}
            one, pairs = rotation(rope, dim, longest), dim // 2
            angles[:pairs, 0], angles[:pairs, 1] = one.frequencies, one.attention_factor
            result.context = min(result.context, one.context or longest)
            result.notes += [one.note] if one.note and one.note not in result.notes else []
        if angles.tobytes() not in found:
            found.append(angles.tobytes())
            result.angles = np.concatenate([result.angles, angles[None]])
        which[kind, dim] = found.index(angles.tobytes())
    result.layers = [which[layer] for layer in layers]
    return result
