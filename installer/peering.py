"""Peer agents as a node's configuration has them: for the agent's door and the supervisor."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from installer.config import Config
from installer.opsd.peers import PeerKeeper
from interceptor.node import Node
from proxy.core.model import PeerAgent
from proxy.registry.agents import AgentDirectory, parse_agent
from proxy.registry.member import parse_address


def open_directory(config: Config) -> AgentDirectory:
    """The agents of the node's application; the configured ones are in it already."""
    app, zone = config.node.application, config.node.zone
    own = [PeerAgent(parse_address(text), app, zone) for text in config.peer.listen]
    return AgentDirectory(app, own, (parse_agent(text, app) for text in config.peer.nodes))


def follower(
    config: Config, directory: AgentDirectory, *, announce: bool
) -> Callable[[], Coroutine[Any, Any, None]]:
    """What keeps the directory up to date; with a static registry nothing has to."""

    async def follow() -> None:
        if config.registry.url is None or config.registry.kind != "redis":
            await asyncio.Event().wait()
            return
        # Late: a supervisor of a node without Redis is spared redis-py.
        from proxy.registry.agents_redis import follow as follow_redis
        from proxy.registry.endpoint import RedisEndpoint

        endpoint = RedisEndpoint.parse(config.registry.url.get_secret_value())
        await follow_redis(directory, endpoint, announce=announce)

    return follow


def peer_keeper(config: Config) -> PeerKeeper:
    """What the supervisor runs."""
    directory = open_directory(config)
    return PeerKeeper(
        node=Node(config.bpf.root),
        directory=directory,
        follow=follower(config, directory, announce=True),
        zone=config.node.zone,
        mark=config.bpf.mark,
    )
