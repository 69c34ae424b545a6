"""Fit codes at one cut or several to the tail's answers, on what was cached of the frozen head.

    loss = Σ over the exits of ρ · KL(teacher ‖ exit) + Σ over the cuts of (feature loss + λ · bits)

The first sum is Eq. (1) of the paper with the unsplit model's answers as labels; the final exit's answer is
tail(decoder(symbols)). The Kullback-Leibler terms are at temperature 2 (Hinton et al. 2015). The λ of each
cut is steered so that its bits come to their target. What is before and between the cuts stays as it is; what
is behind the last one may learn as well, by the same loss, with its batch norms' statistics as they are.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from offramp.common.errors import ConfigError
from offramp.training.split.cache import Cached
from offramp.training.split.code import Code, rounded
from offramp.training.split.photos import fast
from offramp.training.split.transform import TEMPERATURE
from offramp.training.split.work import SAVE_SECONDS, Clock, Pace, Pacer, Stage, schedule, seeded

CHECKPOINT = "code.pt"
"""Of codes and their optimizer, in the stage's folder."""
BATCH = 48
MOST_STEPS = 20_000
_FEATURE = 0.3
_RATES, _DECAY = (2.5e-3, 5e-4, 1e-2), 0.01
"""Learning rates: of what begins from nothing, of transform and inverse, of the density; weight decay."""
_TAIL_RATE = 1e-4
"""Of what is behind the last cut, which knows its classes already."""
_FIRST_LAMBDA, _LAMBDAS = 2e-4, (1e-7, 2e-2)
_STEER, _BAND = 4.0, 0.1
"""How far λ can move while it learns: as a factor, about e to this; at full speed where the bytes are so far
off, relatively."""


@dataclass(frozen=True)
class Settings:
    """targets: bytes of a photo's symbols at each cut; steps: None: as many as there is time for.

    rate_weights: λ of each cut to begin with; empty: what suits a code that knows nothing yet. learn_tail:
    whether what is behind the last cut learns too. rho: of the exit at each cut and of the final one; empty:
    `rho_of`'s.
    """

    targets: tuple[float, ...]
    steps: int | None
    seed: int
    rate_weights: tuple[float, ...] = ()
    learn_tail: bool = False
    rho: tuple[float, ...] = ()


@dataclass(frozen=True)
class State:
    """Where it stands: step of steps, loss; and for each cut estimated bytes of a photo, and λ."""

    step: int
    steps: int
    loss: float
    sizes: tuple[float, ...]
    rate_weights: tuple[float, ...]

    @property
    def bytes(self) -> float:
        """Of all cuts."""
        return sum(self.sizes)


def rho_of(given: tuple[float, ...], cuts: int) -> tuple[float, ...]:
    """Weights of the exits' losses: 0.7 for each early exit and 1, if none are given.

    Raises ConfigError for another number of them than there are exits.
    """
    if not given:
        return (0.7,) * cuts + (1.0,)
    if len(given) != cuts + 1:
        numbers = "1 number" if len(given) == 1 else f"{len(given)} numbers"
        raise ConfigError(f"rho: {numbers}; expected {cuts + 1}, one for each exit, the final one last")
    return given


def fit(
    codes: Sequence[Code],
    behind: Sequence[nn.Module],
    cached: Cached,
    settings: Settings,
    stage: Stage,
    clock: Clock,
    *,
    until: float,
    tick: Callable[[State], object] = lambda _: None,
) -> State:
    """Train ``codes`` in place, which end in evaluation; ``tick`` is called after each step.

    Args:
        behind: what is between each code's cut and the next one's, in evaluation; the last one's ends with
            the logits. With ``settings.learn_tail`` that one is trained in place.
        cached: of `cache.fill`, at the first of the cuts.
        stage: keeps its checkpoints, with which it goes on.
        until: share of the clock's time after which it ends.
    """
    run = _Run(codes, behind, settings)
    run.restore(stage)
    pace = run.pace
    pacer, saved = Pacer(pace, clock, until), time.monotonic()
    state, begun_at = run.state(math.nan), pace.step
    run.learned.train()
    while not pace.done:
        generator = seeded(settings.seed, pace.step)
        at = torch.randint(0, len(cached.logits), (BATCH,), generator=generator)
        loss = run.step(*cached.batch(at))
        pacer.after_step()
        state = run.state(loss)
        tick(state)
        if time.monotonic() - saved > SAVE_SECONDS:
            run.save(stage)
            saved = time.monotonic()
    if pace.step > begun_at:
        run.save(stage)
    run.learned.eval()
    for part in behind:
        part.requires_grad_(False)
    return state


class _Run:
    """What learns, and where its training stands."""

    def __init__(self, codes: Sequence[Code], behind: Sequence[nn.Module], settings: Settings) -> None:
        for part in behind:
            part.requires_grad_(False)
        self._codes, self._behind, self._targets = codes, behind, settings.targets
        self._rho = rho_of(settings.rho, len(codes))
        # A checkpoint of one code has its names alone.
        self.learned: nn.Module = codes[0] if len(codes) == 1 else nn.ModuleList(codes)
        self.learned.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._tail = behind[-1].requires_grad_(True) if settings.learn_tail else None
        self._rates = _RATES if self._tail is None else (*_RATES, _TAIL_RATE)
        self._optimizer = _optimizer(codes, self._tail)
        self.pace = Pace(settings.steps, MOST_STEPS)
        self._weights = list(settings.rate_weights) or [_FIRST_LAMBDA] * len(codes)
        self._sizes = [math.nan] * len(codes)

    def restore(self, stage: Stage) -> None:
        """Go on from what is kept, if anything is."""
        if (kept := stage.load(CHECKPOINT)) is None:
            return
        with stage.restoring(CHECKPOINT):
            self.learned.load_state_dict(kept["code"])
            if self._tail is not None:
                self._tail.load_state_dict(kept["tail"])
            self._optimizer.load_state_dict(kept["optimizer"])
            self.pace.restore(kept["pace"])
            self._weights, self._sizes = list(kept["weight"]), list(kept["bytes"])

    def save(self, stage: Stage) -> None:
        """Keep all of it."""
        made = {
            "code": self.learned.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "pace": self.pace.state(),
            "weight": self._weights,
            "bytes": self._sizes,
        }
        stage.save(CHECKPOINT, made if self._tail is None else made | {"tail": self._tail.state_dict()})

    def state(self, loss: float) -> State:
        """Where it stands."""
        return State(self.pace.step, self.pace.steps, loss, tuple(self._sizes), tuple(self._weights))

    def step(self, activation: Tensor, teacher: Tensor) -> float:
        """One step; its loss."""
        groups = self._optimizer.param_groups
        for group, rate in zip(groups, self._rates, strict=True):
            group["lr"] = rate * schedule(self.pace)
        loss, measured = _loss(self._codes, self._behind, activation, teacher, self._weights, self._rho)
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_([p for group in groups[:2] for p in group["params"]], 5.0)
        self._optimizer.step()
        for number, (size, target) in enumerate(zip(measured, self._targets, strict=True)):
            old = self._sizes[number]
            mean = size if math.isnan(old) else 0.95 * old + 0.05 * size
            self._sizes[number] = mean
            self._weights[number] = _steered(self._weights[number], mean / target, self.pace.steps)
        self.pace.advance()
        return float(loss.detach())


def _optimizer(codes: Sequence[Code], tail: nn.Module | None) -> torch.optim.AdamW:
    """With a group for each of `_RATES`, and one for a tail that learns."""
    density = [p for code in codes for p in code.density.parameters()]
    both = [each for code in codes for each in (code.transform, code.decoder.inverse)]
    linear = [p for each in both for p in each.parameters()]
    fixed = {id(each) for each in (*density, *linear)}
    others = [p for code in codes for p in code.parameters() if id(p) not in fixed]
    groups: list[dict[str, Any]] = [
        {"params": others},
        {"params": linear},
        {"params": density, "weight_decay": 0.0},
    ]
    if tail is not None:
        groups.append({"params": list(tail.parameters())})
    return torch.optim.AdamW(groups, weight_decay=_DECAY)


def _steered(weight: float, ratio: float, steps: int) -> float:
    """λ after a step, by how many times its target the bytes are."""
    off = math.log(max(ratio, 1e-5)) / _BAND
    gain = min(0.03, _STEER / steps)
    return min(max(weight * math.exp(gain * max(-1.0, min(1.0, off))), _LAMBDAS[0]), _LAMBDAS[1])


def _loss(
    codes: Sequence[Code],
    behind: Sequence[nn.Module],
    activation: Tensor,
    teacher: Tensor,
    weights: Sequence[float],
    rho: Sequence[float],
) -> tuple[Tensor, list[float]]:
    """The loss, and bytes of a photo's symbols at each cut by the densities."""
    source = x = activation
    if x.ndim == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    made = []
    with fast():
        for code, part in zip(codes, behind, strict=True):
            features = code.features(x)
            symbols = code.encode(x, features).float()
            early = code.exit(features)
            found, extra = code.decoder.normalised(rounded(symbols))
            x = part(code.decoder.finish(found, extra))
            made.append((code, source, symbols, early, found, extra))
            source = x.detach()
    terms = []
    for code, wanted, symbols, early, found, extra in made:
        mean, std = code.decoder.mean, code.decoder.std
        feature = ((found.float() - (code.layout.to_map(wanted) - mean) / std) ** 2).mean()
        if extra is not None:
            token = (code.layout.extra_of(wanted) - mean) / std
            feature = feature + ((extra.float() - token) ** 2).mean()
        terms.append((early, feature, *code.bits(symbols), code.coded_bits(symbols) / 8))
    *early_weights, final_weight = rho
    loss = final_weight * _distance(x, teacher)
    for (early, feature, rate, density, _), weight, own in zip(terms, weights, early_weights, strict=True):
        loss = loss + own * _distance(early, teacher) + _FEATURE * feature
        # The density learns at its own rate, whatever λ is.
        loss = loss + weight * rate + 1e-3 * density
    return loss, [size for *_, size in terms]


def _distance(logits: Tensor, teacher: Tensor) -> Tensor:
    ours, theirs = (functional.log_softmax(each.float() / TEMPERATURE, dim=1) for each in (logits, teacher))
    return functional.kl_div(ours, theirs, log_target=True, reduction="batchmean") * TEMPERATURE**2


def channel_statistics(code_map: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each channel of float32 [N, C, H, W].

    A channel that hardly ever moves has at least a tenth of the mean deviation: the few values that it does
    have would outweigh everything else.
    """
    mean, std = code_map.mean((0, 2, 3)), code_map.std((0, 2, 3))
    least = float(std.mean()) / 10
    return mean, std.clamp_min(least) if least > 0 else torch.ones_like(std)
