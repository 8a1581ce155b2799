"""Thoughts: where a reply that may begin with reasoning stands, and an end to reasoning that takes too long.

What becomes of a thought when it is there is chat.py's affair; here are the tokens as they are drawn.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Any

import numpy as np

from pyllm._llm import ffi, lib
from pyllm.binding import Model
from pyllm.grammar import Reasoning, State, ids_behind


class Thought:
    """How far a reply has come, byte by byte: place is "start", "reasoning" or "answer"."""

    def __init__(self, reasoning: Reasoning) -> None:
        self._begin, self._end, self._plain = (mark.encode() for mark in reasoning.marks)
        self.place = "reasoning" if reasoning.begun else "start"
        self.held = b""  # what may be a mark, or its beginning

    def feed(self, data: bytes) -> bytes:
        """What of it belongs to the answer, with what was held before."""
        self.held += data
        if self.place == "start":
            text = self.held.lstrip()
            if text.startswith(self._begin):
                self.place, self.held = "reasoning", text[len(self._begin) :]
            elif self._plain and text.startswith(self._plain):
                self.place, self.held = "answer", text[len(self._plain) :]
            elif not (self._begin.startswith(text) or self._plain.startswith(text)):
                self.place = "answer"
        if self.place == "reasoning":
            before, end, behind = self.held.partition(self._end)
            self.place = "answer" if end else "reasoning"
            self.held = behind if end else before[-len(self._end) + 1 :]
        if self.place != "answer":
            return b""
        answer, self.held = self.held, b""
        return answer

    def begun_end(self, sizes: Sequence[int]) -> int:
        """How many characters of the mark that ends a thought are there. sizes: how many there can be."""
        return max((size for size in sizes if self.held.endswith(self._end[:size])), default=0)

    @property
    def in_character(self) -> bool:
        """Whether the last character is not whole."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        decoder.decode(self.held[-4:])
        return decoder.getstate()[0] != b""


class Budget(State):
    """Ends a thought that has had its tokens: then the mark of its end is all that may come. A character of
    several tokens is not torn apart: it may have up to three more.

    inner  what binds the reply beside that, the thought included; None: nothing
    """

    def __init__(self, model: Model, reasoning: Reasoning, inner: State | None) -> None:
        self._model, self._reasoning, self._inner = model, reasoning, inner
        self._thought = Thought(reasoning)
        self._left = reasoning.budget or 0
        self._closing: list[int] = []  # tokens that must come next
        self._mask = np.full(-(-model.vocab_size // 32), 2**32 - 1, np.uint32)
        self._pointer = ffi.from_buffer("uint32_t[]", self._mask)
        self._look()

    def _look(self) -> None:
        """Ends the thought if it has had its tokens."""
        thought = self._thought
        if thought.place == "reasoning" and self._left <= 0 and not thought.in_character:
            self._closing = self._end_of_thought()
            thought.place = "answer"

    def _end_of_thought(self) -> list[int]:
        """The tokens of the mark, or of what is missing of it, with the line ends around it."""
        text, end = self._reasoning.closing, self._reasoning.marks.end
        there = self._thought.begun_end(self._cuts(end))
        if there or self._thought.held.endswith(b"\n"):
            text = text[text.index(end) + there :]
        return ids_behind(self._model, text.encode(), lib.LLM_SPECIAL)

    def _cuts(self, end: str) -> list[int]:
        """Where the mark can be cut: anywhere but in a control token."""
        cuts: list[int] = []
        at = 0
        for i, part in enumerate(self._model.control_texts.split(end)):
            cuts += [at] if i % 2 else range(at, at + len(part))
            at += len(part)
        return cuts

    def mask(self) -> Any:
        if self._closing:
            token = self._closing[0]
            self._mask[:] = 0
            self._mask[token // 32] = 1 << token % 32
            return self._pointer
        self._mask[:] = 2**32 - 1
        return self._pointer if self._inner is None else self._inner.mask()

    def accept(self, token: int) -> None:
        if self._inner is not None:
            self._inner.accept(token)
        if self._closing:
            self._closing = self._closing[1:]
            return
        if self._thought.place == "answer":
            return
        inside = self._thought.place == "reasoning"
        self._thought.feed(self._model.token_bytes(token))
        self._left -= inside
        self._look()

    @property
    def complete(self) -> bool:
        return self._inner is not None and self._inner.complete

    def forced(self, most: int) -> list[int]:
        if self._closing or self._inner is None:
            return self._closing[:most]
        return self._inner.forced(most)
