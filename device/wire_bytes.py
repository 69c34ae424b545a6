"""Bytes on the wire, read from the kernel: what the connection's socket has sent and received.

gRPC does not hand its socket out, so it is looked up among this process's descriptors by its peer. The
figures are TCP payload in both directions, retransmissions included: gRPC, HTTP/2 framing, settings,
pings, window updates, and TLS where there is any. TCP and IP headers are not in them.
"""

from __future__ import annotations

import os
import socket
import stat
import struct
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path

# struct tcp_info of linux/tcp.h: bytes_received at 128 (Linux 4.1), segs_out and segs_in at 136 (4.2),
# bytes_sent at 200 (4.19).
_TCP_INFO_BYTES = 208
_RECEIVED, _SENT = struct.Struct("=128xQII"), struct.Struct("=200xQ")

HEADER_BYTES = 52
"""IPv4 (20) and TCP (20) headers with timestamps (12), of one segment; 20 more with IPv6."""

_claimed: set[tuple[int, int]] = set()
"""(port, inode) of each socket that is counted or was: gRPC closes one some time after its stream's end."""
_claimed_lock = threading.Lock()


@dataclass(frozen=True, slots=True)
class WireBytes:
    """TCP payload bytes of a connection, or a sum over several."""

    sent: int
    received: int
    segments_sent: int = field(default=0, compare=False)
    segments_received: int = field(default=0, compare=False)

    @property
    def header_bytes(self) -> int:
        """About what the segments' TCP and IP headers take on top, both directions."""
        return HEADER_BYTES * (self.segments_sent + self.segments_received)


class WireCounter:
    """Sums the bytes of one link's connections, one after the other.

    ``total`` is None where the bytes are unknown: the kernel does not say them (not Linux, or older than
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

        made: whether there is one for certain; where it cannot be counted, ``total`` is None from then on.
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
            self._ended = _add(self._ended, self._current)
            self._current, self._descriptor = WireBytes(0, 0), None

    def total(self) -> WireBytes | None:
        """Bytes so far, over all connections."""
        self.sample()
        with self._lock:
            return _add(self._ended, self._current) if self._supported and not self._missed else None


def _add(a: WireBytes, b: WireBytes) -> WireBytes:
    return WireBytes(
        a.sent + b.sent,
        a.received + b.received,
        a.segments_sent + b.segments_sent,
        a.segments_received + b.segments_received,
    )


def _connected_sockets(port: int) -> list[tuple[int, int]]:
    """(descriptor, inode) of each TCP socket of this process whose peer has this port."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            # A descriptor may close at any time; the copy stays what it was when it was made.
            copy = os.dup(int(name))
        except OSError:
            continue
        try:
            status = os.fstat(copy)
            if stat.S_ISSOCK(status.st_mode) and _peer_port(copy) == port:
                found.append((int(name), status.st_ino))
        finally:
            os.close(copy)
    return found


def _peer_port(descriptor: int) -> int | None:
    handle = socket.socket(fileno=os.dup(descriptor))
    with handle:
        if handle.type != socket.SOCK_STREAM or handle.family not in (socket.AF_INET, socket.AF_INET6):
            return None
        try:
            return int(handle.getpeername()[1])
        except OSError:
            return None


def _read(descriptor: int, inode: int) -> WireBytes | None:
    try:
        copy = os.dup(descriptor)
    except OSError:
        return None
    try:
        if os.fstat(copy).st_ino != inode:
            return None
        # Family and type are given, so that Python does not ask the kernel for them.
        handle = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, fileno=copy)
        try:
            info = handle.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
        finally:
            handle.detach()
    except OSError:
        return None
    finally:
        os.close(copy)
    if len(info) < _TCP_INFO_BYTES:
        return None
    received, segments_sent, segments_received = _RECEIVED.unpack_from(info)
    (sent,) = _SENT.unpack_from(info)
    return WireBytes(sent, received, segments_sent, segments_received)
