"""A device and its link, from a TOML file: what ``offramp plan`` and ``offramp split`` know of it.

macs_per_second = 2e9              # of one image; or the two figures of a head that was measured there:
# measured = { macs = 12_000_000, seconds = 0.004 }
head_seconds = 0.02                # most that the head may take for an image
memory_bytes = 500_000             # for activations, and for the weights where there is no flash_bytes
flash_bytes = 2_000_000            # for the head's weights, one byte each
link_bits_per_second = 50_000
round_trip_seconds = 0.3

[[gateways]]                       # machines between device and server, the device's next hop first
macs_per_second = 20e9
queue_seconds = 0.001              # what an image waits there
link_bits_per_second = 20e6        # from it to the next hop
round_trip_seconds = 0.02
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from offramp.common.errors import ConfigError, printable
from offramp.common.files import read_bounded
from offramp.training import toml
from offramp.training.fields import problem

PROFILE_BYTES = 1 << 20
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]


class Measured(BaseModel):
    """What one head took on the device: multiply-accumulates, and seconds of one image."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    macs: Positive
    seconds: Positive


class Gateway(BaseModel):
    """A machine between device and server, and its link to the next hop; the defaults are a small computer
    with a wire."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    macs_per_second: Positive = 20e9
    queue_seconds: NotNegative = 0.001
    link_bits_per_second: Positive = 20e6
    round_trip_seconds: NotNegative = 0.02


class Profile(BaseModel):
    """A device and its link, and the gateways behind it; the defaults are a small processor behind LTE-M."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    macs_per_second: Positive = 2e9
    memory_bytes: Positive = 4e6
    link_bits_per_second: Positive = 50e3
    round_trip_seconds: NotNegative = 0.3
    server_seconds: NotNegative = 0.005
    joules_per_mac: NotNegative = 5e-12
    joules_per_byte: NotNegative = 2e-5
    flash_bytes: Positive | None = None
    head_seconds: Positive | None = None
    measured: Measured | None = None
    gateways: tuple[Gateway, ...] = ()

    @property
    def speed(self) -> float:
        """Multiply-accumulates a second: measured, else as stated."""
        return self.macs_per_second if self.measured is None else self.measured.macs / self.measured.seconds

    def fits(self, macs: int, weights: int, activations: int) -> bool:
        """Whether a head runs there: multiply-accumulates of an image, and bytes."""
        in_memory = activations if self.flash_bytes is not None else activations + weights
        if in_memory > self.memory_bytes or weights > (self.flash_bytes or math.inf):
            return False
        return self.head_seconds is None or macs <= self.head_seconds * self.speed


def read_profile(path: Path | None, settings: Sequence[str] = ()) -> Profile:
    """A profile from a TOML file, with fields replaced. Raises ConfigError naming the field that is wrong."""
    text, origin = "", "--set"
    if path is not None:
        origin = str(path)
        try:
            text = read_bounded(
                path, PROFILE_BYTES, name=f"cannot read profile {path}", expected="a TOML file"
            ).decode()
        except UnicodeDecodeError:
            raise ConfigError(
                f"cannot read profile {path}: is not UTF-8 text, expected a TOML file"
            ) from None
    try:
        values = toml.parsed(text)
        for setting in settings:
            values |= toml.parsed(setting)
        return Profile.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{origin}: {problem(error, Profile)}") from None
    except ValueError as error:
        raise ConfigError(f"{origin} is not TOML: {printable(str(error))}") from None
