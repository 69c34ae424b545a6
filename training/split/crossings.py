"""The code at each cut, fitted one after the other: what crosses a cut is cached, then the code learns on it.

cache, code        at the first cut: what the frozen head makes of every photo
cache-2, code-2 …  at the next: what the part between makes of the decoded codes before it, whose errors
                   this code learns to live with
joint              then, if wanted, all of them together

If wanted, what is behind the last cut learns with the last code, and with all of them.
"""

from __future__ import annotations

import copy
import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx, nn

from offramp.training.data.datasets import Dataset
from offramp.training.split import cache, classifier, fit
from offramp.training.split.cache import Cached
from offramp.training.split.code import Code, rounded
from offramp.training.split.halves import Halves, divide, split
from offramp.training.split.photos import Normalise, fast
from offramp.training.split.place import Place, each_of
from offramp.training.split.shares import Shares
from offramp.training.split.work import Clock, Stage

if TYPE_CHECKING:
    from offramp.training.split.run import Display, Job

SHORT = 300
"""Steps of a code's training under which more time is worth it."""


@dataclass(frozen=True)
class Fitted:
    """The network's parts and the codes between them."""

    parts: tuple[fx.GraphModule, ...]
    codes: tuple[Code, ...]


def time_for(minutes: float | None, fixed: int | None) -> float | None:
    """The minutes, where they decide how much a stage does: with more of them it begins again."""
    return minutes if fixed is None else None


def digest_of(module: nn.Module) -> str:
    """SHA-256 of a module's tensors."""
    found = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        if isinstance(tensor, torch.Tensor) and not name.endswith("num_batches_tracked"):
            found.update(name.encode() + tensor.detach().contiguous().float().numpy().tobytes())
    return found.hexdigest()


@dataclass(frozen=True)
class _Work:
    """What every crossing's stages have in common."""

    job: Job
    made: classifier.Made
    data: Dataset
    normalise: Normalise
    clock: Clock
    ends: Shares
    display: Display
    targets: tuple[float, ...]
    rho: tuple[float, ...]
    """Of the exit at each cut and of the final one."""

    def stage(self, name: str, identity: Mapping[str, object]) -> Stage:
        return Stage(self.job.out / "work" / name, identity, self.display.say)


def fit_codes(
    job: Job,
    made: classifier.Made,
    places: Sequence[Place],
    data: Dataset,
    normalise: Normalise,
    clock: Clock,
    ends: Shares,
    display: Display,
) -> Fitted:
    """Fit the code at each place, in their order; the classifier's own weights stay.

    Where the tail learns it is a copy, so that the classifier stays what the pair is compared with.
    """
    targets = each_of(job.bytes, len(places), "bytes")
    rho = fit.rho_of(job.rho, len(places))
    work = _Work(job, made, data, normalise, clock, ends, display, targets, rho)
    parts = divide(made.captured, [place.cut for place in places])
    if job.learn_tail:
        parts = (*parts[:-1], copy.deepcopy(parts[-1]))
    for part in parts:
        part.requires_grad_(False)
    cached, stage = _cache(work, split(made.captured, places[0].cut), places[0])
    first, codes, weights = cached, list[Code](), list[float]()
    for number, place in enumerate(places):
        if number:
            cached, stage = _carry_on(work, stage, cached, codes[-1], parts[number], place, number + 1)
        last = number == len(places) - 1
        tail = parts[-1] if last else split(made.captured, place.cut).tail.requires_grad_(False)
        until = ends.cache + (ends.code - ends.cache) * (number + 1) / (len(places) + bool(job.joint))
        code, state = _fit(work, stage, cached, tail, place, _named("code", number), number, until)
        codes.append(code)
        weights += state.rate_weights
    if job.joint:
        _fit_together(work, stage, first, parts, codes, weights)
    return Fitted(parts, tuple(codes))


def _named(stage: str, number: int) -> str:
    return stage if not number else f"{stage}-{number + 1}"


def _cache(work: _Work, halves: Halves, place: Place) -> tuple[Cached, Stage]:
    job, data = work.job, work.data
    identity = {
        "classifier": digest_of(work.made.module),
        "photos": data.sha256,
        "cut": place.cut.name,
        "seed": job.seed,
        "flip": job.flip,
        "versions": job.versions,
        "minutes": time_for(job.minutes, job.versions),
    }
    stage = work.stage("cache", identity)
    versions = job.versions or _versions(work, stage, halves, place)
    with work.display.bar(f"activations of {versions} versions") as bar:
        cached = cache.fill(
            stage,
            halves.head,
            halves.tail,
            data.train,
            work.normalise,
            cache.Plan(versions, job.flip, job.seed),
            shape=place.cut.shape,
            classes=len(data.classes),
            tick=lambda done, total: bar(done, total),
        )
    return cached, stage


def _versions(work: _Work, stage: Stage, halves: Halves, place: Place) -> int:
    """How many versions of each photo there is time for, decided once."""
    if (kept := stage.load("versions.pt")) is not None:
        return int(kept)
    images = work.normalise(torch.from_numpy(work.data.train.images[:32]))
    seconds = 0.0
    with torch.inference_mode(), fast():
        for _ in range(2):
            began = time.perf_counter()
            halves.tail(halves.head(images))
            seconds = time.perf_counter() - began
    versions = cache.versions_for(
        len(work.data.train),
        place.cut.shape,
        seconds_a_photo=1.3 * seconds / len(images),
        left=work.clock.left(work.ends.cache),
    )
    stage.save("versions.pt", versions)
    return versions


def _carry_on(
    work: _Work, stage: Stage, before: Cached, code: Code, part: nn.Module, place: Place, number: int
) -> tuple[Cached, Stage]:
    """Activations at the next cut, behind a code that is fitted."""

    def step(activation: Tensor) -> Tensor:
        symbols = rounded(code.encode(activation, code.features(activation)).float())
        found: Tensor = part(code.decoder(symbols))
        return found

    identity = {"before": stage.digest, "code": digest_of(code), "cut": place.cut.name}
    own = work.stage(f"cache-{number}", identity)
    with work.display.bar(f"activations at cut {number}") as bar:
        cached = cache.carry_on(
            own, before, step, shape=place.cut.shape, tick=lambda done, total: bar(done, total)
        )
    return cached, own


def _fit(
    work: _Work,
    stage: Stage,
    cached: Cached,
    tail: nn.Module,
    place: Place,
    name: str,
    number: int,
    until: float,
) -> tuple[Code, fit.State]:
    """A new code for what is cached at its cut; number: of the crossing, from 0."""
    job, target, rho = work.job, work.targets[number], (work.rho[number], work.rho[-1])
    learn = job.learn_tail and number == len(work.targets) - 1
    torch.manual_seed(job.seed)
    sample = cached.sample()
    mean, std = fit.channel_statistics(place.layout.to_map(sample))
    code = Code(place.layout, place.code, len(work.data.classes), mean, std)
    own = {
        "cache": stage.digest,
        "versions": len(cached.logits) // len(work.data.train),
        "shape": asdict(place.code),
        "bytes": target,
        "steps": job.steps,
        "minutes": time_for(job.minutes, job.steps),
        # Work of before is of a tail that stays.
        **({"learn_tail": True} if learn else {}),
        **({"rho": list(rho)} if job.rho else {}),
    }
    fitted = work.stage(name, own)
    if not (fitted.folder / fit.CHECKPOINT).exists():
        # What is kept has its transform.
        begun = code.begin(tail, sample, target=target, seed=job.seed)
        work.display.say(f"a linear transform begins with about {begun.bytes:,.0f} B a photo")
    with work.display.bar(name) as bar:
        state = fit.fit(
            [code],
            [tail],
            cached,
            fit.Settings((target,), job.steps, job.seed, learn_tail=learn, rho=rho),
            fitted,
            work.clock,
            until=until,
            tick=lambda s: bar(s.step, s.steps, f"loss {s.loss:.3f}, {s.bytes:.0f} B"),
        )
    which = "the code" if not number else f"the code at cut {number + 1}"
    work.display.say(f"{which} took {state.step:,} steps and costs about {state.bytes:,.0f} B a photo")
    if state.step < SHORT and job.steps is None:
        work.display.say(f"that is few: expected {SHORT:,} or more; give it more --minutes")
    return code, state


def _fit_together(
    work: _Work,
    stage: Stage,
    cached: Cached,
    parts: Sequence[nn.Module],
    codes: Sequence[Code],
    weights: Sequence[float],
) -> None:
    """Go on with all codes at once, from where each of them is."""
    job, targets = work.job, work.targets
    identity = {
        "before": stage.digest,
        "codes": [digest_of(code) for code in codes],
        "bytes": list(targets),
        "steps": job.joint,
        **({"tail": digest_of(parts[-1])} if job.learn_tail else {}),
        **({"rho": list(work.rho)} if job.rho else {}),
    }
    own = work.stage("joint", identity)
    with work.display.bar("all codes together") as bar:
        state = fit.fit(
            codes,
            parts[1:],
            cached,
            fit.Settings(targets, job.joint, job.seed, tuple(weights), job.learn_tail, work.rho),
            own,
            work.clock,
            until=work.ends.code,
            tick=lambda s: bar(s.step, s.steps, f"loss {s.loss:.3f}, {s.bytes:.0f} B"),
        )
    sizes = " and ".join(f"{each:,.0f} B" for each in state.sizes)
    work.display.say(f"together they took {state.step:,} steps more and cost about {sizes} a photo")
