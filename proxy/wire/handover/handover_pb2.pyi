# ruff: noqa
# fmt: off
# mypy: disable-error-code="type-arg"
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Accepted(_message.Message):
    __slots__ = ["batch", "taken", "why"]
    BATCH_FIELD_NUMBER: _ClassVar[int]
    TAKEN_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    batch: int
    taken: _containers.RepeatedScalarFieldContainer[int]
    why: str
    def __init__(self, batch: _Optional[int] = ..., taken: _Optional[_Iterable[int]] = ..., why: _Optional[str] = ...) -> None: ...

class Acknowledge(_message.Message):
    __slots__ = ["sequence"]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    def __init__(self, sequence: _Optional[int] = ...) -> None: ...

class Caller(_message.Message):
    __slots__ = ["app", "host", "port", "zone"]
    APP_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    PORT_FIELD_NUMBER: _ClassVar[int]
    ZONE_FIELD_NUMBER: _ClassVar[int]
    app: str
    host: str
    port: int
    zone: str
    def __init__(self, host: _Optional[str] = ..., port: _Optional[int] = ..., app: _Optional[str] = ..., zone: _Optional[str] = ...) -> None: ...

class Cancel(_message.Message):
    __slots__ = ["connection", "request"]
    CONNECTION_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    connection: int
    request: int
    def __init__(self, connection: _Optional[int] = ..., request: _Optional[int] = ...) -> None: ...

class Commit(_message.Message):
    __slots__ = ["batch"]
    BATCH_FIELD_NUMBER: _ClassVar[int]
    batch: int
    def __init__(self, batch: _Optional[int] = ...) -> None: ...

class Connection(_message.Message):
    __slots__ = ["caller", "direction", "from_server", "has_server", "kind", "lib_name", "lib_version", "mesh", "name", "number", "original_host", "original_port", "owed", "requests", "resp", "service", "spoke_moa", "started_s", "to_client", "to_server", "unread"]
    CALLER_FIELD_NUMBER: _ClassVar[int]
    DIRECTION_FIELD_NUMBER: _ClassVar[int]
    FROM_SERVER_FIELD_NUMBER: _ClassVar[int]
    HAS_SERVER_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    LIB_NAME_FIELD_NUMBER: _ClassVar[int]
    LIB_VERSION_FIELD_NUMBER: _ClassVar[int]
    MESH_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    ORIGINAL_HOST_FIELD_NUMBER: _ClassVar[int]
    ORIGINAL_PORT_FIELD_NUMBER: _ClassVar[int]
    OWED_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    RESP_FIELD_NUMBER: _ClassVar[int]
    SERVICE_FIELD_NUMBER: _ClassVar[int]
    SPOKE_MOA_FIELD_NUMBER: _ClassVar[int]
    STARTED_S_FIELD_NUMBER: _ClassVar[int]
    TO_CLIENT_FIELD_NUMBER: _ClassVar[int]
    TO_SERVER_FIELD_NUMBER: _ClassVar[int]
    UNREAD_FIELD_NUMBER: _ClassVar[int]
    caller: Caller
    direction: str
    from_server: bytes
    has_server: bool
    kind: str
    lib_name: bytes
    lib_version: bytes
    mesh: bytes
    name: bytes
    number: int
    original_host: str
    original_port: int
    owed: _containers.RepeatedCompositeFieldContainer[Owed]
    requests: int
    resp: int
    service: str
    spoke_moa: bool
    started_s: float
    to_client: bytes
    to_server: bytes
    unread: bytes
    def __init__(self, number: _Optional[int] = ..., kind: _Optional[str] = ..., direction: _Optional[str] = ..., has_server: bool = ..., original_host: _Optional[str] = ..., original_port: _Optional[int] = ..., caller: _Optional[_Union[Caller, _Mapping]] = ..., unread: _Optional[bytes] = ..., to_client: _Optional[bytes] = ..., to_server: _Optional[bytes] = ..., from_server: _Optional[bytes] = ..., spoke_moa: bool = ..., service: _Optional[str] = ..., requests: _Optional[int] = ..., started_s: _Optional[float] = ..., resp: _Optional[int] = ..., name: _Optional[bytes] = ..., lib_name: _Optional[bytes] = ..., lib_version: _Optional[bytes] = ..., mesh: _Optional[bytes] = ..., owed: _Optional[_Iterable[_Union[Owed, _Mapping]]] = ...) -> None: ...

class Done(_message.Message):
    __slots__ = ["left", "moved"]
    LEFT_FIELD_NUMBER: _ClassVar[int]
    MOVED_FIELD_NUMBER: _ClassVar[int]
    left: int
    moved: int
    def __init__(self, moved: _Optional[int] = ..., left: _Optional[int] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ["abi", "agent_version", "features", "max_version", "mesh_state", "min_version", "pid"]
    ABI_FIELD_NUMBER: _ClassVar[int]
    AGENT_VERSION_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    MAX_VERSION_FIELD_NUMBER: _ClassVar[int]
    MESH_STATE_FIELD_NUMBER: _ClassVar[int]
    MIN_VERSION_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    abi: int
    agent_version: str
    features: _containers.RepeatedScalarFieldContainer[str]
    max_version: int
    mesh_state: int
    min_version: int
    pid: int
    def __init__(self, min_version: _Optional[int] = ..., max_version: _Optional[int] = ..., features: _Optional[_Iterable[str]] = ..., agent_version: _Optional[str] = ..., pid: _Optional[int] = ..., abi: _Optional[int] = ..., mesh_state: _Optional[int] = ...) -> None: ...

class Owed(_message.Message):
    __slots__ = ["codec", "request"]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    codec: str
    request: int
    def __init__(self, request: _Optional[int] = ..., codec: _Optional[str] = ...) -> None: ...

class Prepare(_message.Message):
    __slots__ = ["batch", "connections", "upstreams"]
    BATCH_FIELD_NUMBER: _ClassVar[int]
    CONNECTIONS_FIELD_NUMBER: _ClassVar[int]
    UPSTREAMS_FIELD_NUMBER: _ClassVar[int]
    batch: int
    connections: _containers.RepeatedCompositeFieldContainer[Connection]
    upstreams: _containers.RepeatedCompositeFieldContainer[Upstream]
    def __init__(self, batch: _Optional[int] = ..., connections: _Optional[_Iterable[_Union[Connection, _Mapping]]] = ..., upstreams: _Optional[_Iterable[_Union[Upstream, _Mapping]]] = ...) -> None: ...

class Ready(_message.Message):
    __slots__ = ["descriptors", "needs_table"]
    DESCRIPTORS_FIELD_NUMBER: _ClassVar[int]
    NEEDS_TABLE_FIELD_NUMBER: _ClassVar[int]
    descriptors: int
    needs_table: bool
    def __init__(self, descriptors: _Optional[int] = ..., needs_table: bool = ...) -> None: ...

class Refuse(_message.Message):
    __slots__ = ["why"]
    WHY_FIELD_NUMBER: _ClassVar[int]
    why: str
    def __init__(self, why: _Optional[str] = ...) -> None: ...

class Reply(_message.Message):
    __slots__ = ["body", "connection", "header", "request", "sequence"]
    BODY_FIELD_NUMBER: _ClassVar[int]
    CONNECTION_FIELD_NUMBER: _ClassVar[int]
    HEADER_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    body: bytes
    connection: int
    header: bytes
    request: int
    sequence: int
    def __init__(self, sequence: _Optional[int] = ..., connection: _Optional[int] = ..., request: _Optional[int] = ..., header: _Optional[bytes] = ..., body: _Optional[bytes] = ...) -> None: ...

class Shared(_message.Message):
    __slots__ = ["names", "next_number"]
    NAMES_FIELD_NUMBER: _ClassVar[int]
    NEXT_NUMBER_FIELD_NUMBER: _ClassVar[int]
    names: _containers.RepeatedScalarFieldContainer[str]
    next_number: int
    def __init__(self, names: _Optional[_Iterable[str]] = ..., next_number: _Optional[int] = ...) -> None: ...

class State(_message.Message):
    __slots__ = ["parts"]
    class PartsEntry(_message.Message):
        __slots__ = ["key", "value"]
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: bytes
        def __init__(self, key: _Optional[str] = ..., value: _Optional[bytes] = ...) -> None: ...
    PARTS_FIELD_NUMBER: _ClassVar[int]
    parts: _containers.ScalarMap[str, bytes]
    def __init__(self, parts: _Optional[_Mapping[str, bytes]] = ...) -> None: ...

class Upstream(_message.Message):
    __slots__ = ["host", "last_number", "local", "port", "wire"]
    HOST_FIELD_NUMBER: _ClassVar[int]
    LAST_NUMBER_FIELD_NUMBER: _ClassVar[int]
    LOCAL_FIELD_NUMBER: _ClassVar[int]
    PORT_FIELD_NUMBER: _ClassVar[int]
    WIRE_FIELD_NUMBER: _ClassVar[int]
    host: str
    last_number: int
    local: bool
    port: int
    wire: str
    def __init__(self, host: _Optional[str] = ..., port: _Optional[int] = ..., wire: _Optional[str] = ..., local: bool = ..., last_number: _Optional[int] = ...) -> None: ...
