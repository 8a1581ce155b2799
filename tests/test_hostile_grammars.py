"""Schemas and grammars that are meant to take a server down: each is answered, and the server goes on."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from served import Client, write_model

pytest.importorskip("llguidance")
pytest.importorskip("starlette")

from pyllm import LLM, GrammarError, grammar  # noqa: E402
from pyllm.grammar import TRIALS  # noqa: E402
from pyllm.server.settings import Settings  # noqa: E402
from pyllm.testing import running_server  # noqa: E402


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    path = write_model(tmp_path_factory.mktemp("hostile"))
    with running_server(path, Settings(), threads=1) as running:
        yield Client(running.url)


def chain(keyword: str, count: int) -> dict[str, Any]:
    """A schema that leads from reference to reference."""
    links = {str(i): {keyword: {"$ref": f"#/$defs/{i + 1}"}} for i in range(count)}
    return {"$ref": "#/$defs/0", "$defs": {**links, str(count): {"type": "null"}}}


def nested(count: int) -> Any:
    return json.loads('{"items":' * count + "{}" + "}" * count)


SCHEMAS = {
    "nested in itself": nested(100),
    "nested too deeply": nested(300),
    "references": chain("items", 1300),
    "a circle": {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
    "no end": {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
    "many values": {"enum": [f"value{i}" for i in range(3000)]},
    "too many values": {"enum": [f"value{i}" for i in range(20_000)]},
    "many names": {"properties": {f"p{i}": {"type": "string"} for i in range(1000)}},
    "too many names": {"properties": {f"p{i}": {"type": "string"} for i in range(10_000)}},
    "names": {"properties": {'é😀\0\n"\\': {"const": 1}, "": {}, "\u202e": {}}, "required": [""]},
    "the least integer": {"const": -(2**63)},
    "a long text": {"type": "string", "minLength": 10**6, "maxLength": 2**31},
    "a text without end": {"type": "string", "maxLength": 2**62},
    "long lists": {"minItems": 10**5, "items": {"minItems": 10**5, "items": {"minItems": 10**5}}},
    "expression": {"type": "string", "pattern": "(x+x+)+y"},
    "repeated": {"type": "string", "pattern": "^((((a{1,90}){1,90}){1,90}){1,90})$"},
    "backtracking": {"type": "string", "pattern": "(a?){5000}a{5000}"},
    "alternatives": {"allOf": [{"anyOf": [{"required": [c]}, {"required": [c + c]}]} for c in "abcdefghijk"]},
    "somewhere else": {"$ref": "http://127.0.0.1/schema"},
    "a file": {"$ref": "file:///etc/passwd"},
}  # fmt: skip


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_hostile_schema_is_answered(client: Client, name: str) -> None:
    status, answer = client.post(
        "/v1/completions", {"prompt": "x", "max_tokens": 3, "structured_outputs": {"json": SCHEMAS[name]}}
    )
    assert status == 200 or (status == 400 and answer["error"]["message"])
    assert client.get("/health")[0] == 200


@pytest.mark.parametrize(
    "fields",
    [
        {"regex": "(" * 3000},
        {"regex": "(a?){5000}a{5000}"},
        {"regex": "((((a{1,90}){1,90}){1,90}){1,90})"},
        {"choice": [f"v{i}" for i in range(5000)]},
        {"grammar": "start: start"},
        {"grammar": "start: " + "(" * 20_000 + '"a"' + ")" * 20_000},
        {"grammar": "root ::= " + "(" * 20_000 + '"a"' + ")" * 20_000},
        {"grammar": "start: a0\n" + "".join(f"a{i}: a{i + 1}\n" for i in range(4000)) + 'a4000: "x"\n'},
    ],
    ids=lambda fields: str(fields)[:30],
)
def test_a_hostile_grammar_is_answered(client: Client, fields: dict[str, Any]) -> None:
    status, answer = client.post(
        "/v1/completions", {"prompt": "x", "max_tokens": 3, "structured_outputs": fields}
    )
    assert status == 200 or (status == 400 and answer["error"]["message"])
    assert client.get("/health")[0] == 200


def test_what_would_take_for_ever_is_refused_and_others_are_answered(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grammar, "MAX_SECONDS", 1)
    hostile = {"allOf": [{"pattern": f"a{i}"} for i in range(30)]}
    answers: list[tuple[int, Any]] = []
    body = {"prompt": "x", "max_tokens": 3, "structured_outputs": {"json": hostile}}
    thread = threading.Thread(target=lambda: answers.append(client.post("/v1/completions", body)))
    thread.start()
    answered = 0
    while thread.is_alive():
        assert client.get("/health")[0] == 200
        assert client.post("/v1/completions", {"prompt": "x", "max_tokens": 1})[0] == 200
        answered += 1
        time.sleep(0.05)
    thread.join()
    ((status, answer),) = answers
    assert status == 400 and "too long" in answer["error"]["message"]
    assert answered >= 2


def test_the_process_that_tries_grammars_may_end(tmp_path: Any) -> None:
    with LLM(write_model(tmp_path), threads=1) as llm:
        assert llm.generate("x", choice=["first"], max_tokens=20).text == "first"
        assert TRIALS.idle is not None and TRIALS.idle.program is not None
        worker = TRIALS.idle.program
        os.kill(worker.pid, signal.SIGKILL)
        worker.wait()
        assert llm.generate("x", choice=["second"], max_tokens=20).text == "second"
        with pytest.raises(GrammarError, match="/not"):
            llm.generate("x", schema={"not": {}})


def test_a_grammar_that_ends_its_process_is_refused() -> None:
    crash = {"const": -(2**63), "x-guidance": {}}
    grammar.on_trial(json.dumps({"grammars": [{"json_schema": {}}]}))
    with pytest.raises(GrammarError, match="it cannot be compiled"):
        grammar.on_trial(json.dumps({"grammars": [{"json_schema": crash}]}))
    grammar.on_trial(json.dumps({"grammars": [{"json_schema": {}}]}))
