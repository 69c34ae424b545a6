"""A microcontroller that a head has to fit.

What a head needs there the export to C knows, which training does not import: who starts a split brings it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from offramp.common.bundle.load import Bundle
from offramp.common.errors import BundleError

if TYPE_CHECKING:
    from offramp.training.split.capture import Captured
    from offramp.training.split.place import Place


@dataclass(frozen=True)
class Needs:
    """Bytes of a microcontroller: memory without the picture and a stack, and flash with about the code."""

    ram_bytes: int
    flash_bytes: int

    def fits(self, ram: int | None, flash: int | None) -> bool:
        """Within these limits, where there are any."""
        return (ram is None or self.ram_bytes <= ram) and (flash is None or self.flash_bytes <= flash)

    @property
    def words(self) -> str:
        """For errors and reports."""
        return f"{self.ram_bytes:,} bytes of RAM and {self.flash_bytes:,} bytes of flash"


@dataclass(frozen=True)
class Board:
    """A microcontroller.

    ram, flash: its bytes; None: no limit.
    planned: what the head, encoder and exit of a place need before they are trained; None where there is an
        operator that C has not.
    written: the same of a bundle; raises BundleError where C cannot run its head.
    """

    ram: int | None
    flash: int | None
    planned: Callable[[Captured, Place], Needs | None]
    written: Callable[[Bundle], Needs]

    @property
    def words(self) -> str:
        """Its limits."""
        limits = ((self.ram, "RAM"), (self.flash, "flash"))
        return " and ".join(f"at most {most:,} bytes of {what}" for most, what in limits if most is not None)

    def over(self, captured: Captured, place: Place) -> tuple[float, str] | None:
        """By how many times a place passes the limit that it passes most, and its needs; None if it fits."""
        needs = self.planned(captured, place)
        if needs is None:
            return math.inf, "an operator that export-c has not"
        if needs.fits(self.ram, self.flash):
            return None
        passed = (needs.ram_bytes / (self.ram or math.inf), needs.flash_bytes / (self.flash or math.inf))
        return max(passed), f"about {needs.words}"

    def report(self, bundle: Bundle) -> dict[str, Any]:
        """A bundle's needs beside the limits, for ``report.json``; "refused": why C cannot run it."""
        limits: dict[str, Any] = {"ram_limit": self.ram, "flash_limit": self.flash}
        try:
            needs = self.written(bundle)
        except BundleError as error:
            return limits | {"fits": False, "refused": str(error)}
        own = {"ram_bytes": needs.ram_bytes, "flash_bytes": needs.flash_bytes}
        return limits | own | {"fits": needs.fits(self.ram, self.flash)}


def text_of(found: dict[str, Any]) -> str:
    """A line of `Board.report`'s values."""
    if "refused" in found:
        return f"does not run as C: {found['refused']}"
    parts = [
        f"{found[f'{name}_bytes']:,} B of {what}" + (f", limit {limit:,}" if limit is not None else "")
        for name, what in (("ram", "RAM"), ("flash", "flash"))
        for limit in (found[f"{name}_limit"],)
    ]
    return f"{'fits' if found['fits'] else 'does not fit'} as C: {'; '.join(parts)}"
