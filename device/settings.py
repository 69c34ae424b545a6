"""The settings of ``edge-device``: each field is a flag, a variable and a key (``common/settings.py``)."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import BeforeValidator, Field

from offramp.common.settings import (
    Addresses,
    Fraction,
    MetricsHost,
    MetricsPort,
    ProviderNames,
    Seconds,
    Settings,
)
from offramp.link.security import Proxy, Tls, TlsCa, TlsKey, TlsServerName, TokenFile


def _byte_rate(value: object) -> object:
    """``2kB/s`` → 2000.0; numbers are bytes a second already."""
    if not isinstance(value, str):
        return value
    found = re.fullmatch(r"([0-9.]+(?:e[0-9]+)?)\s*(?:([kM]?)(B|bit)(?:/s|ps)?)?", value.strip())
    if found is None:
        raise ValueError("expected bytes a second, as 500, 2kB/s or 16kbit/s")
    scale = {"k": 1e3, "M": 1e6}.get(found[2] or "", 1.0) / (8 if found[3] == "bit" else 1)
    return float(found[1]) * scale


def _size(value: object) -> object:
    """``1GB`` → 1000000000; numbers are bytes already."""
    if not isinstance(value, str):
        return value
    found = re.fullmatch(r"([0-9]+)\s*(?:([kMG]?)B)?", value.strip())
    if found is None:
        raise ValueError("expected bytes, as 500000, 200MB or 1GB")
    return int(found[1]) * {"k": 10**3, "M": 10**6, "G": 10**9}.get(found[2] or "", 1)


Size = Annotated[int, BeforeValidator(_size)]
ByteRate = Annotated[float, BeforeValidator(_byte_rate), Field(gt=0, le=1e12)]


class DeviceSettings(Settings):
    """``edge-device``."""

    bundle: str = Field(description="the bundle's directory", examples=["DIR"])
    server: Addresses = Field(
        ("127.0.0.1:50051",),
        description="the cloud-server; with several, the next one is tried where one fails or is overloaded; "
        "or a gateway: udp://HOST:PORT, mqtt://BROKER or mqtts://BROKER, with a path to another prefix than "
        "offramp",
        examples=["HOST:PORT"],
    )
    key_file: str | None = Field(
        None,
        description="the device's key for datagrams to a gateway, 32 or 64 hexadecimal digits; hides and "
        "authenticates them (default: neither)",
        examples=["FILE"],
    )
    device_number: Annotated[int, Field(ge=0, le=65_535)] | None = Field(
        None, description="whose key it is, as the gateway's list of devices has it", examples=["N"]
    )
    sequence_file: str | None = Field(
        None,
        description="keeps the sequence numbers that the key has seen; made if it is not there",
        examples=["FILE"],
    )
    packet_bytes: Annotated[int, Field(ge=8, le=65_507)] = Field(
        1200,
        description="bytes of one UDP packet to a gateway; longer datagrams go in pieces",
        examples=["N"],
    )
    mqtt_name: str | None = Field(
        None,
        description="the device's client id and topic at MQTT brokers (default: the host's name)",
        examples=["NAME"],
    )
    user_file: str | None = Field(
        None,
        description="file with the user name for an MQTT broker; its password is --token-file's",
        examples=["FILE"],
    )
    publish: str | None = Field(
        None,
        description="publish the newest answer to this MQTT broker, for home automation: "
        "mqtt://HOST[:PORT][/PREFIX], or mqtts:// for TLS (default: nothing is published)",
        examples=["URL"],
    )
    publish_discovery: str = Field(
        "homeassistant",
        description="what the topics begin with by which Home Assistant finds the device",
        examples=["PREFIX"],
    )
    publish_seconds: Seconds = Field(
        1.0,
        description="from one published answer to the next, at least; those between are passed over",
        examples=["SECONDS"],
    )
    publish_user_file: str | None = Field(
        None, description="file with the user name for that broker", examples=["FILE"]
    )
    publish_token_file: str | None = Field(
        None, description="file with its password or token", examples=["FILE"]
    )
    publish_tls_ca: str | None = Field(
        None, description="trust the authorities in this PEM file only, for mqtts://", examples=["FILE"]
    )
    publish_insecure: bool = Field(False, description="allow plaintext to a broker beyond this machine")
    threshold: Fraction | None = Field(
        None,
        description="confidence threshold T_c: an image whose early exit is more confident is answered "
        "here; 0 sends nothing, 1 sends everything (default: the bundle's)",
        examples=["T"],
    )
    insecure: bool = Field(False, description="allow plaintext to a server that is not on this machine")
    tls: Tls = False
    tls_ca: TlsCa = None
    tls_cert: str | None = Field(
        None, description="the device's own certificate, PEM, for mutual TLS", examples=["FILE"]
    )
    tls_key: TlsKey = None
    tls_server_name: TlsServerName = None
    token_file: TokenFile = None
    proxy: Proxy = None
    prefer_first: bool = Field(
        False,
        description="the servers are in order of preference: go back to an earlier one once it takes "
        "streams again (default: stay with the one that works)",
    )
    timeout: Seconds = Field(
        2.0,
        description="how long an image waits for the server before its early exit answers",
        examples=["SECONDS"],
    )
    window: Annotated[int, Field(ge=1, le=4096)] = Field(
        16, description="frames sent and not yet answered, at most; 1 turns pipelining off", examples=["N"]
    )
    coalesce: Annotated[float, Field(ge=0, le=60_000)] = Field(
        0.0,
        description="milliseconds that a frame may wait for others to share its message and its envelope",
        examples=["MS"],
    )
    coalesce_frames: Annotated[int, Field(ge=1, le=4096)] = Field(
        64, description="frames that are enough for a message, with --coalesce", examples=["N"]
    )
    breaker: Annotated[int, Field(ge=1, le=4096)] = Field(
        5,
        description="timeouts and refusals in a row after which frames are turned away until a probe is "
        "answered",
        examples=["N"],
    )
    byte_budget: ByteRate | None = Field(
        None,
        description="bytes a second that the link may cost, both directions, as 500, 2kB/s or 16kbit/s: "
        "steers T_c",
        examples=["RATE"],
    )
    target_latency: Annotated[float, Field(gt=0, le=3_600_000)] | None = Field(
        None, description="mean latency over all images, milliseconds: steers T_c", examples=["MS"]
    )
    accuracy_floor: Fraction | None = Field(
        None,
        description="T_c is not steered below the lowest measured threshold with this accuracy (default: "
        "that of the bundle's own threshold)",
        examples=["A"],
    )
    threshold_floor: Fraction | None = Field(
        None, description="T_c is not steered below this (default: from --accuracy-floor)", examples=["T"]
    )
    threshold_ceiling: Fraction | None = Field(
        None,
        description="T_c is not steered above this (default: where the bundle measured its best accuracy)",
        examples=["T"],
    )
    corrections: bool = Field(
        False, description="print answers of the server that came too late, as records of their own"
    )
    picture_threshold: Fraction | None = Field(
        None,
        description="an image whose answer from the server is no more confident than this is sent once more, "
        "as a picture, to a server that takes such; 1 sends all of those (default: no picture leaves the "
        "device)",
        examples=["T"],
    )
    picture_quality: Annotated[int, Field(ge=0, le=100)] = Field(
        20, description="WebP quality of these pictures", examples=["QUALITY"]
    )
    audit: Fraction = Field(
        0.0,
        description="share of the images that exit early whose activations are sent too, after the answer "
        "and behind unsure images, to compare the server's answer with the early exit's",
        examples=["SHARE"],
    )
    audit_seed: Annotated[int, Field(ge=0, le=(1 << 32) - 1)] | None = Field(
        None, description="draw the same images for audits in each run (default: others)", examples=["N"]
    )
    spool: str | None = Field(
        None,
        description="keep activations that the server did not answer in this file, and send them when it is "
        "back; prints corrections",
        examples=["FILE"],
    )
    spool_bytes: Annotated[int, Field(ge=65_536, le=1 << 40)] = Field(
        64 << 20, description="what the spool may hold; the oldest activations go first", examples=["N"]
    )
    keep: str | None = Field(
        None,
        description="keep inputs that are worth a person's look in this folder, with what was decided of "
        "them: audits that differ, unknown ones, the least confident and a random share",
        examples=["DIR"],
    )
    keep_bytes: Annotated[Size, Field(ge=65_536, le=1 << 44)] = Field(
        10**9,
        description="what the folder may hold, as 200MB or 1GB; old samples go first",
        examples=["SIZE"],
    )
    keep_share: Fraction = Field(
        0.01,
        description="share of all inputs that is kept at random, and as many of the least confident",
        examples=["SHARE"],
    )
    rate: Annotated[float, Field(gt=0)] | None = Field(
        None, description="images a second, at most (default: as fast as they go)", examples=["R"]
    )
    compare_jpeg: Annotated[int, Field(ge=1, le=95)] | None = Field(
        None,
        description="also write each image as a JPEG of this quality, only to count in the metrics what "
        "sending that would have cost",
        examples=["QUALITY"],
    )
    threads: Annotated[int, Field(ge=1, le=256)] = Field(
        1, description="threads that the head may use", examples=["N"]
    )
    providers: ProviderNames = Field(
        ("cpu",),
        description="execution providers of ONNX Runtime that run the head, in order of preference, with "
        "options as openvino:device_type=GPU; with cpu at the end it runs in any case",
        examples=["LIST"],
    )
    metrics_host: MetricsHost = "127.0.0.1"
    metrics_port: MetricsPort = None
    page: bool = Field(
        False, description="serve a live page at / beside /metrics; shows names and answers of images"
    )
    page_token_file: str | None = Field(
        None,
        description="file with the token that setting T_c on the page takes; without one it is set on "
        "loopback only",
        examples=["FILE"],
    )
