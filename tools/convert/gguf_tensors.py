"""The tensors of a GGUF file: read by rows and dequantized by the `gguf` library, those of four bits also as
they are; and how their values and order become Hugging Face's again."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np

from . import gguf_header, int4, sources
from .configuration import Config, integer
from .packed import SLICE
from .sources import ConvertError, File, FileTensor, Grid

CODEBOOKS = {"Q4_0": int4.UNIFORM, "IQ4_NL": int4.NONLINEAR}


class FourBits(FileTensor):
    """A tensor of one of CODEBOOKS' types: of each 32 columns an fp16 scale, then 16 bytes, whose low bits
    are the first 16 columns and whose high ones the others."""

    codebook: np.ndarray
    SCALE = 2  # bytes

    def grid(self) -> Grid | None:
        return Grid(self.codebook, self.codes, self.scales)

    def blocks(self, start: int, stop: int) -> np.ndarray:
        return self.raw(start, stop).reshape(stop - start, self.cols // Grid.COLUMNS, 16 + self.SCALE)

    def codes(self, start: int, stop: int) -> np.ndarray:
        packed = self.blocks(start, stop)[..., self.SCALE :]
        return np.concatenate([packed & 15, packed >> 4], axis=2).reshape(stop - start, self.cols)

    def scales(self, start: int, stop: int) -> np.ndarray:
        return np.ascontiguousarray(self.blocks(start, stop)[..., :2]).view("<f2")[..., 0]


class MXFP4(FourBits):
    """The same of E2M1 and a power of two, by its exponent: twice the numbers and half the scale, where fp16
    holds it."""

    codebook = (2 * sources.E2M1).astype(np.int8)
    SCALE = 1

    def grid(self) -> Grid | None:
        return super().grid() if self.fits else None

    @cached_property
    def fits(self) -> bool:
        slices = range(0, self.rows, SLICE)
        powers = (self.powers(start, min(start + SLICE, self.rows)) for start in slices)
        with np.errstate(over="ignore"):
            return all(np.array_equal(power.astype(np.float16), power) for power in powers)

    def powers(self, start: int, stop: int) -> np.ndarray:
        """Half the scales, float32 (n, cols / 32)."""
        halves: np.ndarray = sources.E8M0[self.blocks(start, stop)[..., 0]] / np.float32(2)
        return halves

    def scales(self, start: int, stop: int) -> np.ndarray:
        return self.powers(start, stop).astype(np.float16)


def read_tensor(info: gguf_header.Info, file: File) -> sources.Tensor:
    """A tensor, read by rows and dequantized by the gguf library."""
    import gguf

    name, shape = info.name, info.shape
    if name.endswith("ffn_gate_inp_shexp.weight") and len(shape) == 1:  # a matrix of one row
        shape = (1, *shape)
    cols = shape[-1] if len(shape) > 1 else 1
    try:
        kind = gguf.GGMLQuantizationType(info.kind)
    except ValueError:
        raise ConvertError(f"{name} is of the type {info.kind}, unknown to the gguf library") from None
    if kind.name in sources.PLAIN:
        block, (width, decode) = 1, sources.PLAIN[kind.name]
    else:
        block, width = gguf.GGML_QUANT_SIZES[kind]

        def decode(raw: np.ndarray) -> np.ndarray:
            return np.asarray(gguf.quants.dequantize(raw, kind))

        try:
            decode(np.zeros((1, width), np.uint8))
        except (NotImplementedError, KeyError):
            raise ConvertError(f"{name} is {kind.name}, which the gguf library cannot dequantize") from None
    if cols % block:
        raise ConvertError(f"{name} has {cols} columns, not a multiple of {kind.name}'s {block}")
    arguments = (name, shape or (1,), file, info.offset, cols // block * width, decode)
    result = FileTensor(*arguments)
    if kind.name in CODEBOOKS:
        result = FourBits(*arguments)
        result.codebook = CODEBOOKS[kind.name]
    if kind.name == "MXFP4":
        result = MXFP4(*arguments)
    if info.offset + result.rows * result.row_bytes > file.size:
        raise ConvertError(f"truncated, {name} ends after the file's {file.size} bytes")
    return result


class Columns(sources.Tensor):
    """The columns of another tensor in this order."""

    def __init__(self, base: sources.Tensor, order: np.ndarray) -> None:
        super().__init__(base.name, base.shape)
        self.base, self.order = base, order

    def read(self, start: int, stop: int) -> np.ndarray:
        return np.take(self.base.read(start, stop), self.order, axis=1)


def untiled(name: str, tensor: sources.Tensor, config: Config) -> sources.Tensor:
    """A tensor of a state whose value heads are in Hugging Face's order: all of the first key head, then of
    the second, ... Undoes _LinearAttentionVReorderBase of llama.cpp's converter."""
    keys, heads = (integer(config, f"linear_num_{kind}_heads") for kind in ("key", "value"))
    width, part = integer(config, "linear_key_head_dim"), name.rpartition("linear_attn.")[2]
    if heads % keys:  # the format refuses it
        return tensor
    each = 1 if part.startswith(("in_proj_a", "in_proj_b", "dt_bias", "A_log")) else width
    order = np.arange(heads).reshape(-1, keys).T.reshape(-1, 1) * each + np.arange(each)
    before = 2 * keys * width if part.startswith(("in_proj_qkv", "conv1d")) else 0
    order = np.concatenate([np.arange(before), before + order.reshape(-1)])
    if part.startswith("out_proj"):
        return Columns(tensor, order) if tensor.cols == len(order) else tensor
    known = part.startswith(("in_proj", "conv1d", "dt_bias", "A_log"))
    if not known or tensor.rows != len(order):  # as above
        return tensor
    return sources.Rows(tensor, tensor.shape, order=order)


def logarithms_of_rates(tensor: sources.Tensor) -> sources.Tensor:
    """A_log of what llama.cpp's converter makes of it, -exp(A_log)."""

    def undo(x: np.ndarray) -> np.ndarray:
        with np.errstate(all="ignore"):  # what is not finite is refused when it is written
            return np.log(-x.astype(np.float64))

    return sources.Mapped(tensor, undo)


def swap_norms(tensors: dict[str, sources.Tensor]) -> None:
    """Of Falcon 40B attn_norm_2 is attention's norm, and attn_norm that of the feed-forward block."""
    for name in [name for name in tensors if ".attn_norm_2." in name]:
        layer, kind = name.split(".")[1::2]
        first = f"model.layers.{layer}.input_layernorm.{kind}"
        if first in tensors:
            tensors[f"model.layers.{layer}.post_attention_layernorm.{kind}"] = tensors[first]
            tensors[first] = tensors.pop(name)


def add_xielu(tensors: dict[str, sources.Tensor], value: Callable[[str], Any], n_layers: int) -> None:
    """The numbers of xIELU, which are metadata, as the tensors that they were."""
    for key in ("alpha_p", "alpha_n", "beta", "eps"):
        numbers = value(f"xielu.{key}")
        if numbers is None:
            continue
        real = isinstance(numbers, list) and all(isinstance(x, float) and math.isfinite(x) for x in numbers)
        if not real or len(numbers) != n_layers:
            raise ConvertError(f"xielu.{key} is not {n_layers} numbers")
        for layer, number in enumerate(numbers):
            name = f"model.layers.{layer}.mlp.act_fn.{key}"
            tensors[name] = sources.Constant(f"xielu.{key}", (1,), number)
