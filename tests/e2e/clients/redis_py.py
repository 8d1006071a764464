"""redis-py: `python redis_py.py HOST PORT MODE`, see `clients/__init__.py`."""

from __future__ import annotations

import asyncio
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import redis
import redis.asyncio

OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "resp2": {"protocol": 2},
    "resp3": {"protocol": 3},
    "decode": {"decode_responses": True},
    "pool": {},
    "pipeline": {},
    "asyncio": {},
    "asyncio-pipeline": {},
}


def in_order(client: redis.Redis, requests: list[str]) -> list[Any]:
    return [client.get(request) for request in requests]


def pooled(host: str, port: int, requests: list[str]) -> list[Any]:
    """Eight threads, each with a connection of the pool at a time."""
    pool = redis.BlockingConnectionPool(  # type: ignore[no-untyped-call]
        max_connections=8, host=host, port=port
    )
    client = redis.Redis(connection_pool=pool)
    with ThreadPoolExecutor(8) as threads:
        return list(threads.map(client.get, requests))


def pipelined(client: redis.Redis, requests: list[str]) -> list[Any]:
    pipeline = client.pipeline(transaction=False)
    for request in requests:
        pipeline.get(request)
    return list(pipeline.execute())


async def concurrent(host: str, port: int, requests: list[str], mode: str) -> list[Any]:
    async with redis.asyncio.Redis(host=host, port=port, max_connections=32) as client:
        if mode == "asyncio-pipeline":
            pipeline = client.pipeline(transaction=False)
            for request in requests:
                pipeline.get(request)
            return list(await pipeline.execute())
        gate = asyncio.Semaphore(16)

        async def one(request: str) -> Any:
            async with gate:
                return await client.get(request)

        return list(await asyncio.gather(*map(one, requests)))


def main() -> None:
    host, port, mode = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    requests = sys.stdin.read().removesuffix("\n").split("\n")  # other line ends are text
    if mode.startswith("asyncio"):
        replies = asyncio.run(concurrent(host, port, requests, mode))
    elif mode == "pool":
        replies = pooled(host, port, requests)
    else:
        with redis.Redis(host=host, port=port, **OPTIONS[mode]) as client:
            run = pipelined if mode == "pipeline" else in_order
            replies = run(client, requests)
    for reply in replies:
        expected = str if mode == "decode" else bytes
        assert isinstance(reply, expected), f"{type(reply)}: {reply!r}"
        print(reply if isinstance(reply, str) else reply.decode())


if __name__ == "__main__":
    main()
