"""Requests of clients as requests of the scheduler: between the event loop and the thread that steps.

The event loop never waits for the engine, and the engine never for a client: what becomes of a job goes into
a mailbox, and the loop is woken once for all that came until it looks.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import Any

from pyllm.sampling import StreamEvent
from pyllm.scheduler import Request, Scheduler

Receive = Callable[[], Awaitable[Any]]
PING = object()  # in a mailbox: nothing has come for a while
GONE = object()  # ... the client has left, or is to be left


class ClientGone(Exception):
    """Nobody is there to be answered."""


class Poster:
    """Wakes an event loop from another thread, once for all that is posted until it looks."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._posted: deque[Mailbox] = deque()
        self._awake = False

    def post(self, mailbox: Mailbox) -> None:
        """Has a mailbox looked into. From any thread."""
        self._posted.append(mailbox)  # before the look at `_awake`: see _look()
        if not self._awake:
            self._awake = True
            self._loop.call_soon_threadsafe(self._look)

    def _look(self) -> None:
        self._awake = False  # before what was posted is taken out: what comes later is another call's
        while self._posted:
            self._posted.popleft().ready.set()


class Mailbox:
    """What becomes of the jobs of one client, in order: (index of the job, StreamEvent or the ended job)."""

    def __init__(self, poster: Poster) -> None:
        self._poster = poster
        self._items: deque[tuple[int, Any]] = deque()
        self.ready = asyncio.Event()

    def put(self, index: int, item: Any) -> None:
        """From any thread."""
        self._items.append((index, item))
        self._poster.post(self)

    async def get(self) -> tuple[int, Any]:
        while not self._items:
            self.ready.clear()
            await self.ready.wait()
        return self._items.popleft()


class Slot:
    """The `updates` of one job: its place in a mailbox."""

    def __init__(self, mailbox: Mailbox, index: int) -> None:
        self._mailbox, self._index = mailbox, index

    def put(self, item: Any) -> None:
        self._mailbox.put(self._index, item)


class Running:
    """Jobs that run for a client, from `async with` on to its end at the latest. Iterating gives what
    becomes of them until all have ended: (index, StreamEvent), (index, the job when it has ended), and (-1,
    PING) after a while of silence. ClientGone as soon as the client leaves.

    jobs     all of one client
    receive  ASGI's, which tells that the client has left; the request has been read
    """

    def __init__(
        self, scheduler: Scheduler, poster: Poster, jobs: Sequence[Request], receive: Receive
    ) -> None:
        self.jobs, self._scheduler, self._receive = jobs, scheduler, receive
        self._mailbox = Mailbox(poster)
        self._left = len(jobs)
        self.heard = time.monotonic()  # when something was last taken out
        self.sending = 0.0  # since when the client is being written to; 0: it is not
        self.gone = False  # whether it has left
        self.dropped = False  # whether it was let go of, since it did not read

    async def __aenter__(self) -> Running:
        for index, job in enumerate(self.jobs):
            job.updates = Slot(self._mailbox, index)  # type: ignore[assignment]
        self._scheduler.add(*self.jobs)
        self._task = asyncio.current_task()
        self._watch = asyncio.create_task(self._watched())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._watch.cancel()
        self.cancel()

    def cancel(self) -> None:
        """Ends the jobs before the next step."""
        for job in self.jobs:
            if not job.ended:
                self._scheduler.cancel(job)

    async def _watched(self) -> None:
        """Waits until the client has left."""
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.leave()

    def leave(self) -> None:
        """The client has left."""
        self.gone = True
        self.cancel()
        self._mailbox.put(-1, GONE)

    def drop(self) -> None:
        """Lets go of a client that is being written to and does not read."""
        self.dropped = True
        self.cancel()
        if self._task is not None:
            self._task.cancel()

    def ping(self) -> None:
        """Says that nothing has come for a while."""
        self._mailbox.put(-1, PING)

    def __aiter__(self) -> Running:
        return self

    async def __anext__(self) -> tuple[int, StreamEvent | Request | object]:
        if self._left == 0:
            raise StopAsyncIteration
        index, item = await self._mailbox.get()
        self.heard = time.monotonic()
        if item is GONE:
            raise ClientGone
        if isinstance(item, Request):
            self._left -= 1
        return index, item
