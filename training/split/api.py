"""``offramp.split``: a trained classifier and photos in, a measured pair for two machines out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import nn

from offramp.common.bundle.load import Bundle
from offramp.common.errors import ConfigError
from offramp.training.data.datasets import Dataset
from offramp.training.display import Bar
from offramp.training.kinds import File, Wrong
from offramp.training.split.run import Display, Job, run
from offramp.training.split_recipe import BY_NAME, OF_TENSORS, refuse_both, settled


@dataclass(frozen=True)
class Progress:
    """How far a split is. stage: its name; done of total steps or photos; text: such as the loss."""

    stage: str
    done: int
    total: int
    text: str


@dataclass(frozen=True)
class Pair:
    """A bundle for device and server, and what was measured of it.

    bundle: written and loaded; bundle.path is its folder, bundle.digest what both sides compare.
    report: the values of ``report.json``: accuracies are shares of 1 on the test photos, sizes are bytes,
        means over all photos where nothing else is said.
    verdict: one sentence: what it saves beside pictures of the same accuracy, or that they are better.
    """

    bundle: Bundle
    report: dict[str, Any]
    verdict: str


def split(
    model: nn.Module | str,
    data: str | Path | Dataset,
    out: str | Path,
    *,
    mean: Sequence[float] | float | None = None,
    std: Sequence[float] | float | None = None,
    side: int | None = None,
    weights: str | Path | None = None,
    pretrained: bool = False,
    classifier: Literal["auto", "keep", "new"] = "auto",
    cut: str | None = None,
    cuts: Sequence[str] = (),
    head_macs: float | None = None,
    head_memory: int | str | None = None,
    profile: str | Path | None = None,
    bytes: float | Sequence[float] = 60.0,
    drop: float | None = None,
    budget: float | Sequence[float] | None = None,
    hop_costs: Sequence[float] = (),
    rho: Sequence[float] = (),
    minutes: float | None = None,
    rival_minutes: float = 0.0,
    whole: str | Path | None = None,
    epochs: int | None = None,
    versions: int | None = None,
    steps: int | None = None,
    joint: int = 0,
    learn_tail: bool = False,
    seed: int = 0,
    flip: bool = True,
    classes: Sequence[str] = (),
    skip_bad: bool = False,
    say: Callable[[str], object] | None = None,
    progress: Callable[[Progress], object] | None = None,
) -> Pair:
    """Split a trained classifier over two machines, as the command ``offramp split`` does.

    An interrupted call goes on when it is made again with the same arguments, and has its minutes again;
    another ``drop`` or ``budget`` repeats no training. Long because each argument is named and described.

    Args:
        model: takes float32 [N, 3, side, side], returns logits, float32 [N, K], alone or as ``.logits``, by
            the same steps for every input; it stays as it is. Or text, such as ``timm:NAME``.
        data: a folder of photos, a Parquet or a CSV file; or a data set whose images are uint8
            [N, 3, side, side], RGB, and whose labels are int64 [N].
        out: folder for bundle, report and ``work``, what was kept of each stage.
        mean, std: what the model expects of pixels, on the scale 0 … 1, for each of R, G and B or one for
            all: input = (byte / 255 - mean) / std. Needed for a module.
        side: of its pictures, in pixels; None: its own, 224 for a module.
        weights: a file of its tensors; pretrained: its makers' weights, for text.
        classifier: its last layer: kept, new, or kept if it answers the photos.
        cut: a place by the name that ``offramp cuts`` gives it; None: chosen for the device.
        cuts: several places by name, from input to output, in place of one: a part for each machine of a
            chain, and an exit before each cut.
        head_macs: the device's share of the multiply-accumulates, 0.01 … 1; None: 0.5, or what the profile's
            ``head_seconds`` allow.
        head_memory: most bytes of activations that the device holds at once, or text as "500kB".
        profile: a TOML file of the device.
        bytes: of a photo that is sent, about; of several crossings one number for each, or for all.
        drop: T_c for fewest bytes at most so many points (1: one of 100) below the pair's best; None: 1,
            unless ``budget`` is given: T_c for most accuracy at so many bytes, a mean over all photos, on
            each hop. The thresholds of several exits are chosen together.
        hop_costs: what a byte costs on each hop, where ``drop`` has fewest; empty: 1 each.
        rho: weights of the exits' losses, Eq. (1) of the paper, the final one's last; empty: 0.7 for each
            early exit and 1.
        joint: steps of training after all codes', which train them together.
        learn_tail: whether what is behind the last cut learns with the code, for more accuracy at few bytes.
        minutes: for everything; None: 30, unless ``epochs`` of tuning all weights, ``versions`` of each
            photo and ``steps`` of the code's training are all given.
        rival_minutes: more, to tune a copy of the unsplit model on WebP, for a fair comparison.
        whole: folder for the unsplit classifier too, as a bundle for ``cloud-server --pictures``.
        seed: decides parts, first weights and augmentation.
        flip: whether a mirrored photo is still one of its class.
        classes: names by label, or the order of folders.
        skip_bad: leave out photos that cannot be used; each is a line to ``say``.
        say: called with a line about what is done.
        progress: called as a stage moves on, in the calling thread.

    Raises:
        ConfigError: an argument, a model or a profile that does not do; says which, and what was expected.
        DataError: photos that cannot be used, or a goal that no T_c meets.
        BundleError: a graph that no bundle may have.
    """
    given = dict(locals())
    module = model if isinstance(model, nn.Module) else None
    dataset = data if isinstance(data, Dataset) else None
    if module is not None and (weights is not None or pretrained):
        raise ConfigError("weights and pretrained: expected neither for a module, which has its weights")
    values = {name: _checked(name, given[name]) for name in BY_NAME.keys() & given.keys() - {"model", "data"}}
    values |= {
        "model": f"{type(module).__module__}:{type(module).__qualname__}"
        if module
        else _checked("model", model),
        "data": Path(dataset.name) if dataset is not None else _checked("data", data),
        "image_column": "image",
        "label_column": "label",
        "input": "picture",
        **dict.fromkeys(OF_TENSORS),
    }
    refuse_both(values, str)
    if dataset is None and not values["data"].exists():
        raise ConfigError(f"data={values['data']}: no such folder or file")
    job = Job.of(settled(values), module=module, dataset=dataset)

    def line(text: str) -> None:
        if say is not None:
            say(text)

    display = Display(line, lambda stage: _bar(stage, progress))
    done = run(job, display)
    return Pair(done.built.bundle, done.report.values, done.report.verdict)


def _checked(name: str, value: Any) -> Any:
    """An argument by the table of fields. Raises ConfigError."""
    kind = BY_NAME[name].kind
    if value is None or value == ():
        return value
    if isinstance(kind, File):
        if not isinstance(value, str | Path) or not str(value):
            raise ConfigError(f"{name}={value!r:.80}: expected {kind.expected}")
        return Path(value)
    try:
        return kind.from_toml(list(value) if isinstance(value, tuple) else value)
    except Wrong:
        raise ConfigError(f"{name}={value!r:.80}: expected {kind.expected}") from None


@contextmanager
def _bar(stage: str, progress: Callable[[Progress], object] | None) -> Iterator[Bar]:
    def move(done: int, total: int, text: str = "") -> None:
        if progress is not None:
            progress(Progress(stage, done, total, text))

    yield move
