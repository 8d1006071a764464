# ruff: noqa
# fmt: off
# mypy: disable-error-code="type-arg"
from proxy.wire.mesh import mesh_pb2 as _mesh_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Budget(_message.Message):
    __slots__ = ["at_s", "tokens"]
    AT_S_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    at_s: float
    tokens: float
    def __init__(self, tokens: _Optional[float] = ..., at_s: _Optional[float] = ...) -> None: ...

class Calls(_message.Message):
    __slots__ = ["next_id", "placed", "waiting"]
    NEXT_ID_FIELD_NUMBER: _ClassVar[int]
    PLACED_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    next_id: int
    placed: _containers.RepeatedScalarFieldContainer[int]
    waiting: _containers.RepeatedCompositeFieldContainer[Waiting]
    def __init__(self, next_id: _Optional[int] = ..., placed: _Optional[_Iterable[int]] = ..., waiting: _Optional[_Iterable[_Union[Waiting, _Mapping]]] = ...) -> None: ...

class Connection(_message.Message):
    __slots__ = ["calls", "failed", "format", "got_goaway", "guard", "inbox", "outbox", "owed", "peer", "pulse", "said_goaway", "settings", "unread", "unsent"]
    CALLS_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    GOT_GOAWAY_FIELD_NUMBER: _ClassVar[int]
    GUARD_FIELD_NUMBER: _ClassVar[int]
    INBOX_FIELD_NUMBER: _ClassVar[int]
    OUTBOX_FIELD_NUMBER: _ClassVar[int]
    OWED_FIELD_NUMBER: _ClassVar[int]
    PEER_FIELD_NUMBER: _ClassVar[int]
    PULSE_FIELD_NUMBER: _ClassVar[int]
    SAID_GOAWAY_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    UNREAD_FIELD_NUMBER: _ClassVar[int]
    UNSENT_FIELD_NUMBER: _ClassVar[int]
    calls: Calls
    failed: bool
    format: int
    got_goaway: bool
    guard: Guard
    inbox: Inbox
    outbox: Outbox
    owed: Owed
    peer: _mesh_pb2.Hello
    pulse: Pulse
    said_goaway: bool
    settings: Settings
    unread: bytes
    unsent: bytes
    def __init__(self, format: _Optional[int] = ..., settings: _Optional[_Union[Settings, _Mapping]] = ..., peer: _Optional[_Union[_mesh_pb2.Hello, _Mapping]] = ..., calls: _Optional[_Union[Calls, _Mapping]] = ..., owed: _Optional[_Union[Owed, _Mapping]] = ..., unread: _Optional[bytes] = ..., unsent: _Optional[bytes] = ..., outbox: _Optional[_Union[Outbox, _Mapping]] = ..., inbox: _Optional[_Union[Inbox, _Mapping]] = ..., guard: _Optional[_Union[Guard, _Mapping]] = ..., pulse: _Optional[_Union[Pulse, _Mapping]] = ..., said_goaway: bool = ..., got_goaway: bool = ..., failed: bool = ...) -> None: ...

class Guard(_message.Message):
    __slots__ = ["cancels", "idle", "pings"]
    CANCELS_FIELD_NUMBER: _ClassVar[int]
    IDLE_FIELD_NUMBER: _ClassVar[int]
    PINGS_FIELD_NUMBER: _ClassVar[int]
    cancels: Budget
    idle: Budget
    pings: Budget
    def __init__(self, pings: _Optional[_Union[Budget, _Mapping]] = ..., cancels: _Optional[_Union[Budget, _Mapping]] = ..., idle: _Optional[_Union[Budget, _Mapping]] = ...) -> None: ...

class Inbox(_message.Message):
    __slots__ = ["bodies", "reserved", "waiting"]
    BODIES_FIELD_NUMBER: _ClassVar[int]
    RESERVED_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    bodies: _containers.RepeatedCompositeFieldContainer[Incoming]
    reserved: _containers.RepeatedCompositeFieldContainer[Reserved]
    waiting: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, bodies: _Optional[_Iterable[_Union[Incoming, _Mapping]]] = ..., waiting: _Optional[_Iterable[int]] = ..., reserved: _Optional[_Iterable[_Union[Reserved, _Mapping]]] = ...) -> None: ...

class Incoming(_message.Message):
    __slots__ = ["arrived_s", "body", "credit", "header", "length", "request_id"]
    ARRIVED_S_FIELD_NUMBER: _ClassVar[int]
    BODY_FIELD_NUMBER: _ClassVar[int]
    CREDIT_FIELD_NUMBER: _ClassVar[int]
    HEADER_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    arrived_s: float
    body: _containers.RepeatedScalarFieldContainer[bytes]
    credit: int
    header: bytes
    length: int
    request_id: int
    def __init__(self, request_id: _Optional[int] = ..., header: _Optional[bytes] = ..., arrived_s: _Optional[float] = ..., body: _Optional[_Iterable[bytes]] = ..., length: _Optional[int] = ..., credit: _Optional[int] = ...) -> None: ...

class Outbox(_message.Message):
    __slots__ = ["control", "ready", "stalled"]
    CONTROL_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    STALLED_FIELD_NUMBER: _ClassVar[int]
    control: _containers.RepeatedScalarFieldContainer[bytes]
    ready: _containers.RepeatedCompositeFieldContainer[Outgoing]
    stalled: _containers.RepeatedCompositeFieldContainer[Outgoing]
    def __init__(self, control: _Optional[_Iterable[bytes]] = ..., ready: _Optional[_Iterable[_Union[Outgoing, _Mapping]]] = ..., stalled: _Optional[_Iterable[_Union[Outgoing, _Mapping]]] = ...) -> None: ...

class Outgoing(_message.Message):
    __slots__ = ["body", "credit", "header", "kind", "request_id", "started"]
    BODY_FIELD_NUMBER: _ClassVar[int]
    CREDIT_FIELD_NUMBER: _ClassVar[int]
    HEADER_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    STARTED_FIELD_NUMBER: _ClassVar[int]
    body: _containers.RepeatedScalarFieldContainer[bytes]
    credit: int
    header: bytes
    kind: int
    request_id: int
    started: bool
    def __init__(self, request_id: _Optional[int] = ..., kind: _Optional[int] = ..., header: _Optional[bytes] = ..., body: _Optional[_Iterable[bytes]] = ..., credit: _Optional[int] = ..., started: bool = ...) -> None: ...

class Owed(_message.Message):
    __slots__ = ["last_delivered", "last_seen", "last_taken", "owed"]
    LAST_DELIVERED_FIELD_NUMBER: _ClassVar[int]
    LAST_SEEN_FIELD_NUMBER: _ClassVar[int]
    LAST_TAKEN_FIELD_NUMBER: _ClassVar[int]
    OWED_FIELD_NUMBER: _ClassVar[int]
    last_delivered: int
    last_seen: int
    last_taken: int
    owed: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, last_seen: _Optional[int] = ..., last_delivered: _Optional[int] = ..., last_taken: _Optional[int] = ..., owed: _Optional[_Iterable[int]] = ...) -> None: ...

class Pulse(_message.Message):
    __slots__ = ["heard_s", "last_ping", "ping_sent_s", "started_s"]
    HEARD_S_FIELD_NUMBER: _ClassVar[int]
    LAST_PING_FIELD_NUMBER: _ClassVar[int]
    PING_SENT_S_FIELD_NUMBER: _ClassVar[int]
    STARTED_S_FIELD_NUMBER: _ClassVar[int]
    heard_s: float
    last_ping: int
    ping_sent_s: float
    started_s: float
    def __init__(self, started_s: _Optional[float] = ..., heard_s: _Optional[float] = ..., last_ping: _Optional[int] = ..., ping_sent_s: _Optional[float] = ...) -> None: ...

class Reserved(_message.Message):
    __slots__ = ["request_id", "size"]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    request_id: int
    size: int
    def __init__(self, request_id: _Optional[int] = ..., size: _Optional[int] = ...) -> None: ...

class Settings(_message.Message):
    __slots__ = ["agent", "app", "features", "hello_timeout_s", "max_body", "max_buffered", "max_header", "max_open", "max_queued", "max_streams", "max_version", "min_version", "ping_interval_s", "ping_timeout_s", "stream_window", "zone"]
    AGENT_FIELD_NUMBER: _ClassVar[int]
    APP_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    HELLO_TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    MAX_BODY_FIELD_NUMBER: _ClassVar[int]
    MAX_BUFFERED_FIELD_NUMBER: _ClassVar[int]
    MAX_HEADER_FIELD_NUMBER: _ClassVar[int]
    MAX_OPEN_FIELD_NUMBER: _ClassVar[int]
    MAX_QUEUED_FIELD_NUMBER: _ClassVar[int]
    MAX_STREAMS_FIELD_NUMBER: _ClassVar[int]
    MAX_VERSION_FIELD_NUMBER: _ClassVar[int]
    MIN_VERSION_FIELD_NUMBER: _ClassVar[int]
    PING_INTERVAL_S_FIELD_NUMBER: _ClassVar[int]
    PING_TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    STREAM_WINDOW_FIELD_NUMBER: _ClassVar[int]
    ZONE_FIELD_NUMBER: _ClassVar[int]
    agent: str
    app: str
    features: _containers.RepeatedScalarFieldContainer[str]
    hello_timeout_s: float
    max_body: int
    max_buffered: int
    max_header: int
    max_open: int
    max_queued: int
    max_streams: int
    max_version: int
    min_version: int
    ping_interval_s: float
    ping_timeout_s: float
    stream_window: int
    zone: str
    def __init__(self, min_version: _Optional[int] = ..., max_version: _Optional[int] = ..., features: _Optional[_Iterable[str]] = ..., max_streams: _Optional[int] = ..., max_open: _Optional[int] = ..., stream_window: _Optional[int] = ..., max_body: _Optional[int] = ..., max_header: _Optional[int] = ..., max_buffered: _Optional[int] = ..., max_queued: _Optional[int] = ..., hello_timeout_s: _Optional[float] = ..., ping_interval_s: _Optional[float] = ..., ping_timeout_s: _Optional[float] = ..., agent: _Optional[str] = ..., app: _Optional[str] = ..., zone: _Optional[str] = ...) -> None: ...

class Waiting(_message.Message):
    __slots__ = ["body", "header", "request_id"]
    BODY_FIELD_NUMBER: _ClassVar[int]
    HEADER_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    body: _containers.RepeatedScalarFieldContainer[bytes]
    header: bytes
    request_id: int
    def __init__(self, request_id: _Optional[int] = ..., header: _Optional[bytes] = ..., body: _Optional[_Iterable[bytes]] = ...) -> None: ...
