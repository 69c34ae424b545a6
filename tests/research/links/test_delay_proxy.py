"""A proxy that passes everything on, later."""

from __future__ import annotations

import socket
import threading
import time

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from offramp.bench.processes import running
from research.links.delay_proxy import Line
from tests.processes import Peer, tcp_peer


def test_the_proxy_passes_on_all_of_it_in_order_and_later() -> None:
    def echo(client: socket.socket, peer: Peer) -> None:
        while data := client.recv(1 << 16):
            client.sendall(data)

    sent = np.random.default_rng(0).integers(0, 256, 300_000, np.uint8).tobytes()
    with tcp_peer(echo) as peer:
        flags = ("--listen", "127.0.0.1:0", "--target", f"127.0.0.1:{peer.port}", "--delay", "0.05")
        with running("research.links.delay_proxy", *flags) as proxy:
            host, _, port = proxy.address.rpartition(":")
            with socket.create_connection((host, int(port)), timeout=30) as client:
                start = time.monotonic()
                client.sendall(sent[:1])
                assert client.recv(1) == sent[:1]
                assert time.monotonic() - start >= 0.1

                def write() -> None:
                    client.sendall(sent)
                    client.shutdown(socket.SHUT_WR)

                writer = threading.Thread(target=write)
                writer.start()
                received = b""
                while data := client.recv(1 << 16):
                    received += data
                writer.join()
    assert received == sent


def test_frames_take_their_time_on_a_line_one_after_the_other() -> None:
    line = Line(0.1, 1e6)
    # 100 and 3,000 bytes with the headers of one frame and of three.
    small, large = (100 + 66) * 8e-6, (3000 + 3 * 66) * 8e-6
    assert line.arrival(100, 5.0) == pytest.approx(5.1 + small)
    assert line.arrival(3000, 5.0) == pytest.approx(5.1 + small + large)
    assert line.arrival(100, 9.0) == pytest.approx(9.1 + small)
    assert Line(0.1, None).arrival(1 << 20, 5.0) == pytest.approx(5.1)
