"""Answers published to an MQTT broker for home automation, with discovery as Home Assistant has it.

Rules this module keeps:
- The newest answer, no more often than its interval; those between are passed over. No image waits for it.
- Topics are of names that were checked. What a bundle says is inside JSON only; a picture's name is nowhere.
- Discovery, answer and availability are retained, and published again on each connection: a broker forgets.
- Whoever may read the broker's topics reads the answers; nobody can send anything back.
"""

from __future__ import annotations

import json
import re
import socket
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from offramp.common.errors import ConfigError, printable
from offramp.common.release import package_version
from offramp.device.result import Result
from offramp.device.settings import DeviceSettings
from offramp.link.mqtt import CONNECT_SECONDS, NAME, Broker, Connection, require_mqtt
from offramp.link.security import Security

Seen = Callable[[int, str, Result], None]

_DISCOVERY = re.compile(r"[A-Za-z0-9_-]{1,64}(/[A-Za-z0-9_-]{1,64})*")
LABEL_CHARACTERS = 250
"""Home Assistant takes 255 in a state."""


def node_of(name: str) -> str:
    """A device's name where no dots may be; names that differ give others."""
    return name if "." not in name else f"{name.replace('.', '_')}-{zlib.crc32(name.encode()):08x}"


def discovery(prefix: str, name: str, answers: str, availability: str, model: str) -> dict[str, bytes]:
    """The configurations of one device's two sensors, by their topics. answers, availability: topics."""
    node = node_of(name)
    common = {
        "state_topic": answers,
        "availability_topic": availability,
        "device": {
            "identifiers": [f"offramp_{node}"],
            "name": name,
            "manufacturer": "Offramp",
            "model": printable(model, LABEL_CHARACTERS),
            "sw_version": package_version(),
        },
        "origin": {"name": "Offramp", "sw_version": package_version()},
    }
    sensors: dict[str, dict[str, object]] = {
        "answer": {
            "value_template": "{{ value_json.label }}",
            "json_attributes_topic": answers,
            "icon": "mdi:image-search",
        },
        "confidence": {
            "value_template": "{{ (value_json.confidence * 100) | round(1) }}",
            "unit_of_measurement": "%",
            "state_class": "measurement",
        },
    }
    return {
        f"{prefix}/sensor/offramp_{node}/{sensor}/config": json.dumps(
            {"name": sensor, "unique_id": f"offramp_{node}_{sensor}", **own, **common}
        ).encode()
        for sensor, own in sensors.items()
    }


def state_of(index: int, result: Result) -> bytes:
    """One answer as JSON; ``label`` on one line, and short enough for a state."""
    return json.dumps(
        {
            "label": printable(result.label, LABEL_CHARACTERS),
            "confidence": round(result.confidence, 4),
            "source": result.source,
            "unknown": result.unknown,
            "index": index,
        }
    ).encode()


class Newest:
    """Which answer is published when; without a clock of its own. seconds: from one to the next, at least."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._next = float("-inf")
        self._waiting: bytes | None = None

    def put(self, state: bytes) -> None:
        """In place of one that waits."""
        self._waiting = state

    def wait(self, now: float) -> float | None:
        """Seconds until one is due, 0 if it is; None where none waits."""
        return None if self._waiting is None else max(0.0, self._next - now)

    def take(self, now: float) -> bytes | None:
        """The one that waits, due or not."""
        state, self._waiting = self._waiting, None
        self._next = now + self._seconds
        return state


class Publisher:
    """One device's answers at a broker. discovery: what the topics of its sensors begin with."""

    def __init__(self, broker: Broker, name: str, discovery: str, seconds: float) -> None:
        self._name = name or socket.gethostname()
        if not NAME.fullmatch(self._name):
            raise ConfigError(
                f"--mqtt-name {printable(self._name)}: expected letters, digits, dots and dashes, 1 … 64"
            )
        if not _DISCOVERY.fullmatch(discovery):
            raise ConfigError(
                f"--publish-discovery {printable(discovery)}: expected letters, digits and dashes, 1 … 64 "
                "in each level"
            )
        self._discovery = discovery
        self._answers = broker.topic(self._name, "answer")
        self._availability = broker.topic(self._name, "answer", "state")
        # Not the name alone: that is the client id of --server mqtt://…
        self._connection = Connection(
            broker, f"{self._name}:answer", [], lambda _: None, self._availability, connected=self._connected
        )
        self._newest = Newest(seconds)
        self._last: bytes | None = None
        self._configurations: dict[str, bytes] = {}
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="offramp-publish", daemon=True)

    @classmethod
    def of(cls, settings: DeviceSettings) -> Publisher | None:
        """What the flags say; None where nothing is published. Raises ConfigError."""
        if settings.publish is None:
            for flag in ("user_file", "token_file", "tls_ca", "insecure"):
                if getattr(settings, f"publish_{flag}"):
                    raise ConfigError(f"--publish-{flag.replace('_', '-')} needs --publish")
            return None
        require_mqtt("--publish")
        security = Security(
            ca=settings.publish_tls_ca, token_file=settings.publish_token_file, prefix="publish-"
        )
        broker = Broker.parse(
            "--publish",
            settings.publish,
            security,
            settings.publish_user_file,
            insecure=settings.publish_insecure,
            insecure_flag="--publish-insecure",
        )
        return cls(broker, settings.mqtt_name or "", settings.publish_discovery, settings.publish_seconds)

    def open(self, model: str) -> None:
        """Begin to connect; it goes on by itself. model: the bundle's name."""
        self._configurations = discovery(
            self._discovery, self._name, self._answers, self._availability, model
        )
        self._connection.start()
        self._thread.start()

    def seen(self, index: int, _name: str, result: Result) -> None:
        """An image has its answer; on any thread. It waits for nothing."""
        with self._changed:
            self._newest.put(state_of(index, result))
            self._changed.notify()

    def close(self) -> None:
        """Publish the last answer, say that the device is gone, and disconnect."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()
        # A run of a few images may be over before the broker has answered.
        self._connection.tried.wait(CONNECT_SECONDS)
        self._publish(self._newest.take(0.0))
        self._connection.close()

    def _run(self) -> None:
        while True:
            with self._changed:
                while True:
                    if self._closed:
                        return
                    wait = self._newest.wait(time.monotonic())
                    if wait == 0:
                        break
                    self._changed.wait(wait)
                state = self._newest.take(time.monotonic())
            self._publish(state)

    def _publish(self, state: bytes | None) -> None:
        if state is not None:
            self._last = state
            # Where there is no connection, the next one begins with it.
            self._connection.publish(self._answers, state, retain=True)

    def _connected(self) -> None:
        """On the client's thread."""
        for topic, configuration in self._configurations.items():
            self._connection.publish(topic, configuration, retain=True)
        if (last := self._last) is not None:
            self._connection.publish(self._answers, last, retain=True)


@contextmanager
def published(publisher: Publisher | None, model: str) -> Iterator[tuple[Seen, ...]]:
    """For as long, its connection: who wants to see each answer."""
    if publisher is None:
        yield ()
        return
    publisher.open(model)
    try:
        yield (publisher.seen,)
    finally:
        publisher.close()
