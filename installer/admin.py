"""What a running agent tells: HTTP on a unix socket that only root and the agent can open.

docs/CLI.md has the JSON of each answer. Only a POST changes anything.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import structlog
from aiohttp import web

from installer.admin_services import explain_route, service_facts
from installer.client import SOCKET_NAME, own_socket_name
from installer.config import Config
from installer.link import is_trusted
from installer.switches import SwitchBoard
from proxy.app import ProxyApp
from proxy.core.model import PeerAgent
from proxy.net.mesh_pool import MeshPool
from proxy.net.mesh_session import MeshSession
from proxy.net.served import Served
from proxy.net.sockets import peer_credentials
from proxy.obs.metrics import exposition
from proxy.wire.moa import Route

log = structlog.get_logger("admin")

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(slots=True)
class AgentFacts:
    """What the agent knows of itself besides the proxy; `loop_lag_ms` is of the last beat."""

    config: Config
    config_path: Path | None
    generation: int
    started_unix_s: float
    loop_lag_ms: float = 0.0


class Admin:
    """Serves until `close`."""

    def __init__(self, app: ProxyApp, facts: AgentFacts, board: SwitchBoard) -> None:
        self._app = app
        self._board = board
        self._facts = facts
        self._runner: web.AppRunner | None = None
        runtime_dir = facts.config.agent.runtime_dir
        self._path = runtime_dir / own_socket_name(os.getpid())
        self._link = runtime_dir / SOCKET_NAME

    async def start(self) -> None:
        """Listen under our own name; what is there is a leftover of another life."""
        web_app = web.Application(middlewares=[_only_root])
        web_app.add_routes(
            [
                web.get("/v1/status", self._status),
                web.get("/v1/conns", self._conns),
                web.get("/v1/services", self._services),
                web.get("/v1/registry", self._registry),
                web.get("/v1/explain", self._explain),
                web.get("/metrics", self._metrics),
                web.get("/v1/switches/known", self._known),
                web.post("/v1/switches/reload", self._reload_switches),
            ]
        )
        self._runner = web.AppRunner(web_app, access_log=None)
        await self._runner.setup()
        self._path.unlink(missing_ok=True)
        previous = os.umask(0o177)
        try:
            await web.UnixSite(self._runner, str(self._path)).start()
        finally:
            os.umask(previous)

    def publish(self) -> None:
        """Be the one that `agent.sock` leads to, in place of any other agent."""
        staging = self._link.with_suffix(f".{os.getpid()}")
        staging.unlink(missing_ok=True)
        staging.symlink_to(self._path.name)
        staging.rename(self._link)

    async def close(self) -> None:
        """Take away what is ours; `agent.sock` may lead to another agent by now."""
        if self._runner is not None:
            await self._runner.cleanup()
        self._path.unlink(missing_ok=True)
        with suppress(OSError):
            if self._link.readlink() == Path(self._path.name):
                self._link.unlink()

    async def _status(self, _request: web.Request) -> web.Response:
        app, facts, gauges = self._app, self._facts, self._app.gauges()
        listeners = app.listeners.all() if app.listeners else []
        ports = {"outbound": app.settings.outbound_port, "inbound": app.settings.inbound_port}
        metrics = app.metrics.shown
        return web.json_response(
            {
                "version": version("moa-interceptor"),
                "pid": os.getpid(),
                "generation": facts.generation,
                "started_unix_s": facts.started_unix_s,
                "uptime_s": round(time.time() - facts.started_unix_s, 3),
                "config_path": str(facts.config_path) if facts.config_path else None,
                "node": facts.config.node.name,
                "zone": facts.config.node.zone,
                "connections": {
                    kind: gauges[f"{kind}_connections"]
                    for kind in ("outbound", "inbound", "peer", "raw", "upstream")
                },
                "requests": {
                    "total": metrics.requests,
                    "ok": metrics.ok,
                    "failed": metrics.failed,
                    "transport_errors": metrics.transport_errors,
                    "retried": metrics.retried,
                    "in_flight": app.metrics.in_flight,
                },
                "mesh": {
                    "peers": gauges["mesh_peers"],
                    "sessions": gauges["mesh_connections"],
                    "calls": metrics.mesh_calls,
                    "served": metrics.mesh_served,
                    "fallbacks": metrics.mesh_fallbacks,
                    "hello_failures": metrics.mesh_hello_failures,
                },
                "registry": self._registry_facts(),
                "listeners": {
                    side: [_text(s) for s in listeners if s.getsockname()[1] == port]
                    for side, port in ports.items()
                },
                "switched_off": self._board.describe(),
                "loop_lag_ms": round(facts.loop_lag_ms, 3),
            }
        )

    def _registry_facts(self) -> dict[str, Any]:
        facts = asdict(self._app.registry.status())
        facts["broken"] = list(facts.pop("broken_examples"))
        return facts

    async def _registry(self, _request: web.Request) -> web.Response:
        return web.json_response(self._registry_facts())

    async def _conns(self, _request: web.Request) -> web.Response:
        now_s = self._app.forwarder.loop.time()
        sessions = self._app.sessions.items()
        return web.json_response(
            {
                "conns": [_conn(number, session, now_s) for number, session in sessions],
                "peers": [_peer(pool) for pool in self._app.forwarder.pools.mesh_pools],
            }
        )

    async def _services(self, _request: web.Request) -> web.Response:
        table = self._app.forwarder.table.instances_by_key
        return web.json_response(
            {
                "services": [
                    service_facts(self._app.forwarder, key, table[key])
                    for key in sorted(table, key=str)
                ]
            }
        )

    async def _explain(self, request: web.Request) -> web.Response:
        query = request.query
        uri, group = query.get("service", ""), query.get("group", "")
        props = [text.partition("=") for text in query.getall("prop", [])]
        if not uri or not all(sign for _, sign, _ in props):
            raise web.HTTPBadRequest(reason="expected service=URI and prop=NAME=VALUE")
        route = Route(uri, group, query.get("method", ""), {k: v for k, _, v in props})
        return web.json_response(explain_route(self._app.forwarder, route))

    async def _known(self, request: web.Request) -> web.Response:
        return web.json_response(self._board.knows(request.query.get("service", "")))

    async def _reload_switches(self, _request: web.Request) -> web.Response:
        self._board.reload()
        return web.json_response({"switched_off": self._board.describe()})

    async def _metrics(self, _request: web.Request) -> web.Response:
        body = exposition(self._app.metrics, self._app.gauges, self._app.health_counts)
        return web.Response(body=body, content_type="text/plain", charset="utf-8")


@web.middleware
async def _only_root(request: web.Request, handler: _Handler) -> web.StreamResponse:
    """The mode of the socket keeps others out; this holds even when somebody changes it."""
    sock = request.transport.get_extra_info("socket") if request.transport else None
    if sock is None:
        return web.json_response({"error": "the peer has gone"}, status=403)
    _pid, uid = peer_credentials(sock)
    if not is_trusted(uid):
        return web.json_response({"error": f"user {uid} may not ask"}, status=403)
    try:
        return await handler(request)
    except web.HTTPException as e:
        return web.json_response({"error": e.reason}, status=e.status)
    except Exception as e:
        log.exception("admin request failed", path=request.path)
        return web.json_response({"error": f"{type(e).__name__}: {e}"}, status=500)


def _text(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _caller(agent: PeerAgent) -> dict[str, str]:
    return {"agent": str(agent.address), "app": agent.app, "zone": agent.zone}


def _peer(pool: MeshPool) -> dict[str, Any]:
    return {
        "address": str(pool.address),
        "state": pool.describe(),
        "connections": pool.connections,
        "in_flight": pool.load,
        "load_hint": pool.load_hint,
    }


def _origin(session: Served) -> dict[str, str] | None:
    """Where the latest request of another agent comes from, as that agent says."""
    origin = session.origin if isinstance(session, MeshSession) else None
    return {"app": origin.app, "zone": origin.zone} if origin else None


def _conn(number: int, session: Served, now_s: float) -> dict[str, Any]:
    peer, upstream = session.peer, session.upstream
    return {
        "id": number,
        "direction": peer.direction.value,
        "client": str(peer.client),
        "original": str(peer.original) if peer.original else None,
        "caller": _caller(peer.caller) if peer.caller else None,
        "origin": _origin(session),
        "mode": session.mode.value,
        "protocol": session.protocol.value,
        "service": session.service or None,
        "upstream": str(upstream) if upstream else None,
        "age_s": round(now_s - session.started_s, 3),
        "requests": session.requests,
        "bytes_in": session.client.bytes_in,
        "bytes_out": session.client.bytes_out,
    }
