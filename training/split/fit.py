"""Fit a code at a cut to the tail's answers, on what was cached of the frozen head.

    loss = KL(teacher ‖ tail(decoder(symbols))) + KL(teacher ‖ early exit) + feature loss + λ · bits

The Kullback-Leibler terms are at temperature 2 (Hinton et al. 2015). λ is steered so that the bits come to
what was asked for. Head and tail stay as they are.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from offramp.training.split.cache import Cached
from offramp.training.split.code import Code, rounded
from offramp.training.split.photos import fast
from offramp.training.split.work import SAVE_SECONDS, Clock, Pace, Pacer, Stage, schedule, seeded

BATCH = 48
MOST_STEPS = 20_000
_TEMPERATURE = 2.0
_EXIT, _FEATURE = 0.7, 0.3
_RATE, _LINEAR_RATE, _DENSITY_RATE, _DECAY = 2.5e-3, 5e-4, 1e-2, 0.01
"""Learning rates: of what begins from nothing, of transform and inverse, of the density; weight decay."""
_FIRST_LAMBDA, _LAMBDAS = 2e-4, (1e-7, 2e-2)
_STEER, _BAND = 4.0, 0.1
"""How far λ can move while it learns: as a factor, about e to this; at full speed where the bytes are so far
off, relatively."""


@dataclass(frozen=True)
class Settings:
    """target: bytes of a photo's symbols; steps: None: as many as there is time for."""

    target: float
    steps: int | None
    seed: int


@dataclass(frozen=True)
class State:
    """Where it stands: step of steps, loss, estimated bytes of a photo, λ."""

    step: int
    steps: int
    loss: float
    bytes: float
    rate_weight: float


def fit(
    code: Code,
    tail: nn.Module,
    cached: Cached,
    settings: Settings,
    stage: Stage,
    clock: Clock,
    *,
    until: float,
    tick: Callable[[State], object] = lambda _: None,
) -> State:
    """Train ``code`` in place, which ends in evaluation; ``tick`` is called after each step.

    Args:
        tail: the frozen half behind the cut, in evaluation.
        cached: of `cache.fill`.
        stage: keeps its checkpoints, with which it goes on.
        until: share of the clock's time after which it ends.
    """
    for each in tail.parameters():
        each.requires_grad_(False)
    code.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    density = list(code.density.parameters())
    linear = [*code.transform.parameters(), *code.decoder.inverse.parameters()]
    fixed = {id(each) for each in (*density, *linear)}
    others = [each for each in code.parameters() if id(each) not in fixed]
    rates = (_RATE, _LINEAR_RATE, _DENSITY_RATE)
    optimizer = torch.optim.AdamW(
        [{"params": others}, {"params": linear}, {"params": density, "weight_decay": 0.0}],
        weight_decay=_DECAY,
    )
    pace, weight, mean_bytes = Pace(settings.steps, MOST_STEPS), _FIRST_LAMBDA, math.nan
    if (kept := stage.load("code.pt")) is not None:
        code.load_state_dict(kept["code"])
        optimizer.load_state_dict(kept["optimizer"])
        pace.restore(kept["pace"])
        weight, mean_bytes = float(kept["weight"]), float(kept["bytes"])
    pacer, saved = Pacer(pace, clock, until), time.monotonic()

    def save() -> None:
        stage.save(
            "code.pt",
            {
                "code": code.state_dict(),
                "optimizer": optimizer.state_dict(),
                "pace": pace.state(),
                "weight": weight,
                "bytes": mean_bytes,
            },
        )

    state, begun_at = State(pace.step, pace.steps, math.nan, mean_bytes, weight), pace.step
    code.train()
    while not pace.done:
        generator = seeded(settings.seed, pace.step)
        at = torch.randint(0, len(cached.logits), (BATCH,), generator=generator)
        activation, teacher = cached.batch(at)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * schedule(pace)
        loss, size = _loss(code, tail, activation, teacher, weight)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_([*others, *linear], 5.0)
        optimizer.step()
        mean_bytes = size if math.isnan(mean_bytes) else 0.95 * mean_bytes + 0.05 * size
        off = math.log(max(mean_bytes, 1e-3) / settings.target) / _BAND
        gain = min(0.03, _STEER / pace.steps)
        weight = min(max(weight * math.exp(gain * max(-1.0, min(1.0, off))), _LAMBDAS[0]), _LAMBDAS[1])
        pace.advance()
        pacer.after_step()
        state = State(pace.step, pace.steps, float(loss.detach()), mean_bytes, weight)
        tick(state)
        if time.monotonic() - saved > SAVE_SECONDS:
            save()
            saved = time.monotonic()
    if pace.step > begun_at:
        save()
    code.eval()
    return state


def _loss(
    code: Code, tail: nn.Module, activation: Tensor, teacher: Tensor, weight: float
) -> tuple[Tensor, float]:
    """The loss, and bytes of a photo's symbols by the density."""
    wanted = code.layout.to_map(activation)
    mean, std = code.decoder.mean, code.decoder.std
    if activation.ndim == 4:
        activation = activation.contiguous(memory_format=torch.channels_last)
    with fast():
        features = code.features(activation)
        symbols = code.encode(activation, features).float()
        early = code.exit(features)
        found, extra = code.decoder.normalised(rounded(symbols))
        final = tail(code.decoder.finish(found, extra))
    feature = ((found.float() - (wanted - mean) / std) ** 2).mean()
    if extra is not None:
        token = (code.layout.extra_of(activation) - mean) / std
        feature = feature + ((extra.float() - token) ** 2).mean()
    rate, density = code.bits(symbols)
    loss = _distance(final, teacher) + _EXIT * _distance(early, teacher) + _FEATURE * feature
    # The density learns at its own rate, whatever λ is.
    return loss + weight * rate + 1e-3 * density, code.coded_bits(symbols) / 8


def _distance(logits: Tensor, teacher: Tensor) -> Tensor:
    ours, theirs = (functional.log_softmax(each.float() / _TEMPERATURE, dim=1) for each in (logits, teacher))
    return functional.kl_div(ours, theirs, log_target=True, reduction="batchmean") * _TEMPERATURE**2


def channel_statistics(code_map: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each channel of float32 [N, C, H, W].

    A channel that hardly ever moves has at least a tenth of the mean deviation: the few values that it does
    have would outweigh everything else.
    """
    mean, std = code_map.mean((0, 2, 3)), code_map.std((0, 2, 3))
    least = float(std.mean()) / 10
    return mean, std.clamp_min(least) if least > 0 else torch.ones_like(std)
