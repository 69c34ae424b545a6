"""A backbone cut at one of its sub-blocks, with an early exit at the cut.

The same network as before, in two halves and a branch:

    image -> [stem, 1, ... k] -> activation -> [k+1, ...] -> top -> classifier -> logits of the final exit
                                      \\-> ExitBranch -> logits of the early exit
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from offramp.common.errors import ConfigError
from offramp.training.models.backbone import Backbone
from offramp.training.models.bottleneck import Bottleneck
from offramp.training.models.exit_branch import ExitBranch
from offramp.training.models.layers import Flow, SubBlock


@dataclass(frozen=True)
class Outputs:
    """``early`` and ``final`` logits [N, K], and all that is sent, ``activation`` [N, C, H, W].

    Behind a bottleneck ``activation`` is its encoder's output before rounding.
    """

    early: Tensor
    final: Tensor
    activation: Tensor


class SplitModel(nn.Module):
    """A backbone cut after position ``exit_number``, with an early exit there.

    A cut inside a residual block leaves two tensors to send: the activation and the block's input (Sec.
    III-A). Both are sent, stacked along the channels in this order; the early exit sees the activation only.
    With ``insert`` a narrow code is sent in place of the activation.

    Raises:
        ConfigError: if the backbone has no such exit, or the two tensors differ in height or width.
    """

    def __init__(self, backbone: Backbone, exit_number: int) -> None:
        super().__init__()
        last = len(backbone.blocks) - 1
        if not 1 <= exit_number <= last:
            raise ConfigError(f"exit {exit_number} does not exist: this model has exits 1 to {last}")
        self.backbone = backbone
        self.exit_number = exit_number
        flow = self._probe()
        self.exit_shape = _image_shape(flow.x)
        skip_channels = 0
        if flow.skip is not None:
            if flow.skip.shape[2:] != flow.x.shape[2:]:
                raise ConfigError(
                    f"exit {exit_number} cuts a residual block whose branches differ in height or width: "
                    "split after the block instead"
                )
            skip_channels = flow.skip.shape[1]
        channels, height, width = self.exit_shape
        self.split_shape = (channels + skip_channels, height, width)
        self.branch = ExitBranch(self.exit_shape, backbone.classes)
        self.bottleneck: Bottleneck | None = None
        self.exit_behind = False

    def insert(self, bottleneck: Bottleneck, *, exit_behind: bool = False) -> None:
        """Put a bottleneck at the split; never inside a residual block, where two tensors travel.

        exit_behind: a new early exit takes the old one's place, which sees the encoder's last layer but one
            in place of the activation: deeper, and no dearer, as that has to be computed for the code.

        Raises:
            ConfigError: if that layer is too small for an early exit.
        """
        assert self.split_shape == self.exit_shape
        if exit_behind:
            self.branch = ExitBranch.of_code(bottleneck.hidden_shape, self.backbone.classes)
        self.bottleneck, self.exit_behind = bottleneck, exit_behind
        self.split_shape = bottleneck.shape

    def widen_exit(self, widths: Sequence[int]) -> None:
        """Put a new early exit in the old one's place: `ExitBranch.widened`."""
        behind = self.bottleneck if self.exit_behind else None
        shape = self.exit_shape if behind is None else behind.hidden_shape
        self.branch = ExitBranch.widened(shape, self.backbone.classes, widths)

    @property
    def seen(self) -> int:
        """Which of ``blocks`` it is whose output the early exit sees."""
        return self.cut - 2 if self.exit_behind else self.exit_number

    @property
    def cut(self) -> int:
        """How many of ``blocks`` run on the device."""
        encoder = [] if self.bottleneck is None else self.bottleneck.blocks()[0]
        return self.exit_number + 1 + len(encoder)

    def blocks(self) -> list[SubBlock]:
        """All sub-blocks from image to top, those of a bottleneck among them."""
        positions, after = self.backbone.positions(), self.exit_number + 1
        encoder, decoder = ([], []) if self.bottleneck is None else self.bottleneck.blocks()
        return [*positions[:after], *encoder, *decoder, *positions[after:]]

    def _probe(self) -> Flow:
        training = self.backbone.training
        self.backbone.eval()
        with torch.no_grad():
            flow = self.backbone.run(
                Flow(torch.zeros(1, *self.backbone.input_shape)), 0, self.exit_number + 1
            )
        self.backbone.train(training)
        return flow

    def device_parts(self) -> list[nn.Module]:
        """What is on the device whatever is sent: stem and sub-blocks up to the split."""
        return list[nn.Module](self.backbone.positions()[: self.exit_number + 1])

    def server_parts(self) -> list[nn.Module]:
        """What is on the server whatever is sent: sub-blocks behind the split, top and classifier."""
        backbone = self.backbone
        return [*backbone.positions()[self.exit_number + 1 :], *backbone.top, backbone.classifier]

    def activation(self, images: Tensor) -> Tensor:
        """float32 images [N, 3, H, W] to all that the rest of the network needs: float32 [N, C,
        *exit_shape[1:]], the open residual branch behind the activation."""
        flow = self.backbone.run(Flow(images), 0, self.exit_number)
        # The transmitted activation is counted in 256 bins, finer than bfloat16 near the ends of its range.
        with torch.autocast(images.device.type, enabled=False):
            skip = None if flow.skip is None else flow.skip.float()
            flow = self.backbone.run(Flow(flow.x.float(), skip), self.exit_number, self.exit_number + 1)
        return flow.x if flow.skip is None else torch.cat([flow.x, flow.skip], dim=1)

    def encode(self, activation: Tensor) -> tuple[Tensor, Tensor]:
        """`activation` to what is sent and the early logits [N, K].

        What is sent, float32 [N, *split_shape], is the activation itself, or a bottleneck's code that is not
        yet rounded.
        """
        sees = activation[:, : self.exit_shape[0]]
        if self.bottleneck is None:
            return activation, self._early(sees)
        *others, last = self.bottleneck.blocks()[0]
        hidden = activation
        for block in others:
            hidden = block(Flow(hidden)).x
        with torch.autocast(activation.device.type, enabled=False):
            code = last(Flow(hidden.float())).x
        return code, self._early(hidden if self.exit_behind else sees)

    def _early(self, sees: Tensor) -> Tensor:
        logits: Tensor = self.branch(sees)
        return logits

    def decode(self, sent: Tensor) -> Tensor:
        """What is sent [N, *split_shape] to `activation`; a bottleneck's code is rounded first."""
        if self.bottleneck is None:
            return sent
        flow = Flow(self.bottleneck.rounding(sent))
        for block in self.bottleneck.blocks()[1]:
            flow = block(flow)
        return flow.x

    def head(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """float32 images [N, 3, H, W] to what is sent [N, *split_shape] and the early logits [N, K]."""
        return self.encode(self.activation(images))

    def tail(self, sent: Tensor) -> Tensor:
        """What is sent [N, *split_shape] to the final logits [N, K]."""
        return self.finish(self.decode(sent))

    def finish(self, activation: Tensor) -> Tensor:
        """`activation` to the final logits [N, K]."""
        channels = self.exit_shape[0]
        skip = activation[:, channels:] if activation.shape[1] > channels else None
        return self.backbone.finish(Flow(activation[:, :channels], skip), self.exit_number + 1)

    def forward(self, images: Tensor) -> Outputs:
        activation, early = self.head(images)
        return Outputs(early, self.tail(activation), activation)


def _image_shape(x: Tensor) -> tuple[int, int, int]:
    _, channels, height, width = x.shape
    return channels, height, width
