"""Who is an agent of the application: configured, announced, remembered, forgotten."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path

import pytest

from proxy.core.model import Address, PeerAgent
from proxy.registry.agents import KEEP_S, AgentDirectory, format_agent, parse_agent
from proxy.registry.agents_redis import agents_key, follow
from proxy.registry.endpoint import RedisEndpoint
from proxy.registry.member import BadMember
from tests.support.redis import RedisServer

OWN = PeerAgent(Address("10.0.0.1", 15008), "chat", "a")
OTHER = PeerAgent(Address("10.0.0.2", 15008), "chat", "b")
SIX = PeerAgent(Address("fd00::3", 15008), "chat", "a")


def directory(*configured: PeerAgent) -> AgentDirectory:
    return AgentDirectory("chat", [OWN], configured)


@pytest.mark.parametrize("agent", [OWN, SIX, PeerAgent(Address("10.0.0.9", 1), "a/b.c-d", "")])
def test_text_of_an_agent_is_read_back(agent: PeerAgent) -> None:
    assert parse_agent(format_agent(agent)) == agent


def test_configured_agent_has_the_nodes_own_application() -> None:
    assert parse_agent("10.0.0.2:15008?zone=b", "chat") == OTHER
    with pytest.raises(BadMember):
        parse_agent("other-node:15008")


def test_own_agents_and_those_of_other_applications_are_no_peers() -> None:
    stranger = PeerAgent(Address("10.0.0.3", 15008), "mail", "a")
    found = directory(OWN, OTHER, stranger)
    assert found.update([format_agent(OWN), format_agent(stranger)], 0.0) == []
    assert found.peers == (OTHER,)
    assert found.caller("10.0.0.2") == OTHER
    assert found.caller("10.0.0.1") is None
    assert found.caller("10.0.0.3") is None


def test_announced_agent_is_remembered_for_a_while() -> None:
    found = directory()
    found.update([format_agent(SIX)], 0.0)
    found.update([], KEEP_S)
    assert found.caller("fd00::3") == SIX
    found.update([], KEEP_S + 1)
    assert found.peers == ()


def test_what_cannot_be_read_is_told_and_hides_nothing() -> None:
    found = directory()
    (why,) = found.update(["nonsense", format_agent(OTHER)], 0.0)
    assert "nonsense" in why
    assert found.peers == (OTHER,)


def test_announced_zone_is_newer_than_the_configured_one() -> None:
    found = directory(OTHER)
    moved = PeerAgent(OTHER.address, "chat", "c")
    found.update([format_agent(moved)], 0.0)
    assert found.peers == (moved,)


@pytest.fixture
def redis(tmp_path: Path) -> RedisServer:
    return RedisServer(tmp_path)


async def test_agents_are_announced_and_found_in_redis(redis: RedisServer) -> None:
    """The agent reads, the supervisor also announces; the silent are taken out."""
    with redis, redis.client() as client:
        client.zadd(agents_key("chat"), {format_agent(SIX): 1})
        here, there = directory(), AgentDirectory("chat", [OTHER], [])
        endpoint = RedisEndpoint.parse(redis.url)
        tasks = [
            asyncio.create_task(follow(here, endpoint, announce=True)),
            asyncio.create_task(follow(there, endpoint, announce=False)),
        ]
        try:
            async with asyncio.timeout(20):
                while there.peers != (OWN,):
                    await asyncio.sleep(0.01)
            assert here.peers == (), "nobody announced the other, and one was silent for years"
        finally:
            for task in tasks:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
