"""Which of the recorded runs a table or figure shows, and how they were trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from offramp.bench.plots import Series
from offramp.common.errors import DataError
from offramp.training.record import Record

KB = 1024
GRID_SHOWN = (0.0, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
"""Of the thresholds of a curve: those that a table has a column for."""
_MOBILENET = "mobilenet-v2"

Weight = Callable[[Record], float]


def entropy_weight(record: Record) -> float:
    """λ_e."""
    return record.entropy_weight


def sparsity_weight(record: Record) -> float:
    """λ_s."""
    return record.sparsity_weight


def runs_at_exit(
    records: Sequence[Record],
    exit_number: int,
    *,
    weight: Weight = entropy_weight,
    backbone: str = _MOBILENET,
    stepped: bool = False,
) -> dict[float, Record]:
    """The runs of one exit with a last stage and one kind of regulariser, by its weight, in order.

    stepped: those whose activation has a step chosen by the exits' answers; else the paper's 8 bits.

    Raises DataError if no run fits, or two of one weight.
    """
    other = sparsity_weight if weight is entropy_weight else entropy_weight
    found = [
        record
        for record in records
        if (record.backbone, record.exit) == (backbone, exit_number)
        and record.epochs["regularised"] > 0
        and other(record) == 0
        and not record.bottleneck
        and (record.divergence > 0) == stepped
    ]
    if not found:
        raise DataError(f"no run of {backbone} with exit {exit_number} and a regularised stage among them")
    return dict(sorted(_distinct(found, weight).items()))


def runs_if_any(records: Sequence[Record], exit_number: int, *, stepped: bool = False) -> dict[float, Record]:
    """The same by λ_e; empty if no run fits."""
    try:
        return runs_at_exit(records, exit_number, stepped=stepped)
    except DataError:
        return {}


def without_last_stage(records: Sequence[Record]) -> dict[int, Record]:
    """The runs of MobileNetV2 that end after the exit stage, by exit. Raises DataError if no run fits."""
    found = [
        r for r in records if r.backbone == _MOBILENET and r.epochs["regularised"] == 0 and r.divergence == 0
    ]
    if not found:
        raise DataError(f"no run of {_MOBILENET} without a regularised stage among them")
    return dict(sorted((int(key), r) for key, r in _distinct(found, lambda r: r.exit).items()))


def _distinct(records: Sequence[Record], key: Weight) -> dict[float, Record]:
    by_key: dict[float, Record] = {}
    for record in records:
        if (other := by_key.setdefault(key(record), record)) is not record:
            raise DataError(f"{other.name} and {record.name} are runs of one configuration: keep one")
    return by_key


def value_at(run: Record, threshold: float, values: Sequence[float]) -> float:
    """The value of a curve at a threshold of its grid."""
    at = min(range(len(values)), key=lambda i: abs(run.curve.threshold[i] - threshold))
    return values[at]


def by_threshold(name: str, run: Record) -> Series:
    """The float model's accuracy, per cent, against T_c."""
    return Series(name, run.curve.threshold, [100 * value for value in run.curve.accuracy_float])


def describe(records: Sequence[Record]) -> str:
    """One sentence on how these were trained and measured: data, schedule, seed, hardware."""

    def each(values: list[str]) -> str:
        return " / ".join(sorted(set(values)))

    epochs = each([" + ".join(_epochs(r, s) for s in ("base", "exit", "regularised")) for r in records])
    data = each(
        [
            f"{r.dataset.name} ({r.dataset.train:,} to train, {r.dataset.validation:,} to validate, "
            f"{r.dataset.test:,} to test)"
            for r in records
        ]
    )
    batch = each([str(r.batch_size) for r in records])
    seed = each([str(r.seed) for r in records])
    where = each([f"{r.machine.device} ({r.machine.precision})" for r in records])
    smaller = "".join(
        f" The first {len(sides)} epochs of base saw {'/'.join(map(str, sorted(set(sides))))} pixels a side."
        for sides in sorted({tuple(r.sides) for r in records} - {()})
    )
    return (
        f"Data: {data}. Epochs: {epochs} (paper: 300 + 50 + 10), batches of {batch}, seed {seed}, on {where}."
        f"{smaller}"
    )


def _epochs(record: Record, stage: str) -> str:
    """Epochs of a stage, as passes over all training images."""
    share = record.images.get(stage, record.dataset.train) / record.dataset.train
    return f"{round(record.epochs[stage] * min(1.0, share), 2):g}"
