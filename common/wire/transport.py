"""gRPC settings that the two sides must agree on. No grpc is imported here."""

from __future__ import annotations

import os
from importlib.metadata import version

SERVICE = "offramp.v1.Inference"
OFFLOAD = f"/{SERVICE}/Offload"
DESCRIBE = f"/{SERVICE}/Describe"

MESSAGE_BYTES_MIN = 16_384
SERVER_MESSAGE_BYTES = 65_536
"""Largest message that a device accepts: about 3,000 replies."""
FRAMES_PER_MESSAGE = 64
RECEIVE_FACTOR = 4
"""gRPC on the server takes messages so many times longer than allowed; up to there the refusal is ours.

Beyond, gRPC ends the call by itself, and what came before is not answered.
"""

KEEPALIVE_MS = 20_000
KEEPALIVE_TIMEOUT_MS = 5_000

HANDSHAKE_MS = 10_000
"""How long TCP, TLS and HTTP/2 of a new connection may take on the server."""
CONNECTION_IDLE_MS = 300_000
"""A connection without a call is closed by the server after this."""
RETRY_PUSHBACK = "grpc-retry-pushback-ms"
"""Trailing metadata of RESOURCE_EXHAUSTED: when to open a stream again, milliseconds; gRPC's own key."""
SAID = "offramp: "
"""Begins the detail of each status that a server of ours ends a call with; those of proxies have it not."""
AUTHORIZATION = "authorization"
"""Metadata of every call where the server has tokens: ``Bearer TOKEN``."""

EVENT_ENGINE_BEFORE = (1, 86)
"""From this release of grpcio on its event engine was not measured, or cannot be switched off."""

Options = list[tuple[str, int | str]]

DIRECT: Options = [("grpc.enable_http_proxy", 0), ("grpc.address_http_proxy_enabled_addresses", "")]
"""No proxy, whatever the environment names: http_proxy and its kin, GRPC_ADDRESS_HTTP_PROXY."""


def set_grpc_environment() -> None:
    """What gRPC reads of the environment as it is imported: for programs, before they import it.

    Its event engine, on by default for Python since grpcio 1.80, has threads of its own between the socket
    and the completion queue. A lone message costs a device 20 to 30 us less without
    (research/notes/2026-11-24-device-overhead.md). A server keeps it: else whoever floods one
    connection with frames that flow control does not bound holds up all others. Variables that are set stay
    as they are.
    """
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    release = tuple(int(part) for part in version("grpcio").split(".")[:2])
    if release < EVENT_ENGINE_BEFORE:
        os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_client")


def message_bytes(raw_bytes: int) -> int:
    """Largest DeviceMessage that a server accepts: one raw frame, or many coded ones."""
    return max(MESSAGE_BYTES_MIN, raw_bytes + 64)


def _common(receive: int) -> Options:
    return [
        ("grpc.max_receive_message_length", receive),
        ("grpc.max_metadata_size", 8_192),
        # Frames are entropy-coded already.
        ("grpc.default_compression_algorithm", 0),
        ("grpc.default_compression_level", 0),
        ("grpc.keepalive_time_ms", KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
        # The bandwidth probe sends a ping for almost every small message: 34 bytes a frame.
        ("grpc.http2.bdp_probe", 0),
    ]


def device_options() -> Options:
    """Channel options of a device."""
    return [
        *_common(SERVER_MESSAGE_BYTES),
        *DIRECT,
        # Each channel has a connection of its own: its bytes are counted by its socket.
        ("grpc.use_local_subchannel_pool", 1),
        # What is sent again, and when, is the link's to say.
        ("grpc.enable_retries", 0),
        # A black hole shows also while nothing is sent: by default pings stop after two.
        ("grpc.http2.max_pings_without_data", 0),
    ]


def server_options(receive: int, connections: int) -> Options:
    """Server options for messages of at most ``receive`` bytes, on at most ``connections`` connections.

    One connection may have as many calls: a proxy may bring all devices over one.
    """
    return [
        *_common(RECEIVE_FACTOR * receive),
        ("grpc.max_allowed_incoming_connections", connections),
        ("grpc.max_concurrent_streams", connections),
        ("grpc.server_handshake_timeout_ms", HANDSHAKE_MS),
        ("grpc.http2.settings_timeout", HANDSHAKE_MS),
        ("grpc.max_connection_idle_ms", CONNECTION_IDLE_MS),
        # A second server on one port must fail, not share it.
        ("grpc.so_reuseport", 0),
        ("grpc.http2.min_ping_interval_without_data_ms", KEEPALIVE_MS // 2),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", KEEPALIVE_MS // 2),
    ]
