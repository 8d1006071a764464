"""The names that agents leave in `agent.runtime_dir`: who lives, and which dead one has an estate.

Names carry the process id of their agent (docs/UPGRADE.md). They are looked at in
/proc/net/unix and never connected to in order to look: a keeper counts a caller as an heir.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
from contextlib import suppress
from pathlib import Path

import structlog

from installer.link import MAX_DATAGRAM, decode

_NAME = re.compile(r"(link|keeper|handover|agent)-([0-9]{1,10})\.sock")
_PROC_UNIX = Path("/proc/net/unix")

log = structlog.get_logger("opsd")


def keeper_path(runtime_dir: Path, pid: int) -> Path:
    """Where the keeper of the agent with this process id answers."""
    return runtime_dir / f"keeper-{pid}.sock"


def handover_path(runtime_dir: Path, pid: int) -> Path:
    """Where that agent can be taken over from."""
    return runtime_dir / f"handover-{pid}.sock"


def served(runtime_dir: Path, kind: str) -> set[int]:
    """Process ids of the names of this kind (`link`, `keeper`) that somebody has open."""
    prefix = f"{runtime_dir}/"
    found = set()
    for line in _PROC_UNIX.read_text(errors="replace").splitlines()[1:]:
        path = line.partition("/")
        name = ("/" + path[2]).removeprefix(prefix)
        match = _NAME.fullmatch(name) if path[1] else None
        if match and match[1] == kind and (runtime_dir / name).exists():
            found.add(int(match[2]))
    return found


def is_alive(pid: int) -> bool:
    """Whether there is such a process that has not ended; a zombie has."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return False
    return stat.rpartition(b") ")[2][:1] not in (b"Z", b"X", b"")


def of_the_dead(runtime_dir: Path) -> list[int]:
    """Process ids of dead agents whose keepers still hold their descriptors; the last first."""
    found = [pid for pid in served(runtime_dir, "keeper") if not is_alive(pid)]
    times = {pid: _mtime(keeper_path(runtime_dir, pid)) for pid in found}
    return sorted(found, key=lambda pid: times[pid], reverse=True)


def clean(runtime_dir: Path) -> None:
    """Remove the names whose agent is dead and that nobody has open."""
    held = {kind: served(runtime_dir, kind) for kind in ("link", "keeper", "handover", "agent")}
    with suppress(OSError):
        for name in os.listdir(runtime_dir):
            match = _NAME.fullmatch(name)
            if match is None:
                continue
            kind, pid = match[1], int(match[2])
            if pid not in held[kind] and not is_alive(pid):
                with suppress(OSError):
                    os.unlink(runtime_dir / name)


async def release(runtime_dir: Path, pid: int, within_s: float = 5.0) -> None:
    """Have a dead agent's keeper close everything; returns when it has gone. Nobody there is
    nothing to do."""
    path = keeper_path(runtime_dir, pid)
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK) as sock:
        try:
            sock.connect(str(path))
            async with asyncio.timeout(within_s):
                await loop.sock_sendall(sock, json.dumps({"do": "release"}).encode())
                answer = decode(await loop.sock_recv(sock, MAX_DATAGRAM)) or {}
                await _gone(answer.get("keeper"))
        except (FileNotFoundError, ConnectionError):
            return
        except (OSError, TimeoutError) as error:
            log.warning("keeper not released", path=str(path), error=str(error) or "no answer")


async def _gone(pid: object) -> None:
    """Wait for the end of a process that is not our child."""
    if not isinstance(pid, int) or pid <= 0:
        return
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(pidfd, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(pidfd)
        os.close(pidfd)


def _mtime(path: Path) -> float:
    with suppress(OSError):
        return path.stat().st_mtime
    return 0.0
