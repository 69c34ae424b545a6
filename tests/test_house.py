"""The house's rules: a test file beside each module, and no file or function with more than one job.

``WITHOUT`` has the modules without a namesake and where their tests are; ``LONG`` what is longer than allowed
and is being split. Both only get shorter: an entry that is no longer needed fails the test.
"""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROOMS = ("common", "link", "device", "server", "training", "gateway", "bench", "cli")
MEASURED = ("common", "link", "device", "server", "training", "gateway")
"""Rooms whose files and functions have a length."""
FILE_LINES, FUNCTION_LINES = 500, 80
REASON = "Long because"
"""What the docstring of a longer file or function says, and why."""

WITHOUT = {
    "bench/codec_results.py": "records without logic: tests/bench/test_codec_report.py makes them",
    "bench/device.py": "a command that only measures: tests/runs/test_runs.py runs it",
    "bench/extras.py": "a command that only measures: tests/runs/test_runs.py runs it",
    "bench/metrics.py": "tests/bench/test_processes.py reads a real server's page",
    "bench/plan_curves.py": "records without logic: tests/bench/test_plan.py",
    "cli/app.py": "every test of a command",
    "cli/export_c/graph.py": "tests/cli/export_c/test_reader.py",
    "cli/export_c/network.py": "records: tests/cli/export_c/test_schedule.py",
    "cli/fleet/fleet.py": "tests/cli/fleet/test_app.py, tests/cli/fleet/test_table.py",
    "cli/follow/metrics.py": "tests/cli/follow/test_follower.py",
    "cli/keygen.py": "tests/common/bundle/test_signature.py",
    "cli/registry/options.py": "tests/cli/registry/test_pull.py, tests/attacks/test_registries.py",
    "cli/registry/store.py": "types alone: tests/cli/registry/test_transfer.py",
    "cli/sign.py": "tests/common/bundle/test_signature.py",
    "common/codec/ans.py": "tests/common/codec/test_rans.py, tests/common/codec/test_context.py",
    "common/inputs/folder.py": "tests/device/sources/test_folders.py",
    "common/inputs/headers.py": "tests/attacks/test_pictures.py, tests/common/inputs/test_pictures.py",
    "common/metrics.py": "tests/common/wire/test_address.py, tests/common/test_metrics_page.py",
    "common/part/session.py": "tests/common/part/test_engine.py",
    "common/release.py": "a version, read once: tests/server/test_service.py",
    "common/wire/transport.py": "constants: every test with a socket",
    "device/image.py": "records without logic: tests/device/test_device.py",
    "device/sources/item.py": "a record without logic: tests/device/sources/test_watch.py",
    "gateway/metrics.py": "tests/gateway/test_gateway.py, tests/gateway/test_app.py",
    "gateway/settings.py": "fields alone: tests/gateway/test_app.py",
    "link/carrier.py": "types alone: tests/link/test_datagram_link.py",
    "link/mqtt.py": "tests/gateway/test_broker.py, tests/link/test_gateways.py",
    "link/offloader.py": "types alone, and no server: tests/device/test_datagrams.py",
    "link/outcome.py": "records without logic: tests/link/test_session.py",
    "training/calibrate/chain_thresholds.py": "tests/training/calibrate/test_chain.py",
    "training/calibrate/choose.py": "tests/training/calibrate/test_step_command.py",
    "training/calibrate/frontier.py": "tests/training/calibrate/test_threshold.py",
    "training/calibrate/run_huffman_tables.py": "tests/training/calibrate/test_codebook.py",
    "training/calibrate/sent_pictures.py": "tests/training/calibrate/test_threshold_command.py",
    "training/data/recipe.py": "fields alone: tests/training/test_recipe.py",
    "training/kinds.py": "tests/training/test_split_recipe.py",
    "training/make_bundle.py": "tests/training/test_app.py",
    "training/models/backbone.py": "types alone: tests/training/models/test_networks.py",
    "training/models/recipe.py": "fields alone: tests/training/test_recipe.py",
    "training/models/resnet.py": "a table of layers: tests/training/models/test_networks.py",
    "training/models/vgg.py": "a table of layers: tests/training/models/test_networks.py",
    "training/quantize/quantized.py": "tests/training/quantize/test_quantize.py",
    "training/quantize/recipe.py": "fields alone: tests/training/test_recipe.py",
    "training/record.py": "tests/research/paper/test_runs.py",
    "training/run.py": "tests/training/test_app.py",
    "training/split/compared.py": "tests/cli/test_split.py",
    "training/split/macs.py": "tests/cli/test_cuts.py",
    "training/stages/exit.py": "tests/training/stages/test_schedule.py",
}
"""Module: where it is tested."""
LONG: set[str] = set()
"""Files and functions that are being split."""


def modules(rooms: tuple[str, ...]) -> list[str]:
    """Every module's path, from the root."""
    found = (path for room in rooms for path in (ROOT / room).rglob("*.py") if path.name != "__init__.py")
    return sorted(path.relative_to(ROOT).as_posix() for path in found)


def namesake(module: str) -> Path:
    """Where its tests belong."""
    path = Path(module)
    return ROOT / "tests" / path.parent / f"test_{path.name}"


def too_long(text: str, module: str) -> set[str]:
    """The file, and its functions as FILE:NAME, that are longer than allowed and do not say why."""
    tree = ast.parse(text)
    found = set()
    if len(text.splitlines()) > FILE_LINES and REASON not in (ast.get_docstring(tree) or ""):
        found.add(module)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            lines = node.end_lineno - node.lineno + 1
            if lines > FUNCTION_LINES and REASON not in (ast.get_docstring(node) or ""):
                found.add(f"{module}:{node.name}")
    return found


def test_every_module_has_its_namesake_test_file() -> None:
    without = {module for module in modules(ROOMS) if not namesake(module).exists()}

    assert without - WITHOUT.keys() == set(), "expected a test file of that name, or an entry in WITHOUT"
    assert WITHOUT.keys() - without == set(), "have a test file or are gone: take them out of WITHOUT"


def test_where_a_module_without_a_namesake_is_tested_is_there() -> None:
    for module, where in WITHOUT.items():
        for word in where.replace(",", " ").replace(":", " ").split():
            if word.startswith("tests/"):
                assert (ROOT / word).exists(), f"{module}: {word} is not there"


def test_no_file_or_function_is_too_long() -> None:
    found = set[str]().union(*(too_long((ROOT / one).read_text(), one) for one in modules(MEASURED)))

    assert found - LONG == set(), f"over {FILE_LINES} lines, or {FUNCTION_LINES} of a function: split it"
    assert LONG - found == set(), "are short enough or gone: take them out of LONG"


def test_what_is_too_long_is_found() -> None:
    body = "\n".join(["    x = 1"] * FUNCTION_LINES)
    short, long = f"def f():\n{body[10:]}\n", f"def g():\n{body}\n"
    reason = f'"""{REASON} it is a table."""\n'
    assert too_long(short, "a.py") == set()
    assert too_long(long, "a.py") == {"a.py:g"}
    assert too_long(long.replace("():\n", f"():\n    {reason}", 1), "a.py") == set()
    assert too_long("x = 1\n" * (FILE_LINES + 1), "a.py") == {"a.py"}
    assert too_long(reason + "x = 1\n" * FILE_LINES, "a.py") == set()
