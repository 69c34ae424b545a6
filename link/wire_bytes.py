"""Bytes on the wire, read from the kernel: what the connection's socket has sent and received.

gRPC does not hand its socket out, so it is looked up among this process's descriptors by its peer.
Descriptors that are not sockets are left alone, and none is ever copied or closed: closing a copy of a file
would release the process's ``fcntl`` locks on it, those of the spool and of the host application. The
figures are TCP payload in both directions, retransmissions included: gRPC, HTTP/2 framing, settings,
pings, window updates, and TLS if it is used. TCP and IP headers are not in them.
"""

from __future__ import annotations

import ctypes
import os
import socket
import stat
import struct
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

# struct tcp_info of linux/tcp.h: bytes_received at 128 (Linux 4.1), segs_out and segs_in at 136 (4.2),
# bytes_sent at 200 (4.19).
_TCP_INFO_BYTES = 208
_RECEIVED, _SENT = struct.Struct("=128xQII"), struct.Struct("=200xQ")

HEADER_BYTES = 52
"""IPv4 (20) and TCP (20) headers with timestamps (12), of one segment; 20 more with IPv6."""

# The C functions, since a Python socket owns its descriptor and closes it if an exception comes between.
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None
_ADDRESS_BYTES = 128

_claimed: set[tuple[int, int]] = set()
"""(port, inode) of each socket that is counted or was: gRPC closes one some time after its stream's end."""
_claimed_lock = threading.Lock()


@dataclass(frozen=True, slots=True)
class WireBytes:
    """Payload bytes of a connection, or a sum over several. protocol: whose payload it is, TCP or UDP."""

    sent: int
    received: int
    segments_sent: int = field(default=0, compare=False)
    segments_received: int = field(default=0, compare=False)
    protocol: Literal["TCP", "UDP"] = "TCP"

    def __add__(self, other: WireBytes) -> WireBytes:
        return WireBytes(
            self.sent + other.sent,
            self.received + other.received,
            self.segments_sent + other.segments_sent,
            self.segments_received + other.segments_received,
            other.protocol,
        )

    @property
    def header_bytes(self) -> int | None:
        """About what the segments' TCP and IP headers take on top, both directions; None for UDP."""
        if self.protocol == "UDP":
            return None
        return HEADER_BYTES * (self.segments_sent + self.segments_received)


class WireCounter:
    """Sums the bytes of one link's connections, one after the other.

    ``total`` is None if the bytes are unknown: the kernel does not say them (not Linux, or older than
    4.19), or a connection's socket is not to be found.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ended = WireBytes(0, 0)
        self._current = WireBytes(0, 0)
        self._descriptor: tuple[int, int] | None = None
        self._missed = False
        """A connection was made whose bytes cannot be counted."""
        self._supported = sys.platform == "linux" and Path("/proc/self/fd").is_dir()

    def attach(self, port: int, made: bool = False) -> None:
        """Find the socket of the connection that was just made to this port.

        made: whether there is one for certain; if it cannot be counted, ``total`` is None from then on.
        """
        if not self._supported:
            return
        with self._lock, _claimed_lock:
            found = _connected_sockets(port)
            here = {(port, inode) for _, inode in found}
            _claimed.difference_update({claim for claim in _claimed if claim[0] == port} - here)
            for descriptor, inode in found:
                if (port, inode) not in _claimed:
                    _claimed.add((port, inode))
                    self._descriptor = (descriptor, inode)
                    self._missed |= _read(descriptor, inode) is None and made
                    return
            self._missed |= made

    def sample(self) -> None:
        """Read the counters of the current connection; keeps the last reading once it is closed."""
        with self._lock:
            if self._descriptor is not None:
                self._current = _read(*self._descriptor) or self._current

    def detach(self) -> None:
        """Take a last reading of the current connection and add it to the sum."""
        self.sample()
        with self._lock:
            self._ended += self._current
            self._current, self._descriptor = WireBytes(0, 0), None

    def add(self, other: WireCounter) -> None:
        """Count what another counter has counted, whose connections have ended."""
        total = other.total()
        with self._lock:
            self._missed |= total is None
            self._ended += total or WireBytes(0, 0)

    def total(self) -> WireBytes | None:
        """Bytes so far, over all connections."""
        self.sample()
        with self._lock:
            return self._ended + self._current if self._supported and not self._missed else None


def _connected_sockets(port: int) -> list[tuple[int, int]]:
    """(descriptor, inode) of each TCP socket of this process whose peer has this port."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        descriptor = int(name)
        inode = _socket_inode(descriptor)
        # A descriptor's number may be given to another one at any time, so it is looked at again.
        if inode and _peer_port(descriptor) == port and _socket_inode(descriptor) == inode:
            found.append((descriptor, inode))
    return found


def _socket_inode(descriptor: int) -> int | None:
    """The inode of an open socket; None for anything else."""
    try:
        status = os.fstat(descriptor)
    except OSError:
        return None
    return status.st_ino if stat.S_ISSOCK(status.st_mode) else None


def _option(descriptor: int, level: int, name: int, size: int) -> bytes | None:
    """A socket's option; None if the descriptor is not a socket that has it."""
    assert _libc is not None
    value, length = ctypes.create_string_buffer(size), ctypes.c_uint32(size)
    if _libc.getsockopt(descriptor, level, name, value, ctypes.byref(length)):
        return None
    return value.raw[: length.value]


def _peer_port(descriptor: int) -> int | None:
    assert _libc is not None
    number = struct.Struct("=i")
    kind = _option(descriptor, socket.SOL_SOCKET, socket.SO_TYPE, number.size)
    if kind is None or number.unpack(kind) != (socket.SOCK_STREAM,):
        return None
    address, length = ctypes.create_string_buffer(_ADDRESS_BYTES), ctypes.c_uint32(_ADDRESS_BYTES)
    if _libc.getpeername(descriptor, address, ctypes.byref(length)) or length.value < 4:
        return None
    # struct sockaddr_in and sockaddr_in6 begin alike: family in host order, port in network order.
    (family,), (port,) = struct.unpack_from("=H", address), struct.unpack_from("!H", address, 2)
    return int(port) if family in (socket.AF_INET, socket.AF_INET6) else None


def _read(descriptor: int, inode: int) -> WireBytes | None:
    if _socket_inode(descriptor) != inode:
        return None
    info = _option(descriptor, socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
    if info is None or len(info) < _TCP_INFO_BYTES or _socket_inode(descriptor) != inode:
        return None
    received, segments_sent, segments_received = _RECEIVED.unpack_from(info)
    (sent,) = _SENT.unpack_from(info)
    return WireBytes(sent, received, segments_sent, segments_received)
