"""Reads Mistral's tekken.json: bytes that merge in the order of their ids, as tiktoken merges them."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

from .tokenizer_json import from_tokenizer_json
from .vocabulary import ALPHABET, Vocabulary, get

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
    letters = {byte: char for char, byte in ALPHABET.items()}
    ids: dict[str, int] = {}
    for i, item in enumerate(items):
        try:
            data = base64.b64decode(get(item, "token_bytes", str, where), validate=True)
        except ValueError:
            raise ValueError(f"{where}: the token {i} is not base 64") from None
        if item.get("rank") != i:
            raise ValueError(f"{where} has the token {i} out of order")
        ids["".join(letters[byte] for byte in data)] = n_special + i
    out = from_tokenizer_json(
        {
            "added_tokens": [
                {"id": i, "content": special.get(i, f"<SPECIAL_{i}>"), "special": True}
                for i in range(n_special)
            ],
            "pre_tokenizer": {
                "type": "Sequence",
                "pretokenizers": [
                    {
                        "type": "Split",
                        "pattern": {"Regex": get(config, "pattern", str, where)},
                        "behavior": "Isolated",
                    },
                    {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
                ],
            },
            "decoder": {"type": "ByteLevel"},
            "model": {"type": "BPE", "vocab": ids, "merges": [], "ignore_merges": True},
        }
    )
    if len(out.byte_tokens) != 256 or len(ids) != len(items):
        raise ValueError(f"{where} has a token twice or lacks a byte")
    out.merges = [
        (ids[text[:cut]], ids[text[cut:]], i, i)
        for text, i in ids.items()
        for cut in range(1, len(text))
        if text[:cut] in ids and text[cut:] in ids
    ]
    out.bos, out.eos = out.find("<s>"), out.find("</s>")
    return out
