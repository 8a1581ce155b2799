"""What all formats of quantized checkpoints have in common: matrices of codes and scales, read as the float32
values that they stand for.

Each format (gptq.py, awq.py, compressed_tensors.py, fp8.py, mxfp4.py) says only where its codes, scales and
zero points lie; quantized.py has the table of them."""

from __future__ import annotations

import functools
import math
import re
import threading
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import numpy as np

from . import sources
from .sources import ConvertError, FileTensor, Grid, Read, Tensor, shown

Section = Mapping[str, Any]  # the configuration's quantization_config

HELD = 1 << 28  # bytes of tensors that are kept while their columns are read
SLICE = 1 << 12  # rows of scales that are looked at in one go


# ---------------------------------------------------------------------------------------------------------
# The configuration


def wrong(key: str, value: object, expected: str) -> ConvertError:
    return ConvertError(f"configuration: quantization_config.{key} is {shown(value)}; {expected}")


def choice(section: Section, key: str, known: Collection[Any], default: Any = None) -> Any:
    """The value of a key, one of those that are known; `default` where it is missing."""
    value = section.get(key)
    value = default if value is None else value
    found = [] if isinstance(value, bool) else [one for one in known if one == value]
    if not found:
        raise wrong(key, value, f"{', '.join(map(str, known))} can be read")
    return found[0]


def group_size(section: Section, key: str = "group_size", default: int = 128) -> int:
    """The columns that share a scale; -1: all."""
    value = section.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or not (value == -1 or 0 < value < 1 << 32):
        raise wrong(key, value, "it is a number of columns, or -1 for all")
    return value


def block_size(section: Section, key: str) -> tuple[int, int] | None:
    """The rows and columns that share a scale, or None where the key is missing."""
    value = section.get(key)
    if value is None:
        return None
    sizes = value
    if isinstance(value, str) and re.fullmatch(r"\d{1,9}x\d{1,9}", value, re.ASCII):  # in older files
        sizes = [int(size) for size in value.split("x")]
    numbers = isinstance(sizes, list) and all(isinstance(size, int) and 0 < size < 1 << 32 for size in sizes)
    if not numbers or len(sizes) != 2:
        raise wrong(key, value, "it is a number of rows and one of columns")
    return sizes[0], sizes[1]


# ---------------------------------------------------------------------------------------------------------
# The tensors


def companion(tensors: Mapping[str, FileTensor], name: str, of: str) -> FileTensor:
    """The tensor that another one cannot be read without."""
    if name not in tensors:
        raise ConvertError(f"{name} is missing, which {of} needs")
    return tensors[name]


def replaced(
    tensors: Mapping[str, FileTensor], parts: Collection[str], matrices: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The tensors, with matrices in the place of the parts that they are made of."""
    rest = {name: tensor for name, tensor in tensors.items() if name not in parts}
    twice = sorted(rest.keys() & matrices.keys())
    if twice:
        raise ConvertError(f"{sources.listing(twice)} occurs twice, quantized and as it is")
    return {**rest, **matrices}


def by_qweight(
    tensors: Mapping[str, FileTensor], parts: Iterable[str], matrix: Callable[[str], Tensor]
) -> dict[str, Tensor]:
    """replaced(), of matrices whose stems are those of the tensors *.qweight."""
    stems = [name.removesuffix(".qweight") for name in tensors if name.endswith(".qweight")]
    used = {f"{stem}.{part}" for stem in stems for part in parts}
    return replaced(tensors, used, {f"{stem}.weight": matrix(stem) for stem in stems})


def check_dtype(tensor: FileTensor, *known: str) -> FileTensor:
    if tensor.dtype not in known:
        raise ConvertError(f"{tensor.name} is {tensor.dtype}, expected {' or '.join(known)}")
    return tensor


def check_shape(tensor: FileTensor, *shape: int) -> FileTensor:
    if tensor.shape != shape:
        raise ConvertError(f"{tensor.name} has the shape {shown(tensor.shape)}, expected {shown(shape)}")
    return tensor


def check_matrix(tensor: FileTensor) -> FileTensor:
    if len(tensor.shape) not in (2, 3) or 0 in tensor.shape:
        raise ConvertError(f"{tensor.name} has the shape {shown(tensor.shape)}, expected a matrix")
    return tensor


def integers(tensor: FileTensor) -> np.ndarray:
    """All values of a small tensor of integers, int64."""
    width = {"I32": "<i4", "I64": "<i8"}[check_dtype(tensor, "I32", "I64").dtype]
    return tensor.raw(0, tensor.rows).reshape(-1).view(width).astype(np.int64)


def unpack(raw: np.ndarray, bits: int) -> np.ndarray:
    """Rows of bytes, uint8 (n, bytes), to codes of so many bits, uint8 (n, bytes * 8 / bits), the lowest bits
    first. Codes of 3, 5 or 6 bits may begin in one word and end in the next."""
    mask = (1 << bits) - 1
    if 8 % bits == 0:
        out = np.empty((*raw.shape, 8 // bits), np.uint8)
        for i in range(8 // bits):
            np.bitwise_and(raw >> (i * bits), mask, out=out[..., i])
        return out.reshape(len(raw), -1)
    whole = np.zeros((len(raw), -(-raw.shape[1] // (4 * bits)) * 4 * bits), np.uint8)
    whole[:, : raw.shape[1]] = raw
    words = whole.view("<u4").reshape(len(raw), -1, bits)  # 32 codes are as many words as a code has bits
    out = np.empty((*words.shape[:2], 32), np.uint8)
    for i in range(32):
        word, shift = divmod(i * bits, 32)
        code = words[..., word] >> shift
        if shift + bits > 32:
            code |= words[..., word + 1] << (32 - shift)
        out[..., i] = code & mask
    return out.reshape(len(raw), -1)


def unpack_columns(raw: np.ndarray, bits: int, start: int, stop: int) -> np.ndarray:
    """Columns start to stop of what unpack() makes, without the others."""
    first = start // 32
    part = raw[:, first * 4 * bits : -(-stop // 32) * 4 * bits]
    return unpack(np.ascontiguousarray(part), bits)[:, start - 32 * first : stop - 32 * first]


class Shelf:
    """Whole tensors as they lie in the file, for formats that keep matrices transposed: some rows of such a
    matrix are a little of everywhere in the file. The last ones read are kept, up to HELD bytes or one."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.kept: dict[str, np.ndarray] = {}

    def bytes_of(self, tensor: FileTensor) -> np.ndarray:
        """uint8 (rows, row_bytes), to be read only."""
        with self.lock:
            found = self.kept.pop(tensor.name, None)
            if found is None:
                found = tensor.raw(0, tensor.rows)
            self.kept[tensor.name] = found  # the last in order: it goes last
            while len(self.kept) > 1 and sum(raw.nbytes for raw in self.kept.values()) > HELD:
                del self.kept[next(iter(self.kept))]
            return found

    def transposed(self, tensor: FileTensor) -> Read:
        """The columns of a tensor of numbers as rows, float32 (n, rows)."""

        def read(start: int, stop: int) -> np.ndarray:
            raw = self.bytes_of(tensor)
            width = tensor.row_bytes // tensor.cols
            part = np.ascontiguousarray(raw[:, start * width : stop * width])
            columns: np.ndarray = np.ascontiguousarray(tensor.decode(part).T)
            return columns

        return read


def blocks(scale: Tensor, rows: int, height: int) -> Read:
    """Rows of scales, of which each serves `height` rows of a matrix, of several in a stack of this many rows
    each."""
    per_matrix = -(-rows // height)

    def read(start: int, stop: int) -> np.ndarray:
        row = np.arange(start, stop)
        block = row // rows * per_matrix + row % rows // height
        low = int(block[0])
        numbers: np.ndarray = scale.read(low, int(block[-1]) + 1)[block - low]
        return numbers

    return read


class Dequantized(Tensor):
    """(values[codes] - zeros) * scales, in float32, in this order of operations."""

    def __init__(
        self,
        name: str,
        shape: tuple[int, ...],
        codes: Read,
        values: np.ndarray,
        scales: Read,
        columns: np.ndarray,
        zeros: Read | None = None,
    ) -> None:
        """codes   uint8 (n, cols)
        values  what they mean, float32, one for each
        scales  float32 (n, groups)
        columns which group each column is of, (cols,)
        zeros   float32 (n, groups), or None: all 0"""
        super().__init__(name, shape)
        self.codes, self.values, self.scales, self.columns, self.zeros = codes, values, scales, columns, zeros
        groups = int(columns[-1]) + 1
        even = np.arange(self.cols) // -(-self.cols // groups)
        # 0: a group's columns are not beside each other, or one has fewer
        self.groups = groups if self.cols % groups == 0 and np.array_equal(columns, even) else 0

    def read(self, start: int, stop: int) -> np.ndarray:
        w: np.ndarray = np.take(self.values, self.codes(start, stop))
        with np.errstate(all="ignore"):  # what is not finite is refused by name, when it is written
            if self.zeros is not None:
                self.each_group(np.subtract, w, self.zeros(start, stop))
            self.each_group(np.multiply, w, self.scales(start, stop))
        return w

    def each_group(self, operation: np.ufunc, w: np.ndarray, numbers: np.ndarray) -> None:
        """w = operation(w, the number (n, groups) of each column's group)."""
        if self.groups:
            in_groups = w.reshape(len(w), self.groups, -1)
            operation(in_groups, numbers[:, : self.groups, None], out=in_groups)
        else:
            operation(w, numbers[:, self.columns], out=w)

    def grid(self) -> Grid | None:
        return self.own_grid

    @functools.cached_property
    def own_grid(self) -> Grid | None:
        """Grid's codebook is of integers, so E2M1's halves are doubled and the scales halved. There is none
        if zero points differ, a scale is for parts of 32 columns, or fp16 does not hold one."""
        if len(self.values) > 16 or self.cols % Grid.COLUMNS:
            return None
        groups = self.columns.reshape(-1, Grid.COLUMNS)
        zero = self.common_zero()
        if zero is None or (groups != groups[:, :1]).any():
            return None
        book = self.values - np.float32(zero)
        double = bool((book % 1).any())
        codebook = np.zeros(16, np.int8)
        codebook[: len(book)] = book * 2 if double else book
        factor, firsts = np.float32(0.5 if double else 1), groups[:, 0]

        def scales(start: int, stop: int) -> np.ndarray:
            exact: np.ndarray = self.scales(start, stop)[:, firsts] * factor
            return exact.astype(np.float16)

        for start, stop in self.slices():
            exact = self.scales(start, stop) * factor
            with np.errstate(over="ignore"):
                if not np.array_equal(exact.astype(np.float16), exact):
                    return None
        return Grid(codebook, self.codes, scales)

    def common_zero(self) -> float | None:
        """The zero point of all groups, if it is the same."""
        if self.zeros is None:
            return 0.0
        first = float(self.zeros(0, 1)[0, 0])
        same = all((self.zeros(start, stop) == first).all() for start, stop in self.slices())
        return first if same else None

    def slices(self) -> list[tuple[int, int]]:
        return [(start, min(start + SLICE, self.rows)) for start in range(0, self.rows, SLICE)]


def scaled(
    name: str,
    shape: tuple[int, ...],
    codes: Read,
    values: np.ndarray,
    scale: Tensor,
    height: int = 1,
    width: int = 1,
    zeros: Read | None = None,
    columns: np.ndarray | None = None,
) -> Dequantized:
    """A matrix, or a stack of them, of which blocks of height x width have a scale; `columns` where the
    columns of a group are not beside each other. The scales' number is checked."""
    if len(shape) < 2 or 0 in shape:
        raise ConvertError(f"{name} has the shape {shown(shape)}, expected a matrix")
    *stack, rows, cols = shape
    expected = math.prod(stack) * -(-rows // height), -(-cols // width)
    if (scale.rows, scale.cols) != expected:
        raise ConvertError(f"{scale.name} has the shape {shown(scale.shape)}, expected {shown(expected)}")
    if columns is None:
        columns = np.arange(cols) // width
    return Dequantized(name, shape, codes, values, blocks(scale, rows, height), columns, zeros)


def scaled_by_power(scale: FileTensor) -> FileTensor:
    """Scales that are stored as biased exponents in plain bytes."""
    check_dtype(scale, "U8", "F8_E8M0")
    decode = sources.STORED["F8_E8M0"][1]
    return FileTensor(scale.name, scale.shape, scale.file, scale.offset, scale.row_bytes, decode, "F8_E8M0")
