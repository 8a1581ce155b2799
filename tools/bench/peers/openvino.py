"""OpenVINO GenAI."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tools.bench.common import Unavailable
from tools.bench.engines import Engine
from tools.bench.peers.base import Runner


class OpenVINO(Runner):
    """LLMPipeline of OpenVINO GenAI, which reads GGUF."""

    how = (
        "LLMPipeline(GGUF, 'CPU').generate with token ids and its default settings; a prompt's time is its "
        "time to first token, a step's is taken between its times of new tokens, which it chooses greedily"
    )

    def __init__(self, path: Path, engine: Engine, threads: int) -> None:
        import openvino
        import openvino_genai

        self.ov, self.genai = openvino, openvino_genai
        self.pipeline = openvino_genai.LLMPipeline(str(path), "CPU", INFERENCE_NUM_THREADS=threads)
        self.runs_with = openvino.get_version()

    def generate(self, prompts: list[list[int]], n: int) -> Any:
        """What the pipeline gives for n tokens after each prompt."""
        ids = np.array(prompts, np.int64)
        inputs = self.genai.TokenizedInputs(self.ov.Tensor(ids), self.ov.Tensor(np.ones_like(ids)))
        return self.pipeline.generate(inputs, max_new_tokens=n, ignore_eos=True, do_sample=False)

    def prompt(self, ids: list[int], variant: str) -> float:
        milliseconds: float = self.generate([ids], 1).perf_metrics.get_ttft().mean
        return milliseconds / 1e3

    def decode(self, prompts: list[list[int]], following: list[list[int]], variant: str) -> float:
        made = self.generate(prompts, len(following) + 1)
        raw = made.perf_metrics.raw_metrics
        ends: list[float] = raw.m_new_token_times  # ms, one a step
        if len(ends) != len(following) + 1 or set(raw.m_batch_sizes) != {len(prompts)}:
            raise Unavailable("OpenVINO did not make a token of every sequence in every step")
        return (ends[-1] - ends[0]) / 1e3 / len(following)

    def logits(self, ids: list[int]) -> int:
        return int(self.generate([ids], 1).tokens[0][0])
