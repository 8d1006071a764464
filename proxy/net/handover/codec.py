"""`Moved` as a message of the hand-over protocol, and back."""

from __future__ import annotations

import socket

from proxy.core.model import Address, PeerAgent
from proxy.net.moved import Kind, Moved, RedisState
from proxy.net.served import Direction
from proxy.wire.handover import HandoverError
from proxy.wire.handover import handover_pb2 as pb


def to_message(moved: Moved) -> pb.Connection:
    """Its sockets travel beside it: `sockets_of`."""
    redis, caller, original = moved.redis, moved.caller, moved.original
    message = pb.Connection(
        number=moved.number,
        kind=moved.kind.value,
        direction=moved.direction.value,
        has_server=moved.server is not None,
        unread=moved.unread,
        to_client=moved.to_client,
        to_server=moved.to_server,
        from_server=moved.from_server,
        spoke_moa=moved.spoke_moa,
        service=moved.service,
        requests=moved.requests,
        started_s=moved.started_s,
        resp=redis.resp,
        name=redis.name,
        lib_name=redis.lib_name,
        lib_version=redis.lib_version,
        mesh=moved.mesh,
        owed=[pb.Owed(request=number, codec=codec) for number, codec in moved.owed.items()],
    )
    if original is not None:
        message.original_host, message.original_port = original.host, original.port
    if caller is not None:
        message.caller.host, message.caller.port = caller.address.host, caller.address.port
        message.caller.app, message.caller.zone = caller.app, caller.zone
    return message


def sockets_of(moved: Moved) -> list[socket.socket]:
    """In the order in which their descriptors travel."""
    return [moved.client] if moved.server is None else [moved.client, moved.server]


def descriptors_of(message: pb.Connection) -> int:
    """How many descriptors belong to it."""
    return 2 if message.has_server else 1


def from_message(message: pb.Connection, sockets: list[socket.socket]) -> Moved:
    """`sockets` as `descriptors_of` counts them. Raises HandoverError."""
    try:
        kind, direction = Kind(message.kind), Direction(message.direction)
    except ValueError as error:
        raise HandoverError(f"connection {message.number}: {error}") from None
    original = None
    if message.original_host:
        original = Address(message.original_host, message.original_port)
    caller = None
    if message.HasField("caller"):
        at = Address(message.caller.host, message.caller.port)
        caller = PeerAgent(at, message.caller.app, message.caller.zone)
    return Moved(
        number=message.number,
        kind=kind,
        direction=direction,
        client=sockets[0],
        server=sockets[1] if message.has_server else None,
        original=original,
        caller=caller,
        unread=message.unread,
        to_client=message.to_client,
        to_server=message.to_server,
        from_server=message.from_server,
        spoke_moa=message.spoke_moa,
        service=message.service,
        requests=message.requests,
        started_s=message.started_s,
        redis=RedisState(message.resp, message.name, message.lib_name, message.lib_version),
        mesh=message.mesh,
        owed={owed.request: owed.codec for owed in message.owed},
    )
