"""WAV files that are as they should be. Those that are not: ``tests/attacks``."""

from __future__ import annotations

import io
import struct
import wave

import numpy as np
import pytest

from offramp.common.inputs.headers import Refused
from offramp.common.inputs.wav import is_wav, read_wav
from tests.toy_tensor import chunk, riff, wav

RAMP = np.linspace(-0.9, 0.9, 1001)


@pytest.mark.parametrize(
    ("bits", "off"), [(8, 0.004), (16, 1.6e-5), (24, 6e-8), (32, 3e-10), (-32, 1e-7), (-64, 0)]
)
def test_samples_of_every_width_are_what_was_written(bits: int, off: float) -> None:
    found = read_wav(wav(RAMP, bits=bits))

    assert (found.rate, found.channels, found.frames) == (8000, 1, 1001)
    assert np.abs(found.mono(0, 1001) - RAMP).max() <= off
    assert (found.mono(500, 10) == found.mono(0, 1001)[500:510]).all()


def test_the_standard_library_writes_the_same() -> None:
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(2)
        writer.setsampwidth(2)
        writer.setframerate(16_000)
        writer.writeframes(np.array([[32767, -32768], [100, 300]], "<i2").tobytes())

    found = read_wav(file.getvalue())
    assert found.rate == 16_000
    assert found.mono(0, 2).tolist() == [-0.5 / 32768, 200 / 32768]


def test_channels_are_mixed_down_whatever_their_number_of_frames() -> None:
    many = np.random.default_rng(0).uniform(-1, 1, 200_000)
    assert np.abs(read_wav(wav(many, channels=3, bits=-64)).mono(0, 200_000) - many).max() < 1e-15


def test_an_extensible_header_and_chunks_around_it_are_read() -> None:
    guid = struct.pack("<H", 1) + bytes.fromhex("000000001000800000aa00389b71")
    header = struct.pack("<HHIIHH", 0xFFFE, 1, 8000, 16_000, 2, 16) + struct.pack("<HHI", 22, 16, 4) + guid
    odd = chunk(b"LIST", b"odd")
    data = riff(odd + chunk(b"fmt ", header) + odd + chunk(b"data", b"\0\x40" * 5) + odd)

    assert read_wav(data).mono(0, 5).tolist() == [0.5] * 5


def test_a_size_that_was_never_written_means_the_rest() -> None:
    header = struct.pack("<HHIIHH", 1, 1, 8000, 16_000, 2, 16)
    data = riff(chunk(b"fmt ", header) + chunk(b"data", bytes(20), 0xFFFFFFFF))

    assert read_wav(data).frames == 10


def test_what_begins_otherwise_is_not_one() -> None:
    assert is_wav(wav()) and is_wav(b"RF64\0\0\0\0WAVE") and not is_wav(b"RIFF\0\0\0\0WEBP")
    with pytest.raises(Refused, match="is not a WAV"):
        read_wav(b"hello")
