"""``offramp init``: looks at a folder of photos and writes a recipe for ``offramp split``."""

from __future__ import annotations

import math
from argparse import RawDescriptionHelpFormatter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from offramp.common.arguments import Parser
from offramp.common.errors import ConfigError, ExitCode, printable
from offramp.common.files import replace_file
from offramp.training.display import Screen
from offramp.training.split_recipe import TABLE, path_from, toml_value

if TYPE_CHECKING:
    from offramp.training.data.survey import Survey

DESCRIPTION = """\
Look at a folder of photos and write a recipe for `offramp split`: what is there, what is wrong with it, and a
model, a size and minutes that suit it, each with a comment. Nothing is trained. The photos are as
`offramp split` takes them: one folder a class, train and test folders of such, Parquet files, or a CSV file.
"""
EPILOG = """\
examples:
  offramp init photos                                  # writes photos.toml
  offramp init photos --model my_model:build --out my-split.toml
  offramp split photos.toml                            # runs it

exit status: 0 written, 2 wrong flags, 5 photos that cannot be used
"""
FEW = 20
"""Photos of a class under which its figures say little."""
SHOWN = 12
PRETRAINED, SMALL, LARGE = "timm:efficientnet_lite0", "mobilenetv2", "mobilenet-v2-large"
_SIDES = (32, 64, 96, 128, 160, 224)
_OTHER_LIBRARIES = {"timm": "timm", "torchvision": "torchvision", "hf": "transformers"}


def main(argv: Sequence[str]) -> int:
    """Run the command; what was found goes to stdout, progress to stderr."""
    parser = Parser(
        "offramp init", description=DESCRIPTION, epilog=EPILOG, formatter_class=RawDescriptionHelpFormatter
    )
    parser.add_argument("data", metavar="FOLDER", type=Path, help="folder of photos, or a file")
    parser.add_argument(
        "--model", metavar="MODEL", help="as `offramp split` takes it (default: one that suits)"
    )
    parser.add_argument(
        "--out", metavar="FILE", type=Path, help="the recipe; must be new (default: <the folder's name>.toml)"
    )
    arguments = parser.parse_args(argv)
    data: Path = arguments.data
    if not data.exists():
        raise ConfigError(f"{data}: no such folder or file; expected photos in class folders, Parquet or CSV")
    name = data.resolve().name
    out: Path = arguments.out or Path(f"{Path(name).stem if data.is_file() else name}.toml")
    if out.exists():
        raise ConfigError(f"{out}: exists; expected a new file, by --out")
    from offramp.training.data.survey import survey

    with Screen() as screen, screen.bar("reading photos") as bar:
        screen.say(f"reading {data}")

        def counted(total: int) -> Callable[[], None]:
            done = iter(range(1, total + 1))
            return lambda: bar(next(done), total)

        found = survey(data, counted=counted)
    proposal = propose(found, arguments.model)
    text = recipe(found, proposal, data, out)
    try:
        replace_file(out, text.encode())
    except OSError as error:
        raise ConfigError(f"{out}: {error.strerror}; expected a file to write") from None
    print("\n".join([*described(found, data), "", *after(proposal, out)]))
    return ExitCode.OK


@dataclass(frozen=True)
class Proposal:
    """What suits the photos. pretrained: with its makers' weights; why: a comment for the recipe."""

    model: str
    pretrained: bool
    side: int | None
    minutes: int
    why: str


def propose(found: Survey, model: str | None) -> Proposal:
    """A model, its side and the minutes; ``model``: the user's own choice."""
    _, median, _ = found.sides
    if model is not None:
        kind = model.partition(":")[0]
        if kind in _OTHER_LIBRARIES:
            why = f"needs the package {_OTHER_LIBRARIES[kind]}"
            return Proposal(model, True, None, minutes_for(found.photos, 224), why)
        side = max(each for each in _SIDES if each <= max(median, _SIDES[0]))
        why = "without weights, all of it is trained here"
        return Proposal(model, False, side, minutes_for(found.photos, side), why)
    if median > 48 and find_spec("timm") is not None:
        why = "trained on ImageNet; its last layer is fitted to your classes"
        return Proposal(PRETRAINED, True, 160, minutes_for(found.photos, 160), why)
    why = (
        "trained here from nothing, for which thousands of photos are few: `pip install timm` and "
        f'model = "{PRETRAINED}", pretrained = true need far fewer'
    )
    if median <= 48:
        return Proposal(SMALL, False, 32, minutes_for(found.photos, 32), why)
    return Proposal(LARGE, False, 160, minutes_for(found.photos, 160), why)


def minutes_for(photos: int, side: int) -> int:
    """Minutes on two cores that photos of a side are worth: 30 for 2,500 of 160×160; from 3 to 240."""
    return max(3, min(240, math.ceil(3 + 27 * photos / 2500 * (side / 160) ** 2)))


def described(found: Survey, data: Path) -> Iterator[str]:
    """What is there, for people."""
    parts = "parts are made by the seed"
    if len(found.parts) > 1:
        sums = [sum(each[at] for each in found.counts.values()) for at in range(len(found.parts))]
        parts = ", ".join(f"{count:,} to {name}" for count, name in zip(sums, found.parts, strict=True))
    least, median, most = found.sides
    yield f"{data}: {found.photos:,} photos in {len(found.counts):,} classes ({parts})"
    for note in found.notes:
        yield f"  {note}"
    yield f"  shorter sides from {least:,} to {most:,} pixels, half of them up to {median:,}"
    for name, each in list(found.counts.items())[:SHOWN]:
        yield f"  {printable(name, 40):<24} {sum(each):>7,}"
    if len(found.counts) > SHOWN:
        yield f"  … and {len(found.counts) - SHOWN:,} more classes"
    yield from problems(found)


def problems(found: Survey) -> Iterator[str]:
    """What is wrong, a line each."""
    if found.problems:
        yield f"  {len(found.problems):,} cannot be used:"
        yield from (f"    {line}" for line in found.problems[:SHOWN])
        if len(found.problems) > SHOWN:
            yield f"    … and {len(found.problems) - SHOWN:,} more"
    few = [name for name, each in found.counts.items() if sum(each) < FEW]
    if few:
        shown = ", ".join(printable(name, 40) for name in few[:4]) + (", …" if len(few) > 4 else "")
        yield f"  under {FEW} photos, so that their figures say little: {shown}"
    if found.leaked:
        yield f"  {found.leaked:,} are in train and in test: the test part is not independent"
    elif found.twins:
        yield f"  {found.twins:,} are there more than once, and may come to train and to test"


def after(proposal: Proposal, out: Path) -> Iterator[str]:
    """What to do now."""
    yield f"wrote {out}: {proposal.model}, which takes {proposal.minutes} minutes"
    yield f"run it: offramp split {out}"


def recipe(found: Survey, proposal: Proposal, data: Path, out: Path) -> str:
    """The recipe's text."""
    folder = out.parent
    least, median, most = found.sides
    name = out.stem
    own = (
        "its own" if proposal.side is None else f"photos have {least} to {most}, half of them up to {median}"
    )
    function = ":" in proposal.model and proposal.model.partition(":")[0] not in _OTHER_LIBRARIES
    lines = [
        "# For `offramp split`; paths are relative to this file. Flags win over it.",
        f"# {found.photos:,} photos, {len(found.counts):,} classes.",
        f"[{TABLE}]",
        f"model = {toml_value(proposal.model)}  # {proposal.why}",
        f"pretrained = {toml_value(proposal.pretrained)}  # its makers' weights, which may be downloaded",
        '# weights = "best.safetensors"  # or weights of yours, in place of pretrained',
        f"{'# ' if proposal.side is None else ''}side = {proposal.side or 224}  # pixels; {own}",
    ]
    if function:
        lines += [
            "mean = [0.485, 0.456, 0.406]  # what your model was trained with: wrong ones cost points",
            "std = [0.229, 0.224, 0.225]",
        ]
    lines += [
        f"data = {toml_value(path_from(data, folder))}",
        f"out = {toml_value(f'{name}-split')}  # bundle, report and work",
        "",
        "head_macs = 0.5  # the device's share of the multiply-accumulates, or:",
        '# profile = "device.toml"  # its memory, flash and speed',
        '# cut = "features.4"  # a place by name, as `offramp cuts` lists them',
        "bytes = 60  # of a photo that is sent, about",
        "drop = 1  # T_c: at most so many points below the pair's best, or:",
        "# budget = 20  # most accuracy at so many bytes a photo, on average",
        "",
        f"minutes = {proposal.minutes}  # for everything; more helps until the code has some thousand steps",
        "flip = true  # false where a mirrored photo is another class, as for digits",
        "seed = 0  # decides which photos validate and test",
    ]
    if found.problems:
        lines.append(f"# skip_bad = true  # leaves out the {len(found.problems):,} that cannot be used")
    return "\n".join(lines) + "\n"
