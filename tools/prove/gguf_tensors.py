"""The tensors of a GGUF file: what modify_tensors of llama.cpp's converter makes of a checkpoint's. Most keep
transformers' names, for which gguf_file.py finds llama.cpp's; those that begin with blk. have it already."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from tools.checkpoints import interleaved
from tools.prove.gguf_keys import head_width
from tools.prove.gguf_metadata import XIELU

# Architectures in whose q and k neighbours turn together
INTERLEAVED = (
    *("llama", "granite", "granitemoe", "smollm3", "minicpm", "deepseek", "mistral3", "granite_swa"),
    *("olmo", "arcee"),
)
# and to whose norms' weights 1 is added
SHIFTED = ("gemma", "gemma2", "gemma3", "nemotron", "qwen3next", "qwen35", "qwen35moe")


def gguf_tensors(arch: str, h: dict[str, Any], tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """All of them, by layers and, of experts that stand one by one, by experts."""
    result: dict[str, np.ndarray] = {}
    for name in sorted(tensors, key=by_numbers):
        if name.endswith(("_scales", *XIELU)):  # they go with their blocks, and into the metadata
            continue
        own = dict(own_tensors(arch, name, tensors))
        if own:
            result |= own
        elif ".norms." in name:
            result |= stacked_norms(name, tensors)
        else:
            tensor = tensors[name].astype(np.float32)
            result |= parts_of(arch, h, new_name(arch, name), new_numbers(arch, h, name, tensor))
    return result


def by_numbers(name: str) -> list[int]:
    """What tensors are sorted by: the numbers in their names."""
    return [int(part) if part.isdigit() else -1 for part in name.split(".")]


# ---------------------------------------------------------------------------------------------------------
# Tensors that are named here


def own_tensors(arch: str, name: str, tensors: dict[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    """What becomes of a tensor that the converter's code of the architecture renames or takes apart, under
    the names that GGUF has; nothing of others."""
    found = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", name)
    if not found:
        return
    blk, tail = f"blk.{found[1]}", found[2]
    if arch in ("gpt-oss", "llama4") and ".experts." in tail:
        yield from stacked_tensors(arch, blk, tail.rpartition(".")[2], name, tensors)
    elif own := own_name(arch, tail):
        tensor = tensors[name].astype(np.float32)
        yield f"{blk}.{own}", tensor.reshape(-1) if own.startswith("exp_probs_b") else tensor


def own_name(arch: str, tail: str) -> str | None:
    """The name within a layer of a tensor that is only renamed; None of others."""
    if tail.endswith(("sinks", "attention_sink_bias")):
        return "attn_sinks.weight"
    if tail.endswith(("e_score_correction_bias", "expert_bias")):
        return "exp_probs_b" if arch == "hy_v3" else "exp_probs_b.bias"  # no name of theirs ends in .bias
    if tail.endswith("g_proj.weight"):
        return "attn_gate.weight"
    if tail.endswith(("mlp.gate.wg.weight", "router.gate.weight", "router.layer.weight")):
        return "ffn_gate_inp.weight"
    if arch == "hy_v3" and ".shared_mlp." in tail:
        return f"ffn_{tail.split('.')[2].removesuffix('_proj')}_shexp.weight"
    if arch == "granite_swa":
        return granite_name(tail)
    return None


def granite_name(tail: str) -> str | None:
    """Granite SWA's: gate and up are in one, of experts and of the shared one."""
    fused = tail.endswith(("gate_up_proj", "input_linear.weight"))
    if tail == "block_sparse_moe.router.weight":
        return "ffn_gate_inp.weight"
    if tail.startswith("shared_mlp."):
        return f"ffn_{'up' if fused else 'down'}_shexp.weight"
    if tail.startswith("block_sparse_moe.experts."):
        return f"ffn_{'gate_up' if fused else 'down'}_exps.weight"
    return None


def stacked_tensors(
    arch: str, blk: str, kind: str, name: str, tensors: dict[str, np.ndarray]
) -> Iterator[tuple[str, np.ndarray]]:
    """GptOssModel and Llama4Model: gate and up apart, a row for each output."""
    tensor = tensors[name]
    if kind.endswith("_blocks"):
        tensor = packed_mxfp4(tensor, tensors[name.replace("_blocks", "_scales")])
    elif kind.endswith("_bias"):
        tensor = tensor.astype(np.float32)
    else:
        tensor = tensor.swapaxes(1, 2).astype(np.float32)
    end = "bias" if kind.endswith("_bias") else "weight"
    if kind.startswith("down"):
        yield f"{blk}.ffn_down_exps.{end}", np.ascontiguousarray(tensor)
        return
    halves = (tensor[:, 0::2], tensor[:, 1::2]) if arch == "gpt-oss" else np.split(tensor, 2, axis=1)
    for part, half in zip(("gate", "up"), halves, strict=True):
        yield f"{blk}.ffn_{part}_exps.{end}", np.ascontiguousarray(half)


def packed_mxfp4(blocks: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Rows of GGUF's blocks: the exponent, and 32 codes of which i and i + 16 share a byte; from blocks
    (experts, rows, groups, 16) in which neighbours do."""
    codes = np.stack([blocks & 15, blocks >> 4], axis=-1).reshape(*blocks.shape[:3], 32)
    packed = np.concatenate([scales[..., None], codes[..., :16] | codes[..., 16:] << 4], axis=-1)
    return np.reshape(packed, (*packed.shape[:2], -1))


# ---------------------------------------------------------------------------------------------------------
# Tensors that keep their names


def new_name(arch: str, name: str) -> str:
    """A name that the library's table has."""
    if arch.startswith("qwen35"):
        name = name.replace("model.language_model.", "model.")
    scale = name.endswith(("correct_output_scale", "layer_scalar"))
    if scale or (arch == "gemma4" and ".experts." in name and not name.endswith(".weight")):
        return f"{name}.weight"
    return name.replace("correction_bias", "correction.bias")


def new_numbers(arch: str, h: dict[str, Any], name: str, tensor: np.ndarray) -> np.ndarray:
    """A tensor's numbers as llama.cpp has them."""
    heads, kv = h["num_attention_heads"], h["num_key_value_heads"]
    if arch == "gpt2" and name.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight")):
        return np.transpose(tensor)
    if "query_key_value" in name:
        return np.concatenate(query_key_value(tensor, h))
    if arch in INTERLEAVED and ".q_proj." in name:
        return interleaved(tensor, heads)
    if arch in INTERLEAVED and ".k_proj." in name:
        return interleaved(tensor, kv)
    if arch in SHIFTED and name.endswith("norm.weight") and "linear_attn" not in name:
        return tensor + 1
    if "embed_tokens_per_layer" in name:
        return np.pad(tensor, ((0, h["vocab_size"] - len(tensor)), (0, 0)))
    if name.endswith("shared_expert_gate.weight"):
        return tensor.reshape(-1)
    if name.endswith(".conv.conv.weight"):
        return tensor[:, 0]
    return tensor


def query_key_value(tensor: np.ndarray, h: dict[str, Any]) -> list[np.ndarray]:
    """q, k and v of what has them by groups: the queries of a key head, it, and its values."""
    heads, kv = h["num_attention_heads"], h["num_key_value_heads"]
    groups = tensor.reshape(kv, heads // kv + 2, head_width(h), -1)
    parts = groups[:, :-2], groups[:, -2], groups[:, -1]
    return [part.reshape(-1, *tensor.shape[1:]) for part in parts]


# ---------------------------------------------------------------------------------------------------------
# Tensors that are one in the checkpoint and several here, or the other way round


def stacked_norms(name: str, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """StableLM: a norm for each head, in one."""
    stem = name.partition(".norms.")[0]
    count = sum(other.startswith(f"{stem}.norms.") for other in tensors)
    each = [tensors[f"{stem}.norms.{i}.weight"] for i in range(count)]
    return {f"{stem}.weight": np.stack(each).astype(np.float32)}


def parts_of(arch: str, h: dict[str, Any], name: str, tensor: np.ndarray) -> dict[str, np.ndarray]:
    """What a tensor becomes that is several in one; of others that, under its name."""
    layer = ".".join(name.split(".")[:3])  # model.layers.0
    if ".wqkv." in name:
        q, k, v = query_key_value(tensor, h)
        return {
            f"{layer}.self_attn.q_proj.weight": interleaved(q, h["num_attention_heads"]),
            f"{layer}.self_attn.k_proj.weight": interleaved(k, h["num_key_value_heads"]),
            f"{layer}.self_attn.v_proj.weight": v,
        }
    if arch == "deepseek2" and name.endswith("kv_b_proj.weight"):
        groups = tensor.reshape(h["num_attention_heads"], -1, tensor.shape[1])
        k, v = np.split(groups, [h["qk_nope_head_dim"]], axis=1)
        return {
            name.replace("kv_b", "k_b"): np.ascontiguousarray(k.swapaxes(1, 2)),
            name.replace("kv_b", "v_b"): np.ascontiguousarray(v),
        }
    if "input_linear" in name:
        block = f"{layer}.mlp.shared_expert" if "shared" in name else f"{layer}.mlp.experts"
        gate, up = np.split(tensor, 2, axis=-2)
        return {f"{block}.gate_proj.weight": gate, f"{block}.up_proj.weight": up}
    if "output_linear" in name and "shared" in name:
        return {f"{layer}.mlp.shared_expert.down_proj.weight": tensor}
    if ".linear_attn." in name:
        return delta_tensors(arch, h, name, tensor)
    return {name: tensor}


def delta_tensors(arch: str, h: dict[str, Any], name: str, tensor: np.ndarray) -> dict[str, np.ndarray]:
    """Qwen3NextModel.modify_tensors and _LinearAttentionVReorderBase of a tensor of the gated delta rule."""
    keys, width = h["linear_num_key_heads"], h["linear_key_head_dim"]
    layer, _, part = name.partition(".linear_attn.")
    if part == "in_proj_qkvz.weight":
        return delta_projections(h, f"{layer}.linear_attn.in_proj", tensor)
    if part == "conv1d.weight":
        tensor = tensor[:, 0]
    if arch != "qwen3next":
        before = 2 * keys * width if part.startswith(("in_proj_qkv", "conv1d")) else 0
        each = 1 if part.startswith(("in_proj_a", "in_proj_b", "A_log", "dt_bias")) else width
        if part == "out_proj.weight":
            tensor = tiled(tensor.T, keys, width).T
        elif part != "norm.weight":
            tensor = np.concatenate([tensor[:before], tiled(tensor[before:], keys, each)])
    if part == "A_log":
        return {f"blk.{layer.rpartition('.')[2]}.ssm_a": -np.exp(tensor)}
    return {name.replace(".dt_bias", ".dt_proj.bias"): np.ascontiguousarray(tensor)}


def delta_projections(h: dict[str, Any], stem: str, tensor: np.ndarray) -> dict[str, np.ndarray]:
    """Qwen3-Next's q, k, v and z, which stand together for each key head."""
    keys, heads, width = (
        h[f"linear_{kind}"] for kind in ("num_key_heads", "num_value_heads", "key_head_dim")
    )
    groups = tensor.reshape(keys, -1, tensor.shape[1])
    cuts = np.cumsum([width, width, heads // keys * width])
    q, k, v, z = (some.reshape(-1, tensor.shape[1]) for some in np.split(groups, cuts, axis=1))
    return {f"{stem}_qkv.weight": np.concatenate([q, k, v]), f"{stem}_z.weight": z}


def tiled(x: np.ndarray, keys: int, each: int) -> np.ndarray:
    """The rows of value heads: of each key head the first one, then the second, ..."""
    return np.reshape(x.reshape(keys, -1, each, *x.shape[1:]).swapaxes(0, 1), x.shape)
