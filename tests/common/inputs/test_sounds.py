"""From samples to a log-mel tensor: levels, bands, time, other rates."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from offramp.common.errors import DataError
from offramp.common.inputs import sounds
from offramp.common.inputs.sounds import decode_sound, log_mel, mel_bands, middle_of, samples_of
from offramp.common.inputs.spec import LogMel, TensorInput, WavFile
from offramp.common.inputs.wav import read_wav
from tests.toy_tensor import wav

MEL = LogMel(kind="log-mel", window=256, hop=100, mels=40, fmin=50.0, fmax=4000.0, floor=-80.0)
SECOND = WavFile(kind="wav", rate=8000, seconds=1.0, transform=MEL)
SPEC = TensorInput.model_validate(
    {"kind": "tensor", "shape": (1, 40, 78), "dtype": "uint8", "range": (-80.0, 0.0), "file": SECOND}
)


def tone(hertz: float, rate: int = 8000, seconds: float = 1.0) -> NDArray[np.float64]:
    return np.sin(2 * np.pi * hertz * np.arange(round(rate * seconds)) / rate)


def test_a_tone_of_full_scale_has_0_decibels_in_its_band_and_little_elsewhere() -> None:
    bands = mel_bands(8000, MEL)
    middle = np.argmax(bands[:, 20]) * 8000 / 256
    found = log_mel(tone(middle), 8000, MEL)

    assert found.shape == (40, 78)
    assert (found.argmax(axis=0) == 20).all()
    # The window shares a tone's power out among three frequencies, of which bands are sums.
    assert np.abs(found[20]).max() < 2.5
    assert found[:15].max() < -60


def test_silence_has_the_floor() -> None:
    assert (log_mel(np.zeros(8000), 8000, MEL) == -80).all()


def test_half_as_loud_is_six_decibels_less() -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, 8000)
    assert np.abs(log_mel(noise, 8000, MEL) - log_mel(noise / 2, 8000, MEL) - 20 * np.log10(2)).max() < 1e-9


def test_bands_cover_what_they_say() -> None:
    narrow = mel_bands(8000, MEL.model_copy(update={"fmin": 1000.0, "fmax": 2000.0}))
    hertz = np.flatnonzero(narrow.sum(axis=1)) * 8000 / 256
    assert hertz.min() > 1000 and hertz.max() < 2000


def test_the_middle_of_a_long_sound_and_silence_around_a_short_one() -> None:
    marked = np.zeros(12_000)
    marked[2000:10_000] = 0.5
    assert np.allclose(samples_of(read_wav(wav(marked)), SECOND), 0.5, atol=1e-4)

    short = samples_of(read_wav(wav(np.full(4000, 0.5))), SECOND)
    assert not short[:2000].any() and not short[6000:].any()
    assert np.allclose(short[2000:6000], 0.5, atol=1e-4)
    assert len(middle_of(read_wav(wav(np.full(4000, 0.5))), SECOND)) == 4000


@pytest.mark.parametrize("rate", [4000, 11_025, 16_000, 44_100, 48_000, 192_000])
def test_another_rate_is_resampled_to_the_same_tone(rate: int) -> None:
    wanted, found = tone(500), samples_of(read_wav(wav(tone(500, rate), rate, bits=-64)), SECOND)

    inside = slice(200, -200)
    assert np.abs(found[inside] - wanted[inside]).max() < 2e-3


def test_what_the_lower_rate_cannot_hold_is_cut_off() -> None:
    found = samples_of(read_wav(wav(tone(6000, 48_000), 48_000)), SECOND)
    assert np.abs(found[200:-200]).max() < 2e-3


def test_resampling_in_parts_is_resampling(monkeypatch: pytest.MonkeyPatch) -> None:
    file = read_wav(wav(tone(700, 44_100), 44_100))
    whole = samples_of(file, SECOND)
    monkeypatch.setattr(sounds, "_OUTPUTS", 77)
    assert (samples_of(file, SECOND) == whole).all()


def test_a_file_becomes_levels_of_the_range() -> None:
    data = wav(tone(1000))
    found = decode_sound("a.wav", data, SPEC)

    assert found.dtype == np.uint8 and found.shape == (1, 40, 78)
    decibels = log_mel(samples_of(read_wav(data), SECOND), 8000, MEL)
    assert np.abs(found[0] / 255 * 80 - 80 - np.clip(decibels, -80, 0)).max() <= 80 / 255 / 2 + 1e-9
    assert (found == decode_sound("a.wav", data, SPEC)).all()


def test_a_bad_file_is_one_error_with_its_name() -> None:
    with pytest.raises(DataError, match=r"^a\.wav: is not a WAV \(starts with 68 65 6c 6c\), expected RIFF"):
        decode_sound("a.wav", b"hello", SPEC)
