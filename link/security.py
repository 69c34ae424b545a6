"""How a link's connection is made and secured: plaintext, TLS or mutual TLS, a bearer token, a proxy.

Rules this module keeps:
- Files are read again for each connection: a rotated certificate or token is used from the next one on.
- Nothing that is secret reaches a message, a log or a metric: errors name files, never their contents.
- A token is one line of visible ASCII; anything else is refused before it is sent.
- A proxy is used only where ``--proxy`` names it, never to this machine, and never sees a token.
"""

from __future__ import annotations

from base64 import b64encode
from dataclasses import dataclass
from typing import Annotated, Any
from urllib.parse import unquote, urlsplit

from pydantic import Field

from offramp.common.errors import ConfigError, printable
from offramp.common.files import read_bounded
from offramp.common.settings import Settings
from offramp.common.wire import transport
from offramp.common.wire.address import is_loopback, require_secure, split_address

Tls = Annotated[bool, Field(description="encrypt, and trust the authorities that gRPC brings along")]
TlsCa = Annotated[
    str | None,
    Field(description="encrypt, and trust the authorities in this PEM file only", examples=["FILE"]),
]
TlsKey = Annotated[str | None, Field(description="its private key, PEM", examples=["FILE"])]
TlsServerName = Annotated[
    str | None,
    Field(description="name that the server's certificate must have (default: the host)", examples=["NAME"]),
]
TokenFile = Annotated[
    str | None,
    Field(description="file with a bearer token, read again for each connection", examples=["FILE"]),
]
Proxy = Annotated[
    str | None,
    Field(
        description="HTTP proxy to reach servers through, by CONNECT; never for one on this machine; none "
        "is taken from the environment",
        examples=["URL"],
    ),
]
FILE_BYTES = 1 << 20
TOKEN_BYTES = 4096


@dataclass(frozen=True)
class Security:
    """What the command line says of it; ``Security()`` is plaintext without a token.

    ca: PEM file of the authorities to trust instead of the system's. certificate, key: PEM files of our own,
    for mutual TLS. server_name: the name that the server's certificate must have, if it is not the
    address's. token_file: holds a bearer token. proxy: ``http://[USER:PASSWORD@]HOST:PORT`` of an HTTP proxy
    that takes CONNECT. prefix: what its flags begin with, such as ``upstream-``; address: the servers' flag.
    """

    tls: bool = False
    ca: str | None = None
    certificate: str | None = None
    key: str | None = None
    server_name: str | None = None
    token_file: str | None = None
    proxy: str | None = None
    prefix: str = ""
    address: str = "--server"

    @classmethod
    def of(cls, settings: Settings, prefix: str = "", address: str = "--server") -> Security:
        """What a program's flags say, which begin with ``prefix``."""

        def said(name: str) -> Any:
            return getattr(settings, prefix.replace("-", "_") + name)

        return cls(
            tls=said("tls"),
            ca=said("tls_ca"),
            certificate=said("tls_cert"),
            key=said("tls_key"),
            server_name=said("tls_server_name"),
            token_file=said("token_file"),
            proxy=said("proxy"),
            prefix=prefix,
            address=address,
        )

    @property
    def _flag(self) -> str:
        return f"--{self.prefix}"

    @property
    def encrypted(self) -> bool:
        """Whether the connection is TLS."""
        return self.tls or self.ca is not None or self.certificate is not None

    def check(self, host: str, insecure: bool) -> None:
        """Refuse what cannot work, or would be plaintext beyond this machine. Raises ConfigError."""
        if (self.certificate is None) != (self.key is None):
            raise ConfigError(f"{self._flag}tls-cert and {self._flag}tls-key: expected both or neither")
        if self.encrypted and insecure:
            flag = self._flag
            raise ConfigError(
                f"{flag}insecure: asks for plaintext, but {flag}tls or {flag}tls-… asks for TLS"
            )
        if not self.encrypted:
            if self.server_name is not None:
                flag = self._flag
                raise ConfigError(f"{flag}tls-server-name: expected {flag}tls or {flag}tls-ca with it")
            require_secure(self.address, host, insecure, f"{self._flag}insecure")
        self._refuse_token_in_the_clear(host)
        self._files()
        self.metadata()

    def channel(self, target: str, options: list[tuple[str, Any]]) -> Any:
        """A gRPC channel to HOST:PORT. Raises ConfigError if a file cannot be read."""
        import grpc

        options = [*options, *transport.DIRECT]
        proxy = self._proxy_for(target)
        if proxy is not None:
            self._refuse_token_in_the_clear(split_address(self.address, target)[0])
            # As gRPC's own mapper does it; that one would look at no_proxy, and connect without the proxy.
            options.append(("grpc.http_connect_server", target))
            if self.server_name is None:
                options.append(("grpc.default_authority", target))
            if proxy.login is not None:
                options.append(("grpc.http_connect_headers", f"Proxy-Authorization:Basic {proxy.login}"))
            target = proxy.target
        if not self.encrypted:
            return grpc.insecure_channel(target, options=options)
        ca, key, certificate = self._files()
        credentials = grpc.ssl_channel_credentials(ca, key, certificate)
        if self.server_name is not None:
            options = [*options, ("grpc.ssl_target_name_override", self.server_name)]
        return grpc.secure_channel(target, credentials, options=options)

    def peer_port(self, target: str) -> int:
        """The port that the connection to HOST:PORT is made to: the proxy's if it goes through one."""
        proxy = self._proxy_for(target)
        return split_address(self.address, target if proxy is None else proxy.target)[1]

    def _proxy_for(self, target: str) -> _Proxy | None:
        if self.proxy is None or is_loopback(split_address(self.address, target)[0]):
            return None
        return _Proxy.parse(self.proxy, self._flag)

    def _refuse_token_in_the_clear(self, host: str) -> None:
        if self.proxy is None:
            return
        proxy, flag = _Proxy.parse(self.proxy, self._flag), self._flag
        if self.token_file is not None and not self.encrypted and not is_loopback(host):
            raise ConfigError(
                f"{flag}proxy http://{proxy.target}: would see the token of {flag}token-file in plaintext; "
                f"expected {flag}tls or {flag}tls-ca with it"
            )

    def metadata(self) -> list[tuple[str, str]]:
        """What is sent with each call. Raises ConfigError if the token cannot be used."""
        if self.token_file is None:
            return []
        flag = f"{self._flag}token-file"
        text = _read(flag, self.token_file, TOKEN_BYTES).strip()
        if not text or not all(0x21 <= byte <= 0x7E for byte in text):
            raise ConfigError(f"{flag} {self.token_file}: expected one line of visible ASCII")
        return [(transport.AUTHORIZATION, f"Bearer {text.decode('ascii')}")]

    def _files(self) -> tuple[bytes | None, bytes | None, bytes | None]:
        return (
            _pem(f"{self._flag}tls-ca", self.ca),
            _pem(f"{self._flag}tls-key", self.key),
            _pem(f"{self._flag}tls-cert", self.certificate),
        )


@dataclass(frozen=True)
class _Proxy:
    """An HTTP proxy: HOST:PORT, and USER:PASSWORD in base64 if the URL has them."""

    target: str
    login: str | None

    @classmethod
    def parse(cls, url: str, flag: str = "--") -> _Proxy:
        """Raises ConfigError, which never repeats a password."""
        wrong = f"{flag}proxy {printable(url.rpartition('@')[2])}: expected http://[USER:PASSWORD@]HOST:PORT"
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError:
            raise ConfigError(wrong) from None
        if parts.scheme != "http" or not host or not port or parts.path not in ("", "/") or parts.query:
            raise ConfigError(wrong)
        login = None
        if parts.username is not None:
            text = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            login = b64encode(text.encode()).decode()
        return cls(f"[{host}]:{port}" if ":" in host else f"{host}:{port}", login)


def _pem(flag: str, path: str | None) -> bytes | None:
    if path is None:
        return None
    data = _read(flag, path, FILE_BYTES)
    if b"-----BEGIN " not in data:
        raise ConfigError(f"{flag} {path}: is not a PEM file")
    return data


def _read(flag: str, path: str, limit: int) -> bytes:
    return read_bounded(path, limit, name=f"{flag} {path}", expected="a file")
