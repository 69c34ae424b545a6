"""What a person sees of a fleet: a table of devices and one of servers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from offramp.cli.fleet.drift import drift
from offramp.cli.fleet.figures import ratio, wilson
from offramp.cli.fleet.fleet import View

Column = tuple[str, Callable[[dict[str, Any]], str]]


def figure(value: float | None, digits: int = 1) -> str:
    """A figure; a dash if it is not known."""
    return "–" if value is None else f"{value:,.{digits}f}"


def percent(value: float | None) -> str:
    """A share."""
    return "–" if value is None else f"{value:.1%}"


def milliseconds(value: float | None) -> str:
    """A time."""
    return "–" if value is None else f"{value * 1e3:.1f}"


def audits(row: dict[str, Any]) -> str:
    """How often the server agrees with the early exit, its 95 % interval, and of how many."""
    if row["audits_agree"] is None:
        return "–"
    low, high = row["audits_agree_interval"]
    return f"{row['audits_agree']:.1%} ({low * 100:.0f}–{high * 100:.0f}) of {row['audits']:,.0f}"


def connection(row: dict[str, Any]) -> str:
    """How a device is connected."""
    return "breaker" if row["breaker_open"] else "up" if row["connected"] else "down"


DEVICE: list[Column] = [
    ("bundle", lambda row: ", ".join(row["bundles"])),
    ("T_c", lambda row: f"{row['threshold']:g}"),
    ("link", connection),
    ("images/s", lambda row: figure(row["images_per_second"])),
    ("exit", lambda row: percent(row["exit_rate"])),
    ("fallback", lambda row: f"{row['fallbacks']:,.0f}"),
    ("audits agree", audits),
    ("drift", lambda row: drift(row["drift"])),
    ("wire B/s", lambda row: figure(row["wire_bytes_sent_per_second"], 0)),
    ("B/image", lambda row: figure(row["wire_bytes_sent_per_image"])),
    ("saved", lambda row: percent(row["saved"])),
    ("head ms", lambda row: milliseconds(row["head_seconds"])),
    ("trip ms", lambda row: milliseconds(row["round_trip_seconds_median"])),
    ("p99", lambda row: milliseconds(row["round_trip_seconds_p99"])),
]
SERVER: list[Column] = [
    ("bundle", lambda row: ", ".join(row["bundles"])),
    ("streams", lambda row: f"{row['streams']:,.0f}"),
    ("frames/s", lambda row: figure(row["frames_per_second"])),
    ("queue", lambda row: f"{row['queue']:,.0f} of {row['queue_limit']:,.0f}"),
    ("batch", lambda row: figure(row["batch"])),
    ("rejected", lambda row: f"{row['refused']:,.0f}"),
    ("aborted", lambda row: f"{row['streams_aborted']:,.0f}"),
    ("decode ms", lambda row: milliseconds(row["decode_seconds"])),
    ("queue ms", lambda row: milliseconds(row["queue_seconds"])),
    ("tail ms", lambda row: milliseconds(row["inference_seconds"])),
]


UPSTREAM: list[Column] = [
    ("upstream", lambda row: connection(row["upstream"]) if "upstream" in row else "–"),
    ("exit", lambda row: percent(row["upstream"]["exit_rate"]) if "upstream" in row else "–"),
    ("fallback", lambda row: f"{row['upstream']['answered']['fallback']:,.0f}" if "upstream" in row else "–"),
    (
        "trip ms",
        lambda row: milliseconds(row["upstream"]["round_trip_seconds_median"]) if "upstream" in row else "–",
    ),
]
"""Of servers with others behind them; only where there is one."""


PARTS: list[Column] = [
    ("by part", lambda row: " / ".join(f"{count:,.0f}" for count in row.get("parts", {}).values()) or "–")
]
"""Of devices and servers that answer by several parts of a chain; only where there is one."""


HIDDEN_FIRST = (
    "bundle",
    "head ms",
    "audits agree",
    "drift",
    "B/image",
    "decode ms",
    "p99",
    "aborted",
    "queue ms",
    "fallback",
)
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


def fleet_line(devices: list[dict[str, Any]], drifts: dict[str, dict[str, Any]] | None = None) -> str:
    """All devices together."""
    images = sum(row["images"] for row in devices)
    exits = sum((row["exit_rate"] or 0.0) * row["images"] for row in devices)
    raw = sum(row["raw_activation_bytes"] for row in devices)
    rate = sum(row["images_per_second"] or 0.0 for row in devices)
    # One whose bytes are unknown makes the sum unknown; one that was read once has no rate yet.
    known = all(row["wire_bytes_sent"] is not None for row in devices)
    wire = f"{sum(row['wire_bytes_sent_per_second'] or 0.0 for row in devices):,.0f}" if known else "unknown"
    saved = ratio(sum(row["saved_bytes"] for row in devices), raw)
    audited = sum(row["audits"] for row in devices)
    agreed = sum((row["audits_agree"] or 0.0) * row["audits"] for row in devices)
    row = {"audits": audited, "audits_agree": ratio(agreed, audited)}
    shown = audits(row | {"audits_agree_interval": wilson(agreed, audited)})
    return (
        f"{len(devices)} devices: {rate:,.1f} images/s, {percent(ratio(exits, images))} exit early, "
        f"{wire} wire B/s, {percent(saved)} of the raw activations' bytes saved"
        + (f", audits agree {shown}" if audited else "")
        + (f", drift {drift(drifts)}" if drifts else "")
    )


def render(view: View, console: Console) -> RenderableType:
    """The view for a terminal."""
    parts: list[RenderableType] = []
    if view.devices:
        columns = [*DEVICE, *(PARTS if any("parts" in row for row in view.devices) else [])]
        parts.append(table(fleet_line(view.devices, view.drift), view.devices, columns, console))
    if view.servers:
        columns = [*SERVER, *UPSTREAM] if any("upstream" in row for row in view.servers) else SERVER
        columns = [*columns, *(PARTS if any("parts" in row for row in view.servers) else [])]
        parts.append(table(f"{len(view.servers)} servers", view.servers, columns, console))
    parts += [Text(f"{each['target']}: {each['error']}", style="red") for each in view.failed]
    if view.note is not None:
        parts.append(Text(view.note, style="yellow"))
    return Group(*parts)
