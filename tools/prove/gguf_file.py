"""A checkpoint as a GGUF file, as llama.cpp's converter writes it (its conversion/*.py), not as
tools/convert/gguf_file.py reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tools.checkpoints import finish, gguf_writer
from tools.prove.folder import load
from tools.prove.gguf_keys import of_layers, usual_keys
from tools.prove.gguf_metadata import add_metadata
from tools.prove.gguf_tensors import gguf_tensors

# Architectures that llama.cpp has and the gguf library of PyPI does not yet: one with the same names
STAND_INS = {"laguna": "exaone-moe", "hy_v3": "exaone-moe", "mellum": "qwen3moe", "granite_swa": "llama"}


def save_gguf(path: Path, folder: Path, arch: str) -> Path:
    """The model in folder as a GGUF file of float32, with experts in MXFP4 as they are there."""
    config, tensors = load(folder)
    h = usual_keys(config)
    w = gguf_writer(path, arch, "tiny", h | of_layers(arch, h, tensors))
    add_metadata(w, arch, h, tensors)
    add_tensors(w, tensor_names(arch, h), gguf_tensors(arch, h, tensors))
    finish(w)
    return path


def tensor_names(arch: str, h: dict[str, Any]) -> Any:
    """llama.cpp's own table of names."""
    import gguf

    numbers = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
    layers = h["num_hidden_layers"] + (h.get("num_nextn_predict_layers") or 0)
    return gguf.get_tensor_name_map(numbers[STAND_INS.get(arch, arch)], layers)


def gguf_name(names: Any, stem: str, end: str) -> str:
    """The name in GGUF of a tensor stem.end."""
    ours = {"scale": "ffn_gate_inp", "per_expert_scale": "ffn_down_exps"}
    if stem.endswith(".router") and end in ours:
        return f"blk.{stem.split('.')[2]}.{ours[end]}.scale"
    found = names.get_name(stem) or names.get_name(f"{stem}.{end}")
    assert found is not None, f"{stem}.{end} has no name in GGUF"
    return f"{found}.{end}"


def add_tensors(w: Any, names: Any, tensors: dict[str, np.ndarray]) -> None:
    """Tensors under their names in GGUF; those of experts that the checkpoint has one by one, in stacks."""
    import gguf

    stacks: dict[str, list[np.ndarray]] = {}
    for name, tensor in tensors.items():
        stem, _, end = name.rpartition(".")
        if name.startswith("blk."):
            mxfp4 = gguf.GGMLQuantizationType.MXFP4 if tensor.dtype == np.uint8 else None
            w.add_tensor(name, tensor, raw_dtype=mxfp4)
        elif stack := stack_of(stem):
            stacks.setdefault(stack, []).append(tensor)
        else:
            w.add_tensor(gguf_name(names, stem, end), tensor)
    for stem, found in stacks.items():
        if "moe" in stem or ".feed_forward.experts." in stem:  # the table has Mixtral's first names
            stem = stem.replace("model.layers", "layers").replace("block_sparse_moe", "feed_forward")
        w.add_tensor(gguf_name(names, stem, "weight"), np.stack(found))


def stack_of(stem: str) -> str | None:
    """The stack that a tensor of an expert, or of one of Gemma 3n's streams, goes into in the order of the
    checkpoint; None if it stands alone."""
    block, _, rest = stem.partition(".experts.")
    if rest[:1].isdigit():
        return f"{block}.experts.{rest.partition('.')[2]}"
    if stem.startswith(("model.altup_projections.", "model.altup_unembed_projections.")):
        return stem.rpartition(".")[0]
    return None
