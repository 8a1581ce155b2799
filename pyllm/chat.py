"""Conversations: telling one from a list of them, and making the prompt of one.

Rendering is chat_template.py; running the prompt is engine.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pyllm.chat_template import render

Message = Mapping[str, Any]  # {"role": "user", "content": "..."}, and what else the template knows


def is_batch(messages: Sequence[Message] | Sequence[Sequence[Message]]) -> bool:
    """Whether this is a list of conversations, not one conversation. Raises TypeError or ValueError when
    neither."""
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
        raise TypeError(f"messages must be a list of dicts with role and content, not {messages!r:.60}")
    if not messages:
        raise ValueError("messages is empty")
    return not isinstance(messages[0], Mapping)


def render_conversation(
    template: str, messages: Sequence[Message], variables: Mapping[str, Any], **arguments: Any
) -> str:
    """The prompt's text. variables: what the template may refer to beside render()'s own arguments."""
    if is_batch(messages):
        raise TypeError(f"a message is a dict with role and content, not {messages[0]!r:.60}")
    if twice := sorted(variables.keys() & {"messages", "template", *arguments}):
        raise TypeError(f"template_kwargs must not hold {', '.join(twice)}")
    return render(template, list(messages), **arguments, **variables)
