"""A short run of the fuzz targets. The long ones: ``tests/fuzz/run.sh SECONDS``."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from tests.fuzz.libfuzzer import require_libfuzzer

HERE = Path(__file__).parent
SECONDS = 12


def test_nothing_is_found_in_a_short_run(tmp_path: Path) -> None:
    require_libfuzzer(tmp_path)
    found = subprocess.run(
        [str(HERE / "run.sh"), str(SECONDS), str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )

    assert found.returncode == 0, found.stdout[-4000:]
    runs = [int(count) for count in re.findall(r"stat::number_of_executed_units: (\d+)", found.stdout)]
    assert len(runs) == 4
    assert min(runs) > 0
