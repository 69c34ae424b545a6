"""The budget: what a frame is charged, when it is given back, and what it does to T_c."""

from __future__ import annotations

import pytest

from offramp.common.bundle.load import Bundle
from offramp.common.errors import ConfigError
from offramp.device.ledger import EXPECTED_BYTES, Cost, Ledger
from offramp.device.options import SteeringOptions
from offramp.link.outcome import Answer, Cause, Refusal
from offramp.link.wire_bytes import WireBytes

RATE = 1000.0
"""Bytes a second; ten seconds of it are a whole bucket."""


class Kernel:
    """What the kernel would say of the connection."""

    def __init__(self) -> None:
        self.bytes: WireBytes | None = WireBytes(0, 0)

    def total(self) -> WireBytes | None:
        return self.bytes


@pytest.fixture
def kernel() -> Kernel:
    return Kernel()


def ledger(bundle: Bundle, kernel: Kernel, **options: float) -> Ledger:
    bounds = {"threshold_floor": 0.2, "threshold_ceiling": 0.9}
    return Ledger(
        bundle.manifest,
        0.9,
        SteeringOptions(**bounds | options) if options else SteeringOptions(),
        wait_seconds=2,
        now=0.0,
        connection_bytes=kernel.total,
    )


def answer(wire: float) -> Answer:
    return Answer(1, 0.5, None, message_bytes=wire, wire_bytes=wire)


def refusal(sends: int) -> Refusal:
    return Refusal("gone", Cause.UNAVAILABLE, sends=sends)


def level(book: Ledger) -> float:
    """What is left of the budget at the same time, as T_c shows it."""
    return book.steer(0.0)


def test_without_a_budget_the_threshold_stays(toy_bundle: Bundle, kernel: Kernel) -> None:
    book = ledger(toy_bundle, kernel)
    assert not book.steers and not book.owes()
    book.settle(book.send(10_000), answer(10_000))
    book.answered(5.0)
    assert book.threshold == book.steer(99.0) == 0.9


def test_what_is_sent_lowers_the_threshold_at_once(toy_bundle: Bundle, kernel: Kernel) -> None:
    book = ledger(toy_bundle, kernel, byte_budget=RATE)
    before = level(book)
    expected = book.send(500)
    assert expected == 500 + EXPECTED_BYTES
    assert level(book) < before and book.threshold == level(book)


@pytest.mark.parametrize("wire", [100.0, 900.0])
def test_the_outcome_replaces_the_guess(toy_bundle: Bundle, kernel: Kernel, wire: float) -> None:
    """Whatever was expected: afterwards the frame has cost what its answer says."""
    book, other = (ledger(toy_bundle, kernel, byte_budget=RATE) for _ in range(2))
    book.settle(book.send(500), answer(wire))
    other.settle(other.send(20), answer(wire))
    assert level(book) == pytest.approx(level(other))
    assert level(book) < 0.9


def test_what_never_went_out_is_given_back(toy_bundle: Bundle, kernel: Kernel) -> None:
    book = ledger(toy_bundle, kernel, byte_budget=RATE)
    book.settle(book.send(3000), refusal(sends=1))
    spent = level(book)
    book.settle(book.send(3000), refusal(sends=0))
    assert level(book) == pytest.approx(spent) and spent < 0.9


def test_what_comes_out_of_the_spool_is_charged_once(toy_bundle: Bundle, kernel: Kernel) -> None:
    book, other = (ledger(toy_bundle, kernel, byte_budget=RATE) for _ in range(2))
    book.spooled(answer(700))
    other.settle(other.send(0), answer(700))
    assert level(book) == pytest.approx(level(other))


def test_control_traffic_is_charged_as_it_shows(toy_bundle: Bundle, kernel: Kernel) -> None:
    """2,000 bytes beside the frames: once, however often it is looked at; none where it is not known."""
    book, other = (ledger(toy_bundle, kernel, byte_budget=RATE) for _ in range(2))
    kernel.bytes = None
    book.settle(book.send(100), answer(200))
    other.settle(other.send(100), answer(200))
    assert level(book) == level(other)
    kernel.bytes = WireBytes(1500, 700)
    for _ in range(3):
        book.spooled(answer(0))
    kernel.bytes = None
    other.spooled(answer(2000))
    assert level(book) == pytest.approx(level(other))


def test_an_overdrawn_budget_owes_until_time_has_paid(toy_bundle: Bundle, kernel: Kernel) -> None:
    book = ledger(toy_bundle, kernel, byte_budget=RATE)
    book.settle(book.send(100), answer(15_000))
    assert book.owes() and level(book) == 0.2
    assert book.steer(4.0) == 0.2 and book.owes()
    assert book.steer(6.0) > 0.2 and not book.owes()


def test_a_latency_target_counts_every_image(toy_bundle: Bundle, kernel: Kernel) -> None:
    book = ledger(toy_bundle, kernel, target_latency=0.01)
    for _ in range(10):
        book.answered(0.5)
    low = level(book)
    assert low < 0.9
    for _ in range(200):
        book.answered(0.001)
    assert level(book) > low
    # Bytes are nothing to it.
    high = level(book)
    book.send(100_000)
    assert level(book) == high


def test_t_c_is_set_where_nothing_steers_it(toy_bundle: Bundle, kernel: Kernel) -> None:
    book = ledger(toy_bundle, kernel)
    assert not book.varies
    book.set(0.25)
    assert (book.threshold, book.steer(1.0), book.varies) == (0.25, 0.25, True)
    steered = ledger(toy_bundle, kernel, byte_budget=RATE)
    before = steered.threshold
    with pytest.raises(ConfigError, match="steered"):
        steered.set(0.25)
    assert (steered.threshold, steered.varies) == (before, True)


def test_a_cost_without_an_answer_has_no_message() -> None:
    cost = Cost()
    cost.add_activation(10, refusal(sends=2))
    cost.add_picture(900, refusal(sends=0))
    assert (cost.payload, cost.picture, cost.sends, cost.message, cost.wire) == (20, 0, 2, 0.0, 0.0)
