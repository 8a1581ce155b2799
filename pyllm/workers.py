"""Programs that do what could take for ever, all memory or the process: starting one, asking it, ending it.

One of each kind serves this process and all its threads, from the first question on. It is a new program,
not a mere fork(), which is not safe beside threads. When an answer does not come in time, or not at all, the
program is ended, and the next question starts another. A fork()ed child starts its own.

A message to a program is the length of its body (8 bytes, little-endian) and the body. One from it is a
letter, the length of a text and the text in UTF-8. The first has the letter R: it is ready. D: what is the
date, by a pattern? All others are answers."""

from __future__ import annotations

import atexit
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

START_SECONDS = 30.0  # that a program may take to start


class Late(Exception):
    """The answer does not come in time."""


class Ended(Exception):
    """The process has ended without an answer."""


class Process:
    """One such process. paths: the folders of the libraries that it needs."""

    program: subprocess.Popen[bytes] | None = None

    def __init__(self, workers: Workers, paths: Sequence[str]) -> None:
        self._workers = workers
        self.socket, theirs = socket.socketpair()
        workers.running.add(self)
        kept = ["LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH"]
        if not sys.flags.ignore_environment:
            kept.append("PYTHONHOME")
        try:
            with theirs:
                self.program = subprocess.Popen(
                    [sys.executable, "-B", "-S", str(workers.program), str(workers.memory), *paths],
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    cwd="/",
                    env={name: os.environ[name] for name in kept if name in os.environ},
                    start_new_session=True,  # Ctrl-C at a terminal is not for it
                )
        except BaseException:
            self.end()
            raise

    def end(self, patience: float = 0.0) -> int | None:
        """Ends the process, unless it ends by itself in so many seconds. Returns Popen's returncode."""
        self._workers.running.discard(self)
        self.socket.close()
        if self.program is None:
            return None
        with suppress(subprocess.TimeoutExpired):
            self.program.wait(patience)
        self.program.kill()
        return self.program.wait()

    def send(self, body: bytes, deadline: float) -> None:
        """Sends a message; Late or Ended when it is not taken."""
        try:
            for part in (len(body).to_bytes(8, "little"), body):
                self.socket.settimeout(left(deadline))
                self.socket.sendall(part)
        except TimeoutError:
            raise Late from None
        except ConnectionError:
            raise Ended from None

    def receive(self, deadline: float, most: int) -> tuple[bytes, str]:
        """The letter and the text of a message; Late or Ended when none comes, or one of too many bytes."""
        head = self.read(9, deadline)
        size = int.from_bytes(head[1:], "little")
        if size > most:
            raise Ended
        return bytes(head[:1]), self.read(size, deadline).decode("utf-8", "surrogatepass")

    def read(self, size: int, deadline: float) -> bytearray:
        data = bytearray(size)
        view, at = memoryview(data), 0
        try:
            while at < size:
                self.socket.settimeout(left(deadline))
                count = self.socket.recv_into(view[at:])
                if not count:
                    raise Ended
                at += count
        except TimeoutError:
            raise Late from None
        except ConnectionError:
            raise Ended from None
        return data

    def answer(
        self, question: bytes, date: Callable[[str], bytes], deadline: float, most: int
    ) -> tuple[bytes, str]:
        """The letter and the text of the answer to a question."""
        self.send(question, deadline)
        while True:
            kind, text = self.receive(deadline, most)
            if kind != b"D":
                return kind, text
            self.send(date(text), deadline)


def no_date(pattern: str) -> bytes:
    """For programs that do not ask for one."""
    raise Ended


class Workers:
    """The program of one kind that runs, if there is one.

    program  the name of its file, beside this one
    memory   bytes that it may take
    does     what it does, for errors
    """

    def __init__(self, program: str, memory: int, does: str) -> None:
        self.program = Path(__file__).resolve().with_name(program)
        self.memory, self.does = memory, does
        self.running: set[Process] = set()
        self.idle: Process | None = None
        self._lock = threading.RLock()  # held while a question is answered; date() may ask another
        atexit.register(self.end_all)
        os.register_at_fork(after_in_child=self._forget)

    def ask(
        self,
        question: bytes,
        paths: Sequence[str],
        seconds: float,
        most: int = 0,
        date: Callable[[str], bytes] = no_date,
    ) -> tuple[bytes, str]:
        """The letter and the text of the answer to a question.

        paths    the folders of the libraries that the program needs
        seconds  that the answer may take; starting the program does not count
        most     bytes that the text may have
        date     what to send when it asks for the date in a pattern; its exceptions are passed on

        Raises Late, Ended with how when two programs have ended without an answer, RuntimeError when none can
        be started."""
        how: str | None = None
        with self._lock:
            for _ in range(2):  # one may have been killed since the last question
                process, self.idle = self.idle or self._start(paths), None
                begun = time.monotonic()
                try:
                    answer = process.answer(question, date, begun + seconds, most)
                except Ended:
                    status = process.end(patience=1.0)
                    if status == -signal.SIGXCPU:
                        raise Late from None
                    how = signal.strsignal(-status) if status and status < 0 else None
                    how = how or f"status {status}"
                    seconds -= time.monotonic() - begun
                except (
                    BaseException
                ):  # KeyboardInterrupt: an answer to come would be taken for the next one's
                    process.end()
                    raise
                else:
                    if self.idle:
                        self.idle.end()
                    self.idle = process
                    return answer
        raise Ended(how)

    def _start(self, paths: Sequence[str]) -> Process:
        """A program that is ready to be asked."""
        cannot = f"the process that {self.does} cannot be started"
        if not sys.executable or getattr(sys, "frozen", False):
            raise RuntimeError(f"{cannot}: sys.executable is {sys.executable!r}, which is no Python")
        try:
            process = Process(self, paths)
        except (OSError, ValueError) as error:  # ValueError: NUL in a path
            raise RuntimeError(f"{cannot}: {error}") from None
        try:
            process.receive(time.monotonic() + START_SECONDS, 0)
        except Ended:
            status = process.end(patience=1.0)
            raise RuntimeError(f"{cannot}: {sys.executable} ended with status {status}") from None
        except Late:
            process.end()
            raise RuntimeError(f"{cannot}: {sys.executable} took more than {START_SECONDS:g} s") from None
        except BaseException:
            process.end()
            raise
        return process

    def end_all(self) -> None:
        """Ends all processes."""
        self.idle = None
        for process in list(self.running):
            process.end()

    def _forget(self) -> None:
        """In a fork()ed child: the processes are the parent's, which alone may use and end them."""
        self._lock, self.idle = threading.RLock(), None
        for process in self.running:
            process.socket.close()
            if process.program:
                process.program.returncode = 0  # not a child of this process
        self.running.clear()


def left(deadline: float) -> float:
    """The seconds until the deadline; TimeoutError when it has passed."""
    seconds = deadline - time.monotonic()
    if seconds <= 0:
        raise TimeoutError
    return seconds
