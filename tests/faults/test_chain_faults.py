"""A gateway between a device and a server, and either hop in trouble: each image has its one answer."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from offramp.common.bundle.load import Bundle
from tests import toy_chain
from tests.faults.load import FAST, Account, frames_of, load
from tests.faults.proxy import bad_network
from tests.processes import WAIT, Processes, Server, processes, until


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return toy_chain.write(tmp_path_factory.mktemp("chain") / "toy")


@pytest.fixture
def run(chain: Bundle) -> Iterator[Processes]:
    with processes(chain.path) as started:
        yield started


def answered(gateway: Server, by: str) -> int:
    return int(gateway.metrics()[f"offramp_server_answers_total{{by={by}}}"])


def more(gateway: Server, by: str, count: int = 20) -> None:
    """Wait until so many more frames are answered so."""
    most = answered(gateway, by) + count
    until(lambda: answered(gateway, by) >= most, f"{count} more answers by {by}")


def parts(account: Account) -> Counter[tuple[int, bool]]:
    return Counter((record["part"], record.get("cut_short", False)) for record in account.records)


def test_what_the_upstream_does_not_answer_the_gateways_exit_does(run: Processes, toy_images: Path) -> None:
    server = run.server(*FAST, "--part", "last")
    with bad_network(server.port) as (peer, network):
        address = f"127.0.0.1:{peer.port}"
        gateway = run.server(*FAST, "--upstream", address, "--upstream-timeout", 0.5)
        with load(run, toy_images, "--server", gateway.address, "--timeout", WAIT) as device:
            device.warmed_up()
            more(gateway, "upstream")
            network.hole.set()
            more(gateway, "fallback", 60)
            network.hole.clear()
            more(gateway, "upstream")
            server.send(signal.SIGKILL)
            server.wait()
            more(gateway, "fallback")
            again = run.server(*FAST, "--part", "last", listen=server.address)
            more(gateway, "upstream")
            again.send(signal.SIGSTOP)
            more(gateway, "fallback")
            again.send(signal.SIGCONT)
            more(gateway, "upstream")
            assert again.drain() == 0
            more(gateway, "fallback")
            account = device.finish()
    assert account.status == 0 and not account.fallbacks
    by = {(2, False): "exit", (3, False): "upstream", (2, True): "fallback"}
    # Every early exit is audited: the gateway answers those, too, and what it cuts short is a lost audit.
    seen, audits = parts(account), account.audits
    over = {each: answered(gateway, each) - seen[key] for key, each in by.items()}
    assert over["fallback"] == audits["lost"]
    assert over["exit"] + over["upstream"] == audits["agrees"] + audits["differs"]
    assert sum(over.values()) == seen[1, False] == sum(audits.values())
    assert frames_of(gateway) == {
        "answered": account.sent,
        "refused": 0,
        "abandoned": 0,
        "total": account.sent,
    }
    page = gateway.metrics()
    assert page["offramp_server_upstream_breaker_opens_total"] >= 2
    assert page["offramp_server_upstream_connected"] == 0
    causes = {key: value for key, value in page.items() if "upstream_frames_unanswered" in key}
    assert sum(causes.values()) == answered(gateway, "fallback")


def test_a_gateway_that_drains_dies_or_stops_is_left_for_another(run: Processes, toy_images: Path) -> None:
    server = run.server(*FAST, "--part", "last")
    first, second = (run.server(*FAST, "--upstream", server.address) for _ in range(2))
    gateways = f"{first.address},{second.address}"
    with load(run, toy_images, "--server", gateways, "--timeout", 2) as device:
        device.warmed_up()
        assert first.drain() == 0
        more(second, "upstream")
        first = run.server(*FAST, "--upstream", server.address, listen=first.address)
        second.send(signal.SIGKILL)
        more(first, "upstream")
        first.send(signal.SIGSTOP)
        device.more("fallback")
        first.send(signal.SIGCONT)
        more(first, "upstream")
        account = device.finish()
    assert parts(account)[3, False] > 0 and not any(cut for _, cut in parts(account))
    assert all(record["part"] == 1 for record in account.fallbacks)
