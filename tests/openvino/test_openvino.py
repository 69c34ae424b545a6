"""OpenVINO's execution provider on a CPU, in both programs: the answers are those of ONNX Runtime's own.

Skipped where ONNX Runtime has no such provider; ``make test-openvino`` installs one that has.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from offramp.common.bundle.load import Bundle, load_bundle
from offramp.common.bundle.manifest import HEAD, MANIFEST, TAIL
from offramp.common.errors import BundleError, ConfigError
from offramp.common.part.engine import Engine
from offramp.common.part.providers import parse
from offramp.device import Device
from offramp.server.plan import make_plan
from tests import toy
from tests.attacks.costly_graphs import GRAPHS, LONG
from tests.processes import Processes, processes
from tests.toy import BundleFolder

if "OpenVINOExecutionProvider" not in onnxruntime.get_available_providers():
    pytest.skip("this ONNX Runtime has no OpenVINO: make test-openvino", allow_module_level=True)

ROOT = Path(__file__).parents[2]
DIGITS = ROOT / "models" / "digits-mobilenetv2-exit12"
IMAGES = ROOT / "examples" / "digits"
MODELS = sorted(path.parent for path in (ROOT / "models").glob(f"*/{MANIFEST}"))
OPENVINO_CPU = "openvino:device_type=CPU,cpu"
ON_OPENVINO = parse(OPENVINO_CPU.split(","))
SLOW = next(name for name, (_, expected) in GRAPHS.items() if expected == LONG)


@pytest.fixture
def run() -> Iterator[Processes]:
    with processes(DIGITS) as started:
        yield started


def images_of(bundle: Bundle, count: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Smooth pictures, as photos are: noise would be far from all that calibrated the bundle."""
    shape = bundle.manifest.preprocessing
    random = np.random.default_rng(3)
    coarse = random.integers(0, 256, (count, 3, 4, 4)).astype(np.float32)
    rows = np.linspace(0, 3, shape.height).astype(int)
    columns = np.linspace(0, 3, shape.width).astype(int)
    return coarse[:, :, rows][:, :, :, columns].astype(np.uint8)


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.name)
def test_shipped_bundles_answer_alike(path: Path) -> None:
    """Symbols may differ by a step, since sums are rounded otherwise: the code is of what the device has."""
    bundle = load_bundle(path)
    plain, other = Engine(bundle), Engine(bundle, providers=ON_OPENVINO)
    plain.load(HEAD, TAIL)
    other.load(HEAD, TAIL)
    shares = {name: placement.shares for name, placement in other.placements.items()}
    assert all(share is not None and share["openvino"] > 0.5 for share in shares.values()), shares

    images = images_of(bundle, 16)
    symbols, early = plain.head(images)
    theirs, their_early = other.head(images)
    apart = np.abs(symbols.astype(int) - theirs.astype(int))
    final, their_final = plain.tail(symbols), other.tail(theirs)
    print(
        f"{bundle.manifest.name}: {(apart > 0).mean():.3%} of symbols differ, by {apart.max()} at most; "
        f"probabilities by {np.abs(early - their_early).max():.4f}, {np.abs(final - their_final).max():.4f}"
    )
    assert (apart > 0).mean() < 0.3 and apart.max() <= 4
    np.testing.assert_allclose(their_early, early, atol=0.1)
    assert (their_early.argmax(axis=1) == early.argmax(axis=1)).mean() > 0.9
    # What the device has encoded is what the server decodes, whoever made it.
    codec, payload = bundle.codec.encode(theirs[0])
    assert (bundle.codec.decode(codec, payload) == theirs[0]).all()


def test_both_programs_answer_as_on_the_cpu(run: Processes) -> None:
    answers = {}
    for providers in ("cpu", OPENVINO_CPU):
        server = run.server("--providers", providers, measures=True)
        status, device = run.device(
            *("--server", server.address, "--providers", providers, "--threshold", 0.9, "--json", IMAGES)
        )
        assert status == 0
        answers[providers] = {answer["image"]: answer for answer in device.answers}
        info = [key for key in server.metrics() if key.startswith("offramp_server_provider_info")]
        provider = providers.partition(":")[0].partition(",")[0]
        assert len(info) == 1 and f"provider={provider}" in info[0] and "part=tail" in info[0]
        on = [line for line in device.stderr if re.search(r"head\.onnx: runs on openvino$", line)]
        assert len(on) == (provider == "openvino") and "WARNING" not in device.errors + server.errors
        # The plan is of what runs the tail.
        assert re.search(r"batches of \d+.*\(batch 1: \d+/s", server.errors)
    plain, other = answers.values()
    assert plain.keys() == other.keys() and len(plain) > 100
    same = sum(plain[image]["label"] == other[image]["label"] for image in plain)
    assert same >= len(plain) - 2
    print(f"{same} of {len(plain)} labels are the same")
    early = [image for image in plain if plain[image]["source"] == other[image]["source"] == "early_exit"]
    apart = [abs(plain[image]["confidence"] - other[image]["confidence"]) for image in early]
    assert len(early) > 50 and max(apart) < 0.1


def test_the_plan_measures_openvino(toy_bundle: Bundle) -> None:
    plan, engine = make_plan(toy_bundle, 1, providers=ON_OPENVINO)
    assert engine.placements[TAIL].main == "openvino"
    assert plan.curve and plan.best > 0


def test_openvino_alone_runs_all_of_it_or_is_refused(toy_bundle: Bundle) -> None:
    try:
        with Device(toy_bundle, server="127.0.0.1:1", threshold=0, providers="openvino") as device:
            assert device.infer(toy.images(1)[0]).source == "early_exit"
    except BundleError as error:
        assert "cpu is not in --providers" in str(error)


def test_a_device_that_is_not_there_falls_back(run: Processes) -> None:
    status, device = run.device(
        *("--providers", "openvino:device_type=GPU,cpu", "--threshold", 0, "--quiet", IMAGES)
    )
    assert status == 0
    (warning,) = [line for line in device.stderr if "WARNING" in line]
    assert "head.onnx: no openvino: " in warning and warning.endswith("runs on cpu")

    status, device = run.device("--providers", "openvino:device_type=GPU", "--threshold", 0, IMAGES)
    assert status in (2, 4) and len(device.stderr) == 1


def test_a_wrong_option_falls_back(toy_bundle: Bundle) -> None:
    wrong = Engine(toy_bundle, providers=parse(["openvino:colour=red", "cpu"]))
    wrong.load(HEAD)
    assert wrong.placements[HEAD].used == ("cpu",)
    assert wrong.placements[HEAD].left_out[0][0] == "openvino"
    with pytest.raises((BundleError, ConfigError)):
        Engine(toy_bundle, providers=parse(["openvino:colour=red"])).load(HEAD)


def test_a_costly_graph_is_refused_all_the_same(damaged: BundleFolder) -> None:
    damaged.put(TAIL, GRAPHS[SLOW][0]())
    with pytest.raises(BundleError, match=r"tail\.onnx: takes over"):
        Engine(load_bundle(damaged.path), providers=ON_OPENVINO).load(TAIL)
