"""Manifests that are as they should be. Those that are not: ``tests/attacks``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from offramp.common.bundle.document import manifest_text, parse_manifest
from offramp.common.bundle.load import Bundle, load_bundle
from offramp.common.bundle.manifest import HEAD, TAIL, Crossing, Raw
from offramp.common.codec.activation import ActivationCodec, make_coder
from offramp.common.codec.huffman import Codebook
from offramp.common.errors import BundleError
from offramp.common.part.engine import Engine
from tests import toy_tensor
from tests.toy import BundleFolder


def test_a_manifest_survives_its_own_json(toy_bundle: Bundle) -> None:
    assert parse_manifest(manifest_text(toy_bundle.manifest)) == toy_bundle.manifest


@pytest.mark.parametrize("name", ["čaj", "猫", "ice cream", "'quoted'", "x" * 200])
def test_class_names_may_be_any_printable_text(name: str, damaged: BundleFolder) -> None:
    damaged.edit("classes", 0, value=name)

    assert load_bundle(damaged.path).manifest.classes[0] == name


def test_a_manifest_cannot_be_changed(toy_bundle: Bundle) -> None:
    with pytest.raises(ValueError, match="frozen"):
        toy_bundle.manifest.name = "other"


def test_a_chain_of_three_parts_loads_and_runs_in_an_engine_but_not_as_a_pair(tmp_path: Path) -> None:
    bundle = toy_tensor.write(tmp_path, parts=3)
    engine = Engine(bundle)
    engine.load(*Engine.names(bundle.manifest))

    assert [part.graph for part in bundle.manifest.parts] == [HEAD, "part-2.onnx", TAIL]
    with pytest.raises(BundleError, match=rf"^{tmp_path}: has 3 parts, --pictures takes bundles of 2$"):
        bundle.require_pair("--pictures")


@pytest.mark.parametrize(
    ("shape", "axis", "coded"),
    [((5,), 0, (5, 1, 1)), ((9, 4), 1, (4, 1, 9)), ((2, 3, 4), 0, (2, 3, 4)), ((2, 3, 4), 2, (4, 2, 3)),
     ((2, 3, 4, 5), 1, (3, 8, 5))],
)  # fmt: skip
def test_activations_of_any_rank_are_coded_channels_first(
    shape: tuple[int, ...], axis: int, coded: tuple[int, int, int]
) -> None:
    crossing = Crossing(shape=shape, channel_axis=axis, scale=1.0, zero_point=0, codec=Raw(kind="raw"))
    assert crossing.coded_shape == coded

    table = Codebook(np.full((coded[0], 256), 8, np.uint8), np.arange(coded[0], dtype=np.uint16))
    codec = ActivationCodec(shape, make_coder(coded, table, 1), axis)
    symbols = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    kind, payload = codec.encode(symbols)

    assert payload == np.moveaxis(symbols, axis, 0).tobytes()
    found = codec.decode(kind, payload)
    assert found.shape == shape and (found == symbols).all()


def test_only_a_bundle_for_pictures_has_preprocessing(tmp_path: Path, toy_bundle: Bundle) -> None:
    assert toy_bundle.manifest.preprocessing.height == 8
    with pytest.raises(BundleError, match="toy-tensor: takes sounds, expected a bundle for pictures"):
        _ = toy_tensor.write(tmp_path).manifest.preprocessing


def test_agreement_is_of_no_more_images_than_exit(damaged: BundleFolder) -> None:
    assert load_bundle(damaged.path).manifest.figures.agreement is None
    damaged.edit("figures", "agreement", value=[{"threshold": 0.5, "exits": 40, "agree": 38}])
    (found,) = load_bundle(damaged.path).manifest.figures.agreement or []
    assert found.ratio == 0.95
    damaged.edit("figures", "agreement", value=[{"threshold": 0.5, "exits": 40, "agree": 41}])
    with pytest.raises(BundleError, match=r"figures\.agreement\.0: .*41 of 40 images agree"):
        load_bundle(damaged.path)


def test_a_bundle_of_before_has_no_agreement(damaged: BundleFolder) -> None:
    assert "agreement" not in damaged.manifest["figures"]
    assert load_bundle(damaged.path).manifest.figures.agreement is None
