"""Requests of all threads run as one batch: what goes first, who leaves when, and that nobody notices."""

from __future__ import annotations

import gc
import itertools
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from queue import SimpleQueue
from typing import Any

import pytest
from common import BOS, IM_END, SPECIAL, byte_tokenizer
from pyllm._llm import lib
from reference import INT8, make_model

from pyllm import LLM, LLMError, SamplingParams, scheduler
from pyllm.binding import CHUNK, Cache, Model
from pyllm.pace import Pace
from pyllm.sampling import Continuation
from pyllm.scheduler import (
    BESIDE,
    LEAST_BESIDE,
    MAX_BATCH,
    MAX_IDLE,
    LateError,
    Policy,
    Request,
    Scheduler,
    Terms,
)
from pyllm.scoring import AllLogits, Scoring

SECONDS = 30  # what nothing here takes unless it hangs
ENDLESS = {"max_tokens": 400, "logit_bias": {IM_END: -math.inf}}
HI = [{"role": "user", "content": "Hi"}]
TEMPLATE = b"{% for m in messages %}{{ m.content }}{% endfor %}|"


@pytest.fixture(scope="session")
def path(tmp_path_factory) -> str:
    sections = {**byte_tokenizer(lib.LLM_ADD_BOS, BOS, IM_END), lib.LLM_CHAT_TEMPLATE: TEMPLATE}
    file = tmp_path_factory.mktemp("scheduler") / "tiny.llm"
    size = len(SPECIAL) + 256
    file.write_bytes(make_model(5, dtype=INT8, context=2000, vocab_size=size, sections=sections))
    return str(file)


@pytest.fixture
def llm(path) -> Iterator[LLM]:
    with LLM(path, threads=1) as llm:
        yield llm


class ByHand(Scheduler):
    """One without a thread: the test steps."""

    def _wake(self) -> None:
        pass

    def until_idle(self) -> int:
        """Steps until nothing is left; how many steps that took."""
        return next(n for n in itertools.count(1) if not self.step())


@pytest.fixture
def model(path) -> Model:
    return Model(path)


@pytest.fixture
def by_hand(model) -> ByHand:
    return ByHand(model, model.header.context, 1)


def continuation(model: Model, prompt: str, max_tokens: int = 8, **params) -> Continuation:
    given = SamplingParams(max_tokens=max_tokens, logit_bias={IM_END: -math.inf}, **{"seed": 1, **params})
    return Continuation(model, [BOS, *prompt.encode()], given, model.header.context)


def alone(path: str, job: Continuation) -> list[int]:
    """The tokens of a continuation that has a model of its own."""
    return LLM(path, threads=1).generate(job.prompt, job.params).tokens


@pytest.fixture
def passes(monkeypatch) -> list[Counter]:
    """The passes over the weights, without drafts: how many tokens of which sequence each has."""
    monkeypatch.setattr(scheduler, "MAX_DRAFTING", 0)
    made, forward = [], Cache.forward

    def counted(self, tokens, seqs, want):
        made.append(Counter(seqs))
        return forward(self, tokens, seqs, want)

    monkeypatch.setattr(Cache, "forward", counted)
    return made


class Gate:
    """Holds every pass until it is opened."""

    def __init__(self, monkeypatch) -> None:
        self.reached, self.opened = threading.Event(), threading.Event()
        forward = Cache.forward

        def held(*args):
            self.reached.set()
            assert self.opened.wait(SECONDS)
            return forward(*args)

        monkeypatch.setattr(Cache, "forward", held)

    def collect(self, llm: LLM, pool: ThreadPoolExecutor, uses: list[Callable]) -> list[Any]:
        """What these give, of which the first alone is in the first pass, and all others in the second."""
        first = pool.submit(uses[0])
        assert self.reached.wait(SECONDS)
        others = [pool.submit(use) for use in uses[1:]]
        try:
            until(lambda: llm._scheduler._inbox.qsize() == len(others))
        finally:
            self.opened.set()
        return [done.result(SECONDS) for done in (first, *others)]


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


# ----------------------------------------------------------------------------------------------------------
# One batch


def test_two_threads_share_each_pass_over_the_weights(llm, passes, monkeypatch):
    """Alone each takes a pass for the prompt and 49 for all tokens but the last."""
    gate = Gate(monkeypatch)
    params = dict(ENDLESS, max_tokens=50, seed=1)
    with ThreadPoolExecutor(3) as pool:
        together = gate.collect(llm, pool, [partial(llm.generate, prompt, **params) for prompt in "abc"])
    assert len(passes) == 51, "the first had a pass alone, in which the others came"
    assert sorted(map(len, passes)) == [1, 2] + [3] * 49
    passes.clear()
    assert together == [llm.generate(prompt, **params) for prompt in "abc"]
    assert len(passes) == 3 * 50


def test_threads_take_as_many_passes_as_a_list(llm, passes, monkeypatch):
    params = dict(ENDLESS, max_tokens=30, seed=1)
    prompts = [f"{c} is a letter" for c in "abcdefgh"]
    batch = llm.generate(prompts, temperature=0, **params)
    in_list = len(passes)
    passes.clear()
    gate = Gate(monkeypatch)
    with ThreadPoolExecutor(8) as pool:
        uses = [partial(llm.generate, prompt, temperature=0, **params) for prompt in prompts]
        texts = [done.text for done in gate.collect(llm, pool, uses)]
    assert texts == [done.text for done in batch] and len(passes) == in_list + 1


def test_everything_that_a_model_does_runs_together_and_gives_what_it_gives_alone(path, llm):
    words = ["Once", "upon a time", "there was", "x" * 300, "Once upon", "y" * 500]

    def work(i: int):
        text, params = words[i % len(words)] * (1 + i % 3), dict(seed=i, max_tokens=25, logprobs=2)
        kind = i % 6
        if kind == 0:
            return llm.generate(text, **params)
        if kind == 1:
            return llm.score(text, "continuation" * (i % 40 + 1))
        if kind == 2:
            return llm.logits(text).tobytes()
        if kind == 3:
            return llm.generate([text, text + "!", "?"], repeat_penalty=1.1, **params)
        if kind == 4:
            return llm.chat([{"role": "user", "content": text}], **params)
        events, stream = [], llm.stream(text, events=True, **params)
        while True:
            try:
                events.append(next(stream))
            except StopIteration as end:
                return [(e.text, e.tokens, e.logprobs) for e in events], end.value

    with ThreadPoolExecutor(12) as pool:
        together = list(pool.map(work, range(60)))
    llm = LLM(path, threads=1)
    for i in range(60):
        assert together[i] == work(i), i


def test_a_score_runs_beside_a_generation(model, by_hand, path, passes):
    job = continuation(model, "a", 20)
    by_hand.add(job)
    by_hand.step()
    ids = list(b"b" * 300)
    scoring, logits = Scoring(model.vocab_size, ids[:10], ids[10:]), AllLogits(model.vocab_size, ids)
    by_hand.add(scoring)
    by_hand.add(logits)
    by_hand.until_idle()
    assert all(count[job.seq] == 1 for count in passes[1:20]) and len(passes[1]) > 1
    one = LLM(path, threads=1)
    assert scoring.score() == one.score(ids[:10], ids[10:])
    assert (logits.out == one.logits(ids)).all() and job.tokens == alone(path, job)


# ----------------------------------------------------------------------------------------------------------
# What goes first


def test_a_long_prompt_does_not_hold_up_those_that_generate(model, by_hand, path, passes):
    jobs = [continuation(model, text, 60) for text in "ab"]
    by_hand.add(*jobs)
    by_hand.step()
    long = continuation(model, "c" * 1500, 5)
    by_hand.add(long)
    passes.clear()
    by_hand.until_idle()
    reading = [counts for counts in passes if counts[long.seq] > 1]
    assert len(reading) == math.ceil(1501 / BESIDE)
    assert all(counts[job.seq] == 1 for counts in reading for job in jobs)
    assert [job.tokens for job in (*jobs, long)] == [alone(path, job) for job in (*jobs, long)]


def test_a_prompt_alone_takes_whole_passes(model, by_hand, passes):
    by_hand.add(continuation(model, "c" * 1000, 1))
    by_hand.until_idle()
    assert [sum(counts.values()) for counts in passes] == [CHUNK] * 3 + [1001 - 3 * CHUNK]


def test_short_prompts_pass_a_long_one_which_still_has_half_of_each_pass(model, by_hand, passes):
    long = continuation(model, "c" * 1500, 1)
    by_hand.add(long)
    by_hand.step()
    shorts = []
    while not long.ended:
        n = len(shorts)  # two of them are more than half of a pass
        shorts += [continuation(model, f"{c}{n}" * 40, 1) for c in "ab"]
        by_hand.add(shorts[-2])
        by_hand.add(shorts[-1])
        by_hand.step()
    lengths = [counts[long.seq] for counts in passes]
    assert min(lengths[:-1]) >= CHUNK // 2 and len(passes) <= 2 * 1501 // CHUNK
    assert sum(job.ended for job in shorts) >= len(passes) - 1
    assert max(sum(counts.values()) for counts in passes) == CHUNK


def test_requests_enter_in_the_order_of_their_arrival(model, by_hand, monkeypatch):
    by_hand.policy = replace(by_hand.policy, max_running=2)
    jobs, started = [continuation(model, text, 3 + i) for i, text in enumerate("abcdefgh")], []
    for i, job in enumerate(jobs):
        monkeypatch.setattr(job, "start", lambda i=i, start=job.start: (started.append(i), start()))
        by_hand.add(job)
    by_hand.until_idle()
    assert started == list(range(8))


def test_a_single_request_does_not_wait_for_the_whole_of_a_list(model, by_hand):
    by_hand.policy = replace(by_hand.policy, max_running=2)
    many = [continuation(model, f"many {i}", 3) for i in range(20)]
    by_hand.add(*many)
    by_hand.step()
    single = continuation(model, "single", 3)
    by_hand.add(single)
    while not single.ended:
        by_hand.step()
    assert sum(job.ended for job in many) <= 5
    by_hand.until_idle()
    assert all(job.ended and job.error is None for job in many)


def test_the_logits_of_a_step_are_bounded(model, by_hand, monkeypatch):
    rows, forward = [], Cache.forward
    monkeypatch.setattr(Cache, "forward", lambda *args: rows.append(sum(args[3])) or forward(*args))
    by_hand._max_rows = 64
    jobs = [AllLogits(model.vocab_size, list(range(200))), Scoring(model.vocab_size, [1, 2], [3] * 400)]
    jobs += [continuation(model, f"{i}", 9) for i in range(20)]
    by_hand.add(*jobs)
    by_hand.until_idle()
    assert max(rows) == 64 and all(job.ended and job.error is None for job in jobs)


# ----------------------------------------------------------------------------------------------------------
# What begins alike


def test_what_requests_begin_alike_with_is_computed_once(model, by_hand, path, passes):
    jobs = [continuation(model, "s" * 400 + text, 4) for text in ("a", "b", "cd")]
    by_hand.add(jobs[0])
    by_hand.step()
    by_hand.add(jobs[1])  # another caller
    by_hand.add(jobs[2])
    by_hand.until_idle()
    assert [job.cached for job in jobs] == [0, 401, 401]
    assert sum(sum(counts.values()) for counts in passes) == 402 + 1 + 2 + 3 * 3
    assert [job.tokens for job in jobs] == [alone(path, job) for job in jobs]


def test_those_that_wait_for_a_common_start_go_on_when_it_is_cancelled(model, by_hand, path):
    jobs = [continuation(model, "s" * 1000 + text, 4) for text in "abc"]
    by_hand.add(*jobs)
    by_hand.step()
    by_hand.cancel(jobs[0])
    by_hand.until_idle()
    assert jobs[0].tokens == [] and "cancelled" in str(jobs[0].error)
    assert jobs[1].cached == CHUNK and jobs[2].cached == 1001
    assert [job.tokens for job in jobs[1:]] == [alone(path, job) for job in jobs[1:]]


def test_few_sequences_are_kept_and_the_longest_unused_goes(model, by_hand):
    texts = [c * 50 for c in "abcdefg"]
    for text in texts:
        by_hand.add(continuation(model, text, 1))
        by_hand.until_idle()
    held = [tokens for tokens in by_hand._places.cache.tokens if tokens]
    assert sorted(chr(tokens[1]) for tokens in held) == list("defg") and len(held) == MAX_IDLE
    by_hand.add(again := continuation(model, texts[4], 1), new := continuation(model, texts[0], 1))
    by_hand.until_idle()
    assert (again.cached, new.cached) == (50, 0)
    by_hand.add(*[continuation(model, c * 50, 1) for c in "pqr"])
    by_hand.until_idle()
    held = [tokens for tokens in by_hand._places.cache.tokens if tokens]
    assert sorted(chr(tokens[1]) for tokens in held) == list("epqr"), (
        "what was used twice outlives those used once"
    )


def test_a_copy_leaves_a_longer_conversation_as_it_is(model, by_hand):
    by_hand.add(continuation(model, "s" * 100 + "a" * 200, 1))
    by_hand.until_idle()
    by_hand.add(other := continuation(model, "s" * 100 + "b", 1))
    by_hand.until_idle()
    by_hand.add(turn := continuation(model, "s" * 100 + "a" * 200 + "c", 1))
    by_hand.until_idle()
    assert (other.cached, turn.cached) == (101, 301)


@pytest.mark.parametrize("most", [1, 2, 3])
def test_where_few_sequences_can_be_had_requests_take_turns(path, monkeypatch, most):
    prompts = ["s" * 100 + str(i) for i in range(7)]
    expected = LLM(path, threads=1).generate(prompts, seed=1, max_tokens=9)
    init = Cache.__init__

    def limited(self, model, context, threads, n_seqs=1):
        if n_seqs > most:
            raise LLMError("no memory")
        init(self, model, context, threads, n_seqs)

    monkeypatch.setattr(Cache, "__init__", limited)
    with LLM(path, threads=1) as llm:
        assert llm.generate(prompts, seed=1, max_tokens=9) == expected
        assert len(llm._scheduler._places.cache.tokens) == (2 if most == 3 else most)  # by halves from 36


# ----------------------------------------------------------------------------------------------------------
# Leaving


def test_a_cancelled_request_leaves_before_the_next_step(model, by_hand, path, passes):
    jobs = [continuation(model, text, 30) for text in "abc"]
    by_hand.add(*jobs)
    by_hand.step()
    by_hand.step()
    by_hand.cancel(jobs[1])
    passes.clear()
    by_hand.step()
    assert jobs[1].ended and len(jobs[1].tokens) == 2 and set(passes[0]) == {jobs[0].seq, jobs[2].seq}
    by_hand.until_idle()
    assert [jobs[i].tokens for i in (0, 2)] == [alone(path, jobs[i]) for i in (0, 2)]


def test_a_request_that_waits_can_be_cancelled(model, by_hand):
    by_hand.policy = replace(by_hand.policy, max_running=1)
    jobs = [continuation(model, text, 3) for text in "abc"]
    by_hand.add(*jobs)
    by_hand.cancel(jobs[1])
    by_hand.until_idle()
    assert [len(job.tokens) for job in jobs] == [3, 0, 3] and "cancelled" in str(jobs[1].error)


@pytest.mark.parametrize("where", ["start", "accept", "updates"])
def test_an_error_in_one_request_is_its_own(model, by_hand, path, where):
    jobs = [continuation(model, text, 12) for text in "abc"]

    def fail(*_):
        if where == "start" or len(jobs[1].tokens) == 5:
            raise ZeroDivisionError("mine")

    if where == "updates":
        jobs[1].streamed, jobs[1].updates = True, type("Callback", (), {"put": fail})()
    elif where == "start":
        jobs[1].start = fail
    else:
        jobs[1].accept = lambda logits: fail() or Continuation.accept(jobs[1], logits)
    by_hand.add(*jobs)
    by_hand.until_idle()
    assert isinstance(jobs[1].error, ZeroDivisionError) and jobs[1].ended
    assert len(jobs[1].tokens) == (0 if where == "start" else 5)
    assert [jobs[i].tokens for i in (0, 2)] == [alone(path, jobs[i]) for i in (0, 2)]


def test_logits_that_are_not_finite_fail_the_request_that_they_are_of(llm, path, monkeypatch):
    """The engine does not say whose they are: a pass for each tells."""
    forward = Cache.forward

    def poisoned(self, tokens, seqs, want):
        if ord("#") in tokens:
            raise LLMError("the logits are not finite")
        return forward(self, tokens, seqs, want)

    monkeypatch.setattr(Cache, "forward", poisoned)
    params = dict(ENDLESS, max_tokens=20, seed=1)
    params["logit_bias"] = {**params["logit_bias"], ord("#"): -math.inf}
    good = [c * 20 for c in "abcdef"]

    def work(prompt: str):
        try:
            return llm.generate(prompt, **params)
        except LLMError as error:
            return str(error)

    with ThreadPoolExecutor(12) as pool:
        found = list(pool.map(work, [text for c in good for text in (c, c + "#")]))
    one = LLM(path, threads=1)
    assert found[::2] == [one.generate(prompt, **params) for prompt in good]
    assert found[1::2] == ["the logits are not finite"] * 6
    with pytest.raises(LLMError, match="not finite"):
        llm.generate(["a", "b#", "c"], **params)
    assert llm.score("a", "b") == one.score("a", "b")


def test_a_step_that_fails_fails_its_requests_and_the_next_one_runs(llm, monkeypatch):
    expected = llm.generate("abc", seed=1, max_tokens=9)

    def wrong(self):
        raise SystemExit("wrong")

    with monkeypatch.context() as patch:
        patch.setattr(Scheduler, "_plan", wrong)
        uses = lambda: llm.generate(["a", "b"]), lambda: list(llm.stream("a")), lambda: llm.score("a", "b")
        for use in uses:
            with pytest.raises(LLMError, match="a step failed: SystemExit"):
                use()
    assert llm.generate("abc", seed=1, max_tokens=9) == expected


@pytest.mark.parametrize("how", ["closed", "dropped", "broken out of", "never begun"])
def test_an_abandoned_stream_leaves_the_batch(llm, how):
    expected = llm.generate("abc", seed=1, max_tokens=30)
    stream = llm.stream("abc", seed=1, **ENDLESS)
    if how == "broken out of":
        for _ in stream:
            break
    elif how != "never begun":
        next(stream)
    if how == "closed":
        stream.close()
    del stream
    gc.collect()
    until(lambda: not llm._scheduler._running)
    assert llm._scheduler._inbox.empty()
    assert llm.generate("abc", seed=1, max_tokens=30) == expected


def test_a_stream_in_a_ring_that_the_collector_finds_leaves_too(llm):
    class Ring:
        pass

    ring = Ring()
    ring.stream, ring.self = llm.stream("abc", **ENDLESS), ring
    next(ring.stream)
    del ring
    gc.collect()
    until(lambda: not llm._scheduler._running)


def test_a_reader_that_stops_reading_holds_nobody_up(llm):
    params = dict(ENDLESS, seed=1)
    streams = [llm.stream(f"{i}", **params) for i in range(MAX_BATCH + 3)]
    begun = [next(stream) for stream in streams]  # all have begun, more than run at once, and nobody reads
    assert llm.generate("abc", max_tokens=5).prompt_tokens == 4
    texts = ["".join(stream) for stream in streams]
    for i, text in enumerate(texts):
        assert begun[i] + text == llm.generate(f"{i}", **params).text


def test_closing_fails_what_runs_and_waits_and_gives_memory_back(path, monkeypatch):
    llm = LLM(path, threads=1)
    batch = llm._scheduler
    batch.policy = replace(batch.policy, max_running=2)
    gate = Gate(monkeypatch)
    uses = [
        lambda: llm.generate("a", **ENDLESS), lambda: llm.score("a", "b" * 900),
        lambda: llm.logits("c" * 900), lambda: list(llm.stream("d", **ENDLESS)),
        lambda: llm.generate(["e", "f"], **ENDLESS), lambda: llm.chat(HI, **ENDLESS),
    ]  # fmt: skip
    with ThreadPoolExecutor(len(uses)) as pool:
        each = [pool.submit(use) for use in uses]
        assert gate.reached.wait(SECONDS)
        until(lambda: batch._inbox.qsize() + len(batch._waiting) + len(batch._running) >= len(uses))
        llm.close()
        gate.opened.set()
        for done in each:
            with pytest.raises(LLMError, match="tiny.llm is closed"):
                done.result(SECONDS)
    until(lambda: batch._thread is None)
    assert batch._places is None
    with pytest.raises(LLMError, match="closed"):
        batch.add(Request([1], 0))


def interrupt() -> None:
    """What Ctrl-C does."""
    signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)


@pytest.fixture
def interrupts() -> Iterator[None]:
    """SIGINT raises KeyboardInterrupt, also where the tests are a background job, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interrupts")
def test_an_interrupted_caller_leaves_at_once_and_alone(llm, path, monkeypatch):
    """The pass that is under way does not hold it."""
    gate = Gate(monkeypatch)
    params = dict(ENDLESS, max_tokens=40, seed=1)
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(llm.generate, "other", **params)
        assert gate.reached.wait(SECONDS)
        for use in (lambda: llm.generate(["a", "b"], **ENDLESS), lambda: next(llm.stream("c", **ENDLESS)),
                    lambda: llm.score("d", "e")):  # fmt: skip
            timer = threading.Timer(0.05, interrupt)
            timer.start()
            with pytest.raises(KeyboardInterrupt):
                use()
            assert not gate.opened.is_set()
            timer.join()
        gate.opened.set()
        assert other.result(SECONDS) == LLM(path, threads=1).generate("other", **params)
    until(lambda: not llm._scheduler._running)


@pytest.mark.usefixtures("interrupts")
def test_interrupts_at_any_time_leave_the_model_usable(llm):
    params = dict(seed=1, max_tokens=12)
    expected = llm.generate(["abc", "abd"], **params)
    for i in range(40):
        timer = threading.Timer(i / 4000, interrupt)
        try:
            timer.start()
            while True:
                assert llm.generate(["abc", "abd"], **params) == expected
        except KeyboardInterrupt:
            timer.join()
    assert llm.generate(["abc", "abd"], **params) == expected


# ----------------------------------------------------------------------------------------------------------
# The thread


def test_the_thread_ends_when_nothing_is_asked_and_starts_again(llm, monkeypatch):
    monkeypatch.setattr(scheduler, "IDLE", 0.0)
    expected = llm.generate("abc", seed=1, max_tokens=9)
    for _ in range(50):
        until(lambda: llm._scheduler._thread is None)
        assert llm.generate("abc", seed=1, max_tokens=9) == expected
    with ThreadPoolExecutor(8) as pool:  # while it ends
        for done in pool.map(lambda _: llm.generate("abc", seed=1, max_tokens=9), range(400)):
            assert done == expected


def test_nobody_waits_busily(llm, monkeypatch):
    gate = Gate(monkeypatch)

    def work() -> float:
        llm.generate("a", max_tokens=2)
        return time.thread_time()

    with ThreadPoolExecutor(4) as pool:
        each = [pool.submit(work) for _ in range(4)]
        assert gate.reached.wait(SECONDS)
        before = time.process_time()
        time.sleep(1)
        while_held = time.process_time() - before
        gate.opened.set()
        assert max(done.result(SECONDS) for done in each) < 0.5
    before = time.process_time()
    time.sleep(1)
    assert while_held < 0.5 and time.process_time() - before < 0.5


def test_a_dropped_model_ends_its_thread(path):
    llm = LLM(path, threads=1)
    llm.generate("a", max_tokens=2)
    batch = llm._scheduler
    assert batch._thread.is_alive()
    del llm
    gc.collect()
    until(lambda: batch._thread is None)


def test_a_stream_keeps_its_model(path):
    stream = LLM(path, threads=1).stream("a", seed=1, **ENDLESS)
    first = next(stream)
    gc.collect()
    assert first + "".join(stream) == LLM(path, threads=1).generate("a", seed=1, **ENDLESS).text


def test_where_no_thread_can_be_had_those_that_wait_step(path, monkeypatch):
    expected = LLM(path, threads=1).generate(["a", "b"], seed=1, **ENDLESS)
    start = threading.Thread.start

    def refused(self):
        if self.name == "pyllm":
            raise RuntimeError("can't start new thread")
        start(self)

    monkeypatch.setattr(threading.Thread, "start", refused)
    llm = LLM(path, threads=1)
    with ThreadPoolExecutor(4) as pool:
        each = [pool.submit(llm.generate, ["a", "b"], seed=1, **ENDLESS) for _ in range(3)]
        text = pool.submit(lambda: "".join(llm.stream("a", seed=1, **ENDLESS)))
        assert [done.result(SECONDS) for done in each] == [expected] * 3
        assert text.result(SECONDS) == expected[0].text
    assert llm._scheduler._thread is None


def forked(llm: LLM, stream: Iterator[str], pipe) -> None:
    try:
        for _ in stream:
            pass
        ended = ""
    except LLMError as error:
        ended = str(error)
    pipe.send((ended, llm.generate("abc", max_tokens=20, seed=3), llm.score("a", "b")))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("threads", [1, 2])
def test_a_child_that_is_forked_while_others_generate_begins_anew(path, threads):
    llm = LLM(path, threads=threads)
    expected = llm.generate("abc", max_tokens=20, seed=3), llm.score("a", "b")
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            llm.generate(["x", "y"], **ENDLESS)

    with ThreadPoolExecutor(2) as pool:
        workers = [pool.submit(work) for _ in range(2)]
        for _ in range(5):
            stream = llm.stream("s", **ENDLESS)
            next(stream)
            here, there = multiprocessing.Pipe()
            child = multiprocessing.get_context("fork").Process(target=forked, args=(llm, stream, there))
            child.start()
            try:
                assert here.poll(SECONDS), "the child hangs"
                ended, *found = here.recv()
                assert "forked" in ended and tuple(found) == expected
            finally:
                child.kill()
                child.join()
        stop.set()
        for worker in workers:
            worker.result(SECONDS)
    assert llm.generate("abc", max_tokens=20, seed=3) == expected[0]


@pytest.mark.parametrize("stepping", [False, True])
def test_a_child_keeps_what_was_computed_unless_a_step_was_under_way(model, by_hand, path, stepping):
    by_hand.add(first := continuation(model, "a" * 100, 1))
    by_hand.until_idle()
    by_hand.add(running := continuation(model, "b", 9))
    by_hand.step()
    by_hand.add(waiting := continuation(model, "c", 9))
    by_hand._stepping = stepping
    by_hand.after_fork()
    assert all("forked" in str(job.error) and job.ended for job in (running, waiting)) and not first.error
    by_hand.add(again := continuation(model, "a" * 100, 9))
    by_hand.until_idle()
    assert again.cached == (0 if stepping else 100) and again.tokens == alone(path, again)


def test_the_process_ends_while_requests_run(path, tmp_path):
    script = f"""if True:
        import threading, pyllm
        llm = pyllm.LLM({path!r})
        bias = {{{IM_END}: -float("inf")}}
        left_open = llm.stream("a", logit_bias=bias)
        next(left_open)
        for c in "abc":
            work = lambda: llm.generate([c] * 100, logit_bias=bias)
            threading.Thread(target=work, daemon=True).start()
        """
    for _ in range(3):
        path = os.pathsep.join(sys.path)
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=SECONDS,
                              cwd=tmp_path, env={**os.environ, "PYTHONPATH": path})  # fmt: skip
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_updates_can_be_a_callback(model, path):
    """What a server needs: no thread of its own for each request."""
    job, seen = continuation(model, "abc", 6), SimpleQueue()
    job.streamed, job.updates = True, type("Callback", (), {"put": lambda self, event: seen.put(event)})()
    batch = Scheduler(model, model.header.context, 1)
    batch.add(job)
    events = [seen.get(timeout=SECONDS) for _ in range(7)]
    batch.close()
    assert events[-1] is job and [event.tokens for event in events[:-1]] == [[t] for t in alone(path, job)]


# ----------------------------------------------------------------------------------------------------------
# Policies: who goes first, and what is left for whom


def with_terms(job: Continuation, **terms: Any) -> Continuation:
    job.terms = Terms(**terms)
    return job


def by_policy(model: Model, **policy: Any) -> ByHand:
    return ByHand(model, model.header.context, 1, Policy(**policy))


def known_pace(token: float, read: float = 0.0, start: float = 0.0) -> Pace:
    pace = Pace()
    for tokens, reads in itertools.product([1, 8, 64, 256], [0, 1000, 10**5]):
        pace.learn(tokens, reads, start + token * tokens + read * reads)
    return pace


@pytest.mark.parametrize("itl, tokens", [(0.05, 49), (0.1, 99), (0.001, LEAST_BESIDE), (10.0, CHUNK - 1)])
def test_a_prompt_gets_what_the_time_between_two_tokens_leaves(model, passes, itl, tokens):
    scheduler = by_policy(model, itl=itl)
    scheduler.pace = known_pace(0.001)
    scheduler.pace.learn = lambda *_: None
    scheduler.add(continuation(model, "a", 20))
    scheduler.step()
    scheduler.add(long := continuation(model, "b" * 1500, 2))
    scheduler.step()
    assert abs(passes[1][long.seq] - tokens) <= 1 and sum(passes[1].values()) == passes[1][long.seq] + 1


def test_throughput_gives_prompts_all_there_is(model, passes):
    scheduler = by_policy(model, itl=0.001, throughput=True)
    scheduler.add(continuation(model, "a", 20))
    scheduler.step()
    scheduler.add(long := continuation(model, "b" * 1500, 2))
    scheduler.step()
    assert passes[1][long.seq] == CHUNK - 1


def test_a_deeper_prompt_gets_fewer_tokens(model):
    scheduler = by_policy(model, itl=0.1)
    scheduler.pace = known_pace(0.0005, read=1e-6)
    shallow, deep = (scheduler.budget(1, 0, depth) for depth in (0, 1500))
    assert deep < shallow / 2


def test_owners_get_equal_shares_of_a_step(model, by_hand, passes):
    by_hand.add(*[with_terms(continuation(model, f"{i}" * 1000, 1), owner="many") for i in range(4)])
    by_hand.add(single := with_terms(continuation(model, "s" * 1000, 1), owner="one"))
    for _ in range(4):
        by_hand.step()
    assert sum(count[single.seq] for count in passes) == 4 * CHUNK // 2


def test_partitions_do_not_share_what_was_computed(model, by_hand):
    for partition, cached in (("a", 0), ("b", 0), ("a", 100), (None, 0), (None, 100)):
        by_hand.add(job := with_terms(continuation(model, "p" * 100, 1), partition=partition))
        by_hand.until_idle()
        assert job.cached == cached, partition


def test_partitions_do_not_wait_for_each_other(model, by_hand):
    jobs = [with_terms(continuation(model, "w" * 700, 1), partition=p) for p in "aab"]
    by_hand.add(*jobs)
    by_hand.step()
    assert [job.seq >= 0 for job in jobs] == [True, False, True]


def test_what_is_not_to_be_kept_is_not(model, by_hand):
    by_hand.add(with_terms(continuation(model, "k" * 100, 1), keep=False))
    by_hand.until_idle()
    assert not any(by_hand._places.cache.tokens)


@pytest.mark.parametrize("where", ["waiting", "running"])
def test_a_request_whose_time_is_over_ends(model, where):
    scheduler = by_policy(model, max_running=1)
    if where == "waiting":
        scheduler.add(continuation(model, "other", 100))
        scheduler.step()
    scheduler.add(job := with_terms(continuation(model, "late", 100), deadline=time.monotonic() + 0.02))
    scheduler.step()
    time.sleep(0.03)
    scheduler.step()
    assert job.ended and isinstance(job.error, LateError)


def test_a_higher_priority_takes_a_place_and_gives_it_back(model, path, passes):
    scheduler = by_policy(model, max_running=1)
    low = with_terms(continuation(model, "low priority", 30, logprobs=1), priority=5)
    scheduler.add(low)
    for _ in range(10):
        scheduler.step()
    made = list(low.tokens)
    scheduler.add(high := with_terms(continuation(model, "high", 10), priority=0))
    scheduler.step()
    assert high.seq >= 0 and low.seq < 0 and not low.ended
    scheduler.until_idle()
    assert low.tokens[: len(made)] == made
    assert [job.tokens for job in (low, high)] == [alone(path, job) for job in (low, high)]
    assert len(low.logprobs) == len(low.tokens) == 30


def test_an_equal_priority_takes_no_place(model):
    scheduler = by_policy(model, max_running=1)
    scheduler.add(first := continuation(model, "first", 10))
    scheduler.step()
    scheduler.add(second := continuation(model, "second", 10))
    scheduler.step()
    assert first.seq >= 0 and second.seq < 0


def test_requests_wait_until_there_is_memory_for_all_that_they_may_make(model, passes):
    scheduler = by_policy(model, memory=2 * model.kv_size(400), max_idle=4)
    jobs = [continuation(model, f"{i}" * 100, 300) for i in range(5)]
    scheduler.add(*jobs)
    scheduler.until_idle()
    assert max(len(count) for count in passes) == 2 and all(len(job.tokens) == 300 for job in jobs)
    assert scheduler.memory()[1] <= scheduler.policy.memory


def test_where_memory_is_overcommitted_the_last_one_is_put_off_and_nobody_notices(model, path, passes):
    scheduler = by_policy(model, memory=2 * model.kv_size(400), overcommit=True, max_idle=4)
    jobs = [continuation(model, f"{i}" * 100, 300, logprobs=1) for i in range(5)]
    scoring = AllLogits(model.vocab_size, list(b"score" * 60))
    scheduler.add(*jobs, scoring)
    put_off, highest = set(), 0
    while scheduler.step():
        put_off |= {id(job) for job in jobs if job.started and job.seq < 0}
        highest = max(highest, scheduler.memory()[1])
    assert put_off and max(len(count) for count in passes) > 2
    assert highest <= scheduler.policy.memory + len(jobs) * model.kv_size(64)
    assert [job.tokens for job in jobs] == [alone(path, job) for job in jobs]
    assert all(len(job.logprobs) == 300 for job in jobs)
    assert (scoring.out == LLM(path, threads=1).logits(list(b"score" * 60))).all()


def test_a_request_that_alone_needs_more_memory_than_there_is_runs_alone(model):
    scheduler = by_policy(model, memory=1)
    scheduler.add(*[continuation(model, f"{i}", 5) for i in range(3)])
    scheduler.until_idle()
    assert scheduler.memory() == (0, 0)


def test_what_a_longer_text_begins_with_is_not_kept_twice(model, by_hand):
    by_hand.add(continuation(model, "s" * 50, 1))
    by_hand.until_idle()
    by_hand.add(*[continuation(model, "s" * 50 + c * 100, 1) for c in "ab"])
    by_hand.until_idle()
    held = [tokens for tokens in by_hand._places.cache.tokens if tokens]
    assert len(held) == 2 and all(len(tokens) > 150 for tokens in held)


def test_each_request_knows_its_share_of_the_work(model, by_hand):
    jobs = [continuation(model, "a" * 100, 20), continuation(model, "b", 20)]
    steps = []
    by_hand.on_step = steps.append
    by_hand.add(*jobs)
    by_hand.until_idle()
    assert sum(job.seconds for job in jobs) == pytest.approx(sum(step.seconds for step in steps))
    assert sum(job.read for job in jobs) == pytest.approx(len(steps) * model.counts.read)
    assert jobs[0].seconds > jobs[1].seconds
    assert sum(step.tokens for step in steps) == 101 + 2 + 2 * 19 and steps[-1].generating == 2


def test_a_prompt_without_anything_to_make_is_run_and_kept(model, by_hand):
    for cached in (0, 101):
        by_hand.add(job := continuation(model, "w" * 100, 0))
        by_hand.until_idle()
        assert job.ended and job.error is None and job.finish_reason == "length" and job.cached == cached


def test_it_is_stuck_while_a_step_takes_too_long(llm, monkeypatch):
    gate = Gate(monkeypatch)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(llm.generate, "a", max_tokens=1)
        assert gate.reached.wait(SECONDS)
        until(lambda: llm._scheduler.stuck(0.01))
        assert not llm._scheduler.stuck(SECONDS)
        gate.opened.set()
        asked.result(SECONDS)
    until(lambda: not llm._scheduler.stuck(0.01))


def test_it_is_stuck_when_its_thread_has_died_and_requests_wait(model):
    """However that came to be: nothing that a request does can end the thread."""
    batch = ByHand(model, model.header.context, 1)
    batch._thread = threading.Thread(target=lambda: None)
    batch._thread.start()
    batch._thread.join()
    assert not batch.stuck(SECONDS), "nobody waits"
    batch.add(job := continuation(model, "a", 1))
    assert batch.stuck(SECONDS)
    batch.until_idle()
    assert job.ended and not batch.stuck(SECONDS)
