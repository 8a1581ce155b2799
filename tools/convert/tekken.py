"""Reads Mistral's tekken.json: bytes that merge in the order of their ids, as tiktoken merges them."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

from .tiktoken_model import from_ranks
from .vocabulary import Vocabulary, get

# The first special tokens, where the file does not list them
TEKKEN_SPECIAL = (
    "<unk> <s> </s> [INST] [/INST] [AVAILABLE_TOOLS] [/AVAILABLE_TOOLS] [TOOL_RESULTS] [/TOOL_RESULTS] "
    "[TOOL_CALLS] [IMG] <pad> [IMG_BREAK] [IMG_END] [PREFIX] [MIDDLE] [SUFFIX] [SYSTEM_PROMPT] "
    "[/SYSTEM_PROMPT] [TOOL_CONTENT]"
).split()


def from_tekken(spec: Mapping[str, Any]) -> Vocabulary:
    """A Vocabulary from the contents of Mistral's tekken.json: bytes that merge in the order of their ids."""
    where = "tekken.json"
    config = get(spec, "config", dict, where)
    size, n_special = (
        get(config, f"default_{name}", int, where) for name in ("vocab_size", "num_special_tokens")
    )
    special = dict(enumerate(TEKKEN_SPECIAL))
    for item in spec.get("special_tokens") or []:
        special[get(item, "rank", int, where)] = get(item, "token_str", str, where)
    items = get(spec, "vocab", list, where)[: max(0, size - n_special)]
    if not 0 < n_special <= 1 << 16 or len(items) != size - n_special:
        raise ValueError(f"{where} has {len(items)} tokens and {n_special} special ones, which is not {size}")
    tokens = []
    for i, item in enumerate(items):
        try:
            tokens.append(base64.b64decode(get(item, "token_bytes", str, where), validate=True))
        except ValueError:
            raise ValueError(f"{where}: the token {i} is not base 64") from None
        if item.get("rank") != i:
            raise ValueError(f"{where} has the token {i} out of order")
    names = {i: special.get(i, f"<SPECIAL_{i}>") for i in range(n_special)}
    out = from_ranks(tokens, n_special, names, get(config, "pattern", str, where), where)
    out.bos, out.eos = out.find("<s>"), out.find("</s>")
    return out
