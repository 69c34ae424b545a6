"""What is printed: one JSON object or one row for each image, then the summary."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable
from dataclasses import replace

import pytest

from offramp.common.errors import DataError, OutputError
from offramp.device.report import Report
from offramp.device.result import Result
from offramp.device.totals import Totals
from offramp.link.wire_bytes import WireBytes
from tests.device.results import result


def totals(*results: Result) -> Totals:
    made = Totals()
    for each in results:
        made.add(each, raw_bytes=64)
    return made


def test_a_run_without_images_has_a_summary() -> None:
    out = io.StringIO()
    Report(False, True, 0, out).finish(Totals(unreadable=2).summary(0.0, 1.0, None))
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


def test_the_server_that_answered_is_named_where_there_are_several() -> None:
    answered = replace(result(), server="barn:1", part=3)
    lines = []
    for servers in (1, 2):
        out = io.StringIO()
        report = Report(True, False, 1, out, parts=3, servers=servers)
        report.result(0, "a.png", answered)
        report.result(1, "b.png", result("fallback"))
        lines.append([json.loads(line) for line in out.getvalue().splitlines()])
    assert [record.get("server") for records in lines for record in records] == [None, None, "barn:1", None]

    made = Totals(servers={"barn:1": 0, "cloud:1": 0})
    for each in (answered, answered, result("fallback")):
        made.add(each, raw_bytes=64)
    summary = made.summary(1.0, 0.5, None)
    assert summary["servers"] == {"barn:1": 2, "cloud:1": 0}
    out = io.StringIO()
    Report(False, True, 1, out).finish(summary)
    assert "asked barn:1 2, cloud:1 0" in out.getvalue()


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


def test_the_protocol_is_named_whose_payload_is_counted() -> None:
    out = io.StringIO()
    udp = WireBytes(1000, 20, protocol="UDP")
    Report(False, True, 1, out).finish(totals(result()).summary(1.0, 0.5, udp))
    assert "wire (UDP payload, all of the connection): 1,000 B sent, 20 B received" in out.getvalue()


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
