"""Training steps as CUDA graphs, one for each shape of a batch.

A step of a narrow network is a thousand short kernels, which take longer to start one by one than to run:
MobileNetV2 at 160x160 in batches of 128 takes 20.2 ms a step on an H100, 11.1 ms as a graph, and
``torch.compile`` gained nothing there (docs/experiments.md). That is why this stays although the rest of the
loop is a library's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

_STEPS_BEFORE_CAPTURE = 3


class CapturedSteps:
    """A function that leaves gradients, replayed.

    Args:
        gradients: from images and labels to the loss, a scalar; leaves its gradients in the parameters.
        parameters: all of them.
        device: a GPU.
    """

    def __init__(
        self,
        gradients: Callable[[Tensor, Tensor], Tensor],
        parameters: Sequence[nn.Parameter],
        device: torch.device,
    ) -> None:
        self._gradients, self._parameters, self._device = gradients, parameters, device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._eager: dict[torch.Size, int] = {}
        self._graphs: dict[torch.Size, _CapturedStep] = {}

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        """The first steps of a shape run as they are, on a stream of their own: a capture must not be the
        first to allocate."""
        shape = images.shape
        step = self._graphs.get(shape)
        if step is None and self._eager.setdefault(shape, 0) < _STEPS_BEFORE_CAPTURE:
            self._eager[shape] += 1
            current = torch.cuda.current_stream(self._device)
            self._stream.wait_stream(current)
            with torch.cuda.stream(self._stream):
                loss = self._gradients(images, labels)
            current.wait_stream(self._stream)
            return loss
        if step is None:
            step = self._graphs[shape] = self._captured(images, labels)
        step.images.copy_(images)
        step.labels.copy_(labels)
        step.graph.replay()
        for parameter, gradient in zip(self._parameters, step.gradients, strict=True):
            parameter.grad = gradient
        return step.loss.clone()

    def _captured(self, images: Tensor, labels: Tensor) -> _CapturedStep:
        graph = torch.cuda.CUDAGraph()
        images, labels = images.clone(memory_format=torch.preserve_format), labels.clone()
        with torch.cuda.graph(graph, stream=self._stream):
            loss = self._gradients(images, labels)
        return _CapturedStep(graph, images, labels, loss, [one.grad for one in self._parameters])


@dataclass(frozen=True)
class _CapturedStep:
    """What a replay reads and what it writes."""

    graph: torch.cuda.CUDAGraph
    images: Tensor
    labels: Tensor
    loss: Tensor
    gradients: list[Tensor | None]
