"""One unsure input, event by event: no server, no clock."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from offramp.common.part.answer import both_exits
from offramp.device.inquiry import AskPicture, Inquiry, Settled, State, Verdict
from offramp.link.outcome import Answer, Cause, Refusal

OWN = Verdict(0, 0.4)
EARLY = np.array([0.4, 0.35, 0.25], np.float32)
NO_REPLY = Refusal("no reply within 2 s", Cause.TIMEOUT, sends=1)
REFUSED = Refusal("refused (payload): bad", Cause.REFUSED, sends=1)
NEVER_SENT = Refusal("window full", Cause.WINDOW)


def answer(class_index: int = 1, probability: float = 0.6, sends: int = 1) -> Answer:
    return Answer(class_index, probability, None, message_bytes=30, wire_bytes=44, sends=sends)


def alone(picture_threshold: float | None = None) -> Inquiry:
    """Of a bundle whose server answers alone."""
    return Inquiry(OWN, b"", 3, picture_threshold=picture_threshold, decode_seconds=0.25)


def together(picture_threshold: float | None = None) -> Inquiry:
    """Of a bundle whose exits answer together."""
    return Inquiry(OWN, EARLY.tobytes(), 3, picture_threshold=picture_threshold)


def folded(early: NDArray[np.float32], reply: Answer) -> Verdict:
    best, probability = np.array([reply.class_index]), np.array([reply.probability], np.float32)
    both = both_exits(early[None], best, probability)[0].astype(np.float32)
    return Verdict(int(both.argmax()), float(both.max()))


# --- the activation ---


def test_it_starts_with_the_activation() -> None:
    assert alone().state is State.ACTIVATION


def test_an_answer_ends_it() -> None:
    inquiry = alone()
    assert inquiry.replied(10, answer(), may_ask=True) == Settled("server", Verdict(1, 0.6), part=2)
    assert inquiry.state is State.ANSWERED


@pytest.mark.parametrize("outcome", [NO_REPLY, REFUSED, NEVER_SENT])
def test_without_an_answer_the_early_exits_stands(outcome: Refusal) -> None:
    inquiry = alone(picture_threshold=1)
    # What the server has refused for good is not worth keeping.
    keep = outcome is not REFUSED
    assert inquiry.replied(10, outcome, may_ask=True) == Settled("fallback", OWN, outcome.reason, keep)
    assert inquiry.state is State.FALLBACK


def test_both_exits_answer_together() -> None:
    reply = answer(class_index=2, probability=0.5)
    step = together().replied(10, reply, may_ask=False)
    assert isinstance(step, Settled) and step.verdict == folded(EARLY, reply)
    assert step.verdict.confidence != 0.5


# --- the picture ---


@pytest.mark.parametrize(
    ("probability", "threshold", "may_ask", "asked"),
    [
        (0.5, 0.5, True, True),
        (0.5, 0.499, True, False),
        (0.5, None, True, False),
        (1.0, 1.0, True, True),
        (0.5, 1.0, False, False),
    ],
    ids=["as sure", "surer", "no pictures", "all", "nothing to pay with"],
)
def test_an_answer_that_is_no_surer_is_asked_about_again(
    probability: float, threshold: float | None, may_ask: bool, asked: bool
) -> None:
    inquiry = alone(threshold)
    step = inquiry.replied(10, answer(probability=probability), may_ask=may_ask)
    assert isinstance(step, AskPicture) == asked
    assert inquiry.state is (State.PICTURE if asked else State.ANSWERED)


def test_the_joint_confidence_decides_about_the_picture() -> None:
    reply = answer(class_index=0, probability=0.5)
    assert folded(EARLY, reply).confidence < 0.47
    assert isinstance(together(0.47).replied(10, reply, may_ask=True), AskPicture)
    assert isinstance(alone(0.47).replied(10, reply, may_ask=True), Settled)


def test_the_pictures_answer_replaces_the_first() -> None:
    inquiry = alone(1.0)
    inquiry.replied(10, answer(), may_ask=True)
    assert inquiry.picture_replied(900, answer(2, 0.75)) == Settled("server", Verdict(2, 0.75), part=2)
    assert inquiry.state is State.ANSWERED


def test_the_pictures_answer_is_folded_with_both_before_it() -> None:
    first, second = answer(1, 0.5), answer(2, 0.9)
    inquiry = together(1.0)
    inquiry.replied(10, first, may_ask=True)
    best, probability = np.array([1]), np.array([0.5], np.float32)
    before = both_exits(EARLY[None], best, probability)[0].astype(np.float32)
    assert inquiry.picture_replied(900, second).verdict == folded(before, second)


@pytest.mark.parametrize("outcome", [NO_REPLY, REFUSED, NEVER_SENT, None])
def test_without_an_answer_to_the_picture_the_first_one_stands(outcome: Refusal | None) -> None:
    inquiry = alone(1.0)
    inquiry.replied(10, answer(), may_ask=True)
    step = inquiry.picture_given_up() if outcome is None else inquiry.picture_replied(900, outcome)
    assert step == Settled("server", Verdict(1, 0.6), part=2) and inquiry.state is State.ANSWERED


# --- what it cost ---


def test_the_cost_is_that_of_each_sending_and_of_each_answer() -> None:
    inquiry = alone(1.0)
    inquiry.replied(10, answer(sends=2), may_ask=True)
    inquiry.picture_replied(900, answer(2, 0.75, sends=3))
    cost = inquiry.cost
    assert (cost.sends, cost.payload, cost.picture) == (2, 2 * 10 + 3 * 900, 3 * 900)
    assert (cost.message, cost.wire, cost.decode_seconds) == (60, 88, 0.25)


def test_what_was_sent_in_vain_is_counted_and_what_was_not_sent_is_not() -> None:
    in_vain, never = alone(), alone()
    in_vain.replied(10, NO_REPLY, may_ask=True)
    never.replied(10, NEVER_SENT, may_ask=True)
    assert (in_vain.cost.sends, in_vain.cost.payload, in_vain.cost.message) == (1, 10, 0)
    assert (never.cost.sends, never.cost.payload, never.cost.wire) == (0, 0, 0)


# --- corrections ---


def test_a_late_answer_corrects_a_fallback() -> None:
    inquiry = together()
    inquiry.replied(10, NO_REPLY, may_ask=True)
    reply = answer(2, 0.9)
    assert inquiry.corrected(reply) == folded(EARLY, reply)
    assert inquiry.state is State.CORRECTED


def test_a_late_answer_before_the_frame_was_given_up_leaves_nothing_to_keep() -> None:
    """The link's threads may pass each other: the reply is read while another thread gives the frame up."""
    inquiry = alone()
    inquiry.corrected(answer())
    assert inquiry.replied(10, NO_REPLY, may_ask=True) == Settled("fallback", OWN, NO_REPLY.reason, False)
    assert inquiry.state is State.CORRECTED


def test_a_spooled_activation_is_corrected_with_its_own_runs_early_exit() -> None:
    reply = answer(2, 0.9)
    inquiry = Inquiry.of_spooled(EARLY.tobytes(), 3)
    assert inquiry.state is State.FALLBACK
    assert inquiry.corrected(reply) == folded(EARLY, reply)


@pytest.mark.parametrize("early", [b"", EARLY[:2].tobytes()], ids=["none", "of another bundle"])
def test_without_its_early_exit_the_server_answers_alone(early: bytes) -> None:
    assert Inquiry.of_spooled(early, 3).corrected(answer(2, 0.9)) == Verdict(2, 0.9)
