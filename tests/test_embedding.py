"""Embeddings: the states that logits are made of, pooled as the model's files say, the same alone and under
load."""

from __future__ import annotations

import base64
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from common import BOS, IM_END, byte_tokenizer
from pyllm._llm import lib
from pyllm.tools import embedding, gguf_file
from pyllm.tools.model import describe
from pyllm.tools.sources import ConvertError
from reference import FP16, INT8R, Reference, make_model

from pyllm import LLM, ContextError, LLMError
from pyllm.binding import Cache
from tools.checkpoints import finish

TEXTS = ["Hello", "a longer text, " * 20, "x"]
QUERY = {
    "pooling": "last",
    "normalize": True,
    "prompts": {"query": "Q: ", "document": ""},
    "default_prompt": None,
}


def write(folder: Path, dtype: int, recipe: Any = None) -> str:
    sections = byte_tokenizer(lib.LLM_ADD_BOS, BOS, IM_END)
    if recipe is not None:
        sections[lib.LLM_EMBEDDING] = (recipe if isinstance(recipe, str) else json.dumps(recipe)).encode()
    path = folder / "tiny.llm"
    path.write_bytes(make_model(3, dtype=dtype, vocab_size=259, context=600, sections=sections))
    return str(path)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write(tmp_path_factory.mktemp("embedding"), FP16)


@pytest.fixture(scope="module")
def llm(path: str) -> Iterator[LLM]:
    with LLM(path, threads=1, exact=True) as llm:
        yield llm


@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize("normalize", [True, False])
def test_an_embedding_is_what_the_reference_makes_of_the_states(
    path: str, llm: LLM, pooling: Any, normalize: bool
) -> None:
    reference = Reference(Path(path).read_bytes())
    for text in TEXTS:
        states = reference.states(llm.encode(text))
        expected = states[-1] if pooling == "last" else states.mean(axis=0)
        expected = expected / np.linalg.norm(expected) if normalize else expected
        found = llm.embed(text, pooling=pooling, normalize=normalize)
        assert found.dtype == np.float32 and found.shape == (llm.dim,)
        assert np.abs(found - expected).max() < 2e-3 * np.abs(expected).max()  # keys and values are fp16


@pytest.mark.parametrize("dtype", [FP16, INT8R])
@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_the_same_alone_in_a_batch_and_beside_a_generation(tmp_path: Path, dtype: int, pooling: Any) -> None:
    with LLM(write(tmp_path, dtype), threads=2, exact=True) as llm:
        stream = llm.stream("running", max_tokens=300, ignore_eos=True, seed=1)
        next(stream)
        together = llm.embed(TEXTS * 3, pooling=pooling)
        stream.close()
    with LLM(llm.path, threads=1, exact=True) as llm:
        alone = [llm.embed(text, pooling=pooling) for text in TEXTS * 3]
        cached = [llm.embed(text, pooling=pooling) for text in TEXTS * 3]
    assert (together == np.array(alone)).all() and (np.array(alone) == np.array(cached)).all()


def test_fewer_dimensions_are_the_first_and_still_1_long(llm: LLM) -> None:
    whole, part = llm.embed("Hello"), llm.embed("Hello", dimensions=10)
    assert part.shape == (10,) and abs(np.linalg.norm(part) - 1) < 1e-6
    assert np.allclose(part, whole[:10] / np.linalg.norm(whole[:10]), atol=1e-6)
    assert llm.embed([], dimensions=10).shape == (0, 10)


def test_prompts_go_before_texts(tmp_path: Path) -> None:
    with LLM(write(tmp_path, FP16, QUERY), threads=1) as llm:
        assert (llm.embed("x", prompt="query") == llm.embed("Q: x")).all()
        assert (llm.embed("x", prompt="document") == llm.embed("x")).all()
        with pytest.raises(ValueError, match="no prompt 'answer'; it has: query, document"):
            llm.embed("x", prompt="answer")
    default = {**QUERY, "default_prompt": "query", "pooling": "mean", "normalize": False}
    with LLM(write(tmp_path, FP16, default), threads=1) as llm:
        own = llm.embed("Q: x", prompt="document", pooling="mean", normalize=False)
        assert (llm.embed("x") == own).all() and abs(np.linalg.norm(own) - 1) > 1e-3


def test_a_mean_may_leave_the_prompt_out(tmp_path: Path) -> None:
    told = {**QUERY, "pooling": "mean", "normalize": False, "include_prompt": False}
    path = write(tmp_path, FP16, told)
    with LLM(path, threads=1, exact=True) as llm:
        found, whole = llm.embed("Hello", prompt="query"), llm.embed("Hello", prompt="document")
        last = llm.embed("Hello", prompt="query", pooling="last")
        ids = llm.encode("Q: Hello")
        assert (llm.embed(ids) != found).any(), "of ids nobody knows what the prompt is"
        with pytest.raises(ValueError, match="the text has no tokens behind its prompt"):
            llm.embed("", prompt="query")
        states = Reference(Path(path).read_bytes()).states(ids)
        expected = states[len(llm.encode("Q: ")) :].mean(axis=0)
        assert np.abs(found - expected).max() < 2e-3 * np.abs(expected).max()
        assert np.abs(last - states[-1]).max() < 2e-3 * np.abs(states[-1]).max()
        assert (
            np.abs(whole - Reference(Path(path).read_bytes()).states(llm.encode("Hello")).mean(0)).max()
            < 0.01
        )


def test_a_text_is_never_cut(tmp_path: Path) -> None:
    with LLM(write(tmp_path, FP16, {**QUERY, "max_tokens": 8}), threads=1) as llm:
        assert llm.embed("x" * 7).shape == (llm.dim,)
        with pytest.raises(ContextError, match="the text has 9 tokens, more than the 8"):
            llm.embed("x" * 8)
        with pytest.raises(ContextError, match="text 1 has 11 tokens, more than the 8"):
            llm.embed(["x", "x" * 7], prompt="query")


def test_a_model_without_an_output_matrix_makes_no_text(tmp_path: Path) -> None:
    with LLM(write(tmp_path, FP16, {**QUERY, "generates": False}), threads=1) as llm:
        assert abs(np.linalg.norm(llm.embed("x")) - 1) < 1e-6
        for asked in (
            llm.generate,
            llm.logits,
            lambda text: llm.score(text, "y"),
            lambda text: llm.session(),
        ):
            with pytest.raises(LLMError, match="no output matrix"):
                asked("x")


@pytest.mark.parametrize(
    "recipe",
    [
        "{",
        "[]",
        '{"pooling": "last"}',
        json.dumps({**QUERY, "pooling": "max"}),
        json.dumps({**QUERY, "max_tokens": "8"}),
        json.dumps({**QUERY, "refused": 1}),
        json.dumps({**QUERY, "scale": "x"}),
    ],
)
def test_a_file_that_says_nonsense_is_refused(tmp_path: Path, recipe: str) -> None:
    with LLM(write(tmp_path, FP16, recipe), threads=1) as llm, pytest.raises(LLMError, match="embeddings"):
        llm.embed("x")


def test_what_cannot_be_embedded_is_refused(llm: LLM) -> None:
    for arguments, sentence in (
        (dict(texts=[[]]), "no tokens"),
        (dict(texts="x", dimensions=llm.dim + 1), "dimensions"),
        (dict(texts="x", pooling="max"), "pooling"),
    ):
        with pytest.raises(ValueError, match=sentence):
            llm.embed(**arguments)
    with pytest.raises(ContextError, match="601 tokens"):
        llm.embed("x" * 600)


# ----------------------------------------------------------------------------------------------------------
# The files of sentence-transformers


def folder_with(tmp_path: Path, modules: Any, pooling: Any, about: Any = None) -> Path:
    (tmp_path / "1_Pooling").mkdir()
    for name, content in (
        ("modules.json", modules),
        ("1_Pooling/config.json", pooling),
        ("config_sentence_transformers.json", about),
    ):
        if content is not None:
            (tmp_path / name).write_text(json.dumps(content))
    return tmp_path


def modules(*kinds: str) -> list[dict[str, str]]:
    paths = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize", "Dense": "2_Dense"}
    return [{"type": f"sentence_transformers.models.{kind}", "path": paths[kind]} for kind in kinds]


PLAIN = ("Transformer", "Pooling")


def test_a_recipe_is_read_from_the_models_files(tmp_path: Path) -> None:
    """As Qwen3-Embedding's are."""
    query = "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:"
    about = {"prompts": {"query": query, "document": ""}, "default_prompt_name": None}
    pooling = {"pooling_mode_lasttoken": True, "pooling_mode_mean_tokens": False, "include_prompt": True}
    folder = folder_with(tmp_path, modules("Transformer", "Pooling", "Normalize"), pooling, about)
    prompts = {"query": query, "document": ""}
    expected = {**QUERY, "prompts": prompts, "include_prompt": True, "max_tokens": None}
    assert embedding.recipe(folder) == expected


@pytest.mark.parametrize(
    "pooling, found",
    [
        ({"pooling_mode_lasttoken": True, "pooling_mode_cls_token": False}, "last"),
        ({"pooling_mode_mean_tokens": True}, "mean"),
        ({"pooling_mode": "lasttoken"}, "last"),
        ({"pooling_mode": ["mean"], "include_prompt": False}, "mean"),
        ({"pooling_mode": "lasttoken", "pooling_mode_mean_tokens": True}, "last"),  # the newer key counts
        ({}, "mean"),
    ],
)
def test_pooling_is_read_in_its_older_and_newer_form(tmp_path: Path, pooling: Any, found: str) -> None:
    recipe = embedding.recipe(folder_with(tmp_path, modules(*PLAIN), pooling))
    assert recipe is not None and recipe["pooling"] == found and not recipe["normalize"]
    assert recipe["include_prompt"] is pooling.get("include_prompt", True)


@pytest.mark.parametrize(
    "kinds, pooling, transformer, why",
    [
        (
            (*PLAIN, "Dense"),
            {"pooling_mode_mean_tokens": True},
            {},
            "modules.json has Transformer, Pooling, D",
        ),
        (
            ("Transformer", "Normalize", "Pooling"),
            {"pooling_mode_mean_tokens": True},
            {},
            "Normalize, Pooling",
        ),
        (("Transformer",), {}, {}, "modules.json has Transformer"),
        (PLAIN, {"pooling_mode_cls_token": True}, {}, "by cls is"),
        (PLAIN, {"pooling_mode": "weightedmean"}, {}, "by weightedmean is"),
        (
            PLAIN,
            {"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True},
            {},
            "by max and mean is",
        ),
        (PLAIN, {"pooling_mode": ["mean", "lasttoken"]}, {}, "by mean and lasttoken is"),
        (PLAIN, {"pooling_mode": "mean"}, {"do_lower_case": True}, "do_lower_case"),
        (PLAIN, {"pooling_mode": "mean"}, {"transformer_task": "text-generation"}, "transformer_task"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(
    tmp_path: Path, kinds: tuple[str, ...], pooling: Any, transformer: Any, why: str
) -> None:
    (tmp_path / "sentence_bert_config.json").write_text(json.dumps(transformer))
    recipe = embedding.recipe(folder_with(tmp_path, modules(*kinds), pooling))
    assert recipe is not None and why in recipe["refused"]
    with LLM(write(tmp_path, FP16, recipe), threads=1) as llm:
        assert llm.generate("x", max_tokens=1, ignore_eos=True).tokens
        with pytest.raises(LLMError, match=re.escape(recipe["refused"])):
            llm.embed("x")


@pytest.mark.parametrize(
    "transformer, tokenizer, longest",
    [
        ({"max_seq_length": 512}, {"model_max_length": 2048}, 512),
        ({}, {"model_max_length": 2048}, 2048),
        ({"max_seq_length": None}, {"model_max_length": 10**30}, None),
    ],
)
def test_the_longest_text_is_the_one_that_the_files_name(
    tmp_path: Path, transformer: Any, tokenizer: Any, longest: int | None
) -> None:
    (tmp_path / "sentence_bert_config.json").write_text(json.dumps(transformer))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    recipe = embedding.recipe(folder_with(tmp_path, modules(*PLAIN), {"pooling_mode": "mean"}))
    assert recipe is not None and recipe["max_tokens"] == longest


def test_files_that_are_damaged_are_named(tmp_path: Path) -> None:
    assert embedding.recipe(tmp_path) is None
    (tmp_path / "modules.json").write_text("{")
    with pytest.raises(ConvertError, match="modules.json"):
        embedding.recipe(tmp_path)
    strange = [{"type": "x.Transformer", "path": ""}, {"type": "x.Pooling", "path": "../.."}]
    (tmp_path / "modules.json").write_text(json.dumps(strange))
    with pytest.raises(ConvertError, match="plain folder"):
        embedding.recipe(tmp_path)
    folder = folder_with(tmp_path, modules(*PLAIN), {"pooling_mode": "mean", "include_prompt": "no"})
    with pytest.raises(ConvertError, match="include_prompt is 'no'"):
        embedding.recipe(folder)
    (folder / "1_Pooling" / "config.json").write_text("{}")
    for about, why in (
        ({"prompts": ["query: "]}, "prompts are not texts by name"),
        ({"prompts": {"query": "q: "}, "default_prompt_name": "answer"}, "default prompt, 'answer', is none"),
        ({"prompts": {"query": "q: "}, "default_prompt_name": ["query"]}, "is none of its prompts"),
    ):
        (folder / "config_sentence_transformers.json").write_text(json.dumps(about))
        with pytest.raises(ConvertError, match=why):
            embedding.recipe(folder)
    (folder / "config_sentence_transformers.json").unlink()
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": "512"}))
    with pytest.raises(ConvertError, match="max_seq_length is '512'"):
        embedding.recipe(folder)


@pytest.mark.parametrize("name", ["bert", "nomic-bert", "modern-bert", "gemma-embedding"])
def test_encoders_are_refused_by_name(tmp_path: Path, name: str) -> None:
    gguf = pytest.importorskip("gguf")
    finish(gguf.GGUFWriter(tmp_path / "tiny.gguf", name))
    with pytest.raises(ConvertError, match=f"{name} cannot be converted: its attention looks ahead"):
        gguf_file.open_file(tmp_path / "tiny.gguf")
    if name == "bert":
        with pytest.raises(ConvertError, match="BertModel cannot be converted: its attention looks ahead"):
            describe({"architectures": ["BertModel"], "model_type": "bert"})


# ----------------------------------------------------------------------------------------------------------
# Over the server


def test_the_server_gives_the_same_numbers_in_both_encodings(tmp_path: Path) -> None:
    pytest.importorskip("starlette")
    from served import Client

    from pyllm.testing import running_server

    path = write(tmp_path, INT8R, QUERY)
    with running_server(path, threads=1) as running, LLM(path, threads=1) as llm:
        client = Client(running.url)
        answer = client.answer("/v1/embeddings", {"input": TEXTS})
        assert answer["object"] == "list" and [one["index"] for one in answer["data"]] == [0, 1, 2]
        assert answer["usage"]["prompt_tokens"] == sum(len(llm.encode(text)) for text in TEXTS)
        expected = llm.embed(TEXTS)
        assert [one["embedding"] for one in answer["data"]] == expected.astype(float).tolist()
        coded = client.answer("/v1/embeddings", {"input": TEXTS, "encoding_format": "base64"})
        data = [np.frombuffer(base64.b64decode(one["embedding"]), "<f4") for one in coded["data"]]
        assert (np.array(data) == expected).all()
        one = client.answer("/v1/embeddings", {"input": llm.encode("Q: x"), "dimensions": 7})["data"][0]
        named = client.answer("/v1/embeddings", {"input": "x", "prompt_name": "query", "dimensions": 7})[
            "data"
        ][0]
        assert one == named and len(one["embedding"]) == 7
        for body, param in (
            ({"input": []}, "input"),
            ({"input": [1.5]}, "input"),
            ({"input": "x" * 700}, "input"),
            ({"input": "x", "dimensions": 65}, "dimensions"),
            ({"input": "x", "prompt_name": "none"}, "prompt_name"),
            ({"input": "x", "encoding_format": "int8"}, "encoding_format"),
        ):
            status, error = client.post("/v1/embeddings", body)
            assert status == 400 and error["error"]["param"] == param, error


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A server of a model for embeddings that takes texts of 40 tokens; (client, LLM of the same file)."""
    pytest.importorskip("starlette")
    from served import Client

    from pyllm.testing import running_server

    path = write(tmp_path_factory.mktemp("served"), INT8R, {**QUERY, "max_tokens": 40})
    with running_server(path, threads=1) as running, LLM(path, threads=1) as llm:
        yield Client(running.url), llm


def vectors(answer: Any) -> np.ndarray:
    return np.array([one["embedding"] for one in answer["data"]], np.float32)


def test_texts_and_token_ids_may_be_given_alone_and_in_lists(served: Any) -> None:
    client, llm = served
    ids = llm.encode("Hello")
    for given, texts in (
        ("Hello", ["Hello"]),
        (ids, ["Hello"]),
        ([ids], ["Hello"]),
        ([ids, llm.encode("x"), ids], ["Hello", "x", "Hello"]),
        (["x", ids], ["x", "Hello"]),
    ):
        answer = client.answer("/v1/embeddings", {"input": given})
        assert (vectors(answer) == llm.embed(texts)).all()
        tokens = sum(len(llm.encode(text)) for text in texts)
        assert answer["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}


def test_the_server_gives_fewer_dimensions_1_long(served: Any) -> None:
    client, llm = served
    (found,) = vectors(client.answer("/v1/embeddings", {"input": "Hello", "dimensions": 5}))
    whole = llm.embed("Hello")[:5]
    assert found.shape == (5,) and np.allclose(found, whole / np.linalg.norm(whole), atol=1e-6)


def test_openais_client_asks_for_base64_by_itself(served: Any) -> None:
    openai = pytest.importorskip("openai")
    client, llm = served
    base_url = f"{client.address.geturl()}/v1"
    with openai.OpenAI(base_url=base_url, api_key="none", max_retries=0) as theirs:
        found = theirs.embeddings.create(
            model=theirs.models.list().data[0].id, input=TEXTS[::2], dimensions=9
        )
        expected = llm.embed(TEXTS[::2], dimensions=9)
        assert (np.array([one.embedding for one in found.data], np.float32) == expected).all()
        floats = theirs.embeddings.create(model=found.model, input="x", encoding_format="float")
        assert (np.array(floats.data[0].embedding, np.float32) == llm.embed("x")).all()


@pytest.mark.parametrize(
    "body, param, said",
    [
        ({"input": ""}, "input", "input is empty"),
        ({"input": []}, "input", "input is empty"),
        ({"input": ["x", ""]}, "input", "input[1] is empty"),
        ({"input": [[]]}, "input", "input is empty"),
        ({"input": [[1], "x", []]}, "input", "input[2] is empty"),
        ({"input": 3}, None, "input"),
        ({}, None, "input"),
        ({"input": [True]}, "input", "input must be a text"),
        ({"input": {"text": "x"}}, None, "input"),
        ({"input": [300]}, None, "300"),
        ({"input": [-1]}, None, "-1"),
        ({"input": ["x"] * 2049}, "input", "input has 2049 texts, more than the 2048"),
        ({"input": "x" * 40}, "input", "has 41 tokens, more than the 40 that"),
        ({"input": ["x", "x" * 700]}, "input", "text 1 has 701 tokens, more than the context of 600"),
        ({"input": "x", "encoding_format": "hex"}, "encoding_format", "encoding_format"),
        ({"input": "x", "dimensions": 0}, "dimensions", "dimensions"),
        ({"input": "x", "dimensions": 1.5}, "dimensions", "dimensions"),
        ({"input": "x", "prompt_name": "answer"}, "prompt_name", "it has: query, document"),
    ],
)
def test_a_request_that_is_wrong_is_400_and_names_the_field(
    served: Any, body: Any, param: str | None, said: str
) -> None:
    client, _ = served
    status, answer = client.post("/v1/embeddings", body)
    assert status == 400 and said in answer["error"]["message"], answer
    assert param is None or answer["error"]["param"] == param


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


def test_64_texts_beside_chats_are_what_they_are_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("starlette")
    from served import Client, write_model

    from pyllm.testing import running_server

    path, opened, forward = write_model(tmp_path, context=600), threading.Event(), Cache.forward

    def held(*args: Any) -> Any:
        """No step ends until all five have come."""
        assert opened.wait(60)
        return forward(*args)

    texts = [f"{i} " * (i % 9 + 1) for i in range(64)]
    chat = {
        "messages": [{"role": "user", "content": "Hi"}],
        "max_tokens": 150,
        "ignore_eos": True,
        "temperature": 0,
    }
    with running_server(path, threads=1) as running, LLM(path, threads=1) as llm:
        client = Client(running.url)
        alone = client.answer("/v1/chat/completions", chat)["choices"]
        monkeypatch.setattr(Cache, "forward", held)
        with ThreadPoolExecutor(5) as pool:
            chats = [pool.submit(client.answer, "/v1/chat/completions", chat) for _ in range(4)]
            found = pool.submit(client.answer, "/v1/embeddings", {"input": texts})
            until(lambda: len(running.service.running) == 5)
            opened.set()
            assert (vectors(found.result()) == llm.embed(texts)).all()
            assert all(done.result()["choices"] == alone for done in chats)


def test_a_list_is_not_too_long_for_a_queue_in_which_nobody_waits(tmp_path: Path) -> None:
    """It would be, however often it came again."""
    pytest.importorskip("starlette")
    from served import Client

    from pyllm import Policy
    from pyllm.server import Settings
    from pyllm.testing import running_server

    path = write(tmp_path, FP16)
    with running_server(path, Settings(max_waiting=2), threads=1, policy=Policy(max_running=2)) as running:
        client = Client(running.url)
        assert len(client.answer("/v1/embeddings", {"input": ["x", "yz"] * 20})["data"]) == 40


def test_the_server_says_what_a_model_does_not_do(tmp_path: Path) -> None:
    pytest.importorskip("starlette")
    from served import Client

    from pyllm.testing import running_server

    told = {**QUERY, "refused": "pooling by cls is not supported", "generates": False}
    with running_server(write(tmp_path, FP16, told), threads=1) as running:
        client = Client(running.url)
        for path, body, said in (
            ("/v1/embeddings", {"input": "x"}, "pooling by cls is not supported"),
            ("/v1/completions", {"prompt": "x"}, "no output matrix"),
        ):
            status, answer = client.post(path, body)
            assert status == 400 and said in answer["error"]["message"], answer
