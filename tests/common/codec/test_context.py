"""The context model: what is stored, what its frequencies are, and what it gains."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from offramp.common.codec.context import (
    MAX_REACH,
    ContextCoder,
    ContextModel,
    bits_at,
    class_of,
    frequencies,
    stored,
    work,
)
from offramp.common.errors import CodebookError, PayloadError
from tests.common.coders import context_coders, context_model

SHAPE = (3, 4, 5)
MODEL = context_model(SHAPE, 2, 30)


@given(context_coders())
def test_a_model_is_read_as_it_was_written(coder: ContextCoder) -> None:
    data = coder.model.to_bytes()
    again = ContextModel.from_bytes(data, coder.shape)

    assert again.to_bytes() == data
    assert len(data) == coder.model.stored_bytes == 1 + stored(coder.shape, coder.model.reach)
    assert again.reach == data[0] == coder.model.reach


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "a reach of 0, expected 1 … 15"),
        (b"\0" * 500, "a reach of 0, expected 1 … 15"),
        (b"\x10" + MODEL.to_bytes()[1:], "a reach of 16, expected 1 … 15"),
        (MODEL.to_bytes()[:-1], r"has 273 bytes, expected 274 for an activation of shape \(3, 4, 5\)"),
        (MODEL.to_bytes() + b"\0", "has 275 bytes, expected 274"),
        (b"\3" + MODEL.to_bytes()[1:], "has 274 bytes, expected 286 .* a reach of 3"),
        (MODEL.to_bytes()[:-1] + b"\1", "channel 2 has a weight for a symbol that is coded after it"),
    ],
)
def test_what_is_no_model_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(CodebookError, match=message):
        ContextModel.from_bytes(data, SHAPE)


def test_a_model_that_takes_too_long_is_refused_before_it_is_read() -> None:
    assert work((256, 57, 57)) > 1 << 26
    for shape in (256, 57, 57), (257, 1, 1):
        data = bytes([1]) + bytes(stored(shape, 1))
        with pytest.raises(CodebookError, match=r"steps, expected at most 67,108,864, and 256"):
            ContextModel.from_bytes(data, shape)


def test_parts_of_another_shape_or_type_are_refused() -> None:
    with pytest.raises(CodebookError, match=r"rows is int8 \(3, 5, 2\), expected int8 \(3, 4, 2\)"):
        replace(MODEL, rows=MODEL.columns)
    with pytest.raises(CodebookError, match="mode is int64"):
        replace(MODEL, mode=MODEL.mode.astype(np.int64))
    with pytest.raises(CodebookError, match=r"base is int16 \(3, 5\)"):
        replace(MODEL, base=MODEL.base[:, :5])


@given(st.lists(st.integers(-(1 << 24), 1 << 24), min_size=4, max_size=32), st.integers(8, 14))
def test_frequencies_are_whole_and_follow_the_logits(logits: list[int], bits: int) -> None:
    found = frequencies(logits, bits)

    assert sum(found) == 1 << bits
    assert min(found) >= 1
    order = np.argsort(logits, kind="stable")
    assert (np.diff(np.array(found)[order]) >= 0).all() or found[logits.index(max(logits))] == max(found)


def test_a_logit_is_a_32nd_of_a_bit() -> None:
    found = frequencies([0, -32, -64, -64], 14)
    assert np.abs(np.array(found) - [8192, 4096, 2048, 2048]).max() <= 3


def test_the_last_symbols_have_fewer_slots() -> None:
    assert [bits_at(left) for left in (0, 1, 2, 11, 12, 1000)] == [8, 8, 9, 13, 14, 14]


def test_classes_go_outwards_from_the_mode() -> None:
    assert [class_of(k, 2) for k in (0, -1, 1, -2, 2, -3, 3, 200)] == [0, 1, 2, 3, 4, 5, 5, 5]


def test_a_payload_that_can_be_checked_by_eye() -> None:
    """A flat model has 64 slots of 256 for each class and the last symbol: k = 0, −1, 1 and the escape."""
    flat = ContextModel(
        (1, 1, 1),
        np.array([7], np.uint8),
        np.zeros((1, 4), np.int16),
        np.zeros((1, 1, 2), np.int8),
        np.zeros((1, 1, 2), np.int8),
        np.zeros((1, 2, 2, 5), np.int8),
    )
    coder = ContextCoder(flat)

    # From state 1: the first slot of its class and one more; the escape behind its 8 bits, 256 | 9.
    assert coder.encode(bytes([7])) == bytes([1])
    assert coder.encode(bytes([6])) == bytes([65])
    assert coder.encode(bytes([8])) == bytes([129])
    state = 256 | 9
    assert coder.encode(bytes([9])) == (state // 64 * 256 + state % 64 + 192).to_bytes(2, "big")
    assert coder.decode(bytes([129])) == bytes([8])


def test_what_an_encoder_does_not_write_is_refused() -> None:
    coder = ContextCoder(context_model((1, 1, 3), 1, 0))
    low = ContextCoder(replace(coder.model, mode=np.array([0], np.uint8)))
    missing = {
        "the payload has a symbol -1, expected 0 … 255",
        "the payload escapes symbol 1, which needs no escape",
    }
    for payload in range(1 << 16):
        try:
            low.decode(payload.to_bytes(2, "big"))
        except PayloadError as error:
            missing.discard(str(error))
        if not missing:
            break
    assert not missing
    with pytest.raises(PayloadError, match="the payload of 4 bytes is longer than its 3 symbols"):
        coder.decode(bytes(4))


@pytest.mark.parametrize("input_", range(5))
def test_each_place_around_a_symbol_is_heard(input_: int) -> None:
    """A weight for one input alone: the symbol there, and no other, changes the next one's frequencies."""
    channels, height, width = 2, 4, 3
    weights = np.zeros((channels, 2, 2, 10), np.int8)
    # Channel 1 at the middle of the second row; of each place around it channel 0.
    weights[1, 0, 0, 2 * input_] = 64
    plain = context_model((channels, height, width), MAX_REACH, 0)
    base = np.zeros((channels, 2 * MAX_REACH + 2), np.int16)
    base[1, 1:] = -(1 << 14)
    base[1, class_of(14, MAX_REACH)] = -14 * 128
    model = replace(plain, mode=np.full(2, 128, np.uint8), base=base, weights=weights)
    places = [(1, 0), (0, 1), (0, 0), (0, 2), (1, 1)]
    still = np.full((channels, height, width), 128, np.uint8)
    # An encoder begins with the last symbols: the first that is no mode costs all slots, whatever its share.
    still[0, 3] = 140
    sizes = []
    for row, column in places:
        moved = still.copy()
        moved[0, row, column] = 130
        moved[1, 1, 1] = 142
        sizes.append(len(ContextCoder(model).encode(moved.tobytes())))
    # After a symbol that is 2 from its mode, a weight of 64 makes up for the base: 13 bits are saved.
    assert sizes[input_] < min(size for number, size in enumerate(sizes) if number != input_)
