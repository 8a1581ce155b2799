"""Reads checkpoints of karpathy/llama2.c: version 0 (float32, no magic), 1 (float32) and 2 (Q8_0), as its
export.py writes them.

Their q and k rows pair elements (2i, 2i + 1) for the rotation, as Meta's do; they are put in the half-split
order here."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np

from . import llama2c_tokenizer, sources
from .model import describe
from .sources import PLAIN, ConvertError, File, FileTensor, Source, Tensor

MAGIC = 0x616B3432  # "ak42"
MAX_FIELD = 1 << 24  # no dimension of a real model is near it; keeps the products below in 64 bits


class Q8Tensor(Tensor):
    """int8 weights in groups that run over row ends, and their float32 scales elsewhere in the file."""

    def __init__(
        self, name: str, shape: tuple[int, ...], file: File, weights: int, scales: int, group: int
    ) -> None:
        super().__init__(name, shape)
        self.file, self.weights, self.scales, self.group = file, weights, scales, group

    def read(self, start: int, stop: int) -> np.ndarray:
        first, last = start * self.cols, stop * self.cols
        low, high = first // self.group, -(-last // self.group)
        weights = self.file.read(self.weights + first, last - first).view(np.int8).astype(np.float32)
        scales = self.file.read(self.scales + 4 * low, 4 * (high - low)).view("<f4")
        group = np.arange(first, last) // self.group - low
        return np.reshape(weights * scales[group], (stop - start, self.cols))


def looks_like(head: bytes) -> bool:
    """Whether a file that begins with these 28 bytes can be a llama2.c checkpoint."""
    if len(head) < 28:
        return False
    if struct.unpack_from("<I", head)[0] == MAGIC:
        return True
    dim, hidden, layers, heads, kv_heads, vocab, context = struct.unpack_from("<7i", head)
    sizes = (dim, hidden, layers, heads, kv_heads, abs(vocab), context)
    return all(0 < n < MAX_FIELD for n in sizes) and dim % heads == 0 and heads % kv_heads == 0


def layer_shapes(dim: int, hidden: int, kv_dim: int) -> dict[str, tuple[int, ...]]:
    """The tensors of a layer: name after "model.layers.N." -> shape."""
    return {
        "input_layernorm.weight": (dim,),
        "self_attn.q_proj.weight": (dim, dim),
        "self_attn.k_proj.weight": (kv_dim, dim),
        "self_attn.v_proj.weight": (kv_dim, dim),
        "self_attn.o_proj.weight": (dim, dim),
        "post_attention_layernorm.weight": (dim,),
        "mlp.gate_proj.weight": (hidden, dim),
        "mlp.down_proj.weight": (dim, hidden),
        "mlp.up_proj.weight": (hidden, dim),
    }


EMBED, NORM, OUTPUT = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"
NORMS = ("input_layernorm.weight", "post_attention_layernorm.weight")


def file_order(version: int, matrices: list[str]) -> list[str]:
    """Tensors in the file's order; one that stands for all layers begins with "*"."""
    if version == 0:
        return [EMBED, *("*" + name for name in layer_shapes(0, 0, 0)), NORM, "skip", OUTPUT]
    return ["*" + NORMS[0], "*" + NORMS[1], NORM, EMBED, *("*" + name for name in matrices), OUTPUT]


def open_file(path: Path) -> Source:
    """The model in a .bin checkpoint; its tokenizer.bin lies beside it."""
    file = File(path)
    try:
        return parse(file, path)
    except BaseException:
        file.close()
        raise


def parse(file: File, path: Path) -> Source:
    head = file.read(0, min(file.size, 256)).tobytes()
    if not looks_like(head):
        raise ConvertError(f"{path}: not a llama2.c checkpoint")
    version, offset, at, group = 0, 28, 0, 0
    if struct.unpack_from("<I", head)[0] == MAGIC:
        if len(head) < 256:
            raise ConvertError(f"{path}: truncated, {file.size} bytes")
        version, offset, at = struct.unpack_from("<i", head, 4)[0], 256, 8
        if version not in (1, 2):
            raise ConvertError(f"{path}: llama2.c version {version} is not known; 0, 1 and 2 are")
    dim, hidden, n_layers, heads, kv_heads, vocab, context = struct.unpack_from("<7i", head, at)
    tied = vocab > 0 if version == 0 else head[36] != 0
    vocab = abs(vocab)
    if version == 2:
        group = struct.unpack_from("<i", head, 37)[0]
    if not all(0 < n < MAX_FIELD for n in (dim, hidden, n_layers, heads, kv_heads, vocab, context)) or (
        dim % heads or heads % kv_heads or (version == 2 and not 0 < group < MAX_FIELD)
    ):
        raise ConvertError(
            f"{path}: the header's sizes make no sense (dim {dim}, hidden {hidden}, layers {n_layers}, "
            f"heads {heads}, {kv_heads}, vocabulary {vocab}, context {context})"
        )
    head_dim = dim // heads
    layer = layer_shapes(dim, hidden, head_dim * kv_heads)
    least = n_layers * sum(int(np.prod(shape, dtype=np.int64)) for shape in layer.values())  # bytes
    if least > file.size:
        raise ConvertError(f"{path}: truncated (it has {file.size} bytes, its layers need {least} or more)")
    # model.py of llama2.c: RMSNorm with 1e-5 and the rotary base 10000 are fixed there
    config = {
        "architectures": ["LlamaForCausalLM"],
        "hidden_act": "silu",
        "hidden_size": dim,
        "intermediate_size": hidden,
        "num_hidden_layers": n_layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocab,
        "max_position_embeddings": context,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": tied,
    }
    describe(config)  # refuses what the format cannot have, before anything is sized by it
    shapes = layer | {EMBED: (vocab, dim), NORM: (dim,), OUTPUT: (vocab, dim)}
    matrices = [name for name in layer if name not in NORMS]

    tensors: dict[str, Tensor] = {}
    quantized: list[tuple[str, tuple[int, ...], int]] = []
    for name in file_order(version, matrices):
        if name == OUTPUT and tied:
            continue
        if (
            name == "skip"
        ):  # version 0: tables of cosines and sines, which are computed from the base 10000 instead
            offset += 4 * context * head_dim
            continue
        names = [f"model.layers.{i}.{name[1:]}" for i in range(n_layers)] if name[0] == "*" else [name]
        shape = shapes[name.lstrip("*")]
        count = int(np.prod(shape, dtype=np.int64))
        for full in names:
            if version == 2 and len(shape) == 2:
                quantized.append((full, shape, offset))
                offset += count
            else:
                cols = shape[-1] if len(shape) > 1 else 1
                tensors[full] = FileTensor(full, shape, file, offset, 4 * cols, PLAIN["F32"][1])
                offset += 4 * count
    for full, shape, weights in quantized:  # the scales of all matrices follow the last matrix
        count = shape[0] * shape[1]
        if count % group:
            raise ConvertError(f"{path}: {full} has {count} weights, not a multiple of the group of {group}")
        tensors[full] = Q8Tensor(full, shape, file, weights, offset, group)
        offset += 4 * (count // group)
    if offset != file.size:
        state = "truncated" if offset > file.size else "not a llama2.c checkpoint, or of another version"
        raise ConvertError(f"{path}: {state} (it has {file.size} bytes, its header describes {offset})")
    for i in range(n_layers):
        for kind, count in (("q", heads), ("k", kv_heads)):
            name = f"model.layers.{i}.self_attn.{kind}_proj.weight"
            tensors[name] = sources.half_split(tensors[name], count)

    source = Source(path=path, name=path.stem, config=config, tensors=tensors, files=[file])
    vocabulary_file = path.parent / "tokenizer.bin"
    if os.path.lexists(vocabulary_file):
        source.tokenizer = lambda template: tokenizer(vocabulary_file, vocab, template)
    return source


def tokenizer(path: Path, vocab_size: int, template: str | None) -> dict[int, bytes]:
    """llama2c_tokenizer.from_llama2c, with what is not the file itself refused."""
    sources.check_file(path)
    return llama2c_tokenizer.from_llama2c(path, vocab_size, template)
