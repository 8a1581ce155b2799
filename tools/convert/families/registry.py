"""The whole table, FAMILIES; and what is no row of it: how a configuration names an architecture, models of
texts and pictures, why others cannot be converted, and what is so of every family."""

from __future__ import annotations

from . import attention, gemma, gpt, granite, latent, layer_norm, mixtures, plain, states
from .family import Family

FAMILIES: dict[str, Family] = {
    **plain.ROWS,
    **mixtures.ROWS,
    **attention.ROWS,
    **granite.ROWS,
    **gemma.ROWS,
    **gpt.ROWS,
    **layer_norm.ROWS,
    **latent.ROWS,
    **states.ROWS,
}

# The architecture of a configuration that names only its model_type, as AutoModelForCausalLM takes it
MODEL_TYPES = {
    "afmoe": "AfmoeForCausalLM",
    "cwm": "CwmForCausalLM",
    "apertus": "ApertusForCausalLM",
    "arcee": "ArceeForCausalLM",
    "cohere": "CohereForCausalLM",
    "cohere2": "Cohere2ForCausalLM",
    "deepseek": "DeepseekForCausalLM",
    "deepseek_v2": "DeepseekV2ForCausalLM",
    "deepseek_v3": "DeepseekV3ForCausalLM",
    "dots1": "Dots1ForCausalLM",
    "ernie4_5": "Ernie4_5ForCausalLM",
    "ernie4_5_moe": "Ernie4_5_MoeForCausalLM",
    "exaone4": "Exaone4ForCausalLM",
    "exaone_moe": "ExaoneMoeForCausalLM",
    "flex_olmo": "FlexOlmoForCausalLM",
    "falcon": "FalconForCausalLM",
    "gemma": "GemmaForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3": "Gemma3ForConditionalGeneration",
    "gemma3_text": "Gemma3ForCausalLM",
    "gemma3n": "Gemma3nForConditionalGeneration",
    "gemma3n_text": "Gemma3nForCausalLM",
    "gemma4": "Gemma4ForConditionalGeneration",
    "gemma4_text": "Gemma4ForCausalLM",
    "gemma4_unified": "Gemma4UnifiedForConditionalGeneration",
    "gemma4_unified_text": "Gemma4UnifiedForCausalLM",
    "glm": "GlmForCausalLM",
    "glm4": "Glm4ForCausalLM",
    "glm4_moe": "Glm4MoeForCausalLM",
    "glm4_moe_lite": "Glm4MoeLiteForCausalLM",
    "gpt_oss": "GptOssForCausalLM",
    "gpt2": "GPT2LMHeadModel",
    "gpt_bigcode": "GPTBigCodeForCausalLM",
    "gpt_neox": "GPTNeoXForCausalLM",
    "gptj": "GPTJForCausalLM",
    "granite": "GraniteForCausalLM",
    "granite_swa": "GraniteSWAForCausalLM",
    "granitemoe": "GraniteMoeForCausalLM",
    "granitemoe_swa": "GraniteMoeSWAForCausalLM",
    "granitemoeshared": "GraniteMoeSharedForCausalLM",
    "hunyuan_v1_dense": "HunYuanDenseV1ForCausalLM",
    "hunyuan_v1_moe": "HunYuanMoEV1ForCausalLM",
    "hy_v3": "HYV3ForCausalLM",
    "internlm2": "InternLM2ForCausalLM",
    "lfm2": "Lfm2ForCausalLM",
    "lfm2_moe": "Lfm2MoeForCausalLM",
    "internlm3": "InternLM3ForCausalLM",
    "kimi_k2": "DeepseekV3ForCausalLM",
    "kimi_k25": "KimiK25ForConditionalGeneration",
    "laguna": "LagunaForCausalLM",
    "jais2": "Jais2ForCausalLM",
    "llama": "LlamaForCausalLM",
    "llama4": "Llama4ForConditionalGeneration",
    "llama4_text": "Llama4ForCausalLM",
    "mellum": "MellumForCausalLM",
    "mimo_v2_flash": "MiMoV2FlashForCausalLM",
    "minicpm": "MiniCPMForCausalLM",
    "minicpm3": "MiniCPM3ForCausalLM",
    "minimax_m2": "MiniMaxM2ForCausalLM",
    "ministral": "MinistralForCausalLM",
    "ministral3": "Ministral3ForCausalLM",
    "mistral": "MistralForCausalLM",
    "mistral3": "Mistral3ForConditionalGeneration",
    "mistral4": "Mistral4ForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "nanochat": "NanoChatForCausalLM",
    "nemotron": "NemotronForCausalLM",
    "olmo": "OlmoForCausalLM",
    "olmo2": "Olmo2ForCausalLM",
    "olmo3": "Olmo3ForCausalLM",
    "olmoe": "OlmoeForCausalLM",
    "phi": "PhiForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen2_moe": "Qwen2MoeForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_5_moe_text": "Qwen3_5MoeForCausalLM",
    "qwen3_5_text": "Qwen3_5ForCausalLM",
    "qwen3_next": "Qwen3NextForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "seed_oss": "SeedOssForCausalLM",
    "smollm3": "SmolLM3ForCausalLM",
    "solar_open": "SolarOpenForCausalLM",
    "stablelm": "StableLmForCausalLM",
    "starcoder2": "Starcoder2ForCausalLM",
    "youtu": "YoutuForCausalLM",
}

# Models of texts and pictures, whose text part is converted: the architecture of the text part by its
# model_type, the usual one first
KIMI = {"deepseek_v3": "DeepseekV3ForCausalLM", "kimi_k2": "DeepseekV3ForCausalLM"}
WRAPPED: dict[str, dict[str, str]] = {
    "Gemma3ForConditionalGeneration": {"gemma3_text": "Gemma3ForCausalLM"},
    "Gemma3nForConditionalGeneration": {"gemma3n_text": "Gemma3nForCausalLM"},
    "Gemma4ForConditionalGeneration": {"gemma4_text": "Gemma4ForCausalLM"},
    "Gemma4UnifiedForConditionalGeneration": {"gemma4_unified_text": "Gemma4UnifiedForCausalLM"},
    "KimiK25ForConditionalGeneration": KIMI,
    "Kimi_K25ForConditionalGeneration": KIMI,  # as transformers has it
    "Llama4ForConditionalGeneration": {"llama4_text": "Llama4ForCausalLM"},
    "Mistral3ForConditionalGeneration": {
        "mistral": "MistralForCausalLM",
        "ministral3": "Ministral3ForCausalLM",
        "mistral4": "Mistral4ForCausalLM",
    },
    "Qwen3_5ForConditionalGeneration": {"qwen3_5_text": "Qwen3_5ForCausalLM"},
    "Qwen3_5MoeForConditionalGeneration": {"qwen3_5_moe_text": "Qwen3_5MoeForCausalLM"},
}
# Those whose output is not the embedding when nothing says so
UNTIED = ("Qwen3_5ForConditionalGeneration", "Qwen3_5MoeForConditionalGeneration")
WRAPPED_NAMES = (
    ("language_model.model.", "model."),
    ("model.language_model.", "model."),
    ("language_model.lm_head.", "lm_head."),
)
PICTURES = (
    *("vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector."),
    *("mm_projector.", "model.mm_projector."),
    *("model.audio_tower.", "model.vision_embedder.", "model.embed_vision.", "model.embed_audio."),
    "model.visual.",
)

# Why an architecture that people ask for is not in the table
ENCODER = "its attention looks ahead (an encoder)"
ALIBI = "its positions are slopes on the scores of attention (ALiBi)"
RECURRENT = "some of its layers are recurrent (a state-space model), not attention"
REASONS: dict[str, str] = {
    "DeepseekV32ForCausalLM": "its attention is over positions that an indexer chooses",
    "BertModel": ENCODER,
    "RobertaModel": ENCODER,
    "XLMRobertaModel": ENCODER,
    "ModernBertModel": ENCODER,
    "NomicBertModel": ENCODER,
    "EmbeddingGemma": ENCODER,  # its own architecture in GGUF only
    "ChatGLMModel": "it is the remote-code form of GLM-4; convert the repository whose name ends in -hf",
    "MambaForCausalLM": RECURRENT,
    "Mamba2ForCausalLM": RECURRENT,
    "FalconMambaForCausalLM": RECURRENT,
    "JambaForCausalLM": RECURRENT,
    "BambaForCausalLM": RECURRENT,
    "FalconH1ForCausalLM": RECURRENT,
    "Zamba2ForCausalLM": RECURRENT,
    "NemotronHForCausalLM": RECURRENT,
    "GraniteMoeHybridForCausalLM": RECURRENT,
    "RwkvForCausalLM": RECURRENT,
    "RecurrentGemmaForCausalLM": RECURRENT,
    "Phi3SmallForCausalLM": "its attention is block-sparse",
    "PhiMoEForCausalLM": "its experts are chosen one after the other, each by a softmax of its own",
    "PhimoeForCausalLM": "its experts are chosen one after the other, each by a softmax of its own",
    "Phi4MMForCausalLM": "its text part needs adapters that pictures and sound switch on",
    "MptForCausalLM": ALIBI,
    "MPTForCausalLM": ALIBI,
    "BloomForCausalLM": ALIBI,
    "OPTForCausalLM": "its feed-forward block is of ReLU",
    "DbrxForCausalLM": "its experts are in a layout of its own",
    "MllamaForConditionalGeneration": "some of its layers attend to pictures",
    "BitNetForCausalLM": "its weights are ternary and its blocks have norms of their own",
    "QWenLMHeadModel": "it is the first Qwen, in a layout of its own; Qwen1.5 and later can be converted",
    "BaichuanForCausalLM": "its matrices are in a layout of its own, and the 13B model has ALiBi",
}

# What a configuration has that leaves a key out, and the values that are supported, of every family
DEFAULTS = {
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "num_key_value_heads": None,
    "head_dim": None,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    "use_sliding_window": False,
    "sliding_window": None,
}
ONLY = {
    "hidden_act": ("silu", "swish"),
    "is_causal": (None, True),  # others look ahead, as encoders do
    "use_bidirectional_attention": (None, False),
}
