"""The figures before anything is compiled, and what does not fit."""

from __future__ import annotations

from pathlib import Path

import pytest

from offramp.cli.export_c.program import make_program, whole_bytes
from offramp.common.bundle.load import load_bundle
from offramp.common.errors import BundleError, ConfigError
from tests.cli.export_c import toy_heads

DIGITS = Path(__file__).parents[3] / "models/digits-mobilenetv2-exit12"


def test_the_digits_bundle_fits_a_small_microcontroller() -> None:
    program = make_program(load_bundle(DIGITS))
    found = program.report()

    assert found["macs"] == sum(layer["macs"] for layer in found["layers"]) == 20_005_984
    assert found["ram_bytes"] < 67_000
    assert found["flash_bytes"] < 128 << 10
    # block3.C1 and C2 whole, and what the residual adds.
    assert whole_bytes(program.network) == found["whole_tensors_bytes"] == (2 * 144 + 24) * 32 * 32
    program.require(found["ram_bytes"], found["flash_bytes"])


def test_what_does_not_fit_is_refused_with_its_layer() -> None:
    program = make_program(load_bundle(DIGITS))
    with pytest.raises(
        ConfigError, match=r"--ram: has 65,536 B, the program needs 66,\d+ B .* layer block\d.C1 with"
    ):
        program.require(64 << 10, None)
    with pytest.raises(
        ConfigError, match=r"--flash: has 65,536 B, .* largest layer is exit.linear with 15,7\d\d B"
    ):
        program.require(None, 64 << 10)


def test_symbols_of_another_shape_are_refused(tmp_path: Path) -> None:
    activation = {"shape": [4, 4, 6], "scale": toy_heads.SCALE, "zero_point": toy_heads.ZERO}
    bundle = toy_heads.write(tmp_path / "bundle", "raw", activation=activation)
    with pytest.raises(BundleError, match="not of the shape that its manifest says"):
        make_program(bundle)
