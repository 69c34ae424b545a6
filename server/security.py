"""Who may call: TLS, client certificates and bearer tokens, read again when their files change.

Nothing here repeats a secret: not a log line, not a metric, not an error. A file that turns unusable changes
nothing; what was read before stays in force, and that is logged and counted once for each change.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import ssl
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc

from offramp.common.errors import AccessError, ConfigError
from offramp.common.files import read_bounded
from offramp.server.metrics import ServerMetrics

log = logging.getLogger("offramp.cloud-server")

TOKEN_CHARACTERS = range(16, 4097)
FILE_BYTES = 1 << 20
SCHEME = "Bearer "

Stamp = tuple[tuple[int, int, int, int], ...]


def _stamp(paths: Iterable[str]) -> Stamp:
    """Changes when one of these files is replaced or written, or who may read it."""
    stats = [os.stat(path) for path in paths]
    return tuple((s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for s in stats)


def _read(flag: str, path: str) -> bytes:
    return read_bounded(path, FILE_BYTES, name=f"{flag} {path}", expected="a file")


class Tokens:
    """The tokens of a file, one a line; empty lines and those that start with # do not count.

    Raises ConfigError where the file has no token, or a line that is not one.
    """

    def __init__(self, path: str, metrics: ServerMetrics) -> None:
        self._path = path
        self._metrics = metrics
        self._failure: tuple[Stamp, str] | None = None
        self._digests = self._load()
        self._stamp = _stamp([path])

    def _load(self) -> list[bytes]:
        digests = []
        for number, line in enumerate(_read("--token-file", self._path).splitlines(), 1):
            token = line.strip()
            if not token or token.startswith(b"#"):
                continue
            if len(token) not in TOKEN_CHARACTERS or not all(33 <= byte <= 126 for byte in token):
                raise ConfigError(
                    f"--token-file {self._path}: line {number} is not a token, expected "
                    f"{TOKEN_CHARACTERS[0]} … {TOKEN_CHARACTERS[-1]} visible ASCII characters"
                )
            digests.append(hashlib.sha256(token).digest())
        if not digests:
            raise ConfigError(f"--token-file {self._path}: has no token, expected one a line")
        return digests

    def refresh(self) -> None:
        """Read the file again if it has changed, or could not be read the last time."""
        stamp: Stamp = ()
        try:
            stamp = _stamp([self._path])
            if stamp == self._stamp and self._failure is None:
                return
            self._digests, self._stamp = self._load(), stamp
        except Exception as error:
            reason = str(error) if isinstance(error, ConfigError | OSError) else type(error).__name__
            if self._failure != (stamp, reason):
                self._metrics.reloads.labels("tokens", "failed").inc()
                log.error("tokens not read again, the old ones stay: %s", reason)
            self._failure = stamp, reason
            return
        self._failure = None
        self._metrics.reloads.labels("tokens", "loaded").inc()
        log.info("read %d tokens again", len(self._digests))

    def check(self, header: str | bytes | None) -> None:
        """Raises AccessError unless this ``authorization`` header shows one of the tokens.

        It takes as long for any wrong token: all are compared, by their hashes, in constant time.
        """
        if header is None:
            raise AccessError("no token, expected one as bearer token")
        text = header.encode() if isinstance(header, str) else header
        shown = hashlib.sha256(text[len(SCHEME) :].strip()).digest()
        known = False
        for digest in self._digests:
            known |= hmac.compare_digest(digest, shown)
        if not known or text[: len(SCHEME)].lower() != SCHEME.lower().encode():
            raise AccessError("the token is not known here")


@contextmanager
def _as_file(data: bytes) -> Iterator[str]:
    """A path that OpenSSL, which takes nothing else, can read these bytes from, the ones checked.

    In memory: a private key is written to no disk.
    """
    handle = os.memfd_create("offramp", os.MFD_CLOEXEC)
    try:
        with os.fdopen(os.dup(handle), "wb") as file:
            file.write(data)
        yield f"/proc/self/fd/{handle}"
    finally:
        os.close(handle)


class Certificates:
    """The server's certificate and key, and the authority of its clients; read again when they change."""

    def __init__(self, cert: str, key: str, client_ca: str | None, metrics: ServerMetrics) -> None:
        self._cert, self._key, self._client_ca = cert, key, client_ca
        self._metrics = metrics
        # gRPC asks from threads of its own.
        self._lock = threading.Lock()
        self._stamp = self._files_stamp()
        self._current = self._load()

    def credentials(self) -> grpc.ServerCredentials:
        """For ``add_secure_port``. gRPC asks for the certificate again at each handshake."""
        return grpc.dynamic_ssl_server_credentials(
            self._current, self._fetch, require_client_authentication=self._client_ca is not None
        )

    def _files_stamp(self) -> Stamp:
        paths = [self._cert, self._key, *([self._client_ca] if self._client_ca is not None else [])]
        try:
            return _stamp(paths)
        except OSError:
            return ()

    def _load(self) -> Any:
        certificate, private = _read("--tls-cert", self._cert), _read("--tls-key", self._key)
        # OpenSSL's own messages could reveal parts of the key: name the file only.
        try:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            with _as_file(certificate) as cert, _as_file(private) as key:
                context.load_cert_chain(cert, key, password=lambda: b"")
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or "unusable"
            raise ConfigError(
                f"--tls-cert {self._cert}, --tls-key {self._key}: {reason}, expected PEM files that belong "
                "together, the key without a password"
            ) from None
        authority = None
        if self._client_ca is not None:
            authority = _read("--tls-client-ca", self._client_ca)
            try:
                context.load_verify_locations(cadata=authority.decode())
            except (ValueError, OSError):
                raise ConfigError(f"--tls-client-ca {self._client_ca}: expected PEM certificates") from None
        return grpc.ssl_server_certificate_configuration(
            [(private, certificate)], root_certificates=authority
        )

    def _fetch(self) -> Any:
        self._metrics.tls_handshakes.inc()
        with self._lock:
            stamp = self._files_stamp()
            if stamp == self._stamp:
                return None
            self._stamp = stamp
            try:
                self._current = self._load()
            except Exception as error:  # whatever it is, gRPC would drop it without a word
                self._metrics.reloads.labels("certificate", "failed").inc()
                reason = error if isinstance(error, ConfigError) else type(error).__name__
                log.error("certificate not read again, the old one stays: %s", reason)
                return None
            self._metrics.reloads.labels("certificate", "loaded").inc()
            log.info("read the certificate again")
            return self._current
