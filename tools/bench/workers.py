"""Processes that run one engine with one model each, and what they answer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from tools.bench.common import ROOT, Unavailable, one_line, size_of
from tools.bench.engines import ENGINES, REFERENCES
from tools.bench.files import model_path, ready
from tools.bench.models import Model
from tools.bench.peers import RUNNERS

LIMIT = 1800  # seconds that a worker may take for one command


def worker(name: str, model: Model, threads: int, llama_cpp: Path | None) -> int:
    """The other end of a Worker: loads the model, then answers each line of JSON on standard input by one on
    standard output. What libraries print goes to standard error."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(**reply: Any) -> None:
        answers.write(json.dumps(reply) + "\n")
        answers.flush()

    engine = (ENGINES | REFERENCES)[name]
    try:
        path = ready(engine, model, llama_cpp)
        start = time.perf_counter()
        runner = RUNNERS[engine.runner](path, engine, threads)
        seconds = time.perf_counter() - start
    except Exception as error:
        answer(error=one_line(error))
        return 1
    size = runner.file_bytes or size_of(path)
    answer(result={"runs_with": runner.runs_with, "load_seconds": seconds, "file_bytes": size})
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer(result=getattr(runner, request.pop("command"))(**request))
        except Exception as error:
            answer(error=one_line(error))
    answers.flush()
    os._exit(0)  # libraries that crash when they are taken down have done their work


class Worker:
    """A process that runs one engine with one model. `failed` says why it is of no more use."""

    def __init__(self, name: str, model: Model, threads: int, llama_cpp: Path | None = None) -> None:
        self.name, self.engine, self.failed = name, (ENGINES | REFERENCES)[name], ""
        self.path = model_path(self.engine, model)
        self.log = model.folder / f"{name}.log"
        options = [*model.arguments, "--work", str(model.work), "--threads", str(threads)]
        environment = dict(os.environ)
        if llama_cpp:
            options += ["--llama-cpp", str(llama_cpp)]
            environment["LLAMA_CPP_LIB_PATH"] = str(library_folder(llama_cpp))
        model.folder.mkdir(parents=True, exist_ok=True)
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tools.bench", "--worker", name, *options],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self.process.stdin and self.process.stdout  # pipes, as asked for
        self.commands, self.answers = self.process.stdin, self.process.stdout
        self.about: dict[str, Any] = {}
        try:
            self.about = self.receive()
        except Unavailable as error:
            self.failed = str(error)

    def receive(self) -> Any:
        """The next answer's result; Unavailable when it is an error or does not come."""
        timer = threading.Timer(LIMIT, self.process.kill)
        timer.start()
        try:
            line = self.answers.readline()
        finally:
            timer.cancel()
        if not line:
            status = self.process.wait()
            self.failed = f"the process ended with status {status}; see {self.log.name} in the work folder"
            raise Unavailable(self.failed)
        reply = json.loads(line)
        if "error" in reply:
            raise Unavailable(reply["error"])
        return reply["result"]

    def ask(self, **request: Any) -> Any:
        """The result of a command."""
        if self.failed:
            raise Unavailable(self.failed)
        try:
            self.commands.write(json.dumps(request) + "\n")
            self.commands.flush()
        except BrokenPipeError:
            pass  # receive() says what happened
        return self.receive()

    def close(self) -> None:
        with self.process:
            self.process.kill()


def library_folder(llama_cpp: Path) -> Path:
    """Where llama.cpp's build folder has its libraries."""
    return llama_cpp / "bin" if (llama_cpp / "bin").is_dir() else llama_cpp
