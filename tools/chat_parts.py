"""Reduces a chat template to the pieces of text around the messages, so that a conversation can be made
without Jinja.

Some templates (Llama 2, Mistral) put a space before replies already given which is not in the text to be
continued: the model writes that space itself. A reply between the pieces is therefore the text as the model
wrote it.

The pieces are found by rendering conversations of marked messages, then checked: many conversations are
rendered by the template and put together from the pieces, and every text must be the same. A template that
fails is not guessed at: it has no pieces, and a reason."""

from __future__ import annotations

import datetime
import itertools
from collections.abc import Callable, Mapping

from pyllm import chat_template
from pyllm.chat_template import TemplateError

# Words that no template's own text has, nor anything that a template would transform
SYSTEM, USER, REPLY = "\u2983sys\u2984", "\u2983usr{}\u2984", "\u2983rep{}\u2984"

# Messages for the check: plain, with line breaks and markup inside, with characters that an escaping filter
# would change
TEXTS = (
    "Hello",
    "What is 2 + 2?\n\nThink, then answer.",
    "<b>\"quoted\" & 'single'</b> {{ braces }} {% x %}",
    "\u00e9\u4e2d\U0001f600 a  b",
    "- one\n- two\n",
    "\tTabbed  ",
    "  spaces around \n\n",
    "1",
)


class Irreducible(Exception):
    """The template does not consist of such pieces; why."""


def derive(template: str, special_tokens: Mapping[str, str]) -> tuple[list[str] | None, str]:
    """The six strings of LLM_CHAT_PARTS (llm.h) and "" or a remark; or None and the reason.

    A template without a system message, or with one that is not simply placed at the start, gets parts 0 and
    1 empty: no system message is possible then. Part 5 is "trim" when conversations agree only if all
    messages are stripped of white space at both ends first, which the user of the parts then must do."""
    try:
        return reduce(template, special_tokens)
    except (Irreducible, TemplateError, TypeError) as error:
        return None, " ".join(str(error).split())
    except ImportError:
        return None, "jinja2 was not installed when the model was converted"


def reduce(template: str, special_tokens: Mapping[str, str]) -> tuple[list[str], str]:
    """derive, with an exception for a template that cannot be reduced."""

    def render(messages: list[dict], day: int = 1) -> str:
        def strftime_now(pattern: str) -> str:
            return datetime.datetime(2001, 2, day, 3, 4, 5).strftime(pattern)

        return chat_template.render(template, messages, strftime_now=strftime_now, **special_tokens)

    users, replies = [USER.format(i) for i in range(3)], [REPLY.format(i) for i in range(2)]
    talk = render(conversation(None, users[:2], replies[:1]))
    if talk != render(conversation(None, users[:2], replies[:1]), day=28):
        raise Irreducible("the chat template puts the current date into the text")
    before, middle, between, end = split(talk, [users[0], replies[0], users[1]])
    lead = middle.removeprefix(end)
    if not middle.startswith(end) or lead.strip():
        raise Irreducible(
            "the chat template begins the reply to be generated differently from earlier replies"
        )
    parts = ["", "", before, end, between, ""]
    plain = list(conversations(system=False))
    why = disagreement(render, parts, plain, lead)
    if why:
        parts[5] = "trim"
        why = disagreement(render, parts, plain, lead)
    if why:
        raise Irreducible(why)

    remark = "the chat template has no place for a system message"
    try:
        text = render(conversation(SYSTEM, users[:1], []))
        first, second, last = split(text, [SYSTEM, users[0]])
        full = [first, second, *parts[2:]]
        if text != render(conversation(SYSTEM, users[:1], []), day=28):
            why = "it depends on the date"
        elif not first and not second:
            why = "nothing separates it from the user's message"
        else:
            why = disagreement(render, full, list(conversations(system=True)), lead)
        if not why:
            return check_text(full), ""
        remark += f" that is simply at the start: {why}"
    except (TemplateError, Irreducible):
        pass
    return check_text(parts), remark


def conversation(system: str | None, users: list[str], replies: list[str]) -> list[dict]:
    """Messages in order; the last is the user's."""
    messages = [{"role": "system", "content": system}] if system is not None else []
    for user, reply in itertools.zip_longest(users, replies):
        messages.append({"role": "user", "content": user})
        if reply is not None:
            messages.append({"role": "assistant", "content": reply})
    return messages


def conversations(system: bool) -> list[tuple[str | None, list[str], list[str]]]:
    """Conversations of one to four turns, every text of TEXTS in every place."""
    found = []
    n = len(TEXTS)
    for turns, shift in itertools.product((1, 2, 3, 4), range(n)):
        users = [TEXTS[(shift + 3 * i) % n] for i in range(turns)]
        replies = [TEXTS[(shift + 5 * i + 1) % n] for i in range(turns - 1)]
        found.append((TEXTS[(shift + 2 * turns) % n] if system else None, users, replies))
    return found


def split(text: str, marks: list[str]) -> list[str]:
    """The text around the marks, each of which must occur once and in this order."""
    pieces = []
    for mark in marks:
        if text.count(mark) != 1:
            raise Irreducible("the chat template leaves out or repeats a message")
        piece, text = text.split(mark)
        pieces.append(piece)
    return [*pieces, text]


def assemble(
    parts: list[str], system: str | None, users: list[str], replies: list[str], lead: str = ""
) -> str:
    """A conversation made from the parts; this is what llm.h describes. `lead` is the white space that the
    model puts before a reply."""
    strip = str.strip if parts[5] == "trim" else str
    text = parts[2] if system is None else parts[0] + strip(system) + parts[1]
    for user, reply in itertools.zip_longest(users, replies):
        text += strip(user) + parts[3] + ("" if reply is None else lead + strip(reply) + parts[4])
    return text


def disagreement(
    render: Callable[[list[dict]], str],
    parts: list[str],
    talks: list[tuple[str | None, list[str], list[str]]],
    lead: str,
) -> str:
    """Why the parts are not the template, "" if they are as far as the conversations show. With "trim" the
    template is given stripped messages too: what it does with white space around a message is then never
    seen."""
    for system, users, replies in talks:
        if parts[5] == "trim":
            system = system.strip() if system is not None else None
            users, replies = [u.strip() for u in users], [r.strip() for r in replies]
        if render(conversation(system, users, replies)) != assemble(parts, system, users, replies, lead):
            turns = f"{len(users)} turns" if len(users) > 1 else "1 turn"
            return f"the chat template changes messages, or depends on more than their order ({turns})"
    return ""


def check_text(parts: list[str]) -> list[str]:
    """NUL ends a part in the file, so no part can have one."""
    if any("\0" in part for part in parts):
        raise Irreducible("the chat template has a NUL character")
    return parts
