"""Datagrams to a gateway by an MQTT 5 broker: request and response topics, as small as they can be made.

A device NAME publishes to ``PREFIX/NAME/request`` and listens to ``PREFIX/NAME/reply``; ``PREFIX/NAME/state``
has, retained, ``online``, or ``offline`` by the broker's hand once it is gone. Rules this module keeps:
- QoS 1 both ways. What the broker doubles is dropped by the link; what it kept of another run shows by its
  correlation data, which is of the request's own bytes.
- A request expires at the broker when its image waits no more. Retained replies are dropped.
- A session ends with its connection: nothing waits at the broker for a device that is gone.
- User and token come from files, read again for each connection; nothing of them reaches a message or a log.
"""

from __future__ import annotations

import logging
import math
import re
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from offramp.common.errors import ConfigError, UnavailableError, printable
from offramp.common.files import read_bounded
from offramp.common.wire.address import join_address, require_secure
from offramp.link.carrier import Received, correlation_of
from offramp.link.security import Security
from offramp.link.wire_bytes import WireBytes

if TYPE_CHECKING:
    from paho.mqtt.client import Client, MQTTMessage

log = logging.getLogger("offramp.link")

SCHEMES = {"mqtt": 1883, "mqtts": 8883}
KEEPALIVE_SECONDS = 60
CONNECT_SECONDS = 5.0
RECONNECT_SECONDS = (1, 30)
"""Before it connects again: at first, doubled each time up to the second."""
QUEUE_MOST = 1024
"""Messages that wait in the client, at most."""
NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_PREFIX = re.compile(r"[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*")
_LINE_BYTES = 4096


@dataclass(frozen=True)
class Broker:
    """Where a broker is and how it is reached. prefix: what our topics begin with."""

    host: str
    port: int
    prefix: str
    security: Security = field(default_factory=Security)
    user_file: str | None = None

    @classmethod
    def parse(
        cls,
        flag: str,
        url: str,
        security: Security,
        user_file: str | None = None,
        *,
        insecure: bool = False,
        insecure_flag: str = "--insecure",
    ) -> Broker:
        """Of ``mqtt://HOST[:PORT][/PREFIX]``, or ``mqtts://`` for TLS. Raises ConfigError naming the flag."""
        wrong = f"{flag} {printable(url)}: expected mqtt://HOST[:PORT][/PREFIX], or mqtts://"
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError:
            raise ConfigError(wrong) from None
        prefix = parts.path.strip("/") or "offramp"
        if parts.scheme not in SCHEMES or not host or not set("?#").isdisjoint(url):
            raise ConfigError(wrong)
        if parts.username is not None or parts.password is not None:
            raise ConfigError(
                f"{flag}: a user or password in the URL, expected --{security.prefix}user-file and "
                f"--{security.prefix}token-file"
            )
        if not _PREFIX.fullmatch(prefix):
            raise ConfigError(f"{wrong}, a prefix of letters, digits, dots and dashes")
        encrypted = parts.scheme == "mqtts"
        if security.encrypted and not encrypted:
            raise ConfigError(f"{flag} {printable(url)}: TLS is asked for, expected mqtts://")
        if encrypted and insecure:
            raise ConfigError(f"{flag} {printable(url)}: expected {insecure_flag} or mqtts://, not both")
        if not encrypted:
            require_secure(flag, host, insecure, insecure_flag)
        security = replace(security, tls=encrypted)
        made = cls(host, port or SCHEMES[parts.scheme], prefix, security, user_file)
        made.credentials()
        if encrypted:
            made.context()
        return made

    @property
    def target(self) -> str:
        """What messages call it."""
        return f"mqtt{'s' if self.security.encrypted else ''}://{join_address(self.host, self.port)}"

    def topic(self, *levels: str) -> str:
        """A topic of ours."""
        return "/".join((self.prefix, *levels))

    def credentials(self) -> tuple[str | None, str | None]:
        """User and token, None for a file that is not named. Raises ConfigError naming the file."""
        return (
            _line(f"--{self.security.prefix}user-file", self.user_file),
            _line(f"--{self.security.prefix}token-file", self.security.token_file),
        )

    def context(self) -> Any:
        """The TLS context. Raises ConfigError for files that are not what their flags say."""
        import ssl

        security, flag = self.security, f"--{self.security.prefix}tls-"
        if security.server_name is not None:
            raise ConfigError(f"{flag}server-name: expected the broker's own name in the URL, mqtts://NAME")
        if (security.certificate is None) != (security.key is None):
            raise ConfigError(f"{flag}cert and {flag}key: expected both or neither")
        try:
            context = ssl.create_default_context(cafile=security.ca)
            if security.certificate is not None:
                context.load_cert_chain(security.certificate, security.key)
        except (OSError, ssl.SSLError) as error:
            where = security.ca if security.certificate is None else security.certificate
            reason = error.strerror or error
            raise ConfigError(f"{flag}ca or {flag}cert {where}: cannot be used: {reason}") from None
        return context


def require_mqtt(flag: str) -> None:
    """Raise ConfigError, naming the flag, where the client library is not installed."""
    try:
        import paho.mqtt.client  # noqa: F401
    except ImportError:
        raise ConfigError(f"{flag} needs paho-mqtt: pip install 'offramp[mqtt]'") from None


class Connection:
    """One client of a broker, which connects again by itself. Its callbacks come on one thread of its own.

    name: its client id. subscribe: the topic filters. message: called with each message. state: the topic of
    its last will. retained: whether the broker sends what it kept, which is of another time. connected:
    called on that thread each time that it is ready.
    """

    def __init__(
        self,
        broker: Broker,
        name: str,
        subscribe: list[str],
        message: Callable[[MQTTMessage], None],
        state: str,
        *,
        retained: bool = False,
        connected: Callable[[], None] | None = None,
    ) -> None:
        from paho.mqtt.client import Client
        from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

        self.broker = broker
        self.ready = threading.Event()
        """Set while the broker has accepted us and what we listen to."""
        self.tried = threading.Event()
        """Set once it is known whether the first attempt came to something."""
        self.trouble: str | None = None
        """Why it is not ready."""
        self.connects = 0
        self._name = name
        self._subscribe = subscribe
        self._message = message
        self._ready = connected
        self._state = state
        self._closed = False
        self._retained = retained
        self._client: Client = Client(
            CallbackAPIVersion.VERSION2, client_id=name, protocol=MQTTProtocolVersion.MQTTv5
        )
        self._client.max_queued_messages_set(QUEUE_MOST)
        self._client.reconnect_delay_set(*RECONNECT_SECONDS)
        self._client.will_set(state, b"offline", 1, retain=True)
        self._client.on_pre_connect = self._before_connect
        self._client.on_connect = self._connected
        self._client.on_subscribe = self._subscribed
        self._client.on_disconnect = self._disconnected
        self._client.on_connect_fail = lambda *_: self._down("is unreachable")
        self._client.on_message = lambda _client, _data, message: self._arrived(message)
        if broker.security.encrypted:
            self._client.tls_set_context(broker.context())

    def start(self) -> None:
        """Begin to connect; it goes on by itself."""
        self._client.connect_timeout = CONNECT_SECONDS
        self._client.connect_async(self.broker.host, self.broker.port, KEEPALIVE_SECONDS, clean_start=True)
        self._client.loop_start()

    def publish(
        self,
        topic: str,
        data: bytes,
        *,
        seconds: float | None = None,
        respond: str | None = None,
        correlation: bytes | None = None,
        retain: bool = False,
    ) -> str | None:
        """Hand one message over at QoS 1; why it cannot be, or None."""
        from paho.mqtt.enums import MQTTErrorCode
        from paho.mqtt.packettypes import PacketTypes
        from paho.mqtt.properties import Properties

        if not self.ready.is_set():
            return f"{self.broker.target} {self.trouble or 'has not answered yet'}"
        untyped: Any = Properties
        properties = untyped(PacketTypes.PUBLISH)
        if seconds is not None:
            properties.MessageExpiryInterval = max(1, math.ceil(seconds))
        if respond is not None:
            properties.ResponseTopic = respond
        if correlation is not None:
            properties.CorrelationData = correlation
        sent = self._client.publish(topic, data, 1, retain, properties)
        if sent.rc is MQTTErrorCode.MQTT_ERR_QUEUE_SIZE:
            return f"{self.broker.target}: {QUEUE_MOST} messages wait already, the most that may"
        return None

    def close(self) -> None:
        """Say so, disconnect, and wait for its thread."""
        self._closed = True
        if self.ready.is_set():
            self._client.publish(self._state, b"offline", 1, retain=True)
        self._client.disconnect()
        self._client.loop_stop()

    # --- on the client's thread ---

    def _before_connect(self, client: Client, _data: object) -> None:
        try:
            user, token = self.broker.credentials()
        except ConfigError as error:
            self._down(str(error))
            return
        # The client sends no password without a user.
        client.username_pw_set(user if user is not None or token is None else self._name, token)

    def _connected(self, client: Client, _data: object, _flags: object, code: Any, _more: object) -> None:
        if code.is_failure:
            self._down(f"refuses us: {printable(str(code))}")
            return
        self.connects += 1
        if not self._subscribe:
            self._accepted(client)
            return
        client.subscribe([(each, _options(self._retained)) for each in self._subscribe])

    def _subscribed(self, client: Client, _data: object, _id: int, codes: list[Any], _more: object) -> None:
        refused = [str(code) for code in codes if code.is_failure]
        if refused:
            self._down(f"refuses {', '.join(self._subscribe)}: {printable(refused[0])}")
            return
        self._accepted(client)

    def _accepted(self, client: Client) -> None:
        client.publish(self._state, b"online", 1, retain=True)
        if self.trouble is not None:
            log.info("%s answers", self.broker.target)
        self.trouble = None
        self.ready.set()
        self.tried.set()
        if self._ready is not None:
            self._ready()

    def _disconnected(self, _client: Client, _data: object, _flags: object, code: Any, _more: object) -> None:
        if not self._closed and self.ready.is_set():
            self._down(f"ended the connection: {printable(str(code))}")
        self.ready.clear()

    def _down(self, why: str) -> None:
        self.ready.clear()
        if self.trouble != why:
            log.warning("%s %s", self.broker.target, why)
        self.trouble = why
        self.tried.set()

    def _arrived(self, message: MQTTMessage) -> None:
        try:
            self._message(message)
        except Exception as error:
            # Such as a topic that is not UTF-8: the client's thread has to go on.
            log.error("a message of %s was not taken: %s", self.broker.target, type(error).__name__)


class MqttCarrier:
    """A device's side. name: the device's, its client id and a level of its topics."""

    tries = 2

    def __init__(self, broker: Broker, name: str = "") -> None:
        self.target = broker.target
        name = name or socket.gethostname()
        if not NAME.fullmatch(name):
            raise ConfigError(
                f"--mqtt-name {printable(name)}: expected letters, digits, dots and dashes, 1 … 64"
            )
        self._request, self._reply = broker.topic(name, "request"), broker.topic(name, "reply")
        self._connection = Connection(broker, name, [self._reply], self._message, broker.topic(name, "state"))
        self._receive: Received | None = None

    def open(self, received: Received, seconds: float) -> None:
        """Connect, and wait for it, the first time. Raises UnavailableError; it goes on trying."""
        wait = 0.0
        if self._receive is None:
            self._receive, wait = received, min(seconds, CONNECT_SECONDS)
            self._connection.start()
        self._connection.tried.wait(wait)
        if not self._connection.ready.is_set():
            why = self._connection.trouble or "has not answered yet"
            raise UnavailableError(f"{self.target} {why}")

    def send(self, datagram: bytes, seconds: float) -> str | None:
        """Publish one request."""
        return self._connection.publish(
            self._request,
            datagram,
            seconds=seconds,
            respond=self._reply,
            correlation=correlation_of(datagram),
        )

    def envelope(self, datagram: bytes) -> int:
        """Of its PUBLISH packet: header, topic, packet id, properties; and the PUBACK."""
        properties = 5 + 3 + len(self._reply) + 3 + 4
        body = 2 + len(self._request) + 2 + 1 + properties + len(datagram)
        return 1 + (1 if body < 128 else 2) + body - len(datagram) + 4

    def total(self) -> WireBytes | None:
        """Not known: the client does not count."""
        return None

    def close(self) -> None:
        """Disconnect."""
        if self._receive is not None:
            self._connection.close()

    def _message(self, message: MQTTMessage) -> None:
        # What a stranger left there is not for this request.
        if message.retain or self._receive is None:
            return
        correlation = getattr(message.properties, "CorrelationData", None)
        self._receive(bytes(message.payload), correlation or b"")


def _options(retained: bool) -> Any:
    from paho.mqtt.subscribeoptions import SubscribeOptions

    kinds = SubscribeOptions.RETAIN_SEND_ON_SUBSCRIBE, SubscribeOptions.RETAIN_DO_NOT_SEND
    return SubscribeOptions(qos=1, retainAsPublished=True, retainHandling=kinds[not retained])


def _line(flag: str, path: str | None) -> str | None:
    """A file of one line of visible ASCII. Raises ConfigError, which never repeats it."""
    if path is None:
        return None
    text = read_bounded(path, _LINE_BYTES, name=f"{flag} {path}", expected="a file").strip()
    if not text or not all(0x21 <= byte <= 0x7E for byte in text):
        raise ConfigError(f"{flag} {path}: expected one line of visible ASCII")
    return text.decode("ascii")
