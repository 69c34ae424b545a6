"""A bundle's head as firmware of a Cortex-M4 in QEMU: the product's answers, and what they cost.

    python runs/microcontroller.py models/digits-mobilenetv2-exit12 examples/digits --count 300

Takes `arm-none-eabi-gcc` and `qemu-system-arm`. Every image is sent, so that every datagram is compared
with what the product sends for it. Instructions are counted by QEMU (`-icount`: its clock goes on by
2^SHIFT ns with each), read from the core's system timer. Those of each layer come from a second build, which
reads the timer around every row; what a reading takes is taken off.
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
from microcontroller_cycles import executed
from numpy.typing import NDArray

from offramp.cli.export_c.emit import write_files
from offramp.cli.export_c.program import Program, make_program
from offramp.common.bundle.load import Bundle, load_bundle
from offramp.common.inputs.pictures import decode
from offramp.common.part.engine import Engine
from offramp.common.wire.datagram import Datagrams

SHIFT = 8
TICK_NS = 40
"""The board's clock: 25 MHz."""
LAYERED = 2
"""Images of the second build: a layer takes the same for each but for the coder's part."""
TICKS = "-DOFFRAMP_NO_HEAP -DOFFRAMP_TICKS"
UNWANTED = {"malloc", "_sbrk", "__aeabi_dadd", "__aeabi_dmul", "__aeabi_ddiv", "__aeabi_f2d"}
"""What no firmware may need."""
PICTURES = (".png", ".jpg", ".jpeg", ".webp")
QEMU = [
    *["qemu-system-arm", "-M", "mps2-an386", "-display", "none", "-monitor", "none", "-serial", "none"],
    *["-semihosting-config", "enable=on,target=native", "-kernel", "build/offramp.elf"],
]
LOGGED = ["-d", "in_asm,exec,nochain", "-D", "/dev/stdout"]


def main() -> None:
    """Build, run, compare, print."""
    print(json.dumps(measured(*asked(__doc__, 300)), indent=1))


def asked(description: str, count: int) -> tuple[Bundle, NDArray[np.uint8]]:
    """The bundle and the pictures of it that the command line names, as ``chosen``; count: the default."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--count", type=int, default=count)
    arguments = parser.parse_args()
    bundle = load_bundle(arguments.bundle)
    return bundle, chosen(bundle, arguments.images, arguments.count)


def chosen(bundle: Bundle, folder: Path, count: int) -> NDArray[np.uint8]:
    """So many pictures of a folder, evenly over its names, uint8 [N, 3, H, W] as the head takes them."""
    files = sorted(each for each in folder.rglob("*") if each.suffix.lower() in PICTURES)
    files = [files[i] for i in np.linspace(0, len(files) - 1, min(count, len(files))).round().astype(int)]
    return np.stack([decode(each.name, each.read_bytes(), bundle.manifest.preprocessing) for each in files])


def measured(bundle: Bundle, images: NDArray[np.uint8]) -> dict[str, Any]:
    """Every figure of one bundle."""
    program = make_program(bundle)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        for file, data in write_files(program).items():
            (work / file).write_bytes(data)
        layered = run(work, images[:LAYERED], f"{TICKS} -DOFFRAMP_LAYER_TICKS")
        cycles = cycles_of(work, images[0])
        lines = run(work, images, TICKS)
        sizes, names = (
            subprocess.run(
                [f"arm-none-eabi-{tool}", "build/offramp.elf"],
                cwd=work,
                check=True,
                capture_output=True,
                text=True,
            ).stdout
            for tool in ("size", "nm")
        )
    text, initialised, bss = map(int, re.findall(r"\d+", sizes.splitlines()[1])[:3])
    symbols, probabilities = Engine(bundle).head(images)
    datagrams = Datagrams(bundle.digest, len(bundle.manifest.classes), len(bundle.manifest.parts))
    same = decided = 0
    apart, ticks, sent = 0.0, [], []
    threshold = np.float32(bundle.manifest.threshold)
    for number, (line, mine, early) in enumerate(zip(lines, symbols, probabilities, strict=True)):
        _, best, confidence, _, datagram = line.split()[:5]
        spent = line.partition(" ticks ")[2].split()[0]
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
        "instructions_mean": round(instructions(np.mean(ticks))),
        "ram_bytes": program.ram_bytes,
        "ram_bytes_with_the_test_program": initialised + bss,
        "flash_bytes": text + initialised,
        "whole_tensors_bytes": program.report()["whole_tensors_bytes"],
        "picture_bytes": program.report()["picture_bytes"],
        "heap_or_double_precision": sorted(UNWANTED & set(names.split())),
        "datagram_bytes_mean": round(float(np.mean(sent)), 1),
        "early_exit_rate": float((probabilities.max(axis=1) > threshold).mean()),
        "datagram_bytes": sent,
        "unsure": [not each > threshold for each in probabilities.max(axis=1)],
        "cycles_an_instruction": cycles,
        "layers": of_layers(program, layered, instructions(np.mean(ticks[:LAYERED]))),
    }


def prepare(work: Path, images: NDArray[np.uint8], defines: str) -> None:
    """Compile the firmware, and write what it reads: these images, all to be sent."""
    pixels = [b"I" + np.ascontiguousarray(each.transpose(1, 2, 0)).tobytes() for each in images]
    (work / "offramp.in").write_bytes(b"".join([struct.pack("<cf", b"T", 1.0), *pixels]))
    subprocess.run(["make", "-s", "clean", "firmware", f"DEFINES={defines}"], cwd=work, check=True)


def run(work: Path, images: NDArray[np.uint8], defines: str) -> list[str]:
    """What the firmware says of each image."""
    prepare(work, images, defines)
    subprocess.run([*QEMU, "-icount", f"shift={SHIFT}"], cwd=work, check=True)
    _, *lines = (work / "offramp.out").read_text().splitlines()
    return lines


def cycles_of(work: Path, image: NDArray[np.uint8]) -> dict[str, float]:
    """Cycles of a Cortex-M4 for each instruction, modelled; of the whole program, for one image."""
    prepare(work, image[None], "-DOFFRAMP_NO_HEAP")
    with subprocess.Popen([*QEMU, *LOGGED], cwd=work, stdout=subprocess.PIPE) as qemu:
        assert qemu.stdout is not None
        found = executed(qemu.stdout)
    bounds = {"least": found.least, "middle": found.middle, "most": found.most}
    return {name: round(each / found.instructions, 3) for name, each in bounds.items()}


def instructions(ticks: Any) -> float:
    """Instructions in so many cycles of the timer."""
    return float(ticks) * TICK_NS / 2**SHIFT


def of_layers(program: Program, lines: list[str], whole: float) -> list[dict[str, Any]]:
    """Instructions of each layer, and what is left of the whole: the exit, the coder and the datagram."""
    ticks = np.array([line.partition(" layers ")[2].split() for line in lines], float)
    readings = np.outer(ticks[:, 0], np.bincount(program.schedule.steps))
    spent = (ticks[:, 1:] - readings).mean(axis=0)
    found = [
        {
            "name": layer.name,
            "kind": layer.kind.value.lower(),
            "macs": program.network.macs(layer),
            "instructions": round(instructions(each)),
        }
        for layer, each in zip(program.network.layers, spent, strict=True)
    ]
    rest = round(whole) - sum(each["instructions"] for each in found)
    return [*found, {"name": "exit, coder and datagram", "kind": "", "macs": 0, "instructions": rest}]


if __name__ == "__main__":
    main()
