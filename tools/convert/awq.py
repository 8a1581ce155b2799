"""AWQ, as AutoAWQ writes it: integers of 4 bits with a scale and a zero point for each group of input
columns.

"gemm": a matrix (rows, cols) is qweight (cols, rows / 8), scales (groups, rows) and qzeros (groups, rows /
8); the eight rows in a word lie in an order of their own. "gemv": qweight (rows, cols / 8), scales and qzeros
by rows too, filled up to whole words, in order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from . import gptq, packed
from .packed import Section, Shelf
from .sources import ConvertError, FileTensor, Read, Tensor, shown

ORDER = np.array([0, 4, 1, 5, 2, 6, 3, 7])  # which nibble of a word each of its eight rows is
# By version. Those for exllama and ipex are reordered when they run
LAYOUTS = {"gemm": "gemm", "exllama": "gemm", "ipex": "gemm", "gemv": "gemv"}
KEYS = gptq.KEYS | frozenset(
    "w_bit q_group_size zero_point do_fuse fuse_max_seq_len modules_to_fuse modules_to_convert".split()
)
PARTS = ("qweight", "qzeros", "scales")
VALUES = np.arange(16, dtype=np.float32)


@dataclass(frozen=True)
class Settings:
    group_size: int  # -1: all columns
    layout: str

    def __str__(self) -> str:
        return "AWQ, 4 bits"


def settings(section: Section) -> Settings:
    packed.choice(section, "w_bit" if "w_bit" in section else "bits", (4,), 4)
    size = packed.group_size(section, "q_group_size" if "q_group_size" in section else "group_size")
    key = "version" if section.get("version") is not None else "format"
    name = section.get(key)
    lower = name.lower() if isinstance(name, str) else name
    return Settings(size, LAYOUTS[packed.choice({key: lower}, key, LAYOUTS, "gemm")])


def dequantize(settings: Settings, tensors: Mapping[str, FileTensor], shelf: Shelf) -> dict[str, Tensor]:
    """Replaces the tensors of each quantized matrix by the matrix."""
    return packed.by_qweight(tensors, PARTS, lambda stem: matrix(settings, tensors, stem, shelf))


def matrix(settings: Settings, tensors: Mapping[str, FileTensor], stem: str, shelf: Shelf) -> Tensor:
    qweight = packed.check_dtype(tensors[f"{stem}.qweight"], "I32")
    qzeros = packed.check_dtype(packed.companion(tensors, f"{stem}.qzeros", qweight.name), "I32")
    scales = packed.companion(tensors, f"{stem}.scales", qweight.name)
    packed.check_dtype(scales, "F16", "BF16", "F32")
    gemm = settings.layout == "gemm"
    rows, cols = (qweight.cols * 8, qweight.rows) if gemm else (qweight.rows, qweight.cols * 8)
    size = cols if settings.group_size == -1 else settings.group_size
    if not rows or not cols or cols % size:
        raise ConvertError(
            f"{qweight.name} has the shape {shown(qweight.shape)}, which does not fit groups of {size} "
            "columns"
        )
    groups, columns = cols // size, np.arange(cols) // size
    if gemm:
        packed.check_shape(scales, groups, rows)
        packed.check_shape(qzeros, groups, rows // 8)
        codes, zeros, by_row = ordered(qweight, shelf), ordered(qzeros, shelf), shelf.transposed(scales)
    else:
        words = -(-groups // 8)
        if size < 128:  # the kernel reads them in wider pieces
            words = -(-words // (128 // size)) * (128 // size)
        packed.check_shape(scales, rows, words * 8)
        packed.check_shape(qzeros, rows, words)
        codes, zeros, by_row = in_order(qweight, cols), in_order(qzeros, groups), scales.read

    def floats(start: int, stop: int) -> np.ndarray:
        return zeros(start, stop).astype(np.float32)

    return packed.Dequantized(qweight.name, (rows, cols), codes, VALUES, by_row, columns, floats)


def ordered(tensor: FileTensor, shelf: Shelf) -> Read:
    """The codes of a transposed matrix, by its columns."""

    def read(start: int, stop: int) -> np.ndarray:
        first = start // 8
        words = shelf.bytes_of(tensor)[:, first * 4 : -(-stop // 8) * 4]
        codes = packed.unpack(np.ascontiguousarray(words), 4).reshape(tensor.rows, -1, 8)[..., ORDER]
        part = codes.reshape(tensor.rows, -1)[:, start - 8 * first : stop - 8 * first]
        return np.ascontiguousarray(part.T)

    return read


def in_order(tensor: FileTensor, count: int) -> Read:
    """The first codes of each row."""
    return lambda start, stop: packed.unpack(tensor.raw(start, stop), 4)[:, :count]
