"""A real server for tests: a fixture for pytest, and a context manager for anything else.

    from pyllm.testing import server            # in conftest.py

    def test_my_program(server):
        client = openai.OpenAI(base_url=server.base_url, api_key="-")

It serves the built-in model, which is there in a second, needs no download, and gives the same answer to the
same request with a seed every time. Needs pip install 'pyllm[server]'.
"""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pyllm.engine import LLM

if TYPE_CHECKING:
    from pyllm.server.service import Service
    from pyllm.server.settings import Settings

START = 60.0  # seconds within which a server starts, and ends


class Server:
    """A server that runs in a thread of this process.

    url       where it is, such as "http://127.0.0.1:41234"
    base_url  the same with /v1: what OpenAI's clients are told
    service   what it shares, for those who want to look
    """

    def __init__(self, url: str, service: Service) -> None:
        self.url, self.base_url, self.service = url, f"{url}/v1", service


@contextmanager
def running_server(
    model: LLM | str | os.PathLike[str] | None = None, settings: Settings | None = None, **options: Any
) -> Iterator[Server]:
    """A server on a free port of this machine, until the block ends. Arguments as for
    pyllm.server.build_app."""
    import uvicorn

    from pyllm.server.app import build_app

    app: Any = build_app(model, settings, **options)
    config = uvicorn.Config(app, log_level="critical", access_log=False, timeout_graceful_shutdown=5)
    server = uvicorn.Server(config)
    # the protocol is named, since asyncio then sends what is written at once
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listening:
        listening.bind(("127.0.0.1", 0))
        thread = threading.Thread(
            target=lambda: asyncio.run(server.serve([listening])), name="pyllm-server", daemon=True
        )
        thread.start()
        while not server.started:
            thread.join(0.005)
            if not thread.is_alive():
                raise RuntimeError("the server did not start")
        try:
            yield Server(f"http://127.0.0.1:{listening.getsockname()[1]}", app.service)
        finally:
            server.should_exit = True
            thread.join(START)
            if not isinstance(model, LLM):
                app.service.llm.close()


try:
    import pytest
except ImportError:  # the context manager does without
    pass
else:

    @pytest.fixture(scope="session")
    def server() -> Iterator[Server]:
        """A server of the built-in model, for all tests of a session."""
        with running_server() as running:
            yield running
