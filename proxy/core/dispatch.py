"""What to do with one command of a client: the rules, without the doing.

- A MOA request of a service that the registry knows is routed.
- Anything else belongs to the address that the client dialled, if there is one that answers.
- What a Redis client says while it connects is answered here when the dialled address is a
  MOA instance, or cannot be reached.
- Once a connection has turned out not to be MOA, it is spliced and no longer looked at.
"""

from __future__ import annotations

from dataclasses import dataclass

from proxy.core.model import ServiceTable
from proxy.wire.moa import BadRequest, Ec, NotMoa, Route, error_body, parse_route
from proxy.wire.redis_server import SessionState, answer
from proxy.wire.resp import Command, bulk


@dataclass(frozen=True, slots=True)
class Answer:
    """Send this reply; the upstream is not asked."""

    reply: bytes


@dataclass(frozen=True, slots=True)
class Forward:
    """Send the request to an instance of the service."""

    route: Route


@dataclass(frozen=True, slots=True)
class ToOriginal:
    """Send the command, as it is, to the address that was dialled.

    `instead` is the reply when that cannot be reached; None: reset the client.
    """

    instead: bytes | None
    uri: str = ""


@dataclass(frozen=True, slots=True)
class Splice:
    """From this command on, pass bytes to and from the address that was dialled."""


Verdict = Answer | Forward | ToOriginal | Splice


@dataclass(frozen=True, slots=True)
class Dialled:
    """What is known of the address that the client dialled."""

    exists: bool
    """Whether the kernel told us an address at all."""
    is_instance: bool
    """Whether the registry lists it as an instance of some service."""


def read_route(command: Command) -> Route | BadRequest | None:
    """The route of a GET whose key is a JSON object; None when it is not a MOA request."""
    if command.name != b"GET" or len(command.args) != 2:
        return None
    try:
        return parse_route(command.args[1])
    except NotMoa:
        return None
    except BadRequest as e:
        return e


def judge_outbound(
    command: Command, table: ServiceTable, dialled: Dialled, *, spoke_moa: bool, state: SessionState
) -> Verdict:
    """The verdict on a command of a local client.

    `spoke_moa`: this connection has carried a request of a service that we know, so that it
    is a MOA client's whatever it dialled.
    """
    route = read_route(command)
    if isinstance(route, Route):
        if table.knows(route.uri):
            return Forward(route)
        unknown = f"service {route.uri} is not in the registry"
        if not dialled.exists:
            return Answer(bulk(error_body(Ec.SERVICE_NOT_FOUND, unknown)))
        unknown += ", and the dialled address cannot be reached"
        return ToOriginal(bulk(error_body(Ec.SERVICE_NOT_FOUND, unknown)), route.uri)
    is_moa = dialled.is_instance or spoke_moa or not dialled.exists
    if isinstance(route, BadRequest):
        reply = bulk(error_body(route.ec, route.em))
        return Answer(reply) if is_moa else ToOriginal(reply)
    local = answer(command, state)
    if local is not None:
        return Answer(local) if is_moa else ToOriginal(local)
    if not dialled.exists:
        return Answer(b"-ERR unknown command\r\n")
    return Splice()


def judge_inbound(command: Command) -> Verdict:
    """The verdict on a command for a local service: it decides itself about everything.

    Also about PING: a health check must see the service, not its agent.
    """
    route = read_route(command)
    if route is None:
        return ToOriginal(instead=None)
    uri = route.uri if isinstance(route, Route) else ""
    return ToOriginal(
        bulk(
            error_body(Ec.REMOTING, f"the local service of {uri or 'this port'} cannot be reached")
        ),
        uri,
    )
