"""The files of a model with random weights: a Hugging Face directory, and GGUF with the same numbers."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from tools.bench.cases import SPECIAL
from tools.bench.common import Unavailable, replacing
from tools.bench.models import CONTEXT, Shape
from tools.checkpoints import gguf_writer, interleaved, safetensors_head

BOS, EOS = 0, 1  # which of the special tokens


def vocabulary(size: int) -> tuple[list[str], list[tuple[str, str]]]:
    """A byte-level BPE vocabulary, (tokens, merges): the bytes, pairs of them, and the special tokens."""
    from pyllm.tools.vocabulary import ALPHABET

    alphabet = list(ALPHABET)
    count = size - SPECIAL - len(alphabet)
    if not 0 <= count <= len(alphabet) ** 2:
        raise Unavailable(f"no vocabulary of {size} tokens can be made")
    merges = [(alphabet[i // 256], alphabet[i % 256]) for i in range(count)]
    special = ["<|begin|>", "<|end|>", "<|unknown|>"]
    return [*alphabet, *(left + right for left, right in merges), *special], merges


def tokenizer_json(tokens: list[str], merges: list[tuple[str, str]]) -> dict[str, Any]:
    """The vocabulary as the tokenizers library reads it."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    first = len(tokens) - SPECIAL
    return {
        "version": "1.0",
        "added_tokens": [
            {"id": first + i, "content": text, **flags, "special": True}
            for i, text in enumerate(tokens[first:])
        ],
        "pre_tokenizer": byte_level,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": [list(pair) for pair in merges],
        },
    }


def random_weight(shape: Shape, number: int, size: tuple[int, ...]) -> np.ndarray:
    """Tensor `number` in fp16: ones for a norm, else normal with the shape's spread."""
    if len(size) == 1:
        return np.ones(size, np.float16)
    values = np.random.default_rng([7, number]).standard_normal(size, np.float32)
    values *= shape.std
    return values.astype(np.float16)


def write_safetensors(path: Path, shape: Shape) -> None:
    """The random weights, which are never all in memory."""
    with path.open("wb") as file:
        head = safetensors_head((name, "F16", size, 2 * math.prod(size)) for name, size in shape.tensors())
        file.write(head)
        for number, (_, size) in enumerate(shape.tensors()):
            file.write(random_weight(shape, number, size).data)


def config_json(shape: Shape) -> dict[str, Any]:
    first = shape.vocab_size - SPECIAL
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": shape.dim,
        "intermediate_size": shape.ffn_dim,
        "num_hidden_layers": shape.n_layers,
        "num_attention_heads": shape.n_heads,
        "num_key_value_heads": shape.n_kv_heads,
        "head_dim": shape.head_dim,
        "vocab_size": shape.vocab_size,
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": 1e-5,
        "rope_theta": shape.rope_theta,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": first + BOS,
        "eos_token_id": first + EOS,
        "torch_dtype": "float16",
    }


def random_hf(path: Path, shape: Shape) -> None:
    """A Hugging Face directory: the source of all other files."""
    first = shape.vocab_size - SPECIAL
    tokens, merges = vocabulary(shape.vocab_size)
    names = dict(zip(("bos_token", "eos_token", "unk_token"), tokens[first:], strict=True))
    with replacing(path) as folder:
        folder.mkdir()
        write_safetensors(folder / "model.safetensors", shape)
        for name, value in (
            ("config.json", config_json(shape)),
            ("tokenizer.json", tokenizer_json(tokens, merges)),
            ("tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **names}),
        ):
            (folder / name).write_text(json.dumps(value), encoding="utf-8")


def gguf_rows(name: str, weight: np.ndarray, shape: Shape) -> np.ndarray:
    """The rows of q and k in llama.cpp's order; other matrices as they are."""
    heads = {"q_proj": shape.n_heads, "k_proj": shape.n_kv_heads}.get(name.split(".")[-2])
    return weight if heads is None else interleaved(weight, heads)


def random_gguf(path: Path, shape: Shape, dtype: str) -> None:
    """A GGUF file with the matrices in that dtype, F16 or Q8_0, and the norms in float32."""
    import gguf
    from pyllm.tools.gguf_architectures import ARCHITECTURES
    from pyllm.tools.gguf_names import native_name
    from safetensors import safe_open

    kind = gguf.GGMLQuantizationType[dtype]
    tokens, merges = vocabulary(shape.vocab_size)
    types = [gguf.TokenType.NORMAL] * (len(tokens) - SPECIAL) + [gguf.TokenType.CONTROL] * SPECIAL
    with replacing(path) as part, safe_open(path.parent / "hf" / "model.safetensors", "np") as source:
        writer = gguf_writer(part, "llama", "random", config_json(shape))
        writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{dtype}"])
        writer.add_vocab_size(shape.vocab_size)
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("gpt-2")
        writer.add_token_list(tokens)
        writer.add_token_types(types)
        writer.add_token_merges([" ".join(pair) for pair in merges])
        writer.add_bos_token_id(len(tokens) - SPECIAL + BOS)
        writer.add_eos_token_id(len(tokens) - SPECIAL + EOS)
        writer.add_add_bos_token(False)

        def data(name: str) -> np.ndarray:
            weight = gguf_rows(name, source.get_tensor(name), shape)
            if weight.ndim == 1:
                return weight.astype(np.float32)
            return weight if dtype == "F16" else gguf.quants.quantize(weight.astype(np.float32), kind)

        plain = gguf.GGMLQuantizationType.F32
        for name, size in shape.tensors():
            this = kind if len(size) > 1 else plain
            block, width = gguf.GGML_QUANT_SIZES[this]
            raw = (*size[:-1], size[-1] // block * width)
            item = {plain: np.float32, gguf.GGMLQuantizationType.F16: np.float16}.get(this, np.uint8)
            nbytes = int(np.prod(raw))
            stored = raw if item is np.uint8 else size
            name = native_name(name, ARCHITECTURES["llama"])
            writer.add_tensor_info(name, stored, np.dtype(item), nbytes, raw_dtype=this)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name, _ in shape.tensors():
            writer.write_tensor_data(data(name))
        writer.close()
