"""What bundles ask of a device."""

import shutil
from pathlib import Path

from offramp.common.bundle.load import load_bundle
from offramp.training.record import RECORD
from research.pareto import devices
from tests.records import record

BUNDLE = Path(__file__).parents[3] / "models" / "digits-mobilenetv2-exit12"


def test_the_heads_share_of_the_work_is_the_records(tmp_path: Path) -> None:
    for name, (device_macs, server_macs) in {"split": (30, 90), "whole": (20, 80)}.items():
        shutil.copytree(BUNDLE, tmp_path / name)
        cost = {"device_macs": device_macs, "server_macs": server_macs}
        own = record()
        own = own.model_copy(update={"cost": own.cost.model_copy(update=cost)})
        (tmp_path / name / RECORD).write_text(own.model_dump_json())
    split, whole = (load_bundle(tmp_path / name) for name in ("split", "whole"))
    (row,) = devices.devices([split], whole, about="made up").rows
    assert row["macs"] == 30.0
