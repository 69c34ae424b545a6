"""Signatures of bundles: who has not signed is not loaded, and signing changes nothing else."""

from __future__ import annotations

import base64
import hashlib
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from offramp.cli.app import main
from offramp.common.bundle.load import load_bundle
from offramp.common.bundle.manifest import MANIFEST, TAIL
from offramp.common.bundle.signature import (
    DATED,
    SIGNATURE,
    SIGNATURE_BYTES,
    UNDATED,
    TrustedKeys,
    date_text,
    sign,
)
from offramp.common.errors import BundleError, ConfigError, ExitCode
from tests.processes import Processes, processes
from tests.toy import BundleFolder

pytest.importorskip("cryptography")


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """A folder with ``mine`` and ``theirs``, ``.key`` and ``.pub`` each."""
    folder = tmp_path / "keys"
    folder.mkdir()
    for name in ("mine", "theirs"):
        assert main(["keygen", str(folder / name)]) == 0
    return folder


@pytest.fixture
def signed(damaged: BundleFolder, keys: Path) -> BundleFolder:
    """A bundle that ``mine`` has signed."""
    assert main(["sign", str(damaged.path), "--key", str(keys / "mine.key")]) == 0
    return damaged


def trusted(keys: Path, *names: str) -> TrustedKeys:
    return TrustedKeys([keys / f"{name}.pub" for name in names])


def test_a_signed_bundle_is_loaded_and_keeps_its_digest(signed: BundleFolder, keys: Path) -> None:
    digest = hashlib.sha256((signed.path / MANIFEST).read_bytes()).digest()
    assert load_bundle(signed.path, trusted(keys, "mine")).digest == digest
    assert load_bundle(signed.path, trusted(keys, "theirs", "mine")).digest == digest
    assert load_bundle(signed.path).digest == digest


def test_it_may_be_signed_by_several_and_again(signed: BundleFolder, keys: Path) -> None:
    for name in ("theirs", "mine", "theirs"):
        assert main(["sign", str(signed.path), "--key", str(keys / f"{name}.key")]) == 0
    assert len((signed.path / SIGNATURE).read_text().splitlines()) == 2
    for name in ("mine", "theirs"):
        load_bundle(signed.path, trusted(keys, name))


def test_the_latest_date_of_a_trusted_key_counts(signed: BundleFolder, keys: Path) -> None:
    manifest = (signed.path / MANIFEST).read_bytes()
    lines = [sign(manifest, keys / f"{name}.key", date) for name, date in (("mine", UNDATED), ("theirs", 7))]
    assert len(lines[0].split()) == 3
    data = "\n".join(lines).encode()
    dates = [trusted(keys, *names).check(manifest, data) for names in (["mine"], ["mine", "theirs"])]
    assert dates == [UNDATED, 7]
    # One of before dates were signed is loaded as ever.
    (signed.path / SIGNATURE).write_text(lines[0])
    load_bundle(signed.path, trusted(keys, "mine"))
    assert [date_text(date) for date in (UNDATED, 7, 10**11 * 9)] == [
        "an unknown time",
        "1970-01-01T00:00:07Z",
        "second 900000000000",
    ]


def test_openssl_made_and_verifies_the_same(signed: BundleFolder, keys: Path, tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl program")
    _, _, signature, date = (signed.path / SIGNATURE).read_text().split()
    (tmp_path / "signature").write_bytes(base64.b64decode(signature))
    (tmp_path / "signed").write_bytes(DATED + date.encode() + b"\0" + (signed.path / MANIFEST).read_bytes())
    command = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", str(keys / "mine.pub"), "-rawin"]
    command += ["-in", str(tmp_path / "signed"), "-sigfile", str(tmp_path / "signature")]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    other = tmp_path / "other.key"
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", str(other)], check=True)
    assert main(["sign", str(signed.path), "--key", str(other)]) == 0


def swap_case(line: str) -> str:
    kind, key, signature, date = line.split()
    return f"{kind} {key} {signature.swapcase()} {date}\n"


def with_date(folder: BundleFolder, *date: str) -> None:
    """The same signature with another date."""
    words = (folder.path / SIGNATURE).read_text().split()[:3]
    (folder.path / SIGNATURE).write_text(" ".join([*words, *date]) + "\n")


def plain_signature(folder: BundleFolder, keys: Path) -> str:
    """The right key's signature of the bare manifest, without the context."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    key = load_pem_private_key((keys / "mine.key").read_bytes(), None)
    assert isinstance(key, Ed25519PrivateKey)
    parts = (key.public_key().public_bytes_raw(), key.sign((folder.path / MANIFEST).read_bytes()))
    return " ".join(["ed25519", *(base64.b64encode(part).decode() for part in parts)]) + "\n"


def signed_by_another(folder: BundleFolder, keys: Path) -> None:
    (folder.path / SIGNATURE).unlink()
    assert main(["sign", str(folder.path), "--key", str(keys / "theirs.key")]) == 0


def linked_elsewhere(folder: BundleFolder, keys: Path) -> None:
    (folder.path / SIGNATURE).rename(keys / "away")
    (folder.path / SIGNATURE).symlink_to(keys / "away")


DAMAGE: dict[str, tuple[Callable[[BundleFolder, Path], object], str]] = {
    "not signed": (lambda b, _: (b.path / SIGNATURE).unlink(), "cannot be read: No such file"),
    "empty": (lambda b, _: (b.path / SIGNATURE).write_text(""), "no trusted key has signed"),
    "another's key": (signed_by_another, "no trusted key has signed"),
    "another manifest": (lambda b, _: b.edit("threshold", value=0.5), "is not one of this manifest"),
    "another tail": (
        lambda b, _: b.put(TAIL, (b.path / TAIL).read_bytes()[:-1]),
        "is not one of this manifest",
    ),
    "another signature": (
        lambda b, _: (b.path / SIGNATURE).write_text(swap_case((b.path / SIGNATURE).read_text())),
        "is not one of this manifest",
    ),
    "signed for something else": (
        lambda b, keys: (b.path / SIGNATURE).write_text(plain_signature(b, keys)),
        "is not one of this manifest",
    ),
    "another date": (lambda b, _: with_date(b, "1"), "is not one of this manifest"),
    "without its date": (lambda b, _: with_date(b), "is not one of this manifest"),
    "date 0": (lambda b, _: with_date(b, "0"), "line 1 is not a signature"),
    "zeros before the date": (lambda b, _: with_date(b, "01"), "line 1 is not a signature"),
    "two dates": (lambda b, _: with_date(b, "1", "2"), "line 1 is not a signature"),
    "another kind": (
        lambda b, _: (b.path / SIGNATURE).write_text("rsa AA== AA==\n"),
        "line 1 is not a signature",
    ),
    "too few words": (lambda b, _: (b.path / SIGNATURE).write_text("ed25519\n"), "line 1 is not a signature"),
    "no base64": (lambda b, _: (b.path / SIGNATURE).write_text("ed25519 !! ?\n"), "line 1 is not a sig"),
    "short": (lambda b, _: (b.path / SIGNATURE).write_text("ed25519 AA== AA==\n"), "line 1 is not a sig"),
    "no text": (lambda b, _: (b.path / SIGNATURE).write_bytes(b"\xff\0"), "is not ASCII text"),
    "long": (
        lambda b, _: (b.path / SIGNATURE).write_bytes(b"a" * (SIGNATURE_BYTES + 1)),
        f"is longer than {SIGNATURE_BYTES} bytes",
    ),
    "a link": (linked_elsewhere, "is a symbolic link"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_not_signed_so_is_not_loaded(signed: BundleFolder, keys: Path, damage: str) -> None:
    change, message = DAMAGE[damage]
    change(signed, keys)
    with pytest.raises(BundleError, match=message) as refused:
        load_bundle(signed.path, trusted(keys, "mine"))
    assert f"{signed.path}: {SIGNATURE}: " in str(refused.value) and "\n" not in str(refused.value)


def test_it_is_verified_before_the_manifest_is_read(damaged: BundleFolder, keys: Path) -> None:
    damaged.write_manifest(b"{")
    (damaged.path / SIGNATURE).write_text("")
    with pytest.raises(BundleError, match="no trusted key"):
        load_bundle(damaged.path, trusted(keys, "mine"))


def test_keys_are_for_their_owner_and_are_not_overwritten(
    keys: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert stat.S_IMODE((keys / "mine.key").stat().st_mode) == 0o600
    before = (keys / "mine.key").read_bytes()
    (keys / "mine.pub").unlink()
    assert main(["keygen", str(keys / "mine")]) == ExitCode.INTERRUPTED
    assert "mine.key: File exists" in capsys.readouterr().err
    assert (keys / "mine.key").read_bytes() == before and not (keys / "mine.pub").exists()


@pytest.mark.parametrize("what", ["missing", "private", "junk", "long", "rsa"])
def test_what_is_no_key_is_told_without_its_contents(keys: Path, what: str) -> None:
    path = keys / "file"
    if what == "private":
        path = keys / "mine.key"
    elif what == "junk":
        path.write_text("-----BEGIN PUBLIC KEY-----\nsecret\n-----END PUBLIC KEY-----\n")
    elif what == "long":
        path.write_text("secret" * 5000)
    elif what == "rsa":
        command = ["openssl", "genpkey", "-algorithm", "rsa", "-pkeyopt", "rsa_keygen_bits:2048"]
        if shutil.which("openssl") is None:
            pytest.skip("needs the openssl program")
        subprocess.run([*command, "-out", str(path)], check=True, capture_output=True)
    with pytest.raises(ConfigError, match=f"--trusted-key {path}: ") as refused:
        TrustedKeys([path])
    assert "secret" not in str(refused.value)


def test_a_broken_bundle_is_not_signed(damaged: BundleFolder, keys: Path) -> None:
    (damaged.path / TAIL).write_bytes(b"")
    assert main(["sign", str(damaged.path), "--key", str(keys / "mine.key")]) == ExitCode.BUNDLE
    assert not (damaged.path / SIGNATURE).exists()


def test_without_the_package_it_says_what_to_install(signed: BundleFolder, keys: Path) -> None:
    code = (
        "import sys; sys.modules['cryptography'] = None\n"
        "from offramp.device.app import main\n"
        "raise SystemExit(main(sys.argv[1:]))\n"
    )
    flags = ["--bundle", str(signed.path), "--threshold", "0", str(keys)]
    for extra, status in (([], 0), (["--trusted-key", str(keys / "mine.pub")], 2)):
        command = [sys.executable, "-c", code, *extra, *flags]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == status, done.stderr
    assert "pip install 'offramp[sign]'" in done.stderr


def test_both_programs_load_what_is_signed_only(
    signed: BundleFolder, keys: Path, toy_images: Path, tmp_path: Path
) -> None:
    models = tmp_path / "models"
    models.mkdir()
    mine = shutil.copytree(signed.path, models / "mine")
    with processes(mine) as run:
        key = ("--trusted-key", keys / "mine.pub")
        assert _device_status(run, toy_images, "--trusted-key", keys / "theirs.pub") == ExitCode.BUNDLE
        assert _device_status(run, toy_images, *key) == 0
        server = run.server(*key, "--reload-interval", 0.05, bundle=models)
        # A new bundle without the signature is not loaded; with it, it is.
        new = BundleFolder(shutil.copytree(mine, tmp_path / "new"))
        new.edit("name", value="new")
        new.path.rename(models / "new")
        server.wait_for(r"not loaded, what serves goes on: \S+/new: manifest.sig: the signature is not one")
        assert main(["sign", str(models / "new"), "--key", str(keys / "mine.key")]) == 0
        server.wait_for("serves new")
        page = server.metrics()
        assert page["offramp_server_reloads_total{result=failed,what=bundle}"] == 1
        assert page["offramp_server_reloads_total{result=loaded,what=bundle}"] == 1


def _device_status(run: Processes, images: Path, *flags: object) -> int:
    status, device = run.device("--threshold", 0, "--quiet", *flags, images)
    assert status == 0 or "no trusted key has signed this bundle" in device.errors
    return status
