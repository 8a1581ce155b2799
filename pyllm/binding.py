"""What touches C: models, tokenizers and sessions as objects that free themselves, and errors as exceptions.

Nothing here is public but the errors and __version__. Every object keeps alive what it was made from, so the
order in which Python lets go of them never matters.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import math
import numbers
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from typing import Any

import numpy as np

from pyllm._llm import ffi, lib
from pyllm.untrusted import ControlTexts

try:
    __version__ = importlib.metadata.version("pyllm")
except importlib.metadata.PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+uninstalled"

CHUNK = 256  # tokens for one call of the engine: between two of them Python sees Ctrl-C


class LLMError(RuntimeError):
    """The engine refuses: a file, a memory or a context limit. The message is one sentence."""


class ContextError(LLMError):
    """What is to be run has more tokens than the context. The message names both numbers."""


def call(function: Callable[..., Any], *arguments: Any) -> Any:
    """function(*arguments, err, errlen), or LLMError when it returns NULL or a negative number."""
    err = ffi.new("char[]", 512)
    result = function(*arguments, err, len(err))
    if (result < 0) if isinstance(result, int) else not result:
        raise LLMError(ffi.string(err).decode("utf-8", "replace"))
    return result


def shown(value: Any) -> str:
    """The start of a value's repr, for a message; Python refuses to write the digits of large numbers."""
    try:
        return f"{value!r:.60}"
    except ValueError:
        return "a number of thousands of digits"


def integer(name: str, value: Any, least: int, most: int | None = None) -> int:
    """value as an int; TypeError or ValueError with its name when it is none or not in [least, most]."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be an integer, not {shown(value)}")
    number = int(value)
    if number < least or (most is not None and number > most):
        limits = f"at least {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"{name} must be {limits}, not {shown(number)}")
    return number


def real(name: str, value: Any) -> float:
    """value as a Python float, infinite when it is too large for one; TypeError with its name when it is no
    number. NumPy's own small floats would overflow when they are compared with larger numbers."""
    if isinstance(value, bool) or not isinstance(value, (numbers.Real, Decimal)):
        raise TypeError(f"{name} must be a number, not {shown(value)}")
    try:
        return float(value)
    except OverflowError:  # an int or a Fraction
        return -math.inf if value < 0 else math.inf
    except ValueError:  # a signaling NaN
        return math.nan


def token_ids(ids: Sequence[int] | np.ndarray, limit: int, name: str = "ids") -> list[int]:
    """ids as a list of int, each below limit. Anything that NumPy sees as a row of integers will do."""
    try:
        array = np.asarray(ids)
    except ValueError:  # nested lists of several lengths
        raise TypeError(f"{name} must be a sequence of integers, not {ids!r:.60}") from None
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise TypeError(f"{name} must be a sequence of integers, not {ids!r:.60}")
    if array.size and (array.min() < 0 or array.max() >= limit):
        wrong = array[(array < 0) | (array >= limit)][0]
        raise ValueError(f"{name}: {wrong} is no token: ids are from 0 to {limit - 1}")
    return [int(i) for i in array.tolist()]


def shared_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two sequences have in common at their start."""
    n, step = min(len(a), len(b)), 256
    for start in range(0, n, step):
        end = min(start + step, n)
        if a[start:end] != b[start:end]:
            return next(i for i in range(start, end) if a[i] != b[i])
    return n


def utf8(text: str) -> bytes:
    """A text's bytes. A lone surrogate counts as U+FFFD."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()


KV = {None: lib.LLM_KV_DEFAULT, "fp16": lib.LLM_KV_FP16, "int8": lib.LLM_KV_INT8}


class Model:
    """An open file, and its tokenizer when it has one. Immutable: any thread may use it. kv, exact and rewind
    are those of the sessions that are opened for it."""

    def __init__(self, path: str, kv: str | None = None, exact: bool = False, rewind: int = 0) -> None:
        self.path, self.kv, self.exact, self.rewind = path, KV[kv], exact, rewind
        model = ffi.gc(call(lib.llm_open, os.fsencode(path)), lib.llm_close)
        self.ptr = model
        self.header = lib.llm_model_header(model)
        self.layers = lib.llm_model_layers(model)
        self.vocab_size: int = self.header.vocab_size
        self._kv_sizes: dict[int, int] = {}
        self._tokenizer = None
        if self.section(lib.LLM_TOKENIZER) is not None:
            tokenizer = call(lib.llm_tokenizer_open, model)
            self._tokenizer = ffi.gc(tokenizer, lambda ptr, model=model: lib.llm_tokenizer_close(ptr))

    def verify(self) -> None:
        """Raises LLMError when the file is not what its checksums say, or has none."""
        try:
            call(lib.llm_verify, self.ptr)
        except LLMError as error:
            raise LLMError(f"{self.path}: {error}") from None

    @property
    def dtype(self) -> str:
        """Of the matrices, routers left out; all of them when there are several."""
        ids = [lib.LLM_QKV, lib.LLM_ATTN_OUT, lib.LLM_GATE_UP, lib.LLM_DOWN]
        found = {self.header.dtype[lib.LLM_EMBED]}
        if not self.header.required & lib.LLM_TIED:
            found.add(self.header.dtype[lib.LLM_OUTPUT])
        if self.header.ple_dim:
            ids += [lib.LLM_PLE_GATE, lib.LLM_PLE_OUT]
            found |= {self.header.dtype[number] for number in (lib.LLM_PLE_EMBED, lib.LLM_PLE_PROJ)}
        for i in range(self.header.n_layers):
            found |= {self.layers[i].dtype[number - lib.LLM_ATTN_NORM] for number in ids}
        return " and ".join(ffi.string(lib.llm_dtype_name(dtype)).decode() for dtype in sorted(found))

    @property
    def tokenizer(self) -> Any:
        if self._tokenizer is None:
            raise LLMError(f"{self.path}: the model has no tokenizer, only ids can be used")
        return self._tokenizer

    def section(self, tag: int) -> bytes | None:
        """A copy of a section of the file, or None."""
        size = ffi.new("size_t *")
        data = lib.llm_section(self.ptr, tag, size)
        return None if data == ffi.NULL else ffi.buffer(data, size[0])[:]

    def text(self, tag: int) -> str | None:
        """A section as text; what is not UTF-8 in it becomes U+FFFD."""
        data = self.section(tag)
        return None if data is None else data.decode("utf-8", "replace")

    def encode(self, text: str | bytes, flags: int) -> list[int]:
        """Ids of a text; flags as for llm_encode."""
        data = utf8(text) if isinstance(text, str) else text
        room = len(data) // 2 + 16
        while True:
            tokens = ffi.new("uint32_t[]", room)
            n: int = call(lib.llm_encode, self.tokenizer, data, len(data), flags, tokens, room)
            if n <= room:
                return ffi.unpack(tokens, n) if n else []
            room = n

    def token_text(self, token: int) -> str:
        """The text of one token, control tokens included."""
        decoder = Decoder(self)
        return decoder.feed([token], special=True) + decoder.end()

    def token_bytes(self, token: int) -> bytes:
        """The bytes of one token, which need not be whole characters; of a control token too."""
        starts, data = self._tokens
        return data[starts[token] : starts[token + 1]] if token + 1 < len(starts) else b""

    @cached_property
    def _tokens(self) -> tuple[np.ndarray, bytes]:
        """LLM_TOKEN_STARTS and LLM_TOKEN_BYTES."""
        starts = np.frombuffer(self.section(lib.LLM_TOKEN_STARTS) or b"", np.uint32)
        return starts, self.section(lib.LLM_TOKEN_BYTES) or b""

    @cached_property
    def control_tokens(self) -> dict[str, int]:
        """All control tokens by their texts."""
        count = lib.llm_token_count(self.tokenizer)
        tokens = (token for token in range(count) if lib.llm_token_is_special(self.tokenizer, token))
        return {text: token for token in tokens if (text := self.token_text(token))}

    @cached_property
    def stop_tokens(self) -> tuple[int, ...]:
        n = ffi.new("size_t *")
        stops = lib.llm_token_stops(self.tokenizer, n)
        return tuple(ffi.unpack(stops, n[0])) if n[0] else ()

    @cached_property
    def control_texts(self) -> ControlTexts:
        """What finds their texts in others."""
        return ControlTexts(self.control_tokens)

    def kv_size(self, length: int) -> int:
        """The bytes of keys and values of a sequence of that many tokens, in whole pages, and its states'."""
        pages = -(-length // lib.LLM_PAGE)
        if pages not in self._kv_sizes:
            whole = pages * lib.LLM_PAGE
            oldest = max(0, whole - (self.rewind or lib.LLM_REWIND) - CHUNK)
            kind = lib.llm_kv_kind(self.layers, self.kv)
            size = lib.llm_kv_size(self.header, self.layers, kind, whole, oldest)
            states = min(lib.LLM_STATES, 2 + pages) - 1 if pages else 0  # beside the one that counts already
            self._kv_sizes[pages] = size + states * self.counts.state
        return self._kv_sizes[pages]

    @cached_property
    def counts(self) -> Any:
        """Its llm_counts: parameters, and bytes read and kept for a token."""
        counts = ffi.new("llm_counts *")
        call(lib.llm_count, self.header, self.layers, counts)
        return counts

    @cached_property
    def fingerprint(self) -> bytes:
        """SHA-256 of the header, the sections and samples of the weights: tells models apart that share a
        shape."""
        digest = hashlib.sha256()
        with open(self.path, "rb") as file:
            start = file.read(lib.LLM_HEADER_SIZE)
            digest.update(start + file.read(self.header.text_size))
            if start != ffi.buffer(self.header)[:]:
                raise LLMError(f"{self.path} has changed since it was opened")
            for i in range(64):
                file.seek(self.header.file_size * i // 64)
                digest.update(file.read(4096))
        return digest.digest()


class Decoder:
    """Token by token to text: str pieces of whole characters."""

    def __init__(self, model: Model) -> None:
        self.tokenizer = model.tokenizer
        self.state = ffi.new("llm_decoder *")
        self.room = lib.llm_token_max_bytes(self.tokenizer)
        self.out = ffi.new("char[]", max(1, self.room))

    def feed(self, tokens: Iterable[int], special: bool = False) -> str:
        """The text that these tokens complete."""
        pieces = []
        for token in tokens:
            n = lib.llm_decode(self.tokenizer, self.state, token, special, self.out, self.room)
            pieces.append(ffi.buffer(self.out, n)[:])
        return b"".join(pieces).decode()

    def end(self) -> str:
        """What an unfinished character at the end becomes."""
        n = lib.llm_decode_end(self.state, self.out, self.room)
        data: bytes = ffi.buffer(self.out, n)[:]
        return data.decode()


@dataclass(frozen=True)
class Saved:
    """A sequence: its tokens, their keys and values, uint8 in whole pages, and how far it can be cut back."""

    tokens: list[int]
    state: np.ndarray
    oldest: int


class Cache:
    """A session of the engine together with the tokens that its sequences hold. One thread at a time.

    tokens[seq] is written before the engine appends and after it forgets, so when an exception such as
    KeyboardInterrupt comes between the two, the shorter of both is right: sync() cuts the longer.
    """

    # OpenMP's threads do not survive fork(): a child of a process that has run them would wait for them.
    parallel = False  # this process has run more than one thread
    forked = False  # this process is such a child: it runs one thread

    def __init__(self, model: Model, context: int, threads: int, n_seqs: int = 1) -> None:
        options = dict(context=context, n_seqs=n_seqs, threads=1 if Cache.forked else threads, batch=CHUNK)
        options |= dict(kv=model.kv, exact=model.exact, rewind=model.rewind)
        session = call(lib.llm_session_open, model.ptr, ffi.new("llm_options *", options))
        self.ptr = ffi.gc(session, lambda ptr, model=model.ptr: lib.llm_session_close(ptr))
        self.context: int = lib.llm_session_options(session).context
        self.threads: int = lib.llm_session_options(session).threads
        self.vocab_size, self._model = model.vocab_size, model
        self.tokens: list[list[int]] = [[] for _ in range(n_seqs)]
        self.rows = np.empty((1, self.vocab_size), np.float32)  # grows to the most logits asked for at once
        self.states = np.empty((0, model.header.dim), np.float32)  # of the last forward(), which may be fewer

    @classmethod
    def open(cls, model: Model, context: int, threads: int, n_seqs: int) -> Cache:
        """A new cache; of fewer sequences where their address space cannot be had."""
        while True:
            try:
                return cls(model, context, threads, n_seqs)
            except LLMError:
                if n_seqs == 1:
                    raise
                n_seqs //= 2

    @property
    def orphaned(self) -> bool:
        """Whether its threads were left behind in the parent process."""
        return Cache.forked and self.threads > 1

    def sync(self) -> None:
        """Makes tokens and the engine agree after an exception."""
        for seq, tokens in enumerate(self.tokens):
            del tokens[lib.llm_length(self.ptr, seq) :]
            self.truncate(seq, self.cut(seq, len(tokens)))

    def forward(self, tokens: list[int], seqs: list[int], want: Sequence[int]) -> np.ndarray:
        """Appends tokens (n,), n <= CHUNK, to their sequences. want (n,): of enum llm_want. Returns the
        logits that are wanted, (rows, vocab_size), and leaves states in self.states: (rows, dim) of them;
        both are valid until the next call."""
        if self.orphaned:
            raise LLMError("this session was opened before the process was forked: open another one")
        Cache.parallel |= self.threads > 1
        n, rows = len(tokens), sum(asked & lib.LLM_WANT_LOGITS for asked in want)
        n_states = sum(asked >= lib.LLM_WANT_STATE for asked in want)
        if rows > len(self.rows):
            self.rows = np.empty((rows, self.vocab_size), np.float32)
        if n_states > len(self.states):
            self.states = np.empty((n_states, self.states.shape[1]), np.float32)
        for seq, token in zip(seqs, tokens, strict=True):
            self.tokens[seq].append(token)
        out = ffi.from_buffer("float[]", self.rows) if rows else ffi.NULL
        states = ffi.from_buffer("float[]", self.states) if n_states else ffi.NULL
        call(lib.llm_forward_states, self.ptr, n, tokens, seqs, bytes(want), out, states)
        return self.rows[:rows]

    def extend(self, tokens: list[int], out: np.ndarray | None = None) -> None:
        """Appends any number of tokens to sequence 0; logits go to out: (n, vocab_size), or (1, vocab_size)
        for the last token's, or None."""
        if len(self.tokens[0]) + len(tokens) > self.context:
            held, more = len(self.tokens[0]), len(tokens)
            raise ContextError(f"{held} tokens and {more} more do not fit into the context of {self.context}")
        every = out is not None and len(out) == len(tokens)
        for at in range(0, len(tokens), CHUNK):
            part = tokens[at : at + CHUNK]
            want = [every or (out is not None and at + i == len(tokens) - 1) for i in range(len(part))]
            logits = self.forward(part, [0] * len(part), want)
            if out is not None and len(logits):
                out[at if every else 0 :][: len(logits)] = logits

    @property
    def isa(self) -> str:
        """The instruction set in use."""
        name: str = ffi.string(lib.llm_session_isa(self.ptr)).decode()
        return name

    def size(self, length: int) -> int:
        """The bytes of keys and values of a sequence of that many tokens, in whole pages."""
        return self._model.kv_size(length)

    def oldest(self, seq: int) -> int:
        """The least length besides 0 that a sequence can be cut back to."""
        length: int = lib.llm_oldest(self.ptr, seq)
        return length

    def cut(self, seq: int, length: int) -> int:
        """The greatest length, `length` at most, that a sequence can be cut back to."""
        length = lib.llm_cut(self.ptr, seq, length)
        return length

    def reusable(self, seq: int, ids: Sequence[int], most: int) -> int:
        """How many of the first `most` ids a sequence, cut back, holds."""
        return self.cut(seq, min(shared_prefix(self.tokens[seq], ids), most))

    def truncate(self, seq: int, length: int) -> None:
        call(lib.llm_truncate, self.ptr, seq, length)
        del self.tokens[seq][length:]

    def copy(self, source: int, seq: int, length: int) -> None:
        """Makes sequence seq a copy of the first `length` tokens of another one."""
        self.tokens[seq] = []
        call(lib.llm_copy, self.ptr, source, seq, length)
        self.tokens[seq] = self.tokens[source][:length]

    @property
    def kv(self) -> int:
        """How keys and values are kept, of enum llm_kv."""
        kind: int = lib.llm_session_options(self.ptr).kv
        return kind

    @property
    def whole(self) -> bool:
        """Whether a copy of a sequence can only be taken as a whole, since it has a state."""
        return bool(self._model.counts.state)

    def save(self, seq: int, length: int | None = None) -> Saved:
        """A copy of a sequence, or of its first `length` tokens."""
        tokens, oldest = self.tokens[seq][:length], self.oldest(seq)
        shape = self._model.header, self._model.layers, self.kv
        state = np.empty(lib.llm_kv_size(*shape, len(tokens), oldest), np.uint8)
        call(lib.llm_state, self.ptr, seq, len(tokens), oldest, ffi.from_buffer(state), 0)
        return Saved(tokens, state, oldest)

    def load(self, seq: int, saved: Saved) -> None:
        """Makes a sequence what save() has copied."""
        self.tokens[seq] = []
        n = len(saved.tokens)
        call(lib.llm_state, self.ptr, seq, n, saved.oldest, ffi.from_buffer(saved.state), 1)
        self.tokens[seq] = list(saved.tokens)


def after_fork() -> None:
    Cache.forked |= Cache.parallel


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=after_fork)
