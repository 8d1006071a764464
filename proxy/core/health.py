"""Which instances are trusted: passive ejection after transport failures, with back-off.

An instance is *healthy*, then *ejected* for a time that doubles with each ejection in a row,
then *half-open*: one real request at a time probes it, and its result decides. Calls for one
request, without an await between the first three:

    usable(instances, now)  ->  pick one  ->  begin(address, now)  ->  record_success | _failure
"""

from __future__ import annotations

import random
from collections.abc import Set
from dataclasses import dataclass

from proxy.core.model import Address, Instance


@dataclass(frozen=True, slots=True)
class HealthSettings:
    """Defaults of Envoy's outlier detection, with the back-off of Linkerd's failure accrual.

    `threshold` counts consecutive failures; `jitter` is the share of a back-off that chance
    may take away; `max_ejected` is the share of a set that may be left out; a probe without a
    result (its caller went away) is given up after `probe_timeout_s`.
    """

    threshold: int = 5
    base_s: float = 1.0
    max_s: float = 60.0
    jitter: float = 0.2
    max_ejected: float = 0.5
    probe_timeout_s: float = 10.0


DEFAULT_SETTINGS = HealthSettings()

REFUSED = 1_000_000
"""The weight of a refused connection: nothing listens there, so one is enough."""


@dataclass(slots=True)
class _Record:
    failures: int = 0
    ejections: int = 0
    ejected_until_s: float = 0.0
    probe_until_s: float | None = None


class HealthBook:
    """Health of every address that failed lately; a healthy address costs nothing."""

    __slots__ = ("_ejected", "_rand", "_records", "_settings")

    def __init__(self, rand: random.Random, settings: HealthSettings = DEFAULT_SETTINGS) -> None:
        self._rand = rand
        self._settings = settings
        self._records: dict[Address, _Record] = {}
        self._ejected: set[Address] = set()

    def begin(self, address: Address, now_s: float) -> None:
        """A request is on its way; for a half-open instance it is the probe."""
        if address in self._ejected:
            record = self._records[address]
            if now_s >= record.ejected_until_s:
                record.probe_until_s = now_s + self._settings.probe_timeout_s

    def record_success(self, address: Address, now_s: float) -> None:
        """A reply came, whatever its business result: the instance is healthy again."""
        if self._records.pop(address, None) is not None:
            self._ejected.discard(address)

    def record_failure(self, address: Address, now_s: float, weight: int = 1) -> None:
        """A transport failure; `REFUSED` as weight ejects at once.

        Failures of requests that were on their way when the instance was ejected, or that
        reached it through the caps of `usable`, do not prolong the back-off.
        """
        record = self._records.setdefault(address, _Record())
        if address in self._ejected:
            if now_s >= record.ejected_until_s:
                self._eject(address, record, now_s)
            return
        record.failures += weight
        if record.failures >= self._settings.threshold:
            self._eject(address, record, now_s)

    def usable(self, instances: tuple[Instance, ...], now_s: float) -> tuple[Instance, ...]:
        """The instances to balance over; never empty when `instances` is not.

        Leaves out those that are ejected or half-open with a probe under way, but never more
        than the share `max_ejected`, never the last one, and none at all when all are out
        (panic). Over the cap, those that come back soonest stay. Returns the very tuple it
        was given when none is left out.
        """
        if not self._ejected:
            return instances
        out = [i.address for i in instances if self._is_out(i.address, now_s)]
        if not out or len(out) == len(instances):
            return instances
        allowed = int(len(instances) * self._settings.max_ejected)
        out.sort(key=lambda address: (-self._records[address].ejected_until_s, address))
        left_out = frozenset(out[:allowed])
        return tuple(i for i in instances if i.address not in left_out) if left_out else instances

    def explain(self, address: Address, now_s: float) -> str:
        """The state of an address in words."""
        record = self._records.get(address)
        if record is None:
            return "healthy"
        if address not in self._ejected:
            return f"healthy, {record.failures} of {self._settings.threshold} failures in a row"
        left_s = record.ejected_until_s - now_s
        if left_s > 0:
            return f"ejected for {left_s:.1f} s more (ejection {record.ejections} in a row)"
        if self._is_out(address, now_s):
            return "half-open, a probe is under way"
        return "half-open, the next request is the probe"

    def describe(self, address: Address, now_s: float) -> dict[str, str | float | int | None]:
        """The same for programs: `state`, `until_s` (seconds from now) and `failures`."""
        record = self._records.get(address)
        if record is None or address not in self._ejected:
            failures = 0 if record is None else record.failures
            return {"state": "healthy", "until_s": None, "failures": failures}
        left_s = record.ejected_until_s - now_s
        if left_s > 0:
            return {"state": "ejected", "until_s": round(left_s, 3), "failures": record.failures}
        return {"state": "half-open", "until_s": None, "failures": record.failures}

    def retain(self, addresses: Set[Address]) -> None:
        """Forget every address that is not among these; for each new table."""
        for address in self._records.keys() - addresses:
            del self._records[address]
            self._ejected.discard(address)

    def _is_out(self, address: Address, now_s: float) -> bool:
        if address not in self._ejected:
            return False
        record = self._records[address]
        if now_s < record.ejected_until_s:
            return True
        return record.probe_until_s is not None and now_s < record.probe_until_s

    def _eject(self, address: Address, record: _Record, now_s: float) -> None:
        settings = self._settings
        # The exponent is bounded: 2.0 ** 1024 overflows after weeks of failed probes.
        backoff_s = min(settings.base_s * 2.0 ** min(record.ejections, 30), settings.max_s)
        record.ejected_until_s = now_s + backoff_s * (1 - settings.jitter * self._rand.random())
        record.probe_until_s = None
        record.ejections += 1
        record.failures = 0
        self._ejected.add(address)
