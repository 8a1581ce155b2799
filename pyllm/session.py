"""Session: one sequence of tokens under the caller's control, with the engine's keys and values for it."""

from __future__ import annotations

import hashlib
import os
import struct
import threading
from collections.abc import Callable, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Concatenate, ParamSpec, TypeVar

import numpy as np

from pyllm import files
from pyllm._llm import ffi, lib
from pyllm.binding import Cache, ContextError, LLMError, call, integer, token_ids

if TYPE_CHECKING:
    from pyllm.engine import LLM

# The head of a saved session: magic, version, the least number of tokens that it can be cut back to (0 in
# version 2), the model's fingerprint, the checksum of what follows, the number of tokens, the bytes of keys
# and values a token. Then the ids as uint32, and keys and values as llm_state() gives them. Little-endian.
HEAD = struct.Struct("<8sII32s32sQQ")
MAGIC, VERSION = b"PYLLMKV\n", 3


P = ParamSpec("P")
R = TypeVar("R")


def _locked(method: Callable[Concatenate[Session, P], R]) -> Callable[Concatenate[Session, P], R]:
    """Lets one thread at a time into a Session's method, and none after it was closed."""

    @wraps(method)
    def run(self: Session, /, *args: P.args, **kwargs: P.kwargs) -> R:
        with self._lock:
            self._llm._open()
            self._cache.sync()
            return method(self, *args, **kwargs)

    return run


class Session:
    """A sequence of tokens and the engine's keys and values for them. Made by LLM.session().

        with llm.session() as s:
            logits = s.eval(llm.encode("Once upon a"))

    Threads may share one: its methods wait for each other. Closing the LLM ends its sessions too."""

    def __init__(self, llm: LLM) -> None:
        self._llm = llm
        self._lock = threading.RLock()
        self._model = llm._open()
        self._held: Cache | None = llm._open_cache()

    @property
    def _cache(self) -> Cache:
        """The cache, or LLMError when this session is closed."""
        if (cache := self._held) is None:
            raise LLMError("the session is closed")
        return cache

    def close(self) -> None:
        """Gives the memory back; closing twice is allowed."""
        with self._lock:
            self._held = None

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        if (cache := self._held) is None:
            return "Session(closed)"
        return f"Session({len(cache.tokens[0])} tokens of {cache.context})"

    @property
    @_locked
    def tokens(self) -> list[int]:
        """A copy of the ids so far."""
        return list(self._cache.tokens[0])

    @_locked
    def __len__(self) -> int:
        return len(self._cache.tokens[0])

    def __bool__(self) -> bool:
        return True

    @_locked
    def eval(self, ids: Sequence[int] | np.ndarray, *, all: bool = False) -> np.ndarray:
        """Appends ids (n,). Returns the logits after the last one, float32 (vocab_size,), or with `all` those
        after each, float32 (n, vocab_size). Raises ContextError and changes nothing when the context has no
        room for them."""
        tokens = token_ids(ids, self._model.vocab_size)
        if not tokens and not all:
            raise ValueError("ids is empty")
        out = np.empty((len(tokens) if all else 1, self._model.vocab_size), np.float32)
        self._cache.extend(tokens, out)
        return out if all else out[0]

    @_locked
    def truncate(self, length: int) -> None:
        """Forgets all but the first `length` tokens. In a model with sliding windows these are computed anew
        when more tokens are cut than LLM's `rewind`."""
        tokens = self._cache.tokens[0]
        length = integer("length", length, 0, len(tokens))
        if length >= self._cache.oldest(0):
            self._cache.truncate(0, length)
            return
        again = tokens[:length]
        self._cache.truncate(0, 0)
        self._cache.extend(again)

    @_locked
    def fork(self) -> Session:
        """A copy that goes its own way from here."""
        other = Session(self._llm)
        other._set(self._cache.tokens[0], self._state(), self._cache.oldest(0))
        return other

    @property
    def _kv(self) -> int:
        """How this session keeps keys and values, of enum llm_kv."""
        kind: int = lib.llm_session_options(self._cache.ptr).kv
        return kind

    def _kv_bytes(self, kind: int) -> int:
        """The bytes of keys and values a token, kept so."""
        size: int = lib.llm_kv_bytes(self._model.ptr, kind)
        return size

    def _state_size(self, length: int, oldest: int) -> int:
        """The bytes of keys and values of that many tokens that can be cut back to `oldest`."""
        size: int = lib.llm_kv_size(self._model.header, self._model.layers, self._kv, length, oldest)
        return size

    def _state(self) -> np.ndarray:
        """The keys and values, uint8, in whole pages."""
        length, oldest = len(self._cache.tokens[0]), self._cache.oldest(0)
        state = np.empty(self._state_size(length, oldest), np.uint8)
        call(lib.llm_state, self._cache.ptr, 0, length, oldest, ffi.from_buffer(state), 0)
        return state

    def _set(self, tokens: list[int], state: np.ndarray, oldest: int) -> None:
        self._cache.tokens[0] = []
        call(lib.llm_state, self._cache.ptr, 0, len(tokens), oldest, ffi.from_buffer(state), 1)
        self._cache.tokens[0] = list(tokens)

    def _how_kept(self, kv_bytes: int) -> str:
        """What a saved session says of its keys and values, so many bytes a token."""
        for kind in (lib.LLM_KV_FP16, lib.LLM_KV_INT8):
            if self._kv_bytes(kind) == kv_bytes:
                return f"its keys and values are {_kv_name(kind)}"
        return f"its keys and values have {kv_bytes} bytes a token"

    @_locked
    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the tokens, keys and values to a file that load() reads. A file that is there is replaced
        only when all is written; what is no regular file is an OSError."""
        ids, state = np.array(self._cache.tokens[0], "<u4"), self._state()
        kv_bytes = self._kv_bytes(self._kv)
        digest, oldest = _digest(ids, state), self._cache.oldest(0)
        head = (MAGIC, VERSION, oldest, self._model.fingerprint, digest, len(ids), kv_bytes)
        parts, at = (HEAD.pack(*head), ids.tobytes(), state.data), 0
        with files.replacing(path, sum(map(len, parts))) as (fd, _):
            for part in parts:
                files.write_all(fd, part, at)
                at += len(part)

    @_locked
    def load(self, path: str | os.PathLike[str]) -> None:
        """Replaces the session's contents by those that save() wrote. Raises LLMError and changes nothing
        when the file is damaged, of another model, longer than the context, or when its keys and values are
        kept in another way than this session's."""
        path, kv_bytes = os.fspath(path), self._kv_bytes(self._kv)
        with open(path, "rb") as file:
            head = file.read(HEAD.size)
            if len(head) < HEAD.size or not head.startswith(MAGIC):
                raise LLMError(f"{path} is not a saved session")
            _, version, oldest, model, digest, n, stored = HEAD.unpack(head)
            if version != VERSION and (version, oldest) != (2, 0):
                raise LLMError(f"{path}: version {version} of saved sessions is not known here")
            if model != self._model.fingerprint:
                raise LLMError(f"{path}: the session was saved from another model than {self._llm.path}")
            if stored != kv_bytes:
                raise LLMError(
                    f"{path}: {self._how_kept(stored)}, not {_kv_name(self._kv)} as in this session"
                )
            if n > self._cache.context:
                raise ContextError(f"{path}: {n} tokens, more than the context of {self._cache.context}")
            if oldest > n:
                raise LLMError(f"{path}: {n} tokens cannot be cut back to {oldest}")
            size = self._state_size(n, oldest)
            if os.fstat(file.fileno()).st_size != HEAD.size + n * 4 + size:
                raise LLMError(f"{path}: the file is cut short or too long")
            ids = np.frombuffer(file.read(n * 4), "<u4")
            state = np.frombuffer(file.read(size), np.uint8)
        if len(ids) != n or len(state) != size or _digest(ids, state) != digest:
            raise LLMError(f"{path}: the file is damaged: its checksum is wrong")
        try:
            self._set(token_ids(ids, self._model.vocab_size), state, oldest)
        except ValueError as error:
            raise LLMError(f"{path}: {error}") from None


def _kv_name(kind: int) -> str:
    """fp16 or int8."""
    name: str = ffi.string(lib.llm_kv_name(kind)).decode()
    return name


def _digest(ids: np.ndarray, state: np.ndarray) -> bytes:
    """What tells that a saved session is as it was written."""
    digest = hashlib.sha256(ids.data)
    digest.update(state.data)
    return digest.digest()
