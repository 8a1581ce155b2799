"""What a directory's tokenizer is, from all of its files: against what transformers' AutoTokenizer makes of
the same directory, for files that say different things."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

tokenizers = pytest.importorskip("tokenizers")
from pyllm.tools import auto_tokenizer, huggingface_tokenizer  # noqa: E402
from test_tokenizer import NO_BOS, QWEN2, SPECIAL, Engine, random_texts, spm  # noqa: E402
from test_tokenizer_families import (  # noqa: E402
    COMMON,
    NFC,
    PREPEND,
    REPLACE,
    TO_BYTES,
    byte_level,
    metaspace,
    normal,
    spec,
    split,
    template,
)

transformers = pytest.importorskip("transformers", minversion="5")

Files = dict[str, Any]
NEW = ("<|im_start|>", "<|new|>", "<|other|>", "<pad>", "<tool>")
CLASSES = (
    None, "LlamaTokenizer", "LlamaTokenizerFast", "GPT2Tokenizer", "Qwen2TokenizerFast", "Qwen2Tokenizer",
    "GemmaTokenizer", "GPTNeoXTokenizerFast", "CohereTokenizerFast", "CodeLlamaTokenizer", "CodeGenTokenizer",
    "Qwen3_5Tokenizer", "PreTrainedTokenizerFast", "TokenizersBackend", "InternLM9Tokenizer",
)  # fmt: skip
TYPES = (
    None, "llama", "mistral", "qwen2", "qwen3", "gemma2", "phi3", "olmoe", "olmo2", "granite", "internlm2",
    "smollm3", "minicpm", "glm4", "seed_oss", "ernie4_5", "exaone4", "minimax_m2", "unheard_of", "cohere",
)  # fmt: skip


FAMILY_TYPES = """
    llama mistral mistral3 mixtral ministral qwen2 qwen2_moe qwen3 qwen3_moe smollm3 phi3 gemma gemma2 gemma3
    gemma3_text olmo2 olmo3 olmoe granite granitemoe granitemoeshared internlm2 internlm3 minicpm glm glm4
    seed_oss ernie4_5 exaone4 minimax_m2 gemma3n gemma3n_text gemma4 gemma4_text gemma4_unified
    afmoe cwm deepseek dots1 ernie4_5_moe exaone_moe flex_olmo glm4_moe gpt_oss granite_swa granitemoe_swa
    hunyuan_v1_dense hunyuan_v1_moe hy_v3 laguna llama4 llama4_text mellum mimo_v2_flash ministral3 solar_open
""".split()


def write(folder: Path, files: Files) -> Path:
    folder.mkdir(parents=True)
    for name, value in files.items():
        if isinstance(value, bytes):
            (folder / name).write_bytes(value)
        else:
            (folder / name).write_text(value if isinstance(value, str) else json.dumps(value))
    return folder


def auto(folder: Path) -> Any:
    """The AutoTokenizer of a directory, or None where transformers cannot read it."""
    try:
        return transformers.AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
    except Exception:  # of any kind
        return None


def texts_with(names: list[str], rng: random.Random) -> list[str]:
    parts = [*names, *names, " ", "  ", "\n", "a", "the 12", "▁", "é", "e\u0301", "\U0001f600", " x"]
    return ["", "Hello", " Hello", *("".join(rng.choices(parts, k=rng.randint(1, 6))) for _ in range(40))]


def compare(folder: Path, seed: str) -> str:
    """Ids and texts of our tokenizer and of transformers': "same", or why they cannot be compared."""
    reference = auto(folder)
    try:
        ours = Engine(huggingface_tokenizer.from_directory(folder))
    except ValueError as error:
        return f"refused: {error}"
    if reference is None or reference.vocab_size < 100:  # it has classes that look for no vocab.json
        return "transformers cannot read it"
    names = [*NEW, *(token.content for token in reference.added_tokens_decoder.values())]
    names = [name for name in names if name != "<FILL_ME>"]  # of which CodeLlamaTokenizer makes two texts
    sentencepiece = not (folder / "tokenizer.json").exists() and "▁" in str(
        reference.backend_tokenizer.normalizer
    )
    texts = [*texts_with(names, random.Random(seed)), *random_texts()[:60]]
    # The library shows special tokens as its normalizer changes them, ours as they are.
    change = reference.backend_tokenizer.normalizer
    change = change.normalize_str if change else str
    normalized = {i: token.content for i, token in reference.added_tokens_decoder.items() if token.normalized}
    listed = (
        json.loads((folder / "tokenizer.json").read_text()) if (folder / "tokenizer.json").exists() else {}
    )
    normalized |= {t["id"]: t["content"] for t in listed.get("added_tokens", []) if t["normalized"]}
    odd = {
        i for i, text in normalized.items() if change(text) != text
    }  # also what another file changed since
    own_bos = auto_tokenizer.read(folder).own_bos
    for text in texts:
        theirs = reference.encode(text), reference.encode(text, add_special_tokens=False)
        mine = ours.encode(text, SPECIAL), ours.encode(text, SPECIAL | NO_BOS)
        if own_bos:
            mine = theirs[0], mine[1]
        assert mine == theirs, (text, mine, theirs, reference)
        plain = reference.encode(text, add_special_tokens=False, split_special_tokens=True)
        # where users have defined pieces, transformers takes a control token that is written out for it
        assert sentencepiece or ours.encode(text, NO_BOS) == plain, (
            text,
            ours.encode(text, NO_BOS),
            plain,
            reference,
        )
        if not odd.isdisjoint(theirs[1]):
            continue
        assert ours.decode(theirs[1], special=True) == reference.decode(theirs[1]), (
            text,
            ours.decode(theirs[1], special=True),
            reference.decode(theirs[1]),
            reference,
        )
        shown = reference.backend_tokenizer.decode(theirs[1], skip_special_tokens=True)
        assert ours.decode(theirs[1]) == shown, (text, ours.decode(theirs[1]), shown, theirs[1], reference)
    ours.close()
    return "same"


def switches(rng: random.Random, special: bool | None = None) -> dict[str, bool]:
    out = {key: rng.random() < 0.2 for key in ("lstrip", "rstrip", "single_word")}
    special = rng.random() < 0.6 if special is None else special
    return out | {"normalized": not special and rng.random() < 0.5, "special": special}


def post_processors(names: tuple[str, str]) -> list[Any]:
    bos, eos = names
    two = template(bos)
    two["single"].insert(0, {"SpecialToken": {"id": eos, "type_id": 0}})
    two["special_tokens"][eos] = {"id": eos, "ids": [eos], "tokens": [eos]}
    return [None, TO_BYTES, template(bos), template(None, eos), template(bos, eos), two]


def random_files(rng: random.Random, model: dict[bool, bytes]) -> Files:
    """A tokenizer's files, which contradict each other."""
    pieces = rng.random() < 0.4
    post = rng.choice(post_processors(("<s>", "</s>")))
    if pieces:
        normalizer, pre, strip = rng.choice(
            [(normal(PREPEND, REPLACE), None, True), (None, metaspace("first", False), True)]
        )
    else:
        normalizer, strip = rng.choice([None, NFC]), False
        pre = rng.choice([byte_level(regex=True), byte_level(split(QWEN2))])
    listed = [(text, rng.choice(["s", "", "sl", "n"])) for text in NEW if rng.random() < 0.3]
    file = spec(pieces, normalizer, pre, (*COMMON, *listed), strip, post)
    files: Files = {}
    kind = rng.random()
    if kind < 0.75:
        files["tokenizer.json"] = file
    elif pieces:
        files["tokenizer.model"] = model[rng.random() < 0.5]
    else:
        files["vocab.json"] = file["model"]["vocab"]
        files["merges.txt"] = "#version: 0.2\n" + "\n".join(map(" ".join, file["model"]["merges"])) + "\n"
    config: Files = {}
    if name := rng.choice(CLASSES):
        config["tokenizer_class"] = name
    for key in ("add_bos_token", "add_eos_token"):
        if rng.random() < 0.4:
            config[key] = rng.random() < 0.6
    for key, text in (
        ("bos_token", "<s>"),
        ("eos_token", "</s>"),
        ("pad_token", "<pad>"),
        ("own_token", "<tool>"),
    ):
        if rng.random() < 0.5:
            config[key] = rng.choice(
                [text, text, {"__type": "AddedToken", "content": text, **switches(rng, True)}]
            )
        elif rng.random() < 0.1:
            config[key] = None
    if rng.random() < 0.3 and files.get("tokenizer.model") != model[True]:
        config["legacy"] = rng.random() < 0.5
    if rng.random() < 0.2:
        config["add_prefix_space"] = rng.random() < 0.5
    if rng.random() < 0.3:
        config[rng.choice(["additional_special_tokens", "extra_special_tokens"])] = rng.sample(NEW, 2)
    if rng.random() < 0.4:
        size = len(file["model"]["vocab"])
        chosen = rng.sample(NEW, rng.randint(1, 4))
        decoder = {str(size + i * 2): {"content": text, **switches(rng)} for i, text in enumerate(chosen)}
        decoder |= {str(i): {"content": text, **switches(rng, True)} for i, (text, _) in enumerate(COMMON)}
        config["added_tokens_decoder"] = decoder
    if rng.random() < 0.9:
        files["tokenizer_config.json"] = config
    if rng.random() < 0.3:
        where = {"eos_token": {"content": "</s>", **switches(rng, True)}, "pad_token": "<pad>"}
        if rng.random() < 0.5:
            where["additional_special_tokens"] = rng.sample(NEW, 2)
        files["special_tokens_map.json"] = where
    if rng.random() < 0.3:
        files["added_tokens.json"] = {text: 5000 + i for i, text in enumerate(rng.sample(NEW, 2))}
    if model_type := rng.choice(TYPES):
        files["config.json"] = {"model_type": model_type}
    return files


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, bytes]:
    """Two tokenizer.model, the second with pieces that the user defined."""
    out = {}
    for more in (False, True):
        folder = tmp_path_factory.mktemp("spm")
        own = dict(user_defined_symbols=["<tool>", "'s"], control_symbols=["<|new|>"]) if more else {}
        spm(folder, byte_fallback=True, remove_extra_whitespaces=False, **own)
        out[more] = (folder / "tokenizer.model").read_bytes()
    return out


def test_the_table_of_model_types_is_that_of_transformers() -> None:
    from transformers.models.auto import tokenization_auto as theirs

    names = {
        name: kind if kind != "MistralCommonBackend" else auto_tokenizer.BACKEND
        for name, kind in theirs.TOKENIZER_MAPPING_NAMES.items()
    }
    for name in auto_tokenizer.MODEL_TYPES.keys() & names.keys():
        assert auto_tokenizer.MODEL_TYPES[name] == names[name], name
    for name in FAMILY_TYPES:
        assert auto_tokenizer.MODEL_TYPES.get(name) == names.get(name), name
        wrong = name in theirs.MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS
        assert (name in auto_tokenizer.WRONG_CLASS) == wrong, name


@pytest.mark.parametrize("seed", range(4))
def test_contradicting_files_are_read_as_transformers_reads_them(
    seed: int, models: dict[bool, bytes], tmp_path: Path
) -> None:
    rng = random.Random(seed)
    found: list[str] = []
    for i in range(20):
        folder = write(tmp_path / str(i), random_files(rng, models))
        found.append(compare(folder, f"{seed} {i}"))
    assert found.count("same") >= 10
