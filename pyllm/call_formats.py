"""How the models of each template family write calls of tools: a table, from which follow the grammar of
calls (calls.py) and their parser (call_parser.py), so that the two cannot disagree.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

NAME = re.compile(r"[a-zA-Z0-9_.-]{1,64}\Z")


@dataclass(frozen=True)
class Format:
    """How a family writes calls.

    name       of the family
    signs      its templates have one of these in them
    before     text before the calls: the mark by which they are known
    call       a call; {call} is the JSON object of name and arguments, {name} and {arguments} are these
               apart; {parameters} are all that are given, each as `parameter` has it
    between    text between two calls
    after      text after the last
    arguments  the name under which the object has its arguments
    anchored   whether the mark counts at the start of a reply only, since it is no word of its own
    parameter  an argument where each is apart: {key} and {value}
    """

    name: str
    signs: tuple[str, ...]
    before: str
    call: str
    between: str
    after: str
    arguments: str = "arguments"
    anchored: bool = False
    parameter: str = ""

    @property
    def around_name(self) -> tuple[str, str]:
        """What is before and behind a name that is apart."""
        before, _, rest = self.call.partition("{name}")
        return before, rest.partition("{")[0]

    @property
    def around_value(self) -> tuple[str, str, str, str]:
        """What is before a key, between it and its value, and behind that: its end, and the rest."""
        before, between, behind = re.split(r"\{key\}|\{value\}", self.parameter)
        end = behind.strip()
        return before, between, end, behind.partition(end)[2]

    @property
    def padded(self) -> bool:
        """Whether a value has a line of its own."""
        return "\n{value}\n" in self.parameter


FORMATS = (
    Format("qwen3_coder", ("<parameter=",), "<tool_call>",
           "\n<function={name}>\n{parameters}</function>\n</tool_call>", "\n<tool_call>", "",
           parameter="<parameter={key}>\n{value}\n</parameter>\n"),
    Format("glm4", ("</arg_key>\n<arg_value>",), "<tool_call>",
           "{name}\n{parameters}</tool_call>", "\n<tool_call>", "",
           parameter="<arg_key>{key}</arg_key>\n<arg_value>{value}</arg_value>\n"),
    Format("mistral", ("[ARGS]",), "[TOOL_CALLS]", "{name}[ARGS]{arguments}", "[TOOL_CALLS]", ""),
    Format("mistral", ("[TOOL_CALLS]",), "[TOOL_CALLS]", "{call}", ", ", "]"),
    Format("granite", ("<|tool_call|>",), "<|tool_call|>", "{call}", ", ", "]"),
    Format("hermes", ("<tool_call>",), "<tool_call>", "\n{call}\n</tool_call>", "\n<tool_call>", ""),
    Format("llama3", ("<|python_tag|>", '"parameters"'), "", "{call}", "; ", "", "parameters", anchored=True),
)  # fmt: skip
GENERIC = Format("json", (), "", "{call}", "\n", "", anchored=True)
# Signs of formats that are not here: those of Gemma 4, Kimi K2, Solar Open, MiniMax-M2, Apertus, Hy3, Command
# R7B and Seed-OSS; and others, which formats that are here may have too
OTHERS = (
    "<|tool_call>", "<|tool_calls_section_begin|>", "<|tool_call:begin|>", "<minimax:tool_call>",
    "<|tools_prefix|>", "<tool_sep", "<|START_ACTION|>", "<seed:tool_call>",
)  # fmt: skip
UNKNOWN = ("<function=", "<|channel|>", "<arg_key>", "<｜tool▁calls▁begin｜>")


def format_of(template: str) -> Format:
    """The format of a template's family. ValueError when it is one that is not known."""
    form = next((each for each in FORMATS if any(sign in template for sign in each.signs)), GENERIC)
    unknown = OTHERS if form.parameter else (*OTHERS, *UNKNOWN)
    if sign := next((sign for sign in unknown if sign in template), None):
        raise ValueError(f"the model's template writes calls with {sign!r}, which is not supported")
    return form


def knows_tools(template: str) -> bool:
    """Whether a template shows tools to its model."""
    return re.search(r"\btools\b", template) is not None


@dataclass(frozen=True)
class Tool:
    """A function that a model may call. parameters: the JSON schema of its arguments, an object."""

    name: str
    parameters: dict[str, Any] = field(default_factory=lambda: {"type": "object"})

    @property
    def required(self) -> frozenset[str]:
        """The arguments that a call must have."""
        return frozenset(self.parameters.get("required") or ())

    @property
    def values(self) -> dict[str, Any]:
        """The schema of each argument, with what it may refer to."""
        shared = {name: self.parameters[name] for name in DEFINITIONS if name in self.parameters}
        properties = self.parameters.get("properties") or {}
        return {
            key: {**shared, **({} if value is True else value)}
            for key, value in properties.items()
            if value is not False
        }


def tools_of(given: Sequence[Mapping[str, Any]]) -> list[Tool]:
    """The tools of a request. ValueError that says which is wrong."""
    tools: list[Tool] = []
    for i, one in enumerate(given):
        function = one.get("function") if one.get("type") == "function" else None
        if not isinstance(function, Mapping):
            raise ValueError(f"tools[{i}]: only tools of type function are supported")
        name, parameters = function.get("name"), function.get("parameters")
        if not isinstance(name, str) or not NAME.match(name):
            raise ValueError(
                f"tools[{i}].function.name must be 1 to 64 letters, digits, dots, dashes or underscores"
            )
        if not (parameters is None or isinstance(parameters, dict)):
            raise ValueError(f"tools[{i}].function.parameters must be a JSON schema")
        if name in (tool.name for tool in tools):
            raise ValueError(f"tools[{i}]: there are two functions {name}")
        parameters = {**(parameters or {})}
        parameters.setdefault("type", "object")
        if parameters["type"] != "object":
            raise ValueError(f"tools[{i}].function.parameters must be of type object")
        tools.append(Tool(name, parameters))
    return tools


# ----------------------------------------------------------------------------------------------------------
# Arguments that are apart

KINDS = frozenset(("string", "number", "integer", "boolean", "null", "array", "object"))
DEFINITIONS = ("$defs", "definitions")
NOTES = frozenset(
    "$schema $id $comment title description default examples deprecated readOnly writeOnly".split()
)
# What the schema of arguments that are apart may have
OF_OBJECTS = NOTES | {"type", "properties", "required", "additionalProperties", "strict", *DEFINITIONS}


def kinds_of(schema: Any) -> frozenset[str]:
    """The types that a value may be of if nothing else is said of it; none where there is."""
    said = {} if schema is True else {k: v for k, v in schema.items() if k not in NOTES | {*DEFINITIONS}}
    if not said:
        return KINDS
    if said.keys() == {"type"}:
        return frozenset([said["type"]] if isinstance(said["type"], str) else said["type"])
    if said.keys() <= {"anyOf"}:
        each = [kinds_of(part) for part in said["anyOf"] if part is not False]
        return frozenset().union(*each) if all(each) else frozenset()
    return frozenset()


def texts_of(schema: Any) -> list[str] | None:
    """The texts that a value must be one of, if none of them may go on as a mark does."""
    texts = [schema["const"]] if "const" in schema else schema.get("enum")
    said = schema.keys() - NOTES - {*DEFINITIONS}
    if said not in ({"enum"}, {"const"}, {"type", "enum"}, {"type", "const"}) or not texts:
        return None
    if schema.get("type", "string") != "string":
        return None
    plain = (isinstance(text, str) and text and not set("\n<") & set(text) for text in texts)
    return texts if all(plain) else None


def value_of(text: str, kinds: frozenset[str]) -> str:
    """The JSON of a value that may be a string, or of other types: what looks like one of these is it."""
    try:
        value = json.loads(text, parse_constant=_no_json)
    except (ValueError, RecursionError):
        return quoted(text)
    names = {bool: "boolean", int: "integer", float: "number", list: "array", dict: "object"}
    kind = "null" if value is None else names.get(type(value), "string")
    if kind != "string" and (kind in kinds or (kind == "integer" and "number" in kinds)):
        return text.strip()
    return quoted(text)


def _no_json(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def quoted(text: str) -> str:
    """A text as JSON has it, and a rule in which its control tokens are text."""
    return json.dumps(text, ensure_ascii=False)


def inside(text: str) -> str:
    """A piece of a text, as it is in one in JSON."""
    return quoted(text)[1:-1]


# ----------------------------------------------------------------------------------------------------------
# Conversations

INSTRUCTION = """\
You can call these functions:
{tools}
To call one, reply with nothing but a JSON object: {{"name": the function's name, "arguments": an object \
of its arguments}}."""


def without_tools(
    messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """The messages of a conversation for a template that knows no tools: these are told of in the system
    message, calls are the texts that they were, and results are the user's."""
    shown = "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in tools)
    told = INSTRUCTION.format(tools=shown)
    result: list[dict[str, Any]] = []
    for message in messages:
        plain = {k: v for k, v in message.items() if k not in ("tool_calls", "tool_call_id")}
        if message.get("tool_calls"):
            plain["content"] = "\n".join(
                json.dumps(
                    {"name": c["function"]["name"], "arguments": c["function"]["arguments"]},
                    ensure_ascii=False,
                )
                for c in message["tool_calls"]
            )
        if message.get("role") == "tool":
            plain = {"role": "user", "content": f"Result: {message.get('content')}"}
        result.append(plain)
    if result and result[0].get("role") == "system":
        result[0]["content"] = f"{result[0].get('content') or ''}\n\n{told}".strip()
    else:
        result.insert(0, {"role": "system", "content": told})
    return result


def with_objects(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message with the arguments of its calls as objects, which is how templates want them; OpenAI's API
    has them as texts."""
    calls = message.get("tool_calls")
    if not isinstance(calls, list):
        return dict(message)
    changed = []
    for call in calls:
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict):
            raise ValueError("tool_calls must be a list of objects with a function")
        arguments = function.get("arguments")
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments or "{}")
            except (ValueError, RecursionError):
                raise ValueError("the arguments of a tool call are no JSON") from None
        changed.append({**call, "function": {**function, "arguments": arguments}})
    return {**message, "tool_calls": changed}
