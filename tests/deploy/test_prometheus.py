"""The shipped Prometheus configuration, rules and dashboard, on a real Prometheus, against a real fleet."""

from __future__ import annotations

import json
import math
import re
import signal
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.deploy.prometheus import DEPLOY, Prometheus, require
from tests.processes import WAIT, Program, Server, processes, until

ROOT = DEPLOY.parent
BUNDLE = ROOT / "models" / "digits-mobilenetv2-exit12"
IMAGES = sorted((ROOT / "examples" / "digits").glob("*.png"))
RATE = 40
INSTANCES = "count(offramp_device_images_total{source='early_exit'} == 0)"


@dataclass
class Fleet:
    """A server and two devices that have answered all their images, and a Prometheus that has seen it."""

    prometheus: Prometheus
    server: Server
    devices: dict[str, Program]
    """By instance, as Prometheus calls them."""
    pages: dict[str, str]
    """Metrics pages as text, by instance."""

    @property
    def summaries(self) -> dict[str, dict[str, Any]]:
        """What each device says itself."""
        return {instance: device.summary for instance, device in self.devices.items()}


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Prometheus sees every device at zero before the first image comes: its first scrape misses nothing."""
    require("prometheus", "promtool")
    with processes(BUNDLE) as run:
        server = run.server("--workers", 1, "--max-batch", 8, "--max-wait-ms", 1)
        devices = {}
        for threshold in (0.7, 0.99):
            device = run.start_device(
                *("--server", server.address, "--threshold", threshold, "--rate", RATE, "--compare-jpeg", 90),
                *("--metrics-port", 0, "--hold", "--json", "-"),
                stdin=subprocess.PIPE,
            )
            devices[device.wait_for(r"metrics on (\S+)")[1]] = device
        address = server.metrics_url.removeprefix("http://").removesuffix("/metrics")
        prometheus = Prometheus(
            run, tmp_path_factory.mktemp("prometheus"), {"server": [address], "device": list(devices)}
        )
        until(
            lambda: prometheus.query(INSTANCES) == {"": 2}, "scrapes of both devices before their first image"
        )
        for device in devices.values():
            assert device.process.stdin is not None
            device.process.stdin.write("".join(f"{image}\n" for image in IMAGES))
            device.process.stdin.close()
        for instance, device in devices.items():
            until(lambda: device.stdout and "summary" in device.stdout[-1], f"the summary of {instance}")  # noqa: B023
        images = {instance: device.summary["images"] for instance, device in devices.items()}
        until(
            lambda: prometheus.query("sum by (instance) (offramp_device_images_total)") == images,
            "a scrape after the last image",
        )
        # Two more evaluations of the rules, each after a scrape.
        seen = prometheus.get("query", query="max(timestamp(offramp_device_threshold_ratio))")
        last = float(seen["result"][0]["value"][1])
        until(
            lambda: prometheus.query(
                f"min(timestamp(instance:offramp_device_raw_saving:ratio_rate5m)) > {last + 2}"
            ),
            "the rules to be evaluated",
        )
        pages = {}
        for instance in [address, *devices]:
            with urllib.request.urlopen(f"http://{instance}/metrics", timeout=WAIT) as page:
                pages[instance] = page.read().decode()
        yield Fleet(prometheus, server, devices, pages)
        for device in devices.values():
            device.send(signal.SIGTERM)
            assert device.wait() == 0
        assert server.drain() == 0


def test_what_prometheus_says_is_what_the_devices_say(fleet: Fleet) -> None:
    """Every ratio is of series with the same scrapes, from zero on: it is the summary's to rounding."""
    summaries = fleet.summaries
    assert all(s["images"] == len(IMAGES) and s["fallback"] == 0 < s["server"] for s in summaries.values())
    assert len({s["server"] for s in summaries.values()}) == 2
    raw = 32 * 16 * 16
    expected: dict[str, Callable[[dict[str, Any]], float]] = {
        "instance:offramp_device_exits:ratio_rate5m": lambda s: s["exit_rate"],
        "instance:offramp_device_wire_bytes_sent_per_image:ratio_rate5m": (
            lambda s: s["wire_bytes"]["sent"] / s["images"]
        ),
        "instance:offramp_device_payload_bytes_per_image:ratio_rate5m": lambda s: s["payload_bytes_mean"],
        "instance:offramp_device_coding_saving:ratio_rate5m": (
            lambda s: 1 - s["payload_bytes"] / s["raw_activation_bytes"]
        ),
        "instance:offramp_device_raw_saving:ratio_rate5m": lambda s: 1 - s["payload_bytes_mean"] / raw,
        "instance:offramp_device_pixel_saving:ratio_rate5m": (
            lambda s: 1 - s["wire_bytes"]["sent"] / s["images"] / (3 * 32 * 32)
        ),
    }
    for rule, of in expected.items():
        found = fleet.prometheus.query(rule)
        assert found == pytest.approx({instance: of(s) for instance, s in summaries.items()}, rel=1e-6), rule


def test_the_fleets_figures_are_those_of_its_devices_weighed_by_images(fleet: Fleet) -> None:
    """The devices' first and last scrapes are not at the same moments: a second in all that the run took."""
    summaries = fleet.summaries.values()
    images = sum(s["images"] for s in summaries)
    resolution = 2 / (len(IMAGES) / RATE)
    exits = sum(s["early_exit"] for s in summaries) / images
    sent = sum(s["wire_bytes"]["sent"] for s in summaries) / images
    query = fleet.prometheus.query
    assert query("job:offramp_device_exits:ratio_rate5m")[""] == pytest.approx(exits, rel=resolution)
    assert query("job:offramp_device_wire_bytes_sent_per_image:ratio_rate5m")[""] == pytest.approx(
        sent, rel=resolution
    )
    assert query("job:offramp_device_fallbacks:ratio_rate5m") == {"": 0}


def test_counters_are_the_summaries_to_the_byte(fleet: Fleet) -> None:
    query = fleet.prometheus.query
    for instance, summary in fleet.summaries.items():
        for direction in ("sent", "received"):
            found = query(
                f'offramp_device_wire_bytes_total{{instance="{instance}", direction="{direction}"}}'
            )
            assert found == {instance: summary["wire_bytes"][direction]}
    answered = sum(s["server"] for s in fleet.summaries.values())
    assert list(query('offramp_server_frames_total{result="answered"}').values()) == [answered]


def test_every_rule_is_evaluated_and_no_alert_fires(fleet: Fleet) -> None:
    rules = [rule for group in fleet.prometheus.get("rules")["groups"] for rule in group["rules"]]
    assert {rule["name"] for rule in rules if rule["health"] != "ok"} == set()
    alerts = [rule for rule in rules if rule["type"] == "alerting"]
    # The exit rate of the first minute is that of the day.
    assert alerts and {rule["name"] for rule in alerts if rule["state"] != "inactive"} == set()
    targets = fleet.prometheus.get("targets")["activeTargets"]
    assert [(target["health"], target["lastError"]) for target in targets] == [("up", "")] * 3


def dashboard_queries() -> list[tuple[str, str]]:
    document = json.loads((DEPLOY / "grafana" / "dashboards" / "offramp.json").read_text())
    return [
        (panel["title"], target["expr"])
        for panel in document["panels"]
        for target in panel.get("targets") or []
    ]


def test_every_query_of_the_dashboard_has_an_answer(fleet: Fleet) -> None:
    queries = dashboard_queries()
    assert len(queries) > 20
    empty = {}
    for title, expression in queries:
        if title.startswith("Audits"):
            continue  # tests/deploy/test_dark_stream.py
        values = [
            float(series["value"][1]) for series in fleet.prometheus.get("query", query=expression)["result"]
        ]
        if not values or not all(math.isfinite(value) for value in values):
            empty[f"{title}: {expression}"] = values
    assert empty == {}


def test_promtool_likes_the_metrics_of_both_programs(fleet: Fleet) -> None:
    for instance, page in fleet.pages.items():
        checked = subprocess.run(
            ["promtool", "check", "metrics"], input=page, text=True, capture_output=True, timeout=WAIT
        )
        assert (checked.returncode, checked.stdout + checked.stderr) == (0, ""), instance


def test_every_alert_has_a_unit_test_and_a_place_in_the_docs() -> None:
    alerts = set(re.findall(r"alert: (\w+)", (DEPLOY / "prometheus" / "rules" / "alerts.yml").read_text()))
    tests = "".join(path.read_text() for path in (DEPLOY / "prometheus" / "tests").glob("*.yml"))
    fire = set(re.findall(r"alertname: (\w+)\n\s+exp_alerts", tests))
    assert fire == alerts and alerts
    docs = (ROOT / "docs" / "how-to" / "watch-a-fleet.md").read_text()
    assert {name for name in alerts if f"`{name}`" not in docs} == set()


def test_every_recorded_series_is_asked_for_by_a_unit_test_a_panel_or_an_alert() -> None:
    folder = DEPLOY / "prometheus"
    recorded = re.findall(r"record: (\S+)", (folder / "rules" / "recording.yml").read_text())
    texts = [(folder / "rules" / "alerts.yml").read_text(), *(text for _, text in dashboard_queries())]
    texts += [path.read_text() for path in (folder / "tests").glob("*.yml")]
    texts.append((folder / "rules" / "recording.yml").read_text().replace("record: ", "record:"))
    assert [name for name in recorded if not any(re.search(rf"(?<!record:){name}\b", t) for t in texts)] == []
