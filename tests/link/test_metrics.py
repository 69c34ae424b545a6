"""A link's metrics: under the names of the program that has it."""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from offramp.link.metrics import LinkMetrics
from offramp.link.outcome import Cause
from offramp.link.wire_bytes import WireBytes


def test_names_are_those_of_the_program() -> None:
    registry = CollectorRegistry()
    LinkMetrics(registry, "offramp_edge").watch_wire(lambda: None)
    names = {family.name for family in registry.collect()}
    assert all(name.startswith("offramp_edge_") for name in names)
    assert {"offramp_edge_frames_unanswered", "offramp_edge_wire_bytes"} <= names


def test_each_cause_is_there_from_the_start() -> None:
    registry = CollectorRegistry()
    LinkMetrics(registry, "a")
    assert [registry.get_sample_value("a_frames_unanswered_total", {"cause": cause}) for cause in Cause] == [
        0.0
    ] * len(Cause)


def test_bytes_that_are_unknown_are_not_exported() -> None:
    registry = CollectorRegistry()
    counted: list[WireBytes | None] = [None]
    LinkMetrics(registry, "a").watch_wire(lambda: counted[0])
    sent = ("a_wire_bytes_total", {"direction": "sent"})
    assert registry.get_sample_value(*sent) is None
    counted[0] = WireBytes(7, 9)
    assert registry.get_sample_value(*sent) == 7
    segments = ("a_tcp_segments_total", {"direction": "sent"})
    assert registry.get_sample_value(*segments) == 0
    counted[0] = WireBytes(7, 9, protocol="UDP")
    assert registry.get_sample_value(*sent) == 7 and registry.get_sample_value(*segments) is None
