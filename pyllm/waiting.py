"""What waits to be run, and whose turn it is."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyllm.scheduler import Request

UNIT = 16  # tokens of prompts that an owner gets at a turn


class Waiting:
    """Requests that have not begun. First go those of the lowest priority number, then those whose owner has
    the fewest that run, then those that came first; requests that came together take turns with others as if
    they were one."""

    def __init__(self) -> None:
        self._groups: deque[deque[Request]] = deque()  # what came together, each in its order
        self._deadline = float("inf")  # the first of all

    def __iter__(self) -> Iterator[Request]:
        for group in list(self._groups):
            yield from list(group)

    def __len__(self) -> int:
        return sum(map(len, self._groups))

    def __bool__(self) -> bool:
        return bool(self._groups)

    def add(self, requests: Sequence[Request]) -> None:
        """Takes in what came together."""
        if requests:
            self._groups.append(deque(requests))
            self._deadline = min(self._deadline, *(request.terms.deadline for request in requests))

    def put_back(self, request: Request) -> None:
        """Takes in what had its turn, and is to have it again."""
        self._groups.appendleft(deque([request]))
        self._deadline = min(self._deadline, request.terms.deadline)

    def next(self, running: Mapping[str, int]) -> Request | None:
        """The request whose turn it is. running: how many run of each owner."""
        if not self._groups:
            return None

        def turn(i: int) -> tuple[int, int]:
            terms = self._groups[i][0].terms
            return terms.priority, running.get(terms.owner, 0)

        i = min(range(len(self._groups)), key=turn)
        group = self._groups[i]
        del self._groups[i]
        request = group.popleft()
        if group:
            self._groups.append(group)
        return request

    @property
    def late(self) -> bool:
        """Whether the time of one of them is over."""
        return self._deadline < time.monotonic()

    def take_out(self, gone: Callable[[Request], bool]) -> list[Request]:
        """Removes those that are gone, and returns them."""
        found = [request for request in self if gone(request)]
        if found:
            kept = (deque(request for request in group if not gone(request)) for group in self._groups)
            self._groups = deque(group for group in kept if group)
        self._deadline = min((request.terms.deadline for request in self), default=float("inf"))
        return found

    def clear(self) -> list[Request]:
        """Removes all, and returns them."""
        return self.take_out(lambda _: True)


class Shares:
    """Who has had how much of the room for prompts: start-time fair queueing (Goyal, Vin and Cheng 1996) of
    owners that all weigh the same."""

    def __init__(self) -> None:
        self._had: dict[str, int] = {}  # tokens, of those that wanted some in the last step

    def split(self, room: int, wanted: Mapping[str, int]) -> dict[str, int]:
        """How many tokens of the room each owner gets, of what it wants: who had the least goes first, by
        turns of UNIT. A newcomer has had as much as the one that had the least."""
        least = min((had for owner, had in self._had.items() if owner in wanted), default=0)
        self._had = {owner: self._had.get(owner, least) for owner in wanted}
        given = dict.fromkeys(wanted, 0)
        if len(wanted) == 1:
            return {owner: min(room, tokens) for owner, tokens in wanted.items()}
        while room and (open_ := [owner for owner in wanted if given[owner] < wanted[owner]]):
            owner = min(open_, key=self._had.__getitem__)
            count = min(UNIT, room, wanted[owner] - given[owner])
            given[owner] += count
            self._had[owner] += count
            room -= count
        return given
