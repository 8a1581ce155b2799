"""Conversations: telling one from a list of them, making the prompt of one, and parting a reply from its
reasoning.

Rendering is chat_template.py; running the prompt is engine.py.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any, Literal

from pyllm.chat_template import REASONING, render
from pyllm.sampling import Completion, unfinished

Message = Mapping[str, Any]  # {"role": "user", "content": "..."}, and what else the template knows
Show = Literal["show", "hide", "apart"]

MARKS = (("<think>", "</think>"), ("[THINK]", "[/THINK]"))  # around the reasoning of a reply


class Reasoning(str):
    """A piece of a streamed reply that belongs to its reasoning."""


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
    if twice := sorted(variables.keys() & {"messages", "template", "chat_template", *arguments}):
        raise TypeError(f"template_kwargs must not hold {', '.join(twice)}")
    chat: list[Any] = list(messages)
    return render(template, chat, **arguments, **variables)


def marks_of(template: str, encode: Callable[[str], list[int]]) -> tuple[str, str]:
    """The texts that begin and end the reasoning of a model: those that its template writes, or that are
    tokens of it."""
    return next((m for m in MARKS if m[1] in template or len(encode(m[1])) == 1), MARKS[0])


def ends_inside(
    text: str, marks: tuple[str, str], messages: Sequence[Message], continued: bool | str
) -> bool:
    """Whether a prompt ends inside the reasoning: its text does, or the last message that it continues."""
    begin, end = marks
    if not continued:
        return text.rstrip().endswith(begin)
    content = messages[-1].get("content")
    return continued in REASONING or (isinstance(content, str) and content.rfind(begin) > content.rfind(end))


class Parting:
    """Parts a reply from the reasoning that it begins with, piece by piece. White space around the reasoning
    belongs to neither. A reply that does not begin with reasoning stays as it is.

    marks  the texts around the reasoning
    begun  whether the prompt has ended with the first of them
    """

    def __init__(self, marks: tuple[str, str], begun: bool) -> None:
        self.begin, self.end = marks
        self.place = "reasoning" if begun else "start"
        self.held = ""  # text that may turn out to be a mark, or white space before one
        self.given: list[str] = []  # texts of the reply, and Reasoning

    def feed(self, piece: str, last: bool = False) -> list[str]:
        """What this piece makes certain; last: nothing more will come."""
        first = len(self.given)
        self.held += piece
        if self.place == "start":
            text = self.held.lstrip()
            if text.startswith(self.begin):
                self.place, self.held = "reasoning", text[len(self.begin) :]
            elif last or not self.begin.startswith(text):
                self.place = "reply"
        if self.place == "reasoning":
            text, found, rest = self.held.partition(self.end)
            certain = text if found or last else text[: unfinished(text, [self.end])]
            self._give(Reasoning(certain.rstrip() if self.given else certain.strip()))
            self.held = rest if found else text[len(certain.rstrip()) :]
            self.place = "behind" if found else "reasoning"
        if self.place == "behind":
            self.held = self.held.lstrip()
            self.place = "reply" if self.held else "behind"
        if self.place == "reply":
            self._give(self.held)
            self.held = ""
        return self.given[first:]

    def _give(self, text: str) -> None:
        if text:
            self.given.append(text)

    def run(self, pieces: Generator[str, None, Completion], how: Show) -> Generator[str, None, Completion]:
        """The pieces of a stream, Reasoning among them if it is wanted "apart"."""
        whole = None
        with closing(pieces):
            while whole is None:
                try:
                    given = self.feed(next(pieces))
                except StopIteration as end:
                    whole, given = end.value, self.feed("", last=True)
                yield from (text for text in given if how == "apart" or not isinstance(text, Reasoning))
        return self.parted(whole, how)

    def parted(self, whole: Completion, how: Show) -> Completion:
        """The Completion without its reasoning, which "apart" keeps as reasoning_content."""
        text = "".join(text for text in self.given if not isinstance(text, Reasoning))
        thought = "".join(text for text in self.given if isinstance(text, Reasoning))
        return replace(whole, text=text, reasoning_content=thought or None if how == "apart" else None)
