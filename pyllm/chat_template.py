"""Renders a model's Jinja chat template the way transformers does (apply_chat_template), in a sandbox:
templates are untrusted.

Only the text is made here; which messages there are and what becomes of the text is the caller's affair."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import lru_cache
from typing import Any

import numpy as np

OLDEST = (3, 1, 6)  # jinja2 before it has known ways out of the sandbox
REASONING = ("reasoning_content", "thinking", "reasoning")  # names of a reply's reasoning in a message
END = "CONTINUE_FINAL_MESSAGE_TAG "  # marks where a message to be continued ends; transformers' own word


class TemplateError(ValueError):
    """The template is wrong, or refuses these messages."""


def render(
    template: str,
    messages: list[dict],
    *,
    add_generation_prompt: bool = True,
    continue_final_message: bool | str = False,
    tools: list[dict] | None = None,
    documents: list[dict] | None = None,
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

    Raises TemplateError when the template is wrong or raises, TypeError or ValueError for arguments that make
    no sense, ImportError when jinja2 is missing or too old.

    >>> render("{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}", [{"role": "user",
    "content": "hi"}]) '<user>hi'"""
    import_jinja2()
    import jinja2

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
    if strftime_now is not None:
        extra["strftime_now"] = strftime_now
    try:
        text = compile_template(template).render(
            messages=chat,
            tools=plain(tools),
            documents=plain(documents),
            add_generation_prompt=add_generation_prompt,
            **{key: value if value is strftime_now else plain(value) for key, value in extra.items()},
        )
    except jinja2.TemplateSyntaxError as error:
        raise TemplateError(f"the chat template is wrong in line {error.lineno}: {error.message}") from None
    except (
        jinja2.TemplateError,
        TypeError,
        ValueError,
        LookupError,
        AttributeError,
        ArithmeticError,
        RuntimeError,
        MemoryError,
        SyntaxError,
    ) as error:
        raise TemplateError(f"the chat template refuses this conversation: {error}") from None
    return cut_at_end(text, final) if continue_final_message else text


def mark_end(template: str, chat: list[dict], field: bool | str) -> str:
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
    return final


def cut_at_end(text: str, final: str) -> str:
    """The text up to END."""
    if final.strip() not in text or END.strip() not in text:
        raise TemplateError("continue_final_message: the chat template drops the end of the last message")
    at = text.rindex(END.strip())
    whole = text.startswith(END, at)  # else the template has stripped the message
    return text[:at] if whole else text[:at].rstrip()


def import_jinja2() -> None:
    """Raises ImportError with what to do when jinja2 is missing or too old."""
    try:
        import jinja2
    except ImportError:
        raise ImportError("chat templates need the library jinja2: pip install jinja2") from None
    numbers = tuple(int(part) for part in jinja2.__version__.split(".")[:3] if part.isdigit())
    if numbers < OLDEST:
        raise ImportError(
            f"chat templates need jinja2 3.1.6 or newer, not {jinja2.__version__}: pip install -U jinja2"
        )


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


def with_reasoning(message: dict) -> dict:
    """A reply's reasoning under all the names that templates read it under."""
    for key in REASONING:
        if message.get(key) is not None:
            return {"thinking": message[key], **message, "reasoning_content": message[key]}
    return message


def constants(template: str) -> list[str]:
    """The words in quotes in a template, once each."""
    import jinja2

    tree = compile_template(template).environment.parse(template)
    texts = [node.value for node in tree.find_all(jinja2.nodes.Const) if isinstance(node.value, str)]
    return sorted({text for text in texts if text.strip() == text != ""})


@lru_cache(maxsize=8)
def compile_template(template: str) -> Any:
    """The compiled template, in the environment that transformers' _compile_jinja_template sets up."""
    import jinja2
    import jinja2.ext
    import jinja2.nodes
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(jinja2.ext.Extension):
        """{% generation %} ... {% endgeneration %} marks replies for training; the text inside is passed
        on."""

        tags = {"generation"}

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.CallBlock(self.call_method("body"), [], [], body).set_lineno(line)

        def body(self, caller: Any) -> str:
            return caller()

    class Namespace(jinja2.utils.Namespace):
        """Without names that begin with an underscore."""

        def __init__(*args: Any, **kwargs: Any) -> None:
            values = dict(*args[1:], **kwargs)
            for name in values:
                check(name)
            jinja2.utils.Namespace.__init__(args[0], values)

        def __setitem__(self, name: str, value: Any) -> None:
            check(name)
            super().__setitem__(name, value)

    class Dict:
        """The constructor `dict`, without the class's other attributes."""

        def __call__(self, *args: Any, **kwargs: Any) -> dict:
            return dict(*args, **kwargs)

        def fromkeys(self, *args: Any) -> dict:
            return dict.fromkeys(*args)

    def check(name: Any) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise jinja2.exceptions.SecurityError(f"a namespace cannot have an attribute {name!r}")

    def tojson(
        value: Any,
        ensure_ascii: bool = False,
        indent: Any = None,
        separators: Any = None,
        sort_keys: bool = False,
    ) -> str:
        return json.dumps(
            value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
        )

    def raise_exception(message: str) -> None:
        raise jinja2.exceptions.TemplateError(message)

    def strftime_now(pattern: str) -> str:
        return datetime.now().strftime(pattern)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals |= {
        "raise_exception": raise_exception,
        "strftime_now": strftime_now,
        "dict": Dict(),
        "namespace": Namespace,
    }
    return environment.from_string(template)
