"""The random model of a case, and its checkpoint.

Matrices make attention sharper than any trained model's. The embedding is large beside what a block adds, so
that the rounding of keys and values to fp16 in the engine's cache, the largest error by far, stays below a
thousandth of the logits' spread."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

from tools.prove.case import VISION, VOCAB, Case

SIZES = {
    "vocab_size": VOCAB,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "hidden_size": 132,
    "intermediate_size": 212,
    "num_hidden_layers": 3,
}
# Kinds whose text part has a configuration of its own
TEXT_CONFIGS = ("Gemma3", "Gemma3n", "Gemma4", "Gemma4Unified", "Llama4", "Qwen3_5", "Qwen3_5Moe")
# Kinds that add 1 to their norms' weights
ONE_ADDED = ("Gemma", "Gemma2", "Gemma3", "Nemotron", "Qwen3Next", "Qwen3_5", "Qwen3_5Moe")
# Kinds whose q . k is not divided by the root of head_dim
UNSCALED = ("Gemma3n", "Gemma4", "Gemma4Unified")
EMBEDDINGS = ("embed_tokens", "embed_in", "word_embeddings", "wte", "wpe")


def checkpoint(folder: Path, case: Case, shard: str = "1GB") -> Any:
    """A random model of the case, saved to folder in files of at most `shard`; the model."""
    import torch
    import transformers

    transformers.logging.disable_progress_bar()
    torch.manual_seed(7)
    own = deepcopy(case)  # transformers writes into the dicts that it is given, and cases share some
    model = text_model(own) if own.text is None else model_with_pictures(own, own.text)
    with torch.no_grad():
        fill(case, model)
    model.save_pretrained(folder, max_shard_size=shard)
    if case.rewrite:
        case.rewrite(folder)
    return model


def sizes(case: Case) -> dict[str, Any]:
    """The sizes of all cases, by the keys that this one has."""
    return {key: value for key, value in SIZES.items() if key not in case.drop}


def text_model(case: Case) -> Any:
    """A model of texts alone."""
    import transformers

    part = "Text" if case.kind in TEXT_CONFIGS else ""
    config = getattr(transformers, f"{case.kind}{part}Config")(**sizes(case) | case.config)
    name = "GPT2LMHeadModel" if case.kind == "GPT2" else f"{case.kind}ForCausalLM"
    return made(getattr(transformers, name), config)


def model_with_pictures(case: Case, text: dict[str, Any]) -> Any:
    """A model of texts and pictures, whose text part has this configuration."""
    import transformers

    whole = {"vision_config": VISION, "image_token_index": VOCAB - 1} | case.config
    config = getattr(transformers, f"{case.kind}Config")(
        text_config=sizes(case) | text,
        tie_word_embeddings=bool(text.get("tie_word_embeddings")),
        **whole,
    )
    return made(getattr(transformers, f"{case.kind}ForConditionalGeneration"), config)


def made(kind: Any, config: Any) -> Any:
    """The model of a configuration, in float32."""
    import torch

    return kind._from_config(config, attn_implementation="eager").to(torch.float32).eval()


# ---------------------------------------------------------------------------------------------------------
# Weights


def fill(case: Case, model: Any) -> None:
    """Random numbers for all weights, such as fp16 can hold: the conversion rounds none."""
    import torch

    for name, buffer in model.named_buffers():
        if name.endswith(("e_score_correction_bias", "expert_bias")):
            buffer.copy_(0.3 * torch.randn_like(buffer))
        if name.endswith("layer_scalar"):
            buffer.copy_((1 + 0.3 * torch.randn_like(buffer)).half().float())
    for name, weight in model.named_parameters():
        module = model.get_submodule(name.rpartition(".")[0])
        transposed = type(module).__name__ == "Conv1D"  # transformers' own: (inputs, outputs)
        numbers = weight_of(case, name, torch.randn_like(weight), transposed)
        if case.adjust:
            numbers = case.adjust(name, numbers)
        weight.copy_(numbers.half().float())


def weight_of(case: Case, name: str, random: Any, transposed: bool) -> Any:
    """A weight, from numbers of a normal distribution in its shape."""
    if name.endswith("bias"):
        return 0.5 * random * (case.out_bias or "o_proj" not in name)
    if "norm" in name or ".ln_" in name:
        return norm_of(case, name, random)
    if name.endswith("scale"):
        return 1 + 0.3 * random
    if name.endswith("sinks"):
        return 2 * random
    if name.endswith("A_log"):
        return random - 1
    if name.endswith("coefs.weight"):
        return 0.1 * random
    if "embed_tokens_per_layer" in name:
        return 0.2 * random
    if any(part in name for part in EMBEDDINGS):
        return case.embed * random
    return matrix_of(name, random, random.shape[0 if transposed else -1])


def norm_of(case: Case, name: str, random: Any) -> Any:
    """A norm's weights: about 1, as the model reads them."""
    one_added = case.kind in ONE_ADDED and "linear_attn" not in name
    weight = 0.3 * random + (not one_added)
    if case.kind in UNSCALED and name.endswith(("q_norm.weight", "k_norm.weight")):
        return weight * weight.shape[0] ** -0.25
    return weight


def matrix_of(name: str, random: Any, inputs: int) -> Any:
    """A matrix with so many inputs; a router's makes choices that are clear."""
    if name.endswith((".conv.conv.weight", ".conv1d.weight")):
        return random / 2
    if name.endswith("modality_router.weight"):  # of what is divided by the width
        return random * inputs**0.5
    if name.endswith("router.proj.weight"):  # of what is divided by the root of the width
        return 2.0 * random
    router = name.endswith((".gate.weight", "router.weight", ".wg.weight"))
    return (2.0 if router else 1.2) * random / inputs**0.5
