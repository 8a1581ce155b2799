"""Reads the tokenizer in the metadata of a GGUF file, as llama.cpp does."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pyllm._llm import lib

from . import auto_tokenizer, pre_tokenizers
from .sentencepiece_model import CONTROL, NORMAL, UNKNOWN, USER_DEFINED, from_pieces
from .tokenizer_json import from_tokenizer_json
from .vocabulary import METASPACE, Vocabulary, add_stops, as_ids


def gguf_list(fields: Mapping[str, Any], name: str) -> list[Any]:
    value = fields.get(f"tokenizer.ggml.{name}")
    if value is None or isinstance(value, (str, bytes)) or not hasattr(value, "__len__"):
        raise ValueError(f"the GGUF file has no usable tokenizer.ggml.{name}")
    return value.tolist() if hasattr(value, "tolist") else list(value)


def gguf_bpe(fields: Mapping[str, Any], name: str, texts: list[str], kinds: list[int]) -> Vocabulary:
    """A Vocabulary from GGUF's "gpt2" and "gemma4", whose pre-tokenizer has this name."""
    if name not in pre_tokenizers.PRE_TOKENIZERS:
        if name in pre_tokenizers.BEYOND:
            raise ValueError(
                f"tokenizer.ggml.pre is {name!r}, which needs {pre_tokenizers.BEYOND[name]}: not supported"
            )
        raise ValueError(
            f"tokenizer.ggml.pre is {name!r}, which is not supported; known are "
            + ", ".join(sorted(pre_tokenizers.PRE_TOKENIZERS))
        )
    pieces = name in pre_tokenizers.PIECES
    added = [
        {"id": i, "content": text, "special": kind != USER_DEFINED}
        for i, (text, kind) in enumerate(zip(texts, kinds, strict=True))
        if kind in (CONTROL, UNKNOWN, USER_DEFINED)
    ]
    steps: list[dict[str, Any]] = [
        {"type": "Split", "pattern": {"Regex": text}, "behavior": "Isolated"}
        for text in pre_tokenizers.PRE_TOKENIZERS[name]
    ]
    spec: dict[str, Any] = {"normalizer": None, "decoder": {"type": "ByteLevel"}}
    if pieces:
        spec = {"normalizer": auto_tokenizer.replace(" ", METASPACE), "decoder": auto_tokenizer.spaced()}
        if name != "sarvam-moe":  # a run of line ends is looked up whole
            known = {item["content"] for item in added}
            runs = [
                (i, text) for i, text in enumerate(texts) if re.fullmatch("\n+", text) and text not in known
            ]
            added += [{"id": i, "content": text, "special": False} for i, text in runs]
    else:
        if name in pre_tokenizers.NFC:
            spec["normalizer"] = {"type": "NFC"}
        steps.append({"type": "ByteLevel", "add_prefix_space": False, "use_regex": False})
    model = {
        "type": "BPE",
        "vocab": {text: i for i, text in reversed(list(enumerate(texts)))},
        "merges": gguf_list(fields, "merges"),
        "ignore_merges": name in pre_tokenizers.WHOLE_WORDS,
        "byte_fallback": pieces,
    }
    pre_tokenizer = {"type": "Sequence", "pretokenizers": steps}
    out = from_tokenizer_json(spec | {"added_tokens": added, "pre_tokenizer": pre_tokenizer, "model": model})
    out.tokens = dict(enumerate(texts))
    return out


def gguf_templates(fields: Mapping[str, Any]) -> dict[str, str]:
    """The chat templates in the metadata of a GGUF file by name."""
    key = "tokenizer.chat_template"
    named = {"default": fields.get(key)}
    named |= {name[len(key) + 1 :]: text for name, text in fields.items() if name.startswith(f"{key}.")}
    return {name: text for name, text in named.items() if text and isinstance(text, str)}


def from_gguf(fields: Mapping[str, Any], template: str | None = None) -> dict[int, bytes]:
    """The tokenizer sections from the metadata of a GGUF file: its fields' names and plain values. template:
    as for from_directory."""
    model = fields.get("tokenizer.ggml.model")
    texts = [
        text.decode("utf-8") if isinstance(text, bytes) else str(text) for text in gguf_list(fields, "tokens")
    ]
    kinds = (
        [int(kind) for kind in gguf_list(fields, "token_type")]
        if "tokenizer.ggml.token_type" in fields
        else []
    )
    kinds = kinds or [NORMAL] * len(texts)
    if len(kinds) != len(texts):
        raise ValueError(f"the GGUF file has {len(texts)} tokens but {len(kinds)} token types")
    name = ""
    if model in ("gpt2", "gemma4"):
        name = "gemma4" if model == "gemma4" else str(fields.get("tokenizer.ggml.pre") or "default")
        out = gguf_bpe(fields, name, texts, kinds)
        # llama.cpp's default is token 11, Falcon's; no ordinary token of another is taken for it
        last = 11 if model == "gpt2" and 11 < len(texts) and kinds[11] == CONTROL else -1
        defaults = {"bos": -1 if name in pre_tokenizers.NO_BOS else last, "eos": last}
        adds_bos = name in pre_tokenizers.ADD_BOS
    elif model == "llama":
        scores = [float(score) for score in gguf_list(fields, "scores")]
        if len(scores) != len(texts):
            raise ValueError(f"the GGUF file has {len(texts)} tokens but {len(scores)} scores")
        texts = [
            text.replace(" ", METASPACE) if kind == USER_DEFINED else text
            for text, kind in zip(texts, kinds, strict=True)
        ]
        out = from_pieces(
            list(zip(texts, scores, kinds, strict=True)),
            prefix=bool(fields.get("tokenizer.ggml.add_space_prefix", True)),
            trim=bool(fields.get("tokenizer.ggml.remove_extra_whitespaces", False)),
        )
        defaults, adds_bos = {"bos": 1, "eos": 2}, True
    else:
        raise ValueError(
            f"tokenizer.ggml.model is {model!r}; only 'llama', 'gpt2' and 'gemma4' are supported"
        )
    for key, default in defaults.items():
        ids = as_ids(fields.get(f"tokenizer.ggml.{key}_token_id", default))
        setattr(out, key, ids[0] if ids and ids[0] < len(texts) else None)
    adds_bos = bool(fields.get("tokenizer.ggml.add_bos_token", adds_bos)) or name in pre_tokenizers.ALWAYS_BOS
    out.flags &= ~(lib.LLM_ADD_BOS | lib.LLM_ADD_EOS)
    out.flags |= lib.LLM_ADD_BOS * (adds_bos and out.bos is not None)
    adds_eos = bool(fields.get("tokenizer.ggml.add_eos_token", False))
    out.flags |= lib.LLM_ADD_EOS * (adds_eos and out.eos is not None)
    stops = [] if out.eos is None else [out.eos]
    for key in ("eos", "eot", "eom"):
        stops += as_ids(fields.get(f"tokenizer.ggml.{key}_token_id"))
    template = "\n".join(gguf_templates(fields).values()) if template is None else template
    add_stops(out, stops, template)
    out.stops = gguf_stops(fields, texts, out.stops, template)
    return out.sections()


def gguf_stops(fields: Mapping[str, Any], texts: list[str], stops: list[int], template: str) -> list[int]:
    """The stop tokens of a GGUF file: those given, and those that llama.cpp finds by their texts; where there
    is a template, of these the ones that it writes."""
    ids = {text: i for i, text in reversed(list(enumerate(texts)))}
    ends_known = [text for text in pre_tokenizers.END_TEXTS if not template or text in template]
    found = {*stops, *(ids[text] for text in ends_known if text in ids)}
    for key, names in pre_tokenizers.FILL_TEXTS.items():
        given = as_ids(fields.get(f"tokenizer.ggml.{key}"))
        named = [ids[text] for text in names if text in ids and not template][:1]
        found |= {i for i in given or named if i < len(texts)}
    ends = {texts[i] for i in found}
    calls = {"<|call|>", "<|calls|>"} & ends
    if calls and ends & {"<|return|>", "<|flush|>"}:
        found.discard(ids.get("<|end|>", -1))  # it ends a message, not a turn
    if ends & {"<|tool_response>", "<|plamo:eos|>"}:
        found.discard(ids.get("</s>", -1))  # an ordinary token there
    return sorted(found)
