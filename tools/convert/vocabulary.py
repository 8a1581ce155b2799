"""Turns a model's tokenizer into the tokenizer sections of a flat file (csrc/llm.h says what is in them).

Reads a Hugging Face directory (tokenizer.json, else tokenizer.model, else Mistral's tekken.json), the
metadata of a GGUF file, or llama2.c's tokenizer.bin, and refuses with a ValueError whatever the engine would
not do exactly as the original. Runs nothing that it reads.
"""

from __future__ import annotations

import base64
import importlib.util
import itertools
import json
import re
import struct
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from . import auto_tokenizer, pattern, pre_tokenizers, unicode_tables
from .auto_tokenizer import BYTE_PIECE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED, Found, Pieces
from .pre_tokenizers import LLAMA3 as LLAMA3
from .pre_tokenizers import PRE_TOKENIZERS as PRE_TOKENIZERS
from .pre_tokenizers import QWEN2 as QWEN2
from .sources import read_json

NONE = 0xFFFFFFFF
METASPACE = "\u2581"
# The files that a directory may have its tokenizer in; tekken.json counts where there is no other
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tekken.json")

# enum llm_section_tag
STOP = 3
TOKENIZER, STARTS, BYTES, TYPES, ORDER, MERGE_STARTS, MERGES, ADDED, PATTERN, CLASSES, NFC, NORMALIZER = (
    range(16, 28)
)
AROUND = 28
MAX_AROUND = 16  # tokens that go before a text, or after it
# enum llm_vocabulary_flag
BYTE_LEVEL, BYTE_FALLBACK, FUSE_UNKNOWN, WHOLE_WORDS, ADD_BOS, ADD_EOS = 1, 2, 4, 8, 16, 32
PREFIX_SPACE, PREFIX_FIRST, STRIP_SPACE, STRIP_SPACES = 64, 128, 256, 512
# enum llm_token_type, llm_added_flag, llm_normalize_kind
SPECIAL, BYTE, ABSENT = 1, 2, 4
ADDED_SPECIAL, ADDED_LSTRIP, ADDED_RSTRIP, ADDED_WORD = 1, 2, 4, 8
TO_NFC, PREPEND, REPLACE, TRIM = 1, 2, 3, 4

# Tokens that end a turn: they stop a generation when the chat template writes them.
TURN_ENDS = (
    "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|eot|>", "<|end|>", "<end_of_turn>", "<|end_of_turn|>",
    "<|endofturn|>", "[|endofturn|]", "<|END_OF_TURN_TOKEN|>", "<end_of_utterance>", "<turn|>",
    "<\uff5cend\u2581of\u2581sentence\uff5c>", "<|end_of_text|>", "<|endoftext|>",
)  # fmt: skip


def byte_alphabet() -> dict[str, int]:
    """The character that byte-level vocabularies write for each byte: GPT-2's bytes_to_unicode, inverted."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + i): byte for i, byte in enumerate(rest)}


ALPHABET = byte_alphabet()


# ----------------------------------------------------------------------------------------------------------
# A tokenizer in the engine's terms


@dataclass
class Added:
    """A token that is cut out of the text before it is split, as the text comes or once it is normalized."""

    id: int
    text: str
    special: bool = True
    normalized: bool = False
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    match: str = ""  # what is looked for, if that is not the text itself


@dataclass
class Vocabulary:
    """What the sections hold. Token texts are as the source writes them until sections() is called."""

    tokens: dict[int, str] = field(default_factory=dict)
    look_up: set[int] = field(default_factory=set)  # the ids that text can be looked up as
    merges: list[tuple[int, int, int, int]] = field(default_factory=list)  # left, right, rank, result
    added: list[Added] = field(default_factory=list)
    special: set[int] = field(default_factory=set)
    byte_tokens: dict[int, int] = field(default_factory=dict)  # byte -> id
    decode_bytes: bool = False  # "<0x0A>" decodes to a newline
    metaspace: bool = False  # spaces are written as U+2581
    steps: list[tuple[int, str, str]] = field(default_factory=list)  # kind, from, to
    program: pattern.Program = field(default_factory=lambda: pattern.Program(False))
    flags: int = 0
    bos: int | None = None
    eos: int | None = None
    unknown: int | None = None
    stops: list[int] = field(default_factory=list)
    around: tuple[list[int], list[int]] = ([], [])  # what goes before and after a text, where that is known

    def find(self, text: str | None) -> int | None:
        """The id of a token by its text."""
        for item in self.added:
            if item.text == text:
                return item.id
        return next((i for i, token in self.tokens.items() if token == text), None)

    def text_bytes(self, text: str) -> bytes:
        """What a token's text decodes to."""
        if self.flags & BYTE_LEVEL and all(char in ALPHABET for char in text):
            return bytes(ALPHABET[char] for char in text)
        if self.decode_bytes and (byte := byte_of(text)) is not None:
            return bytes([byte])
        return utf8(text.replace(METASPACE, " ") if self.metaspace else text)

    def normal_text(self, text: str) -> str:
        """What the normalisation steps make of the text of an added token."""
        for kind, old, new in self.steps:
            if kind == TO_NFC:
                text = unicodedata.normalize("NFC", text)
            elif kind == PREPEND:
                text = new + text
            elif kind == REPLACE:
                text = text.replace(old, new)
        return text

    def sections(self) -> dict[int, bytes]:
        """The sections' payloads."""
        n = 1 + max([*self.tokens, *(item.id for item in self.added)], default=-1)
        if n == 0:
            raise ValueError("the tokenizer has no tokens")
        if n > 1 << 24:
            raise ValueError(f"the tokenizer has an id of {n - 1}, which is not supported")
        texts = self.tokens | {
            item.id: item.match or item.text
            for item in self.added
            if not item.special or item.id not in self.tokens
        }
        data = [self.text_bytes(texts[i]) if i in texts else b"" for i in range(n)]
        types = np.zeros(n, np.uint8)
        for i in range(n):
            if i not in texts:
                types[i] = ABSENT
            elif self.decode_bytes and byte_of(texts[i]) is not None:
                types[i] = BYTE
        types[list(self.special)] |= SPECIAL
        order = sorted((data[i], i) for i in self.look_up if data[i])
        merges = np.array(self.merges, np.uint32).reshape(-1, 4)
        merges = merges[np.lexsort((merges[:, 1], merges[:, 0]))]
        counts = np.bincount(merges[:, 0], minlength=n)
        pattern_bytes, class_bytes = self.program.sections()
        info = [
            self.flags,
            n,
            *(NONE if i is None else i for i in (self.bos, self.eos, self.unknown)),
            0,
            0,
            0,
        ]
        out = {
            TOKENIZER: pack(info + [self.byte_tokens.get(byte, NONE) for byte in range(256)]),
            STARTS: pack(np.cumsum([0, *map(len, data)])),
            BYTES: b"".join(data),
            TYPES: types.tobytes(),
            ORDER: pack([i for _, i in order]),
            MERGE_STARTS: pack([0, *np.cumsum(counts)]),
            MERGES: pack(merges[:, 1:].ravel()),
            CLASSES: class_bytes,
        }
        if self.stops:
            out[STOP] = pack(sorted(set(self.stops)))
        if max(map(len, self.around)) > 1:
            if beyond := [i for side in self.around for i in side if i >= n]:
                raise ValueError(f"the post-processor adds the token {beyond[0]}, which does not exist")
            out[AROUND] = pack([*map(len, self.around), *self.around[0], *self.around[1]])
        if self.added:
            out[ADDED] = self.added_section()
        if pattern_bytes:
            out[PATTERN] = pattern_bytes
        if self.steps:
            out[NORMALIZER] = b"".join(
                struct.pack("<3I", kind, len(utf8(old)), len(utf8(new))) + utf8(old) + utf8(new)
                for kind, old, new in self.steps
            )
        if any(kind == TO_NFC for kind, _, _ in self.steps):
            out[NFC] = nfc_section()
        return out

    def added_section(self) -> bytes:
        groups: tuple[dict[bytes, Added], dict[bytes, Added]] = ({}, {})
        for item in self.added:
            groups[item.normalized].setdefault(utf8(item.match or item.text), item)
        heads, blob = b"", b""
        for group in groups:
            for text, item in sorted(group.items()):
                flags = (
                    ADDED_SPECIAL * item.special
                    | ADDED_LSTRIP * item.lstrip
                    | ADDED_RSTRIP * item.rstrip
                    | ADDED_WORD * item.single_word
                )
                heads += struct.pack("<4I", item.id, flags, len(blob), len(text))
                blob += text
        return struct.pack("<2I", len(groups[0]), len(groups[1])) + heads + blob


def added_ids(section: bytes) -> set[int]:
    """The ids in LLM_ADDED."""
    if not section:
        return set()
    n = sum(struct.unpack_from("<2I", section))
    return {struct.unpack_from("<I", section, 8 + 16 * i)[0] for i in range(n)}


def new_program(metaspace: bool, single_word: bool) -> pattern.Program:
    """A program whose classes 0 and 1 are what added tokens need."""
    program = pattern.Program(metaspace)
    program.class_number(pattern.named_set("STRIPPED"))
    program.class_number(pattern.named_set("SINGLE_WORD") if single_word else 0)
    return program


def pack(numbers: Iterable[int]) -> bytes:
    return np.asarray(numbers, dtype=np.int64).astype("<u4").tobytes()


def byte_of(text: str) -> int | None:
    """The byte that a token of the form <0x0A> stands for."""
    found = re.fullmatch(r"<0x([0-9a-fA-F]{2})>", text) if text.startswith("<0x") else None
    return int(found[1], 16) if found else None


def utf8(text: str) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError(f"the tokenizer's text {text!r} has a lone surrogate") from None


def nfc_section() -> bytes:
    """LLM_NFC from the tables of the tokenizers library."""
    orders = iter_pairs(pattern.unpack(unicode_tables.COMBINING))
    numbers = pattern.unpack(unicode_tables.DECOMPOSITIONS)
    parts: dict[int, list[int]] = {}
    at = 0
    while at < len(numbers):
        parts[numbers[at]] = numbers[at + 2 : at + 2 + numbers[at + 1]]
        at += 2 + numbers[at + 1]
    flat = pattern.unpack(unicode_tables.COMPOSITES)
    pairs = sorted(zip(flat[::3], flat[1::3], flat[2::3], strict=True))
    backward = {second for _, second, _ in pairs if second not in orders}
    backward |= {*range(0x1161, 0x1176), *range(0x11A8, 0x11C3)}  # vowels and tails of Hangul syllables
    chars, points = b"", []
    for code in sorted({*orders, *parts, *backward}):
        order = orders.get(code, 0) or 256 * (code in backward)
        chars += struct.pack("<4I", code, order, len(points), len(parts.get(code, [])))
        points += parts.get(code, [])
    head = struct.pack("<3I", len(chars) // 16, len(points), len(pairs))
    return head + chars + pack(points) + pack([n for pair in pairs for n in pair])


def iter_pairs(numbers: list[int]) -> dict[int, int]:
    return dict(zip(numbers[::2], numbers[1::2], strict=True))


# ----------------------------------------------------------------------------------------------------------
# tokenizer.json


def get(value: Mapping[str, Any], key: str, kind: type | tuple[type, ...], where: str) -> Any:
    """value[key], which must be of that type."""
    if not isinstance(value, Mapping) or not isinstance(value.get(key), kind) or isinstance(value[key], bool):
        raise ValueError(f"{where} has no usable {key!r}")
    return value[key]


def unsupported(what: str, part: Mapping[str, Any]) -> ValueError:
    text = json.dumps(part, ensure_ascii=False)
    return ValueError(f"tokenizer.json: the {what} {text[:200]} is not supported")


def flat_list(part: Mapping[str, Any] | None, key: str, what: str) -> list[dict[str, Any]]:
    """A component as the list of its steps: nested sequences are taken apart."""
    if part is None:
        return []
    if not isinstance(part, dict):
        raise ValueError(f"tokenizer.json: the {what} is not an object")
    if part.get("type") == "Sequence":
        return [
            step
            for inner in get(part, key, list, f"tokenizer.json: the {what}")
            for step in flat_list(inner, key, what)
        ]
    return [dict(part)]


def literal_pattern(part: Mapping[str, Any]) -> str | None:
    """The text of {"pattern": {"String": text}}, or of a regular expression without special characters."""
    given = part.get("pattern")
    if isinstance(given, dict) and isinstance(given.get("String"), str):
        return given["String"]
    if (
        isinstance(given, dict)
        and isinstance(given.get("Regex"), str)
        and re.fullmatch(r"[\w ]+", given["Regex"])
    ):
        return given["Regex"]
    return None


def read_normalizer(vocabulary: Vocabulary, steps: list[dict[str, Any]]) -> None:
    for step in steps:
        kind = step.get("type")
        if kind == "NFC":
            vocabulary.steps.append((TO_NFC, "", ""))
        elif kind == "Prepend" and isinstance(step.get("prepend"), str):
            if vocabulary.metaspace and " " in step["prepend"]:
                raise unsupported("normalizer", step)
            vocabulary.steps.append((PREPEND, "", step["prepend"]))
        elif kind == "Replace" and literal_pattern(step) and isinstance(step.get("content"), str):
            old, new = literal_pattern(step) or "", step["content"]
            if (old, new) == (" ", METASPACE):
                vocabulary.metaspace = True
                old, new = METASPACE, " "
            elif " " in old or METASPACE in old or (vocabulary.metaspace and " " in new):
                raise unsupported("normalizer", step)
            vocabulary.steps.append((REPLACE, old, new))
        else:
            raise unsupported("normalizer", step)
    if vocabulary.metaspace:
        vocabulary.steps = [(kind, old, new.replace(METASPACE, " ")) for kind, old, new in vocabulary.steps]


def read_pre_tokenizer(vocabulary: Vocabulary, steps: list[dict[str, Any]]) -> None:
    """The pre-tokenizer as stages and flags. vocabulary.metaspace says what its normalizer did to spaces."""
    for number, step in enumerate(steps):
        kind = step.get("type")
        program = vocabulary.program
        if vocabulary.flags & BYTE_LEVEL:
            raise unsupported("pre-tokenizer after ByteLevel", step)
        if kind == "ByteLevel":
            if step.get("add_prefix_space", True):
                if program.stages:
                    raise unsupported("pre-tokenizer after a split", step)
                vocabulary.flags |= PREFIX_SPACE
            if vocabulary.metaspace:
                raise unsupported("pre-tokenizer", step)
            vocabulary.flags |= BYTE_LEVEL
            if step.get("use_regex", True):
                program.add_stage(pattern.Parser(pattern.GPT2).parse(), pattern.SPLITS["Isolated"])
        elif kind == "Metaspace":
            if number > 0 or step.get("replacement", METASPACE) != METASPACE:
                raise unsupported("pre-tokenizer", step)
            scheme = step.get("prepend_scheme")
            if scheme is None:
                scheme = "always" if step.get("add_prefix_space", True) else "never"
            if scheme not in ("always", "first", "never"):
                raise unsupported("pre-tokenizer", step)
            vocabulary.metaspace = program.metaspace = True
            if (REPLACE, METASPACE, " ") not in vocabulary.steps:
                vocabulary.steps.append((REPLACE, METASPACE, " "))
            vocabulary.flags |= {"always": PREFIX_SPACE, "first": PREFIX_SPACE | PREFIX_FIRST, "never": 0}[
                scheme
            ]
            if step.get("split", True):
                program.add_stage(pattern.literal(METASPACE), pattern.SPLITS["MergedWithNext"])
        elif kind == "Digits":
            how = "Isolated" if step.get("individual_digits", False) else "Contiguous"
            node = pattern.Node("class", bits=pattern.named_set("NUMERIC"))
            program.add_stage(node, pattern.SPLITS[how])
        elif (
            kind == "Split"
            and str(step.get("behavior")) in pattern.SPLITS
            and isinstance(step.get("pattern"), dict)
        ):
            given = step["pattern"]
            split = pattern.SPLITS[step["behavior"]] | pattern.INVERT * bool(step.get("invert"))
            if isinstance(given.get("String"), str):
                program.add_stage(pattern.literal(given["String"]), split)
            elif isinstance(given.get("Regex"), str):
                program.add_stage(pattern.Parser(given["Regex"]).parse(), split)
            else:
                raise unsupported("pre-tokenizer", step)
        else:
            raise unsupported("pre-tokenizer", step)


def read_decoder(vocabulary: Vocabulary, steps: list[dict[str, Any]], whole: Any) -> None:
    kinds = [step.get("type") for step in steps]
    spaces = fused = False
    for step, kind in zip(steps, kinds, strict=True):
        if kind == "ByteLevel" and vocabulary.flags & BYTE_LEVEL:
            fused = True
        elif kind == "Metaspace" and vocabulary.metaspace and kinds == ["Metaspace"]:
            scheme = step.get("prepend_scheme", "always" if step.get("add_prefix_space", True) else "never")
            spaces = True
            vocabulary.flags |= STRIP_SPACES if scheme != "never" else 0
        elif kind == "Replace" and (literal_pattern(step), step.get("content")) == (METASPACE, " "):
            spaces = True
        elif kind == "ByteFallback":
            vocabulary.decode_bytes = True
        elif kind == "Fuse":
            fused = True
        elif kind == "Strip" and fused and step.get("content") == " " and not step.get("stop"):
            if step.get("start") not in (0, 1):
                raise unsupported("decoder", step)
            vocabulary.flags |= STRIP_SPACE * step["start"]
        else:
            raise unsupported("decoder", whole)
    byte_level = bool(vocabulary.flags & BYTE_LEVEL)
    if byte_level != ("ByteLevel" in kinds) or vocabulary.metaspace != spaces or not kinds:
        raise unsupported("decoder does not undo the pre-tokenizer:", whole or {})


def read_post_processor(vocabulary: Vocabulary, steps: list[dict[str, Any]]) -> None:
    where = "tokenizer.json: the post-processor"
    before: list[int] = []
    after: list[int] = []
    for step in steps:
        if step.get("type") == "ByteLevel":
            continue
        if step.get("type") in ("BertProcessing", "RobertaProcessing"):
            first, last = (as_ids(get(step, key, list, where)[1:]) for key in ("cls", "sep"))
            before, after = first + before, after + last
            continue
        if step.get("type") != "TemplateProcessing":
            raise unsupported("post-processor", step)
        sides: list[list[int]] = [[]]
        for item in get(step, "single", list, where):
            if isinstance(item, dict) and "Sequence" in item:
                sides.append([])
                continue
            name = get(get(item, "SpecialToken", dict, where), "id", str, where)
            token = get(get(step, "special_tokens", dict, where), name, dict, where)
            sides[-1] += as_ids(get(token, "ids", list, where))
        if len(sides) != 2:
            raise unsupported("post-processor", step)
        before, after = sides[0] + before, after + sides[1]
    if max(len(before), len(after)) > MAX_AROUND:
        raise ValueError(f"{where} puts more than {MAX_AROUND} tokens before or after a text")
    vocabulary.around = (before, after)
    for ids, flag, key in ((before, ADD_BOS, "bos"), (after, ADD_EOS, "eos")):
        vocabulary.flags |= flag * bool(ids)
        if len(ids) == 1:
            setattr(vocabulary, key, ids[0])


def read_model(vocabulary: Vocabulary, model: Mapping[str, Any]) -> None:
    where = "tokenizer.json: the model"
    if model.get("type", "BPE") != "BPE" or "merges" not in model:
        raise ValueError(f"{where} is of type {model.get('type')!r}; only BPE is supported")
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise ValueError(f"{where} has {key!r}, which is not supported")
    ids = get(model, "vocab", dict, where)
    if any(not isinstance(i, int) or not 0 <= i < 1 << 24 for i in ids.values()):
        raise ValueError(f"{where} has a vocabulary with strange ids")
    vocabulary.tokens = {i: text for text, i in ids.items()}
    if len(vocabulary.tokens) != len(ids):
        raise ValueError(f"{where} has two tokens of the same id")
    merges = {}
    for rank, merge in enumerate(get(model, "merges", list, where)):
        pair = merge.split(" ") if isinstance(merge, str) else merge
        try:
            left, right = pair
            merges[ids[left], ids[right]] = (ids[left], ids[right], rank, ids[left + right])
        except (TypeError, ValueError):
            raise ValueError(f"{where} has the strange merge {merge!r}") from None
        except KeyError:
            raise ValueError(
                f"{where} has the merge {merge!r}, whose tokens are not in the vocabulary"
            ) from None
    vocabulary.merges = list(merges.values())
    if model.get("unk_token") is not None:
        if not isinstance(model["unk_token"], str) or model["unk_token"] not in ids:
            raise ValueError(
                f"{where} has an unknown token {model['unk_token']!r} that is not in the vocabulary"
            )
        vocabulary.unknown = ids[model["unk_token"]]
    vocabulary.flags |= FUSE_UNKNOWN * bool(model.get("fuse_unk")) | WHOLE_WORDS * bool(
        model.get("ignore_merges")
    )
    if vocabulary.flags & BYTE_LEVEL:
        vocabulary.byte_tokens = {byte: ids[char] for char, byte in ALPHABET.items() if char in ids}
        vocabulary.look_up = {i for text, i in ids.items() if all(char in ALPHABET for char in text)}
        if model.get("byte_fallback") and len(vocabulary.byte_tokens) < 256:
            raise ValueError(f"{where} lacks bytes and has 'byte_fallback', which is not supported")
        return
    byte_ids = {i for text, i in ids.items() if vocabulary.decode_bytes and byte_of(text) is not None}
    if found := next((m for m in vocabulary.merges if not byte_ids.isdisjoint((m[0], m[1], m[3]))), None):
        raise ValueError(
            f"{where} has a merge to {vocabulary.tokens[found[3]]!r} with a token for a byte, which is not "
            "supported"
        )
    vocabulary.look_up = {
        i for text, i in ids.items() if not (vocabulary.metaspace and " " in text)
    } - byte_ids
    if model.get("byte_fallback"):
        tokens = {byte: ids[f"<0x{byte:02X}>"] for byte in range(256) if f"<0x{byte:02X}>" in ids}
        if 0 < len(tokens) < 256:
            raise ValueError(f"{where} has 'byte_fallback' but tokens for {len(tokens)} of 256 bytes only")
        vocabulary.byte_tokens = tokens
        vocabulary.flags |= BYTE_FALLBACK * bool(tokens)


def read_added(vocabulary: Vocabulary, items: Iterable[Mapping[str, Any]], where: str) -> None:
    known = {item.text for item in vocabulary.added}
    for item in items:
        text, number = get(item, "content", str, where), get(item, "id", int, where)
        if not 0 <= number < 1 << 24:
            raise ValueError(f"{where} has the id {number}, which is not supported")
        if not text or text in known:
            continue
        switches = {
            key: bool(item.get(key)) for key in ("special", "normalized", "lstrip", "rstrip", "single_word")
        }
        vocabulary.added.append(Added(number, text, **switches))
        known.add(text)


def from_tokenizer_json(spec: Mapping[str, Any]) -> Vocabulary:
    """A Vocabulary from the contents of a tokenizer.json."""
    out = Vocabulary()
    read_added(
        out,
        get(spec, "added_tokens", list, "tokenizer.json") if spec.get("added_tokens") else [],
        "tokenizer.json: an added token",
    )
    read_normalizer(out, flat_list(spec.get("normalizer"), "normalizers", "normalizer"))
    out.program = new_program(out.metaspace, any(item.single_word for item in out.added))
    by_normalizer = out.metaspace
    read_pre_tokenizer(out, flat_list(spec.get("pre_tokenizer"), "pretokenizers", "pre-tokenizer"))
    if out.flags & PREFIX_FIRST and any(kind == REPLACE and not new for kind, _, new in out.steps):
        raise ValueError(
            "tokenizer.json: the normalizer deletes text and the pre-tokenizer puts a space before the first "
            "text only, which is not supported together"
        )
    read_decoder(out, flat_list(spec.get("decoder"), "decoders", "decoder"), spec.get("decoder"))
    read_post_processor(out, flat_list(spec.get("post_processor"), "processors", "post-processor"))
    read_model(out, get(spec, "model", dict, "tokenizer.json"))
    alike: dict[str, str] = {}  # the normalized added tokens by what is looked for
    merged: set[int] = set()  # the tokens that merge, once they are needed
    for item in out.added:
        if item.normalized:
            item.match = out.normal_text(item.text)
            if alike.setdefault(item.match, item.text) != item.text:
                raise ValueError(
                    f"tokenizer.json: the added tokens {alike[item.match]!r} and {item.text!r} are the same "
                    "when normalized; the tokenizers library takes one by chance, which is not supported"
                )
        strips = item.lstrip or item.rstrip
        spaced = " " in (item.match or item.text) or METASPACE in (item.match or item.text)
        if item.normalized and out.metaspace and (strips or (spaced and not by_normalizer)):
            raise ValueError(
                f"tokenizer.json: the normalized added token {item.text!r} has or takes along white space, "
                "which this tokenizer writes as U+2581; that is not supported"
            )
        if item.special or item.match in ("", out.tokens.get(item.id, item.match)):
            continue
        merged = merged or {i for left, right, _, result in out.merges for i in (left, right, result)}
        if item.id in merged or len(out.tokens[item.id]) == 1 or out.flags & WHOLE_WORDS:
            raise ValueError(
                f"tokenizer.json: the added token {item.text!r} is looked for as {item.match!r} but is "
                f"the piece {out.tokens[item.id]!r} too, which is not supported"
            )
    out.special = {item.id for item in out.added if item.special}
    return out


# ----------------------------------------------------------------------------------------------------------
# tekken.json

# The first special tokens, where the file does not list them
TEKKEN_SPECIAL = (
    "<unk> <s> </s> [INST] [/INST] [AVAILABLE_TOOLS] [/AVAILABLE_TOOLS] [TOOL_RESULTS] [/TOOL_RESULTS] "
    "[TOOL_CALLS] [IMG] <pad> [IMG_BREAK] [IMG_END] [PREFIX] [MIDDLE] [SUFFIX] [SYSTEM_PROMPT] "
    "[/SYSTEM_PROMPT] [TOOL_CONTENT]"
).split()


def from_tekken(spec: Mapping[str, Any]) -> Vocabulary:
    """A Vocabulary from the contents of Mistral's tekken.json: bytes that merge in the order of their ids."""
    where = "tekken.json"
    config = get(spec, "config", dict, where)
    size, n_special = (
        get(config, f"default_{name}", int, where) for name in ("vocab_size", "num_special_tokens")
    )
    special = dict(enumerate(TEKKEN_SPECIAL))
    for item in spec.get("special_tokens") or []:
        special[get(item, "rank", int, where)] = get(item, "token_str", str, where)
    items = get(spec, "vocab", list, where)[: max(0, size - n_special)]
    if not 0 < n_special <= 1 << 16 or len(items) != size - n_special:
        raise ValueError(f"{where} has {len(items)} tokens and {n_special} special ones, which is not {size}")
    letters = {byte: char for char, byte in ALPHABET.items()}
    ids: dict[str, int] = {}
    for i, item in enumerate(items):
        try:
            data = base64.b64decode(get(item, "token_bytes", str, where), validate=True)
        except ValueError:
            raise ValueError(f"{where}: the token {i} is not base 64") from None
        if item.get("rank") != i:
            raise ValueError(f"{where} has the token {i} out of order")
        ids["".join(letters[byte] for byte in data)] = n_special + i
    out = from_tokenizer_json(
        {
            "added_tokens": [
                {"id": i, "content": special.get(i, f"<SPECIAL_{i}>"), "special": True}
                for i in range(n_special)
            ],
            "pre_tokenizer": {
                "type": "Sequence",
                "pretokenizers": [
                    {
                        "type": "Split",
                        "pattern": {"Regex": get(config, "pattern", str, where)},
                        "behavior": "Isolated",
                    },
                    {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
                ],
            },
            "decoder": {"type": "ByteLevel"},
            "model": {"type": "BPE", "vocab": ids, "merges": [], "ignore_merges": True},
        }
    )
    if len(out.byte_tokens) != 256 or len(ids) != len(items):
        raise ValueError(f"{where} has a token twice or lacks a byte")
    out.merges = [
        (ids[text[:cut]], ids[text[cut:]], i, i)
        for text, i in ids.items()
        for cut in range(1, len(text))
        if text[:cut] in ids and text[cut:] in ids
    ]
    out.bos, out.eos = out.find("<s>"), out.find("</s>")
    return out


# ----------------------------------------------------------------------------------------------------------
# Pieces with scores: tokenizer.model, GGUF's "llama", tokenizer.bin


def merges_from_scores(pieces: list[tuple[str, float, int]]) -> list[tuple[int, int, int, int]]:
    """Every way to put a piece together from two others, best score first, as sentencepiece merges them."""
    ids = {text: i for i, (text, _, kind) in enumerate(pieces) if kind in (NORMAL, USER_DEFINED, UNUSED)}
    scores = sorted({score for _, score, kind in pieces if kind in (NORMAL, UNUSED)}, reverse=True)
    ranks = {score: rank for rank, score in enumerate(scores)}
    out = []
    for i, (text, score, kind) in enumerate(pieces):
        if kind not in (NORMAL, UNUSED) or len(text) < 2 or ids[text] != i:
            continue
        found = [
            (ids[text[:cut]], ids[text[cut:]], ranks[score], i)
            for cut in range(1, len(text))
            if text[:cut] in ids and text[cut:] in ids
        ]
        if kind == UNUSED and found:
            raise ValueError(f"the unused piece {text!r} can come about by merging, which is not supported")
        if kind == NORMAL and (lacks := [char for char in text if char not in ids]):
            raise ValueError(
                f"the piece {text!r} has the character {lacks[0]!r}, which is no piece itself; that is "
                "not supported"
            )
        out += found
    return out


def from_pieces(
    pieces: list[tuple[str, float, int]],
    *,
    prefix: bool,
    prefix_first: bool = False,
    trim: bool = False,
    byte_fallback: bool | None = None,
) -> Vocabulary:
    """A Vocabulary as sentencepiece's BPE has it.

    pieces        (text, score, type as in sentencepiece_model.proto), by id
    prefix        a space goes before each text between control tokens; with prefix_first before the first
    trim          white space is removed at the ends and collapsed between
    byte_fallback None: if there is a piece for every byte
    """
    out = Vocabulary(metaspace=True, decode_bytes=True)
    out.tokens = {i: text for i, (text, _, _) in enumerate(pieces)}
    out.program = new_program(True, False)
    out.merges = merges_from_scores(pieces)
    out.look_up = {
        i for i, (text, _, kind) in enumerate(pieces) if kind in (NORMAL, UNUSED) and " " not in text
    }
    out.special = {i for i, (_, _, kind) in enumerate(pieces) if kind in (UNKNOWN, CONTROL)}
    out.added = [
        Added(i, text) for i, (text, _, kind) in enumerate(pieces) if kind in (UNKNOWN, CONTROL) and text
    ]
    out.added += [
        Added(i, text, special=False, normalized=True, match=text.replace(METASPACE, " "))
        for i, (text, _, kind) in enumerate(pieces)
        if kind == USER_DEFINED and text
    ]
    for i, (text, _, kind) in enumerate(pieces):
        if kind == BYTE_PIECE:
            found = re.fullmatch(r"<0x([0-9A-F]{2})>", text)
            if not found:
                raise ValueError(f"the byte piece {text!r} is not of the form <0x0A>")
            out.byte_tokens[int(found[1], 16)] = i
        elif kind == UNKNOWN:
            out.unknown = i
    if byte_fallback is None:
        byte_fallback = len(out.byte_tokens) == 256
    if byte_fallback and len(out.byte_tokens) < 256:
        raise ValueError(
            f"the tokenizer has byte fallback but pieces for {len(out.byte_tokens)} of 256 bytes only"
        )
    out.flags = FUSE_UNKNOWN | BYTE_FALLBACK * byte_fallback | STRIP_SPACE * prefix
    if not byte_fallback:
        out.byte_tokens = {}
    if trim:
        out.steps.append((TRIM, "", ""))
    if prefix and not prefix_first:
        out.steps.append((PREPEND, "", " "))
    elif prefix:
        out.flags |= PREFIX_SPACE | PREFIX_FIRST
    out.steps.append((REPLACE, METASPACE, " "))
    return out


def from_sentencepiece(model: Pieces, where: str, legacy: bool = True) -> Vocabulary:
    """A Vocabulary from a tokenizer.model."""
    trainer, normalizer = model.trainer, model.normalizer
    if normalizer.get(2):
        name = normalizer.get(1, b"?").decode("utf-8", "replace")
        raise ValueError(f"{where} normalises by {name!r}; only 'identity' is supported")
    if trainer.get(24) or not normalizer.get(5, 1):
        raise ValueError(
            f"{where} treats white space as a suffix or does not escape it, which is not supported"
        )
    prefix = bool(normalizer.get(3, 1))
    out = from_pieces(
        model.pieces,
        prefix=prefix,
        prefix_first=prefix and not legacy,
        trim=bool(normalizer.get(4, 1)),
        byte_fallback=bool(trainer.get(35, 0)),
    )
    out.bos, out.eos = model.special_id(41, 1), model.special_id(42, 2)
    return out


# ----------------------------------------------------------------------------------------------------------
# Entry points


def as_ids(value: Any) -> list[int]:
    values = value if isinstance(value, list) else [value]
    return [
        int(i)
        for i in values
        if isinstance(i, (int, np.integer)) and not isinstance(i, bool) and 0 <= i < NONE
    ]


def add_stops(out: Vocabulary, ids: list[int], template: str) -> None:
    """Sets the stop tokens: ids, as the model's files name them, and the ends of turns in its template."""
    n = 1 + max([*out.tokens, *(item.id for item in out.added)], default=-1)
    ends = [out.find(text) for text in TURN_ENDS if text in template]
    out.stops = [i for i in [*ids, *ends] if i is not None and i < n]
    if out.eos is None and ids and ids[0] < n:
        out.eos = ids[0]


def chat_templates(path: Path) -> dict[str, str]:
    """The chat templates of a model's directory by name, in the order in which transformers looks:
    chat_template.jinja and additional_chat_templates, else those of tokenizer_config.json, else that of
    chat_template.json."""
    files = {"default": path / "chat_template.jinja"} if (path / "chat_template.jinja").is_file() else {}
    files |= {file.stem: file for file in sorted((path / "additional_chat_templates").glob("*.jinja"))}
    if files:
        return {name: file.read_text(encoding="utf-8") for name, file in files.items()}
    for file in ("tokenizer_config.json", "chat_template.json"):
        found = read_json(path / file, required=False).get("chat_template")
        items = found if isinstance(found, list) else [{"name": "default", "template": found}]
        named = {item.get("name"): item.get("template") for item in items if isinstance(item, dict)}
        if templates := {str(name): text for name, text in named.items() if text and isinstance(text, str)}:
            return templates
    return {}


def from_directory(path: Path, template: str | None = None) -> dict[int, bytes]:
    """The tokenizer sections from a model's directory, from all of its files that have a say.
    template: the one whose ends of turns are stop tokens; None: the directory's own."""
    path = Path(path)
    if any((path / name).is_file() for name in TOKENIZER_FILES[:-1]):
        found = auto_tokenizer.read(path)
        out = from_found(found)
        named = found.named
    elif (path / "tekken.json").is_file():
        out = from_tekken(read_json(path / "tekken.json", required=False))
        out.flags |= ADD_BOS * (out.bos is not None)
        named = {}
    else:
        raise ValueError(f"{path} has no tokenizer.json, tokenizer.model, vocab.json or tekken.json")
    stops = [] if out.eos is None else [out.eos]
    for name, side in zip(("bos", "eos"), out.around, strict=True):
        number = out.find(named.get(f"{name}_token"))
        if number is not None and len(side) != 1:
            setattr(out, name, number)
        if number is not None and name == "eos":
            stops.append(number)
    main = read_json(path / "config.json", required=False)
    inner = main.get("text_config")  # of models that also see
    for source in (read_json(path / "generation_config.json", required=False), main, inner):
        stops += as_ids(source.get("eos_token_id")) if isinstance(source, dict) else []
    add_stops(out, stops, "\n".join(chat_templates(path).values()) if template is None else template)
    return out.sections()


def from_found(found: Found) -> Vocabulary:
    """A Vocabulary from what auto_tokenizer found."""
    if found.pieces is None:
        return from_tokenizer_json(found.spec)
    out = from_sentencepiece(found.pieces, "tokenizer.model", found.legacy)
    users = [item for item in out.added if not item.special]
    out.added = []
    read_added(out, found.spec["added_tokens"], "the tokenizer's files: an added token")
    out.added += users  # also one that is an added token: what is cut out first
    out.program = new_program(True, any(item.single_word for item in out.added))
    for item in out.added:
        item.match = item.text.replace(METASPACE, " ") if item.normalized else ""
    out.special = {item.id for item in out.added if item.special}
    read_post_processor(out, [found.spec["post_processor"]])
    return out


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
    out.flags &= ~(ADD_BOS | ADD_EOS)
    out.flags |= ADD_BOS * (adds_bos and out.bos is not None)
    out.flags |= ADD_EOS * bool(fields.get("tokenizer.ggml.add_eos_token", False) and out.eos is not None)
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


def from_llama2c(path: Path, vocab_size: int, template: str | None = None) -> dict[int, bytes]:
    """The tokenizer sections from llama2.c's tokenizer.bin with vocab_size tokens. template: one whose ends
    of turns are stop tokens too."""
    path = Path(path)
    data = path.read_bytes()
    pieces: list[tuple[str, float, int]] = []
    at = 4  # behind the length of the longest token
    for i in range(vocab_size):
        if len(data) - at < 8:
            raise ValueError(f"{path.name} ends after {i} of {vocab_size} tokens")
        score, size = struct.unpack_from("<fi", data, at)
        at += 8
        if not 0 <= size <= len(data) - at:
            raise ValueError(f"{path.name}: token {i} has a length of {size}")
        try:
            text = data[at : at + size].decode("utf-8")
        except UnicodeDecodeError:
            raise ValueError(f"{path.name}: token {i} is not UTF-8") from None
        at += size
        kind = UNKNOWN if i == 0 else CONTROL if i < 3 else NORMAL
        if i in (1, 2):
            text = text.strip("\n") or ("<s>", "</s>")[i - 1]
        if kind == NORMAL and re.fullmatch(r"<0x[0-9A-F]{2}>", text):
            kind = BYTE_PIECE
        pieces.append((text.replace(" ", METASPACE), score, kind))
    if at != len(data):
        raise ValueError(f"{path.name} has more than the {vocab_size} tokens of the model")
    out = from_pieces(pieces, prefix=True)
    out.bos, out.eos = 1, 2
    out.flags |= ADD_BOS
    add_stops(out, [1, 2], template or "")  # llama2.c ends a story at BOS
    return out.sections()


# ----------------------------------------------------------------------------------------------------------
# Checking a written file against the original


def hard_strings(specials: Iterable[str] = ()) -> list[str]:
    """Texts that tokenizers disagree about. Of many specials, most come alone only."""
    # fmt: off
    words = [
        "", " ", "  ", "   ", "\n", "\n\n", " \n", "\n ", "\t", "\r\n", "\r", "\u00a0", "\u3000", "\u2581",
        "\u2581a", "a", " a", "  a", "a ", "a  ", "a b", "a  b", "a   b", " a b ", "Hello", "Hello world",
        "HELLO World's", "don't", "DON'T", "I'll we've they're it's i'd I'm", "'s", "'S", "'\u017f",
        "x'\u017f", "'ll'LL", "1", "12", "123", "1234", "12345", "1 2", "1,234.56", "\u0661\u0662\u0663",
        "\u00bd", "\u2167", "\u4e00\u4e8c", "x1y22z333", ".", "...", "!?", " !", "\u3002", "\u300c\u300d",
        "a.b", "a,b", "a-b", "a_b", "a/b", "//", "\\n", "-->", "\u00e9", "e\u0301", "\u1e9b\u0323",
        "\u0344", "\u212b", "\uac00", "\u1100\u1161\u11a8", "\uac00\u11a8", "q\u0307\u0323", "\u0958",
        "\u2126", "\u0e01\u0e33", "\u0928\u093f", "\u05e9\u05c1", "\u0627\u0651",
        "\u4f60\u597d\u4e16\u754c", "\u3053\u3093\u306b\u3061\u306f", "\uc548\ub155",
        "\u0645\u0631\u062d\u0628\u0627", "\U0001f600", "\U0001f468\u200d\U0001f469\u200d\U0001f467",
        "\U0001f1e9\U0001f1ea", "\u2764\ufe0f", "\U000e0041", "\U0010ffff", "\ue000", "\u0378", "\ufffd",
        "\ufeff", "\u200b", "\x00", "a\x00b", "\x01\x02", "\x7f", "\x85", "\u2028", "<0x0A>", "<0xE2>",
        "<s>", "</s>", "<unk>", "<|endoftext|>", "<", "<|", "|>", "[INST]", "def f(x):\n    return x\n",
        "    indented\n\ttabbed", "for (int i = 0; i < n; i++) {\r\n}\r\n",
        "https://example.org/?q=a%20b#c", "camelCaseWord SNAKE_CASE \u01c5ungla \u02b0x \u00aa",
        "\u0130stanbul \u00df \u1e9e \ufb03", "a\u200db", "x\u0300\u0301y", "tab\there", "trailing\n\n\n",
        "\n\n\nleading", "mixed \n \n\n x", " " * 17, "\n" * 9, "a" * 40, "7" * 11,
        # digits, contractions, white space, case, marks, punctuation before line ends, U+2581, bytes
        "1234567 12345678 123456789", "7a77b777c7777", " 1 22 333 4444", "-1.5e10",
        "\u00b2\u00b3 \u2460 \u09ea\u09eb", "it'S we'RE you'Ve i'M he'LL she'D don'T", "'re've'm'll'd't's",
        "'RE'VE'M'LL'D'T'S", "it\u2019s I\u2019LL", "'sa 'Tb 'llc", "''s",
        "a\u2003b\u2009c\u200ad\u202fe\u205ff\u1680g\u180eh", "\x0b\x0c\x1c\x1d\x1e\x1f", "\u2003\u2003a",
        "\u00a0a \u00a0 b", "\n \n", " \n \n ", "\n\t\n", "\r\r\n\n", " \r\n \r\n", "\t\t a", "  \n  a",
        "a \n", "a\n b", "a  \n\n  b", "\u2028\u2029", "a\x85b", "HTMLParser iPhone McDONALD'S aB Ab",
        "\u0391\u0392\u03b1 \u0416\u0436 \u01c4\u01c5\u01c6", "\u4e2dA\u4e2da\u30fc\u30a2\uff71\uff9e\u3005",
        "\u4f60\u597dabc\u4e16123\u3002\u3002\n", "\ud55c\uad6d\uc5b4 \u1112\u1161\u11ab",
        "a\u0323\u0301\u0307b", "\u0301a", " \u0301", "1\u0301", ".\u0301", "\u0915\u094d\u0937\u093f",
        "\u0e19\u0e49\u0e33", "\u05d0\u05b8\u05d1 \u200f\u0623\u064e", "\U0001f469\U0001f3fd\u200d\U0001f4bb",
        "\U0001f3f4\u200d\u2620\ufe0f 1\ufe0f\u20e3", "\U0001d400\U0001d7d9\U00020000", "//\n/", "!!!\n\n",
        ");\n\n}", " ...\n", "\u2026/\n", "{}\r\n", "a\u2581b", "\u2581\u2581", " \u2581", "\u2581 ",
        "\u2581\u2581a \u2581b", "<0x00><0xFF>", "<0xff>", "\x00\x00", "$1,000.00 +5% #1 @a ^b ~c `d`",
        "a\u00adb", "\u00df\u1e9e\u017f", "\ufb01\ufb03 \u2122 \uff21\uff11", "supercalifragilistic" * 12,
        "xyZ9" * 40, "\u4e2d\u6587" * 40, "\u00e9" * 60, "ab " * 60, "\u2581" * 9, "\t" * 9, " \n" * 9,
    ]
    # fmt: on
    marks = list(specials)
    first = marks[:24]
    out = words + marks[24:]
    out += [f"{a}{b}" for a, b in zip(words, words[7:], strict=False)]
    out += [f"{a} {b}" for a, b in zip(words[3:], words[31:], strict=False)]
    for mark in first:
        out += [
            mark,
            f"{mark}a",
            f"a{mark}",
            f"a {mark} b",
            f" {mark}\n",
            f"\n {mark}\u00a0x",
            f"1{mark}2_{mark}3",
            f"\u2581{mark}\u2581",
            f"{mark}{mark}",
            f"x{mark}{marks[0]} y",
        ]
    return out


def first_difference(ours: list[Any], theirs: list[Any], given: list[Any], what: str, who: str) -> None:
    """Raises ValueError at the first of the things given that does not become the same."""
    for mine, other, thing in zip(ours, theirs, given, strict=True):
        if mine != other:
            raise ValueError(
                f"{what} {shorten(thing)!r} becomes {shorten(mine)!r}, but {who} makes {shorten(other)!r} of "
                "it: this tokenizer cannot be reproduced exactly"
            )


def shorten(thing: Any) -> Any:
    """The beginning of a text or of a list of ids."""
    return thing if len(thing) <= 60 else thing[:20]


class Engine:
    """The tokenizer of a flat file, run by the C code."""

    def __init__(self, file: Path) -> None:
        from pyllm._llm import ffi, lib  # here, since reading tokenizers needs no engine

        self.ffi, self.lib = ffi, lib
        err = ffi.new("char[256]")
        self.model = lib.llm_open(str(file).encode(), err, 256)
        self.tokenizer = lib.llm_tokenizer_open(self.model, err, 256) if self.model else ffi.NULL
        if not self.tokenizer:
            lib.llm_close(self.model)
            raise ValueError(f"{file}: {ffi.string(err).decode('utf-8', 'replace')}")

        self.room = lib.llm_token_max_bytes(self.tokenizer)
        self.out, self.state = ffi.new("char[]", self.room), ffi.new("llm_decoder *")

    def close(self) -> None:
        self.lib.llm_tokenizer_close(self.tokenizer)
        self.lib.llm_close(self.model)

    def encode(self, text: str, flags: int) -> list[int]:
        data = text.encode("utf-8")
        room = len(data) + 16
        ids = self.ffi.new("uint32_t[]", room)
        n = self.lib.llm_encode(self.tokenizer, data, len(data), flags, ids, room, self.ffi.NULL, 0)
        return self.ffi.unpack(ids, n) if 0 < n <= room else []

    def decode(self, ids: list[int]) -> str:
        """The text of these tokens, special ones too."""
        decode, parts = self.lib.llm_decode, []
        for i in ids:
            n = decode(self.tokenizer, self.state, i, 1, self.out, self.room)
            parts.append(self.ffi.unpack(self.out, n) if n else b"")
        n = self.lib.llm_decode_end(self.state, self.out, self.room)
        return b"".join([*parts, self.ffi.unpack(self.out, n)]).decode("utf-8", "replace")

    def find(self, text: str) -> int:
        data = text.encode("utf-8")
        return self.lib.llm_token_find(self.tokenizer, data, len(data))


NO_BOS, WITH_SPECIAL = 1, 4  # enum llm_encode_flag


def auto_tokenizer_of(source: Path) -> Any:
    """The tokenizers library's part of what transformers makes of a directory, or None: where transformers 5
    is not installed, or cannot read the directory without running its code."""
    if importlib.util.find_spec("transformers") is None:
        return None
    try:
        import transformers

        if int(transformers.__version__.split(".")[0]) < 5:  # whose rules were others
            return None
        level = transformers.logging.get_verbosity()
        transformers.logging.set_verbosity_error()
        try:
            found = transformers.AutoTokenizer.from_pretrained(
                str(source), local_files_only=True, trust_remote_code=False
            )
        finally:
            transformers.logging.set_verbosity(level)
    except Exception:  # of a dozen kinds; the directory may need code of its own, or a library
        return None
    return getattr(found, "backend_tokenizer", None)


def open_reference(source: Path, found: Found) -> tuple[Any, str]:
    """The tokenizer of a directory as the tokenizers library has it, and who made it."""
    from tokenizers import Tokenizer

    reference, who = auto_tokenizer_of(source), "the transformers library"
    if reference is None and found.pieces is None:
        try:
            reference, who = Tokenizer.from_str(json.dumps(found.spec)), "the tokenizers library"
        except Exception as error:  # the library raises nothing narrower
            raise ValueError(f"the tokenizers library cannot read tokenizer.json ({error})") from None
    if reference is not None:
        reference.no_truncation()
        reference.no_padding()
    return reference, who


def own_texts(n: int, decode: Callable[[list[list[int]]], list[str]]) -> list[str]:
    """Texts of a vocabulary's own tokens, where it shows whether the merges and splits are the same: of eight
    tokens that are far apart, each token in one of them; and of some with other things between them."""
    step = n // 8 + 1
    out = decode([list(range(i, n, step)) for i in range(step)])
    some = decode([[i] for i in range(0, n, n // 4000 + 1)])
    for glue in ("'", "'l", "\n", "/\n", " ", "1", "22", "A", "z", ".", "\u0301", "\u4e00", METASPACE):
        out += [glue.join(["", *some[i : i + 8]]) for i in range(0, len(some), 8)]
    return out


def verify_json(engine: Engine, reference: Any, who: str, around: bool, as_text: bool) -> str:
    """verify, against a tokenizer of the tokenizers library. around: with what goes before and after a text;
    as_text: with special tokens as plain text."""
    added = reference.get_added_tokens_decoder()
    for number, token in sorted(added.items()):
        text = token.content
        if not token.normalized and engine.find(text) != number:
            raise ValueError(
                f"the added token {text!r} has the id {engine.find(text)}, but {who} gives it {number}: this "
                "tokenizer cannot be reproduced exactly"
            )
    kinds: dict[tuple, list[str]] = {}  # of each kind of added token one first, then all others
    for token in added.values():
        kind = (token.lstrip, token.rstrip, token.single_word, token.normalized, token.special)
        kinds.setdefault(kind, []).append(token.content)
    marks = [text for row in itertools.zip_longest(*kinds.values()) for text in row if text is not None]
    texts = hard_strings(marks)
    odd = {i for i, token in added.items() if token.special and token.normalized}
    n = 1 + max(reference.get_vocab(with_added_tokens=True).values(), default=0)
    own = own_texts(n, reference.decode_batch)
    reference.encode_special_tokens = False
    if around:
        ids = [e.ids for e in reference.encode_batch(texts)]
        first_difference([engine.encode(t, WITH_SPECIAL) for t in texts], ids, texts, "the text", who)
    rounds = [(texts, True, NO_BOS)] * as_text + [(texts + own, False, NO_BOS | WITH_SPECIAL)]
    for given, split, flags in rounds:
        reference.encode_special_tokens = split
        ids = [e.ids for e in reference.encode_batch(given, add_special_tokens=False)]
        first_difference([engine.encode(t, flags) for t in given], ids, given, "the text", who)
    ids = ids[: len(texts)] + [[i] for i in range(n)]
    # the library shows special tokens as its normalizer changes them, the engine as they are
    ids = [given for given in ids if not any(i in odd for i in given)]
    theirs = reference.decode_batch(ids, skip_special_tokens=False)
    first_difference([engine.decode(i) for i in ids], theirs, ids, "the list of ids", who)
    return f"tokenizer: {len(texts)} hard texts encode as {who} encodes them, and so do all {n} tokens"


def verify_sentencepiece(engine: Engine, source: Path, found: Found) -> str:
    """verify, against tokenizer.model, which knows only its own texts of pieces that were renamed."""
    from sentencepiece import SentencePieceProcessor

    processor = SentencePieceProcessor(model_file=str(source / "tokenizer.model"))
    texts = hard_strings() + own_texts(processor.get_piece_size(), processor.decode)
    renamed = [
        processor.id_to_piece(i)
        for i, (text, _, _) in enumerate(found.pieces.pieces if found.pieces else ())
        if processor.id_to_piece(i) != text
    ]
    added = [item["content"] for item in found.spec["added_tokens"] if not item["special"]]
    texts = [text for text in texts if not any(name in text for name in (*renamed, *added))]
    if not found.legacy:
        texts = [text for text in texts if text[:1] not in (" ", METASPACE)]
    texts = [text for text in texts if "\0" not in text]  # the library's C strings end there
    who = "the sentencepiece library"
    theirs = [processor.encode(text) for text in texts]
    first_difference([engine.encode(t, NO_BOS) for t in texts], theirs, texts, "the text", who)
    return f"tokenizer: {len(texts)} hard texts encode as {who} encodes them"


def verify(file: Path, source: Path) -> str:
    """Encodes hard texts with a flat file's tokenizer and as transformers' AutoTokenizer encodes them; where
    that is not installed, with the library that the tokenizer was made for.

    Returns a sentence that says what was checked. Raises ValueError, naming the first text that differs.
    """
    source = Path(source)
    if not source.is_dir() or not any((source / name).is_file() for name in TOKENIZER_FILES[:-1]):
        return "tokenizer: not checked (there is no reference library for this source)"
    if importlib.util.find_spec("tokenizers") is None:
        return "tokenizer: not checked (the tokenizers library is not installed)"
    found = auto_tokenizer.read(source)
    reference, who = open_reference(source, found)
    engine = Engine(Path(file))
    try:
        told = ""
        if found.pieces is not None and importlib.util.find_spec("sentencepiece") is not None:
            told = verify_sentencepiece(engine, source, found)
        if reference is not None:
            with_transformers = verify_json(engine, reference, who, not found.own_bos, found.pieces is None)
            told = told or with_transformers
        return told or "tokenizer: not checked (the sentencepiece library is not installed)"
    finally:
        engine.close()
