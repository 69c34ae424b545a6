"""The exported program computes what the product does: same symbols, decision and datagrams, byte by byte."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from offramp.cli.export_c.emit import digest_crc, literal, write_files
from offramp.cli.export_c.program import make_program
from offramp.common.bundle.load import Bundle, load_bundle
from offramp.common.bundle.unknown import Unknown
from offramp.common.codec.activation import CodecId
from offramp.common.errors import ChecksumError, PeerError
from offramp.common.inputs.pictures import decode
from offramp.common.part.answer import both_exits
from offramp.common.part.engine import Engine
from offramp.common.part.unknown import UnknownScore, features
from offramp.common.wire.datagram import Datagrams, Reply, crc24
from offramp.common.wire.seal import DeviceKey
from tests.cli.export_c import toy_heads
from tests.cli.export_c.toy_heads import image_record, parsed, reply_record, run, threshold_record

ROOT = Path(__file__).parents[3]
CLOSE = 5e-7
"""Relative: how far two probabilities may be apart (docs/reference/microcontroller.md)."""


def expected(bundle: Bundle, images: NDArray[np.uint8]) -> list[tuple[int, float, bytes]]:
    """What the product says of these images, were all sent: class, confidence, datagram."""
    symbols, probabilities = Engine(bundle).head(images)
    datagrams = Datagrams(bundle.digest, len(bundle.manifest.classes), len(bundle.manifest.parts))
    return [
        (int(each.argmax()), float(each.max()), datagrams.request(number, *bundle.codec.encode(sent)))
        for number, (sent, each) in enumerate(zip(symbols, probabilities, strict=True))
    ]


def check(bundle: Bundle, program: Path, images: NDArray[np.uint8]) -> list[bytes]:
    """All images sent, and then decided by the bundle's threshold; returns the datagrams."""
    wanted = expected(bundle, images)
    records = [image_record(each) for each in images]
    first, *lines = run(program, [threshold_record(1), *records])
    assert first == "threshold 0"
    found = [parsed(line) for line in lines]
    assert [(each.best, each.datagram) for each in found] == [(best, data) for best, _, data in wanted]
    assert np.allclose([each.confidence for each in found], [p for _, p, _ in wanted], rtol=CLOSE, atol=0)
    threshold = np.float32(bundle.manifest.threshold)
    decided = [bool(parsed(line).datagram) for line in run(program, records[:60])]
    assert decided == [not np.float32(p) > threshold for _, p, _ in wanted[:60]]
    return [each.datagram for each in found]


@pytest.mark.parametrize("codec", ["rans", "context", "huffman", "run-huffman", "raw"])
def test_an_awkward_network_gives_the_same_bytes(codec: str, tmp_path: Path) -> None:
    """Odd sides, uneven borders, a kernel over columns; with each codec, and where it is longer than raw."""
    bundle = toy_heads.write(tmp_path / "bundle", codec)
    program = toy_heads.build(make_program(bundle), tmp_path / "c", *toy_heads.SANITIZERS)

    sent = check(bundle, program, toy_heads.images(40))

    used = {data[0] & 3 for data in sent}
    assert used == ({CodecId.RAW} if codec == "raw" else {CodecId.BUNDLE, CodecId.RAW}), (
        "tests less than it says"
    )


def test_unknown_images_are_those_of_the_product(tmp_path: Path) -> None:
    """With a centre for each class, and one for all; half of the images are beyond the limit."""
    images = toy_heads.images(40)
    symbols, probabilities = Engine(toy_heads.write(tmp_path / "plain", "raw")).head(images)
    found = features(symbols)
    for name, centres in (("one", found[:1]), ("each", found[:3])):
        unknown: dict[str, Any] = {
            "centres": centres.tolist(),
            "deviations": (found.std(axis=0) + 0.5).tolist(),
            "threshold": 0.0,
            "false_alarms": 0.05,
        }
        away = UnknownScore(Unknown.model_validate(unknown)).scores(symbols, probabilities)
        unknown["threshold"] = float(np.sort(away)[19:21].mean())
        bundle = toy_heads.write(tmp_path / name, "raw", unknown=unknown)
        flags = toy_heads.SANITIZERS if name == "each" else ("-O1",)
        program = toy_heads.build(make_program(bundle), tmp_path / f"c-{name}", *flags)

        lines = run(program, [image_record(each) for each in images])

        assert [line.endswith(" unknown") for line in lines] == (away > unknown["threshold"]).tolist()
        assert sum(line.endswith(" unknown") for line in lines) == 20


def test_replies_are_read_as_the_product_reads_them(tmp_path: Path) -> None:
    """Many replies, half of them damaged, under the sanitizers: the same answers, or refused alike."""
    bundle = toy_heads.write(tmp_path / "bundle", "raw", sent_answer="both")
    program = toy_heads.build(make_program(bundle), tmp_path / "c", *toy_heads.SANITIZERS)
    datagrams, rng = Datagrams(bundle.digest, 3, 2), np.random.default_rng(5)
    image = toy_heads.images(1)[0]
    _, probabilities = Engine(bundle).head(image[None])
    records, wanted = [threshold_record(1)], []
    for number in range(1500):
        made = Reply(
            number if rng.random() < 0.9 else int(rng.integers(65536)),
            int(rng.integers(3)),
            int(rng.integers(256)) / 255,
            int(rng.integers(3)),
            bool(rng.integers(2)),
            int(rng.integers(0, 20)) if rng.random() < 0.2 else 0,
        )
        data = bytearray(datagrams.reply(made))
        if rng.random() < 0.5:
            data = _damaged(data, bundle.digest, rng)
        records += [image_record(image), reply_record(bytes(data))]
        wanted.append(_as_read(datagrams, bytes(data), number, probabilities))
    records += [reply_record(bytes(data)) for _ in range(2)]
    _, *lines = run(program, records)

    found = [tuple(line.split()[1:]) for line in lines if line.startswith("reply")]
    assert len({status for status, *_ in wanted}) >= 5, "tests less than it says"
    for mine, theirs in zip(found, wanted, strict=False):
        assert int(mine[0]) == theirs[0]
        if theirs[0] == 0:
            (confidence,) = struct.unpack(">f", bytes.fromhex(mine[2]))
            assert (int(mine[1]), int(mine[3])) == theirs[1:3]
            assert confidence == pytest.approx(theirs[3], rel=1e-5)
    assert found[-1][0] in ("3", "4", "5"), "a reply is taken once"


def test_with_a_key_datagrams_are_sealed_and_replies_have_to_be(tmp_path: Path) -> None:
    """The product's bytes, also where a number needs four of them; one flipped bit, or no key: refused."""
    bundle = toy_heads.write(tmp_path / "bundle", "context")
    program = toy_heads.build(make_program(bundle), tmp_path / "c", *toy_heads.SANITIZERS)
    datagrams, key, device, first = (
        Datagrams(bundle.digest, 3, 2),
        DeviceKey(bytes(range(16))),
        40_000,
        0xFFFFFFF8,
    )
    images = toy_heads.images(9)
    symbols, _ = Engine(bundle).head(images)
    key_record = b"K" + struct.pack("<HI", device, first) + bytes(range(16))
    records, statuses = [threshold_record(1), key_record], []
    for number, image in enumerate(images[:8], first):
        right = datagrams.reply(Reply(number, 2, 0.4), device, key, b"ab")
        flipped = bytearray(right)
        flipped[3 + number % (len(right) - 3)] ^= 1
        plain = datagrams.reply(Reply(number % 65536, 2, 0.4))
        replies = [
            bytes(flipped),
            plain,
            datagrams.reply(Reply(number - 1, 2, 0.4), device, key),
            right,
            right,
        ]
        records += [image_record(image), *map(reply_record, replies)]
        statuses += ["4", "3", "5", "0", "5"]
    lines = run(program, records)

    assert lines[1] == "key 0"
    sent = [parsed(line).datagram for line in lines if line.startswith("image")]
    assert sent == [
        datagrams.request(number, *bundle.codec.encode(each), device, key)
        for number, each in enumerate(symbols[:8], first)
    ]
    assert [line.split()[1] for line in lines if line.startswith("reply")] == statuses
    # The key is used up: the program ends, as it does where a call fails.
    done = subprocess.run(
        [program], input=b"".join([*records, image_record(images[8])]), check=False, timeout=100
    )
    assert done.returncode == 1


def _damaged(data: bytearray, digest: bytes, rng: np.random.Generator) -> bytearray:
    kind = rng.integers(4)
    if kind == 0:
        data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
    elif kind == 1:
        data = data[: rng.integers(len(data))]
    elif kind == 2:
        data += bytes(rng.integers(0, 256, int(rng.integers(1, 300)), np.uint8))
    else:
        # With a right checksum: only what it says is wrong.
        data = bytearray(rng.integers(0, 256, int(rng.integers(3, 8)), np.uint8))
        data[0] = 0x24 | int(rng.integers(4))
        data += crc24(bytes(data), crc24(digest)).to_bytes(3, "big")
    return data


def _as_read(
    datagrams: Datagrams, data: bytes, number: int, early: NDArray[np.float32]
) -> tuple[int, int, int, float]:
    """The status that the C program has for a reply, with its class, part and confidence."""

    def status(code: int) -> tuple[int, int, int, float]:
        return code, 0, 0, 0.0

    fields = len(data) - 6
    if fields < 1 or data[0] >> 5 != 1 or data[0] & 0x1C != 4 or data[0] & 3 == 3:
        return status(3)
    if fields != {0: 2, 1: 3, 2: 1}[data[0] & 3]:
        return status(3)
    try:
        read = datagrams.read_reply(data)
    except ChecksumError:
        return status(4)
    except PeerError:
        return status(5 if int.from_bytes(data[1:3], "little") != number else 3)
    if read.sequence != number:
        return status(5)
    if read.error:
        return status(6)
    joint = both_exits(early, np.array([read.class_index]), np.array([read.confidence], np.float32))[0]
    return 0, int(joint.argmax()), read.part or 2, float(joint.max())


def digits(count: int | None = None) -> NDArray[np.uint8]:
    """The digits bundle's test images, uint8 [N, 3, 32, 32]."""
    bundle = load_bundle(ROOT / "models/digits-mobilenetv2-exit12")
    files = sorted((ROOT / "examples/digits").rglob("*.png"))[:count]
    return np.stack([decode(file.name, file.read_bytes(), bundle.manifest.preprocessing) for file in files])


def test_all_test_images_of_the_digits_bundle(tmp_path: Path) -> None:
    bundle = load_bundle(ROOT / "models/digits-mobilenetv2-exit12")
    images = digits()
    assert len(images) == 364
    program = toy_heads.build(make_program(bundle), tmp_path / "c", "-O3")

    check(bundle, program, images)


def test_a_rate_trained_bundle(tmp_path: Path) -> None:
    """The CIFAR-10 one: three residual blocks, a branch for the exit, the context coder."""
    bundle = load_bundle(ROOT / "models/cifar10-mobilenetv2-rate")
    program = toy_heads.build(make_program(bundle), tmp_path / "c", "-O3")

    check(bundle, program, np.concatenate([digits(6), toy_heads.images(6, 1, (32, 32))]))


TOOLS = [tool for tool in ("arm-none-eabi-gcc", "qemu-system-arm") if shutil.which(tool) is None]


@pytest.mark.skipif(bool(TOOLS), reason=f"needs {', '.join(TOOLS)}")
def test_firmware_on_a_cortex_m4() -> None:
    """By the script of the published table: the product's answers, no heap, no double precision."""
    command = [
        "runs/microcontroller.py",
        "models/digits-mobilenetv2-exit12",
        "examples/digits",
        "--count",
        "4",
    ]
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=False, timeout=200
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)

    assert (found["images"], found["same_class_and_datagram"], found["same_decision"]) == (4, 4, 4)
    assert found["heap_or_double_precision"] == []
    assert found["macs"] < found["instructions_mean"] < 8 * found["macs"]
    layers = {layer["name"]: layer for layer in found["layers"]}
    whole = sum(layer["instructions"] for layer in layers.values())
    assert whole == pytest.approx(found["instructions_mean"], rel=0.01)
    assert layers["block3.C1"]["macs"] < layers["block3.C1"]["instructions"] < found["instructions_mean"] / 4
    assert 0 < layers["exit, coder and datagram"]["instructions"] < found["instructions_mean"] / 20
    cycles = found["cycles_an_instruction"]
    assert 1 < cycles["least"] < cycles["middle"] < cycles["most"] < 2


AARCH64 = [tool for tool in ("aarch64-linux-gnu-gcc", "qemu-aarch64") if shutil.which(tool) is None]


@pytest.mark.skipif(bool(AARCH64), reason=f"needs {', '.join(AARCH64)}")
def test_a_static_program_for_aarch64(tmp_path: Path) -> None:
    """The product's bytes on another processor, and less than 1 MB."""
    bundle = load_bundle(ROOT / "models/digits-mobilenetv2-exit12")
    for name, data in write_files(make_program(bundle)).items():
        (tmp_path / name).write_bytes(data)
    subprocess.run(
        ["make", "-s", "CC=aarch64-linux-gnu-gcc", "CFLAGS=-O2 -static -s"], cwd=tmp_path, check=True
    )
    built = tmp_path / "build" / "offramp-head"
    emulated = tmp_path / "emulated"
    emulated.write_text(f"#!/bin/sh\nexec qemu-aarch64 '{built}'\n")
    emulated.chmod(0o755)

    check(bundle, emulated, digits(3))
    assert built.stat().st_size < 1_000_000


@pytest.mark.skipif(shutil.which("cppcheck") is None, reason="needs cppcheck")
def test_cppcheck_finds_nothing(tmp_path: Path) -> None:
    for name, data in write_files(make_program(toy_heads.write(tmp_path / "bundle"))).items():
        (tmp_path / name).write_bytes(data)
    checks = "--enable=warning,portability,performance --error-exitcode=1 --std=c11 -DOFFRAMP_NO_HEAP -q"
    files = [
        "offramp.c",
        "offramp_seal.c",
        "offramp_layers.c",
        "offramp_rans.c",
        "rans.c",
        "main.c",
        "port_linux.c",
        "port_mps2.c",
    ]
    done = subprocess.run(
        ["cppcheck", *checks.split(), *files], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_strangers_names_stay_inside_their_string(tmp_path: Path) -> None:
    bundle = toy_heads.write(tmp_path / "bundle", "raw", classes=['a"; int x', "b\\", "*/ é"])
    model = write_files(make_program(bundle))["offramp_model.c"].decode()

    assert '"a\\042\\073 int x", "b\\134", "\\052/ \\303\\251"' in model
    assert literal("a?") == '"a\\077"'


def test_the_digests_part_of_the_checksum() -> None:
    assert digest_crc(bytes(range(32))) == crc24(bytes(range(32)))
