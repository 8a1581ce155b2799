"""Where drafts come from: the text so far, or a smaller model.

A draft is a guess at the tokens that come next. It is run together with the token before it (scheduler.py),
and whatever it says, the tokens are drawn as they would be without it (sampling.py): it can only save time.
"""

from __future__ import annotations

from typing import Any

from pyllm._llm import ffi, lib
from pyllm.binding import CHUNK, Cache, LLMError, Model, call
from pyllm.scheduler import MAX_DRAFTED, MAX_DRAFTING

MAX_OWN = 0.3  # what running a draft model counts for at most, in steps: who gives one wants it used
PRIOR, CHANGE = 0.7, 0.1  # how likely a guess is thought to be right at first, and how much each changes that
PAUSE = 32  # tokens that are made without a draft model while its guesses are not worth their cost


class Drafter:
    """Guesses for one request."""

    def draft(self, ids: list[int], most: int) -> list[int]:
        """At most that many tokens that may come behind ids: all of the request's, which only grow."""
        raise NotImplementedError


class Lookup(Drafter):
    """Prompt lookup: what followed the last tokens where they came before. csrc/lookup.c has it.

    n_prompt  how many of the ids are the prompt's: the others say how good the guesses are
    """

    def __init__(self, model: Model, n_prompt: int) -> None:
        self.model, self.n_prompt, self.n_known = model, n_prompt, 0
        self.lookup: Any = None
        self.room = ffi.new("uint32_t[]", MAX_DRAFTED)

    def draft(self, ids: list[int], most: int) -> list[int]:
        if self.lookup is None:
            self.lookup = ffi.gc(call(lib.llm_lookup_open, self.model.ptr), lib.llm_lookup_close)
        self._add(ids, self.n_prompt, 0)
        self._add(ids, len(ids), 1)
        n = lib.llm_lookup_draft(self.lookup, self.room, min(most, MAX_DRAFTED))
        return ffi.unpack(self.room, n) if n else []

    def _add(self, ids: list[int], end: int, generated: int) -> None:
        """Tells of the ids up to `end` that are not known there yet."""
        new = ids[self.n_known : end]
        if new:
            call(lib.llm_lookup_add, self.lookup, new, len(new), generated)
            self.n_known += len(new)


class DraftModel:
    """A smaller model that guesses for the requests of another one. One thread at a time.

    target  that other model
    """

    def __init__(self, model: Model, target: Model, context: int, threads: int) -> None:
        self.model, self.context, self.threads = model, context, threads
        own = model.counts.read / target.counts.read
        # a draft ends where it is less likely than its cost in steps to be right
        self.cost: float = lib.llm_token_cost(target.ptr) + min(own, MAX_OWN)
        self.cache: Cache | None = None
        # whose each sequence is, the longest unused first; replaced as a whole: a process may fork anywhere
        self.users: list[tuple[object, int]] = [(None, seq) for seq in range(MAX_DRAFTING)]

    def guess(self, user: object, ids: list[int], most: int) -> list[int]:
        """The most likely tokens behind ids; none yet where there is much to read first. LLMError where it
        cannot be run."""
        if self.cache is None or self.cache.orphaned:
            self.cache = Cache(self.model, self.context, self.threads, MAX_DRAFTING)
        self.cache.sync()
        seq = self._seq_of(user, ids)
        at = len(self.cache.tokens[seq])
        new = ids[at : at + CHUNK]
        if max(new) >= self.model.vocab_size:  # a token that only the other model has
            return []
        want = [False] * len(new)
        want[-1] = at + len(new) == len(ids)
        rows = self.cache.forward(new, [seq] * len(new), want)
        guesses: list[int] = []
        while len(rows):
            guesses.append(int(rows[0].argmax()))
            if len(guesses) == most:
                break
            rows = self.cache.forward(guesses[-1:], [seq], [True])
        return guesses

    def _seq_of(self, user: object, ids: list[int]) -> int:
        """A sequence that holds as much of ids as there is, but for the last one."""
        assert self.cache is not None
        shared = [self.cache.reusable(seq, ids, len(ids) - 1) for seq in range(len(self.cache.tokens))]
        seq = next((seq for other, seq in self.users if other is user), self.users[0][1])
        self.users = [*((other, used) for other, used in self.users if used != seq), (user, seq)]
        best = max(range(len(shared)), key=shared.__getitem__)
        if shared[best] > shared[seq]:
            self.cache.copy(best, seq, shared[best])
        else:
            self.cache.truncate(seq, shared[seq])
        return seq


class ModelDrafts(Drafter):
    """The guesses of a draft model, as many as are worth their cost."""

    def __init__(self, model: DraftModel) -> None:
        self.model, self.user = model, object()
        self.rate = PRIOR  # how often guesses are right
        self.guesses: list[int] = []  # the last ones,
        self.start = 0  # and where they began
        self.failed = False

    def draft(self, ids: list[int], most: int) -> list[int]:
        self._judge(ids)
        most = min(most, MAX_DRAFTED, self._worth(len(ids)))
        if most == 0 or self.failed:
            return []
        try:
            self.guesses, self.start = self.model.guess(self.user, ids, most), len(ids)
        except LLMError:  # such as memory that is not there: the request can do without
            self.failed = True
        return list(self.guesses)

    def _judge(self, ids: list[int]) -> None:
        """Learns from the tokens that came where the last guesses were."""
        for guess, token in zip(self.guesses, ids[self.start :], strict=False):
            self.rate += CHANGE * ((guess == token) - self.rate)
            if guess != token:
                break
        self.guesses = []

    def _worth(self, length: int) -> int:
        """How many guesses are worth their cost; one now and then if none is."""
        n, likely = 0, self.rate
        while n < MAX_DRAFTED and likely >= self.model.cost:
            n, likely = n + 1, likely * self.rate
        return n or int(length >= self.start + PAUSE)


def texts_differ(model: Model, other: Model) -> bool:
    """Whether two models do not have the same tokens: texts and kinds, by id."""
    tags = (lib.LLM_TOKEN_STARTS, lib.LLM_TOKEN_BYTES, lib.LLM_TOKEN_TYPES)
    return any(model.section(tag) != other.section(tag) for tag in tags)
