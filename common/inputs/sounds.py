"""The one transform from sound to tensor, of device, training and callers.

    WAV → its middle ``seconds``, mixed down → resampled to ``rate`` → log-mel → clipped to ``range`` → uint8

Middle: of a longer sound; a shorter one has silence before and behind it, the same on both sides.
Resampled: by a windowed sinc (Hann) of 16 zero crossings each way, cut off at the lower Nyquist frequency; a
sound of the right rate is taken as it is.
Log-mel: windows of Hann (periodic) every ``hop`` samples, as many as lie in the sound; the power of their
Fourier transform, with which a sine of full scale has 1; triangles of peak 1 on the mel scale
2595 · log10(1 + f / 700), evenly from ``fmin`` to ``fmax``; 10 · log10 of that, not below ``floor``.
All in float64; the value of ``uint8`` is round(255 · (v - low) / (high - low)).
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from offramp.common.errors import DataError
from offramp.common.inputs.headers import Refused
from offramp.common.inputs.spec import LogMel, TensorInput, WavFile
from offramp.common.inputs.wav import Wav, read_wav

Samples = NDArray[np.float64]

ZERO_CROSSINGS = 16
_OUTPUTS, _WINDOWS = 256, 256
"""Resampled values, and windows, that are computed at a time."""


def decode_sound(name: str, data: bytes, spec: TensorInput) -> NDArray[np.uint8] | NDArray[np.float32]:
    """A WAV file's bytes → the tensor [1, mels, frames]. Raises DataError that starts with the name."""
    assert isinstance(spec.file, WavFile)
    try:
        samples = samples_of(read_wav(data), spec.file)
    except Refused as error:
        raise DataError(f"{name}: {error}") from None
    return to_tensor(samples, spec)


def to_tensor(samples: Samples, spec: TensorInput) -> NDArray[np.uint8] | NDArray[np.float32]:
    """float64 samples of the stated rate and length, full scale 1 → the tensor [1, mels, frames]."""
    assert isinstance(spec.file, WavFile)
    return quantized(log_mel(samples, spec.file.rate, spec.file.transform)[None], spec)


def quantized(values: NDArray[np.floating], spec: TensorInput) -> NDArray[np.uint8] | NDArray[np.float32]:
    """Finite numbers as the head takes them: clipped to the range, as uint8 or float32."""
    low, high = spec.range
    clipped = np.clip(values, low, high)
    if spec.dtype == "float32":
        return np.asarray(clipped, np.float32)
    return np.asarray(np.rint((clipped - low) * (255 / (high - low))), np.uint8)


def samples_of(wav: Wav, spec: WavFile) -> Samples:
    """The middle of a sound at the stated rate, with silence around a short one, float64 [samples].

    Raises Refused.
    """
    return padded(middle_of(wav, spec), spec)


def middle_of(wav: Wav, spec: WavFile) -> Samples:
    """The same without the silence: float64 [N], N at most the samples that are stated. Raises Refused."""
    total = max(1, wav.frames * spec.rate // wav.rate)
    count = min(spec.samples, total)
    first = (total - count) // 2
    return wav.mono(first, count) if wav.rate == spec.rate else _resampled(wav, spec.rate, first, count)


def padded(samples: Samples, spec: WavFile) -> Samples:
    """At most as many samples as are stated, with silence on both sides, float64 [samples]."""
    found = np.zeros(spec.samples)
    before = (spec.samples - len(samples)) // 2
    found[before : before + len(samples)] = samples
    return found


def _resampled(wav: Wav, rate: int, first: int, count: int) -> Samples:
    """Values ``first`` … ``first + count`` of the sound at another rate."""
    divisor = math.gcd(rate, wav.rate)
    up, down = rate // divisor, wav.rate // divisor
    kernel = _kernel(up, down)
    half = kernel.shape[1] // 2
    found = np.empty(count)
    for start in range(0, count, _OUTPUTS):
        # Place n of the new rate is n · down / up of the old; the kernel reaches ``half`` each way.
        place = np.arange(first + start, first + min(start + _OUTPUTS, count), dtype=np.int64) * down
        begins, phase = place // up - half + 1, place % up
        low, high = int(begins[0]), int(begins[-1]) + 2 * half
        source = np.zeros(high - low)
        inside = max(low, 0), min(high, wav.frames)
        source[inside[0] - low : inside[1] - low] = wav.mono(inside[0], inside[1] - inside[0])
        taken = source[(begins - low)[:, None] + np.arange(2 * half)]
        found[start : start + len(place)] = (taken * kernel[phase]).sum(axis=1)
    return found


@lru_cache(maxsize=2)
def _kernel(up: int, down: int) -> Samples:
    """Weights of 2 · half neighbours for each of ``up`` places between samples, float64 [up, 2 · half]."""
    cutoff = min(1.0, up / down)
    half = math.ceil(ZERO_CROSSINGS / cutoff)
    distance = np.arange(1 - half, half + 1)[None, :] - np.arange(up)[:, None] / up
    kernel = np.sinc(cutoff * distance) * (0.5 + 0.5 * np.cos(np.pi * np.clip(distance / half, -1, 1)))
    return np.asarray(kernel / kernel.sum(axis=1, keepdims=True))


def log_mel(samples: Samples, rate: int, spec: LogMel) -> Samples:
    """Decibels, float64 [mels, frames], of float64 samples [N], N at least a window."""
    hann, bands = _hann(spec.window), mel_bands(rate, spec)
    windows = sliding_window_view(samples, spec.window)[:: spec.hop]
    found = np.empty((len(windows), spec.mels))
    for start in range(0, len(windows), _WINDOWS):
        spectrum = np.fft.rfft(windows[start : start + _WINDOWS] * hann)
        power = (spectrum.real**2 + spectrum.imag**2) * (2 / hann.sum()) ** 2
        found[start : start + _WINDOWS] = power @ bands
    return 10 * np.log10(np.maximum(found, 10 ** (spec.floor / 10))).T


@lru_cache(maxsize=4)
def _hann(size: int) -> Samples:
    return 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)


@lru_cache(maxsize=4)
def mel_bands(rate: int, spec: LogMel) -> Samples:
    """Weight of each frequency of a window in each band, float64 [window // 2 + 1, mels]."""
    low, high = (2595 * np.log10(1 + edge / 700) for edge in (spec.fmin, spec.fmax))
    edges = 700 * (10 ** (np.linspace(low, high, spec.mels + 2) / 2595) - 1)
    left, middle, right = edges[:-2], edges[1:-1], edges[2:]
    frequencies = np.fft.rfftfreq(spec.window, 1 / rate)[:, None]
    rising, falling = (frequencies - left) / (middle - left), (right - frequencies) / (right - middle)
    return np.asarray(np.maximum(0, np.minimum(rising, falling)))
