"""How a ``Device`` works, in seven groups. Each option has the name, range and default of its flag.

Times are in seconds, where a flag may take milliseconds. A wrong type or value raises ConfigError that names
the option.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TypeVar

from offramp.common.bundle.load import Bundle
from offramp.common.errors import ConfigError
from offramp.common.settings import check_argument
from offramp.common.wire.address import split_address
from offramp.device.settings import DeviceSettings
from offramp.link.datagram_link import Identity, identity_of
from offramp.link.datagram_numbers import Numbers
from offramp.link.gateways import gateway_of, is_gateway
from offramp.link.link import Link, Pace, Terms
from offramp.link.metrics import LinkMetrics
from offramp.link.offloader import NoServer, Offloader
from offramp.link.security import Security
from offramp.link.udp import PACKET_BYTES

T = TypeVar("T")

_MILLISECONDS = {"coalesce", "target_latency"}
"""Flags that take milliseconds."""


def check_option(name: str, value: object) -> None:
    """Raise ConfigError, naming the option, for a value that its flag would refuse."""
    check_argument(DeviceSettings, name, value, per_unit=1000 if name in _MILLISECONDS else 1)


def group(kind: type[T], name: str, given: T | None) -> T:
    """The options that were given as this argument, or the defaults. Raises ConfigError for anything else."""
    if given is None:
        return kind()
    if not isinstance(given, kind):
        raise ConfigError(f"{name}={given!r:.80}: expected {kind.__name__}(…)")
    return given


def addresses(server: str | Sequence[str] | None) -> list[str]:
    """The servers in the order in which they are tried. Raises ConfigError for what is not one or several."""
    if server is None:
        return []
    servers = [server] if isinstance(server, str) else server
    if not isinstance(servers, Sequence) or not all(isinstance(each, str) for each in servers):
        raise ConfigError(f"server={server!r:.80}: expected HOST:PORT, or a list of them")
    if not servers:
        raise ConfigError("--server: expected at least one HOST:PORT")
    for each in servers:
        if is_gateway(each) and len(servers) > 1:
            raise ConfigError(f"--server {each}: expected no other address beside a gateway's")
    return list(servers)


class _Checked:
    """A group whose options are held to the ranges of the flags of the same names."""

    __slots__ = ()

    def __post_init__(self) -> None:
        for option in fields(self):  # type: ignore[arg-type]
            if option.name in DeviceSettings.model_fields:
                check_option(option.name, getattr(self, option.name))


@dataclass(frozen=True, slots=True)
class LinkOptions(_Checked):
    """The connection to the servers, and how long it is waited for."""

    timeout: float = 2.0
    """Seconds that an image waits for the server before its early exit answers."""
    window: int = 16
    """Frames sent and not yet answered, at most."""
    coalesce: float = 0.0
    """Seconds that a frame may wait for others to share its message."""
    coalesce_frames: int = 64
    """Frames that are enough for a message, with ``coalesce``."""
    prefer_first: bool = False
    """Go back to an earlier server once it takes streams again; otherwise stay with the one that works."""
    breaker: int = 5
    """Timeouts and refusals in a row after which frames are turned away until a probe is answered."""
    insecure: bool = False
    """Allow plaintext to a server that is not on this machine."""
    security: Security = field(default_factory=Security)
    """TLS, token and proxy."""

    @classmethod
    def of(cls, settings: DeviceSettings) -> LinkOptions:
        """What the command line says."""
        return cls(
            timeout=settings.timeout,
            window=settings.window,
            coalesce=settings.coalesce / 1000,
            coalesce_frames=settings.coalesce_frames,
            prefer_first=settings.prefer_first,
            breaker=settings.breaker,
            insecure=settings.insecure,
            security=Security.of(settings),
        )

    def link_to(
        self,
        bundle: Bundle,
        servers: Sequence[str],
        metrics: LinkMetrics,
        datagrams: DatagramOptions,
        numbers: Numbers,
        *,
        pictures: bool,
    ) -> Offloader:
        """The link that these options describe; it connects with its first frame. Raises ConfigError."""
        if not servers:
            return NoServer()
        terms = Terms.of(bundle, pictures=pictures)
        pace = Pace(self.timeout, self.window, self.coalesce, self.coalesce_frames)
        meanwhile = "unsure images are answered by the early exit"
        if is_gateway(servers[0]):
            if pictures:
                raise ConfigError(
                    f"--picture-threshold: not with --server {servers[0]}, which takes no pictures"
                )
            return gateway_of(
                servers[0],
                terms,
                pace,
                metrics,
                security=self.security,
                insecure=self.insecure,
                identity=datagrams.identity(),
                numbers=numbers,
                packet_bytes=datagrams.packet_bytes,
                mqtt_name=datagrams.mqtt_name or "",
                user_file=datagrams.user_file,
                failures=self.breaker,
                meanwhile=meanwhile,
            )
        for address in servers:
            self.security.check(split_address("--server", address)[0], self.insecure)
        return Link(
            servers,
            terms,
            pace,
            metrics,
            prefer_first=self.prefer_first,
            failures=self.breaker,
            security=self.security,
            meanwhile=meanwhile,
        )


@dataclass(frozen=True, slots=True)
class DatagramOptions(_Checked):
    """How datagrams are written: those of ``Device.encode``, and those to a gateway."""

    key_file: Path | str | None = None
    """The device's key, 32 or 64 hexadecimal digits; by default datagrams have no authentication."""
    device_number: int | None = None
    """Whose key it is, to the gateway: 0 … 65,535."""
    sequence_file: Path | str | None = None
    """Keeps the sequence numbers that a key has seen; with a key it has to be named."""
    packet_bytes: int = PACKET_BYTES
    """Of one UDP packet to a gateway; a longer datagram goes in pieces."""
    mqtt_name: str | None = None
    """The device's client id and topic at a broker; None: the host's name."""
    user_file: str | None = None
    """A broker's user name for this device."""

    @classmethod
    def of(cls, settings: DeviceSettings) -> DatagramOptions:
        """What the command line says."""
        return cls(
            key_file=settings.key_file,
            device_number=settings.device_number,
            sequence_file=settings.sequence_file,
            packet_bytes=settings.packet_bytes,
            mqtt_name=settings.mqtt_name,
            user_file=settings.user_file,
        )

    def identity(self) -> Identity:
        """Who this device is to a gateway. Raises ConfigError."""
        return identity_of(self.key_file, self.device_number, self.sequence_file)


@dataclass(frozen=True, slots=True)
class SteeringOptions(_Checked):
    """What T_c is steered by (``adapt.py``): a byte budget, a latency target or both; by default neither."""

    byte_budget: float | None = None
    """Bytes a second that the link may cost, both directions."""
    target_latency: float | None = None
    """Mean seconds over all images."""
    accuracy_floor: float | None = None
    """T_c stays at or above the lowest measured threshold of this accuracy; None: of the bundle's own."""
    threshold_floor: float | None = None
    threshold_ceiling: float | None = None

    @classmethod
    def of(cls, settings: DeviceSettings) -> SteeringOptions:
        """What the command line says."""
        return cls(
            byte_budget=settings.byte_budget,
            target_latency=None if settings.target_latency is None else settings.target_latency / 1000,
            accuracy_floor=settings.accuracy_floor,
            threshold_floor=settings.threshold_floor,
            threshold_ceiling=settings.threshold_ceiling,
        )

    @property
    def steers(self) -> bool:
        """Whether there is something to steer by."""
        return self.byte_budget is not None or self.target_latency is not None


@dataclass(frozen=True, slots=True)
class PictureOptions(_Checked):
    """The second question to the server: a picture of the image. By default no picture leaves the device."""

    picture_threshold: float | None = None
    """An image whose answer from the server is no more confident is sent once more, as a picture."""
    picture_quality: int = 20
    """WebP's, 0 … 100."""

    @classmethod
    def of(cls, settings: DeviceSettings) -> PictureOptions:
        """What the command line says."""
        return cls(settings.picture_threshold, settings.picture_quality)


@dataclass(frozen=True, slots=True)
class SpoolOptions(_Checked):
    """The file that keeps activations which the server did not answer; by default none."""

    spool: Path | str | None = None
    spool_bytes: int = 64 << 20
    """What it may hold; the oldest activations go first."""

    @classmethod
    def of(cls, settings: DeviceSettings) -> SpoolOptions:
        """What the command line says."""
        return cls(settings.spool, settings.spool_bytes)


@dataclass(frozen=True, slots=True)
class AuditOptions(_Checked):
    """Which images that exit early are sent as well, to be compared (``audits.py``); by default none."""

    audit: float = 0.0
    """Share, 0 … 1."""
    audit_seed: int | None = None
    """Draws the same images in each run; None: others."""

    @classmethod
    def of(cls, settings: DeviceSettings) -> AuditOptions:
        """What the command line says."""
        return cls(settings.audit, settings.audit_seed)


@dataclass(frozen=True, slots=True)
class KeepOptions(_Checked):
    """The folder that keeps inputs worth a person's look (``samples/``); by default none."""

    keep: Path | str | None = None
    keep_bytes: int = 10**9
    """What it may hold; old samples go first."""
    keep_share: float = 0.01
    """Of all inputs, 0 … 1: drawn at random, and as many of the least confident."""

    @classmethod
    def of(cls, settings: DeviceSettings) -> KeepOptions:
        """What the command line says."""
        return cls(settings.keep, settings.keep_bytes, settings.keep_share)
