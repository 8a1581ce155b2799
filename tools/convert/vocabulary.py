"""A tokenizer in the engine's terms, and the sections of a flat file that it becomes (csrc/llm.h says what is
in them). The modules that read tokenizers make one of these, and refuse with a ValueError whatever the engine
would not do exactly as the original."""

from __future__ import annotations

import re
import struct
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pyllm._llm import lib

from . import pattern, unicode_tables

NONE = 0xFFFFFFFF
METASPACE = "\u2581"

# Tokens that end a turn: they stop a generation when the chat template writes them.
TURN_ENDS = (
    "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|eot|>", "<|end|>", "<end_of_turn>", "<|end_of_turn|>",
    "<|endofturn|>", "[|endofturn|]", "<|END_OF_TURN_TOKEN|>", "<end_of_utterance>", "<turn|>",
    "<\uff5cend\u2581of\u2581sentence\uff5c>", "<|end_of_text|>", "<|endoftext|>",
)  # fmt: skip
# Where these are, <|end|> ends one of a turn's messages (gpt-oss's and Solar Open's thoughts)
MESSAGE_ENDS = (("<|return|>", "<|call|>"), ("<|flush|>", "<|calls|>"))


def byte_alphabet() -> dict[str, int]:
    """The character that byte-level vocabularies write for each byte: GPT-2's bytes_to_unicode, inverted."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + i): byte for i, byte in enumerate(rest)}


ALPHABET = byte_alphabet()


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
    digits_apart: bool = False  # no token that merges has digits and others, of the characters for bytes
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
        if self.flags & lib.LLM_BYTE_LEVEL and all(char in ALPHABET for char in text):
            return bytes(ALPHABET[char] for char in text)
        if self.decode_bytes and (byte := byte_of(text)) is not None:
            return bytes([byte])
        return utf8(text.replace(METASPACE, " ") if self.metaspace else text)

    def normal_text(self, text: str) -> str:
        """What the normalisation steps make of the text of an added token."""
        for kind, old, new in self.steps:
            if kind == lib.LLM_NORMALIZE_NFC:
                text = unicodedata.normalize("NFC", text)
            elif kind == lib.LLM_NORMALIZE_PREPEND:
                text = new + text
            elif kind == lib.LLM_NORMALIZE_REPLACE:
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
                types[i] = lib.LLM_TOKEN_ABSENT
            elif self.decode_bytes and byte_of(texts[i]) is not None:
                types[i] = lib.LLM_TOKEN_BYTE
        types[list(self.special)] |= lib.LLM_TOKEN_SPECIAL
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
            lib.LLM_TOKENIZER: pack(info + [self.byte_tokens.get(byte, NONE) for byte in range(256)]),
            lib.LLM_TOKEN_STARTS: pack(np.cumsum([0, *map(len, data)])),
            lib.LLM_TOKEN_BYTES: b"".join(data),
            lib.LLM_TOKEN_TYPES: types.tobytes(),
            lib.LLM_TOKEN_ORDER: pack([i for _, i in order]),
            lib.LLM_MERGE_STARTS: pack([0, *np.cumsum(counts)]),
            lib.LLM_MERGES: pack(merges[:, 1:].ravel()),
            lib.LLM_CLASSES: class_bytes,
        }
        if self.stops:
            out[lib.LLM_STOP] = pack(sorted(set(self.stops)))
        if max(map(len, self.around)) > 1:
            if beyond := [i for side in self.around for i in side if i >= n]:
                raise ValueError(f"the post-processor adds the token {beyond[0]}, which does not exist")
            out[lib.LLM_AROUND] = pack([*map(len, self.around), *self.around[0], *self.around[1]])
        if self.added:
            out[lib.LLM_ADDED] = self.added_section()
        if pattern_bytes:
            out[lib.LLM_PATTERN] = pattern_bytes
        if self.steps:
            out[lib.LLM_NORMALIZER] = b"".join(
                struct.pack("<3I", kind, len(utf8(old)), len(utf8(new))) + utf8(old) + utf8(new)
                for kind, old, new in self.steps
            )
        if any(kind == lib.LLM_NORMALIZE_NFC for kind, _, _ in self.steps):
            out[lib.LLM_NFC] = nfc_section()
        return out

    def added_section(self) -> bytes:
        groups: tuple[dict[bytes, Added], dict[bytes, Added]] = ({}, {})
        for item in self.added:
            groups[item.normalized].setdefault(utf8(item.match or item.text), item)
        heads, blob = b"", b""
        for group in groups:
            for text, item in sorted(group.items()):
                flags = (
                    lib.LLM_ADDED_SPECIAL * item.special
                    | lib.LLM_ADDED_LSTRIP * item.lstrip
                    | lib.LLM_ADDED_RSTRIP * item.rstrip
                    | lib.LLM_ADDED_WORD * item.single_word
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


def add_stops(out: Vocabulary, ids: list[int], template: str) -> None:
    """Sets the stop tokens: ids, as the model's files name them, and the ends of turns in its template."""
    n = 1 + max([*out.tokens, *(item.id for item in out.added)], default=-1)
    messages = any(all(out.find(text) is not None for text in pair) for pair in MESSAGE_ENDS)
    texts = [text for text in TURN_ENDS if text in template and not (messages and text == "<|end|>")]
    ends = [out.find(text) for text in texts]
    out.stops = [i for i in [*ids, *ends] if i is not None and i < n]
    if out.eos is None and ids and ids[0] < n:
        out.eos = ids[0]


def as_ids(value: Any) -> list[int]:
    values = value if isinstance(value, list) else [value]
    return [
        int(i)
        for i in values
        if isinstance(i, (int, np.integer)) and not isinstance(i, bool) and 0 <= i < NONE
    ]


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
    chars = b""
    points: list[int] = []
    for code in sorted({*orders, *parts, *backward}):
        order = orders.get(code, 0) or 256 * (code in backward)
        chars += struct.pack("<4I", code, order, len(points), len(parts.get(code, [])))
        points += parts.get(code, [])
    head = struct.pack("<3I", len(chars) // 16, len(points), len(pairs))
    return head + chars + pack(points) + pack([n for pair in pairs for n in pair])


def iter_pairs(numbers: list[int]) -> dict[int, int]:
    return dict(zip(numbers[::2], numbers[1::2], strict=True))


def get(value: Mapping[str, Any], key: str, kind: type | tuple[type, ...], where: str) -> Any:
    """value[key], which must be of that type."""
    if not isinstance(value, Mapping) or not isinstance(value.get(key), kind) or isinstance(value[key], bool):
        raise ValueError(f"{where} has no usable {key!r}")
    return value[key]
