"""Connection commands: exact answers, and real clients that connect without a setting."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import redis.asyncio
from redis.exceptions import ResponseError

from proxy.wire.redis_server import Counters, SessionState, answer, unknown_command
from proxy.wire.resp import Command, RequestParser, bulk, encode_command

HELLO_FIELDS = (
    b"$6\r\nserver\r\n$5\r\nredis\r\n$7\r\nversion\r\n$6\r\n7.0.15\r\n$5\r\nproto\r\n:%d\r\n"
    b"$2\r\nid\r\n:7\r\n$4\r\nmode\r\n$10\r\nstandalone\r\n$4\r\nrole\r\n$6\r\nmaster\r\n"
    b"$7\r\nmodules\r\n*0\r\n"
)
HELLO_2 = b"*14\r\n" + HELLO_FIELDS % 2
HELLO_3 = b"%7\r\n" + HELLO_FIELDS % 3


def session() -> SessionState:
    return SessionState(client_id=7, counters=Counters(), peer="10.0.0.1:1", local="10.0.0.2:2")


def command(line: bytes) -> Command:
    (parsed,) = RequestParser().feed(line + b"\r\n")
    return parsed


# Recorded from redis-server 7.0.15 without a password; SETINFO and NO-TOUCH are of 7.2,
# and ours has a single database.
RECORDED = [
    (b"PING", b"+PONG\r\n"),
    (b"ping hi", b"$2\r\nhi\r\n"),
    (b"PING a b", b"-ERR wrong number of arguments for 'ping' command\r\n"),
    (b"ECHO x", b"$1\r\nx\r\n"),
    (b"ECHO", b"-ERR wrong number of arguments for 'echo' command\r\n"),
    (b"HELLO", HELLO_2),
    (b"HELLO 2", HELLO_2),
    (b"HELLO 3", HELLO_3),
    (b"HELLO 4", b"-NOPROTO unsupported protocol version\r\n"),
    (b"HELLO x", b"-ERR Protocol version is not an integer or out of range\r\n"),
    (b"HELLO 2 SETNAME foo", HELLO_2),
    (b"HELLO 2 AUTH default x SETNAME foo", HELLO_2),
    (b"HELLO 2 SETNAME", b"-ERR Syntax error in HELLO option 'SETNAME'\r\n"),
    (b"HELLO 2 BAD", b"-ERR Syntax error in HELLO option 'BAD'\r\n"),
    (
        b"HELLO 2 AUTH u x",
        b"-WRONGPASS invalid username-password pair or user is disabled.\r\n",
    ),
    (
        b'HELLO 2 SETNAME "a b"',
        b"-ERR Client names cannot contain spaces, newlines or special characters.\r\n",
    ),
    (b"CLIENT", b"-ERR wrong number of arguments for 'client' command\r\n"),
    (b"CLIENT SETNAME x", b"+OK\r\n"),
    (b"CLIENT GETNAME", b"$-1\r\n"),
    (b"CLIENT ID", b":7\r\n"),
    (b"CLIENT ID x", b"-ERR wrong number of arguments for 'client|id' command\r\n"),
    (b"CLIENT NO-EVICT ON", b"+OK\r\n"),
    (b"CLIENT NO-EVICT x", b"-ERR syntax error\r\n"),
    (b"CLIENT NO-TOUCH on", b"+OK\r\n"),
    (b"CLIENT FOO", b"-ERR unknown subcommand 'FOO'. Try CLIENT HELP.\r\n"),
    (b"CLIENT SETINFO lib-name redis-py", b"+OK\r\n"),
    (b"CLIENT SETINFO LIB-VER 5.0", b"+OK\r\n"),
    (b"CLIENT SETINFO x y", b"-ERR Unrecognized option 'x'\r\n"),
    (b"SELECT 0", b"+OK\r\n"),
    (b"SELECT 99", b"-ERR DB index is out of range\r\n"),
    (b"SELECT -1", b"-ERR DB index is out of range\r\n"),
    (b"SELECT x", b"-ERR value is not an integer or out of range\r\n"),
    (
        b"AUTH x",
        b"-ERR AUTH <password> called without any password configured for the default user. "
        b"Are you sure your configuration is correct?\r\n",
    ),
    (b"AUTH default x", b"+OK\r\n"),
    (b"AUTH u x", b"-WRONGPASS invalid username-password pair or user is disabled.\r\n"),
    (b"COMMAND", b"*0\r\n"),
    (b"COMMAND COUNT", b":0\r\n"),
    (b"COMMAND DOCS nosuch", b"*0\r\n"),
    (b"COMMAND INFO a b", b"*2\r\n$-1\r\n$-1\r\n"),
    (b"COMMAND FOO", b"-ERR unknown subcommand 'FOO'. Try COMMAND HELP.\r\n"),
    (b"RESET", b"+RESET\r\n"),
    (b"QUIT", b"+OK\r\n"),
]


@pytest.mark.parametrize(("line", "reply"), RECORDED)
def test_answers_as_recorded(line: bytes, reply: bytes) -> None:
    assert answer(command(line), session()) == reply


@pytest.mark.parametrize("line", [b"GET {}", b"SET a b", b"SUBSCRIBE x", b"FOO"])
def test_other_commands_are_the_caller_s(line: bytes) -> None:
    assert answer(command(line), session()) is None


def test_session_remembers_and_reset_forgets() -> None:
    state = session()
    answer(command(b"HELLO 3 SETNAME worker"), state)
    assert (state.resp, state.name) == (3, b"worker")
    assert answer(command(b"CLIENT GETNAME"), state) == b"$6\r\nworker\r\n"
    answer(command(b"RESET"), state)
    assert (state.resp, state.name, state.closing) == (2, b"", False)


def test_failed_hello_changes_nothing() -> None:
    state = session()
    answer(command(b"HELLO 3 SETNAME x BAD"), state)
    assert (state.resp, state.name) == (2, b"")


def test_resp3_session_gets_resp3_null_and_map() -> None:
    state = session()
    answer(command(b"HELLO 3"), state)
    assert answer(command(b"CLIENT GETNAME"), state) == b"_\r\n"
    assert answer(command(b"COMMAND DOCS"), state) == b"%0\r\n"


def test_quit_asks_for_closing() -> None:
    state = session()
    assert answer(command(b"QUIT"), state) == b"+OK\r\n"
    assert state.closing


def test_client_list_describes_the_session() -> None:
    state = session()
    answer(command(b"CLIENT SETINFO lib-name redis-py"), state)
    reply = answer(command(b"CLIENT LIST"), state) or b""
    assert b"id=7 addr=10.0.0.1:1 laddr=10.0.0.2:2 name= " in reply
    assert b"lib-name=redis-py" in reply


def test_info_is_a_simple_string_of_json() -> None:
    state = session()
    state.counters.recv, state.counters.read_bytes = 3, 99
    reply = answer(command(b"INFO"), state) or b""
    assert (reply[:1], reply[-2:]) == (b"+", b"\r\n")
    info = json.loads(reply[1:])
    assert info["moa"] == {"recv": 3, "proc": 0, "error": 0}
    assert set(info["network"]) == {
        "read_count", "read_bytes", "write_count", "write_bytes", "dispatcher_go", "connections",
    }  # fmt: skip
    assert info["network"]["read_bytes"] == 99


def test_unknown_command_reads_as_redis_says_it() -> None:
    (parsed,) = RequestParser().feed(encode_command(b"NO\r\nSUCH", b"a", b"b c", b"d" * 200))
    assert unknown_command(parsed) == (
        b"-ERR unknown command 'NO  SUCH', with args beginning with: 'a' 'b c' '%b' \r\n"
        % (b"d" * 128)
    )


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A service that echoes GET's key, on nothing but the codecs."""
    parser, state = RequestParser(), session()
    while not state.closing and (data := await reader.read(65536)):
        for parsed in parser.feed(data):
            if parsed.name == b"GET":
                reply = bulk(parsed.args[1])
            else:
                reply = answer(parsed, state) or unknown_command(parsed)
            writer.write(reply)
        await writer.drain()
    writer.close()


@asynccontextmanager
async def running_server() -> AsyncIterator[int]:
    server = await asyncio.start_server(_serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


@pytest.mark.parametrize("options", ["", "?protocol=2", "?protocol=3", "?client_name=me"])
async def test_redis_py_connects_without_a_setting(options: str) -> None:
    async with (
        running_server() as port,
        redis.asyncio.from_url(f"redis://127.0.0.1:{port}{options}") as client,
    ):
        assert await client.ping() is True
        assert await client.get("key") == b"key"
        assert str(await client.client_getname()) == ("me" if "name" in options else "None")
        big = b"x" * 300_000
        assert await client.get(big) == big
        with pytest.raises(ResponseError, match="unknown command"):
            await client.set("a", "b")
        async with client.pipeline(transaction=False) as pipe:
            for n in range(1000):
                pipe.get(str(n))
            assert await pipe.execute() == [str(n).encode() for n in range(1000)]


async def run_redis_cli(port: int, *args: str, stdin: bytes | None = None) -> str:
    process = await asyncio.create_subprocess_exec(
        "redis-cli", "-h", "127.0.0.1", "-p", str(port), *args,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    try:
        output, _ = await asyncio.wait_for(process.communicate(stdin or b""), 20)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return output.decode()


@pytest.mark.skipif(not shutil.which("redis-cli"), reason="redis-cli is missing: redis-tools")
async def test_redis_cli_connects_without_a_setting() -> None:
    async with running_server() as port:
        assert await run_redis_cli(port, "PING") == "PONG\n"
        assert await run_redis_cli(port, "GET", '{"a":1}') == '{"a":1}\n'
        assert await run_redis_cli(port, "-3", "GET", "x") == "x\n"
        script = b"CLIENT SETNAME me\nCLIENT GETNAME\nFOO\nGET hello\nQUIT\n"
        lines = (await run_redis_cli(port, stdin=script)).split("\n")
        assert lines[:2] == ["OK", "me"]
        assert lines[2].startswith("ERR unknown command 'FOO'")
        assert "hello" in lines
