"""Every field of every endpoint with values that make no sense: a request is answered, or refused with 400
that names the field. Nothing is an error of the server, and no text of a request becomes a file's name."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from http.client import HTTPConnection
from typing import Any

import pytest
from served import Client, write_model

pytest.importorskip("starlette")

from pyllm.server.messages import CountRequest, MessagesRequest  # noqa: E402
from pyllm.server.responses import ResponsesRequest  # noqa: E402
from pyllm.server.schemas import (  # noqa: E402
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    EmbeddingRequest,
    EstimateRequest,
    Sampling,
    TokenizeRequest,
)
from pyllm.testing import running_server  # noqa: E402

NAME = "/nowhere/sentinel"  # of a file that nobody may try to open
HI = [{"role": "user", "content": "Hi"}]
TOOLS = [{"type": "function", "function": {"name": "f"}}]
ENDPOINTS: dict[str, tuple[Any, dict[str, Any]]] = {
    "/v1/completions": (CompletionRequest, {"prompt": "a", "max_tokens": 1}),
    "/v1/chat/completions": (ChatRequest, {"messages": HI, "max_tokens": 1, "tools": TOOLS}),
    "/v1/embeddings": (EmbeddingRequest, {"input": "a"}),
    "/v1/responses": (ResponsesRequest, {"input": "Hi", "max_output_tokens": 1}),
    "/v1/messages": (MessagesRequest, {"messages": HI, "max_tokens": 1}),
    "/v1/messages/count_tokens": (CountRequest, {"messages": HI}),
    "/v1/estimate": (EstimateRequest, {"prompt": "a"}),
    "/tokenize": (TokenizeRequest, {"prompt": "a"}),
    "/detokenize": (DetokenizeRequest, {"tokens": [1]}),
}
VALUES: tuple[Any, ...] = (
    None, True, -1, 2**63, 10**30, 10**400, 0.5, -1e308, "", "\0", NAME, [], [None], [[]], [{}], [-1],
    [10**30], [NAME], {}, {"": None}, {"type": "x"}, {"\u00b2": 1}, {"9" * 5000: 1}, {"1": 10**400},
    {"type": "function", "function": NAME}, {"type": "json_schema", "json_schema": NAME}, {"regex": 5},
    {"json": NAME}, {"messages": []}, [{"role": "user"}], [{"role": "user", "content": [{}]}],
    [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": f"file://{NAME}"}}]}],
    [{"role": "assistant", "tool_calls": [{"function": 5}]}], [{"type": "function", "function": {}}],
    [{"type": "function", "function": {"name": "f", "parameters": 5}}], [{"type": "function_call"}],
)  # fmt: skip
# Which of two fields is at fault is a matter of taste
TOGETHER = [
    {"prompt", "messages", "prompt_tokens"},
    {"tools", "tool_choice"},
    {"prompt", "add_special_tokens"},
]
opened: list[str] = []


def see(event: str, args: tuple[Any, ...]) -> None:
    if event in ("open", "os.listdir", "os.mkdir", "os.rename", "os.remove") and "sentinel" in str(args[0]):
        opened.append(f"{event} {args[0]}")


@pytest.fixture(scope="module")
def connection(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HTTPConnection]:
    path = write_model(tmp_path_factory.mktemp("fields"), context=400)
    sys.addaudithook(see)
    with running_server(path, threads=1) as running:
        yield Client(running.url).connect()


def own_fields(endpoint: str) -> Iterator[str]:
    """Those of sampling are the same code for all: they are tried at one endpoint."""
    for field in ENDPOINTS[endpoint][0].__struct_fields__:
        if endpoint == "/v1/completions" or field not in Sampling.__struct_fields__:
            yield field


def is_at_fault(field: str, error: dict[str, Any]) -> bool:
    if "param" not in error:  # Anthropic's errors have no such member
        return True
    named = str(error["param"]).replace("[", ".").split(".")[0]
    return named == field or any({named, field} <= names for names in TOGETHER)


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_no_value_of_any_field_is_an_error_of_the_server(connection: HTTPConnection, endpoint: str) -> None:
    wrong = []
    for field in own_fields(endpoint):
        for value in VALUES:
            body = json.dumps({**ENDPOINTS[endpoint][1], field: value})
            connection.request("POST", endpoint, body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            answer, refused = response.read().decode(), f"{field}: {value!s:.60}: {response.status}"
            if response.status not in (200, 400, 404):
                wrong.append(f"{refused} {answer}")
            elif response.status != 200 and not is_at_fault(field, json.loads(answer)["error"]):
                wrong.append(f"{refused} {answer}")
    assert not wrong, "\n".join(wrong)
    assert not opened
