"""Sequences in files: the tokens with their keys and values, checksummed, for one model alone."""

from __future__ import annotations

import hashlib
import os
import struct
from typing import BinaryIO

import numpy as np

from pyllm import files
from pyllm._llm import ffi, lib
from pyllm.binding import ContextError, LLMError, Model, Saved, token_ids

# The head of a saved session: magic, version, the least number of tokens that it can be cut back to (0 in
# version 2), the model's fingerprint, the checksum of what follows, the number of tokens, the bytes of keys
# and values a token. Then the ids as uint32, and keys and values as llm_state() gives them. Little-endian.
HEAD = struct.Struct("<8sII32s32sQQ")
MAGIC, VERSION = b"PYLLMKV\n", 3


def write(path: str | os.PathLike[str], model: Model, kv: int, saved: Saved) -> None:
    """Writes a sequence to a file that read() reads. A file that is there is replaced only when all is
    written; what is no regular file is an OSError. kv: how keys and values are kept, of enum llm_kv."""
    ids = np.array(saved.tokens, "<u4")
    digest = _digest(ids, saved.state)
    head = (MAGIC, VERSION, saved.oldest, model.fingerprint, digest, len(ids), _kv_bytes(model, kv))
    parts, at = (HEAD.pack(*head), ids.tobytes(), saved.state.data), 0
    with files.replacing(path, sum(map(len, parts))) as (fd, _):
        for part in parts:
            files.write_all(fd, part, at)
            at += len(part)


def read(path: str | os.PathLike[str], model: Model, kv: int, context: int) -> Saved:
    """What write() wrote. LLMError when the file is damaged, of another model, longer than the context, or
    when its keys and values are kept in another way."""
    path = os.fspath(path)
    with open(path, "rb") as file:
        n, oldest, digest, size = _read_head(file, path, model, kv, context)
        ids = np.frombuffer(file.read(n * 4), "<u4")
        state = np.frombuffer(file.read(size), np.uint8)
    if len(ids) != n or len(state) != size or _digest(ids, state) != digest:
        raise LLMError(f"{path}: the file is damaged: its checksum is wrong")
    try:
        return Saved(token_ids(ids, model.vocab_size), state, oldest)
    except ValueError as error:
        raise LLMError(f"{path}: {error}") from None


def read_tokens(path: str | os.PathLike[str], model: Model, kv: int, context: int) -> list[int]:
    """The tokens alone, which nothing has checked against the checksum. LLMError as from read()."""
    path = os.fspath(path)
    with open(path, "rb") as file:
        n = _read_head(file, path, model, kv, context)[0]
        return [int(token) for token in np.frombuffer(file.read(n * 4), "<u4")]


def _read_head(file: BinaryIO, path: str, model: Model, kv: int, context: int) -> tuple[int, int, bytes, int]:
    """The number of tokens, how far they can be cut back, the checksum, and the bytes of keys and values."""
    head = file.read(HEAD.size)
    if len(head) < HEAD.size or not head.startswith(MAGIC):
        raise LLMError(f"{path} is not a saved session")
    _, version, oldest, fingerprint, digest, n, stored = HEAD.unpack(head)
    if version != VERSION and (version, oldest) != (2, 0):
        raise LLMError(f"{path}: version {version} of saved sessions is not known here")
    if fingerprint != model.fingerprint:
        raise LLMError(f"{path}: the session was saved from another model than {model.path}")
    if stored != _kv_bytes(model, kv):
        raise LLMError(f"{path}: {_how_kept(model, stored)}, not {_kv_name(kv)} as in this session")
    if n > context:
        raise ContextError(f"{path}: {n} tokens, more than the context of {context}")
    if oldest > n:
        raise LLMError(f"{path}: {n} tokens cannot be cut back to {oldest}")
    size = int(lib.llm_kv_size(model.header, model.layers, kv, n, oldest))
    if os.fstat(file.fileno()).st_size != HEAD.size + n * 4 + size:
        raise LLMError(f"{path}: the file is cut short or too long")
    return n, oldest, digest, size


def _kv_bytes(model: Model, kind: int) -> int:
    """The bytes of keys and values a token, kept so."""
    return int(lib.llm_kv_bytes(model.ptr, kind))


def _how_kept(model: Model, kv_bytes: int) -> str:
    """What a saved session says of its keys and values, so many bytes a token."""
    for kind in (lib.LLM_KV_FP16, lib.LLM_KV_INT8):
        if _kv_bytes(model, kind) == kv_bytes:
            return f"its keys and values are {_kv_name(kind)}"
    return f"its keys and values have {kv_bytes} bytes a token"


def _kv_name(kind: int) -> str:
    """fp16 or int8."""
    name: str = ffi.string(lib.llm_kv_name(kind)).decode()
    return name


def _digest(ids: np.ndarray, state: np.ndarray) -> bytes:
    """What tells that a saved session is as it was written."""
    digest = hashlib.sha256(ids.data)
    digest.update(state.data)
    return digest.digest()
