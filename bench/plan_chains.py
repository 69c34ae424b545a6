"""Chains and pairs of ``offramp split`` for ``offramp plan``: from each bundle's manifest and report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from offramp.bench.messages import framed_bytes
from offramp.bench.plan_curves import Between, SplitCurve
from offramp.common.bundle.document import MANIFEST_BYTES, parse_manifest
from offramp.common.bundle.manifest import MANIFEST, PARTS
from offramp.common.errors import BundleError, DataError, printable
from offramp.common.files import read_bounded

REPORT = "report.json"
REPORT_BYTES = 32 << 20
_Share = Annotated[float, Field(ge=0, le=1)]
_Amount = Annotated[float, Field(ge=0)]


class _Lenient(BaseModel):
    model_config = ConfigDict(frozen=True, allow_inf_nan=False)


class _Device(_Lenient):
    macs: int = Field(gt=0)
    peak_bytes: int = Field(ge=0)


class _Part(_Lenient):
    macs: int = Field(ge=0)
    payload_bytes_mean: _Amount


class _Point(_Lenient):
    thresholds: tuple[_Share, ...]
    accuracy: _Share
    answered: tuple[_Share, ...]
    sent_bytes_mean: tuple[_Amount, ...]


class _Report(_Lenient):
    """What a plan needs of a report of ``offramp split``."""

    bundle: str
    device: _Device
    parts: Annotated[list[_Part], Field(max_length=PARTS)] = []
    points: Annotated[list[_Point], Field(max_length=100_000)] = []


def read_curves(folder: Path) -> list[SplitCurve]:
    """A curve of every bundle of ``offramp split`` in a folder, by name; DataError if one is damaged."""
    paths = sorted(folder.glob(f"*/{REPORT}")) + sorted(folder.glob(REPORT))
    return [replace(_curve(path), bundle=path.parent) for path in paths if (path.parent / MANIFEST).exists()]


def _curve(path: Path) -> SplitCurve:
    try:
        report = _Report.model_validate_json(
            read_bounded(path, REPORT_BYTES, error=DataError, expected="a report of `offramp split`")
        )
        beside = path.parent / MANIFEST
        manifest = parse_manifest(
            read_bounded(beside, MANIFEST_BYTES, error=DataError, expected="a bundle's manifest")
        )
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the document"
        raise DataError(f"{path}: {printable(where)}: {printable(first['msg'])}") from None
    except BundleError as error:
        raise DataError(f"{path.parent}: {error}") from None
    weights, number = manifest.head.weights or 0, manifest.cut.number
    costs = (report.device.macs, weights, weights + report.device.peak_bytes)
    if report.parts:
        return _of_chain(path, report, number, costs)
    rows = manifest.figures.thresholds
    exits = np.array([row.exit_rate for row in rows])
    payload = manifest.figures.payload_bytes_mean
    frame = _frame(payload)
    return SplitCurve(
        printable(report.bundle),
        number,
        True,
        *costs,
        np.array([row.threshold for row in rows]),
        np.array([row.accuracy for row in rows]),
        exits,
        np.array([row.payload_bytes_mean for row in rows]) + frame * (1 - exits),
        payload + frame,
    )


def _of_chain(path: Path, report: _Report, number: int, costs: tuple[int, int, int]) -> SplitCurve:
    parts = len(report.parts)
    for point in report.points:
        sizes = len(point.thresholds) + 1, len(point.answered), len(point.sent_bytes_mean) + 1
        if set(sizes) != {parts}:
            raise DataError(f"{path}: points: has one of {sizes[1]} parts; expected {parts}, as `parts` says")
    if not report.points:
        raise DataError(f"{path}: points: is empty; expected what `offramp split --cuts` measured")
    macs, payloads = zip(*((part.macs, part.payload_bytes_mean) for part in report.parts), strict=True)
    name = f"{printable(report.bundle)}, {parts} parts"
    return curve_of(name, number, costs, macs, payloads, report.points)


class Measured(Protocol):
    """A chain at one set of thresholds, as `training.calibrate.chain.Point`."""

    @property
    def thresholds(self) -> tuple[float, ...]: ...
    @property
    def accuracy(self) -> float: ...
    @property
    def answered(self) -> tuple[float, ...]: ...
    @property
    def sent_bytes_mean(self) -> tuple[float, ...]: ...


def curve_of(
    name: str,
    number: int,
    costs: tuple[int, int, int],
    macs: Sequence[int],
    payloads: Sequence[float],
    points: Sequence[Measured],
) -> SplitCurve:
    """A chain's curve.

    Args:
        number: of its first cut; costs: the device's MACs, weights and memory.
        macs: of each part; payloads: bytes of an image that crosses behind each part.
        points: what was measured at each set of thresholds.
    """

    def array(of: Callable[[Measured], float]) -> NDArray[np.float64]:
        return np.array([of(point) for point in points])

    def hop(at: int) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
        """Share that is sent behind part ``at``, its message bytes over all images, and of one image."""
        sent = array(lambda point: 1 - sum(point.answered[: at + 1]))
        frame = _frame(payloads[at])
        return sent, array(lambda point: point.sent_bytes_mean[at]) + frame * sent, payloads[at] + frame

    _, message, offloaded = hop(0)
    return SplitCurve(
        name,
        number,
        True,
        *costs,
        array(lambda point: point.thresholds[0]),
        array(lambda point: point.accuracy),
        array(lambda point: point.answered[0]),
        message,
        offloaded,
        tuple(Between(macs[at], *hop(at)) for at in range(1, len(macs) - 1)),
        tuple(point.thresholds[1:] for point in points),
    )


def _frame(payload: float) -> int:
    return framed_bytes(round(payload)) - round(payload)


def later_bytes(curve: SplitCurve, at: int) -> Sequence[float]:
    """Mean message bytes of each hop behind the first, at one point of the curve."""
    return [float(part.message_bytes[at]) for part in curve.between]
