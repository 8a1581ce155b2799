"""The report: Markdown with a row an engine, and JSON with everything."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from tools.bench.common import megabytes
from tools.bench.engines import ENGINES, PYLLM, RATIOS, REFERENCES
from tools.bench.peaks import Peaks, share_of_peak
from tools.bench.peers import RUNNERS
from tools.bench.runs import Result
from tools.bench.timing import SLOW, Measurement


class Notes:
    """Reasons, numbered as they come."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def dash(self, reason: str | None) -> str:
        """A cell without a figure."""
        if not reason:
            return "–"
        if reason not in self.texts:
            self.texts.append(reason)
        return f"– [{self.texts.index(reason) + 1}]"

    def lines(self) -> list[str]:
        return [line for i, text in enumerate(self.texts) for line in ("", f"[{i + 1}] {text}.")]


def figure(speed: float) -> str:
    """Three digits at least, no more than one after the point."""
    return f"{speed:,.0f}" if speed >= 100 else f"{speed:.1f}"


def divergence_figure(value: float) -> str:
    """Two digits that count: 0.065, 0.0012, 3.3e-06."""
    return f"{value:.2g}" if value < 1e-4 else f"{value:.{max(2, 1 - exponent(value))}f}"


def exponent(value: float) -> int:
    """That of the first digit: -2 of 0.065."""
    return int(f"{value:e}".rpartition("e")[2])


def grid(titles: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> list[str]:
    """A table in Markdown; the first `left` columns are texts."""
    rule = ["---"] * left + ["--:"] * (len(titles) - left)
    return ["| " + " | ".join(cells) + " |" for cells in (titles, rule, *rows)]


def accuracy_cells(result: Result, name: str, notes: Notes) -> list[str]:
    """KL, its 99th percentile, the agreement and the perplexity of an engine."""
    found = result.accuracy.get(name)
    summary: dict[str, Any] = found.summary() if found else {"failed": ""}
    if "kl" not in summary:
        return [notes.dash(summary["failed"]), "–", "–", "–"]
    kl, p99 = divergence_figure(summary["kl"]), divergence_figure(summary["kl_p99"])
    return [kl, p99, f"{100 * summary['top1']:.1f} %", f"{summary['perplexity']:.3f}"]


def present(result: Result, engines: Sequence[str]) -> list[str]:
    """The engines that could be measured."""
    return [name for name in engines if name not in result.failed]


def variants(result: Result) -> list[str]:
    """Which figures are those of another variant than an engine's first."""
    chosen: dict[tuple[str, str], list[str]] = {}
    for m in result.measurements:
        for name in m.seconds:
            best = m.best(name)
            if best != RUNNERS[ENGINES[name].runner].variants[0]:
                chosen.setdefault((best, m.case.title), []).append(ENGINES[name].label)
    parts = [f"{title}, {', '.join(labels)}: {best}" for (best, title), labels in chosen.items()]
    return ["", f"Fastest with other settings than those of the KL: {'; '.join(parts)}."] if parts else []


def absent(result: Result, engines: Sequence[str]) -> list[str]:
    """Those that could not, and why: a line a reason."""
    reasons: dict[str, list[str]] = {}
    for name in engines:
        if name in result.failed:
            reasons.setdefault(result.failed[name], []).append(ENGINES[name].label)
    return [line for why, labels in reasons.items() for line in ("", f"Without {', '.join(labels)}: {why}.")]


def main_table(result: Result, engines: Sequence[str]) -> list[str]:
    """A row an engine: file size, accuracy, and tokens a second of each case."""
    notes = Notes()
    titles = ["engine", "type", "MB"]
    if result.accuracy:
        titles += ["KL", "KL p99", "top 1", "perplexity"]
    titles += [m.case.title for m in result.measurements]
    rows = []
    for name in present(result, engines):
        engine, size = ENGINES[name], result.engines[name]["file_bytes"]
        cells = [engine.program, engine.dtype, megabytes(size) if engine.timed else "–"]
        if result.accuracy:
            cells += accuracy_cells(result, name, notes)
        for m in result.measurements:
            speed = m.speed(name)
            cells.append(notes.dash(m.failed.get(name)) if speed is None else figure(speed))
        if engine.timed or result.accuracy:
            rows.append(cells)
    if result.reference and result.reference not in engines:
        engine = REFERENCES[result.reference]
        cells = [f"{engine.program} (the reference)", engine.dtype, "–"]
        cells += accuracy_cells(result, result.reference, notes)
        rows.append(cells + ["–"] * len(result.measurements))
    return grid(titles, rows, 2) + notes.lines() + variants(result) + absent(result, engines)


def pairs(engines: Sequence[str]) -> list[tuple[str, str | None]]:
    """What is compared: (ours, theirs), None for the fastest of all others."""
    found: list[tuple[str, str | None]] = [pair for pair in RATIOS if set(pair) <= set(engines)]
    if any(name not in PYLLM and ENGINES[name].timed for name in engines):
        found += [(name, None) for name in PYLLM if name in engines]
    return found


def ratio_table(result: Result, engines: Sequence[str]) -> list[str]:
    """How many times as fast as another engine."""
    others = [name for name in engines if name not in PYLLM]
    rows = []
    for ours, theirs in pairs(engines):
        cells = [f"{ENGINES[ours].label} / {ENGINES[theirs].label if theirs else 'the fastest other'}"]
        for m in result.measurements:
            other = theirs or m.fastest(others)
            value = m.ratio(ours, other) if other else None
            cells.append("–" if value is None else f"{value:.2f}")
            if value is not None and other and not theirs:
                cells[-1] += f" ({ENGINES[other].label})"
        rows.append(cells)
    if not rows:
        return []
    titles = ["times as fast", *(m.case.title for m in result.measurements)]
    return ["", *grid(titles, rows, 1)]


def llama_bench_table(result: Result) -> list[str]:
    """What llama.cpp's own benchmark says of the same files."""
    cases = [m.case for m in result.measurements if m.case.kind != "batch"]
    rows = [
        [ENGINES[name].label, *(figure(speeds[str(case)]) for case in cases)]
        for name, speeds in result.llama_bench.items()
    ]
    titles = ["llama-bench, tokens/s", *(case.title for case in cases)]
    return ["", *grid(titles, rows, 1)] if rows else []


def share_table(result: Result, engines: Sequence[str], peaks: dict[str, Any]) -> list[str]:
    """How close pyllm comes to what the machine can do."""
    rows = []
    for name in engines:
        if name not in PYLLM or name not in result.needs:
            continue
        cells = [ENGINES[name].label]
        for m in result.measurements:
            seconds, needs = m.median(name), result.needs[name].get(str(m.case), {})
            isa = result.engines[name].get("runs_with", "")
            share = seconds and share_of_peak(m.case, ENGINES[name], isa, needs, seconds, peaks)
            cells.append(share or "–")
        rows.append(cells)
    titles = ["of the peak", *(m.case.title for m in result.measurements)]
    return ["", *grid(titles, rows, 1)] if rows else []


def head_lines(about: dict[str, Any], peaks: Peaks, results: Sequence[Result]) -> list[str]:
    """What was measured on, and with what."""
    memory = f", {about['memory_gib']:.0f} GiB of memory" if about["memory_gib"] else ""
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    isas = {r.engines.get(name, {}).get("runs_with", "") for r in results for name in PYLLM} - {""}
    where = f"{about['processor']}, {about['processors']} processors{memory}; {about['system']}"
    kernels = f" Kernels of pyllm: {', '.join(sorted(isas))}." if isas else ""
    lines = [f"{where}; {about['date'][:10]}.", f"{about['threads']} threads. {versions}.{kernels}"]
    figures = {
        "read_gbps": "reads {:.1f} GB/s",
        "fma_gflops": "float32 {:.0f} GFLOP/s",
        "int16_gops": "int16 {:.0f} GOP/s",
        "int8_gops": "int8 {:.0f} GOP/s",
        "bf16_gflops": "AVX-512 bf16 {:.0f} GFLOP/s",
        "amx_bf16_tflops": "AMX bf16 {:.2f} TFLOP/s",
        "amx_int8_tops": "AMX int8 {:.2f} TOP/s",
    }
    median = peaks.median()
    found = [text.format(median[key]) for key, text in figures.items() if median.get(key)]
    if found:
        times = f"median of {len(peaks.samples)} measurements in between"
        lines.append(f"The machine, with these threads: {', '.join(found)} ({times}).")
    elif peaks.failed:
        lines.append(f"{peaks.failed[:1].upper()}{peaks.failed[1:]}.")
    return lines


def model_lines(result: Result, repeat: int) -> list[str]:
    """What stands above a model's tables."""
    origin = f"from {result.model.source.name}" if result.model.source else "random weights"
    parts = [f"{result.parameters / 1e6:.1f} million parameters, {origin}"]
    fewer = sorted({m.rounds for m in result.measurements} - {repeat})
    if fewer:
        slow = [m.case.title for m in result.measurements if m.rounds in fewer]
        parts.append(f"{', '.join(slow)}: the median of {fewer[0]}")
    others = {name: d for name, d in result.difference.items() if name != result.same_as}
    if others and result.model.shape:
        label, most = ENGINES[result.same_as].label, max(others.values())
        parts.append(f"logits differ from {label}'s by up to {most:.3f} of their standard deviation")
    lines = [f"### {result.model.name}", "", f"{'; '.join(parts)}."]
    if result.accuracy:
        texts = ", ".join(f"{name} ({n})" for name, n in result.texts.items())
        label = REFERENCES[result.reference].label
        lines.append(f"Accuracy against {label}, over the tokens of these texts: {texts}.")
    return [*lines, ""]


def as_markdown(
    results: Sequence[Result], about: dict[str, Any], peaks: Peaks, engines: Sequence[str]
) -> str:
    lines = [*head_lines(about, peaks, results), ""]
    lines += [
        f"Tokens a second, the median of {about['repeat']} rounds in which all programs take turns; "
        "sequences together are summed. KL: divergence from the reference's predictions, nats a token. "
        "Made by",
        "",
        f"    {about['command']}",
        "",
    ]
    for result in results:
        lines += model_lines(result, about["repeat"])
        lines += main_table(result, engines)
        if result.measurements:
            lines += ratio_table(result, present(result, engines))
            lines += share_table(result, present(result, engines), peaks.median())
            lines += llama_bench_table(result)
        lines.append("")
    return "\n".join(lines)


def case_dict(m: Measurement, engines: Sequence[str]) -> dict[str, Any]:
    ratios = {f"{ours} / {theirs}": m.ratio(ours, theirs) for ours, theirs in pairs(engines) if theirs}
    return {
        "case": str(m.case),
        "rounds": m.rounds,
        "steps": m.case.steps,
        "tokens_a_measurement": m.case.tokens,
        "seconds": m.seconds,
        "chosen": {name: m.best(name) for name in m.seconds},
        "tokens_per_second": {name: m.speed(name) for name in m.seconds},
        "ratios": ratios,
        "failed": m.failed,
    }


def model_dict(result: Result, engines: Sequence[str]) -> dict[str, Any]:
    return {
        "name": result.model.name,
        **result.model.as_dict(),
        "parameters": result.parameters,
        "engines": result.engines,
        "failed": result.failed,
        "same_as": result.same_as,
        "difference": result.difference,
        "reference": result.reference,
        "texts": result.texts,
        "accuracy": {name: found.summary() for name, found in result.accuracy.items()},
        "needs": result.needs,
        "llama_bench": result.llama_bench,
        "measurements": [case_dict(m, engines) for m in result.measurements],
    }


def as_json(results: Sequence[Result], about: dict[str, Any], peaks: Peaks, engines: Sequence[str]) -> str:
    """Everything, the raw seconds included."""
    report = {
        **about,
        "seconds_are": "of one pass over the prompt, or of one step of decoding",
        "ratios_are": "of speeds, the first engine's / the second's, the median over rounds",
        "difference_is": "of the logits, in standard deviations of the reference's",
        "kl_is": "the mean over all tokens of sum(p * log(p / q)), p the reference's probabilities",
        "slow": f"cases whose warm-up took over {SLOW:.0f} s have half the rounds, at least 2: see `rounds`",
        "peaks": {"median": peaks.median(), "samples": peaks.samples, "failed": peaks.failed},
        "models": [model_dict(result, engines) for result in results],
    }
    return json.dumps(report, indent=1)
