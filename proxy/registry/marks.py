"""What others than an instance itself say of it: the words of `moa:marks` and their meaning here.

A field of the hash is `<host:port> <mark>` (docs/PROTOCOL.md, "Marks"). A mark belongs to an
address within a service, so it stays when the instance registers with other parameters.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace

from proxy.core.model import MESH, Address, Instance
from proxy.registry.member import BadMember, parse_address

Marks = Mapping[Address, frozenset[str]]

MAX_WHO_BYTES = 128
MAX_WHY_BYTES = 512

_MARK = re.compile(r"[a-z][a-z0-9_.-]{0,31}")
_WHO = re.compile(r"[^\x00-\x20\x7f]+")


class BadMark(ValueError):
    """A mark that cannot be used: what was seen and what was expected."""


def marked(instance: Instance, marks: frozenset[str]) -> Instance:
    """The instance with exactly these marks; `MESH` adds its protocol when that is missing."""
    protocols = instance.protocols
    if MESH in marks and MESH not in protocols:
        protocols = (*protocols, MESH)
    return replace(instance, protocols=protocols, marks=marks)


def parse_fields(fields: Iterable[str]) -> tuple[dict[Address, frozenset[str]], tuple[str, ...]]:
    """The marks of each address, and what is wrong with those that cannot be read."""
    found: dict[Address, set[str]] = {}
    broken = []
    for field in sorted(fields):
        hostport, _, mark = field.partition(" ")
        try:
            address = parse_address(hostport)
            check_mark(mark)
        except (BadMember, BadMark) as error:
            broken.append(f"mark {field[:80]!r}: {error}")
            continue
        found.setdefault(address, set()).add(mark)
    return {address: frozenset(marks) for address, marks in found.items()}, tuple(broken)


def check_mark(mark: str) -> None:
    """Refuse what is no name of a mark; raises BadMark."""
    if not _MARK.fullmatch(mark):
        raise BadMark(f"expected a mark such as drain, seen {mark[:40]!r}")


def check_author(who: str, why: str) -> None:
    """Refuse what could not be read back from a value; raises BadMark."""
    if not _WHO.fullmatch(who) or len(who.encode()) > MAX_WHO_BYTES:
        raise BadMark(f"who: expected 1 to {MAX_WHO_BYTES} bytes without spaces, seen {who[:40]!r}")
    if len(why.encode(errors="replace")) > MAX_WHY_BYTES:
        raise BadMark(f"why: longer than {MAX_WHY_BYTES} bytes")
