"""Programs for arm64 on this machine, while a check runs: Linux' binfmt_misc, Debian's qemu-user-static."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from engine import expect, say

FOLDER = Path("/proc/sys/fs/binfmt_misc")
DEFINITION = Path("/usr/lib/binfmt.d/qemu-aarch64.conf")
CPU = """\
processor\t: {number}
BogoMIPS\t: 100.00
Features\t: fp asimd evtstrm crc32 cpuid
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x0
CPU part\t: 0xd08
CPU revision\t: 3

"""
"""A processor in an ARM's /proc/cpuinfo. QEMU shows this machine's, on which ONNX Runtime crashes."""
NAME = "offramp-check-aarch64"
"""Of our entry alone: what the machine has registered itself stays as it is."""


def definition(text: str) -> str:
    """Debian's line for the kernel, under our name. Raises Failed where it does not open QEMU in advance.

    With F the kernel holds QEMU open, so that it runs in a file system that has none.
    """
    (line,) = (line for line in text.splitlines() if line and line[0] not in "#;")
    _, _, rest = line[1:].partition(line[0])
    flags = line.rpartition(line[0])[2]
    expect("F" in flags, f"{DEFINITION}: has the flags {flags}, expected F among them: qemu-user-static")
    return f":{NAME}:{rest}"


def options(work: Path) -> list[str]:
    """What ``docker run`` needs. Without --init a crash would hang: QEMU as process 1 gets no signals."""
    file = work / "cpuinfo"
    file.write_text("".join(CPU.format(number=number) for number in range(os.cpu_count() or 1)))
    return ["--platform", "linux/arm64", "--init", "--volume", f"{file}:/proc/cpuinfo:ro"]


@contextmanager
def arm64() -> Iterator[None]:
    """For as long, this machine's kernel runs programs for arm64, in containers too. As root."""
    if platform.machine() == "aarch64":
        yield
        return
    expect(DEFINITION.exists(), "qemu-user-static: not installed: deploy/install-checkers.sh containers")
    line = definition(DEFINITION.read_text())
    mounted = not (FOLDER / "register").exists()
    if mounted:
        subprocess.run(["mount", "-t", "binfmt_misc", "binfmt_misc", str(FOLDER)], check=True)
    entry = FOLDER / NAME
    try:
        if entry.exists():  # of a run that was cut off
            entry.write_text("-1")
        (FOLDER / "register").write_text(line)
        say(f"programs for arm64 run here by {line.split(':')[-2]}")
        yield
    finally:
        if entry.exists():
            entry.write_text("-1")
        if mounted:
            subprocess.run(["umount", str(FOLDER)], check=True)
