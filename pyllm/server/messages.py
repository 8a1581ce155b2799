"""POST /v1/messages and /v1/messages/count_tokens: Anthropic's Messages API, of which a request is a chat in
other words.

Tools that a server runs, pictures and documents are refused by name. Marks for a cache are ignored: what
came before is not computed again without them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import msgspec

from pyllm.sampling import StreamEvent
from pyllm.server.answer import Json, usage_of
from pyllm.server.chats import Chats, prompt_of, text_of
from pyllm.server.errors import ApiError, bad
from pyllm.server.schemas import ChatRequest, Sampling, ranged
from pyllm.server.service import Service
from pyllm.server.translation import (
    PARAGRAPH,
    UNANSWERED,
    Block,
    Names,
    Step,
    Translated,
    Turn,
    call_of,
    chat_of,
    chat_request,
    check_foreign,
    renamed,
    text_in,
)

PATH = "/v1/messages"
# The first line of a system text that changes with every request, so that nothing behind it could be reused
BILLING = "x-anthropic-billing-header:"
# Edits of what came before that leave it to the model's template, which decides what it shows of old thoughts
CLEARED = "clear_thinking_"
# Fields of chats that are said otherwise here, or have no place in the answer
FOREIGN = {**UNANSWERED, "stop": (), "stream_options": (), "response_format": ()}
NAMES: Names = (
    ("stop", "stop_sequences"),
    (r"response_format(\.json_schema)?", "output_config.format"),
    (r"(tools\[\d+\])\.function\.parameters", r"\1.input_schema"),
    (r"(tools\[\d+\])\.function", r"\1"),
    ("reasoning_budget", "thinking.budget_tokens"),
)
ERRORS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    503: "overloaded_error",
}


# ----------------------------------------------------------------------------------------------------------
# Errors


class MessagesError(ApiError):
    """An error in Anthropic's shape."""

    @property
    def body(self) -> dict[str, Any]:
        kind = ERRORS.get(self.status, "invalid_request_error" if self.status < 500 else "api_error")
        return {"type": "error", "error": {"type": kind, "message": self.message}}


def shaped(error: ApiError, path: str) -> ApiError:
    """An error as the clients of a path expect it."""
    if path != PATH and not path.startswith(f"{PATH}/"):
        return error
    return MessagesError(error.status, error.message, retry_after=error.retry_after)


# ----------------------------------------------------------------------------------------------------------
# The request


class ToolChoice(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: int | None = None
    display: Literal["summarized", "omitted"] | None = None  # there are no summaries: the whole is shown


class OutputConfig(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    format: dict[str, Any] | None = None
    effort: str | None = None


class CountRequest(msgspec.Struct, kw_only=True):
    """POST /v1/messages/count_tokens: what makes the prompt of a MessagesRequest."""

    model: str | None = None
    messages: list[dict[str, Any]]
    system: str | list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    context_management: dict[str, Any] | None = None
    cache_control: Any = None
    chat_template_kwargs: dict[str, Any] | None = None


class MessagesRequest(Sampling, kw_only=True):
    """POST /v1/messages."""

    max_tokens: int
    messages: list[dict[str, Any]]
    system: str | list[dict[str, Any]] | None = None
    stop_sequences: list[str] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    context_management: dict[str, Any] | None = None
    cache_control: Any = None
    chat_template_kwargs: dict[str, Any] | None = None


Conversation = MessagesRequest | CountRequest
Item = Mapping[str, Any]  # a block of a message


def messages_of(request: Conversation) -> list[dict[str, Any]]:
    """The conversation of a request, as chats have it."""
    turns: list[Turn] = []
    if system := system_of(request.system):
        turns.append(Turn("system", system))
    for i, message in enumerate(request.messages):
        role, content, place = message.get("role"), message.get("content"), f"messages[{i}]"
        if role not in ("user", "assistant", "system"):
            raise bad(f"{place}.role must be user, assistant or system", f"{place}.role")
        if isinstance(content, str):
            turn_of(turns, role).texts.append(content)
            continue
        if not isinstance(content, list) or not all(isinstance(block, dict) for block in content):
            raise bad(f"{place}.content must be a text or a list of blocks", f"{place}.content")
        for j, block in enumerate(content):
            add_block(turns, role, block, f"{place}.content[{j}]")
    return [turn.message() for turn in turns]


def system_of(system: str | list[dict[str, Any]] | None) -> list[str]:
    """The paragraphs of the system message."""
    if system is None or isinstance(system, str):
        return [system] if system else []
    texts = [text_of(block, f"system[{i}]") for i, block in enumerate(system)]
    return [text for text in texts if not text.startswith(BILLING)]


def turn_of(turns: list[Turn], role: str) -> Turn:
    """The turn of a role, which goes on if it is the last one's."""
    if not turns or turns[-1].role != role:
        turns.append(Turn(role))
    return turns[-1]


def add_block(turns: list[Turn], role: str, block: Item, place: str) -> None:
    """Adds a block of a message to the conversation."""
    kind = block.get("type")
    adder = BLOCKS.get((role, kind)) if isinstance(kind, str) else None
    if adder is not None:
        adder(turns, block, place)
    elif (role, kind) != ("assistant", "redacted_thinking"):
        turn_of(turns, role).texts.append(text_of(block, place))


def _add_thinking(turns: list[Turn], block: Item, place: str) -> None:
    turn_of(turns, "assistant").thoughts.append(text_in(block, "thinking", place))


def _add_call(turns: list[Turn], block: Item, place: str) -> None:
    if not isinstance(block.get("input"), dict):
        raise bad(f"{place}.input must be an object", f"{place}.input")
    call = call_of(text_in(block, "id", place), text_in(block, "name", place), block["input"])
    turn_of(turns, "assistant").calls.append(call)


def _add_result(turns: list[Turn], block: Item, place: str) -> None:
    content = block.get("content") or ""
    if not isinstance(content, (str, list)):
        raise bad(f"{place}.content must be a text or a list of blocks", f"{place}.content")
    if isinstance(content, list):
        content = PARAGRAPH.join(text_of(part, f"{place}.content[{i}]") for i, part in enumerate(content))
    if block.get("is_error"):  # templates have no other way to say it
        content = f"Error: {content}"
    turns.append(Turn("tool", [content], call=text_in(block, "tool_use_id", place)))


BLOCKS: dict[tuple[str, str], Callable[[list[Turn], Item, str], None]] = {
    ("assistant", "thinking"): _add_thinking,
    ("assistant", "tool_use"): _add_call,
    ("user", "tool_result"): _add_result,
}


def tool_of(tool: Item, place: str) -> dict[str, Any]:
    """A function as chats have it."""
    kind = tool.get("type")
    if kind not in (None, "custom"):
        raise bad(
            f"{place}: tools that a server runs are not supported, such as {kind!r:.60}", f"{place}.type"
        )
    if not isinstance(tool.get("input_schema"), dict):
        raise bad(f"{place}.input_schema must be a JSON schema", f"{place}.input_schema")
    function = {"name": tool.get("name"), "description": tool.get("description")}
    function = {name: value for name, value in function.items() if value is not None}
    return {"type": "function", "function": function | {"parameters": tool["input_schema"]}}


def choice_of(choice: ToolChoice | None) -> dict[str, Any]:
    """The fields of a chat that say which tools may be called."""
    if choice is None:
        return {}
    named = {"type": "function", "function": {"name": choice.name}}
    words: dict[str, Any] = {"auto": "auto", "any": "required", "none": "none", "tool": named}
    return {
        "tool_choice": words[choice.type],
        "parallel_tool_calls": not choice.disable_parallel_tool_use,
    }


def variables_of(request: Conversation) -> dict[str, Any] | None:
    """What the template is told."""
    variables: dict[str, Any] = {}
    if request.thinking is not None and request.thinking.type != "adaptive":
        variables["enable_thinking"] = request.thinking.type == "enabled"
    if request.output_config is not None and request.output_config.effort is not None:
        variables["reasoning_effort"] = request.output_config.effort
    return variables | (request.chat_template_kwargs or {}) or None


def budget_of(thinking: Thinking | None) -> int | None:
    """The tokens that the reasoning may have."""
    if thinking is None or thinking.type == "adaptive":
        return None
    if thinking.type == "disabled":
        return 0
    budget = thinking.budget_tokens
    return None if budget is None else ranged("thinking.budget_tokens", budget, 0, 2**31, 0)


def check_edits(management: Mapping[str, Any]) -> None:
    """ApiError for edits of a conversation that would change more of it than thoughts."""
    edits = management.get("edits") or []
    if isinstance(edits, list):
        kinds = [edit.get("type") if isinstance(edit, dict) else None for edit in edits]
        if all(isinstance(kind, str) and kind.startswith(CLEARED) for kind in kinds):
            return
    raise bad("context_management: nothing can be edited but thoughts", "context_management")


def fields_of(request: Conversation) -> dict[str, Any]:
    """The fields of a chat that make its prompt."""
    check_edits(request.context_management or {})
    messages = messages_of(request)
    tools = [tool_of(tool, f"tools[{i}]") for i, tool in enumerate(request.tools or ())]
    last = messages[-1] if messages else {}
    return {
        "messages": messages,
        "tools": tools or None,
        "chat_template_kwargs": variables_of(request),
        "reasoning_budget": budget_of(request.thinking),
        # what the assistant has begun to say goes on
        "continue_final_message": (last.get("role") == "assistant" and "tool_calls" not in last) or None,
        **choice_of(request.tool_choice),
    }


def chat_for(request: MessagesRequest) -> ChatRequest:
    """The chat that a request comes down to."""
    check_foreign(request, FOREIGN)
    output = request.output_config or OutputConfig()
    return chat_request(
        request, stop=request.stop_sequences, response_format=output.format, **fields_of(request)
    )


async def messages(service: Service, request: MessagesRequest, owner: str) -> MessagesAnswer:
    """Checks everything, and makes the answer, which runs when it is sent."""
    return MessagesAnswer(await chat_of(service, chat_for(request), owner, NAMES, "msg_"), request)


async def count_tokens(service: Service, request: CountRequest, owner: str) -> Json:
    """How long the prompt of a request would be, which may be more than the context has."""
    service.model_named(request.model)
    chat = ChatRequest(**fields_of(request))
    try:
        ids, _, _ = await service.in_pool(prompt_of, service, chat)
    except ApiError as error:
        if error.code != "context_length_exceeded":
            raise renamed(error, NAMES) from None
        return Json({"input_tokens": error.more["n_prompt_tokens"]})
    return Json({"input_tokens": len(ids)})


# ----------------------------------------------------------------------------------------------------------
# The answer

REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


class MessagesAnswer(Translated):
    """The answer to a MessagesRequest: a message whose content are the blocks of the reply."""

    names = NAMES

    def __init__(self, chat: Chats, request: MessagesRequest) -> None:
        super().__init__(chat, request.stream)
        self.omits = request.thinking is not None and request.thinking.display == "omitted"
        self.begun = False

    def _message(self, content: list[dict[str, Any]], **ended: Any) -> dict[str, Any]:
        head = {"id": self.id, "type": "message", "role": "assistant", "model": self.model}
        nothing = {"stop_reason": None, "stop_sequence": None}
        return head | {"content": content} | nothing | ended | {"usage": self._usage()}

    def _usage(self) -> dict[str, Any]:
        taken = usage_of(self.jobs)
        cached = taken["prompt_tokens_details"]["cached_tokens"]
        return {
            "input_tokens": taken["prompt_tokens"] - cached,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": cached,
            "output_tokens": self.blocks.tokens,
            "output_tokens_details": {"thinking_tokens": self.blocks.thought_tokens},
        }

    def _stopped(self) -> dict[str, Any]:
        """Why the reply has ended."""
        reason = REASONS[self.reply.finish_reason(self.job)]
        if reason == "end_turn" and isinstance(self.job.stop, str):
            return {"stop_reason": "stop_sequence", "stop_sequence": self.job.stop}
        return {"stop_reason": reason, "stop_sequence": None}

    def told(self) -> dict[str, Any]:
        """The message. A call that was cut is none: there is no object that it would be."""
        blocks = [block for block in self.blocks.all if not (block.kind == "call" and block.cut)]
        content = [self._content(block) for block in blocks]
        return self._message(content, **self._stopped()) | self.receipt()

    def _content(self, block: Block) -> dict[str, Any]:
        """A block that is whole."""
        if block.kind == "call":
            return self._empty(block) | {"input": msgspec.Raw(block.text.encode())}
        return self._empty(block) | {NAMED[block.kind]: self._shown(block, block.text)}

    def _empty(self, block: Block) -> dict[str, Any]:
        """A block that begins."""
        if block.kind == "call":
            return {"type": "tool_use", "id": block.id, "name": block.name, "input": {}}
        if block.kind == "reasoning":
            return {"type": "thinking", "thinking": "", "signature": ""}
        return {"type": "text", "text": ""}

    def _shown(self, block: Block, text: str) -> str:
        return "" if self.omits and block.kind == "reasoning" else text

    # ------------------------------------------------------------------------------------------------------
    # Events

    def pieces(self, index: int, event: StreamEvent) -> Iterator[dict[str, Any]]:
        if not self.begun:  # not before it is known what was cached
            self.begun = True
            yield {"type": "message_start", "message": self._message([])}
        for step in self.blocks.take(event):
            yield from self._told(step)

    def _told(self, step: Step) -> Iterator[dict[str, Any]]:
        """The events of a step."""
        block = step.block
        if step.what == "begin":
            start = {"type": "content_block_start", "index": block.index}
            yield start | {"content_block": self._empty(block)}
        elif step.what == "end":
            yield {"type": "content_block_stop", "index": block.index}
        elif piece := self._shown(block, step.piece):
            delta = {"type": DELTAS[block.kind], NAMED[block.kind]: piece}
            yield {"type": "content_block_delta", "index": block.index, "delta": delta}

    def finish(self) -> Iterator[dict[str, Any]]:
        ended = {"delta": self._stopped(), "usage": self._usage()}
        yield {"type": "message_delta"} | ended | self.receipt()
        yield {"type": "message_stop"}

    def failed(self, error: ApiError) -> Iterator[dict[str, Any]]:
        yield shaped(error, PATH).body


# The types of deltas, and what holds the text of a block and of a delta
DELTAS = {"reasoning": "thinking_delta", "text": "text_delta", "call": "input_json_delta"}
NAMED = {"reasoning": "thinking", "text": "text", "call": "partial_json"}
