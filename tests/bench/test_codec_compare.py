"""``offramp codec compare``: bytes beside entropies, on activations small enough to know the answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from offramp.bench.activations import bundle_activations
from offramp.bench.codec_compare import (
    CHANNEL,
    LEFT,
    TENSOR,
    TOKENS,
    entropies,
    entropy_weight,
    left_bits,
)
from offramp.cli import app
from offramp.common.bundle.load import Bundle
from offramp.common.codec.activation import Symbols
from offramp.common.errors import ExitCode


def bits_by_name(symbols: Symbols) -> dict[str, float]:
    return {entropy.name: entropy.bits_a_symbol for entropy in entropies(symbols, symbols)}


def test_the_channel_knows_more_than_the_tensor_and_the_neighbour_more_than_the_channel() -> None:
    rng = np.random.default_rng(1)
    symbols = np.zeros((64, 2, 8, 8), np.uint8)
    symbols[:, 0] = rng.integers(0, 2, (64, 8, 1)) * 7  # rows of one value
    symbols[:, 1] = 100 + rng.integers(0, 4, (64, 8, 8))

    bits = bits_by_name(symbols)

    assert bits[TENSOR] == pytest.approx(2.5, abs=0.01)
    assert bits[CHANNEL] == pytest.approx(1.5, abs=0.01)
    # Only the first of the eight symbols of a row is news.
    assert bits[LEFT] == pytest.approx((1 / 8 + 2) / 2, abs=0.01)
    assert bits[TOKENS] < bits[CHANNEL]


def test_the_first_column_has_a_context_of_its_own() -> None:
    symbols = np.array([0, 1], np.uint8).repeat(4).reshape(2, 1, 2, 2)

    bits, pairs = left_bits(symbols)

    # Four first symbols, half 0 and half 1; the second is always the first again.
    assert bits == pytest.approx([4.0])
    assert pairs == 4


@pytest.mark.parametrize(
    ("recipe", "weight"),
    [
        ("[train.regularised]\nentropy = 5.0\n", 5.0),
        ("[train.regularised]\nepochs = 1\n", None),
        ("[train]\nregularised = 3\n", None),
        ("[train.regularised]\nentropy = 'much'\n", None),
        ("no recipe", None),
        ("", None),
    ],
)
def test_the_entropy_s_weight_is_read_from_a_recipe_that_has_one(recipe: str, weight: float | None) -> None:
    assert entropy_weight(recipe) == weight


def test_it_reports_the_bundle_s_own_coder_and_all_others(
    toy_bundle: Bundle, toy_images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert app.main(["codec", "compare", str(toy_bundle.path), "--images", str(toy_images), "--json"]) == 0

    found: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    (toy,) = found
    coded = {each["name"]: each for each in toy["coded"]}
    assert toy["images"] == 20 and toy["raw_bytes"] == 64
    assert [name for name, each in coded.items() if each["in_bundle"]] == ["the bundle's huffman"]
    assert {"raw", "huffman, one table", "rans, shared tables"} <= set(coded)
    own = coded["the bundle's huffman"]
    sizes = [len(toy_bundle.codec.encode(s)[1]) for s in bundle_activations(toy_bundle, toy_images)[1::2]]
    assert own["bytes_mean"] == sum(sizes) / len(sizes)
    assert own["tables"] == 4 and own["table_bytes"] == 512
    assert len(toy["channels"]) == 4
    assert all(each["bits_given_left"] <= each["bits_entropy"] + 1e-9 for each in toy["channels"])
    # The bits of all channels, and less than a byte of padding.
    bits = sum(each["bits_in_bundle"] for each in toy["channels"]) * 16
    assert 0 <= own["bytes_mean"] - bits / 8 < 1


def test_it_prints_a_card_and_the_channels_when_asked(
    toy_bundle: Bundle, raw_bundle: Bundle, toy_images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundles = [str(toy_bundle.path), str(raw_bundle.path)]

    assert app.main(["codec", "compare", *bundles, "--images", str(toy_images)]) == 0
    short = capsys.readouterr().out
    assert app.main(["codec", "compare", *bundles, "--images", str(toy_images), "--channels"]) == 0
    long = capsys.readouterr().out

    assert "* the bundle's huffman" in short and "* raw" in short
    assert "the channel and the left neighbour" in short
    assert long.count("\n") == short.count("\n") + 2 * (2 + 4)


def test_an_unusable_bundle_and_wrong_flags_have_their_own_exit_status(
    tmp_path: Path, toy_bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    assert app.main(["codec", "compare", str(tmp_path)]) == ExitCode.BUNDLE
    assert app.main(["codec"]) == ExitCode.CONFIG
    assert app.main(["codec", "compare", str(toy_bundle.path), "--images", str(tmp_path)]) == ExitCode.DATA
    assert capsys.readouterr().err.count("\n") == 3
