"""What the endpoints for other APIs than chat completions share.

They are translations: a request becomes a ChatRequest, and the reply to that is told in the other API's
words. Nothing is sampled, bound to a grammar or parsed here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from starlette.types import Receive, Scope, Send

from pyllm.sampling import Continuation, Logprob, StreamEvent
from pyllm.server.answer import Answer
from pyllm.server.chats import Chats, Reply, chats
from pyllm.server.errors import ApiError, bad
from pyllm.server.schemas import ChatRequest, Sampling
from pyllm.server.service import Service

Kind = Literal["reasoning", "text", "call"]
Names = Sequence[tuple[str, str]]  # patterns for a chat's fields, with what these are called elsewhere
PARAGRAPH = "\n\n"  # between texts that are one message's but come apart
# Fields of chats that ask for what the answers of other APIs have no place for, with the values that do not
UNANSWERED: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "prompt_logprobs": (),
    "return_token_ids": (False,),
    "explain": (False,),
}


# ----------------------------------------------------------------------------------------------------------
# A reply as a list of blocks


@dataclass
class Block:
    """A part of a reply.

    kind      what it is
    index     its place among the parts
    name, id  of a call: the function's name, and what its result will refer to
    pieces    what has come of it; of a call its arguments
    logprobs  those of its tokens, of a text if they were asked for
    open      whether more may come
    cut       whether the end is missing
    """

    kind: Kind
    index: int
    name: str = ""
    id: str = ""
    pieces: list[str] = field(default_factory=list)
    logprobs: list[Logprob] = field(default_factory=list)
    open: bool = True
    cut: bool = False

    @property
    def text(self) -> str:
        """All that has come of it."""
        return "".join(self.pieces)


class Step(NamedTuple):
    """What happens to a block: it begins, a piece is added, it ends. logprobs: those of the piece."""

    what: Literal["begin", "add", "end"]
    block: Block
    piece: str = ""
    logprobs: Sequence[Logprob] = ()


class Blocks:
    """What a reply consists of, as it grows: its reasoning if there is any, its text, its calls. A reply of
    nothing at all is an empty text."""

    def __init__(self, reply: Reply) -> None:
        self._reply = reply
        self.all: list[Block] = []
        self.tokens = 0
        self.thought_tokens = 0  # those of the reasoning, with its marks and the white space behind
        self._logprobs: list[Logprob] = []  # of tokens whose text has not come yet

    def take(self, event: StreamEvent) -> Iterator[Step]:
        """What a step of the job does to the blocks."""
        finished = event.finish_reason is not None
        before = self._reply.parting.place
        thought, text, deltas = self._reply.feed(event.text, event.finish_reason, event.stop)
        self._count(event, before)
        if thought:
            yield from self._add("reasoning", thought)
        if text or (finished and not self.all and not deltas and not thought):
            yield from self._add("text", text)
        for delta in deltas:
            if delta.name is not None:
                yield from self._begin("call", delta.name, delta.id or "")
            if delta.arguments:
                yield from self._add("call", delta.arguments)
        if finished:
            yield from self._end(cut=event.finish_reason == "length")

    def _count(self, event: StreamEvent, before: str) -> None:
        """Whose tokens these are. before: in what place of the reply they came."""
        self.tokens += len(event.tokens)
        place, parser = self._reply.parting.place, self._reply.parser
        if before == "reasoning" or place in ("reasoning", "behind"):
            self.thought_tokens = self.tokens
        if place in ("start", "reply") and not (parser and parser.count):
            self._logprobs += event.logprobs or ()
        else:
            self._logprobs = []

    def _begin(self, kind: Kind, name: str = "", call_id: str = "") -> Iterator[Step]:
        yield from self._end(cut=False)
        self.all.append(Block(kind, len(self.all), name, call_id))
        yield Step("begin", self.all[-1])

    def _add(self, kind: Kind, piece: str) -> Iterator[Step]:
        if not self.all or self.all[-1].kind != kind:
            yield from self._begin(kind)
        block, logprobs = self.all[-1], []
        if kind == "text":
            logprobs, self._logprobs = self._logprobs, []
        block.pieces.append(piece)
        block.logprobs += logprobs
        if piece:
            yield Step("add", block, piece, logprobs)

    def _end(self, cut: bool) -> Iterator[Step]:
        """Ends the last block, if there is one. cut: whether the reply has ended too early."""
        if not self.all:
            return
        block, parser = self.all[-1], self._reply.parser
        block.open, block.cut = False, cut
        if block.kind == "text":
            block.logprobs += self._logprobs  # of tokens without a text, such as the one that ends a reply
        elif block.kind == "call" and parser is not None:
            block.cut = sum(each.kind == "call" for each in self.all) > parser.whole
        yield Step("end", block)


def replayed(job: Continuation) -> Iterator[StreamEvent]:
    """The events that a job would have had if it had been streamed: one for each token, of which each but
    the last has one of its parts of text."""
    last = max(0, len(job.tokens) - 1)
    for i in range(last + 1):
        logprobs = None if job.logprobs is None else job.logprobs[i : i + 1]
        if i < last:
            yield StreamEvent(job.parts[i], job.tokens[i : i + 1], logprobs)
            continue
        text = "".join(job.parts[last:])
        yield StreamEvent(text, job.tokens[i:], logprobs, finish_reason=job.finish_reason, stop=job.stop)


# ----------------------------------------------------------------------------------------------------------
# Requests


@dataclass
class Turn:
    """A message of a conversation that is being put together, since other APIs have the parts of one apart.

    role      whose it is
    texts     paragraphs
    thoughts  what was reasoned before
    calls     what is called, as chats have it
    call      of a result: the id of its call
    """

    role: str
    texts: list[str] = field(default_factory=list)
    thoughts: list[str] = field(default_factory=list)
    calls: list[dict[str, Any]] = field(default_factory=list)
    call: str | None = None

    def message(self) -> dict[str, Any]:
        """As chats have it."""
        message: dict[str, Any] = {"role": self.role, "content": None}
        if self.texts:
            message["content"] = PARAGRAPH.join(self.texts)
        if thoughts := [thought for thought in self.thoughts if thought]:
            message["reasoning_content"] = PARAGRAPH.join(thoughts)
        if self.calls:
            message["tool_calls"] = self.calls
        if self.call is not None:
            message["tool_call_id"] = self.call
        return message


def call_of(call: str, name: str, arguments: Any) -> dict[str, Any]:
    """A call as chats have it."""
    return {"id": call, "type": "function", "function": {"name": name, "arguments": arguments}}


def text_in(item: Mapping[str, Any], name: str, place: str) -> str:
    """A member of an item that must be a text."""
    value = item.get(name)
    if not isinstance(value, str):
        raise bad(f"{place}.{name} must be a text", f"{place}.{name}")
    return value


def check_foreign(request: Sampling, foreign: Mapping[str, Sequence[Any]]) -> None:
    """ApiError for a field of chats that the other API says otherwise, or cannot answer. foreign: those, with
    the values that say nothing."""
    for name, neutral in foreign.items():
        value = getattr(request, name)
        if value is not None and value not in neutral:
            raise bad(f"there is no field {name} here", name, "unknown_parameter")


def chat_request(request: Sampling, **fields: Any) -> ChatRequest:
    """The chat that a request comes down to: its own sampling, and what is given here."""
    own = {name: getattr(request, name) for name in Sampling.__struct_fields__}
    return ChatRequest(**{**own, "stream": None, "stream_options": None, **fields})


async def chat_of(service: Service, request: ChatRequest, owner: str, names: Names, kind: str) -> Chats:
    """The answer to a chat, not run yet; errors name the other API's fields. kind: how its id begins
    there."""
    try:
        return await chats(service, request, owner, kind)
    except ApiError as error:
        raise renamed(error, names) from None


def renamed(error: ApiError, names: Names) -> ApiError:
    """An error that names a field by another API's name for it, in its sentence and beside it."""

    def other(text: str) -> str:
        for pattern, name in names:
            changed, count = re.subn(rf"\A{pattern}(?!\w)", name, text)
            if count:
                return changed
        return text

    return ApiError(
        error.status,
        other(error.message),
        param=None if error.param is None else other(error.param),
        code=error.code,
        retry_after=error.retry_after,
        **error.more,
    )


# ----------------------------------------------------------------------------------------------------------
# Answers


class Translated(Answer):
    """A chat's answer in another API's words: one object, or events of which each has a type.

    chat    what is asked for; it is not sent itself
    stream  whether the answer is sent as events
    """

    done = b""
    names: Names = ()

    def __init__(self, chat: Chats, stream: bool | None) -> None:
        self.jobs: Sequence[Continuation]
        super().__init__(chat.service, chat.jobs, stream=bool(stream))
        (self.job,), (self.reply,) = chat.jobs, chat.replies
        self.id: str = chat.head["id"]
        self.model: str = chat.head["model"]
        self.stamp = chat.stamp
        self.receipt = chat.receipt
        self.blocks = Blocks(self.reply)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        except ApiError as error:
            raise renamed(error, self.names) from None

    def told(self) -> dict[str, Any]:
        """The reply as far as it has come, as one object."""
        raise NotImplementedError

    def whole(self) -> dict[str, Any]:
        for event in replayed(self.job):
            for _ in self.blocks.take(event):
                pass
        return self.told()

    def framed(self, event: dict[str, Any]) -> bytes:
        kind: str = event["type"]
        framed = super().framed(event)
        return framed and b"event: " + kind.encode() + b"\n" + framed
