"""Settings of ``cloud-server``; where they come from: ``tests/common/test_settings.py``."""

from __future__ import annotations

import subprocess
import sys

from offramp.common.settings import flag_of
from offramp.server.settings import ServerSettings


def test_the_program_names_its_flags() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "offramp.server.app", "--help"], capture_output=True, text=True, check=True
    )
    assert all(flag_of(name) in done.stdout for name in ServerSettings.model_fields)
