"""What a running agent does once in a while: its beats to the kernel and to the supervisor."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from installer.admin import AgentFacts
from installer.kernel_gate import KernelGate
from proxy.app import ProxyApp

RECONCILE_S = 1.0
TELL_S = 1.0


async def beat(gate: KernelGate, facts: AgentFacts, interval_s: float) -> None:
    """Tell the kernel that the event loop turns; what is late shows how busy it is."""
    loop = asyncio.get_running_loop()
    due_s = loop.time()
    while True:
        gate.beat()
        facts.loop_lag_ms = max(0.0, (loop.time() - due_s) * 1000)
        due_s = loop.time() + interval_s
        await asyncio.sleep(interval_s)


async def reconcile(gate: KernelGate) -> None:
    """Attach what a restarted unit has lost, and follow what changes without the registry."""
    loop = asyncio.get_running_loop()
    while True:
        await asyncio.sleep(RECONCILE_S)
        gate.reconcile()
        gate.tick(loop.time())


async def tell(app: ProxyApp, facts: AgentFacts, say: Callable[[dict[str, Any]], None]) -> None:
    """Tell the supervisor how things go (docs/UPGRADE.md, `beat`)."""
    metrics = app.metrics
    count, latency_s = metrics.latencies, metrics.latency_s
    while True:
        await asyncio.sleep(TELL_S)
        answered = metrics.latencies - count
        mean_ms = 1000 * (metrics.latency_s - latency_s) / answered if answered else None
        count, latency_s = metrics.latencies, metrics.latency_s
        say(
            {
                "say": "beat",
                "connections": len(app.sessions),
                "in_flight": metrics.in_flight,
                "requests": metrics.requests,
                "ok": metrics.ok,
                "failed": metrics.failed,
                "transport_errors": metrics.transport_errors,
                "latency_ms": None if mean_ms is None else round(mean_ms, 3),
                "loop_lag_ms": round(facts.loop_lag_ms, 3),
            }
        )
