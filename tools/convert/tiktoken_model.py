"""Reads tokenizers of tiktoken: bytes that merge in the order of their ranks. Kimi's tiktoken.model; what
Mistral's tekken.json (tekken.py) is made of as well."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path

from .auto_tokenizer import text_of
from .pre_tokenizers import PRE_TOKENIZERS
from .sources import read_json
from .tokenizer_json import from_tokenizer_json
from .vocabulary import ALPHABET, Vocabulary

KIMI = "tokenization_kimi.TikTokenTokenizer"  # the code whose expression is known
N_SPECIAL = 256  # special tokens behind the others, of which tokenizer_config.json names some


def from_ranks(
    tokens: Sequence[bytes], first: int, special: Mapping[int, str], pattern: str, where: str
) -> Vocabulary:
    """A Vocabulary of tokens in the order of their ranks, the first of which has the id `first`, and of
    special ones by their ids; `pattern` splits the text. A piece is looked up whole before anything is
    merged, as tiktoken does."""
    letters = {byte: char for char, byte in ALPHABET.items()}
    ids = {"".join(letters[byte] for byte in data): first + i for i, data in enumerate(tokens)}
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated"}
    to_bytes = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    out = from_tokenizer_json(
        {
            "added_tokens": [{"id": i, "content": text, "special": True} for i, text in special.items()],
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, to_bytes]},
            "decoder": {"type": "ByteLevel"},
            "model": {"type": "BPE", "vocab": ids, "merges": [], "ignore_merges": True},
        }
    )
    if len(out.byte_tokens) != 256 or len(ids) != len(tokens):
        raise ValueError(f"{where} has a token twice or lacks a byte")
    out.merges = [
        (ids[text[:cut]], ids[text[cut:]], i, i)
        for text, i in ids.items()
        for cut in range(1, len(text))
        if text[:cut] in ids and text[cut:] in ids
    ]
    return out


def read_ranks(path: Path) -> list[bytes]:
    """The tokens of a file with a token in base 64 and its rank in each line, in the order of the ranks."""
    tokens = []
    for number, line in enumerate(path.read_bytes().splitlines()):
        try:
            text, rank = line.split()
            tokens.append(base64.b64decode(text, validate=True))
            if int(rank) != number:
                raise ValueError
        except ValueError:
            raise ValueError(
                f"{path}: line {number + 1} is not a token in base 64 and the rank {number}"
            ) from None
    return tokens


def from_tiktoken_model(folder: Path) -> tuple[Vocabulary, dict[str, str]]:
    """A Vocabulary from Kimi's tiktoken.model and tokenizer_config.json, and its named tokens. Nothing in the
    files says how a text is split: code beside them does, which is told by its name."""
    path = folder / "tiktoken.model"
    config = read_json(folder / "tokenizer_config.json", required=False)
    code = (config.get("auto_map") or {}).get("AutoTokenizer")
    if KIMI not in (code if isinstance(code, list) else [code]):
        raise ValueError(
            f"{path}: how it splits a text is only known of {KIMI}; tokenizer_config.json has {code!r}"
        )
    tokens = read_ranks(path)
    ids = range(len(tokens), len(tokens) + N_SPECIAL)
    named = {int(i): token_text(item) for i, item in (config.get("added_tokens_decoder") or {}).items()}
    special = {i: named.get(i, f"<|reserved_token_{i}|>") for i in ids}
    out = from_ranks(tokens, 0, special, PRE_TOKENIZERS["kimi-k2"][0], str(path))
    names = {f"{name}_token": config.get(f"{name}_token") for name in ("bos", "eos")}
    return out, {name: token_text(item) for name, item in names.items() if item is not None}


def token_text(item: object) -> str:
    """The text of a token of tokenizer_config.json."""
    text = text_of(item)
    if text is None:
        raise ValueError(f"tokenizer_config.json: a token is {item!r}, which is no text")
    return text
