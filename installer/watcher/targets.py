"""What a watcher pings: every address of the registry once, and how.

Instances that an operator has in hands (`MAINT`) are left alone; those offline are pinged to see
whether they are back.
"""

from __future__ import annotations

from collections.abc import Iterable

from proxy.core.model import MAINT, Address, ServiceTable
from proxy.net.ping_wire import PingWire, wire_of
from proxy.registry.member import BadMember, parse_member
from proxy.registry.watch import Offline


def wires(table: ServiceTable, offline: Iterable[Offline]) -> dict[Address, PingWire]:
    """Each address with the cheapest PING that one of its services speaks."""
    spoken: dict[Address, set[str]] = {}
    for instances in table.instances_by_key.values():
        for instance in instances:
            if MAINT not in instance.marks:
                spoken.setdefault(instance.address, set()).update(instance.protocols)
    for entry in offline:
        try:
            member = parse_member(entry.member)
        except BadMember:
            continue
        spoken.setdefault(member.address, set()).update(member.protocols)
    return {address: wire_of(protocols) for address, protocols in spoken.items()}
