"""The second question: who is asked, what it costs, and what stands without an answer."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from offramp.common.bundle.load import Bundle
from offramp.common.codec.activation import CodecId
from offramp.common.part.answer import both_exits
from offramp.common.part.engine import Engine
from offramp.common.wire.frame import FrameReader
from offramp.common.wire.picture import decode_picture, encode_picture, most_bytes
from offramp.device import Device, LinkOptions, PictureOptions, Result, SteeringOptions
from offramp.device.metrics import DeviceMetrics
from offramp.device.pictures import PictureWriter
from offramp.link.link import Answer, Outcome, Refusal
from offramp.link.outcome import Cause
from offramp.v1 import inference_pb2 as pb
from tests import toy
from tests.device import hostile
from tests.device.hostile import Context, Requests, Script
from tests.device.linked import LinkTo
from tests.processes import WAIT, Processes, counting_proxy, scrape, until

T_C, T_2, QUALITY = 0.7, 0.6, 30


def expected(
    bundle: Bundle, pictures: Bundle, images: NDArray[np.uint8], threshold: float = T_2
) -> list[tuple[int, float, bool]]:
    """Class and confidence of each image in one process, and whether a picture of it is sent."""
    own, whole = Engine(bundle), Engine(pictures)
    found = []
    for image in images:
        symbols, early = own.head(image[None])
        if early.max() > T_C:
            found.append((int(early.argmax()), float(early.max()), False))
            continue
        answer = own.tail(symbols)
        before: NDArray[np.float32] | None = None
        if bundle.manifest.sent_answer == "both":
            before = answer = joined(early, answer)
        asked = bool(answer.max() <= np.float32(threshold))
        if asked:
            seen = decode_picture(encode_picture(image, QUALITY), *image.shape[1:])
            answer = whole.tail(whole.head(seen[None])[0])
            if before is not None:
                answer = joined(before, answer)
        found.append((int(answer.argmax()), float(answer.max()), asked))
    return found


def joined(before: NDArray[np.float32], answer: NDArray[np.float32]) -> NDArray[np.float32]:
    return both_exits(before, answer.argmax(axis=1), answer.max(axis=1)).astype(np.float32)


@pytest.mark.parametrize("rule", ["server", "both"])
def test_who_is_unsure_twice_is_answered_by_the_whole_model(
    run: Processes, toy_bundle: Bundle, both_bundle: Bundle, picture_bundle: Bundle, toy_npz: Path, rule: str
) -> None:
    bundle = both_bundle if rule == "both" else toy_bundle
    server = run.server("--pictures", picture_bundle.path, bundle=bundle.path)
    wanted = expected(bundle, picture_bundle, toy.images(300, seed=3))
    with counting_proxy(server.port) as proxy:
        device = run.start_device(
            *("--server", f"127.0.0.1:{proxy.port}", "--threshold", T_C, "--timeout", 60, "--json"),
            *(
                "--picture-threshold",
                T_2,
                "--picture-quality",
                QUALITY,
                "--hold",
                "--metrics-port",
                0,
                toy_npz,
            ),
            bundle=bundle.path,
        )
        url = "http://" + device.wait_for(r"metrics on (\S+)")[1] + "/metrics"
        until(lambda: device.stdout and "summary" in device.stdout[-1], "the summary")
        page = scrape(url)
        device.send(signal.SIGTERM)
        assert device.wait() == 0 and all(" INFO " in line for line in device.errors.splitlines())
    answers = sorted(device.answers, key=lambda answer: int(answer["index"]))
    assert [answer["class_index"] for answer in answers] == [best for best, _, _ in wanted]
    np.testing.assert_allclose([a["confidence"] for a in answers], [p for _, p, _ in wanted], atol=2e-6)
    asked = ["picture_bytes" in answer for answer in answers]
    assert asked == [again for _, _, again in wanted] and 10 < sum(asked) < 200
    # Without the picture some of them have another answer.
    alone = expected(bundle, picture_bundle, toy.images(300, seed=3), threshold=0)
    assert [best for best, _, _ in alone] != [best for best, _, _ in wanted]

    # Every byte of a picture is counted, by both sides and by an outsider.
    sizes = [
        len(encode_picture(image, QUALITY))
        for image, again in zip(toy.images(300, seed=3), asked, strict=True)
        if again
    ]
    summary, theirs = device.summary, server.metrics()
    assert [a["picture_bytes"] for a in answers if "picture_bytes" in a] == sizes
    assert summary["pictures"] == len(sizes) and summary["picture_bytes"] == sum(sizes)
    assert page["offramp_device_picture_bytes_total"] == sum(sizes)
    assert page["offramp_device_pictures_total{result=answered}"] == len(sizes)
    assert page["offramp_device_pictures_total{result=unanswered}"] == 0
    assert page["offramp_device_stage_seconds_count{stage=picture}"] == len(sizes)
    assert theirs["offramp_server_pictures_total"] == len(sizes)
    assert theirs["offramp_server_picture_bytes_total"] == sum(sizes)
    assert theirs["offramp_server_payload_bytes_total"] == summary["payload_bytes"]
    assert theirs["offramp_server_frames_total{result=answered}"] == summary["server"] + len(sizes)
    assert sum(answer["payload_bytes"] for answer in answers) == summary["payload_bytes"]
    assert summary["raw_activation_bytes"] == 64 * summary["server"]
    assert page["offramp_device_raw_activation_bytes_total"] == 64 * summary["server"]
    sent = page["offramp_device_message_bytes_total{direction=sent}"]
    assert sent == theirs["offramp_server_message_bytes_total{direction=received}"]
    # One frame a message costs at most ten bytes of protobuf, with its codec.
    frames = summary["server"] + len(sizes)
    assert summary["payload_bytes"] < sent <= summary["payload_bytes"] + 60 + 10 * frames
    assert summary["wire_bytes"]["sent"] == pytest.approx(proxy.up, rel=0.02)
    shares = sum(answer["message_bytes"] for answer in answers)
    received = page["offramp_device_message_bytes_total{direction=received}"]
    assert shares == pytest.approx(sent + received, abs=120)


def test_nothing_that_shows_an_image_leaves_unless_it_is_asked_for(
    run: Processes, picture_bundle: Bundle, toy_npz: Path
) -> None:
    server = run.server("--pictures", picture_bundle.path)
    status, device = run.device("--server", server.address, "--threshold", T_C, "--json", toy_npz)
    assert status == 0 and device.summary["pictures"] == 0 and device.summary["server"] > 100
    assert server.metrics()["offramp_server_pictures_total"] == 0


def test_a_server_that_takes_no_pictures_is_sent_none(
    run: Processes, toy_engine: Engine, toy_npz: Path
) -> None:
    server = run.server()
    status, device = run.device(
        *("--server", server.address, "--threshold", T_C, "--picture-threshold", 1, "--json", toy_npz)
    )
    assert status == 0 and device.summary["pictures"] == 0 and device.summary["fallback"] == 0
    symbols, early = toy_engine.head(toy.images(300, seed=3))
    alone = np.where(early.max(1) > T_C, early.argmax(1), toy_engine.tail(symbols).argmax(1))
    answers = sorted(device.answers, key=lambda answer: int(answer["index"]))
    assert [answer["class_index"] for answer in answers] == alone.tolist()
    assert device.errors.count(f"{server.address} takes no pictures; it is sent none") == 1
    assert server.metrics()["offramp_server_frames_total{result=refused}"] == 0


# --- where the picture gets no answer ---


def taking(codes: list[bytes], pictures: list[bytes], picture_bytes: int = 4_096) -> Script:
    """Accepts pictures; to each activation and to each picture these, where {} is its number."""

    def script(requests: Requests, context: Context) -> Any:
        next(requests)
        limits = pb.Limits(
            frames_in_flight=64, message_bytes=16_384, frames_per_message=64, picture_bytes=picture_bytes
        )
        yield pb.ServerMessage(accepted=pb.Accepted(limits=limits)).SerializeToString()
        reader = FrameReader(64)
        for data in requests:
            for frame in reader.read(pb.DeviceMessage.FromString(data)):
                for answer in pictures if getattr(frame, "codec", 0) == CodecId.PICTURE else codes:
                    reply = pb.Reply.FromString(answer)
                    reply.sequence = frame.sequence
                    yield hostile.replies(reply)

    return script


FIRST = pb.Reply(class_index=1, probability=0.5).SerializeToString()
SECOND = pb.Reply(class_index=2, probability=0.75).SerializeToString()
OVERLOADED = pb.Reply(
    error=pb.FrameError(reason=pb.FrameError.REASON_OVERLOADED, message="full")
).SerializeToString()


def ask(
    bundle: Bundle, script: Script, threshold: float, timeout: float = WAIT
) -> tuple[Result, dict[str, float | None]]:
    """One unsure image to this server: its result, and how many pictures were answered and were not."""
    with (
        hostile.hostile(script) as server,
        Device(
            bundle,
            server=f"127.0.0.1:{server.port}",
            threshold=1,
            link=LinkOptions(timeout=timeout),
            pictures=PictureOptions(threshold),
        ) as device,
    ):
        result = device.infer(toy.images(1, seed=3)[0])
        counts = {
            kind: device.metrics.registry.get_sample_value("offramp_device_pictures_total", {"result": kind})
            for kind in ("answered", "unanswered")
        }
    return result, counts


def test_the_pictures_answer_replaces_the_first(toy_bundle: Bundle) -> None:
    result, counts = ask(toy_bundle, taking([FIRST], [SECOND]), 0.5)
    assert (result.source, result.class_index, result.confidence) == ("server", 2, 0.75)
    assert 0 < result.picture_bytes < result.payload_bytes and result.sends == 1
    assert counts == {"answered": 1, "unanswered": 0}


@pytest.mark.parametrize(
    ("pictures", "taken", "timeout"),
    [
        ([OVERLOADED], 4_096, 60),
        ([], 4_096, 1),
        ([SECOND], 10, 60),
    ],
    ids=["overloaded", "silence", "pictures of ten bytes only"],
)
def test_without_an_answer_to_the_picture_the_first_one_stands(
    toy_bundle: Bundle, pictures: list[bytes], taken: int, timeout: float
) -> None:
    script = taking([FIRST], pictures, taken)
    result, counts = ask(toy_bundle, script, 1.0, timeout)
    assert (result.source, result.class_index, result.confidence) == ("server", 1, 0.5)
    assert result.reason is None and counts == {"answered": 0, "unanswered": 1}
    # What was sent is counted all the same.
    assert (result.picture_bytes > 0) == (taken == 4_096)


def test_the_image_may_change_once_it_is_handed_in(toy_bundle: Bundle) -> None:
    seen: list[bytes] = []

    def script(requests: Requests, context: Context) -> Any:
        answers = taking([FIRST], [SECOND])(noting(requests), context)
        yield from answers

    def noting(requests: Requests) -> Any:
        for data in requests:
            message = pb.DeviceMessage.FromString(data)
            seen.extend(
                sealed[:-4]
                for codec, sealed in zip(message.codecs, message.frames, strict=False)
                if int(codec) == CodecId.PICTURE
            )
            yield data

    image = toy.images(1, seed=3)[0]
    wanted = encode_picture(image, 20)
    with (
        hostile.hostile(script) as server,
        Device(
            toy_bundle,
            server=f"127.0.0.1:{server.port}",
            threshold=1,
            pictures=PictureOptions(picture_threshold=1),
        ) as device,
    ):
        future = device.submit(image)
        image[:] = 0
        future.result()
    assert seen == [wanted]


def test_closing_waits_for_pictures(toy_bundle: Bundle) -> None:
    """And a window that is full of them lets nothing pile up."""
    images = toy.images(40, seed=3)
    with hostile.hostile(taking([FIRST], [SECOND])) as server:
        device = Device(
            toy_bundle,
            server=f"127.0.0.1:{server.port}",
            threshold=1,
            pictures=PictureOptions(picture_threshold=1),
            link=LinkOptions(window=2),
        )
        futures = []
        for image in images:
            futures.append(device.submit(image))
            assert sum(not future.done() for future in futures) <= 4
        device.close()
        assert all(future.done() for future in futures)
    assert [future.result().class_index for future in futures] == [2] * 40


def test_an_overdrawn_budget_sends_no_pictures(toy_bundle: Bundle) -> None:
    """T_c has a floor, so that what is unsure there is sent; nothing is sent beside it."""
    with (
        hostile.hostile(taking([FIRST], [SECOND])) as server,
        Device(
            toy_bundle,
            server=f"127.0.0.1:{server.port}",
            pictures=PictureOptions(picture_threshold=1),
            steering=SteeringOptions(byte_budget=1, threshold_floor=1, threshold_ceiling=1),
        ) as device,
    ):
        results = [device.infer(image) for image in toy.images(60, seed=3)]
        assert all(result.source == "server" for result in results)
        asked = [result.picture_bytes > 0 for result in results]
    assert asked[0] and not any(asked[30:])


def test_a_picture_that_cannot_be_written_costs_nothing(
    toy_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    writer = PictureWriter(20, toy_bundle.manifest.preprocessing, DeviceMetrics(toy_bundle))
    given_up = threading.Event()

    def fail(*_: object) -> bytes:
        raise MemoryError

    monkeypatch.setattr("offramp.device.pictures.encode_picture", fail)
    writer.write(toy.images(1)[0], lambda _: None, given_up.set)
    assert given_up.wait(WAIT) and "a picture could not be written" in caplog.text
    writer.close()
    given_up.clear()
    writer.write(toy.images(1)[0], lambda _: None, given_up.set)
    assert given_up.is_set()


# --- the link ---


def test_a_picture_waits_for_no_company(linked: LinkTo) -> None:
    with (
        hostile.hostile(taking([FIRST], [SECOND])) as server,
        linked(server.port, coalesce=WAIT) as device,
    ):
        device.offload(1, codec=CodecId.PICTURE)
        (outcome,) = device.settled()
        assert isinstance(outcome, Answer) and outcome.class_index == 2


def test_a_frame_may_be_due_before_those_that_came_earlier(linked: LinkTo) -> None:
    """It is given up at its own time, and one with so little of it says nothing of the server."""
    with hostile.hostile(taking([], [])) as server, linked(server.port, timeout=WAIT) as device:
        device.offload(1)
        until(lambda: device.sample("offramp_device_payload_bytes_total") > 0, "the first frame's way")
        start = time.monotonic()
        device.offload(1, codec=CodecId.PICTURE, deadline=start + 0.2)
        until(lambda: device.outcomes[1], "the second one's outcome")
        assert 0.2 <= time.monotonic() - start < WAIT / 2
        (gone,) = device.outcomes[1]
        assert isinstance(gone, Refusal) and gone.cause is Cause.TIMEOUT
        assert not device.outcomes[0] and device.sample("offramp_device_connected") == 1
        device.link._session.cancel("the test is over")


def test_pictures_that_wait_for_a_stream_are_told_when_it_takes_none(linked: LinkTo) -> None:
    """They were handed in before the server had said so; the activations among them are sent."""
    with hostile.hostile(taking([FIRST], [SECOND], 0)) as server, linked(server.port) as device:
        device.offload(1, codec=CodecId.PICTURE)
        device.offload(2)
        device.offload(1, codec=CodecId.PICTURE)
        outcomes: list[Outcome] = device.settled()
        assert [isinstance(outcome, Refusal) for outcome in outcomes] == [True, False, False, True]
        for refusal in (outcomes[0], outcomes[3]):
            assert isinstance(refusal, Refusal) and refusal.cause is Cause.PICTURE
            assert refusal.reason == f"127.0.0.1:{server.port} takes no pictures"
            assert not refusal.sends
        # As is one that comes later.
        start = time.monotonic()
        device.offload(1, codec=CodecId.PICTURE)
        device.settled()
        assert time.monotonic() - start < WAIT
        assert device.sample("offramp_device_frames_unanswered_total", cause="picture") == 3


def test_a_picture_is_no_longer_than_the_server_takes(linked: LinkTo) -> None:
    with hostile.hostile(taking([FIRST], [SECOND], 20_000)) as server, linked(server.port) as device:
        device.offload(1)
        device.settled()
        device.offload(1, payload=bytes(16_384), codec=CodecId.PICTURE)
        last = device.settled()[-1]
        assert isinstance(last, Refusal) and last.cause is Cause.PICTURE
        device.offload(1, payload=bytes(16_000), codec=CodecId.PICTURE)
        assert isinstance(device.settled()[-1], Answer)
    assert most_bytes(8, 8) < 16_000
