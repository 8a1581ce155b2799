"""What times say: the measures that everyone quotes, as vLLM's `bench serve` defines them.

The sources are calculate_metrics in vllm/benchmarks/serve.py and async_request_openai_completions in
vllm/benchmarks/lib/endpoint_request_func.py. Unlike there, a stream that ends without [DONE] has failed, and
so has one with an error among its events. Keys are those of vLLM's JSON where it has the same; times in them
are milliseconds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import fmean

from tools.bench_serve.client import Outcome


def ttft(outcome: Outcome) -> float:
    """Time to the first token, in seconds: from sending to the first chunk with choices, with text or not.
    That of a chat, which may only name the role, counts."""
    return outcome.chunks[0] - outcome.sent


def e2el(outcome: Outcome) -> float:
    """End-to-end latency, in seconds: from sending to the last chunk with choices. What comes behind it, such
    as usage, does not count."""
    return outcome.chunks[-1] - outcome.sent


def itl(outcome: Outcome) -> list[float]:
    """Inter-token latencies, in seconds: the gaps between chunks with choices, whatever number of tokens they
    have."""
    return [after - before for before, after in pairwise(outcome.chunks)]


def output_tokens(outcome: Outcome) -> int:
    """As usage says; without it the number of chunks, where vLLM would count with a tokenizer."""
    return int(outcome.usage.get("completion_tokens") or len(outcome.chunks))


def tpot(outcome: Outcome) -> float | None:
    """Time per output token, in seconds: (E2EL - TTFT) / (n - 1), n the number of output tokens; None where
    there is only one. In contrast to ITL each request counts once, and chunks of several tokens do not
    matter."""
    n = output_tokens(outcome)
    return (e2el(outcome) - ttft(outcome)) / (n - 1) if n > 1 else None


def is_good(outcome: Outcome, limits: Mapping[str, float]) -> bool:
    """Whether a request keeps to all limits, milliseconds by "ttft", "tpot" and "e2el". The TPOT of a single
    token is 0."""
    measured = {"ttft": ttft(outcome), "tpot": tpot(outcome) or 0.0, "e2el": e2el(outcome)}
    return all(1000 * measured[name] <= limit for name, limit in limits.items())


def percentile(values: Sequence[float], p: float) -> float:
    """Linear between the two values that are closest, as numpy.percentile does by default."""
    ordered = sorted(values)
    place = p / 100 * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def spread(name: str, seconds: Sequence[float]) -> dict[str, float]:
    """Mean, median, P90, P99 and maximum in milliseconds; nothing of nothing."""
    if not seconds:
        return {}
    figures = {"mean": fmean(seconds), "max": max(seconds)}
    figures |= {title: percentile(seconds, p) for title, p in (("median", 50), ("p90", 90), ("p99", 99))}
    return {f"{title}_{name}_ms": 1000 * value for title, value in figures.items()}


def summary(outcomes: Sequence[Outcome], duration: float, limits: Mapping[str, float]) -> dict[str, float]:
    """All measures of requests that were sent together, over the seconds that they took together.

    Throughputs count the requests that succeeded, and request_goodput those of them that keep to the limits.
    Requests whose client has left on purpose are not among the failed."""
    done = [o for o in outcomes if o.chunks and not o.error and not o.left]
    tokens = sum(map(output_tokens, done))
    prompts = sum(o.usage.get("prompt_tokens", 0) for o in done)
    found = {
        "duration": duration,
        "completed": len(done),
        "failed": sum(bool(o.error) for o in outcomes),
        "refusals": sum(o.refusals for o in outcomes),
        "refusals_with_retry_after": sum(o.told for o in outcomes),
        "total_input_tokens": prompts,
        "total_output_tokens": tokens,
        "request_throughput": len(done) / duration,
        "output_throughput": tokens / duration,
    }
    if limits:
        found["request_goodput"] = sum(is_good(o, limits) for o in done) / duration
    details = [o.usage.get("prompt_tokens_details") or {} for o in done]
    if prompts and any("cached_tokens" in detail for detail in details):
        found["cached_share"] = sum(detail.get("cached_tokens", 0) for detail in details) / prompts
    return (
        found
        | spread("ttft", [ttft(o) for o in done])
        | spread("tpot", [value for o in done if (value := tpot(o)) is not None])
        | spread("itl", [gap for o in done for gap in itl(o)])
        | spread("e2el", [e2el(o) for o in done])
    )
