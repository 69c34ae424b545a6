"""A gateway and devices on a real broker: one answer each, whatever becomes of the broker."""

from __future__ import annotations

import gc
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from offramp.common.codec.activation import CodecId
from offramp.common.errors import ConfigError
from offramp.gateway.broker import BrokerDoor
from offramp.link import mqtt
from offramp.link.carrier import correlation_of
from offramp.link.datagram_link import DatagramLink
from offramp.link.datagram_numbers import Numbers
from offramp.link.metrics import LinkMetrics
from offramp.link.mqtt import Broker, Connection, MqttCarrier
from offramp.link.outbox import Pace
from offramp.link.outcome import Answer, Outcome, Refusal
from offramp.link.security import Security
from offramp.link.session import Terms
from tests.certificates import Authority, needs_openssl
from tests.gateway.fakes import DATAGRAMS, DIGEST, Desk
from tests.mosquitto import Mosquitto, needs_mosquitto
from tests.processes import until

pytestmark = needs_mosquitto
DeskOf = Callable[..., Desk]


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


@pytest.fixture
def broker(tmp_path: Path, stack: ExitStack) -> Mosquitto:
    made = Mosquitto(tmp_path)
    stack.callback(made.kill)
    return made


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mqtt, "RECONNECT_SECONDS", (0.05, 0.1))


def door_of(
    stack: ExitStack, broker: Mosquitto, desk: Desk, name: str = "gateway-1", group: str | None = "g"
) -> BrokerDoor:
    door = BrokerDoor(Broker.parse("--mqtt", broker.url, Security()), name, group, desk.metrics)
    door.open(desk.gateway.take)
    stack.callback(door.end)
    until(door._connection.ready.is_set, "the gateway at the broker")
    return door


class Frames:
    """A device's link by the broker, and what became of its frames."""

    def __init__(self, stack: ExitStack, target: Broker, name: str = "hive-3", timeout: float = 30.0) -> None:
        registry = CollectorRegistry()
        self.carrier = MqttCarrier(target, name)
        self.link = DatagramLink(
            self.carrier,
            Terms(DIGEST, 10, 64),
            Pace(timeout, 64),
            LinkMetrics(registry, "toy"),
            numbers=Numbers(),
            failures=1000,
        )
        stack.callback(self.link.close, wait=False)
        self.outcomes: list[list[Outcome]] = []

    def offload(self, payload: bytes) -> None:
        mine: list[Outcome] = []
        self.outcomes.append(mine)
        self.link.offload(CodecId.BUNDLE, payload, mine.append)

    def settled(self) -> list[Outcome]:
        until(lambda: all(self.outcomes), "an outcome for each frame")
        return [outcome for (outcome,) in self.outcomes]


def plain(broker: Mosquitto) -> Broker:
    return Broker.parse("--server", broker.url, Security())


def listener(stack: ExitStack, broker: Mosquitto, topic: str) -> list[Any]:
    """All messages of a topic from now on, the retained ones at once."""
    found: list[Any] = []
    connection = Connection(plain(broker), "listener", [topic], found.append, "other/listener", retained=True)
    connection.start()
    stack.callback(connection.close)
    until(connection.ready.is_set, "the listener")
    return found


def test_answers_and_states(stack: ExitStack, broker: Mosquitto, desk_of: DeskOf) -> None:
    desk = desk_of()
    door_of(stack, broker, desk)
    with ExitStack() as device:
        frames = Frames(device, plain(broker))
        for index in range(20):
            frames.offload(bytes([index, 1]))
        answers = [outcome for outcome in frames.settled() if isinstance(outcome, Answer)]
        assert [answer.class_index for answer in answers] == [index % 10 for index in range(20)]
        assert desk.count("received_bytes", door="mqtt") == 20 * 10
        states = listener(stack, broker, "offramp/+/state")
        until(lambda: len(states) == 2, "both states")
        assert {message.topic: message.payload for message in states} == {
            "offramp/hive-3/state": b"online",
            "offramp/gateway-1/state": b"online",
        }
        assert all(message.retain for message in states)
    until(lambda: len(states) == 3, "the device's last word")
    assert (states[2].topic, states[2].payload) == ("offramp/hive-3/state", b"offline")


def test_a_broker_that_is_killed_slow_and_back(stack: ExitStack, broker: Mosquitto, desk_of: DeskOf) -> None:
    """Under load: each frame has one outcome, no request is forwarded twice, and answers come again."""
    desk = desk_of()
    door = door_of(stack, broker, desk)
    frames = Frames(stack, plain(broker), timeout=1.0)
    frames.offload(b"\1")
    frames.settled()

    def load(count: int) -> None:
        for _ in range(count):
            frames.offload(len(frames.outcomes).to_bytes(2, "little"))
            time.sleep(0.002)

    load(30)
    broker.kill()
    load(30)
    broker.start()
    until(door._connection.ready.is_set, "the gateway at the broker again")
    until(frames.carrier._connection.ready.is_set, "the device at the broker again")
    load(30)
    broker.send(signal.SIGSTOP)
    load(10)
    broker.send(signal.SIGCONT)
    load(10)
    outcomes = frames.settled()
    assert isinstance(outcomes[-1], Answer)
    refusals = [outcome for outcome in outcomes if isinstance(outcome, Refusal)]
    assert refusals and all(
        "mqtt://" in each.reason or each.reason == "no reply in time" for each in refusals
    )
    assert len(desk.link.seen) == len(set(desk.link.seen))


def test_gateways_of_a_group_share_the_requests(stack: ExitStack, broker: Mosquitto, desk_of: DeskOf) -> None:
    desks = [desk_of(), desk_of()]
    for number, desk in enumerate(desks):
        door_of(stack, broker, desk, f"gateway-{number}")
    frames = Frames(stack, plain(broker))
    for index in range(30):
        frames.offload(bytes([index, 2]))
    assert all(isinstance(outcome, Answer) for outcome in frames.settled())
    seen = [len(desk.link.seen) for desk in desks]
    assert sum(seen) == 30 and all(seen)


def test_two_groups_double_every_request_and_no_answer(
    stack: ExitStack, broker: Mosquitto, desk_of: DeskOf
) -> None:
    desks = [desk_of(), desk_of()]
    for number, desk in enumerate(desks):
        door_of(stack, broker, desk, f"gateway-{number}", None)
    frames = Frames(stack, plain(broker))
    for index in range(10):
        frames.offload(bytes([index, 3]))
    assert len(frames.settled()) == 10
    until(lambda: all(len(desk.link.seen) == 10 for desk in desks), "each request at each gateway")
    assert all(len(each) == 1 for each in frames.outcomes)


def test_hostile_messages_are_refused(stack: ExitStack, broker: Mosquitto, desk_of: DeskOf) -> None:
    desk = desk_of()
    good = DATAGRAMS.request(1, 0, b"\7")
    stranger = Connection(plain(broker), "stranger", ["none"], lambda _: None, "other/state")
    stranger.start()
    stack.callback(stranger.close)
    until(stranger.ready.is_set, "the stranger")

    def publish(topic: str, data: bytes, respond: str | None = "offramp/a/reply", **more: Any) -> None:
        more = {"correlation": b"1234"} | more
        assert stranger.publish(topic, data, respond=respond, **more) is None

    # Before the gateway comes: kept by the broker, and not for it.
    publish("offramp/a/request", good, retain=True)
    replies = listener(stack, broker, "#")
    until(lambda: replies, "what the broker keeps")
    door_of(stack, broker, desk)
    publish("offramp/a/request", good, retain=True)
    publish("offramp/a/request", good, "home/door/unlock")
    publish("offramp/a/request", good, "offramp/b/reply")
    publish("offramp/a/request", good, None)
    publish("offramp/a/request", good, correlation=None)
    publish("offramp/a/request", good, correlation=bytes(65))
    publish("offramp/a b/request", good, "offramp/a b/reply")
    publish("offramp/a/request", b"")
    publish("offramp/a/request", bytes(70_000))
    publish("offramp/a/request", good[:-1] + b"x")
    refused = {
        reason: desk.count("refused", device="unlisted", reason=reason)
        for reason in ("retained", "topic", "correlation", "malformed", "checksum")
    }

    def counted() -> dict[str, float]:
        return {reason: desk.count("refused", device="unlisted", reason=reason) for reason in refused}

    expected = {"retained": 1, "topic": 4, "correlation": 2, "malformed": 2, "checksum": 1}
    until(lambda: counted() == expected, f"{expected}, not {counted()}")
    assert desk.link.seen == []
    publish("offramp/a/request", good)
    until(lambda: [one for one in replies if one.topic == "offramp/a/reply"], "the good one's reply")
    assert len(desk.link.seen) == 1 and not [one for one in replies if one.topic.startswith("home")]


def test_replies_of_others_change_nothing(stack: ExitStack, broker: Mosquitto, desk_of: DeskOf) -> None:
    """Forged, retained and of another run: the device takes the one with its request's correlation."""
    desk = desk_of()
    door_of(stack, broker, desk)
    desk.link.held = []
    frames = Frames(stack, plain(broker))
    frames.offload(b"\7")
    until(lambda: desk.link.held, "the request at the server")
    request = DATAGRAMS.request(next(iter(frames.link._waiting)), 0, b"\7")
    forged = DATAGRAMS.reply(DATAGRAMS.read_reply(DATAGRAMS.reply(_reply(request, 3))))
    stranger = Connection(plain(broker), "stranger", ["none"], lambda _: None, "other/state")
    stranger.start()
    stack.callback(stranger.close)
    until(stranger.ready.is_set, "the stranger")
    for more in (
        {"correlation": b"other"},
        {},
        {"correlation": correlation_of(request), "retain": True},
    ):
        assert stranger.publish("offramp/hive-3/reply", forged, **more) is None
    seen = listener(stack, broker, "offramp/hive-3/reply")
    until(lambda: seen, "what was published")
    assert not frames.outcomes[0]
    desk.link.held[0]()
    (outcome,) = frames.settled()
    assert isinstance(outcome, Answer) and outcome.class_index == 7


def _reply(request: bytes, index: int) -> Any:
    from offramp.common.wire.datagram import Reply

    return Reply(int.from_bytes(request[3:5], "little"), index, 0.5)


# The client leaves a socket whose handshake failed to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@needs_openssl
def test_tls_user_and_token(
    stack: ExitStack, tmp_path: Path, desk_of: DeskOf, caplog: pytest.LogCaptureFixture
) -> None:
    """Wrong ones are refused in one line without the token; files are read again for each connection."""
    authority = Authority(tmp_path, "ca")
    broker = Mosquitto(tmp_path, "hive", "right-token", authority.sign("broker"))
    stack.callback(broker.kill)
    user, token = tmp_path / "user", tmp_path / "token"
    user.write_text("hive\n")
    token.write_text("wrong-token\n")
    security = Security(ca=str(authority.pair.cert), token_file=str(token))
    url = broker.url.replace("mqtt:", "mqtts:")
    target = Broker.parse("--server", url, security, str(user))
    desk = desk_of()
    door = BrokerDoor(target, "gateway-1", "g", desk.metrics)
    with closing(_Ends(door)):
        door.open(desk.gateway.take)
        until(lambda: "refuses us: Not authorized" in caplog.text, "a refusal")
        token.write_text("right-token\n")
        until(door._connection.ready.is_set, "the gateway at the broker")
        frames = Frames(stack, target)
        frames.offload(b"\7")
        (outcome,) = frames.settled()
        assert isinstance(outcome, Answer)
    with ExitStack() as away:
        stranger = Frames(away, Broker.parse("--server", url, Security(), None), "stranger", 0.5)
        stranger.offload(b"\7")
        (refused,) = stranger.settled()
    gc.collect()
    assert isinstance(refused, Refusal) and "mqtts://127.0.0.1" in refused.reason
    assert "wrong-token" not in caplog.text and "right-token" not in caplog.text


class _Ends:
    def __init__(self, door: BrokerDoor) -> None:
        self.close = door.end


def test_names_that_cannot_be(broker: Mosquitto, desk_of: DeskOf) -> None:
    for name, group, words in (("a/b", None, "--mqtt-name a/b"), ("a", "+", r"--mqtt-group \+")):
        with pytest.raises(ConfigError, match=words):
            BrokerDoor(plain(broker), name, group, desk_of().metrics)
