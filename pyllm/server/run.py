"""Serves an application until a signal comes, and then until what runs has ended."""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
from types import FrameType
from typing import Any

import uvicorn


class Server(uvicorn.Server):
    """Says where it listens. A first signal lets what runs end, a second one has clients told that it does
    not, a third one waits for nothing.

    where  what it says
    """

    def __init__(self, app: Any, where: str) -> None:
        config = uvicorn.Config(
            app,
            log_config=None,  # uvicorn's own needs a stdout
            log_level="critical",
            access_log=False,
            lifespan="on",
            timeout_graceful_shutdown=5,
            server_header=False,
        )
        super().__init__(config)
        logging.getLogger("asyncio").setLevel(logging.ERROR)  # a client that has left is nothing to tell of
        self.service, self.where = app.service, where
        self.signals = 0
        self.ending: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self.loop = asyncio.get_running_loop()
        await self.service.start()  # whose errors uvicorn would not tell of
        await super().startup(sockets)
        if self.started:
            print(f"pyllm: serving {self.service.names[0]} on {self.where}", file=sys.stderr, flush=True)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.signals += 1
        if self.signals > 2 or not self.started:
            super().handle_exit(sig, frame)
        else:
            self.loop.call_soon_threadsafe(self._begin_end if self.signals == 1 else self.service.hurry)

    def _begin_end(self) -> None:
        if self.ending is None:
            self.ending = asyncio.create_task(self._end())

    async def _end(self) -> None:
        await self.service.stop()
        self.should_exit = True
