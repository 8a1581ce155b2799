"""Writes the flat file. Where each byte goes is asked of llm_layout and llm_file_size in file.c; what the
numbers become is decided here.

fp16 matrices are rounded to the nearest half. int8 matrices are rotated, each 64 columns of a row by
Hadamard's matrix, which spreads large numbers over all of them; they have one scale for 64 columns, max|w| /
127 rounded to a half, and weights rounded to the nearest multiple of that rounded scale; eight_bits.py rounds
those of layers once more, by a text. Both are stored in tiles of 16 rows (see llm.h). int4 matrices are left
to four_bits.py. Work is cut into jobs, whole tiles of about half a million weights, which threads take."""

from __future__ import annotations

import functools
import itertools
import os
import shutil
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
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
DTYPES = {"fp16": lib.LLM_FP16, "int8": lib.LLM_INT8_ROTATED, "int4": lib.LLM_INT4}
TENSOR_IDS = sorted(
    (number, name)
    for name, number in ffi.typeof("enum llm_tensor_id").relements.items()
    if name != "LLM_N_TENSORS"
)


ONCE = {name for number, name in TENSOR_IDS if number < lib.LLM_ATTN_NORM}  # others are a layer's
ROUTED = (  # flags of a layer with experts
    lib.LLM_ROUTER_NORMALIZE
    | lib.LLM_ROUTER_SIGMOID
    | lib.LLM_ROUTER_BIAS
    | lib.LLM_SHARED_GATE
    | lib.LLM_ROUTER_BEST
    | lib.LLM_ROUTER_LOGIT_BIAS
    | lib.LLM_EXPERT_INPUT
    | lib.LLM_SHARED_NORMS
    | lib.LLM_ROUTER_SCALED
)
OF_ATTENTION = (  # flags of a layer with attention
    lib.LLM_QKV_BIAS
    | lib.LLM_QK_NORM
    | lib.LLM_QK_NORM_WHOLE
    | lib.LLM_QK_NORM_LATE
    | lib.LLM_ATTN_OUT_BIAS
    | lib.LLM_SINK
    | lib.LLM_CHUNKED
    | lib.LLM_OUT_GATE
    | lib.LLM_OUT_GATE_HEAD
    | lib.LLM_OUT_GATE_SOFTPLUS
    | lib.LLM_V_NORM
    | lib.LLM_V_IS_K
    | lib.LLM_QK_NORM_EACH
    | lib.LLM_PARALLEL
    | lib.LLM_ONE_NORM
)


@dataclass(frozen=True)
class Layer:
    """What an llm_layer says, but for its dtypes. The defaults are those of the smallest layer that the
    format has."""

    flags: int = 0
    n_heads: int = 1
    n_kv_heads: int = 1
    head_dim: int = 2
    window: int = 0
    rope: int = 0
    kv_layer: int | None = None  # None: it makes its own keys and values
    attn_scale: float = 1.0
    attn_cap: float = 0.0
    activation: int = lib.LLM_SILU
    ffn_dim: int = 1
    n_experts: int = 0
    n_active: int = 0
    shared_dim: int = 0
    expert_scale: float = 1.0
    value_dim: int = 0
    n_groups: int = 0
    n_active_groups: int = 0
    gate_limit: float = 0.0
    gate_slope: float = 0.0
    up_shift: float = 0.0
    query_growth: float = 0.0
    query_span: int = 0
    query_shift: int = 0
    low_rank: int = 0
    gate_cut: float = 0.0
    qkv_clip: float = 0.0
    latent_dim: int = 0
    q_rank: int = 0
    turn_dim: int = 0
    latent_eps: float = 0.0
    mixer: int = lib.LLM_ATTENTION
    conv_kernel: int = 0
    delta_key_heads: int = 0
    delta_heads: int = 0
    delta_key_dim: int = 0
    delta_value_dim: int = 0

    @property
    def ffn(self) -> int:
        kind: int = lib.LLM_EXPERTS if self.n_experts else lib.LLM_DENSE
        return kind


@dataclass(frozen=True)
class Shape:
    """What a model's header says, and its layers. The defaults are those of the smallest model."""

    tied: bool = False
    flags: int = 0  # features that no layer has, beside LLM_TIED
    dim: int = 1
    vocab_size: int = 1
    context: int = 1
    n_rope: int = 1
    rope_dim: int = 2
    norm_eps: float = 0.0
    embed_scale: float = 1.0
    residual_scale: float = 1.0
    logit_cap: float = 0.0
    ple_dim: int = 0
    ple_scale: float = 0.0
    n_streams: int = 0
    layers: tuple[Layer, ...] = (Layer(),)

    @property
    def required(self) -> int:
        """The features that a reader of the file must know."""
        bits = self.flags | (lib.LLM_TIED if self.tied else 0)
        for layer in self.layers:
            bits |= layer.flags
        return bits


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


@dataclass
class Layout:
    """A flat file before it has weights."""

    header: ffi.CData  # llm_header *
    layers: ffi.CData  # llm_layer[], without which the header's tensors have no place
    text: bytes = b""  # the sections
    checksums_at: int = 0  # where the numbers of LLM_CHECKSUMS begin in the file


# ---------------------------------------------------------------------------------------------------------
# The header, the layers and the layout


def check_layer_count(n_layers: int) -> int:
    """n_layers, unless the format has fewer."""
    if n_layers > lib.LLM_MAX_LAYERS:
        raise ConvertError(
            f"the model does not fit the format: n_layers is {n_layers}, above {lib.LLM_MAX_LAYERS}"
        )
    return n_layers


def make_layout(shape: Shape) -> Layout:
    """The layout of a model with matrices of the first dtype, fp16. ConvertError when file.c refuses it."""
    n_layers = check_layer_count(len(shape.layers))
    layout = Layout(ffi.new("llm_header *"), ffi.new("llm_layer[]", n_layers))
    ffi.memmove(layout.header.magic, MAGIC, len(MAGIC))
    layout.header.version, layout.header.n_layers = lib.LLM_VERSION, n_layers
    layout.header.required = shape.required
    for key in ("dim", "vocab_size", "context", "n_rope", "rope_dim", "ple_dim", "n_streams"):
        setattr(layout.header, key, getattr(shape, key))
    for key in ("norm_eps", "embed_scale", "residual_scale", "logit_cap", "ple_scale"):
        setattr(layout.header, key, getattr(shape, key))
    for i, layer in enumerate(shape.layers):
        fields = asdict(layer) | {"ffn": layer.ffn}
        fields["kv_layer"] = i if layer.kv_layer is None else layer.kv_layer
        for key, value in fields.items():
            setattr(layout.layers[i], key, value)
    seal(layout)
    return layout


def check_layer(layer: Layer) -> None:
    """Refuses a layer that the format has no room for, by its own names, whatever model it is in."""
    make_layout(Shape(rope_dim=lib.LLM_MAX_HEAD, layers=(replace(layer, kv_layer=None, rope=0),)))


def seal(layout: Layout) -> None:
    """Sets what follows from the rest: the file's size and the header's checksum."""
    err = ffi.new("char[256]")
    layout.header.file_size = lib.llm_file_size(layout.header, layout.layers, err, len(err))
    if layout.header.file_size == 0:
        raise ConvertError(f"the model does not fit the format: {ffi.string(err).decode()}")
    layout.header.checksum = lib.llm_checksum(layout.header)


def ask(layout: Layout, number: int, layer: int, expert: int = 0) -> ffi.CData:
    """The llm_tensor * of a tensor."""
    out, err = ffi.new("llm_tensor *"), ffi.new("char[256]")
    if lib.llm_layout(layout.header, layout.layers, number, layer, expert, out, err, len(err)):
        raise ConvertError(f"the model does not fit the format: {ffi.string(err).decode()}")
    return out


@functools.lru_cache(maxsize=1024)
def inventory(
    layer: Layer, tied: bool, flags: int, ple_dim: int = 0, n_streams: int = 0
) -> dict[str, tuple[bool, int]]:
    """What tensors a model of this one layer has: whether each is a matrix, and how many of it there are.
    Asked of small models, because llm_layout looks at all layers for each answer."""
    own = replace(layer, kv_layer=None, rope=0)
    last = replace(own, kv_layer=None if layer.kv_layer is None else 0)
    sizes = {"rope_dim": max(2, layer.head_dim), "ple_dim": ple_dim, "n_streams": n_streams}
    layout = make_layout(Shape(tied=tied, flags=flags, layers=(own, last), **sizes))
    found = {}
    for number, name in TENSOR_IDS:
        tensor = ask(layout, number, 0 if number < lib.LLM_ATTN_NORM else 1)
        if tensor.size:
            found[name] = tensor.dtype != lib.LLM_FP32, tensor.experts
    return found


FIRST = 12  # of so many layers the first one has a matrix of 8 bits in an int4 file


def dtype_of(tensor: str, dtype: str, layer: int, n_layers: int) -> int:
    """The dtype of a matrix in a file of `dtype`. A router is small, and decides; learned positions are
    small, and in all that follows; the gates of a state are, and say what it keeps: they have 16 bits. In
    int4 files what occurs once has 8, embeddings and output, of which a row is a token or a logit, and so
    have the last matrices of the first layers: what they get wrong all others get. With all matrices of these
    layers the KL divergence of SmolLM2 135M is 6 % less for 3 % more bytes, that of Gemma 3 270M 9 % less for
    1 %, which makes its file larger than llama.cpp's IQ4_NL."""
    number: int = DTYPES[dtype]
    if tensor in ("LLM_ROUTER", "LLM_STREAM_ROUTER", "LLM_POSITIONS", "LLM_STATE_GATES"):
        number = lib.LLM_FP16
    elif dtype == "int4":
        last_of_first = tensor == "LLM_DOWN" and layer < n_layers // FIRST
        if tensor in ONCE or last_of_first:
            number = lib.LLM_INT8_ROTATED
    return number


def finish_layout(shape: Shape, dtype: str, sections: dict[int, bytes] | None = None) -> Layout:
    """The layout of a file of `dtype` with these sections and room for checksums."""
    layout, once_sizes = make_layout(shape), (shape.ple_dim, shape.n_streams)
    numbers, count = {name: number for number, name in TENSOR_IDS}, 0
    for i, layer in enumerate(shape.layers):
        for name, (matrix, experts) in inventory(layer, shape.tied, shape.flags, *once_sizes).items():
            once = numbers[name] < lib.LLM_ATTN_NORM
            count += 0 if once and i else experts
            if matrix and once:
                layout.header.dtype[numbers[name]] = dtype_of(name, dtype, i, len(shape.layers))
            elif matrix:
                kind = dtype_of(name, dtype, i, len(shape.layers))
                layout.layers[i].dtype[numbers[name] - lib.LLM_ATTN_NORM] = kind
    area = pack_sections(sections or {})
    layout.checksums_at = lib.LLM_HEADER_SIZE + len(area) + ffi.sizeof("llm_section_head")
    area += pack_sections({lib.LLM_CHECKSUMS: bytes(8 * (2 + count))})  # the last section
    layout.text = area + bytes(-len(area) % 64)
    layout.header.text_size = len(layout.text)
    layout.header.optional = lib.LLM_HAS_CHECKSUMS
    seal(layout)
    return layout


def places(layout: Layout) -> Iterator[Place]:
    """The tensors that the model has, those that occur once, then layer by layer."""
    once = [(0, *item) for item in TENSOR_IDS if item[0] < lib.LLM_ATTN_NORM]
    rest = [item for item in TENSOR_IDS if item[0] >= lib.LLM_ATTN_NORM]
    n_layers = layout.header.n_layers
    for layer, number, name in itertools.chain(once, ((i, *item) for i in range(n_layers) for item in rest)):
        t = ask(layout, number, layer)
        # from one expert to the next it is as far as from the first to the second
        step = ask(layout, number, layer, 1).offset - t.offset if t.experts > 1 else 0
        for expert in range(t.experts if t.size else 0):
            offset = t.offset + expert * step
            yield Place(name, layer, expert, offset, t.size, t.rows, t.cols, t.stride, t.dtype)


def pack_sections(sections: dict[int, bytes]) -> bytes:
    """Heads and payloads of sections in the order of their tags, each padded to 16."""
    area = bytearray()
    for tag, payload in sorted(sections.items()):
        head = ffi.new("llm_section_head *", {"tag": tag, "size": len(payload)})
        area += bytes(ffi.buffer(head)) + payload
        area += bytes(-len(area) % 16)
    return bytes(area)


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


def rotate(x: np.ndarray) -> np.ndarray:
    """Numbers (n, cols) float32 as int8 matrices and what they are multiplied with are rotated: (n, stride),
    a copy. It is its own inverse."""
    padded = np.pad(x, ((0, 0), (0, -x.shape[1] % GROUP)))
    lib.llm_rotate(ffi.from_buffer("float[]", padded, require_writable=True), padded.size)
    return padded


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


def round_apart(rotated: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Groups (n, 64) float32, rotated, to int8 (n, 64) and scales (n,) float16, each weight for itself."""
    firsts = np.arange(0, rotated.size, GROUP)
    # 5 times as fast as max(axis=1)
    return to_int8(rotated, np.maximum.reduceat(np.abs(rotated).reshape(-1), firsts))


Rounding = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]  # as round_apart(), of all groups of a row


def encode(
    w: np.ndarray, cols: int, dtype: int, tensor: Tensor, rounding: Rounding = round_apart
) -> tuple[list[np.ndarray], Error]:
    """Weights (rows, stride) float32, zeros from column `cols` on, to what the file stores of these rows:
    halves (rows, stride), or four int8 at a time (rows, stride / 4) as int32 and scales (rows, stride / 64);
    and the error made."""
    groups = w.reshape(-1, GROUP)
    magnitudes = np.abs(w).reshape(-1)
    largest = float(magnitudes.max(initial=0))
    if not np.isfinite(largest):
        raise ConvertError(f"{tensor.name} has a weight that is not finite (NaN or infinite)")
    eight_bits = dtype == lib.LLM_INT8_ROTATED
    # rotated, 64 numbers may all come together in one: 8 times as large
    limit = FP16_MAX * 127 / 8 if eight_bits else FP16_MAX
    if largest > limit:
        what = "the largest int8 weight with an fp16 scale" if eight_bits else "fp16's largest number"
        raise ConvertError(f"{tensor.name} has a weight of magnitude {largest:g}, above {what}, {limit:g}")
    if eight_bits:
        q, scale = rounding(rotate(groups))
        stored = rotate(q * scale.astype(np.float32)[:, None])
        arrays = [q.reshape(w.shape).view(np.int32), scale.reshape(len(w), -1)]
    else:
        half = to_fp16(w)
        stored = half.astype(np.float32).reshape(groups.shape)
        arrays = [half]
    stored -= groups
    np.abs(stored, out=stored)
    stored.reshape(w.shape)[:, cols:] = 0  # the padding is no weight, but is rotated with them
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
    """Reads and writes a vector, or several of one length, which are stored as they are."""
    place, numbers = job.place, []
    for part, first, last in job.pieces:
        w = part.read(first, last)
        if not np.isfinite(w).all():
            raise ConvertError(f"{part.name} has a value that is not finite (NaN or infinite)")
        numbers.append(w.reshape(-1))
    padded = np.zeros((place.rows, place.stride), "<f4")
    padded[:, : place.cols] = np.concatenate(numbers).reshape(place.rows, place.cols)
    write_at(fd, padded, place.offset)


def run_job(fd: int, job: Job, rounding: Rounding = round_apart) -> list[Error]:
    """Reads, converts and writes one job's rows; the error made in each piece, none for a vector."""
    place, encoded, errors = job.place, [], []
    if place.dtype == lib.LLM_FP32:
        write_vector(fd, job)
        return []
    for part, first, last in job.pieces:
        w = read_piece(place, part, first, last)
        arrays, error = encode(w, place.cols, place.dtype, part, rounding)
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

    def finish(job: Job, future: Future[list[Error]]) -> None:
        for (part, _, _), error in zip(job.pieces, future.result(), strict=False):
            errors.setdefault(part.name, Error()).add(error)
        rows = job.place.rows * (job.place.cols if job.place.dtype == lib.LLM_FP32 else 1)
        progress(job.place.size * (job.stop - job.start) // rows)

    waiting: deque[tuple[Job, Future[list[Error]]]] = deque()
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


def write_checksums(fd: int, path: Path, layout: Layout) -> None:
    """Completes the file at `path`, open as fd, with the checksums of what it holds."""
    err = ffi.new("char[256]")
    model = lib.llm_open(os.fsencode(path), err, len(err))
    if not model:
        raise ConvertError(f"the file that was written does not open: {ffi.string(err).decode()}")
    try:
        count = lib.llm_checksums(model, ffi.NULL, 0)
        sums = ffi.new("uint64_t[]", count)
        lib.llm_checksums(model, sums, count)
    finally:
        lib.llm_close(model)
    write_at(fd, np.frombuffer(ffi.buffer(sums), np.uint8), layout.checksums_at)


def write(
    path: Path,
    layout: Layout,
    angles: np.ndarray,
    tensors: list[tuple[Place, list[Tensor]]],
    threads: int = 1,
    progress: Callable[[int], None] = lambda n: None,
    check: Callable[[Path], None] = lambda path: None,
    later: Callable[[int, Path], dict[str, Error]] | None = None,
) -> dict[str, Error]:
    """Writes a flat file under a temporary name, lets `check` look at it, and renames it to `path`. `angles`
    (n_rope, rope_dim / 2, 2) are the rotary tables. What is int4 is left to later(fd, temporary), which may
    also write again what is there."""
    header = layout.header
    head = bytes(ffi.buffer(header)) + layout.text + bytes(ffi.buffer(layout.layers))
    head += np.ascontiguousarray(angles, "<f4").tobytes()
    if len(head) > min((place.offset for place, _ in tensors), default=header.file_size):
        raise ConvertError("file.c's layout has less room before the tensors than the header describes")
    check_space(path, header.file_size)
    with files.replacing(path, header.file_size) as (fd, temporary):
        write_at(fd, np.frombuffer(head, np.uint8), 0)
        rest = [item for item in tensors if item[0].dtype != lib.LLM_INT4]
        errors = write_tensors(fd, rest, threads, progress)
        if later is not None:
            errors |= later(fd, temporary)
        write_checksums(fd, temporary, layout)
        check(temporary)
    return errors
