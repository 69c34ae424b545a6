"""Certificates of a test: an authority, and what it signs, made by the ``openssl`` program."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.processes import WAIT

needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the openssl program")


def _openssl(*arguments: object) -> None:
    command = ["openssl", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT, check=False)
    assert done.returncode == 0, done.stderr


@dataclass(frozen=True)
class Pair:
    """A certificate and its key, PEM files."""

    cert: Path
    key: Path


class Authority:
    """Signs certificates for 127.0.0.1."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._name = name
        self.pair = Pair(folder / f"{name}.pem", folder / f"{name}.key")
        _openssl(
            *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
            *("-keyout", self.pair.key, "-out", self.pair.cert, "-subj", f"/CN={name}", "-days", 2),
            *("-addext", "basicConstraints=critical,CA:TRUE"),
        )

    def sign(self, name: str, *, expired: bool = False) -> Pair:
        """A new key and a certificate of it, valid now or until the year 2020."""
        pair = Pair(self._folder / f"{name}.pem", self._folder / f"{name}.key")
        request, extensions = self._folder / f"{name}.csr", self._folder / f"{name}.ext"
        extensions.write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\nbasicConstraints=CA:FALSE\n")
        _openssl(
            *("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
            *("-keyout", pair.key, "-out", request, "-subj", f"/CN={name}"),
        )
        if expired:
            database = self._folder / f"{name}.db"
            database.write_text("")
            (self._folder / f"{name}.cnf").write_text(
                f"[ca]\ndefault_ca=a\n[a]\ndatabase={database}\nrand_serial=yes\nnew_certs_dir={self._folder}\n"
                "default_md=sha256\npolicy=p\n[p]\ncommonName=supplied\n"
            )
            _openssl(
                *("ca", "-batch", "-config", self._folder / f"{name}.cnf", "-in", request, "-out", pair.cert),
                *("-cert", self.pair.cert, "-keyfile", self.pair.key, "-extfile", extensions, "-notext"),
                *("-startdate", "20190101000000Z", "-enddate", "20200101000000Z"),
            )
        else:
            _openssl(
                *("x509", "-req", "-in", request, "-out", pair.cert, "-days", 2, "-extfile", extensions),
                *("-CA", self.pair.cert, "-CAkey", self.pair.key, "-CAcreateserial"),
            )
        return pair
