"""Running the two graphs. Graphs that are refused: ``tests/attacks``."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import numpy as np
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from offramp.common.bundle.load import Bundle, load_bundle
from offramp.common.part.engine import Engine, softmax
from offramp.common.part.session import saturates
from tests import toy
from tests.toy import BundleFolder

Logits = NDArray[np.float32]
logit_batches = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 4), st.integers(2, 6)),
    elements=st.floats(float(np.float32(-1e30)), float(np.float32(1e30)), width=32),
)


def test_head_and_tail_are_those_of_the_bundle(toy_bundle: Bundle, toy_engine: Engine) -> None:
    images = toy.images(5)
    symbols, early = toy_engine.head(images)
    final = toy_engine.tail(symbols)

    def run(graph: bytes, name: str, batch: NDArray[np.uint8], output: str) -> NDArray[np.float32]:
        session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
        return np.asarray(session.run([output], {name: batch})[0])

    assert (symbols.shape, symbols.dtype) == ((5, *toy.SHAPE), np.dtype(np.uint8))
    assert (early.shape, early.dtype) == ((5, 3), np.dtype(np.float32))
    assert (final.shape, final.dtype) == ((5, 3), np.dtype(np.float32))
    assert (symbols == run(toy_bundle.head, "image", images, "symbols")).all()
    np.testing.assert_allclose(early, softmax(run(toy_bundle.head, "image", images, "logits")), atol=1e-6)
    np.testing.assert_allclose(final, softmax(run(toy_bundle.tail, "symbols", symbols, "logits")), atol=1e-6)


def test_the_toy_is_no_trivial_model(toy_engine: Engine) -> None:
    """Other tests lean on it: all classes occur, confidences spread, head and tail disagree on some."""
    symbols, early = toy_engine.head(toy.images(40, seed=2))
    final = toy_engine.tail(symbols)

    assert set(early.argmax(axis=1)) == set(final.argmax(axis=1)) == {0, 1, 2}
    assert np.ptp(early.max(axis=1)) > 0.4
    assert 5 < (early.argmax(axis=1) != final.argmax(axis=1)).sum() < 35


@pytest.mark.parametrize("count", [1, 2, 3, 17])
def test_a_batch_gives_what_its_images_give_one_by_one(count: int, toy_engine: Engine) -> None:
    images = toy.images(count, seed=3)
    symbols, early = toy_engine.head(images)
    final = toy_engine.tail(symbols)

    for index in range(count):
        one, confidence = toy_engine.head(images[index : index + 1])
        assert (one[0] == symbols[index]).all()
        np.testing.assert_allclose(confidence[0], early[index], atol=1e-6)
        np.testing.assert_allclose(toy_engine.tail(one)[0], final[index], atol=1e-6)


def test_the_tail_takes_what_the_codec_gives(toy_bundle: Bundle, toy_engine: Engine) -> None:
    symbols, _ = toy_engine.head(toy.images(1))
    codec, payload = toy_bundle.codec.encode(symbols[0])
    decoded = toy_bundle.codec.decode(codec, payload)
    as_raw = toy_bundle.codec.decode(1, symbols[0].tobytes())

    final = toy_engine.tail(symbols)
    assert (toy_engine.tail(decoded[None]) == final).all()
    assert (toy_engine.tail(as_raw[None]) == final).all()


def test_the_temperature_softens_the_early_exit_and_nothing_else(
    bundle_folder: Callable[[], BundleFolder], toy_engine: Engine
) -> None:
    folder = bundle_folder()
    folder.edit("temperature", value=4.0)
    soft = Engine(load_bundle(folder.path))

    symbols, early = toy_engine.head(toy.images(8))
    same, softer = soft.head(toy.images(8))

    assert (same == symbols).all()
    assert (softer.argmax(axis=1) == early.argmax(axis=1)).all()
    assert (softer.max(axis=1) < early.max(axis=1)).all()
    assert (soft.tail(symbols) == toy_engine.tail(symbols)).all()


@given(logit_batches, st.floats(0.001, 1000))
def test_softmax_gives_probabilities(logits: Logits, temperature: float) -> None:
    probabilities = softmax(logits, temperature)

    assert probabilities.dtype == np.float32
    assert (probabilities >= 0).all()
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
    assert np.take_along_axis(probabilities, logits.argmax(axis=1)[:, None], 1).ravel().tolist() == (
        probabilities.max(axis=1).tolist()
    )


def test_softmax_of_known_logits() -> None:
    logits = np.log(np.array([[1, 2, 5]], np.float32))

    np.testing.assert_allclose(softmax(logits), [[0.125, 0.25, 0.625]], rtol=1e-6)
    np.testing.assert_allclose(softmax(logits, 0.5), [[1 / 30, 4 / 30, 25 / 30]], rtol=1e-6)


def test_importing_the_engine_does_not_import_onnxruntime() -> None:
    """It takes 0.1 s, and ``--help`` has no use for it."""
    code = "import sys, offramp.common.part.engine; sys.exit('onnxruntime' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("machine", "flags", "expected"),
    [
        ("x86_64", "fpu avx2 avx512f avx512_vnni", False),
        ("x86_64", "fpu avx2 avx_vnni", False),
        ("x86_64", "fpu avx2 avx512f", True),
        ("AMD64", "", True),
        ("aarch64", "fp asimd", False),
    ],
)
def test_sums_are_made_exact_where_the_cpu_would_saturate_them(
    machine: str, flags: str, expected: bool
) -> None:
    assert saturates(machine, f"processor : 0\nflags\t\t: {flags}\n") is expected
