"""What a case is, and the parts of configurations that families of several files of cases/ share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

VOCAB = 203  # no multiple of 16


@dataclass(frozen=True)
class Case:
    """A family, or a variant of one: the model that transformers makes of it, and how the checkpoint differs
    from what transformers saves."""

    kind: str  # of <kind>Config and <kind>ForCausalLM
    models: str  # for people: what is published with this architecture
    config: dict[str, Any] = field(default_factory=dict)
    text: dict[str, Any] | None = None  # of text_config, in a model of texts and pictures
    context: int | None = None  # what the conversion is asked for
    embed: float = 4.0  # the size of the embedding's numbers, see random_model.py
    out_bias: bool = False  # whether what is multiplied with o_proj has a bias
    adjust: Callable[[str, Any], Any] | None = None  # (name, numbers) of a weight: what rewrite needs
    rewrite: Callable[[Path], None] | None = None  # turns the saved folder into one that transformers lacks
    gguf: str | None = None  # llama.cpp's name, if it has the architecture
    drop: tuple[str, ...] = ()  # of the usual sizes, keys that the configuration calls otherwise


# Heads. 132 / 3 = 44, which no head_dim of a case is
ODD = {"num_attention_heads": 3, "num_key_value_heads": 1}
MHA = {"num_attention_heads": 3, "num_key_value_heads": 3}
GQA = {"num_attention_heads": 6, "num_key_value_heads": 2}

FULL_AT_ENDS = ["full_attention", "sliding_attention", "sliding_attention", "full_attention"]

# Mixtures: with one shared expert by Qwen's names, with several by DeepSeek's
MOE = {"num_experts_per_tok": 2, "moe_intermediate_size": 72}
ONE_SHARED = {**MOE, "num_experts": 6, "shared_expert_intermediate_size": 100}
SHARED = {"n_routed_experts": 6, "n_shared_experts": 2}

VISION = {  # of models of texts and pictures
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 16,
}

LLAMA3: dict[str, Any] = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN: dict[str, Any] = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}


def theta(base: float = 10000.0, **scaling: Any) -> dict[str, Any]:
    """The new style's rope_parameters."""
    return {"rope_parameters": {"rope_type": "default", "rope_theta": base} | scaling}


def factors(n: int, most: float) -> list[float]:
    """Rotary factors of long texts, growing like Phi-3.5's."""
    return [float(x) for x in np.linspace(1, most, n).round(3)]


# Queries grow with their positions
GROWING = theta(**YARN, mscale=1.0, mscale_all_dim=1.0, llama_4_scaling_beta=0.4)
