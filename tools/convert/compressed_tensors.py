"""compressed-tensors, as llm-compressor writes it: integers of 1 to 8 bits, FP8, NVFP4 and the MX formats, by
groups of modules that each have a scheme.

A matrix (rows, cols) is `weight`, int8 or FP8, or `weight_packed` with `weight_shape`; `weight_scale` by the
scheme's strategy, `weight_zero_point` if it is not symmetric, `weight_global_scale` that divides NVFP4's
scales, and `weight_g_idx`, the group of each column, from older versions. What else a quantized module has
(input_scale and the like) serves to quantize activations."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from . import packed, pattern, sources
from .packed import Section, Shelf
from .sources import ConvertError, FileTensor, Read, Tensor, shown

KEYS = frozenset(
    """
    config_groups format quantization_status global_compression_ratio ignore version run_compressed
    dequantize kv_cache_scheme sparsity_config transform_config moe_sparsity_config
    """.split()
)
RUNTIME = re.compile(r".*\.((input|output)_(scale|zero_point|global_scale)|[qkv]_(scale|zero_point))")
PARTS = (
    ".weight_packed",
    ".weight_scale",
    ".weight_shape",
    ".weight_zero_point",
    ".weight_global_scale",
    ".weight_g_idx",
)
SCALES = ("F32", "F16", "BF16")
MAX_STEPS = 20_000_000  # of the targets' expressions with all modules' names: some seconds
INT8 = np.arange(256, dtype=np.uint8).view(np.int8).astype(np.float32)


@dataclass(frozen=True)
class Scheme:
    """How the matrices of some modules are quantized."""

    format: str
    targets: tuple[str, ...]
    bits: int
    type: str  # "int" or "float"
    symmetric: bool
    strategy: str
    group: int  # columns that share a scale, with the strategies "group" and "tensor_group"
    block: tuple[int, int] | None

    def size(self, rows: int, cols: int) -> tuple[int, int]:
        """The rows and columns that share a scale."""
        sizes = {
            "tensor": (rows, cols),
            "channel": (1, cols),
            "group": (1, self.group),
            "tensor_group": (1, self.group),
            "block": self.block or (1, 1),
        }
        return sizes[self.strategy]


@dataclass(frozen=True)
class Settings:
    schemes: tuple[Scheme, ...]
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        formats = dict.fromkeys(scheme.format for scheme in self.schemes)
        return f"compressed-tensors, {' and '.join(formats)}" if formats else ""


# ---------------------------------------------------------------------------------------------------------
# The configuration


def settings(section: Section) -> Settings:
    sparsity = section.get("sparsity_config")
    if sparsity and not (isinstance(sparsity, dict) and sparsity.get("format") in (None, "dense")):
        raise packed.wrong("sparsity_config", sparsity, "sparse checkpoints are not read")
    for key in ("transform_config", "moe_sparsity_config"):
        if section.get(key):
            raise packed.wrong(key, section[key], "a model that is changed so is not read")
    groups = section.get("config_groups")
    if not isinstance(groups, dict) or not all(isinstance(group, dict) for group in groups.values()):
        raise packed.wrong("config_groups", groups, "it is an object of objects")
    whole = section.get("format")
    schemes = [scheme(name, group, whole) for name, group in groups.items() if group.get("weights")]
    notes = ("keys and values are in 8 bits or fewer there: how pyllm keeps them is chosen as it runs",)
    return Settings(tuple(schemes), notes if section.get("kv_cache_scheme") else ())


def scheme(name: str, group: Section, whole: object) -> Scheme:
    """A group's scheme; `whole`: the format of the whole checkpoint, unless the group has its own."""
    where = f"config_groups.{name}"
    weights, targets = group["weights"], group.get("targets")
    if not isinstance(weights, dict):
        raise packed.wrong(f"{where}.weights", weights, "it is an object")
    if not isinstance(targets, list) or not all(isinstance(target, str) for target in targets):
        raise packed.wrong(f"{where}.targets", targets, "it is a list of names")
    form = group.get("format")
    form = packed.choice({"format": whole if form is None else form}, "format", FORMATS)
    kind, known = FORMATS[form].type, FORMATS[form].bits
    inside = {f"{where}.weights.{key}": value for key, value in weights.items()}

    def key(key: str) -> str:
        return f"{where}.weights.{key}"

    size = weights.get("group_size")
    named = {None: "tensor", -1: "channel"}.get(size if isinstance(size, int) else None, "group")
    strategies = ("tensor", "channel", "group", "tensor_group", "block")
    strategy = packed.choice(inside, key("strategy"), strategies, named)
    block = packed.block_size(inside, key("block_structure"))
    if strategy == "block" and block is None:
        raise packed.wrong(key("block_structure"), None, "the strategy block needs it")
    grouped = strategy in ("group", "tensor_group")
    return Scheme(
        form,
        tuple(targets),
        packed.choice(inside, key("num_bits"), known, 8),
        packed.choice(inside, key("type"), (kind,) if kind else ("int", "float"), "int"),
        weights.get("symmetric") is not False,
        strategy,
        packed.group_size(inside, key("group_size")) if grouped else 0,
        block,
    )


class Targets:
    """Which scheme a module has, as match_targets of compressed-tensors finds it: by its name, by an
    expression for the beginning of its name, by its class."""

    def __init__(self, schemes: tuple[Scheme, ...]) -> None:
        self.schemes = schemes
        self.by_target = {target: scheme for scheme in reversed(schemes) for target in scheme.targets}
        self.patterns: dict[str, pattern.NamePattern] = {}
        self.steps = MAX_STEPS
        if len(schemes) > 1:
            for target in sorted(self.by_target):
                if target.startswith("re:"):
                    self.patterns[target] = self.compiled(target.removeprefix("re:"))

    @staticmethod
    def compiled(text: str) -> pattern.NamePattern:
        try:
            expression = pattern.NamePattern(f"({text.removeprefix('^')}).*", "the expression", MAX_STEPS)
        except ValueError as error:
            raise ConvertError(f"configuration: quantization_config: a target: {error}") from None
        expression.at_start = True
        return expression

    def of(self, module: str) -> Scheme:
        if not self.schemes:
            raise ConvertError(f"{module} is quantized, and quantization_config says of no module how")
        if len(self.schemes) == 1:
            return self.schemes[0]
        if module in self.by_target:
            return self.by_target[module]
        for target, expression in self.patterns.items():
            expression.steps = self.steps
            try:
                found = expression.matches(module)
            except ValueError as error:
                raise ConvertError(f"configuration: quantization_config: a target: {error}") from None
            self.steps = expression.steps
            if found:
                return self.by_target[target]
        kind = "Embedding" if module.endswith("embed_tokens") else "Linear"
        if kind not in self.by_target:
            raise ConvertError(f"configuration: no group of quantization_config.config_groups has {module}")
        return self.by_target[kind]


# ---------------------------------------------------------------------------------------------------------
# The tensors


class Module:
    """The tensors of a quantized module."""

    def __init__(self, tensors: Mapping[str, FileTensor], name: str) -> None:
        self.tensors, self.name = tensors, name

    def has(self, kind: str) -> bool:
        return f"{self.name}.{kind}" in self.tensors

    def get(self, kind: str, *dtypes: str) -> FileTensor:
        found = packed.companion(self.tensors, f"{self.name}.{kind}", f"the module {self.name}")
        return packed.check_dtype(found, *dtypes)


def dequantize(settings: Settings, tensors: Mapping[str, FileTensor], shelf: Shelf) -> dict[str, Tensor]:
    """Replaces the tensors of each quantized matrix by the matrix."""
    targets = Targets(settings.schemes)
    stored = {name for name, tensor in tensors.items() if is_part(name, tensor)}
    modules = dict.fromkeys(name.rpartition(".")[0] for name in tensors if name in stored)
    matrices = {}
    for module in modules:
        scheme = targets.of(module)
        matrices[f"{module}.weight"] = FORMATS[scheme.format].read(scheme, Module(tensors, module))
    runtime = {name for name in tensors if RUNTIME.fullmatch(name)}
    return packed.replaced(tensors, stored | runtime, matrices)


def is_part(name: str, tensor: FileTensor) -> bool:
    """Whether a tensor is one of those that a quantized matrix is made of."""
    return name.endswith(PARTS) or (name.endswith(".weight") and tensor.dtype in sources.STORED)


def matrix(
    scheme: Scheme,
    module: Module,
    source: FileTensor,
    cols: int,
    codes: Read,
    values: np.ndarray,
    scale: Tensor,
    zeros: Callable[[int, int], Read] | None = None,
) -> Tensor:
    """The matrix, with the scheme's scales. `zeros` makes the reader of zero points, of which each serves so
    many rows and columns."""
    shape = (*packed.check_matrix(source).shape[:-1], cols)
    height, width = scheme.size(shape[-2], cols)
    columns = None
    if module.has("weight_g_idx"):
        index = packed.integers(module.get("weight_g_idx", "I32", "I64"))
        if (index != -1).any():  # all of them: it is not used
            columns = index
    if columns is not None and (len(columns) != cols or columns.min() < 0 or columns.max() >= scale.cols):
        raise ConvertError(f"{module.name}.weight_g_idx does not fit {cols} columns of {scale.cols} groups")
    points = None if scheme.symmetric or zeros is None else zeros(height, width)
    return packed.scaled(source.name, shape, codes, values, scale, height, width, points, columns)


def read_packed(scheme: Scheme, module: Module) -> Tensor:
    """pack-quantized: integers in words, less half of what the bits hold."""
    source, bits = module.get("weight_packed", "I32"), scheme.bits
    shape = tuple(int(n) for n in packed.integers(module.get("weight_shape", "I32", "I64")))
    half = 1 << (bits - 1)
    if len(shape) != 2 or source.shape != (shape[0], -(-shape[1] * bits // 32)):
        raise ConvertError(
            f"{source.name} has the shape {shown(source.shape)}, which does not fit the weight's "
            f"{shown(shape)} in {bits} bits"
        )
    rows, cols = shape
    scale = module.get("weight_scale", *SCALES)

    def codes(start: int, stop: int) -> np.ndarray:
        return packed.unpack(source.raw(start, stop), bits)[:, :cols]

    def zeros(height: int, width: int) -> Read:
        points = module.get("weight_zero_point", "I32", "I8")
        if points.dtype == "I8":
            return plain_zeros(points, scale, rows, height)
        packed.check_shape(points, -(-scale.rows * bits // 32), scale.cols)

        def read(start: int, stop: int) -> np.ndarray:
            """They are packed down the columns."""
            first = start // 32
            raw = points.raw(first * bits, min(-(-stop // 32) * bits, points.rows))
            words = np.ascontiguousarray(raw.view("<u4").T).view(np.uint8)
            part = packed.unpack(words, bits)[:, start - 32 * first : stop - 32 * first]
            points_of_rows: np.ndarray = part.T.astype(np.float32) - half
            return points_of_rows

        if height != 1:
            raise ConvertError(f"{points.name} is packed, which fits no scale of {height} rows")
        return read

    values = np.arange(1 << bits, dtype=np.float32) - half
    return matrix(scheme, module, source, cols, codes, values, scale, zeros)


def plain_zeros(points: FileTensor, scale: Tensor, rows: int, height: int) -> Read:
    """Zero points that lie as the scales do."""
    if (points.rows, points.cols) != (scale.rows, scale.cols):
        raise ConvertError(
            f"{points.name} has the shape {shown(points.shape)}, its scales {shown(scale.shape)}"
        )
    return packed.blocks(points, rows, height)


def read_plain(scheme: Scheme, module: Module) -> Tensor:
    """int-, float- and naive-quantized: a number a byte."""
    source = module.get("weight", "I8" if scheme.type == "int" else "F8_E4M3")
    scale = module.get("weight_scale", *SCALES)

    def zeros(height: int, width: int) -> Read:
        points = module.get("weight_zero_point", "I8", "F8_E4M3", *SCALES)
        return plain_zeros(points, scale, source.shape[-2], height)

    values = INT8 if scheme.type == "int" else sources.E4M3
    return matrix(scheme, module, source, source.cols, source.raw, values, scale, zeros)


def read_nvfp4(scheme: Scheme, module: Module) -> Tensor:
    """Two numbers E2M1 a byte, scales in FP8 that one number divides."""
    source, scale = module.get("weight_packed", "U8"), module.get("weight_scale", "F8_E4M3", *SCALES)
    divisor = module.get("weight_global_scale", *SCALES)
    if divisor.shape != (1,):
        raise ConvertError(f"{divisor.name} has the shape {shown(divisor.shape)}, expected one number")
    quotient = Quotient(scale, divisor.read(0, 1)[0, 0])
    return matrix(scheme, module, source, source.cols * 2, codes_of(source, 4), sources.E2M1, quotient)


def read_mxfp4(scheme: Scheme, module: Module) -> Tensor:
    source, scale = module.get("weight_packed", "U8"), powers(module)
    return matrix(scheme, module, source, source.cols * 2, codes_of(source, 4), sources.E2M1, scale)


def read_mxfp6(scheme: Scheme, module: Module) -> Tensor:
    source, scale = module.get("weight_packed", "U8"), powers(module)
    if source.cols % 3:
        raise ConvertError(f"{source.name} has the shape {shown(source.shape)}, no multiple of 3 bytes a row")
    return matrix(scheme, module, source, source.cols // 3 * 4, codes_of(source, 6), sources.E2M3, scale)


def read_mxfp8(scheme: Scheme, module: Module) -> Tensor:
    source, scale = module.get("weight", "F8_E4M3"), powers(module)
    return matrix(scheme, module, source, source.cols, source.raw, sources.E4M3, scale)


def powers(module: Module) -> Tensor:
    """The scales of the MX formats."""
    return packed.scaled_by_power(module.get("weight_scale", "U8", "F8_E8M0"))


def codes_of(source: FileTensor, bits: int) -> Read:
    """The codes of whole rows."""
    count = source.row_bytes * 8 // bits
    return lambda start, stop: packed.unpack(source.raw(start, stop), bits)[:, :count]


class Quotient(Tensor):
    """base / divisor, in float32."""

    def __init__(self, base: Tensor, divisor: np.float32) -> None:
        super().__init__(base.name, base.shape)
        self.base, self.divisor = base, divisor

    def read(self, start: int, stop: int) -> np.ndarray:
        with np.errstate(all="ignore"):  # what is not finite is refused with the weights
            quotient: np.ndarray = self.base.read(start, stop) / self.divisor
        return quotient


@dataclass(frozen=True)
class Format:
    read: Callable[[Scheme, Module], Tensor]
    bits: tuple[int, ...]
    type: str | None  # None: either


FORMATS = {
    "pack-quantized": Format(read_packed, tuple(range(1, 9)), "int"),
    "int-quantized": Format(read_plain, tuple(range(1, 9)), "int"),
    "float-quantized": Format(read_plain, (8,), "float"),
    "naive-quantized": Format(read_plain, (8,), None),
    "nvfp4-pack-quantized": Format(read_nvfp4, (4,), "float"),
    "mxfp4-pack-quantized": Format(read_mxfp4, (4,), "float"),
    "mxfp6-pack-quantized": Format(read_mxfp6, (6,), "float"),
    "mxfp8-quantized": Format(read_mxfp8, (8,), "float"),
}
