"""Renders a model's Jinja chat template the way transformers does (apply_chat_template), in a sandbox:
templates are untrusted.

Only the text is made here; which messages there are and what becomes of the text is the caller's affair."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from functools import lru_cache
from typing import Any

OLDEST = (3, 1, 6)  # jinja2 before it has known ways out of the sandbox


class TemplateError(ValueError):
    """The template is wrong, or refuses these messages."""


def render(
    template: str,
    messages: list[dict],
    *,
    add_generation_prompt: bool = True,
    tools: list[dict] | None = None,
    documents: list[dict] | None = None,
    **extra: Any,
) -> str:
    """The text of a conversation.

    template               Jinja source
    messages               [{"role": "user", "content": "..."}, ...], as the template expects them
    add_generation_prompt  end with the beginning of the assistant's reply
    tools, documents       passed to the template: JSON schemas, {"title": ..., "text": ...}
    extra                  further variables: bos_token, eos_token, what the template itself documents

    Raises TemplateError when the template is wrong or raises, ImportError when jinja2 is missing or too old.

    >>> render("{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}", [{"role": "user",
    "content": "hi"}]) '<user>hi'"""
    import_jinja2()
    import jinja2

    for message in messages:
        if not isinstance(message, Mapping):
            raise TypeError(f"a message is a dict with role and content, not {message!r}")
    try:
        return compile_template(template).render(
            messages=[with_reasoning(plain(message)) for message in messages],
            tools=plain(tools),
            documents=plain(documents),
            add_generation_prompt=add_generation_prompt,
            **{key: value if callable(value) else plain(value) for key, value in extra.items()},
        )
    except jinja2.TemplateSyntaxError as error:
        raise TemplateError(f"the chat template is wrong in line {error.lineno}: {error.message}") from None
    except (
        jinja2.TemplateError,
        TypeError,
        ValueError,
        KeyError,
        ArithmeticError,
        RecursionError,
        OverflowError,
    ) as error:
        raise TemplateError(f"the chat template refuses this conversation: {error}") from None


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
    if value is None or isinstance(value, (bool, float, int)):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, Mapping):
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return (
            type(value)(plain(item) for item in value)
            if type(value) in (list, tuple)
            else [plain(item) for item in value]
        )
    return f"<{type(value).__name__}>"


def with_reasoning(message: dict) -> dict:
    """A reply's reasoning under all the names that templates read it under."""
    for key in ("reasoning_content", "thinking", "reasoning"):
        if message.get(key) is not None:
            return {"thinking": message[key], **message, "reasoning_content": message[key]}
    return message


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
