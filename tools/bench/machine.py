"""What was measured on, and with which versions."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tools.bench.common import ROOT
from tools.bench.engines import ENGINES


def processor() -> str:
    """The processor's name, as the kernel tells it."""
    try:
        found = re.search(r"^(?:model name|Model)\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


def memory_gib() -> float | None:
    """The machine's memory."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    except (ValueError, OSError):
        return None


def version(package: str) -> str:
    """A package's version; of pyllm also the commit, where this is a checkout."""
    try:
        found = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        found = "not installed"
    spec = importlib.util.find_spec("pyllm") if package == "pyllm" and (ROOT / ".git").exists() else None
    if spec and spec.origin and Path(spec.origin).resolve().is_relative_to(ROOT):
        command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
        try:
            commit = subprocess.run(command, capture_output=True, text=True).stdout.strip()
        except OSError:
            commit = ""
        if commit:
            found = f"commit {commit}" if found == "not installed" else f"{found} (commit {commit})"
    return found


def machine(engines: Sequence[str], threads: int) -> dict[str, Any]:
    packages = [package for name in engines for package in ENGINES[name].packages]
    return {
        "processor": processor(),
        "processors": os.cpu_count(),
        "memory_gib": memory_gib(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "threads": threads,
        "versions": {package: version(package) for package in dict.fromkeys(packages)},
    }
