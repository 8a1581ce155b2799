"""Reads the contents of a tokenizer.json, as the tokenizers library runs them."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from pyllm._llm import lib

from . import pattern
from .vocabulary import ALPHABET, METASPACE, Added, Vocabulary, as_ids, byte_of, get, new_program


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
    text, regex = (given.get("String"), given.get("Regex")) if isinstance(given, dict) else (None, None)
    if isinstance(text, str):
        return text
    if isinstance(regex, str) and re.fullmatch(r"[\w ]+", regex):
        return regex
    return None


def read_normalizer(vocabulary: Vocabulary, steps: list[dict[str, Any]]) -> None:
    for step in steps:
        kind = step.get("type")
        if kind == "NFC":
            vocabulary.steps.append((lib.LLM_NORMALIZE_NFC, "", ""))
        elif kind == "Prepend" and isinstance(step.get("prepend"), str):
            if vocabulary.metaspace and " " in step["prepend"]:
                raise unsupported("normalizer", step)
            vocabulary.steps.append((lib.LLM_NORMALIZE_PREPEND, "", step["prepend"]))
        elif kind == "Replace" and literal_pattern(step) and isinstance(step.get("content"), str):
            old, new = literal_pattern(step) or "", step["content"]
            if (old, new) == (" ", METASPACE):
                vocabulary.metaspace = True
                old, new = METASPACE, " "
            elif " " in old or METASPACE in old or (vocabulary.metaspace and " " in new):
                raise unsupported("normalizer", step)
            vocabulary.steps.append((lib.LLM_NORMALIZE_REPLACE, old, new))
        else:
            raise unsupported("normalizer", step)
    if vocabulary.metaspace:
        vocabulary.steps = [(kind, old, new.replace(METASPACE, " ")) for kind, old, new in vocabulary.steps]


def read_pre_tokenizer(vocabulary: Vocabulary, steps: list[dict[str, Any]]) -> None:
    """The pre-tokenizer as stages and flags. vocabulary.metaspace says what its normalizer did to spaces."""
    for number, step in enumerate(steps):
        kind = step.get("type")
        program = vocabulary.program
        if vocabulary.flags & lib.LLM_BYTE_LEVEL:
            split_bytes(vocabulary, step)
        elif kind == "ByteLevel":
            if step.get("add_prefix_space", True):
                if program.stages:
                    raise unsupported("pre-tokenizer after a split", step)
                vocabulary.flags |= lib.LLM_PREFIX_SPACE
            if vocabulary.metaspace:
                raise unsupported("pre-tokenizer", step)
            vocabulary.flags |= lib.LLM_BYTE_LEVEL
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
            if (lib.LLM_NORMALIZE_REPLACE, METASPACE, " ") not in vocabulary.steps:
                vocabulary.steps.append((lib.LLM_NORMALIZE_REPLACE, METASPACE, " "))
            vocabulary.flags |= 0 if scheme == "never" else lib.LLM_PREFIX_SPACE
            vocabulary.flags |= lib.LLM_PREFIX_FIRST if scheme == "first" else 0
            if step.get("split", True):
                program.add_stage(pattern.literal(METASPACE), pattern.SPLITS["MergedWithNext"])
        elif kind == "Punctuation" and step.get("behavior", "Isolated") in pattern.SPLITS:
            program.add_stage(
                pattern.Node("class", bits=punctuation()), pattern.SPLITS[step.get("behavior", "Isolated")]
            )
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
            split = pattern.SPLITS[step["behavior"]] | lib.LLM_SPLIT_INVERT * bool(step.get("invert"))
            if isinstance(given.get("String"), str):
                program.add_stage(pattern.literal(given["String"]), split)
            elif isinstance(given.get("Regex"), str):
                program.add_stage(pattern.Parser(given["Regex"]).parse(), split)
            else:
                raise unsupported("pre-tokenizer", step)
        else:
            raise unsupported("pre-tokenizer", step)


DIGITS = "0123456789"
# Punctuation of Unicode 16 that is none in Unicode 8, of which the tokenizers library has tables; and the
# other way round
NEW_PUNCTUATION = """
    61D 9FD A76 C77 C84 1B4E-1B4F 1B7D-1B7F 2E43-2E4F 2E52-2E5D 10D6E 10EAD 10F55-10F59 10F86-10F89
    113D4-113D5 113D7-113D8 1144B-1144F 1145A-1145B 1145D 11660-1166C 116B9 1183B 11944-11946 119E2
    11A3F-11A46 11A9A-11A9C 11A9E-11AA2 11B00-11B09 11BE1 11C41-11C45 11C70-11C71 11EF7-11EF8 11F43-11F4F
    11FFF 12FF1-12FF2 16D6D-16D6F 16E97-16E9A 16FE2 1E5FF 1E95E-1E95F
"""
OLD_PUNCTUATION = "166D 111C9"


def spans(text: str) -> int:
    """The set of characters that these numbers, or ranges of them, are."""
    ranges = [part.partition("-") for part in text.split()]
    return functools.reduce(
        lambda found, item: found | pattern.span(int(item[0], 16), int(item[2] or item[0], 16)), ranges, 0
    )


def punctuation() -> int:
    """What the pre-tokenizer Punctuation takes for it: Unicode's, and all of ASCII's symbols."""
    ascii_symbols = sum(1 << ord(char) for char in "$+<=>^`|~")
    own = pattern.category_sets()["P"] | ascii_symbols | spans(OLD_PUNCTUATION)
    return own & ~spans(NEW_PUNCTUATION)


def split_bytes(vocabulary: Vocabulary, step: dict[str, Any]) -> None:
    """A pre-tokenizer behind ByteLevel, which sees the characters that stand for bytes (Falcon's). Splits at
    ASCII's digits are the same there as in the text. That at all digits also takes the bytes for digits whose
    characters are: see without_mixed()."""
    given = step.get("pattern")
    expression = given.get("Regex") if isinstance(given, dict) else None
    if step.get("type") == "Digits" and not step.get("individual_digits", False):
        vocabulary.digits_apart = True
        vocabulary.program.add_stage(pattern.Parser("[0-9]").parse(), pattern.SPLITS["Contiguous"])
    elif expression == "[0-9][0-9][0-9]" and not step.get("invert") and step.get("behavior") == "Isolated":
        vocabulary.program.add_stage(pattern.Parser(expression).parse(), pattern.SPLITS["Isolated"])
    else:
        raise unsupported("pre-tokenizer after ByteLevel", step)


def without_mixed(vocabulary: Vocabulary, where: str) -> None:
    """Drops the merges to tokens with digits and others, which a split between them leaves nothing to do."""
    kept = []
    for merge in vocabulary.merges:
        text = vocabulary.tokens[merge[3]]
        digits = [char for char in text if char.isnumeric()]
        ascii_digits = [char for char in digits if char in DIGITS]
        if ascii_digits and len(ascii_digits) < len(digits):
            raise ValueError(f"{where} has the token {text!r} of digits and bytes, which is not supported")
        if not digits or len(digits) == len(text):
            kept.append(merge)
    if vocabulary.flags & lib.LLM_WHOLE_WORDS:
        raise ValueError(f"{where} has 'ignore_merges' beside digits apart, which is not supported")
    vocabulary.merges = kept


def read_decoder(vocabulary: Vocabulary, steps: list[dict[str, Any]], whole: Any) -> None:
    kinds = [step.get("type") for step in steps]
    spaces = fused = False
    for step, kind in zip(steps, kinds, strict=True):
        if kind == "ByteLevel" and vocabulary.flags & lib.LLM_BYTE_LEVEL:
            fused = True
        elif kind == "Metaspace" and vocabulary.metaspace and kinds == ["Metaspace"]:
            scheme = step.get("prepend_scheme", "always" if step.get("add_prefix_space", True) else "never")
            spaces = True
            vocabulary.flags |= lib.LLM_STRIP_SPACES if scheme != "never" else 0
        elif kind == "Replace" and (literal_pattern(step), step.get("content")) == (METASPACE, " "):
            spaces = True
        elif kind == "ByteFallback":
            vocabulary.decode_bytes = True
        elif kind == "Fuse":
            fused = True
        elif kind == "Strip" and fused and step.get("content") == " " and not step.get("stop"):
            if step.get("start") not in (0, 1):
                raise unsupported("decoder", step)
            vocabulary.flags |= lib.LLM_STRIP_SPACE * step["start"]
        else:
            raise unsupported("decoder", whole)
    byte_level = bool(vocabulary.flags & lib.LLM_BYTE_LEVEL)
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
    if max(len(before), len(after)) > lib.LLM_MAX_AROUND:
        raise ValueError(f"{where} puts more than {lib.LLM_MAX_AROUND} tokens before or after a text")
    vocabulary.around = (before, after)
    for ids, flag, key in ((before, lib.LLM_ADD_BOS, "bos"), (after, lib.LLM_ADD_EOS, "eos")):
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
    vocabulary.flags |= lib.LLM_FUSE_UNKNOWN * bool(model.get("fuse_unk")) | lib.LLM_WHOLE_WORDS * bool(
        model.get("ignore_merges")
    )
    if vocabulary.flags & lib.LLM_BYTE_LEVEL:
        vocabulary.byte_tokens = {byte: ids[char] for char, byte in ALPHABET.items() if char in ids}
        vocabulary.look_up = {i for text, i in ids.items() if all(char in ALPHABET for char in text)}
        if vocabulary.digits_apart:
            without_mixed(vocabulary, where)
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
        vocabulary.flags |= lib.LLM_BYTE_FALLBACK * bool(tokens)


def read_added(vocabulary: Vocabulary, items: Iterable[Mapping[str, Any]], where: str) -> None:
    known = {item.text for item in vocabulary.added}
    for item in items:
        text, number = get(item, "content", str, where), get(item, "id", int, where)
        if not 0 <= number < 1 << 24:
            raise ValueError(f"{where} has the id {number}, which is not supported")
        if not text or text in known:
            continue
        added = Added(number, text)
        for key in ("special", "normalized", "lstrip", "rstrip", "single_word"):
            setattr(added, key, bool(item.get(key)))
        vocabulary.added.append(added)
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
    deletes = any(kind == lib.LLM_NORMALIZE_REPLACE and not new for kind, _, new in out.steps)
    if out.flags & lib.LLM_PREFIX_FIRST and deletes:
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
        if item.id in merged or len(out.tokens[item.id]) == 1 or out.flags & lib.LLM_WHOLE_WORDS:
            raise ValueError(
                f"tokenizer.json: the added token {item.text!r} is looked for as {item.match!r} but is "
                f"the piece {out.tokens[item.id]!r} too, which is not supported"
            )
    out.special = {item.id for item in out.added if item.special}
    return out
