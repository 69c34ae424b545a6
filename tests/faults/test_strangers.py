"""Everyone who should not be let in, at a server whose good client is answered beside them, and counted."""

from __future__ import annotations

import socket
import statistics
from collections import Counter
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from offramp.common.bundle.load import Bundle
from tests.certificates import Authority, needs_openssl
from tests.faults.load import FAST, SERVER, Account, Holdings, frames_of, load
from tests.processes import WAIT, Processes, until
from tests.server.client import Ended, Stream, channel_to
from tests.server.test_security import TOKEN, bearer, outcome, secure

pytestmark = needs_openssl

STRANGERS = 1000
JUNK = (
    b"",
    b"\0" * 64,
    b"GET / HTTP/1.1\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
)


def show_latency(account: Account, calm: int) -> None:
    """Print what the good client noticed; no test depends on it."""
    latencies = [record["latency_seconds"] * 1e3 for record in account.records]
    for name, part in (("alone", latencies[:calm]), ("beside strangers", latencies[calm:])):
        print(f"good client {name}: median {statistics.median(part):.1f} ms, max {max(part):.1f} ms")


def test_nobody_else_is_let_in_and_the_good_client_is_answered(
    run: Processes, toy_bundle: Bundle, toy_images: Path, tmp_path: Path
) -> None:
    """Mutual TLS and a token. Each refusal is counted where gRPC tells of it, and as a handshake."""
    authority, other = Authority(tmp_path, "authority"), Authority(tmp_path, "other")
    ca = authority.pair.cert
    own, mine = authority.sign("server"), authority.sign("device")
    expired, strange = authority.sign("expired", expired=True), other.sign("strange")
    token = tmp_path / "token"
    token.write_text(TOKEN + "\n")
    server = run.server(
        *FAST,
        *("--tls-cert", own.cert, "--tls-key", own.key, "--tls-client-ca", ca, "--token-file", token),
        *("--hello-timeout", 0.5, "--max-streams", 2048),
    )
    handshakes = 0
    flags = ("--tls-ca", ca, "--tls-cert", mine.cert, "--tls-key", mine.key, "--token-file", token)
    with load(run, toy_images, "--server", server.address, "--timeout", WAIT, *flags) as device:
        device.warmed_up()
        handshakes += 1
        calm = device.sent
        holdings = Holdings(server.pid)
        refused: Counter[str] = Counter()
        with secure(server.address, ca, mine) as channel:
            handshakes += 1
            for metadata in ([], bearer("wrong-token-of-thirty-two-letters"), bearer(TOKEN) * 2):
                assert outcome(channel, toy_bundle, metadata) == "UNAUTHENTICATED"
                refused["UNAUTHENTICATED"] += 1
            # A slow loris: it is let in, and says nothing.
            for _ in range(3):
                stream = Stream(channel, toy_bundle, bearer(TOKEN))
                with pytest.raises(Ended, match=r"INVALID_ARGUMENT: no hello within 0\.5 s"):
                    stream.receive()
                refused["INVALID_ARGUMENT"] += 1
                stream.half_close()
            huge = [*bearer(TOKEN), ("x", "y" * 100_000)]
            assert outcome(channel, toy_bundle, huge) in ("RESOURCE_EXHAUSTED", "UNAVAILABLE")
        for client in (expired, strange, None):
            with secure(server.address, ca, client) as channel:
                assert outcome(channel, toy_bundle, bearer(TOKEN)) == "UNAVAILABLE"
        with secure(server.address, other.pair.cert, mine) as channel:
            assert outcome(channel, toy_bundle, bearer(TOKEN)) == "UNAVAILABLE"
        with channel_to(server.address) as channel:
            assert outcome(channel, toy_bundle, bearer(TOKEN)) == "UNAVAILABLE"
        handshakes += 5
        assert server.metrics()[f"{SERVER}tls_handshakes_total"] >= handshakes
        # gRPC may have tried a refused one's connection twice.
        until(lambda: server.metrics()[f"{SERVER}open_connections"] == 1, "the good one alone")
        before = server.metrics()[f"{SERVER}tls_handshakes_total"]
        with ExitStack() as open_ones:
            for index in range(STRANGERS):
                stranger = socket.create_connection(("127.0.0.1", server.port), timeout=WAIT)
                open_ones.enter_context(stranger)
                with suppress(OSError):  # hung up on already
                    stranger.sendall(JUNK[index % len(JUNK)])
            device.more("server", 30)
            # Silent ones have ten seconds; they are seen meanwhile.
            assert server.metrics()[f"{SERVER}open_connections"] >= 2
        counted = f"{SERVER}tls_handshakes_total"
        until(lambda: server.metrics()[counted] >= before + STRANGERS, "all of them to be counted")
        until(lambda: server.metrics()[f"{SERVER}open_connections"] == 1, "the good one alone")
        device.more("server")
        holdings.check()
        account = device.finish()
    page = server.metrics()
    aborted = {status: page.get(f"{SERVER}streams_aborted_total{{status={status}}}", 0) for status in refused}
    # gRPC refuses the huge metadata, and at times hands the call over all the same: it then says no hello.
    surfaced = aborted["INVALID_ARGUMENT"] - refused["INVALID_ARGUMENT"]
    assert surfaced in (0, 1)
    assert aborted["UNAUTHENTICATED"] == refused["UNAUTHENTICATED"]
    everything = [value for name, value in page.items() if name.startswith(f"{SERVER}streams_aborted_total")]
    assert sum(everything) == refused.total() + surfaced
    # The good client never noticed.
    assert not account.fell_back and account.status == 0
    assert account.value("connects_total") == 1
    assert frames_of(server)["answered"] == account.answered == frames_of(server)["total"]
    # gRPC may hand on a call whose metadata it refuses.
    assert page[f"{SERVER}streams_total"] - 1 - refused["INVALID_ARGUMENT"] in (0, 1)
    show_latency(account, calm)
    assert server.drain() == 0
    assert TOKEN not in server.errors


def test_a_plaintext_server_beside_a_thousand_strangers(run: Processes, toy_images: Path) -> None:
    """Silent connections, garbage, half a handshake, and one byte after another."""
    server = run.server(*FAST, "--max-streams", 2048)
    with load(run, toy_images, "--server", server.address, "--timeout", WAIT) as device:
        device.warmed_up()
        calm = device.sent
        with ExitStack() as open_ones:
            for index in range(STRANGERS):
                stranger = socket.create_connection(("127.0.0.1", server.port), timeout=WAIT)
                open_ones.enter_context(stranger)
                with suppress(OSError):
                    stranger.sendall(JUNK[index % len(JUNK)])
            assert server.metrics()[f"{SERVER}open_connections"] > STRANGERS / len(JUNK)
            device.more("server", 30)
        until(lambda: server.metrics()[f"{SERVER}open_connections"] == 1, "the good one alone")
        account = device.finish()
    assert not account.fell_back and account.value("connects_total") == 1
    assert frames_of(server)["total"] == account.answered
    assert server.metrics()[f"{SERVER}streams_total"] == 1
    show_latency(account, calm)
