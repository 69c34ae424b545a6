"""``offramp follow`` with a real server, a real device and a registry."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from offramp.cli.app import main
from offramp.cli.follow.state import STATE
from offramp.cli.registry.auth import Login
from offramp.cli.registry.reference import parse_reference
from offramp.cli.registry.remote import Remote, base_url, make_client
from offramp.cli.registry.transfer import push
from offramp.common.bundle.load import Bundle
from offramp.common.errors import ExitCode
from tests import toy
from tests.processes import Processes, Program, closed_port, processes, scrape, until
from tests.registries import Fake, fake_registry


@pytest.fixture
def run(toy_bundle: Bundle) -> Iterator[Processes]:
    """Programs of this test."""
    with processes(toy_bundle.path) as started:
        yield started


@pytest.fixture
def fake() -> Iterator[Fake]:
    """A registry."""
    with fake_registry() as found:
        yield found


def publish(fake: Fake, tag: str, bundle: Bundle) -> None:
    """The tag names this bundle."""
    reference = parse_reference(fake.reference(f":{tag}"))

    async def run() -> None:
        async with make_client(reference, None, False) as client:
            base = base_url(reference, None, False)
            await push(bundle, Remote(reference, client, base, Login(), write=True))

    asyncio.run(run())


def follow(run: Processes, reference: str, folder: Path, *words: object, **variables: str) -> Program:
    """``offramp follow``, with its own metrics page and further variables of its environment."""
    command = [sys.executable, "-m", "offramp.cli.app", "follow", reference, "--dir", folder]
    line = [str(word) for word in (*command, "--metrics-port", 0, *words)]
    return run.start(line, env=os.environ | variables)


def state(folder: Path) -> dict[str, Any]:
    """What a follower remembers."""
    return dict(json.loads((folder / STATE).read_text()))


def free_port() -> int:
    """A port that is free now."""
    with closed_port() as port:
        return port


def test_a_device_changes_only_to_what_a_server_has(
    run: Processes, fake: Fake, toy_bundle: Bundle, toy_images: Path, tmp_path: Path
) -> None:
    early = toy.write(tmp_path / "early", seeds=(61, 48))
    for tag in ("servers", "devices"):
        publish(fake, tag, toy_bundle)
    at_server, at_device, port = tmp_path / "server", tmp_path / "device", free_port()
    python = [sys.executable, "-m"]
    server = follow(
        run, fake.reference(":servers"), at_server, "--every", 0.1, "--", *python, "offramp.server.app",
        "--bundle", at_server, "--listen", "127.0.0.1:0", "--reload-interval", 0.1, "--threads", 1,
    )  # fmt: skip
    address = server.wait_for(r"listening on (\S+:\d+)")[1]
    manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    manager.bind(str(tmp_path / "notify"))
    device = follow(
        run, fake.reference(":devices"), at_device, "--every", 0.1, "--probation", 4,
        "--metrics", f"127.0.0.1:{port}", "--", *python, "offramp.device.app", "--bundle", "{bundle}",
        "--server", address, "--threshold", 1, "--rate", 50, "--repeat", "--quiet", "--metrics-port", port,
        toy_images, NOTIFY_SOCKET=str(tmp_path / "notify"),
    )  # fmt: skip
    own = own_page(device)
    page = f"http://127.0.0.1:{port}/metrics"

    def answered() -> float:
        try:
            return scrape(page).get("offramp_device_images_total{source=server}", 0.0)
        except OSError:
            return 0.0

    until(answered, "answers of the first bundle")
    publish(fake, "devices", early)
    device.wait_for("no server of its has this bundle: going back; it is tried again later")
    until(answered, "answers of the first bundle again")
    assert scrape(own)["offramp_follow_rollbacks_total{cause=mismatch}"] == 1
    assert state(at_device)["held"][0]["bundle"] == toy_bundle.digest.hex()

    # The server gets it first; then the device may have it.
    publish(fake, "servers", early)
    until(lambda: len(state(at_server)["held"]) == 2, "the server's second bundle")
    remembered = state(at_device)
    remembered["refused"][0]["retry_at"] = 0.0
    device.send(signal.SIGTERM)
    assert device.wait() == ExitCode.INTERRUPTED
    # Ready with one bundle, with the next, with the first again; and only now the end of the service.
    said = [manager.recv(64, socket.MSG_DONTWAIT) for _ in range(4)]
    assert said == [b"READY=1"] * 3 + [b"STOPPING=1"]
    manager.close()
    (at_device / STATE).write_text(json.dumps(remembered))
    again = follow(
        run, fake.reference(":devices"), at_device, *device.command[device.command.index("--every") :]
    )
    again.wait_for(rf"bundle {early.digest.hex()[:16]} has passed its probation")
    assert answered()
    assert scrape(own_page(again))["offramp_follow_switches_total"] == 1
    assert any(each.if_none_match for each in fake.asked)
    for program in (again, server):
        program.send(signal.SIGTERM)
    assert (again.wait(), server.wait()) == (ExitCode.INTERRUPTED, ExitCode.OK)
    # Nobody is left behind.
    with pytest.raises(OSError):
        scrape(page)


def own_page(program: Program) -> str:
    """The follower's metrics page."""
    where = program.wait_for(r"follow INFO metrics on (\S+)")[1]
    return f"http://{where}/metrics"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--dir"),
        (["--dir", "d", "--every", "0"], "seconds"),
        (["--dir", "d", "--keep", "0"], "1 … 16"),
        (["--dir", "d", "--metrics", "127.0.0.1:1", "--", "sleep", "1"], "{bundle}"),
        (["--dir", "d", "--metrics", "nowhere", "--", "echo", "{bundle}"], "HOST:PORT"),
        (["--dir", "d", "--", "no-such-program", "{bundle}"], "no-such-program: not found"),
        (["--dir", "d", "more"], "more"),
        (["--dir", "d", "--allow-older"], "expected --trusted-key"),
    ],
)
def test_wrong_flags_are_one_error(
    words: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["follow", "oci-layout:none:a", *words]) == ExitCode.CONFIG
    assert re.search(re.escape(message), capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == []
