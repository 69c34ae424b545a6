"""The loop: each stage of a recipe in turn, from checkpoint to checkpoint."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from offramp.common.errors import ConfigError, DataError
from offramp.training import processes
from offramp.training.batches import Batches, prepared
from offramp.training.checkpoint import read_checkpoint, write_checkpoint
from offramp.training.data.datasets import Dataset, Labelled
from offramp.training.hardware import Hardware, Machine
from offramp.training.models.bottleneck import Bottleneck, BottleneckShape
from offramp.training.models.exit_branch import ExitBranch
from offramp.training.models.networks import BACKBONES
from offramp.training.models.split_model import SplitModel
from offramp.training.progress import Clock, Epoch, OutOfTime, Progress
from offramp.training.recipe import Recipe
from offramp.training.stages.schedule import STAGES
from offramp.training.stages.stage import Plan, Task, Work
from offramp.training.steps import Steps
from offramp.training.unfit import kept_of, why

_EVALUATION_BATCH = 256
# Samples of the entropy that an epoch leaves (Fig. 8).
_SAMPLES = 20
_GPU_SECONDS_BETWEEN_CHECKPOINTS = 15.0


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
    """Run all stages of a recipe; in every process that trains, with the same arguments.

    Args:
        recipe: what to train.
        data: its train and validation parts are used, its test part is not.
        checkpoints: folder for one file a stage; made if missing. A file's name holds a hash of all that
            decides how its stage ends, so recipes that differ only in a later stage share the earlier ones.
            The main process alone reads and writes it.
        resume: go on from the checkpoints there that fit; without any, start from the beginning.
        hardware: where to train; None is the CPU, in float32.
        clock: how long; None is as long as it takes.
        progress: called after each step and epoch.

    Raises:
        ConfigError: a checkpoint that is unreadable or not what its name says, a rho of the wrong length, a
            batch that the processes cannot share evenly, or a loss that is not finite any more.
        DataError: fewer training images than a batch, or images of another size than the model's.
        OutOfTime: the clock ran out; a later call with ``resume`` goes on.
    """
    hardware, clock, progress = hardware or Hardware(), clock or Clock(), progress or Progress()
    _check(recipe, data)
    if hardware.is_main:
        checkpoints.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(recipe.seed)
    backbone = BACKBONES[recipe.model.backbone](len(data.classes), data.train.images.shape[-1])
    model = SplitModel(backbone, recipe.model.exit)
    plan = recipe.plan
    work = Work(model, _bottleneck(model, plan), data.validation)
    images, labels = (
        torch.from_numpy(values).to(hardware.device) for values in (data.train.images, data.train.labels)
    )
    kept = kept_of(recipe, data.sha256)
    epochs: list[Epoch] = []
    entropy: tuple[tuple[int, float], ...] = ()
    machine = hardware.describe()
    for stage in STAGES:
        if not stage.present(plan):
            continue
        stage.prepare(plan, work)
        task, settings = stage.task(plan, work), stage.settings(plan)
        hardware.place(task)
        # Stages draw from separate streams, so that a finished stage can be skipped on resume.
        generator = torch.Generator(hardware.device).manual_seed(recipe.seed * 3 + stage.stream)
        batches = Batches(images, labels, settings, recipe.data, recipe.train.batch_size, generator)
        steps = Steps(
            task,
            settings,
            settings.epochs * batches.steps,
            weight_decay=recipe.train.weight_decay,
            momentum=recipe.train.momentum,
            hardware=hardware,
        )
        identity = f"{stage.name}-{recipe.stage_sha256(stage.name)[:12]}-{data.sha256[:12]}"
        run = _StageRun(stage.name, settings.epochs, task, steps, batches, hardware, progress)
        run.samples_entropy = stage.samples_entropy
        run.recipe = kept
        history = run.complete(
            data.validation, checkpoints / f"{identity}.pt", identity, resume=resume, clock=clock
        )
        hardware.release()
        epochs += history.epochs
        if settings.epochs:
            machine = history.machine
        if stage.samples_entropy:
            entropy = tuple(history.entropy)
        stage.finish(work)
    model.to("cpu", memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]
    return Trained(model, tuple(epochs), entropy, machine)


def _check(recipe: Recipe, data: Dataset) -> None:
    rho, size, many = recipe.train.rho, recipe.train.batch_size, processes.count()
    if rho is not None and len(rho) != 2:
        raise ConfigError(f"train.rho: a model with one early exit has 2 exits, got {len(rho)} weights")
    if len(data.train) < size:
        raise DataError(f"{len(data.train)} images to train on are too few for one batch of {size}")
    if size % many:
        raise ConfigError(f"train.batch_size: expected a multiple of the {many} processes, got {size}")


def _bottleneck(model: SplitModel, plan: Plan) -> Bottleneck | None:
    """What the code stage puts at the split. Raises ConfigError before anything is trained."""
    code = plan.model.bottleneck
    if code is None:
        return None
    if model.split_shape != model.exit_shape:
        raise ConfigError(f"exit {model.exit_number} is inside a residual block: no bottleneck fits there")
    for stage in STAGES:
        stage.check_model(plan, model)
    shape = BottleneckShape(code.channels, code.stride, code.width, code.growth)
    narrow = Bottleneck(model.exit_shape, shape, context=code.density == "context")
    if code.exit_behind:
        # Refused now if it is too small, not after two stages.
        ExitBranch.of_code(narrow.hidden_shape, model.backbone.classes)
    return narrow


@dataclass
class _History:
    """What a stage has done so far, and its best epoch."""

    machine: Machine
    best: dict[str, Tensor]
    best_score: float = -math.inf
    done: int = 0
    epochs: list[Epoch] = field(default_factory=list)
    entropy: list[tuple[int, float]] = field(default_factory=list)


@dataclass
class _StageRun:
    """One stage, from its first epoch or its checkpoint to its best epoch."""

    name: str
    epochs: int
    task: Task
    steps: Steps
    batches: Batches
    hardware: Hardware
    progress: Progress
    samples_entropy: bool = False
    recipe: dict[str, Any] = field(default_factory=dict)
    """What a checkpoint keeps of it, to say later why it does not fit."""

    def complete(
        self, validation: Labelled, path: Path, identity: str, *, resume: bool, clock: Clock
    ) -> _History:
        """Run the epochs that are left, then put the best epoch's values into the task."""
        hardware = self.hardware
        history = _History(hardware.describe(), _copy(self.task.state_dict()))
        if hardware.is_main and self.epochs:
            self._compare(path, resume)
        kept = hardware.from_main(
            lambda: read_checkpoint(path, identity) if resume and path.exists() else None
        )
        if kept is not None:
            self._restore(history, kept, path)
        pause = 0.0 if hardware.device.type == "cpu" else _GPU_SECONDS_BETWEEN_CHECKPOINTS
        longest, saved, saved_at = 0.0, history.done, time.monotonic()
        while history.done < self.epochs:
            if hardware.any(clock.over(longest)):
                if saved < history.done:
                    self._save(history, path, identity)
                hardware.wait()
                raise OutOfTime
            began = time.monotonic()
            self._epoch(history, validation)
            longest = max(longest, time.monotonic() - began)
            if history.done == self.epochs or time.monotonic() - saved_at >= pause:
                self._save(history, path, identity)
                saved, saved_at = history.done, time.monotonic()
        self.task.load_state_dict(history.best)
        return history

    def _compare(self, path: Path, resume: bool) -> None:
        """Say why it begins at the start, where something is there that looks as if it did not have to."""
        if path.exists():
            if not resume:
                self.progress.say(f"{self.name}: begins again; --resume would go on from {path}")
        elif resume and (reason := why(path.parent, self.name, self.recipe)):
            self.progress.say(f"{self.name}: begins at the start: {reason}")

    def _epoch(self, history: _History, validation: Labelled) -> None:
        loss = self._learn(history)
        self.task.eval()
        figures = self._figures(validation)
        history.done += 1
        score = figures.pop("score")
        best = score >= history.best_score
        if best:
            history.best_score, history.best = score, _copy(self.task.state_dict())
        epoch = Epoch(self.name, history.done, self.epochs, loss, figures, best)
        history.epochs.append(epoch)
        self.progress.epoch(epoch)

    def _learn(self, history: _History) -> float:
        """All steps of an epoch; their mean loss."""
        steps, number, device = self.batches.steps, history.done + 1, self.hardware.device
        total = torch.zeros((), dtype=torch.float64, device=device)
        samples: list[tuple[int, Tensor]] = []
        every = -(-steps // _SAMPLES)
        # To look at a number on a GPU is to wait for it, and processes have to stop together.
        looks = device.type == "cpu" and processes.count() == 1
        self.task.train()
        for step, (images, labels) in enumerate(self.batches.epoch(history.done), 1):
            measure = self.samples_entropy and (step - 1) % every == 0
            total += self.steps.step(images, labels, measure=measure)
            if measure and self.task.bits is not None:
                samples.append((history.done * steps + step - 1, self.task.bits))
            if step == steps:
                total = processes.summed(total) / processes.count()
            if (looks or step == steps) and not math.isfinite(float(total)):
                raise ConfigError(
                    f"training diverged in stage {self.name}, epoch {number}: lower its learning_rate"
                )
            self.progress.batch(self.name, number, step, steps)
        history.entropy += [(at, float(processes.summed(bits)) / processes.count()) for at, bits in samples]
        return float(total) / steps

    @torch.no_grad()
    def _figures(self, validation: Labelled) -> dict[str, float]:
        """Of the validation images; each process has some of their batches."""
        found: dict[str, float] = {}
        with self.hardware.autocast():
            for images, labels in _batches(validation, self.hardware.device):
                for name, value in self.task.sums(images, labels).items():
                    found[name] = found.get(name, 0.0) + value
            total = self.hardware.summed(found)
            return self.task.figures({name: value / len(validation) for name, value in total.items()})

    def _save(self, history: _History, path: Path, identity: str) -> None:
        if not self.hardware.is_main:
            return
        state: dict[str, Any] = {
            "identity": identity,
            "done": history.done,
            "best_score": history.best_score,
            "best": history.best,
            "epochs": [asdict(epoch) for epoch in history.epochs],
            "entropy": history.entropy,
            "torch_rng": torch.get_rng_state(),
            "machine": history.machine,
            "recipe": self.recipe,
        }
        if history.done < self.epochs:
            state |= {
                "task": self.task.state_dict(),
                **self.steps.state(),
                "generator": self.batches.generator.get_state(),
            }
        write_checkpoint(path, state)

    def _restore(self, history: _History, state: dict[str, Any], path: Path) -> None:
        history.done, history.best_score, history.best = state["done"], state["best_score"], state["best"]
        history.epochs = [Epoch(**epoch) for epoch in state["epochs"]]
        history.entropy = [(step, bits) for step, bits in state["entropy"]]
        # Older checkpoints do not say it.
        before: Machine = state.get("machine", history.machine)
        try:
            self.task.load_state_dict(state.get("task", history.best))
        except RuntimeError:
            raise ConfigError(f"checkpoint {path} is of another release: remove it") from None
        if history.done == self.epochs:
            history.machine = before
        else:
            self.steps.load(state)
            self._go_on(history, state["generator"], before)
        torch.set_rng_state(state["torch_rng"])

    def _go_on(self, history: _History, generator: Tensor, before: Machine) -> None:
        """Draw on where a stage was left off; from a new seed on another kind of device, whose generator
        differs."""
        own = self.batches.generator
        if len(generator) == len(own.get_state()):
            own.set_state(generator)
        else:
            own.manual_seed(own.initial_seed() + (history.done << 40))
        machine = history.machine
        if not before["device"].endswith(machine["device"]):
            machine["device"] = f"{before['device']} in {before['precision']}, then {machine['device']}"
        else:
            history.machine = before


def _batches(data: Labelled, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """This process's batches of all images."""
    images, labels = torch.from_numpy(data.images), torch.from_numpy(data.labels)
    pairs = zip(torch.split(images, _EVALUATION_BATCH), torch.split(labels, _EVALUATION_BATCH), strict=True)
    for number, (x, y) in enumerate(pairs):
        if number % processes.count() == processes.rank():
            yield prepared(x, device), y.to(device)


def _copy(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in state.items()}
