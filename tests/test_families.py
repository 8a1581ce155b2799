"""Every family against transformers in float32, on the tiny random checkpoints of tools/prove: from a
directory, from shards, from GGUF; and that each special feature of a family matters to these models.

Needs the extra `oracle` (torch, transformers), else it is skipped."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from common import place_of

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from pyllm._llm import lib  # noqa: E402
from pyllm.tools import families, rope, sources  # noqa: E402
from pyllm.tools.convert import convert  # noqa: E402
from pyllm.tools.model import describe  # noqa: E402
from pyllm.tools.sources import ConvertError  # noqa: E402
from reference import HEADER, LAYER, Matrix, Reference, Rounding, edited  # noqa: E402
from test_four_bits import add_tokenizer  # noqa: E402

import pyllm  # noqa: E402
from tools import prove  # noqa: E402
from tools.prove import command, gguf_file, gguf_metadata  # noqa: E402
from tools.prove.gguf_attention import add_latent  # noqa: E402
from tools.prove.gguf_tensors import gguf_tensors  # noqa: E402

# The largest difference of a logit, in units of the logits' standard deviation. With exact=True nearly all of
# it is the rounding of keys and values to fp16 in the engine's cache, 0.0007 at most:
CLOSE = 1e-3
# without, weights and activations of 48 tokens or more are rounded to 13 bits, and it is 0.0023 at most;
ROUNDED = 3e-3
# the NumPy forward pass over the same file, which does not round them, differs by float32's rounding in
# transformers.
CLOSER = 5e-5
# What the difference must exceed where a feature is left out
FAR = 100 * CLOSE


@dataclass
class Made:
    """A case's checkpoint, converted."""

    folder: Path
    ids: np.ndarray
    want: np.ndarray  # (n, vocab_size) logits of transformers
    data: bytes  # of the flat file
    notes: list[str]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Made]:
    """Makes the checkpoint of a case, once."""
    found: dict[str, Made] = {}

    def make(name: str) -> Made:
        if name not in found:
            case, folder = prove.CASES[name], tmp_path_factory.mktemp("families") / "tiny"
            ids = prove.text_for(case)
            want = prove.expected(prove.checkpoint(folder, case), ids)
            notes = convert(folder, out := folder / "out.llm", tokenizer=False, context=case.context).notes
            found[name] = Made(folder, ids, want, out.read_bytes(), notes)
        return found[name]

    return make


def names_unknown_keys(notes: list[str]) -> bool:
    return any("keys that are not known here" in note for note in notes)


def difference(data: bytes, model: Made, exact: bool = True) -> float:
    """The largest difference of the file's logits, as the engine computes them in one call."""
    path = model.folder / "changed.llm"
    path.write_bytes(data)
    with pyllm.LLM(path, exact=exact) as llm:
        return abs(llm.logits(model.ids) - model.want).max() / model.want.std()


@pytest.mark.parametrize("name", prove.CASES)
def test_logits_are_those_of_transformers_in_one_call_in_pieces_and_token_by_token(made, name):
    model = made(name)
    assert max(prove.differences(model.folder / "out.llm", model.ids, model.want)) <= CLOSE
    assert difference(model.data, model, exact=False) <= ROUNDED


@pytest.mark.parametrize("name", prove.CASES)
def test_the_flat_file_holds_the_model_of_transformers_but_for_float32(made, name):
    model = made(name)
    got = Reference(model.data).logits(model.ids.tolist())
    assert abs(got - model.want).max() / model.want.std() <= CLOSER


@pytest.mark.parametrize("name", [name for name, case in prove.CASES.items() if case.gguf])
def test_gguf_files_give_the_logits_of_transformers(made, name, tmp_path):
    pytest.importorskip("gguf")
    model, case = made(name), prove.CASES[name]
    prove.save_gguf(tmp_path / "tiny.gguf", model.folder, case.gguf)
    report = convert(tmp_path / "tiny.gguf", tmp_path / "out.llm", tokenizer=False, context=case.context)
    assert not names_unknown_keys(report.notes)
    data = (tmp_path / "out.llm").read_bytes()
    assert difference(data, model) <= CLOSE
    got = Reference(data).logits(model.ids.tolist())
    assert abs(got - model.want).max() / model.want.std() <= CLOSER


def test_gguf_files_from_before_latents_were_split_by_heads(made, tmp_path, monkeypatch):
    """Of llama.cpp until April 2025: the widths of heads under the keys of all architectures, LLM_ATTN_KV_B
    whole, and for softmax no word about it."""
    pytest.importorskip("gguf")
    model = made("DeepSeek V2")

    def old(w: Any, h: dict[str, Any], arch: str) -> None:
        add_latent(w, h, arch)
        head = h["qk_nope_head_dim"] + h["qk_rope_head_dim"]
        for kv in w.kv_data:
            for key in ("key_length_mla", "value_length_mla"):
                kv.pop(f"{arch}.attention.{key}", None)
        w.add_head_count_kv(h["num_attention_heads"])
        w.add_key_length(head)
        w.add_value_length(h["v_head_dim"])

    monkeypatch.setattr(gguf_metadata, "add_latent", old)
    monkeypatch.setattr(gguf_file, "gguf_tensors", lambda arch, *rest: gguf_tensors("minicpm3", *rest))
    prove.save_gguf(tmp_path / "tiny.gguf", model.folder, "deepseek2")
    report = convert(tmp_path / "tiny.gguf", tmp_path / "out.llm", tokenizer=False)
    assert not names_unknown_keys(report.notes)
    got = Reference((tmp_path / "out.llm").read_bytes()).logits(model.ids.tolist())
    assert abs(got - model.want).max() / model.want.std() <= CLOSER


@pytest.mark.parametrize("name", prove.CASES)
def test_int8_files_give_the_logits_of_the_numpy_forward_pass(made, name, tmp_path):
    """In pieces of three tokens, each a text of its own: half of all tokens are computed without a number of
    8 bits that float32's rounding moves by a step, see tests/test_engine.py."""
    model = made(name)
    context = prove.CASES[name].context
    convert(model.folder, out := tmp_path / "out.llm", tokenizer=False, context=context, dtype="int8")
    pieces = np.split(model.ids, range(3, len(model.ids), 3))
    reference = Reference(out.read_bytes(), Rounding())
    want = np.concatenate([reference.logits(piece.tolist()) for piece in pieces])
    with pyllm.LLM(out) as llm:
        got = np.concatenate([llm.logits(piece) for piece in pieces])
    assert np.median(abs(got - want).max(1)) / want.std() <= 2e-5


def test_the_matrices_of_heads_are_calibrated_as_others(tmp_path):
    """Of int4 files: what they make of a text is closer with a look at it than without."""
    case = prove.CASES["DeepSeek V3"]
    case = replace(
        case,
        config=case.config | {"vocab_size": 257, "max_position_embeddings": 1024, "rope_parameters": None},
    )
    model = prove.checkpoint(tmp_path / "tiny", case)
    add_tokenizer(tmp_path / "tiny")
    (tmp_path / "text").write_text(text := "A latent is what keys and values of all heads are made of. " * 12)
    errors = {}
    for by in ("none", tmp_path / "text"):
        convert(tmp_path / "tiny", tmp_path / "out.llm", dtype="int4", calibrate=by)
        with pyllm.LLM(tmp_path / "out.llm", verify=True) as llm:
            ids = np.array(llm.encode(text))
            errors[by] = np.square(llm.logits(ids) - prove.expected(model, ids)).mean()
    assert errors[tmp_path / "text"] < 0.7 * errors["none"], errors


@pytest.mark.parametrize("name", [name for name, case in prove.CASES.items() if not case.rewrite])
def test_shards_give_the_same_file(made, name, tmp_path):
    prove.checkpoint(tmp_path / "tiny", prove.CASES[name], shard="150KB")
    assert len(list((tmp_path / "tiny").glob("*.safetensors"))) > 2
    convert(tmp_path / "tiny", tmp_path / "out.llm", tokenizer=False, context=prove.CASES[name].context)
    assert (tmp_path / "out.llm").read_bytes() == made(name).data


# ---------------------------------------------------------------------------------------------------------
# Features: without them the logits differ


def fields(**values: Any) -> Callable[[bytes], bytes]:
    """The file with other numbers in its header."""
    return lambda data: edited(data, **values)


def layers(which: Callable[[dict], bool] = lambda about: True, **values: Any) -> Callable[[bytes], bytes]:
    """The file with other numbers in all its layers, or in those that the function chooses."""

    def change(data: bytes) -> bytes:
        result = data
        for i, about in enumerate(Reference(data).about):
            if which(about):
                result = edited(result, i, **values)
        assert result != data
        return result

    return change


def without(flag: int) -> Callable[[bytes], bytes]:
    """The file whose layers lack a flag."""

    def change(data: bytes) -> bytes:
        result = data
        for i, about in enumerate(Reference(data).about):
            result = edited(result, i, flags=about["flags"] & ~flag)
        assert result != data
        return edited(result, required=Reference(data).h["required"] & ~flag)

    return change


def angles(new: Callable[[np.ndarray, np.ndarray], None]) -> Callable[[bytes], bytes]:
    """The file whose frequencies and magnitudes, each (n_rope, rope_dim / 2), `new` has changed."""

    def change(data: bytes) -> bytes:
        h, result = Reference(data).h, bytearray(data)
        at = HEADER.size + h["text_size"] + LAYER.size * h["n_layers"]
        table = np.frombuffer(result, "<f4", h["n_rope"] * h["rope_dim"], at).reshape(h["n_rope"], -1, 2)
        new(table[..., 0], table[..., 1])
        assert bytes(result) != data
        return bytes(result)

    return change


def plain(base: float) -> Callable[[bytes], bytes]:
    """Unscaled frequencies in every table."""

    def new(frequency: np.ndarray, magnitude: np.ndarray) -> None:
        frequency[:] = base ** -(np.arange(frequency.shape[1]) / frequency.shape[1])

    return angles(new)


def one(frequency: np.ndarray, magnitude: np.ndarray) -> None:
    magnitude[:] = 1


def turn_all(frequency: np.ndarray, magnitude: np.ndarray) -> None:
    assert (frequency == 0).any()
    frequency[frequency == 0] = 0.5


def is_sparse(about: dict) -> bool:
    """Whether a layer has experts."""
    return about["ffn"] == lib.LLM_EXPERTS


def grows(about: dict) -> bool:
    return about["query_growth"] > 0


def no_gates(data: bytes) -> bytes:
    """The file whose rows of gates of attention's output are 0, so that all gates are the same."""
    result = bytearray(data)
    for i, about in enumerate(Reference(data).about):
        place = place_of(data, lib.LLM_QKV, i)
        heads = about["n_heads"] + 2 * about["n_kv_heads"]
        tiles = np.frombuffer(result, "<f2", -(-place.rows // 16) * 16 * place.stride, place.offset)
        rows = tiles.reshape(-1, place.stride, 16).swapaxes(1, 2).reshape(-1, place.stride).copy()
        assert place.rows > heads * about["head_dim"]
        rows[heads * about["head_dim"] :] = 0
        tiles[:] = rows.reshape(-1, 16, place.stride).swapaxes(1, 2).reshape(-1)
    assert bytes(result) != data
    return bytes(result)


def vectors(name: str, value: float, row: int | None = None) -> Callable[[bytes], bytes]:
    """The file with this tensor, or one row of it in fp16, filled with a number, in every layer and expert
    that has it."""

    def change(data: bytes) -> bytes:
        result, abouts = bytearray(data), Reference(data).about
        each = name in ("LLM_GATE_UP_BIAS", "LLM_DOWN_BIAS")
        counts = [max(1, about["n_experts"]) if each else 1 for about in abouts]
        for layer, expert in [(i, e) for i, n in enumerate(counts) for e in range(n)]:
            place = place_of(data, getattr(lib, name), layer, expert)
            if not place.size:
                continue
            if row is None:
                rows = np.frombuffer(result, "<f4", place.rows * place.stride, place.offset)
                rows.reshape(place.rows, -1)[:, : place.cols] = value
            else:
                assert place.rows <= 16  # one tile: [stride][16 rows]
                rows = np.frombuffer(result, "<f2", 16 * place.stride, place.offset).reshape(-1, 16)
                rows[: place.cols, row] = value
        assert bytes(result) != data
        return bytes(result)

    return change


WITH_PLE, MIXTURE = "Gemma 4 with embeddings by layer", "Gemma 4, a mixture"


def vectors_once(name: str, value: float) -> Callable[[bytes], bytes]:
    """The file with this vector, which occurs once, filled with a number."""

    def change(data: bytes) -> bytes:
        result, place = bytearray(data), place_of(data, getattr(lib, name))
        np.frombuffer(result, "<f4", place.cols, place.offset)[:] = value
        assert bytes(result) != data
        return bytes(result)

    return change


def same_in_all_heads(data: bytes) -> bytes:
    """The file whose norms of q and k have the first head's weights for every head."""
    result = bytearray(data)
    for layer in range(Reference(data).h["n_layers"]):
        for number in (lib.LLM_Q_NORM, lib.LLM_K_NORM):
            place = place_of(data, number, layer)
            rows = np.frombuffer(result, "<f4", place.rows * place.stride, place.offset)
            biased = Reference(data).h["required"] & lib.LLM_NORM_BIAS
            weights = rows.reshape(place.rows, -1)[: place.rows // 2 if biased else place.rows]
            assert len(weights) > 1
            weights[1:] = weights[0]
    assert bytes(result) != data
    return bytes(result)


def cleared(*names: str) -> Callable[[bytes], bytes]:
    """The file with nothing but zeros in these tensors, which do not occur once for each layer; or in the
    biases of these norms of every layer."""

    def change(data: bytes) -> bytes:
        result = bytearray(data)
        for name in names:
            for layer in range(Reference(data).h["n_layers"]):
                number = getattr(lib, name)
                place = place_of(data, number, layer if number >= lib.LLM_ATTN_NORM else 0)
                first = place.size // 2 if name.endswith("NORM") else 0
                result[place.offset + first : place.offset + place.size] = bytes(place.size - first)
        assert bytes(result) != data
        return bytes(result)

    return change


FEATURES: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "llama3's frequencies": ("Llama 3", plain(500000.0)),
    "yarn's frequencies": ("Llama with yarn", plain(10000.0)),
    "yarn's magnitude": ("Llama with yarn", angles(one)),
    "Mistral's window": ("Mistral", layers(window=0)),
    "Mixtral's weights add up to 1": ("Mixtral", without(lib.LLM_ROUTER_NORMALIZE)),
    "Qwen2's biases": ("Qwen2", vectors("LLM_BIAS", 0)),
    "Qwen2's window": ("Qwen2", layers(window=0)),
    "Qwen2's window is not in every layer": ("Qwen2", layers(window=30)),
    "Qwen2-MoE's shared gate": ("Qwen2-MoE", vectors("LLM_ROUTER", 0, row=6)),
    "Qwen3's q norm": ("Qwen3", vectors("LLM_Q_NORM", 1)),
    "Qwen3's k norm": ("Qwen3", vectors("LLM_K_NORM", 1)),
    "Qwen3-MoE's weights add up to 1": ("Qwen3-MoE", without(lib.LLM_ROUTER_NORMALIZE)),
    "SmolLM3's layer that does not turn": ("SmolLM3", layers(rope=0)),
    "Phi-3's window": ("Phi-3", layers(window=0)),
    "Phi-3.5's short factors": ("Phi-3.5, short text", plain(10000.0)),
    "Phi-3.5's magnitude": ("Phi-3.5, long text", angles(one)),
    "Phi-4-mini's partial rotation": ("Phi-4-mini", angles(turn_all)),
    "Gemma's GELU": ("Gemma", layers(activation=lib.LLM_SILU)),
    "Gemma's scaled embedding": ("Gemma", fields(embed_scale=1.0)),
    "Gemma 2's attention cap": ("Gemma 2", layers(attn_cap=0.0)),
    "Gemma 2's logit cap": ("Gemma 2", fields(logit_cap=0.0)),
    "Gemma 2's window": ("Gemma 2", layers(window=0)),
    "Gemma 2's window is in every other layer": ("Gemma 2", layers(window=21)),
    "Gemma 2's norm after attention": ("Gemma 2", vectors("LLM_ATTN_POST_NORM", 1)),
    "Gemma 2's norm after the feed-forward block": ("Gemma 2", vectors("LLM_FFN_POST_NORM", 1)),
    "Gemma 3's local base": ("Gemma 3", layers(rope=1)),
    "Gemma 3's global base": ("Gemma 3", layers(rope=0)),
    "Gemma 3's window": ("Gemma 3 of texts and pictures", layers(window=0)),
    "Gemma 3's query scale": ("Gemma 3 of texts and pictures", layers(attn_scale=64**-0.5)),
    "Gemma 3n's mixing of streams before a layer": ("Gemma 3n", vectors("LLM_STREAM_PREDICT", 0)),
    "Gemma 3n's mixing of streams after a layer": ("Gemma 3n", vectors("LLM_STREAM_CORRECT", 0)),
    "Gemma 3n's norm before the router of streams": ("Gemma 3n", vectors("LLM_STREAM_NORM", 0)),
    "Gemma 3n's scale of the first stream": ("Gemma 3n", vectors("LLM_STREAM_SCALE", 1)),
    "Gemma 3n's product of low rank": ("Gemma 3n", vectors("LLM_LAUREL_NORM", 0)),
    "Gemma 3n's cut gates": ("Gemma 3n", layers(gate_cut=0.0)),
    "Gemma 3n's norm of values": ("Gemma 3n", without(lib.LLM_V_NORM)),
    "Gemma 3n's table of embeddings by layer": ("Gemma 3n", fields(ple_scale=0.0)),
    "Gemma 3n's keys of the last layer of its kind": ("Gemma 3n", lambda data: edited(data, 5, kv_layer=0)),
    "Gemma 3n's window": ("Gemma 3n", layers(window=0)),
    "Gemma 4's norm of values": ("Gemma 4", without(lib.LLM_V_NORM)),
    "Gemma 4's scale of a layer": ("Gemma 4", vectors("LLM_LAYER_SCALE", 1)),
    "Gemma 4's partial rotation": ("Gemma 4", angles(turn_all)),
    "Gemma 4's local base": ("Gemma 4", layers(rope=1)),
    "Gemma 4's window": ("Gemma 4", layers(window=0)),
    "Gemma 4's logit cap": ("Gemma 4", fields(logit_cap=0.0)),
    "Gemma 4's table of embeddings by layer": (WITH_PLE, fields(ple_scale=0.0)),
    "Gemma 4's norm of what embeddings by layer add": (WITH_PLE, vectors("LLM_PLE_POST_NORM", 1)),
    "Gemma 4's keys of the last layer of its kind": (WITH_PLE, lambda data: edited(data, 5, kv_layer=2)),
    "Gemma 4's window in a layer with another one's keys": (WITH_PLE, lambda data: edited(data, 5, window=0)),
    "Gemma 4's norm before the router": (MIXTURE, vectors("LLM_ROUTER_NORM", 1)),
    "Gemma 4's norm before the dense block": (MIXTURE, vectors("LLM_SHARED_NORM", 1)),
    "Gemma 4's norm after the dense block": (MIXTURE, vectors("LLM_SHARED_POST", 1)),
    "Gemma 4's norm after the experts": (MIXTURE, vectors("LLM_EXPERTS_POST", 1)),
    "Gemma 4's scale of an expert": (MIXTURE, vectors("LLM_ROUTER_SCALE", 1)),
    "OLMo 2's norm after attention": ("OLMo 2", vectors("LLM_ATTN_POST_NORM", 1)),
    "OLMo 2's q norm": ("OLMo 2", vectors("LLM_Q_NORM", 1)),
    "OLMo 3's window": ("OLMo 3", layers(window=0)),
    "OLMo 3's scaling in layers without a window": ("OLMo 3", layers(rope=0)),
    "Granite's embedding multiplier": ("Granite", fields(embed_scale=1.0)),
    "Granite's residual multiplier": ("Granite", fields(residual_scale=1.0)),
    "Granite's attention multiplier": ("Granite", layers(attn_scale=64**-0.5)),
    "MiniCPM's scale_depth": ("MiniCPM", fields(residual_scale=1.0)),
    "GLM-4's biases": ("GLM-4", vectors("LLM_BIAS", 0)),
    "GLM-4's partial rotation": ("GLM-4", angles(turn_all)),
    "GLM-4-0414's norm after attention": ("GLM-4-0414", vectors("LLM_ATTN_POST_NORM", 1)),
    "Ministral's window": ("Ministral", layers(window=0)),
    "Seed-OSS's biases": ("Seed-OSS", vectors("LLM_BIAS", 0)),
    "EXAONE 4's layer that does not turn": ("EXAONE 4", layers(rope=0)),
    "EXAONE 4's k norm": ("EXAONE 4", vectors("LLM_K_NORM", 1)),
    "GLM-4.5's norm of q": ("GLM-4.5", vectors("LLM_Q_NORM", 1)),
    "GLM-4.5's biases": ("GLM-4.5", vectors("LLM_BIAS", 0)),
    "GLM-4.5's partial rotation": ("GLM-4.5", angles(turn_all)),
    "GLM-4.5's sigmoid": ("GLM-4.5", without(lib.LLM_ROUTER_SIGMOID)),
    "GLM-4.5's routing bias": ("GLM-4.5", vectors("LLM_ROUTER_ADD", 0)),
    "GLM-4.5's scale of the experts": ("GLM-4.5", layers(is_sparse, expert_scale=1.0)),
    "dots.llm1's window": ("dots.llm1", layers(window=0)),
    "dots.llm1's weights add up to 1": ("dots.llm1", without(lib.LLM_ROUTER_NORMALIZE)),
    "DeepSeek V1's second expert": ("DeepSeek V1", layers(is_sparse, n_active=1)),
    "ERNIE 4.5 MoE's routing bias": ("ERNIE 4.5 MoE", vectors("LLM_ROUTER_ADD", 0)),
    "ERNIE 4.5 MoE's weights add up to 1": ("ERNIE 4.5 MoE", without(lib.LLM_ROUTER_NORMALIZE)),
    "EXAONE MoE's groups": ("EXAONE MoE", layers(is_sparse, n_groups=0, n_active_groups=0)),
    "EXAONE MoE's layers that do not turn": ("EXAONE MoE", layers(rope=0)),
    "EXAONE MoE's window": ("EXAONE MoE", layers(window=0)),
    "EXAONE MoE's routing bias": ("EXAONE MoE", vectors("LLM_ROUTER_ADD", 0)),
    "EXAONE MoE's scale of the experts": ("EXAONE MoE", layers(is_sparse, expert_scale=1.0)),
    "Solar Open's groups": ("Solar Open", layers(n_groups=0, n_active_groups=0)),
    "Solar Open's sigmoid": ("Solar Open", without(lib.LLM_ROUTER_SIGMOID)),
    "HY 3's bias of attention's output": ("HY 3", vectors("LLM_OUT_BIAS", 0)),
    "HY 3's routing bias": ("HY 3", vectors("LLM_ROUTER_ADD", 0)),
    "HY 3's scale of the experts": ("HY 3", layers(is_sparse, expert_scale=1.0)),
    "AFMoE's scaled embedding": ("AFMoE", fields(embed_scale=1.0)),
    "AFMoE's gates": ("AFMoE", no_gates),
    "AFMoE's norm after the feed-forward block": ("AFMoE", vectors("LLM_FFN_POST_NORM", 1)),
    "AFMoE's layers that do not turn": ("AFMoE", layers(rope=0)),
    "AFMoE's window": ("AFMoE", layers(window=0)),
    "AFMoE's scale of the experts": ("AFMoE", layers(is_sparse, expert_scale=1.0)),
    "FlexOlmo's norm after attention": ("FlexOlmo", vectors("LLM_ATTN_POST_NORM", 1)),
    "FlexOlmo's k norm": ("FlexOlmo", vectors("LLM_K_NORM", 1)),
    "FlexOlmo's third expert": ("FlexOlmo", layers(n_active=2)),
    "gpt-oss's sinks": ("gpt-oss", vectors("LLM_SINKS", -1e4)),
    "gpt-oss's limit of gates": ("gpt-oss of other gates", layers(gate_limit=0.0)),
    "gpt-oss's slope of gates": ("gpt-oss", layers(gate_slope=0.0)),
    "gpt-oss's shift of up": ("gpt-oss", layers(up_shift=0.0)),
    "gpt-oss's bias of the router": ("gpt-oss", vectors("LLM_ROUTER_LOGITS", 0)),
    "gpt-oss's biases of gate and up": ("gpt-oss", vectors("LLM_GATE_UP_BIAS", 0)),
    "gpt-oss's biases of down": ("gpt-oss", vectors("LLM_DOWN_BIAS", 0)),
    "gpt-oss's biases of q, k and v": ("gpt-oss", vectors("LLM_BIAS", 0)),
    "gpt-oss's bias of attention's output": ("gpt-oss", vectors("LLM_OUT_BIAS", 0)),
    "gpt-oss's window": ("gpt-oss", layers(window=0)),
    "gpt-oss's window is in every other layer": ("gpt-oss", layers(window=21)),
    "gpt-oss's weights add up to 1": ("gpt-oss in MXFP4", without(lib.LLM_ROUTER_NORMALIZE)),
    "Granite SWA's sinks": ("Granite SWA", vectors("LLM_SINKS", -1e4)),
    "Granite SWA's window": ("Granite SWA", layers(window=0)),
    "Granite SWA's own bases": ("Granite SWA", layers(lambda about: about["rope"] == 1, rope=0)),
    "Granite SWA's layer that does not turn": (
        "Granite SWA",
        layers(lambda about: about["rope"] == 2, rope=0),
    ),
    "Granite MoE SWA's sinks": ("Granite MoE SWA", vectors("LLM_SINKS", -1e4)),
    "Granite MoE SWA's layer that does not turn": ("Granite MoE SWA", layers(rope=0)),
    "MiMo V2's sinks": ("MiMo V2 Flash", vectors("LLM_SINKS", -1e4)),
    "MiMo V2's groups": ("MiMo V2 Flash", layers(is_sparse, n_groups=0, n_active_groups=0)),
    "MiMo V2's base of layers with a window": ("MiMo V2 Flash", layers(rope=0)),
    "MiMo V2's window": ("MiMo V2 Flash", layers(window=0)),
    "MiMo V2's partial rotation": ("MiMo V2 Flash", angles(turn_all)),
    "Laguna's gates": ("Laguna", no_gates),
    "Laguna's softplus": ("Laguna", without(lib.LLM_OUT_GATE_SOFTPLUS)),
    "Laguna's gates for each number": ("Laguna with a gate for each number", no_gates),
    "Laguna's base of layers with a window": ("Laguna", layers(rope=0)),
    "Laguna's partial rotation": ("Laguna", angles(turn_all)),
    "Laguna's scale of the experts": ("Laguna", layers(is_sparse, expert_scale=1.0)),
    "Ministral 3's queries that grow": ("Ministral 3", layers(query_growth=0.0)),
    "Ministral 3's queries that grow, with pictures": (
        "Ministral 3 of texts and pictures",
        layers(query_growth=0.0),
    ),
    "Ministral 3's frequencies": ("Ministral 3", plain(10000.0)),
    "Llama 4's chunks": ("Llama 4", without(lib.LLM_CHUNKED)),
    "Llama 4's weights are of inputs": ("Llama 4", without(lib.LLM_EXPERT_INPUT)),
    "Llama 4's sigmoid": ("Llama 4", without(lib.LLM_ROUTER_SIGMOID)),
    "Llama 4's queries that grow": ("Llama 4", layers(grows, query_growth=0.0)),
    "Llama 4's queries grow by spans": ("Llama 4", layers(grows, query_span=16)),
    "Llama 4's layer that does not turn": ("Llama 4", layers(rope=0)),
    "HunYuan's norms are late": ("HunYuan", without(lib.LLM_QK_NORM_LATE)),
    "HunYuan's q norm": ("HunYuan", vectors("LLM_Q_NORM", 1)),
    "HunYuan's alpha": ("HunYuan", plain(10000.0)),
    "HunYuan MoE's norms are late": ("HunYuan MoE", without(lib.LLM_QK_NORM_LATE)),
    "HunYuan MoE's weights add up to 1": ("HunYuan MoE", without(lib.LLM_ROUTER_NORMALIZE)),
    "CWM's window": ("CWM", layers(window=0)),
    "CWM's window is not in every layer": ("CWM", layers(window=23)),
    "Mellum 2's window": ("Mellum 2", layers(window=0)),
    "Mellum 2's base of layers with a window": ("Mellum 2", layers(rope=0)),
    "Mellum 2's k norm": ("Mellum 2", vectors("LLM_K_NORM", 1)),
    "LFM2's convolutions": ("LFM2", vectors("LLM_CONV", 0.3)),
    "LFM2's norm of q": ("LFM2", vectors("LLM_Q_NORM", 1)),
    "LFM2 MoE's sigmoid": ("LFM2 MoE", without(lib.LLM_ROUTER_SIGMOID)),
    "LFM2 MoE's routing bias": ("LFM2 MoE", vectors("LLM_ROUTER_ADD", 0)),
    "LFM2 MoE's scale of the experts": ("LFM2 MoE", layers(is_sparse, expert_scale=1.0)),
    "Qwen3-Next's convolutions": ("Qwen3-Next", vectors("LLM_CONV", 0.3)),
    "Qwen3-Next's decay": ("Qwen3-Next", vectors("LLM_DECAY", 0)),
    "Qwen3-Next's strength of values": ("Qwen3-Next", vectors("LLM_STATE_GATES", 0, row=1)),
    "Qwen3-Next's decay by token": ("Qwen3-Next", vectors("LLM_STATE_GATES", 0, row=7)),
    "Qwen3-Next's norm of a state's heads": ("Qwen3-Next", vectors("LLM_STATE_NORM", 1)),
    "Qwen3-Next's partial rotation": ("Qwen3-Next", angles(turn_all)),
    "Qwen3-Next's shared gate": ("Qwen3-Next", vectors("LLM_ROUTER", 0, row=6)),
    "Qwen 3.5's decay": ("Qwen 3.5", vectors("LLM_DECAY", 0)),
    "Qwen 3.5 MoE's weights add up to 1": ("Qwen 3.5 MoE", without(lib.LLM_ROUTER_NORMALIZE)),
    "MiniMax-M2's sigmoid": ("MiniMax-M2", without(lib.LLM_ROUTER_SIGMOID)),
    "MiniMax-M2's routing bias": ("MiniMax-M2", vectors("LLM_ROUTER_ADD", 0)),
    "MiniMax-M2's weights add up to 1": ("MiniMax-M2", without(lib.LLM_ROUTER_NORMALIZE)),
    "GPT-2's positions": ("GPT-2", cleared("LLM_POSITIONS")),
    "GPT-2's biases of attention's norm": ("GPT-2", cleared("LLM_ATTN_NORM")),
    "GPT-2's biases of the feed-forward block's norm": ("GPT-2", cleared("LLM_FFN_NORM")),
    "GPT-2's biases of the last norm": ("GPT-2", cleared("LLM_OUT_NORM")),
    "GPT-2's biases of q, k and v": ("GPT-2", vectors("LLM_BIAS", 0)),
    "GPT-2's bias of attention's output": ("GPT-2", vectors("LLM_OUT_BIAS", 0)),
    "GPT-2's biases of up": ("GPT-2", vectors("LLM_GATE_UP_BIAS", 0)),
    "GPT-2's biases of down": ("GPT-2", vectors("LLM_DOWN_BIAS", 0)),
    "GPT-2's GELU": ("GPT-2", layers(activation=lib.LLM_SILU)),
    "GPT-J's bias of the logits": ("GPT-J", vectors_once("LLM_OUTPUT_ADD", 0)),
    "StarCoder's positions": ("StarCoder", cleared("LLM_POSITIONS")),
    "GPT-NeoX's blocks side by side": ("GPT-NeoX", without(lib.LLM_PARALLEL)),
    "GPT-NeoX's GELU": ("GPT-NeoX", layers(activation=lib.LLM_SILU)),
    "GPT-NeoX's partial rotation": ("GPT-NeoX", angles(turn_all)),
    "Phi-2's bias of the logits": ("Phi-2", vectors_once("LLM_OUTPUT_ADD", 0)),
    "Phi's norm of q": ("Phi with norms of q and k", vectors("LLM_Q_NORM", 1)),
    "Phi's biases of the norm of k": ("Phi with norms of q and k", cleared("LLM_K_NORM")),
    "StarCoder2's window": ("StarCoder2", layers(window=0)),
    "StarCoder2's biases of down": ("StarCoder2", vectors("LLM_DOWN_BIAS", 0)),
    "StableLM's biases": ("StableLM", vectors("LLM_BIAS", 0)),
    "StableLM's biases of the last norm": ("StableLM", cleared("LLM_OUT_NORM")),
    "StableLM 2 12B's norms of each head": ("StableLM 2 12B", same_in_all_heads),
    "OLMo's mean": ("OLMo", without(lib.LLM_LAYER_NORM)),
    "OLMo's clipping": ("OLMo", layers(qkv_clip=0)),
    "Cohere's mean": ("Cohere", without(lib.LLM_LAYER_NORM)),
    "Cohere's norms of each head": ("Cohere with norms of q and k", same_in_all_heads),
    "Cohere 2's window": ("Cohere 2", layers(window=0)),
    "Cohere 2's layer that does not turn": ("Cohere 2", layers(rope=0)),
    "Nemotron's squares": ("Nemotron", layers(activation=lib.LLM_GELU)),
    "Nemotron's partial rotation": ("Nemotron", angles(turn_all)),
    "Arcee's squares": ("Arcee", layers(activation=lib.LLM_GELU)),
    "Apertus's numbers": ("Apertus", vectors("LLM_XIELU_NUMBERS", 1)),
    "Apertus's norm of q": ("Apertus", vectors("LLM_Q_NORM", 1)),
    "Falcon 40B's blocks side by side": ("Falcon 40B", without(lib.LLM_PARALLEL)),
    "Falcon 40B's second norm": ("Falcon 40B", vectors("LLM_FFN_NORM", 1)),
    "Falcon 40B's bias of attention's output": ("Falcon 40B", vectors("LLM_OUT_BIAS", 0)),
    "nanochat's cap": ("nanochat", fields(logit_cap=0.0)),
    "nanochat's norm of the embedding": ("nanochat", vectors_once("LLM_EMBED_NORM", 3)),
    "Jais 2's biases of up": ("Jais 2", vectors("LLM_GATE_UP_BIAS", 0)),
    "DeepSeek V2's groups": ("DeepSeek V2", layers(is_sparse, n_active_groups=4)),
    "DeepSeek V2's groups are as good as their best expert": ("DeepSeek V2", without(lib.LLM_ROUTER_BEST)),
    "DeepSeek V2's scale of the experts": ("DeepSeek V2", layers(is_sparse, expert_scale=1.0)),
    "DeepSeek V2's norm of low-rank queries": ("DeepSeek V2", vectors("LLM_Q_NORM", 1)),
    "DeepSeek V2's norm of the latent": ("DeepSeek V2", vectors("LLM_K_NORM", 1)),
    "DeepSeek V2's frequencies": ("DeepSeek V2", plain(10000.0)),
    "DeepSeek V2's scale of scores": ("DeepSeek V2", layers(attn_scale=64**-0.5)),
    "DeepSeek V2 Lite's norm of the latent": ("DeepSeek V2 Lite", vectors("LLM_K_NORM", 1)),
    "DeepSeek V2 Lite's scale of scores": ("DeepSeek V2 Lite", layers(attn_scale=64**-0.5)),
    "DeepSeek V3's groups": ("DeepSeek V3", layers(is_sparse, n_active_groups=4)),
    "DeepSeek V3's routing bias": ("DeepSeek V3", vectors("LLM_ROUTER_ADD", 0)),
    "DeepSeek V3's weights add up to 1": ("DeepSeek V3", without(lib.LLM_ROUTER_NORMALIZE)),
    "DeepSeek V3's scale of the experts": ("DeepSeek V3", layers(is_sparse, expert_scale=1.0)),
    "GLM-4.7 Flash's sigmoid": ("GLM-4.7 Flash", without(lib.LLM_ROUTER_SIGMOID)),
    "Youtu's norm of the latent": ("Youtu", vectors("LLM_K_NORM", 1)),
    "MiniCPM3's short factors": ("MiniCPM3", plain(10000.0)),
    "MiniCPM3's scale_depth": ("MiniCPM3", fields(residual_scale=1.0)),
}


@pytest.mark.parametrize("feature", FEATURES)
def test_without_the_feature_the_logits_differ(made, feature):
    name, change = FEATURES[feature]
    assert difference(change(made(name).data), made(name)) > FAR


def row(name: str, **changes: Any) -> Callable[[pytest.MonkeyPatch], None]:
    """Another row in the table of families."""
    return lambda patch: patch.setitem(families.FAMILIES, name, replace(families.FAMILIES[name], **changes))


def ungrouped(patch: pytest.MonkeyPatch) -> None:
    split = sources.split
    patch.setattr(sources, "split", lambda tensor, rows, groups=1: split(tensor, rows))


def whole_borders(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(rope.KINDS, "yarn", lambda given, *more: rope.yarn(given | {"truncate": True}, *more))


def without_norms(config: dict[str, Any]) -> dict[str, Any]:
    return config | {"use_qk_norm": False}


FOLDED: dict[str, tuple[str, Callable[[pytest.MonkeyPatch], None]]] = {
    "Gemma's 1 + w": ("Gemma", row("GemmaForCausalLM", norm_offset=0.0)),
    "Granite's logits_scaling": ("Granite", row("GraniteForCausalLM", logit_scale=lambda config: 1.0)),
    "MiniCPM's dim_model_base": ("MiniCPM", row("MiniCPMForCausalLM", logit_scale=lambda config: 1.0)),
    "GLM-4's interleaved pairs": ("GLM-4", row("GlmForCausalLM", interleaved=False)),
    "ERNIE 4.5 MoE's interleaved pairs": ("ERNIE 4.5 MoE", row("Ernie4_5_MoeForCausalLM", interleaved=False)),
    "ERNIE 4.5's interleaved pairs": ("ERNIE 4.5", row("Ernie4_5ForCausalLM", interleaved=False)),
    "InternLM2's groups": ("InternLM2", ungrouped),
    "Granite SWA's logits_scaling": (
        "Granite SWA",
        row("GraniteSWAForCausalLM", logit_scale=lambda config: 1.0),
    ),
    "MiMo V2's scale of values": (
        "MiMo V2 Flash",
        row("MiMoV2FlashForCausalLM", value_scale=lambda config: 1.0),
    ),
    "gpt-oss's alternating rows": ("gpt-oss", row("GptOssForCausalLM", alternating=False)),
    "gpt-oss's alternating rows in MXFP4": ("gpt-oss in MXFP4", row("GptOssForCausalLM", alternating=False)),
    "gpt-oss's yarn, whose borders are not whole": ("gpt-oss", whole_borders),
    "Llama 4's norms of q and k": ("Llama 4", row("Llama4ForCausalLM", prepare=without_norms)),
    "Llama 4's interleaved pairs": ("Llama 4", row("Llama4ForCausalLM", interleaved=False)),
    "Gemma 3n's scale of what the router of streams reads": (
        "Gemma 3n",
        row("Gemma3nForCausalLM", folded={}),
    ),
    "Gemma 4's sum of embeddings by layer": (WITH_PLE, row("Gemma4ForCausalLM", folded={})),
    "Gemma 4's scale of what the router reads": (MIXTURE, row("Gemma4ForCausalLM", folded={})),
    "GPT-NeoX's groups": ("GPT-NeoX", ungrouped),
    "Falcon 40B's groups": ("Falcon 40B", ungrouped),
    "GPT-J's interleaved pairs": ("GPT-J", row("GPTJForCausalLM", interleaved=False)),
    "Cohere's interleaved pairs": ("Cohere", row("CohereForCausalLM", interleaved=False)),
    "Cohere's logit_scale": ("Cohere", row("CohereForCausalLM", logit_scale=lambda config: 1.0)),
    "Nemotron's 1 + w": ("Nemotron", row("NemotronForCausalLM", norm_offset=0.0)),
    "nanochat's direction of the rotation": ("nanochat", row("NanoChatForCausalLM", backwards=False)),
    "nanochat's norm of the embedding": ("nanochat", row("NanoChatForCausalLM", header=0)),
    "DeepSeek V3's interleaved pairs": ("DeepSeek V3", row("DeepseekV3ForCausalLM", interleaved=False)),
    "Youtu's interleaved pairs": ("Youtu", row("YoutuForCausalLM", interleaved=False)),
    "MiniCPM3's dim_model_base": ("MiniCPM3", row("MiniCPM3ForCausalLM", logit_scale=lambda config: 1.0)),
    "Qwen3-Next's groups": ("Qwen3-Next", ungrouped),
    "Qwen3-Next's 1 + w": ("Qwen3-Next", row("Qwen3NextForCausalLM", norm_offset=0.0)),
    "Qwen 3.5's 1 + w": ("Qwen 3.5", row("Qwen3_5ForCausalLM", norm_offset=0.0)),
}


@pytest.mark.parametrize("feature", FOLDED)
def test_without_what_the_converter_folds_the_logits_differ(made, feature, tmp_path, monkeypatch):
    name, change = FOLDED[feature]
    folder = made(name).folder
    change(monkeypatch)
    convert(folder, tmp_path / "out.llm", tokenizer=False)
    assert difference((tmp_path / "out.llm").read_bytes(), made(name)) > FAR


# ---------------------------------------------------------------------------------------------------------
# Long texts


def test_positions_up_to_131072_are_right(tmp_path):
    """A layer with a window, so that the last logits depend on the last tokens and their positions alone:
    transformers is given these tokens with these positions. There, p * frequency rounded to float32 is off by
    as much as 0.004 radians, in transformers too: the frequencies' last bits matter."""
    n, window, some = 131072, 24, 40
    scaling = prove.theta(500000.0, **(prove.LLAMA3 | {"original_max_position_embeddings": 8192}))
    sizes = {
        "num_hidden_layers": 1,
        "hidden_size": 66,
        "sliding_window": window,
        "max_position_embeddings": n,
    }
    case = prove.Case("Mistral", "", {**prove.ODD, "head_dim": 64, **sizes, **scaling})
    model = prove.checkpoint(tmp_path / "hf", case)
    convert(tmp_path / "hf", tmp_path / "out.llm", tokenizer=False)
    ids = np.random.default_rng(1).integers(3, 200, n)
    with pyllm.LLM(tmp_path / "out.llm", exact=True) as llm, llm.session() as session:
        session.eval(ids[: n - some])
        got = session.eval(ids[n - some :], all=True)
    tail, positions = ids[n - some - window :], torch.arange(n - some - window, n)
    with torch.no_grad():
        want = model(torch.tensor(tail[None]), position_ids=positions[None]).logits[0, -some:].numpy()
    assert abs(got - want).max() / want.std() <= CLOSE


def test_longrope_is_for_short_texts_unless_the_context_is_long(made, tmp_path):
    short, long = made("Phi-3.5, short text"), made("Phi-3.5, long text")
    assert Reference(short.data).h["context"] == 64 and Reference(long.data).h["context"] == 200
    assert any("--context with a number from 65 to 256" in note for note in short.notes) and not long.notes
    convert(short.folder, tmp_path / "64.llm", tokenizer=False, context=64)
    assert (tmp_path / "64.llm").read_bytes() == short.data
    assert difference(long.data, short) > FAR
    with pytest.raises(ConvertError, match="context 257 is not between 1 and the model's 256"):
        convert(short.folder, tmp_path / "257.llm", tokenizer=False, context=257)


# ---------------------------------------------------------------------------------------------------------
# Configurations


def changed(model: Made, tmp_path: Path, **config: Any) -> Path:
    """The model's folder with other values in config.json."""
    folder = tmp_path / "tiny"
    shutil.copytree(model.folder, folder, ignore=shutil.ignore_patterns("*.llm", "*.gguf"))
    values = json.loads((folder / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps(values))
    return folder


def test_old_configurations_give_the_same_file(made, tmp_path):
    """Those on the hub: rope_theta and rope_scaling beside everything else, patterns for layer_types, gelu
    for its tanh form."""
    for name, config in {
        "Gemma": {
            "hidden_act": "gelu",
            "hidden_activation": None,
            "rope_parameters": None,
            "rope_theta": 10000.0,
        },
        "Gemma 2": {"layer_types": None, "hidden_act": "gelu_pytorch_tanh", "rope_parameters": None},
        "Gemma 3": {
            "layer_types": None,
            "sliding_window_pattern": 3,
            "rope_parameters": None,
            "rope_local_base_freq": 100.0,
            "rope_theta": 20000.0,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        },
        "Gemma 4": {
            "per_layer_config": None,
            "global_head_dim": 80,
            "num_global_key_value_heads": 1,
        },
        "Gemma 4 with embeddings by layer": {
            "per_layer_config": None,
            "global_head_dim": 80,
            "num_global_key_value_heads": 3,  # without attention_k_eq_v it says nothing
        },
        "Gemma 3n": {
            "rope_parameters": None,
            "rope_theta": 20000.0,
            "rope_local_base_freq": 100.0,
        },
        "Phi-4-mini": {
            "rope_parameters": None,
            "partial_rotary_factor": 0.75,
            "rope_scaling": {
                "type": "longrope",
                "short_factor": prove.factors(48, 1.5),
                "long_factor": prove.factors(48, 9),
            },
            "original_max_position_embeddings": 64,
        },
        "SmolLM3": {"no_rope_layers": None, "layer_types": None},
        "OLMo 3": {
            "layer_types": None,
            "rope_parameters": None,
            "rope_theta": 10000.0,
            "rope_scaling": prove.YARN,
        },
        "MiniMax-M2": {"rope_parameters": None, "rope_theta": 10000.0, "rotary_dim": 40},
        "Llama 4 with Maverick's numbers": {"layer_types": None, "moe_layers": None, "no_rope_layers": []},
        "MiMo V2 Flash": {"sliding_window": None, "sliding_window_size": 20},
        "HunYuan MoE": {"num_shared_expert": [1, 1, 1], "moe_intermediate_size": [92, 92, 92]},
        "gpt-oss": {
            "layer_types": None,
            "rope_parameters": None,
            "rope_theta": 150000.0,
            "rope_scaling": {**prove.YARN, "truncate": False},
        },
    }.items():
        folder = changed(made(name), tmp_path / name, **config)
        convert(folder, tmp_path / "out.llm", tokenizer=False, context=prove.CASES[name].context)
        assert (tmp_path / "out.llm").read_bytes() == made(name).data, name


PARTIAL = {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}
REFUSED = [
    ("Qwen2-MoE", {"mlp_only_layers": [0]}, r"3 tensors are missing: model\.layers\.0\.mlp\.gate_proj"),
    ("Qwen3-MoE", {"decoder_sparse_step": 2}, r"6 tensors are missing: model\.layers\.0\.mlp\.gate_proj"),
    ("Gemma 2", {"hidden_activation": "relu"}, "hidden_activation is relu"),
    ("Gemma 2", {"use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
    ("Gemma 3", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping is 50"),
    ("Gemma 3", {"layer_types": ["chunked_attention"] * 3}, "attention_chunk_size is missing"),
    ("Gemma 3", {"layer_types": ["full_attention"]}, "layer_types has not 3 entries"),
    ("Gemma 3n", {"altup_active_idx": 1}, "altup_active_idx is 1; of Gemma 3n only 0 is supported"),
    ("Gemma 3n", {"altup_correct_scale": False}, "altup_correct_scale is False; of Gemma 3n only True"),
    ("Gemma 3n", {"altup_num_inputs": 9}, "n_streams is 9, not 0 to 8"),
    ("Gemma 3n", {"activation_sparsity_pattern": [0.5] * 6}, "activation_sparsity_pattern has 0.5"),
    ("Gemma 3n", {"activation_sparsity_pattern": [0.9]}, "activation_sparsity_pattern has not one entry"),
    ("Gemma 3n", {"intermediate_size": [212]}, "intermediate_size has not one entry for each layer"),
    ("Gemma 3n", {"vocab_size_per_layer_input": 9}, r"embed_tokens_per_layer\.weight .*\(202, 240\)"),
    (
        "Gemma 4",
        {"num_kv_shared_layers": 7},
        "num_kv_shared_layers is 7, which leaves layer 0 no layer of its",
    ),
    ("Gemma 4", {"per_layer_config": {"1": {"sliding_window": 9}}}, "per_layer_config has .*sliding_window"),
    ("Gemma 4", {"use_bidirectional_attention": "all"}, "use_bidirectional_attention is all"),
    ("Gemma 4", {"num_kv_shared_layers": -1}, "num_kv_shared_layers is -1"),
    ("Gemma 4, a mixture", {"enable_moe_block": False}, "not part of a Gemma 4 model"),
    (
        "Gemma 4 with embeddings by layer",
        {"hidden_size_per_layer_input": 24},
        r"embed_tokens_per_layer\.weight is \(203, 280\), expected \(203, 168\)",
    ),
    ("OLMoE", {"clip_qkv": 8.0}, "clip_qkv is 8.0"),
    ("MiniCPM", {"num_experts": 8}, "num_experts is 8"),
    ("MiniMax-M2", {"scoring_func": "softmax"}, "scoring_func is softmax"),
    ("Granite", {"residual_multiplier": "x"}, "residual_multiplier is 'x', not a number"),
    ("Granite", {"logits_scaling": 0}, "logits_scaling is 0"),
    ("Llama", PARTIAL, "32 of a head's 64"),
    ("GLM-4", {"partial_rotary_factor": 0.4, "rope_parameters": None}, "51 of a head's 128"),
    ("Phi-4-mini", {"rope_parameters": {"long_factor": [1.0]}, "rotary_dim": 96}, "short_factor is not 48"),
    ("Laguna", {"num_attention_heads_per_layer": [3]}, "num_attention_heads_per_layer has not one entry"),
    ("Laguna", {"gating": "per-layer"}, "gating is per-layer; of Laguna only"),
    ("Laguna", {"moe_router_logit_softcapping": 30.0}, "moe_router_logit_softcapping is 30.0"),
    ("Llama 4", {"moe_layers": 3}, "moe_layers is 3, not a list of layers"),
    ("Llama 4", {"attention_chunk_size": 0}, "attention_chunk_size is 0"),
    ("Granite SWA", {"layer_rope_theta": [1e4]}, "layer_rope_theta has not one entry"),
    ("HunYuan MoE", {"moe_topk": [2, 1, 2]}, "moe_topk differs between layers"),
    ("HunYuan MoE", {"num_shared_expert": 2}, "num_shared_expert is 2"),
    ("HunYuan", {"use_cla": True}, "use_cla is True"),
    ("HY 3", {"mlp_layer_types": ["dense", "sparse", "mixed", "sparse"]}, "mlp_layer_types has 'mixed'"),
    ("AFMoE", {"score_func": "softmax"}, "score_func is softmax"),
    ("AFMoE", {"n_group": 2}, "n_group is 2; of AFMoE only None or 1"),
    ("EXAONE MoE", {"n_group": 3}, "8 experts in 3 groups"),
    ("SmolLM3", {"no_rope_layers": [1]}, "no_rope_layers has not one entry"),
    ("InternLM2", {"num_key_value_heads": 3}, r"wqkv\.weight has the shape .* 384 \+ 192 \+ 192 rows"),
    ("GPT-2", {"activation_function": "relu"}, "activation_function is relu; of GPT-2 only 'gelu' or"),
    ("GPT-2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is True; of GPT-2"),
    ("StarCoder", {"multi_query": False}, "multi_query is False; of StarCoder only True"),
    ("GPT-NeoX", {"hidden_act": "relu"}, "hidden_act is relu; of GPT-NeoX only"),
    ("Falcon", {"alibi": True}, "alibi is True; of Falcon only None or False"),
    ("Falcon 40B", {"parallel_attn": False}, "new_decoder_architecture without parallel_attn"),
    ("Falcon 40B", {"num_ln_in_parallel_attn": 3}, "num_ln_in_parallel_attn is 3"),
    ("OLMo", {"clip_qkv": "x"}, "clip_qkv is 'x', not a number"),
    ("Cohere 2", {"use_qk_norm": True}, "use_qk_norm is True; of Cohere 2 only"),
    ("Cohere", {"logit_scale": 0}, "logit_scale is 0"),
    ("Nemotron", {"hidden_act": "silu"}, "hidden_act is silu; of Nemotron only 'relu2'"),
    ("nanochat", {"hidden_act": "gelu"}, "hidden_act is gelu; of nanochat only 'relu2'"),
    ("StableLM", {"qk_layernorm": True}, r"6 tensors are missing: model\.layers\.0\.self_attn\.q_layernorm"),
    ("DeepSeek V2", {"topk_method": "noaux_tc"}, "topk_method is noaux_tc"),
    ("DeepSeek V2", {"norm_topk_prob": True}, "norm_topk_prob is True; of DeepSeek V2"),
    ("DeepSeek V2", {"scoring_func": "sigmoid"}, "scoring_func is sigmoid; of DeepSeek V2"),
    ("DeepSeek V2", {"moe_layer_freq": 2}, "moe_layer_freq is 2; of DeepSeek V2"),
    ("DeepSeek V3", {"scoring_func": "softmax"}, "scoring_func is softmax; of DeepSeek V3"),
    ("DeepSeek V3", {"topk_group": 5}, "5 of 4 groups of experts are active"),
    ("DeepSeek V3", {"num_key_value_heads": 1}, "num_key_value_heads is not num_attention_heads"),
    ("DeepSeek V3", {"kv_lora_rank": 71}, r"kv_b_proj\.weight is \(180, 72\), expected \(180, 71\)"),
    ("DeepSeek V3", {"v_head_dim": 21}, r"kv_b_proj\.weight is \(180, 72\), expected \(183, 72\)"),
    ("DeepSeek V3", {"qk_rope_head_dim": 25}, "turn_dim is 25, of a head_dim of 65|head_dim 65 is odd"),
    ("DeepSeek V3", {"kv_lora_rank": 1020}, r"a key of 1020 \+ 24 numbers"),
    ("GLM-4.7 Flash", {"mlp_layer_types": ["dense"]}, "mlp_layer_types has not one entry for each layer"),
    ("GLM-4.7 Flash", {"mlp_layer_types": ["dense", "x", "x"]}, "mlp_layer_types has 'x', which is not"),
    ("GLM-4.7 Flash", {"first_k_dense_replace": 2}, "first_k_dense_replace is 2; of GLM-4.7 Flash"),
    (
        "Mistral 3",
        {"text_config": {"model_type": "llama"}},
        "text part of .* is 'llama'; mistral or ministral3 or mistral4 can",
    ),
]


@pytest.mark.parametrize(("name", "config", "message"), REFUSED)
def test_what_is_not_understood_is_refused_by_name(made, tmp_path, name, config, message):
    folder = changed(made(name), tmp_path, **config)
    with pytest.raises(ConvertError, match=message):
        convert(folder, tmp_path / "out.llm", tokenizer=False)
    assert not (tmp_path / "out.llm").exists()


@pytest.mark.parametrize("name", prove.CASES)
def test_no_key_that_transformers_writes_is_unknown(made, name):
    """Of the configuration of every case, as saved and with all defaults written out."""
    assert not names_unknown_keys(made(name).notes)
    if prove.CASES[name].rewrite is None:  # transformers has the family
        config = transformers.AutoConfig.from_pretrained(made(name).folder)
        whole = describe(json.loads(config.to_json_string(use_diff=False)))
        assert not names_unknown_keys(whole.notes)


def test_a_key_that_transformers_does_not_write_is_unknown(made, tmp_path):
    model = made("Gemma 3 of texts and pictures")
    text = json.loads((model.folder / "config.json").read_text())["text_config"]
    folder = changed(model, tmp_path, text_config=text | {"attn_gate_scale": 2.0})
    assert names_unknown_keys(convert(folder, tmp_path / "out.llm", tokenizer=False).notes)


def test_a_missing_tensor_of_a_text_part_is_spelled_as_the_source_spells_it(made, tmp_path):
    model = made("Gemma 3 of texts and pictures")
    text = json.loads((model.folder / "config.json").read_text())["text_config"]
    more = text | {"num_hidden_layers": 8, "layer_types": None}
    with pytest.raises(ConvertError, match=r"missing: language_model\.model\.layers\.7\.input_layernorm\."):
        convert(changed(model, tmp_path, text_config=more), tmp_path / "out.llm", tokenizer=False)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("GLM-4.5", {"n_group": 4, "topk_group": 5}, "6 experts in 4 groups"),
        ("dots.llm1", {"n_group": 4, "topk_group": 0}, "topk_group is 0, not a positive integer"),
        ("DeepSeek V1", {"moe_layer_freq": 2}, "moe_layer_freq is 2; of DeepSeek V1 only None or 1"),
        ("DeepSeek V1", {"scoring_func": "sigmoid"}, "scoring_func is sigmoid; of DeepSeek V1"),
        ("GLM-4.5", {"first_k_dense_replace": -1}, "first_k_dense_replace is -1, not a positive integer"),
        ("Qwen3-MoE with dense layers", {"mlp_only_layers": 3}, "mlp_only_layers is 3, not a list of layers"),
    ],
)
def test_other_mixtures_are_refused_by_the_name_of_the_key(made, name, change, message):
    config = json.loads((made(name).folder / "config.json").read_text())
    with pytest.raises(ConvertError, match=message):
        describe(config | change)


def test_layers_before_a_mixture_are_dense_where_the_configuration_says_so(made):
    """What is in the file, not only that its logits are right: a dense layer has no flag of a router."""
    for name, dense in [
        ("GLM-4.5", [1, 1, 0, 0]),
        ("ERNIE 4.5 MoE", [1, 0, 1, 0, 1]),
        ("DeepSeek V1", [1, 0, 0]),
        ("EXAONE MoE", [1, 0, 0, 0]),
        ("HY 3", [1, 0, 0, 0]),
        ("AFMoE", [1, 0, 0, 0, 0]),
    ]:
        abouts = Reference(made(name).data).about
        assert [int(about["ffn"] == lib.LLM_DENSE) for about in abouts] == dense
        assert {about["ffn_dim"] for about in abouts if about["ffn"] == lib.LLM_DENSE} == {212}
        assert {(about["ffn_dim"], about["shared_dim"]) for about in abouts if is_sparse(about)} == {
            (72, 144)
        }


def test_tokens_without_embeddings_by_layer_have_those_of_token_0(made):
    """Those of pictures and sound, as Gemma3nTextModel.get_per_layer_inputs has it."""
    _, tensors = prove.load(made("Gemma 3n").folder)
    source = tensors["model.embed_tokens_per_layer.weight"].astype(np.float32)
    table = Reference(made("Gemma 3n").data).once["ple_embed"][0].w
    assert (len(table), len(source)) == (prove.VOCAB, prove.VOCAB - 1)
    assert (table[: len(source)] == source).all() and (table[len(source) :] == source[0]).all()


def test_layers_differ_as_the_configuration_says(made):
    """Whose keys and values they use, how wide they are, and what each alone has."""
    shared = Reference(made("Gemma 4 with embeddings by layer").data).about
    assert [about["kv_layer"] for about in shared] == [0, 1, 2, 3, 1, 3, 1]
    assert [about["head_dim"] for about in shared] == [48, 80, 48, 48, 80, 48, 80]
    assert [about["ffn_dim"] for about in shared] == [212] * 4 + [424] * 3
    kinds = Reference(made("Gemma 4").data).about
    assert [bool(about["flags"] & lib.LLM_V_IS_K) for about in kinds] == [0, 1, 0, 0, 1, 0, 1]
    assert [about["n_kv_heads"] for about in kinds] == [2, 1, 2, 2, 1, 2, 1]
    mixture = Reference(made("Gemma 4, a mixture").data).about
    assert {(a["ffn_dim"], a["shared_dim"], a["n_experts"], a["n_active"]) for a in mixture} == {
        (72, 212, 6, 2)
    }
    streams = Reference(made("Gemma 3n").data).about
    assert [about["ffn_dim"] for about in streams] == [212, 212, 140, 212, 212, 140]
    assert [round(about["gate_cut"], 4) for about in streams] == [0.8416, 0.8416, -0.5244, 0, 0, 0]


def test_layers_that_predict_further_tokens_are_left_out(made, tmp_path):
    """As GLM-4.5 is published: with a layer behind the last one. Not when the configuration knows of none."""
    model = made("GLM-4.5")
    shutil.copytree(model.folder, tmp_path / "tiny", ignore=shutil.ignore_patterns("*.llm"))
    config, tensors = prove.load(tmp_path / "tiny")
    behind = {n.replace(".3.", ".4.", 1): t for n, t in tensors.items() if n.startswith("model.layers.3.")}
    behind["model.layers.4.eh_proj.weight"] = np.ones((4, 4), np.float32)
    prove.store(tmp_path / "tiny", config | {"num_nextn_predict_layers": 1}, tensors | behind)
    report = convert(tmp_path / "tiny", tmp_path / "out.llm", tokenizer=False)
    assert (tmp_path / "out.llm").read_bytes() == model.data
    assert any(f"{len(behind)} tensors that predict" in note for note in report.notes)
    prove.store(tmp_path / "tiny", config | {"num_nextn_predict_layers": 0}, tensors | behind)
    with pytest.raises(ConvertError, match="not part of a GLM-4.5 model"):
        convert(tmp_path / "tiny", tmp_path / "out.llm", tokenizer=False)


def test_layers_of_a_gguf_that_predict_further_tokens_are_left_out(made, tmp_path):
    """As llama.cpp writes GLM-4.5: they count as layers there."""
    pytest.importorskip("gguf")
    model = made("GLM-4.5")
    config, tensors = prove.load(model.folder)
    behind = {n.replace(".3.", ".4.", 1): t for n, t in tensors.items() if n.startswith("model.layers.3.")}
    behind["model.layers.4.eh_proj.weight"] = np.ones((4, 4), np.float32)
    (tmp_path / "tiny").mkdir()
    prove.store(tmp_path / "tiny", config | {"num_nextn_predict_layers": 1}, tensors | behind)
    prove.save_gguf(tmp_path / "ahead.gguf", tmp_path / "tiny", "glm4moe")
    prove.save_gguf(tmp_path / "plain.gguf", model.folder, "glm4moe")
    notes = convert(tmp_path / "ahead.gguf", tmp_path / "ahead.llm", tokenizer=False).notes
    assert any("tensors that predict a token after the next one" in note for note in notes)
    assert not names_unknown_keys(notes)
    convert(tmp_path / "plain.gguf", tmp_path / "plain.llm", tokenizer=False)
    one, other = (Reference((tmp_path / f"{name}.llm").read_bytes()) for name in ("ahead", "plain"))
    assert one.h["n_layers"] == other.h["n_layers"] == 4
    assert np.array_equal(one.logits([3, 4, 5]), other.logits([3, 4, 5]))


def test_mxfp4_experts_go_into_int4_without_loss_from_either_source(made, tmp_path):
    pytest.importorskip("gguf")
    model = made("gpt-oss in MXFP4")
    prove.save_gguf(tmp_path / "tiny.gguf", model.folder, "gpt-oss")
    want = Reference(model.data)
    for source in (model.folder, tmp_path / "tiny.gguf"):
        convert(source, tmp_path / "out.llm", tokenizer=False, dtype="int4", calibrate="none")
        data = (tmp_path / "out.llm").read_bytes()
        kinds = {place_of(data, lib.LLM_GATE_UP, layer, e).dtype for layer in range(1, 4) for e in range(6)}
        assert kinds == {lib.LLM_INT4}
        got = Reference(data)
        for layer in range(1, 4):
            for key in ("gate_up", "down"):
                for ours, theirs in zip(got.layers[layer][key], want.layers[layer][key], strict=True):
                    assert np.array_equal(ours.w, theirs.w)


def test_a_gguf_whose_dense_layers_are_not_those_that_it_says_is_refused(made, tmp_path):
    pytest.importorskip("gguf")
    folder = changed(made("GLM-4.5"), tmp_path, first_k_dense_replace=1)
    prove.save_gguf(tmp_path / "tiny.gguf", folder, "glm4moe")
    with pytest.raises(ConvertError, match="leading_dense_block_count is 1, and 2 layers have no experts"):
        convert(tmp_path / "tiny.gguf", tmp_path / "out.llm", tokenizer=False)


@pytest.mark.parametrize("name", families.REASONS)
def test_known_architectures_that_cannot_be_converted_are_refused_with_the_reason(name):
    with pytest.raises(ConvertError, match=f"^{name} cannot be converted: ") as caught:
        describe({"architectures": [name]})
    assert str(caught.value).endswith(families.REASONS[name])


@pytest.mark.parametrize(
    "name",
    [
        "Gemma 3 of texts and pictures",
        "Gemma 3n",
        "Gemma 4",
        "Gemma 4 with embeddings by layer",
        "Llama 3",
        "Llama with yarn",
        "MiniCPM",
        "MiniMax-M2",
        "OLMo 3",
    ]
    + ["Phi-4-mini", "Qwen2-MoE", "SmolLM3", "GPT-2", "GPT-NeoX", "StableLM 2 12B", "OLMo", "Cohere 2"]
    + ["Apertus", "Falcon 40B"],
)
def test_configurations_with_a_wrong_value_are_read_or_refused(made, name):
    config = json.loads((made(name).folder / "config.json").read_text())
    text = config.get("text_config", config)
    places = [(config, key) for key in config] + [(text, key) for key in text]
    places += [(rope, key) for rope in (text.get("rope_parameters") or {},) for key in rope]
    for place, key in places:
        before = place[key]
        for value in (None, "x", -1, 0.5, 1 << 40, [None] * 3, {"rope_type": {}}):
            place[key] = value
            try:
                describe(config)
            except ConvertError:
                pass
        place[key] = before


@pytest.mark.parametrize(
    ("name", "modules"),
    [
        (
            "Phi-3",
            {"model.layers.0.self_attn.qkv_proj": (1440, 480), "model.layers.1.mlp.gate_up_proj": (424, 480)},
        ),
        ("InternLM2", {"model.layers.1.attention.wqkv": (640, 384)}),
        ("GLM-4", {"model.layers.2.self_attn.k_proj": (128, 132)}),
    ],
)
def test_lora_is_merged_into_the_matrices_that_it_was_trained_on(made, tmp_path, name, modules):
    adapter, folder = tmp_path / "adapter", changed(made(name), tmp_path / "merged")
    config, tensors = prove.load(folder)
    rng, halves = np.random.default_rng(2), {}
    for module, (rows, cols) in modules.items():
        a, b = (rng.standard_normal(shape).astype(np.float32) / 4 for shape in ((4, cols), (rows, 4)))
        halves[f"base_model.model.{module}.lora_A.weight"] = a
        halves[f"base_model.model.{module}.lora_B.weight"] = b
        tensors[f"{module}.weight"] = tensors[f"{module}.weight"].astype(np.float32) + 2 * b @ a
    prove.store(folder, config, tensors)
    adapter.mkdir()
    prove.store(adapter, {}, halves)
    (adapter / "model.safetensors").rename(adapter / "adapter_model.safetensors")
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "lora_alpha": 8}))
    convert(folder, tmp_path / "a.llm", tokenizer=False)
    convert(made(name).folder, tmp_path / "b.llm", tokenizer=False, lora=[adapter])
    one, other = (Reference((tmp_path / file).read_bytes()) for file in ("a.llm", "b.llm"))
    for want, got in zip(one.layers, other.layers, strict=True):
        for key in want:
            for a, b in zip(want[key], got[key], strict=True):
                numbers = [w.w if isinstance(w, Matrix) else w for w in (a, b)]
                assert np.allclose(*numbers, rtol=1e-3, atol=1e-6)  # one fp16 rounding


def test_a_missing_tensor_is_named_as_in_the_checkpoint(made, tmp_path):
    for name, gone in {
        "DeepSeek V3": "model.layers.1.self_attn.kv_b_proj.weight",
        "Gemma 2": "model.layers.1.pre_feedforward_layernorm.weight",
        "InternLM2": "model.layers.0.attention.wo.weight",
        "Mixtral": "model.layers.2.block_sparse_moe.experts.3.w2.weight",
    }.items():
        folder = changed(made(name), tmp_path / name)
        config, tensors = prove.load(folder)
        del tensors[gone]
        prove.store(folder, config, tensors)
        with pytest.raises(ConvertError, match=gone.replace(".", r"\.")):
            convert(folder, tmp_path / "out.llm", tokenizer=False)


def test_the_command_prints_the_table_that_the_readme_has(monkeypatch, capsys):
    readme = (Path(__file__).resolve().parent.parent / "README.md").read_text(encoding="utf-8")
    assert [name for name, case in prove.CASES.items() if f"| {name} | {case.models} | " not in readme] == []
    monkeypatch.setattr(command, "CASES", {name: prove.CASES[name] for name in ("Llama", "Ministral")})
    assert command.main() == 0
    head, _, *rows = capsys.readouterr().out.splitlines()
    assert head in readme and len(rows) == 2
    for row in rows:
        figures = [cell for cell in row.split("|")[3:5] if cell.strip()]
        assert figures and all(0 < float(figure) <= CLOSE for figure in figures)


def test_gpt2_as_the_hub_has_it_gives_the_same_file(made, tmp_path):
    """Names without "transformer.", and the masks of attention beside the weights."""
    model = made("GPT-2")
    folder = changed(model, tmp_path)
    config, tensors = prove.load(folder)
    bare = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    bare["h.0.attn.bias"] = np.tril(np.ones((1, 1, 256, 256), np.float32))
    bare["h.0.attn.masked_bias"] = np.array(-1e4, np.float32)
    assert "h.0.attn.c_attn.weight" in bare and "wpe.weight" in bare
    prove.store(folder, config, bare)
    convert(folder, tmp_path / "out.llm", tokenizer=False)
    assert (tmp_path / "out.llm").read_bytes() == model.data
