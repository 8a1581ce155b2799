"""Reads sentencepiece's tokenizer.model, and pieces with scores of other formats (GGUF's "llama", llama2.c's
tokenizer.bin), which merge the same way."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, field
from typing import Any

from pyllm._llm import lib

from .vocabulary import METASPACE, Added, Vocabulary, new_program

# Types of pieces, as sentencepiece_model.proto has them
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE_PIECE = 1, 2, 3, 4, 5, 6


@dataclass
class Pieces:
    """A tokenizer.model: pieces as (text, score, type of sentencepiece_model.proto), by id; the fields of its
    trainer's and its normalizer's specification by number."""

    pieces: list[tuple[str, float, int]] = field(default_factory=list)
    trainer: dict[int, Any] = field(default_factory=dict)
    normalizer: dict[int, Any] = field(default_factory=dict)

    def text(self, number: int, default: str) -> str:
        """A text in the trainer's specification."""
        value = self.trainer.get(number)
        return value.decode("utf-8", "replace") if isinstance(value, bytes) and value else default

    def special_id(self, number: int, default: int) -> int | None:
        """An id in the trainer's specification: 40 unknown, 41 BOS, 42 EOS."""
        value = self.trainer.get(number, default)
        return value if isinstance(value, int) and value < len(self.pieces) else None


def proto_fields(data: bytes, where: str) -> list[tuple[int, Any]]:
    """The fields of a protobuf message: numbers, or the bytes of messages, texts and fixed-width values."""
    out: list[tuple[int, Any]] = []
    at = 0

    def varint() -> int:
        nonlocal at
        number = 0
        for shift in range(0, 70, 7):
            if at >= len(data):
                break
            at += 1
            number |= (data[at - 1] & 0x7F) << shift
            if data[at - 1] < 0x80:
                return number
        raise ValueError(f"{where} is not a sentencepiece model: it ends inside a number")

    while at < len(data):
        key = varint()
        if key & 7 == 0:
            out.append((key >> 3, varint()))
            continue
        size = {1: 8, 5: 4}.get(key & 7)
        if key & 7 == 2:
            size = varint()
        if size is None or size > len(data) - at:
            raise ValueError(f"{where} is not a sentencepiece model: it has a field of a wrong size")
        out.append((key >> 3, data[at : at + size]))
        at += size
    return out


def read_pieces(data: bytes, where: str) -> Pieces:
    """The contents of a tokenizer.model, which must be a BPE."""
    out = Pieces()
    try:
        for number, value in proto_fields(data, where):
            if number == 1:
                piece = dict(proto_fields(value, where))
                score = struct.unpack("<f", piece[2])[0] if 2 in piece else 0.0
                kind = piece.get(3, NORMAL)
                out.pieces.append((piece.get(1, b"").decode("utf-8"), score, kind))
            elif number in (2, 3):
                (out.trainer if number == 2 else out.normalizer).update(proto_fields(value, where))
    except (TypeError, AttributeError, UnicodeDecodeError, struct.error) as error:
        raise ValueError(f"{where} is not a sentencepiece model ({error})") from None
    if not out.pieces:
        raise ValueError(f"{where} is not a sentencepiece model: it has no pieces")
    if out.trainer.get(3, 1) != 2:
        kinds = {1: "unigram", 3: "word", 4: "char"}
        kind = kinds.get(out.trainer.get(3, 1), "strange")
        raise ValueError(f"{where} is a {kind} model; only bpe is supported")
    return out


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
    out.flags = lib.LLM_FUSE_UNKNOWN | lib.LLM_BYTE_FALLBACK * byte_fallback | lib.LLM_STRIP_SPACE * prefix
    if not byte_fallback:
        out.byte_tokens = {}
    if trim:
        out.steps.append((lib.LLM_NORMALIZE_TRIM, "", ""))
    if prefix and not prefix_first:
        out.steps.append((lib.LLM_NORMALIZE_PREPEND, "", " "))
    elif prefix:
        out.flags |= lib.LLM_PREFIX_SPACE | lib.LLM_PREFIX_FIRST
    out.steps.append((lib.LLM_NORMALIZE_REPLACE, METASPACE, " "))
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
