"""GPTQ, as AutoGPTQ and GPTQModel write it: integers of 2, 3, 4 or 8 bits, packed down the columns of the
transposed matrix, with a scale and a zero point for each group of input columns.

A matrix (rows, cols) is qweight (cols * bits / 32, rows), scales (groups, rows), qzeros (groups, rows * bits
/ 32) and g_idx (cols,), the group of each column."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from . import packed
from .packed import Section, Shelf
from .sources import ConvertError, FileTensor, Tensor, shown

BITS = (2, 3, 4, 8)
PARTS = ("qweight", "qzeros", "scales", "g_idx")
KEYS = frozenset(
    """
    bits group_size checkpoint_format format is_marlin_format dynamic pack_dtype desc_act sym
    static_groups true_sequential damp_percent damp_auto_increment act_group_aware mse lm_head meta version
    quantizer model_name_or_path model_file_base_name batch_size block_name_to_quantize cache_block_outputs
    dataset tokenizer exllama_config use_exllama disable_exllama use_cuda_fp16 backend max_input_length
    model_seqlen module_name_preceding_first_block modules_in_block_to_quantize modules_to_not_convert
    pad_token_id
    """.split()
)


@dataclass(frozen=True)
class Settings:
    bits: int
    group_size: int  # -1: all columns
    first_version: bool  # zero points are stored less one
    varies: bool  # modules have bits and groups of their own

    def __str__(self) -> str:
        return f"GPTQ, {self.bits} bits"


def settings(section: Section) -> Settings:
    if section.get("is_marlin_format"):
        raise packed.wrong("is_marlin_format", True, "Marlin's order of weights is not read")
    key = "checkpoint_format" if section.get("checkpoint_format") is not None else "format"
    version = packed.choice(section, key, ("gptq", "gptq_v2"), "gptq")
    packed.choice(section, "pack_dtype", ("int32",), "int32")
    bits = packed.choice(section, "bits", BITS)
    return Settings(bits, packed.group_size(section), version == "gptq", bool(section.get("dynamic")))


def dequantize(settings: Settings, tensors: Mapping[str, FileTensor], shelf: Shelf) -> dict[str, Tensor]:
    """Replaces the tensors of each quantized matrix by the matrix."""
    return packed.by_qweight(tensors, PARTS, lambda stem: matrix(settings, tensors, stem, shelf))


def matrix(settings: Settings, tensors: Mapping[str, FileTensor], stem: str, shelf: Shelf) -> Tensor:
    qweight = packed.check_dtype(tensors[f"{stem}.qweight"], "I32")
    qzeros = packed.check_dtype(packed.companion(tensors, f"{stem}.qzeros", qweight.name), "I32")
    scales = packed.companion(tensors, f"{stem}.scales", qweight.name)
    packed.check_dtype(scales, "F16", "BF16", "F32")
    words, rows = qweight.rows, qweight.cols
    bits, groups = settings.bits, scales.rows
    if f"{stem}.g_idx" in tensors:
        columns = packed.integers(tensors[f"{stem}.g_idx"])
        if settings.varies and len(columns):
            bits = words * 32 // len(columns)
    else:
        cols = words * 32 // bits
        columns = np.arange(cols) // (cols if settings.group_size == -1 else settings.group_size)
    cols = len(columns)
    if bits not in BITS or words != -(-cols * bits // 32) or not cols:
        raise ConvertError(
            f"{qweight.name} has the shape {shown(qweight.shape)}, which does not fit {cols} columns of "
            f"{bits} bits"
        )
    if not settings.varies:
        groups = 1 if settings.group_size == -1 else -(-cols // settings.group_size)
    packed.check_shape(scales, groups, rows)
    packed.check_shape(qzeros, groups, -(-rows * bits // 32))
    if columns.min() < 0 or columns.max() >= groups:
        raise ConvertError(f"{stem}.g_idx names a group that is not one of {groups}")
    mask = (1 << bits) - 1

    def codes(start: int, stop: int) -> np.ndarray:
        down = shelf.bytes_of(qweight).view("<u4")[:, start:stop]
        return packed.unpack(np.ascontiguousarray(down.T).view(np.uint8), bits)[:, :cols]

    def zeros(start: int, stop: int) -> np.ndarray:
        stored = packed.unpack_columns(shelf.bytes_of(qzeros), bits, start, stop).T
        points: np.ndarray = (stored + settings.first_version) & mask
        return points.astype(np.float32)

    values = np.arange(1 << bits, dtype=np.float32)
    return packed.Dequantized(
        f"{stem}.qweight", (rows, cols), codes, values, shelf.transposed(scales), columns, zeros
    )
