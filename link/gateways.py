"""Which address is a gateway's, and the link to it: ``udp://HOST:PORT``, ``mqtt://…`` or ``mqtts://…``."""

from __future__ import annotations

from offramp.common.errors import ConfigError, printable
from offramp.common.wire.address import require_secure, split_address
from offramp.link.carrier import Carrier
from offramp.link.datagram_link import DatagramLink, Identity
from offramp.link.datagram_numbers import Numbers
from offramp.link.metrics import LinkMetrics
from offramp.link.mqtt import SCHEMES, Broker, MqttCarrier, require_mqtt
from offramp.link.outbox import Pace
from offramp.link.security import Security
from offramp.link.session import Terms
from offramp.link.udp import UdpCarrier

_FLAG = "--server"


def is_gateway(address: str) -> bool:
    """Whether an address has a scheme: servers on a stream are HOST:PORT alone."""
    return "://" in address


def gateway_of(
    address: str,
    terms: Terms,
    pace: Pace,
    metrics: LinkMetrics,
    *,
    security: Security,
    insecure: bool,
    identity: Identity,
    numbers: Numbers,
    packet_bytes: int,
    mqtt_name: str,
    user_file: str | None,
    failures: int,
    meanwhile: str,
) -> DatagramLink:
    """The link to this gateway; it opens with its first frame. Raises ConfigError for what cannot work."""
    scheme, _, rest = address.partition("://")
    carrier: Carrier
    if scheme in SCHEMES:
        require_mqtt(f"{_FLAG} {printable(address)}")
        broker = Broker.parse(_FLAG, address, security, user_file, insecure=insecure)
        carrier = MqttCarrier(broker, mqtt_name)
    elif scheme == "udp":
        host, port = split_address(_FLAG, rest)
        if security.encrypted or security.token_file is not None:
            raise ConfigError(f"{_FLAG} {address}: has neither TLS nor token, expected --key-file instead")
        if identity.key is None:
            require_secure(_FLAG, host, insecure, "--key-file or --insecure")
        carrier = UdpCarrier(host, port, packet_bytes)
    else:
        raise ConfigError(
            f"{_FLAG} {printable(address)}: expected HOST:PORT, udp://HOST:PORT, mqtt://HOST or mqtts://HOST"
        )
    return DatagramLink(
        carrier,
        terms,
        pace,
        metrics,
        numbers=numbers,
        identity=identity,
        failures=failures,
        meanwhile=meanwhile,
    )
