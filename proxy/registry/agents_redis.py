"""The agents of an application, announced and read in the registry's Redis.

`moa:agents:{<app>}` is a Sorted Set: `host:port?app=...&zone=...` by its last announcement in
unix milliseconds of Redis's own clock. One script announces, forgets the silent and reads.
"""

from __future__ import annotations

import asyncio

import structlog
from redis.exceptions import RedisError

from proxy.registry.agents import MAX_AGENTS, AgentDirectory, format_agent
from proxy.registry.base import RegistryError
from proxy.registry.endpoint import RedisEndpoint

INTERVAL_S = 2.0
SILENT_MS = 15_000
"""Who has announced nothing for so long is taken out."""

_ANSWER_S = 2.0

_SCRIPT = """
local now = redis.call('TIME')
local now_ms = now[1] * 1000 + math.floor(now[2] / 1000)
for i = 3, #ARGV do
  redis.call('ZADD', KEYS[1], string.format('%d', now_ms), ARGV[i])
end
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('%d', now_ms - ARGV[1]))
return redis.call('ZREVRANGE', KEYS[1], 0, ARGV[2] - 1)
"""

log = structlog.get_logger("agents")


def agents_key(app: str) -> str:
    """Sorted set: agent by its last announcement."""
    return f"moa:agents:{{{app}}}"


async def follow(directory: AgentDirectory, endpoint: RedisEndpoint, *, announce: bool) -> None:
    """Keep a directory up to date until cancelled; with `announce` also tell of its own agents.

    While Redis does not answer, the directory stays as it is.
    """
    loop = asyncio.get_running_loop()
    client = endpoint.client(_ANSWER_S, connections=1)
    members = [format_agent(agent) for agent in directory.own] if announce else []
    is_lost = False
    try:
        while True:
            try:
                async with asyncio.timeout(_ANSWER_S):
                    raw = await client.eval(
                        _SCRIPT, 1, agents_key(directory.app), SILENT_MS, MAX_AGENTS, *members
                    )
                texts = [text.decode(errors="replace") for text in raw]
                for why in directory.update(texts, loop.time()):
                    log.warning("announced agent not understood", reason=why)
                is_lost = False
            except (RedisError, RegistryError, OSError, TimeoutError) as error:
                if not is_lost:
                    log.warning("agents not read", redis=str(endpoint), error=str(error))
                is_lost = True
            await asyncio.sleep(INTERVAL_S)
    finally:
        await client.aclose()
