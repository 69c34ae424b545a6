"""``offramp plan``: which split, which training and which threshold suit a device and its link.

Every run of a folder is measured: its accuracy, exit rate and payload at each T_c, its weights and MACs. A
device profile turns these into latency and energy:

    latency = device MACs / speed + offloaded share · (round trip + message · 8 / link rate + server's time)
    energy  = device MACs · J per MAC + mean message bytes · J per byte

A chain of more parts, from the report beside a bundle of `offramp split --cuts`, runs on the profile's
gateways as well; each hop adds what reaches it, its round trip, its message and its part's time. A split of
fewer parts than there are machines has its last part on the server: what it sends passes the other gateways.

Exits that nobody trained are modelled, and marked so: their costs are exact, as they follow from the network;
their accuracy and exit rates at each T_c lie on the line between the nearest exits that were measured, over
the logarithm of the device's MACs, and their payload is the nearest run's share of raw bytes. Nothing is
modelled outside the exits that were measured.

What is listed is the Pareto set: no other choice is at least as good in accuracy, message bytes, latency and
energy, and better in one. Message bytes are the payload and the frame's protobuf bytes, a mean over images.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from offramp.bench.messages import framed_bytes
from offramp.bench.plan_chains import later_bytes, read_curves
from offramp.bench.plan_curves import SplitCurve
from offramp.common.arguments import Parser, byte_count
from offramp.common.errors import ConfigError, DataError, ExitCode, OfframpError
from offramp.training.profile import Gateway, Profile, read_profile
from offramp.training.split.board import Needs

if TYPE_CHECKING:
    from offramp.bench.report_tables import ReportTable
    from offramp.training.record import Record

_DESCRIPTION = """\
Choose a split point, a training and a threshold for a device and its link.

Reads the records that `offramp train` leaves beside its bundles, the reports of `offramp split`, and a
profile of the device: a TOML file, or flags. Prints the Pareto set of accuracy, bytes, latency and energy.
Exits between measured ones are modelled and marked so; --measured leaves them out.

a profile:
  macs_per_second = 2e9              # of one image on the device
  memory_bytes = 4_000_000           # for the head's weights and its two largest activations, one byte each
  link_bits_per_second = 50_000
  round_trip_seconds = 0.3
  server_seconds = 0.005             # queue and tail, for one image
  joules_per_mac = 5e-12
  joules_per_byte = 2e-5             # of the radio
  flash_bytes = 2_000_000            # optional: for the weights, which then take none of memory_bytes
  head_seconds = 0.02                # optional: most that the head may take for an image
  measured = { macs = 12e6, seconds = 0.004 }  # optional: of a head on the device, for macs_per_second

  [[gateways]]                       # optional, one for each machine between device and server
  macs_per_second = 20e9
  queue_seconds = 0.001              # what an image waits there
  link_bits_per_second = 20e6        # to the next machine
  round_trip_seconds = 0.02
"""

_EXAMPLES = """\
examples:
  offramp plan --runs build/cifar10 --profile lte-m.toml
  offramp plan --runs build/cifar10 --set link_bits_per_second=5e6 round_trip_seconds=0.02 --accuracy 0.85
  offramp plan --runs build/cifar10 --out build/plan --json | jq '.rows[0]'
  offramp plan --runs build --ram 256k --flash 1m

exit status: 0 done, 2 wrong flags or profile, 5 unusable or missing records, or nothing that fits
"""


NeedsOf = Callable[[Path], Needs | None]


@dataclass(frozen=True)
class SplitChoice:
    """One curve at one threshold, and what it costs on a device."""

    curve: SplitCurve
    threshold: float
    accuracy: float
    exit_rate: float
    message_bytes: float
    latency_seconds: float
    energy_joules: float
    others: tuple[float, ...] = ()
    """Thresholds of the exits behind the first."""
    later_bytes: float = 0.0
    """Of messages on the hops behind the first, a mean over images."""

    @property
    def shown(self) -> float | str:
        """The threshold, or all of them in their order."""
        if not self.others:
            return self.threshold
        return " ".join(f"{each:.2f}" for each in (self.threshold, *self.others))

    @property
    def costs(self) -> tuple[float, float, float, float]:
        """All to be small."""
        return (-self.accuracy, self.message_bytes, self.latency_seconds, self.energy_joules)


def measured_curve(record: Record) -> SplitCurve:
    """A run as it was measured, in its shipped codec."""
    from offramp.training.record import SHIPPED

    curve = record.curve
    payload = record.bytes[SHIPPED]
    frame = framed_bytes(round(payload)) - round(payload)
    exits = np.array(curve.exit_rate)
    return SplitCurve(
        name=record.name,
        exit_number=record.exit,
        measured=True,
        device_macs=record.cost.device_macs,
        device_weights=record.cost.device_weights,
        memory_bytes=record.cost.device_weights + record.cost.activations,
        thresholds=np.array(curve.threshold),
        accuracy=np.array(curve.accuracy),
        exit_rate=exits,
        message_bytes=np.array(curve.bytes[SHIPPED]) + frame * (1 - exits),
        offloaded_bytes=payload + frame,
    )


def modelled_curves(records: Sequence[Record], classes: int = 10, size: int = 32) -> list[SplitCurve]:
    """Exits of each backbone between two measured ones that send the activation itself."""
    from offramp.training.models.networks import BACKBONES
    from offramp.training.models.split_model import SplitModel
    from offramp.training.record import measure_cost

    found = []
    for backbone in sorted({record.backbone for record in records}):
        plain = [r for r in records if r.backbone == backbone and not r.bottleneck]
        # Of several runs at one exit the one without a regulariser: its neighbours' are comparable.
        known = {r.exit: r for r in sorted(plain, key=lambda r: -(r.entropy_weight + r.sparsity_weight))}
        if len(known) < 2:
            continue
        network = BACKBONES[backbone](classes, size)
        for number in range(min(known) + 1, max(known)):
            if number in known:
                continue
            try:
                split = SplitModel(network, number)
            except ConfigError:
                continue
            below, above = max(n for n in known if n < number), min(n for n in known if n > number)
            cost = measure_cost(split)
            ends = [measured_curve(known[n]) for n in (below, above)]
            reach = [math.log(end.device_macs) for end in ends]
            share = (math.log(cost.device_macs) - reach[0]) / max(reach[1] - reach[0], 1e-9)
            share = min(1.0, max(0.0, share))
            nearest = ends[round(share)]
            raw = math.prod(split.split_shape)
            payload = nearest.offloaded_bytes * raw / known[above if share >= 0.5 else below].raw_bytes
            exits = _between(ends, "exit_rate", share)
            found.append(
                SplitCurve(
                    name=f"{backbone}, exit {number}",
                    exit_number=number,
                    measured=False,
                    device_macs=cost.device_macs,
                    device_weights=cost.device_weights,
                    memory_bytes=cost.device_weights + cost.activations,
                    thresholds=ends[0].thresholds,
                    accuracy=_between(ends, "accuracy", share),
                    exit_rate=exits,
                    message_bytes=payload * (1 - exits),
                    offloaded_bytes=payload,
                )
            )
    return found


def _between(ends: Sequence[SplitCurve], what: str, share: float) -> NDArray[np.float64]:
    """A figure of two curves at the thresholds of the first, ``share`` of the way to the second."""
    first, second = ends
    other = np.interp(first.thresholds, second.thresholds, getattr(second, what))
    return np.asarray((1 - share) * getattr(first, what) + share * other)


def choices(curves: Sequence[SplitCurve], profile: Profile) -> list[SplitChoice]:
    """Every threshold of every curve that fits the device's memory and has no more parts than machines."""
    found: list[SplitChoice] = []
    for curve in curves:
        activations = curve.memory_bytes - curve.device_weights
        if not profile.fits(curve.device_macs, curve.device_weights, activations):
            continue
        if len(curve.between) > len(profile.gateways):
            continue
        at_home, before = curve.device_macs / profile.speed, len(found)
        away = (1 - curve.exit_rate) * _hop(profile, curve.offloaded_bytes, 0, not curve.between)
        for number, part in enumerate(curve.between):
            gateway, last = profile.gateways[number], number == len(curve.between) - 1
            away += (1 - curve.exit_rate if not number else curve.between[number - 1].sent) * (
                gateway.queue_seconds + part.macs / gateway.macs_per_second
            )
            away += part.sent * _hop(profile, part.offloaded_bytes, number + 1, last)
        rest = curve.rest_of_thresholds or ((),) * len(curve.thresholds)
        for threshold, accuracy, exits, sent, seconds, others in zip(
            curve.thresholds.tolist(),
            curve.accuracy.tolist(),
            curve.exit_rate.tolist(),
            curve.message_bytes.tolist(),
            away.tolist(),
            rest,
            strict=True,
        ):
            energy = curve.device_macs * profile.joules_per_mac + sent * profile.joules_per_byte
            latency, later = at_home + seconds, sum(later_bytes(curve, len(found) - before))
            found.append(SplitChoice(curve, threshold, accuracy, exits, sent, latency, energy, others, later))
    return found


def _hop(profile: Profile, size: float, number: int, last: bool) -> float:
    """Seconds that a message takes on the link behind machine ``number``; to the server through all that are
    left, and its time there, if it is the last one."""
    links: tuple[Profile | Gateway, ...] = (profile, *profile.gateways)
    used = links[number:] if last else links[number : number + 1]
    seconds = sum(each.round_trip_seconds + size * 8 / each.link_bits_per_second for each in used)
    return seconds + profile.server_seconds if last else seconds


def pareto_set(found: Sequence[SplitChoice]) -> list[SplitChoice]:
    """Those that no other beats, the most accurate first; of equal ones the first."""
    costs = np.array([choice.costs for choice in found])
    kept: list[SplitChoice] = []
    for number, own in enumerate(costs):
        better = (costs <= own).all(axis=1)
        same = (costs == own).all(axis=1)
        if not (better & ~same).any() and not same[:number].any():
            kept.append(found[number])
    return sorted(kept, key=lambda choice: choice.costs)


def thinned(found: Sequence[SplitChoice], most: int) -> list[SplitChoice]:
    """At most so many, evenly over the range of accuracy, both ends among them."""
    if len(found) <= most:
        return list(found)
    wanted = np.linspace(found[0].accuracy, found[-1].accuracy, most)
    picked = {int(np.argmin([abs(choice.accuracy - at) for choice in found])) for at in wanted}
    return [found[i] for i in sorted(picked)]


def main(argv: Sequence[str] | None = None, needs: NeedsOf = lambda _: None) -> int:
    """Run the command; returns its exit status.

    Args:
        needs: what a bundle's head takes as a program in C, None where it cannot be one.
    """
    try:
        arguments = _parser().parse_args(argv)
        made = _plan(arguments, needs)
        print(made.to_json() if arguments.json else made.to_markdown(), end="\n" if arguments.json else "")
        if arguments.out is not None:
            for path in made.write(arguments.out):
                print(f"wrote {path}", file=sys.stderr)
    except OfframpError as error:
        print(f"offramp plan: {error}", file=sys.stderr)
        return error.exit_code
    return ExitCode.OK


def _parser() -> Parser:
    parser = Parser(
        prog="offramp plan",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--runs", type=Path, required=True, metavar="DIR", help="folder of bundles with their records"
    )
    parser.add_argument("--profile", type=Path, metavar="FILE", help="TOML file of the device and its link")
    parser.add_argument(
        "--set",
        dest="settings",
        nargs="+",
        default=[],
        metavar="FIELD=VALUE",
        help="replace fields of the profile",
    )
    parser.add_argument(
        "--accuracy", type=float, default=0.0, metavar="A", help="leave out what is below, 0 … 1"
    )
    parser.add_argument("--measured", action="store_true", help="leave out what is modelled")
    parser.add_argument(
        "--ram",
        type=byte_count,
        metavar="BYTES",
        help="leave out heads that need more memory as C on a microcontroller, and what is modelled; as 256k",
    )
    parser.add_argument("--flash", type=byte_count, metavar="BYTES", help="the same of its flash; as 1m")
    parser.add_argument("--limit", type=int, default=20, metavar="N", help="rows at most (default: 20)")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="also write plan.md, .json, .png and .svg here"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of Markdown")
    return parser


def _plan(arguments: argparse.Namespace, needs: NeedsOf) -> ReportTable:
    from offramp.training.record import RECORD, read_record, record_paths

    if not 0 <= arguments.accuracy <= 1:
        raise ConfigError(f"--accuracy {arguments.accuracy:g}, expected 0 … 1")
    if arguments.limit < 2:
        raise ConfigError(f"--limit {arguments.limit}, expected 2 or more")
    profile = read_profile(arguments.profile, arguments.settings)
    board = arguments.ram is not None or arguments.flash is not None
    curves = read_curves(arguments.runs)
    if not curves or any(arguments.runs.glob(f"*/{RECORD}")):
        records = {path.parent: read_record(path) for path in record_paths(arguments.runs)}
        curves += [replace(measured_curve(record), bundle=folder) for folder, record in records.items()]
        if not arguments.measured and not board:
            curves += modelled_curves(list(records.values()))
    if board:
        curves = _on_a_microcontroller(curves, arguments.ram, arguments.flash, needs)
    fitting = choices(curves, profile)
    if not fitting and any(len(curve.between) > len(profile.gateways) for curve in curves):
        raise DataError(
            "nothing fits: the chains have more parts than there are machines; expected a table [[gateways]] "
            "in the profile for each machine between device and server"
        )
    if not fitting:
        least = min(curve.memory_bytes for curve in curves)
        limits = {"flash_bytes": profile.flash_bytes, "head_seconds": profile.head_seconds}
        more = "".join(f", {name} = {value:,g}" for name, value in limits.items() if value is not None)
        raise DataError(
            f"nothing fits memory_bytes = {profile.memory_bytes:,.0f}{more}: "
            f"the smallest head takes {least:,}"
        )
    accurate = [choice for choice in fitting if choice.accuracy >= arguments.accuracy]
    if not accurate:
        best = max(choice.accuracy for choice in fitting)
        raise DataError(f"nothing reaches --accuracy {arguments.accuracy:g}: the best has {best:.4f}")
    return report(pareto_set(accurate), profile, most=arguments.limit)


def _on_a_microcontroller(
    curves: Sequence[SplitCurve], ram: int | None, flash: int | None, needs: NeedsOf
) -> list[SplitCurve]:
    """Those whose head fits as a program in C. Raises DataError where none does, with what each needs."""
    found = {curve.name: None if curve.bundle is None else needs(curve.bundle) for curve in curves}
    fitting = [curve for curve in curves if (each := found[curve.name]) and each.fits(ram, flash)]
    if not fitting:
        said = [
            f"{name} needs {each.words}" if each else f"{name} is not in C" for name, each in found.items()
        ]
        raise DataError(f"no head fits --ram and --flash: {'; '.join(said[:3])}{'; …' * (len(said) > 3)}")
    return fitting


def report(found: Sequence[SplitChoice], profile: Profile, *, most: int = 20) -> ReportTable:
    """The table and plot of a Pareto set."""
    from offramp.bench.plots import Plot, Series
    from offramp.bench.report_tables import Column, ReportTable

    series = []
    for name in dict.fromkeys(choice.curve.name for choice in found):
        own = [choice for choice in found if choice.curve.name == name]
        series.append(
            Series(
                name,
                [1000 * choice.latency_seconds for choice in own],
                [100 * choice.accuracy for choice in own],
                paper=not own[0].curve.measured,
            )
        )
    stated = profile.model_dump(exclude_none=True, exclude={"measured"}) | {"macs_per_second": profile.speed}
    gateways = stated.pop("gateways")
    given = ", ".join(f"{name} = {value:g}" for name, value in stated.items())
    for number, gateway in enumerate(gateways, start=1):
        given += f"; gateway {number}: " + ", ".join(f"{name} = {each:g}" for name, each in gateway.items())
    hops = [Column("later", "B on later hops", 1)] if any(choice.others for choice in found) else []
    return ReportTable(
        "plan",
        "Pareto set: accuracy, message bytes, latency, energy",
        [
            Column("name", "split"),
            Column("basis", "figures"),
            Column("threshold", "T_c", 2),
            Column("accuracy", "accuracy %", 2),
            Column("exit_rate", "exit rate %", 1),
            Column("bytes", "message B an image", 1),
            *hops,
            Column("latency", "latency ms", 2),
            Column("energy", "energy mJ", 3),
            Column("macs", "device M MAC", 1),
            Column("weights", "weights KB, INT8", 1),
        ],
        [
            {
                "name": choice.curve.name,
                "basis": "measured" if choice.curve.measured else "modelled",
                "threshold": choice.shown,
                "accuracy": 100 * choice.accuracy,
                "exit_rate": 100 * choice.exit_rate,
                "bytes": choice.message_bytes,
                "later": choice.later_bytes if choice.others else None,
                "latency": 1000 * choice.latency_seconds,
                "energy": 1000 * choice.energy_joules,
                "macs": choice.curve.device_macs / 1e6,
                "weights": choice.curve.device_weights / 1024,
            }
            for choice in thinned(found, most)
        ],
        Plot("Pareto set (modelled: dashed)", "mean latency, ms", "top-1 accuracy, %", series, log_x=True),
        [
            f"Profile: {given}.",
            f"{len(found)} choices in the set, at most {most} shown. Latency and energy follow from the "
            "profile; the other figures of a measured split are of its test images.",
        ],
    )
