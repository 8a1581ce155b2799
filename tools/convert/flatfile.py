"""Writes the flat file. Where each byte goes is asked of llm_layout and llm_file_size in llm.c; what the
numbers become is decided here.

fp16 matrices are rounded to the nearest half. int8 matrices have one scale for 64 columns, max|w| / 127
rounded to a half, and weights rounded to the nearest multiple of that rounded scale. Both are stored in tiles
of 16 rows (see llm.h). Work is cut into jobs, whole tiles of about half a million weights, which threads
take."""

from __future__ import annotations

import itertools
import shutil
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pyllm._llm import ffi, lib

from pyllm import files

from .sources import ConvertError, Tensor

MAGIC = b"PYLLM\r\n\x1a"
GROUP = lib.LLM_GROUP
TILE = lib.LLM_TILE
FP16_MAX = 65504.0
JOB = 1 << 19  # weights, 2 MB as float32: fits in a core's cache with its temporaries
DTYPES = {"fp16": lib.LLM_FP16, "int8": lib.LLM_INT8}
TENSOR_IDS = sorted(
    (number, name)
    for name, number in ffi.typeof("enum llm_tensor_id").relements.items()
    if name != "LLM_N_TENSORS"
)


class Place(NamedTuple):
    """One tensor of the flat file, as llm_layout answers."""

    tensor: str
    layer: int
    expert: int
    offset: int
    size: int
    rows: int
    cols: int
    stride: int
    dtype: int


# ---------------------------------------------------------------------------------------------------------
# The header and the layout


def make_header(dtype: str, fields: dict[str, int | float], text_size: int = 0) -> ffi.CData:
    """An llm_header with these fields, file_size and checksum set. ConvertError when llm.c refuses it."""
    header = ffi.new("llm_header *")
    ffi.memmove(header.magic, MAGIC, len(MAGIC))
    header.version, header.dtype, header.text_size = lib.LLM_VERSION, DTYPES[dtype], text_size
    for key, value in fields.items():
        setattr(header, key, value)
    err = ffi.new("char[256]")
    header.file_size = lib.llm_file_size(header, err, len(err))
    if header.file_size == 0:
        raise ConvertError(f"the model does not fit the format: {ffi.string(err).decode()}")
    header.checksum = lib.llm_checksum(header)
    return header


def make_layers(layers: list[tuple[int, int]]) -> ffi.CData:
    """An llm_layer[] of the rotary table and the window of each layer."""
    return ffi.new("llm_layer[]", [{"rope": rope, "window": window} for rope, window in layers])


def places(header: ffi.CData) -> Iterator[Place]:
    """The tensors that the model has, those that occur once, then layer by layer."""
    once = [(number, name) for number, name in TENSOR_IDS if number < lib.LLM_ATTN_NORM]
    rest = [(number, name) for number, name in TENSOR_IDS if number >= lib.LLM_ATTN_NORM]
    out, err = ffi.new("llm_tensor *"), ffi.new("char[256]")
    order = itertools.chain(
        ((0, *t) for t in once), ((layer, *t) for layer in range(header.n_layers) for t in rest)
    )
    for layer, number, name in order:
        experts = max(1, header.n_experts) if name in ("LLM_GATE_UP", "LLM_DOWN") else 1
        for expert in range(experts):
            if lib.llm_layout(header, number, layer, expert, out, err, len(err)):
                raise ConvertError(f"the model does not fit the format: {ffi.string(err).decode()}")
            if out.size:
                yield Place(
                    name, layer, expert, out.offset, out.size, out.rows, out.cols, out.stride, out.dtype
                )


def pack_sections(sections: dict[int, bytes]) -> bytes:
    """The section area: heads and payloads in the order of their tags, each padded to 16, all to 64."""
    area = bytearray()
    for tag, payload in sorted(sections.items()):
        head = ffi.new("llm_section_head *", {"tag": tag, "size": len(payload)})
        area += bytes(ffi.buffer(head)) + payload
        area += bytes(-len(area) % 16)
    return bytes(area) + bytes(-len(area) % 64)


# ---------------------------------------------------------------------------------------------------------
# Numbers


@dataclass
class Error:
    """How far stored weights are from those of the source, over the weights seen so far."""

    largest: float = 0.0  # max |w - stored|
    total: float = 0.0  # sum |w - stored|
    count: int = 0
    top: float = 0.0  # max |w|
    weight: float = 0.0  # sum |w|

    def add(self, other: Error) -> None:
        self.largest, self.top = max(self.largest, other.largest), max(self.top, other.top)
        self.total += other.total
        self.count += other.count
        self.weight += other.weight


def to_fp16(w: np.ndarray) -> np.ndarray:
    """w, float32, to halves, round to nearest even."""
    return w.astype(np.float16)


def to_int8(w: np.ndarray, top: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Groups w (n, 64) float32 with top = max|w| (n,) to int8 (n, 64) and scales (n,) float16, w = q * scale.

    A scale among fp16's subnormals can be rounded down so far that the largest weight would not fit in 127
    steps; then the next larger one is taken. So only a group of zeros has the scale 0."""
    scale = (top / np.float32(127)).astype(np.float16)
    clips = scale.astype(np.float32) * np.float32(127.5) < top
    if clips.any():
        scale[clips] = np.nextafter(scale[clips], np.float16(np.inf))
    divisor = scale.astype(np.float32)
    divisor[divisor == 0] = 1
    q = w / divisor[:, None]
    np.rint(q, out=q)
    np.clip(q, -127, 127, out=q)
    return q.astype(np.int8), scale


def encode(w: np.ndarray, dtype: int, tensor: Tensor) -> tuple[list[np.ndarray], Error]:
    """Weights (rows, stride) float32, zeros in the padding, to what the file stores of these rows: halves
    (rows, stride), or pairs of int8 (rows, stride / 2) as int16 and scales (rows, stride / 64); and the error
    made."""
    groups = w.reshape(-1, GROUP)
    magnitudes = np.abs(w).reshape(-1)
    top = np.maximum.reduceat(magnitudes, np.arange(0, w.size, GROUP))  # 5 times as fast as max(axis=1)
    largest = float(top.max(initial=0))
    if not np.isfinite(largest):
        raise ConvertError(f"{tensor.name} has a weight that is not finite (NaN or infinite)")
    limit = FP16_MAX * 127 if dtype == lib.LLM_INT8 else FP16_MAX
    if largest > limit:
        what = (
            "the largest int8 weight with an fp16 scale" if dtype == lib.LLM_INT8 else "fp16's largest number"
        )
        raise ConvertError(f"{tensor.name} has a weight of magnitude {largest:g}, above {what}, {limit:g}")
    if dtype == lib.LLM_INT8:
        q, scale = to_int8(groups, top)
        stored = q * scale.astype(np.float32)[:, None]
        arrays = [q.reshape(w.shape).view(np.int16), scale.reshape(len(w), -1)]
    else:
        half = to_fp16(w)
        stored = half.astype(np.float32).reshape(groups.shape)
        arrays = [half]
    stored -= groups
    np.abs(stored, out=stored)
    return arrays, Error(
        largest=float(stored.max(initial=0)),
        total=float(stored.sum(dtype=np.float64)),
        top=largest,
        weight=float(magnitudes.sum(dtype=np.float64)),
    )


def tile(rows: np.ndarray) -> np.ndarray:
    """Rows (n, items) as the file has them, (tiles, items, 16); rows of zeros fill the last tile."""
    out = np.zeros((-(-len(rows) // TILE), rows.shape[1], TILE), rows.dtype)
    for i in range(TILE):  # twice as fast as a transposed copy
        some = rows[i::TILE]
        out[: len(some), :, i] = some
    return out


# ---------------------------------------------------------------------------------------------------------
# The file


def write_at(fd: int, array: np.ndarray, offset: int) -> None:
    """Writes all of a contiguous array at an offset."""
    files.write_all(fd, array.reshape(-1).view(np.uint8).data, offset)


def check_space(path: Path, size: int) -> None:
    """Refuses what the disk has no room for."""
    folder = files.destination(path)[0].parent
    free = shutil.disk_usage(folder).free
    if free < size:
        raise ConvertError(
            f"not enough space in {folder}: {size / 1e9:.2f} GB are needed, {free / 1e9:.2f} GB are free"
        )


class Job(NamedTuple):
    """Rows start to stop of a tensor."""

    place: Place
    start: int
    stop: int
    pieces: list[tuple[Tensor, int, int]]  # what is in them from top to bottom: rows of parts, from, to


def jobs(tensors: list[tuple[Place, list[Tensor]]]) -> Iterator[Job]:
    """All the work, in file order."""
    for place, parts in tensors:
        rows = sum(part.rows for part in parts)
        whole = place.dtype == lib.LLM_FP32  # a vector
        step = rows if whole else max(1, JOB // place.stride // TILE) * TILE
        for start in range(0, rows, step):
            stop, pieces, row = min(rows, start + step), [], 0
            for part in parts:
                first, last = max(start - row, 0), min(stop - row, part.rows)
                if first < last:
                    pieces.append((part, first, last))
                row += part.rows
            yield Job(place, start, stop, pieces)


def read_piece(place: Place, part: Tensor, first: int, last: int) -> np.ndarray:
    """Rows first to last of a part, padded with zeros to the stride of its place."""
    w = part.read(first, last)
    if place.stride != place.cols or not w.flags.c_contiguous:
        padded = np.zeros((len(w), place.stride), np.float32)
        padded[:, : place.cols] = w
        w = padded
    return w


def write_vector(fd: int, job: Job) -> None:
    """Reads and writes a vector, which is stored as it is."""
    offset = job.place.offset
    for part, first, last in job.pieces:
        w = part.read(first, last)
        if not np.isfinite(w).all():
            raise ConvertError(f"{part.name} has a value that is not finite (NaN or infinite)")
        write_at(fd, np.ascontiguousarray(w, "<f4"), offset)
        offset += 4 * w.size


def run_job(fd: int, job: Job) -> list[Error]:
    """Reads, converts and writes one job's rows; the error made in each piece, none for a vector."""
    place, encoded, errors = job.place, [], []
    if place.dtype == lib.LLM_FP32:
        write_vector(fd, job)
        return []
    for part, first, last in job.pieces:
        arrays, error = encode(read_piece(place, part, first, last), place.dtype, part)
        error.count = (last - first) * place.cols
        encoded.append(arrays)
        errors.append(error)
    at, padded = place.offset, -(-place.rows // TILE) * TILE
    for arrays in zip(*encoded, strict=True):
        rows = np.concatenate(arrays)
        row_bytes = rows.itemsize * rows.shape[1]
        write_at(fd, tile(rows), at + job.start * row_bytes)
        at += padded * row_bytes
    return errors


def write_tensors(
    fd: int, tensors: list[tuple[Place, list[Tensor]]], threads: int, progress: Callable[[int], None]
) -> dict[str, Error]:
    """Writes every tensor, the parts of each from top to bottom. `progress` is told of bytes written.
    Returns the error by source tensor; sums are made in file order, so they do not depend on the threads."""
    errors: dict[str, Error] = {}
    stop = threading.Event()

    def work(job: Job) -> list[Error]:
        return [] if stop.is_set() else run_job(fd, job)

    def finish(job: Job, future: Future) -> None:
        for (part, _, _), error in zip(job.pieces, future.result(), strict=False):
            errors.setdefault(part.name, Error()).add(error)
        rows = job.place.cols if job.place.dtype == lib.LLM_FP32 else job.place.rows
        progress(job.place.size * (job.stop - job.start) // rows)

    waiting: deque[tuple[Job, Future]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for job in jobs(tensors):
                waiting.append((job, pool.submit(work, job)))
                if len(waiting) == 4 * threads:
                    finish(*waiting.popleft())
            while waiting:
                finish(*waiting.popleft())
        except BaseException:
            stop.set()
            raise
    return errors


def write(
    path: Path,
    header: ffi.CData,
    layers: list[tuple[int, int]],
    angles: np.ndarray,
    sections: bytes,
    tensors: list[tuple[Place, list[Tensor]]],
    threads: int = 1,
    progress: Callable[[int], None] = lambda n: None,
    check: Callable[[Path], None] = lambda path: None,
) -> dict[str, Error]:
    """Writes a flat file under a temporary name, lets `check` look at it, and renames it to `path`. `layers`
    are the rotary table and the window of each layer, `angles` (n_rope, head_dim / 2, 2) the tables."""
    head = bytes(ffi.buffer(header)).ljust(lib.LLM_HEADER_SIZE, b"\0") + sections
    head += bytes(ffi.buffer(make_layers(layers)))
    head += np.ascontiguousarray(angles, "<f4").tobytes()
    if len(head) > min((place.offset for place, _ in tensors), default=header.file_size):
        raise ConvertError("llm.c's layout has less room before the tensors than the header describes")
    check_space(path, header.file_size)
    with files.replacing(path, header.file_size) as (fd, temporary):
        write_at(fd, np.frombuffer(head, np.uint8), 0)
        errors = write_tensors(fd, tensors, threads, progress)
        check(temporary)
    return errors
