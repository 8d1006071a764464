"""The audit trail: what was done to instances, when, by whom and why, as a bounded stream.

It is on a slot of its own, so an entry is written right after its change and not with it: a
watcher that dies in between leaves the change without a line. What is offline also says in its
own entry who took it out, when and why.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from proxy.registry import keys
from proxy.registry.clients import RedisClient

MAX_ENTRIES = 10_000
"""About; Redis cuts whole nodes of the stream."""

_PAGE = 1000


@dataclass(frozen=True, slots=True)
class Entry:
    """One line. `what` is taken-out, put-back, kept-last, forgotten, doubt, trust, drain, maint or
    ready; `service` and `address` are empty where it is about a watcher. `at_ms` is Redis's."""

    who: str
    what: str
    service: str = ""
    address: str = ""
    member: str = ""
    why: str = ""
    at_ms: int = 0


async def write(client: RedisClient, entries: Iterable[Entry]) -> None:
    """Append these; raises redis-py's errors."""
    async with client.pipeline(transaction=False) as pipe:
        for entry in entries:
            fields: dict[Any, Any] = {
                name: getattr(entry, name)
                for name in ("who", "what", "service", "address", "member", "why")
                if getattr(entry, name)
            }
            pipe.xadd(keys.WATCH_LOG, fields, maxlen=MAX_ENTRIES, approximate=True)
        await pipe.execute()


async def read(client: RedisClient, count: int, service: str = "") -> list[Entry]:
    """The newest `count` entries, of one service or of all, the oldest of them first."""
    found: list[Entry] = []
    newest = "+"
    while len(found) < count:
        page: Any = await client.xrevrange(keys.WATCH_LOG, max=newest, count=_PAGE)
        found += [e for e in map(_entry, page) if not service or e.service == service]
        if len(page) < _PAGE:
            break
        newest = "(" + page[-1][0].decode()
    return found[:count][::-1]


def _entry(raw: tuple[bytes, dict[bytes, bytes]]) -> Entry:
    number, fields = raw
    texts = {
        name.decode(errors="replace"): v.decode(errors="replace") for name, v in fields.items()
    }
    known = {name: texts.get(name, "") for name in Entry.__slots__ if name != "at_ms"}
    return Entry(**known, at_ms=int(number.partition(b"-")[0]))
