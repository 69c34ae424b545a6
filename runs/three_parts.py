"""Two parts against three at equal accuracy, for ``runs/three-parts.sh``: bytes of each hop, shares, latency.

    python runs/three_parts.py FOLDER [--out FILE] [--profile FILE]

FOLDER has the bundles two, three and three-joint, with their recipes beside them. Graphs, code tables and
temperatures are the bundles'; thresholds are, for each row and bundle, those of fewest bytes on the first hop
(then on the next) that are as often right as the row says, on the test photos: every bundle's best. Latency
is the mean that a profile gives: device, gateway and server, a radio and a wire.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

from offramp.bench.plan import SplitChoice, choices
from offramp.bench.plan_chains import curve_of
from offramp.common.bundle.load import Bundle, load_bundle
from offramp.training.calibrate.chain import Chain, Point, points, run_parts
from offramp.training.calibrate.codebook import payload_bytes
from offramp.training.data.held_out import load_data
from offramp.training.profile import Gateway, Profile, read_profile

NAMES = ("two", "three", "three-joint")
RADIO_AND_WIRE = Profile(
    macs_per_second=2e9,
    memory_bytes=1e9,
    link_bits_per_second=50e3,
    round_trip_seconds=0.1,
    server_seconds=0.003,
    gateways=(
        Gateway(
            macs_per_second=2e10, queue_seconds=0.001, link_bits_per_second=20e6, round_trip_seconds=0.02
        ),
    ),
)


@dataclass(frozen=True)
class Measured:
    """A bundle on the test photos: each set of thresholds with what it costs, and its own."""

    bundle: Bundle
    points: list[Point]
    costs: list[SplitChoice]
    own: tuple[float, ...]

    def cheapest(self, accuracy: float) -> int | None:
        """The place of the cheapest point that is as often right; None if none is."""
        enough = [at for at, each in enumerate(self.points) if each.accuracy >= accuracy - 1e-12]
        return min(enough, key=lambda at: self.points[at].sent_bytes_mean, default=None)


def measure(path: Path, profile: Profile) -> Measured:
    """Run a bundle's graphs on its test photos."""
    bundle = load_bundle(path)
    manifest = bundle.manifest
    exits = [part.exit for part in manifest.parts if part.exit is not None]
    chain: Chain = replace(
        run_parts(bundle.graphs, load_data(bundle).test),
        temperatures=tuple(each.temperature for each in exits),
        sent_answer=manifest.sent_answer,
    )
    payloads = [
        payload_bytes(tables, getattr(crossing.codec, "lanes", 1), symbols)
        for tables, crossing, symbols in zip(
            bundle.all_tables, manifest.crossings, chain.symbols, strict=True
        )
        if tables is not None
    ]
    own = tuple(each.threshold for each in exits)
    found = points(chain, payloads, own)
    macs = [part.macs or 0 for part in manifest.parts]
    curve = curve_of(
        path.name,
        1,
        (macs[0], manifest.head.weights or 0, 0),
        macs,
        [*(float(each.mean()) for each in payloads), 0.0],
        found,
    )
    return Measured(bundle, found, choices([curve], profile), own)


def table(bundles: dict[str, Measured], profile: Profile) -> str:
    """Rows of equal accuracy, then each bundle at its own thresholds."""
    head = "| right at least | bundle | right | T_c | B on the radio | B on the wire | answered by | ms |"
    lines = ["# Two parts against three", "", head, "|---" * 2 + "|---:" * 6 + "|"]

    def row(label: str, name: str, at: int | None) -> str:
        if at is None:
            return f"| {label} | {name} | not reached | | | | | |"
        point, cost = bundles[name].points[at], bundles[name].costs[at]
        # What a pair sends passes the wire as well.
        radio, *wire = point.sent_bytes_mean
        shares = " / ".join(f"{each:.1%}" for each in point.answered)
        thresholds = " ".join(f"{each:g}" for each in point.thresholds)
        return (
            f"| {label} | {name} | {point.accuracy:.2%} | {thresholds} | {radio:.1f} | "
            f"{wire[0] if wire else radio:.1f} | {shares} | {1000 * cost.latency_seconds:.1f} |"
        )

    best = {max(point.accuracy for point in each.points) for each in bundles.values()}
    own = {
        next(point.accuracy for point in each.points if point.thresholds == each.own)
        for each in bundles.values()
    }
    for accuracy in sorted(best | own, reverse=True):
        lines += [row(f"{accuracy:.2%}", name, bundles[name].cheapest(accuracy)) for name in bundles]
    for name, each in bundles.items():
        at = next(at for at, point in enumerate(each.points) if point.thresholds == each.own)
        lines.append(row("its own T_c", name, at))
    lines += ["", "| bundle | part | alone | in float | M MAC | bytes behind it, of a photo that crosses |"]
    lines.append("|---|---:|---:|---:|---:|---:|")
    for name, each in bundles.items():
        for number, figures in enumerate(each.bundle.manifest.figures.parts or [], start=1):
            macs = (each.bundle.manifest.parts[number - 1].macs or 0) / 1e6
            lines.append(
                f"| {name} | {number} | {figures.accuracy:.2%} | {figures.accuracy_float:.2%} | {macs:.1f} | "
                f"{figures.payload_bytes_mean:.1f} |"
            )
    gateway = profile.gateways[0]
    lines += [
        "",
        f"Latency is a mean by this profile: device {profile.speed:g} MAC/s, radio "
        f"{profile.link_bits_per_second:g} bit/s and {profile.round_trip_seconds:g} s there and back, "
        f"gateway {gateway.macs_per_second:g} MAC/s, wire {gateway.link_bits_per_second:g} bit/s and "
        f"{gateway.round_trip_seconds:g} s, server {profile.server_seconds:g} s. What a pair sends passes "
        "radio and wire. Thresholds are each bundle's best on the test photos, but for the last rows.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Print the table, and write it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--profile", type=Path)
    arguments = parser.parse_args()
    profile = RADIO_AND_WIRE if arguments.profile is None else read_profile(arguments.profile)
    found = [name for name in NAMES if (arguments.folder / name / "manifest.json").exists()]
    text = table({name: measure(arguments.folder / name, profile) for name in found}, profile)
    print(text, end="")
    if arguments.out is not None:
        arguments.out.write_text(text)


if __name__ == "__main__":
    main()
