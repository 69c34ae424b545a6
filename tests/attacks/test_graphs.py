"""Graphs that try to reach past the check: other files, another format, bytes that crash a parser."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from offramp.common.bundle.load import load_bundle
from offramp.common.bundle.manifest import HEAD, TAIL
from offramp.common.errors import BundleError
from offramp.common.part.engine import Engine
from offramp.v1 import onnx_subset_pb2
from tests import toy
from tests.attacks.bundles import external
from tests.toy import BundleFolder

IN_OPEN = 0x20


class OpenWatch:
    """The kernel's word on whether anything opened a file (inotify)."""

    def __init__(self, path: Path) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._events = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        assert self._events >= 0
        assert libc.inotify_add_watch(self._events, os.fsencode(path), IN_OPEN) >= 0

    def opened(self) -> bool:
        """Whether the file was opened since the last call."""
        try:
            return bool(os.read(self._events, 4096))
        except BlockingIOError:
            return False

    def close(self) -> None:
        os.close(self._events)


@pytest.mark.skipif(sys.platform != "linux", reason="inotify is Linux's")
def test_external_data_is_refused_without_opening_the_outer_file(
    damaged: BundleFolder, tmp_path: Path
) -> None:
    outer = tmp_path / "outer.bin"
    model = toy.tail()
    outer.write_bytes(model.graph.initializer[0].raw_data)
    external(model.graph.initializer[0], os.path.relpath(outer, damaged.path))
    damaged.put(TAIL, model)
    watch = OpenWatch(outer)

    with pytest.raises(BundleError, match="lies in another file"):
        Engine(load_bundle(damaged.path)).load_tail()

    assert not watch.opened()
    outer.read_bytes()
    assert watch.opened()
    watch.close()


@pytest.mark.parametrize("name", [HEAD, TAIL])
def test_what_was_checked_is_what_runs(name: str, damaged: BundleFolder) -> None:
    """ONNX Runtime takes bytes 4 to 7 of ``ORTM`` for its own format, which the check does not read."""
    model = toy.head() if name == HEAD else toy.tail()
    model.ClearField("ir_version")
    polyglot = b"\x12\x10" + b"\0\0ORTM" + bytes(10) + b"\x08\x08" + model.SerializeToString()
    assert onnx.ModelProto.FromString(polyglot).producer_name.startswith("\0\0ORTM")
    damaged.put(name, polyglot)

    engine = Engine(load_bundle(damaged.path))

    symbols, early = engine.head(toy.images(2))
    assert symbols.shape == (2, *toy.SHAPE)
    assert early.shape == engine.tail(symbols).shape == (2, len(toy.CLASSES))


def test_a_refused_graph_prints_nothing(damaged: BundleFolder, capfd: pytest.CaptureFixture[str]) -> None:
    model = toy.tail()
    model.graph.node[2].ClearField("input")
    damaged.put(TAIL, model)

    with pytest.raises(BundleError):
        Engine(load_bundle(damaged.path)).load_tail()

    assert capfd.readouterr() == ("", "")


FUZZ = """
import sys
import numpy as np
from offramp.common.bundle.load import load_bundle
from offramp.common.part.engine import Engine
from offramp.common.errors import BundleError
from tests import toy
from tests.toy import BundleFolder
from pathlib import Path

folder, name, seed, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
rng = np.random.default_rng(seed)
good = toy.head() if name == "head.onnx" else toy.tail()
data = np.frombuffer(good.SerializeToString(), np.uint8)
loaded = 0
for _ in range(count):
    damaged = data.copy()
    for place in rng.integers(0, len(data), rng.integers(1, 6)):
        damaged[place] = rng.choice([damaged[place] ^ 1 << rng.integers(8), rng.integers(256), 0, 255, 127])
    BundleFolder(folder).put(name, damaged.tobytes())
    try:
        engine = Engine(load_bundle(folder))
        engine.load_head() if name == "head.onnx" else engine.load_tail()
        loaded += 1
    except BundleError as error:
        assert str(error).isprintable(), str(error)
print(loaded)
"""


@pytest.mark.parametrize("name", [HEAD, TAIL])
def test_damaged_graphs_do_not_take_the_process_down(name: str, damaged: BundleFolder) -> None:
    run = subprocess.run(
        [sys.executable, "-c", FUZZ, str(damaged.path), name, "1", "30"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )

    assert (run.returncode, run.stderr) == (0, "")
    assert 0 < int(run.stdout) < 30


def test_the_checks_fields_are_those_of_onnx() -> None:
    """A wrong number would make the check look at nothing."""
    pairs: dict[str, Any] = {
        "OnnxModel": onnx.ModelProto,
        "OnnxOpset": onnx.OperatorSetIdProto,
        "OnnxGraph": onnx.GraphProto,
        "OnnxNode": onnx.NodeProto,
        "OnnxAttribute": onnx.AttributeProto,
        "OnnxTensor": onnx.TensorProto,
    }
    assert set(pairs) | {"OnnxIgnored"} == set(onnx_subset_pb2.DESCRIPTOR.message_types_by_name)
    for ours, theirs in pairs.items():
        for field in onnx_subset_pb2.DESCRIPTOR.message_types_by_name[ours].fields:
            other = theirs.DESCRIPTOR.fields_by_name[field.name]
            assert (field.number, field.is_repeated) == (other.number, other.is_repeated), field.full_name
            # An enum is a varint as well.
            assert field.type == other.type or (field.type, other.type) == (5, 14), field.full_name


def test_every_place_where_onnx_holds_a_tensor_or_graph_is_looked_at() -> None:
    """A field that a newer ONNX adds must be decided on here first."""
    sensitive = {"TensorProto", "SparseTensorProto", "GraphProto", "FunctionProto", "TrainingInfoProto"}
    found = {
        f"{message.DESCRIPTOR.name}.{field.name}"
        for message in (onnx.ModelProto, onnx.GraphProto, onnx.NodeProto, onnx.AttributeProto)
        for field in message.DESCRIPTOR.fields
        if field.message_type is not None and field.message_type.name in sensitive
    }
    assert found == {
        "ModelProto.graph",
        "ModelProto.functions",
        "ModelProto.training_info",
        "GraphProto.initializer",
        "GraphProto.sparse_initializer",
        "AttributeProto.t",
        "AttributeProto.g",
        "AttributeProto.tensors",
        "AttributeProto.graphs",
        "AttributeProto.sparse_tensor",
        "AttributeProto.sparse_tensors",
    }


def test_what_was_hashed_is_what_is_used(
    bundle_folder: Callable[[], BundleFolder],
) -> None:
    folder = bundle_folder()
    bundle = load_bundle(folder.path)
    for name in (HEAD, TAIL):
        (folder.path / name).write_bytes(b"replaced after the check")

    engine = Engine(bundle)
    symbols, _ = engine.head(toy.images(3))
    assert np.isfinite(engine.tail(symbols)).all()
