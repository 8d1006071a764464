"""What one service's set means, given what was known of it: the rule that keeps routes alive.

A set that Redis shows may be what operators and services made of it, or what is left after a
flush, a restart without data, an eviction or an old backup. The version tells them apart:

- same incarnation, counter not lower: *continuous*. The set is taken as it is, and when it is
  empty under a new version, that was deliberate.
- version gone, of another incarnation, or lower: *lost*. What was known is kept beside the new
  members until each has registered again, or `grace_s` has passed since the first one has.
- an empty set, or one of broken members only, that is not deliberate: everything known is kept.

Marks are taken as read; an instance that is kept keeps those it had until others are read.

Pure functions; `now_s` is monotonic seconds.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from proxy.core.model import Instance
from proxy.registry.marks import Marks, marked, parse_fields
from proxy.registry.member import BadMember, parse_member

_VERSION = re.compile(r"([0-9]{1,20})-([0-9]{1,20})")


@dataclass(frozen=True, slots=True)
class ServiceView:
    """One service as last read.

    `members` are the set's, `kept` those of before that the registry has lost, both by their
    text; `kept` is dropped at `kept_until_s`, or stays while that is None. `cardinality` counts
    the set with its broken members. `marks` are those of the hash.
    """

    version: str | None = None
    cardinality: int = 0
    members: Mapping[str, Instance] = field(default_factory=dict)
    kept: Mapping[str, Instance] = field(default_factory=dict)
    kept_until_s: float | None = None
    broken: tuple[str, ...] = ()
    marks: Marks = field(default_factory=dict)
    instances: tuple[Instance, ...] = ()
    """What to route to: the members and the kept, each address once, with their marks."""


def restored(
    version: str | None, members: Iterable[str], kept: Iterable[str], marks: Iterable[str] = ()
) -> ServiceView:
    """The view that a last-known copy describes; what cannot be read is left out."""
    parsed, _ = _parse(frozenset(members), {})
    parsed_kept, _ = _parse(frozenset(kept), {})
    return _view(version, len(parsed), parsed, parsed_kept, None, (), parse_fields(marks)[0])


def merged(
    known: ServiceView | None,
    version: str | None,
    texts: frozenset[str],
    now_s: float,
    grace_s: float,
    mark_fields: frozenset[str] = frozenset(),
) -> ServiceView:
    """The new view after the version, and then the set and its marks, have been read."""
    if known is None:
        known = ServiceView()
    members, broken = _parse(texts, known.members)
    lost = history_lost(known.version, version)
    changed = version is not None and version != known.version and not lost
    deliberate = bool(members) or (changed and not texts)
    kept = dict(known.kept)
    if lost or not deliberate:
        kept.update(known.members)
    kept_until_s = None if lost else known.kept_until_s
    if kept_until_s is None and members:
        kept_until_s = now_s + grace_s
    marks, bad_marks = parse_fields(mark_fields)
    if kept and known.marks:
        confirmed = {instance.address for instance in members.values()}
        for address in {instance.address for instance in kept.values()} - confirmed:
            if before := known.marks.get(address):
                marks.setdefault(address, before)
    view = _view(version, len(texts), members, kept, kept_until_s, (*broken, *bad_marks), marks)
    return expired(view, now_s)


def expired(view: ServiceView, now_s: float) -> ServiceView:
    """The view without what was kept long enough; the last instances are never dropped."""
    if view.kept_until_s is None or now_s < view.kept_until_s or not view.members:
        return view
    return _view(view.version, view.cardinality, view.members, {}, None, view.broken, view.marks)


def rejected(known: ServiceView | None, reason: str) -> ServiceView:
    """The known view with a reason why the set was not even read."""
    return replace(known or ServiceView(), broken=(reason,))


def history_lost(known: str | None, seen: str | None) -> bool:
    """Whether the registry's memory of a service does not reach back to what we know.

    A known version in another form than ours (a foreign writer's hash) has no order: never lost.
    """
    before = _VERSION.fullmatch(known or "")
    if before is None:
        return False
    after = _VERSION.fullmatch(seen or "")
    return after is None or before[1] != after[1] or int(after[2]) < int(before[2])


def _parse(
    texts: frozenset[str], known: Mapping[str, Instance]
) -> tuple[dict[str, Instance], tuple[str, ...]]:
    members: dict[str, Instance] = {}
    broken: list[str] = []
    seen = set()
    for text in sorted(texts):
        try:
            instance = known.get(text) or parse_member(text)
        except BadMember as error:
            broken.append(str(error))
            continue
        if instance.address in seen:
            broken.append(f"member {text!r}: its address is in the set twice")
            continue
        seen.add(instance.address)
        members[text] = instance
    return members, tuple(broken)


def _view(
    version: str | None,
    cardinality: int,
    members: Mapping[str, Instance],
    kept: Mapping[str, Instance],
    kept_until_s: float | None,
    broken: tuple[str, ...],
    marks: Marks,
) -> ServiceView:
    if kept:
        confirmed = {instance.address for instance in members.values()}
        kept = {text: i for text, i in kept.items() if i.address not in confirmed}
    instances = (*members.values(), *kept.values())
    if marks:
        instances = tuple(
            marked(instance, own) if (own := marks.get(instance.address)) else instance
            for instance in instances
        )
    return ServiceView(
        version=version,
        cardinality=cardinality,
        members=members,
        kept=kept,
        kept_until_s=kept_until_s if kept and members else None,
        broken=broken,
        marks=marks,
        instances=instances,
    )
