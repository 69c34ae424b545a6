"""Drift of devices and of a fleet, from their pages."""

from __future__ import annotations

import pytest

from offramp.cli.fleet.drift import drift, fleet_drift
from offramp.cli.fleet.figures import Watched, device_row
from offramp.cli.fleet.pages import read_page
from offramp.cli.fleet.table import DEVICE, fleet_line
from offramp.cli.fleet.targets import Target
from offramp.common.drift import deviations, distance


def seen(classes: list[int], reference: list[int] | None, exits: str = "NaN") -> Watched:
    """A device whose early exit named classes so often, and how often it did on the bundle's test images."""
    name = "offramp_device_drift"
    total = sum(reference or [])
    lines = [
        'offramp_device_images_total{source="early_exit"} 9',
        f'{name}_reference_images{{of="class"}} {total}',
    ]
    for number, count in enumerate(classes):
        lines.append(f'{name}_images_total{{of="class",bin="{number}"}} {count}')
    for number, count in enumerate(reference or []):
        lines.append(f'{name}_reference_ratio{{of="class",bin="{number}"}} {count / total}')
    # At a threshold that nobody measured there is nothing to compare exits with.
    lines.append(f'{name}_images_total{{of="exit",bin="early_exit"}} {sum(classes)}')
    lines.append(f'{name}_reference_ratio{{of="exit",bin="early_exit"}} {exits}')
    lines.append(f'{name}_reference_images{{of="exit"}} 400')
    watched = Watched(Target("device:9102", "http://device:9102/metrics"))
    watched.add(read_page("\n".join(lines) + "\n", at=0.0), 60)
    return watched


def test_drift_is_that_of_the_alert_and_a_fleet_s_is_of_all_its_images() -> None:
    reference = [100, 200, 60, 40]
    counts = ([480, 0, 288, 192], [264, 456, 144, 96], [25, 0, 15, 10], [20, 0, 10, 10])
    one, fine, few, fewer = (seen(each, reference) for each in counts)
    unknown = seen([50, 50, 0, 0], None)
    rows = [device_row(each) for each in (one, fine, few, fewer, unknown)]
    found = rows[0]["drift"]["class"]
    assert found["bits"] == pytest.approx(distance([480, 0, 288, 192], reference))
    assert found["deviations"] == pytest.approx(deviations([480, 0, 288, 192], reference))
    assert [row["drift"].get("class", {}).get("drifted") for row in rows] == [True, False, False, False, None]
    assert all("exit" not in row["drift"] for row in rows)
    column = dict(DEVICE)["drift"]
    assert [column(row) for row in rows] == ["class 0.31", "0.00", "–", "–", "–"]

    # Each of two devices has too few images to say anything by itself.
    both = fleet_drift([few.pages[-1], fewer.pages[-1], unknown.pages[-1]])
    assert both["class"]["images"] == 90 and not both["class"]["drifted"]
    both = fleet_drift([few.pages[-1], fewer.pages[-1], fewer.pages[-1]])
    assert both["class"]["drifted"] and drift(both) == "class 0.31"
    assert fleet_line(rows, both).endswith("drift class 0.31")
    assert "drift" not in fleet_line(rows, fleet_drift([unknown.pages[-1]]))
