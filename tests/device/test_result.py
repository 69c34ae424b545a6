"""What a caller gets of an image, by whoever answered."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields, replace

import pytest

from offramp.common.bundle.load import Bundle
from offramp.device import Correction, Device, Result
from tests import toy
from tests.device.results import result
from tests.processes import closed_port


def test_a_result_and_a_correction_do_not_change() -> None:
    correction = Correction(0, "a.png", "cat", 1, 0.5, spooled=True)
    for made in (result(), correction):
        with pytest.raises(FrozenInstanceError):
            made.label = "dog"  # type: ignore[misc]
    assert replace(correction, label="dog").label == "dog"


def test_of_an_image_that_was_not_sent_all_byte_figures_are_0(toy_bundle: Bundle) -> None:
    image = toy.images(1)[0]
    with closed_port() as port:
        address = f"127.0.0.1:{port}"
        with Device(toy_bundle, server=address, threshold=0) as device:
            exited = device.infer(image)
        with Device(toy_bundle, server=address, threshold=1) as device:
            fallback = device.infer(image)
    assert (exited.source, exited.reason) == ("early_exit", None)
    assert fallback.source == "fallback" and fallback.reason
    figures = [field.name for field in fields(Result) if "bytes" in field.name] + ["sends"]
    for made in (exited, fallback):
        assert [getattr(made, name) for name in figures] == [0] * 5
        assert made.threshold is None and made.latency_seconds > 0
        assert made.label == toy_bundle.manifest.classes[made.class_index]
    assert (exited.class_index, exited.confidence) == (fallback.class_index, fallback.confidence)


def test_the_time_of_decoding_is_stated(toy_bundle: Bundle) -> None:
    with Device(toy_bundle, server="127.0.0.1:1", threshold=0) as device:
        pixels = device.infer(toy.images(1)[0])
        array = device.infer(toy.images(1)[0].transpose(1, 2, 0))
        read = device.submit(toy.images(1)[0], decode_seconds=5.0).result()
    assert pixels.decode_seconds == 0 < array.decode_seconds
    assert read.decode_seconds == 5.0
