"""What answers the requests of sessions: the instances of services, or a process itself."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

from proxy.core.message import MoaRequest
from proxy.core.model import Instance, PeerAgent, ServiceTable
from proxy.net.exchange import OutcomeCallback
from proxy.net.worker import Worker
from proxy.obs.metrics import Metrics

if TYPE_CHECKING:
    from proxy.net.forward import ForwardSettings


class Call(Protocol):
    """One request on its way to its one outcome."""

    @property
    def instance(self) -> Instance | None:
        """Who works on it, if anybody else does."""

    def start(self) -> None:
        """Begin; the outcome may come before this returns."""

    def cancel(self) -> None:
        """Nobody waits any more: there will be no outcome."""


class Backend(Protocol):
    """Used in the event loop `loop` only."""

    @property
    def loop(self) -> asyncio.AbstractEventLoop: ...

    @property
    def table(self) -> ServiceTable:
        """The services whose requests are for `prepare`."""

    @property
    def metrics(self) -> Metrics: ...

    @property
    def worker(self) -> Worker:
        """Another process, for bodies of many values."""

    @property
    def settings(self) -> ForwardSettings: ...

    def prepare(
        self, request: MoaRequest, on_outcome: OutcomeCallback, caller: PeerAgent | None = None
    ) -> Call:
        """A call to be started; `on_outcome` gets what came of it, unless it is cancelled.

        `caller` is the node that a caller from another node is on, None for this one.
        """
