"""Payloads: every activation comes back, and only the bytes that code it do."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from offramp.common.codebook import SYMBOLS, Codebook, code_lengths
from offramp.common.codec import ActivationCodec, CodecId, HuffmanCodec, Symbols
from offramp.common.errors import CodecError, PayloadError
from offramp.v1 import inference_pb2 as pb


def _tables() -> NDArray[np.uint8]:
    """Code lengths from flat to as steep as they get, uint8 [6, 256]."""
    symbols = np.arange(SYMBOLS)
    steep = [(base ** -symbols.astype(float) * 1e9).astype(np.int64) for base in (1.0, 1.02, 1.3, 2.0)]
    constant = np.where(symbols == 17, 1000, 0)
    middle = np.exp(-((symbols - 128) ** 2) / 50.0) * 1e6
    return np.stack([code_lengths(counts) for counts in (*steep, constant, middle.astype(np.int64))])


TABLES = _tables()


@st.composite
def codecs(draw: st.DrawFn) -> HuffmanCodec:
    """Codecs of small shapes; channels have tables of their own, share them, or all use one."""
    shape = draw(st.tuples(st.integers(1, 5), st.integers(1, 6), st.integers(1, 6)))
    channels = shape[0]
    rows = draw(st.lists(st.integers(0, len(TABLES) - 1), min_size=1, max_size=channels))
    mapped = draw(st.lists(st.integers(0, len(rows) - 1), min_size=channels, max_size=channels))
    return HuffmanCodec(shape, Codebook(TABLES[rows], np.array(mapped, np.uint16)))


@st.composite
def activations(draw: st.DrawFn) -> tuple[HuffmanCodec, Symbols]:
    """A codec and symbols of its shape: any at all, or mostly the cheapest ones."""
    codec = draw(codecs())
    elements = draw(st.sampled_from([st.integers(0, 255), st.sampled_from([0, 1, 17, 128])]))
    return codec, draw(hnp.arrays(np.uint8, codec.shape, elements=elements))


def bit_string(codec: HuffmanCodec, symbols: Symbols) -> str:
    """The format as its documentation states it, symbol by symbol."""
    book, words = codec.codebook, []
    for channel, plane in enumerate(symbols):
        table = int(book.table_of_channel[channel])
        words += [f"{book.codes[table, s]:0{book.lengths[table, s]}b}" for s in plane.ravel()]
    return "".join(words)


@given(activations())
def test_codewords_in_channel_order_then_zero_bits(case: tuple[HuffmanCodec, Symbols]) -> None:
    codec, symbols = case
    bits = bit_string(codec, symbols)
    size = math.ceil(len(bits) / 8)

    assert codec.encode(symbols) == int(bits.ljust(8 * size, "0"), 2).to_bytes(size)


@given(activations())
def test_huffman_round_trip(case: tuple[HuffmanCodec, Symbols]) -> None:
    codec, symbols = case
    decoded = codec.decode(codec.encode(symbols))

    assert decoded.dtype == np.uint8
    assert decoded.shape == codec.shape
    assert (decoded == symbols).all()


@given(activations())
def test_the_shorter_of_coded_and_raw_comes_back(case: tuple[HuffmanCodec, Symbols]) -> None:
    coder, symbols = case
    codec = ActivationCodec(coder.shape, coder)
    kind, payload = codec.encode(symbols)

    coded = coder.encode(symbols)
    assert kind is (CodecId.BUNDLE if len(coded) < codec.raw_bytes else CodecId.RAW)
    assert payload == (coded if kind is CodecId.BUNDLE else symbols.tobytes())
    assert (codec.decode(kind, payload) == symbols).all()


@given(activations())
def test_every_truncation_is_refused(case: tuple[HuffmanCodec, Symbols]) -> None:
    codec, symbols = case
    payload = codec.encode(symbols)
    for size in range(len(payload)):
        with pytest.raises(PayloadError, match=f"the payload of {size} bytes ends before symbol"):
            codec.decode(payload[:size])


@given(activations(), st.binary(min_size=1, max_size=3))
def test_every_byte_left_over_is_refused(case: tuple[HuffmanCodec, Symbols], extra: bytes) -> None:
    codec, symbols = case
    payload = codec.encode(symbols)
    expected = f"the payload has {len(payload) + len(extra)} bytes, .* end in byte {len(payload)}"
    with pytest.raises(PayloadError, match=expected):
        codec.decode(payload + extra)


@given(activations())
def test_every_padding_bit_that_is_set_is_refused(case: tuple[HuffmanCodec, Symbols]) -> None:
    codec, symbols = case
    payload = codec.encode(symbols)
    for bit in range(-len(bit_string(codec, symbols)) % 8):
        with pytest.raises(PayloadError, match="padding bits are not zero"):
            codec.decode(payload[:-1] + bytes([payload[-1] | 1 << bit]))


@given(codecs(), st.binary(max_size=60))
def test_random_payloads_are_refused_or_are_the_code_of_what_they_decode_to(
    codec: HuffmanCodec, payload: bytes
) -> None:
    try:
        symbols = codec.decode(payload)
    except PayloadError:
        pass
    else:
        assert codec.encode(symbols) == payload


@given(codecs(), st.integers(-(2**31), 2**31 - 1) | st.sampled_from([0, 1]), st.binary(max_size=200))
def test_random_frames_raise_nothing_but_payload_and_codec_errors(
    coder: HuffmanCodec, kind: int, payload: bytes
) -> None:
    for codec in ActivationCodec(coder.shape, coder), ActivationCodec(coder.shape, None):
        try:
            symbols = codec.decode(kind, payload)
        except (PayloadError, CodecError):
            pass
        else:
            assert symbols.shape == codec.shape
            assert symbols.dtype == np.uint8


@pytest.mark.parametrize("table", range(len(TABLES)))
def test_every_symbol_can_be_coded(table: int) -> None:
    codec = HuffmanCodec((1, 16, 16), Codebook(TABLES[[table]], np.zeros(1, np.uint16)))
    symbols = np.arange(SYMBOLS, dtype=np.uint8).reshape(codec.shape)

    assert (codec.decode(codec.encode(symbols)) == symbols).all()


def flat_codec(*, shape: tuple[int, int, int] = (1, 4, 4), table: int = 0) -> ActivationCodec:
    codebook = Codebook(TABLES[[table]], np.zeros(shape[0], np.uint16))
    return ActivationCodec(shape, HuffmanCodec(shape, codebook))


def test_a_code_of_just_the_raw_size_is_sent_raw() -> None:
    codec = flat_codec(table=0)
    symbols = np.full(codec.shape, 200, np.uint8)

    assert codec.coder is not None
    assert len(codec.coder.encode(symbols)) == codec.raw_bytes
    assert codec.encode(symbols) == (CodecId.RAW, symbols.tobytes())


def test_escape_to_raw_where_calibration_saw_other_symbols() -> None:
    codec = flat_codec(table=3)

    assert codec.encode(np.zeros(codec.shape, np.uint8)) == (CodecId.BUNDLE, bytes(2))
    assert codec.encode(np.full(codec.shape, 255, np.uint8)) == (CodecId.RAW, bytes([255]) * 16)


def test_symbols_need_not_be_contiguous_in_memory() -> None:
    codec = flat_codec(shape=(2, 3, 4), table=2)
    channels_last = np.random.default_rng(0).integers(0, 9, (3, 4, 2)).astype(np.uint8)
    symbols = channels_last.transpose(2, 0, 1)

    assert codec.encode(symbols) == codec.encode(symbols.copy())


def test_many_channels_with_a_plane_of_one_symbol() -> None:
    shape = (4096, 1, 1)
    book = Codebook(TABLES[[1, 2, 3]], (np.arange(4096) % 3).astype(np.uint16))
    codec = ActivationCodec(shape, HuffmanCodec(shape, book))
    symbols = np.random.default_rng(0).choice([0, 1, 2], shape).astype(np.uint8)

    kind, payload = codec.encode(symbols)

    assert kind is CodecId.BUNDLE
    assert (codec.decode(kind, payload) == symbols).all()


def test_codec_ids_are_those_on_the_wire() -> None:
    assert {f"CODEC_{codec.name}": codec.value for codec in CodecId} == dict(pb.Codec.items())


REFUSED = {
    "raw-empty": (CodecId.RAW, b"", PayloadError, "a raw payload has 0 bytes, expected 16"),
    "raw-short": (CodecId.RAW, bytes(15), PayloadError, "a raw payload has 15 bytes, expected 16"),
    "raw-long": (CodecId.RAW, bytes(17), PayloadError, "a raw payload has 17 bytes, expected 16"),
    "coded-empty": (CodecId.BUNDLE, b"", PayloadError, "the payload of 0 bytes ends before symbol 16 of 16"),
    "coded-raw-size": (
        CodecId.BUNDLE,
        bytes(16),
        PayloadError,
        "a coded payload has 16 bytes, expected fewer than the raw 16",
    ),
    "coded-huge": (
        CodecId.BUNDLE,
        bytes(1 << 20),
        PayloadError,
        "a coded payload has 1048576 bytes, expected fewer than the raw 16",
    ),
    "codec-2": (2, bytes(4), CodecError, "codec id 2 is unknown, expected one of [0, 1]"),
    "codec-negative": (-1, bytes(4), CodecError, "codec id -1 is unknown, expected one of [0, 1]"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses(name: str) -> None:
    kind, payload, error, expected = REFUSED[name]
    with pytest.raises(error) as caught:
        flat_codec(table=3).decode(kind, payload)
    assert type(caught.value) is error
    assert str(caught.value) == expected


def test_a_raw_bundle_takes_and_sends_raw_frames_only() -> None:
    codec = ActivationCodec((1, 2, 2), None)
    symbols = np.arange(4, dtype=np.uint8).reshape(1, 2, 2)

    assert codec.encode(symbols) == (CodecId.RAW, bytes([0, 1, 2, 3]))
    with pytest.raises(CodecError, match="the bundle names no coder, expected raw frames only"):
        codec.decode(CodecId.BUNDLE, b"\0")


@pytest.mark.parametrize(
    "symbols",
    [np.zeros((4, 4), np.uint8), np.zeros((1, 4, 5), np.uint8), np.zeros((1, 4, 4), np.int8)],
    ids=["rank", "shape", "dtype"],
)
def test_encoding_something_else_is_a_bug_of_the_caller(symbols: Symbols) -> None:
    with pytest.raises(ValueError, match=r"the codec is for uint8 \(1, 4, 4\)"):
        flat_codec().encode(symbols)


def test_a_codebook_for_other_channels_is_a_bug_of_the_caller() -> None:
    with pytest.raises(ValueError, match="the codebook has 1 channels"):
        HuffmanCodec((2, 4, 4), Codebook(TABLES[:1], np.zeros(1, np.uint16)))
