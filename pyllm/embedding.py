"""Embeddings: what a model makes of a text as a whole, from the states that its logits would be made of.

How states become a vector is the model's own affair (LLM_EMBEDDING in llm.h, from its sentence-transformers
files); of a model that does not say it is the last token's state, made 1 long, as vLLM does it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from pyllm._llm import lib
from pyllm.binding import LLMError, Model
from pyllm.scheduler import Request

Pooling = Literal["last", "mean"]


@dataclass(frozen=True)
class Recipe:
    """How a model makes embeddings.

    pooling         "last": of the last token; "mean": the mean over all tokens
    normalize       whether it is made 1 long
    prompts         texts that go before a text, by what kind of text it is: "query", "document"
    default_prompt  the name of the one that goes before texts of which nothing is said
    include_prompt  whether the mean is over the prompt's tokens, too
    max_tokens      of a text with its prompt; None: as many as the context has
    scale           what states are multiplied by: those of Granite have the scale of its logits in this
                    format
    refused         why the model makes no embeddings here; None: it does
    generates       whether it has an output matrix: logits mean nothing without
    """

    pooling: Pooling = "last"
    normalize: bool = True
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str | None = None
    include_prompt: bool = True
    max_tokens: int | None = None
    scale: float = 1.0
    refused: str | None = None
    generates: bool = True

    def prompt(self, name: str | None) -> str:
        """The text before a text. name: None: the default. ValueError for one that is not there."""
        chosen = self.default_prompt if name is None else name
        if chosen is None:
            return ""
        if chosen not in self.prompts:
            known = ", ".join(self.prompts) or "none"
            raise ValueError(f"prompt: the model has no prompt {chosen!r:.60}; it has: {known}")
        return self.prompts[chosen]


def recipe_of(model: Model) -> Recipe:
    """What the file says. LLMError when that makes no sense."""
    if (text := model.text(lib.LLM_EMBEDDING)) is None:
        return Recipe()
    try:
        given: Any = json.loads(text)
        recipe = Recipe(
            given["pooling"],
            bool(given["normalize"]),
            dict(given["prompts"]),
            given["default_prompt"],
            bool(given.get("include_prompt", True)),
            given.get("max_tokens"),
            float(given.get("scale", 1.0)),
            given.get("refused"),
            bool(given.get("generates", True)),
        )
    except (ValueError, TypeError, KeyError, RecursionError):
        raise LLMError(f"{model.path}: how it makes embeddings cannot be read") from None
    texts = (*recipe.prompts.values(), *(text for text in (recipe.refused,) if text is not None))
    limit = recipe.max_tokens is None or type(recipe.max_tokens) is int
    if recipe.pooling not in ("last", "mean") or not limit or not all(isinstance(t, str) for t in texts):
        raise LLMError(f"{model.path}: how it makes embeddings is not known here")
    return recipe


class Embedding(Request):
    """The embedding of the ids of a text, at least one: float32 (dim,), or the first of its numbers.

    dimensions  how many; None: all
    skipped     tokens at the beginning that the mean leaves out, fewer than there are
    """

    def __init__(self, ids: list[int], recipe: Recipe, dimensions: int | None, skipped: int = 0) -> None:
        super().__init__(ids, len(ids), skipped if recipe.pooling == "mean" else len(ids) - 1)
        self.recipe, self.dimensions, self.count = recipe, dimensions, 0
        self.sum: np.ndarray | None = None

    def accept_states(self, states: np.ndarray) -> None:
        self.count += len(states)
        total = states.astype(np.float64).sum(axis=0)
        self.sum = total if self.sum is None else self.sum + total

    def vector(self) -> np.ndarray:
        """The embedding, when it has ended."""
        assert self.sum is not None
        mean = (self.sum / self.count * self.recipe.scale)[: self.dimensions]
        length = np.linalg.norm(mean) if self.recipe.normalize else 1.0
        return (mean / max(length, 1e-12)).astype(np.float32)
