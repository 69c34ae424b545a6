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
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any, cast

import grpc
import grpc.aio

from offramp.common import transport
from offramp.common.errors import AccessError, ConfigError
from offramp.server.metrics import ServerMetrics

log = logging.getLogger("offramp.cloud-server")

TOKEN_CHARACTERS = range(16, 4097)
TOKEN_FILE_BYTES = 1 << 20
SCHEME = "Bearer "
PUBLIC = "/grpc.health.v1.Health/"
"""Load balancers ask for health, and have no token."""

Stamp = tuple[tuple[int, int, int], ...]


def _stamp(paths: Iterable[str]) -> Stamp:
    """Changes when one of these files is replaced or written."""
    stats = [os.stat(path) for path in paths]
    return tuple((s.st_ino, s.st_size, s.st_mtime_ns) for s in stats)


def _read(flag: str, path: str) -> bytes:
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(f"{flag} {path}: {error.strerror}, expected a file") from None
    if len(data) > TOKEN_FILE_BYTES:
        raise ConfigError(f"{flag} {path}: has {len(data)} bytes, expected {TOKEN_FILE_BYTES} at most")
    return data


class Tokens:
    """The tokens of a file, one a line; empty lines and those that start with # do not count.

    Raises ConfigError where the file has none, or one that is no token.
    """

    def __init__(self, path: str, metrics: ServerMetrics) -> None:
        self._path = path
        self._metrics = metrics
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
                    f"--token-file {self._path}: line {number} is no token, expected "
                    f"{TOKEN_CHARACTERS[0]} … {TOKEN_CHARACTERS[-1]} visible ASCII characters"
                )
            digests.append(hashlib.sha256(token).digest())
        if not digests:
            raise ConfigError(f"--token-file {self._path}: has no token, expected one a line")
        return digests

    def refresh(self) -> None:
        """Read the file again if it has changed."""
        try:
            stamp = _stamp([self._path])
            if stamp == self._stamp:
                return
            self._stamp = stamp
            self._digests = self._load()
        except (ConfigError, OSError) as error:
            if self._stamp != ():
                self._stamp = () if isinstance(error, OSError) else self._stamp
                self._metrics.reloads.labels("tokens", "failed").inc()
                log.error("tokens not read again, the old ones stay: %s", error)
            return
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


class Guard(grpc.aio.ServerInterceptor):
    """Lets nobody without a token past, but to the health service."""

    def __init__(self, tokens: Tokens, metrics: ServerMetrics) -> None:
        self._tokens = tokens
        self._metrics = metrics

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        details: grpc.HandlerCallDetails,
    ) -> Any:
        """See grpc.aio.ServerInterceptor."""
        if details.method.startswith(PUBLIC):
            return await continuation(details)
        shown = [value for key, value in details.invocation_metadata or () if key == transport.AUTHORIZATION]
        try:
            self._tokens.check(shown[0] if len(shown) == 1 else None)
        except AccessError as error:
            self._metrics.streams_aborted.labels(error.grpc_status).inc()
            return await self._refusal(continuation, details, error)
        return await continuation(details)

    async def _refusal(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        details: grpc.HandlerCallDetails,
        error: AccessError,
    ) -> Any:
        handler = await continuation(details)
        status = grpc.StatusCode[error.grpc_status]

        async def refuse(_: object, context: grpc.aio.ServicerContext[Any, Any]) -> None:
            log.warning("%s from %s: %s", error.grpc_status, context.peer(), error)
            await context.abort(status, f"{transport.SAID}{error}")

        if handler is not None and not handler.response_streaming and not handler.request_streaming:
            return grpc.unary_unary_rpc_method_handler(cast(Any, refuse))
        return grpc.stream_stream_rpc_method_handler(cast(Any, refuse))


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
        # OpenSSL's own messages could tell of the key; which file it is must do.
        try:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(self._cert, self._key, password=lambda: b"")
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
        pair = (_read("--tls-key", self._key), _read("--tls-cert", self._cert))
        return grpc.ssl_server_certificate_configuration([pair], root_certificates=authority)

    def _fetch(self) -> Any:
        self._metrics.tls_handshakes.inc()
        with self._lock:
            stamp = self._files_stamp()
            if stamp == self._stamp:
                return None
            self._stamp = stamp
            try:
                self._current = self._load()
            except ConfigError as error:
                self._metrics.reloads.labels("certificate", "failed").inc()
                log.error("certificate not read again, the old one stays: %s", error)
                return None
            self._metrics.reloads.labels("certificate", "loaded").inc()
            log.info("read the certificate again")
            return self._current
