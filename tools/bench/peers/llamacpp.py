"""llama.cpp, through the bindings of llama-cpp-python.

The library is that of llama.cpp's build folder where there is one (LLAMA_CPP_LIB_PATH, which Worker sets),
else the one that llama-cpp-python was installed with."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import numpy as np

from tools.bench.cases import DEEP, Case
from tools.bench.common import Unavailable
from tools.bench.engines import Engine
from tools.bench.peers.base import Runner, rounded


class LlamaCpp(Runner):
    """llama_decode of llama.h through llama-cpp-python's low-level interface."""

    how = (
        "llama_decode with n_batch 2048 and n_ubatch 512 (the defaults), one context a case: with flash "
        "attention and keys and values in fp16, the same in q8_0 where a context is deep, and without flash "
        "attention; the fastest median counts. Logits: with flash attention, fp16"
    )
    variants = ("flash attention", "flash attention, q8_0 cache", "no flash attention")
    batch_size = 2048

    @classmethod
    def variants_of(cls, case: Case) -> tuple[str, ...]:
        deep = case.kind == "decode" and case.n >= DEEP
        return tuple(variant for variant in cls.variants if deep or "q8_0" not in variant)

    def __init__(self, path: Path, engine: Engine, threads: int) -> None:
        import llama_cpp

        # else every graph is written to the log
        logging.getLogger("llama-cpp-python").setLevel(logging.ERROR)
        self.c, self.threads = llama_cpp, threads
        llama_cpp.llama_backend_init()
        self.runs_with = llama_cpp.llama_print_system_info().decode().strip()
        self.model = llama_cpp.llama_model_load_from_file(
            str(path).encode(), llama_cpp.llama_model_default_params()
        )
        if not self.model:
            raise Unavailable("llama.cpp does not load the model")
        vocabulary = llama_cpp.llama_model_get_vocab(self.model)
        self.vocab_size: int = llama_cpp.llama_vocab_n_tokens(vocabulary)
        self.size = (0, 0)
        self.contexts: dict[str, Any] = {}
        self.held: dict[str, list[list[int]]] = {}  # by variant: what the sequences hold

    def open(self, variant: str, n_seqs: int, length: int) -> Any:
        """A context for that many sequences of that many tokens; those of another size are closed."""
        if (n_seqs, length) != self.size:
            for context in self.contexts.values():
                self.c.llama_free(context)
            self.size, self.contexts, self.held = (n_seqs, length), {}, {}
        if variant not in self.contexts:
            params = self.c.llama_context_default_params()
            params.n_ctx, params.n_seq_max = n_seqs * length, n_seqs
            params.n_batch, params.n_ubatch = self.batch_size, 512
            params.n_threads = params.n_threads_batch = self.threads
            params.flash_attn_type = int(variant != "no flash attention")
            params.swa_full = False  # a layer with a window keeps what is in it, as llama-bench has it
            if "q8_0" in variant:
                params.type_k = params.type_v = self.c.GGML_TYPE_Q8_0
            context = self.c.llama_init_from_model(self.model, params)
            if not context:
                raise Unavailable(f"llama.cpp makes no context with {variant}")
            self.contexts[variant] = context
        return self.contexts[variant]

    def batch(self, tokens: list[int], at: list[int], seqs: list[int], last: bool) -> Any:
        """A llama_batch: tokens[i] goes to position at[i] of sequence seqs[i]; logits of all or the last."""
        batch = self.c.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for i, (token, position, seq) in enumerate(zip(tokens, at, seqs, strict=True)):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0] = token, position, 1, seq
            batch.logits[i] = not last or i == len(tokens) - 1
        return batch

    def chunks(self, ids: list[int], seq: int) -> list[Any]:
        """A prompt as batches."""
        starts = range(0, len(ids), self.batch_size)
        parts = [(at, ids[at : at + self.batch_size]) for at in starts]
        return [
            self.batch(part, list(range(at, at + len(part))), [seq] * len(part), True) for at, part in parts
        ]

    def run(self, context: Any, batches: list[Any]) -> float:
        """Seconds for all batches, with the logits there; frees them."""
        start = time.perf_counter()
        for batch in batches:
            if status := self.c.llama_decode(context, batch):
                raise Unavailable(f"llama_decode returned {status}")
            self.c.llama_get_logits_ith(context, -1)  # waits until they are computed
        took = time.perf_counter() - start
        for batch in batches:
            self.c.llama_batch_free(batch)
        return took

    def prompt(self, ids: list[int], variant: str) -> float:
        context = self.open(variant, 1, rounded(len(ids)))
        self.held.pop(variant, None)
        self.c.llama_memory_clear(self.c.llama_get_memory(context), False)
        return self.run(context, self.chunks(ids, 0))

    def decode(self, prompts: list[list[int]], following: list[list[int]], variant: str) -> float:
        k, n = len(prompts), len(prompts[0])
        context = self.open(variant, k, rounded(n + len(following)))
        memory = self.c.llama_get_memory(context)
        if self.held.get(variant) != prompts:
            self.c.llama_memory_clear(memory, False)
            for seq, ids in enumerate(prompts):
                self.run(context, self.chunks(ids, seq))
            self.held[variant] = prompts
        for seq in range(k):
            self.c.llama_memory_seq_rm(memory, seq, n, -1)
        seqs = list(range(k))
        steps = [self.batch(row, [n + i] * k, seqs, False) for i, row in enumerate(following)]
        return self.run(context, steps) / len(steps)

    def all_logits(self, ids: list[int]) -> np.ndarray:
        variant = self.variants[0]
        context = self.open(variant, 1, rounded(len(ids)))
        self.held.pop(variant, None)
        self.c.llama_memory_clear(self.c.llama_get_memory(context), False)
        if len(ids) > self.batch_size:
            raise Unavailable(f"a text has more than {self.batch_size} tokens")
        self.run(context, [self.batch(ids, list(range(len(ids))), [0] * len(ids), False)])
        logits = self.c.llama_get_logits(context)
        found: np.ndarray = np.ctypeslib.as_array(logits, (len(ids), self.vocab_size)).copy()
        return found
