"""One command from a classifier and a folder of photos to a bundle and its report, stage by stage.

    classifier   kept, or tuned to the folder's classes
    crossings    at each cut: what the frozen head makes of every photo, and what is sent, fitted to the
                 tail's answers (``crossings.py``)
    bundle       quantized, measured, written; the report

Each stage keeps what it made under ``OUT/work``; one that was done with the same settings is not repeated.
`shares` says when each has to end.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from offramp.common.errors import ConfigError, printable
from offramp.common.files import replace_file
from offramp.training.calibrate.chain_thresholds import Goal
from offramp.training.data.datasets import PIXEL_SCALE, PIXEL_ZERO, Dataset
from offramp.training.data.photos import Columns, read_photos
from offramp.training.data.tensors import Kind, Options
from offramp.training.display import Bar
from offramp.training.profile import Profile, read_profile
from offramp.training.split import classifier
from offramp.training.split.board import Board
from offramp.training.split.build import Built, Split, build, bundle_name
from offramp.training.split.capture import Captured, capture
from offramp.training.split.compared import compared
from offramp.training.split.crossings import Fitted, digest_of, fit_codes, time_for
from offramp.training.split.cuts import Cuts, find_cuts
from offramp.training.split.fit import rho_of
from offramp.training.split.halves import divide
from offramp.training.split.model import PAPERS, SIDE, Model, load_model
from offramp.training.split.photos import Normalise, answers, seconds_a_photo
from offramp.training.split.place import Place, Wanted, at_the_same, choose_places, each_of
from offramp.training.split.report import PHOTOS, Device, Report, make_report, words_of, write
from offramp.training.split.shares import MOST_AFTER, Shares, seconds_after, shares, slowness
from offramp.training.split.taken import Taken, take_for
from offramp.training.split.whole import WholeCode
from offramp.training.split.work import Clock, Stage
from offramp.training.split_recipe import BY_NAME, OF_TENSORS, RECIPE, recipe_toml


@dataclass(frozen=True)
class Job:
    """All that ``offramp split`` was asked for; None: as the data and the model suggest.

    module, dataset: in place of what ``model`` and ``data`` name, from Python; the module stays as it is.
    board: a microcontroller of ``ram`` and ``flash`` bytes, with what plans for it.
    """

    model: str
    data: Path
    out: Path
    weights: Path | None = None
    pretrained: bool = False
    side: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    cut: str | None = None
    cuts: tuple[str, ...] = ()
    head_macs: float | None = None
    head_memory: int | None = None
    ram: int | None = None
    flash: int | None = None
    profile: Profile | None = None
    bytes: float | tuple[float, ...] = 60.0
    drop: float | None = 1.0
    budget: float | tuple[float, ...] | None = None
    hop_costs: tuple[float, ...] = ()
    rho: tuple[float, ...] = ()
    minutes: float | None = 30.0
    seed: int = 0
    classifier: classifier.Choice = "auto"
    flip: bool = True
    epochs: int | None = None
    versions: int | None = None
    steps: int | None = None
    joint: int = 0
    learn_tail: bool = False
    columns: Columns = field(default_factory=Columns)
    skip_bad: bool = False
    input: Kind = "auto"
    tensors: Options = field(default_factory=Options)
    rival_minutes: float = 0
    whole: Path | None = None
    module: nn.Module | None = None
    dataset: Dataset | None = None
    board: Board | None = None

    @classmethod
    def of(cls, values: Mapping[str, Any], **more: Any) -> Job:
        """A job from all fields of `recipe.together`; more: fields that a recipe does not have.

        Raises ConfigError for a profile that is not one.
        """
        given = dict(values)
        names = (given.pop(name) for name in ("image_column", "label_column", "classes"))
        given["columns"] = Columns(*names)
        given["tensors"] = Options(**{own: given.pop(name) for name, own in OF_TENSORS.items()})
        if given.get("profile") is not None:
            given["profile"] = read_profile(given["profile"])
        return cls(**given, **more)


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


def run(job: Job, display: Display) -> Done:
    """Do all of it. Raises ConfigError, DataError or BundleError, each with one line."""
    clock = Clock(None if job.minutes is None else 60 * job.minutes)
    torch.manual_seed(job.seed)
    model = _model(job)
    taken = None if job.dataset is not None else take_for(job, display)
    if taken is None:
        normalise, sources = _normalise(job, model)
        side = _square(model)
    else:
        normalise, sources, side = taken.normalise, [], 0
        model = replace(model, shape=taken.spec.shape)
    display.say("looking for places to cut")
    captured = capture(model.module, model.shape, name=printable(model.name))
    cuts = find_cuts(captured)
    limits = job.head_macs, job.head_memory, job.profile
    wanted = Wanted(job.cut, *limits, job.bytes, job.cuts, job.board, captured)
    places = choose_places(cuts, wanted)
    goal = _goal(job, len(places))
    rho_of(job.rho, len(places))
    for note in (*model.notes, *sources):
        display.say(printable(note, 300))
    data = job.dataset or (_photos(job, side, display) if taken is None else taken.data)
    if data.train.images.shape[1:] != model.shape:
        shapes = ("×".join(map(str, shape)) for shape in (data.train.images.shape[1:], model.shape))
        raise ConfigError("the data are {}, the model takes {}; expected the same".format(*shapes))
    each = seconds_a_photo(classifier.module_logits(captured), data.train, normalise)
    after = seconds_after(data, each, models=2 if job.rival_minutes else 1, slow=slowness(clock))
    ends = shares(clock, after)
    for line in _plan(job, model, cuts, places, clock, after):
        display.say(line)
    made = _classifier(job, model, captured, data, normalise, clock, ends, display)
    cuts = find_cuts(made.captured)
    places = tuple(at_the_same(place, cuts) for place in places)
    fitted = fit_codes(job, made, places, data, normalise, clock, ends, display)
    return _finish(job, made, fitted, places, goal, cuts, data, normalise, display, taken)


def _goal(job: Job, hops: int) -> Goal:
    """What thresholds are chosen for."""
    costs = each_of(job.hop_costs, hops, "hop_costs") if job.hop_costs else ()
    if job.budget is not None:
        return Goal(budget=each_of(job.budget, hops, "budget"), costs=costs)
    assert job.drop is not None
    return Goal(drop=job.drop / 100, costs=costs)


def _model(job: Job) -> Model:
    if job.module is None:
        return load_model(job.model, weights=job.weights, pretrained=job.pretrained, side=job.side)
    side = job.side or SIDE
    return Model(job.model, copy.deepcopy(job.module), (3, side, side))


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


def _plan(
    job: Job, model: Model, cuts: Cuts, places: Sequence[Place], clock: Clock, after: float
) -> Iterator[str]:
    """What is done, and how long it takes."""
    place, targets = places[0], each_of(job.bytes, len(places), "bytes")
    head = place.head.macs
    on_it = "" if job.profile is None else f", {head / job.profile.speed:.2g} s a photo by the profile"
    yield (
        f"{printable(model.name)} is cut after {printable(place.cut.name)}: the device computes "
        f"{head / max(1, cuts.whole.macs):.0%} of {cuts.whole.macs / 1e6:,.1f} M multiply-accumulates{on_it} "
        f"and sends {_symbols(place)} symbols, about {targets[0]:g} B coded, for photos "
        "that it is unsure of"
    )
    for number, (each, target) in enumerate(zip(places[1:], targets[1:], strict=True), start=2):
        yield (
            f"part {number} goes on to {printable(each.cut.name)} and sends {_symbols(each)} symbols, about "
            f"{target:g} B coded, for photos that it is unsure of"
        )
    safe = "Ctrl-C is safe, the same command goes on"
    if clock.seconds is None:
        yield f"it takes as long as its steps do, and then about {_about(after)}; {safe}"
        return
    least = clock.spent + after
    end = time.strftime("%H:%M", time.localtime(time.time() + clock.left()))
    if least > MOST_AFTER * clock.seconds:
        yield (
            f"--minutes {job.minutes:g} is too short: quantization and report alone take about "
            f"{_about(after)}, so it will take longer; expected {least / 60 / MOST_AFTER:.0f} or more"
        )
    else:
        yield (
            f"it takes at most {job.minutes:g} minutes, until {end}; of these about {_about(after)} for "
            f"quantization and report; {safe}"
        )


def _symbols(place: Place) -> str:
    _, height, width = place.layout.map_shape
    for _ in range(place.code.halvings):
        height, width = -(-height // 2), -(-width // 2)
    return f"{place.code.channels}×{height}×{width}"


def _about(seconds: float) -> str:
    return f"{max(5, 5 * round(seconds / 5)):.0f} s" if seconds < 90 else f"{seconds / 60:.0f} minutes"


def _classifier(
    job: Job,
    model: Model,
    captured: Captured,
    data: Dataset,
    normalise: Normalise,
    clock: Clock,
    ends: Shares,
    display: Display,
) -> classifier.Made:
    identity = {
        "model": job.model,
        "weights": digest_of(model.module),
        "photos": data.sha256,
        "side": model.shape[1],
        "seed": job.seed,
        "mean": normalise.mean,
        "std": normalise.std,
        "classifier": job.classifier,
        "epochs": job.epochs,
        "minutes": time_for(job.minutes, job.epochs),
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
            until=ends.classifier,
            name=printable(model.name),
            tick=lambda at, of, loss: bar(at, of, "features" if loss is None else f"loss {loss:.3f}"),
            say=display.say,
        )


def _finish(
    job: Job,
    made: classifier.Made,
    fitted: Fitted,
    places: Sequence[Place],
    goal: Goal,
    cuts: Cuts,
    data: Dataset,
    normalise: Normalise,
    display: Display,
    taken: Taken | None,
) -> Done:
    whole, place = classifier.module_logits(made.captured), places[0]
    ours = Split(
        parts=fitted.parts,
        codes=fitted.codes,
        normalise=normalise,
        name=bundle_name(job.out),
        model=job.model,
        cuts=tuple((each.cut.name, each.number) for each in places),
        recipe=recipe_text(job, places, None),
        seed=job.seed,
        tensor=None if taken is None else taken.spec,
    )
    built = build(job.out, ours, data, goal, display.say)
    if job.whole is not None:
        display.say(f"writing the unsplit classifier to {job.whole}")
        unsplit = replace(
            ours,
            parts=divide(made.captured, [place.cut]),
            codes=(WholeCode(fitted.codes[0]),),
            cuts=ours.cuts[:1],
            name=bundle_name(job.whole),
        )
        # Of the hops there is one.
        first = None if goal.budget is None else goal.budget[:1]
        build(job.whole, unsplit, data, replace(goal, budget=first, costs=()), display.say)
    comparison = compared(job, made, data, built, normalise, display, taken, digest_of(made.module))
    more = place.head.macs - place.cut.head.macs
    device = Device(place.cut.head, cuts.whole, more, place.cut.peak_bytes)
    report = make_report(
        built,
        data,
        answers(whole, data.test, normalise),
        comparison,
        device,
        model=job.model,
        cuts=[each.cut.name for each in places],
        classifier=made.how,
        shape=place.cut.shape,
        words=PHOTOS if taken is None else words_of(taken.spec),
        board=None if job.board is None else job.board.report(built.bundle),
    )
    write(report, job.out)
    replace_file(job.out / RECIPE, recipe_text(job, places, job.out).encode())
    return Done(built, report)


def recipe_text(job: Job, places: Sequence[Place], beside: Path | None) -> str:
    """What made a bundle, as TOML; beside: the folder that it is for, None: not where things lie."""
    values = {name: getattr(job, name) for name in BY_NAME if hasattr(job, name)}
    # The cut says where, whatever it was chosen for.
    names = tuple(place.cut.name for place in places)
    values |= {"cut": names[0], "cuts": ()} if len(names) == 1 else {"cut": None, "cuts": names}
    values |= {"head_macs": None, "head_memory": None, "profile": None}
    columns = job.columns
    values |= {"image_column": columns.image, "label_column": columns.label}
    values["classes"] = tuple(columns.classes)
    values |= {name: getattr(job.tensors, own) for name, own in OF_TENSORS.items()}
    notes = []
    for number, code in enumerate((place.code for place in places), start=1):
        which = "the code" if len(places) == 1 else f"code {number}"
        notes.append(f"{which}: {code.channels} channels, {code.halvings} halvings, {code.width} wide")
    if job.module is not None or job.dataset is not None:
        notes.append("made from Python: a module or data that no recipe can name")
    return recipe_toml(values, beside=beside, notes=notes)
