"""Firmware on a Cortex-M4 → ``offramp gateway`` → ``cloud-server`` → an answer for each unsure image."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from offramp.cli.export_c.emit import write_files
from offramp.cli.export_c.program import make_program
from offramp.common.bundle.load import load_bundle
from offramp.common.part.engine import Engine
from tests.cli.export_c.test_emit import TOOLS, digits
from tests.cli.export_c.toy_heads import image_record, parsed, reply_record, threshold_record
from tests.processes import WAIT, processes

ROOT = Path(__file__).parents[3]
THRESHOLD = 0.999
MAIN = "import sys; from offramp.cli.app import main; sys.exit(main())"
QEMU = "qemu-system-arm -M mps2-an386 -display none -monitor none -serial none -semihosting-config"


@pytest.mark.skipif(bool(TOOLS), reason=f"needs {', '.join(TOOLS)}")
def test_firmware_gets_the_servers_answers(tmp_path: Path) -> None:
    bundle = load_bundle(ROOT / "models/digits-mobilenetv2-exit12")
    engine, images = Engine(bundle), digits(16)
    symbols, early = engine.head(images)
    late = engine.tail(symbols)
    for name, data in write_files(make_program(bundle)).items():
        (tmp_path / name).write_bytes(data)
    subprocess.run(["make", "-s", "firmware"], cwd=tmp_path, check=True)
    for name in ("offramp.in", "offramp.out"):
        os.mkfifo(tmp_path / name)
    unsure = 0
    with processes(bundle.path) as started:
        server = started.server()
        gateway = subprocess.Popen(
            [sys.executable, "-c", MAIN, "gateway", "--stdio", "--bundle", str(bundle.path),
             "--server", server.address, "--metrics-port", "0"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        assert gateway.stdin is not None and gateway.stdout is not None
        board = started.start(
            [*QEMU.split(), "enable=on,target=native", "-kernel", "build/offramp.elf"], cwd=tmp_path
        )
        with (tmp_path / "offramp.in").open("wb", 0) as records, (tmp_path / "offramp.out").open() as lines:
            records.write(threshold_record(THRESHOLD))
            assert lines.readline() == "threshold 0\n"
            for number, image in enumerate(images):
                records.write(image_record(image))
                said = parsed(lines.readline())
                assert said.best == early[number].argmax()
                assert bool(said.datagram) == (not early[number].max() > np.float32(THRESHOLD))
                if not said.datagram:
                    continue
                unsure += 1
                # A record of the pipe: its length, an address of no bytes, the datagram.
                gateway.stdin.write(struct.pack("<HB", len(said.datagram) + 1, 0) + said.datagram)
                gateway.stdin.flush()
                size, address = struct.unpack("<HB", gateway.stdout.read(3))
                assert address == 0
                records.write(reply_record(gateway.stdout.read(size - 1)))
                status, best, _, part, error = lines.readline().split()[1:]
                assert (status, part, error) == ("0", "2", "0")
                assert int(best) == late[number].argmax()
        gateway.stdin.close()
        assert gateway.wait(WAIT) == 0
        gateway.stdout.close()
        assert board.wait() == 0
    assert 3 <= unsure < len(images), "tests less than it says"
