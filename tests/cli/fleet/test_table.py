"""What a person sees of a fleet."""

from __future__ import annotations

from rich.console import Console

from offramp.cli.fleet.figures import Watched, device_row, server_row
from offramp.cli.fleet.pages import read_page
from offramp.cli.fleet.table import SERVER, fleet_line, table
from offramp.cli.fleet.targets import Target

GOOD = 'offramp_server_frames_total{result="answered"} 3\n'


def test_a_narrow_terminal_hides_the_least_important_first() -> None:
    page = read_page(GOOD + 'offramp_bundle_info{name="a",digest="0"} 1\n', 0.0)
    watched = Watched(Target("a:1", "http://a:1/metrics"))
    watched.add(page, 30)
    rows = [server_row(watched)]
    shown = {}
    for width in (160, 60):
        found = table("", rows, SERVER, Console(width=width))
        shown[width] = [str(column.header) for column in found.columns]
    assert shown[160] == ["target", *(name for name, _ in SERVER)]
    assert "bundle" not in shown[60] and {"queue", "frames/s", "rejected"} <= set(shown[60])


def test_bytes_that_a_device_cannot_count_are_unknown_and_not_0() -> None:
    page = read_page('offramp_device_images_total{source="server"} 3\n', at=0.0)
    watched = Watched(Target("device:9102", "http://device:9102/metrics"))
    watched.add(page, 60)
    row = device_row(watched)
    assert {row[name] for name in row if name.startswith("wire_bytes")} == {None}
    assert "unknown wire B/s" in fleet_line([row])
