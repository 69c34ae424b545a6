"""Every error that Offramp raises on purpose, its exit code and its gRPC status.

OfframpError                      exit  gRPC status
├── ConfigError                      2  INVALID_ARGUMENT     a flag, a setting or a recipe is wrong
├── DataError                        5  INVALID_ARGUMENT     an image or a data set cannot be used
├── OutputError                    130  ABORTED              whoever takes the results is gone, or full
├── StoppedError                   130  ABORTED              we were asked to end before we were ready
├── BundleError                      4  FAILED_PRECONDITION  a bundle is damaged, hostile or unsupported
│   └── CodebookError                4  FAILED_PRECONDITION  its code lengths are not a prefix code
├── PeerError                        6  INVALID_ARGUMENT     the other side broke the protocol
│   ├── MessageError                 6  INVALID_ARGUMENT     bytes that are not a message, or too many
│   ├── FrameError                   6  INVALID_ARGUMENT     one frame is bad; the stream goes on
│   │   ├── ChecksumError            6  DATA_LOSS
│   │   ├── SequenceError            6  OUT_OF_RANGE
│   │   ├── CodecError               6  UNIMPLEMENTED        a codec id that this side does not know
│   │   └── PayloadError             6  INVALID_ARGUMENT     coded bytes that are not an activation
│   ├── MismatchError                6  FAILED_PRECONDITION  other protocol version, bundle or segment
│   └── AccessError                  6  UNAUTHENTICATED      no token, or one that is not known
└── UnavailableError                 3  UNAVAILABLE          no server, or it cannot take more
    ├── AddressError                 7  UNAVAILABLE          a port cannot be bound
    ├── OverloadError                3  RESOURCE_EXHAUSTED   a stated limit is reached
    └── ExpiredError                 3  DEADLINE_EXCEEDED    a frame waited longer than its device does

What we did wrong is a ``ConfigError``, ``DataError`` or ``BundleError``; what the peer did wrong is a
``PeerError``. Anything else that escapes is a bug: exit code 1, INTERNAL, and only its type is sent to
the peer.

A status in answer to a hello is read by its meaning, whoever says it: UNAUTHENTICATED, PERMISSION_DENIED,
FAILED_PRECONDITION and INVALID_ARGUMENT are a ``PeerError`` (6), since the same hello would be refused again;
a server that is not ours and a proxy may say them too. Later on a stream only a detail that begins with
``offramp: `` is one. Any other end is an ``UnavailableError`` (3): a network, a proxy or a crash.
"""

from enum import IntEnum


def printable(text: str, limit: int = 200) -> str:
    """Text that a stranger chose, fit for a one-line message: control characters escaped, then cut."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[:limit])
    return shown if len(text) <= limit else f"{shown}…"


class ExitCode(IntEnum):
    """What a process's exit status means; the same for all three programs."""

    OK = 0
    BUG = 1
    CONFIG = 2
    UNAVAILABLE = 3
    """The run ended, but the server did not answer for every image that needed it."""
    BUNDLE = 4
    DATA = 5
    """The run ended, but at least one image could not be read."""
    PEER = 6
    ADDRESS = 7
    INTERRUPTED = 130


class OfframpError(Exception):
    """Root of the tree. Its message is one line that names what is wrong and what was expected."""

    exit_code: ExitCode = ExitCode.BUG
    grpc_status: str = "INTERNAL"
    """Name of a ``grpc.StatusCode`` member; a string, so that this module needs no grpc."""


class ConfigError(OfframpError):
    """A flag, a setting or a recipe is wrong."""

    exit_code = ExitCode.CONFIG
    grpc_status = "INVALID_ARGUMENT"


class DataError(OfframpError):
    """An image or a data set cannot be used."""

    exit_code = ExitCode.DATA
    grpc_status = "INVALID_ARGUMENT"


class OutputError(OfframpError):
    """Results cannot be written: a closed pipe, a full disk."""

    exit_code = ExitCode.INTERRUPTED
    grpc_status = "ABORTED"


class StoppedError(OfframpError):
    """A signal came while a bundle was loaded."""

    exit_code = ExitCode.INTERRUPTED
    grpc_status = "ABORTED"


class BundleError(OfframpError):
    """A bundle is damaged, hostile, or of a version that this release does not read."""

    exit_code = ExitCode.BUNDLE
    grpc_status = "FAILED_PRECONDITION"


class CodebookError(BundleError):
    """Code lengths that do not form a complete or usable prefix code."""


class PeerError(OfframpError):
    """The other side of the connection broke the protocol."""

    exit_code = ExitCode.PEER
    grpc_status = "INVALID_ARGUMENT"


class MessageError(PeerError):
    """Bytes that are not a message of the protocol, a message out of order, or one over the size limit."""


class FrameError(PeerError):
    """One frame is bad. It is answered with an error of its own; its stream goes on."""


class ChecksumError(FrameError):
    """The frame's CRC-32 does not match its sequence number, codec and payload."""

    grpc_status = "DATA_LOSS"


class SequenceError(FrameError):
    """A sequence number that was already used on this stream, or lies outside its range."""

    grpc_status = "OUT_OF_RANGE"


class CodecError(FrameError):
    """A codec id that this side does not know."""

    grpc_status = "UNIMPLEMENTED"


class PayloadError(FrameError):
    """A payload that does not decode to exactly one activation."""


class MismatchError(PeerError):
    """The two sides run different protocol versions, bundles or segments."""

    grpc_status = "FAILED_PRECONDITION"


class AccessError(PeerError):
    """The caller did not show a token that is known here. The message never repeats what it showed."""

    grpc_status = "UNAUTHENTICATED"


class UnavailableError(OfframpError):
    """No server answers, or the one that does cannot take more."""

    exit_code = ExitCode.UNAVAILABLE
    grpc_status = "UNAVAILABLE"


class AddressError(UnavailableError):
    """An address cannot be bound: in use, or not ours."""

    exit_code = ExitCode.ADDRESS


class OverloadError(UnavailableError):
    """A stated limit (streams, frames in flight, queue) is reached; nothing was accepted.

    retry_after_ms: when to offer again; 0 where nothing is known of that.
    """

    grpc_status = "RESOURCE_EXHAUSTED"

    def __init__(self, message: str, retry_after_ms: int = 0) -> None:
        super().__init__(message)
        self.retry_after_ms = retry_after_ms


class ExpiredError(UnavailableError):
    """A frame waited longer than its device waits for the answer, and was dropped before the tail."""

    grpc_status = "DEADLINE_EXCEEDED"
