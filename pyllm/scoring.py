"""What a model finds likely: scores of texts, and the logits of all their tokens."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from pyllm._llm import ffi, lib
from pyllm.scheduler import Request


class Score(NamedTuple):
    """logprob: the summed natural logarithms of the tokens' probabilities; greedy: whether each was the most
    likely."""

    logprob: float
    greedy: bool


class Scoring(Request):
    """The Score of the ids `after` behind the ids `before`, at least one of each."""

    def __init__(self, vocab_size: int, before: list[int], after: list[int]) -> None:
        super().__init__(before + after[:-1], len(before) - 1)
        self.vocab_size, self.expected = vocab_size, iter(after)
        self.logprob, self.greedy = 0.0, True
        self.top, self.value = ffi.new("uint32_t[1]"), ffi.new("float[1]")

    def accept(self, logits: Any) -> None:
        token = next(self.expected)
        self.logprob += lib.llm_logprobs(logits, self.vocab_size, token, 1, self.top, self.value)
        self.greedy &= self.top[0] == token

    def score(self) -> Score:
        return Score(self.logprob, self.greedy)


class AllLogits(Request):
    """The logits after each of ids (n,), n >= 1, into `out`: float32 (n, vocab_size)."""

    def __init__(self, vocab_size: int, ids: list[int]) -> None:
        super().__init__(ids, 0)
        self.out = np.empty((len(ids), vocab_size), np.float32)
        self.rows = iter(self.out)

    def accept(self, logits: Any) -> None:
        row = next(self.rows)
        row[:] = np.frombuffer(ffi.buffer(logits, row.nbytes), np.float32)
