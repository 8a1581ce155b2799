"""When requests are sent: by clients that each wait for their answer, or at times that are given."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass

from tools.bench_serve.client import Client, Outcome, Request

RETRY = 1.0  # seconds until a refused request is sent again, where the refusal names none


@dataclass
class Load:
    """What became of requests, in their order, and the seconds from the first sending to the last end."""

    outcomes: list[Outcome]
    duration: float


async def closed_loop(client: Client, requests: Sequence[Request], streams: int) -> Load:
    """So many clients at once, of which each sends the next request when it has its answer. One that is
    refused with 429 waits as long as it is told to and tries again."""
    outcomes = [Outcome() for _ in requests]
    left = iter(zip(requests, outcomes, strict=True))

    async def work() -> None:
        for request, outcome in left:
            await patient(client, request, outcome)

    start = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(min(streams, len(requests)))))
    return Load(outcomes, time.perf_counter() - start)


async def patient(client: Client, request: Request, outcome: Outcome) -> None:
    """Sends a request until it is not refused, or the client's time is over."""
    first = time.perf_counter()
    while True:
        await client.stream(request, outcome)
        outcome.sent = first
        if outcome.status != 429 or time.perf_counter() - first > client.timeout:
            return
        await asyncio.sleep(RETRY if outcome.retry_after is None else outcome.retry_after)
        outcome.error = ""


async def open_loop(client: Client, requests: Sequence[Request], times: Sequence[float]) -> Load:
    """Each request at its time, in seconds from now. One that is refused has failed."""

    async def late(request: Request, when: float) -> Outcome:
        await asyncio.sleep(start + when - time.perf_counter())
        return await client.stream(request)

    start = time.perf_counter()
    outcomes = await asyncio.gather(*map(late, requests, times))
    return Load(list(outcomes), time.perf_counter() - start)


def arrivals(count: int, rate: float, burstiness: float, rng: random.Random) -> list[float]:
    """Seconds at which requests come, as vLLM's `bench serve` draws them with --request-rate and --burstiness
    (get_request in vllm/benchmarks/serve.py).

    The gaps are of a gamma distribution with the shape `burstiness` and the mean 1 / rate: a Poisson process
    with 1, more in bursts below, more even above, and quite even with inf. The first request comes after a
    gap, too. All times are then scaled so that the last one is count / rate: the mean rate is that which was
    asked for, whatever the seed. With the rate inf all come at once."""
    if not (rate > 0 and burstiness > 0):
        raise ValueError(f"rate and burstiness must be above 0, not {rate} and {burstiness}")
    if math.isinf(rate):
        return [0.0] * count
    if math.isinf(burstiness):
        return [(i + 1) / rate for i in range(count)]
    times, now = [], 0.0
    for _ in range(count):
        now += rng.gammavariate(burstiness, 1 / (rate * burstiness))
        times.append(now)
    return [when * count / rate / now for when in times]
