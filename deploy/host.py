"""What a check may not leave changed on the machine that it ran on."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from engine import expect, mounts

BINFMT = Path("/proc/sys/fs/binfmt_misc")
FORWARD = Path("/proc/sys/net/ipv4/ip_forward")
Findings = dict[str, list[str]]


def rules(text: str) -> list[str]:
    """Of what iptables-save prints: chains, policies and rules with their tables, without counters."""
    found, table = [], ""
    for line in text.splitlines():
        if line.startswith("*"):
            table = line[1:]
        # A table that was only looked at is there from then on, with chains that accept all.
        elif re.match(r":(?!\S+ ACCEPT\b)|-A", line):
            found.append(re.sub(r" ?\[\d+:\d+\]", "", f"{table} {line}"))
    return found


def snapshot(work: Path) -> Findings:
    """Firewall, bridges, forwarding, our mounts and programs of other architectures, as they are now."""
    found: Findings = {}
    for program in ("iptables-save", "ip6tables-save"):
        if shutil.which(program) is not None:
            done = subprocess.run([program], capture_output=True, text=True)
            found[f"rules of {program}"] = rules(done.stdout)
    names = (path.name for path in Path("/sys/class/net").iterdir())
    found["bridges"] = sorted(name for name in names if re.match("br-|docker", name))
    found["ip_forward"] = [FORWARD.read_text().strip()]
    found["mounts"] = mounts(work) + mounts(BINFMT)
    found["binfmt_misc"] = sorted(path.name for path in BINFMT.iterdir())
    return found


def changes(before: Findings, after: Findings) -> list[str]:
    """What came and went, a line for each kind."""
    lines = []
    for kind in before:
        gone = [each for each in before[kind] if each not in after[kind]]
        new = [each for each in after[kind] if each not in before[kind]]
        if gone or new:
            lines.append(f"{kind}: new {new}, gone {gone}")
    return lines


@contextmanager
def unchanged(work: Path) -> Iterator[None]:
    """Raise Failed at the end where the machine is not as it was, unless the block has failed already."""
    # A run that was cut off may have left mounts in our own folder, which this one takes away.
    before = snapshot(work) | {"mounts": mounts(BINFMT)}
    yield
    found = changes(before, snapshot(work))
    expect(not found, f"left behind on this machine: {'; '.join(found)}")
