"""One command from a classifier and a folder of photos to a bundle and its report, stage by stage.

    classifier   kept, or tuned to the folder's classes       ends at 35 % of the time
    cache        what the frozen head makes of every photo    ends at 50 %
    code         what is sent, fitted to the tail's answers   ends at 82 %
    bundle       quantized, measured, written; the report

Each stage keeps what it made under ``OUT/work``; one that was done with the same settings is not repeated.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from offramp.common.bundle.manifest import ACTIVATION_SYMBOLS, FILE_BYTES
from offramp.common.errors import ConfigError, printable
from offramp.training.data.datasets import PIXEL_SCALE, PIXEL_ZERO, Dataset
from offramp.training.data.held_out import SPLIT_RECIPE
from offramp.training.data.photos import Columns, read_photos
from offramp.training.data.tensors import Kind, Options
from offramp.training.split import cache, classifier, fit
from offramp.training.split.build import Built, Goal, Split, build, bundle_name
from offramp.training.split.capture import Captured, capture
from offramp.training.split.code import Code, CodeShape, choose_shape, encoder_macs
from offramp.training.split.compared import compared
from offramp.training.split.cuts import Cut, Cuts, find_cuts
from offramp.training.split.halves import Halves, split
from offramp.training.split.layout import Layout
from offramp.training.split.model import PAPERS, Model, load_model
from offramp.training.split.photos import Normalise, answers, fast
from offramp.training.split.report import PHOTOS, Device, Report, make_report, words_of, write
from offramp.training.split.taken import Taken, take_for
from offramp.training.split.whole import WholeCode
from offramp.training.split.work import Clock, Stage

CLASSIFIER_ENDS, CACHE_ENDS, CODE_ENDS = 0.35, 0.5, 0.82
ENCODER_SHARE = 0.08
"""Of the whole model's multiply-accumulates, for encoder and early exit."""
SHORT = 300
"""Steps of the code's training under which more time is worth it."""


@dataclass(frozen=True)
class Job:
    """All that ``offramp split`` was asked for; None: as the data and the model suggest."""

    model: str
    data: Path
    out: Path
    weights: Path | None = None
    pretrained: bool = False
    side: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    cut: str | None = None
    head_macs: float = 0.5
    head_memory: int | None = None
    bytes: float = 60.0
    drop: float | None = 1.0
    budget: float | None = None
    minutes: float | None = 30.0
    seed: int = 0
    classifier: classifier.Choice = "auto"
    flip: bool = True
    epochs: int | None = None
    versions: int | None = None
    steps: int | None = None
    columns: Columns = field(default_factory=Columns)
    skip_bad: bool = False
    input: Kind = "auto"
    tensors: Options = field(default_factory=Options)
    rival_minutes: float = 0
    whole: Path | None = None


class Bar(Protocol):
    """A progress bar: moved to a position of a total, which may change, with a text behind it."""

    def __call__(self, done: int, total: int, text: str = "") -> None: ...


@dataclass(frozen=True)
class Display:
    """How progress is shown: a line, and a bar for one stage."""

    say: Callable[[str], None]
    bar: Callable[[str], AbstractContextManager[Bar]]


@dataclass(frozen=True)
class Done:
    """What came of it."""

    built: Built
    report: Report


@dataclass(frozen=True)
class _Place:
    """Where it is cut, and what is learned there."""

    cut: Cut
    number: int
    layout: Layout
    code: CodeShape


def run(job: Job, display: Display) -> Done:
    """Do all of it. Raises ConfigError, DataError or BundleError, each with one line."""
    clock = Clock(None if job.minutes is None else 60 * job.minutes)
    torch.manual_seed(job.seed)
    model = load_model(job.model, weights=job.weights, pretrained=job.pretrained, side=job.side)
    taken = take_for(job, display)
    if taken is None:
        normalise, sources = _normalise(job, model)
        side = _square(model)
    else:
        normalise, sources, side = taken.normalise, [], 0
        model = replace(model, shape=taken.spec.shape)
    captured = capture(model.module, model.shape, name=printable(model.name))
    cuts = find_cuts(captured)
    place = choose_place(cuts, job)
    for note in (*model.notes, *sources):
        display.say(printable(note, 300))
    data = _photos(job, side, display) if taken is None else taken.data
    display.say(_plan(job, model, cuts, place, data))
    made = _classifier(job, model, captured, data, normalise, clock, display)
    cuts = find_cuts(made.captured)
    place = replace(place, cut=cuts.find(place.cut.name))
    halves = split(made.captured, place.cut)
    code = _fit(job, made, halves, place, data, normalise, clock, display)
    return _finish(job, made, halves, code, place, cuts, data, normalise, display, taken)


def _normalise(job: Job, model: Model) -> tuple[Normalise, list[str]]:
    """What the model expects of pixels, from its makers or the flags."""
    if (job.mean is None) != (job.std is None):
        raise ConfigError("--mean and --std: expected both or neither")
    if job.mean is not None and job.std is not None:
        return Normalise(job.mean, job.std), []
    if model.name in PAPERS or model.name in PAPERS.values():
        zero, scale = PIXEL_ZERO / 255, 1 / (255 * PIXEL_SCALE)
        return Normalise((zero,) * 3, (scale,) * 3), []
    expects = model.preprocessing
    if expects is None:
        raise ConfigError(
            f"{printable(model.name)}: does not say which mean and deviation its pictures are normalised "
            "with; expected --mean and --std, such as --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225"
        )
    notes = []
    if expects.crop < 1 or expects.interpolation != "bilinear":
        notes.append(
            f"its makers resize {expects.interpolation} and keep a centre crop of {expects.crop:g}; here "
            "whole photos are resized bilinear, on the device too"
        )
    return Normalise.of(expects), notes


def _square(model: Model) -> int:
    if len(model.shape) != 3 or model.shape[0] != 3 or model.shape[1] != model.shape[2]:
        sides = "×".join(map(str, model.shape))
        raise ConfigError(f"{printable(model.name)}: takes {sides}; expected square pictures of 3 channels")
    return model.shape[1]


def choose_place(cuts: Cuts, job: Job) -> _Place:
    """The cut by name, or the one that uses the device's share well and sends least.

    Raises ConfigError where no cut will do.
    """
    if not cuts.cuts:
        raise ConfigError("nowhere does one tensor cross the model alone, so it cannot be cut")
    if job.cut is not None:
        cut = cuts.find(job.cut)
        return _place(cuts, cut, job)
    fitting: list[_Place] = []
    refused, least = "", float("inf")
    for cut in cuts.places():
        if job.head_memory is not None and cut.peak_bytes > job.head_memory:
            continue
        try:
            place = _place(cuts, cut, job)
        except ConfigError as error:
            refused = str(error)
            continue
        extra = encoder_macs(place.layout, place.code)
        if (share := (cut.head.macs + extra) / max(1, cuts.whole.macs)) < least:
            refused, least = (
                f"{printable(cut.name)} needs {share:.0%}, encoder and early exit included",
                share,
            )
        if cut.head.macs + extra <= job.head_macs * cuts.whole.macs:
            fitting.append(place)
    if not fitting:
        memory = "" if job.head_memory is None else f" and holds at most {job.head_memory:,} bytes"
        raise ConfigError(
            f"no cut leaves the device at most {job.head_macs:.0%} of the multiply-accumulates{memory} "
            f"({refused or 'all hold more'}); `offramp cuts` lists them"
        )
    most = max(each.cut.head.macs for each in fitting)
    deep = [each for each in fitting if each.cut.head.macs >= 0.7 * most]
    return min(reversed(deep), key=lambda each: each.cut.int8_bytes)


def _place(cuts: Cuts, cut: Cut, job: Job) -> _Place:
    layout = Layout.of(cut.shape, printable(cut.name))
    code = choose_shape(layout, target=job.bytes, most_macs=ENCODER_SHARE * cuts.whole.macs)
    if cut.tail.weights > FILE_BYTES:
        raise ConfigError(
            f"{printable(cut.name)}: the server's half has {cut.tail.weights:,} weights; expected at most "
            f"{FILE_BYTES:,}, one byte each"
        )
    if code.channels * cut.int8_bytes > ACTIVATION_SYMBOLS * cut.shape[0]:
        raise ConfigError(f"{printable(cut.name)}: its code has over {ACTIVATION_SYMBOLS:,} symbols")
    order = [each.node for each in cuts.cuts]
    return _Place(cut, min(10_000, order.index(cut.node) + 1), layout, code)


def _photos(job: Job, side: int, display: Display) -> Dataset:
    with display.bar("reading photos") as bar:

        def counted(total: int) -> Callable[[], None]:
            done = iter(range(1, total + 1))
            return lambda: bar(next(done), total)

        found = read_photos(
            job.data,
            size=side,
            seed=job.seed,
            columns=job.columns,
            counted=counted,
            skipped=(lambda line: display.say(f"left out: {line}")) if job.skip_bad else None,
        )
    data = found.data
    display.say(
        f"{data.name}: {len(data.classes)} classes; {len(data.train):,} photos to train, "
        f"{len(data.validation):,} to choose, {len(data.test):,} to test ({'; '.join(found.notes)})"
    )
    return data


def _plan(job: Job, model: Model, cuts: Cuts, place: _Place, data: Dataset) -> str:
    head = place.cut.head.macs + encoder_macs(place.layout, place.code)
    _, height, width = place.layout.map_shape
    for _ in range(place.code.halvings):
        height, width = -(-height // 2), -(-width // 2)
    time_ = "as long as its steps take" if job.minutes is None else f"at most {job.minutes:g} minutes"
    return (
        f"{printable(model.name)} is cut after {printable(place.cut.name)}: the device computes "
        f"{head / max(1, cuts.whole.macs):.0%} of {cuts.whole.macs / 1e6:,.1f} M multiply-accumulates and "
        f"sends {place.code.channels}×{height}×{width} symbols, about {job.bytes:g} B coded, for photos that "
        f"it is unsure of. Classifier, code, quantization and report take {time_}; Ctrl-C is safe, and the "
        "same command goes on."
    )


def _classifier(
    job: Job,
    model: Model,
    captured: Captured,
    data: Dataset,
    normalise: Normalise,
    clock: Clock,
    display: Display,
) -> classifier.Made:
    identity = {
        "model": job.model,
        "weights": _digest(model.module),
        "photos": data.sha256,
        "side": model.shape[1],
        "seed": job.seed,
        "mean": normalise.mean,
        "std": normalise.std,
        "classifier": job.classifier,
        "epochs": job.epochs,
        "minutes": time_for(job, job.epochs),
        "flip": job.flip,
    }
    stage = Stage(job.out / "work" / "classifier", identity, display.say)
    settings = classifier.Settings(job.classifier, job.epochs, job.flip, job.seed)
    with display.bar("classifier") as bar:
        return classifier.make_classifier(
            model.module,
            captured,
            data,
            normalise,
            settings,
            stage,
            clock,
            until=CLASSIFIER_ENDS,
            name=printable(model.name),
            tick=lambda step, steps, loss: bar(step, steps, f"loss {loss:.3f}"),
            say=display.say,
        )


def time_for(job: Job, fixed: int | None) -> float | None:
    """The minutes, where they decide how much a stage does: with more of them it begins again."""
    return job.minutes if fixed is None else None


def _digest(module: nn.Module) -> str:
    """SHA-256 of a module's tensors."""
    found = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        if isinstance(tensor, torch.Tensor) and not name.endswith("num_batches_tracked"):
            found.update(name.encode() + tensor.detach().contiguous().float().numpy().tobytes())
    return found.hexdigest()


def _fit(
    job: Job,
    made: classifier.Made,
    halves: Halves,
    place: _Place,
    data: Dataset,
    normalise: Normalise,
    clock: Clock,
    display: Display,
) -> Code:
    for half in (halves.head, halves.tail):
        half.requires_grad_(False)
    identity = {
        "classifier": _digest(made.module),
        "photos": data.sha256,
        "cut": place.cut.name,
        "seed": job.seed,
        "flip": job.flip,
        "versions": job.versions,
        "minutes": time_for(job, job.versions),
    }
    stage = Stage(job.out / "work" / "cache", identity, display.say)
    versions = job.versions or _versions(stage, halves, data, normalise, place, clock)
    with display.bar(f"activations of {versions} versions") as bar:
        cached = cache.fill(
            stage,
            halves.head,
            halves.tail,
            data.train,
            normalise,
            cache.Plan(versions, job.flip, job.seed),
            shape=place.cut.shape,
            classes=len(data.classes),
            tick=lambda done, total: bar(done, total),
        )
    torch.manual_seed(job.seed)
    mean, std = fit.channel_statistics(place.layout.to_map(cached.sample()))
    code = Code(place.layout, place.code, len(data.classes), mean, std)
    own = {
        "cache": stage.digest,
        "versions": versions,
        "shape": asdict(place.code),
        "bytes": job.bytes,
        "steps": job.steps,
        "minutes": time_for(job, job.steps),
    }
    fitted = Stage(job.out / "work" / "code", own, display.say)
    with display.bar("code") as bar:
        state = fit.fit(
            code,
            halves.tail,
            cached,
            fit.Settings(job.bytes, job.steps, job.seed),
            fitted,
            clock,
            until=CODE_ENDS,
            tick=lambda s: bar(s.step, s.steps, f"loss {s.loss:.3f}, {s.bytes:.0f} B"),
        )
    display.say(f"the code took {state.step:,} steps and costs about {state.bytes:,.0f} B a photo")
    if state.step < SHORT and job.steps is None:
        display.say(f"that is few: expected {SHORT:,} or more; give it more --minutes")
    return code


def _versions(
    stage: Stage, halves: Halves, data: Dataset, normalise: Normalise, place: _Place, clock: Clock
) -> int:
    """How many versions of each photo there is time for, decided once."""
    if (kept := stage.load("versions.pt")) is not None:
        return int(kept)
    images = normalise(torch.from_numpy(data.train.images[:32]))
    seconds = 0.0
    with torch.inference_mode(), fast():
        for _ in range(2):
            began = time.perf_counter()
            halves.tail(halves.head(images))
            seconds = time.perf_counter() - began
    left = clock.left(CACHE_ENDS)
    versions = cache.versions_for(
        len(data.train), place.cut.shape, seconds_a_photo=1.3 * seconds / len(images), left=left
    )
    stage.save("versions.pt", versions)
    return versions


def _finish(
    job: Job,
    made: classifier.Made,
    halves: Halves,
    code: Code,
    place: _Place,
    cuts: Cuts,
    data: Dataset,
    normalise: Normalise,
    display: Display,
    taken: Taken | None,
) -> Done:
    whole = classifier.module_logits(made.captured)
    ours = Split(
        halves=halves,
        code=code,
        normalise=normalise,
        name=bundle_name(job.out),
        model=job.model,
        cut=place.cut.name,
        number=place.number,
        recipe=recipe_text(job, place),
        seed=job.seed,
        tensor=None if taken is None else taken.spec,
    )
    built = build(job.out, ours, data, Goal(job.drop, job.budget), display.say)
    if job.whole is not None:
        display.say(f"writing the unsplit classifier to {job.whole}")
        unsplit = replace(ours, code=WholeCode(code), name=bundle_name(job.whole))
        build(job.whole, unsplit, data, Goal(job.drop, job.budget), display.say)
    comparison = compared(job, made, data, built, normalise, display, taken, _digest(made.module))
    device = Device(place.cut.head, cuts.whole, encoder_macs(place.layout, place.code), place.cut.peak_bytes)
    report = make_report(
        built,
        data,
        answers(whole, data.test, normalise),
        comparison,
        device,
        model=job.model,
        cut=place.cut.name,
        classifier=made.how,
        shape=place.cut.shape,
        words=PHOTOS if taken is None else words_of(taken.spec),
    )
    write(report, job.out)
    path = job.out / "recipe.toml"
    path.write_text(ours.recipe, encoding="utf-8")
    return Done(built, report)


def recipe_text(job: Job, place: _Place) -> str:
    """What made a bundle, as TOML; folders by their own names only."""
    values: dict[str, Any] = {
        "model": job.model,
        "weights": "" if job.weights is None else job.weights.name,
        "pretrained": job.pretrained,
        "data": job.data.name,
        "cut": place.cut.name,
        "channels": place.code.channels,
        "halvings": place.code.halvings,
        "width": place.code.width,
        "bytes": float(job.bytes),
        "seed": job.seed,
        "classifier": job.classifier,
        "flip": job.flip,
    }
    optional = {
        name: getattr(job, name)
        for name in ("side", "mean", "std", "drop", "budget", "minutes", "epochs", "versions", "steps")
    }
    values |= {name: value for name, value in optional.items() if value is not None}
    values |= {name: value for name, value in asdict(job.tensors).items() if value is not None}
    values |= {"input": job.input} if job.input != "auto" else {}
    lines = ["[split]"]
    lines += [f"{name} = {json.dumps(value, ensure_ascii=False)}" for name, value in values.items()]
    return SPLIT_RECIPE + "\n".join(lines) + "\n"


@contextmanager
def no_bar(_: str) -> Iterator[Bar]:
    """A bar that shows nothing."""

    def nothing(done: int, total: int, text: str = "") -> None:
        pass

    yield nothing
