"""The live page in a real Chromium, of a real device and a real server."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from offramp.common.bundle.load import Bundle
from tests.browser import CHROMIUM, Browser, browser
from tests.processes import WAIT, Processes, Program, Server, processes, scrape, until

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="needs a chromium"),
    pytest.mark.timeout(600),
]

HOSTILE = "<img src=x onerror=console.error(1)>&amp;\"'.png"
LIVE = "document.querySelector('#news')?.textContent === 'live'"
T_C = "offramp_device_threshold_ratio"
AXE = Path(__file__).parent / "axe"


class Fleet:
    """A server, and a device that has answered its images and holds."""

    def __init__(self, run: Processes, images: Path) -> None:
        self.server: Server = run.server("--page")
        flags = ("--threshold", "0.5", "--audit", "1", "--metrics-port", "0", "--page", "--hold", "--quiet")
        self.device: Program = run.start_device("--server", self.server.address, *flags, images)
        self.page = self.device.wait_for(r"page on (\S+)")[1]
        until(lambda: self.device.stdout, "the device's summary")

    def metrics(self) -> dict[str, float]:
        return scrape(f"{self.page}metrics")


@pytest.fixture(scope="module")
def fleet(toy_bundle: Bundle, toy_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    images = tmp_path_factory.mktemp("named") / "images"
    shutil.copytree(toy_images, images)
    first = min(images.glob("*.png"))
    first.rename(images / f"zz{HOSTILE}")  # the last one in order, so that the page shows it
    with processes(toy_bundle.path) as run:
        yield Fleet(run, images)


@pytest.fixture(scope="module")
def tab() -> Iterator[Browser]:
    with browser() as opened:
        yield opened


def shown(tab: Browser) -> dict[str, float]:
    """The table of all metrics on the page."""
    tab.run("document.querySelector('#all').open = true")
    tab.until("document.querySelector('#metrics').rows.length > 20")
    rows = tab.run(
        "[...document.querySelector('#metrics').rows].map((row) => [...row.cells].map((c) => c.textContent))"
    )
    found = {}
    for name, value in rows:
        labels = ",".join(sorted(f"{key}={said}" for key, said in re.findall(r'(\w+)="([^"]*)"', name)))
        if value != "unknown":
            found[name.partition("{")[0] + (f"{{{labels}}}" if labels else "")] = float(value)
    return found


def test_its_numbers_are_those_of_the_metrics(fleet: Fleet, tab: Browser) -> None:
    for url, figure in (
        (fleet.page, "offramp_device_images_total{source=server}"),
        (fleet.server.metrics_url, ""),
    ):
        tab.open(url.removesuffix("metrics"))
        tab.until(LIVE)

        def equal(url: str = url) -> bool:
            page = {
                name: value
                for name, value in scrape(f"{url.removesuffix('metrics')}metrics").items()
                if value == value
            }
            return shown(tab) == page

        until(equal, "the page and /metrics to say the same")
        if figure:
            metrics = fleet.metrics()
            cells = tab.run(
                "[...document.querySelector('#sources').rows].map((row) => row.cells[1].textContent)"
            )
            names = ("early_exit", "server", "fallback")
            assert [int(cell) for cell in cells] == [
                metrics.get(f"offramp_device_images_total{{source={name}}}", 0) for name in names
            ]
            assert metrics[figure] > 0
            agrees, differs, lost = (
                metrics[f"offramp_device_audits_total{{result={result}}}"]
                for result in ("agrees", "differs", "lost")
            )
            said = tab.run("[...document.querySelector('#checks').children].map((pair) => pair.textContent)")
            assert agrees + differs + lost > 0
            assert said[0].startswith(f"audits: the server agrees{agrees:.0f} of {agrees + differs:.0f}")
            assert said[2] == f"audits without an answer{lost:.0f}"
    assert tab.complaints == []


def test_a_hostile_name_is_text(fleet: Fleet, tab: Browser) -> None:
    tab.open(fleet.page)
    tab.until(LIVE)
    assert tab.run("document.querySelector('#recent').rows[0].cells[0].textContent") == f"zz{HOSTILE}"
    assert tab.run("document.querySelectorAll('img').length") == 0
    assert tab.complaints == []


def test_the_slider_sets_t_c_by_keyboard(fleet: Fleet, tab: Browser) -> None:
    tab.open(fleet.page)
    tab.until(f"{LIVE} && !document.querySelector('#slider').disabled")
    tab.run("document.querySelector('#pause').focus()")
    tab.key("Tab")
    assert tab.run("document.activeElement.id") == "slider"
    tab.key("Home")
    until(lambda: fleet.metrics()[T_C] == 0, "T_c to be 0")
    tab.until("document.querySelector('#threshold-now').textContent === '0'")
    tab.key("ArrowRight")
    until(lambda: fleet.metrics()[T_C] == 0.005, "T_c to be 0.005")
    tab.until("document.querySelector('#threshold-status').textContent === 'Set to 0.005.'")
    fleet.device.wait_for("T_c set from 0 to 0.005 on the page, by 127.0.0.1")
    tab.run("document.querySelector('#number').value = '0.875'; document.querySelector('#number').focus()")
    tab.key("Enter")
    until(lambda: fleet.metrics()[T_C] == 0.875, "T_c to be 0.875")
    tab.until("document.querySelector('#slider').value === '0.875'")
    assert tab.complaints == []


def test_it_can_be_paused(fleet: Fleet, tab: Browser) -> None:
    tab.open(fleet.page)
    tab.until(LIVE)
    tab.run("document.querySelector('#pause').focus()")
    tab.key("Enter")
    tab.until("document.querySelector('#news').textContent === 'paused'")
    assert tab.run("document.querySelector('#pause').getAttribute('aria-pressed')") == "true"
    tab.key("Enter")
    tab.until(LIVE)


@pytest.mark.parametrize("width", [390, 320, 1280])
def test_nothing_sticks_out(fleet: Fleet, tab: Browser, width: int) -> None:
    for url in (fleet.page, fleet.server.metrics_url.removesuffix("metrics")):
        tab.open(url, width=width)
        tab.until(LIVE)
        tab.run("document.querySelector('#all').open = true")
        tab.until("document.querySelector('#metrics').rows.length > 20")
        assert tab.run("document.documentElement.scrollWidth") == width
    assert tab.complaints == []


def test_it_is_accessible(fleet: Fleet, tab: Browser, tmp_path: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("needs npm")
    shutil.copytree(AXE, tmp_path / "axe")
    command = [npm, "ci", "--prefix", str(tmp_path / "axe"), "--no-audit", "--no-fund", "--ignore-scripts"]
    if subprocess.run(command, capture_output=True, timeout=WAIT, check=False).returncode:
        pytest.skip("axe-core cannot be had from the registry")
    source = (tmp_path / "axe" / "node_modules" / "axe-core" / "axe.min.js").read_text()
    for url in (fleet.page, fleet.server.metrics_url.removesuffix("metrics")):
        for dark in (False, True):
            tab.open(url, dark=dark)
            tab.until(LIVE)
            tab.run("document.querySelector('#all').open = true")
            tab.until("document.querySelector('#metrics').rows.length > 20")
            tab.run(f"{source}; undefined")
            found = tab.run(
                "axe.run().then((all) => all.violations.map("
                "(one) => [one.id, one.help, one.nodes.map((node) => node.html)]))"
            )
            assert found == [], f"{url} {'dark' if dark else 'light'}"


def test_another_site_changes_nothing(fleet: Fleet, tab: Browser) -> None:
    tab.open("about:blank")
    before = fleet.metrics()[T_C]
    for kind in ("text/plain", "application/json"):
        mode = "no-cors" if kind == "text/plain" else "cors"
        tab.run(
            f"fetch('{fleet.page}threshold', {{method: 'POST', mode: '{mode}', "
            f"headers: {{'Content-Type': '{kind}'}},"
            " body: '{\"threshold\": 0.123}'}).catch(() => 'refused')"
        )
    said = tab.run(
        f"new Promise((done) => {{ const s = new EventSource('{fleet.page}events');"
        " s.onmessage = () => done('read'); s.onerror = () => done('refused'); })"
    )
    assert said == "refused"
    assert fleet.metrics()[T_C] == before
    tab.complaints.clear()
