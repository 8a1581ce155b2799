"""Renders a model's Jinja chat template the way transformers does (apply_chat_template).

Templates are untrusted: a sandbox keeps them from this machine, and a process of their own
(template_worker.py) keeps what they cost from this one. Only the text is made here; which messages there are
and what becomes of the text is the caller's affair."""

from __future__ import annotations

import dataclasses
import json
import marshal
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import numpy as np

from pyllm.workers import Ended, Late, Workers

OLDEST = (3, 1, 6)  # jinja2 before it has known ways out of the sandbox
REASONING = ("reasoning_content", "thinking", "reasoning")  # names of a reply's reasoning in a message
END = "CONTINUE_FINAL_MESSAGE_TAG "  # marks where a message to be continued ends; transformers' own word

# What a template may cost
SECONDS = 5.0
MAX_TEMPLATE = 1 << 20  # characters
MAX_CONVERSATION = 16 << 20  # bytes of the messages, tools, documents and variables
MAX_TEXT = 16 << 20  # bytes of the text: millions of tokens
MEMORY = 512 << 20  # bytes that the process may take beside those that it starts with

WORKERS = Workers("template_worker.py", MEMORY, "renders chat templates")


class TemplateError(ValueError):
    """The template is wrong, refuses these messages, or exceeds a limit."""


class LimitError(TemplateError):
    """The template takes too much time or memory, or something is too long."""


def render(
    template: str,
    messages: list[dict[str, Any]],
    *,
    add_generation_prompt: bool = True,
    continue_final_message: bool | str = False,
    tools: list[dict[str, Any]] | None = None,
    documents: list[dict[str, Any]] | None = None,
    strftime_now: Callable[[str], str] | None = None,
    **extra: Any,
) -> str:
    """The text of a conversation.

    template                Jinja source
    messages                [{"role": "user", "content": "..."}, ...], as the template expects them; what is
                            None is left out
    add_generation_prompt   end with the beginning of the assistant's reply
    continue_final_message  end inside the last message, which is to be continued: in its content, or in what
                            is named here ("reasoning_content")
    tools, documents        passed to the template: JSON schemas, {"title": ..., "text": ...}
    strftime_now            gives the template the date; None: the clock
    extra                   further variables: bos_token, eos_token, what the template itself documents

    Raises TemplateError when the template is wrong, raises, or exceeds the limits above, TypeError or
    ValueError for arguments that make no sense, ImportError when jinja2 is missing or too old, RuntimeError
    when the process for it cannot be started.

    >>> render("{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}",
    ...        [{"role": "user", "content": "hi"}])
    '<user>hi'
    """
    import_jinja2()
    for kind, items in (
        ("message is a dict with role and content", messages),
        ("tool is a dict with a JSON schema (of a function: transformers.utils.get_json_schema)", tools),
        ("document is a dict with title and text", documents),
    ):
        if wrong := [item for item in items or () if not isinstance(item, Mapping)]:
            raise TypeError(f"a {kind}, not {wrong[0]!r:.60}")
    chat = [with_reasoning(plain({k: v for k, v in m.items() if v is not None})) for m in messages]
    if continue_final_message:
        if add_generation_prompt:
            raise ValueError("continue_final_message needs add_generation_prompt=False")
        final = mark_end(template, chat, continue_final_message)
    if strftime_now is not None and not callable(strftime_now):
        extra["strftime_now"], strftime_now = strftime_now, None
    with refusals():
        variables = dict(
            messages=chat,
            tools=plain(tools),
            documents=plain(documents),
            add_generation_prompt=add_generation_prompt,
            **{key: plain(value) for key, value in extra.items()},
        )
    text = ask(b"T", template, variables, strftime_now)
    return cut_at_end(text, final) if continue_final_message else text


def mark_end(template: str, chat: list[dict[str, Any]], field: bool | str) -> str:
    """Puts END behind the last message's text, which is returned."""
    field = field if isinstance(field, str) else "content"
    if not chat or (final := chat[-1].get(field)) is None:
        raise ValueError(f"continue_final_message: the last message has no {field!r} to continue")
    fields = [key for key in REASONING if chat[-1].get(key) == final] if field in REASONING else [field]
    if not any(key in template for key in fields):
        raise ValueError(f"continue_final_message: the chat template does not know {field!r}")
    if isinstance(final, (list, tuple)):
        blocks = [block for block in final if "text" in block]
        if not blocks:
            raise ValueError("continue_final_message: the last message has no text to continue")
        final = blocks[-1]["text"]
        blocks[-1]["text"] += END
    else:
        for key in fields:
            chat[-1][key] += END
    return str(final)


def cut_at_end(text: str, final: str) -> str:
    """The text up to END."""
    if final.strip() not in text or END.strip() not in text:
        raise TemplateError("continue_final_message: the chat template drops the end of the last message")
    at = text.rindex(END.strip())
    whole = text.startswith(END, at)  # else the template has stripped the message
    return text[:at] if whole else text[:at].rstrip()


def import_jinja2() -> list[str]:
    """The folders that jinja2 and what it needs are in; ImportError with what to do when jinja2 is missing or
    too old."""
    try:
        import jinja2
        import markupsafe
    except ImportError:
        raise ImportError("chat templates need the library jinja2: pip install jinja2") from None
    numbers = tuple(int(part) for part in jinja2.__version__.split(".")[:3] if part.isdigit())
    if numbers < OLDEST:
        raise ImportError(
            f"chat templates need jinja2 3.1.6 or newer, not {jinja2.__version__}: pip install -U jinja2"
        )
    files = (os.path.abspath(module.__file__ or "") for module in (jinja2, markupsafe))
    return [os.path.dirname(os.path.dirname(file)) for file in files]


@contextmanager
def refusals() -> Iterator[None]:
    """What goes wrong with the values that a template is given is a TemplateError."""
    try:
        yield
    except TemplateError:
        raise
    except (
        TypeError,
        ValueError,
        LookupError,
        AttributeError,
        ArithmeticError,
        RuntimeError,
        MemoryError,
    ) as error:
        raise TemplateError(f"the chat template refuses this conversation: {error}") from None


def plain(value: Any) -> Any:
    """A copy made of plain JSON types, so that the template meets no object with methods of its own."""
    if value is None or isinstance(value, bool):
        return value
    for kind in (str, int, float):
        if isinstance(value, kind):
            return getattr(kind, f"__{kind.__name__}__")(value)
    if isinstance(value, Mapping):
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return (list if isinstance(value, list) else tuple)(plain(item) for item in value)
    if isinstance(value, np.generic):
        return plain(value.item())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if callable(getattr(value, "model_dump", None)):  # of pydantic
        return plain(value.model_dump())
    return f"<{type(value).__name__}>"


def with_reasoning(message: dict[str, Any]) -> dict[str, Any]:
    """A reply's reasoning under all the names that templates read it under."""
    for key in REASONING:
        if message.get(key) is not None:
            return {"thinking": message[key], **message, "reasoning_content": message[key]}
    return message


def constants(template: str) -> list[str]:
    """The words in quotes in a template, once each."""
    words: list[str] = json.loads(ask(b"C", template))
    return words


def ask(
    what: bytes,
    template: str,
    variables: dict[str, Any] | None = None,
    strftime_now: Callable[[str], str] | None = None,
) -> str:
    """What the process that renders templates makes of this one: its text (b"T"), or its words (b"C")."""
    paths = import_jinja2()
    if len(template) > MAX_TEMPLATE:
        raise LimitError(f"the chat template has {len(template)} characters, more than {MAX_TEMPLATE}")
    with refusals():
        question = marshal.dumps((what, template, variables, SECONDS, MAX_TEXT))
    if len(question) > MAX_CONVERSATION + 4 * MAX_TEMPLATE:
        raise LimitError(f"the conversation has more than {MAX_CONVERSATION >> 20} MiB")

    def date(pattern: str) -> bytes:
        with refusals():
            return marshal.dumps(plain((strftime_now or datetime.now().strftime)(pattern)))

    try:
        kind, text = WORKERS.ask(question, paths, SECONDS, MAX_TEXT, date)
    except Late:
        raise LimitError(f"the chat template takes more than {SECONDS:g} s") from None
    except Ended as error:
        raise LimitError(f"the process that renders the chat template has ended twice ({error})") from None
    if kind != b"T":
        raise (LimitError if kind == b"L" else TemplateError)(text)
    return text
