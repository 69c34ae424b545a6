"""A real MQTT broker for tests: Debian's mosquitto, on a port of its own."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from tests.certificates import Pair
from tests.processes import WAIT, until

PROGRAM = shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
CLIENT = importlib.util.find_spec("paho") is not None
needs_mosquitto = pytest.mark.skipif(
    PROGRAM is None or not CLIENT, reason="needs Debian's mosquitto and the extra [mqtt]"
)


class Mosquitto:
    """One broker. user, token: what it wants to be shown; pair, ca: TLS; None: anybody, in the clear."""

    def __init__(
        self, folder: Path, user: str | None = None, token: str = "", pair: Pair | None = None
    ) -> None:
        with socket.socket() as holder:
            holder.bind(("127.0.0.1", 0))
            self.port: int = holder.getsockname()[1]
        self._config = folder / "mosquitto.conf"
        lines = [f"listener {self.port} 127.0.0.1", "persistence false", "log_dest none"]
        if user is None:
            lines.append("allow_anonymous true")
        else:
            passwords = folder / "passwords"
            command = ["mosquitto_passwd", "-b", "-c", str(passwords), user, token]
            subprocess.run(command, check=True, capture_output=True)
            passwords.chmod(0o644)
            lines.append(f"password_file {passwords}")
        if pair is not None:
            lines += [f"certfile {pair.cert}", f"keyfile {pair.key}"]
        if os.geteuid() == 0:
            lines.append("user root")
        self._config.write_text("\n".join(lines) + "\n")
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def url(self) -> str:
        """For ``--server`` and ``--mqtt``."""
        return f"mqtt://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it, and wait until it listens."""
        assert PROGRAM is not None
        self._process = subprocess.Popen(
            [PROGRAM, "-c", str(self._config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        until(self._listens, "the broker")

    def send(self, number: signal.Signals) -> None:
        """Send it a signal: SIGSTOP makes it slow."""
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """As a crash: what it had is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(WAIT)
            self._process = None

    def _listens(self) -> bool:
        assert self._process is not None and self._process.poll() is None, "mosquitto ended"
        try:
            socket.create_connection(("127.0.0.1", self.port), 1).close()
        except OSError:
            return False
        return True
