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
from pyllm.tools.model import describe
from pyllm.tools.sources import ConvertError

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


def fp8(block: tuple[int, int] | None, scale_dtype: str = "F32", end: str = "_scale_inv") -> Format:
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
        return {".weight": Stored("F8_E4M3", codes), ".weight" + end: stored}, w

    section = {"quant_method": "fp8", "activation_scheme": "dynamic"}
    section["weight_block_size"] = list(block) if block else None
    return Format(make, section, {"model.layers.0.self_attn.q_proj.activation_scale": one(0.5)})


def packed_ints(bits: int, group: int, sym: bool = True) -> Format:
    """pack-quantized, of compressed-tensors."""

    def make(rng: np.random.Generator, rows: int, cols: int) -> Matrix:
        q, index = rng.integers(0, 1 << bits, (rows, cols)), np.arange(cols) // group
        scales, zeros = halves(rng, rows, cols // group), rng.integers(0, 1 << bits, (rows, cols // group))
        if sym:
            zeros[:] = 1 << (bits - 1)
        w = (q - zeros[:, index]).astype(np.float32) * scales.astype(np.float32)[:, index]
        stored = {
            ".weight_packed": Stored("I32", stream(q, bits)),
            ".weight_shape": Stored("I64", np.array([rows, cols])),
            ".weight_scale": Stored("F16", scales),
        }
        return stored | ({} if sym else {".weight_zero_point": Stored("I32", stream(zeros.T, bits).T)}), w

    given = {"num_bits": bits, "type": "int", "symmetric": sym, "strategy": "group", "group_size": group}
    group_0 = {"targets": ["Linear"], "weights": given, "input_activations": None}
    section = {"quant_method": "compressed-tensors", "format": "pack-quantized", "ignore": ["lm_head"]}
    return Format(make, section | {"config_groups": {"group_0": group_0}})


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


def checkpoints(
    tmp_path: Path,
    form: Format,
    config: dict[str, Any] = LLAMA,
    matrices: dict[str, tuple[int, int]] | None = None,
    more: dict[str, Stored] | None = None,
) -> tuple[Path, Path]:
    """A tiny model quantized, and the same model with its values in float32. `matrices`: those that are
    quantized, a Llama's without this; `more`: the same tensors for both."""
    rng = np.random.default_rng(0)
    rest = unquantized(config, rng) | (more or {})
    there, plain = dict(rest) | form.rest, dict(rest)
    for module, (rows, cols) in (matrices or modules(config)).items():
        stored, w = form.make(rng, rows, cols)
        there.pop(f"{module}.weight", None)
        there |= {module + end: tensor for end, tensor in stored.items()}
        plain[f"{module}.weight"] = Stored("F32", w)
    section = {"quantization_config": form.section}
    return save(tmp_path / "there" / "tiny", config | section, there), save(
        tmp_path / "plain" / "tiny", config, plain
    )


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
PACKED = {
    "4 bits by 32": packed_ints(4, 32),
    "4 bits by 128 with zero points": packed_ints(4, 128, sym=False),
    "3 bits with zero points": packed_ints(3, 64, sym=False),
    "8 bits with zero points": packed_ints(8, 32, sym=False),
}
FP8 = {
    "by 128": fp8((128, 128)),
    "by 32 x 48, which divides nothing": fp8((32, 48)),
    "one scale": fp8(None),
    "one scale of AutoFP8": fp8(None, end="_scale"),
    "powers of two": fp8((64, 64), "F8_E8M0"),
    "powers of two in bytes": fp8((64, 64), "U8"),
}
KINDS = {"gptq": GPTQ, "awq": AWQ, "fp8": FP8, "packed": PACKED}
ALL = {f"{kind} {name}": form for kind, forms in KINDS.items() for name, form in forms.items()}


@pytest.mark.parametrize("name", ALL)
def test_a_matrix_is_what_its_format_says(one_matrix, name):
    check_rows(*one_matrix(ALL[name], 96, 384))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_gptq_of_sizes_that_fill_no_words(one_matrix, bits):
    check_rows(*one_matrix(gptq(bits, 32, sym=False), 37, 77))


def mxfp4(experts: int, rows: int, groups: int, exponents: tuple[int, int]) -> Matrix:
    """A stack as gpt-oss has it."""
    rng = np.random.default_rng(2)
    codes = rng.integers(0, 16, (experts, rows, groups, 32))
    scales = rng.integers(*exponents, (experts, rows, groups))
    meaning = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
    w = meaning[codes] * np.ldexp(np.float32(1), scales - 127)[..., None]
    blocks = codes[..., 0::2] | codes[..., 1::2] << 4
    stored = {"_blocks": Stored("U8", blocks), "_scales": Stored("U8", scales)}
    return stored, w.reshape(experts, rows, groups * 32)


def open_mxfp4(tmp_path: Path, stored: dict[str, Stored]) -> tuple[sources.Tensor, list[sources.File]]:
    files: list[sources.File] = []
    name = "model.layers.0.mlp.experts.gate_up_proj"
    save_raw(tmp_path / "x.safetensors", {name + end: tensor for end, tensor in stored.items()})
    found = huggingface.read_safetensors(tmp_path / "x.safetensors", files, sources.PLAIN | sources.STORED)
    config = {"quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}}
    return quantized.dequantized(config, found)[name], files


def test_mxfp4_stacks_are_what_their_format_says(tmp_path):
    stored, w = mxfp4(3, 20, 4, (0, 250))
    tensor, files = open_mxfp4(tmp_path, stored)
    assert tensor.shape == (3, 20, 128)
    assert same_bits(tensor.read(0, 60).reshape(w.shape), w)
    assert same_bits(tensor.read(19, 41), w.reshape(60, -1)[19:41])
    parts = sources.unstack(tensor, ("{e}.gate", "{e}.up"), 3)
    assert same_bits(parts["2.up"].read(3, 9), w[2, 13:19])
    for file in files:
        file.close()


def test_small_floats_are_those_of_the_ocp_and_of_ieee():
    assert sources.E2M1.tolist()[:8] == [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    e4m3 = {0x00: 0, 0x01: 2**-9, 0x07: 7 * 2**-9, 0x08: 2**-6, 0x38: 1, 0x7E: 448, 0xC0: -2, 0xFE: -448}
    e5m2 = {0x01: 2**-16, 0x04: 2**-14, 0x3C: 1, 0x7B: 57344, 0x7C: np.inf, 0xFC: -np.inf, 0xC0: -2}
    e8m0 = {0x00: 2.0**-127, 0x7F: 1, 0x80: 2, 0xFE: 2.0**127}
    e2m3 = {0x01: 1 / 8, 0x08: 1, 0x1F: 7.5, 0x28: -1}
    for table, known in (
        (sources.E4M3, e4m3),
        (sources.E5M2, e5m2),
        (sources.E8M0, e8m0),
        (sources.E2M3, e2m3),
    ):
        assert {code: table[code] for code in known} == known
    assert np.flatnonzero(np.isnan(sources.E4M3)).tolist() == [0x7F, 0xFF]
    assert np.flatnonzero(np.isnan(sources.E8M0)).tolist() == [0xFF]


# ---------------------------------------------------------------------------------------------------------
# Whole models


def convert_both(folders: tuple[Path, Path], **options: Any) -> tuple[bytes, bytes, list[str]]:
    """The files of both, and what is noted of the quantized one alone."""
    files, notes = [], []
    for folder in folders:
        report = convert(folder, out := folder.parent / "out.llm", tokenizer=False, **options)
        files.append(out.read_bytes())
        notes.append(report.notes)
    return files[0], files[1], [note for note in notes[0] if note not in notes[1]]


WHOLE = ["gptq 4 bits by 32, act order", "gptq 3 bits", "awq by 32", "fp8 by 128", "packed 4 bits by 32"]


@pytest.mark.parametrize("dtype", ["fp16", "int8"])
@pytest.mark.parametrize("name", WHOLE)
def test_a_whole_model_gives_the_file_of_its_values(tmp_path, name, dtype):
    there, plain, notes = convert_both(checkpoints(tmp_path, ALL[name]), dtype=dtype)
    assert there == plain
    assert len(notes) == 1 and "the weights are quantized" in notes[0]


def test_biases_and_a_quantized_output_matrix(tmp_path):
    """AutoGPTQ writes a bias of zeros for modules that have none."""
    rng, more = np.random.default_rng(5), {}
    for module, (rows, _) in modules(LLAMA).items():
        qkv = module.endswith(("q_proj", "k_proj", "v_proj"))
        more[f"{module}.bias"] = Stored("F16", rng.normal(size=rows) if qkv else np.zeros(rows))
    matrices = modules(LLAMA) | {"lm_head": (70, 64)}
    config = LLAMA | {"attention_bias": True}
    folders = checkpoints(tmp_path, gptq(4, 32, sym=False), config, matrices, more)
    content = (folders[0] / "model.safetensors").read_bytes()
    assert b"lm_head.qweight" in content and b"lm_head.weight" not in content
    there, plain, _ = convert_both(folders)
    assert there == plain


def test_fused_matrices(tmp_path):
    config = LLAMA | {"architectures": ["Phi3ForCausalLM"]}
    matrices = {name: shape for name, shape in modules(config).items() if "o_proj" in name or "down" in name}
    for i in range(2):
        matrices[f"model.layers.{i}.self_attn.qkv_proj"] = (128, 64)
        matrices[f"model.layers.{i}.mlp.gate_up_proj"] = (256, 64)
    there, plain, _ = convert_both(checkpoints(tmp_path, gptq(4, 32, sym=False), config, matrices))
    assert there == plain


def test_experts(tmp_path):
    config = LLAMA | {
        "architectures": ["MixtralForCausalLM"],
        "num_local_experts": 3,
        "num_experts_per_tok": 2,
    }
    matrices = {name: shape for name, shape in modules(config).items() if "self_attn" in name}
    more = {}
    for i in range(2):
        block = f"model.layers.{i}.block_sparse_moe."
        more[block + "gate.weight"] = Stored("F16", np.random.default_rng(i).normal(size=(3, 64)))
        for e in range(3):
            for name, shape in (("w1", (128, 64)), ("w3", (128, 64)), ("w2", (64, 128))):
                matrices[f"{block}experts.{e}.{name}"] = shape
    there, plain, _ = convert_both(checkpoints(tmp_path, awq(64), config, matrices, more))
    assert there == plain


def test_shards_may_part_a_matrix(tmp_path):
    folders = checkpoints(tmp_path, gptq(4, 32))
    folder, opened, shards = folders[0], [], [{}, {}]
    found = huggingface.read_safetensors(folder / "model.safetensors", opened, sources.PLAIN | sources.STORED)
    for i, (name, tensor) in enumerate(found.items()):
        raw = tensor.raw(0, tensor.rows).reshape(-1).view(NUMPY[tensor.dtype])
        shards[i % 2][name] = Stored(tensor.dtype, raw.reshape(tensor.shape))
    opened[0].close()
    (folder / "model.safetensors").unlink()
    where = {}
    for i, tensors in enumerate(shards):
        save_raw(folder / f"model-0000{i + 1}-of-00002.safetensors", tensors)
        where |= dict.fromkeys(tensors, f"model-0000{i + 1}-of-00002.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    there, plain, _ = convert_both(folders)
    assert there == plain


@pytest.mark.parametrize(
    ("form", "name", "content"),
    [
        (gptq(4, 32), "quantize_config.json", {"bits": 4, "group_size": 32, "damp_percent": 0.01}),
        (
            awq(32),
            "quant_config.json",
            {"zero_point": True, "q_group_size": 32, "w_bit": 4, "version": "GEMM"},
        ),
    ],
)
def test_the_quantizers_own_file_serves_where_config_json_says_nothing(tmp_path, form, name, content):
    folders = checkpoints(tmp_path, form)
    (folders[0] / "config.json").write_text(json.dumps(LLAMA))
    with pytest.raises(ConvertError, match=r"qweight is I32; F64, F32, F16, BF16 can be converted"):
        convert_both(folders)
    (folders[0] / name).write_text(json.dumps(content))
    there, plain, _ = convert_both(folders)
    assert there == plain


def test_modules_of_their_own_bits(tmp_path):
    """GPTQModel's `dynamic`."""
    config = LLAMA | {"num_hidden_layers": 1}
    rng, names = np.random.default_rng(0), list(modules(config).items())
    rest = unquantized(config, rng)
    there, plain = dict(rest), dict(rest)
    for (module, (rows, cols)), form in zip(names, (gptq(4, 32), gptq(8, 64), gptq(3, 32)) * 3, strict=False):
        stored, w = form.make(rng, rows, cols)
        there |= {module + end: tensor for end, tensor in stored.items()}
        plain[f"{module}.weight"] = Stored("F32", w)
    section = gptq(4, 32).section | {"dynamic": {r"+:.*\.k_proj": {"bits": 8, "group_size": 64}}}
    folders = (
        save(tmp_path / "there" / "tiny", config | {"quantization_config": section}, there),
        save(tmp_path / "plain" / "tiny", config, plain),
    )
    file, expected, _ = convert_both(folders)
    assert file == expected


def test_plan_counts_the_models_parameters(tmp_path):
    there, plain = checkpoints(tmp_path, gptq(4, 32))
    plans = [plan.make(json.loads((folder / "config.json").read_text())) for folder in (there, plain)]
    assert plans[0].parameters == plans[1].parameters and plans[0].needs == plans[1].needs
    assert [note for note in plans[0].notes if note not in plans[1].notes] == [
        "the weights are quantized (GPTQ, 4 bits), and read as the numbers that they stand for"
    ]
    with pytest.raises(ConvertError, match="quant_method is 'bitsandbytes'; gptq, awq, compressed-tensors"):
        plan.make(LLAMA | {"quantization_config": {"quant_method": "bitsandbytes"}})


def test_the_shelf_keeps_no_more_than_it_may(tmp_path, monkeypatch):
    there, plain = checkpoints(tmp_path, gptq(4, 32))
    config = json.loads((there / "config.json").read_text())
    shelves: list[packed.Shelf] = []

    class Watched(packed.Shelf):
        def __init__(self) -> None:
            super().__init__()
            shelves.append(self)

        def bytes_of(self, tensor):
            found = super().bytes_of(tensor)
            total = sum(raw.nbytes for raw in self.kept.values())
            assert total <= packed.HELD or len(self.kept) == 1
            return found

    monkeypatch.setattr(quantized, "Shelf", Watched)
    for held in (9000, 1):
        monkeypatch.setattr(packed, "HELD", held)
        files = convert_both((there, plain))
        assert files[0] == files[1]
    assert len(shelves) == 2 and describe(config).shape.dim == 64


# ---------------------------------------------------------------------------------------------------------
# Grids


def check_grid(tensor: sources.Tensor) -> None:
    """The grid gives the tensor's values, in any piece."""
    grid = tensor.grid()
    assert grid is not None and grid.codebook.dtype == np.int8 and grid.codebook.shape == (16,)
    for start, stop in ((0, tensor.rows), (3, 10)):
        codes, scales = grid.codes(start, stop), grid.scales(start, stop)
        assert codes.dtype == np.uint8 and codes.shape == (stop - start, tensor.cols) and codes.max() < 16
        assert scales.dtype == np.float16 and scales.shape == (stop - start, tensor.cols // 32)
        wide = np.repeat(scales.astype(np.float32), 32, axis=1)
        assert np.array_equal(grid.codebook[codes].astype(np.float32) * wide, tensor.read(start, stop))


@pytest.mark.parametrize(
    "form", [gptq(4, 32), gptq(4, 128), gptq(4, -1), gptq(3, 64), gptq(2, 32), gptq(4, 32, version="gptq_v2")]
)
def test_symmetric_integers_of_four_bits_or_fewer_have_a_grid(one_matrix, form):
    tensor, _ = one_matrix(form, 96, 384)
    check_grid(tensor)
    top, below = sources.split(tensor, (32, 64))
    check_grid(below)
    check_grid(sources.in_heads(top, np.random.default_rng(0).permutation(16)))


def test_mxfp4_has_a_grid_where_fp16_holds_its_scales(tmp_path):
    tensor, files = open_mxfp4(tmp_path, mxfp4(3, 20, 4, (104, 144))[0])
    check_grid(tensor)
    assert tensor.grid().codebook.tolist() == [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12]
    check_grid(sources.unstack(tensor, ("{e}.gate", "{e}.up"), 3)["1.up"])
    (tmp_path / "below").mkdir()
    tensor, more = open_mxfp4(tmp_path / "below", mxfp4(3, 20, 4, (100, 104))[0])
    assert tensor.grid() is None
    for file in files + more:
        file.close()


@pytest.mark.parametrize(
    "form",
    [gptq(4, 32, sym=False), gptq(4, 32, desc_act=True), gptq(8, 32), gptq(4, 16), awq(32), fp8((128, 128))],
)
def test_other_matrices_have_none(one_matrix, form):
    tensor, _ = one_matrix(form, 96, 384)
    assert tensor.grid() is None


def test_scales_that_fp16_does_not_hold_are_no_grid(one_matrix):
    form = gptq(4, 32)

    def wider(rng: np.random.Generator, rows: int, cols: int) -> Matrix:
        stored, w = form.make(rng, rows, cols)
        scales = stored[".scales"].array.astype(np.float32)
        scales[-1, -1] = np.float32(0.001)
        return stored | {".scales": Stored("F32", scales)}, w

    tensor, _ = one_matrix(Format(wider, form.section), 96, 384)
    assert tensor.grid() is None
    assert sources.split(tensor, (32, 64))[0].grid() is None
    assert sources.Linear(one_matrix(form, 96, 384)[0], 2.0).grid() is None


# ---------------------------------------------------------------------------------------------------------
# What cannot be read


Change = Callable[[dict[str, Any], dict[str, Stored]], Any]
Q0 = "model.layers.0.self_attn.q_proj"


def say(**values: Any) -> Change:
    return lambda section, tensors: section.update(values)


def drop(name: str) -> Change:
    return lambda section, tensors: tensors.pop(name)


def put(name: str, dtype: str, array: Any) -> Change:
    return lambda section, tensors: tensors.update({name: Stored(dtype, np.array(array))})


REFUSED: dict[str, tuple[Format, Change, str]] = {
    "method": (gptq(4, 32), say(quant_method="quip"), r"quantization_config\.quant_method is 'quip'; gptq"),
    "no method": (gptq(4, 32), lambda s, t: s.pop("quant_method"), r"quant_method is None"),
    "bits": (gptq(4, 32), say(bits=5), r"quantization_config\.bits is 5; 2, 3, 4, 8 can be read"),
    "no bits": (gptq(4, 32), lambda s, t: s.pop("bits"), r"bits is None"),
    "true bits": (gptq(4, 32), say(bits=True), r"bits is True"),
    "other bits": (
        gptq(4, 32),
        say(bits=8),
        r"q_proj\.qweight has the shape \(8, 64\), which does not fit 64 columns of 8",
    ),
    "group": (gptq(4, 32), say(group_size=0), r"group_size is 0"),
    "other group": (gptq(4, 32), say(group_size=64), r"scales has the shape \(2, 64\), expected \(1, 64\)"),
    "marlin": (gptq(4, 32), say(checkpoint_format="marlin"), r"checkpoint_format is 'marlin'; gptq, gptq_v2"),
    "old marlin": (gptq(4, 32), say(is_marlin_format=True), r"is_marlin_format is True"),
    "no scales": (
        gptq(4, 32),
        drop(Q0 + ".scales"),
        r"q_proj\.scales is missing, which .*q_proj\.qweight needs",
    ),
    "no zeros": (gptq(4, 32), drop(Q0 + ".qzeros"), r"q_proj\.qzeros is missing"),
    "twice": (
        gptq(4, 32),
        put(Q0 + ".weight", "F16", np.ones((64, 64))),
        r"q_proj\.weight occurs twice, quantized and as it is",
    ),
    "no weight": (
        gptq(4, 32),
        drop(Q0 + ".qweight"),
        r"q_proj\.(qzeros|g_idx) is I32, and not of a quantized",
    ),
    "zeros' shape": (
        gptq(4, 32),
        put(Q0 + ".qzeros", "I32", np.zeros((2, 9))),
        r"qzeros has the shape \(2, 9\), expected \(2, 8\)",
    ),
    "g_idx": (gptq(4, 32), put(Q0 + ".g_idx", "I32", [2] * 64), r"g_idx names a group that is not one of 2"),
    "negative g_idx": (gptq(4, 32), put(Q0 + ".g_idx", "I32", [-1] * 64), r"g_idx names a group"),
    "short g_idx": (gptq(4, 32), put(Q0 + ".g_idx", "I32", [0] * 32), r"does not fit 32 columns of 4 bits"),
    "dtype": (gptq(4, 32), put(Q0 + ".qweight", "I64", np.zeros((8, 64))), r"qweight is I64, expected I32"),
    "rows": (
        gptq(4, 32),
        lambda s, t: t.update({k.replace("q_proj", "k_proj"): v for k, v in t.items() if Q0 in k}),
        r"k_proj\.qweight is \(64, 64\), expected \(32, 64\)",
    ),
    "no group": (
        packed_ints(4, 32),
        say(
            config_groups={
                name: packed_ints(4, 32).section["config_groups"]["group_0"] | {"targets": [target]}
                for name, target in (("a", r"re:.*k_proj$"), ("b", "model.layers.0.self_attn.v_proj"))
            }
        ),
        r"no group of quantization_config.config_groups has model\.layers\.0\.self_attn\.q_proj",
    ),
    "targets": (
        packed_ints(4, 32),
        say(
            config_groups={
                name: packed_ints(4, 32).section["config_groups"]["group_0"] | {"targets": [target]}
                for name, target in (("a", "re:("), ("b", "Linear"))
            }
        ),
        r"configuration: quantization_config: a target: ",
    ),
    "packed shape": (
        packed_ints(4, 32),
        put(Q0 + ".weight_shape", "I64", [64, 65]),
        r"q_proj\.weight_packed has the shape \(64, 8\), which does not fit the weight's \(64, 65\) in 4",
    ),
    "no zero points": (
        packed_ints(4, 32, sym=False),
        drop(Q0 + ".weight_zero_point"),
        r"q_proj\.weight_zero_point is missing, which the module .*q_proj needs",
    ),
    "no packed scales": (packed_ints(4, 32), drop(Q0 + ".weight_scale"), r"q_proj\.weight_scale is missing"),
    "packed groups": (
        packed_ints(4, 32),
        put(Q0 + ".weight_scale", "F16", np.ones((64, 4))),
        r"q_proj\.weight_scale has the shape \(64, 4\), expected \(64, 2\)",
    ),
    "awq bits": (awq(32), say(bits=3), r"bits is 3; 4 can be read"),
    "awq version": (awq(32), say(version="gemv_fast"), r"version is 'gemv_fast'; gemm"),
    "awq group": (awq(32), say(group_size=48), r"does not fit groups of 48 columns"),
    "awq scales": (awq(32), drop(Q0 + ".scales"), r"q_proj\.scales is missing"),
    "fp8 scale": (
        fp8((128, 128)),
        drop(Q0 + ".weight_scale_inv"),
        r"q_proj\.weight_scale_inv is missing, which",
    ),
    "fp8 weight": (
        fp8((128, 128)),
        drop(Q0 + ".weight"),
        r"q_proj\.weight is missing, which .*scale_inv needs",
    ),
    "fp8 block": (
        fp8((128, 128)),
        say(weight_block_size=[64, 64]),
        r"scale_inv has the shape \(1, 1\), expected",
    ),
    "fp8 no block": (
        fp8((128, 128)),
        say(weight_block_size=[0, 64]),
        r"weight_block_size is \[0, 64\]; it is",
    ),
    "fp8 NaN": (
        fp8((128, 128)),
        put(Q0 + ".weight", "F8_E4M3", np.full((64, 64), 0x7F)),
        r"q_proj\.weight has a weight that",
    ),
    "fp8 half": (
        fp8((128, 128)),
        put(Q0 + ".weight", "F16", np.ones((64, 64))),
        r"q_proj\.weight is F16, expected F8",
    ),
    "fp4 experts": (fp8((128, 128)), say(expert_dtype="fp4"), r"expert_dtype is 'fp4'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusal_names_the_reason_and_leaves_no_file(tmp_path, case):
    form, change, message = REFUSED[case]
    rng = np.random.default_rng(0)
    section, tensors = dict(form.section), unquantized(LLAMA, rng) | form.rest
    for module, (rows, cols) in modules(LLAMA).items():
        stored, _ = form.make(rng, rows, cols)
        tensors |= {module + end: tensor for end, tensor in stored.items()}
    change(section, tensors)
    folder = save(tmp_path / "tiny", LLAMA | {"quantization_config": section}, tensors)
    with pytest.raises(ConvertError, match=message) as caught:
        convert(folder, tmp_path / "out.llm", tokenizer=False)
    assert "\n" not in str(caught.value) and not (tmp_path / "out.llm").exists()


COMPRESSED = packed_ints(4, 32).section


def weights(**values: Any) -> dict[str, Any]:
    group = COMPRESSED["config_groups"]["group_0"]
    return COMPRESSED | {"config_groups": {"group_0": group | {"weights": group["weights"] | values}}}


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ([], r"quantization_config is \[\], not an object"),
        (COMPRESSED | {"format": "marlin-24"}, r"format is 'marlin-24'; pack-quantized, int-quantized"),
        (COMPRESSED | {"format": "sparse-24-bitmask"}, r"format is 'sparse-24-bitmask'"),
        (
            COMPRESSED | {"sparsity_config": {"format": "sparse-bitmask"}},
            r"sparsity_config is .*sparse checkpoints",
        ),
        (COMPRESSED | {"transform_config": {"config_groups": {}}}, r"transform_config is"),
        (COMPRESSED | {"config_groups": None}, r"config_groups is None"),
        (COMPRESSED | {"config_groups": {"group_0": {"weights": {}, "targets": 1}}}, None),
        (
            weights(num_bits=9),
            r"config_groups\.group_0\.weights\.num_bits is 9; 1, 2, 3, 4, 5, 6, 7, 8 can be read",
        ),
        (weights(type="float"), r"weights\.type is 'float'; int can be read"),
        (
            weights(strategy="token"),
            r"weights\.strategy is 'token'; tensor, channel, group, tensor_group, block",
        ),
        (weights(strategy="block"), r"block_structure is None; the strategy block needs it"),
        (weights(group_size="x"), r"group_size is 'x'"),
    ],
)
def test_configurations_of_compressed_tensors_that_cannot_be_read(section, message):
    if message is None:  # nothing is quantized
        assert plan.make(LLAMA | {"quantization_config": section}).notes == plan.make(LLAMA).notes
        return
    with pytest.raises(ConvertError, match=message):
        plan.make(LLAMA | {"quantization_config": section})


def test_any_value_anywhere_in_the_configuration_is_read_or_refused():
    strange = [None, True, -5, 0, 4.0, 1 << 70, 0.5, "", "x", [], [1], {}, {"a": 1}, [[1]], float("nan")]
    refused = 0
    for section in (gptq(4, 32).section, awq(32).section, fp8((128, 128)).section, COMPRESSED):
        paths = [[key] for key in section]
        paths += [["config_groups", "group_0"], ["config_groups", "group_0", "targets"]]
        paths += [
            ["config_groups", "group_0", "weights", key]
            for key in weights()["config_groups"]["group_0"]["weights"]
        ]
        for path in paths:
            for value in strange:
                changed = json.loads(json.dumps(section))
                place = changed
                for key in path[:-1]:
                    place = place.setdefault(key, {})
                place[path[-1]] = value
                try:
                    quantized.notes({"quantization_config": changed})
                except ConvertError as error:
                    refused += 1
                    assert str(error).startswith("configuration: quantization_config")
    assert refused > 200


def test_unknown_keys_are_noted():
    section = gptq(4, 32).section | {"hadamard": True}
    assert quantized.notes({"quantization_config": section})[1:] == [
        "quantization_config has keys that are not known here, and nothing was made of them: hadamard"
    ]


def test_a_cache_in_8_bits_is_noted():
    section = COMPRESSED | {"kv_cache_scheme": {"num_bits": 8, "type": "float"}}
    told = quantized.notes({"quantization_config": section})
    assert len(told) == 2 and "keys and values" in told[1]


# ---------------------------------------------------------------------------------------------------------
# Written and read by the formats' own libraries


def save_torch(path: Path, tensors: dict[str, Any]) -> Path:
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return path


def opened(tmp_path: Path, section: dict[str, Any], tensors: dict[str, Any], name: str) -> sources.Tensor:
    """What the converter makes of tensors of torch."""
    files: list[sources.File] = []
    path = save_torch(tmp_path / f"{len(list(tmp_path.iterdir()))}.safetensors", tensors)
    found = huggingface.read_safetensors(path, files, sources.PLAIN | sources.STORED)
    return quantized.dequantized({"quantization_config": section}, found)[name]


def check_against(tensor: sources.Tensor, want: Any) -> None:
    """The tensor is the library's, in float32, bit for bit."""
    assert tensor.shape == tuple(want.shape) and str(want.dtype) == "torch.float32"
    assert same_bits(tensor.read(0, tensor.rows), want.reshape(tensor.rows, tensor.cols).contiguous().numpy())


INT, FLOAT = {"type": "int"}, {"type": "float"}
MX = FLOAT | {"strategy": "group", "group_size": 32, "symmetric": True, "scale_dtype": "torch.uint8"}
SCHEMES: dict[str, tuple[str, dict[str, Any]]] = {
    f"{bits} bits by 32": ("pack-quantized", INT | {"num_bits": bits, "strategy": "group", "group_size": 32})
    for bits in range(1, 9)
}
SCHEMES |= {
    f"{bits} bits by 64 with zero points": (
        "pack-quantized",
        INT | {"num_bits": bits, "strategy": "group", "group_size": 64, "symmetric": False},
    )
    for bits in (2, 3, 4, 8)
}
SCHEMES |= {
    "4 bits by row": (
        "pack-quantized",
        INT | {"num_bits": 4, "strategy": "channel", "symmetric": False},
    ),
    "4 bits, one scale": ("pack-quantized", INT | {"num_bits": 4, "strategy": "tensor"}),
    "int8 by row": ("int-quantized", INT | {"num_bits": 8, "strategy": "channel"}),
    "int8, one scale": ("int-quantized", INT | {"num_bits": 8, "strategy": "tensor", "symmetric": False}),
    "int8 by 128": (
        "int-quantized",
        INT | {"num_bits": 8, "strategy": "group", "group_size": 128, "symmetric": False},
    ),
    "naive int8": ("naive-quantized", INT | {"num_bits": 8, "strategy": "channel", "symmetric": False}),
    "fp8, one scale": ("float-quantized", FLOAT | {"num_bits": 8, "strategy": "tensor"}),
    "fp8 by row": ("float-quantized", FLOAT | {"num_bits": 8, "strategy": "channel"}),
    "fp8 by block": (
        "float-quantized",
        FLOAT | {"num_bits": 8, "strategy": "block", "block_structure": [32, 48]},
    ),
    "naive fp8": ("naive-quantized", FLOAT | {"num_bits": 8, "strategy": "channel"}),
    "nvfp4": (
        "nvfp4-pack-quantized",
        FLOAT | {"num_bits": 4, "strategy": "tensor_group", "group_size": 16},
    ),
    "mxfp4": ("mxfp4-pack-quantized", MX | {"num_bits": 4}),
    "mxfp6": ("mxfp6-pack-quantized", MX | {"num_bits": 6}),
    "mxfp8": ("mxfp8-quantized", MX | {"num_bits": 8}),
}


@dataclass
class Compressed:
    """A matrix that compressed-tensors has compressed, and what it decompresses it to in float32."""

    group: dict[str, Any]  # of config_groups
    tensors: dict[str, Any]
    values: Any


def compressed(
    name: str,
    rows: int,
    cols: int,
    scale_dtype: str = "float32",
    seed: int = 0,
    targets: tuple[str, ...] = ("Linear",),
) -> Compressed:
    """Compresses a random matrix. Scales, zero points and codes are the library's to pack; the scales are
    drawn here, so that all codes occur."""
    torch = pytest.importorskip("torch")
    library = pytest.importorskip("compressed_tensors")
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    form, given = SCHEMES[name]
    args = QuantizationArgs(**given)
    scheme = QuantizationScheme(targets=list(targets), weights=args, format=form)
    compressor = BaseCompressor.get_value_from_registry(form)
    draw = torch.Generator().manual_seed(seed)

    def integers(low: int, high: int, shape: Any) -> Any:
        return torch.randint(low, high, shape, generator=draw)

    height, width = args.block_structure or (1, 1)
    shapes = {
        "tensor": (1,),
        "channel": (rows, 1),
        "group": (rows, cols // (args.group_size or 1)),
        "tensor_group": (rows, cols // (args.group_size or 1)),
        "block": (-(-rows // height), -(-cols // width)),
    }
    shape = shapes[args.strategy]
    state = {"weight": torch.randn((rows, cols), generator=draw) * 0.05}
    scale = integers(20, 200, shape).float() / 16384
    if "mx" in form:
        scale = 2.0 ** integers(-12, -4, shape).float()
    if "nvfp4" in form:
        scale = integers(30, 400, shape).float().to(torch.float8_e4m3fn).float()
        state["weight_global_scale"] = torch.tensor([3000.123])
    state["weight_scale"] = scale.to(getattr(torch, scale_dtype))
    if not args.symmetric:
        half = 1 << (args.num_bits - 1)
        state["weight_zero_point"] = integers(-half, half, shape).to(torch.int8)
    tensors = compressor.compress(dict(state), scheme)
    group = json.loads(scheme.model_dump_json())
    assert library and group["weights"]["num_bits"] == args.num_bits
    return Compressed(group | {"format": form}, tensors, decompressed(compressor, scheme, tensors))


def decompressed(compressor: Any, scheme: Any, tensors: dict[str, Any]) -> Any:
    """The library's decompression in float32: it computes in the dtype of the scales, and in bf16 with FP4
    and the MX formats, where its steps are taken one by one here."""
    import torch
    from compressed_tensors.quantization.lifecycle.forward import dequantize

    scale = tensors["weight_scale"]
    if hasattr(compressor, "_decompress_scale"):
        mx8 = scheme.format == "mxfp8-quantized"
        scale = compressor._decompress_scale(scale, *(() if mx8 else (torch.float32,))).float()
    if "weight_packed" not in tensors or tensors["weight_packed"].dtype == torch.int32:
        if scheme.format == "mxfp8-quantized":
            return dequantize(tensors["weight"], scale, None, scheme.weights, torch.float32)
        return compressor.decompress(tensors | {"weight_scale": scale.float()}, scheme)["weight"]
    packed_, rows = tensors["weight_packed"], len(tensors["weight_packed"])
    if scheme.weights.num_bits == 6:
        from compressed_tensors.compressors.mxfp6.helpers import unpack_fp6_from_uint8 as unpack

        codes = unpack(packed_, rows, packed_.shape[1] * 4 // 3, dtype=torch.float32)
    else:
        from compressed_tensors.compressors import unpack_fp4_from_uint8 as unpack

        codes = unpack(packed_, rows, packed_.shape[1] * 2, dtype=torch.float32)
    divisor = tensors.get("weight_global_scale")
    return dequantize(codes, scale, None, scheme.weights, torch.float32, divisor)


def section_for(*made: Compressed) -> dict[str, Any]:
    groups = {f"group_{i}": one.group for i, one in enumerate(made)}
    whole = made[0].group["format"] if len(made) == 1 else "mixed-precision"
    return {"quant_method": "compressed-tensors", "format": whole, "config_groups": groups}


WITH_GRID = {"1 bits by 32", "2 bits by 32", "3 bits by 32", "4 bits by 32", "4 bits, one scale", "mxfp4"}
BY_COLUMNS = {name for name, (_, given) in SCHEMES.items() if "group" in given.get("strategy", "")}


@pytest.mark.parametrize("name", SCHEMES)
def test_compressed_tensors_are_what_the_library_decompresses(tmp_path, name):
    odd = (33, 256 if name in BY_COLUMNS else 75)
    for (rows, cols), dtype in (((96, 128), "float32"), (odd, "float32" if name == "nvfp4" else "bfloat16")):
        made = compressed(name, rows, cols, dtype)
        tensors = {f"m.{key}": tensor for key, tensor in made.tensors.items()}
        tensor = opened(tmp_path, section_for(made), tensors, "m.weight")
        check_against(tensor, made.values)
        if name in WITH_GRID and cols % 32 == 0:
            check_grid(tensor)
        else:
            assert tensor.grid() is None


def test_older_compressed_tensors_have_the_groups_of_columns_and_plain_zero_points(tmp_path):
    """There used to be weight_g_idx, the group of each column, and zero points in a byte each. The library
    has given that up: the matrix is what it decompresses without, with its columns moved."""
    torch = pytest.importorskip("torch")
    from_library = compressed("4 bits by 64 with zero points", 96, 256)
    helpers = pytest.importorskip("compressed_tensors.compressors.pack_quantized.helpers")
    tensors = dict(from_library.tensors)
    order = torch.randperm(256, generator=torch.Generator().manual_seed(3))
    codes = helpers.unpack_from_int32(tensors["weight_packed"], 4, (96, 256))
    tensors["weight_packed"] = helpers.pack_to_int32(codes[:, order], 4)
    tensors["weight_zero_point"] = helpers.unpack_from_int32(
        tensors["weight_zero_point"], 4, (96, 4), packed_dim=0
    )
    tensors["weight_g_idx"] = (order // 64).int()
    named = {f"m.{key}": tensor for key, tensor in tensors.items()}
    check_against(
        opened(tmp_path, section_for(from_library), named, "m.weight"), from_library.values[:, order]
    )
    named["m.weight_g_idx"] = torch.full((256,), -1, dtype=torch.int32)  # as it was where it was not used
    named["m.weight_packed"] = from_library.tensors["weight_packed"]
    check_against(opened(tmp_path, section_for(from_library), named, "m.weight"), from_library.values)


@pytest.mark.parametrize(
    "schemes",
    [
        ("4 bits by 32",),
        ("int8 by row",),
        ("fp8, one scale",),
        ("fp8 by block",),
        ("nvfp4",),
        ("mxfp4",),
        ("4 bits by 64 with zero points", "fp8 by row"),
    ],
)
def test_a_whole_compressed_model_gives_the_file_of_its_values(tmp_path, schemes):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    rest = {name: torch.tensor(t.array.astype(np.float16)) for name, t in unquantized(LLAMA, rng).items()}
    rest |= {f"model.layers.{i}.self_attn.{x}_scale": torch.tensor(0.5) for i in range(2) for x in "kv"}
    there, plain, groups = dict(rest), {k: v for k, v in rest.items() if not k.endswith("_scale")}, {}
    targets = [("Linear",), (r"re:.*mlp\.down_proj$", "model.layers.1.self_attn.o_proj")]
    for i, (module, shape) in enumerate(modules(LLAMA).items()):
        second = len(schemes) == 2 and (module.endswith("down_proj") or module == targets[1][1])
        made = compressed(schemes[second], *shape, seed=i, targets=targets[second])
        groups[int(second)] = made
        there |= {f"{module}.{key}": tensor for key, tensor in made.tensors.items()}
        there[f"{module}.input_scale"] = torch.tensor([0.25])
        plain[f"{module}.weight"] = made.values
    section = section_for(*(groups[i] for i in sorted(groups)))
    section |= {"ignore": ["lm_head", "re:vision.*"], "kv_cache_scheme": {"num_bits": 8, "type": "float"}}
    folders = tmp_path / "there" / "tiny", tmp_path / "plain" / "tiny"
    for folder, tensors, more in zip(
        folders, (there, plain), ({"quantization_config": section}, {}), strict=True
    ):
        save_torch(folder / "model.safetensors", tensors)
        (folder / "config.json").write_text(json.dumps(LLAMA | more))
    for dtype in ("fp16", "int8"):
        file, expected, notes = convert_both(folders, dtype=dtype)
        assert file == expected and len(notes) == 2


def test_awq_is_what_the_library_unpacks(tmp_path):
    """The codes are drawn as whole words. AutoAWQ's functions are in compressed-tensors too."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.entrypoints.convert.converters.autoawq import AutoAWQConverter as Library

    draw = torch.Generator().manual_seed(0)
    for group in (-1, 32, 128):
        rows, cols, size = 96, 256, 256 if group == -1 else group

        def words(*shape: int) -> Any:
            return torch.randint(-(1 << 31), 1 << 31, shape, generator=draw).int()

        qweight, qzeros = words(cols, rows // 8), words(cols // size, rows // 8)
        scales = (torch.rand((cols // size, rows), generator=draw) / 100).half()
        codes, zeros = Library.reverse_awq_order(*Library.unpack_awq(qweight, qzeros, 4), 4)
        codes, zeros = codes & 15, (zeros & 15).repeat_interleave(size, 0)
        want = (codes - zeros) * scales.float().repeat_interleave(size, 0)
        tensors = {"m.qweight": qweight, "m.qzeros": qzeros, "m.scales": scales}
        section = {"quant_method": "awq", "bits": 4, "group_size": group}
        check_against(opened(tmp_path, section, tensors, "m.weight"), want.T)


def test_fp8_is_what_transformers_dequantizes(tmp_path):
    torch = pytest.importorskip("torch")
    integration = pytest.importorskip("transformers.integrations.finegrained_fp8")
    if not hasattr(integration, "Fp8Dequantize"):
        pytest.skip("needs a newer transformers")
    library, draw = integration.Fp8Dequantize(None), torch.Generator().manual_seed(0)
    section = {"quant_method": "fp8", "weight_block_size": [64, 32]}
    for stack in ((), (3,)):
        name = "m.experts.gate_up_proj" if stack else "m.weight"
        weight = torch.randn((*stack, 128, 96), generator=draw).to(torch.float8_e4m3fn)
        scales = torch.rand((*stack, 2, 3), generator=draw)
        for scale in (scales, torch.randint(110, 130, scales.shape, generator=draw).to(torch.uint8)):
            want = library._dequantize_one(weight, scale, torch.float32)
            check_against(opened(tmp_path, section, {name: weight, name + "_scale_inv": scale}, name), want)


def test_mxfp4_is_what_transformers_dequantizes(tmp_path):
    torch = pytest.importorskip("torch")
    integration = pytest.importorskip("transformers.integrations.mxfp4")
    draw = torch.Generator().manual_seed(0)
    blocks = torch.randint(0, 256, (3, 40, 4, 16), generator=draw).to(torch.uint8)
    scales = torch.randint(0, 250, (3, 40, 4), generator=draw).to(torch.uint8)
    want = integration.convert_moe_packed_tensors(blocks, scales, dtype=torch.float32).transpose(1, 2)
    tensors = {"m.down_proj_blocks": blocks, "m.down_proj_scales": scales}
    check_against(opened(tmp_path, {"quant_method": "mxfp4"}, tensors, "m.down_proj"), want)


def test_small_floats_are_those_of_torch():
    torch = pytest.importorskip("torch")
    tables = {"float8_e4m3fn": sources.E4M3, "float8_e5m2": sources.E5M2, "float8_e8m0fnu": sources.E8M0}
    for name, table in tables.items():
        if hasattr(torch, name):
            want = torch.arange(256, dtype=torch.uint8).view(getattr(torch, name)).float().numpy()
            assert table.dtype == np.float32 and np.array_equal(table, want, equal_nan=True)
            assert (np.signbit(table) == np.signbit(want))[~np.isnan(want)].all()


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_gptq_is_what_gptqmodel_dequantizes(tmp_path, bits):
    torch = pytest.importorskip("torch")
    library = pytest.importorskip("gptqmodel.nn_modules.qlinear.torch")
    from gptqmodel.utils.model_dequant import _revert_gptq_v1_qzeros_correction as to_first_version

    draw, (rows, cols) = torch.Generator().manual_seed(bits), (96, 256)
    for group, desc_act, sym, version in [
        (group, desc_act, sym, version)
        for group in (-1, 32, 128)
        for desc_act in (False, True)
        for sym in (False, True)
        for version in ("gptq", "gptq_v2")
    ]:
        size = cols if group == -1 else group
        index = torch.arange(cols) // size
        if desc_act:
            index = index[torch.randperm(cols, generator=draw)]
        lowest = 1 if version == "gptq" else 0
        zeros = torch.randint(lowest, 1 << bits, (rows, cols // size), generator=draw)
        zeros = torch.full_like(zeros, 1 << (bits - 1)) if sym else zeros
        scales = torch.randint(20, 200, zeros.shape, generator=draw) / 16384
        codes = torch.randint(0, 1 << bits, (rows, cols), generator=draw)
        linear = torch.nn.Linear(cols, rows, bias=False)
        linear.weight.data = (codes - zeros[:, index]) * scales[:, index]
        section = {"bits": bits, "group_size": group, "desc_act": desc_act, "sym": sym}
        module = library.TorchLinear(**section, in_features=cols, out_features=rows)
        module.pack_original(linear, scales, zeros.clone(), index.int())
        tensors = {
            f"m.{name}": getattr(module, name).clone() for name in ("qweight", "qzeros", "scales", "g_idx")
        }
        if version == "gptq":
            tensors["m.qzeros"] = to_first_version(tensors["m.qzeros"], bits)
        module.scales = module.scales.float()
        want = super(library.TorchLinear, module).dequantize_weight().T
        section |= {"quant_method": "gptq", "checkpoint_format": version}
        tensor = opened(tmp_path, section, tensors, "m.weight")
        check_against(tensor, want)
        assert torch.equal(want, linear.weight.data)
