"""Whether a grammar can be compiled in bounded time: another process tries it first (grammar_worker.py).

There is one for this process and all its threads, from the first grammar on. When it does not come through in
time, it is ended, and the next grammar starts another. A fork()ed child starts its own."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

PROGRAM = Path(__file__).resolve().with_name("grammar_worker.py")
MEMORY = 2 << 30  # bytes that it may take, with its stack
SECONDS = 5  # that a grammar may take
START_SECONDS = 30  # that the process may take to start

_lock = threading.Lock()
_running: tuple[int, subprocess.Popen[bytes]] | None = None  # with the number of the process that started it


def fault(grammar: str, limits: Mapping[str, int]) -> str | None:
    """Why a grammar cannot be compiled within bounds; None: it can, or is refused soon."""
    global _running
    question = json.dumps([grammar, dict(limits), 2 * SECONDS]).encode() + b"\n"
    with _lock:
        for _ in range(2):  # it may have been killed since the last question
            if _running is None or _running[0] != os.getpid() or _running[1].poll() is not None:
                _running = os.getpid(), _start()
            worker = _running[1]
            try:
                if _came_through(worker, question):
                    return None
            except TimeoutError:
                _end(worker)
                _running = None
                return "it takes too long to compile"
            _end(worker)
            _running = None
        return "it cannot be compiled"


def _start() -> subprocess.Popen[bytes]:
    import llguidance

    folder = str(Path(llguidance.__file__).resolve().parents[1])
    kept = [*["PYTHONHOME"][: not sys.flags.ignore_environment], "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH"]
    worker = subprocess.Popen(
        [sys.executable, "-B", "-S", str(PROGRAM), str(MEMORY), folder],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd="/",
        env={name: os.environ[name] for name in kept if name in os.environ},
        start_new_session=True,  # Ctrl-C at a terminal is not for it
    )
    try:
        if _answered(worker, START_SECONDS):
            return worker
    except TimeoutError:
        pass
    _end(worker)
    raise RuntimeError("the process that tries grammars cannot be started")


def _came_through(worker: subprocess.Popen[bytes], question: bytes) -> bool:
    """Whether there is an answer; False: the process has ended. TimeoutError when it takes too long."""
    assert worker.stdin is not None
    try:
        worker.stdin.write(question)
        worker.stdin.flush()
    except BrokenPipeError:
        return False
    return _answered(worker, SECONDS)


def _answered(worker: subprocess.Popen[bytes], seconds: float) -> bool:
    assert worker.stdout is not None
    ready, _, _ = select.select([worker.stdout], [], [], seconds)
    if not ready:
        raise TimeoutError
    return os.read(worker.stdout.fileno(), 1) == b"."


def _end(worker: subprocess.Popen[bytes]) -> None:
    assert worker.stdin is not None and worker.stdout is not None
    worker.kill()
    worker.wait()
    worker.stdout.close()
    try:
        worker.stdin.close()
    except BrokenPipeError:  # what was not taken
        pass
