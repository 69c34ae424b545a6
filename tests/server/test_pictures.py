"""Pictures on a real server: whose model answers them, hostile ones, and models that come and go."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from offramp.common.bundle.load import Bundle, load_bundle
from offramp.common.codec.activation import CodecId
from offramp.common.part.engine import Engine
from offramp.common.wire import transport
from offramp.common.wire.frame import Frame, FrameWriter, reason_name
from offramp.common.wire.picture import decode_picture, encode_picture, most_bytes
from offramp.v1 import inference_pb2 as pb
from tests import toy
from tests.processes import Processes, until
from tests.server.client import Stream, good_frames, still_serves, stream_to
from tests.toy import BundleFolder

MOST = most_bytes(toy.SIDE, toy.SIDE)
LARGE = Path(__file__).parents[2] / "models" / "imagenette-mobilenetv2-rate"


def picture_frame(sequence: int, payload: bytes) -> bytes:
    """A message with one picture."""
    return FrameWriter().pack([Frame(sequence, CodecId.PICTURE, payload)])


def test_activations_and_pictures_share_a_stream_and_its_messages(
    run: Processes, toy_bundle: Bundle, picture_bundle: Bundle
) -> None:
    server = run.server("--pictures", picture_bundle.path)
    codes, images = good_frames(toy_bundle, 5), toy.images(5, seed=8)
    payloads = [encode_picture(image, 60) for image in images]
    frames = [Frame(6 + i, CodecId.PICTURE, payload) for i, payload in enumerate(payloads)]
    mixed = sorted(
        (frame for pair in zip(codes, frames, strict=True) for frame in pair), key=lambda f: f.sequence
    )
    with stream_to(server.address, toy_bundle) as stream:
        limits = stream.hello()
        assert limits.picture_bytes == MOST
        stream.send(FrameWriter().pack(mixed))
        answers = {reply.sequence: reply for reply in stream.replies(10)}
        assert stream.end() == []
    assert not any(reply.HasField("error") for reply in answers.values())
    engine = Engine(picture_bundle)
    shown = np.stack([decode_picture(payload, toy.SIDE, toy.SIDE) for payload in payloads])
    for number, row in enumerate(engine.tail(engine.head(shown)[0])):
        reply = answers[6 + number]
        assert reply.class_index == row.argmax()
        assert reply.probability == pytest.approx(row.max(), abs=1e-6)
    symbols = np.stack([toy_bundle.codec.decode(frame.codec, frame.payload) for frame in codes])
    found = [answers[1 + number].class_index for number in range(5)]
    assert found == Engine(toy_bundle).tail(symbols).argmax(axis=1).tolist()
    # The model behind the pictures is a bundle like any other.
    still_serves(server.address, picture_bundle)
    with stream_to(server.address, picture_bundle) as stream:
        assert stream.hello().picture_bytes == MOST


VIEW = encode_picture(toy.images(1, seed=4)[0], 50)
HOSTILE = {
    "three bytes": (VIEW[:3], f"a picture of 3 bytes, expected 4 … {MOST}"),
    "too long": (bytes(MOST + 1), f"a picture of {MOST + 1} bytes, expected 4 … {MOST}"),
    "cut off": (VIEW[:12], "12 bytes that are not a picture, expected a VP8 key frame (OSError)"),
    "zeros": (bytes(100), "100 bytes that are not a picture, expected a VP8 key frame"),
    "a PNG": (b"\x89PNG\r\n\x1a\n" + bytes(80), "88 bytes that are not a picture, expected a VP8 key frame"),
    "a WebP file": (b"RIFF\x40\0\0\0WEBPVP8 " + bytes(60), "bytes that are not a picture"),
    "no key frame": (bytes([VIEW[0] | 1]) + VIEW[1:], "bytes that are not a picture, expected a VP8"),
    "a partition past its end": (b"\xf0\xff\xff" + VIEW[3:], "bytes that are not a picture"),
}


def test_a_hostile_picture_costs_its_own_answer(
    run: Processes, toy_bundle: Bundle, picture_bundle: Bundle
) -> None:
    server = run.server("--pictures", picture_bundle.path)
    with stream_to(server.address, toy_bundle) as stream:
        stream.hello()
        for number, (name, (payload, message)) in enumerate(HOSTILE.items()):
            writer = FrameWriter()
            stream.send(writer.pack([Frame(1 + 2 * number, CodecId.PICTURE, payload)]))
            (refused,) = stream.replies(1)
            assert reason_name(refused.error.reason) == "payload", name
            assert message in refused.error.message and refused.error.message.isprintable(), name
            stream.send(writer.pack([Frame(2 + 2 * number, CodecId.PICTURE, VIEW)]))
            assert not stream.replies(1)[0].HasField("error"), name
        assert stream.end() == []
    page = server.metrics()
    assert page["offramp_server_rejected_total{reason=payload}"] == len(HOSTILE)
    assert page["offramp_server_pictures_total"] == 2 * len(HOSTILE)
    assert page["offramp_server_frames_total{result=answered}"] == len(HOSTILE)


def test_pictures_need_longer_messages_on_their_streams_only(run: Processes, toy_bundle: Bundle) -> None:
    """160x160 pixels are more than the least that a server takes; a stream without pictures has that."""
    bundle = load_bundle(LARGE)
    server = run.server("--pictures", LARGE)
    with stream_to(server.address, bundle) as stream:
        limits = stream.hello()
        assert limits.picture_bytes == most_bytes(160, 160)
        assert limits.message_bytes == transport.message_bytes(limits.picture_bytes) > 16_384
        noise = np.random.default_rng(0).integers(0, 256, (3, 160, 160)).astype(np.uint8)
        payload = encode_picture(noise, 90)
        assert len(payload) > 16_384
        stream.send(picture_frame(1, payload))
        assert not stream.replies(1)[0].HasField("error")
    with stream_to(server.address, toy_bundle) as stream:
        limits = stream.hello()
        assert (limits.picture_bytes, limits.message_bytes) == (0, 16_384)


# --- models that come and go ---


def asked(stream: Stream, sequence: int) -> pb.Reply:
    stream.send(picture_frame(sequence, VIEW))
    return stream.replies(1)[0]


def test_a_model_for_pictures_comes_and_goes(
    run: Processes, toy_bundle: Bundle, picture_bundle: Bundle, models: Path
) -> None:
    """A stream keeps what it was opened with; those of a model that goes are asked to end."""
    old = toy.write(models / "old", coded=False, seeds=(7, 8))
    server = run.server("--pictures", models, "--reload-interval", 3600)
    with stream_to(server.address, toy_bundle) as stream:
        assert stream.hello().picture_bytes == MOST
        assert not asked(stream, 1).HasField("error")
        shutil.copytree(picture_bundle.path, models / "new")
        shutil.rmtree(old.path)
        server.send(signal.SIGHUP)
        message = stream.receive()
        assert message is not None and message.HasField("draining")
        # What is on its way is answered.
        assert not asked(stream, 2).HasField("error")
        assert stream.end() == []
    with stream_to(server.address, toy_bundle) as stream:
        stream.hello()
        reply = asked(stream, 1)
        engine = Engine(picture_bundle)
        shown = decode_picture(VIEW, toy.SIDE, toy.SIDE)
        (row,) = engine.tail(engine.head(shown[None])[0])
        assert reply.class_index == row.argmax()
        assert reply.probability == pytest.approx(row.max(), abs=1e-6)
    until(lambda: server.metrics()["offramp_server_bundles_retired_total"] == 1, "the old one's end")
    assert server.drain() == 0


def test_a_bundle_may_be_given_for_both(run: Processes, toy_bundle: Bundle) -> None:
    server = run.server("--pictures", toy_bundle.path)
    with stream_to(server.address, toy_bundle) as stream:
        assert stream.hello().picture_bytes == MOST
        assert not asked(stream, 1).HasField("error")


def test_a_bundle_in_service_may_be_asked_to_answer_pictures_later(
    run: Processes, toy_bundle: Bundle, picture_bundle: Bundle, models: Path
) -> None:
    other = toy.write(models / "other", seeds=(1, 2))
    BundleFolder(other.path).edit("classes", value=["a", "b", "c"])
    server = run.server("--pictures", models, "--reload-interval", 3600)
    with stream_to(server.address, toy_bundle) as stream:
        assert stream.hello().picture_bytes == 0
    shutil.copytree(toy_bundle.path, models / "toy")
    server.send(signal.SIGHUP)
    server.wait_for("answers pictures by toy: .*\n(.*\n)*.*answers pictures by toy: ")
    with stream_to(server.address, toy_bundle) as stream:
        assert stream.hello().picture_bytes == MOST
        assert not asked(stream, 1).HasField("error")
    assert server.drain() == 0


@pytest.mark.parametrize(
    ("flags", "status", "message"),
    [
        (["--pictures", "/nowhere"], 4, "/nowhere"),
        (["--pictures", "{empty}"], 4, "has no bundle, expected a directory with manifest.json"),
    ],
)
def test_wrong_flags_are_named(
    toy_bundle: Bundle, tmp_path: Path, flags: list[str], status: int, message: str
) -> None:
    given = [flag.replace("{empty}", str(tmp_path)) for flag in flags]
    command = [sys.executable, "-m", "offramp.server.app", "--bundle", str(toy_bundle.path), *given]
    done = subprocess.run([*command, "--listen", "127.0.0.1:0"], capture_output=True, text=True)
    assert done.returncode == status and message in done.stderr and done.stderr.count("\n") == 1
