"""Grammars: which tokens may come next, so that a text becomes what it is asked to be.

The work is done by llguidance (pip install llguidance): it turns JSON schemas, regular expressions and
context-free grammars into masks, a bit a token, which llm_sample() takes. What it does not know how to
enforce is refused, and the place in the schema named: nothing is enforced in part.
"""

from __future__ import annotations

import json
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

from pyllm._llm import ffi, lib
from pyllm.binding import LLMError, Model
from pyllm.json_schema import fault, narrowed, unenforceable, walk
from pyllm.workers import Ended, Late, Workers

if TYPE_CHECKING:
    from llguidance import LLMatcher

KINDS = ("schema", "regex", "choice", "grammar")
# Of JSON between its marks, and behind a thought: without a limit a model may go on with spaces for ever
WHITESPACE = r"[ \t\n]{0,20}"
# Of JSON where its beginning must tell what it is
EXACT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
LIMITS: dict[str, Any] = dict(  # of llguidance: what a grammar may cost, in units of its own
    max_items_in_row=20_000,
    initial_lexer_fuel=1_000_000,
    step_lexer_fuel=200_000,
    step_max_items=50_000,
    max_lexer_states=50_000,
    max_grammar_size=500_000,
)
# Of the thread that compiles: llguidance calls itself for each $ref or rule that leads to another, and a
# stack that is full ends the process. Most of it is never touched
STACK = 512 << 20
MAX_SECONDS = 5  # that a grammar may take to be compiled on trial
TRIALS = Workers("grammar_worker.py", 2 << 30, "tries grammars")
REFUSED = "tried in another process, "  # begins what is said of a grammar that was not compiled in this one
MAX_COMPILED = 64  # compiled grammars that are kept
MAX_COMPILED_BYTES = 1 << 20  # of their texts


T = TypeVar("T")


class GrammarLimitError(LLMError):
    """A grammar takes too much on the way, or leads to where nothing can follow."""


class GrammarError(ValueError):
    """A grammar is wrong, or cannot be enforced.

    pointer  the JSON pointer (RFC 6901) of the keyword at fault in a schema; None: it is no schema, or all
             of it
    """

    def __init__(self, message: str, pointer: str | None = None) -> None:
        super().__init__(message)
        self.pointer = pointer


@dataclass(frozen=True)
class Constraint:
    """What a text is to be.

    kind  "schema": JSON that a schema allows; "regex": what a regular expression matches (the syntax of
          Rust's crate regex); "choice": one of several texts; "grammar": what a grammar makes (Lark's syntax
          as llguidance has it, or llama.cpp's GBNF)
    what  the schema, as JSON has it; the expression; the texts; the grammar
    """

    kind: str
    what: Any

    def lark(self) -> str:
        """The same as the right side of a rule of llguidance's Lark; rules of a grammar are not in it."""
        if self.kind == "schema":
            return schema_in_lark(self.what)
        if self.kind == "regex":
            return f"%lark {{\nstart: ANSWER\nANSWER: {slashed(self.what)}\n}}"
        if self.kind == "choice":
            return "(" + " | ".join(json.dumps(text, ensure_ascii=False) for text in self.what) + ")"
        return f"%lark {{\n{self.what}\n}}"


def unanchored(pattern: str) -> str:
    """A regular expression without the anchors at its ends: it matches as a whole anyway."""
    pattern = pattern.removeprefix("^")
    escapes = len(pattern) - 1 - len(pattern[:-1].rstrip("\\"))
    return pattern[:-1] if pattern.endswith("$") and escapes % 2 == 0 else pattern


def slashed(pattern: str) -> str:
    """A regular expression between slashes."""
    out, escaped = [], False
    for c in pattern:
        out.append("\\/" if c == "/" and not escaped else "\\n" if c == "\n" else c)
        escaped = c == "\\" and not escaped
    return f"/{''.join(out)}/"


def schema_in_lark(schema: Any, spaces: Mapping[str, Any] | None = None) -> str:
    """A schema as the right side of a rule. spaces: EXACT, or None."""
    return f"%json {json.dumps(with_whitespace(schema, spaces))}"


def with_whitespace(schema: Any, spaces: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A schema with the white space that JSON may have, and with what llguidance would leave out."""
    if isinstance(schema, bool):
        schema = {} if schema else {"enum": []}
    return {**narrowed(schema), "x-guidance": spaces or {"whitespace_pattern": WHITESPACE}}


class Compiled:
    """What was made for a text last: of bounded count and size. Any thread may use it."""

    def __init__(self, count: int = MAX_COMPILED, size: int = MAX_COMPILED_BYTES) -> None:
        self._count, self._size = count, size
        self._lock = threading.Lock()
        self._made: OrderedDict[tuple[str, ...], Any] = OrderedDict()
        self.size = 0  # characters of all keys

    def get(self, key: tuple[str, ...], make: Callable[[], T]) -> T:
        """What make() returns, or has returned. What it raises is raised, and not kept."""
        with self._lock:
            if key in self._made:
                self._made.move_to_end(key)
                found: T = self._made[key]
                return found
        made = make()
        with self._lock:
            if key not in self._made:
                self.size += sum(map(len, key))
            self._made[key] = made
            while len(self._made) > self._count or self.size > self._size:
                oldest, _ = self._made.popitem(last=False)
                self.size -= sum(map(len, oldest))
        return made

    def __len__(self) -> int:
        return len(self._made)


class Grammars:
    """The grammars of one model's tokens. Any thread may use it."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self._lock = threading.Lock()
        self._made: Any = None
        self._unescaped: Unescaped | None = None
        self._compiled = Compiled()
        self._free = np.full(-(-model.vocab_size // 32), 2**32 - 1, np.uint32)
        self.free = ffi.from_buffer("uint32_t[]", self._free)  # the mask that lets everything through

    @property
    def tokenizer(self) -> Any:
        """The tokens as llguidance has them; made once, which takes up to a second. ImportError without
        it."""
        with self._lock:
            if self._made is None:
                self._made = _tokenizer(self.model)
                self._unescaped = Unescaped(self.model)
            return self._made

    def compile(self, constraint: Constraint, reasoning: Reasoning | None = None) -> str:
        """A grammar that state() takes. GrammarError when it is wrong or cannot be enforced.

        reasoning  what may, or is to, come before the text"""
        key = ("compile", constraint.kind, as_json(constraint.what), repr(reasoning))
        return self._compiled.get(key, lambda: self._compile(constraint, reasoning))

    def _compile(self, constraint: Constraint, reasoning: Reasoning | None) -> str:
        check(constraint)
        grammar = constraint.what
        if constraint.kind == "schema":
            self.check_schema(grammar)
        if constraint.kind == "regex":
            constraint = Constraint("regex", unanchored(grammar))
        if constraint.kind == "grammar" and "::=" in grammar:
            grammar = _from_gbnf(grammar)
            constraint = Constraint("grammar", grammar)
        if reasoning is None and constraint.kind == "grammar":
            lark: str = grammar
        else:
            thought, rules = ("", "") if reasoning is None else reasoning.lark(self.model)
            lark = f"start: {thought} {constraint.lark()}\n{rules}"
        if constraint.kind != "schema":  # which is checked by itself
            self._check(_from_lark(lark))
        return lark

    def check_schema(self, schema: Any) -> None:
        """GrammarError that names the place when a schema is wrong or cannot be enforced."""
        self._compiled.get(("schema", as_json(schema)), lambda: self._check_schema(schema))

    def _check_schema(self, schema: Any) -> None:
        check(Constraint("schema", schema))
        if schema is False:
            raise GrammarError("schema: there is nothing that false allows", "")
        try:
            self._check(_from_schema(schema))
        except GrammarError as error:
            sentence = str(error)
            pointer = "" if sentence.startswith(REFUSED) else fault(schema, sentence, self._check_part)
            raise GrammarError(f"schema{pointer and f' at {pointer}'}: {error}", pointer) from None

    def _check_part(self, schema: Any) -> None:
        self._check(_from_schema(schema))

    def _check(self, grammar: str) -> None:
        from llguidance import LLMatcher

        on_trial(grammar)

        def validate() -> tuple[bool, list[str]]:
            result: tuple[bool, list[str]] = LLMatcher.validate_grammar_with_warnings(
                grammar, self.tokenizer, limits=limits()
            )
            return result

        wrong, sentences = with_room(validate)
        if wrong:
            sentence = " ".join(sentences[0].split())
            sentence = re.sub(r" \d+ \| .*", "", sentence)  # without the line that it shows
            raise GrammarError(sentence if len(sentence) <= 300 else f"{sentence[:300]} …")

    def state(self, lark: str) -> State:
        """Where a text stands in a compiled grammar: at its start. GrammarError when there is no way on."""
        matcher = self._compiled.get(("state", lark), lambda: self._start(lark)).deep_copy()
        unescaped = self._unescaped if "%json" in lark else None
        return Bound(matcher, self.model.vocab_size, unescaped)

    def _start(self, lark: str) -> LLMatcher:
        """What the states of a grammar are copies of."""
        from llguidance import LLMatcher

        grammar = _from_lark(lark)
        on_trial(grammar)
        matcher = with_room(lambda: LLMatcher(self.tokenizer, grammar, log_level=0, limits=limits()))
        try:
            Bound(matcher.deep_copy(), self.model.vocab_size, None).mask()
        except GrammarLimitError as error:
            raise GrammarError(str(error)) from None
        return matcher


def on_trial(grammar: str) -> None:
    """GrammarError when a grammar cannot be compiled within bounds."""
    import llguidance

    folder = str(Path(llguidance.__file__).resolve().parents[1])
    question = json.dumps([grammar, LIMITS, 2 * MAX_SECONDS]).encode()
    try:
        TRIALS.ask(question, [folder], MAX_SECONDS)
    except Late:
        raise GrammarError(f"{REFUSED}it takes too long to compile") from None
    except Ended:
        raise GrammarError(f"{REFUSED}it cannot be compiled") from None


def with_room(work: Callable[[], T]) -> T:
    """What work() returns, done in a thread with a large stack."""
    done: list[T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            done.append(work())
        except BaseException as error:
            failed.append(error)

    with _stacks:
        before = threading.stack_size(STACK)
        try:
            thread = threading.Thread(target=run, name="grammar")
            thread.start()
        finally:
            threading.stack_size(before)
    thread.join()
    if failed:
        raise failed[0]
    return done[0]


_stacks = threading.Lock()  # of a setting that is the process's


def as_json(value: Any) -> str:
    """A value as JSON. GrammarError when it is nested too deeply."""
    try:
        return json.dumps(value)
    except RecursionError:
        raise GrammarError("the schema is nested too deeply") from None


class Marks(NamedTuple):
    """The texts around the reasoning of a reply.

    begin  before it
    end    between it and the answer
    plain  before an answer without reasoning; "": nothing
    """

    begin: str
    end: str
    plain: str = ""

    @property
    def sign(self) -> str:
        """The text by which a model is known to have these marks."""
        return self.plain or self.end

    @property
    def starts(self) -> tuple[str, ...]:
        """The texts that a reply may begin with."""
        return (self.begin, self.plain) if self.plain else (self.begin,)


@dataclass(frozen=True)
class Reasoning:
    """What a thinking model writes before its answer: no grammar binds it.

    marks    the texts around it
    begun    whether the prompt has ended with the first of them
    budget   tokens that it may have, see thinking.py; None: no limit
    closing  what then ends it: the mark of its end, with the line ends that belong around it
    """

    marks: Marks
    begun: bool
    budget: int | None = None
    closing: str = ""

    def lark(self, model: Model) -> tuple[str, str]:
        """The start of a rule, and the rules that it refers to."""
        rules = text_before(model, "thought", self.marks.end) + f"\nSPACE: /{WHITESPACE}/\n"
        if self.begun:
            return "thought SPACE", rules
        plain = f" | {as_lark(model, self.marks.plain)}" if self.marks.plain else ""
        return f"({as_lark(model, self.marks.begin)} thought SPACE{plain})?", rules


def text_before(model: Model, name: str, end: str) -> str:
    """The rule of a text that goes up to a mark, with which it ends."""
    if model.control_texts.split(end)[0] == "":  # it begins with a control token, which is no text
        return f"{name}: {name.upper()} {as_lark(model, end)}\n{name.upper()}: /(.|\\n)*/"
    suffix = json.dumps(end, ensure_ascii=False)  # the mark is no part of the text
    return f"{name}[suffix={suffix}]: /(.|\\n)*/"


def as_lark(model: Model, text: str) -> str:
    """A text in a rule, its control tokens by their numbers; nothing if it is empty."""
    tokens = model.control_tokens
    parts = filter(None, model.control_texts.split(text))
    return " ".join(
        f"<[{tokens[part]}]>" if part in tokens else json.dumps(part, ensure_ascii=False) for part in parts
    )


class State:
    """Where one text stands in what binds it. Its own thread's."""

    def mask(self) -> Any:
        """Which tokens may come next, as llm_sample() takes it; valid until the next call."""
        raise NotImplementedError

    def accept(self, token: int) -> None:
        """Goes on to the next token."""
        raise NotImplementedError

    @property
    def complete(self) -> bool:
        """Whether nothing may come any more."""
        raise NotImplementedError

    def forced(self, most: int) -> list[int]:
        """Tokens of which the text is likely to be next: there can be no other text."""
        raise NotImplementedError


class Bound(State):
    """Where one text stands in a grammar of llguidance."""

    def __init__(self, matcher: LLMatcher, vocab_size: int, unescaped: Unescaped | None) -> None:
        self._matcher, self._unescaped = matcher, unescaped
        self._slashes = 0  # with which the text ends
        self._mask = np.zeros(-(-vocab_size // 32), np.uint32)
        self._pointer = ffi.from_buffer("uint32_t[]", self._mask)
        self._sound()

    def _sound(self) -> None:
        if self._matcher.is_error():
            reason = " ".join(self._matcher.get_error().partition("<state>")[0].split())
            if reason == "NoExtensionBias":
                raise GrammarLimitError("the grammar leads to where nothing can follow")
            raise GrammarLimitError(f"the grammar takes too much: {reason[:300]}")

    def mask(self) -> Any:
        self._matcher.unsafe_compute_mask_ptr(self._mask.ctypes.data, self._mask.nbytes)
        self._sound()
        if self._unescaped is not None:
            self._unescaped.narrow(self._mask, self._slashes % 2 == 1)
        return self._pointer

    def accept(self, token: int) -> None:
        self._matcher.consume_token(token)
        self._sound()
        if self._unescaped is not None:
            self._slashes = self._unescaped.slashes(token, self._slashes)

    @property
    def complete(self) -> bool:
        return bool(self._matcher.is_stopped())

    def forced(self, most: int) -> list[int]:
        tokens: list[int] = self._matcher.compute_ff_tokens()[:most]
        return tokens[: self._matcher.validate_tokens(tokens)] if tokens else []


class Unescaped:
    r"""Keeps \uXXXX out of JSON. llguidance takes a name that is written so for none of those that the schema
    lists, but it is one of them to whoever reads it."""

    def __init__(self, model: Model) -> None:
        count = lib.llm_token_count(model.tokenizer)
        tokens = [model.token_bytes(token) for token in range(count)]
        self._trailing = [len(data) - len(data.rstrip(b"\\")) for data in tokens]
        self._sizes = [len(data) for data in tokens]
        # without the tokens that begin such an escape; the second behind a backslash
        self._masks = [np.zeros(-(-model.vocab_size // 32), np.uint32) for _ in range(2)]
        begins = re.compile(rb"(?s)(?:\\.|[^\\])*?\\u")
        for mask, before in zip(self._masks, (b"", b"\\"), strict=True):
            allowed = np.array([begins.match(before + data) is None for data in tokens])
            words = np.packbits(allowed, bitorder="little")
            mask.view(np.uint8)[: len(words)] = words
        self._letters = [tokens.index(data) if data in tokens else None for data in (b"\n", b"z")]

    def narrow(self, mask: np.ndarray, behind: bool) -> None:
        """Takes the tokens out of a mask, except in a text that is not JSON; or if there is no other.

        behind  whether the text so far ends with a backslash that begins an escape"""
        if all(t is not None and mask[t // 32] >> (t % 32) & 1 for t in self._letters):
            return  # both may come in reasoning only, since lines do not break within strings
        narrowed = mask & self._masks[behind]
        if narrowed.any():
            mask[:] = narrowed

    def slashes(self, token: int, before: int) -> int:
        """How many backslashes the text ends with."""
        all_of_it = self._trailing[token] == self._sizes[token]
        return self._trailing[token] + (before if all_of_it else 0)


def limits() -> Any:
    """What grammars may cost."""
    from llguidance import LLParserLimits

    return LLParserLimits(**LIMITS)


def check(constraint: Constraint) -> None:
    """TypeError or GrammarError when it is not what its kind has."""
    kind, what = constraint.kind, constraint.what
    if kind == "schema":
        if not isinstance(what, (dict, bool)):
            raise TypeError(f"schema must be a dict, not {what!r:.60}")
        for pointer, part in walk(what):
            if isinstance(part, dict) and (wrong := unenforceable(part)) is not None:
                place = f"{pointer}/{wrong[0]}"
                raise GrammarError(f"schema at {place}: {wrong[1]}", place)
    elif kind == "choice":
        texts = (
            isinstance(what, Sequence) and not isinstance(what, str) and all(isinstance(t, str) for t in what)
        )
        if not texts or not what or not all(what):
            raise TypeError(f"choice must be a list of texts that are not empty, not {what!r:.60}")
    elif kind not in KINDS:
        raise ValueError(f"a constraint is one of {', '.join(KINDS)}, not {kind!r:.40}")
    elif not isinstance(what, str) or not what:
        raise TypeError(f"{kind} must be a text that is not empty, not {what!r:.60}")


def _from_lark(lark: str) -> str:
    from llguidance import LLMatcher

    return str(LLMatcher.grammar_from_lark(lark))


def _from_schema(schema: Any) -> str:
    from llguidance import LLMatcher

    return str(LLMatcher.grammar_from_json_schema(json.dumps(with_whitespace(schema))))


def _from_gbnf(grammar: str) -> str:
    """A grammar of llama.cpp in Lark's syntax."""
    from llguidance.gbnf_to_lark import any_to_lark

    try:
        return str(any_to_lark(grammar))
    except Exception as error:  # the library has no class of its own for it
        raise GrammarError(f"grammar: {error}") from None


class _Tokens:
    """A model's tokens as llguidance.TokenizerWrapper asks for them."""

    def __init__(self, model: Model) -> None:
        count = lib.llm_token_count(model.tokenizer)
        self.tokens = [model.token_bytes(token) for token in range(count)]
        is_special = lib.llm_token_is_special
        self.special_token_ids = [t for t in range(count) if is_special(model.tokenizer, t)]
        bos = lib.llm_token_bos(model.tokenizer)
        self.bos_token_id = None if bos < 0 else bos
        self.eos_token_id = model.stop_tokens[0] if model.stop_tokens else 0
        self._model = model

    def __call__(self, data: bytes) -> list[int]:
        """The ids of a text that goes on."""
        return ids_behind(self._model, data)


def ids_behind(model: Model, data: bytes, flags: int = 0) -> list[int]:
    """The ids of a text that goes on. flags: LLM_SPECIAL or 0."""
    # what has no neighbours that it could be joined to; a tokenizer that puts a space before every text puts
    # it before this
    before = model.encode(b"\x01", lib.LLM_NO_BOS)
    ids = model.encode(b"\x01" + data, lib.LLM_NO_BOS | flags)
    n = len(before)
    return ids[n:] if ids[:n] == before else model.encode(data, lib.LLM_NO_BOS | flags)


def _tokenizer(model: Model) -> Any:
    try:
        from llguidance import LLTokenizer, TokenizerWrapper
    except ImportError:
        raise ImportError(
            "schemas and grammars need the library llguidance: pip install llguidance"
        ) from None
    tokens = _Tokens(model)
    stops = list(model.stop_tokens) or [tokens.eos_token_id]
    return LLTokenizer(TokenizerWrapper(tokens), n_vocab=model.vocab_size, eos_token=stops)
