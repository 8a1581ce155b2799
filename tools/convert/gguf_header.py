"""Reads what stands before the tensors' data in a GGUF file: metadata, and each tensor's name, shape, type
and place. Every length is checked against what the file has left before anything is sized by it; the gguf
library's own reader trusts them."""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

import numpy as np

from .sources import ConvertError, File, shown

VERSIONS = (2, 3)
MAX_HEADER = 1 << 30  # bytes; with the largest vocabularies it is a few million
CHUNK = 1 << 16
STRING, ARRAY = 8, 9
# enum gguf_type: the scalars
SCALARS = {
    0: "<u1",
    1: "<i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "?",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}


class Info(NamedTuple):
    """A tensor, as the file describes it."""

    name: str
    shape: tuple[int, ...]  # the dimension that changes slowest first
    kind: int  # enum ggml_type
    offset: int  # of its data in the file


class Cursor:
    """A place in a file that moves on as things are read."""

    def __init__(self, file: File) -> None:
        self.file = file
        self.at = 0
        self.start, self.buffer = 0, b""  # what has been read of the file, and from where

    def need(self, size: int, what: str) -> None:
        """Refuses what is longer than the file."""
        if size > self.file.size - self.at:
            raise ConvertError(f"truncated, {what} needs {size} bytes at byte {self.at} of {self.file.size}")
        if self.at + size > MAX_HEADER:
            raise ConvertError(f"{what} ends after the first {MAX_HEADER} bytes, which is not supported")

    def take(self, size: int, what: str) -> bytes:
        self.need(size, what)
        if self.at + size > self.start + len(self.buffer):
            self.start = self.at
            more = max(size, min(CHUNK, self.file.size - self.at))
            self.buffer = self.file.read(self.at, more).tobytes()
        first = self.at - self.start
        self.at += size
        return self.buffer[first : first + size]

    def number(self, code: str, what: str) -> int:
        """An unsigned number, "I" of 32 or "Q" of 64 bits."""
        return int(struct.unpack("<" + code, self.take(struct.calcsize("<" + code), what))[0])

    def string(self, what: str) -> str:
        raw = self.take(self.number("Q", what), what)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            raise ConvertError(f"{what} is not UTF-8: {shown(raw)}") from None

    def value(self, kind: int, what: str) -> Any:
        """A value of the metadata, as Python has it."""
        if kind == STRING:
            return self.string(what)
        if kind in SCALARS:
            dtype = np.dtype(SCALARS[kind])
            return np.frombuffer(self.take(dtype.itemsize, what), dtype)[0].item()
        if kind != ARRAY:
            raise ConvertError(f"{what} is of the type {kind}, which is not known")
        kind, count = self.number("I", what), self.number("Q", what)
        if kind == STRING:
            self.need(8 * count, what)  # each has its length
            return [self.string(what) for _ in range(count)]
        if kind not in SCALARS:
            raise ConvertError(f"{what} is an array of the type {kind}, which is not supported")
        dtype = np.dtype(SCALARS[kind])
        return np.frombuffer(self.take(dtype.itemsize * count, what), dtype).tolist()

    def info(self) -> Info:
        """A tensor; its offset is from the start of the data."""
        name = self.string("a tensor's name")
        n_dims = self.number("I", name)
        if n_dims > 4:  # GGML_MAX_DIMS
            raise ConvertError(f"{shown(name)} has {n_dims} dimensions, more than 4")
        dims = [self.number("Q", name) for _ in range(n_dims)]
        return Info(name, tuple(reversed(dims)), self.number("I", name), self.number("Q", name))


def read(file: File) -> tuple[dict[str, Any], list[Info]]:
    """The metadata and the tensors of a GGUF file; ConvertError for one that is damaged."""
    cursor = Cursor(file)
    if cursor.take(4, "the magic") != b"GGUF":
        raise ConvertError("not a GGUF file")
    version = cursor.number("I", "the version")
    if version & 0xFFFF == 0 and version:
        raise ConvertError("big-endian, which is not supported")
    if version not in VERSIONS:
        raise ConvertError(f"version {version} of GGUF is not supported; 2 and 3 are")
    n_tensors, n_values = cursor.number("Q", "the number of tensors"), cursor.number("Q", "the metadata")
    metadata: dict[str, Any] = {}
    for _ in range(n_values):
        key = cursor.string("a key of the metadata")
        if key in metadata:
            raise ConvertError(f"{shown(key)} is there twice")
        metadata[key] = cursor.value(cursor.number("I", key), key)
    infos = [cursor.info() for _ in range(n_tensors)]
    if len({info.name for info in infos}) < len(infos):
        raise ConvertError("a tensor is there twice")
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 0 < alignment < 1 << 32 or alignment & (alignment - 1):
        raise ConvertError(f"general.alignment is {shown(alignment)}, not a power of two")
    data = -(-cursor.at // alignment) * alignment
    return metadata, [info._replace(offset=data + info.offset) for info in infos]
