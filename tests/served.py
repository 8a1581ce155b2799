"""What tests of the server share: a small model that talks, and a client that shows what went over the
wire."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from common import BOS, IM_END, SPECIAL, byte_tokenizer
from pyllm._llm import lib
from reference import INT8R, make_model

TEMPLATE = (
    b"{% for m in messages %}<|im_start|>{{ m.role }}:{{ m.content }}<|im_end|>{% endfor %}"
    b"{% if add_generation_prompt %}<|im_start|>assistant:{% endif %}"
)
CONTROL = [b"<think>", b"</think>"]
THINK, THOUGHT = IM_END + 1, IM_END + 2  # the tokens <think> and </think>
# That can show tools, reasoning and calls, and begin a thought
THINKING = (
    b"{% if tools %}{{ tools | tojson }}<tool_call></tool_call>{% endif %}"
    b"{% for m in messages %}{{ m.role }}:"
    b"{% if m.reasoning_content %}({{ m.reasoning_content }}){% endif %}{{ m.content }}"
    b"{{ m.tool_calls | tojson if m.tool_calls }}<|im_end|>{% endfor %}"
    b"{% if add_generation_prompt %}assistant:{% if enable_thinking %}<think>{% endif %}{% endif %}"
)
SCHEMA = {
    "type": "object",
    "properties": {"x": {"type": "boolean"}},
    "required": ["x"],
    "additionalProperties": False,
}
VOCAB = 256 + len(SPECIAL)


def write_model(
    folder: Path,
    context: int = 2000,
    template: bytes | None = TEMPLATE,
    control: Sequence[bytes] = (),
    **shape: Any,
) -> str:
    """A model of random weights whose tokens are bytes, and control tokens more than SPECIAL."""
    special = [*SPECIAL, *control]
    sections = byte_tokenizer(lib.LLM_ADD_BOS, BOS, IM_END, special)
    if template is not None:
        sections[lib.LLM_CHAT_TEMPLATE] = template
    file = folder / "tiny.llm"
    shape = {"dtype": INT8R, "dim": 64, "context": context, **shape}
    file.write_bytes(make_model(5, vocab_size=256 + len(special), sections=sections, **shape))
    return str(file)


class Client:
    """Requests to one server."""

    def __init__(self, url: str, **headers: str) -> None:
        self.address = urlsplit(url)
        self.headers = headers

    def connect(self) -> HTTPConnection:
        return HTTPConnection(self.address.hostname or "", self.address.port, timeout=60)

    def send(self, method: str, path: str, body: Any = None, **headers: str) -> HTTPResponse:
        """The response, its body not read yet."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        kind = {} if data is None else {"Content-Type": "application/json"}
        connection = self.connect()
        connection.request(method, path, data, {**kind, **self.headers, **headers})
        return connection.getresponse()

    def get(self, path: str, **headers: str) -> tuple[int, Any]:
        return read(self.send("GET", path, **headers))

    def post(self, path: str, body: Any, **headers: str) -> tuple[int, Any]:
        return read(self.send("POST", path, body, **headers))

    def answer(self, path: str, body: Any) -> Any:
        """What a request that is right gets."""
        status, answer = self.post(path, body)
        assert status == 200, answer
        return answer

    def events(self, path: str, body: Any) -> list[Any]:
        """The events of a stream, without [DONE], which must be the last."""
        response = self.send("POST", path, {**body, "stream": True})
        assert response.status == 200, response.read()
        assert response.getheader("Content-Type") == "text/event-stream; charset=utf-8"
        return whole_stream(response.read())

    def typed_events(self, path: str, body: Any) -> list[Any]:
        """The events of a stream of an API in which each says its type twice."""
        response = self.send("POST", path, {**body, "stream": True})
        assert response.status == 200, response.read()
        assert response.getheader("Content-Type") == "text/event-stream; charset=utf-8"
        return typed_events(response.read())

    def open_stream(self, path: str, body: Any) -> socket.socket:
        """A connection on which a request was sent; the caller reads what it wants, and leaves."""
        data = json.dumps(body).encode()
        sock = socket.create_connection((self.address.hostname, self.address.port), timeout=60)
        head = f"POST {path} HTTP/1.1\r\nHost: {self.address.netloc}\r\nContent-Type: application/json\r\n"
        sock.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
        return sock


def typed_events(data: bytes) -> list[Any]:
    """The events in what was sent, of which each says its type twice; comments left out."""
    events = []
    for block in data.decode().split("\n\n"):
        if not block or block.startswith(":"):
            continue
        kind, line = block.split("\n")
        events.append(json.loads(line.removeprefix("data: ")))
        assert kind == f"event: {events[-1]['type']}"
    return events


def read(response: HTTPResponse) -> tuple[int, Any]:
    """Status and body: JSON decoded, or text."""
    data = response.read()
    kind = response.getheader("Content-Type", "")
    return response.status, json.loads(data) if "json" in kind else data.decode()


def whole_stream(data: bytes) -> list[Any]:
    """The events in what was sent; comments left out."""
    lines = [line for line in data.decode().split("\n\n") if line and not line.startswith(":")]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def text_of(events: list[Any], index: int = 0) -> str:
    """The text that a stream of either kind adds up to."""
    choices: Iterator[Any] = (choice for event in events for choice in event["choices"])
    own = [choice for choice in choices if choice["index"] == index]
    return "".join(choice.get("text") or choice.get("delta", {}).get("content") or "" for choice in own)


@contextmanager
def occupied(service: Any) -> Iterator[None]:
    """A server on which something runs that does not end."""
    from pyllm.scheduler import Request
    from pyllm.server.work import Running

    async def never() -> None:
        await asyncio.Event().wait()

    endless = Running(service.scheduler, service._poster, [Request([0], 0)], never)
    service.running.add(endless)
    try:
        yield
    finally:
        service.running.discard(endless)
