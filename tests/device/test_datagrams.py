"""``Device.encode`` and ``resolve``: the datagram is the activation, the result is the stream's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from offramp.common.bundle.load import Bundle
from offramp.common.errors import ChecksumError, ConfigError, DataError, MessageError, SequenceError
from offramp.common.part.engine import Engine
from offramp.common.wire.datagram import Datagrams, Reply, ReplyError
from offramp.common.wire.seal import DeviceKey
from offramp.device.datagrams import OPEN_MOST
from offramp.device.device import Device
from offramp.device.options import DatagramOptions
from tests import toy

IMAGES = toy.images(12, seed=3)


def device_of(bundle: Bundle, **options: Any) -> Device:
    return Device(bundle, **({"server": None, "threshold": 1.0} | options))


def datagrams_of(bundle: Bundle) -> Datagrams:
    return Datagrams(bundle.digest, len(bundle.manifest.classes))


def answer(bundle: Bundle, engine: Engine, data: bytes, key: DeviceKey | None = None) -> bytes:
    """What a gateway and its server would reply."""
    datagrams = datagrams_of(bundle)
    request = datagrams.read_request(data, key)
    symbols = bundle.codec.decode(request.codec, request.payload)
    probabilities = engine.tail(symbols[None])[0]
    best = int(probabilities.argmax())
    reply = Reply(request.sequence, best, float(probabilities[best]))
    return datagrams.reply(reply, request.device, key)


def test_an_image_is_resolved_as_the_server_would_answer(toy_bundle: Bundle, toy_engine: Engine) -> None:
    with device_of(toy_bundle) as device:
        for image in IMAGES:
            data = device.encode(image)
            assert isinstance(data, bytes)
            result = device.resolve(answer(toy_bundle, toy_engine, data))
            symbols, _ = toy_engine.head(image[None])
            expected = toy_engine.tail(symbols)[0]
            assert (result.source, result.class_index) == ("server", int(expected.argmax()))
            assert abs(result.confidence - expected.max()) <= 1 / 510 + 1e-6
            assert result.payload_bytes == len(data) - 8 and result.message_bytes == len(data) + 8


def test_both_exits_answer_where_the_bundle_says_so(both_bundle: Bundle, toy_engine: Engine) -> None:
    """As they do on a stream, but for the rounded confidence."""
    with device_of(both_bundle) as device:
        data = device.encode(IMAGES[0])
        assert isinstance(data, bytes)
        result = device.resolve(answer(both_bundle, toy_engine, data))
    with device_of(both_bundle, threshold=0.0) as device:
        early = device.encode(IMAGES[0])
        assert not isinstance(early, bytes) and early.source == "early_exit"
    assert result.source == "server" and result.part == 2


def test_an_early_exit_needs_no_datagram(toy_bundle: Bundle) -> None:
    with device_of(toy_bundle, threshold=0.0) as device:
        result = device.encode(IMAGES[0])
        assert not isinstance(result, bytes) and result.source == "early_exit"
        with pytest.raises(DataError):
            device.encode(np.zeros((2, 2, 2)))


def test_replies_in_another_order_and_twice(toy_bundle: Bundle, toy_engine: Engine) -> None:
    with device_of(toy_bundle) as device:
        data = [device.encode(image) for image in IMAGES[:3]]
        replies = [answer(toy_bundle, toy_engine, each) for each in data if isinstance(each, bytes)]
        for reply in reversed(replies):
            assert device.resolve(reply).source == "server"
        with pytest.raises(SequenceError, match="expected one that waits"):
            device.resolve(replies[0])


def test_what_is_not_a_reply_leaves_the_image_waiting(toy_bundle: Bundle, toy_engine: Engine) -> None:
    with device_of(toy_bundle) as device:
        data = device.encode(IMAGES[0])
        assert isinstance(data, bytes)
        good = answer(toy_bundle, toy_engine, data)
        for wrong, kind in ((good[:-1] + b"x", ChecksumError), (data, MessageError), (b"", MessageError)):
            with pytest.raises(kind):
                device.resolve(wrong)
        assert device.resolve(good).source == "server"


def test_errors_and_silence_are_fallbacks(toy_bundle: Bundle) -> None:
    with device_of(toy_bundle) as device:
        first, second = device.encode(IMAGES[0]), device.encode(IMAGES[1])
        assert isinstance(first, bytes) and isinstance(second, bytes)
        sequence = int.from_bytes(first[3:5], "little")
        error = datagrams_of(toy_bundle).reply(Reply(sequence, error=ReplyError.OVERLOADED))
        result = device.resolve(error)
        assert (result.source, result.reason) == ("fallback", "refused (overloaded)")
        lost = device.give_up(second)
        assert (lost.source, lost.reason, lost.part) == ("fallback", "no reply in time", 1)
        with pytest.raises(SequenceError, match="does not wait"):
            device.give_up(second)


def test_what_waits_is_bounded(toy_bundle: Bundle) -> None:
    with device_of(toy_bundle) as device:
        first = device.encode(IMAGES[0])
        for _ in range(OPEN_MOST):
            device.encode(IMAGES[0])
        assert isinstance(first, bytes)
        with pytest.raises(SequenceError):
            device.give_up(first)


def test_with_a_key(toy_bundle: Bundle, toy_engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("07" * 16)
    key, file = DeviceKey(bytes([7] * 16)), tmp_path / "numbers"
    options = DatagramOptions(key_file=tmp_path / "key", device_number=513, sequence_file=file)
    sequences = []
    for _ in range(2):
        with device_of(toy_bundle, datagrams=options) as device:
            data = device.encode(IMAGES[0])
            assert isinstance(data, bytes) and data[0] == 0x30 and data[3:5] == b"\1\2"
            assert device.resolve(answer(toy_bundle, toy_engine, data, key)).source == "server"
            sequences.append(int.from_bytes(data[5:9], "little"))
    assert sequences == [0, 1]


@pytest.mark.parametrize("call", ["encode", "resolve", "give_up"])
def test_a_closed_device(toy_bundle: Bundle, call: str) -> None:
    device = device_of(toy_bundle)
    device.close()
    run: Callable[[Any], object] = getattr(device, call)
    with pytest.raises(ConfigError, match="is closed"):
        run(IMAGES[0])


def test_without_a_server_an_unsure_image_is_a_fallback(toy_bundle: Bundle) -> None:
    with device_of(toy_bundle) as device:
        result = device.infer(IMAGES[0])
        assert (result.source, result.reason) == ("fallback", "no server is named")
        assert not device.late_replies_due() and device.wire_bytes() is not None
