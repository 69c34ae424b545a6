"""TLS, mutual TLS and tokens: who is not trusted learns nothing, and nothing secret is logged."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from offramp.common.bundle.load import Bundle
from offramp.common.errors import AccessError, ConfigError, UnavailableError
from offramp.device import Device, LinkOptions
from offramp.link.security import Security
from tests import toy
from tests.certificates import Authority, Pair, needs_openssl
from tests.device.conftest import Secured, secured
from tests.processes import Processes, counting_proxy, until

pytestmark = needs_openssl

SECRET = "s3cret-token-of-the-device"


@pytest.fixture
def ask(toy_bundle: Bundle) -> Callable[..., tuple[str, str, Device]]:
    """One image to a server on this port: who answered, why not the server, and the device."""

    def make(server: Secured, **security: Any) -> tuple[str, str, Device]:
        with Device(
            toy_bundle,
            server=f"127.0.0.1:{server.port}",
            threshold=1,
            link=LinkOptions(timeout=20, security=Security(**security)),
        ) as device:
            result = device.infer(toy.images(1)[0])
        return result.source, result.reason or "", device

    return make


def test_a_trusted_server_answers(authority: Authority, pair: Pair, ask: Callable[..., Any]) -> None:
    with secured(pair) as server:
        source, _, device = ask(server, ca=str(authority.pair.cert))
        wire = device.wire_bytes()
    assert source == "server"
    # The handshake and each record's overhead are in the count.
    assert wire is not None and wire.sent > 300 and wire.received > 600


@pytest.mark.parametrize("what", ["wrong authority", "expired", "other name", "the system's authorities"])
def test_an_untrusted_server_gets_nothing(
    authority: Authority, pair: Pair, ask: Callable[..., Any], tmp_path: Path, what: str
) -> None:
    served = pair
    security: dict[str, Any] = {"ca": str(authority.pair.cert)}
    if what == "wrong authority":
        security = {"ca": str(Authority(tmp_path, "other").pair.cert)}
    elif what == "expired":
        served = authority.sign("old", expired=True)
    elif what == "other name":
        security["server_name"] = "somebody.else.example"
    else:
        security = {"tls": True}
    with secured(served) as server:
        source, reason, device = ask(server, **security)
        assert (source, server.streams) == ("fallback", 0)
    assert "is unreachable" in reason and isinstance(device.failure, UnavailableError)


def test_the_name_of_the_certificate_may_be_said(
    authority: Authority, pair: Pair, ask: Callable[..., Any]
) -> None:
    with secured(pair) as server:
        assert ask(server, ca=str(authority.pair.cert), server_name="localhost")[0] == "server"


def test_both_sides_show_certificates(
    authority: Authority, pair: Pair, ask: Callable[..., Any], tmp_path: Path
) -> None:
    ca = str(authority.pair.cert)
    mine, stranger = authority.sign("device"), Authority(tmp_path, "other").sign("stranger")
    with secured(pair, client_ca=authority.pair.cert) as server:
        assert ask(server, ca=ca, certificate=str(mine.cert), key=str(mine.key))[0] == "server"
        assert ask(server, ca=ca)[0] == "fallback"
        assert ask(server, ca=ca, certificate=str(stranger.cert), key=str(stranger.key))[0] == "fallback"
        assert server.streams == 1


def test_tls_to_a_plaintext_port_and_plaintext_to_tls(
    authority: Authority, pair: Pair, ask: Callable[..., Any]
) -> None:
    with secured(None) as plain:
        assert ask(plain, ca=str(authority.pair.cert))[0] == "fallback"
    with secured(pair) as server:
        assert ask(server)[0] == "fallback"
        assert (plain.streams, server.streams) == (0, 0)


def test_a_token_is_sent_and_read_again(
    pair: Pair, authority: Authority, toy_bundle: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    path = tmp_path / "token"
    path.write_text("not the right one\n".replace(" ", "-"))
    security = Security(ca=str(authority.pair.cert), token_file=str(path))
    with (
        secured(pair, token=SECRET) as server,
        Device(
            toy_bundle,
            server=f"127.0.0.1:{server.port}",
            threshold=1,
            link=LinkOptions(timeout=5, security=security),
        ) as device,
    ):
        result = device.infer(toy.images(1)[0])
        assert result.source == "fallback" and "refuses this device (UNAUTHENTICATED)" in (
            result.reason or ""
        )
        assert isinstance(device.failure, AccessError)
        # Gone for a moment, as a file that is being replaced may be.
        path.unlink()
        until(lambda: "cannot be asked" in caplog.text, "an attempt without a token")
        path.write_text(f"{SECRET}\n")
        until(lambda: device.infer(toy.images(1)[0]).source == "server", "an answer with the new token")
    assert SECRET not in caplog.text and "not-the-right-one" not in caplog.text


@pytest.mark.parametrize(
    ("security", "message"),
    [
        ({"certificate": "FILE"}, "--tls-cert and --tls-key"),
        ({"key": "FILE"}, "--tls-cert and --tls-key"),
        ({"server_name": "a"}, "--tls-server-name"),
        ({"ca": "no/such/file"}, "--tls-ca no/such/file: No such file"),
        ({"ca": "FILE"}, "is not a PEM file"),
        ({"token_file": "no/such/file"}, "--token-file no/such/file: No such file"),
        ({"token_file": "FILE"}, "expected one line of visible ASCII"),
        ({"token_file": "EMPTY"}, "expected one line of visible ASCII"),
        ({"token_file": "HUGE"}, "is longer than 4096 bytes"),
    ],
)
def test_what_cannot_work_is_refused_at_once(
    toy_bundle: Bundle, tmp_path: Path, security: dict[str, Any], message: str
) -> None:
    (tmp_path / "FILE").write_text("hush hush\nsecond line")
    (tmp_path / "EMPTY").write_text("\n")
    (tmp_path / "HUGE").write_text("x" * 5000)
    named: dict[str, Any] = {
        key: str(tmp_path / value) if (tmp_path / value).exists() else value
        for key, value in security.items()
    }
    with pytest.raises(ConfigError, match=message) as raised:
        Device(toy_bundle, server="127.0.0.1:1", link=LinkOptions(security=Security(**named)))
    assert "hush" not in str(raised.value)


def test_tls_needs_no_insecure_and_insecure_no_tls(toy_bundle: Bundle, authority: Authority) -> None:
    security = Security(ca=str(authority.pair.cert))
    Device(toy_bundle, server="192.0.2.1:1", link=LinkOptions(security=security)).close()
    with pytest.raises(ConfigError, match="--insecure"):
        Device(toy_bundle, server="192.0.2.1:1", link=LinkOptions(security=security, insecure=True))


def test_flags_reach_the_server_and_the_secret_no_output(
    run: Processes, authority: Authority, pair: Pair, toy_images: Path, tmp_path: Path
) -> None:
    tokens = tmp_path / "token"
    tokens.write_text(SECRET)
    with secured(pair, token=SECRET) as server, counting_proxy(server.port) as proxy:
        status, device = run.device(
            *("--server", f"127.0.0.1:{proxy.port}", "--threshold", 1, "--json", "--log-level", "debug"),
            *("--tls-ca", authority.pair.cert, "--token-file", tokens, toy_images),
        )
        assert status == 0 and device.summary["server"] == 40
        assert device.summary["wire_bytes"]["sent"] == pytest.approx(proxy.up, rel=0.02)
    assert SECRET not in device.errors + "\n".join(device.stdout)


def test_a_wrong_token_is_exit_status_6_and_help_says_so(
    run: Processes, toy_npz: Path, tmp_path: Path
) -> None:
    known, wrong = tmp_path / "tokens", tmp_path / "token"
    known.write_text("a-token-that-is-known-here")
    wrong.write_text("another-token-that-is-not")
    server = run.server("--token-file", known)
    status, device = run.device(
        *("--server", server.address, "--token-file", wrong, "--threshold", 1, "--json", toy_npz)
    )
    assert status == 6 and device.summary["fallback"] == 300
    assert "the token is not known here" in device.errors and "another-token" not in device.errors
    _, asked = run.device("--help")
    assert "refuses the token" in " ".join(asked.stdout).partition("6 the server")[2].partition(", 7 ")[0]
