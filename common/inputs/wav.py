"""WAV files from strangers: their header checked and bounded before any sample is touched.

RIFF/WAVE with PCM of 8, 16, 24 or 32 bits or floats of 32 or 64, plain or WAVE_FORMAT_EXTENSIBLE, 1 … 64
channels. Not by the standard library's ``wave``, which reads no floats, nor by libsndfile, whose thirty other
formats nobody here asked for.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from offramp.common.inputs.headers import Refused

CHANNELS = 64
RATES = (4000, 192_000)
CHUNKS = 1000
"""Most chunks before the samples."""
LOUDEST = 1000.0
"""Largest value of a float sample; 1 is full scale."""
UNKNOWN_SIZE = 0xFFFFFFFF
"""What a program writes that cannot go back to say how much it wrote: the rest of the file."""

_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
_OTHERS = {2: "ADPCM", 6: "A-law", 7: "µ-law", 17: "ADPCM", 80: "MPEG", 85: "MP3"}
_BITS = {_PCM: (8, 16, 24, 32), _FLOAT: (32, 64)}
_GUID = bytes.fromhex("000000001000800000aa00389b71")
"""What follows a plain format's number in an extensible header."""
_BLOCK = 1 << 16
"""Frames that are mixed down at a time."""


@dataclass(frozen=True)
class Wav:
    """A WAV file whose header was checked: ``frames`` samples of each of ``channels``, from ``start`` on."""

    rate: int
    channels: int
    is_float: bool
    width: int
    """Bytes of a sample."""
    start: int
    frames: int
    data: bytes

    def mono(self, first: int, count: int) -> NDArray[np.float64]:
        """Frames from ``first`` on, the mean of their channels, full scale 1: float64 [count].

        Raises Refused for floats that are no sound.
        """
        found = np.empty(count, np.float64)
        align = self.width * self.channels
        for at in range(0, count, _BLOCK):
            size = min(_BLOCK, count - at)
            start = self.start + (first + at) * align
            values = self._samples(self.data[start : start + size * align])
            found[at : at + size] = values.reshape(size, self.channels).mean(axis=1)
        return found

    def _samples(self, raw: bytes) -> NDArray[np.float64]:
        if self.is_float:
            values = np.frombuffer(raw, f"<f{self.width}").astype(np.float64)
            # Also true of NaN.
            if not (np.abs(values) <= LOUDEST).all():
                raise Refused(f"has float samples that are not numbers of -{LOUDEST:g} … {LOUDEST:g}")
            return values
        if self.width == 1:
            return (np.frombuffer(raw, np.uint8).astype(np.float64) - 128) / 128
        if self.width == 3:
            low, middle, high = np.frombuffer(raw, np.uint8).reshape(-1, 3).astype(np.int32).T
            whole = (low | middle << 8 | high << 16) ^ 0x800000
            return (whole - 0x800000) / float(1 << 23)
        return np.frombuffer(raw, f"<i{self.width}") / float(1 << (8 * self.width - 1))


def is_wav(data: bytes) -> bool:
    """Whether a file means to be a WAV, of any kind, by its first 12 bytes."""
    return data[:4] in (b"RIFF", b"RIFX", b"RF64", b"BW64") and data[8:12] == b"WAVE"


def read_wav(data: bytes) -> Wav:
    """Check a WAV file's header. Raises Refused."""
    if not is_wav(data):
        raise Refused(f"is not a WAV (starts with {data[:4].hex(' ') or 'nothing'}), expected RIFF … WAVE")
    if data[:4] != b"RIFF":
        kind = "big-endian" if data[:4] == b"RIFX" else "for over 4 GiB"
        raise Refused(f"is a WAV of the kind {data[:4].decode()} ({kind}), expected RIFF")
    form: tuple[int, int, int, int] | None = None
    at = 12
    for _ in range(CHUNKS):
        if at + 8 > len(data):
            raise Refused(f"is a damaged WAV: it ends without {'samples' if form else 'a format'}")
        name, size = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        at += 8
        if name == b"data":
            if form is None:
                raise Refused("is a damaged WAV: its samples come before their format")
            return _wav(data, at, size, *form)
        if at + size > len(data):
            raise Refused("is a damaged WAV: a chunk ends after the file")
        if name == b"fmt ":
            if form is not None:
                raise Refused("is a damaged WAV: it states two formats")
            form = _format(data[at : at + size])
        # Chunks begin at even places.
        at += size + size % 2
    raise Refused(f"is a WAV with over {CHUNKS:,} chunks before its samples")


def _format(chunk: bytes) -> tuple[int, int, int, int]:
    """Kind, channels, rate and bytes of a sample."""
    if len(chunk) < 16:
        raise Refused(f"is a damaged WAV: its format has {len(chunk)} bytes, expected 16 or more")
    kind, channels, rate, _, align, bits = struct.unpack_from("<HHIIHH", chunk)
    if kind == _EXTENSIBLE:
        if len(chunk) < 40 or chunk[26:40] != _GUID:
            raise Refused("is a WAV of an extensible format that is neither PCM nor floats")
        kind = int.from_bytes(chunk[24:26], "little")
    if kind not in _BITS:
        raise Refused(f"is a WAV of {_OTHERS.get(kind, f'format {kind}')}, expected PCM or floats")
    if bits not in _BITS[kind]:
        wanted = ", ".join(map(str, _BITS[kind]))
        raise Refused(f"is a WAV of {bits} bits a sample, expected {wanted}")
    if not 1 <= channels <= CHANNELS:
        raise Refused(f"is a WAV of {channels} channels, expected 1 … {CHANNELS}")
    if not RATES[0] <= rate <= RATES[1]:
        raise Refused(f"is a WAV of {rate:,} samples a second, expected {RATES[0]:,} … {RATES[1]:,}")
    if align != channels * bits // 8:
        raise Refused(f"is a damaged WAV: {align} bytes a frame of {channels} channels of {bits} bits")
    return kind, channels, rate, bits // 8


def _wav(data: bytes, start: int, size: int, kind: int, channels: int, rate: int, width: int) -> Wav:
    left = len(data) - start
    if size == UNKNOWN_SIZE:
        size = left
    if size > left:
        raise Refused(f"is a damaged WAV: its header says {size:,} bytes of samples, {left:,} are there")
    frames = size // (width * channels)
    if not frames:
        raise Refused("is a WAV without samples")
    return Wav(rate, channels, kind == _FLOAT, width, start, frames, data)
