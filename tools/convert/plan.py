"""pyllm-convert --plan: what a model will need, before anybody downloads or converts it.

All of it follows from the configuration; the numbers are the C library's (llm_count, llm_file_size), as
`pyllm info` prints them of a finished file. No weight is looked at: tensors that do not fit the configuration
are found out by converting them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pyllm._llm import ffi, lib

from pyllm.binding import CHUNK

from . import flatfile, huggingface, sources
from .configuration import Config
from .model import describe
from .sources import ConvertError, Source


@dataclass(frozen=True)
class Need:
    """What a model needs with matrices of one dtype, in bytes."""

    file: int  # without texts and tokenizer
    read: int  # of weights, for a token
    kv: int  # of keys and values of a token
    kept: int  # of them, at the end of the context; of layers with a window, what is kept by default
    seen: int  # of them, read for the last token of the context; of layers with a window, its
    state: int = 0  # of the states of a text, whatever its length: all that are kept; counted in `kept`, too


@dataclass(frozen=True)
class Plan:
    """What a configuration says."""

    family: str
    architecture: str
    context: int
    parameters: int  # numbers in the model, tied embeddings once
    active: int  # those of them that a token goes through
    needs: dict[str, Need]  # by dtype
    notes: list[str]  # what a user should know


def make(config: Config, context: int | None = None) -> Plan:
    """The plan for a configuration; ConvertError when it is not supported. `context` shortens the model's."""
    model = describe(config, context)
    counts, err, needs = ffi.new("llm_counts *"), ffi.new("char[256]"), {}
    context = model.shape.context
    for dtype in flatfile.DTYPES:
        layout = flatfile.finish_layout(model.shape, dtype)
        if lib.llm_count(layout.header, layout.layers, counts, err, len(err)):
            raise ConvertError(f"the model does not fit the format: {ffi.string(err).decode()}")
        seen = lib.llm_kv_read(layout.header, layout.layers, lib.LLM_KV_DEFAULT, context)
        oldest = max(0, context - lib.LLM_REWIND - CHUNK)
        kept = lib.llm_kv_size(layout.header, layout.layers, lib.LLM_KV_DEFAULT, context, oldest)
        states = lib.LLM_STATES * counts.state
        kept += states - counts.state
        needs[dtype] = Need(layout.header.file_size, counts.read, counts.kv, kept, seen, states)
    return Plan(
        model.family.name,
        model.architecture,
        context,
        counts.parameters,
        counts.active,
        needs,
        model.notes,
    )


def configuration(
    source: str | os.PathLike[str], open_source: Callable[[str | os.PathLike[str]], Source]
) -> Config:
    """The configuration of a model: a config.json or the directory that has one; the name of a model on the
    hub, of which only that file is downloaded; or anything else that open_source opens."""
    path = Path(source)
    if not os.path.lexists(path) and path.suffix != ".json":
        path = huggingface.download(os.fsdecode(source), ["config.json"])
    if path.is_dir():
        path = path / "config.json"
    if path.suffix == ".json":
        return sources.read_json(path)
    opened = open_source(source)
    opened.close()
    return opened.config


def read_speed(threads: int) -> float:
    """Bytes a second that these threads read from memory, the best of three times."""
    words, best = np.ones(1 << 25, np.uint64), 0.0  # more than caches hold
    pieces = np.array_split(words, 16 * threads)  # so that a thread that began late is not waited for
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(3):
            start = time.perf_counter()
            total = sum(pool.map(np.add.reduce, pieces))  # NumPy lets go of the interpreter meanwhile
            best = max(best, words.nbytes / (time.perf_counter() - start))
            assert total == len(words)
    return best


def size_text(size: float) -> str:
    """A number of bytes for people, as `pyllm info` prints it."""
    units = ["bytes", "KiB", "MiB", "GiB", "TiB"]
    unit = 0
    while size >= 1024 and unit < 4:
        size, unit = size / 1024, unit + 1
    return f"{size:.1f} {units[unit]}" if unit else f"{size:.0f} bytes"


def report(plan: Plan, speed: float, threads: int) -> str:
    """The plan for people, with what to expect of a machine whose memory is read at `speed` bytes/s."""
    active = "" if plan.active == plan.parameters else f", {plan.active:,} of them for each token"
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    lines = [
        *plan.notes,
        f"{'family':<18}{plan.family} ({plan.architecture})",
        f"{'parameters':<18}{plan.parameters:,}{active}",
        "",
        " " * 18 + "".join(f"{dtype:>12}" for dtype in plan.needs),
    ]

    def row(label: str, value: Callable[[Need], str], remark: str) -> None:
        cells = "".join(f"{value(need):>12}" for need in plan.needs.values())
        lines.append(f"{label:<18}{cells}  {remark}".rstrip())

    row("file", lambda need: size_text(need.file), "and a few MiB of tokenizer")
    row("keys and values", lambda need: f"{need.kv:,}", "bytes a token")
    row("", lambda need: size_text(need.kept - need.state), f"at a context of {plan.context}")
    if any(need.state for need in plan.needs.values()):
        row("states", lambda need: size_text(need.state), f"of a text, {lib.LLM_STATES} that are kept")
    row(
        "memory",
        lambda need: size_text(need.file + need.kept),
        f"with those; here are {size_text(memory)}",
    )
    row("decode reads", lambda need: size_text(need.read), "of weights a token")
    remark = f"at most, with {speed / 1e9:.2f} GB/s on {threads} threads"
    row("tokens/s", lambda need: f"{speed / need.read:.1f}", remark)
    row("", lambda need: f"{speed / (need.read + need.seen):.1f}", "at the end of that context")
    large = [dtype for dtype, need in plan.needs.items() if need.file > memory]
    if large:
        lines.append(
            f"The memory here does not hold {' or '.join(large)}: reading it from the disk is far slower."
        )
    return "\n".join(lines)


def tell(config: Config, context: int | None = None) -> str:
    """The plan for a configuration on this machine, for people."""
    threads = max(1, lib.llm_default_threads())
    return report(make(config, context), read_speed(threads), threads)
