"""A report: one table with the paper's values beside ours, as Markdown or JSON, and one plot."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from offramp.bench.plots import Plot, draw

Value = float | int | str | None


@dataclass(frozen=True)
class Column:
    """A column: its key in JSON, its head in Markdown, digits after the point where it holds numbers."""

    key: str
    title: str
    digits: int = 1


@dataclass(frozen=True)
class ReportTable:
    """One table or figure of the paper, made from our figures."""

    name: str
    title: str
    columns: Sequence[Column]
    rows: Sequence[Mapping[str, Value]]
    plot: Plot | None = None
    notes: Sequence[str] = field(default_factory=tuple)

    def to_markdown(self) -> str:
        """Title, table and notes."""
        heads = [column.title for column in self.columns]
        texts = [
            i for i, c in enumerate(self.columns) if any(isinstance(r.get(c.key), str) for r in self.rows)
        ]
        rule = ["---" if i in texts else "--:" for i in range(len(heads))]
        lines = [
            heads,
            rule,
            *([_shown(row.get(c.key), c.digits) for c in self.columns] for row in self.rows),
        ]
        table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        return "\n\n".join([f"### {self.title}", table, *self.notes]) + "\n"

    def to_json(self) -> str:
        """The same, every value as it is, not rounded."""
        content = {
            "report": self.name,
            "title": self.title,
            "rows": [{c.key: row.get(c.key) for c in self.columns} for row in self.rows],
            "notes": list(self.notes),
        }
        return json.dumps(content, indent=1, ensure_ascii=False)

    def write(self, folder: Path) -> list[Path]:
        """NAME.md, NAME.json and, with a plot, NAME.png and NAME.svg; returns their paths."""
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / f"{self.name}.md", folder / f"{self.name}.json"]
        picture = "" if self.plot is None else f"\n![{self.title}]({self.name}.svg)\n"
        paths[0].write_text(self.to_markdown() + picture, encoding="utf-8")
        paths[1].write_text(self.to_json() + "\n", encoding="utf-8")
        return paths if self.plot is None else paths + draw(self.plot, folder / self.name)


def show(reports: Sequence[ReportTable], *, as_json: bool, out: Path | None) -> None:
    """Print reports as Markdown or as a JSON array; into ``out`` also their files, named on stderr."""
    if as_json:
        print(json.dumps([json.loads(report.to_json()) for report in reports], indent=1, ensure_ascii=False))
    else:
        print("\n".join(report.to_markdown() for report in reports), end="")
    if out is not None:
        for report in reports:
            for path in report.write(out):
                print(f"wrote {path}", file=sys.stderr)


def half_up(value: float, digits: int) -> float:
    """Rounded with halves away from zero, as the paper does; numbers here are never negative halves."""
    scale = 10**digits
    return int(value * scale + 0.5) / scale if value >= 0 else -half_up(-value, digits)


def _shown(value: Value, digits: int) -> str:
    if value is None:
        return "—"
    if isinstance(value, str):
        return value
    if isinstance(value, int):
        return f"{value:,}"
    # A number that does not fit its digits is shown by its own.
    return f"{half_up(value, digits):,.{digits}f}"
