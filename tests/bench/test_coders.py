"""Every coder of the comparison gives back what it was given."""

from __future__ import annotations

import pytest

pytest.importorskip("constriction")
pytest.importorskip("lz4")
pytest.importorskip("matplotlib")
pytest.importorskip("zstandard")

from offramp.bench.activations import Synthetic
from offramp.bench.coders import (
    Coding,
    our_codings,
    payloads,
    peer_codings,
)
from offramp.common.codec.activation import Shape
from offramp.common.errors import OfframpError
from offramp.training.calibrate.codebook import CONTEXT

SHAPE = (4, 8, 8)


@pytest.mark.parametrize("bits", [0.3, 2.5, 5.0])
def test_every_coder_gives_back_what_it_was_given(bits: float) -> None:
    source = Synthetic(SHAPE, bits, "different")
    calibration = source.frames(48, 0)
    frames = [frame.tobytes() for frame in source.frames(8, 1)]

    codings = [*our_codings(SHAPE, calibration), *peer_codings(SHAPE, calibration)]

    for coding in codings:
        assert len(payloads(coding, frames)) == len(frames), coding.name
    assert len({coding.name for coding in codings}) == len(codings) >= 15
    assert sum(coding.shipped for coding in codings) == 1


@pytest.mark.parametrize("shape", [(8, 8, 8), (4, 16, 16), (1, 4, 4), (32, 16, 16)])
def test_payloads_of_every_size_are_coded_on_lanes_that_their_coder_has(shape: Shape) -> None:
    calibration = Synthetic(shape, 5.0, "different").frames(12, 0)

    codings = our_codings(shape, calibration)

    lanes = {coding.name: coding.lanes for coding in codings}
    frame = calibration[0].tobytes()
    assert all(coding.decode(coding.encode(frame)) == frame for coding in codings if coding.tables)
    assert lanes.get(CONTEXT, 1) == 1
    assert max(count for count in lanes.values() if count) == {8: 1, 4: 2, 1: 1, 32: 4}[shape[0]]


def test_a_coder_that_loses_symbols_is_not_measured() -> None:
    broken = Coding("broken", lambda data: data[:-1], lambda data: data + b"?")

    with pytest.raises(OfframpError, match="broken: 3 bytes decode to other symbols"):
        payloads(broken, [b"abcd"])
