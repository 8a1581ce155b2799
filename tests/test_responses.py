"""OpenAI's Responses API over real sockets: requests are chats in other words, and streams are nothing but
legal sequences of events that add up to the whole."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from common import IM_END
from served import CONTROL, SCHEMA, THINK, THINKING, THOUGHT, Client, occupied, typed_events, write_model

pytest.importorskip("starlette")
pytest.importorskip("llguidance")

from pyllm.binding import Cache  # noqa: E402
from pyllm.call_formats import Tool, format_of  # noqa: E402
from pyllm.calls import Calls  # noqa: E402
from pyllm.chat import MARKS, Parting  # noqa: E402
from pyllm.sampling import Logprob, StreamEvent  # noqa: E402
from pyllm.server import Settings  # noqa: E402
from pyllm.server.chats import Reply  # noqa: E402
from pyllm.server.responses import ResponsesRequest, chat_for  # noqa: E402
from pyllm.server.schemas import Sampling, decode  # noqa: E402
from pyllm.server.translation import UNANSWERED, Blocks, Step  # noqa: E402
from pyllm.testing import Server, running_server  # noqa: E402

SECONDS = 30  # what nothing here takes unless it hangs
RESPONSES, CHAT = "/v1/responses", "/v1/chat/completions"
ADD = {
    "type": "function",
    "name": "add",
    "description": "adds",
    "parameters": {
        "type": "object",
        "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 9}},
        "required": ["a"],
        "additionalProperties": False,
    },
}
SUB = {**ADD, "name": "sub"}
ENDLESS = {"logit_bias": {str(IM_END): -100}, "ignore_eos": True}
THINKS = {
    "reasoning": {"effort": "high"},
    "logit_bias": {str(THOUGHT): 4.0, str(IM_END): -100},
    "structured_outputs": {"choice": ["yes", "no"]},
    "seed": 3,
    "max_output_tokens": 500,
}
AT_ONCE = {str(THINK): -100.0}  # a bias against reasoning, where a grammar would let the model begin with it
NAMED = {"type": "function", "name": "add"}
CALLS = {"tools": [ADD, SUB], "tool_choice": "required", "max_output_tokens": 500, "logit_bias": AT_ONCE}
# Requests of every kind, with how they end: the kinds of items, the status, and that of the last item
EVERY: dict[str, tuple[dict[str, Any], list[str], str, str]] = {
    "text": ({"seed": 1, "logit_bias": {str(IM_END): 3}}, ["message"], "completed", "completed"),
    "nothing": ({"logit_bias": {str(IM_END): 100}}, ["message"], "completed", "completed"),
    "cut": ({"seed": 1, "max_output_tokens": 20, **ENDLESS}, ["message"], "incomplete", "incomplete"),
    "none": ({"max_output_tokens": 0}, ["message"], "incomplete", "incomplete"),
    "stopped": (
        {"stop": "a", "logit_bias": {"97": 6, str(IM_END): -100}, "seed": 2},
        ["message"],
        "completed",
        "completed",
    ),
    "schema": (
        {
            "text": {"format": {"type": "json_schema", "name": "x", "schema": SCHEMA}},
            "seed": 1,
            "logit_bias": AT_ONCE,
        },
        ["message"],
        "completed",
        "completed",
    ),
    "logprobs": (
        {"seed": 4, "max_output_tokens": 25, "top_logprobs": 2, **ENDLESS},
        ["message"],
        "incomplete",
        "incomplete",
    ),
    "thought": (THINKS, ["reasoning", "message"], "completed", "completed"),
    "thought and logprobs": (
        {**THINKS, "include": ["message.output_text.logprobs"]},
        ["reasoning", "message"],
        "completed",
        "completed",
    ),
    "cut thought": (
        {
            "reasoning": {"effort": "low"},
            "seed": 1,
            "logit_bias": {str(THOUGHT): -100, str(IM_END): -100},
            "max_output_tokens": 9,
        },
        ["reasoning"],
        "incomplete",
        "incomplete",
    ),
    "call": (
        {**CALLS, "parallel_tool_calls": False, "seed": 1},
        ["function_call"],
        "completed",
        "completed",
    ),
    "cut call": (
        {**CALLS, "seed": 1, "max_output_tokens": 45},
        ["function_call"],
        "incomplete",
        "incomplete",
    ),
    "thought and call": (
        {**CALLS, **THINKS, "structured_outputs": None, "parallel_tool_calls": False},
        ["reasoning", "function_call"],
        "completed",
        "completed",
    ),
}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_model(tmp_path_factory.mktemp("responses"), template=THINKING, control=CONTROL)


@pytest.fixture(scope="module")
def served(path: str) -> Iterator[Server]:
    with running_server(path, Settings(names=("tiny",)), threads=1) as running:
        yield running


@pytest.fixture
def client(served: Server) -> Client:
    return Client(served.url)


def stream(client: Client, body: Any) -> list[dict[str, Any]]:
    return client.typed_events(RESPONSES, {"input": "Hi", **body})


class Failed(Exception):
    """The stream has ended with response.failed."""


class Reader:
    """Takes a stream apart. Nothing passes but what the API allows in this place."""

    KINDS = {"message": "output_text", "reasoning": "reasoning_text"}

    def __init__(self, events: list[dict[str, Any]]) -> None:
        self._events, self._at = events, 0
        self.items: list[dict[str, Any]] = []

    def _next(self, *allowed: str) -> dict[str, Any]:
        event = self._events[self._at]
        assert event["sequence_number"] == self._at
        self._at += 1
        if event["type"] == "response.failed":
            assert self._at == len(self._events)
            raise Failed(event["response"])
        assert event["type"] in allowed, (event["type"], allowed)
        return event

    def _peek(self) -> str:
        kind: str = self._events[self._at]["type"]
        return kind

    def response(self) -> dict[str, Any]:
        """The whole sequence; the response that it ends with."""
        for kind in ("response.created", "response.in_progress"):
            response = self._next(kind)["response"]
            assert response["status"] == "in_progress" and response["output"] == []
            assert response["usage"] is None
        while self._peek() == "response.output_item.added":
            self.items.append(self._item())
        last = self._next("response.completed", "response.incomplete")
        assert self._at == len(self._events)
        assert last["type"] == f"response.{last['response']['status']}"
        assert last["response"]["id"] == response["id"] and last["response"]["output"] == self.items
        return dict(last["response"])

    def _item(self) -> dict[str, Any]:
        """One item, from added to done."""
        event = self._next("response.output_item.added")
        assert event["output_index"] == len(self.items)
        item = event["item"]
        assert item["status"] == "in_progress"
        self._place = {"item_id": item["id"], "output_index": event["output_index"]}
        if item["type"] == "function_call":
            assert item["arguments"] == ""
            item = {**item, "arguments": self._arguments(item["name"])}
        else:
            assert item["content"] == []
            item = {**item, "content": [self._part(self.KINDS[item["type"]])]}
        done = self._next("response.output_item.done")
        assert done["output_index"] == event["output_index"]
        assert done["item"]["status"] in ("completed", "incomplete")
        assert {**done["item"], "status": ""} == {**item, "status": ""}
        return dict(done["item"])

    def _here(self, *allowed: str) -> dict[str, Any]:
        event = self._next(*allowed)
        assert {name: event[name] for name in self._place} == self._place
        return event

    def _part(self, kind: str) -> dict[str, Any]:
        """The content of an item."""
        self._place["content_index"] = 0
        part = self._here("response.content_part.added")["part"]
        assert part["type"] == kind and part["text"] == ""
        logprobs, text = [], ""
        while self._peek() == f"response.{kind}.delta":
            event = self._here(f"response.{kind}.delta")
            assert event["delta"] != ""
            text += event["delta"]
            logprobs += event.get("logprobs", [])
        done = self._here(f"response.{kind}.done")
        assert done["text"] == text
        part = self._here("response.content_part.done")["part"]
        assert part["text"] == text
        if kind == "output_text":
            assert part["logprobs"] == done["logprobs"] and part["annotations"] == []
            assert part["logprobs"][: len(logprobs)] == logprobs
        return dict(part)

    def _arguments(self, name: str) -> str:
        """The arguments of a call."""
        arguments = ""
        while self._peek() == "response.function_call_arguments.delta":
            arguments += self._here("response.function_call_arguments.delta")["delta"]
        done = self._here("response.function_call_arguments.done")
        assert done["arguments"] == arguments and done["name"] == name
        return arguments


def lasting(response: dict[str, Any]) -> dict[str, Any]:
    """A response without what differs each time."""
    usage = {**response["usage"], "input_tokens_details": None}
    output = [{**item, "id": item["id"].split("_")[0]} for item in response["output"]]
    assert response["id"].startswith("resp_")
    assert (response["completed_at"] is not None) == (response["status"] == "completed")
    other = dict.fromkeys(("id", "created_at", "completed_at"))
    return {**response, **other, "usage": usage, "output": output}


def error_of(answer: tuple[int, Any]) -> dict[str, Any]:
    status, body = answer
    assert status >= 400 and set(body) == {"error"}, body
    return body["error"] | {"status": status}


def text_of(response: dict[str, Any]) -> str:
    messages = [item for item in response["output"] if item["type"] == "message"]
    return "".join(part["text"] for item in messages for part in item["content"])


# ----------------------------------------------------------------------------------------------------------
# Answers


@pytest.mark.parametrize("name", EVERY)
def test_a_stream_is_a_legal_sequence_that_adds_up_to_the_whole(client: Client, name: str) -> None:
    body, kinds, status, last = EVERY[name]
    whole = client.answer(RESPONSES, {"input": "Hi", **body})
    assert [item["type"] for item in whole["output"]] == kinds
    assert whole["status"] == status and whole["output"][-1]["status"] == last
    reason = {"reason": "max_output_tokens"} if status == "incomplete" else None
    assert whole["incomplete_details"] == reason and whole["error"] is None
    assert len({item["id"] for item in whole["output"]}) == len(kinds)
    assert lasting(Reader(stream(client, body)).response()) == lasting(whole)


def test_a_response_is_a_chats_reply_in_other_words(client: Client) -> None:
    body = {"seed": 3, "temperature": 0.7, "top_k": 40}
    chat = client.answer(CHAT, {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 24, **body})
    response = client.answer(RESPONSES, {"input": "Hi", "max_output_tokens": 24, **body})
    assert text_of(response) == chat["choices"][0]["message"]["content"]
    assert response["usage"]["input_tokens"] == chat["usage"]["prompt_tokens"]
    assert response["usage"]["output_tokens"] == chat["usage"]["completion_tokens"]
    assert response["usage"]["total_tokens"] == chat["usage"]["total_tokens"]
    assert response["object"] == "response" and response["model"] == "tiny"
    assert response["temperature"] == 0.7 and response["max_output_tokens"] == 24


def test_usage_says_what_was_cached(client: Client) -> None:
    body = {"input": "The same again, " * 10, "max_output_tokens": 4}
    usages = [client.answer(RESPONSES, body)["usage"] for _ in range(2)]
    cached = [usage["input_tokens_details"]["cached_tokens"] for usage in usages]
    assert cached == [cached[0], usages[1]["input_tokens"] - 1]


@pytest.mark.parametrize("begun", [True, False], ids=["in the prompt", "by the model"])
def test_reasoning_tokens_are_those_of_the_thought(client: Client, begun: bool) -> None:
    body = {"input": "Hi", **THINKS, "include": ["message.output_text.logprobs"]}
    if not begun:
        body |= {"reasoning": None, "logit_bias": {**THINKS["logit_bias"], str(THINK): 20}}
    response = client.answer(RESPONSES, body)
    thought, message = response["output"]
    (part,) = message["content"]
    assert part["text"] in ("yes", "no")
    assert "".join(entry["token"] for entry in part["logprobs"]) == part["text"], "none of the thought"
    usage = response["usage"]
    reasoned = usage["output_tokens_details"]["reasoning_tokens"]
    assert reasoned == usage["output_tokens"] - len(part["logprobs"])
    assert thought["content"][0]["type"] == "reasoning_text" and thought["summary"] == []


def test_without_a_thought_there_are_no_reasoning_tokens(client: Client) -> None:
    usage = client.answer(RESPONSES, {"input": "Hi", "max_output_tokens": 3, **ENDLESS})["usage"]
    assert usage["output_tokens_details"] == {"reasoning_tokens": 0}


def test_logprobs_are_those_of_the_chat(client: Client) -> None:
    body = {"seed": 3, "top_logprobs": 2, **ENDLESS}
    messages = [{"role": "user", "content": "Hi"}]
    chat = client.answer(CHAT, {"messages": messages, "max_tokens": 6, "logprobs": True, **body})
    response = client.answer(RESPONSES, {"input": "Hi", "max_output_tokens": 6, **body})
    (part,) = response["output"][0]["content"]
    assert part["logprobs"] == chat["choices"][0]["logprobs"]["content"] and len(part["logprobs"]) == 6
    plain = client.answer(RESPONSES, {"input": "Hi", "max_output_tokens": 6, "seed": 3})
    assert plain["output"][0]["content"][0]["logprobs"] == []


def test_a_call_is_complete_when_its_arguments_are(client: Client) -> None:
    """Whether the reply is cut behind it, or a stop text ends the reply within it."""
    body = {"input": "Hi", **CALLS, "parallel_tool_calls": False, "seed": 1}
    whole = client.answer(RESPONSES, body)
    behind = {"max_output_tokens": whole["usage"]["output_tokens"] - 3}
    within = {"stop": '"a"'}
    for more, status, item in ((behind, "incomplete", "completed"), (within, "completed", "incomplete")):
        response = client.answer(RESPONSES, {**body, **more})
        assert response["status"] == status and response["output"][0]["status"] == item
        assert (response["output"][0]["arguments"] == whole["output"][0]["arguments"]) == (
            item == "completed"
        )
        assert lasting(Reader(stream(client, {**body, **more})).response()) == lasting(response)


def test_several_calls_are_several_items(client: Client) -> None:
    seen = set()
    for seed in range(12):
        body = {**CALLS, "seed": seed, "logit_bias": {**AT_ONCE, str(IM_END): -6}}
        whole = client.answer(RESPONSES, {"input": "Hi", **body})
        assert lasting(Reader(stream(client, body)).response()) == lasting(whole)
        calls = whole["output"]
        assert all(call["type"] == "function_call" for call in calls)
        assert len({call["call_id"] for call in calls}) == len(calls)
        for call in calls[:-1] if whole["status"] == "incomplete" else calls:
            assert call["status"] == "completed" and set(json.loads(call["arguments"])) == {"a"}
        seen.add(len(calls) > 1)
    assert True in seen


def blocks_of(pieces: list[str]) -> tuple[list[Step], Blocks]:
    """What becomes of a reply that comes in pieces, of which each is as many tokens as characters. The
    logprob of a token is its place."""
    calls = Calls(format_of("<tool_call>"), [Tool("add")], required=False, parallel=True)
    blocks = Blocks(Reply(Parting(MARKS[0], False), calls.parser(1)))
    steps, at = [], 0
    for i, piece in enumerate(pieces):
        logprobs = [Logprob(0, float(place), []) for place in range(at, at + len(piece))]
        finish = "stop" if i == len(pieces) - 1 else None
        steps += blocks.take(StreamEvent(piece, [0] * len(piece), logprobs, finish_reason=finish))
        at += len(piece)
    return steps, blocks


def test_blocks_are_the_same_wherever_the_pieces_are_cut() -> None:
    thought, text, call = "<think>hm</think>\n\n", "Hi < you", '<tool_call>\n{"name": "add", "arguments": '
    reply = f'{thought}{text}{call}{{"a": 1}}}}\n</tool_call>\n{call}{{"a": '
    for seed in range(200):
        rng = random.Random(seed)
        cuts = sorted(rng.choices(range(len(reply) + 1), k=rng.randint(0, len(reply))))
        pieces = [reply[a:b] for a, b in zip([0, *cuts], [*cuts, len(reply)], strict=True)]
        steps, blocks = blocks_of(pieces if seed else list(reply))
        assert [(b.kind, b.text, b.cut) for b in blocks.all] == [
            ("reasoning", "hm", False),
            ("text", text, False),
            ("call", '{"a": 1}', False),
            ("call", '{"a": ', True),
        ]
        assert [step.what for step in steps if step.what != "add"] == ["begin", "end"] * 4
        for block in blocks.all:
            assert "".join(step.piece for step in steps if step.block is block) == block.text
        if not seed:  # a token is a character
            assert blocks.thought_tokens == len(thought)
            places = [int(entry.logprob) for entry in blocks.all[1].logprobs]
            assert places == list(range(len(thought), len(thought) + len(text)))
            assert not any(block.logprobs for block in blocks.all if block.kind != "text")


@pytest.mark.parametrize("kind", ["json_schema", "json_object"])
def test_a_format_binds_the_text(client: Client, kind: str) -> None:
    schema = {"name": "x", "schema": SCHEMA, "strict": True} if kind == "json_schema" else {}
    body = {"input": "Hi", "text": {"format": {"type": kind, **schema}}, "max_output_tokens": 400}
    body |= {"seed": 5, "logit_bias": AT_ONCE}
    response = client.answer(RESPONSES, body)
    if response["status"] == "completed":
        assert isinstance(json.loads(text_of(response)), dict)
    assert text_of(response).lstrip().startswith("{")
    assert response["text"]["format"] == body["text"]["format"]


def test_nothing_is_stored_whatever_is_asked_for(client: Client) -> None:
    for store in (None, False, True):
        body = {"input": "Hi", "max_output_tokens": 1, "store": store, "metadata": {"a": "b"}, "user": "me"}
        response = client.answer(RESPONSES, body)
        assert response["store"] is False
        assert response["metadata"] == {"a": "b"} and response["user"] == "me"


def test_null_is_absent_and_neutral_values_pass(client: Client) -> None:
    nulls = dict.fromkeys(ResponsesRequest.__struct_fields__)
    neutral = {
        "background": False,
        "truncation": "disabled",
        "n": 1,
        "text": {"format": None, "verbosity": "low"},
        "reasoning": {"effort": None, "summary": "auto"},
        "include": ["reasoning.encrypted_content"],
        "tool_choice": "auto",
        "service_tier": "auto",
        "max_tool_calls": 3,
    }
    own = {"input": "Hi", "seed": 1, "max_output_tokens": 8}
    same = [client.answer(RESPONSES, {**more, **own}) for more in ({}, nulls, neutral)]
    assert len({text_of(answer) for answer in same}) == 1


# ----------------------------------------------------------------------------------------------------------
# Requests


def chat_messages(body: dict[str, Any]) -> list[dict[str, Any]]:
    """The conversation that a request comes down to."""
    request = decode(json.dumps(body).encode(), ResponsesRequest)
    return chat_for(request).messages


@pytest.mark.parametrize(
    "body, messages",
    [
        ({"input": "Hi"}, [("user", "Hi")]),
        ({"input": "Hi", "instructions": "Be"}, [("system", "Be"), ("user", "Hi")]),
        ({"input": [{"role": "user", "content": "Hi"}]}, [("user", "Hi")]),
        ({"input": [{"role": "user", "content": "Hi", "type": None}]}, [("user", "Hi")]),
        (
            {
                "input": [
                    {
                        "type": "message",
                        "role": "user",
                        "content": [{"type": "input_text", "text": "H"}, {"type": "input_text", "text": "i"}],
                    },
                    {
                        "type": "message",
                        "id": "msg_1",
                        "status": "completed",
                        "role": "assistant",
                        "content": [{"type": "output_text", "text": "Yes", "annotations": []}],
                    },
                    {"role": "developer", "content": "so"},
                ]
            },
            [("user", "Hi"), ("assistant", "Yes"), ("system", "so")],
        ),
        (
            {
                "instructions": "Be",
                "input": [
                    {"role": "developer", "content": "brief"},
                    {"role": "system", "content": "now"},
                    {"role": "user", "content": "Hi"},
                ],
            },
            [("system", "Be\n\nbrief\n\nnow"), ("user", "Hi")],
        ),
    ],
)
def test_items_are_messages(body: dict[str, Any], messages: list[tuple[str, str]]) -> None:
    assert [(m["role"], m["content"]) for m in chat_messages(body)] == messages


def test_what_was_reasoned_said_and_called_is_one_turn() -> None:
    call = {"type": "function_call", "call_id": "abc", "name": "add", "arguments": '{"a": 1}'}
    thought = {"type": "reasoning", "id": "rs_1", "summary": []}
    said = {"role": "assistant", "content": "Well"}
    output = {"type": "function_call_output", "call_id": "abc", "output": "2"}
    parts = [{"type": "input_text", "text": "3"}]
    body = {
        "input": [
            {"role": "user", "content": "Hi"},
            {**thought, "content": [{"type": "reasoning_text", "text": "hm"}]},
            said,
            call,
            {**call, "call_id": "def"},
            output,
            {**output, "call_id": "def", "output": parts},
            {**thought, "summary": [{"type": "summary_text", "text": "so"}]},
            said,
            said,
        ]
    }
    function = {"name": "add", "arguments": {"a": 1}}
    assert chat_messages(body) == [
        {"role": "user", "content": "Hi"},
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
        {"role": "tool", "tool_call_id": "def", "content": "3"},
        {"role": "assistant", "content": "Well", "reasoning_content": "so"},
        {"role": "assistant", "content": "Well"},
    ]


def test_what_is_said_behind_a_call_is_another_turn() -> None:
    call = {"type": "function_call", "call_id": "abc", "name": "add", "arguments": ""}
    thought = {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "hm"}]}
    messages = chat_messages({"input": [call, {"role": "assistant", "content": "Well"}, call, thought]})
    assert [message["content"] for message in messages] == [None, "Well", None]
    assert [len(message.get("tool_calls", ())) for message in messages] == [1, 1, 0]
    assert messages[2]["reasoning_content"] == "hm"


def test_the_output_of_a_response_is_input_for_the_next(client: Client) -> None:
    """As the chat does it, of which the prompt is the same."""
    body = {**CALLS, **THINKS, "structured_outputs": None, "parallel_tool_calls": False}
    first = client.answer(RESPONSES, {"input": "Hi", **body})
    thought, call = first["output"]
    result = {"type": "function_call_output", "call_id": call["call_id"], "output": "7"}
    items = [{"role": "user", "content": "Hi"}, *first["output"], result]
    more = {"seed": 5, "max_output_tokens": 12}
    second = client.answer(RESPONSES, {"input": items, "tools": [ADD, SUB], **more})
    function = {"name": call["name"], "arguments": call["arguments"]}
    messages = [
        {"role": "user", "content": "Hi"},
        {
            "role": "assistant",
            "content": None,
            "reasoning": thought["content"][0]["text"],
            "tool_calls": [{"id": call["call_id"], "type": "function", "function": function}],
        },
        {"role": "tool", "tool_call_id": call["call_id"], "content": "7"},
    ]
    names = ("name", "description", "parameters")
    tools = [{"type": "function", "function": {n: tool[n] for n in names}} for tool in (ADD, SUB)]
    chat = client.answer(CHAT, {"messages": messages, "tools": tools, "seed": 5, "max_tokens": 12})
    assert text_of(second) == chat["choices"][0]["message"]["content"]
    assert second["usage"]["input_tokens"] == chat["usage"]["prompt_tokens"]


def test_a_function_can_be_asked_for_by_name(client: Client) -> None:
    for seed in range(4):
        body = {**CALLS, "tool_choice": {"type": "function", "name": "sub"}, "seed": seed}
        (call,) = client.answer(RESPONSES, {"input": "Hi", **body})["output"]
        assert call["type"] == "function_call" and call["name"] == "sub"
    told = client.answer(RESPONSES, {"input": "Hi", "max_output_tokens": 1, **body})
    assert told["tool_choice"] == body["tool_choice"]
    assert [tool["name"] for tool in told["tools"]] == ["add", "sub"]
    assert all(tool["strict"] is True for tool in told["tools"])


def test_only_allowed_tools_are_called_and_all_are_shown(client: Client) -> None:
    allowed = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "sub"}]}
    shown = client.answer(RESPONSES, {"input": "Hi", **CALLS, "seed": 1})["usage"]["input_tokens"]
    for seed in range(4):
        body = {**CALLS, "tool_choice": allowed, "seed": seed, "parallel_tool_calls": False}
        told = client.answer(RESPONSES, {"input": "Hi", **body})
        (call,) = told["output"]
        assert call["type"] == "function_call" and call["name"] == "sub"
        assert told["usage"]["input_tokens"] == shown and told["tool_choice"] == allowed


def test_effort_none_keeps_the_model_from_thinking(client: Client) -> None:
    lengths = [
        client.answer(RESPONSES, {"input": "Hi", "reasoning": {"effort": effort}, "max_output_tokens": 1})
        for effort in ("none", "high")
    ]
    assert lengths[1]["usage"]["input_tokens"] == lengths[0]["usage"]["input_tokens"] + 1


# ----------------------------------------------------------------------------------------------------------
# What is refused


PICTURE = {"role": "user", "content": [{"type": "input_image", "image_url": "file:///etc/passwd"}]}
CALL = {"type": "function_call", "call_id": "abc", "name": "add", "arguments": "{}"}


@pytest.mark.parametrize(
    "more, param",
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"conversation": {"id": "conv_1"}}, "conversation"),
        ({"background": True}, "background"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt"),
        ({"truncation": "auto"}, "truncation"),
        ({"include": ["file_search_call.results"]}, "include[0]"),
        ({"tools": [ADD, {"type": "web_search"}]}, "tools[1].type"),
        ({"tools": [{"type": "file_search", "vector_store_ids": []}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"tools": [ADD], "tool_choice": {"type": "function", "name": "mul"}}, "tool_choice"),
        ({"tools": [ADD], "tool_choice": {"type": "web_search"}}, "tool_choice"),
        ({"tools": [ADD], "tool_choice": {"type": "allowed_tools", "tools": [NAMED]}}, "tool_choice.mode"),
        (
            {"tools": [ADD], "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{}, NAMED]}},
            "tool_choice.tools[0].name",
        ),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema"),
        ({"text": {"shape": 1}}, "text"),
        ({"reasoning": {"deep": True}}, "reasoning"),
        ({"max_output_tokens": -1}, "max_output_tokens"),
        ({"max_output_tokens": "many"}, "max_output_tokens"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"temperature": -1}, "temperature"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"max_tokens": 5}, "max_tokens"),
        ({"response_format": {"type": "text"}}, "response_format"),
        ({"messages": []}, "messages"),
        ({"n": 2}, "n"),
        ({"explain": True}, "explain"),
        ({"prompt_logprobs": 0}, "prompt_logprobs"),
        ({"nonsense": 1}, "nonsense"),
        ({"metadata": {"a": 1}}, "metadata[...]"),
        ({"input": []}, "input"),
        ({"input": 5}, "input"),
        ({"input": None}, "input"),
        ({"input": [PICTURE]}, "input[0].content[0]"),
        ({"input": [{"role": "user", "content": 5}]}, "input[0].content"),
        ({"input": [{"role": "user", "content": "a"}, {"role": "robot", "content": "b"}]}, "input[1].role"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
        ({"input": [{"type": "web_search_call"}]}, "input[0].type"),
        ({"input": [{"type": ["message"]}]}, "input[0].type"),
        ({"input": [{"type": "reasoning", "content": [{"text": 5}]}]}, "input[0].content[0].text"),
        ({"input": [{**CALL, "arguments": "{"}]}, "input[0].arguments"),
        ({"input": [{**CALL, "arguments": "[" * 100000}]}, "input[0].arguments"),
        ({"input": [{**CALL, "call_id": None}]}, "input[0].call_id"),
        ({"input": [{"type": "function_call_output", "output": "x"}]}, "input[0].call_id"),
        ({"input": [{"type": "function_call_output", "call_id": "x"}]}, "input[0].output"),
        ({"input": [{"type": "reasoning", "content": "hm"}]}, "input[0].content"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(client: Client, more: dict[str, Any], param: str) -> None:
    for streams in (False, True):
        error = error_of(client.post(RESPONSES, {"input": "Hi", "stream": streams, **more}))
        assert error["status"] == 400 and error["type"] == "invalid_request_error"
        assert error["param"] == param, error
        assert param.split("[")[0].split(".")[0] in error["message"]


def test_sentences_name_the_fields_of_this_api(client: Client, path: str) -> None:
    form = {"type": "json_schema", "name": "x", "schema": {"type": "object", "not": {}}}
    error = error_of(client.post(RESPONSES, {"input": "Hi", "text": {"format": form}}))
    assert error["param"] == "text.format" and error["pointer"] == "/not"
    error = error_of(client.post(RESPONSES, {"input": "Hi", "tools": [{**ADD, "name": "a b"}]}))
    assert error["message"].startswith("tools[0].name must")
    error = error_of(client.post(RESPONSES, {"input": "a" * 3000}))
    assert error["code"] == "context_length_exceeded" and error["n_ctx"] == 2000
    assert error["status"] == 400 and error["param"] == "input"
    with running_server(path, Settings(max_tokens=50), threads=1) as running:
        error = error_of(Client(running.url).post(RESPONSES, {"input": "Hi", "max_output_tokens": 51}))
    assert error["param"] == "max_output_tokens" and error["message"].startswith("max_output_tokens is 51")


def test_every_field_of_chats_is_passed_on_or_refused() -> None:
    """One that is new has to be put here, when it is known what becomes of it in the other APIs."""
    passed = set(
        "model max_tokens min_tokens temperature top_p top_k min_p repetition_penalty presence_penalty "
        "frequency_penalty logit_bias seed stop stop_token_ids ignore_eos stream stream_options "
        "response_format structured_outputs guided_json guided_regex guided_choice guided_grammar priority "
        "cache_salt cache timeout receipt resumable resume_from".split()
    )
    assert passed | set(UNANSWERED) == set(Sampling.__struct_fields__)


def test_another_model_is_not_found(client: Client) -> None:
    error = error_of(client.post(RESPONSES, {"input": "Hi", "model": "gpt-4"}))
    assert error["status"] == 404 and error["param"] == "model"


# ----------------------------------------------------------------------------------------------------------
# The engine waits, the engine fails


def test_a_response_is_created_before_its_first_token(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = threading.Event()
    with running_server(path, threads=1) as running:
        forward = Cache.forward
        monkeypatch.setattr(Cache, "forward", lambda *args: opened.wait(SECONDS) and forward(*args))
        response = Client(running.url).send(
            "POST", RESPONSES, {"input": "Hi", "stream": True, "max_output_tokens": 3}
        )
        lines = [response.readline() for _ in range(5)]
        assert lines[0] == b"event: response.created\n" and lines[3] == b"event: response.in_progress\n"
        opened.set()
        Reader(typed_events(b"".join(lines) + response.read())).response()


@pytest.mark.parametrize("passes", [0, 1, 5])
def test_what_fails_in_the_middle_is_response_failed(
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
        with pytest.raises(Failed) as failed:
            Reader(stream(Client(running.url), ENDLESS)).response()
        (response,) = failed.value.args
        assert response["status"] == "failed" and response["error"]["code"] == "server_error"
        assert "no more" in response["error"]["message"] and response["usage"]["output_tokens"] == passes
        assert [item["status"] for item in response["output"]] in ([], ["incomplete"])
        assert bool(response["output"]) or passes < 5
        assert error_of(Client(running.url).post(RESPONSES, {"input": "Hi"}))["status"] == 500


def test_a_request_whose_time_is_over_is_told(client: Client) -> None:
    body = {"timeout": 0.05, "max_output_tokens": 1900, **ENDLESS}
    with pytest.raises(Failed) as failed:
        Reader(stream(client, body)).response()
    assert failed.value.args[0]["error"]["code"] == "server_error"
    error = error_of(client.post(RESPONSES, {"input": "Hi", **body}))
    assert error["status"] == 408 and error["code"] == "timeout"


def test_a_busy_server_says_so_before_it_streams(path: str) -> None:
    with running_server(path, Settings(max_wait=1e-9), threads=1) as running, occupied(running.service):
        response = Client(running.url).send("POST", RESPONSES, {"input": "x" * 1000, "stream": True})
        assert response.status == 429 and int(response.getheader("Retry-After", "0")) >= 1


def test_a_model_without_a_template_answers_too(tmp_path: Path) -> None:
    with running_server(write_model(tmp_path, template=None), threads=1) as running:
        client = Client(running.url)
        body = {"instructions": "Be", "tools": [ADD], "max_output_tokens": 3, **ENDLESS}
        assert Reader(stream(client, body)).response()["status"] == "incomplete"
