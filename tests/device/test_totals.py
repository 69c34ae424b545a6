"""The figures of one run."""

from __future__ import annotations

import pytest

from offramp.device.result import Result
from offramp.device.totals import Sample, Totals
from offramp.link.wire_bytes import WireBytes
from tests.device.results import result


def totals(*results: Result) -> Totals:
    made = Totals()
    for each in results:
        made.add(each, raw_bytes=64)
    return made


def test_totals_count_bytes_of_what_was_sent() -> None:
    made = totals(
        result("early_exit", payload=0),
        result("server", payload=10),
        result("fallback", payload=20),
        result("fallback", payload=0),
    )
    summary = made.summary(2.0, 0.8, WireBytes(100, 50))
    assert summary["images"] == 4 and summary["exit_rate"] == 0.25
    assert [summary[source] for source in ("early_exit", "server", "fallback")] == [1, 1, 2]
    assert summary["payload_bytes"] == 30 and summary["payload_bytes_mean"] == 7.5
    assert summary["raw_activation_bytes"] == 128
    assert summary["wire_bytes"] == {"sent": 100, "received": 50}


def test_of_udp_no_tcp_segments_are_known() -> None:
    summary = totals(result("server", payload=10)).summary(1.0, 0.8, WireBytes(100, 50, protocol="UDP"))
    assert summary["wire_bytes"] == {"sent": 100, "received": 50} and summary["wire_protocol"] == "UDP"
    assert summary["tcp_segments"] is summary["tcp_ip_header_bytes"] is None
    over_tcp = totals(result("server", payload=10)).summary(1.0, 0.8, WireBytes(100, 50, 2, 1))
    assert over_tcp["tcp_segments"] == {"sent": 2, "received": 1} and over_tcp["tcp_ip_header_bytes"] == 156


@pytest.mark.parametrize(
    ("latencies", "median", "p99"),
    [([3.0], 3.0, 3.0), ([3.0, 1.0, 2.0], 2.0, 3.0), (list(range(1000, 0, -1)), 501, 991)],
)
def test_latencies_are_order_statistics(latencies: list[float], median: float, p99: float) -> None:
    summary = totals(*(result(latency=latency) for latency in latencies)).summary(1.0, 0.5, None)
    assert (summary["latency_seconds_median"], summary["latency_seconds_p99"]) == (median, p99)
    assert (summary["decode_seconds_median"], summary["decode_seconds_p99"]) == (median / 5, p99 / 5)


def test_memory_does_not_grow_with_the_run() -> None:
    """Of a long run a fair sample is kept."""
    sample = Sample(1000)
    for value in range(100_000):
        sample.add(value)
    assert len(sample.values) == 1000 and len(set(sample.values)) == 1000
    median = sorted(sample.values)[500]
    assert 45_000 < median < 55_000


def test_a_run_without_images_has_no_means() -> None:
    summary = Totals(unreadable=2).summary(0.0, 1.0, None)
    nothing = (
        "exit_rate",
        "payload_bytes_mean",
        "wire_bytes",
        "latency_seconds_median",
        "latency_seconds_p99",
        "decode_seconds_median",
        "decode_seconds_p99",
    )
    assert all(summary[name] is None for name in nothing)
    assert (summary["images"], summary["unreadable"]) == (0, 2)
