"""Merges LoRA adapters in PEFT's directory format (adapter_config.json, adapter_model.safetensors): W + scale
* B @ A.

What PEFT can do beyond that (DoRA, trained biases, whole modules saved beside the adapter, ...) is refused by
name."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from . import huggingface, pattern, sources
from .configuration import LARGEST
from .families import Family
from .sources import ConvertError, File, Tensor, shown
from .tensors import renamed

MAX_PATTERNS = 1 << 18  # characters in alpha_pattern
MAX_STEPS = 20_000_000  # of its expressions with all modules' names: some seconds
PREFIX = "base_model.model."
KEY = re.compile(
    r"(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<side>[AB])"
    r"(?:\.(?!weight$)(?P<adapter>[^.]+))?(?:\.weight)?"
)
# adapter_config.json: keys whose other values change the mathematics
ONLY: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": (None, "none"),
    "use_dora": (None, False),
    "lora_bias": (None, False),
    "fan_in_fan_out": (None, False),
    "modules_to_save": (None, []),
    "layer_replication": (None, []),
    "trainable_token_indices": (None, [], {}),
    "target_parameters": (None, []),
    "alora_invocation_tokens": (None, []),
    "use_qalora": (None, False),
    "init_lora_weights": (
        None,
        True,
        False,
        "gaussian",
        "eva",
        "orthogonal",
    ),  # the others change the base model too
}


class Merged(Tensor):
    """base + scale * b @ a, with b (rows, r) and a (r, cols), both float32."""

    def __init__(self, base: Tensor, a: np.ndarray, b: np.ndarray, scale: float) -> None:
        super().__init__(base.name, base.shape)
        self.base, self.a, self.b = base, a, b * np.float32(scale)

    def read(self, start: int, stop: int) -> np.ndarray:
        merged: np.ndarray = self.base.read(start, stop) + self.b[start:stop] @ self.a
        return merged


def alphas_of(config: dict[str, Any], modules: list[str], path: Path) -> dict[str, object]:
    """lora_alpha of each module, or the value of the first key of alpha_pattern that matches the end of its
    name, as PEFT's get_pattern_key has it."""
    patterns = config.get("alpha_pattern") or {}
    if not isinstance(patterns, dict) or sum(map(len, patterns)) > MAX_PATTERNS:
        raise ConvertError(f"{path}: alpha_pattern is {shown(patterns)}, not an object, or too long")
    alphas: dict[str, object] = {}
    steps, rest = MAX_STEPS, list(modules)
    try:
        for key, value in patterns.items():
            expression = pattern.NamePattern(key, "the expression", steps)
            alphas |= {module: value for module in rest if expression.matches(module)}
            rest = [module for module in rest if module not in alphas]
            steps = expression.steps
    except ValueError as error:
        raise ConvertError(f"{path}: alpha_pattern: {error}") from None
    return dict.fromkeys(modules, config.get("lora_alpha", 8)) | alphas


def read_config(path: Path) -> dict[str, Any]:
    """adapter_config.json, refused if it asks for more than is done here."""
    config = sources.read_json(path)
    for key, allowed in ONLY.items():
        if config.get(key) not in allowed:
            raise ConvertError(
                f"{path}: {key} = {shown(config.get(key))} is not supported, "
                f"only {' or '.join(map(repr, allowed))}"
            )
    return config


def weights_file(folder: Path) -> Path:
    """adapter_model.safetensors, which PEFT takes before anything else."""
    path = folder / "adapter_model.safetensors"
    if not os.path.lexists(path):
        pickle = folder / "adapter_model.bin"
        hint = f" ({pickle.name}: pickle files are not read)" if pickle.exists() else ""
        raise ConvertError(f"{folder}: there is no {path.name} in it{hint}")
    return path


def merge(folder: Path, family: Family, tensors: dict[str, Tensor], tied: bool) -> int:
    """Replaces the tensors (with the names of tensors.named()) that the adapter changes; how many those
    are."""
    if not folder.is_dir():
        state = "is not a directory with an adapter" if folder.exists() else "no such directory"
        raise ConvertError(f"{folder}: {state}")
    settings = folder / "adapter_config.json"
    config, weights = read_config(settings), weights_file(folder)
    files: list[File] = []
    try:
        halves = collect(huggingface.read_safetensors(weights, files), weights)
        alphas = alphas_of(config, sorted(halves), settings)
        for module, half in sorted(halves.items()):
            name = renamed(family, module + ".weight")
            base = tensors.get(name)
            if base is None:
                raise ConvertError(f"{weights}: the adapter changes {module}, which the model does not have")
            if tied and name in ("model.embed_tokens.weight", "lm_head.weight"):
                raise ConvertError(
                    f"{weights}: the adapter changes {module}, whose weights are tied, which is not supported"
                )
            a, b = fitting(half, base, module, weights)
            scale = scale_of(alphas[module], len(a), bool(config.get("use_rslora")), settings)
            tensors[name] = Merged(base, a, b, scale)
    finally:
        for file in files:
            file.close()
    if not halves:
        raise ConvertError(f"{weights}: it has no tensors")
    return len(halves)


def scale_of(alpha: object, rank: int, rslora: bool, path: Path) -> float:
    """What multiplies B @ A of a module."""
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not abs(alpha) <= LARGEST:
        raise ConvertError(f"{path}: lora_alpha is {shown(alpha)}, not a number")
    return alpha / (math.sqrt(rank) if rslora else rank)


def fitting(half: Half, base: Tensor, module: str, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """A (r, cols) and B (rows, r) of a module, read when their shapes are known to fit the weight."""
    first, second = (half.b, half.a) if half.embedding else (half.a, half.b)
    # PEFT keeps an embedding's halves transposed
    shapes = [tensor.shape[::-1] if half.embedding else tensor.shape for tensor in (first, second)]
    (rank, cols), (rows, same) = shapes
    if len(base.shape) != 2 or rank != same or not rank or (rows, cols) != base.shape:
        raise ConvertError(
            f"{path}: {module} has halves of the shapes {shown(shapes[0])} and {shown(shapes[1])}, "
            f"the weight is {shown(base.shape)}"
        )
    values = []
    for tensor in (first, second):
        w = tensor.read(0, tensor.rows)
        if not np.isfinite(w).all():
            raise ConvertError(f"{path}: {tensor.name} has a value that is not finite (NaN or infinite)")
        values.append(w.T if half.embedding else w)
    return values[0], values[1]


class Half(NamedTuple):
    """The two tensors of a module."""

    a: Tensor
    b: Tensor
    embedding: bool


def collect(found: Mapping[str, Tensor], path: Path) -> dict[str, Half]:
    """The adapter's tensors by module. A state that was not saved by PEFT's save_pretrained has the adapter's
    name in each key ("default"), which is left out."""
    halves: dict[str, dict[str, Tensor]] = {}
    strange, adapters = [], set()
    for name, tensor in found.items():
        match = KEY.fullmatch(name.removeprefix(PREFIX))
        if not match or len(tensor.shape) != 2:
            strange.append(name)
            continue
        module = halves.setdefault(match["module"], {})
        side = (match["embedding"] or "") + match["side"]
        if side in module:
            raise ConvertError(f"{path}: {name} is there twice, under different spellings")
        module[side] = tensor
        adapters.add(match["adapter"] or "")
    if strange:
        raise ConvertError(f"{path}: tensors that are not LoRA's: {sources.listing(sorted(strange))}")
    if len(adapters) > 1:
        names = sources.listing(sorted(name or "one without a name" for name in adapters))
        raise ConvertError(f"{path}: it has several adapters, {names}: one can be merged")
    result: dict[str, Half] = {}
    for where, half in halves.items():
        if set(half) == {"A", "B"}:
            result[where] = Half(half["A"], half["B"], False)
        elif set(half) == {"embedding_A", "embedding_B"}:
            result[where] = Half(half["embedding_A"], half["embedding_B"], True)
        else:
            raise ConvertError(f"{path}: {where} has only one of lora_A and lora_B")
    return result
