"""How a model makes embeddings, from the files of sentence-transformers beside it: modules.json, the
configurations of its transformer and its pooling, config_sentence_transformers.json.

A model whose way is not supported converts all the same, since it may be wanted for its texts; its file says
why LLM.embed() refuses it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import sources
from .sources import ConvertError, shown

Recipe = dict[str, Any]

POOLINGS = {"lasttoken": "last", "mean": "mean"}  # sentence-transformers' names, and ours
# The switches of before sentence-transformers 6, and what pooling_mode is since
SWITCHES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
MODULES = (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"])
# Of the transformer's configuration: the values that change nothing
ONLY: Mapping[str, tuple[Any, ...]] = {
    "do_lower_case": (None, False),
    "transformer_task": (None, "feature-extraction"),
}
NO_LIMIT = 1 << 31  # tokenizers without a longest text say 10 ** 30
HEADLESS = "the model has no output matrix"


def told(
    pooling: str,
    normalize: bool = True,
    prompts: Mapping[str, str] | None = None,
    default_prompt: str | None = None,
    include_prompt: bool = True,
    max_tokens: int | None = None,
) -> Recipe:
    """What LLM_EMBEDDING says, see llm.h."""
    return {
        "pooling": pooling,
        "normalize": normalize,
        "prompts": dict(prompts or {}),
        "default_prompt": default_prompt,
        "include_prompt": include_prompt,
        "max_tokens": max_tokens,
    }


def refused(why: str) -> Recipe:
    """LLM_EMBEDDING of a model that makes embeddings in a way that is not supported."""
    return told("last") | {"refused": why}


def recipe(folder: Path) -> Recipe | None:
    """What LLM_EMBEDDING says; None where there are no such files."""
    modules = read_list(folder / "modules.json")
    if not modules:
        return None
    kinds = [str(module.get("type", "")).rsplit(".", 1)[-1] for module in modules]
    if kinds not in MODULES:
        return refused(f"modules.json has {sources.listing(kinds)}, which is not supported")
    transformer, pooling = (inside(folder, module) for module in modules[:2])
    about = sources.read_json(transformer / "sentence_bert_config.json", required=False)
    for key, allowed in ONLY.items():
        if about.get(key) not in allowed:
            return refused(f"{key} is {shown(about[key])}, which is not supported")
    config = sources.read_json(pooling / "config.json")
    mode = mode_of(config)
    if mode not in POOLINGS:
        return refused(f"pooling by {mode} is not supported; lasttoken and mean are")
    include = config.get("include_prompt", True)
    if not isinstance(include, bool):
        raise ConvertError(f"{pooling / 'config.json'}: include_prompt is {shown(include)}")
    prompts, default = prompts_of(folder / "config_sentence_transformers.json")
    longest = max_tokens(transformer, about)
    return told(POOLINGS[mode], "Normalize" in kinds, prompts, default, include, longest)


def inside(folder: Path, module: Mapping[str, Any]) -> Path:
    """The folder of a module: the model's, or one in it."""
    path = module.get("path", "")
    if not isinstance(path, str) or (path and Path(path).name != path) or "\0" in path:
        raise ConvertError(f"{folder / 'modules.json'}: the path {shown(path)} is not a plain folder's name")
    return folder / path


def mode_of(config: Mapping[str, Any]) -> str:
    """How the tokens' states become one, as Pooling of sentence-transformers reads it; of several ways, all
    their names."""
    given = config.get("pooling_mode")
    if given is None:
        given = [mode for key, mode in SWITCHES.items() if config.get(key)] or ["mean"]
    modes = given if isinstance(given, list) else [given]
    return " and ".join(mode if isinstance(mode, str) else shown(mode) for mode in modes)


def prompts_of(path: Path) -> tuple[dict[str, str], str | None]:
    """The texts that go before a text, by name, and the name of the default one."""
    about = sources.read_json(path, required=False)
    prompts, default = about.get("prompts") or {}, about.get("default_prompt_name")
    if not isinstance(prompts, dict) or not all(isinstance(text, str) for text in prompts.values()):
        raise ConvertError(f"{path}: prompts are not texts by name")
    if default is not None and (not isinstance(default, str) or default not in prompts):
        raise ConvertError(f"{path}: the default prompt, {shown(default)}, is none of its prompts")
    return prompts, default


def max_tokens(folder: Path, about: Mapping[str, Any]) -> int | None:
    """The tokens of the longest text, which sentence-transformers cuts to; None: as many as the model has
    positions."""
    longest = about.get("max_seq_length")
    if longest is None:
        config = sources.read_json(folder / "tokenizer_config.json", required=False)
        longest = config.get("model_max_length")
        if not isinstance(longest, (int, float)) or longest >= NO_LIMIT:
            return None
    if not isinstance(longest, int) or isinstance(longest, bool) or longest < 1:
        raise ConvertError(f"{folder}: max_seq_length is {shown(longest)}, not a positive number")
    return longest


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
