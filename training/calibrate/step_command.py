"""``offramp step``: a rate-trained bundle at another rate, by the step of its code."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from offramp.common.arguments import Parser, number
from offramp.common.bundle.manifest import SentAnswer
from offramp.common.errors import ConfigError, ExitCode, OfframpError
from offramp.common.part.answer import ANSWERED_BY

if TYPE_CHECKING:
    from offramp.common.bundle.load import Bundle
    from offramp.training.calibrate.codebook import Candidate
    from offramp.training.calibrate.measure import Answers
    from offramp.training.data.datasets import Dataset, Labelled
    from offramp.training.export import Graphs
    from offramp.training.recipe import Recipe

_DESCRIPTION = """\
Make a rate-trained bundle for a wider or a narrower link, without training it again.

What a rate-trained split sends is rounded to multiples of a step, 1 in training. A finer step (0.8) takes
more bytes and costs the final exit less, a coarser one (1.2) takes fewer; the early exit stays as it is. Both
graphs get the step; the coder's tables, who answers a sent image and T_c are chosen again as the bundle's
recipe has it, all on validation images.

A code may have learnt where exactly rounding decides, and then tolerates no other step: look before you
write.
Without --out the steps are compared on validation images, and nothing is written. With it, one step's bundle
is written, its card measured on the test images. The bundle's recipe says where its images are; for files
elsewhere, name them.
"""

_EXAMPLES = """\
examples:
  offramp step my-bundle --step 0.7 0.8 1 1.2 1.4
  offramp step my-bundle --step 1.2 --out my-bundle-narrow
  offramp step my-bundle --step 0.8 1.2 --json | jq '.[].payload_bytes'

exit status: 0 done, 2 wrong flags, 4 unusable bundle, 5 not a rate-trained bundle, or unusable data
"""


# Beyond these a code of 256 values is clipped, or has nothing left to say.
_FINEST, _COARSEST = 0.05, 20.0


@dataclass(frozen=True)
class Stepped:
    """A step, and what it means on validation images."""

    step: float
    payload_bytes: float
    """Mean of an image that is sent."""
    accuracy_final: float
    accuracy_best: float
    """Of both exits together, at the best T_c."""
    sent_answer: SentAnswer
    threshold: float
    """T_c as the recipe chooses it, and what both exits do there."""
    accuracy: float
    bytes_mean: float
    """Over all images; one that exits early counts as 0."""


@dataclass(frozen=True)
class _Made:
    """What a bundle with that step consists of."""

    graphs: Graphs
    codec: Candidate
    found: Stepped


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    try:
        arguments = _parser().parse_args(argv)
        found = _run(arguments)
    except OfframpError as error:
        print(f"offramp step: {error}", file=sys.stderr)
        return error.exit_code
    if arguments.json:
        print(json.dumps([asdict(one) for one in found], indent=1))
    else:
        print("\n".join(_lines(found)))
    return ExitCode.OK


def _parser() -> Parser:
    parser = Parser(
        prog="offramp step",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("bundle", type=Path, help="the bundle's directory; it stays as it is")
    parser.add_argument(
        "--step",
        type=number(float, _FINEST, _COARSEST, f"a number, {_FINEST:g} … {_COARSEST:g}"),
        nargs="+",
        required=True,
        metavar="S",
        help="steps; the trained one is 1",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="write the bundle of this one step, here")
    parser.add_argument(
        "--export-test", type=Path, metavar="DIR", help="also write the test images, as `train` does"
    )
    parser.add_argument("--train-data", nargs="+", metavar="PATH", help="files or a folder, as for `train`")
    parser.add_argument("--test-data", nargs="+", metavar="PATH", help="files or a folder, as for `train`")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _run(arguments: argparse.Namespace) -> list[Stepped]:
    from tqdm import tqdm

    from offramp.common.bundle.load import load_bundle
    from offramp.training.calibrate.chain import require_two
    from offramp.training.calibrate.code_step import with_step
    from offramp.training.data.datasets import write_images
    from offramp.training.data.held_out import load_data
    from offramp.training.export import Graphs
    from offramp.training.recipe import Recipe

    steps, out = arguments.step, arguments.out
    if out is not None and len(steps) != 1:
        raise ConfigError(f"--out: expected one --step with it, not {len(steps)}")
    if out is not None and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"--out {out}: expected a folder that is empty, or not there yet")
    bundle = load_bundle(arguments.bundle)
    require_two(bundle, "offramp step")
    # Before the data are read, which takes a while.
    every = [with_step(Graphs(bundle.head, bundle.tail), step) for step in steps]
    data = load_data(bundle, arguments.train_data, arguments.test_data)
    recipe = Recipe.parse(bundle.manifest.provenance.recipe)
    made = [
        _made(bundle, graphs, step, data, recipe)
        for graphs, step in tqdm(list(zip(every, steps, strict=True)), unit="step", leave=False, disable=None)
    ]
    if arguments.export_test is not None:
        write_images(data.test, data.classes, arguments.export_test)
    if out is not None:
        _write(out, bundle, made[0], data)
    return [one.found for one in made]


def _made(bundle: Bundle, graphs: Graphs, step: float, data: Dataset, recipe: Recipe) -> _Made:
    """Chosen as for a bundle that has just been trained, and measured, on validation images."""
    import numpy as np

    from offramp.training.calibrate.choose import choose_on_validation
    from offramp.training.calibrate.codebook import payload_bytes

    codec, seen, threshold = choose_on_validation(_answers(bundle, graphs, data.validation), recipe)
    payloads = payload_bytes(codec.tables, codec.lanes, seen.symbols)
    found = Stepped(
        step=step,
        payload_bytes=float(payloads.mean()),
        accuracy_final=float(seen.final_right.mean()),
        accuracy_best=seen.best_accuracy,
        sent_answer=seen.sent_answer,
        threshold=threshold,
        accuracy=seen.accuracy(threshold),
        bytes_mean=float(np.where(seen.exits(threshold), 0, payloads).mean()),
    )
    return _Made(graphs, codec, found)


def _answers(bundle: Bundle, graphs: Graphs, part: Labelled) -> Answers:
    from dataclasses import replace

    from offramp.training.calibrate.measure import run_graphs

    return replace(run_graphs(graphs, part), temperature=bundle.manifest.temperature)


def _write(out: Path, bundle: Bundle, made: _Made, data: Dataset) -> Bundle:
    from dataclasses import replace

    import numpy as np

    from offramp.common.bundle.manifest import CODEBOOK, HEAD, TAIL
    from offramp.common.bundle.write import file_entries, write_bundle
    from offramp.training.calibrate.card import figures
    from offramp.training.calibrate.codebook import payload_bytes

    manifest, found, codec = bundle.manifest, made.found, made.codec
    answers = replace(_answers(bundle, made.graphs, data.test), sent_answer=found.sent_answer)
    payloads = payload_bytes(codec.tables, codec.lanes, answers.symbols)
    files = {HEAD: made.graphs.head, TAIL: made.graphs.tail, CODEBOOK: codec.tables.to_bytes()}
    base = manifest.name.removesuffix(f"-step{manifest.activation.scale:g}")
    changed = manifest.changed(
        name=f"{base}-step{found.step:g}",
        files=file_entries(files),
        crossing={"scale": float(np.float32(found.step)), "codec": codec.entry, "tables": CODEBOOK},
        threshold=found.threshold,
        sent_answer=found.sent_answer,
        # The float model's are of the step that it was trained with.
        figures=figures(answers, manifest.figures.in_float, payloads, found.threshold),
        # It is measured in symbols of the old step; `offramp unknown` adds another.
        unknown=None,
    )
    return write_bundle(out, changed, files)


def _lines(found: Sequence[Stepped]) -> list[str]:
    titles = "  step   B sent   final exit   best of all T_c        T_c   accuracy   B an image   answered by"
    return [
        titles,
        *(
            f"  {one.step:<5g}{one.payload_bytes:9,.1f}{one.accuracy_final:13.2%}{one.accuracy_best:18.2%}"
            f"{one.threshold:11g}{one.accuracy:11.2%}{one.bytes_mean:13,.1f}   {ANSWERED_BY[one.sent_answer]}"
            for one in found
        ),
    ]
