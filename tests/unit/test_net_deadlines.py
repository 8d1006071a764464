"""Deadlines: each is called once and not before its time, and those that are met cost nothing."""

from __future__ import annotations

import asyncio
from functools import partial

from proxy.net.deadlines import Deadlines
from tests.unit.net_support import until


async def test_deadlines_are_called_in_their_order_and_never_early() -> None:
    loop, called = asyncio.get_running_loop(), list[tuple[int, float]]()
    deadlines = Deadlines(loop)

    def note(number: int) -> None:
        called.append((number, loop.time()))

    due_s = [loop.time() + 0.01 * number for number in range(5)]
    for number, deadline_s in enumerate(due_s):
        deadlines.of(1.0).add(partial(note, number), deadline_s)
    await until(lambda: len(called) == 5)
    assert [number for number, _ in called] == [0, 1, 2, 3, 4]
    assert all(at_s >= due for (_, at_s), due in zip(called, due_s, strict=True))
    assert len(deadlines) == 0, "a length that nobody uses is forgotten"


async def test_what_is_removed_is_not_called() -> None:
    loop, called = asyncio.get_running_loop(), list[str]()
    wheel = Deadlines(loop).of(0.01)

    def met() -> None:
        called.append("met")

    def missed() -> None:
        called.append("missed")

    now_s = loop.time()
    wheel.add(met, now_s + 0.01)
    wheel.add(missed, now_s + 0.01)
    wheel.remove(met)
    await until(lambda: called)
    assert called == ["missed"]
    wheel.remove(missed)


async def test_one_that_fails_does_not_keep_the_others() -> None:
    loop, called = asyncio.get_running_loop(), list[str]()
    failures: list[object] = []
    loop.set_exception_handler(lambda _loop, context: failures.append(context))
    wheel = Deadlines(loop).of(0.0)

    def fails() -> None:
        raise ValueError("on purpose")

    wheel.add(fails, loop.time())
    wheel.add(lambda: called.append("other"), loop.time())
    await until(lambda: called)
    assert len(failures) == 1
