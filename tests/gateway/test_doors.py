"""Doors: real sockets, a real pseudo-terminal and real pipes."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path

import pytest

from offramp.common.errors import AddressError, ConfigError
from offramp.common.wire.borders import CobsReader, LengthReader, to_cobs, with_length
from offramp.gateway import doors
from offramp.gateway.doors import PipeDoor, SerialDoor, UdpDoor, write_all
from offramp.gateway.gateway import Sender
from tests.processes import WAIT, until

Taken = list[tuple[Sender, bytes]]


def test_udp() -> None:
    door, taken = UdpDoor("127.0.0.1:0"), Taken()
    door.open(lambda *one: taken.append(one))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.bind(("127.0.0.1", 0))
        client.settimeout(WAIT)
        for data in (b"request", b""):
            client.sendto(data, ("127.0.0.1", door.port))
        until(lambda: len(taken) == 2, "both datagrams")
        sender, data = taken[0]
        assert sender.door == "udp" and sender.address == client.getsockname() and data == b"request"
        assert sender.answer(b"reply") and client.recv(100) == b"reply"
        with pytest.raises(AddressError, match=rf"--udp 127.0.0.1:{door.port}: cannot be bound"):
            UdpDoor(f"127.0.0.1:{door.port}").open(lambda *_: None)
    door.close()
    door.end()
    assert not sender.answer(b"too late")


def lines(path: Path) -> tuple[int, int]:
    """A new pseudo-terminal's two ends, the second under this name."""
    ours, theirs = os.openpty()
    path.unlink(missing_ok=True)
    path.symlink_to(os.ttyname(theirs))
    return ours, theirs


def exchange(ours: int, taken: Taken, data: bytes) -> None:
    """Send noise and a datagram until it is taken, and get a reply."""

    def arrived() -> bool:
        os.write(ours, b"noise\0" + to_cobs(data))
        return any(one[1] == data for one in taken)

    until(arrived, "the datagram")
    assert taken[-1][0].answer(b"\0reply\n\r")
    found, reader = list[bytes](), CobsReader()
    while not found:
        found = reader.feed(os.read(ours, 100))
    assert found == [b"\0reply\n\r"]


def test_a_serial_line_that_goes_away_and_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the way there are zeros, line ends and control characters, and noise before them."""
    monkeypatch.setattr(doors, "AGAIN_SECONDS", 0.02)
    path, taken = tmp_path / "line", Taken()
    ours, theirs = lines(path)
    door = SerialDoor(f"{path}:9600")
    door.open(lambda *one: taken.append(one))
    os.close(theirs)
    exchange(ours, taken, bytes(range(250)))
    other, theirs = lines(path)
    os.close(ours)
    # The door has it open itself before we let it go.
    exchange(other, taken, bytes(range(1, 250)))
    os.close(theirs)
    door.close()
    door.end()
    os.close(other)
    assert not taken[-1][0].answer(b"too late")


@pytest.mark.parametrize(
    ("where", "words"), [("/dev/null", "cannot be used"), ("/none", "No such"), ("/x:7", "baud")]
)
def test_lines_that_cannot_be(where: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        SerialDoor(where).open(lambda *_: None)


@pytest.mark.parametrize("last", [b"", b"\0\0never read"], ids=["end", "nonsense"])
def test_a_pipe_until_its_end(last: bytes) -> None:
    (source, feed), (out, sink) = os.pipe(), os.pipe()
    taken, ended = Taken(), threading.Event()
    door = PipeDoor(source, sink, ended.set)
    door.open(lambda *one: taken.append(one))
    one, two = with_length(b"\3abcone"), with_length(b"\0two")
    for piece in (one + two[:1], two[1:] + with_length(b"\x09short") + last):
        os.write(feed, piece)
    until(lambda: len(taken) == 3, "all records")
    assert taken[0][0].answer(b"reply") and LengthReader().feed(os.read(out, 100)) == [b"\3abcreply"]
    if not last:
        os.close(feed)
    assert ended.wait(WAIT)
    door.close()
    for each in (source, sink, out, *((feed,) if last else ())):
        os.close(each)
    assert [(each.address, data) for each, data in taken] == [
        (b"\3abc", b"one"),
        (b"\0", b"two"),
        (b"\x09short", b""),
    ]


def test_who_reads_no_replies_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doors, "WRITE_SECONDS", 0.01)
    source, sink = os.pipe()
    os.set_blocking(sink, False)
    assert not write_all(sink, bytes(1 << 20))
    os.close(source)
    os.close(sink)
    assert not write_all(sink, b"x")
