"""JSON schemas: what of them llguidance takes but does not enforce, and the place of what it refuses."""

from __future__ import annotations

import json
import re
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, TypeGuard
from urllib.parse import unquote

MAX_TRIED = 400  # parts of a refused schema that are tried alone, to find the one that is refused
MAX_TRYING = 1.0  # seconds that this may take
# Of the integers that every reader of JSON knows exactly (RFC 7493); llguidance rounds larger ones, or
# crashes
LARGEST = 2**53 - 1
# Keywords whose values are schemas, lists of schemas, or schemas by name
OF_SCHEMA = ("items", "additionalProperties", "additionalItems", "contains", "not", "if", "then", "else",
             "propertyNames", "unevaluatedItems", "unevaluatedProperties")  # fmt: skip
OF_SCHEMAS = ("anyOf", "oneOf", "allOf", "prefixItems", "items")
OF_NAMED = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")

# What llguidance's formats let through: 29 February of any year, and leap seconds at any time of the day
LEAP_YEAR = r"(?:\d\d(?:0[48]|[2468][048]|[13579][26])|(?:[02468][048]|[13579][26])00)"
DATE = rf"^(?:....-(?:0[13-9]|1[0-2])-..|....-02-(?:[01].|2[0-8])|{LEAP_YEAR}-02-29)"
CLOCK = "..:..:[0-5]"
PATTERNS = {"date": DATE, "time": f"^{CLOCK}", "date-time": f"{DATE}[Tt]{CLOCK}"}


def parts_of(schema: Any) -> Iterator[tuple[str, Any]]:
    """The schemas in a schema, each with the rest of its JSON pointer."""
    if not isinstance(schema, dict):
        return
    for name, value in schema.items():
        if name in OF_NAMED and isinstance(value, dict):
            yield from ((f"{escaped(name)}/{escaped(key)}", inner) for key, inner in value.items())
        elif name in OF_SCHEMAS and isinstance(value, list):
            yield from ((f"{name}/{i}", inner) for i, inner in enumerate(value))
        elif name in OF_SCHEMA:
            yield name, value


def walk(schema: Any) -> Iterator[tuple[str, Any]]:
    """All schemas in a schema, itself first, with their JSON pointers; those too that only a $ref knows."""
    waiting = deque([("", schema)])
    seen = set()
    while waiting:
        at, part = waiting.popleft()
        if at in seen:
            continue
        seen.add(at)
        yield at, part
        waiting.extend((f"{at}/{step}", inner) for step, inner in parts_of(part))
        ref = part.get("$ref") if isinstance(part, dict) else None
        if isinstance(ref, str) and ref.startswith("#/"):
            pointer = unquote(ref[1:])
            if (inner := at_pointer(schema, pointer)) is not None:
                waiting.append((pointer, inner))


def at_pointer(value: Any, pointer: str) -> Any:
    """What a JSON pointer points at; None: nothing."""
    for step in pointer.split("/")[1:]:
        name = step.replace("~1", "/").replace("~0", "~")
        if isinstance(value, list) and name.isdecimal() and int(name) < len(value):
            value = value[int(name)]
        elif isinstance(value, dict) and name in value:
            value = value[name]
        else:
            return None
    return value


def escaped(name: str) -> str:
    """A name in a JSON pointer."""
    return name.replace("~", "~0").replace("/", "~1")


# ----------------------------------------------------------------------------------------------------------
# What would hold in part only


def narrowed(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema that llguidance enforces in full, where unenforceable() finds nothing."""
    copy: dict[str, Any] = json.loads(json.dumps(schema))
    for _, part in walk(copy):
        if isinstance(part, dict):
            _narrow(part)
    return copy


def _narrow(part: dict[str, Any]) -> None:
    """Changes a schema so that llguidance lets through what it allows, or less."""
    for name, limit in (("minimum", -LARGEST), ("maximum", LARGEST)):
        for bound in (name, f"exclusiveM{name[1:]}"):
            value = part.get(bound)
            if is_number(value) and abs(value) > LARGEST:
                part[bound] = limit
    form, all_of = part.get("format"), part.get("allOf", [])
    if isinstance(form, str) and form in PATTERNS and isinstance(all_of, list):
        part["allOf"] = [*all_of, {"pattern": PATTERNS[form]}]


def unenforceable(part: dict[str, Any]) -> tuple[str, str] | None:
    """A keyword of a schema that llguidance takes but does not enforce, with what is wrong; the schemas in it
    are not looked at."""
    if "x-guidance" in part:
        return "x-guidance", "not supported"
    for name in ("const", "enum", "multipleOf"):
        if _has_large_number(part.get(name)):
            return name, f"numbers beyond {LARGEST} are not supported"
    for name, sign in (("minimum", 1), ("exclusiveMinimum", 1), ("maximum", -1), ("exclusiveMaximum", -1)):
        if is_number(bound := part.get(name)) and bound * sign > LARGEST:
            return name, f"numbers beyond {LARGEST} are not supported"
    named = part.get("patternProperties")
    named = named if isinstance(named, dict) else {}
    for name, pattern in [("pattern", part.get("pattern")), *(("patternProperties", key) for key in named)]:
        if isinstance(pattern, str) and (found := other_class(pattern)):
            place = f"{name}/{escaped(pattern)}" if name == "patternProperties" else name
            return place, f"{found} in square brackets is not supported"
    least, required = part.get("minProperties"), part.get("required")
    closed = part.get("additionalProperties") is False and not named
    certain = len({name for name in required if isinstance(name, str)}) if isinstance(required, list) else 0
    if is_number(least) and least > certain + 1 and not closed:
        return "minProperties", "names that are not listed as required could be the same one again"
    return None


def _has_large_number(value: Any) -> bool:
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if is_number(one) and abs(one) > LARGEST:
            return True
        waiting += one.values() if isinstance(one, dict) else one if isinstance(one, (list, tuple)) else ()
    return False


def is_number(value: Any) -> TypeGuard[int | float]:
    """Whether it is a number in JSON."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def other_class(pattern: str) -> str | None:
    """What in a class of characters is not what it is in JSON Schema's expressions (ECMA-262): Rust's crate
    regex knows sets in sets, and operations on them."""
    inside = False
    for sign in re.findall(r"\\.|\[\^?\]?|&&|--|~~|.", pattern, re.DOTALL):
        if not inside and sign.startswith("["):
            inside = True
            if sign.endswith("]"):
                return "']' as the first"
        elif inside and (sign.startswith("[") or sign in ("&&", "--", "~~")):
            return repr(sign)
        elif sign == "]":
            inside = False
    return None


# ----------------------------------------------------------------------------------------------------------
# What is refused


def fault(schema: Any, sentence: str, check: Callable[[Any], None]) -> str:
    """The JSON pointer of what is refused in a schema with a sentence: of a keyword that this is about; else
    of the innermost part that is refused alone, the keyword without which it is not.

    check  raises ValueError or TypeError for a schema that is refused"""
    tried, until = 0, time.monotonic() + MAX_TRYING

    def refused(part: Any) -> bool:
        nonlocal tried
        tried += 1
        whole = part
        if isinstance(part, dict) and isinstance(schema, dict):
            names = {name: schema[name] for name in ("$defs", "definitions") if name in schema}
            whole = {**names, **part}
        try:
            check(whole)
        except (TypeError, ValueError):
            return True
        return False

    def more() -> bool:
        return tried < MAX_TRIED and time.monotonic() < until

    places = list(places_of(schema, sentence))
    if places:
        alone = (pointer for pointer, part in places if more() and refused(part))
        return next(alone, places[0][0])

    def first_refused(parts: list[tuple[str, Any]]) -> tuple[str, Any] | None:
        while len(parts) > 1 and more():
            half = parts[: len(parts) // 2]
            inner = [part for _, part in half]
            at_once = {"type": "array", "prefixItems": inner, "minItems": len(inner)}
            parts = half if refused(at_once) else parts[len(half) :]
        return parts[0] if parts and more() and refused(parts[0][1]) else None

    pointer, part = "", schema
    while (found := first_refused(list(parts_of(part)))) is not None:
        pointer, part = f"{pointer}/{found[0]}", found[1]
    for name in part if isinstance(part, dict) else ():
        if more() and not refused({k: v for k, v in part.items() if k != name}):
            return f"{pointer}/{escaped(name)}"
    return pointer


def places_of(schema: Any, sentence: str) -> Iterator[tuple[str, Any]]:
    """The pointers of the keywords that a sentence of llguidance's is about, where it says so, with the
    schemas that they stand in."""
    names: set[str] = set()
    if sentence.startswith("Unimplemented keys"):
        names = set(re.findall(r'"([^"]+)"', sentence))
    elif sentence.startswith("min/maxProperties"):
        names = {"minProperties", "maxProperties"}
    elsewhere = re.match(r"Resource '([^']+)' is not present", sentence)
    for pointer, part in walk(schema):
        for name in part if isinstance(part, dict) else ():
            if elsewhere and name in ("$ref", "$schema") and isinstance(part[name], str):
                file = part[name].partition("#")[0].rpartition("/")[2]
                if file and elsewhere[1].endswith(f"/{file}"):
                    yield f"{pointer}/{name}", part
            elif name in names:
                yield f"{pointer}/{escaped(name)}", part
