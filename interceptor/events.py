"""Decisions of the kernel as they happen: who dialled what, and where it was sent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from interceptor import abi, libbpf
from interceptor.abi import CfgFlag, Event, Reason
from interceptor.maps import Maps


@dataclass(frozen=True, slots=True)
class Decision:
    """One connect(), before and after translation; `after` is empty when it was left alone."""

    at_ns: int
    reason: Reason
    pid: int
    comm: str
    cgroup_id: int
    cookie: int
    before: str
    after: str


def _endpoint(family: int, addr_be: bytes, port_be: bytes) -> str:
    port = int.from_bytes(port_be, "big")
    if not port:
        return ""
    host = abi.address_text(family, addr_be)
    return f"[{host}]:{port}" if family == 6 else f"{host}:{port}"


def parse(record: bytes) -> Decision:
    """Read one record of the ring buffer (struct moa_event)."""
    event = Event.from_buffer_copy(record)
    return Decision(
        at_ns=event.at_ns,
        reason=Reason(event.reason),
        pid=event.pid,
        comm=event.comm.decode(errors="replace"),
        cgroup_id=event.cgroup_id,
        cookie=event.cookie,
        before=_endpoint(event.family, bytes(event.before_be), bytes(event.before_port_be)),
        after=_endpoint(event.family, bytes(event.after_be), bytes(event.after_port_be)),
    )


class EventStream:
    """Switches events on while it is open; one reader at a time sees all of them.

    The caller holds the node's lock while it opens and closes this, and owns `maps`.
    """

    def __init__(self, maps: Maps, on_decision: Callable[[Decision], None]) -> None:
        self._maps = maps
        self._ring = libbpf.RingBuffer(maps.fd("events"), lambda raw: on_decision(parse(raw)))
        maps.set_flags(CfgFlag.EVENTS, on=True)

    def __enter__(self) -> EventStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def fileno(self) -> int:
        return self._ring.fileno()

    def consume(self) -> int:
        """Hand over what is there; returns how many."""
        return self._ring.consume()

    def close(self) -> None:
        self._maps.set_flags(CfgFlag.EVENTS, on=False)
        self._ring.close()
