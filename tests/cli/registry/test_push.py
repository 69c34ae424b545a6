"""``offramp push`` and ``offramp pull`` with a real registry: TLS, a login, a signature."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from offramp.cli.app import main
from offramp.common.bundle.load import Bundle
from offramp.common.errors import ExitCode
from tests.certificates import Authority, Pair, needs_openssl
from tests.processes import WAIT
from tests.registries import PASSWORD, USER, docker_registry, files, files_of, needs_registry
from tests.toy import BundleFolder

pytest.importorskip("cryptography")


def offramp(*words: object) -> subprocess.CompletedProcess[str]:
    """The command, run."""
    command = [sys.executable, "-m", "offramp.cli.app", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=WAIT, check=False)


@needs_registry
@needs_openssl
def test_a_signed_bundle_goes_through_a_registry(
    damaged: BundleFolder,
    toy_bundle: Bundle,
    authority: Authority,
    pair: Pair,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["keygen", str(tmp_path / "mine")]) == 0
    assert main(["sign", str(damaged.path), "--key", str(tmp_path / "mine.key")]) == 0
    password, user_file, wrong_file = files(tmp_path, password=PASSWORD, user=USER, wrong="wrong")
    ca, user, place = ["--ca", str(authority.pair.cert)], ["--user-file", user_file], tmp_path / "a"
    login = [*ca, *user, "--token-file", password]
    with docker_registry(tmp_path, pair, login=True) as host:
        stable, beta = f"oci://{host}/shop/toy:stable", f"oci://{host}/shop/toy:beta"
        wrong = [*ca, *user, "--token-file", wrong_file]
        assert main(["push", str(damaged.path), stable, *wrong]) == ExitCode.PEER
        assert "status 401" in capsys.readouterr().err

        pushed = offramp("push", damaged.path, stable, "--version", "1.0", *login)
        assert pushed.returncode == 0, pushed.stderr
        assert toy_bundle.digest.hex() in pushed.stdout
        assert main(["push", str(damaged.path), beta, *login]) == 0
        assert " 0 bytes uploaded" in capsys.readouterr().out

        key = ["--trusted-key", str(tmp_path / "mine.pub")]
        pulled = offramp("pull", stable, "--out", place, *login, *key)
        assert pulled.returncode == 0, pulled.stderr
        assert main(["pull", stable, "--out", str(tmp_path / "b"), *ca]) == ExitCode.PEER
        assert "wants a login" in capsys.readouterr().err
    expected = files_of(toy_bundle).keys() | {"manifest.sig"}
    assert {each.name for each in place.iterdir()} == expected
    assert all((place / name).read_bytes() == (damaged.path / name).read_bytes() for name in expected)


def test_what_is_not_a_bundle_is_not_pushed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reference = f"oci-layout:{tmp_path / 'layout'}:a"
    assert main(["push", str(tmp_path), reference]) == ExitCode.BUNDLE
    assert "manifest.json" in capsys.readouterr().err
    assert not (tmp_path / "layout").exists()
    assert main(["push", str(tmp_path), reference, "--version", "x y"]) == ExitCode.CONFIG
    assert "expected letters, digits" in capsys.readouterr().err
