"""What is done with one command: the verdicts, and that they look at nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from proxy.core.dispatch import (
    Answer,
    Dialled,
    Forward,
    Splice,
    ToOriginal,
    Verdict,
    judge_inbound,
    judge_outbound,
    read_route,
)
from proxy.core.model import Address, Instance, ServiceKey, ServiceTable
from proxy.wire.moa import BadRequest, Ec, Route
from proxy.wire.redis_server import Counters, SessionState
from proxy.wire.resp import Command, encode_command

TABLE = ServiceTable.build({ServiceKey("/service/demo"): [Instance(Address("10.0.0.1", 5000))]})
NOWHERE = Dialled(exists=False, is_instance=False)
INSTANCE = Dialled(exists=True, is_instance=True)
UNKNOWN = Dialled(exists=True, is_instance=False)
EVERYWHERE = pytest.mark.parametrize("dialled", [NOWHERE, INSTANCE, UNKNOWN])


def command(*args: bytes) -> Command:
    return Command(args, encode_command(*args))


def get(action: object = "/service/demo", **more: object) -> Command:
    body = {"action": action, "params": {"m": "echo", "args": []}, **more}
    if action is None:
        del body["action"]
    return command(b"GET", json.dumps(body).encode())


def state() -> SessionState:
    return SessionState(1, Counters())


def judge(what: Command, dialled: Dialled, *, spoke_moa: bool = False) -> Verdict:
    return judge_outbound(what, TABLE, dialled, spoke_moa=spoke_moa, state=state())


def ec_of(reply: bytes | Callable[[], bytes] | None) -> int:
    assert reply is not None
    reply = reply if isinstance(reply, bytes) else reply()
    ec = json.loads(reply.split(b"\r\n")[1])["ec"]
    assert isinstance(ec, int)
    return ec


@EVERYWHERE
def test_a_known_service_is_routed_whatever_was_dialled(dialled: Dialled) -> None:
    verdict = judge(get(), dialled)
    assert isinstance(verdict, Forward)
    assert verdict.request.route.uri == "/service/demo"


def test_the_group_does_not_decide_whether_a_service_is_known() -> None:
    assert isinstance(judge(get("/service/demo#blue"), UNKNOWN), Forward)


@EVERYWHERE
def test_an_unknown_service_belongs_to_the_dialled_address(dialled: Dialled) -> None:
    verdict = judge(get("/service/other"), dialled)
    if dialled is NOWHERE:
        assert isinstance(verdict, Answer)
        assert ec_of(verdict.reply) == Ec.SERVICE_NOT_FOUND
        assert b"/service/other is not in the registry" in verdict.reply
    else:
        assert isinstance(verdict, ToOriginal)
        assert verdict.uri == "/service/other"
        assert ec_of(verdict.instead) == Ec.SERVICE_NOT_FOUND


@pytest.mark.parametrize(
    ("bad", "ec"), [(get(None), 401), (get(7), 402), (get("/service/demo", params=[]), 302)]
)
def test_a_broken_request_is_told_so_where_moa_is_spoken(bad: Command, ec: int) -> None:
    for dialled, spoke_moa in ((INSTANCE, False), (NOWHERE, False), (UNKNOWN, True)):
        verdict = judge(bad, dialled, spoke_moa=spoke_moa)
        assert isinstance(verdict, Answer)
        assert ec_of(verdict.reply) == ec


def test_a_broken_request_to_an_unknown_address_is_that_addresss_to_judge() -> None:
    verdict = judge(get(None), UNKNOWN)
    assert isinstance(verdict, ToOriginal)
    assert ec_of(verdict.instead) == 401


CONNECTING = [
    command(b"PING"),
    command(b"HELLO", b"3"),
    command(b"CLIENT", b"SETINFO", b"lib-name", b"x"),
    command(b"SELECT", b"0"),
    command(b"QUIT"),
]


@pytest.mark.parametrize("what", CONNECTING, ids=lambda c: c.args[0].decode())
def test_connecting_is_answered_for_moa_and_passed_on_otherwise(what: Command) -> None:
    for dialled in (INSTANCE, NOWHERE):
        assert isinstance(judge(what, dialled), Answer)
    assert isinstance(judge(what, UNKNOWN, spoke_moa=True), Answer)
    passed_on = judge(what, UNKNOWN)
    assert isinstance(passed_on, ToOriginal)
    assert passed_on.instead is not None


@pytest.mark.parametrize("mode", [b"OFF", b"skip", b"ON"])
def test_a_client_that_wants_no_replies_is_spliced(mode: bytes) -> None:
    """One reply for each command is what the lane counts on."""
    silent = command(b"client", b"reply", mode)
    assert judge(silent, UNKNOWN) == Splice()
    assert judge_inbound(silent) == Splice()
    assert isinstance(judge(silent, INSTANCE), Answer)


@pytest.mark.parametrize(
    "what",
    [
        command(b"GET", b"plain-key"),
        command(b"GET", b"[1]"),
        command(b"GET", b"/", b"HTTP/1.1"),
        command(b"SET", b"a", b"b"),
        command(b"SUBSCRIBE", b"a", b"b"),
    ],
)
def test_what_is_not_moa_is_spliced_to_a_dialled_address(what: Command) -> None:
    assert judge(what, UNKNOWN) == Splice()
    assert judge(what, INSTANCE) == Splice()
    nowhere = judge(what, NOWHERE)
    assert isinstance(nowhere, Answer)
    assert nowhere.reply.startswith(b"-ERR")
    assert judge_inbound(what) == Splice()


def test_a_request_without_a_byte_is_refused_where_moa_is_spoken() -> None:
    """It names no service; and the connection goes on to be one whose requests are routed."""
    empty = command(b"get", b"")
    for dialled, spoke_moa in ((INSTANCE, False), (NOWHERE, False), (UNKNOWN, True)):
        verdict = judge(empty, dialled, spoke_moa=spoke_moa)
        assert isinstance(verdict, Answer)
        assert ec_of(verdict.reply) == Ec.NO_URI_FOUND
    assert judge(empty, UNKNOWN) == Splice(), "a key of Redis may be empty"
    assert judge_inbound(empty) == Splice(), "the service answers it"


def test_quit_closes_only_when_it_is_answered_here() -> None:
    here = state()
    judge_outbound(command(b"QUIT"), TABLE, INSTANCE, spoke_moa=False, state=here)
    assert here.closing


@pytest.mark.parametrize("what", CONNECTING, ids=lambda c: c.args[0].decode())
def test_inbound_the_service_itself_answers_a_health_check(what: Command) -> None:
    assert judge_inbound(what) == ToOriginal(instead=None)


def test_inbound_requests_go_to_the_local_service_with_an_error_in_reserve() -> None:
    verdict = judge_inbound(get())
    assert isinstance(verdict, ToOriginal)
    assert verdict.uri == "/service/demo"
    assert ec_of(verdict.instead) == Ec.REMOTING
    broken = judge_inbound(get(None))
    assert isinstance(broken, ToOriginal)
    assert broken.uri == ""
    assert ec_of(broken.instead) == Ec.REMOTING


def test_read_route_tells_requests_from_everything_else() -> None:
    assert isinstance(read_route(get()), Route)
    assert isinstance(read_route(get(None)), BadRequest)
    assert read_route(command(b"GET", b"{not json")) is None
    assert read_route(command(b"GET", b"a", b"b")) is None
    assert read_route(command(b"SET", b"{}")) is None
    lower = command(b"get", get().args[1])
    assert isinstance(read_route(lower), Route)
