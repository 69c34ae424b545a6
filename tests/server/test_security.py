"""Who is let in: tokens, TLS, client certificates; and that strangers cost a good client nothing."""

from __future__ import annotations

import os
import re
import shutil
import socket
import ssl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from offramp.common.bundle.load import Bundle
from offramp.common.errors import AccessError, ConfigError
from offramp.common.wire import transport
from offramp.server.metrics import ServerMetrics
from offramp.server.security import Tokens
from tests.certificates import Authority, Pair
from tests.processes import WAIT, Processes, Server, until
from tests.server.client import Ended, Stream, channel_to, good_message, still_serves, stream_to
from tests.server.test_app import run_server

TOKEN = "a-token-of-thirty-two-characters"
OTHER = "another-token-that-is-known-here"
REFUSED = "streams_aborted_total{status=UNAUTHENTICATED}"


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    path = tmp_path / "tokens"
    path.write_text(f"# of the first site\n{TOKEN}\n\n{OTHER}\n")
    return path


def replace(path: Path, text: str | bytes) -> None:
    new = path.with_name("new")
    new.write_bytes(text.encode() if isinstance(text, str) else text)
    os.replace(new, path)


@contextmanager
def secure(address: str, ca: Path | None, client: Pair | None = None) -> Iterator[grpc.Channel]:
    credentials = grpc.ssl_channel_credentials(
        ca.read_bytes() if ca else None,
        client.key.read_bytes() if client else None,
        client.cert.read_bytes() if client else None,
    )
    with grpc.secure_channel(address, credentials, options=transport.device_options()) as channel:
        yield channel


def outcome(channel: grpc.Channel, bundle: Bundle, metadata: Sequence[tuple[str, str]] = ()) -> str:
    """``answered``, or the status that a good device gets instead."""
    stream = Stream(channel, bundle, metadata)
    try:
        stream.hello()
        stream.send(good_message(bundle))
        assert not stream.replies(1)[0].HasField("error")
        stream.end()
    except Ended as ended:
        assert TOKEN not in ended.details
        # gRPC cancels a call whose connection is refused after it was let in; to a device they are the same.
        return "UNAVAILABLE" if ended.status == "CANCELLED" else ended.status
    finally:
        stream.half_close()
    return "answered"


def bearer(token: str) -> list[tuple[str, str]]:
    return [(transport.AUTHORIZATION, f"Bearer {token}")]


# --- tokens ---


def test_only_known_tokens_are_let_in(run: Processes, toy_bundle: Bundle, token_file: Path) -> None:
    server = run.server("--token-file", token_file)
    cases: list[tuple[list[tuple[str, str]], str]] = [
        (bearer(TOKEN), "answered"),
        (bearer(OTHER), "answered"),
        ([(transport.AUTHORIZATION, f"bearer {TOKEN}")], "answered"),
        ([], "UNAUTHENTICATED"),
        (bearer("wrong-token-of-thirty-two-letters"), "UNAUTHENTICATED"),
        (bearer(TOKEN[:-1]), "UNAUTHENTICATED"),
        (bearer(TOKEN + "x"), "UNAUTHENTICATED"),
        (bearer(""), "UNAUTHENTICATED"),
        ([(transport.AUTHORIZATION, TOKEN)], "UNAUTHENTICATED"),
        ([(transport.AUTHORIZATION, f"Basic {TOKEN}")], "UNAUTHENTICATED"),
        (bearer(TOKEN) + bearer(OTHER), "UNAUTHENTICATED"),
        (bearer("# of the first site"), "UNAUTHENTICATED"),
    ]
    with channel_to(server.address) as channel:
        for metadata, expected in cases:
            assert outcome(channel, toy_bundle, metadata) == expected, metadata
        for method in (transport.DESCRIBE, "/grpc.reflection.v1alpha.ServerReflection/Other"):
            call: Any = channel.unary_unary(method)
            with pytest.raises(grpc.RpcError) as refused:
                call(b"", timeout=WAIT)
            error: Any = refused.value
            assert error.code() is grpc.StatusCode.UNAUTHENTICATED
        describe: Any = channel.unary_unary(transport.DESCRIBE)
        assert describe(b"", metadata=bearer(TOKEN), timeout=WAIT)
        health: Any = channel.unary_unary("/grpc.health.v1.Health/Check")
        assert health(b"", timeout=WAIT) == b"\x08\x01"
    refusals = sum(expected == "UNAUTHENTICATED" for _, expected in cases) + 2
    assert server.metrics()[f"offramp_server_{REFUSED}"] == refusals
    assert server.drain() == 0
    shown = {
        word for metadata, _ in cases for _, value in metadata for word in value.split() if len(word) > 9
    }
    assert not any(word in server.errors for word in shown | {TOKEN, OTHER})


def test_tokens_are_rotated_by_their_file(run: Processes, toy_bundle: Bundle, token_file: Path) -> None:
    server = run.server("--token-file", token_file, "--reload-interval", 0.05)
    with channel_to(server.address) as channel:
        with stream_to(server.address, toy_bundle, bearer(TOKEN)) as before:
            before.hello()
            replace(token_file, "the-only-token-that-is-known-now\n")
            until(lambda: outcome(channel, toy_bundle, bearer(TOKEN)) == "UNAUTHENTICATED", "the old to go")
            assert outcome(channel, toy_bundle, bearer("the-only-token-that-is-known-now")) == "answered"
            # Who is in stays in.
            before.send(good_message(toy_bundle))
            assert before.replies(1)
        replace(token_file, "short\n")
        server.wait_for(r"tokens not read again, the old ones stay: \S+ \S+: line 1 is not a token")
        token_file.unlink()
        server.wait_for(r"tokens not read again.*No such file")
        assert outcome(channel, toy_bundle, bearer("the-only-token-that-is-known-now")) == "answered"
        page = server.metrics()
        assert page["offramp_server_reloads_total{result=loaded,what=tokens}"] == 1
        assert page["offramp_server_reloads_total{result=failed,what=tokens}"] == 2
    assert server.drain() == 0
    assert "short" not in server.errors.replace("shorter", "")


@pytest.mark.parametrize(
    "text", ["", "# none\n", "short\n", "with a space in it, long enough\n", "ümlaut" * 9]
)
def test_a_file_without_tokens_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "tokens"
    path.write_text(text)
    with pytest.raises(ConfigError, match=f"^--token-file {re.escape(str(path))}: .+$") as caught:
        Tokens(str(path), ServerMetrics())
    assert not text.strip() or text.strip() not in str(caught.value)


def test_every_token_is_compared(token_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import hmac

    compared = []
    real = hmac.compare_digest

    def count(a: Any, b: Any) -> bool:
        compared.append(1)
        return real(a, b)

    tokens = Tokens(str(token_file), ServerMetrics())
    monkeypatch.setattr("offramp.server.security.hmac.compare_digest", count)
    tokens.check(f"Bearer {TOKEN}")
    for wrong in ("", "Bearer ", f"Bearer {TOKEN}x"):
        with pytest.raises(AccessError):
            tokens.check(wrong)
    assert len(compared) == 4 * 2


def in_place_of(path: Path, kind: str) -> None:
    """Put something that is no readable file where one was."""
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "sparse":
        with path.open("wb") as file:
            file.truncate(10 << 40)
    elif kind == "directory":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero")


KINDS = ("pipe", "sparse", "directory", "zero")


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_token_file_is_exit_2(toy_bundle: Bundle, token_file: Path, kind: str) -> None:
    in_place_of(token_file, kind)
    done = run_server("--bundle", toy_bundle.path, "--listen", "127.0.0.1:0", "--token-file", token_file)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert f"--token-file {token_file}: is " in done.stderr


def test_whatever_replaces_the_token_file_serving_and_following_go_on(
    run: Processes, toy_bundle: Bundle, token_file: Path
) -> None:
    server = run.server("--token-file", token_file, "--reload-interval", 0.05)
    messages = {"pipe": "a named pipe", "sparse": "is longer than", "directory": "a directory"}
    messages["zero"] = "a device"
    failed = "offramp_server_reloads_total{result=failed,what=tokens}"
    with channel_to(server.address) as channel:
        for count, kind in enumerate(KINDS, 1):
            if token_file.is_dir():
                token_file.rmdir()
            else:
                token_file.unlink()
            token_file.touch()
            in_place_of(token_file, kind)
            server.wait_for(messages[kind])
            until(lambda count=count: server.metrics()[failed] >= count, kind)  # type: ignore[misc]
            assert outcome(channel, toy_bundle, bearer(TOKEN)) == "answered"
        token_file.unlink()
        token_file.write_text(f"{OTHER}\n")
        until(lambda: outcome(channel, toy_bundle, bearer(TOKEN)) == "UNAUTHENTICATED", "the new tokens")
        assert outcome(channel, toy_bundle, bearer(OTHER)) == "answered"
    assert server.drain() == 0


def test_tokens_that_become_readable_are_read(token_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where nothing of the file itself changes: a disk that failed once."""
    metrics = ServerMetrics()
    tokens = Tokens(str(token_file), metrics)
    replace(token_file, f"{OTHER}\n")
    broken = True
    real = os.read

    def read(handle: int, count: int) -> bytes:
        if broken:
            raise OSError(5, "Input/output error")
        return real(handle, count)

    monkeypatch.setattr("offramp.common.files.os.read", read)
    tokens.refresh()
    tokens.refresh()
    assert (
        metrics.registry.get_sample_value(
            "offramp_server_reloads_total", {"what": "tokens", "result": "failed"}
        )
        == 1
    )
    tokens.check(f"Bearer {TOKEN}")
    broken = False
    tokens.refresh()
    with pytest.raises(AccessError):
        tokens.check(f"Bearer {TOKEN}")


# --- TLS ---


@pytest.mark.parametrize(
    ("flag", "kind"),
    [*(("--tls-cert", kind) for kind in KINDS), ("--tls-key", "pipe"), ("--tls-client-ca", "zero")],
)
def test_what_is_no_certificate_file_is_exit_2(
    toy_bundle: Bundle, authority: Authority, pair: Pair, tmp_path: Path, flag: str, kind: str
) -> None:
    path = tmp_path / "file"
    path.touch()
    in_place_of(path, kind)
    files = {"--tls-cert": pair.cert, "--tls-key": pair.key, "--tls-client-ca": authority.pair.cert}
    flags = [text for each, file in (files | {flag: path}).items() for text in (each, file)]
    done = run_server("--bundle", toy_bundle.path, "--listen", "127.0.0.1:0", *flags)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert f"{flag} {path}: is " in done.stderr


def test_tls(run: Processes, toy_bundle: Bundle, authority: Authority, pair: Pair, tmp_path: Path) -> None:
    server = run.server("--tls-cert", pair.cert, "--tls-key", pair.key)
    other = Authority(tmp_path, "other")
    with secure(server.address, authority.pair.cert) as channel:
        assert outcome(channel, toy_bundle) == "answered"
    with secure(server.address, other.pair.cert) as channel:
        assert outcome(channel, toy_bundle) == "UNAVAILABLE"
    with channel_to(server.address) as channel:
        assert outcome(channel, toy_bundle) == "UNAVAILABLE"
    with secure(server.address, authority.pair.cert) as channel:
        assert outcome(channel, toy_bundle) == "answered"
    assert server.drain() == 0


def test_tls_to_a_plaintext_port(run: Processes, toy_bundle: Bundle, authority: Authority) -> None:
    server = run.server()
    with secure(server.address, authority.pair.cert) as channel:
        assert outcome(channel, toy_bundle) == "UNAVAILABLE"
    still_serves(server.address, toy_bundle)


def test_client_certificates(
    run: Processes, toy_bundle: Bundle, authority: Authority, pair: Pair, tmp_path: Path
) -> None:
    ca = authority.pair.cert
    server = run.server("--tls-cert", pair.cert, "--tls-key", pair.key, "--tls-client-ca", ca)
    good, expired = authority.sign("device"), authority.sign("expired", expired=True)
    strange = Authority(tmp_path, "strange").sign("stranger")
    for client, expected in (
        (good, "answered"),
        (None, "UNAVAILABLE"),
        (expired, "UNAVAILABLE"),
        (strange, "UNAVAILABLE"),
        (good, "answered"),
    ):
        with secure(server.address, ca, client) as channel:
            assert outcome(channel, toy_bundle) == expected, client
    assert server.drain() == 0


def test_certificates_are_rotated_by_their_files(
    run: Processes, toy_bundle: Bundle, authority: Authority, pair: Pair, tmp_path: Path
) -> None:
    cert, key = tmp_path / "cert", tmp_path / "key"
    shutil.copy(pair.cert, cert)
    shutil.copy(pair.key, key)
    server = run.server("--tls-cert", cert, "--tls-key", key)

    def shown() -> bytes:
        context = ssl.create_default_context(cafile=str(authority.pair.cert))
        context.set_alpn_protocols(["h2"])
        with (
            socket.create_connection(("127.0.0.1", server.port)) as connection,
            context.wrap_socket(connection, server_hostname="127.0.0.1") as wrapped,
        ):
            certificate = wrapped.getpeercert(binary_form=True)
        assert certificate
        return certificate

    first = shown()
    new = authority.sign("renewed")
    # In between, certificate and key do not belong together: the old ones stay.
    replace(cert, new.cert.read_bytes())
    assert shown() == first
    server.wait_for("certificate not read again, the old one stays")
    replace(key, new.key.read_bytes())
    assert shown() != first
    page = server.metrics()
    assert page["offramp_server_reloads_total{result=loaded,what=certificate}"] == 1
    assert page["offramp_server_reloads_total{result=failed,what=certificate}"] == 1
    with secure(server.address, authority.pair.cert) as channel:
        assert outcome(channel, toy_bundle) == "answered"
    assert server.drain() == 0
    secret = "".join(new.key.read_text().splitlines()[1:-1])
    assert secret[:20] not in server.errors


def test_files_that_are_no_certificates_are_exit_2(
    toy_bundle: Bundle, authority: Authority, pair: Pair, tmp_path: Path
) -> None:
    junk = tmp_path / "junk"
    junk.write_text("-----BEGIN CERTIFICATE-----\nsecret\n-----END CERTIFICATE-----\n")
    for flags, message in (
        (("--tls-cert", pair.cert), "--tls-cert and --tls-key belong together"),
        (("--tls-client-ca", pair.cert), "--tls-client-ca needs --tls-cert"),
        (("--tls-cert", pair.cert, "--tls-key", tmp_path / "none"), "No such file"),
        (("--tls-cert", pair.cert, "--tls-key", authority.pair.key), "belong together"),
        (("--tls-cert", junk, "--tls-key", pair.key), "expected PEM files"),
        (("--tls-cert", pair.cert, "--tls-key", pair.key, "--tls-client-ca", junk), "expected PEM cert"),
    ):
        done = run_server("--bundle", toy_bundle.path, "--listen", "127.0.0.1:0", *flags)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert message in done.stderr and "secret" not in done.stderr


def test_tls_needs_no_insecure(run: Processes, toy_bundle: Bundle, authority: Authority, pair: Pair) -> None:
    server = run.server("--tls-cert", pair.cert, "--tls-key", pair.key, listen="0.0.0.0:0")
    with secure(server.address, authority.pair.cert) as channel:
        assert outcome(channel, toy_bundle) == "answered"


# --- strangers ---


def test_oversized_metadata_is_refused(run: Processes, toy_bundle: Bundle) -> None:
    server = run.server()
    with channel_to(server.address) as channel:
        assert outcome(channel, toy_bundle, [("x", "y" * 100_000)]) in ("RESOURCE_EXHAUSTED", "UNAVAILABLE")
    still_serves(server.address, toy_bundle)


def test_connections_over_the_limit_are_hung_up_on(run: Processes, toy_bundle: Bundle) -> None:
    server = run.server("--max-streams", 1)
    strangers = [socket.create_connection(("127.0.0.1", server.port), timeout=WAIT) for _ in range(400)]
    try:
        end = 0
        for stranger in strangers:
            stranger.settimeout(0.01)
            try:
                end += stranger.recv(1 << 16) == b""
            except TimeoutError:
                pass
            except OSError:
                end += 1
        assert end >= 100
    finally:
        for stranger in strangers:
            stranger.close()
    until(lambda: _answers(server, toy_bundle), "room again")


def _answers(server: Server, bundle: Bundle) -> bool:
    with channel_to(server.address) as channel:
        return outcome(channel, bundle) == "answered"
