"""Damaged payloads of coded frames: refused, or the one payload of another activation."""

from __future__ import annotations

import numpy as np
import pytest

from offramp.common.bundle.load import Bundle
from offramp.common.codec.activation import ActivationCodec, CodecId, Symbols
from offramp.common.errors import PayloadError
from tests import toy


@pytest.fixture(
    scope="module", params=["huffman", "run-huffman-1", "run-huffman-3", "rans-1", "rans-2", "rans-4"]
)
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The toy bundle, coded in each way; behind the name its lanes."""
    path = tmp_path_factory.mktemp("coded") / "toy"
    if request.param == "huffman":
        return toy.write(path)
    kind, lanes = request.param.rsplit("-", 1)
    write = toy.write_rans if kind == "rans" else toy.write_run_huffman
    return write(path, lanes=int(lanes))


@pytest.fixture(scope="module", params=["sparse", "escapes", "one-symbol"])
def symbols(request: pytest.FixtureRequest) -> Symbols:
    """An activation that its tables shorten."""
    index = np.arange(int(np.prod(toy.SHAPE))).reshape(toy.SHAPE)
    found = {
        "sparse": np.where(index % 5 == 4, 1 + index % 3, 0),
        "escapes": np.where(index % 17 == 5, 200 + index % 3, 0),
        "one-symbol": np.zeros_like(index),
    }[request.param]
    return found.astype(np.uint8)


def check(codec: ActivationCodec, payload: bytes) -> Symbols | None:
    """Refused with one line, or decoded to symbols whose only payload it is."""
    try:
        found = codec.decode(CodecId.BUNDLE, payload)
    except PayloadError as error:
        assert str(error).isprintable()
        assert len(str(error)) < 200
        return None
    assert codec.encode(found) == (CodecId.BUNDLE, payload)
    return found


def good(bundle: Bundle, symbols: Symbols) -> bytes:
    codec, payload = bundle.codec.encode(symbols)
    assert codec is CodecId.BUNDLE
    return payload


def test_truncated(bundle: Bundle, symbols: Symbols) -> None:
    payload = good(bundle, symbols)
    for size in range(len(payload)):
        found = check(bundle.codec, payload[:size])
        assert found is None or (found != symbols).any()


def test_extended(bundle: Bundle, symbols: Symbols) -> None:
    payload = good(bundle, symbols)
    for extra in [bytes([b]) for b in range(256)] + [bytes(2), bytes(3), b"\xff\xff", b"\1" * 8]:
        for longer in payload + extra, extra + payload:
            found = check(bundle.codec, longer)
            assert found is None or (found != symbols).any()


def test_each_bit_flipped(bundle: Bundle, symbols: Symbols) -> None:
    payload = good(bundle, symbols)
    for bit in range(8 * len(payload)):
        damaged = bytearray(payload)
        damaged[bit // 8] ^= 1 << bit % 8
        found = check(bundle.codec, bytes(damaged))
        assert found is None or (found != symbols).any()


def test_each_byte_removed_or_put_in_twice(bundle: Bundle, symbols: Symbols) -> None:
    payload = good(bundle, symbols)
    for at in range(len(payload)):
        check(bundle.codec, payload[:at] + payload[at + 1 :])
        check(bundle.codec, payload[:at] + payload[at : at + 1] + payload[at:])


def test_the_good_payload_is_still_taken(bundle: Bundle, symbols: Symbols) -> None:
    found = check(bundle.codec, good(bundle, symbols))
    assert found is not None
    assert (found == symbols).all()
