"""The classifier that is split: the model's own where its classes are the folder's, else one that is tuned.

probe   a new last layer on the features that the rest computes now
tune    then all weights, from there, for as many steps as there is time
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn
from torch.nn import functional

from offramp.common.errors import ConfigError
from offramp.training.data.datasets import Dataset, Labelled
from offramp.training.split.capture import Captured, capture, find_logits
from offramp.training.split.photos import Normalise, answers, batches, fast, seconds_a_photo
from offramp.training.split.work import SAVE_SECONDS, Clock, Pace, Pacer, Stage, schedule, seeded

Choice = Literal["auto", "keep", "new"]
CLEARLY_BETTER = 0.3
"""How far above chance, on the way to certain, a classifier's own answers show that its classes are these."""
BATCH = 32
MOST_EPOCHS = 40
_PROBED, _LEAST_PROBED = 20_000, 500
_LEARNING_RATE, _LAST_RATE, _DECAY = 6e-4, 3e-3, 0.02
_LAST = (torch.ops.aten.linear.default, torch.ops.aten.addmm.default)


@dataclass(frozen=True)
class Settings:
    """How a classifier is made.

    choice: keep its own last layer, make a new one, or ``auto``: keep it if it answers the validation photos.
    epochs: of tuning all weights; None: as many as there is time for, and none where it is kept.
    flip: whether a mirrored photo is still one of its class.
    """

    choice: Choice
    epochs: int | None
    flip: bool
    seed: int


@dataclass(frozen=True)
class Made:
    """A classifier for the folder's classes.

    module: it; captured: its graph; how: a sentence about what was done.
    """

    module: nn.Module
    captured: Captured
    how: str


def make_classifier(
    module: nn.Module,
    captured: Captured,
    data: Dataset,
    normalise: Normalise,
    settings: Settings,
    stage: Stage,
    clock: Clock,
    *,
    until: float,
    name: str,
    tick: Callable[[int, int, float | None], object] = lambda *_: None,
    say: Callable[[str], object] = lambda _: None,
) -> Made:
    """Keep, probe and tune; ``module`` itself is changed.

    Args:
        stage: keeps its checkpoints.
        until: share of the clock's time after which it ends.
        name: of the model, for errors.
        tick: called with the step, of how many, and the loss; None while features are computed.

    Raises:
        ConfigError: a last layer is needed and cannot be replaced, or the asked choice is not possible.
    """
    classes = len(data.classes)
    own, why = _keeps(module, captured, data, normalise, settings)
    say(why)
    if own and not settings.epochs:
        return Made(module, captured, why)
    if not own:
        last = _replace_last(module, captured, classes, name)
        captured = capture(module, captured.shape, name=name)
        kept = stage.load("probed.pt")
        if kept is None and _is_untrained(module):
            say("its weights are random: all of them are trained")
        elif kept is None:
            say("fitting a new last layer")
            _probe(module, last, data, normalise, clock.left(until), lambda d, n: tick(d, n, None))
            stage.save("probed.pt", last.state_dict())
        else:
            with stage.restoring("probed.pt"):
                last.load_state_dict(kept)
    steps_an_epoch = max(1, len(data.train) // BATCH)
    fixed = None if settings.epochs is None else settings.epochs * steps_an_epoch
    pace = Pace(fixed, MOST_EPOCHS * steps_an_epoch)
    tune(module, captured, data.train, normalise, settings, stage, clock, pace, until=until, tick=tick)
    tuned = pace.step / steps_an_epoch
    how = f"all weights tuned for {tuned:.3g} epochs" if pace.step else "a new last layer only"
    return Made(module, captured, how if own else f"a new last layer; {how}" if pace.step else how)


def _keeps(
    module: nn.Module, captured: Captured, data: Dataset, normalise: Normalise, settings: Settings
) -> tuple[bool, str]:
    classes = len(data.classes)
    if captured.classes != classes:
        if settings.choice == "keep":
            raise ConfigError(
                f"--classifier keep: the model has {captured.classes:,} classes, the photos {classes:,}; "
                "expected the same"
            )
        return False, f"the model has {captured.classes:,} classes, the photos {classes:,}: a new last layer"
    if settings.choice != "auto":
        text = "its own last layer is kept" if settings.choice == "keep" else "a new last layer"
        return settings.choice == "keep", text
    module.eval()
    found = answers(module_logits(captured), data.validation, normalise)
    right = float((found.argmax(axis=1) == data.validation.labels).mean())
    better = (right - 1 / classes) / (1 - 1 / classes)
    if better >= CLEARLY_BETTER:
        return True, f"its own classifier is kept: {right:.1%} of the validation photos are right"
    return False, (
        f"its {classes} classes are not the photos' ({right:.1%} of the validation photos are right): "
        "a new last layer"
    )


def module_logits(captured: Captured) -> Callable[[Tensor], Tensor]:
    """The captured graph as a function to logits."""
    graph: Callable[[Tensor], Tensor] = captured.graph
    return graph


def _last_node(captured: Captured) -> fx.Node:
    output = next(node for node in captured.graph.graph.nodes if node.op == "output")
    logits: fx.Node = output.all_input_nodes[0]
    return logits


def _replace_last(module: nn.Module, captured: Captured, classes: int, name: str) -> nn.Linear:
    """Put a new linear layer of so many outputs in the place of the last one."""
    node = _last_node(captured)
    named: dict[int, tuple[nn.Module, str, nn.Linear]] = {}
    for parent in module.modules():
        for key, child in parent.named_children():
            if isinstance(child, nn.Linear):
                named[id(child.weight)] = (parent, key, child)
    weights = [
        named.get(id(captured.graph.get_parameter(str(each.target))))
        for each in node.all_input_nodes
        if node.target in _LAST and each.op == "get_attr"
    ]
    found = next((each for each in weights if each is not None), None)
    if found is None:
        raise ConfigError(
            f"{name}: its last step is not a linear layer, so it cannot be replaced; expected a model whose "
            f"classes are the photos' {classes:,}"
        )
    parent, key, old = found
    new = nn.Linear(old.in_features, classes)
    setattr(parent, key, new)
    return new


def _is_untrained(module: nn.Module) -> bool:
    """Whether a batch norm has never seen a batch: what is behind it then has no scale of its own yet."""
    norms = [each for each in module.modules() if isinstance(each, nn.BatchNorm2d)]
    return any(
        each.running_mean is not None
        and each.running_var is not None
        and not bool(each.running_mean.any())
        and bool((each.running_var == 1).all())
        for each in norms
    )


def _probe(
    module: nn.Module,
    last: nn.Linear,
    data: Dataset,
    normalise: Normalise,
    left: float,
    tick: Callable[[int, int], object],
) -> None:
    """Fit the last layer alone on the features of at most `_PROBED` training photos, fewer if time is short.

    left: seconds until the stage has to end; features take half of them at most.
    """
    seen: list[Tensor] = []

    def keep(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.append(inputs[0].detach().float().reshape(-1, last.in_features))

    module.eval()
    each = seconds_a_photo(module, data.train, normalise)
    most = max(_LEAST_PROBED, min(_PROBED, int(min(1e9, left / 2 / each))))
    part = data.train.take(np.arange(0, len(data.train), -(-len(data.train) // most)))
    handle = last.register_forward_pre_hook(keep)
    try:
        with torch.no_grad(), fast():
            for images in batches(part.images):
                module(normalise(images))
                tick(sum(map(len, seen)), len(part))
    finally:
        handle.remove()
    x, y = torch.cat(seen), torch.from_numpy(part.labels)
    mean, std = x.mean(0), x.std(0) + 1e-3
    x = (x - mean) / std
    weight = torch.zeros(last.out_features, last.in_features, requires_grad=True)
    bias = torch.zeros(last.out_features, requires_grad=True)
    search = torch.optim.LBFGS([weight, bias], max_iter=60, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        search.zero_grad()
        found = functional.cross_entropy(x @ weight.T + bias, y) + 2e-3 * weight.pow(2).sum()
        found.backward()  # type: ignore[no-untyped-call]
        return found

    search.step(loss)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        last.weight.copy_(weight / std)
        last.bias.copy_(bias - (weight / std) @ mean)


def tune(
    module: nn.Module,
    captured: Captured,
    data: Labelled,
    normalise: Normalise,
    settings: Settings,
    stage: Stage,
    clock: Clock,
    pace: Pace,
    *,
    until: float,
    tick: Callable[[int, int, float | None], object] = lambda *_: None,
    changed: Callable[[NDArray[np.uint8], torch.Generator], NDArray[np.uint8]] = lambda images, _: images,
) -> None:
    """Tune all weights with the labels; ends in evaluation.

    changed: what becomes of a batch of photos, uint8 [B, 3, H, W], before it is augmented.
    """
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    last = [each for each in _last_node(captured).all_input_nodes if each.op == "get_attr"]
    ends = {id(captured.graph.get_parameter(str(each.target))) for each in last}
    groups = [
        [each for each in module.parameters() if id(each) not in ends],
        [each for each in module.parameters() if id(each) in ends],
    ]
    rates = (_LEARNING_RATE, _LAST_RATE)
    optimizer = torch.optim.AdamW(
        [{"params": group, "lr": rate} for group, rate in zip(groups, rates, strict=True)],
        weight_decay=_DECAY,
    )
    if (kept := stage.load("tuned.pt")) is not None:
        with stage.restoring("tuned.pt"):
            module.load_state_dict(kept["module"])
            optimizer.load_state_dict(kept["optimizer"])
            pace.restore(kept["pace"])
    saved, begun_at = time.monotonic(), pace.step
    module.train()
    logits = nn.Module.__call__

    def save() -> None:
        stage.save(
            "tuned.pt",
            {"module": module.state_dict(), "optimizer": optimizer.state_dict(), "pace": pace.state()},
        )

    pacer = Pacer(pace, clock, until)
    while not pace.done:
        generator = seeded(settings.seed, pace.step)
        at = torch.randint(0, len(data), (BATCH,), generator=generator).numpy()
        images = normalise(torch.from_numpy(changed(data.images[at], generator)))
        images = normalise.augmented(images, flip=settings.flip, mix=False, generator=generator)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * schedule(pace)
        with fast():
            found = _logits_in_training(logits(module, images))
        loss = functional.cross_entropy(found.float(), torch.from_numpy(data.labels[at]), label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(module.parameters(), 5.0)
        optimizer.step()
        pace.advance()
        pacer.after_step()
        tick(pace.step, pace.steps, float(loss.detach()))
        if time.monotonic() - saved > SAVE_SECONDS:
            save()
            saved = time.monotonic()
    if pace.step > begun_at:
        save()
    module.eval()


def _logits_in_training(answer: Any) -> Tensor:
    """As `find_logits`; some models return more in training, the logits first."""
    found = find_logits(answer)
    first: Tensor = answer[0] if found is None else found
    return first
