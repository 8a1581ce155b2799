"""MXFP4 as gpt-oss and transformers write it: stacks of experts, X_blocks (experts, rows, groups, 16) with
two numbers E2M1 a byte, the lower four bits first, and X_scales (experts, rows, groups), the exponent of each
group of 32 columns with a bias of 127."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from . import packed, sources
from .packed import Section, Shelf
from .sources import ConvertError, FileTensor, Tensor, shown

KEYS = frozenset("modules_to_not_convert dequantize".split())


@dataclass(frozen=True)
class Settings:
    def __str__(self) -> str:
        return "MXFP4"


def settings(section: Section) -> Settings:
    return Settings()


def dequantize(settings: Settings, tensors: Mapping[str, FileTensor], shelf: Shelf) -> dict[str, Tensor]:
    """Replaces each pair by the stack (experts, rows, columns)."""
    stems = [name.removesuffix("_blocks") for name in tensors if name.endswith("_blocks")]
    parts = {stem + end for stem in stems for end in ("_blocks", "_scales")}
    return packed.replaced(tensors, parts, {stem: stack(tensors, stem) for stem in stems})


def stack(tensors: Mapping[str, FileTensor], stem: str) -> Tensor:
    blocks = packed.check_dtype(tensors[f"{stem}_blocks"], "U8")
    scales = packed.companion(tensors, f"{stem}_scales", blocks.name)
    if len(blocks.shape) != 4 or blocks.shape[3] != 16:
        raise ConvertError(
            f"{blocks.name} has the shape {shown(blocks.shape)}, expected (experts, rows, groups, 16)"
        )
    experts, rows, groups, _ = blocks.shape
    packed.check_shape(scales, experts, rows, groups)

    def codes(start: int, stop: int) -> np.ndarray:
        raw = blocks.raw(start * groups, stop * groups)
        return packed.unpack(raw.reshape(stop - start, -1), 4)

    scale, shape = packed.scaled_by_power(scales), (experts, rows, groups * 32)
    return packed.scaled(blocks.name, shape, codes, sources.E2M1, scale, width=32)
