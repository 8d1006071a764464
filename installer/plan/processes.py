"""The product's own processes: started by systemd where it runs, and as daemons where not.

Ours are those that run a command of the private environment in our own mount namespace; what
an operator started elsewhere is not touched.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from installer.client import AgentClient, AgentError
from installer.plan.environment import CURRENT, VERSIONS

LOG_DIRECTORY = "/var/log/moa"
START_S = 120.0
"""How long an agent that lives may take until it answers; a slow machine takes its time."""
STARTS = 3
"""How often systemd tries before it is said that the agent does not start."""
STOP_MARGIN_S = 10.0
"""What a process may take besides draining."""

_POLL_S = 0.05
_ASK_S = 1.0
_LOG_LINES = 5
# In this order: a supervisor would start again what is ended before it.
COMMANDS = ("moa-opsd", "moa-agent", "moa-lookup", "moa-watcher")


class ProcessError(Exception):
    """A process did not start or did not end; the text says what was seen."""


@dataclass(frozen=True, slots=True)
class Own:
    """A process of ours."""

    pid: int
    command: str


def has_systemd() -> bool:
    """Whether systemd runs this system, as sd_booted(3) tells."""
    return Path("/run/systemd/system").is_dir()


def systemctl(*arguments: str) -> None:
    """Raises ProcessError with its words."""
    done = subprocess.run(["systemctl", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ProcessError(f"systemctl {' '.join(arguments)}: {done.stderr.strip()}")


def running() -> list[Own]:
    """Ours that run now, in the order in which they are to be stopped."""
    found = (
        Own(pid, command)
        for pid in map(int, filter(str.isdigit, os.listdir("/proc")))
        if (command := _own_command(pid))
    )
    return sorted(found, key=lambda own: (COMMANDS.index(own.command), own.pid))


def start_daemon(command: str, arguments: list[str], client: AgentClient) -> int:
    """Start a command of the current version and wait until the agent answers; its process id.

    Raises ProcessError with the last lines of its log.
    """
    log = Path(LOG_DIRECTORY, f"{command}.log")
    with log.open("ab") as out:
        process = subprocess.Popen(
            [f"{CURRENT}/bin/{command}", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
            cwd="/",
        )
    wait_for_agent(client, lambda: process.poll() is not None, lambda: _tail(log))
    return process.pid


def wait_for_agent(
    client: AgentClient, has_ended: Callable[[], bool], words: Callable[[], str]
) -> None:
    """Wait for the agent's first answer; raises ProcessError."""
    deadline_s = time.monotonic() + START_S
    while True:
        ended = has_ended()
        try:
            client.status()
            return
        except AgentError as error:
            last = str(error)
        if ended:
            raise ProcessError(f"the agent ended at its start; its last words: {words()}")
        if time.monotonic() > deadline_s:
            raise ProcessError(f"the agent is not ready after {START_S:g} s: {last}; {words()}")
        time.sleep(_POLL_S)


def unit_has_ended(unit: str) -> Callable[[], bool]:
    """Whether a unit that was just started failed, or ended and was started again too often;
    systemd is asked once a second."""
    next_s = 0.0

    def has_ended() -> bool:
        nonlocal next_s
        if time.monotonic() < next_s:
            return False
        next_s = time.monotonic() + _ASK_S
        argv = ["systemctl", "show", unit, "--property=ActiveState,NRestarts"]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        seen = dict(line.partition("=")[::2] for line in done.stdout.splitlines())
        restarts = seen.get("NRestarts", "")
        return seen.get("ActiveState") == "failed" or (
            restarts.isdigit() and int(restarts) >= STARTS
        )

    return has_ended


def unit_words(unit: str) -> str:
    """The last that a unit said, and where there is more."""
    argv = ["journalctl", f"--unit={unit}", f"--lines={_LOG_LINES}", "--output=cat", "--no-pager"]
    with suppress(OSError):
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        return f"journalctl -u {unit}:\n{done.stdout.strip()}"
    return f"journalctl -u {unit}"


def stop(own: Own, timeout_s: float) -> None:
    """SIGTERM, and SIGKILL when it has not ended in time."""
    with suppress(ProcessLookupError):
        descriptor = os.pidfd_open(own.pid)
        try:
            if _own_command(own.pid) != own.command:
                return  # another process has the number by now
            signal.pidfd_send_signal(descriptor, signal.SIGTERM)
            if not select.select([descriptor], [], [], timeout_s)[0]:
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
                select.select([descriptor], [], [], STOP_MARGIN_S)
        finally:
            os.close(descriptor)


def _own_command(pid: int) -> str | None:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        same_mounts = os.stat(f"/proc/{pid}/ns/mnt").st_ino == os.stat("/proc/self/ns/mnt").st_ino
    except OSError:
        return None
    for word in words[:4]:  # the interpreter, its options, and then the script
        path = os.fsdecode(word)
        if same_mounts and path.startswith((f"{CURRENT}/bin/", f"{VERSIONS}/")):
            name = path.rpartition("/")[2]
            return name if name in COMMANDS else None
    return None


def _tail(log: Path) -> str:
    with suppress(OSError):
        return "\n".join(log.read_text(errors="replace").splitlines()[-_LOG_LINES:])
    return ""
