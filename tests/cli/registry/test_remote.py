"""A registry over HTTP: what it asks for, and to whom our login goes."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from offramp.cli.registry.artifact import blob_of, digest_of
from offramp.cli.registry.auth import Login
from offramp.cli.registry.reference import parse_reference
from offramp.cli.registry.remote import Remote, base_url, make_client
from offramp.common.errors import AccessError, BundleError, ConfigError, PeerError, UnavailableError
from tests.processes import closed_port
from tests.registries import Fake, Handler, fake_registry

T = TypeVar("T")
LOGIN = Login("me", "secret")
BASIC = "Basic " + base64.b64encode(b"me:secret").decode()
DATA = b"some bytes"


@pytest.fixture
def fake() -> Iterator[Fake]:
    """A registry with one artifact."""
    with fake_registry() as found:
        found.put({"manifest.json": DATA})
        yield found


def call(
    reference: str, body: Callable[[Remote], Awaitable[T]], login: Login | None = None, write: bool = False
) -> T:
    """What the call returns, of a store at this reference."""

    async def run() -> T:
        parsed = parse_reference(reference)
        async with make_client(parsed, None, False) as client:
            base = base_url(parsed, None, False)
            return await body(Remote(parsed, client, base, login or Login(), write=write))

    return asyncio.run(run())


def basic(handler: Handler) -> None:
    """Wants a user and a password."""
    if handler.headers.get("Authorization") == BASIC:
        handler.reply(200, handler.fake.manifests["stable"])
    else:
        handler.reply(401, WWW_Authenticate='Basic realm="toy"')


def test_unchanged_is_asked_for_by_its_digest(fake: Fake) -> None:
    digest = digest_of(fake.manifests["stable"])
    assert call(fake.reference(), lambda store: store.manifest()) == fake.manifests["stable"]
    assert call(fake.reference(), lambda store: store.manifest(digest)) is None
    assert [each.if_none_match for each in fake.asked] == [None, f'"{digest}"']


def test_a_registry_that_knows_no_such_condition_is_unchanged_too(fake: Fake) -> None:
    manifest = fake.manifests["stable"]
    fake.answers["GET manifests/stable"] = lambda handler: handler.reply(200, manifest)
    assert call(fake.reference(), lambda store: store.manifest(digest_of(manifest))) is None


def test_one_manifest_by_its_digest_is_that_one(fake: Fake) -> None:
    manifest = fake.manifests["stable"]
    digest = digest_of(manifest)
    fake.manifests[digest] = manifest
    assert call(fake.reference(f"@{digest}"), lambda store: store.manifest()) == manifest
    fake.manifests[digest] = manifest + b" "
    with pytest.raises(PeerError, match="sends a manifest of sha256:"):
        call(fake.reference(f"@{digest}"), lambda store: store.manifest())


def test_what_is_pushed_is_there_and_not_sent_twice(fake: Fake) -> None:
    new = b"another"

    async def body(store: Remote) -> list[bool]:
        return [await store.upload(blob_of(new), new) for _ in range(2)]

    assert call(fake.reference(), body, write=True) == [True, False]
    assert fake.blobs[digest_of(new)] == new
    put = [each.path for each in fake.asked if each.method == "PUT"]
    assert put == [f"/v2/toy/blobs/uploads/1?state=2&digest={digest_of(new).replace(':', '%3A')}"]


def test_a_user_is_shown_when_it_is_asked_for(fake: Fake) -> None:
    fake.answers["GET manifests/stable"] = basic
    assert call(fake.reference(), lambda store: store.manifest(), LOGIN)
    assert [each.authorization for each in fake.asked] == [None, BASIC]
    with pytest.raises(AccessError, match="wants a login"):
        call(fake.reference(), lambda store: store.manifest())
    with pytest.raises(AccessError, match="status 401"):
        call(fake.reference(), lambda store: store.manifest(), Login("me", "wrong"))


@pytest.mark.parametrize(("login", "shown"), [(LOGIN, BASIC), (Login(), None)])
def test_a_token_is_fetched_for_our_scope_alone(fake: Fake, login: Login, shown: str | None) -> None:
    def challenge(handler: Handler) -> None:
        if handler.headers.get("Authorization") == "Bearer a-token":
            handler.reply(200, fake.manifests["stable"])
            return
        realm = f"http://{fake.host}/token"
        asks = f'Bearer realm="{realm}",service="toy",scope="repository:private:*"'
        handler.reply(401, WWW_Authenticate=asks)

    fake.answers["GET manifests/stable"] = challenge
    fake.answers["GET /token"] = lambda handler: handler.reply(200, b'{"token": "a-token"}')
    assert call(fake.reference(), lambda store: store.manifest(), login)
    _, token, again = fake.asked
    assert token.path == "/token?service=toy&scope=repository%3Atoy%3Apull"
    assert (token.authorization, again.authorization) == (shown, "Bearer a-token")


def test_a_token_of_our_own_is_shown_at_once(fake: Fake) -> None:
    assert call(fake.reference(), lambda store: store.manifest(), Login(None, "mine"))
    assert [each.authorization for each in fake.asked] == ["Bearer mine"]
    fake.answers["GET manifests/stable"] = lambda handler: handler.reply(
        401, WWW_Authenticate='Bearer realm="http://127.0.0.1/token"'
    )
    with pytest.raises(AccessError, match="wants a login"):
        call(fake.reference(), lambda store: store.manifest(), Login(None, "mine"))


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (403, AccessError),
        (404, BundleError),
        (429, UnavailableError),
        (503, UnavailableError),
        (418, PeerError),
    ],
)
def test_a_refusal_names_the_registrys_code(fake: Fake, status: int, error: type[Exception]) -> None:
    said = b'{"errors":[{"code":"TOY_\\u001b[2JCODE","message":"x"}]}'
    fake.answers["GET manifests/stable"] = lambda handler: handler.reply(status, said)
    with pytest.raises(error, match=rf"status {status}, TOY_\\x1b\[2JCODE"):
        call(fake.reference(), lambda store: store.manifest())


def test_no_registry_is_one_error() -> None:
    with closed_port() as port, pytest.raises(UnavailableError, match=f"127.0.0.1:{port}: "):
        call(f"oci://127.0.0.1:{port}/toy:a", lambda store: store.manifest())


def test_plaintext_is_for_this_machine_or_asked_for(tmp_path: Path) -> None:
    here, there = parse_reference("oci://localhost:5000/toy:a"), parse_reference("oci://r.example/toy:a")
    assert base_url(here, None, False).scheme == "http"
    assert base_url(here, "ca.pem", False).scheme == "https"
    assert str(base_url(there, None, False)) == "https://r.example/v2/toy/"
    assert base_url(there, None, True).scheme == "http"
    with pytest.raises(ConfigError, match="--ca asks for TLS"):
        make_client(there, "ca.pem", True)
    (tmp_path / "ca.pem").write_text("no certificate")
    with pytest.raises(ConfigError, match="not a PEM file"):
        make_client(there, str(tmp_path / "ca.pem"), False)
