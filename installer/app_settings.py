"""What the proxy and the kernel side need, taken out of a node's configuration."""

from __future__ import annotations

from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from installer.config import Config
from installer.config_failover import policies_of
from interceptor.cgroup import Cgroup
from interceptor.node import AgentSettings
from proxy.app import AppSettings
from proxy.core.mesh_calls import Origin
from proxy.net.door import DoorSettings
from proxy.net.forward import ForwardSettings
from proxy.net.lane import LaneSettings
from proxy.net.mesh_pool import MeshPoolSettings
from proxy.net.pool_types import PoolSettings
from proxy.net.served import SessionSettings
from proxy.registry.base import Registry
from proxy.registry.endpoint import RedisEndpoint
from proxy.registry.member import parse_address
from proxy.registry.redis import RedisRegistry, RedisTimes
from proxy.registry.static import StaticRegistry
from proxy.wire.mesh import Settings as MeshSettings
from proxy.wire.resp import Limits

LANE_CONNECT_S = 10.0
"""For plain traffic to the address that was dialled: three lost SYNs are no reason to fail."""

PACKETS_AT_ONCE = 128
"""Of one client that sends binary packets; what is beyond waits in its socket."""

MESH_HELLO_S = 1.0
"""For an agent's HELLO; no request waits for it."""

_FRAMING_BYTES = 64 * 1024
"""What a request may have besides its one large element."""


def kernel_settings(config: Config) -> AgentSettings:
    """For `Node.install`."""
    return AgentSettings(
        cgroup=Cgroup.of(config.agent.cgroup),
        outbound_port=config.agent.outbound_port,
        inbound_port=config.agent.inbound_port,
        mark=config.bpf.mark,
        heartbeat_max_age_ns=config.bpf.heartbeat_max_age_ms * 1_000_000,
    )


def app_settings(config: Config) -> AppSettings:
    """For `ProxyApp`."""
    limits, routing = config.limits, config.routing
    wire = Limits(
        max_element=limits.max_request_bytes,
        max_frame=limits.max_request_bytes + _FRAMING_BYTES,
        max_inline=min(Limits().max_inline, limits.max_request_bytes),
    )
    replies = Limits(
        max_element=limits.max_reply_bytes, max_frame=limits.max_reply_bytes + _FRAMING_BYTES
    )
    connect_timeout_s = routing.connect_timeout_ms / 1000
    pool = PoolSettings(
        size=limits.pool_size,
        shared_size=limits.shared_pool_size,
        shared_requests=limits.shared_requests,
        queue=limits.pool_queue,
        connect_timeout_s=connect_timeout_s,
        idle_ping_s=limits.idle_ping_s,
        idle_close_s=limits.idle_close_s,
        mark=config.bpf.mark,
        max_reply_bytes=limits.max_reply_bytes,
    )
    return AppSettings(
        outbound_port=config.agent.outbound_port,
        inbound_port=config.agent.inbound_port,
        max_connections=config.agent.max_connections,
        zone=config.node.zone,
        default_group=routing.default_group,
        pre=routing.pre,
        session=SessionSettings(
            limits=wire,
            max_pending_bytes=limits.max_pending_bytes,
            pipeline_depth=limits.pipeline_depth,
            packets_at_once=PACKETS_AT_ONCE,
            max_packet=limits.max_request_bytes,
            detect_wait_s=limits.detect_wait_ms / 1000,
            request_read_timeout_s=limits.request_read_timeout_ms / 1000,
            lane=LaneSettings(replies, LANE_CONNECT_S, connect_timeout_s, config.bpf.mark),
        ),
        door=DoorSettings(
            listen=tuple(map(parse_address, config.peer.listen)),
            max_connections=config.peer.max_connections,
        ),
        forward=ForwardSettings(
            timeout_s=routing.timeout_ms / 1000,
            max_body_bytes=limits.max_request_bytes,
            policies=policies_of(config.failover, config.service),
            pool=pool,
            mesh=_mesh_pool(config),
        ),
        local_pool=replace(pool, size=limits.local_connections),
        mesh=_mesh(config, limits.max_request_bytes),
    )


def _mesh(config: Config, max_body: int) -> MeshSettings:
    """Of a side of a mesh connection that takes bodies of at most `max_body` bytes."""
    usual = MeshSettings()
    return replace(
        usual,
        max_body=max_body,
        max_buffered=max(usual.max_buffered, max_body),
        max_queued=max(usual.max_queued, max_body),
        agent=f"moa-interceptor/{version('moa-interceptor')}",
        app=config.node.application,
        zone=config.node.zone,
    )


def _mesh_pool(config: Config) -> MeshPoolSettings | None:
    limits = config.limits
    if not limits.mesh_connections:
        return None
    return MeshPoolSettings(
        wire=replace(_mesh(config, limits.max_reply_bytes), hello_timeout_s=MESH_HELLO_S),
        origin=Origin(config.node.application, config.node.zone),
        size=limits.mesh_connections,
        retry_s=limits.mesh_retry_s,
        connect_timeout_s=config.routing.connect_timeout_ms / 1000,
        mark=config.bpf.mark,
    )


def open_registry(config: Config, last_known: Path | None = None) -> Registry:
    """The registry that the configuration names; nothing is read yet.

    `last_known` is for a process besides the agent: each has a copy of its own.
    """
    if config.registry.kind == "static":
        return StaticRegistry(config.registry.file)
    assert config.registry.url is not None  # Config refuses kind = "redis" without it
    return RedisRegistry(
        RedisEndpoint.parse(config.registry.url.get_secret_value()),
        last_known=last_known or config.last_known_path,
        times=RedisTimes(sweep_interval=config.registry.sweep_s),
    )
