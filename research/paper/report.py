"""``offramp report``: the paper's tables and figures, its values beside ours."""

from __future__ import annotations

import json
import sys
from argparse import Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from offramp.common.arguments import Parser
from offramp.common.errors import ConfigError, DataError, ExitCode, OfframpError

if TYPE_CHECKING:
    from offramp.bench.report_tables import Report

COMPUTED = ("table2", "fig1", "fig5")
TRAINED = (
    "table3",
    "table4",
    "table5",
    "fig6",
    "fig7",
    "fig8",
    "fig9",
    "fig10",
    "fig11",
    "others",
    "steps",
    "claims",
)

_DESCRIPTION = """\
Print the paper's tables and figures with our values beside its own; --out writes tables and plots.

table2, fig1 and fig5 follow from the networks alone. The others are made of the records that `offramp
train` leaves beside its bundles: train all variants of runs/cifar10-*.toml into one folder
(runs/cifar10.sh), and name it with --runs. others is the text of Section V-C on ResNet-32 and VGG-19;
steps is what the paper leaves out, a step of what travels as coarse as the exits' answers bear; claims
holds what the paper says in words against our figures. baselines measures pictures sent in place of
activations, for one bundle, and leaves its figures beside it, where fig10 finds them. pareto runs bundles
on the test images and compares what everything that a device could send costs at equal accuracy: --bundle
names rate-trained ones, --whole the whole model that pictures are sent to (a second one may have been
trained on such pictures), --paper bundles of the paper's scheme. It keeps the pictures' part in
OUT/pictures, where the next call finds it.
"""

_EXAMPLES = """\
examples:
  offramp report table2
  offramp report table3 fig10 --runs build/cifar10
  offramp report all --runs build/cifar10 --out build/cifar10/report
  offramp report baselines --bundle build/cifar10/cifar10-mobilenetv2-exit5-entropy0
  offramp report pareto --bundle build/rate/* --whole build/plain build/webp --paper build/exit12-entropy1

exit status: 0 done, 2 wrong flags, 4 unusable bundle, 5 unusable or missing records
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    try:
        arguments = _parser().parse_args(argv)
        if "baselines" in arguments.what:
            _measure_baselines(arguments)
        if "pareto" in arguments.what:
            _print(arguments, _pareto(arguments))
        names = [name for name in arguments.what if name not in ("baselines", "pareto")]
        if names:
            _print(arguments, _reports(names, arguments.runs))
    except OfframpError as error:
        print(f"offramp report: {error}", file=sys.stderr)
        return error.exit_code
    return ExitCode.OK


def _parser() -> Parser:
    parser = Parser(
        prog="offramp report",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=RawDescriptionHelpFormatter,
    )
    names = (*COMPUTED, *TRAINED, "all", "baselines", "pareto")
    parser.add_argument("what", nargs="+", choices=names, metavar="WHAT", help=", ".join(names))
    parser.add_argument("--runs", type=Path, metavar="DIR", help="folder of bundles with their records")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="also write NAME.md, NAME.json, NAME.png and NAME.svg here"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of Markdown")
    parser.add_argument("--bundle", type=Path, nargs="+", metavar="DIR", help="of baselines (one) and pareto")
    parser.add_argument("--whole", type=Path, nargs="+", metavar="DIR", help="whole models, for pareto")
    parser.add_argument("--paper", type=Path, nargs="+", default=[], metavar="DIR", help="for pareto")
    parser.add_argument(
        "--train-data", nargs="+", metavar="FILE", help="Parquet files in place of the bundle's recipe's"
    )
    parser.add_argument("--test-data", nargs="+", metavar="FILE", help="the same for its test part")
    return parser


def _reports(names: Sequence[str], runs: Path | None) -> list[Report]:
    from offramp.bench.baselines import read_baselines
    from offramp.training.record import read_records
    from research.paper import report_computed, report_trained

    every = "all" in names
    wanted = (*COMPUTED, *TRAINED) if every else tuple(dict.fromkeys(names))
    trained = [name for name in wanted if name in TRAINED]
    if trained and runs is None and not every:
        raise ConfigError(f"{trained[0]}: needs --runs, a folder of bundles with their records")
    records = [] if runs is None else read_records(runs)
    baselines = [] if runs is None else read_baselines(runs)
    makers: dict[str, Callable[[], Report]] = {
        "table2": report_computed.table2,
        "fig1": lambda: report_computed.fig1(records),
        "fig5": report_computed.fig5,
        "table3": lambda: report_trained.table3(records),
        "table4": lambda: report_trained.table4(records),
        "table5": lambda: report_trained.table5(records),
        "fig6": lambda: report_trained.fig6(records),
        "fig7": lambda: report_trained.fig7(records),
        "fig8": lambda: report_trained.fig8(records),
        "fig9": lambda: report_trained.fig9(records),
        "fig10": lambda: report_trained.fig10(records, baselines),
        "fig11": lambda: report_trained.fig11(records),
        "others": lambda: report_trained.others(records),
        "steps": lambda: report_trained.steps(records),
        "claims": lambda: report_trained.claims(records),
    }
    reports = []
    for name in wanted:
        try:
            reports.append(makers[name]())
        except DataError as error:
            if not every:
                raise
            print(f"offramp report: {name} left out: {error}", file=sys.stderr)
    return reports


def _print(arguments: Namespace, reports: Sequence[Report]) -> None:
    if arguments.json:
        print(json.dumps([json.loads(report.to_json()) for report in reports], indent=1, ensure_ascii=False))
    else:
        print("\n".join(report.to_markdown() for report in reports), end="")
    if arguments.out is not None:
        for report in reports:
            for path in report.write(arguments.out):
                print(f"wrote {path}", file=sys.stderr)


def _measure_baselines(arguments: Namespace) -> None:
    from tqdm import tqdm

    from offramp.bench.baselines import BASELINES, FORMATS, measure
    from offramp.common.bundle.load import load_bundle
    from offramp.training.data.held_out import load_data

    if arguments.bundle is None or len(arguments.bundle) != 1:
        raise ConfigError("baselines: needs one --bundle, whose model the pictures are sent to")
    (folder,) = arguments.bundle
    bundle = load_bundle(folder)
    data = load_data(bundle, arguments.train_data, arguments.test_data)
    with tqdm(total=len(FORMATS), unit="format", file=sys.stderr, disable=not sys.stderr.isatty()) as bar:
        found = measure(bundle, data.test, formats=FORMATS, tick=bar.update)
    path = folder / BASELINES
    path.write_text(found.model_dump_json(indent=1) + "\n", encoding="utf-8")
    if arguments.json:
        print(found.model_dump_json(indent=1))
        return
    print(f"{found.bundle}, {found.images:,} test images, the whole model on decoded pictures:\n")
    print("| sent | B an image | accuracy % |\n|---|--:|--:|")
    for point in found.pictures:
        print(f"| {point.name} | {point.bytes_mean:,.1f} | {100 * point.accuracy:.2f} |")
    print(f"\nwrote {path}", file=sys.stderr)


def _pareto(arguments: Namespace) -> list[Report]:
    from tqdm import tqdm

    from offramp.bench.baselines import FORMATS
    from offramp.common.bundle.load import load_bundle
    from offramp.training.data.held_out import load_data
    from research.pareto import pareto

    if arguments.bundle is None or arguments.whole is None:
        raise ConfigError("pareto: needs --bundle, rate-trained ones, and --whole, a model for pictures")
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
        pictures = pareto.run_pictures(wholes, data.test.images, FORMATS, bar.update, kept=kept)
        payloads = pareto.picture_payloads(data.test.images, FORMATS, bar.update)
        splits: list[pareto.Split] = []
        for bundle in (*ours, *papers):
            splits.append(pareto.run_split(bundle, data, one_table=len(splits) >= len(ours)))
            bar.update()
    about = (
        f"{len(data.test):,} test images of {data.name}; whole models: "
        + ", ".join(one.manifest.name for one in wholes)
        + "."
    )
    compared = pareto.compare(
        {one.manifest.name: split for one, split in zip(ours, splits, strict=False)},
        {one.manifest.name: split for one, split in zip(papers, splits[len(ours) :], strict=True)},
        pictures,
        payloads,
        about=about,
    )
    return [compared, pareto.devices(ours, wholes[0], about=about)]
