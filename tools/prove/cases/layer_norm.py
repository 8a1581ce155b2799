"""LayerNorm, learned positions, blocks beside each other, and layers without a gate: from GPT-2 to Falcon."""

from __future__ import annotations

from tools.prove.case import GQA, LLAMA3, ODD, Case, theta

HEADS = {"num_attention_heads": 3}  # and as many for keys and values
GPT2 = {**HEADS, "n_inner": 212, "tie_word_embeddings": True}
OWN_WIDTH = ("intermediate_size",)  # n_inner or ffn_hidden_size is given
FALCON_NEW = {
    "num_attention_heads": 6,
    "num_kv_heads": 2,
    "hidden_size": 6 * 40,
    "ffn_hidden_size": 212,
    "new_decoder_architecture": True,
}
LAYER_NORM: dict[str, Case] = {
    "GPT-2": Case(
        "GPT2", "GPT-2, DistilGPT2", {**GPT2, "activation_function": "gelu_new"}, drop=OWN_WIDTH, gguf="gpt2"
    ),
    "GPT-J": Case(
        "GPTJ",
        "GPT-J 6B",
        {
            **GPT2,
            "hidden_size": 3 * 56,
            "rotary_dim": 20,
            "tie_word_embeddings": False,
            "activation_function": "gelu_new",
        },
        drop=OWN_WIDTH,
    ),
    "StarCoder": Case("GPTBigCode", "StarCoder, SantaCoder", GPT2, drop=OWN_WIDTH, gguf="starcoder"),
    "GPT-NeoX": Case(
        "GPTNeoX", "Pythia, GPT-NeoX-20B, Dolly", {**HEADS, "hidden_size": 3 * 56}, gguf="gptneox"
    ),
    "GPT-NeoX, block after block": Case(
        "GPTNeoX",
        "RedPajama-INCITE",
        {**HEADS, "hidden_size": 3 * 56, "rotary_pct": 1.0, "use_parallel_residual": False},
        gguf="gptneox",
    ),
    "Phi-2": Case(
        "Phi",
        "Phi-1, Phi-1.5, Phi-2",
        {**HEADS, "hidden_size": 3 * 80, "partial_rotary_factor": 0.4},
        gguf="phi2",
    ),
    "Phi with norms of q and k": Case(
        "Phi", "variants with qk_layernorm", {**ODD, "hidden_size": 3 * 72, "qk_layernorm": True}
    ),
    "StarCoder2": Case(
        "Starcoder2", "StarCoder2", {**ODD, "sliding_window": 29}, out_bias=True, gguf="starcoder2"
    ),
    "StableLM": Case(
        "StableLm",
        "StableLM 3B, StableLM 2 1.6B",
        {**ODD, "hidden_size": 3 * 40, "use_qkv_bias": True},
        gguf="stablelm",
    ),
    "StableLM 2 12B": Case(
        "StableLm",
        "StableLM 2 12B",
        {**GQA, "hidden_size": 6 * 40, "qk_layernorm": True, "use_parallel_residual": True},
        gguf="stablelm",
    ),
    "OLMo": Case("Olmo", "OLMo 1B, 7B", {**HEADS, "clip_qkv": 1.5}, gguf="olmo"),
    "Cohere": Case(
        "Cohere",
        "Command R, Aya 23",
        {**ODD, "tie_word_embeddings": True, "hidden_size": 3 * 72},
        gguf="command-r",
    ),
    "Cohere with norms of q and k": Case(
        "Cohere",
        "Command R+",
        {
            **GQA,
            "hidden_size": 6 * 40,
            "use_qk_norm": True,
            "tie_word_embeddings": True,
            "logit_scale": 0.8333,
        },
        gguf="command-r",
    ),
    "Cohere 2": Case(
        "Cohere2",
        "Command R7B, Command A",
        {
            **ODD,
            "tie_word_embeddings": True,
            "hidden_size": 3 * 72,
            "num_hidden_layers": 5,
            "sliding_window": 21,
            "logit_scale": 0.25,
        },
        gguf="cohere2",
    ),
    "Nemotron": Case(
        "Nemotron",
        "Nemotron-3 8B, Nemotron-4, Minitron",
        {**ODD, "head_dim": 80, "partial_rotary_factor": 0.5},
        gguf="nemotron",
    ),
    "Arcee": Case("Arcee", "AFM 4.5B", {**ODD, "head_dim": 64}, gguf="arcee"),
    "Apertus": Case(
        "Apertus",
        "Apertus 8B, 70B",
        {**ODD, "head_dim": 80, **theta(12e6, **LLAMA3)},
        gguf="apertus",
    ),
    "Falcon": Case(
        "Falcon",
        "Falcon 7B",
        {**HEADS, "hidden_size": 3 * 56, "ffn_hidden_size": 212},
        drop=OWN_WIDTH,
        gguf="falcon",
    ),
    "Falcon 40B": Case(
        "Falcon",
        "Falcon 40B, 180B",
        {**FALCON_NEW, "bias": True},
        drop=OWN_WIDTH,
        gguf="falcon",
    ),
    "Falcon 2": Case(
        "Falcon",
        "Falcon 2 11B",
        {**FALCON_NEW, "num_ln_in_parallel_attn": 1, "tie_word_embeddings": False},
        drop=OWN_WIDTH,
        gguf="falcon",
    ),
    "nanochat": Case(
        "NanoChat",
        "nanochat",
        {**GQA, "hidden_size": 6 * 40, "num_hidden_layers": 2},
    ),
    "Jais 2": Case("Jais2", "Jais 2 8B, 70B", {**ODD, "head_dim": 64}, out_bias=True, gguf="jais2"),
}
