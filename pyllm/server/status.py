"""How the server is, what it serves, and what a request would take."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from pyllm.binding import __version__, token_ids
from pyllm.scheduler import Request
from pyllm.server.answer import Json
from pyllm.server.chats import prompt_of
from pyllm.server.completions import prompts_of
from pyllm.server.errors import bad
from pyllm.server.sampling_fields import refused
from pyllm.server.schemas import EstimateRequest, ranged
from pyllm.server.service import Service


def health(service: Service) -> Response:
    """200 while requests are taken and the engine does what it should, else 503."""
    state = service.state
    return Json({"status": state, "version": __version__}, 200 if state == "ok" else 503)


def metrics(service: Service) -> Response:
    """All counts, for Prometheus."""
    return Response(service.metrics.text(service), media_type="text/plain; version=0.0.4; charset=utf-8")


def model(service: Service, name: str) -> dict[str, Any]:
    """An entry of /v1/models."""
    llm = service.llm
    return {
        "id": name,
        "object": "model",
        "created": service.started,
        "owned_by": "pyllm",
        "root": llm.name,
        "max_model_len": llm.context,
        "meta": {"parameters": llm.parameters, "dtype": llm.dtype, "vocab_size": llm.vocab_size, **llm.about},
    }


def models(service: Service) -> Response:
    """All names."""
    return Json({"object": "list", "data": [model(service, name) for name in service.names]})


def estimate(service: Service, request: EstimateRequest) -> dict[str, Any]:
    """What a request would take if it came now, from what steps have cost: seconds to its first token and to
    its last, and memory. Nothing is run."""
    service.model_named(request.model)
    given = [request.prompt is not None, request.messages is not None, request.prompt_tokens is not None]
    if sum(given) != 1:
        raise bad("one of prompt, messages and prompt_tokens is needed", "prompt")
    context = service.llm.context
    if request.messages is not None:
        length = len(prompt_of(service, request)[0])
    elif request.prompt is not None:
        (prompt, *others) = prompts_of(request.prompt, 1)
        try:
            ids = service.llm.encode(prompt) if isinstance(prompt, str) else prompt
            length = len(token_ids(ids, service.llm.vocab_size, "prompt"))
        except (TypeError, ValueError) as error:
            raise refused(error, request) from None
    else:
        length = ranged("prompt_tokens", request.prompt_tokens, 1, context, 1)
    made = ranged("max_tokens", request.max_tokens, 0, 2**31, 16)
    made = max(0, min(made, context - length + 1))
    first = service.expected_wait([Request([0] * length, length - 1)])
    return {
        "prompt_tokens": length,
        "max_tokens": made,
        "fits": length <= context,
        "seconds_to_first_token": round(first, 4),
        "seconds": round(first + service.expected_decoding(length, made), 4),
        "kv_bytes": service.llm.kv_bytes(min(length + made, context)),
        "known": service.scheduler.pace.known,
    }
