"""A classifier as one list of named sub-blocks, which can be cut at any of them.

A backbone is a stem, sub-blocks and a classifier. The stem has position 0 and every sub-block the next
number, so a sub-block's position *is* the exit number of the paper (Sec. V-A, Fig. 3). What flows from one
sub-block to the next is the activation and, inside a residual block, the block's input that is still to be
added.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from offramp.training.models.layers import Classifier, ConvUnit, Flow, SubBlock


class Backbone(nn.Module):
    """An unsplit classifier: float32 images [N, 3, H, W] to float32 logits [N, K].

    Args:
        stem: the unit at position 0.
        blocks: the sub-blocks at positions 1, 2, ...
        top: units after the last position at which an exit can sit.
        channels: channels that reach the classifier.
        classes: number of classes K.
        input_shape: (3, H, W) of one image.
    """

    def __init__(
        self,
        stem: ConvUnit,
        blocks: Iterable[SubBlock],
        top: Iterable[ConvUnit],
        *,
        channels: int,
        classes: int,
        input_shape: tuple[int, int, int],
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([SubBlock("stem", stem), *blocks])
        self.top = nn.ModuleList(top)
        self.classifier = Classifier(channels, classes)
        self.classes = classes
        self.input_shape = input_shape

    def positions(self) -> list[SubBlock]:
        """The sub-blocks by exit number; entry 0 is the stem."""
        return [block for block in self.blocks if isinstance(block, SubBlock)]

    def run(self, flow: Flow, start: int, stop: int) -> Flow:
        """Run the sub-blocks at positions start <= p < stop."""
        for block in self.positions()[start:stop]:
            flow = block(flow)
        return flow

    def finish(self, flow: Flow, start: int) -> Tensor:
        """From position ``start`` to the logits of the final exit."""
        x = self.run(flow, start, len(self.blocks)).x
        for unit in self.top:
            x = unit(x)
        logits: Tensor = self.classifier(x)
        return logits

    def forward(self, images: Tensor) -> Tensor:
        return self.finish(Flow(images), 0)
