"""Measures how fast pyllm runs, beside other programs that are installed, and beside what the machine can do.

    python -m tools.bench --shapes 135M --out speed

Makes a Llama model with random weights in the format of every program, from the same numbers; times prompts,
decoding and sequences that decode together, on the CPU, the programs taking turns; measures the machine's
read bandwidth and arithmetic in between (peaks.c); and writes a table, the raw seconds and a plot.

Every program runs in a process of its own, which loads the model once and answers commands (class Worker, and
worker() at the other end). A program that is missing or fails is a dash in the table and a reason under it.
Before anything is timed, all programs compute logits for the same tokens: one whose logits are another
model's is not compared.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import importlib.metadata
import importlib.util
import json
import logging
import math
import os
import platform
import re
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tools.checkpoints import gguf_writer, interleaved, safetensors_head

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent

CONTEXT = 8192  # positions that the models are made for
PAUSE = 0.4  # seconds before each measurement: the threads of the program before it have stopped spinning
SLOW = 60.0  # a case whose warm-up takes all programs together longer than this is repeated half as often
DECODE_STEPS = 48  # tokens after the context
BATCH_STEPS = 16  # the same where several sequences decode together
BATCH_CONTEXT = 32  # tokens in each of them
CHECK_TOKENS = 24  # in the text whose logits are compared

# How far an engine's logits may be from the reference's, in their standard deviation: 16-bit rounding makes
# up to 0.03, 8-bit rounding up to 0.11; rotary pairs in the wrong order 0.07 (135M) or 1.3 (tiny), other
# weights 1.4.
TOLERANCE = {"fp16": 0.06, "F16": 0.06, "bf16": 0.1, "int8": 0.25, "Q8_0": 0.25}

LIMIT = 1800  # seconds that a worker may take for one command


class Unavailable(Exception):
    """A program cannot take part; the message says why in one line."""


# ----------------------------------------------------------------------------------------------------------
# What is measured: shapes of models, cases, engines


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
    def layer_weights(self) -> int:
        """Numbers in the matrices of all layers."""
        attention = (2 * self.n_heads + 2 * self.n_kv_heads) * self.head_dim
        return self.n_layers * self.dim * (attention + 3 * self.ffn_dim)

    @property
    def parameters(self) -> int:
        return self.layer_weights + self.dim * (self.vocab_size + 2 * self.n_layers + 1)

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

    def flops(self, n: int) -> float:
        """Operations of a prompt of n tokens with the logits of the last."""
        attention = 2 * self.n_layers * self.n_heads * self.head_dim * n * (n + 1)
        return 2.0 * (n * self.layer_weights + self.dim * self.vocab_size) + attention

    def read_bytes(self, dtype: str, positions: float) -> float:
        """Bytes that pyllm reads to decode a token: its weights (csrc/llm.h), and the keys and values of that
        many positions in fp16."""
        bytes_a_weight = {"fp16": 2, "int8": 1 + 2 / 64}[dtype]
        weights = self.layer_weights + self.dim * self.vocab_size
        return weights * bytes_a_weight + 4 * positions * self.n_layers * self.n_kv_heads * self.head_dim


SHAPES = {
    "135M": Shape(576, 1536, 30, 9, 3, 64, 49152, 100_000.0),  # SmolLM2-135M
    "1B": Shape(2048, 8192, 16, 32, 8, 64, 49152, 500_000.0),  # Llama-3.2-1B with a smaller vocabulary
    "tiny": Shape(128, 256, 2, 4, 2, 32, 320, 10_000.0, std=0.1),  # for the tests
}


@dataclass(frozen=True)
class Case:
    """prompt: n tokens into an empty cache, the logits of the last. decode: tokens one by one after n.
    batch: n sequences that decode together."""

    kind: str
    n: int

    def __str__(self) -> str:
        return f"{self.kind}{self.n}"

    @property
    def title(self) -> str:
        """The row's name in the table."""
        if self.kind == "prompt":
            return f"prompt of {self.n}"
        if self.kind == "decode":
            return f"decode after {max(1, self.n)}"
        return f"{self.n} sequences together" if self.n > 1 else "1 sequence"

    @property
    def tokens(self) -> int:
        """How many tokens the measured seconds are for: those of a step, where there are steps."""
        return 1 if self.kind == "decode" else self.n

    @property
    def steps(self) -> int:
        return {"prompt": 0, "decode": DECODE_STEPS, "batch": BATCH_STEPS}[self.kind]

    def request(self, vocab_size: int, round_: int) -> dict[str, Any]:
        """The command for a worker. A prompt is another one each round, so that nobody has it cached; what is
        decoded after stays the same, so that it need not be computed again."""
        rng = np.random.default_rng([self.n, round_] if self.kind == "prompt" else [self.n])
        n_seqs = self.n if self.kind == "batch" else 1
        length = BATCH_CONTEXT if self.kind == "batch" else max(1, self.n)
        prompts = rng.integers(0, vocab_size - SPECIAL, (n_seqs, length)).tolist()
        if self.kind == "prompt":
            return {"command": "prompt", "ids": prompts[0]}
        following = rng.integers(0, vocab_size - SPECIAL, (self.steps, n_seqs)).tolist()
        return {"command": "decode", "prompts": prompts, "following": following}


CASES = [Case("prompt", n) for n in (32, 128, 512, 4096)]
CASES += [Case("decode", n) for n in (0, 512, 4096)]
CASES += [Case("batch", n) for n in (1, 4, 16, 32)]
FEWER_CASES = [Case("prompt", 512), Case("decode", 0), Case("decode", 512), Case("batch", 16)]


@dataclass(frozen=True)
class Engine:
    """A program with a kind of weights. `runner` names the class below that drives it, `module` what must be
    importable, `packages` whose versions are reported, `file` what its model is called in the work folder and
    `make` the function that makes it; `deep`: it runs all cases by default."""

    label: str
    runner: str
    module: str
    packages: tuple[str, ...]
    dtype: str
    file: str
    make: str
    deep: bool = False

    @property
    def installed(self) -> bool:
        return importlib.util.find_spec(self.module) is not None


OPENVINO = ("openvino-genai", "openvino")
ENGINES = {
    "pyllm-int8": Engine("pyllm int8", "Pyllm", "pyllm", ("pyllm",), "int8", "int8.llm", "make_llm", True),
    "pyllm-fp16": Engine("pyllm fp16", "Pyllm", "pyllm", ("pyllm",), "fp16", "fp16.llm", "make_llm", True),
    "llamacpp-q8_0": Engine(
        "llama.cpp Q8_0",
        "LlamaCpp",
        "llama_cpp",
        ("llama_cpp_python",),
        "Q8_0",
        "q8_0.gguf",
        "make_gguf",
        True,
    ),
    "llamacpp-f16": Engine(
        "llama.cpp F16", "LlamaCpp", "llama_cpp", ("llama_cpp_python",), "F16", "f16.gguf", "make_gguf", True
    ),
    "openvino-int8": Engine(
        "OpenVINO int8", "OpenVINO", "openvino_genai", OPENVINO, "Q8_0", "q8_0.gguf", "make_gguf"
    ),
    "openvino-fp16": Engine(
        "OpenVINO fp16", "OpenVINO", "openvino_genai", OPENVINO, "F16", "f16.gguf", "make_gguf"
    ),
    "ctranslate2-int8": Engine(
        "CTranslate2 int8",
        "CTranslate2",
        "ctranslate2",
        ("ctranslate2",),
        "int8",
        "ctranslate2",
        "make_ctranslate2",
    ),
    "transformers-bf16": Engine(
        "transformers bf16",
        "Transformers",
        "transformers",
        ("transformers", "torch"),
        "bf16",
        "hf",
        "make_hf",
    ),
}
RATIOS = {"int8": ("pyllm-int8", "llamacpp-q8_0"), "fp16": ("pyllm-fp16", "llamacpp-f16")}


# ----------------------------------------------------------------------------------------------------------
# The model's files. Each function makes `path` from the Hugging Face directory beside it.

SPECIAL = 3  # special tokens, at the end of the vocabulary
BOS, EOS = 0, 1  # which of them


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write a file or a directory to, which becomes `path` when all went well."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        yield part
        os.replace(part, path)
    finally:
        if part.is_dir():
            shutil.rmtree(part, ignore_errors=True)
        else:
            part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


def model_folder(work: Path, name: str) -> Path:
    """Where a shape's files are; another shape of this name has another folder."""
    digest = hashlib.sha256(repr((SHAPES[name], CONTEXT)).encode()).hexdigest()[:8]
    return work / f"{name}-{digest}"


def model_path(engine: Engine, folder: Path) -> Path:
    """An engine's file; flat files of several versions of the format have several names."""
    path = folder / engine.file
    if engine.make == "make_llm":
        from pyllm._llm import lib

        path = path.with_stem(f"{path.stem}-v{lib.LLM_VERSION}")
    return path


def vocabulary(size: int) -> tuple[list[str], list[tuple[str, str]]]:
    """A byte-level BPE vocabulary, (tokens, merges): the bytes, pairs of them, and the special tokens."""
    from pyllm.tools.vocabulary import ALPHABET

    alphabet = list(ALPHABET)
    count = size - SPECIAL - len(alphabet)
    if not 0 <= count <= len(alphabet) ** 2:
        raise Unavailable(f"no vocabulary of {size} tokens can be made")
    merges = [(alphabet[i // 256], alphabet[i % 256]) for i in range(count)]
    special = ["<|begin|>", "<|end|>", "<|unknown|>"]
    return [*alphabet, *(left + right for left, right in merges), *special], merges


def tokenizer_json(tokens: list[str], merges: list[tuple[str, str]]) -> dict[str, Any]:
    """The vocabulary as the tokenizers library reads it."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    first = len(tokens) - SPECIAL
    return {
        "version": "1.0",
        "added_tokens": [
            {"id": first + i, "content": text, **flags, "special": True}
            for i, text in enumerate(tokens[first:])
        ],
        "pre_tokenizer": byte_level,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": [list(pair) for pair in merges],
        },
    }


def random_weight(shape: Shape, number: int, size: tuple[int, ...]) -> np.ndarray:
    """Tensor `number` in fp16: ones for a norm, else normal with the shape's spread."""
    if len(size) == 1:
        return np.ones(size, np.float16)
    values = np.random.default_rng([7, number]).standard_normal(size, np.float32)
    values *= shape.std
    return values.astype(np.float16)


def write_safetensors(path: Path, shape: Shape) -> None:
    """The random weights, which are never all in memory."""
    with path.open("wb") as file:
        head = safetensors_head((name, "F16", size, 2 * math.prod(size)) for name, size in shape.tensors())
        file.write(head)
        for number, (_, size) in enumerate(shape.tensors()):
            file.write(random_weight(shape, number, size).data)


def config_json(shape: Shape) -> dict[str, Any]:
    first = shape.vocab_size - SPECIAL
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": shape.dim,
        "intermediate_size": shape.ffn_dim,
        "num_hidden_layers": shape.n_layers,
        "num_attention_heads": shape.n_heads,
        "num_key_value_heads": shape.n_kv_heads,
        "head_dim": shape.head_dim,
        "vocab_size": shape.vocab_size,
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": 1e-5,
        "rope_theta": shape.rope_theta,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": first + BOS,
        "eos_token_id": first + EOS,
        "torch_dtype": "float16",
    }


def make_hf(path: Path, shape: Shape, engine: Engine | None = None) -> None:
    """A Hugging Face directory: the source of all other files."""
    first = shape.vocab_size - SPECIAL
    tokens, merges = vocabulary(shape.vocab_size)
    names = dict(zip(("bos_token", "eos_token", "unk_token"), tokens[first:], strict=True))
    with replacing(path) as folder:
        folder.mkdir()
        write_safetensors(folder / "model.safetensors", shape)
        for name, value in (
            ("config.json", config_json(shape)),
            ("tokenizer.json", tokenizer_json(tokens, merges)),
            ("tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **names}),
        ):
            (folder / name).write_text(json.dumps(value), encoding="utf-8")


def make_llm(path: Path, shape: Shape, engine: Engine) -> None:
    """A flat file, by the project's converter. Only ids are run, so it has no tokenizer."""
    from pyllm.tools.convert import convert

    with replacing(path) as part:
        convert(path.parent / "hf", part, dtype=engine.dtype, tokenizer=False)


def gguf_rows(name: str, weight: np.ndarray, shape: Shape) -> np.ndarray:
    """The rows of q and k in llama.cpp's order; other matrices as they are."""
    heads = {"q_proj": shape.n_heads, "k_proj": shape.n_kv_heads}.get(name.split(".")[-2])
    return weight if heads is None else interleaved(weight, heads)


def make_gguf(path: Path, shape: Shape, engine: Engine) -> None:
    """A GGUF file with the matrices in the engine's dtype and the norms in float32."""
    import gguf
    from pyllm.tools.gguf_file import native_name
    from safetensors import safe_open

    kind = gguf.GGMLQuantizationType[engine.dtype]
    tokens, merges = vocabulary(shape.vocab_size)
    types = [gguf.TokenType.NORMAL] * (len(tokens) - SPECIAL) + [gguf.TokenType.CONTROL] * SPECIAL
    with replacing(path) as part, safe_open(path.parent / "hf" / "model.safetensors", "np") as source:
        writer = gguf_writer(part, "llama", "random", config_json(shape))
        writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{engine.dtype}"])
        writer.add_vocab_size(shape.vocab_size)
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("gpt-2")
        writer.add_token_list(tokens)
        writer.add_token_types(types)
        writer.add_token_merges([" ".join(pair) for pair in merges])
        writer.add_bos_token_id(len(tokens) - SPECIAL + BOS)
        writer.add_eos_token_id(len(tokens) - SPECIAL + EOS)
        writer.add_add_bos_token(False)

        def data(name: str) -> np.ndarray:
            weight = gguf_rows(name, source.get_tensor(name), shape)
            if weight.ndim == 1:
                return weight.astype(np.float32)
            return weight if engine.dtype == "F16" else gguf.quants.quantize(weight.astype(np.float32), kind)

        plain = gguf.GGMLQuantizationType.F32
        for name, size in shape.tensors():
            this = kind if len(size) > 1 else plain
            block, width = gguf.GGML_QUANT_SIZES[this]
            raw = (*size[:-1], size[-1] // block * width)
            item = {plain: np.float32, gguf.GGMLQuantizationType.F16: np.float16}.get(this, np.uint8)
            nbytes = int(np.prod(raw))
            stored = raw if item is np.uint8 else size
            writer.add_tensor_info(native_name(name), stored, np.dtype(item), nbytes, raw_dtype=this)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name, _ in shape.tensors():
            writer.write_tensor_data(data(name))
        writer.close()


def make_ctranslate2(path: Path, shape: Shape, engine: Engine) -> None:
    """CTranslate2's own format, by its converter (which needs transformers and torch)."""
    from ctranslate2.converters import TransformersConverter

    with replacing(path) as part:
        source = TransformersConverter(str(path.parent / "hf"), low_cpu_mem_usage=True)
        source.convert(str(part), quantization=engine.dtype)


# ----------------------------------------------------------------------------------------------------------
# The programs. Each is driven by the closest interface that its users have; `how` says which, and goes into
# the report. A runner has
#     prompt(ids, variant)                 seconds for one pass over ids (n,) into an empty cache
#     decode(prompts, following, variant)  seconds a step, with prompts (k, n) in the cache: every row of
#                                          following (steps, k) is one, or what the program itself chooses
#     logits(ids)                          those after the last id, or the most likely token where a program
#                                          gives no logits


class Pyllm:
    """llm_forward of csrc/llm.h."""

    how = "C interface: llm_open, llm_session_open with defaults, llm_forward"
    variants: tuple[str, ...] = ("",)

    def __init__(self, path: Path, shape: Shape, threads: int) -> None:
        from pyllm._llm import ffi, lib

        from pyllm.binding import Model, call

        self.ffi, self.lib, self.call = ffi, lib, call
        self.model, self.threads = Model(str(path)), threads
        self.size = (0, 0)
        self.open(1, CHECK_TOKENS)
        self.runs_with = ffi.string(lib.llm_session_isa(self.session)).decode()

    def open(self, n_seqs: int, context: int) -> None:
        """A session for that many sequences of that many tokens."""
        if (n_seqs, context) == self.size:
            return
        options = self.ffi.new("llm_options *", dict(context=context, n_seqs=n_seqs, threads=self.threads))
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

    def logits(self, ids: list[int]) -> list[float]:
        self.prompt(ids, "")
        found: list[float] = self.out[0].tolist()
        return found


class LlamaCpp:
    """llama_decode of llama.h through llama-cpp-python's low-level interface."""

    how = (
        "llama_decode with n_batch 2048 and n_ubatch 512 (the defaults), keys and values in fp16, one "
        "context a case; with and without flash attention, of which the faster median counts"
    )
    variants: tuple[str, ...] = ("flash attention", "no flash attention")
    batch_size = 2048

    def __init__(self, path: Path, shape: Shape, threads: int) -> None:
        import llama_cpp

        logging.getLogger("llama-cpp-python").setLevel(
            logging.ERROR
        )  # else every graph is written to the log
        self.c, self.threads, self.vocab_size = llama_cpp, threads, shape.vocab_size
        llama_cpp.llama_backend_init()
        self.runs_with = llama_cpp.llama_print_system_info().decode().strip()
        self.model = llama_cpp.llama_model_load_from_file(
            str(path).encode(), llama_cpp.llama_model_default_params()
        )
        if not self.model:
            raise Unavailable("llama.cpp does not load the model")
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

    def logits(self, ids: list[int]) -> list[float]:
        self.prompt(ids, self.variants[0])
        logits = self.c.llama_get_logits_ith(self.contexts[self.variants[0]], -1)
        found: list[float] = np.ctypeslib.as_array(logits, (self.vocab_size,)).tolist()
        return found


class OpenVINO:
    """LLMPipeline of OpenVINO GenAI, which reads GGUF."""

    how = (
        "LLMPipeline(GGUF, 'CPU').generate with token ids and its default settings; a prompt's time is its "
        "time to first token, a step's is taken between its times of new tokens, which it chooses greedily"
    )
    variants: tuple[str, ...] = ("",)

    def __init__(self, path: Path, shape: Shape, threads: int) -> None:
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


class CTranslate2:
    """Generator of CTranslate2."""

    how = (
        "Generator.generate_batch, compute_type int8; a prompt's time is that until its first token, a "
        "step's is taken between callbacks, after a cached static prompt; tokens are chosen greedily"
    )
    variants: tuple[str, ...] = ("",)

    def __init__(self, path: Path, shape: Shape, threads: int) -> None:
        import ctranslate2

        self.generator = ctranslate2.Generator(
            str(path), device="cpu", compute_type="int8", inter_threads=1, intra_threads=threads
        )
        self.runs_with = self.generator.compute_type
        self.tokens, _ = vocabulary(shape.vocab_size)

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

    def logits(self, ids: list[int]) -> list[float]:
        found: list[float] = np.array(self.generator.forward_batch([ids]), np.float32)[0, -1].tolist()
        return found


class Transformers:
    """transformers on PyTorch, in bfloat16."""

    how = "AutoModelForCausalLM in bfloat16, model(input_ids, past_key_values=..., logits_to_keep=1)"
    variants: tuple[str, ...] = ("",)

    def __init__(self, path: Path, shape: Shape, threads: int) -> None:
        import torch
        import transformers

        torch.set_num_threads(threads)
        self.torch, self.cache = torch, transformers.DynamicCache
        self.model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16).eval()
        self.runs_with = torch.backends.cpu.get_cpu_capability()
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
        self.past.crop(-len(steps))
        return took / len(steps)

    def logits(self, ids: list[int]) -> list[float]:
        logits = self.forward([ids], self.cache(config=self.model.config))[0, -1]
        found: list[float] = logits.float().tolist()
        return found


RUNNERS = {kind.__name__: kind for kind in (Pyllm, LlamaCpp, OpenVINO, CTranslate2, Transformers)}


def rounded(length: int) -> int:
    """A context that has room for `length` tokens."""
    return -(-length // 256) * 256


# ----------------------------------------------------------------------------------------------------------
# Workers


def worker(name: str, shape_name: str, work: Path, threads: int) -> int:
    """The other end of a Worker: loads the model, then answers each line of JSON on standard input by one on
    standard output. What libraries print goes to standard error."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(**reply: Any) -> None:
        answers.write(json.dumps(reply) + "\n")
        answers.flush()

    try:
        runner, seconds = load(ENGINES[name], shape_name, work, threads)
    except Exception as error:
        answer(error=one_line(error))
        return 1
    answer(result={"runs_with": runner.runs_with, "load_seconds": seconds})
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer(result=getattr(runner, request.pop("command"))(**request))
        except Exception as error:
            answer(error=one_line(error))
    answers.flush()
    os._exit(0)  # libraries that crash when they are taken down have done their work


def load(engine: Engine, shape_name: str, work: Path, threads: int) -> tuple[Any, float]:
    """The engine with its model, which is made if it is not there; and the seconds that loading took."""
    path, shape = model_path(engine, model_folder(work, shape_name)), SHAPES[shape_name]
    if not path.exists():
        globals()[engine.make](path, shape, engine)
    start = time.perf_counter()
    return RUNNERS[engine.runner](path, shape, threads), time.perf_counter() - start


def one_line(error: BaseException) -> str:
    """An exception as a reason: its first sentence, not its traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines)[:300] or "no reason given"
    return text if isinstance(error, Unavailable) else f"{type(error).__name__}: {text}"


class Worker:
    """A process that runs one engine with one shape. `failed` says why it is of no more use."""

    def __init__(self, name: str, shape_name: str, work: Path, threads: int) -> None:
        self.name, self.failed = name, ""
        self.log = model_folder(work, shape_name) / f"{name}.log"
        options = ["--shapes", shape_name, "--work", str(work), "--threads", str(threads)]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tools.bench", "--worker", name, *options],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self.process.stdin and self.process.stdout  # pipes, as asked for
        self.commands, self.answers = self.process.stdin, self.process.stdout
        self.about: dict[str, Any] = {}
        try:
            self.about = self.receive()
        except Unavailable as error:
            self.failed = str(error)

    def receive(self) -> Any:
        """The next answer's result; Unavailable when it is an error or does not come."""
        timer = threading.Timer(LIMIT, self.process.kill)
        timer.start()
        try:
            line = self.answers.readline()
        finally:
            timer.cancel()
        if not line:
            status = self.process.wait()
            self.failed = f"the process ended with status {status}; see {self.log.name} in the work folder"
            raise Unavailable(self.failed)
        reply = json.loads(line)
        if "error" in reply:
            raise Unavailable(reply["error"])
        return reply["result"]

    def ask(self, **request: Any) -> Any:
        """The result of a command."""
        if self.failed:
            raise Unavailable(self.failed)
        try:
            self.commands.write(json.dumps(request) + "\n")
            self.commands.flush()
        except BrokenPipeError:
            pass  # receive() says what happened
        return self.receive()

    def close(self) -> None:
        with self.process:
            self.process.kill()


# ----------------------------------------------------------------------------------------------------------
# What the machine can do


class Peaks:
    """peaks.c, compiled, and what it measured so far. Without a compiler it measures nothing."""

    def __init__(self, work: Path, threads: int, read_mib: int) -> None:
        self.arguments = [str(threads), str(read_mib)]
        self.samples: list[dict[str, Any]] = []
        self.failed = ""
        source = HERE / "peaks.c"
        try:
            digest = hashlib.sha256(source.read_bytes()).hexdigest()[:8]
            self.program = work / f"peaks-{platform.machine()}-{digest}"
            if not self.program.exists():
                self.compile(source)
        except (OSError, Unavailable) as error:
            self.failed = f"the machine's peaks are not measured: {one_line(error)}"

    def compile(self, source: Path) -> None:
        """With all instructions, else without those that an older assembler does not know."""
        chosen = os.environ.get("CC")
        found = shlex.split(chosen) if chosen else [c for c in ("cc", "gcc", "clang") if shutil.which(c)][:1]
        if not found:
            raise Unavailable("no C compiler (cc, gcc or clang) is installed")
        with replacing(self.program) as part:
            for missing in ([], ["-DNO_AMX"], ["-DNO_AMX", "-DNO_BF16"]):
                command = [*found, "-O2", "-pthread", *missing, str(source), "-o", str(part)]
                done = subprocess.run(command, capture_output=True, text=True)
                if done.returncode == 0:
                    return
            raise Unavailable(f"{shlex.join(command)} failed: {done.stderr.strip()[:200]}")

    def measure(self) -> None:
        """One more sample."""
        if self.failed:
            return
        time.sleep(PAUSE)
        try:
            done = subprocess.run(
                [str(self.program), *self.arguments],
                capture_output=True,
                text=True,
                check=True,
                timeout=LIMIT,
            )
            self.samples.append(json.loads(done.stdout))
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            self.failed = f"the machine's peaks are not measured: {one_line(error)}"

    def median(self) -> dict[str, Any]:
        """The figures' medians over all samples; names as they are, null where nothing was measured."""
        result: dict[str, Any] = {}
        for key, value in (self.samples[-1] if self.samples else {}).items():
            measured = isinstance(value, float)
            result[key] = statistics.median(s[key] for s in self.samples) if measured else value
        return result


# What prompts are bound by: (name, peaks.c's figure, operations a second that one of it is).
BF16_TILES = ("AMX bf16", "amx_bf16_tflops", 1e12)
BF16_VECTORS = ("AVX-512 bf16", "bf16_gflops", 1e9)
INT16 = ("int16", "int16_gops", 1e9)
FLOAT32 = ("float32", "fma_gflops", 1e9)


def matching_peak(isa: str, dtype: str) -> tuple[str, str, float]:
    """The arithmetic that pyllm's kernels for prompts use."""
    if "amx" in isa:
        return BF16_TILES
    if "bf16" in isa:
        return BF16_VECTORS
    return INT16 if dtype == "int8" else FLOAT32


def share_of_peak(
    case: Case, shape: Shape, dtype: str, isa: str, seconds: float, peaks: dict[str, Any]
) -> str:
    """How close pyllm comes to what the machine can do: for a prompt in operations, for decoding one sequence
    in bytes."""
    if case.kind == "prompt":
        name, key, unit = matching_peak(isa, dtype)
        rate, peak = shape.flops(case.n) / seconds, (peaks.get(key) or 0) * unit
    elif case.kind == "decode" or case.n == 1:
        before = BATCH_CONTEXT if case.kind == "batch" else max(1, case.n)
        name, peak = "read", (peaks.get("read_gbps") or 0) * 1e9
        rate = shape.read_bytes(dtype, before + case.steps / 2) / seconds
    else:
        return "–"
    return f"{100 * rate / peak:.0f} % of {name}" if peak else "–"


# ----------------------------------------------------------------------------------------------------------
# Measuring


@dataclass
class Measurement:
    """A case: engine -> variant -> seconds of each round; or engine -> why there are none."""

    case: Case
    rounds: int
    seconds: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def best(self, engine: str) -> str:
        """The variant with the lower median."""
        return min(self.seconds[engine], key=lambda v: statistics.median(self.seconds[engine][v]))

    def median(self, engine: str) -> float | None:
        """Seconds, or None when the engine has none."""
        if engine not in self.seconds:
            return None
        return statistics.median(self.seconds[engine][self.best(engine)])

    def speed(self, engine: str) -> float | None:
        """Tokens a second, of all sequences together."""
        median = self.median(engine)
        return None if median is None else self.case.tokens / median

    def ratio(self, ours: str, theirs: str) -> float | None:
        """How many times as fast: the median over the rounds."""
        if ours not in self.seconds or theirs not in self.seconds:
            return None
        pairs = zip(self.seconds[theirs][self.best(theirs)], self.seconds[ours][self.best(ours)], strict=True)
        return statistics.median(b / a for b, a in pairs)


def measure(case: Case, workers: Sequence[Worker], shape: Shape, repeat: int) -> Measurement:
    """Every engine once to warm up, then in each round all in turn, beginning with another one each time."""
    result = Measurement(case, repeat)
    turns = [(w, variant) for w in workers for variant in RUNNERS[ENGINES[w.name].runner].variants]

    def time_one(one: Worker, variant: str, round_: int) -> float:
        time.sleep(PAUSE)
        try:
            seconds: float = one.ask(**case.request(shape.vocab_size, round_), variant=variant)
            return seconds
        except Unavailable as error:
            result.failed[one.name] = str(error)
            result.seconds.pop(one.name, None)
            return 0.0

    warm_up = 0.0
    for one, variant in turns:
        if one.name not in result.failed:
            warm_up += time_one(one, variant, 0) * max(1, case.steps)
    if warm_up > SLOW:
        result.rounds = min(repeat, max(2, repeat // 2))
    for round_ in range(result.rounds):
        first = round_ % max(1, len(turns))
        for one, variant in turns[first:] + turns[:first]:
            if one.name in result.failed:
                continue
            seconds = time_one(one, variant, 1 + round_)
            if one.name not in result.failed:
                result.seconds.setdefault(one.name, {}).setdefault(variant, []).append(seconds)
    return result


def check_same_model(workers: Sequence[Worker], shape: Shape) -> tuple[str, dict[str, float]]:
    """The engine that the others are compared with, and by how much the logits of each differ, in standard
    deviations: the root mean square; or for one that only names a token, what the reference gives that token
    less than its own choice. An engine beyond the tolerance fails."""
    ids = np.random.default_rng(5).integers(0, shape.vocab_size - SPECIAL, CHECK_TOKENS).tolist()
    found: dict[str, Any] = {}
    for one in workers:
        try:
            found[one.name] = one.ask(command="logits", ids=ids)
        except Unavailable as error:
            one.failed = one.failed or str(error)
    whole = [name for name, logits in found.items() if isinstance(logits, list)]
    if not whole:
        return "", {}
    reference = min(
        whole, key=lambda name: TOLERANCE[ENGINES[name].dtype]
    )  # the most exact, the first of such
    expected = np.array(found[reference])
    difference = {}
    for one in workers:
        if (logits := found.get(one.name)) is None:
            continue
        if isinstance(logits, int):
            gap, most = expected.max() - expected[logits], max(TOLERANCE.values())
        else:
            gap = np.sqrt(np.mean(np.square(np.array(logits) - expected)))
            most = TOLERANCE[ENGINES[one.name].dtype]
        difference[one.name] = float(gap / expected.std())
        if not difference[one.name] <= most:  # NaN does not pass either
            one.failed = f"its logits are another model's (difference {difference[one.name]:.2f})"
    return reference, difference


def run_shape(name: str, options: argparse.Namespace, peaks: Peaks) -> dict[str, Any]:
    """All cases of a shape: a dict for the report."""
    shape, folder = SHAPES[name], model_folder(options.work, name)
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "hf").exists():
        say(f"{name}: making a model of {shape.parameters / 1e6:.1f} million random weights in {folder}")
        make_hf(folder / "hf", shape)
    with ExitStack() as stack:
        workers = []
        for engine in options.engines:
            say(f"{name}: loading {ENGINES[engine].label}")
            one = Worker(engine, name, options.work, options.threads)
            stack.callback(one.close)
            workers.append(one)
        reference, difference = check_same_model(workers, shape)
        for one in workers:
            if one.failed:
                say(f"{name}: without {ENGINES[one.name].label}: {one.failed}")
        measurements = []
        peaks.measure()
        for case in options.cases:
            chosen = [w for w in workers if options.wanted(case, w.name)]
            result = measure(case, [w for w in chosen if not w.failed], shape, options.repeat)
            result.failed |= {w.name: w.failed for w in chosen if w.failed}
            measurements.append(result)
            speeds = (f"{e} {result.speed(e):.1f}" for e in options.engines if e in result.seconds)
            say(f"{name}: {case.title}, tokens/s: {', '.join(speeds)}")
            peaks.measure()
        about = {w.name: {"how": RUNNERS[ENGINES[w.name].runner].how, **w.about} for w in workers}
    return {
        "name": name,
        "shape": shape,
        "engines": about,
        "reference": reference,
        "difference": difference,
        "measurements": measurements,
    }


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# ----------------------------------------------------------------------------------------------------------
# The report


def processor() -> str:
    """The processor's name, as the kernel tells it."""
    try:
        found = re.search(r"^(?:model name|Model)\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


def memory_gib() -> float | None:
    """The machine's memory."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    except (ValueError, OSError):
        return None


def version(package: str) -> str:
    """A package's version; of pyllm also the commit, where this is a checkout."""
    try:
        found = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        found = "not installed"
    spec = importlib.util.find_spec("pyllm") if package == "pyllm" and (ROOT / ".git").exists() else None
    if spec and spec.origin and Path(spec.origin).resolve().is_relative_to(ROOT):
        command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
        try:
            commit = subprocess.run(command, capture_output=True, text=True).stdout.strip()
        except OSError:
            commit = ""
        if commit:
            found = f"commit {commit}" if found == "not installed" else f"{found} (commit {commit})"
    return found


def machine(options: argparse.Namespace) -> dict[str, Any]:
    packages = [p for e in options.engines for p in ENGINES[e].packages]
    return {
        "processor": processor(),
        "processors": os.cpu_count(),
        "memory_gib": memory_gib(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "threads": options.threads,
        "versions": {package: version(package) for package in dict.fromkeys(packages)},
    }


def as_json(shapes: list[dict[str, Any]], about: dict[str, Any], peaks: Peaks) -> str:
    """Everything, the raw seconds included."""

    def case(m: Measurement) -> dict[str, Any]:
        return {
            "case": str(m.case),
            "rounds": m.rounds,
            "steps": m.case.steps,
            "tokens_a_measurement": m.case.tokens,
            "seconds": m.seconds,
            "chosen": {engine: m.best(engine) for engine in m.seconds},
            "tokens_per_second": {engine: m.speed(engine) for engine in m.seconds},
            "ratios": {name: m.ratio(*pair) for name, pair in RATIOS.items()},
            "failed": m.failed,
        }

    report = {
        **about,
        "seconds_are": "of one pass over the prompt, or of one step of decoding",
        "ratios_are": "of speeds, pyllm / llama.cpp, the median over rounds",
        "difference_is": "of the logits, in standard deviations of the reference's",
        "slow": f"cases whose warm-up took over {SLOW:.0f} s have half the rounds, at least 2: see `rounds`",
        "peaks": {"median": peaks.median(), "samples": peaks.samples, "failed": peaks.failed},
        "shapes": [
            {**s, "shape": asdict(s["shape"]), "parameters": s["shape"].parameters}
            | {"measurements": [case(m) for m in s["measurements"]]}
            for s in shapes
        ],
    }
    return json.dumps(report, indent=1)


def head_lines(about: dict[str, Any], peaks: Peaks, shapes: list[dict[str, Any]]) -> list[str]:
    """What was measured on, and with what."""
    memory = f", {about['memory_gib']:.0f} GiB of memory" if about["memory_gib"] else ""
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    isas = {s["engines"].get(e, {}).get("runs_with", "") for s in shapes for e in PYLLM} - {""}
    where = f"{about['processor']}, {about['processors']} processors{memory}; {about['system']}"
    kernels = f" Kernels of pyllm: {', '.join(sorted(isas))}." if isas else ""
    lines = [f"{where}; {about['date'][:10]}.", f"{about['threads']} threads. {versions}.{kernels}"]
    figures = {
        "read_gbps": "reads {:.1f} GB/s",
        "fma_gflops": "float32 {:.0f} GFLOP/s",
        "int16_gops": "int16 {:.0f} GOP/s",
        "bf16_gflops": "AVX-512 bf16 {:.0f} GFLOP/s",
        "amx_bf16_tflops": "AMX bf16 {:.2f} TFLOP/s",
        "amx_int8_tops": "AMX int8 {:.2f} TOP/s",
    }
    median = peaks.median()
    found = [text.format(median[key]) for key, text in figures.items() if median.get(key)]
    if found:
        times = f"median of {len(peaks.samples)} measurements in between"
        lines.append(f"The machine, with these threads: {', '.join(found)} ({times}).")
    elif peaks.failed:
        lines.append(f"{peaks.failed[:1].upper()}{peaks.failed[1:]}.")
    return lines


PYLLM = ("pyllm-int8", "pyllm-fp16")


def table(shape: dict[str, Any], engines: Sequence[str], peaks: dict[str, Any]) -> list[str]:
    """A shape's table in Markdown, with its footnotes."""
    ratios = {name: pair for name, pair in RATIOS.items() if set(pair) <= set(engines)}
    ours = [e for e in PYLLM if e in engines]
    titles = ["tokens/s", *(ENGINES[e].label for e in engines)]
    titles += [f"{name}: pyllm / llama.cpp" for name in ratios]
    titles += [f"{ENGINES[e].label}, of the peak" for e in ours]
    notes: list[str] = []

    def dash(reason: str | None) -> str:
        if reason is None:
            return "–"
        if reason not in notes:
            notes.append(reason)
        return f"– [{notes.index(reason) + 1}]"

    rows = []
    for m in shape["measurements"]:
        cells = [m.case.title]
        for e in engines:
            cells.append(figure(m.speed(e)) if e in m.seconds else dash(m.failed.get(e)))
        for pair in ratios.values():
            ratio = m.ratio(*pair)
            cells.append("–" if ratio is None else f"{ratio:.2f}")
        for e in ours:
            isa, seconds = shape["engines"][e].get("runs_with", ""), m.median(e)
            share = seconds and share_of_peak(m.case, shape["shape"], ENGINES[e].dtype, isa, seconds, peaks)
            cells.append(share or "–")
        rows.append(cells)
    rule = ["---"] + ["--:"] * (len(titles) - 1)
    lines = ["| " + " | ".join(cells) + " |" for cells in (titles, rule, *rows)]
    return lines + [line for i, note in enumerate(notes) for line in ("", f"[{i + 1}] {note}.")]


def figure(speed: float) -> str:
    """Three digits at least, no more than one after the point."""
    return f"{speed:,.0f}" if speed >= 100 else f"{speed:.1f}"


def as_markdown(
    shapes: list[dict[str, Any]], about: dict[str, Any], peaks: Peaks, engines: Sequence[str]
) -> str:
    lines = [*head_lines(about, peaks, shapes), ""]
    lines += [
        f"Random weights; the median of {about['repeat']}, between which all programs take turns; sequences "
        "together are summed. Ratios above 1: pyllm is faster. Made by",
        "",
        f"    {about['command']}",
        "",
    ]
    for shape in shapes:
        fewer = sorted({m.rounds for m in shape["measurements"]} - {about["repeat"]})
        parts = [f"{shape['shape'].parameters / 1e6:.1f} million parameters"]
        if fewer:
            slow = [m.case.title for m in shape["measurements"] if m.rounds in fewer]
            parts.append(f"{', '.join(slow)}: the median of {fewer[0]}")
        others = {e: d for e, d in shape["difference"].items() if e != shape["reference"]}
        if others:
            label, most = ENGINES[shape["reference"]].label, max(others.values())
            parts.append(f"logits differ from {label}'s by up to {most:.3f} of their standard deviation")
        lines += [f"### {shape['name']}", "", f"{'; '.join(parts)}.", ""]
        lines += [*table(shape, engines, peaks.median()), ""]
    return "\n".join(lines)


COLOURS = {
    "pyllm-int8": "#c1272d",
    "pyllm-fp16": "#f08a5d",
    "llamacpp-q8_0": "#1f4e9c",
    "llamacpp-f16": "#7aa6e0",
    "openvino-int8": "#1b7f5c",
    "openvino-fp16": "#76c7a4",
    "ctranslate2-int8": "#7b4ea3",
    "transformers-bf16": "#8a8a8a",
}


def draw(shapes: list[dict[str, Any]], about: dict[str, Any], engines: Sequence[str], path: Path) -> None:
    """The plot: a row of two panels for each shape."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = (
        ("prompt", "prompt length (tokens)", "prompt"),
        ("batch", "sequences together", "decoding, all sequences"),
    )
    size = (10, 0.8 + 3.6 * len(shapes))
    figure_, axes = plt.subplots(len(shapes), 2, figsize=size, squeeze=False, layout="constrained")
    for shape, row in zip(shapes, axes, strict=True):
        for (kind, label, title), ax in zip(panels, row, strict=True):
            xs = sorted({m.case.n for m in shape["measurements"] if m.case.kind == kind})
            for engine in engines:
                points = [
                    (m.case.n, m.speed(engine))
                    for m in sorted(shape["measurements"], key=lambda m: m.case.n)
                    if m.case.kind == kind and engine in m.seconds
                ]
                if points:
                    style = dict(color=COLOURS[engine], marker="o", markersize=4, linewidth=1.6)
                    ax.plot(*zip(*points, strict=True), label=ENGINES[engine].label, **style)
            ax.set_xscale("log", base=2)
            ax.set_yscale("log")
            ax.set_xticks(xs, [str(x) for x in xs])
            ax.minorticks_off()
            speed_ticks(ax)
            ax.set_xlabel(label)
            ax.set_ylabel("tokens/s")
            ax.set_title(f"{shape['name']}: {title}", fontsize=10, loc="left")
            ax.grid(color="#e5e5e5", linewidth=0.6)
            ax.spines[["top", "right"]].set_visible(False)
    handles = {
        text: handle for ax in axes.flat for handle, text in zip(*ax.get_legend_handles_labels(), strict=True)
    }
    labels = [ENGINES[e].label for e in engines if ENGINES[e].label in handles]
    figure_.legend([handles[t] for t in labels], labels, loc="outside lower center", ncols=4, frameon=False)
    figure_.suptitle(f"{about['processor']}, {about['threads']} threads, {about['date'][:10]}", fontsize=10)
    with replacing(path) as part:
        figure_.savefig(part, dpi=150, format="png")
    plt.close(figure_)


def speed_ticks(ax: Any) -> None:
    """Plain numbers, 1, 2 and 5 of each decade, on an axis that shows all points with some room."""
    low, high = ax.get_ylim()
    ticks = [m * 10.0**e for e in range(-2, 7) for m in (1, 2, 5) if low <= m * 10.0**e <= high]
    ax.set_yticks(ticks, [f"{tick:,g}" for tick in ticks])
    ax.set_ylim(low, high)


# ----------------------------------------------------------------------------------------------------------
# The command line


def names(known: Sequence[str], what: str) -> Callable[[str], list[str]]:
    """An argument type: names from `known`, separated by commas."""

    def parse(text: str) -> list[str]:
        chosen = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
        for name in chosen:
            if name not in known:
                raise argparse.ArgumentTypeError(f"unknown {what} {name!r}; known are {', '.join(known)}")
        if not chosen:
            raise argparse.ArgumentTypeError(f"no {what} given")
        return chosen

    return parse


def cases(text: str) -> list[Case]:
    """An argument type: cases such as prompt512,decode0,batch16."""
    found = []
    for name in (part.strip() for part in text.split(",") if part.strip()):
        match = re.fullmatch(r"(prompt|decode|batch)(\d{1,5})", name)
        if not match:
            raise argparse.ArgumentTypeError(
                f"unknown case {name!r}; known are prompt, decode and batch with a number, as in prompt512"
            )
        case = Case(match[1], int(match[2]))
        room = {"prompt": CONTEXT, "decode": CONTEXT - DECODE_STEPS, "batch": 64}[case.kind]
        if not (case.kind != "decode") <= case.n <= room:
            least = int(case.kind != "decode")
            raise argparse.ArgumentTypeError(f"case {name!r}: the number must be from {least} to {room}")
        found.append(case)
    if not found:
        raise argparse.ArgumentTypeError("no case given")
    return list(dict.fromkeys(found))


def positive(text: str) -> int:
    """An argument type."""
    if not re.fullmatch(r"\d{1,4}", text) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return int(text)


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m tools.bench",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Measures pyllm and other programs on the same random model, on the CPU, taking turns.",
        epilog="engines: " + ", ".join(ENGINES) + "\n"
        "cases:   promptN   one pass over N tokens into an empty cache, the logits of the last\n"
        "         decodeN   single tokens after N tokens\n"
        f"         batchN    N sequences decoding together, each after {BATCH_CONTEXT} tokens\n"
        "All programs hold their model at the same time: with all engines 1B takes about 20 GB of memory\n"
        "and 10 GB of disk, 135M 4 GB and 1.5 GB. All engines, their model files and the plot need\n"
        "    pip install llama-cpp-python openvino-genai ctranslate2 transformers torch gguf matplotlib",
    )
    p.add_argument(
        "--shapes",
        type=names(list(SHAPES), "shape"),
        default=["135M"],
        metavar="NAMES",
        help=f"shapes of models, of {', '.join(SHAPES)} (default: 135M)",
    )
    p.add_argument(
        "--engines",
        type=names(list(ENGINES), "engine"),
        metavar="NAMES",
        help="programs to measure, see below (default: all that are installed)",
    )
    p.add_argument(
        "--cases",
        type=cases,
        metavar="NAMES",
        help="cases, see below, which every engine runs (default: "
        f"{', '.join(map(str, CASES))}; of these other engines than pyllm and llama.cpp run only "
        f"{', '.join(map(str, FEWER_CASES))})",
    )
    p.add_argument("--all", action="store_true", help="all engines run all default cases")
    p.add_argument(
        "--repeat",
        type=positive,
        default=5,
        metavar="N",
        help="rounds (default: %(default)s; half for slow cases)",
    )
    p.add_argument(
        "--threads",
        type=positive,
        metavar="N",
        help="threads (default: the processors that this process may use)",
    )
    p.add_argument(
        "--work",
        type=Path,
        default=Path(tempfile.gettempdir()) / "pyllm-bench",
        metavar="DIR",
        help="where model files are made, and reused the next time (default: %(default)s)",
    )
    p.add_argument(
        "--read-mib",
        type=positive,
        default=1024,
        metavar="N",
        help="MiB that are read to measure the bandwidth, far more than caches hold (default: %(default)s)",
    )
    p.add_argument("--out", type=Path, metavar="DIR", help="write speed.md, speed.json and speed.png there")
    p.add_argument("--worker", help=argparse.SUPPRESS)
    return p


def complete(options: argparse.Namespace) -> None:
    """Fills in what was not given."""
    if options.threads is None:
        from pyllm._llm import lib

        options.threads = int(lib.llm_default_threads())
    if options.engines is None:
        options.engines = [name for name, engine in ENGINES.items() if engine.installed]
        if missing := [engine.label for engine in ENGINES.values() if not engine.installed]:
            say(f"not installed, left out: {', '.join(missing)}")
    everywhere = options.all or options.cases is not None
    options.cases = options.cases or CASES
    options.wanted = lambda case, name: everywhere or ENGINES[name].deep or case in FEWER_CASES
    options.work = options.work.absolute()


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns 0, or 1 when a folder cannot be written or nothing could be measured; wrong usage
    exits with 2."""
    given = sys.argv[1:] if argv is None else list(argv)
    options = parser().parse_args(given)
    if options.worker:
        return worker(options.worker, options.shapes[0], options.work, options.threads)
    try:
        return run(options, shlex.join(["python", "-m", "tools.bench", *without_folders(given)]))
    except (OSError, Unavailable) as error:
        say(f"bench: {one_line(error)}")
        return 1
    except ImportError as error:
        say(f"bench: {error}; build or install pyllm first (pip install .)")
        return 1
    except KeyboardInterrupt:
        say("bench: interrupted")
        return 130


def without_folders(given: Sequence[str]) -> Iterator[str]:
    """The arguments but for --work and --out, which do not change what is measured."""
    following = iter(given)
    for argument in following:
        if argument in ("--work", "--out"):
            next(following, None)
        elif not argument.startswith(("--work=", "--out=")):
            yield argument


def run(options: argparse.Namespace, command: str) -> int:
    """main, with the arguments parsed."""
    complete(options)
    for folder in (options.work, options.out):
        if folder:
            folder.mkdir(parents=True, exist_ok=True)
    date = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    about = {"date": date, "command": command, "repeat": options.repeat, **machine(options)}
    peaks = Peaks(options.work, options.threads, options.read_mib)
    if peaks.failed:
        say(peaks.failed)
    shapes = []
    for name in options.shapes:
        shapes.append(run_shape(name, options, peaks))
        text = as_markdown(shapes, about, peaks, options.engines)
        if options.out:  # after each shape: an interrupted run has what it measured
            write_text(options.out / "speed.md", text)
            write_text(options.out / "speed.json", as_json(shapes, about, peaks))
            try:
                draw(shapes, about, options.engines, options.out / "speed.png")
            except ImportError as error:
                say(f"no speed.png: {error}")
    print(text)
    return 0 if any(m.seconds for shape in shapes for m in shape["measurements"]) else 1
