"""The sequences of a cache: which requests have them, and what the others keep of earlier requests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pyllm.binding import Cache, LLMError, shared_prefix

if TYPE_CHECKING:
    from pyllm.scheduler import Request
    from pyllm.shelf import Shelf

MIN_SHARED = 32  # tokens that are worth waiting for another request to compute them
MIN_COPIED = 8  # tokens that are worth a copy, which is made in pages of 64
MIN_SHELVED = 128  # tokens that are worth a file
DEEP = 2048  # positions behind which a token's attention costs about as much as its products with weights


@dataclass
class Entry:
    """What an idle sequence is worth.

    partition  whose it is: others do not share it
    uses       how many requests have begun with it
    shared     how many of its tokens another one has begun with, too
    worth      by GreedyDual-Size-Frequency (Cherkasova 1998): what was let go last was worth, and what it
               would cost to compute it again, a byte, for each of its uses
    """

    partition: Any
    uses: int
    shared: int
    worth: float


class Places:
    """Places for requests in a cache.

    max_idle    sequences that are kept after their requests
    memory      bytes of keys and values that all sequences may have; None: no limit
    overcommit  whether what requests have counts for that, not what they may come to have
    shelf       where what was of use goes when it is let go of, and comes from again; None: nowhere
    """

    def __init__(
        self, cache: Cache, max_idle: int, memory: int | None, overcommit: bool, shelf: Shelf | None = None
    ) -> None:
        self.shelf = shelf
        self.cache, self.max_idle, self.memory, self.overcommit = cache, max_idle, memory, overcommit
        self.idle: dict[
            int, Entry
        ] = {}  # sequences without a request that hold tokens, the longest unused first
        self._used: dict[int, Request] = {}  # those that requests have
        self._clock = 0.0  # what was let go last was worth

    def __len__(self) -> int:
        return len(self.cache.tokens)

    def tokens(self, seq: int) -> list[int]:
        return self.cache.tokens[seq]

    # ------------------------------------------------------------------------------------------------------
    # Memory

    def _needed(self, request: Request) -> int:
        """Bytes of keys and values that count for a request."""
        return self.cache.size(len(request.ids) if self.overcommit else request.most)

    @property
    def needed(self) -> int:
        """Those that count for all requests."""
        return sum(map(self._needed, self._used.values()))

    @property
    def kept(self) -> int:
        """Bytes of keys and values of sequences without a request."""
        return sum(self.cache.size(len(self.tokens(seq))) for seq in self.idle)

    @property
    def held(self) -> int:
        """Those of all sequences."""
        return sum(self.cache.size(len(tokens)) for tokens in self.cache.tokens if tokens)

    def has_room_for(self, request: Request, running: Sequence[Request]) -> bool:
        """Whether one more may enter beside those that run, once nothing is kept that none of them needs. It
        may where it is alone."""
        if self.memory is None or not running:
            return True
        return sum(map(self._needed, running)) + self._needed(request) <= self.memory

    @property
    def overfull(self) -> bool:
        """Whether several requests need more memory than there is, without what is kept."""
        return self.memory is not None and len(self._used) > 1 and self.needed > self.memory

    def make_room(self) -> None:
        """Lets go of what is kept until number and memory are within their limits."""
        while self.idle and (
            len(self.idle) > self.max_idle
            or (self.memory is not None and self.needed + self.kept > self.memory)
        ):
            seq = min(self.idle, key=lambda seq: self.idle[seq].worth)  # of equals the longest unused
            self._clock = max(self._clock, self.idle[seq].worth)
            self._shelve(seq)
            self._empty(seq)

    def _shelve(self, seq: int) -> None:
        """Puts what is kept on the shelf, if it was of use to more than one; only what was, where it can
        only be taken as a whole."""
        entry = self.idle[seq]
        length = self.cache.cut(seq, entry.shared) if self.cache.whole else len(self.tokens(seq))
        if self.shelf is not None and entry.uses > 1 and length >= MIN_SHELVED:
            self.shelf.put(entry.partition, self.cache.save(seq, length))

    def shelve_all(self) -> None:
        """The same with all that is kept."""
        for seq in self.idle:
            self._shelve(seq)

    def _empty(self, seq: int) -> None:
        self.idle.pop(seq, None)
        self.cache.truncate(seq, 0)

    # ------------------------------------------------------------------------------------------------------
    # Coming and going

    def place(self, request: Request) -> bool:
        """Gives a request a sequence with as much of its prompt as is known. False: it waits for another one
        that is about to compute more of it."""
        if request.after and not request.after[0].ended:
            other, length = request.after
            if other.seq >= 0 and len(self.tokens(other.seq)) < length:
                return False
        seqs = range(len(self))
        shared = [self._reusable(seq, request) for seq in seqs]
        recent = {seq: i for i, seq in enumerate(self.idle)}  # the last one is the most likely to go on alike
        best = max(seqs, key=lambda seq: (shared[seq], recent.get(seq, -1)))
        for other in self._used.values():
            if other.terms.partition != request.terms.partition:
                continue
            length = min(shared_prefix(other.ids, request.ids), request.fresh)
            to_come = length > len(self.tokens(other.seq))
            if to_come and length - shared[best] >= MIN_SHARED:
                request.after = other, length
                return False
        request.after = None
        self._take(request, best, shared[best])
        if self.shelf is not None:
            self._take_from_shelf(request)
        return True

    def _take_from_shelf(self, request: Request) -> None:
        """Has a request begin with what is on the shelf, where that is much more than it has."""
        assert self.shelf is not None
        have = len(self.tokens(request.seq))
        name, length = self.shelf.find(request.terms.partition, request.ids, request.fresh)
        if length - have < MIN_SHELVED or (found := self.shelf.load(name)) is None:
            return
        try:
            self.cache.load(request.seq, found)
        except LLMError:  # there is no memory for it
            self.cache.truncate(request.seq, 0)
        usable = self.cache.reusable(request.seq, request.ids, request.fresh)
        self.cache.truncate(request.seq, usable)
        request.uses = max(request.uses, 2)

    def _reusable(self, seq: int, request: Request) -> int:
        """How many tokens of a sequence a request can begin with."""
        if seq in self.idle:
            partition = self.idle[seq].partition
        elif seq in self._used:
            partition = self._used[seq].terms.partition
        else:  # it is empty
            return 0
        if partition != request.terms.partition:
            return 0
        return self.cache.reusable(seq, request.ids, request.fresh)

    def _take(self, request: Request, best: int, length: int) -> None:
        """Gives a request the sequence that begins most like it, or a copy of it."""
        copied = best if length >= MIN_COPIED else -1
        empty = [seq for seq in range(len(self)) if seq not in self._used and seq not in self.idle]
        if best in self.idle and len(self.tokens(best)) <= 2 * length:  # less is lost than won
            seq = best
        elif empty and (len(self.idle) < self.max_idle or not self.idle):
            seq = empty[0]
        else:
            seq = min(self.idle, key=lambda seq: (seq == copied, self.idle[seq].worth))
        request.uses = 1
        if copied in self.idle:
            request.uses += self.idle[best].uses
            self._touch(best, length)
        if copied >= 0 and length >= request.fresh and not request.started:
            request.known = list(self.tokens(best))
        if seq in self.idle and seq != copied:
            self._shelve(seq)
        self.idle.pop(seq, None)
        if seq == best:
            self.cache.truncate(seq, length)
        elif copied >= 0:
            self.cache.copy(best, seq, length)
        else:
            self.cache.truncate(seq, 0)
        self._used[seq] = request
        request.seq = seq
        self.make_room()

    def _touch(self, seq: int, shared: int) -> None:
        """Counts a use of what is kept, and makes it the last that was used."""
        entry = self.idle.pop(seq)
        self.idle[seq] = self._entry(seq, entry.partition, entry.uses + 1, max(entry.shared, shared))

    def _entry(self, seq: int, partition: Any, uses: int, shared: int) -> Entry:
        length = len(self.tokens(seq))
        cost = length * (1 + length / (2 * DEEP))
        return Entry(partition, uses, shared, self._clock + uses * cost / self.cache.size(length))

    def leave(self, request: Request) -> None:
        """Takes a request's sequence from it; what it has computed is kept for a while."""
        seq = request.seq
        if seq < 0:
            return
        del self._used[seq]
        if not request.terms.keep:
            self.cache.truncate(seq, 0)
        tokens = self.tokens(seq)
        if not tokens:
            return
        partition = request.terms.partition
        for other, entry in list(self.idle.items()):
            if entry.partition == partition and tokens[: len(self.tokens(other))] == self.tokens(other):
                self._empty(other)  # this one has all of it
        self.idle[seq] = self._entry(seq, partition, request.uses, request.cached)
        self.make_room()
