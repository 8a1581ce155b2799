"""pyllm, through the C interface."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from tools.bench.common import Unavailable
from tools.bench.engines import Engine
from tools.bench.peers.base import CHECK_TOKENS, Runner, rounded


class Pyllm(Runner):
    """llm_forward of csrc/llm.h."""

    how = "C interface: llm_open, llm_session_open with defaults, llm_forward"

    def __init__(self, path: Path, engine: Engine, threads: int) -> None:
        from pyllm._llm import ffi, lib

        from pyllm.binding import Model, call

        self.ffi, self.lib, self.call = ffi, lib, call
        self.model, self.threads = Model(str(path)), threads
        known = {name for name, _ in ffi.typeof("llm_options").fields}
        for name, _ in engine.options:
            if name not in known:
                raise Unavailable(f"this pyllm has no option {name}")
        self.options = dict(engine.options)
        self.size = (0, 0)
        self.open(1, CHECK_TOKENS)
        self.runs_with = ffi.string(lib.llm_session_isa(self.session)).decode()

    def open(self, n_seqs: int, context: int) -> None:
        """A session for that many sequences of that many tokens."""
        if (n_seqs, context) == self.size:
            return
        given = dict(context=context, n_seqs=n_seqs, threads=self.threads, **self.options)
        options = self.ffi.new("llm_options *", given)
        self.session = self.ffi.gc(
            self.call(self.lib.llm_session_open, self.model.ptr, options), self.lib.llm_session_close
        )
        self.size = (n_seqs, context)
        self.held: list[list[int]] | None = None  # what the sequences hold
        self.seqs = self.ffi.new("uint32_t[]", list(range(n_seqs)))
        self.want = self.ffi.new("uint8_t[]", [1] * n_seqs)
        self.out = np.zeros((n_seqs, self.model.vocab_size), np.float32)
        self.to = self.ffi.from_buffer("float[]", self.out)

    def prompt(self, ids: list[int], variant: str) -> float:
        self.open(1, rounded(len(ids)))
        self.held, null = None, self.ffi.NULL
        self.call(self.lib.llm_truncate, self.session, 0, 0)
        tokens = self.ffi.new("uint32_t[]", ids)
        start = time.perf_counter()
        self.call(self.lib.llm_forward, self.session, len(ids), tokens, null, null, self.to)
        return time.perf_counter() - start

    def decode(self, prompts: list[list[int]], following: list[list[int]], variant: str) -> float:
        k, n, null = len(prompts), len(prompts[0]), self.ffi.NULL
        self.open(k, rounded(n + len(following)))
        if self.held != prompts:
            self.held = None
            for seq, ids in enumerate(prompts):
                self.call(self.lib.llm_truncate, self.session, seq, 0)
                self.call(self.lib.llm_forward, self.session, n, ids, [seq] * n, null, null)
            self.held = prompts
        for seq in range(k):
            self.call(self.lib.llm_truncate, self.session, seq, n)
        steps = [self.ffi.new("uint32_t[]", row) for row in following]
        start = time.perf_counter()
        for tokens in steps:
            self.call(self.lib.llm_forward, self.session, k, tokens, self.seqs, self.want, self.to)
        return (time.perf_counter() - start) / len(steps)

    def all_logits(self, ids: list[int]) -> np.ndarray:
        self.open(1, rounded(len(ids)))
        self.held = None
        self.call(self.lib.llm_truncate, self.session, 0, 0)
        found = np.empty((len(ids), self.model.vocab_size), np.float32)
        to, want = self.ffi.from_buffer("float[]", found), bytes([1]) * len(ids)
        self.call(self.lib.llm_forward, self.session, len(ids), ids, self.ffi.NULL, want, to)
        return found

    def needs(self, kind: str, n: int, before: float) -> dict[str, float]:
        """Operations of a prompt of n tokens; bytes of weights, keys and values that are read to decode one
        token after `before`."""
        counts, header, layers = self.model.counts, self.model.header, self.model.layers
        if kind != "prompt":
            return {"bytes": float(counts.read + self.lib.llm_kv_read(header, layers, 0, int(before)))}
        tied = bool(header.required & self.lib.LLM_TIED)
        embeddings = header.dim * header.vocab_size * (1 if tied else 2)
        attended = 0.0  # products q . k and p . v, over all layers, heads and positions
        for i in range(header.n_layers):
            layer = layers[i]
            window = min(layer.window or n, n)
            pairs = window * (window + 1) / 2 + (n - window) * window
            attended += 4 * layer.n_heads * layer.head_dim * pairs
        matrices = n * (counts.active - embeddings) + header.dim * header.vocab_size
        return {"operations": 2.0 * matrices + attended}
