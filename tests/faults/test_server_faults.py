"""Servers that die, freeze, drain, restart and change bundles under load: each image has its one answer."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

from offramp.common.bundle.load import Bundle
from tests.faults.load import FAST, SERVER, Holdings, Load, frames_of, load
from tests.processes import WAIT, Processes, Server, until
from tests.server.variants import variant

PATIENT = ("--timeout", WAIT)
"""A device for which no answer comes too late."""
KILLS = 3


def killed_and_replaced(run: Processes, device: Load, server: Server, *flags: object) -> Server:
    """SIGKILL; early exits answer until another server, with these flags, does at the same address."""
    server.send(signal.SIGKILL)
    device.more("fallback")
    replacement = run.server(*flags, listen=server.address)
    device.more("server")
    return replacement


def test_a_server_that_is_killed_again_and_again(run: Processes, toy_images: Path) -> None:
    server = run.server(*FAST)
    address = server.address
    with load(run, toy_images, "--server", address, *PATIENT) as device:
        device.warmed_up()
        for _ in range(KILLS):
            server = killed_and_replaced(run, device, server, *FAST)
        account = device.finish()
    assert account.audits["lost"] > 0 and account.audits["agrees"] + account.audits["differs"] > 0
    # What was under way when it died waits for the next stream only as long as connecting does not fail.
    assert account.unanswered() | {"unavailable": 0} == dict.fromkeys(account.unanswered(), 0)
    assert account.value("connects_total") == KILLS + 1
    assert account.status == 3 and "Traceback" not in account.errors
    frames = frames_of(server)
    assert frames["refused"] == 0 and frames["total"] == frames["answered"] + frames["abandoned"]
    assert server.metrics()[f"{SERVER}open_streams"] == 0


def test_a_plain_device_whose_server_is_killed(run: Processes, toy_images: Path) -> None:
    """Without audits, samples and page, which all other tests have on."""
    server = run.server(*FAST)
    with load(run, toy_images, "--server", server.address, *PATIENT, plain=True) as device:
        device.warmed_up()
        killed_and_replaced(run, device, server, *FAST)
        account = device.finish()
    assert account.status == 3 and account.fell_back and "audits" not in account.summary
    assert account.value("samples_entries") == account.value("audit_bytes_total") == 0


def test_a_server_that_is_killed_between_an_answer_and_its_picture(
    run: Processes, toy_images: Path, picture_bundle: Bundle
) -> None:
    """Every image is sent twice; where the second question finds nobody, the first answer stands."""
    flags = (*FAST, "--pictures", picture_bundle.path)
    server = run.server(*flags)
    address = server.address
    with load(run, toy_images, "--server", address, *PATIENT, "--picture-threshold", 1) as device:
        device.warmed_up()
        for _ in range(KILLS):
            server = killed_and_replaced(run, device, server, *flags)
        # And by one that takes none.
        server = killed_and_replaced(run, device, server, *FAST)
        account = device.finish()
    assert account.status == 3 and "Traceback" not in account.errors
    assert account.pictures("answered") > 20 * KILLS and account.unanswered()["picture"] >= 20
    asked = [record for record in account.records if record.get("picture_bytes")]
    assert account.pictures("answered") <= len(asked) <= account.by["server"]
    assert account.value("picture_bytes_total") == sum(record["picture_bytes"] for record in asked)
    frames = frames_of(server)
    assert frames["refused"] == 0 and server.metrics()[f"{SERVER}pictures_total"] == 0


def test_a_server_that_is_frozen_and_thaws(run: Processes, toy_images: Path) -> None:
    server = run.server(*FAST)
    with load(run, toy_images, "--server", server.address, "--timeout", 0.5) as device:
        device.warmed_up()
        for _ in range(2):
            server.send(signal.SIGSTOP)
            device.more("fallback", 100)
            server.send(signal.SIGCONT)
            device.more("server")
        account = device.finish()
    causes = account.unanswered()
    assert causes["timeout"] >= 2 and causes["refused"] == causes["closed"] == 0
    # It was noticed at once, not frame by frame: most were not sent at all.
    assert causes["breaker"] + causes["unavailable"] > causes["timeout"]
    until(lambda: server.metrics()[f"{SERVER}open_streams"] == 0, "its streams to end")
    frames = frames_of(server)
    assert frames["answered"] >= account.by["server"] and frames["total"] <= account.sends


def test_overload_is_refused_counted_and_over_when_the_load_is(run: Processes, toy_images: Path) -> None:
    """A queue of one, and batches that wait for company that does not fit: most frames are too many."""
    server = run.server("--workers", 1, "--max-batch", 64, "--max-wait-ms", 40, "--queue", 1)
    holdings = Holdings(server.pid)
    with (
        load(run, toy_images, "--server", server.address, *PATIENT) as one,
        load(run, toy_images, "--server", server.address, *PATIENT) as two,
    ):
        both = [one, two]
        for each in both:
            each.more("fallback", 50)
            each.more("server", 3)
        accounts = [each.finish() for each in both]
    refused = sum(int(account.value("frames_refused_total{reason=overloaded}")) for account in accounts)
    page = server.metrics()
    assert page[f"{SERVER}rejected_total{{reason=overloaded}}"] == refused > 0
    frames = frames_of(server)
    assert frames == {
        "answered": sum(account.answered for account in accounts),
        "refused": refused,
        "abandoned": 0,
        "total": sum(account.sends for account in accounts),
    }
    # After a reply that says when to come back, a device offers nothing until then.
    assert all(account.unanswered()["breaker"] > account.unanswered()["unavailable"] for account in accounts)
    holdings.check()
    status, calm = run.device(
        "--server", server.address, "--threshold", 1, "--window", 1, "--json", toy_images
    )
    assert status == 0 and calm.summary["server"] == 40


def test_a_rolling_restart_of_two_servers_costs_no_answer(run: Processes, toy_images: Path) -> None:
    servers = [run.server(*FAST), run.server(*FAST)]
    addresses = [server.address for server in servers]
    with load(run, toy_images, "--server", ",".join(addresses), *PATIENT) as device:
        device.warmed_up()
        for index, address in enumerate(addresses):
            assert frames_of(servers[index])["answered"] > 0
            assert servers[index].drain() == 0
            device.more("server")
            servers[index] = run.server(*FAST, listen=address)
        account = device.finish()
    assert not account.fell_back and account.status == 0
    # Nothing that a server had read was left to the other.
    assert account.value("frames_resent_total") == 0
    assert account.value("failovers_total") == 2 and account.value("connects_total") == 3


def test_a_server_that_is_killed_beside_another_costs_no_answer(run: Processes, toy_images: Path) -> None:
    servers = [run.server(*FAST), run.server(*FAST)]
    addresses = [server.address for server in servers]
    with load(run, toy_images, "--server", addresses[0], "--server", addresses[1], *PATIENT) as device:
        device.warmed_up()
        for index, address in enumerate(addresses):
            servers[index].send(signal.SIGKILL)
            device.more("server")
            servers[index] = run.server(*FAST, listen=address)
        account = device.finish()
    assert not account.fell_back and account.status == 0


def test_sigterm_under_load_loses_no_frame_that_was_read(run: Processes, toy_images: Path) -> None:
    server = run.server(*FAST)
    with (
        load(run, toy_images, "--server", server.address, *PATIENT) as one,
        load(run, toy_images, "--server", server.address, *PATIENT) as two,
    ):
        for each in (one, two):
            each.warmed_up()
        assert server.drain() == 0
        for each in (one, two):
            each.more("fallback")
        run.server(*FAST, listen=server.address)
        for each in (one, two):
            each.more("server")
        accounts = [one.finish(), two.finish()]
    for account in accounts:
        # Each frame went out once; those without an answer never did.
        assert account.value("frames_resent_total") == 0
        assert account.sends == account.answered
        assert not any(record["payload_bytes"] for record in account.fallbacks)


def test_a_bundle_that_is_replaced_under_load_loses_no_frame(
    run: Processes, toy_bundle: Bundle, toy_images: Path, tmp_path: Path
) -> None:
    models = tmp_path / "models"
    models.mkdir()
    old = variant(toy_bundle, models / "old", "old")
    server = run.server(*FAST, "--reload-interval", 0.05, bundle=models)
    kept = shutil.copytree(old.path, tmp_path / "kept")
    with load(run, toy_images, "--server", server.address, *PATIENT, bundle=kept) as device:
        device.warmed_up()
        new = variant(toy_bundle, tmp_path / "new", "new")
        new.path.rename(models / "new")
        server.wait_for("serves new")
        device.more("server")
        with load(
            run, toy_images, "--server", server.address, *PATIENT, bundle=tmp_path / "models/new"
        ) as other:
            other.warmed_up()
            shutil.rmtree(old.path)
            server.wait_for("retires old")
            device.more("fallback")
            other.more("server")
            mine, theirs = device.finish(), other.finish()
    assert not theirs.fell_back and theirs.status == 0
    assert mine.value("frames_resent_total") == 0 and mine.sends == mine.answered
    assert mine.status == 6
    assert all("the device runs bundle" in record["reason"] for record in mine.fallbacks)
    frames = frames_of(server)
    assert frames["total"] == frames["answered"] == mine.answered + theirs.answered
