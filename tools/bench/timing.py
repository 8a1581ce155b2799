"""Times a case: all engines take turns, so that what disturbs the machine disturbs all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from tools.bench.cases import Case
from tools.bench.common import Unavailable
from tools.bench.peers import RUNNERS
from tools.bench.workers import Worker

PAUSE = 0.4  # seconds before each measurement: the threads of the program before it have stopped spinning
SLOW = 60.0  # a case whose warm-up takes all programs together longer than this is repeated half as often
HOPELESS = 1.3  # a variant that warms up this many times as slowly as the engine's best is not timed


@dataclass
class Measurement:
    """A case: engine -> variant -> seconds of each round; or engine -> why there are none."""

    case: Case
    rounds: int
    seconds: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def best(self, engine: str) -> str:
        """The variant with the lowest median."""
        return min(self.seconds[engine], key=lambda v: statistics.median(self.seconds[engine][v]))

    def median(self, engine: str) -> float | None:
        """Seconds, or None when the engine has none."""
        if engine not in self.seconds:
            return None
        return statistics.median(self.seconds[engine][self.best(engine)])

    def speed(self, engine: str) -> float | None:
        """Tokens a second, of all sequences together."""
        median = self.median(engine)
        return None if median is None else self.case.tokens / median

    def ratio(self, ours: str, theirs: str) -> float | None:
        """How many times as fast: the median over the rounds."""
        if ours not in self.seconds or theirs not in self.seconds:
            return None
        pairs = zip(self.seconds[theirs][self.best(theirs)], self.seconds[ours][self.best(ours)], strict=True)
        return statistics.median(b / a for b, a in pairs)

    def fastest(self, engines: Sequence[str]) -> str | None:
        """The one of these engines with the highest speed."""
        return max(
            (e for e in engines if e in self.seconds), key=lambda e: self.speed(e) or 0.0, default=None
        )


def measure(case: Case, workers: Sequence[Worker], vocab_size: int, repeat: int) -> Measurement:
    """Every engine once to warm up, then in each round all in turn, beginning with another one each time."""
    result = Measurement(case, repeat)

    def time_one(one: Worker, variant: str, round_: int) -> float:
        time.sleep(PAUSE)
        try:
            seconds: float = one.ask(**case.request(vocab_size, round_), variant=variant)
            return seconds
        except Unavailable as error:
            result.failed[one.name] = str(error)
            result.seconds.pop(one.name, None)
            return 0.0

    turns: list[tuple[Worker, str]] = []
    warm_up = 0.0
    for one in workers:
        first: dict[str, float] = {}
        for variant in RUNNERS[one.engine.runner].variants_of(case):
            if one.name not in result.failed:
                first[variant] = time_one(one, variant, 0)
        turns += [(one, variant) for variant in first if first[variant] <= HOPELESS * min(first.values())]
        warm_up += sum(first.values()) * max(1, case.steps)
    if warm_up > SLOW:
        result.rounds = min(repeat, max(2, repeat // 2))
    for round_ in range(result.rounds):
        start = round_ % max(1, len(turns))
        for one, variant in turns[start:] + turns[:start]:
            if one.name in result.failed:
                continue
            seconds = time_one(one, variant, 1 + round_)
            if one.name not in result.failed:
                result.seconds.setdefault(one.name, {}).setdefault(variant, []).append(seconds)
    return result


def check_same_model(workers: Sequence[Worker], ids: list[int]) -> tuple[str, dict[str, float]]:
    """The engine that the others are compared with, and by how much the logits after ids differ for each, in
    standard deviations: the root mean square; or for one that only names a token, what the reference gives
    that token less than its own choice. An engine beyond the tolerance fails."""
    found: dict[str, list[float] | int] = {}
    for one in workers:
        try:
            found[one.name] = one.ask(command="logits", ids=ids)
        except Unavailable as error:
            one.failed = one.failed or str(error)
    most = {one.name: one.engine.tolerance for one in workers}
    whole = [name for name, logits in found.items() if isinstance(logits, list)]
    if not whole:
        return "", {}
    reference = min(whole, key=most.__getitem__)  # the most exact, the first of such
    expected = np.array(found[reference])
    difference = {}
    for one in workers:
        if (logits := found.get(one.name)) is None:
            continue
        if isinstance(logits, int):
            gap = expected.max() - expected[logits]
        else:
            gap = np.sqrt(np.mean(np.square(np.array(logits) - expected)))
        difference[one.name] = float(gap / expected.std())
        if not difference[one.name] <= most[one.name]:  # NaN does not pass either
            one.failed = f"its logits are another model's (difference {difference[one.name]:.2f})"
    return reference, difference
