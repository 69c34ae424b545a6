"""The link of datagrams, over a carrier that does what the test says: one outcome for each frame."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from offramp.common.codec.activation import CodecId
from offramp.common.errors import ConfigError, UnavailableError
from offramp.common.wire.datagram import Datagrams, Reply, ReplyError
from offramp.common.wire.seal import DeviceKey
from offramp.link.carrier import Received, correlation_of
from offramp.link.datagram_link import DatagramLink, Identity, identity_of
from offramp.link.datagram_numbers import Numbers
from offramp.link.metrics import LinkMetrics
from offramp.link.outbox import Pace
from offramp.link.outcome import Answer, Cause, Outcome, Refusal
from offramp.link.session import Terms
from offramp.link.wire_bytes import WireBytes
from tests.processes import until

DIGEST, KEY = bytes(range(32)), DeviceKey(bytes(16))
DATAGRAMS = Datagrams(DIGEST, 10)


class FakeCarrier:
    """Replies as ``reply`` says, on the sender's thread."""

    target = "fake"
    tries = 3

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.reply: Callable[[bytes], list[tuple[bytes, bytes | None]]] = lambda data: []
        self.trouble: str | None = None
        self.unreachable = False
        self.closed = False

    def open(self, received: Received, seconds: float) -> None:
        if self.unreachable:
            raise UnavailableError("fake is unreachable")
        self.received = received

    def send(self, datagram: bytes, seconds: float) -> str | None:
        if self.trouble is None:
            self.sent.append(datagram)
            for each in self.reply(datagram):
                self.received(*each)
        return self.trouble

    def envelope(self, datagram: bytes) -> int:
        return 5

    def total(self) -> WireBytes | None:
        return None

    def close(self) -> None:
        self.closed = True


class Rig:
    """A link over it, and the outcomes of its frames."""

    def __init__(self, timeout: float, window: int, identity: Identity, numbers: Numbers) -> None:
        self.carrier = FakeCarrier()
        self.registry = CollectorRegistry()
        self.link = DatagramLink(
            self.carrier,
            Terms(DIGEST, 10, 64),
            Pace(timeout, window),
            LinkMetrics(self.registry, "toy"),
            numbers=numbers,
            identity=identity,
            failures=3,
        )
        self.outcomes: list[list[Outcome]] = []
        self.late: list[Answer] = []

    def offload(self, count: int = 1, codec: CodecId = CodecId.BUNDLE, **options: Any) -> None:
        for _ in range(count):
            mine: list[Outcome] = []
            self.outcomes.append(mine)
            self.link.offload(codec, b"payload", mine.append, late=self.late.append, **options)

    def settled(self) -> list[Outcome]:
        until(lambda: all(self.outcomes), "an outcome for each")
        return [outcome for (outcome,) in self.outcomes]

    def count(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(f"toy_{name}", labels) or 0.0


RigOf = Callable[..., Rig]


@pytest.fixture
def rig_of(tmp_path: Path) -> Iterator[RigOf]:
    made: list[Rig] = []

    def make(timeout: float = 30.0, window: int = 16, *, sealed: bool = False) -> Rig:
        identity = Identity(7, KEY) if sealed else Identity()
        numbers = Numbers(tmp_path / "numbers" if sealed else None)
        made.append(Rig(timeout, window, identity, numbers))
        return made[-1]

    yield make
    for each in made:
        each.link.close(wait=False)
        assert each.carrier.closed or not each.carrier.sent


def reply_to(data: bytes, sealed: bool = False, index: int = 3, error: int = 0) -> bytes:
    if sealed:
        request = DATAGRAMS.read_request(data, KEY)
        return DATAGRAMS.reply(Reply(request.sequence, index, 0.6, error=error), 7, KEY)
    request = DATAGRAMS.read_request(data)
    return DATAGRAMS.reply(Reply(request.sequence, index, 0.6, error=error))


@pytest.mark.parametrize("sealed", [False, True], ids=["plain", "sealed"])
def test_an_answer_and_what_it_cost(rig_of: RigOf, sealed: bool) -> None:
    rig = rig_of(sealed=sealed)
    rig.carrier.reply = lambda data: [(reply_to(data, sealed), None)]
    rig.offload(2)
    for outcome, sent in zip(rig.settled(), rig.carrier.sent, strict=True):
        assert isinstance(outcome, Answer)
        assert (outcome.class_index, outcome.sends, outcome.part) == (3, 1, 2)
        assert outcome.message_bytes == len(sent) + (15 if sealed else 8)
        assert outcome.wire_bytes == outcome.message_bytes + 5
    assert rig.count("payload_bytes_total") == 14


def test_doubles_strangers_and_nonsense_change_nothing(rig_of: RigOf) -> None:
    rig = rig_of()

    def reply(data: bytes) -> list[tuple[bytes, bytes | None]]:
        good = reply_to(data)
        return [
            (b"", None),
            (data, None),
            (good[:-1], None),
            (bytes([good[0], good[1] ^ 1]) + good[2:], None),
            (good, b"of another request"),
            (good, correlation_of(data)),
            (good, correlation_of(data)),
            (reply_to(data, index=4), None),
        ]

    rig.carrier.reply = reply
    rig.offload()
    (outcome,) = rig.settled()
    assert isinstance(outcome, Answer) and outcome.class_index == 3
    assert rig.count("late_replies_total") == 4 and rig.count("frames_refused_total", reason="reply") == 3


def test_a_lost_request_is_sent_again_as_the_same_bytes(rig_of: RigOf) -> None:
    rig = rig_of(0.3)
    rig.carrier.reply = lambda data: [(reply_to(data), None)] if len(rig.carrier.sent) == 3 else []
    rig.offload()
    (outcome,) = rig.settled()
    assert isinstance(outcome, Answer) and outcome.sends == 3
    assert len(set(rig.carrier.sent)) == 1 and rig.count("frames_resent_total") == 2


def test_an_audit_is_sent_once(rig_of: RigOf) -> None:
    rig = rig_of(0.2)
    rig.offload(behind=True)
    (outcome,) = rig.settled()
    assert isinstance(outcome, Refusal) and len(rig.carrier.sent) == 1
    assert rig.count("audit_bytes_total") == 7 and rig.link.failure is None


def test_a_late_reply_is_a_correction(rig_of: RigOf) -> None:
    rig = rig_of(0.05)
    rig.offload()
    (outcome,) = rig.settled()
    assert isinstance(outcome, Refusal) and outcome.cause is Cause.TIMEOUT
    assert rig.link.late_replies_due()
    for _ in range(2):
        rig.carrier.received(reply_to(rig.carrier.sent[0]), None)
    assert [answer.class_index for answer in rig.late] == [3] and not rig.link.late_replies_due()


def test_errors(rig_of: RigOf) -> None:
    rig = rig_of()
    errors = [ReplyError.PAYLOAD, ReplyError.UNAVAILABLE, 200]
    rig.carrier.reply = lambda data: [(reply_to(data, error=errors[len(rig.carrier.sent) - 1]), None)]
    rig.offload(3)
    found = [outcome for outcome in rig.settled() if isinstance(outcome, Refusal)]
    assert [each.cause for each in found] == [Cause.REFUSED, Cause.UNAVAILABLE, Cause.REFUSED]
    assert found[0].reason == "refused (payload)" and found[2].reason == "refused (unknown)"


def test_silence_opens_the_breaker(rig_of: RigOf) -> None:
    rig = rig_of(0.02, 1)
    rig.offload(3)
    rig.settled()
    rig.offload()
    last = rig.settled()[-1]
    assert isinstance(last, Refusal) and last.cause is Cause.BREAKER
    assert str(rig.link.failure) == "fake does not answer"


def test_a_full_window(rig_of: RigOf) -> None:
    rig = rig_of(0.2, 2)
    rig.offload(2)
    rig.offload(background=True)
    rig.offload(behind=True)
    assert [len(each) for each in rig.outcomes] == [0, 0, 1, 1]
    rig.offload()  # waits for the first two
    found = [outcome.cause for outcome in rig.settled() if isinstance(outcome, Refusal)]
    assert found[2:4] == [Cause.WINDOW] * 2 and found[4] in (Cause.WINDOW, Cause.TIMEOUT)


def test_what_cannot_be_sent(rig_of: RigOf) -> None:
    rig = rig_of()
    rig.carrier.trouble = "fake is down"
    rig.offload()
    rig.offload(codec=CodecId.PICTURE)
    rig.carrier.trouble = None
    rig.link.close()
    rig.offload()
    causes = [outcome.cause for outcome in rig.settled() if isinstance(outcome, Refusal)]
    assert causes == [Cause.UNAVAILABLE, Cause.PICTURE, Cause.CLOSED]
    away = rig_of()
    away.carrier.unreachable = True
    away.offload()
    (outcome,) = away.settled()
    assert isinstance(outcome, Refusal) and outcome.reason == "fake is unreachable"


def test_the_end_gives_each_frame_its_outcome(rig_of: RigOf) -> None:
    rig = rig_of()
    rig.offload(3)
    rig.link.close(wait=False)
    found = [outcome.cause for outcome in rig.settled() if isinstance(outcome, Refusal)]
    assert found == [Cause.CLOSED] * 3


def test_flags_that_belong_together(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("00" * 16 + "\n")
    assert identity_of(None, None, None) == Identity()
    assert identity_of(key, 7, tmp_path / "numbers").number == 7
    for given, words in (
        ((None, 7, None), "expected --key-file"),
        ((key, None, "numbers"), "expected --device-number and"),
        ((key, 7, None), "--sequence-file with it"),
    ):
        with pytest.raises(ConfigError, match=words):
            identity_of(*given)
    key.write_text("secret" * 8)
    with pytest.raises(ConfigError, match="32 or 64 hexadecimal digits") as caught:
        identity_of(key, 7, "numbers")
    assert "secret" not in str(caught.value)
