"""A container that limits threads: both programs say so and end. Open files are in test_descriptors.py."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from offramp.common.bundle.load import Bundle
from offramp.common.cpus import require_threads
from offramp.common.errors import ConfigError
from tests.processes import WAIT
from tests.server.threads import few_threads

Launcher = Callable[[int], list[str]]


@pytest.fixture
def limited() -> Iterator[Launcher]:
    """Starts Python where it may have so many threads, in a control group of this machine."""
    for top in (Path("/sys/fs/cgroup/pids"), Path("/sys/fs/cgroup")):
        folder = top / f"offramp-test-{os.getpid()}"
        try:
            folder.mkdir()
            (folder / "pids.max").write_text("max")
        except OSError:
            if folder.exists():
                folder.rmdir()
            continue

        def python(limit: int, folder: Path = folder) -> list[str]:
            (folder / "pids.max").write_text(str(limit))
            join = 'echo 0 > "$1"; shift; exec "$@"'
            return ["sh", "-c", join, "sh", str(folder / "cgroup.procs"), sys.executable]

        yield python
        folder.rmdir()
        return
    pytest.skip("control groups cannot be made here")


@pytest.mark.parametrize("limit", [1, 5, 20, 40, 70])
def test_too_few_threads_end_the_server_with_a_status(
    limit: int, limited: Launcher, toy_bundle: Bundle
) -> None:
    command = [*limited(limit), "-m", "offramp.server.app", "--bundle", str(toy_bundle.path)]
    done = subprocess.run(
        [*command, "--listen", "127.0.0.1:0", "--metrics-port", "0", "--threads", "64"],
        capture_output=True,
        text=True,
        timeout=WAIT,
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
    )
    assert done.returncode == 2, done.stderr
    assert "threads can be started here" in done.stderr and "pids_limit" in done.stderr
    assert "Traceback" not in done.stderr


def test_too_few_threads_end_a_device_with_a_status(
    limited: Launcher, toy_bundle: Bundle, toy_images: Path
) -> None:
    command = [*limited(10), "-m", "offramp.device.app", "--bundle", str(toy_bundle.path)]
    done = subprocess.run(
        [*command, "--threads", "64", str(toy_images)],
        capture_output=True,
        text=True,
        timeout=WAIT,
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
    )
    assert done.returncode == 2, done.stderr
    assert "threads can be started here" in done.stderr


def test_trying_for_threads_leaves_none_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = len(os.listdir("/proc/self/task"))
    require_threads(40)
    # Other tests' threads may end meanwhile.
    assert len(os.listdir("/proc/self/task")) <= tasks
    few_threads(monkeypatch, 3)
    with pytest.raises(ConfigError, match=r"^3 threads can be started here, 5 are needed"):
        require_threads(5)
    assert len(os.listdir("/proc/self/task")) <= tasks
