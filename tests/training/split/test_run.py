"""Where a model is cut for a device; tests/cli/test_split.py has whole runs."""

import tomllib
from pathlib import Path

import pytest

from offramp.common.errors import ConfigError
from offramp.training.split.code import encoder_macs
from offramp.training.split.run import Job, choose_place, recipe_text, time_for
from tests.training.split import networks

MODEL = "paper-mobilenetv2"


def job(data: Path = Path("photos"), **more: object) -> Job:
    return Job(MODEL, data, Path("out"), **more)  # type: ignore[arg-type]


def test_the_cut_keeps_to_the_devices_share_and_memory() -> None:
    cuts = networks.found(MODEL)[1]
    for share in (0.3, 0.5, 0.9):
        place = choose_place(cuts, job(head_macs=share))
        needed = (place.cut.head.macs + encoder_macs(place.layout, place.code)) / cuts.whole.macs
        assert 0.6 * share < needed <= share
    most = choose_place(cuts, job(head_macs=0.9)).cut
    small = choose_place(cuts, job(head_macs=0.9, head_memory=most.peak_bytes - 1)).cut
    assert small.peak_bytes < most.peak_bytes


def test_a_name_decides_whatever_it_costs() -> None:
    cuts = networks.found("resnet")[1]
    assert choose_place(cuts, job(cut="layer2", head_macs=0.01)).cut.name == "layer2"
    with pytest.raises(ConfigError, match="the nearest cut"):
        choose_place(cuts, job(cut="layer1.0.conv1"))


def test_a_vector_of_tokens_that_is_not_a_square_is_refused() -> None:
    cuts = networks.found("sound")[1]
    for cut in cuts.cuts:
        if len(cut.shape) == 2:
            with pytest.raises(ConfigError, match="a square number of tokens"):
                choose_place(cuts, job(cut=cut.name))
            return
    pytest.fail("the network has no such cut")


def test_more_minutes_count_where_no_number_is_fixed() -> None:
    assert time_for(job(minutes=5.0), None) == 5
    assert time_for(job(minutes=5.0), 100) is None


def test_the_recipe_is_toml_without_paths() -> None:
    cuts = networks.found("resnet")[1]
    place = choose_place(cuts, job(cut="layer1"))
    text = recipe_text(job(data=Path("/home/me/photos"), weights=Path("/home/me/w.pth"), minutes=5.0), place)
    values = tomllib.loads(text)["split"]
    assert values["data"] == "photos" and values["weights"] == "w.pth" and "/home" not in text
    assert values["cut"] == "layer1" and values["minutes"] == 5 and values["drop"] == 1
