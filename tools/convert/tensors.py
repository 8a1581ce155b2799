"""The tensors of a model: what each tensor of the flat file is made of, by the names that Llama's tensors
have, and the steps from a source's tensors to those: renamed, stacks of experts and fused matrices taken
apart, and folded with what can be computed in advance."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from . import sources
from .families import PICTURES, Family
from .model import Model
from .sources import ConvertError, Tensor

# Each tensor of the flat file, its parts from top to bottom (name, dimensions): Llama's names, GLM-4's for
# the norms after a block, Qwen2-MoE's for experts. Names that do not begin with "model." or "lm_head." follow
# "model.layers.N."; {e} is "" in a dense block and "experts.E." with experts, {n} the number of what occurs
# several times. A part of 0 rows is none.
TENSORS: dict[str, tuple[tuple[str, str], ...]] = {
    "LLM_EMBED": (("model.embed_tokens.weight", "vocab dim"),),
    "LLM_OUT_NORM": (("model.norm.weight", "dim"), ("model.norm.bias", "nbias")),
    "LLM_OUTPUT": (("lm_head.weight", "vocab dim"),),
    "LLM_PLE_EMBED": (("model.embed_tokens_per_layer.weight", "vocab ples"),),
    "LLM_PLE_PROJ": (("model.per_layer_model_projection.weight", "ples dim"),),
    "LLM_PLE_NORM": (("model.per_layer_projection_norm.weight", "ple"),),
    "LLM_STREAM_IN": (("model.altup_projections.{n}.weight", "dim dim"),),
    "LLM_STREAM_OUT": (("model.altup_unembed_projections.{n}.weight", "dim dim"),),
    "LLM_POSITIONS": (("model.positions.weight", "context dim"),),
    "LLM_OUTPUT_ADD": (("lm_head.bias", "vocab"),),
    "LLM_EMBED_NORM": (("model.embed_norm.weight", "dim"), ("model.embed_norm.bias", "nbias")),
    "LLM_ATTN_NORM": (("input_layernorm.weight", "dim"), ("input_layernorm.bias", "nbias")),
    "LLM_QKV": (
        ("self_attn.q_proj.weight", "direct dim"),
        ("self_attn.k_proj.weight", "k dim"),
        ("self_attn.v_proj.weight", "v dim"),
        ("self_attn.gate_proj.weight", "attgate dim"),
        ("self_attn.q_a_proj.weight", "qrank dim"),
        ("self_attn.kv_a_proj_with_mqa.weight", "compressed dim"),
        ("conv.in_proj.weight", "bcx dim"),
        ("linear_attn.in_proj_q.weight", "skey dim"),
        ("linear_attn.in_proj_k.weight", "skey dim"),
        ("linear_attn.in_proj_v.weight", "svalue dim"),
        ("linear_attn.in_proj_z.weight", "svalue dim"),
    ),
    "LLM_BIAS": (
        ("self_attn.q_proj.bias", "direct"),
        ("self_attn.k_proj.bias", "k"),
        ("self_attn.v_proj.bias", "v"),
        ("self_attn.gate_proj.bias", "attgate"),
        ("self_attn.q_a_proj.bias", "qrank"),
        ("self_attn.kv_a_proj_with_mqa.bias", "compressed"),
    ),
    "LLM_Q_NORM": (
        ("self_attn.q_norm.weight", "qnorm"),
        ("self_attn.q_norm.bias", "qnbias"),
        ("self_attn.q_a_layernorm.weight", "qrank"),
    ),
    "LLM_K_NORM": (
        ("self_attn.k_norm.weight", "knorm"),
        ("self_attn.k_norm.bias", "knbias"),
        ("self_attn.kv_a_layernorm.weight", "latent"),
    ),
    "LLM_ATTN_OUT": (
        ("self_attn.o_proj.weight", "dim att"),
        ("conv.out_proj.weight", "dim conv"),
        ("linear_attn.out_proj.weight", "dim svalue"),
    ),
    "LLM_ATTN_POST_NORM": (
        ("post_self_attn_layernorm.weight", "dim"),
        ("post_self_attn_layernorm.bias", "nbias"),
    ),
    "LLM_FFN_NORM": (("post_attention_layernorm.weight", "dim"), ("post_attention_layernorm.bias", "nbias")),
    "LLM_ROUTER": (("mlp.gate.weight", "experts dim"), ("mlp.shared_expert_gate.weight", "gate dim")),
    "LLM_ROUTER_ADD": (("mlp.e_score_correction_bias", "experts"),),
    "LLM_GATE_UP": (("mlp.{e}gate_proj.weight", "gated dim"), ("mlp.{e}up_proj.weight", "ffn dim")),
    "LLM_DOWN": (("mlp.{e}down_proj.weight", "dim ffn"),),
    "LLM_SHARED_GATE_UP": (
        ("mlp.shared_expert.gate_proj.weight", "shared dim"),
        ("mlp.shared_expert.up_proj.weight", "shared dim"),
    ),
    "LLM_SHARED_DOWN": (("mlp.shared_expert.down_proj.weight", "dim shared"),),
    "LLM_FFN_POST_NORM": (("post_mlp_layernorm.weight", "dim"), ("post_mlp_layernorm.bias", "nbias")),
    "LLM_SINKS": (("self_attn.sinks", "heads"),),
    "LLM_OUT_BIAS": (("self_attn.o_proj.bias", "dim"),),
    "LLM_ROUTER_LOGITS": (("mlp.gate.bias", "experts"),),
    "LLM_GATE_UP_BIAS": (("mlp.{e}gate_proj.bias", "gated"), ("mlp.{e}up_proj.bias", "ffn")),
    "LLM_DOWN_BIAS": (("mlp.{e}down_proj.bias", "dim"),),
    "LLM_ROUTER_NORM": (("mlp.router_norm.weight", "dim"),),
    "LLM_SHARED_NORM": (("mlp.shared_layernorm.weight", "dim"),),
    "LLM_SHARED_POST": (("mlp.shared_post_layernorm.weight", "dim"),),
    "LLM_EXPERTS_POST": (("mlp.experts_post_layernorm.weight", "dim"),),
    "LLM_ROUTER_SCALE": (("mlp.router_scale", "experts"),),
    "LLM_LAYER_SCALE": (("layer_scalar", "one"),),
    "LLM_PLE_GATE": (("per_layer_input_gate.weight", "ple dim"),),
    "LLM_PLE_OUT": (("per_layer_projection.weight", "dim ple"),),
    "LLM_PLE_POST_NORM": (("post_per_layer_input_norm.weight", "dim"),),
    "LLM_LAUREL_LEFT": (("laurel.linear_left.weight", "rank dim"),),
    "LLM_LAUREL_RIGHT": (("laurel.linear_right.weight", "dim rank"),),
    "LLM_LAUREL_NORM": (("laurel.post_laurel_norm.weight", "dim"),),
    "LLM_STREAM_NORM": (("altup.router_norm.weight", "dim"),),
    "LLM_STREAM_ROUTER": (("altup.modality_router.weight", "streams dim"),),
    "LLM_STREAM_PREDICT": (("altup.prediction_coefs.weight", "predict"),),
    "LLM_STREAM_CORRECT": (("altup.correction_coefs.weight", "correct"),),
    "LLM_STREAM_SCALE": (("altup.correct_output_scale", "dim"),),
    "LLM_XIELU_NUMBERS": (("mlp.act_fn.alpha_p", "one"), ("mlp.act_fn.alpha_n", "one")),
    "LLM_Q_UP": (("self_attn.q_b_proj.weight", "q qrank"),),
    "LLM_K_UP": (("self_attn.k_b_proj.{n}.weight", "latent plain"),),
    "LLM_V_UP": (("self_attn.v_b_proj.{n}.weight", "value latent"),),
    "LLM_CONV": (("conv.conv.weight", "taps"), ("linear_attn.conv1d.weight", "staps")),
    "LLM_STATE_GATES": (
        ("linear_attn.in_proj_b.weight", "sheads dim"),
        ("linear_attn.in_proj_a.weight", "sheads dim"),
    ),
    "LLM_DECAY": (("linear_attn.dt_bias", "sheads"), ("linear_attn.A_log", "sheads")),
    "LLM_STATE_NORM": (("linear_attn.gain.weight", "svwidth"),),
}

# Matrices that some files have in one: the end of the name, the ends of its parts' names, and their rows. In
# a grouped one (InternLM2) each key head follows its query heads and is followed by its value head; so it is
# with those of GROUPED, by the field of flatfile.Layer that says how many groups there are.
QKV = (("q_proj", "q"), ("k_proj", "k"), ("v_proj", "v"))
FUSED: dict[str, tuple[tuple[str, str], ...]] = {
    ".grouped_qkv_proj": QKV,
    ".qkv_proj": QKV,
    ".shared_expert.gate_up_proj": (
        ("shared_expert.gate_proj", "shared"),
        ("shared_expert.up_proj", "shared"),
    ),
    ".gate_up_proj": (("gate_proj", "ffn"), ("up_proj", "ffn")),
    ".qg_proj": (("q_proj", "q"), ("gate_proj", "attgate")),
    ".in_proj_qkvz": (
        ("in_proj_q", "skey"),
        ("in_proj_k", "skey"),
        ("in_proj_v", "svalue"),
        ("in_proj_z", "svalue"),
    ),
    ".in_proj_qkv": (("in_proj_q", "skey"), ("in_proj_k", "skey"), ("in_proj_v", "svalue")),
    ".in_proj_ba": (("in_proj_b", "sheads"), ("in_proj_a", "sheads")),
}
GROUPED = {
    ".grouped_qkv_proj": "n_kv_heads",
    ".qg_proj": "n_heads",
    ".in_proj_qkvz": "delta_key_heads",
    ".in_proj_ba": "delta_key_heads",
}

# Stacks of experts, as transformers 5 keeps them in memory (shape (experts, rows, cols)), and what is in one.
STACKS = {
    "mlp.experts.gate_up_proj": ("mlp.experts.{e}.gate_proj.weight", "mlp.experts.{e}.up_proj.weight"),
    "mlp.experts.down_proj": ("mlp.experts.{e}.down_proj.weight",),
    "mlp.experts.gate_up_proj_bias": ("mlp.experts.{e}.gate_proj.bias", "mlp.experts.{e}.up_proj.bias"),
    "mlp.experts.down_proj_bias": ("mlp.experts.{e}.down_proj.bias",),
}

IGNORED = (
    "rotary_emb.inv_freq",
    "self_attn.masked_bias",
    "self_attn.bias",
    ".attn.masked_bias",
    ".attn.bias",
    ".attention.masked_bias",
    ".attention.bias",
    "attn_rot_embd.weight",
)  # computed, or a mask
BIASES = (
    ".q_proj.bias",
    ".k_proj.bias",
    ".v_proj.bias",
    ".o_proj.bias",
    ".gate_proj.bias",
    ".up_proj.bias",
    ".down_proj.bias",
)


XIELU = {".act_fn.beta": 0.5, ".act_fn.eps": 0.0}  # buffers of XIELUActivation; eps is -1e-6


def parts_of(model: Model, tensor: str, layer: int, expert: int) -> list[tuple[str, tuple[int, ...]]]:
    """The names and shapes that make up a tensor of the flat file, from top to bottom."""
    sizes = model.sizes(layer)
    which = f"experts.{expert}." if sizes["experts"] else ""
    found = []
    for name, dimensions in TENSORS[tensor]:
        full = (
            name.format(n=expert)
            if name.startswith(("model.", "lm_head."))
            else f"model.layers.{layer}.{name.format(e=which, n=expert)}"
        )
        shape = tuple(sizes[key] for key in dimensions.split())
        found += [(full, shape)] if all(shape) else []
    return found


def layer_of(name: str) -> int | None:
    """The number of the layer that a tensor belongs to."""
    found = re.match(r"model\.layers\.(\d{1,9})\.", name)
    return int(found[1]) if found else None


def is_ahead(model: Model, name: str) -> bool:
    """Whether a tensor serves to predict a token after the next one (multi-token prediction): of a layer
    behind the last one, or called so."""
    layer, n_layers = layer_of(name), len(model.shape.layers)
    behind = layer is not None and n_layers <= layer < n_layers + model.ahead
    return name.startswith("mtp.") or (model.ahead > 0 and (behind or name.startswith("model.mtp_")))


OF_KEYS = (".self_attn.k_proj.", ".self_attn.v_proj.", ".self_attn.k_norm.", ".self_attn.v_norm.")


def is_unused(model: Model, name: str) -> bool:
    """Whether a tensor makes keys or values in a layer that uses another one's."""
    layer, layers = layer_of(name), model.shape.layers
    borrows = layer is not None and layer < len(layers) and layers[layer].kv_layer is not None
    return borrows and any(part in name for part in OF_KEYS)


def renamed(family: Family, name: str) -> str:
    """A tensor's name as TENSORS, FUSED and STACKS have it."""
    for theirs, ours in family.rename:
        name = name.replace(theirs, ours)
    return name


def named(model: Model, tensors: Mapping[str, Tensor], rename: bool = True) -> dict[str, Tensor]:
    """The tensors under the names of TENSORS and FUSED, stacks of experts taken apart, computed ones left
    out, and those of a model's pictures and of predictions beyond the next token too."""
    family, pictures, ahead, unused = model.family, 0, 0, 0
    result: dict[str, Tensor] = {}
    if rename and family.base and not any(name.startswith(family.base) for name in tensors):
        tensors = {family.base + name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    for name, tensor in tensors.items():
        name = renamed(family, name) if rename else name
        if name.endswith(IGNORED):
            continue
        if rename and name.endswith(family.by_input) and len(tensor.shape) == 2:
            tensor = sources.Turned(tensor)
        if model.wrapped and name.startswith(PICTURES):
            pictures += 1
            continue
        if is_ahead(model, name):
            ahead += 1
            continue
        if is_unused(model, name):
            unused += 1
            continue
        stack = next((key for key in STACKS if family.experts and name.endswith("." + key)), None)
        prefix = name[: -len(stack)] if stack else ""
        if stack:
            names = tuple(prefix + part for part in STACKS[stack])
            parts = unstacked(model, tensor, names)
        else:
            parts = {name: tensor}
        twice = result.keys() & parts.keys()
        if twice:
            raise ConvertError(f"{sources.listing(sorted(twice))} occurs twice, under different spellings")
        result.update(parts)
    if pictures:
        what = "pictures or sound"
        model.notes.append(f"only the text part is converted: {pictures} tensors for {what} are left out")
    if unused:
        model.notes.append(f"{unused} tensors of layers that use another one's keys and values are left out")
    if ahead:
        model.notes.append(f"{ahead} tensors that predict a token after the next one are left out")
    return result


def unstacked(model: Model, tensor: Tensor, names: tuple[str, ...]) -> dict[str, Tensor]:
    """The experts of a stack, in `names` {e}, as the family has them in it."""
    if names[0].endswith(".bias") and len(tensor.shape) == 2:  # of (experts, rows)
        tensor = sources.Stack(tensor)
    elif model.transposed:
        tensor = sources.Transposed(tensor)
    return sources.unstack(tensor, names, model.n_experts, model.family.alternating)


def check_xielu(name: str, tensor: Tensor) -> None:
    """Refuses another number than the format has."""
    wanted = next(value for end, value in XIELU.items() if name.endswith(end))
    if tensor.rows != 1 or abs(float(tensor.read(0, 1).reshape(-1)[0]) - wanted) > 1e-5:
        raise ConvertError(f"{tensor.name} is not {wanted:g}, which is not supported")


def completed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """With norms of each head put together (StableLM), and without what is known."""
    each = re.compile(r"(.+\.[qk]_norm)\.norms\.(\d{1,4})\.(\w+)")
    heads: dict[str, dict[int, Tensor]] = {}
    result = {}
    for name, tensor in tensors.items():
        head = each.fullmatch(name)
        if head:
            heads.setdefault(f"{head[1]}.{head[3]}", {})[int(head[2])] = tensor
        elif name.endswith(tuple(XIELU)):
            check_xielu(name, tensor)
        else:
            result[name] = tensor
    for name, parts in heads.items():
        result[name] = sources.Joined(name, [parts[i] for i in sorted(parts)])
    return result


def canonical(model: Model, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The named() tensors as the flat file has them: fused matrices taken apart, heads in the order in which
    element i turns with i + head_dim / 2, and what is added to or multiplied into a norm's vector."""
    result: dict[str, Tensor] = {}
    for name, tensor in completed(tensors).items():
        stem, _, kind = name.rpartition(".")
        fused = next((end for end in FUSED if stem.endswith(end)), None)
        if name.endswith(".self_attn.kv_b_proj.weight"):
            parts = by_heads(model, name, tensor)
        elif fused is None:
            parts = {name: tensor}
        else:
            layer = layer_of(name)
            number = layer if layer is not None and layer < len(model.shape.layers) else 0
            rows = tuple(model.sizes(number)[size] for _, size in FUSED[fused])
            groups = getattr(model.shape.layers[number], GROUPED[fused]) if fused in GROUPED else 1
            prefix = stem[: -len(fused)]
            names = [f"{prefix}.{part}.{kind}" for part, _ in FUSED[fused]]
            parts = dict(zip(names, sources.split(tensor, rows, groups), strict=True))
        twice = result.keys() & parts.keys()
        if twice:
            raise ConvertError(f"{sources.listing(sorted(twice))} occurs twice, fused and alone")
        for part, found in parts.items():
            result[part] = folded(model, part, found)
    return result


def absent(model: Model, name: str, shape: tuple[int, ...]) -> Tensor | None:
    """A tensor of numbers that are all the same, which the family's checkpoints do not have."""
    value = next((value for end, value in model.family.absent.items() if name.endswith(end)), None)
    return None if value is None else sources.Constant(name, shape, value)


def by_heads(model: Model, name: str, tensor: Tensor) -> dict[str, Tensor]:
    """What makes keys and values of a latent, (n_heads * (plain + value), latent) with the rows of a head
    together, as a matrix for the keys of each head, transposed, and one for its values."""
    layer = layer_of(name)
    number = layer if layer is not None and layer < len(model.shape.layers) else 0
    sizes, heads = model.sizes(number), model.shape.layers[number].n_heads
    rows, prefix = (sizes["plain"], sizes["value"]) * heads, name.removesuffix("kv_b_proj.weight")
    if tensor.shape != (sum(rows), sizes["latent"]):
        raise ConvertError(f"{tensor.name} is {tensor.shape}, expected {(sum(rows), sizes['latent'])}")
    parts = sources.split(tensor, rows)
    found: dict[str, Tensor] = {}
    for head in range(heads):
        found[f"{prefix}k_b_proj.{head}.weight"] = sources.Columns(parts[2 * head])
        found[f"{prefix}v_b_proj.{head}.weight"] = parts[2 * head + 1]
    return found


def folded(model: Model, name: str, tensor: Tensor) -> Tensor:
    """A tensor with what the converter computes in advance."""
    stem, _, kind = name.rpartition(".")
    if stem.endswith((".q_norm", ".k_norm")) and len(tensor.shape) == 2:
        tensor = sources.Flat(tensor)
    if name == "model.positions.weight" and tensor.rows > model.shape.context:
        tensor = sources.Rows(tensor, (model.shape.context, tensor.cols))
    layer = layer_of(name)
    order = model.head_orders[layer] if layer is not None and layer < len(model.head_orders) else None
    if order is not None and stem.endswith((".q_proj", ".q_b_proj", ".k_proj", ".q_norm", ".k_norm")):
        tensor = sources.in_heads(tensor, order)
    if model.latent_order is not None and stem.endswith(".kv_a_proj_with_mqa"):
        tensor = sources.in_heads(tensor, model.latent_order)
    if model.value_scale != 1 and stem.endswith(".v_proj"):
        tensor = sources.Linear(tensor, model.value_scale)
    if stem.endswith((".altup.prediction_coefs", ".altup.correction_coefs")):
        tensor = sources.Flat(tensor)
    vocabulary = model.shape.vocab_size
    if stem == "model.embed_tokens_per_layer" and tensor.rows == model.ple_rows < vocabulary:
        tensor = sources.Lengthened(tensor, vocabulary)
    scale = model.logit_scale if stem == "model.norm" else 1.0
    scale = next((by for end, by in model.folded.items() if stem.endswith(end)), scale)
    offset = model.family.norm_offset if stem.endswith("norm") and kind == "weight" else 0.0
    if scale != 1 or offset:
        tensor = sources.Linear(tensor, scale, offset * scale)
    if name.endswith((".conv.conv.weight", ".linear_attn.conv1d.weight")):
        tensor = sources.Taps(tensor)
    if name.endswith(".A_log"):
        tensor = sources.Mapped(tensor, lambda x: -np.exp(x))
    if name.endswith(".mlp.e_score_correction_bias") and tensor.shape[:-1] == (1,):
        tensor = sources.Flat(tensor)  # ERNIE 4.5 MoE has groups of experts, and one of them
    if kind in ("alpha_p", "alpha_n"):  # XIELUActivation of transformers, whose beta is 1/2
        tensor = sources.Softplus(tensor, 0.5 if kind == "alpha_n" else 0.0)
    return tensor
