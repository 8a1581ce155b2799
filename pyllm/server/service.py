"""The model that a server serves: what its requests share, and whether one more can be taken."""

from __future__ import annotations

import asyncio
import hashlib
import math
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, ParamSpec, TypeVar

from pyllm.binding import LLMError, __version__
from pyllm.embedding import Embedding, Recipe
from pyllm.engine import LLM
from pyllm.sampling import Continuation, SamplingParams
from pyllm.scheduler import Policy, Request, Scheduler, Terms
from pyllm.server.errors import ApiError, bad
from pyllm.server.logprobs import TokenTexts
from pyllm.server.metrics import Metrics
from pyllm.server.schemas import ranged
from pyllm.server.settings import Settings
from pyllm.server.work import Poster, Receive, Running

SERVED = Policy(max_running=16, max_idle=48, itl=0.1)  # what a server is like, unless told otherwise
SWITCH = 0.0005  # seconds for which a thread of Python holds the others up: the engine's waits for the loop's
TICK = 1.0  # seconds between looks at streams that are silent, and at clients that do not read
WARM_TOKENS, WARM_STEPS = 64, 4  # of the request that is run when the server starts
POOL = 4  # threads that make ids of texts

P = ParamSpec("P")
R = TypeVar("R")


class Service:
    """A model and those who use it.

    llm       the model; it is not closed here
    settings  names and limits
    """

    def __init__(self, llm: LLM, settings: Settings) -> None:
        self.llm, self.settings = llm, settings
        self.names = settings.names or (llm.name,)
        self.started = int(time.time())
        self.metrics = Metrics(self.names[0])
        self.scheduler: Scheduler = llm._batch()
        self.scheduler.on_step = self.metrics.on_step
        self.texts = TokenTexts(llm._open())
        self.draining = False
        self._drained = math.inf  # time.monotonic() when what runs has to end
        self.running: set[Running] = set()
        isa = llm.instruction_set
        model = llm._open().fingerprint + __version__.encode() + isa.encode()
        # of what makes the bytes what they are
        self.fingerprint = f"fp_{hashlib.sha256(model).hexdigest()[:16]}"
        self._pool = ThreadPoolExecutor(POOL, "pyllm-text")
        self._poster: Poster | None = None
        self._ticker: asyncio.Task[None] | None = None

    # ------------------------------------------------------------------------------------------------------
    # Life

    async def start(self) -> None:
        """In the event loop that the requests will come from. Called again it does nothing."""
        if self._ticker is None and not self.draining:
            sys.setswitchinterval(min(sys.getswitchinterval(), SWITCH))
            self._poster = poster = Poster(asyncio.get_running_loop())
            self._ticker = asyncio.create_task(self._tick())
            await self._warm_up(poster)

    async def _warm_up(self, poster: Poster) -> None:
        """Runs something, so that pages of the file are there, and it is known what a step costs."""
        length = max(1, min(WARM_TOKENS, self.llm.context - WARM_STEPS))
        ids = [i % self.llm.vocab_size for i in range(length)]
        jobs: list[Request] = [Embedding(ids, Recipe(), None)]
        if self.llm._recipe.generates:
            params = SamplingParams(max_tokens=WARM_STEPS, ignore_eos=True, temperature=0)
            jobs = [*self.llm._prepare([ids], params, {})]
        jobs[0].terms = Terms(partition=object(), keep=False)

        async def never() -> Any:
            await asyncio.Event().wait()

        async with Running(self.scheduler, poster, jobs, never) as running:
            async for _ in running:
                pass

    async def stop(self) -> None:
        """Takes no more requests, waits for those that run for as long as settings say, and ends the
        others."""
        self.draining = True
        self._drained = min(self._drained, time.monotonic() + self.settings.drain)
        while self.running and time.monotonic() < self._drained:
            await asyncio.sleep(0.02)
        for running in list(self.running):
            running.cancel()  # they tell their clients
        end = time.monotonic() + TICK
        while self.running and time.monotonic() < end:
            await asyncio.sleep(0.02)
        if self._ticker is not None:
            self._ticker.cancel()
            self._ticker = None
            with suppress(LLMError):  # the model was closed before
                await self.in_pool(self.scheduler.shelve)
        self._pool.shutdown(wait=False)

    def hurry(self) -> None:
        """While it stops: has it wait no longer."""
        self._drained = time.monotonic()

    async def _tick(self) -> None:
        """Sees to streams in which nothing moves."""
        while True:
            await asyncio.sleep(TICK)
            now = time.monotonic()
            for running in list(self.running):
                if running.sending and now - running.sending > self.settings.slow:
                    self.metrics.rejected["slow"] += 1
                    running.drop()
                elif now - running.heard > self.settings.ping:
                    running.ping()

    @property
    def state(self) -> str:
        """ "ok", "draining" or "stuck"."""
        if self.scheduler.stuck(self.settings.stuck):
            return "stuck"
        return "draining" if self.draining else "ok"

    # ------------------------------------------------------------------------------------------------------
    # Requests

    async def in_pool(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """What a function returns that takes its time, such as one that makes ids of a text."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, lambda: function(*args, **kwargs))

    def model_named(self, name: str | None) -> str:
        """The name that an answer carries; 404 when a request is for another model."""
        if name is None or self.settings.any_model or name in self.names:
            return self.names[0] if name is None or name not in self.names else name
        served = ", ".join(self.names)
        raise ApiError(
            404,
            f"the model {name:.100} does not exist; served here: {served}",
            param="model",
            code="model_not_found",
        )

    def check_lengths(self, prompts: Sequence[Sequence[int]], param: str) -> None:
        """400 when a prompt does not fit into the context: nothing is cut in silence."""
        context = self.llm.context
        for ids in prompts:
            if not ids:
                raise bad(f"{param} has no tokens", param)
            if len(ids) > context:
                raise bad(
                    f"the prompt has {len(ids)} tokens, more than the context of {context}",
                    param,
                    "context_length_exceeded",
                    n_prompt_tokens=len(ids),
                    n_ctx=context,
                )

    def set_terms(self, jobs: Sequence[Request], owner: str, request: Any) -> None:
        """Says on what terms the jobs of a request run. owner: the client's key."""
        if request.timeout is not None and request.timeout <= 0:
            raise bad(f"timeout must be above 0, not {request.timeout}", "timeout")
        limits = [self.settings.timeout, request.timeout]
        seconds = min((limit for limit in limits if limit is not None), default=math.inf)
        kept = request.cache is not False
        terms = Terms(
            owner=owner,
            partition=(owner, request.cache_salt) if kept else object(),
            priority=ranged("priority", request.priority, -(2**31), 2**31, 0),
            deadline=time.monotonic() + seconds,
            keep=kept,
        )
        for job in jobs:
            job.terms = terms

    def run(self, jobs: Sequence[Request], receive: Receive) -> Running:
        """Jobs on their way; 429 or 503 when they cannot be taken."""
        self._admit(jobs)
        assert self._poster is not None, "the service was not started"
        running = Running(self.scheduler, self._poster, jobs, receive)
        self.running.add(running)
        return running

    def check_open(self) -> None:
        """503 when the server has been told to end."""
        if self.draining:
            raise ApiError(503, "the server is shutting down", code="shutting_down", retry_after=5)

    def _admit(self, jobs: Sequence[Request]) -> None:
        self.check_open()
        memory = self.scheduler.policy.memory
        if memory is not None and any(self.llm.kv_bytes(job.most) > memory for job in jobs):
            most = max(self.llm.kv_bytes(job.most) for job in jobs)
            raise ApiError(
                400,
                f"the request may need {most} bytes of keys and values, more than the {memory} of this"
                " server: ask for fewer tokens",
                param="max_tokens",
                code="too_much_memory",
            )
        ahead = sum(not job.ended for running in self.running for job in running.jobs)
        if not ahead:  # it would not be better later
            return
        expected = self.expected_wait(jobs[:1])
        if ahead + len(jobs) > self.settings.max_waiting + self.scheduler.policy.max_running:
            self.metrics.rejected["queue"] += 1
            raise self._busy(f"{ahead} requests run or wait", expected)
        if expected > self.settings.max_wait:
            self.metrics.rejected["wait"] += 1
            raise self._busy(f"the first token would come in about {expected:.0f} s", expected)

    def _busy(self, why: str, expected: float) -> ApiError:
        after = max(1.0, expected - self.settings.max_wait / 2)
        return ApiError(429, f"the server is busy: {why}", code="server_busy", retry_after=after)

    def expected_wait(self, jobs: Sequence[Request]) -> float:
        """Seconds until these would have their first tokens, about; 0 where nothing is known yet."""
        pace, policy = self.scheduler.pace, self.scheduler.policy
        if not pace.known:
            return 0.0
        ahead = [job for running in self.running for job in running.jobs if not job.ended]
        generating = [job for job in ahead if job.started and job.seq >= 0 and self.scheduler.left(job) <= 1]
        prompts = sum(self.scheduler.left(job) for job in [*ahead, *jobs] if job not in generating)
        depth = sum(len(job.ids) for job in generating)
        step = max(1, self.scheduler.budget(len(generating), depth, 0))
        seconds = prompts / step * pace.seconds(step + len(generating), depth)
        excess = len(ahead) + len(jobs) - policy.max_running
        if excess > 0:  # the first of them wait until others have ended
            left = sorted(job.most - len(job.ids) for job in ahead if isinstance(job, Continuation))
            turns = left[min(excess, len(left)) - 1] if left else 0
            seconds += self.metrics.share_made * turns * pace.seconds(max(1, len(generating)), depth)
        return seconds

    def expected_decoding(self, length: int, tokens: int) -> float:
        """Seconds that so many tokens behind a prompt of that length would take beside those that run now,
        about; 0 where nothing is known yet."""
        pace = self.scheduler.pace
        if not pace.known or tokens < 2:
            return 0.0
        beside = [job for running in self.running for job in running.jobs if job.started and not job.ended]
        reads = sum(len(job.ids) for job in beside) + length + tokens // 2
        return (tokens - 1) * pace.seconds(1 + len(beside), reads)
