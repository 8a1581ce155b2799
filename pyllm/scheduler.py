"""What runs next: the Scheduler owns the running batch of one model, and takes requests while it runs.

A request is tokens to run, and what becomes of the logits; what for (sampling.py, scoring.py) is not known
here. Each step is one pass over the weights for all requests that run. Since a token's logits do not depend
on what else is in a pass, nothing that is decided here changes a result.

While few requests run, a step has room for guesses at the tokens that come next. Their logits are passed on
while they turn out to be right, and they are taken out of the sequence from the first that is not.

One thread steps: it is started with the first request and ends when there has been none for a while. It alone
touches the batch; others reach it through a queue, so that a caller may be interrupted anywhere, or leave,
without harm to the rest.
"""

from __future__ import annotations

import atexit
import os
import threading
import weakref
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any

from pyllm._llm import ffi
from pyllm.binding import CHUNK, Cache, LLMError, Model, shared_prefix

MAX_BATCH = 32  # requests that run at the same time
MAX_IDLE = 4  # sequences kept after their requests, for those that begin alike
BESIDE = 64  # tokens of prompts in a step in which others generate: they wait for all of it
MIN_SHARED = 32  # tokens that are worth waiting for another request to compute them
MIN_COPIED = 8  # tokens that are worth a copy, which is made in pages of 64
MAX_LOGITS = 1 << 24  # numbers in the logits of one step, but for small batches
MAX_DRAFTING = 2  # requests that run at once, for drafts to be tried: with more a step has enough to do
# Tokens of a step with drafts: products of fp16 with 48 or more are rounded otherwise (see llm.h), and drafts
# must not change a result
MAX_DRAFTED = 15
IDLE = 5.0  # seconds without a request after which the thread ends
CANCELLED = "the request was cancelled"
LAST = 10.0  # seconds that the end of the process waits for the step that is under way


class Request:
    """Tokens to run, and what becomes of their logits.

    ids      what the sequence is to hold: accept() may append to it. The request ends when all have been run.
    first    the place of the first of them whose logits are wanted; those of all behind it are, too
    cached   how many of them had been computed before
    guesses  in accept(): the tokens behind ids that are run in the same step, whether they come or not
    drafted  how many guesses have been run for it
    updates  where the request itself is put when it has ended, and before it what accept() puts there
    ended    whether it has; `error` then says why, if it failed

    A subclass has accept(). It runs in the thread that steps, between two steps of all requests: it must not
    wait for anything. What it raises ends this request only.
    """

    def __init__(self, ids: list[int], first: int) -> None:
        self.ids, self.first = ids, first
        self.cached = self.drafted = 0
        self.guesses: list[int] = []
        self.updates: SimpleQueue[Any] = SimpleQueue()
        self.cancelled = self.ended = False
        self.error: BaseException | None = None
        self.seq = -1  # the sequence that it has in the batch; -1: none yet
        self.after: tuple[Request, int] | None = None  # another one, of which it awaits so many tokens

    def start(self) -> None:
        """Called once, before the first accept()."""

    def accept(self, logits: Any) -> None:
        """Takes the logits after the next token: a float * to (vocab_size,), valid during the call."""
        raise NotImplementedError

    def draft(self, most: int) -> list[int]:
        """At most that many tokens that accept() may append to ids next, in this order."""
        return []

    def end(self, error: BaseException | None = None) -> None:
        """Called once, by the scheduler."""
        self.error, self.ended = error, True
        try:
            self.updates.put(self)
        except Exception as failed:  # a queue of the caller's own
            self.error = error or failed


@dataclass
class Part:
    """What a step runs of a request: its next `count` ids, and with the last of them guesses behind it."""

    request: Request
    count: int
    guesses: list[int] = field(default_factory=list)


class Scheduler:
    """The running batch of one model. Any thread may add and cancel requests.

        scheduler.add(request)      # starts the thread that steps
        request.updates.get()       # waits

    Requests enter the batch in the order in which they came, as places in it become free; those that come
    together take turns with others as if they were one. In each step those that generate go first, with a
    token each; then up to a budget of tokens the prompts, half of it for the one that came first, so that
    none starves, the rest for those with the least left.

    A request takes over the sequence that begins most like its prompt, or a copy of it, and waits for one
    that is computing the same tokens already. A few sequences are kept after their requests for that.

    max_running  requests that run at the same time; fewer where memory for so many cannot be reserved
    max_idle     sequences that are kept
    """

    def __init__(
        self,
        model: Model,
        context: int,
        threads: int,
        *,
        max_running: int = MAX_BATCH,
        max_idle: int = MAX_IDLE,
    ) -> None:
        self.max_running, self.max_idle = max_running, max_idle
        self._model, self._context, self._threads = model, context, threads
        self._closed = f"{model.path} is closed"
        self._max_rows = max(2 * max_running, MAX_LOGITS // model.vocab_size)
        self._cache: Cache | None = self._open_cache()
        self._inbox: SimpleQueue[tuple[Request, ...]] = SimpleQueue()
        self._waiting: deque[deque[Request]] = deque()  # what came together, each in its order
        self._running: list[Request] = []  # in the order in which they entered
        self._idle: list[int] = []  # sequences without a request that hold tokens, the longest unused first
        self._lock = threading.RLock()  # for `_thread`: whether there is one that will look into the inbox
        self._thread: threading.Thread | None = None
        self._driving = threading.Lock()  # held by who steps
        self._stepping = False
        self._stopped = False  # the process ends
        self.closed = False
        _ALL.add(self)

    # ------------------------------------------------------------------------------------------------------
    # For any thread

    def add(self, *requests: Request) -> None:
        """Takes requests in; those of one call take turns with others as one. LLMError after close()."""
        with self._lock:
            if self.closed:
                raise LLMError(self._closed)
            self._inbox.put(requests)
            self._wake()

    def cancel(self, request: Request) -> None:
        """Ends a request before the next step. It may have ended already."""
        request.cancelled = True  # the thread that steps sees it: while requests run it does not sleep

    def get(self, request: Request) -> Any:
        """Waits for the next of a request's updates."""
        while self._thread is None and request.updates.empty():
            with self._driving:
                if request.updates.empty():
                    self.step()
        return request.updates.get()

    def run(self, requests: Sequence[Request]) -> None:
        """Adds requests and waits until all have ended. When one fails, the others are cancelled and its
        error is raised."""
        ends: SimpleQueue[Any] = SimpleQueue()
        for request in requests:
            request.updates = ends
        try:
            if requests:
                self.add(*requests)
            for request in requests:
                ended = self.get(request)
                if ended.error is not None:
                    raise ended.error
        finally:
            for request in requests:
                self.cancel(request)

    def close(self) -> None:
        """Fails all requests before the next step, and refuses others. Does not wait: it may be called from
        anywhere, by the garbage collector too."""
        self.closed = True
        self._inbox.put(())

    # ------------------------------------------------------------------------------------------------------
    # For the thread that steps

    def _wake(self) -> None:
        """Starts the thread unless there is one."""
        if not self._stopped and (self._thread is None or not self._thread.is_alive()):
            self._thread = threading.Thread(target=self._drive, name="pyllm", daemon=True)
            try:
                self._thread.start()
            except RuntimeError:  # there can be no more threads: those that wait step, see get()
                self._thread = None

    def _drive(self) -> None:
        with self._driving:
            with self._lock:
                self._thread = threading.current_thread()
            while True:
                try:
                    busy = self.step()
                except BaseException:  # all requests have failed, and tell their callers
                    busy = False
                if busy and not self._stopped:
                    continue
                if not self.closed and not self._stopped:
                    with suppress(Empty):
                        self._take_in(self._inbox.get(timeout=IDLE))
                with self._lock:
                    if self._stopped or (self._inbox.empty() and not self._waiting):
                        self._thread = None
                        return

    def step(self) -> bool:
        """One pass over the weights for the requests that run. Returns whether there are requests left. One
        thread at a time may call it."""
        self._stepping = True
        try:
            self._enter()
            if parts := self._plan():
                self._run(parts)
        except BaseException as error:
            self._fail(error)
            raise
        finally:
            self._stepping = False
        return bool(self._running or self._waiting)

    def _fail(self, error: BaseException) -> None:
        """Ends all requests with an error."""
        self._take_all_in()
        requests = [*self._running, *(request for group in self._waiting for request in group)]
        self._running.clear()
        self._waiting.clear()
        self._idle.clear()
        self._cache = None  # whatever state it is in
        for request in requests:
            own = LLMError(f"{error}" if isinstance(error, LLMError) else f"a step failed: {error!r}")
            own.__cause__ = error
            request.end(own)

    # What enters the batch, and where

    def _take_in(self, requests: tuple[Request, ...]) -> None:
        if requests:
            self._waiting.append(deque(requests))

    def _take_all_in(self) -> None:
        while not self._inbox.empty():
            self._take_in(self._inbox.get())

    def _next(self) -> Request | None:
        """The next request to enter."""
        while self._waiting:
            group = self._waiting.popleft()
            request = group.popleft()
            if group:
                self._waiting.append(group)
            if not request.cancelled:
                return request
            request.end(LLMError(CANCELLED))
        return None

    def _enter(self) -> None:
        """Takes new requests in, lets cancelled ones go, and gives places to those that wait for one."""
        self._take_all_in()
        if self.closed:
            self._fail(LLMError(self._closed))
            return
        for request in [request for request in self._running if request.cancelled]:
            self._leave(request, LLMError(CANCELLED))
        if self._cache is None and self._waiting:
            self._cache = self._open_cache()
        while self._cache and len(self._running) < min(self.max_running, len(self._cache.tokens)):
            if (entering := self._next()) is None:
                break
            self._running.append(entering)
        for request in [request for request in self._running if request.seq < 0]:
            try:
                self._place(request)
            except Exception as error:
                self._leave(request, error)

    def _leave(self, request: Request, error: BaseException | None = None) -> None:
        """Takes a request out of the batch; what it has computed is kept for a while."""
        self._running.remove(request)
        if request.seq >= 0 and self._tokens(request.seq):
            self._idle.append(request.seq)
            while len(self._idle) > self.max_idle:
                self._batch.truncate(self._idle.pop(0), 0)
        request.end(error)

    def _open_cache(self) -> Cache:
        n_seqs = self.max_running + self.max_idle
        return Cache.open(self._model, self._context, self._threads, n_seqs)

    @property
    def _batch(self) -> Cache:
        """The cache, where there is one: while requests run."""
        assert self._cache is not None
        return self._cache

    def _tokens(self, seq: int) -> list[int]:
        return self._batch.tokens[seq]

    def _place(self, request: Request) -> None:
        """Gives a request a sequence with as much of its prompt as is known, or lets it wait for another one
        that is about to compute more of it."""
        if request.after and not request.after[0].ended:
            other, length = request.after
            if other.seq >= 0 and len(self._tokens(other.seq)) < length:
                return
        seqs = range(len(self._batch.tokens))
        shared = [self._batch.reusable(seq, request.ids, request.first) for seq in seqs]
        best = max(seqs, key=lambda seq: (shared[seq], seq in self._idle))
        placed = [other for other in self._running if other.seq >= 0]
        for other in placed:
            length = min(shared_prefix(other.ids, request.ids), request.first)
            to_come = length > len(self._tokens(other.seq))
            if to_come and length - shared[best] >= MIN_SHARED:
                request.after = other, length
                return
        request.after = None
        used = {other.seq for other in placed}
        empty = [seq for seq in seqs if seq not in used and seq not in self._idle]
        length = shared[best]
        if best in self._idle and len(self._tokens(best)) <= 2 * length:  # less is lost than won
            seq = best
        elif empty and (len(self._idle) < self.max_idle or not self._idle):
            seq = empty[0]
        else:
            seq = self._idle[0]
        if seq in self._idle:
            self._idle.remove(seq)
        if seq == best:
            self._batch.truncate(seq, length)
        elif length >= MIN_COPIED:
            self._batch.copy(best, seq, length)
        else:
            self._batch.truncate(seq, 0)
        request.seq, request.cached = seq, len(self._tokens(seq))
        request.start()

    # A step: which tokens, the pass, what comes of it

    def _pending(self, request: Request) -> int:
        return len(request.ids) - len(self._tokens(request.seq))

    def budget(self, generating: int) -> int:
        """How many tokens of prompts, at least 1, a step may have beside that many requests that generate."""
        return min(CHUNK - generating, BESIDE) if generating else CHUNK

    def _plan(self) -> list[Part]:
        """How many tokens of which requests are run in this step."""
        placed = [request for request in self._running if request.seq >= 0]
        prompts = [request for request in placed if self._pending(request) > 1]
        parts = [Part(request, 1) for request in placed if self._pending(request) == 1]
        room = self.budget(len(parts))
        rows = self._max_rows - len(parts)
        if not prompts:
            return self._with_guesses(parts)
        counts = dict.fromkeys(prompts, 0)
        oldest = prompts[0]
        turns = [(oldest, (room + 1) // 2)]
        turns += [(request, room) for request in sorted(prompts, key=self._pending)]
        for request, most in turns:
            count = min(self._pending(request) - counts[request], most, room)
            at = len(self._tokens(request.seq)) + counts[request]
            count = min(count, max(0, request.first - at) + rows)
            counts[request] += count
            room -= count
            rows -= max(0, at + count - max(at, request.first))
        return parts + [Part(request, count) for request, count in counts.items() if count]

    def _with_guesses(self, parts: list[Part]) -> list[Part]:
        """The parts of requests that generate, with guesses if few run; less those whose draft() failed."""
        if len(self._running) > MAX_DRAFTING:
            return parts
        room = min(MAX_DRAFTED, self._max_rows) - len(parts)
        for i, part in enumerate(list(parts)):
            try:
                part.guesses = part.request.draft(room // (len(parts) - i))
            except Exception as error:
                self._leave(part.request, error)
            room -= len(part.guesses)
        return [part for part in parts if not part.request.ended]

    def _run(self, parts: list[Part]) -> None:
        """A pass over the weights."""
        tokens: list[int] = []
        seqs: list[int] = []
        want: list[bool] = []
        wanted: list[int] = []
        lengths = [len(self._tokens(part.request.seq)) for part in parts]
        for part, at in zip(parts, lengths, strict=True):
            request, end = part.request, at + part.count
            tokens += request.ids[at:end] + part.guesses
            seqs += [request.seq] * (part.count + len(part.guesses))
            want += [i >= request.first for i in range(at, end)] + [True] * len(part.guesses)
            wanted.append(max(0, end - max(at, request.first)) + len(part.guesses))
        try:
            rows = self._batch.forward(tokens, seqs, want)
        except Exception as error:
            self._batch.sync()
            for part, length in zip(parts, lengths, strict=True):
                self._batch.truncate(part.request.seq, length)
            if any(part.guesses for part in parts):  # it may be the fault of one of them
                self._run([Part(part.request, part.count) for part in parts])
            elif len(parts) == 1:
                self._leave(parts[0].request, error)
            else:  # finds out whose fault it is
                for part in parts:
                    self._run([part])
            return
        logits = ffi.from_buffer("float[]", rows)
        at = 0
        for part, count in zip(parts, wanted, strict=True):
            try:
                self._pass_on(part, logits + at * self._batch.vocab_size, count)
            except Exception as error:
                self._leave(part.request, error)
            else:
                if self._pending(part.request) == 0:
                    self._leave(part.request)
            at += count

    def _pass_on(self, part: Part, logits: Any, count: int) -> None:
        """Gives a request its logits (count, vocab_size): those behind its own tokens, and those behind
        guesses that are right. The other guesses leave the sequence."""
        request, guesses = part.request, part.guesses
        start, right = len(request.ids), 0
        request.guesses = guesses
        request.drafted += len(guesses)
        try:
            for row in range(count):
                request.accept(logits + row * self._batch.vocab_size)
                if guesses and request.ids[start + right :] != guesses[right : right + 1]:
                    break  # another token came; or none, since it has ended
                right += 1
        finally:
            request.guesses = []
            if right < len(guesses):
                self._batch.truncate(request.seq, start + right)

    # ------------------------------------------------------------------------------------------------------
    # The process forks, or ends

    def after_fork(self) -> None:
        """In the child, which has neither the thread nor what it was doing."""
        requests = [*self._running, *(request for group in self._waiting for request in group)]
        while not self._inbox.empty():
            requests += self._inbox.get()
        if self._stepping or (self._cache is not None and self._cache.orphaned):
            self._cache = None
            self._idle.clear()
        self._idle += [request.seq for request in self._running if request.seq >= 0 and self._cache]
        self._running.clear()
        self._waiting.clear()
        self._inbox = SimpleQueue()
        self._lock, self._driving = threading.RLock(), threading.Lock()
        self._thread, self._stepping = None, False
        for request in requests:
            request.end(LLMError("this was begun before the process was forked: begin it again"))

    def stop(self, timeout: float) -> None:
        """Ends the thread after its step, and tells nobody: threads that wait for it end with the process."""
        self._stopped = True
        self._inbox.put(())
        if (thread := self._thread) is not None and thread is not threading.current_thread():
            thread.join(timeout)


_ALL: weakref.WeakSet[Scheduler] = weakref.WeakSet()


def _after_fork() -> None:
    for scheduler in list(_ALL):
        scheduler.after_fork()


@atexit.register
def _end_all() -> None:
    """Before Python takes memory away that a thread in the engine uses."""
    for scheduler in list(_ALL):
        scheduler.stop(LAST)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
