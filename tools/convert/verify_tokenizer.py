"""Checks the tokenizer of a written file against the original: texts that tokenizers disagree about, encoded
by the engine and by the library that the tokenizer was made for."""

from __future__ import annotations

import importlib.util
import itertools
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from pyllm._llm import ffi, lib

from . import auto_tokenizer
from .auto_tokenizer import Found
from .huggingface_tokenizer import AUTO_FILES
from .vocabulary import METASPACE


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
        err = ffi.new("char[256]")
        self.model = lib.llm_open(str(file).encode(), err, 256)
        self.tokenizer = lib.llm_tokenizer_open(self.model, err, 256) if self.model else ffi.NULL
        if not self.tokenizer:
            lib.llm_close(self.model)
            raise ValueError(f"{file}: {ffi.string(err).decode('utf-8', 'replace')}")

        self.room = lib.llm_token_max_bytes(self.tokenizer)
        self.out, self.state = ffi.new("char[]", self.room), ffi.new("llm_decoder *")

    def close(self) -> None:
        lib.llm_tokenizer_close(self.tokenizer)
        lib.llm_close(self.model)

    def encode(self, text: str, flags: int) -> list[int]:
        data = text.encode("utf-8")
        room = len(data) + 16
        ids = ffi.new("uint32_t[]", room)
        n = lib.llm_encode(self.tokenizer, data, len(data), flags, ids, room, ffi.NULL, 0)
        return ffi.unpack(ids, n) if 0 < n <= room else []

    def decode(self, ids: list[int]) -> str:
        """The text of these tokens, special ones too."""
        decode, parts = lib.llm_decode, []
        for i in ids:
            n = decode(self.tokenizer, self.state, i, 1, self.out, self.room)
            parts.append(ffi.unpack(self.out, n) if n else b"")
        n = lib.llm_decode_end(self.state, self.out, self.room)
        return b"".join([*parts, ffi.unpack(self.out, n)]).decode("utf-8", "replace")

    def find(self, text: str) -> int:
        data = text.encode("utf-8")
        return int(lib.llm_token_find(self.tokenizer, data, len(data)))


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
    kinds: dict[tuple[Any, ...], list[str]] = {}  # of each kind of added token one first, then all others
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
        first_difference([engine.encode(t, lib.LLM_SPECIAL) for t in texts], ids, texts, "the text", who)
    rounds = [(texts, True, lib.LLM_NO_BOS)] * as_text
    rounds += [(texts + own, False, lib.LLM_NO_BOS | lib.LLM_SPECIAL)]
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
    first_difference([engine.encode(t, lib.LLM_NO_BOS) for t in texts], theirs, texts, "the text", who)
    return f"tokenizer: {len(texts)} hard texts encode as {who} encodes them"


def verify(file: Path, source: Path) -> str:
    """Encodes hard texts with a flat file's tokenizer and as transformers' AutoTokenizer encodes them; where
    that is not installed, with the library that the tokenizer was made for.

    Returns a sentence that says what was checked. Raises ValueError, naming the first text that differs.
    """
    source = Path(source)
    if not source.is_dir() or not any((source / name).is_file() for name in AUTO_FILES):
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
