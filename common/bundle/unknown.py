"""What a manifest says of inputs unlike any that the bundle knows; ``part/unknown.py`` computes the score."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

NUMBERS = 16_384
"""Of all centres together: what a class costs is two numbers for each channel of the code."""

_Vector = Annotated[list[float], Field(min_length=2, max_length=8192)]


class Unknown(BaseModel):
    """Where the codes of known inputs lie, and how far away an input counts as unknown."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    centres: Annotated[list[_Vector], Field(min_length=1, max_length=NUMBERS // 2)]
    """Of each class, or one for all: the mean of the code's features, in symbols."""
    deviations: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=2, max_length=8192)]
    """Of each feature, around the centres."""
    threshold: Annotated[float, Field(ge=0)]
    """An input is unknown if its distance exceeds this."""
    false_alarms: Annotated[float, Field(gt=0, lt=1)]
    """Share of known inputs for which the threshold was chosen."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        lengths = {len(centre) for centre in self.centres} | {len(self.deviations)}
        if len(lengths) != 1:
            raise ValueError(f"centres and deviations have the lengths {sorted(lengths)}, expected one")
        if len(self.centres) * len(self.deviations) > NUMBERS:
            raise ValueError(f"centres have over {NUMBERS} numbers")
        return self

    def check(self, channels: int, classes: int) -> None:
        """Raise ValueError unless it fits a code of so many channels, and so many classes."""
        if len(self.deviations) != 2 * channels:
            raise ValueError(
                f"unknown has {len(self.deviations)} features, the activation {channels} channels; "
                f"expected {2 * channels}"
            )
        if len(self.centres) not in (1, classes):
            raise ValueError(f"unknown has {len(self.centres)} centres, expected 1 or {classes}")


class MayKnowUnknown(BaseModel):
    """A manifest with or without it. Without, it is written as releases that know no such field read it."""

    unknown: Unknown | None = None
    """Of the first exit."""

    @model_serializer(mode="wrap")
    def _last_or_left_out(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        found: dict[str, Any] = handler(self)
        unknown = found.pop("unknown", None)
        return found if unknown is None else {**found, "unknown": unknown}
