"""The parser of calls of tools: takes a reply apart into its text and its calls, piece by piece."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pyllm.call_formats import Tool, inside, kinds_of, quoted, texts_of, value_of
from pyllm.sampling import unfinished

if TYPE_CHECKING:
    from pyllm.calls import Calls

LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
ID_LENGTH = 9  # Mistral's templates want exactly so many letters and digits


@dataclass
class Delta:
    """What a piece of a reply adds to a call. name: of a new call, with its id."""

    index: int
    arguments: str = ""
    name: str | None = None
    id: str | None = None


class Parser:
    """Takes a reply apart: text before the calls, and these, piece by piece."""

    def __init__(self, calls: Calls, seed: int, control: Iterable[str] = ()) -> None:
        self._calls, self._seed = calls, seed
        self._stray = [text for text in control if text not in calls.marks]  # of no meaning before calls
        self._held = ""  # what is not certain yet
        self._place = "text"  # "text", "name", "arguments" ("key", "value" where they are apart) or "behind"
        self._any = False  # whether there was text
        self._depth = 0  # of brackets in the arguments
        self._string = self._escape = False  # whether in a string of them, behind a backslash
        self._tool: Tool | None = None  # whose arguments are apart
        self._how = ""  # of their value that comes: "text", "json", or "either"
        self._kinds = frozenset[str]()
        self._n_keys = 0
        self.count = 0  # calls so far
        self.whole = 0  # those that are complete

    def feed(self, piece: str, last: bool = False, cut: bool = False) -> tuple[str, list[Delta]]:
        """What a piece makes certain: text, and what is added to calls. cut: whether more would have come
        behind the last one, so that the beginning of a mark is no text."""
        self._held += piece
        text = self._text(last, cut) if self._place == "text" else ""
        deltas: list[Delta] = []
        for delta in self._deltas():
            if deltas and delta.name is None and deltas[-1].index == delta.index:
                deltas[-1].arguments += delta.arguments  # OpenAI's client takes one a call from a chunk
            else:
                deltas.append(delta)
        return text, deltas

    def _text(self, last: bool, cut: bool) -> str:
        marks, anchored = self._calls.marks, self._calls.anchored
        at = min((at for mark in marks if (at := self._held.find(mark)) >= 0), default=-1)
        if anchored and (self._any or self._held[: max(at, 0)].strip()):
            at = -1
        if at >= 0:
            text, self._place = self._held[:at].rstrip(), "name"
            self._held = self._held[at + len(self._calls.form.before) :]
            return self._without_stray(text)
        whole, begun = last and not cut, self._held.lstrip()
        if anchored and not self._any and not whole and any(mark.startswith(begun) for mark in marks):
            return ""
        end = len(self._held)
        if not whole:  # nor white space before a mark
            end = unfinished(self._held, [*([] if anchored else marks), *self._stray])
            end = end if last and end == len(self._held) else len(self._held[:end].rstrip())
        text, self._held = self._without_stray(self._held[:end]), self._held[end:]
        self._any |= bool(text.strip())
        return text

    def _without_stray(self, text: str) -> str:
        for mark in self._stray:
            text = text.replace(mark, "")
        return text

    def _deltas(self) -> Iterator[Delta]:
        while self._place != "text":
            if self._place == "name":
                found = self._name()
                if found is None:
                    return
                yield found
            elif self._place == "arguments":
                piece, ended = self._arguments()
                if piece:
                    yield Delta(self.count - 1, piece)
                if not ended:
                    return
                self.whole, self._place = self.whole + 1, "behind"
            elif self._place in ("key", "value"):
                added = self._key() if self._place == "key" else self._value()
                if added is None:
                    return
                if added:
                    yield Delta(self.count - 1, added)
            else:
                at = self._held.find(self._next_sign)
                if at < 0:
                    return
                self._held = self._held[at:].removeprefix(self._calls.form.between.strip())
                self._place = "name"

    @property
    def _next_sign(self) -> str:
        """What a further call begins with."""
        return self._calls.form.between.strip() if "{name}" in self._calls.form.call else "{"

    def _name(self) -> Delta | None:
        """The name of a call, when it is there, with what comes before its arguments."""
        form = self._calls.form
        if "{name}" in form.call:
            before, behind = form.around_name
            name, sign, rest = self._held.removeprefix(before).partition(behind)
            found = bool(sign) and self._held.startswith(before)
        else:
            key = re.escape(form.arguments)
            shape = rf'[^{{]*\{{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"{key}"\s*:\s*'
            match = re.match(shape, self._held)
            found = match is not None and match.end() < len(self._held)
            name = json.loads(match[1]) if match else ""
            rest = self._held[match.end() :] if match else ""
        if not found:
            return None
        self._held, self._place, self._depth = rest, "key" if form.parameter else "arguments", 0
        self._tool, self._n_keys = next((t for t in self._calls.tools if t.name == name), None), 0
        self.count += 1
        return Delta(self.count - 1, "", name.strip(), self._id())

    def _id(self) -> str:
        """A call's id: the same for the same request."""
        digest = hashlib.sha256(f"{self._seed} {self.count}".encode()).digest()
        return "".join(LETTERS[byte % len(LETTERS)] for byte in digest[:ID_LENGTH])

    def _arguments(self) -> tuple[str, bool]:
        """What has come of the arguments, and whether that is their end."""
        for at, c in enumerate(self._held):
            if self._string:
                self._string = self._escape or c != '"'
                self._escape = c == "\\" and not self._escape
                continue
            self._string = c == '"'
            self._depth += (c in "{[") - (c in "}]")
            if self._depth == 0 and c in "}]":
                piece, self._held = self._held[: at + 1], self._held[at + 1 :]
                return piece, True
        piece, self._held = self._held, ""
        return piece, False

    # ------------------------------------------------------------------------------------------------------
    # Arguments that are apart

    def _key(self) -> str | None:
        """What the start of an argument, or the end of them, is in the JSON object; None: it is not whole."""
        form = self._calls.form
        before, between = form.around_value[:2]
        close = form.call.partition("{parameters}")[2]
        if self._held.startswith(close):
            self._held, self._place = self._held[len(close) :], "behind"
            self.whole += 1
            return "}" if self._n_keys else "{}"
        key, sign, rest = self._held.removeprefix(before).partition(between)
        if not sign or not self._held.startswith(before):
            return None
        schema = {} if self._tool is None else self._tool.values.get(key, {})
        self._kinds = kinds_of(schema)
        text = texts_of(schema) is not None or self._kinds == {"string"}
        self._how = "text" if text else "either" if "string" in self._kinds else "json"
        self._held, self._place = rest, "value"
        self._string = self._escape = False
        self._n_keys += 1
        start = "{" if self._n_keys == 1 else ", "
        return f"{start}{quoted(key)}: " + ('"' if text else "")

    def _value(self) -> str | None:
        """What has come of a value, as JSON; None: nothing is certain. A string is as it is up to its end."""
        form = self._calls.form
        end, rest = form.around_value[2:]
        if self._how == "json":
            return self._json(end + rest)
        text, found, behind = self._held.partition(end)
        if found and len(behind) >= len(rest):
            self._held, self._place = behind[len(rest) :], "key"
            text = text.removesuffix("\n") if form.padded else text
            return value_of(text, self._kinds) if self._how == "either" else inside(text) + '"'
        if found or self._how == "either":
            return None
        certain = unfinished(text, [end, f"\n{end}"])
        text, self._held = text[:certain], text[certain:]
        return inside(text) or None

    def _json(self, end: str) -> str | None:
        """What has come of a value that is JSON, up to the white space before its end."""
        at = 0
        while at < len(self._held) and (self._string or self._held[at] != "<"):
            c = self._held[at]
            self._string = (self._escape or c != '"') if self._string else c == '"'
            self._escape = self._string and c == "\\" and not self._escape
            at += 1
        piece = self._held[:at]
        piece = piece if self._string else piece.rstrip()
        self._held = self._held[len(piece) :]
        behind = self._held.lstrip()
        if not self._string and len(behind) >= len(end):
            self._held, self._place = behind[len(end) :], "key"
            return piece
        return piece or None
