"""Whether a grammar can be compiled in bounded time: another process tries it first (grammar_worker.py).

There is one for this process and all its threads, from the first grammar on. When it does not come through in
time, it is ended, and the next grammar starts another. A fork()ed child starts its own."""

from __future__ import annotations

import atexit
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
_running: subprocess.Popen[bytes] | None = None


def fault(grammar: str, limits: Mapping[str, int]) -> str | None:
    """Why a grammar cannot be compiled within bounds; None: it can, or is refused soon."""
    global _running
    question = json.dumps([grammar, dict(limits), 2 * SECONDS]).encode() + b"\n"
    with _lock:
        for _ in range(2):  # it may have been killed since the last question
            if _running is None:
                _running = _start()
            try:
                if _came_through(_running, question):
                    return None
            except TimeoutError:
                stop()
                return "it takes too long to compile"
            stop()
        return "it cannot be compiled"


def stop() -> None:
    """Ends the process; the next question starts another."""
    global _running
    if _running is not None:
        _end(_running)
        _running = None


def _after_fork() -> None:
    """The process is the parent's: a child that kept its pipe would keep it from ending."""
    global _lock, _running
    if _running is not None:
        assert _running.stdin is not None and _running.stdout is not None
        _running.stdin.close()
        _running.stdout.close()
        _running.returncode = 0  # nobody is to wait for it
    _lock, _running = threading.Lock(), None


atexit.register(stop)
os.register_at_fork(after_in_child=_after_fork)


def _start() -> subprocess.Popen[bytes]:
    import llguidance

    folder = str(Path(llguidance.__file__).resolve().parents[1])
    kept = [*["PYTHONHOME"][: not sys.flags.ignore_environment], "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH"]
    worker = subprocess.Popen(
        [sys.executable, "-B", "-S", str(PROGRAM), str(MEMORY), folder],
        bufsize=0,  # a fork()ed child has nothing to write
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
        left = memoryview(question)
        while left:
            left = left[worker.stdin.write(left) :]
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
    worker.stdin.close()
    worker.stdout.close()
