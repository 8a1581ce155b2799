"""POST /v1/embeddings: texts as vectors."""

from __future__ import annotations

import base64
from typing import Any

from pyllm.binding import ContextError, LLMError
from pyllm.embedding import Embedding
from pyllm.scheduler import Request
from pyllm.server.answer import Answer
from pyllm.server.completions import prompts_of
from pyllm.server.errors import bad
from pyllm.server.sampling_fields import refused
from pyllm.server.schemas import EmbeddingRequest
from pyllm.server.service import Service


class Embeddings(Answer):
    """The answer to an EmbeddingRequest: a vector for each text."""

    def __init__(
        self, service: Service, request: EmbeddingRequest, model: str, jobs: list[Embedding]
    ) -> None:
        super().__init__(service, jobs)
        self.request, self.model, self.texts = request, model, jobs

    def whole(self) -> dict[str, Any]:
        tokens = sum(len(job.ids) for job in self.texts)
        data = [
            {"object": "embedding", "index": i, "embedding": self._shown(job)}
            for i, job in enumerate(self.texts)
        ]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return {"object": "list", "data": data, "model": self.model, "usage": usage}

    def _shown(self, job: Embedding) -> str | list[float]:
        vector = job.vector()
        if (
            self.request.encoding_format == "base64"
        ):  # of little-endian float32, as OpenAI's client decodes it
            return base64.b64encode(vector.astype("<f4").tobytes()).decode()
        return [float(number) for number in vector]


async def embeddings(service: Service, request: EmbeddingRequest, owner: str) -> Embeddings:
    """Checks everything, and makes the answer, which runs when it is sent."""
    model = service.model_named(request.model)
    texts = prompts_of(request.input, service.settings.max_inputs, "input")
    for i, text in enumerate(texts):
        if not text:  # as at OpenAI's, though a model that adds BOS would have a token
            raise bad(f"input[{i}] is empty" if len(texts) > 1 else "input is empty", "input")
    return await service.in_pool(_prepare, service, request, owner, model, texts)


def _prepare(
    service: Service, request: EmbeddingRequest, owner: str, model: str, texts: list[Any]
) -> Embeddings:
    try:
        jobs = service.llm._embeddings(texts, request.prompt_name, dimensions=request.dimensions)
    except ContextError as error:
        raise bad(f"{error}", "input", "context_length_exceeded") from None
    except (LLMError, TypeError, ValueError) as error:
        wrong = refused(error, request)
        wrong.param = wrong.param or "input"
        raise wrong from None
    found: list[Request] = list(jobs)
    service.set_terms(found, owner, request)
    return Embeddings(service, request, model, jobs)
