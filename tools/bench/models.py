"""The models that are measured: shapes with random weights, and GGUF files."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

CONTEXT = 8192  # positions that random models are made for


@dataclass(frozen=True)
class Shape:
    """The dimensions of a Llama model with a tied embedding, and the spread of its random weights."""

    dim: int
    ffn_dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    vocab_size: int
    rope_theta: float
    std: float = 0.02

    @property
    def parameters(self) -> int:
        attention = (2 * self.n_heads + 2 * self.n_kv_heads) * self.head_dim
        matrices = self.n_layers * self.dim * (attention + 3 * self.ffn_dim)
        return matrices + self.dim * (self.vocab_size + 2 * self.n_layers + 1)

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Names and shapes of the weights, as Hugging Face has them."""
        q, kv = self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim
        yield "model.embed_tokens.weight", (self.vocab_size, self.dim)
        for layer in range(self.n_layers):
            at = f"model.layers.{layer}."
            yield at + "input_layernorm.weight", (self.dim,)
            yield at + "self_attn.q_proj.weight", (q, self.dim)
            yield at + "self_attn.k_proj.weight", (kv, self.dim)
            yield at + "self_attn.v_proj.weight", (kv, self.dim)
            yield at + "self_attn.o_proj.weight", (self.dim, q)
            yield at + "post_attention_layernorm.weight", (self.dim,)
            yield at + "mlp.gate_proj.weight", (self.ffn_dim, self.dim)
            yield at + "mlp.up_proj.weight", (self.ffn_dim, self.dim)
            yield at + "mlp.down_proj.weight", (self.dim, self.ffn_dim)
        yield "model.norm.weight", (self.dim,)


SHAPES = {
    "135M": Shape(576, 1536, 30, 9, 3, 64, 49152, 100_000.0),  # SmolLM2-135M
    "1B": Shape(2048, 8192, 16, 32, 8, 64, 49152, 500_000.0),  # Llama-3.2-1B with a smaller vocabulary
    "tiny": Shape(128, 256, 2, 4, 2, 32, 320, 10_000.0, std=0.1),  # for the tests
}


@dataclass(frozen=True)
class Model:
    """A model by its name, and the folder where its files for all engines are made: of a shape, with random
    weights, or from a GGUF file."""

    name: str
    work: Path
    shape: Shape | None = None
    source: Path | None = None

    @property
    def folder(self) -> Path:
        """Another shape or another file of this name has another folder."""
        if self.source:
            state = self.source.stat()
            made_from: Any = (str(self.source), state.st_size, state.st_mtime_ns)
        else:
            made_from = (self.shape, CONTEXT)
        digest = hashlib.sha256(repr(made_from).encode()).hexdigest()[:8]
        return self.work / f"{re.sub(r'[^A-Za-z0-9._-]', '_', self.name)}-{digest}"

    @property
    def arguments(self) -> list[str]:
        """The options of the command that name this model."""
        return ["--gguf", str(self.source)] if self.source else ["--shapes", self.name]

    def as_dict(self) -> dict[str, Any]:
        """For the report."""
        if self.source:
            return {"source": self.source.name, "source_bytes": self.source.stat().st_size}
        return {"shape": asdict(self.shape) if self.shape else None}


def random_model(name: str, work: Path) -> Model:
    return Model(name, work, shape=SHAPES[name])


def gguf_model(source: Path, work: Path) -> Model:
    return Model(source.stem, work, source=source.resolve())
