"""Conversations: their options, telling one from a list of them, making the prompt of one, and parting a
reply from its reasoning.

Rendering is chat_template.py; running the prompt is engine.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

from pyllm.binding import integer
from pyllm.chat_template import REASONING, render
from pyllm.grammar import Marks
from pyllm.sampling import Completion, StreamEvent, unfinished

Message = Mapping[str, Any]  # {"role": "user", "content": "..."}, and what else the template knows
Show = Literal["show", "hide", "apart"]

MARKS = (
    Marks("<think>", "</think>"),
    Marks("[THINK]", "[/THINK]"),
    Marks("<|channel>thought", "<channel|>"),  # Gemma 4
    Marks(  # gpt-oss
        "<|channel|>analysis<|message|>",
        "<|end|><|start|>assistant<|channel|>final<|message|>",
        "<|channel|>final<|message|>",
    ),
    Marks("<|think|>", "<|end|><|begin|>assistant<|content|>", "<|content|>"),  # Solar Open
    Marks("<seed:think>", "</seed:think>"),  # Seed-OSS
    Marks("<think:opensource>", "</think:opensource>"),  # Hy3
    Marks("<|inner_prefix|>", "<|inner_suffix|>"),  # Apertus
    Marks("<|START_THINKING|>", "<|END_THINKING|>"),  # Command R7B and later
)


class Reasoning(str):
    """A piece of a streamed reply that belongs to its reasoning."""


@dataclass(frozen=True, kw_only=True)
class ChatOptions:
    """What becomes of a conversation before and after the model.

    chat_template           a Jinja template, or the name of one of the model's: "default" or "tool_use", for
                            most models the same; None: "tool_use" with tools, else "default"
    tools, documents        passed to the template: JSON schemas, {"title": ..., "text": ...}
    add_generation_prompt   whether the prompt ends with the beginning of the assistant's reply
    continue_final_message  whether the last message is to be continued, with add_generation_prompt=False; or
                            the name of what is to be continued in it, such as "reasoning_content"
    template_kwargs         further variables of the template, such as {"enable_thinking": False}
    reasoning               what becomes of the reasoning that a thinking model's reply begins with, up to
                            </think> (or what the model has for it, see MARKS): "show": it stays in the text,
                            as it was generated; "hide": it is left out; "apart": the Completion has it as
                            reasoning_content. Without reasoning, the mark of that (gpt-oss) is left out
    reasoning_budget        tokens that the reasoning may have: then its end mark is the only thing that may
                            come, and the reply follows; 0: none, and enable_thinking is False where the
                            template knows that; None: no limit
    trust_messages          whether control tokens in messages, tools, documents and template_kwargs count as
                            such, as transformers has it; False: they are text, and cannot forge a turn
    """

    chat_template: str | None = None
    tools: list[dict[str, Any]] | None = None
    documents: list[dict[str, Any]] | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool | str = False
    template_kwargs: Mapping[str, Any] | None = None
    reasoning: Show = "show"
    reasoning_budget: int | None = None
    trust_messages: bool = True

    def __post_init__(self) -> None:
        if self.reasoning not in get_args(Show):
            shows = ", ".join(get_args(Show))
            raise ValueError(f"reasoning must be one of {shows}, not {self.reasoning!r}")
        if self.reasoning_budget is not None:
            integer("reasoning_budget", self.reasoning_budget, 0)


def options_for(options: ChatOptions | None, overrides: dict[str, Any]) -> tuple[ChatOptions, dict[str, Any]]:
    """The options with those of the overrides that are theirs, and the other overrides."""
    if not isinstance(options, (ChatOptions, type(None))):
        raise TypeError(f"options must be ChatOptions, not {options!r:.60}")
    own = {field.name for field in fields(ChatOptions)} & overrides.keys()
    rest = {name: value for name, value in overrides.items() if name not in own}
    return replace(options or ChatOptions(), **{name: overrides[name] for name in own}), rest


def is_batch(messages: Sequence[Message] | Sequence[Sequence[Message]]) -> bool:
    """Whether this is a list of conversations, not one conversation. Raises TypeError or ValueError when
    neither."""
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
        raise TypeError(f"messages must be a list of dicts with role and content, not {messages!r:.60}")
    if not messages:
        raise ValueError("messages is empty")
    return not isinstance(messages[0], Mapping)


def render_conversation(
    template: str, messages: Sequence[Message], variables: Mapping[str, Any], options: ChatOptions
) -> str:
    """The prompt's text. variables: what the template may refer to beside render()'s own arguments."""
    if is_batch(messages):
        raise TypeError(f"a message is a dict with role and content, not {messages[0]!r:.60}")
    arguments: dict[str, Any] = dict(
        tools=options.tools,
        documents=options.documents,
        add_generation_prompt=options.add_generation_prompt,
        continue_final_message=options.continue_final_message,
    )
    if twice := sorted(variables.keys() & {"messages", "template", "chat_template", *arguments}):
        raise TypeError(f"template_kwargs must not hold {', '.join(twice)}")
    chat: list[Any] = list(messages)
    return render(template, chat, **arguments, **variables)


def marks_of(template: str, encode: Callable[[str], list[int]]) -> Marks | None:
    """The marks of a model's reasoning: those that its template writes, or that are tokens of it; None: it
    has none."""
    return next((m for m in MARKS if m.sign in template or len(encode(m.sign)) == 1), None)


def closing_of(template: str, end: str) -> str:
    """The text that ends a thought, with the line ends that a template writes around it."""
    found: list[str] = re.findall(rf"""["']((?:\\n)*{re.escape(end)}(?:\\n)*)""", template)
    return max(found, key=len, default=end).replace("\\n", "\n")


def ends_inside(text: str, marks: Marks, messages: Sequence[Message], continued: bool | str) -> bool:
    """Whether a prompt ends inside the reasoning: its text does, or the last message that it continues."""
    begin, end, _ = marks
    if not continued:
        return text.rstrip().endswith(begin)
    content = messages[-1].get("content")
    return continued in REASONING or (isinstance(content, str) and content.rfind(begin) > content.rfind(end))


class Parting:
    """Parts a reply from the reasoning that it begins with, piece by piece. White space around the reasoning
    belongs to neither. A reply that does not begin with reasoning stays as it is.

    marks  the texts around the reasoning
    begun  whether the prompt has ended with the first of them
    shown  whether the reasoning stays in the reply; then the mark of an answer without one goes alone
    """

    def __init__(self, marks: Marks, begun: bool, shown: bool = False) -> None:
        self.marks, self.begun = marks, begun
        self.starts = marks.starts[1:] if shown else marks.starts
        self.place = "start" if not begun else "reply" if shown else "reasoning"
        self.held = ""  # text that may turn out to be a mark, or white space before one
        self.given: list[str] = []  # texts of the reply, and Reasoning

    def feed(self, piece: str, last: bool = False) -> list[str]:
        """What this piece makes certain; last: nothing more will come."""
        first = len(self.given)
        self.held += piece
        if self.place == "start":
            self._start(last)
        if self.place == "reasoning":
            end = self.marks.end
            text, found, rest = self.held.partition(end)
            certain = text if found or last else text[: unfinished(text, [end])]
            self._give(Reasoning(certain.rstrip() if self.given else certain.strip()))
            self.held = rest if found else text[len(certain.rstrip()) :]
            self.place = "behind" if found else "reasoning"
        if self.place in ("behind", "plain"):
            self.held = self.held.lstrip()
            self.place = "reply" if self.held else self.place
        if self.place == "reply":
            self._give(self.held)
            self.held = ""
        return self.given[first:]

    def _start(self, last: bool) -> None:
        """Looks for the mark that the reply begins with, if it does."""
        text = self.held.lstrip()
        mark = next((mark for mark in self.starts if text.startswith(mark)), None)
        if mark is not None:
            self.place = "reasoning" if mark == self.marks.begin else "plain"
            self.held = text[len(mark) :]
        elif last or not any(mark.startswith(text) for mark in self.starts):
            self.place = "reply"

    def _give(self, text: str) -> None:
        if text:
            self.given.append(text)

    def run(
        self, events: Generator[StreamEvent, None, Completion], how: Show
    ) -> Generator[StreamEvent, None, Completion]:
        """The events of a stream with their texts parted; those of the reasoning if it is wanted "apart"."""
        with closing(events):
            while True:
                try:
                    event = next(events)
                except StopIteration as end:
                    return self.parted(end.value, how)
                given = self.feed(event.text, last=event.finish_reason is not None)
                text = "".join(piece for piece in given if not isinstance(piece, Reasoning))
                thought = "".join(piece for piece in given if isinstance(piece, Reasoning))
                yield replace(event, text=text, reasoning_content=thought if how == "apart" else "")

    def parted(self, whole: Completion, how: Show) -> Completion:
        """The Completion without its reasoning, which "apart" keeps as reasoning_content."""
        text = "".join(text for text in self.given if not isinstance(text, Reasoning))
        thought = "".join(text for text in self.given if isinstance(text, Reasoning))
        return replace(whole, text=text, reasoning_content=thought or None if how == "apart" else None)


def pieces_of(events: Generator[StreamEvent, None, Completion]) -> Generator[str, None, Completion]:
    """The texts of a stream alone; those of reasoning as Reasoning."""
    with closing(events):
        while True:
            try:
                event = next(events)
            except StopIteration as end:
                whole: Completion = end.value
                return whole
            if event.reasoning_content:
                yield Reasoning(event.reasoning_content)
            if event.text:
                yield event.text
