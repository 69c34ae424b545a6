"""One input on its way to the head, or the error in its place."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from offramp.common.errors import DataError


@dataclass(frozen=True, slots=True)
class Item:
    """One picture, uint8 [3, H, W], or tensor as the head takes it, or the error in its place."""

    name: str
    image: NDArray[Any] | DataError
    decode_seconds: float = 0.0
    """From its bytes to the head's input."""
    file: bytes | None = field(default=None, repr=False, compare=False)
    """The file it was alone in, as it is."""
