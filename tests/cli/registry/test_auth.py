"""Logins: where they come from, and to which token service they are shown."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from offramp.cli.app import main
from offramp.cli.registry.auth import (
    Challenge,
    Login,
    docker_config,
    docker_login,
    parse_challenges,
    read_login,
    token_url,
)
from offramp.common.bundle.load import Bundle, load_bundle
from offramp.common.errors import ConfigError, ExitCode, PeerError
from tests.certificates import Authority, Pair, needs_openssl
from tests.registries import PASSWORD, USER, docker_registry, files, needs_registry, token_service

AUTH = base64.b64encode(b"me:secret:with:colons").decode()


def config(folder: Path, document: Any) -> Path:
    """Docker's config.json."""
    path = folder / "config.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return path


def test_a_token_alone_is_a_bearer_and_with_a_user_a_password(tmp_path: Path) -> None:
    token, user = files(tmp_path, token="a-token\n", user="me\n")
    alone = read_login("h", token, None, None)
    assert (alone.bearer(), alone.basic()) == ("Bearer a-token", None)
    both = read_login("h", token, user, None)
    assert (both.bearer(), both.basic()) == (
        None,
        "Basic " + base64.b64encode(b"me:a-token").decode(),
    )
    with pytest.raises(ConfigError, match="expected --token-file"):
        read_login("h", None, user, None)


@pytest.mark.parametrize("text", ["", "two words", "a\r\nX: y", "é"])
def test_a_token_that_is_not_one_line_is_not_repeated(tmp_path: Path, text: str) -> None:
    (token,) = files(tmp_path, token=text)
    with pytest.raises(ConfigError, match="one line of visible ASCII") as error:
        read_login("h", token, None, None)
    assert "words" not in str(error.value)


@pytest.mark.parametrize("name", ["h:5000", "https://h:5000/v1/", "h:5000/"])
def test_dockers_login_is_the_hosts_own(tmp_path: Path, name: str) -> None:
    path = config(tmp_path, {"auths": {"elsewhere": {"auth": "eDp5"}, name: {"auth": AUTH}}})
    assert docker_login("h:5000", path) == Login("me", "secret:with:colons")
    assert docker_login("h", path) == Login()
    assert docker_login("h:500", path) == Login()


def test_docker_may_keep_it_elsewhere(tmp_path: Path) -> None:
    assert docker_login("h", config(tmp_path, {"auths": {"h": {}}, "credsStore": "pass"})).helper
    assert docker_login("h", config(tmp_path, {"credHelpers": {"h": "gcloud"}})).helper
    assert docker_login("i", config(tmp_path, {"credHelpers": {"h": "gcloud"}})) == Login()
    assert docker_login("h", config(tmp_path, {"auths": {"h": {"identitytoken": "x"}}})).helper
    token = docker_login("h", config(tmp_path, {"auths": {"h": {"registrytoken": "x"}}}))
    assert token.bearer() == "Bearer x"


@pytest.mark.parametrize(
    "document",
    [
        "",
        "[]",
        "[" * 100_000,
        {"auths": 7},
        {"auths": {"h": {"auth": "%"}}},
        {"auths": {"h": {"auth": "eA=="}}},
    ],
)
def test_a_damaged_configuration_is_one_error(tmp_path: Path, document: Any) -> None:
    with pytest.raises(ConfigError, match=r"config.json"):
        docker_login("h", config(tmp_path, document))


def test_docker_says_where_it_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    assert docker_config() is None
    path = config(tmp_path, {})
    assert docker_config() == path


def test_what_a_registry_asks_for() -> None:
    bearer = 'Bearer realm="https://auth.example/token",service="registry",scope="repository:x:*"'
    assert parse_challenges([bearer, 'Basic realm="toy"', "Negotiate", "bear"]) == [
        Challenge("bearer", "https://auth.example/token", "registry"),
        Challenge("basic", "toy"),
    ]


@pytest.mark.parametrize(
    ("registry", "realm", "safe"),
    [
        ("https://r.example/v2/", "https://auth.example/token", True),
        ("https://r.example/v2/", "http://auth.example/token", False),
        ("https://r.example/v2/", "http://r.example/token", False),
        ("https://r.example/v2/", "https://me:x@auth.example/token", False),
        ("https://r.example/v2/", "/token", False),
        ("https://r.example/v2/", "", False),
        ("https://r.example/v2/", "file:///etc/passwd", False),
        ("https://r.example/v2/", "https:///x", False),
        ("http://127.0.0.1:5000/v2/", "http://127.0.0.1:5001/token", True),
        ("http://127.0.0.1:5000/v2/", "https://127.0.0.1/token", True),
        ("http://127.0.0.1:5000/v2/", "http://elsewhere.example/token", False),
        ("http://127.0.0.1:5000/v2/", "https://elsewhere.example/token", False),
        ("http://127.0.0.1:5000/v2/", "ftp://127.0.0.1/token", False),
    ],
)
def test_a_password_goes_only_where_it_is_safe(registry: str, realm: str, safe: bool) -> None:
    challenge = Challenge("bearer", realm)
    if safe:
        assert token_url(challenge, httpx.URL(registry)) == httpx.URL(realm)
    else:
        with pytest.raises(PeerError, match="token service"):
            token_url(challenge, httpx.URL(registry))


def test_a_login_is_not_shown() -> None:
    assert "secret" not in repr(Login("me", "secret"))


@needs_registry
@needs_openssl
def test_a_real_registry_believes_the_token_that_our_password_got(
    toy_bundle: Bundle,
    authority: Authority,
    pair: Pair,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("cryptography")
    password, user, wrong = files(tmp_path, password=PASSWORD, user=USER, wrong="wrong")
    login = ["--user-file", user, "--token-file", password]
    with token_service(authority.pair.cert, pair) as service:

        def push(host: str, *words: str) -> tuple[int, str]:
            """Exit status, and what is said of an error."""
            status = main(["push", str(toy_bundle.path), f"oci://{host}/shop/toy:stable", *words])
            return status, capsys.readouterr().err

        with docker_registry(tmp_path, auth=service.auth()) as host:
            reference = f"oci://{host}/shop/toy:stable"
            assert push(host, *login)[0] == 0
            assert main(["pull", reference, "--out", str(tmp_path / "pulled"), *login]) == 0
            assert [scope for scope, _ in service.asked] == [
                "repository:shop/toy:pull,push",
                "repository:shop/toy:pull",
            ]
            status, said = push(host, "--user-file", user, "--token-file", wrong)
            assert status == ExitCode.PEER and "127.0.0.1: gives no token (status 401)" in said
            service.actions = ("pull",)
            status, said = push(host, *login)
            assert status == ExitCode.PEER and "answers PUT with status 401" in said
            service.lives = -600
            status, said = push(host, *login)
            assert status == ExitCode.PEER and "answers HEAD with status 401" in said
        asked = len(service.asked)
        with docker_registry(tmp_path, auth=service.auth("localhost")) as host:
            status, said = push(host, *login)
        assert status == ExitCode.PEER and "expected https, or its own host" in said
        assert len(service.asked) == asked
    assert PASSWORD not in said
    assert load_bundle(tmp_path / "pulled").digest == toy_bundle.digest
