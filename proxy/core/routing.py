"""Which instances may serve a request: group, `pre`, zone; and why.

Two steps, because health lies between them: `candidates` says who may serve at all and whom
the caller prefers; `narrow` takes what health left and keeps to the preferred part for as
long as enough of it is usable.
"""

from __future__ import annotations

from dataclasses import dataclass

from proxy.core.model import ANY_GROUP, DRAIN, MAINT, Instance, ServiceKey, ServiceTable
from proxy.wire.moa import Route

PRE_PROP = "moa.env.pre"
"""The public property with which a caller asks for pre-release instances."""

_TRUE = frozenset({"1", "true", "yes", "on"})
SPILL_SHARE = 0.5
_CACHED_ROUTES = 4096


@dataclass(frozen=True, slots=True)
class Candidates:
    """Who may serve a request.

    `instances` are all that may, `preferred` are parts of them, the narrowest first, `steps`
    say in words how it came to that, and `reserve` are being drained: only for what nobody
    else could take.
    """

    instances: tuple[Instance, ...]
    preferred: tuple[tuple[Instance, ...], ...]
    steps: tuple[str, ...]
    reserve: tuple[Instance, ...] = ()


def candidates(
    table: ServiceTable, route: Route, *, zone: str = "", default_group: str = "", pre: bool = False
) -> Candidates:
    """The instances for a route, in the eyes of a caller in `zone` (empty: none).

    - The group is the request's, else `default_group`. A group without instances falls back
      to the set without a group. Nothing falls back *into* a group: groups isolate.
    - A pre caller (property `moa.env.pre`, or `pre`) prefers instances with pre=1 and falls
      back to the others. An ordinary caller never reaches a pre=1 instance, not even when
      there is no other: it would test a release on users.
    - An instance marked `maint` is never reached, one marked `drain` only when no other is
      left.
    """
    group = route.group or default_group or ANY_GROUP
    steps: list[str] = []
    instances = _in_group(table, route.uri, group, steps)
    wants_pre = pre or _asks_for_pre(route)
    preferred: list[tuple[Instance, ...]] = []
    if not wants_pre and any(i.pre for i in instances):
        ordinary = tuple(i for i in instances if not i.pre)
        steps.append(f"ordinary caller: {len(instances) - len(ordinary)} pre=1 left out")
        instances = ordinary
    instances, reserve = _unmarked(instances, steps)
    if wants_pre:
        _prefer("pre=1", tuple(i for i in instances if i.pre), instances, preferred, steps)
    if zone:
        base = preferred[0] if preferred else instances
        _prefer(f"zone {zone}", tuple(i for i in base if i.zone == zone), base, preferred, steps)
    return Candidates(instances, tuple(preferred), tuple(steps), reserve)


def narrow(
    found: Candidates, usable: tuple[Instance, ...], spill_share: float = SPILL_SHARE
) -> tuple[Instance, ...]:
    """The part of `usable` (healthy ones of `found.instances`) to balance over.

    The narrowest preferred part of which at least the share `spill_share` is usable; else all
    of `usable`.
    """
    if usable is found.instances:
        return found.preferred[0] if found.preferred else usable
    addresses = {instance.address for instance in usable}
    for part in found.preferred:
        alive = tuple(instance for instance in part if instance.address in addresses)
        if alive and len(alive) >= spill_share * len(part):
            return alive
    return usable


class Router:
    """`candidates` for this node's callers, remembered until the table changes."""

    __slots__ = ("_default_group", "_known", "_pre", "_table", "_zone")

    def __init__(self, *, zone: str = "", default_group: str = "", pre: bool = False) -> None:
        self._zone = zone
        self._default_group = default_group
        self._pre = pre
        self._table: ServiceTable | None = None
        self._known: dict[tuple[str, str, bool, str], Candidates] = {}

    def candidates(self, table: ServiceTable, route: Route, zone: str | None = None) -> Candidates:
        """The instances for a route; see the function of the same name.

        `zone` is that of a caller from another node, None for one of this node's.
        """
        zone = self._zone if zone is None else zone
        if table is not self._table or len(self._known) >= _CACHED_ROUTES:
            self._table = table
            self._known = {}
        key = (route.uri, route.group, _asks_for_pre(route), zone)
        found = self._known.get(key)
        if found is None:
            found = candidates(
                table, route, zone=zone, default_group=self._default_group, pre=self._pre
            )
            self._known[key] = found
        return found


def _asks_for_pre(route: Route) -> bool:
    props = route.props
    return bool(props) and props.get(PRE_PROP, "").lower() in _TRUE


def _in_group(table: ServiceTable, uri: str, group: str, steps: list[str]) -> tuple[Instance, ...]:
    for key in dict.fromkeys((ServiceKey(uri, group), ServiceKey(uri))):
        instances = table.instances(key)
        steps.append(f"{key}: {len(instances)} registered")
        if instances:
            return instances
    return ()


def _unmarked(
    instances: tuple[Instance, ...], steps: list[str]
) -> tuple[tuple[Instance, ...], tuple[Instance, ...]]:
    """Those to use, and those in reserve."""
    if not any(i.marks for i in instances):
        return instances, ()
    serving = tuple(i for i in instances if MAINT not in i.marks)
    if len(serving) < len(instances):
        steps.append(f"maint: {len(instances) - len(serving)} left out")
    drained = tuple(i for i in serving if DRAIN in i.marks)
    if not drained:
        return serving, ()
    if len(drained) == len(serving):
        steps.append(f"drain: all {len(drained)} left are, and are used")
        return serving, ()
    steps.append(f"drain: {len(drained)} kept in reserve")
    return tuple(i for i in serving if DRAIN not in i.marks), drained


def _prefer(
    what: str,
    part: tuple[Instance, ...],
    whole: tuple[Instance, ...],
    preferred: list[tuple[Instance, ...]],
    steps: list[str],
) -> None:
    steps.append(f"prefer {what}: {len(part)} of {len(whole)}")
    if part and len(part) < len(whole):
        preferred.insert(0, part)
