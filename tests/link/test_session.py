"""One stream: what each end of it means, and what a server that breaks the protocol may do."""

from __future__ import annotations

import logging
import math
import socket
import time
from collections.abc import Iterator

import grpc
import pytest
from prometheus_client import CollectorRegistry

from offramp.common.codec.activation import CodecId
from offramp.common.errors import (
    AccessError,
    ExitCode,
    MessageError,
    MismatchError,
    OfframpError,
    OverloadError,
    PeerError,
    UnavailableError,
)
from offramp.common.wire import transport
from offramp.link.backoff import BACKOFF_FIRST, BACKOFF_MOST
from offramp.link.metrics import LinkMetrics
from offramp.link.outbox import Offload
from offramp.link.security import Security
from offramp.link.servers import Servers
from offramp.link.session import (
    LASTING_CLEAN_SECONDS,
    LASTING_SECONDS,
    REFUSING,
    Kit,
    Owner,
    Session,
    Terms,
    explain,
    one_line,
)
from offramp.link.wire_bytes import WireCounter
from offramp.v1 import inference_pb2 as pb
from tests.device import hostile
from tests.device.hostile import BREAKERS, STEPS, Script, leaving
from tests.device.linked import LinkTo, answered, refused
from tests.processes import Peer, tcp_peer, until

CODES = [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK]
NETWORK = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.INTERNAL,
}
REFUSALS: dict[grpc.StatusCode, type[OfframpError]] = {
    grpc.StatusCode.FAILED_PRECONDITION: MismatchError,
    grpc.StatusCode.UNAUTHENTICATED: AccessError,
    grpc.StatusCode.PERMISSION_DENIED: AccessError,
}


@pytest.mark.parametrize("code", CODES, ids=[code.name for code in CODES])
@pytest.mark.parametrize("said", [transport.SAID, ""], ids=["ours", "a stranger's"])
@pytest.mark.parametrize(
    ("accepted", "progress"),
    [(False, False), (True, False), (True, True)],
    ids=["hello", "accepted", "answered"],
)
def test_what_each_status_means(code: grpc.StatusCode, said: str, accepted: bool, progress: bool) -> None:
    error = explain("a:1", code, f"{said}no", accepted, progress)
    refuses = not progress and (said or (code in REFUSING and not accepted))
    expected: type[OfframpError] = UnavailableError
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        expected = OverloadError
    elif refuses and code not in NETWORK:
        expected = REFUSALS.get(code, PeerError)
    assert type(error) is expected
    assert error.exit_code == (ExitCode.PEER if issubclass(expected, PeerError) else ExitCode.UNAVAILABLE)
    assert str(error).startswith("a:1") and str(error).endswith("no")


def test_statuses_that_a_broken_network_may_have_are_no_refusal() -> None:
    assert not REFUSING & NETWORK and grpc.StatusCode.UNIMPLEMENTED not in REFUSING


@pytest.mark.parametrize(
    ("text", "shown"),
    [(None, ""), ("left\r\nhere: \x1b[31mred", "left here: [31mred"), ("x" * 400, "x" * 300)],
)
def test_a_strangers_text_is_one_line(text: str | None, shown: str) -> None:
    assert one_line(text) == shown


NOBODY = Owner(
    begins=lambda session, call: False,
    next_message=lambda session: None,
    accepted=lambda session, limits: None,
    draining=lambda session: None,
    excess=lambda replies: replies,
    replied=lambda session, sequence, error: (None, None),
    refuse=lambda item, reason, cause: None,
)
"""An owner without frames."""


class Call:
    """A call that can be cancelled."""

    def __init__(self) -> None:
        self.cancels: list[None] = []

    def cancel(self) -> None:
        self.cancels.append(None)


@pytest.fixture
def session() -> Session:
    metrics = LinkMetrics(CollectorRegistry(), "a_link")
    kit = Kit(Terms(bytes(32), 3, 64), 5.0, Security(), metrics, WireCounter(), NOBODY)
    return Session(Servers(["a:1"], failures=1).current, kit, now=100.0)


def test_frames_say_what_they_have_left_where_not_all_have_the_same_time() -> None:
    metrics = LinkMetrics(CollectorRegistry(), "a_link")
    terms = Terms(bytes(32), 3, 64, part=3, parts=4, deadlines=True)
    kit = Kit(terms, 5.0, Security(), metrics, WireCounter(), NOBODY)
    session = Session(Servers(["a:1"], failures=1).current, kit, now=100.0)
    (greeting,) = list(session._requests())
    hello = pb.DeviceMessage.FromString(greeting).hello
    assert (hello.segment, hello.deadline_ms) == ("part 3", 5000)
    now = time.monotonic()
    item = Offload(CodecId.RAW, b"payload", lambda _: None, None, now, now + 2)
    item.sequence = 1
    (left,) = pb.DeviceMessage.FromString(session.pack([item])).deadlines_ms
    assert 0 < left <= 2001


def test_a_stream_is_of_use_if_it_answered_or_lasted(session: Session) -> None:
    assert not session.of_use(clean=True, now=1e9)
    session.accepted_at = 100.0
    for clean, lasting in ((True, LASTING_CLEAN_SECONDS), (False, LASTING_SECONDS)):
        assert not session.of_use(clean, 100.0 + lasting - 0.01)
        assert session.of_use(clean, 100.0 + lasting)
    session.progress = True
    assert session.of_use(clean=False, now=100.0)


def test_a_stream_is_accepted_and_ended_in_time_or_cancelled_once(session: Session) -> None:
    call = session.call = Call()
    assert session.next_deadline() == 105.0
    session.cancel_if_overdue(104.9)
    session.accepted_at = 104.0
    session.cancel_if_overdue(200.0)
    assert session.next_deadline() == math.inf and len(call.cancels) == 0
    session.end_by = 210.0
    assert session.next_deadline() == 210.0
    session.cancel_if_overdue(210.0)
    session.cancel("another reason")
    assert len(call.cancels) == 1 and session.next_deadline() == math.inf
    assert session.cancelled == "did not end the stream within 5 s of draining"


def test_a_stream_that_is_not_made_yet_cannot_be_cancelled(session: Session) -> None:
    session.cancel_if_overdue(200.0)
    assert session.cancelled is None


# --- servers that break the protocol ---


@pytest.mark.parametrize(("script", "message"), [b[1:] for b in BREAKERS], ids=[b[0] for b in BREAKERS])
def test_a_server_that_breaks_the_protocol_is_as_good_as_none(
    linked: LinkTo, script: Script, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    with hostile.hostile(script) as server, linked(server.port, timeout=0.5) as device:
        device.offload(3)
        # The line comes after the failure is set, from another thread.
        until(lambda: any(message in record.message for record in caplog.records), "the warning")
        device.settled()
        device.offload(3)
        refused(device.settled())
        assert message in str(device.link.failure)
        warnings = [record for record in caplog.records if message in record.message]
        # Again only where the server had accepted a stream in between.
        assert 1 <= len(warnings) <= 1 + device.sample("offramp_device_connects_total")
        assert not any(record.exc_info or "\n" in record.message for record in caplog.records)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("status", [None, grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.INTERNAL])
def test_a_server_may_leave_at_every_step(
    linked: LinkTo, step: str, status: grpc.StatusCode | None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with hostile.hostile(leaving(step, status)) as server, linked(server.port, timeout=5) as device:
        device.offload(4)
        outcomes = device.settled()
        if step != "after a reply":
            refused(outcomes)
        device.offload(2)
        device.settled()
        refusal = status is grpc.StatusCode.FAILED_PRECONDITION and step != "after a reply"
        assert isinstance(device.link.failure, MismatchError if refusal else UnavailableError)
        assert all(record.message.isprintable() for record in caplog.records)


@pytest.mark.parametrize(
    "status",
    [
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    ],
    ids=lambda status: status.name,
)
def test_a_stream_that_somebody_in_between_breaks_is_nobodys_blame(
    linked: LinkTo, status: grpc.StatusCode, caplog: pytest.LogCaptureFixture
) -> None:
    """The first stream is cut with three frames in it, by no words of ours; the next one takes them."""
    caplog.set_level(logging.DEBUG)

    def script(requests: hostile.Requests, context: hostile.Context) -> Iterator[bytes]:
        next(requests)
        yield hostile.accepted()
        numbers = hostile.sequences(requests)
        if server.streams == 1:
            yield hostile.reply(next(numbers))
            next(numbers)
            context.abort(status, "Received RST_STREAM with error code 2")
        for sequence in numbers:
            yield hostile.reply(sequence)

    with hostile.hostile(script) as server, linked(server.port, timeout=20) as device:
        device.offload(6)
        if status is grpc.StatusCode.RESOURCE_EXHAUSTED:
            device.settled()
        else:
            answered(device.settled())
        assert type(device.link.failure) in (UnavailableError, OverloadError)
        if status is not grpc.StatusCode.RESOURCE_EXHAUSTED:
            assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("said", [transport.SAID, ""])
@pytest.mark.parametrize("step", [STEPS[1], STEPS[2]])
def test_a_refusal_counts_in_answer_to_a_hello_and_then_only_in_our_servers_words(
    linked: LinkTo, step: str, said: str
) -> None:
    script = leaving(step, grpc.StatusCode.UNAUTHENTICATED, said)
    with hostile.hostile(script) as server, linked(server.port, timeout=5) as device:
        device.offload(1)
        refused(device.settled())
        refuses = bool(said) or step == STEPS[1]
        expected = AccessError if refuses else UnavailableError
        assert type(device.link.failure) is expected and transport.SAID not in str(device.link.failure)


def test_a_server_that_accepts_and_breaks_is_asked_less_and_less_often(
    linked: LinkTo, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with (
        hostile.hostile(hostile.breaking_after_accepting) as server,
        linked(server.port, timeout=5) as device,
    ):
        device.offload(2)
        refused(device.settled())
        time.sleep(2)
        seconds = time.monotonic() - device.start
        # Pauses of 0.05, 0.1, 0.2, 0.4 s at least: the n-th begins after 0.05 (2^n - 1) s.
        assert server.streams <= 2 + math.log2(1 + seconds / (BACKOFF_FIRST / 2)) + seconds / BACKOFF_MOST
        assert len(caplog.records) <= 4, [record.message for record in caplog.records]


@pytest.mark.parametrize("message", [b"", hostile.reply(1)], ids=["empty", "the same reply"])
def test_a_flood_after_an_answer_ends_the_stream(linked: LinkTo, message: bytes) -> None:
    script = hostile.flooding(message, after=1)
    with hostile.hostile(script) as server, linked(server.port, timeout=5) as device:
        device.offload(1)
        answered(device.settled())
        until(lambda: isinstance(device.link.failure, MessageError), "the end of the flood")
        assert device.sample("offramp_device_message_bytes_total", direction="received") < 100_000


@pytest.mark.parametrize(
    "answer", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x00" * 100, b"\xff" * 100_000, None]
)
def test_something_that_speaks_no_grpc_is_as_good_as_none(linked: LinkTo, answer: bytes | None) -> None:
    def handle(connection: socket.socket, _: Peer) -> None:
        if answer is None:
            while connection.recv(1 << 16):
                pass
        else:
            connection.sendall(answer)

    with tcp_peer(handle) as peer, linked(peer.port, timeout=0.5) as device:
        device.offload(3)
        refused(device.settled())
        until(lambda: device.link.failure is not None, "the failure")
        assert isinstance(device.link.failure, UnavailableError)


def test_a_connection_that_is_reset_is_made_again(linked: LinkTo) -> None:
    def handle(connection: socket.socket, peer: Peer) -> None:
        connection.recv(1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    with tcp_peer(handle) as peer, linked(peer.port, timeout=0.5) as device:
        device.offload(3)
        refused(device.settled())
        until(lambda: peer.connections > 1, "a second attempt")
