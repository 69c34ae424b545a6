"""The door of an MQTT 5 broker: requests of all devices, shared with the other gateways of a group.

Rules this module keeps, since a broker's users are strangers to each other:
- A request's device is the level of its topic, which a broker can hold a user to; its reply goes to that
  device's reply topic and to no other, whatever the request asks for.
- Retained requests are of another time, and refused; so are those without a short correlation.
- What the broker doubles is a double like any other: it gets the same reply.
"""

from __future__ import annotations

import logging
import socket
from typing import TYPE_CHECKING

from offramp.common.errors import ConfigError, printable
from offramp.gateway.doors import Take
from offramp.gateway.gateway import Sender
from offramp.gateway.metrics import UNLISTED, GatewayMetrics
from offramp.link.mqtt import NAME, Broker, Connection

if TYPE_CHECKING:
    from paho.mqtt.client import MQTTMessage

log = logging.getLogger("offramp.gateway")

CORRELATION_MOST = 64
REPLY_SECONDS = 60.0
"""How long the broker keeps a reply: a device that is connected gets it at once."""


class BrokerDoor:
    """Requests of a broker. name: this gateway's. group: of the gateways that share them; None: all."""

    def __init__(self, broker: Broker, name: str, group: str | None, metrics: GatewayMetrics) -> None:
        name = name or f"gateway-{socket.gethostname()}"
        for flag, value in (("--mqtt-name", name), ("--mqtt-group", group)):
            if value is not None and not NAME.fullmatch(value):
                raise ConfigError(
                    f"{flag} {printable(value)}: expected letters, digits, dots and dashes, 1 … 64"
                )
        topic = broker.topic("+", "request")
        self._broker = broker
        self._metrics = metrics
        self._take: Take | None = None
        self._connection = Connection(
            broker,
            name,
            [topic if group is None else f"$share/{group}/{topic}"],
            self._message,
            broker.topic(name, "state"),
        )

    def open(self, take: Take) -> None:
        """Begin to connect; it goes on by itself."""
        self._take = take
        self._connection.start()

    def close(self) -> None:
        """Take no more."""
        self._take = None

    def end(self) -> None:
        """Disconnect."""
        self._connection.close()

    def _message(self, message: MQTTMessage) -> None:
        """On the client's thread."""
        if self._take is None:
            return
        reason, text = self._check(message)
        if reason:
            self._metrics.refused.labels(UNLISTED, reason).inc()
            log.debug("%s: refused (%s): %s", self._broker.target, reason, text)
            return
        name = message.topic.split("/")[-2]
        correlation: bytes = message.properties.CorrelationData  # type: ignore[union-attr]

        def answer(data: bytes) -> bool:
            trouble = self._connection.publish(
                self._broker.topic(name, "reply"), data, seconds=REPLY_SECONDS, correlation=correlation
            )
            return trouble is None

        self._take(Sender("mqtt", name, answer), bytes(message.payload))

    def _check(self, message: MQTTMessage) -> tuple[str, str]:
        """Why it is refused, as metrics call it and in words; empty where it is not."""
        shown = printable(message.topic)
        if message.retain:
            return "retained", f"a retained request in {shown}"
        name = message.topic.split("/")[-2]
        if not NAME.fullmatch(name):
            return "topic", f"{shown}: expected a name of letters, digits, dots and dashes"
        respond = getattr(message.properties, "ResponseTopic", None)
        if respond != self._broker.topic(name, "reply"):
            return "topic", f"a request in {shown} for a reply elsewhere"
        correlation = getattr(message.properties, "CorrelationData", b"")
        if not 0 < len(correlation) <= CORRELATION_MOST:
            return "correlation", f"{len(correlation)} bytes of correlation, expected 1 … {CORRELATION_MOST}"
        return "", ""
