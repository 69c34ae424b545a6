"""Graphs that are as they should be. Those that are not: ``tests/attacks``."""

from __future__ import annotations

from offramp.common.bundle.graphs import OPERATORS, check_graph
from offramp.common.bundle.manifest import HEAD
from tests import toy


def test_allowed_operators_have_no_control_flow_and_nothing_random() -> None:
    assert OPERATORS.isdisjoint(
        {"If", "Loop", "Scan", "SequenceMap", "Optional", "RandomUniform", "Multinomial"}
    )
    for graph in (toy.head(), toy.tail()):
        check_graph(HEAD, graph.SerializeToString())
