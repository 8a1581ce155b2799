"""pyllm's models for the program `llm` (https://llm.datasette.io), in its own process, without a server.

    pip install llm 'pyllm[llm]'
    llm -m pyllm "Once upon a time"
    PYLLM_MODELS=smollm2.llm llm chat -m smollm2

`pyllm` is the built-in model, which continues texts. The environment variable PYLLM_MODELS names others:
files, or folders of *.llm, with os.pathsep between them (":"); each goes by its file's name without ".llm".
Conversations, logs and templates are llm's own affair. Its tools, attachments and async models are not
supported.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import Any

import llm
from llm.parts import Message, ReasoningPart, StreamEvent, TextPart
from pydantic import Field

from pyllm.chat import ChatOptions, Reasoning
from pyllm.engine import LLM
from pyllm.sampling import Completion, SamplingParams


def found() -> dict[str, Path | None]:
    """The models by their names; None: the built-in one. Of files with one name the first counts."""
    files: dict[str, Path | None] = {"pyllm": None}
    for place in filter(None, os.environ.get("PYLLM_MODELS", "").split(os.pathsep)):
        path = Path(place).expanduser()
        for file in sorted(path.glob("*.llm")) if path.is_dir() else [path]:
            files.setdefault(file.stem, file)
    return files


@cache
def opened(path: Path | None) -> LLM:
    """The model in a file, open until the process ends."""
    return LLM(path)


@llm.hookimpl
def register_models(register: Callable[..., None]) -> None:
    for name, path in found().items():
        register(PyllmModel(name, path))


@llm.hookimpl
def register_embedding_models(register: Callable[..., None]) -> None:
    for name, path in found().items():
        register(PyllmEmbedding(name, path))


class Options(llm.Options):
    """Fields of SamplingParams, which says what they mean; what is not given has its default there."""

    max_tokens: int | None = Field(None, description="tokens to make at most; default: until it stops")
    min_tokens: int | None = Field(None, description="tokens before which it does not stop")
    temperature: float | None = Field(None, description="0: always the most likely token")
    top_k: int | None = Field(None, description="keep the k most likely tokens; 0: all")
    top_p: float | None = Field(None, description="keep the fewest likely tokens that reach this probability")
    min_p: float | None = Field(None, description="drop tokens less likely than this times the most likely")
    repeat_penalty: float | None = Field(None, description="makes tokens that came less likely; 1: off")
    presence_penalty: float | None = Field(None, description="subtracted from the logits of tokens made")
    frequency_penalty: float | None = Field(None, description="subtracted for each time they were made")
    seed: int | None = Field(None, description="the same seed gives the same text")
    stop: str | list[str] | None = Field(None, description="a text, or several, that ends the answer")
    regex: str | None = Field(None, description="a regular expression that the answer matches")
    grammar: str | None = Field(None, description="a grammar of the answer, Lark's or llama.cpp's GBNF")
    thinking: bool | None = Field(None, description="whether the template has the model think first")


class PyllmModel(llm.Model):
    """A model that answers prompts: by its chat template if it has one, else by continuing the texts."""

    can_stream = True
    supports_schema = True
    Options = Options

    def __init__(self, model_id: str, path: Path | None) -> None:
        self.model_id, self.path = model_id, path

    def __str__(self) -> str:
        return f"pyllm: {self.model_id}"

    def execute(
        self, prompt: Any, stream: bool, response: Any, conversation: Any
    ) -> Iterator[str | StreamEvent]:
        given = prompt.options.model_dump(exclude_none=True)
        thinking = given.pop("thinking", None)
        params = SamplingParams(**given, schema=prompt.schema)
        model, messages = opened(self.path), prompt.messages
        if model.chat_template is None:
            pieces = model.stream(text_of(messages), params)
        else:
            options = ChatOptions(
                reasoning="hide" if prompt.hide_reasoning else "apart",
                template_kwargs=None if thinking is None else {"enable_thinking": thinking},
            )
            pieces = model.stream_chat([turn_of(message) for message in messages], params, options)
        whole = yield from chunks(pieces)
        response.set_usage(
            input=whole.prompt_tokens,
            output=len(whole.tokens),
            details={"cached_tokens": whole.cached_tokens} if whole.cached_tokens else None,
        )
        response.response_json = {
            "finish_reason": whole.finish_reason, "stop": whole.stop, "seed": whole.seed,
        }  # fmt: skip


def turn_of(message: Message) -> dict[str, str]:
    """A message as chat templates know it."""
    turn = {"role": message.role, "content": texts_in(message, TextPart)}
    if reasoning := texts_in(message, ReasoningPart):
        turn["reasoning_content"] = reasoning
    return turn


def texts_in(message: Message, kind: type[Any]) -> str:
    """The text of all parts of a kind."""
    return "".join(part.text for part in message.parts if isinstance(part, kind))


def text_of(messages: Iterable[Message]) -> str:
    """The messages as one text, for models that only continue texts: an answer directly behind what it
    continued, everything else on a line of its own."""
    text = ""
    for message in messages:
        gap = "\n" if text and message.role != "assistant" else ""
        text += gap + texts_in(message, TextPart)
    return text


def chunks(pieces: Generator[str, None, Completion]) -> Generator[str | StreamEvent, None, Completion]:
    """The pieces of an answer as `llm` takes them, which tells reasoning apart."""
    with closing(pieces):
        while True:
            try:
                piece = next(pieces)
            except StopIteration as end:
                whole: Completion = end.value
                return whole
            yield StreamEvent(type="reasoning", chunk=piece) if isinstance(piece, Reasoning) else piece


class PyllmEmbedding(llm.EmbeddingModel):
    """A model that makes vectors of texts."""

    batch_size = 32

    def __init__(self, model_id: str, path: Path | None) -> None:
        self.model_id, self.path = model_id, path

    def __str__(self) -> str:
        return f"pyllm: {self.model_id}"

    def embed_batch(self, items: Iterable[str | bytes], *, key: str | None = None) -> Iterator[list[float]]:
        texts = [item if isinstance(item, str) else item.decode() for item in items]
        yield from opened(self.path).embed(texts).tolist()
