"""Reduces a chat template to the pieces of text around the messages, so that a conversation can be made
without Jinja.

Some templates (Llama 2, Mistral) put a space before replies already given which is not in the text to be
continued: the model writes that space itself. A reply between the pieces is therefore the text as the model
wrote it; templates of thinking models take the reasoning out of it, and so does the user of the pieces.

The pieces are found by rendering conversations of marked messages, then checked: many conversations are
rendered by the template and put together from the pieces, and every text must be the same. A template that
fails is not guessed at: it has no pieces, and a reason. Only what a template does by itself is looked at: no
tools, no documents, no variables of its own."""

from __future__ import annotations

import itertools
import os
import re
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from pyllm import chat_template
from pyllm.chat import MARKS, Parting, Reasoning, marks_of
from pyllm.chat_template import LimitError, TemplateError
from pyllm.grammar import Marks

# Words that no template's own text has, nor anything that a template would transform
SYSTEM, USER, REPLY = "\u2983sys\u2984", "\u2983usr{}\u2984", "\u2983rep{}\u2984"

# A pattern of strftime in a part stands between two of these. The patterns are such as every C library knows,
# and short enough for the command, which takes up to 63 bytes and writes up to 255.
DATE = "\1"
PATTERN = re.compile(r"(?!.{64})([ -$&-~]|%-?[aAbBdeHIjmMpSuyY%]){0,28}")
NOW, LATER = datetime(2001, 2, 3, 4, 5, 6), datetime(2022, 11, 30, 19, 42, 59)  # all of it differs

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
    "\n\nAfter a gap",
)

# Replies with reasoning, which the prompt may have begun, and which may be cut; with other marks those that
# models make
BEGIN, END = MARKS[0].begin, MARKS[0].end
THOUGHTS = (
    f"{BEGIN}\nHm.\n{END}\n\nYes.",
    f"{BEGIN}{END}No",
    f"Hm, {BEGIN}\n{END} \n Both",
    f"{BEGIN}\nHm",
    f"One{END}Two{END}\nThree\n",
)
OWN_THOUGHTS = ("{}\nHm.\n{}\n\nYes.", "{}{}No", "{}\nHm")

# What finding the pieces may cost in all; the templates of known models take 0.2 s
SECONDS = 10.0
MAX_TEXT = 1 << 20  # characters of one conversation's text
MAX_TEXTS = 64 << 20  # of all of them


class Irreducible(Exception):
    """The template does not consist of such pieces; why."""


class Costly(Exception):
    """The template exceeds a limit, so no more is to be rendered; which."""


class Talk(NamedTuple):
    """A conversation that waits for a reply: there is one more of users than of replies."""

    system: str | None
    users: tuple[str, ...]
    replies: tuple[str, ...]

    def messages(self) -> list[dict[str, Any]]:
        """As a template takes them."""
        found = [] if self.system is None else [{"role": "system", "content": self.system}]
        for user, reply in itertools.zip_longest(self.users, self.replies):
            found.append({"role": "user", "content": user})
            if reply is not None:
                found.append({"role": "assistant", "content": reply})
        return found

    def stripped(self) -> Talk:
        """Without white space around the messages."""
        system = None if self.system is None else self.system.strip()
        return Talk(system, *(tuple(text.strip() for text in texts) for texts in self[1:]))


def derive(template: str, variables: Mapping[str, str | bool]) -> tuple[list[str] | None, str]:
    """The six to eight strings of LLM_CHAT_PARTS (llm.h) and "" or a remark; or None and the reason.
    variables: the special tokens, and what else the template is given."""
    try:
        parts, remark = Reduction(template, variables).parts()
        return parts, printable(remark)
    except (Irreducible, Costly, TemplateError, TypeError, RuntimeError) as error:
        return None, printable(str(error))
    except ImportError:
        return None, "jinja2 was not installed when the model was converted"


class Reduction:
    """derive for one template, with exceptions when it cannot be reduced."""

    def __init__(self, template: str, variables: Mapping[str, str | bool]) -> None:
        self.template = template
        self.variables: Mapping[str, Any] = variables
        self.dated = False  # the template has asked for the date
        self.marks = marks_of(template, lambda mark: []) or MARKS[0]
        self.begun = False  # a reply to be generated begins with reasoning
        self.lead = ""  # the white space that the model puts before a reply
        self.texts: dict[tuple[Talk, datetime | None], str] = {}  # rendered already
        self.length = 0  # characters of these texts
        self.deadline = time.monotonic() + SECONDS

    def parts(self) -> tuple[list[str], str]:
        """What derive returns."""
        users, replies = (USER.format(0), USER.format(1)), (REPLY.format(0),)
        talk = Talk(None, users, replies)
        before, middle, between, end = split(self.render(talk), [users[0], replies[0], users[1]])
        after = os.path.commonprefix([middle, end])
        begin, told = end[len(after) :], middle[len(after) :]
        if not told.strip() and not begin:
            self.lead, told = told, ""
        self.begun = (after + begin).rstrip().endswith(self.marks.begin)
        parts = ["", "", before, after, between, "answer" if told else "", begin, told]
        for now in (NOW, LATER):
            if self.dated and self.render(talk, now) != assemble(parts, *talk, self.lead, now):
                raise Irreducible("the chat template computes with the current date")
        choices, remark = self.choices(parts)
        for words in choices:
            if system := self.with_system(parts, words):
                return check_text(system), "; ".join(filter(None, [remark, self.special_words(system)]))
        parts[5] = choices[0]
        remarks = [remark, "the chat template has no place for a system message", self.special_words(parts)]
        if self.renders(Talk(SYSTEM, users, replies)):
            remarks[1] += " that is simply at the start or before the last user message"
        return check_text(parts), "; ".join(filter(None, remarks))

    def choices(self, parts: list[str]) -> tuple[list[str], str]:
        """What part 5 may be when there is no system message, the best first, and a remark."""
        exact, near, why = [], [], ""
        for trim in (parts[5], f"trim {parts[5]}".strip()):
            if wrong := self.disagreement([*parts[:5], trim, *parts[6:]], conversations(self.replies(parts))):
                why = why or wrong
                continue
            near.append(trim)
            for kept in ("", "think", "think lines", "answer"):
                words = f"{trim} {kept}".strip()
                if not self.disagreement([*parts[:5], words, *parts[6:]], conversations(self.thoughts)):
                    exact.append(words)
                    break
        if not near:
            raise Irreducible(why)
        return exact or near, "" if exact else "the chat template changes earlier replies that have reasoning"

    def replies(self, parts: list[str]) -> Sequence[str]:
        """TEXTS as replies; where only answers are told again, behind the reasoning that was begun."""
        return [f"Hm{self.marks.end}{text}" for text in TEXTS] if self.begun and parts[7] else TEXTS

    @property
    def thoughts(self) -> Sequence[str]:
        """Replies that have reasoning."""
        return THOUGHTS if self.marks == MARKS[0] else [text.format(*self.marks) for text in OWN_THOUGHTS]

    def with_system(self, parts: list[str], words: str) -> list[str] | None:
        """The parts with those of the system message, at the start or before the last user message; None:
        they do not make the template's text."""
        user = USER.format(0)
        try:
            first, second, _ = split(self.render(Talk(SYSTEM, (user,), ())), [SYSTEM, user])
            for place in ("", "last"):
                lead = parts[2] if place else ""
                around = [first.removeprefix(lead), second]
                found = [*around, *parts[2:5], f"{words} {place}".strip(), *parts[6:]]
                if not any(around) or not first.startswith(lead):
                    continue
                if not self.disagreement(found, conversations(self.replies(parts), system=True)):
                    return found
        except (TemplateError, Irreducible):
            pass
        return None

    def special_words(self, parts: list[str]) -> str:
        """A remark if there are words which, in a message, change what the template does."""
        found = []
        for word in chat_template.constants(self.template):
            system = f"Be {word} brief." if parts[0] or parts[1] else None
            try:
                wrong = self.disagreement(parts, [Talk(system, (f"Hi {word} there",), ())])
            except TemplateError:
                wrong = "refused"
            if wrong:
                found.append(word)
        return f"the chat template treats messages with {' or '.join(found)} in its own way" if found else ""

    def render(self, talk: Talk, now: datetime | None = None) -> str:
        """The template's text at that time; None: with the patterns in place of the dates."""

        def strftime_now(pattern: str) -> str:
            self.dated = True
            if not PATTERN.fullmatch(pattern):
                raise Irreducible(f"the chat template asks for the date as {pattern!r}")
            return now.strftime(pattern) if now else DATE + pattern + DATE

        if time.monotonic() > self.deadline:
            raise Costly(f"finding the parts of the chat template takes more than {SECONDS:g} s")
        if (talk, now) not in self.texts:
            try:
                text = chat_template.render(
                    self.template, talk.messages(), strftime_now=strftime_now, **self.variables
                )
            except LimitError as error:
                raise Costly(str(error)) from None
            self.length += len(text)
            if len(text) > MAX_TEXT or self.length > MAX_TEXTS:
                raise Costly("the chat template makes a long text of a short conversation")
            if now is None:
                self.check_dates(text)
            self.texts[talk, now] = text
        return self.texts[talk, now]

    def check_dates(self, text: str) -> None:
        """Refuses a text in which DATE stands elsewhere than around a pattern."""
        patterns = text.split(DATE)[1::2]
        if text.count(DATE) % 2 or not all(PATTERN.fullmatch(pattern) for pattern in patterns):
            if self.dated:
                raise Irreducible("the chat template computes with the current date")
            raise Irreducible("the chat template has the control character U+0001")

    def renders(self, talk: Talk) -> bool:
        """Whether the template takes this conversation, and puts all of it into the text."""
        try:
            system = [] if talk.system is None else [talk.system]
            return all(text in self.render(talk, NOW) for text in (*system, *talk.users, *talk.replies))
        except (TemplateError, Irreducible):
            return False

    def disagreement(self, parts: list[str], talks: Sequence[Talk]) -> str:
        """Why the parts are not the template, "" if they are as far as the conversations show. With "trim"
        the template is given stripped messages too: what it does with white space around a message is then
        never seen. Where it begins earlier replies in its own way it is given answers without reasoning."""
        for talk in talks:
            given = talk
            if parts[7]:
                given = talk._replace(
                    replies=tuple(answer_of(text, self.marks, self.begun) for text in talk.replies)
                )
            given = given.stripped() if "trim" in parts[5].split() else given
            if self.render(given, NOW) != assemble(parts, *talk, self.lead, NOW, self.marks):
                turns = f"{len(talk.users)} turns" if talk.replies else "1 turn"
                return f"the chat template changes messages, or depends on more than their order ({turns})"
        return ""


def conversations(replies: Sequence[str], system: bool = False) -> list[Talk]:
    """Conversations of one to four turns, every text of TEXTS and of replies in every place."""
    found, n, m = [], len(TEXTS), len(replies)
    for turns, shift in itertools.product((1, 2, 3, 4), range(max(n, m))):
        users = tuple(TEXTS[(shift + 3 * i) % n] for i in range(turns))
        answers = tuple(replies[(shift + 5 * i + 1 + i // m) % m] for i in range(turns - 1))
        found.append(Talk(TEXTS[(shift + 2 * turns) % n] if system else None, users, answers))
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
    parts: Sequence[str],
    system: str | None,
    users: Sequence[str],
    replies: Sequence[str],
    lead: str = "",
    now: datetime = NOW,
    marks: Marks = MARKS[0],
) -> str:
    """A conversation made from the parts; this is what llm.h describes. `lead` is the white space that the
    model puts before a reply, `marks` are those of its reasoning."""
    before_system, after_system, start, before, after, words, begin, told = (
        re.sub(f"{DATE}([^{DATE}]*){DATE}", lambda match: now.strftime(match[1]), part)
        for part in (*parts, *[""] * (8 - len(parts)))
    )
    strip = str.strip if "trim" in words.split() else str
    place = len(users) - 1 if "last" in words.split() else 0
    text = ""
    for i, user in enumerate(users):
        if i > 0:
            reply = replies[i - 1]
            if "answer" in words.split():
                reply = answer_of(reply, marks, (before + begin).rstrip().endswith(marks.begin))
            reply = strip(reply)
            if "think" in words.split() and END in reply:
                reply = reply.split(END)[-1].lstrip("\n" if "lines" in words.split() else "")
            text += told + lead + reply + after
        elif system is None or "last" in words.split():
            text += start
        if system is not None and i == place:
            text += before_system + strip(system) + after_system
        text += strip(user) + before
    return text + begin


def answer_of(reply: str, marks: Marks, begun: bool) -> str:
    """A reply without the reasoning that it begins with. begun: whether the prompt has begun that."""
    given = Parting(marks, begun).feed(reply, last=True)
    return "".join(piece for piece in given if not isinstance(piece, Reasoning))


def printable(text: str) -> str:
    """One line for a terminal: the template may have had a hand in it."""
    line = " ".join(text.split())
    line = line if len(line) <= 1000 else line[:1000] + " ..."
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


def check_text(parts: list[str]) -> list[str]:
    """The parts as they are stored: NUL ends a part in the file, so none can have one; the last two are left
    out where they are empty."""
    if any("\0" in part for part in parts):
        raise Irreducible("the chat template has a NUL character")
    if any("\ud800" <= c <= "\udfff" for part in parts for c in part):
        raise Irreducible("the chat template has half a character (a surrogate)")
    return parts if parts[7] else parts[:7] if parts[6] else parts[:6]
