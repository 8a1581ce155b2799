"""transformers on PyTorch."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from tools.bench.engines import Engine
from tools.bench.peers.base import Runner


class Transformers(Runner):
    """transformers on PyTorch, in bfloat16 or float32."""

    how = "AutoModelForCausalLM, model(input_ids, past_key_values=..., logits_to_keep=1)"

    def __init__(self, path: Path, engine: Engine, threads: int) -> None:
        import torch
        import transformers

        torch.set_num_threads(threads)
        self.torch, self.cache = torch, transformers.DynamicCache
        dtype = torch.bfloat16 if engine.dtype == "bf16" else torch.float32
        self.model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=dtype).eval()
        self.runs_with = torch.backends.cpu.get_cpu_capability()
        # the folder holds float32, for the reference
        self.file_bytes = sum(p.numel() * p.element_size() for p in self.model.parameters())
        self.held: list[Any] | None = None

    def forward(self, ids: list[list[int]], past: Any) -> Any:
        with self.torch.inference_mode():
            return self.model(
                self.torch.tensor(ids), past_key_values=past, use_cache=True, logits_to_keep=1
            ).logits

    def prompt(self, ids: list[int], variant: str) -> float:
        past = self.cache(config=self.model.config)
        start = time.perf_counter()
        self.forward([ids], past)
        return time.perf_counter() - start

    def decode(self, prompts: list[list[int]], following: list[list[int]], variant: str) -> float:
        if self.held != prompts:
            self.past, self.held = self.cache(config=self.model.config), prompts
            self.forward(prompts, self.past)
        steps = [[[token] for token in row] for row in following]
        start = time.perf_counter()
        for step in steps:
            self.forward(step, self.past)
        took = time.perf_counter() - start
        try:
            self.past.crop(-len(steps))
        except (NotImplementedError, RuntimeError, ValueError):  # a window's cache forgets what it passes
            self.held = None
        return took / len(steps)

    def all_logits(self, ids: list[int]) -> np.ndarray:
        with self.torch.inference_mode():
            logits = self.model(self.torch.tensor([ids]), use_cache=False).logits[0]
        found: np.ndarray = logits.float().numpy()
        return found


class Simulated(Transformers):
    """What one int8 scale a row of weights and one a token of activations cost, in float32: the scheme of
    CTranslate2 (docs: Quantization). Only its logits are of use."""

    how = "transformers in float32; weights rounded to 8 bits with a scale a row, inputs with a scale a token"

    def __init__(self, path: Path, engine: Engine, threads: int) -> None:
        super().__init__(path, engine, threads)

        def rounded(x: Any) -> Any:
            scale = x.abs().amax(-1, keepdim=True).clamp_min(1e-20) / 127
            return (x / scale).round() * scale

        for module in self.model.modules():
            if isinstance(module, self.torch.nn.Linear | self.torch.nn.Embedding):
                module.weight.data = rounded(module.weight.data)
            if isinstance(module, self.torch.nn.Linear):
                module.register_forward_pre_hook(lambda _, inputs: (rounded(inputs[0]), *inputs[1:]))
