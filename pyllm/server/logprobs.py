"""Log-probabilities as OpenAI's two APIs show them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from pyllm.binding import Model
from pyllm.sampling import Logprob

LEAST = -9999.0  # for -infinity, which JSON does not have; vLLM's number


class TokenTexts:
    """The texts of tokens, each for itself."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._known: dict[int, bytes] = {}

    def bytes(self, token: int) -> bytes:
        """What a token's text is in bytes: not always whole characters."""
        if token not in self._known:
            self._known[token] = self._model.token_bytes(token)
        return self._known[token]

    def text(self, token: int) -> str:
        """As OpenAI writes it: bytes that are no characters as "bytes:\\xe2\\x80"."""
        data = self.bytes(token)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def number(logprob: float) -> float:
    """A log-probability as JSON can have it."""
    return max(logprob, LEAST)


def completion_logprobs(
    texts: TokenTexts, entries: Iterable[tuple[int, Logprob | None]], count: int, start: int
) -> dict[str, Any]:
    """Of /v1/completions: lists with an entry a token.

    entries  (token, its Logprob; None: nothing is known of it)
    count    how many alternatives were asked for; the token itself is always among them
    start    place of the first token in the text"""
    tokens: list[str] = []
    logprobs: list[float | None] = []
    top: list[dict[str, float] | None] = []
    offsets: list[int] = []
    at = start
    for token, entry in entries:
        text = texts.text(token)
        tokens.append(text)
        offsets.append(at)
        at += len(texts.bytes(token).decode("utf-8", "ignore"))
        logprobs.append(None if entry is None else number(entry.logprob))
        top.append(None if entry is None else _by_text(texts, entry, count))
    return {"tokens": tokens, "token_logprobs": logprobs, "top_logprobs": top, "text_offset": offsets}


def _by_text(texts: TokenTexts, entry: Logprob, count: int) -> dict[str, float]:
    """The alternatives by their texts. Of several tokens with one text the most likely counts."""
    best: dict[str, float] = {}
    for token, logprob in [*entry.top[:count], (entry.token, entry.logprob)]:
        text = texts.text(token)
        best[text] = max(best.get(text, LEAST), number(logprob))
    return best


def chat_logprobs(texts: TokenTexts, entries: Sequence[Logprob]) -> dict[str, Any]:
    """Of /v1/chat/completions."""
    return {"content": [_chat_entry(texts, entry) for entry in entries], "refusal": None}


def _chat_entry(texts: TokenTexts, entry: Logprob) -> dict[str, Any]:
    def shown(token: int, logprob: float) -> dict[str, Any]:
        return {"token": texts.text(token), "logprob": number(logprob), "bytes": list(texts.bytes(token))}

    top = [shown(token, logprob) for token, logprob in entry.top]
    return shown(entry.token, entry.logprob) | {"top_logprobs": top}


def prompt_logprobs(texts: TokenTexts, entries: Sequence[Logprob | None]) -> list[dict[str, Any] | None]:
    """vLLM's: for each token of the prompt its own and the most likely ones, by id."""
    shown: list[dict[str, Any] | None] = []
    for entry in entries:
        if entry is None:
            shown.append(None)
            continue
        ranked = [*entry.top, *[(entry.token, entry.logprob)] * (entry.token not in dict(entry.top))]
        shown.append(
            {
                str(token): {"logprob": number(logprob), "decoded_token": texts.text(token)}
                for token, logprob in ranked
            }
        )
    return shown
