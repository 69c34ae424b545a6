"""Devices behind a real nginx, where TLS ends: our configuration, and the default body limit."""

from __future__ import annotations

import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from tests.certificates import Authority
from tests.processes import Processes, processes, until

CONFIGURATION = Path(__file__).parents[2] / "deploy" / "nginx" / "offramp.conf"
BUNDLE = Path(__file__).parents[2] / "models" / "digits-mobilenetv2-exit12"
IMAGES = 3500
"""Of noise: over 1 MB of activations, more than nginx takes where nothing is said."""
FEW = 500

pytestmark = pytest.mark.skipif(
    shutil.which("nginx") is None or shutil.which("openssl") is None, reason="needs nginx and openssl"
)


def noise(path: Path, count: int) -> Path:
    images = np.random.default_rng(5).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    np.savez(path, images=images)
    return path


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return noise(tmp_path / "many.npz", IMAGES)


@pytest.fixture
def few(tmp_path: Path) -> Path:
    return noise(tmp_path / "few.npz", FEW)


@pytest.fixture
def run() -> Iterator[Processes]:
    with processes(BUNDLE) as started:
        yield started


@contextmanager
def nginx(run: Processes, folder: Path, authority: Authority, upstream: str, **changed: str) -> Iterator[int]:
    """nginx with our configuration, where directives are changed; '' removes one. Its port."""
    pair = authority.sign("front")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    text = CONFIGURATION.read_text()
    text = re.sub(r"\n *listen \[::\].*", "", text)
    for was, now in (
        ("listen 443", f"listen 127.0.0.1:{port}"),
        ("server 127.0.0.1:50051", f"server {upstream}"),
        ("/etc/nginx/offramp.pem", str(pair.cert)),
        ("/etc/nginx/offramp.key", str(pair.key)),
    ):
        assert text.count(was) == 1, was
        text = text.replace(was, now)
    for name, value in changed.items():
        text, count = re.subn(rf"\n *{name} .*;", f"\n{name} {value};" if value else "", text)
        assert count == 1, name
    kept = "".join(
        f"{name} {folder / name};\n"
        for name in (
            *("client_body_temp_path", "proxy_temp_path", "fastcgi_temp_path"),
            *("uwsgi_temp_path", "scgi_temp_path"),
        )
    )
    main = folder / "nginx.conf"
    main.write_text(
        f"daemon off;\nmaster_process off;\npid {folder / 'pid'};\nerror_log {folder / 'error.log'} info;\n"
        f"events {{}}\nhttp {{\naccess_log off;\n{kept}{text}}}\n"
    )
    program = run.start(["nginx", "-p", str(folder), "-e", "stderr", "-c", str(main)])

    def open_port() -> bool:
        with socket.socket() as probe:
            return program.process.poll() is not None or probe.connect_ex(("127.0.0.1", port)) == 0

    until(open_port, "nginx")
    assert program.process.poll() is None, program.errors
    try:
        yield port
    finally:
        program.end()


def test_with_our_configuration_a_stream_is_not_cut(
    run: Processes, images: Path, tmp_path: Path, authority: Authority
) -> None:
    server = run.server()
    with nginx(run, tmp_path, authority, server.address) as port:
        status, device = run.device(
            *("--server", f"127.0.0.1:{port}", "--tls-ca", authority.pair.cert, "--threshold", 1),
            *("--timeout", 20, "--json", images),
        )
    assert (status, device.summary["server"], device.summary["fallback"]) == (0, IMAGES, 0)
    assert device.summary["wire_bytes"]["sent"] > 1 << 20
    assert server.metrics()["offramp_server_streams_total"] == 1


def test_with_a_body_limit_every_image_is_answered_by_new_streams(
    run: Processes, few: Path, tmp_path: Path, authority: Authority
) -> None:
    server = run.server()
    with nginx(run, tmp_path, authority, server.address, client_max_body_size="100k") as port:
        status, device = run.device(
            *("--server", f"127.0.0.1:{port}", "--tls-ca", authority.pair.cert, "--threshold", 1),
            *("--timeout", 20, "--json", few),
        )
    assert (status, device.summary["server"], device.summary["fallback"]) == (0, FEW, 0)
    assert server.metrics()["offramp_server_streams_total"] > 1
    assert "WARNING" not in device.errors


def test_a_proxy_without_a_server_is_not_blamed(
    run: Processes, few: Path, tmp_path: Path, authority: Authority
) -> None:
    """502 from nginx, and 404 where the path is not passed on, are not violations: status 3."""
    for changed in ({}, {"grpc_pass": ""}):
        with nginx(run, tmp_path, authority, "127.0.0.1:1", **changed) as port:
            status, device = run.device(
                *("--server", f"127.0.0.1:{port}", "--tls-ca", authority.pair.cert, "--threshold", 1),
                *("--timeout", 20, "--json", few),
            )
        assert (status, device.summary["fallback"]) == (3, FEW), device.errors
