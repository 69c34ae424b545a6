"""A server without sockets, and senders that keep their replies."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from offramp.common.codec.activation import CodecId
from offramp.common.errors import OfframpError
from offramp.common.wire.datagram import Datagrams
from offramp.common.wire.seal import DeviceKey
from offramp.gateway.devices import Known
from offramp.gateway.gateway import Gateway, Route, Sender
from offramp.gateway.lane import Lane
from offramp.gateway.metrics import GatewayMetrics
from offramp.gateway.state import State
from offramp.link.offloader import ByteTotal
from offramp.link.outcome import Answer, Cause, Outcome, Refusal
from offramp.link.wire_bytes import WireBytes

DIGEST = bytes(range(32))
DATAGRAMS = Datagrams(DIGEST, 10)


def key_of(number: int) -> DeviceKey:
    return DeviceKey(number.to_bytes(16, "little"))


class FakeLink:
    """Answers class ``payload[0] % 10`` at once, unless ``refuses`` says otherwise."""

    failure: OfframpError | None = None

    def __init__(self) -> None:
        self.seen: list[bytes] = []
        self.refuses: Callable[[bytes], Refusal | None] = lambda payload: None
        self.held: list[Callable[[], None]] | None = None
        """Outcomes that wait for the test; None: none do."""

    @property
    def wire(self) -> ByteTotal:
        return self

    def total(self) -> WireBytes | None:
        return None

    def offload(self, codec: CodecId, payload: bytes, done: Callable[[Outcome], None], **_: object) -> None:
        self.seen.append(payload)
        refusal = self.refuses(payload)
        outcome = refusal or Answer(payload[0] % 10, 0.8, None, 0.0, 0.0)
        if self.held is None:
            done(outcome)
        else:
            self.held.append(lambda: done(outcome))

    def wait_idle(self) -> None:
        pass

    def late_replies_due(self) -> bool:
        return False

    def close(self, wait: bool = True) -> None:
        pass


def away(_: bytes) -> Refusal:
    return Refusal("no server", Cause.UNAVAILABLE)


class Device:
    """A sender, and the replies that it got."""

    def __init__(self, address: str = "a", door: str = "udp") -> None:
        self.replies: list[bytes] = []
        self.works = True
        self.sender = Sender(door, address, self._answer)

    def _answer(self, data: bytes) -> bool:
        self.replies.append(data)
        return self.works


class Desk:
    """A gateway over a fake link."""

    def __init__(
        self, numbers: tuple[int, ...] | None = None, state: str | None = None, **options: int
    ) -> None:
        self.link = FakeLink()
        self.metrics = GatewayMetrics()
        self.lane = Lane(self.link, options.pop("most", 4096), "toy")
        self.state = State(state)
        devices: Mapping[int, Known] | None = None
        if numbers is not None:
            devices = {number: Known(number, f"device-{number}", key_of(number)) for number in numbers}
        route = Route("toy", DATAGRAMS, self.lane)
        self.gateway = Gateway([route], devices, self.state, self.metrics, **options)

    def count(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(f"offramp_gateway_{name}_total", labels) or 0.0

    def close(self) -> None:
        self.lane.close(1.0)
        self.state.close()
        assert not self.lane._thread.is_alive()
