"""Rounds are interleaved and complete, and the process gets its cores back. No wall clocks."""

from __future__ import annotations

import gc
import os
import time

import pytest

from offramp.bench import timing
from offramp.bench.timing import Timed, environment, interleave, one_core


def test_one_core_is_taken_and_given_back() -> None:
    before = os.sched_getaffinity(0)

    with pytest.raises(KeyError), one_core() as core:
        assert os.sched_getaffinity(0) == {core}
        assert not gc.isenabled()
        raise KeyError

    assert os.sched_getaffinity(0) == before
    assert gc.isenabled()


def test_every_input_is_used_in_turn() -> None:
    seen: list[bytes] = []

    def function(data: bytes) -> bytes:
        seen.append(data)
        return data

    timed = Timed(function, [b"a", b"b", b"c"])
    timed.run(2)
    timed.run(5)

    assert b"".join(seen) == b"abcabca"


def test_each_round_gives_each_function_a_rate_and_slow_ones_stop_early(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 0

    def takes(nanoseconds: int) -> Timed:
        def function(data: bytes) -> bytes:
            nonlocal now
            now += nanoseconds
            return data

        return Timed(function, [b""])

    monkeypatch.setattr(time, "thread_time_ns", lambda: now)
    fast, twice, slow = takes(1_000), takes(2_000), takes(10**9)

    interleave([fast, twice, slow], seconds=0.01, rounds=5)

    assert len(fast.rates) == len(twice.rates) == 5
    assert len(slow.rates) == timing.SLOW_ROUNDS
    assert fast.best == fast.median == pytest.approx(1e6)
    assert fast.speed_of(twice) == pytest.approx(2)
    assert slow.speed_of(fast) == pytest.approx(1e-6)


def test_a_ratio_compares_within_rounds() -> None:
    ours, theirs = Timed(bytes, [b""]), Timed(bytes, [b""])
    ours.rates, theirs.rates = [10.0, 20.0, 90.0], [5.0, 10.0, 3.0]

    assert ours.speed_of(theirs) == 2


def test_the_environment_says_what_it_ran_on() -> None:
    facts = environment(["numpy", "no-such-package"], 0)

    assert facts["cpu"] and facts["core"] == 0 and len(facts["load_average"]) == 3
    assert facts["packages"]["numpy"] and facts["packages"]["no-such-package"] is None
