"""``offramp samples``: the inputs that a device kept for a person to look at (``edge-device --keep``)."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
import tempfile
from argparse import RawDescriptionHelpFormatter
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from offramp.common.arguments import Parser, number
from offramp.common.errors import ConfigError, DataError, ExitCode, OutputError, printable
from offramp.common.inputs.labels import UNSORTED
from offramp.device.samples.choice import REASONS
from offramp.device.samples.record import STEM, Record, read_file, read_record

DESCRIPTION = """\
List the inputs that a device kept with --keep, choose some of them evenly, and copy them into class folders
to be labelled. The folder is only read; a device may be writing to it meanwhile.

Each sample is copied into a folder named as the class that was answered: move the wrong ones to the right
folder. Those that are unknown, or whose class cannot name a folder, go into `_unsorted`, which `offramp
split` and `offramp train` leave out. The same file is copied once.
"""
EPILOG = """\
examples:
  offramp samples kept                                  # a line for each
  offramp samples kept --reason audit,unknown --json | jq .samples
  offramp samples kept --each 20 --export to-label      # 20 of each class and reason, at most
  offramp split my_model:build --weights best.pth --data to-label --out my-split   # once they are sorted

exit status: 0 done, 2 wrong flags or a folder that is there already, 5 not a folder of samples
"""
ENTRIES_MOST = 1 << 20
"""Entries of a folder that are looked at."""
RECORDS = "records.jsonl"
"""In what is exported: a record for each file, and where it lies."""
SHOWN = 5
_RECORD = re.compile(rf"{STEM.pattern}\.json")
_COLUMNS = "{:<20} {:<22} {:<14} {:>7} {:<10} {:<14} {:<26} {}"


@dataclass
class Listed:
    """What a folder holds: its samples, oldest first, and what could not be read, an error each."""

    samples: list[Record] = field(default_factory=list)
    unusable: list[str] = field(default_factory=list)


def main(argv: Sequence[str]) -> int:
    """Run the command. Raises ConfigError, DataError and OutputError."""
    parser = Parser(
        "offramp samples", description=DESCRIPTION, epilog=EPILOG, formatter_class=RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", metavar="DIR", type=Path, help="what --keep of edge-device names")
    parser.add_argument(
        "--reason",
        type=_reasons,
        default=REASONS,
        metavar="REASON",
        help=f"only what was kept for one of these: {', '.join(REASONS)}; with commas between them "
        "(default: all)",
    )
    parser.add_argument(
        "--each",
        type=number(int, 1, 1 << 20, "a whole number, 1 or more"),
        metavar="N",
        help="at most so many of each answered class and reason, chosen at random (default: all)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="chooses the same ones each time (default: 0)"
    )
    parser.add_argument("--export", type=Path, metavar="OUT", help="copy them to this new folder")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    arguments = parser.parse_args(argv)
    folder: Path = arguments.folder
    listed = read(folder)
    chosen = balanced(
        [each for each in listed.samples if set(each.reasons) & set(arguments.reason)],
        arguments.each,
        arguments.reason,
        arguments.seed,
    )
    copied = None if arguments.export is None else export(folder, chosen, arguments.export)
    if arguments.json:
        found = {"samples": [each.model_dump(exclude_none=True) for each in chosen]}
        exported = {} if copied is None else {"exported": copied.counts}
        unusable = listed.unusable + ([] if copied is None else copied.unusable)
        print(json.dumps({**found, "unusable": unusable, **exported}, indent=1))
    else:
        print("\n".join(_lines(folder, listed, chosen, copied, arguments.export)))
    return ExitCode.OK


def _reasons(text: str) -> tuple[str, ...]:
    given = tuple(text.split(","))
    if wrong := [each for each in given if each not in REASONS]:
        raise ConfigError(f"--reason {printable(wrong[0], 40)!r}: expected {', '.join(REASONS)}")
    return given


def read(folder: Path) -> Listed:
    """The samples of a folder, by its records alone. Raises DataError for what is not such a folder."""
    names: list[str] = []
    try:
        with os.scandir(folder) as entries:
            for at, entry in enumerate(entries):
                if at >= ENTRIES_MOST:
                    raise DataError(
                        f"{folder}: has over {ENTRIES_MOST:,} files, expected a folder that --keep wrote"
                    )
                if _RECORD.fullmatch(entry.name):
                    names.append(entry.name)
    except OSError as error:
        raise DataError(
            f"{folder}: {error.strerror}, expected a folder that edge-device --keep wrote"
        ) from None
    listed = Listed()
    for name in sorted(names):
        try:
            record = read_record(folder / name)
        except DataError as error:
            if (folder / name).exists():  # else the device has removed it meanwhile
                listed.unusable.append(str(error))
            continue
        listed.samples.append(record)
    return listed


def balanced(samples: Sequence[Record], each: int | None, reasons: Sequence[str], seed: int) -> list[Record]:
    """At most so many of each answered class and reason, at random, in their order.

    reasons: that are asked for. A sample that is chosen for one of its reasons counts for the others too.
    """
    if each is None:
        return list(samples)
    order = list(range(len(samples)))
    random.Random(seed).shuffle(order)
    counts = Counter[tuple[str, str]]()
    chosen = set()
    for at in order:
        keys = [(samples[at].label, reason) for reason in samples[at].reasons if reason in reasons]
        if any(counts[key] < each for key in keys):
            counts.update(keys)
            chosen.add(at)
    return [samples[at] for at in sorted(chosen)]


@dataclass
class Exported:
    """What was copied: how many into each folder, and what could not be."""

    counts: dict[str, int]
    twins: int
    unusable: list[str]


def export(folder: Path, samples: Sequence[Record], out: Path) -> Exported:
    """Copy samples into class folders in a new folder, which is there whole or not at all.

    Raises ConfigError where it exists, DataError where there is nothing to copy, OutputError for a full disk.
    """
    if out.exists() or out.is_symlink():
        raise ConfigError(f"--export {out}: exists, expected a new folder")
    done = Exported({}, 0, [])
    try:
        work = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as error:
        raise ConfigError(f"--export {out}: {error.strerror}, expected a place to write to") from None
    try:
        _copy(folder, samples, work, done)
        if not done.counts:
            why = f": {done.unusable[0]}" if done.unusable else ""
            raise DataError(f"{folder}: has no sample to export{why}")
        work.rename(out)
    except OSError as error:
        raise OutputError(f"--export {out}: {error.strerror}; nothing was exported") from None
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return done


def _copy(folder: Path, samples: Sequence[Record], work: Path, done: Exported) -> None:
    seen: set[bytes] = set()
    with (work / RECORDS).open("xb") as lines:
        for record in samples:
            try:
                data = read_file(record, folder)
            except DataError as error:
                done.unusable.append(str(error))
                continue
            digest = hashlib.sha256(data)
            if digest.digest() in seen:
                done.twins += 1
                continue
            seen.add(digest.digest())
            place = UNSORTED if record.unknown else folder_of(record.label)
            (work / place).mkdir(exist_ok=True)
            # Of its content, so that what several devices kept can be put together.
            name = f"{digest.hexdigest()[:16]}.{record.file.rpartition('.')[2]}"
            (work / place / name).write_bytes(data)
            line = json.dumps({"exported": f"{place}/{name}", **record.model_dump(exclude_none=True)})
            lines.write(line.encode() + b"\n")
            done.counts[place] = done.counts.get(place, 0) + 1


def folder_of(label: str) -> str:
    """The class folder of a label: the label itself, where it can name one; else ``_unsorted``.

    ``train`` and the like are parts to the readers of class folders, and hidden folders are skipped.
    """
    usable = (
        label
        and len(label.encode()) <= 255
        and label.isprintable()
        and label == label.strip(" .")
        and not set(label) & set('/\\:*?"<>|')
        and label.lower() not in ("train", "test", "val", "valid", "validation", "__macosx")
        and label != RECORDS
    )
    return label if usable else UNSORTED


def _lines(
    folder: Path, listed: Listed, chosen: Sequence[Record], copied: Exported | None, out: Path | None
) -> Iterator[str]:
    if copied is None:
        yield _COLUMNS.format("time", "reasons", "label", "conf.", "by", "server's", "file", "input").rstrip()
        for each in chosen:
            yield _COLUMNS.format(
                each.time,
                ",".join(each.reasons),
                printable(each.label, 12) + ("?" if each.unknown else ""),
                f"{each.confidence:.4f}",
                each.source,
                "" if each.audit is None else printable(each.audit.label, 12),
                each.file,
                printable(each.name, 200),
            ).rstrip()
        yield ""
    counts = Counter[str](reason for each in chosen for reason in each.reasons)
    shown = ", ".join(f"{counts[reason]:,} {reason}" for reason in REASONS if counts[reason])
    size = sum(each.size for each in chosen)
    yield f"{folder}: {len(chosen):,} of {len(listed.samples):,} samples, {size:,} B" + (
        f" ({shown})" if shown else ""
    )
    unusable = listed.unusable + ([] if copied is None else copied.unusable)
    if unusable:
        yield f"{len(unusable):,} cannot be read:"
        yield from (f"  {line}" for line in unusable[:SHOWN])
    if copied is not None:
        yield f"copied to {out}:"
        for place, count in sorted(copied.counts.items()):
            yield f"  {printable(place, 40):<24} {count:>7,}"
        if copied.twins:
            yield f"{copied.twins:,} are files that are there already, copied once"
