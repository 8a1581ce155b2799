"""Calls of tools: what a model of each family may write, and what becomes of it, piece by piece."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from common import IM_END
from served import Client, write_model

pytest.importorskip("llguidance")

from pyllm import LLM, GrammarError  # noqa: E402
from pyllm.call_formats import (  # noqa: E402
    FORMATS,
    GENERIC,
    Format,
    format_of,
    knows_tools,
    tools_of,
    with_objects,
    without_tools,
)
from pyllm.call_parser import Delta  # noqa: E402
from pyllm.calls import Calls  # noqa: E402
from pyllm.chat import MARKS, Parting  # noqa: E402
from pyllm.grammar import Constraint, Reasoning, State  # noqa: E402
from pyllm.server.chats import Reply, whole_calls  # noqa: E402
from pyllm.testing import Server, running_server  # noqa: E402

CONTROL = [b"[TOOL_CALLS]", b"[ARGS]", b"<|tool_call|>", b"<|python_tag|>"]
CHAT = "/v1/chat/completions"
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 4}, "unit": {"enum": ["C", "F"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 9}},
            "required": ["a"],
            "additionalProperties": False,
        },
    },
}
TOOLS = tools_of([WEATHER, ADD])
HI = [{"role": "user", "content": "Hi"}]
# What each format's calls look like, as the models' own templates show them: one call, and two
ONE = {
    (
        "<parameter=",
    ): "<tool_call>\n<function=add>\n<parameter=a>\n1\n</parameter>\n</function>\n</tool_call>",
    (
        "</arg_key>\n<arg_value>",
    ): "<tool_call>add\n<arg_key>a</arg_key>\n<arg_value>1</arg_value>\n</tool_call>",
    ("[ARGS]",): '[TOOL_CALLS]add[ARGS]{"a": 1}',
    ("[TOOL_CALLS]",): '[TOOL_CALLS] [{"name": "add", "arguments": {"a": 1}}]',
    ("<|tool_call|>",): '<|tool_call|>[{"name": "add", "arguments": {"a": 1}}]',
    ("<tool_call>",): '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>',
    ("<|python_tag|>", '"parameters"'): '{"name": "add", "parameters": {"a": 1}}',
    (): '{"name": "add", "arguments": {"a": 1}}',
}
TWO = {
    (
        "<parameter=",
    ): "<tool_call>\n<function=add>\n<parameter=a>\n1\n</parameter>\n</function>\n</tool_call>\n"
    '<tool_call>\n<function=get_weather>\n<parameter=city>\n"}{\\""\n</parameter>\n</function>\n</tool_call>',
    (
        "</arg_key>\n<arg_value>",
    ): "<tool_call>add\n<arg_key>a</arg_key>\n<arg_value>1</arg_value>\n</tool_call>\n"
    '<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>"}{\\""</arg_value>\n</tool_call>',
    ("[ARGS]",): '[TOOL_CALLS]add[ARGS]{"a": 1}[TOOL_CALLS]get_weather[ARGS]{"city": "}{\\""}',
    ("[TOOL_CALLS]",): '[TOOL_CALLS] [{"name": "add", "arguments": {"a": 1}}, '
    '{"name": "get_weather", "arguments": {"city": "}{\\""}}]',
    ("<|tool_call|>",): '<|tool_call|>[{"name": "add", "arguments": {"a": 1}}, '
    '{"name": "get_weather", "arguments": {"city": "}{\\""}}]',
    ("<tool_call>",): '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>\n'
    '<tool_call>\n{"name": "get_weather", "arguments": {"city": "}{\\""}}\n</tool_call>',
    ("<|python_tag|>", '"parameters"'): '{"name": "add", "parameters": {"a": 1}}; '
    '{"name": "get_weather", "parameters": {"city": "}{\\""}}',
    (): '{"name": "add", "arguments": {"a": 1}}\n{"name": "get_weather", "arguments": {"city": "}{\\""}}',
}
# Tools and calls as the template of Qwen3-Coder writes them; that of the same name without its instructions
QWEN3_CODER = b"""\
{%- if tools %}<tools>
{%- for tool in tools %}
<function>
<name>{{ tool.function.name }}</name>
<parameters>{{ tool.function.parameters | tojson }}</parameters>
</function>
{%- endfor %}
</tools>
{% endif %}
{%- for m in messages %}
{{- '<|im_start|>' + m.role + '\\n' }}
{{- m.content or '' }}
{%- for call in m.tool_calls or [] %}
{{- '\\n<tool_call>\\n<function=' + call.function.name + '>\\n' }}
{%- for key, value in call.function.arguments | items %}
{{- '<parameter=' + key + '>\\n' }}
{{- value if value is string else value | tojson }}
{{- '\\n</parameter>\\n' }}
{%- endfor %}
{{- '</function>\\n</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}
"""
EVERY = [*FORMATS, GENERIC]
NAMES = [f"{form.name} {form.signs}" for form in EVERY]


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    with LLM(write_model(tmp_path_factory.mktemp("calls"), control=CONTROL), threads=1) as llm:
        yield llm


def accepts(llm: LLM, state: State, text: str, special: bool = True) -> bool:
    """Whether a state lets a text through, token by token. special: whether it has control tokens."""
    for token in llm.encode(text, bos=False, special=special):
        mask = state.mask()
        if not mask[token // 32] >> token % 32 & 1:
            return False
        state.accept(token)
    return True


def named(name: str) -> dict[str, Any]:
    """A tool_choice."""
    return {"type": "function", "function": {"name": name}}


def some_of(mode: str, *names: str) -> dict[str, Any]:
    """A tool_choice."""
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": [*map(named, names)]}}


def allowed(state: State) -> set[int]:
    """The tokens that may come next."""
    mask = state.mask()
    return {token for token in range(IM_END + 1) if mask[token // 32] >> token % 32 & 1}


def parsed(calls: Calls, pieces: Sequence[str]) -> tuple[str, list[Any]]:
    """What a parser makes of a reply that comes in pieces: its text, and its calls."""
    parser, text, deltas = calls.parser(7), "", list[Delta]()
    for i, piece in enumerate(pieces):
        more, added = parser.feed(piece, last=i == len(pieces) - 1)
        text += more
        deltas += added
    return text, [call["function"] for call in whole_calls(deltas)]


def pieces_of(text: str, seed: int) -> list[str]:
    """A text cut anywhere."""
    rng = random.Random(seed)
    cuts = sorted(rng.choices(range(len(text) + 1), k=rng.randint(0, len(text))))
    return [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]


# ----------------------------------------------------------------------------------------------------------
# Grammar and parser of each family


@pytest.mark.parametrize("form", EVERY, ids=NAMES)
def test_the_grammar_takes_what_the_family_writes_and_nothing_else(llm: LLM, form: Format) -> None:
    calls = Calls(form, TOOLS, required=True, parallel=True)
    for text in (ONE[form.signs], TWO[form.signs]):
        state = calls.state(llm._grammars, None)
        assert accepts(llm, state, text)
        mask = state.mask()
        assert state.complete or mask[IM_END // 32] >> IM_END % 32 & 1, "it may end here"
    for wrong in ("Hello", ONE[form.signs].replace("add", "sub"), ONE[form.signs].replace("1", '"x"')):
        assert not accepts(llm, calls.state(llm._grammars, None), wrong)


@pytest.mark.parametrize("form", EVERY, ids=NAMES)
def test_one_call_is_one_call_where_there_may_not_be_several(llm: LLM, form: Format) -> None:
    calls = Calls(form, TOOLS, required=True, parallel=False)
    assert accepts(llm, calls.state(llm._grammars, None), ONE[form.signs])
    assert not accepts(llm, calls.state(llm._grammars, None), TWO[form.signs])


@pytest.mark.parametrize("form", EVERY, ids=NAMES)
def test_the_parser_takes_apart_what_the_grammar_lets_through(form: Format) -> None:
    calls = Calls(form, TOOLS, required=False, parallel=True)
    expected = [
        {"name": "add", "arguments": '{"a": 1}'},
        {"name": "get_weather", "arguments": '{"city": "}{\\""}'},
    ]
    before = "" if form.anchored else "I will look. "
    for seed in range(60):
        assert parsed(calls, pieces_of(ONE[form.signs], seed)) == ("", expected[:1])
        text, found = parsed(calls, pieces_of(before + TWO[form.signs], seed))
        assert (text, found) == (before.rstrip(), expected)


@pytest.mark.parametrize("form", EVERY, ids=NAMES)
def test_a_reply_without_calls_stays_as_it_is(form: Format) -> None:
    calls = Calls(form, TOOLS, required=False, parallel=True)
    for text in ("Hello {there}", '{"named": 1}', "1 < 2 <tool", ' \n {"name', "[TOOL", ""):
        for seed in range(20):
            assert parsed(calls, pieces_of(text, seed)) == (text, [])


@pytest.mark.parametrize("form", EVERY, ids=NAMES)
def test_with_auto_nothing_is_bound_before_the_mark_and_everything_behind(llm: LLM, form: Format) -> None:
    calls = Calls(form, TOOLS, required=False, parallel=True)
    before = "" if form.anchored else "Well, [TOO <tool_ca "
    assert accepts(llm, calls.state(llm._grammars, None), "anything { at all }")
    state = calls.state(llm._grammars, None)
    assert accepts(llm, state, before + ONE[form.signs])
    wrong = ONE[form.signs].replace("add", "sub")
    assert not accepts(llm, calls.state(llm._grammars, None), before + wrong)
    if form.anchored:  # it is no call where text has come before
        assert accepts(llm, calls.state(llm._grammars, None), "Text " + wrong)


WRITE = {
    "type": "function",
    "function": {
        "name": "write",
        "parameters": {
            "type": "object",
            "properties": {
                "text": {"type": "string", "description": "what to write"},
                "mode": {"enum": ["new", "more"]},
                "times": {"$ref": "#/$defs/count"},
                "to": {"anyOf": [{"type": "string"}, {"type": "integer"}, {"type": "null"}]},
                "tags": {"type": "array", "items": {"type": "string"}},
                "any": {},
                "lines": {"enum": ["a", "a\nb", "a</b>"]},
            },
            "required": ["text", "times"],
            "$defs": {"count": {"type": "integer", "minimum": 1, "maximum": 99}},
        },
    },
}
APART = [form for form in FORMATS if form.parameter]
# Arguments of that tool, as they are written one by one where not as JSON
ARGUMENTS: list[dict[str, tuple[str, Any]]] = [
    {"text": ("", ""), "times": ("1", 1)},
    {"text": ('a "b" \\ \t\n\n', 'a "b" \\ \t\n\n'), "mode": ("more", "more"), "times": ("12", 12)},
    {"text": ("</param\n<b>\n</p", "</param\n<b>\n</p"), "times": ("7", 7), "to": ("null", None)},
    {"text": ("grüße 😀", "grüße 😀"), "times": ("7", 7), "to": ("me", "me"), "any": ("[1, {}]", [1, {}])},
    {"text": ("12", "12"), "times": ("7", 7), "to": ("12", 12),
     "tags": ('["</parameter>\\n", "</arg_value>\\n"]', ["</parameter>\n", "</arg_value>\n"]),
     "any": ("", "")},
    {"text": ("x", "x"), "times": ("7", 7), "to": ("1e3", "1e3"), "any": ("[NaN]", "[NaN]")},
    {"text": ("x", "x"), "times": ("7", 7), "lines": ('"a"', "a")},
    {"text": ("x", "x"), "times": ("7", 7), "to": ("1.5", "1.5"), "tags": ("[ ]", []), "any": ('"q"', '"q"')},
]  # fmt: skip


def written(form: Format, name: str, arguments: dict[str, tuple[str, Any]]) -> str:
    """A call with these arguments as a form has it."""
    each = [form.parameter.format(key=key, value=text) for key, (text, _) in arguments.items()]
    return form.before + form.call.format(name=name, parameters="".join(each)) + form.after


@pytest.mark.parametrize("form", APART, ids=lambda form: form.name)
@pytest.mark.parametrize("arguments", ARGUMENTS)
def test_arguments_that_are_apart_become_json(llm: LLM, form: Format, arguments: dict[str, Any]) -> None:
    calls = Calls(form, tools_of([WRITE]), required=True, parallel=True)
    text = written(form, "write", arguments)
    state = calls.state(llm._grammars, None)
    assert accepts(llm, state, text) and IM_END in allowed(state), "it may end here"
    for seed in range(40):
        pieces = pieces_of(text, seed)
        _, (call,) = parsed(calls, pieces)
        assert json.loads(call["arguments"]) == {key: value for key, (_, value) in arguments.items()}, pieces


@pytest.mark.parametrize("form", APART, ids=lambda form: form.name)
@pytest.mark.parametrize(
    "arguments",
    [
        {"text": "x"},
        {"times": "1"},
        {"text": "x", "times": "100"},
        {"text": "x", "times": '"1"'},
        {"text": "x", "mode": "other", "times": "1"},
        {"text": "x", "times": "1", "more": "x"},
        {"text": "x", "times": "1", "tags": "[1]"},
        {"text": "x", "text ": "x", "times": "1"},
        {"text": "x", "times": "1", "lines": "a\nb"},
    ],
)
def test_arguments_that_are_apart_are_what_the_schema_allows(
    llm: LLM, form: Format, arguments: dict[str, str]
) -> None:
    calls = Calls(form, tools_of([WRITE]), required=True, parallel=True)
    text = written(form, "write", {key: (value, None) for key, value in arguments.items()})
    assert not accepts(llm, calls.state(llm._grammars, None), text)


@pytest.mark.parametrize("form", EVERY, ids=NAMES)
def test_a_tool_may_have_no_arguments(llm: LLM, form: Format) -> None:
    tools = tools_of([{"type": "function", "function": {"name": "now", "parameters": {"properties": {}}}}])
    calls = Calls(form, tools, required=True, parallel=False)
    call = f'{{"name": "now", "{form.arguments}": {{}}}}'
    text = form.call.format(call=call, name="now", arguments="{}", parameters="")
    text = form.before + ("[" if form.after == "]" else "") + text + form.after
    assert accepts(llm, calls.state(llm._grammars, None), text)
    assert parsed(calls, pieces_of(text, 1)) == ("", [{"name": "now", "arguments": "{}"}])


@pytest.mark.parametrize("form", APART, ids=lambda form: form.name)
def test_arguments_that_are_apart_stream_as_valid_pieces(form: Format) -> None:
    calls = Calls(form, tools_of([WRITE]), required=True, parallel=True)
    whole = {key: value for key, (_, value) in ARGUMENTS[1].items()}
    parser, arguments = calls.parser(1), ""
    for c in written(form, "write", ARGUMENTS[1]):
        for delta in parser.feed(c)[1]:
            arguments += delta.arguments
            assert json.dumps(whole).startswith(arguments)
    assert json.loads(arguments) == whole and parser.whole == parser.count == 1
    parser = calls.parser(1)
    parser.feed(written(form, "write", ARGUMENTS[1])[:-60], last=True)
    assert (parser.count, parser.whole) == (1, 0), "it was cut"


@pytest.mark.parametrize(
    "more, pointer",
    [
        ({"patternProperties": {"^x": {}}}, "/patternProperties"),
        ({"anyOf": [{"required": ["a"]}, {}]}, "/anyOf"),
        ({"required": ["b"]}, "/required"),
        ({"properties": {"a>\n": {}}}, "/properties/a>\n"),
        ({"properties": {"a": {"$ref": "#/properties/b"}, "b": {}}}, "/properties/a"),
    ],
)
def test_a_schema_of_arguments_that_are_apart_is_enforced_whole_or_refused(
    llm: LLM, more: dict[str, Any], pointer: str
) -> None:
    schema = {"type": "object", "properties": {"a": {}}, **more}
    tools = tools_of([{"type": "function", "function": {"name": "f", "parameters": schema}}])
    with pytest.raises(GrammarError, match="f: schema at") as refused:
        Calls(APART[0], tools, True, True).state(llm._grammars, None)
    assert refused.value.pointer == pointer


def test_the_template_of_qwen3_coder_shows_calls_as_they_are_written(llm: LLM) -> None:
    form = format_of(QWEN3_CODER.decode())
    for given in ARGUMENTS[:3]:
        arguments = {key: value for key, (_, value) in given.items()}
        call = {"type": "function", "function": {"name": "write", "arguments": arguments}}
        turn = {"role": "assistant", "content": "", "tool_calls": [call]}
        text = llm.render_chat([*HI, turn], tools=[WRITE], chat_template=QWEN3_CODER.decode())
        assert written(form, "write", given) in text


@pytest.mark.parametrize("form", EVERY, ids=NAMES)
def test_a_thought_of_calls_is_none_and_calls_behind_it_are_bound(llm: LLM, form: Format) -> None:
    calls = Calls(form, TOOLS, required=False, parallel=True)
    wrong = ONE[form.signs].replace("add", "sub")
    for begun in (True, False):
        thought = ("" if begun else "<think>") + f"I think {wrong} </think>\n\n"
        reasoning = Reasoning(MARKS[0], begun)
        state = calls.state(llm._grammars, reasoning)
        assert accepts(llm, state, thought + ONE[form.signs])
        assert not accepts(llm, calls.state(llm._grammars, reasoning), thought + wrong)
    assert accepts(llm, calls.state(llm._grammars, Reasoning(MARKS[0], False)), ONE[form.signs])
    assert not accepts(llm, calls.state(llm._grammars, Reasoning(MARKS[0], False)), wrong)


@pytest.mark.parametrize("form", EVERY, ids=NAMES)
def test_an_answer_that_is_bound_may_quote_marks(llm: LLM, form: Format) -> None:
    schema = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
    calls = Calls(form, TOOLS, required=False, parallel=True, otherwise=Constraint("schema", schema))
    quoted = json.dumps({"name": f"{form.before or 'add'} {ONE[form.signs]}"})
    for text in (quoted, '{"name": "add"}', '{"name": "add", "x": 1}'):
        assert accepts(llm, calls.state(llm._grammars, None), text, special=False)
        for seed in range(20):
            assert parsed(calls, pieces_of(text, seed)) == (text, [])
    assert accepts(llm, calls.state(llm._grammars, None), ONE[form.signs])
    for seed in range(20):
        text, found = parsed(calls, pieces_of(ONE[form.signs], seed))
        assert (text, found) == ("", [{"name": "add", "arguments": '{"a": 1}'}])


@pytest.mark.parametrize("form", EVERY, ids=NAMES)
def test_the_beginning_of_a_mark_is_no_text_where_the_reply_was_cut(form: Format) -> None:
    calls = Calls(form, TOOLS, required=False, parallel=True)
    before = "" if form.anchored else "Well. "
    for size in range(1, len(calls.marks[0])):
        for seed in range(4):
            parser, text = calls.parser(1), ""
            for piece in pieces_of(before + calls.marks[0][:size], seed):
                text += parser.feed(piece)[0]
            assert text + parser.feed("", last=True, cut=True)[0] == before.rstrip()
    parser = calls.parser(1)
    assert parser.feed("a < b", last=True, cut=True)[0] == "a < b"


@pytest.mark.parametrize(
    "reason, stop, text",
    [
        ("length", None, "Well"),
        ("stop", "l_call", "Well"),
        ("stop", IM_END, "Well <too"),
        ("stop", None, "Well <too"),
    ],
)
def test_what_cuts_a_mark_leaks_none_of_it(reason: str, stop: int | str | None, text: str) -> None:
    calls = Calls(next(form for form in FORMATS if form.name == "hermes"), TOOLS, False, True)
    parting = Parting(MARKS[0], False)
    whole = Reply(parting, calls.parser(1)).feed("Well <too", reason, stop)
    reply = Reply(parting, calls.parser(1))
    pieces = [reply.feed(c, None, None)[1] for c in "Well <too"] + [reply.feed("", reason, stop)[1]]
    assert whole == ("", text, []) and "".join(pieces) == text


@pytest.mark.parametrize("form", EVERY, ids=NAMES)
def test_arguments_may_hold_escapes_and_marks(llm: LLM, form: Format) -> None:
    tool = {"type": "object", "properties": {"x": {"type": "array", "items": {"type": "string"}}}}
    tools = tools_of([{"type": "function", "function": {"name": "f", "parameters": tool}}])
    calls = Calls(form, tools, required=False, parallel=True)
    value = '["</tool_call>\\n<tool_call>", "\\t{😀\\"}]", "</parameter>"]'
    call = f'{{"name": "f", "{form.arguments}": {{"x": {value}}}}}'
    apart = form.parameter.format(key="x", value=value)
    text = form.call.format(call=call, name="f", arguments=f'{{"x": {value}}}', parameters=apart)
    opened = " [" if form.after == "]" else ""
    text = f"{form.before}{opened}{text}{form.between}{text}{form.after}"
    assert accepts(llm, calls.state(llm._grammars, None), text)
    expected = {"x": ["</tool_call>\n<tool_call>", '\t{😀"}]', "</parameter>"]}
    for seed in range(40):
        before, found = parsed(calls, pieces_of(text, seed))
        assert before == "" and [json.loads(one["arguments"]) for one in found] == [expected] * 2
        escaped = text.replace("\\t{😀", "\\u0009\\u007b\\ud83d\\ude00")  # which the grammar has no use for
        assert [json.loads(one["arguments"]) for one in parsed(calls, pieces_of(escaped, seed))[1]] == [
            expected
        ] * 2


def test_marks_that_are_control_tokens_have_no_meaning_before_calls() -> None:
    calls = Calls(EVERY[2], TOOLS, required=False, parallel=True)
    assert calls.marks == ["[TOOL_CALLS]"]
    parser, text = calls.parser(1, ["[TOOL_CALLS]", "[ARGS]"]), ""
    for c in "a [ARGS]b [ARG [TOOL_CALLS]add":
        text += parser.feed(c)[0]
    assert text == "a b [ARG"


def test_arguments_are_valid_json_at_every_cut_that_is_whole(llm: LLM) -> None:
    calls = Calls(GENERIC, TOOLS, required=True, parallel=False)
    parser, arguments = calls.parser(1), ""
    for c in ONE[()]:
        arguments += "".join(delta.arguments for delta in parser.feed(c)[1])
        assert '{"a": 1}'.startswith(arguments)
    assert json.loads(arguments) == {"a": 1} and parser.whole == parser.count == 1


def test_ids_are_of_nine_letters_and_digits_and_depend_on_the_seed() -> None:
    calls = Calls(GENERIC, TOOLS, required=True, parallel=True)
    ids = []
    for seed in (1, 1, 2):
        deltas = calls.parser(seed).feed(TWO[()], last=True)[1]
        ids.append([delta.id for delta in deltas if delta.id])
    assert ids[0] == ids[1] != ids[2] and len(set(ids[0])) == 2
    assert all(len(one) == 9 and one.isalnum() for one in ids[0])


def test_the_family_is_known_by_its_template() -> None:
    assert format_of("... [TOOL_CALLS] ...").name == "mistral"
    assert format_of('{{ "<tool_call>" }}').name == "hermes"
    assert format_of("<|start_header_id|> {'name': ..} \"parameters\"").name == "llama3"
    assert format_of("nothing of tools") is GENERIC
    assert format_of(QWEN3_CODER.decode()).name == "qwen3_coder"
    assert format_of("<tool_call>{{ f.name }}\n<arg_key>{{ k }}</arg_key>\n<arg_value>").name == "glm4"
    with pytest.raises(ValueError, match="<function="):
        format_of("<tool_call>\n<function=name>{}")
    with pytest.raises(ValueError, match="<arg_key>"):
        format_of("<tool_call>{{ f.name }}<arg_key>{{ k }}</arg_key><arg_value>")
    assert knows_tools("{% if tools %}") and not knows_tools("{{ toolset }}")


TEMPLATES = Path(__file__).parent / "data" / "templates"


@pytest.mark.parametrize(
    "name",
    "apertus command_r7b deepseek_r1 gemma4 glm47_flash gpt_oss hy3 kimi_k2 laguna minimax_m2 seed_oss "
    "solar_open".split(),
)
def test_a_family_that_writes_calls_in_a_way_of_its_own_is_refused_by_it(name: str) -> None:
    with pytest.raises(
        ValueError, match="the model's template writes calls with '<.*', which is not supported"
    ):
        format_of((TEMPLATES / f"{name}.jinja").read_text())


@pytest.mark.parametrize(
    "tool, sentence",
    [
        ({"type": "web_search"}, r"tools\[0\]: only tools of type function"),
        ({"type": "function", "function": {"name": "a b"}}, r"tools\[0\].function.name"),
        (
            {"type": "function", "function": {"name": "a", "parameters": []}},
            "parameters must be a JSON schema",
        ),
        ({"type": "function", "function": {"name": "a", "parameters": {"type": "array"}}}, "of type object"),
    ],
)
def test_a_tool_that_is_none_is_refused(tool: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        tools_of([tool])


def test_two_tools_cannot_have_one_name() -> None:
    with pytest.raises(ValueError, match="two functions add"):
        tools_of([ADD, ADD])


def test_a_tools_schema_that_cannot_be_enforced_is_refused_by_its_name_and_place(llm: LLM) -> None:
    schema = {"type": "object", "properties": {"x": {"not": {}}}}
    tools = tools_of([{"type": "function", "function": {"name": "f", "parameters": schema}}])
    for required in (True, False):
        with pytest.raises(GrammarError, match="f: schema at /properties/x/not"):
            Calls(GENERIC, tools, required, True).state(llm._grammars, None)


def test_history_is_shown_to_templates_as_they_want_it() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    assert with_objects(message)["tool_calls"][0]["function"]["arguments"] == {"a": 1}
    broken = {**call, "function": {"name": "add", "arguments": "{"}}
    with pytest.raises(ValueError, match="no JSON"):
        with_objects({**message, "tool_calls": [broken]})
    told = without_tools([*HI, with_objects(message), {"role": "tool", "content": "2"}], [WEATHER, ADD])
    assert [one["role"] for one in told] == ["system", "user", "assistant", "user"]
    assert (
        '"get_weather"' in told[0]["content"]
        and told[2]["content"] == '{"name": "add", "arguments": {"a": 1}}'
    )
    assert "2" in told[3]["content"]


# ----------------------------------------------------------------------------------------------------------
# Over the server


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    template = (
        b"{% if tools %}{{ tools | tojson }}<tool_call></tool_call>{% endif %}{% for m in messages %}"
        b"{{ m.role }}:{{ m.content }}{{ m.tool_calls | tojson if m.tool_calls }}<|im_end|>{% endfor %}"
        b"assistant:"
    )
    path = write_model(tmp_path_factory.mktemp("calls"), template=template, control=CONTROL)
    with running_server(path, threads=1) as running:
        yield running


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "add"}}])
def test_a_call_that_is_required_comes(served: Server, choice: Any) -> None:
    client = Client(served.url)
    for seed in range(8):
        body = {
            "messages": HI,
            "tools": [WEATHER, ADD],
            "tool_choice": choice,
            "seed": seed,
            "max_tokens": 1500,
        }
        (one,) = client.answer(CHAT, {**body, "parallel_tool_calls": False})["choices"]
        assert one["finish_reason"] == "tool_calls" and one["message"]["content"] is None
        (call,) = one["message"]["tool_calls"]
        arguments = json.loads(call["function"]["arguments"])
        assert call["function"]["name"] == ("add" if isinstance(choice, dict) else call["function"]["name"])
        assert set(arguments) <= {"city", "unit", "a"} and call["type"] == "function"
        events = client.events(CHAT, {**body, "parallel_tool_calls": False})
        deltas = [d for e in events for d in e["choices"][0]["delta"].get("tool_calls", ())]
        for event in events:
            indices = [d["index"] for d in event["choices"][0]["delta"].get("tool_calls", ())]
            assert len(indices) == len(set(indices)), "OpenAI's client takes one a call from a chunk"
        assert deltas[0]["function"]["name"] == call["function"]["name"] and deltas[0]["id"] == call["id"]
        assert "".join(d["function"]["arguments"] for d in deltas) == call["function"]["arguments"]
        assert not any(e["choices"][0]["delta"].get("content") for e in events)
        assert events[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_calls_of_qwen3_coder_over_http(tmp_path: Path) -> None:
    properties = {
        "unit": {"enum": ["°C", '"F"']},
        "a": {"type": "boolean"},
        "b": {"type": ["integer", "null"]},
    }
    schema = {"type": "object", "properties": properties, "required": ["unit", "a"]}
    tool = {"type": "function", "function": {"name": "measure", "parameters": schema}}
    with running_server(write_model(tmp_path, template=QWEN3_CODER), threads=1) as running:
        client, keys = Client(running.url), set[str]()
        for seed in range(6):
            body = {"messages": HI, "tools": [tool, WRITE], "tool_choice": named("measure"), "seed": seed}
            (one,) = client.answer(CHAT, {**body, "max_tokens": 400})["choices"]
            events = client.events(CHAT, {**body, "max_tokens": 400})
            deltas = [d for e in events for d in e["choices"][0]["delta"].get("tool_calls", ())]
            (call,) = one["message"]["tool_calls"]
            assert "".join(d["function"]["arguments"] for d in deltas) == call["function"]["arguments"]
            assert deltas[0]["id"] == call["id"] and one["message"]["content"] is None
            assert one["finish_reason"] == events[-1]["choices"][0]["finish_reason"] == "tool_calls"
            arguments = json.loads(call["function"]["arguments"])
            assert arguments["unit"] in ("°C", '"F"') and isinstance(arguments["a"], bool)
            assert arguments.keys() <= properties.keys() and type(arguments.get("b")) in (int, type(None))
            keys |= arguments.keys()
            turn = {"role": "assistant", "content": "", "tool_calls": [call]}
            client.answer(CHAT, {"messages": [*HI, turn, *HI], "tools": [tool], "max_tokens": 1})
            (cut,) = client.answer(CHAT, {**body, "max_tokens": 60})["choices"]
            assert cut["finish_reason"] == "length"
            sent = cut["message"]["tool_calls"][0]["function"]["arguments"]
            assert sent and call["function"]["arguments"].startswith(sent)
    assert keys == properties.keys()


@pytest.mark.parametrize("choice", ["required", "auto"])
@pytest.mark.parametrize("allowed", ["add", "get_weather"])
def test_calls_whose_marks_are_control_tokens_are_found(tmp_path: Path, choice: str, allowed: str) -> None:
    template = (
        b"{% if tools %}[TOOL_CALLS][ARGS]{% endif %}{% for m in messages %}{{ m.content }}{% endfor %}"
    )
    with running_server(write_model(tmp_path, template=template, control=CONTROL), threads=1) as running:
        client, mark = Client(running.url), IM_END + 1
        body = {"messages": HI, "tools": [WEATHER, ADD], "tool_choice": some_of(choice, allowed), "seed": 1}
        body |= {"max_tokens": 400, "parallel_tool_calls": False, "logit_bias": {str(mark): 100}}
        (one,) = client.answer(CHAT, body)["choices"]
        (call,) = one["message"]["tool_calls"]
        assert call["function"]["name"] == allowed and json.loads(call["function"]["arguments"])
        assert one["finish_reason"] == "tool_calls" and one["message"]["content"] is None
        events = client.events(CHAT, body)
        deltas = [d for e in events for d in e["choices"][0]["delta"].get("tool_calls", ())]
        assert "".join(d["function"]["arguments"] for d in deltas) == call["function"]["arguments"]
        bias = {str(mark): -100, str(mark + 1): 100}
        body |= {"tool_choice": "auto", "logit_bias": bias, "max_tokens": 8}
        (one,) = client.answer(CHAT, body)["choices"]
        assert one["message"]["content"] == "" and one["finish_reason"] == "length"


def test_a_call_that_is_cut_is_no_call(served: Server) -> None:
    client = Client(served.url)
    body = {"messages": HI, "tools": [ADD], "tool_choice": "required", "seed": 1, "max_tokens": 45}
    (one,) = client.answer(CHAT, body)["choices"]
    assert one["finish_reason"] == "length"
    assert client.events(CHAT, body)[-1]["choices"][0]["finish_reason"] == "length"


def test_auto_lets_the_model_answer(served: Server) -> None:
    client = Client(served.url)
    body = {"messages": HI, "tools": [ADD], "seed": 3, "max_tokens": 30, "ignore_eos": True}
    (one,) = client.answer(CHAT, body)["choices"]
    assert one["message"]["content"] and "tool_calls" not in one["message"]
    assert one["finish_reason"] == "length"


def test_none_shows_no_tools(served: Server) -> None:
    client = Client(served.url)
    lengths = {
        choice: client.answer(CHAT, {"messages": HI, "tools": [ADD], "tool_choice": choice, "max_tokens": 1})[
            "usage"
        ]
        for choice in ("auto", "none")
    }
    assert lengths["none"]["prompt_tokens"] < lengths["auto"]["prompt_tokens"]


def test_allowed_tools_are_those_that_may_be_called_of_those_that_are_shown(served: Server) -> None:
    client = Client(served.url)
    body = {"messages": HI, "tools": [WEATHER, ADD], "max_tokens": 1500, "parallel_tool_calls": False}
    shown = client.answer(CHAT, {**body, "max_tokens": 1})["usage"]["prompt_tokens"]
    for names in (("add",), ("get_weather",), ("get_weather", "add")):
        for seed in range(4):
            answer = client.answer(CHAT, {**body, "tool_choice": some_of("required", *names), "seed": seed})
            (call,) = answer["choices"][0]["message"]["tool_calls"]
            assert call["function"]["name"] in names
            assert answer["usage"]["prompt_tokens"] == shown, "what was computed for all tools is of use"
    (one,) = client.answer(CHAT, {**body, "tool_choice": some_of("auto", "add"), "max_tokens": 9})["choices"]
    assert one["message"]["content"] and "tool_calls" not in one["message"]


def test_a_schema_binds_the_answer_beside_calls(served: Server) -> None:
    schema = {"type": "object", "properties": {"x": {"type": "boolean"}}, "required": ["x"]}
    schema["additionalProperties"] = False
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    seen = set()
    for seed in range(30):
        body = {"messages": HI, "tools": [ADD], "response_format": form, "seed": seed, "max_tokens": 300}
        (one,) = Client(served.url).answer(CHAT, {**body, "logit_bias": {str(ord("<")): 3}})["choices"]
        seen.add(one["finish_reason"])
        if one["finish_reason"] == "stop":
            assert set(json.loads(one["message"]["content"])) == {"x"}
    assert {"stop", "tool_calls"} <= seen


@pytest.mark.parametrize(
    "more, param",
    [
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [ADD], "tool_choice": {"type": "function", "function": {"name": "sub"}}}, "tool_choice"),
        ({"tools": [{"type": "mcp"}]}, "tools"),
        ({"tools": [ADD], "tool_choice": "sometimes"}, "tool_choice"),
        ({"tools": [ADD], "tool_choice": {"type": "allowed"}}, "tool_choice"),
        ({"tools": [ADD], "tool_choice": {"type": "allowed_tools"}}, "tool_choice.allowed_tools"),
        (
            {"tools": [ADD], "tool_choice": some_of("some", "add")},
            "tool_choice.allowed_tools.mode",
        ),
        ({"tools": [ADD], "tool_choice": some_of("auto")}, "tool_choice.allowed_tools.tools"),
        (
            {"tools": [ADD], "tool_choice": some_of("auto", "add", "sub")},
            "tool_choice.allowed_tools.tools[1].function.name",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(served: Server, more: dict[str, Any], param: str) -> None:
    status, answer = Client(served.url).post(CHAT, {"messages": HI, **more})
    assert status == 400 and answer["error"]["param"] == param
