"""The fields of a request that say how tokens are chosen, as SamplingParams."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec

from pyllm.grammar import GrammarError
from pyllm.sampling import SamplingParams
from pyllm.server.errors import ApiError, bad
from pyllm.server.schemas import ChatRequest, Sampling, ranged, without_none
from pyllm.server.settings import Settings

# OpenAI's names for SamplingParams' fields
RENAMED = {"repeat_penalty": "repetition_penalty", "prompt": "prompt_name", "text": "input"}
MAX_DIGITS = 10  # of a token's id
# Of a server they are OpenAI's, not SamplingParams'
DEFAULTS = {"temperature": 1.0, "top_p": 1.0}


def params_of(request: Sampling, settings: Settings, **more: Any) -> SamplingParams:
    """The parameters of a request; ApiError that names the field.

    request  whose sizes have been checked
    more     fields that the kinds of requests have each in their own way; max_tokens among them"""
    fields = dict(
        DEFAULTS,
        min_tokens=request.min_tokens,
        temperature=request.temperature,
        top_p=request.top_p,
        top_k=request.top_k,
        min_p=request.min_p,
        repeat_penalty=request.repetition_penalty,
        presence_penalty=request.presence_penalty,
        frequency_penalty=request.frequency_penalty,
        logit_bias=bias_of(request.logit_bias),
        seed=None if request.seed is None else request.seed % 2**64,
        stop=request.stop,
        stop_token_ids=request.stop_token_ids,
        ignore_eos=request.ignore_eos,
        prompt_logprobs=request.prompt_logprobs,
        keep_stop_token=True,
        explain=request.explain,
        **more,
    )
    given = {name: DEFAULTS.get(name) if value is None else value for name, value in fields.items()}
    try:
        return SamplingParams(**without_none(given), **constraint_of(request, settings))
    except (TypeError, ValueError) as error:
        raise refused(error, request) from None


def check_sizes(request: Sampling, settings: Settings) -> None:
    """ApiError when something is larger than the server allows."""
    stops = [request.stop] if isinstance(request.stop, str) else request.stop or []
    sizes = {
        "stop": (len(stops), settings.max_stop, "texts"),
        "stop_token_ids": (len(request.stop_token_ids or ()), settings.max_stop, "tokens"),
        "logit_bias": (len(request.logit_bias or ()), settings.max_bias, "tokens"),
        "prompt_logprobs": (request.prompt_logprobs or 0, settings.max_logprobs, "alternatives"),
    }
    for name, (size, most, of) in sizes.items():
        if size > most:
            raise bad(f"{name} has {size} {of}, more than the {most} of this server", name, "too_large")
    if long := [stop for stop in stops if len(stop) > settings.max_stop_length]:
        raise bad(
            f"stop has {len(long[0])} characters, more than {settings.max_stop_length}", "stop", "too_large"
        )
    if request.seed is not None and not -(2**63) <= request.seed < 2**64:
        raise bad(f"seed must be an integer of 64 bits, not {request.seed!s:.30}", "seed")


def bias_of(given: dict[str, float] | None) -> dict[int, float] | None:
    """A bias by token ids: JSON's keys are texts."""
    if not given:
        return None
    for key in given:
        if not (key.isascii() and key.isdigit() and len(key) <= MAX_DIGITS):
            raise bad(f"logit_bias: {key!r:.40} is no token id", "logit_bias")
    return {int(key): value for key, value in given.items()}


def limit_of(
    asked: int | None, default: int | None, settings: Settings, name: str = "max_tokens"
) -> int | None:
    """max_tokens of a request, within the server's cap. name: the field's."""
    cap = settings.max_tokens
    if asked is not None and asked < 0:
        raise bad(f"{name} must be at least 0, not {asked!s:.30}", name, "integer_out_of_range")
    tokens = (
        (default if settings.default_tokens is None else settings.default_tokens) if asked is None else asked
    )
    if tokens is not None and cap is not None and asked is not None and tokens > cap:
        raise bad(f"{name} is {tokens!s:.30}, more than the {cap} of this server", name, "too_large")
    return cap if tokens is None else tokens if cap is None else min(tokens, cap)


def count_of(request: Sampling, settings: Settings) -> int:
    """n: how many answers."""
    return ranged("n", request.n, 1, settings.max_n, 1)


def seeds_of(params: SamplingParams, count: int) -> list[SamplingParams]:
    """The same for several answers: answer i has seed + i."""
    if params.seed is None:
        return [params] * count
    return [replace(params, seed=(params.seed + i) % 2**64) for i in range(count)]


def alternatives_of(request: ChatRequest, settings: Settings) -> int | None:
    """SamplingParams.logprobs of a chat's `logprobs` and `top_logprobs`."""
    top = ranged("top_logprobs", request.top_logprobs, 0, settings.max_logprobs, 0)
    if top and not request.logprobs:
        raise bad("top_logprobs needs logprobs: true", "top_logprobs")
    return top if request.logprobs else None


def refused(error: Exception, request: Any) -> ApiError:
    """The ApiError of a sentence that begins with a field's name, as those of pyllm do."""
    sentence = f"{error}"
    if isinstance(error, GrammarError):
        return bad(sentence, source_of(request), "unsupported_grammar", pointer=error.pointer)
    word = sentence.replace("[", " ").replace(":", " ").split(" ", 1)[0]
    if word in STRUCTURED.values() and (source := source_of(request)):
        return bad(f"{source}: {sentence}", source)
    fields = getattr(request, "__struct_fields__", ())
    name = next((name for name in (word, RENAMED.get(word)) if name in fields), None)
    return bad(sentence.replace(word, name, 1) if name else sentence, name)


# Where a request may say what its text is to be, with SamplingParams' word for it
STRUCTURED = {"json": "schema", "regex": "regex", "choice": "choice", "grammar": "grammar"}


def source_of(request: Any) -> str | None:
    """The field that says what the text is to be."""
    names = ("response_format", "structured_outputs", *(f"guided_{name}" for name in STRUCTURED), "tools")
    return next((name for name in names if getattr(request, name, None) is not None), None)


def constraint_of(request: Sampling, settings: Settings) -> dict[str, Any]:
    """What the text is to be, as arguments of SamplingParams; ApiError when it is said twice or not known."""
    found: dict[str, Any] = {}
    if (given := request.response_format) is not None:
        found |= _format_of(given)
    for name, value in (request.structured_outputs or {}).items():
        if name in STRUCTURED and value is not None:
            found[STRUCTURED[name]] = schema_of(value, "structured_outputs.json") if name == "json" else value
        elif value not in (None, False):
            raise bad(f"structured_outputs.{name} is not supported", f"structured_outputs.{name}")
    for name, word in STRUCTURED.items():
        if (value := getattr(request, f"guided_{name}")) is not None:
            found[word] = schema_of(value, "guided_json") if name == "json" else value
    if found and (size := len(msgspec.json.encode(found))) > settings.max_grammar:
        raise bad(f"the grammar has {size} bytes, more than the {settings.max_grammar} of this server",
                  source_of(request), "too_large")  # fmt: skip
    return found


def _format_of(given: dict[str, Any]) -> dict[str, Any]:
    """response_format."""
    kind = given.get("type")
    if kind == "text":
        return {}
    if kind == "json_object":
        return {"schema": schema_of(given.get("schema") or {"type": "object"}, "response_format.schema")}
    if kind == "json_schema":
        inner = given.get("json_schema")
        schema = inner.get("schema") if isinstance(inner, dict) else given.get("schema")
        return {"schema": schema_of(schema, "response_format.json_schema.schema")}
    raise bad("response_format.type must be text, json_object or json_schema", "response_format.type")


def schema_of(value: Any, name: str) -> Any:
    """A JSON schema, which may be the text of one."""
    if isinstance(value, str):
        try:
            value = msgspec.json.decode(value)
        except msgspec.DecodeError as error:
            raise bad(f"{name} is no JSON: {error}", name) from None
    if not isinstance(value, (dict, bool)):
        raise bad(f"{name} must be a JSON schema", name)
    return value
