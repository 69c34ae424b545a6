"""Every row is made once, from rows that are still there."""

from __future__ import annotations

from pathlib import Path

import pytest

from offramp.cli.export_c.network import Kind, Network
from offramp.cli.export_c.reader import read_head
from offramp.cli.export_c.schedule import make_schedule, needed
from offramp.common.bundle.load import load_bundle
from tests.cli.export_c import toy_heads

MODELS = Path(__file__).parents[3] / "models"


def check(network: Network) -> None:
    """Run the schedule with rings that remember which row they hold."""
    schedule = make_schedule(network)
    rings: dict[str, dict[int, int]] = {name: {} for name in network.tensors}
    done = [0] * len(network.layers)
    for index in schedule.steps:
        layer, row = network.layers[index], done[index]
        for name in layer.inputs:
            for wanted in needed(network, layer, row, name) if name != network.image else ():
                assert rings[name][wanted % schedule.rows[name]] == wanted, f"{layer.name} row {row}"
        if layer.kind is not Kind.LOGITS:
            rings[layer.output][row % schedule.rows[layer.output]] = row
        done[index] += 1
    for layer, rows in zip(network.layers, done, strict=True):
        assert rows == (1 if layer.kind is Kind.LOGITS else network.tensors[layer.output].height)
    symbols = network.tensors[network.symbols]
    assert sorted(rings[network.symbols].values()) == list(range(symbols.height))


@pytest.mark.parametrize("name", ["digits-mobilenetv2-exit12", "cifar10-mobilenetv2-rate"])
def test_shipped_heads(name: str) -> None:
    check(read_head(load_bundle(MODELS / name)))


def test_an_awkward_head_keeps_few_rows(tmp_path: Path) -> None:
    network = read_head(toy_heads.write(tmp_path / "bundle"))
    check(network)
    rows = make_schedule(network).rows
    assert rows["wide"] == 3, "as many as the kernel behind it is high"
    assert rows["deep"] == 1
    assert rows["block"] == 5
    assert rows["pool"] == network.tensors["pool"].height, "the logits need all"
