"""Each hostile WAV is one error that names it, within bounds of memory; the next good one is answered."""

from __future__ import annotations

import json
import re
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from offramp.common.errors import DataError
from offramp.common.inputs.spec import TensorInput
from offramp.common.inputs.tensors import to_tensor
from offramp.device.sources.source import Source
from tests.attacks.wavs import ATTACKS, WavAttack, file, form
from tests.toy_tensor import SOUNDS, TRANSFORM, wav

SPEC = TensorInput.model_validate_json(json.dumps(SOUNDS))


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.id)
def test_is_one_error_and_the_next_file_is_read(attack: WavAttack, tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(attack.make())
    (tmp_path / "b.wav").write_bytes(wav())
    bad, good = Source([tmp_path], SPEC)

    assert isinstance(bad.image, DataError)
    message = str(bad.image)
    assert message.startswith(f"{tmp_path / 'a.wav'}: ") and message.isprintable() and len(message) < 300
    if attack.name == "nothing":
        assert "is empty, expected" in message
    else:
        assert re.search(attack.expected, message)
    assert isinstance(good.image, np.ndarray)


@given(st.binary(max_size=200) | st.binary(max_size=60).map(lambda data: file(form(), data)))
def test_any_bytes_are_a_tensor_or_one_error(data: bytes) -> None:
    try:
        found = to_tensor(data, SPEC, "it")
    except DataError as error:
        assert str(error).startswith("it: ") and str(error).isprintable()
    else:
        assert found.shape == SPEC.shape


@given(edits=st.lists(st.tuples(st.integers(0, 60), st.binary(max_size=3)), min_size=1, max_size=4))
def test_a_damaged_header_is_a_tensor_or_one_error(edits: list[tuple[int, bytes]]) -> None:
    data = wav()
    for place, insert in edits:
        data = data[:place] + insert + data[place + 1 :]
    test_any_bytes_are_a_tensor_or_one_error.hypothesis.inner_test(data)  # type: ignore[attr-defined]


def test_the_longest_sound_at_the_highest_rate_takes_little_memory() -> None:
    transform = {**TRANSFORM, "hop": 128, "fmax": 2000.0}
    seconds = {"kind": "wav", "rate": 4000, "seconds": 15.0, "transform": transform}
    shape = [1, 8, 1 + (60_000 - 128) // 128]
    spec = TensorInput.model_validate_json(json.dumps({**SOUNDS, "file": seconds, "shape": shape}))
    data = file(form(rate=192_000, bits=8), bytes([100, 156]) * (4 << 20))
    # The first sound imports what resamples.
    to_tensor(file(form(rate=192_000, bits=8), bytes([100, 156]) * 4096), spec, "short")
    tracemalloc.start()
    try:
        to_tensor(data, spec, "it")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # In float64 the seconds that are used would take 23 MB alone, and the whole sound 67.
    assert peak < 15 << 20
