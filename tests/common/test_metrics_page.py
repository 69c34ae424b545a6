"""Clients that are slow, silent, many or gone: the metrics page has bounded threads, and answers a scrape."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry, Gauge

from offramp.common import metrics_page
from offramp.common.errors import AddressError
from offramp.common.metrics_page import CONNECTIONS, serve_page
from tests.processes import WAIT, scrape, until


@pytest.fixture
def port() -> Iterator[int]:
    registry = CollectorRegistry()
    Gauge("answer", "Everything.", registry=registry).set(42)
    before = threading.active_count()
    with serve_page(registry, "127.0.0.1", 0) as port:
        yield port
    until(lambda: threading.active_count() <= before, "the page's threads to end")


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=WAIT)


def test_it_is_a_page(port: int) -> None:
    assert scrape(f"http://127.0.0.1:{port}/metrics") == {"answer": 42}


@pytest.mark.parametrize("sent", [b"", b"GET /metrics HTTP/1.1\r\nx: "])
def test_many_slow_clients_neither_grow_it_nor_keep_a_scrape_out(port: int, sent: bytes) -> None:
    before = threading.active_count()
    strangers = []
    try:
        for _ in range(150):
            strangers.append(connect(port))
            strangers[-1].sendall(sent)
            assert threading.active_count() <= before + CONNECTIONS
        for _ in range(3):
            assert scrape(f"http://127.0.0.1:{port}/metrics")["answer"] == 42
        assert threading.active_count() <= before + CONNECTIONS
        closed = 0
        for stranger in strangers[: 150 - CONNECTIONS]:
            closed += stranger.recv(1) == b""
        assert closed == 150 - CONNECTIONS
    finally:
        for stranger in strangers:
            stranger.close()


def test_a_client_that_sends_a_byte_now_and_then_is_closed_in_the_end(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics_page, "CONNECTION_SECONDS", 0.2)
    stop = threading.Event()
    with connect(port) as stranger:

        def drip() -> None:
            while not stop.wait(0.01):
                try:
                    stranger.sendall(b"x")
                except OSError:
                    return

        thread = threading.Thread(target=drip)
        thread.start()
        try:
            end = b"x"
            try:
                end = stranger.recv(1)
            except ConnectionResetError:
                end = b""
            assert end == b""
        finally:
            stop.set()
            thread.join()


def test_without_threads_it_closes_and_goes_on(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: object) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        for _ in range(CONNECTIONS + 2):
            with connect(port) as stranger:
                assert stranger.recv(1) == b""
    assert scrape(f"http://127.0.0.1:{port}/metrics")["answer"] == 42


def test_junk_and_a_collector_that_fails_leave_no_traceback(capfd: pytest.CaptureFixture[str]) -> None:
    class Broken:
        def collect(self) -> Iterator[object]:
            raise ValueError("broken")

    registry = CollectorRegistry()
    registry._collector_to_names[Broken()] = []  # type: ignore[index]
    with serve_page(registry, "::1", 0) as port:
        for sent in (b"\0\xff\r\n\r\n", b"POST / HTTP/1.1\r\n\r\n", b"GET /metrics HTTP/1.0\r\n\r\n"):
            with socket.create_connection(("::1", port), timeout=WAIT) as stranger:
                stranger.sendall(sent)
                while stranger.recv(1 << 16):
                    pass
    assert "Traceback" not in capfd.readouterr().err


def test_a_port_that_is_taken_is_an_error_of_ours(port: int) -> None:
    with (
        pytest.raises(AddressError, match=f"metrics on 127.0.0.1:{port}: Address already in use"),
        serve_page(CollectorRegistry(), "127.0.0.1", port),
    ):
        pass
