"""What requests may hold: the fields of OpenAI's API, of vLLM's extensions that clients use, and of our own.

A field that is null is absent. A field that is not here is refused by name unless it is NEUTRAL, or one of
those that cannot change an answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeVar

import msgspec

from pyllm.server.errors import ApiError, bad

Prompt = str | list[Any]  # checked by hand: a text, ids, or a list of these

# Fields that say nothing about the answer
IGNORED = frozenset(
    "metadata store user safety_identifier service_tier prompt_cache_key prompt_cache_retention verbosity "
    "request_id session_id stream_interval".split()
)

# Fields that are not supported, with the values that mean what is done anyway
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "suffix": ("",),
    "echo": (False,),
    "best_of": (1,),
    "use_beam_search": (False,),
    "length_penalty": (1, 1.0),
    "early_stopping": (False,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True, False),
    "include_stop_str_in_output": (False,),
    "truncate_prompt_tokens": (),
    "bad_words": ([],),
    "allowed_token_ids": (),
    "logits_processors": ([],),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "mirostat": (0,),
    "typical_p": (1, 1.0),
    "tfs_z": (1, 1.0),
    "n_predict": (),
    "grammar": (),
    "lora": ([],),
    "repetition_detection": (),
    "media_io_kwargs": (),
    "mm_processor_kwargs": (),
}


class StreamOptions(msgspec.Struct, kw_only=True):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: bool | None = None


class Sampling(msgspec.Struct, kw_only=True):
    """What both kinds of completions have."""

    model: str | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    seed: int | None = None
    n: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: dict[str, Any] | None = None
    structured_outputs: dict[str, Any] | None = None
    guided_json: Any = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    prompt_logprobs: int | None = None
    return_token_ids: bool | None = None
    priority: int | None = None
    cache_salt: str | None = None
    cache: bool | None = None
    timeout: float | None = None
    explain: bool | None = None
    receipt: bool | None = None
    resumable: bool | None = None
    resume_from: str | None = None


class CompletionRequest(Sampling, kw_only=True):
    """POST /v1/completions."""

    prompt: Prompt
    best_of: int | None = None
    echo: bool | None = None
    logprobs: int | None = None
    add_special_tokens: bool | None = None


class ChatRequest(Sampling, kw_only=True):
    """POST /v1/chat/completions."""

    messages: list[dict[str, Any]]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Literal["none", "auto", "required"] | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    documents: list[dict[str, Any]] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    reasoning_effort: str | None = None
    include_reasoning: bool | None = None
    reasoning_budget: int | None = None
    thinking_token_budget: int | None = None  # as vLLM calls it
    thinking_budget_tokens: int | None = None  # as llama-server does


class EmbeddingRequest(msgspec.Struct, kw_only=True):
    """POST /v1/embeddings. prompt_name, as sentence-transformers calls it: which of the model's prompts goes
    before each text."""

    input: Prompt
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None
    prompt_name: str | None = None
    priority: int | None = None
    cache_salt: str | None = None
    cache: bool | None = None
    timeout: float | None = None


class TokenizeRequest(msgspec.Struct, kw_only=True):
    """POST /tokenize: of a text, or of a conversation's prompt."""

    model: str | None = None
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    return_token_strs: bool | None = None


class DetokenizeRequest(msgspec.Struct, kw_only=True):
    """POST /detokenize."""

    model: str | None = None
    tokens: list[int]


class EstimateRequest(msgspec.Struct, kw_only=True):
    """POST /v1/estimate: what a request would take."""

    model: str | None = None
    prompt: Prompt | None = None
    messages: list[dict[str, Any]] | None = None
    prompt_tokens: int | None = None
    max_tokens: int | None = None
    tools: list[dict[str, Any]] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None


T = TypeVar("T", bound=msgspec.Struct)


def decode(body: bytes, kind: type[T]) -> T:
    """The request in a body; ApiError that names what is wrong with it."""
    try:
        fields = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise bad(f"the body is not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise bad("the body must be a JSON object")
    known = set(kind.__struct_fields__)
    given = {name: value for name, value in fields.items() if value is not None}
    for name in given.keys() - known:
        check_unknown(name, given[name])
    try:
        return msgspec.convert({name: given[name] for name in given.keys() & known}, kind)
    except msgspec.ValidationError as error:
        raise wrong_type(str(error)) from None


def check_unknown(name: str, value: Any) -> None:
    """ApiError unless a field that is not known does not matter."""
    if name in IGNORED or any(type(value) is type(same) and value == same for same in NEUTRAL.get(name, ())):
        return
    if name in NEUTRAL:
        raise bad(f"{name} is not supported", name, "unsupported_parameter")
    raise bad(f"there is no field {name:.60}", f"{name:.60}", "unknown_parameter")


def wrong_type(sentence: str) -> ApiError:
    """msgspec's sentence as an error: "Expected `int`, got `str` - at `$.max_tokens`"."""
    what, _, path = sentence.partition(" - at `$")
    param = path.rstrip("`").lstrip(".") or None
    if param is None and what.startswith("Object missing required field `"):
        param = what.split("`")[1]
        return bad(f"{param} is missing", param, "missing_required_parameter")
    return bad(f"{param}: {what[:1].lower()}{what[1:]}" if param else what, param, "invalid_type")


def ranged(name: str, value: int | None, least: int, most: int, default: int) -> int:
    """A number that is in its range, or the default where there is none; ApiError otherwise."""
    if value is None:
        return default
    if not least <= value <= most:
        raise bad(f"{name} must be from {least} to {most}, not {value!s:.30}", name, "integer_out_of_range")
    return value


def without_none(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Those that are there."""
    return {name: value for name, value in fields.items() if value is not None}
