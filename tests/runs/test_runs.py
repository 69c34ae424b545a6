"""Every script of a published table runs: benchmarks for real and small, trainings as far as their commands.

A script in runs/, an ``offramp bench`` or a program of research/ without an entry here fails
``test_nothing_is_left_out``.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from offramp.bench.bench import BENCHMARKS

ROOT = Path(__file__).parents[2]
SECONDS = 300
"""After which a script hangs."""

MEASURING = {
    "bench-codec.sh": [
        "--seconds",
        "0.01",
        "--rounds",
        "1",
        "--frames",
        "48",
        "--shapes",
        "8x8x8",
        "--bits",
        "5",
        "--bundle",
    ],
    "bench-device.sh": ["--seconds", "0.5", "--rate", "40", "--coalesce", "100"],
    "bench-extras.sh": [
        "--rounds",
        "1",
        "--slices",
        "2",
        "--count",
        "40",
        "--seconds",
        "0.3",
        "--rate",
        "40",
        "--audit",
        "1",
    ],
    "bench-head.sh": ["--exits", "5", "--rounds", "1", "--runs", "2", "--images", "4"],
    "bench-serve.sh": ["--seconds", "0.1", "--streams", "2", "--batches", "1"],
    "gateway-load.sh": ["--devices", "20", "--seconds", "1", "--rate", "40"],
    "soak.sh": ["--seconds", "2", "--connects", "4", "--rounds", "3", "--rate", "20"],
}
"""Run for real. bench-codec has the case that once ended in a traceback, a payload of two lanes' size."""
PARSED: dict[str, list[list[str]]] = {
    "cifar10.sh": [[], ["--short", "--parallel", "--precision", "bfloat16", "--seconds", "600"]],
    "cifar10-rate.sh": [[], ["--short"]],
    "cifar10-steps.sh": [[]],
    "imagenette.sh": [["--set", "train.base.epochs=41"]],
    "digits.sh": [[]],
}
"""Hours of training: each command is parsed, see ``parsed.py``. Those with --data get files."""
CHECKED = {
    "architectures.sh": "needs timm, torchvision and transformers, which are the user's own",
    "bench-tiers.sh": "needs bundles of three parts; tests/research/links/test_tiers.py runs its program",
    "bench-chain.sh": "needs a bundle of three parts; tests/research/links/test_hop.py runs its program",
    "bench-link.sh": "needs root; tests/research/links/test_link.py runs its program",
    "bench-steering.sh": "needs root; tests/research/links/test_steering.py runs its program",
    "faults-chain.sh": "takes minutes; tests/faults/test_chain_pairs.py has the cheapest combinations",
    "field.sh": "needs a data set; tests/deploy/test_dark_stream.py has its programs",
    "footprint.sh": "installs every extra from the package index",
    "image-size.sh": "bootstraps Debian and builds containers",
    "imagenette-lite0.sh": "trains for an hour; tests/cli/test_split.py runs the command whole",
    "microcontroller.sh": "needs a cross compiler and QEMU; tests/cli/export_c/test_emit.py runs its program",
    "ray.sh": "needs Ray, 0.7 GB: make test-ray has its tests",
    "spoken-digits.sh": "needs recordings; tests/cli/test_split_sounds.py runs the commands whole",
    "three-parts-cifar10.sh": "the same on another data set",
    "three-parts.sh": "trains for an hour; tests/training/split/test_crossings.py fits several codes",
    "unknown.sh": "needs four data sets",
    "wire-bytes.sh": "needs a packet socket and a broker; tests/gateway has its programs",
    "trashnet.sh": "trains for an hour; tests/cli/test_split.py runs the command whole",
    "trashnet-small.sh": "the same with other sizes, and export-c, which tests/cli/export_c has",
}
"""Only their syntax is checked, and why."""
PROGRAMS = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__")
    for path in (ROOT / "research").rglob("*.py")
    if "\nPROGRAM = " in path.read_text()
}
"""What a user runs of research/."""
PARTS = {"then-pictures.sh", "three-parts-split.sh"}
"""Called by scripts above."""


def test_nothing_is_left_out() -> None:
    scripts = {path.name: path.read_text() for path in (ROOT / "runs").glob("*.sh")}

    assert set(scripts) == MEASURING.keys() | PARSED.keys() | CHECKED.keys() | PARTS
    measured = "\n".join(scripts[name] for name in MEASURING)
    assert [name for name in BENCHMARKS if f"offramp bench {name} " not in measured] == []
    assert [name for name in PROGRAMS if f"python -m {name} " not in "\n".join(scripts.values())] == []
    for part in PARTS:
        assert any(f"runs/{part}" in scripts[name] for name in PARSED.keys() | CHECKED.keys()), part


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout in which scripts may leave what they make."""
    shutil.copytree(ROOT / "runs", tmp_path / "runs")
    for name in ("models", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


def run(checkout: Path, name: str, arguments: list[str]) -> str:
    """What the script prints."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with (checkout / "output").open("w+") as output:
        process = subprocess.Popen(
            [checkout / "runs" / name, *arguments], env=os.environ | {"PATH": path, "PYTHONPATH": str(ROOT)},
            cwd=checkout, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            status = process.wait(SECONDS)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        output.seek(0)
        text = output.read()
    # So short a soak is all warm-up: that it grew is a verdict, not a fault.
    verdict = name == "soak.sh" and "grew: " in text and "accounted: True" in text
    assert (status == 0 or verdict) and "Traceback" not in text, f"{name}: status {status}\n{text}"
    return text


@pytest.mark.parametrize("name", MEASURING)
def test_a_measuring_script_runs(checkout: Path, name: str) -> None:
    for needed in ("constriction", "lz4", "matplotlib", "zstandard", "torch"):
        pytest.importorskip(needed)

    text = run(checkout, name, MEASURING[name])

    assert any(character.isdigit() for character in text)


@pytest.mark.parametrize(
    ("name", "arguments"), [(name, arguments) for name, calls in PARSED.items() for arguments in calls]
)
def test_every_command_of_a_training_script_is_parsed(
    checkout: Path, name: str, arguments: list[str]
) -> None:
    pytest.importorskip("torch")
    for name_of_tool in ("offramp", "python"):
        tool = checkout / ".venv" / "bin" / name_of_tool
        tool.parent.mkdir(parents=True, exist_ok=True)
        tool.write_text(f'#!/bin/sh\nexec {sys.executable} -m tests.runs.parsed "$@"\n')
        tool.chmod(0o755)
    if name != "digits.sh":
        for file in ("train", "train-0", "train-1", "test", "val"):
            (checkout / f"{file}.parquet").touch()
        arguments = [*arguments, "--data", str(checkout)]
    else:
        (checkout / "examples").unlink()
        (checkout / "models").unlink()

    text = run(checkout, name, arguments)

    assert "offramp train parsed" in text or name == "cifar10-steps.sh"
    if "then-pictures" in (ROOT / "runs" / name).read_text():
        assert text.count("offramp demo parsed") >= 2
        assert any((checkout / "build").glob("*/report/then-pictures-*.txt"))


@pytest.mark.parametrize("name", CHECKED)
def test_a_script_that_cannot_run_here_is_well_formed(name: str) -> None:
    script = ROOT / "runs" / name
    subprocess.run(["sh", "-n", str(script)], check=True)
    for program in [
        word for word in script.read_text().split() if word.startswith("runs/") and word.endswith(".py")
    ]:
        compile((ROOT / program).read_bytes(), program, "exec")
