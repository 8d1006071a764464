"""The tests of proxy/net run on both event loops: they differ where a connection ends badly.

Hypothesis has no limit for one example: on a busy machine that would measure the machine.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import pytest
import uvloop
from hypothesis import settings

settings.register_profile("busy", deadline=None)
settings.load_profile("busy")

_LoopFactory = Callable[[], asyncio.AbstractEventLoop]


def pytest_asyncio_loop_factories(item: pytest.Item) -> Mapping[str, _LoopFactory]:
    plain: dict[str, _LoopFactory] = {"asyncio": asyncio.new_event_loop}
    if item.path.name.startswith("test_net_"):
        return plain | {"uvloop": uvloop.new_event_loop}
    return plain
