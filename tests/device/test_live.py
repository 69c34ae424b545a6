"""What the device's page says: the last answers, T_c in force, and what images would take as pictures."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from offramp.common.bundle.load import Bundle
from offramp.common.errors import ConfigError
from offramp.common.wire.picture import encode_picture
from offramp.device import live as module
from offramp.device.device import Device
from offramp.device.live import RECENT, SAMPLE_SECONDS, Live, PictureSizes, page_token
from offramp.device.settings import DeviceSettings
from tests import toy, toy_chain
from tests.device.results import result
from tests.processes import until

TOKEN = "a-token-of-this-test"


def settings(bundle: Bundle, **more: object) -> DeviceSettings:
    given = {"bundle": str(bundle.path), "page": True, "metrics_port": 0, "threshold": 0.5}
    return DeviceSettings.model_validate(given | more)


def test_it_shows_the_last_answers_newest_first(toy_bundle: Bundle) -> None:
    chosen = settings(toy_bundle)
    with Device.from_settings(toy_bundle, chosen) as device:
        live = Live(device, chosen)
        for index in range(RECENT + 3):
            live.seen(index, f"<b>{index}</b>\n.png", result("early_exit", payload=0))
        state = live.page.state()
    json.dumps(state, allow_nan=False)
    assert [one["index"] for one in state["recent"]] == list(range(RECENT + 2, 2, -1))
    assert state["recent"][0]["name"] == f"<b>{RECENT + 2}</b>\\n.png"
    assert state["recent"][0]["source"] == "early_exit"
    assert state["servers"] == ["127.0.0.1:50051"]
    assert (state["bundle"], state["threshold"], state["steered"]) == (toy_bundle.manifest.name, 0.5, False)
    assert state["webp"] is None
    assert state["failure"] is None


def test_it_says_which_part_of_a_chain_answered(tmp_path: Path) -> None:
    bundle = toy_chain.write(tmp_path)
    chosen = settings(bundle)
    with Device.from_settings(bundle, chosen) as device:
        live = Live(device, chosen)
        live.seen(0, "a.png", result("early_exit", payload=0))
        live.seen(1, "b.png", replace(result(), part=3))
        live.seen(2, "c.png", replace(result(), part=2, cut_short=True))
        recent = live.page.state()["recent"]
    assert [one.get("by") for one in recent] == ["part 2, short", "part 3", None]


def test_t_c_that_is_set_holds_from_the_next_image_on(toy_bundle: Bundle) -> None:
    chosen = settings(toy_bundle, threshold=0)
    with Device.from_settings(toy_bundle, chosen) as device:
        live = Live(device, chosen)
        assert live.page.set_threshold is not None
        image = toy.images(1, seed=3)[0]
        before = device.infer(image)
        assert (before.source, before.threshold) == ("early_exit", None)
        assert live.page.set_threshold(1.0) == 0
        after = device.infer(image)
        # No server is there to ask.
        assert (after.source, after.threshold) == ("fallback", 1.0)
        assert live.page.state()["threshold"] == 1.0
        with pytest.raises(ConfigError, match="threshold"):
            live.page.set_threshold(1.5)
        assert device.threshold == 1.0


def test_a_steered_t_c_is_not_set(toy_bundle: Bundle) -> None:
    chosen = settings(toy_bundle, byte_budget=1000.0)
    with Device.from_settings(toy_bundle, chosen) as device:
        live = Live(device, chosen)
        assert live.page.set_threshold is not None
        assert live.page.state()["steered"]
        with pytest.raises(ConfigError, match="steered"):
            live.page.set_threshold(0.1)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_one_picture_now_and_then_is_measured() -> None:
    clock = Clock()
    sizes = PictureSizes(20, clock)
    images = np.random.default_rng(0).integers(0, 256, (3, 3, 32, 32), np.uint8)
    sizes.offer(images[0])
    until(sizes.mean, "the first size")
    for image in images:  # none is due
        sizes.offer(image)
    assert sizes.mean() == {"quality": 20, "images": 1, "mean_bytes": len(encode_picture(images[0], 20))}
    until(lambda: sizes._next < float("inf"), "the next one to have its time")
    assert sizes._next >= SAMPLE_SECONDS
    clock.now = sizes._next
    sizes.offer(images[1])

    def two() -> bool:
        mean = sizes.mean()
        return mean is not None and mean["images"] == 2

    until(two, "the second size")


@pytest.mark.parametrize("image", [np.zeros((1, 40, 10), np.uint8), np.zeros((3, 8, 8), np.float32), None])
def test_what_is_not_a_picture_has_no_size(image: object) -> None:
    sizes = PictureSizes(20)
    sizes.offer(image)
    assert sizes.mean() is None


def test_trouble_with_a_picture_leaves_its_size_unknown(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sizes = PictureSizes(20)

    def fail(*_: object) -> bytes:
        raise OSError("no codec")

    monkeypatch.setattr(module, "encode_picture", fail)
    sizes.offer(np.zeros((3, 8, 8), np.uint8))
    until(lambda: "cannot be measured: no codec" in caplog.text, "the log's line")
    assert sizes.mean() is None

    def refuse(_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    PictureSizes(20).offer(np.zeros((3, 8, 8), np.uint8))


def test_flags_that_need_each_other(toy_bundle: Bundle, tmp_path: Path) -> None:
    assert page_token(settings(toy_bundle)) is None
    with pytest.raises(ConfigError, match="--page needs --metrics-port"):
        page_token(settings(toy_bundle, metrics_port=None))
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    assert page_token(settings(toy_bundle, page_token_file=str(file))) == TOKEN
    with pytest.raises(ConfigError, match="--page-token-file needs --page"):
        page_token(settings(toy_bundle, page=False, page_token_file=str(file)))


@pytest.mark.parametrize(
    "text", ["", "short", f"{TOKEN}\n{TOKEN}", "with a blank in it", "x" * 5000, "é" * 20]
)
def test_a_file_without_a_token_is_one_error(toy_bundle: Bundle, tmp_path: Path, text: str) -> None:
    file = tmp_path / "token"
    file.write_text(text)
    with pytest.raises(ConfigError, match="--page-token-file") as raised:
        page_token(settings(toy_bundle, page_token_file=str(file)))
    assert not text or text not in str(raised.value)
