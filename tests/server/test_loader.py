"""Bundles that come and go on disk, while frames are on their way."""

from __future__ import annotations

import asyncio
import shutil
import signal
import threading
from pathlib import Path

import pytest

from offramp.common.bundle.load import Bundle, load_bundle
from offramp.common.bundle.manifest import MANIFEST, TAIL
from offramp.common.wire import frame
from offramp.common.wire.frame import FrameWriter
from offramp.server import catalog
from offramp.server.batch import Batcher
from offramp.server.catalog import Catalog
from offramp.server.loader import Loader, Reloader, find_bundles, state_of
from offramp.server.metrics import ServerMetrics
from tests.processes import WAIT, Processes, until
from tests.server.client import Ended, good_frames, good_message, still_serves, stream_to
from tests.server.variants import described, variant
from tests.toy import BundleFolder


def test_bundles_are_found_in_a_directory_or_given_themselves(toy_bundle: Bundle, models: Path) -> None:
    one, two = (variant(toy_bundle, models / name, name).path for name in ("a", "b"))
    (models / "empty").mkdir()
    (models / "file").touch()
    assert find_bundles([str(models)]) == [one, two]
    assert find_bundles([str(two), str(models)]) == [two, one, two]
    # Loading it says what is wrong with it.
    assert find_bundles([str(models / "nowhere")]) == [models / "nowhere"]
    assert find_bundles([str(models / "empty")]) == []


def test_a_changed_directory_is_seen_without_reading_it(toy_bundle: Bundle, tmp_path: Path) -> None:
    path = variant(toy_bundle, tmp_path / "one", "one").path
    states = {state_of(path)}
    tail = path / TAIL
    tail.write_bytes(tail.read_bytes() + b"more")
    states.add(state_of(path))
    (path / "new").touch()
    states.add(state_of(path))
    shutil.copy(tail, path / "copy")
    (path / "copy").rename(tail)
    states.add(state_of(path))
    assert len(states) == 4 and state_of(path) in states
    assert state_of(tmp_path / "nowhere") == ()


def test_a_directory_without_bundles_is_exit_4(models: Path) -> None:
    from tests.server.test_app import run_server

    done = run_server("--bundle", models, "--listen", "127.0.0.1:0")
    assert (done.returncode, done.stderr.count("\n")) == (4, 1)
    assert "has no bundle, expected a directory with manifest.json" in done.stderr


@pytest.mark.parametrize("how", ["SIGHUP", "by itself"])
def test_bundles_come_and_go_without_losing_a_frame(
    run: Processes, toy_bundle: Bundle, models: Path, how: str
) -> None:
    old = variant(toy_bundle, models / "old", "old")
    server = run.server("--reload-interval", 3600 if how == "SIGHUP" else 0.05, bundle=models)

    def changed() -> None:
        if how == "SIGHUP":
            server.send(signal.SIGHUP)

    sent, found, refused = [0] * 3, [0] * 3, [0] * 3

    def device(index: int) -> None:
        """Sends until it is asked to go."""
        with stream_to(server.address, old) as stream:
            stream.hello()
            writer, asked = FrameWriter(), False
            while not asked:
                stream.send(writer.pack(good_frames(old, 8, first=1 + sent[index])))
                sent[index] += 8
                message = stream.receive()
                assert message is not None
                asked = message.HasField("draining")
                found[index] += len(message.replies)
                refused[index] += sum(reply.HasField("error") for reply in message.replies)
            rest = stream.end()
            found[index] += len(rest)
            refused[index] += sum(reply.HasField("error") for reply in rest)

    threads = [threading.Thread(target=device, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    until(lambda: min(found) > 30, "some replies to each")
    new = variant(toy_bundle, models.parent / "new", "new")
    (models.parent / "new").rename(models / "new")
    changed()
    until(lambda: described(server) == {"old", "new"}, "both")
    with stream_to(server.address, new) as stream:
        stream.hello()
        shutil.rmtree(models / "old")
        changed()
        until(lambda: described(server) == {"new"}, "the new one alone")
        for thread in threads:
            thread.join(WAIT)
        assert sent == found and refused == [0] * 3
        stream.send(good_message(new))
        assert not stream.replies(1)[0].HasField("error")
        assert stream.end() == []
    with stream_to(server.address, old) as late:
        late.send(frame.hello(old.digest))
        with pytest.raises(Ended, match="FAILED_PRECONDITION"):
            late.receive()
    page = server.metrics()
    assert page["offramp_server_bundles_retired_total"] == 1
    assert page["offramp_server_reloads_total{result=loaded,what=bundle}"] == 1
    assert page[f"offramp_bundle_info{{digest={new.digest.hex()},name=new}}"] == 1
    assert f"offramp_bundle_info{{digest={old.digest.hex()},name=old}}" not in page
    assert server.drain() == 0


def test_a_broken_new_bundle_leaves_the_old_one_serving(
    run: Processes, toy_bundle: Bundle, tmp_path: Path
) -> None:
    old = variant(toy_bundle, tmp_path / "bundle", "old")
    folder = BundleFolder(tmp_path / "bundle")
    server = run.server("--reload-interval", 0.05, bundle=folder.path)
    good_tail = (folder.path / TAIL).read_bytes()
    failed = "offramp_server_reloads_total{result=failed,what=bundle}"
    with stream_to(server.address, old) as stream:
        stream.hello()
        folder.put(TAIL, b"no graph")
        until(lambda: server.metrics()[failed] >= 1, "the failure")
        match = server.wait_for(r"ERROR not loaded, what serves goes on: (.*)")
        assert str(folder.path) in match[1]
        stream.send(good_message(old))
        assert not stream.replies(1)[0].HasField("error")
        still_serves(server.address, old)
        # It is tried at each change, not at each look.
        counted = server.metrics()[failed]
        for _ in range(4):
            still_serves(server.address, old)
        assert server.metrics()[failed] <= counted + 1
        # Whole again, under another name.
        (folder.path / TAIL).write_bytes(good_tail)
        folder.put(TAIL, good_tail)
        folder.edit("name", value="new")
        until(lambda: described(server) == {"new"}, "the new one")
        assert stream.receive()
        assert stream.end() == []
        still_serves(server.address, load_bundle(folder.path))
    assert server.drain() == 0


def test_all_bundles_gone_is_a_mishap(run: Processes, toy_bundle: Bundle, models: Path) -> None:
    bundle = variant(toy_bundle, models / "one", "one")
    server = run.server("--reload-interval", 3600, bundle=models)
    models.rename(models.with_name("away"))
    server.send(signal.SIGHUP)
    still_serves(server.address, bundle)
    models.mkdir()
    (models / "half").mkdir()
    (models / "half" / MANIFEST).write_text("{")
    server.send(signal.SIGHUP)
    server.wait_for("not loaded, what serves goes on")
    still_serves(server.address, bundle)
    assert described(server) == {"one"}


def test_a_bundle_for_larger_messages_is_not_loaded(run: Processes, toy_bundle: Bundle, models: Path) -> None:
    variant(toy_bundle, models / "one", "one")
    server = run.server("--reload-interval", 3600, bundle=models)
    big = variant(toy_bundle, models / "two", "two")
    BundleFolder(big.path).edit("activation", "shape", value=[4, 256, 256])
    server.send(signal.SIGHUP)
    server.wait_for(r"needs messages of \d+ bytes, this server was started for 16384 \(--message-bytes\)")
    assert described(server) == {"one"}


def test_decoding_is_measured_beside_the_event_loop(
    monkeypatch: pytest.MonkeyPatch, toy_bundle: Bundle
) -> None:
    """A codec may be slow; a reload holds up no stream."""
    measured: list[threading.Thread] = []

    def measure(_: object) -> bool:
        measured.append(threading.current_thread())
        return True

    async def retire(_: object) -> None:
        raise AssertionError("nothing goes")

    async def reload() -> None:
        metrics = ServerMetrics()
        batcher = Batcher(metrics, workers=1, limit=1)
        catalog = Catalog(batcher, metrics)
        loader = Loader(1, workers=1, max_batch=1, max_wait=0.0, message_bytes=None)
        await Reloader([str(toy_bundle.path)], loader, metrics).scan(catalog, retire)
        assert catalog.get(toy_bundle.digest).decode_inline
        batcher.close()

    monkeypatch.setattr(catalog, "decodes_inline", measure)
    asyncio.run(reload())
    assert measured and threading.main_thread() not in measured
