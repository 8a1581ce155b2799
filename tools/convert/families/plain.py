"""Dense models whose blocks are Llama's, but for names, biases, norms, and scales; some have a window that is
the same in all layers that have it."""

from __future__ import annotations

from dataclasses import replace

from pyllm._llm import lib

from ..configuration import integer, number
from .common import BIASES, BUT_EVERY_FOURTH, EVERY, POST_NORM_NAMES, W_NAMES, WINDOW, but_every, value_of
from .family import BIAS, Family, sliding

QWEN = {"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28}
QWEN_KINDS = sliding(lambda config, i: i >= integer(config, "max_window_layers", zero=True))
OLMO_FLAGS = lib.LLM_QK_NORM | lib.LLM_QK_NORM_WHOLE
OLMO2_FLAGS = OLMO_FLAGS | lib.LLM_NO_PRE_NORM | lib.LLM_POST_NORM
INTERNLM2_NAMES = (
    ("model.tok_embeddings.", "model.embed_tokens."),
    (".attention.wqkv.", ".self_attn.grouped_qkv_proj."),
    (".attention.wo.", ".self_attn.o_proj."),
    (".attention_norm.", ".input_layernorm."),
    (".feed_forward.", ".mlp."),
    (".ffn_norm.", ".post_attention_layernorm."),
    *W_NAMES,
    ("output.weight", "lm_head.weight"),
)
HUNYUAN_NAMES = (
    (".query_layernorm.", ".q_norm."),
    (".key_layernorm.", ".k_norm."),
    (".mlp.gate.wg.", ".mlp.gate."),
    (".mlp.shared_mlp.", ".mlp.shared_expert."),
)
HUNYUAN_ONLY = {"use_qk_norm": (None, True), "use_cla": (None, False), "norm_type": (None, "rms", "hf_rms")}

MINICPM = Family(
    "MiniCPM",
    defaults={"tie_word_embeddings": True, "scale_emb": 1, "scale_depth": 1, "dim_model_base": 1},
    numbers={
        "embed_scale": value_of("scale_emb"),
        "residual_scale": lambda config: (
            number(config, "scale_depth") / number(config, "num_hidden_layers") ** 0.5
        ),
    },
    logit_scale=lambda config: number(config, "dim_model_base") / number(config, "hidden_size"),
    only={"num_experts": (None, 0), "sparse_config": (None,)},
)
GLM = Family(
    "GLM-4",
    defaults={
        "num_key_value_heads": 2,
        "head_dim": 128,
        "rms_norm_eps": 1.5625e-7,
        "partial_rotary_factor": 0.5,
        "attention_bias": True,
    },
    partial=True,
    interleaved=True,
)
ERNIE = Family(
    "ERNIE 4.5",
    defaults={
        "num_key_value_heads": 2,
        "head_dim": 128,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "tie_word_embeddings": True,
    },
    switches={"use_bias": lib.LLM_QKV_BIAS},
    interleaved=True,
)

ROWS: dict[str, Family] = {
    "LlamaForCausalLM": Family("Llama"),
    "MistralForCausalLM": Family(
        "Mistral",
        defaults={"num_key_value_heads": 8, **WINDOW, "sliding_window": 4096},
        switches={},
        kinds=EVERY,
    ),
    "MinistralForCausalLM": Family(
        "Ministral",
        defaults={"num_key_value_heads": 8, **WINDOW, "sliding_window": 4096},
        switches={},
        kinds=sliding(lambda config, i: config["sliding_window"] is not None),
    ),
    "Qwen2ForCausalLM": Family("Qwen2", defaults=QWEN, flags=lib.LLM_QKV_BIAS, kinds=QWEN_KINDS),
    "Qwen3ForCausalLM": Family(
        "Qwen3", defaults={"head_dim": 128, **QWEN}, flags=lib.LLM_QK_NORM, kinds=QWEN_KINDS
    ),
    "Phi3ForCausalLM": Family(
        "Phi-3",
        defaults={"rms_norm_eps": 1e-5, "original_max_position_embeddings": 4096, **WINDOW},
        switches={},
        kinds=EVERY,
        partial=True,
    ),
    "Olmo2ForCausalLM": Family(
        "OLMo 2", defaults={"rms_norm_eps": 1e-5}, rename=POST_NORM_NAMES, flags=OLMO2_FLAGS
    ),
    "Olmo3ForCausalLM": Family(
        "OLMo 3",
        defaults={"rms_norm_eps": 1e-5, "rope_theta": 500000.0, **WINDOW, "sliding_window": 4096},
        rename=POST_NORM_NAMES,
        flags=OLMO2_FLAGS,
        kinds=sliding(but_every(4)),
        local_rope=True,
    ),
    "InternLM2ForCausalLM": Family("InternLM2", rename=INTERNLM2_NAMES, switches={"bias": lib.LLM_QKV_BIAS}),
    "InternLM3ForCausalLM": Family(
        "InternLM3",
        defaults={"num_key_value_heads": 2, "head_dim": 128, "rms_norm_eps": 1e-5},
        switches={"qkv_bias": lib.LLM_QKV_BIAS, **BIAS},
    ),
    "MiniCPMForCausalLM": MINICPM,
    "GlmForCausalLM": GLM,
    "Glm4ForCausalLM": replace(GLM, name="GLM-4-0414", flags=lib.LLM_POST_NORM),
    "SeedOssForCausalLM": Family(
        "Seed-OSS", defaults={"num_key_value_heads": 8, "head_dim": 128, "attention_bias": True}
    ),
    "Ernie4_5ForCausalLM": ERNIE,
    "Ernie4_5_ForCausalLM": ERNIE,  # as the hub has it
    "HunYuanDenseV1ForCausalLM": Family(
        "HunYuan",
        defaults={"rms_norm_eps": 1e-5},
        rename=HUNYUAN_NAMES,
        flags=lib.LLM_QK_NORM | lib.LLM_QK_NORM_LATE,
        switches=BIASES,
        only=HUNYUAN_ONLY,
    ),
    "CwmForCausalLM": Family(
        "CWM",
        defaults={
            "num_key_value_heads": 8,
            "head_dim": 128,
            "rms_norm_eps": 1e-5,
            "rope_theta": 1e6,
            **WINDOW,
            "sliding_window": 8192,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 1e6,
                "factor": 16.0,
                "high_freq_factor": 4.0,
                "low_freq_factor": 1.0,
                "original_max_position_embeddings": 8192,
            },
        },
        switches={},
        kinds=BUT_EVERY_FOURTH,
    ),
}
