"""Log events sent to journald as fields, by its native protocol (JOURNAL_NATIVE_PROTOCOL).

`MESSAGE` is the event, `PRIORITY` its level as in syslog(3), `SYSLOG_IDENTIFIER` the command,
and `MOA_<KEY>` each value: `journalctl MOA_CGROUP=/app.slice`.
"""

from __future__ import annotations

import json
import os
import re
import socket
import struct
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

SOCKET = "/run/systemd/journal/socket"
MAX_BYTES = 128 * 1024
"""Of a datagram; a larger event is cut, as journald would want it in a file."""

_PRIORITIES = {"critical": 2, "error": 3, "exception": 3, "warning": 4, "info": 6, "debug": 7}
_OTHER = re.compile(r"[^A-Z0-9_]")


def is_ours(stderr_fd: int = 2) -> bool:
    """Whether journald reads this process's stderr, as JOURNAL_STREAM tells."""
    device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
    with suppress(OSError, ValueError):
        status = os.fstat(stderr_fd)
        return (status.st_dev, status.st_ino) == (int(device), int(inode))
    return False


def datagram(identifier: str, event: Mapping[str, Any]) -> bytes:
    """One event; `event` and `level` are taken out of it, everything else is a field."""
    level = str(event.get("level", "info"))
    parts = [
        _field("MESSAGE", str(event.get("event", ""))),
        _field("PRIORITY", str(_PRIORITIES.get(level, 6))),
        _field("SYSLOG_IDENTIFIER", identifier),
    ]
    for key, value in event.items():
        if key not in ("event", "level"):
            text = value if isinstance(value, str) else json.dumps(value, default=str)
            parts.append(_field("MOA_" + _OTHER.sub("_", key.upper()), text))
    return b"".join(parts)[:MAX_BYTES]


def _field(name: str, text: str) -> bytes:
    value = text.encode(errors="replace")
    if b"\n" not in value:
        return name.encode() + b"=" + value + b"\n"
    # One of several lines comes with its length, little-endian.
    return name.encode() + b"\n" + struct.pack("<Q", len(value)) + value + b"\n"


class JournalLogger:
    """What structlog gives its rendered events to. Never blocks: a journal that is full or gone
    loses the line, and not the time of the event loop."""

    def __init__(self, path: str = SOCKET) -> None:
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)

    def msg(self, message: bytes) -> None:
        """Send one datagram."""
        with suppress(OSError):
            self._socket.sendto(message, self._path)

    debug = info = warning = error = critical = exception = log = msg


class Renderer:
    """The last processor of structlog's chain."""

    def __init__(self) -> None:
        self._identifier = Path(sys.argv[0]).name or "moa"

    def __call__(self, _logger: Any, _method: str, event: Mapping[str, Any]) -> bytes:
        return datagram(self._identifier, event)
