"""The command of a follower: started, ended, and gone where the follower is."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from offramp.cli.follow.child import Child, filled, said
from offramp.common.errors import ConfigError
from tests.processes import Program, until


def test_the_bundles_directory_is_put_into_the_command() -> None:
    assert filled(["run", "--bundle={bundle}", "{x}"], Path("/a b")) == ["run", "--bundle=/a b", "{x}"]


def test_it_ends_when_it_is_asked_to_and_is_killed_if_not(tmp_path: Path) -> None:
    deaf = f"trap '' TERM; : > {tmp_path / 'deaf'}; while :; do sleep 0.05; done"

    async def run() -> tuple[int, int, int]:
        done = await Child.start(["sh", "-c", "exit 3"])
        polite = await Child.start(["sleep", "60"])
        stubborn = await Child.start(["sh", "-c", deaf])
        while not (tmp_path / "deaf").exists():
            await asyncio.sleep(0.01)
        return await done.ended, await polite.stop(30), await stubborn.stop(0.1)

    assert asyncio.run(run()) == (3, -signal.SIGTERM, -signal.SIGKILL)


def test_what_cannot_be_started_is_one_error() -> None:
    with pytest.raises(ConfigError, match="no-such-program: No such file"):
        asyncio.run(Child.start(["no-such-program"]))


def test_it_does_not_outlive_a_follower_that_is_killed() -> None:
    script = (
        "import asyncio\nfrom offramp.cli.follow.child import Child\n"
        "async def run():\n child = await Child.start(['sleep', '60'])\n print(child.pid, flush=True)\n"
        " await child.ended\nasyncio.run(run())"
    )
    program = Program([sys.executable, "-c", script])
    try:
        until(lambda: program.stdout, "the child")
        pid = int(program.stdout[0])
        program.send(signal.SIGKILL)

        def gone() -> bool:
            try:
                os.kill(pid, 0)
                return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
            except (ProcessLookupError, FileNotFoundError):
                return True

        until(gone, "the child's end")
    finally:
        program.end()


def test_a_status_for_people() -> None:
    assert [said(each) for each in (3, -9, -999)] == ["exit status 3", "SIGKILL", "signal 999"]
