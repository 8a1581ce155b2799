"""What several rooms need: the one exception, files that are whole or not there, and messages."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent


class Unavailable(Exception):
    """A program cannot take part; the message says why in one line."""


def one_line(error: BaseException) -> str:
    """An exception as a reason: its first sentence, not its traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines)[:300] or "no reason given"
    return text if isinstance(error, Unavailable) else f"{type(error).__name__}: {text}"


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write a file or a directory to, which becomes `path` when all went well."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        yield part
        os.replace(part, path)
    finally:
        if part.is_dir():
            shutil.rmtree(part, ignore_errors=True)
        else:
            part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a directory."""
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return path.stat().st_size


def megabytes(size: float) -> str:
    return f"{size / 1e6:.0f}" if size >= 1e7 else f"{size / 1e6:.1f}"
