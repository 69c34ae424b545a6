"""The gateway's flow: one reply for each request, whatever the link does.

Strangers, replays and forgeries get none, and are counted.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offramp.common.errors import ConfigError
from offramp.common.wire.datagram import Datagrams, ReplyError
from offramp.common.wire.fragments import fragment
from offramp.gateway.gateway import Gateway, Route
from offramp.link.outcome import Cause, Refusal
from tests.gateway.fakes import DATAGRAMS, DIGEST, Desk, Device, away, key_of
from tests.processes import until

DeskOf = Callable[..., Desk]
FUZZ = int(os.environ.get("FUZZ_CASES", "1500"))


def answered(desk: Desk, device: Device, count: int = 1) -> None:
    until(lambda: len(device.replies) >= count, f"{count} replies")


def test_a_request_and_its_reply(desk_of: DeskOf) -> None:
    desk, device = desk_of(), Device()
    desk.gateway.take(device.sender, DATAGRAMS.request(300, 0, b"\7payload"))
    answered(desk, device)

    reply = DATAGRAMS.read_reply(device.replies[0])
    assert (reply.sequence, reply.class_index, reply.part, reply.error) == (300, 7, 0, 0)
    assert len(device.replies[0]) == 8 and desk.link.seen == [b"\7payload"]
    assert desk.count("requests", device="unlisted") == desk.count("answers", device="unlisted") == 1


def test_with_a_key(desk_of: DeskOf) -> None:
    desk, device = desk_of((513,)), Device()
    desk.gateway.take(device.sender, DATAGRAMS.request(70_000, 0, b"\7", 513, key_of(513)))
    answered(desk, device)

    reply = DATAGRAMS.read_reply(device.replies[0], 70_000, 513, key_of(513))
    assert reply.class_index == 7 and desk.count("answers", device="device-513") == 1


def test_pieces(desk_of: DeskOf) -> None:
    desk, device = desk_of((1,)), Device()
    whole = DATAGRAMS.request(5, 0, bytes([4] * 100), 1, key_of(1))
    for piece in reversed(fragment(whole, 51, 5)):
        desk.gateway.take(device.sender, piece)
    answered(desk, device)
    assert desk.link.seen == [bytes([4] * 100)]


@pytest.mark.parametrize("numbers", [None, (1,)], ids=["plain", "sealed"])
def test_the_same_bytes_are_forwarded_once_and_get_the_same_reply(
    desk_of: DeskOf, numbers: tuple[int, ...] | None
) -> None:
    desk, device, moved = desk_of(numbers), Device(), Device("a" if numbers is None else "b")
    key = None if numbers is None else key_of(1)
    data = DATAGRAMS.request(5, 0, b"\7", None if numbers is None else 1, key)
    desk.link.held = []
    for _ in range(3):
        desk.gateway.take(device.sender, data)
    until(lambda: desk.link.held, "a request at the server")
    desk.gateway.take(moved.sender, data)  # the last address gets the reply
    desk.link.held[0]()
    answered(desk, moved)
    assert device.replies == []
    desk.gateway.take(device.sender, data)
    answered(desk, device)
    assert device.replies == moved.replies and len(desk.link.seen) == 1
    name = "unlisted" if numbers is None else "device-1"
    assert desk.count("doubled", device=name) == 4


def test_without_a_key_other_bytes_under_a_number_are_another_request(desk_of: DeskOf) -> None:
    desk, device = desk_of(), Device()
    for payload in (b"\1", b"\2"):
        desk.gateway.take(device.sender, DATAGRAMS.request(0, 0, payload))
    answered(desk, device, 2)
    assert desk.link.seen == [b"\1", b"\2"]


def test_a_replay_is_refused_after_a_restart_too(desk_of: DeskOf, tmp_path: Path) -> None:
    path, device = str(tmp_path / "state.db"), Device()
    desk = desk_of((1,), path)
    old, data = (DATAGRAMS.request(number, 0, b"\7", 1, key_of(1)) for number in (100, 200))
    for each in (data, old, DATAGRAMS.request(200, 0, b"\6", 1, key_of(1))):
        desk.gateway.take(device.sender, each)
    answered(desk, device)
    assert desk.count("refused", device="device-1", reason="replay") == 2
    desk.state.close()

    desk, stranger = desk_of((1,), path), Device("stranger")
    for each in (data, old):
        desk.gateway.take(stranger.sender, each)
    assert desk.count("refused", device="device-1", reason="replay") == 2
    assert stranger.replies == [] and desk.link.seen == []


def test_forgeries_and_strangers_get_nothing(desk_of: DeskOf) -> None:
    desk, device = desk_of((1, 2)), Device()
    other = Datagrams(bytes([9]) + DIGEST[1:], 10)
    good = DATAGRAMS.request(1, 0, b"\7", 1, key_of(1))
    cases = [
        ("plain", "unlisted", DATAGRAMS.request(1, 0, b"\7")),
        ("unknown", "unlisted", DATAGRAMS.request(1, 0, b"\7", 3, key_of(1))),
        ("forged", "device-1", DATAGRAMS.request(1, 0, b"\7", 1, key_of(2))),
        ("forged", "device-2", good[:3] + b"\2" + good[4:]),
        ("forged", "device-1", good[:-1] + bytes([good[-1] ^ 1])),
        ("bundle", "device-1", other.request(1, 0, b"\7", 1, key_of(1))),
        ("version", "unlisted", b"\xff" + good[1:]),
        ("malformed", "unlisted", good[:10]),
        ("malformed", "unlisted", b""),
        ("codec", "device-1", DATAGRAMS.request(1, 2, b"\7", 1, key_of(1))),
        ("malformed", "unlisted", b"\x24abc"),
    ]
    for reason, name, data in cases:
        before = desk.count("refused", device=name, reason=reason)
        desk.gateway.take(device.sender, data)
        assert desk.count("refused", device=name, reason=reason) == before + 1, (reason, data)
    assert device.replies == [] and desk.link.seen == []
    # None of them used a number up.
    desk.gateway.take(device.sender, good)
    answered(desk, device)


def test_a_gateway_without_keys_refuses_sealed_requests(desk_of: DeskOf) -> None:
    desk, device = desk_of(), Device()
    desk.gateway.take(device.sender, DATAGRAMS.request(1, 0, b"\7", 1, key_of(1)))
    damaged = bytearray(DATAGRAMS.request(1, 0, b"\7"))
    damaged[5] ^= 1
    desk.gateway.take(device.sender, bytes(damaged))
    assert desk.count("refused", device="unlisted", reason="unknown") == 1
    assert desk.count("refused", device="unlisted", reason="checksum") == 1


@pytest.mark.parametrize("numbers", [None, (1,)], ids=["plain", "sealed"])
def test_errors_and_another_try(desk_of: DeskOf, numbers: tuple[int, ...] | None) -> None:
    """What the server refused stays refused; what no server took may be asked again."""
    desk, device = desk_of(numbers, hold=0), Device()
    number, key = (None, None) if numbers is None else (1, key_of(1))
    bad, good = (DATAGRAMS.request(i, 0, bytes([i]), number, key) for i in (1, 2))
    desk.link.refuses = lambda _: Refusal("refused (payload): x", Cause.REFUSED, 1)
    desk.gateway.take(device.sender, bad)
    # With no time to wait, the lane may find it expired before it asks.
    answered(desk, device)
    desk.link.refuses = away
    desk.gateway.take(device.sender, good)
    answered(desk, device, 2)
    said = DATAGRAMS.read_reply(device.replies[1], 2, number, key)
    assert said.error == ReplyError.UNAVAILABLE


def test_another_try_after_no_server(desk_of: DeskOf) -> None:
    desk, device = desk_of((1,), most=1), Device()
    first, second = (DATAGRAMS.request(i, 0, bytes([i]), 1, key_of(1)) for i in (1, 2))
    desk.link.held = []
    desk.gateway.take(device.sender, first)
    until(lambda: desk.link.held, "a request at the server")
    desk.gateway.take(device.sender, second)  # one too many
    answered(desk, device)
    assert DATAGRAMS.read_reply(device.replies[0], 2, 1, key_of(1)).error == ReplyError.OVERLOADED
    desk.link.held.pop()()
    answered(desk, device, 2)
    desk.link.held = None
    desk.gateway.take(device.sender, second)
    answered(desk, device, 3)
    assert DATAGRAMS.read_reply(device.replies[2], 2, 1, key_of(1)).class_index == 2
    assert desk.link.seen == [b"\1", b"\2"]


def test_a_reply_that_cannot_be_sent_is_counted(desk_of: DeskOf) -> None:
    desk, device = desk_of(), Device()
    device.works = False
    desk.gateway.take(device.sender, DATAGRAMS.request(1, 0, b"\7"))
    until(lambda: desk.count("unsent", door="udp"), "a reply that was not sent")


def test_bundles_that_begin_alike(desk_of: DeskOf) -> None:
    desk = desk_of()
    other = Route("other", Datagrams(DIGEST[:2] + bytes(30), 10), desk.lane)
    with pytest.raises(ConfigError, match="toy and other begin alike"):
        Gateway([Route("toy", DATAGRAMS, desk.lane), other], None, desk.state, desk_of().metrics)


def test_what_is_kept_for_doubles_is_bounded(desk_of: DeskOf) -> None:
    desk, device = desk_of(recent_most=10), Device()
    for number in range(50):
        desk.gateway.take(device.sender, DATAGRAMS.request(number, 0, b"\1"))
    answered(desk, device, 50)
    assert len(desk.gateway._recent) == 10


def test_1000_devices_over_a_link_that_loses_doubles_and_reorders(desk_of: DeskOf) -> None:
    """Each request has one answer, the right one, or is a loss that its device counts."""
    rng, count, each = random.Random(1), 1000, 2
    desk = desk_of(tuple(range(count)))
    devices = [Device(str(number)) for number in range(count)]
    waiting: dict[tuple[int, int], bytes] = {
        (number, sequence): DATAGRAMS.request(
            sequence, 0, bytes([number % 251, number // 251, sequence]), number, key_of(number)
        )
        for number in range(count)
        for sequence in range(each)
    }
    answers: dict[tuple[int, int], int] = {}
    late = 0
    for _ in range(3):  # a device sends three times at most
        way = [one for one in waiting for _ in range(rng.choices((0, 1, 2), (2, 6, 2))[0])]
        rng.shuffle(way)
        for number, sequence in way:
            desk.gateway.take(devices[number].sender, waiting[number, sequence])
        until(lambda: desk.gateway.waiting() == 0, "all replies")
        for number, device in enumerate(devices):
            replies, device.replies[:] = list(device.replies), []
            back = [one for one in replies for _ in range(rng.choices((0, 1, 2), (2, 6, 2))[0])]
            rng.shuffle(back)
            for data in back:
                sequence = int.from_bytes(data[1:3], "little")
                reply = DATAGRAMS.read_reply(data, sequence, number, key_of(number))
                if waiting.pop((number, sequence), None) is None:
                    late += 1
                else:
                    answers[number, sequence] = reply.class_index
    assert answers == {one: one[0] % 251 % 10 for one in answers}
    assert len(answers) + len(waiting) == count * each and late > 0
    assert 0 < len(waiting) < 0.2 * count * each
    assert len(desk.link.seen) == len(set(desk.link.seen)) >= len(answers)
    (family,) = desk.metrics.requests.collect()
    counted = [sample.value for sample in family.samples if sample.name.endswith("_total")]
    assert sum(counted) == len(desk.link.seen) and len(counted) <= count


@settings(max_examples=FUZZ // 10)
@given(st.lists(st.binary(max_size=40), min_size=10, max_size=10), st.booleans())
def test_hostile_datagrams_never_pass(data: list[bytes], sealed: bool) -> None:
    """In all FUZZ_CASES of them: no reply, nothing forwarded, each refused or a piece that waits."""
    desk, device = Desk((1,) if sealed else None), Device()
    firsts = (b"", b"\x30\0\1\1\0", b"\x20\0\1", b"\x28", b"\x29", b"\x22\0\1")
    for index, each in enumerate(data):
        desk.gateway.take(device.sender, firsts[index % len(firsts)] + each)
    desk.close()
    assert device.replies == [] and desk.link.seen == []
