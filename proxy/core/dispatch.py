"""What to do with one command of a client: the rules, without the doing.

- A MOA request of a service that the registry knows is routed.
- Anything else belongs to the address that the client dialled, if there is one that answers.
- A request without a single byte names no service: where MOA is spoken, it is refused here.
- What a Redis client says while it connects is answered here when the dialled address is a
  MOA instance, or cannot be reached.
- Once a connection has turned out not to be MOA, it is spliced and no longer looked at.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from proxy.core.message import MoaRequest, request_of_command
from proxy.core.model import ServiceTable
from proxy.core.policy import Policies, method_matcher
from proxy.wire.moa import (
    EMPTY_REQUEST,
    BadRequest,
    Ec,
    NotMoa,
    Route,
    error_body,
    unsent_body,
)
from proxy.wire.moa_scan import scan_route
from proxy.wire.redis_server import SessionState, answer, is_connection_command
from proxy.wire.resp import Command, bulk
from proxy.wire.value import value


@value
class Answer:
    """Send this reply; the upstream is not asked."""

    reply: bytes


@value
class Forward:
    """Send the request to an instance of the service."""

    request: MoaRequest


@value
class ToOriginal:
    """Send the command, as it is, to the address that was dialled.

    `instead` makes the reply when that cannot be reached; None: reset the client.
    """

    instead: Callable[[], bytes] | None
    uri: str = ""


@dataclass(frozen=True, slots=True)
class Splice:
    """From this command on, pass bytes to and from the address that was dialled."""


Verdict = Answer | Forward | ToOriginal | Splice


@value
class Dialled:
    """What is known of the address that the client dialled."""

    exists: bool
    """Whether the kernel told us an address at all."""
    is_instance: bool
    """Whether the registry lists it, or lately did, as an instance of some service."""


def read_route(command: Command) -> Route | BadRequest | None:
    """The route of a GET whose key is a JSON object; None when it is not a MOA request."""
    if command.name != b"GET" or len(command.args) != 2:
        return None
    try:
        return scan_route(command.args[1])
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
            return Forward(request_of_command(route, command))
        if not dialled.exists:
            return Answer(_not_found(route.uri, "is not in the registry"))
        why = "is not in the registry, and the dialled address cannot be reached"
        return ToOriginal(partial(_not_found, route.uri, why), route.uri)
    is_moa = dialled.is_instance or spoke_moa or not dialled.exists
    if isinstance(route, BadRequest):
        reply = bulk(error_body(route.ec, route.em))
        return Answer(reply) if is_moa else ToOriginal(lambda: reply)
    if is_moa and command.name == b"GET" and command.args[1:] == (b"",):
        return Answer(bulk(error_body(Ec.NO_URI_FOUND, EMPTY_REQUEST)))
    if not is_moa and _silences_replies(command):
        return Splice()
    local = answer(command, state)
    if local is not None:
        return Answer(local) if is_moa else ToOriginal(lambda: local)
    if not dialled.exists:
        return Answer(b"-ERR unknown command\r\n")
    return Splice()


def _silences_replies(command: Command) -> bool:
    """CLIENT REPLY OFF or SKIP: from here on a command no longer has one reply."""
    return tuple(arg.upper() for arg in command.args[:2]) == (b"CLIENT", b"REPLY")


def judge_inbound(command: Command) -> Verdict:
    """The verdict on a command for a local service: it decides itself about everything.

    Also about PING: a health check must see the service, not its agent. What neither MOA nor
    a connecting client sends may be no command at all (`GET / HTTP/1.1`), and is spliced.
    """
    route = read_route(command)
    if route is None:
        if is_connection_command(command) and not _silences_replies(command):
            return ToOriginal(instead=None)
        return Splice()
    uri = route.uri if isinstance(route, Route) else ""
    return ToOriginal(partial(_local_unreachable, uri), uri)


def judge_again(
    command: Command, verdict: Answer | Forward | ToOriginal, policies: Policies
) -> Answer | Forward | ToOriginal:
    """The verdict on a command that an agent which died had begun to serve.

    It may have been executed: a request is only sent again when its method is idempotent.
    """
    route = read_route(command)
    if isinstance(verdict, Answer) or not isinstance(route, Route):
        return verdict
    if may_run_twice(route, policies):
        return verdict
    return Answer(bulk(error_body(Ec.REMOTING, died_with(route.uri))))


def may_run_twice(route: Route, policies: Policies) -> bool:
    matcher = method_matcher(policies.of(route.uri).idempotent)
    return matcher is not None and matcher.match(route.method) is not None


def died_with(uri: str) -> str:
    """What a caller is told whose request was under way in an agent that died."""
    what = f"{uri}: " if uri else ""
    return f"{what}the agent died before there was a reply; the request may have been executed"


def _not_found(uri: str, why: str) -> bytes:
    return bulk(error_body(Ec.SERVICE_NOT_FOUND, f"service {uri} {why}"))


def _local_unreachable(uri: str) -> bytes:
    """Of use to the agent on the caller's side: it may choose another instance."""
    return bulk(unsent_body(f"the local service of {uri or 'this port'} cannot be reached"))
