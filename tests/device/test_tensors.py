"""Bundles for sounds and tensors on both machines: real processes, folders, arrays, Python."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from offramp.cli import inspect
from offramp.common.bundle.load import Bundle
from offramp.common.errors import ConfigError, DataError
from offramp.common.inputs.prepare import prepare
from offramp.common.part.engine import Engine
from offramp.device import Device, PictureOptions, preprocess
from offramp.device.app import main
from offramp.device.sources.source import Source
from tests import toy_tensor
from tests.device.sources.reading import PREPROCESSING
from tests.processes import closed_port, processes
from tests.toy_tensor import ARRAYS, SOUNDS, npy, wav

COUNT = 6
Captured = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of WAV files of other rates and widths, with a text and a picture among them."""
    folder = tmp_path_factory.mktemp("sounds")
    for number in range(COUNT):
        rate, bits = ((8000, 16), (16_000, 24), (44_100, -32))[number % 3]
        (folder / f"{number}.wav").write_bytes(wav(rate=rate, bits=bits, seed=number))
    (folder / "notes.txt").write_text("hello")
    (folder / "zz.png").write_bytes(png())
    return folder


@pytest.fixture(scope="module")
def sound_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return toy_tensor.write(tmp_path_factory.mktemp("bundle") / "sounds", SOUNDS)


def png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG")
    return file.getvalue()


def test_both_programs_answer_a_folder_of_sounds_as_the_graphs_do(sound_bundle: Bundle, sounds: Path) -> None:
    engine = Engine(sound_bundle)
    with processes(sound_bundle.path) as run:
        server = run.server()
        status, device = run.device("--server", server.address, "--threshold", 1, "--json", sounds)
        assert status == 0
        assert "2 files passed over that are not sounds by their names: 1 .png, 1 .txt" in device.errors
        *answers, last = device.records
        assert last["summary"]["passed_over"] == {".txt": 1, ".png": 1}
        assert len(answers) == COUNT
        for answer in answers:
            data = Path(answer["image"]).read_bytes()
            symbols, _ = engine.head(prepare(data, sound_bundle.manifest.input)[None])
            probabilities = engine.tail(symbols)
            assert answer["source"] == "server" and answer["class_index"] == probabilities.argmax()
            assert answer["payload_bytes"] == 64

        bad = sounds / "zz.png"
        status, device = run.device("--server", server.address, "--json", bad, sounds / "0.wav")
        assert status == 5
        assert "is a picture (PNG), this bundle takes sounds" in json.dumps(device.records[0])


def test_arrays_in_files_are_answered_one_by_one(tmp_path: Path) -> None:
    bundle = toy_tensor.write(tmp_path / "bundle", ARRAYS, tokens=True)
    values = np.random.default_rng(0).uniform(-1, 1, (5, 1, 8, 8)).astype(np.float32)
    (tmp_path / "one.npy").write_bytes(npy(values[0]))
    (tmp_path / "stack.npy").write_bytes(npy(values[1:]))
    np.savez_compressed(tmp_path / "stack.npz", inputs=values)
    spec = bundle.manifest.input
    names = ("one.npy", "stack.npy", "stack.npz")
    found = list(Source([tmp_path / name for name in names], spec))

    assert [item.name.removeprefix(f"{tmp_path}/") for item in found] == [
        "one.npy", *(f"stack.npy[{n}]" for n in range(4)), *(f"stack.npz[{n}]" for n in range(5))
    ]  # fmt: skip
    wanted = [prepare(each, spec) for each in (*values, *values)]
    for item, each in zip(found, wanted, strict=True):
        assert not isinstance(item.image, DataError) and np.array_equal(item.image, each)
    # A folder's files are one by one; the stack in it is taken apart.
    assert len([item for item in Source([tmp_path], spec) if not isinstance(item.image, DataError)]) == 5

    with processes(bundle.path) as run:
        server = run.server()
        arguments = ("--server", server.address, "--threshold", 1, "--json", tmp_path / "stack.npz")
        status, device = run.device(*arguments)
        assert (status, device.errors) == (0, "")
        engine = Engine(bundle)
        symbols, _ = engine.head(np.stack(wanted[:5]))
        assert symbols.shape == (5, 16, 4)
        wanted_classes = engine.tail(symbols).argmax(axis=1).tolist()
        answers = sorted(device.records[:-1], key=lambda answer: answer["index"])
        assert [answer["class_index"] for answer in answers] == wanted_classes


BAD_ARRAYS = [
    (npy(np.zeros((2, 1, 8, 8)))[:-300], r"stack\.npy\[1\]: ends early"),
    (npy(np.zeros((1, 8, 7))), r"is float64 \[1, 8, 7\], expected .*, alone or as a stack"),
    (npy(np.zeros((1, 8, 8), np.int64)), "is int64, expected"),
    (npy(np.full((2, 1, 8, 8), np.nan)), r"stack\.npy\[0\]: has values that are not finite"),
    (b"\x93NUMPY", "damaged .npy"),
    (b"", "damaged .npy"),
]


@pytest.mark.parametrize(("data", "expected"), BAD_ARRAYS)
def test_a_bad_array_is_one_error(data: bytes, expected: str, tmp_path: Path) -> None:
    spec = toy_tensor.write(tmp_path / "bundle", ARRAYS).manifest.input
    path = tmp_path / "stack.npy"
    path.write_bytes(data)
    errors = [item.image for item in Source([path], spec) if isinstance(item.image, DataError)]
    assert errors
    with pytest.raises(DataError, match=expected):
        raise errors[0]


def test_in_python_a_device_takes_the_tensor_and_the_file(sound_bundle: Bundle) -> None:
    with closed_port() as port, Device(sound_bundle, server=f"127.0.0.1:{port}", threshold=0) as device:
        whole = preprocess(wav(), sound_bundle)
        assert device.infer(whole).class_index == device.infer(wav()).class_index
        decibels = whole / 255 * 80.0 - 80
        assert (preprocess(decibels, sound_bundle) == whole).all()
        with pytest.raises(DataError, match="is a picture, this bundle takes sounds"):
            device.infer(Image.new("RGB", (8, 8)))
        with pytest.raises(DataError, match="expected uint8, or floats"):
            device.infer(np.zeros((3, 8, 8), np.uint8))


def test_what_is_for_pictures_alone_is_refused(sound_bundle: Bundle, sounds: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--picture-threshold: toy-tensor takes sounds, not pictures"):
        Device(sound_bundle, server="127.0.0.1:1", pictures=PictureOptions(picture_threshold=0.5))
    with pytest.raises(ConfigError, match="camera:0: is a video or a camera, this bundle takes sounds"):
        Source(["camera:0"], sound_bundle.manifest.input)
    assert main(["--bundle", str(sound_bundle.path), "--compare-jpeg", "50", str(sounds)]) == 2
    (item,) = Source([sounds / "0.wav"], PREPROCESSING)
    assert "is a WAV sound, this bundle takes pictures" in str(item.image)


def test_a_gateway_without_its_upstream_is_refused_with_one_line(tmp_path: Path, capsys: Captured) -> None:
    from offramp.server import app

    bundle = toy_tensor.write(tmp_path / "chain", parts=3)
    assert app.edge_main(["--bundle", str(bundle.path), "--listen", "127.0.0.1:0"]) == 2
    assert "edge-server: --upstream: expected the HOST:PORT" in capsys.readouterr().err


def test_a_server_cannot_answer_pictures_by_it(sound_bundle: Bundle, capsys: Captured) -> None:
    from offramp.server import app

    path = str(sound_bundle.path)
    assert app.main(["--bundle", path, "--pictures", path, "--listen", "127.0.0.1:0"]) == 4
    assert "takes sounds, so it cannot answer pictures (--pictures)" in capsys.readouterr().err


def test_its_card_says_what_it_takes(sound_bundle: Bundle, capsys: Captured) -> None:
    assert inspect.main([str(sound_bundle.path)]) == 0
    assert "WAV of 0.1 s at 8,000 Hz, log-mel of 8 bands 50 … 4000 Hz" in capsys.readouterr().out
