"""What a person sees of a fleet."""

from __future__ import annotations

import pytest
from rich.console import Console

from offramp.cli.fleet.drift import drift, fleet_drift
from offramp.cli.fleet.figures import Watched, device_row, server_row
from offramp.cli.fleet.fleet import View
from offramp.cli.fleet.pages import read_page
from offramp.cli.fleet.table import DEVICE, SERVER, fleet_line, render, table
from offramp.cli.fleet.targets import Target
from offramp.common.drift import deviations, distance

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


def test_a_server_with_others_behind_it_says_who_answered() -> None:
    pages = [
        f'{GOOD}offramp_server_answers_total{{by="exit"}} {6 * n}\n'
        f'offramp_server_answers_total{{by="upstream"}} {3 * n}\n'
        f'offramp_server_answers_total{{by="fallback"}} {n}\n'
        "offramp_server_upstream_connected 1\n"
        for n in (0, 2)
    ]
    gateway, plain = (Watched(Target(name, f"http://{name}")) for name in ("gateway", "server"))
    for second, page in enumerate(pages):
        gateway.add(read_page(page, float(second)), 30)
        plain.add(read_page(GOOD, float(second)), 30)
    rows = [server_row(gateway), server_row(plain)]
    assert rows[0]["upstream"]["answered"] == {"exit": 12, "upstream": 6, "fallback": 2}
    assert (rows[0]["upstream"]["exit_rate"], rows[0]["upstream"]["fallback_share"]) == (0.6, 0.25)
    assert "upstream" not in rows[1]

    found = Console(width=200, record=True)
    found.print(render(View([], rows, [], None), found))
    text = found.export_text()
    assert "upstream" in text and "60.0%" in text
    alone = Console(width=200, record=True)
    alone.print(render(View([], rows[1:], [], None), alone))
    assert "upstream" not in alone.export_text()


def test_programs_of_a_chain_say_what_each_part_answered() -> None:
    def pages(n: int) -> tuple[str, str]:
        answers = "offramp_device_answers_total"
        device = (
            f'offramp_device_images_total{{source="server"}} {7 * n}\n'
            f'{answers}{{part="1",cut_short="false"}} {4 * n}\n'
            f'{answers}{{part="2",cut_short="false"}} {2 * n}\n{answers}{{part="2",cut_short="true"}} {n}\n'
            f'{answers}{{part="3",cut_short="false"}} {5 * n}\n'
            f'offramp_device_server_answers_total{{server="barn:1"}} {6 * n}\n'
            f'offramp_device_server_answers_total{{server="cloud:1"}} {n}\n'
        )
        name = "offramp_server_part_answers_total"
        return device, f'{GOOD}{name}{{part="2"}} {2 * n}\n{name}{{part="3"}} {3 * n}\n'

    watched = [Watched(Target(name, f"http://{name}")) for name in ("device", "cloud")]
    for second in (0, 1):
        for each, page in zip(watched, pages(10 * second), strict=True):
            each.add(read_page(page, float(second)), 30)
    device, cloud = device_row(watched[0]), server_row(watched[1])
    assert (device["parts"], device["cut_short"]) == ({"1": 40, "2": 30, "3": 50}, 10)
    assert device["servers"] == {"barn:1": 60, "cloud:1": 10}
    assert cloud["parts"] == {"2": 20, "3": 30} and "upstream" not in cloud
    shown = Console(width=220, record=True)
    shown.print(render(View([device], [cloud], [], None), shown))
    text = shown.export_text()
    assert "by part" in text and "40 / 30 / 50" in text and "20 / 30" in text


def test_bytes_that_a_device_cannot_count_are_unknown_and_not_0() -> None:
    page = read_page('offramp_device_images_total{source="server"} 3\n', at=0.0)
    watched = Watched(Target("device:9102", "http://device:9102/metrics"))
    watched.add(page, 60)
    row = device_row(watched)
    assert {row[name] for name in row if name.startswith("wire_bytes")} == {None}
    assert "unknown wire B/s" in fleet_line([row])


def audited(agrees: int, differs: int) -> Watched:
    """A device with these audits since it started."""
    page = read_page(
        f'offramp_device_images_total{{source="early_exit"}} 500\n'
        f'offramp_device_audits_total{{result="agrees"}} {agrees}\n'
        f'offramp_device_audits_total{{result="differs"}} {differs}\n'
        'offramp_device_audits_total{result="lost"} 7\n'
        "offramp_device_expected_agreement_ratio NaN\n",
        at=0.0,
    )
    watched = Watched(Target("device:9102", "http://device:9102/metrics"))
    watched.add(page, 60)
    return watched


def test_audits_have_an_interval_and_a_fleet_adds_them_up() -> None:
    one, other, none = (device_row(audited(*counts)) for counts in ((27, 3), (117, 13), (0, 0)))
    column = dict(DEVICE)["audits agree"]
    assert [column(row) for row in (one, other, none)] == ["90.0% (74–97) of 30", "90.0% (84–94) of 130", "–"]
    assert (one["audits_lost"], one["audits_expected"]) == (7, None)
    assert fleet_line([one, other, none]).endswith("audits agree 90.0% (84–94) of 160")
    assert "audits" not in fleet_line([none])


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
