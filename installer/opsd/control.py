"""The supervisor's control socket, `<agent.runtime_dir>/opsd.sock`, for root alone.

One line of JSON asks, `{"do": "upgrade", "to": …}`, `rollback`, `restart`, `start` or `status`;
lines of JSON answer, the last of them with `"done": true`. Who goes away stops nothing.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import structlog

from installer.link import decode, is_trusted
from installer.opsd import systemd, versions
from installer.opsd.status import status
from installer.opsd.supervisor import Supervisor
from installer.opsd.upgrade_types import Outcome
from installer.opsd.upgrading import Line, Subscriber, Upgrading
from installer.opsd.versions import VersionError
from proxy.net.sockets import peer_credentials

NAME = "opsd.sock"
STORED = "control"

_MAX_LINE = 64 * 1024
_MAX_WAITING = 64
"""Lines that a caller has not read; beyond them only what is no mere progress is kept."""
_ASK_S = 10.0
_STATUS_STEP = "moactl agent status"

log = structlog.get_logger("opsd")


class Refusal(Exception):
    """What was asked cannot be done; `next_step` is what to do about it."""

    def __init__(self, text: str, next_step: str) -> None:
        super().__init__(text)
        self.next_step = next_step


def listen(runtime_dir: Path, kept: int | None) -> socket.socket:
    """The listening socket: the one that systemd kept over our crash, where callers wait, or a
    new one. The caller holds the supervisor's lock. Raises OSError."""
    path = str(runtime_dir / NAME)
    if kept is not None:
        if systemd.is_listening_at(kept, path):
            return socket.socket(fileno=kept)
        os.close(kept)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        with suppress(FileNotFoundError):
            os.unlink(path)
        sock.bind(path)
        os.chmod(path, 0o600)
        sock.listen(64)
    except BaseException:
        sock.close()
        raise
    return sock


class Control:
    """Serves from `start` to `close`."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._server: asyncio.Server | None = None

    async def start(self, listener: socket.socket) -> None:
        """`listener` becomes ours."""
        self._server = await asyncio.start_unix_server(self._serve, sock=listener, limit=_MAX_LINE)

    def close(self) -> None:
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            pid, uid = peer_credentials(writer.get_extra_info("socket"))
            if not is_trusted(uid):
                log.warning("control refused", pid=pid, uid=uid)
                raise Refusal(f"user {uid} may not ask", "run it as root")
            async with asyncio.timeout(_ASK_S):
                line = await reader.readline()
            asked = decode(line)
            if asked is None:
                raise Refusal("expected one line with a JSON object", "moactl agent --help")
            await self._answer(asked, writer)
        except Refusal as refusal:
            _send(writer, refused(refusal))
        except (OSError, ValueError, TimeoutError):
            pass  # the caller has gone, or never said what it wants
        finally:
            with suppress(OSError, asyncio.CancelledError):
                writer.close()
                await writer.wait_closed()

    async def _answer(self, asked: Mapping[str, Any], writer: asyncio.StreamWriter) -> None:
        do = asked.get("do")
        if do == "status":
            _send(writer, {"event": "status", **status(self._supervisor), "done": True})
            return
        if do == "start":
            started = self._supervisor.start_now()
            _send(writer, {"event": "start", "started": started, "done": True})
            return
        wanted = Outcome.UPGRADED
        if do == "rollback":
            upgrading, wanted = self._roll_back(asked)
        elif do in ("upgrade", "restart"):
            to = _text(asked, "to") if do == "upgrade" else self._same()
            upgrading = self._upgrade(to, asked)
        else:
            raise Refusal(
                f"expected upgrade, rollback, restart, start or status, saw {do!r}",
                "moactl agent --help",
            )
        await _stream(upgrading, wanted, writer)

    def _upgrade(self, to: str, asked: Mapping[str, Any]) -> Upgrading:
        supervisor, bake_s = self._supervisor, asked.get("bake_s")
        if bake_s is not None and not (isinstance(bake_s, int | float) and 0 <= bake_s <= 86_400):
            raise Refusal(f"bake_s: expected 0 to 86400 seconds, saw {bake_s!r}", "--bake 30")
        if (under_way := supervisor.upgrading) is not None:
            raise Refusal(
                f"an upgrade is under way, to {under_way.target}, "
                f"{under_way.machine.stage}: one at a time",
                "moactl agent status; while it bakes, moactl agent rollback",
            )
        agent = supervisor.current
        if agent is None or not agent.has_served or not agent.is_linked:
            seen = "no agent runs" if agent is None else f"agent {agent.pid} does not serve yet"
            raise Refusal(f"{seen}: there is nothing to take over from", _STATUS_STEP)
        try:
            target = versions.resolve(to)
        except VersionError as error:
            raise Refusal(str(error), "moactl agent versions") from None
        upgrading = Upgrading(supervisor, supervisor.settings, agent, target, bake_s=bake_s)
        supervisor.upgrade(upgrading)
        return upgrading

    def _roll_back(self, asked: Mapping[str, Any]) -> tuple[Upgrading, Outcome]:
        upgrading = self._supervisor.upgrading
        if upgrading is not None:
            if upgrading.roll_back("asked to roll back"):
                return upgrading, Outcome.ROLLED_BACK
            raise Refusal(
                f"the upgrade under way is {upgrading.machine.stage} and cannot be rolled back "
                "just now",
                "try again; moactl agent status",
            )
        previous = versions.load(self._supervisor.settings.state_dir).previous
        if previous is None:
            raise Refusal("there is no previous version", "moactl agent upgrade --to VERSION")
        return self._upgrade(previous, asked), Outcome.UPGRADED

    def _same(self) -> str:
        agent = self._supervisor.current
        if agent is None or agent.environment is None:
            return str(versions.own_environment())
        return str(agent.environment)


def refused(refusal: Refusal) -> Line:
    """The one line of an answer that is none."""
    return {"event": "error", "error": str(refusal), "next": refusal.next_step, "done": True}


async def _stream(upgrading: Upgrading, wanted: Outcome, writer: asyncio.StreamWriter) -> None:
    """Every line until the last, or until the caller goes away; one that does not read loses
    what is between."""
    lines: asyncio.Queue[Line] = asyncio.Queue()

    def tell(line: Line) -> None:
        if line["event"] != "progress" or lines.qsize() < _MAX_WAITING:
            lines.put_nowait(line)

    subscriber = Subscriber(tell, wanted)
    upgrading.subscribe(subscriber)
    try:
        while True:
            line = await lines.get()
            if line["event"] == "progress" and not lines.empty():
                continue
            _send(writer, line)
            await writer.drain()
            if line["done"]:
                return
    finally:
        upgrading.unsubscribe(subscriber)


def _send(writer: asyncio.StreamWriter, line: Mapping[str, Any]) -> None:
    writer.write(json.dumps(line).encode() + b"\n")


def _text(asked: Mapping[str, Any], name: str) -> str:
    value = asked.get(name)
    if not isinstance(value, str) or not value or len(value) > 4096 or "\0" in value:
        raise Refusal(f"{name}: expected a version or a path, saw {value!r}", "--to VERSION")
    return value
