"""What the machine can do: peaks.c, compiled, and how close an engine comes to it."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shlex
import shutil
import statistics
import subprocess
import time
from pathlib import Path
from typing import Any

from tools.bench.cases import Case
from tools.bench.common import HERE, Unavailable, one_line, replacing
from tools.bench.engines import Engine
from tools.bench.timing import PAUSE
from tools.bench.workers import LIMIT


class Peaks:
    """peaks.c, compiled, and what it measured so far. Without a compiler it measures nothing."""

    def __init__(self, work: Path, threads: int, read_mib: int) -> None:
        self.arguments = [str(threads), str(read_mib)]
        self.samples: list[dict[str, Any]] = []
        self.failed = ""
        source = HERE / "peaks.c"
        try:
            digest = hashlib.sha256(source.read_bytes()).hexdigest()[:8]
            self.program = work / f"peaks-{platform.machine()}-{digest}"
            if not self.program.exists():
                self.compile(source)
        except (OSError, Unavailable) as error:
            self.failed = f"the machine's peaks are not measured: {one_line(error)}"

    def compile(self, source: Path) -> None:
        """With all instructions, else without those that an older assembler does not know."""
        chosen = os.environ.get("CC")
        found = shlex.split(chosen) if chosen else [c for c in ("cc", "gcc", "clang") if shutil.which(c)][:1]
        if not found:
            raise Unavailable("no C compiler (cc, gcc or clang) is installed")
        with replacing(self.program) as part:
            for missing in ([], ["-DNO_AMX"], ["-DNO_AMX", "-DNO_BF16"]):
                command = [*found, "-O2", "-pthread", *missing, str(source), "-o", str(part)]
                done = subprocess.run(command, capture_output=True, text=True)
                if done.returncode == 0:
                    return
            raise Unavailable(f"{shlex.join(command)} failed: {done.stderr.strip()[:200]}")

    def measure(self) -> None:
        """One more sample."""
        if self.failed:
            return
        time.sleep(PAUSE)
        try:
            done = subprocess.run(
                [str(self.program), *self.arguments],
                capture_output=True,
                text=True,
                check=True,
                timeout=LIMIT,
            )
            self.samples.append(json.loads(done.stdout))
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            self.failed = f"the machine's peaks are not measured: {one_line(error)}"

    def median(self) -> dict[str, Any]:
        """The figures' medians over all samples; names as they are, null where nothing was measured."""
        result: dict[str, Any] = {}
        for key, value in (self.samples[-1] if self.samples else {}).items():
            measured = isinstance(value, float)
            result[key] = statistics.median(s[key] for s in self.samples) if measured else value
        return result


# What prompts are bound by: (name, peaks.c's figure, operations a second that one of it is).
INT8_TILES = ("AMX int8", "amx_int8_tops", 1e12)
INT8 = ("int8", "int8_gops", 1e9)
INT16 = ("int16", "int16_gops", 1e9)
FLOAT32 = ("float32", "fma_gflops", 1e9)


def matching_peak(engine: Engine, isa: str, peaks: dict[str, Any]) -> tuple[str, str, float]:
    """The fastest arithmetic that serves pyllm's kernels for prompts: products of int8, or where this
    processor has no instruction for them, of int16; for fp16 files of int16, which 13 bits fit in; float32
    where that was asked for."""
    if engine.options:
        return FLOAT32
    if engine.dtype == "fp16":
        return INT16
    if "amx" in isa:
        return INT8_TILES
    return INT8 if peaks.get("int8_gops") else INT16


def share_of_peak(
    case: Case, engine: Engine, isa: str, needs: dict[str, float], seconds: float, peaks: dict[str, Any]
) -> str:
    """How close pyllm comes to what the machine can do: for a prompt in operations, for decoding one sequence
    in bytes."""
    if "operations" in needs:
        name, key, unit = matching_peak(engine, isa, peaks)
        rate, peak = needs["operations"] / seconds, (peaks.get(key) or 0) * unit
    elif "bytes" in needs and (case.kind == "decode" or case.n == 1):
        name, peak = "read", (peaks.get("read_gbps") or 0) * 1e9
        rate = needs["bytes"] / seconds
    else:
        return "–"
    return f"{100 * rate / peak:.0f} % of {name}" if peak else "–"
