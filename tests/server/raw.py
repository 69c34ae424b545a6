"""HTTP/2 by hand, for peers that no gRPC client would be: frames as bytes, and no manners.

Header blocks are literals without an index (RFC 7541, section 6.2.2), so that nothing needs a table.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import TracebackType

from tests.processes import WAIT

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = (
    0,
    1,
    2,
    3,
    4,
    6,
    7,
    8,
    9,
)
ACK = END_STREAM = 1
END_HEADERS = 4
INITIAL_WINDOW_SIZE = 4


def http2(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One frame."""
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def header_block(fields: Sequence[tuple[str, str]]) -> bytes:
    """A header block of literals; names and values of at most 126 bytes."""
    block = b""
    for name, value in fields:
        block += bytes((0, len(name))) + name.encode() + bytes((len(value),)) + value.encode()
    return block


def call_headers(method: str, *more: tuple[str, str]) -> bytes:
    """The header block of a gRPC call."""
    return header_block(
        [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", method),
            (":authority", "localhost"),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
            *more,
        ]
    )


def grpc_message(data: bytes, stream: int, *, end: bool = True) -> bytes:
    """A DATA frame with one gRPC message."""
    payload = b"\0" + len(data).to_bytes(4, "big") + data
    return http2(DATA, END_STREAM if end else 0, stream, payload)


class Raw:
    """One connection. What the server sends is collected and its settings and pings are acknowledged."""

    def __init__(self, port: int, *, window: int | None = None, timeout: float = WAIT) -> None:
        """window: of each stream, as the server is to see it; None: HTTP/2's own 65,535."""
        self.received: list[tuple[int, int, int, bytes]] = []
        """Kind, flags, stream and payload of each frame that came."""
        self.closed = False
        self._lock = threading.Lock()
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=timeout)
        payload = (
            b"" if window is None else INITIAL_WINDOW_SIZE.to_bytes(2, "big") + window.to_bytes(4, "big")
        )
        self.send(PREFACE + http2(SETTINGS, 0, 0, payload))
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Raw:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def send(self, data: bytes) -> None:
        """Send bytes. Raises OSError once the server has hung up."""
        with self._lock:
            self._socket.sendall(data)

    def call(self, stream: int, method: str, body: bytes | None = None, *more: tuple[str, str]) -> None:
        """Open a call, with its one request or without."""
        data = http2(HEADERS, END_HEADERS, stream, call_headers(method, *more))
        self.send(data if body is None else data + grpc_message(body, stream))

    def ended(self, stream: int) -> bool:
        """Whether the server has ended this stream, with trailers or a reset."""
        return any(
            number == stream and (kind == RST_STREAM or (kind == HEADERS and flags & END_STREAM))
            for kind, flags, number, _ in list(self.received)
        )

    def close(self) -> None:
        """Hang up."""
        with suppress(OSError):  # the server went first
            self._socket.shutdown(socket.SHUT_RDWR)
        self._reader.join(WAIT)
        self._socket.close()

    def _read(self) -> None:
        try:
            with self._socket.makefile("rb") as stream:
                while len(head := stream.read(9)) == 9:
                    payload = stream.read(int.from_bytes(head[:3], "big"))
                    kind, flags = head[3], head[4]
                    self.received.append((kind, flags, int.from_bytes(head[5:9], "big"), payload))
                    if kind in (SETTINGS, PING) and not flags & ACK:
                        self.send(http2(kind, ACK, 0, payload if kind == PING else b""))
        except OSError:
            pass
        self.closed = True


@contextmanager
def flood(port: int, begin: bytes, chunk: bytes) -> Iterator[Callable[[], int]]:
    """Send a chunk again and again, at the speed of loopback, for as long as the block runs.

    What the server sends is read and thrown away; where it hangs up, the flood begins once more. Yields how
    many bytes it has sent.
    """
    stop, sent = threading.Event(), 0

    def read(connection: socket.socket) -> None:
        space = bytearray(1 << 20)
        with suppress(OSError):
            while connection.recv_into(space):
                pass

    def work() -> None:
        nonlocal sent
        while not stop.is_set():
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
                reader = threading.Thread(target=read, args=(connection,), daemon=True)
                reader.start()
                connection.sendall(PREFACE + http2(SETTINGS, 0, 0) + http2(SETTINGS, ACK, 0) + begin)
                while not stop.is_set():
                    sent += connection.send(chunk)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield lambda: sent
    finally:
        stop.set()
        thread.join(WAIT)
