"""What several test files need: the installed command, and a tokenizer small enough to see through."""

from __future__ import annotations

import os
import shutil
import struct
import sys
from pathlib import Path

import numpy as np
from pyllm._llm import lib

# The command: $PYLLM_BINARY, or the one installed with this Python, or None.
COMMAND = os.environ.get("PYLLM_BINARY") or shutil.which("pyllm", path=str(Path(sys.executable).parent))

BOS, IM_START, IM_END, NONE = 256, 257, 258, 0xFFFFFFFF
SPECIAL = [b"<s>", b"<|im_start|>", b"<|im_end|>"]


def byte_tokenizer(flags: int, bos: int, eos: int) -> dict[int, bytes]:
    """The sections of a tokenizer whose tokens are the 256 bytes and SPECIAL. flags: LLM_ADD_BOS or 0."""
    texts = [bytes([i]) for i in range(256)] + SPECIAL
    starts = np.cumsum([0] + [len(t) for t in texts]).astype("<u4")
    order = sorted(range(256), key=lambda i: texts[i])
    added, at = struct.pack("<II", len(SPECIAL), 0), 0
    for text in sorted(SPECIAL):
        added += struct.pack("<IIII", 256 + SPECIAL.index(text), lib.LLM_ADDED_SPECIAL, at, len(text))
        at += len(text)
    return {
        lib.LLM_TOKENIZER: struct.pack("<8I", lib.LLM_BYTE_LEVEL | flags, len(texts), bos, eos, NONE, 0, 0, 0)
        + np.arange(256, dtype="<u4").tobytes(),
        lib.LLM_TOKEN_STARTS: starts.tobytes(),
        lib.LLM_TOKEN_BYTES: b"".join(texts),
        lib.LLM_TOKEN_TYPES: bytes(256) + bytes([lib.LLM_TOKEN_SPECIAL]) * len(SPECIAL),
        lib.LLM_TOKEN_ORDER: np.array(order, dtype="<u4").tobytes(),
        lib.LLM_MERGE_STARTS: bytes(4 * (len(texts) + 1)),
        lib.LLM_MERGES: b"",
        lib.LLM_ADDED: added + b"".join(sorted(SPECIAL)),
    }
