"""Which numbers a device has used: a replay window, as IPsec has it (RFC 4303, section 3.4.3). No I/O."""

from __future__ import annotations

from dataclasses import dataclass

WINDOW = 64
"""How far behind the highest number a request may come."""
_MASK = (1 << WINDOW) - 1


@dataclass(slots=True)
class Window:
    """One device's. highest: -1 before the first number. seen: bit i for the number i below the highest."""

    highest: int = -1
    seen: int = 0

    def is_new(self, number: int) -> bool:
        """Whether a request with this number may be taken; whether it was taken is ``has``."""
        return number > self.highest or (self.highest - number < WINDOW and not self.has(number))

    def has(self, number: int) -> bool:
        """Whether this number was taken, as far as the window goes back."""
        behind = self.highest - number
        return 0 <= behind < WINDOW and bool(self.seen >> behind & 1)

    def take(self, number: int) -> None:
        """A request with this number was taken."""
        if number > self.highest:
            ahead = number - self.highest
            self.seen = (self.seen << ahead & _MASK if ahead < WINDOW else 0) | 1
            self.highest = number
        else:
            self.seen |= 1 << (self.highest - number)
