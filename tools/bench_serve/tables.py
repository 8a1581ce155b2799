"""The report: Markdown with a table a scenario and a row a server, and JSON with everything."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from tools.bench_serve.client import Outcome
from tools.bench_serve.scenarios import SCENARIOS, Point
from tools.bench_serve.servers import Server, Used

TITLES = {
    "request_rate": "req/s sent",
    "request_throughput": "req/s",
    "output_throughput": "tokens/s",
    "request_goodput": "goodput, req/s",
    "median_ttft_ms": "TTFT, ms",
    "p99_ttft_ms": "TTFT P99",
    "max_ttft_ms": "TTFT, longest",
    "median_tpot_ms": "TPOT, ms",
    "p99_itl_ms": "ITL P99",
    "gap_before_ms": "largest gap before, ms",
    "gap_during_ms": "largest gap, ms",
    "refusals": "429",
    "refusals_with_retry_after": "with Retry-After",
    "cached_share": "cached",
    "valid_share": "valid of the whole",
    "completed": "done",
    "failed": "failed",
    "left": "left",
    "compared": "compared",
    "different": "different",
    "idle_after_ms": "idle after, ms",
    "still_running": "still running",
    "peak_mb": "peak MB",
}
COUNTS = {
    "completed",
    "failed",
    "refusals",
    "refusals_with_retry_after",
    "left",
    "compared",
    "different",
    "still_running",
}
SHARES = {"cached_share", "valid_share"}


@dataclass
class Results:
    """What came of the rounds so far.

    points  by scenario and server: a list a round
    used    the same, what the server's processes took: memory since it started, time of the scenario alone
    failed  the same: why there is nothing
    """

    servers: Sequence[Server]
    scenarios: Sequence[str]
    points: dict[tuple[str, str], list[list[Point]]] = field(default_factory=dict)
    used: dict[tuple[str, str], list[Used]] = field(default_factory=dict)
    failed: dict[tuple[str, str], str] = field(default_factory=dict)

    def labels(self, scenario: str) -> list[str]:
        """Of all its points, in order."""
        rounds = [points for (of, _), found in self.points.items() if of == scenario for points in found]
        return list(dict.fromkeys(point.label for points in rounds for point in points))

    def rounds(self, scenario: str, server: str, label: str) -> list[Point]:
        """A point in each round."""
        rounds = self.points.get((scenario, server), ())
        return [point for points in rounds for point in points if point.label == label]

    def medians(self, scenario: str, server: str, label: str) -> dict[str, float]:
        """Each measure's median over the rounds."""
        rounds = [point.metrics for point in self.rounds(scenario, server, label)]
        keys = dict.fromkeys(key for metrics in rounds for key in metrics)
        return {key: median(metrics[key] for metrics in rounds if key in metrics) for key in keys}


def ratios(ours: dict[str, float], theirs: dict[str, float]) -> dict[str, float]:
    """Of medians, where a ratio says something."""
    keys = [key for key in ours if key not in COUNTS | SHARES and ours[key] > 0 and theirs.get(key, 0) > 0]
    return {key: ours[key] / theirs[key] for key in keys}


def figure(key: str, value: float | None) -> str:
    """A cell: three digits that count."""
    if value is None:
        return "–"
    if key in COUNTS:
        return f"{value:g}"
    if key in SHARES:
        return f"{100 * value:.0f} %"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def grid(titles: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> list[str]:
    """A table in Markdown; the first `left` columns are texts."""
    rule = ["---"] * left + ["--:"] * (len(titles) - left)
    return ["| " + " | ".join(cells) + " |" for cells in (titles, rule, *rows)]


def scenario_lines(results: Results, scenario: str) -> list[str]:
    """A scenario's table, and under it what failed."""
    keys = SCENARIOS[scenario].columns
    names = [server.name for server in results.servers]
    rows, notes = [], []
    for label in results.labels(scenario):
        medians = {name: results.medians(scenario, name, label) for name in names}
        for name in names:
            rows.append([label, name, *(figure(key, medians[name].get(key)) for key in keys)])
            found = results.rounds(scenario, name, label)
            notes += [f"{label}, {name}: {point.note}" for point in found if point.note]
        for other in names[1:]:
            times = ratios(medians[names[0]], medians[other])
            cells = [f"{times[key]:.2f}×" if key in times else "" for key in keys]
            rows.append([label, f"{names[0]} / {other}", *cells])
    notes += [f"{name}: {why}" for (of, name), why in results.failed.items() if of == scenario]
    lines = [f"### {scenario}", "", SCENARIOS[scenario].about, ""]
    if rows:
        lines += [*grid(["", "server", *(TITLES[key] for key in keys)], rows, 2), ""]
    for note in dict.fromkeys(notes):
        lines += [*(f"    {line}" for line in note.splitlines()), ""]
    return lines


def used_lines(results: Results) -> list[str]:
    """What the servers' processes took."""
    rows = []
    for scenario in results.scenarios:
        for server in results.servers:
            if used := results.used.get((scenario, server.name)):
                peak, seconds = max(one.bytes for one in used), median(one.seconds for one in used)
                rows.append([scenario, server.name, f"{peak / 1e6:,.0f}", f"{seconds:.1f}"])
    if not rows:
        return []
    return ["### Memory and processor", "", *grid(["", "server", "peak MB", "CPU s"], rows, 2), ""]


def as_markdown(results: Results, about: dict[str, Any]) -> str:
    limits = ", ".join(f"{name} at most {limit:g} ms" for name, limit in about["goodput"].items())
    lines = [
        f"{about['processor']}, {about['processors']} processors; {about['system']}; {about['date'][:10]}; "
        f"pyllm {about['versions']['pyllm']}.",
        "",
        f"Medians over {about['rounds']} rounds, in which the servers take turns; × are ratios of medians. "
        "The measures are those of vLLM's `bench serve`; the client runs on the same machine. "
        f"Goodput: requests with {limits}. Made by",
        "",
        f"    {about['command']}",
        "",
        "Servers, as they were started the last time:",
        "",
        *(f"    {server.name}: {server.line or server.url}" for server in results.servers),
        "",
    ]
    for scenario in results.scenarios:
        lines += scenario_lines(results, scenario)
    return "\n".join([*lines, *used_lines(results)])


def request_dict(outcome: Outcome, start: float) -> dict[str, Any]:
    """The raw numbers of a request, in seconds from the start, from which all measures follow."""
    chunks = [round(when - start, 6) for when in outcome.chunks]
    times = {"sent": round(outcome.sent - start, 6), "chunks": chunks}
    names = ("finish", "usage", "status", "error", "refusals", "told", "left")
    return times | {name: getattr(outcome, name) for name in names}


def point_dict(point: Point) -> dict[str, Any]:
    start = min((o.sent for o in point.outcomes), default=0.0)
    requests = [request_dict(outcome, start) for outcome in point.outcomes]
    return {"metrics": point.metrics, "note": point.note, "requests": requests}


def scenario_dict(results: Results, scenario: str) -> dict[str, Any]:
    names = [server.name for server in results.servers]
    points = []
    for label in results.labels(scenario):
        medians = {name: results.medians(scenario, name, label) for name in names}
        rounds = {name: [*map(point_dict, results.rounds(scenario, name, label))] for name in names}
        compared = {f"{names[0]} / {name}": ratios(medians[names[0]], medians[name]) for name in names[1:]}
        points.append({"label": label, "medians": medians, "ratios": compared, "rounds": rounds})
    used = {name: [vars(one) for one in results.used.get((scenario, name), ())] for name in names}
    failed = {name: why for (of, name), why in results.failed.items() if of == scenario}
    return {"scenario": scenario, "points": points, "used": used, "failed": failed}


def as_json(results: Results, about: dict[str, Any]) -> str:
    servers = [{"name": s.name, "started_by": s.line or None, "body": s.body} for s in results.servers]
    scenarios = [scenario_dict(results, scenario) for scenario in results.scenarios]
    return json.dumps({**about, "servers": servers, "scenarios": scenarios}, indent=1)
