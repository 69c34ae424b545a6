"""What a bundle's first part takes: a picture, or a tensor and how it is made of a file.

Every bound is here, so that no manifest can ask a device for more memory or time than they allow.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Side = Annotated[int, Field(ge=1, le=4096)]
Sides = Annotated[tuple[Side, ...], Field(min_length=1, max_length=4)]
Level = Annotated[int, Field(ge=0, le=255)]
Real = Annotated[float, Field(ge=-1e30, le=1e30)]

TENSOR_VALUES = 1 << 24
"""Most values of one tensor."""
Length = Annotated[int, Field(ge=1, le=TENSOR_VALUES)]
SAMPLES = 1 << 20
"""Most samples of a sound that a tensor is made of."""
WINDOWED = 1 << 24
"""Most samples of all its windows together."""


class Strict(BaseModel):
    """An object that is what its fields say: no other field, no other type, no NaN."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Preprocessing(Strict):
    """How a picture becomes the head's input, uint8 [3, height, width].

    The scaling to the network's range is the head graph's first node, not the caller's work.
    """

    color: Literal["RGB"]
    height: Side
    width: Side
    resize: Literal["bilinear"]
    background: tuple[Level, Level, Level] = (255, 255, 255)
    """Red, green and blue behind what is transparent: white, also in manifests that do not say."""


class PictureInput(Preprocessing):
    """``input`` of a bundle for pictures."""

    kind: Literal["picture"] = "picture"

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one input, as the head takes it."""
        return (3, self.height, self.width)

    @property
    def dtype(self) -> Literal["uint8"]:
        """Of one input."""
        return "uint8"

    @property
    def what(self) -> str:
        """For messages."""
        return "pictures"


class LogMel(Strict):
    """A spectrogram in decibels, [1, mels, frames] (``sounds.py`` has the formula)."""

    kind: Literal["log-mel"]
    window: Annotated[int, Field(ge=16, le=8192)]
    """Samples of one frame, and of its Fourier transform."""
    hop: Annotated[int, Field(ge=1, le=8192)]
    """Samples from one frame to the next."""
    mels: Annotated[int, Field(ge=1, le=512)]
    """Bands."""
    fmin: Annotated[float, Field(ge=0, le=96_000)]
    """Lower edge of the lowest band, Hz."""
    fmax: Annotated[float, Field(gt=0, le=96_000)]
    """Upper edge of the highest band, Hz."""
    floor: Annotated[float, Field(ge=-200, lt=0)]
    """What quieter bands have, dB; a sine of full scale has 0 dB."""


class WavFile(Strict):
    """The tensor is made of a WAV file: mixed down, resampled, cut or padded to its middle, transformed."""

    kind: Literal["wav"]
    rate: Annotated[int, Field(ge=4000, le=48_000)]
    """Samples a second that a sound is resampled to, Hz."""
    seconds: Annotated[float, Field(gt=0, le=600)]
    transform: LogMel

    @property
    def samples(self) -> int:
        """Of one input."""
        return round(self.rate * self.seconds)

    @property
    def frames(self) -> int:
        """Windows that lie in these samples as a whole."""
        return 1 + (self.samples - self.transform.window) // self.transform.hop

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        t = self.transform
        if not t.window <= self.samples <= SAMPLES:
            raise ValueError(f"{self.samples} samples, expected {t.window} (a window) … {SAMPLES}")
        if self.frames * t.window > WINDOWED:
            raise ValueError(f"{self.frames} windows of {t.window} samples are over {WINDOWED} samples")
        if not t.fmin < t.fmax <= self.rate / 2:
            raise ValueError(f"bands of {t.fmin:g} … {t.fmax:g} Hz, expected 0 … {self.rate / 2:g} Hz")
        return self


class ArrayFile(Strict):
    """The tensor is the array of an ``.npy`` file, or one of a stack in ``.npy`` or ``.npz``."""

    kind: Literal["array"]


class TensorInput(Strict):
    """``input`` of a bundle for tensors.

    As ``uint8`` a value q means low + q · (high - low) / 255; as ``float32`` values are the numbers
    themselves. In both, what lies outside of the range is taken for its nearer end.
    """

    kind: Literal["tensor"]
    shape: Annotated[tuple[Length, ...], Field(min_length=1, max_length=4)]
    dtype: Literal["uint8", "float32"]
    range: tuple[Real, Real]
    """(low, high)."""
    file: Annotated[ArrayFile | WavFile, Field(discriminator="kind")]

    @property
    def what(self) -> str:
        """For messages."""
        return "sounds" if isinstance(self.file, WavFile) else "tensors"

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if math.prod(self.shape) > TENSOR_VALUES:
            raise ValueError(f"a tensor of shape {self.shape} has over {TENSOR_VALUES} values")
        low, high = self.range
        # A range that float32 cannot hold would divide by zero.
        if not low < high or not (high - low) > 1e-6 * max(abs(low), abs(high)):
            raise ValueError(f"range is {low:g} … {high:g}, expected the lower end first, and room between")
        if isinstance(self.file, WavFile):
            made = (1, self.file.transform.mels, self.file.frames)
            if self.shape != made:
                raise ValueError(f"shape is {self.shape}, the sound's transform makes {made}")
            if low != self.file.transform.floor:
                raise ValueError(
                    f"range begins at {low:g}, the transform's floor is {self.file.transform.floor:g}"
                )
        return self


Input = PictureInput | TensorInput
