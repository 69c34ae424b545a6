"""A stranger's graphs are loaded and tried in a child process first, with limits on memory and time.

A graph of a few bytes can take any amount of both: an optimizer that copies a constant for each of its uses,
a pool with a window of millions. ONNX Runtime has no limit for either and cannot be interrupted. So a child
does all that this process would do, as this process would do it; only what passed is loaded here.

The child gets the graphs' bytes through its standard input and answers in lines of JSON. It ends with its
parent. What passed once in a process is not tried again.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import IO, Any

from offramp.common.errors import BundleError, StoppedError, printable
from offramp.common.part.providers import CPU, Providers, parse
from offramp.common.part.session import Graph, Ports
from offramp.common.pause import pause

SECONDS = 6.0
"""For all of one trial, the child's start included: of processor time, and of each thread's at most."""
LONGEST = 10
"""How many times that may pass by the clock where the child waits for a busy machine's processors."""
BYTES = 512 << 20
"""Resident memory of the child. Of a container's or a unit's own limit it takes half at most."""
SPARE_BYTES = 128 << 20
"""Above that for what Python and ONNX Runtime map and never touch."""
BATCH_SECONDS = 0.5
"""How long larger batches are tried. A plan measures several times as long, so no batch beyond."""
THREADS = 8
"""Threads of the child at most."""
LOOK_MS = 20
"""How often the parent looks at the child, and whether it is still wanted."""

CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Subject:
    """A graph to try: its file's name, its bytes and what the manifest says of it."""

    name: str
    data: bytes = field(repr=False)
    inputs: Ports
    outputs: Ports


_passed: set[bytes] = set()
"""Graphs that run, by ``_key``."""
_largest: dict[tuple[bytes, tuple[int, ...], bool], int] = {}
"""What was found for these graphs, these batches and whether they are needed."""


def require(
    subjects: Sequence[Subject],
    threads: int = 1,
    *,
    batches: Sequence[int] = (),
    needed: bool = False,
    providers: Providers = CPU,
    cancelled: Callable[[], bool] = lambda: False,
) -> int:
    """Load these graphs in one child, and run each with two inputs, then with the larger ``batches``.

    Two, because a graph that takes one at a time would fail at the first batch. Returns the largest batch
    that fits into the limits. Raises BundleError for graphs that do not pass, with ``needed`` also if the
    largest batch does not; StoppedError once ``cancelled()``, within 0.1 s. providers: what the child runs
    them on.
    """
    wanted = tuple(sorted({size for size in batches if size > 2}))
    keys = [_key(each, providers) for each in subjects]
    key = b"".join(keys), wanted, needed
    if key in _largest:
        return _largest[key]
    if not wanted and _passed.issuperset(keys):
        return 2
    if cancelled():
        raise StoppedError("stopped while a bundle was loaded")
    _largest[key] = _Child(subjects, min(threads, THREADS), wanted, needed, providers).result(cancelled)
    _passed.update(keys)
    return _largest[key]


def _key(subject: Subject, providers: Providers) -> bytes:
    digest = hashlib.sha256(subject.data)
    digest.update(repr((subject.name, subject.inputs, subject.outputs, providers)).encode())
    return digest.digest()


@cache
def memory_limit(cgroups: Path = CGROUPS, own: Path = Path("/proc/self/cgroup")) -> int:
    """Bytes that a trial may take: ``BYTES``, or half of what the smallest cgroup around us may."""
    limits = [2 * BYTES]
    with suppress(OSError, ValueError):
        for line in own.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and "memory" not in controllers.split(","):
                continue
            root = cgroups / "memory" if controllers else cgroups
            file = "memory.limit_in_bytes" if controllers else "memory.max"
            place = root / path.lstrip("/")
            for folder in (place, *place.parents):
                with suppress(OSError, ValueError):  # "max": no limit
                    limits.append(int((folder / file).read_text()))
                if folder == root:
                    break
    return min(limits) // 2


class _Child:
    """One trial under way."""

    def __init__(
        self,
        subjects: Sequence[Subject],
        threads: int,
        batches: Sequence[int],
        needed: bool,
        providers: Providers,
    ) -> None:
        self._start = time.monotonic()
        self._names = [each.name for each in subjects]
        self._limit = memory_limit()
        self._needed = needed
        self._answers: list[dict[str, Any]] = []
        self._rest = b""
        order = {
            "parent": os.getpid(),
            "threads": threads,
            "providers": [str(each) for each in providers],
            "batches": list(batches),
            "needed": needed,
            "seconds": SECONDS,
            "bytes": self._limit,
            "graphs": [
                {"name": e.name, "size": len(e.data), "inputs": e.inputs, "outputs": e.outputs}
                for e in subjects
            ],
        }
        with _in_memory() as file:
            for each in subjects:
                file.write(each.data)
            file.seek(0)
            try:
                self._process = subprocess.Popen(
                    # -P: the current directory may be a stranger's as well.
                    [_python(), "-P", "-m", __name__, json.dumps(order)],
                    stdin=file,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    env=_environment(),
                )
            except OSError as error:
                raise BundleError(
                    f"{self._names[0]}: cannot be tried: no child process: {error.strerror}"
                ) from None

    def result(self, cancelled: Callable[[], bool]) -> int:
        """See ``require``."""
        stdout = self._process.stdout
        assert stdout is not None
        ready = select.poll()
        ready.register(stdout.fileno(), select.POLLIN)
        try:
            going = True
            while going:
                if ready.poll(LOOK_MS):
                    going = self._take(os.read(stdout.fileno(), 1 << 16))
                if cancelled():
                    raise StoppedError("stopped while a bundle was loaded")
                passed = time.monotonic() - self._start
                if passed > SECONDS and (
                    passed > SECONDS * LONGEST or _processor_seconds(self._process.pid) >= SECONDS
                ):
                    raise self._too_long()
                if _resident_bytes(self._process.pid) > self._limit:
                    self._answers.append({"memory": True})
                    going = False
            # Not the process's own wait, which sleeps: see common/pause.py.
            end = time.monotonic() + LOOK_MS / 1e3
            while self._process.poll() is None and time.monotonic() < end:
                pause(1e-3)
        finally:
            self._process.kill()
            self._process.wait()
            stdout.close()
        return self._judge()

    def _take(self, data: bytes) -> bool:
        *lines, self._rest = (self._rest + data).split(b"\n")
        self._answers += [json.loads(line) for line in lines]
        return bool(data)

    def _judge(self) -> int:
        for answer in self._answers:
            if "error" in answer:
                raise BundleError(printable(answer["error"], 900))
        batches = [answer["batch"] for answer in self._answers if "batch" in answer]
        status = -self._process.returncode
        if status == signal.SIGXCPU:
            raise self._too_long()
        # A larger batch that took all memory is a bound for the plan, not a fault.
        if batches and (not self._needed or any("end" in answer for answer in self._answers)):
            return int(batches[-1])
        if batches or any("memory" in answer for answer in self._answers):
            raise self._error(f"takes over {self._limit >> 20} MB to load and try")
        how = f"by {signal.Signals(status).name}" if status in set(signal.Signals) else f"status {-status}"
        raise self._error(f"ends the process that tries it ({how})")

    def _too_long(self) -> BundleError:
        return self._error(f"takes over {SECONDS:g} s to load and try")

    def _error(self, what: str) -> BundleError:
        numbers = [answer["graph"] for answer in self._answers if "graph" in answer]
        name = self._names[numbers[-1] if numbers else 0]
        return BundleError(f"{name}: {what}, expected a classifier's graph")


def _in_memory() -> IO[bytes]:
    """A file without a name: nothing is written to a disk, which may be read-only."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("offramp-graphs", os.MFD_CLOEXEC), "w+b")
    return tempfile.TemporaryFile()


def _python() -> str:
    # An application that embeds Python says there which interpreter its children have.
    from multiprocessing.spawn import get_executable

    return os.fsdecode(get_executable() or "python3")


def _environment() -> dict[str, str]:
    """Ours, without our settings, and with our ways to find modules."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("OFFRAMP_")}
    path = os.pathsep.join(str(Path(place or ".").absolute()) for place in sys.path)
    return {**kept, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def _resident_bytes(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def _processor_seconds(pid: int) -> float:
    """What a process has had of the processors; endless where the system does not say."""
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(after_name[11]) + int(after_name[12])) / os.sysconf("SC_CLK_TCK")
    except (OSError, IndexError, ValueError):
        return math.inf


# --- the child ---


def _main(order: dict[str, Any]) -> int:
    _end_with(order["parent"])
    with suppress(OSError):  # where memory runs out all the same, this process goes first
        Path("/proc/self/oom_score_adj").write_text("1000")
    _limit(order["bytes"], math.ceil(order["seconds"] * order["threads"]))
    try:
        _try(order)
    except BundleError as error:
        # C++ says so in words only.
        _say(memory=True) if "bad_alloc" in str(error) else _say(error=str(error))
    except MemoryError:
        _say(memory=True)
    return 0


def _try(order: dict[str, Any]) -> None:
    graphs, providers = [], parse(order["providers"])
    for number, each in enumerate(order["graphs"]):
        _say(graph=number)
        data = sys.stdin.buffer.read(each["size"])
        inputs, outputs = _ports(each["inputs"]), _ports(each["outputs"])
        graph = Graph(each["name"], data, order["threads"], inputs, outputs, providers)
        graph.try_batch(2)
        graphs.append(graph)
    _say(batch=2)
    start = before = time.perf_counter()
    for size in order["batches"]:
        try:
            for number, graph in enumerate(graphs):
                _say(graph=number)
                graph.try_batch(size)
        except (BundleError, MemoryError):
            _say(memory=True)  # mostly that
            return
        _say(batch=size)
        now = time.perf_counter()
        if not order["needed"] and now + 2 * (now - before) > start + BATCH_SECONDS:
            break
        before = now
    _say(end=True)


def _ports(stored: dict[str, Any]) -> Ports:
    return {name: (kind, tuple(shape)) for name, (kind, shape) in stored.items()}


def _say(**answer: object) -> None:
    print(json.dumps(answer), flush=True)


def _end_with(parent: int) -> None:
    """Die when the parent does; it may have done so already."""
    import ctypes

    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        raise SystemExit(1)


def _limit(size: int, seconds: int) -> None:
    """What the parent looks at every now and then, the kernel sees to at once, where it may be asked to."""
    import resource

    for what, value in {
        resource.RLIMIT_CPU: seconds,
        resource.RLIMIT_DATA: size + SPARE_BYTES,
        resource.RLIMIT_CORE: 0,
    }.items():
        with suppress(OSError, ValueError):
            _, hard = resource.getrlimit(what)
            most = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(what, (most, hard))


if __name__ == "__main__":
    # Nothing is left to be written, and ONNX Runtime takes a while to be taken apart.
    os._exit(_main(json.loads(sys.argv[1])))
