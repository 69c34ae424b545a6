"""Which inputs are kept, and why."""

from __future__ import annotations

import random

from offramp.device.samples.choice import BURST, REASONS, SECONDS, Allowance, Choice


def test_the_control_is_drawn_whatever_the_input_is() -> None:
    choice, again = Choice(0.1, 7), Choice(0.1, 7)
    draws = [choice.draw() for _ in range(10_000)]
    assert draws == [again.draw() for _ in range(10_000)] and 900 < sum(draws) < 1100
    none, every = Choice(0), Choice(1)
    assert not any(none.draw() for _ in range(1000)) and all(every.draw() for _ in range(1000))


def reasons(choice: Choice, confidence: float, **given: bool) -> tuple[str, ...]:
    return choice.reasons(confidence, **({"drawn": False, "unknown": False, "differs": False} | given))


def test_a_share_of_the_least_confident_is_unsure_wherever_confidences_lie() -> None:
    values = random.Random(1)
    for low, high in ((0.0, 1.0), (0.97, 0.98)):
        choice = Choice(0.05)
        given = [values.uniform(low, high) for _ in range(4000)]
        kept = [value for value in given if reasons(choice, value) == ("unsure",)]
        assert 100 < len(kept) < 300
        assert max(kept) < low + 0.12 * (high - low)
    same, off = Choice(0.05), Choice(0.0)
    assert not any(reasons(same, 0.5) for _ in range(1000)), "none is less confident than others"
    assert not any(reasons(off, value) for value in given)


def test_an_input_may_have_several_reasons_the_control_first() -> None:
    choice = Choice(0.01)
    assert reasons(choice, 0.9) == ()
    assert reasons(choice, 0.9, unknown=True, drawn=True) == ("random", "unknown")
    assert reasons(choice, 0.9, differs=True, unknown=True) == ("audit", "unknown")
    assert set(REASONS) == {"random", "audit", "unknown", "unsure"}


def test_a_reason_that_happens_always_uses_up_its_own_allowance_alone() -> None:
    choice = Choice(0.01)
    taken = [choice.allowed(("unknown",), 0.0) for _ in range(2 * BURST)]
    assert taken == ["unknown"] * BURST + [None] * BURST
    assert choice.allowed(("random", "unknown"), 0.0) == "random"
    assert choice.allowed(("audit", "unknown"), 0.0) == "audit"
    assert choice.allowed(("unknown",), SECONDS + 0.1) == "unknown"
    assert choice.allowed(("unknown",), SECONDS + 0.2) is None


def test_an_allowance_never_saves_more_than_its_burst() -> None:
    allowance = Allowance(burst=2, seconds=1.0)
    assert [allowance.take(1e9) for _ in range(3)] == [True, True, False]
    assert [allowance.take(2e9) for _ in range(3)] == [True, True, False]
