"""What transformers.AutoTokenizer makes of a model's directory, without transformers: the contents of one
tokenizer.json, from all the files that have a say (tokenizer.json, tokenizer_config.json,
special_tokens_map.json, added_tokens.json, vocab.json with merges.txt, tokenizer.model, config.json).

The rules are those of transformers 5: tokenization_auto.py says which class reads the directory, and most
classes take tokenizer.json as it is; those of RECIPES keep only its vocabulary and merges. The tests compare
with transformers, combination by combination. Runs no code of the directory's own: CUSTOM says what is known
of such code."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .pre_tokenizers import QWEN2, QWEN35
from .sentencepiece_model import CONTROL, USER_DEFINED, Pieces, read_pieces
from .sources import read_json

METASPACE = "\u2581"
Token = dict[str, Any]  # an added token: its content and SWITCHES

SWITCHES = ("single_word", "lstrip", "rstrip", "normalized", "special")
# The special tokens with a name, in the order in which they are added
NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")

# The tokenizer classes of model types (TOKENIZER_MAPPING_NAMES); those that are not here have none
BACKEND = "TokenizersBackend"
MODEL_TYPES: dict[str, str] = dict.fromkeys(
    "ernie4_5 ernie4_5_moe flex_olmo glm glm4 glm4_moe glm4_moe_lite granite granitemoe granitemoeshared "
    "internlm2 internlm3 kimi_k25 mimo_v2_flash minicpm3 minimax_m2 ministral ministral3 mistral mistral3 "
    "mixtral nemotron olmo2 olmo3 phi3 phimoe".split(),
    BACKEND,
)
MODEL_TYPES |= dict.fromkeys("gemma gemma2 gemma3 gemma3_text gemma3n gemma3n_text".split(), "GemmaTokenizer")
MODEL_TYPES |= dict.fromkeys("qwen2 qwen2_moe qwen3 qwen3_moe qwen3_next".split(), "Qwen2Tokenizer")
MODEL_TYPES |= dict.fromkeys("qwen3_5 qwen3_5_text qwen3_5_moe qwen3_5_moe_text".split(), "Qwen3_5Tokenizer")
MODEL_TYPES |= dict.fromkeys("gpt2 gptj gpt_neo opt phi starcoder2".split(), "GPT2Tokenizer")
MODEL_TYPES |= dict.fromkeys("gpt_neox mamba mpt olmo olmoe".split(), "GPTNeoXTokenizer")
MODEL_TYPES |= dict.fromkeys("cohere cohere2".split(), "CohereTokenizer")
MODEL_TYPES |= {"code_llama": "CodeLlamaTokenizer", "codegen": "GPT2Tokenizer"}
# Those whose directories name a wrong class (MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS)
WRONG_CLASS = frozenset(
    "ernie4_5 ernie4_5_moe internlm2 internlm3 minicpm3 minimax_m2 nemotron phi3 phimoe qwen2 qwen3_5 "
    "qwen3_5_moe qwen3_5_moe_text".split()
)
# Those that add what is in tekken.json without saying so where mistral_common reads it
MISTRAL = frozenset(("ministral", "mistral", "mistral3", "mixtral"))

# Classes that are code beside the model, and add BOS where the directory does not say otherwise
CUSTOM = ("InternLMTokenizer", "InternLM2Tokenizer", "InternLM3Tokenizer")


# ----------------------------------------------------------------------------------------------------------
# Reading


def text_of(value: object) -> str | None:
    """The text of a token, which is a string or an object."""
    if isinstance(value, Mapping):
        value = value.get("content")
    return value if isinstance(value, str) else None


def as_token(value: object, where: str, special: bool = False) -> Token:
    """A token as the library's AddedToken has it. special: of a token that does not say."""
    text = text_of(value)
    if text is None:
        raise ValueError(f"{where} {str(value)[:80]!r} is no token")
    given = value if isinstance(value, Mapping) else {}
    out = {"content": text, **{key: bool(given.get(key)) for key in SWITCHES}}
    out["special"] = bool(given.get("special", special))
    out["normalized"] = bool(given.get("normalized", not out["special"]))
    return out


def generate_merges(vocab: Mapping[str, int]) -> list[list[str]]:
    """The merges of a vocabulary that is in the order of its merges, as transformers lists them."""
    found = []
    for text, rank in vocab.items():
        for cut in range(1, len(text)):
            left, right = text[:cut], text[cut:]
            if left in vocab and right in vocab:
                found.append((rank, len(left), vocab[left], vocab[right], left, right))
    return [[left, right] for *_, left, right in sorted(found)]


# ----------------------------------------------------------------------------------------------------------
# Added tokens, numbered as the tokenizers library numbers them


class Added:
    """The added tokens of a tokenizer whose model has this vocabulary: AddedVocabulary of the library."""

    def __init__(self, vocab: Mapping[str, int]) -> None:
        self.vocab = vocab
        self.ids: dict[str, int] = {}
        self.tokens: dict[int, Token] = {}
        self.special: set[str] = set()  # what was special once stays so

    def id_of(self, text: str) -> int | None:
        return self.ids.get(text, self.vocab.get(text))

    def put(self, items: Iterable[Mapping[str, Any]]) -> None:
        """Those that tokenizer.json lists, with the ids that it gives them. Where the library numbers them
        otherwise, the file contradicts itself, and the check after the conversion says so."""
        for item in items:
            token, number = as_token(item, "tokenizer.json: the added token"), item.get("id")
            known = self.id_of(token["content"]) is not None
            if isinstance(number, int) and not isinstance(number, bool) and not known:
                self.ids[token["content"]] = number
            self.add([token])

    def add(self, tokens: Iterable[Token]) -> None:
        """Tokens of the vocabulary and known ones keep their ids, and get these switches; others get the next
        ids behind all others, whatever a file says."""
        size = len(self.vocab)
        next_id = max([size, *(i + 1 for i in self.tokens if i >= size)])
        for token in tokens:
            text = token["content"]
            if not text:
                continue
            if token["special"]:
                self.special.add(text)
            number = self.id_of(text)
            if number is None:
                number, next_id = next_id, next_id + 1
            self.ids[text] = number
            self.tokens[number] = dict(token)

    def listed(self) -> list[Token]:
        """As tokenizer.json lists them."""
        return [
            {"id": i, **token, "special": token["content"] in self.special}
            for i, token in sorted(self.tokens.items())
        ]


@dataclass
class Special:
    """What the files say of special and added tokens, but for tokenizer.json."""

    named: dict[str, Any]  # by name: strings, objects, None
    extra: list[Any]
    decoder: dict[int, Token]  # added_tokens_decoder, or what stands in for it
    old: bool = (
        False  # extra is additional_special_tokens of special_tokens_map.json, which tokenizer.model hides
    )

    def tokens(self, known: Iterable[str]) -> list[Token]:
        """Those to add to a tokenizer that has added tokens of these texts, in this order."""
        where = "tokenizer_config.json: the special token"
        out = [token for _, token in sorted(self.decoder.items())]
        seen = {*known, *(token["content"] for token in out)}
        for value in (*self.named.values(), *self.extra):
            if value is not None and text_of(value) not in seen:
                out.append(as_token(value, where, special=isinstance(value, str)))
        named = {text_of(value) for value in self.named.values()}
        return [{**token, "special": token["special"] or token["content"] in named} for token in out]


def special_tokens(folder: Path, config: Mapping[str, Any], listed: list[Any]) -> Special:
    """Special from tokenizer_config.json; where that has no added_tokens_decoder, also from
    special_tokens_map.json, added_tokens.json and the tokens that tokenizer.json has `listed`."""
    init = dict(config)
    if "additional_special_tokens" in init and not init.get("extra_special_tokens"):
        init["extra_special_tokens"] = init.pop("additional_special_tokens")
    own = {k: init.pop(k) for k in list(init) if is_own_name(k) and isinstance(init[k], str)}
    extra = init.get("extra_special_tokens")
    if isinstance(extra, dict):
        own |= init.pop("extra_special_tokens")
    decoder: dict[int, Token] = {}
    if "added_tokens_decoder" in init:
        decoder = numbered(init["added_tokens_decoder"], "tokenizer_config.json: added_tokens_decoder")
    else:
        for key, value in read_json(folder / "special_tokens_map.json", required=False).items():
            if key == "extra_special_tokens" and isinstance(value, list):
                value = [*(init.get(key) or []), *value]
            elif isinstance(value, dict) and key != "extra_special_tokens":
                value = {**value, "special": True}
            init[key] = value
        if isinstance(init.get("extra_special_tokens"), dict):
            own |= init.pop("extra_special_tokens")
        names = {text_of(init.get(key)) for key in NAMED}
        names |= {text_of(value) for value in init.get("extra_special_tokens") or []}
        for text, number in read_json(folder / "added_tokens.json", required=False).items():
            if not isinstance(number, int) or isinstance(number, bool):
                raise ValueError(f"added_tokens.json has the id {number!r} for {text!r}")
            decoder[number] = as_token({"content": text, "special": text in names}, "added_tokens.json")
        where = "tokenizer.json: the added token"
        for item in listed:
            if isinstance(item, Mapping) and isinstance(item.get("id"), int):
                decoder[item["id"]] = as_token(item, where)
    by_text = {token["content"]: token for token in decoder.values()}
    old = "extra_special_tokens" not in init and "additional_special_tokens" in init
    if old:
        init["extra_special_tokens"] = init["additional_special_tokens"]
    named: dict[str, Any] = {key: init[key] for key in NAMED if key in init}
    named |= {k: v for k, v in init.items() if is_own_name(k) and text_of(v) is not None and k not in own}
    named |= own
    for key, value in named.items():
        if value is not None:
            if text_of(value) is None:
                raise ValueError(f"tokenizer_config.json: {key} {str(value)[:80]!r} is no token")
            named[key] = by_text.get(text_of(value) or "", value)
    extra = init.get("extra_special_tokens") or []
    if not isinstance(extra, list):
        raise ValueError("tokenizer_config.json: extra_special_tokens is no list")
    extra = [value if isinstance(value, str) else {"special": True, **value} for value in extra]
    return Special(named, extra, decoder, old)


def is_own_name(key: str) -> bool:
    """Whether this key of tokenizer_config.json may name a special token of the model's own."""
    return key.endswith("_token") and key not in NAMED and key not in ("add_bos_token", "add_eos_token")


def numbered(value: object, where: str) -> dict[int, Token]:
    if not isinstance(value, dict):
        raise ValueError(f"{where} is not an object")
    out = {}
    for number, item in value.items():
        if not isinstance(item, dict) or not number.isdecimal():
            raise ValueError(f"{where} has the strange entry {number!r}")
        out[int(number)] = as_token(item, where)
    return out


# ----------------------------------------------------------------------------------------------------------
# Classes that build their tokenizer from a vocabulary and merges, whatever else tokenizer.json says

BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


def sequence(kind: str, *steps: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", kind: list(steps)}


def replace(old: str, new: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"String": old}, "content": new}


def split(regex: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}


def byte_level(config: Mapping[str, Any], *before: dict[str, Any], regex: bool) -> dict[str, Any]:
    """The parts of a byte-level tokenizer."""
    last = BYTES | {"add_prefix_space": bool(config.get("add_prefix_space")), "use_regex": regex}
    return {
        "pre_tokenizer": sequence("pretokenizers", *before, last),
        "decoder": BYTES | {"use_regex": True, "add_prefix_space": True},
        "model": {"fuse_unk": False, "byte_fallback": False},
    }


def spaced(*more: dict[str, Any]) -> dict[str, Any]:
    """The decoder of vocabularies with U+2581 for spaces."""
    return sequence("decoders", replace(METASPACE, " "), {"type": "ByteFallback"}, {"type": "Fuse"}, *more)


STRIP = {"type": "Strip", "content": " ", "start": 1, "stop": 0}


def metaspace(scheme: str, strip: bool) -> dict[str, Any]:
    pre_tokenizer = {"type": "Metaspace", "replacement": METASPACE, "prepend_scheme": scheme, "split": False}
    return {
        "pre_tokenizer": pre_tokenizer,
        "decoder": spaced(*[STRIP] * strip),
        "model": {"fuse_unk": True, "byte_fallback": True},
    }


def llama(config: Mapping[str, Any]) -> dict[str, Any]:
    prefix = config.get("add_prefix_space") in (None, True)
    scheme = "never" if not prefix else "always" if config.get("legacy") else "first"
    return metaspace(scheme, prefix)


def code_llama(config: Mapping[str, Any]) -> dict[str, Any]:
    return metaspace("first" if config.get("add_prefix_space") in (None, True) else "never", True)


def gemma(config: Mapping[str, Any]) -> dict[str, Any]:
    pattern = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
    return {
        "normalizer": replace(" ", METASPACE),
        "pre_tokenizer": pattern,
        "decoder": spaced(),
        "model": {"fuse_unk": True, "byte_fallback": True},
    }


def gpt2(config: Mapping[str, Any]) -> dict[str, Any]:
    return byte_level(config, regex=True)


NFC = {"normalizer": {"type": "NFC"}}
DIGITS = {"type": "Digits", "individual_digits": True}
END = "<|endoftext|>"


@dataclass(frozen=True)
class Recipe:
    """A class of transformers that builds its tokenizer itself."""

    parts: Callable[
        [Mapping[str, Any]], dict[str, Any]
    ]  # of tokenizer_config.json: the parts but the vocabulary
    names: tuple[tuple[str, str | None], ...]  # the special tokens, where tokenizer_config.json does not say
    unknown: bool = False  # the model has the unknown token
    adds_bos: bool = False
    replaces: bool = False  # the post-processor of tokenizer.json too
    renews: str = (
        ""  # the special tokens lose the switches that files give them: "all", or "texts" without any
    )


def names(**given: str | None) -> tuple[tuple[str, str | None], ...]:
    return tuple((f"{key}_token", value) for key, value in given.items())


RECIPES: dict[str, Recipe] = {
    "LlamaTokenizer": Recipe(llama, names(unk="<unk>", bos="<s>", eos="</s>")),
    "CodeLlamaTokenizer": Recipe(
        code_llama,
        names(unk="<unk>", bos="<s>", eos="</s>", prefix="▁<PRE>", middle="▁<MID>", suffix="▁<SUF>",
              eot="▁<EOT>", fill="<FILL_ME>"),
        unknown=True, adds_bos=True, replaces=True,
    ),
    "GemmaTokenizer": Recipe(
        gemma, names(unk="<unk>", bos="<bos>", eos="<eos>", pad="<pad>", mask="<mask>"), unknown=True
    ),
    "Qwen2Tokenizer": Recipe(
        lambda config: NFC | byte_level(config, split(QWEN2), regex=False),
        names(unk=END, eos=END, pad=END), renews="all",
    ),
    "Qwen3_5Tokenizer": Recipe(
        lambda config: NFC | byte_level(config, split(QWEN35), regex=False), names(unk=END, eos=END, pad=END)
    ),
    "GPT2Tokenizer": Recipe(gpt2, names(unk=END, bos=END, eos=END)),
    "CodeGenTokenizer": Recipe(gpt2, names(unk=END, bos=END, eos=END)),
    "GPTNeoXTokenizer": Recipe(
        lambda config: NFC | gpt2(config),
        names(unk=END, bos=END, eos=END, pad="<|padding|>"), replaces=True,
    ),
    "CohereTokenizer": Recipe(
        lambda config: NFC | byte_level(config, DIGITS, regex=True),
        names(unk="<UNK>", bos="<BOS_TOKEN>", eos="<|END_OF_TURN_TOKEN|>", pad="<PAD>", cls="<CLS>",
              sep="<SEP>", mask="<MASK_TOKEN>"),
        renews="texts",
    ),
}  # fmt: skip


def class_of(config: Mapping[str, Any], model: Mapping[str, Any], tokenizer_json: str) -> str:
    """The class that reads a directory with this tokenizer_config.json, config.json and text of
    tokenizer.json: one of RECIPES, or BACKEND."""
    model_type = str(model.get("model_type") or "")
    registered = MODEL_TYPES.get(model_type)
    given = config.get("tokenizer_class") or model.get("tokenizer_class")
    hub = given.removesuffix("Fast") if isinstance(given, str) else None
    mapped = config.get("auto_map")
    own_code = bool(mapped.get("AutoTokenizer") if isinstance(mapped, dict) else mapped)
    if (
        not own_code
        and hub == "LlamaTokenizer"
        and model_type not in WRONG_CLASS
        and '"ByteLevel"' in tokenizer_json
    ):
        return BACKEND
    if not own_code and hub and registered and registered != hub:
        chosen = registered if registered == BACKEND or model_type in WRONG_CLASS else hub
    else:
        chosen = hub or registered or BACKEND
    return chosen if chosen in RECIPES else BACKEND


# ----------------------------------------------------------------------------------------------------------
# A directory


@dataclass
class Found:
    """A directory's tokenizer."""

    kind: str  # the class of transformers
    spec: dict[str, Any]  # tokenizer.json; of `pieces` only its added tokens and its post-processor
    named: dict[str, str]  # the texts of the special tokens by name
    pieces: Pieces | None = None  # a tokenizer.model that works as sentencepiece does
    legacy: bool = True  # of pieces: every text between special tokens begins with a space
    own_bos: bool = (
        False  # BOS is as the directory's own code, or no file at all, has it: not as transformers
    )


def template(before: list[tuple[str, int]], after: list[tuple[str, int]]) -> dict[str, Any]:
    """A post-processor that puts these tokens around a text."""
    steps: list[dict[str, Any]] = [{"SpecialToken": {"id": text, "type_id": 0}} for text, _ in before]
    steps.append({"Sequence": {"id": "A", "type_id": 0}})
    steps += [{"SpecialToken": {"id": text, "type_id": 0}} for text, _ in after]
    tokens = {text: {"id": text, "ids": [i], "tokens": [text]} for text, i in (*before, *after)}
    pair = [*steps, {"Sequence": {"id": "B", "type_id": 1}}]
    return {"type": "TemplateProcessing", "single": steps, "pair": pair, "special_tokens": tokens}


def read(folder: Path) -> Found:
    """The tokenizer of a directory with a tokenizer.json, a tokenizer.model, or vocab.json and merges.txt."""
    config = read_json(folder / "tokenizer_config.json", required=False)
    model = read_json(folder / "config.json", required=False)
    file = folder / "tokenizer.json"
    given = read_json(file, required=False)
    kind = class_of(config, model, file.read_text(encoding="utf-8") if given else "")
    hub = str(config.get("tokenizer_class") or model.get("tokenizer_class") or "").removesuffix("Fast")
    listed = given.get("added_tokens") or []
    if not isinstance(listed, list):
        raise ValueError("tokenizer.json has no usable 'added_tokens'")
    special = special_tokens(folder, config, listed)
    if given:
        return from_json(given, kind, hub, config, special)
    if (folder / "tokenizer.model").is_file():
        pieces = read_pieces((folder / "tokenizer.model").read_bytes(), "tokenizer.model")
        bare = not (folder / "tokenizer_config.json").is_file()
        return from_pieces(pieces, kind, hub, bare, config, special)
    if kind not in RECIPES:
        kind = hub  # transformers gives up here
    if kind not in RECIPES:
        raise ValueError(
            f"vocab.json and merges.txt do not say how text is split, and the tokenizer_class "
            f"{hub or None!r} is not known; " + ", ".join(RECIPES) + " are"
        )
    vocab = read_json(folder / "vocab.json", required=False)
    return rebuild(kind, vocab, read_merges(folder / "merges.txt"), None, config, special)


def read_merges(path: Path) -> list[str]:
    """The lines of a merges.txt."""
    if not path.is_file():
        raise ValueError(f"there is a vocab.json but no {path.name}")
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path.name} is not UTF-8 ({error})") from None
    return [line.rstrip("\r") for line in lines if line.strip("\r") and not line.startswith("#version")]


def settle(
    added: Added, special: Special, post: object, adds: tuple[bool, bool], update: bool
) -> tuple[object, dict[str, str]]:
    """The post-processor, and the texts of the named tokens. adds: BOS, EOS, where it is to be made anew."""
    texts = {key: text for key, value in special.named.items() if (text := text_of(value)) is not None}
    if post is not None and not update:
        return post, texts
    sides: list[list[tuple[str, int]]] = [[], []]
    for side, key, wanted in zip(sides, ("bos_token", "eos_token"), adds, strict=True):
        number = added.id_of(texts[key]) if key in texts else None
        if wanted and number is not None:
            side.append((texts[key], number))
    return template(*sides), texts


def from_json(
    given: dict[str, Any], kind: str, hub: str, config: Mapping[str, Any], special: Special
) -> Found:
    """A directory with a tokenizer.json. Its post-processor says what goes around a text: add_bos_token and
    add_eos_token are not looked at."""
    model = given.get("model")
    vocab = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(model, dict) or not isinstance(vocab, dict):
        return Found(kind, given, {})  # from_tokenizer_json says what is wrong
    if kind in RECIPES:
        return rebuild(kind, vocab, model.get("merges"), given, config, special)
    added = Added(vocab)
    added.put(given.get("added_tokens") or [])
    added.add(special.tokens(added.ids))
    custom = hub in CUSTOM and given.get("post_processor") is None
    post, texts = settle(added, special, given.get("post_processor"), (custom, False), False)
    return Found(
        kind, given | {"added_tokens": added.listed(), "post_processor": post}, texts, own_bos=custom
    )


def rebuild(
    kind: str,
    vocab: dict[str, int],
    merges: Any,
    given: dict[str, Any] | None,
    config: Mapping[str, Any],
    special: Special,
) -> Found:
    """What a class of RECIPES makes of a vocabulary and merges. given: the tokenizer.json they are from."""
    recipe = RECIPES[kind]
    defaults = dict(recipe.names)
    order = {key: None for key in (*NAMED, *defaults, *special.named)}
    special.named = {
        key: special.named[key] if key in special.named else defaults[key]
        for key in order
        if key in special.named or key in defaults
    }
    added = Added(vocab)
    added.add(special.tokens(()))
    for value in (*special.named.values(), *special.extra) if recipe.renews else ():
        if value is not None:
            plain = recipe.renews == "all" or isinstance(value, str)
            added.add([as_token(text_of(value) if plain else value, "", special=True) | {"special": True}])
    parts = recipe.parts(config)
    unknown = text_of(special.named.get("unk_token"))
    model = {
        "type": "BPE",
        "vocab": vocab,
        "merges": merges,
        "unk_token": unknown if recipe.unknown else None,
    }
    spec = {"normalizer": None} | parts | {"model": model | parts["model"]}
    explicit = not given and ("add_bos_token" in config or "add_eos_token" in config)
    asked = {} if given else config
    adds = bool(asked.get("add_bos_token", recipe.adds_bos)), bool(asked.get("add_eos_token"))
    post = given.get("post_processor") if given else None
    post, texts = settle(added, special, post, adds, recipe.replaces or explicit)
    return Found(kind, spec | {"added_tokens": added.listed(), "post_processor": post}, texts)


def from_pieces(
    model: Pieces, kind: str, hub: str, bare: bool, config: Mapping[str, Any], special: Special
) -> Found:
    """A directory with a tokenizer.model. bare: nothing else is there, and BOS is added as by all the
    programs that read such models."""
    own = [
        {"content": text, "special": sort == CONTROL, "normalized": False}
        for text, _, sort in model.pieces
        if sort in (CONTROL, USER_DEFINED)
    ]
    theirs = [] if special.old else special.extra
    special.extra = theirs or own
    if kind in RECIPES:
        vocab = {text: i for i, (text, _, _) in enumerate(model.pieces)}
        return rebuild(kind, vocab, generate_merges(vocab), None, config, special)
    # pieces that added_tokens_decoder has another name for, unless another piece keeps that name
    renamed = {i: token["content"] for i, token in special.decoder.items() if i < len(model.pieces)}
    kept = {text for i, (text, _, _) in enumerate(model.pieces) if i not in renamed}
    model.pieces = [
        (renamed[i] if i in renamed and renamed[i] not in kept else text, score, sort)
        for i, (text, score, sort) in enumerate(model.pieces)
    ]
    numbers = {
        "bos_token": (41, 1, 46, "<s>"),
        "eos_token": (42, 2, 47, "</s>"),
        "unk_token": (40, 0, 45, "<unk>"),
    }
    for key, (number, default, place, text) in numbers.items():
        if model.special_id(number, default) is not None:
            special.named.setdefault(key, model.text(place, text))
    special.named = {key: special.named[key] for key in (*NAMED, *special.named) if key in special.named}
    special.extra = theirs or [token for token in own if token["special"]]
    if model.normalizer.get(3, 1):
        special.decoder = {i: {**token, "normalized": False} for i, token in special.decoder.items()}
    added = Added({text: i for i, (text, _, _) in enumerate(model.pieces)})
    added.add(special.tokens(()))
    custom = hub in CUSTOM or bare
    adds = bool(config.get("add_bos_token", custom)), bool(config.get("add_eos_token"))
    post, texts = settle(added, special, None, adds, True)
    spec = {"added_tokens": added.listed(), "post_processor": post}
    own_bos = custom and "add_bos_token" not in config
    legacy = config.get("legacy", True) is not False
    return Found(kind, spec, texts, model, legacy, own_bos)
