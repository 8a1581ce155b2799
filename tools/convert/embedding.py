"""How a model makes embeddings, from the files of sentence-transformers beside it: modules.json, the
configuration of its pooling, config_sentence_transformers.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from . import sources
from .sources import ConvertError, shown

POOLINGS = {"pooling_mode_lasttoken": "last", "pooling_mode_mean_tokens": "mean"}


def recipe(folder: Path, notes: list[str]) -> str | None:
    """The text of LLM_EMBEDDING; None where there are no such files, or they ask for what the engine does
    not have, which goes to notes."""
    modules = read_list(folder / "modules.json")
    if not modules:
        return None
    kinds = [str(module.get("type", "")).rsplit(".", 1)[-1] for module in modules]
    pooling = next((module for module, kind in zip(modules, kinds, strict=True) if kind == "Pooling"), None)
    if pooling is None or set(kinds) - {"Transformer", "Pooling", "Normalize"}:
        notes.append(
            f"embeddings: modules.json has {sources.listing(kinds)}, which is not supported: left out"
        )
        return None
    path = pooling.get("path")
    if not isinstance(path, str) or Path(path).name != path or "\0" in path:
        raise ConvertError(f"{folder / 'modules.json'}: the path {shown(path)} is not a plain folder's name")
    config = sources.read_json(folder / path / "config.json")
    modes = [mode for mode, on in config.items() if mode.startswith("pooling_mode_") and on]
    if len(modes) != 1 or modes[0] not in POOLINGS or config.get("include_prompt", True) is not True:
        notes.append(f"embeddings: pooling by {sources.listing(modes)} is not supported: left out")
        return None
    about = sources.read_json(folder / "config_sentence_transformers.json", required=False)
    prompts = about.get("prompts") or {}
    default = about.get("default_prompt_name")
    if not isinstance(prompts, dict) or not all(isinstance(text, str) for text in prompts.values()):
        raise ConvertError(f"{folder / 'config_sentence_transformers.json'}: prompts are not texts by name")
    if default is not None and default not in prompts:
        raise ConvertError(f"{folder}: the default prompt, {shown(default)}, is none of its prompts")
    told = {
        "pooling": POOLINGS[modes[0]],
        "normalize": "Normalize" in kinds,
        "prompts": prompts,
        "default_prompt": default,
    }
    return json.dumps(told, ensure_ascii=False)


def read_list(path: Path) -> list[dict[str, Any]]:
    """A JSON file that is a list of objects; empty where there is none."""
    sources.check_file(path)
    if not path.exists():
        return []
    try:
        found = json.loads(path.read_bytes()[: sources.MAX_JSON])
    except (ValueError, RecursionError) as error:
        raise ConvertError(f"{path}: it is no JSON ({error})") from None
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise ConvertError(f"{path}: it is no list of objects")
    return found
