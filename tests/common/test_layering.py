"""Who may import whom, for every module that there is: from the source, and in a fresh process."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {"common", "link", "device", "server", "training", "gateway", "bench", "cli", "ray", "v1"}
RAW = PACKAGES - {"v1", "ray"} | {"proto", "deploy"}
"""What nobody may import without ``offramp.``; ``import ray`` is another project."""
ALLOWED = {
    "common": {"common", "v1"},
    "link": {"common", "v1", "link"},
    "device": {"common", "v1", "link", "device"},
    "server": {"common", "v1", "link", "server"},
    "training": {"common", "v1", "training"},
    "gateway": {"common", "v1", "link", "gateway"},
    "ray": {"common", "v1", "link", "server", "ray"},
    # What measures and what a user calls may use all of them.
    "bench": PACKAGES - {"cli"},
    "cli": PACKAGES,
    # Not installed: nothing imports it.
    "research": PACKAGES - {"cli"},
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
        root = ("research",) if package == "research" else ("offramp", package)
        yield ".".join((*root, *parts)).removesuffix(".__init__"), path


def names(package: str) -> list[str]:
    return [name for name, _ in modules(package)]


@cache
def parsed(path: Path) -> ast.Module:
    """Of a file, which several tests look at."""
    return ast.parse(path.read_text())


def imported(path: Path) -> Iterator[str]:
    """Every module that a file imports anywhere in it, lazily or for type checking only as well."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imported_at_start(path: Path) -> set[str]:
    """What importing the file imports: neither lazily nor for type checking only."""
    found: set[str] = set()

    def walk(body: list[ast.stmt]) -> None:
        for node in body:
            if isinstance(node, ast.Import):
                found.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module is not None:
                found.add(node.module)
                found.update(f"{node.module}.{alias.name}" for alias in node.names)
            elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                walk(node.orelse)
            elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                for part in ("body", "orelse", "finalbody"):
                    walk(getattr(node, part, []))
                for handler in getattr(node, "handlers", []):
                    walk(handler.body)

    walk(parsed(path).body)
    return found


def circle_of(graph: Mapping[str, set[str]]) -> list[str]:
    """A circle of imports; none: empty."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


@cache
def import_graph() -> dict[str, set[str]]:
    """Each module of ours and those of ours that it imports at its start."""
    files = dict(module for package in ALLOWED for module in modules(package))
    return {name: (imported_at_start(path) & files.keys()) - {name} for name, path in files.items()}


def of_folders(graph: Mapping[str, set[str]], depth: int) -> dict[str, set[str]]:
    """The same between folders; what lies above this depth is left out, as are imports within a folder."""
    found: dict[str, set[str]] = {}
    for name, others in graph.items():
        folder, *rest = [name.split(".")[:depth], *name.split(".")[depth:]]
        if not rest:
            continue
        targets = {".".join(other.split(".")[:depth]) for other in others if other.count(".") >= depth}
        found.setdefault(".".join(folder), set()).update(targets - {".".join(folder)})
    return found


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


def test_nothing_that_is_installed_knows_research() -> None:
    """Neither as an import nor by a name that it imports later."""
    for package in ALLOWED.keys() - {"research"}:
        for name, path in modules(package):
            for node in ast.walk(parsed(path)):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    assert not node.value.startswith("research."), f"{name} names {node.value}"
            assert "research" not in {module.split(".")[0] for module in imported(path)}, name


def test_a_circle_is_found(tmp_path: Path) -> None:
    assert circle_of({"a": {"b"}, "b": {"c"}, "c": set()}) == []
    assert set(circle_of({"a": {"b"}, "b": {"c"}, "c": {"b"}})) == {"b", "c"}
    graph = {"x.one.a": {"x.two.b"}, "x.two.c": {"x.one.a", "x.d"}, "x.d": {"x.one.a"}}
    assert of_folders(graph, 2) == {"x.one": {"x.two"}, "x.two": {"x.one"}}
    source = (
        "import a\nif TYPE_CHECKING:\n  import b\nelse:\n  import c\n"
        "try:\n  from d import e\nexcept X:\n  import f\ndef g():\n  import h\n"
    )
    (tmp_path / "module.py").write_text(source)
    assert imported_at_start(tmp_path / "module.py") == {"a", "c", "d", "d.e", "f"}


def test_no_module_imports_itself_by_way_of_others() -> None:
    assert circle_of(import_graph()) == []


@pytest.mark.parametrize("depth", [2, 3])
def test_no_package_imports_itself_by_way_of_others(depth: int) -> None:
    graph = of_folders(import_graph(), depth)
    assert circle_of(graph) == []


@pytest.mark.parametrize("package", ["common", "link", "device", "server", "gateway"])
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


@pytest.mark.parametrize(
    "app", ["offramp.device.app", "offramp.server.app", "offramp.gateway.app", "offramp.cli.app"]
)
def test_a_program_starts_without_what_its_help_does_not_need(app: str) -> None:
    assert loaded_by([app]).isdisjoint(HEAVY | {"onnxruntime"})


def test_the_wire_is_pure() -> None:
    """Codec and frames are functions of bytes: nothing that opens a socket, no runtime."""
    pure = [
        f"offramp.common.{name}" for name in ("codec.huffman", "codec.activation", "errors", "wire.frame")
    ]

    assert loaded_by(pure).isdisjoint(HEAVY | {"grpc", "onnxruntime", "asyncio", "prometheus_client"})
