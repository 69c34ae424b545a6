"""The device image for arm64, built and run under QEMU: what it answers and sends, against x86-64.

``check_containers.py`` calls it. Both images come from one Dockerfile, so only the processor differs.
"""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import emulation
import engine
from engine import DEPLOY, ROOT, Engine, expect, say, until

BUNDLE = ROOT / "models" / "digits-mobilenetv2-exit12"
IMAGES = ROOT / "examples" / "digits"
BASE = "offramp-check/debian:arm64"
TAG = "offramp/edge-device:arm64"
HERE = "offramp/edge-device"
SERVER = "offramp/cloud-server"
COUNT = 40
"""Pictures: the first so many by name. QEMU takes about a second for each."""
PROCESSORS = {"max": True, "cortex-a72": False}
"""What QEMU acts as, and whether that has dot and matrix products of bytes; ONNX Runtime uses them."""
THRESHOLD = "0.999"
"""So that some of them are sent."""
Lines = Sequence[dict[str, Any]]


def frames(
    docker: Engine, image: str, pictures: Path, *options: str
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What runs there, and what its head says of each picture (``frames.py``)."""
    output = docker.docker(
        *("run", "--rm", "--network", "none", "--read-only", *options),
        *("--volume", f"{DEPLOY / 'frames.py'}:/frames.py:ro"),
        *("--volume", f"{BUNDLE}:/bundle:ro", "--volume", f"{pictures}:/images:ro"),
        *("--entrypoint", "python3", image, "/frames.py", COUNT),
    )
    first, *lines = (json.loads(line) for line in output.splitlines())
    return first, lines


def differing(here: Lines, there: Lines, key: str) -> list[str]:
    """Names of the pictures for which two machines do not say the same. Raises Failed for other pictures."""
    names = [line["name"] for line in here]
    expect(names == [line["name"] for line in there], f"pictures {names[:3]} … here, others there")
    return [one["name"] for one, other in zip(here, there, strict=True) if one[key] != other[key]]


def check_frames(docker: Engine, pictures: Path) -> None:
    """The same classes, symbols and messages, byte for byte, whichever instructions the processor has."""
    machine, here = frames(docker, HERE, pictures)
    expect(machine["machine"] == "x86_64" and len(here) == COUNT, f"{HERE}: {machine}, {len(here)} pictures")
    for processor, products in PROCESSORS.items():
        options = (*emulation.options(docker.work), "--env", f"QEMU_CPU={processor}")
        other, there = frames(docker, TAG, pictures, *options)
        wanted = {**machine, "machine": "aarch64", "dot_products": products, "matrix_products": products}
        expect(other == wanted, f"{TAG}: {other}, expected {wanted}")
        unlike = {key: differing(here, there, key) for key in ("class", "symbols", "frame")}
        shift = max(abs(one["confidence"] - two["confidence"]) for one, two in zip(here, there, strict=True))
        say(
            f"aarch64 ({processor}), ONNX Runtime {other['onnxruntime']}: of {COUNT} pictures "
            + ", ".join(f"{len(names)} differ in {key}" for key, names in unlike.items())
            + f"; confidence by {shift:.1e} at most"
        )
        expect(not any(unlike.values()), f"aarch64 ({processor}) differs from x86_64: {unlike}")


def free_port() -> int:
    """A port of this machine that nobody has."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        return int(holder.getsockname()[1])


def answers(docker: Engine, image: str, pictures: Path, port: int, *options: str) -> list[dict[str, Any]]:
    """What a device in a container prints of each picture, without its times."""
    output = docker.docker(
        *("run", "--rm", "--network", "host", "--read-only", "--cap-drop", "all", *options),
        *("--env", "OFFRAMP_METRICS_HOST=127.0.0.1", "--env", f"OFFRAMP_METRICS_PORT={free_port()}"),
        *("--volume", f"{BUNDLE}:/bundle:ro", "--volume", f"{pictures}:/images:ro", image),
        *("--server", f"127.0.0.1:{port}", "--timeout", "60", "--threshold", THRESHOLD, "--json", "/images"),
    )
    kept = ("index", "image", "label", "confidence", "source", "payload_bytes")
    found = [json.loads(line) for line in output.splitlines()]
    return sorted(
        ({key: each[key] for key in kept} for each in found if "index" in each),
        key=lambda each: each["index"],
    )


def check_stream(docker: Engine, pictures: Path) -> None:
    """A device for arm64 against a server for x86-64: the answers that a device of this machine gets."""
    port = free_port()
    server = docker.docker(
        *("run", "--detach", "--network", "host", "--read-only", "--cap-drop", "all"),
        *("--env", "OFFRAMP_METRICS_HOST=127.0.0.1", "--env", f"OFFRAMP_METRICS_PORT={free_port()}"),
        *("--env", f"OFFRAMP_LISTEN=127.0.0.1:{port}", "--volume", f"{BUNDLE}:/bundle:ro", SERVER),
    ).strip()
    try:
        until(lambda: listens(port), "the server to listen")
        here = answers(docker, HERE, pictures, port)
        there = answers(docker, TAG, pictures, port, *emulation.options(docker.work))
    finally:
        docker.docker("rm", "--force", server)
    sources = [each["source"] for each in there]
    expect(
        set(sources) == {"early_exit", "server"}, f"sources {sources}, expected early exits and the server"
    )
    unlike = [f"{one} here, {two} there" for one, two in zip(here, there, strict=True) if not alike(one, two)]
    expect(not unlike, f"aarch64 and x86_64 get other answers: {unlike[:3]}")
    say(
        f"edge-device for arm64 against cloud-server for x86-64: {len(there)} pictures, "
        f"{sources.count('server')} answered by the server, the same as a device for x86-64 gets"
    )


def alike(one: dict[str, Any], two: dict[str, Any]) -> bool:
    """The same answer, for the same bytes; confidences are of floats and may differ in their last digits."""
    near = abs(one["confidence"] - two["confidence"]) < 1e-4
    return near and {**one, "confidence": 0} == {**two, "confidence": 0}


def listens(port: int) -> bool:
    """Whether somebody does."""
    with socket.socket() as caller:
        return caller.connect_ex(("127.0.0.1", port)) == 0


def check_arm64(docker: Engine, mirror: str) -> None:
    """All of it; needs the images for this machine."""
    pictures = docker.work / "pictures"
    shutil.rmtree(pictures, ignore_errors=True)
    pictures.mkdir()
    for path in sorted(IMAGES.glob("*.png"))[:COUNT]:
        shutil.copy(path, pictures)
    with emulation.arm64():
        engine.import_base(docker, mirror, "arm64", BASE)
        engine.build(docker, [("device", TAG)], "--platform", "linux/arm64", "--build-arg", f"DEBIAN={BASE}")
        check_frames(docker, pictures)
        check_stream(docker, pictures)
