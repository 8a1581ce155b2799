"""The application: its routes, and what stands around them. Any ASGI server runs it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from pyllm.engine import LLM
from pyllm.scheduler import Policy
from pyllm.server import chats, completions, embeddings, messages, page, responses, status, tokens
from pyllm.server.answer import Json
from pyllm.server.errors import ApiError
from pyllm.server.guard import Guard, send_error, too_large
from pyllm.server.messages import CountRequest, MessagesRequest
from pyllm.server.responses import ResponsesRequest
from pyllm.server.schemas import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    EmbeddingRequest,
    EstimateRequest,
    TokenizeRequest,
    decode,
)
from pyllm.server.service import SERVED, Service
from pyllm.server.settings import Settings

T = TypeVar("T", bound=msgspec.Struct)
Endpoint = Callable[[Request], Awaitable[Response]]


def build_app(
    model: LLM | str | os.PathLike[str] | None = None,
    settings: Settings | None = None,
    *,
    policy: Policy | None = None,
    **options: Any,
) -> ASGIApp:
    """The server as an ASGI application.

        uvicorn.run(pyllm.server.build_app("smollm2.llm"))

    model     an LLM, whose batch is shared with its other users; or the path of a file; None: the built-in
              model
    settings  names, keys and limits; None: Settings()
    policy    how requests share the processor, where a path is given; None: SERVED
    options   further arguments of LLM, where a path is given. fp16 files are computed exactly unless told
              otherwise, so that bytes do not depend on what runs beside
    """
    if not isinstance(model, LLM):
        model = LLM(model, **{"exact": True, "policy": policy or SERVED, **options})
    service = Service(model, settings or Settings())

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        await service.start()
        yield
        await service.stop()

    app = Starlette(
        routes=routes(service),
        lifespan=lifespan,
        exception_handlers={ApiError: _api_error, HTTPException: _http_error, Exception: _server_error},
    )
    app.state.service = service
    guarded = Guard(app, service.settings)
    guarded.service = service  # type: ignore[attr-defined]
    return guarded


def routes(service: Service) -> list[Route]:
    """What there is to ask for."""

    def posted(kind: type[T], answer: Callable[..., Awaitable[Response]]) -> Endpoint:
        async def endpoint(http: Request) -> Response:
            await service.start()
            body = await body_of(http, service.settings)
            service.check_open()
            request = decode(body, kind)
            if hasattr(request, "resume_from") and request.resume_from is None:
                request.resume_from = http.headers.get("last-event-id")
            return await answer(service, request, http.scope["pyllm.owner"])

        return endpoint

    def looked_up(kind: type[T], answer: Callable[[Service, Any], dict[str, Any]]) -> Endpoint:
        """What takes no place in the batch."""

        async def in_pool(service: Service, request: T, _: str) -> Response:
            return Json(await service.in_pool(answer, service, request))

        return posted(kind, in_pool)

    def shown(answer: Callable[[Service], Response]) -> Endpoint:
        async def endpoint(http: Request) -> Response:
            return answer(service)

        return endpoint

    async def one_model(http: Request) -> Response:
        return Json(status.model(service, service.model_named(http.path_params["name"])))

    return [
        Route("/", shown(page.page)),
        Route("/health", shown(status.health)),
        Route("/v1/health", shown(status.health)),
        Route("/metrics", shown(status.metrics)),
        Route("/v1/models", shown(status.models)),
        Route("/v1/models/{name:path}", one_model),
        Route("/v1/completions", posted(CompletionRequest, completions.completions), methods=["POST"]),
        Route("/v1/chat/completions", posted(ChatRequest, chats.chats), methods=["POST"]),
        Route("/v1/embeddings", posted(EmbeddingRequest, embeddings.embeddings), methods=["POST"]),
        Route("/v1/responses", posted(ResponsesRequest, responses.responses), methods=["POST"]),
        Route("/v1/messages", posted(MessagesRequest, messages.messages), methods=["POST"]),
        Route("/v1/messages/count_tokens", posted(CountRequest, messages.count_tokens), methods=["POST"]),
        Route("/v1/estimate", looked_up(EstimateRequest, status.estimate), methods=["POST"]),
        Route("/tokenize", looked_up(TokenizeRequest, tokens.tokenize), methods=["POST"]),
        Route("/detokenize", looked_up(DetokenizeRequest, tokens.detokenize), methods=["POST"]),
        Route("/tokenizer_info", shown(lambda service: Json(tokens.tokenizer_info(service)))),
    ]


async def body_of(http: Request, settings: Settings) -> bytes:
    """The body of a request; 413 as soon as it is too large, 408 when it does not come."""
    try:
        return await asyncio.wait_for(_read(http, settings.max_body), settings.slow)
    except asyncio.TimeoutError:
        raise ApiError(408, f"the body did not come within {settings.slow:g} s", code="timeout") from None


async def _read(http: Request, most: int) -> bytes:
    parts, size = [], 0
    async for part in http.stream():
        size += len(part)
        if size > most:
            raise too_large(most)
        parts.append(part)
    return b"".join(parts)


class ErrorResponse(Response):
    """An ApiError as it is sent."""

    def __init__(self, error: ApiError, headers: Mapping[str, str] | None = None) -> None:
        self.error, self.background = error, None
        self.more = [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()]

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await send_error(send, messages.shaped(self.error, scope["path"]), self.more)


async def _api_error(http: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return ErrorResponse(error)


async def _http_error(http: Request, error: Exception) -> Response:
    """Of starlette: no such route, no such method."""
    assert isinstance(error, HTTPException)
    path = f"{http.method} {http.url.path:.100}"
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "http_error")
    shown = ApiError(error.status_code, f"{error.detail}: {path}", code=code)
    return ErrorResponse(shown, error.headers)  # such as Allow


async def _server_error(http: Request, error: Exception) -> Response:
    return ErrorResponse(ApiError(500, f"{type(error).__name__}: {error}", code="internal_error"))
