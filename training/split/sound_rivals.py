"""What the same sounds and tensors cost as files: raw samples, FLAC and Opus to the unsplit model, also
behind the early exit; tensors as they are, and deflated.

A sound's seconds are those that the head takes, without the silence around a short one, at the head's rate.
Bytes are of the samples alone: what a file's headers and pages take is left out, to the rival's advantage.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from offramp.common.inputs.sounds import Samples, middle_of, padded, to_tensor
from offramp.common.inputs.spec import WavFile
from offramp.common.inputs.wav import read_wav
from offramp.training.calibrate.measure import Answers
from offramp.training.data.datasets import Labelled
from offramp.training.split.photos import answers
from offramp.training.split.rivals import Comparison, Measured, Point
from offramp.training.split.taken import Taken

OPUS_KBITS = (6, 8, 12, 16, 24, 32)
"""Kilobits a second, variable; 6 is the lowest that libsndfile asks Opus for."""
OPUS_RATES = (8000, 12_000, 16_000, 24_000, 48_000)
_LOWEST, _HIGHEST = 6, 256
"""Kilobits at libsndfile's compression levels 1 and 0."""


@dataclass(frozen=True)
class SoundFormat:
    """A way to write a sound: its name; of float64 samples and a rate, the bytes and what they decode to."""

    name: str
    sent: Callable[[Samples, int], tuple[int, Samples]]
    lossy: bool = True


def sound_formats(rate: int) -> tuple[list[SoundFormat], str]:
    """What sounds of a rate can be sent as here, and a remark on what is missing, empty where nothing is."""
    found = [SoundFormat("raw 16-bit samples", _raw, lossy=False)]
    try:
        import soundfile
    except (ImportError, OSError):
        return found, "FLAC and Opus were not measured: pip install 'offramp[sound]'"
    found.append(SoundFormat("FLAC", lambda x, r: _flac(soundfile, x, r), lossy=False))
    if rate not in OPUS_RATES:
        return found, f"Opus was not measured: it takes no sounds of {rate:,} Hz"
    found += [SoundFormat(f"Opus {kbits} kbit/s", _opus(soundfile, kbits)) for kbits in OPUS_KBITS]
    return found, ""


def _raw(samples: Samples, _: int) -> tuple[int, Samples]:
    whole = np.rint(np.clip(samples, -1, 1) * 32_767)
    return 2 * len(samples), whole / 32_767


def _flac(soundfile: ModuleType, samples: Samples, rate: int) -> tuple[int, Samples]:
    data = _written(soundfile, samples, rate, format="FLAC", subtype="PCM_16", compression_level=1.0)
    at = 4
    # Blocks of metadata; the last has its upper bit set.
    while True:
        last, size = data[at] & 0x80, int.from_bytes(data[at + 1 : at + 4], "big")
        at += 4 + size
        if last:
            break
    return len(data) - at, _read(soundfile, data)


def _opus(soundfile: ModuleType, kbits: int) -> Callable[[Samples, int], tuple[int, Samples]]:
    level = (_HIGHEST - kbits) / (_HIGHEST - _LOWEST)

    def sent(samples: Samples, rate: int) -> tuple[int, Samples]:
        data = _written(soundfile, samples, rate, format="OGG", subtype="OPUS", compression_level=level)
        return sum(ogg_packets(data)[2:]), _read(soundfile, data)

    return sent


def _written(soundfile: ModuleType, samples: Samples, rate: int, **how: Any) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.clip(samples, -1, 1), rate, **how)
    return buffer.getvalue()


def _read(soundfile: ModuleType, data: bytes) -> Samples:
    found, _ = soundfile.read(io.BytesIO(data), dtype="float64")
    return np.asarray(found)


def ogg_packets(data: bytes) -> list[int]:
    """Bytes of each packet of an Ogg file of one stream; the first two of Opus are headers."""
    packets, size, at = list[int](), 0, 0
    while at + 27 <= len(data):
        count = data[at + 26]
        for lace in data[at + 27 : at + 27 + count]:
            size += lace
            if lace < 255:
                packets.append(size)
                size = 0
        at += 27 + count + sum(data[at + 27 : at + 27 + count])
    return packets


def compare_tensors(
    whole: Callable[[Tensor], Tensor],
    taken: Taken,
    seen: Answers,
    payloads: NDArray[np.int64],
    *,
    say: Callable[[str], object],
    tick: Callable[[int, int], object] = lambda *_: None,
) -> Comparison:
    """Measure what else could be sent, and the pair, on at most `MOST` of the test inputs.

    The arguments are those of `rivals.compare`; tick: called with how many formats are done, of how many.
    """
    pair = Measured.of(taken.data.test, seen, payloads)
    part = pair.part
    if not isinstance(taken.spec.file, WavFile):
        right = answers(whole, part, taken.normalise).argmax(axis=1) == part.labels
        sizes = np.array([len(zlib.compress(each.tobytes(), 9)) for each in part.images])
        plain = [("raw bytes", np.full(len(part), part.images[0].size)), ("deflated bytes", sizes)]
        pictures = tuple(Point(name, float(each.mean()), float(right.mean())) for name, each in plain)
        hybrids = pair.hybrids("deflated bytes", sizes, right)
        return Comparison(len(part), pair.ours, pictures, tuple(hybrids))
    sounds = _sounds(part, taken)
    formats, missing = sound_formats(taken.spec.file.rate)
    if missing:
        say(missing)
    points, hybrids = [], []
    for number, form in enumerate(formats, 1):
        sizes, right = _sent(form, sounds, part, whole, taken)
        points.append(Point(form.name, float(sizes.mean()), float(right.mean())))
        if form.lossy or len(formats) < 3:
            hybrids += pair.hybrids(form.name, sizes, right)
        tick(number, len(formats))
    return Comparison(len(part), pair.ours, tuple(points), tuple(hybrids))


def _sounds(part: Labelled, taken: Taken) -> list[Samples]:
    assert isinstance(taken.spec.file, WavFile)
    return [middle_of(read_wav(taken.originals.of(each)), taken.spec.file) for each in part.images]


def _sent(
    form: SoundFormat,
    sounds: Sequence[Samples],
    part: Labelled,
    whole: Callable[[Tensor], Tensor],
    taken: Taken,
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Bytes of each sound in a format, and where the unsplit model is right about what they decode to."""
    spec, file = taken.spec, taken.spec.file
    assert isinstance(file, WavFile)
    sizes, decoded = np.empty(len(sounds), np.int64), np.empty_like(part.images)
    for number, samples in enumerate(sounds):
        sizes[number], heard = form.sent(samples, file.rate)
        decoded[number] = to_tensor(padded(heard[: len(samples)], file), spec)
    found = answers(whole, Labelled(decoded, part.labels), taken.normalise)
    return sizes, found.argmax(axis=1) == part.labels
