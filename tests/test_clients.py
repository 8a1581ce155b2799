"""The clients that people have, as they are: OpenAI's and Anthropic's packages against a real server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from common import IM_END
from served import CONTROL, SCHEMA, THINK, THINKING, THOUGHT, occupied, write_model

pytest.importorskip("starlette")
pytest.importorskip("llguidance")

from pyllm.server import Settings  # noqa: E402
from pyllm.testing import Server, running_server  # noqa: E402

SECONDS = 30
HI: Any = [{"role": "user", "content": "Hi"}]
PARAMETERS = {
    "type": "object",
    "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["a"],
    "additionalProperties": False,
}
FUNCTION: Any = {"name": "add", "description": "adds", "parameters": PARAMETERS}
AT_ONCE = {str(THINK): -100}  # a bias against reasoning, where a grammar would let the model begin with it
ENDLESS = {str(IM_END): -100}
# What the clients have no word for
THINKS = {"logit_bias": {str(THOUGHT): 4, str(IM_END): -100}, "structured_outputs": {"choice": ["yes", "no"]}}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_model(tmp_path_factory.mktemp("clients"), template=THINKING, control=CONTROL)


@pytest.fixture(scope="module")
def served(path: str) -> Iterator[Server]:
    with running_server(path, Settings(names=("tiny",), keys=frozenset({"secret"})), threads=1) as running:
        yield running


@pytest.fixture(scope="module")
def busy(path: str) -> Iterator[Server]:
    """A server on which everybody would have to wait too long."""
    with running_server(path, Settings(max_wait=1e-9), threads=1) as running, occupied(running.service):
        yield running


# ----------------------------------------------------------------------------------------------------------
# OpenAI's


def openai_at(served: Server, key: str = "secret") -> Any:
    openai = pytest.importorskip("openai")
    return openai.OpenAI(base_url=served.base_url, api_key=key, max_retries=0, timeout=SECONDS)


@pytest.fixture(scope="module")
def openai(served: Server) -> Iterator[Any]:
    with openai_at(served) as client:
        yield client


def test_openai_lists_models(openai: Any) -> None:
    assert [model.id for model in openai.models.list()] == ["tiny"]
    assert openai.models.retrieve("tiny").id == "tiny"


def test_openai_completes_texts(openai: Any) -> None:
    body = dict(model="tiny", prompt="Once", max_tokens=9, seed=1, logit_bias=ENDLESS)
    whole = openai.completions.create(**body, logprobs=2)
    assert whole.choices[0].finish_reason == "length" and whole.usage.completion_tokens == 9
    assert len(whole.choices[0].logprobs.tokens) == 9
    events = list(openai.completions.create(**body, stream=True, stream_options={"include_usage": True}))
    assert "".join(e.choices[0].text for e in events if e.choices) == whole.choices[0].text
    assert events[-1].usage.completion_tokens == 9


def test_openai_chats(openai: Any) -> None:
    body = dict(model="tiny", messages=HI, max_completion_tokens=9, seed=1, logit_bias=ENDLESS)
    whole = openai.chat.completions.create(**body, logprobs=True, top_logprobs=2)
    assert whole.choices[0].finish_reason == "length" and whole.usage.total_tokens > 9
    assert len(whole.choices[0].logprobs.content[0].top_logprobs) == 2
    options = {"include_usage": True}
    events = list(openai.chat.completions.create(**body, stream=True, stream_options=options))
    said = "".join(e.choices[0].delta.content or "" for e in events if e.choices)
    assert said == whole.choices[0].message.content
    assert events[-1].choices == [] and events[-1].usage.completion_tokens == 9


def test_openai_calls_tools(openai: Any) -> None:
    body = dict(
        model="tiny",
        messages=HI,
        tools=[{"type": "function", "function": FUNCTION}],
        tool_choice="required",
        parallel_tool_calls=False,
        seed=1,
        logit_bias=AT_ONCE,
        max_completion_tokens=500,
    )
    (choice,) = openai.chat.completions.create(**body).choices
    (call,) = choice.message.tool_calls
    assert choice.finish_reason == "tool_calls" and set(json.loads(call.function.arguments)) == {"a"}
    with openai.chat.completions.stream(**body) as stream:
        (streamed,) = stream.get_final_completion().choices
    assert streamed.message.tool_calls[0].function.arguments == call.function.arguments
    assert streamed.finish_reason == "tool_calls"
    result = {"role": "tool", "tool_call_id": call.id, "content": "7"}
    turns = [*HI, choice.message, result]
    again = openai.chat.completions.create(model="tiny", messages=turns, max_completion_tokens=3)
    assert again.usage.prompt_tokens > 30


def test_openai_gets_what_a_schema_says(openai: Any) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}}
    (choice,) = openai.chat.completions.create(
        model="tiny",
        messages=HI,
        response_format=form,
        seed=1,
        logit_bias=AT_ONCE,
        max_completion_tokens=300,
    ).choices
    assert choice.finish_reason == "stop" and set(json.loads(choice.message.content)) == {"x"}


def checked(model: Any) -> Any:
    """What a client has parsed, of which every value has the type that it should: the client itself does
    not look."""
    type(model).model_validate(model.to_dict())
    return model


def test_openai_responds(openai: Any) -> None:
    body = dict(model="tiny", input="Hi", instructions="Be", max_output_tokens=9)
    body["extra_body"] = {"seed": 1, "logit_bias": ENDLESS}
    whole = checked(openai.responses.create(**body, top_logprobs=2))
    assert whole.status == "incomplete" and whole.incomplete_details.reason == "max_output_tokens"
    assert whole.output_text and whole.usage.output_tokens == 9
    assert len(whole.output[0].content[0].logprobs[0].top_logprobs) == 2
    events = [checked(event) for event in openai.responses.create(**body, stream=True)]
    said = "".join(e.delta for e in events if e.type == "response.output_text.delta")
    assert said == whole.output_text == events[-1].response.output_text
    assert [e.sequence_number for e in events] == list(range(len(events)))


def test_openai_responds_with_thoughts(openai: Any) -> None:
    body = dict(model="tiny", input="Hi", reasoning={"effort": "high"}, extra_body={"seed": 3, **THINKS})
    thought, message = checked(openai.responses.create(**body)).output
    assert thought.type == "reasoning" and thought.content[0].text
    assert message.content[0].text in ("yes", "no")
    with openai.responses.stream(**body) as stream:
        events = list(stream)
        final = stream.get_final_response()
    thoughts = "".join(e.delta for e in events if e.type == "response.reasoning_text.delta")
    assert all(checked(event) for event in openai.responses.create(**body, stream=True))
    assert thoughts == thought.content[0].text and final.output_text == message.content[0].text
    assert final.usage.output_tokens_details.reasoning_tokens > 0


def test_openai_responds_with_calls_and_goes_on(openai: Any) -> None:
    tool = {"type": "function", "strict": True, **FUNCTION}
    body = dict(model="tiny", tools=[tool], extra_body={"seed": 1, "logit_bias": AT_ONCE})
    first = checked(
        openai.responses.create(input=HI, tool_choice="required", parallel_tool_calls=False, **body)
    )
    (call,) = first.output
    assert call.type == "function_call" and set(json.loads(call.arguments)) == {"a"}
    with openai.responses.stream(
        input=HI, tool_choice="required", parallel_tool_calls=False, **body
    ) as stream:
        (streamed,) = stream.get_final_response().output
    assert streamed.arguments == call.arguments
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "7"}
    second = openai.responses.create(input=[*HI, *first.output, result], max_output_tokens=3, **body)
    assert second.usage.input_tokens > first.usage.input_tokens


def test_openai_responds_with_what_a_schema_says(openai: Any) -> None:
    form = {"type": "json_schema", "name": "x", "schema": SCHEMA, "strict": True}
    whole = openai.responses.create(
        model="tiny", input="Hi", text={"format": form}, extra_body={"seed": 1, "logit_bias": AT_ONCE}
    )
    assert set(json.loads(whole.output_text)) == {"x"}


def test_openai_is_told_what_is_wrong(openai: Any, served: Server, busy: Server) -> None:
    package = pytest.importorskip("openai")
    with pytest.raises(package.NotFoundError, match="gpt-4"):
        openai.responses.create(model="gpt-4", input="Hi")
    with pytest.raises(package.BadRequestError, match="previous_response_id") as error:
        openai.responses.create(model="tiny", input="Hi", previous_response_id="resp_1")
    assert error.value.param == "previous_response_id"
    with pytest.raises(package.BadRequestError, match="temperature"):
        openai.chat.completions.create(model="tiny", messages=HI, temperature=-1)
    with pytest.raises(package.NotFoundError):
        openai.completions.create(model="gpt-4", prompt="Hi")
    with openai_at(served, "wrong") as other, pytest.raises(package.AuthenticationError):
        other.models.list()
    with openai_at(busy) as other:
        for stream in (False, True):
            with pytest.raises(package.RateLimitError) as late:
                other.chat.completions.create(model=busy.service.names[0], messages=HI, stream=stream)
            assert int(late.value.response.headers["retry-after"]) >= 1


def test_openai_hears_of_an_error_in_a_stream(openai: Any) -> None:
    package = pytest.importorskip("openai")
    late = {"timeout": 0.05, "logit_bias": ENDLESS}
    with pytest.raises(package.APIError):
        list(openai.chat.completions.create(model="tiny", messages=HI, stream=True, extra_body=late))
    *_, last = openai.responses.create(model="tiny", input="Hi", stream=True, extra_body=late)
    assert last.type == "response.failed" and checked(last).response.error.code == "server_error"


# ----------------------------------------------------------------------------------------------------------
# Anthropic's


def anthropic_at(served: Server, key: str = "secret") -> Any:
    anthropic = pytest.importorskip("anthropic")
    return anthropic.Anthropic(base_url=served.url, api_key=key, max_retries=0, timeout=SECONDS)


@pytest.fixture(scope="module")
def anthropic(served: Server) -> Iterator[Any]:
    with anthropic_at(served) as client:
        yield client


def test_anthropic_sends_messages(anthropic: Any) -> None:
    body = dict(model="tiny", messages=HI, system="Be", max_tokens=9)
    body["extra_body"] = {"seed": 1, "logit_bias": ENDLESS}
    whole = checked(anthropic.messages.create(**body))
    assert whole.stop_reason == "max_tokens" and whole.usage.output_tokens == 9
    events = [checked(event) for event in anthropic.messages.create(**body, stream=True)]
    assert events[0].type == "message_start" and events[-1].type == "message_stop"
    with anthropic.messages.stream(**body) as stream:
        assert "".join(stream.text_stream) == whole.content[0].text
        final = stream.get_final_message()
    assert final.content[0].text == whole.content[0].text and final.stop_reason == whole.stop_reason
    assert final.usage.output_tokens == 9


def test_anthropic_stops_at_a_sequence(anthropic: Any) -> None:
    body = dict(model="tiny", messages=HI, max_tokens=300, stop_sequences=["a"])
    body["extra_body"] = {"seed": 2, "logit_bias": {"97": 6, **ENDLESS}}
    whole = anthropic.messages.create(**body)
    assert (whole.stop_reason, whole.stop_sequence) == ("stop_sequence", "a")
    with anthropic.messages.stream(**body) as stream:
        assert stream.get_final_message().stop_sequence == "a"


def test_anthropic_thinks(anthropic: Any) -> None:
    body = dict(model="tiny", messages=HI, max_tokens=500, extra_body={"seed": 3, **THINKS})
    body["thinking"] = {"type": "enabled", "budget_tokens": 1024}
    thought, text = checked(anthropic.messages.create(**body)).content
    assert thought.type == "thinking" and thought.thinking and text.text in ("yes", "no")
    with anthropic.messages.stream(**body) as stream:
        streamed = stream.get_final_message().content
    assert [streamed[0].thinking, streamed[1].text] == [thought.thinking, text.text]


def test_anthropic_uses_tools_and_goes_on(anthropic: Any) -> None:
    tool = {"name": "add", "description": "adds", "input_schema": PARAMETERS}
    body = dict(model="tiny", max_tokens=500, tools=[tool], extra_body={"seed": 1, "logit_bias": AT_ONCE})
    choice = {"type": "any", "disable_parallel_tool_use": True}
    first = checked(anthropic.messages.create(messages=HI, tool_choice=choice, **body))
    (use,) = first.content
    assert first.stop_reason == "tool_use" and use.name == "add" and set(use.input) == {"a"}
    with anthropic.messages.stream(messages=HI, tool_choice=choice, **body) as stream:
        streamed = stream.get_final_message()
    assert streamed.content[0].input == use.input and streamed.stop_reason == "tool_use"
    result = {"type": "tool_result", "tool_use_id": use.id, "content": "7"}
    turns = [*HI, {"role": "assistant", "content": first.content}, {"role": "user", "content": [result]}]
    second = anthropic.messages.create(messages=turns, **body | {"max_tokens": 3})
    read = second.usage.input_tokens + second.usage.cache_read_input_tokens
    counted = checked(anthropic.messages.count_tokens(model="tiny", messages=turns, tools=[tool]))
    assert counted.input_tokens == read


def test_anthropic_gets_what_a_schema_says(anthropic: Any) -> None:
    whole = anthropic.messages.create(
        model="tiny",
        messages=HI,
        max_tokens=300,
        output_config={"format": {"type": "json_schema", "schema": SCHEMA}},
        extra_body={"seed": 1, "logit_bias": AT_ONCE},
    )
    assert set(json.loads(whole.content[0].text)) == {"x"}


def test_anthropic_is_told_what_is_wrong(anthropic: Any, served: Server, busy: Server) -> None:
    package = pytest.importorskip("anthropic")
    with pytest.raises(package.NotFoundError, match="claude") as missing:
        anthropic.messages.create(model="claude", messages=HI, max_tokens=1)
    assert missing.value.body["error"]["type"] == "not_found_error"
    with pytest.raises(package.BadRequestError, match=r"tools\[0\]"):
        tools = [{"type": "web_search_20250305", "name": "web_search"}]
        anthropic.messages.create(model="tiny", messages=HI, max_tokens=1, tools=tools)
    with pytest.raises(package.BadRequestError, match="image"):
        source = {"type": "url", "url": "https://example.org/a.png"}
        turn = {"role": "user", "content": [{"type": "image", "source": source}]}
        anthropic.messages.count_tokens(model="tiny", messages=[turn])
    with anthropic_at(served, "wrong") as other, pytest.raises(package.AuthenticationError):
        other.messages.create(model="tiny", messages=HI, max_tokens=1)
    with anthropic_at(busy) as other:
        for stream in (False, True):
            with pytest.raises(package.RateLimitError):
                other.messages.create(model=busy.service.names[0], messages=HI, max_tokens=1, stream=stream)


def test_anthropic_hears_of_an_error_in_a_stream(anthropic: Any) -> None:
    package = pytest.importorskip("anthropic")
    late = {"timeout": 0.05, "logit_bias": ENDLESS}
    with pytest.raises(package.APIError, match="time"):
        list(
            anthropic.messages.create(
                model="tiny", messages=HI, max_tokens=1900, stream=True, extra_body=late
            )
        )
