"""Session: one sequence of tokens under the caller's control, with the engine's keys and values for it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Concatenate, ParamSpec, TypeVar

import numpy as np

from pyllm import saved
from pyllm.binding import Cache, LLMError, integer, token_ids

if TYPE_CHECKING:
    from pyllm.engine import LLM

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
        when more tokens are cut than LLM's `rewind`; in one whose layers have a state (LFM2, Qwen3-Next),
        those behind the last state that is kept."""
        tokens = self._cache.tokens[0]
        length = integer("length", length, 0, len(tokens))
        kept = self._cache.cut(0, length)
        again = tokens[kept:length]
        self._cache.truncate(0, kept)
        self._cache.extend(again)

    @_locked
    def fork(self) -> Session:
        """A copy that goes its own way from here."""
        other = Session(self._llm)
        other._cache.load(0, self._cache.save(0))
        return other

    @_locked
    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the tokens, keys and values to a file that load() reads. A file that is there is replaced
        only when all is written; what is no regular file is an OSError."""
        cache = self._cache
        saved.write(path, self._model, cache.kv, cache.save(0))

    @_locked
    def load(self, path: str | os.PathLike[str]) -> None:
        """Replaces the session's contents by those that save() wrote. Raises LLMError and changes nothing
        when the file is damaged, of another model, longer than the context, or when its keys and values are
        kept in another way than this session's."""
        cache = self._cache
        cache.load(0, saved.read(path, self._model, cache.kv, cache.context))
