"""Tool calls: how the models of each template family write them, as a grammar and as a parser from one
table, so that the two cannot disagree.

What a model writes after its mark for a call is bound to the grammar: the name is one of the tools', the
arguments are what the tool's schema allows. So the parser need not guess. Arguments are one JSON object, or,
in formats that look like XML, one after the other: then strings are as they are, and all else is JSON.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pyllm.binding import Model
from pyllm.grammar import (
    EXACT,
    Constraint,
    GrammarError,
    Grammars,
    Reasoning,
    State,
    as_lark,
    escaped,
    schema_in_lark,
    text_before,
)
from pyllm.sampling import unfinished
from pyllm.thinking import Thought

NAME = re.compile(r"[a-zA-Z0-9_.-]{1,64}\Z")
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
ID_LENGTH = 9  # Mistral's templates want exactly so many letters and digits


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
UNKNOWN = ("<function=", "<|channel|>", "<arg_key>", "<｜tool▁calls▁begin｜>")  # of formats that are not here


def format_of(template: str) -> Format:
    """The format of a template's family. ValueError when it is one that is not known."""
    form = next((each for each in FORMATS if any(sign in template for sign in each.signs)), GENERIC)
    if not form.parameter and (sign := next((sign for sign in UNKNOWN if sign in template), None)):
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


class Calls:
    """The calls that one request allows.

    form       how the model writes them
    tools      those that it may call
    required   whether the reply is to be calls
    parallel   whether there may be several
    otherwise  what the reply is to be if it is no calls; None: anything
    """

    def __init__(
        self,
        form: Format,
        tools: Sequence[Tool],
        required: bool,
        parallel: bool,
        otherwise: Constraint | None = None,
    ) -> None:
        self.form, self.tools, self.required, self.parallel = form, tools, required, parallel
        self.otherwise = otherwise
        self._open = r"/ ?\[/" if form.after == "]" else ""  # the objects stand in a list

    @property
    def marks(self) -> list[str]:
        """The texts by one of which calls are known. An object that is bound to be something else may have a
        name, too, so that more must be seen of one."""
        if self.form.before or self.otherwise is None:
            return [self.form.before or '{"name": "']
        return [self._start(tool) for tool in self.tools]

    @property
    def anchored(self) -> bool:
        """Whether calls come at the start of a reply only: what it is bound to be otherwise may quote
        marks."""
        return self.form.anchored or self.otherwise is not None

    def control(self, model: Model) -> dict[str, int]:
        """The marks of calls that are control tokens, which must have a text for the parser to find them."""
        form = self.form
        texts = (form.before, form.call, form.between, form.after, form.parameter)
        parts = {part for text in texts for part in model.control_texts.split(text)}
        return {text: token for text, token in model.control_tokens.items() if text in parts}

    def lark(self, model: Model, reasoning: Reasoning | None, otherwise: Constraint | None) -> str:
        """The grammar of the calls, with what may come before them, or in place of them."""
        form = self.form
        rules = [f"call{i}: {self._call(model, tool)}" for i, tool in enumerate(self.tools)]
        if form.parameter:
            rules.append(text_before(model, "text", form.around_value[2]))
        one = " | ".join(f"call{i}" for i in range(len(self.tools)))
        between = as_lark(model, form.between)
        start = f"{as_lark(model, form.before)} {self._open} call"
        more = f" ({between} call)*" if self.parallel else ""
        end = as_lark(model, form.after)
        thought, more_rules = ("", "") if reasoning is None else reasoning.lark(model)
        answer = ""
        if otherwise is not None:
            same = self._beside_object
            answer = f" | {schema_in_lark(otherwise.what, EXACT) if same else otherwise.lark()}"
        lines = [f"start: {thought} (calls{answer})", f"calls: {start}{more} {end}", f"call: {one}", *rules]
        return "\n".join(lines) + "\n" + more_rules

    def _start(self, tool: Tool) -> str:
        """What is before the arguments in the object of a call."""
        return f'{{"name": {json.dumps(tool.name)}, "{self.form.arguments}": '

    def _call(self, model: Model, tool: Tool) -> str:
        """The right side of the rule of one tool."""
        arguments = schema_in_lark(tool.parameters)
        if self._beside_object:
            return schema_in_lark(self._object(tool), EXACT)
        values = {
            "{call}": f'{json.dumps(self._start(tool))} {arguments} "}}"',
            "{name}": json.dumps(tool.name),
            "{arguments}": arguments,
            "{parameters}": self._parameters(model, tool) if self.form.parameter else "",
        }
        parts = re.split(r"(\{\w+\})", self.form.call)
        return " ".join(values[part] if part in values else as_lark(model, part) for part in parts)

    @property
    def _beside_object(self) -> bool:
        """Whether the reply may be JSON of a schema, too: then both must be made of the same words, since
        llguidance takes the longest one that comes and does not go back."""
        return self.form.anchored and self.otherwise is not None and self.otherwise.kind == "schema"

    def _object(self, tool: Tool) -> dict[str, Any]:
        """The schema of a call that is an object."""
        properties = {"name": {"const": tool.name}, self.form.arguments: tool.parameters}
        shared = {name: tool.parameters[name] for name in DEFINITIONS if name in tool.parameters}
        whole = {"type": "object", "properties": properties, "required": [*properties]}
        return {**shared, **whole, "additionalProperties": False}

    def _parameters(self, model: Model, tool: Tool) -> str:
        """The arguments of a tool where each is apart, in the schema's order, as JSON objects have them."""
        before, between, end, rest = self.form.around_value
        start, end_of = as_lark(model, before), as_lark(model, end + rest)
        parts = []
        for key, value in tool.values.items():
            part = f"{start} {quoted(key)} {as_lark(model, between)}"
            texts = texts_of(value)
            pad = as_lark(model, "\n" if self.form.padded else "")
            if texts is not None:
                part += f" ({' | '.join(map(quoted, texts))}) {pad} {end_of}"
            elif "string" in kinds_of(value):
                part += f" text {as_lark(model, rest)}"
            else:
                part += f" {schema_in_lark(value)} {pad} {end_of}"
            parts.append(f"({part})" if key in tool.required else f"({part})?")
        return " ".join(parts)

    def _check(self, grammars: Grammars, tool: Tool) -> None:
        """GrammarError when the schema of a tool cannot be enforced."""
        grammars.check_schema(tool.parameters)
        if self._beside_object:
            grammars.check_schema(self._object(tool))
        if not self.form.parameter:
            return
        for name in tool.parameters.keys() - OF_OBJECTS:  # they bind several arguments, which are apart here
            raise GrammarError(
                f"schema at /{escaped(name)}: not supported with a model that writes arguments one by one",
                f"/{escaped(name)}",
            )
        if missing := sorted(tool.required - tool.values.keys()):
            raise GrammarError(f"schema at /required: there is no property {missing[0]!r:.60}", "/required")
        for key, value in tool.values.items():
            pointer = f"/properties/{escaped(key)}"
            if self.form.around_value[1][0] in key:  # one that begins like another could not end
                raise GrammarError(f"schema at {pointer}: the model cannot write this name", pointer)
            try:
                grammars.check_schema(value)
            except GrammarError as error:
                raise GrammarError(f"schema at {pointer}: {error}", pointer) from None

    def state(self, grammars: Grammars, reasoning: Reasoning | None) -> State:
        """What binds a reply: from its start where it is to be calls, or these or something else; otherwise
        from their mark on. GrammarError that names the tool when the schema of one cannot be enforced."""
        for tool in self.tools:
            try:
                self._check(grammars, tool)
            except GrammarError as error:
                raise GrammarError(f"{tool.name}: {error}", error.pointer) from None
        if self.required or self.otherwise is not None:
            otherwise = None if self.required else self.otherwise
            return grammars.state(self.lark(grammars.model, reasoning, otherwise))
        called = grammars.state(self.lark(grammars.model, None, None))
        return Triggered(grammars, called, self.marks[0], self.form.anchored, reasoning)

    def parser(self, seed: int, control: Iterable[str] = ()) -> Parser:
        """What takes a reply apart. control: the marks in it that are control tokens."""
        return Parser(self, seed, control)


class Triggered(State):
    """Binds nothing until a mark comes behind the reasoning, and what follows from there on.

    called  what binds it then
    """

    def __init__(
        self, grammars: Grammars, called: State, mark: str, anchored: bool, reasoning: Reasoning | None
    ) -> None:
        self._grammars, self._called, self._anchored = grammars, called, anchored
        self._thought = None if reasoning is None else Thought(reasoning)
        self._sign = mark.encode()
        self._tokens: list[int] = []  # the last ones, in which the mark may have begun
        self._bytes = b""  # theirs
        self._open = True  # whether the mark may still come
        self._state: State | None = None

    def mask(self) -> Any:
        return self._grammars.free if self._state is None else self._state.mask()

    def accept(self, token: int) -> None:
        if self._state is not None:
            self._state.accept(token)
        elif self._open:
            self._look(token)

    def _look(self, token: int) -> None:
        """Whether the mark has come with this token."""
        data = self._grammars.model.token_bytes(token)
        if self._thought is not None:  # what is thought of calls is none
            data = self._thought.feed(data)
        if not data:
            return
        self._tokens.append(token)
        self._bytes += data
        text = self._bytes.lstrip() if self._anchored else self._bytes
        at = text.find(self._sign)
        if at == 0 or (at > 0 and not self._anchored):
            self._begin(text[at:])
        elif self._anchored:
            self._open = self._sign.startswith(text[: len(self._sign)])
        else:  # only the end may be the beginning of the mark
            while self._tokens and len(self._bytes) - self._size(0) >= len(self._sign) - 1:
                self._bytes = self._bytes[self._size(0) :]
                del self._tokens[0]

    def _size(self, place: int) -> int:
        return len(self._grammars.model.token_bytes(self._tokens[place]))

    def _begin(self, text: bytes) -> None:
        """The grammar holds from here on; text: what there is of it already."""
        self._state = self._called
        own: list[int] = []
        for token in reversed(self._tokens):  # the tokens that make up the text, if it begins with one
            own.insert(0, token)
            data = b"".join(map(self._grammars.model.token_bytes, own))
            if len(data) >= len(text):
                break
        tokens = own if data == text else self._grammars.tokenizer.tokenize_bytes(text, parse_special=True)
        for token in tokens:
            self._state.accept(token)

    @property
    def complete(self) -> bool:
        return self._state is not None and self._state.complete

    def forced(self, most: int) -> list[int]:
        return [] if self._state is None else self._state.forced(most)


@dataclass
class Delta:
    """What a piece of a reply adds to a call. name: of a new call, with its id."""

    index: int
    arguments: str = ""
    name: str | None = None
    id: str | None = None


class Parser:
    """Takes a reply apart: text before the calls, and these, piece by piece."""

    def __init__(self, calls: Calls, seed: int, control: Iterable[str] = ()) -> None:
        self._calls, self._seed = calls, seed
        self._stray = [text for text in control if text not in calls.marks]  # of no meaning before calls
        self._held = ""  # what is not certain yet
        self._place = "text"  # "text", "name", "arguments" ("key", "value" where they are apart) or "behind"
        self._any = False  # whether there was text
        self._depth = 0  # of brackets in the arguments
        self._string = self._escape = False  # whether in a string of them, behind a backslash
        self._tool: Tool | None = None  # whose arguments are apart
        self._how = ""  # of their value that comes: "text", "json", or "either"
        self._kinds = frozenset[str]()
        self._n_keys = 0
        self.count = 0  # calls so far
        self.whole = 0  # those that are complete

    def feed(self, piece: str, last: bool = False, cut: bool = False) -> tuple[str, list[Delta]]:
        """What a piece makes certain: text, and what is added to calls. cut: whether more would have come
        behind the last one, so that the beginning of a mark is no text."""
        self._held += piece
        text = self._text(last, cut) if self._place == "text" else ""
        deltas: list[Delta] = []
        for delta in self._deltas():
            if deltas and delta.name is None and deltas[-1].index == delta.index:
                deltas[-1].arguments += delta.arguments  # OpenAI's client takes one a call from a chunk
            else:
                deltas.append(delta)
        return text, deltas

    def _text(self, last: bool, cut: bool) -> str:
        marks, anchored = self._calls.marks, self._calls.anchored
        at = min((at for mark in marks if (at := self._held.find(mark)) >= 0), default=-1)
        if anchored and (self._any or self._held[: max(at, 0)].strip()):
            at = -1
        if at >= 0:
            text, self._place = self._held[:at].rstrip(), "name"
            self._held = self._held[at + len(self._calls.form.before) :]
            return self._without_stray(text)
        whole, begun = last and not cut, self._held.lstrip()
        if anchored and not self._any and not whole and any(mark.startswith(begun) for mark in marks):
            return ""
        end = len(self._held)
        if not whole:  # nor white space before a mark
            end = unfinished(self._held, [*([] if anchored else marks), *self._stray])
            end = end if last and end == len(self._held) else len(self._held[:end].rstrip())
        text, self._held = self._without_stray(self._held[:end]), self._held[end:]
        self._any |= bool(text.strip())
        return text

    def _without_stray(self, text: str) -> str:
        for mark in self._stray:
            text = text.replace(mark, "")
        return text

    def _deltas(self) -> Iterator[Delta]:
        while self._place != "text":
            if self._place == "name":
                found = self._name()
                if found is None:
                    return
                yield found
            elif self._place == "arguments":
                piece, ended = self._arguments()
                if piece:
                    yield Delta(self.count - 1, piece)
                if not ended:
                    return
                self.whole, self._place = self.whole + 1, "behind"
            elif self._place in ("key", "value"):
                added = self._key() if self._place == "key" else self._value()
                if added is None:
                    return
                if added:
                    yield Delta(self.count - 1, added)
            else:
                at = self._held.find(self._next_sign)
                if at < 0:
                    return
                self._held = self._held[at:].removeprefix(self._calls.form.between.strip())
                self._place = "name"

    @property
    def _next_sign(self) -> str:
        """What a further call begins with."""
        return self._calls.form.between.strip() if "{name}" in self._calls.form.call else "{"

    def _name(self) -> Delta | None:
        """The name of a call, when it is there, with what comes before its arguments."""
        form = self._calls.form
        if "{name}" in form.call:
            before, behind = form.around_name
            name, sign, rest = self._held.removeprefix(before).partition(behind)
            found = bool(sign) and self._held.startswith(before)
        else:
            key = re.escape(form.arguments)
            shape = rf'[^{{]*\{{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"{key}"\s*:\s*'
            match = re.match(shape, self._held)
            found = match is not None and match.end() < len(self._held)
            name = json.loads(match[1]) if match else ""
            rest = self._held[match.end() :] if match else ""
        if not found:
            return None
        self._held, self._place, self._depth = rest, "key" if form.parameter else "arguments", 0
        self._tool, self._n_keys = next((t for t in self._calls.tools if t.name == name), None), 0
        self.count += 1
        return Delta(self.count - 1, "", name.strip(), self._id())

    def _id(self) -> str:
        """A call's id: the same for the same request."""
        digest = hashlib.sha256(f"{self._seed} {self.count}".encode()).digest()
        return "".join(LETTERS[byte % len(LETTERS)] for byte in digest[:ID_LENGTH])

    def _arguments(self) -> tuple[str, bool]:
        """What has come of the arguments, and whether that is their end."""
        for at, c in enumerate(self._held):
            if self._string:
                self._string = self._escape or c != '"'
                self._escape = c == "\\" and not self._escape
                continue
            self._string = c == '"'
            self._depth += (c in "{[") - (c in "}]")
            if self._depth == 0 and c in "}]":
                piece, self._held = self._held[: at + 1], self._held[at + 1 :]
                return piece, True
        piece, self._held = self._held, ""
        return piece, False

    # ------------------------------------------------------------------------------------------------------
    # Arguments that are apart

    def _key(self) -> str | None:
        """What the start of an argument, or the end of them, is in the JSON object; None: it is not whole."""
        form = self._calls.form
        before, between = form.around_value[:2]
        close = form.call.partition("{parameters}")[2]
        if self._held.startswith(close):
            self._held, self._place = self._held[len(close) :], "behind"
            self.whole += 1
            return "}" if self._n_keys else "{}"
        key, sign, rest = self._held.removeprefix(before).partition(between)
        if not sign or not self._held.startswith(before):
            return None
        schema = {} if self._tool is None else self._tool.values.get(key, {})
        self._kinds = kinds_of(schema)
        text = texts_of(schema) is not None or self._kinds == {"string"}
        self._how = "text" if text else "either" if "string" in self._kinds else "json"
        self._held, self._place = rest, "value"
        self._string = self._escape = False
        self._n_keys += 1
        start = "{" if self._n_keys == 1 else ", "
        return f"{start}{quoted(key)}: " + ('"' if text else "")

    def _value(self) -> str | None:
        """What has come of a value, as JSON; None: nothing is certain. A string is as it is up to its end."""
        form = self._calls.form
        end, rest = form.around_value[2:]
        if self._how == "json":
            return self._json(end + rest)
        text, found, behind = self._held.partition(end)
        if found and len(behind) >= len(rest):
            self._held, self._place = behind[len(rest) :], "key"
            text = text.removesuffix("\n") if form.padded else text
            return value_of(text, self._kinds) if self._how == "either" else inside(text) + '"'
        if found or self._how == "either":
            return None
        certain = unfinished(text, [end, f"\n{end}"])
        text, self._held = text[:certain], text[certain:]
        return inside(text) or None

    def _json(self, end: str) -> str | None:
        """What has come of a value that is JSON, up to the white space before its end."""
        at = 0
        while at < len(self._held) and (self._string or self._held[at] != "<"):
            c = self._held[at]
            self._string = (self._escape or c != '"') if self._string else c == '"'
            self._escape = self._string and c == "\\" and not self._escape
            at += 1
        piece = self._held[:at]
        piece = piece if self._string else piece.rstrip()
        self._held = self._held[len(piece) :]
        behind = self._held.lstrip()
        if not self._string and len(behind) >= len(end):
            self._held, self._place = behind[len(end) :], "key"
            return piece
        return piece or None


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
