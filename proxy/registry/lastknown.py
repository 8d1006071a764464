"""The last known services on disk, so that an agent that starts without its registry routes.

The file is JSON: `{"format": 1, "services": {"<name>": {"version", "members", "kept", "marks"}}}`
with members as in `member.py` and marks as in `marks.py`. Marks may be missing: agents before
0.2 write none and read past them, so that an upgrade and the way back keep the copy. It is
replaced as a whole, so a crash leaves the old or the new one, and readable by its owner only.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from proxy.core.model import ServiceKey
from proxy.registry import child
from proxy.registry.keys import BadServiceName, parse_name
from proxy.registry.view import ServiceView, restored

FORMAT = 1
MAX_BYTES = 64 * 1024 * 1024

_MEMBERS_AT_ONCE = 500
"""Written in one turn of the event loop, which takes about 0.3 ms."""


class LastKnownError(Exception):
    """The copy cannot be read or written: which file, and why."""


async def save(path: Path, views: Mapping[ServiceKey, ServiceView]) -> None:
    """Replace the copy; raises LastKnownError, and then the old one is still there.

    `views` must not change meanwhile. A child process waits for the disk, not the event loop.
    """
    with child.memory_file() as text:
        text.write(f'{{"format": {FORMAT}, "services": {{'.encode())
        written, comma = 0, ""
        for key, view in views.items():
            service = {
                "version": view.version,
                "members": list(view.members),
                "kept": list(view.kept),
                "marks": [f"{a} {m}" for a, marks in view.marks.items() for m in sorted(marks)],
            }
            text.write(f"{comma}\n{json.dumps(str(key))}: {json.dumps(service)}".encode())
            comma = ","
            written += 1 + len(view.members) + len(view.kept)
            if written >= _MEMBERS_AT_ONCE:
                written = 0
                await asyncio.sleep(0)
        text.write(b"}}\n")
        try:
            await child.run("write", path, text)
        except child.ChildError as error:
            raise LastKnownError(f"write the last known services to {path}: {error}") from error


def load(path: Path) -> dict[ServiceKey, ServiceView]:
    """Read the copy; {} when there is none. Raises LastKnownError. Blocks: for the start."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise LastKnownError(f"read the last known services from {path}: {error}") from error
    if len(raw) > MAX_BYTES:
        raise LastKnownError(f"{path}: more than {MAX_BYTES} bytes; remove it")
    try:
        return _read(json.loads(raw))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise LastKnownError(f"{path}: not a copy of services ({error}); remove it") from error


def _read(document: Any) -> dict[ServiceKey, ServiceView]:
    if document["format"] != FORMAT:
        raise ValueError(f"format {document['format']!r}, expected {FORMAT}")
    views = {}
    for name, service in document["services"].items():
        try:
            key = parse_name(name)
        except BadServiceName:
            continue
        views[key] = restored(
            _text(service["version"]),
            _texts(service["members"]),
            _texts(service["kept"]),
            _texts(service.get("marks", [])),
        )
    return views


def _text(value: Any) -> str | None:
    if not isinstance(value, str | None):
        raise TypeError(f"expected a text, seen {value!r}")
    return value


def _texts(value: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise TypeError("expected a list of texts")
    return value
