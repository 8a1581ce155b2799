"""Tool calls as a grammar: from the mark of a call on, a model writes the name of one of the tools, and
arguments that its schema allows. So the parser (call_parser.py) need not guess.

Arguments are one JSON object, or, in formats that look like XML, one after the other: then strings are as
they are, and all else is JSON.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

from pyllm.binding import Model
from pyllm.call_formats import DEFINITIONS, OF_OBJECTS, Format, Tool, kinds_of, quoted, texts_of
from pyllm.call_parser import Parser
from pyllm.grammar import (
    EXACT,
    Constraint,
    GrammarError,
    Grammars,
    Reasoning,
    State,
    as_lark,
    schema_in_lark,
    text_before,
)
from pyllm.json_schema import escaped
from pyllm.thinking import Thought


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
