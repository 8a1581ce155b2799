"""Open WebUI as people run it, with this server as its only one: it lists the model, and its chats are
answered.

Needs the package open-webui, which brings some 200 others (six minutes), so that CI leaves it out: run it by
hand before a release. It is skipped without."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
from served import write_model

pytest.importorskip("starlette")
if importlib.util.find_spec("open_webui") is None:
    pytest.skip("needs open-webui", allow_module_level=True)

from pyllm.server import Settings  # noqa: E402
from pyllm.testing import running_server  # noqa: E402

SECONDS = 180  # in which it is there
HI = [{"role": "user", "content": "Hi"}]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where Open WebUI is."""
    folder = tmp_path_factory.mktemp("webui")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = shutil.which("open-webui", path=Path(sys.executable).parent)
    assert command is not None
    with running_server(
        write_model(folder), Settings(names=("tiny",), keys=frozenset({"k"})), threads=1
    ) as ours:
        told = {
            "OPENAI_API_BASE_URL": f"{ours.url}/v1",
            "OPENAI_API_KEY": "k",
            "ENABLE_OLLAMA_API": "false",
            "WEBUI_AUTH": "false",
            "WEBUI_SECRET_KEY": "secret",
            "DATA_DIR": str(folder / "data"),
            "RAG_EMBEDDING_ENGINE": "openai",  # not one from a hub
            "HF_HUB_OFFLINE": "1",
        }
        with (folder / "log").open("w") as log:
            program = subprocess.Popen(
                [command, "serve", "--host", "127.0.0.1", "--port", str(port)],
                env=os.environ | told,
                cwd=folder,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        try:
            wait_for(port, program, folder / "log")
            yield f"http://127.0.0.1:{port}"
        finally:
            program.terminate()
            program.wait(30)


def wait_for(port: int, program: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + SECONDS
    while time.monotonic() < end and program.poll() is None:
        try:
            connection = HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", "/health")
            if connection.getresponse().status == 200:
                return
        except OSError:
            pass
        time.sleep(0.5)
    raise AssertionError(log.read_text()[-3000:])


def asked(url: str, body: Any = None, token: str = "") -> bytes:
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}
    data = None if body is None else json.dumps(body).encode()
    with urlopen(Request(url, data, headers), timeout=60) as answer:
        found: bytes = answer.read()
        return found


@pytest.fixture(scope="module")
def token(url: str) -> str:
    user = json.loads(asked(f"{url}/api/v1/auths/signin", {"email": "", "password": ""}))
    return str(user["token"])


def test_it_lists_the_model(url: str, token: str) -> None:
    models = json.loads(asked(f"{url}/api/models", token=token))["data"]
    assert [model["id"] for model in models if not model.get("arena")] == ["tiny"]


def test_its_chats_are_answered(url: str, token: str) -> None:
    body = {"model": "tiny", "messages": HI, "max_tokens": 20, "seed": 3, "ignore_eos": True}
    whole = json.loads(asked(f"{url}/api/chat/completions", {**body, "stream": False}, token))
    text = whole["choices"][0]["message"]["content"]
    assert text and whole["usage"]["completion_tokens"] == 20
    lines = asked(f"{url}/api/chat/completions", {**body, "stream": True}, token).decode().splitlines()
    events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    pieces = [choice["delta"].get("content") or "" for event in events for choice in event.get("choices", ())]
    assert "".join(pieces) == text and "data: [DONE]" in lines
