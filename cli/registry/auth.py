"""Who we are to a registry: a token, or a user and a password, and to whom these are shown.

Rules this module keeps:
- Nothing secret is sent before the registry asks for it, but the token of ``--token-file`` without a user.
- Secrets go to the registry's own origin, and to the token service that it names: by HTTPS only, or, where
  the registry itself is spoken to in the clear, on the same host only.
- The scope that is asked for is ours, whatever the registry would like.
- Nothing secret reaches a message or a log. No program is started for a login, as docker would do.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

import httpx

from offramp.common.errors import AccessError, ConfigError, PeerError, printable
from offramp.common.files import read_bounded

SECRET_BYTES = 16_384
CONFIG_BYTES = 1 << 20
TOKEN_ANSWER_BYTES = 1 << 16
_CHALLENGE = re.compile(r"\s*(Bearer|Basic)\b\s*(.*)", re.IGNORECASE | re.DOTALL)
_PARAMETER = re.compile(r'([A-Za-z_]+)="([^"]*)"')


@dataclass(frozen=True, repr=False)
class Login:
    """What is known of ourselves; ``Login()`` is anonymous."""

    user: str | None = None
    secret: str | None = None
    """The user's password, or a bearer token where there is no user."""
    helper: str | None = None
    """Why docker's own login cannot be used, for the message of a refusal."""

    def basic(self) -> str | None:
        """The header of a user and password."""
        if self.user is None:
            return None
        return "Basic " + base64.b64encode(f"{self.user}:{self.secret}".encode()).decode()

    def bearer(self) -> str | None:
        """The header of a token that needs no service."""
        return f"Bearer {self.secret}" if self.user is None and self.secret else None


@dataclass(frozen=True)
class Challenge:
    """What a registry asks for: ``basic``, or a token of the service at ``realm``."""

    scheme: str
    realm: str = ""
    service: str = ""


def read_login(host: str, token_file: str | None, user_file: str | None, config: Path | None) -> Login:
    """The login for HOST[:PORT].

    token_file: a bearer token, or with ``user_file`` the password of that user. config: docker's, which is
    used if neither is given. Raises ConfigError.
    """
    if token_file is not None:
        secret = _line("--token-file", token_file)
        return Login(None if user_file is None else _line("--user-file", user_file), secret)
    if user_file is not None:
        raise ConfigError("--user-file: expected --token-file with the user's password with it")
    return Login() if config is None else docker_login(host, config)


def docker_config() -> Path | None:
    """Where docker keeps its logins; None if it keeps none."""
    folder = os.environ.get("DOCKER_CONFIG")
    try:
        path = Path(folder) if folder else Path.home() / ".docker"
    except RuntimeError:  # no home
        return None
    path /= "config.json"
    return path if path.exists() else None


def docker_login(host: str, config: Path) -> Login:
    """What docker's configuration has for HOST[:PORT]. Raises ConfigError."""
    wanted = "expected docker's config.json"
    try:
        document = json.loads(read_bounded(config, CONFIG_BYTES, expected="docker's config.json"))
    except (ValueError, RecursionError):
        raise ConfigError(f"{config}: is not JSON, {wanted}") from None
    auths = document.get("auths", {}) if isinstance(document, dict) else None
    if not isinstance(auths, dict):
        raise ConfigError(f"{config}: has no auths, {wanted}")
    for name, entry in auths.items():
        if isinstance(entry, dict) and entry and _host(name) == host:
            return _entry(entry, f"{config}: {printable(host, 80)}")
    helpers = document.get("credHelpers", {})
    if document.get("credsStore") or (isinstance(helpers, dict) and host in helpers):
        return Login(helper="docker's credential helpers are not called: --user-file and --token-file")
    return Login()


def _entry(entry: dict[str, object], where: str) -> Login:
    if isinstance(token := entry.get("registrytoken"), str) and token:
        return Login(None, _visible(token, where))
    if entry.get("identitytoken"):
        return Login(helper="docker has an identity token for it, expected user and password")
    auth = entry.get("auth")
    if auth is None:
        return Login()
    try:
        user, colon, password = base64.b64decode(str(auth), validate=True).decode().partition(":")
    except (binascii.Error, ValueError):
        colon = ""
    if not colon:
        raise ConfigError(f"{where}: auth is not USER:PASSWORD in base64")
    return Login(user, password.rstrip("\0"))


def _host(name: str) -> str:
    """HOST[:PORT] of a key of docker's, which may be a URL."""
    return name.partition("://")[2].partition("/")[0] if "://" in name else name.partition("/")[0]


def _line(flag: str, path: str) -> str:
    text = read_bounded(path, SECRET_BYTES, name=f"{flag} {path}", expected="a file").strip()
    return _visible(text.decode("latin-1"), f"{flag} {path}")


def _visible(text: str, where: str) -> str:
    if not text or not all(0x21 <= ord(each) <= 0x7E for each in text):
        raise ConfigError(f"{where}: expected one line of visible ASCII")
    return text


def parse_challenges(headers: list[str]) -> list[Challenge]:
    """What ``WWW-Authenticate`` headers ask for, of what is known here."""
    found = []
    for header in headers:
        if match := _CHALLENGE.match(header):
            values = {name.lower(): value for name, value in _PARAMETER.findall(match[2])}
            found.append(Challenge(match[1].lower(), values.get("realm", ""), values.get("service", "")))
    return found


def token_url(challenge: Challenge, registry: httpx.URL) -> httpx.URL:
    """Where a token is asked for. Raises PeerError where our password would not be safe."""
    shown = printable(challenge.realm, 120)
    try:
        url = httpx.URL(challenge.realm)
    except (httpx.InvalidURL, ValueError):
        raise PeerError(f"{registry.host}: names the token service {shown!r}, expected a URL") from None
    safe = url.scheme == "https" if registry.scheme == "https" else url.host == registry.host
    if not safe or url.scheme not in ("https", "http") or url.userinfo or not url.host:
        raise PeerError(
            f"{registry.host}: names the token service {shown!r}, expected https, or its own host where it "
            "is spoken to in the clear"
        )
    return url


async def fetch_token(
    client: httpx.AsyncClient, url: httpx.URL, challenge: Challenge, scope: str, login: Login
) -> str:
    """A bearer token of a service, anonymous without a login. Raises AccessError, PeerError, HTTPError."""
    headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
    if (basic := login.basic()) is not None:
        headers["Authorization"] = basic
    query = {"service": challenge.service, "scope": scope}
    request = client.build_request("GET", url.copy_merge_params(query), headers=headers)
    response = await client.send(request, stream=True)
    try:
        if response.status_code != 200:
            raise AccessError(
                f"{url.host}: gives no token (status {response.status_code}){hint(login)}, expected a login "
                "that it knows"
            )
        data = bytearray()
        async for piece in response.aiter_raw():
            data += piece
            if len(data) > TOKEN_ANSWER_BYTES:
                raise PeerError(f"{url.host}: answers with more than {TOKEN_ANSWER_BYTES} bytes for a token")
    finally:
        await response.aclose()
    try:
        answer = json.loads(data)
        token = answer.get("token") or answer.get("access_token")
        return _visible(token, "")
    except (ValueError, RecursionError, AttributeError, TypeError, ConfigError):
        raise PeerError(f"{url.host}: answers without a token, expected JSON with one") from None


def hint(login: Login) -> str:
    """What to say beside a refusal."""
    return f"; {login.helper}" if login.helper else ""
