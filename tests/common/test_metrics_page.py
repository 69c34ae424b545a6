"""Clients that are slow, silent, many or gone: the metrics page has bounded threads, and answers a scrape."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry, Gauge

from offramp.common import metrics_page
from offramp.common.errors import AddressError
from offramp.common.metrics_page import CONNECTIONS, _Page, serve_page
from offramp.common.page import viewers as viewers_module
from offramp.common.page.site import Page
from offramp.common.page.viewers import VIEWERS
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


def test_it_ends_without_waiting_for_its_next_look(monkeypatch: pytest.MonkeyPatch) -> None:
    serve = _Page.serve_forever
    # An hour: what ends it now is not the flag.
    monkeypatch.setattr(_Page, "serve_forever", lambda page: serve(page, 3600.0))
    before = set(threading.enumerate())
    with serve_page(CollectorRegistry(), "127.0.0.1", 0):
        own = set(threading.enumerate()) - before
        assert own
    assert own.isdisjoint(threading.enumerate())


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


@pytest.fixture
def paged() -> Iterator[int]:
    """A port with the live page beside the metrics; T_c is in `answer`."""
    registry = CollectorRegistry()
    gauge = Gauge("answer", "Everything.", registry=registry)
    gauge.set(42)

    def change(value: float) -> float:
        gauge.set(value)
        return 42

    before = threading.active_count()
    with serve_page(registry, "127.0.0.1", 0, Page("edge-device", lambda: {"bundle": "toy"}, change)) as port:
        yield port
    until(lambda: threading.active_count() <= before, "the page's threads to end")


def ask(port: int, text: str) -> bytes:
    """What is sent for this request, to its end."""
    with connect(port) as client:
        client.sendall(text.encode())
        said = b""
        while read := client.recv(1 << 16):
            said += read
    return said


def get(path: str, *lines: str, host: str = "localhost") -> str:
    return "\r\n".join((f"GET {path} HTTP/1.1", f"Host: {host}", *lines, "", ""))


def look(port: int) -> socket.socket:
    """A viewer, once it has been sent a state, or a refusal."""
    client = connect(port)
    client.sendall(get("/events").encode())
    return client


def test_without_the_flag_there_is_no_page(port: int) -> None:
    assert b"answer 42.0" in ask(port, get("/"))
    assert b"answer 42.0" in ask(port, get("/events"))
    assert b" 501 " in ask(port, get("/").replace("GET", "POST"))


def test_the_page_is_beside_the_metrics(paged: int) -> None:
    assert ask(paged, get("/")).startswith(b"HTTP/1.0 200 OK\r\n")
    assert b"<!doctype html>" in ask(paged, get("/?x=1"))
    assert scrape(f"http://127.0.0.1:{paged}/metrics") == {"answer": 42}
    # Prometheus may know the machine by any name.
    assert b"answer 42.0" in ask(paged, get("/metrics", host="camera-1.example"))
    assert ask(paged, get("/", host="camera-1.example")).startswith(b"HTTP/1.0 403 Forbidden\r\n")
    assert ask(paged, "GET /\r\n\r\n").startswith(b"HTTP/1.0 403 Forbidden\r\n")


def test_a_post_sets_what_the_metrics_then_say(paged: int) -> None:
    body = '{"threshold": 0.25}'
    head = f"POST /threshold HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
    assert b" 415 " in ask(paged, f"{head}Content-Type: text/plain\r\n\r\n{body}")
    assert scrape(f"http://127.0.0.1:{paged}/metrics") == {"answer": 42}
    assert b" 200 " in ask(paged, f"{head}Content-Type: application/json\r\n\r\n{body}")
    assert scrape(f"http://127.0.0.1:{paged}/metrics") == {"answer": 0.25}
    assert b" 501 " in ask(paged, "OPTIONS /threshold HTTP/1.1\r\nHost: localhost\r\n\r\n")


def test_hundreds_of_viewers_are_refused_and_scrapes_go_on(
    paged: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics_page, "CONNECTION_SECONDS", 0.3)  # a viewer has no such end
    monkeypatch.setattr(viewers_module, "PERIOD_SECONDS", 0.1)
    before = threading.active_count()
    viewers: list[socket.socket] = []
    try:
        viewers.extend(look(paged) for _ in range(VIEWERS))
        for viewer in viewers:
            assert viewer.recv(1 << 16).startswith(b"HTTP/1.0 200 OK")
        for _ in range(200):
            refused = ask(paged, get("/events"))
            assert refused.startswith(b"HTTP/1.0 503 Service Unavailable")
            assert b"Retry-After: 10" in refused
        assert threading.active_count() <= before + CONNECTIONS
        assert scrape(f"http://127.0.0.1:{paged}/metrics")["answer"] == 42
        for viewer in viewers:
            said = b""
            while said.count(b"\n\n") < 10:  # a second of states
                read = viewer.recv(1 << 16)
                assert read
                said += read
        viewers.pop().close()

        def room() -> bool:
            viewers.append(look(paged))
            return viewers[-1].recv(12) == b"HTTP/1.0 200"

        until(room, "room for another")
    finally:
        for viewer in viewers:
            viewer.close()
