"""Every service as it was last read, the table made of them, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from proxy.core.model import ServiceKey, ServiceTable
from proxy.registry.tables import TableBuilder
from proxy.registry.view import ServiceView


class Holdings:
    """What a follower of Redis has; a change costs what has changed and not the whole."""

    def __init__(self) -> None:
        self.views: dict[ServiceKey, ServiceView] = {}
        self._ailing: dict[ServiceKey, ServiceView] = {}
        self._tables = TableBuilder()

    def unnamed(self, named: Collection[ServiceKey]) -> list[ServiceKey]:
        """The services without instances that the registry names no more."""
        return [k for k, v in self.views.items() if k not in named and not v.instances]

    def take(
        self, changed: Mapping[ServiceKey, ServiceView], gone: Collection[ServiceKey] = ()
    ) -> ServiceTable | None:
        """Keep these views and drop those that are gone; the new table, if routes are others."""
        routes = {
            key: view.instances
            for key, view in changed.items()
            if key not in self.views or view.instances != self.views[key].instances
        }
        self.views.update(changed)
        for key, view in changed.items():
            if view.kept or view.broken:
                self._ailing[key] = view
            else:
                self._ailing.pop(key, None)
        for key in gone:
            self.views.pop(key, None)
            self._ailing.pop(key, None)
        return self._tables.replace(routes, gone) if routes or gone else None

    def broken(self) -> list[str]:
        """The texts of members and marks that cannot be used."""
        return [text for view in self._ailing.values() for text in view.broken]

    def loss(self) -> str:
        """What is kept although Redis has lost it, or ""."""
        kept = {key: len(view.kept) for key, view in self._ailing.items() if view.kept}
        if not kept:
            return ""
        return (
            f"Redis has lost {sum(kept.values())} instances of {len(kept)} services "
            f"(such as {min(kept, key=str)}); they are kept until services register again"
        )
