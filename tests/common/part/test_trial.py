"""The child that tries graphs first. What it refuses: ``tests/attacks/test_costly_graphs.py``."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from offramp.common.bundle.load import Bundle
from offramp.common.bundle.manifest import TAIL
from offramp.common.errors import BundleError, ExitCode, StoppedError
from offramp.common.part import trial
from offramp.common.part.engine import Engine
from offramp.common.part.trial import BYTES, memory_limit


@pytest.fixture
def nothing_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a new process."""
    monkeypatch.setattr(trial, "_passed", set())
    monkeypatch.setattr(trial, "_largest", {})


@pytest.mark.parametrize(
    ("lines", "files", "expected"),
    [
        ("0::/\n", {}, BYTES),
        ("0::/\n", {"memory.max": "max"}, BYTES),
        ("0::/\n", {"memory.max": "268435456"}, 128 << 20),
        ("0::/\n", {"memory.max": str(64 << 30)}, BYTES),
        ("0::/a.slice/b.service\n", {"a.slice/b.service/memory.max": "536870912"}, 256 << 20),
        (
            "0::/a.slice/b.service\n",
            {"a.slice/memory.max": "268435456", "a.slice/b.service/memory.max": "max"},
            128 << 20,
        ),
        ("4:cpu:/x\n3:memory:/x\n", {"memory/x/memory.limit_in_bytes": "268435456"}, 128 << 20),
        ("3:memory:/docker/x\n", {"memory/memory.limit_in_bytes": "268435456"}, 128 << 20),
        ("not a line of it\n", {}, BYTES),
    ],
)
def test_a_container_s_memory_is_halved(
    tmp_path: Path, lines: str, files: dict[str, str], expected: int
) -> None:
    own = tmp_path / "own"
    own.write_text(lines)
    for name, text in files.items():
        path = tmp_path / "fs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    assert memory_limit(tmp_path / "fs", own) == expected


def test_without_cgroups_the_limit_is_ours(tmp_path: Path) -> None:
    assert memory_limit(tmp_path, tmp_path / "nothing") == BYTES


@pytest.mark.usefixtures("nothing_passed")
def test_a_cancelled_trial_is_no_fault_of_the_bundle(toy_bundle: Bundle) -> None:
    engine = Engine(toy_bundle, cancelled=lambda: True)

    with pytest.raises(StoppedError) as caught:
        engine.load_tail()

    assert caught.value.exit_code is ExitCode.INTERRUPTED


@pytest.mark.usefixtures("nothing_passed")
def test_it_needs_neither_a_disk_nor_a_home(
    toy_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "nothing"))
    monkeypatch.delenv("HOME", raising=False)
    (tmp_path / "numpy.py").write_text("raise SystemExit('the current directory was searched')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place])

    Engine(toy_bundle).load_tail()

    assert {path.name for path in tmp_path.iterdir()} == {"numpy.py"}


@pytest.mark.usefixtures("nothing_passed")
def test_no_child_is_one_line(toy_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(trial, "_python", lambda: os.fspath(tmp_path / "python"))

    with pytest.raises(BundleError, match="cannot be tried: no child process: No such file or directory"):
        Engine(toy_bundle).load_tail()


@pytest.mark.usefixtures("nothing_passed")
def test_a_child_that_dies_is_one_line(toy_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "_python", lambda: "/bin/false")

    with pytest.raises(BundleError, match=r"tail\.onnx: ends the process that tries it \(status 1\)"):
        Engine(toy_bundle).load_tail()


def test_batches_are_tried_up_to_the_largest(toy_bundle: Bundle) -> None:
    assert Engine(toy_bundle).try_batches(TAIL, batches=[1, 2, 4, 8], needed=True) == 8
    assert Engine(toy_bundle).try_batches(TAIL) == 2


@pytest.mark.usefixtures("nothing_passed")
def test_a_child_that_waits_for_a_busy_machine_is_waited_for(
    toy_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit is of work, not of time that others took: here the child is stopped for longer than it."""
    monkeypatch.setattr(trial, "SECONDS", 2.0)
    start = subprocess.Popen
    resume: list[threading.Timer] = []

    def stopped(*arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
        child: subprocess.Popen[bytes] = start(*arguments, **options)
        child.send_signal(signal.SIGSTOP)
        resume.append(threading.Timer(2.5, child.send_signal, [signal.SIGCONT]))
        resume[-1].start()
        return child

    monkeypatch.setattr(subprocess, "Popen", stopped)
    Engine(toy_bundle).load_tail()
    assert len(resume) == 1


@pytest.mark.usefixtures("nothing_passed")
def test_a_child_that_gets_nowhere_is_not_waited_for_without_end(
    toy_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "SECONDS", 0.1)
    start = subprocess.Popen

    def stopped(*arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
        child: subprocess.Popen[bytes] = start(*arguments, **options)
        child.send_signal(signal.SIGSTOP)
        return child

    monkeypatch.setattr(subprocess, "Popen", stopped)
    with pytest.raises(BundleError, match="to load and try"):
        Engine(toy_bundle).load_tail()
