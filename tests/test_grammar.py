"""Texts that a schema, an expression or a grammar binds: what comes is what was asked for, and what cannot
be bound is refused by its place."""

from __future__ import annotations

import json
import random
import re
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from common import IM_END
from served import write_model

pytest.importorskip("llguidance")

from pyllm import LLM, GrammarError, LLMError, SamplingParams, grammar  # noqa: E402
from pyllm.chat import MARKS
from pyllm.grammar import Constraint, Grammars, Reasoning, unanchored  # noqa: E402

CITY = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 8, "pattern": "^[a-z]+$"},
        "people": {"type": "integer", "minimum": 3, "maximum": 40},
        "tags": {"type": "array", "items": {"enum": ["big", "old"]}, "minItems": 1, "maxItems": 3},
    },
    "required": ["city", "people", "tags"],
    "additionalProperties": False,
}
THINKS = (
    b"{% for m in messages %}<|im_start|>{{ m.role }}:{{ m.content }}<|im_end|>{% endfor %}"
    b"<|im_start|>assistant:{% if enable_thinking %}<think>{% endif %}"
)


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    with LLM(write_model(tmp_path_factory.mktemp("grammar"), template=THINKS), threads=1) as llm:
        yield llm


@pytest.mark.parametrize("temperature", [0, 1, 3])
def test_a_text_that_ends_is_what_its_schema_allows(llm: LLM, temperature: float) -> None:
    for seed in range(10):
        done = llm.generate("x", max_tokens=400, temperature=temperature, seed=seed, schema=CITY)
        assert done.finish_reason == "stop"
        value = json.loads(done.text)
        assert list(value) == ["city", "people", "tags"]
        assert re.fullmatch("[a-z]{1,8}", value["city"]) and 3 <= value["people"] <= 40
        assert 1 <= len(value["tags"]) <= 3 and set(value["tags"]) <= {"big", "old"}


def test_the_same_with_drafts_and_without_in_a_batch_and_alone(llm: LLM) -> None:
    params = dict(max_tokens=300, temperature=1.0, schema=CITY, logprobs=1)
    together = llm.generate(["a", "b", "c", "d"], seed=5, **params)
    alone = [llm.generate(prompt, seed=5 + i, **params) for i, prompt in enumerate("abcd")]
    assert together == alone
    assert any(one.accepted_tokens for one in alone), "what the schema leaves no choice of was guessed"
    with LLM(llm.path, threads=1, draft=False) as plain:
        undrafted = [plain.generate(prompt, seed=5 + i, **params) for i, prompt in enumerate("abcd")]
    assert [one.tokens for one in undrafted] == [one.tokens for one in alone]
    assert [one.masked_mass for one in undrafted] == [one.masked_mass for one in alone]


@pytest.mark.parametrize("pattern", [r"[a-c]{3}-\d\d", r"^(yes|no)$", r"a\$", r"x/y", r"é+z", r"^\^$"])
def test_a_text_is_what_its_expression_matches(llm: LLM, pattern: str) -> None:
    for seed in range(5):
        done = llm.generate("x", max_tokens=60, seed=seed, regex=pattern)
        assert done.finish_reason in ("stop", "length")
        if done.finish_reason == "stop":
            assert re.fullmatch(pattern.replace(r"^\^$", r"\^"), done.text), done.text


def test_a_text_is_one_of_its_choices(llm: LLM) -> None:
    choices = ["yes", "no", 'quo"te', "new\nline", "grüße 😀"]
    texts = {llm.generate("x", seed=seed, temperature=5, top_p=1, choice=choices).text for seed in range(40)}
    assert texts <= set(choices) and len(texts) >= 3


@pytest.mark.parametrize(
    "text",
    [
        'start: "(" NUMBER ("+" NUMBER)* ")"\nNUMBER: /[0-9]{1,2}/\n',
        'root ::= "(" num ("+" num)* ")"\nnum ::= [0-9] [0-9]?\n',
    ],
)
def test_a_text_is_what_its_grammar_makes(llm: LLM, text: str) -> None:
    for seed in range(5):
        done = llm.generate("x", max_tokens=200, seed=seed, grammar=text, logit_bias={ord(")"): 3})
        assert done.finish_reason == "stop"
        assert re.fullmatch(r"\(\d\d?(\+\d\d?)*\)", done.text)


def test_the_probability_that_a_mask_takes_away_is_told(llm: LLM) -> None:
    done = llm.generate("x", max_tokens=30, seed=1, choice=["yes", "no"])
    assert done.masked_mass is not None and len(done.masked_mass) == len(done.tokens)
    assert all(0 <= mass <= 1 for mass in done.masked_mass) and done.masked_mass[0] > 0.5
    row = llm.logits("x")[-1].astype(float)
    likely = np.exp(row - row.max()) / np.exp(row - row.max()).sum()
    assert done.masked_mass[0] == pytest.approx(1 - likely[ord("y")] - likely[ord("n")], abs=1e-5)
    assert llm.generate("x", max_tokens=3).masked_mass is None


def test_min_tokens_and_a_grammar_that_is_complete(llm: LLM) -> None:
    assert llm.generate("x", choice=["yes"], min_tokens=10, max_tokens=20).text == "yes"
    done = llm.generate("x", regex="a*", min_tokens=5, max_tokens=20, logit_bias={IM_END: 100}, temperature=0)
    assert done.text == "aaaaa"


def test_max_tokens_cuts_what_a_schema_allows(llm: LLM) -> None:
    done = llm.generate("x", max_tokens=5, seed=1, schema=CITY)
    assert done.finish_reason == "length" and done.text == '{"cit' or done.text.startswith("{")


# ----------------------------------------------------------------------------------------------------------
# Refusals


@pytest.mark.parametrize(
    "schema, pointer",
    [
        ({"type": "array", "uniqueItems": True}, "/uniqueItems"),
        ({"properties": {"a": {"not": {"type": "string"}}}}, "/properties/a/not"),
        ({"properties": {"a/b~c": {"type": "string", "pattern": "(?=a)b"}}}, "/properties/a~1b~0c/pattern"),
        ({"$defs": {"x": {"contains": {}}}, "items": {"$ref": "#/$defs/x"}}, "/$defs/x/contains"),
        ({"anyOf": [{"type": "string"}, {"type": "strin"}]}, "/anyOf/1/type"),
        ({"items": {"if": {"type": "string"}, "then": {"maxLength": 1}}}, "/items/if"),
        ({"$ref": "http://127.0.0.1/schema"}, "/$ref"),
        ({"prefixItems": [{}, {"type": "string", "format": "nonsense"}]}, "/prefixItems/1/format"),
        ({"x-guidance": {"lenient": True}, "not": {}}, "/x-guidance"),
        ({"properties": {"a": {"x-guidance": {"lenient": True}}}}, "/properties/a/x-guidance"),
        ({"unevaluatedProperties": False}, "/unevaluatedProperties"),
    ],
)
def test_a_schema_that_cannot_be_enforced_is_refused_by_its_place(
    llm: LLM, schema: dict[str, Any], pointer: str
) -> None:
    with pytest.raises(GrammarError, match=re.escape(f"schema at {pointer}")) as refused:
        llm.generate("x", schema=schema)
    assert refused.value.pointer == pointer


@pytest.mark.parametrize(
    "params, sentence",
    [
        (dict(regex="("), "regex"),
        (dict(grammar="start: nothing"), "nothing"),
        (dict(grammar="root ::= ("), "grammar"),
    ],
)
def test_a_grammar_that_is_wrong_is_refused(llm: LLM, params: dict[str, Any], sentence: str) -> None:
    with pytest.raises(GrammarError, match=sentence):
        llm.generate("x", **params)


@pytest.mark.parametrize(
    "params, error",
    [
        (dict(schema="{}"), TypeError),
        (dict(schema=[1]), TypeError),
        (dict(regex=5), TypeError),
        (dict(regex=""), TypeError),
        (dict(choice=[]), TypeError),
        (dict(choice="yes"), TypeError),
        (dict(choice=["a", ""]), TypeError),
        (dict(grammar=b"start: x"), TypeError),
        (dict(regex="a", choice=["a"]), ValueError),
    ],
)
def test_parameters_that_make_no_sense_are_refused(params: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error, match=next(iter(params))):
        SamplingParams(**params)


@pytest.mark.parametrize("pattern", [r"(x+x+)+y", r"(.*a){30}", r"a{1,100000}", r"(a?){5000}a{5000}"])
def test_a_hostile_expression_ends_in_a_result_or_an_error(llm: LLM, pattern: str) -> None:
    try:
        done = llm.generate("x", regex=pattern, max_tokens=20, seed=1)
    except (GrammarError, LLMError):
        return
    assert done.tokens


def test_a_grammar_that_grows_without_end_fails_its_own_request(llm: LLM, monkeypatch: Any) -> None:
    monkeypatch.setitem(grammar.LIMITS, "step_lexer_fuel", 20)
    with pytest.raises((GrammarError, LLMError), match="grammar|fuel|too"):
        llm.generate("x", regex=r"(.|\n)*[a-m](.|\n){1,50}x", max_tokens=100, seed=1)
    assert llm.generate("x", max_tokens=2, seed=1)


# ----------------------------------------------------------------------------------------------------------
# Reasoning


def spoken(text: str) -> dict[int, float]:
    """A bias that makes a model of bytes say nothing but what is in a text."""
    said = {*text.encode(), IM_END}
    return {i: -100.0 for i in range(259) if i not in said}


def test_a_schema_binds_the_answer_and_not_the_reasoning(llm: LLM) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    kwargs = dict(template_kwargs={"enable_thinking": True}, reasoning="apart", max_tokens=300)
    grammars = Grammars(llm._open())
    lark = grammars.compile(Constraint("choice", ["yes"]), Reasoning(MARKS[0], True))
    state = grammars.state(lark)
    for token in b"hm, 5 < 6 </thin </think>\n\nye":
        mask = state.mask()
        assert mask[token // 32] >> token % 32 & 1
        state.accept(token)
    assert not state.complete
    state.accept(ord("s"))
    assert state.complete
    bias = spoken("</think>yes")
    replies = [llm.chat(messages, seed=s, choice=["yes"], logit_bias=bias, **kwargs) for s in range(20)]
    ended = [reply for reply in replies if reply.finish_reason == "stop"]
    assert all(reply.text == "yes" for reply in ended)
    assert any(reply.reasoning_content for reply in replies)


def test_a_model_that_need_not_reason_is_bound_from_its_first_token(llm: LLM) -> None:
    state = llm._grammars.state(
        llm._grammars.compile(Constraint("choice", ["yes"]), Reasoning(MARKS[0], False))
    )
    mask = state.mask()
    allowed = {token for token in range(259) if mask[token // 32] >> token % 32 & 1}
    assert allowed == {ord("y"), ord("<")}


def test_anchors_at_the_ends_say_nothing_new() -> None:
    given = ("^a$", "a", r"a\$", r"a\\$", "^", "$")
    assert [unanchored(pattern) for pattern in given] == ["a", "a", r"a\$", r"a\\", "", ""]


# ----------------------------------------------------------------------------------------------------------
# Schemas at random


def random_schema(rng: random.Random, depth: int = 0) -> dict[str, Any]:
    """A schema of the supported keywords, that something can be."""
    kinds = ["string", "integer", "number", "boolean", "null", "enum", "const"]
    kind = rng.choice(kinds + ["object", "array", "anyOf"] * (depth < 3))
    if kind == "object":
        names = rng.sample(["a", "b", "c c", 'd"', "é"], rng.randint(1, 4))
        properties = {name: random_schema(rng, depth + 1) for name in names}
        required = rng.sample(names, rng.randint(0, len(names)))
        schema = {"type": "object", "properties": properties, "required": required}
        return {**schema, "additionalProperties": False}
    if kind == "array":
        low = rng.randint(0, 2)
        return {"type": "array", "items": random_schema(rng, depth + 1), "minItems": low, "maxItems": low + 2}
    if kind == "anyOf":
        return {"anyOf": [random_schema(rng, depth + 1) for _ in range(2)]}
    if kind == "string":
        low = rng.randint(0, 3)
        lengths = {"minLength": low, "maxLength": low + 4}
        more = rng.choice([{}, {"pattern": "^[a-f]{2,5}$"}, {"format": "date"}, lengths])
        return {"type": "string", "maxLength": 12, **more}
    if kind == "integer":
        low = rng.randint(-50, 50)
        return {"type": "integer", "minimum": low, "maximum": low + rng.randint(0, 100)}
    if kind == "number":
        return {"type": "number", "minimum": -1, "maximum": 1}
    if kind == "enum":
        return {"enum": rng.sample(["x", 1, None, True, [1, "a"], {"k": "v"}], 3)}
    return {"const": rng.choice(["c", 5, [2]])} if kind == "const" else {"type": kind}


def test_500_schemas_at_random_are_enforced_whole(llm: LLM) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    rng = random.Random(1)
    schemas = [random_schema(rng) for _ in range(500)]
    close = {ord(c): 4.0 for c in '"}]'}
    shared = dict(max_tokens=400, logit_bias=close)
    params = [SamplingParams(seed=i, schema=schema, **shared) for i, schema in enumerate(schemas)]
    done = llm.generate(["x"] * len(schemas), params)
    ended = 0
    for schema, one in zip(schemas, done, strict=True):
        if one.finish_reason == "stop":
            ended += 1
            jsonschema.Draft202012Validator(schema).validate(json.loads(one.text))
    assert ended >= 480


# ----------------------------------------------------------------------------------------------------------
# What llguidance takes, and does not enforce


def takes(llm: LLM, schema: Any, text: str) -> bool:
    """Whether a schema lets a text through."""
    state = llm._grammars.state(llm._grammars.compile(Constraint("schema", schema)))
    for byte in text.encode():
        if state.complete or not state.mask()[byte // 32] >> (byte % 32) & 1:
            return False
        state.accept(byte)
    return state.complete or bool(state.mask()[IM_END // 32] >> (IM_END % 32) & 1)


@pytest.mark.parametrize(
    "schema, pointer",
    [
        ({"const": 2**53}, "/const"),
        ({"const": -(2**63)}, "/const"),
        ({"enum": [1, {"a": [1e300]}]}, "/enum"),
        ({"items": {"minimum": 2**53}}, "/items/minimum"),
        ({"exclusiveMaximum": -(2**53)}, "/exclusiveMaximum"),
        ({"multipleOf": 2**60}, "/multipleOf"),
        ({"minProperties": 2}, "/minProperties"),
        (
            {"patternProperties": {"^a": {}}, "additionalProperties": False, "minProperties": 2},
            "/minProperties",
        ),
        ({"$ref": "#/x/y", "x": {"y": {"minProperties": 2}}}, "/x/y/minProperties"),
        ({"pattern": "^[^a&&b]$"}, "/pattern"),
        ({"pattern": "[^a-z--c]"}, "/pattern"),
        ({"pattern": r"[^\]~~a]"}, "/pattern"),
        ({"pattern": "[[:alpha:]]"}, "/pattern"),
        ({"pattern": "[^]]"}, "/pattern"),
        ({"patternProperties": {"[^a&&b/]": {}}}, "/patternProperties/[^a&&b~1]"),
    ],
)
def test_what_would_be_enforced_in_part_is_refused_by_its_place(llm: LLM, schema: Any, pointer: str) -> None:
    with pytest.raises(GrammarError, match=re.escape(f"schema at {pointer}: ")) as refused:
        llm.generate("x", schema=schema)
    assert refused.value.pointer == pointer


@pytest.mark.parametrize(
    "schema, right, wrong",
    [
        ({"maximum": 2**63 - 1, "type": "integer"}, ["5", "-5"], [str(2**63)]),
        ({"minimum": -(2**63), "type": "integer"}, ["5", "-5"], [str(-(2**64))]),
        ({"minProperties": 1}, ['{"a": 1}'], ["{}"]),
        ({"required": ["a"], "minProperties": 2}, ['{"a": 1, "b": 1}'], ['{"a": 1}']),
        ({"pattern": r"^[a\[&~-]\[-\]&&$", "type": "string"}, ['"-[-]&&"'], ['"x[-]&&"']),
        ({"format": "date"}, ['"2024-02-29"', '"2000-02-29"'], ['"2023-02-29"', '"1900-02-29"']),
        ({"format": "date-time"}, ['"2024-02-29T00:00:00Z"'], ['"2023-02-29T00:00:00Z"']),
        ({"format": "date-time"}, ['"2024-01-01T00:00:59Z"'], ['"2024-01-01T00:00:60Z"']),
        ({"format": "time", "allOf": [{"maxLength": 9}]}, ['"10:00:00Z"'], ['"10:00:60Z"', '"10:00:00.5Z"']),
    ],
)  # fmt: skip
def test_what_can_be_narrowed_is_enforced(llm: LLM, schema: Any, right: list[str], wrong: list[str]) -> None:
    assert all(takes(llm, schema, text) for text in right)
    assert not any(takes(llm, schema, text) for text in wrong)


def test_a_name_in_disguise_is_not_let_through(llm: LLM) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    assert takes(llm, schema, r'{"a": "x", "b": "\\u\\\\u\n", "c\\u": 1}')
    assert not takes(llm, schema, r'{"\u0061": 1}')
    assert not takes(llm, schema, r'{"b": "\\\u0061"}')
    assert takes(llm, {"const": "\x01"}, r'"\u0001"'), "which cannot be written otherwise"


def test_reasoning_may_have_escapes(llm: LLM) -> None:
    grammars = llm._grammars
    lark = grammars.compile(Constraint("schema", {"type": "object"}), Reasoning(MARKS[0], True))
    state = grammars.state(lark)
    for token in rb'{"\u0061": \u</think> {"b\\':
        assert state.mask()[token // 32] >> (token % 32) & 1
        state.accept(token)
    assert state.mask()[ord("u") // 32] >> (ord("u") % 32) & 1
    state.accept(ord("\\"))
    assert not state.mask()[ord("u") // 32] >> (ord("u") % 32) & 1


@pytest.mark.parametrize("keyword", ["items", "allOf", "properties"])
def test_a_long_chain_of_references_does_not_end_the_process(llm: LLM, keyword: str) -> None:
    def link(i: int) -> dict[str, Any]:
        ref = {"$ref": f"#/$defs/{i + 1}"}
        return {keyword: {"a": ref} if keyword == "properties" else [ref, {}] if keyword == "allOf" else ref}

    names = {**{str(i): link(i) for i in range(2500)}, "2500": {"type": "null"}}
    try:
        assert llm.generate("x", schema={"$ref": "#/$defs/0", "$defs": names}, max_tokens=1).tokens
    except GrammarError as error:
        assert "too large" in str(error)


def test_a_schema_that_is_nested_too_deeply_is_refused(llm: LLM) -> None:
    schema: dict[str, Any] = {}
    for _ in range(20_000):
        schema = {"items": schema}
    with pytest.raises(GrammarError, match="deep"):
        llm.generate("x", schema=schema)
    deep = json.loads('{"items":' * 300 + "{}" + "}" * 300)
    with pytest.raises(GrammarError, match="recursion"):
        llm.generate("x", schema=deep)


@pytest.mark.parametrize("schema", [False, {"anyOf": [{"$ref": "#"}]}, {"$ref": "#"}])
def test_a_schema_that_nothing_can_be_is_refused(llm: LLM, schema: Any) -> None:
    with pytest.raises(GrammarError, match="nothing"):
        llm.generate("x", schema=schema)


# ----------------------------------------------------------------------------------------------------------
# Compiled grammars


def test_a_grammar_is_compiled_once(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    start, compile_ = Grammars._start, Grammars._compile
    monkeypatch.setattr(Grammars, "_start", lambda self, lark: made.append("start") or start(self, lark))
    monkeypatch.setattr(Grammars, "_compile", lambda self, *a: made.append("compile") or compile_(self, *a))
    schema = {"type": "array", "items": {"enum": ["once", "only"]}, "maxItems": 3}
    together = llm.generate(["x"] * 4, seed=3, temperature=2.0, max_tokens=80, schema=schema)
    assert made == ["compile", "start"]
    again = [llm.generate("x", seed=3 + i, temperature=2.0, max_tokens=80, schema=schema) for i in range(4)]
    assert made == ["compile", "start"] and again == together
    swapped = {"type": "array", "items": {"enum": ["only", "once"]}, "maxItems": 3}
    llm.generate("x", max_tokens=1, schema=swapped)
    assert made == ["compile", "start"] * 2


def test_an_error_is_found_again_each_time(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(2):
        with pytest.raises(GrammarError, match="/not"):
            llm.generate("x", schema={"not": {}})
    schema = {"type": "string", "pattern": "^(x|yy){1,30}$"}
    with monkeypatch.context() as small:
        small.setitem(grammar.LIMITS, "initial_lexer_fuel", 1)
        with pytest.raises(GrammarError):
            llm.generate("x", schema=schema)
    assert llm.generate("x", schema=schema, max_tokens=1).tokens


def test_what_is_kept_is_bounded_by_count_and_by_size() -> None:
    kept = grammar.Compiled(count=3, size=100)
    for i in range(10):
        assert kept.get(("a", str(i)), lambda i=i: i) == i
    assert len(kept) == 3 and kept.size == 6
    assert kept.get(("a", "7"), lambda: "again") == 7
    kept.get(("a", "x"), lambda: 0)
    assert kept.get(("a", "7"), lambda: "again") == 7, "what was used last stays"
    assert kept.get(("a", "8"), lambda: "again") == "again"
    kept.get(("b", "x" * 98), lambda: 1)
    assert len(kept) == 1 and kept.size == 99
    assert kept.get(("c", "x" * 200), lambda: 2) == 2 and len(kept) == 0 and kept.size == 0


def test_threads_share_compiled_grammars(llm: LLM) -> None:
    grammars = Grammars(llm._open())
    texts: list[str] = []

    def work(which: int) -> None:
        for i in range(10):
            state = grammars.state(grammars.compile(Constraint("choice", [f"yes{(which + i) % 3}"])))
            for byte in f"yes{(which + i) % 3}".encode():
                assert state.mask()[byte // 32] >> (byte % 32) & 1
                state.accept(byte)
            texts.append("whole" if state.complete else "cut")

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == ["whole"] * 40
    assert len(grammars._compiled) == 6
