"""Merges LoRA adapters in PEFT's directory format (adapter_config.json, adapter_model.safetensors): W + scale
* B @ A.

What PEFT can do beyond that (DoRA, trained biases, whole modules saved beside the adapter, ...) is refused by
name."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np

from . import huggingface, sources
from .families import Family, renamed
from .sources import ConvertError, File, Tensor

PREFIX = "base_model.model."
# adapter_config.json: keys whose other values change the mathematics
ONLY: dict[str, tuple] = {
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
        return self.base.read(start, stop) + self.b[start:stop] @ self.a


def pattern_value(patterns: object, module: str, default: float) -> float:
    """PEFT's get_pattern_key: the first key of alpha_pattern that matches the end of the module's name."""
    for key, value in (patterns or {}).items() if isinstance(patterns, dict) else ():
        if re.match(rf"(.*\.)?({key})$", module):
            return value
    return default


def merge(folder: Path, family: Family, tensors: dict[str, Tensor], tied: bool) -> int:
    """Replaces the tensors (with the names of families.named()) that the adapter changes; how many those
    are."""
    config = huggingface.read_json(folder / "adapter_config.json")
    for key, allowed in ONLY.items():
        if config.get(key) not in allowed:
            raise ConvertError(
                f"{folder / 'adapter_config.json'}: {key} = {str(config.get(key))[:60]} is not supported, "
                f"only {' or '.join(map(repr, allowed))}"
            )
    weights = folder / "adapter_model.safetensors"
    if not weights.exists():
        raise ConvertError(f"{folder}: there is no adapter_model.safetensors in it")
    files: list[File] = []
    try:
        halves = collect(huggingface.read_safetensors(weights, files), weights)
    finally:
        for file in files:
            file.close()
    if not halves:
        raise ConvertError(f"{weights}: it has no tensors")
    for module, (a, b, embedding) in sorted(halves.items()):
        name = renamed(family, module + ".weight")
        base = tensors.get(name)
        if base is None:
            raise ConvertError(f"{weights}: the adapter changes {module}, which the model does not have")
        if tied and name in ("model.embed_tokens.weight", "lm_head.weight"):
            raise ConvertError(
                f"{weights}: the adapter changes {module}, whose weights are tied, which is not supported"
            )
        rank = a.shape[0]
        if embedding:  # PEFT keeps an embedding's halves transposed
            a, b = b.T, a.T
            rank = a.shape[0]
        if len(base.shape) != 2 or b.shape != (base.rows, rank) or a.shape != (rank, base.cols):
            raise ConvertError(
                f"{weights}: {module} has halves of the shapes {a.shape} and {b.shape}, "
                f"the weight is {base.shape}"
            )
        alpha = pattern_value(config.get("alpha_pattern"), module, config.get("lora_alpha", 8))
        if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not math.isfinite(alpha):
            raise ConvertError(f"{folder / 'adapter_config.json'}: lora_alpha is {alpha!r}, not a number")
        scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
        tensors[name] = Merged(base, a, b, scale)
    return len(halves)


def collect(found: dict[str, Tensor], path: Path) -> dict[str, tuple[np.ndarray, np.ndarray, bool]]:
    """The adapter's halves by module: A (r, cols), B (rows, r), and whether they are an embedding's."""
    halves: dict[str, dict[str, np.ndarray]] = {}
    strange = []
    for name, tensor in found.items():
        match = re.fullmatch(r"(.+)\.lora_(?:(embedding)_)?([AB])(?:\.weight)?", name.removeprefix(PREFIX))
        if not match or len(tensor.shape) != 2:
            strange.append(name)
            continue
        values = tensor.read(0, tensor.rows)
        if not np.isfinite(values).all():
            raise ConvertError(f"{path}: {name} has a value that is not finite (NaN or infinite)")
        halves.setdefault(match[1], {})[match[3]] = values
        if match[2]:
            halves[match[1]]["embedding"] = values
    if strange:
        raise ConvertError(f"{path}: tensors that are not LoRA's: {sources.listing(sorted(strange))}")
    for module, half in halves.items():
        if "A" not in half or "B" not in half:
            raise ConvertError(f"{path}: {module} has only one of lora_A and lora_B")
    return {module: (half["A"], half["B"], "embedding" in half) for module, half in halves.items()}
