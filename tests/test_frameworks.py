"""LangChain and LlamaIndex speak to the server unchanged."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from served import write_model

pytest.importorskip("starlette")

from pyllm.testing import Server, running_server  # noqa: E402

TOOLS_TEMPLATE = (
    b"{% if tools %}{{ tools | tojson }}<tool_call></tool_call>{% endif %}{% for m in messages %}"
    b"{{ m.role }}:{{ m.content }}{{ m.tool_calls | tojson if m.tool_calls }}<|im_end|>{% endfor %}assistant:"
)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    path = write_model(tmp_path_factory.mktemp("frameworks"), template=TOOLS_TEMPLATE)
    with running_server(path, threads=1) as running:
        yield running


@pytest.fixture
def chat(served: Server) -> Any:
    langchain = pytest.importorskip("langchain_openai")
    return langchain.ChatOpenAI(
        base_url=served.base_url, api_key="-", model=served.service.names[0], seed=1, max_tokens=30
    )


def test_langchain_invokes_and_streams_the_same(chat: Any) -> None:
    whole = chat.invoke("Hi")
    assert whole.content and whole.usage_metadata["output_tokens"] <= 30
    assert "".join(chunk.content for chunk in chat.stream("Hi")) == whole.content
    assert [one.content for one in chat.batch(["Hi", "Hi"])] == [whole.content] * 2


def test_langchain_calls_tools(chat: Any) -> None:
    tool = {
        "type": "function",
        "function": {
            "name": "add",
            "description": "adds",
            "parameters": {
                "type": "object",
                "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 9}},
                "required": ["a"],
                "additionalProperties": False,
            },
        },
    }
    longer = chat.model_copy(update={"max_tokens": 200})
    bound = longer.bind_tools([tool], tool_choice="required", parallel_tool_calls=False)
    reply = bound.invoke("Hi")
    (call,) = reply.tool_calls
    assert call["name"] == "add" and 0 <= call["args"]["a"] <= 9
    told = [("user", "Hi"), reply, {"role": "tool", "content": "5", "tool_call_id": call["id"]}]
    assert chat.invoke(told).content


def test_langchain_gets_what_a_schema_allows(chat: Any) -> None:
    schema = {
        "title": "Answer",
        "type": "object",
        "properties": {"yes": {"type": "boolean"}},
        "required": ["yes"],
        "additionalProperties": False,
    }
    longer = chat.model_copy(update={"max_tokens": 300})
    found = longer.with_structured_output(schema, method="json_schema").invoke("Hi")
    assert set(found) == {"yes"} and isinstance(found["yes"], bool)


def test_langchain_embeds(served: Server) -> None:
    langchain = pytest.importorskip("langchain_openai")
    embeddings = langchain.OpenAIEmbeddings(
        base_url=served.base_url,
        api_key="-",
        model=served.service.names[0],
        check_embedding_ctx_length=False,
    )
    vectors = embeddings.embed_documents(["one", "two"])
    assert len(vectors) == 2 and len(vectors[0]) == served.service.llm.dim
    assert vectors[0] == pytest.approx(served.service.llm.embed("one").astype(float).tolist(), abs=1e-6)


def test_llama_index_completes_chats_and_streams(served: Server) -> None:
    llms = pytest.importorskip("llama_index.llms.openai_like")
    from llama_index.core.llms import ChatMessage

    llm = llms.OpenAILike(
        api_base=served.base_url,
        api_key="-",
        model=served.service.names[0],
        is_chat_model=True,
        is_function_calling_model=True,
        context_window=served.service.llm.context,
        max_tokens=30,
        additional_kwargs={"seed": 1},
    )
    whole = llm.chat([ChatMessage(role="user", content="Hi")]).message.content
    assert whole
    *_, last = llm.stream_chat([ChatMessage(role="user", content="Hi")])
    assert last.message.content == whole
    assert llm.complete("Hi").text == whole
