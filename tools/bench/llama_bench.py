"""llama.cpp's own benchmark on the same files, so that anyone can see that its library is driven fairly here.

It runs by itself, after the turns that all engines take: its figures stand below the table, not in it."""

from __future__ import annotations

import json
import statistics
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tools.bench.cases import DEEP, Case
from tools.bench.common import Unavailable, say
from tools.bench.files import llama_tool
from tools.bench.workers import LIMIT

CACHES = ("f16", "q8_0")  # types of keys and values that are tried where a context is deep


def arguments(case: Case) -> list[list[str]]:
    """llama-bench's, one list a run, of which the fastest counts. It has no sequences together."""
    if case.kind == "prompt":
        return [["-p", str(case.n), "-n", "0"]]
    if case.kind != "decode":
        return []
    caches = CACHES if case.n >= DEEP else CACHES[:1]
    return [
        ["-p", "0", "-n", str(case.steps), "-d", str(case.n), "-ctk", cache, "-ctv", cache]
        for cache in caches
    ]


def tokens_per_second(text: str) -> float:
    """The median of the rounds in what llama-bench prints."""
    (found,) = json.loads(text)
    return float(statistics.median(found["samples_ts"]))


def llama_bench(
    llama_cpp: Path, model: Path, cases: Sequence[Case], threads: int, repeat: int
) -> dict[str, float]:
    """Case -> tokens a second, with flash attention."""
    program = llama_tool(llama_cpp, "llama-bench")
    speeds: dict[str, float] = {}
    for case in cases:
        for given in arguments(case):
            common: list[Any] = ["-m", model, "-t", threads, "-r", repeat, "-fa", "on", "-o", "json"]
            command = [str(program), *map(str, common), *given]
            say(f"llama-bench {model.name}: {' '.join(given)}")
            try:
                done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=LIMIT)
                speed = tokens_per_second(done.stdout)
            except (OSError, ValueError, subprocess.SubprocessError) as error:
                raise Unavailable(f"llama-bench fails: {error}") from None
            speeds[str(case)] = max(speed, speeds.get(str(case), 0.0))
    return speeds
