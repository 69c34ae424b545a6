"""Where datagrams come in: UDP, a serial line or pseudo-terminal, a pipe. A broker has a file of its own.

Each door has a thread that reads and hands on; a reply goes back by the door that its request came by. A line
that goes away is opened again.
"""

from __future__ import annotations

import logging
import os
import select
import socket
import termios
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Protocol

from offramp.common.errors import AddressError, ConfigError
from offramp.common.wire.address import join_address, split_address
from offramp.common.wire.borders import CobsReader, LengthReader, to_cobs, with_length
from offramp.common.wire.datagram import MOST_BYTES
from offramp.gateway.gateway import Sender

log = logging.getLogger("offramp.gateway")

Take = Callable[[Sender, bytes], None]
AGAIN_SECONDS = 1.0
"""Before a serial line that went away is opened again."""
WRITE_SECONDS = 1.0
"""How long a line may take nothing, until a reply is dropped."""
_CHUNK = 4096
_RECEIVE_BUFFER = 4 << 20


class Door(Protocol):
    """One way in."""

    def open(self, take: Take) -> None:
        """Start. Raises ConfigError or AddressError."""

    def close(self) -> None:
        """Take nothing more; replies still go out until ``end``."""

    def end(self) -> None:
        """Stop."""


class UdpDoor:
    """Datagrams by UDP, from any sender; ``port`` is the one that was bound."""

    def __init__(self, listen: str) -> None:
        self._listen = split_address("--udp", listen)
        self.port = 0
        self._closed = False
        self._socket: socket.socket | None = None

    def open(self, take: Take) -> None:
        """Bind. Raises AddressError."""
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(
                *self._listen, type=socket.SOCK_DGRAM, flags=socket.AI_PASSIVE
            )[0]
            self._socket = socket.socket(family, kind, protocol)
            with suppress(OSError):
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
            self._socket.bind(address)
        except OSError as error:
            self.end()
            where = join_address(*self._listen)
            raise AddressError(
                f"--udp {where}: cannot be bound: {error.strerror or error}, expected a free address"
            ) from None
        self.port = self._socket.getsockname()[1]
        self._socket.settimeout(0.2)
        arguments = self._socket, take
        self._thread = threading.Thread(target=self._read, args=arguments, name="offramp-udp", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Read no more."""
        self._closed = True
        self._thread.join()

    def end(self) -> None:
        """Close the socket."""
        if self._socket is not None:
            self._socket.close()

    def _read(self, bound: socket.socket, take: Take) -> None:
        while not self._closed:
            try:
                data, address = bound.recvfrom(MOST_BYTES + 1)
            except TimeoutError:
                continue
            except OSError:  # an ICMP error of an earlier reply
                continue
            take(Sender("udp", address, partial(self._send, bound, address)), data)

    def _send(self, bound: socket.socket, address: tuple[str, int], data: bytes) -> bool:
        try:
            bound.sendto(data, address)
        except OSError:
            return False
        return True


class SerialDoor:
    """Datagrams in COBS on one line, PATH or PATH:BAUD. Without keys all of them are one sender's."""

    def __init__(self, where: str) -> None:
        path, colon, baud = where.rpartition(":")
        if not colon or not baud.isdigit():
            path, baud = where, "115200"
        self._path = path
        speed = getattr(termios, f"B{baud}", None)
        if speed is None:
            raise ConfigError(f"--serial {where}: expected a usual baud rate, as 9600 or 115200")
        self._speed = speed
        self._descriptor: int | None = None
        self._lock = threading.Lock()
        self._wake = os.pipe()
        self._closed = False

    def open(self, take: Take) -> None:
        """Open the line. Raises ConfigError."""
        try:
            self._descriptor = self._connect()
        except (OSError, termios.error) as error:
            reason = error.strerror if isinstance(error, OSError) else error.args[-1]
            raise ConfigError(
                f"--serial {self._path}: cannot be used: {reason}, expected a serial line"
            ) from None
        self._thread = threading.Thread(target=self._run, args=(take,), name="offramp-serial", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Read no more."""
        self._closed = True
        os.write(self._wake[1], b"x")
        self._thread.join()

    def end(self) -> None:
        """Close the line."""
        with self._lock:
            if self._descriptor is not None:
                os.close(self._descriptor)
                self._descriptor = None
        for each in self._wake:
            os.close(each)

    def _connect(self) -> int:
        """The line, raw, at its speed; it never waits for a carrier."""
        descriptor = os.open(self._path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            mode = termios.tcgetattr(descriptor)
            mode[0] = mode[1] = mode[3] = 0
            mode[2] = termios.CS8 | termios.CREAD | termios.CLOCAL
            mode[4] = mode[5] = self._speed
            mode[6][termios.VMIN], mode[6][termios.VTIME] = 1, 0
            termios.tcsetattr(descriptor, termios.TCSANOW, mode)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def _run(self, take: Take) -> None:
        reader = CobsReader()
        sender = Sender("serial", self._path, self._send)
        while not self._closed:
            data = self._read()
            for datagram in [] if data is None else reader.feed(data):
                take(sender, datagram)
            if data is None and not self._closed:
                self._again()

    def _read(self) -> bytes | None:
        """What came; None at the line's end."""
        descriptor = self._descriptor
        assert descriptor is not None
        select.select([descriptor, self._wake[0]], [], [])
        if self._closed:
            return b""
        try:
            return os.read(descriptor, _CHUNK) or None
        except BlockingIOError:
            return b""
        except OSError:
            return None

    def _again(self) -> None:
        log.warning("%s went away; it is opened again", self._path)
        with self._lock:
            if self._descriptor is not None:
                os.close(self._descriptor)
                self._descriptor = None
        while not self._closed:
            try:
                self._descriptor = self._connect()
            except (OSError, termios.error):
                select.select([self._wake[0]], [], [], AGAIN_SECONDS)
            else:
                log.info("%s is back", self._path)
                return

    def _send(self, data: bytes) -> bool:
        with self._lock:
            # A zero before it too: whatever noise there was ends with it.
            return self._descriptor is not None and write_all(self._descriptor, b"\0" + to_cobs(data))


class PipeDoor:
    """Datagrams of many devices from one descriptor; replies go to another.

    A record is two bytes of length, one of the address's, the address, which is the caller's and comes back
    with the reply, and the datagram. ended: called at the end of the first.
    """

    def __init__(self, source: int, sink: int, ended: Callable[[], None]) -> None:
        self._source, self._sink = source, sink
        self._ended = ended
        self._lock = threading.Lock()
        self._closed = False

    def open(self, take: Take) -> None:
        """Start to read."""
        self._thread = threading.Thread(target=self._run, args=(take,), name="offramp-pipe", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Take no more; a read that waits may go on until its end."""
        self._closed = True

    def end(self) -> None:
        """The descriptors are the process's."""

    def _run(self, take: Take) -> None:
        reader = LengthReader()
        while not self._closed:
            try:
                data = os.read(self._source, _CHUNK)
            except OSError:
                data = b""
            if not data or self._closed:
                break
            for record in reader.feed(data):
                end = 1 + record[0]
                address = record[:end]
                take(Sender("pipe", address, partial(self._send, address)), record[end:])
            if reader.error is not None:
                log.error("standard input: %s", reader.error)
                break
        self._ended()

    def _send(self, address: bytes, data: bytes) -> bool:
        with self._lock:
            return write_all(self._sink, with_length(address + data))


def write_all(descriptor: int, data: bytes) -> bool:
    """Write all of it, within ``WRITE_SECONDS``; whether it was written."""
    end = time.monotonic() + WRITE_SECONDS
    while data:
        try:
            ready = select.select([], [descriptor], [], max(0.0, end - time.monotonic()))[1]
            if not ready:
                return False
            data = data[os.write(descriptor, data) :]
        except BlockingIOError:
            continue
        except (OSError, ValueError):
            return False
    return True
