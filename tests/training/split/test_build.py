"""A bundle's name, and bundles of all families with their operators; whole runs: tests/cli/test_split.py."""

from pathlib import Path

import numpy as np
import pytest
import torch

from offramp.bench.plan_chains import read_curves
from offramp.common.bundle.load import load_bundle
from offramp.common.bundle.manifest import Name
from offramp.common.part.engine import Engine
from offramp.training.calibrate.chain_thresholds import Goal
from offramp.training.data.datasets import Dataset, Labelled
from offramp.training.split.build import Split, build, bundle_name
from offramp.training.split.code import Code, choose_shape
from offramp.training.split.halves import divide, split
from offramp.training.split.layout import Layout
from offramp.training.split.photos import Normalise
from offramp.training.split.report import Device, make_report, markdown, write
from offramp.training.split.rivals import Comparison, Measured
from tests.training.split import networks

pytestmark = pytest.mark.usefixtures("coarse_context")


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


@pytest.mark.parametrize(("name", "cut"), [("vit", "blocks.1"), ("swin", "stages.1")])
def test_a_split_of_any_family_becomes_a_bundle_that_runs(tmp_path: Path, name: str, cut: str) -> None:
    captured, cuts = networks.found(name)
    at = cuts.find(cut)
    layout = Layout.of(at.shape)
    channels = layout.map_shape[0]
    torch.manual_seed(0)
    shape = choose_shape(layout, target=10, most_macs=1e5)
    code = Code(layout, shape, captured.classes, torch.zeros(channels), torch.ones(channels)).eval()
    halves, normalise = split(captured, at), Normalise((0.5,) * 3, (0.25,) * 3)
    parts = (halves.head, halves.tail)
    ours = Split(parts, (code,), normalise, "tiny", name, ((cut, 1),), "", 0)
    train, validation, test = (photos(count, 32) for count in (40, 30, 30))
    data = Dataset("photos", tuple("abcdefghij"), train, validation, test, "0" * 64)
    built = build(tmp_path / "bundle", ours, data, Goal(budget=(1e9,)))
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


def test_three_parts_become_a_bundle_whose_card_adds_up(tmp_path: Path) -> None:
    captured, cuts = networks.found("resnet")
    several = [cuts.find("layer1"), cuts.find("layer2")]
    torch.manual_seed(0)
    codes = []
    for at in several:
        layout = Layout.of(at.shape)
        ones, shape = torch.ones(layout.map_shape[0]), choose_shape(layout, target=10, most_macs=1e5)
        codes.append(Code(layout, shape, captured.classes, 0 * ones, ones).eval())
    parts, normalise = divide(captured, several), Normalise((0.5,) * 3, (0.25,) * 3)
    named = tuple((at.name, number) for number, at in enumerate(several, start=1))
    ours = Split(parts, tuple(codes), normalise, "tiny", "resnet", named, "", 0)
    train, validation, test = (photos(count, 32) for count in (40, 30, 30))
    data = Dataset("photos", tuple("abcdefghij"), train, validation, test, "0" * 64)
    built = build(tmp_path / "bundle", ours, data, Goal(drop=0.0))
    bundle = load_bundle(tmp_path / "bundle")
    manifest = bundle.manifest
    assert [part.graph for part in manifest.parts] == ["head.onnx", "part2.onnx", "tail.onnx"]
    assert [each.tables for each in manifest.crossings] == ["codebook.bin", "codebook2.bin"]
    assert [each.shape for each in manifest.crossings] == [code.symbols_shape for code in codes]
    exits = [part.exit for part in manifest.parts]
    assert exits[0] is not None and exits[1] is not None and exits[2] is None
    figures = manifest.figures.parts
    assert figures is not None and sum(each.answered for each in figures) == pytest.approx(1)
    own = next(row for row in manifest.figures.thresholds if row.threshold == manifest.threshold)
    assert sum(each.right for each in figures) == pytest.approx(own.accuracy)
    assert figures[0].sent_bytes_mean == pytest.approx(own.payload_bytes_mean)
    # One part after the other they are the network with its codes, within what integers cost.
    with torch.no_grad():
        x = normalise(torch.from_numpy(test.images))
        for part, code in zip(parts, codes, strict=False):
            x = part(x)
            x = code.decoder(code.encode(x, code.features(x)).clamp(-128, 127).round())
        wanted = parts[-1](x).softmax(1)
    assert np.abs(built.chain.probabilities[-1] - wanted.numpy()).mean() < 0.05
    ours_at = Measured.of(test, built.answers, built.payloads).ours
    made = make_report(
        built,
        data,
        wanted.numpy(),
        Comparison(len(test), ours_at, (), ()),
        Device(several[0].head, cuts.whole, 0, several[0].peak_bytes),
        model="resnet",
        cuts=["layer1", "layer2"],
        classifier="kept",
        shape=several[0].shape,
    )
    assert [part.get("cut") for part in made.values["parts"]] == ["layer1", "layer2", None]
    assert made.values["accuracy"]["pair"] == pytest.approx(sum(each.right for each in figures))
    assert len(made.values["points"]) > 400 and "## By part" in markdown(made)
    empty = [each for each in made.values["classes"] if not each["photos"]]
    assert empty and all(each["pair"] is None for each in empty) and "| unknown |" in markdown(made)
    # What plans read of it.
    write(made, tmp_path / "bundle")
    (curve,) = read_curves(tmp_path)
    assert curve.between[0].macs == manifest.parts[1].macs
    # Every graph is what runs it expects.
    Engine(bundle).load(*Engine.names(manifest))
