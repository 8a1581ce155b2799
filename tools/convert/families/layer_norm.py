"""LayerNorm, or feed-forward blocks without a gate, or both, under Llama's names: what gpt.py's models
have is here one thing at a time."""

from __future__ import annotations

from dataclasses import replace

from pyllm._llm import lib

from ..configuration import Config, switch
from .common import QK_NAMES, WINDOW, but_every, value_of
from .family import Family, always, sliding
from .gpt import ATTENTION_BIAS, BIASED_NORM, LAYER_NORM_EPS, PHI_FFN_NAMES

RELU2: dict[str, tuple[object, ...]] = {"hidden_act": ("relu2",)}
ALL_BIASES = {"attention_bias": ATTENTION_BIAS, "mlp_bias": lib.LLM_FFN_BIAS}


def parallel(config: Config) -> bool:
    """StableLmDecoderLayer: the second norm is missing where blocks are side by side."""
    return switch(config, "use_parallel_residual")


def trained_length(config: Config) -> Config:
    """Command R was made for longer texts than its max_position_embeddings, as another key says."""
    longest = config.get("model_max_length")
    return config if longest is None else config | {"max_position_embeddings": longest}


def ropes_of_windows(config: Config, kinds: list[str]) -> list[str | None]:
    """Cohere2Attention: only layers with a window turn."""
    some = config["sliding_window"] is not None
    return [kind if some and kind == "sliding_attention" else None for kind in kinds]


def apertus_rope(config: Config) -> Config:
    """ApertusConfig: Llama 3's scaling, unless the configuration says another."""
    if config.get("rope_parameters") or config.get("rope_scaling"):
        return config
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    return config | {"rope_parameters": scaling | {"original_max_position_embeddings": 8192}}


COHERE = Family(
    "Cohere",
    defaults={
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "logit_scale": 0.0625,
        "tie_word_embeddings": True,
    },
    flags=lib.LLM_LAYER_NORM | lib.LLM_PARALLEL,
    switches={
        "attention_bias": ATTENTION_BIAS,
        "use_qk_norm": lib.LLM_QK_NORM | lib.LLM_QK_NORM_EACH,
    },
    logit_scale=value_of("logit_scale"),
    keys=LAYER_NORM_EPS,
    prepare=trained_length,
    one_norm=always,
    interleaved=True,
)
ROWS: dict[str, Family] = {
    "StableLmForCausalLM": Family(
        "StableLM",
        defaults={"num_key_value_heads": 32, "rms_norm_eps": 1e-5, "partial_rotary_factor": 0.25},
        rename=QK_NAMES,
        flags=BIASED_NORM,
        switches={
            "use_qkv_bias": lib.LLM_QKV_BIAS,
            "qk_layernorm": lib.LLM_QK_NORM | lib.LLM_QK_NORM_EACH,
            "use_parallel_residual": lib.LLM_PARALLEL,
        },
        keys={"rope_pct": "partial_rotary_factor", **LAYER_NORM_EPS},
        partial=True,
        one_norm=parallel,
        absent={".q_norm.bias": 0.0, ".k_norm.bias": 0.0},
    ),
    "OlmoForCausalLM": Family(
        "OLMo",
        defaults={"rms_norm_eps": 1e-5},
        flags=lib.LLM_LAYER_NORM,
        switches={"attention_bias": ATTENTION_BIAS},
        numbers={"qkv_clip": value_of("clip_qkv", 0.0)},
        absent={"norm.weight": 1.0},
    ),
    "CohereForCausalLM": COHERE,
    "Cohere2ForCausalLM": replace(
        COHERE,
        name="Cohere 2",
        defaults={
            "rms_norm_eps": 1e-5,
            "logit_scale": 0.0625,
            "tie_word_embeddings": True,
            **WINDOW,
            "sliding_window": 4096,
            "sliding_window_pattern": 4,
        },
        switches={"attention_bias": ATTENTION_BIAS},
        kinds=sliding(but_every("sliding_window_pattern")),
        ropes=ropes_of_windows,
        only={
            "use_qk_norm": (None, False),
            "use_parallel_block": (None, True),
            "use_gated_activation": (None, True),
            "use_embedding_sharing": (None, True),
            "position_embedding_type": (None, "rope_gptj"),
            "order_of_interleaved_layers": (None, "local_attn_first"),
            "rotary_pct": (None, 1.0, 1),
            "layer_switch": (None, 4),
        },
    ),
    "NemotronForCausalLM": Family(
        "Nemotron",
        defaults={"hidden_act": "relu2", "rms_norm_eps": 1e-5, "partial_rotary_factor": 0.5},
        flags=BIASED_NORM | lib.LLM_NO_GATE,
        switches=ALL_BIASES,
        activation=None,
        norm_offset=1.0,
        keys=LAYER_NORM_EPS,
        partial=True,
        only=RELU2,
    ),
    "Jais2ForCausalLM": Family(
        "Jais 2",
        defaults={
            "hidden_act": "relu2",
            "rms_norm_eps": 1e-5,
            "attention_bias": True,
            "mlp_bias": True,
        },
        flags=BIASED_NORM | lib.LLM_NO_GATE,
        switches=ALL_BIASES,
        activation=None,
        keys=LAYER_NORM_EPS,
        only=RELU2,
    ),
    "ArceeForCausalLM": Family(
        "Arcee",
        defaults={"hidden_act": "relu2", "rms_norm_eps": 1e-5},
        flags=lib.LLM_NO_GATE,
        switches=ALL_BIASES,
        activation=None,
        only=RELU2,
    ),
    "ApertusForCausalLM": Family(
        "Apertus",
        defaults={"hidden_act": "xielu", "rms_norm_eps": 1e-5, "rope_theta": 12e6},
        rename=(
            (".attention_layernorm.", ".input_layernorm."),
            (".feedforward_layernorm.", ".post_attention_layernorm."),
        ),
        flags=lib.LLM_NO_GATE | lib.LLM_QK_NORM,
        switches={"attention_bias": ATTENTION_BIAS},
        activation=None,
        prepare=apertus_rope,
        only={"hidden_act": ("xielu",), "post_norm": (None, False), "qk_norm": (None, True)},
    ),
    "NanoChatForCausalLM": Family(
        "nanochat",
        defaults={"hidden_act": "relu2", "final_logit_softcapping": 15.0},
        rename=PHI_FFN_NAMES,
        # RMSNorm without weights is the same before the rotation and after it
        flags=lib.LLM_NO_GATE | lib.LLM_QK_NORM,
        header=lib.LLM_INPUT_NORM,
        activation=None,
        numbers={"logit_cap": value_of("final_logit_softcapping", 0.0)},
        backwards=True,
        absent={"norm.weight": 1.0},
        only=RELU2,
    ),
}
