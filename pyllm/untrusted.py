"""Texts of others in a prompt: what looks like a control token in them stays text.

A conversation is rendered as one text, in which the template's own control tokens become tokens. A message
that holds "<|im_end|>" would end itself there and go on as anybody. So every control token's text in a
message gets a mark before it; behind the template the mark tells it apart from the template's own, and goes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

MARK = "\ufdd0"  # a noncharacter: of no meaning in any text (Unicode 16, section 23.7)


class ControlTexts:
    """The texts of a tokenizer's control tokens."""

    def __init__(self, texts: Iterable[str]) -> None:
        longest_first = sorted(texts, key=len, reverse=True)
        pattern = "|".join(map(re.escape, longest_first)) or r"(?!)"
        self._control = re.compile(f"({pattern})")
        self._marked = re.compile(f"{MARK}({pattern})")

    def split(self, text: str) -> list[str]:
        """A text cut at its control tokens: text, control token, text, and so on; texts may be empty."""
        return self._control.split(text)

    def marked(self, value: Any) -> Any:
        """A copy of a message, or of anything like one, in whose texts control tokens are marked."""
        if isinstance(value, str):
            return self._control.sub(lambda found: MARK + found[0], value.replace(MARK, ""))
        if isinstance(value, Mapping):
            return {self.marked(key): self.marked(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.marked(item) for item in value]
        return value

    def parts(self, rendered: str) -> list[tuple[str, bool]]:
        """The text that a template has made, without marks, in parts: (text, whether its control tokens
        count)."""
        parts: list[tuple[str, bool]] = []
        at = 0
        for found in self._marked.finditer(rendered):
            parts += [(rendered[at : found.start()], True), (found[1], False)]
            at = found.end()
        parts.append((rendered[at:], True))
        return [(text.replace(MARK, ""), counts) for text, counts in parts if text]
