"""The early exit: what is pooled and classified at the split."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from offramp.common.errors import ConfigError
from offramp.training.models.layers import ConvUnit


class ExitBranch(nn.Module):
    """The early exit of Sec. III-B: average pool (kernel 3, stride 2), then fully connected.

    Args:
        shape: what it sees, (C, H, W); H and W, where it is pooled, at least the kernel's side.
        classes: number of classes K.
        kernel: side of the pool's kernel; None: all that there is to pool, whose sides are equal.
        widths: channels of 3x3 convolutions of its own before the pool, each with a stride of 2; none: the
            paper's.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        classes: int,
        kernel: int | None = 3,
        widths: Sequence[int] = (),
    ) -> None:
        super().__init__()
        channels, height, width = shape
        self.convolutions = nn.ModuleList()
        for wide in widths:
            self.convolutions.append(ConvUnit(channels, wide, 3, stride=2))
            channels, height, width = wide, -(-height // 2), -(-width // 2)
        kernel = height if kernel is None else kernel
        if min(height, width) < kernel:
            raise ConfigError(
                f"no early exit fits a {height}x{width} activation: its pool needs {kernel}x{kernel}"
            )
        self.channels, self.kernel = channels, kernel
        self.pool = nn.AvgPool2d(kernel, stride=2)
        rows, columns = ((side - kernel) // 2 + 1 for side in (height, width))
        self.linear = nn.Linear(channels * rows * columns, classes)

    @classmethod
    def of_code(cls, shape: tuple[int, int, int], classes: int) -> ExitBranch:
        """The one behind an encoder, whose few rows and columns all count: kernel 2 where they are even."""
        return cls(shape, classes, 2 if shape[1] % 2 == shape[2] % 2 == 0 else 3)

    @classmethod
    def widened(cls, shape: tuple[int, int, int], classes: int, widths: Sequence[int]) -> ExitBranch:
        """One with convolutions of its own, whose pool is over all that they leave; sides are equal."""
        return cls(shape, classes, None, widths)

    def units(self) -> list[ConvUnit]:
        """Its convolutions."""
        return [unit for unit in self.convolutions if isinstance(unit, ConvUnit)]

    def forward(self, x: Tensor) -> Tensor:
        for unit in self.convolutions:
            x = unit(x)
        logits: Tensor = self.linear(self.pool(x).flatten(1))
        return logits
