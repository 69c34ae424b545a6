"""Hostile bundles: what each does to a good one, and the one line that it is refused with.

Each attack damages a copy of the toy bundle. ``expected`` is a regular expression for the whole message,
without the bundle's directory that it begins with. New attacks are added at the end: numbers stay.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from offramp.common.bundle.manifest import CODEBOOK, HEAD, MANIFEST, TAIL
from offramp.common.codec.rans import Kind
from tests import toy
from tests.toy import BundleFolder

Damage = Callable[[BundleFolder], None]


@dataclass(frozen=True)
class BundleAttack:
    """One way to damage a bundle, and the message that names what is wrong and what was expected."""

    number: int
    name: str
    damage: Damage
    expected: str

    @property
    def id(self) -> str:
        """Number and name."""
        return f"{self.number:03}-{self.name}"


ATTACKS: list[BundleAttack] = []


def attack(name: str, expected: str) -> Callable[[Damage], Damage]:
    """Number and list an attack."""

    def listed(damage: Damage) -> Damage:
        ATTACKS.append(BundleAttack(len(ATTACKS) + 1, name, damage, expected))
        return damage

    return listed


def attack_values(name: str, expected: str, *keys: str | int, value: object) -> None:
    """An attack that sets one value of the manifest."""
    attack(name, expected)(lambda folder: folder.edit(*keys, value=value))


def attack_text(name: str, expected: str, text: bytes) -> None:
    """An attack that replaces the manifest's bytes."""
    attack(name, expected)(lambda folder: folder.write_manifest(text))


def attack_file(name: str, expected: str, file: str, contents: Callable[[], bytes | onnx.ModelProto]) -> None:
    """An attack that replaces a file and gives the manifest its size and hash."""
    attack(name, expected)(lambda folder: folder.put(file, contents()))


# ---- the directory and its files ---------------------------------------------------------------------

NO_MANIFEST = r"manifest\.json: cannot be read: No such file or directory, expected a plain file"


@attack("manifest-missing", NO_MANIFEST)
def _(folder: BundleFolder) -> None:
    (folder.path / MANIFEST).unlink()


@attack("file-missing", r"tail\.onnx: cannot be read: No such file or directory, expected a plain file")
def _(folder: BundleFolder) -> None:
    (folder.path / TAIL).unlink()


@attack("directory-missing", r"No such file or directory, expected a bundle's directory")
def _(folder: BundleFolder) -> None:
    for file in folder.path.iterdir():
        file.unlink()
    folder.path.rmdir()


@attack("directory-is-a-file", r"Not a directory, expected a bundle's directory")
def _(folder: BundleFolder) -> None:
    for file in folder.path.iterdir():
        file.unlink()
    folder.path.rmdir()
    folder.path.write_bytes(b"")


@attack("file-is-a-symlink", r"head\.onnx: is a symbolic link, expected a plain file")
def _(folder: BundleFolder) -> None:
    (folder.path / HEAD).rename(folder.path / "elsewhere")
    (folder.path / HEAD).symlink_to("elsewhere")


@attack("manifest-is-a-symlink", r"manifest\.json: is a symbolic link, expected a plain file")
def _(folder: BundleFolder) -> None:
    (folder.path / MANIFEST).rename(folder.path / "elsewhere")
    (folder.path / MANIFEST).symlink_to("elsewhere")


@attack("file-is-a-dangling-symlink", r"tail\.onnx: is a symbolic link, expected a plain file")
def _(folder: BundleFolder) -> None:
    (folder.path / TAIL).unlink()
    (folder.path / TAIL).symlink_to("/nonexistent")


@attack("file-is-a-named-pipe", r"tail\.onnx: is a named pipe, expected a plain file")
def _(folder: BundleFolder) -> None:
    (folder.path / TAIL).unlink()
    os.mkfifo(folder.path / TAIL)


@attack("manifest-is-a-named-pipe", r"manifest\.json: is a named pipe, expected a plain file")
def _(folder: BundleFolder) -> None:
    (folder.path / MANIFEST).unlink()
    os.mkfifo(folder.path / MANIFEST)


@attack("file-is-a-directory", r"codebook\.bin: is a directory, expected a plain file")
def _(folder: BundleFolder) -> None:
    (folder.path / CODEBOOK).unlink()
    (folder.path / CODEBOOK).mkdir()


@attack("manifest-is-a-directory", r"manifest\.json: is a directory, expected a plain file")
def _(folder: BundleFolder) -> None:
    (folder.path / MANIFEST).unlink()
    (folder.path / MANIFEST).mkdir()


@attack("wrong-hash", r"head\.onnx: has SHA-256 [0-9a-f]{64}, the manifest says [0-9a-f]{64}")
def _(folder: BundleFolder) -> None:
    data = bytearray((folder.path / HEAD).read_bytes())
    data[len(data) // 2] ^= 1
    (folder.path / HEAD).write_bytes(data)


@attack("file-cut", r"head\.onnx: has 100 bytes, the manifest says \d+")
def _(folder: BundleFolder) -> None:
    (folder.path / HEAD).write_bytes((folder.path / HEAD).read_bytes()[:100])


@attack("file-longer", r"tail\.onnx: is longer than \d+ bytes, expected at most that")
def _(folder: BundleFolder) -> None:
    with (folder.path / TAIL).open("ab") as file:
        file.write(b"\0")


@attack("file-empty", r"tail\.onnx: has 0 bytes, the manifest says \d+")
def _(folder: BundleFolder) -> None:
    (folder.path / TAIL).write_bytes(b"")


# ---- the manifest's text -----------------------------------------------------------------------------

attack_text("manifest-empty", r"manifest\.json: the document: Invalid JSON: EOF .*", b"")
attack_text("manifest-no-json", r"manifest\.json: the document: Invalid JSON: expected value .*", b"hello\n")
attack_text("manifest-not-utf-8", r"manifest\.json: the document: Invalid JSON: .*", b'{"name": "\xff"}')
attack_text("manifest-with-bom", r"manifest\.json: the document: Invalid JSON: .*", b"\xef\xbb\xbf{}")
attack_text("manifest-utf-16", r"manifest\.json: the document: Invalid JSON: .*", "{}".encode("utf-16"))
attack_text(
    "manifest-5-mb", r"manifest\.json: is longer than 4194304 bytes, expected at most that", b" " * (5 << 20)
)
attack_text(
    "manifest-deep", r"manifest\.json: the document: Invalid JSON: recursion limit .*", b"[" * (1 << 19)
)
attack_text("manifest-a-list", r"manifest\.json: the document: Input should be an object", b"[]")
attack_text("manifest-no-field", r"manifest\.json: format_version: Field required", b"{}")


@attack("manifest-pickled", r"manifest\.json: the document: Invalid JSON: .*")
def _(folder: BundleFolder) -> None:
    folder.write_manifest(pickle.dumps(folder.manifest))


@attack("manifest-cut", r"manifest\.json: the document: Invalid JSON: EOF .*")
def _(folder: BundleFolder) -> None:
    folder.write_manifest((folder.path / MANIFEST).read_bytes()[:-10])


def replaced(name: str, expected: str, old: bytes, new: bytes) -> None:
    """An attack on the manifest's text that no JSON writer would make."""

    @attack(name, expected)
    def _(folder: BundleFolder) -> None:
        text = json.dumps(folder.manifest).encode()
        assert text.count(old) == 1
        folder.write_manifest(text.replace(old, new))


TWICE = r"manifest\.json: {}: is there twice, expected once"
replaced("key-twice", TWICE.format("name"), b'"name": "toy"', b'"name": "good", "name": "toy"')
replaced("nested-key-twice", TWICE.format("exit"), b'"exit": 1', b'"exit": 1, "exit": 1')
replaced("key-twice-escaped", TWICE.format("exit"), b'"exit": 1', b'"exit": 2, "\\u0065xit": 1')
FINITE = r"manifest\.json: threshold: Input should be .*"
replaced("nan", FINITE, b'"threshold": 0.8, "temp', b'"threshold": NaN, "temp')
replaced("infinity", FINITE, b'"threshold": 0.8, "temp', b'"threshold": Infinity, "temp')
replaced("number-too-large", FINITE, b'"threshold": 0.8, "temp', b'"threshold": 1e999, "temp')
replaced(
    "integer-of-100000-digits",
    r"manifest\.json: .*Invalid JSON: .*",
    b'"seed": 0',
    b'"seed": ' + b"9" * 100_000,
)
replaced("lone-surrogate", r"manifest\.json: .*Invalid JSON: .*", b'"name": "toy"', b'"name": "\\ud800"')

# ---- the manifest's values ---------------------------------------------------------------------------

EXTRA = r"manifest\.json: {}: Extra inputs are not permitted"
attack_values("unknown-field", EXTRA.format("extra"), "extra", value=1)
attack_values("unknown-nested-field", EXTRA.format(r"split\.extra"), "split", "extra", value=1)
attack_values("unknown-field-of-two-lines", EXTRA.format(r"a\\nb\\x1b\[2J"), "a\nb\x1b[2J", value=1)
attack_values("unknown-field-of-100-kb", EXTRA.format(r"x{200}…"), "x" * 100_000, value=1)
attack_values(
    "newer-format", r"manifest\.json: format_version: Input should be 1 or 2", "format_version", value=3
)
attack_values(
    "version-as-text", r"manifest\.json: format_version: Input should be 1 or 2", "format_version", value="1"
)

ENTRY = {"size": 1, "sha256": hashlib.sha256(b"x").hexdigest()}
ESCAPE = r"manifest\.json: files\.{}\.\[key\]: Input should be 'head\.onnx', 'tail\.onnx' or 'codebook\.bin'"
attack_values("path-to-the-parent", ESCAPE.format(r"\.\./x"), "files", "../x", value=ENTRY)
attack_values("path-absolute", ESCAPE.format(r"/etc/passwd"), "files", "/etc/passwd", value=ENTRY)
attack_values("path-with-a-folder", ESCAPE.format(r"a/b"), "files", "a/b", value=ENTRY)
attack_values("path-with-a-null", ESCAPE.format(r"head\.onnx\\x00"), "files", "head.onnx\0", value=ENTRY)
attack_values("path-empty", ESCAPE.format(r""), "files", "", value=ENTRY)
attack_values("path-other-case", ESCAPE.format(r"HEAD\.onnx"), "files", "HEAD.onnx", value=ENTRY)
attack_values(
    "size-wrong",
    r"head\.onnx: has \d+ bytes, the manifest says 67108864",
    "files",
    HEAD,
    "size",
    value=64 << 20,
)
attack_values(
    "size-absurd",
    r"manifest\.json: files\.head\.onnx\.size: Input should be less than or equal to \d+",
    "files",
    HEAD,
    "size",
    value=1 << 60,
)
attack_values(
    "size-negative",
    r"manifest\.json: files\.head\.onnx\.size: Input should be greater than or equal to 1",
    "files",
    HEAD,
    "size",
    value=-1,
)
attack_values(
    "hash-no-hash",
    r"manifest\.json: files\.head\.onnx\.sha256: String should match pattern .*",
    "files",
    HEAD,
    "sha256",
    value="../../x",
)


@attack(
    "codebook-not-listed",
    r"manifest\.json: the document: .*files are \[.*\], expected \[.*'codebook\.bin'.*\]",
)
def _(folder: BundleFolder) -> None:
    document = folder.manifest
    del document["files"][CODEBOOK]
    folder.write_manifest(document)


attack_values(
    "codebook-not-used",
    r"manifest\.json: the document: .*files are \[.*\], expected \['head\.onnx', 'tail\.onnx'\]",
    "codec",
    value={"kind": "raw"},
)
SHAPE = r"manifest\.json: activation\.shape.*"
attack_values("shape-absurd", SHAPE + r"4096", "activation", "shape", value=[4, 4, 1 << 31])
attack_values(
    "shape-too-large",
    r"manifest\.json: activation: .*\(4096, 4096, 4096\) has over 4194304 symbols",
    "activation",
    "shape",
    value=[4096, 4096, 4096],
)
attack_values("shape-zero", SHAPE + r"greater than or equal to 1", "activation", "shape", value=[0, 4, 4])
attack_values(
    "shape-negative",
    SHAPE + r"greater than or equal to 1 \(and 1 more\)",
    "activation",
    "shape",
    value=[4, -4, -4],
)
attack_values("shape-of-rank-2", SHAPE + r"Field required", "activation", "shape", value=[4, 16])
attack_values(
    "shape-of-floats", SHAPE + r"valid integer \(and 2 more\)", "activation", "shape", value=[4.0, 4.0, 4.0]
)
attack_values(
    "shape-of-other-channels",
    r"manifest\.json: the document: .*table_of_channel has 4 entries, the activation 8 channels",
    "activation",
    "shape",
    value=[8, 4, 4],
)
attack_values(
    "image-absurd",
    r"manifest\.json: preprocessing\.height: Input should be less than or equal to 4096",
    "preprocessing",
    "height",
    value=1 << 20,
)
attack_values(
    "threshold-above-1",
    r"manifest\.json: threshold: Input should be less than or equal to 1",
    "threshold",
    value=1.5,
)
attack_values(
    "threshold-below-0",
    r"manifest\.json: threshold: Input should be greater than or equal to 0",
    "threshold",
    value=-0.1,
)
attack_values(
    "temperature-0-as-float32",
    r"manifest\.json: temperature: Input should be greater than or equal to 0\.001",
    "temperature",
    value=1e-300,
)
attack_values(
    "answered-by-nobody",
    r"manifest\.json: sent_answer: Input should be 'server' or 'both'",
    "sent_answer",
    value="nobody",
)
attack_values(
    "scale-0",
    r"manifest\.json: activation\.scale: Input should be greater than 0",
    "activation",
    "scale",
    value=0,
)
attack_values(
    "class-with-an-escape-sequence",
    r"manifest\.json: classes\.1: String should match pattern .*",
    "classes",
    1,
    value="\x1b[2Jcat",
)
attack_values(
    "class-of-two-lines",
    r"manifest\.json: classes\.1: String should match pattern .*",
    "classes",
    1,
    value="a\nb",
)
attack_values(
    "classes-too-few",
    r"manifest\.json: classes: List should have at least 2 items .*",
    "classes",
    value=["cat"],
)
attack_values(
    "name-is-a-path",
    r"manifest\.json: name: String should match pattern .*",
    "name",
    value="../../etc/passwd",
)
attack_values(
    "codec-unknown",
    r"manifest\.json: codec: Input tag 'a\\nb' found using 'kind' does not match "
    r".* 'raw', 'huffman', 'run-huffman', 'rans', 'context'",
    "codec",
    "kind",
    value="a\nb",
)

# ---- the codebook ------------------------------------------------------------------------------------

UNIFORM = bytes([0x88]) * 128
attack_file(
    "codebook-violating-kraft",
    r"codebook\.bin: table 1 has Kraft sum 1\.00391, expected exactly 1",
    CODEBOOK,
    lambda: UNIFORM + b"\x87" + UNIFORM[1:] + UNIFORM * 2,
)
attack_file(
    "codebook-incomplete",
    r"codebook\.bin: table 3 has Kraft sum 0\.998047, expected exactly 1",
    CODEBOOK,
    lambda: UNIFORM * 3 + b"\x89" + UNIFORM[1:],
)
attack_file(
    "codebook-with-a-length-of-0",
    r"codebook\.bin: code lengths span 0 … 8, expected 1 … 15",
    CODEBOOK,
    lambda: UNIFORM * 3 + b"\x80" + UNIFORM[1:],
)
attack_file(
    "codebook-one-byte-short",
    r"codebook\.bin: the codebook has 511 bytes, expected a multiple of 128",
    CODEBOOK,
    lambda: (UNIFORM * 4)[:-1],
)
attack_file(
    "codebook-of-a-million-tables",
    r"codebook\.bin: the codebook has 100000 tables, expected at most one for each of 4 channels",
    CODEBOOK,
    lambda: UNIFORM * 100_000,
)
attack_file(
    "codebook-pickled",
    r"codebook\.bin: the codebook has \d+ bytes, expected a multiple of 128",
    CODEBOOK,
    lambda: pickle.dumps([8] * 256),
)
attack_values(
    "table-out-of-range",
    r"codebook\.bin: a channel names table 4, the codebook has 4",
    "codec",
    "table_of_channel",
    value=[0, 1, 2, 4],
)
attack_values(
    "table-absurd",
    r"manifest\.json: codec\.huffman\.table_of_channel\.0: Input should be less than or equal to 65535",
    "codec",
    "table_of_channel",
    value=[1 << 40, 1, 2, 3],
)

# ---- the graphs --------------------------------------------------------------------------------------

NO_ONNX = r"tail\.onnx: is not an ONNX file"


def zipped() -> bytes:
    """What ``torch.save`` writes: a zip with a pickle in it."""
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"weight": 1}))
    return buffer.getvalue()


def edited(
    edit: Callable[[onnx.ModelProto], Any], make: Callable[[], onnx.ModelProto] = toy.tail
) -> onnx.ModelProto:
    """The toy tail (or head) after an edit."""
    model = make()
    edit(model)
    return model


def of_nodes(*nodes: onnx.NodeProto, **initializers: Any) -> onnx.ModelProto:
    """A tail of these nodes, from ``symbols`` to ``logits``."""
    return toy.model(
        nodes,
        [toy.port("symbols", TensorProto.UINT8, *toy.SHAPE)],
        [toy.port("logits", TensorProto.FLOAT, len(toy.CLASSES))],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in initializers.items()],
    )


def external(tensor: TensorProto, location: str) -> None:
    """Say that a tensor's bytes lie in another file."""
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)


@attack(
    "graph-of-0-bytes", r"manifest\.json: files\.tail\.onnx\.size: Input should be greater than or equal to 1"
)
def _(folder: BundleFolder) -> None:
    folder.put(TAIL, b"")


attack_file("graph-of-random-bytes", NO_ONNX, TAIL, lambda: np.random.default_rng(1).bytes(5_000))
attack_file("graph-cut", NO_ONNX, TAIL, lambda: toy.tail().SerializeToString()[:-200])
attack_file("graph-pickled", NO_ONNX, TAIL, lambda: pickle.dumps({"weight": 1}))
attack_file("graph-zipped", NO_ONNX, TAIL, zipped)
attack_file(
    "graph-without-nodes",
    r"tail\.onnx: has 0 nodes, expected an ONNX graph of 1 … 10000",
    TAIL,
    lambda: edited(lambda model: model.graph.ClearField("node")),
)
attack_file(
    "graph-of-100000-nodes",
    r"tail\.onnx: has 100000 nodes, expected an ONNX graph of 1 … 10000",
    TAIL,
    lambda: onnx.ModelProto(graph=onnx.GraphProto(node=[onnx.NodeProto()] * 100_000)),
)

OUTSIDE = r"tail\.onnx: tensor '{}' lies in another file, expected it inside"


@attack("external-data", OUTSIDE.format("kernel_int8"))
def _(folder: BundleFolder) -> None:
    (folder.path / "weights.bin").write_bytes(bytes(1 << 12))
    folder.put(TAIL, edited(lambda model: external(model.graph.initializer[0], "weights.bin")))


attack_file(
    "external-data-at-an-absolute-path",
    OUTSIDE.format("kernel_int8"),
    TAIL,
    lambda: edited(lambda model: external(model.graph.initializer[0], "/etc/passwd")),
)
attack_file(
    "external-data-in-memory",
    OUTSIDE.format("kernel_int8"),
    TAIL,
    lambda: edited(lambda model: external(model.graph.initializer[0], "*/_ORT_MEM_ADDR_/*")),
)
attack_file(
    "external-data-listed-only",
    OUTSIDE.format("kernel_int8"),
    TAIL,
    lambda: edited(
        lambda model: model.graph.initializer[0].external_data.add(key="location", value="/etc/passwd")
    ),
)
attack_file(
    "external-data-in-a-constant",
    OUTSIDE.format(r"a\\nb"),
    TAIL,
    lambda: edited(
        lambda model: external(
            model.graph.node.add(
                op_type="Constant",
                output=["c"],
                attribute=[helper.make_attribute("value", TensorProto(name="a\nb"))],
            )
            .attribute[0]
            .t,
            "/etc/passwd",
        )
    ),
)

FOREIGN = r"tail\.onnx: needs operators of '{}', expected the standard ones only"
attack_file(
    "custom-domain",
    FOREIGN.format(r"com\.example"),
    TAIL,
    lambda: edited(lambda model: model.opset_import.add(domain="com.example", version=1)),
)
attack_file(
    "onnxruntimes-own-domain",
    FOREIGN.format(r"com\.microsoft"),
    TAIL,
    lambda: edited(lambda model: model.opset_import.add(domain="com.microsoft", version=1)),
)
attack_file(
    "node-of-a-custom-domain",
    r"tail\.onnx: has the operator 'com\.example:Conv', expected a classifier's only",
    TAIL,
    lambda: edited(lambda model: setattr(model.graph.node[2], "domain", "com.example")),
)
attack_file(
    "no-opset",
    r"tail\.onnx: names no opset, expected 13 … 23",
    TAIL,
    lambda: edited(lambda model: model.ClearField("opset_import")),
)
attack_file(
    "opset-of-the-future",
    r"tail\.onnx: needs opset 9999, expected 13 … 23",
    TAIL,
    lambda: edited(lambda model: setattr(model.opset_import[0], "version", 9999)),
)

FOREIGN_OPERATOR = r"tail\.onnx: has the operator '{}', expected a classifier's only"
for operator in (
    "Loop",
    "If",
    "Scan",
    "SequenceMap",
    "RandomNormal",
    "Expand",
    "Tile",
    "Range",
    "ConstantOfShape",
):
    attack_file(
        f"operator-{operator.lower()}",
        FOREIGN_OPERATOR.format(operator),
        TAIL,
        lambda operator=operator: edited(lambda model: model.graph.node.add(op_type=operator, output=["x"])),  # type: ignore[misc]
    )
attack_file(
    "operator-of-two-lines",
    FOREIGN_OPERATOR.format(r"a\\nb\\x1b\[2J"),
    TAIL,
    lambda: edited(lambda model: setattr(model.graph.node[0], "op_type", "a\nb\x1b[2J")),
)
NESTED = r"tail\.onnx: 'Conv' has a nested graph or a sparse tensor, expected plain values"
for field, value in {
    "g": onnx.GraphProto(),
    "graphs": [onnx.GraphProto()],
    "sparse_tensor": onnx.SparseTensorProto(),
    "sparse_tensors": [onnx.SparseTensorProto()],
}.items():
    attack_file(
        f"attribute-{field.replace('_', '-')}",
        NESTED,
        TAIL,
        lambda field=field, value=value: edited(  # type: ignore[misc]
            lambda model: model.graph.node[2].attribute.append(
                onnx.AttributeProto(name="x", **{field: value})
            )
        ),
    )

NOT_PLAIN = r"tail\.onnx: has functions, training data or sparse tensors, expected a plain graph"
attack_file(
    "functions",
    NOT_PLAIN,
    TAIL,
    lambda: edited(lambda model: model.functions.add(name="Relu", domain="")),
)
attack_file("training-info", NOT_PLAIN, TAIL, lambda: edited(lambda model: model.training_info.add()))
attack_file(
    "sparse-initializer", NOT_PLAIN, TAIL, lambda: edited(lambda model: model.graph.sparse_initializer.add())
)

attack_file(
    "graph-that-onnxruntime-refuses",
    r"tail\.onnx: ONNX Runtime refuses it: .*",
    TAIL,
    lambda: edited(lambda model: model.graph.node[2].ClearField("input")),
)
attack_file(
    "name-of-two-lines-in-onnxruntimes-message",
    r"tail\.onnx: ONNX Runtime refuses it: .*",
    TAIL,
    lambda: edited(lambda model: model.graph.node[2].input.__setitem__(0, "\x1b[2Ja\nb")),
)


attack_file(
    "head-takes-other-images",
    r"head\.onnx: its inputs are .*\(3, 9, 9\).*, the manifest says .*\(3, 8, 8\).*",
    HEAD,
    lambda: toy.model(
        [
            helper.make_node("Slice", ["image", "start", "stop", "axes"], ["symbols"]),
            helper.make_node("Cast", ["image"], ["floats"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMean", ["floats"], ["logits"], axes=[2, 3], keepdims=0),
        ],
        [toy.port("image", TensorProto.UINT8, 3, 9, 9)],
        [toy.port("symbols", TensorProto.UINT8, 3, 4, 4), toy.port("logits", TensorProto.FLOAT, 3)],
        [
            numpy_helper.from_array(np.array(value), name)
            for name, value in {"start": [0, 0], "stop": [4, 4], "axes": [2, 3]}.items()
        ],
    ),
)
attack_values(
    "symbols-of-another-shape",
    r"head\.onnx: its outputs are .*\(4, 4, 4\).*, the manifest says .*\(4, 2, 8\).*",
    "activation",
    "shape",
    value=[4, 2, 8],
)
attack_values(
    "graphs-for-fewer-classes",
    r"head\.onnx: its outputs are .*\(3,\).*, the manifest says .*\(2,\).*",
    "classes",
    value=["cat", "dog"],
)
attack_file(
    "tail-takes-floats",
    r"tail\.onnx: its inputs are .*tensor\(float\).*, the manifest says .*tensor\(uint8\).*",
    TAIL,
    lambda: toy.model(
        [
            helper.make_node("Flatten", ["symbols"], ["flat"]),
            helper.make_node("MatMul", ["flat", "w"], ["logits"]),
        ],
        [toy.port("symbols", TensorProto.FLOAT, *toy.SHAPE)],
        [toy.port("logits", TensorProto.FLOAT, len(toy.CLASSES))],
        [numpy_helper.from_array(np.zeros((64, 3), np.float32), "w")],
    ),
)
attack_file(
    "tail-with-a-second-input",
    r"tail\.onnx: its inputs are .*'other'.*, the manifest says .*",
    TAIL,
    lambda: edited(lambda model: model.graph.input.append(toy.port("other", TensorProto.FLOAT, 1))),
)
attack_file(
    "head-without-symbols",
    r"head\.onnx: its outputs are \{'logits': .*\}, the manifest says \{'symbols': .*",
    HEAD,
    lambda: edited(lambda model: model.graph.output.pop(0), toy.head),
)


def one_image(model: onnx.ModelProto) -> None:
    for side in (model.graph.input, model.graph.output):
        side[0].type.tensor_type.shape.dim[0].dim_value = 1


attack_file(
    "tail-for-one-image-only",
    r"tail\.onnx: does not run: .*",
    TAIL,
    lambda: edited(one_image),
)
attack_file(
    "tail-whose-output-is-not-what-it-declares",
    r"tail\.onnx: its outputs are .*, the manifest says .*\(3,\).*",
    TAIL,
    lambda: of_nodes(
        helper.make_node("Cast", ["symbols"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["floats", "shape"], ["logits"]),
        shape=np.array([-1, 4]),
    ),
)
attack_file(
    "tail-that-mixes-the-batch",
    r"tail\.onnx: output 'logits' is \(1, 3\), expected \(2, 3\)",
    TAIL,
    lambda: of_nodes(
        helper.make_node("Cast", ["symbols"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["floats"], ["pooled"], axes=[0, 2, 3], keepdims=1),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Slice", ["flat", "start", "stop", "axis"], ["logits"]),
        start=np.array([0]),
        stop=np.array([3]),
        axis=np.array([1]),
    ),
)


def doubling(first: onnx.NodeProto, **initializers: Any) -> onnx.ModelProto:
    """A tail of a few bytes whose tensors grow sixteenfold with each node, to a petabyte."""
    return of_nodes(
        first,
        *[helper.make_node("Concat", [f"x{i}"] * 16, [f"x{i + 1}"], axis=1) for i in range(9)],
        helper.make_node("GlobalAveragePool", ["x9"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Slice", ["flat", "start", "stop", "axis"], ["logits"]),
        start=np.array([0]),
        stop=np.array([3]),
        axis=np.array([1]),
        **initializers,
    )


attack_file(
    "graph-of-a-petabyte",
    r"tail\.onnx: (does not run: .*|takes over 512 MB to load and try, expected a classifier's graph)",
    TAIL,
    lambda: doubling(helper.make_node("Cast", ["symbols"], ["x0"], to=TensorProto.FLOAT)),
)
attack_file(
    "graph-of-a-petabyte-of-constants",
    r"tail\.onnx: (does not run: .*|takes over 512 MB to load and try, expected a classifier's graph)",
    TAIL,
    lambda: doubling(helper.make_node("Identity", ["seed"], ["x0"]), seed=np.zeros((2, 4, 4, 4), np.float32)),
)


def port_named_no_text() -> bytes:
    """A graph whose batch dimension has a name that is not UTF-8; ONNX's own schema allows it."""
    data = toy.tail().SerializeToString()
    dimension = b"\x0a\x03\x12\x01N"
    assert data.count(dimension) == 2
    return data.replace(dimension, b"\x0a\x03\x12\x01\xff")


attack_file(
    "dimension-whose-name-is-no-text",
    r"tail\.onnx: its inputs have names that are not text, expected .*",
    TAIL,
    port_named_no_text,
)


def not_a_number(model: onnx.ModelProto) -> None:
    """Damage that leaves a graph valid: one scale is NaN."""
    (scale,) = (tensor for tensor in model.graph.initializer if tensor.name == "dense_scale")
    scale.CopyFrom(numpy_helper.from_array(np.array(np.nan, np.float32), "dense_scale"))


attack_file(
    "head-that-gives-nan",
    r"head\.onnx: output 'logits' is not finite, expected numbers",
    HEAD,
    lambda: edited(not_a_number, toy.head),
)

# ---- lanes and rANS tables ---------------------------------------------------------------------------

for count, expected in {
    0: r"codec\.huffman\.lanes: Input should be greater than or equal to 1",
    9: r"codec\.huffman\.lanes: Input should be less than or equal to 8",
    5: r"the document: Value error, 5 lanes, expected at most the 4 channels",
}.items():
    attack_values(f"lanes-{count}", rf"manifest\.json: {expected}", "codec", "lanes", value=count)
attack_values(
    "lanes-by-their-old-name",
    r"manifest\.json: codec\.huffman\.layout: Extra inputs are not permitted",
    "codec",
    "layout",
    value="channel",
)


def rans_file(*tables: bytes, of_channel: tuple[int, ...] = (0, 0, 0, 0)) -> Damage:
    """Make it a bundle of rANS tables, with this file."""

    def damage(folder: BundleFolder) -> None:
        folder.edit("codec", value={"kind": "rans", "lanes": 1, "table_of_channel": list(of_channel)})
        folder.put(CODEBOOK, b"".join(tables))

    return damage


def table_bytes(runs: int, mode: int, *tokens: tuple[int, int, int, int], count: int | None = None) -> bytes:
    """A table as it is stored; tokens are (kind, run, symbol, frequency)."""
    header = struct.pack("<BBH", runs, mode, len(tokens) if count is None else count)
    return header + b"".join(struct.pack("<BBH", run, s, kind << 14 | f) for kind, run, s, f in tokens)


PLAIN = table_bytes(1, 0, (Kind.SYMBOL, 0, 7, 4000), (Kind.ESCAPE, 0, 0, 96))
UNFINISHED = r"the codebook ends within a table, or names an unknown kind of token"
NO_ESCAPE = r"a run has no escape, or one that it does not need"
RANS = {
    "of-0-tokens": (table_bytes(1, 0), r"a table with 0 tokens, expected 1 … 256"),
    "of-65535-tokens": (table_bytes(1, 0, count=65_535), r"a table with 65535 tokens, expected 1 … 256"),
    "of-257-tokens": (
        table_bytes(2, 0, *[(Kind.SYMBOL, i % 2, i // 2, 1) for i in range(257)]),
        r"a table with 257 tokens, expected 1 … 256",
    ),
    "of-more-tokens-than-bytes": (table_bytes(1, 0, (Kind.ESCAPE, 0, 0, 4096), count=2), UNFINISHED),
    "of-0-runs": (
        table_bytes(0, 0, (Kind.ESCAPE, 0, 0, 4096)),
        r"a table with 0 runs and 1 tokens, expected 1 … 128 and 1 … 256",
    ),
    "of-129-runs": (
        table_bytes(129, 0, (Kind.ESCAPE, 0, 0, 4096)),
        r"a table with 129 runs and 1 tokens, expected 1 … 128 and 1 … 256",
    ),
    "summing-to-4095": (
        table_bytes(1, 0, (Kind.SYMBOL, 0, 7, 4000), (Kind.ESCAPE, 0, 0, 95)),
        r"token frequencies sum to 4095, expected 4096 with each at least 1",
    ),
    "summing-to-two-times-4096": (
        table_bytes(1, 0, (Kind.SYMBOL, 0, 7, 4096), (Kind.ESCAPE, 0, 0, 4096)),
        r"token frequencies sum to 8192, expected 4096 with each at least 1",
    ),
    "with-a-frequency-of-0": (
        table_bytes(1, 0, (Kind.SYMBOL, 0, 7, 0), (Kind.ESCAPE, 0, 0, 4096)),
        r"token frequencies sum to 4096, expected 4096 with each at least 1",
    ),
    "without-an-escape": (table_bytes(1, 0, (Kind.SYMBOL, 0, 7, 4096)), NO_ESCAPE),
    "without-the-escape-of-a-run": (
        table_bytes(2, 0, (Kind.ESCAPE, 0, 0, 4000), (Kind.FULL, 1, 0, 96)),
        NO_ESCAPE,
    ),
    "with-an-escape-that-names-a-symbol": (
        table_bytes(
            1,
            0,
            *[(Kind.SYMBOL, 0, s, 15) for s in range(254)],
            (Kind.ESCAPE, 0, 0, 280),
            (Kind.ESCAPE, 0, 9, 6),
        ),
        r"an escape names a symbol",
    ),
    "with-a-token-of-no-kind": (table_bytes(1, 0, (Kind.SYMBOL, 0, 7, 4000), (3, 0, 0, 96)), UNFINISHED),
    "with-a-token-twice": (
        table_bytes(1, 0, (Kind.SYMBOL, 0, 7, 2000), (Kind.SYMBOL, 0, 7, 2000), (Kind.ESCAPE, 0, 0, 96)),
        r"a token is named twice",
    ),
    "with-the-mode-as-a-symbol": (
        table_bytes(
            2,
            5,
            (Kind.SYMBOL, 1, 5, 1),
            (Kind.ESCAPE, 0, 0, 5),
            (Kind.ESCAPE, 1, 0, 90),
            (Kind.FULL, 1, 5, 4000),
        ),
        r"a token's symbol is the mode 5, which is coded as a run",
    ),
    "with-a-run-of-no-run": (
        table_bytes(
            2,
            0,
            (Kind.SYMBOL, 2, 5, 1),
            (Kind.ESCAPE, 0, 0, 5),
            (Kind.ESCAPE, 1, 0, 90),
            (Kind.FULL, 1, 0, 4000),
        ),
        r"a token's run is not below 2",
    ),
    "without-full": (
        table_bytes(2, 0, (Kind.ESCAPE, 0, 0, 4000), (Kind.ESCAPE, 1, 0, 96)),
        r"the FULL tokens are not those of a table with 2 runs",
    ),
    "with-full-and-no-runs": (
        table_bytes(1, 0, (Kind.ESCAPE, 0, 0, 4000), (Kind.FULL, 0, 0, 96)),
        r"the FULL tokens are not those of a table with 1 runs",
    ),
    "with-full-of-another-length": (
        table_bytes(2, 0, (Kind.ESCAPE, 0, 0, 90), (Kind.ESCAPE, 1, 0, 6), (Kind.FULL, 0, 0, 4000)),
        r"the FULL tokens are not those of a table with 2 runs",
    ),
    "cut": (PLAIN[:-1], UNFINISHED),
    "cut-within-a-header": (PLAIN + PLAIN[:3], UNFINISHED),
    "with-a-byte-behind": (PLAIN + b"\0", UNFINISHED),
    "of-huffman": (UNIFORM * 4, r"a table with 34952 tokens, expected 1 … 256"),
    "of-more-tables-than-channels": (PLAIN * 5, r"the codebook has more tables than the 4 channels"),
    "of-a-million-tables": (PLAIN * 1_000_000, r"the codebook has more tables than the 4 channels"),
}
for name, (stored, expected) in RANS.items():
    attack(f"rans-tables-{name}", rf"codebook\.bin: {expected}")(rans_file(stored))
attack("rans-table-not-there", r"codebook\.bin: a channel names table 1, there are 1")(
    rans_file(PLAIN, of_channel=(0, 1, 0, 0))
)
attack("rans-tables-as-huffman", r"codebook\.bin: the codebook has 12 bytes, expected a multiple of 128")(
    lambda folder: folder.put(CODEBOOK, PLAIN)
)


def run_huffman_file(
    *tables: bytes, of_channel: tuple[int, ...] = (0, 0, 0, 0), modes: tuple[int, ...] = (0, 0, 0, 0)
) -> Damage:
    """Make it a bundle of run-Huffman tables, with this file."""

    def damage(folder: BundleFolder) -> None:
        maps = {"table_of_channel": list(of_channel), "mode_of_channel": list(modes)}
        folder.edit("codec", value={"kind": "run-huffman", "lanes": 1, **maps})
        folder.put(CODEBOOK, b"".join(tables))

    return damage


def halves(*values: int) -> bytes:
    """Half bytes, the low one first."""
    padded = [*values, 0][: len(values) + len(values) % 2]
    return bytes(low | high << 4 for low, high in zip(padded[0::2], padded[1::2], strict=True))


RUN_TABLE = bytes([2, 1, 0]) + halves(3, 2, 3, 0, 0, 1)
RUN_HUFFMAN = {
    "of-0-runs": (bytes([0, 1, 0]) + halves(1, 1), r"the codebook has 000100 where a table should start"),
    "of-65-runs": (bytes([65, 0, 0]) + halves(1), r"the codebook has 410000 where a table should start"),
    "cut-within-a-header": (RUN_TABLE + RUN_TABLE[:2], r"the codebook has 0201 where a table should start"),
    "cut": (RUN_TABLE[:-1], r"a table of the codebook has 3 code lengths, expected 5"),
    "with-zeros-past-its-end": (
        bytes([2, 1, 0]) + halves(3, 2, 3, 0, 15),
        r"a table of the codebook has 19 code lengths, expected 5",
    ),
    "with-padding": (
        bytes([2, 1, 0]) + halves(3, 2, 3, 3, 1, 7),
        r"a table of the codebook is not padded with zeros",
    ),
    "of-order-8": (
        bytes([2, 1, 8]) + RUN_TABLE[3:],
        r"a table of 2 runs, 2 columns and order 8, expected 1 … 64, 1 … 256 and 0 … 7",
    ),
    "not-complete": (
        bytes([2, 1, 0]) + halves(3, 3, 3, 0, 0, 1),
        r"a table has Kraft sum 0\.875, expected exactly 1",
    ),
    "over-full": (
        bytes([2, 1, 0]) + halves(1, 1, 1, 1, 1),
        r"a table has Kraft sum 2\.5, expected exactly 1",
    ),
    "without-an-escape": (
        bytes([2, 1, 0]) + halves(2, 2, 0, 0, 2, 2),
        r"a table has a run without an escape, or no code for a full run",
    ),
    "of-rans": (PLAIN, r"a table without runs has not just a code for each of the 256 symbols"),
    "of-more-tables-than-channels": (RUN_TABLE * 5, r"the codebook has more tables than the 4 channels"),
    "of-a-million-tables": (RUN_TABLE * 1_000_000, r"the codebook has more tables than the 4 channels"),
}
for name, (stored, expected) in RUN_HUFFMAN.items():
    attack(f"run-huffman-tables-{name}", rf"codebook\.bin: {expected}")(run_huffman_file(stored))
attack("run-huffman-table-not-there", r"codebook\.bin: a channel names table 1, there are 1")(
    run_huffman_file(RUN_TABLE, of_channel=(0, 1, 0, 0))
)
attack(
    "run-huffman-modes-missing",
    r"manifest\.json: the document: Value error, mode_of_channel has 3 entries, the activation 4 channels",
)(run_huffman_file(RUN_TABLE, modes=(0, 0, 0)))
attack(
    "run-huffman-mode-256",
    r"manifest\.json: codec\.run-huffman\.mode_of_channel\.1: Input should be less than or equal to 255",
)(run_huffman_file(RUN_TABLE, modes=(0, 256, 0, 0)))


def context_file(stored: bytes, **more: object) -> Damage:
    """Make it a bundle with a context model, with this file."""

    def damage(folder: BundleFolder) -> None:
        folder.edit("codec", value={"kind": "context", **more})
        folder.put(CODEBOOK, stored)

    return damage


# For 4x4x4 symbols and a reach of 1: modes, bases, rows, columns and weights.
MODEL_BYTES = 4 + 4 * 4 * 2 + 4 * 4 * 2 + 4 * 4 * 2 + 4 * 4 * 20
FOR_THIS = r" for an activation of shape \(4, 4, 4\) and a reach of \d"
CONTEXT = {
    "of-reach-0": (bytes(1 + MODEL_BYTES), r"the context model has a reach of 0, expected 1 … 15"),
    "of-reach-16": (b"\x10" + bytes(MODEL_BYTES), r"the context model has a reach of 16, expected 1 … 15"),
    "cut": (
        b"\1" + bytes(MODEL_BYTES - 1),
        rf"the context model has 420 bytes, expected 421{FOR_THIS}",
    ),
    "with-more-behind-it": (
        b"\1" + bytes(MODEL_BYTES + 1),
        rf"the context model has 422 bytes, expected 421{FOR_THIS}",
    ),
    "of-a-million-bytes": (
        b"\1" * 1_000_000,
        rf"the context model has 1,000,000 bytes, expected 421{FOR_THIS}",
    ),
    "of-another-reach": (
        b"\2" + bytes(MODEL_BYTES),
        rf"the context model has 421 bytes, expected 437{FOR_THIS}",
    ),
    "that-sees-what-comes-later": (
        b"\1" + bytes(MODEL_BYTES - 1) + b"\1",
        r"channel 3 has a weight for a symbol that is coded after it",
    ),
}
for name, (stored, expected) in CONTEXT.items():
    attack(f"context-model-{name}", rf"codebook\.bin: {expected}")(context_file(stored))
attack("context-model-with-lanes", r"manifest\.json: codec\.context\.lanes: Extra inputs are not permitted")(
    context_file(b"\1" + bytes(MODEL_BYTES), lanes=1)
)
