"""Who may import whom, for every module that there is: from the source, and in a fresh process."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {"common", "link", "device", "server", "training", "bench", "cli", "ray", "v1"}
RAW = PACKAGES - {"v1", "ray"} | {"proto", "deploy"}
"""What nobody may import without ``offramp.``; ``import ray`` is another project."""
ALLOWED = {
    "common": {"common", "v1"},
    "link": {"common", "v1", "link"},
    "device": {"common", "v1", "link", "device"},
    "server": {"common", "v1", "link", "server"},
    "training": {"common", "v1", "training"},
    "ray": {"common", "v1", "link", "server", "ray"},
    # What measures and what a user calls may use all of them.
    "bench": PACKAGES - {"cli"},
    "cli": PACKAGES,
}
HEAVY = {"torch", "onnx", "onnxscript", "sklearn", "scipy"}

CLOSURE = """
import importlib, json, sys
for name in json.loads(sys.argv[1]):
    importlib.import_module(name)
print(json.dumps(sorted(sys.modules)))
"""


def modules(package: str) -> Iterator[tuple[str, Path]]:
    """Every module of a package: its dotted name and its file."""
    folder = ROOT / ("deploy/ray" if package == "ray" else package)
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).with_suffix("").parts
        yield ".".join(("offramp", package, *parts)), path


def names(package: str) -> list[str]:
    return [name for name, _ in modules(package)]


def imported(path: Path) -> Iterator[str]:
    """Every module that a file imports anywhere in it, lazily or for type checking only as well."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def loaded_by(wanted: list[str]) -> set[str]:
    """The modules that a fresh process has after it imported these."""
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", CLOSURE, json.dumps(wanted)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT / "tests",
    )
    assert run.returncode == 0, run.stderr
    found: list[str] = json.loads(run.stdout)
    return set(found)


def siblings(found: set[str]) -> set[str]:
    """Which of our packages these modules are from."""
    return {name.split(".")[1] for name in found if name.startswith("offramp.")} & PACKAGES


def test_a_server_without_pictures_needs_no_pillow() -> None:
    """And none of its modules brings it along: it is an extra of its own."""
    found = loaded_by(["offramp.server.app", *names("server")])
    assert not {name.partition(".")[0] for name in found} & {"PIL"}


def test_there_is_something_to_check() -> None:
    for package in ("common", "link", "device", "server", "training"):
        assert names(package)


@pytest.mark.parametrize("package", ALLOWED)
def test_the_source_imports_allowed_packages_only(package: str) -> None:
    for name, path in modules(package):
        for module in imported(path):
            parts = module.split(".")
            # `import ray` is another project.
            assert parts[0] not in RAW, f"{name} imports {module}, which is offramp.{module}"
            if parts[0] == "offramp" and len(parts) > 1:
                assert parts[1] in ALLOWED[package], f"{name} imports {module}"


@pytest.mark.parametrize("package", ["common", "link", "device", "server"])
def test_a_process_that_imports_all_of_it_loads_allowed_packages_only(package: str) -> None:
    found = loaded_by(names(package))

    assert siblings(found) <= ALLOWED[package]
    assert found.isdisjoint(HEAVY)


@pytest.mark.parametrize("program", ["device", "server"])
def test_no_module_of_a_program_names_the_training_libraries(program: str) -> None:
    """Not even lazily: the programs run where these are not installed."""
    for package in ("common", "link", program):
        for name, path in modules(package):
            roots = {module.split(".")[0] for module in imported(path)}
            assert roots.isdisjoint(HEAVY), f"{name} imports {roots & HEAVY}"


@pytest.mark.parametrize("app", ["offramp.device.app", "offramp.server.app", "offramp.cli.app"])
def test_a_program_starts_without_what_its_help_does_not_need(app: str) -> None:
    assert loaded_by([app]).isdisjoint(HEAVY | {"onnxruntime"})


def test_the_wire_is_pure() -> None:
    """Codec and frames are functions of bytes: nothing that opens a socket, no runtime."""
    pure = [
        f"offramp.common.{name}" for name in ("codec.huffman", "codec.activation", "errors", "wire.frame")
    ]

    assert loaded_by(pure).isdisjoint(HEAVY | {"grpc", "onnxruntime", "asyncio", "prometheus_client"})
