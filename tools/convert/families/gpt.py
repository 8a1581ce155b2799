"""GPT-2 and what came of it: LayerNorm with biases, feed-forward blocks without a gate, blocks side by side,
and names of their own for all of it."""

from __future__ import annotations

from pyllm._llm import lib

from ..configuration import Config, integer, switch
from ..sources import ConvertError
from .common import EVERY, QK_NAMES, WINDOW
from .family import Family, always

GELUS: dict[str, tuple[object, ...]] = {"hidden_act": ("gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh")}
LAYER_NORM_EPS = {
    "layer_norm_eps": "rms_norm_eps",
    "norm_eps": "rms_norm_eps",
    "layer_norm_epsilon": "rms_norm_eps",
}
BIASED_NORM = lib.LLM_LAYER_NORM | lib.LLM_NORM_BIAS
ATTENTION_BIAS = lib.LLM_QKV_BIAS | lib.LLM_ATTN_OUT_BIAS
EVERY_BIAS = ATTENTION_BIAS | lib.LLM_FFN_BIAS

GPT2_SIZES = {
    "vocab_size": 50257,
    "max_position_embeddings": 1024,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
}
GPT2_KEYS = {
    "n_positions": "max_position_embeddings",
    "n_embd": "hidden_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_inner": "intermediate_size",
    "activation_function": "hidden_act",
    **LAYER_NORM_EPS,
}
GPT2_ONLY: dict[str, tuple[object, ...]] = {
    "scale_attn_weights": (None, True),
    "scale_attn_by_inverse_layer_idx": (None, False),
    "add_cross_attention": (None, False),
}
GPT2_ROOTS = (
    ("transformer.h.", "model.layers."),
    ("transformer.wte.", "model.embed_tokens."),
)
GPT2_FFN_NAMES = (
    (".mlp.c_fc.", ".mlp.up_proj."),
    (".mlp.c_proj.", ".mlp.down_proj."),
)
GPT2_NAMES = (
    *GPT2_ROOTS,
    ("transformer.wpe.", "model.positions."),
    ("transformer.ln_f.", "model.norm."),
    (".ln_1.", ".input_layernorm."),
    (".ln_2.", ".post_attention_layernorm."),
    (".attn.c_attn.", ".self_attn.qkv_proj."),
    (".attn.c_proj.", ".self_attn.o_proj."),
    *GPT2_FFN_NAMES,
)
GPTJ_NAMES = (
    *GPT2_ROOTS,
    ("transformer.ln_f.", "model.norm."),
    (".ln_1.", ".input_layernorm."),
    (".attn.out_proj.", ".self_attn.o_proj."),
    (".attn.", ".self_attn."),
    (".mlp.fc_in.", ".mlp.up_proj."),
    (".mlp.fc_out.", ".mlp.down_proj."),
)
NEOX_FFN_NAMES = (
    (".mlp.dense_h_to_4h.", ".mlp.up_proj."),
    (".mlp.dense_4h_to_h.", ".mlp.down_proj."),
)
NEOX_NAMES = (
    ("gpt_neox.layers.", "model.layers."),
    ("gpt_neox.embed_in.", "model.embed_tokens."),
    ("gpt_neox.final_layer_norm.", "model.norm."),
    ("embed_out.", "lm_head."),
    (".attention.query_key_value.", ".self_attn.grouped_qkv_proj."),
    (".attention.dense.", ".self_attn.o_proj."),
    *NEOX_FFN_NAMES,
)
FALCON_NAMES = (
    ("transformer.h.", "model.layers."),
    ("transformer.word_embeddings.", "model.embed_tokens."),
    ("transformer.ln_f.", "model.norm."),
    (".ln_attn.", ".input_layernorm."),
    (".ln_mlp.", ".post_attention_layernorm."),
    (".self_attention.query_key_value.", ".self_attn.grouped_qkv_proj."),
    (".self_attention.dense.", ".self_attn.o_proj."),
    *NEOX_FFN_NAMES,
)
PHI_FFN_NAMES = (
    (".mlp.fc1.", ".mlp.up_proj."),
    (".mlp.fc2.", ".mlp.down_proj."),
)
PHI_NAMES = (
    ("model.final_layernorm.", "model.norm."),
    (".self_attn.dense.", ".self_attn.o_proj."),
    *QK_NAMES,
    *PHI_FFN_NAMES,
)


def ropes_of_none(config: Config, kinds: list[str]) -> list[str | None]:
    """GPT2Model: positions are learned."""
    return [None] * len(kinds)


def four_times(config: Config) -> Config:
    """GPT2Config: the usual width of a feed-forward block."""
    width = config.get("intermediate_size") or 4 * integer(config, "hidden_size")
    return config | {"intermediate_size": width}


def falcon_heads(config: Config) -> Config:
    """FalconAttention and FalconDecoderLayer: which of its three kinds a model is."""
    new = switch(config, "new_decoder_architecture")
    if new and not switch(config, "parallel_attn"):
        raise ConvertError("configuration: new_decoder_architecture without parallel_attn is not supported")
    own: Config = {}
    if not new:
        own = {"num_key_value_heads": 1 if switch(config, "multi_query") else None}
    return four_times(config) | own


def falcon_shares(config: Config) -> bool:
    """FalconDecoderLayer: of blocks side by side only those of the new architecture may have two norms."""
    if not switch(config, "new_decoder_architecture"):
        return switch(config, "parallel_attn")
    return config.get("num_ln_in_parallel_attn") == 1


ROWS: dict[str, Family] = {
    "GPT2LMHeadModel": Family(
        "GPT-2",
        defaults={
            **GPT2_SIZES,
            "hidden_act": "gelu_new",
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": True,
        },
        rename=GPT2_NAMES,
        base="transformer.",
        by_input=("qkv_proj.weight", "o_proj.weight", "up_proj.weight", "down_proj.weight"),
        flags=BIASED_NORM | EVERY_BIAS | lib.LLM_NO_GATE,
        header=lib.LLM_POSITION_TABLE,
        switches={},
        activation=None,
        keys=GPT2_KEYS,
        prepare=four_times,
        ropes=ropes_of_none,
        only=GELUS | GPT2_ONLY,
    ),
    "GPTBigCodeForCausalLM": Family(
        "StarCoder",
        defaults={
            **GPT2_SIZES,
            "hidden_act": "gelu_pytorch_tanh",
            "rms_norm_eps": 1e-5,
            "multi_query": True,
            "tie_word_embeddings": True,
        },
        rename=GPT2_NAMES,
        base="transformer.",
        flags=BIASED_NORM | EVERY_BIAS | lib.LLM_NO_GATE,
        header=lib.LLM_POSITION_TABLE,
        switches={},
        activation=None,
        keys=GPT2_KEYS,
        prepare=lambda config: four_times(config) | {"num_key_value_heads": 1},
        ropes=ropes_of_none,
        only=GELUS | {"multi_query": (True,), **GPT2_ONLY},
    ),
    "GPTJForCausalLM": Family(
        "GPT-J",
        defaults={
            "vocab_size": 50400,
            "max_position_embeddings": 2048,
            "hidden_size": 4096,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
            "rotary_dim": 64,
            "hidden_act": "gelu_new",
            "rms_norm_eps": 1e-5,
        },
        rename=GPTJ_NAMES,
        base="transformer.",
        flags=BIASED_NORM | lib.LLM_FFN_BIAS | lib.LLM_NO_GATE | lib.LLM_PARALLEL,
        header=lib.LLM_OUTPUT_BIAS,
        switches={},
        activation=None,
        keys=GPT2_KEYS,
        prepare=four_times,
        partial=True,
        interleaved=True,
        one_norm=always,
        only=GELUS,
    ),
    "GPTNeoXForCausalLM": Family(
        "GPT-NeoX",
        defaults={
            "hidden_act": "gelu",
            "rms_norm_eps": 1e-5,
            "partial_rotary_factor": 0.25,
            "use_parallel_residual": True,
            "attention_bias": True,
        },
        rename=NEOX_NAMES,
        flags=BIASED_NORM | lib.LLM_FFN_BIAS | lib.LLM_NO_GATE,
        switches={"attention_bias": ATTENTION_BIAS, "use_parallel_residual": lib.LLM_PARALLEL},
        activation=None,
        keys={"rotary_pct": "partial_rotary_factor", "rotary_emb_base": "rope_theta", **LAYER_NORM_EPS},
        partial=True,
        only=GELUS,
    ),
    "PhiForCausalLM": Family(
        "Phi-2",
        defaults={"hidden_act": "gelu_new", "rms_norm_eps": 1e-5, "partial_rotary_factor": 0.5},
        rename=PHI_NAMES,
        flags=BIASED_NORM | EVERY_BIAS | lib.LLM_NO_GATE | lib.LLM_PARALLEL,
        header=lib.LLM_OUTPUT_BIAS,
        switches={"qk_layernorm": lib.LLM_QK_NORM},
        activation=None,
        keys=LAYER_NORM_EPS,
        partial=True,
        one_norm=always,
        only=GELUS,
    ),
    "Starcoder2ForCausalLM": Family(
        "StarCoder2",
        defaults={
            "num_key_value_heads": 2,
            "hidden_act": "gelu_pytorch_tanh",
            "rms_norm_eps": 1e-5,
            "use_bias": True,
            "tie_word_embeddings": True,
            **WINDOW,
        },
        rename=GPT2_FFN_NAMES,
        flags=BIASED_NORM | lib.LLM_NO_GATE,
        switches={"use_bias": EVERY_BIAS},
        activation=None,
        keys={"norm_epsilon": "rms_norm_eps"},
        kinds=EVERY,
        only=GELUS | {"norm_type": (None, "layer_norm"), "mlp_type": (None, "default")},
    ),
    "FalconForCausalLM": Family(
        "Falcon",
        defaults={
            "hidden_act": "gelu",
            "rms_norm_eps": 1e-5,
            "max_position_embeddings": 2048,
            "multi_query": True,
            "parallel_attn": True,
            "tie_word_embeddings": True,
        },
        rename=FALCON_NAMES,
        base="transformer.",
        flags=BIASED_NORM | lib.LLM_NO_GATE,
        switches={"bias": EVERY_BIAS, "parallel_attn": lib.LLM_PARALLEL},
        activation=None,
        keys={
            "num_kv_heads": "num_key_value_heads",
            "ffn_hidden_size": "intermediate_size",
            "activation": "hidden_act",
            **LAYER_NORM_EPS,
        },
        prepare=falcon_heads,
        one_norm=falcon_shares,
        only=GELUS | {"alibi": (None, False), "num_ln_in_parallel_attn": (None, 1, 2)},
    ),
}
