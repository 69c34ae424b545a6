"""``python -m research.pareto``: what everything that a device could send costs at equal accuracy."""

from __future__ import annotations

import sys
from argparse import Namespace, RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from offramp.bench.report_tables import ReportTable, show
from offramp.common.arguments import Parser
from offramp.common.bundle.load import load_bundle
from offramp.common.errors import DataError, ExitCode
from offramp.common.inputs.formats import FORMATS
from research.program import run_program

PROGRAM = "python -m research.pareto"

_DESCRIPTION = """\
Run bundles on the test images and compare what everything that a device could send costs at equal accuracy.

With --out, the pictures' part is kept in OUT/pictures, where the next call finds it.
"""

_EXAMPLES = """\
examples:
  python -m research.pareto --bundle build/rate/* --whole build/plain build/webp --paper build/exit12-entropy1

exit status: 0 done, 2 wrong flags, 4 unusable bundle, 5 unusable data
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    return run_program(PROGRAM, _main, argv)


def _main(argv: Sequence[str] | None) -> int:
    arguments = _parser().parse_args(argv)
    show(_measure(arguments), as_json=arguments.json, out=arguments.out)
    return ExitCode.OK


def _parser() -> Parser:
    parser = Parser(
        prog=PROGRAM, description=_DESCRIPTION, epilog=_EXAMPLES, formatter_class=RawDescriptionHelpFormatter
    )

    def add_folders(flag: str, text: str, *, required: bool = True) -> None:
        parser.add_argument(
            flag, type=Path, nargs="+", metavar="DIR", default=[], required=required, help=text
        )

    add_folders("--bundle", "rate-trained bundles")
    add_folders(
        "--whole", "the whole model that pictures are sent to; a second may be trained on such pictures"
    )
    add_folders("--paper", "bundles of the paper's scheme", required=False)
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="also write pareto.md, .json, .png and .svg here"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of Markdown")
    parser.add_argument(
        "--train-data", nargs="+", metavar="FILE", help="Parquet files in place of the bundle's recipe's"
    )
    parser.add_argument("--test-data", nargs="+", metavar="FILE", help="the same for its test part")
    return parser


def _measure(arguments: Namespace) -> list[ReportTable]:
    # Here: --help needs no torch.
    from offramp.training.data.held_out import load_data
    from research.pareto.compare import compare
    from research.pareto.devices import devices
    from research.pareto.pictures import picture_payloads, run_pictures
    from research.pareto.points import Coded
    from research.pareto.splits import run_split

    ours, wholes, papers = (
        [load_bundle(path) for path in paths]
        for paths in (arguments.bundle, arguments.whole, arguments.paper)
    )
    data = load_data(wholes[0], arguments.train_data, arguments.test_data)
    for one in (*ours, *wholes, *papers):
        if one.manifest.provenance.dataset.sha256 != data.sha256:
            raise DataError(f"{one.path}: was made of other data than {wholes[0].path}")
    steps = 2 * len(FORMATS) + len(ours) + len(papers)
    with tqdm(total=steps, unit="step", file=sys.stderr, disable=not sys.stderr.isatty()) as bar:
        kept = arguments.out and arguments.out / "pictures"
        pictures = run_pictures(wholes, data.test.images, FORMATS, bar.update, kept=kept)
        payloads = picture_payloads(data.test.images, FORMATS, bar.update)
        coded: dict[str, Coded] = {}
        in_one_table: dict[str, Coded] = {}
        for found, bundles in ((coded, ours), (in_one_table, papers)):
            for bundle in bundles:
                found[bundle.manifest.name] = run_split(bundle, data, one_table=bundles is papers)
                bar.update()
    about = (
        f"{len(data.test):,} test images of {data.name}; whole models: "
        + ", ".join(one.manifest.name for one in wholes)
        + "."
    )
    return [
        compare(coded, in_one_table, pictures, payloads, about=about),
        devices(ours, wholes[0], about=about),
    ]


if __name__ == "__main__":
    raise SystemExit(main())
