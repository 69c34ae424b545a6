"""How many CPUs this process may use: those it may run on, and no more than a container's quota pays for.

A quota is time, not cores: ``cpus: 1.0`` on a machine with 64 cores lets a process run on all 64, and stops
it once it has used one core's worth. Threads beyond the quota only wait for each other.
"""

from __future__ import annotations

import math
import os
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from offramp.common.errors import ConfigError
from offramp.common.files import read_bounded
from offramp.common.pause import pause

FILE_BYTES = 1 << 20
PERIOD = 100_000
"""Microseconds; the kernel's default."""
SETTLE_SECONDS = 1.0


def available(root: Path = Path("/")) -> int:
    """CPUs worth of threads, at least 1: the smaller of the affinity and the quota, rounded up.

    root: where ``/proc`` and the control groups are looked for.
    """
    cores = len(os.sched_getaffinity(0))
    found = quota(root)
    return cores if found is None else max(1, min(cores, math.ceil(found)))


def quota(root: Path = Path("/")) -> float | None:
    """CPUs that this process's control groups pay for, v1 and v2, the smallest of all levels; None: no limit.

    What cannot be read or understood is no limit.
    """
    return min(_limits(root), default=None)


def limit_libraries() -> None:
    """Make libraries that start a thread for each core as they are imported keep to the quota.

    OpenBLAS (in NumPy) and OpenMP (in torch) know the affinity only. What the user has set stays.
    """
    found = available()
    if found < len(os.sched_getaffinity(0)):
        for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
            os.environ.setdefault(name, str(found))


def require_threads(count: int) -> None:
    """Raises ConfigError where this process cannot have so many threads more, by trying.

    ONNX Runtime waits for ever where it gets fewer than it wants.
    """
    release = threading.Event()
    before, threads = _tasks(), list[threading.Thread]()
    try:
        for _ in range(count):
            thread = threading.Thread(target=release.wait, daemon=True)
            thread.start()
            threads.append(thread)
    except RuntimeError:
        raise ConfigError(
            f"{len(threads)} threads can be started here, {count} are needed: expected fewer --threads, or a "
            "higher limit on processes (pids_limit, ulimit -u)"
        ) from None
    finally:
        release.set()
        for thread in threads:
            thread.join()
        # The kernel counts a thread for a moment after it has ended.
        end = time.monotonic() + SETTLE_SECONDS
        while threads and _tasks() > before and time.monotonic() < end:
            pause(1e-4)


def _tasks() -> int:
    try:
        return len(os.listdir("/proc/self/task"))
    except OSError:
        return 0


def _limits(root: Path) -> Iterator[float]:
    """The quota of each control group that this process is in, from its own up to the mount's top."""
    paths = _own_groups(_text(root / "proc/self/cgroup"))
    for line in _text(root / "proc/self/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        fields, kind = before.split(" "), after.split(" ")
        if len(fields) < 5 or len(kind) < 3:
            continue
        if kind[0] == "cgroup2":
            own, read = paths.get(""), _v2
        elif kind[0] == "cgroup" and "cpu" in kind[2].split(","):
            own, read = paths.get("cpu"), _v1
        else:
            continue
        if own is None:
            continue
        top = root / _unescaped(fields[4]).lstrip("/")
        group = top / _beneath(own, _unescaped(fields[3]))
        for folder in (group, *group.parents):
            if (limit := read(folder)) is not None:
                yield limit
            if folder == top:
                break


def _own_groups(text: str) -> dict[str, str]:
    """Of /proc/self/cgroup: controller → path; v2 is the one without a name."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        _, _, rest = line.partition(":")
        controllers, colon, path = rest.partition(":")
        if colon:
            found |= dict.fromkeys(controllers.split(","), path)
    return found


def _beneath(path: str, mounted: str) -> str:
    """Where a group's path lies in a mount that shows only the part of the tree from ``mounted`` on.

    Outside of that part the mount's top is the nearest that can be seen: a container's own group, mostly.
    """
    parts = PurePosixPath(path).parts
    top = PurePosixPath(mounted).parts
    if ".." in parts or parts[: len(top)] != top:
        return ""
    return "/".join(parts[len(top) :])


def _v2(folder: Path) -> float | None:
    limit, *period = _text(folder / "cpu.max").split() or [""]
    return _ratio(limit, period[0] if period else str(PERIOD))


def _v1(folder: Path) -> float | None:
    return _ratio(_text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us"))


def _ratio(limit: str, period: str) -> float | None:
    """Microseconds of CPU time in each period. "max", -1 and anything else that is not a number: no limit."""
    limit, period = limit.strip(), period.strip()
    if not all(re.fullmatch("[0-9]{1,18}", text) for text in (limit, period)):
        return None
    return int(limit) / int(period) if int(limit) and int(period) else None


def _unescaped(text: str) -> str:
    """Of mountinfo, which writes blanks as octal numbers."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), text)


def _text(path: Path) -> str:
    try:
        return read_bounded(path, FILE_BYTES).decode(errors="replace")
    except ConfigError:
        return ""
