"""GET /: a page to chat with the model. It is one file, page.html, that asks nothing of any other server."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

from starlette.responses import Response

if TYPE_CHECKING:
    from pyllm.server.service import Service

# What the page may do: run its own script, ask its own server. Trusted types: no text becomes markup,
# whatever the script does
POLICY = (
    "default-src 'none'",
    "connect-src 'self'",
    "img-src data:",
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'none'",
    "require-trusted-types-for 'script'",
    "trusted-types 'none'",
)


def page(service: Service) -> Response:
    """The page, and what a browser is to let it do."""
    html = source()
    headers = {
        "Content-Security-Policy": policy_of(html),
        "Cache-Control": "no-cache",
        "Referrer-Policy": "no-referrer",
        "X-Frame-Options": "DENY",
    }
    return Response(html, headers=headers, media_type="text/html")


@cache
def source() -> str:
    """page.html, with lines that end as a browser sees them."""
    return files("pyllm.server").joinpath("page.html").read_text(encoding="utf-8")


@cache
def policy_of(html: str) -> str:
    """The policy of a page: of all scripts and styles there are, only those that it holds."""
    scripts = " ".join(hashes_of("script", html))
    styles = " ".join(hashes_of("style", html))
    return "; ".join([*POLICY, f"script-src {scripts}", f"style-src {styles}"])


def hashes_of(tag: str, html: str) -> list[str]:
    """The hashes of what stands between each <tag> and its end."""
    texts = re.findall(rf"<{tag}\b[^>]*>(.*?)</{tag}>", html, re.DOTALL)
    digests = [hashlib.sha256(text.encode()).digest() for text in texts]
    return [f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests]
