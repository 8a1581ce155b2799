"""FP8 under the quant_method "fp8": X in 8 bits (E4M3) and X_scale_inv, the number that multiplies each
block, of 128 x 128 as a rule (DeepSeek, Qwen, MiniMax); or one number for all of X, X_scale in AutoFP8's
files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from . import packed, sources
from .packed import Section, Shelf
from .sources import FileTensor, Tensor

VALUES = {"F8_E4M3": sources.E4M3, "F8_E5M2": sources.E5M2}
SCALES = ("_scale_inv", "_scale")
# Of what comes in, and of keys and values, when they are 8 bits too
RUNTIME = (".activation_scale", ".input_scale", ".k_scale", ".v_scale", ".kv_scale")
KEYS = frozenset(
    """
    activation_scheme fmt weight_block_size modules_to_not_convert ignored_layers modules_to_convert
    dequantize scale_fmt expert_dtype
    """.split()
)


@dataclass(frozen=True)
class Settings:
    block: tuple[int, int] | None  # rows and columns; None: one scale for all

    def __str__(self) -> str:
        return "FP8 by {} x {}".format(*self.block) if self.block else "FP8"


def settings(section: Section) -> Settings:
    packed.choice(section, "scale_fmt", ("float", "ue8m0"), "float")
    packed.choice(section, "expert_dtype", ("fp8",), "fp8")
    return Settings(packed.block_size(section, "weight_block_size"))


def dequantize(settings: Settings, tensors: Mapping[str, FileTensor], shelf: Shelf) -> dict[str, Tensor]:
    """Replaces each pair by its matrix, or stack of matrices."""
    result: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name.endswith(RUNTIME):
            continue
        scales = next((end for end in SCALES if name.endswith(end)), None)
        if scales is not None:
            packed.check_dtype(packed.companion(tensors, name.removesuffix(scales), name), *VALUES)
        elif tensor.dtype in VALUES:
            scale = next((name + end for end in SCALES if name + end in tensors), name + SCALES[0])
            result[name] = matrix(settings, tensor, packed.companion(tensors, scale, name))
        else:
            result[name] = tensor
    return result


def matrix(settings: Settings, tensor: FileTensor, scale: FileTensor) -> Tensor:
    packed.check_matrix(tensor)
    if scale.dtype == "U8":
        scale = packed.scaled_by_power(scale)
    packed.check_dtype(scale, "F32", "BF16", "F16", "F8_E8M0")
    whole = tensor.shape[-2], tensor.shape[-1]
    height, width = whole if scale.shape == (1,) or settings.block is None else settings.block
    return packed.scaled(tensor.name, tensor.shape, tensor.raw, VALUES[tensor.dtype], scale, height, width)
