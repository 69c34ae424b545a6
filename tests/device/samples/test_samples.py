"""What a device keeps: of which inputs, in which form, and that no answer waits for it."""

from __future__ import annotations

import io
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from offramp.common.bundle.load import Bundle
from offramp.common.errors import ConfigError
from offramp.common.part.engine import Engine
from offramp.device import AuditOptions, Device, KeepOptions, LinkOptions, Result
from offramp.device.head import EarlyExit
from offramp.device.metrics import DeviceMetrics
from offramp.device.samples import samples as module
from offramp.device.samples.folder import BLOCK, Folder
from offramp.device.samples.record import Record, read_file, read_record
from offramp.device.samples.samples import Samples, suffix_of
from offramp.link.outcome import Answer, Cause, Outcome, Refusal
from tests import toy
from tests.processes import Processes, until

IMAGE = toy.images(1)[0]
EXIT = EarlyExit(np.zeros(toy.SHAPE, np.uint8), 1, 0.7, np.array([0.1, 0.7, 0.2], np.float32))
RESULT = Result("square", 1, 0.7, "early_exit", 0.001, 0, 0.0, 0.0, None)


def png(image: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image.transpose(1, 2, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def records(folder: Path) -> list[Record]:
    return [read_record(path) for path in sorted(folder.glob("*.json"))]


def value(metrics: DeviceMetrics, name: str, **labels: str) -> float:
    found = metrics.registry.get_sample_value(f"offramp_device_samples_{name}", labels)
    assert found is not None
    return found


@pytest.fixture
def metrics(toy_bundle: Bundle) -> DeviceMetrics:
    return DeviceMetrics(toy_bundle)


@pytest.fixture
def kept(toy_bundle: Bundle, metrics: DeviceMetrics, tmp_path: Path) -> Callable[..., Samples]:
    def make(share: float = 0.0, size: int = 1 << 20) -> Samples:
        return Samples(KeepOptions(tmp_path / "kept", size, share), toy_bundle, metrics)

    return make


def offer(
    samples: Samples, result: Result = RESULT, audit: Outcome | None = None, file: object = None
) -> None:
    taken = samples.take(EXIT, IMAGE, "a.png", 3, file, held=audit is not None)
    samples.answered(taken, result, audit)


def unknown() -> Result:
    return Result("square", 1, 0.7, "server", 0.001, 9, 0.0, 0.0, None, unknown=True)


def test_a_device_keeps_files_as_they_are_and_arrays_as_png(
    toy_bundle: Bundle, toy_engine: Engine, tmp_path: Path
) -> None:
    images = toy.images(6, seed=2)
    _, early = toy_engine.head(images)
    files = [png(image) + b"after its end" for image in images[:3]]
    device = Device(
        toy_bundle, server="127.0.0.1:1", threshold=0, keep=KeepOptions(tmp_path / "kept", keep_share=1.0)
    )
    with device:
        results = [device.infer(bytearray(file) if at else file) for at, file in enumerate(files)]
        reused = np.empty_like(images[0])
        for image in images[3:]:
            reused[:] = image
            results.append(device.submit(reused, name="camera:0", index=40).result())
    found = records(tmp_path / "kept")
    assert [each.index for each in found] == [0, 1, 2, 40, 40, 40]
    for each, result, image, given, own in zip(
        found, results, images, [*files, None, None, None], early, strict=True
    ):
        data = read_file(each, tmp_path / "kept")
        assert (
            data == given
            if given
            else np.array_equal(np.asarray(Image.open(io.BytesIO(data))).transpose(2, 0, 1), image)
        )
        assert (each.label, each.class_index, each.source) == (result.label, own.argmax(), "early_exit")
        assert each.confidence == pytest.approx(own.max()) == each.early.confidence
        assert each.reasons == ["random"] and each.digest == toy_bundle.digest.hex() and each.audit is None
    assert {each.name for each in found[3:]} == {"camera:0"}
    assert value(device.metrics, "kept_total", reason="random") == 6 == value(device.metrics, "entries")
    assert value(device.metrics, "bytes") == 12 * BLOCK


def test_audits_that_differ_are_kept_with_what_the_server_said(
    run: Processes, toy_bundle: Bundle, toy_engine: Engine, tmp_path: Path
) -> None:
    server = run.server()
    images = toy.images(60, seed=2)
    symbols, early = toy_engine.head(images)
    final = toy_engine.tail(symbols)
    device = Device(
        toy_bundle,
        server=server.address,
        threshold=0.6,
        audits=AuditOptions(1.0),
        keep=KeepOptions(tmp_path / "kept", keep_share=0.0),
        link=LinkOptions(timeout=60.0),
    )
    with device:
        for image in images:
            device.infer(image)
        until(lambda: sum(device.audit_counts().values()) == sum(early.max(axis=1) > 0.6), "all audits")
    assert not device.audit_counts()["lost"]
    expected = {
        index: int(final[index].argmax())
        for index in range(60)
        if early[index].max() > 0.6 and early[index].argmax() != final[index].argmax()
    }
    found = records(tmp_path / "kept")
    assert {each.index: each.audit.class_index for each in found if each.audit} == expected and expected
    assert all(each.reasons == ["audit"] and each.source == "early_exit" for each in found)
    assert len(found) == len(expected) == value(device.metrics, "kept_total", reason="audit")


def test_each_input_is_chosen_once_and_for_all_its_reasons(
    kept: Callable[..., Samples], metrics: DeviceMetrics, tmp_path: Path
) -> None:
    samples = kept(share=1.0)
    offer(samples, unknown(), Answer(2, 0.4, None, 60.0, 80.0))
    offer(samples, audit=Answer(1, 0.4, None, 60.0, 80.0))
    offer(samples, audit=Refusal("no reply", Cause.TIMEOUT, 1))
    # A gateway that was unsure, and the server behind it gone: counted as lost, too.
    offer(samples, audit=Answer(2, 0.4, None, 60.0, 80.0, fallback=True))
    samples.close()
    first, agrees, lost, cut_short = records(tmp_path / "kept")
    assert cut_short.reasons == ["random"] and cut_short.audit is None
    assert first.reasons == ["random", "audit", "unknown"] and first.unknown and first.source == "server"
    assert first.audit is not None and (first.audit.label, first.audit.confidence) == ("triangle", 0.4)
    assert agrees.audit is not None and agrees.reasons == ["random"] and lost.audit is None
    counts = {r: value(metrics, "kept_total", reason=r) for r in ("random", "audit", "unknown", "unsure")}
    assert counts == {"random": 4, "audit": 1, "unknown": 1, "unsure": 0}


def test_without_a_folder_nothing_is_kept(toy_bundle: Bundle, metrics: DeviceMetrics) -> None:
    before = threading.active_count()
    samples = Samples(KeepOptions(), toy_bundle, metrics)
    assert samples.take(EXIT, IMAGE, "", 0, None, held=False) is None
    samples.answered(None, RESULT)
    samples.close()
    assert threading.active_count() == before


def test_a_slow_disk_delays_nobody(
    kept: Callable[..., Samples], metrics: DeviceMetrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, begun, add = threading.Event(), threading.Event(), Folder.add

    def slow(*given: Any) -> bool:
        begun.set()
        assert go.wait(60)
        return add(*given)

    monkeypatch.setattr(Folder, "add", slow)
    samples = kept()
    file = png(IMAGE) + bytes(1 << 20)
    offer(samples, unknown(), file=file)
    assert begun.wait(60)
    for _ in range(module.WAITING_MOST + 10):
        offer(samples, unknown(), file=file)
    assert value(metrics, "dropped_total", cause="busy") == 10
    # Of the files so many bytes are held; other inputs are written as the head takes them.
    assert samples._held == module.HELD_BYTES // len(file) * len(file)
    go.set()
    samples.close()
    assert samples._held == 0
    taken = value(metrics, "kept_total", reason="unknown") + value(metrics, "dropped_total", cause="large")
    assert taken == module.WAITING_MOST + 1


def test_a_disk_that_fails_is_counted_reported_once_and_tried_again(
    kept: Callable[..., Samples], metrics: DeviceMetrics, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    samples, folder = kept(), tmp_path / "kept"
    offer(samples, unknown())
    until(lambda: value(metrics, "entries") == 1, "the first")
    shutil.rmtree(folder)
    folder.write_bytes(b"in its place")
    for count in range(1, 6):
        offer(samples, unknown())
        until(lambda: value(metrics, "dropped_total", cause="disk") == count, "a failure")  # noqa: B023
    folder.unlink()

    def works() -> bool:
        offer(samples, unknown())
        return folder.is_dir() and value(metrics, "entries") >= 1 and bool(list(folder.glob("*.json")))

    until(works, "a sample in a new folder")
    samples.close()
    assert records(folder)
    assert [each.levelname for each in caplog.records] == ["WARNING"]
    assert "--keep" in caplog.text and "answers go on without it" in caplog.text


def test_what_is_larger_than_the_folder_is_dropped(
    kept: Callable[..., Samples], metrics: DeviceMetrics
) -> None:
    samples = kept(size=65_536)
    offer(samples, unknown(), file=png(IMAGE) + bytes(65_536))
    samples.close()
    assert value(metrics, "dropped_total", cause="large") == 1 and value(metrics, "entries") == 0


def test_a_tensor_is_kept_as_npy(metrics: DeviceMetrics, tmp_path: Path) -> None:
    from tests import toy_tensor

    bundle = toy_tensor.write(tmp_path / "bundle")
    tensor = np.zeros(bundle.manifest.input.shape, bundle.manifest.input.dtype)
    samples = Samples(KeepOptions(tmp_path / "kept", keep_share=1.0), bundle, metrics)
    samples.answered(samples.take(EXIT, tensor, "", 0, None, held=True), RESULT)
    samples.close()
    (found,) = records(tmp_path / "kept")
    assert found.file.endswith(".npy")
    assert np.array_equal(np.load(io.BytesIO(read_file(found, tmp_path / "kept"))), tensor)


def test_a_file_is_named_by_its_content() -> None:
    wav = b"RIFF\0\0\0\0WAVE"
    assert [suffix_of(data) for data in (png(IMAGE), b"\xff\xd8\xff\xe0", wav, b"\x93NUMPY", b"", b"PK")] == [
        *("png", "jpg", "wav", "npy", None, None)
    ]


def test_a_folder_in_use_is_one_error(toy_bundle: Bundle, tmp_path: Path) -> None:
    folder = Folder(tmp_path / "kept", 1 << 20)
    folder.open()
    with pytest.raises(ConfigError, match=r"^--keep .*kept: is in use by another process, expected a folder"):
        Device(toy_bundle, server="127.0.0.1:1", keep=KeepOptions(folder.path))
    folder.close()
    Device(toy_bundle, server="127.0.0.1:1", keep=KeepOptions(folder.path)).close()
    with pytest.raises(ConfigError, match=r"^--keep a\\x00b: is not a path, expected a folder"):
        Device(toy_bundle, server="127.0.0.1:1", keep=KeepOptions("a\0b"))
    with pytest.raises(
        ConfigError, match=r"^--keep .*none/kept: No such file or directory, expected a folder"
    ):
        Device(toy_bundle, server="127.0.0.1:1", keep=KeepOptions(tmp_path / "none" / "kept"))


def test_a_folder_among_the_inputs_is_one_error(run: Processes, toy_images: Path) -> None:
    inside = toy_images / "kept"
    status, device = run.device("--keep", inside, "--watch", toy_images)
    assert status == 2 and not inside.exists()
    assert device.errors == (
        f"edge-device: --keep {inside}: lies in {toy_images}, whose files are answered, "
        "expected a folder elsewhere"
    )
