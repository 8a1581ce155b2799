"""What texts are in tokens, and back: /tokenize, /detokenize, /tokenizer_info."""

from __future__ import annotations

from typing import Any

from pyllm.binding import token_ids
from pyllm.server.chats import prompt_of
from pyllm.server.errors import bad
from pyllm.server.sampling_fields import refused
from pyllm.server.schemas import DetokenizeRequest, TokenizeRequest
from pyllm.server.service import Service


def tokenize(service: Service, request: TokenizeRequest) -> dict[str, Any]:
    """The ids of a text, or of a conversation's prompt. Control tokens in a text become tokens."""
    service.model_named(request.model)
    if (request.prompt is None) == (request.messages is None):
        raise bad("one of prompt and messages is needed", "prompt")
    if request.messages is not None:
        ids = prompt_of(service, request)[0]
    else:
        bos = None if request.add_special_tokens is not False else False
        ids = service.llm.encode(request.prompt or "", bos=bos)
    answer: dict[str, Any] = {"count": len(ids), "max_model_len": service.llm.context, "tokens": ids}
    if request.return_token_strs:
        answer["token_strs"] = [service.texts.text(token) for token in ids]
    return answer


def detokenize(service: Service, request: DetokenizeRequest) -> dict[str, Any]:
    """The text of ids, control tokens included."""
    service.model_named(request.model)
    try:
        ids = token_ids(request.tokens, service.llm.vocab_size, "tokens")
    except (TypeError, ValueError) as error:
        raise refused(error, request) from None
    return {"prompt": service.llm.decode(ids, special=True)}


def tokenizer_info(service: Service) -> dict[str, Any]:
    """What lm-evaluation-harness asks for: the control tokens by their texts, and the template."""
    llm = service.llm

    def text(token: int | None) -> str | None:
        return None if token is None else llm.decode([token], special=True)

    return {
        "tokenizer_class": "pyllm",
        "bos_token": text(llm.bos_token),
        "eos_token": text(llm.eos_token),
        "pad_token": text(llm.eos_token),
        "chat_template": llm.chat_template,
        "model_max_length": llm.context,
        "vocab_size": llm.vocab_size,
    }
