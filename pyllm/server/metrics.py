"""What a server counts, in the text format of Prometheus. The names are vLLM's where it has the same."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from pyllm.sampling import Continuation
from pyllm.scheduler import Request, Step

if TYPE_CHECKING:
    from pyllm.server.service import Service

SECONDS = (
    0.001,
    0.005,
    0.01,
    0.02,
    0.04,
    0.06,
    0.08,
    0.1,
    0.25,
    0.5,
    0.75,
    1,
    2.5,
    5,
    7.5,
    10,
    30,
    60,
    120,
    300,
)
TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000)
STEP_TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
CHANGE = 0.05  # how much one request changes what is expected of the next

HISTOGRAMS = {
    "time_to_first_token_seconds": ("from the arrival of a request to its first token", SECONDS),
    "inter_token_latency_seconds": ("between two tokens of a request", SECONDS),
    "e2e_request_latency_seconds": ("from the arrival of a request to its end", SECONDS),
    "request_queue_time_seconds": ("from the arrival of a request to its place in the batch", SECONDS),
    "request_prefill_time_seconds": ("from a request's place in the batch to its first token", SECONDS),
    "request_decode_time_seconds": ("from a request's first token to its end", SECONDS),
    "request_prompt_tokens": ("tokens of prompts", TOKENS),
    "request_generation_tokens": ("tokens made for requests", TOKENS),
    "iteration_tokens_total": ("tokens of a step", STEP_TOKENS),
    "step_seconds": ("of the passes over the weights", SECONDS),
}
COUNTERS = {
    "prompt_tokens": "tokens of prompts",
    "generation_tokens": "tokens made",
    "prefix_cache_queries": "tokens of prompts that were looked for in the cache",
    "prefix_cache_hits": "tokens of prompts that were there",
    "spec_draft_tokens": "tokens that were guessed",
    "spec_accepted_tokens": "guesses that were right",
    "requests_cancelled": "requests whose client had left",
}


class Histogram:
    """Counts of values by size."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds, self.counts = bounds, [0] * (len(bounds) + 1)
        self.sum = 0.0

    def add(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def lines(self, name: str, labels: str) -> Iterator[str]:
        total = 0
        for bound, count in zip([*self.bounds, "+Inf"], self.counts, strict=True):
            total += count
            yield f'{name}_bucket{{{labels},le="{bound}"}} {total}'
        yield f"{name}_sum{{{labels}}} {self.sum:.9g}"
        yield f"{name}_count{{{labels}}} {total}"


class Timing:
    """When the tokens of a job were told of, and the job's own times when it has ended."""

    def __init__(self, metrics: Metrics, job: Request) -> None:
        self._metrics, self._job = metrics, job
        self.arrived, self._last = time.monotonic(), 0.0

    def token(self) -> None:
        """A token has come."""
        now = time.monotonic()
        if self._last:
            self._metrics.histograms["inter_token_latency_seconds"].add(now - self._last)
        self._last = now

    def end(self) -> None:
        """The job has ended."""
        now, metrics, job = time.monotonic(), self._metrics, self._job
        add = {name: histogram.add for name, histogram in metrics.histograms.items()}
        add["e2e_request_latency_seconds"](now - self.arrived)
        if job.answered:
            add["request_queue_time_seconds"](job.began - self.arrived)
            add["request_prefill_time_seconds"](job.answered - job.began)
            add["time_to_first_token_seconds"](job.answered - self.arrived)
            add["request_decode_time_seconds"](now - job.answered)
        if isinstance(job, Continuation):
            metrics.ended(job)


class Metrics:
    """model_name: what all of them are labelled with."""

    def __init__(self, model_name: str) -> None:
        escaped = model_name.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
        self._labels = f'model_name="{escaped}"'
        self.histograms = {name: Histogram(bounds) for name, (_, bounds) in HISTOGRAMS.items()}
        self.counters: Counter[str] = Counter()
        self.finished: Counter[str] = Counter()  # requests by finish_reason
        self.rejected: Counter[str] = Counter()  # by reason
        self.share_made = (
            0.5  # of the tokens that requests may make, how many they do, in the mean of the last
        )

    def on_step(self, step: Step) -> None:
        """Counts a step; by the thread that steps."""
        self.histograms["step_seconds"].add(step.seconds)
        self.histograms["iteration_tokens_total"].add(step.tokens)

    def ended(self, job: Continuation) -> None:
        """Counts a job that has ended."""
        counters = self.counters
        if job.cancelled or job.error is not None:
            reason = "abort" if job.cancelled else "error"
        else:
            reason = job.finish_reason
            made = len(job.tokens) / max(1, job.limit)
            self.share_made += CHANGE * (made - self.share_made)
        self.finished[reason] += 1
        counters["requests_cancelled"] += job.cancelled
        counters["prompt_tokens"] += len(job.prompt)
        counters["generation_tokens"] += len(job.tokens)
        if job.started:
            counters["prefix_cache_queries"] += len(job.prompt)
            counters["prefix_cache_hits"] += job.cached
        counters["spec_draft_tokens"] += job.drafted
        counters["spec_accepted_tokens"] += job.accepted
        self.histograms["request_prompt_tokens"].add(len(job.prompt))
        self.histograms["request_generation_tokens"].add(len(job.tokens))

    def text(self, service: Service) -> str:
        """All of them."""
        labels = self._labels
        lines: list[str] = []

        def begin(name: str, kind: str, about: str) -> str:
            lines.extend((f"# HELP pyllm:{name} {about}", f"# TYPE pyllm:{name} {kind}"))
            return f"pyllm:{name}"

        for name, (about, value) in self._gauges(service).items():
            lines.append(f"{begin(name, 'gauge', about)}{{{labels}}} {value:.9g}")
        for name, about in COUNTERS.items():
            lines.append(f"{begin(name + '_total', 'counter', about)}{{{labels}}} {self.counters[name]}")
        for name, by, counts, about in (
            ("request_success_total", "finished_reason", self.finished, "requests that have ended"),
            ("requests_rejected_total", "reason", self.rejected, "requests that were not taken"),
        ):
            full = begin(name, "counter", about)
            lines += [f'{full}{{{labels},{by}="{value}"}} {count}' for value, count in sorted(counts.items())]
        for name, (about, _) in HISTOGRAMS.items():
            lines += self.histograms[name].lines(begin(name, "histogram", about), labels)
        return "\n".join(lines) + "\n"

    @staticmethod
    def _gauges(service: Service) -> dict[str, tuple[str, float]]:
        scheduler = service.scheduler
        jobs = [job for running in list(service.running) for job in running.jobs if not job.ended]
        kept, held = scheduler.memory()
        limit = scheduler.policy.memory
        return {
            "num_requests_running": ("requests in the batch", sum(job.started for job in jobs)),
            "num_requests_waiting": ("requests that wait for a place", sum(not job.started for job in jobs)),
            "kv_cache_usage_perc": ("share of the memory for keys and values", held / limit if limit else 0),
            "cache_bytes": ("bytes of keys and values, of requests and kept", held),
            "cache_kept_bytes": ("those that are kept for others that begin alike", kept),
            "predicted_step_error": (
                "mean relative error of the seconds expected of steps",
                scheduler.pace.error,
            ),
            "up": ("whether the engine does what it should", service.state != "stuck"),
        }
