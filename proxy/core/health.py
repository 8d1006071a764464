"""Which instances of one service are trusted: ejection, back-off, half-open probes, slow start.

An instance is *healthy*, then *ejected* for a time that doubles with each ejection in a row,
then *half-open*: one real request at a time probes it. Success, or PINGs that are answered,
make it healthy again, in *slow start* at first. A book belongs to one service: an address
that serves several has a record in each, because thresholds, caps and what fails are the
service's (docs/adr/0009-failover-per-service.md).

Times are monotonic seconds; one before the last counts as the last one.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Set
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple

from proxy.core.model import Address, Instance
from proxy.core.policy import HealthPolicy

_NEVER_S = float("-inf")
_ALWAYS_S = float("inf")

_FORGIVEN_AFTER = 2.0
"""Being well for this many times its last back-off, an instance starts anew at the shortest."""


class Health(NamedTuple):
    """The part of a set to balance over, until an event, or the time `until_s`.

    In panic that is everybody; `well` are those that would be used without it.
    """

    usable: tuple[Instance, ...]
    well: tuple[Instance, ...]
    until_s: float
    is_panic: bool


@dataclass(slots=True)
class _Record:
    failures: int = 0
    why: str = ""
    ejections: int = 0
    backoff_s: float = 0.0
    ejected_s: float = _NEVER_S
    until_s: float | None = None
    """The end of the back-off; None: not ejected."""
    probe_until_s: float = _NEVER_S
    readmitted_s: float = _NEVER_S
    ping_failures: int = 0
    ping_successes: int = 0
    was_silent: bool = False
    """A PING failed since the ejection, so that two answered ones prove a change."""


class HealthBook:
    """Health of every address that failed lately; a healthy address costs nothing.

    `version` changes with every event that may change what `split` says. `ejections`,
    `probes` and `readmissions` count.
    """

    __slots__ = (
        "_now_s",
        "_policy",
        "_rand",
        "_records",
        "ejections",
        "probes",
        "readmissions",
        "version",
    )

    def __init__(self, rand: random.Random, policy: HealthPolicy) -> None:
        self._rand = rand
        self._policy = policy
        self._records: dict[Address, _Record] = {}
        self._now_s = _NEVER_S
        self.version = 0
        self.ejections = 0
        self.probes = 0
        self.readmissions = 0

    @property
    def is_troubled(self) -> bool:
        """Whether any address has a record; `begin` and `record_success` matter only then."""
        return bool(self._records)

    def begin(self, address: Address, now_s: float) -> None:
        """A request is on its way; for a half-open instance it is the probe."""
        record = self._records.get(address)
        if record is None or record.until_s is None:
            return
        now_s = self._at(now_s)
        if now_s >= record.until_s and now_s >= record.probe_until_s:
            record.probe_until_s = now_s + self._policy.probe_timeout_s
            self.probes += 1
            self.version += 1

    def record_success(self, address: Address, now_s: float, begun_s: float) -> None:
        """A reply came to what was sent at `begun_s`, whatever its business result."""
        record = self._records.get(address)
        if record is None:
            return
        now_s = self._at(now_s)
        if record.until_s is not None:
            if begun_s < record.ejected_s:
                return  # Of the time before: it says nothing of now.
            self._readmit(record, now_s)
        record.failures = record.ping_failures = 0
        if self._is_forgettable(record, now_s):
            del self._records[address]

    def record_failure(
        self, address: Address, now_s: float, begun_s: float, why: str, *, is_refused: bool = False
    ) -> None:
        """A transport failure of what was begun at `begun_s`.

        `is_refused`: nothing listens there, and one proof is enough. What was begun before an
        ejection or before its end does not count again.
        """
        now_s = self._at(now_s)
        record = self._records.setdefault(address, _Record())
        if begun_s < max(record.ejected_s, record.readmitted_s):
            return
        if record.until_s is not None:
            if now_s >= record.until_s:
                self._eject(record, now_s, why)
            return
        record.failures += 1
        if record.failures >= self._policy.failures or (is_refused and self._policy.refused_ejects):
            self._eject(record, now_s, why)

    def record_ping(self, address: Address, now_s: float, *, is_answered: bool) -> None:
        """An active check ended.

        `ping_fall` failures in a row eject; `ping_rise` answers in a row take back what is
        half-open. They also cut the back-off short, when a PING had failed since the ejection:
        what answers PING and fails its requests must wait.
        """
        now_s = self._at(now_s)
        if is_answered:
            self._record_pong(address, now_s)
            return
        record = self._records.setdefault(address, _Record())
        record.ping_successes = 0
        record.ping_failures += 1
        if record.until_s is not None:
            record.was_silent = True
        elif record.ping_failures >= self._policy.ping_fall:
            self._eject(record, now_s, f"{record.ping_failures} PINGs in a row unanswered")
            record.was_silent = True

    def _record_pong(self, address: Address, now_s: float) -> None:
        record = self._records.get(address)
        if record is None:
            return
        record.ping_failures = 0
        record.ping_successes += 1
        if record.until_s is None:
            if self._is_forgettable(record, now_s):
                del self._records[address]
        elif record.ping_successes >= self._policy.ping_rise and (
            record.was_silent or now_s >= record.until_s
        ):
            self._readmit(record, now_s)

    def split(self, instances: tuple[Instance, ...], now_s: float) -> Health:
        """The instances to balance over; never empty when `instances` is not.

        Leaves out those that are ejected, or half-open with a probe under way, but never more
        than the share `max_ejected`, never the last one, and none at all when less than the
        share `panic` is well. Over the cap, those that come back soonest stay. Gives the very
        tuple that it was given when none is left out.
        """
        now_s = self._at(now_s)
        out = self._out(instances, now_s)
        if not out:
            return Health(instances, instances, _ALWAYS_S, is_panic=False)
        until_s = min(out.values())
        well = tuple(i for i in instances if i.address not in out)
        if not well or len(well) < self._policy.panic * len(instances):
            return Health(instances, well, until_s, is_panic=True)
        allowed = min(int(len(instances) * self._policy.max_ejected), len(instances) - 1)
        latest = sorted(out, key=lambda address: (-out[address], address))
        left_out = frozenset(latest[:allowed])
        if not left_out:
            return Health(instances, well, until_s, is_panic=False)
        usable = tuple(i for i in instances if i.address not in left_out)
        return Health(usable, well, until_s, is_panic=False)

    def is_ejected(self, address: Address) -> bool:
        """Whether it is ejected or half-open: an active check may take it back."""
        record = self._records.get(address)
        return record is not None and record.until_s is not None

    def slow_since_s(self, address: Address, now_s: float) -> float | None:
        """When its slow start began; None when it is in none."""
        record = self._records.get(address)
        if record is None or record.until_s is not None:
            return None
        is_over = self._at(now_s) >= record.readmitted_s + self._policy.slow_start_s
        return None if is_over else record.readmitted_s

    def describe(self, address: Address, now_s: float) -> dict[str, Any]:
        """The state of an address for programs; `until_s` is in seconds from now."""
        now_s = self._at(now_s)
        record = self._records.get(address)
        if record is None:
            return {"state": "healthy", "until_s": None, "failures": 0, "why": None}
        state, until_s = "healthy", None
        if record.until_s is not None:
            state = "ejected" if now_s < record.until_s else "half-open"
            until_s = record.until_s - now_s if state == "ejected" else None
        elif (since_s := self.slow_since_s(address, now_s)) is not None:
            state, until_s = "slow-start", since_s + self._policy.slow_start_s - now_s
        return {
            "state": state,
            "until_s": None if until_s is None else round(until_s, 3),
            "failures": record.failures,
            "why": record.why or None,
        }

    def retain(self, addresses: Set[Address]) -> None:
        """Forget every address that is not among these; for each new table."""
        for address in self._records.keys() - addresses:
            del self._records[address]
            self.version += 1

    def export(self) -> dict[str, Any]:
        """What is known, as JSON has it, for `restore` in another process of this boot."""
        return {
            "records": {str(address): asdict(r) for address, r in self._records.items()},
            "ejections": self.ejections,
            "probes": self.probes,
            "readmissions": self.readmissions,
        }

    def restore(self, exported: Mapping[str, Any]) -> None:
        """Know what the other process knew, in place of what is known here; counters are
        never less than they were. Raises KeyError, TypeError or ValueError."""
        names = {field.name for field in fields(_Record)}
        records = {}
        for text, values in exported["records"].items():
            known = {name: value for name, value in values.items() if name in names}
            records[Address.parse(text)] = _Record(**known)
        self._records = records
        self.ejections = max(self.ejections, int(exported["ejections"]))
        self.probes = max(self.probes, int(exported["probes"]))
        self.readmissions = max(self.readmissions, int(exported["readmissions"]))
        self.version += 1

    def _at(self, now_s: float) -> float:
        self._now_s = max(self._now_s, now_s)
        return self._now_s

    def _out(self, instances: tuple[Instance, ...], now_s: float) -> dict[Address, float]:
        """Who is out, and until when if nothing happens."""
        out: dict[Address, float] = {}
        for instance in instances:
            record = self._records.get(instance.address)
            if record is not None and record.until_s is not None:
                end_s = max(record.until_s, record.probe_until_s)
                if now_s < end_s:
                    out[instance.address] = end_s
        return out

    def _is_forgettable(self, record: _Record, now_s: float) -> bool:
        well_s = max(self._policy.slow_start_s, _FORGIVEN_AFTER * record.backoff_s)
        is_clean = not record.failures and not record.ping_failures
        return is_clean and now_s >= record.readmitted_s + well_s

    def _readmit(self, record: _Record, now_s: float) -> None:
        record.until_s = None
        record.probe_until_s = _NEVER_S
        record.failures = record.ping_failures = 0
        record.readmitted_s = now_s
        self.readmissions += 1
        self.version += 1

    def _eject(self, record: _Record, now_s: float, why: str) -> None:
        policy = self._policy
        was_well = record.until_s is None
        if was_well and now_s >= record.readmitted_s + _FORGIVEN_AFTER * record.backoff_s:
            record.ejections = 0
        # The exponent is bounded: 2.0 ** 1024 overflows after weeks of failed probes.
        record.backoff_s = min(
            policy.backoff_s * 2.0 ** min(record.ejections, 30), policy.backoff_max_s
        )
        record.until_s = now_s + record.backoff_s * (1 - policy.jitter * self._rand.random())
        record.probe_until_s = _NEVER_S
        record.ejected_s = now_s
        record.ejections += 1
        record.failures = record.ping_failures = record.ping_successes = 0
        record.was_silent = False
        record.why = why
        self.ejections += 1
        self.version += 1


def slow_start_share(policy: HealthPolicy, since_s: float, now_s: float) -> float:
    """The share of its weight that an instance has in slow start: grows evenly up to 1."""
    if policy.slow_start_s <= 0:
        return 1.0
    grown = min(max(0.0, (now_s - since_s) / policy.slow_start_s), 1.0)
    return policy.slow_start_share + (1 - policy.slow_start_share) * grown
