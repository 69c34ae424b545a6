"""What a bundle says about itself, and the bounds on it; ``document.py`` reads it from ``manifest.json``.

A bundle is a chain of parts, each of which runs on a machine of its own; between two parts an activation
crosses. This is format version 2. Documents of version 1 are read into the same model (``version1.py``).
It has room for up to ``PARTS`` parts; what runs today is two, a head and a tail, and the properties of
``Manifest`` that are named after them are of such a pair.

The manifest is strict: an unknown field, a wrong type or a value out of range is an error.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    StringConstraints,
    model_serializer,
    model_validator,
)

from offramp.common.bundle.drift import EarlyExitFigures
from offramp.common.bundle.signature import SIGNATURE
from offramp.common.bundle.unknown import MayKnowUnknown
from offramp.common.codec.lanes import MAX_LANES
from offramp.common.errors import BundleError
from offramp.common.inputs.spec import Input, Preprocessing, Sides, Strict

MANIFEST = "manifest.json"
HEAD, TAIL, CODEBOOK = "head.onnx", "tail.onnx", "codebook.bin"
"""Files of a pair."""
FILE_BYTES = 64 << 20
"""The paper's largest network has 25 MB at INT8."""
ACTIVATION_SYMBOLS = 1 << 22
PARTS = 16
CLASSES = 65_536
Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,99}$")]
# Printed on terminals and in logs: no control, format or unassigned characters, no line separators.
Text = Annotated[str, StringConstraints(max_length=200, pattern=r"^[^\p{C}\p{Zl}\p{Zp}]+$")]
Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Fraction = Annotated[float, Field(ge=0, le=1)]
Temperature = Annotated[float, Field(ge=0.001, le=1000)]
Count = Annotated[int, Field(ge=0, le=1 << 40)]

SentAnswer = Literal["server", "both"]
"""Who answers an image that was sent: the server alone, or both exits together."""


class FileEntry(Strict):
    """Size in bytes and SHA-256 of one file."""

    size: Annotated[int, Field(ge=1, le=FILE_BYTES)]
    sha256: Digest


class Raw(Strict):
    """One byte a symbol."""

    kind: Literal["raw"]


class Coded(Strict):
    """Symbols coded with the tables in a file of their own."""

    lanes: Annotated[int, Field(ge=1, le=MAX_LANES)]
    """Byte strings that an activation is coded as (``lanes.py``)."""
    table_of_channel: Annotated[
        list[Annotated[int, Field(ge=0, le=65_535)]], Field(min_length=1, max_length=4096)
    ]
    """The table of each channel. The paper's one codebook for all is a list of zeros."""


class Huffman(Coded):
    """Canonical Huffman code, stored as code lengths (Sec. III-C)."""

    kind: Literal["huffman"]


class RunHuffman(Coded):
    """Canonical Huffman code over tokens of runs, stored as code lengths (``run_huffman.py``)."""

    kind: Literal["run-huffman"]
    mode_of_channel: Annotated[
        list[Annotated[int, Field(ge=0, le=255)]], Field(min_length=1, max_length=4096)
    ]
    """The symbol that each channel's symbols are measured from; its likeliest one."""


class Rans(Coded):
    """Static-table rANS over tokens of runs, stored as frequencies (``rans.py``)."""

    kind: Literal["rans"]


class Context(Strict):
    """rANS whose frequencies follow what has been coded; its file is the model (``context.py``)."""

    kind: Literal["context"]

    @property
    def lanes(self) -> int:
        """Always one: what is coded depends on all before it."""
        return 1


Codec = Annotated[Raw | Huffman | RunHuffman | Rans | Context, Field(discriminator="kind")]


def check_codec(codec: Raw | Coded | Context, channels: int) -> None:
    """Raise ValueError for a codec that does not fit an activation of so many channels."""
    if not isinstance(codec, Coded):
        return
    mapped = len(codec.table_of_channel)
    if mapped != channels:
        raise ValueError(f"table_of_channel has {mapped} entries, the activation {channels} channels")
    if codec.lanes > channels:
        raise ValueError(f"{codec.lanes} lanes, expected at most the {channels} channels")
    if isinstance(codec, RunHuffman) and len(codec.mode_of_channel) != channels:
        modes = len(codec.mode_of_channel)
        raise ValueError(f"mode_of_channel has {modes} entries, the activation {channels} channels")


def check_symbols(shape: tuple[int, ...]) -> None:
    """Raise ValueError for an activation of more symbols than any bundle may have."""
    if math.prod(shape) > ACTIVATION_SYMBOLS:
        raise ValueError(f"an activation of shape {shape} has over {ACTIVATION_SYMBOLS} symbols")


class Crossing(Strict):
    """What crosses between two parts: uint8 symbols, real value = scale · (symbol − zero_point)."""

    shape: Sides
    """Rank 1 … 4, such as [C, H, W] of a map or [T, C] of tokens."""
    channel_axis: Annotated[int, Field(ge=0, le=3)] = 0
    """Which of its axes the tables are chosen by."""
    scale: Annotated[float, Field(gt=0)]
    zero_point: Annotated[int, Field(ge=0, le=255)]
    codec: Codec
    tables: Name | None = None
    """File with the codec's tables; none for raw symbols."""

    @property
    def coded_shape(self) -> tuple[int, int, int]:
        """As the codec sees it: channels first, and the other axes in two."""
        others = [side for axis, side in enumerate(self.shape) if axis != self.channel_axis]
        return self.shape[self.channel_axis], math.prod(others[:-1]), math.prod(others[-1:])

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        check_symbols(self.shape)
        if self.channel_axis >= len(self.shape):
            raise ValueError(
                f"channel_axis is {self.channel_axis}, the activation has {len(self.shape)} axes"
            )
        check_codec(self.codec, self.shape[self.channel_axis])
        if (self.tables is None) != isinstance(self.codec, Raw):
            raise ValueError("tables: expected a file's name for every codec but raw")
        return self


class Exit(Strict):
    """An early exit behind a part."""

    threshold: Fraction
    """Default confidence threshold T_c."""
    temperature: Temperature
    """Its logits are divided by it before the softmax; 1 leaves them as they are."""


class Cut(Strict):
    """Where a part ends: the layer's name, and the paper's exit number (Fig. 3) or the cut's own."""

    name: Text
    number: Annotated[int, Field(ge=1, le=10_000)]


class Part(Strict):
    """What one machine runs."""

    graph: Name
    """Its ONNX file."""
    cut: Cut | None = None
    """Where it ends; None for the last."""
    macs: Count | None = None
    """Multiply-accumulates for one input, exit and code included; None where nobody counted."""
    weights: Count | None = None
    exit: Exit | None = None


class ThresholdFigures(Strict):
    """Measured at one confidence threshold, over all images; an image that exits early sends 0 bytes."""

    threshold: Fraction
    accuracy: Fraction
    exit_rate: Fraction
    payload_bytes_mean: Annotated[float, Field(ge=0)]


class AgreementFigures(Strict):
    """Of the images that exit early at a threshold: how many, and for how many the server says the same."""

    threshold: Fraction
    exits: Count
    agree: Count

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        if self.agree > self.exits:
            raise ValueError(f"{self.agree} of {self.exits} images agree, expected no more than exit")
        return self

    @property
    def ratio(self) -> float:
        """The share that agrees; 0 images have none."""
        return self.agree / self.exits


class PartFigures(Strict):
    """Of one part on the test images, with every exit at its default threshold."""

    accuracy: Fraction
    """Of its own answers, were every image to reach it."""
    accuracy_float: Fraction
    answered: Fraction
    """Share of the images that it answers."""
    right: Fraction
    """Share of all images that it answers rightly; over all parts, the accuracy."""
    payload_bytes_mean: Annotated[float, Field(ge=0)]
    """Of what crosses behind it, were every image to cross; 0 behind the last part."""
    sent_bytes_mean: Annotated[float, Field(ge=0)]
    """Of what does cross, over all images."""


class Figures(Strict):
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
    agreement: list[AgreementFigures] | None = None
    """What audits are compared with."""
    drift: EarlyExitFigures | None = None
    """What a device's images are compared with."""
    parts: list[PartFigures] | None = None
    """Of each part of a chain of more than two; a pair is written without it."""

    @model_serializer(mode="wrap")
    def _without_what_is_not_there(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Bundles of before do not have the last three, and are written without them."""
        found: dict[str, Any] = handler(self)
        missing = [name for name in ("agreement", "drift", "parts") if found[name] is None]
        return {name: value for name, value in found.items() if name not in missing}

    @property
    def in_float(self) -> tuple[float, float]:
        """Accuracy of the float32 model's early and final exit."""
        return self.accuracy_early_float, self.accuracy_final_float


class DatasetEntry(Strict):
    """Which images: name, SHA-256 over all of them and their labels, and the size of each split."""

    name: Text
    sha256: Digest
    train: Count
    validation: Count
    test: Count


class Provenance(Strict):
    """Where the bundle comes from: enough to make it again."""

    commit: Annotated[str, StringConstraints(pattern=r"^([0-9a-f]{40}(-dirty)?|unknown)$")]
    dataset: DatasetEntry
    recipe: Annotated[str, StringConstraints(max_length=65_536)]
    """The whole text of the recipe file."""
    seed: Annotated[int, Field(ge=0, lt=1 << 64)]
    libraries: dict[Name, Text]


class Manifest(MayKnowUnknown, Strict):
    """A bundle's manifest, of either version.

    ``format_version`` is that of the document it was read from or is to be written as: a bundle of version 1
    that gets another threshold stays one, so that older releases go on reading it.
    """

    format_version: Literal[1, 2]
    name: Name
    model: Text
    """What was cut."""
    input: Annotated[Input, Field(discriminator="kind")]
    classes: Annotated[list[Text], Field(min_length=2, max_length=CLASSES)]
    files: dict[Name, FileEntry]
    """Every file of the bundle but the manifest and its signatures."""
    parts: Annotated[list[Part], Field(min_length=2, max_length=PARTS)]
    crossings: Annotated[list[Crossing], Field(min_length=1, max_length=PARTS - 1)]
    """One behind each part but the last."""
    answers: Literal["last", "all"]
    """Who answers what was sent: the last exit that was heard of, or all of them together."""
    provenance: Provenance
    figures: Figures

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(self.crossings) != len(self.parts) - 1:
            raise ValueError(
                f"{len(self.parts)} parts with {len(self.crossings)} crossings, expected one between two"
            )
        used = [part.graph for part in self.parts]
        used += [each.tables for each in self.crossings if each.tables is not None]
        if len(set(used)) != len(used):
            raise ValueError(f"files are used as {used}, expected each of them once")
        if set(self.files) != set(used) or {MANIFEST, SIGNATURE} & set(used):
            raise ValueError(f"files are {sorted(self.files)}, expected {sorted(used)}")
        if self.parts[0].exit is None:
            raise ValueError(
                "the first part has no exit, expected one: a device answers by it without a server"
            )
        if self.parts[-1].exit is not None or self.parts[-1].cut is not None:
            raise ValueError("the last part has an exit or a cut, expected neither: the network ends there")
        if any(part.cut is None for part in self.parts[:-1]):
            raise ValueError("a part but the last has no cut, expected where it ends")
        if self.figures.drift is not None:
            self.figures.drift.check(len(self.classes))
        if self.figures.parts is not None and len(self.figures.parts) != len(self.parts):
            raise ValueError(f"figures of {len(self.figures.parts)} parts, expected {len(self.parts)}")
        if self.unknown is not None:
            if self.activation.channel_axis:
                raise ValueError("unknown: expected an activation whose channel_axis is 0")
            self.unknown.check(self.activation.shape[0], len(self.classes))
        return self

    # --- of the pair that a device and a server run ---

    @property
    def preprocessing(self) -> Preprocessing:
        """How a picture becomes the input. Raises BundleError for a bundle that takes tensors."""
        if not isinstance(self.input, Preprocessing):
            raise BundleError(f"{self.name}: takes {self.input.what}, expected a bundle for pictures")
        return self.input

    @property
    def head(self) -> Part:
        """The first part."""
        return self.parts[0]

    @property
    def activation(self) -> Crossing:
        """What crosses from the first part to the second."""
        return self.crossings[0]

    @property
    def codec(self) -> Raw | Huffman | RunHuffman | Rans | Context:
        """How that is coded."""
        return self.crossings[0].codec

    @property
    def threshold(self) -> float:
        """Default confidence threshold T_c of the first exit."""
        return self._exit.threshold

    @property
    def temperature(self) -> float:
        """What the first exit's logits are divided by before the softmax."""
        return self._exit.temperature

    @property
    def sent_answer(self) -> SentAnswer:
        """Who answers an image that was sent."""
        return "both" if self.answers == "all" else "server"

    @property
    def cut(self) -> Cut:
        """Where the first part ends."""
        assert self.head.cut is not None
        return self.head.cut

    @property
    def _exit(self) -> Exit:
        assert self.head.exit is not None
        return self.head.exit

    def changed(
        self,
        *,
        threshold: float | None = None,
        temperature: float | None = None,
        sent_answer: SentAnswer | None = None,
        crossing: dict[str, Any] | None = None,
        **fields: Any,
    ) -> Manifest:
        """A copy with other values of the first exit, of who answers, of the first crossing and of fields.

        Nothing is validated; ``write_bundle`` does that.
        """
        part = self.head
        exit_ = self._exit.model_copy(
            update={
                "threshold": self.threshold if threshold is None else threshold,
                "temperature": self.temperature if temperature is None else temperature,
            }
        )
        fields["parts"] = [part.model_copy(update={"exit": exit_}), *self.parts[1:]]
        fields["crossings"] = [self.activation.model_copy(update=crossing or {}), *self.crossings[1:]]
        if sent_answer is not None:
            fields["answers"] = "all" if sent_answer == "both" else "last"
        return self.model_copy(update=fields)

    def reads_otherwise(self, other: Manifest) -> str | None:
        """What keeps one input from meaning the same to both bundles: the field's name, or None."""
        fields = ("classes", "input")
        return next((name for name in fields if getattr(self, name) != getattr(other, name)), None)
