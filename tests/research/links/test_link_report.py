"""Who wins over a link."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("matplotlib")

from research.links.link_report import verdicts


def row(way: str, kind: str, accuracy: float, latency: float, payload: float) -> dict[str, Any]:
    figures = {"latency_ms_mean": latency, "payload_bytes_mean": payload, "interface_bytes_mean": 2 * payload}
    return {"link": "l", "way": way, "kind": kind, "accuracy": accuracy, **figures}


def test_a_rival_is_held_against_the_fastest_that_is_as_accurate() -> None:
    rows = [
        row("fast", "offramp", 0.90, 1.0, 10.0),
        row("middle", "offramp", 0.95, 2.0, 20.0),
        row("slow", "offramp", 0.95, 4.0, 0.0),
        row("JPEG", "rival", 0.95, 8.0, 40.0),
        row("whole", "rival", 0.97, 1.0, 10.0),
        row("early", "device", 0.90, 0.5, 0.0),
    ]
    jpeg, whole, early = verdicts(rows)

    assert (jpeg["ours"], jpeg["as_accurate"]) == ("middle", True)
    assert (jpeg["latency_ratio"], jpeg["payload_ratio"], jpeg["interface_ratio"]) == (4.0, 2.0, 2.0)
    assert (whole["ours"], whole["as_accurate"], whole["latency_ratio"]) == ("middle", False, 0.5)
    assert (early["ours"], early["latency_ratio"], early["payload_ratio"]) == ("fast", 0.5, 0.0)
