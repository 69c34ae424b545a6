"""Everything a device could send, at equal accuracy: points, frontiers, intervals, and the command."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from offramp.bench.baselines import FORMATS, sent
from offramp.common.bundle.load import load_bundle
from offramp.common.errors import DataError
from offramp.common.part.answer import Told
from offramp.common.wire.picture import LEFT_OUT, decode_picture, encode_picture
from offramp.training.data import sources
from offramp.training.data.recipe import DigitsRecipe
from offramp.training.record import RECORD
from research.paper.report import main
from research.pareto import pareto
from tests.records import record

BUNDLE = Path(__file__).parents[3] / "models" / "digits-mobilenetv2-exit12"


def device(confidence: list[float], early: list[int], final: list[int], payload: list[int]) -> pareto.Split:
    """All images are of class 0; each exit is right where it names that one of two."""
    sure = np.array(confidence, np.float32)
    named = np.array(early, np.bool_)
    answers = np.stack([np.where(named, sure, 1 - sure), np.where(named, 1 - sure, sure)], axis=1)
    replies = Told(1 - np.array(final), np.ones(len(final), np.float32))
    labels = np.zeros(len(final), np.int64)
    return pareto.Split(answers, replies, "server", np.array(payload, np.int64), labels)


def test_a_message_is_its_payload_and_the_frames_six_bytes() -> None:
    assert [pareto.message_bytes(size) - size for size in (1, 100, 123, 124, 20_000)] == [6, 6, 6, 7, 8]


def test_points_run_from_nothing_sent_to_everything_sent() -> None:
    split = device([0.6, 0.9, 0.7, 0.8], [0, 1, 0, 1], [1, 1, 1, 0], [10, 20, 30, 40])
    points = pareto.split_points("ours", split, split.right, split.payload)
    assert points.sent[0].tolist() == [0, 0, 0, 0]
    assert points.right[0].tolist() == [0, 1, 0, 1]
    assert points.sent[-1].tolist() == [16, 26, 36, 46]
    assert points.right[-1].tolist() == [1, 1, 1, 0]
    # Between them, unsure images go first.
    assert [16, 0, 36, 0] in points.sent.tolist()
    assert [0, 26, 0, 0] not in points.sent.tolist()


def test_a_point_names_thresholds_that_part_the_images_as_it_does() -> None:
    confidences = np.sort(np.random.default_rng(0).random(1_000).astype(np.float32))
    for threshold in confidences[::37]:
        named = float(pareto.decimal(threshold, confidences))
        assert [float(one) > named for one in confidences] == (confidences > threshold).tolist()
    assert pareto.decimal(0.5, np.array([0.2, 0.5, 0.9], np.float32)) == "0.5"
    assert pareto.decimal(0.5, np.array([0.5, 0.512], np.float32)) == "0.5"
    assert pareto.decimal(1.0, np.array([0.5, 1], np.float32)) == "1.0"


def test_what_an_accuracy_costs_is_the_cheapest_point_that_reaches_it() -> None:
    right = np.array([[1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 1]], np.float32)
    sent = np.array([[1] * 4, [7] * 4, [5] * 4, [9] * 4], np.float32)
    found = pareto.costs(pareto.Points(["a", "b", "c", "d"], sent, right), [0.5, 0.75, 1.0, 1.01])
    assert found.value.tolist() == [1, 5, 9, np.inf]
    assert found.best == ["a", "c", "d", None]
    # A resampling can only ever cost what some point costs.
    assert set(found.resampled[:, 1].tolist()) <= {1.0, 5.0, 9.0}
    assert len(set(found.resampled[:, 1].tolist())) > 1


def test_an_accuracy_that_some_resamplings_miss_costs_without_end_in_them() -> None:
    right = np.array([[1, 1, 1, 0]], np.float32)
    points = pareto.Points(["only"], np.full((1, 4), 100, np.float32), right)
    found = pareto.report({pareto.OURS: points}, 0.75, about="made up")
    assert found.rows[0][pareto.OURS] == "100.0 [100.0, ∞]"


def test_the_ratio_is_of_the_same_resampled_images() -> None:
    """A contender that costs half for each image costs half in every resampling: an interval of no width."""
    rng = np.random.default_rng(0)
    count = 200
    split = device(
        (0.5 + rng.random(count) / 2).tolist(),
        rng.integers(0, 2, count).tolist(),
        [1] * count,
        rng.integers(200, 400, count).tolist(),
    )
    rival = pareto.split_points("rival", split, split.right, split.payload)
    half = pareto.Points(rival.names, rival.sent / np.float32(2), rival.right)
    found = pareto.report({pareto.HYBRID: rival, pareto.OURS: half}, 1.0, about="made up")
    assert [row[f"ratio to {pareto.HYBRID}"] for row in found.rows] == ["0.500 [0.500, 0.500]"] * len(
        pareto.DROPS
    )


def test_the_command_on_real_bundles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    some = tuple(form for form in FORMATS if form.name in ("raw pixels", "WebP 50"))
    monkeypatch.setattr("offramp.bench.baselines.FORMATS", some)
    bundle = str(BUNDLE)
    flags = ["--bundle", bundle, "--whole", bundle, "--paper", bundle, "--out", str(tmp_path), "--json"]
    assert main(["pareto", *flags]) == 0
    found, asked = json.loads(capsys.readouterr().out)
    (device_row,) = asked["rows"]
    card = load_bundle(BUNDLE).manifest.figures
    assert device_row["final"] == pytest.approx(100 * card.accuracy_final)
    assert device_row["head_kb"] == (BUNDLE / "head.onnx").stat().st_size / 1024
    assert 0 < device_row["head_ms"] < 1000
    # It is shipped without its record.
    assert device_row["macs"] is None
    first, *_, last = found["rows"]
    assert first["accuracy"] == pytest.approx(100 * card.accuracy_final)
    cost = {name: float(last[name].split(" ")[0]) for name in (pareto.OURS, pareto.PAPER, pareto.HYBRID)}
    # Six points below, the early exit alone is enough.
    assert cost == {pareto.OURS: 0, pareto.PAPER: 0, pareto.HYBRID: 0}
    ours, paper = (float(first[name].split(" ")[0]) for name in (pareto.OURS, pareto.PAPER))
    assert 0 < ours < paper
    assert (tmp_path / "pareto.svg").stat().st_size > 10_000


def test_the_heads_share_of_the_work_is_the_records(tmp_path: Path) -> None:
    for name, (device_macs, server_macs) in {"split": (30, 90), "whole": (20, 80)}.items():
        shutil.copytree(BUNDLE, tmp_path / name)
        cost = {"device_macs": device_macs, "server_macs": server_macs}
        own = record()
        own = own.model_copy(update={"cost": own.cost.model_copy(update=cost)})
        (tmp_path / name / RECORD).write_text(own.model_dump_json())
    split, whole = (load_bundle(tmp_path / name) for name in ("split", "whole"))
    (row,) = pareto.devices([split], whole, about="made up").rows
    assert row["macs"] == 30.0


def test_the_better_whole_model_is_the_one_to_reach() -> None:
    sure = np.full(4, 0.9, np.float32)
    answers = [Told(np.array([0, 1, 1, 1]), sure), Told(np.array([0, 0, 0, 1]), sure)]
    pictures = {name: pareto.Sent(np.full(4, 3072), answers) for name in ("raw pixels", "WebP 50")}
    split = device([0.6, 0.9, 0.7, 0.8], [0, 1, 0, 1], [1, 1, 1, 0], [10, 20, 30, 40])
    found = pareto.compare({"ours": split}, {}, pictures, {}, about="made up")
    assert found.rows[0]["accuracy"] == 75.0


def test_pictures_of_two_models_have_points_of_both() -> None:
    recipe = DigitsRecipe(source="sklearn-digits", validation=0.2, test=0.2)
    data = sources.load(recipe, seed=1).test.take(np.arange(40))
    bundle = load_bundle(BUNDLE)
    some = [form for form in FORMATS if form.name in ("PNG", "WebP 20")]
    found = pareto.run_pictures([bundle, bundle], data.images, some)
    assert pareto.picture_points(found, data.labels).names == [
        "PNG",
        "PNG, model trained on WebP",
        "WebP 20",
        "WebP 20, model trained on WebP",
    ]


def test_pictures_are_kept_for_the_next_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = DigitsRecipe(source="sklearn-digits", validation=0.2, test=0.2)
    data = sources.load(recipe, seed=1).test.take(np.arange(40))
    bundle = load_bundle(BUNDLE)
    some = [form for form in FORMATS if form.name in ("PNG", "WebP 1")]
    first = pareto.run_pictures([bundle], data.images, some, kept=tmp_path)

    def never(*_: object) -> None:
        raise AssertionError("made again")

    with monkeypatch.context() as patched:
        patched.setattr(pareto, "whole_answers", never)
        again = pareto.run_pictures([bundle], data.images, some, kept=tmp_path)
        with pytest.raises(AssertionError, match="made again"):
            pareto.run_pictures([bundle], data.images[:39], some, kept=tmp_path)
    assert again.keys() == first.keys()
    for name, one in first.items():
        other = again[name]
        assert np.array_equal(other.sizes, one.sizes)
        assert np.array_equal(other.answers[0].best, one.answers[0].best)
        assert np.array_equal(other.answers[0].probability, one.answers[0].probability)
    for number, damaged in enumerate(sorted(tmp_path.glob("*.npz"))):
        damaged.write_bytes(b"no archive" if number else damaged.read_bytes()[:100])
        with pytest.raises(DataError, match=f"{damaged.name}: expected kept answers.*remove it"):
            pareto.run_pictures([bundle], data.images, some, kept=tmp_path)
        damaged.unlink()


def test_the_hybrids_have_the_better_of_both_rules() -> None:
    """The server is wrong about the second image, where the early exit is surer than it is."""
    split = device([0.6, 0.9, 0.7, 0.8], [0, 1, 0, 1], [1, 1, 1, 1], [10] * 4)
    told = Told(np.array([0, 1, 0, 0]), np.array([0.9, 0.6, 0.9, 0.9], np.float32))
    points = pareto.hybrid_points(split, {"WebP 50": pareto.Sent(np.full(4, 100), [told])})
    sent = points.right[(points.sent > 0).all(axis=1)]
    assert set(sent.sum(axis=1).tolist()) == {3, 4}


def test_a_picture_follows_where_the_servers_answer_is_unsure_too() -> None:
    split = device([0.6, 0.9, 0.7, 0.8], [1, 1, 0, 0], [0, 0, 1, 0], [10, 20, 30, 40])
    split = replace(split, replies=replace(split.replies, probability=np.array([0.3, 0.8, 0.9, 0.5], "f4")))
    whole = Told(np.array([0, 0, 0, 1]), np.ones(4, np.float32))
    found, payloads = (
        {"WebP 50": pareto.Sent(np.full(4, 100), [whole])},
        {"WebP 50": np.array([70, 71, 72, 73])},
    )
    points = pareto.points_then_pictures({"ours": split}, found, payloads)
    sent = {name: (bytes_.tolist(), right.tolist()) for name, bytes_, right in zip(
        points.names, points.sent, points.right, strict=True
    )}  # fmt: skip
    # The first image's early exit and server are wrong, its picture is right.
    assert sent["ours, WebP 50, T_c = 0.61, then 0.4"] == ([16 + 76, 0, 0, 0], [1, 1, 0, 0])
    assert sent["ours, WebP 50, T_c = 0.7, then 0.4"] == ([16 + 76, 0, 36, 0], [1, 1, 1, 0])
    # One that sends more and is right no more often is no point.
    assert list(sent) == sorted(sent) and len(sent) == 2
    means = points.right.mean(axis=1)
    assert (np.diff(means) > 0).all() and (np.diff(points.sent.mean(axis=1)) > 0).all()


def test_a_picture_weighs_what_a_device_sends_and_shows_what_its_file_shows() -> None:
    recipe = DigitsRecipe(source="sklearn-digits", validation=0.2, test=0.2)
    images = sources.load(recipe, seed=1).test.images[:20]
    some = [form for form in FORMATS if form.name in ("PNG", "WebP lossless", "WebP 1", "WebP 50")]
    payloads = pareto.picture_payloads(images, some)
    assert list(payloads) == ["WebP 1", "WebP 50"]
    for form in some[2:]:
        sizes, decoded = sent(form, images)
        assert set(sizes - payloads[form.name]) <= {LEFT_OUT, LEFT_OUT + 1}
        quality = dict(form.settings)["quality"]
        ours = [decode_picture(encode_picture(image, quality), *image.shape[1:]) for image in images]
        assert np.array_equal(np.stack(ours), decoded)


def test_without_an_early_exit_every_image_is_sent() -> None:
    split = device([0.6, 0.9, 0.7, 0.8], [0, 1, 0, 1], [1, 1, 1, 0], [10, 20, 30, 40])
    split = replace(split, early=split.early[:, ::-1], sent_answer="both")
    points = pareto.sent_points({"ours": split})
    assert points.names == ["ours"]
    assert points.sent.tolist() == [[16, 26, 36, 46]]
    assert points.right.tolist() == [[1, 1, 1, 0]]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--whole", str(BUNDLE)], "pareto: needs --bundle"),
        (["--bundle", str(BUNDLE)], "pareto: needs --bundle"),
    ],
)
def test_what_it_needs(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pareto", *flags]) == 2
    assert message in capsys.readouterr().err
