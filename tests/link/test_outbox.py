"""Windows, numbers, shared messages and deadlines of frames: values in, values out."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest

from offramp.common.codec.activation import CodecId
from offramp.common.wire.frame import ENVELOPE_BYTES
from offramp.link.outbox import (
    FRAME_OVERHEAD,
    LATE_MOST,
    MESSAGE_OVERHEAD,
    SENDS,
    Limits,
    Offload,
    Outbox,
    Pace,
)

LIMITS = Limits(frames_in_flight=64, frames_per_message=64, message_bytes=16_384)
TIMEOUT = 10.0


def item(start: float = 0.0, payload: int = 100, codec: CodecId = CodecId.BUNDLE, **more: Any) -> Offload:
    late = more.pop("late", None)
    deadline = more.pop("deadline", start + TIMEOUT)
    return Offload(codec, bytes(payload), lambda _: None, late, start, deadline, **more)


def outbox(waiting: int = 0, limits: Limits | None = LIMITS, **pace: Any) -> Outbox:
    """An outbox on an accepted stream, with this many frames."""
    made = Outbox(Pace(TIMEOUT, **{"window": 16, **pace}))
    made.begin()
    if limits is not None:
        made.accept(limits)
    for _ in range(waiting):
        made.add(item())
    return made


def send(box: Outbox, now: float = 0.0, message_bytes: int = 1000) -> list[int]:
    """One message goes out: the numbers of its frames."""
    items = box.take()
    box.mark_sent(items, message_bytes, now)
    return [each.sequence for each in items]


# --- the window ---


@pytest.mark.parametrize(
    ("window", "in_flight", "all_in", "background_in"),
    [(16, None, 16, 8), (16, 64, 16, 8), (16, 3, 3, 1), (1, 64, 1, 1)],
)
def test_the_window_is_the_smaller_of_ours_and_the_servers(
    window: int, in_flight: int | None, all_in: int, background_in: int
) -> None:
    limits = None if in_flight is None else Limits(in_flight, 64, 16_384)
    for background, most in ((False, all_in), (True, background_in)):
        box = outbox(limits=limits, window=window)
        while box.has_room(background):
            box.add(item())
        assert len(box) == most


def test_where_nobody_waits_the_window_is_ours_alone() -> None:
    box = outbox(limits=Limits(2, 64, 16_384), window=5, waits=False)
    while box.has_room():
        box.add(item())
    assert len(box) == 5 and send(box) == [1, 2]
    assert not box.has_room() and box.due_in(0) is None


@pytest.mark.parametrize(("timeout", "had", "fair"), [(2.0, 0.2, False), (2.0, 0.3, True), (0.2, 0.11, True)])
def test_a_frame_that_came_with_little_time_is_not_the_servers_failure(
    timeout: float, had: float, fair: bool
) -> None:
    box = Outbox(Pace(timeout, 16))
    assert box.was_fair(item(start=5.0, deadline=5.0 + had), 5.0 + had) is fair


def test_sent_frames_count_until_they_are_settled() -> None:
    box = outbox(4, window=4)
    assert send(box) == [1, 2, 3, 4] and not box.has_room()
    found, late = box.settle(2)
    assert found is not None and found.sequence == 2 and late is None
    assert box.has_room() and len(box) == 3


def test_frames_that_came_before_the_limits_are_sent_as_the_server_allows() -> None:
    box = outbox(10, limits=None)
    assert box.room == 0 and box.due_in(0) is None
    box.accept(Limits(frames_in_flight=3, frames_per_message=64, message_bytes=16_384))
    assert box.due_in(0) == 0 and send(box) == [1, 2, 3]
    assert box.room == 0 and box.due_in(0) is None and not box.has_room()
    box.settle(1)
    assert box.due_in(0) == 0 and send(box) == [4]


# --- numbers and messages ---


def test_numbers_rise_by_one_over_all_streams() -> None:
    box = outbox(2)
    assert send(box) == [1, 2]
    for sequence in (1, 2):
        box.settle(sequence)
    box.end(1.0, again=True)
    box.begin()
    box.accept(LIMITS)
    box.add(item())
    assert send(box) == [3]
    assert [box.was_sent(number) for number in (0, 1, 3, 4, 2**64 - 1)] == [False, True, True, False, False]


@pytest.mark.parametrize("per_message", [1, 3, 64])
def test_a_message_has_no_more_frames_than_the_server_allows(per_message: int) -> None:
    box = outbox(7, limits=Limits(64, per_message, 16_384))
    sizes = []
    while box.due_in(0) is not None:
        sizes.append(len(send(box)))
    assert sum(sizes) == 7 and max(sizes) == min(per_message, 7)


def test_a_message_has_no_more_bytes_than_the_server_allows_but_for_one_frame() -> None:
    trace = bytes(25)
    fits = 3 * (100 + len(trace) + FRAME_OVERHEAD) + MESSAGE_OVERHEAD
    for limit, expected in ((fits, 3), (fits - 1, 2), (10, 1)):
        box = outbox(limits=Limits(64, 64, limit))
        for _ in range(5):
            box.add(item(trace=trace))
        assert len(send(box)) == expected


def test_bytes_are_shared_by_the_frames_of_a_message_and_add_up() -> None:
    box = outbox()
    for size in (10, 20, 60):
        box.add(item(payload=size))
    items = box.take()
    box.mark_sent(items, 120, now=5.0)
    assert [each.message_bytes for each in items] == [20, 30, 70]
    assert sum(each.envelope_bytes for each in items) == pytest.approx(ENVELOPE_BYTES)
    assert {each.sent_at for each in items} == {5.0} and {each.sends for each in items} == {1}


# --- frames share a message ---


def test_without_coalescing_a_frame_is_due_at_once() -> None:
    assert outbox().due_in(0) is None
    assert outbox(1).due_in(0) == 0


def test_a_frame_waits_for_others_no_longer_than_said() -> None:
    box = outbox(coalesce=0.5, coalesce_frames=4)
    box.add(item(start=100.0))
    assert [box.due_in(now) for now in (100.0, 100.25, 101.0)] == [0.5, 0.25, -0.5]
    for start in (100.1, 100.2):
        box.add(item(start=start))
        assert box.due_in(100.2) == pytest.approx(0.3)
    box.add(item(start=100.2))
    assert box.due_in(100.2) == 0


@pytest.mark.parametrize("why", ["hurry", "picture", "again", "window", "room", "message"])
def test_nothing_is_held_back_where_no_other_can_come_or_somebody_waits(why: str) -> None:
    limits = {"room": Limits(2, 64, 16_384), "message": Limits(64, 2, 16_384)}.get(why, LIMITS)
    box = outbox(limits=limits, coalesce=9.0, window=2 if why == "window" else 16)
    box.add(item(codec=CodecId.PICTURE if why == "picture" else CodecId.BUNDLE))
    if why == "picture":
        box.accept(Limits(64, 64, 16_384, picture_bytes=1000))
    elif why == "hurry":
        assert box.due_in(0) == 9
        box.hurry += 1
    elif why == "again":
        send(box)
        box.end(0, again=True)
        box.begin()
        box.accept(LIMITS)
    else:
        assert box.due_in(0) == 9
        box.add(item())
    assert box.due_in(0) == 0


# --- pictures ---


def test_a_picture_is_taken_if_the_server_takes_it_whole() -> None:
    picture = item(payload=1000, codec=CodecId.PICTURE)
    box = outbox(limits=None)
    assert box.takes(picture)
    for limits, taken in (
        (LIMITS, False),
        (Limits(64, 64, 16_384, picture_bytes=999), False),
        (Limits(64, 64, 16_384, picture_bytes=1000), True),
        (Limits(64, 64, 1000 + MESSAGE_OVERHEAD + FRAME_OVERHEAD, picture_bytes=1000), True),
        (Limits(64, 64, 999 + MESSAGE_OVERHEAD + FRAME_OVERHEAD, picture_bytes=1000), False),
    ):
        box.accept(limits)
        assert box.takes(picture) is taken
        assert box.takes(item(payload=1 << 20))


def test_pictures_that_wait_leave_when_the_server_takes_none() -> None:
    box = outbox(1, limits=None)
    pictures = [item(codec=CodecId.PICTURE) for _ in range(2)]
    for picture in pictures:
        box.add(picture)
    box.add(item())
    assert box.accept(LIMITS) == pictures
    assert send(box) == [1, 2]


# --- replies ---


def test_a_reply_settles_its_frame_once_in_any_order() -> None:
    box = outbox(3)
    send(box)
    for sequence in (3, 1, 2):
        found, _ = box.settle(sequence)
        assert found is not None and found.sequence == sequence
        assert box.settle(sequence) == (None, None)


def test_replies_beyond_one_a_frame_are_in_excess() -> None:
    box = outbox(3)
    assert box.excess(1) == 1
    send(box)
    assert [box.excess(count) for count in (2, 2, 5)] == [0, 1, 5]
    box.add(item())
    send(box)
    box.end(0, again=True)
    box.begin()
    assert box.excess(1) == 1


# --- deadlines ---


def test_the_next_deadline_is_the_first_of_all() -> None:
    box = outbox()
    assert box.next_deadline(5.0) == 5.0 + TIMEOUT
    box.add(item(start=2.0))
    send(box)
    box.add(item(start=3.0))
    assert box.next_deadline(5.0) == 2.0 + TIMEOUT
    box.add(item(start=4.0, deadline=6.0))
    assert box.next_deadline(5.0) == 6.0


def test_what_is_overdue_leaves_wherever_it_is() -> None:
    box = outbox()
    for start in (0.0, 5.0):
        box.add(item(start))
    send(box)
    for start in (1.0, 6.0):
        box.add(item(start))
    assert box.overdue(9.9, heard=9.9) == ([], None)
    overdue, silence = box.overdue(11.0, heard=9.9)
    assert {each.start for each in overdue} == {0.0, 1.0} and silence is None
    assert not box.late  # none of them asked for it
    assert {each.start for each in [*box.waiting, *box.sent.values()]} == {5.0, 6.0}


@pytest.mark.parametrize(
    ("sent_at", "heard", "silence"),
    [
        (1.0, 0.5, 9.0),
        (1.0, 1.0, None),  # the server said something since
        (5.0, 0.5, 5.0),
        (5.1, 0.5, None),  # so late that there was not half a timeout left to answer in
    ],
)
def test_a_server_is_silent_if_it_had_time_and_said_nothing(
    sent_at: float, heard: float, silence: float | None
) -> None:
    box = outbox(1)
    send(box, now=sent_at)
    assert box.overdue(TIMEOUT, heard)[1] == silence


def test_the_silence_is_that_of_the_first_frame() -> None:
    box = outbox(1)
    send(box, now=1.0)
    box.add(item())
    send(box, now=2.0)
    assert box.overdue(TIMEOUT, heard=0.0)[1] == 9.0


def test_a_late_reply_finds_who_waits_for_it_and_the_oldest_are_forgotten() -> None:
    count = LATE_MOST + 2
    box = outbox(limits=Limits(count + 1, 64, 1 << 20), window=count + 1)
    for number in range(count + 1):
        box.add(item(late=None if number == 0 else lambda _: None))
    while box.waiting:
        send(box)
    overdue, _ = box.overdue(TIMEOUT, heard=TIMEOUT)
    assert len(overdue) == count + 1 and len(box.late) == LATE_MOST
    # The first did not ask for it; the second and the third are the oldest that did.
    assert [box.settle(number) for number in (1, 2, 3)] == [(None, None)] * 3
    found, late = box.settle(4)
    assert found is None and late is overdue[3]
    box.end(TIMEOUT, again=True)
    assert not box.late


# --- streams that break ---


def test_unanswered_frames_go_first_on_the_next_stream_under_their_numbers() -> None:
    box = outbox(6, limits=Limits(64, 1, 16_384))
    for _ in range(5):
        send(box)
    for sequence in (2, 4):
        box.settle(sequence)
    assert box.end(1.0, again=True) == (3, [])
    box.begin()
    box.accept(LIMITS)
    box.add(item())
    # A message's numbers follow each other; 6 and 7 were never sent.
    assert [send(box) for _ in range(3)] == [[1], [3], [5, 6, 7]]


def test_a_frame_is_sent_so_often_and_no_more() -> None:
    box = outbox(1)
    for sends in range(1, SENDS + 1):
        assert send(box) == [1]
        again, lost = box.end(1.0, again=True)
        assert (again, len(lost)) == ((1, 0) if sends < SENDS else (0, 1))
        box.begin()
        box.accept(LIMITS)
    assert not len(box)


def test_one_whose_time_is_up_is_not_sent_again() -> None:
    box = outbox()
    box.add(item(start=0.0))
    box.add(item(start=5.0))
    send(box)
    again, lost = box.end(TIMEOUT, again=True)
    assert again == 1 and [each.start for each in lost] == [0.0]


def test_if_no_stream_follows_all_are_lost() -> None:
    box = outbox(2)
    send(box)
    box.add(item())
    again, lost = box.end(1.0, again=False)
    assert (again, len(lost), len(box)) == (0, 3, 0)


def test_probes_are_for_the_server_that_they_were_let_out_to() -> None:
    box = outbox(2)
    assert not box.drop_probes()
    box.waiting[1].probe = True
    assert box.drop_probes() and not box.drop_probes()


# --- all of it together ---


def test_whatever_happens_each_frame_leaves_once_and_the_bounds_hold() -> None:
    for seed in range(30):
        draw = random.Random(seed)
        window = draw.randrange(1, 9)
        box = Outbox(Pace(TIMEOUT, window, coalesce=draw.choice([0.0, 1.0]), coalesce_frames=3))
        box.begin()
        limits, now, left, made = LIMITS, 0.0, [], 0
        last = 0
        for _ in range(400):
            now += draw.random()
            match draw.choice(["add", "add", "send", "settle", "time", "break", "accept"]):
                case "add" if box.has_room():
                    box.add(item(start=now, payload=draw.randrange(200)))
                    made += 1
                case "accept" if box.limits is None:
                    limits = Limits(draw.randrange(1, 6), draw.randrange(1, 4), 600)
                    left += box.accept(limits)
                    last = 0
                case "send" if (wait := box.due_in(now)) is not None and wait <= 0:
                    numbers = send(box, now)
                    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
                    # In one stream they only rise.
                    assert numbers[0] > last and len(numbers) <= limits.frames_per_message
                    last = numbers[-1]
                    assert len(box.sent) <= limits.frames_in_flight
                case "settle" if box.sent:
                    found, _ = box.settle(draw.choice(list(box.sent)))
                    assert found is not None
                    left.append(found)
                case "time":
                    left += box.overdue(now, heard=now)[0]
                case "break":
                    left += box.end(now, again=draw.random() < 0.8)[1]
                    box.begin()
            assert len(box) <= window
        left += box.end(now, again=False)[1]
        assert len(left) == made and len(set(map(id, left))) == made
        assert all(each.sends <= SENDS for each in left)
        numbered = sorted(each.sequence for each in left if each.sequence)
        assert all(a < b for a, b in itertools.pairwise(numbered))


# --- behind all others ---


def test_a_frame_behind_goes_when_no_other_waits() -> None:
    box = outbox()
    box.add(item(behind=True))
    box.add(item())
    assert box.due_in(0) == 0 and send(box) == [1]
    assert not box.sent[1].behind
    assert box.due_in(0) == 0 and send(box) == [2]
    assert box.sent[2].behind and box.due_in(0) is None


def test_frames_behind_take_no_room_and_few_are_sent() -> None:
    box = outbox(window=16)
    for _ in range(10):
        box.add(item(behind=True))
    assert send(box) == [1, 2, 3, 4]  # a quarter of the window
    assert box.due_in(0) is None and len(box) == 10
    for _ in range(16):
        assert box.has_room()
        box.add(item())
    assert not box.has_room()
    assert send(box) == list(range(5, 21))
    box.settle(2)
    assert box.due_in(0) == 0 and send(box) == [21]


def test_frames_behind_wait_where_the_server_takes_no_more() -> None:
    box = outbox(3, limits=Limits(frames_in_flight=3, frames_per_message=64, message_bytes=16_384))
    box.add(item(behind=True))
    assert send(box) == [1, 2, 3] and box.due_in(0) is None
    box.settle(1)
    assert box.due_in(0) == 0 and send(box) == [4]


def test_what_is_behind_ends_a_message_that_waited_to_be_shared() -> None:
    box = outbox(coalesce=1.0)
    box.add(item(behind=True))
    box.add(item(start=0.0))
    assert box.due_in(0.0) == 1.0
    assert send(box) == [1, 2]
    assert [box.sent[number].behind for number in (1, 2)] == [False, True]


def test_a_frame_behind_is_sent_once() -> None:
    box = outbox()
    box.add(item(behind=True))
    box.add(item())
    send(box), send(box)
    late = item(behind=True)
    box.add(late)
    again, lost = box.end(1.0, again=True)
    assert again == 1 and [each.sequence for each in lost] == [2]
    # One that was not sent goes on the next stream, behind the one that is sent again.
    box.begin()
    box.accept(LIMITS)
    assert send(box) == [1] and send(box) == [3] and box.sent[3] is late
    first, second = box.sent.values()
    box.add(item(behind=True))
    again, lost = box.end(2.0, again=False)
    assert (again, lost[:2], len(lost), len(box)) == (0, [first, second], 3, 0)


def test_the_time_of_frames_behind_runs_out_wherever_they_are() -> None:
    box = outbox(window=4)
    for _ in range(2):
        box.add(item(behind=True, deadline=5.0))
    assert send(box) == [1]
    assert box.next_deadline(0.0) == 5.0
    overdue, silence = box.overdue(5.0, heard=0.0)
    assert [each.sends for each in sorted(overdue, key=lambda each: each.sends)] == [0, 1]
    assert silence is None and len(box) == 0
    box.add(item(behind=True))
    assert send(box) == [2]
