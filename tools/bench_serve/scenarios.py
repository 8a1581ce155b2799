"""What is measured: scenarios, each a load on one server, and the points that come of it.

Prompts are random token ids, or random words for servers that do not say how large their vocabulary is. They
follow from the seed, the round and the scenario: every server gets the same ones, and none twice, so that no
cache helps where a scenario does not mean it to. Answers have the length that was asked for (ignore_eos).
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tools.bench_serve.client import Client, Outcome, Request
from tools.bench_serve.load import Load, arrivals, closed_loop, open_loop, patient
from tools.bench_serve.measures import itl, summary
from tools.bench_serve.servers import About, Server, ServerError

WORDS = (
    "time year people way day man thing woman life child world school state family student group country "
    "part hand place case week company system program question work number night point home water room area "
    "money story fact month lot right study book eye job word business issue side kind head house problem"
).split()
TEMPLATE_ROOM = 64  # tokens that a chat's template may add to a message
IDLE_LIMIT = 30.0  # seconds within which a server whose clients have gone must be idle
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 24},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "minItems": 1, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
FORM = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA, "strict": True}}
WORD = 4  # tokens that one of WORDS has, at most, in small vocabularies
QUARTERS, LEAVING = 4, 0.1  # of a soak: points, and the share of requests that their clients leave


@dataclass
class Point:
    """What a scenario measured under one circumstance: the label. note: what there is to say of it."""

    label: str
    metrics: dict[str, float] = field(default_factory=dict)
    outcomes: list[Outcome] = field(default_factory=list)
    note: str = ""


@dataclass
class Bench:
    """A scenario's server and its options. place: what prompts follow from, beside the seed."""

    server: Server
    about: About
    client: Client
    options: argparse.Namespace
    place: str

    def rng(self, *key: object) -> random.Random:
        return random.Random(f"{self.options.seed} {self.place} {key}")

    def tokens(self, count: int, *key: object) -> list[Any]:
        """Ids, but for the ends of the vocabulary, where control tokens are; or words."""
        rng, size = self.rng(*key), self.about.vocabulary
        if size is None:
            return rng.choices(WORDS, k=count)
        return [rng.randrange(size // 20, size - size // 20) for _ in range(count)]

    def completion(self, prompt: list[Any], output: int, *key: object) -> Request:
        """A request for so many tokens behind a prompt."""
        given = " ".join(prompt) if isinstance(prompt[0], str) else prompt
        body = {"prompt": given, "max_tokens": output, "ignore_eos": True}
        return self._request("/v1/completions", body, *key)

    def chat(self, messages: Sequence[Any], output: int, *key: object, **more: Any) -> Request:
        """A request for the next message of a chat."""
        body = {"messages": [*messages], "max_tokens": output, **more}
        return self._request("/v1/chat/completions", body, *key)

    def _request(self, path: str, body: dict[str, Any], *key: object) -> Request:
        common = {
            "model": self.about.model,
            "temperature": self.options.temperature,
            "top_p": 1.0,
            "seed": self.rng(*key).randrange(2**31),
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        return Request(path, {**common, **body, **self.server.body, **self.options.body})

    def usual(self, count: int, *key: object) -> list[Request]:
        """Requests of --input-len, of which --shared is the same for all of them, and --output-len."""
        shared = self.tokens(round(self.options.shared * self.options.input_len), "shared")
        rest = self.options.input_len - len(shared)
        prompts = [shared + self.tokens(rest, *key, i) for i in range(count)]
        return [self.completion(prompt, self.options.output_len, *key, i) for i, prompt in enumerate(prompts)]

    def mixed(self, *key: object) -> Request:
        """One of several kinds, of any size up to --input-len and --output-len."""
        rng = self.rng(*key)
        tokens, output = rng.randint(1, self.options.input_len), rng.randint(1, self.options.output_len)
        kind = rng.choice(("completion", "shared", "chat", "schema"))
        if kind == "completion":
            return self.completion(self.tokens(tokens, *key), output, *key)
        if kind == "shared":
            shared = self.tokens(self.options.input_len, "shared")
            return self.completion(shared[:-1] + self.tokens(1, *key), output, *key)
        words = " ".join(rng.choices(WORDS, k=max(1, tokens // WORD)))
        more = {"response_format": FORM} if kind == "schema" else {}
        return self.chat([{"role": "user", "content": words}], output, *key, **more)

    def point(self, label: str, load: Load, **more: float) -> Point:
        """The measures of requests, and more of them. What failed is noted."""
        metrics = summary(load.outcomes, load.duration, self.options.goodput) | more
        errors = [o.error for o in load.outcomes if o.error]
        note = f"{len(errors)} of {len(load.outcomes)} failed: {errors[0]}" if errors else ""
        return Point(label, metrics, load.outcomes, note)


@dataclass(frozen=True)
class Scenario:
    """A scenario.

    run      measures it; its docstring says what it is
    room     tokens that a request may have, by the options
    columns  what tables show of it: keys of the metrics
    """

    run: Callable[[Bench], AsyncIterator[Point]]
    room: Callable[[argparse.Namespace], int]
    columns: tuple[str, ...]

    @property
    def about(self) -> str:
        return (self.run.__doc__ or "").replace("\n    ", " ")


SCENARIOS: dict[str, Scenario] = {}
Run = Callable[[Bench], AsyncIterator[Point]]
RATES = ("request_throughput", "output_throughput")
LATENCY = ("median_ttft_ms", "p99_ttft_ms", "median_tpot_ms", "p99_itl_ms")


def scenario(*columns: str, room: Callable[[argparse.Namespace], int]) -> Callable[[Run], Run]:
    """Makes a function a scenario of its name."""

    def add(run: Run) -> Run:
        SCENARIOS[run.__name__] = Scenario(run, room, columns)
        return run

    return add


def usual_room(o: argparse.Namespace) -> int:
    return int(o.input_len + o.output_len)


async def measured(server: Server, name: str, round_: int, options: argparse.Namespace) -> list[Point]:
    """A scenario's points; ServerError when the server cannot do it, or fails the first request."""
    about, room = await server.about(), SCENARIOS[name].room(options)
    if about.context is not None and room > about.context:
        raise ServerError(f"{server.name} has a context of {about.context} tokens, {name} needs {room}")
    b = Bench(server, about, Client(server.url, options.timeout), options, f"{name} {round_}")
    first = await b.client.stream(b.completion(b.tokens(16, "first"), 4, "first"))  # not counted
    if first.error:
        raise ServerError(f"{server.name} fails the first request: {first.error}")
    return [point async for point in SCENARIOS[name].run(b)]


# ----------------------------------------------------------------------------------------------------------
# The scenarios


@scenario("median_ttft_ms", "max_ttft_ms", room=lambda o: max(o.lengths) + 1)
async def ttft(b: Bench) -> AsyncIterator[Point]:
    """Prompts of several lengths, one at a time, on an idle server."""
    for length in b.options.lengths:
        requests = [b.completion(b.tokens(length, length, i), 1, length, i) for i in range(b.options.repeat)]
        yield b.point(f"{length} tokens", await closed_loop(b.client, requests, 1))


@scenario(*RATES, *LATENCY, "refusals", room=usual_room)
async def streams(b: Bench) -> AsyncIterator[Point]:
    """Clients that each send their next request when they have their answer."""
    for n in b.options.streams:
        requests = b.usual(max(4, n * b.options.per_stream), n)
        yield b.point(f"{n} streams", await closed_loop(b.client, requests, n))


POISSON = ("request_rate", *RATES, "request_goodput", *LATENCY, "refusals", "refusals_with_retry_after")


@scenario(*POISSON, room=usual_room)
async def poisson(b: Bench) -> AsyncIterator[Point]:
    """Requests that come at random, at shares of the rate that a closed loop reaches."""
    count, rate = b.options.requests, b.options.request_rate
    rates = {f"{rate} req/s": rate}
    if rate is None:
        full = await closed_loop(b.client, b.usual(count, "full"), b.options.capacity_streams)
        yield (capacity := b.point("closed loop", full))
        rates = {
            f"{100 * load:.0f} %": load * capacity.metrics["request_throughput"] for load in b.options.loads
        }
    for label, rate in rates.items():
        if rate > 0:
            times = arrivals(count, rate, b.options.burstiness, b.rng("arrivals", label))
            load = await open_loop(b.client, b.usual(count, label), times)
            yield b.point(label, load, request_rate=rate)


@scenario(
    "gap_before_ms",
    "gap_during_ms",
    "median_ttft_ms",
    room=lambda o: max(32 + o.joining_output, o.joining_len + 1),
)
async def joining(b: Bench) -> AsyncIterator[Point]:
    """A long prompt that comes while others get their tokens: what the others notice."""
    options, start = b.options, time.perf_counter()
    outcomes = [Outcome() for _ in range(options.joining_streams)]
    requests = [b.completion(b.tokens(32, i), options.joining_output, i) for i in range(len(outcomes))]
    tasks = begun(b, requests, outcomes)
    await until(lambda: all(len(o.chunks) > 16 for o in outcomes), tasks)
    newcomer = await b.client.stream(b.completion(b.tokens(options.joining_len, "new"), 1, "new"))
    await asyncio.sleep(0.05)
    await left(tasks)
    first = newcomer.chunks[0] if newcomer.chunks else time.perf_counter()
    before = [gap for o in outcomes for gap in gaps(o, 0.0, newcomer.sent)]
    during = [gap for o in outcomes for gap in gaps(o, newcomer.sent, first)]
    more = {
        "gap_before_ms": 1000 * max(before, default=0.0),
        "gap_during_ms": 1000 * max(during, default=0.0),
    }
    load = Load([newcomer], time.perf_counter() - start)
    point = b.point(f"{options.joining_len} tokens to {len(outcomes)} streams", load, **more)
    over = sum(not o.chunks or o.chunks[-1] < first for o in outcomes)
    if over and not point.note:
        point.note = f"{over} of {len(outcomes)} streams were over too early: raise --joining-output"
    point.outcomes += outcomes
    yield point


@scenario(
    "median_ttft_ms",
    "p99_ttft_ms",
    "cached_share",
    room=lambda o: o.turns * (3 * o.turn_len + 2 * TEMPLATE_ROOM),
)
async def turns(b: Bench) -> AsyncIterator[Point]:
    """Chats, all of which have their first turn, then all their second one, and so on."""
    await begin_chats(b)
    chats: list[list[dict[str, str]]] = [[] for _ in range(b.options.chats)]
    for turn in range(b.options.turns):
        for i, chat in enumerate(chats):
            words = b.rng(turn, i).choices(WORDS, k=b.options.turn_len)
            chat.append({"role": "user", "content": " ".join(words)})
        length = b.options.turn_len
        requests = [b.chat(chat, length, turn, i, ignore_eos=True) for i, chat in enumerate(chats)]
        load = await closed_loop(b.client, requests, b.options.clients)
        for chat, outcome in zip(chats, load.outcomes, strict=True):
            chat.append({"role": "assistant", "content": outcome.text})
        yield b.point(f"turn {turn + 1}", load)


@scenario(*RATES, "median_ttft_ms", "p99_ttft_ms", "cached_share", room=lambda o: o.prefix_len + 64)
async def prefix(b: Bench) -> AsyncIterator[Point]:
    """Requests that come at once and begin with the same system prompt."""
    shared, count = b.tokens(b.options.prefix_len, "shared"), b.options.prefix_requests
    requests = [b.completion(shared + b.tokens(32, i), 32, i) for i in range(count)]
    yield b.point(f"{count} requests", await closed_loop(b.client, requests, count))


@scenario(*RATES, *LATENCY, "valid_share", room=lambda o: 128 + 2 * TEMPLATE_ROOM)
async def schema(b: Bench) -> AsyncIterator[Point]:
    """Chats whose answers are free, and the same with a JSON schema."""
    await begin_chats(b)
    words = WORDS[: 4 * b.options.repeat]
    for label, more in (("free", {}), ("schema", {"response_format": FORM})):
        texts = [f"Describe a person who likes the word {word}, as JSON." for word in words]
        chats = [[{"role": "user", "content": text}] for text in texts]
        requests = [b.chat(messages, 128, i, **more) for i, messages in enumerate(chats)]
        load = await closed_loop(b.client, requests, b.options.clients)
        ended = [o.text for o in load.outcomes if o.finish == "stop"]
        valid = {"valid_share": sum(map(is_valid, ended)) / len(ended)} if ended else {}
        yield b.point(label, load, **valid)


@scenario("left", "compared", "different", "idle_after_ms", "still_running", room=usual_room)
async def leaving(b: Bench) -> AsyncIterator[Point]:
    """A quarter of the clients leaves; the others' answers are compared with those they get alone later, when
    their prompts may be cached."""
    count, rng, start = b.options.leaving_clients, b.rng("leaving"), time.perf_counter()
    requests, outcomes = b.usual(count), [Outcome() for _ in range(count)]
    tasks = begun(b, requests, outcomes)

    async def leave(i: int) -> None:
        chunks = rng.randrange(b.options.output_len)  # that it waits for
        await asyncio.sleep(0.05)  # those that wait for none have sent their request, too
        await until(lambda: len(outcomes[i].chunks) >= chunks, [tasks[i]])
        await left([tasks[i]])

    leavers = rng.sample(range(count), count // 4)
    await asyncio.gather(*map(leave, leavers))
    stayed = [i for i in range(count) if i not in leavers]
    await asyncio.gather(*(tasks[i] for i in stayed))
    load = Load(outcomes, time.perf_counter() - start)
    more = await until_idle(b.server)
    alone = (await closed_loop(b.client, [requests[i] for i in stayed], 1)).outcomes
    pairs = [(outcomes[i], one) for i, one in zip(stayed, alone, strict=True)]
    same = [one.text == other.text for one, other in pairs if not (one.error or other.error)]
    more |= {"left": sum(o.left for o in outcomes), "compared": len(same), "different": same.count(False)}
    yield b.point(f"{len(leavers)} of {count} leave", load, **more)


@scenario("median_ttft_ms", "max_ttft_ms", "cached_share", room=lambda o: o.input_len + 1)
async def cached(b: Bench) -> AsyncIterator[Point]:
    """The first token of prompts that are new, and of those whose first 90 % are not."""
    length, repeat = b.options.input_len, b.options.repeat
    known = length * 9 // 10
    requests = [b.completion(b.tokens(length, "new", i), 1, i) for i in range(repeat)]
    yield b.point("new", await closed_loop(b.client, requests, 1))
    pairs = [
        b.completion(b.tokens(known, "known", i) + b.tokens(length - known, half, i), 1, i)
        for i in range(repeat)
        for half in ("first", "second")
    ]
    load = await closed_loop(b.client, pairs, 1)
    yield b.point("90 % cached", Load(load.outcomes[1::2], load.duration))


@scenario(
    *("completed", "failed", "left", "refusals", "output_throughput", "p99_ttft_ms", "peak_mb"),
    room=lambda o: o.input_len + o.output_len + 2 * TEMPLATE_ROOM,
)
async def soak(b: Bench) -> AsyncIterator[Point]:
    """Clients that send completions, chats and chats with a schema without a pause, and leave a tenth of
    them: each quarter of the time should look like the one before, and its memory, too."""
    length = b.options.soak_seconds / QUARTERS
    start = time.perf_counter()
    done: list[Outcome] = []

    async def work(client: int) -> None:
        for i in itertools.count():
            if time.perf_counter() - start > QUARTERS * length:
                return
            rng, outcome = b.rng(client, i), Outcome()
            task = asyncio.create_task(patient(b.client, b.mixed(client, i), outcome))
            if rng.random() < LEAVING:
                chunks = rng.randrange(b.options.output_len)
                await until(lambda o=outcome, n=chunks: len(o.chunks) >= n, [task])  # type: ignore[misc]
                await left([task])
            await asyncio.wait([task])
            outcome.left |= task.cancelled()  # before it was begun
            done.append(outcome)

    tasks = [asyncio.create_task(work(client)) for client in range(b.options.soak_streams)]
    for quarter in range(1, QUARTERS + 1):
        await asyncio.sleep(start + quarter * length - time.perf_counter())
        if quarter == QUARTERS:
            await asyncio.gather(*tasks)
        ended, done[:] = list(done), []
        used = b.server.used()
        more = {"left": sum(o.left for o in ended)} | ({"peak_mb": used.bytes / 1e6} if used else {})
        yield b.point(
            f"quarter {quarter}", Load(ended, time.perf_counter() - start - (quarter - 1) * length), **more
        )


# ----------------------------------------------------------------------------------------------------------
# What they have in common


def begun(b: Bench, requests: Sequence[Request], outcomes: Sequence[Outcome]) -> list[asyncio.Task[Outcome]]:
    """Requests under way; their outcomes can be looked at."""
    return [asyncio.create_task(b.client.stream(*pair)) for pair in zip(requests, outcomes, strict=True)]


async def begin_chats(b: Bench) -> None:
    """A chat that is not counted: servers may prepare their template with the first one."""
    await b.client.stream(b.chat([{"role": "user", "content": "Hi"}], 1, "first"))


async def until(condition: Callable[[], bool], tasks: Sequence[asyncio.Task[Any]]) -> None:
    """Returns when a condition holds, or when all tasks have ended."""
    while not condition() and not all(task.done() for task in tasks):
        await asyncio.sleep(0.002)


async def left(tasks: Sequence[asyncio.Task[Any]]) -> None:
    """Lets clients go away."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def until_idle(server: Server) -> dict[str, float]:
    """How long it takes until nothing runs, and what runs then; nothing if the server does not say."""
    start = time.perf_counter()
    while (busy := await server.busy()) and time.perf_counter() - start < IDLE_LIMIT:
        await asyncio.sleep(0.01)
    if busy is None:
        return {}
    return {"still_running": busy, "idle_after_ms": 1000 * (time.perf_counter() - start)}


def gaps(outcome: Outcome, start: float, end: float) -> list[float]:
    """Those between chunks that share time with this span; one that reaches out of it counts as a whole."""
    ends = outcome.chunks[1:]
    return [gap for gap, after in zip(itl(outcome), ends, strict=True) if after > start and after - gap < end]


def is_valid(text: str) -> bool:
    """Whether a text is JSON with the keys of SCHEMA."""
    try:
        found = json.loads(text)
    except ValueError:
        return False
    return isinstance(found, dict) and set(found) == set(SCHEMA["properties"])
