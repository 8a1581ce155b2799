"""Reads a GGUF file through the `gguf` library: metadata becomes config.json's keys, tensors get Hugging
Face's names and row order.

llama.cpp's converter permutes the rows of q and k of the architecture "llama" (interleaved rotary pairs);
that is undone here."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from . import families, sources, vocabulary
from .sources import ConvertError, File, FileTensor, Source

# GGUF architecture -> Hugging Face's, when it is dense and when it has experts, and whether q and k are
# permuted.
ARCHITECTURES: dict[str, tuple[str | None, str | None, bool]] = {
    "llama": ("LlamaForCausalLM", "MixtralForCausalLM", True),
    "qwen2": ("Qwen2ForCausalLM", None, False),
    "qwen3": ("Qwen3ForCausalLM", None, False),
    "qwen3moe": (None, "Qwen3MoeForCausalLM", False),
}

# Metadata -> config.json, without the architecture's prefix.
KEYS = {
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "expert_feed_forward_length": "moe_intermediate_size",
    "block_count": "num_hidden_layers",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.sliding_window": "sliding_window",
    "context_length": "max_position_embeddings",
    "expert_count": "num_local_experts",
    "expert_used_count": "num_experts_per_tok",
}

# Tensors, after "blk.N.", and what they are called after "model.layers.N.".
ONCE = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
LAYER = {
    "attn_norm.weight": "input_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "attn_q.bias": "self_attn.q_proj.bias",
    "attn_k.bias": "self_attn.k_proj.bias",
    "attn_v.bias": "self_attn.v_proj.bias",
    "attn_output.bias": "self_attn.o_proj.bias",
    "attn_q_norm.weight": "self_attn.q_norm.weight",
    "attn_k_norm.weight": "self_attn.k_norm.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
    "ffn_gate_inp.weight": "mlp.gate.weight",
}
TOKENS = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
EXPERTS = re.compile(r"ffn_(gate|up|down)(?:_exps|\.(\d+))\.weight")  # stacked, or one by one in older files


def hf_name(name: str) -> str:
    """Hugging Face's name of a tensor; the name itself for one that has none. {e} stands for all experts of a
    stack."""
    if name in ONCE:
        return ONCE[name]
    layer = re.fullmatch(r"blk\.(\d+)\.(.+)", name)
    if not layer:
        return name
    if layer[2] in LAYER:
        return f"model.layers.{layer[1]}.{LAYER[layer[2]]}"
    expert = EXPERTS.fullmatch(layer[2])
    if expert:
        return f"model.layers.{layer[1]}.mlp.experts.{expert[2] or '{e}'}.{expert[1]}_proj.weight"
    return name


def native_name(name: str) -> str:
    """The opposite of hf_name."""
    back = {value: key for key, value in (ONCE | LAYER).items()}
    if name in back:
        return back[name]
    layer = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", name)
    if not layer:
        return name
    expert = re.fullmatch(r"mlp\.experts\.\d+\.(gate|up|down)_proj\.weight", layer[2])
    tail = f"ffn_{expert[1]}_exps.weight" if expert else back.get(layer[2], layer[2])
    return f"blk.{layer[1]}.{tail}"


def rope_parameters(get: Callable[[str], Any], factors: np.ndarray | None) -> dict:
    """config.json's rope_parameters from the metadata under `rope.`, and the tensor rope_freqs.weight
    (head_dim / 2,)."""
    rope: dict[str, Any] = {"rope_theta": get("rope.freq_base") or 10000.0}
    kind = get("rope.scaling.type")
    factor = get("rope.scaling.factor") or get("rope.scale_linear") or 1.0
    if kind is None:
        kind = "linear" if factor != 1.0 else "none"
    if kind not in ("none", "linear", "yarn"):
        raise ConvertError(
            f"the rotary scaling rope.scaling.type = {kind!r} is not supported; none, linear and yarn are"
        )
    if get("rope.scaling.attn_factor") not in (None, 1.0):
        raise ConvertError(
            f"rope.scaling.attn_factor = {get('rope.scaling.attn_factor')} is not supported, only 1"
        )
    for key in ("yarn_ext_factor", "yarn_attn_factor"):
        if get(f"rope.scaling.{key}") not in (None, 1.0):
            raise ConvertError(f"rope.scaling.{key} = {get(f'rope.scaling.{key}')} is not supported, only 1")
    if get("rope.scaling.yarn_log_multiplier") not in (None, 0.0):
        raise ConvertError("rope.scaling.yarn_log_multiplier is not supported")
    rope["rope_type"] = "default" if kind == "none" or factor == 1.0 else kind
    if rope["rope_type"] != "default":
        rope["factor"] = factor
    if rope["rope_type"] == "yarn":
        rope["original_max_position_embeddings"] = get("rope.scaling.original_context_length")
        rope["beta_fast"] = get("rope.scaling.yarn_beta_fast")
        rope["beta_slow"] = get("rope.scaling.yarn_beta_slow")
    if factors is not None:
        if rope["rope_type"] == "yarn":
            raise ConvertError("rope_freqs.weight together with yarn scaling is not supported")
        rope["frequency_factors"] = factors
    return rope


def configuration(get: Callable[[str], Any], architecture: str) -> dict[str, Any]:
    """config.json's keys from the metadata; get(key) is the value of "architecture.key", None when it is
    missing."""
    dense, experts, _ = ARCHITECTURES[architecture]
    chosen = experts if get("expert_count") else dense
    if chosen is None:
        raise ConvertError(f"{architecture}.expert_count is {get('expert_count')}, which does not fit it")
    config: dict[str, Any] = {"architectures": [chosen], "hidden_act": "silu", "sliding_window": None}
    config["norm_topk_prob"] = True  # llama.cpp always normalises in these architectures
    for key, ours in KEYS.items():
        found = get(key)
        if isinstance(found, list):
            if len(set(found)) != 1:
                raise ConvertError(f"{architecture}.{key} differs between layers, which is not supported")
            found = found[0]
        if found is not None:
            config[ours] = found
    dim, heads = (families.integer(config, key) for key in ("hidden_size", "num_attention_heads"))
    head_dim = config.setdefault("head_dim", dim // heads)
    config.setdefault("num_key_value_heads", heads)
    families.integer(config, "num_key_value_heads")
    if get("attention.value_length") not in (None, head_dim):
        raise ConvertError(
            f"{architecture}.attention.value_length is not the key's {head_dim}: not supported"
        )
    if get("rope.dimension_count") not in (None, head_dim):
        raise ConvertError(
            f"{architecture}.rope.dimension_count is {get('rope.dimension_count')}, not the head's "
            f"{head_dim}; partial rotation is not supported"
        )
    return config


def read_tensor(tensor: Any, file: File) -> sources.Tensor:
    """A tensor of gguf.GGUFReader, read by rows and dequantized by the library."""
    import gguf

    shape = tuple(int(n) for n in reversed(tensor.shape.tolist()))
    cols = shape[-1] if len(shape) > 1 else 1
    kind = tensor.tensor_type
    if kind.name in sources.PLAIN:
        block, (width, decode) = 1, sources.PLAIN[kind.name]
    else:
        block, width = gguf.GGML_QUANT_SIZES[kind]

        def decode(raw: np.ndarray) -> np.ndarray:
            return gguf.quants.dequantize(raw, kind)

        try:
            decode(np.zeros((1, width), np.uint8))
        except (NotImplementedError, KeyError):
            raise ConvertError(
                f"{tensor.name} is {kind.name}, which the gguf library cannot dequantize"
            ) from None
    if cols % block:
        raise ConvertError(f"{tensor.name} has {cols} columns, not a multiple of {kind.name}'s {block}")
    offset = int(tensor.data_offset)
    result = FileTensor(tensor.name, shape, file, offset, cols // block * width, decode)
    if offset + result.rows * result.row_bytes > file.size:
        raise ConvertError(f"truncated, {tensor.name} ends after the file's {file.size} bytes")
    return result


def open_file(path: Path) -> Source:
    """The model in a GGUF file."""
    try:
        import gguf
    except ImportError:
        raise sources.need("gguf", f"reading {path.name}") from None
    file = File(path)
    try:
        reader = gguf.GGUFReader(path)
        if reader.endianess != gguf.GGUFEndian.LITTLE:
            raise ConvertError("big-endian, which is not supported")
        return parse(reader, path, file)
    except ConvertError as error:
        file.close()
        raise ConvertError(f"{path.name}: {error}") from None
    except (ValueError, LookupError, TypeError, ArithmeticError, MemoryError) as error:  # of the library
        file.close()
        raise ConvertError(f"{path}: truncated or damaged ({error})") from None


def parse(reader: Any, path: Path, file: File) -> Source:
    """open_file, with the file open."""
    known: dict[str, Any] = {}

    def value(key: str) -> Any:
        if key not in known:
            known[key] = reader.fields[key].contents() if key in reader.fields else None
        return known[key]

    architecture = value("general.architecture")
    if architecture not in ARCHITECTURES:
        names = ", ".join(sorted(ARCHITECTURES))
        raise ConvertError(
            f"unknown architecture {architecture!r}; GGUF files of these can be converted: {names}"
        )
    if (value("split.count") or 1) > 1:
        raise ConvertError(
            f"one of {value('split.count')} parts; merge them first (llama-gguf-split --merge)"
        )

    def get(key: str) -> Any:
        return value(f"{architecture}.{key}")

    config = configuration(get, architecture)
    source = Source(path, value("general.name") or path.stem, config, {}, native=native_name, files=[file])
    heads = {"q": config["num_attention_heads"], "k": config["num_key_value_heads"]}
    factors = None
    for item in reader.tensors:
        tensor, name = read_tensor(item, file), hf_name(item.name)
        if name == "rope_freqs.weight":
            factors = tensor.read(0, tensor.rows).reshape(-1)
            continue
        projection = re.fullmatch(r"blk\.\d+\.attn_([qk])\.(?:weight|bias)", item.name)
        if projection and ARCHITECTURES[architecture][2]:
            tensor = sources.half_split(tensor, heads[projection[1]])
        source.tensors.update(sources.unstack(tensor, (name,)) if "{e}" in name else {name: tensor})
    config["rope_parameters"] = rope_parameters(get, factors)
    config["tie_word_embeddings"] = "lm_head.weight" not in source.tensors
    config["attention_bias"] = "model.layers.0.self_attn.q_proj.bias" in source.tensors
    embedding = source.tensors.get("model.embed_tokens.weight")
    if embedding is not None:
        config["vocab_size"] = embedding.shape[0]

    tokens = value("tokenizer.ggml.tokens") or []
    for key, ours in TOKENS.items():
        index = value(f"tokenizer.ggml.{key}_token_id")
        if isinstance(index, int) and 0 <= index < len(tokens):
            source.special_tokens[ours] = tokens[index]
    source.template = value("tokenizer.chat_template") or None
    for key in ("license", "description"):
        if value(f"general.{key}"):
            source.about[key] = str(value(f"general.{key}"))
    if tokens:
        metadata = {key: value(key) for key in reader.fields if key.startswith("tokenizer.")}
        source.tokenizer = lambda: vocabulary.from_gguf(metadata)
    return source
