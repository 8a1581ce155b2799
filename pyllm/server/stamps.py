"""What an answer is known by: its id holds its seed, so that a stream can be taken up again, and a receipt
says what to do to get it once more.

Since the same request gives the same bytes, nothing need be kept for that: a stream that was cut is made
again from its start, and what was sent already is not sent again. What a client that left had got computed
is in the cache, and its tokens are guesses.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from pyllm.binding import __version__
from pyllm.sampling import Continuation
from pyllm.server.errors import bad
from pyllm.server.schemas import Sampling

if TYPE_CHECKING:
    from pyllm.server.service import Service

# Fields that do not change what is generated
NOT_TOLD = ("stream", "stream_options", "receipt", "resumable", "resume_from", "timeout", "priority", "cache")
RECEIPT = 1  # version


@dataclass(frozen=True)
class Stamp:
    """The id of an answer, when it was begun, and how many events its client has got already."""

    id: str
    created: int
    sent: int = 0


def told(request: Sampling) -> dict[str, Any]:
    """The fields of a request that its answer depends on."""
    fields = msgspec.to_builtins(request)
    return {name: value for name, value in fields.items() if value is not None and name not in NOT_TOLD}


def stamp(request: Sampling, kind: str) -> Stamp:
    """The stamp of a request, which gets a seed if it has none; 400 when it goes on from another request's
    event. kind: how its id begins."""
    fields = {name: value for name, value in told(request).items() if name != "seed"}
    digest = hashlib.sha256(msgspec.json.encode(sorted(fields.items()))).hexdigest()[:8]
    if request.resume_from is not None:
        return _resumed(request, kind, digest)
    if request.seed is None:
        request.seed = secrets.randbits(63)
    created = int(time.time())
    return Stamp(f"{kind}{created:08x}{request.seed % 2**64:016x}{digest}", created)


def _resumed(request: Sampling, kind: str, digest: str) -> Stamp:
    given, _, number = (request.resume_from or "").rpartition(":")
    code = given.removeprefix(kind)
    try:
        created, seed, sent = int(code[:8], 16), int(code[8:24], 16), int(number) + 1
    except ValueError:
        sent = -1
    if sent < 1 or not given.startswith(kind) or len(code) != 32:
        raise bad("Last-Event-ID is none of this server's", "resume_from")
    if code[24:] != digest or request.seed not in (None, seed, seed - 2**64):
        raise bad("Last-Event-ID is of another request", "resume_from")
    request.seed = seed
    return Stamp(given, created, sent)


def digest_of(job: Continuation) -> str:
    """What tells that tokens are the same."""
    return hashlib.sha256(np.array(job.tokens, "<u4").tobytes()).hexdigest()


def receipt_of(
    service: Service, path: str, request: Sampling, jobs: Sequence[Continuation]
) -> dict[str, Any]:
    """What is needed to make an answer once more, and to see that it is the same."""
    model = service.llm._open()
    return {
        "receipt": RECEIPT,
        "pyllm": __version__,
        "isa": service.llm.instruction_set,
        "model": {
            "name": service.llm.name,
            "fingerprint": model.fingerprint.hex(),
            "dtype": service.llm.dtype,
        },
        "exact": bool(model.exact),
        "kv": model.kv,
        "context": service.llm.context,
        "trust_messages": service.settings.trust_messages,
        "path": path,
        "request": told(request),
        "answers": [
            {"finish_reason": job.finish_reason, "tokens": len(job.tokens), "sha256": digest_of(job)}
            for job in jobs
        ],
    }
