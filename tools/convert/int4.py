"""Four-bit weights: how a matrix becomes 16 values and scales, and how they lie in the flat file.

A weight is codebook[index] * scale. The codebook is 16 int8 values of the tensor's own, the index four bits,
the scale an fp16 number of either sign for one row and 32 columns. Three ways lead there, each better than
the one before where what it needs is known:

- without data: every group's scale minimises sum (w - w')^2;
- with the mean squares of the columns' inputs, m: it minimises sum m (w - w')^2;
- with all second moments of the inputs, H = E[x x^T]: the rounding of a column makes up for the errors of the
  columns before it, so that (w - w') H (w - w')^T is small, the mean square of the product's error. This is
  GPTQ (Frantar et al. 2022), written as LDLQ (Chee et al. 2023, "QuIP", which shows that they are the same).

Nothing here rotates, reads files or knows a model. The rounding itself is C, csrc/round.c: rows never depend
on each other, and come out the same on every processor."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pyllm._llm import ffi, lib

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]
Halves = NDArray[np.float16]
Codebook = NDArray[np.int8]
Columns = NDArray[np.uint32]
Map = Callable[[Callable[[int], None], Iterable[int]], Iterable[None]]  # map() itself, or a pool's

LEVELS = 16  # values of a codebook
GROUP = 32  # columns of one scale
TILE = 16  # rows that lie together in the file
STRIDE = 64  # what the columns are padded to a multiple of
HEAD = 64  # bytes before the indices: the codebook, then zeros

SHARE = 256  # columns of a matrix that a thread works on
FP16_MAX = 65504.0

# Scales that are tried. With 29 for each sign, from 0.6 to 2, the error is 1 % smaller.
SPANS = np.outer((1, -1), np.linspace(0.9, 1.4, 6)).ravel().astype(np.float32)
# Chosen by KL divergence of SmolLM2 135M and Gemma 3 270M on texts of other kinds
BELIEF = 0.4  # columns of second moments that one input tells about
DAMPING = 0.01  # of the mean square of all columns, for each column
LLOYD_TURNS = 5
SAMPLE = 1 << 16  # weights that a codebook is fitted to

UNIFORM: Codebook = np.arange(-8, 8, dtype=np.int8)
# The values of llama.cpp's IQ4_NL: close to what Lloyd's method finds for weights divided by their group's
# largest
NONLINEAR: Codebook = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int8
)
# Twice the values of a 4-bit float with 2 bits of exponent and 1 of mantissa (OCP Microscaling Formats,
# 5.3.3)
FLOAT4: Codebook = np.array([-12, -8, -6, -4, -3, -2, -1, 0, 0, 1, 2, 3, 4, 6, 8, 12], np.int8)
GRIDS = (UNIFORM, NONLINEAR, FLOAT4)


class Int4(NamedTuple):
    """A matrix in four bits."""

    codebook: Codebook  # (16,), rising
    indices: Bytes  # (rows, cols), 0 to 15
    scale: Halves  # (rows, ceil(cols / 32))


def groups(cols: int) -> int:
    """Scales of a row."""
    return -(-cols // GROUP)


def decode(matrix: Int4) -> Floats:
    """The weights, (rows, cols): exact, since 8 and 11 bits multiply to 19."""
    values = matrix.codebook.astype(np.float32)[matrix.indices]
    scale = np.repeat(matrix.scale.astype(np.float32), GROUP, axis=1)
    return np.asarray(values * scale[:, : values.shape[1]], np.float32)


# ---------------------------------------------------------------------------------------------------------
# What is known about the inputs


class Feedback(NamedTuple):
    """Second moments of some columns' inputs, factored for rounding one column after another.

    With H = L^T D L, L unit lower triangular, the error of a row's differences e = w - w' is e H e =
    sum_j D_j (e_j + sum_{i<j} L_ji e_i)^2: once the columns before j are rounded, its best place is
    w_j + sum_{i<j} L_ji e_i."""

    lower: Floats  # (cols, cols): L
    weight: Floats  # (cols,): D
    columns: Columns  # (cols,): their numbers, in the order in which they are rounded


def shrinkage(cols: int, tokens: float) -> float:
    """The share by which second moments of so many inputs are to be believed less than their diagonal."""
    return cols / (cols + BELIEF * tokens)


def in_order(mean_squares: Floats, group: int = GROUP) -> Columns:
    """Columns (cols,) by groups, those of the largest mean squares first: what is rounded later makes up for
    it. A group of fewer columns is the last."""
    whole = len(mean_squares) // group
    sums = mean_squares[: whole * group].reshape(whole, group).sum(axis=1)
    order = np.argsort(-sums, kind="stable")
    columns = (order[:, None] * group + np.arange(group)).ravel()
    return np.concatenate([columns, np.arange(whole * group, len(mean_squares))]).astype(np.uint32)


def factor(moments: Floats, tokens: float, first: int = 0, group: int = GROUP, each: Map = map) -> Feedback:
    """Factors the mean second moments (cols, cols) of so many inputs; first is the number of their first
    column, and so many columns have a scale together. `each` is map(), or that of a pool of threads.

    What is off the diagonal is shrunk, since moments of a few thousand inputs fit these inputs more closely
    than others: with all columns and no shrinkage GPTQ can be worse on another text than rounding each weight
    apart."""
    if not np.isfinite(np.diagonal(moments)).all():
        raise ValueError("the inputs of the product are too large")
    order = in_order(np.diagonal(moments), group)
    diagonal = np.diagonal(moments)[order]
    damping = np.float32(DAMPING) * diagonal.mean()
    share, shrunk = np.float32(1 - shrinkage(len(moments), tokens)), np.empty_like(moments)

    def shrink(first: int, last: int) -> None:
        rows = shrunk[first:last]
        np.take(moments[order[first:last]], order, axis=1, out=rows, mode="clip")  # "raise" takes a copy
        rows *= share

    while True:
        shares(each, len(order), shrink)
        np.fill_diagonal(shrunk, diagonal + damping)
        weight = factor_in_place(shrunk, each)
        if weight is not None:
            return Feedback(shrunk, weight, order + np.uint32(first))
        damping *= 10  # only what is nearly singular, and rounded to float32


def factor_in_place(h: Floats, each: Map) -> Floats | None:
    """Makes L of a matrix (n, n), H = L^T D L, and returns D (n,); None: it is not positive definite. What is
    above L's diagonal is left as it was."""
    n, data = len(h), floats(h)
    weight = np.empty(n, np.float32)
    for stop in range(n, 0, -lib.ROUND_DEPTH):
        start = max(stop - lib.ROUND_DEPTH, 0)
        if lib.round_factor_block(data, n, start, stop, floats(weight)):
            return None

        def columns(first: int, last: int, start: int = start, stop: int = stop) -> None:
            lib.round_factor_columns(data, n, start, stop, floats(weight), first, last)

        shares(each, start, columns)
        add_squares(h, start, h[start:stop], each, -weight[start:stop])
    return weight


def add_squares(h: Floats, n: int, x: Floats, each: Map = map, weight: Floats | None = None) -> None:
    """h += x^T diag(weight) x in the lower triangle of h's first n rows and columns, x (rows, at least n)
    float32, of which each row lies in one piece. Not by BLAS, whose sums depend on the processor."""
    stride = x.strides[0] // x.itemsize
    rows = np.lib.stride_tricks.as_strided(x, ((len(x) - 1) * stride + n,), x.strides[1:]) if len(x) else x
    weights = ffi.NULL if weight is None else floats(weight)

    def work(start: int, stop: int) -> None:
        room = np.empty(lib.ROUND_DEPTH * n, np.float32)
        lib.round_add_squares(
            floats(h), n, h.shape[1], start, stop, floats(rows), len(x), stride, weights, floats(room)
        )

    shares(each, n, work)


def shares(each: Map, n: int, work: Callable[[int, int], None]) -> None:
    """work(start, stop) for shares of n columns, each of which may be done by a thread of its own."""
    list(each(lambda start: work(start, min(start + SHARE, n)), range(0, n, SHARE)))


# ---------------------------------------------------------------------------------------------------------
# Rounding


def round_rows(
    weights: Floats,
    codebook: Codebook,
    weight: Floats,
    feedback: Feedback | None = None,
    found: tuple[Bytes, Floats] | None = None,
    group: int = GROUP,
    spans: Floats = SPANS,
) -> tuple[Bytes, Floats]:
    """Rounds weights (rows, cols) to indices (rows, cols) in a rising codebook and scales (rows, groups), of
    `group` columns each and chosen among those of the spans (see round.h).

    Each becomes the value nearest to it, where weight (cols,) says how much the square of a column's error
    counts; with feedback its columns, in its order, become what is nearest to them and what makes up for the
    errors before them. `found` has room for the result, and keeps that of other columns."""
    rows, cols = weights.shape
    if found is None:
        found = np.empty((rows, cols), np.uint8), np.empty((rows, -(-cols // group)), np.float32)
    index, scale = found
    columns = np.arange(cols, dtype=np.uint32)
    if feedback is not None:
        columns, weight = feedback.columns, feedback.weight
    values = ffi.from_buffer("int8_t[]", codebook)
    candidates = floats(spans)
    grid = ffi.new("round_grid *", (values, len(codebook), group, candidates, len(spans)))
    room = np.empty(lib.round_room(len(columns)), np.float32)
    lib.round_rows(
        grid,
        rows,
        cols,
        floats(weights),
        len(columns),
        ffi.from_buffer("uint32_t[]", columns),
        floats(feedback.lower) if feedback is not None else ffi.NULL,
        floats(weight),
        ffi.from_buffer("uint8_t[]", index),
        floats(scale),
        floats(room),
    )
    return index, scale


def round_in_turn(
    weights: Floats,
    codebook: Codebook,
    feedback: Sequence[Feedback],
    group: int = GROUP,
    spans: Floats = SPANS,
) -> tuple[Bytes, Floats]:
    """round_rows() of all columns, which one or more feedbacks have between them."""
    found = None
    for part in feedback:
        found = round_rows(weights, codebook, part.weight, part, found, group, spans)
    assert found is not None
    return found


def floats(array: Floats) -> Any:
    """An array as C takes it."""
    return ffi.from_buffer("float[]", np.ascontiguousarray(array, np.float32))


def fit_codebook(weights: Floats, mean_squares: Floats, codebook: Codebook = NONLINEAR) -> Codebook:
    """Lloyd's method (1982), begun at a codebook: the values that suit some of a tensor's rows best, (rows,
    cols), under the columns' mean_squares (cols,)."""
    codebook = np.sort(codebook)
    for _ in range(LLOYD_TURNS):
        index, scale = round_rows(weights, codebook, mean_squares)
        scales = np.repeat(scale, GROUP, axis=1)[:, : weights.shape[1]]
        weighted = mean_squares * scales
        total = np.bincount(index.ravel(), (weighted * scales).ravel(), LEVELS)
        sums = np.bincount(index.ravel(), (weighted * weights).ravel(), LEVELS)
        values = np.where(total > 0, sums / np.maximum(total, np.finfo(np.float64).tiny), codebook)
        largest = np.abs(values).max()
        if not largest > 0:
            return codebook
        codebook = np.sort(np.rint(values * (127 / largest))).astype(np.int8)
    return codebook


class Rounder:
    """Rounds the rows of one tensor, a piece of them at a time, with one codebook.

    feedback: the tensor's columns in order, from factor(); or none of them, and mean_squares (cols,) alone
    count (ones: no data). Rows do not depend on each other: several threads may round pieces at once."""

    def __init__(self, codebook: Codebook, mean_squares: Floats, feedback: Sequence[Feedback] = ()) -> None:
        self.codebook = np.sort(codebook)
        self.mean_squares = mean_squares
        self.feedback = feedback

    def rows(self, weights: Floats) -> Int4:
        """Rounds rows (rows, cols)."""
        weights = np.ascontiguousarray(weights)
        if self.feedback:
            index, scale = round_in_turn(weights, self.codebook, self.feedback)
        else:
            index, scale = round_rows(weights, self.codebook, self.mean_squares)
        return Int4(self.codebook, index, scale.astype(np.float16))


def check(weights: Floats) -> None:
    """Refuses weights that no codebook with an fp16 scale can hold."""
    largest = float(np.abs(weights).max(initial=0))
    if not np.isfinite(largest):
        raise ValueError("has a weight that is not finite (NaN or infinite)")
    limit = FP16_MAX * 127
    if largest > limit:
        raise ValueError(
            f"has a weight of magnitude {largest:g}, above the largest int4 weight with an fp16 scale, "
            f"{limit:g}"
        )


def encode(
    weights: Floats,
    mean_squares: Floats | None = None,
    moments: Floats | None = None,
    tokens: float = float("inf"),
    codebook: Codebook | None = None,
) -> Int4:
    """A whole matrix (rows, cols) at once: without data, with the mean squares (cols,) or with all second
    moments (cols, cols) of so many inputs; with the codebook given, or one that is fitted to it."""
    check(weights)
    if moments is not None:
        mean_squares = np.diagonal(moments)
    counts = usable(mean_squares, weights.shape[1])
    feedback = () if moments is None or not moments.any() else (factor(moments, tokens),)
    if codebook is None:
        codebook = fit_codebook(sample(weights), counts)
    return Rounder(codebook, counts, feedback).rows(weights)


def usable(mean_squares: Floats | None, cols: int) -> Floats:
    """Mean squares (cols,) that a scale can be chosen by: ones if there are none or all are 0, and none so
    small that a column would not count at all."""
    if mean_squares is None or not mean_squares.any():
        return np.ones(cols, np.float32)
    return np.asarray(mean_squares + np.float32(DAMPING) * mean_squares.mean(), np.float32)


def sample(weights: Floats) -> Floats:
    """Rows from all over a matrix, about SAMPLE weights, that stand for it."""
    return weights[:: max(1, weights.size // SAMPLE)]


# ---------------------------------------------------------------------------------------------------------
# Weights that have four bits already


def encode_grid(index: Bytes, codebook: Codebook, scale: NDArray[np.floating]) -> Int4 | None:
    """A matrix that is quantized in this way already, codebook[index] * scale with index (rows, cols) and
    scales (rows, n) for n equal groups of a multiple of 32 columns (the last may be narrower), unchanged;
    None if a scale is no fp16 number."""
    rows, cols = index.shape
    wide = -(-cols // (scale.shape[1] * GROUP)) * GROUP
    if wide * (scale.shape[1] - 1) >= max(cols, 1):
        count = scale.shape[1]
        raise ValueError(f"{count} scales do not divide {cols} columns into groups of a multiple of {GROUP}")
    half = scale.astype(np.float16)
    if not np.array_equal(half.astype(scale.dtype), scale):
        return None
    order = np.argsort(codebook, kind="stable")
    place = np.empty(LEVELS, np.uint8)
    place[order] = np.arange(LEVELS, dtype=np.uint8)
    return Int4(codebook[order], place[index], np.repeat(half, wide // GROUP, axis=1)[:, : groups(cols)])


def on_grid(weights: Floats, codebook: Codebook) -> Int4 | None:
    """A matrix (rows, cols) whose every group of 32 columns is values of the codebook times an fp16 scale,
    exactly; None if a group is not.

    A group's largest weight is one of the values times the scale, so that there are few scales to try."""
    rows, cols = weights.shape
    count = groups(cols)
    padded = np.zeros((rows, count * GROUP), np.float32)
    padded[:, :cols] = weights
    grouped = padded.reshape(-1, GROUP)
    largest = grouped[np.arange(len(grouped)), np.abs(grouped).argmax(axis=1)]
    # what fills a group up must not keep it off the grid
    padded[:, cols:] = largest.reshape(rows, count)[:, -1:]
    codebook = np.sort(codebook)
    values = codebook.astype(np.float32)
    index = np.full(grouped.shape, np.abs(values).argmin(), np.uint8)
    scale = np.zeros(len(grouped), np.float16)
    left = np.flatnonzero(largest)
    for value in np.unique(values[values != 0]):
        with np.errstate(over="ignore"):
            half = (largest[left] / value).astype(np.float16)
        exact = half.astype(np.float32) * value == largest[left]
        some, tried = left[exact], half[exact].astype(np.float32)
        with np.errstate(divide="ignore", invalid="ignore"):  # a scale that fp16 has as 0, which fits nothing
            relative = grouped[some] / tried[:, None]
        found = np.searchsorted((values[1:] + values[:-1]) / 2, relative).astype(np.uint8)
        fits = (values[found] * tried[:, None] == grouped[some]).all(axis=1)
        index[some[fits]] = found[fits]
        scale[some[fits]] = tried[fits]
        left = np.setdiff1d(left, some[fits], assume_unique=True)
    if len(left):
        return None
    return Int4(codebook, index.reshape(rows, -1)[:, :cols], scale.reshape(rows, -1))


def find_grid(weights: Floats) -> Int4 | None:
    """The matrix (rows, cols) as it is if it came from int4 without zero points, Q4_0, IQ4_NL or MXFP4; else
    None, which a few rows are enough to see."""
    for codebook in GRIDS:
        if on_grid(weights[:TILE], codebook) is not None:
            return on_grid(weights, codebook)
    return None


# ---------------------------------------------------------------------------------------------------------
# The file's layout


def stride(cols: int) -> int:
    """The columns of a row in the file."""
    return -(-cols // STRIDE) * STRIDE


def size(rows: int, cols: int) -> int:
    """The bytes of a tensor: its codebook, half a byte for each weight, two for each scale."""
    weights = -(-rows // TILE) * TILE * stride(cols)
    return HEAD + weights // 2 + weights // GROUP * 2


def pack_codebook(codebook: Codebook) -> Bytes:
    """The tensor's first bytes: the codebook, then zeros."""
    head = np.zeros(HEAD, np.uint8)
    head[:LEVELS] = codebook.view(np.uint8)
    return head


def pack_index(index: Bytes, codebook: Codebook) -> Bytes:
    """Indices (rows, cols) as bytes (tiles, stride / 8, 16, 4): byte j of a row has column c + j in its low
    half, c + 4 + j in its high half. What fills up has the value that is nearest to 0, and a scale of 0 or an
    input of 0."""
    rows, cols = index.shape
    tiles = -(-rows // TILE)
    padded = np.full((tiles * TILE, stride(cols)), np.abs(codebook.astype(np.int16)).argmin(), np.uint8)
    padded[:rows, :cols] = index
    halves = padded.reshape(tiles, TILE, -1, 2, 4)
    packed = halves[:, :, :, 0] | halves[:, :, :, 1] << 4
    return np.ascontiguousarray(packed.transpose(0, 2, 1, 3))


def pack_scale(scale: Halves, cols: int) -> Halves:
    """Scales (rows, groups) as (tiles, stride / 32, 16); zeros fill up."""
    rows, count = scale.shape
    tiles = -(-rows // TILE)
    padded = np.zeros((tiles * TILE, stride(cols) // GROUP), np.float16)
    padded[:rows, :count] = scale
    return np.ascontiguousarray(padded.reshape(tiles, TILE, -1).transpose(0, 2, 1))


def pack(matrix: Int4) -> bytes:
    """The tensor's bytes in the file."""
    parts = (
        pack_codebook(matrix.codebook),
        pack_index(matrix.indices, matrix.codebook),
        pack_scale(matrix.scale, matrix.indices.shape[1]),
    )
    return b"".join(part.tobytes() for part in parts)


def unpack(data: bytes, rows: int, cols: int) -> Int4:
    """The reverse of pack()."""
    if len(data) != size(rows, cols):
        raise ValueError(f"{rows} x {cols} weights take {size(rows, cols)} bytes, not {len(data)}")
    tiles, wide = -(-rows // TILE), stride(cols)
    codebook = np.frombuffer(data, np.int8, LEVELS)
    packed = np.frombuffer(data, np.uint8, tiles * TILE * wide // 2, HEAD).reshape(tiles, -1, TILE, 4)
    halves = np.stack([packed & 15, packed >> 4], axis=3).transpose(0, 2, 1, 3, 4)
    scale = np.frombuffer(data, np.float16, offset=HEAD + packed.size)
    scale = scale.reshape(tiles, -1, TILE).transpose(0, 2, 1)
    return Int4(
        codebook,
        halves.reshape(tiles * TILE, wide)[:rows, :cols],
        scale.reshape(tiles * TILE, -1)[:rows, : groups(cols)],
    )
