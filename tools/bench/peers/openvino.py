"""OpenVINO GenAI."""

from __future__ import annotations

import os
import tempfile
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
        "time to first token, a step's is taken between its times of new tokens, which it chooses greedily. "
        "Logits: the model that it makes of the GGUF, compiled with default settings"
    )

    def __init__(self, path: Path, engine: Engine, threads: int) -> None:
        import openvino
        import openvino_genai

        self.ov, self.genai, self.path, self.threads = openvino, openvino_genai, path, threads
        self.compiled: Any = None
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

    def compile(self) -> Any:
        """The pipeline's model by itself: the pipeline gives no logits."""
        with tempfile.TemporaryDirectory(dir=self.path.parent) as name:
            folder = Path(name)
            gguf = folder / "model.gguf"
            os.link(self.path, gguf)
            self.genai.LLMPipeline(str(gguf), "CPU", enable_save_ov_model=True)  # beside the GGUF
            model = self.ov.Core().read_model(str(folder / "openvino_model.xml"))
            return self.ov.Core().compile_model(model, "CPU", {"INFERENCE_NUM_THREADS": self.threads})

    def all_logits(self, ids: list[int]) -> np.ndarray:
        self.compiled = self.compiled or self.compile()
        n = len(ids)
        inputs = {
            "input_ids": np.array([ids], np.int64),
            "attention_mask": np.ones((1, n), np.int64),
            "position_ids": np.arange(n, dtype=np.int64)[None],
            "beam_idx": np.zeros(1, np.int32),
        }
        request = self.compiled.create_infer_request()  # a new one: its cache is empty
        request.infer(inputs)
        found: np.ndarray = request.get_tensor("logits").data[0].copy()
        return found
