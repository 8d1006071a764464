"""Answers the calls of the lookup service's clients from the registry, and changes it for them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from typing import Any

from proxy.core.message import RESP_JSON, Codec, Failure, MoaReply, MoaRequest, Outcome
from proxy.core.model import PeerAgent, ServiceTable
from proxy.net.exchange import OutcomeCallback
from proxy.net.forward import ForwardSettings
from proxy.net.worker import Worker
from proxy.obs.metrics import Metrics
from proxy.registry.base import ReadOnlyRegistry, Registry, RegistryError, RegistryState
from proxy.registry.lookup import (
    ADMIN,
    LOOKUP,
    GetService,
    LookupCall,
    RegisterService,
    UnregisterService,
    hosts,
    read_call,
)
from proxy.wire import hessian
from proxy.wire.moa import BadRequest, Ec
from proxy.wire.resp import bulk

MAX_CHANGES = 256
"""Changes under way at once; Redis is slow or gone when there are more, and they get 504."""

MAX_BODY = 64 * 1024
"""Of a request; what registers an instance has some hundred bytes."""

Spawn = Callable[[Coroutine[Any, Any, None]], object]


class LookupBackend:
    """See `proxy.net.backend.Backend`. `spawn` runs a change in the composition root's group."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        settings: ForwardSettings,
        registry: Registry,
        spawn: Spawn,
    ) -> None:
        self.loop = loop
        self.settings = settings
        self.table = ServiceTable(uris=frozenset({LOOKUP, ADMIN}))
        self.metrics = Metrics()
        self.worker = Worker(loop)
        self._registry = registry
        self._spawn = spawn
        self._changes = 0

    def prepare(
        self, request: MoaRequest, on_outcome: OutcomeCallback, _caller: PeerAgent | None = None
    ) -> LocalCall:
        """See `Backend.prepare`."""
        return LocalCall(self, request, on_outcome)

    def close(self) -> None:
        """End the worker."""
        self.worker.close()

    def work(self, request: MoaRequest, on_outcome: OutcomeCallback) -> None:
        """Answer at once, or when the registry has been changed."""
        try:
            call = read_call(request.route, self._args(request))
        except BadRequest as error:
            on_outcome(Failure(error.ec, error.em))
            return
        if isinstance(call, GetService):
            on_outcome(self._hosts(call))
        elif self._changes >= MAX_CHANGES:
            em = f"{MAX_CHANGES} changes wait for the registry already; nothing was changed"
            on_outcome(Failure(Ec.THREAD_POOL_IS_FULL, em))
        else:
            self._changes += 1
            self._spawn(self._change(call, on_outcome))

    def _args(self, request: MoaRequest) -> object:
        """The arguments of a request whose route could be read; raises BadRequest."""
        limits = hessian.Limits(max_bytes=MAX_BODY)
        body = request.body
        if len(body) > MAX_BODY:
            em = f"{request.route.method}: {len(body)} bytes, at most {MAX_BODY} are read"
            raise BadRequest(Ec.SERIALIZATION, em)
        try:
            if request.speech.codec is Codec.HESSIAN2:
                body = hessian.hessian_to_json(body, limits)
            return json.loads(body)["params"].get("args", [])
        except (ValueError, RecursionError, hessian.HessianError, hessian.Untranslatable) as error:
            raise BadRequest(Ec.SERIALIZATION, f"{request.route.method}: {error}") from None

    def _hosts(self, call: GetService) -> Outcome:
        found = hosts(self._registry.table, call)
        if found is not None:
            return _success({"hosts": found, "uri": call.uri})
        status = self._registry.status()
        if status.state is RegistryState.STARTING:
            em = f"{call.uri}: the registry could not be read yet: {status.detail}"
            return Failure(Ec.INITIALIZATION, em)
        return Failure(Ec.SERVICE_NOT_FOUND, f"service {call.uri} is not in the registry")

    async def _change(self, call: LookupCall, on_outcome: OutcomeCallback) -> None:
        try:
            on_outcome(await self._changed(call))
        finally:
            self._changes -= 1

    async def _changed(self, call: LookupCall) -> Outcome:
        try:
            if isinstance(call, RegisterService):
                await self._registry.register(call.key, call.instance)
            elif isinstance(call, UnregisterService):
                await self._registry.deregister(call.key, call.address)
        except ReadOnlyRegistry as error:
            return Failure(Ec.INVOCATION_TARGET, str(error))
        except RegistryError as error:
            return Failure(Ec.REMOTING, str(error))
        return _success(True)


class LocalCall:
    """See `proxy.net.backend.Call`. A change that was begun is not taken back by `cancel`."""

    __slots__ = ("_backend", "_on_outcome", "_request", "instance")

    def __init__(
        self, backend: LookupBackend, request: MoaRequest, on_outcome: OutcomeCallback
    ) -> None:
        self._backend = backend
        self._request = request
        self._on_outcome: OutcomeCallback | None = on_outcome
        self.instance = None

    def start(self) -> None:
        metrics = self._backend.metrics
        metrics.requests += 1
        metrics.in_flight += 1
        self._backend.work(self._request, self._end)

    def cancel(self) -> None:
        self._on_outcome = None

    def _end(self, outcome: Outcome) -> None:
        metrics = self._backend.metrics
        metrics.in_flight -= 1
        if isinstance(outcome, Failure):
            metrics.failed += 1
        else:
            metrics.ok += 1
        if self._on_outcome is not None:
            self._on_outcome(outcome)


def _success(result: object) -> MoaReply:
    text = json.dumps({"ec": 200, "em": "", "result": result}, separators=(",", ":"))
    body = text.encode()
    return MoaReply(body, RESP_JSON, bulk(body))
