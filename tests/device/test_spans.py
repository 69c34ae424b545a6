"""A span for each image: it ends with the image's result."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import replace
from typing import Any, cast

from offramp.common.tracing import Tracing
from offramp.device.result import Result
from offramp.device.spans import start_span
from tests.device.results import result


class Recorder:
    """In the place of ``Tracing``: what was started, and what was said at the end."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.ended: list[tuple[str, str | None, dict[str, Any]]] = []

    def start(self, name: str) -> str:
        self.started.append(name)
        return name

    def context_of(self, span: str) -> bytes:
        return b"c" * 25

    def end(self, span: str, reason: str | None, **attributes: Any) -> None:
        self.ended.append((span, reason, attributes))


def test_a_span_ends_with_the_result_and_says_what_it_was() -> None:
    recorder, future = Recorder(), Future[Result]()
    assert start_span(cast(Tracing, recorder), future) == b"c" * 25
    assert recorder.started == ["offramp.image"] and recorder.ended == []
    future.set_result(result("fallback"))
    ((span, reason, attributes),) = recorder.ended
    assert (span, reason) == ("offramp.image", "no server")
    assert attributes.keys() == {
        "source", "label", "confidence", "payload_bytes", "picture_bytes", "sends", "part"
    }  # fmt: skip
    assert attributes["source"] == "fallback" and attributes["payload_bytes"] == 10


def test_the_hop_that_answered_is_on_the_span() -> None:
    recorder, future = Recorder(), Future[Result]()
    start_span(cast(Tracing, recorder), future)
    future.set_result(replace(result(), server="barn:1", part=2, cut_short=True))
    ((_, _, attributes),) = recorder.ended
    assert (attributes["part"], attributes["cut_short"], attributes["server"]) == (2, True, "barn:1")


def test_without_tracing_there_is_no_span_and_no_context() -> None:
    future: Future[Result] = Future()
    assert start_span(None, future) == b""
    future.set_result(result())
