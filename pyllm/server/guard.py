"""Who may ask what: the key, the names that a server goes by, pages from elsewhere, the size of a request.

Plain ASGI around the application, so that it stands before every route, and in nobody's way to a client that
leaves.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Iterable, Sequence

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pyllm.server.answer import JSON, encode
from pyllm.server.errors import ApiError
from pyllm.server.messages import shaped
from pyllm.server.settings import Settings

OPEN = frozenset({"/health", "/v1/health"})  # without a key
MAX_REQUEST_ID = 128
METHODS = b"GET, POST, OPTIONS"

Headers = dict[bytes, bytes]


class Guard:
    """Lets requests through to an application, or answers them with an error."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app, self.settings = app, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        headers: Headers = dict(scope["headers"])
        more = list(self._own_headers(headers))

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *more]
            await send(message)

        try:
            self._check_host(headers)
            more += self._cross_origin(headers)
            if scope["method"] == "OPTIONS":
                await send_empty(with_headers, 204)
                return
            scope["pyllm.owner"] = self._owner(scope["path"], headers)
            self._check_body(scope["method"], headers)
        except ApiError as error:
            await send_error(with_headers, shaped(error, scope["path"]))
            return
        await self.app(scope, receive, with_headers)

    def _own_headers(self, headers: Headers) -> Iterable[tuple[bytes, bytes]]:
        """What every answer carries."""
        yield b"x-content-type-options", b"nosniff"
        name = headers.get(b"x-request-id", b"")[:MAX_REQUEST_ID]
        if name and all(0x20 < byte < 0x7F for byte in name):
            yield b"x-request-id", name

    def _check_host(self, headers: Headers) -> None:
        """A page of another name that now points here has that name in its requests."""
        if self.settings.hosts and host_of(headers.get(b"host", b"")) not in self.settings.hosts:
            host = headers.get(b"host", b"").decode("latin-1")
            raise ApiError(
                403, f"this server is not {host!r:.100}: see --allow-host", code="host_not_allowed"
            )

    def _cross_origin(self, headers: Headers) -> list[tuple[bytes, bytes]]:
        """What lets a page from elsewhere in, if it is one that may."""
        origin = headers.get(b"origin")
        if origin is None:
            return []
        own = headers.get(b"host", b"")
        if origin in (b"http://" + own, b"https://" + own):
            return []
        name = origin.decode("latin-1")
        if not self.settings.origins & {name, "*"}:
            raise ApiError(
                403,
                f"pages of {name!r:.100} may not call this server: see --allow-origin",
                code="origin_not_allowed",
            )
        return [
            (b"access-control-allow-origin", origin),
            (b"access-control-allow-methods", METHODS),
            (
                b"access-control-allow-headers",
                b"authorization, content-type, x-api-key, last-event-id, anthropic-version",
            ),
            (b"access-control-max-age", b"600"),
            (b"vary", b"Origin"),
        ]

    def _owner(self, path: str, headers: Headers) -> str:
        """Whose request it is: a name for its key; 401 without a right one."""
        if not self.settings.keys or path in OPEN:
            return ""
        given = key_of(headers)
        found = [key for key in self.settings.keys if hmac.compare_digest(key.encode(), given)]
        if not found:
            raise ApiError(401, "the API key is missing or wrong", code="invalid_api_key")
        return hashlib.sha256(given).hexdigest()[:16]

    def _check_body(self, method: str, headers: Headers) -> None:
        if method != "POST":
            return
        kind = headers.get(b"content-type", b"").split(b";")[0].strip().lower()
        if kind != b"application/json":  # what a form on any page can send is refused
            raise ApiError(415, "the content type must be application/json", code="unsupported_media_type")
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > self.settings.max_body:
            raise too_large(self.settings.max_body)


def too_large(most: int) -> ApiError:
    """413."""
    return ApiError(413, f"the request has more than {most} bytes", code="request_too_large")


def host_of(header: bytes) -> str:
    """The name in a Host header, without its port."""
    text = header.decode("latin-1").lower()
    if text.startswith("["):
        return text.partition("]")[0].lstrip("[")
    return text.rpartition(":")[0] if text.rpartition(":")[2].isdigit() and ":" in text else text


def key_of(headers: Headers) -> bytes:
    """The key that a request carries: OpenAI's way, Anthropic's, or a browser's (as the password)."""
    if b"x-api-key" in headers:
        return headers[b"x-api-key"].strip()
    kind, _, value = headers.get(b"authorization", b"").partition(b" ")
    if kind.lower() == b"bearer":
        return value.strip()
    if kind.lower() == b"basic":
        try:
            return base64.b64decode(value.strip(), validate=True).partition(b":")[2]
        except binascii.Error:
            return b""
    return b""


async def send_error(send: Send, error: ApiError, more: Sequence[tuple[bytes, bytes]] = ()) -> None:
    """Answers with an error. more: headers."""
    body = encode(error.body)
    headers = [(b"content-type", JSON), (b"content-length", str(len(body)).encode()), *more]
    if error.retry_after is not None:
        headers.append((b"retry-after", str(max(1, round(error.retry_after))).encode()))
    if error.status == 408:  # whatever else comes of the request is not read
        headers.append((b"connection", b"close"))
    if error.status == 401:
        headers.append((b"www-authenticate", b'Basic realm="pyllm"'))
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def send_empty(send: Send, status: int) -> None:
    """Answers with nothing."""
    await send({"type": "http.response.start", "status": status, "headers": []})
    await send({"type": "http.response.body", "body": b""})
