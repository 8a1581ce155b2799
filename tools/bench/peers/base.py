"""What drives a program: the interface of the classes in this folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tools.bench.cases import Case
from tools.bench.common import Unavailable
from tools.bench.divergence import divergence
from tools.bench.engines import Engine

CHECK_TOKENS = 24  # in the text whose logits are compared before anything is timed


class Runner:
    """A program with its model open, driven by the closest interface that its users have.

    how        says which interface: it goes into the report
    variants   ways to run it, of which the fastest counts
    runs_with  what the program says of itself: instruction sets, version
    file_bytes the size of the model's file, where that is not what lies on disk
    """

    how = ""
    variants: tuple[str, ...] = ("",)
    runs_with = ""
    file_bytes = 0

    def __init__(self, path: Path, engine: Engine, threads: int) -> None:
        raise NotImplementedError

    @classmethod
    def variants_of(cls, case: Case) -> tuple[str, ...]:
        """Those that may be the fastest."""
        return cls.variants

    def prompt(self, ids: list[int], variant: str) -> float:
        """Seconds for one pass over ids (n,) into an empty cache, with the logits of the last."""
        raise NotImplementedError

    def decode(self, prompts: list[list[int]], following: list[list[int]], variant: str) -> float:
        """Seconds a step, with prompts (k, n) in the cache: every row of following (steps, k) is one, or what
        the program itself chooses."""
        raise NotImplementedError

    def all_logits(self, ids: list[int]) -> np.ndarray:
        """(n, vocab_size) float32: the logits after each of ids, all in one pass."""
        raise Unavailable("it gives no logits")

    def logits(self, ids: list[int]) -> list[float] | int:
        """Those after the last id; or the most likely token where a program gives no logits."""
        found: list[float] = self.all_logits(ids)[-1].tolist()
        return found

    def save_logits(self, ids: list[int], path: str) -> dict[str, Any]:
        """For a reference: all_logits in a file. Returns what compare would."""
        logits = self.all_logits(ids).astype(np.float32, copy=False)
        with Path(path).open("wb") as file:
            np.save(file, logits)
        return divergence(logits, logits, ids)

    def compare(self, ids: list[int], path: str) -> dict[str, Any]:
        """How far the logits are from those that another program has saved."""
        return divergence(np.load(path, mmap_mode="r"), self.all_logits(ids), ids)

    def needs(self, kind: str, n: int, before: float) -> dict[str, float]:
        """Of pyllm: what a case takes, to compare with what the machine can do."""
        return {}


def rounded(length: int) -> int:
    """A context that has room for `length` tokens."""
    return -(-length // 256) * 256
