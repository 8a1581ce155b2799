"""Quantized checkpoints: which there are, and the tensors of one as the float32 values that they stand for.

The tensors say which matrices are quantized: those that have codes and scales. So lists of modules that are
not (modules_to_not_convert, ignore) need not be read: the tensors of those have their usual names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import awq, compressed_tensors, fp8, gptq, mxfp4, packed, sources
from .configuration import Config
from .known_keys import told
from .packed import Section, Shelf
from .sources import ConvertError, FileTensor, Tensor, shown


@dataclass(frozen=True)
class Method:
    """A quant_method of config.json."""

    settings: Callable[[Section], Any]  # reads the configuration, and refuses what is not known
    dequantize: Callable[[Any, Mapping[str, FileTensor], Shelf], dict[str, Tensor]]
    keys: frozenset[str]  # of the configuration: those that are read or change nothing


METHODS = {
    "gptq": Method(gptq.settings, gptq.dequantize, gptq.KEYS),
    "awq": Method(awq.settings, awq.dequantize, awq.KEYS),
    "compressed-tensors": Method(
        compressed_tensors.settings, compressed_tensors.dequantize, compressed_tensors.KEYS
    ),
    "mxfp4": Method(mxfp4.settings, mxfp4.dequantize, mxfp4.KEYS),
    "fp8": Method(fp8.settings, fp8.dequantize, fp8.KEYS),
}
# Files beside a config.json that does not say it, as AutoGPTQ and AutoAWQ wrote them at first
OWN_FILES = {"quantize_config.json": "gptq", "quant_config.json": "awq"}


def section_of(config: Config) -> Section | None:
    """What a configuration, or the part of it for the text, says of quantization; None: nothing."""
    text = config.get("text_config")
    for place in (config, text if isinstance(text, dict) else {}):
        for key in ("quantization_config", "compression_config"):
            found = place.get(key)
            if found is None:
                continue
            if not isinstance(found, dict):
                raise ConvertError(f"configuration: {key} is {shown(found)}, not an object")
            return {"quant_method": "compressed-tensors"} | found if key != "quantization_config" else found
    return None


def by_rows(config: Config) -> bool:
    """Whether stacks of experts have a row for each output whatever the architecture: those of MXFP4."""
    section = section_of(config)
    return section is not None and section.get("quant_method") == "mxfp4"


def method_of(section: Section) -> Method:
    return METHODS[packed.choice(section, "quant_method", METHODS)]


def notes(config: Config) -> list[str]:
    """Refuses a configuration whose checkpoint cannot be read; what a user should know of another."""
    section = section_of(config)
    if section is None:
        return []
    method = method_of(section)
    settings = method.settings(section)
    unknown = [key for key in section if key not in method.keys | {"quant_method"}]
    told_of = [f"the weights are quantized ({settings}), and read as the numbers that they stand for"]
    own = getattr(settings, "notes", ())
    return [*(told_of if str(settings) else ()), *own, *told("quantization_config", unknown)]


def with_own_file(config: Config, folder: Path) -> Config:
    """The configuration with what a file of the quantizer's own says, where it has nothing itself."""
    if section_of(config) is not None:
        return config
    for name, method in OWN_FILES.items():
        if found := sources.read_json(folder / name, required=False):
            return config | {"quantization_config": {"quant_method": method} | found}
    return config


def dequantized(config: Config, tensors: Mapping[str, FileTensor]) -> dict[str, Tensor]:
    """The tensors of a checkpoint, with a quantized matrix under the name of its weight. Matrices that lie
    transposed are kept as they are packed while they are read (packed.HELD bytes, or one matrix)."""
    section = section_of(config)
    if section is None:
        return dict(tensors)
    method = method_of(section)
    result = method.dequantize(method.settings(section), tensors, Shelf())
    for name, tensor in result.items():
        if isinstance(tensor, FileTensor) and tensor.dtype in sources.STORED:
            raise ConvertError(f"{name} is {tensor.dtype}, and not of a quantized matrix as it is known here")
    return result
