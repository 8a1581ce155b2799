"""An answer on its way: the jobs of a request run, and what becomes of them is sent, whole or piece by
piece."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from pyllm.grammar import GrammarLimitError
from pyllm.sampling import Continuation, StreamEvent
from pyllm.scheduler import LateError, Request
from pyllm.server.errors import ApiError
from pyllm.server.metrics import Timing
from pyllm.server.schemas import Sampling
from pyllm.server.service import Service
from pyllm.server.stamps import Stamp, receipt_of
from pyllm.server.work import ClientGone, Running

encode = msgspec.json.Encoder().encode
JSON = b"application/json; charset=utf-8"
EVENTS = b"text/event-stream; charset=utf-8"


def usage_of(jobs: Sequence[Continuation], of_a_prompt: int = 1) -> dict[str, Any]:
    """What jobs took. of_a_prompt: how many of them follow each other that have one prompt, which counts
    once."""
    firsts = jobs[::of_a_prompt]
    prompt_tokens = sum(len(job.prompt) for job in firsts)
    made = sum(len(job.tokens) for job in jobs)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": made,
        "total_tokens": prompt_tokens + made,
        "prompt_tokens_details": {"cached_tokens": sum(job.cached for job in firsts)},
        "completion_tokens_details": {
            "accepted_prediction_tokens": sum(job.accepted for job in jobs),
            "rejected_prediction_tokens": sum(job.drafted - job.accepted for job in jobs),
        },
        "engine_seconds": round(sum(job.seconds for job in jobs), 6),
        "weight_bytes_read": int(sum(job.read for job in jobs)),
    }


def shown_extras(job: Continuation) -> dict[str, Any]:
    """What a whole choice has that only this server knows, if it was asked for."""
    extras: dict[str, Any] = {}
    if job.masked_mass is not None:
        extras["masked_mass"] = job.masked_mass
    if job.explained is not None:
        extras["explained"] = [why._asdict() for why in job.explained]
    return extras


class Answer(Response):
    """What a handler returns: starlette calls it with the connection.

    jobs    what is run for it
    stream  whether it is sent as events
    usage   of a stream: whether its last event, with every=True each of them, says what it took
    """

    def __init__(
        self,
        service: Service,
        jobs: Sequence[Request],
        *,
        stream: bool = False,
        usage: bool = False,
        every: bool = False,
    ) -> None:
        self.service, self.jobs = service, jobs
        self.stream, self.usage, self.every = stream, usage, every
        self.timings = [Timing(service.metrics, job) for job in jobs]
        self.background = None
        self.sent = 0  # events so far
        self.stamp: Stamp | None = None  # of a stream that can be taken up again: how far its client has got
        for job in jobs:
            if isinstance(job, Continuation):
                job.streamed = stream

    # ------------------------------------------------------------------------------------------------------
    # What the kinds of answers have of their own

    def whole(self) -> dict[str, Any]:
        """The answer as one object, when all jobs have ended."""
        raise NotImplementedError

    def pieces(self, index: int, event: StreamEvent) -> Iterator[dict[str, Any]]:
        """Events for what a job has made."""
        raise NotImplementedError

    def begin(self) -> Iterator[dict[str, Any]]:
        """Events before all, at once."""
        return iter(())

    def finish(self) -> Iterator[dict[str, Any]]:
        """Events after all."""
        return iter(())

    def failed(self, error: ApiError) -> Iterator[dict[str, Any]]:
        """Events that end a stream in the middle."""
        yield error.body

    def framed(self, event: dict[str, Any]) -> bytes:
        """An event as it is sent; nothing if the client has it already."""
        data = b"data: " + encode(event) + b"\n\n"
        if self.stamp is None:
            return data
        number, self.sent = self.sent, self.sent + 1
        return b"" if number < self.stamp.sent else f"id: {self.stamp.id}:{number}\n".encode() + data

    def usage_so_far(self, job: Continuation) -> dict[str, Any]:
        """What each event says of usage: nothing, that it comes later, or what a job has taken so far."""
        return {"usage": usage_of([job]) if self.every else None} if self.usage else {}

    done = b"data: [DONE]\n\n"  # the end of a stream

    # ------------------------------------------------------------------------------------------------------
    # Sending

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        running = self.service.run(self.jobs, receive)
        try:
            async with running:
                if self.stream:
                    await self._send_stream(running, send)
                else:
                    await self._send_whole(running, send)
        except ClientGone:
            pass
        except asyncio.CancelledError:
            if not running.dropped:
                raise
        finally:
            self.service.running.discard(running)
            for timing in self.timings:
                timing.end()

    async def _send_whole(self, running: Running, send: Send) -> None:
        async for _, item in running:
            if isinstance(item, Request):
                self._check(item)
        await _send_json(send, 200, self.whole())

    async def _send_stream(self, running: Running, send: Send) -> None:
        headers = [(b"content-type", EVENTS), (b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        try:
            await self._send_events(running, send, self.begin())
            async for index, item in running:
                if isinstance(item, StreamEvent):
                    if item.tokens:
                        self.timings[index].token()
                    await self._send_events(running, send, self.pieces(index, item))
                elif isinstance(item, Request):
                    self._check(item)
                else:
                    await self._send(running, send, b": ping\n\n")
            await self._send_events(running, send, self.finish())
        except ApiError as error:  # the client looks for it among the events
            running.cancel()
            await self._send_events(running, send, self.failed(error))
        if self.done:
            await self._send(running, send, self.done)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_events(self, running: Running, send: Send, events: Iterator[dict[str, Any]]) -> None:
        if body := b"".join(map(self.framed, events)):
            await self._send(running, send, body)

    @staticmethod
    async def _send(running: Running, send: Send, body: bytes) -> None:
        """Writes to the client; waits while it does not read."""
        if running.gone:
            raise ClientGone
        running.sending = time.monotonic()
        await send({"type": "http.response.body", "body": body, "more_body": True})
        running.sending = 0.0

    def _check(self, job: Request) -> None:
        """ApiError when a job has failed."""
        if job.error is None:
            return
        if isinstance(job.error, LateError):
            raise ApiError(408, f"{job.error}", code="timeout")
        if job.cancelled:
            raise ApiError(503, "the server is shutting down", code="shutting_down")
        if isinstance(job.error, GrammarLimitError):
            raise ApiError(400, f"{job.error}", code="unsupported_grammar")
        raise ApiError(500, f"{job.error}", code="engine_error")


class Generated(Answer):
    """What the answers of both kinds of completions have in common.

    path         of the endpoint
    kind         of the object that is sent
    of_a_prompt  how many jobs that follow each other have one prompt
    """

    path: str

    def __init__(
        self,
        service: Service,
        request: Sampling,
        model: str,
        jobs: Sequence[Continuation],
        stamp: Stamp,
        kind: str,
        of_a_prompt: int,
    ) -> None:
        self.jobs: Sequence[Continuation]
        options = request.stream_options
        super().__init__(
            service,
            jobs,
            stream=bool(request.stream),
            usage=bool(options and options.include_usage),
            every=bool(options and options.continuous_usage_stats),
        )
        self._asked, self._of_a_prompt = request, of_a_prompt
        if request.resumable or request.resume_from:
            self.stamp = stamp
        self.head: dict[str, Any] = {
            "id": stamp.id,
            "object": kind,
            "created": stamp.created,
            "model": model,
            "system_fingerprint": service.fingerprint,
        }

    def ended(self, index: int, finished: bool) -> dict[str, Any]:
        """Why a choice has ended, if it has."""
        job = self.jobs[index]
        return {
            "finish_reason": self.finish_reason(index) if finished else None,
            "stop_reason": job.stop if finished and job.stop not in job.model.stop_tokens else None,
        }

    def finish_reason(self, index: int) -> str:
        """OpenAI's word for why a choice has ended."""
        return self.jobs[index].finish_reason

    def summary(self, usage: bool = True) -> dict[str, Any]:
        """What all of it took, and its receipt."""
        told: dict[str, Any] = {"usage": usage_of(self.jobs, self._of_a_prompt)} if usage else {}
        return told | self.receipt()

    def receipt(self) -> dict[str, Any]:
        """What is needed to get the same once more, if that was asked for."""
        if not self._asked.receipt:
            return {}
        return {"receipt": receipt_of(self.service, self.path, self._asked, self.jobs)}

    def finish(self) -> Iterator[dict[str, Any]]:
        if self.usage or self._asked.receipt:
            yield self.head | {"choices": []} | self.summary(self.usage)


async def _send_json(send: Send, status: int, body: dict[str, Any]) -> None:
    data = encode(body)
    headers = [(b"content-type", JSON), (b"content-length", str(len(data)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": data})


class Json(Response):
    """An object as it is."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return encode(content)
