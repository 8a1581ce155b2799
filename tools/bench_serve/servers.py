"""The servers that are measured: each a process of its own, which is started for it and ends with it."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import shlex
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from tools.bench_serve.client import Client

T = TypeVar("T")

SLOTS = 16  # requests that llama-server runs at the same time, as pyllm-serve does
GRACE = 15.0  # seconds that a server gets to end
PATIENCE = 10.0  # seconds for an answer of a few bytes
LOOK = 0.1  # seconds between looks at a process
TAIL = 600  # characters of a log that are shown
# Sampling from all tokens, as OpenAI's API has it, is not llama-server's default
LLAMA_BODY = {"top_k": 0, "min_p": 0.0}
NO_ANSWER = (OSError, EOFError, asyncio.TimeoutError)
BUSY = re.compile(
    r"^\w+:(?:num_requests_(?:running|waiting)|requests_(?:processing|deferred))(?:{.*})? (\S+)$", re.M
)


class ServerError(Exception):
    """A server that does not do what it should: one sentence, with its name."""


@dataclass(frozen=True)
class Used:
    """What processes took: the most bytes of memory at once, and the seconds of all processors."""

    bytes: int
    seconds: float


@dataclass(frozen=True)
class About:
    """What a server says of its model; vocabulary and context are None where it does not."""

    model: str
    vocabulary: int | None = None
    context: int | None = None


@dataclass
class Server:
    """One that is started with a command, or that runs already.

    name     what it is called in tables
    command  that starts it: of a port, and of the tokens that each request must have room for
    url      where it is, if it runs already
    body     fields that its requests have beside those of all
    keep     whether it runs on when it is not measured
    timeout  seconds within which it is there
    """

    name: str
    command: Callable[[int, int], list[str]] | None = None
    url: str = ""
    body: dict[str, Any] = field(default_factory=dict)
    keep: bool = False
    timeout: float = 120.0
    line: str = ""  # the command that was last run
    process: subprocess.Popen[bytes] | None = None
    log: Path | None = None

    @contextmanager
    def running(self, room: int) -> Iterator[None]:
        """The server, from when it answers until the block ends, or on if it is kept."""
        try:
            if self.command and (self.process is None or self.ended()):
                self.start(self.command, room)
            asyncio.run(self.guarded(self.ready()))
            yield
        finally:
            if not self.keep:
                self.stop()

    def start(self, command: Callable[[int, int], list[str]], room: int) -> None:
        self.stop()
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        arguments = command(port, room)
        self.line = shlex.join(arguments).replace(str(port), "PORT")
        with tempfile.NamedTemporaryFile(prefix=f"{self.name}-", suffix=".log", delete=False) as log:
            self.log = Path(log.name)
            try:
                self.process = subprocess.Popen(arguments, stdout=log, stderr=subprocess.STDOUT)
            except OSError as error:
                raise ServerError(f"{self.name} cannot be started: {error}") from None

    def stop(self) -> None:
        """Ends the process, if there is one."""
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(GRACE)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            self.process = None
        if self.log is not None:
            self.log.unlink(missing_ok=True)
            self.log = None

    def ended(self) -> str:
        """A sentence if the process has ended, with the last that it said; else ""."""
        status = None if self.process is None else self.process.poll()
        if status is None:
            return ""
        how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
        text = self.log.read_text(errors="replace").strip()[-TAIL:] if self.log else ""
        return f"{self.name} {how}; the last that it said:\n{text or '(nothing)'}"

    async def guarded(self, work: Coroutine[Any, Any, T]) -> T:
        """What work returns; ServerError as soon as the process has ended, whatever work waits for."""
        task = asyncio.ensure_future(work)
        while True:
            await asyncio.wait([task], timeout=LOOK)
            done = task.done()
            if done and self.process:
                await asyncio.sleep(LOOK)  # a process has closed its connections before it has ended
            if why := self.ended():
                task.cancel()
                await asyncio.wait([task])
                raise ServerError(why)
            if done:
                return task.result()

    async def ready(self) -> None:
        """Waits until /health says 200."""
        end = time.monotonic() + self.timeout
        status = 0
        while status != 200:
            try:
                status, _ = await Client(self.url, PATIENCE).get("/health")
            except NO_ANSWER:
                status = 0
            if status != 200:
                if time.monotonic() > end:
                    raise ServerError(f"{self.name} was not ready after {self.timeout:g} s")
                await asyncio.sleep(LOOK)

    async def about(self) -> About:
        """What /v1/models says."""
        try:
            status, body = await Client(self.url, PATIENCE).get("/v1/models")
            entry = json.loads(body)["data"][0]
            meta = entry.get("meta") or {}
            context = entry.get("max_model_len") or meta.get("n_ctx") or None
            return About(entry["id"], meta.get("vocab_size") or meta.get("n_vocab"), context)
        except (*NO_ANSWER, ValueError, LookupError, TypeError) as error:
            why = f"{type(error).__name__}: {error}"
            raise ServerError(f"{self.name} does not say what it serves: {why}") from None

    async def busy(self) -> int | None:
        """How many requests run or wait, by the /metrics of pyllm, llama.cpp or vLLM; None: not known."""
        try:
            status, body = await Client(self.url, PATIENCE).get("/metrics")
        except NO_ANSWER:
            return None
        found = BUSY.findall(body.decode(errors="replace"))
        return int(sum(map(float, found))) if status == 200 and found else None

    def used(self) -> Used | None:
        """What it has taken so far, with the processes that it started; None if they are not our own."""
        return used_by(self.process.pid) if self.process else None


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def used_by(pid: int) -> Used | None:
    """What a process and its children took, by Linux's /proc; None elsewhere."""
    try:
        proc = Path(f"/proc/{pid}")
        peak = re.search(r"^VmHWM:\s+(\d+) kB", (proc / "status").read_text(), re.M)
        fields = (proc / "stat").read_text().rpartition(")")[2].split()
        seconds = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")  # utime and stime
        children = [child for path in proc.glob("task/*/children") for child in path.read_text().split()]
    except (OSError, ValueError, IndexError):
        return None
    took = [Used(int(peak[1]) * 1024 if peak else 0, seconds)]
    took += [child for each in children if (child := used_by(int(each)))]
    return Used(sum(one.bytes for one in took), sum(one.seconds for one in took))


def servers_of(options: argparse.Namespace) -> list[Server]:
    """Those that were asked for; pyllm with its built-in model where none was."""
    common: dict[str, Any] = {"keep": options.keep, "timeout": options.start_timeout}
    found = [Server(name, url=url, **common) for name, url in options.url]
    for name, template in options.command:
        found.append(Server(name, command=from_template(template), **common))
    if options.llama_server:
        found.append(Server("llama-server", command=llama_server(options), body=LLAMA_BODY, **common))
    if options.model or not found:
        found.insert(0, Server("pyllm", command=pyllm_server(options), **common))
    return found


def from_template(template: str) -> Callable[[int, int], list[str]]:
    """A command in which {port} and {room} stand for the numbers."""
    words = shlex.split(template)

    def command(port: int, room: int) -> list[str]:
        return [word.replace("{port}", str(port)).replace("{room}", str(room)) for word in words]

    return command


def pyllm_server(options: argparse.Namespace) -> Callable[[int, int], list[str]]:
    """pyllm-serve, the one beside this Python."""
    program = str(Path(sys.executable).parent / "pyllm-serve")
    model = ["-m", str(options.model)] if options.model else []

    def command(port: int, room: int) -> list[str]:
        more = shlex.split(options.pyllm_options)
        return [program, *model, "--port", str(port), "--threads", str(options.threads), *more]

    return command


def llama_server(options: argparse.Namespace) -> Callable[[int, int], list[str]]:
    """llama.cpp's, with a slot for each request that runs; its -c is shared out to the slots."""

    def command(port: int, room: int) -> list[str]:
        line = f"--port {port} --parallel {SLOTS} -c {SLOTS * room} --threads {options.threads} "
        line += f"-fa on --cont-batching --metrics {options.llama_options}"
        return [str(options.llama_server), "-m", str(options.gguf), "--host", "127.0.0.1", *shlex.split(line)]

    return command
