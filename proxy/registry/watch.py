"""What a watcher reads and changes in Redis: its lease, what is offline, its votes.

Every method takes at most `answer_s` for each round trip and raises redis-py's errors, OSError
and TimeoutError; after any of them nothing is lost by asking again.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from proxy.core.model import Address, ServiceKey
from proxy.registry import keys, watch_log, watch_scripts
from proxy.registry.clients import RedisClient, close
from proxy.registry.endpoint import RedisEndpoint
from proxy.registry.member import BadMember, parse_address

BATCH = 100
"""Services, or votes, in one round trip."""


class Outcome(StrEnum):
    """What came of a vote."""

    DONE = "done"
    WAITING = "waiting"
    """Not enough votes yet."""
    LAST = "last"
    """It is the last instance of the service, and stays."""
    MAINT = "maint"
    """An operator has it in hands."""
    FRESH = "fresh"
    """It was taken out a moment ago and has entered itself since: it has to fail anew."""
    ABSENT = "absent"
    """It is not where it would have to be: somebody else was faster, or it registered itself."""


@dataclass(frozen=True, slots=True)
class Lease:
    """`was_held`: the lease before had not ended. `live` are all watchers by what they say."""

    was_held: bool
    now_ms: int
    live: Mapping[str, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Offline:
    """One instance that was taken out; `raw` is its entry as Redis holds it."""

    key: ServiceKey
    address: Address
    member: str
    at_ms: int
    who: str
    why: str
    raw: bytes


@dataclass(frozen=True, slots=True)
class Vote:
    """That an instance is down (`down`), or up; `may_empty`: also when it is the last one."""

    key: ServiceKey
    address: Address
    down: bool
    why: str
    may_empty: bool = False


@dataclass(frozen=True, slots=True)
class Voted:
    """What came of a vote; `member` is what was taken out or put back."""

    vote: Vote
    outcome: Outcome
    votes: int
    member: str


class WatchStore:
    """One watcher's hold on Redis; `who` names it, votes and lease last `lease_ms`, and nothing
    is taken out twice within `fresh_ms`."""

    def __init__(
        self, endpoint: RedisEndpoint, who: str, lease_ms: int, fresh_ms: int, answer_s: float
    ) -> None:
        self._client = endpoint.client(answer_s, connections=2)
        self._who = who
        self._lease_ms = lease_ms
        self._fresh_ms = fresh_ms
        self._answer_s = answer_s
        self._lease = self._client.register_script(watch_scripts.LEASE)

    async def aclose(self) -> None:
        """Close the connections."""
        await close(self._client)

    async def renew(self, facts: Mapping[str, Any]) -> Lease:
        """Renew the lease and say `facts` of oneself."""
        async with asyncio.timeout(self._answer_s):
            held, now_ms, raw = await self._lease(
                keys=[keys.WATCHERS], args=[self._who, self._lease_ms, json.dumps(facts)]
            )
        return Lease(bool(held), int(now_ms), parse_live(raw[::2], raw[1::2]))

    async def resign(self) -> None:
        """End the lease at once."""
        async with asyncio.timeout(self._answer_s):
            await self._client.hdel(keys.WATCHERS, self._who)

    async def offline(self, services: Iterable[ServiceKey]) -> list[Offline]:
        """See the function `offline`."""
        return await offline(self._client, services, self._answer_s)

    async def cast(self, votes: Sequence[Vote], needed: int) -> list[Voted]:
        """Cast these votes; what they change is changed, and to be logged by the caller."""
        results: list[Voted] = []
        for batch in _batches(votes):
            async with asyncio.timeout(self._answer_s):
                async with self._client.pipeline(transaction=False) as pipe:
                    for vote in batch:
                        self._add(pipe, vote, needed)
                    answers = await pipe.execute(raise_on_error=False)
            for vote, answer in zip(batch, answers, strict=True):
                if _is_answer(answer):
                    results.append(
                        Voted(vote, Outcome(answer[0].decode()), answer[1], answer[2].decode())
                    )
        return results

    async def withdraw(self, votes: Iterable[Vote]) -> None:
        """Take back what was voted for and has not been done."""
        for batch in _batches(list(votes)):
            async with asyncio.timeout(self._answer_s):
                async with self._client.pipeline(transaction=False) as pipe:
                    for vote in batch:
                        word = "down" if vote.down else "up"
                        pipe.zrem(keys.votes_key(vote.key), f"{word} {vote.address} {self._who}")
                    for answer in await pipe.execute(raise_on_error=False):
                        _is_answer(answer)

    async def forget(self, entry: Offline) -> bool:
        """Forget an instance that has been offline for too long; whether it still was."""
        async with asyncio.timeout(self._answer_s):
            done = await self._client.eval(
                watch_scripts.FORGET, len(keys.script_keys(entry.key)),
                *keys.script_keys(entry.key), str(entry.key), str(entry.address), entry.raw,
            )  # fmt: skip
        return bool(done)

    async def log(self, entries: Iterable[watch_log.Entry]) -> None:
        """Write to the audit trail."""
        async with asyncio.timeout(self._answer_s):
            await watch_log.write(self._client, entries)

    def _add(self, pipe: Any, vote: Vote, needed: int) -> None:
        script = watch_scripts.TAKE_OUT if vote.down else watch_scripts.PUT_BACK
        names = keys.watch_keys(vote.key)
        # EVAL and not EVALSHA: in a pipeline a script that Redis has forgotten cannot be loaded
        # in time. Redis keeps what it has compiled by the text.
        pipe.eval(
            script, len(names), *names, str(vote.key), str(vote.address), self._who,
            self._lease_ms, needed, vote.why, self._fresh_ms, "1" if vote.may_empty else "",
        )  # fmt: skip


async def offline(
    client: RedisClient, services: Iterable[ServiceKey], answer_s: float
) -> list[Offline]:
    """What is offline of these services; an entry that cannot be read is left alone."""
    found: list[Offline] = []
    for batch in _batches(sorted(services, key=str)):
        async with asyncio.timeout(answer_s), client.pipeline(transaction=False) as pipe:
            for key in batch:
                pipe.hgetall(keys.offline_key(key))
            answers = await pipe.execute(raise_on_error=False)
        for key, answer in zip(batch, answers, strict=True):
            if _is_answer(answer):
                found += filter(None, (_offline(key, *item) for item in answer.items()))
    return found


async def live_watchers(client: RedisClient) -> tuple[dict[str, dict[str, Any]], int]:
    """Every watcher that ever said something and was not ended by another, and Redis's unix ms."""
    raw: dict[Any, Any] = await client.hgetall(keys.WATCHERS)
    now: Any = await client.time()
    # A cluster's client asks every node.
    seconds, micros = next(iter(now.values())) if isinstance(now, dict) else now
    return parse_live(raw.keys(), raw.values()), seconds * 1000 + micros // 1000


def parse_live(names: Iterable[bytes], values: Iterable[bytes]) -> dict[str, dict[str, Any]]:
    """What each watcher says of itself, with `lease_ends_ms`; a value that is not JSON is {}."""
    live = {}
    for name, value in zip(names, values, strict=True):
        ends_ms, _, text = value.partition(b" ")
        try:
            facts = json.loads(text)
        except ValueError:
            facts = {}
        facts = facts if isinstance(facts, dict) else {}
        facts["lease_ends_ms"] = int(ends_ms) if ends_ms.isdigit() else 0
        live[name.decode(errors="replace")] = facts
    return live


def _offline(key: ServiceKey, field: bytes, raw: bytes) -> Offline | None:
    try:
        entry = json.loads(raw)
        address = parse_address(field.decode())
        return Offline(
            key, address, str(entry["member"]), int(entry["at_ms"]), str(entry["who"]),
            str(entry["why"]), raw,
        )  # fmt: skip
    except (ValueError, TypeError, KeyError, BadMember):
        return None


def _is_answer(answer: object) -> bool:
    """False when a key holds another type: that harms its service only. Raises other errors."""
    if not isinstance(answer, Exception):
        return True
    if "WRONGTYPE" not in str(answer):
        raise answer
    return False


def _batches(items: Sequence[Any]) -> Iterable[Sequence[Any]]:
    return (items[start : start + BATCH] for start in range(0, len(items), BATCH))
