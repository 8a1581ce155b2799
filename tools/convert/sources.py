"""Tensors of a model file, read a few rows at a time, and what else the converter takes from a source.

Every reader (huggingface.py, gguf_file.py, llama2c.py) returns a Source: the configuration under the keys of
Hugging Face's config.json, and the tensors with the rows in Hugging Face's order and the values that Hugging
Face stores. Whatever differs in a format is undone there, so that families/ describes a family once.
Nothing here keeps a tensor in memory."""

from __future__ import annotations

import itertools
import json
import math
import os
import re
import reprlib
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from pyllm import files

MAX_JSON = 100_000_000  # bytes, the limit that the safetensors library has for its header
# What stands in a repository for a file that git-lfs keeps elsewhere
POINTERS = (b"version https://git-lfs.github.com/spec/", b"version https://hawser.github.com/spec/")
PAGES = (b"<!doctype html", b"<html")
# What Python raises about a value that is not what a format says
MALFORMED = (
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    ArithmeticError,
    RecursionError,
    MemoryError,
    struct.error,
    re.error,
)


class ConvertError(ValueError):
    """The source cannot be converted; the message says why in one line."""


class File:
    """A file that is read at offsets, by any thread. Reads are copies (no memory map), so that memory stays
    flat. ConvertError for what is no regular file, is empty (unless it may be), or plainly is not the file
    itself."""

    def __init__(self, path: Path, may_be_empty: bool = False) -> None:
        self.path = path
        if path.is_symlink() and not path.exists():
            raise ConvertError(f"{path} is a link to {os.readlink(path)}, which does not exist")
        # A pipe that nobody writes to would block without O_NONBLOCK
        self.fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | getattr(os, "O_CLOEXEC", 0))
        try:
            status = os.fstat(self.fd)
            self.size = status.st_size
            if kind := files.kind_of(status.st_mode):
                raise ConvertError(f"{path} is {kind}, not a file")
            if self.size == 0 and not may_be_empty:
                raise ConvertError(f"{path}: truncated, it is empty")
            head = self.read(0, min(self.size, 256)).tobytes()
            if head.startswith(POINTERS):
                raise ConvertError(f"{path} is a git-lfs pointer, not the file itself: git lfs pull")
            if head.lstrip().lower().startswith(PAGES):
                raise ConvertError(f"{path} is an HTML page, not the file itself: its download failed")
        except BaseException:
            self.close()
            raise

    def read(self, offset: int, size: int) -> np.ndarray:
        """`size` bytes at `offset`, uint8 (size,)."""
        out = np.empty(size, np.uint8)
        view, done = out.data, 0
        while done < size:
            try:
                got = os.preadv(self.fd, [view[done:]], offset + done)
            except OSError as error:
                raise OSError(error.errno, error.strerror, str(self.path)) from None
            if got == 0:
                raise ConvertError(
                    f"{self.path}: truncated, it ends at byte {self.size} and byte {offset + size} is needed"
                )
            done += got
        return out

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
        self.fd = -1


def check_file(path: Path) -> None:
    """Refuses what is not the file itself, where other code will read it. One that is missing is none."""
    if os.path.lexists(path):
        File(path, may_be_empty=True).close()


def read_text(path: Path, may_be_empty: bool = False) -> str:
    """A file of text in UTF-8."""
    file = File(path, may_be_empty)
    try:
        if file.size > MAX_JSON:
            raise ConvertError(f"{path}: {file.size} bytes, more than {MAX_JSON} are not read")
        return file.read(0, file.size).tobytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConvertError(f"{path}: not UTF-8 ({error})") from None
    finally:
        file.close()


def read_json(path: Path, required: bool = True) -> dict[str, Any]:
    """The object in a JSON file; {} when it is missing and not required."""
    if not required and not os.path.lexists(path):
        return {}
    try:
        text = read_text(path)
        value = json.loads(text)
    except FileNotFoundError:
        raise ConvertError(f"{path.parent}: there is no {path.name} in it") from None
    except ConvertError:
        raise
    except (ValueError, RecursionError) as error:
        raise ConvertError(f"{path}: not valid JSON ({error}); it begins with {shown(text)}") from None
    if not isinstance(value, dict):
        raise ConvertError(f"{path}: not a JSON object")
    return value


class Short(reprlib.Repr):
    """repr() for messages: of any value, however long or deep."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother, self.maxlong = 3, 60, 60, 60

    def repr_int(self, x: int, level: int) -> str:
        return super().repr_int(x, level) if abs(x) < 1 << 64 else "a number of more than 64 bits"


def shown(value: object) -> str:
    """A value of a file, for a message."""
    return Short().repr(value)


class Tensor:
    """A tensor seen as a matrix: its last dimension is the columns, all others are the rows; (n,) is n rows
    of one column."""

    def __init__(self, name: str, shape: tuple[int, ...]) -> None:
        self.name = name  # as the source spells it
        self.shape = shape
        self.cols = shape[-1] if len(shape) > 1 else 1
        # A shape with a 0 may have any numbers beside it, and nothing is there to be read
        self.rows = 0 if 0 in shape else math.prod(shape[: max(1, len(shape) - 1)])

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows start to stop, float32 (stop - start, cols), the caller's own."""
        raise NotImplementedError

    def grid(self) -> Grid | None:
        """The grid that all of its values lie on, where the source is quantized so."""
        return None


Read = Callable[[int, int], np.ndarray]  # rows start to stop of something


@dataclass(frozen=True)
class Grid:
    """What a tensor quantized to 4 bits or fewer is made of, where 16 numbers and one scale for 32 columns
    say it without a loss: codebook[codes] * scales in float32 are the values that read() gives, bit for bit
    but for the sign of a zero."""

    codebook: np.ndarray  # int8 (16,)
    codes: Read  # uint8 (n, cols), below 16
    scales: Read  # float16 (n, cols / COLUMNS)

    COLUMNS: ClassVar[int] = 32  # that share a scale


def decode_bf16(raw: np.ndarray) -> np.ndarray:
    """bfloat16 is the upper half of a float32, so this is exact."""
    return (raw.view("<u2").astype(np.uint32) << 16).view(np.float32)


# The bytes that one element takes, and how a row's, uint8 (n, row_bytes), become float32 (n, cols)
Dtype = tuple[int, Callable[[np.ndarray], np.ndarray]]
PLAIN: dict[str, Dtype] = {
    "F64": (8, lambda raw: raw.view("<f8").astype(np.float32)),
    "F32": (4, lambda raw: raw.view("<f4")),
    "F16": (2, lambda raw: raw.view("<f2").astype(np.float32)),
    "BF16": (2, decode_bf16),
}


def small_floats(exponent_bits: int, fraction_bits: int, bias: int) -> np.ndarray:
    """What the codes of a float with a sign, these bits and this bias mean, float32 (2 ** bits,), as if none
    were infinite or no number."""
    codes = np.arange(2 << (exponent_bits + fraction_bits))
    exponent = codes >> fraction_bits & (1 << exponent_bits) - 1
    fraction = (codes & (1 << fraction_bits) - 1) / (1 << fraction_bits)
    magnitude = np.ldexp(fraction + (exponent > 0), np.maximum(exponent, 1) - bias)
    negative = codes >> (exponent_bits + fraction_bits) > 0
    values: np.ndarray = np.where(negative, -magnitude, magnitude).astype(np.float32)
    return values


# Numbers of 4, 6 and 8 bits, by their codes: those of the OCP's specification of MX formats, and of FP8
E2M1 = small_floats(2, 1, bias=1)
E2M3 = small_floats(2, 3, bias=1)
E4M3 = small_floats(4, 3, bias=7)  # "FN": without infinities
E4M3[[0x7F, 0xFF]] = np.nan
E5M2 = small_floats(5, 2, bias=15)
E5M2[[0x7C, 0xFC]] = np.inf, -np.inf
E5M2[[0x7D, 0x7E, 0x7F, 0xFD, 0xFE, 0xFF]] = np.nan
E8M0 = np.append(np.ldexp(np.float32(1), np.arange(255) - 127), np.float32(np.nan))  # powers of two

# The same of what only quantized checkpoints have. Packed integers (I32, U8) are taken as they lie there.
STORED: dict[str, Dtype] = {
    "F8_E4M3": (1, lambda raw: E4M3[raw]),
    "F8_E5M2": (1, lambda raw: E5M2[raw]),
    "F8_E8M0": (1, lambda raw: E8M0[raw]),
    "U8": (1, lambda raw: raw.astype(np.float32)),
    "I8": (1, lambda raw: raw.view(np.int8).astype(np.float32)),
    "I32": (4, lambda raw: raw.view("<i4").astype(np.float32)),
    "I64": (8, lambda raw: raw.view("<i8").astype(np.float32)),
}


class FileTensor(Tensor):
    """A tensor that lies in one piece in a file, row after row."""

    def __init__(
        self,
        name: str,
        shape: tuple[int, ...],
        file: File,
        offset: int,
        row_bytes: int,
        decode: Callable[[np.ndarray], np.ndarray],
        dtype: str = "",
    ) -> None:
        super().__init__(name, shape)
        self.file, self.offset, self.row_bytes, self.decode = file, offset, row_bytes, decode
        self.dtype = dtype  # as safetensors calls it

    def raw(self, start: int, stop: int) -> np.ndarray:
        """The bytes of rows start to stop, uint8 (stop - start, row_bytes)."""
        raw = self.file.read(self.offset + start * self.row_bytes, (stop - start) * self.row_bytes)
        return raw.reshape(stop - start, self.row_bytes)

    def read(self, start: int, stop: int) -> np.ndarray:
        return self.decode(self.raw(start, stop))


class Rows(Tensor):
    """Some of the rows of another tensor: `count` from `first` on, or those that `order` (rows,) names."""

    def __init__(
        self, base: Tensor, shape: tuple[int, ...], first: int = 0, order: np.ndarray | None = None
    ) -> None:
        super().__init__(base.name, shape)
        self.base, self.first, self.order = base, first, order

    def read(self, start: int, stop: int) -> np.ndarray:
        return self.of(self.base.read, start, stop)

    def of(self, read: Read, start: int, stop: int) -> np.ndarray:
        """Rows start to stop of these rows, of what has a row for each of the base."""
        if self.order is None:
            return read(self.first + start, self.first + stop)
        wanted = self.order[start:stop]
        low, high = int(wanted.min()), int(wanted.max()) + 1
        return np.take(read(low, high), wanted - low, axis=0)

    def grid(self) -> Grid | None:
        grid = self.base.grid()
        if grid is None:
            return None
        codes, scales = partial(self.of, grid.codes), partial(self.of, grid.scales)
        return Grid(grid.codebook, codes, scales)


class Flat(Tensor):
    """All numbers of a matrix, row after row, as a vector."""

    def __init__(self, base: Tensor) -> None:
        super().__init__(base.name, (base.rows * base.cols,))
        self.base = base

    def read(self, start: int, stop: int) -> np.ndarray:
        return self.base.read(0, self.base.rows).reshape(-1, 1)[start:stop]


class Turned(Tensor):
    """A matrix whose rows are another one's columns."""

    def __init__(self, base: Tensor) -> None:
        super().__init__(base.name, base.shape[::-1])
        self.base = base

    def read(self, start: int, stop: int) -> np.ndarray:
        return np.ascontiguousarray(self.base.read(0, self.base.rows)[:, start:stop].T)


class Joined(Tensor):
    """Vectors one after the other."""

    def __init__(self, name: str, parts: list[Tensor]) -> None:
        super().__init__(name, (sum(part.rows for part in parts),))
        self.parts = parts

    def read(self, start: int, stop: int) -> np.ndarray:
        return np.concatenate([part.read(0, part.rows) for part in self.parts])[start:stop]


class Softplus(Tensor):
    """log(1 + exp(base)) + offset"""

    def __init__(self, base: Tensor, offset: float = 0.0) -> None:
        super().__init__(base.name, base.shape)
        self.base, self.offset = base, offset

    def read(self, start: int, stop: int) -> np.ndarray:
        wide = np.logaddexp(0, self.base.read(start, stop).astype(np.float64)) + self.offset
        return wide.astype(np.float32)


class Lengthened(Tensor):
    """A matrix with more rows, all of them as its first one."""

    def __init__(self, base: Tensor, rows: int) -> None:
        super().__init__(base.name, (rows, base.cols))
        self.base = base

    def read(self, start: int, stop: int) -> np.ndarray:
        own = self.base.read(min(start, self.base.rows), min(stop, self.base.rows))
        more = max(0, stop - max(start, self.base.rows))
        return np.concatenate([own, np.repeat(self.base.read(0, 1), more, axis=0)]) if more else own


class Linear(Tensor):
    """scale * base + offset, in float32."""

    def __init__(self, base: Tensor, scale: float = 1.0, offset: float = 0.0) -> None:
        super().__init__(base.name, base.shape)
        self.base, self.scale, self.offset = base, np.float32(scale), np.float32(offset)

    def read(self, start: int, stop: int) -> np.ndarray:
        scaled: np.ndarray = self.base.read(start, stop) * self.scale
        scaled += self.offset
        return scaled


class Columns(Tensor):
    """The columns of a matrix that is small enough to be read as a whole, as rows."""

    def __init__(self, base: Tensor) -> None:
        super().__init__(base.name, base.shape[::-1])
        self.base = base

    def read(self, start: int, stop: int) -> np.ndarray:
        return np.ascontiguousarray(self.base.read(0, self.base.rows)[:, start:stop].T)


class Mapped(Tensor):
    """A function of each number of another tensor, in float32."""

    def __init__(self, base: Tensor, function: Callable[[np.ndarray], np.ndarray]) -> None:
        super().__init__(base.name, base.shape)
        self.base, self.function = base, function

    def read(self, start: int, stop: int) -> np.ndarray:
        return self.function(self.base.read(start, stop)).astype(np.float32)


class Taps(Tensor):
    """The kernels of a convolution of each channel by itself, (channels, 1, taps) or (channels, taps), as a
    vector: all channels of the first tap, which is that of the oldest position, then of the next."""

    def __init__(self, base: Tensor) -> None:
        super().__init__(base.name, (base.rows * base.cols,))
        self.base = base

    def read(self, start: int, stop: int) -> np.ndarray:
        return np.ascontiguousarray(self.base.read(0, self.base.rows).T).reshape(-1, 1)[start:stop]


def in_heads(tensor: Tensor, order: np.ndarray) -> Tensor:
    """A tensor that has a row for each element of each head, the rows of every head in this order
    (head_dim,)."""
    if tensor.rows % len(order):  # the shape is wrong, and the check against the config will say so
        return tensor
    rows = np.arange(tensor.rows).reshape(-1, len(order))[:, order]
    return Rows(tensor, tensor.shape, order=rows.reshape(-1))


def half_split(tensor: Tensor, n_heads: int) -> Tensor:
    """The rows of a q or k projection whose heads pair elements (2i, 2i + 1) for the rotation, in the order
    that pairs i with i + head_dim / 2. Undoes LlamaModel.permute of llama.cpp's converter, and Meta's own
    order."""
    if not tensor.rows or tensor.rows % (2 * n_heads):  # as above
        return tensor
    return in_heads(tensor, np.arange(tensor.rows // n_heads).reshape(-1, 2).T.reshape(-1))


def split(tensor: Tensor, rows: tuple[int, ...], groups: int = 1) -> list[Tensor]:
    """The tensors with this many rows that one is made of, from top to bottom; with groups, as many times
    over, each time with that fraction of the rows."""
    if tensor.rows != sum(rows) or any(n % groups for n in rows):
        expected = " + ".join(map(str, rows))
        raise ConvertError(f"{tensor.name} has the shape {tensor.shape}, expected {expected} rows")
    parts: list[Tensor] = []
    at = 0
    for n in rows:
        shape = (n, *tensor.shape[1:])
        if groups == 1:
            parts.append(Rows(tensor, shape, first=at))
        else:
            starts = np.arange(groups)[:, None] * (tensor.rows // groups) + at // groups
            parts.append(Rows(tensor, shape, order=(starts + np.arange(n // groups)).reshape(-1)))
        at += n
    return parts


class Transposed(Tensor):
    """A stack of matrices (n, rows, cols) as (n, cols, rows). Some rows of it are a little of everywhere in a
    matrix, of which the last one is kept for each thread that reads."""

    def __init__(self, base: Tensor) -> None:
        n, rows, cols = base.shape if len(base.shape) == 3 else (0, 0, 0)
        super().__init__(base.name, (n, cols, rows))
        self.base, self.kept = base, threading.local()

    def matrix(self, i: int) -> np.ndarray:
        """Matrix i, (cols, rows)."""
        if getattr(self.kept, "number", None) != i:
            rows = self.base.shape[1]
            self.kept.matrix = np.ascontiguousarray(self.base.read(i * rows, (i + 1) * rows).T)
            self.kept.number = i
        found: np.ndarray = self.kept.matrix
        return found

    def read(self, start: int, stop: int) -> np.ndarray:
        height, parts = self.shape[1], []
        while start < stop:
            i, first = divmod(start, height)
            last = min(stop - i * height, height)
            parts.append(self.matrix(i)[first:last])
            start = i * height + last
        return np.concatenate(parts)


class Constant(Tensor):
    """A tensor that no file has, all of whose numbers are the same."""

    def __init__(self, name: str, shape: tuple[int, ...], value: float) -> None:
        super().__init__(name, shape)
        self.value = value

    def read(self, start: int, stop: int) -> np.ndarray:
        return np.full((stop - start, self.cols), self.value, np.float32)


class Stack(Tensor):
    """The rows (n, cols) of a stack of vectors as matrices of one column, (n, cols, 1)."""

    def __init__(self, base: Tensor) -> None:
        super().__init__(base.name, (*base.shape, 1))
        self.base = base

    def read(self, start: int, stop: int) -> np.ndarray:
        cols = self.shape[1]
        first, last = start // cols, -(-stop // cols)
        numbers = self.base.read(first, last).reshape(-1, 1)
        return numbers[start - first * cols : stop - first * cols]


def unstack(
    tensor: Tensor, names: tuple[str, ...], n_experts: int, alternating: bool = False
) -> dict[str, Tensor]:
    """Splits a stack of experts (n_experts, rows, cols) into matrices; an expert's rows are divided equally
    among `names`, in which {e} stands for the expert, one part after the other or row by row."""
    if len(tensor.shape) != 3 or tensor.shape[1] % len(names) or tensor.shape[0] != n_experts:
        raise ConvertError(
            f"{tensor.name} has the shape {shown(tensor.shape)}, expected (experts, rows, columns) of "
            f"{n_experts} experts"
        )
    experts, total, cols = tensor.shape
    rows = total // len(names)
    shape = (rows,) if isinstance(tensor, Stack) else (rows, cols)
    found: dict[str, Tensor] = {}
    for e, (i, name) in itertools.product(range(experts), enumerate(names)):
        order = e * total + np.arange(i, total, len(names)) if alternating and len(names) > 1 else None
        found[name.replace("{e}", str(e))] = Rows(tensor, shape, first=e * total + i * rows, order=order)
    return found


@dataclass
class Source:
    """A model to convert."""

    path: Path
    name: str  # a short name for people
    config: dict[str, Any]  # as config.json has it
    tensors: dict[str, Tensor]  # by Hugging Face's names
    canonical: bool = False  # or by those of tensors.TENSORS and FUSED
    base: bool = False  # saved as the model without an output matrix, as transformers' AutoModel has it
    about: dict[str, str] = field(default_factory=dict)  # license, description
    templates: dict[str, str] = field(default_factory=dict)  # Jinja chat templates: "default", "tool_use"
    special_tokens: dict[str, str] = field(
        default_factory=dict
    )  # bos_token, eos_token, ...: the template may use them
    embedding: dict[str, Any] | None = None  # how it makes embeddings: LLM_EMBEDDING; None: it does not say
    # makes the tokenizer's sections; takes the chat template that says what ends a turn, or None: its own
    tokenizer: Callable[[str | None], dict[int, bytes]] | None = None
    native: Callable[[str], str] = str  # how this source spells a Hugging Face name
    files: list[File] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # what a user should know

    def close(self) -> None:
        for file in self.files:
            file.close()


def listing(names: list[str], most: int = 8) -> str:
    """The names in one line, shortened."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def need(library: str, purpose: str, package: str | None = None) -> ConvertError:
    """The error for an optional library that is not installed."""
    return ConvertError(f"{purpose} needs the library {library}: pip install {package or library}")
