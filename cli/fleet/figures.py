"""Figures of the window: the newest page of a target less the oldest that is still in it.

What has not happened in the window has no figure.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from offramp.cli.fleet.drift import device_drift
from offramp.cli.fleet.pages import Page
from offramp.cli.fleet.targets import Target


@dataclass
class Watched:
    """One target, its pages in the window, and what was wrong at the last try."""

    target: Target
    pages: deque[Page] = field(default_factory=deque)
    error: str | None = "not read yet"

    def add(self, page: Page, window: float) -> None:
        """Take the newest page, drop what has left the window. A program that was restarted starts again."""
        if self.pages and _went_back(self.pages[-1], page):
            self.pages.clear()
        self.pages.append(page)
        while len(self.pages) > 2 and self.pages[1].at <= page.at - window:
            self.pages.popleft()
        self.error = None

    def change(self, name: str, **labels: str) -> float:
        """How much a counter has grown in the window."""
        return self.pages[-1].get(name, **labels) - self.pages[0].get(name, **labels)

    @property
    def seconds(self) -> float:
        """What the window really spans."""
        return self.pages[-1].at - self.pages[0].at

    def rate(self, name: str, **labels: str) -> float | None:
        """A counter's growth, per second."""
        return self.change(name, **labels) / self.seconds if self.seconds > 0 else None

    def mean(self, histogram: str, **labels: str) -> float | None:
        """The mean of what a histogram observed in the window."""
        count = self.change(f"{histogram}_count", **labels)
        return self.change(f"{histogram}_sum", **labels) / count if count > 0 else None

    def quantile(self, histogram: str, q: float) -> float | None:
        """As PromQL's histogram_quantile: linear within a bucket, the last finite bound where it is above."""
        buckets = []
        for name, labels in self.pages[-1].values:
            if name == f"{histogram}_bucket":
                try:
                    bound = float(dict(labels).get("le", "nan"))
                except ValueError:
                    continue
                if not math.isnan(bound):
                    buckets.append((bound, self.change(name, **dict(labels))))
        buckets.sort()
        if not buckets or not math.isinf(buckets[-1][0]) or buckets[-1][1] <= 0:
            return None
        rank, below, start = q * buckets[-1][1], 0.0, 0.0
        for bound, count in buckets:
            if count >= rank:
                if math.isinf(bound):
                    return start
                return start + (bound - start) * ((rank - below) / (count - below) if count > below else 1.0)
            below, start = count, bound
        return start


def _went_back(old: Page, new: Page) -> bool:
    counters = ("_total", "_count", "_bucket")
    return any(
        value > new.values.get(key, 0.0) for key, value in old.values.items() if key[0].endswith(counters)
    )


def ratio(part: float, whole: float) -> float | None:
    """None where there is nothing to share."""
    return part / whole if whole > 0 else None


Z = 1.96
"""Of a 95 % interval."""


def wilson(successes: float, trials: float, z: float = Z) -> tuple[float, float] | None:
    """Wilson's interval of a share, 95 % or as wide as ``z`` says; None of no trials.

    Here scipy would be installed on devices for these four lines.
    """
    if trials <= 0:
        return None
    share, spread = successes / trials, z * z / trials
    half = z * math.sqrt((share * (1 - share) + spread / 4) / trials)
    return (share + spread / 2 - half) / (1 + spread), (share + spread / 2 + half) / (1 + spread)


def device_row(watched: Watched) -> dict[str, Any]:
    """The figures of a device. Rates are per second, bytes of the wire are TCP payload."""
    images = {
        source: watched.change("offramp_device_images_total", source=source)
        for source in ("early_exit", "server", "fallback")
    }
    total = sum(images.values())
    # Since the device started: a window has few.
    page = watched.pages[-1]
    audits = {
        result: page.get("offramp_device_audits_total", result=result)
        for result in ("agrees", "differs", "lost")
    }
    compared = audits["agrees"] + audits["differs"]
    raw = watched.change("offramp_device_raw_activation_bytes_total")
    payload = watched.change("offramp_device_payload_bytes_total")
    # Pictures have no activation that they would save anything of.
    saved = raw - (payload - watched.change("offramp_device_picture_bytes_total"))
    # A device that cannot count its bytes exports none: they are unknown, not 0.
    wire = "offramp_device_wire_bytes_total"
    counted = all(any(name == wire for name, _ in seen.values) for seen in watched.pages)
    sent = watched.change(wire, direction="sent") if counted else None
    trip = "offramp_device_round_trip_seconds"
    return {
        "target": watched.target.name,
        "bundles": page.labels("offramp_bundle_info", "name"),
        "seconds": watched.seconds,
        "threshold": page.get("offramp_device_threshold_ratio"),
        "connected": page.get("offramp_device_connected") == 1,
        "breaker_open": page.get("offramp_device_breaker_open") == 1,
        "images": total,
        "images_per_second": total / watched.seconds if watched.seconds > 0 else None,
        "exit_rate": ratio(images["early_exit"], total),
        "fallbacks": images["fallback"],
        "fallback_share": ratio(images["fallback"], images["server"] + images["fallback"]),
        "audits": compared,
        "audits_agree": ratio(audits["agrees"], compared),
        "audits_agree_interval": wilson(audits["agrees"], compared),
        "audits_lost": audits["lost"],
        "audits_expected": page.values.get(("offramp_device_expected_agreement_ratio", ())),
        "drift": device_drift(page),
        "payload_bytes": payload,
        "raw_activation_bytes": raw,
        "saved_bytes": saved,
        "saved": ratio(saved, raw),
        "wire_bytes_sent": sent,
        "wire_bytes_sent_per_second": watched.rate(wire, direction="sent") if counted else None,
        "wire_bytes_received_per_second": watched.rate(wire, direction="received") if counted else None,
        "wire_bytes_sent_per_image": ratio(sent, total) if sent is not None else None,
        "head_seconds": watched.mean("offramp_device_stage_seconds", stage="head"),
        "round_trip_seconds_median": watched.quantile(trip, 0.5),
        "round_trip_seconds_p99": watched.quantile(trip, 0.99),
        **chain_figures(watched),
    }


def chain_figures(watched: Watched) -> dict[str, Any]:
    """Who answered a device: by part of a chain, and by server where there are several; else none."""
    page, found = watched.pages[-1], dict[str, Any]()
    answers, servers = "offramp_device_answers_total", "offramp_device_server_answers_total"
    if parts := page.labels(answers, "part"):
        found["parts"] = {
            part: sum(watched.change(answers, part=part, cut_short=cut) for cut in ("false", "true"))
            for part in parts
        }
        found["cut_short"] = sum(watched.change(answers, part=part, cut_short="true") for part in parts)
    if len(names := page.labels(servers, "server")) > 1:
        found["servers"] = {name: watched.change(servers, server=name) for name in names}
    return found


def upstream_figures(watched: Watched) -> dict[str, Any]:
    """Those of a server with others behind it, under ``upstream``; none of any other."""
    page, answers = watched.pages[-1], "offramp_server_answers_total"
    if not page.labels(answers, "by"):
        return {}
    by = {each: watched.change(answers, by=each) for each in ("exit", "upstream", "fallback")}
    total = sum(by.values())
    return {
        "upstream": {
            "connected": page.get("offramp_server_upstream_connected") > 0,
            "breaker_open": page.get("offramp_server_upstream_breaker_open") > 0,
            "answered": by,
            "exit_rate": ratio(by["exit"], total),
            "fallback_share": ratio(by["fallback"], by["upstream"] + by["fallback"]),
            "payload_bytes": watched.change("offramp_server_upstream_payload_bytes_total"),
            "round_trip_seconds_median": watched.quantile("offramp_server_upstream_round_trip_seconds", 0.5),
        }
    }


def parts_here(watched: Watched) -> dict[str, Any]:
    """What each part answered of a server that runs several of a chain; none of any other."""
    name = "offramp_server_part_answers_total"
    parts = watched.pages[-1].labels(name, "part")
    return {"parts": {part: watched.change(name, part=part) for part in parts}} if parts else {}


def server_row(watched: Watched) -> dict[str, Any]:
    """The figures of a server."""
    page = watched.pages[-1]
    return {
        "target": watched.target.name,
        "bundles": page.labels("offramp_bundle_info", "name"),
        "seconds": watched.seconds,
        "streams": page.get("offramp_server_open_streams"),
        "queue": page.get("offramp_server_queue_depth"),
        "queue_limit": page.get("offramp_server_limit", limit="queue"),
        "batch": watched.mean("offramp_server_batch_size"),
        "frames_per_second": watched.rate("offramp_server_frames_total", result="answered"),
        "refused": watched.change("offramp_server_frames_total", result="refused"),
        "rejected": {
            reason: watched.change("offramp_server_rejected_total", reason=reason)
            for reason in page.labels("offramp_server_rejected_total", "reason")
        },
        "streams_aborted": sum(
            watched.change("offramp_server_streams_aborted_total", status=status)
            for status in page.labels("offramp_server_streams_aborted_total", "status")
        ),
        "decode_seconds": watched.mean("offramp_server_decode_seconds"),
        "queue_seconds": watched.mean("offramp_server_queue_seconds"),
        "inference_seconds": watched.mean("offramp_server_inference_seconds"),
        **upstream_figures(watched),
        **parts_here(watched),
    }
