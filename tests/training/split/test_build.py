"""A bundle's name, and bundles of all families with their operators; whole runs: tests/cli/test_split.py."""

from pathlib import Path

import numpy as np
import pytest
import torch

from offramp.common.bundle.load import load_bundle
from offramp.common.bundle.manifest import Name
from offramp.common.part.engine import Engine
from offramp.training.data.datasets import Dataset, Labelled
from offramp.training.split.build import Goal, Split, build, bundle_name
from offramp.training.split.code import Code, choose_shape
from offramp.training.split.halves import split
from offramp.training.split.layout import Layout
from offramp.training.split.photos import Normalise
from tests.training.split import networks


@pytest.mark.parametrize(
    ("folder", "name"),
    [("my-split", "my-split"), ("Meine Äpfel (2)", "meine-pfel-2"), ("...", "split"), ("x" * 200, "x" * 100)],
)
def test_a_bundle_is_named_as_its_folder(folder: str, name: str) -> None:
    from pydantic import TypeAdapter

    found = bundle_name(Path("/somewhere") / folder)
    assert found == TypeAdapter(Name).validate_python(found) == name


def photos(count: int, side: int) -> Labelled:
    rng = np.random.default_rng(count)
    labels = np.arange(count, dtype=np.int64) % 3
    images = rng.normal(128, 30, (count, 3, side, side)) + 40 * (labels[:, None, None, None] - 1)
    return Labelled(images.clip(0, 255).astype(np.uint8), labels)


@pytest.mark.parametrize(
    ("name", "cut"), [("vit", "blocks.1"), ("swin", "stages.1"), ("mobilenet", "1"), ("resnet", "layer1")]
)
def test_a_split_of_any_family_becomes_a_bundle_that_runs(tmp_path: Path, name: str, cut: str) -> None:
    captured, cuts = networks.found(name)
    at = cuts.find(cut)
    layout = Layout.of(at.shape)
    channels = layout.map_shape[0]
    torch.manual_seed(0)
    shape = choose_shape(layout, target=10, most_macs=1e5)
    code = Code(layout, shape, captured.classes, torch.zeros(channels), torch.ones(channels)).eval()
    halves, normalise = split(captured, at), Normalise((0.5,) * 3, (0.25,) * 3)
    ours = Split(halves, code, normalise, "tiny", name, cut, 1, "", 0)
    train, validation, test = (photos(count, 32) for count in (40, 30, 30))
    data = Dataset("photos", tuple("abcdefghij"), train, validation, test, "0" * 64)
    built = build(tmp_path / "bundle", ours, data, Goal(None, 1e9))
    # Read and run as a server does, by the rules for strangers' graphs.
    engine = Engine(load_bundle(tmp_path / "bundle"))
    symbols, early = engine.head(data.test.images)
    answers = engine.tail(symbols)
    with torch.no_grad():
        crossing = halves.head(normalise(torch.from_numpy(data.test.images)))
        code_map = code.encode(crossing, code.features(crossing))
        wanted = halves.tail(code.decoder(code_map.clamp(-128, 127).round())).softmax(1)
    assert early.shape == answers.shape == wanted.shape
    assert np.abs(answers - wanted.numpy()).mean() < 0.05
    assert max(built.head.cost, built.tail.cost) <= 1
