"""How tokens are chosen, and what comes of it: SamplingParams in, Completion out, a Continuation in between.

The choosing itself is csrc/sampler.c; what is here knows nothing of batches, sessions or threads: a
Continuation is a request, and when it gets logits is scheduler.py's affair.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, cast

import numpy as np

from pyllm._llm import ffi, lib
from pyllm.binding import Decoder, LLMError, Model, call, integer, real, shown, token_ids
from pyllm.drafts import Drafter
from pyllm.grammar import KINDS, Constraint, State
from pyllm.grammar import check as check_constraint
from pyllm.scheduler import Request

DEFAULTS = lib.llm_sampling_default()
MAX_FLOAT = float(np.finfo(np.float32).max)
REALS = ("temperature", "top_p", "min_p", "repeat_penalty", "presence_penalty", "frequency_penalty")


def default(name: str) -> float:
    """The C default of a float32 field, in as few digits as tell it apart: 0.95, not 0.949999988."""
    return float(f"{getattr(DEFAULTS, name):.7g}")


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How to continue a text. Defaults and ranges are those of llm_sampling in llm.h.

    max_tokens         tokens to make at most; 0: none, the prompt is only run; None: until the model stops
                       or the context is full
    min_tokens         tokens before which no stop token is drawn, and stop texts do not count
    temperature        >= 0; 0: always the most likely token
    top_k              keep the k most likely tokens; 0 or -1: off
    top_p              in (0, 1]: keep the fewest most likely tokens whose probabilities reach it; 1: off
    min_p              in [0, 1]: drop tokens less likely than this times the most likely one; 0: off
    repeat_penalty     > 0: makes tokens of prompt and text less likely; 1: off
    presence_penalty   subtracted once from the logits of tokens made before; 0: off
    frequency_penalty  subtracted once for each time they were made; 0: off
    logit_bias         {token id: number added to its logit}; -inf forbids a token
    seed               0 to 2**64 - 1: the same seed gives the same text; None or -1: a random one, which is
                       Completion.seed
    stop               one or several texts that end the continuation, which goes up to them; kept as a tuple.
                       The text of a control token, such as "<|im_end|>", is that token. One with other text
                       around it, which could never come, is a ValueError when the model is known.
    stop_token_ids     tokens that end the continuation, beside the model's own
    ignore_eos         whether the model's own stop tokens do not end it
    keep_stop_token    whether the token that ends it is among the tokens; it never is in the text
    logprobs           None: none; 0: that of each token made; n: and those of the n most likely in its place
    prompt_logprobs    the same for the tokens of the prompt, all of which are run then
    explain            whether the Completion says how each token came to be drawn

    At most one of these, which need the library llguidance, says what the text is to be (see grammar.py). A
    text that ends by itself is it; one that max_tokens or a stop text ends is the beginning of it.

    schema   a JSON schema, as a dict: JSON that it allows
    regex    a regular expression: what it matches as a whole
    choice   a list of texts: one of them
    grammar  a context-free grammar, in the syntax of Lark or llama.cpp's GBNF

    Numbers may be of any type of real numbers, such as NumPy's, Fraction or Decimal; they are kept as int and
    float. Raises TypeError or ValueError that names the field.
    """

    max_tokens: int | None = None
    min_tokens: int = 0
    temperature: float = default("temperature")
    top_k: int = DEFAULTS.top_k
    top_p: float = default("top_p")
    min_p: float = default("min_p")
    repeat_penalty: float = default("repeat_penalty")
    presence_penalty: float = default("presence_penalty")
    frequency_penalty: float = default("frequency_penalty")
    logit_bias: Mapping[int, float] | None = None
    seed: int | None = None
    stop: str | Sequence[str] | None = None
    stop_token_ids: Sequence[int] | None = None
    ignore_eos: bool = False
    keep_stop_token: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    explain: bool = False
    schema: Mapping[str, Any] | None = None
    regex: str | None = None
    choice: Sequence[str] | None = None
    grammar: str | None = None

    def __post_init__(self) -> None:
        checked: dict[str, Any] = {name: self._checked_real(name) for name in REALS}
        checked["max_tokens"] = self._checked_max_tokens()
        checked["top_k"] = max(0, integer("top_k", self.top_k, -1, 2**32 - 1))
        seed = None if self.seed is None else integer("seed", self.seed, -1, 2**64 - 1)
        checked["seed"] = None if seed == -1 else seed
        checked["min_tokens"] = integer("min_tokens", self.min_tokens, 0)
        for name in ("logprobs", "prompt_logprobs"):
            checked[name] = self._checked_logprobs(name)
        for name in ("ignore_eos", "keep_stop_token", "explain"):
            checked[name] = bool(getattr(self, name))
        self._checked_constraint()
        stops = () if self.stop_token_ids is None else self.stop_token_ids
        checked["stop_token_ids"] = tuple(token_ids(stops, 2**32, "stop_token_ids"))
        checked["stop"] = self._checked_stop()
        checked["logit_bias"] = self._checked_bias()
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        try:
            self._sampler(1, {}, 0)  # the C side knows the ranges
        except LLMError as error:
            raise ValueError(str(error)) from None

    def _checked_real(self, name: str) -> float:
        value = real(name, getattr(self, name))
        if not abs(value) <= MAX_FLOAT:
            raise ValueError(f"{name} must be a float32 number, not {shown(getattr(self, name))}")
        return value

    def _checked_max_tokens(self) -> int | None:
        if self.max_tokens is None:
            return None
        try:
            return integer("max_tokens", self.max_tokens, 0)
        except ValueError as error:
            raise ValueError(f"{error}; None: until the model stops") from None

    def _checked_logprobs(self, name: str) -> int | None:
        given = getattr(self, name)
        if isinstance(given, (bool, np.bool_)):
            meant = "0 for those of the tokens alone, n for the n most likely too" if given else "None"
            raise TypeError(f"{name} must be an integer or None, not {given}: write {meant}")
        return None if given is None else integer(name, given, 0)

    def _checked_stop(self) -> tuple[str, ...]:
        stop = () if self.stop is None else (self.stop,) if isinstance(self.stop, str) else self.stop
        if not isinstance(stop, Sequence) or not all(isinstance(text, str) for text in stop):
            raise TypeError(f"stop must be a str or a sequence of str, not {shown(self.stop)}")
        if not all(stop):
            raise ValueError("stop must not be an empty text")
        return tuple(stop)

    def _checked_bias(self) -> dict[int, float] | None:
        if self.logit_bias is None:
            return None
        if not isinstance(self.logit_bias, Mapping):
            raise TypeError(
                f"logit_bias must be a mapping of token ids to numbers, not {shown(self.logit_bias)}"
            )
        checked = {}
        for key, given in self.logit_bias.items():
            token = integer("a token of logit_bias", key, 0, 2**32 - 1)
            value = real(f"logit_bias[{token}]", given)
            if not value <= MAX_FLOAT:
                raise ValueError(f"logit_bias[{token}] must be a float32 number or -inf, not {shown(given)}")
            checked[token] = value
        return checked

    def _checked_constraint(self) -> None:
        if len(given := [kind for kind in KINDS if getattr(self, kind) is not None]) > 1:
            raise ValueError(f"{given[0]} and {given[1]} cannot both be given")
        if (constraint := self.constraint) is not None:
            check_constraint(constraint)

    @property
    def constraint(self) -> Constraint | None:
        """What the text is to be."""
        kind = next((kind for kind in KINDS if getattr(self, kind) is not None), None)
        return None if kind is None else Constraint(kind, getattr(self, kind))

    @property
    def _stops(self) -> tuple[str, ...]:
        """`stop` as it is kept."""
        return cast("tuple[str, ...]", self.stop)

    def check(self, vocab_size: int) -> None:
        """ValueError when a token is named that a model of this vocabulary does not have."""
        for name in ("logit_bias", "stop_token_ids"):
            for token in getattr(self, name) or ():
                if token >= vocab_size:
                    raise ValueError(f"{name}: {token} is no token, ids are from 0 to {vocab_size - 1}")

    def _sampler(self, vocab_size: int, bias: Mapping[int, float], seed: int) -> Any:
        """An llm_sampler that frees itself."""
        c = ffi.new("llm_sampling *", {name: getattr(self, name) for name in REALS})
        c.top_k, c.seed, c.n_bias = self.top_k, seed, len(bias)
        tokens, values = ffi.new("uint32_t[]", list(bias)), ffi.new("float[]", list(bias.values()))
        c.bias_tokens, c.bias_values = tokens, values
        return ffi.gc(call(lib.llm_sampler_open, c, vocab_size), lib.llm_sampler_close)


def params_for(
    count: int, params: SamplingParams | Sequence[SamplingParams] | None, overrides: dict[str, Any]
) -> list[SamplingParams]:
    """One SamplingParams for each of count prompts. A seed that is given once for all of them counts up."""
    if params is None or isinstance(params, SamplingParams):
        shared = replace(params or SamplingParams(), **overrides)
        each, counts_up = [shared] * count, True
    else:
        each = list(params) if isinstance(params, Sequence) else [params]
        if not all(isinstance(p, SamplingParams) for p in each):
            raise TypeError(f"params must be SamplingParams or a sequence of them, not {params!r:.60}")
        if len(each) != count:
            raise ValueError(f"params has {len(each)} entries for {count} prompts")
        each, counts_up = [replace(p, **overrides) for p in each], "seed" in overrides
    if not counts_up:
        return each
    return [
        p if p.seed is None or i == 0 else replace(p, seed=(p.seed + i) % 2**64) for i, p in enumerate(each)
    ]


class Logprob(NamedTuple):
    """The natural logarithm of a token's probability under the model, before penalties, temperature and
    filters."""

    token: int
    logprob: float
    top: list[tuple[int, float]]  # (id, logprob) of the most likely tokens in this place, most likely first


class Explanation(NamedTuple):
    """How a token came to be drawn, as llm_explanation in llm.h says it: its logit as the model has it and
    with penalties and bias; how many tokens top-k, top-p and min-p each left; its probability among the
    last."""

    token: int
    logit: float
    adjusted: float
    top_k: int
    top_p: int
    min_p: int
    drawn: float


class Usage(NamedTuple):
    """What a completion took, in tokens: those of the prompt, those made, how many of the prompt's had been
    computed before; how many were guessed, and how many of those made were among them."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    drafted_tokens: int = 0
    accepted_tokens: int = 0


@dataclass(frozen=True)
class StreamEvent:
    """A step of a stream with events=True. All of them together make the Completion.

    text               what has become certain; may be empty
    tokens             the ids made in this step
    logprobs           one Logprob for each of tokens, if asked for
    reasoning_content  of a chat's reply with reasoning="apart": what has become certain of its reasoning

    Of the last event only, else None:

    finish_reason  as Completion has it
    stop           as Completion has it
    usage          what it all took, in tokens
    """

    text: str
    tokens: list[int]
    logprobs: list[Logprob] | None = field(repr=False)
    reasoning_content: str = ""
    finish_reason: str | None = None
    stop: int | str | None = None
    usage: Usage | None = None


@dataclass(frozen=True)
class Completion:
    """What came of a prompt; str() is its text.

    text           without the prompt, and without what stopped it
    tokens         the ids made, without the stop token, but with those that made up a stop text of letters
    logprobs       one Logprob for each of tokens, if asked for
    finish_reason  "stop": a stop token or a stop text; "length": max_tokens, or the context is full
    stop           the id of the stop token, or the text of SamplingParams.stop, which goes first where it is
                   that token; None with "length", and where a schema or the like leaves nothing more to come
    prompt_tokens  the number of the prompt's tokens
    seed           what to pass as `seed` to get the same again

    reasoning_content  what a chat's reply reasoned before its text; None: nothing, or not asked to be apart
    prompt_logprobs    if asked for, one for each token of the prompt; None for the first
    explained          if asked for, one Explanation for each of tokens
    masked_mass        with a schema or the like, for each of tokens: the probability of all those that it
                       did not allow in this place. Much of it: the model wants to say something else
    cached_tokens      how many of the prompt's tokens had been computed before; not compared
    drafted_tokens     how many tokens were guessed and run before they came, see LLM's draft; not compared
    accepted_tokens    how many of these then came, each of which saved a step; not compared
    """

    text: str
    tokens: list[int]
    logprobs: list[Logprob] | None = field(repr=False)
    finish_reason: str
    stop: int | str | None
    prompt_tokens: int
    seed: int
    reasoning_content: str | None = None
    prompt_logprobs: list[Logprob | None] | None = field(default=None, repr=False)
    explained: list[Explanation] | None = field(default=None, repr=False)
    masked_mass: list[float] | None = field(default=None, repr=False)
    cached_tokens: int = field(default=0, repr=False, compare=False)
    drafted_tokens: int = field(default=0, repr=False, compare=False)
    accepted_tokens: int = field(default=0, repr=False, compare=False)

    @property
    def usage(self) -> Usage:
        """What it took, in tokens."""
        drafts = self.drafted_tokens, self.accepted_tokens
        return Usage(self.prompt_tokens, len(self.tokens), self.cached_tokens, *drafts)

    def __str__(self) -> str:
        return self.text


def unfinished(text: str, words: Sequence[str]) -> int:
    """Where an end of the text begins that may become one of words; len(text) if none does."""
    first = max(0, len(text) - max(map(len, words), default=0) + 1)
    starts = (i for i in range(first, len(text)) if any(word.startswith(text[i:]) for word in words))
    return next(starts, len(text))


def control_stops(model: Model, stops: Sequence[str], visible: frozenset[int]) -> dict[int, str]:
    """The control tokens among stop texts, each with the text that was given for it.

    A control token has no text, so that a stop text with one inside can never be found: ValueError. It can if
    the token is visible. White space beside a token that takes it along is part of the token."""
    found: dict[int, str] = {}
    for stop in stops:
        ids = model.encode(stop, lib.LLM_NO_BOS | lib.LLM_SPECIAL)
        control = [i for i in ids if lib.llm_token_is_special(model.tokenizer, i)]
        control = [i for i in control if model.token_text(i) in stop]  # not what unknown characters become
        if len(ids) == len(control) == 1:
            found.setdefault(ids[0], stop)
        elif hidden := [i for i in control if i not in visible]:
            raise ValueError(
                f"stop: {shown(stop)} can never come, since {model.token_text(hidden[0])!r} is a "
                "control token, which has no text: let it be a stop text of its own"
            )
    return found


class Continuation(Request):
    """A prompt on its way to a Completion: takes logits until `finished`.

    prompt    ids (n,), n >= 1
    visible   control tokens that have a text nevertheless
    drafter   what guesses at the tokens that come next; None: nothing does
    grammar   what the text is bound to; None: nothing
    streamed  whether each step goes to `updates` as a StreamEvent
    """

    def __init__(
        self,
        model: Model,
        prompt: list[int],
        params: SamplingParams,
        context: int,
        visible: frozenset[int] = frozenset(),
        drafter: Drafter | None = None,
        grammar: State | None = None,
    ) -> None:
        room = context - len(prompt) + 1  # the last token made need not be run
        self.model, self.tokenizer, self.prompt, self.params = model, model.tokenizer, prompt, params
        self.limit = room if params.max_tokens is None else min(room, params.max_tokens)
        self.prompt_logprobs: list[Logprob | None] | None = None
        first = len(prompt) - (self.limit > 0)
        if params.prompt_logprobs is not None:
            self.prompt_logprobs, first = [None], 0
        super().__init__(list(prompt), first)
        self.context = context
        self.seed = secrets.randbits(64) if params.seed is None else params.seed
        self.visible = visible
        self.drafter, self.accepted = drafter, 0
        self.grammar = grammar
        self.agreed, self.trust = 0, 1  # how far `known` is as ids are, and how many tokens of it are guessed
        self.masked_mass: list[float] | None = None if grammar is None else []
        self.stops: dict[int, int | str] = {} if params.ignore_eos else {i: i for i in model.stop_tokens}
        self.stops |= {token: token for token in cast("tuple[int, ...]", params.stop_token_ids)}
        self.stops |= control_stops(model, params._stops, visible)
        self.decoder = Decoder(model)
        self.decoder.feed(prompt)  # so that the first token's leading space is not the first of a text
        self.streamed = False
        self.tokens: list[int] = []
        self.logprobs: list[Logprob] | None = None if params.logprobs is None else []
        self.explained: list[Explanation] | None = [] if params.explain else None
        self.why = ffi.new("llm_explanation *")
        self.finish_reason = "" if self.limit else "length"  # "": not yet
        self.stop: int | str | None = None
        self.parts: list[str] = []  # text that is certain
        self.held = ""  # text that may be the start of a stop text
        # how many of parts and tokens events have told of; None: all
        self.told: tuple[int, int] | None = (0, 0)

    @property
    def most(self) -> int:
        return min(len(self.prompt) + self.limit, self.context)

    def start(self) -> None:
        self.sampler = self.params._sampler(self.model.vocab_size, self.params.logit_bias or {}, self.seed)
        if self.params.repeat_penalty != 1:
            for token in self.prompt:
                lib.llm_sampler_accept(self.sampler, token, 0)

    @property
    def finished(self) -> bool:
        return self.finish_reason != ""

    def draft(self, most: int) -> list[int]:
        """Guesses at the next tokens, up to one that would end it; none behind the last that it may have."""
        most = min(most, self.limit - len(self.tokens) - 1)
        if most < 1 or self.drafter is None:
            return []
        guesses = self.grammar.forced(most) if self.grammar is not None else []
        guesses = guesses or self._remembered(most)
        if not guesses:
            guesses = self.drafter.draft(self.ids, most)
        ends = (i for i, token in enumerate(guesses) if self._ends(token) or token >= self.model.vocab_size)
        return guesses[: next(ends, most)]

    def _remembered(self, most: int) -> list[int]:
        """What came next in a text that began alike, of which its sequence was: more with each that was
        right."""
        at, known = len(self.ids), self.known
        if known[self.agreed : at] != self.ids[self.agreed : at] or at >= len(known):
            self.known = []
            return []
        self.agreed, self.trust = at, min(2 * self.trust, most)
        return known[at : at + self.trust]

    def accept(self, logits: Any) -> None:
        """Takes the next token from logits: a float * to (vocab_size,)."""
        if self.prompt_logprobs is not None and len(self.prompt_logprobs) < len(self.prompt):
            token = self.prompt[len(self.prompt_logprobs)]
            self.prompt_logprobs.append(self._logprob(logits, token, self.params.prompt_logprobs or 0))
            return
        if self.finished:  # max_tokens is 0
            return
        mask = self._mask()
        token = lib.llm_sample_explained(self.sampler, logits, mask, self.why)
        if self.grammar is not None:
            self._bind(token, logits, mask)
        if self.guesses:
            self.accepted += self.guesses[0] == token
            self.guesses = self.guesses[1:]
        self._take(token, logits)
        if not self.finished:
            self.ids.append(self.tokens[-1])
        if self.streamed:
            self.updates.put(self._event())

    def end(self, error: BaseException | None = None) -> None:
        if self.streamed and error is None and self.told is not None:  # it has ended without a token
            self.updates.put(self._event())
        super().end(error)

    def _mask(self) -> Any:
        """Which tokens may come next, as llm_sample() takes it."""
        if len(self.tokens) >= self.params.min_tokens:
            return ffi.NULL if self.grammar is None else self.grammar.mask()
        words = np.full(-(-self.model.vocab_size // 32), 2**32 - 1, np.uint32)
        if self.grammar is not None:
            words[:] = np.frombuffer(ffi.buffer(self.grammar.mask(), words.nbytes), np.uint32)
        for token in self.stops:
            words[token // 32] &= np.uint32(2**32 - 1 - (1 << token % 32))
        if not words.any():  # the grammar lets it end only
            return self.grammar.mask() if self.grammar is not None else ffi.NULL
        return ffi.from_buffer("uint32_t[]", words)

    def _bind(self, token: int, logits: Any, mask: Any) -> None:
        """Tells the grammar of a token."""
        assert self.grammar is not None and self.masked_mass is not None
        if not self._ends(token) or self.params.keep_stop_token:
            self.masked_mass.append(max(0.0, 1 - lib.llm_mass(logits, self.model.vocab_size, mask)))
        if not self._ends(token):
            self.grammar.accept(token)

    def _ends(self, token: int) -> bool:
        """Whether this token ends the text."""
        return token in self.stops

    def _take(self, token: int, logits: Any) -> None:
        ends = self._ends(token)
        if not ends or self.params.keep_stop_token:
            if self.explained is not None:
                why = self.why
                left = why.top_k, why.top_p, why.min_p
                self.explained.append(Explanation(token, why.logit, why.adjusted, *left, why.drawn))
            if self.logprobs is not None:
                self.logprobs.append(self._logprob(logits, token, self.params.logprobs or 0))
            self.tokens.append(token)
        if ends:
            self._finish("stop", self.stops[token])
            return
        self._add(self.decoder.feed([token], special=token in self.visible))
        if self.stop is not None:
            self._finish("stop", self.stop)
        elif self.grammar is not None and self.grammar.complete:
            self._finish("stop", None)
        elif len(self.tokens) >= self.limit:
            self._finish("length", None)

    def _finish(self, reason: str, stop: int | str | None) -> None:
        if self.stop is None:  # no stop text yet: what was held back is text, and may still hold one
            self._add(self.decoder.end(), last=True)
        self.finish_reason = reason if self.stop is None else "stop"
        self.stop = stop if self.stop is None else self.stop
        del self.sampler, self.decoder

    def _logprob(self, logits: Any, token: int, n: int) -> Logprob:
        n = min(n, self.model.vocab_size)
        ids, values = ffi.new("uint32_t[]", n), ffi.new("float[]", n)
        value = lib.llm_logprobs(logits, self.model.vocab_size, token, n, ids, values)
        return Logprob(token, value, list(zip(ids, values, strict=True)))

    def _add(self, piece: str, last: bool = False) -> None:
        """Appends text up to a stop text if there is one, else up to what may become one."""
        stops = self.params._stops if len(self.tokens) > self.params.min_tokens else ()
        self.held += piece
        found = min(
            ((at, i) for i, stop in enumerate(stops) if (at := self.held.find(stop)) >= 0), default=None
        )
        if found:
            at, self.stop = found[0], stops[found[1]]
        else:
            at = len(self.held) if last else unfinished(self.held, stops)
        self.parts.append(self.held[:at])
        self.held = "" if found else self.held[at:]

    def _event(self) -> StreamEvent:
        """What has come since the last one."""
        assert self.told is not None
        parts, tokens = self.told
        self.told = None if self.finished else (len(self.parts), len(self.tokens))
        event = StreamEvent(
            "".join(self.parts[parts:]),
            self.tokens[tokens:],
            None if self.logprobs is None else self.logprobs[tokens:],
        )
        if not self.finished:
            return event
        usage = Usage(len(self.prompt), len(self.tokens), self.cached, self.drafted, self.accepted)
        return replace(event, finish_reason=self.finish_reason, stop=self.stop, usage=usage)

    def completion(self) -> Completion:
        return Completion(
            "".join(self.parts),
            self.tokens,
            self.logprobs,
            self.finish_reason,
            self.stop,
            len(self.prompt),
            self.seed,
            prompt_logprobs=self.prompt_logprobs,
            explained=self.explained,
            masked_mass=self.masked_mass,
            cached_tokens=self.cached,
            drafted_tokens=self.drafted,
            accepted_tokens=self.accepted,
        )
