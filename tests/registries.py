"""Registries for tests: Debian's docker-registry, a token service for it, and a fake one, hostile at will."""

from __future__ import annotations

import base64
import json
import os
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from offramp.cli.registry.artifact import digest_of, make_artifact
from offramp.common.bundle.load import Bundle
from offramp.common.bundle.manifest import MANIFEST
from offramp.common.bundle.signature import SIGNATURE
from tests.certificates import Pair
from tests.processes import WAIT, until

PROGRAM = shutil.which("docker-registry", path=f"{os.environ.get('PATH', '')}:/usr/bin")
needs_registry = pytest.mark.skipif(PROGRAM is None, reason="needs Debian's docker-registry")
USER, PASSWORD = "a-user", "a-password"
_HASHED = "$2b$04$abcdefghijklmnopqrstuurp8gIuTR7jNLYUS2oWqlo53RjDCp7f6"


@contextmanager
def docker_registry(
    folder: Path, pair: Pair | None = None, *, login: bool = False, auth: str | None = None
) -> Iterator[str]:
    """Debian's registry on a free port of this machine; yields HOST:PORT.

    auth: its configuration of logins, YAML; with ``login`` USER and PASSWORD.
    """
    assert PROGRAM is not None
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{holder.getsockname()[1]}"
    lines = [
        "version: 0.1",
        "log: {level: error, accesslog: {disabled: true}}",
        f"storage: {{filesystem: {{rootdirectory: {folder / 'registry'}}}}}",
    ]
    tls = "" if pair is None else f", tls: {{certificate: {pair.cert}, key: {pair.key}}}"
    lines.append(f"http: {{addr: '{address}'{tls}}}")
    if login:
        (folder / "htpasswd").write_text(f"{USER}:{_HASHED}\n")
        auth = f"{{htpasswd: {{realm: toy, path: {folder / 'htpasswd'}}}}}"
    if auth is not None:
        lines.append(f"auth: {auth}")
    config = folder / "registry.yml"
    config.write_text("\n".join(lines) + "\n")
    process = subprocess.Popen(
        [PROGRAM, "serve", str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )

    def listens() -> bool:
        assert process.poll() is None, "docker-registry ended"
        host, _, port = address.partition(":")
        with socket.socket() as probe:
            return probe.connect_ex((host, int(port))) == 0

    try:
        until(listens, "the registry")
        yield address
    finally:
        process.kill()
        process.wait(WAIT)


@dataclass
class Asked:
    """One request that the fake registry got."""

    method: str
    path: str
    authorization: str | None
    if_none_match: str | None


Answer = Callable[["Handler"], None]


@dataclass
class Fake:
    """What a fake registry has, and what it answers otherwise.

    answers: by METHOD and the end of the path, such as ``GET manifests/stable``.
    """

    port: int = 0
    manifests: dict[str, bytes] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    answers: dict[str, Answer] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)

    @property
    def host(self) -> str:
        """HOST:PORT."""
        return f"127.0.0.1:{self.port}"

    def reference(self, version: str = ":stable") -> str:
        """Of what it has."""
        return f"oci://{self.host}/toy{version}"

    def put(self, files: dict[str, bytes], tag: str = "stable", name: str = "toy") -> bytes:
        """Have these files as an artifact; returns its manifest."""
        for data in files.values():
            self.blobs[digest_of(data)] = data
        self.manifests[tag] = manifest = make_artifact(name, files)
        return manifest


class Handler(BaseHTTPRequestHandler):
    """Answers one connection; ``reply`` is all that an answer needs."""

    protocol_version = "HTTP/1.1"
    fake: Fake

    def log_message(self, *_: object) -> None:
        """Nothing."""

    def reply(self, status: int, body: bytes = b"", **headers: str) -> None:
        """Send this; underscores of headers' names are dashes."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if "Content_Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def handle_any(self) -> None:
        """Answer as a registry would, or as the test wants."""
        fake, path = self.fake, self.path.partition("?")[0]
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        headers = self.headers
        fake.asked.append(
            Asked(self.command, self.path, headers.get("Authorization"), headers.get("If-None-Match"))
        )
        for end, answer in fake.answers.items():
            method, _, rest = end.partition(" ")
            if method == self.command and path.endswith(rest):
                answer(self)
                return
        last = path.rpartition("/")[2]
        if self.command == "POST":
            self.reply(202, Location="/v2/toy/blobs/uploads/1?state=2")
        elif self.command == "PUT":
            if "/manifests/" in path:
                fake.manifests[last] = body
            else:
                fake.blobs[digest_of(body)] = body
            self.reply(201)
        else:
            found = fake.manifests if "/manifests/" in path else fake.blobs
            if last not in found:
                self.reply(404, b'{"errors":[{"code":"TOY_UNKNOWN"}]}')
            elif headers.get("If-None-Match") == f'"{digest_of(found[last])}"':
                self.reply(304)
            else:
                self.reply(200, found[last])

    do_GET = do_HEAD = do_POST = do_PUT = handle_any


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """A client that goes away is what is tested."""


@contextmanager
def _serve(handler: type[BaseHTTPRequestHandler]) -> Iterator[int]:
    """A server of this process; yields its port."""
    server = _Server(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join(WAIT)


@contextmanager
def fake_registry() -> Iterator[Fake]:
    """A registry of this process."""
    fake = Fake()
    with _serve(type("Bound", (Handler,), {"fake": fake})) as fake.port:
        yield fake


@dataclass
class TokenService:
    """Gives USER with PASSWORD the right to ``actions`` by a token that docker-registry verifies."""

    authority: Path
    """Certificate, PEM, that the registry trusts."""
    signer: Pair
    """Signed by it, with a key on P-256."""
    port: int = 0
    actions: tuple[str, ...] = ("pull", "push")
    lives: int = 300
    """Seconds from now until a token ends; below 0 one that has ended."""
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    """Of each request, the scope and who asked."""

    def auth(self, host: str = "127.0.0.1") -> str:
        """The configuration of a registry that names this service at this host."""
        realm = f"http://{host}:{self.port}/token"
        return f"{{token: {{realm: '{realm}', service: toy, issuer: us, rootcertbundle: {self.authority}}}}}"

    def token(self, repository: str) -> str:
        """A JSON Web Token."""
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec, utils

        der = ssl.PEM_cert_to_DER_cert(self.signer.cert.read_text())
        header = {"typ": "JWT", "alg": "ES256", "x5c": [base64.b64encode(der).decode()]}
        now = int(time.time())
        claims = {
            "iss": "us",
            "sub": USER,
            "aud": "toy",
            "jti": "1",
            "iat": now - 3600,
            "nbf": now - 3600,
            "exp": now + self.lives,
            "access": [{"type": "repository", "name": repository, "actions": self.actions}],
        }
        signed = f"{_base64url(json.dumps(header).encode())}.{_base64url(json.dumps(claims).encode())}"
        key = serialization.load_pem_private_key(self.signer.key.read_bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        pair = utils.decode_dss_signature(key.sign(signed.encode(), ec.ECDSA(hashes.SHA256())))
        return f"{signed}.{_base64url(b''.join(each.to_bytes(32, 'big') for each in pair))}"


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


class _Tokens(BaseHTTPRequestHandler):
    service: TokenService

    def log_message(self, *_: object) -> None:
        """Nothing."""

    def do_GET(self) -> None:
        """A token for the scope that is asked for."""
        (scope,) = parse_qs(urlsplit(self.path).query)["scope"]
        shown = self.headers.get("Authorization")
        self.service.asked.append((scope, shown))
        good = shown == "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        answer: dict[str, Any] = {"token": self.service.token(scope.split(":")[1])} if good else {}
        self.send_response(200 if good else 401)
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())


@contextmanager
def token_service(authority: Path, signer: Pair) -> Iterator[TokenService]:
    """One of this process."""
    service = TokenService(authority, signer)
    with _serve(type("Bound", (_Tokens,), {"service": service})) as service.port:
        yield service


def files(folder: Path, **texts: str) -> list[str]:
    """A file for each."""
    for name, text in texts.items():
        (folder / name).write_text(text)
    return [str(folder / name) for name in texts]


def files_of(bundle: Bundle) -> dict[str, bytes]:
    """What is pushed of a bundle."""
    names = [*bundle.manifest.files, MANIFEST]
    if (bundle.path / SIGNATURE).exists():
        names.append(SIGNATURE)
    return {name: (bundle.path / name).read_bytes() for name in names}
