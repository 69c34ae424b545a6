"""``offramp top``: a running fleet in the terminal, from the metrics pages of its devices and servers.

Pages are strangers' text: each is read within a time and a size, and what is no page of ours is one line in
the view. All figures are of the window, the newest page of a target less the oldest that is still in it; what
has not happened in the window has no figure.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from argparse import ArgumentTypeError, RawDescriptionHelpFormatter
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families
from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from offramp.common.arguments import Parser
from offramp.common.errors import ConfigError, ExitCode, printable
from offramp.common.files import read_bounded
from offramp.common.wire.address import split_address

PAGE_BYTES = 1 << 20
"""Ours have 20 kB."""
FILE_BYTES = 1 << 24
TARGETS = 4096
"""In one view, at most."""
FILE_WIDTH = 160
"""Characters of a line where there is no terminal."""
AT_ONCE = 64
"""Pages read at once."""
VALUE = 1e18
"""No figure of ours is larger, and none is below 0."""
NAMES = 16
"""Bundles of one page, and other names, that are shown."""
NAME = 40
"""Characters of a name that a page chose, at most."""

EPILOG = """\
examples:
  offramp top device-1:9102 device-2:9102 server:9101
  offramp top targets.json                 # Prometheus' file_sd format, read again when it changes
  offramp top --once --json 127.0.0.1:9101 | jq .servers

--once reads each page twice, one interval apart, prints, and exits. --json: one object for each interval.

exit status: 0 done, 1 a bug, 2 wrong flags or a wrong file, 3 with --once: a target did not answer as ours
do, 130 interrupted
"""

Key = tuple[str, tuple[tuple[str, str], ...]]
"""Name of a sample and its labels, sorted."""


class PageError(Exception):
    """What a target answered is no metrics page of ours. The message is for the view."""


@dataclass(frozen=True)
class Target:
    """Where a metrics page is."""

    name: str
    url: str


@dataclass(frozen=True)
class Page:
    """One reading of a metrics page. Values are 0 … ``VALUE``."""

    at: float
    """``time.monotonic()``."""
    values: dict[Key, float]

    def get(self, name: str, **labels: str) -> float:
        """A sample; 0 where the page has none."""
        return self.values.get((name, tuple(sorted(labels.items()))), 0.0)

    def labels(self, name: str, label: str) -> list[str]:
        """The values of a label of this metric, fit to be printed."""
        found = {
            printable(dict(pairs).get(label, ""), NAME) for metric, pairs in self.values if metric == name
        }
        return sorted(found)[:NAMES]


def read_page(text: str, at: float) -> Page:
    """The samples of a page that are ours. Raises PageError."""
    values: dict[Key, float] = {}
    try:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name.startswith("offramp_") and 0 <= sample.value <= VALUE:
                    values[sample.name, tuple(sorted(sample.labels.items()))] = float(sample.value)
    except Exception as error:  # the parser answers nonsense with whatever comes
        raise PageError(f"is no metrics page ({type(error).__name__})") from None
    page = Page(at, values)
    if not is_device(page) and not is_server(page):
        raise PageError("is no metrics page of Offramp")
    return page


def is_device(page: Page) -> bool:
    """Whether an ``edge-device`` wrote it."""
    return any(name == "offramp_device_images_total" for name, _ in page.values)


def is_server(page: Page) -> bool:
    """Whether a ``cloud-server`` wrote it."""
    return any(name == "offramp_server_frames_total" for name, _ in page.values)


@dataclass
class Watched:
    """One target, its pages in the window, and what was wrong at the last try."""

    target: Target
    pages: deque[Page] = field(default_factory=deque)
    error: str | None = "not read yet"

    def add(self, page: Page, window: float) -> None:
        """Take the newest page, drop what has left the window. A program that was restarted starts anew."""
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


def share(part: float, whole: float) -> float | None:
    """None where there is nothing to share."""
    return part / whole if whole > 0 else None


def device_row(watched: Watched) -> dict[str, Any]:
    """The figures of a device. Rates are per second, bytes of the wire are TCP payload."""
    images = {
        source: watched.change("offramp_device_images_total", source=source)
        for source in ("early_exit", "server", "fallback")
    }
    total = sum(images.values())
    raw = watched.change("offramp_device_raw_activation_bytes_total")
    payload = watched.change("offramp_device_payload_bytes_total")
    # Pictures have no activation that they would save anything of.
    saved = raw - (payload - watched.change("offramp_device_picture_bytes_total"))
    page = watched.pages[-1]
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
        "exit_rate": share(images["early_exit"], total),
        "fallbacks": images["fallback"],
        "fallback_share": share(images["fallback"], images["server"] + images["fallback"]),
        "payload_bytes": payload,
        "raw_activation_bytes": raw,
        "saved_bytes": saved,
        "saved": share(saved, raw),
        "wire_bytes_sent": sent,
        "wire_bytes_sent_per_second": watched.rate(wire, direction="sent") if counted else None,
        "wire_bytes_received_per_second": watched.rate(wire, direction="received") if counted else None,
        "wire_bytes_sent_per_image": share(sent, total) if sent is not None else None,
        "head_seconds": watched.mean("offramp_device_stage_seconds", stage="head"),
        "round_trip_seconds_median": watched.quantile(trip, 0.5),
        "round_trip_seconds_p99": watched.quantile(trip, 0.99),
    }


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
    }


@dataclass(frozen=True)
class View:
    """A fleet at one moment."""

    devices: list[dict[str, Any]]
    servers: list[dict[str, Any]]
    failed: list[dict[str, str]]
    """Targets that did not answer as ours do, and why."""
    note: str | None

    def to_json(self) -> str:
        """One line."""
        return json.dumps(
            {
                "time": time.time(),
                "devices": self.devices,
                "servers": self.servers,
                "failed": self.failed,
                "note": self.note,
            }
        )


class Fleet:
    """Targets, and what is known of them."""

    def __init__(self, sources: Sequence[str], window: float, timeout: float) -> None:
        self._sources = sources
        self._window = window
        self._timeout = timeout
        self._watched: dict[Target, Watched] = {}
        self._note: str | None = None
        self._follow(read_sources(sources))

    def _follow(self, targets: Iterable[Target]) -> None:
        self._watched = {target: self._watched.get(target) or Watched(target) for target in targets}

    async def read(self, client: httpx.AsyncClient) -> None:
        """Read the files of targets again, and each page once."""
        try:
            self._follow(await asyncio.to_thread(read_sources, self._sources))
            self._note = None
        except ConfigError as error:
            self._note = f"{error}; the targets of before are kept"
        gate = asyncio.Semaphore(AT_ONCE)
        await asyncio.gather(*(self._read_one(client, gate, each) for each in self._watched.values()))

    async def _read_one(self, client: httpx.AsyncClient, gate: asyncio.Semaphore, watched: Watched) -> None:
        try:
            async with gate, asyncio.timeout(self._timeout):
                text = await fetch(client, watched.target.url)
                page = await asyncio.to_thread(read_page, text, time.monotonic())
            watched.add(page, self._window)
        except TimeoutError:
            watched.error = f"no page within {self._timeout:g} s"
        except PageError as error:
            watched.error = str(error)
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            watched.error = printable(str(error) or type(error).__name__, 80)

    def view(self) -> View:
        """What there is to show."""
        devices, servers, failed = [], [], []
        for watched in self._watched.values():
            if watched.error is not None:
                failed.append({"target": watched.target.name, "error": watched.error})
            elif is_device(watched.pages[-1]):
                devices.append(device_row(watched))
            else:
                servers.append(server_row(watched))
        return View(devices, servers, failed, self._note)


async def fetch(client: httpx.AsyncClient, url: str) -> str:
    """A page's text. Raises PageError, httpx.HTTPError."""
    async with client.stream("GET", url) as response:
        if response.status_code != 200:
            raise PageError(f"answers with status {response.status_code}, expected 200")
        data = bytearray()
        # As it was sent: what is compressed would have to be bounded again.
        async for piece in response.aiter_raw():
            data += piece
            if len(data) > PAGE_BYTES:
                raise PageError(f"sends more than {PAGE_BYTES:,} bytes")
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise PageError("is no metrics page (not UTF-8)") from None


def read_sources(sources: Sequence[str]) -> list[Target]:
    """The targets of addresses, URLs and files. Raises ConfigError."""
    found: dict[Target, None] = {}
    for source in sources:
        if source.startswith(("http://", "https://")):
            found[Target(printable(source, NAME * 2), source)] = None
        elif source.endswith(".json"):
            found |= dict.fromkeys(read_file(source))
        else:
            found[address(source, source)] = None
    if len(found) > TARGETS:
        raise ConfigError(f"{len(found)} targets, expected {TARGETS} at most")
    return list(found)


def address(where: str, text: str, scheme: str = "http", path: str = "/metrics") -> Target:
    """The target of HOST:PORT. Raises ConfigError."""
    split_address(where, text)
    return Target(printable(text, NAME * 2), f"{scheme}://{text}{path}")


def read_file(name: str) -> list[Target]:
    """The targets of a file in Prometheus' file_sd format. Raises ConfigError."""
    wanted = 'expected [{"targets": ["HOST:PORT", …], "labels": {…}}, …]'
    try:
        groups = json.loads(read_bounded(name, FILE_BYTES, expected="a file of targets"))
    except (ValueError, RecursionError):
        raise ConfigError(f"{name}: is no JSON, {wanted}") from None
    targets = []
    if not isinstance(groups, list):
        raise ConfigError(f"{name}: is no list, {wanted}")
    for group in groups:
        labels = group.get("labels", {}) if isinstance(group, dict) else None
        texts = group.get("targets") if isinstance(group, dict) else None
        if not isinstance(labels, dict) or not isinstance(texts, list):
            raise ConfigError(f"{name}: has a group that is none, {wanted}")
        scheme, path = labels.get("__scheme__", "http"), labels.get("__metrics_path__", "/metrics")
        if scheme not in ("http", "https") or not isinstance(path, str) or not path.startswith("/"):
            raise ConfigError(f"{name}: __scheme__ or __metrics_path__ is none")
        for text in texts:
            if not isinstance(text, str):
                raise ConfigError(f"{name}: has a target that is no string, {wanted}")
            targets.append(address(f"{name}:", text, scheme, path))
    return targets


# --- what a person sees ---

Column = tuple[str, Callable[[dict[str, Any]], str]]


def number(value: float | None, digits: int = 1) -> str:
    """A figure; a dash where there is none."""
    return "–" if value is None else f"{value:,.{digits}f}"


def percent(value: float | None) -> str:
    """A share."""
    return "–" if value is None else f"{value:.1%}"


def milliseconds(value: float | None) -> str:
    """A time."""
    return "–" if value is None else f"{value * 1e3:.1f}"


def link(row: dict[str, Any]) -> str:
    """How a device is connected."""
    return "breaker" if row["breaker_open"] else "up" if row["connected"] else "down"


DEVICE: list[Column] = [
    ("bundle", lambda row: ", ".join(row["bundles"])),
    ("T_c", lambda row: f"{row['threshold']:g}"),
    ("link", link),
    ("images/s", lambda row: number(row["images_per_second"])),
    ("exit", lambda row: percent(row["exit_rate"])),
    ("fallback", lambda row: f"{row['fallbacks']:,.0f}"),
    ("wire B/s", lambda row: number(row["wire_bytes_sent_per_second"], 0)),
    ("B/image", lambda row: number(row["wire_bytes_sent_per_image"])),
    ("saved", lambda row: percent(row["saved"])),
    ("head ms", lambda row: milliseconds(row["head_seconds"])),
    ("trip ms", lambda row: milliseconds(row["round_trip_seconds_median"])),
    ("p99", lambda row: milliseconds(row["round_trip_seconds_p99"])),
]
SERVER: list[Column] = [
    ("bundle", lambda row: ", ".join(row["bundles"])),
    ("streams", lambda row: f"{row['streams']:,.0f}"),
    ("frames/s", lambda row: number(row["frames_per_second"])),
    ("queue", lambda row: f"{row['queue']:,.0f} of {row['queue_limit']:,.0f}"),
    ("batch", lambda row: number(row["batch"])),
    ("rejected", lambda row: f"{row['refused']:,.0f}"),
    ("aborted", lambda row: f"{row['streams_aborted']:,.0f}"),
    ("decode ms", lambda row: milliseconds(row["decode_seconds"])),
    ("queue ms", lambda row: milliseconds(row["queue_seconds"])),
    ("tail ms", lambda row: milliseconds(row["inference_seconds"])),
]


HIDDEN_FIRST = ("bundle", "head ms", "B/image", "decode ms", "p99", "aborted", "queue ms", "fallback")
"""What goes first where the terminal is narrow."""


def table(title: str, rows: list[dict[str, Any]], columns: list[Column], console: Console) -> Table:
    """One row for each target, with as many columns as fit."""
    found = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    found.add_column("target", no_wrap=True)
    for name, _ in columns:
        found.add_column(name, justify="left" if name in ("bundle", "link") else "right", no_wrap=True)
    for row in rows:
        # Text, not markup: a page may have chosen it.
        found.add_row(*(Text(cell) for cell in (row["target"], *(show(row) for _, show in columns))))
    names = [name for name, _ in columns]
    hidden = next((name for name in HIDDEN_FIRST if name in names), None)
    # What it would take with all the room there is.
    wanted = console.measure(found, options=console.options.update(max_width=10_000)).maximum
    if hidden is None or wanted <= console.width:
        return found
    return table(title, rows, [column for column in columns if column[0] != hidden], console)


def fleet_line(devices: list[dict[str, Any]]) -> str:
    """All devices together."""
    images = sum(row["images"] for row in devices)
    exits = sum((row["exit_rate"] or 0.0) * row["images"] for row in devices)
    raw = sum(row["raw_activation_bytes"] for row in devices)
    rate = sum(row["images_per_second"] or 0.0 for row in devices)
    # One whose bytes are unknown makes the sum unknown; one that was read once has no rate yet.
    known = all(row["wire_bytes_sent"] is not None for row in devices)
    wire = f"{sum(row['wire_bytes_sent_per_second'] or 0.0 for row in devices):,.0f}" if known else "unknown"
    saved = share(sum(row["saved_bytes"] for row in devices), raw)
    return (
        f"{len(devices)} devices: {rate:,.1f} images/s, {percent(share(exits, images))} exit early, "
        f"{wire} wire B/s, {percent(saved)} of the raw activations' bytes saved"
    )


def render(view: View, console: Console) -> RenderableType:
    """The view for a terminal."""
    parts: list[RenderableType] = []
    if view.devices:
        parts.append(table(fleet_line(view.devices), view.devices, DEVICE, console))
    if view.servers:
        parts.append(table(f"{len(view.servers)} servers", view.servers, SERVER, console))
    parts += [Text(f"{each['target']}: {each['error']}", style="red") for each in view.failed]
    if view.note is not None:
        parts.append(Text(view.note, style="yellow"))
    return Group(*parts)


# --- the command ---


def seconds(text: str) -> float:
    """A flag's value."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0.1 <= value <= 3600:
        raise ArgumentTypeError(f"{text!r}: expected seconds, 0.1 … 3600")
    return value


def main(argv: Sequence[str]) -> int:
    """Run the command; returns its exit status."""
    parser = Parser(
        "offramp top",
        description="Watch a fleet by its metrics pages (--metrics-port of edge-device and cloud-server).",
        epilog=EPILOG,
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "targets", nargs="+", help="HOST:PORT or URL of a metrics page, or a file_sd file (*.json)"
    )
    parser.add_argument("--once", action="store_true", help="print once and exit")
    parser.add_argument("--json", action="store_true", help="one JSON object for each interval")
    parser.add_argument("--interval", type=seconds, default=2.0, help="seconds between readings (default: 2)")
    parser.add_argument(
        "--window", type=seconds, default=30.0, help="seconds that figures are of (default: 30)"
    )
    parser.add_argument("--timeout", type=seconds, default=2.0, help="seconds for one page (default: 2)")
    arguments = parser.parse_args(argv)
    fleet = Fleet(arguments.targets, arguments.window, arguments.timeout)
    return asyncio.run(_watch(fleet, arguments.interval, arguments.once, arguments.json))


async def _watch(fleet: Fleet, interval: float, once: bool, as_json: bool) -> int:
    console = Console()
    if not console.is_terminal:
        console = Console(width=FILE_WIDTH)
    limits = httpx.Limits(max_connections=AT_ONCE, max_keepalive_connections=AT_ONCE)
    headers = {"accept-encoding": "identity"}
    async with httpx.AsyncClient(trust_env=False, timeout=None, limits=limits, headers=headers) as client:
        await fleet.read(client)
        if once:
            await asyncio.sleep(interval)
            await fleet.read(client)
            view = fleet.view()
            _print(console, view, as_json)
            return ExitCode.UNAVAILABLE if view.failed else ExitCode.OK
        if as_json or not console.is_terminal:
            while True:
                _print(console, fleet.view(), as_json)
                await asyncio.sleep(interval)
                await fleet.read(client)
        with Live(render(fleet.view(), console), console=console, screen=True, auto_refresh=False) as live:
            while True:
                await asyncio.sleep(interval)
                await fleet.read(client)
                live.update(render(fleet.view(), console), refresh=True)


def _print(console: Console, view: View, as_json: bool) -> None:
    if as_json:
        print(view.to_json(), flush=True)
    else:
        console.print(render(view, console))
