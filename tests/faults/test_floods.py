"""Frames of HTTP/2 that flow control does not bound, at the speed of loopback, beside a device."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from offramp.common.wire import transport
from tests.faults.load import FAST
from tests.processes import Processes, resident_bytes
from tests.server import raw
from tests.server.raw import flood, http2

IMAGES = 50
CHUNK_BYTES = 1 << 18


OPEN_BLOCK = http2(raw.HEADERS, 0, 1, raw.call_headers(transport.DESCRIBE))
"""A call whose header block does not end."""
OPEN_CALL = http2(raw.HEADERS, raw.END_HEADERS, 1, raw.call_headers(transport.DESCRIBE))
"""A call whose request does not come."""
FLOODS = {
    "continuation": (http2(raw.CONTINUATION, 0, 1, b""), OPEN_BLOCK),
    "priority": (
        b"".join(http2(raw.PRIORITY, 0, number, b"\0\0\0\0\x10") for number in range(3, 2003, 2)),
        b"",
    ),
    "window update": (http2(raw.WINDOW_UPDATE, 0, 1, b"\0\0\0\1"), OPEN_CALL),
    "ping": (http2(raw.PING, 0, 0, b"\0" * 8), b""),
    "settings": (http2(raw.SETTINGS, 0, 0), b""),
    "empty data": (http2(raw.DATA, 0, 1), OPEN_CALL),
    "reset": (
        b"".join(
            http2(raw.HEADERS, raw.END_HEADERS, number, raw.call_headers(transport.DESCRIBE))
            + http2(raw.RST_STREAM, 0, number, b"\0\0\0\x08")
            for number in range(1, 401, 2)
        ),
        b"",
    ),
}


@pytest.mark.parametrize("kind", FLOODS)
def test_a_flood_starves_nobody(run: Processes, toy_images: Path, kind: str) -> None:
    """Every image is answered by the server, and SIGTERM ends the server while the flood goes on."""
    server = run.server(*FAST, "--grace", 1)
    frames, begin = FLOODS[kind]
    images = [toy_images, *sorted(toy_images.glob("*.png"))[:10]]
    with flood(server.port, begin, frames * (CHUNK_BYTES // len(frames))) as sent:
        status, device = run.device(*images, "--server", server.address, "--threshold", 1, "--json")
        assert status == 0, device.errors
        assert (device.summary["server"], device.summary["fallback"]) == (len(device.answers), 0)
        assert len(device.answers) == IMAGES
        assert sent() > CHUNK_BYTES
        print(f"{kind}: {sent() / 1e6:.0f} MB, server {resident_bytes(server.pid) / 1e6:.0f} MB")
        ended = threading.Thread(target=server.drain, daemon=True)
        ended.start()
        ended.join(20)
        assert not ended.is_alive(), "alive 20 s after SIGTERM with a grace of 1 s"
    assert server.wait() == 0
