"""Draws the dashboard's panels from a real Prometheus into docs/dashboard.png and .svg, in two minutes:

python -m tests.deploy.draw_dashboard

Two devices replay the example images at the thresholds of compose.yaml, with audits. A quarter of the time
the server is stopped. Prometheus and the queries are those that are shipped; the drawing is matplotlib's, not
Grafana's.
"""

from __future__ import annotations

import json
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from tests.deploy.prometheus import DEPLOY, Prometheus
from tests.processes import processes

SECONDS = 60
BUNDLE = DEPLOY.parent / "models" / "digits-mobilenetv2-exit12"
IMAGES = DEPLOY.parent / "examples" / "digits"
OUT = DEPLOY.parent / "docs" / "dashboard"


def gather(prometheus: Prometheus, start: float, names: dict[str, str]) -> list[dict[str, Any]]:
    """Each panel with its series: label, seconds, values."""
    document = json.loads((DEPLOY / "grafana" / "dashboards" / "offramp.json").read_text())
    panels = []
    for panel in document["panels"]:
        series = []
        for target in panel.get("targets") or []:
            found = prometheus.get("query_range", query=target["expr"], start=start, end=time.time(), step=1)[
                "result"
            ]
            for each in found:
                labels = each["metric"]
                label = target["legendFormat"]
                for key, value in labels.items():
                    label = label.replace("{{" + key + "}}", names.get(value, value))
                points = [(float(t) - start, float(v)) for t, v in each["values"] if v != "NaN"]
                series.append((label, *zip(*points, strict=True)) if points else (label, (), ()))
        if series:
            panels.append(
                {"title": panel["title"], "unit": panel["fieldConfig"]["defaults"]["unit"], "series": series}
            )
    return panels


def draw(panels: list[dict[str, Any]]) -> None:
    """A grid of all panels."""
    columns = 4
    rows = -(-len(panels) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(5 * columns, 3 * rows), constrained_layout=True)
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    for axis, panel in zip(axes.flat, panels, strict=False):
        scale = 100 if panel["unit"] == "percentunit" else 1
        for label, seconds, values in panel["series"]:
            axis.plot(seconds, [scale * value for value in values], label=label, linewidth=1.2)
        unit = {"percentunit": "%", "decbytes": "bytes", "s": "s", "reqps": "1/s", "short": ""}[panel["unit"]]
        axis.set_title(panel["title"], fontsize=9)
        axis.set_ylabel(unit, fontsize=8)
        if panel["unit"] == "s" or "against raw" in panel["title"]:
            axis.set_yscale("log")
        else:
            axis.set_ylim(bottom=0)
        axis.tick_params(labelsize=7)
        axis.legend(fontsize=6)
    for suffix in ("png", "svg"):
        figure.savefig(OUT.with_suffix(f".{suffix}"), dpi=80)


def main() -> None:
    """Run the fleet, ask, draw."""
    with processes(BUNDLE) as run, tempfile.TemporaryDirectory() as folder:
        server = run.server("--workers", 1, "--max-batch", 8, "--max-wait-ms", 1)
        names = {server.metrics_url.removeprefix("http://").removesuffix("/metrics"): "server"}
        devices = []
        for name, threshold in (("frugal", 0.59), ("careful", 0.99)):
            device = run.start_device(
                *("--server", server.address, "--threshold", threshold, "--rate", 20, "--repeat", "--quiet"),
                *("--compare-jpeg", 90, "--audit", 0.2, "--metrics-port", 0, IMAGES),
            )
            names[device.wait_for(r"metrics on (\S+)")[1]] = name
            devices.append(device)
        addresses = list(names)
        prometheus = Prometheus(run, Path(folder), {"server": addresses[:1], "device": addresses[1:]})
        start = time.time()
        time.sleep(SECONDS / 2)
        server.send(signal.SIGSTOP)
        time.sleep(SECONDS / 4)
        server.send(signal.SIGCONT)
        time.sleep(SECONDS / 4)
        panels = gather(prometheus, start + 5, names)
        for device in devices:
            device.send(signal.SIGTERM)
            device.wait()
        server.drain()
    draw(panels)


if __name__ == "__main__":
    main()
