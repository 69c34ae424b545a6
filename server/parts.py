"""Which parts of a bundle a server runs."""

from __future__ import annotations

from offramp.common.bundle.load import Bundle
from offramp.common.errors import BundleError

LAST = "last"


def part_of(bundle: Bundle, wanted: str | None, *, upstream: bool) -> int:
    """The number of the part to run, from 2.

    wanted: ``--part``: a number, ``last``, or the name of the cut where the part ends; None: the second.
    upstream: whether there is a server for what its exit is unsure of; otherwise all parts behind it run here
    as well. Raises BundleError for a part that the bundle does not have, or that cannot be run so.
    """
    parts = bundle.manifest.parts
    named = {
        part.cut.name: number for number, part in enumerate(parts, 1) if number > 1 and part.cut is not None
    }
    numbers = {**named, **{str(number): number for number in range(2, len(parts) + 1)}, LAST: len(parts)}
    number = numbers.get("2" if wanted is None else wanted)
    if number is None:
        raise BundleError(
            f"{bundle.path}: --part {wanted}: has no such part, expected one of {', '.join(numbers)}"
        )
    if number < len(parts) and upstream and parts[number - 1].exit is None:
        raise BundleError(
            f"{bundle.path}: part {number} has no exit, expected one: it answers where --upstream does not"
        )
    return number


def parts_of(bundle: Bundle, number: int, *, upstream: bool) -> range:
    """The numbers of the parts that run here: without an upstream server, all behind this one too."""
    return range(number, number + 1 if upstream else len(bundle.manifest.parts) + 1)
