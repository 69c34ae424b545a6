"""What a bundle's early exit said of its test images: what a deployed device's images are compared with."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Annotated, Self

from pydantic import Field, model_validator

from offramp.common.inputs.spec import Strict

EDGES = (0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.999)
"""Of confidence's bins; closer where confidences are many. Each bin holds its upper edge."""

_Images = Annotated[int, Field(ge=0, le=1 << 40)]


def bin_of(edges: Sequence[float], confidence: float) -> int:
    """The bin of a confidence, 0 … len(edges)."""
    return bisect_left(edges, confidence)


class EarlyExitFigures(Strict):
    """Images by the early exit's confidence and by the class that it names; neither depends on T_c."""

    edges: Annotated[list[Annotated[float, Field(gt=0, lt=1)]], Field(min_length=1, max_length=100)]
    confidence: list[_Images]
    """One more than edges: up to the first edge, …, beyond the last."""
    classes: list[_Images]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if any(low >= high for low, high in zip(self.edges, self.edges[1:], strict=False)):
            raise ValueError("edges: expected each to be higher than the one before")
        if len(self.confidence) != len(self.edges) + 1:
            raise ValueError(f"{len(self.confidence)} counts of confidence, expected {len(self.edges) + 1}")
        if not 0 < sum(self.confidence) == sum(self.classes):
            raise ValueError(
                f"{sum(self.confidence)} images by confidence, {sum(self.classes)} by class; "
                "expected the same, and one at least"
            )
        return self

    @property
    def images(self) -> int:
        """How many there were."""
        return sum(self.confidence)

    def check(self, classes: int) -> None:
        """Raise ValueError unless it is of so many classes."""
        if len(self.classes) != classes:
            raise ValueError(f"drift has {len(self.classes)} counts of classes, expected {classes}")
