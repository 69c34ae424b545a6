"""A registry, as the OCI distribution specification has it. Whoever runs it may be hostile.

Rules this module keeps:
- Every answer has a length that is stated here or by a digest that is checked; nothing is decompressed.
- A redirect is followed for what is read only, three times at most, never from HTTPS to plaintext, and
  without our login where it leaves the registry's origin. An upload stays where it began.
- How long all of it may take is the caller's to bound (``asyncio.timeout``).
"""

from __future__ import annotations

import json
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import httpx

from offramp.cli.registry.artifact import ARTIFACT_BYTES, IMAGE, INDEX, Blob, digest_of
from offramp.cli.registry.auth import Login, fetch_token, hint, parse_challenges, token_url
from offramp.cli.registry.reference import DIGEST, Reference
from offramp.common.errors import (
    AccessError,
    BundleError,
    ConfigError,
    OfframpError,
    PeerError,
    UnavailableError,
    printable,
)
from offramp.common.files import read_bounded
from offramp.common.wire.address import is_loopback

READ_SECONDS = 30.0
"""How long a registry may say nothing."""
REDIRECTS = 3
SAID_BYTES = 4096
"""Of what a registry says of an error."""
CA_BYTES = 1 << 20
_MOVED = (301, 302, 303, 307, 308)


def make_client(reference: Reference, ca: str | None, insecure: bool) -> httpx.AsyncClient:
    """A client for one registry. Proxies come from the environment, as httpx has it, but for this machine.

    ca: PEM file of the authorities to trust instead of the system's. Raises ConfigError.
    """
    verify: ssl.SSLContext | bool = True
    if ca is not None:
        if insecure:
            raise ConfigError("--insecure: asks for plaintext, but --ca asks for TLS")
        text = read_bounded(ca, CA_BYTES, name=f"--ca {ca}", expected="a PEM file")
        try:
            verify = ssl.create_default_context(cadata=text.decode("ascii"))
        except (ValueError, ssl.SSLError):
            raise ConfigError(f"--ca {ca}: is not a PEM file of certificates") from None
    return httpx.AsyncClient(
        verify=verify,
        trust_env=not is_loopback(reference.hostname),
        timeout=httpx.Timeout(READ_SECONDS),
        limits=httpx.Limits(max_connections=2),
        follow_redirects=False,
    )


def base_url(reference: Reference, ca: str | None, insecure: bool) -> httpx.URL:
    """Plaintext is for this machine, or asked for. Raises ConfigError."""
    plain = insecure or (ca is None and is_loopback(reference.hostname))
    try:
        return httpx.URL(f"{'http' if plain else 'https'}://{reference.host}/v2/{reference.repository}/")
    except httpx.InvalidURL:
        raise ConfigError(f"{reference.text}: expected the name of a host") from None


class Remote:
    """A ``Store`` in a registry."""

    def __init__(
        self, reference: Reference, client: httpx.AsyncClient, base: httpx.URL, login: Login, *, write: bool
    ) -> None:
        """base: URL of the repository. write: whether to ask for the right to push."""
        self._reference = reference
        self._client = client
        self._base = base
        self._login = login
        self._scope = f"repository:{reference.repository}:{'pull,push' if write else 'pull'}"
        self._authorization = login.bearer()

    async def manifest(self, known: str | None = None) -> bytes | None:
        """As ``Store``."""
        headers = {"Accept": f"{IMAGE}, {INDEX}"}
        if known is not None:
            headers["If-None-Match"] = f'"{known}"'
        path = f"manifests/{self._reference.version}"
        async with self._call("GET", path, (200, 304), headers) as response:
            if response.status_code == 304:
                if known is None:
                    raise self._wrong("says that nothing has changed, which was not asked")
                return None
            data = await self._read(response, ARTIFACT_BYTES, "the artifact's manifest")
            stated = response.headers.get("docker-content-digest")
        digest = digest_of(data)
        if self._reference.is_digest and digest != self._reference.version:
            raise self._wrong(f"sends a manifest of {digest}")
        if stated is not None and stated.startswith("sha256:") and stated != digest:
            raise self._wrong(f"sends a manifest of {digest}, and says it has {printable(stated, 80)}")
        return None if digest == known else data

    async def blob(self, blob: Blob) -> AsyncIterator[bytes]:
        """As ``Store``."""
        async with self._call("GET", f"blobs/{blob.digest}", (200,), {}) as response:
            size = 0
            try:
                async for piece in response.aiter_raw():
                    size += len(piece)
                    if size > blob.size:
                        raise self._wrong(f"sends more than the {blob.size} bytes of {blob.digest}")
                    yield piece
            except httpx.HTTPError as error:
                raise self._broke(error) from None

    async def upload(self, blob: Blob, data: bytes) -> bool:
        """As ``Store``."""
        async with self._call("HEAD", f"blobs/{blob.digest}", (200, 404), {}) as response:
            if response.status_code == 200:
                return False
        async with self._call("POST", "blobs/uploads/", (202,), {}, content=b"") as response:
            place = self._place(response)
        url = place.copy_merge_params({"digest": blob.digest})
        headers = {"Content-Type": "application/octet-stream"}
        async with self._call("PUT", url, (201,), headers, content=data):
            return True

    async def tag(self, manifest: bytes) -> None:
        """As ``Store``."""
        path = f"manifests/{self._reference.version}"
        async with self._call("PUT", path, (201,), {"Content-Type": IMAGE}, content=manifest) as response:
            stated = response.headers.get("docker-content-digest", "")
        if DIGEST.fullmatch(stated) and stated != digest_of(manifest):
            raise self._wrong(f"says it keeps {stated}, not {digest_of(manifest)}")

    # --- one request ---

    @asynccontextmanager
    async def _call(
        self,
        method: str,
        where: str | httpx.URL,
        good: tuple[int, ...],
        headers: Mapping[str, str],
        content: bytes | None = None,
    ) -> AsyncIterator[httpx.Response]:
        """An answer with one of these statuses; asked again with a login if the registry wants one."""
        url = self._base.join(where) if isinstance(where, str) else where
        try:
            response = await self._send(method, url, headers, content)
            # Not of a place that it redirects to: our login is not theirs.
            if response.status_code == 401 and self._is_ours(response.url):
                await response.aclose()
                await self._log_in(response)
                response = await self._send(method, url, headers, content)
        except httpx.HTTPError as error:
            raise self._broke(error) from None
        try:
            if response.status_code not in good:
                raise await self._refusal(response)
            yield response
        finally:
            await response.aclose()

    async def _send(
        self, method: str, url: httpx.URL, headers: Mapping[str, str], content: bytes | None
    ) -> httpx.Response:
        hops = 0
        while True:
            sent = {"Accept-Encoding": "identity", **headers}
            if self._authorization is not None and self._is_ours(url):
                sent["Authorization"] = self._authorization
            request = self._client.build_request(method, url, headers=sent, content=content)
            response = await self._client.send(request, stream=True)
            if response.status_code not in _MOVED or method != "GET":
                return response
            await response.aclose()
            hops += 1
            if hops > REDIRECTS:
                raise self._wrong(f"redirects more than {REDIRECTS} times")
            url = self._follow(response, url)

    def _follow(self, response: httpx.Response, url: httpx.URL) -> httpx.URL:
        target = self._location(response, url)
        # In the clear only where we are already, and only on the host that was named.
        if target.scheme != "https" and (self._base.scheme != "http" or target.host != self._base.host):
            raise self._wrong(
                f"redirects to {printable(str(target.copy_with(query=None)), 120)}, expected https"
            )
        return target

    def _place(self, response: httpx.Response) -> httpx.URL:
        """Where an upload goes on."""
        target = self._location(response, self._base)
        if not self._is_ours(target):
            raise self._wrong(
                f"wants the upload at {printable(str(target.copy_with(query=None)), 120)}, expected its own "
                f"{self._base.scheme}://{self._reference.host}"
            )
        return target

    def _location(self, response: httpx.Response, url: httpx.URL) -> httpx.URL:
        text = response.headers.get("location", "")
        target: httpx.URL | None
        try:
            target = url.join(text)
        except (httpx.InvalidURL, ValueError):
            target = None
        if not text or target is None or target.scheme not in ("http", "https") or target.userinfo:
            raise self._wrong(f"sends the location {printable(text, 120)!r}, expected a URL")
        return target

    def _is_ours(self, url: httpx.URL) -> bool:
        """Whether our login may go there."""
        return _origin(url) == _origin(self._base)

    async def _log_in(self, response: httpx.Response) -> None:
        """Get what the registry asks for. Raises AccessError, PeerError."""
        challenges = parse_challenges(response.headers.get_list("www-authenticate"))
        for challenge in challenges:
            if challenge.scheme == "bearer" and self._login.bearer() is None:
                url = token_url(challenge, self._base)
                token = await fetch_token(self._client, url, challenge, self._scope, self._login)
                self._authorization = f"Bearer {token}"
                return
            if challenge.scheme == "basic" and (basic := self._login.basic()) is not None:
                self._authorization = basic
                return
        raise AccessError(
            f"{self._reference.host}: wants a login{hint(self._login)}, expected --token-file, or "
            "--user-file with it, or one that docker keeps"
        )

    # --- what goes wrong ---

    async def _read(self, response: httpx.Response, most: int, what: str) -> bytes:
        data = bytearray()
        try:
            async for piece in response.aiter_raw():
                data += piece
                if len(data) > most:
                    raise self._wrong(f"sends more than {most} bytes for {what}")
        except httpx.HTTPError as error:
            raise self._broke(error) from None
        return bytes(data)

    async def _refusal(self, response: httpx.Response) -> OfframpError:
        status, host = response.status_code, self._reference.host
        said = await self._said(response)
        text = f"{host}: answers {response.request.method} with status {status}{said}"
        if status in (401, 403):
            return AccessError(f"{text}{hint(self._login)}, expected a login with the right to do so")
        if status == 404:
            return BundleError(f"{self._reference.text}: is not there (status 404{said})")
        if status == 429 or status >= 500:
            return UnavailableError(text)
        return PeerError(text)

    async def _said(self, response: httpx.Response) -> str:
        """The code of the first error that the registry names."""
        try:
            data = await self._read(response, SAID_BYTES, "an error")
            code = json.loads(data)["errors"][0]["code"]
            return f", {printable(code, 60)}"
        except (OfframpError, ValueError, RecursionError, LookupError, TypeError):
            return ""

    def _wrong(self, what: str) -> PeerError:
        return PeerError(f"{self._reference.host}: {what}")

    def _broke(self, error: httpx.HTTPError) -> UnavailableError:
        reason = printable(str(error) or type(error).__name__, 200)
        return UnavailableError(f"{self._reference.host}: {reason}")


def _origin(url: httpx.URL) -> tuple[str, str, int]:
    return url.scheme, url.host, url.port or {"http": 80, "https": 443}.get(url.scheme, 0)
