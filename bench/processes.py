"""Programs that a benchmark measures: real processes, on cores or in a network namespace of their own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from offramp.common.errors import UnavailableError

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_LISTENING, _METRICS = r"listening on ([^\s,]+)", r"metrics on (\S+)"
END_SECONDS = 15.0
"""How long a program may take to end after SIGTERM; a server drains within 10."""


@dataclass
class Program:
    """A running program that has said where it listens."""

    process: subprocess.Popen[str]
    address: str = ""
    metrics: str = ""
    """Where its metrics page is, if it has one."""
    log: list[str] = field(default_factory=list)

    def cpu_seconds(self) -> float:
        """Processor time of all its threads so far, in the kernel's ticks (10 ms)."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS

    def resident_bytes(self) -> int:
        """Resident memory."""
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * _PAGE


@contextmanager
def pinned(cores: Iterable[int]) -> Iterator[None]:
    """Keep this thread, and what it starts meanwhile, on these cores while the block runs."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def running(
    module: str,
    *arguments: object,
    cores: Iterable[int] | None = None,
    prefix: Sequence[str] = (),
    ready: str = "listening on",
    python: Sequence[str] = (),
    stdin: int | None = None,
    stdout: int | None = None,
) -> Iterator[Program]:
    """A module of ours that runs until SIGTERM, from the time when its log says ``ready``.

    cores: what it is kept to. prefix: a command that runs it, such as ``ip netns exec``. python: what Python
    runs in its place. stdin, stdout: as of ``subprocess.Popen``. Raises UnavailableError with its log if it
    ends before it is ready.
    """
    command = [*prefix, sys.executable, *(python or ("-m", module)), *map(str, arguments)]
    with pinned(os.sched_getaffinity(0) if cores is None else cores):
        process = subprocess.Popen(
            command, stdin=stdin, stdout=stdout, stderr=subprocess.PIPE, text=True, bufsize=1
        )
    with process:
        try:
            program = Program(process)
            assert process.stderr is not None
            for line in process.stderr:
                program.log.append(line.strip())
                if found := re.search(_LISTENING, line):
                    program.address = found[1]
                if found := re.search(_METRICS, line):
                    program.metrics = found[1]
                if ready in line:
                    break
            else:
                raise UnavailableError(f"{module} did not start: {' / '.join(program.log)}")
            threading.Thread(target=lambda: program.log.extend(process.stderr or ()), daemon=True).start()
            yield program
        finally:
            process.terminate()
            try:
                process.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()


def running_server(
    bundle: Path, *flags: object, cores: Iterable[int] | None = None
) -> AbstractContextManager[Program]:
    """A ``cloud-server`` on a free port of loopback."""
    return running("offramp.server.app", "--bundle", bundle, "--listen", "127.0.0.1:0", *flags, cores=cores)
