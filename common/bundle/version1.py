"""Documents of format version 1: one pair for pictures, its activation a map. Read as, and written from,
the one model that the programs use (``manifest.py``).
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from offramp.common.bundle.manifest import (
    CODEBOOK,
    HEAD,
    TAIL,
    Codec,
    Crossing,
    Cut,
    Exit,
    Figures,
    FileEntry,
    Fraction,
    Manifest,
    Name,
    Part,
    Provenance,
    Raw,
    SentAnswer,
    Temperature,
    Text,
    check_codec,
    check_symbols,
)
from offramp.common.bundle.unknown import MayKnowUnknown
from offramp.common.errors import BundleError
from offramp.common.inputs.spec import PictureInput, Preprocessing, Side, Strict


class SplitPoint(Strict):
    """Where the network is cut: the paper's exit number (Fig. 3) and the layer behind it."""

    model: Text
    exit: Annotated[int, Field(ge=1, le=10_000)]
    layer: Text


class Activation(Strict):
    """The transmitted activation: uint8 symbols of this shape, real value = scale · (symbol − zero_point)."""

    shape: tuple[Side, Side, Side]
    """C, H, W."""
    scale: Annotated[float, Field(gt=0)]
    zero_point: Annotated[int, Field(ge=0, le=255)]

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        check_symbols(self.shape)
        return self


class Version1(MayKnowUnknown, Strict):
    """``manifest.json`` of format version 1, field by field in the order in which it is written."""

    format_version: Literal[1]
    name: Name
    files: dict[Literal["head.onnx", "tail.onnx", "codebook.bin"], FileEntry]
    classes: Annotated[list[Text], Field(min_length=2, max_length=65_536)]
    preprocessing: Preprocessing
    split: SplitPoint
    activation: Activation
    codec: Codec
    threshold: Fraction
    temperature: Temperature
    sent_answer: SentAnswer = "server"
    provenance: Provenance
    figures: Figures

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        expected = {HEAD, TAIL} | (set() if isinstance(self.codec, Raw) else {CODEBOOK})
        if set(self.files) != expected:
            raise ValueError(f"files are {sorted(self.files)}, expected {sorted(expected)}")
        check_codec(self.codec, self.activation.shape[0])
        return self

    def manifest(self) -> Manifest:
        """The same as the one model."""
        return Manifest(
            format_version=1,
            name=self.name,
            model=self.split.model,
            input=PictureInput(**dict(self.preprocessing)),
            classes=self.classes,
            files={str(name): entry for name, entry in self.files.items()},
            parts=[
                Part(
                    graph=HEAD,
                    cut=Cut(name=self.split.layer, number=self.split.exit),
                    exit=Exit(threshold=self.threshold, temperature=self.temperature),
                ),
                Part(graph=TAIL),
            ],
            crossings=[
                Crossing(
                    shape=self.activation.shape,
                    scale=self.activation.scale,
                    zero_point=self.activation.zero_point,
                    codec=self.codec,
                    tables=None if isinstance(self.codec, Raw) else CODEBOOK,
                )
            ],
            answers="all" if self.sent_answer == "both" else "last",
            provenance=self.provenance,
            figures=self.figures,
            unknown=self.unknown,
        )

    @classmethod
    def of(cls, manifest: Manifest) -> Self:
        """The document of a manifest. Raises BundleError or ValidationError for what it cannot say."""
        crossing = manifest.activation
        if len(manifest.parts) != 2 or len(crossing.shape) != 3 or crossing.channel_axis:
            raise BundleError(f"{manifest.name}: version 1 has two parts and an activation [C, H, W]")
        channels, height, width = crossing.shape
        return cls(
            format_version=1,
            name=manifest.name,
            files=dict(manifest.files),  # type: ignore[arg-type] # pydantic refuses other names
            classes=manifest.classes,
            preprocessing=Preprocessing(
                **{name: getattr(manifest.preprocessing, name) for name in Preprocessing.model_fields}
            ),
            split=SplitPoint(model=manifest.model, exit=manifest.cut.number, layer=manifest.cut.name),
            activation=Activation(
                shape=(channels, height, width), scale=crossing.scale, zero_point=crossing.zero_point
            ),
            codec=crossing.codec,
            threshold=manifest.threshold,
            temperature=manifest.temperature,
            sent_answer=manifest.sent_answer,
            provenance=manifest.provenance,
            figures=manifest.figures,
            unknown=manifest.unknown,
        )
