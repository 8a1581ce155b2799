"""A client of OpenAI's API that notes when what comes: HTTP/1.1 and server-sent events on asyncio's streams.

Each request has a connection of its own, as in vLLM's benchmark. There is no TLS: servers are measured from
the machine that they run on.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

READ = 1 << 16  # bytes that are read at once


@dataclass(frozen=True)
class Request:
    """What is sent: the path, and the fields of the body."""

    path: str
    body: dict[str, Any]


@dataclass
class Outcome:
    """What became of a request. Times are those of time.perf_counter().

    sent         when it was begun to be sent, the first time if it was refused at first
    chunks       when events with choices came
    text         of the first choice
    finish       its finish_reason
    usage        as the server told it
    status       of HTTP; 0: there was no answer
    error        why it failed; "": it did not
    retry_after  the seconds that a refusal names
    refusals     how often it was refused with 429, this answer included
    told         how many of these refusals named the seconds
    left         whether the client went away before the end
    """

    sent: float = 0.0
    chunks: list[float] = field(default_factory=list)
    text: str = ""
    finish: str = ""
    usage: dict[str, Any] = field(default_factory=dict)
    status: int = 0
    error: str = ""
    retry_after: float | None = None
    refusals: int = 0
    told: int = 0
    left: bool = False

    def take(self, event: dict[str, Any], now: float) -> None:
        """Notes an event of the stream."""
        if "error" in event:
            self.error = self.error or message_of(event)
        if choices := event.get("choices"):
            self.chunks.append(now)
            self.text += choices[0].get("text") or (choices[0].get("delta") or {}).get("content") or ""
            self.finish = choices[0].get("finish_reason") or self.finish
        self.usage = event.get("usage") or self.usage


class Events:
    """The data of server-sent events, from bytes that may be cut anywhere. Comments and other fields are
    left out."""

    def __init__(self) -> None:
        self._rest = b""
        self._lines: list[bytes] = []

    def feed(self, part: bytes) -> Iterator[bytes]:
        *lines, self._rest = (self._rest + part).split(b"\n")
        for line in lines:
            line = line.removesuffix(b"\r")
            if line.startswith(b"data:"):
                self._lines.append(line[5:].removeprefix(b" "))
            elif not line and self._lines:
                yield b"\n".join(self._lines)
                self._lines = []


@dataclass
class Answer:
    """An answer whose head has come; parts are those of its body, as they come."""

    status: int
    headers: dict[str, str]
    parts: AsyncIterator[bytes]

    async def body(self) -> bytes:
        return b"".join([part async for part in self.parts])


class Client:
    """Requests to one server.

    url      such as "http://127.0.0.1:8000"
    timeout  seconds after which a request has failed
    """

    def __init__(self, url: str, timeout: float = 600.0) -> None:
        self.address, self.timeout = urlsplit(url), timeout
        if self.address.scheme != "http" or not self.address.hostname:
            raise ValueError(f"{url!r} is not a URL of the form http://host:port")

    async def stream(self, request: Request, outcome: Outcome | None = None) -> Outcome:
        """Sends a request, and follows its answer to the end. What goes wrong is not raised, but in the
        outcome, which may be given, to be looked at meanwhile. Cancelling this closes the connection."""
        outcome = outcome or Outcome()
        outcome.sent = time.perf_counter()
        try:
            await asyncio.wait_for(self._stream(request, outcome), self.timeout)
        except asyncio.CancelledError:
            outcome.left = True
            raise
        except asyncio.TimeoutError:
            outcome.error = f"there was no end after {self.timeout:g} s"
        except ConnectionRefusedError:
            outcome.error = "the connection was refused"
        except (EOFError, ConnectionError):  # EOFError: asyncio.IncompleteReadError
            outcome.error = f"the connection was cut after {len(outcome.chunks)} chunks"
        except Exception as error:  # whatever a server may send
            outcome.error = f"{type(error).__name__}: {error}"
        return outcome

    async def _stream(self, request: Request, outcome: Outcome) -> None:
        async with self._exchange("POST", request.path, request.body) as answer:
            outcome.status = answer.status
            if answer.status != 200:
                outcome.error = f"{answer.status}: {message_of(await answer.body())}"
                if answer.status == 429:
                    outcome.retry_after = seconds_of(answer.headers.get("retry-after"))
                    outcome.refusals += 1
                    outcome.told += outcome.retry_after is not None
                return
            events = Events()
            async for part in answer.parts:
                now = time.perf_counter()
                for data in events.feed(part):
                    if data == b"[DONE]":
                        outcome.error = outcome.error or ("" if outcome.chunks else "the stream was empty")
                        return
                    outcome.take(json.loads(data), now)
            outcome.error = outcome.error or "the stream ended without [DONE]"

    async def get(self, path: str) -> tuple[int, bytes]:
        """The status and the body; OSError, EOFError or asyncio.TimeoutError when there is no answer."""

        async def answered() -> tuple[int, bytes]:
            async with self._exchange("GET", path) as answer:
                return answer.status, await answer.body()

        return await asyncio.wait_for(answered(), self.timeout)

    @asynccontextmanager
    async def _exchange(self, method: str, path: str, body: Any = None) -> AsyncIterator[Answer]:
        host, port = self.address.hostname, self.address.port or 80
        data = b"" if body is None else json.dumps(body).encode()
        lines = [f"{method} {self.address.path.rstrip('/')}{path} HTTP/1.1", f"Host: {self.address.netloc}"]
        lines += ["Connection: close", "Content-Type: application/json", f"Content-Length: {len(data)}"]
        if key := os.environ.get("OPENAI_API_KEY"):
            lines.append(f"Authorization: Bearer {key}")
        reader, writer = await asyncio.open_connection(host, port)
        try:
            writer.write("\r\n".join([*lines, "", ""]).encode() + data)
            await writer.drain()
            status, headers = await read_head(reader)
            yield Answer(status, headers, read_parts(reader, headers))
        finally:
            writer.close()


async def read_head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    """Status and headers, whose names become lower case."""
    first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    pairs = (line.partition(":") for line in lines if line)
    return int(first.split()[1]), {name.lower(): value.strip() for name, _, value in pairs}


async def read_parts(reader: asyncio.StreamReader, headers: dict[str, str]) -> AsyncIterator[bytes]:
    """The body, as it comes; IncompleteReadError when it is cut."""
    if headers.get("transfer-encoding", "").lower() == "chunked":
        while size := int((await reader.readuntil(b"\r\n")).partition(b";")[0], 16):
            yield (await reader.readexactly(size + 2))[:-2]
    elif "content-length" in headers:
        left = int(headers["content-length"])
        while left:
            part = await reader.read(min(left, READ))
            if not part:
                raise asyncio.IncompleteReadError(b"", left)
            left -= len(part)
            yield part
    else:
        while part := await reader.read(READ):
            yield part


def message_of(error: Any) -> str:
    """What an error says: the body of an answer, or an event of a stream."""
    try:
        found = json.loads(error) if isinstance(error, bytes) else error
        found = found["error"]
        return str(found.get("message", found) if isinstance(found, dict) else found)
    except (ValueError, KeyError, TypeError):
        return str(error)[:200]


def seconds_of(header: str | None) -> float | None:
    """What Retry-After says, where it is a number."""
    return float(header) if header and header.replace(".", "", 1).isdigit() else None
