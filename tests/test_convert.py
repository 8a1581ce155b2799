"""The converter: every source becomes the same flat file, and what cannot be converted is named and leaves no
file behind.

The models are random and tiny; they are written here in each source's format with numpy alone (GGUF: its own
library)."""

import json
import os
import random
import re
import shlex
import signal
import socket
import stat
import struct
import subprocess
import sys
import time
import tracemalloc
import types
from pathlib import Path

import numpy as np
import pytest
from common import described, place_of
from pyllm._llm import ffi, lib
from pyllm.tools import convert as command
from pyllm.tools import (
    families,
    flatfile,
    gguf_architectures,
    gguf_configuration,
    gguf_header,
    huggingface,
    huggingface_tokenizer,
    llama2c_tokenizer,
    pattern,
    rope,
    sources,
    verify_tokenizer,
)
from pyllm.tools.convert import convert
from pyllm.tools.model import describe
from pyllm.tools.sources import ConvertError
from pyllm.tools.tensors import canonical, named
from reference import rotated, untile, up

from tools import prove
from tools.checkpoints import finish, gguf_writer, interleaved, safetensors_head

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_act": "silu",
    "hidden_size": 48,  # not a multiple of 64, so that rows are padded
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,  # not hidden_size / heads
    "vocab_size": 70,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}
CONFIGS = {
    "llama": LLAMA,
    "llama bias": LLAMA | {"attention_bias": True},
    "llama odd rows": LLAMA  # q, k, v and gate end within a tile of 16 rows
    | {"num_attention_heads": 5, "num_key_value_heads": 1, "head_dim": 6, "intermediate_size": 85},
    "mistral": LLAMA | {"architectures": ["MistralForCausalLM"], "sliding_window": None},
    "mixtral": LLAMA
    | {"architectures": ["MixtralForCausalLM"], "num_local_experts": 3, "num_experts_per_tok": 2},
    "qwen2": LLAMA | {"architectures": ["Qwen2ForCausalLM"], "tie_word_embeddings": True},
    "qwen3": LLAMA | {"architectures": ["Qwen3ForCausalLM"], "rms_norm_eps": 1e-6},
    "qwen3moe": LLAMA
    | {
        "architectures": ["Qwen3MoeForCausalLM"],
        "num_experts": 3,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "norm_topk_prob": True,
    },
}
BIAS = {"llama bias", "qwen2"}
QK_NORM = {"qwen3", "qwen3moe"}


# ---------------------------------------------------------------------------------------------------------
# Making sources


def make_tensors(kind, config, seed=0):
    """Every tensor of a model, float32 values that fp16 and bf16 hold exactly, under the names in the hub's
    files."""
    rng = np.random.default_rng(seed)
    dim, hd = config["hidden_size"], config["head_dim"]
    q, kv = config["num_attention_heads"] * hd, config["num_key_value_heads"] * hd

    def w(*shape):
        return (rng.integers(-120, 121, shape) / 1024).astype(np.float32)

    def norm(n):
        return (rng.integers(64, 192, n) / 128).astype(np.float32)

    t = {"model.embed_tokens.weight": w(config["vocab_size"], dim), "model.norm.weight": norm(dim)}
    if not config["tie_word_embeddings"]:
        t["lm_head.weight"] = w(config["vocab_size"], dim)
    for i in range(config["num_hidden_layers"]):
        p = f"model.layers.{i}."
        t[p + "input_layernorm.weight"], t[p + "post_attention_layernorm.weight"] = norm(dim), norm(dim)
        for name, rows in (("q", q), ("k", kv), ("v", kv)):
            t[f"{p}self_attn.{name}_proj.weight"] = w(rows, dim)
            if kind in BIAS:
                t[f"{p}self_attn.{name}_proj.bias"] = w(rows)
        t[p + "self_attn.o_proj.weight"] = w(dim, q)
        if kind in QK_NORM:
            t[p + "self_attn.q_norm.weight"], t[p + "self_attn.k_norm.weight"] = norm(hd), norm(hd)
        if kind in ("mixtral", "qwen3moe"):
            mixtral = kind == "mixtral"
            block = p + ("block_sparse_moe." if mixtral else "mlp.")
            names = ("w1", "w3", "w2") if mixtral else ("gate_proj", "up_proj", "down_proj")
            ffn = config["intermediate_size" if mixtral else "moe_intermediate_size"]
            t[block + "gate.weight"] = w(3, dim)
            for e in range(3):
                for name, shape in zip(names, ((ffn, dim), (ffn, dim), (dim, ffn)), strict=True):
                    t[f"{block}experts.{e}.{name}.weight"] = w(*shape)
        else:
            ffn = config["intermediate_size"]
            t[p + "mlp.gate_proj.weight"], t[p + "mlp.up_proj.weight"] = w(ffn, dim), w(ffn, dim)
            t[p + "mlp.down_proj.weight"] = w(dim, ffn)
    return t


def to_bytes(array, dtype):
    """The array in safetensors' dtype; bf16 by dropping the lower half of a float32, which must be zero."""
    if dtype == "BF16":
        bits = np.ascontiguousarray(array, "<f4").view("<u4")
        assert not (bits & 0xFFFF).any()
        return (bits >> 16).astype("<u2").tobytes()
    return array.astype({"F32": "<f4", "F16": "<f2", "F64": "<f8", "I32": "<i4"}[dtype]).tobytes()


def save_safetensors(path, tensors, dtype="F32"):
    data = {name: to_bytes(array, dtype) for name, array in tensors.items()}
    head = safetensors_head((name, dtype, tensors[name].shape, len(raw)) for name, raw in data.items())
    path.write_bytes(head + b"".join(data.values()))


def save(folder, config, tensors, dtype="F32", shards=1):
    """A Hugging Face directory without a tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if shards == 1:
        save_safetensors(folder / "model.safetensors", tensors, dtype)
        return folder
    names, where = list(tensors), {}
    for i in range(shards):
        shard = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        part = {name: tensors[name] for name in names[i::shards]}
        save_safetensors(folder / shard, part, dtype)
        where |= dict.fromkeys(part, shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return folder


def save_gguf(path, kind, config, tensors, quantize=None, freqs=None, metadata=()):
    gguf = pytest.importorskip("gguf")
    arch = {"mistral": "llama", "mixtral": "llama"}.get(kind, kind.split()[0])
    writer = gguf_writer(path, arch, "Tiny", config)
    writer.add_license("mit")
    if kind in ("mixtral", "qwen3moe"):
        writer.add_expert_count(3)
        writer.add_expert_used_count(2)
    if kind == "qwen3moe":
        writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    for add in metadata:
        add(writer)
    plain = {
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "self_attn.q_norm": "attn_q_norm",
        "self_attn.k_norm": "attn_k_norm",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "mlp.gate": "ffn_gate_inp",
        "block_sparse_moe.gate": "ffn_gate_inp",
    }
    experts = {
        "w1": "gate",
        "w3": "up",
        "w2": "down",
        "gate_proj": "gate",
        "up_proj": "up",
        "down_proj": "down",
    }
    stacks = {}
    for name, array in tensors.items():
        if not name.startswith("model.layers."):
            new = {
                "model.embed_tokens.weight": "token_embd.weight",
                "model.norm.weight": "output_norm.weight",
                "lm_head.weight": "output.weight",
            }[name]
        else:
            layer, rest = name.removeprefix("model.layers.").split(".", 1)
            stem, _, tail = rest.rpartition(".")
            if ".experts." in stem:
                stacks.setdefault(
                    f"blk.{layer}.ffn_{experts[stem.rsplit('.', 1)[1]]}_exps.weight", []
                ).append(array)
                continue
            new = f"blk.{layer}.{plain[stem]}.{tail}"
            if arch == "llama" and plain[stem] in ("attn_q", "attn_k"):
                array = interleaved(
                    array, config["num_attention_heads" if plain[stem] == "attn_q" else "num_key_value_heads"]
                )
        if quantize and array.ndim == 2:
            writer.add_tensor(new, gguf.quants.quantize(array, quantize), raw_dtype=quantize)
        else:
            writer.add_tensor(new, array)
    for name, arrays in stacks.items():
        writer.add_tensor(name, np.stack(arrays))
    if freqs is not None:
        writer.add_tensor("rope_freqs.weight", freqs)
    finish(writer)
    return path


def save_llama2c(path, config, t, version):
    """A checkpoint as export.py of llama2.c writes it: legacy_export, version1_export, version2_export."""
    n, heads, kv = config["num_hidden_layers"], config["num_attention_heads"], config["num_key_value_heads"]
    tied = "lm_head.weight" not in t
    sizes = [config["hidden_size"], config["intermediate_size"], n, heads, kv, config["vocab_size"], 32]

    def layers(name):
        found = [t[f"model.layers.{i}.{name}.weight"] for i in range(n)]
        return (
            [interleaved(a, heads) for a in found]
            if "q_proj" in name
            else ([interleaved(a, kv) for a in found] if "k_proj" in name else found)
        )

    attention = [a for x in "qkvo" for a in layers(f"self_attn.{x}_proj")]
    ffn = [a for x in ("gate", "down", "up") for a in layers(f"mlp.{x}_proj")]
    first, second = layers("input_layernorm"), layers("post_attention_layernorm")
    embed, norm, output = (
        t["model.embed_tokens.weight"],
        t["model.norm.weight"],
        [] if tied else [t["lm_head.weight"]],
    )
    if version == 0:
        sizes[5] *= 1 if tied else -1
        table = np.zeros(32 * config["head_dim"], np.float32)
        arrays = [embed, *first, *attention, *second, *ffn, norm, table, *output]
        path.write_bytes(struct.pack("<7i", *sizes) + b"".join(a.astype("<f4").tobytes() for a in arrays))
        return None
    head = struct.pack("<Ii7iB", 0x616B3432, version, *sizes, tied)
    if version == 1:
        body = b"".join(
            a.astype("<f4").tobytes() for a in [*first, *second, norm, embed, *attention, *ffn, *output]
        )
        path.write_bytes(head.ljust(256, b"\0") + body)
        return None
    body = b"".join(a.astype("<f4").tobytes() for a in [*first, *second, norm])
    scales, group = b"", 16
    for a in [embed, *attention, *ffn, *output]:
        blocks = a.reshape(-1, group)
        scale = np.abs(blocks).max(axis=1).astype(np.float32) / np.float32(127)
        scale[scale == 0] = 1
        body += np.rint(blocks / scale[:, None]).astype(np.int8).tobytes()
        scales += scale.astype("<f4").tobytes()
    path.write_bytes((head + struct.pack("<i", group)).ljust(256, b"\0") + body + scales)
    return None


# ---------------------------------------------------------------------------------------------------------
# Reading flat files


class Flat:
    """A flat file taken apart with llm_layout alone."""

    def __init__(self, path):
        self.data = path.read_bytes()
        self.header, self.layers = described(self.data)
        model = lib.llm_open(os.fsencode(path), err := ffi.new("char[256]"), len(err))
        assert model, ffi.string(err)  # the engine takes the file
        assert lib.llm_verify(model, err, len(err)) == 0, ffi.string(err)
        lib.llm_close(model)

    def place(self, name, layer=0, expert=0):
        return place_of(self.data, getattr(lib, name), layer, expert)

    def raw(self, name, layer=0, expert=0):
        """(rows, stride) of an fp16 or fp32 tensor; that and the scales of an int8 one. Checks that the rows
        that fill the last tile are zero."""
        t = self.place(name, layer, expert)
        if t.dtype == lib.LLM_FP32:
            return np.frombuffer(self.data, "<f4", t.rows * t.stride, t.offset).reshape(t.rows, t.stride)
        if t.dtype == lib.LLM_FP16:
            assert t.size == up(t.rows, 16) * t.stride * 2
            return untile(self.data, t.offset, "<f2", t.rows, t.stride)
        weights, groups = up(t.rows, 16) * t.stride, t.stride // 64
        assert t.size == weights + up(t.rows, 16) * groups * 2
        q = untile(self.data, t.offset, "i1", t.rows, t.stride, 4)
        return q, untile(self.data, t.offset + weights, "<f2", t.rows, groups)

    def values(self, name, layer=0, expert=0):
        """(rows, cols) float32."""
        t, raw = self.place(name, layer, expert), self.raw(name, layer, expert)
        if t.dtype == lib.LLM_INT8_ROTATED:
            raw = rotated(raw[0] * np.repeat(raw[1].astype(np.float64), 64, axis=1))
        return raw[:, : t.cols].astype(np.float32)

    def angles(self):
        """(n_rope, rope_dim / 2, 2): frequency and magnitude."""
        at = lib.LLM_HEADER_SIZE + self.header.text_size + self.header.n_layers * ffi.sizeof("llm_layer")
        half = self.header.rope_dim // 2
        return np.frombuffer(self.data, "<f4", self.header.n_rope * half * 2, at).reshape(-1, half, 2)

    def windows(self):
        return [self.layers[i].window for i in range(self.header.n_layers)]

    def sections(self):
        found, at, end = {}, lib.LLM_HEADER_SIZE, lib.LLM_HEADER_SIZE + self.header.text_size
        while at + 16 <= end:
            tag, _, size = struct.unpack_from("<IIQ", self.data, at)
            if tag == 0:
                break
            found[tag] = self.data[at + 16 : at + 16 + size]
            at += 16 + -(-size // 16) * 16
        return found

    def weights(self):
        """The file's bytes from the layers on: tables and tensors."""
        return self.data[lib.LLM_HEADER_SIZE + self.header.text_size :]


def expected(kind, config, t):
    """What each tensor of the flat file must hold, before rounding: (name, layer, expert) -> (rows, cols)."""
    want = {
        ("LLM_EMBED", 0, 0): t["model.embed_tokens.weight"],
        ("LLM_OUT_NORM", 0, 0): t["model.norm.weight"][None],
    }
    if "lm_head.weight" in t:
        want["LLM_OUTPUT", 0, 0] = t["lm_head.weight"]
    for i in range(config["num_hidden_layers"]):
        p = f"model.layers.{i}."
        want["LLM_ATTN_NORM", i, 0] = t[p + "input_layernorm.weight"][None]
        want["LLM_FFN_NORM", i, 0] = t[p + "post_attention_layernorm.weight"][None]
        want["LLM_QKV", i, 0] = np.concatenate([t[f"{p}self_attn.{x}_proj.weight"] for x in "qkv"])
        if kind in BIAS:
            want["LLM_BIAS", i, 0] = np.concatenate([t[f"{p}self_attn.{x}_proj.bias"] for x in "qkv"])[None]
        if kind in QK_NORM:
            want["LLM_Q_NORM", i, 0] = t[p + "self_attn.q_norm.weight"][None]
            want["LLM_K_NORM", i, 0] = t[p + "self_attn.k_norm.weight"][None]
        want["LLM_ATTN_OUT", i, 0] = t[p + "self_attn.o_proj.weight"]
        if kind in ("mixtral", "qwen3moe"):
            block = p + ("block_sparse_moe." if kind == "mixtral" else "mlp.")
            gate, up, down = (
                ("w1", "w3", "w2") if kind == "mixtral" else ("gate_proj", "up_proj", "down_proj")
            )
            want["LLM_ROUTER", i, 0] = t[block + "gate.weight"]
            for e in range(3):
                one = f"{block}experts.{e}."
                want["LLM_GATE_UP", i, e] = np.concatenate([t[f"{one}{gate}.weight"], t[f"{one}{up}.weight"]])
                want["LLM_DOWN", i, e] = t[f"{one}{down}.weight"]
        else:
            want["LLM_GATE_UP", i, 0] = np.concatenate(
                [t[p + "mlp.gate_proj.weight"], t[p + "mlp.up_proj.weight"]]
            )
            want["LLM_DOWN", i, 0] = t[p + "mlp.down_proj.weight"]
    return want


def make(tmp_path, kind="llama", change=None, **options):
    """A directory of this kind, its configuration and tensors changed by change(config, tensors)."""
    config = dict(CONFIGS[kind])
    tensors = make_tensors(kind, config)
    if change:
        change(config, tensors)
    return save(tmp_path / "src" / "tiny", config, tensors, **options), config, tensors


def run(source, tmp_path, file="out.llm", **options):
    """Converts to tmp_path / file, without a tokenizer."""
    out = tmp_path / file
    report = convert(source, out, **{"tokenizer": False, **options})
    return Flat(out), report


def test_a_configuration_may_name_only_its_model_type(tmp_path):
    whole, _ = run(make(tmp_path / "a", "qwen2")[0], tmp_path, "whole.llm")

    def only_type(config: dict, tensors: dict) -> None:
        config.update(architectures=None, model_type="qwen2")

    flat, _ = run(make(tmp_path / "b", "qwen2", only_type)[0], tmp_path)
    assert flat.data == whole.data

    def unknown(config: dict, tensors: dict) -> None:
        del config["architectures"]
        config["model_type"] = "mamba"

    with pytest.raises(ConvertError, match="unknown architecture 'mamba'"):
        run(make(tmp_path / "c", "llama", unknown)[0], tmp_path)


def test_the_architectures_of_model_types_are_those_of_transformers():
    auto = pytest.importorskip("transformers.models.auto.modeling_auto")
    theirs = dict(auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    assert theirs.pop("internlm3", "LlamaForCausalLM") == "LlamaForCausalLM"  # its biases are Llama's too
    # so named, it has a text_config
    assert (
        theirs.pop("llama4")
        == "Llama4ForCausalLM"
        == families.WRAPPED[families.MODEL_TYPES["llama4"]]["llama4_text"]
    )
    ours = families.MODEL_TYPES
    assert {kind: theirs[kind] for kind in ours if kind in theirs} == {
        kind: name for kind, name in ours.items() if kind in theirs
    }
    # code beside the model; text and pictures
    others = {"deepseek", "internlm2", "internlm3", "kimi_k2", "kimi_k25", "llama4", "minicpm"}
    others |= {"mistral3", "mistral4"}
    assert set(ours) - set(theirs) <= others
    assert set(ours.values()) <= {*families.FAMILIES, *families.WRAPPED}


# ---------------------------------------------------------------------------------------------------------
# What is stored


@pytest.mark.parametrize("kind", CONFIGS)
def test_fp16_file_holds_the_source(tmp_path, kind):
    source, config, tensors = make(tmp_path, kind)
    flat, report = run(source, tmp_path)
    want = expected(kind, config, tensors)
    for (name, layer, expert), values in want.items():
        assert np.array_equal(flat.values(name, layer, expert), values), name
        raw = flat.raw(name, layer, expert)
        assert not raw[:, values.shape[1] :].any(), "padding"
    layout = flatfile.Layout(flat.header, flat.layers)
    places = {(p.tensor, p.layer, p.expert) for p in flatfile.places(layout)}
    assert places == set(want)
    assert report.max_error == 0 and report.mean_error == 0
    assert report.bytes == len(flat.data)
    assert report.parameters == sum(values.size for values in want.values())


@pytest.mark.parametrize("kind", ["llama", "llama odd rows", "mixtral", "qwen3moe"])
def test_int8_file_holds_the_nearest_multiple_of_a_rounded_scale(tmp_path, kind):
    source, config, tensors = make(tmp_path, kind)
    rng = np.random.default_rng(1)
    tensors = {n: (rng.standard_normal(a.shape) / 50).astype(np.float32) for n, a in tensors.items()}
    save(source, config, tensors)
    flat, report = run(source, tmp_path, dtype="int8")
    worst, total, count = 0.0, 0.0, 0
    for (name, layer, expert), values in expected(kind, config, tensors).items():
        if values.shape[0] == 1:  # norms stay in float32
            assert np.array_equal(flat.values(name, layer, expert), values)
            continue
        if name != "LLM_ROUTER":  # stays in fp16
            q, scale = flat.raw(name, layer, expert)
            padded = np.zeros(q.shape)
            padded[:, : values.shape[1]] = values
            groups = rotated(padded).reshape(len(q), -1, 64)
            # to the nearest half and the nearest integer, but for float32's errors in the rotation
            assert np.allclose(scale, np.abs(groups).max(axis=2) / 127, rtol=2**-11 * 1.01, atol=2**-25)
            divisor = np.where(scale == 0, 1, scale).astype(np.float64)[..., None]
            assert np.abs(q.reshape(groups.shape) - groups / divisor).max() < 0.5 + 1e-4
        error = np.abs(flat.values(name, layer, expert) - values)
        worst, total, count = max(worst, error.max()), total + error.sum(dtype=np.float64), count + error.size
    assert report.max_error == pytest.approx(worst)
    assert report.mean_error == pytest.approx(total / count)


def test_int8_weights_of_any_magnitude_are_not_clipped(tmp_path):
    """Scales among fp16's subnormals are coarse; none may be so small that the largest weight does not
    fit."""
    w = np.zeros((40, 64), np.float32)
    w[:, 5] = 10.0 ** np.linspace(-12, 6, 40)
    w[:, 6] = -w[:, 5] / 2
    q, scale = flatfile.to_int8(w, np.abs(w).max(axis=1))
    back = q.astype(np.float32) * scale.astype(np.float32)[:, None]
    assert np.all(np.abs(back - w) <= scale.astype(np.float32)[:, None] / 2 * 1.0001)
    assert not flatfile.to_int8(np.zeros((1, 64), np.float32), np.zeros(1, np.float32))[1].any()


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F64"])
def test_stored_precisions_give_the_same_file(tmp_path, dtype):
    source, config, tensors = make(tmp_path)
    one, _ = run(source, tmp_path)
    other, _ = run(save(tmp_path / "other" / "tiny", config, tensors, dtype), tmp_path)
    assert one.data == other.data


def test_shards_give_the_same_file(tmp_path):
    source, config, tensors = make(tmp_path)
    one, _ = run(source, tmp_path)
    other, _ = run(save(tmp_path / "other" / "tiny", config, tensors, shards=3), tmp_path)
    assert one.data == other.data


def test_conversion_is_reproducible_with_any_number_of_threads(tmp_path, monkeypatch):
    source, _, _ = make(tmp_path, "qwen3moe")
    monkeypatch.setattr(flatfile, "JOB", 640)  # many jobs
    one, first = run(source, tmp_path, "a.llm", dtype="int8")
    written = []
    for threads in (1, 5):
        opened = command.open_source(source)
        model = describe(opened.config)
        tensors = canonical(model, named(model, opened.tensors))
        sections = {tag: data for tag, data in one.sections().items() if tag != lib.LLM_CHECKSUMS}
        layout = flatfile.finish_layout(model.shape, "int8", sections)
        plan = command.collect(opened, model, layout, tensors)
        path = tmp_path / f"{threads}.llm"
        written.append(flatfile.write(path, layout, model.angles, plan, threads))
        opened.close()
        assert path.read_bytes() == one.data
    assert written[0] == written[1]
    _, again = run(source, tmp_path, "b.llm", dtype="int8")
    assert (tmp_path / "b.llm").read_bytes() == one.data
    assert (again.max_error, again.mean_error) == (first.max_error, first.mean_error)


@pytest.mark.parametrize("dtype", command.DTYPES)
@pytest.mark.parametrize("kind", ["mixtral", "llama odd rows"])
def test_work_in_small_jobs_gives_the_same_file(tmp_path, monkeypatch, kind, dtype):
    tensors = make_tensors(kind, CONFIGS[kind])
    gguf_source = save_gguf(tmp_path / "tiny.gguf", kind, CONFIGS[kind], tensors)
    one, first = run(gguf_source, tmp_path, dtype=dtype)
    monkeypatch.setattr(flatfile, "JOB", 64)  # a tile at a time
    other, again = run(gguf_source, tmp_path, dtype=dtype)
    assert one.data == other.data
    assert (again.max_error, again.mean_error) == pytest.approx((first.max_error, first.mean_error))


@pytest.mark.parametrize(
    ("kind", "flags"),
    [
        ("llama", 0),
        ("llama bias", lib.LLM_QKV_BIAS),
        ("mistral", 0),
        ("mixtral", lib.LLM_ROUTER_NORMALIZE),
        ("qwen2", lib.LLM_QKV_BIAS | lib.LLM_TIED),
        ("qwen3", lib.LLM_QK_NORM),
        ("qwen3moe", lib.LLM_QK_NORM | lib.LLM_ROUTER_NORMALIZE),
    ],
)
def test_header_says_what_the_family_computes(tmp_path, kind, flags):
    source, config, _ = make(tmp_path, kind)
    flat, experts = run(source, tmp_path)[0], kind in ("mixtral", "qwen3moe")
    h = flat.header
    assert h.required == flags and h.optional == lib.LLM_HAS_CHECKSUMS
    assert (h.dim, h.rope_dim, h.vocab_size, h.context, h.n_layers) == (48, 16, 70, 256, 2)
    assert h.norm_eps == np.float32(config["rms_norm_eps"])
    for i in range(2):
        layer = flat.layers[i]
        assert layer.flags == flags & ~lib.LLM_TIED and layer.activation == lib.LLM_SILU
        assert (layer.n_heads, layer.n_kv_heads, layer.head_dim, layer.kv_layer) == (4, 2, 16, i)
        assert (layer.ffn, layer.n_experts, layer.n_active) == ((1, 3, 2) if experts else (0, 0, 0))
        assert layer.ffn_dim == config.get("moe_intermediate_size", 80) and layer.attn_scale == 0.25


def test_router_weights_are_not_normalized_where_the_config_says_so(tmp_path):
    source, _, _ = make(tmp_path, "qwen3moe", lambda c, t: c.update(norm_topk_prob=False))
    assert run(source, tmp_path)[0].header.required == lib.LLM_QK_NORM


def test_config_may_leave_out_what_transformers_has_a_default_for(tmp_path):
    def shorten(config, tensors):
        for key in (
            "head_dim",
            "rope_theta",
            "rms_norm_eps",
            "tie_word_embeddings",
            "hidden_act",
            "num_key_value_heads",
        ):
            del config[key]

    config = LLAMA | {"head_dim": 12, "num_key_value_heads": 4}
    tensors = make_tensors("llama", config)
    shorten(config, tensors)
    flat, _ = run(save(tmp_path / "tiny", config, tensors), tmp_path)
    assert (flat.layers[0].head_dim, flat.layers[0].n_kv_heads) == (12, 4)
    assert flat.header.norm_eps == np.float32(1e-6)


def test_stacked_experts_equal_separate_ones(tmp_path):
    for kind in ("mixtral", "qwen3moe"):
        source, config, tensors = make(tmp_path, kind)
        one, _ = run(source, tmp_path)
        gate, up, down = ("w1", "w3", "w2") if kind == "mixtral" else ("gate_proj", "up_proj", "down_proj")
        block = "block_sparse_moe" if kind == "mixtral" else "mlp"
        stacked = {n.replace(block, "mlp"): a for n, a in tensors.items() if ".experts." not in n}
        for i in range(2):
            each = [
                [tensors[f"model.layers.{i}.{block}.experts.{e}.{w}.weight"] for w in (gate, up, down)]
                for e in range(3)
            ]
            stacked[f"model.layers.{i}.mlp.experts.gate_up_proj"] = np.stack(
                [np.concatenate(x[:2]) for x in each]
            )
            stacked[f"model.layers.{i}.mlp.experts.down_proj"] = np.stack([x[2] for x in each])
        other, _ = run(save(tmp_path / "other" / "tiny", config, stacked), tmp_path)
        assert one.data == other.data


def test_tied_models_follow_what_is_stored(tmp_path):
    source, config, tensors = make(tmp_path, "qwen2")
    one, _ = run(source, tmp_path)
    embed = tensors["model.embed_tokens.weight"]
    save(source, config, tensors | {"lm_head.weight": embed})  # stored twice, equal: tied
    assert run(source, tmp_path)[0].data == one.data
    save(source, config, {n: a for n, a in tensors.items() if "embed" not in n} | {"lm_head.weight": embed})
    assert run(source, tmp_path)[0].data == one.data
    save(
        source, config, tensors | {"lm_head.weight": embed + 1}
    )  # stored twice, different: transformers does not tie them
    flat, report = run(source, tmp_path)
    assert not flat.header.required & lib.LLM_TIED and np.array_equal(flat.values("LLM_OUTPUT"), embed + 1)
    assert any("both are stored and differ" in note for note in report.notes)


def test_zero_biases_and_computed_buffers_are_left_out(tmp_path):
    def add(config, tensors):
        for i in range(2):
            tensors[f"model.layers.{i}.self_attn.o_proj.bias"] = np.zeros(48, np.float32)
            tensors[f"model.layers.{i}.mlp.up_proj.bias"] = np.zeros(80, np.float32)
            tensors[f"model.layers.{i}.self_attn.rotary_emb.inv_freq"] = np.ones(8, np.float32)

    one, _ = run(make(tmp_path)[0], tmp_path)
    assert run(make(tmp_path, change=add)[0], tmp_path)[0].data == one.data


def test_windows_are_in_the_layers_that_have_them(tmp_path):
    source, _, _ = make(tmp_path, "mistral", lambda c, t: c.update(sliding_window=100))
    flat, _ = run(source, tmp_path)
    assert flat.header.context == 256 and flat.windows() == [100, 100]
    for change, windows in (
        ({"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 1}, [0, 64]),
        ({"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 2}, [0, 0]),
        ({"use_sliding_window": False, "sliding_window": 64, "max_window_layers": 0}, [0, 0]),
        (
            {
                "use_sliding_window": True,
                "sliding_window": 64,
                "layer_types": ["sliding_attention", "full_attention"],
            },
            [64, 0],
        ),
    ):
        source, _, _ = make(tmp_path, "qwen2", lambda c, t, change=change: c.update(change))
        assert run(source, tmp_path)[0].windows() == windows


def test_context_can_be_shortened(tmp_path):
    source, _, _ = make(tmp_path)
    assert run(source, tmp_path, context=17)[0].header.context == 17
    with pytest.raises(ConvertError, match="257 is not between 1 and the model's 256"):
        run(source, tmp_path, context=257)


# ---------------------------------------------------------------------------------------------------------
# Other sources


@pytest.mark.parametrize("kind", CONFIGS)
def test_gguf_gives_the_tensors_of_the_directory_it_was_made_from(tmp_path, kind):
    source, config, tensors = make(tmp_path, kind)
    one, _ = run(source, tmp_path, "a.llm")
    other, _ = run(save_gguf(tmp_path / "tiny.gguf", kind, config, tensors), tmp_path, "b.llm")
    assert one.weights() == other.weights()
    for field in ("required", "dim", "vocab_size", "context", "norm_eps", "embed_scale", "logit_cap"):
        assert getattr(one.header, field) == getattr(other.header, field), field


@pytest.mark.parametrize("quantization", ["Q8_0", "Q4_0", "Q5_1", "BF16", "F16"])
def test_gguf_quantizations_are_dequantized(tmp_path, quantization):
    gguf = pytest.importorskip("gguf")
    config = LLAMA | {"hidden_size": 64, "intermediate_size": 96}
    tensors = make_tensors("llama", config)
    kind = gguf.GGMLQuantizationType[quantization]
    flat, _ = run(save_gguf(tmp_path / "q.gguf", "llama", config, tensors, quantize=kind), tmp_path)

    def there_and_back(a):
        return gguf.quants.dequantize(gguf.quants.quantize(a, kind), kind).astype(np.float16)

    for (name, layer, expert), values in expected("llama", config, tensors).items():
        if values.shape[0] > 1:
            assert np.array_equal(
                flat.raw(name, layer, expert)[:, : values.shape[1]], there_and_back(values)
            ), name


def test_gguf_rotary_scaling_is_read(tmp_path):
    gguf = pytest.importorskip("gguf")
    tensors = make_tensors("llama", LLAMA)
    factors = np.linspace(1, 8, 8, dtype=np.float32)
    plain = rope.default({"rope_theta": 10000.0}, 16, 256).frequencies
    flat, _ = run(save_gguf(tmp_path / "f.gguf", "llama", LLAMA, tensors, freqs=factors), tmp_path)
    assert np.array_equal(flat.angles()[0, :, 0], plain / factors)
    linear = [
        lambda w: w.add_rope_scaling_type(gguf.RopeScalingType.LINEAR),
        lambda w: w.add_rope_scaling_factor(4.0),
    ]
    flat, _ = run(save_gguf(tmp_path / "l.gguf", "llama", LLAMA, tensors, metadata=linear), tmp_path)
    assert np.array_equal(flat.angles()[0, :, 0], plain / np.float32(4))
    yarn = [
        lambda w: w.add_rope_scaling_type(gguf.RopeScalingType.YARN),
        lambda w: w.add_rope_scaling_factor(4.0),
        lambda w: w.add_rope_scaling_orig_ctx_len(64),
    ]
    flat, _ = run(save_gguf(tmp_path / "y.gguf", "llama", LLAMA, tensors, metadata=yarn), tmp_path)
    config = LLAMA | {
        "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    }
    other, _ = run(save(tmp_path / "yarn", config, tensors), tmp_path, "y.llm")
    assert flat.weights() == other.weights()
    assert flat.angles()[0, 0, 1] == np.float32(0.1 * np.log(4) + 1)


@pytest.mark.parametrize(
    ("add", "message"),
    [
        (lambda w: w.add_rope_scaling_attn_factors(2.0), "attn_factor"),
        (lambda w: w.add_uint32("split.count", 2), "2 parts"),
        (lambda w: w.add_string("llama.rope.scaling.type", "other"), "'other' is not supported"),
        (lambda w: w.add_string("llama.rope.scaling.type", "longrope"), "short_factor is not 8 positive"),
        (lambda w: w.add_expert_group_count(2), "expert_group_count = 2"),
        (lambda w: w.add_expert_weights_norm(True), "llama.expert_weights_norm = True"),
        (lambda w: w.add_attn_temperature_scale(0.1), "llama.attention.temperature_scale = 0.1"),
        (
            lambda w: w.add_array("llama.attention.rope_pattern", [True, False]),
            "rope_pattern is not supported",
        ),
        (
            lambda w: w.add_rope_scaling_yarn_log_mul(1.0),
            "yarn_log_multiplier = 1.0 is not supported without",
        ),
        (lambda w: w.add_causal_attention(False), "attention.causal = False"),
        (lambda w: w.add_rope_freq_base_swa(100.0), "rope.freq_base_swa"),
        (lambda w: w.add_uint32("llama.expert_gating_func", 2), "expert_gating_func = 2 is not llama's 1"),
    ],
)
def test_gguf_metadata_that_is_not_understood_is_refused(tmp_path, add, message):
    source = save_gguf(tmp_path / "tiny.gguf", "llama", LLAMA, make_tensors("llama", LLAMA), metadata=[add])
    with pytest.raises(ConvertError, match=message):
        run(source, tmp_path)


def test_gguf_missing_tensor_is_named_as_in_the_file(tmp_path):
    tensors = make_tensors("mixtral", CONFIGS["mixtral"])
    gone = ("layers.0.block_sparse_moe.experts", "layers.1.self_attn.v_proj")
    tensors = {name: array for name, array in tensors.items() if not any(part in name for part in gone)}
    with pytest.raises(ConvertError, match=r"blk\.0\.ffn_gate_exps\.weight.*blk\.1\.attn_v\.weight"):
        run(save_gguf(tmp_path / "tiny.gguf", "mixtral", CONFIGS["mixtral"], tensors), tmp_path)


def empty_gguf(path, architecture):
    gguf = pytest.importorskip("gguf")
    finish(gguf.GGUFWriter(path, architecture))
    return path


def test_gguf_of_another_architecture_lists_the_known_ones(tmp_path):
    with pytest.raises(
        ConvertError, match="unknown architecture 'xverse'.*llama, llama4, .*, minicpm, .*, qwen2, "
    ):
        run(empty_gguf(tmp_path / "x.gguf", "xverse"), tmp_path)


def test_gguf_of_an_architecture_that_cannot_be_converted_says_why(tmp_path):
    with pytest.raises(ConvertError, match="mamba cannot be converted: some of its layers are recurrent"):
        run(empty_gguf(tmp_path / "x.gguf", "mamba"), tmp_path)
    gguf = pytest.importorskip("gguf")
    newer = prove.STAND_INS.keys()  # than the gguf library
    names = gguf_architectures.OTHERS.keys() | gguf_architectures.ARCHITECTURES.keys() - newer
    assert names <= set(gguf.MODEL_ARCH_NAMES.values())
    assert set(gguf_architectures.OTHERS.values()) <= families.REASONS.keys() | families.FAMILIES.keys()


def test_gguf_window_pattern_and_rotary_dimensions_are_read(tmp_path):
    """A Mistral in architecture llama has a window if the metadata says so."""
    tensors = make_tensors("llama", LLAMA)
    add = [lambda w: w.add_sliding_window(100)]
    flat, _ = run(save_gguf(tmp_path / "m.gguf", "llama", LLAMA, tensors, metadata=add), tmp_path)
    assert flat.windows() == [100, 100]
    sliding, full = "sliding_attention", "full_attention"
    assert gguf_configuration.layer_types([True, False], 2) == [sliding, full]
    assert gguf_configuration.layer_types(2, 3) == [sliding, full, sliding]
    with pytest.raises(ConvertError, match="sliding_window_pattern is not for 3 layers"):
        gguf_configuration.layer_types([True], 3)
    add = [lambda w: w.add_rope_dimension_count(8)]
    with pytest.raises(ConvertError, match="8 of a head's 16 elements"):
        run(save_gguf(tmp_path / "p.gguf", "llama", LLAMA, tensors, metadata=add), tmp_path)


FULL, WINDOW = "full_attention", "sliding_attention"
EXPERTS = {
    "block_count": 8,
    "expert_count": 64,
    "expert_used_count": 4,
    "feed_forward_length": 9216,
    "expert_feed_forward_length": 1024,
}


@pytest.mark.parametrize(
    ("architecture", "metadata", "expected"),
    [
        ("gemma2", {"block_count": 46, "attention.key_length": 128}, {"query_pre_attn_scalar": 144}),
        ("gemma3", {"block_count": 34, "attention.key_length": 256}, {"query_pre_attn_scalar": 256}),
        ("gemma3", {"block_count": 34, "attention.scale": 0.0625}, {"query_pre_attn_scalar": 256}),
        ("granite", {"block_count": 40}, {"attention_multiplier": 144**-0.5}),
        ("granite", {"block_count": 40, "attention.scale": 0.5}, {"attention_multiplier": 0.5}),
        ("minicpm", {"block_count": 40}, {"scale_emb": 12.0, "scale_depth": 1.4, "dim_model_base": 256}),
        (
            "qwen2moe",
            {"block_count": 24, "expert_count": 60, "expert_used_count": 4, "feed_forward_length": 5632},
            {
                "norm_topk_prob": False,
                "moe_intermediate_size": 1408,
                "shared_expert_intermediate_size": 5632,
            },
        ),
        ("llama4", EXPERTS | {"expert_count": 16}, {"use_qk_norm": True, "intermediate_size_mlp": 9216}),
        ("llama4", EXPERTS | {"expert_count": 128}, {"use_qk_norm": False, "intermediate_size": 1024}),
        ("afmoe", EXPERTS, {"mup_enabled": True, "route_scale": 1.0}),
        ("exaone-moe", EXPERTS, {"norm_topk_prob": False, "routed_scaling_factor": 1.0}),
        ("glm4moe", EXPERTS | {"expert_weights_norm": True}, {"norm_topk_prob": True}),
        ("laguna", EXPERTS | {"attention.sliding_window": 512}, {"layer_types": 2 * [FULL, *3 * [WINDOW]]}),
        ("mellum", EXPERTS | {"attention.sliding_window": 512}, {"layer_types": 2 * [*3 * [WINDOW], FULL]}),
        ("hy_v3", EXPERTS | {"expert_shared_feed_forward_length": 3072}, {"num_shared_experts": 3}),
        ("exaone-moe", EXPERTS | {"nextn_predict_layers": 1}, {"num_hidden_layers": 7}),
        ("mimo2", EXPERTS | {"attention.value_length": 96}, {"v_head_dim": 96, "attention_value_scale": 1.0}),
        (
            "mimo2",  # as llama.cpp writes the layers that predict further tokens
            EXPERTS
            | {
                "nextn_predict_layers": 2,
                "attention.sliding_window": 128,
                "attention.sliding_window_pattern": [0, 1, 1, 0, 1, 1, 1, 1],
                "attention.head_count_kv": [4, 8, 8, 4, 8, 8, 8, 8],
            },
            {"num_key_value_heads": 4, "num_hidden_layers": 6, "num_nextn_predict_layers": 2},
        ),
        ("granite_swa", {"block_count": 2, "attention.rope_pattern": [1, 0]}, {"layer_rope_theta": [1e4, 0]}),
    ],
)
def test_what_llama_cpp_has_in_its_code_is_filled_in(architecture, metadata, expected):
    metadata = {"embedding_length": 4608, "attention.head_count": 32} | metadata
    config = gguf_configuration.configuration(metadata.get, architecture)
    for key, value in expected.items():
        assert config[key] == (value if isinstance(value, list) else pytest.approx(value))


@pytest.mark.parametrize(
    ("architecture", "metadata", "message"),
    [
        ("hy_v3", {"expert_shared_feed_forward_length": 1500}, "length = 1500: not a multiple of 1024"),
        ("hunyuan-moe", {"expert_shared_count": 2}, "hunyuan-moe.expert_shared_count = 2 is not supported"),
        ("deepseek", {"expert_group_count": 8}, "deepseek.expert_group_count = 8 is not supported"),
        ("afmoe", {"expert_weights_norm": False}, "afmoe.expert_weights_norm = False is not supported"),
        ("glm4moe", {"expert_gating_func": 1}, "expert_gating_func = 1 is not glm4moe's 2"),
        ("gpt-oss", {"expert_gating_func": 2}, "expert_gating_func = 2 is not gpt-oss's 1"),
        ("gpt-oss", {"rope.freq_base_swa": 500.0}, "gpt-oss.rope.freq_base_swa is not supported"),
        (
            "gpt-oss",
            {"attention.rope_pattern": [True] * 8},
            "gpt-oss.attention.rope_pattern is not supported",
        ),
        ("glm4moe", {"attention.value_length": 96}, "attention.value_length is not the key's 144"),
        ("glm4moe", {"attention.head_count_kv": [8, 4] * 4}, "head_count_kv differs between layers"),
        (
            "mimo2",
            {"attention.head_count_kv": [4] * 8, "attention.sliding_window_pattern": [0, 1] * 4},
            "head_count_kv is not doubled",
        ),
        ("laguna", {"attention.head_count": [48, 64]}, "head_count differs between layers"),
    ],
)
def test_gguf_metadata_of_layers_that_differ_is_refused_by_its_key(architecture, metadata, message):
    metadata = {"embedding_length": 4608, "attention.head_count": 32} | EXPERTS | metadata
    with pytest.raises(ConvertError, match=message):
        gguf_configuration.configuration(metadata.get, architecture)


def test_gguf_truncated_anywhere_is_an_error(tmp_path):
    source = save_gguf(tmp_path / "tiny.gguf", "llama", LLAMA, make_tensors("llama", LLAMA))
    data = source.read_bytes()
    cut = tmp_path / "cut.gguf"
    for size in (5, 20, 30, 100, 400, 1000, 2500, len(data) // 2, len(data) - 4096):
        cut.write_bytes(data[:size])
        with pytest.raises(ConvertError):
            run(cut, tmp_path)
    assert not (tmp_path / "out.llm").exists()


@pytest.mark.parametrize("version", [0, 1])
@pytest.mark.parametrize("tied", [True, False])
def test_llama2c_gives_the_tensors_of_the_same_model(tmp_path, version, tied):
    config = LLAMA | {"head_dim": 12, "tie_word_embeddings": tied, "max_position_embeddings": 32}
    tensors = make_tensors("llama", config)
    one, _ = run(save(tmp_path / "tiny", config, tensors), tmp_path, "a.llm")
    save_llama2c(tmp_path / "tiny.bin", config, tensors, version)
    other, _ = run(tmp_path / "tiny.bin", tmp_path, "b.llm")
    assert one.weights() == other.weights()
    assert other.header.norm_eps == np.float32(1e-5) and other.header.context == 32
    data = (tmp_path / "tiny.bin").read_bytes()
    for size in (3, 30, 200, len(data) // 2, len(data) - 1):
        (tmp_path / "tiny.bin").write_bytes(data[:size])
        with pytest.raises(ConvertError):
            run(tmp_path / "tiny.bin", tmp_path, "c.llm")


def test_llama2c_quantized_checkpoint_is_dequantized(tmp_path):
    config = LLAMA | {"head_dim": 12, "max_position_embeddings": 32}
    tensors = make_tensors("llama", config)
    one, _ = run(save(tmp_path / "tiny", config, tensors), tmp_path, "a.llm")
    save_llama2c(tmp_path / "tiny.bin", config, tensors, 2)
    other, _ = run(tmp_path / "tiny.bin", tmp_path, "b.llm")
    for place in flatfile.places(flatfile.Layout(one.header, one.layers)):
        a, b = (f.values(place.tensor, place.layer, place.expert) for f in (one, other))
        assert np.abs(a - b).max() <= 120 / 1024 / 127 / 2 * 1.01, (
            place
        )  # half a step of Q8_0, and fp16's rounding


# ---------------------------------------------------------------------------------------------------------
# Rotary tables


SCALINGS = {
    "plain": {},
    "linear": {"rope_scaling": {"type": "linear", "factor": 4.0}},
    "dynamic": {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
    "llama3": {
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
        "rope_theta": 500000.0,
    },
    "llama3 with nothing between": {  # Llama 4 Scout
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 16.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 1.0,
            "original_max_position_embeddings": 64,
        },
        "rope_theta": 500000.0,
    },
    "yarn": {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}},
    "yarn with everything": {
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 8.0,
            "original_max_position_embeddings": 32,
            "beta_fast": 16,
            "beta_slow": 2,
            "mscale": 1.0,
            "mscale_all_dim": 0.7,
            "truncate": False,
        }
    },
    "new style": {
        "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 77777.0},
        "rope_theta": None,
    },
}


@pytest.mark.parametrize("name", SCALINGS)
def test_rotary_tables_equal_transformers(name):
    transformers = pytest.importorskip("transformers")
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    config = {k: v for k, v in (LLAMA | SCALINGS[name]).items() if v is not None} | {"head_dim": 64}
    mine = describe(config)
    theirs = LlamaRotaryEmbedding(transformers.LlamaConfig(**json.loads(json.dumps(config))))
    # powers may differ in the last bit, and yarn mixes two of them
    assert np.allclose(mine.angles[0, :, 0], theirs.inv_freq.numpy(), rtol=2.5e-7, atol=0)
    assert (mine.angles[0, :, 1] == np.float32(theirs.attention_scaling)).all()
    assert mine.shape.layers[0].attn_scale == 64**-0.5


def test_rotary_tables_are_stored_and_scaled(tmp_path):
    # python -c "from transformers import LlamaConfig; from transformers.models.llama.modeling_llama import
    # LlamaRotaryEmbedding as R; print(R(LlamaConfig(hidden_size=64, num_attention_heads=4,
    # rope_theta=500000.0, rope_scaling={'rope_type': 'llama3', 'factor': 8.0, 'low_freq_factor': 1.0,
    # 'high_freq_factor': 4.0, 'original_max_position_embeddings': 64})).inv_freq.tolist())"
    source, _, _ = make(tmp_path, change=lambda c, t: c.update(SCALINGS["llama3"]))
    want = [
        1.0,
        0.07940301299095154,
        0.004700753837823868,
        0.0009115831344388425,
        0.00017677668074611574,
        3.428102354519069e-05,
        6.647869668086059e-06,
        1.289173155782919e-06,
    ]
    assert np.allclose(run(source, tmp_path)[0].angles()[0, :, 0], want, rtol=2.5e-7, atol=0)


def test_dynamic_scaling_is_exact_inside_the_context_and_said_so(tmp_path):
    source, _, _ = make(tmp_path, change=lambda c, t: c.update(SCALINGS["dynamic"]))
    flat, report = run(source, tmp_path)
    assert np.array_equal(flat.angles()[0, :, 0], rope.default({"rope_theta": 10000.0}, 16, 256).frequencies)
    assert any("dynamic" in note for note in report.notes)


# ---------------------------------------------------------------------------------------------------------
# LoRA


def save_lora(folder, modules, rank=4, seed=5, **config):
    """A PEFT adapter for modules {name: (rows, cols)}; the halves by module."""
    folder.mkdir()
    rng = np.random.default_rng(seed)
    halves = {}
    for name, (rows, cols) in modules.items():
        halves[name] = (
            rng.standard_normal((rank, cols)).astype(np.float32) / 8,
            rng.standard_normal((rows, rank)).astype(np.float32) / 8,
        )
    tensors = {}
    for name, (a, b) in halves.items():
        (
            tensors[f"base_model.model.{name}.lora_A.weight"],
            tensors[f"base_model.model.{name}.lora_B.weight"],
        ) = a, b
    save_safetensors(folder / "adapter_model.safetensors", tensors)
    (folder / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": rank, "lora_alpha": 8, "bias": "none", **config})
    )
    return halves


@pytest.mark.parametrize("rslora", [False, True])
def test_lora_is_merged_in_every_source(tmp_path, rslora):
    modules = {
        "model.layers.0.self_attn.q_proj": (64, 48),
        "model.layers.0.self_attn.k_proj": (32, 48),
        "model.layers.1.mlp.down_proj": (48, 80),
        "lm_head": (70, 48),
    }
    source, config, tensors = make(tmp_path)
    halves = save_lora(tmp_path / "adapter", modules, use_rslora=rslora, alpha_pattern={"down_proj": 2})
    merged = dict(tensors)
    for name, (a, b) in halves.items():
        alpha = 2 if "down_proj" in name else 8
        merged[name + ".weight"] = tensors[name + ".weight"] + np.float32(alpha / (2 if rslora else 4)) * (
            b @ a
        )
    for base in (source, save_gguf(tmp_path / "tiny.gguf", "llama", config, tensors)):
        flat, report = run(base, tmp_path, lora=[tmp_path / "adapter"])
        for (name, layer, expert), values in expected("llama", config, merged).items():
            got = flat.values(name, layer, expert)
            assert np.allclose(got, values, rtol=1e-3, atol=1e-6), name  # one fp16 rounding
        assert "merged 4 matrices of the adapter adapter" in report.notes
        assert b"lora: adapter" in flat.sections()[lib.LLM_ABOUT]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("use_dora", True),
        ("bias", "all"),
        ("modules_to_save", ["lm_head"]),
        ("fan_in_fan_out", True),
        ("peft_type", "IA3"),
        ("init_lora_weights", "pissa"),
        ("lora_bias", True),
        ("target_parameters", ["x"]),
    ],
)
def test_lora_variants_are_refused_by_name(tmp_path, key, value):
    source, _, _ = make(tmp_path)
    save_lora(tmp_path / "adapter", {"lm_head": (70, 48)}, **{key: value})
    with pytest.raises(ConvertError, match=key):
        run(source, tmp_path, lora=[tmp_path / "adapter"])


def test_lora_that_does_not_fit_is_refused_by_name(tmp_path):
    source, _, _ = make(tmp_path)
    save_lora(tmp_path / "a", {"model.layers.7.self_attn.q_proj": (64, 48)})
    with pytest.raises(ConvertError, match=r"model\.layers\.7\.self_attn\.q_proj"):
        run(source, tmp_path, lora=[tmp_path / "a"])
    save_lora(tmp_path / "b", {"model.layers.0.self_attn.q_proj": (64, 50)})
    with pytest.raises(ConvertError, match=r"q_proj has halves of the shapes \(4, 50\)"):
        run(source, tmp_path, lora=[tmp_path / "b"])
    halves = save_lora(tmp_path / "c", {"lm_head": (70, 48)})
    save_safetensors(
        tmp_path / "c" / "adapter_model.safetensors",
        {
            "base_model.model.lm_head.lora_A.weight": halves["lm_head"][0],
            "base_model.model.extra": np.ones(3),
        },
    )
    with pytest.raises(ConvertError, match=r"not LoRA's: base_model\.model\.extra"):
        run(source, tmp_path, lora=[tmp_path / "c"])
    assert not (tmp_path / "out.llm").exists()


# ---------------------------------------------------------------------------------------------------------
# Refusals


def drop(name):
    return lambda c, t: t.pop(name)


def put(name, index, value):
    def change(c, t):
        t[name] = t[name].copy()
        t[name][index] = value

    return change


def put_all(name, value):
    return lambda c, t: t.update({name: value})


Q0 = "model.layers.0.self_attn.q_proj.weight"
REFUSED = {
    "missing tensor": (
        drop("model.layers.1.mlp.up_proj.weight"),
        r"missing: model\.layers\.1\.mlp\.up_proj\.weight",
    ),
    "missing output": (drop("lm_head.weight"), r"missing: lm_head\.weight"),
    "unused tensor": (
        put_all("model.layers.0.extra.weight", np.ones((2, 2))),
        r"not part of a Llama model.*model\.layers\.0\.extra\.weight",
    ),
    "layer too many": (
        put_all("model.layers.2.input_layernorm.weight", np.ones(48)),
        r"model\.layers\.2\.input_layernorm",
    ),
    "wrong shape": (
        put_all("model.layers.0.self_attn.k_proj.weight", np.ones((48, 48))),
        r"k_proj\.weight is \(48, 48\), expected \(32, 48\)",
    ),
    "output bias": (put_all("model.layers.0.self_attn.o_proj.bias", np.ones(48)), r"o_proj\.bias"),
    "fp16 overflow": (put(Q0, (3, 4), -70000.0), r"q_proj\.weight has a weight of magnitude 70000.*65504"),
    "NaN": (put(Q0, (3, 4), np.nan), r"q_proj\.weight has a weight that is not finite"),
    "infinity": (put(Q0, (63, 47), np.inf), r"q_proj\.weight has a weight that is not finite"),
    "NaN in a norm": (
        put("model.norm.weight", 5, np.nan),
        r"model\.norm\.weight has a value that is not finite",
    ),
    "architecture": (
        lambda c, t: c.update(architectures=["OtherForCausalLM"]),
        r"unknown architecture 'OtherForCausalLM'; these can be converted: .*LlamaForCausalLM, Mellum",
    ),
    "no architecture": (lambda c, t: c.pop("architectures"), r"names none"),
    "activation": (lambda c, t: c.update(hidden_act="gelu"), r"hidden_act is gelu"),
    "missing key": (lambda c, t: c.pop("intermediate_size"), r"intermediate_size is missing"),
    "key of a wrong type": (lambda c, t: c.update(num_hidden_layers="2"), r"num_hidden_layers is '2'"),
    "negative": (lambda c, t: c.update(vocab_size=-1), r"vocab_size is -1"),
    "odd heads": (lambda c, t: c.update(num_key_value_heads=3), r"does not fit the format"),
    "quantized": (
        lambda c, t: c.update(quantization_config={"quant_method": "gptq"}),
        r"quantization_config",
    ),
    "rotary kind": (
        lambda c, t: c.update(rope_scaling={"rope_type": "spiral"}),
        r"'spiral' is not supported; default, linear, dynamic, llama3, yarn, longrope, proportional are",
    ),
    "rotary factor": (
        lambda c, t: c.update(rope_scaling={"rope_type": "linear", "factor": "x"}),
        r"factor is 'x'",
    ),
    "partial rotation": (lambda c, t: c.update(partial_rotary_factor=0.5), r"partial_rotary_factor"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusal_names_the_reason_and_leaves_no_file(tmp_path, case):
    change, message = REFUSED[case]
    source, _, _ = make(tmp_path, change=change)
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(ConvertError, match=message) as caught:
        convert(source, folder / "out.llm", tokenizer=False)
    assert "\n" not in str(caught.value)
    assert os.listdir(folder) == []


def test_int8_overflow_is_refused(tmp_path):
    source, _, _ = make(tmp_path, change=put(Q0, (0, 0), 9e6))
    with pytest.raises(ConvertError, match=r"q_proj\.weight has a weight of magnitude 9e\+06"):
        run(source, tmp_path, dtype="int8")


@pytest.mark.parametrize(
    ("change", "layer"), [({"decoder_sparse_step": 2}, 0), ({"mlp_only_layers": [1]}, 1)]
)
def test_layers_that_are_dense_by_the_configuration_need_a_dense_block(tmp_path, change, layer):
    source, _, _ = make(tmp_path, "qwen3moe", lambda c, t: c.update(change))
    with pytest.raises(ConvertError, match=rf"3 tensors are missing: .*{layer}\.mlp\.down_proj\.weight"):
        run(source, tmp_path)


def test_existing_file_is_untouched_by_a_failure_and_replaced_by_success(tmp_path):
    out = tmp_path / "out.llm"
    out.write_bytes(b"precious")
    source, _, _ = make(tmp_path, change=REFUSED["NaN"][0])
    with pytest.raises(ConvertError):
        convert(source, out, tokenizer=False)
    assert out.read_bytes() == b"precious"
    convert(make(tmp_path)[0], out, tokenizer=False)
    assert Flat(out).header.dim == 48


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt, OSError(28, "No space left on device"), SystemExit(143)]
)
def test_interruption_leaves_no_file(tmp_path, monkeypatch, error):
    source, _, _ = make(tmp_path)
    monkeypatch.setattr(flatfile, "JOB", 640)
    real, calls = flatfile.run_job, []

    def failing(fd, job):
        calls.append(job)
        if len(calls) == 9:
            raise error
        return real(fd, job)

    monkeypatch.setattr(flatfile, "run_job", failing)
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(type(error) if isinstance(error, BaseException) else error):
        convert(source, folder / "out.llm", tokenizer=False)
    assert os.listdir(folder) == []


def test_full_disk_is_noticed_before_writing(tmp_path, monkeypatch):
    source, _, _ = make(tmp_path)
    monkeypatch.setattr(flatfile.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    with pytest.raises(ConvertError, match="not enough space"):
        run(source, tmp_path)
    assert not list(tmp_path.glob(".*"))


def test_safetensors_truncated_anywhere_is_an_error(tmp_path):
    source, _, _ = make(tmp_path)
    weights = source / "model.safetensors"
    data = weights.read_bytes()
    for size in (0, 7, 8, 100, 2000, len(data) // 2, len(data) - 1):
        weights.write_bytes(data[:size])
        with pytest.raises(ConvertError, match="truncated|header"):
            run(source, tmp_path)
    for offset in range(0, 400, 7):  # a damaged header is an error too, or changes nothing that matters
        weights.write_bytes(data[:offset] + bytes([data[offset] ^ 0x15]) + data[offset + 1 :])
        try:
            run(source, tmp_path)
        except ConvertError:
            pass


def test_missing_shard_is_named(tmp_path):
    source, _, _ = make(tmp_path, shards=3)
    (source / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(ConvertError, match="model-00002-of-00003.safetensors is missing"):
        run(source, tmp_path)
    index = source / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../x.safetensors"}}))
    with pytest.raises(ConvertError, match="not a plain file name"):
        run(source, tmp_path)


def test_index_that_names_a_tensor_its_shard_lacks_is_refused(tmp_path):
    source, _, _ = make(tmp_path, shards=2)
    index = source / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["model.ghost.weight"] = "model-00001-of-00002.safetensors"
    index.write_text(json.dumps(content))
    with pytest.raises(ConvertError, match=r"does not have model\.ghost\.weight"):
        run(source, tmp_path)


def test_pickles_and_unknown_dtypes_are_refused(tmp_path):
    source, config, tensors = make(tmp_path)
    save_safetensors(source / "model.safetensors", tensors, "I32")
    with pytest.raises(ConvertError, match="is I32"):
        run(source, tmp_path)
    (source / "model.safetensors").rename(source / "pytorch_model.bin")
    with pytest.raises(ConvertError, match="pytorch_model.bin: pickle files are not read"):
        run(source, tmp_path)


def test_sources_that_are_none_are_refused(tmp_path):
    (tmp_path / "x.txt").write_text("hello, this is no model at all, only some text")
    (tmp_path / "x.safetensors").write_bytes(b"\0" * 64)
    for source, message in (
        (tmp_path / "nowhere", "no such file"),
        (tmp_path / "x.txt", "not a GGUF file"),
        (tmp_path / "x.safetensors", "give the directory"),
        (tmp_path, "no config.json"),
    ):
        with pytest.raises(ConvertError, match=message):
            run(source, tmp_path)
    flat = tmp_path / "out.llm"
    convert(make(tmp_path)[0], flat, tokenizer=False)
    with pytest.raises(ConvertError, match="flat file already"):
        run(flat, tmp_path, "again.llm")


def test_the_source_is_never_overwritten(tmp_path):
    source = save_gguf(tmp_path / "tiny.gguf", "llama", LLAMA, make_tensors("llama", LLAMA))
    data = source.read_bytes()
    with pytest.raises(ConvertError, match="part of the source"):
        convert(source, source, tokenizer=False)
    assert source.read_bytes() == data


@pytest.mark.parametrize(("library", "package"), [("gguf", "gguf"), ("huggingface_hub", "huggingface_hub")])
def test_a_missing_library_is_named_with_how_to_install_it(tmp_path, monkeypatch, library, package):
    (tmp_path / "x.gguf").write_bytes(b"GGUF" + bytes(60))
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ConvertError, match=f"pip install {package}"):
        run(tmp_path / "x.gguf" if library == "gguf" else "someone/model", tmp_path)


# ---------------------------------------------------------------------------------------------------------
# Sections


TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def test_texts_are_carried(tmp_path):
    source, _, _ = make(tmp_path, change=lambda c, t: c.update(description="A test\nof  texts"))
    (source / "tokenizer_config.json").write_text(
        json.dumps({"chat_template": TEMPLATE, "eos_token": {"content": "</s>"}})
    )
    (source / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Tiny\n")
    sections = run(source, tmp_path, dtype="int8")[0].sections()
    assert sections[lib.LLM_NAME] == b"tiny"
    assert sections[lib.LLM_ABOUT].decode().splitlines() == [
        "family: Llama",
        "architecture: LlamaForCausalLM",
        "source: tiny",
        "license: apache-2.0",
        "description: A test of texts",
        "dtype: int8",
    ]
    assert sections[lib.LLM_CHAT_TEMPLATE].decode() == TEMPLATE
    pytest.importorskip("jinja2")
    assert sections[lib.LLM_CHAT_PARTS].decode().split("\0") == [
        "<system>",
        "</s><user>",
        "<user>",
        "</s><assistant>",
        "</s><user>",
        "",
        "",
    ]
    assert run(source, tmp_path, name="Other")[0].sections()[lib.LLM_NAME] == b"Other"


def test_template_sources_are_taken_in_transformers_order(tmp_path):
    source, _, _ = make(tmp_path)
    settings = source / "tokenizer_config.json"
    assert run(source, tmp_path)[0].sections()[lib.LLM_CHAT_WHY] == b"the model has no chat template"
    settings.write_text(
        json.dumps(
            {"chat_template": [{"name": "tool", "template": "T"}, {"name": "default", "template": "D"}]}
        )
    )
    assert run(source, tmp_path)[0].sections()[lib.LLM_CHAT_TEMPLATE] == b"D"
    (source / "chat_template.jinja").write_text("J")
    assert run(source, tmp_path)[0].sections()[lib.LLM_CHAT_TEMPLATE] == b"J"
    (tmp_path / "mine.jinja").write_text("M")
    sections = run(source, tmp_path, chat_template=tmp_path / "mine.jinja")[0].sections()
    assert sections[lib.LLM_CHAT_TEMPLATE] == b"M" and lib.LLM_CHAT_PARTS not in sections
    assert sections[lib.LLM_CHAT_WHY]


def test_named_templates_of_all_sources_are_carried(tmp_path):
    named = {"default": TEMPLATE, "tool_use": "T", "rag": "R"}
    items = [{"name": name, "template": text} for name, text in named.items()]
    source, _, _ = make(tmp_path)
    (source / "tokenizer_config.json").write_text(json.dumps({"chat_template": items}))
    gguf = save_gguf(
        tmp_path / "file.gguf",
        "llama",
        LLAMA,
        make_tensors("llama", LLAMA),
        metadata=[lambda w: w.add_chat_template(items)],
    )
    (tmp_path / "mine.jinja").write_text("M")
    for each in (source, gguf):
        flat, report = run(each, tmp_path)
        assert flat.sections()[lib.LLM_CHAT_TEMPLATE].decode() == TEMPLATE
        assert flat.sections()[lib.LLM_CHAT_TEMPLATE_TOOLS] == b"T"
        assert "chat templates that are left out: rag" in report.notes
        sections = run(each, tmp_path, chat_template=tmp_path / "mine.jinja")[0].sections()
        assert sections[lib.LLM_CHAT_TEMPLATE] == b"M" and lib.LLM_CHAT_TEMPLATE_TOOLS not in sections
    folder = source / "additional_chat_templates"
    folder.mkdir()
    (folder / "tool_use.jinja").write_text("A")
    sections = run(source, tmp_path)[0].sections()
    assert lib.LLM_CHAT_TEMPLATE not in sections and sections[lib.LLM_CHAT_TEMPLATE_TOOLS] == b"A"
    assert sections[lib.LLM_CHAT_WHY] == b"the model has no chat template"
    (source / "chat_template.jinja").write_text("A")
    sections = run(source, tmp_path)[0].sections()
    assert sections[lib.LLM_CHAT_TEMPLATE] == b"A" and lib.LLM_CHAT_TEMPLATE_TOOLS not in sections


UNKNOWN = "keys that are not known here, and nothing was made of them: "


def unknown_keys(report):
    """The end of the note that names the unknown keys of the report's source; None without one."""
    return next((note.partition(UNKNOWN)[2] for note in report.notes if UNKNOWN in note), None)


def test_a_key_that_no_family_knows_is_named_in_a_note(tmp_path):
    rope = {"rope_type": "default", "rope_theta": 10000.0, "xpos_section": [2, 3, 3]}
    config = LLAMA | {"attn_gate_scale": 2.0, "rope_parameters": rope, "dtype": "float32", "other": None}
    config |= {"rope_interleaved": False, "mask_token_id": 3, "residual_dropout": 0.1}
    source = save(tmp_path / "src", config, make_tensors("llama", LLAMA))
    flat, report = run(source, tmp_path)
    assert unknown_keys(report) == "attn_gate_scale, rope_parameters.xpos_section"
    assert flat.data == run(save(source, LLAMA, make_tensors("llama", LLAMA)), tmp_path)[0].data
    save(source, LLAMA | {"rope_interleaved": True}, make_tensors("llama", LLAMA))
    assert unknown_keys(run(source, tmp_path)[1]) == "rope_interleaved"


def test_unknown_keys_make_one_short_line(tmp_path):
    strange = {"x" * 100000: 1, "\x1b[31m\nred": 2, "é": 3} | {f"key_{i}": i for i in range(1000)}
    source = save(tmp_path / "src", LLAMA | strange, make_tensors("llama", LLAMA))
    (note,) = (note for note in run(source, tmp_path)[1].notes if UNKNOWN in note)
    assert note.isprintable() and len(note) < 500 and note.endswith("key_4 and 995 more")


def test_metadata_of_gguf_that_nothing_reads_is_named_in_a_note(tmp_path):
    metadata = [
        lambda w: w.add_vocab_size(70),
        lambda w: w.add_float32("llama.attention.gate_scale", 2.0),
        lambda w: w.add_string("general.author", "somebody"),
    ]
    tensors = make_tensors("llama", LLAMA)
    source = save_gguf(tmp_path / "file.gguf", "llama", LLAMA, tensors, metadata=metadata)
    assert unknown_keys(run(source, tmp_path)[1]) == "llama.attention.gate_scale"
    source = save_gguf(tmp_path / "file.gguf", "llama", LLAMA, tensors, metadata=metadata[:1])
    assert unknown_keys(run(source, tmp_path)[1]) is None


def test_a_given_template_says_what_ends_a_generation(tmp_path, monkeypatch):
    """As if the source had it."""
    monkeypatch.setattr(verify_tokenizer, "verify", lambda file, folder: "")
    texts = ["<unk>", "<s>", "</s>", "<|im_end|>", "<|eot_id|>", *map(chr, range(97, 123))]
    tokens = {"model": {"type": "BPE", "vocab": {text: i for i, text in enumerate(texts)}, "merges": []}}
    tokens["added_tokens"] = [{"id": i, "content": texts[i], "special": True} for i in range(5)]
    level = {"type": "ByteLevel", "add_prefix_space": False}
    tokens |= {"pre_tokenizer": level, "decoder": level}
    source, _, _ = make(tmp_path)
    for folder, template in ((source, "{{ x }}<|eot_id|>"), (tmp_path, "{{ y }}<|im_end|>")):
        (folder / "tokenizer.json").write_text(json.dumps(tokens))
        (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))
        (folder / "chat_template.jinja").write_text(template)
    mine = {"chat_template": tmp_path / "chat_template.jinja"}
    gguf = [  # without an EOS: that of Llama is 2
        lambda w: w.add_tokenizer_model("llama"),
        lambda w: w.add_token_list(texts),
        lambda w: w.add_token_scores([0.0] * len(texts)),
        lambda w: w.add_token_types([3] * 5 + [1] * (len(texts) - 5)),
        lambda w: w.add_chat_template("{{ x }}<|eot_id|>"),
    ]
    file = save_gguf(tmp_path / "file.gguf", "llama", LLAMA, make_tensors("llama", LLAMA), metadata=gguf)
    for given, options, stops in (
        (source, {}, {2, 4}),
        (source, mine, {2, 3}),
        (source, {"tokenizer": tmp_path}, {2, 4}),  # the template in the file counts
        (source, mine | {"tokenizer": source}, {2, 3}),
        (file, {}, {2, 4}),
        (file, mine, {2, 3}),
        (file, mine | {"tokenizer": source}, {2, 3}),
    ):
        sections = run(given, tmp_path, **{"tokenizer": None, **options})[0].sections()
        assert set(np.frombuffer(sections[lib.LLM_STOP], "<u4").tolist()) == stops
    (source / "chat_template.jinja").unlink()  # no template at all: that of --tokenizer's directory
    sections = run(source, tmp_path, tokenizer=tmp_path)[0].sections()
    assert set(np.frombuffer(sections[lib.LLM_STOP], "<u4").tolist()) == {2, 3}


def test_gguf_texts_are_carried(tmp_path):
    tokens = [
        lambda w: w.add_tokenizer_model("llama"),
        lambda w: w.add_token_list(["<s>", "</s>"]),
        lambda w: w.add_eos_token_id(1),
        lambda w: w.add_chat_template(TEMPLATE),
    ]
    source = save_gguf(tmp_path / "file.gguf", "llama", LLAMA, make_tensors("llama", LLAMA), metadata=tokens)
    sections = run(source, tmp_path)[0].sections()
    assert sections[lib.LLM_NAME] == b"Tiny" and b"license: mit" in sections[lib.LLM_ABOUT]
    assert b"source: file.gguf" in sections[lib.LLM_ABOUT]
    assert b"</s><user>" in sections[lib.LLM_CHAT_PARTS]


def test_tokenizer_sections_are_written_and_verified(tmp_path, monkeypatch):
    source, _, _ = make(tmp_path)
    with pytest.raises(ConvertError, match="no tokenizer found.*--no-tokenizer"):
        run(source, tmp_path, tokenizer=None)
    (source / "tokenizer.json").write_text("{}")
    seen = []
    sections = {lib.LLM_TOKENIZER: b"t"}
    monkeypatch.setattr(huggingface_tokenizer, "from_directory", lambda path, template: sections)

    def agree(file, folder):
        seen.append((file.exists(), folder))
        return "all the same"

    monkeypatch.setattr(verify_tokenizer, "verify", agree)
    report = convert(source, tmp_path / "out.llm")
    assert seen == [(True, source)] and "all the same" in report.notes

    def refuse(file, folder):
        raise ValueError("token 3 differs")

    monkeypatch.setattr(verify_tokenizer, "verify", refuse)
    with pytest.raises(ConvertError, match="token 3 differs"):
        convert(source, tmp_path / "other.llm")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.llm", "src"]


def test_llama2c_tokenizer_lies_beside_or_is_given(tmp_path, monkeypatch):
    config = LLAMA | {"head_dim": 12}
    save_llama2c(tmp_path / "tiny.bin", config, make_tensors("llama", config), 0)
    with pytest.raises(ConvertError, match="no tokenizer found"):
        convert(tmp_path / "tiny.bin", tmp_path / "out.llm")
    asked = []

    def read(path, size, template):
        asked.append((path.name, size))
        return {lib.LLM_TOKENIZER: b"t"}

    monkeypatch.setattr(llama2c_tokenizer, "from_llama2c", read)
    (tmp_path / "tokenizer.bin").write_bytes(b"")
    convert(tmp_path / "tiny.bin", tmp_path / "out.llm")
    (tmp_path / "tokenizer.bin").rename(tmp_path / "tok512.bin")
    convert(tmp_path / "tiny.bin", tmp_path / "out.llm", tokenizer=tmp_path / "tok512.bin")
    assert asked == [("tokenizer.bin", 70), ("tok512.bin", 70)]


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(tmp_path, monkeypatch):
    source, _, _ = make(tmp_path)
    (source / "tokenizer.json").write_text("{}")
    monkeypatch.setattr(verify_tokenizer, "verify", lambda file, folder: "")
    control = {lib.LLM_TOKEN_TYPES: bytes(70) + bytes([lib.LLM_TOKEN_SPECIAL, lib.LLM_TOKEN_ABSENT])}
    monkeypatch.setattr(huggingface_tokenizer, "from_directory", lambda path, template: control)
    convert(source, tmp_path / "out.llm")
    ordinary = {lib.LLM_TOKEN_TYPES: bytes(71)}
    monkeypatch.setattr(huggingface_tokenizer, "from_directory", lambda path, template: ordinary)
    with pytest.raises(ConvertError, match="has a token 70, and the model's vocabulary ends at 69"):
        convert(source, tmp_path / "out.llm")


def test_an_added_token_one_past_the_rows_is_of_the_same_model(tmp_path, monkeypatch):
    """<pad> that only tokenizer_config.json adds: special or not, the model just never sees it."""
    source, _, _ = make(tmp_path)
    (source / "tokenizer.json").write_text("{}")
    monkeypatch.setattr(verify_tokenizer, "verify", lambda file, folder: "")
    added = struct.pack("<2I", 1, 0) + struct.pack("<4I", 70, 0, 0, 5) + b"<pad>"
    sections = {lib.LLM_TOKEN_TYPES: bytes(71), lib.LLM_ADDED: added}
    monkeypatch.setattr(huggingface_tokenizer, "from_directory", lambda path, template: sections)
    convert(source, tmp_path / "out.llm")


def test_a_hub_name_is_downloaded_by_huggingface_hub(tmp_path, monkeypatch):
    source, _, _ = make(tmp_path)
    hub = types.ModuleType("huggingface_hub")
    asked = []
    hub.snapshot_download = lambda name, allow_patterns: asked.append((name, allow_patterns)) or str(source)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    monkeypatch.chdir(tmp_path)
    report = convert("someone/small-1.5", tokenizer=False)
    assert report.path.name == "small-1.5.llm" and asked[0][0] == "someone/small-1.5"
    assert "*.safetensors" in asked[0][1] and not any("bin" in pattern for pattern in asked[0][1])
    assert Flat(report.path).sections()[lib.LLM_NAME] == b"someone/small-1.5"

    def fail(name, allow_patterns):
        raise RuntimeError("401 Client Error\nfor url ...")

    hub.snapshot_download = fail
    with pytest.raises(ConvertError, match="someone/gated: cannot be downloaded .401 Client Error"):
        convert("someone/gated", tokenizer=False)


def damaged(data, seed):
    """The file with a few bytes of its first part changed, and sometimes cut short."""
    rng, data = random.Random(seed), bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        data[rng.randrange(min(1500, len(data)))] = rng.choice((0, 1, 255, rng.randrange(256)))
    return data[: rng.randrange(len(data))] if rng.random() < 0.2 else data


@pytest.mark.parametrize("kind", ["model.safetensors", "config.json", "0.bin", "1.bin", "2.bin"])
def test_damaged_sources_are_converted_or_refused(tmp_path, kind):
    config = LLAMA | {"head_dim": 12, "max_position_embeddings": 32}
    tensors = make_tensors("llama", config)
    source = save(tmp_path / "src", config, tensors)
    path = source / kind
    if kind.endswith(".bin"):
        save_llama2c(path, config, tensors, int(kind[0]))
    data = path.read_bytes()
    for seed in range(60):
        path.write_bytes(damaged(data, seed))
        try:
            run(path if kind.endswith(".bin") else source, tmp_path)
        except ValueError:
            pass
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith(".")) == []


# ---------------------------------------------------------------------------------------------------------
# The command, and its memory


def test_command_reports_and_writes_to_the_current_directory(tmp_path, monkeypatch, capsys):
    source, _, _ = make(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert command.main([str(source), "--dtype", "int8", "--no-tokenizer"]) == 0
    out, err = capsys.readouterr()
    assert "tiny.llm" in out and "largest error" in out and "mean" in out and err == ""
    assert Flat(tmp_path / "tiny.llm").header.dtype[lib.LLM_EMBED] == lib.LLM_INT8_ROTATED
    assert command.main([str(source), "quiet.llm", "--quiet", "--no-tokenizer"]) == 0
    assert capsys.readouterr() == ("", "")


def test_progress_is_shown_in_bytes_on_a_terminal_only(tmp_path, monkeypatch, capsys):
    source, _, _ = make(tmp_path)
    convert(source, tmp_path / "out.llm", tokenizer=False, quiet=False)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    size = convert(source, tmp_path / "out.llm", tokenizer=False, quiet=False).bytes
    pytest.importorskip("tqdm")
    with command.progress_bar(2 * size, quiet=False) as advance:
        time.sleep(0.15)  # the bar is not drawn more often than every 0.1 s
        advance(size)
    shown = capsys.readouterr().err
    assert " 50%|" in shown and "B/s" in shown and "\n" not in shown


def test_command_fails_with_one_line_and_status_1(tmp_path, capsys):
    source, _, _ = make(tmp_path, change=REFUSED["NaN"][0])
    assert command.main([str(source), str(tmp_path / "x.llm"), "--no-tokenizer"]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("pyllm-convert: ") and err.count("\n") == 1
    assert command.main([str(tmp_path / "nowhere")]) == 1


@pytest.mark.parametrize(
    "arguments",
    [[], ["a", "--dtype", "int3"], ["a", "--tokenizer", "b", "--no-tokenizer"], ["a", "--context", "0"]],
)
def test_command_exits_with_2_on_wrong_usage(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        command.main(arguments)
    assert caught.value.code == 2 and "usage: pyllm-convert" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_the_model(tmp_path):
    """400 MB of bf16 zeros (a sparse file); the peak may grow by less than a quarter of that."""
    rows, dim = 100_000, 1024
    config = LLAMA | {"hidden_size": dim, "vocab_size": rows, "num_hidden_layers": 1, "head_dim": 16}
    small = make_tensors("llama", config | {"vocab_size": 1})
    small = {n: a for n, a in small.items() if n not in ("model.embed_tokens.weight", "lm_head.weight")}
    header, at = {}, 0
    for name, array in small.items():
        header[name] = {
            "dtype": "BF16",
            "shape": list(array.shape),
            "data_offsets": [at, at + 2 * array.size],
        }
        at += 2 * array.size
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        header[name] = {"dtype": "BF16", "shape": [rows, dim], "data_offsets": [at, at + 2 * rows * dim]}
        at += 2 * rows * dim
    folder = tmp_path / "big"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    text = json.dumps(header).encode()
    with open(folder / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + at)
    # VmHWM and not getrusage's ru_maxrss, which a child inherits from the process that started it
    code = f"""
from pyllm.tools.convert import convert
def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 1024
before = peak()
convert({str(folder)!r}, {str(tmp_path / "out.llm")!r}, dtype="int8", tokenizer=False)
print(peak() - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    (tmp_path / "out.llm").unlink()
    assert float(done.stdout) < 100, f"{done.stdout} MB"


# ---------------------------------------------------------------------------------------------------------
# Outputs: only a regular file is replaced, and stays what it was


def test_a_symbolic_link_stays_and_what_it_leads_to_is_replaced(tmp_path):
    source, _, _ = make(tmp_path)
    (tmp_path / "there").mkdir()
    link, target = tmp_path / "link.llm", tmp_path / "there" / "model.llm"
    link.symlink_to("there/model.llm")
    for before in (None, b"precious"):  # a dangling one is where the file will be
        if before:
            target.write_bytes(before)
        convert(source, link, tokenizer=False)
        assert link.is_symlink() and os.readlink(link) == "there/model.llm"
        assert Flat(target).header.dim == 48
    assert os.listdir(tmp_path / "there") == ["model.llm"]
    loop = tmp_path / "loop"
    loop.symlink_to("loop")
    with pytest.raises(OSError, match="loop"):
        convert(source, loop, tokenizer=False)
    assert loop.is_symlink()


def test_a_replaced_file_keeps_its_permissions_and_a_new_one_has_the_usual(tmp_path):
    source, _, _ = make(tmp_path)
    out = tmp_path / "out.llm"
    before = os.umask(0o027)
    try:
        convert(source, out, tokenizer=False)
        assert stat.S_IMODE(out.stat().st_mode) == 0o640
        for mode in (0o600, 0o664, 0o755):
            out.chmod(mode)
            convert(source, out, tokenizer=False)
            assert stat.S_IMODE(out.stat().st_mode) == mode
    finally:
        os.umask(before)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_as_root_a_replaced_file_keeps_its_owner(tmp_path):
    source, _, _ = make(tmp_path)
    out = tmp_path / "out.llm"
    out.write_bytes(b"")
    os.chown(out, 65534, 65533)
    convert(source, out, tokenizer=False)
    assert (out.stat().st_uid, out.stat().st_gid) == (65534, 65533) and out.stat().st_size > 0


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anything")
def test_read_only_files_and_directories_are_refused_before_any_work(tmp_path):
    source, _, _ = make(tmp_path)
    out = tmp_path / "out.llm"
    out.write_bytes(b"precious")
    out.chmod(0o444)
    with pytest.raises(PermissionError):
        convert(source, out, tokenizer=False)
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    with pytest.raises(PermissionError, match="closed"):
        convert(source, closed / "out.llm", tokenizer=False)
    assert out.read_bytes() == b"precious"


def special_files(folder):
    """Something of each kind that no file can be written over, and what a message calls it."""
    os.mkfifo(folder / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        before = os.getcwd()
        os.chdir(folder)  # an address is short
        listener.bind("socket")
        os.chdir(before)
    (folder / "directory").mkdir()
    (folder / "link").symlink_to("/dev/null")
    return {
        folder / "fifo": "a pipe",
        folder / "socket": "a socket",
        folder / "directory": "a directory",
        folder / "link": "a device",
        Path("/dev/null"): "a device",
    }


def test_what_is_no_regular_file_is_refused_and_stays(tmp_path, capsys):
    source, _, _ = make(tmp_path)
    for path, kind in special_files(tmp_path).items():
        before = os.lstat(path)
        with pytest.raises(ConvertError, match=f"{path} is {kind}, not a file"):
            convert(source, path, tokenizer=False)
        assert command.main([str(source), str(path), "--no-tokenizer"]) == 1
        assert f"{path} is {kind}" in capsys.readouterr().err
        after = os.lstat(path)
        assert (after.st_ino, after.st_mode) == (before.st_ino, before.st_mode)
    assert not list(tmp_path.glob(".pyllm*"))


def run_command(arguments, shell="{}", **options):
    """`arguments` of pyllm-convert in a process of its own; {} in `shell` is the command."""
    line = shlex.join([sys.executable, "-m", "pyllm.tools.convert", *map(str, arguments)])
    return subprocess.run(
        ["bash", "-c", shell.replace("{}", line)], capture_output=True, text=True, cwd="/", **options
    )


def test_the_file_that_stdout_goes_to_is_refused(tmp_path):
    source, _, _ = make(tmp_path)
    out = tmp_path / "out.llm"
    for path in (out, "/dev/stdout"):
        done = run_command([source, path, "--no-tokenizer"], f"{{}} > {shlex.quote(str(out))}")
        assert done.returncode == 1 and "where this program's output goes" in done.stderr
        assert out.read_bytes() == b""


@pytest.mark.parametrize("shell", ["{} | true", "{} > /dev/full", "{} >&-", "{} > /dev/full 2>&1", "{} 2>&-"])
def test_a_good_conversion_stays_when_nobody_takes_the_report(tmp_path, shell):
    source, _, _ = make(tmp_path)
    out = tmp_path / "out.llm"
    done = run_command([source, out, "--no-tokenizer"], f"set -o pipefail; {shell}")
    assert Flat(out).header.dim == 48  # also with descriptor 1 free for it
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr
    if shell == "{} 2>&-":
        assert done.returncode == 0 and "largest error" in done.stdout
    elif shell == "{} | true":
        assert done.returncode in (0, 1) and done.stderr == ""  # 0: it was faster than true
    else:
        assert done.returncode == 1 and done.stderr.count("\n") <= 1
        assert ("cannot write to standard output" in done.stderr) == (shell != "{} > /dev/full 2>&1")


@pytest.mark.parametrize("arguments", [["--help"], ["--plan", "config.json"]])
@pytest.mark.parametrize("where", ["> /dev/full", "| (exec <&-; sleep 1.5)", "2>&- >/dev/full"])
def test_help_and_plan_end_without_a_traceback_when_nobody_reads_them(tmp_path, arguments, where):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    arguments = [str(tmp_path / a) if a.endswith(".json") else a for a in arguments]
    done = run_command(arguments, f"set -o pipefail; {{}} {where}")
    assert done.returncode == 1
    assert done.stderr.count("\n") == (where == "> /dev/full") and "Traceback" not in done.stderr


SLOWLY = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)
for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGQUIT):
    signal.signal(number, signal.SIG_DFL)  # a shell's background jobs ignore some
from pyllm.tools import convert, flatfile
real, flatfile.JOB = flatfile.run_job, 640
def slow(fd, job):
    time.sleep(0.2)
    return real(fd, job)
flatfile.run_job = slow
sys.exit(convert.main(sys.argv[1:]))
"""


@pytest.mark.parametrize("name", ["SIGHUP", "SIGINT", "SIGTERM", "SIGQUIT"])
def test_a_signal_leaves_no_temporary_file(tmp_path, name):
    source, _, _ = make(tmp_path)
    folder, number = tmp_path / "folder", getattr(signal, name)
    folder.mkdir()
    line = [sys.executable, "-c", SLOWLY, str(source), str(folder / "out.llm"), "--no-tokenizer"]
    process = subprocess.Popen(line, stderr=subprocess.PIPE, text=True, cwd="/")
    end = time.monotonic() + 60
    while not list(folder.iterdir()) and time.monotonic() < end:
        time.sleep(0.02)
    assert [path.name[:7] for path in folder.iterdir()] == [".pyllm-"]
    for _ in range(3):  # impatient
        process.send_signal(number)
    assert "Traceback" not in process.communicate(timeout=60)[1]
    assert process.returncode == 128 + number and os.listdir(folder) == []


def test_a_signal_that_is_ignored_stays_so(tmp_path):
    """As nohup starts a program."""
    code = (
        "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "from pyllm.tools import convert\n"
        "with convert.terminable():\n"
        "    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN\n"
        "    assert signal.getsignal(signal.SIGTERM) != signal.SIG_DFL\n"
        "assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd="/")


def test_a_file_system_that_is_full_gets_nothing(tmp_path):
    """A limit on the size of files stands for a full disk."""
    source, _, _ = make(tmp_path)
    folder = tmp_path / "folder"
    folder.mkdir()
    done = run_command([source, folder / "out.llm", "--no-tokenizer"], "ulimit -f 8; {}")
    assert done.returncode == 1 and "out.llm: File too large" in done.stderr
    assert os.listdir(folder) == []


# ---------------------------------------------------------------------------------------------------------
# Which files are read, and messages that say the first cause


def test_a_whole_file_is_taken_before_an_index(tmp_path):
    """As _get_resolved_checkpoint_files of transformers 5."""
    source, _, _ = make(tmp_path)
    index = source / "model.safetensors.index.json"
    for stale in ({"weight_map": {"a": "model-00001-of-00002.safetensors"}}, {}, []):
        index.write_text(json.dumps(stale))
        flat, report = run(source, tmp_path)
        assert flat.header.dim == 48
        assert any("model.safetensors was read; model.safetensors.index.json" in n for n in report.notes)
    whole = (source / "model.safetensors").read_bytes()
    (source / "model.safetensors").unlink()
    with pytest.raises(ConvertError, match="index.json: not a JSON object"):
        run(source, tmp_path)
    (source / "fp16.safetensors").write_bytes(whole)  # the file that config.json names is the first of all
    config = json.loads((source / "config.json").read_text())
    for given in (
        "fp16.safetensors",
        "../tiny/fp16.safetensors",
        "a\0.safetensors",
        "x.bin",
        3,
        "no.safetensors",
    ):
        (source / "config.json").write_text(json.dumps(config | {"transformers_weights": given}))
        if given == "fp16.safetensors":
            run(source, tmp_path)
            continue
        with pytest.raises(ConvertError, match="transformers_weights is|no.safetensors in it"):
            run(source, tmp_path)


def test_the_order_of_files_is_that_of_transformers(tmp_path):
    modeling = pytest.importorskip("transformers.modeling_utils")
    source, _, _ = make(tmp_path, shards=2)
    for name in ("model.safetensors", "pytorch_model.bin", "fp16.safetensors"):
        config = json.loads((source / "config.json").read_text())
        if name == "fp16.safetensors":
            config["transformers_weights"] = name
        (source / name).write_bytes(b"x")
        theirs, _ = modeling._get_resolved_checkpoint_files(
            str(source), None, None, None, None, False, config.get("transformers_weights"), {}
        )
        first = theirs[0] if isinstance(theirs, list) else theirs
        assert str(huggingface.weights_file(source, config)) == first
    (source / "model.safetensors").unlink()
    assert huggingface.weights_file(source, {}).name == "model.safetensors.index.json"


def test_shards_without_an_index_and_adapters_are_named(tmp_path):
    source, _, _ = make(tmp_path, shards=3)
    (source / "model.safetensors.index.json").unlink()
    with pytest.raises(
        ConvertError, match=r"model-00001-of-00003.safetensors, .* no model.safetensors.index"
    ):
        run(source, tmp_path)
    save_lora(tmp_path / "adapter", {"lm_head": (70, 48)})
    with pytest.raises(ConvertError, match="it is a LoRA adapter.*--lora"):
        run(tmp_path / "adapter", tmp_path)
    (tmp_path / "adapter" / "config.json").write_text(json.dumps(LLAMA))
    with pytest.raises(ConvertError, match="is a LoRA adapter.*--lora"):
        run(tmp_path / "adapter", tmp_path)


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize 269060552\n" % (b"0" * 64)


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "chat_template.jinja",
    ],
)
def test_a_git_lfs_pointer_is_called_so(tmp_path, name):
    source, _, _ = make(tmp_path)
    (source / "tokenizer.json").write_text("{}")
    (source / name).write_bytes(POINTER)
    with pytest.raises(ConvertError, match=f"{name} is a git-lfs pointer, not the file itself: git lfs pull"):
        convert(source, tmp_path / "out.llm")
    (source / name).write_bytes(b"<!DOCTYPE html>\n<html><title>404</title></html>")
    with pytest.raises(ConvertError, match=f"{name} is an HTML page"):
        convert(source, tmp_path / "out.llm")


def test_other_files_that_are_git_lfs_pointers_are_called_so(tmp_path):
    source, _, _ = make(tmp_path, shards=2)
    save_lora(tmp_path / "adapter", {"lm_head": (70, 48)})
    for name in ("x.gguf", "x.bin", "tokenizer.bin"):
        (tmp_path / name).write_bytes(POINTER)
    for path in (tmp_path / "x.gguf", tmp_path / "x.bin"):
        with pytest.raises(ConvertError, match=f"{path.name} is a git-lfs pointer"):
            run(path, tmp_path)
    with pytest.raises(ConvertError, match="tokenizer.bin is a git-lfs pointer"):
        convert(source, tmp_path / "out.llm", tokenizer=tmp_path / "tokenizer.bin")
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        kept = (tmp_path / "adapter" / name).read_bytes()
        (tmp_path / "adapter" / name).write_bytes(POINTER)
        with pytest.raises(ConvertError, match=f"{name} is a git-lfs pointer"):
            run(source, tmp_path, lora=[tmp_path / "adapter"])
        (tmp_path / "adapter" / name).write_bytes(kept)
    (source / "model-00002-of-00002.safetensors").write_bytes(POINTER)
    with pytest.raises(ConvertError, match="model-00002-of-00002.safetensors is a git-lfs pointer"):
        run(source, tmp_path)
    (source / "model.safetensors.index.json").write_bytes(POINTER)
    with pytest.raises(ConvertError, match="index.json is a git-lfs pointer"):
        run(source, tmp_path)


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"]
)
def test_what_stands_in_place_of_a_file_is_named(tmp_path, name):
    source, _, _ = make(tmp_path)
    (source / "tokenizer.json").write_text("{}")
    path = source / name
    for make_it, message in (
        (lambda: path.mkdir(), "is a directory, not a file"),
        (lambda: path.symlink_to("../blobs/gone"), "is a link to ../blobs/gone, which does not exist"),
        (lambda: os.mkfifo(path), "is a pipe, not a file"),  # which is not waited for
    ):
        path.unlink(missing_ok=True)
        make_it()
        with pytest.raises(ConvertError, match=f"{name} {message}"):
            convert(source, tmp_path / "out.llm")
        if path.is_dir():
            path.rmdir()


def test_an_empty_or_short_file_is_called_so(tmp_path):
    source, _, _ = make(tmp_path)
    text = (source / "config.json").read_text()
    for name in ("config.json", "model.safetensors"):
        kept = (source / name).read_bytes()
        (source / name).write_bytes(b"")
        with pytest.raises(ConvertError, match=f"{name}: truncated, it is empty"):
            run(source, tmp_path)
        (source / name).write_bytes(kept)
    for content, message in (
        (text[: len(text) // 2], "config.json: not valid JSON"),
        ("Entry not found", "it begins with 'Entry not found'"),
        ("[" * 100_000, "config.json: not valid JSON"),
        ('{"a": ' + "1" * 5000 + "}", "config.json: not valid JSON"),
    ):
        (source / "config.json").write_text(content)
        with pytest.raises(ConvertError, match=message):
            run(source, tmp_path)
    (tmp_path / "x.gguf").write_bytes(b"")
    with pytest.raises(ConvertError, match="x.gguf: truncated, it is empty"):
        run(tmp_path / "x.gguf", tmp_path)


def test_a_mistyped_path_is_first_of_all_no_file(tmp_path, monkeypatch, capsys):
    hub = types.ModuleType("huggingface_hub")

    def fail(name, allow_patterns):
        raise RuntimeError("Cannot reach the hub")

    hub.snapshot_download = fail
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    monkeypatch.chdir(tmp_path)
    for arguments in (["models/smolm2"], ["--plan", "models/smolm2"]):
        assert command.main(arguments) == 1
        said = capsys.readouterr().err
        assert said.index("no such file or directory") < said.index("models/smolm2: cannot be downloaded")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for name in ("models/smolm2", "./models/x", "/nowhere/models/x", "smolm2", "smolm2.gguf"):
        assert command.main([name]) == 1
        assert f"{name}: no such file or directory" in capsys.readouterr().err
    source, _, _ = make(tmp_path)
    for options in (["--lora", "nowhere"], ["--tokenizer", "nowhere"], ["--chat-template", "nowhere"]):
        assert command.main([str(source), "out.llm", *options]) == 1
        assert "nowhere: no such" in capsys.readouterr().err.lower()
    assert command.main([str(source), "nowhere/out.llm", "--no-tokenizer"]) == 1
    assert "nowhere: no such directory" in capsys.readouterr().err


def test_names_that_are_not_utf8_are_no_obstacle(tmp_path):
    parent = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    parent.mkdir()
    source, _, _ = make(parent)
    os.rename(source, parent / os.fsdecode(b"mod\xe8le"))
    source = parent / os.fsdecode(b"mod\xe8le")
    save_lora(parent / os.fsdecode(b"\xe0"), {"lm_head": (70, 48)})
    out = parent / os.fsdecode(b"\xe9.llm")
    done = run_command([source, out, "--no-tokenizer", "--lora", parent / os.fsdecode(b"\xe0")])
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert "caf\\udce9" in done.stdout
    sections = Flat(out).sections()
    assert sections[lib.LLM_NAME].decode() == "mod\ufffdle"
    assert "lora: \ufffd\n" in sections[lib.LLM_ABOUT].decode()
    (source / "model.safetensors").unlink()
    done = run_command([source, "--no-tokenizer"])
    assert done.returncode == 1 and "mod\\udce8le: there is no model.safetensors" in done.stderr


def test_control_characters_of_a_source_do_not_reach_the_terminal(tmp_path, capsys):
    source, _, _ = make(tmp_path, change=put_all("a\x1b]0;title\x07", np.ones(3)))
    assert command.main([str(source), str(tmp_path / "x.llm"), "--no-tokenizer"]) == 1
    said = capsys.readouterr().err
    assert "a\\x1b]0;title\\x07" in said and "\x1b" not in said


def test_adapter_keys_with_the_name_of_the_adapter_are_read_without_it(tmp_path):
    """As model.state_dict() has them; save_pretrained leaves the name out."""
    source, _, _ = make(tmp_path)
    halves = save_lora(tmp_path / "a", {"lm_head": (70, 48)})["lm_head"]
    expected = run(source, tmp_path, lora=[tmp_path / "a"])[0].values("LLM_OUTPUT", 0, 0)
    weights = tmp_path / "a" / "adapter_model.safetensors"
    A, B = "base_model.model.lm_head.lora_A", "base_model.model.lm_head.lora_B"

    def save_as(*names):
        save_safetensors(weights, dict(zip(names, halves, strict=False)))

    for name in ("default", "other"):
        save_as(f"{A}.{name}.weight", f"{B}.{name}.weight")
        found = run(source, tmp_path, lora=[tmp_path / "a"])[0].values("LLM_OUTPUT", 0, 0)
        assert np.array_equal(found, expected)
    save_as(f"{A}.one.weight", f"{B}.two.weight")
    with pytest.raises(ConvertError, match="several adapters, one, two: one can be merged"):
        run(source, tmp_path, lora=[tmp_path / "a"])
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(ConvertError, match="no adapter_model.safetensors in it .adapter_model.bin: pickle"):
        run(source, tmp_path, lora=[tmp_path / "a"])


# ---------------------------------------------------------------------------------------------------------
# Hostile numbers and patterns: refused before they cost anything


def test_expressions_for_names_match_what_re_matches():
    names = ["model.layers.0.self_attn.q_proj", "model.layers.11.mlp.down_proj", "lm_head", "q_proj", ""]
    for text in (
        "q_proj",
        "proj",
        ".*proj",
        r".*\.(q|k)_proj",
        r"layers\.\d+\..*",
        r"layers\.(0|1[0-9])\.mlp.down_proj",
        "^model.layers.0.self_attn.q_proj",
        "^q_proj",
        "layers.[^0].*",
        "(lm_)?head",
        ".*",
        "self.attn.q_proj$",
        "model(?=.layers).*",
        "(?!model)l.*",
        r"\w{2}_head",
        r"(\w+\.)*mlp\.(\w+_)+proj",
        r"(la|layers\.\d)+.*",
        r"(model\b\W\w+){0,2}\.11.*",
        "",
    ):
        expression = pattern.NamePattern(text, "the expression", 10_000)
        found = [expression.matches(name) for name in names]
        assert found == [re.match(rf"(.*\.)?({text})$", name) is not None for name in names], text


@pytest.mark.parametrize(
    "text",
    [
        "(",
        "(a+)+$",
        "(.*)*x",
        "(a|a)*b",
        "(" * 5000 + ")" * 5000,
        "[" * 5000,
        ".*" * 500 + "x",
        "." * 16000,
        "[^a]" * 4000,
        "a{4000000000}",
        r"(a)\1",
        "x" * 100_000,
        "é" * 10 + "*" * 3,
    ],
)
def test_expressions_of_an_adapter_end_in_a_result_or_an_error_soon(tmp_path, text):
    source, _, _ = make(tmp_path)
    save_lora(tmp_path / "adapter", {"lm_head": (70, 48)}, alpha_pattern={text: 1})
    start = time.monotonic()
    try:
        run(source, tmp_path, lora=[tmp_path / "adapter"])
    except ConvertError as error:
        assert "alpha_pattern" in str(error) and len(str(error)) < 1000
    assert time.monotonic() - start < 20


def test_an_expression_that_would_take_long_is_refused_by_its_steps():
    expression = pattern.NamePattern(".*" * 500 + "x", "the expression", 1_000_000)
    with pytest.raises(ValueError, match="takes too long to match"):
        for _ in range(1000):
            expression.matches("a." * 500)


@pytest.mark.parametrize("text", ["(" * 1000, "[" * 1000, "." * 5000, "[^a]" * 2000, "a" * 100_000])
def test_expressions_of_tokenizers_are_bounded(text):
    with pytest.raises(ValueError, match="expression"):
        pattern.Parser(text).parse()


def gguf_string(text):
    return struct.pack("<Q", len(text)) + text.encode()


ARCHITECTURE = gguf_string("general.architecture") + struct.pack("<I", 8) + gguf_string("llama")


@pytest.mark.parametrize(
    "tail",
    [
        struct.pack("<QQ", 1 << 60, 0),
        struct.pack("<QQ", 0, 1 << 60),
        struct.pack("<QQ", 0, 1) + struct.pack("<Q", 1 << 60),
        struct.pack("<QQ", 0, 2) + ARCHITECTURE + gguf_string("a") + struct.pack("<IQ", 8, (1 << 64) - 1),
        struct.pack("<QQ", 0, 2) + ARCHITECTURE + gguf_string("a") + struct.pack("<IIQ", 9, 0, 1 << 60),
        struct.pack("<QQ", 0, 2) + ARCHITECTURE + gguf_string("a") + struct.pack("<IIQ", 9, 8, 1 << 60),
        struct.pack("<QQ", 0, 2) + ARCHITECTURE + gguf_string("a") + struct.pack("<IIQ", 9, 9, 1 << 60),
        struct.pack("<QQ", 0, 2) + ARCHITECTURE + gguf_string("a") + struct.pack("<I", 77),
        struct.pack("<QQ", 1, 0) + gguf_string("x") + struct.pack("<I", 0xFFFFFFFF),
        struct.pack("<QQ", 1, 0) + gguf_string("x") + struct.pack("<IQQIQ", 2, 1 << 62, 1 << 62, 0, 0),
        struct.pack("<QQ", 0, 2) + ARCHITECTURE * 2,
    ],
)
def test_absurd_counts_in_a_gguf_header_are_refused_at_once(tmp_path, tail):
    path = tmp_path / "x.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<I", 3) + tail + bytes(64))
    tracemalloc.start()
    start = time.monotonic()
    with pytest.raises(ConvertError, match="x.gguf"):
        convert(path, tmp_path / "out.llm")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6 and time.monotonic() - start < 5


def test_gguf_metadata_is_what_the_gguf_library_reads(tmp_path):
    gguf = pytest.importorskip("gguf")
    config = LLAMA | {"hidden_size": 64, "intermediate_size": 96}
    tensors = make_tensors("llama", config)
    path = save_gguf(tmp_path / "tiny.gguf", "llama", config, tensors, gguf.GGMLQuantizationType.Q8_0)
    metadata, infos = gguf_header.read(sources.File(path))
    reader = gguf.GGUFReader(path)
    theirs = {key: f.contents() for key, f in reader.fields.items() if not key.startswith("GGUF.")}
    assert metadata == theirs and len(theirs) > 8
    assert [(i.name, i.shape[::-1], i.kind, i.offset) for i in infos] == [
        (t.name, tuple(t.shape.tolist()), int(t.tensor_type), t.data_offset) for t in reader.tensors
    ]


def test_tensors_without_numbers_cost_nothing(tmp_path):
    """A shape with a 0 may have any other numbers."""
    source, _, _ = make(tmp_path)
    path = source / "model.safetensors"
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header, end = json.loads(data[8 : 8 + length]), len(data) - 8 - length
    for name in ("x.mlp.experts.gate_up_proj", "evil{e.__class__}.mlp.experts.down_proj"):
        for shape in ([1 << 50, 0], [1 << 50, 2, 0], [0, 1 << 62]):
            entry = {"dtype": "F32", "shape": shape, "data_offsets": [end, end]}
            text = json.dumps(header | {name: entry}).encode()
            path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])
            with pytest.raises(ConvertError, match="not part of a Llama model"):
                run(source, tmp_path)
    assert sources.Tensor("x", (1 << 62, 0, 1 << 62)).rows == 0


def test_a_model_of_a_million_tensors_is_missed_at_once(tmp_path):
    change = {"architectures": ["MixtralForCausalLM"], "num_local_experts": 1024, "num_hidden_layers": 1024}
    source, _, _ = make(tmp_path, change=lambda c, t: c.update(change))
    start = time.monotonic()
    with pytest.raises(ConvertError, match="more than 1000 tensors are missing"):
        run(source, tmp_path)
    assert time.monotonic() - start < 10


HOSTILE_TEXTS = (
    *("4000000000", "4611686018427387904", "99999999999999999999", "1" + "0" * 400, "1" * 5000),
    *("-1", "0", "-4e9", "0.5", "NaN", "Infinity", "-Infinity", "1e400", "1e300", "1e-320", "1.0000001"),
    *("true", "false", "null", '""', '"2"', '"x"', r'"\ud800"', r'"\u0000"', "[]", "{}", "[1]", "[[1]]"),
    *("[" * 900 + "]" * 900, "[" * 100_000, '"' + "x" * 100_000 + '"', "[" + "0," * 50_000 + "0]"),
    *('{"rope_type": "llama3"}', '{"rope_type": "linear", "factor": 1e-320}', '{"rope_theta": 1e300}'),
    '{"rope_type": "yarn", "factor": 1e300, "beta_fast": 1e-300}',
    '{"rope_type": "longrope", "long_factor": [1e400], "short_factor": "x"}',
    '{"full_attention": {"rope_type": "dynamic", "factor": NaN}}',
)
HOSTILE_KEYS = sorted(
    {key for f in families.FAMILIES.values() for key in (*f.defaults, *f.switches, *f.only, f.ffn)}
    | {*LLAMA, *families.DEFAULTS, "layer_types", "no_rope_layers", "num_experts", "num_local_experts"}
    | {"rope_scaling", "rope_parameters", "rotary_dim", "partial_rotary_factor", "text_config"}
    | {"embedding_multiplier", "residual_multiplier", "attention_multiplier", "logits_scaling"}
    | {"original_max_position_embeddings", "routed_scaling_factor", "license", "description"}
)
FUZZ = """
import contextlib, io, json, resource, sys
from pyllm.tools import convert, plan
plan.read_speed = lambda threads: 1e9
peak = lambda: int(next(line for line in open("/proc/self/status") if line.startswith("VmSize")).split()[1])
limit = peak() * 1024 + (1 << 29)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
for line in sys.stdin:
    path, text = json.loads(line)
    open(path, "w").write(text)
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = convert.main(["--plan", path])
    print(json.dumps([status, out.getvalue()[:200], err.getvalue()]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, limits memory")
def test_hostile_configurations_end_in_a_plan_or_one_sentence(tmp_path):
    """800 configurations with a value of another kind or size, in 512 MiB of memory."""
    rng, cases = random.Random(4), []
    base = LLAMA | {"num_experts": 3, "num_local_experts": 3, "num_experts_per_tok": 2}
    for n in range(800):
        config = base | {"architectures": [sorted(families.FAMILIES)[n % len(families.FAMILIES)]]}
        config[rng.choice(HOSTILE_KEYS)] = "@@"
        cases.append(json.dumps(config).replace('"@@"', rng.choice(HOSTILE_TEXTS)))
    path = str(tmp_path / "config.json")
    given = "".join(json.dumps([path, text]) + "\n" for text in cases)
    start = time.monotonic()
    code = [sys.executable, "-W", "error", "-c", FUZZ]
    done = subprocess.run(code, input=given, capture_output=True, text=True, cwd="/")
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0 and len(answers) == len(cases), done.stderr
    for (status, out, err), text in zip(answers, cases, strict=True):
        assert (status, bool(out), err.count("\n")) in ((0, True, 0), (1, False, 1)), (text[:500], err)
        assert len(err) < 2500 and err.isprintable() or err.endswith("\n") and err[:-1].isprintable()
    assert {status for status, _, _ in answers} == {0, 1}
    assert time.monotonic() - start < 120


def test_damaged_gguf_headers_are_converted_or_refused(tmp_path):
    config = LLAMA | {"max_position_embeddings": 32}
    path = save_gguf(tmp_path / "tiny.gguf", "llama", config, make_tensors("llama", config))
    data, numbers = path.read_bytes(), (0, 1, 1 << 32, 1 << 40, 1 << 63, (1 << 64) - 1)
    for seed in range(150):
        rng, changed = random.Random(seed), bytearray(data)
        for _ in range(rng.choice((1, 2, 4))):
            at = rng.randrange(4, 4000)
            changed[at : at + 8] = struct.pack("<Q", rng.choice(numbers))
        path.write_bytes(changed)
        try:
            run(path, tmp_path)
        except (ConvertError, OSError):
            pass
    assert not list(tmp_path.glob(".*"))
