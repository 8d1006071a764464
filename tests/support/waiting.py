"""Waits for what another task or process brings about, with an end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

POLL_S = 0.01


async def eventually(holds: Callable[[], bool], what: str, within_s: float = 10.0) -> float:
    """Wait until `holds()`; returns the seconds it took. Raises AssertionError naming `what`."""
    loop = asyncio.get_running_loop()
    start_s = loop.time()
    while not holds():
        if loop.time() - start_s > within_s:
            raise AssertionError(f"{what}: not within {within_s} s")
        await asyncio.sleep(POLL_S)
    return loop.time() - start_s
