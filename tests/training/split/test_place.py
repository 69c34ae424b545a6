"""Where a model is cut for a device."""

from dataclasses import replace

import pytest

from offramp.common.errors import ConfigError
from offramp.training.profile import Profile
from offramp.training.split.board import Board, Needs
from offramp.training.split.capture import Captured
from offramp.training.split.place import Place, Wanted, choose_place, choose_places, place_at
from tests.training.split import networks

MODEL = "paper-mobilenetv2"
ANY = Wanted(cut=None, head_macs=None, head_memory=None, profile=None, bytes=60)


def test_the_cut_keeps_to_the_devices_share_and_memory() -> None:
    cuts = networks.found(MODEL)[1]
    for share in (0.3, 0.5, 0.9):
        place = choose_place(cuts, replace(ANY, head_macs=share))
        assert 0.6 * share < place.head.macs / cuts.whole.macs <= share
    assert choose_place(cuts, ANY) == choose_place(cuts, replace(ANY, head_macs=0.5))
    most = choose_place(cuts, replace(ANY, head_macs=0.9)).cut
    small = choose_place(cuts, replace(ANY, head_macs=0.9, head_memory=most.peak_bytes - 1)).cut
    assert small.peak_bytes < most.peak_bytes


def test_the_cut_keeps_to_a_profile() -> None:
    cuts = networks.found(MODEL)[1]
    free = choose_place(cuts, replace(ANY, head_macs=1.0))

    def place(**fields: object) -> tuple[int, int, int]:
        found = choose_place(cuts, replace(ANY, profile=Profile.model_validate(fields)))
        return found.head.macs, found.head.weights, found.cut.peak_bytes

    macs, weights, peak = free.head.macs, free.head.weights, free.cut.peak_bytes
    assert place(flash_bytes=weights - 1)[1] < weights
    assert sum(place(memory_bytes=weights + peak - 1)[1:]) < weights + peak
    # With flash, memory is for activations alone.
    assert place(memory_bytes=peak - 1, flash_bytes=1e9)[2] < peak
    # Time in place of a share, which is half otherwise.
    assert macs * 0.6 < place(macs_per_second=1e9, head_seconds=macs / 1e9)[0] <= macs
    measured = {"macs": 1e6, "seconds": 2e-3}
    assert place(measured=measured, head_seconds=macs / 1e9)[0] <= macs / 2
    # Its default memory is not one that was stated.
    assert place(macs_per_second=1e9) == place()


def test_what_does_not_fit_names_the_limits_and_the_nearest() -> None:
    cuts = networks.found(MODEL)[1]
    with pytest.raises(ConfigError) as caught:
        choose_place(cuts, replace(ANY, profile=Profile(head_seconds=1e-9, flash_bytes=1e9)))
    text = str(caught.value)
    assert "at most 1e+09 bytes" not in text and "at most 1e-09 s a photo at 2e+09 MAC/s" in text
    assert " s a photo); `offramp cuts` lists them, and --cut takes one by name" in text


def test_a_name_decides_whatever_it_costs() -> None:
    cuts = networks.found("resnet")[1]
    assert choose_place(cuts, replace(ANY, cut="layer2", head_macs=0.01)).cut.name == "layer2"
    with pytest.raises(ConfigError, match="the nearest cut"):
        choose_place(cuts, replace(ANY, cut="layer1.0.conv1"))


def test_a_vector_of_tokens_that_is_not_a_square_is_refused() -> None:
    cuts = networks.found("sound")[1]
    for cut in cuts.cuts:
        if len(cut.shape) == 2:
            with pytest.raises(ConfigError, match="a square number of tokens"):
                choose_place(cuts, replace(ANY, cut=cut.name))
            return
    pytest.fail("the network has no such cut")


def test_several_cuts_are_named_in_order() -> None:
    cuts = networks.found("resnet")[1]
    both = replace(ANY, cuts=("layer1", "layer2"), bytes=(80.0, 20.0))
    first, second = choose_places(cuts, both)
    assert (first.cut.name, second.cut.name) == ("layer1", "layer2")
    assert first == choose_place(cuts, replace(ANY, cut="layer1", bytes=80.0))
    with pytest.raises(ConfigError, match="cuts: layer2 layer1: the second is not behind the first"):
        choose_places(cuts, replace(both, cuts=("layer2", "layer1")))
    with pytest.raises(ConfigError, match="bytes: 3 numbers; expected one for each of 2 crossings"):
        choose_places(cuts, replace(both, bytes=(1.0, 2.0, 3.0)))
    with pytest.raises(ConfigError, match="bytes: 2 numbers; expected one, because there is one crossing"):
        choose_places(cuts, replace(both, cuts=()))


def test_the_cut_keeps_to_a_microcontroller() -> None:
    captured, cuts = networks.found(MODEL)
    free = choose_place(cuts, ANY)

    def planned(_: Captured, place: Place) -> Needs | None:
        """Weights in flash, and what crosses in memory; the last blocks have an operator that C has not."""
        return None if place.head.macs > 0.45 * cuts.whole.macs else Needs(1000, place.head.weights)

    def wanted(flash: int, cut: str | None = None) -> Wanted:
        board = Board(2000, flash, planned, lambda _: Needs(0, 0))
        return replace(ANY, cut=cut, board=board, captured=captured)

    fitting = choose_place(cuts, wanted(free.head.weights)).cut
    assert free.head.macs > 0.45 * cuts.whole.macs > fitting.head.macs
    assert choose_place(cuts, wanted(10**6, fitting.name)).cut == fitting
    with pytest.raises(
        ConfigError, match=r"no cut leaves the device .* at most 2,000 bytes of RAM and at most 9"
    ):
        choose_place(cuts, wanted(9))
    with pytest.raises(ConfigError) as caught:
        choose_place(cuts, wanted(9))
    # The nearest is the smallest.
    least = min(place_at(cuts, cut, 60).head.weights for cut in cuts.places() if cut.shape[0] > 3)
    assert f" needs about 1,000 bytes of RAM and {least:,} bytes of flash)" in str(caught.value)
    for name, needs in (
        (fitting.name, "about 1,000 bytes"),
        (free.cut.name, "an operator that export-c has not"),
    ):
        with pytest.raises(
            ConfigError, match=f"^{name}: its head needs {needs}.*; expected at most 2,000 bytes"
        ):
            choose_places(cuts, wanted(9, name))
