"""Where a classifier is cut for a device, and how large a code is learned there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from offramp.common.bundle.manifest import ACTIVATION_SYMBOLS, FILE_BYTES, PARTS
from offramp.common.errors import ConfigError, printable
from offramp.training.profile import Profile
from offramp.training.split.board import Board
from offramp.training.split.capture import Captured
from offramp.training.split.code import CodeShape, choose_shape, encoder_macs
from offramp.training.split.cuts import Cost, Cut, Cuts
from offramp.training.split.layout import Layout

ENCODER_SHARE = 0.08
"""Of the whole model's multiply-accumulates, for encoder and early exit."""
DEEP = 0.7
"""Cuts with at least this share of the most that the device can do are compared by what they send."""


@dataclass(frozen=True)
class Wanted:
    """What decides the place.

    cut: by name, whatever it costs; None: the best that the device can do.
    cuts: several by name, from input to output, in its place.
    head_macs: most of the model's multiply-accumulates; None: half, or what the profile's time allows.
    head_memory: most bytes of activations; profile: of the device; bytes: of a photo that is sent, about, for
        all crossings or one for each.
    board: a microcontroller that the head has to fit, also one of a cut by name; captured: the model, for it.
    """

    cut: str | None
    head_macs: float | None
    head_memory: int | None
    profile: Profile | None
    bytes: float | tuple[float, ...]
    cuts: tuple[str, ...] = ()
    board: Board | None = None
    captured: Captured | None = None

    @property
    def target(self) -> float:
        """Bytes at the first crossing."""
        return self.bytes[0] if isinstance(self.bytes, tuple) else self.bytes

    def beyond(self, place: Place) -> tuple[float, str] | None:
        """How far the head is from fitting the microcontroller, and what it needs; None where it fits."""
        if self.board is None or self.captured is None:
            return None
        return self.board.over(self.captured, place)


@dataclass(frozen=True)
class Place:
    """Where it is cut, and what is learned there. number: of the cut, from 1."""

    cut: Cut
    number: int
    layout: Layout
    code: CodeShape

    @property
    def head(self) -> Cost:
        """What the device computes: the head, the encoder and the early exit."""
        more = encoder_macs(self.layout, self.code)
        return Cost(
            self.cut.head.macs + more, self.cut.head.weights + encoder_weights(self.layout, self.code)
        )


def each_of(given: float | tuple[float, ...], count: int, name: str) -> tuple[float, ...]:
    """One number for each crossing, where one stands for all. Raises ConfigError for another count."""
    found = given if isinstance(given, tuple) else (given,)
    if len(found) not in (1, count):
        hops = f"one for each of {count} crossings" if count > 1 else "one, because there is one crossing"
        raise ConfigError(f"{name}: {len(found)} numbers; expected {hops}")
    return found * count if len(found) == 1 else found


def choose_places(cuts: Cuts, wanted: Wanted) -> tuple[Place, ...]:
    """The cuts by name, in the order of the graph; or the one of `choose_place`.

    Raises ConfigError as it does, for names that are in another order, and for a head by name that does not
    fit the microcontroller.
    """
    count = max(1, len(wanted.cuts))
    targets = each_of(wanted.bytes, count, "bytes")
    if not wanted.cuts:
        return (choose_place(cuts, wanted),)
    if count >= PARTS:
        raise ConfigError(f"cuts: {count} names; expected {PARTS - 1} at most")
    named = map(cuts.find, wanted.cuts)
    places = tuple(place_at(cuts, cut, target) for cut, target in zip(named, targets, strict=True))
    order = [cuts.cuts.index(place.cut) for place in places]
    for first, second, at, after in zip(places, places[1:], order, order[1:], strict=False):
        if at >= after:
            names = f"{printable(first.cut.name)} {printable(second.cut.name)}"
            raise ConfigError(f"cuts: {names}: the second is not behind the first; expected input to output")
    _require(wanted, places[0])
    return places


def choose_place(cuts: Cuts, wanted: Wanted) -> Place:
    """The cut by name, or the one that uses the device's share well and sends least.

    Raises ConfigError where no cut will do: says by which limits, and which came nearest.
    """
    if not cuts.cuts:
        raise ConfigError("nowhere does one tensor cross the model alone, so it cannot be cut")
    if wanted.cut is not None:
        place = place_at(cuts, cuts.find(wanted.cut), wanted.target)
        _require(wanted, place)
        return place
    limits = _Limits.of(wanted, cuts.whole)
    fitting: list[Place] = []
    refused: tuple[float, str] | None = None
    for cut in cuts.places():
        try:
            place = place_at(cuts, cut, wanted.target)
        except ConfigError as error:
            refused = refused or (math.inf, str(error))
            continue
        over = limits.over(place, wanted.beyond(place))
        if over is None:
            fitting.append(place)
        elif refused is None or over < refused:
            refused = over
    if not fitting:
        nearest = f" ({refused[1]})" if refused else ""
        raise ConfigError(
            f"no cut leaves the device {limits.words}{nearest}; `offramp cuts` lists them, and --cut takes "
            "one by name"
        )
    most = max(each.cut.head.macs for each in fitting)
    deep = [each for each in fitting if each.cut.head.macs >= DEEP * most]
    return min(reversed(deep), key=lambda each: each.cut.int8_bytes)


def _require(wanted: Wanted, place: Place) -> None:
    """Raise ConfigError where a cut by name does not fit the microcontroller."""
    if (beyond := wanted.beyond(place)) is not None and wanted.board is not None:
        raise ConfigError(
            f"{printable(place.cut.name)}: its head needs {beyond[1]}; expected {wanted.board.words}; "
            "without --cut one that fits is chosen"
        )


def place_at(cuts: Cuts, cut: Cut, target: float) -> Place:
    """A code of about ``target`` bytes at a cut. Raises ConfigError for a cut that no bundle can have."""
    name = printable(cut.name)
    layout = Layout.of(cut.shape, name)
    code = choose_shape(layout, target=target, most_macs=ENCODER_SHARE * cuts.whole.macs)
    if cut.tail.weights > FILE_BYTES:
        raise ConfigError(
            f"{name}: the server's half has {cut.tail.weights:,} weights; expected at most {FILE_BYTES:,}, "
            "one byte each"
        )
    if code.channels * cut.int8_bytes > ACTIVATION_SYMBOLS * cut.shape[0]:
        raise ConfigError(f"{name}: its code has over {ACTIVATION_SYMBOLS:,} symbols")
    order = [each.node for each in cuts.cuts]
    return Place(cut, min(10_000, order.index(cut.node) + 1), layout, code)


def encoder_weights(layout: Layout, shape: CodeShape) -> int:
    """Weights of encoder and early exit, without the exit's last layer: as `encoder_macs` counts."""
    source, wide = layout.map_shape[0], shape.width
    steps = max(1, shape.halvings)
    total = sum(wide * (9 * (source if step == 0 else wide) + 10 * wide) for step in range(steps))
    return total + wide * shape.channels + 9 * wide * min(256, 2 * wide)


@dataclass(frozen=True)
class _Limits:
    """Of one device: infinite where there is none. memory: for activations, and weights unless in flash."""

    whole: int
    macs: float
    activations: float
    profile: Profile
    words: str

    @classmethod
    def of(cls, wanted: Wanted, whole: Cost) -> _Limits:
        profile = wanted.profile or Profile()
        if "memory_bytes" not in profile.model_fields_set:
            # Its default is of `offramp plan`.
            profile = profile.model_copy(update={"memory_bytes": math.inf})
        share = wanted.head_macs
        if share is None:
            share = 1.0 if profile.head_seconds is not None else 0.5
        parts = [f"at most {share:.0%} of the multiply-accumulates"] if share < 1 else []
        if wanted.head_memory is not None:
            parts.append(f"at most {wanted.head_memory:,} bytes of activations")
        if profile.memory_bytes < math.inf:
            parts.append(f"at most {profile.memory_bytes:,.0f} bytes of memory")
        if profile.flash_bytes is not None:
            parts.append(f"at most {profile.flash_bytes:,.0f} bytes of weights")
        if profile.head_seconds is not None:
            parts.append(f"at most {profile.head_seconds:g} s a photo at {profile.speed:,.3g} MAC/s")
        if wanted.board is not None:
            parts.append(wanted.board.words)
        activations = math.inf if wanted.head_memory is None else wanted.head_memory
        return cls(whole.macs, share * whole.macs, activations, profile, ", ".join(parts) or "enough")

    def over(self, place: Place, beyond: tuple[float, str] | None) -> tuple[float, str] | None:
        """By how many times a place passes the limit that it passes most, and which; None if it fits.

        beyond: the same of a microcontroller's.
        """
        head, peak, profile = place.head, place.cut.peak_bytes, self.profile
        in_memory = peak if profile.flash_bytes is not None else peak + head.weights
        seconds = head.macs / profile.speed
        needs: Sequence[tuple[float, float | None, str]] = (
            (head.macs, self.macs, f"{head.macs / max(1, self.whole):.0%}, encoder and early exit included"),
            (peak, self.activations, f"{peak:,} bytes of activations"),
            (in_memory, profile.memory_bytes, f"{in_memory:,} bytes of memory"),
            (head.weights, profile.flash_bytes, f"{head.weights:,} bytes of weights"),
            (seconds, profile.head_seconds, f"{seconds:.3g} s a photo"),
        )
        passed = [(need / most, text) for need, most, text in needs if most is not None and need > most]
        if beyond is not None:
            passed.append(beyond)
        if not passed:
            return None
        times, text = max(passed)
        return times, f"{printable(place.cut.name)} needs {text}"


def at_the_same(place: Place, cuts: Cuts) -> Place:
    """The same place of a model that was captured again."""
    return replace(place, cut=cuts.find(place.cut.name))
