"""Calibration: what a model's products see of a text decides how its weights are rounded to eight or four
bits.

A model runs once over a text, all of it as one batch, and shows the input of each of its products to
observe(). What arrives there is a product's whole input, so the caller encodes the tensor at once with the
encoder that it gets back, and keeps nothing: memory is that of one tensor's second moments, however many
tensors there are.

    calibration = Calibration()
    encoder = calibration.observe(tensor, layer, expert, x)       # x (tokens, cols) float32
    rounder = encoder.rounder(sample_of_rows)                     # the codebook comes from these
    for rows in pieces: write(rounder.rows(rows))                 # see int4.Rounder

What is known of an expert's inputs is what was routed to it. So that an expert that saw few tokens is not
fitted to these, the moments of its layer's inputs (seen by the router, which is the product before the
experts) count as PRIOR more tokens; without any, it is rounded as without data."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from . import int4
from .int4 import Codebook, Feedback, Floats, Map, Rounder

# The text that ships, written for this and quoting nothing: prose, dialogue, code, markup, tables,
# mathematics, law and letters in 20 languages, all of them in its first 2,000 tokens and again after. With as
# many tokens of licences, Python and manuals instead, the products' errors on other texts were 5 % (Gemma 3
# 270M) and 14 % larger (SmolLM2 135M); with 2,048 of its tokens 5 %. With 4,096 instead of 3,072
# int4's KL divergence on texts of other kinds is 1 % smaller (Gemma 3 270M) or the same (SmolLM2), and int8's
# no smaller.
TEXT = Path(__file__).with_name("calibration.txt")
TOKENS = 3072  # of a text that a model runs over, in sequences of LENGTH, each from its beginning
FEW = 1024  # fewer tokens than this are worth a note
LENGTH = 512
WIDTH = 4096  # columns whose second moments are taken together
PRIOR = 256  # tokens' worth of its layer's inputs that an expert's moments begin with
ALIKE = 32  # tokens' worth of inputs, alike in all columns, that all moments begin with


@dataclass
class Moments:
    """Mean second moments of inputs: square matrices along the diagonal, each over so many columns."""

    blocks: list[Floats]
    tokens: float  # how many inputs they come from

    @property
    def mean_squares(self) -> Floats:
        """(cols,)"""
        return np.concatenate([np.diagonal(block) for block in self.blocks])


def blocks(cols: int, width: int) -> list[slice]:
    """Columns in as few blocks as are no wider than width, all but the last of one size and of whole groups.

    What is known of one block does not help in another. With two blocks for one the products' errors grow by
    5 % (a down projection of 2,048 columns), the work, which goes with the cube of the columns, falls to a
    quarter."""
    count = -(-cols // width)
    each = -(-cols // count) if count else 0
    each = -(-each // int4.STRIDE) * int4.STRIDE
    return [slice(first, min(first + each, cols)) for first in range(0, cols, each or 1)]


def moments_of(x: Floats, width: int, each: Map = map) -> Moments:
    """The moments of inputs (tokens, cols), in blocks of width columns, or narrower."""
    tokens, cols = x.shape
    if not np.isfinite(x).all():
        raise ValueError("an input of the product is not finite (NaN or infinite)")
    result = []
    for block in blocks(cols, width):
        n = block.stop - block.start
        squares = np.zeros((n, n), np.float32)
        int4.add_squares(squares, n, x[:, block], each)
        squares /= np.float32(tokens + ALIKE)
        mirror(squares, each)
        result.append(squares)
    mean = np.mean([np.diagonal(squares).mean() for squares in result])
    for squares in result:  # a mean over tokens alone is mean * (tokens + ALIKE) / tokens
        squares[np.diag_indices_from(squares)] += mean * np.float32(ALIKE / max(tokens, 1))
    return Moments(result, tokens)


def mirror(matrix: Floats, each: Map) -> None:
    """Makes a matrix symmetric, of which the lower triangle is there."""

    def work(start: int, stop: int) -> None:
        rows = matrix[start:stop]
        square = rows[:, start:stop]
        square[:] = np.tril(square) + np.tril(square, -1).T
        rows[:, stop:] = matrix[stop:, start:stop].T

    int4.shares(each, len(matrix), work)


def mixed(own: Moments, prior: Moments, weight: float) -> Moments:
    """own, into which prior is mixed as if it came from weight more tokens."""
    share = np.float32(weight / (own.tokens + weight))
    for block, other in zip(own.blocks, prior.blocks, strict=True):
        block *= 1 - share
        block += other * share
    return Moments(own.blocks, own.tokens + weight)


@dataclass
class Encoder:
    """How a tensor's rows are to be rounded, by the moments of its inputs; none: without data."""

    cols: int
    moments: Moments | None = None
    codebook: Codebook | None = None  # the tensor's, if it is not fitted
    each: Map = map

    def rounder(self, rows: Floats) -> Rounder:
        """What rounds the tensor's rows, with a codebook that suits some of them, rows (n, cols). The moments
        are used up."""
        mean_squares = int4.usable(self.moments.mean_squares if self.moments else None, self.cols)
        codebook = self.codebook
        if codebook is None:
            codebook = int4.fit_codebook(int4.sample(rows), mean_squares)
        return Rounder(codebook, mean_squares, self.feedback())

    def feedback(self, group: int = int4.GROUP) -> list[Feedback]:
        """The moments, factored block by block, for so many columns a scale."""
        if self.moments is None or not self.moments.mean_squares.any():
            return []
        found, first = [], 0
        while self.moments.blocks:
            block = self.moments.blocks.pop(0)  # so that no more than one is there beside its factor
            found.append(int4.factor(block, self.moments.tokens, first, group, self.each))
            first += len(block)
        self.moments = None
        return found


@dataclass
class Calibration:
    """Turns the inputs of products into encoders, in the order in which a model runs.

    Memory, beside the inputs: 8 bytes times cols times the width of a block (a dense 8B model: 0.5 GB), and
    8 times its square (0.1 GB); with experts 4 times cols times width more."""

    width: int = WIDTH
    prior: int = PRIOR
    each: Map = map  # or that of a pool of threads
    layers: dict[int, Moments] = field(default_factory=dict)

    def layer_inputs(self, layer: int, x: Floats) -> None:
        """What all tokens bring to a layer's experts, x (tokens, cols): the router's input. Call it before
        they are observed; it is kept until the next layer's."""
        self.layers = {layer: moments_of(x, self.width, self.each)}

    def observe(self, tensor: int, layer: int, expert: int | None, x: Floats) -> Encoder:
        """The encoder of a tensor that is multiplied by x (tokens, cols) float32, of an expert if it is of
        one.

        Raises ValueError if x is not finite."""
        tokens, cols = x.shape
        own = moments_of(x, self.width, self.each) if tokens else None
        prior = self.layers.get(layer) if expert is not None else None
        if prior is not None and len(prior.mean_squares) != cols:
            prior = None  # what an expert's neurons say to its second product, no other expert's do
        if own is None:
            own = None if prior is None else Moments([block.copy() for block in prior.blocks], prior.tokens)
        elif prior is not None:
            own = mixed(own, prior, self.prior)
        return Encoder(cols, own, each=self.each)
