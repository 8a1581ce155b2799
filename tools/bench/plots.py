"""The plots: speed against length and number of sequences, and speed against accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tools.bench.common import megabytes, replacing
from tools.bench.engines import ENGINES
from tools.bench.runs import Result

PANELS = (
    ("prompt", "prompt length (tokens)", "prompt"),
    ("batch", "sequences together", "decoding, all sequences"),
)


def pyplot() -> Any:
    """matplotlib, which draws to files only."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def bare(ax: Any) -> None:
    """An axis without what only fills space."""
    ax.grid(color="#e5e5e5", linewidth=0.6)
    ax.spines[["top", "right"]].set_visible(False)


def save(figure: Any, path: Path) -> None:
    with replacing(path) as part:
        figure.savefig(part, dpi=150, format="png")


def machine_title(about: dict[str, Any]) -> str:
    return f"{about['processor']}, {about['threads']} threads, {about['date'][:10]}"


def draw_lengths(
    results: Sequence[Result], about: dict[str, Any], engines: Sequence[str], path: Path
) -> None:
    """A row of two panels for each model: prompts of several lengths, several numbers of sequences."""
    plt = pyplot()
    size = (10, 0.8 + 3.6 * len(results))
    figure, axes = plt.subplots(len(results), 2, figsize=size, squeeze=False, layout="constrained")
    for result, row in zip(results, axes, strict=True):
        for (kind, label, title), ax in zip(PANELS, row, strict=True):
            measured = sorted((m for m in result.measurements if m.case.kind == kind), key=lambda m: m.case.n)
            xs = [m.case.n for m in measured]
            for name in engines:
                points = [(m.case.n, m.speed(name)) for m in measured if name in m.seconds]
                if points:
                    style = dict(color=ENGINES[name].colour, marker="o", markersize=4, linewidth=1.6)
                    ax.plot(*zip(*points, strict=True), label=ENGINES[name].label, **style)
            ax.set_xscale("log", base=2)
            ax.set_yscale("log")
            ax.set_xticks(xs, [str(x) for x in xs])
            ax.minorticks_off()
            speed_ticks(ax)
            ax.set_xlabel(label)
            ax.set_ylabel("tokens/s")
            ax.set_title(f"{result.model.name}: {title}", fontsize=10, loc="left")
            bare(ax)
    handles = {
        text: handle for ax in axes.flat for handle, text in zip(*ax.get_legend_handles_labels(), strict=True)
    }
    labels = [ENGINES[e].label for e in engines if ENGINES[e].label in handles]
    figure.legend([handles[t] for t in labels], labels, loc="outside lower center", ncols=4, frameon=False)
    figure.suptitle(machine_title(about), fontsize=10)
    save(figure, path)
    plt.close(figure)


def points_of(result: Result, engines: Sequence[str]) -> list[tuple[str, float, float]]:
    """(engine, KL, tokens a second) of those that have both, decoding from the emptiest context."""
    decoding = [m for m in result.measurements if m.case.kind == "decode"]
    if not decoding:
        return []
    shallow = min(decoding, key=lambda m: m.case.n)
    found = []
    for name in engines:
        kl = result.accuracy[name].summary().get("kl") if name in result.accuracy else None
        speed = shallow.speed(name)
        if kl and kl > 0 and speed:
            found.append((name, kl, speed))
    return found


def apart(heights: Sequence[float], gap: float) -> list[float]:
    """Ascending heights, moved up where they are closer than the gap, and all down if the last is above 1."""
    moved: list[float] = []
    for height in heights:
        moved.append(max(height, moved[-1] + gap) if moved else height)
    limit = 1.0
    for i in reversed(range(len(moved))):
        moved[i] = min(moved[i], limit)
        limit = moved[i] - gap
    return moved


def draw_accuracy(
    results: Sequence[Result], about: dict[str, Any], engines: Sequence[str], path: Path
) -> bool:
    """A panel for each model that was judged: decoding speed over divergence, a point an engine; up and to
    the left is better. False, and no file, when there is nothing to draw."""
    judged = [(result, points) for result in results if (points := points_of(result, engines))]
    if not judged:
        return False
    plt = pyplot()
    size = (7.2 * len(judged), 4.8)
    figure, axes = plt.subplots(1, len(judged), figsize=size, squeeze=False, layout="constrained")
    for (result, points), ax in zip(judged, axes[0], strict=True):
        points = sorted(points, key=lambda point: point[2])
        top = 1.1 * points[-1][2]
        heights = apart([speed / top for _, _, speed in points], 0.05)
        for (name, kl, speed), height in zip(points, heights, strict=True):
            colour, size_mb = ENGINES[name].colour, megabytes(result.engines[name]["file_bytes"])
            ax.plot(kl, speed, "o", color=colour, markersize=7)
            line = dict(arrowstyle="-", relpos=(0, 0.5), color=colour, linewidth=0.7, alpha=0.6)
            place = dict(xytext=(1.03, height), textcoords="axes fraction", va="center", fontsize=8)
            ax.annotate(f"{ENGINES[name].label}, {size_mb} MB", (kl, speed), arrowprops=line, **place)
        ax.set_xscale("log")
        ax.set_ylim(0, top)
        ax.set_xlabel("KL divergence from float32 (nats a token)")
        ax.set_ylabel("decoding, tokens/s")
        ax.set_title(result.model.name, fontsize=10, loc="left")
        bare(ax)
    figure.suptitle(machine_title(about), fontsize=10)
    save(figure, path)
    plt.close(figure)
    return True


def speed_ticks(ax: Any) -> None:
    """Plain numbers, 1, 2 and 5 of each decade, on an axis that shows all points with some room."""
    low, high = ax.get_ylim()
    ticks = [m * 10.0**e for e in range(-2, 7) for m in (1, 2, 5) if low <= m * 10.0**e <= high]
    ax.set_yticks(ticks, [f"{tick:,g}" for tick in ticks])
    ax.set_ylim(low, high)
