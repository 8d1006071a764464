"""The tests of proxy/net run on both event loops: they differ where a connection ends badly."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import pytest
import uvloop

_LoopFactory = Callable[[], asyncio.AbstractEventLoop]


def pytest_asyncio_loop_factories(item: pytest.Item) -> Mapping[str, _LoopFactory]:
    plain: dict[str, _LoopFactory] = {"asyncio": asyncio.new_event_loop}
    if item.path.name.startswith("test_net_"):
        return plain | {"uvloop": uvloop.new_event_loop}
    return plain
