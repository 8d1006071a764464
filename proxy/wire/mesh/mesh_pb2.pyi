# ruff: noqa
# fmt: off
# mypy: disable-error-code="type-arg"
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

BODY_CODEC_HESSIAN2: BodyCodec
BODY_CODEC_JSON: BodyCodec
BODY_CODEC_MSGPACK: BodyCodec
BODY_CODEC_RAW: BodyCodec
DESCRIPTOR: _descriptor.FileDescriptor
GO_AWAY_CODE_FLOOD: GoAwayCode
GO_AWAY_CODE_FLOW_CONTROL: GoAwayCode
GO_AWAY_CODE_NO_ERROR: GoAwayCode
GO_AWAY_CODE_PROTOCOL_ERROR: GoAwayCode
GO_AWAY_CODE_TIMEOUT: GoAwayCode
GO_AWAY_CODE_TOO_LARGE: GoAwayCode
GO_AWAY_CODE_TOO_MANY_STREAMS: GoAwayCode
GO_AWAY_CODE_VERSION_MISMATCH: GoAwayCode

class GoAway(_message.Message):
    __slots__ = ["code", "reason"]
    CODE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    code: GoAwayCode
    reason: str
    def __init__(self, code: _Optional[_Union[GoAwayCode, str]] = ..., reason: _Optional[str] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ["agent", "app", "features", "max_body", "max_header", "max_streams", "max_version", "min_version", "stream_window", "zone"]
    AGENT_FIELD_NUMBER: _ClassVar[int]
    APP_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    MAX_BODY_FIELD_NUMBER: _ClassVar[int]
    MAX_HEADER_FIELD_NUMBER: _ClassVar[int]
    MAX_STREAMS_FIELD_NUMBER: _ClassVar[int]
    MAX_VERSION_FIELD_NUMBER: _ClassVar[int]
    MIN_VERSION_FIELD_NUMBER: _ClassVar[int]
    STREAM_WINDOW_FIELD_NUMBER: _ClassVar[int]
    ZONE_FIELD_NUMBER: _ClassVar[int]
    agent: str
    app: str
    features: _containers.RepeatedScalarFieldContainer[str]
    max_body: int
    max_header: int
    max_streams: int
    max_version: int
    min_version: int
    stream_window: int
    zone: str
    def __init__(self, min_version: _Optional[int] = ..., max_version: _Optional[int] = ..., features: _Optional[_Iterable[str]] = ..., max_streams: _Optional[int] = ..., stream_window: _Optional[int] = ..., max_body: _Optional[int] = ..., max_header: _Optional[int] = ..., agent: _Optional[str] = ..., app: _Optional[str] = ..., zone: _Optional[str] = ...) -> None: ...

class RequestHeader(_message.Message):
    __slots__ = ["attempt", "body_length", "codec", "deadline_ms", "group", "method", "props", "service", "source_app", "source_zone", "traceparent", "tracestate"]
    class PropsEntry(_message.Message):
        __slots__ = ["key", "value"]
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    BODY_LENGTH_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_MS_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    PROPS_FIELD_NUMBER: _ClassVar[int]
    SERVICE_FIELD_NUMBER: _ClassVar[int]
    SOURCE_APP_FIELD_NUMBER: _ClassVar[int]
    SOURCE_ZONE_FIELD_NUMBER: _ClassVar[int]
    TRACEPARENT_FIELD_NUMBER: _ClassVar[int]
    TRACESTATE_FIELD_NUMBER: _ClassVar[int]
    attempt: int
    body_length: int
    codec: BodyCodec
    deadline_ms: int
    group: str
    method: str
    props: _containers.ScalarMap[str, str]
    service: str
    source_app: str
    source_zone: str
    traceparent: str
    tracestate: str
    def __init__(self, service: _Optional[str] = ..., method: _Optional[str] = ..., group: _Optional[str] = ..., codec: _Optional[_Union[BodyCodec, str]] = ..., deadline_ms: _Optional[int] = ..., attempt: _Optional[int] = ..., traceparent: _Optional[str] = ..., tracestate: _Optional[str] = ..., source_app: _Optional[str] = ..., source_zone: _Optional[str] = ..., props: _Optional[_Mapping[str, str]] = ..., body_length: _Optional[int] = ...) -> None: ...

class ResponseHeader(_message.Message):
    __slots__ = ["body_length", "codec", "ec", "em", "load", "props", "retryable"]
    class PropsEntry(_message.Message):
        __slots__ = ["key", "value"]
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    BODY_LENGTH_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    EC_FIELD_NUMBER: _ClassVar[int]
    EM_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    PROPS_FIELD_NUMBER: _ClassVar[int]
    RETRYABLE_FIELD_NUMBER: _ClassVar[int]
    body_length: int
    codec: BodyCodec
    ec: int
    em: str
    load: int
    props: _containers.ScalarMap[str, str]
    retryable: bool
    def __init__(self, ec: _Optional[int] = ..., em: _Optional[str] = ..., codec: _Optional[_Union[BodyCodec, str]] = ..., retryable: bool = ..., load: _Optional[int] = ..., props: _Optional[_Mapping[str, str]] = ..., body_length: _Optional[int] = ...) -> None: ...

class Window(_message.Message):
    __slots__ = ["credit"]
    CREDIT_FIELD_NUMBER: _ClassVar[int]
    credit: int
    def __init__(self, credit: _Optional[int] = ...) -> None: ...

class BodyCodec(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = []

class GoAwayCode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = []
