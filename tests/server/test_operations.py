"""The documents list every setting and every metric as the programs define them. To write the tables again:

python -m tests.server.test_operations
"""

from __future__ import annotations

from pathlib import Path

import pytest

from offramp.common.bundle.load import Bundle
from offramp.common.settings import (
    DeviceSettings,
    ServerSettings,
    Settings,
    default_of,
    flag_of,
    make_parser,
    variable_of,
)
from offramp.device.metrics import DeviceMetrics
from offramp.link.wire_bytes import WireBytes
from offramp.server.metrics import ServerMetrics

DOCS = Path(__file__).parents[2] / "docs"
START, END = "<!-- settings: written by tests/server/test_operations.py -->\n", "<!-- end -->\n"
PROGRAMS: dict[str, tuple[str, type[Settings]]] = {
    "cloud-server": ("operations.md", ServerSettings),
    "edge-device": ("operations-device.md", DeviceSettings),
}


def table(settings: type[Settings]) -> str:
    rows = ["| flag | environment | default | what |", "|---|---|---|---|"]
    for name, field in settings.model_fields.items():
        default = "required" if field.is_required() else f"`{text}`" if (text := default_of(field)) else ""
        rows.append(f"| `{flag_of(name)}` | `{variable_of(name)}` | {default} | {field.description} |")
    return "\n".join([*rows, ""])


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_setting_is_documented(program: str) -> None:
    document, settings = PROGRAMS[program]
    text = (DOCS / document).read_text()
    _, _, rest = text.partition(START)
    shown, _, after = rest.partition(END)
    assert shown == table(settings) and not after
    assert f"[{program}]" in text and "`OFFRAMP_CONFIG`" in text


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_parser_has_the_flags_of_the_table_and_no_others(program: str) -> None:
    """What is only a flag is in the document, too, under its own name."""
    document, settings = PROGRAMS[program]
    parser = make_parser(program, settings, "", "")
    known = {flag_of(name) for name in settings.model_fields} | {"--help", "--version", "--config"}
    found = {text for action in parser._actions for text in action.option_strings if text.startswith("--")}
    assert {text for text in found if not text.startswith("--no-")} == known
    text = (DOCS / document).read_text()
    extra = {"edge-device": ["--watch", "--json", "--quiet", "--hold"], "cloud-server": []}[program]
    assert all(f"`{flag}`" in text for flag in [*extra, "--config"])


def test_every_metric_is_documented(toy_bundle: Bundle) -> None:
    text = (DOCS / "metrics.md").read_text()
    device, server = DeviceMetrics(toy_bundle), ServerMetrics()
    device.link.watch_wire(lambda: WireBytes(0, 0))
    server.watch_connections(0)
    for prefix, registry in (("offramp_device_", device.registry), ("offramp_server_", server.registry)):
        for family in registry.collect():
            name = family.name + ("_total" if family.type == "counter" else "")
            assert f"`{name}" in text or f"`…_{name.removeprefix(prefix)}" in text, name


if __name__ == "__main__":
    for document, kind in PROGRAMS.values():
        path = DOCS / document
        before, _, _ = path.read_text().partition(START)
        path.write_text(before + START + table(kind) + END)
