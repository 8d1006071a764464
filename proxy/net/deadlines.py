"""Deadlines of very many requests, most of which are met: one timer for all of one length.

A timer of the loop costs 1 to 5 us to make and cancel, an entry in a dict a tenth of that.
Deadlines of one length come due in the order in which they were set, so only the first one
needs a timer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

Expire = Callable[[], None]


class Wheel:
    """Deadlines that are all `timeout_s` after they were set; `on_empty` when none is left."""

    __slots__ = ("_due", "_loop", "_on_empty", "_timer")

    def __init__(self, loop: asyncio.AbstractEventLoop, on_empty: Callable[[], None]) -> None:
        self._loop = loop
        self._on_empty = on_empty
        self._due: dict[Expire, float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def add(self, expire: Expire, deadline_s: float) -> None:
        """Call `expire` at `deadline_s` of the loop's time, unless it is removed before."""
        self._due[expire] = deadline_s
        if self._timer is None:
            self._timer = self._loop.call_at(deadline_s, self._tick)

    def remove(self, expire: Expire) -> None:
        """No error when it has been called already."""
        self._due.pop(expire, None)

    def _tick(self) -> None:
        now_s = self._loop.time()
        due: list[Expire] = []
        self._timer = None
        for expire, deadline_s in self._due.items():
            if deadline_s > now_s:
                self._timer = self._loop.call_at(deadline_s, self._tick)
                break
            due.append(expire)
        for expire in due:
            del self._due[expire]
            # From the loop, so that one that fails does not keep the others from being called.
            self._loop.call_soon(expire)
        if self._timer is None:
            self._on_empty()


class Deadlines:
    """A wheel for each length of time that is in use."""

    __slots__ = ("_loop", "_wheels")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._wheels: dict[float, Wheel] = {}

    def __len__(self) -> int:
        return len(self._wheels)

    def of(self, timeout_s: float) -> Wheel:
        """The wheel of this length: add to it at once, or it may be forgotten."""
        wheel = self._wheels.get(timeout_s)
        if wheel is None:
            wheel = Wheel(self._loop, partial(self._wheels.__delitem__, timeout_s))
            self._wheels[timeout_s] = wheel
        return wheel
