"""Hostile WAV files: each with what its one error says. New ones are added at the end: numbers stay."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

from tests.toy_tensor import chunk, riff, wav


@dataclass(frozen=True)
class WavAttack:
    """A file's bytes, and a regular expression for what is said of it."""

    number: int
    name: str
    make: Callable[[], bytes]
    expected: str

    @property
    def id(self) -> str:
        """Number and name."""
        return f"{self.number:03}-{self.name}"


def form(
    kind: int = 1,
    channels: int = 1,
    rate: int = 8000,
    bits: int = 16,
    align: int | None = None,
    more: bytes = b"",
) -> bytes:
    """A format chunk."""
    align = channels * bits // 8 if align is None else align
    return chunk(b"fmt ", struct.pack("<HHIIHH", kind, channels, rate, rate * align, align, bits) + more)


def file(header: bytes, samples: bytes = bytes(2000), size: int | None = None) -> bytes:
    """A WAV file with this format chunk."""
    return riff(header + chunk(b"data", samples, size))


GUID = bytes.fromhex("000000001000800000aa00389b71")

_LIST: tuple[tuple[str, Callable[[], bytes], str], ...] = (
    ("nothing", lambda: b"", "starts with nothing, expected a WAV or .npy"),
    ("text", lambda: b"RIFFraff", r"starts with 52 49 46 46, expected a WAV or \.npy"),
    ("another-riff", lambda: b"RIFF\x04\0\0\0AVI ", r"starts with 52 49 46 46, expected a WAV or \.npy"),
    ("header-alone", lambda: riff(b""), "is a damaged WAV: it ends without a format"),
    ("rf64", lambda: riff(form(), b"RF64"), r"is a WAV of the kind RF64 \(for over 4 GiB\), expected RIFF"),
    ("bw64", lambda: riff(form(), b"BW64"), r"is a WAV of the kind BW64 \(for over 4 GiB\), expected RIFF"),
    ("big-endian", lambda: riff(form(), b"RIFX"), r"is a WAV of the kind RIFX \(big-endian\), expected RIFF"),
    ("no-samples", lambda: riff(form()), "is a damaged WAV: it ends without samples"),
    ("empty-samples", lambda: file(form(), b""), "is a WAV without samples"),
    ("half-a-frame", lambda: file(form(channels=2), b"\0\0\0"), "is a WAV without samples"),
    ("samples-first", lambda: riff(chunk(b"data", bytes(4)) + form()), "samples come before their"),
    ("two-formats", lambda: riff(form() + form() + chunk(b"data", bytes(4))), "it states two formats"),
    ("cut", lambda: wav()[:-100], "its header says 1,600 bytes of samples, 1,500 are there"),
    ("claims-4-gib", lambda: file(form(), size=0xFFFFFFFE), "says 4,294,967,294 bytes of samples"),
    ("chunk-of-4-gib", lambda: riff(chunk(b"LIST", b"", 0xFFFFFFFF)), "a chunk ends after the file"),
    ("millions-of-chunks", lambda: riff(chunk(b"abcd", b"") * 2_000_000), "over 1,000 chunks before"),
    ("short-format", lambda: file(chunk(b"fmt ", bytes(10))), "its format has 10 bytes, expected 16 or more"),
    ("mp3", lambda: file(form(85)), "is a WAV of MP3, expected PCM or floats"),
    ("a-law", lambda: file(form(6, bits=8)), "is a WAV of A-law, expected PCM or floats"),
    ("adpcm", lambda: file(form(17, bits=4)), "is a WAV of ADPCM, expected PCM or floats"),
    ("unknown", lambda: file(form(4711)), "is a WAV of format 4711, expected PCM or floats"),
    ("12-bits", lambda: file(form(bits=12)), "is a WAV of 12 bits a sample, expected 8, 16, 24, 32"),
    ("float-of-16-bits", lambda: file(form(3)), "is a WAV of 16 bits a sample, expected 32, 64"),
    ("no-channels", lambda: file(form(channels=0)), "is a WAV of 0 channels, expected 1 … 64"),
    ("65535-channels", lambda: file(form(channels=65_535, align=2)), "is a WAV of 65535 channels"),
    ("no-rate", lambda: file(form(rate=0)), "is a WAV of 0 samples a second, expected 4,000 … 192,000"),
    ("rate-of-4-billion", lambda: file(
        chunk(b"fmt ", struct.pack("<HHIIHH", 1, 1, 0xFFFFFFFF, 0, 2, 16))
    ), "is a WAV of 4,294,967,295 samples a second"),
    ("no-alignment", lambda: file(form(align=0)), "0 bytes a frame of 1 channels of 16 bits"),
    ("short-extensible", lambda: file(form(0xFFFE)), "an extensible format that is neither PCM nor floats"),
    ("extensible-of-another-kind", lambda: file(
        form(0xFFFE, more=struct.pack("<HHIH", 22, 16, 4, 1) + bytes(14))
    ), "an extensible format that is neither PCM nor floats"),
    ("extensible-mp3", lambda: file(
        form(0xFFFE, more=struct.pack("<HHIH", 22, 16, 4, 85) + GUID)
    ), "is a WAV of MP3, expected PCM or floats"),
    ("nan", lambda: file(form(3, bits=32), struct.pack("<500f", *[float("nan")] * 500)),
     "has float samples that are not numbers of -1000 … 1000"),
    ("infinity", lambda: file(form(3, bits=64), struct.pack("<500d", *[float("inf")] * 500)),
     "has float samples that are not numbers of -1000 … 1000"),
    ("1e300", lambda: file(form(3, bits=64), struct.pack("<500d", *[1e300] * 500)),
     "has float samples that are not numbers of -1000 … 1000"),
)  # fmt: skip
ATTACKS = [WavAttack(number, *each) for number, each in enumerate(_LIST, 1)]
