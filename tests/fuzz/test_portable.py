"""The kernel gives the golden bytes on other CPUs, in other byte orders, and in plain C.

Where a cross compiler or its emulator is missing the test is skipped and says which
(Debian: ``gcc-aarch64-linux-gnu``, ``gcc-arm-linux-gnueabihf``, ``gcc-s390x-linux-gnu``, ``qemu-user``).
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from offramp.common.codec.run_huffman import RunTables

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
VECTORS = json.loads((ROOT / "tests" / "golden" / "codec.json").read_bytes())
WARNINGS = ["-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Werror", "-pedantic"]
SOURCES = ("huffman.c", "run_huffman.c", "rans.c", "context.c")
KERNEL = [str(ROOT / "common" / "codec" / "kernel" / name) for name in SOURCES]

TARGETS = {
    "native": (["gcc"], []),
    "native-in-plain-c": (["gcc", "-DOFFRAMP_PORTABLE"], []),
    "aarch64": (["aarch64-linux-gnu-gcc", "-static"], ["qemu-aarch64"]),
    "armhf-32-bit": (["arm-linux-gnueabihf-gcc", "-static"], ["qemu-arm"]),
    "s390x-big-endian": (["s390x-linux-gnu-gcc", "-static"], ["qemu-s390x"]),
    "clang-with-sanitizers": (["clang", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"], []),
}


def line(vector: dict[str, Any]) -> str:
    """One vector as ``golden_check.c`` reads it."""
    shape = np.array(vector["shape"])
    # A context model has no map; something must stand in its place.
    channel_map = np.array(vector.get("table_of_channel", [0]), "<u2").tobytes().hex()
    numbers = f"{shape[0]} {shape[1]} {shape[2]} {vector['lanes']} {int(vector['codec'] == 0)}"
    tables = str(vector["tables"])
    if vector["kind"] == "run-huffman":  # as the kernel takes them
        found = RunTables.from_bytes(
            bytes.fromhex(tables), list(vector["table_of_channel"]), list(vector["mode_of_channel"])
        )
        tables = found.to_kernel().hex() + " " + found.mode_of_channel.tobytes().hex()
    fields = f"{tables} {channel_map} {vector['symbols']} {vector['payload']}"
    return f"{vector['kind']} {numbers} {fields}\n"


def needs(program: str) -> str:
    """The program's path; without it the test is skipped."""
    found = shutil.which(program)
    if found is None:
        pytest.skip(f"{program} is not installed")
    return found


@pytest.mark.parametrize("target", TARGETS)
def test_golden_vectors(target: str, tmp_path: Path) -> None:
    (compiler, *flags), emulator = TARGETS[target]
    command = [*map(needs, emulator), str(tmp_path / "golden_check")]
    options = ["-std=c11", "-O3", *flags, *WARNINGS, "-o", command[-1]]
    subprocess.run([needs(compiler), *options, str(HERE / "golden_check.c"), *KERNEL], check=True)
    checked = subprocess.run(
        command, input="".join(map(line, VECTORS)), text=True, capture_output=True, check=False
    )

    assert (checked.returncode, checked.stdout) == (0, f"{len(VECTORS)} vectors\n"), checked.stderr


def test_a_vector_that_differs_is_found(tmp_path: Path) -> None:
    program = str(tmp_path / "golden_check")
    subprocess.run([needs("cc"), "-o", program, str(HERE / "golden_check.c"), *KERNEL], check=True)
    (vector,) = (vector for vector in VECTORS if vector["name"] == "rans-four-lanes")
    payload = vector["payload"]
    damaged = {**vector, "payload": payload[:40] + ("1" if payload[40] == "0" else "0") + payload[41:]}
    checked = subprocess.run([program], input=line(damaged), text=True, capture_output=True, check=False)

    assert (checked.returncode, checked.stdout) == (1, "vector 0 differs\n")
