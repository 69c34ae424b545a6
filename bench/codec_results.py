"""What ``offramp bench codec`` finds, as it stands in its JSON."""

from __future__ import annotations

from dataclasses import dataclass

from offramp.bench.activations import Variant
from offramp.common.codec.activation import Shape


@dataclass(frozen=True)
class Row:
    """One coder on one kind of activation. MB/s are 10^6 symbols a second."""

    name: str
    shipped: bool
    lanes: int | None
    table_bytes: int | None
    bytes_mean: float | None
    """Of a frame, sent raw where coding would not be shorter; None for a slow twin of another."""
    encode_mb_s: float
    decode_mb_s: float
    """In the median round."""
    encode_best_mb_s: float
    decode_best_mb_s: float
    encode_ratio: dict[str, float]
    decode_ratio: dict[str, float]
    """How many times as fast as each yardstick: the median over rounds in which both ran."""
    overhead_mean: float | None
    overhead_max: float | None
    """Bytes of a frame beyond what its symbols take in these tables; None for a peer."""


@dataclass(frozen=True)
class Case:
    """One kind of activation, and every coder on it."""

    source: str
    """``synthetic``, or the bundle's name."""
    shape: Shape
    variant: Variant | None
    bits: float | None
    frames: int
    entropy_tensor: float
    entropy_channel: float
    """Empirical entropies of the measured frames, bits a symbol."""
    rows: list[Row]

    @property
    def symbols(self) -> int:
        """C·H·W."""
        return self.shape[0] * self.shape[1] * self.shape[2]

    @property
    def name(self) -> str:
        """What a person calls it."""
        shape = "×".join(map(str, self.shape))
        return f"{shape} {self.source if self.bits is None else f'{self.bits:g} bit, {self.variant}'}"

    def row(self, name: str) -> Row | None:
        """The coder of this name, if it ran."""
        return next((row for row in self.rows if row.name == name), None)

    @property
    def shipped(self) -> Row | None:
        """What calibration would ship; None for a bundle of raw symbols."""
        return next((row for row in self.rows if row.shipped), None)


@dataclass(frozen=True)
class Verdict:
    """One figure held against what was promised."""

    case: str
    what: str
    value: float
    least: float | None
    most: float | None

    @property
    def holds(self) -> bool:
        """Whether the figure is within its bounds."""
        return (self.least is None or self.value >= self.least) and (
            self.most is None or self.value <= self.most
        )
