from __future__ import annotations

import re
from pathlib import Path

CONTAINERS = Path(__file__).resolve().parents[2] / "deploy" / "containers"


def test_the_health_check_gives_up_before_docker_ends_it() -> None:
    """With 4 s to spare at least, for Python to start; else Docker's log has no word of what is wrong."""
    own = re.search(r"^SECONDS = (\d+)$", (CONTAINERS / "health.py").read_text(), re.MULTILINE)
    dockerfile = (CONTAINERS / "Dockerfile").read_text()
    dockers = re.findall(r"^HEALTHCHECK .*--timeout=(\d+)s", dockerfile, re.MULTILINE)
    assert own is not None and len(dockers) == 2
    assert all(int(own[1]) + 4 <= int(each) for each in dockers)
