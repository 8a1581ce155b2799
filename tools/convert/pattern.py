"""Compiles the regular expressions of pre-tokenizers to the program that csrc/tokenizer.c runs (sections
LLM_PATTERN and LLM_CLASSES).

Accepts the part of Oniguruma's syntax that pre-tokenizers use and means by it exactly what Oniguruma means;
anything else is a ValueError that names it. Character classes are sets of code points, kept as the bits of
one Python integer.
"""

from __future__ import annotations

import base64
import functools
import re
import struct
import zlib
from dataclasses import dataclass, field

from pyllm._llm import lib

from . import unicode_tables

LIMIT = 0x110000
ASCII = (1 << 128) - 1
EVERYTHING = (1 << LIMIT) - 1
UNLIMITED = 0xFFFFFFFF
SPLITS = {
    "Isolated": lib.LLM_SPLIT_ISOLATED,
    "Removed": lib.LLM_SPLIT_REMOVED,
    "MergedWithPrevious": lib.LLM_SPLIT_PREVIOUS,
    "MergedWithNext": lib.LLM_SPLIT_NEXT,
    "Contiguous": lib.LLM_SPLIT_CONTIGUOUS,
}
MAX_LENGTH, MAX_DEPTH = 1 << 14, 50  # of an expression: characters, and groups in groups

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


# ----------------------------------------------------------------------------------------------------------
# Sets of code points


def unpack(text: str) -> list[int]:
    """The integers that make_unicode_tables.pack() packed."""
    out, number, shift = [], 0, 0
    for byte in zlib.decompress(base64.b85decode(text)):
        number |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            out.append(number)
            number = shift = 0
    return out


def span(first: int, last: int) -> int:
    """The set of the code points from first to last."""
    return ((1 << (last - first + 1)) - 1) << first


def chars(text: str) -> int:
    """The set of the characters of text."""
    out = 0
    for char in text:
        out |= 1 << ord(char)
    return out


ANYTHING = EVERYTHING & ~chars("\n")  # "."


@functools.lru_cache(maxsize=256)
def runs(bits: int) -> tuple[tuple[int, int], ...]:
    """A set as inclusive (first, last) runs."""
    return tuple((m.start(), m.end() - 1) for m in re.finditer("1+", format(bits, "b")[::-1]))


@functools.cache
def named_set(name: str) -> int:
    """SPACE, WORD, NUMERIC, SINGLE_WORD, STRIPPED or a script of unicode_tables."""
    numbers, out, at = unpack(getattr(unicode_tables, name)), 0, 0
    for gap, more in zip(numbers[::2], numbers[1::2], strict=True):
        out |= span(at + gap, at + gap + more)
        at += gap + more + 1
    return out


@functools.cache
def category_sets() -> dict[str, int]:
    """The general categories by their two-letter names, and the one-letter groups of them."""
    numbers = unpack(unicode_tables.CATEGORIES)
    names = unicode_tables.CATEGORY_NAMES
    out = {name: 0 for name in names} | {name[0]: 0 for name in names}
    starts = [sum(numbers[0 : i + 1 : 2]) for i in range(0, len(numbers), 2)]
    for start, end, kind in zip(starts, [*starts[1:], LIMIT], numbers[1::2], strict=True):
        out[names[kind]] |= span(start, end - 1)
        out[names[kind][0]] |= span(start, end - 1)
    return out


def property_set(name: str) -> int:
    """The set of \\p{name}."""
    if name in category_sets():
        return category_sets()[name]
    if name.upper() in ("HAN", "HIRAGANA", "KATAKANA", "HANGUL"):
        return named_set(name.upper())
    raise ValueError(rf"the character property \p{{{name}}} is not supported")


# ----------------------------------------------------------------------------------------------------------
# Parsing


@dataclass
class Node:
    """A part of an expression: "class", "seq", "alt", "repeat", "look", "border" or "end"."""

    kind: str
    bits: int = 0
    least: int = 1
    most: int = 1
    possessive: bool = False
    negative: bool = False
    parts: list[Node] = field(default_factory=list)

    def shortest(self) -> int:
        """The length of the shortest text that it matches."""
        if self.kind == "class":
            return self.least
        if self.kind == "seq":
            return sum(part.shortest() for part in self.parts)
        if self.kind == "alt":
            return min(part.shortest() for part in self.parts)
        if self.kind == "repeat":
            return self.least * self.parts[0].shortest()
        return 0


class Parser:
    """Recursive descent over one expression."""

    SETS = {"s": "SPACE", "w": "WORD"}
    ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "f": "\f", "v": "\v", "a": "\a", "e": "\x1b"}

    def __init__(self, text: str, name: str = "the pre-tokenizer's expression") -> None:
        """name: what messages call it."""
        self.text = text
        self.name = f"{name} {text if len(text) <= 400 else text[:400] + '...'!r}"
        self.at = 0
        self.fold = False
        self.atoms = self.depth = 0
        if len(text) > MAX_LENGTH:
            raise ValueError(f"{self.name} has {len(text)} characters, more than {MAX_LENGTH}")

    def fail(self, what: str) -> ValueError:
        return ValueError(f"{self.name} uses {what} at character {self.at}, which is not supported")

    def deeper(self) -> None:
        """Counts a group or class that begins; whoever calls it takes 1 from `depth` at its end."""
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise self.fail(f"more than {MAX_DEPTH} groups in one another")

    def peek(self, text: str) -> bool:
        return self.text.startswith(text, self.at)

    def accept(self, text: str) -> bool:
        if not self.peek(text):
            return False
        self.at += len(text)
        return True

    def next(self) -> str:
        if self.at >= len(self.text):
            raise self.fail("its end too early")
        self.at += 1
        return self.text[self.at - 1]

    def parse(self, empty: bool = False) -> Node:
        """The expression; unless `empty`, one that can match nothing is refused."""
        node = self.alternatives()
        if self.at < len(self.text):
            raise self.fail(f"an unmatched {self.text[self.at]!r}")
        if node.shortest() == 0 and not empty:
            raise ValueError(f"{self.name} can match nothing, which is not supported")
        return node

    def alternatives(self) -> Node:
        parts = [self.sequence()]
        while self.accept("|"):
            parts.append(self.sequence())
        if len(parts) == 1:
            return parts[0]
        if all(p.kind == "class" and p.least == p.most == 1 for p in parts):  # (a|b) is [ab]
            return Node("class", bits=functools.reduce(int.__or__, (p.bits for p in parts)))
        return Node("alt", parts=parts)

    def sequence(self) -> Node:
        parts: list[Node] = []
        letters = ""
        while self.at < len(self.text) and not self.peek("|") and not self.peek(")"):
            start = self.at
            parts.append(self.quantified())
            letters = letters + self.text[start] if self.at == start + 1 else ""
            if self.fold and re.search("ss|st|ff|fi|fl", letters.lower()):
                raise self.fail("a ligature's letters without regard to case")
        return parts[0] if len(parts) == 1 else Node("seq", parts=parts)

    def quantified(self) -> Node:
        node = self.atom()
        simple = node.kind == "class" and node.least == node.most == 1
        least, most = 1, 1
        if self.accept("?"):
            least, most = 0, 1
        elif self.accept("*"):
            least, most = 0, UNLIMITED
        elif self.accept("+"):
            least, most = 1, UNLIMITED
        elif self.peek("{"):
            found = re.compile(r"\{(\d+)(?:(,)(\d*))?\}").match(self.text, self.at)
            if not found:
                raise self.fail("a strange repetition")
            self.at = found.end()
            least = int(found[1])
            most = least if not found[2] else int(found[3]) if found[3] else UNLIMITED
            if least > most or max(least, most if most != UNLIMITED else 0) > 1000 or most == 0:
                raise self.fail("a strange repetition")
            if self.peek("+") or self.peek("?") or self.peek("*"):
                raise self.fail("a repetition of a repetition")
            if simple:
                return Node("class", bits=node.bits, least=least, most=most)
            return node if (least, most) == (1, 1) else self.repeated(node, least, most, False)
        else:
            return node
        possessive = self.accept("+")
        if self.peek("+") or self.peek("?") or self.peek("*") or self.peek("{"):
            raise self.fail("a lazy repetition")
        if simple:
            return Node("class", bits=node.bits, least=least, most=most, possessive=possessive)
        if (least, most) == (0, 1) and node.kind not in ("look", "border", "end") and not possessive:
            return Node("alt", parts=[node, Node("seq")])
        return self.repeated(node, least, most, possessive)

    def repeated(self, node: Node, least: int, most: int, possessive: bool) -> Node:
        """A group several times. Twice at least is not what LLM_OP_LOOP can do: how the first time matches
        may depend on the second."""
        if least > 1 or node.shortest() == 0:
            raise self.fail("a repeated group")
        return Node("repeat", least=least, most=most, possessive=possessive, parts=[node])

    def atom(self) -> Node:
        self.atoms += 1
        if self.atoms > lib.LLM_MAX_INSTRUCTIONS:  # each may hold a set of 140 kB
            raise self.fail(f"more than {lib.LLM_MAX_INSTRUCTIONS} parts")
        if self.accept("("):
            return self.group()
        if self.accept("["):
            return Node("class", bits=self.bracket())
        if self.accept("$"):
            return Node("end")
        if self.accept("."):
            return Node("class", bits=ANYTHING)
        if self.peek("^") or self.peek("*") or self.peek("+") or self.peek("?") or self.peek("{"):
            raise self.fail(repr(self.text[self.at]))
        if self.peek(r"\b") or self.peek(r"\B"):
            self.at += 1
            return Node("border", bits=named_set("WORD"), negative=self.next() == "B")
        if self.accept("\\"):
            return Node("class", bits=self.folded(self.escape()))
        return Node("class", bits=self.folded(chars(self.next())))

    def group(self) -> Node:
        self.deeper()
        fold = self.fold
        kind = "group"
        if self.accept("?i:"):
            self.fold = True
        elif self.accept("?=") or self.accept("?!"):
            kind = self.text[self.at - 1]
        elif not self.accept("?:") and self.peek("?"):
            raise self.fail(f"the group ({self.text[self.at : self.at + 3]}")
        node = self.alternatives()
        if not self.accept(")"):
            raise self.fail("an unclosed group")
        self.fold = fold
        self.depth -= 1
        return node if kind == "group" else Node("look", negative=kind == "!", parts=[node])

    def folded(self, bits: int) -> int:
        """Adds the other case of each letter inside (?i:...)."""
        if not self.fold:
            return bits
        if bits >> 128:
            raise self.fail("a character beyond ASCII without regard to case")
        for first, last in runs(bits):
            for code in range(first, last + 1):
                bits |= chars(chr(code).lower() + chr(code).upper())
        extra = {"s": "\u017f", "k": "\u212a"}  # the only others that fold to ASCII letters
        return bits | chars("".join(more for letter, more in extra.items() if bits >> ord(letter) & 1))

    def escape(self) -> int:
        """The set that stands behind a backslash."""
        char = self.next()
        if char.lower() in self.SETS:
            bits = named_set(self.SETS[char.lower()])
            return bits if char.islower() else EVERYTHING & ~bits
        if char.lower() == "d":
            bits = category_sets()["Nd"]
            return bits if char.islower() else EVERYTHING & ~bits
        if char in "pP":
            found = re.compile(r"\{(\^?)(\w+)\}").match(self.text, self.at)
            if not found:
                raise self.fail("a strange property")
            self.at = found.end()
            bits = property_set(found[2])
            return EVERYTHING & ~bits if (char == "P") != bool(found[1]) else bits
        if char in self.ESCAPES:
            return chars(self.ESCAPES[char])
        if char in "xu":
            shape = r"\{([0-9a-fA-F]{1,6})\}|([0-9a-fA-F]{2})" if char == "x" else r"()([0-9a-fA-F]{4})"
            found = re.compile(shape).match(self.text, self.at)
            code = int(found[1] or found[2], 16) if found else LIMIT
            if not found or code >= LIMIT or (char == "x" and found[2] and code > 0x7F):
                raise self.fail("a strange escape")
            self.at = found.end()
            return 1 << code
        if char.isalnum():
            raise self.fail(rf"\{char}")
        return chars(char)

    def bracket(self) -> int:
        """A class, behind its opening bracket."""
        self.deeper()
        negated = self.accept("^")
        bits, both, empty = 0, EVERYTHING, True
        while not self.accept("]"):
            if self.accept("&&"):
                both &= self.folded(bits)
                bits = 0
                continue
            if self.peek("[:"):
                raise self.fail("a POSIX class")
            if self.accept("["):
                bits |= self.bracket()
                empty = False
                continue
            start = self.at
            item = self.escape() if self.accept("\\") else chars(self.next())
            single = item & (item - 1) == 0
            if self.peek("-") and not self.peek("-]") and not self.peek("-[") and not self.peek("-&&"):
                self.at += 1
                last = self.escape() if self.accept("\\") else chars(self.next())
                if not single or last & (last - 1) or last < item:
                    raise self.fail(f"the range {self.text[start : self.at]!r}")
                item = span(item.bit_length() - 1, last.bit_length() - 1)
            bits |= item
            empty = False
        if empty:
            raise self.fail("an empty class")
        bits = both & self.folded(bits)
        self.depth -= 1
        return EVERYTHING & ~bits if negated else bits


# ----------------------------------------------------------------------------------------------------------
# Matching


class NamePattern:
    """An expression for the end of a dotted name: as re.match(rf"(.*\\.)?({text})$", name) without groups and
    order, but no expression makes it take long: the places where a match can be are kept as one set."""

    def __init__(self, text: str, name: str, steps: int) -> None:
        """name: what messages call the expression; steps: characters that may be looked at, for all names."""
        self.at_start = text.startswith("^") and "|" not in text
        parser = Parser(text[1:] if self.at_start else text, name)
        self.node, self.name = parser.parse(empty=True), parser.name
        self.steps = steps

    def matches(self, name: str) -> bool:
        """Whether it does; ValueError when no steps are left."""
        starts = {0} if self.at_start else {0} | {i + 1 for i, char in enumerate(name) if char == "."}
        return len(name) in self.ends(self.node, name, starts)

    def ends(self, node: Node, text: str, starts: set[int]) -> set[int]:
        """Where a match of a part can end that begins at one of these places."""
        if node.kind == "class":
            return self.ends_of_class(node, text, starts)
        if node.kind == "seq":
            for part in node.parts:
                starts = self.ends(part, text, starts) if starts else starts
            return starts
        if node.kind == "alt":
            return set().union(*(self.ends(part, text, starts) for part in node.parts))
        if node.kind == "repeat":
            return self.ends_of_repeat(node, text, starts)
        if node.kind == "border":
            word = [False, *(bool(contains(node.bits, char)) for char in text), False]
            return {at for at in starts if (word[at] != word[at + 1]) != node.negative}
        if node.kind == "end":
            return starts & {len(text)}
        return {at for at in starts if bool(self.ends(node.parts[0], text, {at})) != node.negative}

    def ends_of_repeat(self, node: Node, text: str, starts: set[int]) -> set[int]:
        found, count = set(starts) if node.least == 0 else set(), 0
        while starts and count < node.most:
            starts = self.ends(node.parts[0], text, starts) - found
            found |= starts
            count += 1
        return found

    def ends_of_class(self, node: Node, text: str, starts: set[int]) -> set[int]:
        found = set(starts) if node.least == 0 else set()
        for start in starts:
            at = start
            while at < len(text) and at - start < node.most and contains(node.bits, text[at]):
                at += 1
                if at - start >= node.least:
                    found.add(at)
            self.steps -= at - start + 1
            if self.steps < 0:
                raise ValueError(f"{self.name} takes too long to match")
        return found


def contains(bits: int, char: str) -> int:
    code = ord(char)
    return (bits & ASCII) >> code & 1 if code < 128 else bits >> code & 1


# ----------------------------------------------------------------------------------------------------------
# Compiling


@dataclass(frozen=True)
class Place:
    """Where a part stands in an expression: whether nothing that could fail follows; what does, and what is
    before it, if that is one part and known."""

    last: bool = False
    before: Node | None = None
    after: Node | None = None

    def within(self, parts: list[Node], i: int) -> Place:
        """The place of part i of those that stand here in turn."""
        if i + 1 < len(parts):
            return Place(before=parts[i - 1] if i else self.before, after=parts[i + 1])
        return Place(self.last, parts[i - 1] if i else self.before, self.after)

    def keeps_all(self, node: Node) -> bool:
        """Whether a repetition that has taken all it can never gives any of it back, as LLM_OP_LOOP never
        does: because nothing fails behind it, or what does would fail within what it has taken as well."""
        body, before, after = node.parts[0], self.before, self.after
        if node.possessive or self.last:
            return True
        if body.kind != "class" or body.least != body.most or after is None:
            return False
        if after.kind == "look" and after.negative:
            other = after.parts[0]
            return other.kind == "class" and other.least <= 1 and not body.bits & ~other.bits
        if after.kind == "border" and not after.negative and before is not None:
            known = before.kind == "class" and before.least > 0
            return known and not (body.bits | before.bits) & ~after.bits
        return False


class Program:
    """Stages and classes as they are added; sections() gives them as bytes."""

    def __init__(self, metaspace: bool) -> None:
        """metaspace: the expressions are about text with U+2581 for spaces; the engine's text has spaces."""
        self.metaspace = metaspace
        self.stages: list[tuple[int, int]] = []
        self.code: list[list[int]] = []
        self.classes: dict[int, int] = {}

    def class_number(self, bits: int) -> int:
        return self.classes.setdefault(bits, len(self.classes))

    def add_stage(self, node: Node, split: int) -> None:
        """Appends a stage that splits by an expression; split is a number of enum llm_split."""
        self.stages.append((len(self.code), split))
        self.emit(node, Place(last=True))
        self.code.append([lib.LLM_OP_MATCH, 0, 0, 0])
        if len(self.stages) > lib.LLM_MAX_STAGES or len(self.code) > lib.LLM_MAX_INSTRUCTIONS:
            raise ValueError("the pre-tokenizer has more stages or longer expressions than are supported")

    def class_of(self, node: Node) -> int:
        """The number of a part's class, of the engine's text."""
        bits = node.bits
        if self.metaspace:
            bits = bits & ~chars(" \u2581") | (chars(" ") if bits >> 0x2581 & 1 else 0)
        return self.class_number(bits)

    def emit(self, node: Node, place: Place) -> None:
        if node.kind == "class":
            op = lib.LLM_OP_EAT if node.possessive else lib.LLM_OP_RUN
            self.code.append([op, self.class_of(node), node.least, node.most])
        elif node.kind == "seq":
            for i, part in enumerate(node.parts):
                self.emit(part, place.within(node.parts, i))
        elif node.kind == "alt":
            jumps = []
            for part in node.parts[:-1]:
                alt = [lib.LLM_OP_ALT, 0, 0, 0]
                self.code.append(alt)
                self.emit(part, place)
                jumps.append([lib.LLM_OP_JUMP, 0, 0, 0])
                self.code.append(jumps[-1])
                alt[1] = len(self.code)
            self.emit(node.parts[-1], place)
            for jump in jumps:
                jump[1] = len(self.code)
        elif node.kind == "look":
            self.emit_apart(
                lib.LLM_OP_LOOK, node, int(node.negative), 0, Place(last=True, before=place.before)
            )
        elif node.kind == "repeat":
            if not place.keeps_all(node):
                raise ValueError("the pre-tokenizer repeats a group that what follows may want less often")
            self.emit_apart(lib.LLM_OP_LOOP, node, node.least, node.most, Place(last=True))
        elif node.kind == "border":
            self.code.append([lib.LLM_OP_BORDER, self.class_of(node), int(node.negative), 0])
        else:
            self.code.append([lib.LLM_OP_END, 0, 0, 0])

    def emit_apart(self, op: int, node: Node, b: int, c: int, place: Place) -> None:
        """An instruction whose part stands behind it, up to an LLM_OP_MATCH of its own."""
        instruction = [op, 0, b, c]
        self.code.append(instruction)
        self.emit(node.parts[0], place)
        self.code.append([lib.LLM_OP_MATCH, 0, 0, 0])
        instruction[1] = len(self.code)

    def sections(self) -> tuple[bytes, bytes]:
        """The payloads of LLM_PATTERN (empty without stages) and LLM_CLASSES."""
        heads: list[bytes] = []
        ranges: list[tuple[int, int]] = []
        for bits in self.classes:
            above = [(max(first, 128), last) for first, last in runs(bits) if last >= 128]
            words = [bits >> shift & 0xFFFFFFFF for shift in (0, 32, 64, 96)]
            heads.append(struct.pack("<6I", *words, len(ranges), len(above)))
            ranges += above
        classes = struct.pack("<2I", len(heads), len(ranges)) + b"".join(heads)
        classes += b"".join(struct.pack("<2I", *pair) for pair in ranges)
        pattern = struct.pack("<2I", len(self.stages), len(self.code))
        pattern += b"".join(struct.pack("<2I", *stage) for stage in self.stages)
        pattern += b"".join(struct.pack("<4I", *instruction) for instruction in self.code)
        return pattern if self.stages else b"", classes


def literal(text: str) -> Node:
    """An expression that matches exactly text."""
    if not text:
        raise ValueError("the pre-tokenizer splits at an empty text, which is not supported")
    if len(text) > lib.LLM_MAX_INSTRUCTIONS:
        raise ValueError(f"the pre-tokenizer splits at {len(text)} characters, which is not supported")
    parts = [Node("class", bits=chars(char)) for char in text]
    return parts[0] if len(parts) == 1 else Node("seq", parts=parts)
