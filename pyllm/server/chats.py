"""POST /v1/chat/completions: conversations get their next reply."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from copy import copy
from dataclasses import replace
from typing import Any

from pyllm.binding import LLMError
from pyllm.call_formats import format_of, knows_tools, tools_of, with_objects, without_tools
from pyllm.call_parser import Delta, Parser
from pyllm.calls import Calls
from pyllm.chat import ChatOptions, Parting, Reasoning
from pyllm.chat_template import TemplateError
from pyllm.engine import LLM
from pyllm.grammar import Constraint
from pyllm.sampling import Continuation, SamplingParams, StreamEvent
from pyllm.server.answer import Generated, shown_extras
from pyllm.server.errors import bad
from pyllm.server.logprobs import chat_logprobs, prompt_logprobs
from pyllm.server.sampling_fields import (
    alternatives_of,
    check_sizes,
    count_of,
    limit_of,
    params_of,
    refused,
    seeds_of,
)
from pyllm.server.schemas import ChatRequest, ranged
from pyllm.server.service import Service
from pyllm.server.stamps import Stamp, stamp

LIMITS = ("max_tokens", "max_completion_tokens")  # the smaller one counts

# Of a model that has no template: the texts of the messages, to be continued
PLAIN = """\
{{- bos_token -}}
{%- for message in messages -%}
{{ message.content }}{{ "" if loop.last else "\n\n" }}
{%- endfor -%}
"""


# What reasoning_effort may be with a template that does not know it, and what there is without
EFFORTS, USUAL = ("none", "minimal", "low", "medium", "high", "xhigh", "max"), "medium"
# Names of what the reasoning may have: Python's, vLLM's, llama-server's
BUDGETS = ("reasoning_budget", "thinking_token_budget", "thinking_budget_tokens")


class Reply:
    """The reply of one job, as far as it has come: its reasoning, its text, its calls."""

    def __init__(self, parting: Parting, parser: Parser | None) -> None:
        self.parting, self.parser = copy(parting), parser
        self.parting.given = []
        self.begun = False  # whether the role was sent

    def feed(self, text: str, reason: str | None, stop: int | str | None) -> tuple[str, str, list[Delta]]:
        """What a piece adds: (reasoning, text, calls). reason, stop: why it was the last one; None: it was
        not."""
        last, cut = reason is not None, reason == "length" or isinstance(stop, str)
        given = self.parting.feed(text, last)
        thought = "".join(piece for piece in given if isinstance(piece, Reasoning))
        answer = "".join(piece for piece in given if not isinstance(piece, Reasoning))
        if self.parser is None:
            return thought, answer, []
        return thought, *self.parser.feed(answer, last, cut)

    def finish_reason(self, job: Continuation) -> str:
        """Why it ended: a call that is cut is no call."""
        calls = self.parser is not None and 0 < self.parser.count == self.parser.whole
        return "tool_calls" if calls and job.finish_reason == "stop" else job.finish_reason


class Chats(Generated):
    """The answer to a ChatRequest: a choice for each job."""

    path = "/v1/chat/completions"

    def __init__(
        self,
        service: Service,
        request: ChatRequest,
        model: str,
        jobs: Sequence[Continuation],
        parting: Parting,
        calls: Calls | None,
        stamp: Stamp,
    ) -> None:
        kind = "chat.completion.chunk" if request.stream else "chat.completion"
        super().__init__(service, request, model, jobs, stamp, kind, len(jobs))
        self.request = request
        self.replies = [
            Reply(
                parting, calls.parser(job.seed + len(job.prompt), calls.control(job.model)) if calls else None
            )
            for job in jobs
        ]

    def finish_reason(self, index: int) -> str:
        return self.replies[index].finish_reason(self.jobs[index])

    def _reasoning(self, thought: str) -> dict[str, Any]:
        """Reasoning under both names that clients know."""
        if not thought or self.request.include_reasoning is False:
            return {}
        return {"reasoning_content": thought, "reasoning": thought}

    def whole(self) -> dict[str, Any]:
        choices = []
        for index, job in enumerate(self.jobs):
            thought, text, deltas = self.replies[index].feed("".join(job.parts), job.finish_reason, job.stop)
            message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
            message |= self._reasoning(thought)
            if deltas:
                message |= {"content": text or None, "tool_calls": whole_calls(deltas)}
            choice = {"index": index, "message": message, "logprobs": None} | self.ended(index, True)
            choice |= shown_extras(job)
            if job.logprobs is not None:
                choice["logprobs"] = chat_logprobs(self.service.texts, job.logprobs)
            if self.request.return_token_ids:
                choice["token_ids"] = job.tokens
            choices.append(choice)
        whole: dict[str, Any] = self.head | {"choices": choices} | self.summary()
        first = self.jobs[0]
        if first.prompt_logprobs is not None:
            whole["prompt_logprobs"] = prompt_logprobs(self.service.texts, first.prompt_logprobs)
        if self.request.return_token_ids:
            whole["prompt_token_ids"] = first.prompt
        return whole

    def pieces(self, index: int, event: StreamEvent) -> Iterator[dict[str, Any]]:
        reply = self.replies[index]
        if not reply.begun:
            reply.begun = True
            yield self._chunk(index, {"role": "assistant", "content": ""}, False)
        finished = event.finish_reason is not None
        thought, text, deltas = reply.feed(event.text, event.finish_reason, event.stop)
        delta = self._reasoning(thought)
        if deltas:
            delta["tool_calls"] = [shown_delta(each) for each in deltas]
        if text or not (thought or deltas):
            delta["content"] = text
        chunk = self._chunk(index, delta, finished)
        choice = chunk["choices"][0]
        if event.logprobs is not None:
            choice["logprobs"] = chat_logprobs(self.service.texts, event.logprobs)
        if self.request.return_token_ids:
            choice["token_ids"] = event.tokens
        yield chunk

    def _chunk(self, index: int, delta: dict[str, Any], finished: bool) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": None} | self.ended(index, finished)
        return self.head | {"choices": [choice]} | self.usage_so_far(self.jobs[index])


def shown_delta(delta: Delta) -> dict[str, Any]:
    """What a piece of a stream adds to a call."""
    if delta.name is None:
        return {"index": delta.index, "function": {"arguments": delta.arguments}}
    function = {"name": delta.name, "arguments": delta.arguments}
    return {"index": delta.index, "id": delta.id, "type": "function", "function": function}


def whole_calls(deltas: Sequence[Delta]) -> list[dict[str, Any]]:
    """The calls that deltas add up to."""
    calls: list[dict[str, Any]] = []
    for delta in deltas:
        if delta.name is not None:
            function = {"name": delta.name, "arguments": ""}
            calls.append({"id": delta.id, "type": "function", "function": function})
        calls[delta.index]["function"]["arguments"] += delta.arguments
    return calls


def options_of(service: Service, request: Any) -> ChatOptions:
    """How the conversation of a request becomes a prompt."""
    kwargs = dict(request.chat_template_kwargs or {})
    if "chat_template" in kwargs:
        raise bad("chat_template_kwargs: a request cannot bring its own template", "chat_template_kwargs")
    continued = request.continue_final_message or False
    generates = request.add_generation_prompt
    if continued and generates:
        raise bad("continue_final_message needs add_generation_prompt: false", "continue_final_message")
    options = ChatOptions(
        chat_template=PLAIN if service.llm.chat_template is None else None,
        tools=None if getattr(request, "tool_choice", None) == "none" else request.tools,
        documents=getattr(request, "documents", None),
        add_generation_prompt=not continued if generates is None else generates,
        continue_final_message=continued,
        template_kwargs=kwargs,
        reasoning="apart",
        reasoning_budget=budget_of(request),
        trust_messages=service.settings.trust_messages,
    )
    effort = getattr(request, "reasoning_effort", None)
    return options if effort is None else with_effort(service.llm, options, effort)


def with_effort(llm: LLM, options: ChatOptions, effort: str) -> ChatOptions:
    """The options with reasoning_effort: told to a template that knows it; else what there is of it, which is
    whether to reason at all. ApiError for what would come to nothing with a model that does reason."""
    template, without = llm._template(options), effort in ("none", "minimal")
    known = "reasoning_effort" in template
    if not known and effort not in EFFORTS:
        raise bad(f"reasoning_effort must be one of {', '.join(EFFORTS)}", "reasoning_effort")
    switch = known or without or effort == USUAL or "enable_thinking" in template
    if not switch and llm._thinks(options):
        raise bad(
            f"reasoning_effort: the model's template does not know it, and cannot have {effort}",
            "reasoning_effort",
            "unsupported_parameter",
        )
    kwargs = {"reasoning_effort": effort, "enable_thinking": not without} | dict(
        options.template_kwargs or {}
    )
    budget = 0 if without and not known and options.reasoning_budget is None else options.reasoning_budget
    return replace(options, template_kwargs=kwargs, reasoning_budget=budget)


def budget_of(request: Any) -> int | None:
    """The tokens that the reasoning may have; None: no limit, which llama-server calls -1."""
    given = [(name, value) for name in BUDGETS if (value := getattr(request, name, None)) is not None]
    if not given:
        return None
    for name, value in given:
        ranged(name, value, -1, 2**31, 0)
        if value != given[0][1]:
            raise bad(f"{name} and {given[0][0]} do not say the same", name)
    value = given[0][1]
    return None if value == -1 else value


def prompt_of(service: Service, request: Any) -> tuple[list[int], Parting, ChatOptions]:
    """The ids of a conversation's prompt; ApiError when the model's template refuses it."""
    messages = [plain(message, i) for i, message in enumerate(request.messages)]
    if not messages:
        raise bad("messages is empty", "messages")
    options = options_of(service, request)
    if options.tools and not knows_tools(service.llm._template(options)):
        messages = without_tools(messages, options.tools)
        options = replace(options, tools=None)
    try:
        ids, parting = service.llm.chat_prompt(messages, options)
    except TemplateError as error:
        raise bad(f"messages: {error}", "messages", "template_error") from None
    except (LLMError, TypeError, ValueError) as error:
        field = "chat_template_kwargs" if f"{error}".startswith("template_kwargs") else "messages"
        raise bad(f"{error}".replace("template_kwargs", "chat_template_kwargs", 1), field) from None
    except RecursionError:
        raise bad("messages: nested too deeply", "messages") from None
    service.check_lengths([ids], "messages")
    return ids, parting, options


def calls_of(service: Service, request: ChatRequest, otherwise: Constraint | None) -> Calls | None:
    """The calls that a request allows; None: none. otherwise: what the reply is to be else."""
    choice = request.tool_choice
    if choice == "none" or (not request.tools and choice in (None, "auto")):
        return None
    if not request.tools:
        raise bad("tool_choice needs tools", "tool_choice")
    try:
        tools = tools_of(request.tools)
        form = format_of(service.llm._template(options_of(service, request)))
    except ValueError as error:
        raise bad(f"{error}", "tools") from None
    if len(tools) > service.settings.max_tools:
        raise bad(
            f"there are {len(tools)} tools, more than {service.settings.max_tools}", "tools", "too_large"
        )
    mode, names, parallel = choice_of(choice, {tool.name for tool in tools})
    allowed = [tool for tool in tools if tool.name in names]
    parallel = parallel and request.parallel_tool_calls is not False
    return Calls(form, allowed, mode == "required", parallel, otherwise)


def choice_of(choice: str | dict[str, Any] | None, names: Set[str]) -> tuple[str, Set[str], bool]:
    """What tool_choice says: "auto" or "required", which of the tools of these names may be called, and
    whether several at once. ApiError that names what is wrong with it."""
    if not isinstance(choice, dict):
        return choice or "auto", names, True
    if choice.get("type") == "allowed_tools":
        return *_allowed(choice.get("allowed_tools"), names), True
    name = name_of(choice)
    if name is None or name not in names:
        raise bad(f"tool_choice names no tool: {choice!r:.80}", "tool_choice")
    return "required", {name}, False


def _allowed(given: Any, names: Set[str]) -> tuple[str, Set[str]]:
    """What allowed_tools says: "auto" or "required", and the names. The prompt shows all tools, so that what
    was computed for it stays of use."""
    place = "tool_choice.allowed_tools"
    if not isinstance(given, dict):
        raise bad(f"{place} must be an object with mode and tools", place)
    mode, tools = given.get("mode"), given.get("tools")
    if mode not in ("auto", "required"):
        raise bad(f"{place}.mode must be auto or required", f"{place}.mode")
    if not isinstance(tools, list) or not tools:
        raise bad(f"{place}.tools must be a list of tools", f"{place}.tools")
    allowed = [name_of(tool) for tool in tools]
    for i, name in enumerate(allowed):
        if name not in names:
            name_place = f"{place}.tools[{i}].function.name"
            raise bad(f"{name_place} names no tool: {name!r:.80}", name_place)
    return mode, {name for name in allowed if name is not None}


def name_of(tool: Any) -> str | None:
    """The name of a function that tool_choice refers to."""
    function = tool.get("function") if isinstance(tool, dict) and tool.get("type") == "function" else None
    name = function.get("name") if isinstance(function, dict) else None
    return name if isinstance(name, str) else None


def plain(message: dict[str, Any], place: int) -> dict[str, Any]:
    """A message as templates know them: its content a text where it is a list of texts."""
    if not isinstance(message.get("role"), str):
        raise bad(f"messages[{place}].role must be a text", f"messages[{place}].role")
    try:
        message = with_objects(message)
    except ValueError as error:
        raise bad(f"messages[{place}]: {error}", f"messages[{place}].tool_calls") from None
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(text_of(part, f"messages[{place}].content[{i}]") for i, part in enumerate(content))
    elif not (content is None or isinstance(content, str)):
        raise bad(
            f"messages[{place}].content must be a text or a list of parts", f"messages[{place}].content"
        )
    return message | {
        "content": content,
        "role": "system" if message["role"] == "developer" else message["role"],
    }


def text_of(part: Any, name: str) -> str:
    """The text of a part of a message; ApiError for pictures and the like."""
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, dict) else None
    if kind in ("text", "input_text", "output_text") and isinstance(part.get("text"), str):
        return str(part["text"])
    if kind == "refusal" and isinstance(part.get("refusal"), str):
        return str(part["refusal"])
    raise bad(f"{name}: only texts are supported, not {kind!r:.40}", name, "unsupported_content")


async def chats(service: Service, request: ChatRequest, owner: str, kind: str = "chatcmpl-") -> Chats:
    """Checks everything, and makes the answer, which runs when it is sent. kind: how its id begins."""
    model = service.model_named(request.model)
    check_sizes(request, service.settings)
    mark = stamp(request, kind)
    count = count_of(request, service.settings)
    names = [name for name in LIMITS if getattr(request, name) is not None] or LIMITS[:1]
    limits = [limit_of(getattr(request, name), None, service.settings, name) for name in names]
    params = params_of(
        request,
        service.settings,
        max_tokens=min((limit for limit in limits if limit is not None), default=None),
        logprobs=alternatives_of(request, service.settings),
    )
    return await service.in_pool(_prepare, service, request, owner, model, params, count, mark)


def _prepare(
    service: Service,
    request: ChatRequest,
    owner: str,
    model: str,
    params: SamplingParams,
    count: int,
    mark: Stamp,
) -> Chats:
    llm, calls = service.llm, calls_of(service, request, params.constraint)
    ids, parting, options = prompt_of(service, request)
    reasoning = llm._reasoning(options, parting)
    try:
        bound, visible = None, llm._visible(options)
        if calls is not None:
            bound = [calls.state(llm._grammars, reasoning) for _ in range(count)]
            visible |= frozenset(calls.control(llm._open()).values())
        each = seeds_of(params, count)
        jobs = llm._prepare([ids] * count, each, {}, visible, [reasoning] * count, bound)
    except (LLMError, TypeError, ValueError) as error:
        raise refused(error, request) from None
    service.set_terms(jobs, owner, request)
    return Chats(service, request, model, jobs, parting, calls, mark)
