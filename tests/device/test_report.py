"""What is printed: one JSON object or one row for each image, then the summary."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable

import pytest

from offramp.common.errors import DataError, OutputError
from offramp.device.device import Result, Source
from offramp.device.report import Report, Sample, Totals
from offramp.link.wire_bytes import WireBytes


def result(source: Source = "server", latency: float = 0.01, payload: int = 10, label: str = "cat") -> Result:
    return Result(
        label=label,
        class_index=1,
        confidence=0.87654321,
        source=source,
        latency_seconds=latency,
        decode_seconds=latency / 5,
        payload_bytes=payload,
        message_bytes=2.5 * payload,
        wire_bytes=3.25 * payload,
        reason="no server" if source == "fallback" else None,
        sends=int(payload > 0),
    )


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
    out = io.StringIO()
    Report(False, True, 0, out).finish(summary)
    assert "0 images at T_c = 1: 0 early exit, 0 server, 0 fallback; 2 unreadable" in out.getvalue()


def test_json_lines(capsys: pytest.CaptureFixture[str]) -> None:
    out = io.StringIO()
    report = Report(True, False, 3, out)
    report.result(0, "a.png", result())
    report.result(1, "b\n\udcff.png", result("fallback"))
    report.unreadable(2, "c.png", DataError("c.png: is no PNG or JPEG picture"))
    report.finish(totals(result()).summary(1.0, 0.5, None))
    first, second, third, last = map(json.loads, out.getvalue().splitlines())
    assert first == {
        "index": 0,
        "image": "a.png",
        "label": "cat",
        "class_index": 1,
        "confidence": 0.876543,
        "source": "server",
        "latency_seconds": 0.01,
        "decode_seconds": 0.002,
        "payload_bytes": 10,
        "message_bytes": 25.0,
        "wire_bytes": 32.5,
    }
    assert (second["image"], second["reason"]) == ("b\n\udcff.png", "no server")
    assert third == {"index": 2, "image": "c.png", "error": "c.png: is no PNG or JPEG picture"}
    assert list(last) == ["summary"]
    assert capsys.readouterr().err.strip() == "edge-device: c.png: is no PNG or JPEG picture"


def test_the_table_has_a_row_for_each_image() -> None:
    out = io.StringIO()
    report = Report(False, False, 2, out)
    report.result(0, "a.png", result())
    report.result(1, "b.png", result("early_exit", payload=0, label="a class with a long name"))
    report.finish(totals(result(), result("early_exit", payload=0)).summary(1.0, 0.5, WireBytes(1000, 20)))
    header, first, second, _, counts, *_ = lines = out.getvalue().splitlines()
    assert header.split() == ["#", "label", "conf.", "source", "ms", "payload", "message", "wire", "image"]
    assert first.split() == ["0", "cat", "0.8765", "server", "10.00", "10", "25", "32", "a.png"]
    assert second.index("early_exit") == header.index("source") == first.index("server")
    assert counts.startswith("2 images at T_c = 0.5: 1 early exit, 1 server, 0 fallback; 0 unreadable")
    assert "wire (TCP payload, all of the connection): 1,000 B sent, 20 B received" in lines


def test_names_cannot_write_to_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    out = io.StringIO()
    report = Report(False, False, 2, out)
    report.result(0, "a\x1b[31m\n.png", result())
    report.unreadable(1, "b", DataError("b\x1b[31m\n.png: is no picture"))
    assert all(text.isprintable() for text in out.getvalue().splitlines())
    assert capsys.readouterr().err == "edge-device: b\\x1b[31m\\n.png: is no picture\n"


def test_quiet_prints_the_summary_only() -> None:
    out = io.StringIO()
    report = Report(False, True, 1, out)
    report.result(0, "a.png", result())
    assert out.getvalue() == ""
    report.finish(totals(result()).summary(1.0, 0.5, None))
    assert (
        "1 images" in out.getvalue()
        and "wire (TCP payload, all of the connection): unknown" in out.getvalue()
    )


@pytest.mark.parametrize(
    "error", [BrokenPipeError(32, "Broken pipe"), OSError(28, "No space left on device")]
)
def test_a_stdout_that_takes_no_more_is_an_output_error(
    error: OSError, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error

    out = io.StringIO()
    monkeypatch.setattr(out, "flush", fail)
    write: list[Callable[[], object]] = [
        lambda: Report(False, False, None, out),
        lambda: Report(True, False, None, out).result(0, "a.png", result()),
        lambda: Report(True, False, None, out).finish({}),
    ]
    for attempt in write:
        with pytest.raises(OutputError, match=error.strerror):
            attempt()


def test_figures_are_valid_json_numbers() -> None:
    out = io.StringIO()
    Report(True, False, 1, out).result(0, "a.png", result(latency=1e-9))
    (record,) = map(json.loads, out.getvalue().splitlines())
    assert all(math.isfinite(value) for value in record.values() if isinstance(value, float))
