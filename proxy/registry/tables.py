"""Builds one service table after the other, at the cost of what has changed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Generic, TypeVar

from proxy.core.model import Address, Instance, ServiceKey, ServiceTable

_Value = TypeVar("_Value")


class TableBuilder:
    """Remembers the newest table, and by how many instances each address and URI is used.

    What a table shares with the one before is the same object, so that who follows the
    addresses alone can tell that they have not changed.
    """

    def __init__(self) -> None:
        self.table = ServiceTable()
        self._services: dict[ServiceKey, tuple[Instance, ...]] = {}
        self._addresses: _Used[Address] = _Used()
        self._uris: _Used[str] = _Used()

    def replace(
        self, changes: Mapping[ServiceKey, tuple[Instance, ...]], gone: Iterable[ServiceKey] = ()
    ) -> ServiceTable:
        """The table with these services as given and without those that are gone."""
        # A dict's own copy hashes nothing; that of a MappingProxyType hashes every key.
        services = self._services.copy()
        for key, instances in changes.items():
            self._count(key, services.get(key, ()), instances)
            services[key] = instances
        for key in gone:
            self._count(key, services.pop(key, ()), ())
        self._services = services
        self.table = ServiceTable(
            MappingProxyType(services), self._uris.settled(), self._addresses.settled()
        )
        return self.table

    def _count(
        self, key: ServiceKey, before: tuple[Instance, ...], after: tuple[Instance, ...]
    ) -> None:
        if [i.address for i in before] == [i.address for i in after]:
            return  # Weights, marks or zones: nothing that is counted.
        old, new = ({instance.address for instance in part} for part in (before, after))
        self._addresses.count(new - old, old - new)
        if bool(old) != bool(new):
            self._uris.count((key.uri,) if new else (), (key.uri,) if old else ())


class _Used(Generic[_Value]):
    """A set of what is used at least once, made anew only when it has changed."""

    def __init__(self) -> None:
        self._set: frozenset[_Value] = frozenset()
        self._uses: Counter[_Value] = Counter()
        self._touched: set[_Value] = set()

    def count(self, more: Iterable[_Value], fewer: Iterable[_Value]) -> None:
        self._uses.update(more)
        self._uses.subtract(fewer)
        self._touched.update(more, fewer)

    def settled(self) -> frozenset[_Value]:
        came = {value for value in self._touched if self._uses[value] and value not in self._set}
        left = {value for value in self._touched if not self._uses[value]}
        for value in left:
            del self._uses[value]
        self._touched.clear()
        if came or left & self._set:
            self._set = (self._set | came) - left
        return self._set
