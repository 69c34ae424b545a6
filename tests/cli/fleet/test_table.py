"""What a person sees of a fleet."""

from __future__ import annotations

from rich.console import Console

from offramp.cli.fleet.figures import Watched, device_row, server_row
from offramp.cli.fleet.fleet import View
from offramp.cli.fleet.pages import read_page
from offramp.cli.fleet.table import DEVICE, SERVER, fleet_line, render, table
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
