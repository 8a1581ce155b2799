"""POST /v1/responses: OpenAI's Responses API, of which a request is a chat in other words.

Nothing is kept between requests: what would need that is refused by name, as are tools that a server runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import msgspec

from pyllm.call_formats import with_objects
from pyllm.sampling import Logprob, StreamEvent
from pyllm.server.answer import usage_of
from pyllm.server.chats import Chats, text_of
from pyllm.server.errors import ApiError, bad
from pyllm.server.logprobs import chat_logprobs
from pyllm.server.schemas import ChatRequest, Sampling
from pyllm.server.service import Service
from pyllm.server.translation import (
    UNANSWERED,
    Block,
    Names,
    Translated,
    Turn,
    call_of,
    chat_of,
    chat_request,
    check_foreign,
    text_in,
)

LOGPROBS = "message.output_text.logprobs"
# What `include` may hold. The reasoning itself is in the answer, and is taken back as it is, so that its
# encrypted form has nothing to add
INCLUDED = frozenset({LOGPROBS, "reasoning.encrypted_content"})
STATEFUL = ("previous_response_id", "conversation", "prompt", "background")
# Fields of chats that are said otherwise here, or have no place in the answer
FOREIGN = {**UNANSWERED, "max_tokens": (), "response_format": ()}
NAMES: Names = (
    ("messages", "input"),
    ("max_tokens", "max_output_tokens"),
    (r"response_format(\.json_schema)?", "text.format"),
    (r"(tools\[\d+\])\.function", r"\1"),
    (r"tool_choice\.allowed_tools\.(tools\[\d+\])\.function", r"tool_choice.\1"),
    (r"tool_choice\.allowed_tools\.(tools|mode)", r"tool_choice.\1"),
)


# ----------------------------------------------------------------------------------------------------------
# The request


class ReasoningField(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    effort: str | None = None
    summary: str | None = None  # there are none: the reasoning itself is in the answer
    generate_summary: str | None = None


class TextField(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    format: dict[str, Any] | None = None
    verbosity: str | None = None


class ResponsesRequest(Sampling, kw_only=True):
    """POST /v1/responses."""

    input: str | list[dict[str, Any]]
    instructions: str | None = None
    max_output_tokens: int | None = None
    text: TextField | None = None
    reasoning: ReasoningField | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Literal["none", "auto", "required"] | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    max_tool_calls: int | None = None  # of tools that a server runs
    include: list[str] | None = None
    top_logprobs: int | None = None
    truncation: str | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    previous_response_id: Any = None
    conversation: Any = None
    prompt: Any = None
    background: Any = None


Item = Mapping[str, Any]


def messages_of(request: ResponsesRequest) -> list[dict[str, Any]]:
    """The conversation of a request, as chats have it."""
    turns: list[Turn] = []
    if request.instructions is not None:
        turns.append(Turn("system", [request.instructions]))
    items: list[Item] = [{"role": "user", "content": request.input}]
    if not isinstance(request.input, str):
        items = list(request.input)
    for i, item in enumerate(items):
        kind, place = item.get("type") or "message", f"input[{i}]"
        adder = ITEMS.get(kind) if isinstance(kind, str) else None
        if adder is None:
            raise bad(f"{place}: items of type {kind!r:.40} are not supported", f"{place}.type")
        adder(turns, item, place)
    return [turn.message() for turn in turns]


def _add_message(turns: list[Turn], item: Item, place: str) -> None:
    role, content = item.get("role"), content_of(item.get("content"), f"{place}.content")
    if role == "assistant":
        _unsaid(turns).texts.append(content)
    elif role in ("system", "developer") and len(turns) == 1 and turns[0].role == "system":
        turns[0].texts.append(content)  # many templates know only one of these
    elif role in ("user", "system", "developer"):
        turns.append(Turn("user" if role == "user" else "system", [content]))
    else:
        raise bad(f"{place}.role must be user, assistant, system or developer", f"{place}.role")


def _add_reasoning(turns: list[Turn], item: Item, place: str) -> None:
    """What was reasoned before a reply; its summary where the text is not there."""
    parts = item.get("content") or item.get("summary") or []
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        raise bad(f"{place}.content must be a list of parts", f"{place}.content")
    texts = [text_in(part, "text", f"{place}.content[{i}]") for i, part in enumerate(parts)]
    if any(texts):
        _unsaid(turns).thoughts += texts


def _add_call(turns: list[Turn], item: Item, place: str) -> None:
    call = call_of(*(text_in(item, name, place) for name in ("call_id", "name", "arguments")))
    try:
        calls = with_objects({"tool_calls": [call]})["tool_calls"]
    except (ValueError, RecursionError):
        raise bad(f"{place}.arguments is no JSON", f"{place}.arguments") from None
    if not turns or turns[-1].role != "assistant":
        turns.append(Turn("assistant"))
    turns[-1].calls += calls


def _add_output(turns: list[Turn], item: Item, place: str) -> None:
    call = text_in(item, "call_id", place)
    turns.append(Turn("tool", [content_of(item.get("output"), f"{place}.output")], call=call))


ITEMS: dict[str, Callable[[list[Turn], Item, str], None]] = {
    "message": _add_message,
    "reasoning": _add_reasoning,
    "function_call": _add_call,
    "function_call_output": _add_output,
}


def _unsaid(turns: list[Turn]) -> Turn:
    """The reply that a thought or a text belongs to: the last turn, if nothing was said or called in it yet,
    or a new one."""
    last = turns[-1] if turns else Turn("")
    if last.role != "assistant" or last.texts or last.calls:
        turns.append(Turn("assistant"))
    return turns[-1]


def content_of(content: Any, place: str) -> str:
    """The text of a content, which may be a list of parts."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise bad(f"{place} must be a text or a list of parts", place)
    return "".join(text_of(part, f"{place}[{i}]") for i, part in enumerate(content))


def tool_of(tool: Item, place: str) -> dict[str, Any]:
    """A function as chats have it. It is always strict."""
    if tool.get("type") != "function":
        kind = f"{tool.get('type')!r:.40}"
        raise bad(f"{place}: tools of type {kind} are not supported, only functions", f"{place}.type")
    names = ("name", "description", "parameters")
    return {"type": "function", "function": {n: tool[n] for n in names if tool.get(n) is not None}}


def choice_of(choice: str | dict[str, Any] | None) -> Any:
    """tool_choice as chats have it."""
    if not isinstance(choice, dict):
        return choice
    if choice.get("type") == "allowed_tools":
        tools = choice.get("tools")
        named = [_named(tool) for tool in tools] if isinstance(tools, list) else tools
        return {"type": "allowed_tools", "allowed_tools": {"mode": choice.get("mode"), "tools": named}}
    if choice.get("type") != "function":
        raise bad("tool_choice must be none, auto, required, a function or allowed_tools", "tool_choice")
    return _named(choice)


def _named(tool: Any) -> dict[str, Any]:
    """A function that tool_choice refers to, as chats have it."""
    given = tool if isinstance(tool, dict) else {}
    return {"type": given.get("type"), "function": {"name": given.get("name")}}


def check(request: ResponsesRequest) -> None:
    """ApiError for what cannot be done here."""
    check_foreign(request, FOREIGN)
    for name in STATEFUL:
        if getattr(request, name) not in (None, False):
            raise bad(
                f"{name}: nothing is kept between requests here, all has to be in input",
                name,
                "unsupported_parameter",
            )
    if request.truncation not in (None, "disabled"):
        raise bad("truncation must be disabled: nothing is cut in silence", "truncation")
    for i, name in enumerate(request.include or ()):
        if name not in INCLUDED:
            raise bad(f"include[{i}]: there is no {name!r:.60} here", f"include[{i}]")


def chat_for(request: ResponsesRequest) -> ChatRequest:
    """The chat that a request comes down to."""
    check(request)
    logprobs = bool(request.top_logprobs) or LOGPROBS in (request.include or ())
    tools = [tool_of(tool, f"tools[{i}]") for i, tool in enumerate(request.tools or ())]
    return chat_request(
        request,
        messages=messages_of(request),
        max_tokens=request.max_output_tokens,
        response_format=request.text and request.text.format,
        reasoning_effort=request.reasoning and request.reasoning.effort,
        tools=tools or None,
        tool_choice=choice_of(request.tool_choice),
        parallel_tool_calls=request.parallel_tool_calls,
        logprobs=logprobs or None,
        top_logprobs=request.top_logprobs,
        chat_template_kwargs=request.chat_template_kwargs,
    )


async def responses(service: Service, request: ResponsesRequest, owner: str) -> Responses:
    """Checks everything, and makes the answer, which runs when it is sent."""
    return Responses(await chat_of(service, chat_for(request), owner, NAMES, "resp_"), request)


# ----------------------------------------------------------------------------------------------------------
# The answer

PREFIXES = {"reasoning": "rs", "text": "msg", "call": "fc"}  # of ids of items


class Responses(Translated):
    """The answer to a ResponsesRequest: a Response, whose items are the blocks of the reply."""

    names = NAMES

    def __init__(self, chat: Chats, request: ResponsesRequest) -> None:
        super().__init__(chat, request.stream)
        self.number = 0  # of the next event
        self.head = {
            "id": self.id,
            "object": "response",
            "created_at": chat.head["created"],
            "model": self.model,
            "system_fingerprint": chat.service.fingerprint,
            **echo(request),
        }

    def told(self) -> dict[str, Any]:
        cut = self.job.finish_reason == "length"
        return self._response("incomplete" if cut else "completed") | self.receipt()

    def _response(self, status: str, error: dict[str, Any] | None = None) -> dict[str, Any]:
        began = status == "in_progress"
        return self.head | {
            "status": status,
            "completed_at": int(time.time()) if status == "completed" else None,
            "error": error,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "output": [self._item(block) for block in self.blocks.all],
            "usage": None if began else self._usage(),
        }

    def _usage(self) -> dict[str, Any]:
        taken = usage_of(self.jobs)
        cached = taken["prompt_tokens_details"]["cached_tokens"]
        return {
            "input_tokens": taken["prompt_tokens"],
            "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
            "output_tokens": taken["completion_tokens"],
            "output_tokens_details": {"reasoning_tokens": self.blocks.thought_tokens},
            "total_tokens": taken["total_tokens"],
        }

    # ------------------------------------------------------------------------------------------------------
    # Items

    def _id(self, block: Block) -> str:
        return f"{PREFIXES[block.kind]}_{self.id.removeprefix('resp_')}{block.index:02x}"

    def _item(self, block: Block) -> dict[str, Any]:
        """A block as an item, as far as it has come."""
        status = "incomplete" if block.cut else "in_progress" if block.open else "completed"
        item = {"id": self._id(block), "status": status}
        if block.kind == "call":
            call = {"call_id": block.id, "name": block.name, "arguments": block.text}
            return {"type": "function_call"} | item | call
        content = [self._part(block)] if block.text or not block.open else []
        if block.kind == "reasoning":
            return {"type": "reasoning"} | item | {"summary": [], "content": content}
        return {"type": "message"} | item | {"role": "assistant", "content": content}

    def _part(self, block: Block) -> dict[str, Any]:
        """The content of an item that has one."""
        if block.kind == "reasoning":
            return {"type": "reasoning_text", "text": block.text}
        logprobs = self._logprobs(block.logprobs)
        return {"type": "output_text", "text": block.text, "annotations": [], "logprobs": logprobs}

    def _logprobs(self, entries: Sequence[Logprob]) -> list[dict[str, Any]]:
        shown: list[dict[str, Any]] = chat_logprobs(self.service.texts, entries)["content"]
        return shown

    # ------------------------------------------------------------------------------------------------------
    # Events

    def begin(self) -> Iterator[dict[str, Any]]:
        response = self._response("in_progress")
        yield self._event("response.created", response=response)
        yield self._event("response.in_progress", response=response)

    def pieces(self, index: int, event: StreamEvent) -> Iterator[dict[str, Any]]:
        for step in self.blocks.take(event):
            if step.what == "begin":
                yield from self._begun(step.block)
            elif step.what == "add":
                yield self._added(step.block, step.piece, self._logprobs(step.logprobs))
            else:
                yield from self._ended(step.block)

    def finish(self) -> Iterator[dict[str, Any]]:
        response = self.told()
        yield self._event(f"response.{response['status']}", response=response)

    def failed(self, error: ApiError) -> Iterator[dict[str, Any]]:
        for block in self.blocks.all:
            block.cut |= block.open
        shown = {"code": "server_error", "message": error.message}
        yield self._event("response.failed", response=self._response("failed", shown))

    def _event(self, kind: str, **members: Any) -> dict[str, Any]:
        self.number += 1
        return {"type": kind, "sequence_number": self.number - 1, **members}

    def _place(self, block: Block) -> dict[str, Any]:
        """Where what an event tells of belongs."""
        place = {"item_id": self._id(block), "output_index": block.index}
        return place if block.kind == "call" else place | {"content_index": 0}

    def _begun(self, block: Block) -> Iterator[dict[str, Any]]:
        yield self._event("response.output_item.added", output_index=block.index, item=self._item(block))
        if block.kind != "call":
            place, part = self._place(block), self._part(block)
            yield self._event("response.content_part.added", **place, part=part)

    def _added(self, block: Block, piece: str, logprobs: list[dict[str, Any]]) -> dict[str, Any]:
        more = {"logprobs": logprobs} if block.kind == "text" else {}
        return self._event(f"response.{STEMS[block.kind]}.delta", **self._place(block), delta=piece, **more)

    def _ended(self, block: Block) -> Iterator[dict[str, Any]]:
        place, kind = self._place(block), f"response.{STEMS[block.kind]}.done"
        if block.kind == "call":
            yield self._event(kind, **place, name=block.name, arguments=block.text)
        else:
            part = self._part(block)
            more = {"logprobs": part["logprobs"]} if block.kind == "text" else {}
            yield self._event(kind, **place, text=block.text, **more)
            yield self._event("response.content_part.done", **place, part=part)
        yield self._event("response.output_item.done", output_index=block.index, item=self._item(block))


# How the events of a block's pieces are called
STEMS = {"reasoning": "reasoning_text", "text": "output_text", "call": "function_call_arguments"}


def echo(request: ResponsesRequest) -> dict[str, Any]:
    """What a Response tells of its request, with the defaults that held. Nothing is stored, whatever was
    asked for."""
    text, reasoning = request.text or TextField(), request.reasoning or ReasoningField()
    parallel = request.parallel_tool_calls is not False
    return {
        "background": False,
        "instructions": request.instructions,
        "max_output_tokens": request.max_output_tokens,
        "max_tool_calls": request.max_tool_calls,
        "metadata": request.metadata or {},
        "parallel_tool_calls": parallel,
        "previous_response_id": None,
        "prompt_cache_key": request.prompt_cache_key,
        "reasoning": {"effort": reasoning.effort, "summary": None},
        "safety_identifier": request.safety_identifier,
        "service_tier": "default",
        "store": False,
        "temperature": 1.0 if request.temperature is None else request.temperature,
        "text": {"format": text.format or {"type": "text"}, "verbosity": text.verbosity or "medium"},
        "tool_choice": request.tool_choice or "auto",
        "tools": [{"parameters": None, **tool, "strict": True} for tool in request.tools or ()],
        "top_logprobs": request.top_logprobs or 0,
        "top_p": 1.0 if request.top_p is None else request.top_p,
        "truncation": "disabled",
        "user": request.user,
    }
