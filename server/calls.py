"""Every call of every method: who may, how many, for how long, and how each ended.

All methods are registered as streams of bytes, which is the same on the wire. A call whose request never
comes, is malformed or belongs to no method is then ours to end, to count and to log.

Rules:
- A call is counted once in ``offramp_server_calls_total``, with the status it ended with.
- What a stranger does costs a bounded number of log lines; those left out are counted in the next one.
- Calls beside ``Offload`` are ``SPARE_CALLS`` at most, before any token is checked.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import grpc
import grpc.aio
from google.protobuf.message import Message

from offramp.common.errors import MessageError, OfframpError, OverloadError
from offramp.common.wire import frame, transport
from offramp.server.metrics import ServerMetrics
from offramp.server.security import Tokens

log = logging.getLogger("offramp.cloud-server")

Context = grpc.aio.ServicerContext[bytes, bytes]
M = TypeVar("M", bound=Message)
Serve = Callable[[Context], Awaitable[None]]

SPARE_CALLS = 256
"""Calls of all methods but ``Offload`` that may be open: what health checks and tools need, many times."""
REQUEST_BYTES = transport.MESSAGE_BYTES_MIN
"""Largest request of these methods."""
LINES, LINES_SECONDS = 10, 10.0
"""Lines of one kind in the log, and in how many seconds."""
RETRY_MS = 1_000
"""When a call that is one too many may come again."""
OTHER = "other"
"""What a method that is not ours is called in metrics and log: its name is the caller's."""


class UnknownMethodError(OfframpError):
    """A method that this server does not have."""

    grpc_status = "UNIMPLEMENTED"


class NotFoundError(OfframpError):
    """A service that this server does not have."""

    grpc_status = "NOT_FOUND"


class DroppedCall(asyncio.CancelledError):
    """A call that gets no status, since no status would arrive; it is counted and logged already."""


def internal(error: Exception) -> OfframpError:
    """The error that the peer gets for a bug."""
    return OfframpError(f"internal error ({type(error).__name__})")


class QuietLog:
    """At most ``LINES`` lines of a kind in ``LINES_SECONDS``; kinds come from a fixed set."""

    def __init__(self) -> None:
        self._kinds: dict[str, tuple[float, int]] = {}
        """When this kind's period began, and its lines in it."""

    def warning(self, kind: str, text: str, *arguments: object) -> None:
        """Log it, or count it for the line that comes next."""
        self._log(logging.WARNING, kind, text, *arguments)

    def info(self, kind: str, text: str, *arguments: object) -> None:
        """The same, at another level."""
        self._log(logging.INFO, kind, text, *arguments)

    def _log(self, level: int, kind: str, text: str, *arguments: object) -> None:
        now = time.monotonic()
        began, lines = self._kinds.get(kind, (now, 0))
        left_out = 0
        if now - began > LINES_SECONDS:
            left_out = max(0, lines - LINES)
            began, lines = now, 0
        self._kinds[kind] = began, lines + 1
        if lines < LINES:
            more = f" ({left_out} more like it before)" if left_out else ""
            log.log(level, text + more, *arguments)


@dataclass(frozen=True)
class Method:
    """One method of the server."""

    path: str
    serve: Serve
    public: bool = False
    """Needs no token."""
    limit: int = SPARE_CALLS
    """Calls of it that may be open at once."""
    own_limit: bool = False
    """It limits its calls itself; they are not among the ``SPARE_CALLS``."""

    @property
    def name(self) -> str:
        """Its last part."""
        return self.path.rpartition("/")[2]


class Calls(grpc.GenericRpcHandler):
    """Hands calls to their methods."""

    def __init__(self, metrics: ServerMetrics, tokens: Tokens | None, quiet: QuietLog) -> None:
        self._metrics = metrics
        self._tokens = tokens
        self._quiet = quiet
        self._handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
        self._open: dict[str, int] = {}
        self._spare = 0
        self._other = self._handler(Method("/" + OTHER, _unknown))

    def add(self, *methods: Method) -> None:
        """Serve these methods too."""
        for method in methods:
            self._handlers[method.path] = self._handler(method)

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any]:
        """See grpc.GenericRpcHandler."""
        return self._handlers.get(details.method, self._other)

    def _handler(self, method: Method) -> grpc.RpcMethodHandler[Any, Any]:
        async def run(_: object, context: Context) -> None:
            await self._run(method, context)

        return grpc.stream_stream_rpc_method_handler(cast(Any, run))

    async def _run(self, method: Method, context: Context) -> None:
        status = "CANCELLED"
        self._metrics.open_calls.inc()
        try:
            await self._serve(method, context)
            status = "OK"
        except OfframpError as error:
            status = error.grpc_status
            await end(context, error, self._metrics, self._quiet)
        except DroppedCall:
            raise
        except asyncio.CancelledError:
            # gRPC does not say which of these it was.
            why = "its peer left, or sent a message longer than gRPC takes here"
            self._quiet.info(status, "CANCELLED %s of %s: %s", method.name, context.peer(), why)
            raise
        except Exception as error:
            log.exception("%s of %s", method.name, context.peer())
            status = OfframpError.grpc_status
            await end(context, internal(error), self._metrics, self._quiet)
        finally:
            self._metrics.open_calls.dec()
            self._metrics.calls.labels(method.name, status).inc()

    async def _serve(self, method: Method, context: Context) -> None:
        """Serve it if it may be. A call that is refused does not count as open while it ends."""
        if not method.public and self._tokens is not None:
            self._check_token(context)
        open_calls = self._open.get(method.name, 0)
        if open_calls >= method.limit or (self._spare >= SPARE_CALLS and not method.own_limit):
            raise OverloadError(f"{open_calls} calls of {method.name} are open already", RETRY_MS)
        self._open[method.name] = open_calls + 1
        self._spare += not method.own_limit
        try:
            await method.serve(context)
        finally:
            self._open[method.name] -= 1
            self._spare -= not method.own_limit

    def _check_token(self, context: Context) -> None:
        assert self._tokens is not None
        shown = [
            value for key, value in context.invocation_metadata() or () if key == transport.AUTHORIZATION
        ]
        self._tokens.check(shown[0] if len(shown) == 1 else None)


async def _unknown(_: Context) -> None:
    raise UnknownMethodError("no such method here, expected one that reflection lists")


async def end(context: Context, error: OfframpError, metrics: ServerMetrics, quiet: QuietLog) -> None:
    """End a call with an error; the one place that makes a gRPC status of one. It does not return."""
    metrics.streams_aborted.labels(error.grpc_status).inc()
    quiet.warning(error.grpc_status, "%s from %s: %s", error.grpc_status, context.peer(), error)
    trailing: tuple[tuple[str, str], ...] = ()
    if isinstance(error, OverloadError) and error.retry_after_ms:
        trailing = ((transport.RETRY_PUSHBACK, str(error.retry_after_ms)),)
    try:
        await context.abort(grpc.StatusCode[error.grpc_status], f"{transport.SAID}{error}", trailing)
    except grpc.aio.AbortError:
        raise
    except Exception as gone:  # as in request
        raise asyncio.CancelledError from gone


async def request(context: Context, kind: type[M], seconds: float) -> M | None:
    """The next request of a call; None after the last.

    Raises MessageError where it does not come in time, is too long, or is not such a message.
    """
    try:
        data: Any = await asyncio.wait_for(context.read(), seconds)
    except TimeoutError:
        raise MessageError(f"no request within {seconds:g} s") from None
    except Exception as error:
        # The call or the server has ended. gRPC has no public class for that.
        raise asyncio.CancelledError from error
    if data is grpc.aio.EOF:
        return None
    if len(data) > REQUEST_BYTES:
        raise MessageError(f"a request of {len(data)} bytes, expected {REQUEST_BYTES} at most")
    return frame.parse(kind, data)


async def only_request(context: Context, kind: type[M], seconds: float) -> M:
    """The only request of a call. Raises MessageError as ``request`` does, and where there is no request."""
    found = await request(context, kind, seconds)
    if found is None:
        raise MessageError("the call ended before its request")
    return found


async def write(context: Context, message: Message, seconds: float) -> None:
    """Send an answer. Where it is not taken in time the call is dropped: no status would arrive either."""
    try:
        await asyncio.wait_for(context.write(message.SerializeToString()), seconds)
    except TimeoutError:
        raise DroppedCall from None
    except Exception as error:
        # As in request.
        raise asyncio.CancelledError from error


def methods(service: str, serve: Mapping[str, Serve], **options: Any) -> list[Method]:
    """The methods of a service, by name, with the same options."""
    return [Method(f"/{service}/{name}", each, **options) for name, each in serve.items()]
