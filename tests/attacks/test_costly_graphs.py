"""Graphs that cost far more than their bytes are refused, and whoever loads them stays responsive."""

from __future__ import annotations

import contextlib
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from offramp.common.bundle.load import Bundle, load_bundle
from offramp.common.bundle.manifest import HEAD, MANIFEST, TAIL
from offramp.common.errors import BundleError
from offramp.common.part import trial
from offramp.common.part.engine import Engine
from tests import toy
from tests.attacks.costly_graphs import GRAPHS, LONG, large
from tests.processes import WAIT, Processes, Program, processes, until
from tests.server.client import still_serves
from tests.server.variants import described, variant
from tests.toy import BundleFolder

SLOW = [name for name, (_, expected) in GRAPHS.items() if expected == LONG]
MANY_BYTES = [
    "conv-and-norm-of-one-weight-150-times",
    "dequantized-weight-100-times",
    "outer-products-of-the-batch",
    "nodes-of-2-bytes",
    "dimensions-of-1-byte",
]
"""One of each kind that takes memory: in the child, while it is read, in the parser."""
GIGABYTE = 1 << 30
ENDLESS = "average-pool-of-3003"
MODELS = sorted(path.parent for path in (Path(__file__).parents[2] / "models").glob(f"*/{MANIFEST}"))


@pytest.fixture
def run(toy_bundle: Bundle) -> Iterator[Processes]:
    """Programs of one test."""
    with processes(toy_bundle.path) as started:
        yield started


def costly_tail(folder: BundleFolder, name: str = ENDLESS) -> BundleFolder:
    folder.put(TAIL, GRAPHS[name][0]())
    return folder


def costly_head(folder: BundleFolder) -> BundleFolder:
    """The toy's head, whose logits wait for a large pool over the image."""
    model = toy.head()
    model.graph.node[-1].output[0] = "plain"
    window: dict[str, Any] = {"kernel_shape": [3003, 3003], "pads": [1501] * 4, "count_include_pad": 1}
    model.graph.node.extend(
        [
            helper.make_node("Cast", ["image"], ["x"], to=TensorProto.FLOAT),
            *large("s", 128),
            helper.make_node("AveragePool", ["s"], ["p"], **window),
            helper.make_node("ReduceMean", ["p"], ["mean"], axes=[2, 3], keepdims=0),
            helper.make_node("Add", ["plain", "mean"], ["logits"]),
        ]
    )
    folder.put(HEAD, model)
    return folder


def child_of(program: Program) -> int | None:
    """The process that tries a bundle for this one, if there is one."""
    for process in Path("/proc").glob("[0-9]*"):
        # Not every kernel lists children: what each process says of its parent is everywhere.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == program.pid and "offramp.common.part.trial" in (process / "cmdline").read_text():
                return int(process.name)
    return None


MEASURED = """
import resource, subprocess, sys
status = subprocess.run(sys.argv[1:]).returncode
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(status)
"""


def wait_for_child(program: Program) -> int:
    until(lambda: child_of(program), "a child that tries the bundle")
    child = child_of(program)
    assert child is not None
    return child


@pytest.mark.parametrize("name", GRAPHS)
def test_is_refused_with_one_line(
    name: str, bundle_folder: Callable[[], BundleFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = costly_tail(bundle_folder(), name)
    expected = GRAPHS[name][1]
    if name in SLOW:
        monkeypatch.setattr(trial, "SECONDS", 1.0)
        expected = expected.replace("6 s", "1 s")

    with pytest.raises(BundleError) as caught:
        Engine(load_bundle(folder.path)).load_tail()

    message = str(caught.value).removeprefix(f"{folder.path}: ")
    assert re.match(rf"tail\.onnx: {expected}", message)
    assert message.isprintable()


@pytest.mark.parametrize("name", MANY_BYTES)
def test_a_server_that_refuses_it_stays_small(name: str, bundle_folder: Callable[[], BundleFolder]) -> None:
    folder = costly_tail(bundle_folder(), name)
    command = [sys.executable, "-m", "offramp.server.app", "--bundle", str(folder.path)]
    # A process inherits the largest size of whoever forked it, so that a small one has to.
    between = [sys.executable, "-c", MEASURED, *command, "--listen", "127.0.0.1:0"]
    done = subprocess.run(between, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)

    assert (done.returncode, len(done.stderr.splitlines())) == (4, 1), done.stderr
    # Of the server or of its child, whichever has more: they are never large together.
    assert int(done.stdout) << 10 < 0.75 * GIGABYTE


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.name)
def test_real_bundles_pass(path: Path) -> None:
    engine = Engine(load_bundle(path))
    engine.load(HEAD, TAIL)
    sizes = [1 << i for i in range(7)]
    assert engine.try_batches(HEAD, TAIL, batches=sizes) >= 8


def test_a_reload_refuses_it_and_loads_what_comes_after(
    run: Processes, toy_bundle: Bundle, tmp_path: Path
) -> None:
    models = tmp_path / "models"
    old = variant(toy_bundle, models / "m", "old")
    server = run.server("--reload-interval", 0.05, bundle=models)
    shutil.copytree(toy_bundle.path, tmp_path / "bad")
    costly_tail(BundleFolder(tmp_path / "bad"))
    variant(toy_bundle, tmp_path / "good", "new")
    (tmp_path / "good").rename(models / "z")
    (tmp_path / "bad").rename(models / "a")
    wait_for_child(server)
    still_serves(server.address, old)
    until(lambda: described(server) == {"old", "new"}, "the one after")
    server.wait_for(r"not loaded, what serves goes on: \S+/a: tail\.onnx: takes over 6 s to load and try")
    assert server.drain() == 0


def test_sigterm_ends_a_reload(run: Processes, toy_bundle: Bundle, tmp_path: Path) -> None:
    models = tmp_path / "models"
    variant(toy_bundle, models / "m", "old")
    server = run.server("--reload-interval", 0.05, bundle=models)
    shutil.copytree(toy_bundle.path, tmp_path / "bad")
    costly_tail(BundleFolder(tmp_path / "bad"))
    (tmp_path / "bad").rename(models / "a")
    child = wait_for_child(server)
    assert server.drain() == 0
    assert not Path(f"/proc/{child}").exists()
    assert "takes over" not in server.errors


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_server_that_starts(
    run: Processes, damaged: BundleFolder, number: signal.Signals
) -> None:
    costly_tail(damaged)
    command = [sys.executable, "-m", "offramp.server.app", "--bundle", str(damaged.path)]
    server = run.start([*command, "--listen", "127.0.0.1:0"])
    child = wait_for_child(server)
    server.send(number)
    assert server.wait() == 0
    assert not Path(f"/proc/{child}").exists()
    assert "takes over" not in server.errors


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_device_that_starts(
    run: Processes, damaged: BundleFolder, tmp_path: Path, number: signal.Signals
) -> None:
    costly_head(damaged)
    device = run.start_device("--server", "127.0.0.1:9", tmp_path, bundle=damaged.path)
    child = wait_for_child(device)
    device.send(number)
    assert device.wait() == 130
    assert not Path(f"/proc/{child}").exists()
    assert device.errors.splitlines() == ["edge-device: stopped while a bundle was loaded"]


def test_a_device_refuses_a_costly_head(run: Processes, damaged: BundleFolder, tmp_path: Path) -> None:
    costly_head(damaged)
    short = "from offramp.common.part import trial; trial.SECONDS = 2.0; "
    short += "from offramp.device.app import main; main()"
    flags = ["--bundle", str(damaged.path), "--server", "127.0.0.1:9", str(tmp_path)]
    device = run.start([sys.executable, "-c", short, *flags])
    assert device.wait() == 4
    cause = "head.onnx: takes over 2 s to load and try, expected a classifier's graph"
    assert device.errors == f"edge-device: {damaged.path}: {cause}"


def test_the_child_ends_with_its_parent(run: Processes, damaged: BundleFolder) -> None:
    costly_tail(damaged)
    server = run.start([sys.executable, "-m", "offramp.server.app", "--bundle", str(damaged.path)])
    child = wait_for_child(server)
    server.send(signal.SIGKILL)
    assert server.wait() == -signal.SIGKILL

    def gone() -> bool:
        try:
            return Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except FileNotFoundError:
            return True

    until(gone, "the child's end")


def test_inspect_refuses_it(damaged: BundleFolder) -> None:
    costly_tail(damaged, "conv-and-norm-of-one-weight-40-times")
    done = subprocess.run(
        [sys.executable, "-m", "offramp.cli.app", "inspect", str(damaged.path)],
        capture_output=True,
        text=True,
        timeout=WAIT,
        check=False,
    )
    assert (done.returncode, done.stdout) == (4, "")
    assert "takes over 512 MB to load and try" in done.stderr


def test_a_batch_that_is_too_much_bounds_the_plan(bundle_folder: Callable[[], BundleFolder]) -> None:
    """A square of the batch: 2 inputs are 256 kB, 64 are 16 times what a trial may take."""
    folder = bundle_folder()
    model = toy.tail()
    model.graph.node[-1].output[0] = "plain"
    nodes = [helper.make_node("Flatten", ["activation"], ["v"])]
    nodes += [helper.make_node("Concat", ["v"] * 128, ["v2"], axis=0)]
    nodes += [
        helper.make_node("Transpose", ["v2"], ["vt"], perm=[1, 0]),
        helper.make_node("MatMul", ["v2", "vt"], ["square"]),
        helper.make_node("ReduceMean", ["square"], ["mean"], keepdims=0),
        helper.make_node("Add", ["plain", "mean"], ["logits"]),
    ]
    model.graph.node.extend(nodes)
    onnx.checker.check_model(model)
    folder.put(TAIL, model)
    engine = Engine(load_bundle(folder.path))
    sizes = [1 << i for i in range(9)]

    assert 2 < engine.try_batches(TAIL, batches=sizes) < 256
    with pytest.raises(BundleError, match="takes over 512 MB"):
        engine.try_batches(TAIL, batches=[1, 256], needed=True)


def test_no_child_is_left(toy_bundle: Bundle) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    Engine(toy_bundle, 3).load_tail()
    Engine(toy_bundle, 2).load_tail()
    first = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    Engine(toy_bundle, 1).load_tail()
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime == first >= before
