"""Anthropic's Messages API over real sockets: requests are chats in other words, and streams are nothing but
legal sequences of events that add up to the whole."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from common import IM_END
from served import CONTROL, SCHEMA, THINK, THINKING, THOUGHT, Client, occupied, write_model

pytest.importorskip("starlette")
pytest.importorskip("llguidance")

from pyllm.binding import Cache  # noqa: E402
from pyllm.server import Settings  # noqa: E402
from pyllm.server.errors import ApiError  # noqa: E402
from pyllm.server.messages import MessagesRequest, chat_for, shaped  # noqa: E402
from pyllm.server.schemas import decode  # noqa: E402
from pyllm.testing import Server, running_server  # noqa: E402

MESSAGES, COUNT, CHAT = "/v1/messages", "/v1/messages/count_tokens", "/v1/chat/completions"
ADD = {
    "name": "add",
    "description": "adds",
    "input_schema": {
        "type": "object",
        "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 9}},
        "required": ["a"],
        "additionalProperties": False,
    },
}
SUB = {**ADD, "name": "sub"}
HI = [{"role": "user", "content": "Hi"}]
ENDLESS = {"logit_bias": {str(IM_END): -100}, "ignore_eos": True}
AT_ONCE = {str(THINK): -100.0}  # a bias against reasoning, where a grammar would let the model begin with it
THINKS = {
    "thinking": {"type": "enabled", "budget_tokens": 1024},
    "logit_bias": {str(THOUGHT): 4.0, str(IM_END): -100},
    "structured_outputs": {"choice": ["yes", "no"]},
    "seed": 3,
}
CALLS = {"tools": [ADD, SUB], "tool_choice": {"type": "any"}, "logit_bias": AT_ONCE}
ONE = {"type": "any", "disable_parallel_tool_use": True}
# Requests of every kind, with how they end: the kinds of blocks, and why
EVERY: dict[str, tuple[dict[str, Any], list[str], str]] = {
    "text": ({"seed": 1, "logit_bias": {str(IM_END): 3}}, ["text"], "end_turn"),
    "nothing": ({"logit_bias": {str(IM_END): 100}}, ["text"], "end_turn"),
    "cut": ({"seed": 1, "max_tokens": 20, **ENDLESS}, ["text"], "max_tokens"),
    "none": ({"max_tokens": 0}, ["text"], "max_tokens"),
    "stopped": (
        {"stop_sequences": ["never", "a"], "logit_bias": {"97": 6, str(IM_END): -100}, "seed": 2},
        ["text"],
        "stop_sequence",
    ),
    "schema": (
        {
            "output_config": {"format": {"type": "json_schema", "schema": SCHEMA}},
            "seed": 1,
            "logit_bias": AT_ONCE,
        },
        ["text"],
        "end_turn",
    ),
    "thought": (THINKS, ["thinking", "text"], "end_turn"),
    "cut thought": (
        {
            "thinking": {"type": "enabled"},
            "seed": 1,
            "logit_bias": {str(THOUGHT): -100, str(IM_END): -100},
            "max_tokens": 9,
        },
        ["thinking"],
        "max_tokens",
    ),
    "call": ({**CALLS, "tool_choice": ONE, "seed": 1}, ["tool_use"], "tool_use"),
    "thought and call": (
        {**CALLS, **THINKS, "structured_outputs": None, "tool_choice": ONE},
        ["thinking", "tool_use"],
        "tool_use",
    ),
}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_model(tmp_path_factory.mktemp("messages"), template=THINKING, control=CONTROL)


@pytest.fixture(scope="module")
def served(path: str) -> Iterator[Server]:
    with running_server(path, Settings(names=("tiny",)), threads=1) as running:
        yield running


@pytest.fixture
def client(served: Server) -> Client:
    return Client(served.url)


def asked(**more: Any) -> dict[str, Any]:
    return {"messages": HI, "max_tokens": 500, **more}


def stream(client: Client, body: Any) -> list[dict[str, Any]]:
    return client.typed_events(MESSAGES, body)


EMPTY = {
    "text": {"type": "text", "text": ""},
    "thinking": {"type": "thinking", "thinking": "", "signature": ""},
}
DELTAS = {
    "text": ("text_delta", "text"),
    "thinking": ("thinking_delta", "thinking"),
    "tool_use": ("input_json_delta", "partial_json"),
}


def message_of(events: list[dict[str, Any]]) -> dict[str, Any]:
    """The message that a stream adds up to. Nothing passes but what the API allows in its place."""
    rest = iter(events)
    start = next(rest)
    assert start["type"] == "message_start"
    message = start["message"]
    assert message["content"] == [] and message["stop_reason"] is None and message["stop_sequence"] is None
    assert message["usage"]["output_tokens"] == 0
    content: list[dict[str, Any]] = []
    for event in rest:
        if event["type"] == "message_delta":
            break
        content.append(block_of(event, rest, len(content)))
    else:
        raise AssertionError("no message_delta")
    (stop,) = rest
    assert stop == {"type": "message_stop"}
    before = {name: message["usage"][name] for name in message["usage"] if "input" in name}
    assert before.items() <= event["usage"].items(), "what is known at the start is right"
    return {**message, "content": content, **event["delta"], "usage": event["usage"]}


def block_of(start: dict[str, Any], rest: Iterator[dict[str, Any]], index: int) -> dict[str, Any]:
    """The block that begins with an event."""
    assert start["type"] == "content_block_start" and start["index"] == index
    block = start["content_block"]
    kind, name = DELTAS[block["type"]]
    if block["type"] == "tool_use":
        assert block["input"] == {} and block["id"] and block["name"]
    else:
        assert block == EMPTY[block["type"]]
    text = ""
    for event in rest:
        assert event["index"] == index
        if event["type"] == "content_block_stop":
            break
        assert event["type"] == "content_block_delta" and set(event["delta"]) == {"type", name}
        assert event["delta"]["type"] == kind and event["delta"][name] != ""
        text += event["delta"][name]
    return {**block, "input": text} if block["type"] == "tool_use" else {**block, name: text}


def lasting(message: dict[str, Any]) -> dict[str, Any]:
    """A message without what differs each time; arguments as objects."""
    assert message["id"].startswith("msg_")
    content = [
        {**block, "input": json.loads(block["input"])} if isinstance(block.get("input"), str) else block
        for block in message["content"]
    ]
    usage = message["usage"]
    read = usage["input_tokens"] + usage["cache_read_input_tokens"]
    usage = {**usage, "input_tokens": read, "cache_read_input_tokens": 0}
    return {**message, "id": "", "content": content, "usage": usage}


def error_of(answer: tuple[int, Any]) -> dict[str, Any]:
    """The error in an answer, which has Anthropic's shape."""
    status, body = answer
    assert status >= 400 and set(body) == {"type", "error"} and body["type"] == "error", body
    assert set(body["error"]) == {"type", "message"}
    return body["error"] | {"status": status}


def text_of(message: dict[str, Any]) -> str:
    return "".join(block["text"] for block in message["content"] if block["type"] == "text")


# ----------------------------------------------------------------------------------------------------------
# Answers


@pytest.mark.parametrize("name", EVERY)
def test_a_stream_is_a_legal_sequence_that_adds_up_to_the_whole(client: Client, name: str) -> None:
    body, kinds, reason = EVERY[name]
    whole = client.answer(MESSAGES, asked(**body))
    assert [block["type"] for block in whole["content"]] == kinds
    assert whole["stop_reason"] == reason
    assert whole["stop_sequence"] == ("a" if reason == "stop_sequence" else None)
    assert lasting(message_of(stream(client, asked(**body)))) == lasting(whole)


def test_a_message_is_a_chats_reply_in_other_words(client: Client) -> None:
    body = {"max_tokens": 24, "seed": 3, "temperature": 0.7, "top_k": 40, "cache": False}
    chat = client.answer(CHAT, {"messages": [{"role": "system", "content": "Be"}, *HI], **body})
    message = client.answer(MESSAGES, {"messages": HI, "system": "Be", **body})
    assert text_of(message) == chat["choices"][0]["message"]["content"]
    assert message["usage"]["input_tokens"] == chat["usage"]["prompt_tokens"]
    assert message["usage"]["output_tokens"] == chat["usage"]["completion_tokens"]
    assert (message["type"], message["role"], message["model"]) == ("message", "assistant", "tiny")


def test_input_tokens_do_not_count_those_that_were_cached(client: Client) -> None:
    body = {"messages": [{"role": "user", "content": "The same again, " * 10}], "max_tokens": 4}
    length = client.answer(COUNT, {"messages": body["messages"]})["input_tokens"]
    for cached in (None, length - 1):
        usage = client.answer(MESSAGES, body)["usage"]
        assert usage["input_tokens"] + usage["cache_read_input_tokens"] == length
        assert cached is None or usage["cache_read_input_tokens"] == cached
        assert usage["cache_creation_input_tokens"] == 0
    start = stream(client, body)[0]["message"]["usage"]
    assert start["cache_read_input_tokens"] == length - 1 and start["input_tokens"] == 1


@pytest.mark.parametrize(
    "more, reason",
    [({"max_tokens": 45}, "max_tokens"), ({"stop_sequences": ['"a"']}, "stop_sequence")],
)
def test_a_call_that_is_cut_is_no_call(client: Client, more: dict[str, Any], reason: str) -> None:
    body = {**asked(**CALLS, seed=1), **more}
    whole = client.answer(MESSAGES, body)
    assert whole["stop_reason"] == reason and whole["content"] == []
    streamed = message_of(stream(client, body))
    assert streamed["stop_reason"] == reason
    (block,) = streamed["content"]
    with pytest.raises(ValueError):
        json.loads(block["input"])


def test_several_calls_are_several_blocks(client: Client) -> None:
    seen = set()
    for seed in range(12):
        body = asked(**{**CALLS, "logit_bias": {**AT_ONCE, str(IM_END): -6}}, seed=seed)
        whole = client.answer(MESSAGES, body)
        streamed = message_of(stream(client, body))
        if whole["stop_reason"] == "tool_use":
            assert lasting(streamed) == lasting(whole)
        calls = whole["content"]
        assert all(block["type"] == "tool_use" and set(block["input"]) == {"a"} for block in calls)
        assert len({block["id"] for block in calls}) == len(calls)
        seen.add(len(calls) > 1)
    assert True in seen


def test_thoughts_can_be_left_out(client: Client) -> None:
    body = asked(**{**THINKS, "thinking": {"type": "enabled", "display": "omitted"}})
    thought, text = client.answer(MESSAGES, body)["content"]
    assert thought == {"type": "thinking", "thinking": "", "signature": ""} and text["text"] in ("yes", "no")
    assert message_of(stream(client, body))["content"] == [thought, text]


def test_thinking_is_what_the_template_is_told(client: Client) -> None:
    def length(**more: Any) -> int:
        return int(client.answer(COUNT, {"messages": HI, **more})["input_tokens"])

    plain = length()
    assert length(thinking={"type": "enabled", "budget_tokens": 2000}) == plain + 1
    assert length(thinking={"type": "disabled"}) == plain
    assert length(thinking={"type": "adaptive"}) == plain


def test_a_schema_binds_the_text(client: Client) -> None:
    body = asked(output_config={"format": {"type": "json_schema", "schema": SCHEMA}}, logit_bias=AT_ONCE)
    for seed in range(4):
        assert set(json.loads(text_of(client.answer(MESSAGES, {**body, "seed": seed})))) == {"x"}


def test_null_is_absent_and_neutral_values_pass(client: Client) -> None:
    nulls = dict.fromkeys(MessagesRequest.__struct_fields__)
    neutral = {
        "metadata": {"user_id": "me"},
        "service_tier": "auto",
        "cache_control": {"type": "ephemeral"},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        "tool_choice": {"type": "auto"},
        "output_config": {},
        "stop_sequences": [],
        "n": 1,
    }
    own = {"messages": HI, "seed": 1, "max_tokens": 8}
    same = [client.answer(MESSAGES, {**more, **own}) for more in ({}, nulls, neutral)]
    assert len({text_of(answer) for answer in same}) == 1


# ----------------------------------------------------------------------------------------------------------
# Requests


def chat_messages(**body: Any) -> list[dict[str, Any]]:
    """The conversation that a request comes down to."""
    request = decode(json.dumps({"max_tokens": 1, **body}).encode(), MessagesRequest)
    return chat_for(request).messages


def text(text: str, **more: Any) -> dict[str, Any]:
    return {"type": "text", "text": text, **more}


@pytest.mark.parametrize(
    "body, messages",
    [
        ({"messages": HI}, [("user", "Hi")]),
        ({"messages": HI, "system": "Be"}, [("system", "Be"), ("user", "Hi")]),
        (
            {"messages": HI, "system": [text("Be", cache_control={"type": "ephemeral"}), text("brief")]},
            [("system", "Be\n\nbrief"), ("user", "Hi")],
        ),
        (
            {"messages": [*HI, {"role": "user", "content": [text("a"), text("b")]}]},
            [("user", "Hi\n\na\n\nb")],
        ),
        (
            {"messages": [*HI, {"role": "system", "content": "Be"}, *HI], "system": "First"},
            [("system", "First"), ("user", "Hi"), ("system", "Be"), ("user", "Hi")],
        ),
        (
            {"messages": [*HI, {"role": "assistant", "content": [text("Well")]}, *HI]},
            [("user", "Hi"), ("assistant", "Well"), ("user", "Hi")],
        ),
    ],
)
def test_blocks_are_messages(body: dict[str, Any], messages: list[tuple[str, str]]) -> None:
    assert [(m["role"], m["content"]) for m in chat_messages(**body)] == messages


def test_a_block_that_changes_with_each_request_is_not_in_the_prompt(client: Client) -> None:
    """It would come first, and nothing behind it could be reused."""
    usages = []
    for i in range(2):
        billing = text(f"x-anthropic-billing-header: cc_version=2.1; cch={i}a{i};")
        body = {"messages": HI, "system": [billing, text("You are a model of bytes. " * 10)], "max_tokens": 2}
        usages.append(client.answer(MESSAGES, body)["usage"])
    assert usages[1]["input_tokens"] == 1 and usages[1]["cache_read_input_tokens"] > 250
    assert chat_messages(messages=HI, system=[billing]) == HI


def test_calls_and_their_results_are_turns() -> None:
    call = {"type": "tool_use", "id": "abc", "name": "add", "input": {"a": 1}}
    result = {"type": "tool_result", "tool_use_id": "abc", "content": "2"}
    thoughts = [
        {"type": "thinking", "thinking": "hm", "signature": "x"},
        {"type": "redacted_thinking", "data": "x"},
    ]
    messages = [
        *HI,
        {"role": "assistant", "content": [*thoughts, text("Well"), call, {**call, "id": "def"}]},
        {
            "role": "user",
            "content": [
                result,
                {**result, "tool_use_id": "def", "content": [text("3"), text("4")], "is_error": True},
                {**result, "content": None},
                text("Go on"),
            ],
        },
    ]
    function = {"name": "add", "arguments": {"a": 1}}
    assert chat_messages(messages=messages) == [
        *HI,
        {
            "role": "assistant",
            "content": "Well",
            "reasoning_content": "hm",
            "tool_calls": [
                {"id": "abc", "type": "function", "function": function},
                {"id": "def", "type": "function", "function": function},
            ],
        },
        {"role": "tool", "tool_call_id": "abc", "content": "2"},
        {"role": "tool", "tool_call_id": "def", "content": "Error: 3\n\n4"},
        {"role": "tool", "tool_call_id": "abc", "content": ""},
        {"role": "user", "content": "Go on"},
    ]


def test_the_content_of_a_message_is_input_for_the_next(client: Client) -> None:
    """As the chat does it, of which the prompt is the same."""
    first = client.answer(
        MESSAGES, asked(**{**CALLS, **THINKS, "structured_outputs": None, "tool_choice": ONE})
    )
    thought, call = first["content"]
    result = {"type": "tool_result", "tool_use_id": call["id"], "content": [text("7")]}
    turns = [
        *HI,
        {"role": "assistant", "content": first["content"]},
        {"role": "user", "content": [result]},
    ]
    more = {"seed": 5, "max_tokens": 12, "cache": False}
    second = client.answer(MESSAGES, {"messages": turns, "tools": [ADD, SUB], **more})
    function = {"name": call["name"], "arguments": json.dumps(call["input"])}
    messages = [
        *HI,
        {
            "role": "assistant",
            "content": None,
            "reasoning": thought["thinking"],
            "tool_calls": [{"id": call["id"], "type": "function", "function": function}],
        },
        {"role": "tool", "tool_call_id": call["id"], "content": "7"},
    ]
    tools = [
        {
            "type": "function",
            "function": {"name": t["name"], "description": "adds", "parameters": t["input_schema"]},
        }
        for t in (ADD, SUB)
    ]
    chat = client.answer(CHAT, {"messages": messages, "tools": tools, **more})
    assert text_of(second) == chat["choices"][0]["message"]["content"]
    assert second["usage"]["input_tokens"] == chat["usage"]["prompt_tokens"]


def test_a_function_can_be_asked_for_by_name_and_none_at_all(client: Client) -> None:
    for seed in range(4):
        body = asked(**{**CALLS, "tool_choice": {"type": "tool", "name": "sub"}}, seed=seed)
        message = client.answer(MESSAGES, body)
        assert [block["name"] for block in message["content"]] == ["sub"]
        assert message["stop_reason"] == "tool_use"
    none = client.answer(COUNT, {"messages": HI, "tools": [ADD], "tool_choice": {"type": "none"}})
    assert none == client.answer(COUNT, {"messages": HI})


def test_what_the_assistant_has_begun_to_say_goes_on(client: Client) -> None:
    begun = [*HI, {"role": "assistant", "content": [text("Well")]}]
    body = {"seed": 1, "max_tokens": 9, "cache": False}
    chat = client.answer(
        CHAT,
        {
            "messages": [*HI, {"role": "assistant", "content": "Well"}],
            "continue_final_message": True,
            **body,
        },
    )
    message = client.answer(MESSAGES, {"messages": begun, **body})
    assert text_of(message) == chat["choices"][0]["message"]["content"]
    assert message["usage"]["input_tokens"] == chat["usage"]["prompt_tokens"]


def test_tokens_are_counted_as_the_message_has_them(client: Client) -> None:
    body = {
        "system": "Be",
        "messages": HI,
        "tools": [ADD],
        "tool_choice": {"type": "auto"},
        "thinking": {"type": "enabled", "budget_tokens": 1024},
    }
    counted = client.answer(COUNT, body)
    message = client.answer(MESSAGES, {**body, "max_tokens": 1, "cache": False})
    assert counted == {"input_tokens": message["usage"]["input_tokens"]}
    long = {"messages": [{"role": "user", "content": "a" * 5000}]}
    assert client.answer(COUNT, long)["input_tokens"] > 5000, "more than the context has"


# ----------------------------------------------------------------------------------------------------------
# What is refused


PICTURE = {"type": "image", "source": {"type": "url", "url": "file:///etc/passwd"}}
USE = {"type": "tool_use", "id": "abc", "name": "add", "input": {}}


def said(*blocks: Any, role: str = "user") -> dict[str, Any]:
    return {"messages": [*HI, {"role": role, "content": list(blocks)}]}


@pytest.mark.parametrize(
    "more, name",
    [
        ({"max_tokens": None}, "max_tokens is missing"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": "many"}, "max_tokens"),
        ({"messages": []}, "messages is empty"),
        ({"messages": None}, "messages is missing"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": ["x"]}]}, "messages[0].content"),
        (said(text("a"), PICTURE), "messages[1].content[1]"),
        (said({"type": "document", "source": {}}), "messages[1].content[0]"),
        (said({"type": "tool_result", "tool_use_id": "x", "content": [PICTURE]}), "messages[1].content[0]"),
        (said({"type": "tool_result", "content": "x"}), "messages[1].content[0].tool_use_id"),
        (said(USE), "messages[1].content[0]"),
        (said({**USE, "input": "{}"}, role="assistant"), "messages[1].content[0].input"),
        (said({**USE, "name": None}, role="assistant"), "messages[1].content[0].name"),
        (said({"type": ["text"]}), "messages[1].content[0]"),
        ({"system": [PICTURE]}, "system[0]"),
        ({"system": 5}, "system"),
        ({"tools": [ADD, {"type": "web_search_20250305", "name": "web_search"}]}, "web_search_20250305"),
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "tools[0]"),
        ({"tools": [{"name": "add"}]}, "tools[0].input_schema"),
        ({"tools": [{**ADD, "name": "a b"}]}, "tools[0].name"),
        ({"tools": [{**ADD, "input_schema": {"type": "array"}}]}, "tools[0].input_schema"),
        ({"tools": [ADD], "tool_choice": {"type": "tool", "name": "mul"}}, "tool_choice"),
        ({"tool_choice": {"type": "any"}}, "tool_choice needs tools"),
        ({"tool_choice": {"type": "sometimes"}}, "tool_choice"),
        ({"thinking": {"type": "deep"}}, "thinking"),
        ({"context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]}}, "context_management"),
        ({"context_management": {"edits": 5}}, "context_management"),
        ({"context_management": {"edits": [5]}}, "context_management"),
        ({"output_config": {"format": {"type": "xml"}}}, "output_config.format.type"),
        ({"output_config": {"format": {"type": "json_schema"}}}, "output_config.format.schema"),
        ({"stop_sequences": ["a"] * 17}, "stop_sequences has 17"),
        ({"stop_sequences": [""]}, "stop_sequences"),
        ({"temperature": -1}, "temperature"),
        ({"stop": "a"}, "stop"),
        ({"n": 2}, "n"),
        ({"explain": True}, "explain"),
        ({"response_format": {"type": "text"}}, "response_format"),
        ({"container": "x"}, "container"),
        ({"mcp_servers": []}, "mcp_servers"),
        ({"nonsense": 1}, "nonsense"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(client: Client, more: dict[str, Any], name: str) -> None:
    for streams in (False, True):
        error = error_of(client.post(MESSAGES, {**asked(stream=streams), **more}))
        assert error["status"] == 400 and error["type"] == "invalid_request_error"
        assert name in error["message"], error


def test_a_schema_that_cannot_be_enforced_is_refused(client: Client) -> None:
    form = {"type": "json_schema", "schema": {"type": "object", "not": {}}}
    error = error_of(client.post(MESSAGES, asked(output_config={"format": form})))
    assert error["status"] == 400 and "/not" in error["message"]
    tool = {**ADD, "input_schema": {"type": "object", "not": {}}}
    error = error_of(client.post(MESSAGES, asked(tools=[tool])))
    assert error["status"] == 400 and error["message"].startswith("add: ")


def test_a_prompt_that_does_not_fit_is_refused_with_both_numbers(client: Client) -> None:
    error = error_of(client.post(MESSAGES, asked(messages=[{"role": "user", "content": "a" * 3000}])))
    assert error["status"] == 400 and "2000" in error["message"] and "30" in error["message"]


@pytest.mark.parametrize(
    "method, endpoint, body, status, kind",
    [
        ("POST", MESSAGES, b"{", 400, "invalid_request_error"),
        ("POST", MESSAGES, asked(model="gpt-4"), 404, "not_found_error"),
        ("POST", COUNT, {"messages": HI, "model": "gpt-4"}, 404, "not_found_error"),
        ("POST", COUNT, {"messages": HI, "max_tokens": 5}, 400, "invalid_request_error"),
        ("POST", f"{MESSAGES}/batches", {}, 404, "not_found_error"),
        ("GET", MESSAGES, None, 405, "invalid_request_error"),
    ],
)
def test_errors_have_anthropics_shape(
    client: Client, method: str, endpoint: str, body: Any, status: int, kind: str
) -> None:
    error = error_of(client.post(endpoint, body) if method == "POST" else client.get(endpoint))
    assert (error["status"], error["type"]) == (status, kind)


@pytest.mark.parametrize(
    "status, kind",
    [
        (401, "authentication_error"),
        (403, "permission_error"),
        (413, "request_too_large"),
        (415, "invalid_request_error"),
        (429, "rate_limit_error"),
        (500, "api_error"),
        (503, "overloaded_error"),
    ],
)
def test_the_shape_is_that_of_the_path(status: int, kind: str) -> None:
    error = ApiError(status, "no", retry_after=3)
    for path in (MESSAGES, COUNT):
        other = shaped(error, path)
        assert other.body == {"type": "error", "error": {"type": kind, "message": "no"}}
        assert other.status == status and other.retry_after == 3
    assert all(shaped(error, path) is error for path in (CHAT, "/v1/messagesx", "/"))


def test_a_busy_server_says_so_before_it_streams(path: str) -> None:
    with running_server(path, Settings(max_wait=1e-9), threads=1) as running, occupied(running.service):
        body = asked(messages=[{"role": "user", "content": "x" * 1000}], stream=True)
        response = Client(running.url).send("POST", MESSAGES, body)
        assert response.status == 429 and int(response.getheader("Retry-After", "0")) >= 1
        assert json.loads(response.read())["error"]["type"] == "rate_limit_error"


def test_a_request_whose_time_is_over_is_told(client: Client) -> None:
    body = asked(timeout=0.05, **ENDLESS) | {"max_tokens": 1900}
    last = stream(client, body)[-1]
    assert last["type"] == "error" and last["error"]["type"] == "timeout_error"
    error = error_of(client.post(MESSAGES, body))
    assert error["status"] == 408 and error["type"] == "timeout_error"


@pytest.mark.parametrize("passes", [0, 1, 5])
def test_what_fails_in_the_middle_is_an_error_event(
    path: str, monkeypatch: pytest.MonkeyPatch, passes: int
) -> None:
    with running_server(path, threads=1) as running:
        forward, left = Cache.forward, [passes]

        def breaking(*args: Any) -> Any:
            if not left[0]:
                raise MemoryError("no more")
            left[0] -= 1
            return forward(*args)

        monkeypatch.setattr(Cache, "forward", breaking)
        *events, last = stream(Client(running.url), asked(**ENDLESS))
        assert last["type"] == "error" and last["error"]["type"] == "api_error"
        assert [event["type"] for event in events[:1]] == ["message_start"] * (passes > 0)
        assert not any(event["type"] in ("message_delta", "message_stop") for event in events)
        assert error_of(Client(running.url).post(MESSAGES, asked()))["status"] == 500


def test_a_model_without_a_template_answers_too(tmp_path: Path) -> None:
    with running_server(write_model(tmp_path, template=None), threads=1) as running:
        body = asked(system="Be", tools=[ADD], **ENDLESS) | {"max_tokens": 3}
        assert message_of(stream(Client(running.url), body))["stop_reason"] == "max_tokens"
