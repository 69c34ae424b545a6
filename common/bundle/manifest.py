"""``manifest.json``: what a bundle says about itself, and the bounds on it.

The manifest is strict: an unknown or repeated field, a wrong type or a value out of range is an error. What a
stranger chose reaches a message only through ``printable``: one line, no control characters.
"""

from __future__ import annotations

import json
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from offramp.common.bundle.unknown import MayKnowUnknown
from offramp.common.codec.lanes import MAX_LANES
from offramp.common.errors import BundleError, printable

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
HEAD, TAIL, CODEBOOK = "head.onnx", "tail.onnx", "codebook.bin"
MANIFEST_BYTES = 1 << 20
FILE_BYTES = 64 << 20
"""The paper's largest network has 25 MB at INT8."""
ACTIVATION_SYMBOLS = 1 << 22
Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,99}$")]
# Printed on terminals and in logs: no control, format or unassigned characters, no line separators.
Text = Annotated[str, StringConstraints(max_length=200, pattern=r"^[^\p{C}\p{Zl}\p{Zp}]+$")]
Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0, le=1 << 40)]
Side = Annotated[int, Field(ge=1, le=4096)]
Level = Annotated[int, Field(ge=0, le=255)]

SentAnswer = Literal["server", "both"]
"""Who answers an image that was sent: the server alone, or both exits together."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class FileEntry(_Strict):
    """Size in bytes and SHA-256 of one file."""

    size: Annotated[int, Field(ge=1, le=FILE_BYTES)]
    sha256: Digest


class Preprocessing(_Strict):
    """How a picture becomes the head's input, uint8 [N, 3, height, width].

    The scaling to the network's range is the head graph's first node, not the caller's work.
    """

    color: Literal["RGB"]
    height: Side
    width: Side
    resize: Literal["bilinear"]
    background: tuple[Level, Level, Level] = (255, 255, 255)
    """Red, green and blue behind what is transparent: white, also in manifests that do not say."""


class SplitPoint(_Strict):
    """Where the network is cut: the paper's exit number (Fig. 3) and the layer behind it."""

    model: Text
    exit: Annotated[int, Field(ge=1, le=10_000)]
    layer: Text


class Activation(_Strict):
    """The transmitted activation: uint8 symbols of this shape, real value = scale · (symbol − zero_point)."""

    shape: tuple[Side, Side, Side]
    """C, H, W."""
    scale: Annotated[float, Field(gt=0)]
    zero_point: Annotated[int, Field(ge=0, le=255)]

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        channels, height, width = self.shape
        if channels * height * width > ACTIVATION_SYMBOLS:
            raise ValueError(f"an activation of shape {self.shape} has over {ACTIVATION_SYMBOLS} symbols")
        return self


class Raw(_Strict):
    """One byte a symbol."""

    kind: Literal["raw"]


class _Coded(_Strict):
    """Symbols coded with the tables in ``codebook.bin``."""

    lanes: Annotated[int, Field(ge=1, le=MAX_LANES)]
    """Byte strings that an activation is coded as (``lanes.py``)."""
    table_of_channel: Annotated[list[Annotated[int, Field(ge=0, le=65_535)]], Field(min_length=1)]
    """The table of each channel. The paper's one codebook for all is a list of zeros."""


class Huffman(_Coded):
    """Canonical Huffman code, stored as code lengths (Sec. III-C)."""

    kind: Literal["huffman"]


class RunHuffman(_Coded):
    """Canonical Huffman code over tokens of runs, stored as code lengths (``run_huffman.py``)."""

    kind: Literal["run-huffman"]
    mode_of_channel: Annotated[list[Annotated[int, Field(ge=0, le=255)]], Field(min_length=1)]
    """The symbol that each channel's symbols are measured from; its likeliest one."""


class Rans(_Coded):
    """Static-table rANS over tokens of runs, stored as frequencies (``rans.py``)."""

    kind: Literal["rans"]


class Context(_Strict):
    """rANS whose frequencies follow what has been coded; ``codebook.bin`` is the model (``context.py``)."""

    kind: Literal["context"]

    @property
    def lanes(self) -> int:
        """Always one: what is coded depends on all before it."""
        return 1


class ThresholdFigures(_Strict):
    """Measured at one confidence threshold, over all images; an image that exits early sends 0 bytes."""

    threshold: Fraction
    accuracy: Fraction
    exit_rate: Fraction
    payload_bytes_mean: Annotated[float, Field(ge=0)]


class Figures(_Strict):
    """What this bundle measured on images that neither trained, chose nor calibrated it."""

    images: Count
    accuracy_early: Fraction
    accuracy_final: Fraction
    accuracy_early_float: Fraction
    accuracy_final_float: Fraction
    payload_bytes_mean: Annotated[float, Field(ge=0)]
    """Over all images, each of them offloaded."""
    entropy_bits: Annotated[float, Field(ge=0, le=8)]
    """Empirical entropy of the symbols, bits a symbol, one distribution for the tensor."""
    entropy_bits_channel: Annotated[float, Field(ge=0, le=8)]
    """The same, one distribution for each channel."""
    thresholds: list[ThresholdFigures]

    @property
    def in_float(self) -> tuple[float, float]:
        """Accuracy of the float32 model's early and final exit."""
        return self.accuracy_early_float, self.accuracy_final_float


class DatasetEntry(_Strict):
    """Which images: name, SHA-256 over all of them and their labels, and the size of each split."""

    name: Text
    sha256: Digest
    train: Count
    validation: Count
    test: Count


class Provenance(_Strict):
    """Where the bundle comes from: enough to make it again."""

    commit: Annotated[str, StringConstraints(pattern=r"^([0-9a-f]{40}(-dirty)?|unknown)$")]
    dataset: DatasetEntry
    recipe: Annotated[str, StringConstraints(max_length=65_536)]
    """The whole text of the recipe file."""
    seed: Annotated[int, Field(ge=0, lt=1 << 64)]
    libraries: dict[Name, Text]


class Manifest(MayKnowUnknown, _Strict):
    """``manifest.json``."""

    format_version: Literal[1]
    name: Name
    files: dict[Literal["head.onnx", "tail.onnx", "codebook.bin"], FileEntry]
    classes: Annotated[list[Text], Field(min_length=2, max_length=65_536)]
    preprocessing: Preprocessing
    split: SplitPoint
    activation: Activation
    codec: Annotated[Raw | Huffman | RunHuffman | Rans | Context, Field(discriminator="kind")]
    threshold: Fraction
    """Default confidence threshold T_c."""
    temperature: Annotated[float, Field(ge=0.001, le=1000)]
    """The early exit's logits are divided by it before the softmax; 1 leaves them as they are."""
    sent_answer: SentAnswer = "server"
    provenance: Provenance
    figures: Figures

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        expected = {HEAD, TAIL} | (set() if isinstance(self.codec, Raw) else {CODEBOOK})
        if set(self.files) != expected:
            raise ValueError(f"files are {sorted(self.files)}, expected {sorted(expected)}")
        if self.unknown is not None:
            self.unknown.check(self.activation.shape[0], len(self.classes))
        if isinstance(self.codec, _Coded):
            channels, mapped = self.activation.shape[0], len(self.codec.table_of_channel)
            if mapped != channels:
                raise ValueError(f"table_of_channel has {mapped} entries, the activation {channels} channels")
            if self.codec.lanes > channels:
                raise ValueError(f"{self.codec.lanes} lanes, expected at most the {channels} channels")
            if isinstance(self.codec, RunHuffman) and len(self.codec.mode_of_channel) != channels:
                modes = len(self.codec.mode_of_channel)
                raise ValueError(f"mode_of_channel has {modes} entries, the activation {channels} channels")
        return self

    def reads_otherwise(self, other: Manifest) -> str | None:
        """What keeps one picture from meaning the same to both bundles: the field's name, or None."""
        fields = ("classes", "preprocessing")
        return next((name for name in fields if getattr(self, name) != getattr(other, name)), None)


def parse_manifest(text: bytes) -> Manifest:
    """The manifest in these bytes. Raises BundleError naming the first field that is wrong."""
    try:
        manifest = Manifest.model_validate_json(text)
    except ValidationError as error:
        first, count = error.errors(include_url=False)[0], error.error_count()
        where = printable(".".join(str(part) for part in first["loc"])) or "the document"
        more = f" (and {count - 1} more)" if count > 1 else ""
        raise BundleError(f"{MANIFEST}: {where}: {printable(first['msg'])}{more}") from None
    # Pydantic keeps the last of two equal keys, other readers the first: a manifest says one thing only.
    json.loads(text, object_pairs_hook=_distinct)
    return manifest


def _distinct(pairs: list[tuple[str, object]]) -> None:
    seen = set()
    for key, _ in pairs:
        if key in seen:
            raise BundleError(f"{MANIFEST}: {printable(key)}: is there twice, expected once")
        seen.add(key)
