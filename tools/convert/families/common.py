"""What rows of more than one group have: rules about layers, numbers of a configuration, names of tensors."""

from __future__ import annotations

from collections.abc import Callable

from pyllm._llm import lib

from ..configuration import Config, integer, layer_count, number
from ..sources import ConvertError, shown
from .family import Rule, always, sliding

BIASES = {"attention_bias": lib.LLM_QKV_BIAS | lib.LLM_ATTN_OUT_BIAS}
NORMALIZE = {"norm_topk_prob": lib.LLM_ROUTER_NORMALIZE}
SIGMOID_ROUTER = lib.LLM_ROUTER_SIGMOID | lib.LLM_ROUTER_BIAS  # DeepSeek V3's
WINDOW = {"use_sliding_window": True, "sliding_window": None}
SHARED_NAMES = (
    (".mlp.shared_experts.", ".mlp.shared_expert."),
    (".mlp.gate.e_score_correction_bias", ".mlp.e_score_correction_bias"),
)
ROUTER_NAMES = (
    (".mlp.router.gate.", ".mlp.gate."),
    (".mlp.expert_bias", ".mlp.e_score_correction_bias"),
)
POST_NORM_NAMES = (
    (".post_attention_layernorm.", ".post_self_attn_layernorm."),
    (".post_feedforward_layernorm.", ".post_mlp_layernorm."),
)
QK_NAMES = ((".q_layernorm.", ".q_norm."), (".k_layernorm.", ".k_norm."))
W_NAMES = (  # as in Llama's own checkpoints
    (".w1.", ".gate_proj."),
    (".w3.", ".up_proj."),
    (".w2.", ".down_proj."),
)


def value_of(name: str, absent: float = 1.0) -> Callable[[Config], float]:
    """A number of the configuration; `absent` when it has none."""
    return lambda config: absent if config.get(name) is None else number(config, name)


def in_layer(config: Config, key: str, i: int) -> int:
    """Layer i's entry of a list with one for each."""
    found = config[key]
    if not isinstance(found, list) or len(found) != layer_count(config):
        raise ConvertError(f"configuration: {key} has not one entry for each layer")
    return integer({key: found[i]}, key)


def but_every(step: int | str) -> Rule:
    """All layers but every so many-th; the key of a configuration that says how many, or the number."""

    def rule(config: Config, i: int) -> bool:
        return (i + 1) % (integer(config, step) if isinstance(step, str) else step) != 0

    return rule


EVERY = sliding(always, listed=False)
BUT_EVERY_FOURTH = sliding(lambda config, i: i % 4 != 0)  # from the first one on
LISTED = sliding(lambda config, i: False)  # no layer, unless the configuration lists them


def sparse_after(key: str) -> Rule:
    """The first layers are dense, as many as this key says."""
    return lambda config, i: i >= integer(config, key, zero=True)


def sparse_by_step(config: Config, i: int) -> bool:
    """Qwen2MoeDecoderLayer: every so many-th layer has experts, but for those that are listed."""
    dense, step = config.get("mlp_only_layers"), config.get("decoder_sparse_step")
    if not isinstance(dense, (list, type(None))):
        raise ConvertError(f"configuration: mlp_only_layers is {shown(dense)}, not a list of layers")
    step = 1 if step is None else integer(config, "decoder_sparse_step")
    return i not in (dense or ()) and (i + 1) % step == 0


def listed_sparse(otherwise: Rule) -> Rule:
    """mlp_layer_types says which layers are "sparse" and which "dense"; without it, a rule."""

    def sparse(config: Config, i: int) -> bool:
        kinds = config.get("mlp_layer_types")
        if kinds is None:
            return otherwise(config, i)
        if not isinstance(kinds, list) or len(kinds) != layer_count(config):
            raise ConvertError("configuration: mlp_layer_types has not one entry for each layer")
        if kinds[i] not in ("dense", "sparse"):
            raise ConvertError(
                f"configuration: mlp_layer_types has {shown(kinds[i])}, which is not supported"
            )
        return bool(kinds[i] == "sparse")

    return sparse


sparse_after_first = sparse_after("first_k_dense_replace")
sparse_but_first = listed_sparse(lambda config, i: i > 0)
