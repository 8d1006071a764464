"""What the supervisor says to systemd, where it runs: sd_notify(3) and its store of descriptors.

Without `NOTIFY_SOCKET` every word is dropped.
"""

from __future__ import annotations

import array
import os
import socket
import stat
from collections.abc import Sequence
from contextlib import suppress

import structlog

_FIRST_FD = 3

log = structlog.get_logger("opsd")


class Notifier:
    """Owns its socket. What is said twice in a row is sent once."""

    def __init__(self) -> None:
        self._target = os.environ.get("NOTIFY_SOCKET", "")
        self._socket: socket.socket | None = None
        self._status = ""
        if self._target[:1] in ("/", "@"):
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._is_ready = False

    @property
    def watchdog_s(self) -> float | None:
        """How often to say that we live: half of what systemd waits; None: never."""
        pid, text = os.environ.get("WATCHDOG_PID", ""), os.environ.get("WATCHDOG_USEC", "")
        if not text.isdigit() or int(text) == 0 or pid not in ("", str(os.getpid())):
            return None
        return int(text) / 2e6

    @property
    def is_ready(self) -> bool:
        return self._is_ready

    def ready(self) -> None:
        """The unit has started; once."""
        if not self._is_ready:
            self._is_ready = True
            self._send("READY=1")

    def wait(self, seconds: float) -> None:
        """The start, or the stop, takes so much longer from now on."""
        self._send(f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}")

    def watchdog(self) -> None:
        self._send("WATCHDOG=1")

    def stopping(self) -> None:
        self._send("STOPPING=1")

    def status(self, text: str) -> None:
        """One line for `systemctl status`."""
        if text != self._status:
            self._status = text
            self._send(f"STATUS={text}")

    def store(self, name: str, fd: int) -> None:
        """Have a descriptor kept over our own end; not polled, so it stays until removed.

        In place of what had the name: the store is small, and a reload stores all anew."""
        self.remove(name)
        self._send(f"FDSTORE=1\nFDNAME={name}\nFDPOLL=0", [fd])

    def remove(self, name: str) -> None:
        """Have what was stored under this name closed."""
        self._send(f"FDSTOREREMOVE=1\nFDNAME={name}")

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, text: str, fds: Sequence[int] = ()) -> None:
        if self._socket is None:
            return
        target = "\0" + self._target[1:] if self._target.startswith("@") else self._target
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            self._socket.sendmsg([text.encode()], rights, socket.MSG_NOSIGNAL, target)
        except OSError as error:
            log.warning("systemd not told", text=text, error=error.strerror)


def stored() -> dict[str, int]:
    """The descriptors that systemd kept, by name; the caller's from now on.

    Of two with one name the last counts and the first is closed.
    """
    number, pid = os.environ.pop("LISTEN_FDS", ""), os.environ.pop("LISTEN_PID", "")
    names = os.environ.pop("LISTEN_FDNAMES", "").split(":")
    if not number.isdigit() or pid != str(os.getpid()):
        return {}
    found: dict[str, int] = {}
    for index in range(int(number)):
        fd = _FIRST_FD + index
        with suppress(OSError):
            os.set_inheritable(fd, False)
            name = names[index] if index < len(names) else "unknown"
            if name in found:
                os.close(found[name])
            found[name] = fd
    return found


def is_listening_at(fd: int, path: str) -> bool:
    """Whether this is the listening unix socket whose name is at `path` now."""
    try:
        with socket.socket(fileno=os.dup(fd)) as sock:
            is_ours = sock.getsockname() == path
            listens = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        return bool(is_ours and listens and stat.S_ISSOCK(os.stat(path).st_mode))
    except OSError:
        return False
