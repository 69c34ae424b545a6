"""A log is for people or for machines, one event a line."""

from __future__ import annotations

import json
import logging

from offramp.common.logs import JsonFormatter


def test_a_json_log_line_is_one_object() -> None:
    record = logging.LogRecord("offramp.x", logging.WARNING, "", 0, "%s\nwith a line", ("ü",), None)
    event = json.loads(JsonFormatter("cloud-server").format(record))
    assert (event["level"], event["program"], event["message"]) == (
        "warning",
        "cloud-server",
        "ü\nwith a line",
    )
    assert event["time"].endswith("+00:00")
