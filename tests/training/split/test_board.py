"""What a report says of a microcontroller."""

from pathlib import Path
from typing import cast

import pytest

from offramp.common.bundle.load import Bundle
from offramp.common.errors import BundleError
from offramp.training.split.board import Board, Needs, text_of

BUNDLE = cast(Bundle, Path("a bundle"))


@pytest.mark.parametrize(
    ("ram", "flash", "text"),
    [
        (100, None, "fits as C: 100 B of RAM, limit 100; 2,000 B of flash"),
        (99, 2000, "does not fit as C: 100 B of RAM, limit 99; 2,000 B of flash, limit 2,000"),
    ],
)
def test_a_bundle_beside_the_limits(ram: int, flash: int | None, text: str) -> None:
    found = Board(ram, flash, lambda *_: None, lambda _: Needs(100, 2000)).report(BUNDLE)
    assert text_of(found) == text and found["fits"] == text.startswith("fits")


def test_a_bundle_that_c_cannot_run() -> None:
    def written(_: Bundle) -> Needs:
        raise BundleError("b: head.onnx: is the operator Erf")

    found = Board(1, 1, lambda *_: None, written).report(BUNDLE)
    assert text_of(found) == "does not run as C: b: head.onnx: is the operator Erf" and not found["fits"]
