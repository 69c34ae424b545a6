"""Writes the Grafana dashboard: python deploy/grafana/dashboard.py [--check]

The JSON beside it is what Grafana reads, and is never edited by hand; --check says whether it is current.
Queries use the recording rules of deploy/prometheus/rules, so that a dashboard and an alert never disagree.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import (
    BigValueColorMode,
    BigValueGraphMode,
    LegendDisplayMode,
    LegendPlacement,
)
from grafana_foundation_sdk.models.dashboard import DashboardCursorSync, DataSourceRef

OUT = Path(__file__).parent / "dashboards" / "offramp.json"
SOURCE = DataSourceRef(type_val="prometheus", uid="prometheus")
DEVICE = 'job="offramp-device"'
SERVER = 'job="offramp-server"'


@dataclass(frozen=True)
class Query:
    """PromQL and what its series are called; ``{{label}}`` is a label's value."""

    expr: str
    legend: str


@dataclass(frozen=True)
class Panel:
    """A panel, 24 of width to a row. unit: Grafana's name of it. A panel of one figure is a ``stat``."""

    title: str
    why: str
    unit: str
    queries: tuple[Query, ...]
    width: int = 8
    stat: bool = False


def stage(name: str, where: str, title: str) -> Query:
    """The 95th percentile of one stage."""
    selector = f"{name}_bucket{{{where}}}"
    return Query(f"histogram_quantile(0.95, sum by (le) (rate({selector}[5m])))", title)


ROWS: dict[str, tuple[Panel, ...]] = {
    "At a glance": (
        Panel(
            "Exit rate",
            "Images that never left their device, of all.",
            "percentunit",
            (Query(f"job:offramp_device_exits:ratio_rate5m{{{DEVICE}}}", "exit rate"),),
            6,
            True,
        ),
        Panel(
            "Bytes an image",
            "TCP payload sent, over all images; one that exits early counts as 0.",
            "decbytes",
            (Query(f"job:offramp_device_wire_bytes_sent_per_image:ratio_rate5m{{{DEVICE}}}", "bytes"),),
            6,
            True,
        ),
        Panel(
            "Expected accuracy",
            "What the bundles measured on their test images at the thresholds in force, by images.",
            "percentunit",
            (
                Query(
                    "sum(offramp_device_expected_accuracy_ratio * on (job, instance) "
                    "instance:offramp_device_images:rate5m) / sum(instance:offramp_device_images:rate5m)",
                    "accuracy",
                ),
            ),
            6,
            True,
        ),
        Panel(
            "Fallbacks",
            "Unsure images that the server did not answer in time, of all unsure ones. The objective is 1 %.",
            "percentunit",
            (Query(f"job:offramp_device_fallbacks:ratio_rate5m{{{DEVICE}}}", "fallbacks"),),
            6,
            True,
        ),
    ),
    "Accuracy and bytes": (
        Panel(
            "Exit rate, and what the bundle measured",
            "Apart for long: the images are not what the early exit was trained on.",
            "percentunit",
            (
                Query("instance:offramp_device_exits:ratio_rate5m", "{{instance}}"),
                Query("offramp_device_expected_exit_ratio", "{{instance}}, expected"),
            ),
        ),
        Panel(
            "Confidence threshold and expected accuracy",
            "T_c in force, and the accuracy that the bundle measured there.",
            "percentunit",
            (
                Query("offramp_device_threshold_ratio", "{{instance}}, T_c"),
                Query("offramp_device_expected_accuracy_ratio", "{{instance}}, accuracy"),
            ),
        ),
        Panel(
            "Bytes an image against raw and JPEG",
            "JPEG where devices run with --compare-jpeg.",
            "decbytes",
            (
                Query("instance:offramp_device_wire_bytes_sent_per_image:ratio_rate5m", "{{instance}}, wire"),
                Query(
                    "instance:offramp_device_payload_bytes_per_image:ratio_rate5m", "{{instance}}, payload"
                ),
                Query(
                    "sum(rate(offramp_device_jpeg_bytes_total[5m])) "
                    "/ sum(instance:offramp_device_images:rate5m)",
                    "JPEG",
                ),
                Query('max(offramp_device_raw_size_bytes{of="pixels"})', "pixels"),
                Query('max(offramp_device_raw_size_bytes{of="activation"})', "raw activation"),
            ),
        ),
        Panel(
            "Saved by coding, and against all raw activations",
            "Of the bytes of the activations sent; of those of all images.",
            "percentunit",
            (
                Query("instance:offramp_device_coding_saving:ratio_rate5m", "{{instance}}, coding"),
                Query("instance:offramp_device_raw_saving:ratio_rate5m", "{{instance}}, with early exit"),
            ),
        ),
        Panel(
            "Audits: agreement with the server",
            "Of images that exited early, over a day, with the 95 % interval of all, beside the bundle's own "
            "on its test images. Not accuracy: the server can be wrong too.",
            "percentunit",
            (
                Query("instance:offramp_device_audits_agree:ratio_increase1d", "{{instance}}"),
                Query("instance:offramp_device_agreement_expected:avg1d", "{{instance}}, expected"),
                Query(f"job:offramp_device_audits_agree:ratio_increase1d{{{DEVICE}}}", "all"),
                Query(f"job:offramp_device_audits_agree:low1d{{{DEVICE}}}", "all, at least"),
                Query(f"job:offramp_device_audits_agree:high1d{{{DEVICE}}}", "all, at most"),
            ),
        ),
        Panel(
            "Audits a day, and lost ones",
            "Answered audits of each device over a day; the share that got no answer, which biases the rest.",
            "short",
            (
                Query("instance:offramp_device_audits:increase1d", "{{instance}}"),
                Query("instance:offramp_device_audits_lost:ratio_increase1d", "{{instance}}, share lost"),
            ),
        ),
        Panel(
            "Drift: distance from the test images",
            "Of a day's exits, confidences and classes as the early exit says them: 0 is the same, 1 bit has "
            "nothing in common. Beyond 0.03 and beyond chance there is an alert.",
            "short",
            (
                Query("instance:offramp_device_drift:distance1d", "{{instance}}, {{of}}"),
                Query(f"job:offramp_device_drift:distance1d{{{DEVICE}}}", "all, {{of}}"),
            ),
        ),
        Panel(
            "Bytes a day",
            "TCP payload of each device's connection, both directions, over the last 24 hours.",
            "decbytes",
            (Query("instance:offramp_device_wire_bytes:increase1d", "{{instance}}"),),
        ),
        Panel(
            "Images a second, by who answered",
            "early_exit and fallback are the device's own answers.",
            "reqps",
            (Query("sum by (source) (rate(offramp_device_images_total[5m]))", "{{source}}"),),
        ),
    ),
    "Latency": (
        Panel(
            "On the device, 95th percentile",
            "Of one image in each stage; the round trip is from handing a frame to the link to its reply.",
            "s",
            (
                Query(
                    "histogram_quantile(0.95, sum by (le, stage) "
                    "(rate(offramp_device_stage_seconds_bucket[5m])))",
                    "{{stage}}",
                ),
                stage("offramp_device_round_trip_seconds", DEVICE, "round trip"),
            ),
            12,
        ),
        Panel(
            "On the server, 95th percentile",
            "Of one frame decoded, one frame's wait for the tail, one run of the tail over a batch.",
            "s",
            tuple(
                stage(f"offramp_server_{name}_seconds", SERVER, name)
                for name in ("decode", "queue", "inference")
            ),
            12,
        ),
    ),
    "Server": (
        Panel(
            "Queue, of its limit",
            "Frames that wait for the tail; above 1 they are refused.",
            "percentunit",
            (Query("instance:offramp_server_queue:ratio", "{{instance}}"),),
            6,
        ),
        Panel(
            "Activations in a batch",
            "Mean over five minutes, and the largest that a batch may be.",
            "short",
            (
                Query(
                    "sum by (instance) (rate(offramp_server_batch_size_sum[5m])) "
                    "/ sum by (instance) (rate(offramp_server_batch_size_count[5m]))",
                    "{{instance}}",
                ),
                Query("max by (instance) (offramp_server_batch_limit)", "{{instance}}, limit"),
            ),
            6,
        ),
        Panel(
            "Frames a second, by result",
            "Refused ones are answered by the device's early exit.",
            "reqps",
            (Query("sum by (result) (rate(offramp_server_frames_total[5m]))", "{{result}}"),),
            6,
        ),
        Panel(
            "Streams",
            "One for each connected device.",
            "short",
            (Query("offramp_server_open_streams", "{{instance}}"),),
            6,
        ),
    ),
}


def targets(panel: Panel) -> list[Any]:
    """A panel's queries."""
    return [
        prometheus.Dataquery().ref_id(chr(65 + index)).expr(query.expr).legend_format(query.legend)
        for index, query in enumerate(panel.queries)
    ]


def build() -> str:
    """The dashboard's JSON."""
    made = (
        dashboard.Dashboard("Offramp")
        .uid("offramp")
        .tags(["offramp"])
        .time("now-1h", "now")
        .refresh("15s")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .readonly()
    )
    legend = (
        common.VizLegendOptions()
        .show_legend(True)
        .display_mode(LegendDisplayMode.LIST)
        .placement(LegendPlacement.BOTTOM)
    )
    for title, panels in ROWS.items():
        made.with_row(dashboard.Row(title))
        for panel in panels:
            view: Any
            if panel.stat:
                view = stat.Panel().graph_mode(BigValueGraphMode.AREA).color_mode(BigValueColorMode.VALUE)
            else:
                view = timeseries.Panel().fill_opacity(10).legend(legend)
            view.title(panel.title).description(panel.why).unit(panel.unit).datasource(SOURCE)
            made.with_panel(view.targets(targets(panel)).span(panel.width).height(4 if panel.stat else 8))
    text = JSONEncoder(sort_keys=True, indent=1).encode(made.build())
    return text + "\n"


def main() -> int:
    """Write it, or check it."""
    text = build()
    if "--check" in sys.argv[1:]:
        if not OUT.is_file() or OUT.read_text() != text:
            print(f"{OUT} is not current: run {Path(__file__).name}", file=sys.stderr)
            return 1
        return 0
    OUT.write_text(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
