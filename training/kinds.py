"""What a field of ``offramp split`` takes: from a flag's text, or from a recipe's TOML."""

from __future__ import annotations

import argparse
import json
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from offramp.common.arguments import LEAST_POINTS, byte_count

_UNITS = {"": 1, "B": 1, "kB": 1000, "KB": 1000, "MB": 1_000_000, "kiB": 1024, "KiB": 1024, "MiB": 1 << 20}


class Wrong(ValueError):
    """A value that a field does not take."""


@dataclass(frozen=True)
class Kind:
    """What a field takes: from a flag's text or from TOML; ``expected`` in words."""

    expected: str
    toml: str

    def from_text(self, text: str) -> Any:
        """A flag's value. Raises Wrong."""
        return self.from_toml(text)

    def from_toml(self, value: object) -> Any:
        """A recipe's value. Raises Wrong."""
        raise NotImplementedError


@dataclass(frozen=True)
class Text(Kind):
    """Any text but none."""

    expected: str = "text"
    toml: str = "text"

    def from_toml(self, value: object) -> str:
        if not isinstance(value, str) or not value or "\0" in value:
            raise Wrong
        return value


@dataclass(frozen=True)
class File(Text):
    """A path."""

    expected: str = "a path"
    toml: str = "path"


@dataclass(frozen=True)
class Choice(Text):
    """One of a few words."""

    words: tuple[str, ...] = ()

    @classmethod
    def of(cls, *words: str) -> Choice:
        """One of these."""
        listed = " or ".join(json.dumps(word) for word in words)
        return cls(f"one of {', '.join(words)}", listed, words)

    def from_toml(self, value: object) -> str:
        if value not in self.words:
            raise Wrong
        return super().from_toml(value)


@dataclass(frozen=True)
class Switch(Kind):
    """True or false; as a flag, with and without ``no-``."""

    expected: str = "true or false"
    toml: str = "true or false"

    def from_toml(self, value: object) -> bool:
        if not isinstance(value, bool):
            raise Wrong
        return value


@dataclass(frozen=True)
class Number(Kind):
    """A number in a range, both ends included."""

    whole: bool = False
    low: float = 0.0
    high: float = 0.0

    @classmethod
    def of(cls, low: float, high: float, *, whole: bool = False, unit: str = "") -> Number:
        """From ``low`` to ``high``; unit: in words, for the error."""
        name = "a whole number" if whole else "a number"
        shown = f"{low:.10g} … {high:.10g}"
        return cls(
            f"{unit or name}, {shown}", f"{'integer' if whole else 'number'}, {shown}", whole, low, high
        )

    def from_text(self, text: str) -> float:
        with suppress(ValueError):
            return self.from_toml(int(text) if self.whole else float(text))
        raise Wrong

    def from_toml(self, value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, int if self.whole else int | float):
            raise Wrong
        # NaN is in no range.
        if not self.low <= value <= self.high:
            raise Wrong
        return value if self.whole else float(value)


@dataclass(frozen=True)
class Several(Number):
    """A number in a range, or one for each of several crossings; as a flag with commas between them."""

    @classmethod
    def of(cls, low: float, high: float, *, whole: bool = False, unit: str = "") -> Several:
        """As of `Number`."""
        one = Number.of(low, high, whole=whole, unit=unit)
        return cls(f"{one.expected}, or one for each crossing", f"{one.toml}, or a list", whole, low, high)

    def from_text(self, text: str) -> Any:
        return tuple(map(super().from_text, text.split(","))) if "," in text else super().from_text(text)

    def from_toml(self, value: object) -> Any:
        if not isinstance(value, list):
            return super().from_toml(value)
        if not value:
            raise Wrong
        return tuple(map(super().from_toml, value))


@dataclass(frozen=True)
class Points(Number):
    """Points of accuracy. A share of one, as 0.01, is not mistaken for points."""

    expected: str = f"points, 0 or {LEAST_POINTS:g} … 100; 1 is one of 100"
    toml: str = "number, 0 … 100"
    high: float = 100.0

    def from_toml(self, value: object) -> float:
        if 0 < (points := super().from_toml(value)) < LEAST_POINTS:
            raise Wrong
        return points


@dataclass(frozen=True)
class Size(Kind):
    """Bytes, from 1: a whole number, or text with a unit."""

    expected: str = "a size, as 500kB or 2MB"
    toml: str = 'size, as `"500kB"`'

    def from_toml(self, value: object) -> int:
        found = 0
        if isinstance(value, int) and not isinstance(value, bool):
            found = value
        elif isinstance(value, str):
            digits = value.rstrip("BkKMi ")
            with suppress(ValueError, KeyError, OverflowError):
                found = round(float(digits) * _UNITS[value[len(digits) :].strip()])
        if found < 1:
            raise Wrong
        return found


@dataclass(frozen=True)
class Memory(Kind):
    """Bytes of a microcontroller, as `offramp cuts` takes them: a number, or text with k or m, of 1024."""

    expected: str = "bytes, as 65536, 64k or 1m"
    toml: str = 'bytes, as `"256k"`'

    def from_toml(self, value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise Wrong
        try:
            return byte_count(str(value))
        except argparse.ArgumentTypeError:
            raise Wrong from None


def _numbers(value: list[Any]) -> tuple[float, ...]:
    """A list's numbers. Raises Wrong where another thing is in it."""
    if not all(isinstance(each, int | float) and not isinstance(each, bool) for each in value):
        raise Wrong
    return tuple(map(float, value))


@dataclass(frozen=True)
class _Listed(Kind):
    """Numbers; as a flag with commas between them."""

    def from_text(self, text: str) -> tuple[float, ...]:
        with suppress(ValueError):
            found: tuple[float, ...] = self.from_toml([float(part) for part in text.split(",")])
            return found
        raise Wrong


@dataclass(frozen=True)
class Levels(_Listed):
    """Three numbers, one for each of R, G and B, or one for all."""

    expected: str = "one or three numbers from 0 to 1, as 0.485,0.456,0.406"
    toml: str = "number or list of three"

    def from_toml(self, value: object) -> tuple[float, ...]:
        numbers = _numbers(value if isinstance(value, list) else [value])
        if len(numbers) == 1:
            numbers *= 3
        if len(numbers) != 3 or not all(0 < each < 10 for each in numbers):
            raise Wrong
        return numbers


@dataclass(frozen=True)
class Values(_Listed):
    """Several numbers. rising: two, the first below the second; low: none below it."""

    expected: str = "numbers with commas between them"
    toml: str = "list of numbers"
    rising: bool = False
    low: float = -1e30

    def from_toml(self, value: object) -> tuple[float, ...]:
        if not isinstance(value, list) or not value:
            raise Wrong
        numbers = _numbers(value)
        if not all(self.low <= each < 1e30 for each in numbers):
            raise Wrong
        if self.rising and (len(numbers) != 2 or numbers[0] >= numbers[1]):
            raise Wrong
        return numbers


@dataclass(frozen=True)
class Names(Kind):
    """Several names; as a flag with commas between them."""

    expected: str = "names, with commas between them"
    toml: str = "list of text"

    def from_text(self, text: str) -> tuple[str, ...]:
        return self.from_toml([name for name in text.split(",") if name])

    def from_toml(self, value: object) -> tuple[str, ...]:
        if not isinstance(value, list) or not all(isinstance(each, str) and each for each in value):
            raise Wrong
        return tuple(value)


@dataclass(frozen=True)
class Places(Names):
    """Names in an order; as a flag with spaces between them."""

    expected: str = "names in order, as `offramp cuts` has them"
