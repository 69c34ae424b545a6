"""A bundle's head as firmware of a Cortex-M4 in QEMU: the product's answers, and what they cost.

    python runs/microcontroller.py models/digits-mobilenetv2-exit12 examples/digits --count 300

Takes `arm-none-eabi-gcc` and `qemu-system-arm`. Every image is sent, so that every datagram is compared
with what the product sends for it. Instructions are counted by QEMU (`-icount`: its clock goes on by
2^SHIFT ns with each), read from the core's system timer.
"""

from __future__ import annotations

import argparse
import json
import re
import struct
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from offramp.cli.export_c.emit import write_files
from offramp.cli.export_c.program import make_program
from offramp.common.bundle.load import load_bundle
from offramp.common.inputs.pictures import decode
from offramp.common.part.engine import Engine
from offramp.common.wire.datagram import Datagrams

SHIFT = 5
TICK_NS = 40
"""The board's clock: 25 MHz."""
UNWANTED = {"malloc", "_sbrk", "__aeabi_dadd", "__aeabi_dmul", "__aeabi_ddiv", "__aeabi_f2d"}
"""What no firmware may need."""
PICTURES = (".png", ".jpg", ".jpeg", ".webp")
QEMU = "qemu-system-arm -M mps2-an386 -display none -monitor none -serial none"
SEMIHOSTING = "enable=on,target=native"


def main() -> None:
    """Build, run, compare, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--count", type=int, default=300)
    arguments = parser.parse_args()
    print(json.dumps(measured(arguments.bundle, arguments.images, arguments.count), indent=1))


def measured(bundle_path: Path, folder: Path, count: int) -> dict[str, Any]:
    """Every figure of one bundle."""
    bundle = load_bundle(bundle_path)
    files = sorted(each for each in folder.rglob("*") if each.suffix.lower() in PICTURES)
    files = [files[i] for i in np.linspace(0, len(files) - 1, min(count, len(files))).round().astype(int)]
    images = np.stack([decode(each.name, each.read_bytes(), bundle.manifest.preprocessing) for each in files])
    program = make_program(bundle)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        for file, data in write_files(program).items():
            (work / file).write_bytes(data)
        pixels = [b"I" + np.ascontiguousarray(each.transpose(1, 2, 0)).tobytes() for each in images]
        (work / "offramp.in").write_bytes(b"".join([struct.pack("<cf", b"T", 1.0), *pixels]))
        defines = "DEFINES=-DOFFRAMP_NO_HEAP -DOFFRAMP_TICKS"
        subprocess.run(["make", "-s", "firmware", defines], cwd=work, check=True)
        sizes = subprocess.run(
            ["arm-none-eabi-size", "build/offramp.elf"], cwd=work, check=True, capture_output=True, text=True
        ).stdout
        names = subprocess.run(
            ["arm-none-eabi-nm", "build/offramp.elf"], cwd=work, check=True, capture_output=True, text=True
        ).stdout.split()
        run = [*QEMU.split(), "-icount", f"shift={SHIFT}", "-semihosting-config", SEMIHOSTING]
        subprocess.run([*run, "-kernel", "build/offramp.elf"], cwd=work, check=True)
        _, *lines = (work / "offramp.out").read_text().splitlines()
    text, initialised, bss = map(int, re.findall(r"\d+", sizes.splitlines()[1])[:3])
    symbols, probabilities = Engine(bundle).head(images)
    datagrams = Datagrams(bundle.digest, len(bundle.manifest.classes), len(bundle.manifest.parts))
    same = decided = 0
    apart, ticks, sent = 0.0, [], []
    threshold = np.float32(bundle.manifest.threshold)
    for number, (line, mine, early) in enumerate(zip(lines, symbols, probabilities, strict=True)):
        _, best, confidence, _, datagram, _, spent = line.split()
        (probability,) = struct.unpack(">f", bytes.fromhex(confidence))
        wanted = datagrams.request(number, *bundle.codec.encode(mine))
        same += int(bytes.fromhex(datagram) == wanted and int(best) == int(early.argmax()))
        decided += int(bool(np.float32(probability) > threshold) == bool(early.max() > threshold))
        apart = max(apart, abs(probability / float(early.max()) - 1))
        ticks.append(int(spent))
        sent.append(len(wanted))
    return {
        "bundle": bundle.manifest.name,
        "images": len(images),
        "same_class_and_datagram": same,
        "same_decision": decided,
        "confidence_apart_at_most": apart,
        "macs": program.macs,
        "instructions_mean": round(float(np.mean(ticks)) * TICK_NS / 2**SHIFT),
        "ram_bytes": program.ram_bytes,
        "ram_bytes_with_the_test_program": initialised + bss,
        "flash_bytes": text + initialised,
        "whole_tensors_bytes": program.report()["whole_tensors_bytes"],
        "picture_bytes": program.report()["picture_bytes"],
        "heap_or_double_precision": sorted(UNWANTED & set(names)),
        "datagram_bytes_mean": round(float(np.mean(sent)), 1),
        "early_exit_rate": float((probabilities.max(axis=1) > threshold).mean()),
    }


if __name__ == "__main__":
    main()
