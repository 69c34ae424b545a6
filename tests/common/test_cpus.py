"""Threads are counted by what a container's quota pays for, not only by the cores that it may run on."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from offramp.common import cpus
from tests.processes import WAIT

V2_MOUNT = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
V1_MOUNT = "33 31 0:30 {top} /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
V1 = "sys/fs/cgroup/cpu,cpuacct"


def machine(root: Path, cgroup: str, mounts: str, files: dict[str, str]) -> Path:
    for name, text in {"proc/self/cgroup": cgroup, "proc/self/mountinfo": mounts, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def v1(folder: str, quota: object, period: object = 100_000) -> dict[str, str]:
    return {f"{folder}/cpu.cfs_quota_us": f"{quota}\n", f"{folder}/cpu.cfs_period_us": f"{period}\n"}


@pytest.mark.parametrize(
    ("cgroup", "files", "expected"),
    [
        ("0::/\n", {"cpu.max": "100000 100000\n"}, 1.0),
        ("0::/\n", {"cpu.max": "max 100000\n"}, None),
        ("0::/\n", {}, None),
        ("0::/\n", {"cpu.max": "50000\n"}, 0.5),
        ("0::/\n", {"cpu.max": "30000 20000\n"}, 1.5),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "250000 100000\n"}, 2.5),
        ("0::/a/b\n", {"a/b/cpu.max": "200000 100000\n", "a/cpu.max": "50000 100000\n"}, 0.5),
        ("0::/a/b\n", {"a/b/cpu.max": "50000 100000\n", "a/cpu.max": "200000 100000\n"}, 0.5),
        ("0::/a/b\n", {"cpu.max": "300000 100000\n"}, 3.0),
        # The group is not in the mount: a container that has its namespace from outside.
        ("0::/../../elsewhere\n", {"cpu.max": "100000 100000\n"}, 1.0),
        ("0::/a\n", {"b/cpu.max": "100000 100000\n"}, None),
        ("0::/gone (deleted)\n", {"cpu.max": "100000 100000\n"}, 1.0),
        ("0::/\n", {"cpu.max": ""}, None),
        ("0::/\n", {"cpu.max": "many few\n"}, None),
        ("0::/\n", {"cpu.max": "-1 100000\n"}, None),
        ("0::/\n", {"cpu.max": "0 100000\n"}, None),
        ("0::/\n", {"cpu.max": "100000 0\n"}, None),
        ("0::/\n", {"cpu.max": "nan 100000\n"}, None),
        ("0::/\n", {"cpu.max": "²00000 100000\n"}, None),
        ("0::/\n", {"cpu.max": "9" * 5000}, None),
        ("0::/\n", {"cpu.max": "\0" * 100}, None),
        ("nothing\n\n:\n", {"cpu.max": "100000 100000\n"}, None),
        ("", {"cpu.max": "100000 100000\n"}, None),
    ],
)
def test_the_quota_of_version_2(
    tmp_path: Path, cgroup: str, files: dict[str, str], expected: float | None
) -> None:
    placed = {f"sys/fs/cgroup/{name}": text for name, text in files.items()}
    assert cpus.quota(machine(tmp_path, cgroup, V2_MOUNT, placed)) == expected


@pytest.mark.parametrize(
    ("cgroup", "top", "files", "expected"),
    [
        ("3:cpu,cpuacct:/\n", "/", v1(V1, 150_000), 1.5),
        ("3:cpu,cpuacct:/\n", "/", v1(V1, -1), None),
        ("3:cpu,cpuacct:/a/b\n", "/", v1(f"{V1}/a/b", -1) | v1(f"{V1}/a", 400_000) | v1(V1, -1), 4.0),
        # A container: the mount shows its own group only, with or without a namespace.
        ("3:cpu,cpuacct:/docker/1f\n", "/docker/1f", v1(V1, 100_000), 1.0),
        ("3:cpu,cpuacct:/docker/1f/a\n", "/docker/1f", v1(f"{V1}/a", 50_000) | v1(V1, 100_000), 0.5),
        ("3:cpu,cpuacct:/\n", "/docker/1f", v1(V1, 100_000), 1.0),
        ("3:cpu,cpuacct:/\n", "/", {f"{V1}/cpu.cfs_quota_us": "100000\n"}, None),
        ("3:memory:/\n", "/", v1(V1, 150_000), None),
        ("3:cpu,cpuacct:/\n", "/", v1(V1, "x", "y"), None),
        # Hybrid: version 2 is there too, without the CPU controller.
        ("3:cpu,cpuacct:/a\n1:name=systemd:/a\n0::/a\n", "/", v1(f"{V1}/a", 70_000), 0.7),
    ],
)
def test_the_quota_of_version_1(
    tmp_path: Path, cgroup: str, top: str, files: dict[str, str], expected: float | None
) -> None:
    mounts = V1_MOUNT.format(top=top) + V2_MOUNT.replace("/sys/fs/cgroup", "/sys/fs/cgroup/unified")
    mounts += "34 31 0:31 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n"
    assert cpus.quota(machine(tmp_path, cgroup, mounts, files)) == expected


def test_mount_points_with_blanks_and_lines_that_are_no_mounts(tmp_path: Path) -> None:
    mounts = f"\nx\na b - \n{V2_MOUNT}".replace("/sys/fs/cgroup", r"/sys/a\040b")
    assert cpus.quota(machine(tmp_path, "0::/\n", mounts, {"sys/a b/cpu.max": "200000 100000"})) == 2.0


def test_a_machine_without_control_groups_has_no_quota(tmp_path: Path) -> None:
    assert cpus.quota(tmp_path) is None
    assert cpus.available(tmp_path) == len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("quota", "cores", "expected"),
    [("100000", 64, 1), ("150000", 64, 2), ("1000", 64, 1), ("6400000", 64, 64), ("800000", 4, 4)],
)
def test_threads_are_the_smaller_of_cores_and_quota_rounded_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str, cores: int, expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    files = {"sys/fs/cgroup/cpu.max": f"{quota} 100000\n"}
    assert cpus.available(machine(tmp_path, "0::/\n", V2_MOUNT, files)) == expected


def test_libraries_keep_to_the_quota_unless_the_user_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    monkeypatch.setattr(cpus, "quota", lambda _=None: 2.0)
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    cpus.limit_libraries()
    assert (os.environ["OPENBLAS_NUM_THREADS"], os.environ["OMP_NUM_THREADS"]) == ("2", "7")


@pytest.fixture
def group() -> Iterator[Path]:
    """A control group of this machine that pays for one CPU."""
    folders = (Path("/sys/fs/cgroup/cpu"), Path("/sys/fs/cgroup/cpu,cpuacct"), Path("/sys/fs/cgroup"))
    name, text = f"offramp-test-{os.getpid()}", "100000"
    for top in folders:
        folder = top / name
        try:
            folder.mkdir()
        except OSError:
            continue
        try:
            file = folder / "cpu.cfs_quota_us"
            (file if file.exists() else folder / "cpu.max").write_text(text)
            yield folder
        except OSError:
            continue
        finally:
            folder.rmdir()
        return
    pytest.skip("control groups cannot be made here")


def test_a_process_in_a_group_of_one_cpu_counts_one(group: Path) -> None:
    code = "from offramp.common import cpus; print(cpus.available(), cpus.quota())"
    join = f"open({str(group / 'cgroup.procs')!r}, 'w').write('0')"
    done = subprocess.run(
        [sys.executable, "-c", f"{join}; {code}"], capture_output=True, text=True, timeout=WAIT, check=True
    )
    assert done.stdout.split() == ["1", "1.0"]
