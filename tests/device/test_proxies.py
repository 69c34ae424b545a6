"""Proxies: none of the environment's is ever used, ``--proxy``'s is, and no proxy sees a token."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from offramp.common.bundle.load import Bundle
from offramp.common.errors import ConfigError
from offramp.common.wire import transport
from offramp.common.wire.address import is_loopback
from offramp.device import Device, LinkOptions
from offramp.link.security import Security
from tests import toy
from tests.certificates import Authority, Pair, needs_openssl
from tests.device.conftest import secured
from tests.processes import Peer, Processes, tcp_peer
from tests.proxies import Proxy, forward_proxy

ROOT = Path(__file__).parents[2]
SECRET = "s3cret-token-of-the-device"


@pytest.fixture
def sink() -> Iterator[Proxy]:
    with forward_proxy() as proxy:
        yield proxy


@pytest.fixture
def token(tmp_path: Path) -> str:
    path = tmp_path / "token"
    path.write_text(SECRET)
    return str(path)


def test_a_proxy_of_the_environment_is_not_contacted(
    run: Processes, toy_npz: Path, sink: Proxy, token: str
) -> None:
    server = run.server("--token-file", token)
    status, device = run.device(
        *("--server", server.address, "--token-file", token, "--threshold", 1, "--json", toy_npz),
        env={**os.environ, **sink.environment()},
    )
    assert (sink.peer.connections, bytes(sink.heard)) == (0, b"")
    assert status == 0 and device.summary["server"] == 300
    assert device.summary["wire_bytes"]["sent"] > 300


def test_nor_by_the_health_check_of_a_container(run: Processes, sink: Proxy) -> None:
    server = run.server()
    for target in (server.address, server.metrics_url):
        health = run.start(
            [sys.executable, str(ROOT / "deploy/containers/health.py"), target],
            env={**os.environ, **sink.environment()},
        )
        assert health.wait() == 0, health.errors
    assert sink.peer.connections == 0


def test_nor_by_the_demo(sink: Proxy) -> None:
    code = (
        "import sys; from offramp.cli.demo import fetch_metrics\n"
        "from prometheus_client import start_http_server\n"
        "server, _ = start_http_server(0, '127.0.0.1')\n"
        "assert fetch_metrics(f'127.0.0.1:{server.server_port}')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **sink.environment()},
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert sink.peer.connections == 0


def test_what_opens_a_channel_leaves_the_environment_alone() -> None:
    assert set(transport.DIRECT) <= set(transport.device_options())


@needs_openssl
def test_a_proxy_that_was_asked_for_is_used_with_tls_and_its_bytes_are_counted(
    authority: Authority, pair: Pair, token: str, toy_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What the environment excludes does not undo what was asked for.
    monkeypatch.setenv("no_proxy", "*,server.example")
    with secured(pair, token=SECRET) as server, forward_proxy(server.port) as proxy:
        with Device(
            toy_bundle,
            server="server.example:50051",
            threshold=1,
            link=LinkOptions(
                timeout=20,
                security=Security(
                    ca=str(authority.pair.cert),
                    server_name="localhost",
                    token_file=token,
                    proxy=proxy.url.replace("//", "//user:p%40ss@"),
                ),
            ),
        ) as device:
            result = device.infer(toy.images(1)[0])
        assert result.source == "server", result.reason
        assert proxy.connects == ["CONNECT server.example:50051 HTTP/1.1"]
        assert b"Proxy-Authorization: Basic dXNlcjpwQHNz\r\n" in proxy.heard
        assert SECRET.encode() not in proxy.heard
        wire = device.wire_bytes()
        assert wire is not None and wire.sent == len(proxy.heard)


@needs_openssl
def test_through_a_proxy_the_certificate_must_be_the_servers(
    authority: Authority, pair: Pair, toy_bundle: Bundle
) -> None:
    with secured(pair) as server, forward_proxy(server.port) as proxy:
        security = Security(ca=str(authority.pair.cert), proxy=proxy.url)
        with Device(
            toy_bundle, server="server.example:50051", threshold=1, link=LinkOptions(security=security)
        ) as device:
            assert device.infer(toy.images(1)[0]).source == "fallback"
        assert proxy.connects and server.streams == 0


def test_a_server_on_this_machine_is_reached_without_it(
    run: Processes, toy_npz: Path, sink: Proxy, token: str
) -> None:
    server = run.server("--token-file", token)
    status, device = run.device(
        *("--server", f"localhost:{server.port}", "--proxy", sink.url, "--token-file", token),
        *("--threshold", 1, "--json", toy_npz),
    )
    assert (status, device.summary["server"], sink.peer.connections) == (0, 300, 0)


def test_a_token_in_plaintext_through_a_proxy_is_refused(
    run: Processes, toy_npz: Path, sink: Proxy, token: str
) -> None:
    url = sink.url.replace("//", "//user:hidden@")
    status, device = run.device(
        *("--server", "gateway.example:50051", "--insecure", "--proxy", url, "--token-file", token, toy_npz)
    )
    assert status == 2
    assert f"--proxy {sink.url}: would see the token" in device.errors
    assert "hidden" not in device.errors and SECRET not in device.errors
    assert sink.peer.connections == 0


def test_without_a_token_plaintext_may_be_asked_for(toy_bundle: Bundle) -> None:
    with secured(None) as server, forward_proxy(server.port) as proxy:
        with Device(
            toy_bundle,
            server="server.example:50051",
            threshold=1,
            link=LinkOptions(timeout=20, insecure=True, security=Security(proxy=proxy.url)),
        ) as device:
            assert device.infer(toy.images(1)[0]).source == "server"
        assert len(proxy.connects) == 1


@pytest.mark.parametrize(
    "url", ["", "proxy:3128", "https://proxy:3128", "socks5://proxy:1", "http://proxy", "http://p:99999",
            "http://:3128", "http://proxy:3128/path", "http://[::1:3128"],
)  # fmt: skip
def test_what_is_not_a_proxys_address_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match=r"--proxy .*expected http://"):
        Security(proxy=url).check("gateway", insecure=True)


def test_a_password_is_not_repeated() -> None:
    with pytest.raises(ConfigError) as caught:
        Security(proxy="ftp://user:hidden@proxy:1").check("gateway", insecure=True)
    assert "hidden" not in str(caught.value) and "proxy:1" in str(caught.value)


@pytest.mark.parametrize(
    ("host", "here"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("::ffff:127.0.0.1", True),
     ("LocalHost", True), ("localhost.", True), ("localhost.example", False), ("10.0.0.1", False)],
)  # fmt: skip
def test_what_is_this_machine(host: str, here: bool) -> None:
    assert is_loopback(host) is here


def test_bytes_that_cannot_be_counted_are_unknown_and_not_0(
    toy_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    none: list[Any] = []
    monkeypatch.setattr("offramp.link.wire_bytes._connected_sockets", lambda *_: none)
    with secured(None) as server:
        with Device(
            toy_bundle, server=f"127.0.0.1:{server.port}", threshold=1, link=LinkOptions(timeout=20)
        ) as device:
            assert device.wire_bytes() is not None
            assert device.infer(toy.images(1)[0]).source == "server"
        assert device.wire_bytes() is None
        value = device.metrics.registry.get_sample_value
        assert value("offramp_device_wire_bytes_total", {"direction": "sent"}) is None


def test_the_error_names_a_proxy_that_refuses(toy_bundle: Bundle) -> None:
    def refuse(connection: socket.socket, _: Peer) -> None:
        connection.recv(1 << 16)
        connection.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")

    with tcp_peer(refuse) as peer:
        security = Security(proxy=f"http://127.0.0.1:{peer.port}")
        with Device(
            toy_bundle,
            server="server.example:50051",
            threshold=1,
            link=LinkOptions(insecure=True, security=security),
        ) as device:
            device.infer(toy.images(1)[0])
        assert f"127.0.0.1:{peer.port}" in str(device.failure)
