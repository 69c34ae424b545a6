"""Files of weights from strangers: each is one clear line, runs nothing, and takes little memory and time.

The bound on memory is an address space that the child that reads them gets, the bound on time a hang guard.
"""

from __future__ import annotations

import io
import json
import pickle
import re
import struct
import subprocess
import sys
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from offramp.common.errors import ConfigError
from offramp.training.split.weights import load_weights

SECONDS = 60


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 5))


def state() -> dict[str, Tensor]:
    return dict(network().state_dict())


def saved(values: object) -> bytes:
    file = io.BytesIO()
    torch.save(values, file)
    return file.getvalue()


def legacy(values: object) -> bytes:
    file = io.BytesIO()
    torch.save(values, file, _use_new_zipfile_serialization=False)
    return file.getvalue()


def safetensors(header: dict[str, object], data: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(shape: list[int], begin: int, end: int, dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def repacked(compression: int, change: Callable[[str, bytes], bytes] = lambda _, content: content) -> bytes:
    """What torch.save writes, its entries changed."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(saved(state()))) as old, zipfile.ZipFile(file, "w", compression) as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    return file.getvalue()


def bomb() -> bytes:
    """A quarter of a gigabyte of zeros as one tensor's bytes, in a quarter of a megabyte."""
    return repacked(
        zipfile.ZIP_DEFLATED, lambda name, data: bytes(1 << 28) if name.endswith("/data/0") else data
    )


def overlapping() -> bytes:
    """Entries of a zip that are all the same bytes."""
    content = repacked(zipfile.ZIP_STORED)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        largest = max(archive.infolist(), key=lambda each: each.file_size)
    at = content.index(b"PK\x01\x02")
    end = content.index(b"PK\x05\x06")
    size = 46 + sum(struct.unpack("<HHH", content[at + 28 : at + 34]))
    one = bytearray(content[at : at + size])
    one[20:28] = struct.pack("<II", len(content) // 2, len(content) // 2)
    one[42:46] = struct.pack("<I", largest.header_offset)
    directory = bytes(one) * 200
    return (
        content[:at]
        + directory
        + content[end : end + 8]
        + struct.pack("<HHIIH", 200, 200, len(directory), at, 0)
    )


def many_objects(protocol: int = 2) -> bytes:
    """A pickle of five million empty lists."""
    return b"\x80" + bytes([protocol]) + b"(" + b"]" * 5_000_000 + b"l."


def in_zip(content: bytes) -> bytes:
    return repacked(zipfile.ZIP_STORED, lambda name, data: content if name.endswith("data.pkl") else data)


def in_legacy(content: bytes) -> bytes:
    head = io.BytesIO()
    for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}):
        pickle.dump(value, head, protocol=2)
    return head.getvalue() + content


class Runs:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("raise SystemExit('it ran')",)


def changed(name: str, value: object) -> dict[str, object]:
    return {**state(), name: value}


def whole(begin: int = 0, **more: dict[str, object]) -> bytes:
    """A safetensors file of the network, with entries changed."""
    header: dict[str, object] = {}
    data = b""
    for name, tensor in state().items():
        if tensor.is_floating_point():
            content = tensor.numpy().tobytes()
            header[name] = entry(list(tensor.shape), begin + len(data), begin + len(data) + len(content))
            data += content
    return safetensors({**header, **more}, data)


SAFETENSORS: dict[str, tuple[Callable[[], bytes], str]] = {
    "header longer than the file": (lambda: (1 << 50).to_bytes(8, "little") + b'{"a":1}', "damaged"),
    "header of a gigabyte": (lambda: (1 << 30).to_bytes(8, "little") + b"{", "damaged"),
    "not JSON": (lambda: (20).to_bytes(8, "little") + b"{" + b"x" * 19, "damaged"),
    "deeply nested JSON": (
        lambda: (200_001).to_bytes(8, "little") + b'{"a":' + b"[" * 199_996,
        "damaged",
    ),
    "a shape beyond the data": (lambda: safetensors({"0.weight": entry([1 << 40], 0, 1 << 42)}), "damaged"),
    "a shape that overflows": (
        lambda: safetensors({"0.weight": entry([1 << 33, 1 << 33], 0, 16)}, bytes(16)),
        "damaged",
    ),
    "a negative side": (lambda: safetensors({"0.weight": entry([-1], 0, 4)}, bytes(4)), "damaged"),
    "overlapping offsets": (
        lambda: safetensors({"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, bytes(12)),
        "damaged",
    ),
    "offsets backwards": (lambda: safetensors({"a": entry([2], 8, 0)}, bytes(8)), "damaged"),
    "a hole between tensors": (
        lambda: safetensors({"a": entry([1], 0, 4), "b": entry([1], 8, 12)}, bytes(12)),
        "damaged",
    ),
    "bytes behind": (lambda: whole() + bytes(100), "damaged"),
    "cut short": (lambda: whole()[:-4], "damaged"),
    "an unknown type": (lambda: safetensors({"a": entry([1], 0, 4, "F33")}, bytes(4)), "damaged"),
    "no tensors": (lambda: safetensors({}), "do not fit"),
    "a type that cannot be a weight": (
        lambda: safetensors(
            {
                name: entry(list(t.shape), 0, 0) if t.numel() == 0 else entry([0], 0, 0)
                for name, t in state().items()
            }
        ),
        "have another shape",
    ),
    "a name of a megabyte": (
        lambda: safetensors({"n" * (1 << 20): entry([1], 0, 4)}, bytes(4)),
        "do not fit",
    ),
    "a name of nothing but wrappers": (
        lambda: safetensors({"module." * 150_000: entry([1], 0, 4)}, bytes(4)),
        "do not fit",
    ),
    "a hundred thousand tensors": (
        lambda: safetensors({f"t{n}": entry([0], 0, 0) for n in range(100_000)}),
        "100000 of the file's 100000 are not in the model",
    ),
}
PICKLES: dict[str, tuple[Callable[[], bytes], str]] = {
    "code": (lambda: saved(changed("0.weight", Runs())), "refused"),
    "code in an old file": (lambda: legacy(changed("0.weight", Runs())), "refused"),
    "code in a bare pickle": (lambda: pickle.dumps(Runs(), protocol=2), "refused|damaged"),
    "a zip bomb": (bomb, "more than the file has"),
    "overlapping entries": (overlapping, "more than the file has|damaged"),
    "millions of objects": (lambda: in_zip(many_objects()), "over 1,000,000 steps"),
    "millions of objects in an old file": (lambda: in_legacy(many_objects()), "over 1,000,000 steps"),
    "cut short": (lambda: saved(state())[:-200], "damaged"),
    "an old file cut short": (lambda: legacy(state())[:-40], "damaged"),
    "bytes turned over": (lambda: in_zip(b"\x80\x02}q\x00(X\xff\xff\xff\x7fabc"), "damaged"),
    "not a number": (lambda: saved(changed("3.bias", torch.full((5,), float("nan")))), "not finite"),
    "infinite in float32": (
        lambda: saved(changed("3.bias", torch.full((5,), 1e300, dtype=torch.float64))),
        "not finite",
    ),
    "sparse": (lambda: saved(changed("3.weight", torch.zeros(5, 16).to_sparse())), "expected a plain tensor"),
    "quantized": (
        lambda: saved(
            changed("3.weight", torch.quantize_per_tensor(torch.zeros(5, 16), 1.0, 0, torch.qint8))
        ),
        "expected a plain tensor",
    ),
    "without values": (
        lambda: saved(changed("3.weight", torch.empty(5, 16, device="meta"))),
        "expected a plain tensor",
    ),
    "complex": (
        lambda: saved(changed("3.bias", torch.zeros(5, dtype=torch.complex64))),
        "complex64; expected float32",
    ),
    "whole numbers": (
        lambda: saved(changed("3.bias", torch.zeros(5, dtype=torch.int64))),
        "int64; expected float32",
    ),
    "one number as a terabyte": (
        lambda: saved(changed("3.weight", torch.zeros(1).expand(1 << 20, 1 << 18))),
        "have another shape",
    ),
    "a tensor that is not one": (lambda: saved(changed("3.weight", [1.0] * 80)), "is list; expected tensors"),
    "itself inside itself": (lambda: saved(itself()), "expected tensors by name"),
    "a wrapper in a wrapper": (
        lambda: saved({"state_dict": {"state_dict": state()}}),
        "expected tensors by name",
    ),
}


def itself() -> dict[str, object]:
    found: dict[str, object] = OrderedDict()
    found["model"] = found
    return found


READ = """
import resource, sys
from pathlib import Path
import torch
from tests.attacks.test_weights import network
from offramp.common.errors import ConfigError
from offramp.training.split.weights import load_weights
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30), used + (1 << 30)))
for path in sys.argv[1:]:
    try:
        load_weights(network(), Path(path))
        print("taken")
    except ConfigError as error:
        print(error)
"""


def write(folder: Path, name: str, content: bytes, suffix: str) -> Path:
    path = folder / (name.replace(" ", "-") + suffix)
    path.write_bytes(content)
    return path


def answers(paths: list[Path]) -> list[str]:
    """What reading each of them says, in a process of little memory."""
    done = subprocess.run(
        [sys.executable, "-c", READ, *map(str, paths)], capture_output=True, text=True, timeout=SECONDS * 4
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def check(folder: Path, cases: dict[str, tuple[Callable[[], bytes], str]], suffix: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # quantized tensors are about to go from torch
        paths = [write(folder, name, make(), suffix) for name, (make, _) in cases.items()]
    found = answers(paths)
    assert len(found) == len(paths), found  # one line each
    for (name, (_, expected)), path, line in zip(cases.items(), paths, found, strict=True):
        assert line.startswith(f"{path}: "), (name, line)
        assert re.search(expected, line), (name, line)
        assert len(line) < 1500, name


def test_safetensors_from_strangers(tmp_path: Path) -> None:
    pytest.importorskip("safetensors", reason="needs the extra [split]")
    check(tmp_path, SAFETENSORS, ".safetensors")


def test_pickles_from_strangers(tmp_path: Path) -> None:
    check(tmp_path, PICKLES, ".pt")


def test_the_files_that_they_are_made_of_are_taken(tmp_path: Path) -> None:
    pytest.importorskip("safetensors", reason="needs the extra [split]")
    for name, content in (("a.pt", saved(state())), ("b.pt", legacy(state())), ("c.safetensors", whole())):
        (tmp_path / name).write_bytes(content)
        assert load_weights(network(), tmp_path / name) == ()


def test_a_file_far_larger_than_the_model_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    with path.open("wb") as file:
        file.write(saved(state()))
        file.truncate((1 << 30) + 1)
    with pytest.raises(
        ConfigError, match="1,073,741,825 bytes; expected at most 1,073,741,824 for this model"
    ):
        load_weights(network(), path)
