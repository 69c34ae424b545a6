"""How the device's connection is secured: plaintext, TLS or mutual TLS, and a bearer token.

Rules this module keeps:
- Files are read again for each connection: a rotated certificate or token is used from the next one on.
- Nothing that is secret reaches a message, a log or a metric: errors name files, never their contents.
- A token is one line of visible ASCII; anything else is refused before it is sent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from offramp.common import transport
from offramp.common.config import require_secure
from offramp.common.errors import ConfigError
from offramp.common.files import read_bounded

FILE_BYTES = 1 << 20
TOKEN_BYTES = 4096


@dataclass(frozen=True)
class Security:
    """What the command line says of it; ``Security()`` is plaintext without a token.

    ca: PEM file of the authorities to trust instead of the system's. certificate, key: PEM files of the
    device's own, for mutual TLS. server_name: the name that the server's certificate must have, where it is
    not the address's. token_file: holds a bearer token.
    """

    tls: bool = False
    ca: str | None = None
    certificate: str | None = None
    key: str | None = None
    server_name: str | None = None
    token_file: str | None = None

    @property
    def encrypted(self) -> bool:
        """Whether the connection is TLS."""
        return self.tls or self.ca is not None or self.certificate is not None

    def check(self, host: str, insecure: bool) -> None:
        """Refuse what cannot work, or would be plaintext beyond this machine. Raises ConfigError."""
        if (self.certificate is None) != (self.key is None):
            raise ConfigError("--tls-cert and --tls-key: expected both or neither")
        if self.encrypted and insecure:
            raise ConfigError("--insecure: asks for plaintext, but --tls or --tls-… asks for TLS")
        if not self.encrypted:
            if self.server_name is not None:
                raise ConfigError("--tls-server-name: expected --tls or --tls-ca with it")
            require_secure("--server", host, insecure)
        self._files()
        self.metadata()

    def channel(self, target: str, options: list[tuple[str, Any]]) -> Any:
        """A gRPC channel. Raises ConfigError where a file cannot be read."""
        import grpc

        if not self.encrypted:
            return grpc.insecure_channel(target, options=options)
        ca, key, certificate = self._files()
        credentials = grpc.ssl_channel_credentials(ca, key, certificate)
        if self.server_name is not None:
            options = [*options, ("grpc.ssl_target_name_override", self.server_name)]
        return grpc.secure_channel(target, credentials, options=options)

    def metadata(self) -> list[tuple[str, str]]:
        """What is sent with each call. Raises ConfigError where the token cannot be used."""
        if self.token_file is None:
            return []
        text = _read("--token-file", self.token_file, TOKEN_BYTES).strip()
        if not text or not all(0x21 <= byte <= 0x7E for byte in text):
            raise ConfigError(f"--token-file {self.token_file}: expected one line of visible ASCII")
        return [(transport.AUTHORIZATION, f"Bearer {text.decode('ascii')}")]

    def _files(self) -> tuple[bytes | None, bytes | None, bytes | None]:
        return (
            _pem("--tls-ca", self.ca),
            _pem("--tls-key", self.key),
            _pem("--tls-cert", self.certificate),
        )


def _pem(flag: str, path: str | None) -> bytes | None:
    if path is None:
        return None
    data = _read(flag, path, FILE_BYTES)
    if b"-----BEGIN " not in data:
        raise ConfigError(f"{flag} {path}: is no PEM file")
    return data


def _read(flag: str, path: str, limit: int) -> bytes:
    return read_bounded(path, limit, name=f"{flag} {path}", expected="a file")
