"""Datagrams by UDP to a socket of the test."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from offramp.common.errors import UnavailableError
from offramp.common.wire.fragments import Assembler
from offramp.link.udp import UdpCarrier
from offramp.link.wire_bytes import WireBytes
from tests.processes import WAIT, closed_port, until


@pytest.fixture
def peer() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as bound:
        bound.bind(("127.0.0.1", 0))
        bound.settimeout(WAIT)
        yield bound


def test_there_and_back(peer: socket.socket) -> None:
    carrier = UdpCarrier("127.0.0.1", peer.getsockname()[1])
    replies: list[tuple[bytes, bytes | None]] = []
    carrier.open(lambda *reply: replies.append(reply), 1.0)
    assert carrier.send(b"\x20request", 1.0) is None
    data, address = peer.recvfrom(100)
    peer.sendto(b"reply", address)
    until(lambda: replies, "the reply")
    carrier.close()
    assert data == b"\x20request" and replies == [(b"reply", None)]
    assert carrier.total() == WireBytes(8, 5, protocol="UDP")


def test_a_long_datagram_goes_in_pieces(peer: socket.socket) -> None:
    carrier, whole = UdpCarrier("127.0.0.1", peer.getsockname()[1], 51), bytes(range(200))
    carrier.open(lambda *_: None, 1.0)
    assert carrier.send(whole, 1.0) is None
    assembler = Assembler()
    pieces = [peer.recv(100) for _ in range(5)]
    assert [assembler.add("a", piece, 0) for piece in pieces][-1] == whole
    assert carrier.envelope(whole) == 5 * 3 == sum(map(len, pieces)) - 200
    assert "at most 128 pieces" in (carrier.send(bytes(6200), 1.0) or "")
    carrier.close()


def test_a_port_that_refuses_is_no_trouble() -> None:
    with closed_port() as port:
        carrier = UdpCarrier("127.0.0.1", port)
        carrier.open(lambda *_: None, 1.0)
        assert [carrier.send(b"x", 1.0) for _ in range(3)] == [None] * 3
        carrier.close()


def test_a_host_without_an_address() -> None:
    with pytest.raises(UnavailableError, match=r"udp://no\.such\.invalid:1 is unreachable"):
        UdpCarrier("no.such.invalid", 1).open(lambda *_: None, 1.0)
    assert UdpCarrier("127.0.0.1", 1).send(b"x", 1.0) == "udp://127.0.0.1:1 is closed"
