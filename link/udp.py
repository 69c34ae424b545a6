"""Datagrams to a gateway by UDP, in pieces where they are longer than a packet should be."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress

from offramp.common.errors import ConfigError, OfframpError, UnavailableError
from offramp.common.wire.address import join_address
from offramp.common.wire.datagram import MOST_BYTES
from offramp.common.wire.fragments import fragment
from offramp.link.carrier import Received
from offramp.link.wire_bytes import WireBytes

PACKET_BYTES = 1200
"""What passes any IPv6 or Internet path in one piece."""


class UdpCarrier:
    """UDP to HOST:PORT. packet_bytes: of one UDP datagram at most."""

    tries = 3

    def __init__(self, host: str, port: int, packet_bytes: int = PACKET_BYTES) -> None:
        self.target = f"udp://{join_address(host, port)}"
        self._address = host, port
        self._packet_bytes = packet_bytes
        self._socket: socket.socket | None = None
        self._thread: threading.Thread | None = None
        self._closed = False
        self._sent = self._received = 0

    def open(self, received: Received, seconds: float) -> None:
        """Bind a port of our own. Raises UnavailableError where the host has no address."""
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(*self._address, type=socket.SOCK_DGRAM)[0]
            self._socket = socket.socket(family, kind, protocol)
            self._socket.connect(address)
        except OSError as error:
            raise UnavailableError(f"{self.target} is unreachable: {error.strerror or error}") from None
        self._thread = threading.Thread(
            target=self._read, args=(self._socket, received), name="offramp-udp", daemon=True
        )
        self._thread.start()

    def send(self, datagram: bytes, seconds: float) -> str | None:
        """One request; a refused port shows at the next one, and is no reason not to try."""
        if self._socket is None:
            return f"{self.target} is closed"
        try:
            for packet in fragment(datagram, self._packet_bytes):
                with suppress(ConnectionRefusedError):
                    self._socket.send(packet)
                self._sent += len(packet)
        except (OSError, ConfigError) as error:
            return f"{self.target}: {error}"
        return None

    def envelope(self, datagram: bytes) -> int:
        """What its pieces take beside it; UDP and IP headers are not counted, as TCP's are not."""
        try:
            return sum(map(len, fragment(datagram, self._packet_bytes))) - len(datagram)
        except OfframpError:
            return 0

    def total(self) -> WireBytes:
        """Payload of the UDP datagrams."""
        return WireBytes(self._sent, self._received, protocol="UDP")

    def close(self) -> None:
        """Close the socket, and wait for its thread."""
        self._closed = True
        if self._socket is not None:
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
            if self._thread is not None and self._thread is not threading.current_thread():
                self._thread.join()
            self._socket.close()

    def _read(self, from_: socket.socket, received: Received) -> None:
        while True:
            try:
                data = from_.recv(MOST_BYTES)
            except ConnectionRefusedError:  # an earlier request met no gateway
                continue
            except OSError:
                return
            if self._closed:
                return
            self._received += len(data)
            received(data, None)
