"""The settings of ``cloud-server`` and ``edge-server``.

Each field is a flag, a variable and a key (``common/settings.py``).
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from offramp.common.settings import (
    Fraction,
    Listed,
    MetricsHost,
    MetricsPort,
    ProviderNames,
    Seconds,
    Settings,
    Several,
)


class ServerSettings(Settings):
    """``cloud-server``, and ``edge-server``, which has ``--upstream``."""

    bundle: Several = Field(
        description="a bundle's directory, or one with several bundles in it; may be given again",
        examples=["DIR"],
    )
    pictures: Several | None = Field(
        None,
        description="a bundle, or a directory of bundles, whose whole model answers pictures that devices "
        "with --picture-threshold send; for bundles of the same classes and image size; may be given again",
        examples=["DIR"],
    )
    listen: str = Field(
        "127.0.0.1:50051",
        description="address to serve on; port 0 takes a free one",
        examples=["HOST:PORT"],
    )
    insecure: bool = Field(False, description="allow plaintext to clients that are not on this machine")
    tls_cert: str | None = Field(
        None, description="the server's certificate and its chain, PEM: serve TLS", examples=["FILE"]
    )
    tls_key: str | None = Field(None, description="the certificate's private key, PEM", examples=["FILE"])
    tls_client_ca: str | None = Field(
        None,
        description="PEM certificates of the authorities that clients' certificates must be from",
        examples=["FILE"],
    )
    token_file: str | None = Field(
        None,
        description="bearer tokens, one a line, that calls must show; read again when it changes",
        examples=["FILE"],
    )
    threads: Annotated[int, Field(ge=1, le=256)] | None = Field(
        None,
        description="threads that the tails may use (default: one for each CPU that the affinity and the "
        "container's quota allow)",
        examples=["N"],
    )
    providers: ProviderNames = Field(
        ("cpu",),
        description="execution providers of ONNX Runtime that run the tails, in order of preference, with "
        "options as openvino:device_type=GPU; with cpu at the end they run in any case",
        examples=["LIST"],
    )
    workers: Annotated[int, Field(ge=1, le=256)] | None = Field(
        None,
        description="runs of the tail at once, which share the threads (default: 1 or as many as threads, "
        "whichever is measured to be faster)",
        examples=["N"],
    )
    max_batch: Annotated[int, Field(ge=1, le=4096)] | None = Field(
        None,
        description="activations in one run of the tail, at most (default: the smallest batch that is "
        "measured to be as fast as any, up to 64)",
        examples=["N"],
    )
    max_wait_ms: Annotated[float, Field(ge=0, le=60_000)] | None = Field(
        None,
        description="how long the first frame of a batch waits for others (default: what running alone is "
        "measured to waste)",
        examples=["MS"],
    )
    queue: Annotated[int, Field(ge=1, le=1 << 20)] = Field(
        1024, description="frames that may wait for the tail; more are refused", examples=["N"]
    )
    frames_in_flight: Annotated[int, Field(ge=1, le=4096)] = Field(
        64, description="unanswered frames of one stream; more are refused", examples=["N"]
    )
    max_streams: Annotated[int, Field(ge=1, le=1 << 20)] = Field(
        1024,
        description="open streams; more are refused; lowered at start to fit the limit on open files",
        examples=["N"],
    )
    message_bytes: Annotated[int, Field(ge=16_384, le=1 << 26)] | None = Field(
        None,
        description="largest message that a bundle loaded later may need (default: what the first ones need)",
        examples=["N"],
    )
    strikes: Annotated[int, Field(ge=1, le=1 << 30)] = Field(
        128, description="bad frames after which a stream is ended", examples=["N"]
    )
    hello_timeout: Seconds = Field(
        5.0, description="how long a new stream may take to say hello", examples=["SECONDS"]
    )
    idle_timeout: Seconds = Field(
        3600.0,
        description="how long a stream may send nothing before it is asked to end",
        examples=["SECONDS"],
    )
    max_stream_age: Seconds | None = Field(
        None,
        description="age, give or take 10 %, at which a stream is asked to end, so that its device connects "
        "again and a load balancer may choose another server (default: none)",
        examples=["SECONDS"],
    )
    write_timeout: Seconds = Field(
        30.0, description="how long a device may take no reply before its stream is cut", examples=["SECONDS"]
    )
    grace: Seconds = Field(
        10.0,
        description="how long open streams may take to finish at SIGTERM, or when their bundle is retired",
        examples=["SECONDS"],
    )
    reload_interval: Seconds = Field(
        2.0, description="how often bundles and tokens are looked at for changes", examples=["SECONDS"]
    )
    metrics_host: MetricsHost = "127.0.0.1"
    metrics_port: MetricsPort = None
    page: bool = Field(
        False, description="serve a live page at / beside /metrics; shows the addresses of devices"
    )
    part: str | None = Field(
        None,
        description="which part of a bundle to run: a number from 2, 'last', or the name of the cut where it "
        "ends; without --upstream, all parts behind it too (default: the second, which is the last of a "
        "bundle of two)",
        examples=["PART"],
    )
    exit_threshold: Fraction | None = Field(
        None,
        description="confidence threshold of this part's exit, where it has one: what it is more confident "
        "of is answered here, and does not go on (default: the bundle's)",
        examples=["T"],
    )
    upstream: Annotated[Listed, Field(max_length=16)] = Field(
        (),
        description="the server that runs the part behind this one, for what this part's exit is unsure of; "
        "with several, the next one is tried where one fails or is overloaded",
        examples=["HOST:PORT"],
    )
    upstream_prefer_first: bool = Field(
        False,
        description="the upstream servers are in order of preference: go back to an earlier one once it "
        "takes streams again (default: stay with the one that works)",
    )
    upstream_timeout: Seconds = Field(
        2.0,
        description="how long a frame waits for the upstream server, at most, before this part's exit "
        "answers; less where its device waits less",
        examples=["SECONDS"],
    )
    upstream_window: Annotated[int, Field(ge=1, le=1 << 16)] = Field(
        256,
        description="frames that may wait for the upstream server; more are refused, as with --queue",
        examples=["N"],
    )
    upstream_breaker: Annotated[int, Field(ge=1, le=4096)] = Field(
        5,
        description="timeouts and refusals in a row after which this part's exit answers at once, until a "
        "probe is answered",
        examples=["N"],
    )
    upstream_insecure: bool = Field(
        False, description="allow plaintext to an upstream server that is not on this machine"
    )
    upstream_tls: bool = Field(
        False, description="encrypt to the upstream server, and trust the authorities that gRPC brings along"
    )
    upstream_tls_ca: str | None = Field(
        None,
        description="encrypt to the upstream server, and trust the authorities in this PEM file only",
        examples=["FILE"],
    )
    upstream_tls_cert: str | None = Field(
        None,
        description="own certificate towards the upstream server, PEM, for mutual TLS",
        examples=["FILE"],
    )
    upstream_tls_key: str | None = Field(None, description="its private key, PEM", examples=["FILE"])
    upstream_tls_server_name: str | None = Field(
        None,
        description="name that the upstream server's certificate must have (default: the host)",
        examples=["NAME"],
    )
    upstream_token_file: str | None = Field(
        None,
        description="file with a bearer token for the upstream server, read again for each connection",
        examples=["FILE"],
    )
    upstream_proxy: str | None = Field(
        None,
        description="HTTP proxy to reach upstream servers through, by CONNECT; never for one on this machine",
        examples=["URL"],
    )
