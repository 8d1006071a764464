"""Answers the connection commands of Redis clients, so that they connect without a setting.

Texts and orders are those of redis-server 7.0 without a password and with one database. The
commands that a MOA service answers itself (GET) and those that no MOA service knows are left
to the caller.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass

from proxy.wire.resp import NULL, OK, Command, array, bulk, error, integer, simple

REDIS_VERSION = b"7.0.15"
"""What HELLO says we are: clients choose features by it, and 7.0 has those we answer."""

_NULL_RESP3 = b"_\r\n"
_SYNTAX_ERROR = error("ERR syntax error")
_WRONG_PASSWORD = error("WRONGPASS invalid username-password pair or user is disabled.")
_NO_PASSWORD = error(
    "ERR AUTH <password> called without any password configured for the default user. "
    "Are you sure your configuration is correct?"
)
_NO_PROTOCOL = error("NOPROTO unsupported protocol version")
_BAD_PROTOCOL = error("ERR Protocol version is not an integer or out of range")
_BAD_NAME = error("ERR Client names cannot contain spaces, newlines or special characters.")
_BAD_DATABASE = error("ERR DB index is out of range")
_NOT_A_NUMBER = error("ERR value is not an integer or out of range")
_QUOTED_CHARS = 128


@dataclass(slots=True)
class Counters:
    """What INFO reports, with the public names of MOA; counts since the start, gauges last."""

    recv: int = 0
    proc: int = 0
    error: int = 0
    read_count: int = 0
    read_bytes: int = 0
    write_count: int = 0
    write_bytes: int = 0
    dispatcher_go: int = 0
    connections: int = 0


@dataclass(slots=True)
class SessionState:
    """What one client's connection has set; `counters` is shared by all of them.

    `closing` becomes true with QUIT: send the answer, then close. `resp` is the protocol
    version that HELLO chose.
    """

    client_id: int
    counters: Counters
    peer: str = ""
    local: str = ""
    name: bytes = b""
    lib_name: bytes = b""
    lib_version: bytes = b""
    resp: int = 2
    closing: bool = False


Args = tuple[bytes, ...]
Handler = Callable[[Args, SessionState], bytes]


@dataclass(frozen=True, slots=True)
class _Entry:
    """How a command is answered; the bounds count the arguments behind its name."""

    handler: Handler
    least: int = 0
    most: int | None = None


def is_connection_command(command: Command) -> bool:
    """Whether `answer` knows this command; changes nothing."""
    return command.name in _COMMANDS


def answer(command: Command, state: SessionState) -> bytes | None:
    """The reply to a connection command; None when the command is not one of them."""
    entry = _COMMANDS.get(command.name)
    if entry is None:
        return None
    return _run(entry, command.name, command.args[1:], state)


def unknown_command(command: Command) -> bytes:
    """The error of redis-server for a command that it does not know."""
    text = b"ERR unknown command '%b', with args beginning with: " % command.args[0][:_QUOTED_CHARS]
    for arg in command.args[1:]:
        if len(text) >= 2 * _QUOTED_CHARS:
            break
        text += b"'%b' " % arg[:_QUOTED_CHARS]
    return error(text)


def _run(entry: _Entry, name: bytes, args: Args, state: SessionState) -> bytes:
    if len(args) < entry.least or (entry.most is not None and len(args) > entry.most):
        return error(b"ERR wrong number of arguments for '%b' command" % name.lower())
    return entry.handler(args, state)


def _subcommands(parent: bytes, table: dict[bytes, _Entry]) -> Handler:
    def handle(args: Args, state: SessionState) -> bytes:
        entry = table.get(args[0].upper())
        if entry is None:
            return error(
                b"ERR unknown subcommand '%b'. Try %b HELP." % (args[0][:_QUOTED_CHARS], parent)
            )
        return _run(entry, parent + b"|" + args[0], args[1:], state)

    return handle


def _constant(reply: bytes) -> Handler:
    return lambda _args, _state: reply


def _null(state: SessionState) -> bytes:
    return NULL if state.resp == 2 else _NULL_RESP3


def _map(state: SessionState, *items: bytes) -> bytes:
    """Keys and values in turn: a map in RESP3, a flat array in RESP2."""
    if state.resp == 2:
        return array(*items)
    return b"%%%d\r\n%b" % (len(items) // 2, b"".join(items))


def _ping(args: Args, _state: SessionState) -> bytes:
    return bulk(args[0]) if args else b"+PONG\r\n"


def info_json(counters: Counters) -> str:
    """What INFO answers in every protocol."""
    counts = asdict(counters)
    moa = {key: counts.pop(key) for key in ("recv", "proc", "error")}
    return json.dumps({"moa": moa, "network": counts}, separators=(",", ":"))


def _info(_args: Args, state: SessionState) -> bytes:
    return simple(info_json(state.counters))


def _hello(args: Args, state: SessionState) -> bytes:
    """RESP3 is granted: redis-py 8 asks for it and has no way back. Every reply that MOA
    knows (bulk, simple string, error) is the same in both versions."""
    version = state.resp
    if args:
        if not args[0].isdigit():
            return _BAD_PROTOCOL
        if args[0] not in (b"2", b"3"):
            return _NO_PROTOCOL
        version = int(args[0])
    name = state.name
    options = list(args[1:])
    while options:
        option = options.pop(0)
        if option.upper() == b"AUTH" and len(options) >= 2:
            if options[0] != b"default":
                return _WRONG_PASSWORD
            del options[:2]
        elif option.upper() == b"SETNAME" and options:
            name = options.pop(0)
            if not _is_name(name):
                return _BAD_NAME
        else:
            return error(b"ERR Syntax error in HELLO option '%b'" % option[:_QUOTED_CHARS])
    state.resp, state.name = version, name
    return _describe_server(state)


def _describe_server(state: SessionState) -> bytes:
    fields = {
        b"server": bulk(b"redis"),
        b"version": bulk(REDIS_VERSION),
        b"proto": integer(state.resp),
        b"id": integer(state.client_id),
        b"mode": bulk(b"standalone"),
        b"role": bulk(b"master"),
        b"modules": array(),
    }
    return _map(state, *(part for key, value in fields.items() for part in (bulk(key), value)))


def _auth(args: Args, _state: SessionState) -> bytes:
    if len(args) == 1:
        return _NO_PASSWORD
    return OK if args[0] == b"default" else _WRONG_PASSWORD


def _select(args: Args, _state: SessionState) -> bytes:
    if not args[0].removeprefix(b"-").isdigit():
        return _NOT_A_NUMBER
    return OK if args[0] == b"0" else _BAD_DATABASE


def _quit(_args: Args, state: SessionState) -> bytes:
    state.closing = True
    return OK


def _reset(_args: Args, state: SessionState) -> bytes:
    state.name, state.resp = b"", 2
    return b"+RESET\r\n"


def _is_name(text: bytes) -> bool:
    return all(ord("!") <= byte <= ord("~") for byte in text)


def _client_setname(args: Args, state: SessionState) -> bytes:
    if not _is_name(args[0]):
        return _BAD_NAME
    state.name = args[0]
    return OK


def _client_getname(_args: Args, state: SessionState) -> bytes:
    return bulk(state.name) if state.name else _null(state)


def _client_setinfo(args: Args, state: SessionState) -> bytes:
    option, value = args[0].lower(), args[1]
    if option not in (b"lib-name", b"lib-ver"):
        return error(b"ERR Unrecognized option '%b'" % args[0][:_QUOTED_CHARS])
    if not _is_name(value):
        return error(b"ERR %b cannot contain spaces, newlines or special characters." % option)
    if option == b"lib-name":
        state.lib_name = value
    else:
        state.lib_version = value
    return OK


def _client_info(_args: Args, state: SessionState) -> bytes:
    fields = (
        f"id={state.client_id} addr={state.peer} laddr={state.local} "
        f"name={state.name.decode()} db=0 user=default resp={state.resp} "
        f"lib-name={state.lib_name.decode()} lib-ver={state.lib_version.decode()}\n"
    )
    return bulk(fields.encode())


def _client_on_off(args: Args, _state: SessionState) -> bytes:
    return OK if args[0].lower() in (b"on", b"off") else _SYNTAX_ERROR


def _command_info(args: Args, state: SessionState) -> bytes:
    return array(*(_null(state) for _ in args))


_CLIENT = {
    b"GETNAME": _Entry(_client_getname, 0, 0),
    b"ID": _Entry(lambda _args, state: integer(state.client_id), 0, 0),
    b"INFO": _Entry(_client_info, 0, 0),
    b"LIST": _Entry(_client_info),
    b"NO-EVICT": _Entry(_client_on_off, 1, 1),
    b"NO-TOUCH": _Entry(_client_on_off, 1, 1),
    b"SETINFO": _Entry(_client_setinfo, 2, 2),
    b"SETNAME": _Entry(_client_setname, 1, 1),
}

_COMMAND = {
    b"COUNT": _Entry(_constant(integer(0)), 0, 0),
    b"DOCS": _Entry(lambda _args, state: _map(state)),
    b"INFO": _Entry(_command_info),
    b"LIST": _Entry(_constant(array())),
}

_handle_command = _subcommands(b"COMMAND", _COMMAND)

_COMMANDS = {
    b"AUTH": _Entry(_auth, 1, 2),
    b"CLIENT": _Entry(_subcommands(b"CLIENT", _CLIENT), 1),
    b"COMMAND": _Entry(lambda args, state: _handle_command(args, state) if args else array()),
    b"ECHO": _Entry(lambda args, _state: bulk(args[0]), 1, 1),
    b"HELLO": _Entry(_hello),
    b"INFO": _Entry(_info),
    b"PING": _Entry(_ping, 0, 1),
    b"QUIT": _Entry(_quit),
    b"RESET": _Entry(_reset, 0, 0),
    b"SELECT": _Entry(_select, 1, 1),
}
