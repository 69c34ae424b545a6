"""References: what names a registry, a repository and a tag, and what does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from offramp.cli.registry.reference import parse_reference
from offramp.common.errors import ConfigError

DIGEST = "sha256:" + "a1" * 32


@pytest.mark.parametrize(
    ("text", "host", "hostname", "repository", "version"),
    [
        ("oci://registry.example/digits:stable", "registry.example", "registry.example", "digits", "stable"),
        ("oci://127.0.0.1:5000/a/b-c/d_e:1.0", "127.0.0.1:5000", "127.0.0.1", "a/b-c/d_e", "1.0"),
        ("oci://[::1]:5000/toy:x", "[::1]:5000", "::1", "toy", "x"),
        (f"oci://h/toy@{DIGEST}", "h", "h", "toy", DIGEST),
    ],
)
def test_a_registry(text: str, host: str, hostname: str, repository: str, version: str) -> None:
    found = parse_reference(text)
    assert (found.host, found.hostname, found.repository, found.version) == (
        host,
        hostname,
        repository,
        version,
    )
    assert found.is_digest == version.startswith("sha256:")


def test_a_directory_may_have_colons() -> None:
    found = parse_reference("oci-layout:some/where:else:stable")
    assert (found.directory, found.version) == (Path("some/where:else"), "stable")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("registry.example/toy:stable", "expected oci://HOST"),
        ("https://registry.example/toy:stable", "expected oci://HOST"),
        ("oci://registry.example/toy", "has no tag"),
        ("oci://registry.example:5000/toy", "has no tag"),
        ("oci://registry.example/toy:", "has no tag"),
        ("oci://registry.example/toy@sha256:12", "not a repository's name"),
        ("oci://registry.example/toy@sha512", "has no tag"),
        ("oci://registry.example:x/toy:a", "port of 0 … 65535"),
        ("oci://registry example/toy:a", "expected oci://HOST"),
        ("oci:///toy:a", "expected oci://HOST"),
        ("oci://h/../toy:a", "not a repository's name"),
        ("oci://h/Toy:a", "not a repository's name"),
        ("oci://h//toy:a", "not a repository's name"),
        ("oci://h/toy?x=y:a", "not a repository's name"),
        ("oci://h/" + "a" * 256 + ":a", "not a repository's name"),
        ("oci-layout:stable", "has no tag"),
        ("oci-layout::stable", "expected oci-layout:DIRECTORY:TAG"),
    ],
)
def test_what_is_not_one_is_one_error(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_reference(text)


@pytest.mark.parametrize("text", ["oci://me:secret@h/toy:a", "https://me:secret@h/toy:a"])
def test_a_password_in_it_is_not_repeated(text: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_reference(text)
    assert "secret" not in str(error.value)


def test_nothing_is_pushed_to_a_digest() -> None:
    with pytest.raises(ConfigError, match="expected a tag"):
        parse_reference(f"oci://h/toy@{DIGEST}").require_tag()
