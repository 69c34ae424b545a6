"""A real Prometheus with the shipped configuration: only its targets and its pace are the test's own."""

from __future__ import annotations

import json
import os
import shutil
import socket
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.processes import WAIT, Processes, Program, until

DEPLOY = Path(__file__).parents[2] / "deploy"
SHIPPED_INTERVAL = "15s"


def require(*tools: str) -> None:
    """Skip the test where a tool is missing; in CI, which installs them, fail it."""
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if missing:
        said = f"{', '.join(missing)}: not installed; deploy/install-checkers.sh does, on Debian"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(said)


class Prometheus:
    """One that scrapes and evaluates every ``interval``."""

    def __init__(
        self, run: Processes, folder: Path, targets: Mapping[str, Sequence[str]], interval: str = "1s"
    ) -> None:
        shipped = DEPLOY / "prometheus"
        configuration = (shipped / "prometheus.yml").read_text()
        assert configuration.count(SHIPPED_INTERVAL) == 2
        shutil.copytree(shipped / "rules", folder / "rules")
        for rules in (folder / "rules").glob("*.yml"):
            rules.write_text(rules.read_text().replace("interval: 1m", f"interval: {interval}"))
        (folder / "targets").mkdir()
        for name, addresses in targets.items():
            assert (shipped / "targets" / f"{name}.yml").is_file()
            (folder / "targets" / f"{name}.yml").write_text(json.dumps([{"targets": list(addresses)}]))
        (folder / "prometheus.yml").write_text(configuration.replace(SHIPPED_INTERVAL, interval))
        with socket.socket() as holder:
            holder.bind(("127.0.0.1", 0))
            port = holder.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        command = ["prometheus", f"--config.file={folder / 'prometheus.yml'}", "--log.level=warn"]
        command += [f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address=127.0.0.1:{port}"]
        self.program: Program = run.start(command)
        until(self._is_ready, "Prometheus to be ready")

    def _is_ready(self) -> bool:
        assert self.program.process.poll() is None, self.program.errors
        try:
            with urllib.request.urlopen(f"{self.url}/-/ready", timeout=WAIT) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def get(self, path: str, **parameters: object) -> Any:
        """The data of an API call."""
        query = urllib.parse.urlencode({name: str(value) for name, value in parameters.items()})
        with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{query}", timeout=WAIT) as answer:
            document = json.load(answer)
        assert document["status"] == "success", document
        return document["data"]

    def query(self, expression: str) -> dict[str, float]:
        """Value of each series now, by its instance; ``""`` where it has none."""
        result = self.get("query", query=expression)["result"]
        return {each["metric"].get("instance", ""): float(each["value"][1]) for each in result}
