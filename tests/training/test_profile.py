"""A device's profile: what is read, and what is wrong with one."""

from pathlib import Path

import pytest

from offramp.common.errors import ConfigError
from offramp.training.profile import Profile, read_profile


def test_a_file_and_fields_in_its_place(tmp_path: Path) -> None:
    path = tmp_path / "device.toml"
    path.write_text("macs_per_second = 3e9\nround_trip_seconds = 0.1\n")
    profile = read_profile(path, ["round_trip_seconds=0.2"])
    assert (profile.speed, profile.round_trip_seconds) == (3e9, 0.2)
    assert profile.model_fields_set == {"macs_per_second", "round_trip_seconds"}


def test_a_measured_head_says_how_fast_a_device_is(tmp_path: Path) -> None:
    path = tmp_path / "device.toml"
    path.write_text("measured = { macs = 12e6, seconds = 0.004 }\n")
    assert read_profile(path).speed == pytest.approx(3e9)


def test_weights_are_in_flash_where_there_is_some() -> None:
    profile = Profile(memory_bytes=100, macs_per_second=1e6, head_seconds=1e-3)
    assert profile.fits(1000, weights=60, activations=40) and not profile.fits(1000, 61, 40)
    assert not profile.fits(1001, 60, 40)
    flash = profile.model_copy(update={"flash_bytes": 60.0})
    assert flash.fits(1000, 60, 100) and not flash.fits(1000, 61, 10) and not flash.fits(1000, 1, 101)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("speed = 3", "speed: no such field; expected one of flash_bytes, gateways, head_seconds"),
        ("flash = 3", "flash: no such field; expected flash_bytes"),
        ("macs_per_second = 0", "macs_per_second = 0: Input should be greater than 0"),
        ("macs_per_second = nan", "macs_per_second = NaN: Input should be a finite number"),
        ("measured = { macs = 3 }", r"measured\.seconds: is missing; expected a number"),
        ("macs_per_second =", "is not TOML"),
    ],
)
def test_bad_profiles_are_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "device.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        read_profile(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match=r"cannot read profile /nowhere\.toml"):
        read_profile(Path("/nowhere.toml"))
