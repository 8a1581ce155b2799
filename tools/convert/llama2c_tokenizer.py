"""Reads llama2.c's tokenizer.bin."""

from __future__ import annotations

import re
import struct
from pathlib import Path

from pyllm._llm import lib

from .sentencepiece_model import BYTE_PIECE, CONTROL, NORMAL, UNKNOWN, from_pieces
from .vocabulary import METASPACE, add_stops


def from_llama2c(path: Path, vocab_size: int, template: str | None = None) -> dict[int, bytes]:
    """The tokenizer sections from llama2.c's tokenizer.bin with vocab_size tokens. template: one whose ends
    of turns are stop tokens too."""
    path = Path(path)
    data = path.read_bytes()
    pieces: list[tuple[str, float, int]] = []
    at = 4  # behind the length of the longest token
    for i in range(vocab_size):
        if len(data) - at < 8:
            raise ValueError(f"{path.name} ends after {i} of {vocab_size} tokens")
        score, size = struct.unpack_from("<fi", data, at)
        at += 8
        if not 0 <= size <= len(data) - at:
            raise ValueError(f"{path.name}: token {i} has a length of {size}")
        try:
            text = data[at : at + size].decode("utf-8")
        except UnicodeDecodeError:
            raise ValueError(f"{path.name}: token {i} is not UTF-8") from None
        at += size
        kind = UNKNOWN if i == 0 else CONTROL if i < 3 else NORMAL
        if i in (1, 2):
            text = text.strip("\n") or ("<s>", "</s>")[i - 1]
        if kind == NORMAL and re.fullmatch(r"<0x[0-9A-F]{2}>", text):
            kind = BYTE_PIECE
        pieces.append((text.replace(" ", METASPACE), score, kind))
    if at != len(data):
        raise ValueError(f"{path.name} has more than the {vocab_size} tokens of the model")
    out = from_pieces(pieces, prefix=True)
    out.bos, out.eos = 1, 2
    out.flags |= lib.LLM_ADD_BOS
    add_stops(out, [1, 2], template or "")  # llama2.c ends a story at BOS
    return out.sections()
