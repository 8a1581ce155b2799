"""JSON Schema's own tests of the draft 2020-12: what a schema does not allow is never let through, and a
schema that cannot be enforced whole is refused by the place of a keyword.

The tests are in the sdist of the package jsonschema; PYLLM_JSON_SCHEMA_SUITE is the path of its folder
json/tests/draft2020-12.
"""

from __future__ import annotations

import itertools
import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from common import IM_END
from served import write_model

pytest.importorskip("llguidance")
jsonschema = pytest.importorskip("jsonschema")

from pyllm._llm import ffi  # noqa: E402

from pyllm import LLM, GrammarError  # noqa: E402
from pyllm.grammar import Constraint, Grammars, State  # noqa: E402
from pyllm.json_schema import at_pointer  # noqa: E402

SUITE = os.environ.get("PYLLM_JSON_SCHEMA_SUITE")
FORMATS = ("date", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "time", "uri", "uuid")
FILES = sorted(Path(SUITE).glob("*.json")) if SUITE else []
FORMAT_FILES = [Path(SUITE, "optional", "format", f"{name}.json") for name in FORMATS] if SUITE else []
MAX_SPELLINGS = 200
MAX_BYTES = 300

pytestmark = pytest.mark.skipif(not SUITE, reason="PYLLM_JSON_SCHEMA_SUITE names no folder")


@pytest.fixture(scope="module")
def grammars(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Grammars]:
    with LLM(write_model(tmp_path_factory.mktemp("suite")), threads=1) as llm:
        yield llm._grammars


def spellings(value: Any) -> Iterator[str]:
    """JSON texts of a value: the properties of objects in every order."""
    if isinstance(value, dict):
        for items in itertools.permutations(value.items()):
            for inner in itertools.product(*(list(spellings(each)) for _, each in items)):
                pairs = zip(items, inner, strict=True)
                yield "{" + ", ".join(f"{text(key)}: {each}" for (key, _), each in pairs) + "}"
    elif isinstance(value, list):
        for inner in itertools.product(*(list(spellings(each)) for each in value)):
            yield "[" + ", ".join(inner) + "]"
    else:
        yield text(value)


def text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def allowed(state: State, token: int) -> bool:
    return bool(state.mask()[token // 32] >> (token % 32) & 1)


def accepts(grammars: Grammars, lark: str, value: Any) -> bool:
    """Whether a text of a value is what a grammar makes."""
    return any(
        is_made(grammars.state(lark), one) for one in itertools.islice(spellings(value), MAX_SPELLINGS)
    )


def is_made(state: State, one: str) -> bool:
    for byte in one.encode():
        if state.complete or not allowed(state, byte):
            return False
        state.accept(byte)
    return state.complete or allowed(state, IM_END)


def compiled(grammars: Grammars, schema: Any) -> str | None:
    """The grammar of a schema; None if it is refused, which names a keyword by its place."""
    try:
        return grammars.compile(Constraint("schema", schema))
    except GrammarError as error:
        if schema is False:
            assert error.pointer == ""
        else:
            assert error.pointer and str(error).startswith(f"schema at {error.pointer}: ")
            assert at_pointer(schema, error.pointer) is not None
        return None


def cases(files: list[Path]) -> Iterator[dict[str, Any]]:
    for file in files:
        yield from json.loads(file.read_text(encoding="utf-8"))


def whole_floats(value: Any) -> bool:
    """Whether there is an integer in it that is written as 1.0, which llguidance never does."""
    if isinstance(value, list):
        return any(map(whole_floats, value))
    return isinstance(value, float) and value.is_integer()


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_schema_lets_through_nothing_that_is_not_valid(grammars: Grammars, file: Path) -> None:
    for case in cases([file]):
        if (lark := compiled(grammars, case["schema"])) is None:
            continue
        for test in case["tests"]:
            value = test["data"]
            is_valid = jsonschema.Draft202012Validator(case["schema"]).is_valid(value)
            assert is_valid == test["valid"], "the suite is not of the validator's version"
            taken = accepts(grammars, lark, value)
            # the draft has formats as mere remarks
            narrower = whole_floats(value) or (file.stem == "format" and isinstance(value, str))
            assert taken == is_valid or (is_valid and narrower), (case["schema"], value)


@pytest.mark.parametrize("file", FORMAT_FILES, ids=lambda file: file.stem)
def test_a_format_lets_through_nothing_that_is_not_valid(grammars: Grammars, file: Path) -> None:
    for case in cases([file]):
        lark = compiled(grammars, case["schema"])
        assert lark is not None
        for test in case["tests"]:
            value = test["data"]
            taken = accepts(grammars, lark, value)
            # leap seconds; quoted names and addresses in an email's; IPv4 in IPv6
            narrower = isinstance(value, str) and (
                ":60" in value or '"@' in value or "@[" in value or (file.stem == "ipv6" and "." in value)
            )
            assert taken == test["valid"] or (test["valid"] and narrower), value


def walked(state: State, rng: random.Random) -> str | None:
    """A text that a grammar makes, by tokens at random, those that end something before others; None: it was
    too long."""
    out = bytearray()
    while len(out) < MAX_BYTES:
        if state.complete:
            break
        bits = np.unpackbits(np.frombuffer(ffi.buffer(state.mask()), np.uint8), bitorder="little")
        choices = np.flatnonzero(bits[:256]).tolist()
        if bits[IM_END] and (not choices or rng.random() < 0.3):
            break
        closing = [token for token in choices if token in b'"]}']
        token = rng.choice(closing if closing and rng.random() < 0.4 else choices)
        state.accept(token)
        out.append(token)
    else:
        return None
    return out.decode()


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_text_at_random_is_valid(grammars: Grammars, file: Path) -> None:
    rng = random.Random(1)
    taken = ended = 0
    for case in cases([file]):
        if (lark := compiled(grammars, case["schema"])) is None:
            continue
        taken += 1
        for _ in range(4):
            if (one := walked(grammars.state(lark), rng)) is not None:
                ended += 1
                jsonschema.Draft202012Validator(case["schema"]).validate(json.loads(one))
    assert ended >= taken


def test_most_schemas_of_the_supported_keywords_are_taken(grammars: Grammars) -> None:
    found = [compiled(grammars, case["schema"]) for case in cases(FILES)]
    assert len(found) >= 360 and len([lark for lark in found if lark is not None]) >= 160
