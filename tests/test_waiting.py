"""Who goes next, who gets how much of a step, what a step costs, and what is kept: without a model."""

from __future__ import annotations

import random
import time
from collections import Counter
from typing import Any

import pytest

from pyllm.pace import LARGE, SLOW, Pace
from pyllm.scheduler import Request, Terms
from pyllm.waiting import UNIT, Shares, Waiting


def request(**terms: Any) -> Request:
    made = Request([1, 2, 3], 2)
    made.terms = Terms(**terms)
    return made


def order(waiting: Waiting, running: Counter[str] | None = None) -> list[str]:
    """The owners of all that waits, in the order in which they go; each that goes counts as running."""
    running, names = running or Counter(), []
    while (one := waiting.next(running)) is not None:
        running[one.terms.owner] += 1
        names.append(one.terms.owner)
    return names


# ----------------------------------------------------------------------------------------------------------
# Waiting


def test_owners_take_turns_however_many_requests_each_has() -> None:
    waiting = Waiting()
    for owner in "aaaaabbc":
        waiting.add([request(owner=owner)])
    assert order(waiting) == list("abcabaaa")


def test_who_has_few_running_goes_first() -> None:
    waiting = Waiting()
    for owner in "aab":
        waiting.add([request(owner=owner)])
    assert order(waiting, Counter(a=0, b=2)) == list("aab")


def test_a_lower_number_of_priority_goes_first() -> None:
    waiting = Waiting()
    for owner, priority in (("late", 5), ("first", -1), ("usual", 0), ("usual too", 0)):
        waiting.add([request(owner=owner, priority=priority)])
    assert order(waiting) == ["first", "usual", "usual too", "late"]


def test_what_came_together_takes_turns_with_others_as_one() -> None:
    waiting = Waiting()
    many, single = [request() for _ in range(3)], request()
    waiting.add(many)
    waiting.add([single])
    assert [waiting.next({}) for _ in range(4)] == [many[0], single, many[1], many[2]]
    assert waiting.next({}) is None and not waiting


def test_what_is_put_back_is_the_next() -> None:
    waiting = Waiting()
    waiting.add([first := request()])
    waiting.add([request()])
    waiting.put_back(one := request())
    assert waiting.next({}) is one and waiting.next({}) is first


def test_what_is_gone_is_taken_out_wherever_it_is() -> None:
    waiting = Waiting()
    requests = [request(owner=f"{i}") for i in range(6)]
    waiting.add(requests[:3])
    waiting.add(requests[3:])
    assert waiting.take_out(lambda one: one in requests[1::2]) == requests[1::2]
    assert list(waiting) == requests[::2] and len(waiting) == 3
    assert waiting.clear() == requests[::2] and not waiting


def test_it_is_late_when_the_time_of_any_is_over() -> None:
    waiting = Waiting()
    waiting.add([request()])
    assert not waiting.late
    waiting.add([over := request(deadline=time.monotonic() - 1)])
    assert waiting.late
    waiting.take_out(lambda one: one is over)
    assert not waiting.late


# ----------------------------------------------------------------------------------------------------------
# Shares


def test_one_owner_gets_the_room() -> None:
    shares = Shares()
    assert shares.split(100, {"a": 30}) == {"a": 30} and shares.split(100, {"a": 300}) == {"a": 100}


def test_owners_get_equal_shares_in_the_long_run_and_leave_nothing() -> None:
    shares, had = Shares(), Counter[str]()
    for _ in range(50):
        given = shares.split(100, {"a": 1000, "b": 1000, "c": 1000})
        assert sum(given.values()) == 100
        had.update(given)
    assert max(had.values()) - min(had.values()) <= 2 * UNIT


def test_what_one_does_not_need_the_others_get() -> None:
    assert Shares().split(100, {"a": 10, "b": 1000}) == {"a": 10, "b": 90}


def test_a_newcomer_is_not_owed_for_the_time_before_it_came() -> None:
    shares = Shares()
    for _ in range(20):
        shares.split(64, {"a": 1000, "b": 1000})
    given = [shares.split(64, {"a": 1000, "b": 1000, "new": 1000}) for _ in range(3)]
    assert sum(one["new"] for one in given) <= 2 * 64


# ----------------------------------------------------------------------------------------------------------
# Pace


def learnt(start: float, token: float, read: float, noise: float = 0.0, seed: int = 1) -> Pace:
    pace, rng = Pace(), random.Random(seed)
    for _ in range(300):
        tokens = rng.choice([1, 2, 4, 8, 16, 64, 200])
        reads = tokens * rng.randint(0, 3000)
        exact = start + token * tokens + read * reads
        pace.learn(tokens, reads, exact * rng.uniform(1 - noise, 1 + noise))
    return pace


def test_it_learns_what_a_step_costs() -> None:
    pace = learnt(5e-3, 4e-4, 1e-7)
    assert pace.known
    for tokens, reads in ((1, 0), (16, 16 * 500), (150, 150 * 2000)):
        exact = 5e-3 + 4e-4 * tokens + 1e-7 * reads
        assert pace.seconds(tokens, reads) == pytest.approx(exact, rel=0.01)
    assert pace.error < 0.02


def test_noise_and_a_busy_machine_do_not_lead_it_astray() -> None:
    pace = learnt(5e-3, 4e-4, 1e-7, noise=0.3)
    before = pace.seconds(64, 64 * 500)
    assert before == pytest.approx(5e-3 + 4e-4 * 64 + 1e-7 * 64 * 500, rel=0.15)
    pace.learn(64, 64 * 500, 100 * before)
    assert pace.seconds(64, 64 * 500) < SLOW * before


def test_it_follows_a_machine_that_changes() -> None:
    pace, rng = learnt(5e-3, 4e-4, 1e-7), random.Random(2)
    for _ in range(600):
        tokens = rng.choice([1, 8, 64])
        pace.learn(tokens, 0, 2 * (5e-3 + 4e-4 * tokens))
    assert pace.seconds(64, 0) == pytest.approx(2 * (5e-3 + 4e-4 * 64), rel=0.1)


def test_it_knows_nothing_before_it_has_seen_small_and_large_steps() -> None:
    pace = Pace()
    pace.learn(1, 10, 0.01)
    assert not pace.known
    pace.learn(LARGE, 10, 0.02)
    assert pace.known and pace.seconds(1, 10) > 0


def test_room_is_what_just_fits() -> None:
    pace = learnt(5e-3, 4e-4, 1e-7)
    room = pace.room(0.1, 4, 4 * 1000, depth=2000)
    assert pace.seconds(4 + room, 4 * 1000 + room * 2000) <= 0.1
    assert pace.seconds(4 + room + 2, 4 * 1000 + (room + 2) * 2000) > 0.1
    assert pace.room(1e-3, 4, 0, depth=0) < 0


def test_no_cost_is_negative() -> None:
    pace, rng = Pace(), random.Random(3)
    for _ in range(100):
        pace.learn(rng.choice([1, 64]), rng.randint(0, 1000), rng.uniform(0.01, 0.02))
    assert all(pace.seconds(n, reads) > 0 for n in (0, 1, 1000) for reads in (0, 10**6))
    assert pace.room(1.0, 1, 0, 100) >= 0
