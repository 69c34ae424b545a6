"""Faults of two hops of a chain at once; all combinations: ``runs/faults-chain.sh``."""

from __future__ import annotations

from pathlib import Path

from tests import toy_chain
from tests.faults.chain_pairs import check_end, three_hops
from tests.processes import processes

CHEAPEST = (("stop", "hole"), ("hole", "reload"))
"""No program is started again, so that all pages count on."""


def test_images_have_one_answer_and_the_chain_recovers_by_itself(toy_images: Path, tmp_path: Path) -> None:
    bundle = toy_chain.write(tmp_path / "toy")
    with processes(bundle.path) as run, three_hops(run, toy_images) as chain:
        for gateway, server in CHEAPEST:
            row = chain.pair(gateway, server)
            assert row.disagreements == [], f"{gateway}, {server}"
            assert row.fallbacks > 0 and row.cut_short > 0 and row.images == row.answers
        check_end(chain.device.finish())
