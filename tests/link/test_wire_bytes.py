"""The kernel's byte counters of the right socket, also over several connections and beside other ones."""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from offramp.link import wire_bytes
from offramp.link.wire_bytes import WireBytes, WireCounter
from tests.processes import Peer, tcp_peer, until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")


@contextmanager
def echo_server() -> Iterator[Peer]:
    """Sends back three bytes for each one that it gets."""

    def handle(connection: socket.socket, peer: Peer) -> None:
        while data := connection.recv(1 << 16):
            peer.up += len(data)
            connection.sendall(data * 3)

    with tcp_peer(handle) as peer:
        yield peer


def connect(peer: Peer) -> socket.socket:
    return socket.create_connection(("127.0.0.1", peer.port))


def exchange(connection: socket.socket, count: int) -> None:
    connection.sendall(bytes(count))
    left = 3 * count
    while left:
        left -= len(connection.recv(left))


def counts(counter: WireCounter, expected: WireBytes) -> None:
    until(lambda: counter.total() == expected, f"{expected}, at {counter.total()}")


def test_it_counts_what_the_socket_sent_and_received() -> None:
    counter = WireCounter()
    assert counter.total() == WireBytes(0, 0)
    with echo_server() as peer, connect(peer) as connection:
        counter.attach(peer.port)
        exchange(connection, 1000)
        counts(counter, WireBytes(1000, 3000))
        exchange(connection, 5)
        counts(counter, WireBytes(1005, 3015))
        counter.detach()
        exchange(connection, 7)
        assert counter.total() == WireBytes(1005, 3015)
        counter.detach()
        assert counter.total() == WireBytes(1005, 3015)


def test_what_another_counter_has_counted_is_added() -> None:
    counter, other = WireCounter(), WireCounter()
    with echo_server() as peer, connect(peer) as connection:
        other.attach(peer.port)
        exchange(connection, 10)
        counts(other, WireBytes(10, 30))
        other.detach()
    counter.add(other)
    assert counter.total() == WireBytes(10, 30)
    other.attach(1, made=True)
    counter.add(other)
    assert counter.total() is None


def test_bytes_from_before_it_was_attached_are_counted() -> None:
    counter = WireCounter()
    with echo_server() as peer, connect(peer) as connection:
        exchange(connection, 100)
        counter.attach(peer.port)
        counts(counter, WireBytes(100, 300))
        counter.detach()


def test_connections_one_after_the_other_add_up() -> None:
    counter = WireCounter()
    with echo_server() as peer:
        for _ in range(3):
            with connect(peer) as connection:
                counter.attach(peer.port)
                exchange(connection, 50)
                counter.detach()
        assert counter.total() == WireBytes(150, 450)


def test_an_old_connection_that_is_still_open_is_not_counted_again() -> None:
    counter = WireCounter()
    with echo_server() as peer, connect(peer) as old:
        counter.attach(peer.port)
        exchange(old, 1000)
        counter.detach()
        with connect(peer) as new:
            counter.attach(peer.port)
            exchange(new, 1)
            counts(counter, WireBytes(1001, 3003))
            counter.detach()


def test_a_closed_connection_keeps_its_last_reading() -> None:
    counter = WireCounter()
    with echo_server() as peer:
        with connect(peer) as connection:
            counter.attach(peer.port)
            exchange(connection, 50)
            counter.sample()
        # The descriptor's number may be somebody else's now.
        with echo_server() as other, connect(other) as stranger:
            exchange(stranger, 999)
            assert counter.total() == WireBytes(50, 150)
        counter.detach()
        assert counter.total() == WireBytes(50, 150)


def test_two_counters_of_one_server_have_a_connection_each() -> None:
    first, second = WireCounter(), WireCounter()
    with echo_server() as peer, connect(peer) as a:
        first.attach(peer.port)
        with connect(peer) as b:
            second.attach(peer.port)
            exchange(a, 10)
            exchange(b, 20)
            counts(first, WireBytes(10, 30))
            counts(second, WireBytes(20, 60))
            first.detach()
            second.detach()


def test_other_sockets_are_left_alone() -> None:
    counter = WireCounter()
    with ExitStack() as stack:
        peer, other = stack.enter_context(echo_server()), stack.enter_context(echo_server())
        stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)).connect(
            ("127.0.0.1", peer.port)
        )
        stack.enter_context(socket.socket())
        left, right = socket.socketpair()
        stack.enter_context(left)
        stack.enter_context(right)
        exchange(stack.enter_context(connect(other)), 500)
        counter.attach(peer.port)
        assert counter.total() == WireBytes(0, 0)
        exchange(stack.enter_context(connect(peer)), 20)
        counter.attach(peer.port)
        counts(counter, WireBytes(20, 60))
        counter.detach()


def test_claims_do_not_pile_up() -> None:
    counter = WireCounter()
    with echo_server() as peer:
        for _ in range(20):
            with connect(peer):
                counter.attach(peer.port)
                counter.detach()
        assert sum(port == peer.port for port, _ in wire_bytes._claimed) <= 2


def test_an_old_kernel_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    counter = WireCounter()
    counter.attach(1)
    counter.sample()
    counter.detach()
    assert counter.total() is None


HOLDER = "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'r+b'), fcntl.LOCK_EX | fcntl.LOCK_NB)"


def test_a_lock_of_the_process_outlives_counting(tmp_path: Path) -> None:
    """POSIX releases them when any copy of the file's descriptor is closed."""
    path = tmp_path / "locked"
    path.touch()
    counter = WireCounter()

    def another_may_lock() -> bool:
        return not subprocess.run(
            [sys.executable, "-c", HOLDER, str(path)], stderr=subprocess.DEVNULL, check=False
        ).returncode

    with path.open("r+b") as file, echo_server() as peer, connect(peer) as connection:
        assert another_may_lock()
        fcntl.lockf(file, fcntl.LOCK_EX)
        counter.attach(peer.port)
        exchange(connection, 10)
        counts(counter, WireBytes(10, 30))
        counter.detach()
        assert not another_may_lock()


def test_a_descriptor_that_becomes_a_file_between_two_looks_is_left_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = wire_bytes._socket_inode
    counter = WireCounter()
    with echo_server() as peer, connect(peer) as connection, (tmp_path / "file").open("wb") as file:
        number = os.dup(connection.fileno())

        def swap(descriptor: int) -> int | None:
            inode = real(descriptor)
            if descriptor == number:
                os.dup2(file.fileno(), number)
            return inode

        monkeypatch.setattr(wire_bytes, "_socket_inode", swap)
        assert number not in dict(wire_bytes._connected_sockets(peer.port))
        counter.attach(peer.port)
        exchange(connection, 10)
        counts(counter, WireBytes(10, 30))
        counter.detach()
        os.close(number)
