"""A hostile registry: whatever it answers, a pull ends with one error and keeps nothing, and our login goes
to nobody else.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from offramp.cli.registry import pull as pull_command
from offramp.cli.registry.artifact import ARTIFACT_BYTES, TITLE, digest_of
from offramp.cli.registry.auth import Login
from offramp.cli.registry.reference import parse_reference
from offramp.cli.registry.remote import REDIRECTS, Remote, base_url, make_client
from offramp.cli.registry.transfer import Pushed, push
from offramp.common.bundle.load import Bundle
from offramp.common.errors import BundleError, OfframpError, PeerError, UnavailableError
from tests.registries import Fake, Handler, fake_registry, files_of

HEAD_, MANIFEST_ = "head.onnx", "manifest.json"


@pytest.fixture
def fake(toy_bundle: Bundle) -> Iterator[Fake]:
    """A registry with the toy bundle."""
    with fake_registry() as found:
        found.put(files_of(toy_bundle))
        yield found


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Where a bundle is to be."""
    (tmp_path / "here").mkdir()
    return tmp_path / "here" / "bundle"


def pull(fake: Fake, place: Path, *flags: str) -> None:
    """``offramp pull``."""
    pull_command.main([fake.reference(), "--out", str(place), "--timeout", "20", *flags])


def blob(fake: Fake, name: str) -> str:
    """The digest of a file that it has."""
    layers = json.loads(fake.manifests["stable"])["layers"]
    (digest,) = [each["digest"] for each in layers if each["annotations"][TITLE] == name]
    return str(digest)


def refused(fake: Fake, place: Path, error: type[OfframpError], match: str, *flags: str) -> None:
    """The pull ends with this, and leaves nothing."""
    with pytest.raises(error, match=match):
        pull(fake, place, *flags)
    assert list(place.parent.iterdir()) == []


def test_a_blob_of_other_bytes(fake: Fake, place: Path) -> None:
    digest = blob(fake, HEAD_)
    fake.blobs[digest] = bytes(len(fake.blobs[digest]))
    refused(fake, place, PeerError, "expected .* bytes of sha256:")


def test_a_blob_without_an_end(fake: Fake, place: Path) -> None:
    sent = 0

    def endless(handler: Handler) -> None:
        nonlocal sent
        handler.send_response(200)
        handler.end_headers()
        with suppress(OSError):
            while sent < 1 << 26:
                sent += handler.connection.send(bytes(1 << 16))
        handler.close_connection = True

    fake.answers[f"GET {blob(fake, HEAD_)}"] = endless
    refused(fake, place, PeerError, "sends more than")
    assert sent < 1 << 26


def test_a_blob_that_is_cut_short(fake: Fake, place: Path) -> None:
    def short(handler: Handler) -> None:
        handler.reply(200, b"half", Content_Length="400")
        handler.close_connection = True

    fake.answers[f"GET {blob(fake, HEAD_)}"] = short
    refused(fake, place, UnavailableError, "127.0.0.1:")


def test_a_bomb_is_not_unpacked(fake: Fake, place: Path) -> None:
    manifest = fake.manifests["stable"]
    fake.answers["GET manifests/stable"] = lambda handler: handler.reply(
        200, manifest, Content_Encoding="gzip"
    )
    pull(fake, place)
    assert (place / MANIFEST_).exists()


def test_a_manifest_that_is_too_long(fake: Fake, place: Path) -> None:
    fake.manifests["stable"] = b" " * (ARTIFACT_BYTES + 1)
    refused(fake, place, PeerError, "sends more than")


def test_a_manifest_of_another_digest_than_it_says(fake: Fake, place: Path) -> None:
    manifest = fake.manifests["stable"]
    fake.answers["GET manifests/stable"] = lambda handler: handler.reply(
        200, manifest, Docker_Content_Digest=digest_of(b"")
    )
    refused(fake, place, PeerError, "and says it has")


def test_nothing_new_that_was_not_asked_for(fake: Fake, place: Path) -> None:
    fake.answers["GET manifests/stable"] = lambda handler: handler.reply(304)
    refused(fake, place, PeerError, "was not asked")


def layers(change: Callable[[list[dict[str, object]]], object]) -> Callable[[Fake], None]:
    """An artifact whose layers were changed."""

    def damage(fake: Fake) -> None:
        document = json.loads(fake.manifests["stable"])
        change(document["layers"])
        fake.manifests["stable"] = json.dumps(document).encode()

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (layers(lambda found: found[0].update(annotations={TITLE: "../../x"})), "expected a plain file name"),
        (layers(lambda found: found[0].update(annotations={TITLE: "/etc/x"})), "expected a plain file name"),
        (layers(lambda found: found.append(found[0])), "two layers"),
        (layers(lambda found: found.pop(0)), "codebook.bin: is not in the artifact"),
        (layers(lambda found: found[0].update(size=1 << 39)), "expected at most"),
        (layers(lambda found: found[1].update(digest=found[0]["digest"])), "the bundle's manifest says"),
    ],
)
def test_an_artifact_that_is_not_the_bundle(
    fake: Fake, place: Path, damage: Callable[[Fake], None], message: str
) -> None:
    damage(fake)
    refused(fake, place, BundleError, message)
    assert not any(HEAD_ in each.path or blob(fake, "tail.onnx") in each.path for each in fake.asked)


def test_what_the_bundle_does_not_list_is_not_fetched(fake: Fake, place: Path, toy_bundle: Bundle) -> None:
    fake.put(files_of(toy_bundle) | {"start.sh": b"rm -rf ~"})
    pull(fake, place)
    assert {each.name for each in place.iterdir()} == files_of(toy_bundle).keys()


def test_an_unsigned_bundle_is_not_fetched(fake: Fake, place: Path, tmp_path: Path) -> None:
    pytest.importorskip("cryptography")
    from offramp.common.bundle.signature import generate_key

    generate_key(tmp_path / "a.key", tmp_path / "a.pub")
    refused(fake, place, BundleError, "manifest.sig: is not", "--trusted-key", str(tmp_path / "a.pub"))
    assert len(fake.asked) == 2


def test_a_trickle_has_an_end(fake: Fake, place: Path) -> None:
    def trickle(handler: Handler) -> None:
        handler.send_response(200)
        handler.end_headers()
        with suppress(OSError):
            while True:
                handler.wfile.write(b".")
                handler.wfile.flush()
                handler.connection.settimeout(0.02)
                with suppress(TimeoutError):
                    if not handler.connection.recv(1):
                        break
        handler.close_connection = True

    fake.answers[f"GET {blob(fake, HEAD_)}"] = trickle
    refused(fake, place, UnavailableError, "not done after 0.5 s", "--timeout", "0.5")


def test_redirects_have_an_end(fake: Fake, place: Path) -> None:
    digest = blob(fake, HEAD_)
    fake.answers[f"GET {digest}"] = lambda handler: handler.reply(307, Location=f"/v2/toy/blobs/{digest}")
    refused(fake, place, PeerError, f"more than {REDIRECTS} times")


@pytest.mark.parametrize(
    "location",
    ["http://elsewhere.invalid/x", "file:///etc/passwd", "", "http://me:x@127.0.0.1/"],
)
def test_a_redirect_to_where_nothing_is_fetched(fake: Fake, place: Path, location: str) -> None:
    fake.answers[f"GET {blob(fake, HEAD_)}"] = lambda handler: handler.reply(307, Location=location)
    refused(fake, place, PeerError, "redirects to|sends the location")


def test_a_redirect_elsewhere_does_not_get_our_token(fake: Fake, place: Path, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("mine")
    digest = blob(fake, HEAD_)
    with fake_registry() as other:
        other.blobs = fake.blobs
        fake.answers[f"GET {digest}"] = lambda handler: handler.reply(
            307, Location=f"http://{other.host}/v2/toy/blobs/{digest}"
        )
        pull(fake, place, "--token-file", str(tmp_path / "token"))
        assert {each.authorization for each in fake.asked} == {"Bearer mine"}
        assert [each.authorization for each in other.asked] == [None]


def test_who_is_redirected_to_may_not_ask_for_our_login(fake: Fake, place: Path, tmp_path: Path) -> None:
    for name, text in (("token", "secret"), ("user", "me")):
        (tmp_path / name).write_text(text)
    digest = blob(fake, HEAD_)
    with fake_registry() as other:
        other.answers["GET "] = lambda handler: handler.reply(401, WWW_Authenticate='Basic realm="x"')
        fake.answers[f"GET {digest}"] = lambda handler: handler.reply(
            307, Location=f"http://{other.host}/v2/toy/blobs/{digest}"
        )
        flags = ("--token-file", str(tmp_path / "token"), "--user-file", str(tmp_path / "user"))
        with pytest.raises(OfframpError, match="status 401"):
            pull(fake, place, *flags)
        assert [each.authorization for each in other.asked] == [None]


@pytest.mark.parametrize("realm", ["http://elsewhere.invalid/token", "https://elsewhere.invalid/token"])
def test_a_token_service_elsewhere_is_not_asked_from_plaintext(fake: Fake, place: Path, realm: str) -> None:
    fake.answers["GET manifests/stable"] = lambda handler: handler.reply(
        401, WWW_Authenticate=f'Bearer realm="{realm}"'
    )
    refused(fake, place, PeerError, "names the token service")


@pytest.mark.parametrize("answer", [b"", b"[]", b'{"token": 7}', b'{"token": "a\\nX: y"}', b"x" * (1 << 17)])
def test_a_token_that_is_not_one(fake: Fake, place: Path, answer: bytes) -> None:
    realm = f"http://{fake.host}/token"
    fake.answers["GET manifests/stable"] = lambda handler: handler.reply(
        401, WWW_Authenticate=f'Bearer realm="{realm}"'
    )
    fake.answers["GET /token"] = lambda handler: handler.reply(200, answer)
    refused(fake, place, PeerError, "token")


def test_headers_without_an_end(place: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        fake = Fake(listener.getsockname()[1])

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"HTTP/1.1 200 OK\r\n")
            with suppress(OSError):
                while not reader.at_eof():
                    writer.write(b"X: " + b"y" * 1000 + b"\r\n")
                    await writer.drain()
            writer.close()

        async def run() -> None:
            server = await asyncio.start_server(serve, sock=listener)
            async with server:
                with pytest.raises(UnavailableError):
                    await asyncio.to_thread(pull, fake, place)

        asyncio.run(run())


def test_an_upload_goes_nowhere_else(fake: Fake, toy_bundle: Bundle) -> None:
    with fake_registry() as other:
        fake.blobs.clear()
        fake.answers["POST uploads/"] = lambda handler: handler.reply(
            202, Location=f"http://{other.host}/v2/toy/blobs/uploads/1"
        )
        parsed = parse_reference(fake.reference())

        async def run() -> Pushed:
            async with make_client(parsed, None, False) as client:
                base = base_url(parsed, None, False)
                return await push(toy_bundle, Remote(parsed, client, base, Login(), write=True))

        with pytest.raises(PeerError, match="wants the upload at"):
            asyncio.run(run())
        assert other.asked == []
