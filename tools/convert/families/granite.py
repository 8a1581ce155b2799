"""Granite: scales of its own, mixtures with and without a shared expert, and models of short windows whose
layers have sinks and a rotary base each."""

from __future__ import annotations

from dataclasses import replace

from pyllm._llm import lib

from ..configuration import Config
from ..sources import ConvertError
from .common import BIASES, BUT_EVERY_FOURTH, WINDOW, value_of
from .family import Family

GRANITE_NUMBERS = {
    "embed_scale": value_of("embedding_multiplier"),
    "residual_scale": value_of("residual_multiplier"),
    "attn_scale": value_of("attention_multiplier"),
}
GRANITE_MOE_NAMES = (
    (".block_sparse_moe.input_linear.weight", ".mlp.experts.gate_up_proj"),
    (".block_sparse_moe.output_linear.weight", ".mlp.experts.down_proj"),
    (".block_sparse_moe.router.layer.", ".mlp.gate."),
    (".block_sparse_moe.", ".mlp."),
    (".mlp.router.", ".mlp.gate."),
    (".shared_mlp.input_linear.", ".mlp.shared_expert.gate_up_proj."),
    (".shared_mlp.output_linear.", ".mlp.shared_expert.down_proj."),
)


def granite_logits(config: Config) -> float:
    """GraniteForCausalLM divides the logits."""
    return 1 / value_of("logits_scaling")(config)


def own_ropes(config: Config, kinds: list[str]) -> list[str | None]:
    """GraniteSWAModel: each layer has a rotary base, 0 or null where it does not turn. What each comes to is
    put into rope_parameters, under the base's number."""
    bases = config.get("layer_rope_theta")
    if bases is None:
        return list(kinds)
    if not isinstance(bases, list) or len(bases) != len(kinds):
        raise ConvertError("configuration: layer_rope_theta has not one entry for each layer")
    return [f"base {base}" if base else None for base in bases]


def with_own_ropes(config: Config) -> Config:
    """The configuration with what own_ropes names."""
    bases, rope = config.get("layer_rope_theta"), config.get("rope_scaling") or config.get("rope_parameters")
    if not isinstance(bases, list) or not isinstance(rope, (dict, type(None))):
        return config
    own = {f"base {base}": (rope or {}) | {"rope_theta": base} for base in bases if base}
    return config | {"rope_scaling": None, "rope_parameters": own or rope}


GRANITE_MOE = Family(
    "Granite MoE",
    defaults={"num_local_experts": 8, "num_experts_per_tok": 2},
    rename=GRANITE_MOE_NAMES,
    flags=lib.LLM_ROUTER_NORMALIZE,
    numbers=GRANITE_NUMBERS,
    logit_scale=granite_logits,
    experts=True,
    shared="shared_intermediate_size",
)
ROWS: dict[str, Family] = {
    "GraniteForCausalLM": Family("Granite", numbers=GRANITE_NUMBERS, logit_scale=granite_logits),
    "GraniteMoeForCausalLM": GRANITE_MOE,
    "GraniteMoeSharedForCausalLM": replace(GRANITE_MOE, name="Granite MoE with a shared expert"),
    "GraniteSWAForCausalLM": Family(
        "Granite SWA",
        defaults={
            "num_key_value_heads": 4,
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": True,
            **WINDOW,
            "sliding_window": 128,
        },
        flags=lib.LLM_SINK,
        switches=BIASES,
        numbers=GRANITE_NUMBERS,
        logit_scale=granite_logits,
        kinds=BUT_EVERY_FOURTH,
        ropes=own_ropes,
        prepare=with_own_ropes,
    ),
    "GraniteMoeSWAForCausalLM": replace(
        GRANITE_MOE,
        name="Granite MoE SWA",
        defaults={**GRANITE_MOE.defaults, **WINDOW, "sliding_window": 128},
        flags=GRANITE_MOE.flags | lib.LLM_SINK,
        switches=BIASES,
        kinds=BUT_EVERY_FOURTH,
        ropes=own_ropes,
        prepare=with_own_ropes,
    ),
}
