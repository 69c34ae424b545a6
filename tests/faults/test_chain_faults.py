"""A gateway between a device and a server, and either hop in trouble: each image has its one answer."""

from __future__ import annotations

import shutil
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from offramp.common.bundle.load import Bundle
from offramp.common.part.chain import run_chain
from offramp.common.part.engine import Engine
from tests import toy_chain
from tests.faults.load import FAST, THRESHOLD, Account, frames_of, load
from tests.faults.proxy import bad_network
from tests.processes import WAIT, Processes, Server, processes, until
from tests.server.test_forward import pixels
from tests.server.variants import variant


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
        settled = len(device.device.answers)
        first.send(signal.SIGSTOP)
        device.more("fallback")
        first.send(signal.SIGCONT)
        more(first, "upstream")
        account = device.finish()
    # What lay in the gateway while it stood still may come from its exit, if that is in time for the device.
    assert not any(record.get("cut_short") for record in account.records[:settled])
    assert parts(account)[3, False] > 0
    assert all(record["part"] == 1 for record in account.fallbacks)


def test_a_device_skips_a_gateway_that_is_gone_and_goes_back_to_it(
    run: Processes, chain: Bundle, toy_images: Path
) -> None:
    """Without an upstream, the cloud runs parts 2 and 3 itself: the answers are the chain's all the time."""
    cloud = run.server(*FAST)
    gateway = run.server(*FAST, "--upstream", cloud.address)
    servers = f"{gateway.address},{cloud.address}"
    flags = ("--server", servers, "--prefer-first", "--timeout", WAIT)
    with load(run, toy_images, *flags, plain=True) as device:
        device.warmed_up()
        more(gateway, "upstream")
        gateway.send(signal.SIGKILL)
        gateway.wait()
        by_cloud = "offramp_server_part_answers_total{part=%d}"
        until(lambda: all(cloud.metrics().get(by_cloud % part, 0) > 20 for part in (2, 3)), "both parts")
        gateway = run.server(*FAST, "--upstream", cloud.address, listen=gateway.address)
        more(gateway, "upstream")
        account = device.finish()
    assert account.status == 0 and not account.fallbacks
    expected = run_chain(Engine(chain), pixels(toy_images), [THRESHOLD, 0.8])
    for record in account.records:
        place = record["index"] % len(expected.best)
        assert (record["class_index"], record["part"]) == (expected.best[place], expected.part[place])
    asked = Counter(record["server"] for record in account.records if record["source"] == "server")
    assert asked == account.summary["servers"] and min(asked.values()) > 20
    counted = {each: account.value(f"server_answers_total{{server={each}}}") for each in asked}
    assert counted == asked and set(asked) == {gateway.address, cloud.address}
    assert account.value("failovers_total") == 2


def test_a_gateway_s_bundle_that_is_replaced_under_load_loses_no_frame(
    run: Processes, chain: Bundle, toy_images: Path, tmp_path: Path
) -> None:
    """SIGHUP after each change; what is under way upstream of the retired bundle is waited for."""
    models = tmp_path / "models"
    models.mkdir()
    old = variant(chain, models / "old", "old")
    kept = shutil.copytree(old.path, tmp_path / "kept")
    cloud = run.server(*FAST, "--part", "last", bundle=kept)
    flags = ("--upstream", cloud.address, "--upstream-timeout", WAIT, "--reload-interval", 3600)
    gateway = run.server(*FAST, *flags, bundle=models)
    device_flags = ("--server", gateway.address, "--timeout", WAIT)
    with load(run, toy_images, *device_flags, bundle=kept, plain=True) as device:
        device.warmed_up()
        variant(chain, models / "new", "new")
        gateway.send(signal.SIGHUP)
        gateway.wait_for("serves new")
        more(gateway, "upstream")
        shutil.rmtree(old.path)
        gateway.send(signal.SIGHUP)
        gateway.wait_for("retires old")
        device.more("fallback")
        account = device.finish()
    assert account.value("frames_resent_total") == 0 and account.sends == account.answered
    assert all("the device runs bundle" in record["reason"] for record in account.fallbacks)
    assert not any(cut for _, cut in parts(account))
    frames = frames_of(gateway)
    assert frames["total"] == frames["answered"] == account.answered
    assert frames_of(cloud)["total"] == answered(gateway, "upstream") and not answered(gateway, "fallback")
    until(lambda: gateway.metrics()["offramp_server_upstream_connected"] == 0, "the retired link's end")
