"""Four-bit weights: how a matrix becomes 16 values and scales, and how they lie in the flat file.

A weight is codebook[index] * scale. The codebook is 16 int8 values of the tensor's own, the index four bits,
the scale an fp16 number of either sign for one row and 32 columns. Three ways lead there, each better than
the one before where what it needs is known:

- without data: every group's scale minimises sum (w - w')^2;
- with the mean squares of the columns' inputs, m: it minimises sum m (w - w')^2;
- with all second moments of the inputs, H = E[x x^T]: the rounding of a column makes up for the errors of the
  columns before it, so that (w - w') H (w - w')^T is small, the mean square of the product's error. This is
  GPTQ (Frantar et al. 2022), written as LDLQ (Chee et al. 2023, "QuIP", which shows that they are the same).

Nothing here rotates, reads files or knows a model. Matrices are (rows, cols) outside and (cols, rows) inside,
where a column's weights are contiguous and every step is one operation over all rows: rows never depend on
each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]
Halves = NDArray[np.float16]
Codebook = NDArray[np.int8]

LEVELS = 16  # values of a codebook
GROUP = 32  # columns of one scale
TILE = 16  # rows that lie together in the file
STRIDE = 64  # what the columns are padded to a multiple of
HEAD = 64  # bytes before the indices: the codebook, then zeros

ROWS = 1024  # rows rounded at once: a group of them, float32, is 128 KiB and stays in a core's cache
FP16_MAX = 65504.0
FP16_TINY = np.float16(2.0**-24)  # the smallest scale that is not 0
NOTHING = np.float32(2.0**-30)  # a group whose largest weight is below this is one of zeros

# Chosen by KL divergence of SmolLM2 135M and Gemma 3 270M on texts of other kinds
SPANS = np.outer((1, -1), np.linspace(0.8, 1.15, 6)).ravel().astype(np.float32)  # scales that are tried
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
# The nearest value, and the best scale


class Table:
    """The nearest value of a codebook, by a table over eighths of a step: a search among 15 midpoints would
    take ten times as long, and a weight that lies within a sixteenth of a midpoint loses nothing to speak of.

    What its methods return lies in memory of its own and stands until the next call (fresh memory for every
    array would cost more than the arithmetic): one thread uses a table, and copies what it keeps."""

    FINE = 8

    def __init__(self, codebook: Codebook) -> None:
        self.codebook = np.sort(codebook).astype(np.int8)
        self.values = self.codebook.astype(np.float32)
        centres = (np.arange(256 * self.FINE, dtype=np.float32) + 0.5) / self.FINE - 128
        self.indices = np.searchsorted((self.values[1:] + self.values[:-1]) / 2, centres).astype(np.uint8)
        self.nearest = self.values[self.indices]
        self.top = float(np.abs(self.values).max())
        self.floats = np.empty(0, np.float32)
        self.places = np.empty(0, np.intp)

    def place(self, weights: Floats, inverse: Floats) -> NDArray[np.intp]:
        """Where in the tables weights (..., rows) times inverse scales (rows,) are looked up."""
        if self.places.size < weights.size:
            self.floats = np.empty(weights.size, np.float32)
            self.places = np.empty(weights.size, np.intp)
        floats = self.floats[: weights.size].reshape(weights.shape)
        places = self.places[: weights.size].reshape(weights.shape)
        np.multiply(weights, inverse * np.float32(self.FINE), out=floats)
        floats += 128 * self.FINE
        np.copyto(places, floats, casting="unsafe")
        return places

    def value(self, weights: Floats, inverse: Floats) -> Floats:
        """The nearest values of the codebook, float32."""
        places = self.place(weights, inverse)
        floats = self.floats[: weights.size].reshape(weights.shape)
        return self.nearest.take(places, mode="clip", out=floats)

    def index(self, weights: Floats, inverse: Floats) -> Bytes:
        """Their numbers, in an array of their own."""
        return self.indices.take(self.place(weights, inverse), mode="clip")


def inverse_of(scale: Floats) -> Floats:
    """1 / scale, and 0 where it is 0."""
    inverse = np.zeros_like(scale)
    np.divide(1, scale, out=inverse, where=scale != 0)
    return inverse


def to_half(scale: Floats, used: NDArray[np.bool_]) -> Floats:
    """Scales rounded to fp16 (as float32); not to 0 where a group has weights."""
    half = np.clip(scale, -FP16_MAX, FP16_MAX).astype(np.float16)
    half[used & (half == 0)] = FP16_TINY
    return half.astype(np.float32)


def best_scale(weights: Floats, metric: Floats, table: Table, spans: Floats) -> Floats:
    """The scale of each row's group, (rows,), that comes out best under a metric.

    weights (columns, rows); metric (columns,), how much the square of each column's error counts, or
    (columns, columns), a quadratic form. A candidate puts the largest weight at a span of the codebook's
    largest value, with either sign, since the codebook reaches further on one side. Of the candidate only the
    indices count: with the values c that they mean, the best scale is s = c M w / c M c and leaves the error
    w M w - (c M w)^2 / c M c."""
    top = np.abs(weights).max(axis=0)
    used = top >= NOTHING
    full = inverse_of(np.where(used, top, 0)) * np.float32(table.top)
    weighted = metric @ weights if metric.ndim == 2 else weights * metric[:, None]
    product = np.empty_like(weights)
    best = np.full(top.shape, -1, np.float32)
    scale = np.zeros(top.shape, np.float32)
    for span in spans:
        values = table.value(weights, full / span)
        with_weights = np.einsum("cr,cr->r", weighted, values)
        if metric.ndim == 2:
            np.matmul(metric, values, out=product)
            with_itself = np.einsum("cr,cr->r", product, values)
        else:
            with_itself = metric @ np.square(values, out=product)
        fitted = with_weights * inverse_of(with_itself)
        gain = with_weights * fitted
        better = gain > best
        np.copyto(best, gain, where=better)
        np.copyto(scale, fitted, where=better)
    return to_half(scale, used)


# ---------------------------------------------------------------------------------------------------------
# What is known about the inputs


class Feedback(NamedTuple):
    """Second moments of some columns' inputs, factored for rounding one column after another.

    With H = L^T D L, L unit lower triangular, the error of a row's differences e = w - w' is e H e =
    sum_j D_j (e_j + sum_{i<j} L_ji e_i)^2: once the columns before j are rounded, its best place is
    w_j + sum_{i<j} L_ji e_i."""

    lower: Floats  # (cols, cols): L
    weight: Floats  # (cols,): D
    columns: NDArray[np.intp]  # (cols,): their numbers, in the order in which they are rounded


def shrinkage(cols: int, tokens: float) -> float:
    """The share by which second moments of so many inputs are to be believed less than their diagonal."""
    return cols / (cols + BELIEF * tokens)


def in_order(mean_squares: Floats) -> NDArray[np.intp]:
    """Columns (cols,) by groups, those of the largest mean squares first: what is rounded later makes up for
    it. A group of fewer columns is the last."""
    whole = len(mean_squares) // GROUP
    sums = mean_squares[: whole * GROUP].reshape(whole, GROUP).sum(axis=1)
    order = np.argsort(-sums, kind="stable")
    columns = (order[:, None] * GROUP + np.arange(GROUP)).ravel()
    return np.concatenate([columns, np.arange(whole * GROUP, len(mean_squares))])


def factor(moments: Floats, tokens: float, first: int = 0) -> Feedback:
    """Factors the mean second moments (cols, cols) of so many inputs; first is the number of their first
    column.

    What is off the diagonal is shrunk, since moments of a few thousand inputs fit these inputs more closely
    than others: with all columns and no shrinkage GPTQ can be worse on another text than rounding each weight
    apart."""
    if not np.isfinite(np.diagonal(moments)).all():
        raise ValueError("the inputs of the product are too large")
    order = in_order(np.diagonal(moments))
    # cholesky() gives C C^T, C lower; of the matrix with its order reversed that is R R^T, R upper
    last_first = order[::-1]
    shrunk = moments[last_first[:, None], last_first]
    diagonal = np.diagonal(shrunk).copy()
    shrunk *= np.float32(1 - shrinkage(len(moments), tokens))
    damping = np.float32(DAMPING) * diagonal.mean()
    while True:
        np.fill_diagonal(shrunk, diagonal + damping)
        try:
            upper = np.linalg.cholesky(shrunk)[::-1, ::-1]
            break
        except np.linalg.LinAlgError:  # only what is nearly singular, and rounded to float32
            damping *= 10
    root = np.diagonal(upper).copy()
    upper /= root
    return Feedback(np.ascontiguousarray(upper.T), np.square(root), order + first)


# ---------------------------------------------------------------------------------------------------------
# Rounding


def round_apart(weights: Floats, mean_squares: Floats, table: Table, spans: Floats) -> tuple[Bytes, Floats]:
    """Rounds weights (cols, rows), each to its nearest value, to indices (cols, rows) and scales (groups,
    rows) that are best under the columns' mean_squares (cols,)."""
    index = np.empty(weights.shape, np.uint8)
    scale = np.empty((groups(len(weights)), weights.shape[1]), np.float32)
    for g in range(len(scale)):
        these = slice(g * GROUP, (g + 1) * GROUP)
        scale[g] = best_scale(weights[these], mean_squares[these], table, spans)
        index[these] = table.index(weights[these], inverse_of(scale[g]))
    return index, scale


def round_in_turn(weights: Floats, feedback: Feedback, table: Table, spans: Floats) -> tuple[Bytes, Floats]:
    """Rounds weights (cols, rows), in the feedback's order, column by column, each to the value nearest to
    its weight and what makes up for the errors before it; indices (cols, rows) and scales (groups, rows).

    A group's scale is chosen when its turn comes, for the places that its columns would have by then."""
    cols, rows = weights.shape
    index = np.empty(weights.shape, np.uint8)
    scale = np.empty((groups(cols), rows), np.float32)
    errors = np.empty_like(weights)  # w - w' of the columns done
    for g in range(len(scale)):
        these = slice(g * GROUP, min((g + 1) * GROUP, cols))
        lower = feedback.lower[these, these]
        places = weights[these] + feedback.lower[these, : these.start] @ errors[: these.start]
        metric = (lower.T * feedback.weight[these]) @ lower
        scale[g] = best_scale(places, metric, table, spans)
        inverse = inverse_of(scale[g])
        wrong = errors[these]
        for j, place in enumerate(places):
            # places holds the feedback of earlier groups, this the one of earlier columns of this group
            found = table.place(place + lower[j, :j] @ wrong[:j], inverse)
            index[these.start + j] = table.indices.take(found, mode="clip")
            table.nearest.take(found, mode="clip", out=wrong[j])
            wrong[j] *= scale[g]
            np.subtract(weights[these.start + j], wrong[j], out=wrong[j])
    return index, scale


def fit_codebook(weights: Floats, mean_squares: Floats, codebook: Codebook = NONLINEAR) -> Codebook:
    """Lloyd's method (1982), begun at a codebook: the values that suit some of a tensor's rows best, (rows,
    cols), under the columns' mean_squares (cols,)."""
    columns = np.ascontiguousarray(weights.T)
    for _ in range(LLOYD_TURNS):
        table = Table(codebook)
        index, scale = round_apart(columns, mean_squares, table, SPANS)
        scales = np.repeat(scale, GROUP, axis=0)[: len(columns)]
        relative = columns * inverse_of(scales)
        counts = mean_squares[:, None] * np.square(scales)
        total = np.bincount(index.ravel(), counts.ravel(), LEVELS)
        sums = np.bincount(index.ravel(), (counts * relative).ravel(), LEVELS)
        values = np.where(total > 0, sums / np.maximum(total, np.finfo(np.float64).tiny), table.values)
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
        table = Table(self.codebook)
        indices = np.empty(weights.shape, np.uint8)
        scale = np.empty((len(weights), groups(weights.shape[1])), np.float16)
        for first in range(0, len(weights), ROWS):
            some = slice(first, first + ROWS)
            columns = np.ascontiguousarray(weights[some].T)
            found, scales = self.columns(columns, table)
            indices[some] = found.T
            scale[some] = scales.T
        return Int4(self.codebook, indices, scale)

    def columns(self, weights: Floats, table: Table) -> tuple[Bytes, Floats]:
        """Rounds weights (cols, rows) to indices (cols, rows) and scales (groups, rows)."""
        if not self.feedback:
            return round_apart(weights, self.mean_squares, table, SPANS)
        indices = np.empty(weights.shape, np.uint8)
        scale = np.empty((groups(len(weights)), weights.shape[1]), np.float32)
        for part in self.feedback:
            found, scales = round_in_turn(weights[part.columns], part, table, SPANS)
            indices[part.columns] = found
            scale[part.columns[::GROUP] // GROUP] = scales
        return indices, scale


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
    table = Table(codebook)
    index = np.full(grouped.shape, np.abs(table.values).argmin(), np.uint8)
    scale = np.zeros(len(grouped), np.float16)
    left = np.flatnonzero(largest)
    for value in np.unique(table.values[table.values != 0]):
        with np.errstate(over="ignore"):
            half = (largest[left] / value).astype(np.float16)
        exact = half.astype(np.float32) * value == largest[left]
        some, tried = left[exact], half[exact].astype(np.float32)
        found = table.index(grouped[some].T, inverse_of(tried)).T
        fits = (table.values[found] * tried[:, None] == grouped[some]).all(axis=1)
        index[some[fits]] = found[fits]
        scale[some[fits]] = tried[fits]
        left = np.setdiff1d(left, some[fits], assume_unique=True)
    if len(left):
        return None
    return Int4(table.codebook, index.reshape(rows, -1)[:, :cols], scale.reshape(rows, -1))


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
