"""docs/operations.md lists every setting as its class defines it. To write the table again:

python -m tests.server.test_operations
"""

from __future__ import annotations

from pathlib import Path

from prometheus_client import CollectorRegistry

from offramp.common.config import ServerSettings, flag_of, variable_of
from offramp.server.metrics import ServerMetrics

DOCS = Path(__file__).parents[2] / "docs"
OPERATIONS = DOCS / "operations.md"
START, END = "<!-- settings: written by tests/server/test_operations.py -->\n", "<!-- end -->\n"


def table() -> str:
    rows = ["| flag | environment | default | what |", "|---|---|---|---|"]
    for name, field in ServerSettings.model_fields.items():
        default = "required" if field.is_required() else "" if field.default is None else f"`{field.default}`"
        rows.append(f"| `{flag_of(name)}` | `{variable_of(name)}` | {default} | {field.description} |")
    return "\n".join([*rows, ""])


def test_every_setting_is_documented() -> None:
    text = OPERATIONS.read_text()
    _, _, rest = text.partition(START)
    shown, _, after = rest.partition(END)
    assert shown == table() and not after


def test_every_metric_of_the_server_is_documented() -> None:
    text = (DOCS / "metrics.md").read_text()
    registry: CollectorRegistry = ServerMetrics().registry
    for family in registry.collect():
        name = family.name + ("_total" if family.type == "counter" else "")
        short = name.removeprefix("offramp_server_")
        assert f"`{name}" in text or f"`…_{short}" in text, name


if __name__ == "__main__":
    before, _, rest = OPERATIONS.read_text().partition(START)
    OPERATIONS.write_text(before + START + table() + END)
