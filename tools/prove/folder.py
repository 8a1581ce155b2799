"""A checkpoint's folder: its config.json, and its tensors in one file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np


def load(folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """config.json and the tensors of a folder that transformers saved in one file."""
    from safetensors.numpy import load_file

    return json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")


def store(folder: Path, config: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
    """The opposite of load."""
    from safetensors.numpy import save_file

    (folder / "config.json").write_text(json.dumps(config))
    save_file({name: np.ascontiguousarray(t) for name, t in tensors.items()}, folder / "model.safetensors")
