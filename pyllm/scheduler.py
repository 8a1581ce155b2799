"""What runs next: the Scheduler owns the running batch of one model, and takes requests while it runs.

A request is tokens to run, and what becomes of the logits; what for (sampling.py, scoring.py) is not known
here. Each step is one pass over the weights for all requests that run. Since a token's logits do not depend
on what else is in a pass, nothing that is decided here changes a result: not who goes first (waiting.py), nor
what is kept of earlier requests (places.py), nor how much a step is thought to cost (pace.py).

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
import time
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from math import inf
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np

from pyllm._llm import ffi, lib
from pyllm.binding import CHUNK, Cache, LLMError, Model
from pyllm.pace import Pace
from pyllm.places import Places
from pyllm.shelf import Shelf
from pyllm.waiting import Shares, Waiting

MAX_BATCH = 32  # requests that run at the same time
MAX_IDLE = 4  # sequences kept after their requests, for those that begin alike
BESIDE = 64  # tokens of prompts in a step in which others generate, where it is not known what they cost
LEAST_BESIDE = 16  # those that any such step has room for: fewer take about as long
MAX_LOGITS = 1 << 24  # numbers in the logits of one step, but for small batches
MAX_DRAFTING = 2  # requests that run at once, for drafts to be tried: with more a step has enough to do
# Tokens of a step with drafts: products of fp16 with 48 or more are rounded otherwise (see llm.h), and drafts
# must not change a result
MAX_DRAFTED = 15
IDLE = 5.0  # seconds without a request after which the thread ends
CANCELLED = "the request was cancelled"
LAST = 10.0  # seconds that the end of the process waits for the step that is under way


class LateError(LLMError):
    """The time that a request had is over."""


@dataclass(frozen=True, kw_only=True)
class Policy:
    """How the requests of one model share the processor and its memory. Results do not depend on it.

    max_running  requests that run at the same time; fewer where memory for so many cannot be reserved
    max_idle     sequences that are kept after their requests, for those that begin alike
    itl          seconds between two tokens of those that generate, at most, while others have prompts to be
                 run: how many tokens of prompts a step takes follows from what steps have cost; None: always
                 64
    throughput   whether prompts are run as fast as possible, however long others wait for their tokens
    memory       bytes of keys and values, those that are kept included; None: no limit. A request waits until
                 there is room for all that it may generate
    overcommit   whether a request enters when there is room for its prompt. Where memory then runs out, the
                 last one of the lowest priority leaves, and comes back later
    folder       where sequences that were of use to several requests are written when there is no more room
                 for them, and when shelve() is called; None: nowhere. Whoever may read it may read the texts
    folder_size  bytes that it may take
    """

    max_running: int = MAX_BATCH
    max_idle: int = MAX_IDLE
    itl: float | None = None
    throughput: bool = False
    memory: int | None = None
    overcommit: bool = False
    folder: str | os.PathLike[str] | None = None
    folder_size: int = 10 << 30


@dataclass(frozen=True, kw_only=True)
class Terms:
    """On what terms a request runs.

    owner      whose it is: owners get equal shares
    partition  who may begin with what was computed for it: requests of equal partitions
    priority   those of a lower number go first, and take the places of others
    deadline   time.monotonic() after which it ends with a LateError
    keep       whether what was computed for it is kept for others
    """

    owner: str = ""
    partition: Any = None
    priority: int = 0
    deadline: float = inf
    keep: bool = True


@dataclass(frozen=True)
class Step:
    """What a step was.

    seconds     that the pass over the weights took
    tokens      that it ran
    generating  requests for which it computed their next token
    """

    seconds: float
    tokens: int
    generating: int


class Request:
    """Tokens to run, and what becomes of their logits.

    ids      what the sequence is to hold: accept() may append to it. The request ends when all have been run.
    first    the place of the first of them whose logits are wanted; those of all behind it are, too
    states   the same of their states, see llm_forward_states(); None: none are wanted
    cached   how many of them had been computed before
    terms    on what terms it runs; set before it is added
    guesses  in accept(): the tokens behind ids that are run in the same step, whether they come or not
    drafted  how many guesses have been run for it
    seconds  its share of the time that steps took, and of the bytes of weights that they `read`; by tokens
    updates  where the request itself is put when it has ended, and before it what accept() puts there
    ended    whether it has; `error` then says why, if it failed

    A subclass has accept(). It runs in the thread that steps, between two steps of all requests: it must not
    wait for anything. What it raises ends this request only.
    """

    def __init__(self, ids: list[int], first: int, states: int | None = None) -> None:
        self.ids, self.first, self.states, self.terms = ids, first, states, Terms()
        self.cached = self.drafted = 0
        self.seconds = self.read = 0.0
        self.guesses: list[int] = []
        self.updates: SimpleQueue[Any] = SimpleQueue()
        self.cancelled = self.ended = False
        self.error: BaseException | None = None
        self.seq = -1  # the sequence that it has in the batch; -1: none
        self.started = False  # whether it has had a place
        self.began = self.answered = 0.0  # time.monotonic() of that, and of its first logits
        self.uses = 1  # requests that have begun with its sequence
        self.known: list[int] = []  # what that held, where it went on behind the prompt
        self.after: tuple[Request, int] | None = None  # another one, of which it awaits so many tokens

    @property
    def most(self) -> int:
        """How many ids it may come to have."""
        return len(self.ids)

    @property
    def fresh(self) -> int:
        """The place from which on its ids are run, whatever is known of them."""
        return self.first if self.states is None else min(self.first, self.states)

    def start(self) -> None:
        """Called once, before the first accept()."""

    def accept(self, logits: Any) -> None:
        """Takes the logits after the next token: a float * to (vocab_size,), valid during the call."""
        raise NotImplementedError

    def accept_states(self, states: np.ndarray) -> None:
        """Takes states of tokens that follow each other: (n, dim), valid during the call."""
        raise NotImplementedError

    def draft(self, most: int) -> list[int]:
        """At most that many tokens that accept() may append to ids next, in this order."""
        return []

    def wants(self, place: int) -> int:
        """What is wanted of the id in a place, of enum llm_want."""
        logits = lib.LLM_WANT_LOGITS if place >= self.first else 0
        state = lib.LLM_WANT_STATE if self.states is not None and place >= self.states else 0
        return int(logits | state)

    def states_in(self, start: int, end: int) -> int:
        """How many states are wanted of the ids in these places."""
        return 0 if self.states is None else max(0, end - max(start, self.states))

    def end(self, error: BaseException | None = None) -> None:
        """Called once, by the scheduler."""
        self.error, self.ended = error, True
        try:
            self.updates.put(self)
        except Exception as failed:  # a queue of the caller's own
            self.error = error or failed


class _Errand(Request):
    """Something that is to be done between two steps."""

    def __init__(self, do: Callable[[], None]) -> None:
        super().__init__([], 0)
        self.start = do  # type: ignore[method-assign]


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

    Requests enter the batch as places in it become free, those of owners that have few first; those that come
    together take turns with others as if they were one. In each step those that generate go first, with a
    token each; then up to a budget of tokens the prompts, in equal shares of their owners: half of a share is
    for the one that came first, so that none starves, the rest for those with the least left.

    A request takes over the sequence that begins most like its prompt, or a copy of it, and waits for one
    that is computing the same tokens already. Some sequences are kept after their requests for that.

    policy   how they share processor and memory
    on_step  called after each step, by the thread that steps

    isa   the instruction set in use
    beat  time.monotonic() when the step that is under way began, or the last one
    """

    def __init__(
        self,
        model: Model,
        context: int,
        threads: int,
        policy: Policy | None = None,
        on_step: Callable[[Step], None] | None = None,
    ) -> None:
        self.policy, self.on_step = policy or Policy(), on_step
        self.pace = Pace()
        self.beat = time.monotonic()
        self._model, self._context, self._threads = model, context, threads
        self._closed = f"{model.path} is closed"
        self._max_rows = max(2 * self.policy.max_running, MAX_LOGITS // model.vocab_size)
        self._shelf: Shelf | None = None
        self._places: Places | None = self._open_places()
        self.isa = self._places.cache.isa
        if self.policy.folder is not None:
            kv, size = self._places.cache.kv, self.policy.folder_size
            self._places.shelf = self._shelf = Shelf(self.policy.folder, model, kv, context, size)
        self._inbox: SimpleQueue[tuple[Request, ...]] = SimpleQueue()
        self._waiting = Waiting()
        self._running: list[Request] = []  # in the order in which they entered
        self._shares = Shares()
        self._leaving = False  # whether a request was cancelled since the last step
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
        request.cancelled = True
        self._leaving = True  # the thread that steps sees it: while requests run it does not sleep

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

    def shelve(self) -> None:
        """Writes all that is kept and was of use to policy.folder, and waits for it. Nothing can be written
        there afterwards."""
        if self._shelf is not None:
            self.run([_Errand(lambda: self._batch.shelve_all())])
            self._shelf.close()

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
                        self._waiting.add(self._inbox.get(timeout=IDLE))
                with self._lock:
                    if self._stopped or (self._inbox.empty() and not self._waiting):
                        self._thread = None
                        return

    def step(self) -> bool:
        """One pass over the weights for the requests that run. Returns whether there are requests left. One
        thread at a time may call it."""
        self._stepping, self.beat = True, time.monotonic()
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

    def stuck(self, seconds: float) -> bool:
        """Whether a step is under way since longer than that, or requests wait and nobody steps."""
        late = time.monotonic() - self.beat > seconds
        dead = self._thread is not None and not self._thread.is_alive()
        return (self._stepping and late) or (dead and not self._inbox.empty())

    def memory(self) -> tuple[int, int]:
        """The bytes of keys and values that are kept of earlier requests, and those of all. Any thread may
        ask: they are about right."""
        with suppress(RuntimeError, KeyError):  # something has come or gone meanwhile
            if (places := self._places) is not None:
                return places.kept, places.held
        return 0, 0

    def _fail(self, error: BaseException) -> None:
        """Ends all requests with an error."""
        self._take_all_in()
        requests = [*self._running, *self._waiting.clear()]
        self._running.clear()
        self._places = None  # whatever state its cache is in
        for request in requests:
            own = LLMError(f"{error}" if isinstance(error, LLMError) else f"a step failed: {error!r}")
            own.__cause__ = error
            request.end(own)

    # What enters the batch, and what leaves it

    def _take_all_in(self) -> None:
        while not self._inbox.empty():
            self._waiting.add(self._inbox.get())

    def _enter(self) -> None:
        """Takes new requests in, lets go those that are cancelled or late, and gives places to those that
        wait for one."""
        self._take_all_in()
        if self.closed:
            self._fail(LLMError(self._closed))
            return
        self._let_go()
        if self._places is None and self._waiting:
            self._places = self._open_places()
        self._make_room()
        running = Counter(request.terms.owner for request in self._running)
        while (request := self._waiting.next(running)) is not None:
            if not self._has_room_for(request):
                self._waiting.put_back(request)
                break
            running[request.terms.owner] += 1
            self._running.append(request)
        for request in [request for request in self._running if request.seq < 0]:
            try:
                self._place(request)
            except Exception as error:
                self._leave(request, error)

    def _let_go(self) -> None:
        """Ends requests that were cancelled, or whose time is over."""
        now = time.monotonic()

        def gone(request: Request) -> bool:
            return request.cancelled or request.terms.deadline < now

        for request in [request for request in self._running if gone(request)]:
            self._leave(request, _why_gone(request))
        if self._leaving or self._waiting.late:
            self._leaving = False
            for request in self._waiting.take_out(gone):
                request.end(_why_gone(request))

    def _has_room_for(self, request: Request) -> bool:
        """Whether a request can enter, if need be in the place of one of lower priority."""
        full = len(self._running) >= min(self.policy.max_running, len(self._batch))
        if not full and self._batch.has_room_for(request, self._running):
            return True
        last = self._last()
        if last is None or last.terms.priority <= request.terms.priority:
            return False
        self._put_off(last)
        return self._has_room_for(request)

    def _last(self) -> Request | None:
        """The one that runs and would leave first: of the lowest priority the one that came last."""
        placed = [request for request in self._running if request.seq >= 0]
        return max(reversed(placed), key=lambda request: request.terms.priority, default=None)

    def _make_room(self) -> None:
        """Where memory has run out, puts requests off."""
        if self._places is None or self.policy.memory is None:
            return
        self._places.make_room()
        while self._places.overfull and (last := self._last()) is not None:
            self._put_off(last)

    def _put_off(self, request: Request) -> None:
        """Lets a request wait again. What it has computed is kept while there is room; it goes on where it
        was, for the logits that it has got it does not get again."""
        run = len(self._tokens(request.seq))
        request.first = max(request.first, run)
        if request.states is not None:
            request.states = max(request.states, run)
        self._running.remove(request)
        self._batch.leave(request)
        request.seq = -1
        self._waiting.put_back(request)

    def _leave(self, request: Request, error: BaseException | None = None) -> None:
        """Takes a request out of the batch; what it has computed is kept for a while."""
        self._running.remove(request)
        self._batch.leave(request)
        request.end(error)

    def _open_places(self) -> Places:
        n_seqs = self.policy.max_running + self.policy.max_idle
        cache = Cache.open(self._model, self._context, self._threads, n_seqs)
        return Places(cache, self.policy.max_idle, self.policy.memory, self.policy.overcommit, self._shelf)

    @property
    def _batch(self) -> Places:
        """The sequences, where there are any: while requests run."""
        assert self._places is not None
        return self._places

    def _tokens(self, seq: int) -> list[int]:
        return self._batch.tokens(seq)

    def _place(self, request: Request) -> None:
        """Gives a request a sequence, unless it waits for another one."""
        if not self._batch.place(request):
            return
        if not request.started:
            request.started, request.began = True, time.monotonic()
            request.cached = len(self._tokens(request.seq))
            request.start()
        if self._pending(request) == 0:  # all of it is known, and no logits are wanted
            self._leave(request)

    # A step: which tokens, the pass, what comes of it

    def left(self, request: Request) -> int:
        """How many tokens of a request are still to be run. Any thread may ask."""
        seq, places = request.seq, self._places
        return len(request.ids) - (0 if seq < 0 or places is None else len(places.tokens(seq)))

    def _pending(self, request: Request) -> int:
        return len(request.ids) - len(self._tokens(request.seq))

    def budget(self, generating: int, reads: int, depth: int) -> int:
        """How many tokens of prompts, at least 1, a step may have beside that many requests that generate,
        which attend to `reads` positions; each of those tokens attends to about `depth`."""
        if not generating:
            return CHUNK
        if self.policy.throughput:
            return max(1, CHUNK - generating)
        room = BESIDE
        if self.policy.itl is not None and self.pace.known:
            room = max(LEAST_BESIDE, self.pace.room(self.policy.itl, generating, reads, depth))
        return max(1, min(CHUNK - generating, room))

    def _plan(self) -> list[Part]:
        """How many tokens of which requests are run in this step."""
        placed = [request for request in self._running if request.seq >= 0]
        prompts = [request for request in placed if self._pending(request) > 1]
        parts = [Part(request, 1) for request in placed if self._pending(request) == 1]
        if not prompts:
            return self._with_guesses(parts)
        depth = max(len(self._tokens(request.seq)) for request in prompts)
        room = self.budget(len(parts), self._reads(parts), depth)
        wanted = Counter[str]()
        for request in prompts:
            wanted[request.terms.owner] += self._pending(request)
        rows = self._max_rows - len(parts)
        for owner, share in self._shares.split(room, wanted).items():
            own = [request for request in prompts if request.terms.owner == owner]
            for part in self._part(own, share, rows):
                parts.append(part)
                rows -= self._wanted(part)
        return parts

    def _part(self, prompts: list[Request], room: int, rows: int) -> list[Part]:
        """The parts of one owner's prompts. rows: of logits, that they may want."""
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
        return [Part(request, count) for request, count in counts.items() if count]

    def _wanted(self, part: Part) -> int:
        """How many logits a part's own tokens want."""
        end = len(self._tokens(part.request.seq)) + part.count
        return min(part.count, max(0, end - part.request.first))

    def _reads(self, parts: list[Part]) -> int:
        """The positions that the tokens of parts attend to, together."""
        reads = 0
        for part in parts:
            count = part.count + len(part.guesses)
            reads += count * len(self._tokens(part.request.seq)) + count * (count + 1) // 2
        return reads

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
        want: list[int] = []
        wanted: list[int] = []
        lengths = [len(self._tokens(part.request.seq)) for part in parts]
        for part, at in zip(parts, lengths, strict=True):
            request, end = part.request, at + part.count
            tokens += request.ids[at:end] + part.guesses
            seqs += [request.seq] * (part.count + len(part.guesses))
            want += [request.wants(i) for i in range(at, end)] + [lib.LLM_WANT_LOGITS] * len(part.guesses)
            wanted.append(self._wanted(part) + len(part.guesses))
        reads, began = self._reads(parts), time.perf_counter()
        try:
            rows = self._batch.cache.forward(tokens, seqs, want)
        except Exception as error:
            self._batch.cache.sync()
            for part, length in zip(parts, lengths, strict=True):
                self._batch.cache.truncate(part.request.seq, length)
            if any(part.guesses for part in parts):  # it may be the fault of one of them
                self._run([Part(part.request, part.count) for part in parts])
            elif len(parts) == 1:
                self._leave(parts[0].request, error)
            else:  # finds out whose fault it is
                for part in parts:
                    self._run([part])
            return
        self._learn(parts, len(tokens), reads, time.perf_counter() - began)
        logits = ffi.from_buffer("float[]", rows)
        at = of_states = 0
        for part, count, length in zip(parts, wanted, lengths, strict=True):
            states = part.request.states_in(length, length + part.count)
            try:
                self._pass_on(part, logits + at * self._model.vocab_size, count)
                if states:
                    part.request.accept_states(self._batch.cache.states[of_states : of_states + states])
            except Exception as error:
                self._leave(part.request, error)
            else:
                if self._pending(part.request) == 0:
                    self._leave(part.request)
            at += count
            of_states += states

    def _learn(self, parts: list[Part], tokens: int, reads: int, seconds: float) -> None:
        """Takes in what a step has cost, and says so."""
        self.pace.learn(tokens, reads, seconds)
        weights = self._model.counts.read
        for part in parts:
            share = (part.count + len(part.guesses)) / tokens
            part.request.seconds += share * seconds
            part.request.read += share * weights
        if self.on_step is not None:
            generating = sum(self._wanted(part) > 0 for part in parts)
            self.on_step(Step(seconds, tokens, generating))

    def _pass_on(self, part: Part, logits: Any, count: int) -> None:
        """Gives a request its logits (count, vocab_size): those behind its own tokens, and those behind
        guesses that are right. The other guesses leave the sequence."""
        request, guesses = part.request, part.guesses
        if count and not request.answered:
            request.answered = time.monotonic()
        start, right = len(request.ids), 0
        request.guesses = guesses
        request.drafted += len(guesses)
        try:
            for row in range(count):
                request.accept(logits + row * self._model.vocab_size)
                if guesses and request.ids[start + right :] != guesses[right : right + 1]:
                    break  # another token came; or none, since it has ended
                right += 1
        finally:
            request.guesses = []
            if right < len(guesses):
                self._take_back(request, start + right)

    def _take_back(self, request: Request, length: int) -> None:
        """Cuts a request's sequence to its first tokens. Where a state cannot be cut, more are, and run again
        in the next step; the logits that it has got it does not get again."""
        cache = self._batch.cache
        request.first = max(request.first, length)
        cache.truncate(request.seq, cache.cut(request.seq, length))

    # ------------------------------------------------------------------------------------------------------
    # The process forks, or ends

    def after_fork(self) -> None:
        """In the child, which has neither the thread nor what it was doing."""
        requests = [*self._running, *self._waiting.clear()]
        while not self._inbox.empty():
            requests += self._inbox.get()
        if self._stepping or (self._places is not None and self._places.cache.orphaned):
            self._places = None
        for request in self._running:
            if self._places is not None:
                self._places.leave(request)
        self._running.clear()
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


def _why_gone(request: Request) -> LLMError:
    return LLMError(CANCELLED) if request.cancelled else LateError("the time for the request is over")


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
