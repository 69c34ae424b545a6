"""A forward proxy for tests: takes CONNECT, and notes everything that clients said to it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from tests.processes import WAIT, Peer, tcp_peer

VARIABLES = ("http_proxy", "https_proxy", "grpc_proxy", "all_proxy")
"""What programs read their proxy from, in either case."""


@dataclass
class Proxy:
    """A proxy on loopback."""

    peer: Peer
    connects: list[str] = field(default_factory=list)
    """The first lines of the requests."""
    heard: bytearray = field(default_factory=bytearray)
    """All bytes that clients sent."""

    @property
    def url(self) -> str:
        """For a ``--proxy``."""
        return f"http://127.0.0.1:{self.peer.port}"

    def environment(self) -> dict[str, str]:
        """All variables that may name a proxy, naming this one."""
        named = dict.fromkeys(VARIABLES, self.url)
        return {
            **named,
            **{name.upper(): url for name, url in named.items()},
            "GRPC_ADDRESS_HTTP_PROXY": f"127.0.0.1:{self.peer.port}",
            "GRPC_ADDRESS_HTTP_PROXY_ENABLED_ADDRESSES": "127.0.0.0/8",
        }


@contextmanager
def forward_proxy(port: int | None = None) -> Iterator[Proxy]:
    """Connects each CONNECT to the host that it names, or to this port of loopback where one is given."""
    proxy = Proxy(Peer(0))

    def handle(client: socket.socket, _: Peer) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            if not (data := client.recv(1 << 16)):
                return
            head += data
            proxy.heard += data
        line = head.partition(b"\r\n")[0].decode("latin-1")
        proxy.connects.append(line)
        if not line.startswith("CONNECT "):
            client.sendall(b"HTTP/1.1 501 Not Implemented\r\nContent-Length: 0\r\n\r\n")
            return
        host, _colon, named = line.split()[1].rpartition(":")
        target = (host, int(named)) if port is None else ("127.0.0.1", port)
        with socket.create_connection(target) as upstream:
            client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            back = threading.Thread(target=_pump, args=(upstream, client), daemon=True)
            back.start()
            _pump(client, upstream, proxy.heard)
            back.join(WAIT)

    with tcp_peer(handle) as peer:
        proxy.peer = peer
        yield proxy


def _pump(source: socket.socket, sink: socket.socket, heard: bytearray | None = None) -> None:
    with suppress(OSError):
        while data := source.recv(1 << 16):
            if heard is not None:
                heard += data
            sink.sendall(data)
    with suppress(OSError):
        sink.shutdown(socket.SHUT_WR)
