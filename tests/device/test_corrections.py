"""Corrections: counted whether or not somebody wants them, and delivered to whoever does."""

from __future__ import annotations

import logging

import pytest

from offramp.common.bundle.load import Bundle
from offramp.common.codec.activation import CodecId
from offramp.device.corrections import Corrections
from offramp.device.inquiry import Inquiry
from offramp.device.metrics import DeviceMetrics
from offramp.device.result import Correction
from offramp.device.spool.store import Entry
from offramp.link.outcome import Answer
from tests import toy

ENTRY = Entry(CodecId.BUNDLE, b"payload", 7, "a.png", b"")
ANSWER = Answer(2, 0.75, None, 60.0, 80.0)


def correct(bundle: Bundle, corrections: Corrections) -> None:
    inquiry = Inquiry.of_spooled(b"", len(bundle.manifest.classes))
    corrections.correct(inquiry, ENTRY, ANSWER, spooled=True)


def test_who_wants_them_gets_the_image_s_place_and_name(toy_bundle: Bundle) -> None:
    found: list[Correction] = []
    metrics = DeviceMetrics(toy_bundle)
    corrections = Corrections(toy_bundle, metrics, found.append)
    assert corrections.wanted
    correct(toy_bundle, corrections)
    assert found == [Correction(7, "a.png", toy.CLASSES[2], 2, 0.75, True)]
    assert metrics.registry.get_sample_value("offramp_device_corrections_total") == 1


def test_nobody_has_to_want_them(toy_bundle: Bundle) -> None:
    metrics = DeviceMetrics(toy_bundle)
    corrections = Corrections(toy_bundle, metrics, None)
    assert not corrections.wanted
    correct(toy_bundle, corrections)
    assert metrics.registry.get_sample_value("offramp_device_corrections_total") == 1


def test_a_callback_that_fails_is_logged(toy_bundle: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    def fail(_: Correction) -> None:
        raise RuntimeError("of somebody else's code")

    correct(toy_bundle, Corrections(toy_bundle, DeviceMetrics(toy_bundle), fail))
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
