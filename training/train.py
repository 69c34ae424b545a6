"""The paper's schedule (Sec. V): base -> exit -> regularised, each from the best epoch of the one before.

    base         the backbone alone                    kept: best final-exit accuracy
    exit         with an early exit, Eq. (1)           kept: best mean of early and final accuracy
    regularised  Eq. (2): Eq. (1) plus (3) and/or (6)  kept: best mean of early and final accuracy

Accuracy is top-1 on the validation images. Of equally good epochs the last is kept: in the last stage it is
the one whose activations have had longest to shrink.

After every epoch a checkpoint holds all that the rest of the run depends on, so a run that was killed and
resumed ends with the same bits as one that was not (on one CPU, with one number of threads).
"""

from __future__ import annotations

import math
import os
import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from offramp.common.errors import ConfigError
from offramp.training.data import Dataset, Labelled, augment, to_float
from offramp.training.losses import EntropyLoss, objective, sparsity_loss
from offramp.training.models import BACKBONES, Backbone, SplitModel
from offramp.training.recipe import Recipe, RegularisedRecipe, Stage, StageRecipe, TrainRecipe

_EVALUATION_BATCH = 256


@dataclass(frozen=True)
class Epoch:
    """One finished epoch: mean training loss, validation figures by name, whether it is the best so far."""

    stage: str
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


class _Base(nn.Module):
    """Base stage: the backbone with its final exit only."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.model = backbone

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        return nn.functional.cross_entropy(self.model(images), labels)

    def figures(self, data: Labelled, device: torch.device) -> dict[str, float]:
        right = sum(float((self.model(x).argmax(1) == y).sum()) for x, y in _batches(data, device))
        final = right / len(data)
        return {"score": final, "final": final}


class _Split(nn.Module):
    """Exit and regularised stages: both exits, and what keeps the activation cheap."""

    def __init__(self, model: SplitModel, train: TrainRecipe, regularised: RegularisedRecipe | None) -> None:
        super().__init__()
        self.model = model
        self.rho = train.rho
        # With weight 0 it only measures: every split stage reports the entropy of its activations.
        self.entropy = EntropyLoss(
            0.0 if regularised is None else regularised.entropy,
            bins=train.regularised.bins,
        )
        self.sparsity = 0.0 if regularised is None else regularised.sparsity

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        out = self.model(images)
        loss = objective([out.early, out.final], labels, self.rho)
        if self.entropy.weight > 0:
            loss = loss + self.entropy(out.activation)
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
            meter = EntropyLoss(0.0, bins=self.entropy.bins)
            bits += float(meter.bits(out.activation)) * len(labels)
        early, final, bits = early / len(data), final / len(data), bits / len(data)
        return {"score": (early + final) / 2, "early": early, "final": final, "entropy_bits": bits}


def train(
    recipe: Recipe,
    data: Dataset,
    checkpoints: Path,
    *,
    resume: bool = False,
    device: torch.device | None = None,
    progress: Progress | None = None,
) -> SplitModel:
    """Run all three stages of a recipe.

    Args:
        recipe: what to train.
        data: its train and validation parts are used, its test part is not.
        checkpoints: folder for one file a stage; made if missing. A file's name holds a hash of all that
            decides how its stage ends, so recipes that differ only in a later stage share the earlier ones.
        resume: go on from the checkpoints there that fit; without any, start from the beginning.
        device: where to train; None is the CPU.
        progress: told about each step and epoch.

    Returns:
        The best model of the last stage, in eval mode, on the CPU.

    Raises:
        ConfigError: a checkpoint that is unreadable or not what its name says, a rho of the wrong length, or
            a loss that is no number any more.
    """
    device = device or torch.device("cpu")
    progress = progress or Progress()
    rho = recipe.train.rho
    if rho is not None and len(rho) != 2:
        raise ConfigError(f"train.rho: a model with one early exit has 2 exits, got {len(rho)} weights")
    checkpoints.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(recipe.seed)
    backbone = BACKBONES[recipe.model.backbone](len(data.classes))
    model = SplitModel(backbone, recipe.model.exit)
    settings = recipe.train
    stages: list[tuple[Stage, StageRecipe, _Base | _Split]] = [
        ("base", settings.base, _Base(backbone)),
        ("exit", settings.exit, _Split(model, settings, None)),
        ("regularised", settings.regularised, _Split(model, settings, settings.regularised)),
    ]
    for order, (name, stage, task) in enumerate(stages):
        # A third faster than the default layout on a CPU, and what tensor cores want.
        task.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        # Stages draw from separate streams, so that a finished stage can be skipped on resume.
        generator = torch.Generator().manual_seed(recipe.seed * len(stages) + order)
        run = _Run(name, stage, task, recipe, data, generator, device, progress)
        identity = f"{name}-{recipe.stage_sha256(name)[:12]}-{data.sha256[:12]}"
        run.complete(checkpoints / f"{identity}.pt", identity, resume=resume)
    return model.to("cpu", memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload, no-any-return]


class _Run:
    """One stage: its optimiser, schedule, generator, position and best epoch so far."""

    def __init__(
        self,
        name: str,
        stage: StageRecipe,
        task: _Base | _Split,
        recipe: Recipe,
        data: Dataset,
        generator: torch.Generator,
        device: torch.device,
        progress: Progress,
    ) -> None:
        self.name, self.stage, self.task, self.recipe = name, stage, task, recipe
        self.data, self.generator, self.device, self.progress = data, generator, device, progress
        self.steps = max(1, len(data.train) // recipe.train.batch_size)
        self.optimizer = torch.optim.SGD(
            task.parameters(),
            lr=stage.learning_rate,
            momentum=recipe.train.momentum,
            weight_decay=recipe.train.weight_decay,
            nesterov=recipe.train.momentum > 0,
        )
        self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(
            self.optimizer, T_max=max(1, stage.epochs * self.steps)
        )
        self.done = 0
        self.best_score = -1.0
        self.best = _copy(task.state_dict())

    def complete(self, path: Path, identity: str, *, resume: bool) -> None:
        """Run the epochs that are left, then put the best epoch's values into the task."""
        if resume and path.exists():
            self._restore(path, identity)
        while self.done < self.stage.epochs:
            self._epoch()
            self._save(path, identity)
        self.task.load_state_dict(self.best)

    def _epoch(self) -> None:
        total = 0.0
        self.task.train()
        for step, (images, labels) in enumerate(self._shuffled()):
            self.optimizer.zero_grad(set_to_none=True)
            loss = self.task.loss(images, labels)
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            self.scheduler.step()
            total += float(loss.detach())
            if not math.isfinite(total):
                raise ConfigError(
                    f"training diverged in stage {self.name}, epoch {self.done + 1}: lower its learning_rate"
                )
            self.progress.batch(self.name, self.done + 1, step + 1, self.steps)
        self.task.eval()
        with torch.no_grad():
            figures = self.task.figures(self.data.validation, self.device)
        self.done += 1
        score = figures.pop("score")
        best = score >= self.best_score
        if best:
            self.best_score, self.best = score, _copy(self.task.state_dict())
        self.progress.epoch(Epoch(self.name, self.done, self.stage.epochs, total / self.steps, figures, best))

    def _shuffled(self) -> Iterator[tuple[Tensor, Tensor]]:
        images = torch.from_numpy(self.data.train.images)
        labels = torch.from_numpy(self.data.train.labels)
        order = torch.randperm(len(labels), generator=self.generator)
        settings = self.recipe.data
        size = self.recipe.train.batch_size
        for step in range(self.steps):
            index = order[step * size : (step + 1) * size]
            batch = augment(images[index], shift=settings.shift, flip=settings.flip, generator=self.generator)
            yield _prepared(batch, self.device), labels[index].to(self.device)

    def _save(self, path: Path, identity: str) -> None:
        state = {
            "identity": identity,
            "done": self.done,
            "best_score": self.best_score,
            "best": self.best,
            "task": self.task.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "generator": self.generator.get_state(),
            "torch_rng": torch.get_rng_state(),
        }
        # A kill while writing must leave the previous checkpoint whole.
        partial = path.with_suffix(".partial")
        with partial.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)

    def _restore(self, path: Path, identity: str) -> None:
        try:
            state: dict[str, Any] = torch.load(path, map_location=self.device, weights_only=True)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise ConfigError(
                f"checkpoint {path} cannot be read: remove it to train this stage anew"
            ) from error
        if not isinstance(state, dict) or state.get("identity") != identity:
            raise ConfigError(
                f"checkpoint {path} is of another recipe or data set than its name says: remove it"
            )
        self.done, self.best_score, self.best = state["done"], state["best_score"], state["best"]
        self.task.load_state_dict(state["task"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.generator.set_state(state["generator"].cpu())
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
