"""What a step costs, learnt from the steps that were made."""

from __future__ import annotations

from itertools import combinations

import numpy as np

KEPT = 0.99  # of what earlier steps say, when one more has been made: some hundred of them count
LARGE = 32  # tokens of a step that tells what a token costs, beside one of fewer
RARELY = 32  # steps after which the numbers are solved for again
SLOW = 4.0  # times as long as expected: then the machine was busy with something else, and the step says less


class Pace:
    """seconds = start + tokens * token + reads * read of a step; `reads` are the positions that all of its
    tokens attend to, together. The three numbers are those of the least squares of relative errors, none
    below 0.

    steps    how many it has learnt from
    error    the mean relative error of its last predictions, weighted as the steps are
    """

    def __init__(self) -> None:
        self.steps, self.error = 0, 0.0
        self._products, self._sums = np.zeros((3, 3)), np.zeros(3)  # the normal equations
        self._cost = np.zeros(3)  # solved from them,
        self._next = 0  # anew when there are so many steps
        self._sizes = [False, False]  # whether there was a small and a large step

    @property
    def known(self) -> bool:
        """Whether there were steps enough to tell."""
        return all(self._sizes)

    def learn(self, tokens: int, reads: int, seconds: float) -> None:
        """Takes a step in."""
        if self.known:
            expected = self.seconds(tokens, reads)
            self.error += (1 - KEPT) * (abs(seconds / expected - 1) - self.error)
            seconds = min(seconds, SLOW * expected)
        self.steps += 1
        self._sizes[tokens >= LARGE] = True
        row = np.array([1.0, tokens, reads]) / seconds
        self._products = KEPT * self._products + np.outer(row, row)
        self._sums = KEPT * self._sums + row

    def _solved(self) -> np.ndarray:
        if self.steps >= self._next:
            self._cost = _not_negative(self._products, self._sums)
            self._next = self.steps + min(self.steps, RARELY)
        return self._cost

    def seconds(self, tokens: int, reads: int) -> float:
        """What a step takes, at least a microsecond. Only where it is known."""
        return max(1e-6, float(self._solved() @ (1.0, tokens, reads)))

    def room(self, seconds: float, tokens: int, reads: int, depth: int) -> int:
        """How many more tokens than these, each of which attends to `depth` positions, a step of that many
        seconds has room for; negative where there is none. Only where it is known."""
        _, token, read = self._solved()
        more = token + read * depth
        return int(min(1e9, (seconds - self.seconds(tokens, reads)) / max(more, 1e-9)))


def _not_negative(products: np.ndarray, sums: np.ndarray) -> np.ndarray:
    """The least squares of normal equations (3, 3) and (3,) without a number below 0: of the solutions in
    some of the numbers, the others 0, the best."""
    best, least = np.zeros(3), 0.0
    for size in (3, 2, 1):
        for chosen in combinations(range(3), size):
            some = np.ix_(chosen, chosen)
            x = np.zeros(3)
            x[list(chosen)] = np.linalg.lstsq(products[some], sums[list(chosen)], rcond=1e-12)[0]
            error = x @ products @ x - 2 * sums @ x
            if x.min() >= 0 and error < least:
                best, least = x, error
        if size == 3 and least < 0:
            break
    return best
