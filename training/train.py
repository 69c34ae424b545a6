"""The paper's schedule (Sec. V): base -> exit -> regularised, each from the best epoch of the one before.

    base         the backbone alone                    kept: best final-exit accuracy
    exit         with an early exit, Eq. (1)           kept: best mean of early and final accuracy
    code         only with a bottleneck: this alone    kept: smallest error and rate
    regularised  Eq. (2): Eq. (1) plus (3) and/or (6)  kept: best mean of early and final accuracy
                 with a bottleneck: answers and rate   kept: smallest loss
    branch       the early exit alone, or a wider one  kept: smallest loss
    restart      only with a bottleneck: all of it     kept: smallest loss
                 once more, the wider exit with it
    tail         only with a bottleneck: the server's  kept: smallest loss
                 half, on the INT8 head's own symbols

Accuracy is top-1 on the validation images. Of equally good epochs the last is kept: in the last stage it is
the one whose activations have had longest to shrink.

After every epoch (on a GPU, every few seconds) a checkpoint holds all that the rest of the run depends on, so
a run that was killed and resumed ends with the same bits as one that was not (on one CPU, with one number of
threads). A finished stage's checkpoint is its best model alone, a quarter as long.

On a GPU the images lie in its memory, where they are shuffled and augmented, and networks run in bfloat16
with float32 weights; only the layer whose output travels, and the losses, run in float32.
"""

from __future__ import annotations

import copy
import ctypes
import math
import os
import pickle
import platform
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self, TypedDict

import torch
from torch import Tensor, nn

from offramp.common.errors import ConfigError, DataError
from offramp.common.part.session import session
from offramp.training.data.datasets import (
    Dataset,
    Labelled,
    augment,
    cropped,
    pasted,
    recompressed,
    to_float,
    to_pixels,
)
from offramp.training.export import export
from offramp.training.losses import EntropyLoss, objective, sparsity_loss
from offramp.training.models.backbone import Backbone
from offramp.training.models.bottleneck import ZERO_POINT, Bottleneck, BottleneckShape
from offramp.training.models.exit_branch import ExitBranch
from offramp.training.models.layers import Flow, folded
from offramp.training.models.networks import BACKBONES
from offramp.training.models.split_model import Outputs, SplitModel
from offramp.training.quantize.quantize import quantize_calibrated
from offramp.training.recipe import (
    STAGES_OF_A_CODE,
    BaseRecipe,
    BranchRecipe,
    RateRecipe,
    Recipe,
    RegularisedRecipe,
    StageRecipe,
    TaughtRecipe,
    TrainRecipe,
)
from offramp.training.record import Stage

_EVALUATION_BATCH = 256
# Each stage's own, those of one seed apart from the next one's.
_STREAMS: dict[Stage, int] = {
    "base": 0,
    "exit": 1,
    "regularised": 2,
    "code": 1 << 32,
    "restart": 3 << 32,
    "tail": 1 << 33,
    "branch": 5 << 32,
}
# Samples of the entropy that an epoch of the last stage leaves (Fig. 8).
_SAMPLES = 20
_GPU_SECONDS_BETWEEN_CHECKPOINTS = 15.0
_STEPS_BEFORE_CAPTURE = 3
# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4


@dataclass(frozen=True)
class Epoch:
    """One finished epoch: mean training loss, validation figures by name, whether it is the best so far."""

    stage: Stage
    number: int
    epochs: int
    loss: float
    figures: dict[str, float]
    best: bool


@dataclass(frozen=True)
class Progress:
    """Who is told how far it is: ``batch`` of (stage, epoch, step, steps) each step, ``epoch`` each epoch."""

    batch: Callable[[str, int, int, int], None] = lambda *_: None
    epoch: Callable[[Epoch], None] = lambda _: None


@dataclass(frozen=True)
class Trained:
    """What a run leaves.

    ``model`` is the best of the last stage that has epochs, in eval mode, on the CPU. ``epochs`` are those of
    all stages. ``entropy``: (step of the regularised stage, bits per activation sample in its batch), see
    `EntropyLoss`.
    ``machine``: what trained the last stage that has epochs, see `Hardware.describe`.
    """

    model: SplitModel
    epochs: tuple[Epoch, ...]
    entropy: tuple[tuple[int, float], ...]
    machine: Machine


class Machine(TypedDict):
    """The processor's name, the precision of convolutions, the version of torch."""

    device: str
    precision: Literal["float32", "bfloat16"]
    torch: str


@dataclass(frozen=True)
class Hardware:
    """Where and how a run computes; on the CPU in float32 unless told otherwise."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    bfloat16: bool = False
    compiled: bool = False

    def autocast(self) -> torch.autocast:
        """A context in which convolutions and matrix products run in bfloat16, if they are to."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16)

    def describe(self) -> Machine:
        """What records and checkpoints say of it."""
        precision: Literal["float32", "bfloat16"] = "bfloat16" if self.bfloat16 else "float32"
        return {"device": _device_name(self.device), "precision": precision, "torch": str(torch.__version__)}


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    threads = torch.get_num_threads()
    return f"{next(names, platform.machine())}, {threads} thread{'s' if threads > 1 else ''}"


def keep_freed_memory() -> None:
    """Tell the C library, where it is glibc, to keep freed memory for the next tensor, for good.

    By default each large tensor is mapped and unmapped anew, and on a CPU the page faults of a training step
    take as long as its arithmetic.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(_M_TOP_PAD, 1 << 28)


class OutOfTime(Exception):
    """The time that a run was given is over. What is done is in its checkpoint."""


class Clock:
    """Time that may be spent, from now on; None: any."""

    def __init__(self, seconds: float | None = None) -> None:
        self._end = math.inf if seconds is None else time.monotonic() + seconds

    def require(self, seconds: float = 0.0) -> None:
        """Raises OutOfTime if this much is not left."""
        if time.monotonic() + seconds > self._end:
            raise OutOfTime


class _BySgd(nn.Module):
    """The stages that are the paper's own: all of their weights learn, by SGD."""

    def optimizer(self, learning_rate: float, decay: float, momentum: float) -> torch.optim.Optimizer:
        return torch.optim.SGD(
            self.parameters(), lr=learning_rate, momentum=momentum, weight_decay=decay, nesterov=momentum > 0
        )


class _Base(_BySgd):
    """Base stage: the backbone with its final exit only."""

    bits: Tensor | None = None
    capturable = True

    def __init__(self, backbone: Backbone, hardware: Hardware) -> None:
        super().__init__()
        self.model = backbone
        self._call: Callable[[Tensor], Tensor] = backbone.forward
        if hardware.compiled:
            self._call = torch.compile(backbone.forward)

    def loss(self, images: Tensor, labels: Tensor, *, measure: bool) -> Tensor:
        return nn.functional.cross_entropy(self._call(images), labels)

    def figures(self, data: Labelled, device: torch.device) -> dict[str, float]:
        right = sum(float((self.model(x).argmax(1) == y).sum()) for x, y in _batches(data, device))
        final = right / len(data)
        return {"score": final, "final": final}


class _Split(_BySgd):
    """Exit and regularised stages: both exits, and what keeps the activation cheap.

    ``bits`` is the entropy of the last batch's activation where it was computed.
    """

    bits: Tensor | None = None

    def __init__(
        self,
        model: SplitModel,
        train: TrainRecipe,
        regularised: RegularisedRecipe | None,
        hardware: Hardware,
    ) -> None:
        super().__init__()
        self.model = model
        self._call: Callable[[Tensor], Outputs] = model.forward
        if hardware.compiled:
            self._call = torch.compile(model.forward)
        self.rho = train.rho
        # With weight 0 it only measures: every split stage reports the entropy of its activations.
        self.entropy = EntropyLoss(
            0.0 if regularised is None else regularised.entropy,
            bins=train.regularised.bins,
        )
        self.sparsity = 0.0 if regularised is None else regularised.sparsity

    @property
    def capturable(self) -> bool:
        """Whether a step can be a CUDA graph; the histogram's counts are waited for on the CPU."""
        return self.entropy.weight == 0

    def loss(self, images: Tensor, labels: Tensor, *, measure: bool) -> Tensor:
        out = self._call(images)
        loss = objective([out.early, out.final], labels, self.rho)
        self.bits = None
        if self.entropy.weight > 0:
            bits = self.entropy.bits(out.activation)
            loss = loss + self.entropy.relative(bits)
            self.bits = bits.detach()
        elif measure:
            with torch.no_grad():
                self.bits = self.entropy.bits(out.activation)
        if self.sparsity > 0:
            loss = loss + sparsity_loss(out.activation, self.sparsity)
        return loss

    def figures(self, data: Labelled, device: torch.device) -> dict[str, float]:
        early = final = bits = 0.0
        for images, labels in _batches(data, device):
            out = self.model(images)
            early += float((out.early.argmax(1) == labels).sum())
            final += float((out.final.argmax(1) == labels).sum())
            # The validation images' own mu and sigma: the running ones exist only while the regulariser is
            # on.
            meter = EntropyLoss(0.0, bins=self.entropy.bins).to(device)
            bits += float(meter.bits(out.activation)) * len(labels)
        early, final, bits = early / len(data), final / len(data), bits / len(data)
        return {"score": (early + final) / 2, "early": early, "final": final, "entropy_bits": bits}


class _WithCode(nn.Module):
    """What the stages with a bottleneck have in common: it learns at the stage's rate, other parts at shares.

    Args:
        model: with its bottleneck.
        train: all weights.
        head: share of the learning rate for what else is on the device; 0: it stays as it is, the running
            statistics of its batch norms too. An early exit behind the encoder learns with this.
        tail: share for what else is on the server; 0 likewise.
        rate: loss of one KB of estimated payload.
    """

    bits: Tensor | None = None
    capturable = True

    def __init__(
        self, model: SplitModel, train: TrainRecipe, *, head: float, tail: float, rate: float
    ) -> None:
        super().__init__()
        assert model.bottleneck is not None
        self.model, self.bottleneck, self.rate = model, model.bottleneck, rate
        self.rho = train.rho or [0.5, 0.5]
        # In a tuple: these are parts of the model already.
        self._parts: tuple[tuple[list[nn.Module], float], ...] = (
            (model.device_parts(), head),
            (model.server_parts(), tail),
            ([model.branch], 1.0 if model.exit_behind else head),
            ([model.bottleneck], 1.0),
        )
        for parts, share in self._parts:
            for part in parts:
                part.requires_grad_(share > 0)
        # In a list: no part of this module, so that it is neither trained nor kept in checkpoints.
        self._head = [model if head > 0 else folded(model)]

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for parts, share in self._parts:
            if share == 0:
                for part in parts:
                    part.eval()
        return self

    def optimizer(self, learning_rate: float, decay: float, _momentum: float) -> torch.optim.Optimizer:
        """AdamW: encoder, density and decoder differ too much in scale for one rate of SGD."""
        groups = [
            {"params": [p for part in parts for p in part.parameters()], "lr": share * learning_rate}
            for parts, share in self._parts
            if share > 0
        ]
        return torch.optim.AdamW(groups, lr=learning_rate, weight_decay=decay)

    def activation(self, images: Tensor) -> Tensor:
        """`SplitModel.activation`, without a gradient where the head has nothing to learn."""
        (head,) = self._head
        with torch.set_grad_enabled(head is self.model and torch.is_grad_enabled()):
            return head.activation(images)

    def cost(self, code: Tensor, *, measure: bool) -> Tensor:
        """What a code [N, C, H, W] costs: its rate; and what fits the density, which adds nothing to it."""
        bits, fit = self.bottleneck.bits(code.float())
        self.bits = bits.detach() / code[0].numel() if measure else None
        # The density learns at its own pace, whatever the rate weighs: bits a symbol, over all channels.
        fit = fit / code[0, 0].numel()
        return self.price(bits) + (fit - fit.detach())

    def price(self, bits: Tensor) -> Tensor:
        """The loss for bits an image."""
        return bits * (self.rate / (8 * 1024))

    def measured(self, images: Tensor, labels: Tensor) -> tuple[Outputs, Tensor]:
        """Outputs for a batch, and the mean of what the stage makes small beside the rate."""
        raise NotImplementedError

    def figures(self, data: Labelled, device: torch.device) -> dict[str, float]:
        early = final = bits = loss = 0.0
        for images, labels in _batches(data, device):
            out, part = self.measured(images, labels)
            early += float((out.early.argmax(1) == labels).sum())
            final += float((out.final.argmax(1) == labels).sum())
            loss += float(part) * len(labels)
            bits += float(self.bottleneck.bits(out.activation.float())[0]) * len(labels)
        bits, loss = bits / len(data), loss / len(data)
        return {
            "score": -(loss + float(self.price(torch.tensor(bits)))),
            "early": early / len(data),
            "final": final / len(data),
            "loss": loss,
            "entropy_bits": bits / math.prod(self.bottleneck.shape),
        }


class _Code(_WithCode):
    """Code stage: encoder and decoder learn to hand on the activation in few bits.

    A joint stage that began with random ones would first undo what the tail has learned. What counts is what
    the activation becomes a few blocks further on: bits that make no difference there are not worth sending.
    """

    def __init__(self, model: SplitModel, train: TrainRecipe) -> None:
        super().__init__(model, train, head=0.0, tail=0.0, rate=train.code.rate)
        self._at = train.code.at or model.exit_number

    def loss(self, images: Tensor, labels: Tensor, *, measure: bool) -> Tensor:
        activation = self.activation(images)
        code, early = self.model.encode(activation)
        loss = self._error(self.model.decode(code), activation) + self.cost(code, measure=measure)
        if self.model.exit_behind:
            loss = loss + self.rho[0] * nn.functional.cross_entropy(early, labels)
        return loss

    def _error(self, decoded: Tensor, activation: Tensor) -> Tensor:
        """Mean squared error of what they become, in units of each channel's variance in this batch."""
        axes = (0, 2, 3)
        with torch.no_grad():
            wanted = self._further(activation)
        error = (self._further(decoded) - wanted).square().mean(axes)
        return (error / wanted.var(axes).clamp_min(1e-6)).mean()

    def _further(self, activation: Tensor) -> Tensor:
        (model,) = self._head
        return model.backbone.run(Flow(activation), model.exit_number + 1, self._at + 1).x.float()

    def measured(self, images: Tensor, labels: Tensor) -> tuple[Outputs, Tensor]:
        activation = self.activation(images)
        code, early = self.model.encode(activation)
        decoded = self.model.decode(code)
        return Outputs(early, self.model.finish(decoded), code), self._error(decoded, activation)

    def figures(self, data: Labelled, device: torch.device) -> dict[str, float]:
        found = super().figures(data, device)
        found["error"] = found.pop("loss")
        return found


class _RateSplit(_WithCode):
    """Regularised and restart stages with a bottleneck: both exits, what the unsplit model answers, and
    estimated bytes.

    Args:
        model: with its bottleneck.
        train: all weights.
        settings: the stage's own.
        teacher: the unsplit model; stays as it is.
    """

    def __init__(
        self,
        model: SplitModel,
        train: TrainRecipe,
        settings: RateRecipe,
        teacher: Backbone,
        hardware: Hardware,
    ) -> None:
        super().__init__(model, train, head=settings.head, tail=settings.tail, rate=settings.rate)
        self._call: Callable[[Tensor], Outputs] = self._outputs
        if hardware.compiled:
            self._call = torch.compile(self._outputs)
        self.settings = settings
        self._teacher = [folded(teacher)]

    def _outputs(self, images: Tensor) -> Outputs:
        code, early = self.model.encode(self.activation(images))
        return Outputs(early, self.model.tail(code), code)

    def loss(self, images: Tensor, labels: Tensor, *, measure: bool) -> Tensor:
        out = self._call(images)
        with torch.no_grad():
            taught = self._teacher[0](images)
        unlabelled = _unlabelled(self.settings, len(images))
        sent = out.activation[unlabelled:]
        return self._objective(out, labels, taught, unlabelled) + self.cost(sent, measure=measure)

    def _objective(self, out: Outputs, labels: Tensor, taught: Tensor, unlabelled: int = 0) -> Tensor:
        early, final = self.rho
        settings = self.settings
        return early * _answers_loss(
            out.early, labels, taught, settings.distill_early, settings.temperature, unlabelled
        ) + final * _answers_loss(
            out.final, labels, taught, settings.distill, settings.temperature, unlabelled
        )

    def measured(self, images: Tensor, labels: Tensor) -> tuple[Outputs, Tensor]:
        out = self._outputs(images)
        return out, self._objective(out, labels, self._teacher[0](images))

    def figures(self, data: Labelled, device: torch.device) -> dict[str, float]:
        found = super().figures(data, device)
        del found["loss"]
        return found


def _unlabelled(stage: StageRecipe, count: int) -> int:
    """How many images of a batch, its first, have parts of others in them and so no label."""
    return int(stage.cutmix * count) if isinstance(stage, TaughtRecipe) else 0


def _answers_loss(
    logits: Tensor, labels: Tensor, taught: Tensor, share: float, warm: float, unlabelled: int = 0
) -> Tensor:
    """Loss of an exit's logits [N, K], from labels [N] and, by a share, from a teacher's logits [N, K] at a
    temperature; of the first ``unlabelled`` from the teacher alone."""
    softened = nn.functional.kl_div(
        torch.log_softmax(logits.float() / warm, dim=1),
        torch.log_softmax(taught.float() / warm, dim=1),
        log_target=True,
        reduction="none",
    ).sum(1)
    told, labelled = warm**2 * softened, slice(unlabelled, None)
    named = nn.functional.cross_entropy(logits[labelled], labels[labelled], reduction="sum")
    total = (1 - share) * named + share * told[labelled].sum() + told[:unlabelled].sum()
    return total / len(logits)


class _Tail(nn.Module):
    """Tail stage: the server's half, decoder included, on the symbols that the quantized head sends.

    The stages before know rounding, but not the INT8 head, some of whose symbols are its neighbours'. It
    runs here as it will on the device; quantized again, a head that has not changed is the same graph.

    Args:
        model: with its bottleneck.
        recipe: all of it.
        teacher: the unsplit model; stays as it is.
        validation: of which some calibrate, as they do for the bundle.
    """

    bits: Tensor | None = None
    capturable = False

    def __init__(self, model: SplitModel, recipe: Recipe, teacher: Backbone, validation: Labelled) -> None:
        super().__init__()
        assert model.bottleneck is not None
        self.model, self.settings = model, recipe.train.tail
        # In lists: no parts of this module, so that they are neither trained nor kept in checkpoints.
        self._learns = [*model.bottleneck.blocks()[1], *model.server_parts()]
        self._teacher = [folded(teacher)]
        model.requires_grad_(False)
        for part in self._learns:
            part.requires_grad_(True)
        float_model = copy.deepcopy(model).to("cpu", memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        graphs = export(quantize_calibrated(float_model, validation, recipe))
        self._head = session(graphs.head, threads=torch.get_num_threads())

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.model.eval()
        for part in self._learns:
            part.train(mode)
        return self

    def optimizer(self, learning_rate: float, decay: float, _momentum: float) -> torch.optim.Optimizer:
        """As in the stage before."""
        parameters = [p for part in self._learns for p in part.parameters()]
        return torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=decay)

    def _sent(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """What the device sends, and its early logits: float32 [N, *split_shape], [N, K]."""
        pixels = to_pixels(images).cpu().contiguous().numpy()
        symbols, early = (
            torch.from_numpy(one).to(images.device)
            for one in self._head.run(["symbols", "logits"], {"image": pixels})
        )
        code = (symbols.float() - ZERO_POINT).contiguous(memory_format=torch.channels_last)
        return code, early

    def _answers_loss(self, answers: Tensor, labels: Tensor, taught: Tensor) -> Tensor:
        return _answers_loss(answers, labels, taught, self.settings.distill, self.settings.temperature)

    def loss(self, images: Tensor, labels: Tensor, *, measure: bool) -> Tensor:
        code, _ = self._sent(images)
        with torch.no_grad():
            taught = self._teacher[0](images)
        return self._answers_loss(self.model.tail(code), labels, taught)

    def figures(self, data: Labelled, device: torch.device) -> dict[str, float]:
        early = final = loss = 0.0
        for images, labels in _batches(data, device):
            code, own = self._sent(images)
            answers = self.model.tail(code)
            early += float((own.argmax(1) == labels).sum())
            final += float((answers.argmax(1) == labels).sum())
            part = self._answers_loss(answers, labels, self._teacher[0](images))
            loss += float(part) * len(labels)
        return {"score": -loss / len(data), "early": early / len(data), "final": final / len(data)}


class _Branch(nn.Module):
    """Branch stage: the early exit alone. What it sees and what travels stay as they are.

    A part of this module, and so of its checkpoint, is the early exit only.

    Args:
        model: whose early exit learns.
        settings: the stage's own.
        teacher: the unsplit model; stays as it is.
    """

    bits: Tensor | None = None
    capturable = True

    def __init__(self, model: SplitModel, settings: BranchRecipe, teacher: Backbone) -> None:
        super().__init__()
        self.branch, self.settings = model.branch.requires_grad_(True), settings
        frozen = folded(model)
        frozen.branch = self.branch
        # In lists: no parts of this module.
        self._model, self._teacher = [frozen], [folded(teacher)]

    def optimizer(self, learning_rate: float, decay: float, _momentum: float) -> torch.optim.Optimizer:
        """As in the other stages that are not the paper's."""
        return torch.optim.AdamW(self.parameters(), lr=learning_rate, weight_decay=decay)

    def _loss(self, early: Tensor, images: Tensor, labels: Tensor, unlabelled: int = 0) -> Tensor:
        settings = self.settings
        # Two thirds of a step's arithmetic are the teacher's: it answers only what it is asked.
        asked = images if settings.distill > 0 else images[:unlabelled]
        with torch.no_grad():
            taught = self._teacher[0](asked) if len(asked) else early[:0]
        if len(asked) < len(images):
            taught = torch.cat([taught, torch.zeros_like(early[len(asked) :])])
        return _answers_loss(early, labels, taught, settings.distill, settings.temperature, unlabelled)

    def loss(self, images: Tensor, labels: Tensor, *, measure: bool) -> Tensor:
        _, early = self._model[0].head(images)
        return self._loss(early, images, labels, _unlabelled(self.settings, len(images)))

    def figures(self, data: Labelled, device: torch.device) -> dict[str, float]:
        right = loss = 0.0
        for images, labels in _batches(data, device):
            _, early = self._model[0].head(images)
            right += float((early.argmax(1) == labels).sum())
            loss += float(self._loss(early, images, labels)) * len(labels)
        return {"score": -loss / len(data), "early": right / len(data)}


def train(
    recipe: Recipe,
    data: Dataset,
    checkpoints: Path,
    *,
    resume: bool = False,
    hardware: Hardware | None = None,
    clock: Clock | None = None,
    progress: Progress | None = None,
) -> Trained:
    """Run all stages of a recipe.

    Args:
        recipe: what to train.
        data: its train and validation parts are used, its test part is not.
        checkpoints: folder for one file a stage; made if missing. A file's name holds a hash of all that
            decides how its stage ends, so recipes that differ only in a later stage share the earlier ones.
        resume: go on from the checkpoints there that fit; without any, start from the beginning.
        hardware: where to train; None is the CPU, in float32.
        clock: how long; None is as long as it takes.
        progress: told about each step and epoch.

    Raises:
        ConfigError: a checkpoint that is unreadable or not what its name says, a rho of the wrong length, or
            a loss that is no number any more.
        DataError: fewer training images than a batch, or images of another size than the model's.
        OutOfTime: the clock ran out; a later call with ``resume`` goes on.
    """
    hardware, clock, progress = hardware or Hardware(), clock or Clock(), progress or Progress()
    rho = recipe.train.rho
    if rho is not None and len(rho) != 2:
        raise ConfigError(f"train.rho: a model with one early exit has 2 exits, got {len(rho)} weights")
    if len(data.train) < recipe.train.batch_size:
        raise DataError(
            f"{len(data.train)} images to train on are too few for one batch of {recipe.train.batch_size}"
        )
    checkpoints.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(recipe.seed)
    backbone = BACKBONES[recipe.model.backbone](len(data.classes), data.train.images.shape[-1])
    model = SplitModel(backbone, recipe.model.exit)
    narrow = _bottleneck(model, recipe)
    settings = recipe.train
    # Each is made when the one before is done: the last ones take the base stage's model for their teacher.
    tasks: dict[Stage, Callable[[], _Task]] = {
        "base": lambda: _Base(backbone, hardware),
        "exit": lambda: _Split(model, settings, None, hardware),
        "code": lambda: _Code(model, settings),
        "regularised": lambda: _joint_task(model, recipe, teacher, hardware),
        "branch": lambda: _Branch(model, settings.branch, teacher),
        "restart": lambda: _RateSplit(model, settings, settings.restart, teacher, hardware),
        "tail": lambda: _Tail(model, recipe, teacher, data.validation),
    }
    device = hardware.device
    images, labels = (
        torch.from_numpy(values).to(device) for values in (data.train.images, data.train.labels)
    )
    epochs: list[Epoch] = []
    machine = hardware.describe()
    for name, stage in settings.stages.items():
        if narrow is None and name in STAGES_OF_A_CODE:
            continue
        if name == "code":
            # The noise is the same whether or not the stages before were trained in this call.
            torch.manual_seed(recipe.seed)
            assert narrow is not None and recipe.model.bottleneck is not None
            model.insert(narrow, exit_behind=recipe.model.bottleneck.exit_behind)
        elif name in ("branch", "restart", "tail") and not stage.epochs:
            continue
        if name == "branch" and settings.branch.widths:
            torch.manual_seed(recipe.seed)
            model.widen_exit(settings.branch.widths)
        task = tasks[name]()
        # A third faster than the default layout on a CPU, and what tensor cores want.
        task.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        # Stages draw from separate streams, so that a finished stage can be skipped on resume.
        generator = torch.Generator(device).manual_seed(recipe.seed * 3 + _STREAMS[name])
        run = _Run(name, stage, task, recipe, images, labels, data.validation, generator, hardware, progress)
        identity = f"{name}-{recipe.stage_sha256(name)[:12]}-{data.sha256[:12]}"
        run.complete(checkpoints / f"{identity}.pt", identity, resume=resume, clock=clock)
        epochs += run.epochs
        if stage.epochs:
            machine = run.machine
        if name == "base":
            teacher = copy.deepcopy(backbone)
        elif name == "regularised":
            entropy = tuple(run.entropy)
    model.to("cpu", memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]
    return Trained(model, tuple(epochs), entropy, machine)


_Task = _Base | _Split | _Code | _RateSplit | _Tail | _Branch


def _bottleneck(model: SplitModel, recipe: Recipe) -> Bottleneck | None:
    """What the last stage puts at the split. Raises ConfigError before anything is trained."""
    code = recipe.model.bottleneck
    if code is None:
        return None
    if model.split_shape != model.exit_shape:
        raise ConfigError(f"exit {model.exit_number} is inside a residual block: no bottleneck fits there")
    at, last = recipe.train.code.at, len(model.backbone.blocks) - 1
    if at is not None and not model.exit_number <= at <= last:
        raise ConfigError(f"train.code.at: expected {model.exit_number} (the exit) … {last}, got {at}")
    shape = BottleneckShape(code.channels, code.stride, code.width, code.growth)
    narrow = Bottleneck(model.exit_shape, shape, context=code.density == "context")
    if code.exit_behind:
        # Refused now if it is too small, not after two stages.
        ExitBranch.of_code(narrow.hidden_shape, model.backbone.classes)
    return narrow


def _joint_task(model: SplitModel, recipe: Recipe, teacher: Backbone, hardware: Hardware) -> _Task:
    if model.bottleneck is None:
        return _Split(model, recipe.train, recipe.train.regularised, hardware)
    return _RateSplit(model, recipe.train, recipe.train.regularised, teacher, hardware)


def _gradients(task: _Task, hardware: Hardware, images: Tensor, labels: Tensor, *, measure: bool) -> Tensor:
    """The loss of a batch, a scalar; its gradients are left in the parameters."""
    for parameter in task.parameters():
        parameter.grad = None
    with hardware.autocast():
        loss = task.loss(images, labels, measure=measure)
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.detach()


class _Graphs:
    """`_gradients` as CUDA graphs, one for each shape of a batch.

    A step of a narrow network is a thousand short kernels, which take longer to start one by one than to run.
    """

    def __init__(self, task: _Task, hardware: Hardware) -> None:
        self._task, self._hardware = task, hardware
        self._stream = torch.cuda.Stream(hardware.device)  # type: ignore[no-untyped-call]
        self._eager: dict[torch.Size, int] = {}
        self._graphs: dict[torch.Size, _Graph] = {}

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        """The first steps of a shape run as they are, on a stream of their own: a capture must not be the
        first to allocate."""
        shape = images.shape
        graph = self._graphs.get(shape)
        if graph is None and self._eager.setdefault(shape, 0) < _STEPS_BEFORE_CAPTURE:
            self._eager[shape] += 1
            current = torch.cuda.current_stream(self._hardware.device)
            self._stream.wait_stream(current)
            with torch.cuda.stream(self._stream):
                loss = _gradients(self._task, self._hardware, images, labels, measure=False)
            current.wait_stream(self._stream)
            return loss
        if graph is None:
            graph = self._graphs[shape] = self._captured(images, labels)
        graph.images.copy_(images)
        graph.labels.copy_(labels)
        graph.graph.replay()
        for parameter, gradient in zip(self._task.parameters(), graph.gradients, strict=True):
            parameter.grad = gradient
        return graph.loss.clone()

    def _captured(self, images: Tensor, labels: Tensor) -> _Graph:
        graph = torch.cuda.CUDAGraph()
        images, labels = images.clone(memory_format=torch.preserve_format), labels.clone()
        with torch.cuda.graph(graph, stream=self._stream):
            loss = _gradients(self._task, self._hardware, images, labels, measure=False)
        return _Graph(graph, images, labels, loss, [one.grad for one in self._task.parameters()])


@dataclass(frozen=True)
class _Graph:
    """What a replay reads and what it writes."""

    graph: torch.cuda.CUDAGraph
    images: Tensor
    labels: Tensor
    loss: Tensor
    gradients: list[Tensor | None]


class _Run:
    """One stage: its optimiser, schedule, generator, position, history and best epoch so far."""

    def __init__(
        self,
        name: Stage,
        stage: StageRecipe,
        task: _Task,
        recipe: Recipe,
        images: Tensor,
        labels: Tensor,
        validation: Labelled,
        generator: torch.Generator,
        hardware: Hardware,
        progress: Progress,
    ) -> None:
        self.name, self.stage, self.task, self.recipe = name, stage, task, recipe
        self.images, self.labels, self.validation = images, labels, validation
        self.generator, self.hardware, self.progress = generator, hardware, progress
        self.steps = max(1, min(len(labels), stage.images or len(labels)) // recipe.train.batch_size)
        decay = recipe.train.weight_decay if stage.weight_decay is None else stage.weight_decay
        self.optimizer = task.optimizer(stage.learning_rate, decay, recipe.train.momentum)
        self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(
            self.optimizer, T_max=max(1, stage.epochs * self.steps)
        )
        self.machine = hardware.describe()
        captured = task.capturable and not self._on_cpu and not hardware.compiled
        self._graphs = _Graphs(task, hardware) if captured else None
        self.done = 0
        self.best_score = -math.inf
        self.best = _copy(task.state_dict())
        self.epochs: list[Epoch] = []
        self.entropy: list[tuple[int, float]] = []

    @cached_property
    def _seen(self) -> Tensor:
        """The N labelled images in V versions, uint8 [V · N, 3, H, W], all of a version together.

        Made at the first step: a stage that its checkpoint has done needs none.
        """
        if not (isinstance(self.stage, RegularisedRecipe) and self.stage.webp):
            return self.images
        pictures = self.images.cpu().numpy()
        versions = (torch.from_numpy(recompressed(pictures, quality)) for quality in self.stage.webp)
        return torch.cat([self.images, *(one.to(self.images.device) for one in versions)])

    @property
    def _on_cpu(self) -> bool:
        return self.hardware.device.type == "cpu"

    def complete(self, path: Path, identity: str, *, resume: bool, clock: Clock) -> None:
        """Run the epochs that are left, then put the best epoch's values into the task."""
        if resume and path.exists():
            self._restore(path, identity)
        pause = 0.0 if self._on_cpu else _GPU_SECONDS_BETWEEN_CHECKPOINTS
        longest, saved, saved_at = 0.0, self.done, time.monotonic()
        while self.done < self.stage.epochs:
            try:
                clock.require(longest)
            except OutOfTime:
                if saved < self.done:
                    self._save(path, identity)
                raise
            began = time.monotonic()
            self._epoch()
            longest = max(longest, time.monotonic() - began)
            if self.done == self.stage.epochs or time.monotonic() - saved_at >= pause:
                self._save(path, identity)
                saved, saved_at = self.done, time.monotonic()
        self.task.load_state_dict(self.best)

    def _epoch(self) -> None:
        total = torch.zeros((), dtype=torch.float64, device=self.hardware.device)
        samples: list[tuple[int, Tensor]] = []
        every = -(-self.steps // _SAMPLES)
        self.task.train()
        for step, (images, labels) in enumerate(self._shuffled()):
            measure = self.name == "regularised" and step % every == 0
            if self._graphs is None or measure:
                loss = _gradients(self.task, self.hardware, images, labels, measure=measure)
            else:
                loss = self._graphs(images, labels)
            self.optimizer.step()
            self.scheduler.step()
            total += loss
            if measure and self.task.bits is not None:
                samples.append((self.done * self.steps + step, self.task.bits))
            # To look at a number on a GPU is to wait for it.
            if (self._on_cpu or step == self.steps - 1) and not math.isfinite(float(total)):
                raise ConfigError(
                    f"training diverged in stage {self.name}, epoch {self.done + 1}: lower its learning_rate"
                )
            self.progress.batch(self.name, self.done + 1, step + 1, self.steps)
        self.entropy += [(step, float(bits)) for step, bits in samples]
        self.task.eval()
        with torch.no_grad(), self.hardware.autocast():
            figures = self.task.figures(self.validation, self.hardware.device)
        self.done += 1
        score = figures.pop("score")
        best = score >= self.best_score
        if best:
            self.best_score, self.best = score, _copy(self.task.state_dict())
        loss_mean = float(total) / self.steps
        epoch = Epoch(self.name, self.done, self.stage.epochs, loss_mean, figures, best)
        self.epochs.append(epoch)
        self.progress.epoch(epoch)

    def _shuffled(self) -> Iterator[tuple[Tensor, Tensor]]:
        generator, device = self.generator, self.hardware.device
        order = torch.randperm(len(self.labels), generator=generator, device=generator.device)
        settings = self.recipe.data
        size = self.recipe.train.batch_size
        versions = len(self._seen) // len(self.labels)
        for step in range(self.steps):
            index = order[step * size : (step + 1) * size]
            at = index
            if versions > 1:
                version = torch.randint(versions, index.shape, generator=generator, device=generator.device)
                at = index + version * len(self.labels)
            batch = augment(self._seen[at], shift=settings.shift, flip=settings.flip, generator=generator)
            yield self._framed(_prepared(batch, device)), self.labels[index]

    def _framed(self, images: Tensor) -> Tensor:
        stage = self.stage
        if stage.crop < 1:
            images = cropped(images, area=stage.crop, generator=self.generator)
        if unlabelled := _unlabelled(stage, len(images)):
            over = pasted(images[:unlabelled], generator=self.generator)
            images = torch.cat([over, images[unlabelled:]])
        if isinstance(stage, BaseRecipe) and self.done < len(stage.sides):
            images = nn.functional.interpolate(images, size=stage.sides[self.done], mode="area")
        return images.contiguous(memory_format=torch.channels_last)

    def _save(self, path: Path, identity: str) -> None:
        state: dict[str, Any] = {
            "identity": identity,
            "done": self.done,
            "best_score": self.best_score,
            "best": self.best,
            "epochs": [asdict(epoch) for epoch in self.epochs],
            "entropy": self.entropy,
            "torch_rng": torch.get_rng_state(),
            "machine": self.machine,
        }
        if self.done < self.stage.epochs:
            state |= {
                "task": self.task.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scheduler": self.scheduler.state_dict(),
                "generator": self.generator.get_state(),
            }
        # A kill while writing must leave the previous checkpoint whole.
        partial = path.with_suffix(".partial")
        with partial.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)

    def _go_on(self, generator: Tensor, before: Machine) -> None:
        """Draw on where a stage was left off; anew on another kind of device, whose generator differs."""
        if len(generator) == len(self.generator.get_state()):
            self.generator.set_state(generator)
        else:
            self.generator.manual_seed(self.generator.initial_seed() + (self.done << 40))
        own = self.machine
        if not before["device"].endswith(own["device"]):
            own["device"] = f"{before['device']} in {before['precision']}, then {own['device']}"
        else:
            self.machine = before

    def _restore(self, path: Path, identity: str) -> None:
        try:
            state: dict[str, Any] = torch.load(path, map_location=self.hardware.device, weights_only=True)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise ConfigError(
                f"checkpoint {path} cannot be read: remove it to train this stage anew"
            ) from error
        if not isinstance(state, dict) or state.get("identity") != identity or "epochs" not in state:
            raise ConfigError(
                f"checkpoint {path} is of another recipe, data set or release than its name says: remove it"
            )
        self.done, self.best_score, self.best = state["done"], state["best_score"], state["best"]
        self.epochs = [Epoch(**epoch) for epoch in state["epochs"]]
        self.entropy = [(step, bits) for step, bits in state["entropy"]]
        # Older checkpoints do not say it.
        before: Machine = state.get("machine", self.machine)
        try:
            self.task.load_state_dict(state.get("task", self.best))
        except RuntimeError:
            raise ConfigError(f"checkpoint {path} is of another release: remove it") from None
        if self.done == self.stage.epochs:
            self.machine = before
        else:
            self.optimizer.load_state_dict(state["optimizer"])
            self.scheduler.load_state_dict(state["scheduler"])
            self._go_on(state["generator"].cpu(), before)
        torch.set_rng_state(state["torch_rng"].cpu())


def _batches(data: Labelled, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    images, labels = torch.from_numpy(data.images), torch.from_numpy(data.labels)
    for x, y in zip(
        torch.split(images, _EVALUATION_BATCH), torch.split(labels, _EVALUATION_BATCH), strict=True
    ):
        yield _prepared(x, device), y.to(device)


def _prepared(images: Tensor, device: torch.device) -> Tensor:
    return to_float(images.to(device)).contiguous(memory_format=torch.channels_last)


def _copy(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in state.items()}
