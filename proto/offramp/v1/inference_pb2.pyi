from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Codec(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CODEC_BUNDLE: _ClassVar[Codec]
    CODEC_RAW: _ClassVar[Codec]
    CODEC_PICTURE: _ClassVar[Codec]
CODEC_BUNDLE: Codec
CODEC_RAW: Codec
CODEC_PICTURE: Codec

class DeviceMessage(_message.Message):
    __slots__ = ("hello", "frames", "first_sequence", "codecs", "traces", "deadlines_ms")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    FIRST_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    CODECS_FIELD_NUMBER: _ClassVar[int]
    TRACES_FIELD_NUMBER: _ClassVar[int]
    DEADLINES_MS_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    frames: _containers.RepeatedScalarFieldContainer[bytes]
    first_sequence: int
    codecs: _containers.RepeatedScalarFieldContainer[Codec]
    traces: _containers.RepeatedScalarFieldContainer[bytes]
    deadlines_ms: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., frames: _Optional[_Iterable[bytes]] = ..., first_sequence: _Optional[int] = ..., codecs: _Optional[_Iterable[_Union[Codec, str]]] = ..., traces: _Optional[_Iterable[bytes]] = ..., deadlines_ms: _Optional[_Iterable[int]] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("protocol_version", "bundle_digest", "segment", "deadline_ms")
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    SEGMENT_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_MS_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    bundle_digest: bytes
    segment: str
    deadline_ms: int
    def __init__(self, protocol_version: _Optional[int] = ..., bundle_digest: _Optional[bytes] = ..., segment: _Optional[str] = ..., deadline_ms: _Optional[int] = ...) -> None: ...

class ServerMessage(_message.Message):
    __slots__ = ("accepted", "replies", "draining")
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    REPLIES_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    accepted: Accepted
    replies: _containers.RepeatedCompositeFieldContainer[Reply]
    draining: Draining
    def __init__(self, accepted: _Optional[_Union[Accepted, _Mapping]] = ..., replies: _Optional[_Iterable[_Union[Reply, _Mapping]]] = ..., draining: _Optional[_Union[Draining, _Mapping]] = ...) -> None: ...

class Accepted(_message.Message):
    __slots__ = ("limits",)
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    limits: Limits
    def __init__(self, limits: _Optional[_Union[Limits, _Mapping]] = ...) -> None: ...

class Limits(_message.Message):
    __slots__ = ("frames_in_flight", "message_bytes", "frames_per_message", "picture_bytes")
    FRAMES_IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    FRAMES_PER_MESSAGE_FIELD_NUMBER: _ClassVar[int]
    PICTURE_BYTES_FIELD_NUMBER: _ClassVar[int]
    frames_in_flight: int
    message_bytes: int
    frames_per_message: int
    picture_bytes: int
    def __init__(self, frames_in_flight: _Optional[int] = ..., message_bytes: _Optional[int] = ..., frames_per_message: _Optional[int] = ..., picture_bytes: _Optional[int] = ...) -> None: ...

class Reply(_message.Message):
    __slots__ = ("sequence", "class_index", "probability", "server_time_us", "error", "part", "fallback")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    CLASS_INDEX_FIELD_NUMBER: _ClassVar[int]
    PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    SERVER_TIME_US_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    PART_FIELD_NUMBER: _ClassVar[int]
    FALLBACK_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    class_index: int
    probability: float
    server_time_us: int
    error: FrameError
    part: int
    fallback: bool
    def __init__(self, sequence: _Optional[int] = ..., class_index: _Optional[int] = ..., probability: _Optional[float] = ..., server_time_us: _Optional[int] = ..., error: _Optional[_Union[FrameError, _Mapping]] = ..., part: _Optional[int] = ..., fallback: bool = ...) -> None: ...

class FrameError(_message.Message):
    __slots__ = ("reason", "message", "retry_after_ms")
    class Reason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        REASON_UNSPECIFIED: _ClassVar[FrameError.Reason]
        REASON_CHECKSUM: _ClassVar[FrameError.Reason]
        REASON_SEQUENCE: _ClassVar[FrameError.Reason]
        REASON_CODEC: _ClassVar[FrameError.Reason]
        REASON_PAYLOAD: _ClassVar[FrameError.Reason]
        REASON_OVERLOADED: _ClassVar[FrameError.Reason]
        REASON_INTERNAL: _ClassVar[FrameError.Reason]
        REASON_EXPIRED: _ClassVar[FrameError.Reason]
    REASON_UNSPECIFIED: FrameError.Reason
    REASON_CHECKSUM: FrameError.Reason
    REASON_SEQUENCE: FrameError.Reason
    REASON_CODEC: FrameError.Reason
    REASON_PAYLOAD: FrameError.Reason
    REASON_OVERLOADED: FrameError.Reason
    REASON_INTERNAL: FrameError.Reason
    REASON_EXPIRED: FrameError.Reason
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_MS_FIELD_NUMBER: _ClassVar[int]
    reason: FrameError.Reason
    message: str
    retry_after_ms: int
    def __init__(self, reason: _Optional[_Union[FrameError.Reason, str]] = ..., message: _Optional[str] = ..., retry_after_ms: _Optional[int] = ...) -> None: ...

class Draining(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DescribeRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DescribeResponse(_message.Message):
    __slots__ = ("bundles", "protocol_version", "version")
    BUNDLES_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    bundles: _containers.RepeatedCompositeFieldContainer[BundleDescription]
    protocol_version: int
    version: str
    def __init__(self, bundles: _Optional[_Iterable[_Union[BundleDescription, _Mapping]]] = ..., protocol_version: _Optional[int] = ..., version: _Optional[str] = ...) -> None: ...

class BundleDescription(_message.Message):
    __slots__ = ("digest", "name", "segments", "activation_shape", "classes")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    SEGMENTS_FIELD_NUMBER: _ClassVar[int]
    ACTIVATION_SHAPE_FIELD_NUMBER: _ClassVar[int]
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    digest: bytes
    name: str
    segments: _containers.RepeatedScalarFieldContainer[str]
    activation_shape: _containers.RepeatedScalarFieldContainer[int]
    classes: int
    def __init__(self, digest: _Optional[bytes] = ..., name: _Optional[str] = ..., segments: _Optional[_Iterable[str]] = ..., activation_shape: _Optional[_Iterable[int]] = ..., classes: _Optional[int] = ...) -> None: ...
