"""The rotary parameters of a GGUF file, from its metadata and its tensors of factors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .configuration import Config
from .gguf_architectures import Get
from .sources import ConvertError, shown

# Tensors of factors of the rotary frequencies, all (turning elements of a head / 2,)
FACTORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
MAX_FACTORS = 1 << 16  # of one of them; a head has fewer elements


def rope_parameters(get: Get, factors: Mapping[str, np.ndarray], latent: bool = False) -> dict[str, Any]:
    """config.json's rope_parameters from the metadata under `rope.` and the tensors of FACTORS."""
    rope: dict[str, Any] = {"rope_theta": get("rope.freq_base") or 10000.0}
    kind = get("rope.scaling.type")
    factor = get("rope.scaling.factor") or get("rope.scale_linear") or 1.0
    attn_factor = get("rope.scaling.attn_factor") or 1.0
    if "rope_factors_long.weight" in factors or "rope_factors_short.weight" in factors:
        kind = "longrope"
    elif kind is None:
        kind = "linear" if factor != 1.0 else "none"
    if kind not in ("none", "linear", "yarn", "longrope"):
        raise ConvertError(
            f"the rotary scaling rope.scaling.type = {shown(kind)} is not supported; none, linear, yarn and "
            "longrope are"
        )
    if attn_factor != 1.0 and kind != "longrope":
        raise ConvertError(f"rope.scaling.attn_factor = {attn_factor} is not supported, only 1")
    for key in ("yarn_ext_factor", "yarn_attn_factor"):
        if get(f"rope.scaling.{key}") not in (None, 1.0):
            raise ConvertError(f"rope.scaling.{key} = {get(f'rope.scaling.{key}')} is not supported, only 1")
    scale = get("rope.scaling.yarn_log_multiplier") or 0.0
    if scale and kind != "yarn":
        raise ConvertError(f"rope.scaling.yarn_log_multiplier = {shown(scale)} is not supported without yarn")
    if kind == "longrope":
        found = {key: factors.get(f"rope_factors_{key}.weight") for key in ("long", "short")}
        return rope | {
            "rope_type": "longrope",
            "attention_factor": attn_factor,
            **{f"{key}_factor": [] if f is None else f.tolist() for key, f in found.items()},
        }
    rope["rope_type"] = "default" if kind == "none" or factor == 1.0 else kind
    if rope["rope_type"] != "default":
        rope["factor"] = factor
    if rope["rope_type"] == "yarn":
        rope["beta_fast"] = get("rope.scaling.yarn_beta_fast")
        rope["beta_slow"] = get("rope.scaling.yarn_beta_slow")
    if scale and latent:  # a tenth of it, see llama_model_deepseek2
        rope |= dict.fromkeys(("mscale", "mscale_all_dim"), scale / 0.1)
    elif scale:  # llama_context: the magnitude of 1 over that of this
        rope |= {"mscale": 1.0, "mscale_all_dim": scale}
    if "rope_freqs.weight" in factors:
        if rope["rope_type"] == "yarn":
            raise ConvertError("rope_freqs.weight together with yarn scaling is not supported")
        rope["frequency_factors"] = factors["rope_freqs.weight"]
    return rope


def with_local_rope(rope: Config, get: Get) -> Config:
    """rope_parameters by kinds of layers: those with a window have their own base and turning elements."""
    local = {"rope_type": "default", "rope_theta": get("rope.freq_base_swa") or rope["rope_theta"]}
    turning = get("rope.dimension_count"), get("rope.dimension_count_swa")
    if turning[1] is not None:
        rope, local = rope | {"rotary_dim": turning[0]}, local | {"rotary_dim": turning[1]}
    return {"full_attention": rope, "sliding_attention": local}
