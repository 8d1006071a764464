"""The last known services on disk, so that an agent that starts without its registry routes.

The file is JSON: `{"format": 1, "services": {"<name>": {"version", "members", "kept", "marks"}}}`
with members as in `member.py` and marks as in `marks.py`. Marks may be missing: agents before
0.2 write none and read past them, so that an upgrade and the way back keep the copy. It is
replaced as a whole, so a crash leaves the old or the new one, and readable by its owner only.
Both functions block on the disk.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from glob import escape
from pathlib import Path
from typing import Any

from proxy.core.model import ServiceKey
from proxy.registry.keys import BadServiceName, parse_name
from proxy.registry.view import ServiceView, restored

FORMAT = 1
MAX_BYTES = 64 * 1024 * 1024

_TEMPORARY = ".new"


class LastKnownError(Exception):
    """The copy cannot be read or written: which file, and why."""


def save(path: Path, views: Mapping[ServiceKey, ServiceView]) -> None:
    """Replace the copy; raises LastKnownError, and then the old one is still there."""
    services = {
        str(key): {
            "version": v.version,
            "members": list(v.members),
            "kept": list(v.kept),
            "marks": [f"{a} {mark}" for a, marks in v.marks.items() for mark in sorted(marks)],
        }
        for key, v in views.items()
    }
    text = json.dumps({"format": FORMAT, "services": services}, indent=0)
    try:
        _replace(path, text.encode())
    except OSError as error:
        raise LastKnownError(f"write the last known services to {path}: {error}") from error


def load(path: Path) -> dict[ServiceKey, ServiceView]:
    """Read the copy; {} when there is none. Raises LastKnownError."""
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


def _replace(path: Path, data: bytes) -> None:
    prefix = f".{path.name}."
    # One agent writes here: what an earlier save left, it left because it was killed.
    for leftover in path.parent.glob(f"{escape(prefix)}*{_TEMPORARY}"):
        leftover.unlink(missing_ok=True)
    # mkstemp makes the file with mode 0600.
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=prefix, suffix=_TEMPORARY)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
