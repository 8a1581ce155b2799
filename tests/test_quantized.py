"""Quantized checkpoints: GPTQ, AWQ, compressed-tensors, MXFP4 and block-wise FP8 are the float32 values that
they stand for, bit for bit, and what cannot be read is named.

Here the formats are written as their specifications have them, with numpy alone: codes as one long number.
The last part lets the formats' own libraries write and read them (extra `oracle`), else it is skipped."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyllm.tools import huggingface, packed, plan, quantized, sources
from pyllm.tools.convert import convert
from pyllm.tools.sources import ConvertError
from pyllm.tools.tensors import canonical, named
from pyllm.tools.model import describe

from tools.checkpoints import safetensors_head

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_act": "silu",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 70,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}
NUMPY = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I8": "i1", "U8": "u1"}
NUMPY |= {"F8_E4M3": "u1", "F8_E5M2": "u1", "F8_E8M0": "u1", "BF16": "<u2"}


@dataclass
class Stored:
    """A tensor as a file has it: of the small floats, the codes."""

    dtype: str
    array: np.ndarray


Matrix = tuple[dict[str, Stored], np.ndarray]  # what follows the module's name, and the float32 values
Maker = Callable[[np.random.Generator, int, int], Matrix]


@dataclass
class Format:
    """A way to write a matrix, and what config.json says of it."""

    make: Maker
    section: dict[str, Any]
    rest: dict[str, Stored] = field(default_factory=dict)  # whatever else the file has


# ---------------------------------------------------------------------------------------------------------
# Writing


def stream(codes: np.ndarray, bits: int) -> np.ndarray:
    """Rows of codes as rows of words: the codes of a row are one number, the first the lowest."""
    out = []
    for row in codes.tolist():
        number = sum(code << (bits * i) for i, code in enumerate(row))
        out.append(np.frombuffer(number.to_bytes(-(-len(row) * bits // 32) * 4, "little"), "<i4"))
    return np.stack(out)


def halves(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Scales that fp16 holds."""
    return (rng.integers(20, 200, shape) / 16384).astype(np.float16)


def gptq(
    bits: int, group: int, version: str = "gptq", desc_act: bool = False, sym: bool = True, g_idx: bool = True
) -> Format:
    def make(rng: np.random.Generator, rows: int, cols: int) -> Matrix:
        size = cols if group == -1 else group
        groups = -(-cols // size)
        index = np.arange(cols) // size
        if desc_act:
            index = rng.permutation(index)
        q = rng.integers(0, 1 << bits, (rows, cols))
        scales = halves(rng, rows, groups)
        lowest = 1 if version == "gptq" else 0  # which the first version cannot say
        zeros = rng.integers(lowest, 1 << bits, (rows, groups))
        if sym:
            zeros[:] = 1 << (bits - 1)
        w = (q - zeros[:, index]).astype(np.float32) * scales.astype(np.float32)[:, index]
        stored = {
            ".qweight": Stored("I32", stream(q, bits).T),
            ".qzeros": Stored("I32", stream(zeros.T - lowest, bits)),
            ".scales": Stored("F16", scales.T),
            ".g_idx": Stored("I32", index),
        }
        if not g_idx:
            del stored[".g_idx"]
        return stored, w

    section = {"quant_method": "gptq", "bits": bits, "group_size": group, "desc_act": desc_act, "sym": sym}
    return Format(make, section | {"checkpoint_format": version})


def awq(group: int, version: str = "gemm") -> Format:
    def make(rng: np.random.Generator, rows: int, cols: int) -> Matrix:
        size = cols if group == -1 else group
        groups = cols // size
        q, zeros = rng.integers(0, 16, (rows, cols)), rng.integers(0, 16, (rows, groups))
        scales = halves(rng, rows, groups)
        index = np.arange(cols) // size
        w = (q - zeros[:, index]).astype(np.float32) * scales.astype(np.float32)[:, index]
        if version == "gemv":
            words = -(-groups // 8)
            words = -(-words // max(1, 128 // size)) * max(1, 128 // size)
            wide = np.zeros((2, rows, words * 8))
            wide[0, :, :groups], wide[1, :, :groups] = zeros, scales
            return {
                ".qweight": Stored("I32", stream(q, 4)),
                ".qzeros": Stored("I32", stream(wide[0].astype(int), 4)),
                ".scales": Stored("F16", wide[1]),
            }, w
        order = [0, 2, 4, 6, 1, 3, 5, 7]  # of a word's eight, from its lowest nibble on

        def words_of(codes: np.ndarray) -> Stored:
            return Stored("I32", stream(codes.reshape(len(codes), -1, 8)[..., order].reshape(codes.shape), 4))

        return {
            ".qweight": words_of(q.T),
            ".qzeros": words_of(zeros.T),
            ".scales": Stored("F16", scales.T),
        }, w

    section = {"quant_method": "awq", "bits": 4, "group_size": group, "zero_point": True}
    return Format(make, section | {"version": version})


def fp8(block: tuple[int, int] | None, scale_dtype: str = "F32") -> Format:
    def make(rng: np.random.Generator, rows: int, cols: int) -> Matrix:
        codes = rng.integers(0, 256, (rows, cols)).astype(np.uint8)
        codes[codes & 0x7F == 0x7F] = 0  # NaN
        height, width = block or (rows, cols)
        shape = -(-rows // height), -(-cols // width)
        scales = rng.random(shape).astype(np.float32) / 1000
        stored = Stored("F32", scales)
        if scale_dtype in ("U8", "F8_E8M0"):
            exponents = rng.integers(110, 120, shape)
            stored, scales = Stored(scale_dtype, exponents), np.float32(2) ** (exponents - 127)
        if block is None:
            stored.array = stored.array.reshape(())
        whole = np.repeat(np.repeat(scales, height, 0), width, 1)[:rows, :cols].astype(np.float32)
        w = sources.E4M3[codes] * whole
        return {".weight": Stored("F8_E4M3", codes), ".weight_scale_inv": stored}, w

    section = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": block}
    return Format(make, section, {"model.layers.0.self_attn.q_proj.activation_scale": one(0.5)})


def one(value: float) -> Stored:
    return Stored("F32", np.array(value))


def save_raw(path: Path, tensors: dict[str, Stored]) -> None:
    data = {name: t.array.astype(NUMPY[t.dtype]).tobytes() for name, t in tensors.items()}
    head = safetensors_head((name, t.dtype, t.array.shape, len(data[name])) for name, t in tensors.items())
    path.write_bytes(head + b"".join(data.values()))


def save(folder: Path, config: dict[str, Any], tensors: dict[str, Stored]) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_raw(folder / "model.safetensors", tensors)
    return folder


def modules(config: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """The matrices of a Llama that are quantized, with rows and columns."""
    dim, ffn = config["hidden_size"], config["intermediate_size"]
    head = config.get("head_dim") or dim // config["num_attention_heads"]
    q, kv = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    shapes = {"self_attn.q_proj": (q, dim), "self_attn.k_proj": (kv, dim), "self_attn.v_proj": (kv, dim)}
    shapes |= {"self_attn.o_proj": (dim, q), "mlp.down_proj": (dim, ffn)}
    shapes |= {"mlp.gate_proj": (ffn, dim), "mlp.up_proj": (ffn, dim)}
    n = config["num_hidden_layers"]
    return {f"model.layers.{i}.{name}": shape for i in range(n) for name, shape in shapes.items()}


def unquantized(config: dict[str, Any], rng: np.random.Generator) -> dict[str, Stored]:
    """The other tensors of a Llama."""
    dim = config["hidden_size"]
    tensors = {f"{name}.weight": rng.normal(size=(config["vocab_size"], dim)) for name in
               ("model.embed_tokens", "lm_head")}  # fmt: skip
    norms = ["model.norm"]
    for i in range(config["num_hidden_layers"]):
        norms += [f"model.layers.{i}.{name}" for name in ("input_layernorm", "post_attention_layernorm")]
    tensors |= {f"{name}.weight": rng.normal(size=dim) for name in norms}
    return {name: Stored("F16", array.astype(np.float16)) for name, array in tensors.items()}


def checkpoints(tmp_path: Path, form: Format, config: dict[str, Any] = LLAMA) -> tuple[Path, Path]:
    """A tiny model quantized, and the same model with its values in float32."""
    rng = np.random.default_rng(0)
    rest = unquantized(config, rng)
    there, plain = dict(rest) | form.rest, dict(rest)
    for module, (rows, cols) in modules(config).items():
        stored, w = form.make(rng, rows, cols)
        there |= {module + end: tensor for end, tensor in stored.items()}
        plain[f"{module}.weight"] = Stored("F32", w)
    section = {"quantization_config": form.section}
    return save(tmp_path / "there" / "tiny", config | section, there), save(
        tmp_path / "plain" / "tiny", config, plain
    )


def read(form: Format, rows: int, cols: int, seed: int = 0) -> tuple[sources.Tensor, np.ndarray, Any]:
    """One matrix through the reader, its values, and what keeps its file open."""
    raise NotImplementedError


@pytest.fixture
def one_matrix(tmp_path: Path) -> Any:
    """Writes one matrix in a format, and opens it: the tensor that the converter has, and its values."""
    opened: list[sources.File] = []

    def make(form: Format, rows: int, cols: int) -> tuple[sources.Tensor, np.ndarray]:
        stored, w = form.make(np.random.default_rng(1), rows, cols)
        path = tmp_path / f"one{len(opened)}.safetensors"
        save_raw(path, {"m" + end: tensor for end, tensor in stored.items()})
        dtypes = sources.PLAIN | sources.STORED
        found = huggingface.read_safetensors(path, opened, dtypes)
        return quantized.dequantized({"quantization_config": form.section}, found)["m.weight"], w

    yield make
    for file in opened:
        file.close()


def same_bits(one: np.ndarray, other: np.ndarray) -> bool:
    return one.shape == other.shape and np.array_equal(one.view(np.uint32), other.view(np.uint32))


def check_rows(tensor: sources.Tensor, w: np.ndarray) -> None:
    """All rows at once, and pieces that begin and end anywhere."""
    assert tensor.shape == w.shape
    got = tensor.read(0, tensor.rows)
    assert got.dtype == np.float32 and np.array_equal(got, w)
    for start, stop in ((0, 1), (1, 5), (7, 9), (tensor.rows - 3, tensor.rows), (5, tensor.rows - 1)):
        assert same_bits(tensor.read(start, stop), got[start:stop])


# ---------------------------------------------------------------------------------------------------------
# Formats


GPTQ = {
    "4 bits by 128": gptq(4, 128),
    "4 bits by 32, not symmetric": gptq(4, 32, sym=False),
    "4 bits by 64, v2": gptq(4, 64, version="gptq_v2", sym=False),
    "4 bits, all columns": gptq(4, -1),
    "4 bits by 32, act order": gptq(4, 32, desc_act=True, sym=False),
    "4 bits without g_idx": gptq(4, 32, g_idx=False, sym=False),
    "2 bits": gptq(2, 32, sym=False),
    "3 bits": gptq(3, 64, sym=False),
    "3 bits, act order, v2": gptq(3, 32, version="gptq_v2", desc_act=True, sym=False),
    "8 bits": gptq(8, 32, sym=False),
    "8 bits, v2": gptq(8, -1, version="gptq_v2", sym=False),
}
AWQ = {
    "by 128": awq(128),
    "by 32": awq(32),
    "all columns": awq(-1),
    "exllama": awq(64, "exllama"),
    "gemv by 128": awq(128, "gemv"),
    "gemv by 32": awq(32, "gemv"),
}
FP8 = {
    "by 128": fp8((128, 128)),
    "by 32 x 48, which divides nothing": fp8((32, 48)),
    "one scale": fp8(None),
    "powers of two": fp8((64, 64), "F8_E8M0"),
    "powers of two in bytes": fp8((64, 64), "U8"),
}
ALL = {f"{kind} {name}": form for kind, forms in (("gptq", GPTQ), ("awq", AWQ), ("fp8", FP8))
       for name, form in forms.items()}  # fmt: skip


@pytest.mark.parametrize("name", ALL)
def test_a_matrix_is_what_its_format_says(one_matrix, name):
    check_rows(*one_matrix(ALL[name], 96, 384))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_gptq_of_sizes_that_fill_no_words(one_matrix, bits):
    check_rows(*one_matrix(gptq(bits, 32, sym=False), 37, 77))


@pytest.mark.parametrize("dtype", ["fp16", "int8"])
@pytest.mark.parametrize("name", ["gptq 4 bits by 32, act order", "gptq 3 bits", "awq by 32", "fp8 by 128"])
def test_a_whole_model_gives_the_file_of_its_values(tmp_path, name, dtype):
    files = []
    for folder in checkpoints(tmp_path, ALL[name]):
        report = convert(folder, out := folder.parent / "out.llm", tokenizer=False, dtype=dtype)
        files.append(out.read_bytes())
        told = [note for note in report.notes if "quantized" in note]
        assert len(told) == (folder.parent.name == "there") and not any("not known" in n for n in report.notes)
    assert files[0] == files[1]
