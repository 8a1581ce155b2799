"""The plot: time to the first token and tokens a second, by the number of streams."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tools.bench_serve.tables import Results

PANELS = (("median_ttft_ms", "TTFT, ms"), ("output_throughput", "tokens/s, all streams"))


def draw_streams(results: Results, about: dict[str, Any], path: Path) -> bool:
    """A line a server, its median over the rounds. False, and no file, when there is nothing to draw;
    ImportError without matplotlib."""
    labels = results.labels("streams")
    if not labels:
        return False
    from tools.bench.plots import bare, pyplot, save

    plt = pyplot()
    figure, axes = plt.subplots(1, len(PANELS), figsize=(10, 4), layout="constrained")
    counts = [int(label.split()[0]) for label in labels]
    for (key, title), ax in zip(PANELS, axes, strict=True):
        for server in results.servers:
            values = [results.medians("streams", server.name, label).get(key) for label in labels]
            points = [(n, value) for n, value in zip(counts, values, strict=True) if value]
            if points:
                ax.plot(
                    *zip(*points, strict=True), marker="o", markersize=4, linewidth=1.6, label=server.name
                )
        ax.set_xscale("log", base=2)
        ax.set_xticks(counts, [str(n) for n in counts])
        ax.minorticks_off()
        ax.set_ylim(bottom=0)
        ax.set_xlabel("streams")
        ax.set_title(title, fontsize=10, loc="left")
        bare(ax)
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=4, frameon=False)
    figure.suptitle(f"{about['processor']}, {about['date'][:10]}", fontsize=10)
    save(figure, path)
    plt.close(figure)
    return True
