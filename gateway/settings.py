"""The settings of ``offramp gateway``; a field is a flag, a variable and a key."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from offramp.common.settings import Addresses, MetricsHost, MetricsPort, Seconds, Settings, Several
from offramp.link.security import Proxy, Tls, TlsCa, TlsKey, TlsServerName, TokenFile


class GatewaySettings(Settings):
    """``offramp gateway``."""

    bundle: Several = Field(
        description="the directory of a bundle that devices run; may be given again", examples=["DIR"]
    )
    server: Addresses = Field(
        ("127.0.0.1:50051",),
        description="the cloud-server; with several, the next one is tried where one fails or is overloaded",
        examples=["HOST:PORT"],
    )
    udp: str | None = Field(None, description="take datagrams by UDP on this address", examples=["HOST:PORT"])
    serial: Several | None = Field(
        None,
        description="take datagrams from this serial line or pseudo-terminal, 115200 baud or as said; may be "
        "given again",
        examples=["PATH[:BAUD]"],
    )
    stdio: bool = Field(
        False, description="take datagrams from standard input, reply on standard output, until its end"
    )
    mqtt: str | None = Field(
        None,
        description="take datagrams from a broker: mqtt://HOST[:PORT][/PREFIX], or mqtts:// for TLS",
        examples=["URL"],
    )
    mqtt_name: str | None = Field(
        None,
        description="this gateway's client id at the broker (default: the host's name)",
        examples=["NAME"],
    )
    mqtt_group: str | None = Field(
        "offramp",
        description="gateways of one group share the broker's requests between them",
        examples=["NAME"],
    )
    mqtt_tls_ca: str | None = Field(
        None, description="trust the authorities in this PEM file only", examples=["FILE"]
    )
    mqtt_tls_cert: str | None = Field(
        None, description="the gateway's certificate for the broker, PEM", examples=["FILE"]
    )
    mqtt_tls_key: str | None = Field(None, description="its private key, PEM", examples=["FILE"])
    mqtt_user_file: str | None = Field(
        None, description="file with the user name for the broker", examples=["FILE"]
    )
    mqtt_token_file: str | None = Field(
        None, description="file with its password or token", examples=["FILE"]
    )
    devices: str | None = Field(
        None,
        description="TOML file with the devices' numbers, names and keys; with one, datagrams without "
        "authentication are refused",
        examples=["FILE"],
    )
    state: str | None = Field(
        None,
        description="file that keeps which numbers each device has used, so that a replay is refused after a "
        "restart too; with --devices it has to be named",
        examples=["FILE"],
    )
    insecure: bool = Field(
        False,
        description="allow plaintext to a server or broker, and datagrams without keys from devices, beyond "
        "this machine",
    )
    tls: Tls = False
    tls_ca: TlsCa = None
    tls_cert: str | None = Field(
        None, description="the gateway's own certificate, PEM, for mutual TLS", examples=["FILE"]
    )
    tls_key: TlsKey = None
    tls_server_name: TlsServerName = None
    token_file: TokenFile = None
    proxy: Proxy = None
    timeout: Seconds = Field(
        5.0,
        description="how long the server has for one request, before it is asked again",
        examples=["SECONDS"],
    )
    window: Annotated[int, Field(ge=1, le=4096)] = Field(
        64, description="requests sent and not yet answered, at most", examples=["N"]
    )
    coalesce: Annotated[float, Field(ge=0, le=60_000)] = Field(
        0.0,
        description="milliseconds that a request may wait for others to share its message",
        examples=["MS"],
    )
    breaker: Annotated[int, Field(ge=1, le=4096)] = Field(
        5,
        description="timeouts and refusals in a row after which the server is left alone until a probe is "
        "answered",
        examples=["N"],
    )
    hold: Seconds = Field(
        60.0,
        description="how long a request is kept while no server answers; then its device gets an error",
        examples=["SECONDS"],
    )
    hold_requests: Annotated[int, Field(ge=1, le=1 << 20)] = Field(
        4096, description="requests kept at once; beyond that the oldest gets an error", examples=["N"]
    )
    metrics_host: MetricsHost = "127.0.0.1"
    metrics_port: MetricsPort = None
