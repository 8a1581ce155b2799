"""POST /v1/completions: texts go on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from pyllm.binding import LLMError, token_ids
from pyllm.sampling import Continuation, Logprob, SamplingParams, StreamEvent
from pyllm.server.answer import Generated, shown_extras
from pyllm.server.errors import bad
from pyllm.server.logprobs import completion_logprobs, prompt_logprobs
from pyllm.server.sampling_fields import check_sizes, count_of, limit_of, params_of, refused, seeds_of
from pyllm.server.schemas import CompletionRequest, ranged
from pyllm.server.service import Service
from pyllm.server.stamps import Stamp, stamp

DEFAULT_TOKENS = 16  # OpenAI's


def prompts_of(given: Any, most: int, param: str = "prompt") -> list[str | list[int]]:
    """The prompts of a request: a text or ids, or a list of these. ApiError for anything else, which says
    what the field is called."""
    if isinstance(given, str):
        return [given]
    if given and all(isinstance(item, int) and not isinstance(item, bool) for item in given):
        return [given]
    if not given:
        raise bad(f"{param} is empty", param)
    if len(given) > most and not isinstance(given[0], int):
        count = f"{param} has {len(given)} texts, more than the {most} of this server"
        raise bad(count, param, "too_large")
    for item in given:
        ids = isinstance(item, list) and all(isinstance(i, int) and not isinstance(i, bool) for i in item)
        if not (isinstance(item, str) or ids):
            raise bad(f"{param} must be a text, token ids, or a list of texts or token ids", param)
    return list(given)


class Completions(Generated):
    """The answer to a CompletionRequest: each prompt's `count` best of its jobs."""

    path = "/v1/completions"

    def __init__(
        self,
        service: Service,
        request: CompletionRequest,
        model: str,
        jobs: Sequence[Continuation],
        texts: Sequence[str],
        best_of: int,
        stamp: Stamp,
    ) -> None:
        super().__init__(service, request, model, jobs, stamp, "text_completion", best_of)
        self.request, self.count, self.best_of = request, request.n or 1, best_of
        # texts of the prompts, that go before the answers
        self.texts = texts if request.echo else [""] * len(texts)
        # where the next piece of each choice begins
        self.offsets = [len(self._prompt_of(index)) for index in range(len(jobs))]
        self.begun: set[int] = set()  # choices of which a piece was sent

    def _prompt_of(self, index: int) -> str:
        return self.texts[index // self.best_of]

    def _logprobs(
        self, index: int, tokens: Sequence[int], entries: Sequence[Logprob] | None, first: bool
    ) -> dict[str, Any] | None:
        """The logprobs of a choice's tokens; before the first of them those of its prompt if it is echoed."""
        if self.request.logprobs is None:
            return None
        job, start = self.jobs[index], self.offsets[index]
        known: list[tuple[int, Logprob | None]] = list(zip(tokens, entries or (), strict=True))
        if first and self.request.echo:
            known = [*zip(job.prompt, job.prompt_logprobs or (), strict=True), *known]
            start = 0
        return completion_logprobs(self.service.texts, known, self.request.logprobs, start)

    def _choice(self, index: int, text: str, finished: bool) -> dict[str, Any]:
        return {"index": index, "text": text, "logprobs": None} | self.ended(index, finished)

    def whole(self) -> dict[str, Any]:
        choices = []
        for i in range(0, len(self.jobs), self.best_of):
            group = list(range(i, i + self.best_of))
            if self.best_of > self.count:
                group.sort(key=lambda index: -_mean(self.jobs[index]))
            choices += [self._whole_choice(index) for index in group[: self.count]]
        for place, choice in enumerate(choices):
            choice["index"] = place
        return self.head | {"choices": choices} | self.summary()

    def _whole_choice(self, index: int) -> dict[str, Any]:
        job = self.jobs[index]
        choice = self._choice(index, self._prompt_of(index) + "".join(job.parts), True)
        choice["logprobs"] = self._logprobs(index, job.tokens, job.logprobs, first=True)
        choice |= shown_extras(job)
        if self.request.prompt_logprobs is not None:
            choice["prompt_logprobs"] = prompt_logprobs(self.service.texts, job.prompt_logprobs or ())
        if self.request.return_token_ids:
            choice |= {"token_ids": job.tokens, "prompt_token_ids": job.prompt}
        return choice

    def pieces(self, index: int, event: StreamEvent) -> Iterator[dict[str, Any]]:
        job, first = self.jobs[index], index not in self.begun
        self.begun.add(index)
        text = self._prompt_of(index) + event.text if first else event.text
        choice = self._choice(index, text, event.finish_reason is not None)
        choice["logprobs"] = self._logprobs(index, event.tokens, event.logprobs, first)
        self.offsets[index] += len(event.text)
        if self.request.return_token_ids:
            choice["token_ids"] = event.tokens
        yield self.head | {"choices": [choice]} | self.usage_so_far(job)


def _mean(job: Continuation) -> float:
    """The mean log-probability of a job's tokens."""
    entries = job.logprobs or ()
    return sum(entry.logprob for entry in entries) / max(1, len(entries))


async def completions(service: Service, request: CompletionRequest, owner: str) -> Completions:
    """Checks everything, and makes the answer, which runs when it is sent."""
    settings = service.settings
    model = service.model_named(request.model)
    prompts = prompts_of(request.prompt, settings.max_prompts)
    check_sizes(request, settings)
    mark = stamp(request, "cmpl-")
    count = count_of(request, settings)
    best_of = ranged("best_of", request.best_of, count, settings.max_n, count)
    if best_of > count and request.stream:
        raise bad("best_of: a stream cannot be chosen from, it has to be n", "best_of")
    logprobs = request.logprobs
    if logprobs is not None:
        ranged("logprobs", logprobs, 0, settings.max_logprobs, 0)
    scored = logprobs if request.echo and logprobs is not None else request.prompt_logprobs
    params = params_of(
        request,
        settings,
        max_tokens=limit_of(request.max_tokens, DEFAULT_TOKENS, settings),
        logprobs=0 if logprobs is None and best_of > count else logprobs,
    )
    params = replace(params, prompt_logprobs=scored)
    return await service.in_pool(_prepare, service, request, owner, model, prompts, params, best_of, mark)


def _prepare(
    service: Service,
    request: CompletionRequest,
    owner: str,
    model: str,
    prompts: list[str | list[int]],
    params: SamplingParams,
    best_of: int,
    mark: Stamp,
) -> Completions:
    llm, bos = service.llm, None if request.add_special_tokens is not False else False
    jobs: list[Continuation] = []
    texts = []
    try:
        tokens = [
            llm.encode(p, bos=bos) if isinstance(p, str) else token_ids(p, llm.vocab_size, "prompt")
            for p in prompts
        ]
        service.check_lengths(tokens, "prompt")
        each = seeds_of(params, len(prompts) * best_of)
        for i, (prompt, ids) in enumerate(zip(prompts, tokens, strict=True)):
            texts.append(prompt if isinstance(prompt, str) else llm.decode(ids, special=True))
            jobs += llm._prepare([ids] * best_of, each[i * best_of : (i + 1) * best_of], {})
    except (LLMError, TypeError, ValueError) as error:
        raise refused(error, request) from None
    service.set_terms(jobs, owner, request)
    return Completions(service, request, model, jobs, texts, best_of, mark)
