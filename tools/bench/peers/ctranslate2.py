"""CTranslate2."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from tools.bench.common import Unavailable
from tools.bench.engines import Engine
from tools.bench.peers.base import Runner


class CTranslate2(Runner):
    """Generator of CTranslate2."""

    how = (
        "Generator.generate_batch, compute_type int8; a prompt's time is that until its first token, a "
        "step's is taken between callbacks, after a cached static prompt; tokens are chosen greedily"
    )

    def __init__(self, path: Path, engine: Engine, threads: int) -> None:
        import ctranslate2

        self.generator = ctranslate2.Generator(
            str(path), device="cpu", compute_type="int8", inter_threads=1, intra_threads=threads
        )
        self.runs_with = self.generator.compute_type
        self.tokens: list[str] = json.loads((path / "vocabulary.json").read_text(encoding="utf-8"))

    def generate(self, prompts: list[list[int]], n: int, **options: Any) -> Any:
        texts = [[self.tokens[i] for i in ids] for ids in prompts]
        return self.generator.generate_batch(
            texts, max_length=n, min_length=n, include_prompt_in_result=False, **options
        )

    def prompt(self, ids: list[int], variant: str) -> float:
        start = time.perf_counter()
        self.generate([ids], 1)
        return time.perf_counter() - start

    def decode(self, prompts: list[list[int]], following: list[list[int]], variant: str) -> float:
        static = [self.tokens[i] for i in prompts[0][:-1]]  # all sequences have the first one's prompt
        ends: dict[int, float] = {}  # step -> when its last token was there

        def note(result: Any) -> bool:
            ends[result.step] = time.perf_counter()
            return False

        options = {"static_prompt": static} if static else {}
        self.generate([ids[-1:] for ids in prompts], len(following) + 1, callback=note, **options)
        first, last = min(ends), max(ends)
        if last - first != len(following):
            raise Unavailable("CTranslate2 made fewer tokens than it was asked for")
        return (ends[last] - ends[first]) / (last - first)

    def all_logits(self, ids: list[int]) -> np.ndarray:
        found: np.ndarray = np.array(self.generator.forward_batch([ids]), np.float32)[0]
        return found
