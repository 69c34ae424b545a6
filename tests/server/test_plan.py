"""What is chosen from a measured curve; and that measuring finds something to choose from."""

from __future__ import annotations

from typing import Any

import pytest

from offramp.common.bundle.load import Bundle
from offramp.common.errors import ConfigError
from offramp.common.part.engine import Engine
from offramp.server.batch import Tail
from offramp.server.plan import (
    BATCH_MAX,
    TIMER_SECONDS,
    Curve,
    batch_curve,
    decodes_inline,
    make_plan,
    saturation,
    wait_for_company,
)
from tests.server.threads import few_threads


@pytest.mark.parametrize(
    ("curve", "batch"),
    [
        ({1: 10.0}, 1),
        ({1: 10.0, 2: 10.0, 4: 10.0}, 1),
        ({1: 10.0, 2: 15.0, 4: 19.8, 8: 20.0, 16: 19.0}, 4),
        # A tail this fast is not what a batch costs.
        ({1: 1e5, 2: 1e5, 4: 1e5, 8: 1e5, 16: 1e5, 32: 1e5, 64: 1e5}, 64),
    ],
)
def test_the_smallest_batch_that_is_as_good_as_any(curve: Curve, batch: int) -> None:
    assert saturation(curve, workers=1) == batch


def test_a_first_frame_waits_no_longer_than_running_alone_wastes() -> None:
    assert wait_for_company({1: 10.0, 8: 20.0}, workers=1) == pytest.approx(0.05)
    assert wait_for_company({1: 10.0, 8: 20.0}, workers=2) == pytest.approx(0.1)
    assert wait_for_company({1: 10.0, 8: 8.0}, workers=1) == 0
    fast = 1 / (TIMER_SECONDS * 0.9)
    assert wait_for_company({1: fast, 8: fast * 8}, workers=1) == 0


def test_measuring_doubles_the_batch(toy_bundle: Bundle, toy_engine: Engine) -> None:
    curve = batch_curve(toy_engine, toy_bundle.manifest.activation.shape, workers=2)
    assert list(curve) == [1 << i for i in range(len(curve))] and max(curve) <= BATCH_MAX
    assert all(rate > 0 for rate in curve.values())


def test_flags_win_over_measuring(toy_bundle: Bundle) -> None:
    plan, _ = make_plan(toy_bundle, 4, workers=2, max_batch=3, max_wait=0.25)
    assert (plan.workers, plan.threads, plan.max_batch, plan.max_wait) == (2, 2, 3, 0.25)
    assert plan.curve == {} and plan.best == 0
    plan, _ = make_plan(toy_bundle, 2, max_batch=3)
    assert plan.workers in (1, 2) and plan.threads == 2 // plan.workers and plan.max_batch == 3
    assert set(plan.curve) == {1, 3}


def test_small_activations_are_decoded_on_the_loop(raw_bundle: Bundle) -> None:
    assert decodes_inline(raw_bundle.codec)


class AnyTail:
    """Any tail."""

    def tail(self, symbols: object) -> object:
        return symbols


@pytest.mark.parametrize("room", [0, 1, 3])
def test_runs_that_wait_for_others_end_where_those_cannot_start(
    room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    few_threads(monkeypatch, room)
    with pytest.raises(ConfigError, match="4 runs of the tail at once need a thread each"):
        batch_curve(AnyTail(), (1, 1, 1), 4)  # type: ignore[arg-type]


def test_the_other_layout_serves_where_one_gets_no_threads(
    toy_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = batch_curve

    def refused(tail: Tail, shape: tuple[int, int, int], workers: int, *more: Any, **others: Any) -> Curve:
        if workers > 1:
            raise ConfigError("no threads")
        return real(tail, shape, workers, *more, **others)

    monkeypatch.setattr("offramp.server.plan.batch_curve", refused)
    assert make_plan(toy_bundle, 2)[0].workers == 1
    with pytest.raises(ConfigError, match="no threads"):
        make_plan(toy_bundle, 2, workers=2)
