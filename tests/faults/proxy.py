"""A proxy that is the bad network: it swallows, hangs up, or resets connections at a step of the protocol."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from tests.processes import WAIT, Peer, tcp_peer

PREFACE = len(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
DATA = 0
"""HTTP/2 frame type."""
PAUSE = 0.02
"""Seconds between two looks at what the network is to do."""
RESET = b"\1\0\0\0\0\0\0\0"
"""SO_LINGER on, for 0 s: closing sends RST."""

STEPS = {
    "connected": ("up", 0),
    "preface": ("up", -1),
    "hello": ("up", 1),
    "accepted": ("down", 1),
    "frame": ("up", 2),
    "reply": ("down", 2),
    "a later frame": ("up", 5),
    "a later reply": ("down", 5),
}
"""Direction, and which of its DATA frames is cut in the middle; 0: nothing is read, -1: the first bytes."""


@dataclass
class Network:
    """What happens to connections now. Each may be set while they are open."""

    port: int
    resets: int = 0
    """Connections that are still to be reset at ``step``."""
    step: str = "connected"
    down: threading.Event = field(default_factory=threading.Event)
    """Set: connections are reset, and no new one is served."""
    hole: threading.Event = field(default_factory=threading.Event)
    """Set: nothing is read, passed on or closed; what waits flows when it is over, as TCP would have it."""
    connections: int = 0
    done: int = 0
    """Connections that were reset at their step."""


class _DataFrames:
    """Where in one direction's bytes a DATA frame is cut."""

    def __init__(self, skip: int, wanted: int) -> None:
        self._skip = skip
        self._left = wanted
        self._pending = b""
        self._body = 0

    def keep(self, data: bytes) -> int | None:
        """How many of these bytes to pass on before the cut; None: all, and no cut yet."""
        place = 0
        while place < len(data):
            if self._skip or self._body:
                step = min(self._skip or self._body, len(data) - place)
                place += step
                if self._skip:
                    self._skip -= step
                else:
                    self._body -= step
                continue
            take = min(9 - len(self._pending), len(data) - place)
            self._pending += data[place : place + take]
            place += take
            if len(self._pending) == 9:
                length, kind = int.from_bytes(self._pending[:3], "big"), self._pending[3]
                self._pending = b""
                self._left -= kind == DATA and length > 0
                if self._left == 0 and kind == DATA and length > 0:
                    return place + min(length // 2, len(data) - place)
                self._body = length
        return None


@contextmanager
def bad_network(port: int) -> Iterator[tuple[Peer, Network]]:
    """In front of this port; yields where to connect to, and what it does."""
    network = Network(port)

    def handle(client: socket.socket, peer: Peer) -> None:
        network.connections += 1
        while network.hole.is_set() and not network.down.wait(PAUSE):
            pass
        if network.down.is_set():
            _reset(client)
            return
        cut: tuple[str, int] | None = None
        if network.resets:
            network.resets -= 1
            cut = STEPS[network.step]
        if cut == ("up", 0):
            network.done += 1
            _reset(client)
            return
        try:
            server = socket.create_connection(("127.0.0.1", network.port), timeout=WAIT)
        except OSError:
            _reset(client)
            return
        over = threading.Event()
        with server:
            back = threading.Thread(target=pump, args=(server, client, "down", cut, over), daemon=True)
            back.start()
            pump(client, server, "up", cut, over)
            back.join(WAIT)

    def pump(
        source: socket.socket,
        sink: socket.socket,
        direction: str,
        cut: tuple[str, int] | None,
        over: threading.Event,
    ) -> None:
        frames = None
        if cut is not None and cut[0] == direction:
            frames = _DataFrames(PREFACE if direction == "up" else 0, cut[1])
        source.settimeout(PAUSE)
        try:
            while not over.is_set() and not network.down.is_set():
                if network.hole.is_set():
                    over.wait(PAUSE)
                    continue
                try:
                    data = source.recv(1 << 16)
                except TimeoutError:
                    continue
                if not data:
                    with suppress(OSError):
                        sink.shutdown(socket.SHUT_WR)
                    return
                if cut == ("up", -1) and direction == "up":
                    network.done += 1
                    break
                kept = None if frames is None else frames.keep(data)
                sink.sendall(data[:kept])
                if kept is not None:
                    network.done += 1
                    break
        except OSError:
            pass
        over.set()
        for each in (source, sink):
            _reset(each)

    with tcp_peer(handle) as peer:
        try:
            yield peer, network
        finally:
            network.down.set()


def _reset(connection: socket.socket) -> None:
    """End it by RST. Another thread may still use the descriptor, so that it is closed by its owner only."""
    with suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RD)
