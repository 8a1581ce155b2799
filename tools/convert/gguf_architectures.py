"""The table of GGUF architectures: which Hugging Face family each is, and what llama.cpp's converter changes
in it or leaves out of the metadata because llama.cpp has it in its code (src/models/*.cpp)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Any

from .configuration import Config, integer
from .families import FAMILIES, REASONS
from .sources import ConvertError

Get = Callable[[str], Any]  # the value of "architecture.key" in the metadata, None when it is missing


def only_value(found: list[Any], key: str) -> Any:
    """What a list with an entry for each layer has in all of them."""
    if not found or any(value != found[0] for value in found):
        raise ConvertError(f"{key} differs between layers, which is not supported")
    return found[0]


def gemma_scale(layers: int) -> Callable[[Config], Config]:
    """llama_model_gemma2, llama_model_gemma3: the 27B model, told by its layers, divides q . k by the root of
    dim / heads, the others by that of head_dim."""

    def fill(config: Config) -> Config:
        if "attention_multiplier" in config:
            return {"query_pre_attn_scalar": config["attention_multiplier"] ** -2}
        wide = config["num_hidden_layers"] == layers
        heads = integer(config, "num_attention_heads")
        return {"query_pre_attn_scalar": config["hidden_size"] // heads if wide else config["head_dim"]}

    return fill


def qwen_widths(config: Config) -> Config:
    """llama_model_qwen2moe: the experts' widths of files from before they were written."""
    width, used = (integer(config, key) for key in ("intermediate_size", "num_experts_per_tok"))
    return {"moe_intermediate_size": width // used, "shared_expert_intermediate_size": width}


def granite_scale(config: Config) -> Config:
    """Without attention.scale it is the usual one."""
    return {"attention_multiplier": config["head_dim"] ** -0.5}


def minicpm_scales(config: Config) -> Config:
    """llama_model_minicpm: the scales of files from before they were written, in MiniCPMConfig's terms."""
    dim, root = config["hidden_size"], integer(config, "num_hidden_layers") ** 0.5
    return {
        "scale_emb": config.get("embedding_multiplier", 12.0),
        "scale_depth": config["residual_multiplier"] * root if "residual_multiplier" in config else 1.4,
        "dim_model_base": dim / config["logits_scaling"] if "logits_scaling" in config else 256,
    }


def minicpm3_scales(config: Config) -> Config:
    """llama_model_minicpm3 has them in its code."""
    return {"scale_emb": 12.0, "scale_depth": 1.4, "dim_model_base": 256}


def llama4_norms(config: Config) -> Config:
    """llama_model_llama4: the model with 128 experts, Maverick, does not normalise queries and keys."""
    return {"use_qk_norm": config["num_local_experts"] != 128}


def gemma4(get: Get) -> Config:
    """Gemma4Model.set_gguf_parameters: key_length is that of layers without a window; what differs between
    layers is in lists."""
    windowed, width = get("attention.sliding_window_pattern"), get("feed_forward_length")
    heads, global_heads = get("attention.head_count_kv"), None
    if isinstance(heads, list):
        if not isinstance(windowed, list) or len(windowed) != len(heads):
            raise ConvertError(
                "gemma4.attention.sliding_window_pattern is not for as many layers as head_count_kv"
            )
        pairs = list(zip(heads, windowed, strict=True))
        global_heads = only_value([n for n, local in pairs if not local], "gemma4.attention.head_count_kv")
        local_heads = [n for n, local in pairs if local] or [global_heads]
        heads = only_value(local_heads, "gemma4.attention.head_count_kv")
    shared = get("attention.shared_kv_layers") or 0
    wide = isinstance(width, list) and width[-1] != width[0]
    if isinstance(width, list):
        own = [n // (2 if wide and i >= len(width) - shared else 1) for i, n in enumerate(width)]
        width = only_value(own, "gemma4.feed_forward_length")
    size, local_size = get("attention.key_length"), get("attention.key_length_swa")
    for key, length in (("", size), ("_swa", local_size)):
        for other in (f"attention.value_length{key}", f"rope.dimension_count{key}"):
            if get(other) not in (None, length):
                raise ConvertError(
                    f"gemma4.{other} is not attention.key_length{key}, {length}: not supported"
                )
    return {
        "num_key_value_heads": heads,
        "num_global_key_value_heads": global_heads,
        "intermediate_size": width,
        "use_double_wide_mlp": wide,
        "num_kv_shared_layers": shared,
        "head_dim": local_size if local_size is not None else size,
        "global_head_dim": size,
        "hidden_size_per_layer_input": get("embedding_length_per_layer_input"),
        "enable_moe_block": bool(get("expert_count")),
    }


def gemma3n(get: Get) -> Config:
    """Gemma3NModel.set_gguf_parameters; llama.cpp itself has some of these numbers in its code."""
    size, scales = get("attention.key_length"), get("activation_sparsity_scale")
    for key in ("attention.value_length", "rope.dimension_count"):
        if get(key) not in (None, size):
            raise ConvertError(f"gemma3n.{key} is not attention.key_length, {size}: not supported")
    return {
        "head_dim": size,
        "intermediate_size": get("feed_forward_length"),
        "hidden_size_per_layer_input": get("embedding_length_per_layer_input"),
        "num_kv_shared_layers": get("attention.shared_kv_layers") or 0,
        "altup_num_inputs": get("altup.num_inputs"),
        "altup_active_idx": get("altup.active_idx"),
        "activation_sparsity_pattern": [NormalDist().cdf(by) for by in scales] if scales else None,
    }


def delta_widths(config: Config) -> Config:
    """llama_model_qwen3next: values are as wide as keys."""
    return {"linear_value_head_dim": integer(config, "linear_key_head_dim")}


def lfm2_width(config: Config) -> Config:
    """LFM2Model._add_feed_forward_length: the width is the one that Lfm2MLP makes of the configuration's."""
    return {"block_auto_adjust_ff_dim": False}


def second_norm(names: set[str]) -> Config:
    """llama_model_stablelm: blocks are side by side where there is no norm between them."""
    own = {"use_qkv_bias": "blk.0.attn_q.bias" in names, "qk_layernorm": "blk.0.attn_q_norm.weight" in names}
    return own | {"use_parallel_residual": "blk.0.ffn_norm.weight" not in names}


def falcon_norms(names: set[str]) -> Config:
    """llama_model_falcon: two norms side by side are those of 40B. The rows of q, k and v lie as in the new
    architecture's groups taken apart, whichever they were."""
    two = "blk.0.attn_norm_2.weight" in names
    bias = "blk.0.attn_qkv.bias" in names
    return {"new_decoder_architecture": True, "num_ln_in_parallel_attn": 2 if two else 1, "bias": bias}


def all_biases(names: set[str]) -> Config:
    return {"mlp_bias": "blk.0.ffn_up.bias" in names, "use_bias": "blk.0.attn_output.bias" in names}


# Names of tensors and keys of metadata that architectures have beside those of all
SIDE_BY_SIDE = {"use_parallel_residual": "use_parallel_residual"}
# What llama.cpp calls the norm before the feed-forward block in some architectures
BEFORE_FFN = {"post_attention_norm.weight": "post_attention_layernorm.weight"}
DELTA_KEYS = {
    "ssm.conv_kernel": "linear_conv_kernel_dim",
    "ssm.state_size": "linear_key_head_dim",
    "ssm.group_count": "linear_num_key_heads",
    "ssm.time_step_rank": "linear_num_value_heads",
    "rope.dimension_sections": "mrope_section",
}
DELTA_NAMES = {
    "post_attention_norm.weight": "post_attention_layernorm.weight",
    "attn_q.weight": "self_attn.qg_proj.weight",
    "attn_qkv.weight": "linear_attn.in_proj_qkv.weight",
    "attn_gate.weight": "linear_attn.in_proj_z.weight",
}
GEMMA4_EXPERTS = {  # the dense block is the shared expert
    "ffn_norm.weight": "mlp.shared_layernorm.weight",
    "ffn_gate.weight": "mlp.shared_expert.gate_proj.weight",
    "ffn_up.weight": "mlp.shared_expert.up_proj.weight",
    "ffn_down.weight": "mlp.shared_expert.down_proj.weight",
    "post_ffw_norm_1.weight": "mlp.shared_post_layernorm.weight",
    "pre_ffw_norm_2.weight": "post_attention_layernorm.weight",
    "post_ffw_norm_2.weight": "mlp.experts_post_layernorm.weight",
    "ffn_gate_inp.scale": "mlp.router_norm.weight",
    "ffn_down_exps.scale": "mlp.router_scale",
}


@dataclass(frozen=True)
class Architecture:
    """What a GGUF architecture is: Hugging Face's when it is dense, with experts, with a sliding window, with
    queries that grow."""

    dense: str | None
    experts: str | None = None
    windowed: str | None = None
    growing: str | None = None
    softmax: str | None = None  # with experts that are chosen by softmax, if others are not
    permuted: bool = False  # q and k have the rows of interleaved pairs
    shifted: bool = False  # norms have 1 added
    fused: bool = False  # ffn_up is gate and up
    normalize: bool = True  # the weights of the chosen experts add up to 1, if the metadata does not say
    state: str | None = None  # the kind of the layers without attention
    tiled: bool = False  # their value heads: the first one of each key head, then the second, ...
    fill: Callable[[Config], Config] = lambda config: {}  # keys that the metadata may lack
    names: Mapping[str, str] = field(default_factory=dict)  # of tensors, where they differ from LAYER
    rope: Mapping[str, Any] = field(default_factory=dict)  # of rope_parameters, what the metadata lacks
    # whether layer i has the window, if the metadata does not say; None: as the Hugging Face family has it
    windows: Callable[[int], bool] | None = None
    local: bool = False  # layers with a window have a rotary base of their own, and are not scaled
    own: Callable[[Get], Config] | None = None  # keys that it has in its own way
    with_experts: Mapping[str, str] = field(default_factory=dict)  # names other than LAYER's, with experts
    keys: Mapping[str, str] = field(default_factory=dict)  # of its metadata -> config.json
    facts: Callable[[set[str]], Config] = lambda names: {}  # what the names of its tensors tell


ARCHITECTURES: dict[str, Architecture] = {
    "llama": Architecture("LlamaForCausalLM", "MixtralForCausalLM", "MistralForCausalLM", permuted=True),
    "mistral3": Architecture(
        "LlamaForCausalLM",
        windowed="MistralForCausalLM",
        growing="Ministral3ForCausalLM",
        permuted=True,
    ),
    "qwen2": Architecture("Qwen2ForCausalLM"),
    "qwen2moe": Architecture(None, "Qwen2MoeForCausalLM", normalize=False, fill=qwen_widths),
    "qwen3": Architecture("Qwen3ForCausalLM"),
    "qwen3moe": Architecture(None, "Qwen3MoeForCausalLM", fill=qwen_widths),
    "gemma": Architecture("GemmaForCausalLM", shifted=True),
    "gemma2": Architecture("Gemma2ForCausalLM", shifted=True, fill=gemma_scale(46)),
    "gemma3": Architecture("Gemma3ForCausalLM", shifted=True, fill=gemma_scale(62)),
    "gemma3n": Architecture("Gemma3nForCausalLM", own=gemma3n),
    "gemma4": Architecture("Gemma4ForCausalLM", "Gemma4ForCausalLM", own=gemma4, with_experts=GEMMA4_EXPERTS),
    "phi3": Architecture("Phi3ForCausalLM", fused=True),
    "olmo2": Architecture("Olmo2ForCausalLM", windowed="Olmo3ForCausalLM"),
    "olmoe": Architecture(None, "OlmoeForCausalLM", normalize=False),
    "granite": Architecture("GraniteForCausalLM", "GraniteMoeForCausalLM", permuted=True, fill=granite_scale),
    "granitemoe": Architecture(None, "GraniteMoeForCausalLM", permuted=True, fill=granite_scale),
    "smollm3": Architecture("SmolLM3ForCausalLM", permuted=True),
    "internlm2": Architecture("InternLM2ForCausalLM", permuted=True),
    "minicpm": Architecture("MiniCPMForCausalLM", permuted=True, fill=minicpm_scales),
    "chatglm": Architecture("GlmForCausalLM", fused=True),
    "glm4": Architecture("Glm4ForCausalLM", fused=True),
    "ernie4_5": Architecture("Ernie4_5ForCausalLM"),
    "exaone4": Architecture("Exaone4ForCausalLM"),
    "minimax-m2": Architecture(None, "MiniMaxM2ForCausalLM"),
    "glm4moe": Architecture(None, "Glm4MoeForCausalLM", normalize=False, names=BEFORE_FFN),
    "dots1": Architecture(None, "Dots1ForCausalLM", normalize=False),
    "deepseek": Architecture(None, "DeepseekForCausalLM", permuted=True, normalize=False),
    "ernie4_5-moe": Architecture(None, "Ernie4_5_MoeForCausalLM"),
    "exaone-moe": Architecture(None, "ExaoneMoeForCausalLM", normalize=False),
    "afmoe": Architecture(None, "AfmoeForCausalLM", fill=lambda config: {"mup_enabled": True}),
    "gpt-oss": Architecture(None, "GptOssForCausalLM", names=BEFORE_FFN, rope={"truncate": False}),
    "llama4": Architecture(None, "Llama4ForCausalLM", fill=llama4_norms),
    "hunyuan-dense": Architecture("HunYuanDenseV1ForCausalLM"),
    "hunyuan-moe": Architecture(None, "HunYuanMoEV1ForCausalLM"),
    "hy_v3": Architecture(None, "HYV3ForCausalLM"),
    "mimo2": Architecture(None, "MiMoV2FlashForCausalLM", local=True),
    "laguna": Architecture(None, "LagunaForCausalLM", windows=lambda i: i % 4 != 0, local=True),
    "mellum": Architecture(None, "MellumForCausalLM", windows=lambda i: (i + 1) % 4 != 0, local=True),
    "granite_swa": Architecture(
        "GraniteSWAForCausalLM",
        "GraniteMoeSWAForCausalLM",
        permuted=True,
        fill=granite_scale,
        names={"ffn_up_shexp.weight": "mlp.shared_expert.gate_up_proj.weight"},
    ),
    "gpt2": Architecture("GPT2LMHeadModel"),
    "starcoder": Architecture("GPTBigCodeForCausalLM"),
    "gptneox": Architecture("GPTNeoXForCausalLM", keys=SIDE_BY_SIDE),
    "phi2": Architecture("PhiForCausalLM"),
    "starcoder2": Architecture("Starcoder2ForCausalLM", facts=all_biases),
    "stablelm": Architecture("StableLmForCausalLM", keys=SIDE_BY_SIDE, facts=second_norm),
    "olmo": Architecture("OlmoForCausalLM", permuted=True, keys={"attention.clamp_kqv": "clip_qkv"}),
    "command-r": Architecture("CohereForCausalLM", keys={"logit_scale": "logit_scale"}),
    "cohere2": Architecture("Cohere2ForCausalLM", keys={"logit_scale": "logit_scale"}),
    "nemotron": Architecture("NemotronForCausalLM", shifted=True, facts=all_biases),
    "arcee": Architecture("ArceeForCausalLM", permuted=True, facts=all_biases),
    "apertus": Architecture("ApertusForCausalLM"),
    "falcon": Architecture("FalconForCausalLM", facts=falcon_norms),
    "jais2": Architecture("Jais2ForCausalLM", facts=all_biases),
    "deepseek2": Architecture(
        "YoutuForCausalLM", "DeepseekV3ForCausalLM", softmax="DeepseekV2ForCausalLM", normalize=False
    ),
    "minicpm3": Architecture("MiniCPM3ForCausalLM", fill=minicpm3_scales),
    "lfm2": Architecture("Lfm2ForCausalLM", state="conv", fill=lfm2_width),
    "qwen3next": Architecture(
        None,
        "Qwen3NextForCausalLM",
        shifted=True,
        state="linear_attention",
        keys=DELTA_KEYS,
        names=DELTA_NAMES,
        fill=delta_widths,
    ),
    "qwen35": Architecture(
        "Qwen3_5ForCausalLM",
        shifted=True,
        state="linear_attention",
        tiled=True,
        keys=DELTA_KEYS,
        names=DELTA_NAMES,
        fill=delta_widths,
    ),
    "qwen35moe": Architecture(
        None,
        "Qwen3_5MoeForCausalLM",
        shifted=True,
        state="linear_attention",
        tiled=True,
        keys=DELTA_KEYS,
        names=DELTA_NAMES,
        fill=delta_widths,
    ),
    "lfm2moe": Architecture(None, "Lfm2MoeForCausalLM", state="conv"),
}

# Why others are not: as the Hugging Face architecture that they are
OTHERS = {
    "mistral4": "Mistral4ForCausalLM",
    "mamba": "MambaForCausalLM",
    "mamba2": "Mamba2ForCausalLM",
    "jamba": "JambaForCausalLM",
    "falcon-h1": "FalconH1ForCausalLM",
    "nemotron_h": "NemotronHForCausalLM",
    "granitehybrid": "GraniteMoeHybridForCausalLM",
    "rwkv6": "RwkvForCausalLM",
    "rwkv7": "RwkvForCausalLM",
    "qwen": "QWenLMHeadModel",
    "phimoe": "PhimoeForCausalLM",
    "mpt": "MptForCausalLM",
    "bloom": "BloomForCausalLM",
    "dbrx": "DbrxForCausalLM",
    "bitnet": "BitNetForCausalLM",
    "baichuan": "BaichuanForCausalLM",
    "bert": "BertModel",
    "modern-bert": "ModernBertModel",
    "nomic-bert": "NomicBertModel",
    "gemma-embedding": "EmbeddingGemma",
}


def why_not(architecture: str) -> str:
    """Why a GGUF file of this Hugging Face architecture cannot be converted."""
    if architecture in FAMILIES:
        return f"its GGUF files are not read, only a Hugging Face directory ({architecture})"
    return REASONS[architecture]
