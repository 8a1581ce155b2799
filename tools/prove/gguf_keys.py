"""A configuration by the keys that most have, as llama.cpp's converter reads it: with what only its code of
an architecture says."""

from __future__ import annotations

from typing import Any

import numpy as np

# Keys that configurations of the time of GPT-2, and others, have for the usual ones
USUAL_KEYS = {
    "n_embd": "hidden_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_positions": "max_position_embeddings",
    "n_inner": "intermediate_size",
    "ffn_hidden_size": "intermediate_size",
    "num_kv_heads": "num_key_value_heads",
    "layer_norm_epsilon": "layer_norm_eps",
    "norm_epsilon": "layer_norm_eps",
    "norm_eps": "layer_norm_eps",
}


def usual_keys(config: dict[str, Any]) -> dict[str, Any]:
    """A config.json by these keys, with what each architecture of llama.cpp's has in its converter's code."""
    h = {USUAL_KEYS.get(key, key): value for key, value in config.items()}
    if config["model_type"] == "falcon" and not h["new_decoder_architecture"]:
        h["num_key_value_heads"] = 1
    if config["model_type"] == "gpt_bigcode":
        h["num_key_value_heads"] = 1
    if config["model_type"] == "olmo":
        h["layer_norm_eps"] = 1e-5
    if config["model_type"].startswith("lfm2"):
        h["rms_norm_eps"] = h.pop("layer_norm_eps")
    h.setdefault("num_key_value_heads", h["num_attention_heads"])
    h.setdefault("rope_parameters", {"rope_type": "default"})
    return h


def first(h: dict[str, Any], *keys: str) -> Any:
    """What a configuration has for the first of these keys that it has; of a list, which is of one value for
    all layers, that."""
    found = next((h[key] for key in keys if h.get(key) is not None), None)
    return found[0] if isinstance(found, list) else found


def head_width(h: dict[str, Any]) -> int:
    """head_dim, if only by the other sizes."""
    return int(h.get("head_dim") or h["hidden_size"] // h["num_attention_heads"])


def full_rope(h: dict[str, Any]) -> dict[str, Any]:
    """The rotary configuration of layers without a window."""
    rope = h["rope_parameters"]
    return dict(rope.get("full_attention", rope))


def windowed_layers(h: dict[str, Any]) -> list[bool]:
    """Whether each layer has a window; [] if no list says so."""
    return [kind == "sliding_attention" for kind in h.get("layer_types") or ()]


def of_layers(arch: str, h: dict[str, Any], tensors: dict[str, np.ndarray]) -> dict[str, Any]:
    """What the converter writes for all architectures, of those that have another number there."""
    rope, ahead = h["rope_parameters"], h.get("num_nextn_predict_layers") or 0
    if "kv_lora_rank" in h:
        return {"head_dim": None}  # and without layers that predict further tokens
    if ahead:
        return {"num_hidden_layers": h["num_hidden_layers"] + ahead}
    if rope.get("alpha"):
        power = h["head_dim"] / (h["head_dim"] - 2)
        return {"rope_parameters": rope | {"rope_theta": rope["rope_theta"] * rope["alpha"] ** power}}
    if arch.startswith("lfm2"):
        return {
            "num_key_value_heads": [h["num_key_value_heads"] * (kind != "conv") for kind in h["layer_types"]],
            "intermediate_size": len(tensors["model.layers.0.feed_forward.w1.weight"]),
        }
    if arch == "llama4":
        return {"intermediate_size": h["intermediate_size_mlp"]}
    if arch == "laguna":
        return {"num_attention_heads": h["num_attention_heads_per_layer"]}
    if arch == "mimo2":
        few = h["num_key_value_heads"]
        return {"num_key_value_heads": [2 * few if windowed else few for windowed in windowed_layers(h)]}
    return {}
