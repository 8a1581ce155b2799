"""The tokenizers of the supported families, as their tokenizer.json files describe them, and the combinations
of such parts that no family has: against the `tokenizers` library.

The vocabularies are not the families' own. The small ones are learned across every border that a
pre-tokenizer can draw, so that a border in the wrong place changes the ids; those of full size are made up.
"""

from __future__ import annotations

import base64
import functools
import importlib.util
import itertools
import json
import random
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest

tokenizers = pytest.importorskip("tokenizers")
from pyllm._llm import lib  # noqa: E402
from pyllm.tools import (  # noqa: E402
    gguf_tokenizer,
    huggingface_tokenizer,
    pattern,
    pre_tokenizers,
    tekken,
    tokenizer_json,
    verify_tokenizer,
    vocabulary,
)
from pyllm.tools.pre_tokenizers import PRE_TOKENIZERS  # noqa: E402
from test_tokenizer import (  # noqa: E402
    BYTES,
    CL100K,
    DEEPSEEK,
    GPT4O,
    LLAMA3,
    NO_BOS,
    QWEN2,
    QWEN35,
    SPECIAL,
    TEKKEN,
    Engine,
    assert_same,
    corpus,
    flat_file,
    gguf_fields,
    random_texts,
)  # fmt: skip
from tokenizers import Tokenizer, models, trainers  # noqa: E402
from tokenizers import pre_tokenizers as pre  # noqa: E402

# ----------------------------------------------------------------------------------------------------------
# The parts of a tokenizer.json

NFC = {"type": "NFC"}
PREPEND = {"type": "Prepend", "prepend": "▁"}
REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
GEMMA = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
STRIP = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
TO_BYTES = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
NANOCHAT = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]"
    r"|\s+(?!\S)|\s+"
)
CJK_LETTERS = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"


def normal(*steps: dict) -> dict:
    return {"type": "Sequence", "normalizers": list(steps)}


def byte_level(*splits: dict, regex: bool = False, prefix: bool = False) -> dict:
    last = {"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": True, "use_regex": regex}
    return {"type": "Sequence", "pretokenizers": [*splits, last]} if splits else last


def split(regex: str, behavior: str = "Isolated", invert: bool = False) -> dict:
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": behavior, "invert": invert}


def digits(each: bool) -> dict:
    return {"type": "Digits", "individual_digits": each}


def metaspace(scheme: str, cut: bool) -> dict:
    return {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": cut}


def template(bos: str | None = None, eos: str | None = None) -> dict:
    """A post-processor that puts these tokens (several with spaces between) around a text; their ids are
    filled in by spec()."""
    sides = [(side or "").split() for side in (bos, eos)]
    around = [[{"SpecialToken": {"id": text, "type_id": 0}} for text in side] for side in sides]
    text = {"Sequence": {"id": "A", "type_id": 0}}
    tokens = {t: {"id": t, "ids": [t], "tokens": [t]} for side in sides for t in side}
    single = [*around[0], text, *around[1]]
    return {"type": "TemplateProcessing", "single": single, "pair": [*single, text], "special_tokens": tokens}


@functools.cache
def learned(pieces: bool) -> str:
    """The model part, as JSON: of bytes, or of characters with "▁" for spaces and tokens for all bytes."""
    out = Tokenizer(models.BPE())
    texts = corpus()[:300] + random_texts()[4000:]
    if pieces:
        texts = [text.replace(" ", "▁") for text in texts if "<0x" not in text]
    else:
        out.pre_tokenizer = pre.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = trainers.BpeTrainer(
        vocab_size=2500,
        special_tokens=["<unk>", "<s>", "</s>", *(BYTES if pieces else [])],
        show_progress=False,
        max_token_length=10,
        initial_alphabet=[] if pieces else pre.ByteLevel.alphabet(),
        limit_alphabet=400,
    )
    out.train_from_iterator(texts, trainer)
    model = json.loads(out.to_str())["model"]
    if pieces:
        model |= {"byte_fallback": True, "unk_token": "<unk>", "fuse_unk": True}
    return json.dumps(model)


Mark = tuple[str, str]  # text, and letters: special, normalized, lstrip, rstrip, word


def spec(
    pieces: bool,
    normalizer: dict | None,
    pre_tokenizer: dict | None,
    marks: Iterable[Mark],
    strip: bool = False,
    post: dict | None = None,
    whole_words: bool = False,
) -> dict:
    """A whole tokenizer.json. Added tokens have the ids that the library gives them."""
    model = json.loads(learned(pieces))
    if whole_words:  # so that some tokens can only be had whole
        model["ignore_merges"] = True
        model["merges"] = [merge for merge in model["merges"] if len("".join(merge)) % 3]
    ids, names = dict(model["vocab"]), dict(zip("snlrw", SWITCHES, strict=True))
    added = []
    for text, letters in marks:
        ids.setdefault(text, len(ids))
        switches = {names[letter]: letter in letters for letter in names}
        added.append({"id": ids[text], "content": text, **switches})
    decoder = TO_BYTES
    if pieces:
        to_spaces = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
        steps = [to_spaces, {"type": "ByteFallback"}, {"type": "Fuse"}, *([STRIP] if strip else [])]
        decoder = {"type": "Sequence", "decoders": steps}
    post = json.loads(json.dumps(post))
    for part in [post, *post.get("processors", [])] if post else []:
        for token in part.get("special_tokens", {}).values():
            token["ids"] = [ids[token["id"]]]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": sorted(added, key=lambda token: token["id"]),
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": post,
        "decoder": decoder,
        "model": model,
    }


SWITCHES = ("special", "normalized", "lstrip", "rstrip", "single_word")
COMMON: tuple[Mark, ...] = (("<unk>", "s"), ("<s>", "s"), ("</s>", "s"))


def compare(file: dict, texts: list[str], defaults: bool = False) -> None:
    """Ids and text of the engine and of the library, which must be the same."""
    reference = Tokenizer.from_str(json.dumps(file))
    ours = Engine(tokenizer_json.from_tokenizer_json(file).sections())
    if defaults:
        theirs = [e.ids for e in reference.encode_batch(texts)]
        assert_same(texts, [ours.encode(t, SPECIAL) for t in texts], theirs)
    for as_text, flags in ((True, NO_BOS), (False, NO_BOS | SPECIAL)):
        reference.encode_special_tokens = as_text
        theirs = [e.ids for e in reference.encode_batch(texts, add_special_tokens=False)]
        assert_same(texts, [ours.encode(t, flags) for t in texts], theirs)
    # The library shows special tokens as its normalizer changes them, the engine as they are.
    change = reference.normalizer.normalize_str if reference.normalizer else str
    odd = [t for t in file["added_tokens"] if t["special"] and t["normalized"]]
    unlike = {t["id"] for t in odd if change(t["content"]) != t["content"]}
    given = [ids for ids in theirs if unlike.isdisjoint(ids)]
    for special in (True, False):
        texts_back = reference.decode_batch(given, skip_special_tokens=not special)
        assert_same(given, [ours.decode(ids, special) for ids in given], texts_back)
    ours.close()


# ----------------------------------------------------------------------------------------------------------
# The families


@dataclass(frozen=True)
class Family:
    """A family's tokenizer.json, and what its other files say about the end of a turn."""

    pieces: bool
    normalizer: dict | None
    pre_tokenizer: dict | None
    marks: tuple[Mark, ...] = COMMON
    strip: bool = False
    post: dict | None = None
    whole_words: bool = False
    eos: str = "</s>"  # of tokenizer_config.json
    generation: tuple[str, ...] = ()  # the eos_token_id of generation_config.json
    config: tuple[str, ...] = ()  # the eos_token_id of config.json
    template: str = ""
    stops: tuple[str, ...] = ("</s>",)

    def file(self) -> dict:
        return spec(
            self.pieces,
            self.normalizer,
            self.pre_tokenizer,
            self.marks,
            self.strip,
            self.post,
            self.whole_words,
        )


def marks(special: str, *others: Mark) -> tuple[Mark, ...]:
    return (*COMMON, *((text, "s") for text in special.split()), *others)


LLAMA = dict(pieces=True, normalizer=normal(PREPEND, REPLACE), pre_tokenizer=None, strip=True)
IM = "<|im_start|> <|im_end|>"
EOT = "<|endoftext|>"
CHAT_ML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
GEMMA_MARKS = marks(
    "<bos> <eos> <start_of_turn> <end_of_turn> <unused7>",
    *((char * n, "") for char in "▁\n" for n in (2, 3, 4, 9)),
    ("<table>", ""),
    ("</h1>", ""),
)
GEMMA_PARTS = dict(
    pieces=True,
    normalizer=REPLACE,
    pre_tokenizer=GEMMA,
    marks=GEMMA_MARKS,
    post=template("<bos>"),
    eos="<eos>",
)
GEMMA4_MARKS = marks(
    "<bos> <eos> <|turn> <turn|> <|channel> <channel|> <|think|> <|tool_response>",
    ('<|"|>', ""),
    ("\n\n", ""),
)
LLAMA3_PARTS = dict(
    pieces=False,
    normalizer=None,
    pre_tokenizer=byte_level(split(LLAMA3)),
    marks=marks("<|begin_of_text|> <|end_of_text|> <|eot_id|> <|eom_id|> <|reserved_special_token_9|>"),
    whole_words=True,
    post={"type": "Sequence", "processors": [TO_BYTES, template("<|begin_of_text|>")]},
    template="<|start_header_id|>user<|end_header_id|>\n\n{{ x }}<|eot_id|>",
)
DEEPSEEK_ENDS = "<｜begin▁of▁sentence｜> <｜end▁of▁sentence｜> <｜User｜> <｜Assistant｜>"
DEEPSEEK_PARTS = dict(
    pieces=False,
    normalizer=normal(),
    marks=marks(DEEPSEEK_ENDS, ("<think>", ""), ("</think>", "n")),
    post=template("<｜begin▁of▁sentence｜>"),
    eos="<｜end▁of▁sentence｜>",
    stops=("<｜end▁of▁sentence｜>",),
)
PHI3_PARTS = dict(
    LLAMA,
    marks=(
        ("<unk>", "s"), ("<s>", "s"), ("</s>", "r"), (EOT, "s"),
        *((f"<|{name}|>", "sr") for name in ("assistant", "system", "end", "user", "placeholder1")),
    ),
    eos=EOT,
    template="{% for m in messages %}<|user|>\n{{ m.content }}<|end|>\n<|assistant|>\n{% endfor %}",
)  # fmt: skip

K_EXAONE = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+"
)
AFMOE = [
    r"\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))",
    "[一-鿿㐀-䶿\u8c48-\ufaff぀-ゟ゠-ヿ･-ﾟ⼀-⿟เ-\u0e7f\u0e80-\u0eff\u1780-\u17ff\u1000-\u109fꩠ-ꩿ"
    "\ua9e0-\ua9ff가-\ud7afᄀ-ᇿ]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
]
KIMI = "|".join(
    [
        r"[\p{Han}]+",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*"
        r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+"
        r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)

FAMILIES: dict[str, Family] = {
    "llama 1 and 2, mistral 0.1, mixtral": Family(**LLAMA, post=template("<s>"), generation=("</s>",)),
    "llama 2 of 2023": Family(
        **LLAMA, marks=tuple((text, "sn") for text, _ in COMMON), post=template("<s>"), config=("</s>",)
    ),
    "tinyllama": Family(**LLAMA, post=template("<s>"), template="<|user|>\n{{ x }}</s>\n<|assistant|>\n"),
    "mistral 0.3": Family(
        pieces=True,
        normalizer=None,
        pre_tokenizer=metaspace("first", False),
        strip=True,
        marks=marks("[INST] [/INST] [TOOL_CALLS] [control_8]"),
        post=template("<s>"),
    ),
    "llama as transformers 5 writes it": Family(
        pieces=True,
        normalizer=None,
        pre_tokenizer=metaspace("always", False),
        strip=True,
        post=template("<s>"),
    ),
    "mistral nemo (tekken)": Family(
        pieces=False,
        normalizer=None,
        pre_tokenizer=byte_level(split(TEKKEN)),
        marks=marks("[INST] [/INST] <SPECIAL_20>"),
        whole_words=True,
        post=template("<s>"),
    ),
    "llama 3": Family(
        **LLAMA3_PARTS,
        eos="<|eot_id|>",
        generation=("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"),
        stops=("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"),
    ),
    "llama 3, first release": Family(
        **LLAMA3_PARTS,
        eos="<|end_of_text|>",
        config=("<|end_of_text|>",),
        stops=("<|end_of_text|>", "<|eot_id|>"),
    ),
    "smollm 3": Family(
        **LLAMA3_PARTS
        | dict(marks=marks(f"{IM} <|begin_of_text|> <|end_of_text|>", ("<think>", "")), template=CHAT_ML),
        eos="<|im_end|>",
        generation=("<|im_end|>",),
        stops=("<|im_end|>",),
    ),
    "qwen 2, 2.5, 3": Family(
        pieces=False,
        normalizer=NFC,
        pre_tokenizer=byte_level(split(QWEN2)),
        marks=marks(f"{EOT} {IM} <|fim_prefix|>", ("<tool_call>", ""), ("</think>", "")),
        post=TO_BYTES,
        eos="<|im_end|>",
        generation=("<|im_end|>", EOT),
        config=("<|im_end|>",),
        template=CHAT_ML,
        stops=("<|im_end|>", EOT),
    ),
    "qwen 3.5": Family(
        pieces=False,
        normalizer=NFC,
        pre_tokenizer=byte_level(split(QWEN35)),
        marks=marks(f"{EOT} {IM} <|vision_start|>", ("<tool_call>", ""), ("<think>", ""), ("</think>", "")),
        post=TO_BYTES,
        eos="<|im_end|>",
        generation=("<|im_end|>", EOT),
        config=(EOT,),
        template=CHAT_ML,
        stops=("<|im_end|>", EOT),
    ),
    "lfm 2": Family(
        **LLAMA3_PARTS
        | dict(
            marks=marks(f"{IM} <|startoftext|> <|pad|> <|tool_list_start|>"),
            post={"type": "Sequence", "processors": [TO_BYTES, template("<|startoftext|>")]},
            template=CHAT_ML,
        ),
        eos="<|im_end|>",
        generation=("<|im_end|>",),
        stops=("<|im_end|>",),
    ),
    "smollm 1 and 2": Family(
        pieces=False,
        normalizer=None,
        pre_tokenizer=byte_level(digits(True), regex=True),
        marks=marks(f"{EOT} {IM} <repo_name>"),
        eos=EOT,
        template=CHAT_ML,
        stops=("<|im_end|>", EOT),
    ),
    "yi": Family(
        pieces=True,
        normalizer=normal(REPLACE),
        pre_tokenizer=None,
        marks=marks("<|startoftext|> <|endoftext|>", *((text, "") for text in IM.split())),
        eos=EOT,
        config=("</s>",),
        template=CHAT_ML,
        stops=("</s>", "<|im_end|>", EOT),
    ),
    "deepseek r1 distilled into qwen": Family(**DEEPSEEK_PARTS, pre_tokenizer=byte_level(split(QWEN2))),
    "deepseek r1 distilled into llama": Family(
        **DEEPSEEK_PARTS, pre_tokenizer=byte_level(split(LLAMA3)), whole_words=True
    ),
    "deepseek 3": Family(
        **DEEPSEEK_PARTS,
        pre_tokenizer=byte_level(split(r"\p{N}{1,3}"), split(CJK_LETTERS), split(DEEPSEEK["deepseek-v3"][2])),
    ),
    "deepseek llm": Family(
        **DEEPSEEK_PARTS, pre_tokenizer=byte_level(*map(split, DEEPSEEK["deepseek-llm"][:-1]), digits(True))
    ),
    "deepseek coder": Family(
        **DEEPSEEK_PARTS, pre_tokenizer=byte_level(*map(split, DEEPSEEK["deepseek-coder"][:-1]), digits(True))
    ),
    "phi 3 and 3.5": Family(
        **PHI3_PARTS,
        generation=(EOT, "<|assistant|>", "<|end|>"),
        stops=(EOT, "<|assistant|>", "<|end|>"),
    ),
    "phi 3 without generation_config": Family(**PHI3_PARTS, config=(EOT,), stops=(EOT, "<|end|>")),
    "phi 4": Family(
        pieces=False,
        normalizer=None,
        pre_tokenizer=byte_level(split(CL100K, "Removed", True)),
        marks=(*COMMON, *((text, "slr") for text in f"{EOT} {IM} <|im_sep|> <|dummy_1|>".split())),
        eos="<|im_end|>",
        template="<|im_start|>user<|im_sep|>{{ x }}<|im_end|>",
        generation=(EOT,),
        stops=(EOT, "<|im_end|>"),
    ),
    "phi 4 mini": Family(
        pieces=False,
        normalizer=None,
        pre_tokenizer=byte_level(split(GPT4O, "Removed", True)),
        marks=marks(f"{EOT} <|end|> <|user|>", ("<|tool|>", "r"), ("<|/tool|>", "r")),
        eos=EOT,
        generation=("<|end|>", EOT),
        stops=("<|end|>", EOT),
    ),
    "phi 1 and 2": Family(
        pieces=False,
        normalizer=None,
        pre_tokenizer=byte_level(regex=True),
        marks=marks(EOT, *((char * n, "n") for char in " \t" for n in (2, 3, 4, 8))),
        eos=EOT,
        stops=(EOT,),
    ),
    "gemma 1 and 2": Family(
        **GEMMA_PARTS,
        generation=("<eos>",),
        template="<start_of_turn>user\n{{ x }}<end_of_turn>\n",
        stops=("<eos>", "<end_of_turn>"),
    ),
    "gemma 3": Family(
        **GEMMA_PARTS, generation=("<eos>", "<end_of_turn>"), stops=("<eos>", "<end_of_turn>")
    ),
    "gemma 4": Family(
        **GEMMA_PARTS | {"marks": GEMMA4_MARKS},
        config=("<eos>", "<turn|>"),
        generation=("<eos>", "<turn|>", "<|tool_response>"),
        template="<|turn>user\n{{ x }}<turn|>\n",
        stops=("<eos>", "<turn|>", "<|tool_response>"),
    ),
    "olmo 1, olmoe": Family(
        pieces=False,
        normalizer=NFC,
        pre_tokenizer=byte_level(regex=True),
        marks=marks(f"{EOT} <|padding|>", *((" " * n, "n") for n in (2, 3, 4, 8, 24))),
        post=template(None, EOT),
        eos=EOT,
        stops=(EOT,),
    ),
    "olmo 2": Family(
        pieces=False,
        normalizer=None,
        pre_tokenizer=byte_level(split(LLAMA3, "Removed", True)),
        marks=marks(f"{EOT} <|fim_prefix|> |||IP_ADDRESS|||"),
        eos=EOT,
        template="{{ bos_token }}<|user|>\n{{ x }}\n<|assistant|>\n{{ y }}<|endoftext|>",
        stops=(EOT,),
    ),
    "granite 3": Family(
        pieces=False,
        normalizer=None,
        pre_tokenizer=byte_level(digits(True), regex=True),
        marks=marks("<|end_of_text|> <|start_of_role|> <|end_of_role|>"),
        post=TO_BYTES,
        eos="<|end_of_text|>",
        stops=("<|end_of_text|>",),
    ),
    "internlm 2": Family(
        **LLAMA,
        marks=marks(f"{IM} <|plugin|>"),
        post=template("<s>"),
        generation=("</s>", "<|im_end|>"),
        template=CHAT_ML,
        stops=("</s>", "<|im_end|>"),
    ),
    "internlm 2 without generation_config": Family(
        **LLAMA, marks=marks(IM), post=template("<s>"), template=CHAT_ML, stops=("</s>", "<|im_end|>")
    ),
    "minicpm": Family(
        **LLAMA,
        marks=marks("", ("<用户>", "n"), ("<AI>", "n")),
        post=template("<s>"),
        template="<用户>{{ x }}<AI>",
    ),
    "glm 4, glm 4 0414": Family(
        pieces=False,
        normalizer=None,
        pre_tokenizer=byte_level(split(LLAMA3)),
        marks=marks(f"{EOT} [MASK] [gMASK] [sMASK] <sop> <eop> <|user|> <|assistant|> <|observation|>"),
        whole_words=True,
        post={"type": "Sequence", "processors": [TO_BYTES, template("[gMASK] <sop>")]},
        eos=EOT,
        config=(EOT, "<|user|>", "<|observation|>"),
        template="[gMASK]<sop>{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{% endfor %}",
        stops=(EOT, "<|user|>", "<|observation|>"),
    ),
    "internlm 3": Family(
        pieces=True,
        normalizer=normal(PREPEND, REPLACE),
        pre_tokenizer=None,
        strip=True,
        marks=marks(f"{IM} <|action_start|> <|plugin|>"),
        post=template("<s>"),
        generation=("</s>", "<|im_end|>"),
        template=CHAT_ML,
        stops=("</s>", "<|im_end|>"),
    ),
    "exaone 4": Family(
        pieces=False,
        normalizer=NFC,
        pre_tokenizer=byte_level(regex=True),
        marks=marks("[BOS] [PAD] [|user|] [|assistant|] [|endofturn|]", ("<think>", ""), ("<tool_call>", "")),
        post=TO_BYTES,
        eos="[|endofturn|]",
        config=("[|endofturn|]",),
        template="[|{{ m.role }}|]\n{{ m.content }}[|endofturn|]\n",
        stops=("[|endofturn|]",),
    ),
    "k-exaone": Family(
        pieces=False,
        normalizer=NFC,
        pre_tokenizer=byte_level(split(K_EXAONE)),
        marks=marks("[BOS] [PAD] <|user|> <|assistant|> <|endofturn|>", ("<think>", "")),
        post=TO_BYTES,
        eos="<|endofturn|>",
        config=("<|endofturn|>",),
        template="<|{{ m.role }}|>\n{{ m.content }}<|endofturn|>\n",
        stops=("<|endofturn|>",),
    ),
    "trinity": Family(  # its expressions as llama.cpp tells of them
        pieces=False,
        normalizer=None,
        pre_tokenizer=byte_level(*map(split, AFMOE)),
        marks=marks(f"<|begin_of_text|> <|end_of_text|> {IM}", ("<think>", ""), ("</think>", "")),
        post=TO_BYTES,
        eos="<|im_end|>",
        template=CHAT_ML,
        stops=("<|im_end|>",),
    ),
    "minimax m2": Family(
        pieces=False,
        normalizer=None,
        pre_tokenizer=byte_level(split(GPT4O)),
        marks=marks("]~b] ]~!b[ [e~[ <fim_prefix>", ("<think>", ""), ("<minimax:tool_call>", "")),
        post=TO_BYTES,
        eos="[e~[",
        generation=("[e~[",),
        template="]~!b[]~b]user\n{{ x }}[e~[\n",
        stops=("[e~[",),
    ),
    "ernie 4.5": Family(
        pieces=True,
        normalizer=REPLACE,
        pre_tokenizer=None,
        marks=marks(
            "<|begin_of_sentence|> <|end_of_sentence|> <mask:1>", *((str(i), "") for i in range(3))
        ),
        template="<|begin_of_sentence|>User: {{ x }}\nAssistant: ",
    ),
    "seed-oss": Family(
        pieces=False,
        normalizer=None,
        pre_tokenizer=byte_level(split(QWEN2)),
        marks=marks("<seed:bos> <seed:eos> <seed:pad>", ("<seed:think>", ""), ("</seed:think>", "")),
        post=template("<seed:bos>"),
        eos="<seed:eos>",
        template="{{ bos_token }}user\n{{ x }}<seed:eos>",
        stops=("<seed:eos>",),
    ),
    "ministral (tekken)": Family(
        pieces=False,
        normalizer=None,
        pre_tokenizer=byte_level(split(TEKKEN)),
        marks=marks("[INST] [/INST] [SYSTEM_PROMPT] [TOOL_CALLS] [THINK]"),
        whole_words=True,
        post=template("<s>"),
        generation=("</s>",),
    ),
    "gpt-oss (o200k harmony)": Family(
        pieces=False,
        normalizer=None,
        pre_tokenizer=byte_level(split(GPT4O)),
        marks=marks(
            f"<|startoftext|> {EOT} <|return|> <|channel|> <|start|> <|end|> <|message|> <|call|>"
        ),
        post=TO_BYTES,
        eos="<|return|>",
        generation=("<|return|>", EOT, "<|call|>"),
        config=("<|return|>",),
        template="<|start|>user<|message|>{{ x }}<|end|><|start|>assistant<|message|><|return|>",
        stops=("<|return|>", EOT, "<|call|>"),  # <|end|> ends its thought
    ),
    "solar open": Family(
        pieces=False,
        normalizer=None,
        pre_tokenizer=byte_level(split(QWEN2)),
        marks=marks(f"<|startoftext|> {EOT} <|begin|> <|end|> <|think|> <|content|> <|flush|> <|calls|>"),
        post=TO_BYTES,
        eos=EOT,
        generation=("<|flush|>", EOT, "<|calls|>"),
        template="<|begin|>user<|content|>{{ x }}<|end|><|begin|>assistant",
        stops=("<|flush|>", EOT, "<|calls|>"),
    ),
    "llama 4": Family(
        pieces=False,
        normalizer=None,
        pre_tokenizer=byte_level(split(GPT4O)),
        marks=marks(
            "<|begin_of_text|> <|end_of_text|> <|header_start|> <|header_end|> <|eom|> <|eot|>"
        ),
        post={"type": "Sequence", "processors": [TO_BYTES, template("<|begin_of_text|>")]},
        eos="<|eot|>",
        generation=("<|end_of_text|>", "<|eom|>", "<|eot|>"),
        template="<|header_start|>user<|header_end|>\n\n{{ x }}<|eot|>",
        stops=("<|end_of_text|>", "<|eom|>", "<|eot|>"),
    ),
    "hunyuan": Family(
        pieces=False,
        normalizer=normal(),
        pre_tokenizer=byte_level(split(r"\p{N}{1,3}"), split(CJK_LETTERS), split(DEEPSEEK["deepseek-v3"][2])),
        marks=marks(
            "<｜hy_begin▁of▁sentence｜> <｜hy_User｜> <｜hy_Assistant｜> <｜hy_place▁holder▁no▁2｜>"
        ),
        eos="<｜hy_place▁holder▁no▁2｜>",
        template="<｜hy_begin▁of▁sentence｜><｜hy_User｜>{{ x }}<｜hy_Assistant｜>",
        stops=("<｜hy_place▁holder▁no▁2｜>",),
    ),
    "hunyuan a13b": Family(
        pieces=False,
        normalizer=None,
        pre_tokenizer=byte_level(split(QWEN2)),
        marks=marks("<|startoftext|> <|extra_0|> <|extra_4|> <|eos|> <|bos|>"),
        eos="<|eos|>",
        template="<|startoftext|>{{ x }}<|extra_0|>{{ y }}<|eos|>",
        stops=("<|eos|>",),
    ),
    "laguna": Family(
        pieces=False,
        normalizer=None,
        pre_tokenizer=byte_level(split(r"[^\n]+|[\n]+"), split(QWEN2)),
        marks=marks("〈|EOS|〉 〈|PAD|〉", ("<think>", ""), ("<assistant>", ""), ("</assistant>", "")),
        eos="〈|EOS|〉",
        config=("〈|EOS|〉", "</assistant>"),
        template="<user>{{ x }}</user>\n<assistant>{{ y }}</assistant>",
        stops=("〈|EOS|〉", "</assistant>"),
    ),
    "mellum 2": Family(
        pieces=False,
        normalizer=None,
        pre_tokenizer=byte_level(digits(True), regex=True),
        marks=marks(f"{EOT} {IM} <fim_prefix>"),
        post=TO_BYTES,
        eos=EOT,
        template=CHAT_ML,
        stops=(EOT, "<|im_end|>"),
    ),
    "granite 4": Family(
        pieces=False,
        normalizer=None,
        pre_tokenizer=byte_level(split(LLAMA3, "Removed", True)),
        marks=marks("<|end_of_text|> <|pad|> <|start_of_role|> <|end_of_role|>", ("<tool_call>", "")),
        post=TO_BYTES,
        eos="<|end_of_text|>",
        stops=("<|end_of_text|>",),
    ),
    "youtu": Family(
        pieces=False,
        normalizer=None,
        pre_tokenizer=byte_level(*map(split, PRE_TOKENIZERS["youtu"])),
        marks=marks("<|begin_of_text|> <|end_of_text|> <|User|> <|Assistant|>", ("<think>", "")),
        whole_words=True,
        post=template("<|begin_of_text|>"),
        eos="<|end_of_text|>",
        stops=("<|end_of_text|>",),
    ),
    "minicpm 3": Family(
        **LLAMA,
        marks=marks(f"{IM} <|tool_call|>"),
        post=template("<s>"),
        config=("</s>", "<|im_end|>"),
        stops=("</s>", "<|im_end|>"),
    ),
    "gpt-2": Family(
        pieces=False,
        normalizer=None,
        pre_tokenizer=byte_level(regex=True),
        marks=((EOT, "s"),),
        eos=EOT,
        stops=(EOT,),
    ),
    "gpt-neox, pythia": Family(
        pieces=False,
        normalizer=NFC,
        pre_tokenizer=byte_level(regex=True),
        marks=marks(f"{EOT} <|padding|>", *((" " * n, "n") for n in (2, 3, 4, 8, 24))),
        post=TO_BYTES,
        eos=EOT,
        config=(EOT,),
        stops=(EOT,),
    ),
    "starcoder": Family(
        pieces=False,
        normalizer=None,
        pre_tokenizer=byte_level(digits(True), regex=True),
        marks=marks(f"{EOT} <fim_prefix> <fim_suffix> <filename> <reponame>"),
        eos=EOT,
        stops=(EOT,),
    ),
    "stablelm 2": Family(
        pieces=False,
        normalizer=None,
        pre_tokenizer=byte_level(split(QWEN2)),
        marks=marks(f"{EOT} {IM} <|endofprompt|>"),
        eos="<|im_end|>",
        config=(EOT,),
        template=CHAT_ML,
        stops=(EOT, "<|im_end|>"),
    ),
    "command r, aya": Family(
        pieces=False,
        normalizer=NFC,
        pre_tokenizer=byte_level(digits(True), regex=True),
        marks=marks(
            "<PAD> <UNK> <BOS_TOKEN> <EOS_TOKEN> <|START_OF_TURN_TOKEN|> <|END_OF_TURN_TOKEN|>",
            *((name, "") for name in ("<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>", "<|SYSTEM_TOKEN|>")),
        ),
        post=template("<BOS_TOKEN>"),
        eos="<|END_OF_TURN_TOKEN|>",
        config=("<|END_OF_TURN_TOKEN|>",),
        template="<|START_OF_TURN_TOKEN|><|USER_TOKEN|>{{ x }}<|END_OF_TURN_TOKEN|>",
        stops=("<|END_OF_TURN_TOKEN|>",),
    ),
    "nemotron (sentencepiece)": Family(
        **LLAMA, marks=marks("<extra_id_0> <extra_id_1>"), post=template("<s>"), config=("</s>",)
    ),
    "afm": Family(
        **LLAMA3_PARTS
        | dict(marks=marks(f"{IM} <|begin_of_text|> <|end_of_text|>"), template=CHAT_ML),
        eos="<|im_end|>",
        stops=("<|im_end|>",),
    ),
    "falcon": Family(
        pieces=False,
        normalizer=None,
        pre_tokenizer={
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Punctuation", "behavior": "Contiguous"},
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
                digits(False),
                split("[0-9][0-9][0-9]"),
            ],
        },
        marks=((EOT, "s"), *((name, "s") for name in (">>TITLE<<", ">>ABSTRACT<<", ">>DOMAIN<<"))),
        eos=EOT,
        config=(EOT,),
        stops=(EOT,),
    ),
    "nanochat": Family(
        pieces=False,
        normalizer=None,
        pre_tokenizer=byte_level(split(NANOCHAT)),
        marks=marks("<|bos|> <|user_start|> <|user_end|> <|assistant_start|> <|assistant_end|>"),
        eos="<|assistant_end|>",
        template="<|bos|><|user_start|>{{ x }}<|user_end|><|assistant_start|>{{ y }}<|assistant_end|>",
        stops=("<|assistant_end|>",),
    ),
    "jais 2": Family(
        pieces=False,
        normalizer=None,
        pre_tokenizer=byte_level(split(pre_tokenizers.PRE_TOKENIZERS["jais-2"][0])),
        marks=marks(f"<|begin_of_text|> <|end_of_text|> {EOT}"),
        post=template("<|begin_of_text|>"),
        eos="<|end_of_text|>",
        stops=("<|end_of_text|>",),
    ),
}  # fmt: skip


# The tokenizers of the rows of README.md's table
ROWS = {
    "Llama": ("llama 1 and 2, mistral 0.1, mixtral", "tinyllama", "yi", "smollm 1 and 2"),
    "Llama 3": ("llama 3", "deepseek r1 distilled into llama"),
    "Llama with biases": ("llama 2 of 2023",),
    "Llama with yarn": ("llama 3, first release",),
    "Mistral": ("llama 1 and 2, mistral 0.1, mixtral", "mistral 0.3", "mistral nemo (tekken)"),
    "Mistral 3": ("mistral nemo (tekken)",),
    "Mixtral": ("llama 1 and 2, mistral 0.1, mixtral",),
    "Qwen2": ("qwen 2, 2.5, 3", "deepseek r1 distilled into qwen"),
    "Qwen3": ("qwen 2, 2.5, 3",),
    "Qwen 3.5": ("qwen 3.5",),
    "LFM2": ("lfm 2",),
    "dots.llm1": ("qwen 2, 2.5, 3",),
    "DeepSeek V1": ("deepseek llm",),
    "DeepSeek V2": ("deepseek llm",),
    "DeepSeek V3": ("deepseek 3",),
    "Kimi K2": (),  # of tiktoken, see below
    "Youtu": ("youtu",),
    "MiniCPM3": ("minicpm 3",),
    "SmolLM3": ("smollm 3",),
    "Phi-3": ("phi 3 and 3.5", "phi 4"),
    "Phi-4-mini": ("phi 4 mini",),
    "Gemma": ("gemma 1 and 2",),
    "Gemma 2": ("gemma 1 and 2",),
    "Gemma 3": ("gemma 3",),
    "Gemma 3n": ("gemma 3",),
    "Gemma 4": ("gemma 4",),
    "OLMo 2": ("olmo 2",),
    "OLMo 3": ("olmo 2",),
    "OLMoE": ("olmo 1, olmoe",),
    "Granite": ("granite 3",),
    "InternLM2": ("internlm 2",),
    "MiniCPM": ("minicpm",),
    "GLM-4": ("glm 4, glm 4 0414",),
    "InternLM3": ("internlm 3",),
    "Ministral": ("ministral (tekken)",),
    "Seed-OSS": ("seed-oss",),
    "ERNIE 4.5": ("ernie 4.5",),
    "EXAONE 4": ("exaone 4",),
    "MiniMax-M2": ("minimax m2",),
    "Solar Open": ("solar open",),
    "HY 3": ("hunyuan",),
    "FlexOlmo": ("olmo 2",),
    "gpt-oss": ("gpt-oss (o200k harmony)",),
    "Granite SWA": ("granite 4",),
    "Granite MoE SWA": ("granite 4",),
    "MiMo V2 Flash": ("qwen 2, 2.5, 3",),
    "Laguna": ("laguna",),
    "Llama 4": ("llama 4",),
    "HunYuan": ("hunyuan",),
    "HunYuan MoE": ("hunyuan a13b",),
    "CWM": ("llama 3",),
    "Mellum 2": ("mellum 2",),
    "EXAONE MoE": ("k-exaone",),
    "AFMoE": ("trinity",),
    "GPT-2": ("gpt-2",),
    "GPT-J": ("gpt-2",),
    "GPT-NeoX": ("gpt-neox, pythia",),
    "Phi-2": ("phi 1 and 2",),
    "Phi": ("phi 1 and 2",),
    "StarCoder": ("starcoder",),
    "StarCoder2": ("starcoder",),
    "StableLM": ("gpt-neox, pythia", "stablelm 2"),
    "OLMo": ("olmo 1, olmoe",),
    "Cohere": ("command r, aya",),
    "Nemotron": ("nemotron (sentencepiece)",),
    "Arcee": ("afm",),
    "Apertus": ("mistral nemo (tekken)",),
    "Falcon": ("falcon",),
    "nanochat": ("nanochat",),
    "Jais 2": ("jais 2",),
}
# Splits of families that the engine cannot make, and what is said of them
BEYOND = {
    "two at least": (r"(?:a|ab){2}", "a repeated group"),
    "what follows wants less": (r"(?:ab?)+b", "a group that what follows may want less often"),
    "places without width (SuperBPE)": (r"(?=(\d{3})+(?!\d))", "can match nothing"),
}


@pytest.mark.parametrize("name", BEYOND)
def test_a_familys_tokenizer_that_cannot_be_exact_is_refused(name: str) -> None:
    regex, message = BEYOND[name]
    with pytest.raises(ValueError, match=re.escape(message)):
        tokenizer_json.from_tokenizer_json(spec(False, None, byte_level(split(regex)), COMMON))


def test_every_family_of_the_readme_has_a_tokenizer_here() -> None:
    text = (Path(__file__).parent.parent / "README.md").read_text()
    table = text.split("| family | models |")[1].split("\n\n")[0]
    rows = [line.split("|")[1].strip() for line in table.split("\n")[2:]]
    assert len(rows) > 30
    for row in rows:  # "Qwen2-MoE" has that of "Qwen2", "Gemma 3 of texts and pictures" that of "Gemma 3"
        known = [name for name in ROWS if row == name or re.match(re.escape(name) + r"[-. ,]", row)]
        assert known, row
        assert set(ROWS[max(known, key=len)]) <= FAMILIES.keys()


def marked_texts(texts: list[str], names: list[str], seed: str) -> list[str]:
    """The texts, every second one with some of these names in it."""
    rng, out = random.Random(seed), list(texts)
    for i in range(0, len(out), 2):
        for _ in range(rng.choice([1, 1, 2, 3])):
            at = rng.randint(0, len(out[i]))
            mark = (
                rng.choice(["", "", " ", "  ", "\n", "▁"])
                + rng.choice(names)
                + rng.choice(["", "", " ", "\n"])
            )
            out[i] = out[i][:at] + mark + out[i][at:]
    return out


def write_model(folder: Path, file: dict, **others: dict) -> Path:
    """A model's directory with this tokenizer.json and other files; the flat file made from it."""
    for name, value in {"tokenizer": file, **others}.items():
        (folder / f"{name}.json").write_text(json.dumps(value))
    (folder / "model.llm").write_bytes(flat_file(huggingface_tokenizer.from_directory(folder)))
    return folder / "model.llm"


def ids_of(file: dict) -> dict[str, int]:
    return file["model"]["vocab"] | {token["content"]: token["id"] for token in file["added_tokens"]}


def stops_of(sections: dict[int, bytes], ids: dict[str, int]) -> set[str]:
    engine = Engine(sections)
    out = {text for text, i in ids.items() if lib.llm_token_is_stop(engine.tokenizer, i)}
    engine.close()
    return out


@pytest.mark.parametrize("name", FAMILIES)
def test_a_familys_tokenizer_is_that_of_the_library(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    file = family.file()
    compare(
        file, marked_texts(random_texts()[:1000], [text for text, _ in family.marks], name), defaults=True
    )
    assert "hard texts encode as" in verify_tokenizer.verify(write_model(tmp_path, file), tmp_path)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_familys_generation_ends_where_its_files_say(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    file = family.file()
    ids = ids_of(file)
    others: dict[str, dict] = {"tokenizer_config": {"eos_token": {"content": family.eos}}, "config": {}}
    if family.generation:
        found = [ids[text] for text in family.generation]
        others["generation_config"] = {"eos_token_id": found if len(found) > 1 else found[0]}
    if family.config:
        found = [ids[text] for text in family.config]
        others["config"] = {"eos_token_id": found if len(found) > 1 else found[0]}
    if len(name) % 2:
        (tmp_path / "chat_template.jinja").write_text(family.template)
    else:
        others["tokenizer_config"]["chat_template"] = family.template
    write_model(tmp_path, file, **others)
    assert stops_of(huggingface_tokenizer.from_directory(tmp_path), ids) == set(family.stops)


@pytest.mark.parametrize(
    "others, stops",
    [
        (dict(tokenizer_config={}), set()),
        (dict(tokenizer_config={"eos_token": "</s>"}), {"</s>"}),
        (dict(special_tokens_map={"eos_token": {"content": "</s>"}}), {"</s>"}),
        (dict(config={"eos_token_id": 2}), {"</s>"}),
        (dict(config={"text_config": {"eos_token_id": [2]}}), {"</s>"}),
        (dict(generation_config={"eos_token_id": [2, 1, 99_999_999]}), {"</s>", "<s>"}),
        (dict(generation_config={"eos_token_id": False}, config={"eos_token_id": None}), set()),
        (dict(tokenizer_config={"chat_template": [{"name": "x", "template": "<|im_end|>"}]}), {"<|im_end|>"}),
        (dict(chat_template={"chat_template": "<|im_end|>"}), {"<|im_end|>"}),
        (dict(tokenizer_config={"chat_template": "<|im_end|>", "eos_token": "</s>"}), {"</s>", "<|im_end|>"}),
        (dict(tokenizer_config={"chat_template": "<|end|>", "eos_token": "no such token"}), set()),
    ],
    ids=lambda value: str(sorted(value)) if isinstance(value, set) else str(value),
)  # fmt: skip
def test_stop_tokens_come_from_every_file_that_names_one(others: dict, stops: set, tmp_path: Path) -> None:
    file = spec(False, None, byte_level(regex=True), marks("", ("<|im_end|>", "")))
    write_model(tmp_path, file, **others)
    assert stops_of(huggingface_tokenizer.from_directory(tmp_path), ids_of(file)) == stops


def test_the_eos_of_the_post_processor_does_not_hide_that_of_tokenizer_config(tmp_path: Path) -> None:
    file = spec(False, None, byte_level(regex=True), marks(EOT), post=template(None, EOT))
    write_model(tmp_path, file, tokenizer_config={"eos_token": "</s>"})
    assert stops_of(huggingface_tokenizer.from_directory(tmp_path), ids_of(file)) == {"</s>", EOT}


@pytest.mark.parametrize(
    "named, stops",
    [
        ({"eos_token_id": "</s>"}, set()),
        ({"eos_token_id": "<s>"}, {"<s>"}),
        ({"eot_token_id": "<|reserved_special_token_9|>"}, {"<|reserved_special_token_9|>"}),
        ({"eos_token_id": "<s>", "chat_template": "{{ x }}<|eot_id|>"}, {"<s>", "<|eot_id|>"}),
        ({"fim_pad_token_id": "<unk>"}, {"<unk>"}),
        ({}, set()),
    ],
    ids=lambda value: str(sorted(value)) if isinstance(value, set) else str(value),
)
def test_stop_tokens_of_gguf(named: dict, stops: set) -> None:
    file = FAMILIES["llama 3"].file()
    ids = ids_of(file)
    texts = sorted(ids, key=ids.__getitem__)
    special = {token["content"] for token in file["added_tokens"]}
    fields = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "llama-bpe",
        "tokenizer.ggml.tokens": texts,
        "tokenizer.ggml.token_type": [3 if text in special else 1 for text in texts],
        "tokenizer.ggml.merges": [" ".join(merge) for merge in file["model"]["merges"]],
    }
    for name, text in named.items():
        key = "tokenizer.chat_template" if name == "chat_template" else f"tokenizer.ggml.{name}"
        fields[key] = ids.get(text, text)
    # llama.cpp knows these by their texts; where there is a template, it names those that end a turn
    ends = {"</s>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>"} if "chat_template" not in named else set()
    assert stops_of(gguf_tokenizer.from_gguf(fields), ids) == stops | ends


@pytest.mark.parametrize(
    "texts, stops",
    [
        ("<|im_end|> <|endoftext|> <x>", "<|im_end|> <|endoftext|>"),
        ("<|end|> <|return|> <|call|> </s>", "<|return|> <|call|> </s>"),
        ("<|end|> <|flush|> <|calls|>", "<|flush|> <|calls|>"),
        ("<|end|> <|return|>", "<|end|> <|return|>"),
        ("<turn|> </s> <|tool_response> <eos>", "<turn|> <|tool_response> <eos>"),
        ("[e~[ [EOS] <EOT> <end_of_turn>", "[e~[ [EOS] <EOT> <end_of_turn>"),
        ("<fim_pad> <|fim_pad|> <REPO> <|file_sep|>", "<|fim_pad|> <REPO> <|file_sep|>"),
    ],
)
def test_a_gguf_stops_at_tokens_that_llama_cpp_knows_by_their_texts(texts: str, stops: str) -> None:
    names = texts.split()
    fields = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": ["a", *names],
        "tokenizer.ggml.token_type": [1, *[3] * len(names)],
        "tokenizer.ggml.merges": [],
    }
    found = stops_of(gguf_tokenizer.from_gguf(fields), {text: i for i, text in enumerate(["a", *names])})
    assert found == set(stops.split())


BLOOM = " ?[^(\\s|.,!?…。，、।۔،)]+"
# As llama.cpp's source has them, or has the original in a comment
LLAMA_CPP = {
    "exaone4": [pattern.GPT2],
    "a.x-4.0": [pattern.GPT2],
    "trillion": [pattern.GPT2],
    "minimax-m2": [GPT4O],
    "glm4": [LLAMA3],
    "chatglm-bpe": [LLAMA3],
    "midm-2.0": [LLAMA3],
    "pixtral": [LLAMA3],
    "minicpm5": [
        r"\p{N}{1,3}",
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
        r"|\s+(?!\S)|\s+",
    ],
    "seed-coder": [
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+"
        r"|\s+(?!\S)|\s+"
    ],
    "qwen35": [
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    ],
    "bailingmoe": [
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]"
        r"|\s+(?!\S)|\s+"
    ],
    "falcon": [
        r"[\p{P}\$\+<=>\^~\|`]+",
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
        r"[0-9][0-9][0-9]",
    ],
    "viking": [BLOOM, r"\p{N}"],
    "bloom": [BLOOM],
    "ufakzeka": [
        r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ],
    "laguna": [r"[^\n]+|[\n]+", QWEN2],
    "exaone-moe": [K_EXAONE],
    "afmoe": AFMOE,
    "tiny_aya": [r"\d{1,3}(?=(?:\d{3})*\b)", GPT4O],
    "kimi-k2": [KIMI],
}  # fmt: skip


@pytest.mark.parametrize("name", LLAMA_CPP)
def test_gguf_splits_as_llama_cpp_splits(name: str) -> None:
    """The library with llama.cpp's expressions, on a vocabulary learned across every border."""
    file = spec(
        False,
        NFC if name == "qwen35" else None,
        byte_level(*map(split, LLAMA_CPP[name])),
        COMMON,
        whole_words=name in ("glm4", "midm-2.0", "pixtral", "minicpm5"),
    )
    reference = Tokenizer.from_str(json.dumps(file))
    ours = Engine(gguf_tokenizer.from_gguf(gguf_fields(reference, name)))
    texts = [*random_texts()[::5], *verify_tokenizer.hard_strings()]
    theirs = [e.ids for e in reference.encode_batch(texts, add_special_tokens=False)]
    assert_same(texts, [ours.encode(t) for t in texts], theirs)
    ours.close()


def random_expression(rng: random.Random, depth: int = 3) -> str:
    """With groups that are repeated, borders and looks ahead, over a few characters."""
    if depth == 0 or rng.random() < 0.35:
        atom = rng.choice(["a", "b", "1", " ", "[ab]", "[a1]", r"\w", r"\d", "[^a]"])
        return atom + rng.choice(["", "", "?", "*", "+", "{2}", "{1,2}"])
    inner = [random_expression(rng, depth - 1) for _ in range(rng.randint(1, 3))]
    kind = rng.random()
    if kind < 0.2:
        return f"(?:{'|'.join(inner)})"
    if kind < 0.7:
        return f"(?:{rng.choice(['', '|']).join(inner)}){rng.choice(['*', '+', '*+', '++', '?', '{0,2}'])}"
    if kind < 0.8:
        return "".join(inner) + rng.choice([r"\b", r"\B"])
    if kind < 0.9:
        return "".join(inner) + rng.choice(["(?=", "(?!"]) + random_expression(rng, depth - 1) + ")"
    return "".join(inner)


def test_repeated_groups_match_what_oniguruma_matches() -> None:
    """Random expressions, those that are not refused, on texts whose pieces are a token each."""
    rng, letters = random.Random(5), "ab1 "
    texts = ["".join(text) for n in range(1, 6) for text in itertools.product(letters, repeat=n)]
    vocab = {text.replace(" ", "Ġ"): i for i, text in enumerate(texts)}
    model = {"type": "BPE", "vocab": vocab, "merges": [], "ignore_merges": True}
    tried = repeated = 0
    while repeated < 150:
        regex = random_expression(rng)
        file = {"pre_tokenizer": byte_level(split(regex)), "decoder": TO_BYTES, "model": model}
        try:
            found = tokenizer_json.from_tokenizer_json(file)
        except ValueError:
            continue
        tried += 1
        repeated += any(code[0] == lib.LLM_OP_LOOP for code in found.program.code)
        ours, cut = Engine(found.sections()), pre.Split(tokenizers.Regex(regex), "isolated")
        for text in rng.sample(texts, 60):
            pieces = [piece.replace(" ", "Ġ") for piece, _ in cut.pre_tokenize_str(text)]
            assert ours.encode(text) == [vocab[piece] for piece in pieces], (regex, text)
        ours.close()
    assert tried > repeated


def test_a_long_number_is_split_from_the_right_soon() -> None:
    file = spec(False, None, byte_level(split(AFMOE[0])), COMMON, whole_words=True)
    ours = Engine(tokenizer_json.from_tokenizer_json(file).sections())
    digits = "".join(random.Random(3).choices("123456789", k=100_000))
    assert len(digits) % 3 == 1
    assert ours.encode(digits) == ours.encode(digits[0]) + [
        token for at in range(1, len(digits), 3) for token in ours.encode(digits[at : at + 3])
    ]
    ours.close()


# ----------------------------------------------------------------------------------------------------------
# Every combination

NORMALIZERS: dict[str, dict | None] = {
    "none": None,
    "nfc": NFC,
    "▁ before": PREPEND,
    "▁ for space": REPLACE,
    "▁ before and for space": normal(PREPEND, REPLACE),
    "▁ for space and before": normal(REPLACE, PREPEND),
    "nfc, ▁ for space": normal(NFC, {**REPLACE, "pattern": {"Regex": " "}}),
    "x before": {"type": "Prepend", "prepend": "x"},
    "replace": normal(
        {"type": "Replace", "pattern": {"String": "the"}, "content": "e\u0301"},
        NFC,
        {"type": "Replace", "pattern": {"String": "\n"}, "content": ""},
    ),
    "space for a": normal(REPLACE, {"type": "Replace", "pattern": {"String": "a"}, "content": " "}),
    "lower case": {"type": "Lowercase"},
}
PRE_TOKENIZERS: dict[str, tuple[bool, dict | None]] = {
    "gpt2": (False, byte_level(regex=True)),
    "gpt2, prefix": (False, byte_level(regex=True, prefix=True)),
    "bytes": (False, byte_level()),
    "bytes, prefix": (False, byte_level(prefix=True)),
    "digits, gpt2": (False, byte_level(digits(True), regex=True)),
    "digits together, bytes": (False, byte_level(digits(False))),
    "digits, prefix": (False, byte_level(digits(True), prefix=True)),
    **{
        name: (False, byte_level(split(regex)))
        for name, regex in (("llama 3", LLAMA3), ("qwen 2", QWEN2), ("tekken", TEKKEN), ("gpt-4o", GPT4O))
    },
    "gpt-4o, contractions spelled out": (
        False,
        byte_level(
            split(
                GPT4O.replace(
                    "(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
                    "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])?",
                )
            )
        ),
    ),
    **{
        f"{behavior}{', inverted' * invert}": (
            False,
            byte_level(split(r"\p{P}|\s\d?", behavior, invert), digits(True)),
        )
        for behavior in pattern.SPLITS
        for invert in (False, True)
    },
    "nothing": (True, None),
    "spaces": (True, GEMMA),
    "spaces, digits": (True, {"type": "Sequence", "pretokenizers": [GEMMA, digits(True)]}),
    **{
        f"metaspace {scheme}{', split' * cut}": (True, metaspace(scheme, cut))
        for scheme in ("always", "first", "never")
        for cut in (False, True)
    },
    "metaspace, digits": (
        True,
        {"type": "Sequence", "pretokenizers": [metaspace("first", False), digits(True), split(r"\p{P}")]},
    ),
    "split, metaspace": (
        True,
        {"type": "Sequence", "pretokenizers": [digits(True), metaspace("never", True)]},
    ),
}  # fmt: skip


def refusal(norm: str, name: str) -> str:
    """What must be in the message where a combination is refused; "" where it must not be."""
    pieces, _ = PRE_TOKENIZERS[name]
    if norm in ("lower case", "space for a"):
        return "the normalizer"
    if name == "digits, prefix":
        return "pre-tokenizer after a split"
    if norm == "replace" and pieces and "first" in str(PRE_TOKENIZERS[name]):
        return "deletes text"
    if name == "split, metaspace":
        return "the pre-tokenizer"
    if not pieces:
        return "the pre-tokenizer" if "▁ for space" in norm or "for space" in norm else ""
    if name in ("nothing", "spaces", "spaces, digits") and "for space" not in norm:
        return "the decoder does not undo the pre-tokenizer"
    return ""


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_every_combination_is_exact_or_refused(name: str) -> None:
    pieces, pre_tokenizer = PRE_TOKENIZERS[name]
    texts = marked_texts(random_texts()[3000:3150], ["<s>", "<tool>"], name)
    texts += verify_tokenizer.hard_strings(["<tool>"])[::3]
    for norm, normalizer in NORMALIZERS.items():
        file = spec(pieces, normalizer, pre_tokenizer, marks("", ("<tool>", "")))
        if message := refusal(norm, name):
            with pytest.raises(ValueError, match=re.escape(message)):
                tokenizer_json.from_tokenizer_json(file)
        else:
            compare(file, texts)


# ----------------------------------------------------------------------------------------------------------
# Added tokens of every sort

AROUND: dict[str, tuple[bool, dict | None, dict | None, bool]] = {
    "bytes": (False, None, byte_level(regex=True), False),
    "bytes, nfc": (False, NFC, byte_level(split(QWEN2)), False),
    "bytes, prefix": (False, None, byte_level(regex=True, prefix=True), False),
    "bytes, x before": (False, NORMALIZERS["x before"], byte_level(), False),
    "bytes, replace": (False, NORMALIZERS["replace"], byte_level(), False),
    "llama 2": (True, normal(PREPEND, REPLACE), None, True),
    "gemma": (True, REPLACE, GEMMA, False),
    "gemma, nfc": (True, normal(NFC, REPLACE), GEMMA, False),
    "metaspace always": (True, None, metaspace("always", True), False),
    "metaspace first": (True, None, metaspace("first", False), True),
    "metaspace first, nfc": (True, NFC, metaspace("first", True), False),
    "metaspace never": (True, None, metaspace("never", True), False),
}
PIECES = (
    "<a> <b> ab abc b <a><b> é e\u0301 \u0301 \u00c5 \u212b zebra the 's 12 世 < <| |> <|x|> A ▁a ▁".split(),
    [" ", "  ", "\n", " x", "x ", "<a> "],
    [" ", "  ", "\n", "\t", "▁", "\u00a0", "\u3000", "the", "word", "e", "_", "x", "1", ".", "\u0301"],
)


@pytest.mark.parametrize("name", AROUND)
def test_added_tokens_of_every_sort(name: str) -> None:
    pieces, normalizer, pre_tokenizer, strip = AROUND[name]
    rng, refused = random.Random(name), 0
    for _ in range(16):
        # the library panics where a token that begins with a space stands behind one that takes it along
        takes, wild = rng.random() < 0.5, rng.random() < 0.4
        names = PIECES[0] if takes else PIECES[0] + PIECES[1]
        sorts = [letter for letter in "snlrw" if letter != "r" or takes]
        added = []
        for text in rng.sample(names, rng.randint(1, 7)):
            letters = "".join(letter for letter in sorts if rng.random() < 0.4)
            added.append(
                (
                    text,
                    letters
                    if wild or "l" not in letters + letters.replace("r", "l")
                    else letters.replace("n", ""),
                )
            )
        file = spec(pieces, normalizer, pre_tokenizer, (*COMMON, *added), strip)
        parts = [text for text, _ in added] * 2 + PIECES[2]
        texts = ["".join(rng.choices(parts, k=rng.randint(1, 7))) for _ in range(250)]
        try:
            tokenizer_json.from_tokenizer_json(file)
        except ValueError as error:
            assert re.search("the (normalized )?added tokens? .* not supported", str(error))
            refused += 1
            continue
        compare(file, texts)
    assert refused <= 12


def test_added_tokens_that_are_the_same_when_normalized_are_refused() -> None:
    """The library then takes one by chance."""
    file = spec(False, NFC, byte_level(), (*COMMON, ("<\u00c5>", "n"), ("<A\u030a>", "sn")))
    with pytest.raises(ValueError, match="by chance"):
        tokenizer_json.from_tokenizer_json(file)


def test_merges_with_the_tokens_of_bytes_are_refused() -> None:
    """Their text is not what they stand for."""
    file = FAMILIES["gemma 3"].file()
    file["model"]["vocab"] |= {"0A": 2600, "0A>": 2601, "<0x": 2602}
    file["model"]["merges"].append(["<0x", "0A>"])
    with pytest.raises(ValueError, match="has a merge to '<0x0A>' with a token for a byte"):
        tokenizer_json.from_tokenizer_json(file)


# ----------------------------------------------------------------------------------------------------------
# The check at conversion


def change(path: str, value: object) -> Callable[[dict], None]:
    """Sets a value inside tokenizer.json, given by its keys."""

    def apply(file: dict) -> None:
        *keys, last = (int(key) if key.isdigit() else key for key in path.split("/"))
        for key in keys:
            file = file[key]
        file[last] = value

    return apply


def in_pattern(old: str, new: str) -> Callable[[dict], None]:
    def apply(file: dict) -> None:
        given = file["pre_tokenizer"]["pretokenizers"][0]["pattern"]
        assert old in given["Regex"]
        given["Regex"] = given["Regex"].replace(old, new)

    return apply


def without_merge(file: dict) -> None:
    merges = file["model"]["merges"]
    merges.remove(
        next(merge for merge in merges[::-1] if "".join(merge).isascii() and "".join(merge).isalpha())
    )


def exchanged_merges(file: dict) -> None:
    """Of three letters, the later two now come first."""
    merges = [merge for merge in file["model"]["merges"] if "".join(merge).isalpha()]
    first, then = next((a, b) for a in merges for b in merges if a[1] == b[0] and a < b)
    first[:], then[:] = then, list(first)


def shifted_ids(file: dict) -> None:
    for token in file["added_tokens"][-2:]:
        token["id"] += 1


SABOTAGE: dict[str, tuple[str, Callable[[dict], None]]] = {
    "no nfc": ("qwen 2, 2.5, 3", change("normalizer", None)),
    "nfc": ("llama 3", change("normalizer", NFC)),
    "digits by two": ("llama 3", in_pattern("{1,3}", "{1,2}")),
    "digits by four": ("llama 3", in_pattern("{1,3}", "{1,4}")),
    "digits one by one": ("llama 3", in_pattern("{1,3}", "")),
    "digits of ascii": ("qwen 2, 2.5, 3", in_pattern(r"|\p{N}|", r"|[0-9]|")),
    "contractions in lower case": ("llama 3", in_pattern("(?i:", "(?:")),
    "one contraction less": ("llama 3", in_pattern("|'ll|", "|")),
    "no line ends behind punctuation": ("llama 3", in_pattern(r"+[\r\n]*|", "+|")),
    "no space before punctuation": ("llama 3", in_pattern("| ?[^", "|[^")),
    "nothing before a word": ("llama 3", in_pattern(r"[^\r\n\p{L}\p{N}]?\p{L}+", r"\p{L}+")),
    "line ends before a word": ("llama 3", in_pattern(r"[^\r\n\p{L}\p{N}]?\p{L}+", r"[^\p{L}\p{N}]?\p{L}+")),
    "no look at what follows spaces": ("llama 3", in_pattern(r"\s+(?!\S)|", "")),
    "marks are letters": ("llama 3", in_pattern(r"\p{L}+|\p{N}", r"[\p{L}\p{M}]+|\p{N}")),
    "no title case": ("mistral nemo (tekken)", in_pattern(r"\p{Lt}", "")),
    "no slash": ("mistral nemo (tekken)", in_pattern(r"[\r\n/]*", r"[\r\n]*")),
    "contractions in front": ("phi 4 mini", in_pattern("(?i:'s|'t|'re|'ve|'m|'ll|'d)?", "")),
    "unmatched text kept": ("phi 4", change("pre_tokenizer/pretokenizers/0/invert", False)),
    "fewer scripts": (
        "deepseek 3",
        change("pre_tokenizer/pretokenizers/1/pattern/Regex", "[\u4e00-\u9fa5]+"),
    ),
    "digits together": ("smollm 1 and 2", change("pre_tokenizer/pretokenizers/0/individual_digits", False)),
    "no stage for digits": ("granite 3", change("pre_tokenizer", byte_level(regex=True))),
    "prefix space": ("smollm 1 and 2", change("pre_tokenizer", byte_level(regex=True, prefix=True))),
    "merges before whole words": ("llama 3", change("model/ignore_merges", False)),
    "a merge less": ("granite 3", without_merge),
    "two merges exchanged": ("gemma 3", exchanged_merges),
    "no prefix": ("llama 1 and 2, mistral 0.1, mixtral", change("normalizer", REPLACE)),
    "prefix at the start only": (
        "llama as transformers 5 writes it",
        change("pre_tokenizer/prepend_scheme", "first"),
    ),
    "prefix everywhere": ("mistral 0.3", change("pre_tokenizer/prepend_scheme", "always")),
    "no byte fallback": ("gemma 3", change("model/byte_fallback", False)),
    "unknown characters one by one": ("gemma 3", change("model/fuse_unk", False)),
    "not stripped": ("phi 3 and 3.5", change("added_tokens/2/rstrip", False)),
    "stripped": ("llama 3", change("added_tokens/4/lstrip", True)),
    "whole words only": ("llama 3", change("added_tokens/4/single_word", True)),
    "not special": ("llama 3", change("added_tokens/4/special", False)),
    "not normalized": ("minicpm", change("added_tokens/3/normalized", False)),
    "an added token less": ("gemma 3", lambda file: file["added_tokens"].pop(10)),
    "other ids": ("qwen 2, 2.5, 3", shifted_ids),
    "space kept at the start": ("internlm 2", lambda file: file["decoder"]["decoders"].pop()),
    "bytes not decoded": ("gemma 3", lambda file: file["decoder"]["decoders"].pop(1)),
}  # fmt: skip


@pytest.mark.parametrize("name", SABOTAGE)
def test_a_tokenizer_that_is_subtly_wrong_is_refused(name: str, tmp_path: Path) -> None:
    """The flat file is made of a changed tokenizer.json and checked against the true one."""
    family, apply = SABOTAGE[name]
    true = FAMILIES[family].file()
    wrong = json.loads(json.dumps(true))
    if name == "unknown characters one by one":
        true["model"]["byte_fallback"] = wrong["model"]["byte_fallback"] = False
    apply(wrong)
    model = write_model(tmp_path, wrong)
    (tmp_path / "tokenizer.json").write_text(json.dumps(true))
    with pytest.raises(ValueError, match="(becomes|has the id).*(library makes|library gives)"):
        verify_tokenizer.verify(model, tmp_path)


# ----------------------------------------------------------------------------------------------------------
# Vocabularies of full size


@functools.cache
def made_up_words() -> list[str]:
    rng, out = random.Random(1), []
    scripts = ["abcdefghijklmnopqrstuvwxyz"] * 5 + [
        "ABCDEFGHIJKLMNOPQRSTUVWXYZ", "абвгдежзийклмнопрстуфхцчшыэюя", "αβγδεζηθικλμνξοπρστυφχψω",
        "ابتثجحخدذرزسشصضطظعغفقكلمنهوي", "अआइईकखगघचछजझटठडतथदधनपफबभमयरलवशषसह",
    ]  # fmt: skip
    syllables = [["".join(rng.choices(s, k=rng.randint(1, 3))) for _ in range(300)] for s in scripts]
    for _ in range(120_000):
        kind = rng.randrange(len(scripts) + 1)
        if kind < len(scripts):
            out.append("".join(rng.choices(syllables[kind], k=rng.randint(1, 4))))
        else:
            out.append("".join(chr(rng.randrange(0x4E00, 0x6E00)) for _ in range(rng.randint(1, 3))))
    return list(dict.fromkeys(out))


def made_up_text(size: int) -> str:
    """Words of which few are frequent, numbers, punctuation, code."""
    words, rng, out = made_up_words(), random.Random(2), []
    for _ in range(size // 8):
        at = int(rng.paretovariate(0.35)) - 1
        word = words[at] if at < len(words) else rng.choice(words)
        out += [
            str(at % 10**9) if rng.random() < 0.05 else word,
            rng.choice([" "] * 12 + [", ", ".\n", "\n\n    ", "'s "]),
        ]
    return "".join(out) + "".join(random_texts()[:300])


def full_model(first: list[str], n: int, write: Callable[[str], str], whole_words: bool) -> dict:
    """A model of n tokens: those given, then words with all their beginnings; every merge that makes one."""
    ids = {text: i for i, text in enumerate(first)}
    for word in made_up_words():
        for text in (write(" " + word), write(word)):
            for end in range(1, len(text) + 1):
                ids.setdefault(text[:end], len(ids))
        if len(ids) >= n:
            break
    ids = {text: i for text, i in ids.items() if i < n}
    merges = [
        [text[:cut], text[cut:]]
        for text in ids
        if text[:1] != "<"
        for cut in range(1, len(text))
        if text[cut:] in ids and text[:cut] in ids
    ]
    return {"type": "BPE", "vocab": ids, "merges": merges, "ignore_merges": whole_words}


@pytest.mark.parametrize(
    "family, n, n_special, n_merges", [("llama 3", 128_256, 256, 280_000), ("gemma 3", 262_144, 0, 500_000)]
)
def test_vocabularies_of_full_size(
    family: str, n: int, n_special: int, n_merges: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts, pieces = FAMILIES[family], FAMILIES[family].pieces
    if pieces:
        first = [text for text, _ in parts.marks] + BYTES + ["▁", *"0123456789.,'-\n"]
        model = full_model(first, n, lambda text: text.replace(" ", "▁"), False)
        model |= {"byte_fallback": True, "unk_token": "<unk>", "fuse_unk": True}
    else:
        letters = {byte: char for char, byte in vocabulary.ALPHABET.items()}
        write = lambda text: "".join(letters[byte] for byte in text.encode())  # noqa: E731
        model = full_model(list(vocabulary.ALPHABET), n - n_special, write, True)
    ids = model["vocab"]
    file = parts.file() | {"model": model, "post_processor": None, "added_tokens": []}
    names = [*parts.marks, *((f"<|reserved_{i}|>", "s") for i in range(max(0, n_special - len(parts.marks))))]
    for i, (text, letter) in enumerate(names):
        switches = {name: letter == "s" and name == "special" for name in SWITCHES}
        file["added_tokens"].append({"id": ids.get(text, n - n_special + i), "content": text, **switches})
    assert len(ids) + n_special == n and len(model["merges"]) >= n_merges
    text = made_up_text(300_000)
    hard = verify_tokenizer.hard_strings
    monkeypatch.setattr(verify_tokenizer, "hard_strings", lambda marks: [text, *hard(marks)])
    assert f"so do all {n} tokens" in verify_tokenizer.verify(write_model(tmp_path, file), tmp_path)
    ours = verify_tokenizer.Engine(tmp_path / "model.llm")
    assert len(ours.encode(text, NO_BOS)) < len(text.encode()) / 2  # merges do happen
    ours.close()


# ----------------------------------------------------------------------------------------------------------
# tekken.json


def merged(data: bytes, ranks: dict[bytes, int]) -> list[int]:
    """The ids of a piece, as tiktoken merges: the pair whose result has the lowest rank, the leftmost of
    equals."""
    parts = [data] if data in ranks else [bytes([byte]) for byte in data]
    while len(parts) > 1:
        found = [
            (ranks[a + b], i)
            for i, (a, b) in enumerate(zip(parts, parts[1:], strict=False))
            if a + b in ranks
        ]
        if not found:
            break
        at = min(found)[1]
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return [ranks[part] for part in parts]


def tekken_file(n_special: int = 30) -> dict:
    model = json.loads(learned(False))["vocab"]
    tokens = [text for text in model if all(char in vocabulary.ALPHABET for char in text)]
    vocab = [
        bytes(vocabulary.ALPHABET[char] for char in text) for text in tokens if text not in ("<s>", "</s>")
    ]
    vocab.sort(key=len)  # bytes first
    size = n_special + len(vocab) - 7  # the last seven are not used
    items = [
        {
            "rank": i,
            "token_bytes": base64.b64encode(data).decode(),
            "token_str": data.decode(errors="replace"),
        }
        for i, data in enumerate(vocab)
    ]
    config = {
        "pattern": TEKKEN,
        "default_vocab_size": size,
        "default_num_special_tokens": n_special,
        "version": "v3",
    }
    return {
        "config": config,
        "vocab": items,
        "special_tokens": [{"rank": 25, "token_str": "[THINK]", "is_control": True}],
    }


def test_tekken_json_merges_as_tiktoken_does(tmp_path: Path) -> None:
    file = tekken_file()
    (tmp_path / "tekken.json").write_text(json.dumps(file))
    sections = huggingface_tokenizer.from_directory(tmp_path)
    ours = Engine(sections)
    used = file["config"]["default_vocab_size"] - 30
    ranks = {base64.b64decode(item["token_bytes"]): 30 + item["rank"] for item in file["vocab"][:used]}
    cut = pre.Split(tokenizers.Regex(TEKKEN), "isolated")
    for text in random_texts()[:2000]:
        pieces = [piece for piece, _ in cut.pre_tokenize_str(text)] if text else []
        expected = [i for piece in pieces for i in merged(piece.encode(), ranks)]
        assert ours.encode(text, NO_BOS) == expected, text
        assert ours.decode(expected) == text
    assert ours.encode("[INST]a[THINK]<SPECIAL_26>", SPECIAL) == [1, 3, ranks[b"a"], 25, 26]
    assert stops_of(sections, {"<s>": 1, "</s>": 2}) == {"</s>"}
    ours.close()


def kimi(folder: Path) -> dict[bytes, int]:
    """Kimi's files, with a vocabulary learned here; returns its ranks."""
    ranks = {base64.b64decode(item["token_bytes"]): item["rank"] for item in tekken_file()["vocab"]}
    lines = [f"{base64.b64encode(data).decode()} {rank}\n" for data, rank in ranks.items()]
    (folder / "tiktoken.model").write_text("".join(lines))
    names = {len(ranks): "[BOS]", len(ranks) + 1: "[EOS]", len(ranks) + 3: "<|im_user|>"}
    config = {
        "added_tokens_decoder": {i: {"content": text, "special": True} for i, text in names.items()},
        "auto_map": {"AutoTokenizer": ["tokenization_kimi.TikTokenTokenizer", None]},
        "bos_token": "[BOS]",
        "eos_token": {"content": "[EOS]"},
        "tokenizer_class": "TikTokenTokenizer",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": len(ranks) + 3}))
    return ranks


def test_kimis_tokenizer_is_read_as_tiktoken_reads_it(tmp_path: Path) -> None:
    """By the library, where it is installed; its expression has to be given to both."""
    ranks = kimi(tmp_path)
    ours = Engine(huggingface_tokenizer.from_directory(tmp_path))
    cut = pre.Split(tokenizers.Regex(KIMI), "isolated")

    def expected(text: str) -> list[int]:
        pieces = [piece for piece, _ in cut.pre_tokenize_str(text)] if text else []
        return [i for piece in pieces for i in merged(piece.encode(), ranks)]

    if importlib.util.find_spec("tiktoken"):
        library = importlib.import_module("tiktoken").Encoding(
            "kimi", pat_str=KIMI, mergeable_ranks=ranks, special_tokens={}
        )
        expected = library.encode_ordinary
    for text in random_texts()[:2000]:
        assert ours.encode(text) == expected(text), text
    n = len(ranks)
    assert ours.encode(f"[BOS]a<|reserved_token_{n + 2}|>", SPECIAL) == [n, ranks[b"a"], n + 2]
    assert [i for i in range(n + 256) if lib.llm_token_is_stop(ours.tokenizer, i)] == [n + 1, n + 3]
    assert lib.llm_token_count(ours.tokenizer) == n + 256
    ours.close()


@pytest.mark.parametrize(
    "file, old, new, message",
    [
        (
            "tokenizer_config.json",
            "tokenization_kimi",
            "tokenization_other",
            "only known of tokenization_kimi",
        ),
        ("tokenizer_config.json", '"auto_map"', '"auto"', "has None"),
        ("tokenizer_config.json", '"content": "[BOS]"', '"content": 3', "is no text"),
        ("tiktoken.model", " 3\n", " 4\n", "line 4 is not a token in base 64 and the rank 3"),
        ("tiktoken.model", " 3\n", "\n", "line 4 is not"),
        ("tiktoken.model", "AA== ", "?? ", "is not a token in base 64"),
        ("tiktoken.model", "AA== ", "AQ== ", "has a token twice or lacks a byte"),
    ],
)
def test_strange_files_of_kimi_are_refused(
    tmp_path: Path, file: str, old: str, new: str, message: str
) -> None:
    kimi(tmp_path)
    text = (tmp_path / file).read_text()
    assert old in text
    (tmp_path / file).write_text(text.replace(old, new, 1))
    with pytest.raises(ValueError, match=re.escape(message)):
        huggingface_tokenizer.from_directory(tmp_path)


@pytest.mark.parametrize(
    "path, value",
    [
        ("config", None),
        ("config/pattern", "(a*)+"),
        ("config/default_vocab_size", 5_000_000),
        ("config/default_num_special_tokens", 1 << 30),
        ("vocab", {}),
        ("vocab/3/token_bytes", "###"),
        ("vocab/3/token_bytes", "YWI="),
        ("vocab/3/rank", 4),
        ("special_tokens", [{"rank": "x"}]),
    ],
)
def test_a_strange_tekken_json_is_refused(path: str, value: object) -> None:
    file = tekken_file()
    change(path, value)(file)
    with pytest.raises(ValueError):
        tekken.from_tekken(file)


def test_punctuation_is_the_librarys() -> None:
    """Every character: whether Punctuation splits before and behind it."""
    punctuation, found = tokenizer_json.punctuation(), pre.Punctuation("isolated")
    for first in range(0, 0x110000, 0x1000):
        chars = [c for c in range(first, first + 0x1000) if not 0xD800 <= c < 0xE000]
        pieces = found.pre_tokenize_str("".join(f"a{chr(c)}a" for c in chars))
        alone = {piece for piece, _ in pieces if len(piece) == 1}
        assert {c for c in chars if punctuation >> c & 1} == {ord(c) for c in alone if c != "a"}


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ({"type": "Digits", "individual_digits": True}, "pre-tokenizer after ByteLevel"),
        ({"type": "Whitespace"}, "pre-tokenizer after ByteLevel"),
        (split("[0-9][0-9]"), "pre-tokenizer after ByteLevel"),
        (split("[0-9][0-9][0-9]", "Removed"), "pre-tokenizer after ByteLevel"),
    ],
)
def test_other_pre_tokenizers_behind_the_bytes_are_refused(step: dict, message: str) -> None:
    file = json.loads(json.dumps(FAMILIES["falcon"].file()))
    file["pre_tokenizer"]["pretokenizers"][2] = step
    with pytest.raises(ValueError, match=message):
        tokenizer_json.from_tokenizer_json(file)


def test_tokens_of_digits_and_bytes_are_refused_behind_falcons_digits() -> None:
    file = json.loads(json.dumps(FAMILIES["falcon"].file()))
    vocab, merges = file["model"]["vocab"], file["model"]["merges"]
    vocab["½1"] = max(vocab.values()) + 100
    merges.append(["½", "1"])
    with pytest.raises(ValueError, match="'½1' of digits and bytes"):
        tokenizer_json.from_tokenizer_json(file)
    merges.pop()
    file["model"]["ignore_merges"] = True
    with pytest.raises(ValueError, match="'ignore_merges' beside digits apart"):
        tokenizer_json.from_tokenizer_json(file)
