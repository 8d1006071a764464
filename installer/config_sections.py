"""The sections of a node's configuration: each key with its type, bounds, default and meaning."""

from __future__ import annotations

import ipaddress
import socket
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainValidator, SecretStr

from installer.destination import Destination

MIB = 1 << 20


def _absolute(path: Path) -> Path:
    if not path.is_absolute() or ".." in path.parts:
        raise ValueError('an absolute path without ".."')
    return path


def _cgroup(path: str) -> str:
    if not path.startswith("/") or ".." in path.split("/") or "//" in path:
        raise ValueError('a path below the cgroup2 mount, as "/moa-mesh.slice"')
    return path if path == "/" else path.rstrip("/")


def _redis_url(url: SecretStr) -> SecretStr:
    # Late: it brings redis-py with it, and most commands read a configuration without a URL.
    from proxy.registry.base import RegistryError
    from proxy.registry.endpoint import RedisEndpoint

    try:
        RedisEndpoint.parse(url.get_secret_value())
    except RegistryError as error:
        raise ValueError(f"a {error}") from None
    return url


def listen_address(text: str) -> tuple[str, int]:
    """The host and port of `1.2.3.4:5000`, `0.0.0.0:5000` or `[::1]:5000`; raises ValueError."""
    host, _, port = text.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    try:
        ip = ipaddress.ip_address(bare)
        if (ip.version == 6) == (bare != host) and int(port) in range(65536):
            return str(ip), int(port)
    except ValueError:
        pass
    raise ValueError("a numeric address and a port, as 0.0.0.0:15010")


def _listen(text: str) -> str:
    listen_address(text)
    return text


def _address(text: str) -> str:
    # Late: most commands have nothing to do with it.
    from proxy.registry.member import BadMember, parse_address

    try:
        parse_address(text)
    except BadMember as error:
        raise ValueError(f'an address and a port, as "10.0.0.5:15008": {error}') from None
    return text


def _peer(text: str) -> str:
    from proxy.registry.agents import parse_agent
    from proxy.registry.member import BadMember

    try:
        parse_agent(text)
    except BadMember as error:
        raise ValueError(f'an agent, as "10.0.0.6:15008?zone=a": {error}') from None
    return text


# TOML has arrays and strings only: strict checks stay on for what is inside of them.
AbsolutePath = Annotated[Path, Field(strict=False), AfterValidator(_absolute)]
CgroupPath = Annotated[str, AfterValidator(_cgroup)]
Port = Annotated[int, Field(ge=1, le=65535)]
DestinationValue = Annotated[Destination, PlainValidator(Destination.parse)]
AddressText = Annotated[str, AfterValidator(_address)]
PeerText = Annotated[str, AfterValidator(_peer)]
Label = Annotated[str, Field(max_length=253, pattern=r"^[A-Za-z0-9._/-]*$")]


class Section(BaseModel):
    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        validate_default=True,
        hide_input_in_errors=True,
    )


class Node(Section):
    name: Label = Field(
        default_factory=socket.gethostname,
        description="What this node is called; the host's name when it is not given.",
        examples=["node-a"],
    )
    zone: Label = Field("", description="Instances of the same zone are preferred.")
    application: Label = Field("", description="The application whose services run here.")


class Agent(Section):
    outbound_port: Port = Field(15001, description="Where intercepted connections of callers go.")
    inbound_port: Port = Field(15006, description="Where connections to local services go.")
    cgroup: CgroupPath = Field(
        "/moa-agent",
        description="The agent's own cgroup, below the cgroup2 mount; never intercepted.",
    )
    runtime_dir: AbsolutePath = Field(Path("/run/moa"), description="Control socket and locks.")
    state_dir: AbsolutePath = Field(Path("/var/lib/moa"), description="What outlives a reboot.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="debug, info, warning or error."
    )
    drain_timeout_s: int = Field(
        30, ge=0, le=3600, description="How long a stopping agent waits for its connections."
    )
    handover_timeout_s: int = Field(
        60,
        ge=1,
        le=3600,
        description="How long an agent tries to give its connections to its successor.",
    )
    max_connections: int = Field(
        20_000,
        ge=16,
        le=1_000_000,
        description="Clients at once; new connections beyond it go direct.",
    )
    heartbeat_ms: int = Field(
        500, ge=50, le=10_000, description="How often the agent tells the kernel that it lives."
    )


class Bpf(Section):
    root: AbsolutePath = Field(
        Path("/sys/fs/bpf/moa"), description="Where programs, maps and links are pinned."
    )
    heartbeat_max_age_ms: int = Field(
        2000,
        ge=100,
        le=60_000,
        description="A heartbeat older than this means no agent: connections go direct.",
    )
    mark: int = Field(
        0x4D4F41,
        ge=0,
        le=0xFFFFFFFF,
        description="The socket mark of the agent's own connections (0x4d4f41); 0: none.",
    )


class Scope(Section):
    cgroups: Annotated[tuple[CgroupPath, ...], Field(strict=False, max_length=256)] = Field(
        (),
        description='Whose connections are intercepted, as ["/moa-mesh.slice"]; none by default.',
    )
    include: Annotated[tuple[DestinationValue, ...], Field(strict=False, max_length=4096)] = Field(
        (),
        description="Destinations to intercept besides the registry's: "
        '"10.0.0.0/8", "10.1.0.0/16:5000", "[fd00::/8]:6379".',
    )
    exclude: Annotated[tuple[DestinationValue, ...], Field(strict=False, max_length=4096)] = Field(
        (), description="Destinations to leave alone, whatever includes them."
    )
    registry_destinations: bool = Field(
        True, description="Whether every registered instance is a destination to intercept."
    )


class Inbound(Section):
    ports: Annotated[tuple[Port, ...], Field(strict=False, max_length=1024)] = Field(
        (), description="Ports of local services that are reached through the agent."
    )
    registered: bool = Field(
        True,
        description="Whether so is every registered instance at one of this node's addresses.",
    )


class Registry(Section):
    kind: Literal["static", "redis"] = Field("static", description="static or redis.")
    file: AbsolutePath = Field(
        Path("/etc/moa/services.toml"), description="The services, when kind is static."
    )
    url: Annotated[SecretStr, AfterValidator(_redis_url)] | None = Field(
        None,
        description="The registry's Redis, when kind is redis; never printed.",
        examples=["redis://127.0.0.1:6379/0"],
    )
    last_known: AbsolutePath | None = Field(
        None,
        description="The last known services, for a start without Redis; "
        "registry.json in state_dir when it is not given.",
        examples=["/var/lib/moa/registry.json"],
    )
    sweep_s: int = Field(
        10, ge=1, le=3600, description="How often versions are compared, for lost notifications."
    )


class Routing(Section):
    default_group: str = Field(
        "*",
        min_length=1,
        max_length=253,
        description='The group of requests that name none; "*" is the set for every group.',
    )
    pre: bool = Field(False, description="Whether callers here are pre-release callers.")
    timeout_ms: int = Field(
        5000,
        ge=1,
        le=600_000,
        description="For a request without the property moa.timeout, to an instance and of a "
        "service without a timeout of their own.",
    )
    connect_timeout_ms: int = Field(
        500, ge=1, le=60_000, description="For a connection to an instance."
    )


class Peer(Section):
    listen: Annotated[tuple[AddressText, ...], Field(strict=False, max_length=4)] = Field(
        (),
        description="Where callers of other nodes are taken while their own agent does not serve, "
        'as ["10.0.0.5:15008"]; none: no peers.',
    )
    nodes: Annotated[tuple[PeerText, ...], Field(strict=False, max_length=256)] = Field(
        (),
        description="Agents of the same application besides those that the registry's Redis "
        'names: "10.0.0.6:15008?zone=a".',
    )
    max_connections: int = Field(
        4096, ge=1, le=1_000_000, description="Of callers of other nodes, at once."
    )


class Limits(Section):
    max_request_bytes: int = Field(
        2 * MIB, ge=1024, le=64 * MIB, description="The largest request."
    )
    max_reply_bytes: int = Field(
        64 * MIB,
        ge=1024,
        le=512 * MIB,
        description="The largest reply; a larger one costs its connection and is an ec 303.",
    )
    pool_size: int = Field(16, ge=1, le=1024, description="Connections to one instance.")
    pool_queue: int = Field(
        1024, ge=0, le=65_536, description="Requests that wait for one of these connections."
    )
    shared_pool_size: int = Field(
        2,
        ge=1,
        le=64,
        description="Connections to one instance that takes many requests on each, as binary "
        "packets do; two, so that one that ends is no gap.",
    )
    shared_requests: int = Field(
        128, ge=1, le=65_536, description="Requests under way at once on one of these."
    )
    mesh_connections: int = Field(
        2,
        ge=0,
        le=16,
        description="Mesh connections to the agent of one instance; 0: instances are only "
        "spoken to in their own protocols.",
    )
    mesh_retry_s: int = Field(
        30,
        ge=1,
        le=3600,
        description="An instance that did not answer as an agent is asked again after so long.",
    )
    local_connections: int = Field(
        256,
        ge=1,
        le=4096,
        description="Connections to one local service, for the requests of other agents.",
    )
    pipeline_depth: int = Field(
        1,
        ge=1,
        le=1024,
        description="Requests of one client connection under way at once; more wait. "
        "An instance gets one at a time on a connection, whatever this says.",
    )
    max_pending_bytes: int = Field(
        MIB, ge=4096, le=64 * MIB, description="Unread bytes a slow peer may leave with us."
    )
    detect_wait_ms: int = Field(
        100,
        ge=1,
        le=5000,
        description="A client that says nothing for so long is connected to what it dialled.",
    )
    request_read_timeout_ms: int = Field(
        15_000, ge=100, le=600_000, description="From a request's first byte to its last."
    )
    idle_ping_s: int = Field(
        15, ge=1, le=3600, description="An idle upstream connection is pinged after so long."
    )
    idle_close_s: int = Field(
        60, ge=1, le=86_400, description="An idle upstream connection is closed after so long."
    )


class Lookup(Section):
    listen: Annotated[str, AfterValidator(_listen)] = Field(
        "127.0.0.1:15010", description="Where moa-lookup serves; port 0: the kernel chooses."
    )
    advertise: AddressText | None = Field(
        None,
        description="The address that moa-lookup registers itself with; not registered without.",
        examples=["10.0.0.5:15010"],
    )
    heartbeat_s: int = Field(10, ge=1, le=60, description="How often it registers itself again.")
    max_connections: int = Field(
        10_000, ge=1, le=1_000_000, description="Clients at once; more wait to be accepted."
    )
    drain_timeout_s: int = Field(
        10, ge=0, le=3600, description="How long a stopping moa-lookup waits for its connections."
    )
