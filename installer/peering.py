"""Peer agents as a node's configuration has them: for the agent's door and the supervisor."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from installer.opsd.peers import PeerKeeper
from installer.peer_settings import PeerSettings
from interceptor.node import Node
from proxy.core.model import PeerAgent
from proxy.registry.agents import AgentDirectory, parse_agent
from proxy.registry.member import parse_address


def open_directory(settings: PeerSettings) -> AgentDirectory:
    """The agents of the node's application; the configured ones are in it already."""
    app, zone = settings.application, settings.zone
    own = [PeerAgent(parse_address(text), app, zone) for text in settings.listen]
    return AgentDirectory(app, own, (parse_agent(text, app) for text in settings.nodes))


def follower(
    settings: PeerSettings, directory: AgentDirectory, *, announce: bool
) -> Callable[[], Coroutine[Any, Any, None]]:
    """What keeps the directory up to date; with a static registry nothing has to."""

    async def follow() -> None:
        if settings.redis_url is None:
            await asyncio.Event().wait()
            return
        # Late: a supervisor of a node without Redis is spared redis-py.
        from proxy.registry.agents_redis import follow as follow_redis
        from proxy.registry.endpoint import RedisEndpoint

        endpoint = RedisEndpoint.parse(settings.redis_url)
        await follow_redis(directory, endpoint, announce=announce)

    return follow


def peer_keeper(settings: PeerSettings) -> PeerKeeper:
    """What the supervisor runs."""
    directory = open_directory(settings)
    return PeerKeeper(
        node=Node(settings.root),
        directory=directory,
        follow=follower(settings, directory, announce=True),
        zone=settings.zone,
        mark=settings.mark,
    )
